"""Pools that own their workers: what threads and processes have in common, from the queue to the outcome of a job.

Each worker is a thread of this process; what it does with a job is for the kind to say. A job goes from the queue straight
to the worker, and its outcome straight to whoever waits: the event loop, if there is one, only learns of it. So it may be
blocked, in `PoolFuture.result` for instance, and the jobs go on.

All that is shared is changed under one lock, held for a few lines at a time and never while anything waits. It is reentrant:
the collector of garbage may run anything at any place, even a submission.
"""

from __future__ import annotations

import abc
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, final

import anyio

from agentcore import _interop
from agentcore._context import detached_context
from agentcore._interop import Waiter, WaitingRoom
from agentcore.errors import (
    JobCancelledError,
    WorkerCrashedError,
    WorkerPoolBrokenError,
    WorkerPoolClosedError,
    WorkerPoolError,
    WorkerPoolFullError,
)
from agentcore.pools._base import BaseWorkerPool
from agentcore.pools._future import PoolFuture
from agentcore.pools._jobs import QUEUED, RUNNING, SETTLED, Job, JobQueue, Told, enter_worker, propagate_task
from agentcore.pools._manager import Manager
from agentcore.pools._records import DEFAULT_OPTIONS, Counts, JobInfo, JobOptions, WorkerPoolMetrics


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
        thread: None until it is started.
    """

    __slots__ = ("child", "gate", "is_replaced", "is_waiting", "job", "jobs_done", "number", "pool", "thread")

    def __init__(self, pool: WorkingPool, number: int) -> None:
        self.pool = pool
        self.number = number
        self.job: Job | None = None
        self.jobs_done = 0
        self.is_replaced = self.is_waiting = False
        self.thread: threading.Thread | None = None
        # Locked while there is nothing to do.
        self.gate = threading.Lock()
        self.gate.acquire()
        self.child: Any = None  # of the kinds that need one

    @property
    def ident(self) -> int | None:
        """Of the thread; None before it is started."""
        return self.thread.ident if self.thread is not None else None


class WorkingPool(BaseWorkerPool):
    """A pool whose workers are threads of its own, whatever they do: from the queue to the outcome of a job."""

    def __init__(self, name: str, config: Any = None) -> None:
        super().__init__(name, config)
        self._size = self.config.size
        self._lock = threading.RLock()
        self._queue = JobQueue()
        self._counts = Counts()
        self._workers: set[Worker] = set()
        self._idle: list[Worker] = []  # the one that became idle last is called first, so that others can expire
        self._abandoned = self._replaced = self._numbers = 0
        self._manager: Manager | None = None
        self._cause: BaseException | None = None  # of its being broken
        self._is_over = False  # whether the last worker has left
        self._cut: list[str] = []
        self._leaving: list[threading.Thread] = []
        # Called when the last job is settled, if there are no further ones; and when the last worker has left.
        self._calm: list[Callable[[], object]] = []
        self._closed: list[Callable[[], object]] = []
        self._space = threading.Condition(self._lock)
        self._waiting_for_space = 0

    # What the kinds say.

    @abc.abstractmethod
    def _run(self, worker: Worker, job: Job) -> tuple[Any, BaseException | None]:
        """Run a job, in the thread of the worker; return what it returned and what it raised."""

    def _open(self, worker: Worker) -> None:
        """Do what is to be done before the first job. What it raises breaks the pool."""

    def _close(self, worker: Worker) -> None:
        """Do what is to be done after the last job."""

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

    @property
    def _max_jobs(self) -> int | None:
        """How many jobs a worker runs in its life."""
        return None

    # Jobs on their way in.

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
                (worker.job for worker in self._workers if worker.job is not None), key=lambda job: job.started
            )
            return tuple(
                JobInfo(function=job.describe(), seconds=now - job.started, abandoned=job.state is SETTLED)
                for job in jobs
            )

    def _make(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], options: JobOptions
    ) -> Job:
        context = detached_context()
        _interop.forget_library(context)
        propagate_task(context)
        return Job(function, args, kwargs, context, options.priority, options.timeout)

    def _send(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: JobOptions = DEFAULT_OPTIONS,
        *,
        is_bounded: bool = False,
    ) -> PoolFuture[Any]:
        """Hand over a job and return its future. If it is bounded, it may be refused, or wait, because the queue is full."""
        job = self._make(function, args, kwargs, options)
        future: PoolFuture[Any] = PoolFuture(job, self)
        job.listener = future
        _follow_in_simulation(job, future)
        waits = is_bounded and options.when_full == "wait"
        if waits:
            self._wait_for_space(job)
        self._admit(job, must_fit=is_bounded and not waits)
        return future

    async def _perform(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], options: JobOptions
    ) -> Any:
        room = WaitingRoom.current()
        await room.checkpoint_if_cancelled()
        job = self._make(function, args, kwargs, options)
        job.listener = waiter = room.waiter()
        if _interop.is_time_replaced():
            await self._perform_in_simulation(job, waiter, options)
        else:
            self._admit(job, must_fit=options.when_full == "raise")
            await waiter.wait(partial(self.withdraw, job, abandon=options.abandon_on_cancel))
        if isinstance(job.error, JobCancelledError):
            await room.checkpoint_if_cancelled()  # by the cancellation of this very call
        return job.give()

    async def _perform_in_simulation(self, job: Job, waiter: Waiter, options: JobOptions) -> None:
        """Hand a job over and wait for it, in the time of the event loop, which stands still while the job runs."""
        make = _interop.sources.get().hand_off
        job.hand_off = make() if make is not None else None

        def may_leave() -> bool:
            if scope.deadline <= anyio.current_time():
                self.expire(job)
                return True
            return self.withdraw(job, abandon=options.abandon_on_cancel)

        try:
            self._admit(job, must_fit=options.when_full == "raise")
            with anyio.move_on_after(options.timeout) as scope:
                await waiter.wait(may_leave)
        finally:
            if job.hand_off is not None:
                job.hand_off.leave()

    def _admit(self, job: Job, *, must_fit: bool) -> None:
        """Put a job into the queue, and have a worker come for it."""
        with self._lock:
            if self._state != "open":
                raise self._refusal()
            if must_fit and len(self._queue) >= self.config.max_queue_size:
                self._counts.rejected += 1
                raise self._full_error()
            if job.deadline is not None or self.config.task_timeout is not None:
                self._watch(job)
            self._queue.push(job)
            new = self._call_worker()
        if new is not None:
            self._start(new)

    def _call_worker(self) -> Worker | None:
        """Have an idle worker look into the queue; if there is none, return a new one to be started, or None if all are busy."""
        if self._idle:
            self._idle.pop().gate.release()
            return None
        if len(self._workers) - self._replaced < self._size:
            self._numbers += 1
            worker = Worker(self, self._numbers)
            self._workers.add(worker)
            return worker
        return None

    def _start(self, worker: Worker) -> None:
        try:
            worker.thread = _interop.start_thread(partial(self._work, worker), f"{self.name}-{worker.number}")
        except RuntimeError as error:  # there can be no further thread
            with self._lock:
                self._workers.discard(worker)
                if self._workers:
                    return
            self._break(error)

    def _watch(self, job: Job) -> None:
        if _interop.is_time_replaced():
            return  # whoever waits does it by a scope, in the time of the event loop
        if self._manager is None:
            self._manager = Manager(f"{self.name}-manager", self.expire, self._end_hung)
        if job.deadline is not None:
            self._manager.add(job, len(self._queue) + self._counts.running)

    def _wait_for_space(self, job: Job) -> None:
        if _interop.is_in_loop():
            raise WorkerPoolError(
                f"submit of worker pool {self.name!r} must not wait in an event loop, which it would block: "
                "got when_full='wait'; use `await pool.asubmit(...)` there",
                {"pool": self.name},
            )
        with self._space:
            self._waiting_for_space += 1
            try:
                while self._state == "open" and len(self._queue) >= self.config.max_queue_size:
                    left = None if job.deadline is None else job.deadline - _interop.clock()
                    if left is not None and left <= 0:
                        self._counts.timed_out += 1
                        raise job.too_late(self.name, "queued", job.timeout or 0.0)
                    self._space.wait(left)
            finally:
                self._waiting_for_space -= 1

    # A worker.

    @final
    def _work(self, worker: Worker) -> None:
        """Be the worker: the whole life of its thread."""
        enter_worker(worker)
        try:
            self._open(worker)
        except BaseException as error:  # noqa: BLE001 - told to everybody
            self._break(error)
        job: Job | None = None
        try:
            while True:
                if job is None:
                    job = self._wait_for_job(worker)
                    if job is None:
                        return
                value, raised = self._attempt(worker, job)
                job = self._turn(worker, job, value, raised)
                del value, raised  # a worker that waits keeps nothing
        finally:
            self._close(worker)

    def _attempt(self, worker: Worker, job: Job) -> tuple[Any, BaseException | None]:
        if job.hand_off is None:
            return self._run(worker, job)
        outcome: tuple[Any, BaseException | None] = job.hand_off.wrap(self._run)(worker, job)
        return outcome

    def _turn(self, worker: Worker, done: Job, value: Any, error: BaseException | None) -> Job | None:
        """Settle the job that a worker has done, and return the next one; None if there is none now."""
        with self._lock:
            calm = self._settle_done(worker, done, value, error)
            listener, done.listener = done.listener, None
            job, new = self._next(worker)
        # Those first who wait for the end of everything: in a simulation nothing may be missed by then.
        for callback in calm:
            callback()
        if listener is not None:
            listener.job_ended(done)
        if new is not None:
            self._start(new)
        return job

    def _wait_for_job(self, worker: Worker) -> Job | None:
        """Return the next job as soon as there is one; None if the worker is to end."""
        with self._lock:
            # Otherwise it has looked already, and waits in line, or was called from there meanwhile.
            job, new = (None, None) if worker.is_waiting else self._next(worker)
        while job is None:
            if new is not None:
                self._start(new)
            if worker not in self._workers:
                return None
            is_called = worker.gate.acquire(timeout=_patience(self.config.idle_timeout))
            with self._lock:
                if not is_called and worker in self._idle:
                    self._idle.remove(worker)
                    self._leave(worker)
                    return None
                if not is_called:
                    worker.gate.acquire()  # it was called at the very last moment
                worker.is_waiting = False
                job, new = self._next(worker)
        return job

    def _next(self, worker: Worker) -> tuple[Job | None, Worker | None]:
        """Take a job, or wait in line, or leave. Under the lock; returns the job, and a worker that is to be started."""
        if worker not in self._workers:
            return None, None
        limit = self._max_jobs
        if worker.is_replaced or (limit is not None and worker.jobs_done >= limit):
            self._leave(worker)
            return None, self._call_worker() if self._queue else None
        job = self._queue.pop()
        if job is None:
            if self._state == "open":
                self._idle.append(worker)
                worker.is_waiting = True
            else:
                self._leave(worker)
            return None, None
        now = _interop.clock()
        job.state = RUNNING
        job.started = now
        job.worker = worker
        worker.job = job
        self._counts.begin(now - job.submitted)
        if self._waiting_for_space:
            self._space.notify()
        return job, None

    def _leave(self, worker: Worker) -> None:
        """Have a worker be none any more. Under the lock, in its thread."""
        self._workers.discard(worker)
        self._replaced -= worker.is_replaced
        if worker.thread is not None:
            self._leaving = [thread for thread in self._leaving if thread.is_alive()]
            self._leaving.append(worker.thread)
        self._close_if_over()

    # Outcomes. Each is decided under the lock and told without it.

    def _settle_done(
        self, worker: Worker, job: Job, value: Any, error: BaseException | None
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
        elif isinstance(error, WorkerCrashedError):
            self._counts.crashed += 1
        elif job.is_unwanted and isinstance(error, JobCancelledError):
            self._counts.cancelled += 1
        else:
            self._counts.failed += 1
        self._counts.end(_interop.clock() - job.started)
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

    def take_back(self, job: Job) -> bool:
        """Cancel a job that has not begun; tell whether it had not."""
        with self._lock:
            if job.state is not QUEUED:
                return False
            self._counts.cancelled += 1
            told = self._settle_queued(job, None)
        told.tell()
        return True

    def withdraw(self, job: Job, *, abandon: bool) -> bool:
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

    def expire(self, job: Job, phase: str = "running", limit: float | None = None) -> None:
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
            jobs = [worker.job for worker in self._workers if worker.job is not None and worker.job.state is RUNNING]
        for job in jobs:
            if now - job.started >= limit:
                self.expire(job, "worker", limit)
        return min((limit - (now - job.started) for job in jobs if now - job.started < limit), default=limit)

    def _break(self, error: BaseException) -> None:
        """Take no jobs any more, for no worker can be had."""
        with self._lock:
            if self._state in ("closed", "broken"):
                return
            self._state, self._cause = "broken", error
            told = Told.all(self._settle_queued(job, self._broken_error()) for job in self._queue.take_all())
            self._counts.failed += len(told.listeners)
            self._dismiss_idle()
            self._close_if_over()
        told.tell()

    def _broken_error(self) -> WorkerPoolBrokenError:
        error = WorkerPoolBrokenError(
            f"workers of pool {self.name!r} cannot be started, so it takes no jobs any more: got {self._cause!r}; "
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

    def threads(self) -> list[int] | None:
        """Return the threads of the workers; None if there could be more of them."""
        with self._lock:
            idents = [worker.ident for worker in self._workers if not worker.is_replaced]
            if len(idents) < self._size or any(ident is None for ident in idents):
                return None
            return [ident for ident in idents if ident is not None]


def _follow_in_simulation(job: Job, future: PoolFuture[Any]) -> None:
    """Have the clock of a simulation stand still until a job has ended that nobody waits for yet."""
    if not _interop.is_time_replaced():
        return
    make = _interop.sources.get().hand_off
    if make is not None and _interop.is_in_loop():
        hand_off = job.hand_off = make()
        post = _interop.wake_up_function()
        future.add_done_callback(lambda _: post(hand_off.leave))


def _patience(seconds: float | None) -> float:
    """Return how long a lock may be waited for, in its own terms."""
    return -1 if seconds is None else min(seconds, threading.TIMEOUT_MAX)
