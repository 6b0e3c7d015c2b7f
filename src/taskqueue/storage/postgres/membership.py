"""One broker among others on a database: its presence, the leadership, news, beats of workers.

Each loop has a connection of its own, so that none of them waits behind a commit. Leadership is a
lease in one row with a term that grows with each change of hands (as in the lease protocol of Gray
and Cheriton, 1989): whoever has not renewed it in time stops of itself, by its own clock, before
anybody else can take it.
"""

import asyncio
import json
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, Final

import asyncpg
import msgspec
import structlog

from taskqueue.core.batch import Applied
from taskqueue.core.errors import BrokerUnavailable
from taskqueue.storage.cluster import Cluster, ClusterView, News, Node, Peer, Presence, Sighting
from taskqueue.storage.postgres.connections import (
    LOST,
    Connection,
    Database,
    close,
    connect,
    unavailable,
)
from taskqueue.storage.postgres.reader import Reader
from taskqueue.storage.postgres.tables import Memory
from taskqueue.storage.postgres.writer import Writer

RENEW_SECONDS: Final = 0.5
LEAD_SECONDS: Final = 2.0
"""How long leadership lasts unless it is renewed: others take over half a second later at most."""

TELL_SECONDS: Final = 0.02
"""Least time between two messages to the others."""

LONGEST_MESSAGE: Final = 7_000
"""Bytes; PostgreSQL takes 8,000."""

GONE_SECONDS: Final = 60
"""After this silence a broker is no longer listed, and what it counted is folded by the leader."""

CHANNEL: Final = "taskqueue_news"

LOCAL: Final = "set_config('synchronous_commit', 'local', true)"
"""For what is true for a second only and may be lost with the primary: its transaction waits for no
standby, and so is not held up when there is none. Who leads is fenced by the row that there is."""

JOIN: Final = """
    INSERT INTO taskqueue.brokers (address, http, version) VALUES ($1, $2, $3) RETURNING number"""
SHOW: Final = f"""
    INSERT INTO taskqueue.brokers (number, address, http, version, load, workers, folded)
    OVERRIDING SYSTEM VALUE VALUES ($1, $2, $3, $4, $5, $6, $7)
    ON CONFLICT (number) DO UPDATE SET seen = clock_timestamp(), address = $2, http = $3,
        version = $4, load = $5, workers = $6
    RETURNING {LOCAL}"""
"""A broker that was given up joins again: all that it had written by then was counted."""
LEAD: Final = f"""
    UPDATE taskqueue.leadership
    SET term = term + (broker IS DISTINCT FROM $1)::int, broker = $1,
        until = clock_timestamp() + make_interval(secs => $2)
    WHERE one = 1 AND (broker = $1 OR until < clock_timestamp()) RETURNING term, {LOCAL}"""
RESIGN: Final = f"""
    UPDATE taskqueue.leadership SET until = '-infinity' WHERE broker = $1 RETURNING {LOCAL}"""
LEAVE: Final = f"""
    UPDATE taskqueue.brokers SET seen = '-infinity' WHERE number = $1 RETURNING {LOCAL}"""
IS_STANDBY: Final = "SELECT pg_is_in_recovery()"
STANDBYS: Final = """
    SELECT application_name, coalesce(client_addr::text, 'local') AS address, sync_state, state,
           pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn)::bigint AS bytes,
           extract(epoch FROM replay_lag)::float8 AS seconds
    FROM pg_stat_replication ORDER BY 1, 2"""
QUORUM: Final = "SELECT current_setting('synchronous_standby_names')"
PEERS: Final = """
    SELECT number, address, http, version, (extract(epoch FROM since) * 1000000)::bigint,
           (extract(epoch FROM seen) * 1000000)::bigint, load, workers
    FROM taskqueue.brokers WHERE seen > clock_timestamp() - make_interval(secs => $1)
    ORDER BY number"""
LEADER: Final = """
    SELECT broker, term FROM taskqueue.leadership WHERE until > clock_timestamp()"""
TERM: Final = "SELECT term FROM taskqueue.leadership"
BEAT: Final = f"""
    INSERT INTO taskqueue.workers
    SELECT worker_id, clock_timestamp() - make_interval(secs => age), $1, is_gone, about, ordered,
        ordered_at
    FROM unnest($2::text[], $3::float8[], $4::boolean[], $5::text[], $6::text[], $7::bigint[])
        AS heard (worker_id, age, is_gone, about, ordered, ordered_at) ORDER BY worker_id
    ON CONFLICT (worker_id) DO UPDATE SET
        seen = CASE WHEN excluded.is_gone AND workers.broker = excluded.broker
            THEN excluded.seen ELSE greatest(workers.seen, excluded.seen) END,
        broker = CASE WHEN excluded.seen >= workers.seen
            THEN excluded.broker ELSE workers.broker END,
        is_gone = excluded.is_gone,
        about = CASE excluded.about WHEN '' THEN workers.about ELSE excluded.about END,
        ordered = CASE WHEN excluded.ordered_at > workers.ordered_at
            THEN excluded.ordered ELSE workers.ordered END,
        ordered_at = greatest(workers.ordered_at, excluded.ordered_at)
    RETURNING {LOCAL}"""
"""Whoever heard of a worker last says when it has gone."""
BEATS: Final = """
    SELECT worker_id, (extract(epoch FROM clock_timestamp() - seen) * 1000000)::bigint, is_gone,
        CASE WHEN seen > clock_timestamp() - interval '3 seconds' THEN about ELSE '' END,
        ordered, ordered_at
    FROM taskqueue.workers WHERE seen > clock_timestamp() - make_interval(secs => $1)"""
NOW: Final = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint"

Stopped = list[tuple[str, str, int]]
Message = tuple[int, dict[str, tuple[int, int, list[int]]] | None, int | None, Stopped]
"""Who sends it; how many tasks of which types are ready, from which `run_at` and of which
priorities, or None for anything; when the next one is due; which claims are over by a cancel."""

MOST_STOPPED: Final = 50
"""Claims named in one message; the workers of others learn it with their heartbeats."""

BEATS_KEPT: Final = 3_600
CLOCK_SAMPLES: Final = 5
LARGEST_SKEW: Final = 1_000_000
"""Microseconds between two clocks from which on it is worth a word."""

log = structlog.get_logger(component="cluster")


class Membership(Cluster):
    """This broker's part in the cluster."""

    is_shared = True

    def __init__(self, database: Database, memory: Memory, writer: Writer, reader: Reader) -> None:
        self.on_news: Callable[[News], None] = lambda _news: None
        self._database = database
        self._memory = memory
        self._writer = writer
        self._reader = reader
        self._presence = Presence()
        self._leads_until = 0.0
        self._complaint: str | None = None
        self._is_alone = True
        self._workers = 0
        self._load = 0.0
        self._latest = (0, time.monotonic())
        self._beats: Connection | None = None
        self._ready: dict[str, list[int]] = {}
        self._next_due: int | None = None
        self._stopped: Stopped = []
        self._has_news = asyncio.Event()
        self._has_changed = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def is_leader(self) -> bool:
        return time.monotonic() < self._leads_until

    @property
    def complaint(self) -> str | None:
        return self._complaint

    def introduce(self, presence: Presence) -> None:
        self._presence = presence
        self._has_changed.set()

    def tell(self, applied: Applied) -> None:
        if self._is_alone or not (applied.moved or applied.ready):
            return
        # What was promoted is ready from an earlier moment on than what moved.
        has_promoted = any(isinstance(one, int) and one for one in applied.outcomes)
        for task in applied.moved:
            if task.task_type in applied.ready:
                run_at = 0 if has_promoted else task.run_at
                known = self._ready.setdefault(task.task_type, [0, run_at])
                known[1] = min(known[1], run_at)
        for task_type, number in applied.ready.items():
            self._ready.setdefault(task_type, [0, 0])[0] += number
        self._stopped += applied.stopped()
        if applied.next_due is not None:
            self._next_due = min(applied.next_due, self._next_due or applied.next_due)
        self._has_news.set()

    async def join(self, connection: Connection) -> None:
        """Become one of the brokers, and the leader if there is none."""
        presence = self._presence
        self._memory.broker = await connection.fetchval(
            JOIN, presence.address, presence.http, presence.version
        )
        await self._lead(connection)
        self._tasks = [
            asyncio.create_task(work)
            for work in (
                self._for_ever("leadership", self._keep_leading),
                self._for_ever("news", self._listen),
                self._for_ever("messages", self._send),
            )
        ]

    async def leave(self) -> None:
        """Give the leadership up and hang up."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._leads_until = 0.0
        connection: Connection | None = None
        try:
            async with asyncio.timeout(LEAD_SECONDS):
                connection = await connect(self._database, "read-write", "leadership")
                await connection.execute(RESIGN, self._memory.broker)
                await connection.execute(LEAVE, self._memory.broker)
        except (BrokerUnavailable, *LOST, asyncpg.PostgresError) as error:
            log.warning("the others could not be told of this broker's end", error=str(error))
        await close(connection)
        await close(self._beats)

    async def exchange(self, heard: Mapping[str, Sighting]) -> dict[str, Sighting]:
        self._workers = len(heard)
        try:
            if self._beats is None or self._beats.is_closed():
                self._beats = await connect(self._database, "read-write", "heartbeats")
            async with asyncio.timeout(LEAD_SECONDS):
                if heard:
                    await self._beats.execute(
                        BEAT, self._memory.broker, list(heard), *_columns(heard.values())
                    )
                rows = await self._beats.fetch(BEATS, float(BEATS_KEPT))
        except (*LOST, asyncpg.PostgresError) as error:
            if self._beats is not None:
                self._beats.terminate()
            raise unavailable(self._database, error) from error
        return {
            worker_id: Sighting(
                age=age, is_gone=is_gone, about=about, order=order, ordered_at=ordered_at
            )
            for worker_id, age, is_gone, about, order, ordered_at in rows
        }

    async def clock_offset(self, wall: Callable[[], int]) -> int:
        samples: list[tuple[int, int]] = []
        for _ in range(CLOCK_SAMPLES):
            asked = wall()
            [(shared,)] = await self._reader.fetch(NOW)
            took = wall() - asked
            samples.append((took, shared - asked - took // 2))
        _, offset = min(samples)  # the quickest answer is the most exact one
        if abs(offset) > LARGEST_SKEW:
            log.warning(
                "the clocks of this machine and the database differ; the database's is used",
                seconds=offset / 1_000_000,
            )
        return offset

    async def view(self) -> ClusterView:
        brokers = await self._reader.fetch(PEERS, float(GONE_SECONDS))
        leader = await self._reader.fetch(LEADER)
        term = await self._reader.fetch(TERM)
        standbys = await self._reader.fetch(STANDBYS)
        names = await self._reader.fetch(QUORUM)
        [(is_standby,)] = await self._reader.fetch(IS_STANDBY)
        return ClusterView(
            brokers=[
                Peer(
                    number=number,
                    address=address,
                    http=http,
                    version=version,
                    since=since,
                    seen=seen,
                    load=load,
                    workers=workers,
                )
                for number, address, http, version, since, seen, load, workers in brokers
            ],
            me=self._memory.broker,
            leader=leader[0][0] if leader else None,
            term=term[0][0],
            nodes=[
                Node(
                    name=str(self._database),
                    role="primary",
                    state="does not answer" if is_standby else "running",
                )
            ]
            + [
                Node(
                    name=f"{name} ({address})",
                    role=f"{sync_state or 'unknown'} standby",
                    state=state or "unknown",
                    lag_bytes=lag,
                    lag_seconds=seconds,
                )
                for name, address, sync_state, state, lag, seconds in standbys
            ],
            quorum=standbys_needed(names[0][0]),
            complaint=self._complaint,
        )

    async def _for_ever(self, purpose: str, work: Callable[[Connection], Awaitable[None]]) -> None:
        while True:
            connection: Connection | None = None
            try:
                connection = await connect(self._database, "read-write", purpose)
                await work(connection)
            except (BrokerUnavailable, *LOST, asyncpg.PostgresError) as error:
                if purpose == "leadership":
                    self._complaint = "no writable primary of the database answers"
                log.warning("lost the database, trying again", purpose=purpose, error=str(error))
            finally:
                if connection is not None:
                    connection.terminate()
            await asyncio.sleep(RENEW_SECONDS)

    async def _keep_leading(self, connection: Connection) -> None:
        while True:
            self._has_changed.clear()
            async with asyncio.timeout(LEAD_SECONDS):
                await self._check(connection)
                await self._show(connection)
                await self._lead(connection)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._has_changed.wait(), RENEW_SECONDS)

    async def _show(self, connection: Connection) -> None:
        number, since = self._latest
        self._latest = (self._writer.commands, time.monotonic())
        self._load = (self._latest[0] - number) / max(0.001, self._latest[1] - since)
        presence = self._presence
        await connection.execute(
            SHOW,
            self._memory.broker,
            presence.address,
            presence.http,
            presence.version,
            self._load,
            self._workers,
            self._memory.number,
        )
        peers = await connection.fetch(PEERS, LEAD_SECONDS * 2)
        self._is_alone = len(peers) < 2

    async def _lead(self, connection: Connection) -> None:
        asked = time.monotonic()
        term = await connection.fetchval(LEAD, self._memory.broker, LEAD_SECONDS)
        led = self.is_leader
        if term is None:
            self._leads_until = 0.0
        else:
            self._leads_until = asked + LEAD_SECONDS
            self._memory.term = term
        if led != self.is_leader:
            log.info("leads" if self.is_leader else "leads no more", term=term)

    async def _check(self, connection: Connection) -> None:
        needed = standbys_needed(await connection.fetchval(QUORUM))
        states = [row["sync_state"] for row in await connection.fetch(STANDBYS)]
        there = sum(state in ("sync", "quorum") for state in states)
        if needed > there and None not in states:
            self._complaint = (
                f"{needed} synchronous standbys are to confirm each commit, {there} are there"
            )
        else:
            self._complaint = None

    async def _listen(self, connection: Connection) -> None:
        def hear(_connection: Any, _pid: int, _channel: str, message: object) -> None:
            self._hear(str(message))

        await connection.add_listener(CHANNEL, hear)
        while True:
            self.on_news(News())  # whatever was missed before, or is not told at all
            await asyncio.sleep(1.0)
            async with asyncio.timeout(LEAD_SECONDS):
                await connection.execute("SELECT 1")

    def _hear(self, message: str) -> None:
        try:
            broker, ready, next_due, stopped = msgspec.json.decode(message, type=Message)
        except msgspec.MsgspecError:
            log.warning("news that make no sense", message=message[:200])
            return
        if broker == self._memory.broker:
            return
        lanes = self._memory.lanes
        for task_type, (_, run_at, priorities) in (ready or {}).items():
            lanes.add((task_type, priority) for priority in priorities)
            lanes.lower_all(task_type, run_at)
        numbers = None if ready is None else {name: one[0] for name, one in ready.items()}
        self.on_news(News(numbers, next_due, stopped))

    async def _send(self, connection: Connection) -> None:
        while True:
            await self._has_news.wait()
            self._has_news.clear()
            ready, self._ready = self._ready, {}
            next_due, self._next_due = self._next_due, None
            stopped, self._stopped = self._stopped[:MOST_STOPPED], []
            lanes = self._memory.lanes
            told = {
                task_type: [*known, [lane.priority for lane in lanes.of([task_type])]]
                for task_type, known in ready.items()
            }
            message = json.dumps([self._memory.broker, told, next_due, stopped])
            if len(message.encode()) > LONGEST_MESSAGE:
                message = json.dumps([self._memory.broker, None, next_due, []])
            async with asyncio.timeout(LEAD_SECONDS):
                await connection.execute("SELECT pg_notify($1, $2)", CHANNEL, message)
            await asyncio.sleep(TELL_SECONDS)


def _columns(sightings: Iterable[Sighting]) -> list[list[Any]]:
    rows = [
        (one.age / 1_000_000, one.is_gone, one.about, one.order, one.ordered_at)
        for one in sightings
    ]
    return [list(column) for column in zip(*rows, strict=True)]


def standbys_needed(names: str) -> int:
    """How many standbys a setting of `synchronous_standby_names` waits for."""
    if not names.strip():
        return 0
    stated = re.match(r"\s*(?:FIRST|ANY)?\s*(\d+)\s*\(", names, re.IGNORECASE)
    return int(stated[1]) if stated else 1
