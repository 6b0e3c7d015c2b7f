"""`tq keys` and `tq audit`: who is let in, and what operators did."""

import asyncio
import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from taskqueue.cli.options import ApiKey, Output, Url
from taskqueue.cli.output import Format, as_row, print_record, print_rows
from taskqueue.cli.tasks import connected
from taskqueue.core.clock import SystemClock, moment
from taskqueue.core.errors import InvalidRequest
from taskqueue.core.keys import Permission
from taskqueue.wire.administration import KeyReply

LIST_COLUMNS = ("key_id", "name", "hint", "permissions", "state", "last_used_at")
AUDIT_COLUMNS = ("number", "at", "name", "address", "operation", "target", "outcome")

Data = Annotated[
    Path | None,
    Parameter(help="data folder of a broker that does not run, instead of a running one"),
]


def create(
    *,
    name: Annotated[str, Parameter(help="says who has it")],
    permission: Annotated[
        list[Permission],
        Parameter(help="what for; may be given several times", consume_multiple=True),
    ],
    prefix: Annotated[
        str | None, Parameter(help="how the types of all tasks must begin that it can reach")
    ] = None,
    rate_limit: Annotated[
        int | None, Parameter(help="requests a second, instead of the broker's limit; 0 for none")
    ] = None,
    expires: Annotated[int | None, Parameter(help="seconds that it is valid")] = None,
    data: Data = None,
    output: Output = None,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Make an API key and print its secret, this once."""
    if data is not None:
        from taskqueue.server.offline import create_key

        made = asyncio.run(create_key(data, name, permission))
    else:
        with connected(url, api_key) as client:
            made = client.create_key(
                name,
                permission,
                task_type_prefix=prefix,
                rate_limit=rate_limit,
                expires_in=expires,
            )
    _print_secret(as_row(made), output)


def list_all(*, output: Output = None, url: Url = None, api_key: ApiKey = None) -> None:
    """List the API keys, without their secrets."""
    with connected(url, api_key) as client:
        keys = client.list_keys()
    rows = [
        # `task_id` is what `-o id` prints.
        {**as_row(key), "state": _state(key), "task_id": key.key_id}
        for key in keys
    ]
    print_rows(rows, output, LIST_COLUMNS)


def rotate(
    key_id: str,
    *,
    overlap: Annotated[
        int, Parameter(help="seconds that the old secret stays valid beside the new one")
    ] = 86_400,
    output: Output = None,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Give a key a new secret and print it, this once."""
    with connected(url, api_key) as client:
        _print_secret(as_row(client.rotate_key(key_id, overlap=overlap)), output)


def revoke(
    *key_ids: str,
    yes: Annotated[bool, Parameter(negative="", help="do not ask")] = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """End keys for good; their connections are closed."""
    if not yes:
        _ask(f"revoke {', '.join(key_ids)}?")
    with connected(url, api_key) as client:
        for key_id in key_ids:
            client.revoke_key(key_id)
            print(f"{key_id}\trevoked")


def audit(
    *,
    limit: Annotated[int, Parameter(help="how many, 1 to 1000")] = 100,
    before: Annotated[int | None, Parameter(help="only entries with a lower number")] = None,
    output: Output = None,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """List what operators did, newest first."""
    with connected(url, api_key) as client:
        entries = client.audit_log(limit=limit, before=before)
    print_rows([as_row(entry) for entry in entries], output, AUDIT_COLUMNS)


def _state(key: KeyReply) -> str:
    if key.revoked_at is not None:
        return "revoked"
    now = moment(SystemClock().wall())
    return "expired" if key.expires_at is not None and key.expires_at <= now else "valid"


def _print_secret(row: dict[str, Any], output: Format | None) -> None:
    if output in ("json", "jsonl"):
        print_record(row, output)
        return
    print(row["key"])
    print(
        f"{row['key_id']} ({row['name']}: {', '.join(row['permissions'])}); "
        "the secret is shown this once, keep it safe",
        file=sys.stderr,
    )


def _ask(question: str) -> None:
    if not sys.stdin.isatty():
        raise InvalidRequest("nobody can be asked here; say --yes")
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise SystemExit(1)
