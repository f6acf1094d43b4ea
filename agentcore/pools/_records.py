"""What worker pools are given and what they tell of themselves."""

# No `from __future__ import annotations` here: the fields of public classes are read at run time, by cattrs and others.
# Their `__module__` reads agentcore, where names in strings could not be found.

import enum
import os
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Final, Literal, Self, final

import attrs

from agentcore._agent_records import HISTOGRAM_BOUNDS
from agentcore._rules.backoff import check_number, show
from agentcore._rules.task_states import TaskPriority
from agentcore.errors import ConfigurationError

FEW: Final = 16
"""Workers of a pool whose jobs mostly wait, where nothing else is said and there are no more CPUs than that."""


class WorkerPoolType(enum.StrEnum):
    """What runs the jobs of a pool. Its values are accepted wherever a member is."""

    THREAD = "thread"
    PROCESS = "process"
    ASYNCIO = "asyncio"
    QUEUE_ASYNCIO = "queue_asyncio"
    EXECUTOR = "executor"
    DASK = "dask"

    @classmethod
    def of(cls, value: object) -> "WorkerPoolType":
        """Return the member of a value.

        Raises:
            ConfigurationError: there is none.
        """
        try:
            return cls(value.lower() if isinstance(value, str) else value)  # type: ignore[arg-type]
        except ValueError:
            known = ", ".join(repr(member.value) for member in cls)
            raise ConfigurationError(
                f"type of a worker pool must be one of {known}: got {show(value)}; pass a member of WorkerPoolType",
                {"name": "pool_type", "value": value},
            ) from None


def available_cpus() -> int:
    """Return on how many CPUs this process may run."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def _check_count(_: object, field: "attrs.Attribute[Any]", value: object) -> None:
    if value is not None or field.default is not None:
        check_number("a worker pool", field.name, value, "use a whole number", least=1, whole=True)


def _check_least(_: object, field: "attrs.Attribute[Any]", value: object) -> None:
    if value is not None:
        check_number("a worker pool", field.name, value, "use a whole number", whole=True)


LONGEST: Final = 1e9
"""Seconds, about 32 years: what every lock, clock and event loop can wait for."""


def check_seconds(name: str, value: object, *, above: bool = False) -> None:
    """Accept None and numbers of seconds, 0 or more, that can be waited for.

    Args:
        name: what it is called in the message.
        value: what was given.
        above: whether 0 is refused.

    Raises:
        ConfigurationError: it is something else.
    """
    if value is None:
        return
    check_number("a worker pool", name, value, "use None for no limit", above=above, unit="seconds")
    if isinstance(value, int | float) and value > LONGEST:
        raise ConfigurationError(
            f"{name} of a worker pool must be at most {LONGEST:g} seconds: got {show(value)}; use None for no limit",
            {"name": name, "value": value},
        )


def _check_seconds(_: object, field: "attrs.Attribute[Any]", value: object) -> None:
    check_seconds(field.name, value)


def _check_positive(_: object, field: "attrs.Attribute[Any]", value: object) -> None:
    check_seconds(field.name, value, above=True)


def _check_function(_: object, field: "attrs.Attribute[Any]", value: object) -> None:
    if value is not None and not callable(value):
        raise ConfigurationError(
            f"{field.name} of a worker pool must be a function: got {show(value)}; pass one, or None",
            {"name": field.name, "value": value},
        )


def _check_names(_: object, field: "attrs.Attribute[Any]", value: object) -> None:
    if not isinstance(value, tuple) or not all(isinstance(name, str) and name for name in value):
        raise ConfigurationError(
            f"{field.name} of a worker pool must be names of context variables: got {show(value)}; "
            "write ('trace_id', 'task_id')",
            {"name": field.name, "value": value},
        )


@attrs.frozen(kw_only=True)
class WorkerPoolConfig:
    """How a worker pool behaves. This one is taken by every kind of pool; those below know more of one kind.

    Args:
        workers: how many jobs run at a time. None: as many as there are CPUs for this process; where jobs mostly wait, in the
            kinds for coroutines, at least 16.
        max_queue_size: how many jobs may wait for a worker; then `submit` is refused. Who waits for his result anyway, as
            `asubmit` does, is never refused.
        task_timeout: seconds that one job may run; then its worker counts as hung and the job fails. None for no limit.
        idle_timeout: seconds without a job after which a worker ends; None to keep it.
        shutdown_timeout: seconds that shutting down may take where nothing else is said; None for as long as it takes.

    Raises:
        ConfigurationError: a value is not usable.
    """

    workers: int | None = attrs.field(default=None, validator=_check_count)
    max_queue_size: int = attrs.field(default=1000, validator=_check_count)
    task_timeout: float | None = attrs.field(default=None, validator=_check_positive)
    idle_timeout: float | None = attrs.field(default=60.0, validator=_check_seconds)
    shutdown_timeout: float | None = attrs.field(default=None, validator=_check_seconds)

    least_workers: ClassVar[int] = 1
    """How many there are at least where `workers` is None."""

    @property
    def size(self) -> int:
        """How many jobs run at a time."""
        return self.workers if self.workers is not None else max(available_cpus(), self.least_workers)

    @classmethod
    def of(cls, config: "WorkerPoolConfig | None", pool: str) -> Self:
        """Return a configuration of this kind: the given one, or one made of a plain one.

        Args:
            config: what was given; None for the default.
            pool: name of the pool it is for.

        Raises:
            ConfigurationError: it is none, or one for another kind.
        """
        if config is None:
            return cls()
        if isinstance(config, cls):
            return config
        if type(config) is WorkerPoolConfig:
            return cls(**attrs.asdict(config, recurse=False))
        raise ConfigurationError(
            f"config of worker pool {pool!r} must be a WorkerPoolConfig or a {cls.__name__}: got {show(config)}; "
            f"write {cls.__name__}(workers=...)",
            {"name": "config", "value": config},
        )


@attrs.frozen(kw_only=True)
class ThreadWorkerPoolConfig(WorkerPoolConfig):
    """How a pool of threads behaves.

    Args:
        workers, max_queue_size, task_timeout, idle_timeout, shutdown_timeout: as for `WorkerPoolConfig`.
        max_abandoned: how many threads may be given up because nobody waits for their job any more, and replaced, before
            the slots of further ones stay taken until they end. None: as many as there are workers.
        initializer: called in each worker when it starts. If it raises, the pool is broken.
        initargs: its arguments.
        max_jobs_per_worker: how many jobs a worker runs before another one takes its place; None for no limit.

    Raises:
        ConfigurationError: a value is not usable.
    """

    max_abandoned: int | None = attrs.field(default=None, validator=_check_least)
    initializer: Callable[..., object] | None = attrs.field(default=None, validator=_check_function)
    initargs: tuple[Any, ...] = attrs.field(default=(), converter=tuple)
    max_jobs_per_worker: int | None = attrs.field(default=None, validator=_check_count)


@attrs.frozen(kw_only=True)
class ProcessWorkerPoolConfig(WorkerPoolConfig):
    """How a pool of processes behaves.

    Args:
        workers, max_queue_size, task_timeout, idle_timeout, shutdown_timeout: as for `WorkerPoolConfig`.
        initializer, initargs, max_jobs_per_worker: as for `ThreadWorkerPoolConfig`. They travel to the workers, so they must
            be picklable.
        propagate: names of context variables whose values jobs find by `propagated`, if they can be pickled; ``trace_id``
            and ``task_id`` are those of the task that submits.
        start_timeout: seconds that a worker may take to start, its initializer included; then it counts as one that cannot.

    Raises:
        ConfigurationError: a value is not usable.
    """

    initializer: Callable[..., object] | None = attrs.field(default=None, validator=_check_function)
    initargs: tuple[Any, ...] = attrs.field(default=(), converter=tuple)
    max_jobs_per_worker: int | None = attrs.field(default=None, validator=_check_count)
    propagate: tuple[str, ...] = attrs.field(default=("trace_id", "task_id"), validator=_check_names)
    start_timeout: float | None = attrs.field(default=30.0, validator=_check_positive)


@attrs.frozen(kw_only=True)
class QueueWorkerPoolConfig(WorkerPoolConfig):
    """How a pool for coroutines behaves, of either kind.

    Args:
        workers, max_queue_size, task_timeout, idle_timeout, shutdown_timeout: as for `WorkerPoolConfig`. Idle workers cost
            next to nothing and are kept.
        on_error: called with what a job has raised that was handed over by `submit`, so that nobody waits for it.

    Raises:
        ConfigurationError: a value is not usable.
    """

    on_error: Callable[[BaseException], object] | None = attrs.field(default=None, validator=_check_function)

    least_workers: ClassVar[int] = FEW


AnyWorkerPoolConfig = WorkerPoolConfig | ThreadWorkerPoolConfig | ProcessWorkerPoolConfig | QueueWorkerPoolConfig


@final
@attrs.frozen(kw_only=True)
class WorkerPoolReport:
    """How a worker pool was shut down.

    Attributes:
        drained: whether every job that it had came to its own end.
        cut_short: the functions of the jobs that did not, by name.
        duration: seconds it took.
    """

    drained: bool
    cut_short: tuple[str, ...]
    duration: float


@final
@attrs.frozen(kw_only=True)
class JobInfo:
    """One job that a worker is at.

    Attributes:
        function: what it calls, by name.
        seconds: for how long it has run.
        abandoned: whether nobody waits for it any more.
    """

    function: str
    seconds: float
    abandoned: bool


@final
@attrs.frozen(kw_only=True)
class WorkerPoolMetrics:
    """What a worker pool has done so far.

    Attributes:
        queued: jobs that wait for a worker now.
        running: jobs that run now.
        workers: workers there are now, those that were given up and still run included.
        succeeded: jobs that returned.
        failed: jobs that raised.
        timed_out: jobs that took too long, in the queue or in their worker.
        cancelled: jobs that were cancelled, before or after their start.
        crashed: jobs whose worker died.
        abandoned: jobs that run now although nobody waits for them; their threads cannot be stopped.
        rejected: jobs that were refused because too many waited.
        wait_histogram: how many jobs waited no longer than each of ``histogram_bounds``, and in the last place the longer ones.
        run_histogram: the same for how long they ran.
        histogram_bounds: seconds.
    """

    queued: int
    running: int
    workers: int
    succeeded: int
    failed: int
    timed_out: int
    cancelled: int
    crashed: int
    abandoned: int
    rejected: int
    wait_histogram: tuple[int, ...]
    run_histogram: tuple[int, ...]
    histogram_bounds: tuple[float, ...] = HISTOGRAM_BOUNDS


@final
@attrs.frozen(kw_only=True)
class WorkerPoolsStatistics:
    """What the worker pools of a runtime have done, added up.

    Attributes:
        pools: how many there are.
        queued, running, workers, succeeded, failed, timed_out, cancelled, crashed, abandoned, rejected: as of
            `WorkerPoolMetrics`.
    """

    pools: int = 0
    queued: int = 0
    running: int = 0
    workers: int = 0
    succeeded: int = 0
    failed: int = 0
    timed_out: int = 0
    cancelled: int = 0
    crashed: int = 0
    abandoned: int = 0
    rejected: int = 0

    @classmethod
    def of(cls, metrics: Sequence[WorkerPoolMetrics]) -> Self:
        """Return the sums."""
        names = [field.name for field in attrs.fields(cls) if field.name != "pools"]
        return cls(pools=len(metrics), **{name: sum(getattr(one, name) for one in metrics) for name in names})


_FIRST: Final = HISTOGRAM_BOUNDS[0]


@final
class Counts:
    """The numbers of one pool. Whoever changes them has the pool's lock."""

    __slots__ = ("cancelled", "crashed", "failed", "rejected", "running", "runs", "succeeded", "timed_out", "waits")

    def __init__(self) -> None:
        self.running = self.succeeded = self.failed = self.timed_out = self.cancelled = self.crashed = self.rejected = 0
        self.waits = [0] * (len(HISTOGRAM_BOUNDS) + 1)
        self.runs = [0] * (len(HISTOGRAM_BOUNDS) + 1)

    def begin(self, waited: float) -> None:
        """Count a job that begins, after so many seconds."""
        self.running += 1
        self.waits[0 if waited <= _FIRST else bisect_left(HISTOGRAM_BOUNDS, waited)] += 1

    def end(self, ran: float) -> None:
        """Count a job that ends, after so many seconds."""
        self.running -= 1
        self.runs[0 if ran <= _FIRST else bisect_left(HISTOGRAM_BOUNDS, ran)] += 1

    def show(self, *, queued: int, workers: int, abandoned: int) -> WorkerPoolMetrics:
        """Return them as a record."""
        return WorkerPoolMetrics(
            queued=queued,
            running=self.running,
            workers=workers,
            succeeded=self.succeeded,
            failed=self.failed,
            timed_out=self.timed_out,
            cancelled=self.cancelled,
            crashed=self.crashed,
            abandoned=abandoned,
            rejected=self.rejected,
            wait_histogram=tuple(self.waits),
            run_histogram=tuple(self.runs),
        )


def _check_priority(_: object, field: "attrs.Attribute[Any]", value: object) -> None:
    if not isinstance(value, TaskPriority):
        raise ConfigurationError(
            f"{field.name} of a job must be a TaskPriority: got {show(value)}; write TaskPriority.HIGH",
            {"name": field.name, "value": value},
        )


def _check_when_full(_: object, field: "attrs.Attribute[Any]", value: object) -> None:
    if value not in ("raise", "wait", None):
        raise ConfigurationError(
            f"{field.name} of a job must be 'raise' or 'wait': got {show(value)}; use 'wait' for back-pressure",
            {"name": field.name, "value": value},
        )


def _check_truth(_: object, field: "attrs.Attribute[Any]", value: object) -> None:
    if not isinstance(value, bool):
        raise ConfigurationError(
            f"{field.name} of a job must be True or False: got {show(value)}; True leaves a running thread behind",
            {"name": field.name, "value": value},
        )


@final
@attrs.frozen(kw_only=True)
class JobOptions:
    """How jobs are handed over; see `BaseWorkerPool.options`."""

    priority: TaskPriority = attrs.field(default=TaskPriority.NORMAL, validator=_check_priority)
    timeout: float | None = attrs.field(default=None, validator=_check_seconds)
    when_full: Literal["raise", "wait"] | None = attrs.field(default=None, validator=_check_when_full)
    abandon_on_cancel: bool = attrs.field(default=False, validator=_check_truth)


DEFAULT_OPTIONS: Final = JobOptions()
