"""`execute_task`: one task, in the current runtime or without any; its agent is ended whatever happens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from agentcore import (
    AgentConfig,
    AgentContext,
    AgentCrashedError,
    AgentResult,
    AgentRuntime,
    BaseAgent,
    RuntimeClosedError,
    TaskExecutionError,
    TaskPriority,
    TaskRoutingError,
    clear_registries,
    execute_task,
    get_registry,
)
from tests.runtime.test_health import raising

pytestmark = pytest.mark.anyio


class Agent(BaseAgent):
    """Does what its task tells it; notes what becomes of it."""

    made: list[Agent]
    error: Exception | None = None

    def __init__(self) -> None:
        super().__init__(AgentConfig(name="worker", agent_type="work"))
        self.ends = 0
        self.seen: list[Any] = []
        self.entered = anyio.Event()
        self.made.append(self)

    async def initialize(self) -> bool:
        return True

    async def process(self, context: AgentContext) -> AgentResult:
        assert context.task is not None
        self.seen.append((context.task.type, context.task.priority))
        self.entered.set()
        do = context.task.input.get("do")
        if do == "fail":
            return AgentResult.error_result({"message": "as told"})
        if do == "raise":
            raise ValueError("as told")
        if do == "hang":
            await anyio.sleep_forever()
        return AgentResult.success_result({"done": True})

    async def handle_error(self, error: Exception, context: AgentContext) -> AgentResult:
        return AgentResult.error_result({"error_type": type(error).__name__, "message": str(error)})

    async def terminate(self) -> None:
        self.ends += 1
        if self.error is not None:
            raise self.error


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    """Register the agent for the process, as the specification's programs do."""
    clear_registries()
    Agent.made, Agent.error = [], None
    get_registry("agents").register("work_agent", Agent)
    get_registry("agents").register("short", Agent)
    get_registry("task_handlers").register("double", lambda given: {"n": given["n"] * 2})
    yield
    clear_registries()


@pytest.fixture(params=["none", "strict", "hosted"])
async def around(request: pytest.FixtureRequest, anyio_backend: Any) -> str:
    """What the call is made in."""
    kind: str = request.param
    return kind


class Around:
    """A runtime of a kind, or none."""

    def __init__(self, kind: str) -> None:
        self.runtime = None if kind == "none" else AgentRuntime(hosted=kind == "hosted", grace=0)

    async def __aenter__(self) -> AgentRuntime | None:
        return await self.runtime.__aenter__() if self.runtime is not None else None

    async def __aexit__(self, *error: object) -> None:
        if self.runtime is not None:
            await self.runtime.__aexit__(*error)


def check_ended(count: int = 1) -> None:
    """Check that each agent was made for one task and has been ended once."""
    assert [1] * count == [agent.ends for agent in Agent.made]


async def test_a_task_is_executed(around: str) -> None:
    """Its output comes back; in a runtime it is one of its tasks, with the priority."""
    async with Around(around) as runtime:
        assert await execute_task("work", {"n": 1}, TaskPriority.HIGH) == {"done": True}
        assert await execute_task("short", {}) == {"done": True}
        assert await execute_task("double", {"n": 2}) == {"n": 4}
        assert await execute_task("work") == {"done": True}
        if runtime is not None:
            assert runtime.statistics().tasks.completed == 4
    assert Agent.made[0].seen == [("work", TaskPriority.HIGH)]
    assert Agent.made[1].seen == [("short", TaskPriority.NORMAL)]
    check_ended(3)


async def test_an_unknown_type_is_a_value_error(around: str) -> None:
    """As the specification has it; the message lists what is known, and nothing was made."""
    async with Around(around):
        with pytest.raises(ValueError, match="'nothing'") as caught:
            await execute_task("nothing", {})
    assert isinstance(caught.value, TaskRoutingError)
    assert "known are 'double', 'short', 'work'" in str(caught.value)
    assert Agent.made == []


@pytest.mark.parametrize("do", ["fail", "raise"])
async def test_a_failure_is_an_error(around: str, do: str) -> None:
    """With what the agent said; it has been ended."""
    async with Around(around):
        with pytest.raises(TaskExecutionError, match="as told") as caught:
            await execute_task("work", {"do": do})
    assert caught.value.details["type"] == "work"
    if do == "raise":
        assert isinstance(caught.value.__cause__, ValueError)
    check_ended()


async def test_a_cancellation_ends_the_agent(around: str) -> None:
    """Before the cancellation goes on; no task is left."""
    with anyio.fail_after(5):
        async with Around(around) as runtime:
            async with anyio.create_task_group() as group:
                group.start_soon(execute_task, "work", {"do": "hang"})
                while not Agent.made:
                    await anyio.lowlevel.checkpoint()
                await Agent.made[0].entered.wait()
                group.cancel_scope.cancel()
            check_ended()
            if runtime is not None:
                assert runtime.tasks.is_idle


@pytest.mark.parametrize("kind", ["none", "strict", "hosted"])
def test_a_native_cancellation_ends_the_agent(kind: str) -> None:
    """So does `Task.cancel()`."""

    async def main() -> None:
        async with Around(kind):
            task = asyncio.create_task(execute_task("work", {"do": "hang"}))  # type: ignore[arg-type, unused-ignore]
            await anyio.wait_all_tasks_blocked()
            await Agent.made[0].entered.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            check_ended()

    asyncio.run(main())


async def test_a_clean_up_that_fails_is_not_lost(around: str) -> None:
    """Without a runtime it is raised by the call, with one at its end."""
    Agent.error = OSError("disk")
    with raising(AgentCrashedError) as caught:
        async with Around(around) as runtime:
            output = await execute_task("work", {})
            assert runtime is not None
            assert output == {"done": True}
    assert "disk" in str(caught.value)
    check_ended()


async def test_in_a_generator_it_needs_nothing_said() -> None:
    """The runtime that it makes for one task is left before anything is yielded."""

    async def outputs() -> AsyncGenerator[dict[str, Any]]:
        for _ in range(2):
            yield await execute_task("work", {})

    assert [output async for output in outputs()] == [{"done": True}] * 2


async def test_in_a_runtime_that_is_closed_it_goes_without() -> None:
    """A context that outlives its runtime does not hinder."""
    runtime = AgentRuntime()
    async with runtime:
        await runtime.shutdown()
        assert await execute_task("work", {}) == {"done": True}
    assert runtime.statistics().tasks.accepted == 0


async def test_a_runtime_that_drains_refuses_it() -> None:
    """It is the current one."""
    async with AgentRuntime() as runtime:
        await runtime.drain()
        with pytest.raises(RuntimeClosedError, match="shutting down"):
            await execute_task("work", {})


async def test_two_hosted_runtimes_are_an_error() -> None:
    """It cannot be told which one is meant; going without would escape their limits and their end."""
    async with AgentRuntime(hosted=True), AgentRuntime(hosted=True):
        with pytest.raises(RuntimeClosedError, match="hosts several"):
            await execute_task("work", {})
