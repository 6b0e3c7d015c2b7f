"""Calls with one request and one answer.

A handler gets the bytes of the request and returns those of the answer, so that a message that
cannot be read is refused as every other wrong input is.
"""

import asyncio
from typing import Any

from taskqueue.doors.grpc.exchange import Context, Exchange, House, drop, outcome_of
from taskqueue.doors.grpc.offers import Offer
from taskqueue.doors.grpc.translation import parse
from taskqueue.doors.visit import deprecation_notices


class Call:
    """Answers the calls of one operation."""

    def __init__(self, offer: Offer, house: House) -> None:
        self._offer = offer
        self._operation = offer.operation
        self._house = house
        self._notices = deprecation_notices(offer.operation.deprecated)

    async def answer(self, data: bytes, context: Context) -> bytes:
        """Read the request, carry it out, write its answer."""
        exchange = Exchange(self._house, context, self._operation.name, self._notices)
        try:
            answer = await self._carry_out(data, exchange)
        except Exception as error:  # noqa: BLE001  whatever it is, the caller gets a status
            await exchange.refuse(error)
        exchange.note_done()
        return answer

    async def _carry_out(self, data: bytes, exchange: Exchange) -> bytes:
        request = self._admit(data, exchange)
        is_answered = False
        work: asyncio.Future[Any] = self._offer.start(self._house.broker, request, exchange.caller)
        try:
            await exchange.greet()  # while the change is being written
            wait = request.wait_ms / 1000 if self._offer.has_wait else 0.0
            outcome = await outcome_of(self._house, self._operation, exchange.caller, work, wait)
            reply = self._offer.reply(self._house.broker, outcome)
            answer = exchange.hold(reply.SerializeToString())
            is_answered = True
            return answer
        finally:
            if not is_answered:
                drop(self._house.broker, self._operation, work)

    def _admit(self, data: bytes, exchange: Exchange) -> Any:
        if self._operation.is_counted:
            exchange.visit.count()
        self._operation.require(self._house.broker, exchange.caller)
        return self._offer.read(parse(self._offer.kind, data))
