"""What one client of the native door, and all of them together, may make the broker keep."""

from typing import Annotated, Final

from msgspec import Meta, Struct

MOST_UNANSWERED: Final = 1_024
"""Commands of one connection that may be under way before the door stops reading from it."""

MOST_READS: Final = 16
"""Of those, the ones that read from the storage: each may come back with ten megabytes."""

LARGEST_BACKLOG: Final = 16 * 1024 * 1024
"""Bytes of unanswered commands of one connection before the door stops reading from it."""

LARGEST_BACKLOG_OF_ALL: Final = 256 * 1024 * 1024
"""Bytes of all connections, come and not answered or answered and not read; then the client
with the most of them is dropped."""

MOST_UNREAD: Final = 1024 * 1024
"""Bytes of answers that a client may leave unread before the door stops reading from it."""

LEAST_READ: Final = 64 * 1024
"""Bytes that such a client must read in each `slow_reader_seconds` to stay."""

WRITE_SIZE: Final = 64 * 1024
"""Bytes of answers after which they are written, even if more are ready."""

FLUSH_SECONDS: Final = 3.0
"""How long clients may take to read their last answers when the door closes."""

SECONDS_TO_PROBE: Final = 60
"""Silence after which a client's machine is asked whether it still exists; three times, then
every ten seconds, and the connection is given up."""

MOST_REFUSALS: Final = 10
"""Times that a client may be told that it needs a valid key, before it is dropped."""


class RespSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits of the native door."""

    max_connections: Annotated[int, Meta(ge=1, le=1_000_000)] = 10_000
    """Clients that may be connected at once."""

    slow_reader_seconds: Annotated[float, Meta(ge=0.1, le=3600)] = 10.0
    """How long a client may leave more than a megabyte of answers unread."""
