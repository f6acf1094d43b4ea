"""Dead letters: tasks that have failed for good although they had a policy, and how they are done once more."""

from __future__ import annotations

from datetime import UTC
from typing import Any

import anyio
import attrs
import pytest

from agentcore import (
    AgentRuntime,
    Backoff,
    BaseTask,
    ConfigurationError,
    DeadLetter,
    RetryBudget,
    RetryPolicy,
    RuntimeClosedError,
    RuntimeConfig,
    TaskError,
    TaskExecutionError,
    TaskHandle,
    TaskNotFoundError,
    TaskPriority,
    TaskRoutingError,
    TaskState,
)
from agentcore._rules.retry import GaveUp
from agentcore.testing import assert_checkpoints, simulate
from tests.runtime.parts import check_at_rest, echo, fail, hang, holding

pytestmark = pytest.mark.anyio

AT_ONCE = Backoff(0, maximum=0)
TWICE = RetryPolicy(attempts=2, backoff=AT_ONCE)


def runtime_of(*, grace: float = 0, **settings: Any) -> AgentRuntime:
    """Make a runtime with the handlers ``echo``, ``fail`` and ``hang``."""
    runtime = AgentRuntime(RuntimeConfig(**settings), grace=grace)
    for function in (echo, fail, hang):
        runtime.handler(function.__name__)(function)
    return runtime


async def lose(runtime: AgentRuntime, task: BaseTask | str = "fail", **options: Any) -> str:
    """Run a task that fails for good, and return its identifier."""
    options = {"retry": TWICE, **options}
    task = BaseTask.create(task) if isinstance(task, str) else task
    with pytest.raises(TaskExecutionError):
        await runtime.run(task, **options)
    return task.id


@simulate(runs=5)
async def test_what_a_letter_says() -> None:
    """All that is needed to understand it, and to do it again."""
    task = BaseTask.create(
        "fail", {"n": 1}, priority="HIGH", metadata={"who": "me"}, trace_id="t", parent_id="p", timeout_ms=5_000
    )
    async with runtime_of() as runtime:
        assert [] == runtime.tasks.dead_letters.list()
        await lose(runtime, task)
        letters = runtime.tasks.dead_letters
        (letter,) = letters.list()
        assert letter is letters.get(task.id)
        assert ("task", task.id, "fail", {"n": 1}, TaskPriority.HIGH) == (
            letter.kind,
            letter.task_id,
            letter.type,
            letter.input,
            letter.priority,
        )
        assert ({"who": "me"}, "t", "p", 2) == (letter.metadata, letter.trace_id, letter.parent_id, letter.attempts)
        assert {
            "attempts": 2,
            "gave_up": str(GaveUp.ATTEMPTS),
            "error_type": "ValueError",
            "message": "number 1",
        } == letter.error
        assert (letter.at, UTC) == (task.finished_at, letter.at.tzinfo)
        assert ("<DeadLetters 1 of 256, 0 dropped>", 1) == (repr(letters), len(letters))
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            letter.kind = "message"  # type: ignore[misc]


@simulate(runs=5)
async def test_which_tasks_have_one() -> None:
    """Those that ended FAILED with a policy, for whatever reason; no others."""
    budget = RetryBudget(ratio=0, per_second=0, capacity=1)
    async with runtime_of(retry_budget=budget, in_flight=1) as runtime:
        letters = runtime.tasks.dead_letters
        expected = [
            await lose(runtime),  # all attempts
            await lose(runtime),  # no budget
            await lose(runtime, retry=RetryPolicy(never_on=ValueError)),
            await lose(runtime, "hang", deadline=1),
        ]
        hold = holding(runtime)
        await runtime.submit("hold")
        handle = await runtime.submit("echo", retry=TWICE, queue_timeout=1)
        await handle.wait()
        expected.append(handle.id)
        hold.opened.set()
        assert expected == [letter.task_id for letter in letters.list()]
        await lose(runtime, retry=False)
        await runtime.run("echo", retry=TWICE)
        handle = await runtime.submit("hang", retry=TWICE)
        handle.cancel()
        await handle.wait()
        assert expected == [letter.task_id for letter in letters.list()]


@simulate(runs=5)
async def test_only_so_many_are_kept() -> None:
    """The newest, and the count of the others."""
    async with runtime_of(dead_letters=2) as runtime:
        ids = [await lose(runtime) for _ in range(5)]
        letters = runtime.tasks.dead_letters
        assert (ids[3:], 3) == ([letter.task_id for letter in letters.list()], letters.dropped)
        with pytest.raises(TaskNotFoundError, match=r"there is no dead letter of this id: got .*the newest 2 are kept"):
            letters.get(ids[0])
    async with runtime_of(dead_letters=0) as runtime:
        await lose(runtime)
        assert (0, 1) == (len(runtime.tasks.dead_letters), runtime.tasks.dead_letters.dropped)
    for value in (-1, 1.5, True, None):
        with pytest.raises(ConfigurationError, match="dead_letters of a runtime must be a whole number, 0 or more"):
            RuntimeConfig(dead_letters=value)  # type: ignore[arg-type]


@attrs.define(kw_only=True, eq=False)
class Ingest(BaseTask):
    """A task with a field of its own."""

    source: str


@simulate(runs=5)
async def test_requeue() -> None:
    """A fresh task of the same class with the same fields, executed as the old one was to be."""
    task = Ingest.create(
        "repaired", {"n": 1}, source="s", priority="LOW", metadata={"a": 1}, trace_id="t", parent_id="p"
    )
    async with runtime_of() as runtime:
        letters = runtime.tasks.dead_letters
        runtime.handler("repaired")(fail)
        await lose(runtime, task, timeout=3)
        handle = await letters.requeue(task.id)
        assert [] == letters.list()
        await handle.wait()
        again = letters.get(handle.id)
        assert (2, {"n": 1}) == (again.attempts, again.input)  # by the policy of the call
        runtime.handler("repaired")(hang)
        handle = await letters.requeue(handle.id)
        await handle.wait()
        assert (6.0, "timeout") == (anyio.current_time(), letters.get(handle.id).error["deadline"])
        runtime.handler("repaired")(echo)
        handle = await letters.requeue(handle.id)
        assert {"n": 1} == await handle.result()
        made = handle.task
        assert isinstance(made, Ingest)
        assert ("s", TaskPriority.LOW, {"a": 1}, "t", "p", 1) == (
            made.source,
            made.priority,
            made.metadata,
            made.trace_id,
            made.parent_id,
            made.attempt,
        )
        assert made.id != task.id
        assert 0 == len(letters)


@simulate(runs=5)
async def test_a_letter_that_is_not_accepted_stays() -> None:
    """Whatever keeps the task from being accepted."""
    async with runtime_of(in_flight=1, queue=1) as runtime:
        letters = runtime.tasks.dead_letters
        runtime.handler("gone")(fail)
        gone = await lose(runtime, "gone")
        runtime.agents.handlers.unregister("gone")
        with pytest.raises(TaskRoutingError):
            await letters.requeue(gone)
        task_id = await lose(runtime)
        hold = holding(runtime)
        first = await runtime.submit("hold")
        await runtime.submit("echo")
        with anyio.move_on_after(1) as scope:
            await letters.requeue(task_id)
        assert scope.cancelled_caught
        assert [gone, task_id] == [letter.task_id for letter in letters.list()]
        hold.opened.set()
        await first.wait()
        handle = await letters.requeue(task_id)
        await handle.wait()
        await runtime.tasks.wait_idle()
        assert [gone, handle.id] == [letter.task_id for letter in letters.list()]
        await check_at_rest(runtime, 1)
    with pytest.raises(RuntimeClosedError):
        await letters.requeue(handle.id)
    assert 2 == len(letters)


@simulate(runs=20)
async def test_two_who_requeue_the_same() -> None:
    """One of them does, the other is told."""
    async with runtime_of(in_flight=1, queue=1) as runtime:
        letters = runtime.tasks.dead_letters
        task_id = await lose(runtime)
        runtime.handler("fail")(echo)
        done: list[Any] = []

        async def requeue() -> None:
            try:
                done.append(await letters.requeue(task_id))
            except TaskError as error:
                done.append(error)

        async with anyio.create_task_group() as group:
            group.start_soon(requeue)
            group.start_soon(requeue)
        assert 1 == sum(isinstance(one, TaskHandle) for one in done)
        (refused,) = [one for one in done if isinstance(one, TaskError)]
        assert "somebody else is submitting" in str(refused) or isinstance(refused, TaskNotFoundError)
        assert ([], 2) == (letters.list(), runtime.statistics().tasks.accepted)


@simulate(runs=5)
async def test_discard_and_clear() -> None:
    """One, or all of them."""
    async with runtime_of() as runtime:
        letters = runtime.tasks.dead_letters
        ids = [await lose(runtime) for _ in range(3)]
        assert isinstance(letters.discard(ids[1]), DeadLetter)
        with pytest.raises(TaskNotFoundError):
            letters.discard(ids[1])
        with pytest.raises(TaskNotFoundError):
            await letters.requeue(ids[1])
        assert [ids[0], ids[2]] == [letter.task_id for letter in letters.list()]
        assert (2, 0, 0) == (letters.clear(), letters.clear(), letters.dropped)


@simulate(runs=5)
async def test_discarded_while_it_is_submitted() -> None:
    """The task is accepted all the same, and nothing else goes."""
    async with runtime_of(in_flight=1, queue=1) as runtime:
        letters = runtime.tasks.dead_letters
        task_id, other = await lose(runtime), await lose(runtime)
        hold = holding(runtime)
        await runtime.submit("hold")
        await runtime.submit("echo")
        handles: list[TaskHandle] = []

        async def requeue() -> None:
            handles.append(await letters.requeue(task_id))

        async with anyio.create_task_group() as group:
            group.start_soon(requeue)
            await anyio.wait_all_tasks_blocked()
            letters.discard(task_id)
            hold.opened.set()
        assert TaskState.FAILED is (await handles[0].wait()).state
        assert [other, handles[0].id] == [letter.task_id for letter in letters.list()]


@simulate(runs=5)
async def test_a_requeued_task_has_the_key_of_the_old_one() -> None:
    """So there are never two at a time; and none again if somebody has submitted another one meanwhile."""
    async with AgentRuntime(grace=0) as runtime:

        @runtime.handler("broken", retry=RetryPolicy(attempts=1))
        async def broken(given: dict[str, Any]) -> None:
            await anyio.sleep(1)
            raise OSError("not now")

        letters = runtime.tasks.dead_letters
        handle = await runtime.submit("broken", key="k")
        await handle.wait()
        again = await letters.requeue(handle.id)
        assert again is await runtime.submit("broken", key="k")
        await again.wait()
        third = await runtime.submit("broken", key="k")
        assert third is await letters.requeue(again.id)
        assert 0 == len(letters)
        await third.wait()
        assert [third.id] == [letter.task_id for letter in letters.list()]


@simulate(runs=1)
async def test_requeue_is_a_checkpoint() -> None:
    """As `submit` is."""
    async with runtime_of() as runtime:
        task_id = await lose(runtime)
        runtime.handler("fail")(echo)
        with assert_checkpoints():
            await runtime.tasks.dead_letters.requeue(task_id)
