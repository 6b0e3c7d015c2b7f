"""The settings of the gRPC door, by themselves: reading them needs nothing of gRPC."""

from typing import Annotated

from msgspec import Meta, Struct


class GrpcSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits of the gRPC door."""

    answer_seconds: Annotated[float, Meta(ge=1, le=3600)] = 30
    """How long an answer may take, beyond a wait that was asked for."""

    max_connections: Annotated[int, Meta(ge=1, le=1_000_000)] = 10_000
    """How many clients may be connected at once."""

    max_calls: Annotated[int, Meta(ge=1, le=1_000_000)] = 20_000
    """How many calls may be under way at once, streams and sessions included."""

    idle_seconds: Annotated[int, Meta(ge=1, le=86_400)] = 1_800
    """How long a connection may be without a call."""

    connection_age_seconds: Annotated[int, Meta(ge=60, le=30 * 86_400)] = 86_400
    """How long a connection is kept before its client is asked to open a new one."""

    reflection: bool = True
    """Whether clients may ask what services and messages there are."""

    trusted_proxies: str = ""
    """Addresses or networks, separated by commas, whose X-Forwarded-For is believed."""
