"""What each outcome means for the supervisor of an agent: the supervisors' column of `outcomes`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

from agentcore import (
    AgentConfig,
    AgentContext,
    AgentCrash,
    AgentCrashedError,
    AgentInitializationError,
    AgentRef,
    AgentRestartedError,
    AgentResult,
    AgentRuntime,
    Backoff,
    CircuitBreaker,
    Supervisor,
    TaskExecutionError,
    TaskState,
)
from agentcore.testing import simulate
from tests.core.guarded import CONFIG, counts_of
from tests.core.outcomes import (
    AT_START,
    CRASH,
    FROM_OUTSIDE,
    NOT_CONCERNED,
    TABLE,
    Guard,
    Row,
    Scripted,
    Slow,
    Told,
    raise_boom,
    ready,
    succeed,
    unguarded,
)

pytestmark = pytest.mark.anyio

AT_ONCE = Supervisor(backoff=Backoff(initial=0, maximum=0))
STARTED = [row for row in TABLE if row.supervisor != AT_START]
IN_TASKS = [row for row in STARTED if row.waiter is not SystemExit]  # which in a task ends the runtime besides


async def ask(runtime: AgentRuntime, row: Row) -> None:
    """Have the agent asked."""
    if isinstance(row.gives, type):
        with pytest.raises(row.gives):
            await runtime.ask("scripted", timeout=row.options.get("timeout", row.options.get("deadline")))
    else:
        result = await runtime.ask("scripted", timeout=row.options.get("timeout", row.options.get("deadline")))
        assert (row.gives is None) == result.success


async def run(runtime: AgentRuntime, row: Row) -> None:
    """Have it execute a task of the caller's."""
    if row.waiter is None:
        await runtime.run("scripted", **row.options)
    else:
        with pytest.raises(row.waiter):
            await runtime.run("scripted", **row.options)


async def submit(runtime: AgentRuntime, row: Row) -> None:
    """Have it execute a task of the runtime's."""
    handle = await runtime.submit("scripted", **row.options)
    result = await handle.wait()
    assert row.task == result.state


async def spawned(runtime: AgentRuntime, row: Row, guard: Guard = unguarded) -> AgentRef:
    """Start an agent that does what the row says, and that nothing is wrong with when it is started again."""
    made: list[Scripted] = []

    def make(config: AgentConfig) -> Scripted:
        agent = Scripted(
            row if not made else Row(name="well", gives=None, seen=[], task=TaskState.COMPLETED, breaker="-"), guard
        )
        made.append(agent)
        return agent

    return await runtime.spawn(make, AgentConfig("scripted", "test", timeout=row.timeout))


async def settled() -> None:
    await anyio.wait_all_tasks_blocked()


@pytest.mark.parametrize(
    ("row", "way"),
    [
        pytest.param(row, way, id=f"{row.name}-{way.__name__}")
        for way in (ask, run, submit)
        for row in (STARTED if way is not submit else IN_TASKS)
    ],
)
@simulate(runs=3)
async def test_what_an_execution_means(row: Row, way: Callable[[AgentRuntime, Row], Awaitable[None]]) -> None:
    """The agent is started again exactly if the row says that it has crashed; it works in any case."""
    async with AgentRuntime(supervisor=AT_ONCE) as runtime:
        ref = await spawned(runtime, row)
        await way(runtime, row)
        await settled()
        assert (int(row.supervisor == CRASH), "up") == (ref.restarts, ref.state)
        if row.supervisor == CRASH:
            assert (await runtime.ask(ref)).success


@pytest.mark.parametrize("row", [row for row in STARTED if not row.options], ids=lambda row: row.name)
@simulate(runs=3)
async def test_what_a_message_means(row: Row) -> None:
    """Nobody gets the result, so all but a success is a crash; the message is dropped, and those behind it are not."""
    async with AgentRuntime(supervisor=AT_ONCE) as runtime:
        ref = await spawned(runtime, row)
        await runtime.tell(ref)
        await runtime.tell(ref)
        assert await runtime.drain()
        crashes = int(row.gives is not None)
        assert (crashes, crashes, "up") == (ref.restarts, ref.dropped, ref.state)
        assert ref.agent is not None
        assert (2 - crashes) == ref.agent.metrics.executions


@pytest.mark.parametrize("row", [row for row in TABLE if row.supervisor == AT_START], ids=lambda row: row.name)
@simulate(runs=3)
async def test_what_a_failed_start_means(row: Row) -> None:
    """The spawner is told, and nothing is there; when the agent is started again it is a crash, and tried again."""
    async with AgentRuntime(supervisor=AT_ONCE) as runtime:
        with pytest.raises(AgentInitializationError):
            await spawned(runtime, row)
        assert () == runtime.supervisor.children
        starts = iter([ready, row.initialize, row.initialize, ready])

        def make(config: AgentConfig) -> Scripted:
            return Scripted(
                Row(name="well", initialize=next(starts), gives=None, seen=[], task=TaskState.COMPLETED, breaker="-")
            )

        ref = await runtime.spawn(make, AgentConfig("late", "test"))
        assert ref.agent is not None
        await ref.agent.terminate()
        await settled()
        assert "up" == ref.state
        assert [] == list(starts)


class Crashing(Scripted):
    """An agent that cannot go on."""

    async def process(self, context: AgentContext) -> AgentResult:
        result: AgentResult = await self.guard(self.give_up)
        return result

    async def give_up(self) -> Any:
        raise AgentCrash("no more")


@pytest.mark.parametrize("way", ["ask", "run", "submit", "tell"])
@simulate(runs=3)
async def test_an_agent_that_says_that_it_cannot_go_on(way: str) -> None:
    """No handler of errors is asked; the caller gets the crash, the task has failed, and the agent is started again."""
    cells = FROM_OUTSIDE["AgentCrash"]
    told = cells["breaker"]
    assert isinstance(told, Told)
    breaker = CircuitBreaker("dependency", CONFIG)
    made: list[Scripted] = []
    row = Row(name="well", process=succeed, gives=None, seen=[], task=TaskState.COMPLETED, breaker="-")

    def make(config: AgentConfig) -> Scripted:
        made.append((Scripted if made else Crashing)(row, breaker.execute))
        return made[-1]

    async with AgentRuntime(supervisor=AT_ONCE) as runtime:
        ref = await runtime.spawn(make, AgentConfig("scripted", "test"))
        if way == "ask":
            with pytest.raises(AgentCrash, match="no more"):
                await runtime.ask(ref)
        elif way == "run":
            with pytest.raises(TaskExecutionError, match="no more") as caught:
                await runtime.run("scripted")
            assert isinstance(caught.value.__cause__, AgentCrash)
        elif way == "submit":
            assert TaskState.FAILED == (await (await runtime.submit("scripted")).wait()).state
        else:
            await runtime.tell(ref)
        await settled()
        assert [] == made[0].handled
        assert told.counts == counts_of(breaker)
        assert (int(cells["supervisor"] == CRASH), "up") == (ref.restarts, ref.state)


@simulate(runs=3)
async def test_a_message_that_is_not_handled_is_told_to_the_breaker() -> None:
    cells = FROM_OUTSIDE["a tell handler fails"]
    told = cells["breaker"]
    assert isinstance(told, Told)
    breaker = CircuitBreaker("dependency", CONFIG)
    row = next(row for row in TABLE if row.process is raise_boom and row.handle_error is None)
    async with AgentRuntime(supervisor=AT_ONCE) as runtime:
        ref = await spawned(runtime, row, breaker.execute)
        await runtime.tell(ref)
        await settled()
        assert told.counts == counts_of(breaker)
        assert int(cells["supervisor"] == CRASH) == ref.restarts


@pytest.mark.parametrize("way", ["ask", "run", "submit", "tell"])
@simulate(runs=3)
async def test_an_agent_that_is_started_again_while_it_executes(way: str) -> None:
    """With another one that has crashed: who asks is told, the task has failed, and the circuit knows nothing of it."""
    cells = FROM_OUTSIDE["the supervisor restarts the agent"]
    told = cells["breaker"]
    assert isinstance(told, Told)
    breaker = CircuitBreaker("dependency", CONFIG)
    made: list[Slow] = []

    def make(config: AgentConfig) -> Slow:
        made.append(Slow(breaker.execute))
        return made[-1]

    async with AgentRuntime(supervisor=Supervisor("one_for_all", backoff=Backoff(0, maximum=0)), grace=0) as runtime:
        ref = await runtime.spawn(make, AgentConfig("slow", "test"))
        crashing = await runtime.spawn(lambda _: Crashing(TABLE[0]), AgentConfig("crashing", "test"))

        async def crash() -> None:
            await made[0].begun.wait()
            with pytest.raises(AgentCrash):
                await runtime.ask(crashing)

        async with anyio.create_task_group() as group:
            group.start_soon(crash)
            if way == "ask":
                with pytest.raises(AgentRestartedError, match="agent 'slow' was started again while it executed this"):
                    await runtime.ask(ref)
            elif way == "run":
                with pytest.raises(TaskExecutionError) as caught:
                    await runtime.run("slow")
                assert isinstance(caught.value.__cause__, AgentRestartedError)
            elif way == "submit":
                assert TaskState.FAILED == (await (await runtime.submit("slow")).wait()).state
            else:
                await runtime.tell(ref)
        await settled()
        assert told.counts == counts_of(breaker)
        assert (1, int(way == "tell"), "up") == (ref.restarts, ref.dropped, ref.state)
        assert NOT_CONCERNED == cells["supervisor"]


@simulate(runs=3)
async def test_too_many_restarts_end_the_runtime() -> None:
    """With a group of all the crashes that were too many."""
    row = next(row for row in TABLE if row.process is raise_boom and row.handle_error is None)
    with pytest.raises(
        AgentCrashedError, match="supervisor 'root' gives up: got 3 restarts within 5 s, 2 are allowed"
    ) as caught:
        async with AgentRuntime(supervisor=Supervisor(intensity=2, backoff=Backoff(0, maximum=0))) as runtime:
            ref = await runtime.spawn(lambda _: Scripted(row), AgentConfig("scripted", "test"))
            for _ in range(5):
                await runtime.tell(ref)
            await anyio.sleep_forever()
    (group,) = caught.value.exceptions
    assert isinstance(group, AgentCrashedError)
    assert ["BoomError"] * 3 == [type(error).__name__ for error in group.exceptions]
    assert {"supervisor": "root", "agents": ["scripted"], "intensity": 2} == group.details
