"""Pools of persistent workers for coroutines."""

from __future__ import annotations

from typing import Any, ClassVar, Final, final

import anyio.lowlevel

from agentcore import _interop
from agentcore._interop._waiting import Waiter
from agentcore.pools._loop import LoopWorkerPool, _leaves
from agentcore.pools._loop_calls import LoopCalls
from agentcore.pools._records import WorkerPoolType

TURNS: Final = 64
"""Jobs that never wait, after which a worker lets others run."""


@final
class QueueWorkerPool(LoopCalls, LoopWorkerPool):
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

    def _begin(self) -> None:
        # As many as there is work for; the others when there is.
        for _ in range(min(self._size - self._workers, len(self._queue) - len(self._idle))):
            self._start_worker()

    def _call(self) -> None:
        if self._idle:
            self._idle.pop().wake()
        elif self._workers < self._size and self._group is not None:
            self._start_worker() if self._is_in_task() else self._ring()

    def _start_worker(self) -> None:
        assert self._group is not None  # there is none without  # noqa: S101
        self._workers += 1
        _interop.fresh_context().run(self._spawn, self._group, self._work, f"worker of pool {self.name}")

    @property
    def _number_of_workers(self) -> int:
        return self._workers

    async def _work(self) -> None:
        assert self._room is not None  # it lives  # noqa: S101
        turns, cancellations = 0, self._room.native_cancellations()
        try:
            while True:
                job = self._take()
                if job is not None:
                    await self._run(job)
                    turns += 1
                    if cancellations() and not self._is_ending():
                        await (
                            _interop.forget_cancellations()
                        )  # the job has cancelled this task, which it takes for its own
                    if turns >= TURNS:
                        turns = 0
                        await anyio.lowlevel.checkpoint()
                elif not await self._wait_for_job():
                    return
        except BaseException as error:  # noqa: ASYNC103 - see below
            # asyncio's own cancellation of a single worker costs that worker and no other.
            if not _interop.is_native_cancellation(error):
                raise
        finally:
            self._workers -= 1
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
