"""Who asks, and what they may: API keys, permissions and the rate limit, for every door alike.

Keys live in the engine; here is the copy that every request is held against, read anew twice a
second, since another broker may have changed them. While there is no key and none is demanded,
everybody may do everything.
"""

import asyncio
import hmac
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Annotated, Final

import structlog
from msgspec import Meta, Struct

from taskqueue.broker.limits import Allowance, RateLimiter, caller_of
from taskqueue.core.audit import Actor
from taskqueue.core.clock import SECOND, Clock
from taskqueue.core.errors import (
    AuthenticationFailed,
    BrokerUnavailable,
    DataDamaged,
    PermissionDenied,
)
from taskqueue.core.keys import Key, Permission, digest_of, is_mistyped
from taskqueue.storage.port import Storage

REFRESH_SECONDS: Final = 0.5
"""How long a key that was revoked elsewhere may go on being let in."""

USE_NOTED_EVERY: Final = 3600 * SECOND
"""How exactly it is known when a key was last used."""

LONGEST_SECRET: Final = 512

FAILURES_PER_SECOND: Final = 1
FAILURES_AT_ONCE: Final = 10
LONGEST_PENALTY: Final = 3.0
"""Seconds that the answer to a wrong key may be held up, once an address has sent several."""

BOOTSTRAP: Final = "bootstrap"

log = structlog.get_logger(component="access")


class AccessSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who is let in, and how much they may ask."""

    required: bool = False
    """Whether a key is needed even while none has been made."""

    bootstrap_key: Annotated[str, Meta(min_length=32, max_length=LONGEST_SECRET)] | None = None
    """A key with every permission that is not kept in the engine, for automation."""

    open_metrics: bool = True
    """Whether /metrics is shown without a key; otherwise it needs the permission read_tasks."""

    rate_limit: Annotated[int, Meta(ge=0, le=1_000_000)] = 100
    """Requests a second per key, or per address without one; 0 for no limit."""

    rate_burst: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    """Requests that may come at once; 0 for as many as `rate_limit`."""


class Caller(Struct, frozen=True):
    """Somebody who asks: from where, and with which key, if with one that is known.

    `scope` is how the types of all tasks must begin that they can reach.
    """

    address: str
    key_id: str | None = None
    name: str | None = None
    scope: str = ""

    @property
    def actor(self) -> Actor:
        """Who it is, for the audit log."""
        return Actor(self.key_id, self.name, self.address)

    def require_type(self, task_type: str) -> None:
        """Raise PermissionDenied for a task type out of the key's reach."""
        if not task_type.startswith(self.scope):
            raise PermissionDenied(
                f"this key is for task types that begin with {self.scope} only", field="task_type"
            )


ANYBODY: Final = Caller("local")
"""Whoever is in this process, while no keys are needed."""


class Access:
    """Lets callers in, or not."""

    def __init__(self, storage: Storage, clock: Clock, settings: AccessSettings) -> None:
        self.settings = settings
        self.is_needed = settings.required
        """Whether a key is needed."""
        self._storage = storage
        self._clock = clock
        self._limiter = RateLimiter(clock)
        self._failures = RateLimiter(clock)
        self._bootstrap = _bootstrap_key(settings)
        self._keys: dict[str, Key] = {}
        self._by_digest: dict[str, Key] = {}
        self._bound: dict[str | None, set[Callable[[], None]]] = {}
        self._used: dict[str, int] = {}

    async def open(self) -> None:
        """Read the keys."""
        self._take(await self._storage.keys())

    async def run(self) -> None:
        """Keep up with changes of the keys for ever."""
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            await self.refresh()

    async def refresh(self) -> None:
        """Read the keys again, and cut off whoever is not to be let in any more."""
        try:
            self._take(await self._storage.keys())
        except (BrokerUnavailable, DataDamaged) as error:
            self._take(self._keys.values())  # time goes on all the same
            log.warning("the keys could not be read again", error=error.message)

    def learn(self, key: Key) -> None:
        """Take note of a key that was made or changed."""
        self._take({**self._keys, key.id: key}.values())

    def identify(self, secret: str | None, address: str) -> Caller:
        """Whoever shows a secret, or none; with one that is not known they are nobody special."""
        if secret is None or len(secret) > LONGEST_SECRET:
            return Caller(address)
        digest = digest_of(secret)
        key = None if is_mistyped(secret) else self._by_digest.get(digest)
        if key is None or not any(
            hmac.compare_digest(known, digest) for known in key.digests(self._clock.wall())
        ):
            return Caller(address)
        self._used.setdefault(key.id, self._clock.wall())
        return Caller(address, key.id, key.name, key.scope)

    def require(self, caller: Caller, permission: Permission | None) -> None:
        """Raise AuthenticationFailed or PermissionDenied unless the caller has the permission."""
        if permission is None or not self.is_needed:
            return
        key = self._key_of(caller)
        if key is None:
            raise AuthenticationFailed(
                "a valid API key is needed; send it as the header Authorization: Bearer KEY, "
                "or with AUTH on the native port"
            )
        if not key.permits(permission):
            raise PermissionDenied(f"this key has not the permission {permission}")

    def require_whole_reach(self, caller: Caller) -> None:
        """Raise PermissionDenied for a key that may see tasks of certain types only."""
        if caller.scope:
            raise PermissionDenied(
                f"this key is for task types that begin with {caller.scope}; this is about all"
            )

    def is_known(self, caller: Caller) -> bool:
        """Whether the caller is let in at all."""
        return not self.is_needed or self._key_of(caller) is not None

    def bind(self, caller: Caller, on_end: Callable[[], None]) -> Callable[[], None]:
        """Have `on_end` called once the caller is no longer let in; returns what undoes it."""
        bound = self._bound.setdefault(caller.key_id, set())
        bound.add(on_end)

        def unbind() -> None:
            bound.discard(on_end)

        return unbind

    @contextmanager
    def shut_out(self, caller: Caller) -> Iterator[asyncio.Future[None]]:
        """A future that is done once the caller is no longer let in."""
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def on_end() -> None:
            if not ended.done():
                ended.set_result(None)

        unbind = self.bind(caller, on_end)
        try:
            yield ended
        finally:
            unbind()

    def count(self, caller: Caller, cost: int = 1) -> Allowance | None:
        """Count a request; `cost` 0 only asks how it stands. None where there is no limit."""
        rate = self.settings.rate_limit
        burst = self.settings.rate_burst or rate
        key = self._key_of(caller)
        if key is not None and key.rate_limit is not None:
            rate = burst = key.rate_limit
        if not rate:
            return None
        who = f"key {key.id}" if key is not None else caller_of(caller.address)
        return self._limiter.take(who, rate, burst, cost)

    def penalty(self, address: str) -> float:
        """Take note of a wrong key; seconds to wait before saying so."""
        seconds = self._failures.penalty(
            caller_of(address), FAILURES_PER_SECOND, FAILURES_AT_ONCE, LONGEST_PENALTY
        )
        if seconds < LONGEST_PENALTY:
            log.warning("a key was refused", client=address)
        return seconds

    def take_uses(self) -> dict[str, int]:
        """When keys were used first since they were noted last, as far as that is long ago."""
        used, self._used = self._used, {}
        return {
            key_id: at
            for key_id, at in used.items()
            if (key := self._keys.get(key_id)) is not None
            and at - (key.used_at or 0) >= USE_NOTED_EVERY
        }

    def _key_of(self, caller: Caller) -> Key | None:
        if caller.key_id is None:
            return None
        key = self._bootstrap if caller.key_id == BOOTSTRAP else self._keys.get(caller.key_id)
        return key if key is not None and key.is_live(self._clock.wall()) else None

    def _take(self, keys: Iterable[Key]) -> None:
        wall = self._clock.wall()
        self._keys = {key.id: key for key in keys}
        known = [*self._keys.values()] + ([self._bootstrap] if self._bootstrap else [])
        self._by_digest = {digest: key for key in known for digest in key.digests(wall)}
        was_needed, self.is_needed = self.is_needed, bool(known) or self.settings.required
        ended = [
            key_id
            for key_id in self._bound
            if key_id is not None and self._key_of(Caller("", key_id)) is None
        ]
        for key_id in ended:
            self._cut_off(key_id)
        if self.is_needed and not was_needed:
            self._cut_off(None)

    def _cut_off(self, key_id: str | None) -> None:
        for on_end in list(self._bound.pop(key_id, ())):
            on_end()


def _bootstrap_key(settings: AccessSettings) -> Key | None:
    if settings.bootstrap_key is None:
        return None
    return Key(
        id=BOOTSTRAP,
        name=BOOTSTRAP,
        digest=digest_of(settings.bootstrap_key),
        hint="",
        permissions=(Permission.ADMIN,),
        created_at=0,
    )
