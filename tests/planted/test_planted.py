"""Every planted bug comes back by its replay line on both backends, and no twin ever fails.

The lines were found on asyncio by `python -m tests.planted.campaign`, which searches for all of them anew.
"""

from __future__ import annotations

from typing import Final

import attrs
import pytest

from agentcore.testing import BACKENDS, Replay
from tests.planted._catalogue import BUGS, Bug
from tests.planted._search import replay, search, told

RUNS: Final = 100
LOCKED_OUT: Final = "DeadlockError: deadlock: every task waits, and nothing will wake one"

# Bug -> the line that brings it back, and what is wrong then.
KNOWN: Final = {
    "permit_lost_before_the_try": (
        "sim1:asyncio:fifo:block@1",
        "AssertionError: 1 of 2 permits came back",
    ),
    "permit_handed_to_one_who_left": (
        "sim1:asyncio:fifo:block@0",
        "AssertionError: 0 of 1 permit came back",
    ),
    "slot_returned_twice": (
        "sim1:asyncio:1.2>2",
        "AssertionError: the job ended 2 times: ['called off', 'completed']",
    ),
    "wake_up_lost": ("sim1:asyncio:2.4>1,1.3>2", LOCKED_OUT),
    "event_replaced_before_the_wait": ("sim1:asyncio:1.1>2", LOCKED_OUT),
    "told_before_it_listens": ("sim1:asyncio:1.0>2,1.0.1>3", LOCKED_OUT),
    "update_lost": (
        "sim1:asyncio:1.1>2",
        "AssertionError: 1 + 10 + 100 made 1",
    ),
    "opened_twice": (
        "sim1:asyncio:1.1>2",
        "AssertionError: 2 connections were opened, one was wanted",
    ),
    "two_probes": (
        "sim1:asyncio:1.1>2",
        "AssertionError: 2 probes passed a half-open breaker",
    ),
    "job_lost_at_close": (
        "sim1:asyncio:2.2>4",
        "AssertionError: accepted were [0, 1], done are [0]",
    ),
    "filled_on_the_lease_of_another": (
        "sim1:asyncio:1.0>3,3.5>1,2.1>3",
        "AssertionError: the cache says 'old', the store says 'new'",
    ),
    "shipped_and_refunded": (
        "sim1:asyncio:1.0>3,3.1>2,2.1>1,1.1>3",
        "AssertionError: the customer has both the goods and the money",
    ),
    "cancellation_swallowed": (
        "sim1:asyncio:fifo:block@0",
        "AssertionError: nothing has failed, yet the answers are {'one': 'fallback', 'two': 'fallback'}",
    ),
    "clean_up_not_shielded": (
        "sim1:asyncio:fifo:block@0",
        "AssertionError: of connections one and two are back: []",
    ),
    "undone_twice": (
        "sim1:asyncio:fifo:block@3",
        "AssertionError: 20 became 30 in the purse and 0 spent",
    ),
    "still_running_after_cancel": (
        "sim1:asyncio:fifo:block@3",
        "AssertionError: the job has ended and is still RUNNING",
    ),
    "cancellation_counted_as_failure": (
        "sim1:asyncio:fifo:block@3",
        "AssertionError: no call has failed, 1 were counted",
    ),
    "outcome_lost_in_finally": (
        "sim1:asyncio:fifo:block@7",
        "AssertionError: 10 was charged, 0 was booked",
    ),
    "item_left_at_close": (
        "sim1:asyncio:-",
        "AssertionError: of items 0, 1 and 2 arrived [0]",
    ),
    "item_lost_in_the_hand": (
        "sim1:asyncio:fifo:block@4",
        "AssertionError: sent [0], handled [], left []",
    ),
    "writer_counted_too_late": (
        "sim1:asyncio:-",
        "ClosedResourceError",
    ),
    "delivered_twice": (
        "sim1:asyncio:1.3>3,3.7>1",
        "AssertionError: published were [0, 1, 2], delivered [1, 2, 0, 1, 2]",
    ),
    "child_outlives_its_owner": ("sim1:asyncio:-", LOCKED_OUT),
    "second_error_hidden": (
        "sim1:asyncio:2.0>4",
        "AssertionError: raised were ['job 0 failed', 'job 1 failed'], seen ['job 0 failed']",
    ),
    "locks_in_opposite_order": ("sim1:asyncio:1.1>2", LOCKED_OUT),
    "agents_ask_each_other": ("sim1:asyncio:1.1>2", LOCKED_OUT),
    "too_polite_to_pass": (
        "sim1:asyncio:1.0>2,2.3>1",
        "AssertionError: of ann and bob passed ['bob']",
    ),
    "waits_under_the_lock": ("sim1:asyncio:1.1>2", LOCKED_OUT),
    "queue_time_not_limited": (
        "sim1:asyncio:1.0>2",
        "AssertionError: a call with a limit of 0.005 s took 60.0 s",
    ),
    "limit_begins_anew": (
        "sim1:asyncio:1.0>2",
        "AssertionError: a call with a limit of 0.005 s took 1.99",
    ),
    "deadline_between_two_looks": (
        "sim1:asyncio:1.0>2",
        "AssertionError: a wait of at most 0.5 s took 60.0 s",
    ),
    "stopped_in_the_wrong_order": (
        "sim1:asyncio:2.4>3",
        "AssertionError: written to a closed store: ['1 of 1']",
    ),
    "drain_misses_what_is_submitted": (
        "sim1:asyncio:1.2>2,1.3>2",
        "AssertionError: of the first and the second job were done: ['first']",
    ),
    "charged_twice": (
        "sim1:asyncio:fifo::bank.charge#1:raise_after(InjectedFault)",
        "AssertionError: 20 was charged for bread, which costs 10",
    ),
    "mark_left_by_failed_refresh": (
        "sim1:asyncio:fifo::source.fetch#1:raise(InjectedFault)",
        "AssertionError: nobody refreshes, and nobody ever will",
    ),
    "clean_up_skipped_after_failure": (
        "sim1:asyncio:fifo::line.hang_up#1:raise(InjectedFault)",
        "AssertionError: these have left, and their keys are still out: ['ann']",
    ),
}

each_bug = pytest.mark.parametrize("bug", BUGS, ids=lambda bug: f"{bug.theme}-{bug.name}")
each_backend = pytest.mark.parametrize("backend", BACKENDS)


def test_each_bug_has_a_line() -> None:
    """The table is complete, and its lines are short enough to be copied."""
    assert {bug.name for bug in BUGS} == set(KNOWN)
    assert all(len(line) < 100 for line, _ in KNOWN.values())


@each_bug
@each_backend
def test_line_brings_the_bug_back(bug: Bug, backend: str) -> None:
    """What was found on asyncio fails on trio too, in the same way."""
    line, what = KNOWN[bug.name]
    failure = told(replay(bug, attrs.evolve(Replay.parse(line), backend=backend)))
    assert failure.startswith(what)


@each_bug
@each_backend
def test_line_does_the_twin_no_harm(bug: Bug, backend: str) -> None:
    """It is the bug that fails, not the disturbance."""
    line, _ = KNOWN[bug.name]
    assert replay(bug, attrs.evolve(Replay.parse(line), backend=backend), correct=True) is None


@each_bug
@each_backend
def test_twin_never_fails(bug: Bug, backend: str) -> None:
    """In a hundred runs, each disturbed in another way, nothing is wrong with the twin."""
    outcome = search(bug, backend, correct=True, runs=RUNS)
    assert outcome.error is None, f"{told(outcome.error)}; replay: {outcome.replay}"
    assert outcome.runs >= RUNS
