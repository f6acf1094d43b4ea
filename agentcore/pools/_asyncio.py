"""Pools that give each coroutine a task of its own."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, ClassVar, final

from agentcore import _interop
from agentcore.pools._jobs import Job
from agentcore.pools._loop import LoopWorkerPool
from agentcore.pools._records import WorkerPoolType


@final
class AsyncioWorkerPool(LoopWorkerPool):
    """Runs coroutines, each in a task of its own, so many at a time. On trio too: the name is the specification's.

    For jobs that look at the task that they run in, and for those that are worth a line of their own in a task tree. All
    others are cheaper in a `QueueWorkerPool`.

    Args:
        name: what it is called, in messages and metrics.
        config: how it behaves.

    Raises:
        ConfigurationError: an argument is not usable.
    """

    pool_type: ClassVar[WorkerPoolType] = WorkerPoolType.ASYNCIO

    def _call(self) -> None:
        self._begin() if self._is_in_task() else self._ring()

    def _begin(self) -> None:
        while (
            self._group is not None
            and len(self._running) < self._size
            and (job := self._take(_interop.clock())) is not None
        ):
            assert job.context is not None  # it has not ended  # noqa: S101
            self._spawn(job.context, f"job {job.describe()} of pool {self.name}", self._work, job)

    def _go(self, job: Job) -> Awaitable[Any]:
        return self._start(job)  # the task has begun with the variables of the job

    def _report_failure(self, job: Job, error: BaseException) -> None:
        # What is told to others has nothing of the job's variables, as in the other kind.
        _interop.fresh_context().run(super()._report_failure, job, error)

    @property
    def _number_of_workers(self) -> int:
        return len(self._running)

    async def _work(self, job: Job) -> None:
        assert self._room is not None  # it lives  # noqa: S101
        cancellations = self._room.native_cancellations()
        try:
            await self._run(job)
            if cancellations() and not self._is_ending():
                await _interop.forget_cancellations()  # what a job does to its task concerns no other
        except BaseException as error:  # noqa: ASYNC103 - see below
            # asyncio's own cancellation of a single job costs that one and no other.
            if not _interop.is_native_cancellation(error):
                raise
        finally:
            self._end_cut(job)  # if it was cancelled before its first step
            self._begin()
