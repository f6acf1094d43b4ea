"""How a pool that owns its workers ends, and who sees to it."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable
from typing import Any, Final, Literal, Self

import anyio
import anyio.lowlevel

from agentcore import _interop
from agentcore._interop._waiting import WaitingRoom
from agentcore.errors import WorkerPoolDeadlockError
from agentcore.pools._executor import WorkerPoolExecutor
from agentcore.pools._jobs import RUNNING, Told, current_worker
from agentcore.pools._records import WorkerPoolReport
from agentcore.pools._settling import Worker
from agentcore.pools._workers import WorkingPool

_logger: Final = logging.getLogger("agentcore.pools")
MOMENT: Final = 0.1
"""Seconds that a thread with nothing to do has to end, however late it is."""


class WorkerOwningPool(WorkingPool):
    """A pool whose workers are threads of its own, with its end."""

    def executor(
        self,
        *,
        max_workers: int | None = None,
        thread_name_prefix: str = "",
        mp_context: Any = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        max_tasks_per_child: int | None = None,
    ) -> WorkerPoolExecutor:
        """Return the pool as a `concurrent.futures.Executor`, for what takes one; see `WorkerPoolExecutor`.

        Args:
            max_workers: accepted if it asks for what the pool does anyway, as all of these.
            thread_name_prefix: the pool's name.
            mp_context: ``spawn``.
            initializer: the pool's own.
            initargs: its arguments.
            max_tasks_per_child: the pool's `max_jobs_per_worker`.

        Raises:
            ConfigurationError: one of them asks for something else.
        """
        return WorkerPoolExecutor(
            self,
            max_workers=max_workers,
            thread_name_prefix=thread_name_prefix,
            mp_context=mp_context,
            initializer=initializer,
            initargs=initargs,
            max_tasks_per_child=max_tasks_per_child,
        )

    async def shutdown(self, wait: bool = True, timeout: float | None = None) -> WorkerPoolReport:
        """Take no further jobs and end the workers; see `BaseWorkerPool.shutdown`."""
        limit = self._limit(timeout)
        began = _interop.monotonic()
        await anyio.lowlevel.checkpoint()
        if wait:
            self._check_outside()
        self._begin_end(cancel_waiting=not wait)
        if wait:
            if not await self._wait_until_calm(limit):
                self._cut_short()
            await self._join(began, limit)
            await self._leave_host()
        return self._report(began)

    async def _finish(self, grace: float | None) -> WorkerPoolReport:
        began = _interop.monotonic()
        with anyio.CancelScope(shield=True):
            self._begin_end(cancel_waiting=grace == 0)
            if grace == 0 or not await self._wait_until_calm(grace):
                self._cut_short()
            await self._join(began, grace)
        return self._report(began)

    async def _abort(self) -> WorkerPoolReport:
        began = _interop.monotonic()
        with anyio.CancelScope(shield=True):
            self._begin_end(cancel_waiting=True)
            self._interrupt_all()
            if not await self._wait_until_calm(self.config.shutdown_timeout):
                self._cut_short()
            await self._join(began, self.config.shutdown_timeout)
        return self._report(began)

    def _interrupt_all(self) -> None:
        """Try to end what runs."""
        with self._lock:
            for worker in tuple(self._workers):
                if worker.job is not None and worker.job.state is RUNNING:
                    self._interrupt(worker, worker.job)

    async def _supervise(self) -> None:
        """Own the pool until it is closed. If whoever lives around it is cancelled before, it ends at once."""
        waiter = WaitingRoom.current().waiter()
        with self._lock:
            if self._is_over:
                return
            self._closed.append(waiter.call)
        try:
            await waiter.wait(_leaves)
        finally:
            if not waiter.is_woken:
                if _interop.is_in_loop():
                    await self._finish(0)  # noqa: ASYNC102 - shields itself
                else:  # closed under its tasks: there is nothing to wait with
                    self._begin_end(cancel_waiting=True)
                    self._cut_short()

    def __enter__(self) -> Self:
        if self._state != "open":
            raise self._closed_error()
        return self

    def __exit__(self, exc_type: object, exc: BaseException | None, traceback: object) -> Literal[False]:
        if os.getpid() == self._process:  # after a fork it is the parent's
            self._end_blocking(fails=exc is not None)
        return False

    def _end_blocking(self, *, fails: bool) -> None:
        self._check_outside()
        began, limit = _interop.monotonic(), self.config.shutdown_timeout
        self._begin_end(cancel_waiting=fails)
        if fails:
            self._interrupt_all()
        calm = threading.Event()
        if self._when_calm(calm.set) and not calm.wait(limit):
            self._cut_short()
        self._join_threads(began, limit)

    def _check_outside(self) -> None:
        if getattr(current_worker(), "pool", None) is self:
            raise WorkerPoolDeadlockError(
                f"the end of worker pool {self.name!r} would wait for the job that asks for it: got a call in {self!r} itself; "
                "pass wait=False, or leave the pool elsewhere",
                {"pool": self.name},
            )

    def _begin_end(self, *, cancel_waiting: bool) -> None:
        """Take no further jobs; cancel those that have not begun, or let them."""
        with self._lock:
            if self._state in ("open", "broken"):
                self._state = "draining"
            waiting = self._queue.take_all() if cancel_waiting else []
            self._counts.cancelled += len(waiting)
            self._cut += [job.describe() for job in waiting]
            told = Told.all(self._settle_queued(job, self._closed_error()) for job in waiting)
            self._dismiss_idle()
            self._space.notify_all()
            self._close_if_over()
        told.tell()

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
            self._cut += cut
            self._dismiss_idle()
            self._close_if_over()
        Told.all(told).tell()
        if cut:
            _logger.warning(
                "worker pool %r was shut down before these jobs had ended: %s", self.name, ", ".join(cut[:20])
            )

    async def _join(self, began: float, limit: float | None) -> None:
        with anyio.CancelScope(shield=True):
            await _interop.run_in_thread(self._join_threads, began, limit)

    def _join_threads(self, began: float, limit: float | None) -> None:
        """Wait for the threads, which have nothing to do any more; not for those that nobody knows when they come back."""
        self._give_up(lambda worker: worker.job is not None and not self._is_free_soon(worker))
        with self._lock:
            threads = [*self._leaving, *(worker.thread for worker in self._workers if not worker.is_replaced)]
        # Those that hang before their first job, in the initializer, are told by the time alone.
        end = None if limit is None else max(began + limit, _interop.monotonic() + MOMENT)
        for thread in threads:
            if thread is not None and thread is not threading.current_thread():
                thread.join(None if end is None else max(0.0, end - _interop.monotonic()))
        if limit is not None:
            self._give_up(lambda worker: worker.thread in threads)
        if self._manager is not None:
            self._manager.join()

    def _give_up(self, which: Callable[[Worker], bool]) -> None:
        """Count workers as gone that are not."""
        with self._lock:
            for worker in tuple(self._workers):
                if not worker.is_replaced and which(worker):
                    worker.is_replaced = True
                    self._replaced += 1
            self._close_if_over()

    def _report(self, began: float) -> WorkerPoolReport:
        with self._lock:
            cut = tuple(self._cut)
        return WorkerPoolReport(drained=not cut, cut_short=cut, duration=_interop.monotonic() - began)


def _leaves() -> bool:
    return True
