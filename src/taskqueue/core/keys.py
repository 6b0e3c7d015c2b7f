"""API keys: how their secrets are made and known again, what they permit, how they change.

A secret is `tq_`, 256 random bits in base 62 and a checksum of six characters, so that scanners
and people can tell a mistyped one. Only its SHA-256 is kept: with so many random bits a slow
hash would protect nothing more.
"""

import hashlib
import secrets
import string
import zlib
from collections.abc import Mapping
from typing import Final, NamedTuple

from msgspec import Struct, structs

from taskqueue.core.errors import InvalidRequest, InvalidStatus, KeyExists, KeyNotFound
from taskqueue.core.task import Word

PREFIX: Final = "tq_"
SECRET_BITS: Final = 256
SECRET_LENGTH: Final = 43
CHECKSUM_LENGTH: Final = 6
HINT_LENGTH: Final = 4
MOST_KEYS: Final = 10_000

_DIGITS: Final = string.digits + string.ascii_uppercase + string.ascii_lowercase


class Permission(Word):
    """What a key may permit. `admin` includes all the others."""

    SUBMIT_TASKS = "submit_tasks"
    READ_TASKS = "read_tasks"
    CANCEL_TASKS = "cancel_tasks"
    WORK = "work"
    ADMIN = "admin"


class Key(Struct, frozen=True, array_like=True):
    """An API key without its secret. Times are microseconds on the wall clock.

    `digest` is the SHA-256 of the secret in hexadecimal, `hint` the secret's last characters.
    `scope` is how the types of all tasks must begin that the key can reach. `rate_limit` in
    requests per second stands in for the broker's own; 0 is none. After a rotation the secret
    before is valid until `old_until`.
    """

    id: str
    name: str
    digest: str
    hint: str
    permissions: tuple[Permission, ...]
    created_at: int
    scope: str = ""
    rate_limit: int | None = None
    expires_at: int | None = None
    revoked_at: int | None = None
    used_at: int | None = None
    old_digest: str | None = None
    old_until: int | None = None

    def is_live(self, wall: int) -> bool:
        """Whether it lets anybody in."""
        return self.revoked_at is None and (self.expires_at is None or wall < self.expires_at)

    def permits(self, permission: Permission) -> bool:
        """Whether it is good for what needs this permission."""
        return permission in self.permissions or Permission.ADMIN in self.permissions

    def digests(self, wall: int) -> list[str]:
        """The digests of the secrets that are valid now."""
        if not self.is_live(wall):
            return []
        if self.old_digest is not None and self.old_until is not None and wall < self.old_until:
            return [self.digest, self.old_digest]
        return [self.digest]


class Secret(NamedTuple):
    """A new secret: its text, to be shown once, and what is kept of it."""

    text: str
    digest: str
    hint: str


def new_secret() -> Secret:
    """A secret that nobody has had before."""
    body = _base62(secrets.randbits(SECRET_BITS), SECRET_LENGTH)
    text = PREFIX + body + _checksum(body)
    return Secret(text, digest_of(text), text[-HINT_LENGTH:])


def digest_of(text: str) -> str:
    """What is kept of a secret."""
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def is_mistyped(text: str) -> bool:
    """Whether a text looks like a secret of ours whose checksum is wrong."""
    body = text.removeprefix(PREFIX)
    if body == text:
        return False
    return _checksum(body[:-CHECKSUM_LENGTH]) != body[-CHECKSUM_LENGTH:]


def create(keys: Mapping[str, Key], key: Key, wall: int, *, is_spare: bool) -> Key:
    """A new key. Raises KeyExists for a name that is taken, InvalidRequest beyond the limits.

    Unless `is_spare`, the first one must permit `admin`: nobody could manage keys otherwise.
    """
    if len(keys) >= MOST_KEYS:
        raise InvalidRequest(f"there are {MOST_KEYS} keys, as many as there may be")
    if any(known.name == key.name and known.is_live(wall) for known in keys.values()):
        raise KeyExists(
            f"name {key.name} is another key's; choose another name, or revoke that key",
            field="name",
        )
    if not is_spare and not _managers([*keys.values(), key], wall):
        raise InvalidRequest(
            "the first key must have the permission admin: from then on keys are needed, "
            "and no other one could make more",
            field="permissions",
        )
    return key


def rotate(key: Key, digest: str, hint: str, overlap: int, wall: int) -> Key:
    """The key with a new secret beside the present one. Raises InvalidStatus if it has ended."""
    if not key.is_live(wall):
        raise InvalidStatus(f"key {key.id} is no longer valid; create a new one")
    return structs.replace(
        key, digest=digest, hint=hint, old_digest=key.digest, old_until=wall + overlap
    )


def revoke(keys: Mapping[str, Key], key: Key, wall: int, *, is_spare: bool) -> Key:
    """The key at its end; a repeat changes nothing.

    Raises InvalidStatus for the last one that permits `admin`, unless `is_spare`.
    """
    if key.revoked_at is not None:
        return key
    others = [other for other in keys.values() if other.id != key.id]
    if not is_spare and _managers([key], wall) and not _managers(others, wall):
        raise InvalidStatus(
            f"key {key.id} is the last one with the permission admin; create another one first"
        )
    return structs.replace(key, revoked_at=wall)


def note_use(key: Key, at: int) -> Key:
    """The key, last used at that moment or later."""
    return structs.replace(key, used_at=max(at, key.used_at or 0))


def require_key(keys: Mapping[str, Key], key_id: str) -> Key:
    """The key with this id. Raises KeyNotFound."""
    key = keys.get(key_id)
    if key is None:
        raise KeyNotFound("Key not found")
    return key


def _managers(keys: list[Key], wall: int) -> list[Key]:
    return [key for key in keys if key.is_live(wall) and Permission.ADMIN in key.permissions]


def _checksum(body: str) -> str:
    return _base62(zlib.crc32(body.encode(errors="surrogateescape")), CHECKSUM_LENGTH)


def _base62(number: int, length: int) -> str:
    digits: list[str] = []
    for _ in range(length):
        number, digit = divmod(number, len(_DIGITS))
        digits.append(_DIGITS[digit])
    return "".join(reversed(digits))
