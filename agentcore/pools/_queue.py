"""Pools of persistent workers for coroutines."""

from __future__ import annotations

from typing import Any, ClassVar, final

from agentcore import _interop
from agentcore._interop._waiting import Waiter
from agentcore.pools._loop import LoopWorkerPool, _leaves
from agentcore.pools._records import WorkerPoolType


@final
class QueueWorkerPool(LoopWorkerPool):
    """Runs coroutines by workers that are always there: the cheapest way to do many small things, so many at a time.

        async with QueueWorkerPool("pages", QueueWorkerPoolConfig(workers=8)) as pool:
            for url in urls:
                await pool.submit(fetch, url)

    It belongs to one event loop. Each job has variables of its own, but no task of its own.

    Args:
        name: what it is called, in messages and metrics.
        config: how it behaves.

    Raises:
        ConfigurationError: an argument is not usable.
    """

    pool_type: ClassVar[WorkerPoolType] = WorkerPoolType.QUEUE_ASYNCIO

    def __init__(self, name: str, config: Any = None) -> None:
        super().__init__(name, config)
        self._idle: list[Waiter] = []
        self._workers = 0
        self._is_called = False  # a worker is on its way to the queue, or at it

    def _begin(self) -> None:
        if self._queue:
            self._call()

    def _call(self) -> None:
        # One is enough, however many jobs there are, for most need no more than a step: it calls the next one when it has to
        # wait for a job.
        if self._is_called:
            return
        if self._idle:
            self._is_called = True
            self._idle.pop().wake()
        elif self._workers < self._size and self._group is not None:
            self._start_worker() if self._is_in_task() else self._ring()

    def _step_aside(self) -> None:
        self._is_called = False
        if self._queue.live:
            self._call()

    def _start_worker(self) -> None:
        self._is_called = True
        self._workers += 1
        self._spawn(_interop.fresh_context(), f"worker of pool {self.name}", self._work)

    @property
    def _number_of_workers(self) -> int:
        return self._workers

    async def _work(self) -> None:
        assert self._room is not None  # it lives  # noqa: S101
        is_struck = self._room.native_cancellations()
        try:
            while True:
                await self._serve(is_struck)
                self._is_called = False
                if not await self._wait_for_job():
                    return
        except BaseException as error:  # noqa: ASYNC103 - see below
            # asyncio's own cancellation of a single worker costs that worker and no other.
            if not _interop.is_native_cancellation(error):
                raise
        finally:
            self._workers -= 1
            self._is_called = False
            if self._group is not None and self._queue and not self._is_doomed():
                self._start_worker()

    async def _wait_for_job(self) -> bool:
        """Wait until somebody calls; tell whether there can still be jobs."""
        if self._state != "open":
            return False
        assert self._room is not None  # it lives  # noqa: S101
        waiter = self._room.waiter()
        self._idle.append(waiter)
        try:
            await waiter.wait(_leaves)
        except BaseException:
            if waiter in self._idle:
                self._idle.remove(waiter)
            raise
        return True
