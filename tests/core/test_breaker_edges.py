"""What a fresh look at the breaker has found, each as a small test."""

from __future__ import annotations

import asyncio
import sys
import types
from collections.abc import Callable

import anyio
import pytest

from agentcore import CircuitBreaker, CircuitBreakerConfig, CircuitMode, ConfigurationError, KeyedCircuitBreaker
from agentcore.testing import simulate

CONFIG = CircuitBreakerConfig(failure_threshold=1, success_threshold=1, reset_timeout_ms=10_000)


class AskedToWaitError(Exception):
    """Asks for more seconds than a float can hold."""

    retry_after = 10**400


def fail(error: BaseException) -> Callable[[], None]:
    def function() -> None:
        raise error

    return function


def opened(breaker: CircuitBreaker) -> CircuitBreaker:
    with pytest.raises(OSError, match="down"):
        breaker.call(fail(OSError("down")))
    assert breaker.is_open
    return breaker


def test_an_error_that_asks_for_more_than_a_float_holds_counts() -> None:
    """The open period is the longest, and the caller gets the error."""
    breaker = CircuitBreaker("api", CONFIG)
    with pytest.raises(AskedToWaitError):
        breaker.call(fail(AskedToWaitError()))
    assert breaker.retry_after == pytest.approx(100, abs=5)


def test_a_backend_that_another_thread_is_importing_is_no_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its module is there, and has nothing in it yet."""
    monkeypatch.setitem(sys.modules, "trio.lowlevel", types.ModuleType("trio.lowlevel"))
    assert asyncio.run(CircuitBreaker("api").allow_request())


def test_a_group_deeper_than_the_stack_is_judged() -> None:
    """By its leaf."""
    group: Exception = OSError("down")
    for _ in range(3000):
        group = ExceptionGroup("deep", [group])
    breaker = CircuitBreaker("api", CONFIG)
    with pytest.raises(ExceptionGroup):
        breaker.call(fail(group))
    assert {"OSError": 1} == dict(breaker.metrics.failures_by_type)


def test_a_sink_that_meets_a_cancellation_breaks_nothing() -> None:
    """It has looked at something that was cancelled: neither the block nor the isolation depends on that."""
    breaker = CircuitBreaker("api", CONFIG)

    def sink(_event: object) -> None:
        raise asyncio.CancelledError

    breaker.subscribe(sink)
    with breaker.isolate():
        assert breaker.is_open
    assert breaker.is_closed


def test_a_sink_that_interrupts_leaves_no_isolation() -> None:
    """What no `except Exception` may catch goes on, and the block is left."""
    breaker = CircuitBreaker("api", CONFIG)

    def sink(_event: object) -> None:
        raise SystemExit

    unsubscribe = breaker.subscribe(sink)
    with pytest.raises(SystemExit), breaker.isolate():
        pass
    unsubscribe()
    assert breaker.is_closed


@simulate(runs=3)
async def test_an_interrupt_by_a_sink_leaks_no_permit() -> None:
    """The next caller is the probe."""
    breaker = opened(CircuitBreaker("api", CONFIG))
    await anyio.sleep(10)

    def sink(_event: object) -> None:
        raise SystemExit

    unsubscribe = breaker.subscribe(sink)
    with pytest.raises(SystemExit):
        await breaker.execute(int)
    unsubscribe()
    assert 0 == await breaker.execute(int)
    assert breaker.is_closed


@simulate(runs=3)
async def test_keys_that_nobody_uses_any_more_make_room() -> None:
    """Open ones too, once they are due: a new key must not push out the one that was used last."""
    keyed = KeyedCircuitBreaker("api", CONFIG, max_keys=3)
    for key in ("a", "b", "c"):
        opened(keyed[key])
    await anyio.sleep(60)
    for key in ("d", "e", "d", "e"):
        assert keyed[key].is_closed
    opened(keyed["d"])
    opened(keyed["e"])
    assert {"c", "d", "e"} == set(keyed.list_all())


def test_a_key_that_was_set_by_hand_stays() -> None:
    """It would forget its mode."""
    keyed = KeyedCircuitBreaker("api", CONFIG, max_keys=2)
    keyed["a"].set_mode(CircuitMode.METRICS_ONLY)
    with keyed["a"].isolate():
        assert keyed["b"].is_closed
        assert keyed["c"].is_closed
        assert CircuitMode.METRICS_ONLY is keyed["a"].mode
        assert keyed["a"].is_open


async def is_bad(_result: object) -> bool:
    return True


def test_a_predicate_that_would_have_to_be_awaited_is_refused() -> None:
    """It would be true for every result."""
    with pytest.raises(
        ConfigurationError, match="failure_if_result of a circuit breaker must be a function that does not"
    ):
        CircuitBreakerConfig(failure_if_result=is_bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("setting", [{"window_ms": 5e-324}, {"window_calls": 10**13, "failure_threshold": 1}])
def test_windows_that_cannot_work_are_refused(setting: dict[str, float]) -> None:
    """At once, and not in the middle of a call."""
    with pytest.raises(ConfigurationError, match="window_"):
        CircuitBreakerConfig(**setting)  # type: ignore[arg-type]
