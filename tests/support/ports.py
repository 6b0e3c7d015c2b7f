"""Ports for servers that must know theirs before they start."""

import random
import socket
from typing import Final

FIRST: Final = 20_000
LAST: Final = 32_000
"""Below those that the kernel gives to connections: none of them takes a port that was found."""

_chance: Final = random.SystemRandom()


def free_port() -> int:
    """A port of loopback that nobody listens on now."""
    while True:
        port = _chance.randrange(FIRST, LAST)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
