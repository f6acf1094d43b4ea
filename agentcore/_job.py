"""A task while it is executed, and its place in line."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol, Self, final

import anyio
import attrs

from agentcore._agent_records import AgentCapability, AgentContext, AgentResult, Call, Idle, Limit, check_seconds
from agentcore._agents import BaseAgent
from agentcore._context import Lender, current_job
from agentcore._directory import Route, describe
from agentcore._handle import TaskHandle
from agentcore._progress import Signs
from agentcore._retry import RetryPolicy
from agentcore._rules.retry import Course, GaveUp
from agentcore._rules.task_states import TaskPriority, TaskState
from agentcore._tasks import BaseTask
from agentcore.abc import TaskRunner
from agentcore.errors import (
    AgentExecutionError,
    AgentInitializationError,
    AgentTimeoutError,
    CircuitOpenError,
    TaskStateError,
    TaskTimeoutError,
    text_of,
)


@final
class Turn:
    """A place in a line: set when it is granted, or when whoever waits is to look around.

    It keeps the priority that it was taken with: the task's own may be changed while it waits.

    Args:
        priority: how urgent it is.
        limit: until when it is waited for.

    Attributes:
        has_room: whether one of the places in the queue is held for it.
    """

    __slots__ = ("event", "granted", "has_room", "limit", "priority")

    def __init__(self, priority: TaskPriority, limit: Limit | None = None) -> None:
        self.priority: TaskPriority = priority
        self.limit: Limit | None = limit
        self.has_room: bool = False
        self.event: anyio.Event = anyio.Event()
        self.granted: bool = False

    def grant(self) -> None:
        """Let whoever waits here go on with a slot."""
        self.granted = True
        self.event.set()


@final
@attrs.define  # not frozen: that doubles what one costs
class Plan:
    """How a task is to be executed. Nobody changes it.

    Attributes:
        route: the way to the agent.
        total: the deadline of everything, waits and retries included.
        timeout: seconds for each execution.
        queue: the deadline of the first wait for a turn.
        queue_timeout: seconds for each wait for a turn.
        idle_timeout: seconds that an execution may go without telling of progress.
        retry: whether it is executed again.
        requires: what the agent has to be able to do.
    """

    route: Route
    total: Limit | None = None
    timeout: float | None = None
    queue: Limit | None = None
    queue_timeout: float | None = None
    idle_timeout: float | None = None
    retry: RetryPolicy | None = None
    requires: Collection[AgentCapability | str] = ()

    @classmethod
    def make(  # noqa: PLR0917 - names would cost a hundredth of a whole task
        cls,
        task: BaseTask,
        route: Route,
        timeout: float | None = None,
        deadline: float | None = None,
        queue_timeout: float | None = None,
        idle_timeout: float | None = None,
        retry: RetryPolicy | None = None,
        requires: Collection[AgentCapability | str] = (),
    ) -> Self:
        """Make a plan of what the caller asks for and the task itself says; `deadline` counts from now, in seconds.

        Raises:
            ConfigurationError: one of them is no number of seconds.
        """
        if timeout is not None:
            check_seconds("timeout", timeout)
        if task.timeout_ms is not None:
            timeout = min(task.timeout_ms / 1000, math.inf if timeout is None else timeout)
        if idle_timeout is not None:
            check_seconds("idle_timeout", idle_timeout)
        total = queue = None
        if deadline is not None:
            check_seconds("deadline", deadline)
            total = Limit(anyio.current_time() + deadline, "total", deadline)
        if queue_timeout is not None:
            check_seconds("queue_timeout", queue_timeout)
            queue = Limit(anyio.current_time() + queue_timeout, "queue", queue_timeout)
        return cls(route, total, timeout, queue, queue_timeout, idle_timeout, retry, requires)

    def limit(self) -> Limit | None:
        """Return the nearest deadline of an execution that begins now."""
        if self.timeout is None:
            return self.total
        return earlier(Limit(anyio.current_time() + self.timeout, "timeout", self.timeout), self.total)

    def limit_in_line(self, *, again: bool = False) -> Limit | None:
        """Return the nearest deadline of the wait for a turn.

        Args:
            again: whether it is one that begins now, after a retry.
        """
        if again and self.queue_timeout is not None:
            return earlier(Limit(anyio.current_time() + self.queue_timeout, "queue", self.queue_timeout), self.total)
        return self.total if self.queue is None else earlier(self.queue, self.total)


def earlier(limit: Limit, other: Limit | None) -> Limit:
    """Return the earlier one of two deadlines, the second one if they are the same."""
    return limit if other is None or limit.at < other.at else other


def check_limit(limit: Limit | None, task: BaseTask, where: str) -> None:
    """Raise if a deadline has passed before the task could begin.

    Raises:
        TaskTimeoutError: it has.
    """
    if limit is not None and anyio.current_time() >= limit.at:
        raise TaskTimeoutError(
            f"task {task.id} of type {task.type!r} exceeded its deadline {limit.which!r} of {limit.seconds:g} s {where}; "
            "allow more time or raise in_flight",
            {"task_id": task.id, "deadline": limit.which, "timeout": limit.seconds},
        )


@final
@attrs.define(eq=False)
class Trials:
    """The executions of a job, once one has failed that may be followed by another.

    Attributes:
        policy: whether it is executed again.
        requests: what `_interop.cancel_requests` gave when it began.
        course: what its failures have come to.
        wait: seconds between the last execution and the next.
        comes_at: when the next one may begin, on the clock of the event loop.
        attempt: how many there were when it was decided that there is a next one; 0 before.
        gave_up: why there is none; None if that was not the question.
    """

    policy: RetryPolicy
    requests: int
    course: Course
    wait: float = 0.0
    comes_at: float = 0.0
    attempt: int = 0
    gave_up: GaveUp | None = None


class Watcher(Protocol):
    """Answers for jobs: a group, for its children."""

    def child_ended(self, job: Job) -> None:
        """Hear that a job has been settled. Synchronous."""

    def child_crashed(self, job: Job, error: BaseException) -> None:
        """Hear of something that no ``except Exception`` may catch."""


class Keeper(Protocol):
    """Has what the jobs of a runtime share."""

    @property
    def signs(self) -> Signs:
        """Where progress is told."""

    def lending(self, job: Job | None) -> AbstractContextManager[object]:
        """Return a context manager for the time that a job waits."""


@final
class Job:
    """A task while it is executed.

    Attributes:
        task: the task.
        agent: what executes it, from then on.
        plan: how it is to be executed.
        parent: the job that it was made in, if that still runs.
        is_inner: whether it belongs to its caller, who waits for it: one that is run, and the child of a group.
        chain: the executions around it, which wait for it, if it is inner.
        watcher: what answers for its failure; None for the runtime, or the caller of one that is run.
        was_cut: whether it was cancelled because the runtime ends.
        handle: what the submitter holds; None for a task that is run.
        key: what its submitter knows it by; None if it has none.
        number: the how manieth it is that its runtime has accepted.
        scope: what cancelling the task cancels.
        turn: its place in line; None if it had a slot at once.
        has_slot: whether one of the slots in flight is its own now.
        keeper: has the slots, and hears of progress.
        enclosing: the job that it was made in.
        waiters: the jobs and asks that wait for its handle.
        waiting_for: how many children it waits for. Its slot is lent as long as there are any.
        cause: the exception behind the outcome.
        begun: whether it has made its first step.
        is_paused: whether it is between two executions and has no claim to a slot, whatever of the first one still waits.
        trials: its executions, once one has failed that may be followed by another.
        idle: ends the execution if it tells of no progress; None if nothing does.
        ended: whether it is settled.
    """

    __slots__ = (
        "agent",
        "begun",
        "cause",
        "chain",
        "enclosing",
        "ended",
        "handle",
        "has_slot",
        "idle",
        "is_inner",
        "is_paused",
        "keeper",
        "key",
        "number",
        "parent",
        "plan",
        "scope",
        "task",
        "trials",
        "turn",
        "waiters",
        "waiting_for",
        "was_cut",
        "watcher",
    )

    def __init__(
        self,
        task: BaseTask,
        plan: Plan,
        parent: Job | None,
        turn: Turn | None,
        keeper: Keeper,
        *,
        is_inner: bool = False,
        chain: object = None,
        watcher: Watcher | None = None,
    ) -> None:
        self.task: BaseTask = task
        self.keeper: Keeper = keeper
        # Of whatever runtime; what is run waits in it, so that its runtime finds its own job behind those of others.
        self.enclosing: Lender | None = current_job.get()
        self.waiters: list[Job | Call] = []
        self.agent: BaseAgent | None = None
        self.plan: Plan = plan
        self.parent: Job | None = parent
        self.is_inner: bool = is_inner
        self.chain: object = chain
        self.watcher: Watcher | None = watcher
        self.was_cut: bool = False
        self.turn: Turn | None = turn
        self.number: int = 0
        self.has_slot: bool = turn is None
        self.handle: TaskHandle | None = None
        # Besides the one that AnyIO gives to each task: that cannot be told why.
        # CancelScope() initialises each scope twice (AnyIO 4.16).
        self.scope: anyio.CancelScope = anyio.move_on_after(None)  # noqa: ASYNC122 - has no deadline
        self.waiting_for: int = 0
        self.cause: BaseException | None = None
        self.begun: bool = False
        self.is_paused: bool = False
        self.trials: Trials | None = None
        self.idle: Idle | None = None
        self.key: str | None = None
        self.ended: bool = False

    def lending(self) -> AbstractContextManager[object]:
        """Return a context manager for the time that the job waits: its slot is free for others."""
        return self.keeper.lending(None if self.ended else self)

    @property
    def attempt(self) -> int:
        """Which execution of the task this is."""
        return self.task.attempt

    def progressed(self, task: BaseTask | None, value: object, fields: Mapping[str, Any]) -> None:
        """Hear of progress inside of it: of its task, or of what it waits for."""
        watches: list[Idle] = []
        job: Job | None = self
        while job is not None:
            if job.idle is not None:
                watches.append(job.idle)
            # Who waits for what makes progress is not idle.
            job = job.parent if job.is_inner else None
        told = task if task is self.task and self.keeper.signs.is_heard and not self.ended else None
        if watches or told is not None:
            self.keeper.signs.note(watches, told, value, fields)

    def context(self, runner: TaskRunner, route: Route) -> AgentContext:
        """Return the context of an execution that begins now, with its own deadlines."""
        context = AgentContext(self.task)
        context._runner, context._limit, context._job = runner, self.plan.limit(), self
        context._attempt = self.attempt
        if self.plan.idle_timeout is not None:
            context._idle = self.idle = Idle(self.plan.idle_timeout)
        if route.post is not None:
            context._call = Call()  # by which the supervisor of the agent can end the execution
        return context

    @property
    def name(self) -> str:
        """What it is called in a circle of waits."""
        return f"task {self.task.id}"

    def deadline_of(self, error: BaseException | None) -> str | None:
        """Return which of the task's own deadlines an error tells of; None if it tells of none, or of another task's."""
        # A user may have made the error with any details: `told` expects this to raise.
        error = _origin(error)
        if isinstance(error, TaskTimeoutError) and error.details.get("task_id") == self.task.id:
            return str(error.details.get("deadline"))
        if isinstance(error, AgentTimeoutError) and self.agent is not None:
            own = error.details.get("agent") == self.agent.name
            return str(error.details["deadline"]) if own and "deadline" in error.details else None
        return None

    @property
    def has_failed(self) -> bool:
        """Whether somebody should learn of an error. What is no Exception is raised by the block as it is, not by the task."""
        state = self.task.state
        if state is TaskState.COMPLETED or (self.cause is not None and not isinstance(self.cause, Exception)):
            return False
        return state is TaskState.FAILED or (state is TaskState.CANCELED and self.cause is not None)

    def was_refused(self, error: BaseException | None) -> bool:
        """Tell whether the task could not be started: somebody else executes it then, and will end it."""
        if not isinstance(error, TaskStateError) or self.agent is not None:
            return False
        return error.details.get("task_id") == self.task.id

    def conclude(self, result: AgentResult | None, error: BaseException | None, *, cancelled: bool) -> None:
        """Move the task to its final state, unless somebody has done that by hand."""
        self.ended = True
        self.cause = error
        task = self.task
        if self.was_refused(error):
            return
        try:
            if result is not None and result.success:
                task.complete(result.output if isinstance(result.output, dict) else {"result": result.output})
            elif cancelled or task.cancel_requested:
                task.cancel(None if task.cancel_requested else "the scope around it was cancelled")
            else:
                counts = task.state is TaskState.RUNNING and not isinstance(_origin(error), CircuitOpenError)
                task.fail(self.told(result, error), counts=counts)
        except TaskStateError:
            pass  # somebody has ended it by hand

    def told(self, result: AgentResult | None, error: BaseException | None) -> dict[str, Any]:
        """Return what the task keeps of a failure, whatever the objects of users do."""
        try:
            return self._failure(result, error)
        except Exception as broken:  # noqa: BLE001 - objects of users are asked; the task has to end whatever they do
            return describe(error if error is not None else broken)

    def _failure(self, result: AgentResult | None, error: BaseException | None) -> dict[str, Any]:
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
        # What the agent has said goes before what is found here, by the same names.
        if (deadline := self.deadline_of(error)) is not None:
            failure = {"deadline": deadline, **failure}
        if self.trials is not None and self.trials.gave_up is not None:
            failure = {"attempts": self.task.attempt, "gave_up": str(self.trials.gave_up), **failure}
        return failure


def _origin(error: BaseException | None) -> BaseException | None:
    """Return what an agent was to handle, also if that failed; and what its start has failed by."""
    if isinstance(error, AgentExecutionError) and error.errors:
        error = error.errors[0]
    return error.__cause__ if isinstance(error, AgentInitializationError) else error
