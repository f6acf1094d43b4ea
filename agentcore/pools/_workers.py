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
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any, Final, final

import anyio

from agentcore import _interop
from agentcore._context import current_pool_job, detached_context
from agentcore._interop._waiting import Waiter, WaitingRoom
from agentcore.errors import (
    JobCancelledError,
    WorkerPoolClosedError,
    WorkerPoolDeadlockError,
    WorkerPoolError,
)
from agentcore.pools._future import PoolFuture
from agentcore.pools._jobs import (
    RUNNING,
    Job,
    Told,
    current_worker,
    enter_worker,
    propagate_task,
)
from agentcore.pools._manager import Manager
from agentcore.pools._records import DEFAULT_OPTIONS, JobOptions
from agentcore.pools._settling import SettlingPool, Worker
from agentcore.pools._waits import is_awaited_by_worker, waiting_for, waiting_in_worker

# What a job ends with when its caller is cancelled, among others: that cancellation goes first.
_OF_THE_CALLER: Final = (JobCancelledError, WorkerPoolClosedError)


class WorkingPool(SettlingPool):
    """A pool whose workers are threads of its own, whatever they do: from the queue to the outcome of a job."""

    # What the kinds say.

    @abc.abstractmethod
    def _run(self, worker: Worker, job: Job) -> tuple[Any, BaseException | None]:
        """Run a job, in the thread of the worker; return what it returned and what it raised."""

    def _open(self, worker: Worker) -> None:
        """Do what is to be done before the first job. What it raises breaks the pool."""

    def _close(self, worker: Worker) -> None:
        """Do what is to be done after the last job."""

    def _sleep(self, worker: Worker) -> bool:
        """Wait until a worker is called at its gate; False if that has not come so far, whatever has ended the wait."""
        return worker.gate.acquire(timeout=_patience(self.config.idle_timeout))

    # Jobs on their way in.

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
        try:
            if waits:
                self._wait_for_space(job)
            self._admit(job, must_fit=is_bounded and not waits)
        except BaseException:
            if job.hand_off is not None:
                job.hand_off.leave()
            raise
        return future

    async def _perform(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], options: JobOptions
    ) -> Any:
        room = WaitingRoom.current()
        await room.checkpoint_if_cancelled()
        job = self._make(function, args, kwargs, options)
        job.listener = waiter = room.waiter()
        if options.timeout is None:
            job.within = current_pool_job.get()
        if _interop.is_time_replaced():
            await self._perform_in_simulation(job, waiter, options)
        else:
            self._admit(job, must_fit=options.when_full == "raise")
            may_leave = partial(self._withdraw, job, abandon=options.abandon_on_cancel)
            if options.timeout is not None or not is_awaited_by_worker():
                await waiter.wait(may_leave)
            else:
                await self._wait_in_worker(job, waiter, may_leave)
        if isinstance(job.error, _OF_THE_CALLER):
            await room.checkpoint_if_cancelled()
        return job.give()

    async def _wait_in_worker(self, job: Job, waiter: Waiter, may_leave: Callable[[], bool]) -> None:
        """Wait for a job in something that a worker waits for."""
        try:
            with waiting_in_worker((job, self), "a job that awaits another one"):
                await waiter.wait(may_leave)
        except WorkerPoolDeadlockError:
            may_leave()
            raise

    async def _perform_in_simulation(self, job: Job, waiter: Waiter, options: JobOptions) -> None:
        """Hand a job over and wait for it, in the time of the event loop, which stands still while the job runs."""
        make = _interop.sources.get().hand_off
        job.hand_off = make() if make is not None else None

        def may_leave() -> bool:
            if scope.deadline <= anyio.current_time():
                self._expire(job)
                return True
            return self._withdraw(job, abandon=options.abandon_on_cancel)

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
            if job.deadline is not None or self._is_limited:
                self._watch(job)
            self._queue.push(job)
            if job.hand_off is not None and self._are_all_busy():
                job.hand_off.rest()
            new = self._call_worker()
        if new is not None:
            self._start(new)

    def _are_all_busy(self) -> bool:
        """Tell whether a job can only be begun when another one has ended."""
        workers = [worker for worker in tuple(self._workers) if not worker.is_replaced]
        return len(workers) >= self._size and all(worker.job is not None for worker in workers)

    def _call_worker(self) -> Worker | None:
        """Have an idle worker look into the queue; if there is none, return a new one to be started, or None if all are busy.

        One that has been called calls the next one itself when it has come: whoever submits many jobs wakes up one thread.
        """
        if self._called is not None:
            return None
        if self._idle:
            self._called = self._idle.pop()
            self._called.gate.release()
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
                if len(self._workers) > self._replaced:
                    return
            self._break(error)
        except BaseException:  # an interrupt: the worker must not be counted for good
            with self._lock:
                self._workers.discard(worker)
            raise

    def _watch(self, job: Job) -> None:
        if _interop.is_time_replaced():
            return  # whoever waits does it by a scope, in the time of the event loop
        if self._manager is None:
            self._manager = Manager(f"{self.name}-manager", self._expire, self._end_hung)
        if job.deadline is not None:
            self._manager.add(job, len(self._queue) + self._counts.running)

    def _wait_for_space(self, job: Job) -> None:
        if _interop.is_in_loop():
            raise WorkerPoolError(
                f"submit of worker pool {self.name!r} must not wait in an event loop, which it would block: "
                "got when_full='wait'; use `await pool.asubmit(...)` there",
                {"pool": self.name},
            )
        endless = job.deadline is None and current_worker() is not None
        with waiting_for((job, self), "a job that waits for room") if endless else nullcontext(), self._space:
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
        worker.ident = threading.get_ident()
        try:
            self._open(worker)
        except BaseException as error:  # noqa: ASYNC103, BLE001 - told to everybody
            self._break(error)
        job: Job | None = None
        try:
            while True:
                if job is None:
                    job = self._wait_for_job(worker)
                    if job is None:
                        return
                try:
                    run = self._run if job.hand_off is None else job.hand_off.wrap(self._run)
                    value, raised = run(worker, job)
                except BaseException as error:  # noqa: ASYNC103, BLE001 - a defect; but a worker never ends, and its caller is told
                    value, raised = None, error
                job = self._turn(worker, job, value, raised)
                del value, raised  # a worker that waits keeps nothing
        finally:
            self._close(worker)

    def _turn(self, worker: Worker, done: Job, value: Any, error: BaseException | None) -> Job | None:
        """Settle the job that a worker has done, and return the next one; None if there is none now."""
        now = _interop.clock()
        with self._lock:
            calm = self._settle_done(worker, done, value, error, now)
            listener, done.listener = done.listener, None
            # Not before the callbacks of a future have been called, which may take their time. In a simulation all the same,
            # lest that finds everything at rest in between.
            is_slow = isinstance(listener, PoolFuture) and done.hand_off is None
            job, new = (None, None) if is_slow else self._next(worker, now)
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
        while True:
            with self._lock:
                job, new = worker.job, None  # which it may have been given without a call
                # If it waits, it has looked already, in `_turn`, and stands in line, or was called from there meanwhile.
                if job is None and not worker.is_waiting:
                    job, new = self._come(worker)
            if new is not None:
                self._start(new)
            if self._late:
                self._tell_late()
            if job is not None:
                return job
            if worker not in self._workers:
                return None
            if worker.is_waiting and not self._is_called(worker):
                return None

    def _is_called(self, worker: Worker) -> bool:
        """Wait in line; tell whether the worker was called, and not idle for too long, so that it has left."""
        is_called = self._sleep(worker)
        with self._lock:
            if not is_called and worker in self._idle:
                self._idle.remove(worker)
                self._leave(worker)
                return False
            worker.is_waiting = False
            if not is_called and worker.job is None:
                worker.gate.acquire()  # it was called at the very last moment
            return True

    def _come(self, worker: Worker) -> tuple[Job | None, Worker | None]:
        """Take a job, as `_next` does, and have another worker come for the one behind it."""
        if self._called is worker:
            self._called = None
        job, new = self._next(worker, _interop.clock())
        if job is not None and self._queue:
            new = self._call_worker()
        return job, new

    def _tell_late(self) -> None:
        """Tell of the jobs that were too late when their turn came."""
        with self._lock:
            late, self._late = self._late, []
        Told.all(late).tell()

    def _next(self, worker: Worker, now: float) -> tuple[Job | None, Worker | None]:
        """Take a job, or wait in line, or leave. Under the lock; returns the job, and a worker that is to be started."""
        if worker not in self._workers:
            return None, None
        limit = self._max_jobs
        # While the interpreter ends there can be no further thread, so this one stays.
        is_spent = limit is not None and worker.jobs_done >= limit and threading.main_thread().is_alive()
        if worker.is_replaced or is_spent:
            self._leave(worker)
            return None, self._call_worker() if self._queue else None
        while (job := self._queue.pop()) is not None and job.deadline is not None and job.deadline <= now:
            self._counts.timed_out += 1
            self._queue.undo_pop()
            self._late.append(self._settle_queued(job, job.too_late(self.name, "queued", job.timeout or 0.0)))
            if job.hand_off is None:
                return None, None  # it comes again when that has been told
        if job is None:
            if self._state == "open":
                self._idle.append(worker)
                worker.is_waiting = True
            else:
                self._leave(worker)
            return None, None
        if job.hand_off is not None:
            job.hand_off.resume()
        self._begin(worker, job, now)
        if self._waiting_for_space:
            self._space.notify()
        return job, None

    def _begin(self, worker: Worker, job: Job, now: float) -> None:
        """Note that a worker has a job from now on. Under the lock."""
        job.state = RUNNING
        job.started = now
        job.worker = worker
        worker.job = job
        worker.is_waiting = False  # it may have been given the job before it has gone to sleep
        self._counts.begin(now - job.submitted)

    def _leave(self, worker: Worker) -> None:
        """Have a worker be none any more. Under the lock, in its thread."""
        self._workers.discard(worker)
        self._replaced -= worker.is_replaced
        if worker.thread is not None:
            self._leaving = [thread for thread in self._leaving if thread.is_alive()]
            self._leaving.append(worker.thread)
        self._close_if_over()

    def _threads(self) -> list[int] | None:
        """Return the threads of the workers; None if there could be more of them."""
        with self._lock:
            idents = [worker.ident for worker in tuple(self._workers) if not worker.is_replaced]
            if len(idents) < self._size or any(ident is None for ident in idents):
                return None
            return [ident for ident in idents if ident is not None]


def _follow_in_simulation(job: Job, future: PoolFuture[Any]) -> None:
    """Have the clock of a simulation stand still until a job has ended that nobody waits for yet."""
    if not _interop.is_time_replaced():
        return
    make = _interop.sources.get().hand_off
    if make is not None and _interop.is_in_loop():
        job.hand_off = make()
        # After all who wait for it have been called, lest the simulation think that nobody ever will be.
        future._when_told = partial(_post, _interop.wake_up_function(), job.hand_off.leave)


def _post(wake_up: Callable[[Callable[[], object]], object], callback: Callable[[], object]) -> None:
    try:
        wake_up(callback)
    except RuntimeError:  # the event loop has ended, and with it whoever would like to know
        return


def _patience(seconds: float | None) -> float:
    """Return how long a lock may be waited for, in its own terms."""
    return -1 if seconds is None else min(seconds, threading.TIMEOUT_MAX)
