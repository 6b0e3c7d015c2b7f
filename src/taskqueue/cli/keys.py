"""`tq keys` and `tq audit`: who is let in, and what operators did."""

import asyncio
import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from taskqueue.cli.bulk import ask
from taskqueue.cli.completion import key_ids
from taskqueue.cli.options import AS_IT_IS, HERE, Target
from taskqueue.cli.output import PLAIN, Form, as_row, is_for_programs, print_record, print_rows
from taskqueue.core.clock import SystemClock, moment
from taskqueue.core.keys import Permission
from taskqueue.wire.administration import KeyReply

KeyId = Annotated[str, Parameter(completer=key_ids)]

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
        AS_IT_IS,
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
    form: Form = PLAIN,
    broker: Target = HERE,
) -> None:
    """Make an API key and print its secret, this once."""
    if data is not None:
        from taskqueue.server.offline import create_key

        made = asyncio.run(create_key(data, name, permission))
    else:
        with broker.connect() as client:
            made = client.create_key(
                name,
                permission,
                task_type_prefix=prefix,
                rate_limit=rate_limit,
                expires_in=expires,
            )
    _print_secret(as_row(made), form)


def list_all(*, form: Form = PLAIN, broker: Target = HERE) -> None:
    """List the API keys, without their secrets."""
    with broker.connect() as client:
        keys = client.list_keys()
    rows = [{**as_row(key), "state": _state(key)} for key in keys]
    print_rows(rows, form, LIST_COLUMNS)


def rotate(
    key_id: KeyId,
    *,
    overlap: Annotated[
        int, Parameter(help="seconds that the old secret stays valid beside the new one")
    ] = 86_400,
    form: Form = PLAIN,
    broker: Target = HERE,
) -> None:
    """Give a key a new secret and print it, this once."""
    with broker.connect() as client:
        _print_secret(as_row(client.rotate_key(key_id, overlap=overlap)), form)


def revoke(
    *named: KeyId,
    yes: Annotated[bool, Parameter(negative="", help="do not ask")] = False,
    broker: Target = HERE,
) -> None:
    """End keys for good; their connections are closed."""
    if not yes:
        ask(f"revoke {', '.join(named)}?")
    with broker.connect() as client:
        for key_id in named:
            client.revoke_key(key_id)
            print(f"{key_id}\trevoked")


def audit(
    *,
    limit: Annotated[int, Parameter(help="how many, 1 to 1000")] = 100,
    before: Annotated[int | None, Parameter(help="only entries with a lower number")] = None,
    form: Form = PLAIN,
    broker: Target = HERE,
) -> None:
    """List what operators did, newest first."""
    with broker.connect() as client:
        entries = client.audit_log(limit=limit, before=before)
    print_rows([as_row(entry) for entry in entries], form, AUDIT_COLUMNS)


def _state(key: KeyReply) -> str:
    if key.revoked_at is not None:
        return "revoked"
    now = moment(SystemClock().wall())
    return "expired" if key.expires_at is not None and key.expires_at <= now else "valid"


def _print_secret(row: dict[str, Any], form: Form) -> None:
    if is_for_programs(form) or form.fields:
        print_record(row, form)
        return
    print(row["key"])
    print(
        f"{row['key_id']} ({row['name']}: {', '.join(row['permissions'])}); "
        "the secret is shown this once, keep it safe",
        file=sys.stderr,
    )
