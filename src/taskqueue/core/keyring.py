"""The API keys that one batch touches, as they stand after each command decided so far."""

from collections.abc import Iterable
from typing import assert_never

from taskqueue.core import keys
from taskqueue.core.commands import CreateKey, KeyCommand, NoteKeyUse, RevokeKey, RotateKey
from taskqueue.core.keys import Key


class KeyRing:
    """Decides what becomes of keys; `changed` has those to be written."""

    def __init__(self, loaded: Iterable[Key], wall: int) -> None:
        self.changed: dict[str, Key] = {}
        self._keys = {key.id: key for key in loaded}
        self._wall = wall

    def settle(self, command: KeyCommand) -> Key:
        """Carry out a command about one key. Raises what the functions of `core.keys` raise."""
        after = self._decide(command)
        if after is not self._keys.get(after.id):
            self._keys[after.id] = self.changed[after.id] = after
        return after

    def _decide(self, command: KeyCommand) -> Key:
        if isinstance(command, CreateKey):
            return keys.create(self._keys, command.key, self._wall, is_spare=command.is_spare)
        key = keys.require_key(self._keys, command.key_id)
        match command:
            case RotateKey(_, digest, hint, overlap):
                return keys.rotate(key, digest, hint, overlap, self._wall)
            case RevokeKey():
                return keys.revoke(self._keys, key, self._wall, is_spare=command.is_spare)
            case NoteKeyUse():
                return keys.note_use(key, command.at)
            case _:
                assert_never(command)
