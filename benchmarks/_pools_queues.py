"""Asynchronous functions as jobs of a pool: by our queue pool, and by everything else that works through them in one loop.

One producer hands in a thousand jobs, and waits until they have been done; so a queue of the usual bound is never full. A
no-op job returns; a yielding one lets others run once, by the event loop's own means. Whoever limits how many run at once
is given the same limit.
"""

# ruff: noqa: PLC0415

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from contextvars import Context, copy_context
from functools import partial
from typing import Any, Final, TypeAlias

import anyio
import attrs
import trio
from _pools_batches import Batch, calling, is_installed
from _rounds import Loop, Pair, Row, compare, measure

from agentcore import AsyncioWorkerPool, QueueWorkerPool, QueueWorkerPoolConfig

WORKERS: Final = 16
CHUNK: Final = 1000
NUMBER: Final = 2 * CHUNK

Job: TypeAlias = Callable[[int], Awaitable[None]]

START_SOON: Final = "`tg.start_soon` of AnyIO"
LIMITED: Final = "the same under a `CapacityLimiter`"
NATIVE: Final = {"asyncio": "`asyncio.TaskGroup`", "trio": "`nursery.start_soon` of trio"}
AIOMETER: Final = "`aiometer.run_on_each`"
PUT_NOWAIT: Final = {
    "asyncio": "workers on `asyncio.Queue`, `put_nowait`",
    "trio": "workers on trio's channel, `send_nowait`",
}
PUT: Final = {"asyncio": "workers on `asyncio.Queue`, `await put`", "trio": "workers on trio's channel, `await send`"}
PUT_AND_YIELD: Final = "the same, and `await asyncio.sleep(0)`"
PUT_WITH_CONTEXT: Final = "workers on `asyncio.Queue`, each job with variables of its own"

SUBMIT_NOWAIT: Final = "queue pool, `submit_nowait(f)`"
SUBMIT: Final = "queue pool, `await submit(f)`"
ASUBMIT: Final = f"queue pool, `asubmit(f)`, {WORKERS} callers"
AMAP: Final = "queue pool, `amap`, an item"
TASKS: Final = "pool of tasks, `submit_nowait(f)`"

START_SOON_GOALS: Final = {"asyncio": 8.0, "trio": 5.0}

logger = logging.getLogger(__name__)


async def no_op(_index: int) -> None:
    """Job: return."""


async def yield_once(_index: int) -> None:
    """Job: let others run."""
    await asyncio.sleep(0)


async def yield_once_on_trio(_index: int) -> None:
    """Job: let others run."""
    await trio.lowlevel.checkpoint()


JOBS: Final[dict[str, dict[str, Job]]] = {
    "asyncio": {"no-op": no_op, "yielding": yield_once},
    "trio": {"no-op": no_op, "yielding": yield_once_on_trio},
}


@attrs.frozen
class Chunks:
    """Loop: hands in jobs by the thousand, the last of which tells that it has run.

    Attributes:
        job: what the jobs do.
        put: hands one in.
        wait: whether that has to be awaited.
    """

    job: Job
    put: Callable[..., Any]
    wait: bool

    async def __call__(self, number: int) -> None:
        """Hand in so many and wait for them."""
        for begun in range(0, number, CHUNK):
            ended = anyio.Event()
            last = partial(self._end, ended)
            await (self._put_awaiting if self.wait else self._put)(min(CHUNK, number - begun) - 1)
            if self.wait:
                await self.put(last, 0)
            else:
                self.put(last, 0)
            await ended.wait()

    async def _put(self, number: int) -> None:
        put, job = self.put, self.job
        for index in range(number):
            put(job, index)

    async def _put_awaiting(self, number: int) -> None:
        put, job = self.put, self.job
        for index in range(number):
            await put(job, index)

    async def _end(self, ended: anyio.Event, index: int) -> None:
        await self.job(index)
        ended.set()


# ---------------------------------------------------------------- a task for each job


async def start_soon(job: Job, number: int) -> None:
    """Loop: a task of AnyIO for each job."""
    async with anyio.create_task_group() as group:
        for index in range(number):
            group.start_soon(job, index)


async def start_limited(job: Job, number: int) -> None:
    """Loop: a task of AnyIO for each job, not all of which run at once."""
    limiter = anyio.CapacityLimiter(WORKERS)

    async def run(index: int) -> None:
        async with limiter:
            await job(index)

    async with anyio.create_task_group() as group:
        for index in range(number):
            group.start_soon(run, index)


async def start_in_asyncio(job: Any, number: int) -> None:
    """Loop: a task of asyncio for each job."""
    async with asyncio.TaskGroup() as group:
        for index in range(number):
            group.create_task(job(index))


async def start_in_trio(job: Job, number: int) -> None:
    """Loop: a task of trio for each job."""
    async with trio.open_nursery() as nursery:
        for index in range(number):
            nursery.start_soon(job, index)


async def run_on_each(job: Job, number: int) -> None:
    """Loop: aiometer."""
    import aiometer

    await aiometer.run_on_each(job, range(number), max_at_once=WORKERS)


# ---------------------------------------------------------------- workers on a queue of the event loop's own


async def work_on_queue(queue: asyncio.Queue[tuple[Job, int]]) -> None:
    """Work, as the page about `asyncio.Queue` shows, and survive what jobs raise."""
    while True:
        job, index = await queue.get()
        try:
            await job(index)
        except Exception:
            logger.exception("a job failed")
        finally:
            queue.task_done()


async def work_in_contexts(queue: asyncio.Queue[tuple[Any, int, Context]]) -> None:
    """Work as `work_on_queue` does, each job with the variables of whoever has put it there, as jobs of our pools have."""
    while True:
        job, index, context = await queue.get()
        try:
            await asyncio.create_task(job(index), context=context)  # the only way that asyncio has
        except Exception:
            logger.exception("a job failed")
        finally:
            queue.task_done()


@asynccontextmanager
async def queue_of_asyncio() -> AsyncGenerator[Mapping[str, Callable[[Job], Loop]]]:
    """Yield loops over workers that take from an `asyncio.Queue`."""
    queue: asyncio.Queue[tuple[Job, int]] = asyncio.Queue(CHUNK)

    def put_nowait(job: Job, index: int) -> None:
        queue.put_nowait((job, index))

    async def put(job: Job, index: int) -> None:
        await queue.put((job, index))

    async def put_and_yield(job: Job, index: int) -> None:
        await queue.put((job, index))
        await asyncio.sleep(0)

    with_contexts: asyncio.Queue[tuple[Any, int, Context]] = asyncio.Queue(CHUNK)

    def put_with_context(job: Job, index: int) -> None:
        with_contexts.put_nowait((job, index, copy_context()))

    workers = [asyncio.create_task(work_on_queue(queue)) for _ in range(WORKERS)]
    workers += [asyncio.create_task(work_in_contexts(with_contexts)) for _ in range(WORKERS)]
    try:
        yield {
            PUT_NOWAIT["asyncio"]: lambda job: Chunks(job, put_nowait, wait=False),
            PUT["asyncio"]: lambda job: Chunks(job, put, wait=True),
            PUT_AND_YIELD: lambda job: Chunks(job, put_and_yield, wait=True),
            PUT_WITH_CONTEXT: lambda job: Chunks(job, put_with_context, wait=False),
        }
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)


async def work_on_channel(channel: trio.MemoryReceiveChannel[tuple[Job, int]]) -> None:
    """Work, and survive what jobs raise."""
    async for job, index in channel:
        try:
            await job(index)
        except Exception:
            logger.exception("a job failed")


@asynccontextmanager
async def channel_of_trio() -> AsyncGenerator[Mapping[str, Callable[[Job], Loop]]]:
    """Yield loops over workers that take from a channel of trio."""
    send, receive = trio.open_memory_channel[tuple[Job, int]](CHUNK)

    def send_nowait(job: Job, index: int) -> None:
        send.send_nowait((job, index))

    async def send_waiting(job: Job, index: int) -> None:
        await send.send((job, index))

    async with trio.open_nursery() as nursery:
        for _ in range(WORKERS):
            nursery.start_soon(work_on_channel, receive)
        yield {
            PUT_NOWAIT["trio"]: lambda job: Chunks(job, send_nowait, wait=False),
            PUT["trio"]: lambda job: Chunks(job, send_waiting, wait=True),
        }
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def peers(backend: str) -> AsyncGenerator[dict[str, Callable[[Job], Loop]]]:
    """Yield all that works through jobs in one loop."""
    native = {"asyncio": start_in_asyncio, "trio": start_in_trio}[backend]
    loops: dict[str, Callable[[Job], Loop]] = {
        START_SOON: lambda job: partial(start_soon, job),
        LIMITED: lambda job: partial(start_limited, job),
        NATIVE[backend]: lambda job: partial(native, job),
    }
    if is_installed("aiometer"):
        loops[AIOMETER] = lambda job: partial(run_on_each, job)
    async with queue_of_asyncio() if backend == "asyncio" else channel_of_trio() as queued:
        yield {**loops, **queued}


# ---------------------------------------------------------------- ours


@asynccontextmanager
async def ours() -> AsyncGenerator[dict[str, Callable[[Job], Loop]]]:
    """Yield the ways into our pools."""
    config = QueueWorkerPoolConfig(workers=WORKERS, max_queue_size=CHUNK)
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(QueueWorkerPool("bench", config))
        tasks = await stack.enter_async_context(AsyncioWorkerPool("bench tasks", config))

        async def amap(job: Job, number: int) -> None:
            await pool.amap(job, range(number))

        yield {
            SUBMIT_NOWAIT: lambda job: Chunks(job, pool.submit_nowait, wait=False),
            SUBMIT: lambda job: Chunks(job, pool.submit, wait=True),
            ASUBMIT: lambda job: calling(partial(pool.asubmit, job, 0), WORKERS),
            AMAP: lambda job: partial(amap, job),
            TASKS: lambda job: Chunks(job, tasks.submit_nowait, wait=False),
        }


def pairs_of(backend: str, kind: str) -> list[Pair]:
    """Return the comparisons."""

    def pair(subject: str, reference: str, at_least: float | None = None) -> Pair:
        what = f"{subject}, {kind}: times the jobs a second"
        return Pair(what=what, subject=subject, reference=reference, at_least=at_least, times_smaller=True)

    queued = 1.0 if backend == "asyncio" else None
    return [
        pair(SUBMIT_NOWAIT, PUT_NOWAIT[backend], queued),
        # To put lets nobody run, unless the queue is full; to submit does so each time. The fair one is the first.
        *([pair(SUBMIT, PUT_AND_YIELD, queued)] if backend == "asyncio" else []),
        *([pair(SUBMIT_NOWAIT, PUT_WITH_CONTEXT)] if backend == "asyncio" else []),
        pair(SUBMIT, PUT[backend]),
        pair(SUBMIT_NOWAIT, START_SOON, START_SOON_GOALS[backend]),
        pair(SUBMIT, START_SOON),
        *(pair(SUBMIT_NOWAIT, name) for name in (LIMITED, NATIVE[backend])),
        *([pair(SUBMIT_NOWAIT, AIOMETER)] if is_installed("aiometer") else []),
        *(pair(name, START_SOON) for name in (ASUBMIT, AMAP, TASKS)),
    ]


async def measure_queues(rounds: int, backend: str) -> list[Row]:
    """Measure everything, with jobs that do nothing and with jobs that yield."""
    rows: list[Row] = []
    async with peers(backend) as theirs, ours() as loops:
        for kind, job in JOBS[backend].items():
            batches = {name: Batch(make(job), NUMBER) for name, make in {**theirs, **loops}.items()}
            rows += compare(await measure(batches, rounds), pairs_of(backend, kind), "ns", backend)
    return rows
