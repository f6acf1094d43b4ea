"""How little a circuit breaker keeps, and what its errors take along."""

from __future__ import annotations

import copy
import gc
import pickle
import tracemalloc
import weakref
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from agentcore import CircuitBreaker, CircuitBreakerConfig, CircuitOpenError, CircuitState, CircuitTimeoutError
from agentcore.testing import run_sim, simulate
from tests.core.circuits import (
    LEASE,
    RESET,
    Clock,
    Down,
    admissions_of,
    at_once,
    due,
    fail,
    hang,
    make,
    open_up,
    succeed,
)

pytestmark = pytest.mark.anyio


# ---------------------------------------------------------------- what is kept


async def retained(function: Callable[[int], Any], times: int) -> int:
    """Return the bytes that are left after a function has done something so many times; it has done it twice before."""
    await function(2)
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.take_snapshot()
        await function(times)
        gc.collect()
        after = tracemalloc.take_snapshot()
    finally:
        tracemalloc.stop()
    return sum(line.size_diff for line in after.compare_to(before, "filename") if "tracemalloc" not in str(line))


@pytest.mark.thorough
def test_rejections_retain_nothing() -> None:
    """200,000 of them less than 1 kB. While memory is traced a million takes 15 s, and shows no more."""
    breaker = make(reset_timeout_ms=1e9)
    open_up(breaker)

    async def reject(times: int) -> None:
        for _ in range(times):
            for _ in range(3):
                try:
                    await breaker.execute(succeed)
                except CircuitOpenError:
                    pass
            await breaker.allow_request()

    assert 1_000 > at_once(retained(reject, 50_000))
    assert 200_008 == breaker.metrics.rejected


@pytest.mark.parametrize(
    ("settings", "most"),
    [
        ({}, 1_024),
        ({"window_calls": 100}, 1_024),
        ({"window_calls": 100, "failure_rate": 0.9, "slow_call_ms": 1_000}, 1_024),
        ({"window_ms": 60_000, "failure_rate": 0.9, "slow_call_ms": 1_000}, 2_048),
    ],
)
def test_a_breaker_is_small(settings: dict[str, Any], most: int) -> None:
    """At most 1 kB with a window of 100 calls, after 300 of them; one that looks at time has ten buckets more."""
    config = CircuitBreakerConfig(failure_threshold=90, minimum_calls=100, **settings)
    kept: list[CircuitBreaker] = []

    async def use(times: int) -> None:
        for _ in range(times):
            breaker = CircuitBreaker("api", config)
            for number in range(300):
                try:
                    await breaker.execute(fail if number % 2 else succeed)
                except Down:
                    pass
            assert breaker.is_closed
            kept.append(breaker)

    assert most >= at_once(retained(use, 20)) / 20


def test_error_types_are_bounded() -> None:
    """A service that invents them costs no more than one that does not."""
    breaker = make(failure_threshold=1_000_000)
    for number in range(10_000):
        at_once(breaker.on_failure(f"Error{number}" + 1_000 * "x"))
    types = breaker.metrics.failures_by_type
    assert (33, 10_000 - 32) == (len(types), types["other"])
    assert 10_000 == sum(types.values())
    assert 80 >= max(map(len, types))


class Heavy(Exception):
    """An error that is held by nobody."""


@simulate(runs=1)
async def test_no_exception_is_kept() -> None:
    """Neither it, nor its traceback, nor what its frames hold: the breaker has the text."""
    breaker = make(failure_threshold=1, success_threshold=2)
    refs: list[weakref.ref[Any]] = []
    lengths: list[int] = []

    class Load:
        """What a frame of the failing call holds."""

    async def fail_heavily() -> None:
        load = Load()
        error = Heavy(2_000 * "x")
        refs.extend((weakref.ref(load), weakref.ref(error)))
        raise error

    for wait in (0, RESET):
        await anyio.sleep(wait)
        try:
            await breaker.execute(fail_heavily)
        except Heavy:
            pass
        try:
            await breaker.execute(succeed)
        except CircuitOpenError as error:
            refs.append(weakref.ref(error))
            lengths.append(len(str(error)))
    gc.collect()
    assert 400 > max(lengths)
    assert 6 * [None] == [ref() for ref in refs]


def test_what_asked_by_hand_is_forgotten_with_its_task() -> None:
    """A permit does not keep the task that has it."""
    breaker = make(success_threshold=100)

    async def ask() -> None:
        await breaker.allow_request()

    async def main() -> None:
        for _ in range(50):
            async with anyio.create_task_group() as group:
                group.start_soon(ask)
        await due(breaker)
        for _ in range(50):
            async with anyio.create_task_group() as group:
                group.start_soon(ask)

    for backend in ("asyncio", "trio"):
        run_sim(main, backend=backend).unwrap()  # type: ignore[arg-type]
        breaker.reset()
    gc.collect()
    assert 0 == admissions_of(breaker)


# ---------------------------------------------------------------- errors


def rejected() -> CircuitOpenError:
    """Return what a caller gets, with nothing read yet."""
    breaker = make(clock=Clock())
    open_up(breaker)
    with pytest.raises(CircuitOpenError) as caught:
        at_once(breaker.execute(succeed))
    return caught.value


def travel_by_pickle(error: Any) -> Any:
    return pickle.loads(pickle.dumps(error))


@pytest.mark.parametrize("travel", [travel_by_pickle, copy.copy, copy.deepcopy])
@pytest.mark.parametrize("read", [True, False])
def test_a_rejection_travels(travel: Callable[[Any], Any], read: bool) -> None:
    """Its text and its details are made when somebody looks, here or on the other side."""
    error = rejected()
    if read:
        assert str(error)
        assert error.details
    other = travel(error)
    assert other is not error
    for one in (error, other):
        assert {"circuit_name": "api", "state": "open", "retry_after": RESET, "last_error": "Down"} == one.details
        assert (RESET, False, "circuit_open") == (one.retry_after, one.retryable, one.code)
        assert (
            (
                "circuit 'api' lets no call through: got one while it is open; wait for 10 s, or do without "
                "(it opened because of Down)"
            )
            == str(one)
            == one.message
        )
        assert f"CircuitOpenError({str(one)!r})" == repr(one)
    assert type(other.details["state"]) in (str, CircuitState)


def test_rejections_are_fresh_objects() -> None:
    """Each caller gets his own, with a traceback of his own."""
    breaker = make(clock=Clock())
    open_up(breaker)
    errors = []
    for _ in range(2):
        with pytest.raises(CircuitOpenError) as caught:
            breaker.call(lambda: 1)
        errors.append(caught.value)
    first, second = errors
    assert first is not second
    assert first.details is not second.details
    assert first.details == second.details
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        first.nonsense  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.parametrize("travel", [travel_by_pickle, copy.copy, copy.deepcopy])
@simulate(runs=1)
async def test_a_cut_travels(travel: Callable[[Any], Any]) -> None:
    breaker = make()
    await due(breaker)
    with pytest.raises(CircuitTimeoutError) as caught:
        await breaker.execute(hang)
    other = travel(caught.value)
    assert isinstance(other, TimeoutError)
    assert ({"circuit_name": "api", "timeout": LEASE}, str(caught.value)) == (other.details, str(other))
    assert (
        "a probe of circuit 'api' must end within its probe_timeout_ms: got none after 4 s; "
        "it was cut, which is a failure; wait, or raise the limit"
    ) == str(other)
