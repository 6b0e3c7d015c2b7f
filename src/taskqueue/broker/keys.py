"""Managing API keys and reading the audit log: what administrators do."""

from secrets import token_hex
from typing import Final

from taskqueue.broker.access import Access, Caller
from taskqueue.broker.ledger import Ledger
from taskqueue.core.audit import AuditEntry
from taskqueue.core.clock import SECOND, Clock
from taskqueue.core.commands import Audited, CreateKey, KeyCommand, NoteKeyUse, RevokeKey, RotateKey
from taskqueue.core.errors import InvalidRequest
from taskqueue.core.keys import Key, Permission, new_secret
from taskqueue.storage.port import Storage
from taskqueue.wire import administration

ID_BYTES: Final = 8


class Keys:
    """Makes, lists, rotates and revokes keys, and notes their use."""

    def __init__(self, storage: Storage, ledger: Ledger, clock: Clock, access: Access) -> None:
        self._storage = storage
        self._ledger = ledger
        self._clock = clock
        self._access = access

    async def create(
        self, request: administration.CreateKeyRequest, caller: Caller
    ) -> tuple[Key, str]:
        """A new key with its secret. Raises InvalidRequest."""
        permissions = tuple(dict.fromkeys(request.permissions))
        if request.task_type_prefix is not None and Permission.ADMIN in permissions:
            raise InvalidRequest(
                "task_type_prefix cannot go with the permission admin, which is for everything",
                field="task_type_prefix",
            )
        now = self._clock.wall()
        life = request.expires_in_seconds
        secret = new_secret()
        key = Key(
            id=f"key_{token_hex(ID_BYTES)}",
            name=request.name,
            digest=secret.digest,
            hint=secret.hint,
            permissions=permissions,
            created_at=now,
            scope=request.task_type_prefix or "",
            rate_limit=request.rate_limit,
            expires_at=None if life is None else now + life * SECOND,
        )
        return await self._change(
            "create_key", CreateKey(key, self._has_spare), caller
        ), secret.text

    async def rotate(
        self, request: administration.RotateKeyRequest, caller: Caller
    ) -> tuple[Key, str]:
        """A new secret for a key; the old one stays valid for a while.

        Raises KeyNotFound, InvalidStatus.
        """
        secret = new_secret()
        command = RotateKey(
            request.key_id, secret.digest, secret.hint, request.overlap_seconds * SECOND
        )
        return await self._change("rotate_key", command, caller), secret.text

    async def revoke(self, request: administration.KeyRequest, caller: Caller) -> Key:
        """End a key, and whatever goes on under it. Raises KeyNotFound, InvalidStatus."""
        return await self._change("revoke_key", RevokeKey(request.key_id, self._has_spare), caller)

    async def list_all(self) -> administration.KeysReply:
        """Every key, oldest first, also those that have ended."""
        return administration.KeysReply(
            keys=[administration.key_reply(key) for key in await self._storage.keys()]
        )

    async def audit_log(self, request: administration.AuditRequest) -> list[AuditEntry]:
        """Entries of the audit log, newest first."""
        return await self._storage.audit_log(request.before, request.limit)

    async def note_uses(self) -> None:
        """Write down which keys were used, an hour exactly."""
        for key_id, at in self._access.take_uses().items():
            self._access.learn(await self._ledger.record(NoteKeyUse(key_id, at)))

    @property
    def _has_spare(self) -> bool:
        return self._access.settings.bootstrap_key is not None

    async def _change(self, operation: str, command: KeyCommand, caller: Caller) -> Key:
        key: Key = await self._ledger.record(Audited(command, operation, caller.actor))
        self._access.learn(key)
        return key
