"""Deadlines, and whom a circuit breaker blames for them: the service, if it has had the time."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import anyio
import anyio.lowlevel
import attrs
import pytest

from agentcore import (
    AgentContext,
    CircuitBreaker,
    CircuitTimeoutError,
)
from agentcore.testing import simulate
from tests.core.guarded import (
    CONFIG,
    RESET,
    WAYS,
    Aftermath,
    aftermath,
    await_probe,
    counts_of,
    row_of,
    run,
)
from tests.core.outcomes import (
    NEUTRAL,
    TABLE,
    TIMEOUT,
    Row,
    Scripted,
    Slow,
    Step,
    Told,
    failure,
    hang,
)

ways = pytest.mark.parametrize("way", WAYS)

DEADLINES: Final = [row for row in TABLE if row.breaker is TIMEOUT]


@pytest.mark.parametrize("row", DEADLINES, ids=lambda row: row.name)
@pytest.mark.parametrize(
    ("changes", "told"),
    [({}, NEUTRAL), ({"min_blame_ms": 1}, TIMEOUT), ({"min_blame_ms": 0}, TIMEOUT)],
    ids=["younger", "older", "each is blamed"],
)
@simulate(runs=3)
async def test_deadline_of_a_young_call(row: Row, changes: dict[str, Any], told: Told) -> None:
    """A call is told to have failed by a deadline only if it was older than `min_blame_ms`; the agent is told anyhow."""
    for is_probe in (False, True):
        breaker = CircuitBreaker("dependency", attrs.evolve(CONFIG, **changes))
        if is_probe:
            await await_probe(breaker)
        agent = Scripted(row, breaker.execute, pause=4.995)
        await run(row, agent)
        assert [row.handled] == [type(error) for error in agent.handled]
        assert told.counts == counts_of(breaker)
        if is_probe:
            assert Aftermath.of(told) == await aftermath(breaker)


@ways
@pytest.mark.parametrize(("seconds", "told"), [(5.0, TIMEOUT), (1 / 256, NEUTRAL)])
@simulate(runs=3)
async def test_deadline_of_the_callers_scope(way: str, seconds: float, told: Told) -> None:
    """A deadline that somebody has set around the execution is a deadline too: the agent is cancelled, the call blamed."""
    for is_probe in (False, True):
        breaker = CircuitBreaker("dependency", CONFIG)
        if is_probe:
            await await_probe(breaker)
        with anyio.move_on_after(seconds) as scope:
            await Slow(WAYS[way](breaker)).execute(AgentContext())
        assert scope.cancelled_caught
        assert told.counts == counts_of(breaker)
        if is_probe:
            assert Aftermath.of(told) == await aftermath(breaker)


async def hang_in_a_group() -> Any:
    async with anyio.create_task_group() as group:
        group.start_soon(anyio.sleep_forever)
        await anyio.sleep_forever()


async def hang_in_tasks_alone() -> Any:
    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(anyio.sleep_forever)


async def hang_in_groups_of_groups() -> Any:
    async with anyio.create_task_group() as group:
        group.start_soon(hang_in_a_group)
        group.start_soon(hang_in_tasks_alone)


async def hang_in_a_longer_deadline() -> Any:
    with anyio.fail_after(3600):
        await anyio.sleep_forever()


async def hang_and_clean_up() -> Any:
    try:
        await anyio.sleep_forever()
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.lowlevel.checkpoint()


HANGS: Final = (
    hang_in_a_group,
    hang_in_tasks_alone,
    hang_in_groups_of_groups,
    hang_in_a_longer_deadline,
    hang_and_clean_up,
)


@pytest.mark.parametrize("process", HANGS, ids=lambda process: process.__name__)
@pytest.mark.parametrize(("pause", "told"), [(0.0, TIMEOUT), (4.995, NEUTRAL)], ids=["older", "younger"])
@simulate(runs=5)
async def test_deadline_wherever_the_call_waits(process: Step, pause: float, told: Told) -> None:
    """A client may have tasks and limits of its own: the deadline that ends it is seen through them."""
    row = attrs.evolve(row_of("deadline of the agent"), process=process)
    for is_probe in (False, True):
        breaker = CircuitBreaker("dependency", CONFIG)
        if is_probe:
            await await_probe(breaker)
        await run(row, Scripted(row, breaker.execute, pause=pause))
        assert told.counts == counts_of(breaker)
        if is_probe:
            assert Aftermath.of(told) == await aftermath(breaker)


@pytest.mark.parametrize("process", HANGS, ids=lambda process: process.__name__)
@simulate(runs=5)
async def test_cancelled_wherever_the_call_waits(process: Step) -> None:
    """The same calls say nothing if they are cancelled, and are cut as probes."""
    breaker = CircuitBreaker("dependency", attrs.evolve(CONFIG, probe_timeout_ms=10_000))
    await await_probe(breaker)
    async with anyio.create_task_group() as group:
        group.start_soon(breaker.execute, process)
        await anyio.sleep(5)
        group.cancel_scope.cancel()
    assert NEUTRAL.counts == counts_of(breaker)
    with pytest.raises(CircuitTimeoutError):
        await breaker.execute(process)
    told = failure("CircuitTimeoutError", timeouts=1)
    assert Aftermath.of(attrs.evolve(told, counts={**told.counts, "canceled": 1})) == await aftermath(breaker)


@simulate(runs=3, backends=["asyncio"])
async def test_deadline_without_a_reason() -> None:
    """The timeouts of asyncio itself do not say that they are one: nobody is blamed."""
    breaker = CircuitBreaker("dependency", CONFIG)
    await await_probe(breaker)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(5):
            await Slow(breaker.execute).execute(AgentContext())
    assert Aftermath.of(NEUTRAL) == await aftermath(breaker)


@ways
@simulate(runs=5)
async def test_deadline_of_the_probe(way: str) -> None:
    """A probe that hangs is cut by its breaker: to the agent that is an error, to the breaker a timeout."""
    breaker = CircuitBreaker("dependency", attrs.evolve(CONFIG, probe_timeout_ms=3000))
    await await_probe(breaker)
    agent = Scripted(
        attrs.evolve(row_of("process raises"), process=hang, cause=CircuitTimeoutError), WAYS[way](breaker)
    )
    await run(agent.row, agent)
    assert ([CircuitTimeoutError], RESET + 3) == ([type(error) for error in agent.handled], anyio.current_time())
    assert Aftermath.of(failure("CircuitTimeoutError", timeouts=1)) == await aftermath(breaker)
