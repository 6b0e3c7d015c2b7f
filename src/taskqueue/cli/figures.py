"""`tq stats` and `tq queue-depth`: the queue in figures."""

import sys
from typing import Final

from taskqueue.cli.options import HERE, ONCE, LiveForm, Target
from taskqueue.cli.output import as_row, is_for_programs, print_record, print_rows
from taskqueue.cli.watching import shown
from taskqueue.core.task import Tier

BAR_WIDTH: Final = 40
COLUMNS: Final = ("tier", "priority", "pending")
RANGES: Final = {Tier.HIGH: "200-255", Tier.NORMAL: "100-199", Tier.LOW: "0-99"}


def stats(*, form: LiveForm = ONCE, broker: Target = HERE) -> None:
    """Show the queue in figures."""
    with broker.connect() as client:
        shown(form, lambda: print_record(as_row(client.stats()), form))


def queue_depth(*, form: LiveForm = ONCE, broker: Target = HERE) -> None:
    """Show how many tasks wait, by priority."""

    def show() -> None:
        depths = client.stats().queue_depth_by_priority
        if sys.stdout.isatty() and not is_for_programs(form) and not form.names:
            print_bars([(f"{tier} ({RANGES[tier]})", depths.get(tier, 0)) for tier in RANGES])
        else:
            rows = [
                {"tier": str(tier), "priority": RANGES[tier], "pending": depths.get(tier, 0)}
                for tier in RANGES
            ]
            print_rows(rows, form, COLUMNS)

    with broker.connect() as client:
        shown(form, show)


def print_bars(lines: list[tuple[str, int]]) -> None:
    """Print a bar for each number, the longest one for the largest."""
    largest = max((number for _, number in lines), default=0)
    for name, number in lines:
        length = -(-number * BAR_WIDTH // largest) if largest else 0
        print(f"{name:<18} {'█' * length}{' ' if length else ''}{number:,}")
