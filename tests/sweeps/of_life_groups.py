"""Sweeps of groups: tasks that end with a block, and what is made of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.lowlevel

from agentcore import CoreError, TaskGroup, TaskGroupError, TaskHandle, TaskState
from tests.sweeps.of_life import Life, closed, open_
from tests.sweeps.of_runtime import block
from tests.sweeps.scenarios import Crash, leaves, scenario

GROUP = ("TaskGroup.__aenter__", "TaskGroup.__aexit__")
MAP = ("AgentRuntime.map", "TaskGroup.wait_below", *GROUP)
COMPLETED = ("Completions.__aenter__", "Completions.__aexit__", "Completions.__anext__", *GROUP)


async def grouped(
    state: Life, body: Callable[[TaskGroup], Awaitable[object]], on_error: Any = "cancel"
) -> BaseException | None:
    """Do something in a group and return what it raises, once the cancellation that may hide behind it has been met."""
    try:
        async with state.runtime.group(on_error) as group:
            await body(group)
    except (CoreError, ExceptionGroup) as error:
        state.learn(error)
        await anyio.lowlevel.checkpoint_if_cancelled()
        return error
    return None


def start(state: Life, group: TaskGroup, word: str, given: Any = None, **options: Any) -> TaskHandle:
    """Start a task in a group, and note it and its handle."""
    handle = group.start(state.make(word, given), **options)
    state.handles.append(handle)
    return handle


def started(state: Life, *words: str) -> Callable[[TaskGroup], Awaitable[object]]:
    """Return what starts tasks in a group."""

    async def body(group: TaskGroup) -> None:
        for word in words:
            start(state, group, word)

    return body


@scenario(open_(), *GROUP, strict=True, within=0.0)
async def group_of_some(state: Life) -> None:
    state.expect(await grouped(state, started(state, "work", "sleep", "work")) is None)
    state.expect({TaskState.COMPLETED} == {handle.state for handle in state.handles})


@scenario(open_(in_flight=1), *GROUP, "TaskHandle.result", strict=True, within=0.0)
async def group_with_one_slot(state: Life) -> None:
    async def body(group: TaskGroup) -> None:
        first = start(state, group, "sleep")
        start(state, group, "work")
        await state.retrieve(first)
        start(state, group, "work")

    state.expect(await grouped(state, body) is None)


@scenario(open_(), *GROUP, within=1.0)
async def group_with_a_failure(state: Life) -> None:
    """The siblings are cancelled, and their clean-up ends."""
    error = await grouped(state, started(state, "stubborn", "work", "hang", "fail"))
    state.expect(isinstance(error, TaskGroupError) and len(leaves(error)) == 1)


@scenario(open_(), *GROUP, within=0.0)
async def group_with_failures_at_once(state: Life) -> None:
    error = await grouped(state, started(state, "fail", "fail", "hang", "fail"))
    state.expect(isinstance(error, TaskGroupError))


@scenario(open_(), *GROUP, within=1.0)
async def group_that_tells_the_first(state: Life) -> None:
    error = await grouped(state, started(state, "fail", "stubborn", "fail"), "first")
    state.expect(isinstance(error, CoreError) and not isinstance(error, ExceptionGroup))


@scenario(open_(), *GROUP, within=0.0)
async def group_that_collects(state: Life) -> None:
    async def body(group: TaskGroup) -> None:
        for word in ("fail", "sleep", "fail"):
            start(state, group, word)
        await anyio.sleep(2)
        state.expect([False, True, False] == [result.success for result in group.results])
        for handle in group.handles:
            if handle.is_done:
                state.look(handle)

    state.expect(await grouped(state, body, "collect") is None)


@scenario(closed(in_flight=2), *GROUP, within=0.0)
async def group_that_nobody_looks_at(state: Life) -> None:
    """What it has collected is told at the end of the runtime."""

    async def inside(state: Any) -> None:
        await grouped(state, started(state, "fail", "sleep", "fail"), "collect")

    await block(state, inside)
    state.expect(2 == len(state.told))


@scenario(open_(in_flight=2), *GROUP, within=1.0)
async def group_whose_block_fails(state: Life) -> None:
    async def body(group: TaskGroup) -> None:
        for word in ("stubborn", "hang", "work"):
            start(state, group, word)
        await anyio.sleep(0.1)
        raise RegistryBoom

    for on_error in ("cancel", "first", "collect"):
        error = await grouped(state, body, on_error)
        state.expect(isinstance(error, RegistryBoom))


class RegistryBoom(CoreError):
    """What the block of a group raises."""

    def __init__(self) -> None:
        super().__init__("the block fails")


@scenario(open_(in_flight=2), *GROUP, within=1.0)
async def group_cancelled_by_hand(state: Life) -> None:
    async def body(group: TaskGroup) -> None:
        for word in ("stubborn", "hang", "hang"):
            start(state, group, word)
        await anyio.sleep(0.1)
        group.cancel("not needed")
        await anyio.sleep(9)
        state.expect(False)

    state.expect(await grouped(state, body) is None)
    state.expect({TaskState.CANCELED} == {handle.state for handle in state.handles})


@scenario(open_(in_flight=1), *GROUP, within=0.0)
async def group_inside_of_a_task(state: Life) -> None:
    """The parent lends its slot to the children, and to theirs."""

    async def inner() -> Any:
        return repr(await grouped(state, middle))

    async def middle(group: TaskGroup) -> None:
        start(state, group, "sleep")
        start(state, group, "work", {"then": innermost})

    async def innermost() -> Any:
        return repr(await grouped(state, started(state, "sleep", "fail", "work"), "first"))

    async with anyio.create_task_group() as group:
        group.start_soon(state.run_quietly, "work")
        group.start_soon(state.run, "work", {"then": inner})


@scenario(open_(lose=("Crash",)), *GROUP, within=1.0, allow=(Crash,))
async def group_with_a_crash(state: Life) -> None:
    try:
        await grouped(state, started(state, "stubborn", "crash", "fail"))
    except BaseExceptionGroup as group:
        state.note(group)
        state.learn(group)
        crashes, rest = group.split(Crash)
        state.expect(crashes is not None)
        cancelled = anyio.get_cancelled_exc_class()
        if any(isinstance(leaf, cancelled) for leaf in leaves(rest or group)):
            raise
    await anyio.lowlevel.checkpoint_if_cancelled()


@scenario(open_(grace=0.5), *GROUP, "AgentRuntime.shutdown", within=1.5)
async def shut_down_a_group(state: Life) -> None:
    async def inside() -> None:
        error = await grouped(state, started(state, "hang", "stubborn", "work"))
        state.expect(isinstance(error, TaskGroupError))

    async with anyio.create_task_group() as group:
        group.start_soon(inside)
        await anyio.sleep(0.1)
        await state.runtime.shutdown()


# What is made of groups.


async def mapped(state: Life, word: str, count: int, **options: Any) -> list[Any] | None:
    """Run a task for each of some inputs; None if it raises."""
    try:
        return await state.runtime.map(word, [{"n": number} for number in range(count)], **options)
    except TaskGroupError as error:
        state.learn(error)
        await anyio.lowlevel.checkpoint_if_cancelled()
        return None


@scenario(open_(), *MAP, strict=True, within=0.0)
async def map_some(state: Life) -> None:
    state.expect(3 == len(await mapped(state, "sleep", 3, limit=2) or ()))
    state.expect([] == await mapped(state, "work", 0))


@scenario(open_(in_flight=2), *MAP, within=2.0)
async def map_what_fails(state: Life) -> None:
    state.expect(await mapped(state, "fail", 4) is None)
    state.expect(await mapped(state, "stubborn", 3, timeout=1.0, limit=1) is None)


@scenario(open_(in_flight=1), *MAP, strict=True, within=0.0)
async def map_inside_of_tasks(state: Life) -> None:
    async def inner() -> Any:
        return await mapped(state, "sleep", 3, limit=2)

    async with anyio.create_task_group() as group:
        for _ in range(2):
            group.start_soon(state.run, "work", {"then": inner})


async def completed(state: Life, word: str, count: int, *, most: int = 9, **options: Any) -> int:
    """Go through tasks as they end, and return how many have been taken."""
    taken = 0
    async with state.runtime.as_completed(word, [{"n": number} for number in range(count)], **options) as ended:
        async for handle in ended:
            state.handles.append(handle)
            await state.retrieve(handle)
            taken += 1
            if taken == most:
                break
    return taken


@scenario(open_(), *COMPLETED, strict=True, within=0.0)
async def take_all(state: Life) -> None:
    state.expect(3 == await completed(state, "sleep", 3, limit=2))


@scenario(open_(in_flight=2), *COMPLETED, within=1.0)
async def take_some(state: Life) -> None:
    state.expect(1 == await completed(state, "work", 4, most=1))
    state.expect(1 == await completed(state, "stubborn", 3, most=1, timeout=1.0))


@scenario(open_(in_flight=2), *COMPLETED, within=0.0)
async def take_failures(state: Life) -> None:
    state.expect(3 == await completed(state, "fail", 3, limit=3))


@scenario(open_(in_flight=1), *COMPLETED, within=0.0)
async def take_inside_of_a_task(state: Life) -> None:
    async def inner() -> Any:
        return await completed(state, "sleep", 3, limit=2)

    await state.run("work", {"then": inner})
