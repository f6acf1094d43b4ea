"""An agent that does what a test tells it to do, the steps to tell it, and tasks in any state."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio

from agentcore import (
    AgentCapability,
    AgentConfig,
    AgentContext,
    AgentResult,
    AgentState,
    BaseAgent,
    BaseTask,
    TaskState,
)

OK = AgentResult.success_result({"ok": True})
SORRY = AgentResult.error_result({"sorry": True})

Step = Callable[..., Awaitable[Any]]


class MockAgent(BaseAgent):
    """Notes each call with the state it sees, then does what the test has told it to do."""

    on_initialize: Step | None = None
    on_process: Step | None = None
    on_error: Step | None = None

    def __init__(self, config: AgentConfig) -> None:
        super().__init__(config)
        self.calls: list[str] = []
        self.states: list[AgentState] = []
        self.errors: list[Exception] = []

    def _note(self, call: str) -> None:
        self.calls.append(call)
        self.states.append(self.state)

    async def initialize(self) -> bool:
        self._note("initialize")
        return await self.on_initialize() if self.on_initialize else True

    async def process(self, context: AgentContext) -> AgentResult:
        self._note("process")
        return await self.on_process(context) if self.on_process else OK

    async def handle_error(self, error: Exception, context: AgentContext) -> AgentResult:
        self._note("handle_error")
        self.errors.append(error)
        return await self.on_error(error) if self.on_error else SORRY


def returning(value: object) -> Step:
    """Make a step that returns `value`."""

    async def step(*args: object) -> object:
        return value

    return step


def raising(error: BaseException) -> Step:
    """Make a step that raises `error`."""

    async def step(*args: object) -> None:
        raise error

    return step


async def hanging(*args: object) -> None:
    """Never end."""
    await anyio.sleep_forever()


class Gate:
    """A step that counts who is inside and lets nobody out before it is opened."""

    def __init__(self) -> None:
        self.inside = self.peak = 0
        self.opened = anyio.Event()
        self.entered = anyio.Event()

    async def __call__(self, context: AgentContext) -> AgentResult:
        self.inside += 1
        self.peak = max(self.peak, self.inside)
        self.entered.set()
        try:
            await self.opened.wait()
        finally:
            self.inside -= 1
        return AgentResult.success_result(dict(context.parameters))


async def noting(outcomes: list[Any], function: Step, *args: Any) -> None:
    """Call a function and append what it returns or raises."""
    try:
        outcomes.append(await function(*args))
    except Exception as error:  # noqa: BLE001 - the test looks at it
        outcomes.append(error)


def configuration(**changes: Any) -> AgentConfig:
    """Configure an agent as most tests want it, with these changes."""
    settings: dict[str, Any] = {
        "name": "mock",
        "agent_type": "testing",
        "capabilities": {AgentCapability.REASONING, AgentCapability.MEMORY},
        "timeout": 30.0,
    }
    return AgentConfig(**(settings | changes))


def task_in(state: TaskState) -> BaseTask:
    """Make a task and take it to a state."""
    task = BaseTask.create("work", {"size": 1})
    if state is not TaskState.PENDING:
        task.start()
    if state is TaskState.COMPLETED:
        task.complete({"done": 1})
    elif state is TaskState.FAILED:
        task.fail({"why": "broken"})
    elif state is TaskState.CANCELED:
        task.cancel("not needed")
    return task
