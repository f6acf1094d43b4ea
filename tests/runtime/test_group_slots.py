"""Groups and the rest of the runtime: when tasks can be started, what becomes of slots, what the error carries."""

from __future__ import annotations

import contextlib
import pickle
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from agentcore import (
    AgentContext,
    ConfigurationError,
    RuntimeClosedError,
    TaskCanceledError,
    TaskExecutionError,
    TaskGroupError,
    TaskRoutingError,
)
from agentcore.testing import simulate
from tests.runtime.doing import both, opened, runtime
from tests.runtime.parts import check_at_rest
from tests.runtime.test_group import Ways, every, with_late

pytestmark = pytest.mark.anyio


async def test_outside_of_the_block() -> None:
    """Tasks are started inside of the block alone; and a group is entered once."""
    async with opened() as made:
        group = made.group()
        with pytest.raises(RuntimeClosedError, match="before"):
            group.start("echo")
        group.cancel()
        async with group:
            with pytest.raises(RuntimeClosedError, match="entered once"):
                await group.__aenter__()
        with pytest.raises(RuntimeClosedError, match="after"):
            group.start("echo")
        with pytest.raises(RuntimeClosedError, match="entered once"):
            await group.__aenter__()
        assert made.tasks.active() == []
        with pytest.raises(ConfigurationError, match="on_error"):
            made.group("ignore")  # type: ignore[arg-type]
    with pytest.raises(RuntimeClosedError, match="closed"):
        await made.group().__aenter__()
    with pytest.raises(RuntimeClosedError, match="new"):
        await runtime().group().__aenter__()


async def test_what_cannot_be_started() -> None:
    """Nothing of it stays behind."""
    async with opened() as made:
        async with made.group() as group:
            with pytest.raises(TaskRoutingError):
                group.start("nobody")
            with pytest.raises(ConfigurationError):
                group.start("echo", timeout=-1)
        assert group.handles == ()


@both
@pytest.mark.parametrize("inside", [False, True], ids=["in the main block", "in a task"])
@simulate(runs=10)
async def test_the_runtime_is_shut_down(hosted: bool, inside: bool) -> None:
    """The tasks of a group are cut like others; the block learns of it, and the report names them."""
    async with opened(hosted=hosted) as made, anyio.create_task_group() as group:
        caught: list[BaseException] = []

        async def use(way: Any) -> None:
            async with way.group() as children:
                children.start("hang")

        @made.handler("parent")
        async def parent(given: dict[str, Any], context: AgentContext) -> None:
            await use(context)

        async def act() -> None:
            try:
                await (made.run("parent") if inside else use(made))
            except (TaskGroupError, TaskCanceledError) as error:
                caught.append(error)
            await anyio.lowlevel.checkpoint()
            caught.append(RuntimeError("the caller is not cancelled"))

        group.start_soon(act)
        await anyio.wait_all_tasks_blocked()
        report = await made.shutdown(3)
        assert {result.type for result in report.cut_short} == ({"parent", "hang"} if inside else {"hang"})
        assert anyio.current_time() == 3
    if inside:
        assert isinstance(caught[0], TaskCanceledError)
    else:
        assert isinstance(caught[0], TaskGroupError)
        assert [type(leaf) for leaf in caught[0].exceptions] == [TaskCanceledError]
    assert len(caught) == 2


@both
@simulate(runs=10)
async def test_draining(hosted: bool) -> None:
    """In a task, a group goes on while the runtime drains; in the main block it takes no further tasks."""
    async with opened(hosted=hosted, grace=60) as made:
        drained = anyio.Event()

        @made.handler("parent")
        async def parent(given: dict[str, Any], context: AgentContext) -> dict[str, Any]:
            async with context.group() as group:
                group.start("echo", {"n": 1})
                await drained.wait()
                handle = group.start("echo", {"n": 2})
            return await handle.result()

        handle = await made.submit("parent")
        await anyio.wait_all_tasks_blocked()
        async with made.group() as group:
            assert await made.drain(0) is False
            with pytest.raises(RuntimeClosedError, match="draining"):
                group.start("echo")
        drained.set()
        assert await handle.result() == {"n": 2}


# Slots.


@both
@pytest.mark.parametrize("in_flight", [1, 2])
@every
@simulate(runs=5)
async def test_nested_groups(hosted: bool, in_flight: int, on_error: Ways) -> None:
    """However deep: parents lend their slots, and none is lost."""
    async with opened(hosted=hosted, in_flight=in_flight) as made:

        @made.handler("tree")
        async def tree(given: dict[str, Any], context: AgentContext) -> dict[str, Any]:
            async with context.group(on_error) as group:
                for _ in range(3 if given["depth"] else 0):
                    group.start("tree", {"depth": given["depth"] - 1})
                await anyio.lowlevel.checkpoint()
            assert all(handle.task.parent_id == (context.task and context.task.id) for handle in group.handles)
            return {"count": 1 + sum(result.output["count"] for result in group.results if result.output)}

        assert await made.run("tree", {"depth": 3}) == {"count": 1 + 3 + 9 + 27}
        await check_at_rest(made, in_flight)


@both
@every
@simulate(runs=10)
async def test_slots_come_back_from_groups_that_fail(hosted: bool, on_error: Ways) -> None:
    """Whatever happens in a group in a task: afterwards every slot is there, and the task has its own until its end."""
    async with opened(hosted=hosted, in_flight=2) as made, with_late(made):
        in_flight: list[int] = []

        @made.handler("parent")
        async def parent(given: dict[str, Any], context: AgentContext) -> None:
            for way in ("fail", "cancel", "hang"):
                with contextlib.suppress(TaskGroupError, TaskExecutionError, TaskCanceledError), anyio.move_on_after(1):
                    async with context.group(on_error) as group:
                        group.start("late")
                        group.start("fail" if way == "fail" else "hang")
                        await anyio.sleep(0.5)
                        group.cancel() if way == "cancel" else None
                        await anyio.sleep_forever()
                group.results  # noqa: B018 - looked at
                in_flight.append(made.statistics().tasks.in_flight)

        assert await made.run("parent") == {"result": None}
        assert in_flight == [1, 1, 1]
        await check_at_rest(made, 2)


@simulate(runs=5)
async def test_a_parent_without_children_lends_nothing() -> None:
    """The slot is lent from the first task of the group on, not before."""
    async with opened(in_flight=1) as made:

        @made.handler("parent")
        async def parent(given: dict[str, Any], context: AgentContext) -> int:
            async with context.group() as group:
                before = made.statistics().tasks.in_flight
                group.start("echo")
            return before

        assert await made.run("parent") == {"result": 1}


@simulate(runs=5)
async def test_the_first_task_is_started_by_somebody_else() -> None:
    """It is the task around the block that waits for the children, so it is that one's slot that is lent."""
    async with opened(in_flight=1) as made, anyio.create_task_group() as outside:
        groups: list[Any] = []

        @made.handler("parent")
        async def parent(given: dict[str, Any], context: AgentContext) -> dict[str, Any]:
            async with context.group() as group:
                groups.append(group)
                await started.wait()
            return dict(group.results[0].output or {})

        started = anyio.Event()
        handle = await made.submit("parent")

        async def start() -> None:
            groups[0].start("echo", {"n": 1})
            started.set()

        await anyio.wait_all_tasks_blocked()
        outside.start_soon(start)
        assert await handle.result() == {"n": 1}


# The error.


async def test_the_error_pickles() -> None:
    """With its leaves, details and results."""
    async with opened() as made:
        with pytest.raises(TaskGroupError) as caught:
            async with made.group() as group:
                await group.start("echo", {"n": 1}).wait()
                group.start("fail", {"n": 2})
    error: TaskGroupError = pickle.loads(pickle.dumps(caught.value))
    assert (error.message, error.details) == (caught.value.message, caught.value.details)
    assert [(type(leaf), str(leaf)) for leaf in error.exceptions] == [
        (type(leaf), str(leaf)) for leaf in caught.value.exceptions
    ]
    assert error.results == caught.value.results
    assert [result.output for result in error.results] == [{"n": 1}, None]
    part = error.subgroup(TaskExecutionError)
    assert isinstance(part, TaskGroupError)
    assert part.results == error.results
    with pytest.raises(ExceptionGroup):
        raise error


async def test_many_failures() -> None:
    """The message tells of a few, the group has all of them."""
    async with opened() as made, with_late(made):
        with pytest.raises(TaskGroupError) as caught:
            async with made.group() as group:
                for number in range(20):
                    group.start("late", {"n": number})
                await anyio.wait_all_tasks_blocked()
                group.start("fail", {"n": 20})
    assert len(caught.value.exceptions) == 21
    assert "21 of 21 tasks" in str(caught.value)
    assert "and 16 more" in str(caught.value)
