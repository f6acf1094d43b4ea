"""Which task a key stands for, so that what is submitted twice is done once."""

from __future__ import annotations

from typing import final

from agentcore._handle import TaskHandle
from agentcore._rules.task_states import TaskState
from agentcore.errors import ConfigurationError, TaskError


class KnownKeyError(Exception):
    """Tells who waits to submit a task that it has been submitted meanwhile. Nobody else sees it."""

    def __init__(self, handle: TaskHandle) -> None:
        self.handle = handle


def check_key(key: object) -> None:
    """Accept strings that are not empty.

    Raises:
        ConfigurationError: it is something else.
    """
    if not isinstance(key, str) or not key:
        raise ConfigurationError(
            f"key of a task must be a string that is not empty: got {key!r}; leave it out for a task that is one of its own",
            {"name": "key", "value": key},
        )


@final
class Keys:
    """The keys of one runtime: of tasks that run or wait, and of those that are COMPLETED and remembered."""

    def __init__(self) -> None:
        self._handles: dict[str, TaskHandle] = {}
        self._by_number: dict[int, str] = {}

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._handles)

    def find(self, key: str, task_type: str) -> TaskHandle | None:
        """Return the handle of the task that a key stands for; None if it stands for none.

        Raises:
            TaskError: it is of another type.
        """
        handle = self._handles.get(key)
        if handle is not None and handle.task.type != task_type:
            raise TaskError(
                f"a key stands for one task: got {key!r} for one of type {task_type!r}, but task {handle.id} of type "
                f"{handle.task.type!r} has it; choose another key",
                {"key": key, "type": task_type, "task_id": handle.id},
            )
        return handle

    def check(self, key: str, task_type: str) -> None:
        """Raise if a key has come to stand for a task.

        Raises:
            KnownKeyError: it has.
            TaskError: it is of another type.
        """
        if (handle := self.find(key, task_type)) is not None:
            raise KnownKeyError(handle)

    def enter(self, key: str, handle: TaskHandle, number: int) -> None:
        """Have a key stand for a task; `number` is that of its job, since an id may come twice."""
        self._handles[key] = handle
        self._by_number[number] = key

    def leave(self, number: int, state: TaskState) -> None:
        """Note that a task has ended. The key of one that is not COMPLETED is free: it may be tried again."""
        if state is not TaskState.COMPLETED:
            self.forget(number)

    def forget(self, number: int) -> None:
        """Set the key of a task free, if it has one."""
        key = self._by_number.pop(number, None)
        if key is not None:
            del self._handles[key]
