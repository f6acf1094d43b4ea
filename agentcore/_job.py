"""A task while it is executed, and its place in line."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol, Self, final

import anyio
import attrs

from agentcore._agent_records import AgentResult, Call, Limit, check_seconds
from agentcore._agents import BaseAgent
from agentcore._context import Lender, current_job
from agentcore._directory import Route, describe
from agentcore._handle import TaskHandle
from agentcore._rules.task_states import TaskPriority, TaskState
from agentcore._tasks import BaseTask
from agentcore.errors import AgentTimeoutError, TaskStateError, TaskTimeoutError, text_of


@final
class Turn:
    """A place in a line: set when it is granted, or when the line is dissolved.

    It keeps the priority that it was taken with: the task's own may be changed while it waits.
    """

    __slots__ = ("event", "granted", "priority")

    def __init__(self, priority: TaskPriority) -> None:
        self.priority: TaskPriority = priority
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
        total: the deadline of everything, the wait for a turn included.
        timeout: seconds for the execution alone.
    """

    route: Route
    total: Limit | None = None
    timeout: float | None = None

    @classmethod
    def make(cls, task: BaseTask, route: Route, timeout: float | None, deadline: float | None) -> Self:
        """Make a plan of what the caller asks for and the task itself says; `deadline` counts from now, in seconds.

        Raises:
            ConfigurationError: one of them is no number of seconds.
        """
        if timeout is not None:
            check_seconds("timeout", timeout)
        if task.timeout_ms is not None:
            timeout = min(task.timeout_ms / 1000, math.inf if timeout is None else timeout)
        if deadline is None:
            return cls(route, None, timeout)
        check_seconds("deadline", deadline)
        return cls(route, Limit(anyio.current_time() + deadline, "total", deadline), timeout)

    def limit(self) -> Limit | None:
        """Return the nearest deadline of an execution that begins now."""
        if self.timeout is None:
            return self.total
        own = Limit(anyio.current_time() + self.timeout, "timeout", self.timeout)
        return own if self.total is None or own.at < self.total.at else self.total

    def check(self, task: BaseTask, where: str) -> None:
        """Raise if the total deadline has passed.

        Raises:
            TaskTimeoutError: it has.
        """
        if self.total is not None and anyio.current_time() >= self.total.at:
            raise TaskTimeoutError(
                f"task {task.id} of type {task.type!r} exceeded its deadline 'total' of {self.total.seconds:g} s {where}; "
                "allow more time or raise in_flight",
                {"task_id": task.id, "deadline": "total", "timeout": self.total.seconds},
            )


class Watcher(Protocol):
    """Answers for jobs: a group, for its children."""

    def child_ended(self, job: Job) -> None:
        """Hear that a job has been settled. Synchronous."""

    def child_crashed(self, job: Job, error: BaseException) -> None:
        """Hear of something that no ``except Exception`` may catch."""


class SlotKeeper(Protocol):
    """Has the slots of a runtime."""

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
        number: the how manieth it is that its runtime has accepted.
        scope: what cancelling the task cancels.
        turn: its place in line; None if it had a slot at once.
        has_slot: whether one of the slots in flight is its own now.
        slots: where the slot comes from.
        enclosing: the job that it was made in.
        waiters: the jobs and asks that wait for its handle.
        waiting_for: how many children it waits for. Its slot is lent as long as there are any.
        cause: the exception behind the outcome.
        begun: whether it has made its first step.
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
        "is_inner",
        "number",
        "parent",
        "plan",
        "scope",
        "slots",
        "task",
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
        slots: SlotKeeper,
        *,
        is_inner: bool = False,
        chain: object = None,
        watcher: Watcher | None = None,
    ) -> None:
        self.task: BaseTask = task
        self.slots: SlotKeeper = slots
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
        self.ended: bool = False

    def lending(self) -> AbstractContextManager[object]:
        """Return a context manager for the time that the job waits: its slot is free for others."""
        return self.slots.lending(None if self.ended else self)

    @property
    def name(self) -> str:
        """What it is called in a circle of waits."""
        return f"task {self.task.id}"

    def deadline_of(self, error: BaseException | None) -> str | None:
        """Return which of the task's own deadlines an error tells of; None if it tells of none, or of another task's."""
        # A user may have made the error with any details: `_told` expects this to raise.
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

    def conclude(self, result: AgentResult | None, error: BaseException | None, *, cancelled: bool) -> None:
        """Move the task to its final state, unless somebody has done that by hand."""
        self.ended = True
        self.cause = error
        task = self.task
        if isinstance(error, TaskStateError) and error.details.get("task_id") == task.id and self.agent is None:
            return  # it could not be started: somebody else executes it, and will end it
        try:
            if result is not None and result.success:
                task.complete(result.output if isinstance(result.output, dict) else {"result": result.output})
            elif cancelled or task.cancel_requested:
                task.cancel(None if task.cancel_requested else "the scope around it was cancelled")
            else:
                task.fail(self._told(result, error))
        except TaskStateError:
            pass  # somebody has ended it by hand

    def _told(self, result: AgentResult | None, error: BaseException | None) -> dict[str, Any]:
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
        deadline = self.deadline_of(error)
        return failure if deadline is None else {"deadline": deadline, **failure}
