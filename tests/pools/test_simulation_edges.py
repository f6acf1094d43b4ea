"""The clock of a simulation and the threads of pools, where they meet at odd moments."""

from __future__ import annotations

import threading
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import anyio
import anyio.from_thread
import anyio.lowlevel
import pytest

from agentcore import ThreadWorkerPool, ThreadWorkerPoolConfig, WorkerPoolFullError, WorkerTimeoutError
from agentcore.testing import BACKENDS, current_simulation, run_sim
from tests.pools.thread_helpers import Hold, until

backends = pytest.mark.parametrize("backend", BACKENDS)
ONE = ThreadWorkerPoolConfig(workers=1)


@backends
def test_a_future_is_awaited(backend: str) -> None:
    """Whoever awaits is woken before the simulation thinks that nobody could do so."""

    async def main() -> None:
        async with ThreadWorkerPool("x") as pool:
            for number in range(200):
                assert number == await pool.submit(int, number)

    for _ in range(3):
        run_sim(main, backend=backend).unwrap()


@backends
def test_a_refused_job_does_not_stop_the_clock(backend: str) -> None:
    async def main() -> None:
        async with ThreadWorkerPool("x", ThreadWorkerPoolConfig(workers=1, max_queue_size=1)) as pool:
            gate = threading.Event()
            pool.submit(gate.wait, 5)
            while not pool.metrics.running:
                await anyio.lowlevel.checkpoint()
            pool.submit(abs, 1)
            with pytest.raises(WorkerPoolFullError):
                pool.submit(abs, 1)
            gate.set()
            await anyio.sleep(1)

    run_sim(main, backend=backend, watchdog=2).unwrap()


@backends
def test_the_clock_goes_on_while_the_only_thread_asks_the_loop(backend: str) -> None:
    """A job in the queue does not hold it: it waits for that thread."""
    found: dict[str, Any] = {}

    async def one(name: str, call: Callable[[], Awaitable[Any]]) -> None:
        try:
            found[name] = await call(), anyio.current_time()
        except WorkerTimeoutError:
            found[name] = "late", anyio.current_time()

    async def main() -> None:
        ask = partial(anyio.from_thread.run, anyio.sleep, 10, token=anyio.lowlevel.current_token())
        async with ThreadWorkerPool("x", ONE) as pool, anyio.create_task_group() as group:
            group.start_soon(one, "asks", partial(pool.asubmit, ask))
            await current_simulation().settle()
            group.start_soon(one, "late", partial(pool.asubmit, abs, -1, timeout=2))
            group.start_soon(one, "patient", partial(pool.asubmit, abs, -2))

    run_sim(main, backend=backend, watchdog=2).unwrap()
    assert {"asks": (None, 10.0), "late": ("late", 2.0), "patient": (2, 10.0)} == found


def test_a_late_job_is_told_by_a_new_worker() -> None:
    """One that finds nothing but jobs whose time is over."""
    pool, hold = ThreadWorkerPool("pool", ONE), Hold()
    first = pool.submit(hold.stay, timeout=0.05)
    hold.wait_until_begun()
    second = pool.submit(abs, -1, timeout=0.05)
    assert pool._manager is not None
    pool._manager.stop()  # as if it came a little later
    assert second._job.deadline is not None
    until(lambda: _is_over(second._job.deadline))
    pool._expire(first._job)
    try:
        assert isinstance(second.exception(2), WorkerTimeoutError)
    finally:
        hold.release()


def _is_over(deadline: float | None) -> bool:
    return deadline is not None and time.monotonic() > deadline
