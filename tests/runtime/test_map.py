"""`map` and `as_completed`: a task for each input, never more than the limit under way, inputs drawn as there is room."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from agentcore import (
    AgentContext,
    AgentCrashedError,
    AgentRuntime,
    ConfigurationError,
    RuntimeClosedError,
    TaskCanceledError,
    TaskExecutionError,
    TaskGroupError,
    TaskRoutingError,
    TaskState,
)
from agentcore.testing import cancel_everywhere, simulate
from tests.runtime.doing import both, opened, runtime
from tests.runtime.parts import check_at_rest, holding

pytestmark = pytest.mark.anyio


class Inputs:
    """Numbered inputs that note how many of them have been drawn, and fail where they are told to."""

    def __init__(self, count: int, error_at: int | None = None) -> None:
        self.count = count
        self.error_at = error_at
        self.drawn = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for number in range(self.count):
            if number == self.error_at:
                raise OSError("no more inputs")
            self.drawn += 1
            yield {"n": number}


def napping(made: AgentRuntime) -> list[int]:
    """Register ``nap``, which takes 1 to 3 seconds and returns its input; return how many run at each start."""
    running: list[int] = []
    count = 0

    @made.handler("nap")
    async def nap(given: dict[str, Any]) -> dict[str, Any]:
        nonlocal count
        count += 1
        running.append(count)
        try:
            await anyio.sleep(3 - given["n"] % 3)
        finally:
            count -= 1
        return given

    return running


# map


@both
@pytest.mark.parametrize("limit", [1, 2, 5, 100, None])
@simulate(runs=5)
async def test_map_keeps_the_order(hosted: bool, limit: int | None) -> None:
    """Outputs come in the order of the inputs, and the limit holds."""
    async with opened(hosted=hosted, in_flight=4) as made:
        running = napping(made)
        outputs = await made.map("nap", Inputs(10), limit=limit)
        assert outputs == [{"n": number} for number in range(10)]
        assert max(running) == min(limit or 4, 4)
        await check_at_rest(made, 4)


@both
@simulate(runs=10)
async def test_map_draws_inputs_as_there_is_room(hosted: bool) -> None:
    """An input is drawn when its task can be started, and not before."""
    async with opened(hosted=hosted) as made, anyio.create_task_group() as group:
        hold, inputs = holding(made), Inputs(5)
        outputs: list[Any] = []

        async def use() -> None:
            outputs.extend(await made.map("hold", inputs, limit=2))

        group.start_soon(use)
        await anyio.wait_all_tasks_blocked()
        assert (hold.inside, inputs.drawn) == (2, 2)
        hold.opened.set()
    assert [output["n"] for output in outputs] == list(range(5))


async def test_map_of_nothing() -> None:
    """No inputs give no outputs."""
    async with opened() as made:
        assert await made.map("echo", []) == []
        assert await made.map("echo", iter(())) == []
        async with made.as_completed("echo", []) as done:
            assert [handle async for handle in done] == []
            with pytest.raises(StopAsyncIteration):
                await anext(done)


@both
@simulate(runs=10)
async def test_map_fails(hosted: bool) -> None:
    """The first failure cancels the rest: nothing further is drawn, and the error has the results of what has ended."""
    async with opened(hosted=hosted, in_flight=4) as made:

        @made.handler("third fails")
        async def third_fails(given: dict[str, Any]) -> dict[str, Any]:
            await anyio.sleep(1)
            if given["n"] == 2:
                raise ValueError("number 2")
            return given

        inputs = Inputs(10)
        with pytest.raises(TaskGroupError) as caught:
            await made.map("third fails", inputs, limit=1)
        assert [str(error.__cause__) for error in caught.value.exceptions] == ["number 2"]
        assert [result.output for result in caught.value.results] == [{"n": 0}, {"n": 1}, None]
        assert (inputs.drawn, anyio.current_time()) in ((3, 3), (4, 3))
        assert made.health().failures == ()
        await check_at_rest(made, 4)


@both
async def test_inputs_fail(hosted: bool) -> None:
    """What drawing an input raises is raised as it is, and what runs is cancelled."""
    async with opened(hosted=hosted) as made:
        holding(made)
        with pytest.raises(OSError, match="no more inputs"):
            await made.map("hold", Inputs(5, error_at=2))
        assert made.statistics().tasks.canceled == 2
        with pytest.raises(OSError, match="no more inputs"):
            async with made.as_completed("hold", Inputs(5, error_at=2)) as done:
                await anext(done)
        assert made.statistics().tasks.canceled == 4
        assert made.tasks.active() == []


@pytest.mark.parametrize("inputs", [None, "text", b"bytes", {"n": 1}, 5])
async def test_what_is_no_iterable_of_inputs(inputs: Any) -> None:
    """It is refused at once."""
    async with opened() as made:
        with pytest.raises(ConfigurationError, match="iterable of dictionaries"):
            await made.map("echo", inputs)
        with pytest.raises(ConfigurationError, match="iterable of dictionaries"):
            made.as_completed("echo", inputs)


@pytest.mark.parametrize("limit", [0, -1, True, 1.5, "2"])
async def test_limits_that_are_none(limit: Any) -> None:
    """A limit is a whole number, 1 or more."""
    async with opened() as made:
        with pytest.raises(ConfigurationError, match="limit"):
            await made.map("echo", [], limit=limit)
        with pytest.raises(ConfigurationError, match="limit"):
            made.as_completed("echo", [], limit=limit)


async def test_tasks_that_cannot_be_made() -> None:
    """An unknown type, and a runtime that is not open."""
    async with opened() as made:
        with pytest.raises(TaskRoutingError):
            await made.map("nobody", [{}])
        with pytest.raises(TaskRoutingError):
            async with made.as_completed("nobody", [{}]) as done:
                await anext(done)
    with pytest.raises(RuntimeClosedError):
        await made.map("echo", [{}])
    with pytest.raises(RuntimeClosedError):
        await runtime().map("echo", [{}])


@simulate(runs=5)
async def test_fields_and_timeout() -> None:
    """They are those of every task."""
    async with opened() as made:

        @made.handler("tell")
        async def tell(given: dict[str, Any], context: AgentContext) -> dict[str, Any]:
            assert context.task is not None
            return {"trace": context.task.trace_id, "priority": context.task.priority.name}

        assert await made.map("tell", [{}], trace_id="t", priority="HIGH") == [{"trace": "t", "priority": "HIGH"}]
        with pytest.raises(TaskGroupError, match="'timeout'"):
            await made.map("hang", [{}, {}], timeout=3)
        assert anyio.current_time() == 3


@both
@simulate(runs=5)
async def test_map_in_a_task(hosted: bool) -> None:
    """Children of the task, which lends its slot: with one slot in flight too."""
    async with opened(hosted=hosted, in_flight=1) as made:

        @made.handler("parent")
        async def parent(given: dict[str, Any], context: AgentContext) -> dict[str, Any]:
            outputs = await context.map("echo", Inputs(3))
            async with context.as_completed("echo", Inputs(3)) as done:
                outputs += [await handle.result() async for handle in done]
                assert all(
                    handle.task.parent_id == (context.task and context.task.id) for handle in done._group.handles
                )
            return {"numbers": [output["n"] for output in outputs]}

        assert await made.run("parent") == {"numbers": [0, 1, 2, 0, 1, 2]}
        await check_at_rest(made, 1)


async def test_a_task_that_is_ended_by_hand() -> None:
    """A task of `map` without an output, because its own agent has cancelled it, is told of as what it is."""
    async with opened() as made:

        @made.handler("quit")
        async def quit_(given: dict[str, Any], context: AgentContext) -> None:
            assert context.task is not None
            context.task.cancel("by hand")

        with pytest.raises((TaskGroupError, TaskCanceledError), match="by hand"):
            await made.map("quit", [{}])


@both
@simulate(runs=5)
async def test_map_is_cut_by_the_end_of_the_runtime(hosted: bool) -> None:
    """The caller learns which tasks were cancelled, and is not cancelled himself."""
    async with opened(hosted=hosted) as made, anyio.create_task_group() as group:
        caught: list[TaskGroupError] = []

        async def use() -> None:
            with pytest.raises(TaskGroupError) as told:
                await made.map("hang", Inputs(5), limit=2)
            await anyio.lowlevel.checkpoint()
            caught.append(told.value)

        group.start_soon(use)
        await anyio.wait_all_tasks_blocked()
        await made.shutdown(0)
    assert {type(leaf) for leaf in caught[0].exceptions} == {TaskCanceledError}


# as_completed


@both
@pytest.mark.parametrize("limit", [1, 2, 5, None])
@simulate(runs=5)
async def test_as_completed_in_the_order_of_their_end(hosted: bool, limit: int | None) -> None:
    """The handle that ended first comes first, whatever became of it; the limit holds."""
    async with opened(hosted=hosted, in_flight=9) as made:
        running = napping(made)
        seen: list[int] = []
        async with made.as_completed("nap", Inputs(9), limit=limit) as done:
            async for handle in done:
                assert handle.is_done
                seen.append(handle.task.input["n"])
                assert await handle.result() == handle.task.input
        assert sorted(seen) == list(range(9))
        assert max(running) <= (limit or 9)
        if limit is None:
            assert [number % 3 for number in seen] == [2] * 3 + [1] * 3 + [0] * 3
        if limit == 1:
            assert seen == list(range(9))


@simulate(runs=10)
async def test_as_completed_draws_inputs_as_handles_are_taken() -> None:
    """Who takes slowly has no more than the limit waiting for him."""
    async with opened() as made:
        inputs = Inputs(6)
        async with made.as_completed("echo", inputs, limit=2) as done:
            assert inputs.drawn == 0
            drawn = []
            async for _ in done:
                drawn.append(inputs.drawn)
                await anyio.sleep(1)
            assert drawn == [2, 3, 4, 5, 6, 6]


@both
@simulate(runs=10)
async def test_as_completed_goes_on_after_failures(hosted: bool) -> None:
    """A failure is the affair of who takes the handle; nothing else is cancelled."""
    async with opened(hosted=hosted) as made:

        @made.handler("odd")
        async def odd(given: dict[str, Any]) -> dict[str, Any]:
            if given["n"] % 2 == 0:
                raise ValueError(f"number {given['n']}")
            return given

        failed = 0
        async with made.as_completed("odd", Inputs(4), limit=1) as done:
            async for handle in done:
                failed += (await handle.wait()).state is TaskState.FAILED
        assert failed == 2
        assert made.health().failures == ()


async def test_failures_that_nobody_takes() -> None:
    """They are raised at the exit of the runtime."""
    with pytest.raises(AgentCrashedError) as caught:
        async with opened() as made:  # noqa: SIM117
            async with made.as_completed("fail", Inputs(2)) as done:
                async for handle in done:
                    if handle.task.input["n"] == 0:
                        await handle.wait()
    assert [str(error.__cause__) for error in caught.value.exceptions] == ["number 1"]


@both
@pytest.mark.parametrize("way", ["break", "raise", "cancel"])
@simulate(runs=10)
async def test_left_early(hosted: bool, way: str) -> None:
    """What is under way is cancelled and unwound, nothing further is drawn, an exception is untouched."""
    async with opened(hosted=hosted) as made:
        inputs, handles = Inputs(10), []
        napping(made)
        with anyio.move_on_after(None) as scope:
            try:
                async with made.as_completed("nap", inputs, limit=3) as done:
                    async for handle in done:
                        handles.append(handle)
                        if way == "raise":
                            raise KeyError("mine")
                        if way == "break":
                            break
                        scope.cancel()
            except KeyError:
                assert way == "raise"
            else:
                assert way == "break"
        assert inputs.drawn == 3
        assert made.tasks.active() == []
        assert (made.statistics().tasks.canceled, anyio.current_time()) == (2, 1)
        assert len(handles) == 1


@simulate(runs=10)
async def test_several_take_from_one() -> None:
    """Tasks that share the work each get handles, and all of them come to an end."""
    async with opened() as made:
        hold, seen = holding(made), []
        async with made.as_completed("hold", Inputs(6), limit=2) as done, anyio.create_task_group() as group:

            async def take() -> None:
                async for handle in done:
                    seen.append(handle.task.input["n"])  # noqa: PERF401

            for _ in range(3):
                group.start_soon(take)
            await anyio.wait_all_tasks_blocked()
            hold.opened.set()
        assert sorted(seen) == list(range(6))


@both
@pytest.mark.thorough
def test_cancelled_everywhere(hosted: bool) -> None:
    """Wherever they are cut short: no slot is held, every task has ended."""

    @asynccontextmanager
    async def build() -> AsyncGenerator[AgentRuntime]:
        async with opened(hosted=hosted, in_flight=2) as made:
            yield made

    async def act(made: AgentRuntime) -> None:
        await made.map("echo", Inputs(3), limit=2)
        async with made.as_completed("echo", Inputs(3), limit=2) as done:
            async for handle in done:
                await handle.result()

    async def check(made: AgentRuntime) -> None:
        assert made.tasks.active() == []
        await check_at_rest(made, 2)

    cancel_everywhere(
        act,
        build=build,
        check=check,
        schedules=("fifo", "walk/1"),
        modes=("block", "wake", "native"),
        allow=(TaskExecutionError,),
    )
