"""The call Work.Session: what a worker says over one stream, each word answered when it is done."""

import asyncio
from collections import deque
from typing import Any, Final, NamedTuple

from grpc.aio import EOF  # type: ignore[attr-defined]  # the stubs do not know it

from taskqueue.broker.operations import BY_NAME
from taskqueue.broker.workers import Carried
from taskqueue.core.errors import BrokerUnavailable, InvalidRequest
from taskqueue.doors.grpc import taskqueue_pb2 as pb
from taskqueue.doors.grpc.exchange import Context, Exchange, House, drop, told, while_let_in
from taskqueue.doors.grpc.offers import SIGNS_OF_LIFE, WORK, Offer
from taskqueue.doors.grpc.translation import parse

MOST_UNDER_WAY: Final = 1_000
"""Requests of one session at a time; nothing more is read from it meanwhile."""

MOST_WAITING: Final = 64
"""Those among them that wait for work, so that they cannot keep all others out."""

_OFFERS: Final = {offer.name.lower(): offer for offer in WORK}
_CLAIM: Final = BY_NAME["claim"]


class SessionCall:
    """Answers the calls that open a session."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._sessions: set[Session] = set()
        self._is_closed = False

    async def answer(self, _requests: object, context: Context) -> None:
        """Hold a session until the worker ends it and has its answers."""
        exchange = Exchange(self._house, context, "session")
        session = Session(self._house, exchange, context)
        self._sessions.add(session)
        talk: asyncio.Task[None] | None = None
        try:
            _CLAIM.require(self._house.broker, exchange.caller)
            await exchange.greet()
            talk = asyncio.create_task(session.run())
            if self._is_closed:
                session.end()
            await while_let_in(self._house, _CLAIM, exchange.caller, talk)
            await talk
        except Exception as error:  # noqa: BLE001  whatever it is, the caller gets a status
            await exchange.refuse(error)
        finally:
            if talk is not None:
                talk.cancel()
            session.drop()
            self._sessions.discard(session)

    def close(self) -> None:
        """End every session: its worker is to open another one, elsewhere or later."""
        self._is_closed = True
        for session in self._sessions:
            session.end()


class Word(NamedTuple):
    """One request of a session; without an offer, it was refused as it came."""

    id: int
    offer: Offer | None
    waits: bool


class Session:
    """One session: what is under way in it, and what is ready to be said."""

    def __init__(self, house: House, exchange: Exchange, context: Context) -> None:
        self._house = house
        self._exchange = exchange
        self._context = context
        self._words: dict[asyncio.Future[Any], Word] = {}
        self._ready: deque[asyncio.Future[Any]] = deque()
        self._waiting = 0
        self._has_ended = False
        self._has_news = asyncio.Event()
        self._has_room = asyncio.Event()
        self._carried = Carried(house.broker.workers)
        self._is_over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        """Take requests and answer them until there are no more. Raises BrokerUnavailable."""
        parts = [asyncio.create_task(self._read()), asyncio.create_task(self._write())]
        try:
            while not parts[1].done():
                pending = [part for part in (*parts, self._is_over) if not part.done()]
                await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for part in parts:
                    if part.done():
                        part.result()
                if self._is_over.done():
                    raise BrokerUnavailable("The broker is shutting down; open a new session")
        finally:
            for part in parts:
                part.cancel()

    def end(self) -> None:
        """Have it end before its worker does."""
        if not self._is_over.done():
            self._is_over.set_result(None)

    def drop(self) -> None:
        """Nobody hears what is still under way."""
        for work, word in self._words.items():
            if word.offer is not None:
                drop(self._house.broker, word.offer.operation, work)
        self._words.clear()
        self._carried.close()

    async def _read(self) -> None:
        while (data := await self._context.read()) is not EOF:
            self._take(parse(pb.SessionRequest, data))
            while len(self._words) >= MOST_UNDER_WAY:
                self._has_room.clear()
                await self._has_room.wait()
        self._has_ended = True
        self._has_news.set()

    def _take(self, message: pb.SessionRequest) -> None:
        try:
            name = message.WhichOneof("request")
            if name is None:
                raise InvalidRequest(
                    f"the request has none of {', '.join(_OFFERS)}; set one", field="request"
                )
            self._begin(message.id, _OFFERS[name], getattr(message, name))
        except Exception as error:  # noqa: BLE001  whatever it is, the worker gets an answer
            refused: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            refused.set_exception(error)
            refused.exception()  # heard of
            self._add(refused, Word(message.id, None, waits=False))

    def _begin(self, number: int, offer: Offer, message: Any) -> None:
        request = offer.read(message)
        waits = offer.has_wait and request.wait_ms > 0
        if waits and self._waiting >= MOST_WAITING:
            raise InvalidRequest(
                f"at most {MOST_WAITING} claims of a session can wait; claim more tasks at once",
                field="wait_ms",
            )
        work = offer.start(self._house.broker, request, self._exchange.caller)
        if offer.name in SIGNS_OF_LIFE:
            self._carried.add(request.worker_id)
        self._add(work, Word(number, offer, waits))

    def _add(self, work: "asyncio.Future[Any]", word: Word) -> None:
        self._words[work] = word
        self._waiting += word.waits
        work.add_done_callback(self._note_done)

    def _note_done(self, work: "asyncio.Future[Any]") -> None:
        word = self._words.get(work)
        if word is not None:
            self._waiting -= word.waits
            self._ready.append(work)
            self._has_news.set()

    async def _write(self) -> None:
        while self._words or not self._has_ended:
            if not self._ready:
                self._has_news.clear()
                await self._has_news.wait()
                continue
            work = self._ready.popleft()
            await self._context.write(self._reply(work).SerializeToString())
            del self._words[work]  # only now: if it could not be written, nobody heard it
            self._has_room.set()

    def _reply(self, work: "asyncio.Future[Any]") -> pb.SessionReply:
        number, offer, _ = self._words[work]
        try:
            outcome = work.result()
            assert offer is not None  # noqa: S101  or there would be no result
            answer: dict[str, Any] = {offer.name.lower(): offer.reply(self._house.broker, outcome)}
            return pb.SessionReply(id=number, **answer)
        except Exception as error:  # noqa: BLE001  whatever it is, the worker gets an answer
            outside = told(error, self._exchange.visit.request_id)
            return pb.SessionReply(
                id=number, error=pb.Error(code=outside.code, message=outside.message)
            )
