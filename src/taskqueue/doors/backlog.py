"""Counts the bytes a client has sent whose commands are not answered yet."""

from collections import deque


class Backlog:
    """The bytes of one client that the broker holds.

    Kept by the read, not by the command: the bytes of a read are let go once the last command
    that was complete with it is answered.
    """

    __slots__ = ("_answered", "_read", "_reads", "_received", "_settled")

    def __init__(self) -> None:
        self._received = 0  # bytes
        self._settled = 0  # bytes
        self._read = 0  # commands
        self._answered = 0  # commands
        self._reads: deque[tuple[int, int]] = deque()

    @property
    def size(self) -> int:
        """Bytes held."""
        return self._received - self._settled

    def take(self, size: int, commands: int, rest: int) -> None:
        """A read of `size` bytes completed `commands`, and `rest` bytes begin the next one."""
        self._received += size
        if commands:
            self._read += commands
            self._reads.append((self._read, self._received - rest))

    def settle(self, commands: int) -> None:
        """The next `commands` have been answered."""
        self._answered += commands
        reads = self._reads
        while reads and reads[0][0] <= self._answered:
            self._settled = reads.popleft()[1]
