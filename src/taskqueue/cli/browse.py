"""`tq open`: the broker's page in a browser."""

import sys
from typing import Annotated, Final
from urllib.parse import urlsplit

from cyclopts import Parameter

from taskqueue.cli.options import HERE, Target
from taskqueue.client.address import broker_addresses

PAGE: Final = "/docs"
EVERYWHERE: Final = ("0.0.0.0", "::")  # noqa: S104  compared with, not listened on


def open_page(
    *,
    print_: Annotated[
        bool, Parameter(name="--print", negative="", help="only print the address")
    ] = False,
    broker: Target = HERE,
) -> None:
    """Open the broker's page in a browser and print its address."""
    import webbrowser

    address = page_address(broker)
    print(address)
    if not print_ and not webbrowser.open(address):
        print("tq: no browser is there; open the address yourself", file=sys.stderr)


def page_address(broker: Target) -> str:
    """Where the page of the broker that answers is."""
    chosen = broker.chosen()
    reached = broker_addresses(chosen.url, chosen.api_key)[0]
    with broker.connect() as client:
        [asked] = [one for one in client.cluster().brokers if one.is_me]
    stated = urlsplit(f"//{asked.http}")
    host = stated.hostname or reached.host
    if host in EVERYWHERE:
        host = reached.host
    shown = f"[{host}]" if ":" in host else host
    return f"{'http' if reached.tls is None else 'https'}://{shown}:{stated.port}{PAGE}"
