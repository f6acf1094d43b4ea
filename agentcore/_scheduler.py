"""Executes tasks: who may run, in which order, and what becomes of each.

A task that is submitted is a task of the runtime's task group from the first moment; it waits there for its turn. One
that is run belongs to its caller, and differs in nothing else. There is no loop that hands out work: who gives a slot
back wakes up the next in line.

Every way out of a job passes `_settle`, which is synchronous: the task's last transition, the slot, the handle and the
event have no await between them.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from contextvars import copy_context
from operator import itemgetter
from typing import Any, Final, final

import anyio
import anyio.abc
import anyio.lowlevel
import attrs

from agentcore._agent_records import AgentContext, AgentResult
from agentcore._agents import BaseAgent, waits
from agentcore._context import current_execution, current_job, current_runtime
from agentcore._directory import describe
from agentcore._events import EventLog
from agentcore._handle import TaskHandle, outcome_of
from agentcore._interop import split_cancellation
from agentcore._job import Job, Plan, Turn
from agentcore._rules.admission import Slots
from agentcore._rules.task_states import TaskPriority, TaskState
from agentcore._task_records import to_priority
from agentcore._tasks import BaseTask, TaskResult
from agentcore.abc import TaskRunner
from agentcore.errors import (
    CoreError,
    RuntimeClosedError,
    TaskError,
    TaskNotFoundError,
    TaskStateError,
    text_of,
)

MAX_LOST: Final = 100
"""How many failures that reached nobody are kept whole for the exit of the runtime; further ones are counted."""


@final
@attrs.frozen(kw_only=True)
class TaskStatistics:
    """What a runtime has done with its tasks.

    Attributes:
        accepted: tasks taken on.
        completed: tasks that ended COMPLETED.
        failed: tasks that ended FAILED.
        canceled: tasks that ended CANCELED.
        in_flight: slots in use now.
        queued: tasks that wait for a slot now.
    """

    accepted: int
    completed: int
    failed: int
    canceled: int
    in_flight: int
    queued: int


class Scheduler:
    """The tasks of one runtime.

    Args:
        runner: what the contexts of agents reach the runtime by.
        log: where events go.
        in_flight: how many tasks may run at a time.
        queue: how many submitted tasks may wait for a slot; further submitters wait themselves.
        retention: how many tasks are remembered after their end, the newest.
    """

    def __init__(self, runner: TaskRunner, log: EventLog, *, in_flight: int, queue: int, retention: int) -> None:
        self._runner = runner
        self._log = log
        self._retention = retention
        self._group: anyio.abc.TaskGroup | None = None
        self._slots: Slots[Turn] = Slots(in_flight)
        # Places for submitted tasks that wait for a slot; who runs a task waits himself and needs none.
        self._room: Slots[Turn] = Slots(queue)
        self._jobs: dict[str, Job] = {}
        self._recent: OrderedDict[str, BaseTask] = OrderedDict()
        self._lost: dict[TaskHandle, BaseException | None] = {}
        self._lost_count = 0
        self._cut: list[tuple[int, BaseTask]] = []
        self._counts = dict.fromkeys(TaskState, 0)
        self._accepted = 0
        self._state = "new"
        # What went wrong besides the tasks' own outcomes, for the exit of the runtime.
        self.crashes: list[BaseException] = []
        # The tasks from which somebody waits for all others to end, each as often as it does.
        self._idlers: Counter[str] = Counter()
        # While somebody waits for jobs to end; set by every one that does.
        self._ended: anyio.Event | None = None

    def __repr__(self) -> str:
        return f"<Scheduler {self._state}, {len(self._jobs)} tasks, {self._slots!r}>"

    def __len__(self) -> int:
        """Return how many tasks run or wait."""
        return len(self._jobs)

    @property
    def state(self) -> str:
        """``new``, ``open``, ``draining`` or ``closed``."""
        return self._state

    def active(self) -> list[BaseTask]:
        """Return the tasks that run or wait, in the order of their arrival."""
        return [job.task for job in self._jobs.values()]

    def get(self, task_id: str) -> BaseTask:
        """Return a task that runs or waits, or has ended not long ago.

        Raises:
            TaskNotFoundError: there is none of this id.
        """
        if task_id in self._jobs:
            return self._jobs[task_id].task
        if task_id in self._recent:
            return self._recent[task_id]
        raise TaskNotFoundError(
            f"the runtime knows no task of this id: got {task_id!r}; "
            f"it remembers the {self._retention} that ended last (retention)",
            {"task_id": task_id},
        )

    def statistics(self) -> TaskStatistics:
        """Return what was done so far."""
        return TaskStatistics(
            accepted=self._accepted,
            completed=self._counts[TaskState.COMPLETED],
            failed=self._counts[TaskState.FAILED],
            canceled=self._counts[TaskState.CANCELED],
            in_flight=self._slots.in_use,
            queued=len(self._slots),
        )

    def open(self, group: anyio.abc.TaskGroup) -> None:
        """Begin to accept tasks; submitted ones live in the group."""
        self._group = group
        self._state = "open"

    # Coming in.

    async def run(self, task: BaseTask, plan: Plan) -> dict[str, Any]:
        """Execute a task in the caller's own task and return its output; see `AgentRuntime.run`."""
        parent = self._current()
        self._check(task, parent)
        turn = None
        if parent is not None and parent.has_slot:
            # The parent waits right here: its slot goes to the child, and comes back with the child's end.
            parent.has_slot = False
        elif not self._slots.try_take():
            turn = self._line_up(task)
        if parent is not None:
            parent.waiting_for += 1
        job = self._accept(Job(task, plan, parent, turn))
        job.begun = True
        tokens = current_job.set(job), current_runtime.set(self._runner)
        try:
            with job.scope:
                await self._execute(job)
        finally:
            current_job.reset(tokens[0])
            current_runtime.reset(tokens[1])
        return outcome_of(task, job.cause)

    async def submit(self, task: BaseTask, plan: Plan) -> TaskHandle:
        """Take a task over and return a handle to it; see `AgentRuntime.submit`."""
        # First of all, so that a caller who is cancelled here has submitted nothing.
        await anyio.lowlevel.checkpoint()
        parent = self._current()
        self._check(task, parent)
        turn = await self._queue_up(task, plan, parent)
        # No await from here on: what is accepted has a task that sees to it.
        job = self._accept(Job(task, plan, parent, turn))
        job.handle = TaskHandle(task, self)
        assert self._group is not None  # `open` has set it  # noqa: S101
        self._group.create_task(self._own(job), name=f"{task.type} {task.id}", context=copy_context())
        return job.handle

    def cancel(self, handle: TaskHandle, reason: str | None) -> bool:
        """Begin to cancel the task of a handle; False if it has ended already."""
        job = self._jobs.get(handle.id)
        if job is None:
            return False
        self._cancel(job, reason)
        return True

    def retrieved(self, handle: TaskHandle) -> None:
        """Note that somebody has learned how a task ended: if it failed, the failure is theirs from now on."""
        self._lost.pop(handle, None)
        if handle._uncounted:
            handle._uncounted = False
            self._lost_count -= 1

    @contextmanager
    def waiting(self, handle: TaskHandle) -> Generator[None]:
        """Enclose the wait for a handle: the slot of the current job is lent, and a wait that could never end is refused.

        Raises:
            AgentDeadlockError: the task waits for an agent that waits here.
        """
        job = self._jobs.get(handle.id)
        chain = current_execution.get()
        if job is None or chain is None:
            with self._lending():
                yield
            return
        wait = waits.begin(job, chain)
        try:
            with self._lending():
                yield
        finally:
            waits.remove(wait)

    @contextmanager
    def _lending(self) -> Generator[None]:
        """Lend the slot of the current job, if there is one, for as long as it waits in the block."""
        job = self._current()
        if job is None:
            yield
            return
        job.waiting_for += 1
        if job.has_slot:
            job.has_slot = False
            self._give_slot()
        try:
            yield
        finally:
            self._end_wait(job)

    # Going out.

    async def wait_idle(self) -> None:
        """Wait until no task runs or waits, but the ones that this is called in."""
        own = self._own_chain()
        # Tasks that wait here do not wait for each other.
        self._idlers.update(own)
        if self._ended is not None:
            self._ended.set()
        try:
            while self._jobs.keys() - +self._idlers:
                # Shared by all who wait: one of their own would hide it from the others.
                if self._ended is None or self._ended.is_set():
                    self._ended = anyio.Event()
                await self._ended.wait()
        finally:
            self._idlers.subtract(own)

    def stop_accepting(self) -> None:
        """Refuse new tasks from now on, but for children of those that run."""
        if self._state == "open":
            self._state = "draining"
            self._wake_submitters()

    async def cut(self, reason: str) -> None:
        """Refuse every new task, cancel all that there are and wait for their end. Calls may overlap."""
        self._state = "closed"
        self._wake_submitters()
        own = self._own_chain()
        for job in list(self._jobs.values()):
            if job.task.id not in own and not job.scope.cancel_called:
                self._cancel(job, reason)
                self._cut.append((job.number, job.task))
        await self.wait_idle()

    def cut_short(self) -> tuple[TaskResult, ...]:
        """Return how the tasks ended that `cut` has cancelled, in the order of their arrival."""
        return tuple(TaskResult.from_task(task) for _, task in sorted(self._cut, key=itemgetter(0)))

    def take_lost(self) -> tuple[list[CoreError], int]:
        """Return the failures that reached nobody, as far as they were kept, and how many there are in all."""
        errors = []
        for handle, cause in self._lost.items():
            try:
                outcome_of(handle.task, cause)
            except CoreError as error:
                errors.append(error)
        count = len(errors) + self._lost_count
        self._lost.clear()
        self._lost_count = 0
        return errors, count

    # The life of a job.

    def _accept(self, job: Job) -> Job:
        self._jobs[job.task.id] = job
        self._accepted += 1
        job.number = self._accepted
        self._log.emit("task_accepted", task_id=job.task.id, type=job.task.type, parent_id=job.task.parent_id)
        return job

    async def _own(self, job: Job) -> None:
        """Execute a job as a task of its own."""
        if job.ended:  # cancelled before this, its first step
            return
        job.begun = True
        # This is a context of its own, a copy of the submitter's: nothing has to be set back.
        current_job.set(job)
        current_runtime.set(self._runner)
        current_execution.set([job, None])
        try:
            with job.scope:
                await self._execute(job)
        except BaseException as error:  # noqa: ASYNC103, BLE001 - what may not be swallowed is raised by the block
            # It is settled, and the task ends here. A cancellation is not passed on: it may be a foreign `Task.cancel()`,
            # for which AnyIO would cancel the whole group; whoever cancels the group finds this task at its end anyway.
            _, rest = split_cancellation(error)
            if rest is not None and not isinstance(rest, Exception):
                self._crash(rest)

    def _crash(self, error: BaseException) -> None:
        """End the block of the runtime for something that no `except Exception` may catch, and have it raised there."""
        # By hand: SystemExit and KeyboardInterrupt that leave a task would stop an asyncio loop dead.
        self.crashes.append(error)
        assert self._group is not None  # the job lived in it  # noqa: S101
        self._group.cancel_scope.cancel(f"a task crashed: {error!r}")

    async def _execute(self, job: Job) -> None:
        """Wait for a turn, run the agent, settle. Exceptions become the task's outcome, anything else goes on."""
        try:
            if job.turn is not None:
                await self._wait_for_turn(job, job.turn)
            result = await self._perform(job)
        except Exception as error:  # noqa: BLE001 - it is the task's outcome
            self._settle(job, None, error)
        except BaseException as error:
            cancelled, rest = split_cancellation(error)
            self._settle(job, None, rest, cancelled=cancelled)
            raise
        else:
            self._settle(job, result, result.cause if result is not None else None)

    async def _wait_for_turn(self, job: Job, turn: Turn) -> None:
        try:
            with anyio.move_on_at(job.plan.total.at if job.plan.total is not None else None):
                await turn.event.wait()
        finally:
            self._leave_line(job, turn)
        job.plan.check(job.task, "while it waited for its turn")

    def _leave_line(self, job: Job, turn: Turn) -> None:
        if turn.granted:
            job.has_slot = True
        else:
            self._slots.withdraw(turn, turn.priority)
        if job.handle is not None:
            self._give_room()

    async def _perform(self, job: Job) -> AgentResult | None:
        task = job.task
        if job.handle is not None:
            # If everything was cancelled between its acceptance and its first step, not a line of the agent runs.
            await anyio.lowlevel.checkpoint_if_cancelled()
        try:
            task.start()
        except TaskStateError:
            if task.is_finished:  # by hand, while it waited
                return None
            raise
        self._log.emit("task_started", task_id=task.id, type=task.type)
        agent = job.agent = job.plan.route.take()
        try:
            context = AgentContext(task)
            context._runner, context._limit = self._runner, job.plan.limit()
            return await agent.execute(context)
        finally:
            if job.plan.route.owned:
                await self._dismiss(agent)  # noqa: ASYNC102 - `terminate` shields and limits itself

    async def _dismiss(self, agent: BaseAgent) -> None:
        """Terminate the agent of one task. The task's outcome stands whatever happens here, so a failure is the runtime's."""
        try:
            await agent.terminate()
        except Exception as error:  # noqa: BLE001 - raised at the exit of the runtime
            self.crashes.append(error)

    def _settle(
        self, job: Job, result: AgentResult | None, error: BaseException | None, *, cancelled: bool = False
    ) -> None:
        """Do all that follows from the end of an execution, at once."""
        task = job.task
        job.ended = True
        if cancelled and job.handle is not None and not job.scope.cancel_called:
            self._cut.append((job.number, task))  # cancelled together with the block of the runtime
        # Whoever has moved the task by hand has decided its outcome.
        with suppress(TaskStateError):
            self._move(job, result, error, cancelled=cancelled)
        job.cause = error
        self._return_slot(job)
        del self._jobs[task.id]
        self._recent[task.id] = task
        if len(self._recent) > self._retention:
            self._recent.popitem(last=False)
        self._counts[task.state] += 1
        self._log.emit(f"task_{task.state}", task_id=task.id, type=task.type, duration_ms=task.duration_ms)
        if job.handle is not None:
            self._tell(job, job.handle)
        if self._ended is not None:
            self._ended.set()

    def _move(self, job: Job, result: AgentResult | None, error: BaseException | None, *, cancelled: bool) -> None:
        task = job.task
        if isinstance(error, TaskStateError) and error.details.get("task_id") == task.id and job.agent is None:
            return  # it could not be started: somebody else executes it, and will end it
        if result is not None and result.success:
            task.complete(result.output if isinstance(result.output, dict) else {"result": result.output})
        elif cancelled or task.cancel_requested:
            task.cancel(None if task.cancel_requested else "the scope around it was cancelled")
        else:
            task.fail(_failure(job, result, error))

    def _tell(self, job: Job, handle: TaskHandle) -> None:
        failed = job.task.state is TaskState.FAILED or (job.task.state is TaskState.CANCELED and job.cause is not None)
        # What is no Exception is raised by the block as it is, and not as the failure of a task once more.
        if failed and (job.cause is None or isinstance(job.cause, Exception)):
            if len(self._lost) < MAX_LOST:
                self._lost[handle] = job.cause
            else:
                self._lost_count += 1
                handle._uncounted = True
        handle._finish(job.cause)

    def _cancel(self, job: Job, reason: str | None) -> None:
        # The task may have been ended by hand; what runs for it is cancelled all the same.
        job.task.request_cancel(reason)
        job.scope.cancel(reason)
        if not job.begun:
            # Settled here and now: not a line of the agent runs, and the job ends even if its asyncio task was cancelled
            # by a stranger, so that its first step never comes.
            if job.turn is not None:
                self._leave_line(job, job.turn)
            self._settle(job, None, None, cancelled=True)

    # Who is asking.

    def inherited(self) -> dict[str, Any]:
        """Return the fields that a new task has from the one it is made in."""
        job = self._current()
        return {} if job is None else {"parent_id": job.task.id, "trace_id": job.task.trace_id}

    def _current(self) -> Job | None:
        """Return the job of this scheduler that the caller is a part of."""
        job = current_job.get()
        # A task that was started in a job may outlive it and still have it in its context.
        return job if isinstance(job, Job) and self._jobs.get(job.task.id) is job else None

    def _own_chain(self) -> set[str]:
        """Return the ids of the tasks that wait for the caller."""
        chain = set()
        job = self._current()
        while job is not None:
            chain.add(job.task.id)
            job = job.parent if job.handle is None else None
        return chain

    def _check(self, task: BaseTask, parent: Job | None) -> None:
        if self._state != "open" and not (self._state == "draining" and parent is not None):
            raise RuntimeClosedError(
                f"a runtime takes tasks between entering and leaving its block: got one of type {task.type!r} "
                f"in state {self._state!r}; "
                + ("write `async with AgentRuntime() as runtime:`" if self._state == "new" else "it is shutting down"),
                {"state": self._state, "task_id": task.id, "type": task.type},
            )
        if task.state is not TaskState.PENDING:
            raise TaskStateError(
                f"a task that is run or submitted must be PENDING: got task {task.id} in state {task.state.name}; "
                "create a new task",
                {"task_id": task.id, "state": task.state, "transition": "submit", "allowed": []},
            )
        if task.priority.__class__ is not TaskPriority:  # it may have been set since the task was made
            task.priority = to_priority(task.priority)
        if task.id in self._jobs:
            raise TaskError(
                f"a task can be submitted once: got task {task.id}, which the runtime has already; keep its handle",
                {"task_id": task.id},
            )

    # Slots and room.

    def _line_up(self, task: BaseTask) -> Turn:
        turn = Turn(task.priority)
        self._slots.wait(turn, turn.priority)
        return turn

    async def _queue_up(self, task: BaseTask, plan: Plan, parent: Job | None) -> Turn | None:
        """Take a slot and return None, or take a place in the queue and return the turn that it leads to."""
        if self._slots.try_take():
            return None
        if not self._room.try_take():
            await self._wait_for_room(task, plan, parent)
            if self._slots.try_take():
                self._give_room()
                return None
        return self._line_up(task)

    async def _wait_for_room(self, task: BaseTask, plan: Plan, parent: Job | None) -> None:
        """Wait for a place in the queue."""
        while True:
            turn = Turn(task.priority)
            self._room.wait(turn, turn.priority)
            try:
                with self._lending(), anyio.move_on_at(plan.total.at if plan.total is not None else None):
                    await turn.event.wait()
            except BaseException:
                if turn.granted:
                    self._give_room()
                raise
            finally:
                if not turn.granted:
                    self._room.withdraw(turn, turn.priority)
            # Much may have happened meanwhile, to the runtime and to the task.
            try:
                self._check(task, parent)
            except CoreError:
                if turn.granted:
                    self._give_room()
                raise
            if turn.granted:
                return
            plan.check(task, "before the queue had room for it; it was not accepted")

    def _wake_submitters(self) -> None:
        """Have everyone who waits for room ask anew whether he may."""
        for turn in self._room.drop_all():
            turn.event.set()

    def _give_slot(self) -> None:
        turn = self._slots.give()
        if turn is not None:
            turn.grant()

    def _give_room(self) -> None:
        turn = self._room.give()
        if turn is not None:
            turn.grant()

    def _return_slot(self, job: Job) -> None:
        """Give the slot of a job back: to the parent that waits for it, if this was its last child, else to the next."""
        parent = job.parent if job.handle is None else None
        if parent is not None and not parent.ended and job.has_slot and parent.waiting_for == 1:
            parent.waiting_for, parent.has_slot, job.has_slot = 0, True, False
            return
        if job.has_slot:
            job.has_slot = False
            self._give_slot()
        if parent is not None:
            self._end_wait(parent)

    def _end_wait(self, job: Job) -> None:
        """End one wait of a job; with the last one it has its slot again."""
        job.waiting_for -= 1
        if job.waiting_for == 0 and not job.ended:
            self._slots.reclaim()
            job.has_slot = True


def _failure(job: Job, result: AgentResult | None, error: BaseException | None) -> dict[str, Any]:
    """Return what a failed task keeps: what its agent said, else the exception; and the deadline, if it was one."""
    said = result.error if result is not None else None
    if isinstance(said, Mapping):
        failure = dict(said)
    elif said is not None:
        failure = {"error_type": "AgentFailure", "message": text_of(said), "error": said}
    elif error is not None:
        failure = describe(error)
    else:
        failure = {"error_type": "AgentFailure", "message": "the agent gave success=False and no error"}
    deadline = job.deadline_of(error)
    return failure if deadline is None else {"deadline": deadline, **failure}
