"""A block around a program: how it is entered, what travels into it, and what comes out of it."""

from __future__ import annotations

import contextvars
import threading
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from agentcore import (
    AgentContext,
    AgentCrashedError,
    AgentRuntime,
    BaseAgent,
    BaseTask,
    ConfigurationError,
    RuntimeClosedError,
    RuntimeConfig,
    TaskCanceledError,
    TaskExecutionError,
    TaskRoutingError,
    TaskState,
)
from agentcore._context import current_execution, current_job, current_runtime
from agentcore._ledger import MAX_LOST
from agentcore.testing import simulate
from tests.runtime.parts import check_at_rest, hang, holding, runtime_of, submit_all

pytestmark = pytest.mark.anyio

colour: contextvars.ContextVar[str] = contextvars.ContextVar("colour", default="none")

# Arguments.


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[(name, value) for name in ("in_flight", "queue", "retention") for value in (0, -1, True, 1.5, "2", None)],
        *[("ageing", value) for value in (-1, True, float("nan"), "1", None)],
        *[("grace", value) for value in (-1, True, float("nan"), float("inf"), "1", None)],
    ],
)
async def test_unusable_settings_are_refused(name: str, value: object) -> None:
    """The error names the setting, the value and what it must be."""
    with pytest.raises(ConfigurationError, match=f"{name} of a runtime must be a .*: got {value!r}; ") as caught:
        RuntimeConfig(**{name: value})  # type: ignore[arg-type]
    assert {"name": name}.items() <= caught.value.details.items()


async def test_grace_may_be_given_beside_the_configuration() -> None:
    """It is checked as the one in the configuration is, and does not change that."""
    config = RuntimeConfig(in_flight=3)
    runtime = AgentRuntime(config, grace=0.5)
    assert (runtime.config.in_flight, runtime.config.grace, config.grace) == (3, 0.5, 10.0)
    with pytest.raises(ConfigurationError, match="grace"):
        AgentRuntime(grace=-1)
    with pytest.raises(ConfigurationError, match="must be a RuntimeConfig: got 3"):
        AgentRuntime(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["run", "submit"])
async def test_unusable_arguments_of_a_task_are_refused(method: str) -> None:
    """Nothing is accepted then, and nothing of the runtime is used up."""
    async with runtime_of(in_flight=1) as runtime:
        take = getattr(runtime, method)
        task = BaseTask.create("echo")
        for arguments, options in (
            ((5,), {}),
            ((task, {"n": 1}), {}),
            ((task,), {"priority": "HIGH"}),
            (("echo",), {"timeout": -1}),
            (("echo",), {"deadline": float("nan")}),
            (("echo",), {"priority": "urgent"}),
            (("echo", [1]), {}),
            (("echo",), {"timeout_ms": -1}),
        ):
            with pytest.raises(ConfigurationError):
                await take(*arguments, **options)
        with pytest.raises(TaskRoutingError, match=r"'nothing'.*known are 'echo', 'fail', 'hang'"):
            await take("nothing")
        with pytest.raises(TypeError):
            await take("echo", colour="red")
        assert runtime.statistics().tasks.accepted == 0
        assert task.state is TaskState.PENDING
        await check_at_rest(runtime, 1)


# Entering and leaving.


async def test_a_runtime_is_entered_once() -> None:
    """A second time is refused, inside of the block and after it; the first one is not harmed."""
    async with runtime_of() as runtime:
        with pytest.raises(RuntimeClosedError, match="entered once"):
            await runtime.__aenter__()
        assert await runtime.run("echo", {"n": 1}) == {"n": 1}
    with pytest.raises(RuntimeClosedError, match="'closed'"):
        async with runtime:
            pass


@pytest.mark.parametrize("method", ["run", "submit"])
async def test_outside_of_the_block_tasks_are_refused(method: str) -> None:
    """Before it the message says what to write, after it that it is over."""
    runtime = runtime_of()
    with pytest.raises(RuntimeClosedError, match="async with AgentRuntime") as caught:
        await getattr(runtime, method)("echo")
    assert caught.value.details["state"] == "new"
    async with runtime:
        assert repr(runtime) == "<AgentRuntime open, 0 tasks>"
    with pytest.raises(RuntimeClosedError, match="it is shutting down"):
        await getattr(runtime, method)("echo")
    assert (runtime.statistics().state, runtime.tasks.statistics().accepted) == ("closed", 0)


async def test_a_runtime_that_was_shut_down_before_it_was_entered_runs_nothing() -> None:
    """It cannot be entered any more: what it took on would not be drained."""
    runtime = runtime_of()
    await runtime.shutdown()
    with pytest.raises(RuntimeClosedError, match="entered once"):
        await runtime.__aenter__()


async def test_the_current_runtime_is_that_of_the_block() -> None:
    """Inside of blocks, of tasks and of threads; the outer one again after the inner; none outside."""
    with pytest.raises(RuntimeClosedError, match="there is no open runtime here"):
        AgentRuntime.current()
    async with runtime_of() as outer:
        async with runtime_of() as inner:
            assert AgentRuntime.current() is inner
            seen: list[AgentRuntime] = []
            outer.handler("in a thread")(lambda given: seen.append(AgentRuntime.current()))

            @outer.handler("on the loop")
            async def look(given: dict[str, Any]) -> None:
                seen.append(AgentRuntime.current())

            for task_type in ("in a thread", "on the loop"):
                await outer.run(task_type)
                await (await outer.submit(task_type)).wait()
            assert seen == [outer] * 4
            assert AgentRuntime.current() is inner
        assert AgentRuntime.current() is outer
    with pytest.raises(RuntimeClosedError):
        AgentRuntime.current()


@simulate(runs=20)
async def test_two_runtimes_in_one_loop_know_nothing_of_each_other() -> None:
    """Handlers, slots, failures and ends are each one's own."""
    async with runtime_of(in_flight=1) as first, runtime_of(in_flight=1) as second:
        hold = holding(first, "only here")
        await first.submit("only here")
        with pytest.raises(TaskRoutingError):
            await second.run("only here")
        assert await second.run("echo", {"n": 2}) == {"n": 2}

        @second.handler("across")
        async def across(given: dict[str, Any]) -> dict[str, Any]:
            hold.opened.set()
            return await first.run("echo", {"n": 1})

        assert await second.run("across") == {"n": 1}
        await second.shutdown()
        await check_at_rest(first, 1)


async def test_a_runtime_in_a_thread_of_its_own() -> None:
    """A second event loop in another thread with another runtime, on the same backend."""
    outputs: list[dict[str, Any]] = []

    async def main() -> None:
        async with runtime_of() as runtime:
            outputs.append(await (await runtime.submit("echo", {"n": 1})).result())

    backend = "trio" if type(anyio.lowlevel.current_token().native_token).__name__ == "TrioToken" else "asyncio"
    thread = threading.Thread(target=anyio.run, args=(main,), kwargs={"backend": backend})
    async with runtime_of() as runtime:
        thread.start()
        await runtime.run("echo")
        await anyio.to_thread.run_sync(thread.join)
    assert outputs == [{"n": 1}]


# Context variables.


def agents_around() -> list[str]:
    """Return the names of the agents that the caller is executed by, from the inside out."""
    names, link = [], current_execution.get()
    while isinstance(link, list):
        names += [link[0].name] if isinstance(link[0], BaseAgent) else []
        link = link[1]
    return names


async def test_variables_of_the_user_travel_structural_ones_do_not() -> None:
    """A task sees the submitter's variables as they were then; what it sets stays with it; its place in the tree is new."""
    async with runtime_of() as runtime:
        seen: list[Any] = []

        @runtime.handler("inner")
        def inner(given: dict[str, Any]) -> None:
            seen.append((colour.get(), agents_around(), current_job.get().task.type))  # type: ignore[attr-defined]

        @runtime.handler("outer")
        async def outer(given: dict[str, Any], context: AgentContext) -> None:
            colour.set("green")
            handle = await context.submit("inner")
            colour.set("blue")
            await handle.wait()

        colour.set("red")
        await (await runtime.submit("outer")).result()
        assert seen == [("green", ["inner"], "inner")]
        assert colour.get() == "red"
        assert (current_job.get(), current_execution.get(), current_runtime.get()) == (None, None, runtime)
        await runtime.run("outer")
        assert colour.get() == "blue", "a task that is run is in its caller's context"
        assert (current_job.get(), current_execution.get(), current_runtime.get()) == (None, None, runtime)


async def test_plain_functions_run_in_a_thread_with_the_users_variables() -> None:
    """Not on the event loop, and what they see there is what the submitter saw."""
    async with runtime_of() as runtime:
        runtime.handler("where")(lambda given: {"thread": threading.get_ident(), "colour": colour.get()})
        colour.set("red")
        output = await runtime.run("where")
        assert output["thread"] != threading.get_ident()
        assert output["colour"] == "red"


# What comes out of the block.


class Odd(Exception):
    """An exception of the test's own."""


@pytest.mark.parametrize("error", [Odd("own"), ExceptionGroup("own", [Odd("a")]), SystemExit(3), KeyboardInterrupt()])
async def test_the_blocks_own_exception_flies_untouched(error: BaseException) -> None:
    """Only the block failed: the very same object, in no group, and its tasks are cut at once."""
    runtime = runtime_of(grace=60)
    with pytest.raises(type(error)) as caught:
        async with runtime:
            handle = await runtime.submit("hang")
            raise error
    assert caught.value is error
    assert handle.state is TaskState.CANCELED
    assert handle.task.cancel_reason == f"the block was left by {type(error).__name__}"


async def test_failures_that_reached_nobody_are_raised_at_the_exit() -> None:
    """Two failures arrive as two, each with its cause; those that somebody has learned of do not."""
    with pytest.raises(AgentCrashedError) as caught:
        async with runtime_of(grace=5) as runtime:
            handles = await submit_all(runtime, "fail", 4)
            await handles[1].wait()
            with pytest.raises(TaskExecutionError):
                await handles[3].result()
    leaves = caught.value.exceptions
    assert [TaskExecutionError] * 2 == [type(leaf) for leaf in leaves]
    assert ["number 0", "number 2"] == [str(leaf.__cause__) for leaf in leaves]
    assert [handles[0].id, handles[2].id] == [leaf.details["task_id"] for leaf in leaves]  # type: ignore[attr-defined]
    assert caught.value.details["failures"] == 2
    assert handles[0].id in caught.value.message
    assert handles[2].id in caught.value.message


async def test_the_exception_of_the_block_comes_together_with_lost_failures() -> None:
    """Both are leaves, the block's own is the same object and the first one."""
    own = Odd("own")
    with pytest.raises(AgentCrashedError) as caught:
        async with runtime_of() as runtime:
            await runtime.submit("fail", {"n": 1})
            await runtime.tasks.wait_idle()
            raise own
    assert caught.value.exceptions[0] is own
    assert [TaskExecutionError] == [type(leaf) for leaf in caught.value.exceptions[1:]]


async def test_except_star_finds_the_leaves() -> None:
    """`except*` sees failures and the block's own by their classes, and what it does not take goes on."""
    found: list[str] = []
    with pytest.raises(AgentCrashedError) as caught:
        try:
            async with runtime_of() as runtime:
                await runtime.submit("fail")
                await runtime.tasks.wait_idle()
                raise Odd
        except* TaskExecutionError as group:
            found = [type(error).__name__ for error in group.exceptions]
    assert found == ["TaskExecutionError"]
    assert [Odd] == [type(leaf) for leaf in caught.value.exceptions]


async def test_more_failures_than_are_kept_are_counted() -> None:
    """The first hundred come whole, the others as a number; what is learned of later is not counted."""
    with pytest.raises(AgentCrashedError) as caught:
        async with runtime_of(grace=5) as runtime:
            handles = await submit_all(runtime, "fail", MAX_LOST + 8)
            await runtime.tasks.wait_idle()
            await handles[0].wait()
            await handles[-1].wait()
            await handles[-1].wait()
    assert len(caught.value.exceptions) == MAX_LOST - 1
    assert caught.value.details["failures"] == MAX_LOST + 6
    assert f"{MAX_LOST + 6} failures" in caught.value.message


async def test_a_failure_is_not_lost_though_an_earlier_task_has_its_id() -> None:
    """Who asks the one handle has learned of the one failure."""
    with pytest.raises(AgentCrashedError, match="number 2") as caught:
        async with runtime_of() as runtime:
            first = await runtime.submit("fail", {"n": 1}, id="x")
            await runtime.tasks.wait_idle()
            await runtime.submit("fail", {"n": 2}, id="x")
            await runtime.tasks.wait_idle()
            await first.wait()
    assert 1 == len(caught.value.exceptions)


async def test_two_failures_of_one_id_are_two() -> None:
    """Both are raised at the exit, with whatever they failed."""
    with pytest.raises(AgentCrashedError, match="2 failures in the background") as caught:
        async with runtime_of() as runtime:
            for number in (1, 2):
                await runtime.submit("fail", {"n": number}, id="x")
                await runtime.tasks.wait_idle()
    assert ["number 1", "number 2"] == [str(error.__cause__) for error in caught.value.exceptions]


async def test_a_runtime_that_has_raised_leaves_nothing_behind() -> None:
    """After the exit nothing runs, the context is as before, and another runtime works."""
    with pytest.raises(AgentCrashedError):
        async with runtime_of() as runtime:
            await runtime.submit("fail")
            await runtime.tasks.wait_idle()
    assert runtime.tasks.active() == []
    assert current_runtime.get() is None
    async with runtime_of(in_flight=2) as another:
        await check_at_rest(another, 2)


@simulate(runs=20)
async def test_a_cancel_scope_around_the_runtime() -> None:
    """Cancelled from outside, block and tasks end at once, and the scope has caught it; every task that was cut is named."""
    runtime = runtime_of(grace=60)
    with anyio.CancelScope() as scope:
        async with runtime:
            handles = await submit_all(runtime, "hang", 5)
            await anyio.wait_all_tasks_blocked()
            scope.cancel("enough")
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert {TaskState.CANCELED} == {handle.state for handle in handles}
    assert runtime.report is not None
    assert not runtime.report.drained
    assert [handle.id for handle in handles] == [result.task_id for result in runtime.report.cut_short]


@simulate(runs=20)
async def test_a_task_that_is_run_by_the_block_is_cut_with_it() -> None:
    """A shutdown from a task ends what the block itself runs, which learns it as TaskCanceledError."""
    runtime = runtime_of()
    async with runtime:

        @runtime.handler("end")
        async def end(given: dict[str, Any]) -> None:
            await runtime.shutdown(reason="over")

        await runtime.submit("end")
        with pytest.raises(TaskCanceledError, match="over"):
            await runtime.run("hang")


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()], ids=["SystemExit", "KeyboardInterrupt"])
@pytest.mark.parametrize("way", ["async", "thread"])
async def test_what_no_except_exception_may_catch_ends_the_block(error: BaseException, way: str) -> None:
    """SystemExit in a submitted task: the task FAILED, the block is cancelled, the very exception comes out in a group."""
    runtime = runtime_of(grace=60)

    if way == "async":

        @runtime.handler("exit")
        async def leave(given: dict[str, Any]) -> None:
            raise error
    else:

        @runtime.handler("exit")
        def leave_thread(given: dict[str, Any]) -> None:
            raise error

    unwound: list[bool] = []
    with pytest.raises(BaseExceptionGroup) as caught:
        async with runtime:
            other = await runtime.submit("hang")
            handle = await runtime.submit("exit")
            try:
                await hang({})
            finally:
                unwound.append(True)
    assert [error] == list(caught.value.exceptions)
    assert (unwound, handle.state, other.state) == ([True], TaskState.FAILED, TaskState.CANCELED)


async def test_what_no_except_exception_may_catch_reaches_who_runs_the_task() -> None:
    """`run` is in the caller's task: it gets the very exception, and nobody else is harmed."""
    async with runtime_of(in_flight=2) as runtime:

        @runtime.handler("exit")
        async def leave(given: dict[str, Any]) -> None:
            raise SystemExit(3)

        with pytest.raises(SystemExit) as caught:
            await runtime.run("exit")
        assert caught.value.code == 3
        await check_at_rest(runtime, 2)
