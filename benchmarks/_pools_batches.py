"""How pools are measured: batches of a fixed number of jobs, by one caller or by many at once.

What many callers take is not a matter of ten milliseconds: they have to be started, and the first and the last of them are
alone. So each batch is as many jobs as is said, the same for everybody who is compared, and what the callers take that have
nothing done is subtracted. They are tasks of the event loop's own, the cheapest there are.
"""

from __future__ import annotations

import asyncio
import gc
import importlib.metadata
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeAlias

import anyio
import attrs
import trio
from _rounds import Loop, Measure, Row, measure
from sniffio import current_async_library

WARMING: Final = 8
PEERS: Final = ("aiometer", "loky", "trio-parallel")
"""The distributions that are in no environment of the project."""

Call: TypeAlias = Callable[[], Awaitable[object]]
"""Has one job done, and gives its result."""


@attrs.frozen
class Batch:
    """Measures the nanoseconds of one turn of a loop.

    Attributes:
        loop: takes the number of turns.
        number: of turns in a batch.
    """

    loop: Loop
    number: int

    async def __call__(self) -> float:
        """Run one batch, after some turns that are not counted: the collection has emptied the caches."""
        await anyio.sleep(0)
        gc.collect()
        gc.disable()
        try:
            await self.loop(WARMING)
            began = time.perf_counter_ns()
            await self.loop(self.number)
            return (time.perf_counter_ns() - began) / self.number
        finally:
            gc.enable()


async def nobody() -> None:
    """Have nothing done."""


def calling(call: Call, callers: int = 1) -> Loop:
    """Return a loop of calls that are made by so many callers at once, each of which waits for its result."""
    if callers == 1:

        async def alone(number: int) -> None:
            for _ in range(number):
                await call()

        return alone

    async def together(number: int) -> None:
        async def caller() -> None:
            for _ in range(-(-number // callers)):
                await call()

        if current_async_library() == "trio":
            async with trio.open_nursery() as nursery:
                for _ in range(callers):
                    nursery.start_soon(caller)
        else:
            await asyncio.gather(*(caller() for _ in range(callers)))

    return together


async def measure_calls(calls: Mapping[str, Call], rounds: int, callers: int, number: int) -> dict[str, list[float]]:
    """Measure the nanoseconds of one call of each, without what the callers take."""
    empty = ""
    batches: dict[str, Measure] = {
        name: Batch(calling(call, callers), number) for name, call in {empty: nobody, **calls}.items()
    }
    figures = await measure(batches, rounds)
    overhead = statistics.median(figures.pop(empty))
    return {name: [value - overhead for value in values] for name, values in figures.items()}


def is_installed(distribution: str) -> bool:
    """Tell whether a peer is here."""
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def rows_of_missing() -> list[Row]:
    """Return a row for each peer that is not installed."""
    return [
        Row(what="pools", reference=name, note="not compared: it is not installed; `nox -s bench_pools` does that")
        for name in PEERS
        if not is_installed(name)
    ]


def packages() -> tuple[str, ...]:
    """Return the distributions whose versions belong to the figures."""
    return ("anyio", "trio", *filter(is_installed, PEERS))


async def drained(*waits: Callable[[], Any]) -> None:
    """Call what waits for threads or processes to end, where the event loop does not have to go on."""
    for wait in waits:
        wait()
