"""Cancelling tasks, and whoever waits for them, at every moment: it is unwound, told, and nothing leaks."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from typing import Any

import anyio
import anyio.from_thread
import anyio.lowlevel
import pytest

from agentcore import (
    AgentCrashedError,
    AgentRuntime,
    RuntimeClosedError,
    TaskCanceledError,
    TaskHandle,
    TaskState,
)
from agentcore.testing import simulate
from tests.runtime.parts import Hold, check_at_rest, holding, must_end, runtime_of, start_all, submit_all

pytestmark = pytest.mark.anyio


def on_asyncio() -> bool:
    """Tell whether this runs on asyncio, where tasks can be cancelled natively."""
    try:
        asyncio.current_task()
    except RuntimeError:
        return False
    return True


# By the handle.


async def test_cancel_before_the_first_step() -> None:
    """Cancelled right after it was submitted, not a line of it runs."""
    async with runtime_of(in_flight=2) as runtime:
        hold = holding(runtime)
        handle = await runtime.submit("hold")
        started_at_once = bool(hold.came)  # with eager tasks
        assert handle.cancel("changed my mind")
        with pytest.raises(TaskCanceledError, match="changed my mind") as caught:
            await handle.result()
        assert caught.value.details == {"task_id": handle.id, "type": "hold", "reason": "changed my mind"}
        assert (handle.state, handle.task.attempt) == (TaskState.CANCELED, int(started_at_once))
        assert bool(hold.came) == started_at_once
        await check_at_rest(runtime, 2)


@simulate(runs=20)
async def test_cancel_in_the_queue() -> None:
    """Cancelled while it waits for its turn, it leaves the line; those behind it move up."""
    async with runtime_of(in_flight=1, queue=2) as runtime:
        hold = holding(runtime)
        handles = await submit_all(runtime, "hold", 3)
        await anyio.wait_all_tasks_blocked()
        assert handles[1].cancel("not this one")
        result = await handles[1].wait()
        assert (result.state, result.attempt, handles[1].task.cancel_reason) == (TaskState.CANCELED, 0, "not this one")
        hold.opened.set()
        await handles[2].wait()
        assert hold.came == [0, 2]
        await check_at_rest(runtime, 1)


@simulate(runs=20)
async def test_cancel_while_it_runs() -> None:
    """It is CANCELED when it has been unwound, and not before; until then the request shows."""
    async with runtime_of(in_flight=1) as runtime:
        unwinding, unwound = anyio.Event(), anyio.Event()

        @runtime.handler("slow")
        async def slow(given: dict[str, Any]) -> None:
            try:
                await anyio.sleep_forever()
            finally:
                with anyio.CancelScope(shield=True):
                    unwinding.set()
                    await unwound.wait()

        handle = await runtime.submit("slow")
        await anyio.wait_all_tasks_blocked()
        assert handle.cancel("first")
        assert handle.cancel("second")
        await unwinding.wait()
        assert (handle.state, handle.task.cancel_requested, handle.is_done) == (TaskState.RUNNING, True, False)
        unwound.set()
        with pytest.raises(TaskCanceledError, match="was cancelled: first"):
            await handle.result()
        assert (handle.state, handle.task.cancel_requested, handle.is_done) == (TaskState.CANCELED, False, True)
        await check_at_rest(runtime, 1)


async def test_cancel_after_the_end() -> None:
    """It is too late: False, and nothing changes."""
    async with runtime_of() as runtime:
        handle = await runtime.submit("echo", {"n": 1})
        assert await handle.result() == {"n": 1}
        assert not handle.cancel("too late")
        assert (handle.state, handle.task.cancel_reason) == (TaskState.COMPLETED, None)
        assert await handle.result() == {"n": 1}


async def test_cancel_after_the_end_spares_a_later_task_of_the_same_id() -> None:
    """A handle cancels its own task and no other."""
    async with runtime_of() as runtime:
        first = await runtime.submit("echo", id="x")
        await first.wait()
        second = await runtime.submit("hang", id="x")
        await anyio.wait_all_tasks_blocked()
        assert not first.cancel()
        assert not second.task.cancel_requested
        assert second.cancel()
        await second.wait()


async def test_cancel_without_a_reason() -> None:
    """The message says that none was given."""
    async with runtime_of() as runtime:
        handle = await runtime.submit("hang")
        handle.cancel()
        with pytest.raises(TaskCanceledError, match="no reason was given"):
            await handle.result()


@simulate(runs=20)
async def test_a_result_in_spite_of_the_cancellation_counts() -> None:
    """A handler that catches the cancellation by a scope of its own and returns has completed."""
    async with runtime_of() as runtime:

        @runtime.handler("stubborn")
        async def stubborn(given: dict[str, Any]) -> dict[str, Any]:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(5)
            return {"done": True}

        handle = await runtime.submit("stubborn")
        await anyio.wait_all_tasks_blocked()
        assert handle.cancel()
        assert (await handle.result(), anyio.current_time()) == ({"done": True}, 5)


@simulate(runs=20)
async def test_a_failing_clean_up_is_told() -> None:
    """What is raised while a cancelled task is unwound is the cause of what the waiter gets."""
    error = OSError("disk full")
    async with runtime_of() as runtime:

        @runtime.handler("messy")
        async def messy(given: dict[str, Any]) -> None:
            try:
                await anyio.sleep_forever()
            finally:
                raise error

        handle = await runtime.submit("messy")
        await anyio.wait_all_tasks_blocked()
        handle.cancel("enough")
        with pytest.raises(TaskCanceledError, match="enough") as caught:
            await handle.result()
        assert caught.value.__cause__ is error


@simulate(runs=20)
async def test_a_failing_clean_up_that_nobody_hears_of_is_raised_at_exit() -> None:
    """Nobody waited for the cancelled task, so the exit tells what went wrong in it."""
    error = OSError("disk full")
    with pytest.raises(AgentCrashedError) as caught:
        async with runtime_of() as runtime:

            @runtime.handler("messy")
            async def messy(given: dict[str, Any]) -> None:
                try:
                    await anyio.sleep_forever()
                finally:
                    raise error

            handle = await runtime.submit("messy")
            await anyio.wait_all_tasks_blocked()
            handle.cancel("enough")
    assert [error] == [leaf.__cause__ for leaf in caught.value.exceptions]


@simulate(runs=20)
async def test_cancel_that_nobody_waits_for_is_no_failure() -> None:
    """Whoever cancels a task knows about it: the exit is silent."""
    async with runtime_of(in_flight=1) as runtime:
        handles = await submit_all(runtime, "hang", 3)
        await anyio.wait_all_tasks_blocked()
        for handle in handles:
            handle.cancel()
    assert {TaskState.CANCELED} == {handle.state for handle in handles}


@simulate(runs=20)
async def test_a_task_can_cancel_itself() -> None:
    """By its own handle, at its next checkpoint."""
    async with runtime_of(in_flight=2) as runtime:
        handles: list[TaskHandle] = []

        @runtime.handler("suicidal")
        async def suicidal(given: dict[str, Any]) -> None:
            await anyio.lowlevel.checkpoint()
            handles[0].cancel("by myself")
            await anyio.sleep_forever()

        handles.append(await runtime.submit("suicidal"))
        with pytest.raises(TaskCanceledError, match="by myself"):
            await handles[0].result()
        await check_at_rest(runtime, 2)


async def test_a_handler_in_a_thread_is_told_of_its_cancellation() -> None:
    """It asks for it by `check_cancelled`, and the task ends when the thread does."""
    async with runtime_of(in_flight=1) as runtime:
        begun = anyio.Event()

        @runtime.handler("busy")
        def busy(given: dict[str, Any]) -> None:
            anyio.from_thread.run_sync(begun.set)
            while True:
                anyio.from_thread.check_cancelled()
                anyio.from_thread.run(anyio.lowlevel.checkpoint)

        handle = await runtime.submit("busy")
        with anyio.fail_after(5):
            await begun.wait()
            handle.cancel("stop")
            with pytest.raises(TaskCanceledError, match="stop"):
                await handle.result()
        await check_at_rest(runtime, 1)


# Of those who wait.

WAITS: dict[str, Callable[[AgentRuntime, TaskHandle], Any]] = {
    "result": lambda runtime, handle: handle.result(),
    "wait": lambda runtime, handle: handle.wait(),
    "run while it runs": lambda runtime, handle: runtime.run("other"),
    "run in line": lambda runtime, handle: runtime.run("hold"),
    "submit": lambda runtime, handle: runtime.submit("hold"),
    "drain": lambda runtime, handle: runtime.drain(),
}


@pytest.mark.parametrize("how", ["scope", "native"])
@pytest.mark.parametrize("wait", WAITS)
@simulate(runs=10)
async def test_who_waits_can_be_cancelled(wait: str, how: str) -> None:
    """By a scope or by `Task.cancel()`: the cancellation comes out as it went in, and only the waiter is hit."""
    if how == "native" and not on_asyncio():
        return
    async with runtime_of(in_flight=1 + (wait == "run while it runs"), queue=1) as runtime:
        hold, other = holding(runtime), holding(runtime, "other")
        handle = await runtime.submit("hold", {"n": 0})
        if wait != "run while it runs":
            await runtime.submit("hold", {"n": 1})
        tasks: list[Any] = []
        ended: list[str] = []

        async def waiter() -> None:
            tasks.append(asyncio.current_task() if how == "native" else None)
            try:
                await WAITS[wait](runtime, handle)
                ended.append("returned")
            except anyio.get_cancelled_exc_class():
                ended.append("cancelled")
                raise

        if how == "native":
            task = asyncio.create_task(waiter())
            await anyio.wait_all_tasks_blocked()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            async with anyio.create_task_group() as group:
                await start_all(group, waiter)
                group.cancel_scope.cancel()
        assert ended == ["cancelled"]
        assert (other.came == [None]) == (wait == "run while it runs")
        hold.opened.set()
        assert await handle.result() == {"n": 0}
        await runtime.tasks.wait_idle()
        assert hold.came == ([0] if wait == "run while it runs" else [0, 1])
        if wait != "drain":
            await check_at_rest(runtime, runtime.config.in_flight)


@pytest.mark.parametrize("where", ["running", "queued"])
@simulate(runs=20)
async def test_a_task_whose_caller_is_cancelled_is_canceled(where: str) -> None:
    """`run` belongs to its caller: the state is CANCELED after the unwinding, whatever the caller's scope says then."""
    async with runtime_of(in_flight=1) as runtime:
        hold = holding(runtime)
        if where == "queued":
            await runtime.submit("hold")
        async with anyio.create_task_group() as group:
            await start_all(group, lambda: runtime.run("hold", {"n": "mine"}, id="mine"))
            task = runtime.tasks.get("mine")
            group.cancel_scope.cancel("the caller gives up")
        assert task.state is TaskState.CANCELED
        assert task.cancel_reason == "the scope around it was cancelled"
        assert hold.left == (["mine"] if where == "running" else [])
        hold.opened.set()
        await runtime.tasks.wait_idle()
        await check_at_rest(runtime, 1)


@simulate(runs=20)
async def test_the_turn_that_comes_with_the_cancellation_is_passed_on() -> None:
    """Whoever is granted a slot and cancelled in the same moment gives it to the next."""
    async with runtime_of(in_flight=1) as runtime:
        hold = holding(runtime)
        first, second, third = await submit_all(runtime, "hold", 3)
        await anyio.wait_all_tasks_blocked()
        runtime.subscribe(lambda event: second.cancel() if event.event_type == "task_completed" else None)
        hold.opened.set()
        await third.wait()
        assert (first.state, second.state, third.state) == (
            TaskState.COMPLETED,
            TaskState.CANCELED,
            TaskState.COMPLETED,
        )
        assert hold.came == [0, 2]
        assert runtime.statistics().tasks.in_flight == 0


@simulate(runs=20)
async def test_cancelling_the_submitter_leaves_the_task_alone() -> None:
    """What was accepted belongs to the runtime."""
    async with runtime_of() as runtime:
        hold = holding(runtime)
        handles: list[TaskHandle] = []
        with anyio.CancelScope() as scope:
            handles.append(await runtime.submit("hold", {"n": 1}))
            scope.cancel()
            await handles[0].result()
        hold.opened.set()
        assert await handles[0].result() == {"n": 1}


@simulate(runs=20)
async def test_a_wait_that_is_cancelled_retrieves_nothing() -> None:
    """Whoever gave up waiting has not learned of the failure: the exit tells it."""
    with pytest.raises(AgentCrashedError, match="number 1"):
        async with runtime_of() as runtime:
            opened = anyio.Event()

            @runtime.handler("late")
            async def late(given: dict[str, Any]) -> None:
                await opened.wait()
                raise ValueError("number 1")

            handle = await runtime.submit("late")
            for ready in (False, True):
                if ready:
                    opened.set()
                    await runtime.tasks.wait_idle()
                with anyio.CancelScope() as scope:
                    scope.cancel()
                    await handle.wait()


# Foreign cancellation on asyncio.


@pytest.mark.parametrize("at", ["in line", "while it runs"])
async def test_native_cancellation_of_a_submitted_task(at: str) -> None:
    """Somebody cancels the asyncio task of a job, as shutting down a server does: the task is CANCELED, the runtime lives."""
    if not on_asyncio():
        return
    runtime = runtime_of(in_flight=1)
    async with must_end(runtime), runtime:
        hold = holding(runtime)
        if at == "in line":
            await runtime.submit("hold", {"n": "first"})
        handle = await runtime.submit("hold")
        await anyio.wait_all_tasks_blocked()
        next(task for task in asyncio.all_tasks() if handle.id in task.get_name()).cancel()
        with anyio.fail_after(1):
            result = await handle.wait()
        assert result.state is TaskState.CANCELED
        hold.opened.set()
        await runtime.tasks.wait_idle()
        await check_at_rest(runtime, 1)


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_native_cancellation_before_the_first_step() -> None:
    """The loop drops such a task without running a line of it: it is CANCELED, nobody waits for ever, the block may be told."""
    if not on_asyncio():
        return
    runtime = runtime_of(in_flight=1)
    handles: list[TaskHandle] = []
    async with must_end(runtime):
        try:
            async with runtime:
                handles.append(await runtime.submit("hang"))
                next(task for task in asyncio.all_tasks() if handles[0].id in task.get_name()).cancel()
                with anyio.fail_after(1):
                    await handles[0].wait()
        except RuntimeClosedError:
            pass
        gc.collect()
    assert (handles[0].is_done, handles[0].state) == (True, TaskState.CANCELED)
    assert runtime.statistics().tasks.in_flight == 0


async def test_a_cancelled_error_out_of_nowhere() -> None:
    """A handler that awaits a foreign task which was cancelled lets CancelledError out: its task is CANCELED."""
    if not on_asyncio():
        return
    async with runtime_of(in_flight=2) as runtime:

        @runtime.handler("foreign")
        async def foreign(given: dict[str, Any]) -> None:
            sleeper = asyncio.create_task(anyio.sleep_forever())
            await asyncio.sleep(0)
            sleeper.cancel()
            await sleeper

        handle = await runtime.submit("foreign")
        with pytest.raises(TaskCanceledError):
            await handle.result()
        await check_at_rest(runtime, 2)


# Of the runtime's own waits.


@simulate(runs=20)
async def test_two_who_drain_at_once_both_return() -> None:
    """Each of them hears of the end of the last task."""
    async with runtime_of() as runtime:
        hold = holding(runtime)
        await runtime.submit("hold")
        drained: list[bool] = []

        async def drain() -> None:
            drained.append(await runtime.drain())

        async with anyio.create_task_group() as group:
            await start_all(group, drain, drain, drain)
            hold.opened.set()
        assert drained == [True, True, True]


@simulate(runs=20)
async def test_two_tasks_that_drain_do_not_wait_for_each_other() -> None:
    """Each of two handlers waits for the rest to be idle: they are the rest, and it is."""
    async with runtime_of(in_flight=2) as runtime:
        begin = anyio.Event()

        @runtime.handler("last")
        async def last(given: dict[str, Any]) -> dict[str, Any]:
            await begin.wait()
            return {"drained": await runtime.drain()}

        handles = await submit_all(runtime, "last", 2)
        begin.set()
        assert [{"drained": True}] * 2 == [await handle.result() for handle in handles]


@simulate(runs=20)
async def test_two_tasks_that_shut_down_do_not_wait_for_each_other() -> None:
    """Each of two handlers decides that it is over; both wait shielded, so that no scope could end a circle."""
    async with AgentRuntime() as runtime:
        begin = anyio.Event()

        @runtime.handler("fatal")
        async def fatal(given: dict[str, Any]) -> None:
            await begin.wait()
            await runtime.shutdown(grace=0)

        handles = await submit_all(runtime, "fatal", 2)
        begin.set()
        for handle in handles:
            await handle.wait()


@simulate(runs=20)
async def test_a_task_that_shuts_down_and_goes_on_is_cancelled_at_the_exit() -> None:
    """`shutdown` inside of a task cannot end that task; leaving the block can."""
    runtime = runtime_of()
    async with runtime:
        shut = anyio.Event()

        @runtime.handler("last")
        async def last(given: dict[str, Any]) -> None:
            await runtime.shutdown()
            shut.set()
            await anyio.sleep_forever()

        handle = await runtime.submit("last")
        await shut.wait()
    assert handle.state is TaskState.CANCELED


@simulate(runs=20)
async def test_drain_inside_of_a_task_waits_for_the_others() -> None:
    """Not for itself, and not for those who wait for it."""
    async with runtime_of() as runtime:
        hold = holding(runtime)
        await runtime.submit("hold")

        @runtime.handler("inner")
        async def inner(given: dict[str, Any]) -> dict[str, Any]:
            return {"drained": await runtime.drain(), "held": hold.left}

        @runtime.handler("outer")
        async def outer(given: dict[str, Any]) -> dict[str, Any]:
            return await runtime.run("inner")

        outputs: list[Any] = []

        async def run() -> None:
            outputs.append(await runtime.run("outer"))

        async with anyio.create_task_group() as group:
            await start_all(group, run)
            hold.opened.set()
        assert outputs == [{"drained": True, "held": [None]}]


@pytest.mark.parametrize("cancelled", ["in the grace", "before"])
@simulate(runs=20)
async def test_a_cancelled_shutdown_cuts_at_once(cancelled: str) -> None:
    """Cancellation of who shuts down ends the grace, not the rest: all is unwound, the report is there."""
    runtime = runtime_of(grace=60)
    async with runtime:
        handle = await runtime.submit("hang")
        await anyio.wait_all_tasks_blocked()
        with anyio.CancelScope() as scope:
            if cancelled == "before":
                scope.cancel()
            else:
                scope.deadline = anyio.current_time() + 5
            await runtime.shutdown(reason="closing time")
        assert scope.cancelled_caught
        assert handle.state is TaskState.CANCELED
        assert runtime.report is not None
        assert [handle.id] == [result.task_id for result in runtime.report.cut_short]
        assert handle.task.cancel_reason == "closing time"
        assert anyio.current_time() == (5 if cancelled == "in the grace" else 0)


async def test_many_cancellations_in_a_storm() -> None:
    """A hundred tasks on three slots, every third cancelled at another moment: all end, nothing leaks."""
    async with runtime_of(in_flight=3, queue=200) as runtime:
        hold: Hold = holding(runtime)
        handles = await submit_all(runtime, "hold", 100)
        for number, handle in enumerate(handles):
            if number % 3 == 0:
                handle.cancel(f"{number}")
            if number % 7 == 0:
                await anyio.lowlevel.checkpoint()
        hold.opened.set()
        results = [await handle.wait() for handle in handles]
        assert [TaskState.CANCELED, TaskState.COMPLETED, TaskState.COMPLETED] == [
            result.state for result in results[:3]
        ]
        assert len([result for result in results if result.state is TaskState.CANCELED]) == 34
        await check_at_rest(runtime, 3)


@simulate(runs=30)
async def test_cancellations_at_any_moment() -> None:
    """Of six tasks on two slots two are cancelled, each whenever its turn to be cancelled comes: all end, nothing leaks."""
    async with runtime_of(in_flight=2, queue=3) as runtime, anyio.create_task_group() as group:

        @runtime.handler("steps")
        async def steps(given: dict[str, Any]) -> dict[str, Any]:
            for _ in range(3):
                await anyio.lowlevel.checkpoint()
            return given

        async def cancel(handle: TaskHandle) -> None:
            handle.cancel("enough")

        handles: list[TaskHandle] = []
        for number in range(6):
            handles.append(await runtime.submit("steps", {"n": number}))
            if number % 3 == 0:
                group.start_soon(cancel, handles[-1])
        results = [await handle.wait() for handle in handles]
        assert {TaskState.COMPLETED} == {result.state for number, result in enumerate(results) if number % 3}
        assert {TaskState.COMPLETED, TaskState.CANCELED} >= {result.state for result in results}
        await check_at_rest(runtime, 2)
