"""Jobs: what a worker pool is given, from the queue to the outcome."""

from __future__ import annotations

import enum
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextvars import Context, ContextVar
from functools import partial
from types import FunctionType, MappingProxyType
from typing import Any, Final, Protocol, TypeVar, final

from agentcore import _interop
from agentcore._context import current_job
from agentcore._rules.task_states import TaskPriority
from agentcore.errors import WorkerPoolError, WorkerTimeoutError
from agentcore.pools._child import WORKER

T = TypeVar("T")

_NONE: Final[dict[str, Any]] = {}
_NOTHING: Final[Mapping[Any, Any]] = MappingProxyType({})


class JobState(enum.Enum):
    """Where a job is. Changed with the lock of its pool, so that of all who could end a job exactly one does."""

    QUEUED = enum.auto()
    RUNNING = enum.auto()
    SETTLED = enum.auto()
    """Its outcome is decided. A thread may still be at it, which concerns nobody any more."""


QUEUED: Final = JobState.QUEUED
RUNNING: Final = JobState.RUNNING
SETTLED: Final = JobState.SETTLED


class Listener(Protocol):
    """Learns how a job has ended, once, in any thread, without the lock of the pool."""

    def job_ended(self, job: Job) -> None:
        """Take the outcome of a job: its value, or its error, or that it was cancelled before it began."""


@final
class Job:
    """One call of a function.

    Attributes:
        function, args, kwargs: the call; None and empty when it has ended.
        context: the variables that it runs with.
        priority: which band of the queue it waits in.
        content: the call as it is sent to a process, if it is pickled already; or what that has raised.
        listener: who is told.
        state: where it is.
        value: what it returned.
        error: what it raised, or why it has no value.
        is_cancelled: whether it was taken back before it began.
        is_unwanted: whether it runs although nobody waits for it any more, or is being ended for that.
        is_late: whether it was cut because it took too long.
        submitted, started: when, in seconds of the clock.
        timeout: seconds that it may take, the wait included; None for no limit.
        deadline: when those are over.
        worker: what runs it.
        awaits: jobs that it waits for, if it is a coroutine, with their pools.
        within: the job of a pool for coroutines that waits for it, without end.
        hand_off: how somebody who drives the clock sees it.
    """

    __slots__ = (
        "args",
        "awaits",
        "content",
        "context",
        "deadline",
        "error",
        "function",
        "hand_off",
        "is_cancelled",
        "is_late",
        "is_unwanted",
        "kwargs",
        "listener",
        "name",
        "priority",
        "started",
        "state",
        "submitted",
        "timeout",
        "value",
        "within",
        "worker",
    )

    def __init__(  # noqa: PLR0917 - made in a few places, on a hot path
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        context: Context,
        priority: int,
        timeout: float | None,
    ) -> None:
        self.function: Callable[..., Any] | None = function
        self.args: tuple[Any, ...] = args
        self.kwargs: dict[str, Any] = kwargs
        self.context: Context | None = context
        self.priority: int = priority
        self.timeout: float | None = timeout
        self.submitted: float = _interop.clock()
        self.deadline: float | None = None if timeout is None else self.submitted + timeout
        self.state: JobState = QUEUED
        self.started: float = 0.0
        self.is_cancelled: bool = False
        self.is_unwanted: bool = False
        self.is_late: bool = False
        self.name: str | None = None
        self.value: Any = None
        self.error: BaseException | None = None
        self.worker: Any = None
        self.within: object = None
        self.hand_off: _interop.HandOff | None = None
        self.listener: Listener | None = None
        self.content: list[bytes] | Exception | None = None
        self.awaits: Mapping[Job, Any] = _NOTHING

    def __repr__(self) -> str:
        return f"<Job {self.describe()} {self.state.name.lower()}>"

    def describe(self) -> str:
        """Return the name of its function."""
        return self.name if self.name is not None else name_of(self.function)

    def release(self) -> None:
        """Let go of the call, which has ended: whoever keeps the outcome must not keep its arguments."""
        function = self.function
        # What most of them are, for this is on a hot path.
        self.name = function.__qualname__ if type(function) is FunctionType else name_of(function)
        self.function = self.context = self.worker = self.content = self.within = None
        self.args, self.kwargs = (), _NONE

    def give(self) -> Any:
        """Return what it gave, or raise what it raised; once."""
        error, self.error = self.error, None
        if error is None:
            value, self.value = self.value, None
            return value
        try:
            raise error
        finally:
            del error, self  # the traceback knows this frame

    def too_late(self, pool: str, phase: str, limit: float) -> WorkerTimeoutError:
        """Make the error for a job that has taken too long."""
        what = {
            "queued": "was not begun within its timeout",
            "running": "did not end within its timeout",
            "worker": "ran for longer than the task_timeout of its pool",
        }[phase]
        remedy = "add workers or allow more time" if phase == "queued" else "allow more time or do less at once"
        return WorkerTimeoutError(
            f"job {self.describe()} of worker pool {pool!r} {what}: got more than {limit:g} s; {remedy}",
            {"pool": pool, "function": self.describe(), "timeout": limit, "phase": phase},
        )


def name_of(function: object) -> str:
    """Return what a function is called."""
    try:
        name = getattr(function, "__qualname__", None) or getattr(function, "__name__", None)
        if isinstance(name, str):
            return name
        if isinstance(function, partial):
            return name_of(function.func)
    except Exception:  # noqa: BLE001 - of a proxy, for instance, of what is not there now: a name is never worth an error
        return type(function).__qualname__
    return type(function).__qualname__


def own_error(error: BaseException, job: Job, pool: str) -> BaseException:
    """Return what a job has raised, so that it means to its caller what it meant in the job.

    A cancellation that a job raises by itself would look like one of the caller's task.
    """
    if _interop.cancellation_cause(error) is None:
        return error
    wrapped = WorkerPoolError(
        f"job {job.describe()} of worker pool {pool!r} must not raise a cancellation of an event loop: got {error!r}; "
        "look where it comes from",
        {"pool": pool, "function": job.describe()},
    )
    wrapped.__cause__ = error
    return wrapped


@final
class JobQueue:
    """Four queues, of which the most urgent that has something goes first. Whoever uses it has the lock of the pool."""

    __slots__ = ("_bands", "_dead", "_urgent_first", "live")

    def __init__(self) -> None:
        # By priority.
        self._bands: tuple[deque[Job], ...] = tuple(deque() for _ in TaskPriority)
        self._urgent_first = self._bands[::-1]
        # How many jobs there are in it.
        self.live = self._dead = 0

    def __len__(self) -> int:
        return self.live

    def push(self, job: Job) -> None:
        """Put a job last in its band."""
        self._bands[job.priority].append(job)
        self.live += 1

    def pop(self) -> Job | None:
        """Take out the job that comes next; None if there is none."""
        for band in self._urgent_first:
            while band:
                job = band.popleft()
                if job.state is QUEUED:
                    self.live -= 1
                    return job
                self._dead -= 1
        return None

    def undo_pop(self) -> None:
        """Count a job that was popped as one that is in the queue still, for it is going to be discarded."""
        self.live += 1
        self._dead -= 1

    def discard(self) -> None:
        """Note that a job in it was settled. It goes later: looking for it would take as long as the queue is."""
        self.live -= 1
        self._dead += 1
        if self._dead > 64 + self.live:
            for band in self._bands:
                for _ in range(len(band)):  # in place: the collector of garbage may push a job meanwhile
                    job = band.popleft()
                    if job.state is QUEUED:
                        band.append(job)
                    else:
                        self._dead -= 1

    def take_all(self) -> list[Job]:
        """Return everything in it, the most urgent first, to be settled and discarded."""
        return [job for band in self._urgent_first for job in tuple(band) if job.state is QUEUED]


@final
class Told:
    """Who is to be told of what, as soon as the lock is free."""

    __slots__ = ("calm", "listeners")

    def __init__(self, listeners: list[tuple[Listener | None, Job]], calm: list[Callable[[], object]]) -> None:
        self.listeners = listeners
        self.calm = calm

    @classmethod
    def all(cls, several: Iterable[Told]) -> Told:
        """Return the sum of several."""
        told = cls([], [])
        for one in several:
            told.listeners += one.listeners
            told.calm += one.calm
        return told

    def tell(self) -> None:
        """Tell them; first those who wait for the end of everything."""
        for callback in self.calm:
            callback()
        for listener, job in self.listeners:
            if listener is not None:
                listener.job_ended(job)


# What runs in each thread, for those who ask from inside of a job: the worker, set once for each thread.
class _Local(threading.local):
    worker: Any = None


_local = _Local()


def enter_worker(worker: object) -> None:
    """Note that this thread is a worker's."""
    _local.worker = worker


def current_worker() -> Any:
    """Return the worker whose thread this is, None in all other threads."""
    return _local.worker


_propagated: Final[ContextVar[Mapping[str, Any] | None]] = ContextVar("agentcore_propagated", default=None)


def identity_of_task() -> Mapping[str, Any] | None:
    """Return by what names the current task is known in traces; None outside of tasks and of their jobs."""
    task = getattr(current_job.get(), "task", None)
    if task is None:
        return _propagated.get()
    return {"trace_id": task.trace_id, "task_id": task.id}


def propagate_task(context: Context) -> None:
    """Have jobs with this context know the current task by name, of which they are no part."""
    if current_job.get() is not None:
        context.run(_propagated.set, identity_of_task())


def propagated_to_thread(context: Context) -> Mapping[str, Any]:
    """Return by what names the task is known that has submitted a job with this context."""
    return context.get(_propagated) or {}


def propagated() -> Mapping[str, Any]:
    """Return what the job that calls this is told of where it was submitted.

    Returns:
        ``trace_id`` and ``task_id``, if a task has submitted it; in a worker process, besides, the values of the context
        variables that the pool's `propagate` names. Empty outside of jobs.
    """
    child = sys.modules.get(WORKER)
    if child is not None:
        return dict(child.variables)
    return dict(_propagated.get() or {})
