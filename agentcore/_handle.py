"""What a submitter holds of a task that somebody else executes."""

from __future__ import annotations

import weakref
from contextlib import AbstractContextManager
from typing import Any, Protocol, final

import anyio
import anyio.lowlevel

from agentcore._rules.task_states import TaskState
from agentcore._task_result import TaskResult
from agentcore._tasks import BaseTask
from agentcore.errors import CoreError, TaskCanceledError, TaskExecutionError, TaskTimeoutError, text_of


class HandleOwner(Protocol):
    """Executes the tasks behind handles."""

    def cancel(self, handle: TaskHandle, reason: str | None) -> bool:
        """Begin to cancel a task; False if it has ended already."""

    def waiting(self, handle: TaskHandle) -> AbstractContextManager[object]:
        """Return a context manager for the time that a caller waits: inside a job, its slot is free for others."""

    def retrieved(self, handle: TaskHandle) -> None:
        """Hear that somebody has learned how the task ended."""


@final
class TaskHandle:
    """A task that was submitted: wait for it, cancel it, look at it.

    It belongs to the event loop of the runtime that gave it. Any number of tasks may wait at once.
    """

    __slots__ = ("__weakref__", "_abandonment", "_cause", "_done", "_event", "_loss", "_owner", "_task")

    def __init__(self, task: BaseTask, owner: HandleOwner) -> None:
        self._task = task
        self._owner = owner
        self._done = False
        self._cause: BaseException | None = None
        # The owner's notes on a failure that nobody has seen: its number, or 0 if it is one too many to be kept.
        self._loss: int | None = None
        self._abandonment: weakref.finalize[..., TaskHandle] | None = None
        # Made by the first one who has to wait: an outcome that is there already costs no event.
        self._event: anyio.Event | None = None

    def __repr__(self) -> str:
        return f"<TaskHandle {self._task.id} of type {self._task.type!r}, {self._task.state.name}>"

    @property
    def task(self) -> BaseTask:
        """The task itself."""
        return self._task

    @property
    def id(self) -> str:
        """The task's identifier."""
        return self._task.id

    @property
    def state(self) -> TaskState:
        """Where the task is in its life."""
        return self._task.state

    @property
    def is_done(self) -> bool:
        """Whether the task has ended and what it started has been unwound."""
        return self._done

    @property
    def retried(self) -> int:
        """How often the task has been, or is to be, executed again."""
        task = self._task
        return max(0, task.attempt - 1 + self.waiting_for_retry)

    @property
    def waiting_for_retry(self) -> bool:
        """Whether the task waits for its next execution."""
        return self._task.not_before is not None

    def progress(self) -> Any:
        """Return what the task has told last of how far it has come, by `AgentContext.progress`; None before."""
        return self._task._progress

    async def wait(self) -> TaskResult:
        """Wait until the task has ended, however it did. Always a checkpoint. Leaving by cancellation harms nothing.

        Returns:
            What is known of it then.

        Raises:
            AgentDeadlockError: the task waits for an agent that waits here, in a chain of calls.
        """
        await self._wait()
        return TaskResult.from_task(self._task)

    async def result(self) -> dict[str, Any]:
        """Wait until the task has ended and return its output. Always a checkpoint. Leaving by cancellation harms nothing.

        Raises:
            TaskExecutionError: the task failed; ``__cause__`` is the exception behind it, if there was one.
            TaskTimeoutError: its deadline passed before it could begin.
            TaskCanceledError: it was cancelled. The caller is not.
            AgentDeadlockError: the task waits for an agent that waits here, as a chain of calls.
        """
        await self._wait()
        return outcome_of(self._task, self._cause)

    def cancel(self, reason: str | None = None) -> bool:
        """Cancel the task. It is CANCELED when what it runs has been unwound; `wait` for that.

        Args:
            reason: why, for whoever waits.

        Returns:
            False if it has ended already; then nothing changes.
        """
        return self._owner.cancel(self, reason)

    async def _wait(self) -> None:
        if self._done:
            await anyio.lowlevel.checkpoint()
        else:
            if self._event is None:
                self._event = anyio.Event()
            with self._owner.waiting(self):
                await self._event.wait()
        self._owner.retrieved(self)

    def _finish(self, cause: BaseException | None) -> None:
        """Wake up who waits; called once by the owner."""
        self._done = True
        self._cause = cause
        if self._event is not None:
            self._event.set()


def outcome_of(task: BaseTask, cause: BaseException | None) -> dict[str, Any]:
    """Return the output of a task that has ended.

    Raises:
        TaskExecutionError, TaskTimeoutError, TaskCanceledError: it has none; see `error_of`.
    """
    if task.state is TaskState.COMPLETED:
        assert task.output is not None  # `complete` has set it  # noqa: S101
        return task.output
    error = error_of(task, cause)
    assert error is not None  # what has ended otherwise has one  # noqa: S101
    raise error


def error_of(task: BaseTask, cause: BaseException | None) -> CoreError | None:
    """Return the error of a task that has ended without an output; None if it is COMPLETED.

    It is a fresh object each time, so that the tracebacks of several waiters do not grow into each other.
    """
    if task.state is TaskState.COMPLETED:
        return None
    error: CoreError
    if task.state is TaskState.CANCELED:
        error = TaskCanceledError(
            f"task {task.id} of type {task.type!r} was cancelled: {task.cancel_reason or 'no reason was given'}",
            {"task_id": task.id, "type": task.type, "reason": task.cancel_reason},
        )
    elif isinstance(cause, TaskTimeoutError) and (cause.details or {}).get("task_id") == task.id:
        return TaskTimeoutError(cause.message, cause.details)
    else:
        said = task.error or {}
        error = TaskExecutionError(
            f"task {task.id} of type {task.type!r} failed in attempt {task.attempt}: "
            f"{text_of(said.get('error_type', 'error'))}: {text_of(said.get('message', said.get('error', said)))}",
            {"task_id": task.id, "type": task.type, "attempt": task.attempt, "error": task.error},
        )
    error.__cause__ = cause
    return error
