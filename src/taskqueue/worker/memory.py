"""How much memory processes have resident."""

import os
import resource
import sys
from pathlib import Path
from typing import Final

MEGABYTE: Final = 1024 * 1024
_PROC: Final = Path("/proc")


def resident(pid: int | None = None) -> int:
    """Bytes of memory that a process has resident, this one unless told otherwise.

    Where the system does not tell it is the most that this process had, and 0 for others.
    """
    try:
        pages = (_PROC / str(pid or "self") / "statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        if pid is not None:
            return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
