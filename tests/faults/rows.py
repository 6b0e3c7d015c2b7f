"""What workers must survive, and the tests that show that they do.

The names are those of faults of processes and networks (F) and of bad input (B), as in
tests/hardening/rows.py, which has what is a matter of the broker's doors alone.
"""

from typing import Final, NamedTuple

HERE: Final = "tests/faults/"
DOORS: Final = "tests/hardening/"
WORKER: Final = "tests/unit/worker/"


class Row(NamedTuple):
    """One demand."""

    demand: str
    tests: tuple[str, ...]


def _tests(folder: str, **modules: str) -> tuple[str, ...]:
    """The ids of tests, from their names without `test_`, by module."""
    return tuple(
        f"{folder}test_{module}.py::test_{name}"
        for module, names in modules.items()
        for name in names.split()
    )


ROWS: Final = {
    "F07": Row(
        "the tasks of a worker that was killed are run elsewhere, at the cost of a retry",
        _tests(
            HERE,
            signals="what_a_killed_worker_ran_is_run_again_at_the_cost_of_a_retry"
            " a_worker_killed_while_it_finishes_costs_what_any_kill_does",
            deaths="a_task_that_takes_its_workers_along_goes_to_the_dead_letters",
        ),
    ),
    "F08": Row(
        "a worker frozen past its lease is replaced; its late word is refused and changes nothing",
        _tests(
            HERE,
            signals="a_frozen_worker_is_replaced_and_its_late_result_changes_nothing",
            away="a_handler_that_blocks_the_worker_for_leases",
        ),
    ),
    "F09": Row(
        "a worker told to end finishes what it runs and keeps its lease; told twice it gives back",
        _tests(
            HERE,
            signals="a_deploy_waits_for_a_long_handler_and_keeps_its_lease"
            " a_second_sigterm_gives_everything_back_at_once_at_no_cost"
            " what_outlasts_the_time_to_finish_is_given_back_at_no_cost"
            " a_worker_killed_while_it_finishes_costs_what_any_kill_does",
        ),
    ),
    "F10": Row(
        "the death of a process is a failed attempt that names its signal, and no other's harm",
        _tests(
            HERE,
            deaths="each_death_of_a_process_is_a_failed_attempt_that_names_it"
            " five_deaths_cost_five_attempts_and_never_count_as_a_success"
            " a_task_that_takes_its_workers_along_goes_to_the_dead_letters"
            " a_task_that_takes_its_processes_along_goes_to_the_dead_letters"
            " a_handler_that_runs_out_of_its_limit_has_failed_and_its_process_lives"
            " a_process_that_leaks_is_replaced_above_its_limit",
        ),
    ),
    "F11": Row(
        "a blocked event loop keeps its lease and is named; a blocked interpreter is as F08",
        _tests(HERE, away="a_handler_that_blocks_the_worker_for_leases")
        + _tests(WORKER, watch="a_handler_that_blocks_the_loop_is_named_once_and_its_end_told"),
    ),
    "F12": Row(
        "a fork speaks for no attempt and uses no connection of its parent",
        _tests(
            HERE,
            handlers="a_fork_that_comes_back_is_ended_and_says_nothing"
            " a_fork_may_submit_and_uses_no_connection_of_its_parent",
        )
        + _tests(WORKER, processes="a_child_has_none_of_its_workers_sockets"),
    ),
    "F33": Row(
        "after everything stood still, attempts go on as if nothing had been",
        _tests(HERE, signals="everything_frozen_for_leases_goes_on_as_if_nothing_had_been"),
    ),
    "F34": Row(
        "a connection that breaks anywhere leaves each command done once or not at all",
        _tests(HERE, away="a_worker_whose_links_break_all_the_time_does_each_task_once")
        + _tests(
            DOORS,
            cuts="each_command_is_done_once_or_not_at_all_and_may_be_repeated"
            " a_claim_may_be_repeated_after_any_cut",
        ),
    ),
    "F35": Row(
        "a worker on a half-open link stops its handlers, claims anew when it heals",
        _tests(
            HERE,
            away="a_worker_on_a_half_open_link_stops_its_handlers_and_comes_back"
            " a_thread_that_nobody_can_stop_has_no_say_after_a_half_open_link",
        )
        + _tests(
            DOORS,
            claims="a_worker_that_was_cut_off_for_a_lease_cannot_speak_for_its_task_any_more",
        ),
    ),
    "F36": Row(
        "claims that nobody received come back after the lease, or to who repeats the request",
        _tests(HERE, away="claims_that_nobody_received_come_back_after_the_lease")
        + _tests(
            DOORS,
            claims="a_claim_whose_answer_is_lost_comes_back_after_the_lease"
            " a_claim_whose_answer_is_lost_may_be_repeated_by_its_id",
        ),
    ),
    "F37": Row(
        "a heartbeat revives, extends and un-completes nothing",
        _tests(
            DOORS,
            claims="a_beat_on_another_connection_changes_nothing_about_the_end_of_an_attempt"
            " beats_in_the_same_moment_change_nothing_either"
            " a_beat_that_knows_nothing_of_a_claim_and_its_end_cannot_both_hold",
        ),
    ),
    "F40": Row(
        "hundreds of workers that come back at once are served",
        _tests(HERE, crowd="a_crowd_that_comes_back_at_once_is_served"),
    ),
    "F41": Row(
        "tasks that fail together are retried apart, and fresh work flows",
        _tests(HERE, crowd="fresh_work_flows_through_a_storm_of_retries"),
    ),
    "B27": Row(
        "whatever a handler returns, raises or prints is an attempt with a reason",
        _tests(
            HERE,
            handlers="a_result_that_cannot_be_kept_is_a_failed_attempt"
            " a_result_of_bytes_is_kept_up_to_10_mib"
            " whatever_is_raised_is_a_failed_attempt_with_a_reason"
            " 100_mb_of_prints_and_of_logs_pass_in_bounded_memory",
        ),
    ),
    "cancel": Row(
        "a handler that ignores its cancellation keeps neither its task nor its slot",
        _tests(HERE, deaths="a_handler_that_ignores_its_cancellation_does_not_keep_its_task"),
    ),
    "away": Row(
        "a worker goes on without a restart after its broker was gone",
        _tests(
            HERE,
            away="a_worker_goes_on_after_its_broker_was_gone_for_leases"
            " a_broker_that_restarts_again_and_again_loses_nothing",
        ),
    ),
    "memory": Row(
        "an idle worker is below 60 MB, and none grows with its work",
        _tests(
            HERE, memory="a_worker_is_small_and_does_not_grow_with_its_work what_grows_is_found"
        ),
    ),
}
