"""Calls through a circuit breaker: what may be called, how, and what is refused."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

from agentcore import (
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitMode,
    CircuitOpenError,
    CircuitState,
    ConfigurationError,
)
from agentcore.testing import simulate
from tests.core.callables import MISTAKES, Adder, AsyncAdder, Later, add, add_async
from tests.core.circuits import (
    LEASE,
    PATHS,
    RESET,
    Clock,
    Down,
    Stop,
    at_once,
    due,
    fail,
    hang,
    make,
    on_path,
    open_up,
    permits_of,
    succeed,
)

pytestmark = pytest.mark.anyio


# ---------------------------------------------------------------- making one


def test_it_is_made_anywhere() -> None:
    """Without an event loop, and with nothing but a name."""
    breaker = CircuitBreaker("api")
    assert ("api", CircuitBreakerConfig(), None) == (breaker.name, breaker.config, breaker.probe)
    assert (CircuitState.CLOSED, CircuitMode.NORMAL, 0.0) == (breaker.state, breaker.mode, breaker.retry_after)
    assert (True, False, False) == (breaker.is_closed, breaker.is_open, breaker.is_half_open)
    config = CircuitBreakerConfig(failure_threshold=2)
    assert config is CircuitBreaker("api", config).config
    assert succeed is CircuitBreaker("api", probe=succeed).probe


@pytest.mark.parametrize("name", ["", None, 3, b"api"])
def test_unusable_names(name: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        CircuitBreaker(name)
    assert f"name of a circuit breaker must be a string that is not empty: got {name!r}; give it one" == str(
        caught.value
    )
    assert {"name": "name", "value": name} == caught.value.details


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            {"config": {"failure_threshold": 1}},
            (
                "config of circuit 'api' must be a CircuitBreakerConfig: got {'failure_threshold': 1}; "
                "write CircuitBreakerConfig(failure_threshold=...)"
            ),
        ),
        ({"probe": 3}, "probe of circuit 'api' must be a function without arguments: got 3; pass one or None"),
        ({"clock": 1.5}, "clock of circuit 'api' must be a function without arguments: got 1.5; pass one or None"),
    ],
)
def test_unusable_arguments(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        CircuitBreaker("api", **arguments)
    assert text == str(caught.value)
    ((name, value),) = arguments.items()
    assert {"name": name, "value": value} == caught.value.details


def test_repr_tells_how_it_is() -> None:
    breaker = make()
    breaker.call(lambda: 1)
    assert "<CircuitBreaker 'api' closed, 1 successes, 0 failures, 0 rejected>" == repr(breaker)
    open_up(breaker)
    with pytest.raises(CircuitOpenError):
        breaker.call(lambda: 1)
    assert "<CircuitBreaker 'api' open, 1 successes, 1 failures, 1 rejected>" == repr(breaker)
    breaker.set_mode(CircuitMode.DISABLED)
    assert "<CircuitBreaker 'api' closed (disabled), 1 successes, 1 failures, 1 rejected>" == repr(breaker)


# ---------------------------------------------------------------- what may be called


ADDERS: dict[str, Callable[..., Any]] = {
    "function": add,
    "coroutine function": add_async,
    "partial": functools.partial(add),
    "partial of a coroutine function": functools.partial(add_async),
    "object": Adder(),
    "asynchronous object": AsyncAdder(),
    "method": Adder().method,
    "built-in": lambda *numbers, **more: sum((*numbers, *more.values())),
    "function that gives a coroutine": lambda *numbers, **more: Adder().method(*numbers, **more),
    "function that gives an awaitable": lambda *numbers, **more: Later(add(*numbers, **more)),
}
SYNCHRONOUS = ("function", "partial", "object", "built-in")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("shape", ADDERS)
async def test_execute_takes_what_can_be_called(shape: str, path: str) -> None:
    """With and without arguments, on every way through the breaker; names of its own parameters are free."""
    function = ADDERS[shape]
    async with on_path(path) as breaker:
        assert 0 == await breaker.execute(function)
        assert 3 == await breaker.execute(function, 1, 2)
        assert 15 == await breaker.execute(function, 1, 2, func=4, args=8)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("shape", SYNCHRONOUS)
async def test_call_takes_synchronous_functions(shape: str, path: str) -> None:
    async with on_path(path) as breaker:
        assert 15 == breaker.call(ADDERS[shape], 1, 2, func=4, args=8)


@pytest.mark.parametrize("path", PATHS)
async def test_an_exception_comes_through_as_it_is(path: str) -> None:
    """The very object, with nothing added to it."""
    error = Down("no answer")

    def fail_at_once() -> None:
        raise error

    async def fail_later() -> None:
        raise error

    for function in (fail_at_once, fail_later):
        async with on_path(path) as breaker:
            with pytest.raises(Down) as caught:
                await breaker.execute(function)
            assert error is caught.value
            assert (None, None, False) == (error.__cause__, error.__context__, hasattr(error, "__notes__"))
    async with on_path(path) as breaker:
        with pytest.raises(Down) as caught:
            breaker.call(fail_at_once)
        assert error is caught.value


@pytest.mark.parametrize("path", PATHS)
async def test_a_wrong_number_of_arguments_is_an_error_of_the_call(path: str) -> None:
    async with on_path(path) as breaker:
        with pytest.raises(TypeError, match="positional"):
            await breaker.execute(succeed, 1)  # type: ignore[call-overload]


@pytest.mark.parametrize("path", PATHS)
async def test_outcomes_are_counted_on_every_path(path: str) -> None:
    """A nested call is a part of the one around it, and nothing is counted while it is disabled."""
    counts = path not in ("nested", "disabled")
    async with on_path(path) as breaker:
        before = breaker.metrics
        await breaker.execute(succeed)
        breaker.call(lambda: 1)
        assert 2 * counts == breaker.metrics.successes - before.successes
        with pytest.raises(Down):
            await breaker.execute(fail)
        assert counts == breaker.metrics.failures - before.failures


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize("path", [*PATHS, "open", "forced_open"])
async def test_what_cannot_be_called_is_refused(path: str) -> None:
    """By an error that says what to write; it is no call and counts as none, and no coroutine is left behind."""
    async with on_path("closed" if "open" in path else path) as breaker:
        if path == "open":
            open_up(breaker)
        if path == "forced_open":
            breaker.set_mode(CircuitMode.FORCED_OPEN)
        before = (breaker.metrics, breaker.state, breaker.retry_after)
        for mistake, text in [*MISTAKES, (succeed(), "write succeed, not succeed()")]:
            with pytest.raises(ConfigurationError) as caught:
                await breaker.execute(mistake)
            assert f"execute of circuit 'api' takes a function: got {mistake!r}; " in str(caught.value)
            assert str(caught.value).endswith(text)
            assert before == (breaker.metrics, breaker.state, breaker.retry_after)
        assert "CORO_CLOSED" == inspect.getcoroutinestate(mistake)


@pytest.mark.parametrize("path", PATHS)
async def test_call_refuses_what_has_to_be_awaited(path: str) -> None:
    """It says what to write, and does not count it as a failure of the service."""
    given: list[Any] = []

    def gives_a_coroutine() -> Awaitable[str]:
        given.append(succeed())
        return given[-1]

    for function in (succeed, gives_a_coroutine, functools.partial(succeed), AsyncAdder(), Later):
        async with on_path(path) as breaker:
            before = breaker.metrics
            with pytest.raises(ConfigurationError) as caught:
                breaker.call(function, 1) if function is Later else breaker.call(function)
            text = f"call of circuit 'api' takes synchronous functions: got {function!r}; "
            assert f"{text}write `await breaker.execute(...)`" == str(caught.value)
            after = breaker.metrics
            assert (before.failures, before.opened_count) == (after.failures, after.opened_count)
            assert 3.0 == await breaker.execute(add, 1, 2)  # the permit is back
    assert "CORO_CLOSED" == inspect.getcoroutinestate(given[0])


async def test_call_refuses_what_cannot_be_called() -> None:
    for mistake, text in [*MISTAKES, (succeed(), "write succeed, not succeed()")]:
        async with on_path("half_open") as breaker:
            before = breaker.metrics
            with pytest.raises(ConfigurationError) as caught:
                breaker.call(mistake)
            assert str(caught.value).startswith("call of circuit 'api' takes a function: got ")
            assert str(caught.value).endswith(text)
            assert before == breaker.metrics


@pytest.mark.parametrize("path", PATHS)
async def test_a_type_error_of_the_function_is_its_own(path: str) -> None:
    """One that comes out of a function is a failure like others, also if it speaks of something else's being no function."""

    def confused() -> None:
        nothing: Any = None
        nothing()

    async with on_path(path) as breaker:
        before = breaker.metrics.failures
        with pytest.raises(TypeError, match="'NoneType' object is not callable"):
            await breaker.execute(confused)
        assert (path not in ("nested", "disabled")) == breaker.metrics.failures - before


# ---------------------------------------------------------------- no checkpoint


@pytest.mark.parametrize("path", ["closed", "watched", "disabled", "metrics_only"])
def test_execute_needs_no_event_loop(path: str) -> None:
    """A call that does not wait goes through in one step, so nobody can come in between."""

    async def calls() -> None:
        async with on_path(path) as breaker:
            assert "well" == await breaker.execute(succeed)
            with pytest.raises(Down):
                await breaker.execute(fail)
            async with make():
                pass

    at_once(calls())


def test_a_rejection_needs_no_event_loop() -> None:
    breaker = make()
    open_up(breaker)
    with pytest.raises(CircuitOpenError):
        at_once(breaker.execute(succeed))


@simulate(runs=1)
async def test_execute_adds_no_checkpoint() -> None:
    """Nor is a probe any different."""
    breaker = make()
    await due(breaker)
    assert "well" == at_once(breaker.execute(succeed))
    assert breaker.is_closed


@simulate(runs=1)
async def test_nothing_is_lost_in_a_cancelled_scope() -> None:
    """What does not wait is not cancelled: what came of it is noted."""
    for path in PATHS:
        async with on_path(path, failure_threshold=2) as breaker:
            before = breaker.metrics
            with anyio.CancelScope() as scope:
                scope.cancel()
                assert "well" == await breaker.execute(succeed)
                with pytest.raises(Down):
                    await breaker.execute(fail)
            after = breaker.metrics
            counts = path not in ("nested", "disabled")
            assert (counts, counts) == (after.successes - before.successes, after.failures - before.failures)


# ---------------------------------------------------------------- the limits of a synchronous call


def test_a_synchronous_probe_that_is_late_has_failed() -> None:
    """It cannot be cut; what it returns is returned."""
    breaker = make(clock=(clock := Clock()))
    open_up(breaker)
    clock.now += RESET

    def slowly() -> str:
        clock.now += LEASE
        return "late"

    assert "late" == breaker.call(slowly)
    assert (True, 1) == (breaker.is_open, breaker.metrics.timeouts)


def test_synchronous_probes_close_it() -> None:
    breaker = make(success_threshold=2, clock=(clock := Clock()))
    open_up(breaker)
    clock.now += RESET
    breaker.call(lambda: 1)
    assert breaker.is_half_open
    breaker.call(lambda: 1)
    assert breaker.is_closed


def test_what_is_no_exception_comes_through_a_synchronous_call() -> None:
    def stop() -> None:
        raise Stop

    breaker = make(clock=(clock := Clock()))
    open_up(breaker)
    clock.now += RESET
    with pytest.raises(Stop):
        breaker.call(stop)
    assert breaker.is_open  # whatever raises that was called, and did not come back well


@simulate(runs=5)
async def test_a_hung_call_is_not_cut_while_closed() -> None:
    """Only probes have a limit: how long a call may take otherwise is the caller's matter."""
    breaker = make()
    with anyio.move_on_after(1_000) as scope:
        await breaker.execute(hang)
    assert scope.cancelled_caught
    assert 1_000 == anyio.current_time()


def test_an_asynchronous_probe_needs_an_event_loop() -> None:
    """It could not be cut without one. Its permit is back, so a synchronous one may try."""
    breaker = make(clock=(clock := Clock()))
    open_up(breaker)
    clock.now += RESET
    with pytest.raises(RuntimeError, match="Not currently running on any asynchronous event loop"):
        at_once(breaker.execute(succeed))
    assert ((), True) == (permits_of(breaker), breaker.is_half_open)
    assert breaker.call(lambda: True)
    assert breaker.is_closed
