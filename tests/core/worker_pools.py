"""Worker pools as a user of plain asyncio meets them. The class is one of those in `test_core`, which collects it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from agentcore import (
    AgentRuntime,
    AsyncioWorkerPool,
    ConfigurationError,
    ProcessWorkerPool,
    QueueWorkerPool,
    TaskPriority,
    ThreadWorkerPool,
    WorkerPoolClosedError,
    WorkerPoolConfig,
    WorkerPoolError,
    WorkerPoolFullError,
    WorkerPoolType,
    get_worker_pool,
    shutdown_all_worker_pools,
)
from agentcore.testing import simulate


class TestWorkerPool:
    """Pools by name, of every kind: work, results, failures, limits and the end."""

    @pytest_asyncio.fixture(autouse=True)
    async def no_pool_is_left(self) -> AsyncIterator[None]:
        """Shut down what a test has left, as a program does in its last step."""
        yield
        await shutdown_all_worker_pools(timeout=5)

    @simulate(backends=("asyncio",), runs=10)
    async def test_queue_worker_pool(self) -> None:
        """The specification's own test: jobs that wait are done beside each other, and all of them."""
        pool = await get_worker_pool("orders", WorkerPoolType.QUEUE_ASYNCIO)
        served: list[int] = []

        async def serve(number: int) -> None:
            await asyncio.sleep(0.1)
            served.append(3 * number)

        for number in range(5):
            await pool.submit(serve, number)
        await asyncio.sleep(0.5)
        assert len(served) == 5
        assert set(served) == {0, 3, 6, 9, 12}
        await pool.shutdown()
        await asyncio.sleep(0.5)

    @pytest.mark.asyncio
    async def test_nobody_has_to_shut_down(self) -> None:
        """As that test leaves its pool: nothing is heard of it when the loop ends."""
        pool = await get_worker_pool("orders", WorkerPoolType.QUEUE_ASYNCIO)
        served: asyncio.Queue[int] = asyncio.Queue()
        for number in range(5):
            await pool.submit(served.put, number)
        assert {0, 1, 2, 3, 4} == {await served.get() for _ in range(5)}

    @pytest.mark.asyncio
    @pytest.mark.parametrize("kind", ["thread", "queue_asyncio", "asyncio"])
    async def test_lifecycle(self, kind: str) -> None:
        """A pool is found by its name, works, counts, drains and is gone; then the name is free."""
        pool = await get_worker_pool("work", kind, WorkerPoolConfig(workers=2, max_queue_size=10))
        assert await get_worker_pool("work") is pool
        assert (pool.name, pool.pool_type, pool.state) == ("work", WorkerPoolType(kind), "open")
        job = time.monotonic_ns if kind == "thread" else _later
        results = [await pool.asubmit(job) for _ in range(3)]
        assert len(results) == 3
        assert (pool.metrics.succeeded, pool.metrics.failed, pool.metrics.queued) == (3, 0, 0)
        report = await pool.shutdown(wait=True, timeout=5.0)
        assert (report.drained, report.cut_short, pool.state) == (True, (), "closed")
        with pytest.raises(WorkerPoolClosedError, match="work"):
            await pool.asubmit(job)
        assert await get_worker_pool("work") is not pool

    @pytest.mark.asyncio
    async def test_threads(self) -> None:
        """A future can be waited for and awaited; `map` keeps the order and gives errors among the results."""
        pool = await get_worker_pool("numbers", WorkerPoolType.THREAD, WorkerPoolConfig(workers=2))
        assert isinstance(pool, ThreadWorkerPool)
        assert pool.submit(divmod, 17, 5).result() == (3, 2)
        assert await pool.submit(divmod, 17, 5) == (3, 2)
        assert await pool.asubmit(divmod, 17, 5) == (3, 2)
        quotients = pool.map(lambda number: 6 // number, [1, 0, 3])
        assert (quotients[0], type(quotients[1]), quotients[2]) == (6, ZeroDivisionError, 2)
        assert await pool.asubmit(threading.get_ident) != threading.get_ident()
        with pytest.raises(ZeroDivisionError):
            await pool.asubmit(divmod, 1, 0)
        await pool.ashutdown()

    @pytest.mark.asyncio
    async def test_processes(self) -> None:
        """Functions that can be found by their name run in another process; it is gone with the pool."""
        async with ProcessWorkerPool("squares", WorkerPoolConfig(workers=1)) as pool:
            assert pool.submit(pow, 7, 2).result(30) == 49
            assert await pool.asubmit(pow, 7, 2) == 49
        assert pool.metrics.workers == 0

    @pytest.mark.asyncio
    async def test_a_timeout(self) -> None:
        """It is a TimeoutError and one of the pool's errors; the next job is done."""
        pool = await get_worker_pool("slow", WorkerPoolType.THREAD, WorkerPoolConfig(workers=1))
        assert isinstance(pool, ThreadWorkerPool)
        going = threading.Event()
        with pytest.raises(TimeoutError) as caught:
            await pool.asubmit(going.wait, 30, timeout=0.01)
        assert isinstance(caught.value, WorkerPoolError)
        assert await pool.asubmit(len, "abc") == 3
        going.set()

    @pytest.mark.asyncio
    async def test_back_pressure(self) -> None:
        """A full pool refuses at once; who asks for it waits instead."""
        going = asyncio.Event()
        async with QueueWorkerPool("narrow", WorkerPoolConfig(workers=1, max_queue_size=1)) as pool:
            await pool.submit(going.wait)
            await asyncio.sleep(0)
            await pool.submit(going.wait)
            with pytest.raises(WorkerPoolFullError, match="max_queue_size"):
                await pool.submit(going.wait)
            waiting = asyncio.create_task(pool.options(when_full="wait").submit(going.wait))
            await asyncio.sleep(0)
            assert not waiting.done()
            going.set()
            await waiting
        assert (pool.metrics.succeeded, pool.metrics.rejected) == (3, 1)

    @pytest.mark.asyncio
    async def test_urgent_jobs_first(self) -> None:
        """Priorities are those of tasks."""
        order: list[str] = []

        async def note(name: str) -> None:
            order.append(name)

        going = asyncio.Event()
        async with AsyncioWorkerPool("mixed", WorkerPoolConfig(workers=1)) as pool:
            await pool.submit(going.wait)
            await asyncio.sleep(0)
            for priority in TaskPriority:
                await pool.options(priority=priority).submit(note, priority.name)
            going.set()
        assert order == ["CRITICAL", "HIGH", "NORMAL", "LOW"]

    @pytest.mark.asyncio
    async def test_cancelling_a_caller(self) -> None:
        """His job has ended when he has."""
        log: list[str] = []

        async def work() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                log.append("job")

        async with QueueWorkerPool("work") as pool:
            caller = asyncio.create_task(pool.asubmit(work))
            for _ in range(5):
                await asyncio.sleep(0)
            caller.cancel()
            with pytest.raises(asyncio.CancelledError):
                await caller
            log.append("caller")
        assert log == ["job", "caller"]

    @pytest.mark.asyncio
    async def test_one_name_one_pool(self) -> None:
        """Another type or configuration under the same name is an error that says so."""
        await get_worker_pool("work", "thread", WorkerPoolConfig(workers=2))
        with pytest.raises(ConfigurationError, match="another type"):
            await get_worker_pool("work", "process")
        with pytest.raises(ConfigurationError, match="another config"):
            await get_worker_pool("work", config=WorkerPoolConfig(workers=3))

    @pytest.mark.asyncio
    async def test_in_a_runtime(self) -> None:
        """There it is the runtime's, and ends with that."""
        async with AgentRuntime() as runtime:
            pool = await get_worker_pool("work", WorkerPoolType.THREAD)
            assert runtime.pool("work") is pool
        assert pool.state == "closed"


async def _later() -> int:
    await asyncio.sleep(0)
    return time.monotonic_ns()
