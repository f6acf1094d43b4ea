"""A function in another process: by our pool, and by everything else that has processes which stay.

All have two processes, started before anything is measured. What was killed is no part of this: see `_pools_kills`.
"""

# ruff: noqa: PLC0415

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any, Final, TypeAlias

import anyio
import anyio.to_process
import attrs
from _pools_batches import Call, calling, is_installed, measure_calls
from _pools_jobs import same, size
from _rounds import Pair, Row, compare

from agentcore import ProcessWorkerPool, ProcessWorkerPoolConfig

WORKERS: Final = 2
CALLERS: Final = 16
WITHIN: Final = 5.0
TINY: Final = b"0123456789"
LARGE: Final = bytes(range(256)) * 4096

SPAWN: Final = "ProcessPoolExecutor, spawn"
FORKSERVER: Final = "ProcessPoolExecutor, forkserver"
ANYIO: Final = "`anyio.to_process.run_sync`"
TRIO_PARALLEL: Final = "`trio_parallel.run_sync`"
LOKY: Final = "loky"
ASUBMIT: Final = "`asubmit`"
WITH_TIMEOUT: Final = "`asubmit(..., timeout=5)`"

Make: TypeAlias = Callable[..., Call]
"""Turns a function and its argument into a call."""


@attrs.frozen
class Work:
    """What is done in the processes.

    Attributes:
        what: its name.
        job: the function.
        given: its argument.
        callers: how many wait for results at once.
        number: how many jobs a batch has.
        goals: how many times our cost theirs is to be.
    """

    what: str
    job: Callable[[Any], Any]
    given: Any
    callers: int
    number: int
    goals: dict[str, float]


WORKS: Final = (
    Work(
        f"tiny jobs, {CALLERS} callers",
        same,
        TINY,
        CALLERS,
        CALLERS * 24,
        {SPAWN: 2.5, FORKSERVER: 2.5, ANYIO: 1.3, TRIO_PARALLEL: 1.3},
    ),
    Work("tiny jobs, one caller", same, TINY, 1, 192, {}),
    Work("1 MB there, one caller", size, LARGE, 1, 24, {SPAWN: 1, FORKSERVER: 1, ANYIO: 1, TRIO_PARALLEL: 1}),
    Work("1 MB there and back, one caller", same, LARGE, 1, 24, {SPAWN: 1, FORKSERVER: 1, ANYIO: 1, TRIO_PARALLEL: 1}),
)


def in_executor(executor: Executor, job: Callable[[Any], Any], given: Any) -> Call:
    """Return a call that goes through asyncio."""
    return partial(asyncio.get_running_loop().run_in_executor, executor, job, given)


@asynccontextmanager
async def executors() -> AsyncGenerator[dict[str, Make]]:
    """Yield what has the interface of the standard library; on asyncio, for trio has none for it."""
    open_ones: list[Executor] = []
    makes: dict[str, Make] = {}
    for name, method in ((SPAWN, "spawn"), (FORKSERVER, "forkserver")):
        executor = ProcessPoolExecutor(WORKERS, mp_context=multiprocessing.get_context(method))
        open_ones.append(executor)
        makes[name] = partial(in_executor, executor)
    if is_installed("loky"):
        from loky import get_reusable_executor

        open_ones.append(get_reusable_executor(WORKERS, timeout=600))
        makes[LOKY] = partial(in_executor, open_ones[-1])
    try:
        yield makes
    finally:
        for executor in open_ones:
            executor.shutdown()


@asynccontextmanager
async def on_trio() -> AsyncGenerator[dict[str, Make]]:
    """Yield what works on trio alone."""
    if not is_installed("trio-parallel"):
        yield {}
        return
    import trio
    import trio_parallel

    limiter = trio.CapacityLimiter(WORKERS)

    def make(job: Callable[[Any], Any], given: Any) -> Call:
        return partial(context.run_sync, job, given, limiter=limiter)

    async with trio_parallel.open_worker_context() as context:
        yield {TRIO_PARALLEL: make}


def on_both() -> dict[str, Make]:
    """Return what AnyIO has."""
    limiter = anyio.CapacityLimiter(WORKERS)
    return {ANYIO: lambda job, given: partial(anyio.to_process.run_sync, job, given, limiter=limiter)}


@asynccontextmanager
async def peers(backend: str) -> AsyncGenerator[dict[str, Make]]:
    """Yield all that has processes."""
    async with on_trio() if backend == "trio" else executors() as makes:
        yield makes | on_both()


@asynccontextmanager
async def ours() -> AsyncGenerator[dict[str, Make]]:
    """Yield the ways into our pool."""
    async with ProcessWorkerPool("bench", ProcessWorkerPoolConfig(workers=WORKERS, idle_timeout=None)) as pool:
        yield {
            ASUBMIT: partial(partial, pool.asubmit),
            WITH_TIMEOUT: lambda job, given: partial(pool.asubmit, job, given, timeout=WITHIN),
        }


async def measure_work(makes: dict[str, Make], work: Work, rounds: int) -> dict[str, list[float]]:
    """Measure one kind of work, once all processes have been started."""
    calls = {name: make(work.job, work.given) for name, make in makes.items()}
    for call in calls.values():
        await calling(call, CALLERS)(CALLERS * 4)
    return await measure_calls(calls, rounds, work.callers, work.number)


def pairs_of(backend: str, work: Work, theirs: dict[str, Make]) -> list[Pair]:
    """Return the comparisons."""

    def pair(subject: str, reference: str, at_least: float | None = None) -> Pair:
        what = f"process pool, {subject}, {work.what}: times cheaper"
        return Pair(what=what, subject=subject, reference=reference, at_least=at_least, times_smaller=True)

    return [
        *(pair(ASUBMIT, name, work.goals.get(name)) for name in theirs),
        pair(WITH_TIMEOUT, ASUBMIT),
    ]


async def measure_processes(rounds: int, backend: str) -> list[Row]:
    """Measure everything, once all processes have been started."""
    rows: list[Row] = []
    async with AsyncExitStack() as stack:
        theirs = await stack.enter_async_context(peers(backend))
        makes = {**theirs, **await stack.enter_async_context(ours())}
        for work in WORKS:
            rows += compare(await measure_work(makes, work, rounds), pairs_of(backend, work, theirs), "ns", backend)
    return rows
