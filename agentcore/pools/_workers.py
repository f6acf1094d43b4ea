"""Pools that own their workers: what threads and processes have in common.

Each worker is a thread of this process; what it does with a job is for the kind to say. A job goes from the queue straight
to the worker, and its outcome straight to whoever waits: the event loop, if there is one, only learns of it. So it may be
blocked, in `PoolFuture.result` for instance, and the jobs go on.

All that is shared is changed under one lock, held for a few lines at a time and never while anything waits. It is reentrant:
the collector of garbage may run anything at any place, even a submission.
"""

from __future__ import annotations

import abc
import logging
import threading
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final, Literal, Self, final

import anyio
import anyio.lowlevel

from agentcore import _interop
from agentcore._context import detached_context
from agentcore._interop import Waiter, WaitingRoom
from agentcore.errors import (
    JobCancelledError,
    WorkerCrashedError,
    WorkerPoolBrokenError,
    WorkerPoolClosedError,
    WorkerPoolDeadlockError,
    WorkerPoolError,
    WorkerPoolFullError,
)
from agentcore.pools._base import BaseWorkerPool
from agentcore.pools._future import PoolFuture
from agentcore.pools._jobs import QUEUED, RUNNING, SETTLED, Job, JobQueue, current_worker, enter_worker, propagate_task
from agentcore.pools._manager import Manager
from agentcore.pools._records import DEFAULT_OPTIONS, Counts, JobInfo, JobOptions, WorkerPoolMetrics, WorkerPoolReport

_logger: Final = logging.getLogger("agentcore.pools")


class Worker:
    """One thread that runs jobs.

    Attributes:
        pool: which it belongs to.
        number: of the worker in its pool, from 1.
        job: what it runs, also when that is settled already; None if it waits.
        jobs_done: how many it has run.
        is_replaced: whether another one has its place, since nobody knows when it comes back.
        thread: None until it is started.
    """

    __slots__ = ("child", "gate", "is_replaced", "job", "jobs_done", "number", "pool", "thread")

    def __init__(self, pool: WorkerOwningPool, number: int) -> None:
        self.pool = pool
        self.number = number
        self.job: Job | None = None
        self.jobs_done = 0
        self.is_replaced = False
        self.thread: threading.Thread | None = None
        # Locked while there is nothing to do.
        self.gate = threading.Lock()
        self.gate.acquire()
        self.child: Any = None  # of the kinds that need one

    @property
    def ident(self) -> int | None:
        """Of the thread; None before it is started."""
        return self.thread.ident if self.thread is not None else None


class WorkerOwningPool(BaseWorkerPool):
    """A pool whose workers are threads of its own, whatever they do."""

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
        await anyio.lowlevel.checkpoint_if_cancelled()
        job = self._make(function, args, kwargs, options)
        waiter = WaitingRoom.current().waiter()
        call = _Call(self, job, waiter, options.abandon_on_cancel)
        job.listener = call
        if _interop.is_time_replaced():
            await call.wait_in_simulation(options)
        else:
            self._admit(job, must_fit=options.when_full == "raise")
            await waiter.wait(call.may_leave)
        if isinstance(job.error, JobCancelledError):
            await anyio.lowlevel.checkpoint_if_cancelled()  # by the cancellation of this very call
        return job.give()

    def _admit(self, job: Job, *, must_fit: bool) -> None:
        """Put a job into the queue, and have a worker come for it."""
        with self._lock:
            if self._state != "open":
                raise self._refusal()
            if must_fit and len(self._queue) >= self.config.max_queue_size:
                self._counts.rejected += 1
                raise self._full_error()
            self._queue.push(job)
            new = self._call_worker()
            if job.deadline is not None or self.config.task_timeout is not None:
                self._watch(job)
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
        try:
            job = self._turn(worker)
            while job is not None:
                job = self._turn(worker, job, *self._attempt(worker, job))
        finally:
            self._close(worker)

    def _attempt(self, worker: Worker, job: Job) -> tuple[Any, BaseException | None]:
        run = self._run if job.hand_off is None else job.hand_off.wrap(self._run)
        outcome: tuple[Any, BaseException | None] = run(worker, job)
        return outcome

    def _turn(
        self, worker: Worker, done: Job | None = None, value: Any = None, error: BaseException | None = None
    ) -> Job | None:
        """Settle the job that a worker has done, and return the next one as soon as there is one; None if it is to end."""
        with self._lock:
            told = self._settle_done(worker, done, value, error) if done is not None else _NOBODY
            job, new = self._next(worker)
        told.tell()
        del done, value, error, told  # a worker that waits keeps nothing
        while True:
            if new is not None:
                self._start(new)
            if job is not None or worker not in self._workers:
                return job
            is_called = worker.gate.acquire(timeout=_patience(self.config.idle_timeout))
            with self._lock:
                if not is_called and worker in self._idle:
                    self._idle.remove(worker)
                    self._leave(worker)
                    job = new = None
                else:
                    if not is_called:
                        worker.gate.acquire()  # it was called at the very last moment
                    job, new = self._next(worker)

    def _next(self, worker: Worker) -> tuple[Job | None, Worker | None]:
        """Take a job, or wait in line, or leave. Under the lock; returns the job, and a worker that is to be started."""
        limit = self._max_jobs
        if worker.is_replaced or (limit is not None and worker.jobs_done >= limit):
            self._leave(worker)
            return None, self._call_worker() if self._queue else None
        job = self._queue.pop()
        if job is None:
            if self._state == "open":
                self._idle.append(worker)
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

    def _settle_done(self, worker: Worker, job: Job, value: Any, error: BaseException | None) -> _Told:
        """Settle a job that has come to its end, unless that was done before."""
        worker.job = None
        worker.jobs_done += 1
        if job.state is SETTLED:  # nobody has waited for this
            self._abandoned -= 1
            job.release()
            return _NOBODY
        job.value, job.error = value, error
        if error is None:
            self._counts.succeeded += 1
        elif isinstance(error, WorkerCrashedError):
            self._counts.crashed += 1
        elif job.is_unwanted and isinstance(error, JobCancelledError):
            self._counts.cancelled += 1
        else:
            self._counts.failed += 1
        told = self._settle(job)
        job.release()
        return told

    def _settle(self, job: Job) -> _Told:
        """Decide the outcome, which stands in the job."""
        if job.state is RUNNING:
            self._counts.end(_interop.clock() - job.started)
        job.state = SETTLED
        listener, job.listener = job.listener, None
        return _Told([(listener, job)], self._take_calm())

    def _settle_queued(self, job: Job, error: BaseException | None) -> _Told:
        """Settle a job that has not begun; without an error it was cancelled."""
        job.error = error
        job.is_cancelled = error is None or isinstance(error, WorkerPoolClosedError)
        self._queue.discard()
        told = self._settle(job)
        job.release()
        return told

    def _settle_running(self, job: Job, error: BaseException | None) -> tuple[_Told, Worker | None]:
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
            told = _Told.all(self._settle_queued(job, self._broken_error()) for job in self._queue.take_all())
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

    def threads(self) -> list[int] | None:
        """Return the threads of the workers; None if there could be more of them."""
        with self._lock:
            idents = [worker.ident for worker in self._workers if not worker.is_replaced]
            if len(idents) < self._size or any(ident is None for ident in idents):
                return None
            return [ident for ident in idents if ident is not None]

    # The end.

    async def shutdown(self, wait: bool = True, timeout: float | None = None) -> WorkerPoolReport:
        """Take no further jobs and end the workers; see `BaseWorkerPool.shutdown`."""
        limit = self._limit(timeout)
        began = _interop.monotonic()
        await anyio.lowlevel.checkpoint()
        self._begin_end(cancel_waiting=not wait)
        if wait:
            if not await self._wait_until_calm(limit):
                self._cut_short()
            await self._join()
        return self._report(began)

    async def _finish(self, grace: float | None) -> WorkerPoolReport:
        began = _interop.monotonic()
        with anyio.CancelScope(shield=True):
            self._begin_end(cancel_waiting=grace == 0)
            if grace == 0 or not await self._wait_until_calm(grace):
                self._cut_short()
            await self._join()
        return self._report(began)

    async def _abort(self) -> WorkerPoolReport:
        began = _interop.monotonic()
        with anyio.CancelScope(shield=True):
            self._begin_end(cancel_waiting=True)
            with self._lock:
                for worker in self._workers:
                    if worker.job is not None and worker.job.state is RUNNING:
                        self._interrupt(worker, worker.job)
            if not await self._wait_until_calm(self.config.shutdown_timeout):
                self._cut_short()
            await self._join()
        return self._report(began)

    async def _supervise(self) -> None:
        """Own the pool until it is closed. If whoever lives around it is cancelled before, it ends at once."""
        waiter = WaitingRoom.current().waiter()
        with self._lock:
            if self._state == "closed":
                return
            self._closed.append(waiter.call)
        try:
            await waiter.wait(_leaves)
        finally:
            if not waiter.is_woken:
                await self._finish(0)  # noqa: ASYNC102 - shields itself

    def __enter__(self) -> Self:
        if self._state != "open":
            raise self._closed_error()
        return self

    def __exit__(self, exc_type: object, exc: BaseException | None, traceback: object) -> Literal[False]:
        self._end_blocking(cancel_waiting=exc is not None)
        return False

    def _end_blocking(self, *, cancel_waiting: bool) -> None:
        if getattr(current_worker(), "pool", None) is self:
            raise WorkerPoolDeadlockError(
                f"the end of worker pool {self.name!r} would wait for the job that asks for it: got a call in {self!r} itself; "
                "leave the pool elsewhere",
                {"pool": self.name},
            )
        self._begin_end(cancel_waiting=cancel_waiting)
        calm = threading.Event()
        if self._when_calm(calm.set) and not calm.wait(self.config.shutdown_timeout):
            self._cut_short()
        self._join_threads()

    def _begin_end(self, *, cancel_waiting: bool) -> None:
        """Take no further jobs; cancel those that have not begun, or let them."""
        with self._lock:
            if self._state == "open":
                self._state = "draining"
            waiting = self._queue.take_all() if cancel_waiting else []
            self._counts.cancelled += len(waiting)
            told = _Told.all(self._settle_queued(job, self._closed_error()) for job in waiting)
            self._dismiss_idle()
            self._space.notify_all()
            self._close_if_over()
        told.tell()

    def _dismiss_idle(self) -> None:
        idle, self._idle = self._idle, []
        for worker in idle:
            worker.gate.release()

    def _when_calm(self, callback: Callable[[], object]) -> bool:
        """Call back when the last job is settled; tell whether there still is one."""
        with self._lock:
            if not self._queue and not self._counts.running:
                return False
            self._calm.append(callback)
            return True

    async def _wait_until_calm(self, limit: float | None) -> bool:
        """Wait until the last job is settled; tell whether that came in time."""
        waiter = WaitingRoom.current().waiter()
        if not self._when_calm(waiter.call):
            return True
        with anyio.move_on_after(limit):
            await waiter.wait(_leaves)
        return waiter.is_woken

    def _cut_short(self) -> None:
        """Settle everything that there is, whatever its workers do."""
        with self._lock:
            waiting = self._queue.take_all()
            self._counts.cancelled += len(waiting)
            cut = [job.describe() for job in waiting]
            told = [self._settle_queued(job, self._closed_error()) for job in waiting]
            for worker in list(self._workers):
                job = worker.job
                if job is not None and job.state is RUNNING:
                    cut.append(job.describe())
                    self._counts.cancelled += 1
                    told.append(self._settle_running(job, self._closed_error())[0])
                if job is not None and not worker.is_replaced and not self._is_free_soon(worker):
                    worker.is_replaced = True  # nobody waits for it, whatever the limit for those is
                    self._replaced += 1
            self._cut += cut
            self._dismiss_idle()
            self._close_if_over()
        _Told.all(told).tell()
        if cut:
            _logger.warning(
                "worker pool %r was shut down before these jobs had ended: %s", self.name, ", ".join(cut[:20])
            )

    def _close_if_over(self) -> None:
        """Be closed when the last worker has left that is not given up. Under the lock."""
        if self._state == "open" or len(self._workers) > self._replaced or self._queue:
            return
        if self._state == "draining":
            self._state = "closed"
        if self._manager is not None:
            self._manager.stop()
        closed, self._closed = self._closed, []
        for callback in closed:
            callback()

    async def _join(self) -> None:
        with anyio.CancelScope(shield=True):
            await _interop.run_in_thread(self._join_threads)

    def _join_threads(self) -> None:
        """Wait for the threads, which have nothing to do any more; not for those that were given up."""
        with self._lock:
            threads = [*self._leaving, *(worker.thread for worker in self._workers if not worker.is_replaced)]
        for thread in threads:
            if thread is not None and thread is not threading.current_thread():
                thread.join()
        if self._manager is not None:
            self._manager.join()

    def _report(self, began: float) -> WorkerPoolReport:
        with self._lock:
            cut = tuple(self._cut)
        return WorkerPoolReport(drained=not cut, cut_short=cut, duration=_interop.monotonic() - began)


@final
class _Call:
    """A caller that waits for his job in an event loop."""

    __slots__ = ("_abandon", "_job", "_pool", "_scope", "_waiter")

    def __init__(self, pool: WorkerOwningPool, job: Job, waiter: Waiter, abandon: bool) -> None:
        self._pool = pool
        self._job = job
        self._waiter = waiter
        self._abandon = abandon
        self._scope: anyio.CancelScope | None = None

    def job_ended(self, job: Job) -> None:
        """Have the caller go on."""
        del job
        self._waiter.call()

    def may_leave(self) -> bool:
        """Decide whether the cancelled caller may go at once."""
        scope = self._scope
        if scope is not None and scope.deadline <= anyio.current_time():
            self._pool.expire(self._job)
            return True
        return self._pool.withdraw(self._job, abandon=self._abandon)

    async def wait_in_simulation(self, options: JobOptions) -> None:
        """Hand the job over and wait for it, in the time of the event loop, which stands still while the job runs."""
        pool, job = self._pool, self._job
        make = _interop.sources.get().hand_off
        job.hand_off = make() if make is not None else None
        try:
            pool._admit(job, must_fit=options.when_full == "raise")
            with anyio.move_on_after(options.timeout) as self._scope:
                await self._waiter.wait(self.may_leave)
        finally:
            if job.hand_off is not None:
                job.hand_off.leave()


@final
class _Told:
    """Who is to be told of what, as soon as the lock is free."""

    __slots__ = ("calm", "listeners")

    def __init__(self, listeners: list[tuple[Any, Job]], calm: list[Callable[[], object]]) -> None:
        self.listeners = listeners
        self.calm = calm

    @classmethod
    def all(cls, several: Iterable[_Told]) -> _Told:
        """Return the sum of several."""
        told = cls([], [])
        for one in several:
            told.listeners += one.listeners
            told.calm += one.calm
        return told

    def tell(self) -> None:
        """Tell them. First those who wait for the end of everything: in a simulation nothing may be missed by then."""
        for callback in self.calm:
            callback()
        for listener, job in self.listeners:
            if listener is not None:
                listener.job_ended(job)


_NOBODY: Final = _Told([], [])


def _follow_in_simulation(job: Job, future: PoolFuture[Any]) -> None:
    """Have the clock of a simulation stand still until a job has ended that nobody waits for yet."""
    if not _interop.is_time_replaced():
        return
    make = _interop.sources.get().hand_off
    if make is not None and _interop.is_in_loop():
        hand_off = job.hand_off = make()
        post = _interop.wake_up_function()
        future.add_done_callback(lambda _: post(hand_off.leave))


def _leaves() -> bool:
    return True


def _patience(seconds: float | None) -> float:
    """Return how long a lock may be waited for, in its own terms."""
    return -1 if seconds is None else min(seconds, threading.TIMEOUT_MAX)
