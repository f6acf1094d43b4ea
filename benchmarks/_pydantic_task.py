"""What the tasks of agentcore are compared with: the same task as a pydantic model, as the specification draws it.

Written as somebody would who knows pydantic: no validation of assignments, no validators of its own, a table for the
transitions. It has the fields of `agentcore.BaseTask`, the same events (as dictionaries) and the same refusals. It does
without the lock, the monotonic clock and the caps, all of which cost `agentcore.BaseTask` something.
"""

# No `from __future__ import annotations` here: pydantic reads the annotations.

import itertools
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final, Self
from uuid import uuid4

from pydantic import BaseModel, Field

from agentcore import TaskPriority, TaskState

START: Final = {TaskState.PENDING: TaskState.RUNNING}
COMPLETE: Final = {TaskState.RUNNING: TaskState.COMPLETED}

_prefix: Final = f"{os.urandom(6).hex()}-"
_counter: Final = itertools.count(1)


def _now() -> datetime:
    return datetime.now(UTC)


def _uuid() -> str:
    return str(uuid4())


def _counted() -> str:
    return f"{_prefix}{next(_counter)}"


class PydanticTask(BaseModel):
    """A task with a random identifier."""

    id: str = Field(default_factory=_uuid)
    type: str
    state: TaskState = TaskState.PENDING
    priority: TaskPriority = TaskPriority.NORMAL
    input: dict[str, Any] = Field(default_factory=dict)
    output: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)
    trace_id: str | None = None
    parent_id: str | None = None
    timeout_ms: int | None = None
    attempt: int = 0
    failures: int = 0
    created_at: datetime = Field(default_factory=_now)
    started_at: datetime | None = None
    finished_at: datetime | None = None
    cancel_reason: str | None = None
    cancel_requested: bool = False
    checkpoints: list[dict[str, Any]] = Field(default_factory=list)
    events: list[dict[str, Any]] = Field(default_factory=list)

    @classmethod
    def create(cls, type: str, input: dict[str, Any], **fields: Any) -> Self:
        """Make a task."""
        return cls(type=type, input=input, **fields)

    def start(self) -> Self:
        """Begin: PENDING → RUNNING."""
        self.state = self._after("start", START)
        self.attempt += 1
        self.started_at = now = _now()
        self._note("task_started", now)
        return self

    def complete(self, output: dict[str, Any]) -> Self:
        """End with a result: RUNNING → COMPLETED."""
        self.state = self._after("complete", COMPLETE)
        self.output = output
        self.finished_at = now = _now()
        self._note("task_completed", now)
        return self

    def _after(self, transition: str, table: Mapping[TaskState, TaskState]) -> TaskState:
        state = table.get(self.state)
        if state is None:
            raise ValueError(f"task {self.id} cannot {transition}: it is {self.state.name}")
        return state

    def _note(self, event_type: str, at: datetime) -> None:
        self.events.append({"sequence": len(self.events) + 1, "event_type": event_type, "at": at, "data": {}})


class CountedPydanticTask(PydanticTask):
    """The same with a prefix and a counter for an identifier, as agentcore has it: uuid4 takes its share of the time."""

    id: str = Field(default_factory=_counted)
