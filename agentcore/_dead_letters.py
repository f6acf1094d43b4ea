"""What could not be done although it was tried again: kept for somebody who looks at it, and may have it done once more."""

# No `from __future__ import annotations` here: the fields of public classes are read at run time, by cattrs and others.
# Their `__module__` reads agentcore, where names in strings could not be found.

from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from typing import Any, Final, Literal, Self, TypeAlias, final

import attrs

from agentcore import _interop
from agentcore._events import to_datetime
from agentcore._handle import TaskHandle
from agentcore._rules.task_states import TaskPriority
from agentcore._tasks import BaseTask
from agentcore.errors import TaskError, TaskNotFoundError

_Requeue: TypeAlias = "Callable[[], Awaitable[TaskHandle]]"


@final
@attrs.frozen(kw_only=True)
class DeadLetter:
    """What was given up.

    Attributes:
        kind: what it is.
        task_id: its identifier.
        type: what kind of work.
        input: what the work needs; empty if its agent has let go of it.
        priority: how urgent it was.
        error: what went wrong last.
        attempts: how many executions there were.
        at: when it was given up, in UTC.
        metadata: what belongs to it but not to its input.
        trace_id: identifies the larger whole that it is a part of.
        parent_id: id of the task that it was a child of.
    """

    kind: Literal["task", "message"] = "task"
    task_id: str
    type: str
    input: Mapping[str, Any]
    priority: TaskPriority
    error: Mapping[str, Any]
    attempts: int
    at: datetime
    metadata: Mapping[str, Any]
    trace_id: str | None = None
    parent_id: str | None = None

    @classmethod
    def of_task(cls, task: BaseTask) -> Self:
        """Make the letter of a task that has failed."""
        return cls(
            task_id=task.id,
            type=task.type,
            input=dict(task.input or {}),
            priority=task.priority,
            error=dict(task.error or {}),
            attempts=task.attempt,
            at=to_datetime(_interop.wall_time()),
            metadata=dict(task.metadata or {}),
            trace_id=task.trace_id,
            parent_id=task.parent_id,
        )


@final
class DeadLetters:
    """The tasks of a runtime that have failed for good although they had a `RetryPolicy`; the newest of them.

        for letter in runtime.tasks.dead_letters.list():
            print(letter.type, letter.attempts, letter.error["message"])
            await runtime.tasks.dead_letters.requeue(letter.task_id)

    Args:
        capacity: how many are kept.

    Attributes:
        dropped: how many were not kept, because newer ones came.
    """

    def __init__(self, capacity: int) -> None:
        self.dropped: int = 0
        self._capacity: Final = capacity
        self._letters: dict[str, tuple[DeadLetter, _Requeue]] = {}
        self._under_way: set[str] = set()

    def __repr__(self) -> str:
        return f"<DeadLetters {len(self)} of {self._capacity}, {self.dropped} dropped>"

    def __len__(self) -> int:
        """Return how many are kept."""
        return len(self._letters)

    def list(self) -> list[DeadLetter]:
        """Return all that are kept, oldest first."""
        return [letter for letter, _ in list(self._letters.values())]  # copied at once: health checks are other threads

    def get(self, task_id: str) -> DeadLetter:
        """Return one.

        Raises:
            TaskNotFoundError: there is none of this id.
        """
        return self._find(task_id)[0]

    async def requeue(self, task_id: str) -> TaskHandle:
        """Submit a fresh task with the same type, input, priority, metadata, `trace_id` and `parent_id`. Always a checkpoint.

        It is executed as the old one was to be: the policy and the timeouts are the same, deadlines count anew. It has the
        key of the old one, and is not submitted if that stands for another task by now. The letter goes when the task is
        accepted, and stays if it is not.

        Returns:
            The handle of the new task, or of the one that the key stands for.

        Raises:
            TaskNotFoundError: there is no letter of this id.
            TaskError: somebody else is doing this; or the key stands for a task of another type by now.
            ConfigurationError: its agent has let go of its input.
            TaskRoutingError: there is neither a handler nor an agent for it any more.
            TaskTimeoutError: its deadline passed before the queue had room.
            RuntimeClosedError: the runtime takes no tasks.
            AgentError: this is not the event loop of the runtime.
        """
        found = self._find(task_id)
        if task_id in self._under_way:
            raise TaskError(
                f"a dead letter can be requeued once: got {task_id!r}, which somebody else is submitting; wait for him",
                {"task_id": task_id},
            )
        self._under_way.add(task_id)
        try:
            handle = await found[1]()
        finally:
            self._under_way.discard(task_id)
        if self._letters.get(task_id) is found:
            del self._letters[task_id]
        return handle

    def discard(self, task_id: str) -> DeadLetter:
        """Take one out and return it.

        Raises:
            TaskNotFoundError: there is none of this id.
        """
        letter, _ = self._find(task_id)
        del self._letters[task_id]
        return letter

    def clear(self) -> int:
        """Take all out and return how many there were."""
        count = len(self._letters)
        self._letters.clear()
        return count

    def add(self, letter: DeadLetter, requeue: _Requeue) -> None:
        """Keep a letter, and forget the oldest one if there are too many.

        Args:
            letter: what was given up.
            requeue: has it done once more.
        """
        # At the end, also if there is one of this id: a task may be handed over with the id of an earlier one.
        self._letters.pop(letter.task_id, None)
        self._letters[letter.task_id] = letter, requeue
        if len(self._letters) > self._capacity:
            del self._letters[next(iter(self._letters))]
            self.dropped += 1

    def _find(self, task_id: str) -> tuple[DeadLetter, _Requeue]:
        if (found := self._letters.get(task_id)) is not None:
            return found
        raise TaskNotFoundError(
            f"there is no dead letter of this id: got {task_id!r}; the newest {self._capacity} are kept (dead_letters)",
            {"task_id": task_id},
        )
