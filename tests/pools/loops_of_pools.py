"""The event loops that programs with pools run in, each started in the way that its users start it."""

from __future__ import annotations

import asyncio
import importlib.util
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import trio

Main = Callable[[], Awaitable[Any]]


def _uvloop(main: Main) -> Any:
    return anyio.run(main, backend="asyncio", backend_options={"use_uvloop": True})


STARTS: dict[str, Callable[[Main], Any]] = {
    "asyncio.run": lambda main: asyncio.run(main()),  # type: ignore[arg-type]
    "trio.run": trio.run,
    "anyio.run on asyncio": lambda main: anyio.run(main, backend="asyncio", backend_options={"debug": True}),
    "anyio.run on trio": lambda main: anyio.run(main, backend="trio"),
}
if importlib.util.find_spec("uvloop"):
    STARTS["uvloop"] = _uvloop

every_start = pytest.mark.parametrize("start", list(STARTS.values()), ids=list(STARTS))


# Threads of the interpreter, of test runners and of event loops.
OTHERS = ("MainThread", "AnyIO worker", "Trio ", "Thread-", "asyncio_", "execnet", "Dummy", "ThreadPoolExecutor")


def left() -> list[str]:
    """Return what of pools and of their host still runs: tasks, if a loop runs here, and threads."""
    try:
        tasks = [str(task.name) for task in anyio.get_running_tasks()]
    except anyio.NoEventLoopError:
        tasks = []
    found = [name for name in tasks if name.endswith("of agentcore") or "worker pool " in name or " of pool " in name]
    threads = [thread.name for thread in threading.enumerate() if not thread.name.startswith(OTHERS)]
    return sorted([*found, *threads])


async def settled() -> None:
    """Let what has to be done yet be done."""
    for _ in range(10):
        await anyio.lowlevel.checkpoint()
