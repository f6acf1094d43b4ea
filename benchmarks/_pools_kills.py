"""A process of a pool is killed, and the next job handed in at once: how long until there is a result, and who is told.

The pools have one process each. Whoever is refused because of the kill tries again, with a new pool where the old one is
broken for good; the rows say how many such errors there were. All this is done in a process that has no main module: that
of the benchmark, which the processes of other libraries import, would be most of what they take.
"""

# ruff: noqa: PLC0415

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeAlias

import anyio
import anyio.to_process
import attrs
from _pools_batches import is_installed
from _pools_jobs import same
from _rounds import Row

from agentcore import ProcessWorkerPool, ProcessWorkerPoolConfig, WorkerCrashedError

ROUNDS: Final = 15
Ask: TypeAlias = Callable[..., Awaitable[Any]]


@attrs.define
class Killed:
    """Kills, and asks again.

    Attributes:
        ask: has a function called in the process.
        broken: what tells of the kill.
        told: how often somebody was told.
    """

    ask: Ask
    broken: tuple[type[BaseException], ...]
    told: int = 0

    async def __call__(self) -> float:
        """Return the milliseconds from the kill to the next result."""
        pid = await self.ask(os.getpid)
        os.kill(pid, signal.SIGKILL)
        began = time.perf_counter()
        while True:
            try:
                await self.ask(same, 1)
            except self.broken:
                self.told += 1
            else:
                return (time.perf_counter() - began) * 1000


@attrs.define
class Renewed:
    """An executor that is made anew when it is broken. It blocks the event loop, which has nothing else to do.

    Attributes:
        make: makes one.
        executor: the one that there is.
    """

    make: Callable[[], Executor]
    executor: Executor | None = None

    async def ask(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function in a process."""
        if self.executor is None:
            self.executor = self.make()
        try:
            return self.executor.submit(function, *args).result()
        except BrokenExecutor:
            self.executor.shutdown()
            self.executor = None
            raise

    def shutdown(self) -> None:
        """End it."""
        if self.executor is not None:
            self.executor.shutdown()


def executors() -> dict[str, Renewed]:
    """Return those of the standard library, and loky."""
    found = {
        f"ProcessPoolExecutor, {method}, made anew": Renewed(
            partial(ProcessPoolExecutor, 1, mp_context=multiprocessing.get_context(method))
        )
        for method in ("spawn", "forkserver")
    }
    if is_installed("loky"):
        from loky import get_reusable_executor

        found["loky, `get_reusable_executor` again"] = Renewed(partial(get_reusable_executor, 1))
    return found


@asynccontextmanager
async def contenders(backend: str) -> AsyncGenerator[Mapping[str, Killed]]:
    """Yield ours and the others."""
    async with AsyncExitStack() as stack:
        limiter = anyio.CapacityLimiter(1)
        config = ProcessWorkerPoolConfig(workers=1, idle_timeout=None)
        pool = await stack.enter_async_context(ProcessWorkerPool("killed", config))
        found = {
            "process pool": Killed(pool.asubmit, (WorkerCrashedError,)),
            "`anyio.to_process.run_sync`": Killed(
                partial(anyio.to_process.run_sync, limiter=limiter), (anyio.BrokenWorkerProcess,)
            ),
        }
        if backend == "asyncio":
            for name, executor in executors().items():
                stack.callback(executor.shutdown)
                found[name] = Killed(executor.ask, (BrokenExecutor,))
        elif is_installed("trio-parallel"):
            import trio
            import trio_parallel

            context = await stack.enter_async_context(trio_parallel.open_worker_context())
            ask = partial(context.run_sync, limiter=trio.CapacityLimiter(1))
            found["`trio_parallel.run_sync`"] = Killed(ask, (trio_parallel.BrokenWorkerError,))
        yield found


async def kill(rounds: int, backend: str) -> dict[str, tuple[list[float], int]]:
    """Kill them in turns; return the milliseconds until the next results, and how many errors there were."""
    async with contenders(backend) as kills:
        figures: dict[str, list[float]] = {name: [] for name in kills}
        order = list(kills)
        for _ in range(rounds):
            for name in order:
                figures[name].append(await kills[name]())
            order.reverse()
        return {name: (values, kills[name].told) for name, values in figures.items()}


def main(rounds: int, backend: str) -> None:
    """Kill, and print what was measured."""
    logging.disable()  # asyncio tells of processes that were ended by others.
    print(json.dumps(anyio.run(kill, rounds, backend, backend=backend)))


def measure_kills(rounds: int, backend: str) -> list[Row]:
    """Have it measured in a process that has no main module."""
    rounds = min(rounds, ROUNDS)
    command = [sys.executable, "-c", f"import _pools_kills; _pools_kills.main({rounds}, {backend!r})"]
    done = subprocess.run(
        command, cwd=Path(__file__).parent, stdout=subprocess.PIPE, text=True, check=True, timeout=300
    )
    return [
        Row(
            what=f"killed → next result, one process: {name}",
            backend=backend,
            unit="ms",
            figure=statistics.median(values),
            note=f"{min(values):.0f}–{max(values):.0f} ms; {told} errors in {rounds} kills",
        )
        for name, (values, told) in json.loads(done.stdout).items()
    ]
