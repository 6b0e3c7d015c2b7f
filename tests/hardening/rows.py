"""What the doors must survive, and the tests that show that they do.

A row is a kind of bad input (B) or a fault of process and network (F). `ROWS` holds what is
demanded and where it is proved; `ELSEWHERE` the rows that are no matter of a door.
"""

from typing import Final, NamedTuple

DOORS: Final = "tests/contract/doors/"
HERE: Final = "tests/hardening/"


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
    "B01": Row(
        "payloads of 10 MiB are taken, one byte more is refused before it is kept",
        _tests(
            DOORS,
            rest_input="ten_mebibytes_are_taken_and_not_one_byte_more"
            " a_body_over_the_cap_is_refused_before_it_is_sent"
            " a_body_without_a_length_is_counted_while_it_is_read"
            " bodies_that_arrive_share_one_bounded_room",
            resp_limits="the_largest_payload_and_result_pass_and_larger_ones_are_refused_by_name"
            " a_word_beyond_the_limit_ends_the_connection",
            grpc_input="bytes_beyond_10_mib_are_too_many a_payload_of_10_mib_comes_back_whole",
            grpc_limits="a_message_beyond_15_mib_is_refused a_batch_of_15_mib_is_taken",
        )
        + _tests(
            HERE,
            http="a_length_that_lies_makes_no_task"
            " bodies_of_every_size_pass_or_are_refused_in_bounded_memory",
        ),
    ),
    "B02": Row(
        "base64 in any but its canonical form is refused",
        _tests(DOORS, rest_input="only_canonical_base64_is_taken"),
    ),
    "B03": Row(
        "numbers are plain digits within their range, in every protocol",
        _tests(
            DOORS,
            rest_input="a_priority_is_a_whole_number_up_to_255 what_is_no_json_number_is_refused"
            " priorities_at_the_edges_are_taken",
            resp_input="whole_numbers_are_digits_and_nothing_else"
            " decimal_numbers_are_digits_and_one_point",
            grpc_input="a_value_out_of_its_limits_is_named",
        )
        + _tests(
            HERE,
            values="a_number_in_another_form_is_no_number"
            " a_bad_option_of_a_submit_is_refused_alike_at_every_door",
        ),
    ),
    "B04": Row(
        "times and counts beyond their range are refused with it",
        _tests(
            DOORS,
            rest_input="a_value_that_cannot_be_used_is_named",
            resp_input="a_bad_word_is_named_and_changes_nothing",
        )
        + _tests(HERE, values="a_bad_option_of_a_submit_is_refused_alike_at_every_door"),
    ),
    "B05": Row(
        "dates are taken as documented or refused, never a fault",
        _tests(
            DOORS,
            rest_input="a_date_that_is_none_is_refused a_date_is_utc_and_never_before_now"
            " a_date_as_a_number_is_refused",
            resp_input="a_bad_word_is_named_and_changes_nothing",
            grpc_input="a_value_out_of_its_limits_is_named",
        ),
    ),
    "B06": Row(
        "names are refused, or kept and shown inert",
        _tests(
            DOORS,
            rest_input="a_name_that_cannot_be_printed_is_refused a_lone_surrogate_is_refused"
            " any_printable_name_is_kept_as_it_is",
        )
        + _tests(HERE, values="a_bad_name_is_refused_alike_at_every_door"),
    ),
    "B07": Row(
        "a filter matches its own letters only",
        _tests(DOORS, rest="a_filter_is_taken_literally")
        + _tests(HERE, values="a_filter_matches_its_own_letters_only"),
    ),
    "B08": Row(
        "JSON that is not one clean object is refused, however much it would cost to read",
        _tests(
            DOORS,
            rest_input="a_body_that_is_not_one_clean_object_is_refused"
            " a_field_given_twice_is_named a_batch_that_is_wrong_as_a_whole_is_refused",
        )
        + _tests(HERE, http="json_that_costs_much_to_read_is_refused_beside_others"),
    ),
    "B09": Row(
        "bodies of another kind are refused, and nothing is unpacked",
        _tests(DOORS, rest_input="a_body_of_another_kind_is_refused")
        + _tests(HERE, http="a_bomb_is_not_unpacked"),
    ),
    "B10": Row(
        "any doubt about the framing of HTTP ends the connection; sizes are bounded",
        _tests(
            DOORS,
            rest_http="doubtful_framing_is_refused_and_ends_the_connection"
            " what_grows_without_measure_is_cut trailers_do_not_pass_for_headers"
            " an_offer_to_change_the_protocol_is_passed_over"
            " nothing_is_read_after_a_request_that_ends_the_connection",
        )
        + _tests(
            HERE,
            http="nothing_is_read_after_a_doubt_about_the_framing a_storm_of_them_harms_nobody"
            " random_bytes_within_a_request_harm_nobody a_path_leads_where_it_says_or_nowhere"
            " ranges_are_not_heeded_however_many"
            " a_flood_of_requests_sent_ahead_holds_up_nobody",
        ),
    ),
    "B11": Row(
        "pages out of range, and cursors that were not given out, are refused",
        _tests(
            DOORS,
            rest_input="a_list_with_bad_parameters_is_refused"
            " a_cursor_is_good_for_its_own_filter_only",
        )
        + _tests(
            HERE,
            values="a_bad_page_is_refused_alike_at_every_door"
            " a_cursor_that_was_tampered_with_is_refused",
        ),
    ),
    "B12": Row(
        "a task id has one form, in either case",
        _tests(DOORS, rest="an_id_is_found_in_either_case an_id_that_is_none_is_not_found")
        + _tests(HERE, values="a_bad_option_of_a_submit_is_refused_alike_at_every_door"),
    ),
    "B13": Row(
        "what a client sends never becomes a header, a reply, a line of the log or a colour",
        _tests("tests/unit/wire/", replies="an_error_is_one_line_whatever_it_holds")
        + _tests("tests/unit/server/", logs="nothing_a_client_sends_breaks_or_colours_a_line")
        + _tests(
            HERE,
            resp="what_is_reflected_stays_on_its_line",
            values="a_bad_name_is_refused_alike_at_every_door"
            " what_a_worker_says_of_its_failure_is_shown_inert_at_every_door",
        ),
    ),
    "B14": Row(
        "metrics stay valid and bounded with any number of types",
        _tests(
            DOORS,
            rest_documents="metrics_stay_readable_with_any_type"
            " types_beyond_a_thousand_share_a_label histograms_beyond_a_thousand_types_share_one",
        ),
    ),
    "B15": Row(
        "what is not RESP gets one error and ends the connection, an unknown command does not",
        _tests(
            "tests/unit/wire/",
            requests="what_is_not_resp_is_refused_and_nothing_after_it_is_read"
            " random_bytes_never_raise_and_never_hold_more_than_was_sent",
        )
        + _tests(
            DOORS,
            resp_limits="what_is_not_resp_is_answered_in_its_turn_and_ends_the_connection",
            resp_input="empty_commands_are_passed_over",
        )
        + _tests(
            HERE,
            resp="what_is_not_resp_gets_one_error_and_ends_the_connection"
            " what_is_resp_but_no_command_leaves_the_connection_as_it_was"
            " a_storm_of_them_harms_nobody random_bytes_within_commands_harm_nobody"
            " promises_of_much_take_no_memory",
        ),
    ),
    "B16": Row(
        "answers that nobody reads are bounded, and so is what strangers get",
        _tests(
            DOORS,
            resp_limits="a_client_that_never_reads_is_not_read_from_and_then_dropped"
            " what_a_client_leaves_unread_is_bounded",
            keys="a_stranger_gets_no_more_than_a_handshake",
        )
        + _tests(
            HERE,
            resp="a_million_pings_that_nobody_reads_the_answers_of",
            slow="answers_that_nobody_reads_take_bounded_memory"
            " grpc_answers_that_nobody_reads_take_bounded_memory"
            " when_all_leave_too_much_unread_the_one_with_the_most_goes",
            strangers="a_stranger_takes_up_no_room",
            http2="answers_to_a_flood_that_nobody_reads_do_not_pile_up",
        ),
    ),
    "B17": Row(
        "another protocol is recognised, its connection closed, its address logged once",
        _tests(DOORS, resp_limits="http_and_tls_get_no_answer_and_one_line_in_the_log")
        + _tests(
            DOORS,
            tls="plain_text_on_an_encrypted_port_ends_there_and_is_logged_once"
            " tls_on_a_plain_port_ends_there",
        )
        + _tests(
            HERE,
            resp="other_protocols_get_no_answer_from_the_native_door"
            " another_protocol_is_logged_once_for_each_address"
            " the_http_port_recognises_other_protocols",
            http2="other_protocols_on_the_grpc_port_end_the_connection",
        ),
    ),
    "B18": Row(
        "gRPC that cannot be read is refused, and the door stays open",
        _tests(
            DOORS,
            grpc_input="a_message_that_cannot_be_read_is_wrong_input"
            " a_value_out_of_its_limits_is_named",
            grpc_limits="metadata_beyond_16_kib_is_refused an_unknown_method_is_unimplemented",
        )
        + _tests(
            HERE,
            http2="metadata_is_taken_up_to_its_limit a_bomb_is_not_unpacked"
            " a_call_with_a_head_that_makes_no_sense_harms_nobody"
            " random_bytes_within_calls_harm_nobody"
            " a_path_that_is_not_text_does_not_close_the_door",
        ),
    ),
    "B19": Row(
        "floods of HTTP/2 frames harm nobody else",
        _tests(DOORS, grpc_limits="more_calls_than_one_connection_takes_at_once_are_all_answered")
        + _tests(
            HERE,
            http2="a_flood_harms_nobody answers_to_a_flood_that_nobody_reads_do_not_pile_up"
            " a_window_that_is_never_opened_keeps_nobody_waiting_but_its_client",
        ),
    ),
    "B20": Row(
        "an attempt ends once, under its own token; results and errors are bounded",
        _tests(
            DOORS,
            resp_input="a_token_that_is_not_the_claims_changes_nothing",
            resp_limits="a_long_error_text_is_kept_cut_and_not_refused",
            grpc="a_word_under_an_old_token_is_refused",
        )
        + _tests(
            "tests/contract/storage/",
            lifecycle="a_word_with_another_token_is_refused_and_changes_nothing"
            " a_repeated_end_is_answered_as_the_first_one_and_changes_nothing",
        )
        + _tests(
            HERE,
            claims="an_attempt_is_ended_once_by_whoever_holds_it_and_never_after_a_cancel"
            " a_token_that_cannot_be_one_is_refused"
            " results_too_large_to_keep_are_refused_and_the_attempt_goes_on",
        ),
    ),
    "B21": Row(
        "beats are bounded, and speak for nobody else",
        _tests(
            HERE,
            claims="a_beat_may_name_a_claim_twice_and_no_more_claims_than_one_can_hold"
            " a_beat_neither_extends_the_time_of_an_attempt_nor_speaks_for_others"
            " two_workers_with_one_name_lose_time_but_no_task_and_end_none_twice",
        ),
    ),
    "B22": Row(
        "claims out of range are refused with it",
        _tests(
            DOORS,
            resp_input="a_bad_word_is_named_and_changes_nothing numbers_of_a_claim_are_digits_too",
            grpc_input="a_value_out_of_its_limits_is_named",
        )
        + _tests(HERE, claims="claims_of_thousands_of_types_are_cut_at_the_limit"),
    ),
    "B23": Row(
        "each task of a batch has its own outcome; the whole is bounded",
        _tests(
            DOORS,
            rest="each_task_of_a_batch_has_its_own_outcome a_batch_with_one_id_twice_makes_one_task"
            " a_batch_takes_a_thousand_tasks",
            rest_input="a_batch_that_is_wrong_as_a_whole_is_refused"
            " an_entry_that_is_wrong_does_not_spoil_a_batch",
            grpc="each_task_of_a_batch_has_an_outcome_of_its_own a_batch_has_1_to_10000_tasks",
        ),
    ),
    "B24": Row(
        "an idempotency key makes one task, whatever happens",
        _tests(
            DOORS,
            idempotency="fifty_at_once_make_one_task"
            " other_content_under_the_same_key_is_a_conflict"
            " a_key_that_cannot_be_one_is_refused_by_name",
        )
        + _tests(
            HERE,
            values="a_bad_option_of_a_submit_is_refused_alike_at_every_door",
            cuts="a_submit_over_http_may_be_repeated_after_any_cut",
        ),
    ),
    "B25": Row(
        "only a good key, shown in one way, opens a door, and only as long as it is good",
        _tests(
            DOORS,
            keys="every_operation_asks_for_its_permission_on_every_door"
            " a_wrong_key_is_refused_in_one_way_however_wrong_it_is"
            " a_revoked_key_ends_what_goes_on_under_it",
            grpc_access="every_call_needs_a_key every_call_needs_its_permission"
            " what_waits_under_a_key_ends_with_it two_keys_are_no_key",
        )
        + _tests(
            HERE,
            strangers="whatever_is_not_the_key_opens_no_door a_key_is_shown_in_one_way"
            " a_key_in_the_url_is_not_read strangers_change_nothing"
            " no_key_that_was_shown_gets_into_the_log",
        ),
    ),
    "B28": Row(
        "an address counts as what it is, not as what it says",
        _tests(
            DOORS,
            rate_limit="only_a_trusted_proxy_may_speak_for_others"
            " forwarded_addresses_count_only_where_a_proxy_is_trusted",
            grpc_access="a_client_is_known_behind_a_proxy_that_is_trusted",
        )
        + _tests(
            "tests/unit/broker/",
            limits="a_million_callers_take_bounded_memory_and_the_busy_ones_are_kept"
            " one_network_of_64_bits_is_one_caller",
        )
        + _tests(HERE, strangers="addresses_that_are_only_claimed_do_not_get_around_the_limit"),
    ),
    "B30": Row(
        "names of a mebibyte are refused",
        _tests(HERE, values="a_name_of_a_mebibyte_is_refused_beside_others"),
    ),
    "F15": Row(
        "of a client that is killed the whole commands are done, the half one is forgotten",
        _tests(
            DOORS,
            resp_input="half_a_command_is_ignored_and_whole_ones_before_it_are_applied",
            resp_limits="half_a_command_is_forgotten_with_its_client",
            rest_http="a_client_that_goes_away_in_mid_request_leaves_nothing_behind",
        )
        + _tests(
            HERE,
            cuts="half_commands_of_clients_that_are_killed_are_forgotten"
            " the_memory_of_half_commands_is_free_again",
        ),
    ),
    "F34": Row(
        "a connection may end at any byte: done once or not at all, and safe to repeat",
        _tests(DOORS, resp_order="a_connection_may_break_at_any_byte_of_its_commands")
        + _tests(
            HERE,
            cuts="each_command_is_done_once_or_not_at_all_and_may_be_repeated"
            " a_claim_may_be_repeated_after_any_cut"
            " a_submit_over_http_may_be_repeated_after_any_cut",
        ),
    ),
    "F35": Row(
        "a worker that was cut off stops in time, and its late words are refused",
        _tests(
            "tests/unit/worker/",
            cut_off="a_worker_that_hears_nothing_stops_its_handlers_when_its_lease_is_over",
        )
        + _tests(
            HERE,
            claims="a_worker_that_was_cut_off_for_a_lease_cannot_speak_for_its_task_any_more",
        ),
    ),
    "F36": Row(
        "a claim whose answer is lost comes back, or is repeated by its id",
        _tests(
            DOORS,
            idempotency="a_claim_repeated_on_a_new_connection_gets_the_same_tasks",
            grpc="a_repeated_claim_gets_the_same_tasks",
        )
        + _tests(
            HERE,
            claims="a_claim_whose_answer_is_lost_comes_back_after_the_lease"
            " a_claim_whose_answer_is_lost_may_be_repeated_by_its_id",
            cuts="a_claim_may_be_repeated_after_any_cut",
        ),
    ),
    "F37": Row(
        "a beat never revives, extends or un-ends an attempt",
        _tests("tests/unit/broker/", upkeep="a_beat_tells_what_was_lost_and_never_revives_it")
        + _tests(
            HERE,
            claims="a_beat_on_another_connection_changes_nothing_about_the_end_of_an_attempt"
            " beats_in_the_same_moment_change_nothing_either"
            " a_beat_that_knows_nothing_of_a_claim_and_its_end_cannot_both_hold"
            " a_beat_neither_extends_the_time_of_an_attempt_nor_speaks_for_others",
        ),
    ),
    "F38": Row(
        "single bytes work; who hardly reads is dropped for a logged reason, who is slow is not",
        _tests(
            DOORS,
            resp_limits="single_bytes_work_too a_slow_client_that_goes_on_reading_stays",
            grpc_streams="a_follower_that_does_not_read_is_cut_off",
        )
        + _tests(
            HERE,
            slow="single_bytes_are_put_together"
            " a_client_that_hardly_reads_is_dropped_for_a_logged_reason"
            " a_slow_client_that_goes_on_reading_gets_the_whole_answer"
            " answers_that_nobody_reads_take_bounded_memory"
            " grpc_answers_that_nobody_reads_take_bounded_memory",
        ),
    ),
    "F39": Row(
        "who sends slowly is cut off at the deadline, who is idle costs little",
        _tests(
            DOORS,
            rest_http="a_request_that_does_not_arrive_in_time_is_cut_off"
            " a_drip_does_not_put_the_deadline_off",
            tls="a_handshake_that_takes_too_long_is_cut_off"
            " one_handshake_too_many_costs_the_oldest_its_place",
        )
        + _tests(
            HERE,
            slow="slow_senders_are_cut_off_at_the_deadline"
            " a_drip_of_bytes_does_not_put_the_deadline_off idle_connections_cost_little",
        ),
    ),
}

ELSEWHERE: Final = {
    "B26": "settings: tests/unit/settings, tests/contract/doors/test_tls_files.py",
    "B27": "handlers: tests/unit/worker",
    "B29": "the command line: tests/e2e/test_cli.py",
}
