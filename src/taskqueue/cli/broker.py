"""`tq serve`: the broker."""

import os
import sys
from pathlib import Path
from typing import Annotated

import uvloop
from cyclopts import Parameter

from taskqueue.cli.options import LogFormat, LogLevel
from taskqueue.server.logs import set_up_logs
from taskqueue.server.server import Endpoints
from taskqueue.server.server import serve as run_broker
from taskqueue.settings.sources import Loaded, load_settings


def serve(
    *,
    http: Annotated[str | None, Parameter(help="HOST:PORT of the REST door")] = None,
    native: Annotated[str | None, Parameter(help="HOST:PORT of the native door")] = None,
    data: Annotated[str | None, Parameter(help="folder in which tasks are kept")] = None,
    rate_limit: Annotated[
        int | None, Parameter(help="requests a second per key or address, 0 for no limit")
    ] = None,
    require_key: Annotated[
        bool | None, Parameter(negative="", help="let nobody in without an API key")
    ] = None,
    config: Annotated[Path | None, Parameter(help="settings file, instead of ./tq.toml")] = None,
    log_level: Annotated[LogLevel | None, Parameter(help="the least that is logged")] = None,
    log_format: Annotated[LogFormat | None, Parameter(help="json, text or auto")] = None,
) -> None:
    """Run a broker until it is told to stop."""
    flags = {
        "http.listen": http,
        "native.listen": native,
        "data.folder": data,
        "access.rate_limit": rate_limit,
        "access.required": require_key,
        "log.level": log_level,
        "log.format": log_format,
    }
    loaded = load_settings(flags, os.environ, config)
    log = loaded.settings.log
    set_up_logs(log.level, log.format)
    uvloop.run(run_broker(loaded.settings, lambda endpoints: greet(endpoints, loaded)))


def greet(endpoints: Endpoints, loaded: Loaded) -> None:
    """Say where the broker listens, and warn if that is beyond this machine."""
    data = loaded.settings.data.folder
    print(
        f"taskqueue listens: REST http://{endpoints.http}  native {endpoints.native}  data {data}",
        file=sys.stderr,
        flush=True,
    )
    for address in endpoints:
        if address.host not in ("localhost", "::1") and not address.host.startswith("127."):
            print(
                f"WARNING: {address} can be reached from other machines, and no keys protect it",
                file=sys.stderr,
                flush=True,
            )
