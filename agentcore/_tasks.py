"""Tasks: a unit of work with its input, its state and what happened to it.

A task does nothing by itself. Its state moves only along the table of `_rules.task_states`; whoever executes it calls
`start`, then one of `complete`, `fail`, `cancel` and `retry`. Transitions may race in several threads: of several that would end
a task exactly one wins, the others get a `TaskStateError` and change nothing.
"""

# No `from __future__ import annotations` here: the fields of public classes are read at run time, by cattrs and others,
# and their `__module__` reads agentcore, where the names in strings could not be found.

import threading
from collections.abc import Awaitable, Mapping
from datetime import datetime
from typing import Any, ClassVar, Final, NoReturn, Self, TypeVar

import anyio
import attrs

from agentcore import _codec, _interop
from agentcore._events import Event, to_datetime
from agentcore._interop import sources
from agentcore._rules import task_states as rules
from agentcore._rules.task_states import TaskPriority, TaskState
from agentcore._task_records import (
    Checkpoint,
    StoredCheckpoint,
    StoredEvent,
    TaskHistory,
    check_ids,
    check_timeout_ms,
    to_dict_of,
    to_priority,
    to_timeout_ms,
    unusable,
)
from agentcore.errors import TaskError, TaskStateError, TaskTimeoutError

T = TypeVar("T")

# One lock for the transitions of all tasks, held for a look-up and a few stores. A lock in each task would be a third
# of its memory. Re-entrant: a finaliser or a signal handler may end a task while another one is being moved.
# Where it is hot it is taken without `with`, which costs twice as much as acquire and release (3.11).
_transition: Final = threading.RLock()

_NO_DATA: Final[Mapping[str, Any]] = {}


@attrs.define(kw_only=True, eq=False, repr=False)
class BaseTask:
    """A unit of work.

    Subclasses add fields with `attrs.define(kw_only=True, eq=False)`; without the decorator they cannot be instantiated.
    A subclass that has an `__attrs_post_init__` calls that of super() first. Two tasks are equal only if they are the same
    object.

    Args:
        type: what kind of work; a runtime finds the handler or agent by it.
        input: what the work needs.
        id: unique identifier; made if omitted.
        priority: how urgent; a member of TaskPriority, its name or its value.
        metadata: anything that belongs to the task but not to its input.
        trace_id: identifies the larger whole that the task is a part of.
        parent_id: id of the task that this one is a child of.
        timeout_ms: milliseconds that one execution may take; None for no limit.

    Raises:
        ConfigurationError: a value is not usable.
        TypeError: the subclass is not decorated.
    """

    schema_version: ClassVar[int] = 1
    """Version of what `to_dict` gives."""
    max_events: ClassVar[int] = 256
    """How many events a task keeps, the newest."""
    max_checkpoints: ClassVar[int] = 16
    """How many checkpoints a task keeps, the newest."""

    _type: str
    input: dict[str, Any] = attrs.field(factory=dict)
    _id: str = attrs.field(factory=_interop.new_id)
    priority: TaskPriority = TaskPriority.NORMAL
    _metadata: dict[str, Any] | None = None
    trace_id: str | None = None
    parent_id: str | None = None
    timeout_ms: int | None = None

    # Set below and not by attrs: its generated code looks each default up, which would double the cost of a task.
    _state: TaskState = attrs.field(init=False)
    _output: dict[str, Any] | None = attrs.field(init=False)
    _error: dict[str, Any] | None = attrs.field(init=False)
    _attempt: int = attrs.field(init=False)
    _failures: int = attrs.field(init=False)
    _created_at: float = attrs.field(init=False)
    _started_at: float | None = attrs.field(init=False)
    _finished_at: float | None = attrs.field(init=False)
    _cancel_reason: str | None = attrs.field(init=False)
    _cancel_requested: bool = attrs.field(init=False)
    # Seconds since the epoch; of a wait that is over too, unless the state says that it waits.
    _not_before: float | None = attrs.field(init=False)
    # What the execution has told last; not stored.
    _progress: Any = attrs.field(init=False)
    # Monotonic: seconds at the start while it runs; seconds it took once it has ended. None before the start, and while it
    # waits for a retry.
    _clock: float | None = attrs.field(init=False)
    # Flat, three items an event (type, time, data), in a tuple: half the memory of a list of tuples.
    _events: tuple[Any, ...] = attrs.field(init=False)
    _dropped_events: int = attrs.field(init=False)
    _checkpoints: list[tuple[float, dict[str, Any]]] | None = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        if self.__class__ is not BaseTask and "__attrs_attrs__" not in self.__class__.__dict__:
            raise _undecorated(self.__class__)
        if self._type.__class__ is not str or not self._type:
            raise unusable("type", self._type, "a string that is not empty", "name the kind of work")
        if self.priority.__class__ is not TaskPriority:
            self.priority = to_priority(self.priority)
        if self.input.__class__ is not dict:
            self.input = to_dict_of("input", self.input)
        if self._id.__class__ is not str or not self._id:
            raise unusable("id", self._id, "a string that is not empty", "leave it out to have one made")
        if self.trace_id is not None or self.parent_id is not None:
            check_ids(trace_id=self.trace_id, parent_id=self.parent_id)
        if self._metadata is not None:
            self._metadata = to_dict_of("metadata", self._metadata)
        if self.timeout_ms is not None:
            self.timeout_ms = to_timeout_ms(self.timeout_ms)
        self._state = rules.INITIAL
        self._output = self._error = self._cancel_reason = None
        self._attempt = self._failures = self._dropped_events = 0
        self._cancel_requested = False
        self._created_at = sources.get().wall()
        self._started_at = self._finished_at = self._clock = self._checkpoints = None
        self._not_before = self._progress = None
        self._events = ()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._id} of type {self._type!r}, {self._state.name}, attempt {self._attempt}>"

    @classmethod
    def create(cls, type: str, input: Mapping[str, Any] | None = None, **fields: Any) -> Self:
        """Make a task.

        Args:
            type: what kind of work.
            input: what the work needs; nothing if omitted.
            **fields: the other arguments of the class by name, those of subclasses included.

        Raises:
            ConfigurationError: a value is not usable.
            TypeError: there is no such argument.
        """
        if input is None:
            input = {}
        if fields:
            return cls(type=type, input=input, **fields)  # type: ignore[arg-type]
        # What calling the class does, without the dictionary of arguments that it makes: a twentieth of a task's life.
        task = cls.__new__(cls)
        task.__init__(type=type, input=input)  # type: ignore[misc]
        return task

    # What only transitions change is read-only.

    @property
    def id(self) -> str:
        """Unique identifier."""
        return self._id

    @property
    def type(self) -> str:
        """What kind of work this is."""
        return self._type

    @property
    def metadata(self) -> dict[str, Any]:
        """Anything that belongs to the task but not to its input."""
        # Made when it is asked for: most tasks have none, and an empty dictionary is a tenth of a task.
        if self._metadata is None:
            self._metadata = {}
        return self._metadata

    @property
    def state(self) -> TaskState:
        """Where the task is in its life."""
        return self._state

    @property
    def output(self) -> dict[str, Any] | None:
        """What the work gave, once it is COMPLETED."""
        return self._output

    @property
    def error(self) -> dict[str, Any] | None:
        """What went wrong, once it is FAILED."""
        return self._error

    @property
    def attempt(self) -> int:
        """How many executions have begun."""
        return self._attempt

    @property
    def failures(self) -> int:
        """How many executions have failed, those aside that an open circuit has let nothing through to."""
        return self._failures

    @property
    def not_before(self) -> datetime | None:
        """When the next execution may begin, in UTC, while the task waits for a retry; None at all other times."""
        waits = self._not_before is not None and self._state is rules.INITIAL
        return to_datetime(self._not_before) if waits else None  # type: ignore[arg-type]

    @property
    def created_at(self) -> datetime:
        """When the task was made, in UTC."""
        return to_datetime(self._created_at)

    @property
    def started_at(self) -> datetime | None:
        """When the latest execution began, in UTC."""
        return None if self._started_at is None else to_datetime(self._started_at)

    @property
    def finished_at(self) -> datetime | None:
        """When the task ended, in UTC."""
        return None if self._finished_at is None else to_datetime(self._finished_at)

    @property
    def cancel_reason(self) -> str | None:
        """Why the task was, or is to be, cancelled."""
        return self._cancel_reason

    @property
    def cancel_requested(self) -> bool:
        """Whether the task is to be cancelled and has not ended yet."""
        return self._cancel_requested and self._state not in rules.TERMINAL

    @property
    def is_finished(self) -> bool:
        """Whether the state is terminal."""
        return self._state in rules.TERMINAL

    @property
    def duration_ms(self) -> int | None:
        """Milliseconds that the execution has taken so far, or took in all; None before it has begun."""
        with _transition:  # the end of the task changes what the clock means
            seconds, running = self._clock, self._finished_at is None
        if seconds is not None and running:
            seconds = _interop.monotonic() - seconds
        return None if seconds is None else int(max(seconds, 0) * 1000)

    @property
    def events(self) -> tuple[Event, ...]:
        """What happened to the task, oldest first; the newest `max_events` of it."""
        flat = iter(self._events)
        return tuple(
            Event(sequence=sequence, event_type=event_type, at=to_datetime(at), data=data)
            for sequence, (event_type, at, data) in enumerate(
                zip(flat, flat, flat, strict=True), self._dropped_events + 1
            )
        )

    @property
    def checkpoints(self) -> tuple[Checkpoint, ...]:
        """The progress that was saved, oldest first; the newest `max_checkpoints` of it."""
        return tuple(Checkpoint(at=to_datetime(at), data=data) for at, data in self._checkpoints or ())

    def start(self) -> Self:
        """Begin an execution: PENDING → RUNNING.

        Returns:
            The task itself.

        Raises:
            TaskStateError: the task is not PENDING.
        """
        current = sources.get()
        _transition.acquire()
        try:
            if (state := rules.START.get(self._state)) is None:
                self._refuse("start")
            self._state = state
            self._attempt += 1
            self._started_at = at = current.wall()
            self._clock = current.monotonic()
            self._events += ("task_started", at, _NO_DATA)
            return self
        finally:
            _transition.release()

    def complete(self, output: Mapping[str, Any]) -> Self:
        """End the execution with a result: RUNNING → COMPLETED.

        Args:
            output: what the work gave.

        Returns:
            The task itself.

        Raises:
            ConfigurationError: `output` is not a mapping.
            TaskStateError: the task is not RUNNING.
        """
        if output.__class__ is not dict:
            output = to_dict_of("output", output)
        _transition.acquire()
        try:
            if (state := rules.COMPLETE.get(self._state)) is None:
                self._refuse("complete")
            self._output = output
            self._end(state, "task_completed", _NO_DATA)
            return self
        finally:
            _transition.release()

    def fail(self, error: Mapping[str, Any], *, counts: bool = True) -> Self:
        """End the task with an error: PENDING or RUNNING → FAILED.

        Args:
            error: what went wrong, for instance ``error_type`` and ``message``.
            counts: whether an execution has failed, which is one of the `failures`.

        Returns:
            The task itself.

        Raises:
            ConfigurationError: `error` is not a mapping.
            TaskStateError: the task has ended already.
        """
        error = to_dict_of("error", error)
        with _transition:
            if (state := rules.FAIL.get(self._state)) is None:
                self._refuse("fail")
            self._error = error
            self._failures += counts
            self._end(state, "task_failed", {"error": error})
        return self

    def retry(self, error: Mapping[str, Any], not_before: datetime, *, counts: bool = True) -> Self:
        """End the execution with an error, to have another one: RUNNING → PENDING.

        Args:
            error: what went wrong, as for `fail`.
            not_before: when the next execution may begin, with its time zone.
            counts: whether it is one of the `failures`; that an open circuit has let nothing through is none.

        Returns:
            The task itself.

        Raises:
            ConfigurationError: an argument is not usable.
            TaskStateError: the task is not RUNNING.
        """
        error = to_dict_of("error", error)
        if not isinstance(not_before, datetime) or not_before.tzinfo is None:
            raise unusable("not_before", not_before, "a datetime with its time zone", "write datetime(..., tzinfo=UTC)")
        at = _interop.wall_time()
        with _transition:
            if (state := rules.RETRY.get(self._state)) is None:
                self._refuse("retry")
            self._state = state
            self._failures += counts
            self._not_before = not_before.timestamp()
            self._clock = None
            self._events += ("task_retried", at, {"error": error, "not_before": not_before.isoformat()})
            self._trim(2)  # for the next start, and the end
        return self

    def cancel(self, reason: str | None = None) -> Self:
        """End the task without a result: PENDING or RUNNING → CANCELED. On a task that has ended this does nothing.

        This moves the state and nothing else. Code that a runtime executes for this task is cancelled by its handle.

        Args:
            reason: why, for whoever waits for the task.

        Returns:
            The task itself.
        """
        with _transition:
            if (state := rules.CANCEL.get(self._state)) is not None:
                if reason is not None:
                    self._cancel_reason = reason
                self._end(state, "task_canceled", {"reason": self._cancel_reason})
        return self

    def request_cancel(self, reason: str | None = None) -> bool:
        """Note that the task is to be cancelled, for whoever executes it; the first reason stays.

        Returns:
            False if the task has ended already, so that there is nothing to cancel.
        """
        with _transition:
            if self._state in rules.TERMINAL:
                return False
            if not self._cancel_requested:
                self._cancel_requested = True
                self._cancel_reason = reason
            return True

    async def with_timeout(self, coro: Awaitable[T], timeout_override_ms: int | None = None) -> T:
        """Await something for a limited time. Works in any state of the task and changes none.

        This adds no checkpoint of its own.

        Args:
            coro: what to await, usually a coroutine. It is closed if it is never started.
            timeout_override_ms: milliseconds; None for the task's own `timeout_ms`, and no limit if it has none.

        Returns:
            What `coro` returns.

        Raises:
            TaskTimeoutError: the time was over first. A TimeoutError that `coro` raises by itself comes through as it is.
            ConfigurationError: the timeout is not usable.
            TypeError: `coro` cannot be awaited.
        """
        timeout_ms = self.timeout_ms if timeout_override_ms is None else timeout_override_ms
        if not isinstance(coro, Awaitable):
            raise TypeError(
                f"with_timeout of task {self._id} takes something to await: got {coro!r}; "
                "call the function: with_timeout(function(...))"
            )
        if timeout_ms is None:
            return await coro
        try:
            check_timeout_ms("timeout_override_ms", timeout_ms)
            scope = anyio.CancelScope(deadline=anyio.current_time() + timeout_ms / 1000)
        except BaseException:
            if (close := getattr(coro, "close", None)) is not None:
                close()
            raise
        with scope:
            return await coro
        raise TaskTimeoutError(
            f"task {self._id} of type {self._type!r} exceeded its timeout: {timeout_ms} ms; "
            "allow more time or make smaller tasks",
            {"task_id": self._id, "deadline": "timeout", "timeout_ms": timeout_ms},
        )

    def checkpoint(self, data: Mapping[str, Any]) -> Self:
        """Save progress that a later execution can go on from.

        Args:
            data: what is needed for that. The mapping is copied, its values are not.

        Returns:
            The task itself.

        Raises:
            ConfigurationError: `data` is not a mapping.
            TaskStateError: the task has ended.
        """
        saved = dict(to_dict_of("checkpoint", data))
        at = _interop.wall_time()
        with _transition:
            if self._state in rules.TERMINAL:
                self._refuse("checkpoint")
            checkpoints = [*(self._checkpoints or ()), (at, saved)]
            self._checkpoints = checkpoints[max(0, len(checkpoints) - self.max_checkpoints) :]
            self._events += ("task_checkpoint", at, saved)
            self._trim(1)  # for the end
        return self

    def get_latest_checkpoint(self) -> dict[str, Any] | None:
        """Return a copy of the data of the newest checkpoint; None if there is none."""
        return dict(self._checkpoints[-1][1]) if self._checkpoints else None

    def get_event_history(self) -> list[dict[str, Any]]:
        """Return the events as new dictionaries with ``sequence``, ``event_type``, ``at`` and ``data``, oldest first."""
        return [event.as_dict() for event in self.events]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain dictionaries, lists, strings and numbers, whatever `input` and the like hold aside.

        The priority stands by its name, times as ISO 8601 in UTC; ``schema_version`` tells readers what to expect.
        """
        with _transition:
            arguments = _codec.unstructure(self)
            history = _codec.unstructure(
                TaskHistory(
                    state=self._state,
                    output=self._output,
                    error=self._error,
                    attempt=self._attempt,
                    failures=self._failures,
                    created_at=_codec.Timestamp(self._created_at),
                    started_at=_codec.timestamp(self._started_at),
                    finished_at=_codec.timestamp(self._finished_at),
                    duration_ms=self.duration_ms,
                    cancel_reason=self._cancel_reason,
                    cancel_requested=self._cancel_requested,
                    not_before=_codec.timestamp(self._not_before if self._state is rules.INITIAL else None),
                    events=[
                        StoredEvent(
                            event.sequence, event.event_type, _codec.Timestamp(event.at.timestamp()), event.data
                        )
                        for event in self.events
                    ],
                    checkpoints=[StoredCheckpoint(_codec.Timestamp(at), data) for at, data in self._checkpoints or ()],
                )
            )
        return {"schema_version": self.schema_version, **arguments, "metadata": dict(self.metadata), **history}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Make a task from what `to_dict` gave, here or in another process. Unknown keys are passed over.

        Raises:
            TaskError: something is missing or wrong, all of it listed; or a newer version wrote it.
        """
        version = (
            values.get("schema_version", cls.schema_version) if isinstance(values, Mapping) else cls.schema_version
        )
        if not isinstance(version, int) or version > cls.schema_version:
            raise TaskError(
                f"a task can be read up to schema_version {cls.schema_version}: got {version!r}; upgrade agentcore",
                {"schema_version": version, "supported": cls.schema_version},
            )
        (task, history), problems = _codec.structure_all(values, cls, TaskHistory)
        if problems:
            raise TaskError(
                f"a task cannot be read: {'; '.join(problems)}; pass what to_dict() gave", {"problems": problems}
            )
        task._restore(history)
        return task

    def _restore(self, history: TaskHistory) -> None:
        self._state = history.state
        self._output, self._error = history.output, history.error
        self._attempt, self._failures = history.attempt, history.failures
        self._created_at = history.created_at
        self._started_at, self._finished_at = history.started_at, history.finished_at
        self._cancel_reason, self._cancel_requested = history.cancel_reason, history.cancel_requested
        self._not_before = history.not_before
        self._events = tuple(item for event in history.events for item in (event.event_type, event.at, event.data))
        self._dropped_events = history.events[0].sequence - 1 if history.events else 0
        self._checkpoints = [(point.at, dict(point.data)) for point in history.checkpoints] or None
        if history.duration_ms is not None:
            seconds = history.duration_ms / 1000
            # The other process's monotonic clock means nothing here: what had elapsed is counted on.
            self._clock = seconds if self._finished_at is not None else _interop.monotonic() - seconds

    def _trim(self, places: int) -> None:
        """Let go of the oldest events, and leave so many places for what must follow.

        Not at each transition: nothing but checkpoints and retries can happen to a task any number of times.
        """
        excess = len(self._events) // 3 - max(0, self.max_events - places)
        if excess > 0:
            self._events = self._events[3 * excess :]
            self._dropped_events += excess

    def _end(self, state: TaskState, event_type: str, data: Mapping[str, Any]) -> None:
        current = sources.get()
        self._state = state
        self._finished_at = at = current.wall()
        if self._clock is not None:
            self._clock = current.monotonic() - self._clock
        self._events += (event_type, at, data)

    def _refuse(self, transition: str) -> NoReturn:
        allowed = rules.allowed_transitions(self._state)
        raise TaskStateError(
            f"task {self._id} of type {self._type!r} cannot {transition}: it is {self._state.name}; "
            + (f"it can {' or '.join(allowed)}" if allowed else "this state is final, create a new task"),
            {"task_id": self._id, "state": self._state, "transition": transition, "allowed": allowed},
        )


def _undecorated(cls: type) -> TypeError:
    return TypeError(
        f"{cls.__qualname__} is a subclass of BaseTask without attrs' decorator; write @attrs.define(kw_only=True, eq=False) above it"
    )
