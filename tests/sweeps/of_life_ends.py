"""Sweeps of what a runtime holds until its end, and of the ends themselves: resources, all kinds of work at once."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Self

import anyio

from agentcore import (
    AgentConfig,
    AgentRuntime,
    AgentState,
    CoreError,
    RuntimeClosedError,
    TaskExecutionError,
    execute_task,
    get_registry,
)
from agentcore._host import Host
from agentcore.testing import isolated_globals
from tests.sweeps.of_life import ASK, STREAM, Life, Tool, closed
from tests.sweeps.of_life_groups import GROUP, grouped, started
from tests.sweeps.of_runtime import BLOCK, END, Temporary, block
from tests.sweeps.scenarios import Boom, State, do, scenario, steps

RESOURCE = ("AgentRuntime.resource", "Resources.enter", "Resources.close_all")


class Asynchronous(Tool):
    """A resource that is opened and closed asynchronously."""

    async def __aenter__(self) -> Self:
        await do(self.opening)
        self.note("opened")
        return self

    async def __aexit__(self, *_: object) -> None:
        self.note("closing")
        await do(self.closing)


@asynccontextmanager
async def dying(tool: Tool) -> AsyncGenerator[Tool]:
    """Open a resource that a second after its opening ends by itself."""

    async def die() -> None:
        await anyio.sleep(1)
        raise Boom("as told")

    async with anyio.create_task_group() as group:
        group.start_soon(die)
        tool.note("opened")
        try:
            yield tool
        finally:
            tool.note("dead")
            tool.note("closing")
            group.cancel_scope.cancel()


@contextmanager
def synchronous(tool: Tool) -> Any:
    """Open and close a resource without a wait."""
    tool.note("opened")
    try:
        yield tool
    finally:
        tool.note("closing")


async def opened(state: Life, tool: Any, **options: Any) -> None:
    """Open a resource, which may be refused."""
    try:
        await state.runtime.resource(tool, **options)
    except (Boom, RuntimeClosedError):
        return


@scenario(closed(), *RESOURCE, *BLOCK, within=5.0)
async def hold_resources(state: Life) -> None:
    async def inside(state: Any) -> None:
        await state.runtime.resource(Asynchronous("one", state.log), "one")
        await state.runtime.resource(synchronous(Tool("two", state.log)), "two")
        await state.runtime.resource(Asynchronous("three", state.log, "sleep", "sleep"))
        await state.submit("sleep")

    await block(state, inside)
    state.expect(["closing three", "closing two", "closing one"] == state.log[3:])


@scenario(closed(lose=("Boom", "CallTimeoutError")), *RESOURCE, *BLOCK, within=8.0)
async def hold_what_does_not_close(state: Life) -> None:
    async def inside(state: Any) -> None:
        await state.runtime.resource(Asynchronous("one", state.log, closing="hang"), close_timeout=1.0)
        await state.runtime.resource(Asynchronous("two", state.log, closing="fail"))
        await state.runtime.resource(Asynchronous("three", state.log, closing="stubborn"), close_timeout=0.5)

    await block(state, inside)
    state.expect(3 == len(state.told))


@scenario(closed(), *RESOURCE, *BLOCK, within=6.0)
async def open_what_does_not_open(state: Life) -> None:
    """Whoever opens it is told, or gives up; the runtime goes on."""

    async def inside(state: Any) -> None:
        await opened(state, Asynchronous("one", state.log, "fail"))
        with anyio.move_on_after(1):
            await state.runtime.resource(Asynchronous("two", state.log, "hang"), "two")
        with anyio.move_on_after(1):
            await state.runtime.resource(Asynchronous("three", state.log, "stubborn"))
        await state.runtime.resource(Asynchronous("four", state.log), "two")

    await block(state, inside)
    state.expect(["opened four", "closing four"] == state.log)


@scenario(closed(), *RESOURCE, *BLOCK, within=5.0)
async def open_from_several_sides(state: Life) -> None:
    """One of them is cancelled; the others have it, by the same opening or another one."""

    async def inside(state: Any) -> None:
        tool = Asynchronous("one", state.log, "sleep")
        async with anyio.create_task_group() as group:
            with anyio.CancelScope() as scope:
                for _ in range(2):
                    group.start_soon(opened, state, tool)
                await steps(1)
                scope.cancel()
                await opened(state, tool)
            group.start_soon(opened, state, tool)
        state.expect("one" == (await state.runtime.resource(tool)).name)

    await block(state, inside)
    state.expect(["opened one", "closing one"] == state.log)


@scenario(closed(), *RESOURCE, *BLOCK, within=5.0)
async def open_inside_of_a_task(state: Life) -> None:
    async def inside(state: Any) -> None:
        async def inner() -> Any:
            return (await state.runtime.resource(Asynchronous("one", state.log, "sleep"))).name

        await state.submit("work", {"then": inner})

    await block(state, inside)


@scenario(closed(grace=0.5), *RESOURCE, *END, within=3.0)
async def shut_down_while_something_opens(state: Life) -> None:
    async def inside(state: Any) -> None:
        await state.runtime.resource(Asynchronous("one", state.log))
        async with anyio.create_task_group() as group:
            group.start_soon(opened, state, Asynchronous("two", state.log, "hang"))
            group.start_soon(opened, state, Asynchronous("three", state.log, "sleep"))
            await anyio.sleep(0.1)
            await state.runtime.shutdown()
        await opened(state, Asynchronous("four", state.log))

    await block(state, inside)
    state.expect(["opened one", "closing one"] == state.log)


@scenario(closed(lose=("Boom",)), *RESOURCE, *BLOCK, within=3.0, allow=(ExceptionGroup,))
async def hold_what_ends_by_itself(state: Life) -> None:
    """The runtime has failed then: tasks are cancelled, agents terminated, the rest is closed, and it is told."""

    async def inside(state: Any) -> None:
        await state.runtime.resource(Asynchronous("one", state.log, "work", "sleep"))
        await state.runtime.resource(dying(Tool("two", state.log)))
        await state.submit("stubborn")
        try:
            await state.ask("hang", "second")
        except RuntimeClosedError as error:
            state.refused.append(error)
        await anyio.sleep(5)

    await block(state, inside)
    state.expect(any(isinstance(error, Boom) for error in state.told))
    state.expect(all(agent.state is AgentState.TERMINATED for agent in state.team))


# The ends.


@scenario(closed(grace=1.0, in_flight=3), *BLOCK, *END, *RESOURCE, *GROUP, *STREAM, *ASK, within=5.0)
async def leave_with_everything_under_way(state: Life) -> None:
    """Tasks, asks, a stream and a group of another task are cut when the grace is over."""

    async def listen() -> None:
        try:
            await state.listen("hang", "second", emit=1)
        except RuntimeClosedError as error:
            state.refused.append(error)

    async def inside(state: Any) -> None:
        await state.runtime.resource(Asynchronous("one", state.log))
        for word in ("hang", "stubborn", "work", "fail"):
            await state.submit(word)
        others.start_soon(state.ask_quietly, "hang")
        others.start_soon(state.ask_quietly, "hang", "temporary")
        others.start_soon(listen)
        others.start_soon(grouped, state, started(state, "hang", "fail", "work"), "collect")
        await anyio.sleep(0.1)

    async with anyio.create_task_group() as others:
        await block(state, inside)
    state.expect(3 == len(state.refused))


@scenario(closed(grace=1.0, lose=("RuntimeClosedError", "AgentTimeoutError")), *BLOCK, *ASK, within=3.0)
async def leave_by_an_error_with_asks(state: Life) -> None:
    async def inside(state: Any) -> None:
        others.start_soon(state.ask_quietly, "stubborn")
        await state.submit("hang")
        await anyio.sleep(0.1)
        raise RuntimeClosedError("the block fails")

    async with anyio.create_task_group() as others:
        try:
            await block(state, inside)
        except RuntimeClosedError:
            return


class Opened(State):
    """A runtime that the scenario opens; this notes it as soon as it is there."""

    runtime: AgentRuntime | None = None

    async def check(self) -> None:
        await super().check()
        assert Host.find() is None
        if self.runtime is not None:
            assert ("closed", 0) == (self.runtime.health().state, self.runtime.statistics().tasks.in_flight)


@scenario(Opened, "AgentRuntime.open", "AgentRuntime.aclose", within=2.0)
async def open_and_close(state: Opened) -> None:
    runtime = state.runtime = await AgentRuntime.open(grace=1.0)
    try:
        runtime.handler("sleep")(lambda given: do("sleep"))
        runtime.handler("hang")(slowly)
        await runtime.submit("hang")
        await anyio.sleep(0.5)
    finally:
        await runtime.aclose()
        await runtime.aclose()


async def slowly(given: dict[str, Any]) -> None:
    """Take a minute."""
    await do("long")


@scenario(Opened, "AgentRuntime.open", "AgentRuntime.aclose", within=2.0)
async def close_in_another_task(state: Opened) -> None:
    """Entered by one task and left by another, both ended before the scenario goes on."""

    async def enter() -> None:
        state.runtime = await AgentRuntime.open(grace=1.0)

    async def leave() -> None:
        if state.runtime is not None:
            await state.runtime.aclose()

    try:
        async with anyio.create_task_group() as group:
            group.start_soon(enter)
        if state.runtime is not None:
            state.runtime.handler("hang")(slowly)
            await state.runtime.submit("hang")
    finally:
        with anyio.CancelScope(shield=True):
            async with anyio.create_task_group() as group:
                group.start_soon(leave)


@scenario(Opened, "AgentRuntime.open", "AgentRuntime.aclose", within=3.0)
async def close_from_several_sides(state: Opened) -> None:
    runtime = state.runtime = await AgentRuntime.open(grace=1.0)
    try:
        runtime.handler("hang")(slowly)
        await runtime.submit("hang")
        async with anyio.create_task_group() as group:
            group.start_soon(runtime.aclose)
            group.start_soon(runtime.aclose)
    finally:
        await runtime.aclose()


class Alone(State):
    """A process in which an agent is registered, and no runtime."""

    def __init__(self) -> None:
        self.made: list[Temporary] = []
        self._globals = isolated_globals()

    async def __aenter__(self) -> Self:
        self._globals.__enter__()

        def make() -> Temporary:
            self.made.append(Temporary(AgentConfig("temporary", "t")))
            return self.made[-1]

        get_registry("agents").register("temporary_agent", make)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._globals.__exit__(None, None, None)

    async def check(self) -> None:
        await super().check()
        assert all(agent.is_terminated and agent.inside == 0 for agent in self.made)


@scenario(Alone, "execute_task", within=0.0)
async def execute_one_task(state: Alone) -> None:
    state.expect({"by": "temporary"} == await execute_task("temporary", {"do": "sleep"}))
    with state.raises(TaskExecutionError):
        await execute_task("temporary", {"do": "fail"})


@scenario(closed(), "execute_task", "AgentRuntime.run", within=1.0)
async def execute_one_task_in_a_runtime(state: Life) -> None:
    async def inside(state: Any) -> None:
        try:
            state.expect({"word": "sleep"} == await execute_task("sleep"))
            await execute_task("fail")
        except CoreError:
            return

    await block(state, inside)
