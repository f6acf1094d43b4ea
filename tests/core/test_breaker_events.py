"""What a circuit breaker tells of, and to whom."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import anyio
import pytest

from agentcore import (
    CircuitBreaker,
    CircuitMode,
    CircuitOpenError,
    CircuitState,
    CircuitTimeoutError,
    ConfigurationError,
    Event,
)
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
    permits_of,
    succeed,
    types_of,
)

pytestmark = pytest.mark.anyio


@simulate(runs=1)
async def test_events() -> None:
    """One for each change, after it, with what is known of it."""
    breaker = make(success_threshold=2, backoff=3.0)
    events = heard_by(breaker)
    states: list[CircuitState] = []
    breaker.subscribe(lambda event: states.append(breaker.state))
    with pytest.raises(Down):
        await breaker.execute(fail)
    await anyio.sleep(RESET)
    with pytest.raises(CircuitTimeoutError):
        await breaker.execute(hang)
    await anyio.sleep(3 * RESET)
    await breaker.execute(succeed)
    await breaker.execute(succeed)
    named = {"circuit_name": "api"}
    cut = "a probe took longer than 4 s"
    assert [
        ("circuit_opened", {**named, "reason": "Down: no answer", "retry_after": RESET, "reopenings": 0}),
        ("circuit_half_opened", named),
        ("circuit_opened", {**named, "reason": cut, "retry_after": 3 * RESET, "reopenings": 1}),
        ("circuit_half_opened", named),
        ("circuit_closed", named),
    ] == [(event.event_type, dict(event.data)) for event in events]
    assert ["open", "half_open", "open", "half_open", "closed"] == states
    assert [1, 2, 3, 4, 5] == [event.sequence for event in events]
    assert [0, 10, 14, 44, 44] == [(event.at - datetime(2020, 1, 1, tzinfo=UTC)).total_seconds() for event in events]


def test_events_of_modes_and_isolation() -> None:
    breaker = make()
    events = heard_by(breaker)
    breaker.set_mode(CircuitMode.DISABLED)
    breaker.set_mode(CircuitMode.DISABLED)
    breaker.set_mode(CircuitMode.NORMAL)
    with breaker.isolate(), breaker.isolate():
        pass
    breaker.reset()
    assert [
        ("circuit_mode_changed", {"circuit_name": "api", "mode": "disabled"}),
        ("circuit_mode_changed", {"circuit_name": "api", "mode": "normal"}),
        ("circuit_isolated", {"circuit_name": "api", "isolated": True}),
        ("circuit_isolated", {"circuit_name": "api", "isolated": False}),
    ] == [(event.event_type, dict(event.data)) for event in events]


def test_sinks_are_told_in_turn() -> None:
    """In the order in which they came; one that has gone hears nothing more, and may go twice."""
    breaker = make()
    told: list[str] = []
    gone = breaker.subscribe(lambda event: told.append("first"))
    breaker.subscribe(lambda event: told.append("second"))
    open_up(breaker)
    assert ["first", "second"] == told
    gone()
    gone()
    breaker.reset()
    assert ["first", "second", "second"] == told


def test_a_sink_that_raises_breaks_no_call(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged, the others are told, the caller gets what the service gave."""
    breaker = make()
    told: list[Event] = []

    def broken(event: Event) -> None:
        raise RuntimeError("broken sink")

    breaker.subscribe(broken)
    breaker.subscribe(told.append)
    with caplog.at_level(logging.ERROR, "agentcore.events"), pytest.raises(Down):
        at_once(breaker.execute(fail))
    assert breaker.is_open
    assert ["opened"] == types_of(told)
    assert ["circuit_opened" in record.getMessage() for record in caplog.records] == [True]


def test_sinks_come_and_go_while_one_is_told() -> None:
    """An event reaches those who were there when it came."""
    breaker = make()
    told: list[str] = []

    def second(event: Event) -> None:
        told.append("second")

    def first(event: Event) -> None:
        told.append("first")
        leave_second()
        breaker.subscribe(lambda event: told.append("third"))
        leave_first()

    leave_first = breaker.subscribe(first)
    leave_second = breaker.subscribe(second)
    open_up(breaker)
    assert ["first", "second"] == told
    breaker.reset()
    assert ["first", "second", "third"] == told


def test_a_sink_may_use_the_breaker() -> None:
    """It is told without the lock, so it may ask, call, report and reset."""
    breaker = make()
    seen: list[Any] = []

    def sink(event: Event) -> None:
        seen.append((event.event_type, breaker.state, breaker.metrics.failures, breaker.retry_after is None))
        if event.event_type == "circuit_opened":
            with pytest.raises(CircuitOpenError):
                breaker.call(lambda: 1)
            at_once(breaker.on_failure("Again"))
            breaker.reset()
            seen.append(breaker.call(lambda: "called"))

    breaker.subscribe(sink)
    open_up_once(breaker)
    assert [("circuit_opened", "open", 1, False), ("circuit_closed", "closed", 1, False), "called"] == seen
    assert breaker.is_closed


def open_up_once(breaker: CircuitBreaker) -> None:
    """Report one failure."""
    at_once(breaker.on_failure("Down"))


def test_an_interrupt_in_a_sink_costs_no_permit() -> None:
    """What no sink raises on purpose reaches the caller, and the circuit is as if it had not called."""
    breaker = make(clock=(clock := Clock()))
    open_up(breaker)
    clock.now += RESET

    def interrupted(event: Event) -> None:
        raise KeyboardInterrupt

    leave = breaker.subscribe(interrupted)
    with pytest.raises(KeyboardInterrupt):
        breaker.call(lambda: pytest.fail("it was called"))
    leave()
    assert ((), True) == (permits_of(breaker), breaker.is_half_open)
    breaker.call(lambda: 1)
    assert breaker.is_closed


def test_an_interrupt_in_a_sink_that_is_told_of_a_hung_probe() -> None:
    """It comes in the place of the rejection; what has happened has happened."""
    breaker = make(clock=(clock := Clock()))
    open_up(breaker)
    clock.now += RESET

    def interrupted(event: Event) -> None:
        raise KeyboardInterrupt

    def hang_on() -> None:
        clock.now += LEASE
        leave = breaker.subscribe(interrupted)
        with pytest.raises(KeyboardInterrupt):
            in_a_thread(lambda: breaker.call(lambda: pytest.fail("it was called")))
        leave()

    breaker.call(hang_on)
    assert (True, 1) == (breaker.is_open, breaker.metrics.timeouts)


def in_a_thread(function: Callable[[], object]) -> None:
    """Call a function in another thread, whose calls are no part of this one's; raise what it raises."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            function()
        except BaseException as error:  # noqa: BLE001 - raised below
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    for error in errors:
        raise error


async def a_coroutine_function(event: Event) -> None:
    """Be no sink."""


class AsyncSink:
    async def __call__(self, event: Event) -> None:
        """Be no sink."""


@pytest.mark.parametrize("sink", [a_coroutine_function, AsyncSink()])
def test_sinks_are_synchronous(sink: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        make().subscribe(sink)
    assert (
        f"a sink of circuit 'api' must not be a coroutine function: got {sink!r}; "
        "hand the event over to a task of your own"
    ) == str(caught.value)


def test_sinks_are_functions() -> None:
    sink: Any = 3
    with pytest.raises(ConfigurationError) as caught:
        make().subscribe(sink)
    assert "subscribe of circuit 'api' takes a function: got 3; pass a function and its arguments" == str(caught.value)
