"""How jobs of a pool that owns its workers end: what is decided under its lock, exactly once, and told without it."""

from __future__ import annotations

import abc
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol, final

from agentcore import _interop
from agentcore._rules.backoff import show
from agentcore.errors import (
    JobCancelledError,
    WorkerCrashedError,
    WorkerPoolBrokenError,
    WorkerPoolClosedError,
    WorkerPoolError,
    WorkerPoolFullError,
)
from agentcore.pools._base import BaseWorkerPool
from agentcore.pools._jobs import QUEUED, RUNNING, SETTLED, Job, JobQueue, Told
from agentcore.pools._manager import Manager
from agentcore.pools._records import Counts, JobInfo, WorkerPoolMetrics


class Gate(Protocol):
    """Where a worker waits until it is called: a lock, or what is like one."""

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Wait for a call and take it."""

    def release(self) -> None:
        """Call, once."""


@final
class Worker:
    """One thread that runs jobs.

    Attributes:
        pool: which it belongs to.
        number: of the worker in its pool, from 1.
        job: what it runs, also when that is settled already; None if it waits.
        jobs_done: how many it has run.
        is_replaced: whether another one has its place, since nobody knows when it comes back.
        is_waiting: whether it waits in line, or has just been called from there.
        is_starting: whether what it needs for its jobs is not there yet.
        thread: None until it is started.
        ident: of the thread; None until that runs.
    """

    __slots__ = (
        "child",
        "gate",
        "ident",
        "is_replaced",
        "is_starting",
        "is_waiting",
        "job",
        "jobs_done",
        "number",
        "pool",
        "thread",
    )

    def __init__(self, pool: SettlingPool, number: int) -> None:
        self.pool = pool
        self.number = number
        self.job: Job | None = None
        self.jobs_done = 0
        self.is_replaced = self.is_starting = self.is_waiting = False
        self.thread: threading.Thread | None = None
        self.ident: int | None = None
        self.gate: Gate = closed_gate()
        self.child: Any = None  # of the kinds that need one


def closed_gate() -> Gate:
    """Return a lock, which is locked while there is nothing to do."""
    gate = threading.Lock()
    gate.acquire()
    return gate


class SettlingPool(BaseWorkerPool):
    """A pool whose workers are threads of its own: its state, and how jobs end."""

    def __init__(self, name: str, config: Any = None) -> None:
        super().__init__(name, config)
        self._size = self.config.size
        self._process = os.getpid()
        self._lock = threading.RLock()
        self._queue = JobQueue()
        self._counts = Counts()
        self._workers: set[Worker] = set()
        self._idle: list[Worker] = []  # the one that became idle last is called first, so that others can expire
        self._called: Worker | None = None  # from there, and has not come yet
        self._is_limited = self.config.task_timeout is not None
        self._max_jobs: int | None = None  # that a worker runs in its life
        self._abandoned = self._replaced = self._numbers = 0
        self._manager: Manager | None = None
        self._cause: BaseException | None = None  # of its being broken
        self._late: list[Told] = []
        self._is_over = False  # whether the last worker has left
        self._cut: list[str] = []
        self._leaving: list[threading.Thread] = []
        # Called when the last job is settled, if there are no further ones; and when the last worker has left.
        self._calm: list[Callable[[], object]] = []
        self._closed: list[Callable[[], object]] = []
        self._space = threading.Condition(self._lock)
        self._waiting_for_space = 0

    @abc.abstractmethod
    def _interrupt(self, worker: Worker, job: Job) -> bool:
        """Try to end a job that nobody waits for any more; under the lock. Returns whether the worker is free soon."""

    @abc.abstractmethod
    def _is_free_soon(self, worker: Worker) -> bool:
        """Tell whether a worker that has been interrupted comes back by itself."""

    @property
    def _max_abandoned(self) -> int:
        """How many workers may be replaced while they still run."""
        return 0

    @abc.abstractmethod
    def _call_worker(self) -> Worker | None:
        """Have an idle worker look into the queue; returns one to be started, if there is none and can be one."""

    @abc.abstractmethod
    def _start(self, worker: Worker) -> None:
        """Start a new worker; without the lock."""

    @property
    def metrics(self) -> WorkerPoolMetrics:
        """What it has done so far."""
        with self._lock:
            return self._counts.show(queued=len(self._queue), workers=len(self._workers), abandoned=self._abandoned)

    def jobs(self) -> tuple[JobInfo, ...]:
        """Return what the workers are at, the longest first; also what nobody waits for any more."""
        now = _interop.clock()
        with self._lock:
            jobs = sorted(
                (worker.job for worker in tuple(self._workers) if worker.job is not None), key=lambda job: job.started
            )
            return tuple(
                JobInfo(function=job.describe(), seconds=now - job.started, abandoned=job.state is SETTLED)
                for job in jobs
            )

    # Outcomes. Each is decided under the lock and told without it.

    def _settle_done(
        self, worker: Worker, job: Job, value: Any, error: BaseException | None, now: float
    ) -> Sequence[Callable[[], object]]:
        """Settle a job that has come to its end, unless that was done before; returns who waits for the last one."""
        worker.job = None
        worker.jobs_done += 1
        if job.state is SETTLED:  # nobody has waited for this
            self._abandoned -= 1
            return ()
        job.value, job.error = value, error
        if error is None:
            self._counts.succeeded += 1
        elif isinstance(error, WorkerCrashedError) and error.details.get("pool") == self.name:
            self._counts.crashed += 1
        elif job.is_unwanted and isinstance(error, JobCancelledError):
            self._counts.cancelled += 1
        else:
            self._counts.failed += 1
        self._counts.end(now - job.started)
        job.state = SETTLED
        if job.deadline is not None:
            job.release()  # the manager still has it
        return self._take_calm() if self._state != "open" else ()

    def _settle(self, job: Job) -> Told:
        """Decide the outcome, which stands in the job."""
        if job.state is RUNNING:
            self._counts.end(_interop.clock() - job.started)
        job.state = SETTLED
        listener, job.listener = job.listener, None
        return Told([(listener, job)], self._take_calm())

    def _settle_queued(self, job: Job, error: BaseException | None) -> Told:
        """Settle a job that has not begun; without an error it was cancelled."""
        job.error = error
        job.is_cancelled = error is None or isinstance(error, WorkerPoolClosedError)
        self._queue.discard()
        if self._waiting_for_space:
            self._space.notify()
        told = self._settle(job)
        job.release()
        return told

    def _settle_running(self, job: Job, error: BaseException | None) -> tuple[Told, Worker | None]:
        """Settle a job whose worker is still at it; also returns a worker that is to be started in its place."""
        worker: Worker = job.worker
        job.error = error
        told = self._settle(job)
        self._abandoned += 1
        new = None
        if not self._interrupt(worker, job) and self._replaced < self._max_abandoned:
            worker.is_replaced = True
            self._replaced += 1
            new = self._call_worker() if self._queue else None
        return told, new

    def _take_calm(self) -> list[Callable[[], object]]:
        """Return who is to be told that the last job is settled, if it is."""
        if self._state == "open" or self._queue or self._counts.running:
            return []
        calm, self._calm = self._calm, []
        return calm

    def _take_back(self, job: Job) -> bool:
        """Cancel a job that has not begun; tell whether it had not."""
        with self._lock:
            if job.state is not QUEUED:
                return False
            self._counts.cancelled += 1
            told = self._settle_queued(job, None)
        told.tell()
        return True

    def _withdraw(self, job: Job, *, abandon: bool) -> bool:
        """End a job because its caller has been cancelled; tell whether he may go, or else has to wait for its end.

        Args:
            job: which.
            abandon: whether a thread may be left behind.
        """
        new = None
        with self._lock:
            if job.state is QUEUED:
                self._counts.cancelled += 1
                job.listener = None
                told = self._settle_queued(job, None)
            elif job.state is RUNNING and abandon:
                self._counts.cancelled += 1
                job.listener = None
                told, new = self._settle_running(job, None)
            else:
                if job.state is RUNNING:
                    self._interrupt(job.worker, job)
                return False
        told.tell()
        if new is not None:
            self._start(new)
        return True

    def _expire(self, job: Job, phase: str = "running", limit: float | None = None) -> None:
        """End a job that has taken too long."""
        new = None
        with self._lock:
            if job.state is SETTLED:
                return
            self._counts.timed_out += 1
            limit = limit if limit is not None else job.timeout or 0.0
            if job.state is QUEUED:
                told = self._settle_queued(job, job.too_late(self.name, "queued", limit))
            else:
                told, new = self._settle_running(job, job.too_late(self.name, phase, limit))
        told.tell()
        if new is not None:
            self._start(new)

    def _end_hung(self) -> float | None:
        """End what has run for longer than `task_timeout`; return in how many seconds that can be the case again."""
        limit = self.config.task_timeout
        if limit is None:
            return None
        now = _interop.SYSTEM.monotonic()
        with self._lock:
            busy = [worker.job for worker in tuple(self._workers) if worker.job is not None and not worker.is_starting]
            jobs = [job for job in busy if job.state is RUNNING]
        for job in jobs:
            if now - job.started >= limit:
                self._expire(job, "worker", limit)
        return min((limit - (now - job.started) for job in jobs if now - job.started < limit), default=limit)

    def _break(self, error: BaseException) -> None:
        """Take no jobs any more, for no worker can be had."""
        with self._lock:
            if self._state in ("closed", "broken"):
                return
            self._cause = error
            if self._state == "open":  # else it ends anyway
                self._state = "broken"
            told = Told.all([self._settle_queued(job, self._broken_error()) for job in self._queue.take_all()])
            self._counts.failed += len(told.listeners)
            self._dismiss_idle()
            self._space.notify_all()
            self._close_if_over()
        told.tell()

    def _broken_class(self) -> type[WorkerPoolBrokenError]:
        return WorkerPoolBrokenError

    def _broken_error(self) -> WorkerPoolBrokenError:
        error = self._broken_class()(
            f"workers of pool {self.name!r} cannot be started, so it takes no jobs any more: got {show(self._cause)}; "
            "mend that, and get another pool, whose name may be the same",
            {"pool": self.name},
        )
        error.__cause__ = self._cause
        return error

    def _refusal(self) -> WorkerPoolError:
        return self._broken_error() if self._state == "broken" else self._closed_error()

    def _full_error(self) -> WorkerPoolFullError:
        return WorkerPoolFullError(
            f"worker pool {self.name!r} lets no more than max_queue_size jobs wait: got one more than "
            f"{self.config.max_queue_size}; try later, use asubmit, which waits, or raise max_queue_size",
            {"pool": self.name, "max_queue_size": self.config.max_queue_size},
        )

    def _close_if_over(self) -> None:
        """Be closed when the last worker has left that is not given up. Under the lock."""
        if self._state == "open" or len(self._workers) > self._replaced or self._queue:
            return
        if self._state == "draining":
            self._state = "closed"
        self._is_over = True
        if self._manager is not None:
            self._manager.stop()
        closed, self._closed = self._closed, []
        for callback in closed:
            callback()

    def _dismiss_idle(self) -> None:
        idle, self._idle = self._idle, []
        for worker in idle:
            worker.gate.release()
