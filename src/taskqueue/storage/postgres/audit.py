"""Whether what is counted is what is there, and every row makes sense."""

from typing import Final

from taskqueue.storage.postgres.reader import COUNTS, Reader

_TIER: Final = (
    "CASE WHEN priority >= 200 THEN 'high' WHEN priority >= 100 THEN 'normal' ELSE 'low' END"
)
_EVERY: Final = """
    SELECT seq, id, task_type, status, priority FROM taskqueue.tasks
    UNION ALL SELECT seq, id, task_type, status, priority FROM taskqueue.archive"""
_RECOUNT: Final = f"""
    WITH counted AS ({
    COUNTS.replace("$1::text", "NULL::text")
    .replace("$2::text", "NULL::text")
    .replace("task_type = $1", "true")
    .replace("status = $2", "true")
}),
    truth AS (
        SELECT task_type, status, {_TIER} AS tier, count(*) AS number
        FROM ({_EVERY}) AS every GROUP BY 1, 2, 3)
    SELECT task_type, status, tier, coalesce(present, 0), coalesce(number, 0)
    FROM truth FULL JOIN counted USING (task_type, status, tier)
    WHERE coalesce(present, 0) <> coalesce(number, 0)"""
_CHECKS: Final = (
    ("counter of type {0!r}, {1}, {2}: says {3}, there are {4}", _RECOUNT),
    (
        "task {0} is {1}, but its readiness is {2}",
        "SELECT id, status, ready FROM taskqueue.tasks "
        "WHERE (status IN ('pending', 'failed')) <> (ready IS NOT NULL)",
    ),
    (
        "task {0} runs without worker or deadline",
        "SELECT id FROM taskqueue.tasks WHERE status = 'in_progress' "
        "AND (worker_id IS NULL OR deadline IS NULL OR claimed_at IS NULL)",
    ),
    (
        "task {0} has no payload",
        f"SELECT id FROM ({_EVERY}) AS every "
        f"WHERE NOT EXISTS (SELECT FROM taskqueue.payloads WHERE payloads.seq = every.seq)",
    ),
    (
        "task {0} is completed, but has no result",
        "SELECT id FROM taskqueue.archive WHERE status = 'completed' "
        "AND NOT EXISTS (SELECT FROM taskqueue.results WHERE results.seq = archive.seq)",
    ),
    (
        "task {0} has a deadline, but is {1}",
        "SELECT id, status FROM taskqueue.tasks "
        "WHERE status <> 'in_progress' AND deadline IS NOT NULL",
    ),
    (
        "task {0} is {1} in the wrong place",
        "SELECT id, status FROM taskqueue.tasks WHERE status IN ('completed', 'cancelled') "
        "UNION ALL SELECT id, status FROM taskqueue.archive "
        "WHERE status NOT IN ('completed', 'cancelled')",
    ),
    (
        "task {0} is there {1} times",
        f"SELECT id, count(*) FROM ({_EVERY}) AS every GROUP BY id HAVING count(*) > 1",
    ),
    (
        "{0} number {1} belongs to no task",
        " UNION ALL ".join(
            f"SELECT '{kind}', seq FROM taskqueue.{kind}s AS bytes "
            f"WHERE NOT EXISTS (SELECT FROM ({_EVERY}) AS every WHERE every.seq = bytes.seq)"
            for kind in ("payload", "result", "failure", "checkpoint", "log")
        ),
    ),
)


async def audit(reader: Reader) -> list[str]:
    """Each difference between what is counted and what is there."""
    found: list[str] = []
    for text, statement in _CHECKS:
        found += [text.format(*row) for row in await reader.fetch_slowly(statement)]
    return found
