"""One request as a door receives it: who sends it, what it is called, what they may still send."""

import re
from collections.abc import Iterable
from email.utils import formatdate
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Final

from taskqueue.broker.access import Access, Caller
from taskqueue.broker.limits import Allowance
from taskqueue.broker.operation import Deprecation
from taskqueue.core.errors import RateLimitExceeded
from taskqueue.core.ids import new_task_id

REQUEST_ID: Final = "x-request-id"

_REQUEST_ID: Final = re.compile(rb"[!-~]{1,128}")
_BEARER: Final = re.compile(rb"bearer +([!-~]+) *", re.IGNORECASE)

Header = tuple[bytes, bytes]


class Visit:
    """Made from the headers of a request, which HTTP and gRPC have alike."""

    __slots__ = ("_access", "_allowance", "caller", "has_shown_key", "request_id")

    def __init__(
        self, access: Access, peer: str, headers: Iterable[Header], proxies: "Proxies"
    ) -> None:
        secret: str | None = None
        shown = 0
        given_id: bytes | None = None
        forwarded: list[bytes] = []
        for name, value in headers:
            if name == b"authorization":
                shown += 1
                match = _BEARER.fullmatch(value)
                secret = match[1].decode() if match else None
            elif name == b"x-request-id":
                given_id = value
            elif name == b"x-forwarded-for":
                forwarded.append(value)
        address = proxies.client(peer, forwarded) if forwarded else peer
        self.has_shown_key = shown > 0
        self.caller: Caller = access.identify(secret if shown == 1 else None, address)
        self.request_id = (
            given_id.decode()
            if given_id is not None and _REQUEST_ID.fullmatch(given_id)
            else new_task_id()
        )
        self._access = access
        self._allowance: Allowance | None = None

    def count(self) -> None:
        """Count it against the limit. Raises RateLimitExceeded."""
        allowance = self._allowance = self._access.count(self.caller)
        if allowance is not None and allowance.retry_after:
            raise RateLimitExceeded(
                f"more than {allowance.limit} requests a second came from here; send fewer, "
                "or wait as long as the answer says",
                retry_after=allowance.retry_after,
            )

    def headers(self) -> list[tuple[str, str]]:
        """What every answer to it says about it and about the limit."""
        allowance = self._allowance or self._access.count(self.caller, 0)
        lines = [(REQUEST_ID, self.request_id)]
        if allowance is not None:
            lines += [
                ("x-ratelimit-limit", str(allowance.limit)),
                ("x-ratelimit-remaining", str(allowance.remaining)),
                ("x-ratelimit-reset", str(-(-allowance.full_at // 1_000_000))),
            ]
        return lines

    def header_lines(self) -> list[Header]:
        """The same, as HTTP sends it."""
        return [(name.encode(), value.encode()) for name, value in self.headers()]

    def penalty(self) -> float:
        """Seconds to hold up the answer that its key is not valid."""
        return self._access.penalty(self.caller.address) if self.has_shown_key else 0.0


def deprecation_notices(deprecated: Deprecation | None) -> list[tuple[str, str]]:
    """How an answer says that its operation will go (RFC 9745, RFC 8594, RFC 7234)."""
    if deprecated is None:
        return []
    advice = deprecated.advice.replace('"', "'")
    return [
        ("deprecation", f"@{deprecated.since}"),
        ("sunset", formatdate(deprecated.sunset, usegmt=True)),
        ("warning", f'299 - "{advice}"'),
    ]


class Proxies:
    """The machines that may say for whom they pass a request on."""

    def __init__(self, networks: str) -> None:
        """`networks` are addresses or networks, separated by commas. Raises ValueError."""
        self._networks: list[IPv4Network | IPv6Network] = [
            ip_network(text.strip()) for text in networks.split(",") if text.strip()
        ]

    def client(self, peer: str, forwarded: list[bytes]) -> str:
        """The address that a request comes from: the last one that is not a trusted proxy's."""
        if not self._networks:
            return peer
        client = peer
        named = b",".join(forwarded).decode("latin-1").split(",")
        while named and self._is_trusted(client):
            claimed = named.pop().strip()
            if not _is_address(claimed):
                break
            client = claimed
        return client

    def _is_trusted(self, address: str) -> bool:
        return _is_address(address) and any(
            ip_address(address) in network for network in self._networks
        )


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
