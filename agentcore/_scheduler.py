"""Executes tasks: who may run, in which order, and what becomes of each.

A task that is submitted is a task of the runtime's task group from the first moment; it waits there for its turn. One
that is run belongs to its caller, and differs in nothing else. There is no loop that hands out work: who gives a slot
back wakes up the next in line.

Every way out of a job passes `_settle`, which is synchronous: the task's last transition, the slot, the handle and the
event have no await between them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, Final

import anyio
import anyio.abc
import anyio.lowlevel

from agentcore._admission import Admission
from agentcore._agent_records import AgentResult, Call
from agentcore._agents import BaseAgent, waits
from agentcore._calls import Calls
from agentcore._context import Lender, current_execution, current_job, current_runtime, current_terminations
from agentcore._dead_letters import DeadLetter, DeadLetters
from agentcore._events import EventLog
from agentcore._failures import Failures
from agentcore._handle import TaskHandle, outcome_of
from agentcore._interop import split_cancellation
from agentcore._job import Job, Plan, Trials, Turn, Watcher
from agentcore._keys import KnownKeyError
from agentcore._ledger import Ledger
from agentcore._progress import Signs
from agentcore._retries import Retries
from agentcore._retry import RetryBudget
from agentcore._rules.task_states import INITIAL, TaskPriority, TaskState
from agentcore._task_factory import remade
from agentcore._task_records import to_priority
from agentcore._task_result import TaskResult, TaskStatistics
from agentcore._tasks import BaseTask
from agentcore.abc import TaskRunner
from agentcore.errors import (
    RuntimeClosedError,
    TaskError,
    TaskStateError,
)

_NOTHING: Final = nullcontext()
# Made once: an enumeration's members are formatted slowly.
_ENDS: Final = {state: f"task_{state}" for state in TaskState}


class Scheduler:
    """The tasks of one runtime.

    Args:
        runner: what the contexts of agents reach the runtime by.
        log: where events go.
        in_flight: how many tasks may run at a time.
        queue: how many submitted tasks may wait for a slot; further submitters wait themselves.
        ageing: seconds of waiting that are worth one band of priority.
        ledger: what is known of the tasks.
        failures: where what reaches nobody goes.
        retry_budget: pays for all retries; None if nothing limits them together.
        dead_letters: how many tasks are kept that have failed for good although they had a policy.

    Attributes:
        dead_letters: these tasks.
        signs: where the progress of tasks is told.
    """

    def __init__(
        self,
        runner: TaskRunner,
        log: EventLog,
        ledger: Ledger,
        failures: Failures,
        *,
        in_flight: int,
        queue: int,
        ageing: float,
        retry_budget: RetryBudget | None = None,
        dead_letters: int = 256,
    ) -> None:
        self._runner = runner
        self._log = log
        self._admission = Admission(in_flight, queue, ageing)
        self._retries = Retries(self._admission, log, retry_budget)
        self.signs: Final[Signs] = Signs(log)
        self._ledger = ledger
        self._failures = failures
        self.dead_letters: Final[DeadLetters] = DeadLetters(dead_letters)
        # Plans a task as another one was planned.
        self.plan_like: Callable[[BaseTask, Plan], Plan] = lambda _, plan: plan
        self._group: anyio.abc.TaskGroup | None = None
        # ``new``, ``open``, ``draining`` or ``closed``; others only look at it.
        self.state: str = "new"
        self.calls: Final[Calls] = Calls(self._note_end)
        # The tasks and calls from which somebody waits for all others to end, each as often as it does.
        self._idlers: Counter[str | Call] = Counter()
        # While somebody waits for jobs to end; set by every one that does.
        self._ended: anyio.Event | None = None

    def __repr__(self) -> str:
        return f"<Scheduler {self.state}, {len(self)} tasks, {self._admission!r}>"

    def __len__(self) -> int:
        """Return how many tasks run or wait."""
        return len(self._ledger.jobs)

    @property
    def is_idle(self) -> bool:
        """Whether no task runs or waits, and no ask."""
        return not self._ledger.jobs and not len(self.calls)

    def active(self) -> list[BaseTask]:
        """Return the tasks that run or wait, in the order of their arrival."""
        return [job.task for job in self._ledger.jobs.values()]

    def get(self, task_id: str) -> BaseTask:
        """Return a task that runs or waits, or has ended not long ago.

        Raises:
            TaskNotFoundError: there is none of this id.
        """
        return self._ledger.get(task_id)

    def statistics(self) -> TaskStatistics:
        """Return what was done so far."""
        ended = self._ledger.ended
        return TaskStatistics(
            accepted=self._ledger.accepted,
            completed=ended[TaskState.COMPLETED],
            failed=ended[TaskState.FAILED],
            canceled=ended[TaskState.CANCELED],
            in_flight=self._admission.in_use,
            queued=self._admission.waiting,
            retried=self._retries.count,
            waiting_for_retry=self._retries.waiting,
        )

    def open(self, group: anyio.abc.TaskGroup) -> None:
        """Begin to accept tasks; submitted ones live in the group."""
        self._group = group
        self.signs.open()
        self.state = "open"

    # Coming in.

    async def run(self, task: BaseTask, plan: Plan) -> dict[str, Any]:
        """Execute a task in the caller's own task and return its output; see `AgentRuntime.run`."""
        parent = self._current()
        self._check(task)
        turn = self._admission.enter(task, plan, parent)
        chain = current_execution.get()
        job = self._accept(Job(task, plan, parent, turn, self, is_inner=True, chain=chain))
        job.begun = True
        tokens = current_job.set(job), current_runtime.set(self._runner)
        try:
            with job.scope:
                await self._execute(job)
        finally:
            current_job.reset(tokens[0])
            current_runtime.reset(tokens[1])
        return outcome_of(task, job.cause)

    async def submit(self, task: BaseTask, plan: Plan, key: str | None = None) -> TaskHandle:
        """Take a task over and return a handle to it, or that of the task that a key stands for; see `AgentRuntime.submit`."""
        # First of all, so that a caller who is cancelled here has submitted nothing.
        await anyio.lowlevel.checkpoint()
        if key is not None and (known := self.find(key, task.type)) is not None:
            return known
        parent = self._current()
        self._check(task)
        turn = None
        if not self._admission.try_enter():
            try:
                turn = await self._queue_up(task, plan, parent, key)
            except KnownKeyError as known_by_now:
                return known_by_now.handle
        # No await from here on: what is accepted has a task that sees to it.
        job = self._accept(Job(task, plan, parent, turn, self))
        job.handle = TaskHandle(task, self)
        if key is not None:
            job.key = key
            self._ledger.keys.enter(key, job.handle, job.number)
            self._admission.wake_submitters(key)
        assert self._group is not None  # `open` has set it  # noqa: S101
        self._begin(job, self._group)
        return job.handle

    def find(self, key: str, task_type: str) -> TaskHandle | None:
        """Return the handle of the task that a key stands for; None if it stands for none.

        Raises:
            TaskError: it is of another type.
            RuntimeClosedError: the runtime takes nothing.
        """
        self.check_open(f"a task of type {task_type!r}", type=task_type)
        return self._ledger.keys.find(key, task_type)

    async def _queue_up(self, task: BaseTask, plan: Plan, parent: Job | None, key: str | None) -> Turn | None:
        """Wait for a place in the queue.

        Raises:
            KnownKeyError: the key has come to stand for a task meanwhile.
        """

        def check() -> None:
            if key is not None:
                self._ledger.keys.check(key, task.type)
            self._check(task)

        return await self._admission.queue_up(task, plan, parent, check, key)

    def start(
        self,
        task: BaseTask,
        plan: Plan,
        group: anyio.abc.TaskGroup,
        watcher: Watcher,
        place: tuple[Lender | None, object],
    ) -> TaskHandle:
        """Start a task in somebody's own task group and return a handle to it; see `TaskGroup.start`.

        Args:
            task: the task.
            plan: how it is to be executed.
            group: where it lives.
            watcher: what answers for its failure.
            place: the job that the group is in, and the executions around it; both wait for it.
        """
        enclosing, chain = place
        parent = self._current(enclosing)
        self._check(task)
        turn = self._admission.line_up(task, plan)
        job = Job(task, plan, parent, turn, self, is_inner=True, chain=chain, watcher=watcher)
        job.enclosing = enclosing
        handle = self._accept(job).handle = TaskHandle(task, self)
        self._begin(job, group)
        return handle

    def _begin(self, job: Job, group: anyio.abc.TaskGroup) -> None:
        """Give a job a task of its own."""
        group.create_task(self._own(job), name=f"{job.task.type} {job.task.id}")

    def _place(self, job: Job) -> None:
        """Make the structural context that of the job's owner. It is a copy of the submitter's, whose variables stay otherwise."""
        current_job.set(job)
        current_execution.set([job, job.chain, None])
        # A look costs a tenth of what setting costs.
        if current_runtime.get() is not self._runner:
            current_runtime.set(self._runner)
        if current_terminations.get():
            current_terminations.set(())

    def cancel(self, handle: TaskHandle, reason: str | None) -> bool:
        """Begin to cancel the task of a handle; False if it has ended already."""
        job = self._ledger.jobs.get(handle.id)
        if job is None or job.handle is not handle:  # a later one may have its id
            return False
        self._cancel(job, reason)
        return True

    def retrieved(self, handle: TaskHandle) -> None:
        """Note that somebody has learned how a task ended: if it failed, the failure is theirs from now on."""
        self._ledger.retrieved(handle)

    def lose(self, job: Job) -> None:
        """Note that nobody answers for the failure of a job: it is raised at the exit, unless somebody asks the handle."""
        if job.has_failed:
            self._ledger.lose(job)

    def waiting(self, handle: TaskHandle) -> AbstractContextManager[None]:
        """Return a block for the wait for a handle: the slot of the current job is lent, and a wait without an end is refused.

        Raises:
            AgentDeadlockError: the task waits for an agent that waits here; on entering.
        """
        chain = current_execution.get()
        if chain is None and current_job.get() is None:
            return _NOTHING  # in no task and no ask, there is nothing to lend, and no circle to close
        return self._waiting_inside(handle, chain)

    def lending(self, job: Job | None) -> AbstractContextManager[object]:
        """Return a block for the time that a job waits: its slot is free for others."""
        return self._admission.lending(job)

    @contextmanager
    def _waiting_inside(self, handle: TaskHandle, chain: object) -> Generator[None]:
        job = self._ledger.jobs.get(handle.id)
        wait = waits.begin(job, chain) if job is not None and chain is not None else None
        current = self._current()
        # What waits here: a task of this runtime, and the asks around.
        waiters: list[Job | Call] = [*self.calls.around(chain), *([current] if current is not None else [])]
        if job is not None:
            job.waiters += waiters
        # A task of another runtime may wait here too: it lends the slot that it has there.
        lender = current if current is not None else current_job.get()
        try:
            with lender.lending() if lender is not None else nullcontext():
                yield
        finally:
            if wait is not None:
                waits.remove(wait)
            if job is not None:
                for waiter in waiters:
                    job.waiters.remove(waiter)

    # Going out.

    async def wait_idle(self) -> None:
        """Wait until no task runs or waits, and no ask, but the ones that this is called in."""
        own = self._own_chain()
        # Those that wait here do not wait for each other.
        self._idlers.update(own)
        self._note_end()
        try:
            # Who is in none of them waits for them as well: nobody waits for him, so there is no circle.
            while self._is_busy(+self._idlers if own else Counter()):
                # Shared by all who wait: one of their own would hide it from the others.
                if self._ended is None or self._ended.is_set():
                    self._ended = anyio.Event()
                await self._ended.wait()
        finally:
            self._idlers.subtract(own)

    def _is_busy(self, spared: Counter[str | Call]) -> bool:
        left = sum(one in self._ledger.jobs or one in self.calls for one in spared)
        return len(self._ledger.jobs) + len(self.calls) > left

    def _note_end(self) -> None:
        if self._ended is not None:
            self._ended.set()

    def stop_accepting(self) -> None:
        """Refuse new tasks from now on, but for children of those that run."""
        if self.state == "open":
            self.state = "draining"
            self._admission.wake_submitters()

    async def cut(self, reason: str) -> None:
        """Refuse every new task and ask, cancel all that there are and wait for their end. May overlap."""
        self.state = "closed"
        self._admission.wake_submitters()
        own: set[Any] = self._own_chain()
        left = [job for job in self._ledger.jobs.values() if job.task.id not in own and not job.scope.cancel_called]
        # All of them first: the end of one may have a group cancel others.
        for job in left:
            self._ledger.cut(job)
        for job in left:
            if not job.ended:
                self._cancel(job, reason)
        self.calls.end(lambda: self.refusal("an ask that was under way"), f"the runtime ends: {reason!r}", own)
        await self.wait_idle()

    def cut_short(self) -> tuple[TaskResult, ...]:
        """Return how the tasks ended that `cut` has cancelled, in the order of their arrival."""
        return self._ledger.cut_short()

    # The life of a job.

    def _accept(self, job: Job) -> Job:
        self._ledger.enter(job)
        self._log.emit("task_accepted", task_id=job.task.id, type=job.task.type, parent_id=job.task.parent_id)
        return job

    async def _own(self, job: Job) -> None:
        """Execute a job as a task of its own."""
        if job.ended:  # cancelled before this, its first step
            return
        job.begun = True
        self._place(job)
        try:
            with job.scope:
                await self._execute(job)
        except BaseException as error:  # noqa: ASYNC103, BLE001 - what may not be swallowed is raised by the block
            # It is settled, and the task ends here. A cancellation is not passed on: it may be a foreign `Task.cancel()`,
            # for which AnyIO would cancel the whole group; whoever cancels the group finds this task at its end anyway.
            _, rest = split_cancellation(error)
            if rest is None or isinstance(rest, Exception):
                return  # noqa: ASYNC104
            # By hand: SystemExit and KeyboardInterrupt that leave a task would stop an asyncio loop dead.
            if job.watcher is not None:
                job.watcher.child_crashed(job, rest)
            else:
                self._failures.crash(rest)

    async def _execute(self, job: Job) -> None:
        """Wait for a turn, run the agent, settle; again as long as there are retries. What is no Exception goes on."""
        requests = self._retries.begin(job) if job.plan.retry is not None else 0
        again: Trials | None = None
        while True:
            try:
                if again is not None:
                    await self._retries.wait(job, again)
                else:
                    if (until := job.task.not_before) is not None:
                        await self._retries.hold(job, until)
                    if job.turn is not None:
                        await self._admission.wait_for_turn(job, job.turn)
                result = await self._perform(job)
            except Exception as error:  # noqa: BLE001 - it is the task's outcome
                # On asyncio what is raised while a cancelled task is unwound comes alone, without the cancellation.
                cancelled = anyio.current_effective_deadline() == -math.inf
                again = self._end(job, None, error, requests, cancelled=cancelled)
            except BaseException as error:
                cancelled, rest = split_cancellation(error)
                if (
                    cancelled
                    and not job.task.cancel_requested  # `_cancel` has done that
                    and not isinstance(error, GeneratorExit)
                    and anyio.current_effective_deadline() > -math.inf
                ):
                    # No scope is cancelled: it is a native Task.cancel(), or was raised by the code itself.
                    job.task.request_cancel("its asyncio task was cancelled from outside of the runtime")
                self._settle(job, None, rest, cancelled=cancelled)
                raise
            else:
                again = self._end(job, result, result.cause if result is not None else None, requests)
                del result  # it may keep much alive until the next one
            if again is None:
                return

    def _end(
        self,
        job: Job,
        result: AgentResult | None,
        error: BaseException | None,
        requests: int,
        *,
        cancelled: bool = False,
    ) -> Trials | None:
        """Do all that follows from the end of an execution, at once; return what there is to know for another one."""
        policy = job.plan.retry
        if policy is not None and not cancelled and (result is None or not result.success):
            is_closed, again = self.state == "closed", None
            try:
                again = self._retries.go_on(job, policy, result, error, requests=requests, is_closed=is_closed)
            except Exception as broken:  # noqa: BLE001 - a subclass of a task raised; it has to end all the same
                self._failures.add(broken, f"task {job.task.id} could not be retried properly")
            except BaseException:  # of a user's condition
                self._settle(job, result, error)
                raise
            if again is not None:
                return again
        self._settle(job, result, error, cancelled=cancelled)
        return None

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
        route = job.plan.route.now()
        context, post, agent = job.context(self._runner, route), route.post, None
        try:
            agent = job.agent = route.take() if post is None else await post.enter(context)
            return await agent.execute(context)
        finally:
            if post is not None:
                post.leave(context)
            elif route.owned and agent is not None:
                await self.dismiss(agent)  # noqa: ASYNC102 - `terminate` shields and limits itself

    async def dismiss(self, agent: BaseAgent) -> None:
        """Terminate the agent of one task. The task's outcome stands whatever happens here, so a failure is the runtime's."""
        try:
            await agent.terminate()
        except Exception as error:  # noqa: BLE001 - raised at the exit of the runtime
            self._failures.add(error, f"the clean-up of agent {agent.name!r} failed")

    def _settle(
        self, job: Job, result: AgentResult | None, error: BaseException | None, *, cancelled: bool = False
    ) -> None:
        """Do all that follows from the end of an execution, at once."""
        task = job.task
        if cancelled and not job.is_inner and not task.cancel_requested:
            self._ledger.cut(job)  # cancelled together with the block of the runtime
        try:
            job.conclude(result, error, cancelled=cancelled)
        except Exception as broken:  # noqa: BLE001 - a subclass of a task raised; the slot must come back all the same
            self._failures.add(broken, f"task {task.id} could not be ended properly")
        self._admission.leave(job)
        self._ledger.leave(job)
        if job.plan.retry is not None:
            self._retries.end(job)
            if task.state is TaskState.FAILED:
                self.dead_letters.add(DeadLetter.of_task(task), partial(self._submit_again, task, job.plan, job.key))
        if job.handle is not None:
            job.handle._finish(job.cause)
        if job.watcher is not None:
            job.watcher.child_ended(job)
        # A failure keeps its job, by the frames of its traceback; the job must not keep the handle, of which somebody may
        # want to know when nobody has it any more.
        job.handle = None
        self._note_end()
        # Last: a sink may raise what stops the program.
        self._log.emit(_ENDS[task.state], task_id=task.id, type=task.type, duration_ms=task.duration_ms)

    async def _submit_again(self, task: BaseTask, plan: Plan, key: str | None) -> TaskHandle:
        """Submit a task like one that has failed."""
        again = remade(task)
        return await self.submit(again, self.plan_like(again, plan), key)

    def _cancel(self, job: Job, reason: str | None) -> None:
        # The task may have been ended by hand; what runs for it is cancelled all the same.
        job.task.request_cancel(reason)
        # In quotes: AnyIO puts the reason at the end of a message, where a user's words could read like those of AnyIO itself.
        job.scope.cancel(f"task {job.task.id} was cancelled: {reason!r}")
        if not job.begun:
            # Settled here and now: not a line of the agent runs, and the job ends even if its asyncio task was cancelled
            # by a stranger, so that its first step never comes.
            if job.turn is not None:
                self._admission.leave_line(job, job.turn)
            self._settle(job, None, None, cancelled=True)

    # Who is asking.

    def inherited(self) -> dict[str, Any]:
        """Return the fields that a new task has from the one it is made in."""
        job = self._current()
        return {} if job is None else {"parent_id": job.task.id, "trace_id": job.task.trace_id}

    def _current(self, job: Lender | None = None) -> Job | None:
        """Return the job of this scheduler that the caller, or another job, is a part of."""
        job = current_job.get() if job is None else job
        while isinstance(job, Job):
            # A task that was started in a job may outlive it and still have it in its context.
            if self._ledger.jobs.get(job.task.id) is job:
                return job
            job = job.enclosing if job.is_inner else None
        return None

    def _own_chain(self) -> set[str | Call]:
        """Return the ids of the tasks that wait for the caller, and the asks."""
        chain: set[str | Call] = set(self.calls.around(current_execution.get()))
        frontier: list[Job | Call | None] = [self._current()]
        while frontier:
            waiter = frontier.pop()
            if isinstance(waiter, Call):
                chain.add(waiter)
            elif waiter is not None and waiter.task.id not in chain:
                chain.add(waiter.task.id)
                frontier += [
                    *waiter.waiters,
                    *self.calls.around(waiter.chain),
                    waiter.parent if waiter.is_inner else None,
                ]
        return chain

    def check_open(self, subject: str, **details: Any) -> None:
        """Raise if the runtime takes nothing any more, from the caller.

        Raises:
            RuntimeClosedError: it does not. The cause is what it has failed by, if it has.
        """
        if self.state == "open":
            return
        if self.state == "draining" and self.is_inside():
            return
        raise self.refusal(subject, **details)

    def is_inside(self) -> bool:
        """Tell whether this is a part of a task or an ask that is under way."""
        return self._current() is not None or any(self.calls.around(current_execution.get()))

    def refusal(self, subject: str, **details: Any) -> RuntimeClosedError:
        """Return the error for who comes when the runtime takes nothing."""
        return self._failures.refusal(self.state, subject, details)

    def _check(self, task: BaseTask) -> None:
        if self.state != "open":
            self.check_open(f"a task of type {task.type!r}", task_id=task.id, type=task.type)
        if task.state is not INITIAL:
            raise TaskStateError(
                f"a task that is run or submitted must be PENDING: got task {task.id} in state {task.state.name}; "
                "create a new task",
                {"task_id": task.id, "state": task.state, "transition": "submit", "allowed": []},
            )
        if task.priority.__class__ is not TaskPriority:  # it may have been set since the task was made
            task.priority = to_priority(task.priority)
        if task.id in self._ledger.jobs:
            raise TaskError(
                f"a task can be submitted once: got task {task.id}, which the runtime has already; keep its handle",
                {"task_id": task.id},
            )
