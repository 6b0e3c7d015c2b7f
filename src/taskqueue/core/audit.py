"""The audit log: who asked for what, when, and what came of it."""

from msgspec import Struct


class Actor(Struct, frozen=True):
    """Whoever asked: the key's id and name, none where no key is needed, and the address."""

    key_id: str | None
    name: str | None
    address: str


class AuditEntry(Struct, frozen=True, array_like=True):
    """One line of the audit log. `target` is the id of the task or key; `outcome` ok or a code.

    `number` grows by one with each entry; `at` is in microseconds on the wall clock.
    """

    number: int
    at: int
    key_id: str | None
    name: str | None
    address: str
    operation: str
    target: str
    outcome: str
