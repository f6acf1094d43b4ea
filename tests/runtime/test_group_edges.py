"""Groups, streams and the iteration of tasks where several things happen at once."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import anyio
import pytest

from agentcore import AgentContext, RuntimeClosedError, TaskGroupError, TaskState
from agentcore.testing import simulate
from tests.runtime.doing import Doing, both, opened


@both
@simulate(runs=5)
async def test_the_error_of_the_block_outlives_a_cancellation(hosted: bool) -> None:
    """It comes while a task unwinds, after the block has failed: the failure is what is raised."""
    async with opened(hosted=hosted) as made:

        @made.handler("slow")
        async def slow(given: dict[str, Any]) -> None:
            try:
                await anyio.sleep_forever()
            finally:
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(5)

        async def work(context: AgentContext) -> None:
            await slow({})

        with pytest.raises(ValueError, match="of a group"), anyio.move_on_after(2):
            async with made.group() as group:
                group.start("slow")
                await anyio.sleep(1)
                raise ValueError("of a group")
        with pytest.raises(ValueError, match="of a stream"), anyio.move_on_after(2):
            async with made.stream(Doing(work)):
                await anyio.sleep(1)
                raise ValueError("of a stream")


@both
@simulate(runs=5)
async def test_an_error_that_speaks_of_a_task_is_not_taken_for_its_failure(hosted: bool) -> None:
    """Both are told."""
    async with opened(hosted=hosted) as made:
        with pytest.raises(TaskGroupError) as caught:
            async with made.group() as group:
                failed = group.start("fail", {"n": 1})
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(1)
                    group.start(failed.task)  # has ended: a mistake of the block's own
        assert ["TaskStateError", "TaskExecutionError"] == [type(leaf).__name__ for leaf in caught.value.exceptions]


@both
@simulate(runs=5)
async def test_a_task_that_another_one_starts_is_a_child_of_the_group(hosted: bool) -> None:
    """Its parent is the task that waits for it, not the one that happens to call."""
    seen: dict[str, Any] = {}
    async with opened(hosted=hosted) as made:

        @made.handler("parent")
        async def parent(given: dict[str, Any], context: AgentContext) -> None:
            async with context.group() as group:
                seen["group"] = group
                seen["expected"] = context.task.id if context.task else None
                group.start("child")

        @made.handler("child")
        async def child(given: dict[str, Any]) -> None:
            seen["started"] = seen["group"].start("echo", {"n": 1})

        await made.run("parent")
    assert seen["expected"] == seen["started"].task.parent_id
    assert seen["started"].state is TaskState.COMPLETED


@both
@simulate(runs=40)
async def test_nothing_can_be_started_when_the_last_task_has_ended(hosted: bool) -> None:
    """The block is being left then; whoever is late is told so, and nothing of it is left behind."""
    told: list[str] = []
    async with opened(hosted=hosted, grace=0) as made, anyio.create_task_group() as others:
        group = made.group()

        async def late(first: Any) -> None:
            await first.wait()
            for _ in range(4):
                try:
                    group.start("echo", {"n": 1})
                except RuntimeClosedError:
                    told.append("refused")
                await anyio.lowlevel.checkpoint()

        async with group:
            others.start_soon(late, group.start("echo", {"n": 0}))
        assert all(handle.is_done for handle in group.handles)
    assert "refused" in told
    assert 0 == made.statistics().tasks.in_flight


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")  # what AnyIO had not begun
@pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")
@simulate(runs=1, backends=["asyncio"])
async def test_a_task_that_is_cancelled_before_its_first_step() -> None:
    """By asyncio's own ways: the group is left with it settled."""
    async with opened() as made:
        async with made.group("collect") as group:
            before = asyncio.all_tasks()
            handle = group.start("echo", {"n": 1})
            (task,) = asyncio.all_tasks() - before
            task.cancel()
        assert (handle.is_done, handle.state) == (True, TaskState.CANCELED)
        assert made.statistics().tasks.in_flight == 0
        del task, before
        gc.collect()  # what was never begun is warned of here, and in no other test


@simulate(runs=5)
async def test_several_take_what_one_iteration_has() -> None:
    """Who waits is woken up for what others have made room for."""
    taken: list[int] = []
    async with opened() as made, made.as_completed("echo", [{"n": n} for n in range(6)], limit=1) as done:

        async def take(count: int | None) -> None:
            async for handle in done:
                taken.append((await handle.result())["n"])
                if count is not None and len(taken) >= count:
                    return

        async with anyio.create_task_group() as takers:
            takers.start_soon(take, 1)
            takers.start_soon(take, None)
    assert sorted(taken) == list(range(6))


# Streams.


@both
@simulate(runs=1, backends=["asyncio"])
async def test_a_cancellation_of_an_agents_own_making_ends_its_stream_alone(hosted: bool) -> None:
    """An agent awaits something that was cancelled: the rest of the runtime has nothing to do with that."""

    async def work(context: AgentContext) -> None:
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    async with opened(hosted=hosted, grace=10) as made:

        @made.handler("other")
        async def other(given: dict[str, Any]) -> int:
            await anyio.sleep(1)
            return 1

        handle = await made.submit("other")
        with pytest.raises(RuntimeClosedError):
            async with made.stream(Doing(work)) as stream:
                async for _ in stream:
                    pass
        assert await handle.result() == {"result": 1}
        assert made.health().healthy


@both
@simulate(runs=5)
async def test_a_clean_up_may_emit_when_nobody_listens_any_more(hosted: bool) -> None:
    """What it emits is dropped, and leaving the stream does not wait for somebody to take it."""

    async def work(context: AgentContext) -> None:
        try:
            await context.emit(1)
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await context.emit("bye")

    async with opened(hosted=hosted) as made, made.stream(Doing(work)) as stream:
        async for item in stream:
            assert item == 1
            break
