"""An agent that does what a test tells it, and runtimes of both kinds to do it in."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from agentcore import AgentConfig, AgentContext, AgentResult, AgentRuntime, BaseAgent, RuntimeConfig
from tests.runtime.parts import echo, fail, hang

both = pytest.mark.parametrize("hosted", [False, True], ids=["strict", "hosted"])

Work = Callable[[AgentContext], Awaitable[Any]]


class Doing(BaseAgent):
    """An agent made of functions. What `process` returns is the output; what is not given succeeds at once."""

    def __init__(
        self,
        process: Work | None = None,
        *,
        name: str = "doing",
        initialize: Callable[[], Awaitable[Any]] | None = None,
        handle_error: Work | None = None,
        terminate: Callable[[], Awaitable[Any]] | None = None,
        **config: Any,
    ) -> None:
        super().__init__(AgentConfig(name, "test", **config))
        self.does = process
        self.first = initialize
        self.handles = handle_error
        self.cleans_up = terminate
        self.handled: list[Exception] = []
        self.ended = 0

    async def initialize(self) -> bool:
        if self.first is not None:
            await self.first()
        return True

    async def process(self, context: AgentContext) -> AgentResult:
        return AgentResult.success_result(await self.does(context) if self.does is not None else None)

    async def handle_error(self, error: Exception, context: AgentContext) -> AgentResult:
        self.handled.append(error)
        if self.handles is not None:
            await self.handles(context)
        return AgentResult.error_result(type(error).__name__)

    async def terminate(self) -> None:
        self.ended += 1
        if self.cleans_up is not None:
            await self.cleans_up()


async def forever(context: AgentContext) -> None:
    """Never end."""
    await anyio.sleep_forever()


async def boom(context: AgentContext) -> None:
    """Fail."""
    raise ValueError("boom")


async def leave_python(context: AgentContext) -> None:
    """Raise what no ``except Exception`` may catch."""
    raise SystemExit(3)


def runtime(*, hosted: bool = False, grace: float = 0, **limits: int) -> AgentRuntime:
    """Make a runtime with these limits and the handlers ``echo``, ``fail`` and ``hang``; it waits for nothing at exit."""
    made = AgentRuntime(RuntimeConfig(**limits), grace=grace, hosted=hosted)
    for function in (echo, fail, hang):
        made.handler(function.__name__)(function)
    return made


@asynccontextmanager
async def opened(*, hosted: bool = False, grace: float = 0, **limits: int) -> AsyncGenerator[AgentRuntime]:
    """Enter and leave such a runtime; if it is hosted, its host has ended too afterwards."""
    try:
        async with runtime(hosted=hosted, grace=grace, **limits) as made:
            yield made
    finally:
        if hosted:
            with anyio.CancelScope(shield=True):
                await anyio.wait_all_tasks_blocked()


def behind(error: BaseException) -> set[type[BaseException]]:
    """Return the types of an error, of what is in it if it is a group, and of what caused all that."""
    inner = [*getattr(error, "exceptions", []), *([error.__cause__] if error.__cause__ is not None else [])]
    return {type(error)}.union(*map(behind, inner))


def register(made: AgentRuntime, name: str, item: Any) -> Any:
    """Register an agent, a class or a factory, and return it."""
    made.registry("agents").register(name, item)
    return item
