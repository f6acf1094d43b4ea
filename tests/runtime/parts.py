"""Handlers that do what a test tells them, and what every test wants to be true in the end."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from agentcore import AgentContext, AgentResult, AgentRuntime, BaseAgent, RuntimeConfig, TaskHandle


class Hold:
    """A handler that notes who comes, and lets nobody out before it is opened."""

    def __init__(self) -> None:
        self.came: list[Any] = []
        self.left: list[Any] = []
        self.inside = self.peak = 0
        self.entered = anyio.Event()
        self.opened = anyio.Event()

    async def __call__(self, given: Mapping[str, Any]) -> dict[str, Any]:
        self.came.append(given.get("n"))
        self.inside += 1
        self.peak = max(self.peak, self.inside)
        self.entered.set()
        try:
            await self.opened.wait()
        finally:
            self.inside -= 1
            self.left.append(given.get("n"))
        return dict(given)


class Clumsy(BaseAgent):
    """An agent that succeeds and notes its end; what it is told to raise when it is terminated, it raises."""

    def __init__(self, config: Any, ended: list[str] | None = None, error: Exception | None = None) -> None:
        super().__init__(config)
        self.ended = [] if ended is None else ended
        self.error = error

    async def initialize(self) -> bool:
        return True

    async def process(self, context: AgentContext) -> AgentResult:
        return AgentResult.success_result({"by": self.name})

    async def handle_error(self, error: Exception, context: AgentContext) -> AgentResult:
        return AgentResult.error_result(str(error))

    async def terminate(self) -> None:
        self.ended.append(self.name)
        if self.error is not None:
            raise self.error


async def echo(given: dict[str, Any]) -> dict[str, Any]:
    """Return the input."""
    return given


async def fail(given: dict[str, Any]) -> None:
    """Raise a ValueError with the input's ``n`` as its text."""
    raise ValueError(f"number {given.get('n')}")


async def hang(given: dict[str, Any]) -> None:
    """Never end."""
    await anyio.sleep_forever()


def runtime_of(*, grace: float = 0, **limits: int) -> AgentRuntime:
    """Make a runtime with these limits and the handlers ``echo``, ``fail`` and ``hang``; it waits for nothing at exit."""
    runtime = AgentRuntime(RuntimeConfig(**limits), grace=grace)
    for function in (echo, fail, hang):
        runtime.handler(function.__name__)(function)
    return runtime


def holding(runtime: AgentRuntime, task_type: str = "hold") -> Hold:
    """Register a `Hold`."""
    hold = Hold()
    runtime.handler(task_type)(hold)
    return hold


async def submit_all(runtime: AgentRuntime, task_type: str, count: int, **fields: Any) -> list[TaskHandle]:
    """Submit tasks with ``n`` from 0 on."""
    return [await runtime.submit(task_type, {"n": number}, **fields) for number in range(count)]


async def check_at_rest(runtime: AgentRuntime, in_flight: int) -> None:
    """Check that no slot and no place in the queue was lost: none is in use, and all can be taken again."""
    with anyio.fail_after(5):
        statistics = runtime.statistics().tasks
        assert (statistics.in_flight, statistics.queued) == (0, 0)
        assert runtime.tasks.active() == []
        assert runtime.tasks._admission._room.in_use == 0
        hold = holding(runtime, "check at rest")
        handles = await submit_all(runtime, "check at rest", in_flight + 1)
        await anyio.wait_all_tasks_blocked()
        assert hold.inside == in_flight
        hold.opened.set()
        for handle in handles:
            await handle.wait()
        assert await runtime.run("echo", {"n": 1}) == {"n": 1}
        assert runtime.statistics().tasks.in_flight == 0


@asynccontextmanager
async def must_end(runtime: AgentRuntime, seconds: float = 3) -> AsyncGenerator[None]:
    """Fail if the block takes longer. A runtime that waits for what never ends does so shielded, so no scope can cut it.

    Then its tasks are ended by force, for the other tests to go on.
    """
    late: list[str] = []

    async def watch() -> None:
        await anyio.sleep(seconds)
        late.append(f"this did not end within {seconds} s: {runtime!r}, {runtime.tasks.active()}")
        for job in list(runtime.tasks._ledger.jobs.values()):
            job.scope.cancel()
        await anyio.sleep(0.2)
        runtime.tasks._ledger.jobs.clear()
        if runtime.tasks._ended is not None:
            runtime.tasks._ended.set()

    async with anyio.create_task_group() as group:
        group.start_soon(watch)
        try:
            yield
        finally:
            group.cancel_scope.cancel()
            if late:
                pytest.fail(late[0])


async def start_all(group: anyio.abc.TaskGroup, *functions: Any) -> None:
    """Start functions one after the other, each once the ones before have come to a halt."""
    for function in functions:
        group.start_soon(function)
        await anyio.wait_all_tasks_blocked()
