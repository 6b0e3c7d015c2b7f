"""`tq serve`: the broker."""

import os
import sys
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import uvloop
from cyclopts import Parameter

from taskqueue.cli.options import LogFormat, LogLevel
from taskqueue.server.logs import set_up_logs
from taskqueue.server.server import Endpoints
from taskqueue.server.server import serve as run_broker
from taskqueue.settings.sources import Loaded, load_settings
from taskqueue.settings.tree import Settings


def serve(
    *,
    http: Annotated[str | None, Parameter(help="HOST:PORT of the REST door")] = None,
    native: Annotated[str | None, Parameter(help="HOST:PORT of the native door")] = None,
    grpc: Annotated[str | None, Parameter(help="HOST:PORT of the gRPC door")] = None,
    data: Annotated[str | None, Parameter(help="folder in which tasks are kept")] = None,
    engine: Annotated[
        str | None, Parameter(help="postgresql://… of the database that several brokers share")
    ] = None,
    advertise: Annotated[
        str | None, Parameter(help="HOST:PORT at which other machines reach the native door")
    ] = None,
    rate_limit: Annotated[
        int | None, Parameter(help="requests a second per key or address, 0 for no limit")
    ] = None,
    require_key: Annotated[
        bool | None, Parameter(negative="", help="let nobody in without an API key")
    ] = None,
    tls_cert: Annotated[str | None, Parameter(help="PEM file of the certificate")] = None,
    tls_key: Annotated[str | None, Parameter(help="PEM file of its private key")] = None,
    tls_client_ca: Annotated[
        str | None, Parameter(help="PEM file of the CA whose certificates clients must show")
    ] = None,
    config: Annotated[Path | None, Parameter(help="settings file, instead of ./tq.toml")] = None,
    log_level: Annotated[LogLevel | None, Parameter(help="the least that is logged")] = None,
    log_format: Annotated[LogFormat | None, Parameter(help="json, text or auto")] = None,
) -> None:
    """Run a broker until it is told to stop."""
    flags = {
        "http.listen": http,
        "native.listen": native,
        "grpc.listen": grpc,
        "data.folder": data,
        "storage.engine": engine,
        "storage.advertise": advertise,
        "access.rate_limit": rate_limit,
        "access.required": require_key,
        "tls.cert": tls_cert,
        "tls.key": tls_key,
        "tls.client_ca": tls_client_ca,
        "log.level": log_level,
        "log.format": log_format,
    }
    loaded = load_settings(flags, os.environ, config)
    log = loaded.settings.log
    set_up_logs(log.level, log.format)
    uvloop.run(run_broker(loaded.settings, lambda endpoints: greet(endpoints, loaded)))


def greet(endpoints: Endpoints, loaded: Loaded) -> None:
    """Say where the broker listens, and warn of what is dangerous about it."""
    settings = loaded.settings
    scheme = "https" if settings.tls.cert else "http"
    _tell(
        f"taskqueue listens: REST {scheme}://{endpoints.http}  native {endpoints.native}  "
        f"gRPC {endpoints.grpc}  data {place_of(settings)}"
    )
    far = [str(address) for address in endpoints if not _is_near(address.host)]
    if far and not settings.tls.cert:
        _tell(f"WARNING: {', '.join(far)} can be reached from other machines without TLS")
    if far and not (settings.access.required or settings.access.bootstrap_key):
        _tell(
            f"WARNING: {', '.join(far)} can be reached from other machines; unless there are keys "
            "(tq keys list), nothing keeps anybody out: make one, or say --require-key"
        )
    origin = loaded.values["access.bootstrap_key"].origin
    if Path(origin).is_file() and Path(origin).stat().st_mode & 0o077:
        _tell(f"WARNING: others can read {origin}, which has a key; chmod 600 it")


def place_of(settings: Settings) -> str:
    """Where a broker keeps its tasks, without any password."""
    if not settings.storage.engine:
        return settings.data.folder
    parts = urlsplit(settings.storage.engine)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _is_near(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
