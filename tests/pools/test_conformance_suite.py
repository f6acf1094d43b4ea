"""The suite for executors finds what it should: each of many executors with one fault fails a test that says so."""

import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FILE = str(HERE / "faulty_executors.py")
# A test that each must fail.
FOUND = {
    "TakesKeywords": "test_submit_passes_everything_to_the_function",
    "NamesTheFunction": "test_submit_passes_everything_to_the_function",
    "OneWorker": "test_jobs_run_at_the_same_time",
    "TooManyWorkers": "test_jobs_run_at_the_same_time",
    "NoWorkers": "test_there_must_be_a_worker",
    "LastInFirstOut": "test_queued_job_can_be_cancelled",
    "BlocksInSubmit": "test_submit_does_not_wait_for_a_worker",
    "DiesOfSystemExit": "test_job_that_leaves_by_system_exit_has_that_as_its_error",
    "LosesErrors": "test_result_raises_what_the_function_raised",
    "RunsWhatIsCancelled": "test_queued_job_can_be_cancelled",
    "NeverTellsOfCancellation": "test_wait_counts_a_cancelled_future_as_done",
    "NeverRuns": "test_running_job",
    "CancelsWhatRuns": "test_running_job",
    "CancelsNothing": "test_queued_job_can_be_cancelled",
    "ReversesCallbacks": "test_callbacks_are_called_in_the_order_in_which_they_were_added",
    "StopsAtACallback": "test_error_of_a_callback_is_logged_and_ignored",
    "CallsBackLater": "test_callback_of_a_done_future_is_called_at_once",
    "IgnoresTimeouts": "test_map_waits_no_longer_than_the_timeout",
    "MapsLazily": "test_map_begins_before_a_result_is_asked_for",
    "MapsAtOnce": "test_map_raises_an_error_where_its_item_is",
    "MapsToLists": "test_map_returns_an_iterator",
    "MapsStrictly": "test_map_takes_several_iterables",
    "MapsOutOfOrder": "test_map_gives_results_in_the_order_of_the_items",
    "TimesEachItem": "test_timeout_of_map_is_counted_from_the_call",
    "ChecksChunks": "test_size_of_chunks_has_no_effect_on_threads",
    "DoesNotWait": "test_shutdown_waits_for_all_jobs",
    "AlwaysWaits": "test_shutdown_without_waiting_lets_the_jobs_end",
    "AlwaysCancels": "test_shutdown_waits_for_all_jobs",
    "NeverCancels": "test_shutdown_can_cancel_what_has_not_begun",
    "DropsJobs": "test_shutdown_can_cancel_without_waiting",
    "ShutsDownOnce": "test_shutdown_may_be_called_again",
    "StaysOpen": "test_nothing_can_be_submitted_after_a_shutdown",
    "SaysSomethingElse": "test_nothing_can_be_submitted_after_a_shutdown",
    "TakesPositions": "test_options_of_shutdown_have_their_names",
    "EntersAnother": "test_block_shuts_down_and_waits",
    "ForgetsTheBlock": "test_block_that_is_left_by_an_error_waits_too",
    "InitializesOnce": "test_initializer_is_called_in_each_worker",
    "InitializesNothing": "test_initializer_is_called_in_each_worker",
    "IgnoresItsInitializer": "test_initializer_that_raises_breaks_the_executor",
    "RunsInPlace": "test_jobs_run_in_other_threads_of_this_process",
}


def failures(*chosen: str) -> dict[str, set[str]]:
    """Return which tests the executors failed, by class."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rfE", "--tb=no", "-p", "no:cacheprovider", "-W", "default", *chosen],
        cwd=HERE.parent.parent,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    found: dict[str, set[str]] = defaultdict(set)
    for cls, name in re.findall(r"^(?:FAILED|ERROR) \S+::Test(\w+)::(\w+)", done.stdout, re.MULTILINE):
        found[cls].add(name)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return found


@pytest.mark.thorough
def test_each_fault_is_found() -> None:
    """By the test that is about it."""
    found = failures(*(f"{FILE}::Test{fault}::{test}" for fault, test in FOUND.items()))
    assert [fault for fault, test in FOUND.items() if found.get(fault) != {test}] == []


@pytest.mark.thorough
def test_nothing_is_found_where_there_is_no_fault() -> None:
    """But for what ends programs, which a plain executor does not know of."""
    assert failures(f"{FILE}::TestNone", "-k", "not (program or handlers or interpreter)") == {}


@pytest.mark.thorough
def test_programs_that_lose_jobs_are_found() -> None:
    """Those whose threads are daemons."""
    assert failures(f"{FILE}::TestDaemons", "-k", "forgets or handlers") == {
        "Daemons": {
            "test_program_that_forgets_its_executor_runs_its_jobs",
            "test_exit_handlers_are_called_when_the_jobs_are_done",
        }
    }
