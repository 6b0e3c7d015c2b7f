"""Task ids and worker ids: how they are made, and the one form in which a task id is accepted."""

import os
import re
import secrets
import socket
from typing import Final

import uuid_utils

_CANONICAL: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)


def new_task_id() -> str:
    """A UUID of version 7 (RFC 9562, 5.7): ids made later sort later, to the millisecond."""
    return str(uuid_utils.uuid7())


def canonical_task_id(text: str) -> str | None:
    """The lower-case hyphenated form of `text`, or None if it is not a UUID in that form."""
    lowered = text.lower()
    return lowered if _CANONICAL.fullmatch(lowered) else None


def new_worker_id() -> str:
    """`host-pid-random`: says where the worker runs, and is not used twice."""
    host = re.sub(r"[^!-~]", "-", socket.gethostname())[:200] or "host"
    return f"{host}-{os.getpid()}-{secrets.token_hex(4)}"
