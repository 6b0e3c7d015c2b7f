"""The settings and their defaults, grouped by the part that uses them."""

from pathlib import Path
from typing import Annotated, Final, Literal

from msgspec import Meta, Struct, field

from taskqueue.broker.access import AccessSettings
from taskqueue.broker.broker import BrokerSettings
from taskqueue.doors.bounds import RespSettings
from taskqueue.doors.grpc.settings import GrpcSettings
from taskqueue.doors.http import RestSettings

DEFAULT_FILE: Final = Path("tq.toml")


class HttpSettings(RestSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The REST door."""

    listen: Annotated[str, Meta(description="HOST:PORT of the REST door")] = "127.0.0.1:8080"


class NativeSettings(RespSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The native door."""

    listen: Annotated[str, Meta(description="HOST:PORT of the native door")] = "127.0.0.1:6379"


class GrpcDoorSettings(GrpcSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The gRPC door."""

    listen: Annotated[str, Meta(description="HOST:PORT of the gRPC door")] = "127.0.0.1:9090"


class DataSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where tasks are kept."""

    folder: Annotated[str, Meta(min_length=1, description="Folder of the embedded engine")] = (
        "taskqueue-data"
    )


class StorageSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which engine keeps the tasks, and how the other brokers on it reach this one."""

    engine: Annotated[
        str,
        Meta(
            pattern=r"^$|^postgres(ql)?://.+",
            description="postgresql://… for a database that brokers share; empty for the folder",
        ),
    ] = ""
    advertise: Annotated[
        str,
        Meta(
            description="HOST:PORT at which others reach the native door, if not where it listens"
        ),
    ] = ""


class LogSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is logged, and how."""

    level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="The least that is logged")
    ] = "info"
    format: Annotated[
        Literal["auto", "json", "text"],
        Meta(description="JSON lines, readable text, or what suits where stderr leads"),
    ] = "auto"


class TlsSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Encryption of every port. Without `cert` there is none."""

    cert: Annotated[str, Meta(description="PEM file of the certificate and its chain")] = ""
    key: Annotated[str, Meta(description="PEM file of the certificate's private key")] = ""
    client_ca: Annotated[
        str, Meta(description="PEM file of the CA whose certificates clients must show")
    ] = ""


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All settings of a broker."""

    http: HttpSettings = field(default_factory=HttpSettings)
    native: NativeSettings = field(default_factory=NativeSettings)
    grpc: GrpcDoorSettings = field(default_factory=GrpcDoorSettings)
    data: DataSettings = field(default_factory=DataSettings)
    storage: StorageSettings = field(default_factory=StorageSettings)
    log: LogSettings = field(default_factory=LogSettings)
    broker: BrokerSettings = field(default_factory=BrokerSettings)
    access: AccessSettings = field(default_factory=AccessSettings)
    tls: TlsSettings = field(default_factory=TlsSettings)
