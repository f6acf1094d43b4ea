"""The circuit, rule by rule: closed and open, by hand, and what it has seen."""

from __future__ import annotations

import math

import pytest

from agentcore import CircuitMode, CircuitState
from agentcore._rules.circuit import FREE, MAX_TYPES, OTHER_TYPES, Circuit, Permit
from tests.rules.circuit_model import Owner, names_of, picture
from tests.rules.circuits import (
    CLOSED,
    HALF_OPEN,
    HALF_OPENED,
    OPEN,
    A,
    B,
    C,
    ask,
    fail,
    make,
    opened,
    start,
    succeed,
    told,
)

# Closed.


def test_a_new_circuit_is_closed() -> None:
    """It has seen nothing, and nothing has changed."""
    circuit = make()
    assert (CLOSED, CircuitMode.NORMAL, ()) == (circuit.state, circuit.mode, circuit.permits)
    assert (-math.inf, 0.0, None, 0) == (circuit.until, circuit.retry_after(5.0), circuit.last_error, circuit.successes)
    assert () == circuit.take_changes()


def test_a_closed_circuit_lets_everybody_through() -> None:
    """Each gets the window of the era, which is there to be read without the lock as well."""
    circuit = make()
    assert circuit.closed is start(circuit, 0.0) is ask(circuit, 1.0, B) is circuit.token_of(2.0, C)


def test_failures_open_it() -> None:
    """The last of them says why, and until when."""
    circuit = make()
    fail(circuit, 3.0, text="first")
    assert (CLOSED, ()) == (circuit.state, circuit.take_changes())
    fail(circuit, 5.0, text="no route")
    assert OPEN is circuit.state
    assert [("circuit_opened", {"reason": "no route", "retry_after": 10.0, "reopenings": 0})] == [
        *circuit.take_changes()
    ]
    assert (None, 15.0, 10.0) == (circuit.closed, circuit.until, circuit.period)
    assert ("no route", 1, 1) == (circuit.last_error, circuit.counters.opened, circuit.counters.state_changes)


@pytest.mark.parametrize(("text", "reason"), [(None, "Boom"), ("", "Boom"), ("x" * 500, "x" * 200)])
def test_a_reason_has_a_bounded_length(text: str | None, reason: str) -> None:
    """Without a text, the type of the error is the reason."""
    circuit = make(failure_threshold=1)
    fail(circuit, 0.0, text=text)
    assert reason == circuit.last_error


def test_a_success_in_between_forgets_failures() -> None:
    """Whether it is counted in place, as most are, or noted."""
    circuit = make()
    fail(circuit, 0.0)
    start(circuit, 0.0).run += 1
    fail(circuit, 0.0)
    succeed(circuit, 0.0)
    fail(circuit, 0.0)
    assert (CLOSED, 2, 3) == (circuit.state, circuit.successes, circuit.counters.failures)


def test_slow_calls_open_it() -> None:
    """They came back well, and count as successes."""
    circuit = make()
    for _ in range(2):
        assert circuit.succeed(start(circuit, 0.0), 0.0, slow=True)
    assert (OPEN, "a slow call, one too many") == (circuit.state, circuit.last_error)
    assert (2, 2, 0) == (circuit.successes, circuit.counters.slow, circuit.counters.failures)


def test_a_share_of_the_latest_calls_opens_it() -> None:
    """The circuit asks the window that its configuration names."""
    circuit = make(window_calls=4, minimum_calls=4, failure_rate=0.5)
    for _ in range(3):
        fail(circuit, 0.0)
    assert CLOSED is circuit.state
    fail(circuit, 0.0)
    assert OPEN is circuit.state
    assert not circuit.tells_successes_apart
    assert make(window_ms=1000, failure_rate=0.5).tells_successes_apart


def test_what_says_nothing_changes_nothing() -> None:
    """A call that was cancelled in a closed circuit counts neither way."""
    circuit = make()
    fail(circuit, 0.0)
    before = picture(circuit)
    assert circuit.release(start(circuit, 0.0), 0.0)
    assert before == picture(circuit)


def test_outcomes_of_an_older_era_change_nothing() -> None:
    """A call of before the circuit opened comes back while it is open, half open, closed again."""
    circuit = make(failure_threshold=1, success_threshold=1)
    late = start(circuit, 0.0)
    fail(circuit, 0.0)

    def check() -> None:
        before = picture(circuit)
        assert [False] * 4 == [
            circuit.succeed(late, 20.0),
            circuit.succeed(late, 20.0, slow=True),
            circuit.fail(late, 20.0, "Boom"),
            circuit.release(late, 20.0),
        ]
        late.run += 1
        assert before == picture(circuit)

    check()
    probe = start(circuit, 10.0)
    check()
    assert circuit.succeed(probe, 10.0)
    check()
    assert CLOSED is circuit.state


def test_closed_again_means_forgotten() -> None:
    """What failed before does not count: the whole threshold is needed anew."""
    circuit = make(failure_threshold=2, success_threshold=1)
    fail(circuit, 0.0)
    fail(circuit, 0.0)
    succeed(circuit, 10.0)
    fail(circuit, 10.0)
    assert CLOSED is circuit.state
    fail(circuit, 10.0)
    assert OPEN is circuit.state


# Open.


def test_an_open_circuit_rejects_until_its_time_is_over() -> None:
    """It says how long that is. The state changes by the call that is let through, not by itself."""
    circuit = opened()
    assert [None, None] == [start(circuit, 0.0), ask(circuit, 9.75)]
    assert [10.0, 0.25, 0.0, 0.0] == [circuit.retry_after(now) for now in (0.0, 9.75, 10.0, 99.0)]
    assert (OPEN, ()) == (circuit.state, circuit.take_changes())
    assert isinstance(start(circuit, 10.0), Permit)
    assert (HALF_OPEN, (HALF_OPENED,)) == (circuit.state, circuit.take_changes())
    assert (-math.inf, None) == (circuit.until, circuit.closed)


def test_outcomes_without_a_permit_say_nothing_to_an_open_circuit() -> None:
    """There is nothing to count them with."""
    assert opened().token_of(5.0, A) is None
    assert opened().token_of(50.0, A) is None


@pytest.mark.parametrize(
    ("asked", "period"), [(None, 10.0), (0.0, 10.0), (-5.0, 10.0), (3.0, 10.0), (30.0, 30.0), (1e9, 100.0)]
)
def test_a_service_may_ask_for_more_time(asked: float | None, period: float) -> None:
    """Its error asks for at least so long, and never gets more than the longest period."""
    circuit = make(failure_threshold=1)
    fail(circuit, 0.0, retry_after=asked)
    assert period == circuit.period == circuit.retry_after(0.0)
    now = period
    fail(circuit, now, retry_after=asked)
    assert (period, now + period) == (circuit.period, circuit.until)


def periods(circuit: Circuit, number: int) -> list[float]:
    """Return the open periods if probe after probe fails, the first one included."""
    found = [circuit.period]
    for _ in range(number - 1):
        fail(circuit, circuit.until)
        found.append(circuit.period)
    return found


def test_the_period_grows_with_each_probe_that_fails() -> None:
    """By the factor, up to the longest; and starts anew when the circuit has closed."""
    circuit = opened(backoff=3, max_reset_timeout_ms=200_000, success_threshold=1)
    assert [10.0, 30.0, 90.0, 200.0, 200.0] == periods(circuit, 5)
    assert [1, 2, 3, 4] == [data["reopenings"] for name, data in circuit.take_changes() if name == "circuit_opened"]
    succeed(circuit, circuit.until)
    fail(circuit, 2000.0)
    assert [10.0, 30.0] == periods(circuit, 2)


@pytest.mark.parametrize("backoff", [1000, 1000.0, 1.5, 1.02])
def test_the_period_never_exceeds_the_longest(backoff: float) -> None:
    """However often the circuit opens and whatever the factor is, it gets there and stays there."""
    found = periods(opened(backoff=backoff), 400)
    assert sorted(found) == found
    assert (10.0, 100.0) == (found[0], found[-1])


@pytest.mark.parametrize(("dice", "period"), [(0.0, 7.5), (0.5, 10.0), (0.75, 11.25)])
def test_jitter_makes_periods_shorter_and_longer(dice: float, period: float) -> None:
    """By a share that is drawn each time."""
    assert period == opened(dice=dice, jitter=0.25).period


def test_jitter_never_exceeds_the_longest_period() -> None:
    """It is drawn first, and cut then."""
    assert opened(dice=0.99, jitter=0.5, max_reset_timeout_ms=12_000).period == 12.0


# Modes.


def test_forced_open_lets_nobody_through() -> None:
    """Nobody knows for how long, and nothing that is reported changes that."""
    circuit = make(failure_threshold=1)
    circuit.set_mode(CircuitMode.FORCED_OPEN)
    assert (("circuit_mode_changed", {"mode": CircuitMode.FORCED_OPEN}),) == circuit.take_changes()
    assert (OPEN, None, -math.inf) == (circuit.state, circuit.closed, circuit.until)
    assert [None, None, None] == [start(circuit, 1e9), ask(circuit, 1e9), circuit.retry_after(1e9)]
    token = circuit.token_of(1e9, A)
    if token is not None:
        circuit.fail(token, 1e9, "Boom")
    assert ((), 0) == (circuit.take_changes(), circuit.counters.opened)


def test_disabled_lets_everybody_through_and_counts_nothing() -> None:
    """Whoever begins under it is not counted later either."""
    circuit = make(failure_threshold=1)
    circuit.set_mode(CircuitMode.DISABLED)
    circuit.take_changes()
    assert FREE is start(circuit, 0.0) is ask(circuit, 0.0) is circuit.token_of(0.0, A)
    assert not circuit.fail(FREE, 0.0, "Boom")
    assert (CLOSED, 0.0, None) == (circuit.state, circuit.retry_after(0.0), circuit.closed)
    circuit.set_mode(CircuitMode.NORMAL)
    assert not circuit.fail(FREE, 0.0, "Boom")
    assert (CLOSED, 0, 0) == (circuit.state, circuit.counters.failures, circuit.counters.state_changes)


def test_metrics_only_counts_and_tells_but_opens_nothing() -> None:
    """After it would have opened it begins anew, so that it tells again when it would open again."""
    circuit = make()
    circuit.set_mode(CircuitMode.METRICS_ONLY)
    circuit.take_changes()
    late = start(circuit, 0.0)
    for _ in range(3):
        fail(circuit, 0.0, text="no route")
    assert (("circuit_would_open", {"reason": "no route"}),) == circuit.take_changes()
    assert (CLOSED, 0, 3) == (circuit.state, circuit.counters.opened, circuit.counters.failures)
    assert not circuit.fail(late, 0.0, "Boom")
    assert circuit.closed is start(circuit, 0.0)
    fail(circuit, 0.0)
    assert ["circuit_would_open"] == told(circuit)


@pytest.mark.parametrize("state", [CLOSED, OPEN, HALF_OPEN])
@pytest.mark.parametrize("mode", [CircuitMode.FORCED_OPEN, CircuitMode.DISABLED, CircuitMode.METRICS_ONLY])
def test_a_new_mode_begins_closed_and_with_nothing_counted(state: CircuitState, mode: CircuitMode) -> None:
    """Both ways, whatever the state was. The same mode again changes nothing."""
    circuit = make(success_threshold=1, backoff=2)
    fail(circuit, 0.0)
    if state is not CLOSED:
        fail(circuit, 0.0)
    token = start(circuit, 10.0) if state is HALF_OPEN else circuit.closed
    circuit.take_changes()
    circuit.set_mode(mode)
    circuit.set_mode(mode)
    assert ["circuit_mode_changed"] == told(circuit)
    assert ((), -math.inf) == (circuit.permits, circuit.until)
    circuit.set_mode(CircuitMode.NORMAL)
    assert (CLOSED, circuit.mode) == (circuit.state, CircuitMode.NORMAL)
    assert circuit.closed is not None
    if token is not None:
        assert not circuit.fail(token, 10.0, "Boom")
    fail(circuit, 20.0)
    assert CLOSED is circuit.state
    fail(circuit, 20.0)
    assert (OPEN, 30.0) == (circuit.state, circuit.until)


def test_isolation_is_counted() -> None:
    """The circuit is shut until the last one leaves; the first and the last are told."""
    circuit = make()
    circuit.isolate(+1)
    circuit.isolate(+1)
    assert (("circuit_isolated", {"isolated": True}),) == circuit.take_changes()
    assert (OPEN, None, None, None) == (circuit.state, circuit.closed, start(circuit, 0.0), circuit.retry_after(0.0))
    circuit.isolate(-1)
    assert (OPEN, (), None) == (circuit.state, circuit.take_changes(), circuit.closed)
    circuit.isolate(-1)
    assert (("circuit_isolated", {"isolated": False}),) == circuit.take_changes()
    assert (CLOSED, 0.0) == (circuit.state, circuit.retry_after(0.0))
    assert circuit.closed is start(circuit, 0.0)


def test_the_circuit_goes_on_underneath_an_isolation() -> None:
    """Calls under way count, time passes, leases end: afterwards it is as it would be without."""
    circuit = make(success_threshold=1)
    first, second = start(circuit, 0.0, A), start(circuit, 0.0, B)
    circuit.isolate(+1)
    assert [True, True] == [circuit.fail(one, 1.0, "Boom") for one in (first, second)]
    assert (-math.inf, 0) == (circuit.until, circuit.counters.state_changes - circuit.counters.opened)
    circuit.isolate(-1)
    assert (OPEN, 11.0, 9.0) == (circuit.state, circuit.until, circuit.retry_after(2.0))
    probe = start(circuit, 11.0, A)
    circuit.isolate(+1)
    assert OPEN is circuit.state
    assert circuit.succeed(probe, 12.0)
    assert (OPEN, None) == (circuit.state, circuit.closed)
    circuit.isolate(-1)
    assert CLOSED is circuit.state


@pytest.mark.parametrize("mode", CircuitMode)
def test_isolation_goes_before_every_mode(mode: CircuitMode) -> None:
    """Also before the one that lets everybody through."""
    circuit = make()
    circuit.set_mode(mode)
    circuit.isolate(+1)
    assert (OPEN, None, None) == (circuit.state, start(circuit, 0.0), circuit.closed)


@pytest.mark.parametrize("state", [CLOSED, OPEN, HALF_OPEN])
def test_a_reset_closes_by_hand(state: CircuitState) -> None:
    """What led to the state is forgotten, the backoff as well, and outcomes of before say nothing. Metrics stay."""
    circuit = make(success_threshold=1, backoff=2)
    fail(circuit, 0.0)
    if state is not CLOSED:
        fail(circuit, 0.0)
        fail(circuit, 10.0)
    token = start(circuit, 30.0) if state is HALF_OPEN else circuit.closed
    failures = circuit.counters.failures
    circuit.take_changes()
    circuit.reset()
    assert ([] if state is CLOSED else ["circuit_closed"]) == told(circuit)
    assert (CLOSED, -math.inf, ()) == (circuit.state, circuit.until, circuit.permits)
    assert (failures, None) == (circuit.counters.failures, circuit.last_error)
    if token is not None:
        assert not circuit.fail(token, 30.0, "Boom")
    fail(circuit, 30.0)
    assert CLOSED is circuit.state
    fail(circuit, 30.0)
    assert (OPEN, 40.0) == (circuit.state, circuit.until)


def test_a_reset_does_not_end_a_mode() -> None:
    """Nor an isolation."""
    circuit = make()
    circuit.set_mode(CircuitMode.FORCED_OPEN)
    circuit.reset()
    assert (OPEN, None, CircuitMode.FORCED_OPEN) == (circuit.state, circuit.closed, circuit.mode)


# What it has seen.


def test_successes_of_all_eras_are_counted() -> None:
    """Those that were counted in place, noted, of probes, and slow ones; not those that came too late."""
    circuit = make(failure_threshold=1, success_threshold=2)
    window = start(circuit, 0.0)
    window.run += 3
    succeed(circuit, 0.0)
    fail(circuit, 0.0)
    window.run += 100
    assert circuit.successes == 4
    succeed(circuit, 10.0)
    succeed(circuit, 10.0)
    start(circuit, 10.0).run += 5
    assert circuit.successes == 4 + 2 + 5
    circuit.reset()
    circuit.set_mode(CircuitMode.METRICS_ONLY)
    assert circuit.successes == 4 + 2 + 5


def test_failures_are_counted_by_type_and_by_kind() -> None:
    """Slow ones and those by time, of calls and of probes."""
    circuit = make(failure_threshold=3)
    for error_type, kinds in (("A", {"slow": True}), ("B", {"timeout": True}), ("A", {"slow": True, "timeout": True})):
        assert circuit.fail(start(circuit, 0.0), 0.0, error_type, **kinds)
    counters = circuit.counters
    assert ({"A": 2, "B": 1}, 3, 2, 2) == (
        counters.failures_by_type,
        counters.failures,
        counters.timeouts,
        counters.slow,
    )
    assert circuit.fail(start(circuit, 10.0), 12.0, "C", slow=True, timeout=True)
    assert (4, 3, 3) == (counters.failures, counters.timeouts, counters.slow)


def test_types_of_failures_are_bounded() -> None:
    """A service may invent them for ever: 32 are kept, all others are one, and long names are cut."""
    circuit = make(failure_threshold=10_000)
    for number in range(1000):
        assert circuit.fail(start(circuit, 0.0), 0.0, f"Error{number}")
    assert circuit.fail(start(circuit, 0.0), 0.0, "Error7")
    types = circuit.counters.failures_by_type
    assert (33, 2, 968) == (len(types), types["Error7"], types[OTHER_TYPES])
    assert (MAX_TYPES + 1, 1001) == (len(types), sum(types.values()))
    circuit.prune(0.0)
    assert circuit.fail(start(circuit, 0.0), 0.0, "E" * 500)
    assert {"E" * 80: 1} == circuit.counters.failures_by_type


def test_pruning_forgets_failures_by_type() -> None:
    """It says how many. Their sum stays, and so does what can still open the circuit."""
    circuit = make()
    fail(circuit, 0.0)
    assert [1, 0] == [circuit.prune(100.0), circuit.prune(100.0)]
    assert ({}, 1) == (circuit.counters.failures_by_type, circuit.counters.failures)
    fail(circuit, 0.0)
    assert OPEN is circuit.state


def test_pruning_counts_a_failure_once() -> None:
    """Though it is forgotten in two places: among the types, and in the window that it has left."""
    circuit = make(window_ms=1000, failure_threshold=10)
    for _ in range(3):
        fail(circuit, 0.0)
    assert circuit.prune(100.0) == 3


def test_changes_are_told_once_and_in_order() -> None:
    """Whoever holds the lock takes them along."""
    circuit = make(failure_threshold=1, success_threshold=1)
    fail(circuit, 0.0)
    succeed(circuit, 10.0)
    assert ["circuit_opened", "circuit_half_opened", "circuit_closed"] == told(circuit)
    assert [] == told(circuit)
    assert circuit.counters.state_changes == 3


def test_an_open_circuit_holds_nothing_of_the_calls_that_it_rejects() -> None:
    """However many there are: the same numbers, and no new object."""
    circuit = opened()
    before = picture(circuit)
    assert not any(start(circuit, 5.0, Owner("somebody")) for _ in range(1000))
    assert before == picture(circuit)
    assert all(name in before for name in names_of(Circuit))
