"""What each outcome means for who executes, for the task and for the agent: the table of `outcomes`, row by row."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import anyio
import attrs
import pytest

import agentcore
from agentcore import (
    AgentContext,
    AgentCrashedError,
    AgentExecutionError,
    AgentRuntime,
    AgentState,
    Backoff,
    BaseTask,
    RetryPolicy,
    RuntimeClosedError,
    RuntimeConfig,
    TaskCanceledError,
    TaskExecutionError,
    TaskGroupError,
    TaskState,
)
from agentcore._rules.retry import GaveUp
from agentcore.testing import simulate
from tests.core.outcomes import (
    FROM_OUTSIDE,
    RETRIED,
    TABLE,
    BoomError,
    Later,
    Row,
    Scripted,
    Slow,
    Step,
    not_ready,
    pass_time,
    raise_boom,
)
from tests.runtime.doing import opened

pytestmark = pytest.mark.anyio

rows = pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)


def context_of(row: Row) -> AgentContext:
    """Return a context for a direct execution; deadlines from outside are the runtime's affair."""
    return AgentContext(task=BaseTask.create("scripted"))


def test_outcomes_from_outside_of_parts_that_have_come() -> None:
    """No outcome waits for a part that is there."""
    waiting = {cell.name for cells in FROM_OUTSIDE.values() for cell in cells.values() if isinstance(cell, Later)}
    assert [] == [name for name in sorted(waiting) if hasattr(agentcore, name)]


@pytest.mark.parametrize("row", [row for row in TABLE if not row.options], ids=lambda row: row.name)
@simulate(runs=5)
async def test_execute(row: Row) -> None:
    """`execute` gives what the row says, moves no task, and leaves the agent in the row's state."""
    agent, context = Scripted(row), context_of(row)
    if isinstance(row.gives, type):
        with pytest.raises(row.gives):
            await agent.execute(context)
    else:
        result = await agent.execute(context)
        assert (row.gives is None, row.gives) == (result.success, result.error)
    assert row.seen == agent.seen
    assert [row.handled] * (row.handled is not None) == [type(error) for error in agent.handled]
    assert row.agent == agent.state
    assert context.task is not None
    assert TaskState.PENDING == context.task.state
    assert (0, 0) == (agent.metrics.running, agent.metrics.waiting)


@pytest.mark.parametrize("hosted", [False, True], ids=["strict", "hosted"])
@pytest.mark.parametrize("row", [row for row in TABLE if "deadline" not in row.options], ids=lambda row: row.name)
@simulate(runs=3)
async def test_ask(row: Row, hosted: bool) -> None:
    """`ask` gives what `execute` gives, whichever kind the runtime is of."""
    agent = Scripted(row)
    async with opened(hosted=hosted, grace=10) as runtime:
        if isinstance(row.gives, type):
            with pytest.raises(row.gives):
                await runtime.ask(agent, **row.options)
        else:
            result = await runtime.ask(agent, **row.options)
            assert (row.gives is None, row.gives) == (result.success, result.error)
            assert row.cause is (type(result.cause) if result.cause is not None else None)
        assert runtime.health().healthy
        assert (0, 0) == (runtime.health().asks, runtime.statistics().tasks.accepted)
    assert row.seen == agent.seen
    assert [row.handled] * (row.handled is not None) == [type(error) for error in agent.handled]
    if row.deadline is not None:
        assert row.deadline == getattr(agent.handled[0], "details", {}).get("deadline")
    assert row.agent == agent.state
    assert (0, 0) == (agent.metrics.running, agent.metrics.waiting)


@pytest.mark.parametrize("hosted", [False, True], ids=["strict", "hosted"])
@pytest.mark.parametrize("row", [row for row in TABLE if row.waiter is not SystemExit], ids=lambda row: row.name)
@simulate(runs=3)
async def test_child_of_a_group(row: Row, hosted: bool) -> None:
    """A child of a group moves as the row says; the group raises what its handle gives."""
    agent = Scripted(row)
    async with opened(hosted=hosted, grace=10) as runtime:
        runtime.registry("agents").register("scripted", agent)
        errors: list[BaseException] = []
        try:
            async with runtime.group() as group:
                handle = group.start("scripted", **row.options)
        except TaskGroupError as error:
            errors.extend(error.exceptions)
        assert [row.waiter] * (row.waiter is not None) == [type(error) for error in errors]
        if row.cause is not None:
            assert [row.cause] == [type(error.__cause__) for error in errors]
        assert [row.task] == [result.state for result in group.results]
    check_task(row, handle.task)


@pytest.mark.parametrize("hosted", [False, True], ids=["strict", "hosted"])
async def test_child_of_a_group_that_exits(hosted: bool) -> None:
    """What no `except Exception` may catch fails the task and is raised by the group."""
    agent = Scripted(next(row for row in TABLE if row.waiter is SystemExit))
    async with opened(hosted=hosted) as runtime:
        runtime.registry("agents").register("scripted", agent)
        with pytest.raises(BaseExceptionGroup) as caught:
            async with runtime.group() as group:
                handle = group.start("scripted")
        assert caught.group_contains(SystemExit)
        assert TaskState.FAILED == handle.state
        assert runtime.health().healthy


@pytest.mark.parametrize("hosted", [False, True], ids=["strict", "hosted"])
@simulate(runs=10)
async def test_caller_of_ask_is_cancelled(hosted: bool) -> None:
    """Cancellation goes through `ask`, and the agent is IDLE."""
    agent = Slow()
    async with opened(hosted=hosted) as runtime:
        async with anyio.create_task_group() as group:
            group.start_soon(runtime.ask, agent)
            await agent.begun.wait()
            assert AgentState.PROCESSING == agent.state
            group.cancel_scope.cancel()
        assert AgentState.IDLE == agent.state
        assert (1, 0, 0) == (agent.metrics.cancellations, agent.metrics.failures, runtime.health().asks)


@pytest.mark.parametrize("hosted", [False, True], ids=["strict", "hosted"])
@simulate(runs=10)
async def test_ask_and_group_at_shutdown_after_grace(hosted: bool) -> None:
    """An ask that outlives the grace raises an error to its caller; the children of a group are CANCELED like any task."""
    asked, child = Slow(), Slow()
    caught: list[BaseException] = []

    async def ask() -> None:
        with pytest.raises(RuntimeClosedError) as told:
            await runtime.ask(asked)
        caught.append(told.value)

    async def use_group() -> None:
        with pytest.raises(TaskGroupError) as told:
            async with runtime.group() as children:
                children.start("slow")
        caught.extend(told.value.exceptions)

    async with opened(hosted=hosted) as runtime, anyio.create_task_group() as group:
        runtime.registry("agents").register("slow", child)
        for function in (ask, use_group):
            group.start_soon(function)
        await asked.begun.wait()
        await child.begun.wait()
        report = await runtime.shutdown(5.0)
    assert 5.0 == anyio.current_time()
    assert {RuntimeClosedError, TaskCanceledError} == {type(error) for error in caught}
    assert [TaskState.CANCELED] == [cut.state for cut in report.cut_short]
    assert AgentState.IDLE == asked.state


@rows
@simulate(runs=5)
async def test_run(row: Row) -> None:
    """`run` moves the task as the row says and tells the caller."""
    agent = Scripted(row)
    task = BaseTask.create("scripted")
    async with AgentRuntime() as runtime:
        runtime.registry("agents").register("scripted", agent)
        if row.waiter is None:
            assert {"answer": 42} == await runtime.run(task, **row.options)
        else:
            with pytest.raises(row.waiter) as caught:
                await runtime.run(task, **row.options)
            if row.cause is not None:
                assert row.cause is type(caught.value.__cause__)
    check_task(row, task)
    assert AgentState.TERMINATED == agent.state


@pytest.mark.parametrize("row", [row for row in TABLE if row.waiter is not SystemExit], ids=lambda row: row.name)
@simulate(runs=5)
async def test_submit(row: Row) -> None:
    """`submit` moves the task as the row says and tells everyone who waits, each with an error of his own."""
    agent = Scripted(row)
    async with AgentRuntime() as runtime:
        runtime.registry("agents").register("scripted", agent)
        handle = await runtime.submit("scripted", **row.options)
        result = await handle.wait()
        assert (row.task, row.waiter is None) == (result.state, result.success)
        if row.waiter is None:
            assert {"answer": 42} == await handle.result()
        else:
            with pytest.raises(row.waiter) as first:
                await handle.result()
            with pytest.raises(row.waiter) as second:
                await handle.result()
            assert first.value is not second.value
            if row.cause is not None:
                assert row.cause is type(first.value.__cause__)
    check_task(row, handle.task)


POLICY = RetryPolicy(attempts=3, backoff=Backoff(1, 2, jitter=False))
# Two waits, of 1 and of 2 seconds.
WAITED = 3.0


@pytest.mark.parametrize("way", ["run", "submit", "group"])
@rows
@simulate(runs=3)
async def test_retried(row: Row, way: str) -> None:
    """With a policy that covers everything a task is executed as often as it allows, if it is retried at all."""
    agent = Scripted(row)
    task = BaseTask.create("scripted")
    with suppress(TaskExecutionError, TaskGroupError, SystemExit, BaseExceptionGroup):
        async with AgentRuntime(RuntimeConfig(retry=POLICY)) as runtime:
            runtime.registry("agents").register("scripted", agent)
            if way == "run":
                await runtime.run(task, **row.options)
            elif way == "submit":
                await (await runtime.submit(task, **row.options)).result()
            else:
                async with runtime.group() as group:
                    group.start(task, **row.options)
    is_retried = row.retried is RETRIED
    attempts = 3 if is_retried else 1
    assert (row.task, attempts) == (task.state, task.attempt)
    assert (attempts if row.task is TaskState.FAILED else 0) == task.failures
    assert (attempts - 1) == runtime.statistics().tasks.retried
    assert (5.0 * attempts if row.deadline else 0.0) + (WAITED if is_retried else 0.0) == anyio.current_time()
    if row.task is TaskState.FAILED and row.waiter is not SystemExit:
        assert task.error is not None
        assert (attempts, row.deadline) == (task.error["attempts"], task.error.get("deadline"))
        reason = GaveUp.ATTEMPTS if is_retried else GaveUp.DEADLINE
        assert str(reason) == task.error["gave_up"]
    assert (1 if row.task is TaskState.FAILED else 0) == len(runtime.tasks.dead_letters)


@pytest.mark.parametrize("way", ["run", "submit", "group"])
@pytest.mark.parametrize("row", [row for row in TABLE if row.retried is RETRIED], ids=lambda row: row.name)
@simulate(runs=3)
async def test_retried_with_success(row: Row, way: str) -> None:
    """What succeeds at the second time is a success, and nobody hears of the first time."""
    agent = Scripted(row)
    task = BaseTask.create("scripted")
    async with AgentRuntime() as runtime:
        runtime.registry("agents").register("scripted", agent)
        async with anyio.create_task_group() as others:
            others.start_soon(recover, agent, task)
            if way == "run":
                output = await runtime.run(task, **row.options, retry=POLICY)
            elif way == "submit":
                output = await (await runtime.submit(task, **row.options, retry=POLICY)).result()
            else:
                async with runtime.group() as group:
                    handle = group.start(task, **row.options, retry=POLICY)
                output = await handle.result()
    assert {"answer": 42} == output
    assert (TaskState.COMPLETED, 2, 1, None) == (task.state, task.attempt, task.failures, task.error)
    assert (0, 1) == (len(runtime.tasks.dead_letters), runtime.statistics().tasks.retried)


async def recover(agent: Scripted, task: BaseTask) -> None:
    """Have an agent succeed when a task waits for its second execution."""
    while task.not_before is None:
        await pass_time(0.5)
    agent.row = TABLE[0]


def check_task(row: Row, task: BaseTask) -> None:
    """Check a task that has ended against its row."""
    assert row.task == task.state
    assert (1, int(row.task is TaskState.FAILED)) == (task.attempt, task.failures)
    assert (5.0 if row.deadline else 0.0) == anyio.current_time()
    if row.deadline is not None:
        assert task.error is not None
        assert row.deadline == task.error["deadline"]
    if isinstance(row.gives, dict):
        assert row.gives == {key: value for key, value in (task.error or {}).items() if key != "deadline"}


async def test_system_exit_in_a_submitted_task() -> None:
    """What no `except Exception` may catch fails the task and ends the block of the runtime at once."""
    agent = Scripted(next(row for row in TABLE if row.waiter is SystemExit))
    reached = []
    with pytest.raises(BaseExceptionGroup) as caught:
        async with AgentRuntime() as runtime:
            runtime.registry("agents").register("scripted", agent)
            handle = await runtime.submit("scripted")
            await anyio.sleep_forever()
            reached.append("after")  # type: ignore[unreachable]
    assert [] == reached
    assert caught.group_contains(SystemExit)
    assert TaskState.FAILED == handle.state


@pytest.mark.parametrize("initialize", [not_ready, raise_boom], ids=["False", "raises"])
async def test_initialization_is_tried_again(initialize: Step) -> None:
    """An agent whose initialisation failed tries it again with the next execution, and once only after it worked."""
    agent = Scripted(attrs.evolve(TABLE[0], initialize=initialize))
    assert (await agent.execute(AgentContext())).success is False
    agent.row = TABLE[0]
    assert (await agent.execute(AgentContext())).success is True
    assert (await agent.execute(AgentContext())).success is True
    assert 2 == agent.initialized


async def test_handle_error_fails_with_both_errors() -> None:
    """`AgentExecutionError` carries the error that was to be handled and the one that handling it raised."""
    agent = Scripted(next(row for row in TABLE if row.gives is AgentExecutionError))
    with pytest.raises(AgentExecutionError) as caught:
        await agent.execute(AgentContext())
    assert agent.handled[0] is caught.value.errors[0]
    assert caught.value.errors[1] is caught.value.__cause__
    assert caught.value.errors[0] is not caught.value.errors[1]


@simulate(runs=20)
async def test_caller_of_execute_is_cancelled() -> None:
    """Cancellation goes through `execute`, and the agent is IDLE."""
    agent = Slow()
    async with anyio.create_task_group() as group:
        group.start_soon(agent.execute, AgentContext())
        await agent.begun.wait()
        assert AgentState.PROCESSING == agent.state
        group.cancel_scope.cancel()
    assert AgentState.IDLE == agent.state
    assert (1, 0, 0) == (agent.metrics.cancellations, agent.metrics.failures, agent.metrics.running)


@simulate(runs=20)
async def test_caller_of_run_is_cancelled() -> None:
    """The task of a caller who is cancelled is CANCELED once it has been unwound."""
    agent = Slow()
    async with AgentRuntime() as runtime:
        runtime.registry("agents").register("slow", agent)
        async with anyio.create_task_group() as group:
            group.start_soon(runtime.run, "slow")
            await agent.begun.wait()
            agent.let_go = anyio.Event()
            group.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                await agent.unwinding.wait()
                assert agent.task is not None
                assert TaskState.RUNNING == agent.task.state
                agent.let_go.set()
        assert TaskState.CANCELED == agent.task.state
        assert AgentState.IDLE == agent.state


@simulate(runs=20)
async def test_handle_is_cancelled() -> None:
    """A cancelled task is CANCELED once it has been unwound; who waits gets a TaskCanceledError with the reason."""
    agent = Slow()
    async with AgentRuntime() as runtime:
        runtime.registry("agents").register("slow", agent)
        handle = await runtime.submit("slow")
        await agent.begun.wait()
        agent.let_go = anyio.Event()
        assert handle.cancel("no longer wanted") is True
        await agent.unwinding.wait()
        assert (TaskState.RUNNING, True) == (handle.state, handle.task.cancel_requested)
        agent.let_go.set()
        with pytest.raises(TaskCanceledError, match="no longer wanted"):
            await handle.result()
        assert (TaskState.CANCELED, False) == (handle.state, handle.task.cancel_requested)
        assert "no longer wanted" == handle.task.cancel_reason
        assert handle.cancel("again") is False


@simulate(runs=20)
async def test_shutdown_after_grace() -> None:
    """What outlives the grace is cancelled with a reason, and the report names it."""
    agent = Slow()
    async with AgentRuntime(grace=5.0) as runtime:
        runtime.registry("agents").register("slow", agent)
        handle = await runtime.submit("slow")
        await agent.begun.wait()
    assert TaskState.CANCELED == handle.state
    assert ("the runtime is shutting down", 5.0) == (handle.task.cancel_reason, anyio.current_time())
    assert runtime.report is not None
    assert (False, [handle.id]) == (runtime.report.drained, [cut.task_id for cut in runtime.report.cut_short])
    with pytest.raises(TaskCanceledError, match="shutting down"):
        await handle.result()


async def test_failure_that_nobody_learns_of() -> None:
    """A failure in the background that reached nobody reaches the exit of the runtime."""
    with pytest.raises(AgentCrashedError) as caught:
        async with AgentRuntime() as runtime:
            runtime.handler("boom")(boom)
            await runtime.submit("boom")
            await runtime.submit("boom")
    assert [TaskExecutionError, TaskExecutionError] == [type(error) for error in caught.value.exceptions]
    assert [BoomError, BoomError] == [type(error.__cause__) for error in caught.value.exceptions]


async def boom(task_input: dict[str, Any]) -> None:
    """A handler that fails."""
    raise BoomError("inside")
