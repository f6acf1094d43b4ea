"""Who may run, in which order, and what becomes of each task: limits, back-pressure, deadlines, outcomes."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from agentcore import (
    AgentContext,
    AgentTimeoutError,
    BaseTask,
    RuntimeClosedError,
    TaskCanceledError,
    TaskError,
    TaskExecutionError,
    TaskHandle,
    TaskNotFoundError,
    TaskPriority,
    TaskState,
    TaskStateError,
    TaskTimeoutError,
)
from agentcore.testing import simulate
from tests.core.fakes import noting
from tests.runtime.parts import check_at_rest, echo, holding, must_end, runtime_of, start_all, submit_all

pytestmark = pytest.mark.anyio

# Slots and order.


@pytest.mark.parametrize("in_flight", [1, 3])
@simulate(runs=10)
async def test_no_more_run_than_in_flight(in_flight: int) -> None:
    """However many are submitted, so many run at a time, and all get their turn."""
    async with runtime_of(in_flight=in_flight) as runtime:
        hold = holding(runtime)
        handles = await submit_all(runtime, "hold", 10)
        await anyio.wait_all_tasks_blocked()
        statistics = runtime.statistics().tasks
        assert (hold.inside, statistics.in_flight, statistics.queued) == (in_flight, in_flight, 10 - in_flight)
        hold.opened.set()
        for handle in handles:
            await handle.result()
        assert hold.peak == in_flight
        await check_at_rest(runtime, in_flight)


@simulate(runs=20)
async def test_run_and_submit_share_the_slots() -> None:
    """Tasks that are run wait for a slot as submitted ones do, in one line."""
    async with runtime_of(in_flight=1) as runtime, anyio.create_task_group() as group:
        hold = holding(runtime)
        await runtime.submit("hold", {"n": 0})
        await anyio.wait_all_tasks_blocked()
        await start_all(group, lambda: runtime.run("hold", {"n": 1}))
        await runtime.submit("hold", {"n": 2})
        await start_all(group, lambda: runtime.run("hold", {"n": 3}, priority="HIGH"))
        assert hold.came == [0]
        hold.opened.set()
        await runtime.drain()
        assert hold.came == [0, 3, 1, 2]
        assert hold.peak == 1


@simulate(runs=20)
async def test_urgent_tasks_go_first_and_equals_in_order_of_arrival() -> None:
    """CRITICAL first; within a band, who came first."""
    async with runtime_of(in_flight=1) as runtime:
        hold = holding(runtime)
        await runtime.submit("hold", {"n": "first"})
        await anyio.wait_all_tasks_blocked()
        order = ["LOW", "NORMAL", "CRITICAL", "HIGH", "CRITICAL", "LOW", "HIGH", "NORMAL"]
        for number, name in enumerate(order):
            await runtime.submit("hold", {"n": f"{name} {number}"}, priority=name)
        hold.opened.set()
        await runtime.drain()
        expected = ["CRITICAL 2", "CRITICAL 4", "HIGH 3", "HIGH 6", "NORMAL 1", "NORMAL 7", "LOW 0", "LOW 5"]
        assert ["first", *expected] == hold.came


async def test_a_thousand_tasks() -> None:
    """A thousand tasks at once all end, and nothing of them stays but what is remembered."""
    async with runtime_of(in_flight=64, queue=64, retention=10) as runtime:
        handles = await submit_all(runtime, "echo", 1000)
        assert [await handle.result() for handle in handles] == [{"n": number} for number in range(1000)]
        statistics = runtime.statistics().tasks
        assert (statistics.accepted, statistics.completed, statistics.failed) == (1000, 1000, 0)
        assert len(runtime.tasks._ledger._recent) == 10
        await check_at_rest(runtime, 64)


# Back-pressure.


@simulate(runs=20)
async def test_submit_waits_while_the_queue_is_full() -> None:
    """Submitters wait for room, the most urgent of them first, then in order; nothing is accepted meanwhile."""
    async with runtime_of(in_flight=1, queue=1) as runtime, anyio.create_task_group() as group:
        hold = holding(runtime)
        await submit_all(runtime, "hold", 2)
        await anyio.wait_all_tasks_blocked()
        await start_all(
            group,
            lambda: runtime.submit("hold", {"n": "normal"}),
            lambda: runtime.submit("hold", {"n": "critical"}, priority="CRITICAL"),
            lambda: runtime.submit("hold", {"n": "also critical"}, priority="CRITICAL"),
        )
        assert runtime.statistics().tasks.accepted == 2
        hold.opened.set()
        await anyio.wait_all_tasks_blocked()
        assert hold.came == [0, 1, "critical", "also critical", "normal"]
        await check_at_rest(runtime, 1)


@simulate(runs=20)
async def test_a_cancelled_submitter_leaves_no_trace() -> None:
    """Whoever is cancelled while he waits for room has submitted nothing, and his place goes to the next."""
    async with runtime_of(in_flight=1, queue=1) as runtime, anyio.create_task_group() as group:
        hold = holding(runtime)
        await submit_all(runtime, "hold", 2)
        await anyio.wait_all_tasks_blocked()
        scopes = [anyio.CancelScope() for _ in range(3)]

        async def submit(number: int) -> None:
            with scopes[number]:
                await runtime.submit("hold", {"n": number + 2})

        await start_all(group, *(lambda number=number: submit(number) for number in range(3)))
        scopes[0].cancel()
        scopes[2].cancel()
        await anyio.wait_all_tasks_blocked()
        hold.opened.set()
        await anyio.wait_all_tasks_blocked()
        assert hold.came == [0, 1, 3]
        assert runtime.statistics().tasks.accepted == 3
        await check_at_rest(runtime, 1)


@simulate(runs=20)
async def test_room_that_is_granted_in_the_moment_of_cancellation_is_passed_on() -> None:
    """The submitter whose turn comes as he is cancelled gives it to the next one."""
    async with runtime_of(in_flight=1, queue=1) as runtime, anyio.create_task_group() as group:
        hold = holding(runtime)
        queued = (await submit_all(runtime, "hold", 2))[1]
        await anyio.wait_all_tasks_blocked()
        scope = anyio.CancelScope()

        async def submit() -> None:
            with scope:
                await runtime.submit("hold", {"n": "cancelled"})

        await start_all(group, submit, lambda: runtime.submit("hold", {"n": "next"}))
        unsubscribe = runtime.subscribe(lambda event: scope.cancel() if event.event_type == "task_canceled" else None)
        queued.cancel()
        await anyio.wait_all_tasks_blocked()
        unsubscribe()
        hold.opened.set()
        await anyio.wait_all_tasks_blocked()
        assert hold.came[-1] == "next"
        await check_at_rest(runtime, 1)


async def test_submit_is_a_checkpoint_before_it_accepts() -> None:
    """A submitter who is cancelled already submits nothing, though there be room."""
    async with runtime_of() as runtime:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await runtime.submit("echo")
        assert scope.cancelled_caught
        assert runtime.statistics().tasks.accepted == 0


@simulate(runs=20)
async def test_a_deadline_that_passes_before_there_is_room_is_told_to_the_submitter() -> None:
    """The task was not accepted: its state is what it was, and its place goes to nobody else's harm."""
    async with runtime_of(in_flight=1, queue=1) as runtime:
        hold = holding(runtime)
        await submit_all(runtime, "hold", 2)
        await anyio.wait_all_tasks_blocked()
        task = BaseTask.create("hold", {"n": 2})
        with pytest.raises(TaskTimeoutError, match="'total' of 5 s before the queue had room") as caught:
            await runtime.submit(task, deadline=5.0)
        assert (task.id, "total", 5.0) == tuple(caught.value.details[key] for key in ("task_id", "deadline", "timeout"))
        assert (task.state, anyio.current_time()) == (TaskState.PENDING, 5.0)
        hold.opened.set()
        assert await (await runtime.submit(task)).result() == {"n": 2}
        await check_at_rest(runtime, 1)


@simulate(runs=20)
async def test_a_deadline_that_passes_before_the_turn_fails_the_task() -> None:
    """It never starts, its place in line is free, and who waits is told which deadline it was."""
    async with runtime_of(in_flight=1, queue=1) as runtime:
        hold = holding(runtime)
        await runtime.submit("hold", {"n": 0})
        handle = await runtime.submit("hold", {"n": 1}, deadline=5)
        with pytest.raises(TaskTimeoutError, match="while it waited for its turn"):
            await handle.result()
        assert anyio.current_time() == 5
        assert (handle.state, handle.task.attempt, handle.task.started_at) == (TaskState.FAILED, 0, None)
        assert handle.task.error is not None
        assert handle.task.error["deadline"] == "total"
        with pytest.raises(TaskTimeoutError, match="while it waited for its turn"):
            await runtime.run("hold", {"n": 2}, deadline=5)
        assert anyio.current_time() == 10
        hold.opened.set()
        await anyio.wait_all_tasks_blocked()
        assert hold.came == [0]
        await check_at_rest(runtime, 1)


@pytest.mark.parametrize(("which", "options"), [("timeout", {"timeout": 5}), ("total", {"deadline": 5})])
@simulate(runs=5)
async def test_a_deadline_of_the_execution_fails_the_task(which: str, options: dict[str, float]) -> None:
    """Which deadline it was is recorded, and the timeout is the cause of what the waiter gets."""
    async with runtime_of(in_flight=1) as runtime:
        handle = await runtime.submit("hang", **options)
        with pytest.raises(TaskExecutionError) as caught:
            await handle.result()
        assert isinstance(caught.value.__cause__, AgentTimeoutError)
        assert handle.task.error is not None
        assert (handle.task.error["error_type"], handle.task.error["deadline"]) == ("AgentTimeoutError", which)
        assert (anyio.current_time(), handle.task.duration_ms) == (5, 5000)
        await check_at_rest(runtime, 1)


@simulate(runs=5)
async def test_the_nearest_deadline_counts() -> None:
    """Of the task's own timeout, that of the call and the total, the first one to pass ends it."""
    async with runtime_of() as runtime:
        for options in (
            {"timeout_ms": 2000, "timeout": 9, "deadline": 9},
            {"timeout_ms": 9000, "timeout": 2, "deadline": 9},
            {"timeout_ms": 9000, "timeout": 9, "deadline": 2},
        ):
            began = anyio.current_time()
            with pytest.raises(TaskExecutionError) as caught:
                await runtime.run("hang", **options)
            assert caught.value.details["error"]["deadline"] == ("total" if options["deadline"] == 2 else "timeout")
            assert anyio.current_time() == began + 2


# What may come in.


@simulate(runs=20)
async def test_a_task_is_submitted_once() -> None:
    """The second time is refused while it is there, and after its end; the first one is not harmed."""
    async with runtime_of(in_flight=1) as runtime:
        hold = holding(runtime)
        first = await runtime.submit("hold")
        await anyio.wait_all_tasks_blocked()
        task = BaseTask.create("hold")
        handle = await runtime.submit(task)
        twin = BaseTask.create("echo", id=task.id)
        for again in (runtime.run, runtime.submit):
            for same in (task, twin):
                with pytest.raises(TaskError, match=f"got task {task.id}, which the runtime has already"):
                    await again(same)
            with pytest.raises(TaskStateError, match="RUNNING"):
                await again(first.task)
        hold.opened.set()
        await handle.result()
        with pytest.raises(TaskStateError, match="COMPLETED"):
            await runtime.submit(task)
        assert runtime.statistics().tasks.accepted == 2
        await check_at_rest(runtime, 1)


@simulate(runs=20)
async def test_two_submitters_of_one_task_who_wait_for_room() -> None:
    """One of them gets it accepted, the other is told; both at once would run it twice."""
    runtime = runtime_of(in_flight=1, queue=1)
    outcomes: list[Any] = []
    async with runtime:
        hold = holding(runtime)
        await submit_all(runtime, "hold", 2)
        task = BaseTask.create("hold", {"n": "twice"})
        async with anyio.create_task_group() as group:
            await start_all(group, *[lambda: noting(outcomes, runtime.submit, task)] * 2)
            hold.opened.set()
        await runtime.drain()
    assert hold.came.count("twice") == 1
    refused = [outcome for outcome in outcomes if isinstance(outcome, TaskError)]
    assert (len(outcomes), len(refused)) == (2, 1)


@simulate(runs=20)
async def test_a_task_that_ends_while_its_submitter_waits_for_room_is_refused() -> None:
    """What was cancelled by hand before it was accepted is not accepted."""
    outcomes: list[Any] = []
    async with runtime_of(in_flight=1, queue=1) as runtime:
        hold = holding(runtime)
        await submit_all(runtime, "hold", 2)
        await anyio.wait_all_tasks_blocked()
        task = BaseTask.create("hold", {"n": "ended"})
        async with anyio.create_task_group() as group:
            await start_all(group, lambda: noting(outcomes, runtime.submit, task))
            task.cancel("not needed")
            hold.opened.set()
        await anyio.wait_all_tasks_blocked()
        assert [TaskStateError] == [type(outcome) for outcome in outcomes]
        await check_at_rest(runtime, 1)


@simulate(runs=20)
async def test_priority_may_change_while_a_task_waits() -> None:
    """It has its place in line by what it was; cancelled, it leaves it, and the slot is not granted to nobody."""
    async with runtime_of(in_flight=1) as runtime:
        hold = holding(runtime)
        running, waiting, other = await submit_all(runtime, "hold", 3)
        await anyio.wait_all_tasks_blocked()
        waiting.task.priority = TaskPriority.CRITICAL
        waiting.cancel()
        await waiting.wait()
        hold.opened.set()
        await running.result()
        await other.result()
        await runtime.drain()
        assert runtime.statistics().tasks.in_flight == 0


@simulate(runs=20)
async def test_a_full_queue_refuses_outsiders_when_the_runtime_stops_to_accept() -> None:
    """Who waits for room when the runtime begins to drain learns that it is closing."""
    outcomes: list[Any] = []
    async with runtime_of(in_flight=1, queue=1) as runtime, anyio.create_task_group() as group:
        hold = holding(runtime)
        await submit_all(runtime, "hold", 2)
        await anyio.wait_all_tasks_blocked()
        await start_all(
            group,
            lambda: noting(outcomes, runtime.submit, "echo"),
            lambda: noting(outcomes, runtime.submit, "echo"),
            runtime.drain,
        )
        assert [RuntimeClosedError] * 2 == [type(outcome) for outcome in outcomes]
        hold.opened.set()


@simulate(runs=300)
async def test_a_place_that_comes_while_outsiders_are_refused_is_not_lost() -> None:
    """The child of a running task keeps its place in the line when the runtime begins to drain, at whatever moment."""
    async with runtime_of(in_flight=1, queue=1) as runtime:

        @runtime.handler("work")
        async def work(given: dict[str, Any]) -> None:
            await anyio.sleep(1)

        @runtime.handler("parent")
        async def parent(given: dict[str, Any], context: AgentContext) -> None:
            for _ in range(2):
                await context.submit("echo")

        async def drain() -> None:
            await anyio.sleep(1)
            await runtime.drain(60)

        outcomes: list[Any] = []
        await runtime.submit("work")
        handle = await runtime.submit("parent")
        async with anyio.create_task_group() as group:
            group.start_soon(drain)
            for _ in range(2):
                group.start_soon(noting, outcomes, runtime.submit, "work")
        assert TaskState.COMPLETED is handle.state
        assert anyio.current_time() < 10
        assert {RuntimeClosedError, TaskHandle} >= {type(outcome) for outcome in outcomes}
        assert 2 == len(outcomes)


@simulate(runs=20)
async def test_room_that_comes_with_the_end_of_the_runtime_is_no_way_in() -> None:
    """A submitter to whom a place is granted in the very moment the runtime closes gets RuntimeClosedError."""
    outcomes: list[Any] = []
    runtime = runtime_of(in_flight=1, queue=1)
    hold = holding(runtime)
    async with anyio.create_task_group() as group:
        async with runtime:
            await runtime.submit("hold")
            last = await runtime.submit("echo")
            await anyio.wait_all_tasks_blocked()
            await start_all(group, lambda: noting(outcomes, runtime.submit, "hang"))
            hold.opened.set()
            await last.wait()
        assert runtime.tasks.active() == []
    assert len(outcomes) == 1
    if isinstance(outcomes[0], Exception):
        assert isinstance(outcomes[0], RuntimeClosedError), repr(outcomes[0])


# Outcomes.


class Unspeakable(Exception):
    """Cannot even be turned into text."""

    def __str__(self) -> str:
        raise Unspeakable


@pytest.mark.parametrize(
    "error",
    [TaskTimeoutError("mine"), AgentTimeoutError("mine"), Unspeakable()],
    ids=lambda error: type(error).__name__,
)
async def test_any_exception_of_a_handler_fails_its_task(error: Exception) -> None:
    """An error that looks like one of the runtime's own, or cannot be printed, is an error like any other."""
    runtime = runtime_of(in_flight=1)

    @runtime.handler("odd")
    async def odd(given: dict[str, Any]) -> None:
        raise error

    async with must_end(runtime), runtime:
        handle = await runtime.submit("odd")
        with anyio.fail_after(2), pytest.raises(TaskExecutionError) as caught:
            await handle.result()
        assert handle.state is TaskState.FAILED
        if not isinstance(error, Unspeakable):
            assert caught.value.__cause__ is error
        await check_at_rest(runtime, 1)


@simulate(runs=5)
async def test_a_timeout_inside_of_a_handler_is_not_that_of_its_task() -> None:
    """A handler that fails because its child did not get its turn in time has failed; it did begin."""
    async with runtime_of(in_flight=1) as runtime:

        @runtime.handler("parent")
        async def parent(given: dict[str, Any]) -> None:
            await BaseTask.create("x").with_timeout(anyio.sleep_forever(), 5000)

        with pytest.raises(TaskExecutionError) as caught:
            await runtime.run("parent")
        assert isinstance(caught.value.__cause__, TaskTimeoutError)
        assert anyio.current_time() == 5


@simulate(runs=20)
async def test_a_task_that_is_ended_by_hand_keeps_that_outcome() -> None:
    """Whoever moves a task while it runs has decided; the code goes on to its end, then the outcome is told."""
    async with runtime_of(in_flight=1) as runtime:
        hold = holding(runtime)
        handle = await runtime.submit("hold", {"by": "the handler"})
        await anyio.wait_all_tasks_blocked()
        handle.task.complete({"by": "hand"})
        assert not handle.is_done
        hold.opened.set()
        assert await handle.result() == {"by": "hand"}
        await check_at_rest(runtime, 1)


@pytest.mark.parametrize("by", ["handle", "shutdown", "exit"])
@simulate(runs=20)
async def test_code_of_a_task_that_was_ended_by_hand_can_be_cancelled(by: str) -> None:
    """Its state says CANCELED but its code still runs: it can be cancelled, and no exit waits for it for ever."""
    runtime = runtime_of(in_flight=1)
    async with runtime:
        handle = await runtime.submit("hang")
        await anyio.wait_all_tasks_blocked()
        handle.task.cancel("by hand")
        if by == "handle":
            handle.cancel("by the handle")
            await handle.wait()
        elif by == "shutdown":
            await runtime.shutdown()
    assert (handle.state, handle.task.cancel_reason) == (TaskState.CANCELED, "by hand")


@simulate(runs=20)
async def test_a_task_cancelled_by_hand_in_the_queue_never_runs() -> None:
    """It is cancelled as any other, and that is no failure that the exit would have to tell."""
    async with runtime_of(in_flight=1) as runtime:
        hold = holding(runtime)
        _, waiting = await submit_all(runtime, "hold", 2)
        await anyio.wait_all_tasks_blocked()
        waiting.task.cancel("by hand")
        hold.opened.set()
        await runtime.drain()
        assert hold.came == [0]
        assert (waiting.is_done, waiting.state) == (True, TaskState.CANCELED)


async def test_retention_keeps_the_newest_that_have_ended() -> None:
    """Older ones are forgotten; who is asked for one of them names the number."""
    async with runtime_of(retention=2, in_flight=1) as runtime:
        handles = await submit_all(runtime, "echo", 3)
        for handle in handles:
            await handle.wait()
        assert [handles[1].task, handles[2].task] == [runtime.tasks.get(handle.id) for handle in handles[1:]]
        with pytest.raises(TaskNotFoundError, match="the 2 that ended last") as caught:
            runtime.tasks.get(handles[0].id)
        assert handles[0].id == caught.value.details["task_id"]


async def test_an_id_that_comes_twice_is_that_of_the_later_task() -> None:
    """It is found as long as it is one of the newest, however long ago the earlier one has ended."""
    async with runtime_of(retention=3) as runtime:
        for number in (1, 2):
            await runtime.run("echo", {"n": number}, id="x")
            await runtime.run("echo")
        await runtime.run("echo")
        assert {"n": 2} == runtime.tasks.get("x").output
        await runtime.run("echo")
        with pytest.raises(TaskNotFoundError):
            runtime.tasks.get("x")
        ledger = runtime.tasks._ledger
        assert (3, 3) == (len(ledger._recent), len(ledger._numbers))


async def test_running_and_waiting_tasks_are_known_in_order_of_arrival() -> None:
    """`active` lists them, `get` finds them, `len` counts them."""
    async with runtime_of(in_flight=1) as runtime:
        holding(runtime)
        handles = await submit_all(runtime, "hold", 3)
        assert [handle.task for handle in handles] == runtime.tasks.active()
        assert handles[1].task is runtime.tasks.get(handles[1].id)
        assert len(runtime.tasks) == 3
        assert repr(runtime.tasks).startswith("<Scheduler open, 3 tasks, <Slots 1 of 1 in use, 2 waiting>")


async def test_statistics_count_every_end() -> None:
    """Each task is counted once, by how it ended."""
    async with runtime_of() as runtime:
        await runtime.run("echo")
        with pytest.raises(TaskExecutionError):
            await runtime.run("fail")
        handle = await runtime.submit("hang")
        handle.cancel()
        with pytest.raises(TaskCanceledError):
            await handle.result()
        statistics = runtime.statistics().tasks
        assert (statistics.accepted, statistics.completed, statistics.failed, statistics.canceled) == (3, 1, 1, 1)


async def test_events_tell_the_life_of_a_task() -> None:
    """Accepted, started, ended: each with the task's id and type, in the loop, to sinks and in the record."""
    heard: list[str] = []
    async with runtime_of() as runtime:
        stop = runtime.subscribe(lambda event: heard.append(event.event_type))
        task = BaseTask.create("echo")
        await runtime.run(task)
        stop()
        await runtime.run("echo")
        assert heard == ["task_accepted", "task_started", "task_completed"]
        mine = [event for event in runtime.events() if event.data["task_id"] == task.id]
        assert heard == [event.event_type for event in mine]
        assert {"echo"} == {event.data["type"] for event in mine}


async def test_a_sink_that_raises_harms_no_task(caplog: pytest.LogCaptureFixture) -> None:
    """The task goes on to its end; what the sink did is in the log."""
    async with runtime_of(in_flight=2) as runtime:
        runtime.subscribe(lambda event: 1 / 0)
        assert await runtime.run("echo", {"n": 1}) == {"n": 1}
        await check_at_rest(runtime, 2)
    assert "ZeroDivisionError" in caplog.text


@simulate(runs=20)
async def test_the_same_handler_may_be_entered_while_another_waits() -> None:
    """A task may run while its own type waits in line: types share nothing but slots."""
    async with runtime_of(in_flight=2) as runtime:
        runtime.handler("other")(echo)
        hold = holding(runtime)
        await runtime.submit("hold")
        assert await runtime.run("other", {"n": 1}) == {"n": 1}
        hold.opened.set()
