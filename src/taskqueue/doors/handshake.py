"""Commands that Redis clients send of their own accord, and those about the connection itself."""

from collections.abc import Callable
from importlib.metadata import version
from typing import Final

from taskqueue.broker.access import Access, Caller
from taskqueue.core.errors import AuthenticationFailed
from taskqueue.doors.grammar import GRAMMARS
from taskqueue.wire import resp


class Session:
    """What is agreed on one connection, and who it is with."""

    def __init__(self, number: int, access: Access, address: str) -> None:
        self.id = number
        self.resp3 = False
        self.name = b""
        self.is_over = False
        self.caller = Caller(address)
        self._access = access

    @property
    def is_known(self) -> bool:
        """Whether the client is let in, as far as that takes a key."""
        return self._access.is_known(self.caller)

    def log_in(self, key: bytes) -> None:
        """Go on as whoever has this key. Raises AuthenticationFailed."""
        caller = self._access.identify(key.decode("latin-1"), self.caller.address)
        if not self._access.is_known(caller):
            raise AuthenticationFailed("the key is not valid")
        self.caller = caller

    def reset(self) -> None:
        """Back to how it began."""
        self.resp3 = False
        self.name = b""
        self.caller = Caller(self.caller.address)


Handshake = Callable[[Session, list[bytes]], bytes]
"""Answers a command. Raises AuthenticationFailed."""


def ping(_session: Session, words: list[bytes]) -> bytes:
    """PING [message]"""
    if len(words) > 2:
        return _wrong_number(words)
    return resp.bulk(words[1]) if len(words) == 2 else resp.PONG


def echo(_session: Session, words: list[bytes]) -> bytes:
    """ECHO message"""
    return resp.bulk(words[1]) if len(words) == 2 else _wrong_number(words)


def hello(session: Session, words: list[bytes]) -> bytes:
    """HELLO [2|3 [AUTH user key] [SETNAME name]]"""
    if len(words) > 1 and words[1] not in (b"2", b"3"):
        return resp.error("NOPROTO", "unsupported protocol version; this broker speaks 2 and 3")
    options, name, key = words[2:], session.name, None
    while options:
        keyword = options[0].upper()
        if keyword == b"AUTH" and len(options) >= 3:
            key, options = options[2], options[3:]
        elif keyword == b"SETNAME" and len(options) >= 2:
            name, options = options[1], options[2:]
        else:
            return resp.error("ERR", "syntax error in HELLO")
    if key is not None:
        session.log_in(key)
    elif not session.is_known:
        raise AuthenticationFailed("a valid API key is needed; send HELLO 3 AUTH default KEY")
    session.name = name
    if len(words) > 1:
        session.resp3 = words[1] == b"3"
    facts: dict[str, object] = {
        "server": "taskqueue",
        "version": version("taskqueue"),
        "proto": 3 if session.resp3 else 2,
        "id": session.id,
        "mode": "standalone",
        "role": "master",
        "modules": [],
    }
    return resp.encode(facts, resp3=session.resp3)


def auth(session: Session, words: list[bytes]) -> bytes:
    """AUTH [user] key; the user does not matter, nor the key while none is needed"""
    if len(words) not in (2, 3):
        return _wrong_number(words)
    session.log_in(words[-1])
    return resp.OK


def client(session: Session, words: list[bytes]) -> bytes:
    """CLIENT SETINFO | SETNAME | GETNAME | ID"""
    match [word.upper() for word in words[1:2]]:
        case [b"SETINFO"] if len(words) == 4:
            return resp.OK
        case [b"SETNAME"] if len(words) == 3:
            session.name = words[2]
            return resp.OK
        case [b"GETNAME"]:
            return resp.bulk(session.name)
        case [b"ID"]:
            return b":%d\r\n" % session.id
        case _:
            return resp.error("ERR", "unknown CLIENT subcommand; try SETINFO, SETNAME, GETNAME, ID")


def command(session: Session, words: list[bytes]) -> bytes:
    """COMMAND [COUNT | DOCS [name …] | INFO [name …]]"""
    names = sorted([*GRAMMARS, *HANDSHAKES])
    wanted = [word.upper() for word in words[2:]] or names
    match [word.upper() for word in words[1:2]]:
        case [b"COUNT"]:
            return b":%d\r\n" % len(names)
        case [b"DOCS"]:
            docs = {name.decode().lower(): _document(name) for name in wanted if name in names}
            return resp.encode(docs, resp3=session.resp3)
        case [] | [b"INFO"]:
            infos = [_describe(name) if name in names else None for name in wanted]
            return resp.encode(infos, resp3=session.resp3)
        case _:
            return resp.error("ERR", "unknown COMMAND subcommand; try COUNT, DOCS, INFO")


def info(session: Session, _words: list[bytes]) -> bytes:
    """INFO"""
    lines = ("# Server", f"taskqueue_version:{version('taskqueue')}", "redis_mode:standalone", "")
    return resp.encode("\r\n".join(lines), resp3=session.resp3)


def select(_session: Session, words: list[bytes]) -> bytes:
    """SELECT 0"""
    return resp.OK if words[1:] == [b"0"] else resp.error("ERR", "DB index is out of range")


def reset(session: Session, _words: list[bytes]) -> bytes:
    """RESET"""
    session.reset()
    return resp.simple("RESET")


def leave(session: Session, _words: list[bytes]) -> bytes:
    """QUIT"""
    session.is_over = True
    return resp.OK


def shows_key(words: list[bytes]) -> bool:
    """Whether a command brings a key, right or wrong."""
    name = words[0].upper()
    return name == b"AUTH" or (name == b"HELLO" and b"AUTH" in map(bytes.upper, words))


def _describe(name: bytes) -> list[object]:
    # name, arity, flags, first key, last key, step, categories, tips, keys, subcommands
    grammar = GRAMMARS.get(name)
    arity = -1 if grammar is None else grammar.arity
    return [name.decode().lower(), arity, [], 0, 0, 0, [], [], [], []]


def _document(name: bytes) -> dict[str, str]:
    grammar = GRAMMARS.get(name)
    if grammar is not None:
        return {"summary": f"{grammar.operation.summary}: {grammar.usage}", "group": "taskqueue"}
    return {"summary": HANDSHAKES[name].__doc__ or "", "group": "connection"}


def _wrong_number(words: list[bytes]) -> bytes:
    name = words[0][:64].decode(errors="replace").lower()
    return resp.error("ERR", f"wrong number of arguments for '{name}' command")


HANDSHAKES: Final[dict[bytes, Handshake]] = {
    b"PING": ping,
    b"ECHO": echo,
    b"HELLO": hello,
    b"AUTH": auth,
    b"CLIENT": client,
    b"COMMAND": command,
    b"INFO": info,
    b"SELECT": select,
    b"RESET": reset,
    b"QUIT": leave,
}
"""They take no part in the queue and are answered at once."""

WITHOUT_KEY: Final = frozenset((b"PING", b"HELLO", b"AUTH", b"RESET", b"QUIT"))
"""Those that a client may send before it has shown a key that is needed."""
