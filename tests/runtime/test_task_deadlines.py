"""The four deadlines of a task: in the queue, of an execution, without progress, in all. The one that passed is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import pytest

from agentcore import (
    AgentConfig,
    AgentContext,
    AgentResult,
    AgentRuntime,
    AgentTimeoutError,
    Backoff,
    BaseAgent,
    BaseTask,
    ConfigurationError,
    RetryPolicy,
    RuntimeConfig,
    TaskExecutionError,
    TaskState,
    TaskTimeoutError,
)
from agentcore._rules.retry import GaveUp
from agentcore.testing import simulate
from tests.runtime.parts import check_at_rest, echo, fail, hang, holding

pytestmark = pytest.mark.anyio

STEADY = Backoff(1.0, 2.0, 60.0, jitter=False)
THRICE = RetryPolicy(attempts=3, backoff=STEADY)


def runtime_of(*, grace: float = 0, **settings: Any) -> AgentRuntime:
    """Make a runtime with the handlers ``echo``, ``fail``, ``hang`` and ``step``, which tells of progress."""
    runtime = AgentRuntime(RuntimeConfig(**settings), grace=grace)
    for function in (echo, fail, hang, step):
        runtime.handler(function.__name__)(function)
    return runtime


async def step(given: dict[str, Any], context: AgentContext) -> dict[str, Any]:
    """Tell of progress after each of some pauses, then hang if told to."""
    for number, pause in enumerate(given["pauses"]):
        await anyio.sleep(pause)
        context.progress(number)
    if given.get("hang"):
        await anyio.sleep_forever()
    return {"now": anyio.current_time()}


def told(task: BaseTask) -> tuple[str | None, TaskState, float]:
    """Return the deadline that passed, the state, and the time."""
    return (task.error or {}).get("deadline"), task.state, anyio.current_time()


# In the queue.


@pytest.mark.parametrize("way", ["run", "submit", "group"])
@simulate(runs=10)
async def test_queue(way: str) -> None:
    """Whoever has no turn in time fails without having begun."""
    async with runtime_of(in_flight=1) as runtime:
        hold = holding(runtime)
        await runtime.submit("hold")
        await anyio.wait_all_tasks_blocked()
        task = BaseTask.create("echo")
        with pytest.raises(TaskTimeoutError, match=r"exceeded its deadline 'queue' of 2 s while it waited"):
            if way == "run":
                await runtime.run(task, queue_timeout=2)
            elif way == "submit":
                await (await runtime.submit(task, queue_timeout=2)).result()
            else:
                async with runtime.group("first") as group:
                    group.start(task, queue_timeout=2)
        assert (("queue", TaskState.FAILED, 2.0), 0) == (told(task), task.attempt)
        hold.opened.set()
        await runtime.run("echo", queue_timeout=2)
        await runtime.tasks.wait_idle()
        await check_at_rest(runtime, 1)


@simulate(runs=10)
async def test_queue_includes_the_wait_for_room() -> None:
    """One that is submitted waits for a place in the queue and for a slot: for both together."""
    async with runtime_of(in_flight=1, queue=1) as runtime:
        hold = holding(runtime)
        await runtime.submit("hold")
        await runtime.submit("echo")
        refused = BaseTask.create("echo")
        with pytest.raises(TaskTimeoutError, match=r"'queue' of 2 s before the queue had room"):
            await runtime.submit(refused, queue_timeout=2)
        assert (TaskState.PENDING, 2.0) == (refused.state, anyio.current_time())
        hold.opened.set()
        await runtime.tasks.wait_idle()
        await check_at_rest(runtime, 1)


@simulate(runs=10)
async def test_queue_counts_anew_for_each_retry() -> None:
    """The time of the executions and of the waits between them is not in it."""
    async with runtime_of(in_flight=1) as runtime:
        task = BaseTask.create("fail")
        handle = await runtime.submit(task, queue_timeout=2, retry=THRICE)
        await anyio.sleep(0.5)
        hold = holding(runtime)
        await runtime.submit("hold")
        await anyio.sleep(2)  # the retry came at 1, and waits since then
        hold.opened.set()
        await anyio.wait_all_tasks_blocked()
        assert 2 == task.attempt  # it comes again at 4.5
        await anyio.sleep(1)
        hold = holding(runtime)
        await runtime.submit("hold")
        await handle.wait()
        assert (("queue", TaskState.FAILED, 6.5), 2) == (told(task), task.attempt)
        hold.opened.set()
        await runtime.tasks.wait_idle()
        await check_at_rest(runtime, 1)


@simulate(runs=5)
async def test_the_nearest_of_queue_and_total_is_told() -> None:
    """Each by its name."""
    async with runtime_of(in_flight=1) as runtime:
        hold = holding(runtime)
        await runtime.submit("hold")
        for queue_timeout, deadline, which in ((1, 2, "queue"), (2, 1, "total")):
            began = anyio.current_time()
            task = BaseTask.create("echo")
            with pytest.raises(TaskTimeoutError):
                await runtime.run(task, queue_timeout=queue_timeout, deadline=deadline)
            assert (which, TaskState.FAILED, began + 1) == told(task)
        hold.opened.set()


# Of an execution.


@simulate(runs=5)
async def test_each_execution_has_its_timeout() -> None:
    """A timeout is an error like others for the policy."""
    async with runtime_of() as runtime:
        task = BaseTask.create("hang")
        with pytest.raises(TaskExecutionError):
            await runtime.run(task, timeout=5, retry=RetryPolicy(attempts=2, backoff=STEADY, on=TimeoutError))
        assert (("timeout", TaskState.FAILED, 11.0), 2) == (told(task), task.attempt)
        task = BaseTask.create("hang")
        with pytest.raises(TaskExecutionError):
            await runtime.run(task, timeout=5, retry=RetryPolicy(never_on=AgentTimeoutError))
        assert (("timeout", TaskState.FAILED, 16.0), 1) == (told(task), task.attempt)


# Without progress.


@simulate(runs=5)
async def test_idle() -> None:
    """Progress moves it; without any it passes."""
    async with runtime_of() as runtime:
        assert {"now": 4 * 0.9} == await runtime.run("step", {"pauses": [0.9] * 4}, idle_timeout=1)
        began = anyio.current_time()
        task = BaseTask.create("step", {"pauses": [0.9, 0.9], "hang": True})
        with pytest.raises(TaskExecutionError) as caught:
            await runtime.run(task, idle_timeout=1)
        assert ("idle", TaskState.FAILED, began + 0.9 + 0.9 + 1) == told(task)
        assert isinstance(caught.value.__cause__, AgentTimeoutError)
        assert {"agent": "step", "deadline": "idle", "timeout": 1} == caught.value.__cause__.details


@pytest.mark.parametrize(
    ("options", "which", "at"),
    [
        ({"timeout": 2.5}, "timeout", 2.5),
        ({"deadline": 2.5}, "total", 2.5),
        ({"timeout": 9, "deadline": 8}, "idle", 3.7),
        ({"timeout": 3.7}, "timeout", 3.7),
    ],
)
@simulate(runs=5)
async def test_progress_does_not_move_the_others(options: dict[str, Any], which: str, at: float) -> None:
    """The nearest deadline passes, and is told; of two at once the one that does not move."""
    async with runtime_of() as runtime:
        task = BaseTask.create("step", {"pauses": [0.9, 0.9, 0.9], "hang": True})
        with pytest.raises(TaskExecutionError):
            await runtime.run(task, idle_timeout=1, **options)
        assert (which, TaskState.FAILED, pytest.approx(at)) == told(task)


@simulate(runs=5)
async def test_idle_is_retried_like_a_timeout() -> None:
    """Each execution has its own time without progress."""
    async with runtime_of() as runtime:
        task = BaseTask.create("step", {"pauses": [0.5], "hang": True})
        with pytest.raises(TaskExecutionError):
            await runtime.run(task, idle_timeout=1, retry=RetryPolicy(attempts=2, backoff=STEADY, on=AgentTimeoutError))
        assert (("idle", TaskState.FAILED, 1.5 + 1 + 1.5), 2) == (told(task), task.attempt)


class Hanging(BaseAgent):
    """An agent that hangs where it is told to."""

    def __init__(self, where: str, **settings: Any) -> None:
        super().__init__(AgentConfig("hanging", "test", **settings))
        self.where = where
        self.handled: list[Exception] = []

    async def initialize(self) -> bool:
        if self.where == "initialize":
            await anyio.sleep_forever()
        return True

    async def process(self, context: AgentContext) -> AgentResult:
        if self.where == "handle_error":
            raise ValueError("to be handled")
        if self.where == "cleanup":
            try:
                await anyio.sleep_forever()
            finally:
                context.progress("while it is unwound")
                raise ValueError("instead of it")
        await anyio.sleep_forever()
        raise AssertionError("unreachable")

    async def handle_error(self, error: Exception, context: AgentContext) -> AgentResult:
        self.handled.append(error)
        if self.where == "handle_error":
            await anyio.sleep_forever()
        return AgentResult.error_result("handled")


@pytest.mark.parametrize("where", ["initialize", "process", "handle_error", "cleanup"])
@simulate(runs=5)
async def test_idle_bounds_every_part_of_an_execution(where: str) -> None:
    """Also what cannot tell of progress."""
    async with runtime_of() as runtime:
        runtime.registry("agents").register("hanging", agent := Hanging(where))
        task = BaseTask.create("hanging")
        with pytest.raises(TaskExecutionError):
            await runtime.run(task, idle_timeout=2)
        assert (TaskState.FAILED, 2.0) == (task.state, anyio.current_time())
        if where == "process":
            assert [AgentTimeoutError] == [type(error) for error in agent.handled]
            assert "idle" == (task.error or {})["deadline"]
        if where == "cleanup":
            assert any("'idle' of 2 s" in note for note in agent.handled[0].__notes__)
        if where == "handle_error":
            assert [ValueError] == [type(error) for error in agent.handled]


@simulate(runs=5)
async def test_idle_does_not_count_the_wait_for_the_agent() -> None:
    """Who waits for his turn at an agent is not idle."""
    async with runtime_of() as runtime:
        runtime.handler("one", max_concurrency=1)(step)
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: runtime.run("one", {"pauses": [0.5] * 6}))
            await anyio.wait_all_tasks_blocked()
            assert {"now": 3.5} == await runtime.run("one", {"pauses": [0.5]}, idle_timeout=1)


@pytest.mark.parametrize("way", ["run", "group", "ask"])
@simulate(runs=5)
async def test_progress_inside_is_progress(way: str) -> None:
    """Whoever waits for a child, or asks an agent, is not idle as long as that makes progress."""
    async with runtime_of() as runtime:

        @runtime.handler("parent")
        async def parent(given: dict[str, Any], context: AgentContext) -> Any:
            if way == "run":
                return await context.run("step", {"pauses": [0.75] * 4})
            if way == "group":
                async with context.group() as group:
                    child = group.start("step", {"pauses": [0.75] * 4})
                return await child.result()
            return (await context.ask("asked", {"pauses": [0.75] * 4})).output

        class Asked(Hanging):
            async def process(self, context: AgentContext) -> AgentResult:
                return AgentResult.success_result(await step(context.input, context))

        runtime.registry("agents").register("asked", Asked("nowhere"))
        assert {"now": 3.0} == await runtime.run("parent", idle_timeout=1)


@simulate(runs=5)
async def test_a_child_that_is_submitted_is_nobodys_progress() -> None:
    """It belongs to the runtime: its submitter, who waits for something else, is idle."""
    async with runtime_of() as runtime:

        @runtime.handler("parent")
        async def parent(given: dict[str, Any], context: AgentContext) -> None:
            await context.submit("step", {"pauses": [0.5] * 6})
            await anyio.sleep_forever()

        task = BaseTask.create("parent")
        with pytest.raises(TaskExecutionError):
            await runtime.run(task, idle_timeout=1)
        assert ("idle", TaskState.FAILED, 1.0) == told(task)


# In all.


@simulate(runs=5)
async def test_total_is_never_retried() -> None:
    """It is over, whatever the policy says."""
    async with runtime_of() as runtime:
        task = BaseTask.create("hang")
        with pytest.raises(TaskExecutionError):
            await runtime.run(task, deadline=5, retry=THRICE)
        assert (("total", TaskState.FAILED, 5.0), 1) == (told(task), task.attempt)
        assert str(GaveUp.DEADLINE) == (task.error or {})["gave_up"]


@pytest.mark.parametrize(("deadline", "attempts", "ends"), [(0.9, 1, 0.0), (1.0, 1, 0.0), (1.1, 2, 1.0), (9.0, 3, 3.0)])
@simulate(runs=5)
async def test_no_wait_that_the_total_would_cut(deadline: float, attempts: int, ends: float) -> None:
    """A task that would not come to its next execution fails at once, with its own error."""
    async with runtime_of() as runtime:
        task = BaseTask.create("fail", {"n": 1})
        with pytest.raises(TaskExecutionError):
            await runtime.run(task, deadline=deadline, retry=THRICE)
        assert ((None, TaskState.FAILED, ends), attempts) == (told(task), task.attempt)
        error = task.error or {}
        assert ("number 1", attempts) == (error["message"], error["attempts"])
        assert str(GaveUp.ATTEMPTS if attempts == 3 else GaveUp.DEADLINE) == error["gave_up"]


@simulate(runs=10)
async def test_total_passes_in_the_line_of_a_retry() -> None:
    """It waits for its turn no longer than that."""
    async with runtime_of(in_flight=1) as runtime:
        task = BaseTask.create("fail")
        handle = await runtime.submit(task, deadline=3, retry=THRICE)
        await anyio.wait_all_tasks_blocked()
        hold = holding(runtime)
        await runtime.submit("hold")
        result = await handle.wait()
        assert (("total", TaskState.FAILED, 3.0), 1) == (told(task), result.attempt)
        hold.opened.set()
        await runtime.tasks.wait_idle()
        await check_at_rest(runtime, 1)


@simulate(runs=5)
async def test_all_four_at_once() -> None:
    """They do not get into each other's way."""
    async with runtime_of() as runtime:
        output = await runtime.run(
            "step", {"pauses": [0.5, 0.5]}, queue_timeout=1, timeout=2, idle_timeout=1, deadline=3, retry=THRICE
        )
        assert {"now": 1.0} == output


@pytest.mark.parametrize("name", ["timeout", "deadline", "queue_timeout", "idle_timeout"])
@pytest.mark.parametrize("value", [-1, "5", True, float("nan"), float("inf")])
async def test_what_is_no_number_of_seconds_is_refused(name: str, value: Any) -> None:
    """Of each of them, before anything is accepted."""
    async with runtime_of() as runtime:
        calls: list[Callable[[], Any]] = [
            lambda: runtime.run("echo", **{name: value}),
            lambda: runtime.submit("echo", **{name: value}),
        ]
        for call in calls:
            with pytest.raises(ConfigurationError, match=f"{name} of an agent must be a number of seconds"):
                await call()
        assert 0 == runtime.statistics().tasks.accepted
