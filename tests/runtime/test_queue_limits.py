"""How many executions may wait for an agent: the others are told at once that it is busy.

In virtual time, on asyncio and on trio, strict and hosted.
"""

from __future__ import annotations

from typing import Self

import anyio
import pytest

from agentcore import (
    AgentBusyError,
    AgentConfig,
    AgentContext,
    AgentDeadlockError,
    AgentResult,
    BaseAgent,
    BaseTask,
    ConfigurationError,
    TaskExecutionError,
    TaskState,
)
from agentcore.testing import current_simulation, simulate
from tests.runtime.lives import both_kinds, living


class Clerk(BaseAgent):
    """An agent that works for a second, or executes another one."""

    def __init__(self, config: AgentConfig) -> None:
        super().__init__(config)
        self.served: list[int] = []

    @classmethod
    def of(cls, max_waiting: int | None, max_concurrency: int = 1) -> Self:
        return cls(AgentConfig("clerk", "office", max_concurrency=max_concurrency, max_waiting=max_waiting))

    async def initialize(self) -> bool:
        return True

    async def process(self, context: AgentContext) -> AgentResult:
        if (other := context.parameters.get("other")) is not None:
            return await other.execute(AgentContext(parameters={"other": self}))
        await anyio.sleep(1)
        self.served.append(context.parameters.get("name", 0))
        return AgentResult.success_result({"served": len(self.served)})

    async def handle_error(self, error: Exception, context: AgentContext) -> AgentResult:
        return AgentResult.error_result(error)


@pytest.mark.parametrize("value", [-1, 1.5, True, "3"])
def test_an_unusable_limit_is_refused(value: object) -> None:
    """The error names it."""
    with pytest.raises(ConfigurationError, match="max_waiting of an agent must be a whole number, 0 or more: got "):
        AgentConfig("clerk", "office", max_waiting=value)  # type: ignore[arg-type]


@pytest.mark.parametrize("max_concurrency", [1, 3])
@pytest.mark.parametrize("max_waiting", [0, 2, None])
@simulate(runs=2)
async def test_so_many_may_wait_and_no_more(max_waiting: int | None, max_concurrency: int) -> None:
    """Further ones are refused without any wait, and those that wait are served in their order."""
    clerk = Clerk.of(max_waiting, max_concurrency)
    refused: list[AgentBusyError] = []

    async def call(name: int) -> None:
        try:
            await clerk.execute(AgentContext(parameters={"name": name}))
        except AgentBusyError as error:
            assert anyio.current_time() == 0
            refused.append(error)

    async with anyio.create_task_group() as group:
        for name in range(9):
            group.start_soon(call, name)
            await current_simulation().settle()
    taken = 9 if max_waiting is None else max_concurrency + max_waiting
    # Several at a time end in whatever order.
    assert (clerk.served if max_concurrency == 1 else sorted(clerk.served)) == list(range(taken))
    assert len(refused) == 9 - taken
    assert (clerk.metrics.executions, clerk.metrics.waiting, clerk.metrics.running) == (taken, 0, 0)
    for error in refused:
        assert error.details == {"agent": "clerk", "limit": max_waiting}
        assert error.retryable
        assert str(error) == (
            f"agent 'clerk' is busy and lets {max_waiting} executions wait for their turn: got one more; "
            "try again later, or raise max_waiting or max_concurrency"
        )


@simulate(runs=2)
async def test_whoever_stops_waiting_leaves_a_place() -> None:
    """So does who is served; a refusal takes none."""
    clerk = Clerk.of(max_waiting=1)
    async with anyio.create_task_group() as group:
        group.start_soon(clerk.execute, AgentContext())
        await current_simulation().settle()
        for _ in range(3):
            with anyio.move_on_after(0.1) as scope:
                async with anyio.create_task_group() as inner:
                    inner.start_soon(clerk.execute, AgentContext())
                    await current_simulation().settle()
                    with pytest.raises(AgentBusyError):
                        await clerk.execute(AgentContext())
            assert scope.cancelled_caught
        assert (await clerk.execute(AgentContext())).success
    assert len(clerk.served) == 2


@simulate(runs=2)
async def test_a_circle_is_told_as_a_circle_though_nobody_may_wait() -> None:
    """That it is busy would say that a further attempt may be of use."""
    clerk, other = Clerk.of(max_waiting=0), Clerk.of(max_waiting=0)
    result = await clerk.execute(AgentContext(parameters={"other": other}))
    assert isinstance(result.error, AgentDeadlockError)


@both_kinds
@simulate(runs=2)
async def test_whoever_asks_is_told(hosted: bool) -> None:
    """The error comes as it is, the agent and the others have no part in it."""
    clerk = Clerk.of(max_waiting=1)
    async with living(hosted) as runtime, anyio.create_task_group() as group:
        for _ in range(2):
            group.start_soon(runtime.ask, clerk)
            await current_simulation().settle()
        with pytest.raises(AgentBusyError):
            await runtime.ask(clerk)
        with pytest.raises(AgentBusyError):
            async with runtime.stream(clerk) as stream:
                async for _ in stream:
                    pass
        await anyio.sleep(2)
        assert (await runtime.ask(clerk)).output == {"served": 3}


@both_kinds
@simulate(runs=2)
async def test_a_task_whose_agent_is_busy_has_failed(hosted: bool) -> None:
    """It is FAILED with that error, whether it is run or submitted, and its slot is free again."""
    clerk = Clerk.of(max_waiting=1)
    async with living(hosted, in_flight=3) as runtime:
        runtime.registry("agents").register("clerk", clerk)
        handles = [await runtime.submit("clerk") for _ in range(2)]
        await current_simulation().settle()
        task = BaseTask.create("clerk")
        with pytest.raises(TaskExecutionError) as caught:
            await runtime.run(task)
        assert isinstance(caught.value.__cause__, AgentBusyError)
        assert (task.state, anyio.current_time()) == (TaskState.FAILED, 0)
        assert task.error is not None
        assert task.error["error_type"] == "AgentBusyError"
        refused = await runtime.submit("clerk")
        with pytest.raises(TaskExecutionError) as caught:
            await refused.result()
        assert isinstance(caught.value.__cause__, AgentBusyError)
        assert [await handle.result() for handle in handles] == [{"served": 1}, {"served": 2}]
        statistics = runtime.statistics().tasks
        assert (statistics.completed, statistics.failed, statistics.in_flight) == (2, 2, 0)


@both_kinds
@simulate(runs=2)
async def test_a_message_waits_for_its_turn_though_nobody_else_may(hosted: bool) -> None:
    """It was accepted by the mailbox, whose capacity is its limit: a busy agent does not crash of it."""
    async with living(hosted, grace=10) as runtime, anyio.create_task_group() as group:
        clerk = await runtime.spawn(Clerk, AgentConfig("clerk", "office", max_waiting=0), mailbox=3)
        group.start_soon(runtime.ask, clerk)
        await current_simulation().settle()
        for name in (1, 2, 3):
            await runtime.tell(clerk, {"name": name})
        await current_simulation().settle()
        with pytest.raises(AgentBusyError):
            await runtime.ask(clerk)
        await anyio.sleep(5)
        agent = clerk.agent
        assert isinstance(agent, Clerk)
        assert (agent.served, clerk.restarts, clerk.dropped) == ([0, 1, 2, 3], 0, 0)
