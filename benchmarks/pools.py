"""Measures pools of threads, of processes and of tasks against everything else that has jobs done.

    python benchmarks/pools.py [--rounds 31] [--only threads queues processes cold kills] [--json | --markdown] [--million]

- Threads: `asubmit` against `run_in_executor`, `asyncio.to_thread`, AnyIO's and trio's; with one caller and with 64.
- Queues: jobs that do nothing and jobs that yield, against workers on `asyncio.Queue`, and against a task for each job.
- Processes: tiny jobs and 1 MB, against ProcessPoolExecutor, loky, AnyIO's processes and trio-parallel.
- The first result of a cold pool of processes, and the next result after one of them was killed.
- With ``--million``, a million jobs through a pool of threads and a queue pool: what they leave behind. That takes minutes.

aiometer, loky and trio-parallel are in no environment of the project, so this needs one of its own: `nox -s bench_pools`.
What is not installed has a line that says so. Exits with 1 if a promise is not kept. docs/benchmarks.md has the table.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

import anyio
from _pools_batches import packages, rows_of_missing
from _pools_cold import measure_cold
from _pools_growth import measure_million
from _pools_kills import measure_kills
from _pools_processes import measure_processes
from _pools_queues import measure_queues
from _pools_threads import measure_threads
from _rounds import Row, main

BACKENDS: Final = ("asyncio", "trio")
PARTS: Final[dict[str, Any]] = {
    "threads": measure_threads,
    "queues": measure_queues,
    "processes": measure_processes,
}
KILLS: Final = "kills"
COLD: Final = "cold"
ALL: Final = (*PARTS, KILLS, COLD)


def benchmark(rounds: int, *, parts: Sequence[str], million: bool) -> list[Row]:
    """Measure what is asked for."""
    rows = [
        row
        for name in parts
        if name in PARTS
        for backend in BACKENDS
        for row in anyio.run(PARTS[name], rounds, backend, backend=backend)
    ]
    if KILLS in parts:
        rows += [row for backend in BACKENDS for row in measure_kills(rounds, backend)]
    if COLD in parts:
        rows += measure_cold(rounds)
    if million:
        rows += [row for backend in BACKENDS for row in anyio.run(measure_million, backend, backend=backend)]
    return rows + rows_of_missing()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--million", action="store_true")
    parser.add_argument("--only", nargs="*", choices=ALL, default=ALL)
    arguments, sys.argv[1:] = parser.parse_known_args()
    measured = partial(benchmark, parts=arguments.only, million=arguments.million)
    sys.exit(main(__doc__ or "", packages(), measured))
