"""What a type checker tells the user of agentcore. Checked by mypy and pyright, both strict; never run."""

from collections.abc import Awaitable, Callable
from typing import Any, assert_type

import agentcore
from agentcore import (
    AgentConfig,
    AgentContext,
    AgentResult,
    AgentRuntime,
    BaseAgent,
    BaseTask,
    Registry,
    TaskExecutionError,
    TaskFactory,
    TaskHandle,
    TaskPriority,
    TaskResult,
    TaskState,
)


class Greeter(BaseAgent):
    """The least that an agent must have."""

    async def initialize(self) -> bool:
        return True

    async def process(self, context: AgentContext) -> AgentResult:
        return AgentResult.success_result({"hello": context.parameters["name"]})

    async def handle_error(self, error: Exception, context: AgentContext) -> AgentResult:
        return AgentResult.error_result({"message": str(error)})


async def agents() -> None:
    async with Greeter(AgentConfig(name="greeter", agent_type="greet")) as greeter:
        assert_type(greeter, Greeter)
        result = await greeter.execute(AgentContext(parameters={"name": "you"}))
        assert_type(result, AgentResult)
        assert_type(result.success, bool)
        assert_type(greeter.is_idle, bool)


async def tasks() -> None:
    task = TaskFactory.create_task("greet", {"name": "you"}, priority=TaskPriority.HIGH)
    assert_type(task, BaseTask)
    assert_type(task.state, TaskState)
    assert_type(task.is_finished, bool)
    assert_type(TaskResult.from_task(task), TaskResult)

    async def answer() -> int:
        return 42

    assert_type(await task.with_timeout(answer()), int)


async def runtimes() -> None:
    async with AgentRuntime() as runtime:
        assert_type(runtime, AgentRuntime)
        handle = await runtime.submit("greet", {"name": "you"})
        assert_type(handle, TaskHandle)
        assert_type(await handle.wait(), TaskResult)
        try:
            await handle.result()
        except TaskExecutionError as error:
            assert_type(error.message, str)


def registries() -> None:
    names: Registry[int] = Registry("numbers")
    assert_type(names.get_sync("one"), int | None)


def entry(main: Callable[[AgentRuntime, str], Awaitable[int]]) -> None:
    assert_type(agentcore.run(main, "argument", backend="trio"), int)


def outputs(handle: TaskHandle) -> Any:
    return handle.task.output
