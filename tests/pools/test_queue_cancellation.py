"""Pools for coroutines, of either kind: callers that are cancelled, by scopes and by asyncio's own ways."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any, Self

import anyio
import anyio.lowlevel
import pytest

from agentcore import WorkerPoolClosedError, WorkerPoolFullError
from agentcore.testing import cancel_everywhere, run_sim, simulate
from tests.pools.coroutines import Boom, Door, Kind, Pool, both_kinds, busy, configured, counts, double, nothing, turns

pytestmark = [pytest.mark.anyio, both_kinds]


# By scopes.


async def test_a_queued_job_is_taken_back(kind: Kind) -> None:
    """It never begins, and its caller is free at once."""
    door = Door()
    async with kind("p", configured()) as pool:
        async with busy(pool):
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as group:
                    group.start_soon(pool.asubmit, door, "cancelled")
                    await anyio.wait_all_tasks_blocked()
                    assert 1 == pool.metrics.queued
                    scope.cancel()
            assert {"running": 1, "cancelled": 1} == counts(pool.metrics)
        assert 2 == await pool.asubmit(double, 1)
    assert [] == door.came
    assert {"succeeded": 2, "cancelled": 1} == counts(pool.metrics)


async def test_many_queued_jobs_are_taken_back(kind: Kind) -> None:
    """The others keep their order, and nothing is left of those."""
    order: list[int] = []

    async def note(number: int) -> None:
        order.append(number)

    async with kind("p", configured()) as pool, anyio.create_task_group() as kept:
        async with busy(pool), anyio.create_task_group() as cancelled:
            for number in range(400):
                (kept if number % 4 == 0 else cancelled).start_soon(pool.asubmit, note, number)
                await anyio.lowlevel.checkpoint()
            await anyio.wait_all_tasks_blocked()
            assert 400 == pool.metrics.queued
            cancelled.cancel_scope.cancel()
        assert 300 == pool.metrics.cancelled
    assert list(range(0, 400, 4)) == sorted(order)
    assert {"succeeded": 101, "cancelled": 300} == counts(pool.metrics)


async def test_a_running_job_is_cancelled_and_waited_for(kind: Kind) -> None:
    """When the cancellation comes out of `asubmit`, the job has unwound."""
    log: list[str] = []
    begun = anyio.Event()

    async def work() -> None:
        begun.set()
        try:
            await anyio.sleep_forever()
        finally:
            log.append("cancelled")
            with anyio.CancelScope(shield=True):
                await turns()
            log.append("unwound")

    async def call(pool: Pool) -> None:
        try:
            await pool.asubmit(work)
        finally:
            log.append("free")

    async with kind("p", configured()) as pool:
        async with anyio.create_task_group() as group:
            group.start_soon(call, pool)
            await begun.wait()
            group.cancel_scope.cancel()
        assert 2 == await pool.asubmit(double, 1)
    assert ["cancelled", "unwound", "free"] == log
    assert {"succeeded": 1, "cancelled": 1} == counts(pool.metrics)


async def test_a_job_that_comes_to_its_end_all_the_same(kind: Kind) -> None:
    """Its result is not lost: whoever was cancelled has it, and meets the cancellation at his next checkpoint."""
    found: list[Any] = []
    begun = anyio.Event()

    async def stubborn() -> str:
        begun.set()
        with anyio.CancelScope(shield=True):
            await turns()
        return "done"

    async def call(pool: Pool) -> None:
        found.append(await pool.asubmit(stubborn))
        await anyio.lowlevel.checkpoint()
        found.append("not cancelled")

    async with kind("p", configured()) as pool, anyio.create_task_group() as group:
        group.start_soon(call, pool)
        await begun.wait()
        group.cancel_scope.cancel()
    assert ["done"] == found
    assert {"succeeded": 1} == counts(pool.metrics)


async def test_a_job_whose_clean_up_fails(kind: Kind) -> None:
    """What it raises is told, to the caller that was cancelled."""
    begun = anyio.Event()

    async def work() -> None:
        begun.set()
        try:
            await anyio.sleep_forever()
        finally:
            raise Boom("clean-up")

    async with kind("p", configured()) as pool:
        with pytest.raises(ExceptionGroup) as caught:
            async with anyio.create_task_group() as group:
                group.start_soon(pool.asubmit, work)
                await begun.wait()
                group.cancel_scope.cancel()
        assert caught.group_contains(Boom, match="clean-up")
    assert {"failed": 1} == counts(pool.metrics)


async def test_only_the_job_of_the_cancelled_caller(kind: Kind) -> None:
    """Other jobs, running and queued, know nothing of it; neither do those that were submitted by the same caller."""
    door, begun = Door(), anyio.Event()

    async def work() -> None:
        begun.set()
        await anyio.sleep_forever()

    async def call(pool: Pool) -> None:
        await pool.submit(door, "submitted")
        await pool.asubmit(work)

    async with kind("p", configured(workers=3)) as pool, anyio.create_task_group() as group:
        group.start_soon(pool.asubmit, door, "running")
        await anyio.wait_all_tasks_blocked()
        async with anyio.create_task_group() as cancelled:
            cancelled.start_soon(call, pool)
            await begun.wait()
            for number in range(3):
                group.start_soon(pool.asubmit, door, number)
                await anyio.wait_all_tasks_blocked()
            cancelled.cancel_scope.cancel()
        await anyio.wait_all_tasks_blocked()
        assert ["running", "submitted", 0] == door.came
        door.opened.set()
    assert {"running", "submitted", 0, 1, 2} == set(door.left)


async def test_a_scope_inside_of_the_caller(kind: Kind) -> None:
    """A deadline around `asubmit` is a cancellation, and a TimeoutError of `fail_after`."""
    unwound: list[bool] = []

    async def work() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            unwound.append(True)

    async def main() -> None:
        async with kind("p", configured()) as pool:
            with pytest.raises(TimeoutError), anyio.fail_after(3):
                await pool.asubmit(work)
            assert 3 == anyio.current_time() - began

    async def timed() -> None:
        nonlocal began
        began = anyio.current_time()
        await main()

    began = 0.0
    for backend in ("asyncio", "trio"):
        await anyio.to_thread.run_sync(lambda backend=backend: run_sim(timed, backend=backend).unwrap())
    assert [True, True] == unwound


class Ledger:
    """A pool, what was handed to it, and what was done."""

    def __init__(self, kind: Kind) -> None:
        self.pool = kind("p", configured(workers=2, max_queue_size=2))
        self.accepted: list[str] = []
        self.results: list[str] = []
        self.begun: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()

    async def __aenter__(self) -> Self:
        await self.pool.__aenter__()
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.pool.shutdown()

    async def job(self, name: str) -> str:
        self.begun[name] += 1
        try:
            await anyio.lowlevel.checkpoint()
            await anyio.sleep(1)
        finally:
            self.ended[name] += 1
        return name

    async def submit(self, name: str) -> None:
        await self.pool.submit(self.job, name)
        self.accepted.append(name)

    async def asubmit(self, name: str) -> None:
        self.results.append(await self.pool.asubmit(self.job, name))

    async def check(self) -> None:
        """Nothing is lost, nothing is run twice, no worker and no place in the queue is."""
        unwound = {name: number for name, number in self.begun.items() if number != 1 or name not in self.accepted}
        assert unwound == {name: self.ended[name] for name in unwound}
        with anyio.fail_after(60):
            async with anyio.create_task_group() as group:
                for number in range(4):
                    group.start_soon(self.pool.asubmit, self.job, f"after {number}")
        await self.pool.shutdown()
        assert [1] * len(self.accepted) == [self.ended[name] for name in self.accepted]
        assert {1} == set(self.begun.values())
        assert self.begun == self.ended
        metrics = self.pool.metrics
        assert (0, 0) == (metrics.queued, metrics.running)
        assert sum(self.begun.values()) <= metrics.succeeded + metrics.cancelled + metrics.failed


def test_cancelled_wherever_it_waits(kind: Kind) -> None:
    """`submit` and `asubmit`, with a worker free, with all of them busy, and with a queue that is full."""

    async def scenario(ledger: Ledger) -> None:
        with anyio.move_on_after(100):
            await ledger.submit("first")
            async with anyio.create_task_group() as group:
                group.start_soon(ledger.asubmit, "second")
                group.start_soon(ledger.asubmit, "third")
            try:
                for number in range(5):
                    await ledger.submit(f"many {number}")
            except WorkerPoolFullError:
                pass
            await ledger.asubmit("last")

    report = cancel_everywhere(scenario, build=lambda: Ledger(kind), check=Ledger.check, within=60)
    assert sum(report.points.values()) > 20


def test_cancelled_while_it_waits_for_space(kind: Kind) -> None:
    """Who comes after is let in; no place is lost."""

    async def wait(ledger: Ledger, name: str) -> None:
        await ledger.pool.options(when_full="wait").submit(ledger.job, name)
        ledger.accepted.append(name)

    async def scenario(ledger: Ledger) -> None:
        for number in range(7):
            await wait(ledger, str(number))

    report = cancel_everywhere(scenario, build=lambda: Ledger(kind), check=Ledger.check, within=60)
    assert sum(report.points.values()) > 5


@simulate(runs=30)
async def test_callers_that_are_cancelled_at_any_moment(kind: Kind, sim: Any) -> None:
    """In any order of things, each job is done once, or its caller was told."""
    ledger = Ledger(kind)

    async def call(number: int, group: anyio.abc.TaskGroup) -> None:
        with anyio.move_on_after(sim.random.choice([0, 0.5, 1, 1.5, 2])):
            if number % 3:
                await ledger.asubmit(str(number))
            else:
                try:
                    await ledger.submit(str(number))
                except WorkerPoolFullError:
                    pass

    async with ledger:
        async with anyio.create_task_group() as group:
            for number in range(10):
                group.start_soon(call, number, group)
        await ledger.check()


# By asyncio's own ways.

native = pytest.mark.parametrize("anyio_backend", [("asyncio", {"debug": True})], ids=["asyncio"])


@native
async def test_native_cancellation_of_a_queued_caller(kind: Kind, anyio_backend: Any) -> None:
    door = Door()
    async with kind("p", configured()) as pool, busy(pool):
        task = asyncio.create_task(pool.asubmit(door))
        await anyio.wait_all_tasks_blocked()
        task.cancel("native")
        with pytest.raises(asyncio.CancelledError, match="native"):
            await task
        assert {"running": 1, "cancelled": 1} == counts(pool.metrics)
    assert [] == door.came


@native
@pytest.mark.parametrize("times", [1, 3])
async def test_native_cancellation_of_a_running_caller(kind: Kind, times: int, anyio_backend: Any) -> None:
    """The job is cancelled and waited for, however often the caller is cancelled."""
    log: list[str] = []
    going = asyncio.Event()

    async def work() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            log.append("cancelled")
            with anyio.CancelScope(shield=True):
                await going.wait()
            log.append("unwound")

    async with kind("p", configured()) as pool:
        task = asyncio.create_task(pool.asubmit(work))
        await anyio.wait_all_tasks_blocked()
        for _ in range(times):
            task.cancel()
            await turns()
        assert (["cancelled"], False) == (log, task.done())
        going.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ["cancelled", "unwound"] == log
        assert 2 == await pool.asubmit(double, 1)
    assert {"succeeded": 1, "cancelled": 1} == counts(pool.metrics)


@native
async def test_a_native_cancellation_is_not_lost_for_a_result(kind: Kind, anyio_backend: Any) -> None:
    """It comes once: a job that returns all the same does not make its caller go on."""
    begun, going = asyncio.Event(), asyncio.Event()

    async def stubborn() -> str:
        begun.set()
        with anyio.CancelScope(shield=True):
            await going.wait()
        return "done"

    async with kind("p", configured()) as pool:
        task = asyncio.create_task(pool.asubmit(stubborn))
        await begun.wait()
        task.cancel()
        await turns()
        going.set()
        with pytest.raises(asyncio.CancelledError):
            await task


@native
async def test_asyncio_timeouts_around_asubmit(kind: Kind, anyio_backend: Any) -> None:
    async with kind("p", configured()) as pool:
        for _ in range(3):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(pool.asubmit(anyio.sleep_forever), 0.001)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0):
                    await pool.asubmit(anyio.sleep_forever)
        assert 2 == await asyncio.wait_for(pool.asubmit(double, 1), 60)
    assert 0 == pool.metrics.running


@native
async def test_native_cancellation_of_submitters_loses_no_job(kind: Kind, anyio_backend: Any) -> None:
    """At any of their steps: what was accepted is done, once."""
    accepted: list[int] = []
    done: list[int] = []

    async def note(number: int) -> None:
        await turns(number % 4)
        done.append(number)

    async def submit(pool: Pool, number: int) -> None:
        await pool.options(when_full="wait").submit(note, number)
        accepted.append(number)
        await pool.asubmit(nothing)

    async with kind("p", configured(workers=3, max_queue_size=5)) as pool:
        tasks = []
        for number in range(300):
            tasks.append(asyncio.create_task(submit(pool, number)))
            await turns(number % 5)
            tasks[number // 2].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert set(accepted) == set(done)
    assert len(done) == len(set(done))
    assert 0 < len(done) <= 300


@native
async def test_the_submitter_ends_and_the_job_goes_on(kind: Kind, anyio_backend: Any) -> None:
    """Nor does it matter whose call has started the worker."""
    door = Door()

    async def enter() -> Pool:
        pool: Pool = await kind("p", configured()).__aenter__()
        await pool.submit(door, 1)
        await asyncio.sleep(0)
        asyncio.current_task().cancel()  # type: ignore[union-attr]
        return pool

    pools: list[Pool] = []

    async def keep() -> None:
        pools.append(await enter())
        await anyio.sleep_forever()

    task = asyncio.create_task(keep())
    with pytest.raises(asyncio.CancelledError):
        await task
    (pool,) = pools
    await pool.submit(door, 2)
    door.opened.set()
    assert (await pool.shutdown()).drained
    assert [1, 2] == door.left


# The block around a pool.


async def test_a_block_that_fails(kind: Kind) -> None:
    """Its exception flies untouched; what waits is cancelled, what runs is ended, and who waits is told."""
    door, told = Door(), list[str]()

    async def call(pool: Pool, who: str) -> None:
        with pytest.raises(WorkerPoolClosedError, match="takes no jobs any more"):
            await pool.asubmit(door, who)
        told.append(who)

    error = Boom("of the block")
    async with anyio.create_task_group() as group:
        with pytest.raises(Boom) as caught:
            async with kind("p", configured()) as pool:
                await pool.submit(door, "submitted")
                await anyio.wait_all_tasks_blocked()
                group.start_soon(call, pool, "queued")
                await anyio.wait_all_tasks_blocked()
                raise error
        assert caught.value is error
        assert (["submitted"], "closed") == (door.left, pool.state)
    assert (["submitted"], ["queued"]) == (door.came, told)
    assert {"cancelled": 2} == counts(pool.metrics)


async def test_a_block_that_is_cancelled(kind: Kind) -> None:
    """What runs is ended and waited for."""
    door = Door()
    with anyio.CancelScope() as scope:
        async with kind("p", configured()) as pool:
            await pool.submit(door, "running")
            await pool.submit(door, "queued")
            await anyio.wait_all_tasks_blocked()
            scope.cancel()
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert (["running"], ["running"], "closed") == (door.came, door.left, pool.state)
    assert {"cancelled": 2} == counts(pool.metrics)
