"""What a submitter holds: outcomes for any number of waiters, as often as they ask."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from agentcore import AgentContext, AgentResult, TaskCanceledError, TaskExecutionError, TaskState
from agentcore.testing import simulate
from tests.core.fakes import noting
from tests.runtime.parts import holding, runtime_of

pytestmark = pytest.mark.anyio


@simulate(runs=10)
async def test_many_wait_for_one() -> None:
    """All of them get the output; who comes later gets it too."""
    async with runtime_of() as runtime:
        hold = holding(runtime)
        handle = await runtime.submit("hold", {"n": 1})
        outcomes: list[Any] = []
        async with anyio.create_task_group() as group:
            for _ in range(50):
                group.start_soon(noting, outcomes, handle.result)
            await anyio.wait_all_tasks_blocked()
            assert outcomes == []
            hold.opened.set()
        assert outcomes == [{"n": 1}] * 50
        assert await handle.result() == {"n": 1}


@simulate(runs=20)
async def test_each_waiter_gets_an_error_of_its_own() -> None:
    """Tracebacks of several waiters do not grow into each other; the cause is the same object."""
    async with runtime_of() as runtime:
        handle = await runtime.submit("fail", {"n": 1})
        outcomes: list[Any] = []
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(noting, outcomes, handle.result)
        assert [TaskExecutionError] * 3 == [type(error) for error in outcomes]
        assert len({id(error) for error in outcomes}) == 3
        assert len({id(error.__cause__) for error in outcomes}) == 1
        assert str(outcomes[0].__cause__) == "number 1"


async def test_the_error_tells_what_failed() -> None:
    """Type, attempt, the kind of error and its message; the values stand in the details."""
    async with runtime_of() as runtime:
        handle = await runtime.submit("fail", {"n": 1})
        with pytest.raises(
            TaskExecutionError, match=r"of type 'fail' failed in attempt 1: ValueError: number 1"
        ) as caught:
            await handle.result()
        assert caught.value.details == {
            "task_id": handle.id,
            "type": "fail",
            "attempt": 1,
            "error": {"error_type": "ValueError", "message": "number 1"},
        }


@pytest.mark.parametrize("task_type", ["echo", "fail", "hang"])
async def test_wait_tells_any_end_without_raising(task_type: str) -> None:
    """The result says how it ended; a failure is known then, and the exit is silent."""
    async with runtime_of() as runtime:
        handle = await runtime.submit(task_type)
        if task_type == "hang":
            handle.cancel()
        result = await handle.wait()
        expected = {"echo": TaskState.COMPLETED, "fail": TaskState.FAILED, "hang": TaskState.CANCELED}[task_type]
        assert (result.task_id, result.state, result.success) == (handle.id, expected, task_type == "echo")


@pytest.mark.parametrize("method", ["wait", "result"])
async def test_waiting_is_always_a_checkpoint(method: str) -> None:
    """Also for what has ended long ago."""
    async with runtime_of() as runtime:
        handle = await runtime.submit("echo")
        await handle.wait()
        with anyio.CancelScope() as scope:
            scope.cancel()
            await getattr(handle, method)()
        assert scope.cancelled_caught


@simulate(runs=20)
async def test_the_handle_shows_the_task() -> None:
    """Its id, state and text follow the task's."""
    async with runtime_of() as runtime:
        hold = holding(runtime)
        handle = await runtime.submit("hold")
        await anyio.wait_all_tasks_blocked()
        assert (handle.id, handle.state, handle.is_done) == (handle.task.id, TaskState.RUNNING, False)
        assert repr(handle) == f"<TaskHandle {handle.id} of type 'hold', RUNNING>"
        hold.opened.set()
        await handle.wait()
        assert (handle.state, handle.is_done) == (TaskState.COMPLETED, True)


async def test_an_outcome_outlives_the_runtime() -> None:
    """After the exit a handle still tells how its task ended."""
    async with runtime_of(grace=5) as runtime:
        completed = await runtime.submit("echo", {"n": 1})
    async with runtime_of() as runtime:
        cut = await runtime.submit("hang")
    assert await completed.result() == {"n": 1}
    with pytest.raises(TaskCanceledError):
        await cut.result()
    assert not cut.cancel("too late")


async def test_an_error_result_is_a_failure_without_a_cause() -> None:
    """What the agent said is in the details, whatever it is; there was no exception."""
    async with runtime_of() as runtime:

        @runtime.handler("says")
        async def says(given: dict[str, Any], context: AgentContext) -> AgentResult:
            return AgentResult.error_result(given["error"])

        for said, message in (
            ({"code": 7}, "error: {'code': 7}"),
            ({"error_type": "Bad", "message": "no"}, "Bad: no"),
            ("no luck", "AgentFailure: no luck"),
            (None, "the agent gave success=False and no error"),
            (OSError("disk"), "AgentFailure: disk"),
        ):
            with pytest.raises(TaskExecutionError) as caught:
                await runtime.run("says", {"error": said})
            assert message in str(caught.value)
            assert caught.value.__cause__ is None
