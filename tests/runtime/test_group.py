"""Groups: tasks that end with a block, however it ends; no failure of theirs is lost, and none is told twice."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, Literal

import anyio
import anyio.lowlevel
import pytest

from agentcore import (
    AgentContext,
    AgentCrashedError,
    AgentRuntime,
    TaskCanceledError,
    TaskExecutionError,
    TaskGroupError,
    TaskHandle,
    TaskState,
    TaskTimeoutError,
)
from agentcore.testing import cancel_everywhere, simulate
from tests.runtime.doing import both, opened
from tests.runtime.parts import check_at_rest, holding

pytestmark = pytest.mark.anyio

Ways = Literal["cancel", "collect", "first"]
every = pytest.mark.parametrize("on_error", ["cancel", "collect", "first"])


async def until_ended(handle: TaskHandle) -> None:
    """Wait for a task without asking its handle, which would take its failure."""
    while not handle.is_done:  # noqa: ASYNC110 - waiting for an event would be asking the handle
        await anyio.sleep(1)


@asynccontextmanager
async def with_late(made: AgentRuntime) -> AsyncGenerator[None]:
    """Register ``late``, which fails while it is unwound, and ``slow``, which takes a second for that."""

    @made.handler("late")
    async def late(given: dict[str, Any]) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise ValueError(f"late {given.get('n')}")

    @made.handler("slow")
    async def slow(given: dict[str, Any]) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(1)

    yield


def causes(error: BaseException) -> list[str]:
    """Return the texts of what is behind the leaves of a group, or of one error."""
    leaves = error.exceptions if isinstance(error, BaseExceptionGroup) else [error]
    return [str(leaf.__cause__ or leaf) for leaf in leaves]


# All is well.


@both
@every
@simulate(runs=10)
async def test_it_ends_with_its_tasks(hosted: bool, on_error: Ways) -> None:
    """The block cannot be left before them; handles and results are in the order of the start."""
    async with opened(hosted=hosted) as made:

        @made.handler("nap")
        async def nap(given: dict[str, Any]) -> dict[str, Any]:
            await anyio.sleep(given["n"])
            return given

        async with made.group(on_error) as group:
            handles = [group.start("nap", {"n": number}) for number in (3, 1, 2)]
            assert (group.results, [handle.state for handle in handles]) == ((), [TaskState.PENDING] * 3)
        assert (anyio.current_time(), group.handles) == (3, tuple(handles))
        assert [result.output for result in group.results] == [{"n": 3}, {"n": 1}, {"n": 2}]
        assert [await handle.result() for handle in handles] == [{"n": 3}, {"n": 1}, {"n": 2}]
        assert made.statistics().tasks.in_flight == 0


@every
async def test_empty(on_error: Ways) -> None:
    """A group without tasks is a block like any other."""
    async with opened() as made:
        async with made.group(on_error) as group:
            await anyio.lowlevel.checkpoint()
        assert (group.handles, group.results) == ((), ())


@every
async def test_only_the_block_fails(on_error: Ways) -> None:
    """Its exception is untouched, and the tasks are cancelled."""
    error = KeyError("mine")
    async with opened() as made:
        with pytest.raises(KeyError) as caught:
            async with made.group(on_error) as group:
                handle = group.start("hang")
                raise error
        assert caught.value is error
        assert handle.state is TaskState.CANCELED
        assert handle.task.cancel_reason == "the block of the group was left by KeyError"


# Failures.


@both
@simulate(runs=10)
async def test_cancel(hosted: bool) -> None:
    """The first failure cancels siblings and block; all failures are told in the end, what succeeded is kept."""
    async with opened(hosted=hosted) as made, with_late(made):
        with pytest.raises(TaskGroupError) as caught:
            async with made.group() as group:
                done = group.start("echo", {"n": 0})
                await done.wait()
                handles = [group.start("late", {"n": 1}), group.start("hang")]
                await anyio.wait_all_tasks_blocked()
                failed = group.start("fail", {"n": 2})
                await anyio.sleep_forever()
        assert causes(caught.value) == ["number 2", "late 1"]
        # A task that is cancelled is CANCELED, also if its clean-up fails.
        assert [type(leaf) for leaf in caught.value.exceptions] == [TaskExecutionError, TaskCanceledError]
        assert [result.output for result in caught.value.results] == [{"n": 0}, None, None, None]
        assert [handle.state for handle in handles] == [TaskState.CANCELED] * 2
        assert caught.value.details == {"failures": 2, "task_ids": [failed.id, handles[0].id]}
        assert handles[1].task.cancel_reason == f"task {failed.id} of the same group failed"
        assert made.health().failures == ()


@both
@simulate(runs=10)
async def test_first(hosted: bool) -> None:
    """The first failure alone is raised, with notes of the others."""
    async with opened(hosted=hosted) as made, with_late(made):
        with pytest.raises(TaskExecutionError) as caught:
            async with made.group("first") as group:
                group.start("late", {"n": 1})
                await anyio.wait_all_tasks_blocked()
                group.start("fail", {"n": 2})
                await anyio.sleep_forever()
        assert causes(caught.value) == ["number 2"]
        assert len(caught.value.__notes__) == 1
        assert "late 1" in caught.value.__notes__[0]
        assert made.health().failures == ()


@both
@simulate(runs=10)
async def test_collect(hosted: bool) -> None:
    """Nothing is cancelled and nothing raised; the results tell, and whoever has looked knows."""
    async with opened(hosted=hosted) as made:
        hold = holding(made)
        async with made.group("collect") as group:
            group.start("fail", {"n": 1})
            handle = group.start("hold", {"n": 2})
            await anyio.wait_all_tasks_blocked()
            assert handle.state is TaskState.RUNNING
            hold.opened.set()
        assert [result.state for result in group.results] == [TaskState.FAILED, TaskState.COMPLETED]
        assert made.health().failures == ()


@both
@pytest.mark.parametrize("look", ["nobody", "wait", "result", "results"])
@simulate(runs=3)
async def test_failures_that_nobody_looks_at(hosted: bool, look: str) -> None:
    """With ``collect`` they are raised at the exit of the runtime, and only those."""
    caught: list[BaseException] = []
    try:
        async with opened(hosted=hosted) as made:
            async with made.group("collect") as group:
                first, _ = group.start("fail", {"n": 1}), group.start("fail", {"n": 2})
            if look == "wait":
                await first.wait()
            elif look == "result":
                with pytest.raises(TaskExecutionError):
                    await first.result()
            elif look == "results":
                assert len(group.results) == 2
    except AgentCrashedError as error:
        caught.extend(error.exceptions)
    expected = {"nobody": ["number 1", "number 2"], "results": []}.get(look, ["number 2"])
    assert sorted(str(error.__cause__) for error in caught) == expected


@every
@simulate(runs=20)
async def test_block_and_task_fail(on_error: Ways) -> None:
    """Both are told, whichever comes first."""
    for block_first in (True, False):
        async with opened() as made, with_late(made):
            with pytest.raises((TaskGroupError, TaskExecutionError, KeyError)) as caught:
                async with made.group(on_error) as group:
                    handle = group.start("late" if block_first else "fail", {"n": 1})
                    if block_first:
                        await anyio.wait_all_tasks_blocked()
                    else:
                        with contextlib.suppress(anyio.get_cancelled_exc_class()):
                            await until_ended(handle)
                    raise KeyError("mine")
            group.results  # noqa: B018 - with ``collect``, the failure is looked at by this
        number = "late 1" if block_first else "number 1"
        told = causes(caught.value)
        if on_error == "cancel":
            assert isinstance(caught.value, TaskGroupError)
            assert told == ["'mine'", number]
        elif on_error == "collect":
            assert told == ["'mine'"]
        else:
            assert told == ["'mine'" if block_first else number]
            assert ("late 1" if block_first else "mine") in caught.value.__notes__[0]


@pytest.mark.parametrize("sibling", [None, "hang", "slow", "late"])
@pytest.mark.parametrize("on_error", ["cancel", "first"])
@simulate(runs=30)
async def test_the_block_raises_what_a_handle_gave(on_error: Ways, sibling: str | None) -> None:
    """The failure is told once, and it is told: whatever the siblings do meanwhile."""
    async with opened() as made, with_late(made):
        with pytest.raises((TaskGroupError, TaskExecutionError)) as caught:
            async with made.group(on_error) as group:
                if sibling is not None:
                    group.start(sibling, {"n": 2})
                    await anyio.lowlevel.checkpoint()
                await group.start("fail", {"n": 1}).result()
        others = ["late 2"] if sibling == "late" and caught.value.__class__ is TaskGroupError else []
        assert causes(caught.value)[:1] == ["number 1"]
        assert set(causes(caught.value)[1:]) <= set(others)
        assert isinstance(caught.value, TaskGroupError) == (on_error == "cancel")


@every
@pytest.mark.parametrize("sibling", [None, "hang", "slow"])
@simulate(runs=20)
async def test_the_block_fails_after_it_has_cancelled(on_error: Ways, sibling: str | None) -> None:
    """A group that is cancelled is left silently, but an exception of the block is not swallowed with it."""
    async with opened() as made, with_late(made):
        with pytest.raises(KeyError, match="mine"):
            async with made.group(on_error) as group:
                if sibling is not None:
                    group.start(sibling)
                    await anyio.wait_all_tasks_blocked()
                group.cancel("enough")
                raise KeyError("mine")


@simulate(runs=10)
async def test_the_clean_up_of_the_block_fails() -> None:
    """An exception that the block raises while a failure cancels it comes with the failure."""
    for on_error in ("cancel", "first"):
        async with opened() as made, with_late(made):
            with pytest.raises((TaskGroupError, TaskExecutionError)) as caught:
                async with made.group(on_error) as group:  # type: ignore[arg-type]
                    group.start("slow")
                    await anyio.wait_all_tasks_blocked()
                    group.start("fail", {"n": 1})
                    try:
                        await anyio.sleep_forever()
                    finally:
                        raise KeyError("mine")
            told = str(causes(caught.value)) + str(getattr(caught.value, "__notes__", ""))
            assert "number 1" in told
            assert "mine" in told


@both
@every
async def test_a_task_raises_what_is_no_exception(hosted: bool, on_error: Ways) -> None:
    """SystemExit in a task is raised by the block, with the siblings cancelled, and the runtime works on."""
    async with opened(hosted=hosted) as made:

        @made.handler("leave")
        async def leave(given: dict[str, Any]) -> None:
            raise SystemExit(3)

        with pytest.raises(BaseExceptionGroup) as caught:
            async with made.group(on_error) as group:
                handle = group.start("hang")
                group.start("leave")
                await anyio.sleep_forever()
        assert caught.group_contains(SystemExit, depth=1)
        assert handle.state is TaskState.CANCELED
        assert made.health().healthy


async def test_the_block_raises_what_is_no_exception() -> None:
    """SystemExit of the block is untouched; a task that has failed before is not forgotten over it."""
    with pytest.raises(BaseException) as caught:  # noqa: PT011
        async with opened() as made:  # noqa: SIM117
            async with made.group("cancel") as group:
                group.start("fail", {"n": 1})
                try:
                    await anyio.sleep_forever()
                except anyio.get_cancelled_exc_class():
                    raise SystemExit(3) from None
    assert caught.group_contains(SystemExit) if isinstance(caught.value, BaseExceptionGroup) else True
    leaves = caught.value.exceptions if isinstance(caught.value, BaseExceptionGroup) else [caught.value]
    notes = [note for leaf in leaves for note in getattr(leaf, "__notes__", [])]
    assert "number 1" in str([*map(str, leaves), *notes])


@every
@simulate(runs=5)
async def test_timeouts_of_tasks(on_error: Ways) -> None:
    """A timeout of the execution and a deadline in the line are failures like others."""
    async with opened(in_flight=1) as made:
        with contextlib.suppress(TaskGroupError, TaskExecutionError, TaskTimeoutError):
            async with made.group(on_error) as group:
                group.start("hang", timeout=3)
                group.start("echo", deadline=2)
        first, second = group.handles
        if on_error == "collect":
            with pytest.raises(TaskExecutionError, match="'timeout'"):
                await first.result()
        else:
            assert first.state is TaskState.CANCELED
        with pytest.raises(TaskTimeoutError, match="'total'"):
            await second.result()
        assert anyio.current_time() == (3 if on_error == "collect" else 2)


# Cancelling.


@every
@simulate(runs=10)
async def test_cancel_the_group(on_error: Ways) -> None:
    """Everything in it ends, the block too, and it is left silently; the reason is with the tasks."""
    async with opened() as made, with_late(made):
        async with made.group(on_error) as group:
            handle = group.start("slow")
            await anyio.wait_all_tasks_blocked()
            group.cancel("enough")
            await anyio.sleep_forever()
        assert (handle.state, handle.task.cancel_reason, anyio.current_time()) == (TaskState.CANCELED, "enough", 1)
        group.cancel("again")
        with pytest.raises(TaskCanceledError, match="enough"):
            await handle.result()


@every
@simulate(runs=10)
async def test_cancel_one_task(on_error: Ways) -> None:
    """A task that is cancelled by its handle has not failed: the others go on."""
    async with opened() as made:
        hold = holding(made)
        async with made.group(on_error) as group:
            one, other = group.start("hang"), group.start("hold", {"n": 1})
            one.cancel("this one")
            await one.wait()
            hold.opened.set()
        assert (one.state, other.state) == (TaskState.CANCELED, TaskState.COMPLETED)


@both
@every
@simulate(runs=10)
async def test_cancelled_from_outside(hosted: bool, on_error: Ways) -> None:
    """The tasks are cancelled with the block and unwound; what fails on the way is not lost for the cancellation."""
    for failing in (False, True):
        caught: list[Exception] = []
        async with opened(hosted=hosted) as made, with_late(made):
            with anyio.move_on_after(5) as scope:
                try:
                    async with made.group(on_error) as group:
                        handle = group.start("late" if failing else "hang", {"n": 1})
                        await anyio.sleep_forever()
                except (TaskGroupError, TaskCanceledError) as error:
                    caught.append(error)
            assert handle.state is TaskState.CANCELED
            assert len(group.results) == 1  # looked at
        told = failing and on_error != "collect"
        assert [causes(error) for error in caught] == [["late 1"]] * told
        assert scope.cancelled_caught == (not told)


@both
@every
@simulate(runs=10)
async def test_cancelled_while_it_waits_for_its_tasks(hosted: bool, on_error: Ways) -> None:
    """Nothing that stands behind the block is executed, although the tasks have ended in peace."""
    async with opened(hosted=hosted) as made:
        with anyio.move_on_after(5) as scope:
            async with made.group(on_error) as group:
                group.start("hang")
            raise AssertionError("the block is left by the cancellation")
        assert scope.cancelled_caught
        with anyio.move_on_after(5) as scope:
            await made.map("hang", [{}])
            raise AssertionError("map is left by the cancellation")
        assert scope.cancelled_caught


@simulate(runs=20)
async def test_cancelled_before_the_first_step() -> None:
    """A task that is started in a group that is being cancelled does not run a line of its agent."""
    async with opened(in_flight=4) as made:
        ran: list[int] = []

        @made.handler("note")
        async def note(given: dict[str, Any]) -> None:
            ran.append(1)

        async with made.group() as group:
            handles = [group.start("note"), group.start("note")]
            handles[0].cancel("at once")
            group.cancel()
            handles.append(group.start("note"))
        assert ran == []
        assert [handle.state for handle in handles] == [TaskState.CANCELED] * 3
        assert [handle.task.attempt for handle in handles] == [0] * 3
        await check_at_rest(made, 4)


async def test_a_task_is_cancelled_natively() -> None:
    """Where somebody cancels the asyncio task of one child, that child alone is cancelled."""
    try:
        asyncio.current_task()
    except RuntimeError:
        pytest.skip("trio has no such thing")
    async with opened() as made:
        tasks: list[Any] = []

        @made.handler("find")
        async def find(given: dict[str, Any]) -> None:
            tasks.append(asyncio.current_task())
            await anyio.sleep_forever()

        async with made.group() as group:
            found, other = group.start("find"), group.start("echo", {"n": 1})
            while not tasks:
                await anyio.lowlevel.checkpoint()
            tasks[0].cancel()
            await found.wait()
        assert (found.state, other.state) == (TaskState.CANCELED, TaskState.COMPLETED)


@both
@every
@pytest.mark.thorough
def test_cancelled_everywhere(hosted: bool, on_error: Ways) -> None:
    """Wherever a group in a group is cut short: no slot is held, every task has ended."""

    @asynccontextmanager
    async def build() -> AsyncGenerator[AgentRuntime]:
        async with opened(hosted=hosted, in_flight=2) as made:

            @made.handler("parent")
            async def parent(given: dict[str, Any], context: AgentContext) -> None:
                async with context.group(on_error) as group:
                    group.start("echo", {"n": 1})
                    group.start("echo", {"n": 2})

            yield made

    async def act(made: AgentRuntime) -> None:
        async with made.group(on_error) as group:
            group.start("parent")
            group.start("parent")

    async def check(made: AgentRuntime) -> None:
        assert made.tasks.active() == []
        await check_at_rest(made, 2)

    cancel_everywhere(act, build=build, check=check, schedules=("fifo", "walk/1"), modes=("block", "wake", "native"))
