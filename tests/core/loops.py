"""A program's own event loop, of plain asyncio and of plain trio: all that the programs of the specification need."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import trio

from agentcore.testing import run_sim

FOR_EVER = 3600.0


@dataclass(frozen=True)
class Loop:
    """A program's own event loop: how it starts, sleeps, forks and gives up."""

    run: Callable[[Callable[[], Awaitable[None]]], None]
    sleep: Callable[[float], Awaitable[None]]
    together: Callable[..., Awaitable[None]]
    """Runs several argumentless async functions at once, to their ends."""
    give_up: Callable[[float, Callable[[], Awaitable[Any]]], Awaitable[None]]
    """Runs an async function and raises TimeoutError if it takes too long."""
    simulate: Callable[[Callable[[], Awaitable[None]]], None]
    """Runs the program in virtual time, which costs no waiting."""


async def _asyncio_together(*functions: Callable[[], Any]) -> None:
    await asyncio.gather(*(asyncio.create_task(function()) for function in functions))


async def _asyncio_give_up(seconds: float, function: Callable[[], Any]) -> None:
    await asyncio.wait_for(function(), seconds)


async def _trio_together(*functions: Callable[[], Any]) -> None:
    async with trio.open_nursery() as nursery:
        for function in functions:
            nursery.start_soon(function)


async def _trio_give_up(seconds: float, function: Callable[[], Any]) -> None:
    try:
        with trio.fail_after(seconds):
            await function()
    except trio.TooSlowError as error:
        raise TimeoutError from error


ASYNCIO = Loop(
    run=lambda main: asyncio.run(main()),  # type: ignore[arg-type]
    sleep=asyncio.sleep,
    together=_asyncio_together,
    give_up=_asyncio_give_up,
    simulate=lambda main: run_sim(main, backend="asyncio").unwrap(),
)
TRIO = Loop(
    run=trio.run,
    sleep=trio.sleep,
    together=_trio_together,
    give_up=_trio_give_up,
    simulate=lambda main: run_sim(main, backend="trio").unwrap(),
)
