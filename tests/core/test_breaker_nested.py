"""Calls within a probe of the same circuit breaker."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

from agentcore import CircuitBreaker, CircuitOpenError, CircuitTimeoutError
from agentcore.testing import simulate
from tests.core.circuits import LEASE, RESET, Down, due, fail, hang_shielded, make, open_up, succeed

pytestmark = pytest.mark.anyio


async def execute_within(breaker: CircuitBreaker) -> None:
    assert "well" == await breaker.execute(succeed)


async def call_within(breaker: CircuitBreaker) -> None:
    assert 1 == breaker.call(lambda: 1)


async def enter_within(breaker: CircuitBreaker) -> None:
    async with breaker:
        await anyio.sleep(1)


async def ask_within(breaker: CircuitBreaker) -> None:
    assert await breaker.allow_request()
    await breaker.on_success()


async def fail_within(breaker: CircuitBreaker) -> None:
    with pytest.raises(Down):
        await breaker.execute(fail)
    assert await breaker.allow_request()
    await breaker.on_failure("Down")


NESTED = [execute_within, call_within, enter_within, ask_within, fail_within]


@pytest.mark.parametrize("within", NESTED)
@simulate(runs=5)
async def test_a_call_within_a_probe_is_a_part_of_it(within: Callable[[CircuitBreaker], Awaitable[None]]) -> None:
    """It needs no permit of its own and counts by itself for nothing: what came of the probe tells."""
    for function in (succeed, fail):
        breaker = make()
        await due(breaker)

        async def probe(breaker: CircuitBreaker = breaker, function: Any = function) -> None:
            await within(breaker)
            assert breaker.is_half_open
            await within(breaker)
            await function()

        before = breaker.metrics
        try:
            await breaker.execute(probe)
        except Down:
            pass
        after = breaker.metrics
        assert (function is succeed) == breaker.is_closed
        assert 1 == after.successes - before.successes + after.failures - before.failures


@simulate(runs=5)
async def test_blocks_within_probes_within_blocks() -> None:
    breaker = make()
    await due(breaker)
    async with breaker:
        async with breaker:
            assert "well" == await breaker.execute(breaker.execute, succeed)
        assert breaker.is_half_open
    assert (True, 1) == (breaker.is_closed, breaker.metrics.successes)


@simulate(runs=20)
async def test_a_task_of_a_probe_does_not_ride() -> None:
    """Only its own task may: anybody could be started in it. The rejection is the breaker's own, and says nothing."""
    breaker = make()
    await due(breaker)
    rejected: list[CircuitOpenError] = []

    async def child() -> None:
        await breaker.execute(succeed)

    async def careless() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(child)

    async def careful() -> None:
        try:
            await careless()
        except* CircuitOpenError as errors:
            rejected.extend(error for error in errors.exceptions if isinstance(error, CircuitOpenError))

    with pytest.raises(BaseExceptionGroup):
        await breaker.execute(careless)
    assert (True, 1) == (breaker.is_half_open, breaker.metrics.failures)
    await breaker.execute(careful)
    assert (1, True) == (len(rejected), breaker.is_closed)


@simulate(runs=5)
async def test_riding_ends_with_the_lease() -> None:
    """A probe that nobody could cut is none any more: what it calls then is a call like others."""
    breaker = make()
    await due(breaker)
    seen: list[float | None] = []

    async def probe() -> None:
        await hang_shielded(LEASE)
        with anyio.CancelScope(shield=True):
            try:
                await breaker.execute(succeed)
            except CircuitOpenError as error:
                seen.append(error.retry_after)
            await anyio.sleep(RESET)
            assert "well" == await breaker.execute(succeed)

    try:
        await breaker.execute(probe)
    except CircuitTimeoutError:
        pass
    assert ([RESET], True) == (seen, breaker.is_closed)


@simulate(runs=10)
async def test_two_breakers_within_each_other() -> None:
    """A probe of one rides nowhere in the other."""
    one, other = make("one"), make("other")
    await due(one)
    open_up(other)

    async def inner() -> str:
        return await other.execute(succeed)

    with pytest.raises(CircuitOpenError):
        await one.execute(inner)
    # What was rejected on the way says nothing: the permit is back.
    assert (True, 1, 1) == (one.is_half_open, one.metrics.failures, one.metrics.excluded)
    await anyio.sleep(RESET)
    assert "well" == await one.execute(inner)
    assert (True, True) == (one.is_closed, other.is_closed)
