"""Sweeps of tasks and of registries."""

from __future__ import annotations

from typing import Any

import anyio

from agentcore import (
    BaseTask,
    ClassRegistry,
    FunctionRegistry,
    Registry,
    TaskState,
    TaskTimeoutError,
)
from tests.sweeps.scenarios import Boom, State, do, scenario, steps


class Tasks(State):
    """A task with a timeout, and what is awaited for it."""

    def __init__(self, timeout_ms: int | None = 1_000) -> None:
        self.task = BaseTask.create("work", timeout_ms=timeout_ms)
        self.begun = self.ended = 0

    async def work(self, word: str) -> str:
        """Do something, and count it."""
        self.begun += 1
        try:
            await do(word)
            return word
        finally:
            self.ended += 1

    async def check(self) -> None:
        await super().check()
        assert self.begun == self.ended
        assert (TaskState.PENDING, 0, ()) == (self.task.state, self.task.attempt, self.task.events)
        assert "work" == await self.task.with_timeout(self.work("work"))


COVERED = ("BaseTask.with_timeout",)


@scenario(lambda: Tasks(5_000), *COVERED, strict=True, within=0.0)
async def wait_with_time_enough(state: Tasks) -> None:
    state.expect("sleep" == await state.task.with_timeout(state.work("sleep")))


@scenario(Tasks, *COVERED, within=1.0)
async def wait_with_too_little_time(state: Tasks) -> None:
    with state.raises(TaskTimeoutError):
        await state.task.with_timeout(state.work("long"))


@scenario(Tasks, *COVERED, within=2.0)
async def wait_for_what_is_hard_to_end(state: Tasks) -> None:
    with state.raises(TaskTimeoutError):
        await state.task.with_timeout(state.work("stubborn"))


@scenario(lambda: Tasks(None), *COVERED, strict=True, within=0.0)
async def wait_without_a_timeout(state: Tasks) -> None:
    state.expect("sleep" == await state.task.with_timeout(state.work("sleep")))


@scenario(Tasks, *COVERED, strict=True, within=0.0)
async def wait_for_what_fails(state: Tasks) -> None:
    with state.raises(Boom):
        await state.task.with_timeout(state.work("fail"))


@scenario(Tasks, *COVERED, within=2.0)
async def wait_inside_of_a_wait(state: Tasks) -> None:
    """The inner timeout is the longer one: the outer one tells."""

    async def inner() -> str:
        return await state.task.with_timeout(state.work("long"), 2_000)

    with state.raises(TaskTimeoutError):
        await state.task.with_timeout(inner())


@scenario(Tasks, *COVERED, within=1.0)
async def wait_in_several_tasks(state: Tasks) -> None:
    async def quietly(word: str) -> None:
        try:
            await state.task.with_timeout(state.work(word))
        except TaskTimeoutError:
            return

    async with anyio.create_task_group() as group:
        for word in ("work", "sleep", "long"):
            group.start_soon(quietly, word)


class Thing:
    """What is registered."""

    def __init__(self, size: int = 1) -> None:
        self.size = size


class Registries(State):
    """One registry of each kind, with a lazy item in it."""

    def __init__(self) -> None:
        self.plain: Registry[Any] = Registry("plain")
        self.functions = FunctionRegistry("functions")
        self.classes = ClassRegistry("classes")
        for registry in (self.plain, self.functions, self.classes):
            registry.register("thing", Thing)
            registry.register_lazy("lazy", "tests.sweeps.of_tasks:Thing")

    async def check(self) -> None:
        await super().check()
        for registry in (self.plain, self.functions, self.classes):
            assert await registry.get("thing") is not None
            assert await registry.get("lazy") is not None
            assert await registry.get("nothing") is None
            statistics = registry.statistics()
            assert statistics.lookups == statistics.hits + statistics.misses
            assert (2, 2) == (statistics.registrations, statistics.size)
        assert 3 == (await self.classes.create_instance("thing", size=3)).size


@scenario(
    Registries,
    "Registry.get",
    "FunctionRegistry.get",
    "ClassRegistry.get",
    "ClassRegistry.create_instance",
    strict=True,
    within=0.0,
)
async def look_up(state: Registries) -> None:
    """They never wait, so all that can be cancelled lies between."""

    async def look(registry: Registry[Any]) -> None:
        for name in ("thing", "lazy", "nothing"):
            await registry.get(name)
            await steps()

    async with anyio.create_task_group() as group:
        for registry in (state.plain, state.functions, state.classes):
            group.start_soon(look, registry)
        state.expect(1 == (await state.classes.create_instance("thing")).size)
        await steps()
        state.expect(2 == (await state.classes.create_instance("lazy", size=2)).size)
