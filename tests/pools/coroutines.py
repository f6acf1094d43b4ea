"""Jobs for the pools for coroutines, and what a test of those needs around them."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from agentcore import AsyncioWorkerPool, QueueWorkerPool, QueueWorkerPoolConfig, WorkerPoolMetrics

Kind = type[QueueWorkerPool] | type[AsyncioWorkerPool]
Pool = QueueWorkerPool | AsyncioWorkerPool
KINDS: tuple[Kind, ...] = (QueueWorkerPool, AsyncioWorkerPool)

both_kinds = pytest.mark.parametrize("kind", KINDS, ids=["queue", "asyncio"])


class Boom(Exception):
    """What a job raises."""


class Door:
    """A job that notes who comes, and lets nobody out before it is opened."""

    def __init__(self) -> None:
        self.came: list[Any] = []
        self.left: list[Any] = []
        self.inside = self.peak = 0
        self.opened = anyio.Event()

    async def __call__(self, who: Any = None) -> Any:
        self.came.append(who)
        self.inside += 1
        self.peak = max(self.peak, self.inside)
        try:
            await self.opened.wait()
        finally:
            self.inside -= 1
            self.left.append(who)
        return who


async def nothing() -> None:
    """Do nothing, without waiting."""


async def double(number: int) -> int:
    """Do something, with a wait in it."""
    await anyio.lowlevel.checkpoint()
    return 2 * number


async def fail(text: str = "inside") -> None:
    """Raise a Boom."""
    await anyio.lowlevel.checkpoint()
    raise Boom(text)


async def turns(number: int = 10) -> None:
    """Let others run."""
    for _ in range(number):
        await anyio.lowlevel.checkpoint()


def configured(**settings: Any) -> QueueWorkerPoolConfig:
    """Configure a pool with one worker, or as is said."""
    return QueueWorkerPoolConfig(**{"workers": 1, **settings})


def counts(metrics: WorkerPoolMetrics) -> dict[str, int]:
    """Return the numbers that are not 0, but for the workers and the histograms."""
    names = ("queued", "running", "succeeded", "failed", "timed_out", "cancelled", "crashed", "abandoned", "rejected")
    return {name: number for name in names if (number := getattr(metrics, name))}


def logged(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """Return what agentcore has logged; asyncio's debug mode has its say on a slow machine."""
    return [record for record in caplog.records if record.name.startswith("agentcore")]


@asynccontextmanager
async def busy(pool: Pool, number: int = 1) -> AsyncGenerator[Door]:
    """Keep so many workers of a pool busy until the block is left."""
    door = Door()
    for who in range(number):
        await pool.submit(door, who)
    await anyio.wait_all_tasks_blocked()
    assert number == door.inside
    try:
        yield door
    finally:
        door.opened.set()
