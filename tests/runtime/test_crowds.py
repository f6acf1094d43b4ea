"""Many who want a place in the queue at once: whatever becomes of each, nobody waits for a place that is free."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

import anyio
import pytest

from agentcore import (
    AgentContext,
    AgentRuntime,
    RuntimeClosedError,
    TaskHandle,
    TaskPriority,
    TaskTimeoutError,
)
from agentcore.testing import simulate
from tests.runtime.parts import check_at_rest, runtime_of

pytestmark = pytest.mark.anyio


class Crowd:
    """Submitters with and without keys, from outside and out of tasks, who are cancelled, too late or in time."""

    def __init__(self, runtime: AgentRuntime, random: Random) -> None:
        self.runtime = runtime
        self.random = random
        self.handles: list[TaskHandle] = []
        for function in (self.work, self.parent):
            runtime.handler(function.__name__)(function)

    def some_time(self) -> float:
        """Return a wait of which several end at the same time."""
        return self.random.choice([0, 0, 0.5, 1, 1, 2])

    async def work(self, given: dict[str, Any]) -> None:
        await anyio.sleep(given["seconds"])

    async def parent(self, given: dict[str, Any], context: AgentContext) -> None:
        for _ in range(2):
            await self.submit(context.submit)

    async def submit(self, submit: Callable[..., Awaitable[TaskHandle]]) -> None:
        """Submit something, perhaps in vain, and perhaps think better of it."""
        random = self.random
        task_type = random.choice(["work", "work", "parent"])
        options: dict[str, Any] = {"priority": random.choice(list(TaskPriority))}
        if random.random() < 0.2:
            options["queue_timeout"] = self.some_time()
        if random.random() < 0.6:
            options["key"] = f"{task_type} {random.randrange(3)}"
        with anyio.move_on_after(self.some_time() if random.random() < 0.2 else None):
            try:
                handle = await submit(task_type, {"seconds": self.some_time()}, **options)
            except (RuntimeClosedError, TaskTimeoutError):
                return
            self.handles.append(handle)
            if random.random() < 0.3:
                handle.cancel()

    async def one(self) -> None:
        """Come at some time."""
        await anyio.sleep(self.some_time())
        await self.submit(self.runtime.submit)

    async def watch(self) -> None:
        """Look again and again whether anybody waits in vain."""
        admission = self.runtime.tasks._admission
        while True:
            for line in (admission._slots, admission._room):
                assert line.limit is not None
                assert not len(line) or line.in_use >= line.limit
            await anyio.sleep(0.25)


@pytest.mark.parametrize("drains", [False, True])
@pytest.mark.parametrize("seed", range(20))
@simulate(runs=5)
async def test_nobody_waits_for_a_place_that_is_free(seed: int, drains: bool) -> None:
    """Whoever comes, with whatever key, gives up or is refused: all places come back, and all who want one get it."""
    random = Random(seed)
    limits = {"in_flight": random.randint(1, 2), "queue": random.randint(1, 2), "retention": random.randint(1, 3)}
    async with runtime_of(ageing=random.choice([1, 100]), **limits) as runtime, anyio.create_task_group() as watching:
        watching.cancel_scope.deadline = anyio.current_time() + 300
        crowd = Crowd(runtime, random)
        watching.start_soon(crowd.watch)
        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(crowd.one)
            if drains:
                await anyio.sleep(crowd.some_time())
                assert await runtime.drain(300)
        if not drains:
            await runtime.tasks.wait_idle()
        for handle in crowd.handles:
            assert handle.is_done
            await handle.wait()
        admission = runtime.tasks._admission
        assert {} == admission._submitters
        assert (0, 0, 0) == (len(admission._slots), len(admission._room), admission._room.in_use)
        if not drains:
            await check_at_rest(runtime, limits["in_flight"])
        watching.cancel_scope.cancel()
    assert anyio.current_time() < 300
