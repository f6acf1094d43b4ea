"""Pools that give each coroutine a task of its own, and how those of persistent workers differ."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import trio

from agentcore import AsyncioWorkerPool, QueueWorkerPool, WorkerPoolType
from agentcore.testing import assert_no_leaks, simulate
from tests.pools.coroutines import Door, Kind, Pool, both_kinds, busy, configured, counts, double, nothing

pytestmark = pytest.mark.anyio


def tasks(part: str) -> list[str]:
    """Return the names of the tasks of the loop that have this in them."""
    return sorted(str(task.name) for task in anyio.get_running_tasks() if part in str(task.name))


async def task_id() -> int:
    """Return which task this runs in."""
    return anyio.get_current_task().id


async def test_each_job_has_a_task_of_its_own() -> None:
    """Named after its function and the pool; it is gone when the job is."""
    door = Door()
    async with AsyncioWorkerPool("p", configured(workers=2)) as pool:
        for number in range(3):
            await pool.submit(door, number)
        await anyio.wait_all_tasks_blocked()
        assert ["job Door of pool p"] * 2 == tasks("job")
        door.opened.set()
        await anyio.wait_all_tasks_blocked()
        assert [] == tasks("job")
        # Kept, for a number may be given again to a task that comes after one that has gone.
        kept: list[Any] = []

        async def note() -> None:
            kept.append(asyncio.current_task() if is_asyncio() else trio.lowlevel.current_task())

        for _ in range(5):
            await pool.asubmit(note)
        assert 5 == len(set(kept))


def is_asyncio() -> bool:
    """Tell which kind of loop this is."""
    return anyio.get_cancelled_exc_class() is asyncio.CancelledError


async def test_workers_of_the_other_kind_are_kept() -> None:
    """One after the other, jobs run in the same task; there are no more workers than there was work for."""
    async with QueueWorkerPool("p", configured(workers=4)) as pool:
        assert [] == tasks("worker of pool")
        found = {await pool.asubmit(task_id) for _ in range(5)}
        assert (1, 1, ["worker of pool p"]) == (len(found), pool.metrics.workers, tasks("worker of pool"))
        async with busy(pool, 3):
            assert (3, ["worker of pool p"] * 3) == (pool.metrics.workers, tasks("worker of pool"))
        await anyio.wait_all_tasks_blocked()
        assert 3 == pool.metrics.workers
    assert (0, []) == (pool.metrics.workers, tasks("worker of pool"))


@both_kinds
async def test_the_type(kind: Kind) -> None:
    expected = {QueueWorkerPool: WorkerPoolType.QUEUE_ASYNCIO, AsyncioWorkerPool: WorkerPoolType.ASYNCIO}[kind]
    assert expected is kind("p").pool_type is kind.pool_type


@both_kinds
async def test_jobs_are_no_tasks_of_whoever_submits(kind: Kind) -> None:
    """A task group around the submitter does not wait for them, and a cancellation of it does not reach them."""
    door = Door()
    async with kind("p", configured(workers=2)) as pool:
        async with anyio.create_task_group() as group:
            group.start_soon(pool.submit, door, 1)
            await anyio.wait_all_tasks_blocked()
            group.cancel_scope.cancel()
        with anyio.CancelScope() as scope:
            scope.cancel()
            pool.submit_nowait(door, 2)
            await anyio.lowlevel.checkpoint()
        await anyio.wait_all_tasks_blocked()
        assert [1, 2] == door.came
        assert [] == door.left
        door.opened.set()
    assert {"succeeded": 2} == counts(pool.metrics)


@both_kinds
async def test_a_job_that_leaves_its_own_tasks_behind(kind: Kind) -> None:
    """On asyncio a job can start what outlives it: that is no part of the job, and the next one begins."""
    if not is_asyncio():
        pytest.skip("trio has no such tasks")
    kept: list[asyncio.Task[int]] = []

    async def leave() -> None:
        kept.append(asyncio.create_task(double(4)))

    async with kind("p", configured()) as pool:
        await pool.asubmit(leave)
        assert 2 == await pool.asubmit(double, 1)
    assert 8 == await kept[0]


@both_kinds
async def test_a_long_queue_of_short_jobs(kind: Kind) -> None:
    """However many there are, they do not pile up on the stack."""
    order: list[int] = []

    async def note(number: int) -> None:
        order.append(number)

    async with kind("p", configured(max_queue_size=1500)) as pool, busy(pool):
        for number in range(1500):
            pool.submit_nowait(note, number)
    assert list(range(1500)) == order


@both_kinds
async def test_a_chain_of_jobs(kind: Kind) -> None:
    """Each submits the next one: no stack, no starving, and the pool drains to the last one that was accepted."""
    left = 1200

    async def link(pool: Pool) -> None:
        nonlocal left
        left -= 1
        if left:
            pool.submit_nowait(link, pool)
        else:
            over.set()

    over = anyio.Event()
    async with kind("p", configured()) as pool:
        await pool.submit(link, pool)
        await over.wait()
    assert {"succeeded": 1200} == counts(pool.metrics)


@both_kinds
@pytest.mark.parametrize("job", [nothing, anyio.lowlevel.checkpoint], ids=["at once", "later"])
async def test_the_task_tree_forgets(kind: Kind, job: Callable[[], Any]) -> None:
    """Thousands of jobs leave no more behind than one."""
    async with kind("p", configured(workers=3)) as pool:
        await pool.asubmit(job)
        with assert_no_leaks_of_tasks():
            for _ in range(300):
                await pool.asubmit(job)
    assert tasks("pool") == []


class assert_no_leaks_of_tasks:  # noqa: N801 - reads as what it does
    """Check that there are no more tasks afterwards than before."""

    def __enter__(self) -> None:
        self.before = len(anyio.get_running_tasks())

    def __exit__(self, *_error: object) -> None:
        # One may be about to end.
        assert len(anyio.get_running_tasks()) <= self.before + 1


@both_kinds
@simulate(runs=20)
async def test_nothing_is_left(kind: Kind) -> None:
    """In any order: no task, and nothing of the host."""
    with assert_no_leaks():
        async with kind("p", configured(workers=2)) as pool:
            for number in range(4):
                await pool.submit(double, number)
            assert [0, 2, 4] == await pool.amap(double, range(3))
            await pool.shutdown()


@both_kinds
@simulate(runs=30)
async def test_so_many_at_a_time_in_any_order(kind: Kind) -> None:
    """Never more than there are workers, and none idle while something waits."""
    inside = peak = 0

    async def work(pool: Pool) -> None:
        nonlocal inside, peak
        inside += 1
        peak = max(peak, inside)
        assert inside <= pool.metrics.running <= 2
        await anyio.sleep(1)
        inside -= 1

    began = anyio.current_time()
    async with kind("p", configured(workers=2)) as pool, anyio.create_task_group() as group:
        for number in range(7):
            if number % 2:
                await pool.submit(work, pool)
            else:
                group.start_soon(pool.asubmit, work, pool)
    assert (2, 4) == (peak, anyio.current_time() - began)
    metrics = pool.metrics
    assert (7, 7) == (sum(metrics.wait_histogram), sum(metrics.run_histogram))
    slot = next(index for index, bound in enumerate(metrics.histogram_bounds) if bound >= 1)
    assert 7 == metrics.run_histogram[slot]
