"""The handlers that the measurements run."""

import struct
import time

from taskqueue import App

app = App()


@app.raw("noop")
async def noop(_payload: bytes) -> bytes:
    """Do nothing, and keep a small result."""
    return b"done"


@app.raw("clocked")
async def clocked(payload: bytes) -> bytes:
    """Say how long ago the payload's clock reading was taken, in nanoseconds."""
    return struct.pack("<q", time.perf_counter_ns() - struct.unpack("<q", payload)[0])
