"""Each planted bug with the check that must fail while it is switched on."""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final

import apsw
import pytest

from taskqueue.core.errors import LeaseLost, StorageRefused, TaskNotFound
from taskqueue.core.keys import Permission
from taskqueue.core.task import Status
from tests.contract.doors import test_keys, test_rate_limit
from tests.contract.storage import test_access, test_books, test_claims, test_lifecycle
from tests.planted import bugs
from tests.planted.bugs import Bug
from tests.support.storage import a_queue
from tests.unit.broker import test_ledger, test_upkeep, test_waiting
from tests.unit.storage import test_damage, test_durability, test_power_loss

Check = Callable[[Path], Coroutine[None, None, None]]
Test = Callable[..., Coroutine[None, None, None]]


def on_a_queue(test: Test, **arguments: Any) -> Check:
    """A test of the storage suite, on the SQLite engine."""

    async def check(folder: Path) -> None:
        async with a_queue("sqlite", folder) as queue:
            await test(queue, **arguments)

    return check


def in_a_house(test: Test, **arguments: Any) -> Check:
    """A test about keys, on a broker with both doors that has one."""

    async def check(folder: Path) -> None:
        async with test_keys.a_house(folder, test_keys.CLOSED) as house:
            await test(house, **arguments)

    return check


def alone(test: Test) -> Check:
    """A test that needs nothing."""

    async def check(_folder: Path) -> None:
        await test()

    return check


async def acknowledged_commits_outlive_a_power_cut(folder: Path) -> None:
    """What is acknowledged is there after the power was cut."""
    test = test_power_loss.test_each_transaction_is_wholly_there_or_wholly_absent_and_none_is_lost
    with pytest.MonkeyPatch.context() as patch:
        recorded = await test_power_loss.a_record(folder, patch)
    await test(recorded, folder, power_fails=True)


_LIFE = test_lifecycle
_WORD = _LIFE.test_a_word_takes_hold_where_the_table_allows_it_and_changes_nothing_elsewhere
_OLD_TOKEN = _LIFE.test_a_word_with_another_token_is_refused_and_changes_nothing
_REPEAT = _LIFE.test_a_repeated_end_is_answered_as_the_first_one_and_changes_nothing
_CONFLICT = _LIFE.test_an_id_used_for_another_task_is_a_conflict

PLANTED: Final[dict[Bug, Check]] = {
    bugs.token_not_compared: on_a_queue(_OLD_TOKEN, word="complete", token=1),
    bugs.status_guard_dropped: on_a_queue(_WORD, status=Status.COMPLETED, word="cancel"),
    bugs.token_not_raised: on_a_queue(
        _LIFE.test_a_claim_raises_the_token_and_sets_the_deadline,
    ),
    bugs.completion_not_repeatable: on_a_queue(_REPEAT, word="complete"),
    bugs.retry_not_counted: on_a_queue(_LIFE.test_three_retries_mean_four_executions),
    bugs.delay_forgotten: on_a_queue(
        _LIFE.test_the_delay_doubles_from_five_seconds_to_an_hour_within_ten_percent,
        spread=0,
        factor=1.0,
    ),
    bugs.lost_worker_costs_a_delay: on_a_queue(
        _LIFE.test_a_lost_worker_costs_a_retry_without_a_delay
    ),
    bugs.release_costs_a_retry: on_a_queue(_LIFE.test_a_release_costs_no_retry_and_keeps_the_place),
    bugs.release_waits_for_the_old_clock: on_a_queue(
        _LIFE.test_a_task_released_after_the_clock_was_set_back_need_not_wait_for_it
    ),
    bugs.id_used_for_another_task: on_a_queue(_CONFLICT, change={"priority": 1}),
    bugs.submit_repeated_makes_two: on_a_queue(
        _LIFE.test_a_repeated_submit_makes_one_task_and_gets_the_first_answer
    ),
    bugs.batch_poisoned_by_one_bad_command: on_a_queue(
        test_books.test_each_command_of_a_batch_has_its_own_outcome
    ),
    bugs.counters_drift_on_cancel: on_a_queue(
        test_books.test_each_command_of_a_batch_has_its_own_outcome
    ),
    bugs.order_broken_at_equal_times: on_a_queue(
        test_claims.test_equal_priorities_go_first_in_first_out
    ),
    bugs.priority_ignored: on_a_queue(test_claims.test_the_highest_priority_goes_first_exactly),
    bugs.line_by_order_of_submission: on_a_queue(
        test_claims.test_a_task_stands_in_line_from_the_moment_it_became_ready
    ),
    bugs.promoted_early: on_a_queue(
        test_claims.test_a_scheduled_task_waits_for_its_time_and_its_promotion
    ),
    bugs.purged_too_early: on_a_queue(
        test_books.test_purging_deletes_what_is_past_and_nothing_else
    ),
    bugs.acknowledged_before_the_commit: alone(
        test_ledger.test_nothing_is_acknowledged_before_its_transaction_is_durable
    ),
    bugs.watcher_told_before_the_commit: (
        test_waiting.test_a_caller_is_told_of_no_end_before_it_is_durable
    ),
    bugs.unknown_outcome_told_as_success: alone(
        test_ledger.test_a_failed_sync_is_told_as_unknown_to_all_of_its_batch_and_the_next_goes_on
    ),
    bugs.failed_sync_taken_for_a_commit: (
        test_durability.test_a_failed_sync_is_unknown_and_the_repeat_is_harmless
    ),
    bugs.commits_not_synced: acknowledged_commits_outlive_a_power_cut,
    bugs.commit_number_not_kept: (
        test_durability.test_a_missing_tail_of_commits_is_noticed_at_start
    ),
    bugs.payload_checksum_skipped: test_damage.test_a_damaged_payload_is_never_handed_out,
    bugs.result_checksum_skipped: test_damage.test_a_damaged_result_is_never_handed_out,
    bugs.lease_not_checked: (
        test_upkeep.test_the_task_of_a_silent_worker_is_taken_back_at_the_cost_of_a_retry
    ),
    bugs.lease_on_the_wall_clock: (
        test_upkeep.test_a_stalled_broker_takes_nothing_back_before_it_has_heard_the_workers
    ),
    bugs.stall_not_forgiven: (
        test_upkeep.test_a_stalled_broker_takes_nothing_back_before_it_has_heard_the_workers
    ),
    bugs.restart_loses_every_worker: (
        test_upkeep.test_a_restarted_broker_gives_every_holder_a_whole_lease
    ),
    bugs.beat_revives: test_upkeep.test_a_beat_tells_what_was_lost_and_never_revives_it,
    bugs.deadline_not_enforced: test_upkeep.test_an_attempt_past_its_deadline_is_ended,
    bugs.permission_not_compared: in_a_house(
        test_keys.test_every_operation_asks_for_its_permission_on_every_door,
        permission=Permission.READ_TASKS,
    ),
    bugs.scope_not_compared: in_a_house(test_keys.test_a_key_for_some_task_types_reaches_no_others),
    bugs.key_outlives_its_end: in_a_house(
        test_keys.test_a_wrong_key_is_refused_in_one_way_however_wrong_it_is
    ),
    bugs.revoked_waits_go_on: in_a_house(test_keys.test_a_revoked_key_ends_what_goes_on_under_it),
    bugs.old_secret_for_ever: in_a_house(
        test_keys.test_after_a_rotation_both_secrets_are_good_for_a_while
    ),
    bugs.requests_not_counted: (
        test_rate_limit.test_as_many_requests_as_the_limit_may_come_at_once_then_they_wait
    ),
    bugs.key_used_for_another_task: on_a_queue(
        test_access.test_a_key_stands_for_one_content, change={"priority": 1}
    ),
    bugs.repeated_claim_claims_more: on_a_queue(
        test_access.test_a_repeated_claim_gets_the_same_tasks
    ),
    bugs.refusals_not_audited: on_a_queue(
        test_access.test_what_is_audited_is_entered_with_what_came_of_it
    ),
}

FOUND_AT_RANDOM: Final[tuple[Bug, ...]] = (
    bugs.token_not_compared,
    bugs.status_guard_dropped,
    bugs.retry_not_counted,
    bugs.release_costs_a_retry,
    bugs.release_waits_for_the_old_clock,
    bugs.counters_drift_on_cancel,
    bugs.order_broken_at_equal_times,
    bugs.line_by_order_of_submission,
    bugs.promoted_early,
    bugs.id_used_for_another_task,
)
"""Those that random histories must find too, without a test that was written for them."""

ERRORS: Final[dict[Bug, type[Exception]]] = {
    bugs.completion_not_repeatable: LeaseLost,
    bugs.submit_repeated_makes_two: apsw.ConstraintError,
    bugs.batch_poisoned_by_one_bad_command: TaskNotFound,
    bugs.revoked_waits_go_on: TimeoutError,
    bugs.commits_not_synced: StorageRefused,  # the commit number notices even that
}
"""Where a bug shows as an error that should not have come, and not by an assertion."""


def carry_out(check: Check, folder: Path) -> None:
    """Run a check to its end."""
    asyncio.run(check(folder))
