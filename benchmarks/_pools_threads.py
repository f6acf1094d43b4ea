"""A function in a thread: by our pool, and by everything else that an event loop has for it.

All have the same number of threads, and callers that wait for their results: one, or 64 at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

import anyio
import anyio.to_thread
import trio
from _pools_batches import Call, measure_calls
from _rounds import Pair, Row, compare

from agentcore import ThreadWorkerPool, ThreadWorkerPoolConfig

WORKERS: Final = 4
MANY: Final = 64
# How many jobs a batch has, by the number of callers.
NUMBERS: Final = {1: 256, MANY: MANY * 16}
WITHIN: Final = 5.0

RUN_IN_EXECUTOR: Final = "`loop.run_in_executor`, ThreadPoolExecutor"
TO_THREAD: Final = "`asyncio.to_thread`"
ANYIO: Final = "`anyio.to_thread.run_sync`"
TRIO: Final = "`trio.to_thread.run_sync`"
WITHIN_ASYNCIO: Final = "the same in `asyncio.timeout(5)`"
WITHIN_ANYIO: Final = "`anyio.to_thread.run_sync(..., abandon_on_cancel=True)` in `fail_after(5)`"

ASUBMIT: Final = "thread pool, `asubmit(f)`"
WITH_TIMEOUT: Final = "thread pool, `asubmit(f, timeout=5)`"
SUBMIT: Final = "thread pool, `await submit(f)`"
EXECUTOR: Final = "thread pool, its `executor()` in `loop.run_in_executor`"

# How many times our cost theirs is to be, by the number of callers.
GOALS: Final[dict[str, dict[str, dict[int, float]]]] = {
    "asyncio": {RUN_IN_EXECUTOR: {MANY: 3, 1: 1}, ANYIO: {MANY: 7}},
    "trio": {TRIO: {MANY: 8}, ANYIO: {MANY: 7}},
}


def answer() -> int:
    """Do nothing, in a thread."""
    return 42


@asynccontextmanager
async def peers_on_asyncio() -> AsyncGenerator[dict[str, Call]]:
    """Yield what runs on asyncio alone."""
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(WORKERS) as executor, ThreadPoolExecutor(WORKERS) as default:
        loop.set_default_executor(default)

        async def within() -> int:
            async with asyncio.timeout(WITHIN):
                return await loop.run_in_executor(executor, answer)

        yield {
            RUN_IN_EXECUTOR: partial(loop.run_in_executor, executor, answer),
            TO_THREAD: partial(asyncio.to_thread, answer),
            WITHIN_ASYNCIO: within,
        }


def peers_on_trio() -> dict[str, Call]:
    """Return what runs on trio alone."""
    return {TRIO: partial(trio.to_thread.run_sync, answer, limiter=trio.CapacityLimiter(WORKERS))}


def peers_on_both() -> dict[str, Call]:
    """Return what AnyIO has."""
    limiter = anyio.CapacityLimiter(WORKERS)

    async def within() -> int:
        with anyio.fail_after(WITHIN):
            return await anyio.to_thread.run_sync(answer, limiter=limiter, abandon_on_cancel=True)

    return {ANYIO: partial(anyio.to_thread.run_sync, answer, limiter=limiter), WITHIN_ANYIO: within}


@asynccontextmanager
async def peers(backend: str) -> AsyncGenerator[dict[str, Call]]:
    """Yield all that an event loop has."""
    if backend == "trio":
        yield peers_on_trio() | peers_on_both()
        return
    async with peers_on_asyncio() as calls:
        yield calls | peers_on_both()


@asynccontextmanager
async def ours(backend: str) -> AsyncGenerator[dict[str, Call]]:
    """Yield the ways into our pool."""
    async with ThreadWorkerPool("bench", ThreadWorkerPoolConfig(workers=WORKERS)) as pool:
        calls: dict[str, Call] = {
            ASUBMIT: partial(pool.asubmit, answer),
            WITH_TIMEOUT: partial(pool.asubmit, answer, timeout=WITHIN),
            SUBMIT: partial(pool.submit, answer),
        }
        if backend == "asyncio":
            loop = asyncio.get_running_loop()
            calls[EXECUTOR] = partial(loop.run_in_executor, pool.executor(), answer)
        yield calls


def pairs_of(backend: str, callers: int) -> list[Pair]:
    """Return the comparisons."""
    told = "one caller" if callers == 1 else f"{callers} callers"
    nearest = {"asyncio": RUN_IN_EXECUTOR, "trio": TRIO}[backend]
    also = {"asyncio": (TO_THREAD,), "trio": ()}[backend]

    def pair(subject: str, reference: str, at_least: float | None = None) -> Pair:
        what = f"{subject}, {told}: times cheaper"
        return Pair(what=what, subject=subject, reference=reference, at_least=at_least, times_smaller=True)

    timed = {"asyncio": (WITHIN_ASYNCIO, WITHIN_ANYIO), "trio": (WITHIN_ANYIO,)}[backend]
    return [
        *(pair(ASUBMIT, name, goals.get(callers)) for name, goals in GOALS[backend].items()),
        *(pair(ASUBMIT, name) for name in also),
        *(pair(WITH_TIMEOUT, name) for name in (*timed, nearest)),
        *(pair(name, nearest) for name in (SUBMIT, EXECUTOR) if name != EXECUTOR or backend == "asyncio"),
    ]


async def measure_threads(rounds: int, backend: str) -> list[Row]:
    """Measure everything, with one caller and with many."""
    rows: list[Row] = []
    async with peers(backend) as theirs, ours(backend) as calls:
        for callers, number in NUMBERS.items():
            figures = await measure_calls({**theirs, **calls}, rounds, callers, number)
            rows += compare(figures, pairs_of(backend, callers), "ns", backend)
    return rows
