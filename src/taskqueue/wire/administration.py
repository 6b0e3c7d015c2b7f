"""Requests and replies about API keys and the audit log; like `messages`, one for all doors."""

from datetime import datetime
from typing import Annotated, Any, Final

from msgspec import Meta, Struct

from taskqueue.core.audit import AuditEntry
from taskqueue.core.clock import moment
from taskqueue.core.keys import Key, Permission
from taskqueue.wire.messages import LARGEST_PAGE, LARGEST_TOKEN, Name

LONGEST_LIFE: Final = 10 * 365 * 24 * 3600
LONGEST_OVERLAP: Final = 30 * 24 * 3600
LARGEST_RATE: Final = 1_000_000

KeyId = Annotated[str, Meta(max_length=64, description="Id of an API key, not its secret")]


class CreateKeyRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    """An API key to make."""

    name: Annotated[Name, Meta(description="Says who has it")]
    permissions: Annotated[
        list[Permission], Meta(min_length=1, max_length=len(Permission), description="What for")
    ]
    task_type_prefix: Annotated[
        Name | None, Meta(description="How the types of all tasks must begin that it can reach")
    ] = None
    rate_limit: Annotated[
        Annotated[int, Meta(ge=0, le=LARGEST_RATE)] | None,
        Meta(description="Requests a second, instead of the broker's own limit; 0 for no limit"),
    ] = None
    expires_in_seconds: Annotated[
        Annotated[int, Meta(ge=1, le=LONGEST_LIFE)] | None,
        Meta(description="How long it is valid; for ever if not given"),
    ] = None


class RotateKeyRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    """Names an API key that is to have a new secret."""

    key_id: KeyId
    overlap_seconds: Annotated[
        int,
        Meta(ge=0, le=LONGEST_OVERLAP, description="How long the old secret stays valid beside it"),
    ] = 24 * 3600


class KeyRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    """Names one API key."""

    key_id: KeyId


class AuditRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    """Which entries of the audit log to list, newest first."""

    limit: Annotated[int, Meta(ge=1, le=LARGEST_PAGE)] = 100
    before: Annotated[
        int, Meta(ge=1, le=LARGEST_TOKEN, description="Only entries with a number below this one")
    ] = LARGEST_TOKEN


class KeyReply(Struct, kw_only=True):
    """An API key without its secret; `hint` is the secret's last four characters."""

    key_id: str
    name: str
    hint: str
    permissions: list[Permission]
    task_type_prefix: str | None
    rate_limit: int | None
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    old_secret_until: datetime | None


class NewKeyReply(KeyReply, kw_only=True):
    """An API key with its new secret in `key`: it is shown this once."""

    key: str


class KeysReply(Struct, kw_only=True):
    """Every API key, oldest first."""

    keys: list[KeyReply]


class AuditEntryReply(Struct, kw_only=True):
    """Who asked for what, when, and what came of it: `outcome` is ok or the code of an error."""

    number: int
    at: datetime
    key_id: str | None
    name: str | None
    address: str
    operation: str
    target: str
    outcome: str


class AuditReply(Struct, kw_only=True):
    """Entries of the audit log, newest first."""

    entries: list[AuditEntryReply]


def key_reply(key: Key) -> KeyReply:
    """An API key as it is listed."""
    return KeyReply(**_key_fields(key))


def new_key_reply(made: tuple[Key, str]) -> NewKeyReply:
    """An API key with the secret that was just made for it."""
    key, secret = made
    return NewKeyReply(**_key_fields(key), key=secret)


def audit_reply(entries: list[AuditEntry]) -> AuditReply:
    """Entries of the audit log."""
    return AuditReply(
        entries=[
            AuditEntryReply(
                number=entry.number,
                at=moment(entry.at),
                key_id=entry.key_id,
                name=entry.name,
                address=entry.address,
                operation=entry.operation,
                target=entry.target,
                outcome=entry.outcome,
            )
            for entry in entries
        ]
    )


def _key_fields(key: Key) -> dict[str, Any]:
    return {
        "key_id": key.id,
        "name": key.name,
        "hint": key.hint,
        "permissions": list(key.permissions),
        "task_type_prefix": key.scope or None,
        "rate_limit": key.rate_limit,
        "created_at": moment(key.created_at),
        "expires_at": _moment(key.expires_at),
        "revoked_at": _moment(key.revoked_at),
        "last_used_at": _moment(key.used_at),
        "old_secret_until": _moment(key.old_until),
    }


def _moment(at: int | None) -> datetime | None:
    return None if at is None else moment(at)
