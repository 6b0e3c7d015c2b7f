"""Commands that Redis clients send of their own accord, and those about the connection itself."""

from collections.abc import Callable
from importlib.metadata import version
from typing import Final

from taskqueue.doors.grammar import GRAMMARS
from taskqueue.wire import resp


class Session:
    """What is agreed on one connection."""

    def __init__(self, number: int) -> None:
        self.id = number
        self.resp3 = False
        self.name = b""
        self.is_over = False

    def reset(self) -> None:
        """Back to how it began."""
        self.resp3 = False
        self.name = b""


Handshake = Callable[[Session, list[bytes]], bytes]


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
    options, name = words[2:], session.name
    while options:
        keyword = options[0].upper()
        if keyword == b"AUTH" and len(options) >= 3:
            options = options[3:]  # while no keys exist, any key will do
        elif keyword == b"SETNAME" and len(options) >= 2:
            name, options = options[1], options[2:]
        else:
            return resp.error("ERR", "syntax error in HELLO")
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


def auth(_session: Session, words: list[bytes]) -> bytes:
    """AUTH [user] key; while no keys exist, any key will do"""
    return resp.OK if len(words) in (2, 3) else _wrong_number(words)


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
