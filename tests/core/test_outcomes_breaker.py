"""What each outcome tells the circuit breaker around the call that an agent makes: the breakers' column of `outcomes`.

Each row is brought about with a closed circuit, and with one whose next call is its only probe: whatever becomes of
that, its permit is not lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

import anyio
import attrs
import pytest

from agentcore import (
    AgentConfig,
    AgentContext,
    AgentError,
    AgentResult,
    AgentRuntime,
    BaseAgent,
    CircuitBreaker,
    CircuitOpenError,
    CircuitState,
    TaskExecutionError,
    TaskState,
)
from agentcore.testing import simulate
from tests.core.guarded import (
    CONFIG,
    ENTRIES,
    OUTAGE,
    RESET,
    WAYS,
    Aftermath,
    aftermath,
    await_probe,
    counts_of,
    execute,
    expecting,
    row_of,
    run,
    submit,
    told_by,
)
from tests.core.outcomes import (
    FROM_OUTSIDE,
    NEUTRAL,
    SUCCESS,
    TABLE,
    BoomError,
    Row,
    Scripted,
    Slow,
    Step,
    Told,
    failure,
    give_up,
    pass_time,
    raise_boom,
    succeed,
)

rows = pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
ways = pytest.mark.parametrize("way", WAYS)


# What ends inside.


@pytest.mark.parametrize(
    ("row", "entry"),
    [
        pytest.param(row, entry, id=f"{row.name}-{entry.__name__}")
        for row in TABLE
        for entry in ENTRIES
        # A deadline from outside needs a runtime; SystemExit in a task of the background ends the event loop.
        if not ((row.options and entry is execute) or (row.waiter is SystemExit and entry is submit))
    ],
)
@simulate(runs=5)
async def test_closed(row: Row, entry: Callable[[Row, Scripted], Awaitable[None]]) -> None:
    """The breaker is told what the row says, however the agent came to run, and a single call does not open it."""
    breaker = CircuitBreaker("dependency", CONFIG)
    await entry(row, Scripted(row, breaker.execute))
    assert (told_by(row).counts, CircuitState.CLOSED) == (counts_of(breaker), breaker.state)


@rows
@ways
@simulate(runs=3)
async def test_closed_each_way(row: Row, way: str) -> None:
    """Whether a call is guarded by `execute`, by the decorator or by a block makes no difference."""
    breaker = CircuitBreaker("dependency", CONFIG)
    await run(row, Scripted(row, WAYS[way](breaker)))
    assert told_by(row).counts == counts_of(breaker)


@rows
@ways
@simulate(runs=3)
async def test_half_open(row: Row, way: str) -> None:
    """A probe that ends as the row says takes the circuit where the row says, and its permit is there again."""
    breaker = CircuitBreaker("dependency", CONFIG)
    await await_probe(breaker)
    agent = Scripted(row, WAYS[way](breaker))
    await run(row, agent)
    assert [row.handled] * (row.handled is not None) == [type(error) for error in agent.handled]
    assert Aftermath.of(told_by(row)) == await aftermath(breaker)


@rows
@simulate(runs=3)
async def test_breaker_of_the_runtime(row: Row) -> None:
    """A breaker of the runtime is told the same."""

    async def guard(step: Step) -> Any:
        return await runtime.breaker("dependency").execute(step)

    async with AgentRuntime() as runtime:
        runtime.registry("agents").register("scripted", Scripted(row, guard))
        with expecting(row.waiter):
            await runtime.run("scripted", **row.options)
        assert told_by(row).counts == counts_of(runtime.breaker("dependency"))


@pytest.mark.parametrize(
    ("process", "changes", "told"),
    [
        (give_up, {"failure_if_result": lambda result: not result.success}, failure("result")),
        (succeed, {"failure_if_result": lambda result: not result.success}, SUCCESS),
        (raise_boom, {"excluded_exceptions": (BoomError,)}, Told({"excluded": 1}, CircuitState.HALF_OPEN)),
        (raise_boom, {"excluded_exceptions": (KeyError,)}, failure("BoomError")),
        (
            raise_boom,
            {"failure_if": lambda error: not isinstance(error, BoomError)},
            Told({"excluded": 1}, CircuitState.HALF_OPEN),
        ),
    ],
    ids=["result is a failure", "result is none", "type is excluded", "another is", "predicate denies it"],
)
@simulate(runs=3)
async def test_configured_otherwise(process: Step, changes: dict[str, Any], told: Told) -> None:
    """Predicates and excluded types change what a row tells, with a closed circuit and with a probe."""
    row = attrs.evolve(row_of("result with success False"), process=process)
    closed, half_open = (CircuitBreaker("dependency", attrs.evolve(CONFIG, **changes)) for _ in range(2))
    await Scripted(row, closed.execute).execute(AgentContext())
    assert told.counts == counts_of(closed)
    await await_probe(half_open)
    await Scripted(row, half_open.execute).execute(AgentContext())
    assert Aftermath.of(told) == await aftermath(half_open)


async def raise_group() -> Any:
    raise ExceptionGroup("both", [BoomError("inside"), KeyError("other")])


@pytest.mark.parametrize("error", [BoomError, KeyError])
@simulate(runs=3)
async def test_group_counts_by_its_leaves(error: type[Exception]) -> None:
    """A group of errors is a failure if one of its leaves is not excluded."""
    row = attrs.evolve(row_of("process raises"), process=raise_group)
    for excluded, told in (
        ((error,), failure("KeyError" if error is BoomError else "BoomError")),
        ((BoomError, KeyError), Told({"excluded": 1}, CircuitState.HALF_OPEN)),
    ):
        breaker = CircuitBreaker("dependency", attrs.evolve(CONFIG, excluded_exceptions=excluded))
        await await_probe(breaker)
        await Scripted(row, breaker.execute).execute(AgentContext())
        assert Aftermath.of(told) == await aftermath(breaker)


@simulate(runs=3)
async def test_failure_where_it_was_raised() -> None:
    """An error that an agent raises next to its call, or in the one of another dependency, is none of this one's."""
    here, there = CircuitBreaker("here", CONFIG), CircuitBreaker("there", CONFIG)

    async def process() -> Any:
        await here.execute(succeed)
        return await there.execute(raise_boom)

    agent = Scripted(attrs.evolve(row_of("process raises"), process=process))
    await agent.execute(AgentContext())
    assert [BoomError] == [type(error) for error in agent.handled]
    assert (SUCCESS.counts, failure("BoomError").counts) == (counts_of(here), counts_of(there))


# What ends it from outside.


async def cancel_the_caller(agent: Slow) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(agent.execute, AgentContext())
        await begun(agent)
        group.cancel_scope.cancel()


async def cancel_the_caller_of_run(agent: Slow) -> None:
    async with AgentRuntime() as runtime, anyio.create_task_group() as group:
        runtime.registry("agents").register("slow", agent)
        group.start_soon(runtime.run, "slow")
        await begun(agent)
        group.cancel_scope.cancel("nobody waits any more")


async def cancel_the_handle(agent: Slow) -> None:
    async with AgentRuntime() as runtime:
        runtime.registry("agents").register("slow", agent)
        handle = await runtime.submit("slow")
        await begun(agent)
        assert handle.cancel("no longer wanted") is True
        assert TaskState.CANCELED is (await handle.wait()).state


async def shut_down(agent: Slow) -> None:
    async with AgentRuntime(grace=3.0) as runtime:
        runtime.registry("agents").register("slow", agent)
        handle = await runtime.submit("slow")
        await begun(agent)
    assert (TaskState.CANCELED, "the runtime is shutting down") == (handle.state, handle.task.cancel_reason)


async def fail_next_to_it(agent: Slow) -> None:
    with pytest.raises(ExceptionGroup):
        async with anyio.create_task_group() as group:
            group.start_soon(agent.execute, AgentContext())
            await begun(agent)
            raise BoomError("the sibling")


async def terminate_the_agent(agent: Slow) -> None:
    with pytest.raises(ExceptionGroup):
        async with anyio.create_task_group() as group:
            group.start_soon(agent.execute, AgentContext())
            await begun(agent)
            await agent.terminate()


async def begun(agent: Slow) -> None:
    """Wait until the call is old enough to be blamed for a deadline, if it were one."""
    await agent.begun.wait()
    await pass_time(5)


OUTSIDE: Final = [
    ("the caller's scope is cancelled", cancel_the_caller),
    ("the caller's scope is cancelled", cancel_the_caller_of_run),
    ("handle.cancel(reason)", cancel_the_handle),
    ("shutdown after grace", shut_down),
    # The table does not name these two: cancellation as any other.
    ("the caller's scope is cancelled", fail_next_to_it),
    ("the caller's scope is cancelled", terminate_the_agent),
]


@pytest.mark.parametrize(("outcome", "end"), OUTSIDE, ids=lambda value: getattr(value, "__name__", ""))
@ways
@simulate(runs=10)
async def test_ended_from_outside(outcome: str, end: Callable[[Slow], Awaitable[None]], way: str) -> None:
    """An explicit cancellation says nothing of the service, whoever it comes from, and the permit is back at once."""
    told = FROM_OUTSIDE[outcome]["breaker"]
    assert isinstance(told, Told)
    closed, half_open = CircuitBreaker("closed", CONFIG), CircuitBreaker("half open", CONFIG)
    await end(Slow(WAYS[way](closed)))
    assert (told.counts, CircuitState.CLOSED) == (counts_of(closed), closed.state)
    await await_probe(half_open)
    await end(Slow(WAYS[way](half_open)))
    assert Aftermath.of(told) == await aftermath(half_open)


@pytest.mark.parametrize("reason", ["deadline exceeded", "timeout", "the deadline was 5 s"])
@simulate(runs=5)
async def test_reason_is_a_text(reason: str) -> None:
    """What somebody gives as his reason is for people: no word of it makes the cancellation another one."""
    breaker = CircuitBreaker("dependency", CONFIG)
    agent = Slow(breaker.execute)
    async with AgentRuntime() as runtime:
        runtime.registry("agents").register("slow", agent)
        handle = await runtime.submit("slow")
        await begun(agent)
        handle.cancel(reason)
        assert reason == (await handle.wait() and handle.task.cancel_reason)
    assert NEUTRAL.counts == counts_of(breaker)


@simulate(runs=10, backends=["asyncio"])
async def test_native_cancellation() -> None:
    """A bare `Task.cancel()` is one as well."""
    breaker = CircuitBreaker("dependency", CONFIG)
    await await_probe(breaker)
    agent = Slow(breaker.execute)
    task = asyncio.create_task(agent.execute(AgentContext()))
    await begun(agent)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert Aftermath.of(NEUTRAL) == await aftermath(breaker)


@simulate(runs=10)
async def test_permit_is_held_while_a_cancelled_probe_unwinds() -> None:
    """As long as the cancelled call is not over, the service is busy with it: nobody else gets its permit."""
    breaker = CircuitBreaker("dependency", CONFIG)
    await await_probe(breaker)
    agent = Slow(breaker.execute)
    agent.let_go = anyio.Event()
    async with anyio.create_task_group() as group:
        group.start_soon(agent.execute, AgentContext())
        await agent.begun.wait()
        group.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            await agent.unwinding.wait()
            assert (CircuitState.HALF_OPEN, False) == (breaker.state, await breaker.allow_request())
            agent.let_go.set()
    assert Aftermath.of(Told({"canceled": 1, "rejected": 1}, CircuitState.HALF_OPEN)) == await aftermath(breaker)


# The breaker's own answer.


@simulate(runs=5)
async def test_rejection_is_an_error_of_the_agent() -> None:
    """What an open circuit tells an agent is handled as any error, and the cause of the failed task."""
    breaker = CircuitBreaker("dependency", CONFIG)
    await breaker.on_failure(OUTAGE)
    await breaker.on_failure(OUTAGE)
    row = attrs.evolve(row_of("success result"), waiter=TaskExecutionError)
    agent = Scripted(row, breaker.execute)
    async with AgentRuntime() as runtime:
        runtime.registry("agents").register("scripted", agent)
        with pytest.raises(TaskExecutionError) as caught:
            await runtime.run("scripted")
    (error,) = agent.handled
    assert error is caught.value.__cause__
    assert isinstance(error, CircuitOpenError)
    assert ("dependency", CircuitState.OPEN, RESET, OUTAGE) == tuple(error.details.values())
    assert {"rejected": 1} == counts_of(breaker)


class Asking(BaseAgent):
    """An agent that takes its breaker from the context."""

    def __init__(self, step: Step) -> None:
        super().__init__(AgentConfig("asking", "test"))
        self.step = step

    async def initialize(self) -> bool:
        return True

    async def process(self, context: AgentContext) -> AgentResult:
        result: AgentResult = await context.breaker("dependency", CONFIG).execute(self.step)
        return result

    async def handle_error(self, error: Exception, context: AgentContext) -> AgentResult:
        raise error


@simulate(runs=5)
async def test_breaker_of_the_context() -> None:
    """The context gives the breaker of its runtime; without one it says so."""
    async with AgentRuntime() as runtime, AgentRuntime() as other:
        for step in (succeed, partial(succeed)):
            runtime.registry("agents").register("asking", Asking(step), replaces=True)
            assert {"answer": 42} == await runtime.run("asking")
        assert CONFIG is runtime.breaker("dependency").config
        assert {"successes": 2} == counts_of(runtime.breaker("dependency"))
        assert {} == counts_of(other.breaker("dependency"))
    with pytest.raises(AgentError) as caught:
        await Asking(succeed).execute(AgentContext())
    assert "breaker" in str(caught.value)
