"""What is known of tasks: of one at a moment, of all of a runtime."""

# No `from __future__ import annotations` here: the fields of public classes are read at run time, by cattrs and others.
# Their `__module__` reads agentcore, where names in strings could not be found.

from typing import Any, Self, final

import attrs

from agentcore._rules.task_states import TaskState
from agentcore._tasks import BaseTask, _transition


@final
@attrs.frozen(kw_only=True)
class TaskResult:
    """What is known of a task at one moment.

    Attributes:
        task_id: the task's identifier.
        type: its kind of work.
        state: where it is in its life.
        success: whether it is COMPLETED.
        output: what the work gave.
        error: what went wrong.
        duration_ms: milliseconds that the execution has taken; None if it has not begun.
        attempt: how many executions have begun.
    """

    task_id: str
    type: str
    state: TaskState
    success: bool
    output: dict[str, Any] | None
    error: dict[str, Any] | None
    duration_ms: int | None
    attempt: int

    @classmethod
    def from_task(cls, task: BaseTask) -> Self:
        """Take the result of a task, in whatever state it is."""
        with _transition:
            return cls(
                task_id=task._id,
                type=task._type,
                state=task._state,
                success=task._state is TaskState.COMPLETED,
                output=task._output,
                error=task._error,
                duration_ms=task.duration_ms,
                attempt=task._attempt,
            )


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
        retried: how often a task was to be executed again.
        waiting_for_retry: tasks that wait for that moment now.
    """

    accepted: int
    completed: int
    failed: int
    canceled: int
    in_flight: int
    queued: int
    retried: int = 0
    waiting_for_retry: int = 0
