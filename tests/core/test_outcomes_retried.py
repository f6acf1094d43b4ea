"""What is retried of the outcomes that come from outside: the column ``retried`` of `outcomes`, for tasks with a policy."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from agentcore import (
    AgentConfig,
    AgentCrash,
    AgentResult,
    AgentRuntime,
    Backoff,
    BaseTask,
    RetryPolicy,
    Supervisor,
    TaskState,
)
from agentcore.testing import simulate
from tests.core.outcomes import FROM_OUTSIDE, NEVER, NOT_CONCERNED, RETRIED, TABLE, Row, Scripted, Slow, succeed

pytestmark = pytest.mark.anyio

POLICY = RetryPolicy(attempts=3, backoff=Backoff(1.0, jitter=False))
AT_ONCE = Backoff(0, maximum=0)
WELL = Row(name="well", process=succeed, gives=None, seen=[], task=TaskState.COMPLETED, breaker="-")


def test_every_outcome_has_a_cell() -> None:
    """Of a message there is no task."""
    cells = {name: cells["retried"] for name, cells in FROM_OUTSIDE.items()}
    assert {RETRIED, NEVER, NOT_CONCERNED} == set(cells.values())


class Crashing(Scripted):
    """An agent that cannot go on."""

    async def process(self, context: Any) -> AgentResult:
        raise AgentCrash("no more")


@pytest.mark.parametrize("way", ["run", "submit"])
@simulate(runs=5)
async def test_an_agent_that_says_that_it_cannot_go_on(way: str) -> None:
    """The task is executed again, by the agent that was started in its place."""
    assert RETRIED == FROM_OUTSIDE["AgentCrash"]["retried"]
    made: list[Scripted] = []

    def make(config: AgentConfig) -> Scripted:
        made.append((Scripted if made else Crashing)(WELL))
        return made[-1]

    task = BaseTask.create("scripted")
    async with AgentRuntime(supervisor=Supervisor(backoff=AT_ONCE)) as runtime:
        ref = await runtime.spawn(make, AgentConfig("scripted", "test"))
        if way == "run":
            output = await runtime.run(task, retry=POLICY)
        else:
            output = await (await runtime.submit(task, retry=POLICY)).result()
        assert ({"answer": 42}, 2, 1, 1) == (output, task.attempt, task.failures, ref.restarts)


@pytest.mark.parametrize("way", ["run", "submit"])
@simulate(runs=5)
async def test_an_agent_that_is_started_again_while_it_executes(way: str) -> None:
    """Because of another one that has crashed: the task is executed again."""
    assert RETRIED == FROM_OUTSIDE["the supervisor restarts the agent"]["retried"]
    made: list[Any] = []

    def make(config: AgentConfig) -> Any:
        made.append(Scripted(WELL) if made else Slow())
        return made[-1]

    task = BaseTask.create("slow")
    async with AgentRuntime(supervisor=Supervisor("one_for_all", backoff=AT_ONCE)) as runtime:
        await runtime.spawn(make, AgentConfig("slow", "test"))
        crashing = await runtime.spawn(lambda _: Crashing(TABLE[0]), AgentConfig("crashing", "test"))

        async def crash() -> None:
            await made[0].begun.wait()
            with pytest.raises(AgentCrash):
                await runtime.ask(crashing)

        async with anyio.create_task_group() as group:
            group.start_soon(crash)
            if way == "run":
                output = await runtime.run(task, retry=POLICY)
            else:
                output = await (await runtime.submit(task, retry=POLICY)).result()
        assert ({"answer": 42}, 2, 1, 1.0) == (output, task.attempt, task.failures, anyio.current_time())


@pytest.mark.parametrize(
    "outcome", ["the caller's scope is cancelled", "handle.cancel(reason)", "shutdown after grace"]
)
@simulate(runs=5)
async def test_a_cancellation(outcome: str) -> None:
    """Is never retried, whatever the agent raises while it is unwound."""
    assert NEVER == FROM_OUTSIDE[outcome]["retried"]
    agent, task = Slow(), BaseTask.create("slow")
    async with AgentRuntime(grace=1.0) as runtime:
        runtime.registry("agents").register("slow", agent)
        if outcome == "the caller's scope is cancelled":
            async with anyio.create_task_group() as group:
                group.start_soon(lambda: runtime.run(task, retry=POLICY))
                await agent.begun.wait()
                group.cancel_scope.cancel()
        else:
            handle = await runtime.submit(task, retry=POLICY)
            await agent.begun.wait()
            if outcome == "handle.cancel(reason)":
                handle.cancel("no longer wanted")
                await handle.wait()
    assert (TaskState.CANCELED, 1) == (task.state, task.attempt)
    assert 0 == runtime.statistics().tasks.retried
