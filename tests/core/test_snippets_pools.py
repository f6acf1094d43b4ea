"""What the specification's snippets of worker pools do, done again with other names and other data.

As in `test_snippets`: programs of plain asyncio and of plain trio, which know nothing of AnyIO. Each is run outside of any
block, and inside of a runtime of each kind. The program of the usage examples is in `test_snippets_integration`.
"""

from __future__ import annotations

import operator
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Any

import pytest

from agentcore import (
    AgentRuntime,
    ProcessWorkerPool,
    QueueWorkerPool,
    QueueWorkerPoolConfig,
    ThreadWorkerPool,
    WorkerPoolClosedError,
    WorkerPoolConfig,
    WorkerPoolError,
    WorkerPoolFullError,
    WorkerPoolType,
    get_worker_pool,
    shutdown_all_worker_pools,
)
from tests.core.loops import ASYNCIO, FOR_EVER, TRIO, Loop


@pytest.fixture(params=[ASYNCIO, TRIO], ids=["asyncio", "trio"])
def loop(request: pytest.FixtureRequest) -> Loop:
    """Give the test one of the two kinds of program to live in."""
    chosen: Loop = request.param
    return chosen


everywhere = pytest.mark.parametrize("place", ["outside", "strict", "hosted"])


def run_in(loop: Loop, place: str, program: Callable[[], Awaitable[None]], *, virtual: bool = False) -> None:
    """Run a program there; whoever is outside of every block ends with the last step of its program."""

    async def main() -> None:
        if place == "outside":
            await program()
            return
        async with AgentRuntime(hosted=place == "hosted"):
            await program()

    (loop.simulate if virtual else loop.run)(main)


# Threads.


def area(width: int, height: int) -> int:
    """Compute something in a thread."""
    return width * height


@everywhere
def test_the_example_of_threads(loop: Loop, place: str) -> None:
    """A future that is waited for in the middle of async code, and a result that is awaited."""

    async def program() -> None:
        pool = await get_worker_pool("surveys", WorkerPoolType.THREAD)
        assert isinstance(pool, ThreadWorkerPool)
        future = pool.submit(area, 6, 7)
        assert isinstance(future, Future)
        assert future.result() == 42
        assert await pool.asubmit(area, 6, 8) == 48
        assert await pool.submit(area, width=6, height=9) == 54
        assert pool.map(operator.neg, [1, 2]) == [-1, -2]
        await pool.shutdown(wait=True, timeout=30.0)

    run_in(loop, place, program)


@everywhere
def test_errors_and_timeouts_of_threads(loop: Loop, place: str) -> None:
    """What a function raises is raised; a timeout is a TimeoutError; after the end there is an error of the pool."""

    async def program() -> None:
        pool = await get_worker_pool("surveys", "thread", WorkerPoolConfig(workers=1, max_queue_size=1))
        assert isinstance(pool, ThreadWorkerPool)
        with pytest.raises(ZeroDivisionError):
            await pool.asubmit(divmod, 1, 0)
        with pytest.raises(ZeroDivisionError):
            pool.submit(divmod, 1, 0).result()
        with pytest.raises(TimeoutError):
            await pool.asubmit(time.sleep, 0.05, timeout=0.001)
        found = pool.map(lambda number: 12 // number, [3, 0, 4])
        assert [4, 3] == [found[0], found[2]]
        assert isinstance(found[1], ZeroDivisionError)
        await pool.ashutdown(wait=True)
        for late in (pool.submit, pool.asubmit):
            with pytest.raises(WorkerPoolError):
                await late(area, 1, 2)

    run_in(loop, place, program)


# Processes.


@everywhere
def test_the_example_of_processes(loop: Loop, place: str) -> None:
    """A function that can be found by its name; the future is waited for."""

    async def program() -> None:
        pool = await get_worker_pool("sealed", WorkerPoolType.PROCESS, WorkerPoolConfig(workers=1))
        assert isinstance(pool, ProcessWorkerPool)
        future = pool.submit(operator.pow, 9, 2)
        assert future.result() == 81
        assert await pool.asubmit(operator.pow, 3, 2) == 9
        await pool.shutdown()

    run_in(loop, place, program)


# Coroutines.


@everywhere
def test_the_example_of_a_queue(loop: Loop, place: str) -> None:
    """Five jobs that wait are done in the time of one, and shutting down waits for them."""
    served: list[int] = []

    async def program() -> None:
        pool = await get_worker_pool("letters", WorkerPoolType.QUEUE_ASYNCIO)
        assert isinstance(pool, QueueWorkerPool)

        async def answer(number: int) -> int:
            await loop.sleep(0.1)
            served.append(number * 3)
            return number * 3

        for number in range(5):
            assert await pool.submit(answer, number) is None  # type: ignore[func-returns-value]
        assert served == []
        await pool.shutdown()
        assert sorted(served) == [0, 3, 6, 9, 12]
        with pytest.raises(WorkerPoolClosedError):
            await pool.submit(answer, 6)
        await loop.sleep(1)

    run_in(loop, place, program, virtual=True)


@everywhere
def test_waiting_a_while_instead(loop: Loop, place: str) -> None:
    """As the chapter on tests has it: after a while the results are there."""
    served: list[int] = []

    async def program() -> None:
        pool = await get_worker_pool("letters", WorkerPoolType.QUEUE_ASYNCIO)

        async def answer(number: int) -> None:
            await loop.sleep(0.1)
            served.append(number * 3)

        for number in range(5):
            await pool.submit(answer, number)
        await loop.sleep(0.5)
        assert len(served) == 5
        assert set(served) == {0, 3, 6, 9, 12}
        await shutdown_all_worker_pools()
        await loop.sleep(1)

    run_in(loop, place, program, virtual=True)


@everywhere
def test_a_full_queue(loop: Loop, place: str) -> None:
    """It is an error of the pool, at once."""

    async def program() -> None:
        config = QueueWorkerPoolConfig(workers=1, max_queue_size=2)
        pool = await get_worker_pool("letters", WorkerPoolType.QUEUE_ASYNCIO, config)

        async def answer() -> None:
            await loop.sleep(FOR_EVER)

        with pytest.raises(WorkerPoolError) as caught:
            for _ in range(4):
                await pool.submit(answer)
        assert isinstance(caught.value, WorkerPoolFullError)
        report = await pool.shutdown(wait=True, timeout=2.0)
        assert (report.drained, set(report.cut_short)) == (False, {answer.__qualname__})
        await loop.sleep(1)

    run_in(loop, place, program, virtual=True)


@everywhere
def test_blocks_instead_of_shutting_down(loop: Loop, place: str) -> None:
    """`with` and `async with`, as the chapter on resources recommends."""

    async def program() -> None:
        with ThreadWorkerPool("surveys") as threads:
            assert threads.submit(area, 2, 3).result() == 6
        async with ThreadWorkerPool("surveys") as threads:
            assert await threads.asubmit(area, 2, 3) == 6
        served: list[float] = []

        async def answer() -> None:
            await loop.sleep(0)
            served.append(1)

        async with QueueWorkerPool("letters") as pool:
            await pool.submit(answer)
        assert (served, pool.state, threads.state) == ([1], "closed", "closed")

    run_in(loop, place, program)


@everywhere
def test_pools_that_nobody_shuts_down(loop: Loop, place: str) -> None:
    """They are gone with the runtime, and with the loop."""
    pools: list[Any] = []

    async def program() -> None:
        pools.append(await get_worker_pool("surveys", "thread"))
        pools.append(await get_worker_pool("letters", "queue_asyncio"))
        assert await pools[0].asubmit(area, 2, 3) == 6

    run_in(loop, place, program)
    assert ["closed", "closed"] == [pool.state for pool in pools]
