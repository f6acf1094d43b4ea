"""Agents that would wait for each other for ever are told so, in whatever way they call each other; and none that would not."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.to_thread
import pytest

from agentcore import AgentContext, AgentDeadlockError, AgentResult, AgentRuntime, TaskGroupError
from agentcore._agents import waits
from agentcore.testing import simulate
from tests.runtime.doing import Doing, both, opened, register

pytestmark = pytest.mark.anyio

Call = Callable[[AgentContext, str], Awaitable[object]]


async def ask(context: AgentContext, name: str) -> object:
    return checked(await context.ask(name))


async def run(context: AgentContext, name: str) -> object:
    return await context.run(name)


async def submit(context: AgentContext, name: str) -> object:
    return await (await context.submit(name)).result()


async def group(context: AgentContext, name: str) -> object:
    async with context.group() as children:
        children.start(name)
    return children.results


async def as_map(context: AgentContext, name: str) -> object:
    return await context.map(name, [{}])


async def as_completed(context: AgentContext, name: str) -> object:
    async with context.as_completed(name, [{}]) as done:
        return [await handle.result() async for handle in done]


async def stream(context: AgentContext, name: str) -> object:
    async with context.stream(name) as items:
        async for _ in items:
            pass
    return checked(items.result)


async def in_a_task_group(context: AgentContext, name: str) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask, context, name)


def checked(result: AgentResult) -> object:
    if result.cause is not None:
        raise result.cause
    return result.output


WAYS: list[Call] = [ask, run, submit, group, as_map, as_completed, stream, in_a_task_group]
every = pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)


def find_deadlock(error: BaseException | None) -> AgentDeadlockError | None:
    """Return what is at the bottom of an error that went through several agents."""
    while error is not None and not isinstance(error, AgentDeadlockError):
        error = error.exceptions[0] if isinstance(error, BaseExceptionGroup) else error.__cause__
    return error


async def deadlock_of(made: AgentRuntime, name: str) -> AgentDeadlockError | None:
    """Ask an agent and return the deadlock that was found, None if none was."""
    with anyio.fail_after(60):
        result = await made.ask(name)
    return find_deadlock(result.cause)


def calling(made: AgentRuntime, name: str, way: Call | None, other: str = "", **config: Any) -> Doing:
    """Register an agent that calls another one."""

    async def process(context: AgentContext) -> None:
        if way is not None:
            await way(context, other)

    agent: Doing = register(made, name, Doing(process, name=name, **config))
    return agent


def at_rest(*agents: Doing) -> None:
    """Check that no agent has lost a slot and nothing waits."""
    assert [(agent._slots.in_use, agent.metrics.running, agent.metrics.waiting) for agent in agents] == [
        (0, 0, 0)
    ] * len(agents)
    assert waits._waits == {}


@both
@every
@simulate(runs=3)
async def test_one_chain(hosted: bool, way: Call) -> None:
    """A calls B, B calls A."""
    async with opened(hosted=hosted, in_flight=1) as made:
        agents = [calling(made, "a", way, "b"), calling(made, "b", way, "a")]
        found = await deadlock_of(made, "a")
        assert found is not None
        assert {"a", "b"} <= set(found.details["agents"])
        assert made.statistics().tasks.in_flight == 0
        at_rest(*agents)


@every
@simulate(runs=3)
async def test_itself(way: Call) -> None:
    """The shortest circle."""
    async with opened() as made:
        agent = calling(made, "a", way, "a")
        found = await deadlock_of(made, "a")
        assert found is not None
        assert "a" in found.details["agents"]
        at_rest(agent)


@both
@every
@simulate(runs=20)
async def test_two_chains_that_cross(hosted: bool, way: Call) -> None:
    """A has B called, B has A called, at once: one of them is told, and the other comes to its end."""
    async with opened(hosted=hosted) as made:
        agents = [calling(made, "a", way, "b"), calling(made, "b", way, "a")]
        both_in = [anyio.Event(), anyio.Event()]
        for agent, own, other in ((agents[0], *both_in), (agents[1], *reversed(both_in))):
            agent.does = after(agent.does, own, other)
        found: list[AgentDeadlockError | None] = []

        async def enter(name: str) -> None:
            found.append(await deadlock_of(made, name))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(enter, "a")
            tasks.start_soon(enter, "b")
        # Two: whoever comes second may call somebody in whose chain the first deadlock is told again.
        assert any(one is not None for one in found)
        at_rest(*agents)


def after(process: Any, own: anyio.Event, other: anyio.Event) -> Any:
    """Return a process that begins when both have begun; only the first time."""

    async def wait(context: AgentContext) -> None:
        if own.is_set():
            return
        own.set()
        await other.wait()
        await process(context)

    return wait


@every
@simulate(runs=5)
async def test_another_execution_can_end(way: Call) -> None:
    """With two executions at a time there is room for the inner one, and for one more there is none."""
    async with opened() as made:
        depth = 0

        async def process(context: AgentContext) -> None:
            nonlocal depth
            depth += 1
            if depth <= deepest:
                await way(context, "a")

        agent = register(made, "a", Doing(process, name="a", max_concurrency=2))
        deepest = 1
        assert await deadlock_of(made, "a") is None
        deepest, depth = 2, 0
        assert await deadlock_of(made, "a") is not None
        at_rest(agent)


@every
@simulate(runs=10)
async def test_a_wait_that_ends_is_none(way: Call) -> None:
    """The other execution is somebody else's, who is not in the circle: the call waits, and gets its turn."""
    async with opened() as made:

        async def nap(context: AgentContext) -> None:
            await anyio.sleep(5)

        napping = register(made, "nap", Doing(nap, name="nap"))
        caller = calling(made, "a", way, "nap")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(made.ask, "nap")
            await anyio.wait_all_tasks_blocked()
            assert await deadlock_of(made, "a") is None
        assert anyio.current_time() == 10
        at_rest(napping, caller)


@simulate(runs=10)
async def test_children_that_wait_for_each_other() -> None:
    """Two children of a group call the agents that the other one is executed by."""
    async with opened() as made:
        both_in = [anyio.Event(), anyio.Event()]
        agents = [calling(made, "a", ask, "b"), calling(made, "b", ask, "a")]
        for agent, own, other in ((agents[0], *both_in), (agents[1], *reversed(both_in))):
            agent.does = after(agent.does, own, other)
        with pytest.raises(TaskGroupError) as caught:
            async with made.group() as children:
                children.start("a")
                children.start("b")
        assert find_deadlock(caught.value) is not None
        at_rest(*agents)


@simulate(runs=10)
async def test_a_task_that_waits_for_its_waiter() -> None:
    """A task is submitted and waited for by an agent that it calls: the wait for the handle closes the circle."""
    async with opened() as made:
        found: list[object] = []

        async def process(context: AgentContext) -> None:
            if found:  # asked by the other one, after the end of the first execution
                return
            handle = await context.submit("b")
            await anyio.sleep(1)  # by now it waits for this agent, as it may: nobody waits for it yet
            try:
                await handle.wait()
            except AgentDeadlockError as error:
                found.append(error.details["agents"])

        agents = [register(made, "a", Doing(process, name="a")), calling(made, "b", ask, "a")]
        assert (await made.ask("a")).success
        await made.drain()
        assert len(found) == 1
        at_rest(*agents)


@both
async def test_through_a_thread(hosted: bool) -> None:
    """A synchronous handler in a worker thread calls back: its chain goes on in there."""
    async with opened(hosted=hosted) as made:

        async def process(context: AgentContext) -> None:
            await anyio.to_thread.run_sync(call)

        def call() -> None:
            checked(made.from_thread(made.ask, "a", timeout=2))

        agent = register(made, "a", Doing(process, name="a"))
        assert await deadlock_of(made, "a") is not None
        at_rest(agent)


@simulate(runs=10)
async def test_initialisation() -> None:
    """Two agents whose initialisations ask each other."""
    async with opened() as made:

        async def initialize_a() -> None:
            checked(await made.ask("b"))

        async def initialize_b() -> None:
            checked(await made.ask("a"))

        agents = [
            register(made, "a", Doing(name="a", initialize=initialize_a, max_concurrency=5)),
            register(made, "b", Doing(name="b", initialize=initialize_b, max_concurrency=5)),
        ]
        with contextlib.suppress(AgentDeadlockError):
            assert await deadlock_of(made, "a") is not None
        at_rest(*agents)
