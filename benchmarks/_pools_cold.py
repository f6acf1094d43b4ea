"""How long the first result of a pool of processes takes, whose library has been imported already.

Each pool is made in a process of its own that has never had one: `python _pools_cold.py CONTENDER [BACKEND]` prints the
milliseconds of the first one and of a second one that is made when the first has gone; what a library starts once for all
pools counts in the first. The processes of other libraries import the main module, so this one is as light as a main
module can be: it imports what it needs when it needs it.
"""

# ruff: noqa: PLC0415

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from _rounds import Row

WORKERS: Final = 2
ROUNDS: Final = 15
BACKENDS: Final = ("asyncio", "trio")
OURS: Final = "process pool: the first result"
SPAWN: Final = "ProcessPoolExecutor, spawn"
GOAL: Final = 0.6


async def ours() -> float:
    """Time our pool."""
    from _pools_jobs import same

    from agentcore import ProcessWorkerPool, ProcessWorkerPoolConfig

    began = time.perf_counter()
    async with ProcessWorkerPool("cold", ProcessWorkerPoolConfig(workers=WORKERS)) as pool:
        await pool.asubmit(same, 1)
        return time.perf_counter() - began


def executor(method: str) -> Callable[[], Awaitable[float]]:
    """Return what times the standard library's."""

    async def measure() -> float:
        import multiprocessing
        from concurrent.futures import ProcessPoolExecutor

        from _pools_jobs import same

        context = multiprocessing.get_context(method)
        began = time.perf_counter()
        with ProcessPoolExecutor(WORKERS, mp_context=context) as pool:
            pool.submit(same, 1).result()
            return time.perf_counter() - began

    return measure


async def loky() -> float:
    """Time loky."""
    import loky
    from _pools_jobs import same

    began = time.perf_counter()
    with loky.ProcessPoolExecutor(WORKERS) as pool:
        pool.submit(same, 1).result()
        return time.perf_counter() - began


async def trio_parallel() -> float:
    """Time trio-parallel."""
    import trio_parallel
    from _pools_jobs import same

    began = time.perf_counter()
    async with trio_parallel.open_worker_context() as context:
        await context.run_sync(same, 1)
        return time.perf_counter() - began


async def anyio_process() -> float:
    """Time AnyIO's, of which there is one a loop: the second is that of a process which is there already."""
    import anyio.to_process
    from _pools_jobs import same

    began = time.perf_counter()
    await anyio.to_process.run_sync(same, 1)
    return time.perf_counter() - began


CONTENDERS: Final[dict[str, tuple[Callable[[], Awaitable[float]], tuple[str, ...]]]] = {
    OURS: (ours, BACKENDS),
    SPAWN: (executor("spawn"), ("",)),
    "ProcessPoolExecutor, forkserver": (executor("forkserver"), ("",)),
    "loky": (loky, ("",)),
    "`anyio.to_process.run_sync`": (anyio_process, BACKENDS),
    "`trio_parallel.run_sync`": (trio_parallel, ("trio",)),
}
"""What is timed, and in which event loops; an executor needs none."""


async def both(name: str) -> list[float]:
    """Return the milliseconds of the first pool of this process and of the second one."""
    measure = CONTENDERS[name][0]
    # Whatever the measurement itself imports has been imported before.
    import concurrent.futures.process  # noqa: F401
    import multiprocessing.context  # noqa: F401

    import _pools_jobs  # noqa: F401

    if name == OURS:
        import agentcore

        _ = agentcore.ProcessWorkerPool
    elif "loky" in name:
        import loky  # noqa: F401
    elif "trio_parallel" in name:
        import trio_parallel  # noqa: F401
    return [await measure() * 1000 for _ in range(2)]


def spend(name: str, backend: str) -> list[float]:
    """Have it measured in a process of its own."""
    import subprocess

    command = [sys.executable, __file__, name, backend]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return [float(value) for value in done.stdout.split()]


def measure_cold(rounds: int) -> list[Row]:
    """Measure all of them in turns."""
    from _pools_batches import is_installed

    there = {"loky": is_installed("loky"), "`trio_parallel.run_sync`": is_installed("trio-parallel")}
    turns = [(name, on) for name, (_, backends) in CONTENDERS.items() for on in backends if there.get(name, True)]
    figures: dict[tuple[str, str], list[list[float]]] = {turn: [] for turn in turns}
    for _ in range(min(rounds, ROUNDS)):
        for turn in turns:
            figures[turn].append(spend(*turn))
        turns.reverse()
    return [row for nth in (0, 1) for row in rows_of(figures, nth)]


def rows_of(figures: dict[tuple[str, str], list[list[float]]], nth: int) -> list[Row]:
    """Return the comparisons of the first pools, or of the second ones."""
    from _rounds import Pair, compare

    rows: list[Row] = []
    for backend in BACKENDS:
        values = {name: [both[nth] for both in kept] for (name, on), kept in figures.items() if on in {"", backend}}
        pairs = [
            Pair(
                what=f"{OURS}, {('a first pool', 'a second pool')[nth]}",
                subject=OURS,
                reference=name,
                at_most=GOAL if name == SPAWN else None,
            )
            for name in values
            # The second one of AnyIO's is no new one.
            if name != OURS and not (nth and "anyio" in name)
        ]
        rows += compare(values, pairs, "ms", backend)
    return rows


def run(name: str, backend: str) -> list[float]:
    """Measure one in this process."""
    import anyio

    return anyio.run(both, name, backend=backend or "asyncio")


if __name__ == "__main__":
    print(*run(*sys.argv[1:]))
