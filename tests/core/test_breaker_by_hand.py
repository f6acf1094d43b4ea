"""Asking a circuit breaker and reporting to it by hand."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from agentcore import CircuitState, ConfigurationError
from tests.core.circuits import RESET, Clock, Down, at_once, make, on_path, open_up, succeed

pytestmark = pytest.mark.anyio


async def test_the_classical_way() -> None:
    """Ask, call, report."""
    breaker = make(failure_threshold=3, success_threshold=2, clock=(clock := Clock()))
    assert await breaker.allow_request() is True
    await breaker.on_success()
    for _ in range(3):
        assert await breaker.allow_request() is True
        assert await breaker.on_failure("Down") is None
    assert breaker.is_open
    assert await breaker.allow_request() is False
    clock.now += RESET
    for state in (CircuitState.HALF_OPEN, CircuitState.CLOSED):
        assert await breaker.allow_request() is True
        assert breaker.is_half_open
        await breaker.on_success()
        assert state is breaker.state
    metrics = breaker.metrics
    assert (3, 3, 1) == (metrics.successes, metrics.failures, metrics.rejected)
    assert {"Down": 3} == dict(metrics.failures_by_type)


def test_by_hand_nothing_waits() -> None:
    """One step each, in every state, with no event loop."""
    breaker = make(clock=(clock := Clock()))
    assert at_once(breaker.allow_request())
    assert at_once(breaker.on_success()) is None
    assert at_once(breaker.on_failure("Down", False)) is None
    assert at_once(breaker.on_failure("Down")) is None
    assert at_once(breaker.allow_request()) is False
    clock.now += RESET
    assert at_once(breaker.allow_request())
    assert at_once(breaker.on_failure("Down")) is None
    assert breaker.is_open
    clock.now += RESET
    assert at_once(breaker.allow_request())
    assert at_once(breaker.on_success()) is None
    assert breaker.is_closed


async def test_by_hand_in_a_cancelled_scope() -> None:
    """Nothing is lost: reporting does not wait."""
    breaker = make(success_threshold=2, clock=(clock := Clock()))
    with anyio.CancelScope() as scope:
        scope.cancel()
        assert await breaker.allow_request()
        await breaker.on_failure("Down")
        assert breaker.is_open
        clock.now += RESET
        assert await breaker.allow_request()
        await breaker.on_success()
        assert await breaker.allow_request()
        await breaker.on_success()
    assert breaker.is_closed


async def test_reports_without_a_permit() -> None:
    """They count for the present era: nobody has to ask before, as the specification's own tests do not."""
    breaker = make(failure_threshold=2, success_threshold=2, clock=(clock := Clock()))
    await breaker.on_success()
    await breaker.on_failure("Down")
    await breaker.on_failure("Down")
    assert breaker.is_open
    await breaker.on_failure("Down")
    await breaker.on_success()
    metrics = breaker.metrics
    assert (1, 2) == (metrics.successes, metrics.failures)  # in an open circuit there is nothing to report
    clock.now += RESET
    await breaker.execute(succeed)
    await breaker.on_success()
    assert breaker.is_closed


async def test_a_report_counts_in_the_era_of_its_permit() -> None:
    """Whoever was admitted by a closed circuit says nothing about a half-open one."""
    breaker = make(success_threshold=2, clock=(clock := Clock()))
    asked, ended = anyio.Event(), anyio.Event()

    async def late() -> None:
        assert await breaker.allow_request()
        asked.set()
        await ended.wait()
        await breaker.on_failure("Late")

    async with anyio.create_task_group() as group:
        group.start_soon(late)
        await asked.wait()
        open_up(breaker)
        clock.now += RESET
        await breaker.execute(succeed)
        assert breaker.is_half_open
        ended.set()
    assert breaker.is_half_open
    assert {"Down": 1} == dict(breaker.metrics.failures_by_type)


@pytest.mark.parametrize("path", ["closed", "half_open"])
async def test_a_failure_that_does_not_count(path: str) -> None:
    """It is neutral, and gives the permit back."""
    async with on_path(path, success_threshold=1) as breaker:
        before, state = breaker.metrics, CircuitState(path)
        for _ in range(5):
            assert await breaker.allow_request()
            assert state is breaker.state
            await breaker.on_failure("NotFound", count_towards_threshold=False)
            assert state is breaker.state
        assert (before.failures, before.excluded + 5) == (breaker.metrics.failures, breaker.metrics.excluded)


@pytest.mark.parametrize("error_type", ["", None, Down, Down("no")])
async def test_unusable_error_types(error_type: Any) -> None:
    breaker = make()
    with pytest.raises(ConfigurationError) as caught:
        await breaker.on_failure(error_type)
    assert (
        f"error_type of on_failure must be a string that is not empty: got {error_type!r}; pass type(error).__name__"
    ) == str(caught.value)
    assert (0, True) == (breaker.metrics.failures, breaker.is_closed)


async def test_timeouts_are_known_by_their_names() -> None:
    """By hand there is only the name to go by."""
    breaker = make(failure_threshold=10)
    for name in ("TimeoutError", "ReadTimeout", "timeout", "Down"):
        await breaker.on_failure(name)
    assert (3, 4) == (breaker.metrics.timeouts, breaker.metrics.failures)
