"""The future of a job: the standard library's, which can be awaited too."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future
from typing import Any, Final, Protocol, TypeVar, final

import anyio.lowlevel

from agentcore._interop._waiting import WaitingRoom
from agentcore.pools._jobs import RUNNING, Job
from agentcore.pools._waits import Crew, waiting_for, waiting_in_worker

T = TypeVar("T")

_logger: Final = logging.getLogger("agentcore.pools")


class Keeper(Crew, Protocol):
    """The pool, as a future sees it."""

    def _take_back(self, job: Job) -> bool:
        """Cancel a job that has not begun; tell whether it had not."""


@final
class PoolFuture(Future[T]):
    """A `concurrent.futures.Future` that can also be awaited, on asyncio and on trio.

    Who stops waiting, by a cancellation or otherwise, leaves the job alone: it belongs to the pool. `cancel` takes back a job
    that has not begun. Waiting in an event loop's own thread with `result` blocks the loop; the job goes on all the same.
    """

    def __init__(self, job: Job, keeper: Keeper) -> None:
        super().__init__()
        self._job = job
        self._keeper = keeper
        self._when_told: Callable[[], object] | None = None

    def cancel(self) -> bool:
        """Cancel the job if it has not begun; return whether it is cancelled now."""
        return self._keeper._take_back(self._job) or self.cancelled()

    def running(self) -> bool:
        """Tell whether a worker is at it."""
        return self._job.state is RUNNING

    def result(self, timeout: float | None = None) -> T:
        """Return what the job returned, when it has ended.

        Args:
            timeout: seconds to wait; None for as long as it takes.

        Raises:
            TimeoutError: it has not ended in that time.
            concurrent.futures.CancelledError: it was cancelled before it began.
            WorkerPoolDeadlockError: it waits for this very thread; only without a timeout.
            BaseException: whatever the job raised, and what befell it: `WorkerTimeoutError`, `WorkerCrashedError` ...
        """
        try:
            result: T = self._blocking(super().result, timeout)
            return result
        finally:
            del self  # which the traceback of an error would keep

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return what the job raised, when it has ended; None if it returned.

        Args:
            timeout: as for `result`.

        Raises:
            TimeoutError, concurrent.futures.CancelledError, WorkerPoolDeadlockError: as `result`.
        """
        error: BaseException | None = self._blocking(super().exception, timeout)
        return error

    def _blocking(self, wait: Callable[[float | None], Any], timeout: float | None) -> Any:
        try:
            if timeout is not None or self.done():
                return wait(timeout)
            with waiting_for((self._job, self._keeper), "a thread that waits for a job"):
                return wait(None)
        finally:
            del self, wait

    def __await__(self) -> Generator[Any, Any, T]:
        """Wait for the job and return what it returned. A checkpoint; raises what `result` raises."""
        return self._wait().__await__()

    async def _wait(self) -> T:
        if self.done():
            await anyio.lowlevel.checkpoint()
        else:
            await anyio.lowlevel.checkpoint_if_cancelled()
            waiter = WaitingRoom.current().waiter()
            self.add_done_callback(waiter.call)
            with waiting_in_worker((self._job, self._keeper), "a job that awaits another one"):
                await waiter.wait(_leaves)
        try:
            return super().result(0)
        finally:
            del self

    def job_ended(self, job: Job) -> None:
        """Take the outcome of the job."""
        try:
            if job.is_cancelled:
                super().cancel()
                self.set_running_or_notify_cancel()
            elif job.error is not None:
                self.set_exception(job.error)
            else:
                self.set_result(job.value)
        except BaseException as error:  # noqa: ASYNC103 - of a callback that exits, say: the thread has other jobs
            if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
                raise
            _logger.critical("a callback of job %s failed", job.describe(), exc_info=True)
        job.value = job.error = None
        if self._when_told is not None:
            self._when_told()
        job.release()  # whoever keeps the outcome must not keep the arguments


def _leaves() -> bool:
    return True
