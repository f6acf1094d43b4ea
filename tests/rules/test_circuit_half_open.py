"""The circuit, rule by rule: half open, and what time does to it."""

from __future__ import annotations

import gc
import math
from typing import Any

import pytest

from agentcore import CircuitMode
from agentcore._rules.circuit import FREE, LOOSE, Circuit
from tests.rules.circuit_model import Owner, picture
from tests.rules.circuits import (
    CLOSED,
    CLOSED_AGAIN,
    HALF_OPEN,
    HALF_OPENED,
    OPEN,
    A,
    B,
    C,
    D,
    ask,
    make,
    opened,
    start,
    succeed,
    told,
)

# Half open: permits.


def test_no_more_probes_run_than_successes_are_needed() -> None:
    """Others are rejected, and told how long the first of the probes may take."""
    circuit = opened(success_threshold=2)
    first, second = start(circuit, 10.0, A), start(circuit, 11.0, B)
    assert (A, 14.0, True) == (first.owner(), first.expires, first.guarded)
    assert [None, None] == [start(circuit, 11.0, C), ask(circuit, 11.0, D)]
    assert (first, second) == circuit.permits
    assert circuit.retry_after(11.0) == 3.0
    assert circuit.succeed(first, 12.0)
    assert start(circuit, 12.0, C) is None  # one more success is needed, and that probe runs
    assert circuit.release(second, 12.0)
    assert circuit.retry_after(12.0) == 0.0
    assert start(circuit, 12.0, C) is not None


def test_ten_thousand_callers_at_the_moment_of_reset() -> None:
    """Three get through."""
    circuit = opened(success_threshold=3)
    callers = [Owner(str(number)) for number in range(10_000)]
    permits = [start(circuit, 10.0, caller) for caller in callers]
    assert [True] * 3 + [False] * 9997 == [permit is not None for permit in permits]


def test_successes_of_probes_close_it() -> None:
    """As many as are needed. The circuit is as new then."""
    circuit = opened(success_threshold=2)
    succeed(circuit, 10.0, A)
    assert HALF_OPEN is circuit.state
    circuit.take_changes()
    succeed(circuit, 11.0, A)
    assert (CLOSED, (CLOSED_AGAIN,), ()) == (circuit.state, circuit.take_changes(), circuit.permits)
    assert circuit.closed is start(circuit, 11.0, B)
    assert (2, 0.0) == (circuit.successes, circuit.retry_after(11.0))


@pytest.mark.parametrize(
    ("ask_it", "answer"),
    [
        (lambda circuit: circuit.retry_after(12.0), 0.0),
        (lambda circuit: circuit.due_in(12.0), math.inf),
        (lambda circuit: start(circuit, 12.0) is circuit.closed is not None, True),
        (lambda circuit: circuit.token_of(12.0, A) is circuit.closed is not None, True),
    ],
    ids=["retry_after", "due_in", "admit", "token_of"],
)
def test_the_last_success_closes_it_though_its_caller_was_interrupted(ask_it: Any, answer: object) -> None:
    """By a signal, say, at the worst of all moments: whoever comes next closes the circuit."""

    class Interrupted(Circuit):
        """Raises what a signal handler raises."""

        __slots__ = ()

        def reset(self) -> None:
            raise KeyboardInterrupt

    circuit = opened(success_threshold=1)
    permit = start(circuit, 10.0)
    circuit.take_changes()
    circuit.__class__ = Interrupted
    with pytest.raises(KeyboardInterrupt):
        circuit.succeed(permit, 11.0)
    circuit.__class__ = Circuit
    assert HALF_OPEN is circuit.state
    assert answer == ask_it(circuit)
    assert (CLOSED, (CLOSED_AGAIN,)) == (circuit.state, circuit.take_changes())


def test_a_probe_that_fails_opens_it_again() -> None:
    """The others of that era have nothing to say any more, and successes of it do not count in the next one."""
    circuit = opened(success_threshold=3)
    succeed(circuit, 10.0)
    first, second = start(circuit, 10.0, A), start(circuit, 10.0, B)
    circuit.take_changes()
    assert circuit.fail(first, 12.0, "Boom", text="still down")
    assert [("circuit_opened", {"reason": "still down", "retry_after": 10.0, "reopenings": 1})] == [
        *circuit.take_changes()
    ]
    before = picture(circuit)
    assert not circuit.succeed(second, 12.0)
    assert not circuit.fail(second, 12.0, "Boom")
    assert before == picture(circuit)
    permits = [start(circuit, 22.0, owner) for owner in (A, B, C)]
    assert not circuit.succeed(second, 22.0)
    assert [True, True] == [circuit.succeed(permit, 22.0) for permit in permits[:2]]
    assert HALF_OPEN is circuit.state
    assert circuit.succeed(permits[2], 22.0)
    assert CLOSED is circuit.state


def test_a_slow_probe_has_failed() -> None:
    """Though it came back well, and is counted as that."""
    circuit = opened(success_threshold=1)
    assert circuit.succeed(start(circuit, 10.0), 12.0, slow=True)
    assert (OPEN, "a slow probe", 22.0) == (circuit.state, circuit.last_error, circuit.until)
    assert (1, 1, 1) == (circuit.successes, circuit.counters.slow, circuit.counters.failures)


def test_a_probe_that_says_nothing_gives_its_permit_back() -> None:
    """Cancelled or interrupted: the next one may try."""
    circuit = opened(success_threshold=1)
    permit = start(circuit, 10.0, A)
    assert circuit.release(permit, 11.0)
    assert (HALF_OPEN, ()) == (circuit.state, circuit.permits)
    assert not circuit.release(permit, 11.0)
    assert not circuit.succeed(permit, 11.0)
    assert start(circuit, 11.0, B) is not None


# Half open: leases.


def hung(circuit: Circuit) -> tuple[Any, ...]:
    """Return what is to be seen of a probe that has outlived its lease at 14 seconds."""
    counters = circuit.counters
    return circuit.state, circuit._until, circuit.last_error, counters.timeouts, dict(counters.failures_by_type)


HUNG = (OPEN, 24.0, "a probe took longer than 4 s", 1, {"Boom": 1, "CircuitTimeoutError": 1})


def test_a_probe_that_outlives_its_lease_has_failed() -> None:
    """Whoever looks next finds that out, and the circuit has been open since the lease ended."""
    for look in (
        lambda circuit: start(circuit, 20.0, B),
        lambda circuit: ask(circuit, 14.0, B),
        lambda circuit: circuit.token_of(20.0, B),
        lambda circuit: circuit.due_in(20.0),
    ):
        circuit = opened(success_threshold=2)
        late = start(circuit, 10.0, A)
        look(circuit)
        assert HUNG == hung(circuit)
        assert [HALF_OPENED[0], "circuit_opened"] == told(circuit)
        assert not circuit.succeed(late, 20.0)


def test_a_probe_that_is_late_has_failed_though_it_comes_back() -> None:
    """The call itself is the first to find out; what it says counts as that it took too long."""
    circuit = opened()
    assert circuit.succeed(start(circuit, 10.0), 14.0)
    assert HUNG == hung(circuit)
    circuit = opened()
    assert not circuit.release(start(circuit, 10.0), 15.0)
    assert HUNG == hung(circuit)
    circuit = opened()
    assert circuit.succeed(start(circuit, 10.0), 13.75)
    assert (HALF_OPEN, 1) == (circuit.state, circuit.successes)


def test_a_probe_that_fails_late_opens_the_circuit_from_the_end_of_its_lease() -> None:
    """Guarded or by hand: who comes late does not keep it open for longer. The error is his own."""
    for begin in (start, ask):
        circuit = opened()
        assert circuit.fail(begin(circuit, 10.0), 20.0, "Late", timeout=True)
        assert (24.0, "Late", 1) == (circuit.until, circuit.last_error, circuit.counters.timeouts)


def test_a_period_that_is_dated_back_may_be_over_at_once() -> None:
    """The circuit has opened and is half open again by one call, and both are told."""
    circuit = opened(success_threshold=1)
    start(circuit, 10.0, A)
    circuit.take_changes()
    assert start(circuit, 24.0, B) is not None
    assert ["circuit_opened", "circuit_half_opened"] == told(circuit)
    assert (2, 4) == (circuit.counters.opened, circuit.counters.state_changes)


def test_of_several_that_hang_the_first_counts() -> None:
    """The era ended with that one."""
    circuit = opened(success_threshold=2)
    start(circuit, 10.0, A)
    start(circuit, 12.0, B)
    assert start(circuit, 23.75, C) is None
    assert (24.0, 1) == (circuit.until, circuit.counters.timeouts)


def test_a_permit_that_was_taken_by_hand_and_forgotten_is_given_to_another() -> None:
    """Nobody knows whether that call was ever made: it has not failed. What comes of it later is not counted."""
    circuit = opened(success_threshold=1)
    abandoned = ask(circuit, 10.0, A)
    assert [None, 0.25] == [start(circuit, 13.75, B), circuit.retry_after(13.75)]
    permit = start(circuit, 14.0, B)
    assert (permit,) == circuit.permits
    before = picture(circuit)
    assert not circuit.fail(abandoned, 15.0, "Boom")
    assert not circuit.succeed(abandoned, 15.0)
    assert before == picture(circuit)


def test_the_first_that_hangs_may_have_begun_last() -> None:
    """A lease that was renewed by a call ends after one that was given out later."""
    circuit = opened(success_threshold=2)
    ask(circuit, 10.0, A)
    start(circuit, 11.0, B)
    start(circuit, 12.0, A)
    assert start(circuit, 16.0, C) is None
    assert circuit.until == 25.0


def test_only_what_was_forgotten_is_given_to_another() -> None:
    """Probes that run keep their permits."""
    circuit = opened(success_threshold=2)
    ask(circuit, 10.0, A)
    running = start(circuit, 11.0, B)
    permit = start(circuit, 14.0, C)
    assert (running, permit) == circuit.permits
    assert start(circuit, 14.0, D) is None


def test_a_permit_that_nobody_has_missed_counts_late() -> None:
    """As long as it has not been given to another, it is its owner's."""
    circuit = opened(success_threshold=1)
    assert circuit.succeed(ask(circuit, 10.0, A), 99.0)
    assert CLOSED is circuit.state


def test_asking_by_hand_again_gives_the_same_permit_with_the_same_lease() -> None:
    """Or a loop that asks and never calls would hold it for ever."""
    circuit = opened(success_threshold=2)
    permit = ask(circuit, 10.0, A)
    assert permit is ask(circuit, 13.0, A)
    assert (14.0, 1) == (permit.expires, len(circuit.permits))
    assert permit is not ask(circuit, 14.0, A)


def test_the_permit_of_an_owner_who_is_gone_ends_with_its_lease() -> None:
    """It cannot be taken for somebody else's, whatever lies at that place of the memory by then."""
    circuit = opened(success_threshold=1)
    owner = Owner("gone")
    permit = ask(circuit, 10.0, owner)
    del owner
    gc.collect()
    assert permit.owner() is None
    assert start(circuit, 13.0, B) is None
    assert start(circuit, 14.0, B) is not None


def test_a_probe_whose_owner_is_gone_has_not_failed() -> None:
    """Nothing will ever be known of it: somebody else has closed it, an event loop that has ended for instance."""
    circuit = opened(success_threshold=1)
    owner = Owner("gone")
    start(circuit, 10.0, owner)
    del owner
    gc.collect()
    assert [None, 0.25] == [start(circuit, 13.75, B), circuit.retry_after(13.75)]
    assert start(circuit, 14.0, B) is not None
    assert (HALF_OPEN, 1) == (circuit.state, circuit.counters.failures)


# Half open: nested calls, and outcomes by hand.


def test_a_call_within_a_probe_is_a_part_of_it() -> None:
    """It needs no permit, and what comes of it says nothing: the outcome of the probe does."""
    circuit = opened(success_threshold=1)
    probe = start(circuit, 10.0, A)
    assert FREE is start(circuit, 11.0, A) is ask(circuit, 12.0, A) is circuit.token_of(12.0, A)
    assert start(circuit, 11.0, B) is None
    before = picture(circuit)
    assert [False] * 4 == [
        circuit.succeed(FREE, 12.0),
        circuit.succeed(FREE, 12.0, slow=True),
        circuit.fail(FREE, 12.0, "Boom"),
        circuit.release(FREE, 12.0),
    ]
    assert before == picture(circuit)
    assert circuit.succeed(probe, 13.0)
    assert CLOSED is circuit.state


def test_a_call_rides_on_a_live_lease_only() -> None:
    """A probe that has hung carries nobody: the circuit is open."""
    circuit = opened(success_threshold=1)
    start(circuit, 10.0, A)
    assert start(circuit, 14.0, A) is None


def test_a_call_takes_over_the_permit_that_was_asked_for_by_hand() -> None:
    """`allow_request`, then `execute` by the same task: one permit, and the lease begins with the call."""
    circuit = opened(success_threshold=1)
    permit = ask(circuit, 10.0, A)
    assert permit is start(circuit, 12.0, A)
    assert (True, 16.0, (permit,)) == (permit.guarded, permit.expires, circuit.permits)
    assert circuit.token_of(13.0, A) is FREE
    assert start(circuit, 13.0, A) is FREE
    assert permit.expires == 16.0
    assert circuit.succeed(permit, 15.0)
    assert CLOSED is circuit.state


def test_a_report_by_hand_counts_with_the_permit_of_the_task() -> None:
    """Also if the task has forgotten that it has one."""
    circuit = opened(success_threshold=1)
    permit = ask(circuit, 10.0, A)
    assert permit is circuit.token_of(11.0, A)
    assert circuit.token_of(11.0, B) is LOOSE


def test_a_report_without_a_permit_counts_in_the_era_of_the_moment() -> None:
    """So the circuit can be driven by `on_success` and `on_failure` alone, once a call has made it half open."""
    circuit = opened(success_threshold=2)
    permit = start(circuit, 10.0, A)
    assert circuit.succeed(LOOSE, 11.0)
    assert (HALF_OPEN, (permit,)) == (circuit.state, circuit.permits)
    before = picture(circuit)
    assert circuit.release(LOOSE, 11.0)
    assert before == picture(circuit) | {"_reserved_until": before["_reserved_until"]}
    assert circuit.succeed(LOOSE, 11.0)
    assert CLOSED is circuit.state
    assert not circuit.succeed(permit, 11.0)
    circuit = opened()
    start(circuit, 10.0, A)
    assert circuit.fail(LOOSE, 12.0, "Boom")
    assert (OPEN, 22.0) == (circuit.state, circuit.until)
    for state in (OPEN, CLOSED):
        assert not circuit.fail(LOOSE, 12.0, "Boom"), state
        assert not circuit.succeed(LOOSE, 12.0), state
        circuit.reset()


# The clock.


def test_a_clock_that_is_set_back_delays_nobody_for_longer_than_a_period() -> None:
    """From the first call that sees it; that one learns how long, and so does whoever reads without the lock."""
    circuit = opened(at=1000.0)
    assert circuit.retry_after(500.0) == 10.0
    assert start(circuit, 500.0) is None
    assert (10.0, 510.0) == (circuit.retry_after(500.0), circuit.until)
    assert start(circuit, 509.75) is None
    assert start(circuit, 510.0) is not None


def test_a_clock_that_is_set_back_is_seen_by_who_asks_how_long_to_wait() -> None:
    """He comes back after that, and is let through."""
    circuit = opened(at=1000.0)
    seconds = circuit.retry_after(500.0)
    assert seconds == 10.0
    assert start(circuit, 500.0 + seconds) is not None


def test_a_clock_that_is_set_back_makes_no_lease_longer() -> None:
    """A probe then has its time once more, and not a second longer."""
    circuit = opened(at=1000.0, success_threshold=1)
    permit = start(circuit, 1010.0, A)
    assert start(circuit, 500.0, B) is None
    assert (504.0, 4.0) == (permit.expires, circuit.retry_after(500.0))
    assert start(circuit, 503.75, B) is None
    assert start(circuit, 504.0, B) is None
    assert (OPEN, 514.0) == (circuit.state, circuit.until)


def test_a_clock_that_is_set_forward_ends_what_was_due() -> None:
    """That is what it looks like."""
    assert start(opened(), 1e9) is not None


# What is said about time is true.


def test_who_waits_for_as_long_as_he_is_told_is_let_through() -> None:
    """Also if a probe has hung meanwhile and nobody has noticed: it is 0 if a call would be let through, and only then."""
    circuit = opened(success_threshold=2)
    start(circuit, 10.0, A)
    assert circuit.retry_after(13.75) == 0.0
    assert circuit.retry_after(14.0) == 10.0
    assert circuit.retry_after(20.0) == 4.0
    assert start(circuit, 20.0, B) is None
    assert start(circuit, 24.0, B) is not None


# Probers.


def test_a_prober_goes_first() -> None:
    """When the circuit is due, callers are rejected for as long as a probe may take; the prober is let through."""
    circuit = opened(success_threshold=2)
    circuit.probers = 1
    assert start(circuit, 9.75, A, active=True) is None
    assert [None, None] == [start(circuit, now, B) for now in (10.0, 13.75)]
    assert OPEN is circuit.state
    assert start(circuit, 11.0, A, active=True) is not None
    assert HALF_OPEN is circuit.state
    assert start(circuit, 11.0, B) is None
    assert circuit.retry_after(11.0) == 4.0


def test_callers_are_told_that_a_prober_goes_first() -> None:
    """They would come in vain when the period ends."""
    circuit = opened()
    circuit.probers = 1
    assert [14.0, 4.0, 0.25, 0.0] == [circuit.retry_after(now) for now in (0.0, 10.0, 13.75, 14.0)]


def test_a_prober_closes_the_circuit_alone() -> None:
    """After a success the next moments are his as well."""
    circuit = opened(success_threshold=2)
    circuit.probers = 1
    assert circuit.succeed(start(circuit, 10.0, A, active=True), 12.0)
    assert [None, None] == [start(circuit, now, B) for now in (12.0, 15.75)]
    assert circuit.retry_after(12.0) == 4.0
    assert circuit.succeed(start(circuit, 13.0, A, active=True), 13.0)
    assert CLOSED is circuit.state


def test_a_prober_that_does_not_come_is_not_waited_for() -> None:
    """After the time of a probe, callers are as good: when the circuit is due, and after a success."""
    circuit = opened(success_threshold=2)
    circuit.probers = 1
    assert start(circuit, 13.75, B) is None
    permit = start(circuit, 14.0, B)
    assert permit is not None
    assert circuit.succeed(permit, 15.0)
    assert start(circuit, 18.75, B) is None
    assert start(circuit, 19.0, B) is not None


def test_without_a_prober_nothing_is_reserved_any_more() -> None:
    """It was cancelled: the next caller goes ahead."""
    circuit = opened()
    circuit.probers = 1
    assert start(circuit, 10.0, B) is None
    circuit.probers = 0
    assert start(circuit, 10.0, B) is not None


def test_a_prober_that_hangs_does_not_keep_callers_out() -> None:
    """Whatever has happened, a call is let through within the longest period and one lease."""
    circuit = opened(max_reset_timeout_ms=10_000)
    circuit.probers = 1
    start(circuit, 10.0, A, active=True)
    assert start(circuit, 10.0 + 10.0 + 4.0, B) is not None


def test_a_prober_that_learns_nothing_does_not_keep_callers_out() -> None:
    """Its probe always ends with an error that is excluded, say: callers get their turn all the same."""
    circuit = opened(reset_timeout_ms=4000)
    circuit.probers = 1
    for now in (4.0, 8.0, 12.0):  # it tries again after each open period, which is as long as a lease here
        assert circuit.release(start(circuit, now, A, active=True), now + 0.5)
        permit = start(circuit, now + 3.75, B)
        assert permit is not None
        assert circuit.release(permit, now + 3.75)


def test_a_prober_is_told_when_it_is_due() -> None:
    """At the end of the period, at once while probes are wanted, when a lease ends if all permits are out; else never."""
    circuit = make(success_threshold=1)
    assert circuit.due_in(0.0) == math.inf
    circuit = opened(success_threshold=1)
    assert [10.0, 2.5, 0.0, 0.0] == [circuit.due_in(now) for now in (0.0, 7.5, 10.0, 99.0)]
    permit = start(circuit, 99.0, A)
    assert [4.0, 0.5] == [circuit.due_in(now) for now in (99.0, 102.5)]
    circuit.release(permit, 102.5)
    assert circuit.due_in(102.5) == 0.0
    circuit.isolate(+1)
    assert circuit.due_in(102.5) == math.inf
    circuit.isolate(-1)
    for mode in (CircuitMode.FORCED_OPEN, CircuitMode.DISABLED, CircuitMode.METRICS_ONLY):
        circuit.set_mode(mode)
        assert circuit.due_in(102.5) == math.inf


def test_a_clock_that_is_set_back_reserves_nothing_for_longer() -> None:
    """Neither for the prober."""
    circuit = opened(at=1000.0)
    circuit.probers = 1
    assert start(circuit, 500.0, B) is None
    assert start(circuit, 513.75, B) is None
    assert start(circuit, 514.0, B) is not None
