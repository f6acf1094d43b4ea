"""What worker pools keep: nothing of the jobs that have ended, however they did, and nothing of event loops that are over.

On the plain event loops: in asyncio's debug mode a hundred thousand jobs take a minute.
"""

from __future__ import annotations

import gc
import sys
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Self

import anyio
import anyio.lowlevel
import pytest

from agentcore import (
    AgentRuntime,
    AsyncioWorkerPool,
    QueueWorkerPool,
    QueueWorkerPoolConfig,
    ThreadWorkerPool,
    ThreadWorkerPoolConfig,
    WorkerTimeoutError,
    get_worker_pool,
    shutdown_all_worker_pools,
)
from tests.pools.thread_helpers import until

pytestmark = pytest.mark.thorough

MANY = 100_000
MILLION = 1_000_000
CALLERS = 64
ROUND = 500
"""Jobs that are taken back at a time."""
SPARE = 3_000
"""Blocks of memory that may come and go: free lists, caches. A hundredth of what the fewest of these jobs would take."""
LOOPS = 50

OURS = ("Job", "JobQueue", "PoolFuture", "Worker", "Manager", "Waiter", "WaitingRoom", "WorkerPools", "Host", "Room")


def blocks() -> int:
    """Return how many blocks of memory Python objects take."""
    for _ in range(3):
        gc.collect()
    return sys.getallocatedblocks()


def alive() -> Counter[str]:
    """Return how many objects of pools there are, by class."""
    gc.collect()
    names = (type(one).__name__ for one in gc.get_objects())
    return Counter(name for name in names if name.endswith(OURS) or name.endswith("WorkerPool"))


def nothing() -> None:
    """Be a job."""


async def nothing_async() -> None:
    """Be a job."""


async def call_often(pool: Any, job: Any, jobs: int) -> None:
    """Have a job done so many times, by several callers."""

    async def caller() -> None:
        for _ in range(jobs // CALLERS):
            await pool.asubmit(job)

    async with anyio.create_task_group() as group:
        for _ in range(CALLERS):
            group.start_soon(caller)


async def hand_over_often(pool: Any, job: Any, jobs: int) -> None:
    """Hand a job over so many times, and keep nothing."""
    for _ in range(jobs // 500):
        for _ in range(500):
            handed = pool.submit(job)
            if not isinstance(pool, ThreadWorkerPool):
                await handed
        while pool.metrics.queued:
            await anyio.lowlevel.checkpoint()


async def done_in(make: Callable[[], Any], jobs: int, use: Callable[[Any, Any, int], Awaitable[None]]) -> None:
    """Check that memory stays as it is."""
    async with make() as pool:
        job = nothing if isinstance(pool, ThreadWorkerPool) else nothing_async
        await use(pool, job, 5_000)
        before = blocks()
        await use(pool, job, jobs)
        assert blocks() < before + SPARE
        assert alive()["Job"] <= pool.config.workers


MAKE: dict[str, Callable[..., Any]] = {
    "threads": lambda workers=2, **rest: ThreadWorkerPool("t", ThreadWorkerPoolConfig(workers=workers, **rest)),
    "queue": lambda workers=16, **rest: QueueWorkerPool("q", QueueWorkerPoolConfig(workers=workers, **rest)),
    "tasks": lambda workers=16, **rest: AsyncioWorkerPool("a", QueueWorkerPoolConfig(workers=workers, **rest)),
}
backends = pytest.mark.parametrize("backend", ["asyncio", "trio"])
kinds = pytest.mark.parametrize("kind", ["threads", "queue"])


@backends
@kinds
def test_a_hundred_thousand_jobs(backend: str, kind: str) -> None:
    anyio.run(done_in, MAKE[kind], MANY, call_often, backend=backend)


@backends
@kinds
def test_jobs_that_nobody_waits_for(backend: str, kind: str) -> None:
    anyio.run(done_in, MAKE[kind], MANY // 5, hand_over_often, backend=backend)


@pytest.mark.campaign
@backends
@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.parametrize("use", [call_often, hand_over_often])
def test_a_million_jobs(backend: str, kind: str, use: Any) -> None:
    anyio.run(done_in, MAKE[kind], MILLION, use, backend=backend)


# Jobs that never begin.


class Blocked:
    """A pool whose only worker is held, so that everything else stays in the queue."""

    def __init__(self, pool: Any) -> None:
        self.pool = pool
        self.is_thread = isinstance(pool, ThreadWorkerPool)
        self.job: Any = nothing if self.is_thread else nothing_async
        self._gate = threading.Event()
        self._opened = anyio.Event()

    async def __aenter__(self) -> Self:
        await self.pool.__aenter__()
        if self.is_thread:
            self.pool.submit(self._gate.wait, 600)
        else:
            await self.pool.submit(self._opened.wait)
        while not self.pool.metrics.running:
            await anyio.lowlevel.checkpoint()
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._gate.set()
        self._opened.set()
        await self.pool.__aexit__(*exc)


async def cancel_callers(blocked: Blocked, **options: Any) -> None:
    """Have many wait for jobs in the queue, and cancel them."""
    async with anyio.create_task_group() as group:
        for _ in range(ROUND):
            group.start_soon(blocked.pool.options(**options).asubmit, blocked.job)
        while blocked.pool.metrics.queued < ROUND:
            await anyio.lowlevel.checkpoint()
        group.cancel_scope.cancel()


async def cancel_futures(blocked: Blocked, **options: Any) -> None:
    """Hand over many, and take them back."""
    pool = blocked.pool.options(**options)
    futures = [pool.submit(blocked.job) for _ in range(ROUND)]
    assert all(future.cancel() for future in futures)


async def let_expire(blocked: Blocked) -> None:
    """Have many wait for jobs in the queue until their time is over."""

    async def wait() -> None:
        with pytest.raises(WorkerTimeoutError):
            await blocked.pool.options(timeout=0.005).asubmit(blocked.job)

    async with anyio.create_task_group() as group:
        for _ in range(ROUND // 2):
            group.start_soon(wait)


QUEUED: dict[str, Callable[[Blocked], Awaitable[None]]] = {
    "callers": cancel_callers,
    "callers with a limit": partial(cancel_callers, timeout=3_600.0),
    "too late": let_expire,
}
FUTURES: dict[str, Callable[[Blocked], Awaitable[None]]] = {
    "futures": cancel_futures,
    "futures with a limit": partial(cancel_futures, timeout=3_600.0),
}


async def never_begun(kind: str, use: Callable[[Blocked], Awaitable[None]], rounds: int) -> None:
    """Check that jobs which leave the queue leave nothing in it."""
    async with Blocked(MAKE[kind](1, max_queue_size=10 * ROUND)) as blocked:
        for _ in range(3):
            await use(blocked)
        before = blocks()
        for _ in range(rounds):
            await use(blocked)
        # Deadlines of jobs that are settled are looked through now and then: no more of them stay than of others.
        assert blocks() < before + SPARE + 4 * ROUND
        metrics = blocked.pool.metrics
        assert (0, 1) == (metrics.queued, metrics.running)
        assert alive()["Job"] <= 3 * ROUND


@backends
@kinds
@pytest.mark.parametrize("how", QUEUED)
def test_jobs_that_leave_the_queue(backend: str, kind: str, how: str) -> None:
    """Cancelled or too late, behind a job that never ends."""
    anyio.run(never_begun, kind, QUEUED[how], 6, backend=backend)


@backends
@pytest.mark.parametrize("how", FUTURES)
def test_futures_that_are_taken_back(backend: str, how: str) -> None:
    anyio.run(never_begun, "threads", FUTURES[how], 20, backend=backend)


@pytest.mark.campaign
@backends
@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.parametrize("how", QUEUED)
def test_a_million_jobs_that_leave_the_queue(backend: str, kind: str, how: str) -> None:
    rounds = MILLION // ROUND // (10 if how == "too late" else 1)
    anyio.run(never_begun, kind, QUEUED[how], rounds, backend=backend)


# Event loops.


async def use_everything() -> None:
    """Use pools of each kind, of a runtime and of the event loop."""
    async with AgentRuntime() as runtime:
        for find in (lambda kind: runtime.pool(kind, kind), None):
            for kind in ("thread", "queue_asyncio", "asyncio"):
                pool: Any = find(kind) if find is not None else await get_worker_pool(f"of {kind}", kind)
                job = nothing if kind == "thread" else nothing_async
                await pool.asubmit(job)
                await pool.options(timeout=10.0).asubmit(job)
                await pool.amap(_ignore if kind == "thread" else _ignore_async, range(3))
                handed = pool.submit(job)
                await handed


async def use_hosted() -> None:
    """Use pools of the event loop, and shut them down."""
    for kind in ("thread", "queue_asyncio", "asyncio"):
        pool: Any = await get_worker_pool(kind, kind)
        await pool.asubmit(nothing if kind == "thread" else nothing_async)
    await shutdown_all_worker_pools()


async def leave_them() -> None:
    """Use pools of the event loop, and let it end with them."""
    for kind in ("thread", "queue_asyncio", "asyncio"):
        pool: Any = await get_worker_pool(kind, kind)
        await pool.asubmit(nothing if kind == "thread" else nothing_async)


def _ignore(_: object) -> None:
    """Be a job."""


async def _ignore_async(_: object) -> None:
    """Be a job."""


async def use_shared(pool: ThreadWorkerPool) -> None:
    """Use a pool that outlives the event loop."""
    await call_often(pool, nothing, CALLERS)
    await pool.submit(nothing)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await pool.asubmit(nothing)


@backends
@pytest.mark.parametrize("use", [use_everything, use_hosted, leave_them])
def test_loops_one_after_the_other(backend: str, use: Callable[[], Awaitable[None]]) -> None:
    """With each, everything goes that was in it."""
    for _ in range(2):
        anyio.run(use, backend=backend)
    before, threads, memory = alive(), threading.active_count(), blocks()
    for _ in range(LOOPS):
        anyio.run(use, backend=backend)
    # The threads of what was left behind end after their event loop, by themselves.
    until(lambda: threading.active_count() <= threads and alive() <= before)
    assert blocks() < memory + SPARE


@backends
def test_loops_that_share_a_pool(backend: str) -> None:
    """Of those who have waited for it nothing stays in it."""
    with ThreadWorkerPool("shared", ThreadWorkerPoolConfig(workers=2)) as pool:
        for _ in range(2):
            anyio.run(use_shared, pool, backend=backend)
        before, memory = alive(), blocks()
        for _ in range(LOOPS):
            anyio.run(use_shared, pool, backend=backend)
        assert Counter() == alive() - before
        assert blocks() < memory + SPARE
