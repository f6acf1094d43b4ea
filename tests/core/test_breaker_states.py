"""What a circuit breaker shows of itself: states, metrics, modes."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import anyio
import attrs
import pytest

from agentcore import CircuitBreaker, CircuitMode, CircuitOpenError, CircuitState, ConfigurationError
from agentcore.testing import simulate
from tests.core.circuits import (
    LEASE,
    RESET,
    Clock,
    Down,
    at_once,
    fail,
    hang,
    heard_by,
    make,
    open_up,
    succeed,
    types_of,
)

pytestmark = pytest.mark.anyio


# ---------------------------------------------------------------- states


def test_state_is_a_pure_read() -> None:
    """Time alone changes nothing that can be seen; the first call does."""
    breaker = make(clock=(clock := Clock()))
    open_up(breaker)
    events = heard_by(breaker)
    clock.now += 100 * RESET
    for _ in range(3):
        assert (True, 0.0) == (breaker.is_open, breaker.retry_after)
    assert [] == events
    assert at_once(breaker.allow_request())
    assert (CircuitState.HALF_OPEN, True, False, False) == (
        breaker.state,
        breaker.is_half_open,
        breaker.is_open,
        breaker.is_closed,
    )


def test_retry_after() -> None:
    """Seconds until a call may be let through: exact, in each state, in the property and in the error."""
    breaker = make(success_threshold=2, clock=(clock := Clock()))
    assert 0.0 == breaker.retry_after
    open_up(breaker)
    assert RESET == breaker.retry_after
    clock.now += 4
    assert RESET - 4 == breaker.retry_after
    with pytest.raises(CircuitOpenError) as caught:
        breaker.call(lambda: 1)
    assert RESET - 4 == caught.value.retry_after
    clock.now += RESET - 4
    assert 0.0 == breaker.retry_after

    def within_the_first_probe() -> None:
        assert 0.0 == breaker.retry_after  # there is room for another
        clock.now += 1

    breaker.call(within_the_first_probe)
    assert 0.0 == breaker.retry_after

    def within_the_last_probe() -> None:
        clock.now += 1
        assert LEASE - 1 == breaker.retry_after

    breaker.call(within_the_last_probe)
    assert (True, 0.0) == (breaker.is_closed, breaker.retry_after)


def test_retry_after_of_a_hung_probe() -> None:
    """One that nobody has noticed yet: a call would be rejected now, so 0 would be a lie."""
    breaker = make(clock=(clock := Clock()))
    open_up(breaker)
    clock.now += RESET
    seen: list[float | None] = []

    def hang_on() -> None:
        clock.now += LEASE + 1
        seen.append(breaker.retry_after)

    breaker.call(hang_on)
    assert [RESET - 1] == seen


def test_retry_after_is_unknown_while_somebody_holds_it_open() -> None:
    breaker = make()
    with breaker.isolate():
        assert breaker.retry_after is None
    breaker.set_mode(CircuitMode.FORCED_OPEN)
    assert breaker.retry_after is None
    with pytest.raises(CircuitOpenError) as caught:
        breaker.call(lambda: 1)
    assert caught.value.retry_after is None
    assert (
        "circuit 'api' lets no call through: got one while it is open; wait until it is released, or do without"
    ) == str(caught.value)


def test_the_open_period_grows_up_to_its_cap() -> None:
    """With each probe that fails; a circuit that has closed begins anew."""
    breaker = make(backoff=2.0, max_reset_timeout_ms=30_000, clock=(clock := Clock()))
    periods = []
    for _ in range(2):
        open_up(breaker)
        for _ in range(4):
            periods.append(breaker.retry_after)
            clock.now += breaker.retry_after or 0
            with pytest.raises(Down):
                at_once(raising(breaker))
        clock.now += breaker.retry_after or 0
        breaker.call(lambda: 1)
        assert breaker.is_closed
    assert 2 * [10.0, 20.0, 30.0, 30.0] == periods


async def raising(breaker: CircuitBreaker) -> None:
    """Have a synchronous call fail."""

    def down() -> None:
        raise Down

    breaker.call(down)


@pytest.mark.parametrize(("asked", "period"), [(5.0, RESET), (25.0, 25.0), (1e9, 10 * RESET), ("soon", RESET)])
def test_a_service_may_ask_to_be_left_alone_for_longer(asked: Any, period: float) -> None:
    """By the `retry_after` of its error, up to the cap."""
    breaker = make()

    def busy() -> None:
        error = Down("busy")
        error.retry_after = asked  # type: ignore[attr-defined]
        raise error

    with pytest.raises(Down):
        breaker.call(busy)
    assert breaker.retry_after == pytest.approx(period, abs=0.5)


@simulate(runs=1)
async def test_jitter_is_drawn_from_the_source_of_chance(sim: Any) -> None:
    """Within its share, differing, and the same again with the same seed."""

    def periods() -> list[float]:
        drawn = []
        for _ in range(50):
            breaker = make(jitter=0.2)
            open_up(breaker)
            drawn.append(breaker.retry_after or 0.0)
        return drawn

    sim.random.seed(7)
    first = periods()
    sim.random.seed(7)
    assert first == periods()
    assert 8 <= min(first) < 9
    assert 11 < max(first) <= 12


# ---------------------------------------------------------------- metrics


@simulate(runs=1)
async def test_metrics() -> None:
    """Everything is counted, each under its name."""
    breaker = make(failure_threshold=3, slow_call_ms=2_000, excluded_exceptions=(KeyError,))

    async def slowly() -> None:
        await anyio.sleep(2)

    async def unknown() -> None:
        raise KeyError

    async def too_late() -> None:
        raise TimeoutError

    await breaker.execute(succeed)
    await breaker.execute(slowly)
    for function, error in ((unknown, KeyError), (fail, Down), (too_late, TimeoutError)):
        with pytest.raises(error):
            await breaker.execute(function)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await breaker.execute(hang)
    with anyio.move_on_after(1):
        await breaker.execute(hang)
    assert breaker.is_open
    with pytest.raises(CircuitOpenError):
        await breaker.execute(succeed)
    await anyio.sleep(RESET)
    await breaker.execute(succeed)
    metrics = breaker.metrics
    assert {"Down": 1, "TimeoutError": 1, "timeout": 1} == dict(metrics.failures_by_type)
    assert {
        "successes": 3,
        "failures": 3,
        "timeouts": 2,
        "slow": 1,
        "excluded": 1,
        "canceled": 1,
        "rejected": 1,
        "opened_count": 1,
        "state_changes": 3,
        "last_failure_at": datetime(2020, 1, 1, 0, 0, 3, tzinfo=UTC),
    } == attrs.asdict(metrics, filter=lambda field, value: field.name != "failures_by_type")


def test_metrics_are_a_snapshot() -> None:
    """Frozen, as of then, and nobody can write into the breaker through it."""
    breaker = make()
    before = breaker.metrics
    assert before.last_failure_at is None
    open_up(breaker)
    assert (0, {}) == (before.failures, dict(before.failures_by_type))
    after: Any = breaker.metrics
    with pytest.raises(TypeError):
        after.failures_by_type["Down"] = 9
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        after.failures = 9
    assert 1 == breaker.metrics.failures


def test_metrics_outlive_what_is_forgotten() -> None:
    """Reset, modes and eras do not touch them; `prune` drops the names alone."""
    breaker = make(failure_threshold=3, clock=Clock())
    for _ in range(2):
        breaker.call(lambda: 1)
        at_once(breaker.on_failure("Down"))
    breaker.reset()
    breaker.set_mode(CircuitMode.METRICS_ONLY)
    breaker.set_mode(CircuitMode.NORMAL)
    assert (2, 2, {"Down": 2}) == (
        breaker.metrics.successes,
        breaker.metrics.failures,
        dict(breaker.metrics.failures_by_type),
    )
    assert 2 == breaker.prune()
    assert (2, 2, {}) == (breaker.metrics.successes, breaker.metrics.failures, dict(breaker.metrics.failures_by_type))
    assert 0 == breaker.prune()


def test_prune_drops_what_has_left_the_window() -> None:
    breaker = make(failure_threshold=5, window_ms=10_000, clock=(clock := Clock()))
    for _ in range(3):
        at_once(breaker.on_failure("Down"))
    assert 3 == breaker.prune()
    clock.now += 11
    assert 3 == breaker.prune()
    for _ in range(4):
        at_once(breaker.on_failure("Down"))
    assert breaker.is_closed


# ---------------------------------------------------------------- modes


def modes(mode: CircuitMode) -> CircuitBreaker:
    breaker = make(failure_threshold=2)
    breaker.set_mode(mode)
    return breaker


async def test_forced_open() -> None:
    """No call is let through, until the mode is another."""
    breaker = modes(CircuitMode.FORCED_OPEN)
    assert (CircuitState.OPEN, CircuitMode.FORCED_OPEN) == (breaker.state, breaker.mode)
    assert not await breaker.allow_request()
    with pytest.raises(CircuitOpenError):
        await breaker.execute(succeed)
    assert 2 == breaker.metrics.rejected
    breaker.set_mode(CircuitMode.NORMAL)
    assert "well" == await breaker.execute(succeed)


async def test_forced_open_does_not_open() -> None:
    """It does not listen: what is reported opens nothing, and nobody is told that it had."""
    breaker = modes(CircuitMode.FORCED_OPEN)
    events = heard_by(breaker)
    for _ in range(5):
        await breaker.on_failure("Down")
    assert ([], 0, 0) == (events, breaker.metrics.opened_count, breaker.metrics.state_changes)


async def test_disabled() -> None:
    """Every call is let through, and nothing is counted."""
    breaker = modes(CircuitMode.DISABLED)
    before = breaker.metrics
    for _ in range(5):
        assert await breaker.allow_request()
        await breaker.on_failure("Down")
        await breaker.on_success()
        with pytest.raises(Down):
            await breaker.execute(fail)
        await breaker.execute(succeed)
    assert (before, CircuitState.CLOSED) == (breaker.metrics, breaker.state)


async def test_metrics_only() -> None:
    """Every call is let through and counted; what would have opened the circuit is told."""
    breaker = modes(CircuitMode.METRICS_ONLY)
    events = heard_by(breaker)
    for _ in range(4):
        with pytest.raises(Down):
            await breaker.execute(fail)
    assert (4, 0, CircuitState.CLOSED) == (breaker.metrics.failures, breaker.metrics.opened_count, breaker.state)
    would = ("circuit_would_open", {"circuit_name": "api", "reason": "Down: no answer"})
    assert [would, would] == [(event.event_type, dict(event.data)) for event in events]


@pytest.mark.parametrize("mode", list(CircuitMode))
def test_a_new_mode_begins_closed(mode: CircuitMode) -> None:
    """With empty windows: calls of before do not count in it."""
    breaker = make(failure_threshold=2)
    at_once(breaker.on_failure("Down"))
    breaker.set_mode(CircuitMode.DISABLED if mode is CircuitMode.NORMAL else mode)
    breaker.set_mode(CircuitMode.NORMAL)
    at_once(breaker.on_failure("Down"))
    assert breaker.is_closed
    at_once(breaker.on_failure("Down"))
    assert breaker.is_open


async def test_a_call_under_way_does_not_count_in_another_mode() -> None:
    breaker = make()

    async def change() -> None:
        breaker.set_mode(CircuitMode.METRICS_ONLY)
        breaker.set_mode(CircuitMode.NORMAL)
        raise Down

    with pytest.raises(Down):
        await breaker.execute(change)
    assert (True, 0) == (breaker.is_closed, breaker.metrics.failures)


def test_modes_by_name() -> None:
    breaker = make()
    mode: Any = "metrics_only"
    breaker.set_mode(mode)
    assert CircuitMode.METRICS_ONLY is breaker.mode


@pytest.mark.parametrize("mode", ["open", None, 3, []])
def test_unusable_modes(mode: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        make().set_mode(mode)
    assert (
        f"mode of circuit 'api' must be a CircuitMode: got {mode!r}; "
        "it is one of normal, forced_open, disabled, metrics_only"
    ) == str(caught.value)


async def test_isolate() -> None:
    """The last block to be left ends it, whatever happens in it."""
    breaker = make()
    with breaker.isolate():
        with pytest.raises(ValueError, match="out"), breaker.isolate():
            raise ValueError("out")
        assert breaker.is_open
        with pytest.raises(CircuitOpenError) as caught:
            await breaker.execute(succeed)
        assert ("open", None) == (caught.value.details["state"], caught.value.retry_after)
        assert not await breaker.allow_request()
    assert (True, 2) == (breaker.is_closed, breaker.metrics.rejected)
    assert "well" == await breaker.execute(succeed)


def test_isolation_leaves_the_circuit_as_it_would_be() -> None:
    """Time goes on below it, and calls under way count."""
    breaker = make(failure_threshold=2, clock=(clock := Clock()))

    def isolated() -> None:
        with breaker.isolate():
            at_once(breaker.on_failure("Down"))
        raise Down

    with pytest.raises(Down):
        breaker.call(isolated)
    assert breaker.is_open
    with breaker.isolate():
        clock.now += RESET
        assert not at_once(breaker.allow_request())
    breaker.call(lambda: 1)
    assert breaker.is_closed


@pytest.mark.parametrize("state", ["closed", "open", "half_open"])
def test_reset(state: str) -> None:
    """Closed in any case, with nothing counted; what was under way is of an older era."""
    breaker = make(failure_threshold=2, clock=(clock := Clock()))
    at_once(breaker.on_failure("Down"))
    if state != "closed":
        open_up(breaker)
    if state == "half_open":
        clock.now += RESET
    if state != "open":
        assert at_once(breaker.allow_request())
    events = heard_by(breaker)
    breaker.reset()
    assert (True, 0.0) == (breaker.is_closed, breaker.retry_after)
    assert ([] if state == "closed" else ["closed"]) == types_of(events)
    if state != "open":
        at_once(breaker.on_failure("Older"))
    at_once(breaker.on_failure("Down"))
    assert breaker.is_closed
    at_once(breaker.on_failure("Down"))
    assert breaker.is_open
