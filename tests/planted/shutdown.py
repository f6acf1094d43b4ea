"""Work that is lost when things are shut down."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import anyio

from tests.planted._bug import found_by_schedule, steps


class Service:
    """Two workers that write into a store.

    The store is closed before the workers have ended: what they still write is lost.
    """

    def __init__(self) -> None:
        self.written: list[str] = []
        self.lost: list[str] = []
        self._store_is_open = True
        self._ended = [anyio.Event(), anyio.Event()]

    async def work(self, n: int) -> None:
        for item in range(2):
            await steps(n + 1)
            (self.written if self._store_is_open else self.lost).append(f"{item} of {n}")
        self._ended[n].set()

    async def stop(self) -> None:
        self._close_store()
        await self._end_workers()

    def _close_store(self) -> None:
        self._store_is_open = False

    async def _end_workers(self) -> None:
        for event in self._ended:
            await event.wait()


class FixedService(Service):
    """What was started last is stopped first."""

    async def stop(self) -> None:
        await self._end_workers()
        self._close_store()


@found_by_schedule(Service, FixedService)
async def stopped_in_the_wrong_order(service: Service) -> None:
    async def stop() -> None:
        await steps(5)
        await service.stop()

    async with anyio.create_task_group() as tg:
        tg.start_soon(service.work, 0)
        tg.start_soon(service.work, 1)
        tg.start_soon(stop)
    assert service.lost == [], f"written to a closed store: {service.lost}"


class Pool:
    """A worker and its queue. To drain is to wait until nothing is queued and nothing runs.

    First the one is waited for, then the other: what the last job queues is missed when it comes in between.
    """

    def __init__(self) -> None:
        self.done: list[str] = []
        self._queue: deque[str] = deque()
        self._queued = anyio.Semaphore(0)
        self._running = 0
        self._changed = anyio.Event()

    def submit(self, job: str) -> None:
        self._queue.append(job)
        self._queued.release()

    async def work(self) -> None:
        while True:
            await self._queued.acquire()
            job = self._queue.popleft()
            self._running += 1
            self._changed.set()
            await self._run(job)
            self._running -= 1
            self._changed.set()

    async def _run(self, job: str) -> None:
        await steps()
        if job == "first":
            self.submit("second")
        self.done.append(job)

    async def drain(self) -> None:
        await self._until(lambda: not self._queue)
        await self._until(lambda: not self._running)

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._changed = anyio.Event()
            await self._changed.wait()


class FixedPool(Pool):
    """Both must hold in the same step."""

    async def drain(self) -> None:
        await self._until(lambda: not self._queue and not self._running)


@found_by_schedule(Pool, FixedPool)
async def drain_misses_what_is_submitted(pool: Pool) -> None:
    async def stop(scope: anyio.CancelScope) -> None:
        await steps(5)
        await pool.drain()
        scope.cancel()

    pool.submit("first")
    async with anyio.create_task_group() as tg:
        tg.start_soon(pool.work)
        tg.start_soon(stop, tg.cancel_scope)
    assert pool.done == ["first", "second"], f"of the first and the second job were done: {pool.done}"


BUGS = [stopped_in_the_wrong_order, drain_misses_what_is_submitted]
