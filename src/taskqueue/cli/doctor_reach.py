"""Whether brokers can be reached: from the name to a connection on which a key was accepted."""

import asyncio
import socket
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from ipaddress import ip_address
from typing import Final

from taskqueue.cli.findings import Finding, fail, ok, warn
from taskqueue.client.address import BrokerAddress, TlsFiles
from taskqueue.client.connection import Connection, in_words
from taskqueue.core.clock import SECOND, SystemClock
from taskqueue.core.errors import AuthenticationFailed, TaskQueueError

REACH_SECONDS: Final = 5.0
SOON: Final = 14 * 86_400
"""Seconds before a certificate ends in which somebody should know of it."""


class Reached:
    """The brokers that could be reached, and the connections to them."""

    def __init__(self, addresses: tuple[BrokerAddress, ...]) -> None:
        self.addresses = addresses
        self.connections: list[Connection] = []
        self.is_answered = False
        """Whether something listens at one of the addresses."""

    def close(self) -> None:
        """Hang up everywhere."""
        for connection in self.connections:
            connection.close()


async def reach(reached: Reached) -> AsyncIterator[Finding]:
    """Try each address. Those after the first that works are only missed, not needed."""
    for address in reached.addresses:
        findings = [finding async for finding in _reach(address, reached)]
        is_needed = len(reached.addresses) == 1
        for finding in findings:
            is_excused = not is_needed and finding.verdict == "fail"
            yield _missed(finding) if is_excused else finding
    if not reached.connections and len(reached.addresses) > 1:
        yield fail("brokers", "none of them can be used", "see to the first of the lines above")


def is_local(host: str) -> bool:
    """Whether an address is that of this very machine, on loopback."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


async def _reach(address: BrokerAddress, reached: Reached) -> AsyncIterator[Finding]:
    named = await _resolved(address)
    yield named
    if named.verdict == "fail":
        return
    connected = await _connected(address)
    yield connected
    if connected.verdict == "fail":
        return
    reached.is_answered = True
    tls = await _encrypted(address)
    yield tls
    if tls.verdict != "fail":
        yield await _agreed(address, reached)


async def _resolved(address: BrokerAddress) -> Finding:
    check = f"name {address.host}"
    loop = asyncio.get_running_loop()
    try:
        found = await asyncio.wait_for(
            loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM), REACH_SECONDS
        )
    except (OSError, TimeoutError) as error:
        return fail(
            check, f"it has no address: {_why(error)}", "check its spelling, and this machine's DNS"
        )
    ends = dict.fromkeys(str(place[4][0]) for place in found)
    return ok(check, ", ".join(ends))


async def _connected(address: BrokerAddress) -> Finding:
    check = f"connect {address}"
    started = time.perf_counter()
    try:
        async with asyncio.timeout(REACH_SECONDS):
            _, writer = await asyncio.open_connection(address.host, address.port)
    except ConnectionRefusedError:
        return fail(
            check,
            "nothing listens there",
            "start a broker (tq serve), or check the port and native.listen of the one that runs",
        )
    except TimeoutError:
        return fail(
            check,
            f"no answer within {REACH_SECONDS:g} s",
            "see whether the machine is up and no firewall drops the packets",
        )
    except OSError as error:
        return fail(check, _why(error), "see whether this machine has a way there")
    milliseconds = (time.perf_counter() - started) * 1e3
    writer.close()
    return ok(check, f"connected in {milliseconds:.1f} ms")


async def _encrypted(address: BrokerAddress) -> Finding:
    check = f"tls {address}"
    if address.tls is None:
        if is_local(address.host):
            return ok(check, "not used, and nothing leaves this machine")
        return warn(
            check,
            "not used: payloads and keys can be read on their way",
            "give the broker a certificate (docs/how-to/use-tls.md) and write tqs:// here",
        )
    try:
        return await _shaken(check, address, address.tls)
    except (OSError, TimeoutError) as error:
        return fail(check, _why(error), "docs/how-to/use-tls.md says what both ends need")


async def _shaken(check: str, address: BrokerAddress, tls: TlsFiles) -> Finding:
    async with asyncio.timeout(REACH_SECONDS):
        _, writer = await asyncio.open_connection(address.host, address.port, ssl=tls.context())
    try:
        wire: ssl.SSLObject = writer.get_extra_info("ssl_object")
        certificate = wire.getpeercert() or {}
        version = wire.version()
    finally:
        writer.close()
        with suppress(OSError, TimeoutError):
            await asyncio.wait_for(writer.wait_closed(), 1)
    ends = str(certificate.get("notAfter", ""))
    left = ssl.cert_time_to_seconds(ends) - SystemClock().wall() / SECOND if ends else float("inf")
    said = f"{version}, the certificate is valid until {ends}"
    if left < SOON:
        return warn(check, said, f"renew it: it ends in {left / 86_400:.0f} days")
    return ok(check, said)


async def _agreed(address: BrokerAddress, reached: Reached) -> Finding:
    check = f"key {address}"
    try:
        connection = await Connection.connect(address)
    except AuthenticationFailed as error:
        return fail(check, str(error), _key_advice(address))
    except TaskQueueError as error:
        return fail(check, f"{error.code}: {error}", "the broker's log says more")
    except OSError as error:
        return fail(
            check,
            f"what listens there does not answer as a broker does: {_why(error)}",
            "check the port: the native door's is meant (6379), with tqs:// if it has TLS",
        )
    reached.connections.append(connection)
    if address.key is not None:
        return ok(check, "accepted, or none is needed")
    if is_local(address.host):
        return ok(check, "none is needed")
    return warn(
        check,
        "none is needed: whoever reaches the port can do everything",
        "make one: tq keys create --name operator --permission admin (docs/how-to/use-keys.md)",
    )


def _key_advice(address: BrokerAddress) -> str:
    if address.key is None:
        return "give one with --api-key, TQ_API_KEY or a profile (tq profile set)"
    return (
        "it was mistyped, revoked or has expired: ask an administrator, who sees it in tq keys list"
    )


def _missed(finding: Finding) -> Finding:
    return warn(finding.check, finding.detail, finding.advice)


def _why(error: Exception) -> str:
    if isinstance(error, TimeoutError) and not str(error):
        return f"no answer within {REACH_SECONDS:g} s"
    return in_words(error)
