"""The life of a task: its states, its transitions, and the one table that both follow.

       ┌─────retry───────┐
       ▼                 │
    PENDING ──start──▶ RUNNING ──complete──▶ COMPLETED
       │                 │
       ├──── fail ───────┼─────fail─────────▶ FAILED
       └──── cancel ─────┴─────cancel───────▶ CANCELED

A state without a way out is terminal, and terminal is final. ``PENDING`` can fail without having run: a task whose
deadline passes in the queue never starts. Between two executions it is ``PENDING`` as well.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final


class TaskState(enum.StrEnum):
    """Where a task is in its life."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELED = "canceled"


class TaskPriority(enum.IntEnum):
    """How urgent a task is; a greater value goes first. Serialised by name."""

    LOW = 0
    NORMAL = 1
    HIGH = 2
    CRITICAL = 3


INITIAL: Final = TaskState.PENDING

# One mapping a transition, from the states that allow it to the state that it leads to. A look-up in START is the
# whole check of `start()`: StrEnum members hash as strings do, in C, so this costs less than a chain of comparisons.
START: Final[Mapping[TaskState, TaskState]] = {TaskState.PENDING: TaskState.RUNNING}
COMPLETE: Final[Mapping[TaskState, TaskState]] = {TaskState.RUNNING: TaskState.COMPLETED}
FAIL: Final[Mapping[TaskState, TaskState]] = {
    TaskState.PENDING: TaskState.FAILED,
    TaskState.RUNNING: TaskState.FAILED,
}
CANCEL: Final[Mapping[TaskState, TaskState]] = {
    TaskState.PENDING: TaskState.CANCELED,
    TaskState.RUNNING: TaskState.CANCELED,
}
RETRY: Final[Mapping[TaskState, TaskState]] = {TaskState.RUNNING: TaskState.PENDING}

TRANSITIONS: Final[Mapping[str, Mapping[TaskState, TaskState]]] = {
    "start": START,
    "complete": COMPLETE,
    "fail": FAIL,
    "cancel": CANCEL,
    "retry": RETRY,
}

TERMINAL: Final[frozenset[TaskState]] = frozenset(TaskState) - {
    source for table in TRANSITIONS.values() for source in table
}


def allowed_transitions(state: TaskState) -> list[str]:
    """Return the names of the transitions that a state allows, in the order of the table."""
    return [name for name, table in TRANSITIONS.items() if state in table]
