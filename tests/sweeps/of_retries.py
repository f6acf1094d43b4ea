"""Sweeps of tasks that are executed again: while they wait, in line, as children, at the end of the runtime."""

from __future__ import annotations

from collections import Counter
from typing import Any

import anyio

from agentcore import (
    AgentContext,
    Backoff,
    BaseTask,
    CircuitBreakerConfig,
    DeadLetters,
    RetryBudget,
    RetryPolicy,
    TaskCanceledError,
    TaskExecutionError,
    TaskHandle,
    TaskState,
)
from tests.sweeps.of_runtime import END, RESULT, RUN, SUBMIT, block
from tests.sweeps.scenarios import Boom, Runtime, do, scenario

STEADY = Backoff(1.0, 2.0, 4.0, jitter=False)
POLICY = RetryPolicy(attempts=3, backoff=STEADY)
GROUP = ("TaskGroup.__aenter__", "TaskGroup.__aexit__")
REQUEUE = ("DeadLetters.requeue",)
CAPACITY = 50.0


class Retrying(Runtime):
    """A runtime with a handler that fails as often as its input says, a budget, and a list of what was given up."""

    def __init__(self, **settings: Any) -> None:
        self.budget = RetryBudget(ratio=0, per_second=0, capacity=CAPACITY)
        super().__init__(**{"retry_budget": self.budget, **settings})
        self.failed: Counter[int] = Counter()
        self.service_fails = 1

        @self.runtime.handler("flaky")
        async def flaky(given: dict[str, Any]) -> dict[str, Any]:
            await do("sleep")
            self.failed[given["n"]] += 1
            if self.failed[given["n"]] <= given["times"]:
                raise Boom
            return {"n": given["n"]}

        @self.runtime.handler("guarded")
        async def guarded(given: dict[str, Any], context: AgentContext) -> None:
            breaker = context.breaker("service", CircuitBreakerConfig(failure_threshold=1, reset_timeout_ms=5_000))
            await breaker.execute(self._service)

        @self.runtime.handler("parent")
        async def parent(given: dict[str, Any], context: AgentContext) -> dict[str, Any]:
            task = self.make("flaky", {"n": given["n"], "times": 1})
            if given["way"] == "run":
                return await context.run(task, retry=POLICY)
            async with context.group() as group:
                handle = group.start(task, retry=POLICY)
            return await handle.result()

    async def _service(self) -> None:
        await do("sleep")
        if self.service_fails:
            self.service_fails -= 1
            raise Boom

    @property
    def letters(self) -> DeadLetters:
        """What was given up."""
        return self.runtime.tasks.dead_letters

    def check_tasks(self) -> None:
        super().check_tasks()
        statistics = self.runtime.statistics().tasks
        assert 0 == statistics.waiting_for_retry
        # Paid for is what was executed again, each time and once.
        made = sum(event.event_type == "task_started" for event in self.events) - len(
            {event.data["task_id"] for event in self.events if event.event_type == "task_started"}
        )
        assert made <= statistics.retried
        paid = round(CAPACITY - self.budget.available)
        assert made >= paid if any(task.type == "guarded" for task in self.tasks) else made == paid
        for task in self.tasks:
            assert task.not_before is None


def open_(**settings: Any) -> Any:
    """Return what makes a runtime that is entered before the scenario begins."""
    return lambda: Retrying(**settings)


def closed(**settings: Any) -> Any:
    """Return what makes a runtime that the scenario enters and leaves."""
    return lambda: Retrying(inside=True, **settings)


async def flaky(state: Retrying, number: int, times: int, **options: Any) -> TaskHandle:
    """Submit a task that fails so many times."""
    return await state.submit("flaky", {"n": number, "times": times}, **{"retry": POLICY, **options})


# On asyncio an execution that fails in the very step in which it is cancelled tells both, as a TaskCanceledError.
BOTH = (TaskCanceledError,)


@scenario(open_(), *RUN, strict=True, within=0.0, allow=BOTH)
async def run_again(state: Retrying) -> None:
    state.expect({"n": 1} == await state.run("flaky", {"n": 1, "times": 2}, retry=POLICY))


@scenario(open_(in_flight=1), *RUN, *SUBMIT, *RESULT, strict=True, within=0.0)
async def run_again_contended(state: Retrying) -> None:
    async with anyio.create_task_group() as group:
        for number in range(3):
            given = {"n": number, "times": number}
            group.start_soon(lambda given=given: state.run_quietly("flaky", given, retry=POLICY))
        group.start_soon(state.run_quietly, "sleep")
        handle = await flaky(state, 9, 1)
        state.expect({"n": 9} == await handle.result())


@scenario(open_(in_flight=1, queue=1), *SUBMIT, *RESULT, within=3.0)
async def submit_what_is_retried(state: Retrying) -> None:
    handles = [await flaky(state, number, times) for number, times in ((1, 0), (2, 1), (3, 2), (4, 3))]
    results = [await state.retrieve(handle) for handle in handles]
    state.expect([True, True, True, False] == [isinstance(result, dict) for result in results])
    state.expect(1 == len(state.letters))


@scenario(open_(in_flight=1), *SUBMIT, *RESULT, within=3.0)
async def cancel_what_waits_for_a_retry(state: Retrying) -> None:
    handles = [await flaky(state, number, 2) for number in range(2)]
    await anyio.sleep(0.5)
    handles[0].cancel("not needed")
    with state.raises(TaskCanceledError):
        await handles[0].result()
    await anyio.sleep(0.5)
    handles[1].cancel("not needed either")
    with state.raises(TaskCanceledError):
        await handles[1].result()


@scenario(open_(in_flight=1), *SUBMIT, *RESULT, within=9.0)
async def retries_with_every_deadline(state: Retrying) -> None:
    handles = [
        await flaky(state, 1, 2, deadline=2.5),
        await flaky(state, 2, 1, queue_timeout=0.5),
        await state.submit("long", timeout=0.5, retry=POLICY),
        await state.submit("long", idle_timeout=0.5, retry=POLICY),
    ]
    for handle in handles:
        await state.retrieve(handle)


@scenario(open_(in_flight=1), *RUN, within=6.0, allow=BOTH)
async def run_what_waits_for_a_circuit(state: Retrying) -> None:
    with state.raises(TaskExecutionError):
        await state.run("guarded")
    task = state.make("guarded")
    await state.runtime.run(task, retry=RetryPolicy(attempts=1))
    state.expect((2, 0) == (task.attempt, task.failures))


@scenario(open_(in_flight=1), *RUN, strict=True, within=0.0, allow=BOTH)
async def run_children_that_are_retried(state: Retrying) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(state.run_quietly, "sleep")
        for number, way in enumerate(("run", "group")):
            group.start_soon(state.run_quietly, "parent", {"n": number, "way": way})
    state.expect(all(task.state is TaskState.COMPLETED for task in state.tasks))


@scenario(open_(in_flight=1), *GROUP, "AgentRuntime.map", strict=True, within=0.0)
async def group_with_retries(state: Retrying) -> None:
    async with state.runtime.group("collect") as group:
        for number, times in ((1, 1), (2, 3), (3, 0)):
            task = state.make("flaky", {"n": number, "times": times})
            state.handles.append(group.start(task, retry=POLICY))
    state._retrieved |= {handle.id for handle in state.handles}
    state.expect([True, False, True] == [result.success for result in group.results])


@scenario(open_(in_flight=1, queue=1), *SUBMIT, *RESULT, within=3.0)
async def submit_with_keys(state: Retrying) -> None:
    """All of them get the same handle, whether there is room for them or not."""
    found: list[TaskHandle] = []

    async def submit() -> None:
        task = BaseTask.create("flaky", {"n": 1, "times": 1})
        found.append(await state.runtime.submit(task, key="one", retry=POLICY))

    async with anyio.create_task_group() as group:
        await state.submit("sleep")
        await state.submit("work")
        for _ in range(3):
            group.start_soon(submit)
    state.expect(1 == len(set(found)))
    await state.retrieve(found[0])


@scenario(open_(in_flight=1, queue=1), *REQUEUE, *SUBMIT, *RESULT, within=8.0)
async def requeue_what_was_given_up(state: Retrying) -> None:
    """Whoever is cut short has submitted it, or the letter is there still."""
    handle = await flaky(state, 1, 4)
    await state.retrieve(handle)
    await state.submit("sleep")
    await state.submit("work")
    accepted = state.runtime.statistics().tasks.accepted
    try:
        again = await state.letters.requeue(handle.id)
    finally:
        requeued = state.runtime.statistics().tasks.accepted - accepted
        assert requeued + sum(letter.task_id == handle.id for letter in state.letters.list()) == 1
    state.expect({"n": 1} == await again.result())


@scenario(open_(in_flight=1), *END, strict=True, within=0.0)
async def drain_with_retries(state: Retrying) -> None:
    await flaky(state, 1, 1)
    await flaky(state, 2, 2)
    state.expect(await state.runtime.drain())
    state.expect([TaskState.COMPLETED] * 2 == [handle.state for handle in state.handles])


@scenario(open_(in_flight=1, grace=0.5), *END, within=2.0)
async def shut_down_with_retries(state: Retrying) -> None:
    for number in range(3):
        await flaky(state, number, 3)
    await anyio.sleep(0.5)
    await state.runtime.shutdown(0.25)
    state.expect({TaskState.CANCELED} == {handle.state for handle in state.handles})


@scenario(closed(in_flight=1, grace=30), *END, *SUBMIT, within=9.0)
async def leave_with_retries_to_do(state: Retrying) -> None:
    async def inside(state: Any) -> None:
        for number, times in ((1, 0), (2, 1), (3, 3)):
            await flaky(state, number, times)

    await block(state, inside)
    state.expect(state.told)


@scenario(closed(in_flight=1, grace=0.5), *END, *SUBMIT, within=2.0)
async def leave_with_retries_that_are_cut_short(state: Retrying) -> None:
    async def inside(state: Any) -> None:
        for number in range(3):
            await flaky(state, number, 3)

    await block(state, inside)


@scenario(open_(in_flight=1), *RUN, within=3.0)
async def run_with_a_deadline_in_the_line_of_a_retry(state: Retrying) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(state.run_quietly, "flaky", {"n": 1, "times": 0})
        given = {"n": 2, "times": 1}
        group.start_soon(lambda: state.run_quietly("flaky", given, retry=POLICY, queue_timeout=0.5))
        await anyio.sleep(0.9)
        group.start_soon(state.run_quietly, "long")
    state.expect({"queue"} == {task.error["deadline"] for task in state.tasks if task.error is not None})
