"""The table that a crash test ends with."""

import statistics
from collections import Counter
from itertools import zip_longest
from typing import get_args

from taskqueue.core.task import Status
from tests.chaos.checker import Books, Violation
from tests.chaos.history import Line, Op, Outcome

OPS: tuple[Op, ...] = get_args(Op)[:-1]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
LIVE_OPS = frozenset(OPS) - {"run"}
"""Things that only a broker that works can have answered."""


def table(lines: list[Line], books: Books, violations: list[Violation]) -> str:
    """What happened, in figures."""
    counts = Counter((line.op, line.outcome) for line in lines)
    rows = [f"{'':<10}{'ok':>8}{'fail':>8}{'unknown':>8}"]
    for op in OPS:
        numbers = "".join(f"{counts[op, outcome]:>8}" for outcome in OUTCOMES)
        rows.append(f"{op:<10}{numbers}")
    rows.append("")
    rows += [f"{name:<44}{value:>8}" for name, value in figures(lines, books, violations).items()]
    rows += [f"{name:<44}{number:>8}" for name, number in faults(lines).items()]
    delays = restarts(lines)
    if delays:
        median, worst = statistics.median(delays), max(delays)
        name = "broker start to first success, p50 and max"
        rows.append(f"{name:<44}{median:>8.2f} s {worst:.2f} s")
    return "\n".join(rows)


def figures(lines: list[Line], books: Books, violations: list[Violation]) -> dict[str, int]:
    """The figures one asks for first."""
    statuses = Counter(kept.detail.task.status for kept in books.values())
    broken = Counter(violation.invariant for violation in violations)
    accepted = {line.args.task_id for line in lines if line.op == "submit" and line.outcome == "ok"}
    stale = sum(line.answer.startswith("LEASE_LOST") for line in lines)
    runs = Counter(line.args.task_id for line in lines if line.op in ("claim", "run"))
    return {
        **{f"tasks {status}": statuses[status] for status in Status if statuses[status]},
        "acknowledged and lost": broken["I1"],
        "unknown, and there": len(books.keys() - accepted),
        "completed more than once": broken["I7"],
        "given out again (allowed)": sum(runs.values()) - len(runs),
        "stale words refused": stale,
        "stale words accepted": broken["I6"],
    }


def faults(lines: list[Line]) -> dict[str, int]:
    """How often what was done to whom."""
    return dict(sorted(Counter(line.args.fault for line in lines if line.op == "fault").items()))


def restarts(lines: list[Line]) -> list[float]:
    """Seconds from each start of a killed broker to the first success after it.

    Those that were hurt again before anybody had come back to them are left out.
    """
    hurt = sorted((line for line in lines if _is_broker(line)), key=lambda line: line.sent_ns)
    successes = sorted(
        line.done_ns for line in lines if line.op in LIVE_OPS and line.outcome == "ok"
    )
    delays: list[float] = []
    for fault, following in zip_longest(hurt, hurt[1:]):
        end = following.sent_ns if following else float("inf")
        first = next((at for at in successes if fault.done_ns < at < end), None)
        if first is not None and "killed" in fault.args.fault:
            delays.append((first - fault.done_ns) / 1e9)
    return delays


def _is_broker(line: Line) -> bool:
    return line.op == "fault" and line.args.fault.startswith("broker")
