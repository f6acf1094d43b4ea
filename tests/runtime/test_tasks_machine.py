"""A runtime under everything that can happen to its tasks, in any order, on both event loops.

Tasks are submitted, run and started in groups, with and without a policy, a key, deadlines; their executions come back well,
fail, give up, tell of progress, hang; they are cancelled and requeued; time goes on, or does not. After each step nothing is
held that should not be, and in the end everything has ended once.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import anyio
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from agentcore import (
    AgentContext,
    AgentResult,
    AgentRuntime,
    Backoff,
    BaseTask,
    CoreError,
    Event,
    RetryBudget,
    RetryPolicy,
    RuntimeConfig,
    TaskHandle,
    TaskPriority,
    TaskState,
)
from agentcore.testing import SimMachine, current_simulation

pytestmark = pytest.mark.thorough

SOME = settings(
    database=None,
    derandomize=True,
    deadline=None,
    max_examples=40,
    stateful_step_count=30,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
POLICIES = [
    None,
    RetryPolicy(attempts=2, backoff=Backoff(1.0, 2.0, jitter=False)),
    RetryPolicy(attempts=5, backoff=Backoff(2.0)),
    RetryPolicy(attempts=3, backoff=Backoff(0, maximum=0), never_on=LookupError),
]
ENDS = ["ok", "fail", "lookup", "later", "give up"]
TERMINAL = ("task_completed", "task_failed", "task_canceled")
CAPACITY = 6.0


class Execution:
    """One execution of a task, which goes on until it is told how to end."""

    def __init__(self, context: AgentContext) -> None:
        self.context = context
        self.go_on = anyio.Event()
        self.outcome = "ok"


class Later(Exception):
    """An error that asks for time."""

    retry_after = 7.0


class TasksMachine(SimMachine):
    """Does everything to the tasks of one runtime that callers and handlers can do to them."""

    @initialize(
        in_flight=st.integers(1, 2), queue=st.integers(1, 3), retention=st.integers(1, 3), letters=st.integers(0, 2)
    )
    def open(self, *, in_flight: int, queue: int, retention: int, letters: int) -> None:
        self.executions: list[Execution] = []
        self.handles: list[TaskHandle] = []
        self.run_tasks: list[tuple[BaseTask, anyio.CancelScope]] = []
        self.keyed: dict[str, TaskHandle] = {}
        self.events: list[Event] = []
        self.budget = RetryBudget(ratio=0, per_second=0, capacity=CAPACITY)
        config = RuntimeConfig(
            in_flight=in_flight,
            queue=queue,
            retention=retention,
            dead_letters=letters,
            retry_budget=self.budget,
            grace=0,
        )
        self.runtime: AgentRuntime = self.enter(lambda: AgentRuntime(config))
        self.group = self.enter(anyio.create_task_group)
        self.sim.call(self.runtime.subscribe, self.events.append)
        for name in ("a", "b"):
            self.sim.call(lambda name=name: self.runtime.handler(name)(self._execute))

    def settle(self) -> None:
        """Let everything go on until it waits for something."""

        async def settle() -> None:
            await current_simulation().settle()

        self.sim.run(settle)

    async def _execute(self, given: dict[str, Any], context: AgentContext) -> Any:
        execution = Execution(context)
        self.executions.append(execution)
        try:
            await execution.go_on.wait()
        finally:
            self.executions.remove(execution)
        if execution.outcome == "give up":
            return AgentResult.error_result("gave up")
        errors: dict[str, Exception] = {"fail": OSError("fails"), "lookup": KeyError("not there"), "later": Later()}
        if execution.outcome in errors:
            raise errors[execution.outcome]
        return given

    # What callers do.

    @rule(
        name=st.sampled_from(["a", "b"]),
        policy=st.sampled_from(POLICIES),
        key=st.sampled_from([None, None, "one", "two"]),
        priority=st.sampled_from(TaskPriority),
        queue_timeout=st.sampled_from([None, 3.0]),
        idle_timeout=st.sampled_from([None, 4.0]),
        deadline=st.sampled_from([None, 9.0]),
        count=st.integers(1, 3),
    )
    def submit(self, *, name: str, policy: RetryPolicy | None, key: str | None, count: int, **options: Any) -> None:
        """Submit some tasks, of the same key if any."""
        for _ in range(count):
            self.sim.call(self.group.start_soon, self._submit, name, key, {"retry": policy or False, **options})
        self.settle()

    async def _submit(self, name: str, key: str | None, options: dict[str, Any]) -> None:
        try:
            handle = await self.runtime.submit(name, {"key": key}, key=key, **options)
        except CoreError:  # its deadline; the key of another type
            return
        assert handle.state not in (TaskState.FAILED, TaskState.CANCELED)
        if key is not None:
            known = self.keyed.get(key)
            if known is not None and known is not handle:
                assert known.is_done
                assert known.state is not TaskState.COMPLETED or not self._is_remembered(known)
            self.keyed[key] = handle
        if handle not in self.handles:
            self.handles.append(handle)

    def _is_remembered(self, handle: TaskHandle) -> bool:
        return any(task is handle.task for task in self.runtime.tasks._ledger._recent.values())

    @rule(policy=st.sampled_from(POLICIES), deadline=st.sampled_from([None, 9.0]))
    def run(self, policy: RetryPolicy | None, deadline: float | None) -> None:
        """Run a task in a task of its own."""
        task, scope = BaseTask.create("a", {}), self.sim.call(anyio.CancelScope)
        self.run_tasks.append((task, scope))
        self.sim.call(self.group.start_soon, self._run, task, scope, {"retry": policy or False, "deadline": deadline})
        self.settle()

    async def _run(self, task: BaseTask, scope: anyio.CancelScope, options: dict[str, Any]) -> None:
        with scope:
            try:
                await self.runtime.run(task, **options)
            except CoreError:
                return

    @precondition(lambda self: self.open_handles)
    @rule(index=st.integers(0, 5))
    def cancel(self, index: int) -> None:
        """Cancel a task that was submitted."""
        handle = self.open_handles[index % len(self.open_handles)]
        assert self.sim.call(handle.cancel, "by the machine")
        self.settle()
        assert TaskState.CANCELED is handle.state

    @precondition(lambda self: self.run_tasks)
    @rule(index=st.integers(0, 5))
    def cancel_caller(self, index: int) -> None:
        """Cancel the caller of one that is run."""
        task, scope = self.run_tasks.pop(index % len(self.run_tasks))
        self.sim.call(scope.cancel)
        self.settle()
        assert task.is_finished or task.state is TaskState.PENDING

    @precondition(lambda self: len(self.runtime.tasks.dead_letters))
    @rule(index=st.integers(0, 1), discards=st.booleans())
    def requeue(self, index: int, discards: bool) -> None:
        """Submit what was given up once more, or let go of it."""
        letters = self.runtime.tasks.dead_letters
        found = letters.list()
        letter = found[index % len(found)]
        if discards:
            assert letter is self.sim.call(letters.discard, letter.task_id)
        else:
            self.sim.call(self.group.start_soon, self._requeue, letter.task_id)
            self.settle()

    async def _requeue(self, task_id: str) -> None:
        try:
            self.handles.append(await self.runtime.tasks.dead_letters.requeue(task_id))
        except CoreError:  # its deadline; somebody else does
            return

    # What handlers do.

    @precondition(lambda self: self.executions)
    @rule(index=st.integers(0, 1), outcome=st.sampled_from(ENDS))
    def end(self, index: int, outcome: str) -> None:
        """Tell an execution how to end."""
        execution = self.executions[index % len(self.executions)]
        execution.outcome = outcome
        self.sim.call(execution.go_on.set)
        self.settle()

    @precondition(lambda self: self.executions)
    @rule(index=st.integers(0, 1), value=st.integers())
    def progress(self, index: int, value: int) -> None:
        """Have one tell how far it is."""
        context = self.executions[index % len(self.executions)].context
        self.sim.call(context.progress, value)
        assert context.task is not None
        assert value == context.task._progress

    @rule(seconds=st.sampled_from([0.5, 1.0, 2.0, 4.0, 10.0]))
    def tick(self, seconds: float) -> None:
        """Let time go by."""
        self.sim.run(anyio.sleep, seconds)
        self.settle()

    @property
    def open_handles(self) -> list[TaskHandle]:
        """Those of tasks that have not ended."""
        return [handle for handle in self.handles if not handle.is_done]

    # What is always true.

    @invariant()
    def nothing_is_held_by_whoever_waits(self) -> None:
        """Slots are those of executions; a task that waits for a retry has none, and no place in the queue."""
        runtime = self.runtime
        statistics, active = runtime.statistics().tasks, runtime.tasks.active()
        running = [task for task in active if task.state is TaskState.RUNNING]
        waiting = [task for task in active if task.not_before is not None]
        assert statistics.in_flight == len(self.executions) == len(running) <= runtime.config.in_flight
        assert statistics.waiting_for_retry <= len(waiting)
        assert statistics.queued + statistics.waiting_for_retry + len(running) == len(active)
        # Nobody waits in line if there is a slot.
        assert not statistics.queued or statistics.in_flight == runtime.config.in_flight
        room = runtime.tasks._admission._room
        assert room.in_use <= min(statistics.queued, runtime.config.queue)
        assert not len(room) or room.in_use == runtime.config.queue

    @invariant()
    def what_is_kept_is_bounded(self) -> None:
        """Keys are those of tasks that are known; the budget has paid for what was executed again, or is about to be."""
        ledger, letters = self.runtime.tasks._ledger, self.runtime.tasks.dead_letters
        assert {*ledger.keys._by_number} <= {*(job.number for job in ledger.jobs.values()), *ledger._recent}
        assert len(ledger._numbers) == len(ledger._recent) <= self.runtime.config.retention
        assert len(letters) <= self.runtime.config.dead_letters
        started = Counter(event.data["task_id"] for event in self.events if event.event_type == "task_started")
        again = sum(count - 1 for count in started.values())
        to_be = [job for job in ledger.jobs.values() if job.trials is not None and job.task.state is TaskState.PENDING]
        assert again + len(to_be) == round(CAPACITY - self.budget.available)

    @invariant()
    def each_ends_once(self) -> None:
        """And what has ended stays so."""
        ended = Counter(event.data["task_id"] for event in self.events if event.event_type in TERMINAL)
        assert set(ended.values()) <= {1}
        active = {task.id for task in self.runtime.tasks.active()}
        assert not active & {*ended}

    def finish(self) -> None:
        for _, scope in self.run_tasks:
            self.sim.call(scope.cancel)
        self.settle()
        while self.open_handles:  # who waits for room comes then
            for handle in self.open_handles:
                self.sim.call(handle.cancel)
            self.settle()
        assert not self.runtime.tasks.active()
        statistics = self.runtime.statistics().tasks
        assert (0, 0, 0) == (statistics.in_flight, statistics.queued, statistics.waiting_for_retry)
        assert statistics.accepted == statistics.completed + statistics.failed + statistics.canceled
        self.runtime.tasks._ledger.forget_lost()  # they have been looked at


TestTasksOnAsyncio = TasksMachine.on("asyncio").TestCase
TestTasksOnAsyncio.settings = SOME
TestTasksOnTrio = TasksMachine.on("trio").TestCase
TestTasksOnTrio.settings = SOME
