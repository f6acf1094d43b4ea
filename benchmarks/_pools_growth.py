"""What a million jobs through a pool leave behind."""

from __future__ import annotations

import gc
import logging
import sys
import time
import tracemalloc
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, TypeAlias

import anyio
from _rounds import Row

from agentcore import QueueWorkerPool, QueueWorkerPoolConfig, ThreadWorkerPool, ThreadWorkerPoolConfig

MANY: Final = 1_000_000
BATCH: Final = 500
WARM: Final = 20_000
AT_MOST_BYTES: Final = 1_000_000

Spend: TypeAlias = Callable[[int], Awaitable[None]]


def answer() -> int:
    """Job: in a thread."""
    return 42


async def fail() -> None:
    """Job: in the event loop."""
    raise ValueError


async def no_op() -> None:
    """Job: in the event loop."""


async def spend_in_threads(pool: ThreadWorkerPool, number: int) -> None:
    """Have so many jobs done: a third each by `asubmit`, by `submit`, and by `submit` of what is cancelled at once."""

    async def ask() -> None:
        for _ in range(BATCH // 10):
            await pool.asubmit(answer)

    for _ in range(0, number, 3 * BATCH):
        async with anyio.create_task_group() as group:
            for _ in range(10):
                group.start_soon(ask)
        for future in [pool.submit(answer) for _ in range(BATCH)]:
            await future
        for future in [pool.submit(answer) for _ in range(BATCH)]:
            if not future.cancel():
                await future


async def spend_in_queue(pool: QueueWorkerPool, number: int) -> None:
    """Have so many jobs done: half of them submitted, some of which fail; for the others somebody waits."""

    async def ask() -> None:
        for _ in range(BATCH // 10):
            await pool.asubmit(no_op)

    for _ in range(0, number, 2 * BATCH):
        for index in range(BATCH):
            await pool.submit(no_op if index % 10 else fail)
        async with anyio.create_task_group() as group:
            for _ in range(10):
                group.start_soon(ask)


def resident() -> int | None:
    """Return the bytes of memory that the process has; None where nobody tells."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return None
    return pages * 4096


async def grow(what: str, backend: str, spend: Spend) -> Row:
    """Spend a million jobs, and see what is left when all have ended."""
    began = time.monotonic()
    print(f"{MANY:,} jobs, {what}, {backend}: this takes minutes", file=sys.stderr)
    # Fills what is bounded, and what the interpreter and the loop keep for reuse.
    await spend(WARM)
    gc.collect()
    tracemalloc.start()
    try:
        await spend(WARM)
        gc.collect()
        before, process = tracemalloc.get_traced_memory()[0], resident()
        await spend(MANY)
        gc.collect()
        kept = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    after = resident()
    grown = "" if process is None or after is None else f"the process grew by {(after - process) / 1e6:.1f} MB, "
    return Row(
        what=f"{MANY:,} jobs through a {what} keep",
        backend=backend,
        unit="B",
        figure=kept,
        goal=f"< {AT_MOST_BYTES / 1e6:g} MB",
        note=f"{grown}{time.monotonic() - began:.0f} s with tracemalloc",
        kept=kept < AT_MOST_BYTES,
    )


async def measure_million(backend: str) -> list[Row]:
    """Measure a pool of threads, then a queue pool."""
    logging.disable()  # a tenth of what is submitted fails, and each failure is told
    threads = ThreadWorkerPoolConfig(workers=4)
    queue = QueueWorkerPoolConfig(on_error=lambda _error: None)
    async with ThreadWorkerPool("many", threads) as pool:
        rows = [await grow("thread pool", backend, lambda number: spend_in_threads(pool, number))]
    async with QueueWorkerPool("many too", queue) as jobs:
        rows.append(await grow("queue pool", backend, lambda number: spend_in_queue(jobs, number)))
    return rows
