"""What tasks are made of and what is kept of them: checkpoints, their history as it is stored, the check of values."""

# No `from __future__ import annotations` here: the fields of public classes are read at run time, by cattrs and others.
# Their `__module__` reads agentcore, where names in strings could not be found.

import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any, final

import attrs

from agentcore._codec import Timestamp
from agentcore._rules.task_states import TaskPriority, TaskState
from agentcore.errors import ConfigurationError


@final
@attrs.frozen(kw_only=True)
class Checkpoint:
    """Progress that a task has saved.

    Attributes:
        at: when, in UTC.
        data: what the task needs to go on from here.
    """

    at: datetime
    data: Mapping[str, Any]


@attrs.frozen
class StoredEvent:
    """An event as `BaseTask.to_dict` writes it."""

    sequence: int
    event_type: str
    at: Timestamp
    data: Mapping[str, Any]


@attrs.frozen
class StoredCheckpoint:
    """A checkpoint as `BaseTask.to_dict` writes it."""

    at: Timestamp
    data: Mapping[str, Any]


@attrs.frozen(kw_only=True)
class TaskHistory:
    """What `to_dict` writes besides the arguments of the class: all that has happened to a task."""

    state: TaskState
    output: dict[str, Any] | None
    error: dict[str, Any] | None
    attempt: int
    failures: int
    created_at: Timestamp
    started_at: Timestamp | None
    finished_at: Timestamp | None
    duration_ms: int | None
    cancel_reason: str | None
    cancel_requested: bool
    events: list[StoredEvent]
    checkpoints: list[StoredCheckpoint]
    not_before: Timestamp | None = None  # older versions did not write it


def unusable(name: str, value: object, rule: str, remedy: str) -> ConfigurationError:
    """Return the error for a value of a task that cannot be used."""
    return ConfigurationError(
        f"{name} of a task must be {rule}: got {value!r}; {remedy}", {"name": name, "value": value}
    )


def to_dict_of(name: str, value: object) -> dict[str, Any]:
    """Return a mapping as a dictionary, the very one if it is one.

    Raises:
        ConfigurationError: it is no mapping.
    """
    if isinstance(value, dict):
        return value
    if isinstance(value, Mapping):
        return dict(value)
    raise unusable(name, value, "a mapping", "wrap the value, for instance {'value': ...}")


def to_priority(value: object) -> TaskPriority:
    """Return the priority that a member, its name or its value stands for.

    Raises:
        ConfigurationError: it stands for none.
    """
    if isinstance(value, str) and value.upper() in TaskPriority.__members__:
        return TaskPriority[value.upper()]
    if isinstance(value, int) and not isinstance(value, bool) and value in TaskPriority._value2member_map_:
        return TaskPriority(value)
    raise unusable("priority", value, f"one of {', '.join(TaskPriority.__members__)}", "use a member of TaskPriority")


def check_timeout_ms(name: str, value: object) -> None:
    """Accept numbers of milliseconds, 0 or more.

    Raises:
        ConfigurationError: it is something else.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise unusable(name, value, "a number of milliseconds, 0 or more", "use None for no limit")


def to_timeout_ms(value: object) -> int:
    """Return a whole number of milliseconds, 0 or more.

    Raises:
        ConfigurationError: it is something else.
    """
    check_timeout_ms("timeout_ms", value)
    if value != value // 1 or value == math.inf:  # type: ignore[operator]
        raise unusable("timeout_ms", value, "a whole number of milliseconds", "round it")
    return int(value)


def check_ids(**ids: object) -> None:
    """Accept None and strings.

    Raises:
        ConfigurationError: one is something else.
    """
    for name, value in ids.items():
        if value is not None and not isinstance(value, str):
            raise unusable(name, value, "a string", "write str(...) around it")
