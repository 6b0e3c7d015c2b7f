"""How much memory a process has."""

import resource
from pathlib import Path


def resident(process: str = "self") -> int:
    """Bytes of memory that a process has now."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * resource.getpagesize()
