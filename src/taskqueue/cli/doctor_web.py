"""The other doors of a broker: REST with its clock and its metrics, and gRPC."""

import asyncio
import http.client
import json
import ssl
import urllib.error
import urllib.request
from datetime import datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

from taskqueue.cli.findings import Finding, fail, ok, skip, warn
from taskqueue.client.address import BrokerAddress, TlsFiles
from taskqueue.core.clock import SECOND, SystemClock
from taskqueue.settings.address import parse_address
from taskqueue.wire.cluster import ClusterReply

WEB_SECONDS: Final = 5.0
MOST_SKEW: Final = 1.0
EVERYWHERE: Final = ("0.0.0.0", "::", "")  # noqa: S104  compared with, not listened on
NO_TASK: Final = "00000000-0000-0000-0000-000000000000"


class Answer(NamedTuple):
    """What a REST door answered, and when the question left and the answer came."""

    status: int
    body: bytes
    sent_at: float
    received_at: float


class Web:
    """The doors of one broker besides the native one."""

    def __init__(
        self, address: BrokerAddress, http_at: str | None = None, grpc_at: str | None = None
    ) -> None:
        self.numbers: dict[str, float] = {}
        """What its metrics page says, without the families that have labels."""
        self._key, self._tls = address.key, address.tls
        self._http, self._grpc = http_at, grpc_at

    async def checks(self, host: str, view: ClusterReply | None) -> list[Finding]:
        """Whether REST and gRPC answer, and how far the broker's clock is from this one."""
        findings: list[Finding] = []
        place = told_place(view, host) if self._http is None else _reachable(self._http, host)
        if place is None:
            findings.append(skip("rest", "its address is not known", "name it with --http"))
        else:
            findings += await self._rest(place)
        if self._grpc is None:
            findings.append(skip("grpc", "its address is not known", "name it with --grpc"))
        else:
            findings.append(await self._health_of_grpc(_reachable(self._grpc, host)))
        return findings

    async def _rest(self, place: str) -> list[Finding]:
        check = f"rest {place}"
        try:
            health = await asyncio.to_thread(self._get, place, "/api/v1/health")
            said = json.loads(health.body).get("status")
        except (OSError, ValueError, http.client.HTTPException) as error:
            return [
                fail(check, _why(error), "see http.listen, and whether a firewall is in between")
            ]
        findings = [
            ok(check, f"{said}, answered in {(health.received_at - health.sent_at) * 1e3:.0f} ms")
        ]
        try:
            findings.append(await self._clock(place))
        except (OSError, ValueError, http.client.HTTPException) as error:
            findings.append(skip("clock", _why(error)))
        self.numbers = _numbers_in(await self.page(place))
        return findings

    async def page(self, place: str) -> str:
        """The metrics page of a REST door; empty where it cannot be had."""
        try:
            answer = await asyncio.to_thread(self._get, place, "/metrics")
        except (OSError, http.client.HTTPException):
            return ""
        return answer.body.decode() if answer.status == 200 else ""

    async def _clock(self, place: str) -> Finding:
        # Every error carries the broker's time, to the microsecond.
        answer = await asyncio.to_thread(self._get, place, f"/api/v1/tasks/{NO_TASK}")
        told = datetime.fromisoformat(json.loads(answer.body)["timestamp"]).timestamp()
        return skew(told, answer.sent_at, answer.received_at)

    def _get(self, place: str, path: str) -> Answer:
        scheme = "http" if self._tls is None else "https"
        request = urllib.request.Request(f"{scheme}://{place}{path}")  # noqa: S310  both are safe
        if self._key is not None:
            request.add_header("Authorization", f"Bearer {self._key}")
        handlers: list[Any] = [urllib.request.ProxyHandler({})]
        if self._tls is not None:
            handlers.append(urllib.request.HTTPSHandler(context=self._tls.context()))
        opener = urllib.request.build_opener(*handlers)
        sent_at = SystemClock().wall() / SECOND
        try:
            with opener.open(request, timeout=WEB_SECONDS) as response:
                body, status = response.read(), response.status
        except urllib.error.HTTPError as error:
            body, status = error.read(), error.code
        return Answer(status, body, sent_at, SystemClock().wall() / SECOND)

    async def _health_of_grpc(self, place: str) -> Finding:
        check = f"grpc {place}"
        try:
            status = await _grpc_status(place, self._tls)
        except (OSError, TimeoutError) as error:
            return fail(check, _why(error), "see grpc.listen, and whether TLS is meant there")
        if status == "SERVING":
            return ok(check, "serving")
        return fail(check, status.lower().replace("_", " "), "see the line about health")


def skew(told: float, sent_at: float, received_at: float) -> Finding:
    """How far a clock that said `told` between two moments of this one is from this one."""
    trip = received_at - sent_at
    ahead = told - (sent_at + trip / 2)
    direction = "ahead of" if ahead > 0 else "behind"
    said = (
        f"the broker's clock is {abs(ahead) * 1e3:.0f} ms {direction} this one, give or take "
        f"{trip / 2 * 1e3:.0f} ms (round trip {trip * 1e3:.0f} ms)"
    )
    if abs(ahead) - trip / 2 > MOST_SKEW:
        return warn("clock", said, "have both machines follow NTP: --at means the broker's time")
    return ok("clock", said)


def told_place(view: ClusterReply | None, host: str) -> str | None:
    """Where the broker that was asked has its REST door, as it says itself; None if it does not."""
    asked = [broker.http for broker in view.brokers if broker.is_me] if view else []
    return next((_reachable(place, host) for place in asked if place), None)


def _numbers_in(page: str) -> dict[str, float]:
    lines = [line for line in page.splitlines() if line and line[0] != "#" and "{" not in line]
    pairs = [line.split(" ") for line in lines]
    return {pair[0]: float(pair[1]) for pair in pairs if len(pair) == 2}


def _reachable(place: str, host: str) -> str:
    """Where a door that listens at `place` is for others: a door may listen everywhere."""
    address = parse_address(place)
    return str(address._replace(host=host)) if address.host in EVERYWHERE else place


async def _grpc_status(place: str, tls: TlsFiles | None) -> str:
    import grpc
    import grpc.aio
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    if tls is None:
        channel = grpc.aio.insecure_channel(place)
    else:
        channel = grpc.aio.secure_channel(place, grpc.ssl_channel_credentials(*_pem(tls)))
    async with channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        try:
            reply = await stub.Check(health_pb2.HealthCheckRequest(), timeout=WEB_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise OSError(str(error.details())) from None
    name: str = health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)
    return name


def _pem(tls: TlsFiles) -> tuple[bytes | None, bytes | None, bytes | None]:
    """The bytes of CA, key and certificate, in grpc's order."""
    ca, key, cert = (
        None if path is None else Path(path).read_bytes()
        for path in (tls.ca, tls.key or tls.cert, tls.cert)
    )
    return ca, key, cert


def _why(error: Exception) -> str:
    reason = getattr(error, "reason", None)
    if isinstance(reason, ssl.SSLError):
        return str(reason.reason or reason)
    return str(reason or error) or "no answer in time"
