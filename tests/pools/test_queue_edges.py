"""Pools for coroutines, of either kind: jobs, callers and names at moments that are easily forgotten."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import anyio
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread
import pytest

from agentcore import (
    AgentRuntime,
    ConfigurationError,
    QueueWorkerPool,
    QueueWorkerPoolConfig,
    WorkerPoolClosedError,
    WorkerPoolDeadlockError,
    WorkerPoolError,
    WorkerTimeoutError,
    get_worker_pool,
    shutdown_all_worker_pools,
)
from agentcore.testing import cancel_everywhere, simulate
from tests.pools.coroutines import Door, Kind, Pool, both_kinds, configured, counts, double, logged, nothing, turns
from tests.pools.loops_of_pools import left

pytestmark = pytest.mark.anyio

native = pytest.mark.parametrize("anyio_backend", [("asyncio", {"debug": True})], ids=["asyncio"])
both_backends = pytest.mark.parametrize("backend", ["asyncio", "trio"])


# Jobs that cancel themselves.


@both_kinds
@native
async def test_a_job_that_cancels_its_own_task_and_returns(kind: Kind, anyio_backend: Any) -> None:
    """On asyncio the cancellation is still to come then: it strikes no other job, and not the pool."""

    async def bad() -> None:
        asyncio.current_task().cancel()  # type: ignore[union-attr]

    async with kind("p", configured()) as pool:
        for _ in range(3):
            await pool.submit(bad)
            await pool.asubmit(bad)
            assert [2, 4] == await pool.amap(double, [1, 2])
    assert {"succeeded": 12} == counts(pool.metrics)


@both_kinds
@native
@pytest.mark.parametrize("how", ["raises", "cancels"])
async def test_a_job_that_raises_a_cancellation(kind: Kind, how: str, anyio_backend: Any) -> None:
    """It would look like one of the caller's own task, so it is wrapped; it is a failure, and no end of the pool."""

    async def bad() -> None:
        if how == "raises":
            raise asyncio.CancelledError
        asyncio.current_task().cancel()  # type: ignore[union-attr]
        await asyncio.sleep(0)

    given: list[BaseException] = []
    async with kind("p", configured(on_error=given.append)) as pool:
        with pytest.raises(WorkerPoolError, match="must not raise a cancellation of an event loop") as caught:
            await pool.asubmit(bad)
        assert not isinstance(caught.value, WorkerPoolClosedError)
        assert isinstance(caught.value.__cause__, asyncio.CancelledError)
        await pool.submit(bad)
        assert 2 == await pool.asubmit(double, 1)
        report = await pool.shutdown()
    assert (True, ()) == (report.drained, report.cut_short)
    assert [WorkerPoolError] == [type(error) for error in given]
    assert {"succeeded": 1, "failed": 2} == counts(pool.metrics)


# Errors that look like those of the pool itself.


@both_kinds
async def test_the_closed_error_of_another_pool(kind: Kind) -> None:
    """In a job it is a failure as any other."""
    given: list[BaseException] = []
    async with kind("other") as other:
        pass
    async with kind("p", configured(on_error=given.append)) as pool:
        await pool.submit(other.submit, nothing)
        with pytest.raises(WorkerPoolClosedError, match="'other'"):
            await pool.asubmit(other.asubmit, nothing)
    assert [WorkerPoolClosedError] == [type(error) for error in given]
    assert {"failed": 2} == counts(pool.metrics)


@both_kinds
@simulate(runs=5)
async def test_the_timeout_of_an_inner_job(kind: Kind) -> None:
    """One job is cut, and the one around it fails by that."""

    async def job(pool: Pool, depth: int) -> None:
        if not depth:
            await anyio.sleep_forever()
        await pool.options(timeout=1).asubmit(job, pool, depth - 1)

    async with kind("p", configured(workers=3)) as pool:
        with pytest.raises(WorkerTimeoutError):
            await pool.asubmit(job, pool, 1)
    assert {"timed_out": 1, "failed": 1} == counts(pool.metrics)


@both_kinds
@simulate(runs=5)
async def test_a_submitted_job_whose_time_is_over_in_the_queue(kind: Kind) -> None:
    """Nobody waits for it, so `on_error` is told."""
    given: list[BaseException] = []
    async with kind("p", configured(on_error=given.append)) as pool:
        await pool.submit(anyio.sleep, 5)
        await anyio.sleep(1)
        await pool.options(timeout=1).submit(nothing)
    assert ["queued"] == [error.details["phase"] for error in given if isinstance(error, WorkerTimeoutError)]
    assert {"succeeded": 1, "timed_out": 1} == counts(pool.metrics)


@both_kinds
async def test_closed_before_it_lived(kind: Kind) -> None:
    """It says that it is closed, and not how to enter it."""
    pool = kind("p")
    await pool.shutdown()
    with pytest.raises(WorkerPoolClosedError):
        pool.submit_nowait(nothing)
    for call in (pool.submit, pool.asubmit):
        with pytest.raises(WorkerPoolClosedError):
            await call(nothing)


# Waiting for space.


@both_kinds
@pytest.mark.parametrize("how", ["cancelled", "timed out"])
@simulate(runs=10)
async def test_space_that_becomes_free_in_the_queue(kind: Kind, how: str) -> None:
    """Not by a worker, but because somebody who waits in it goes: the next one is let in."""
    async with kind("p", configured(max_queue_size=1)) as pool, anyio.create_task_group() as group:
        await pool.submit(anyio.sleep, 5)
        await anyio.sleep(0.1)

        async def give_up() -> None:
            if how == "cancelled":
                with anyio.move_on_after(1):
                    await pool.asubmit(nothing)
            else:
                with pytest.raises(WorkerTimeoutError):
                    await pool.options(timeout=1).asubmit(nothing)

        group.start_soon(give_up)
        await anyio.sleep(0.5)
        with anyio.fail_after(1):
            await pool.options(when_full="wait").submit(nothing)


@both_kinds
async def test_space_in_the_own_pool(kind: Kind) -> None:
    """A job that waits for a place in the queue of its own full pool gets an error, and no deadlock."""

    async def work(pool: Pool) -> None:
        await pool.submit(nothing)
        await pool.options(when_full="wait").submit(nothing)

    async with kind("p", configured(max_queue_size=1)) as pool:
        with pytest.raises(
            WorkerPoolDeadlockError, match="would wait for ever: got the place in the queue for nothing"
        ):
            await pool.asubmit(work, pool)
    assert {"succeeded": 1, "failed": 1} == counts(pool.metrics)


@both_kinds
@both_backends
def test_looking_for_a_deadlock_is_cheap(kind: Kind, backend: str) -> None:
    """However many jobs wait for each other."""
    took: list[float] = []

    async def work(pool: Pool, together: anyio.Event, here: list[int]) -> None:
        here.append(1)
        if len(here) == 40:
            together.set()
        await together.wait()
        began = time.perf_counter()
        try:
            await pool.asubmit(nothing)
        except WorkerPoolDeadlockError:
            took.append(time.perf_counter() - began)

    async def main() -> None:
        async with kind("p", configured(workers=40)) as pool, anyio.create_task_group() as group:
            together, here = anyio.Event(), list[int]()
            for _ in range(40):
                group.start_soon(pool.asubmit, work, pool, together, here)

    anyio.run(main, backend=backend)
    assert took
    assert max(took) < 0.5


# The end.


@both_kinds
async def test_leaving_while_cancelled(kind: Kind) -> None:
    """The first checkpoint of the shutdown raises; the pool is gone all the same."""
    with anyio.CancelScope() as scope:
        async with kind("p", configured()) as pool:
            await pool.asubmit(nothing)
            scope.cancel()
    await anyio.wait_all_tasks_blocked()
    assert ("closed", []) == (pool.state, left())


@both_kinds
async def test_a_cancelled_shutdown_ends_by_itself(kind: Kind) -> None:
    """The pool goes on draining, and then it is closed without anybody who waits for that."""
    door = Door()
    pool = await kind("p", configured()).__aenter__()
    await pool.submit(door)
    await anyio.wait_all_tasks_blocked()
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as group:
            group.start_soon(pool.shutdown)
            await anyio.wait_all_tasks_blocked()
            scope.cancel()
    assert "draining" == pool.state
    door.opened.set()
    await anyio.wait_all_tasks_blocked()
    await turns()
    assert ("closed", [None], []) == (pool.state, door.left, left())


@both_kinds
def test_a_block_cancelled_wherever_it_is(kind: Kind) -> None:
    """Entering, working and leaving: the pool is closed, and nothing is left."""
    pools: list[Pool] = []

    async def scenario() -> None:
        pool = kind("p", configured(workers=2))
        pools.append(pool)
        async with pool:
            for _ in range(3):
                await pool.submit(anyio.sleep, 1)
            await pool.asubmit(anyio.sleep, 1)

    async def check() -> None:
        metrics = pools[-1].metrics
        assert (0, 0) == (metrics.queued, metrics.running)

    report = cancel_everywhere(scenario, check=check, within=60)
    assert sum(report.points.values()) > 20


@simulate(runs=20)
async def test_nothing_is_left_after_the_shutdown() -> None:
    """Of a pool by name: its host has gone with it, in the same step."""
    pool = await get_worker_pool("p")
    await pool.asubmit(nothing)
    await pool.shutdown()
    assert [] == left()
    await get_worker_pool("p", "thread")
    await shutdown_all_worker_pools()
    assert [] == left()


@both_kinds
@both_backends
def test_a_scope_around_a_runtime(kind: Kind, backend: str) -> None:
    """What waits is never begun when all is cancelled."""
    begun: list[int] = []

    async def job(number: int) -> None:
        begun.append(number)
        await anyio.sleep_forever()

    async def main() -> None:
        with anyio.CancelScope() as scope:
            async with AgentRuntime() as runtime:
                pool = runtime.pool("p", kind.pool_type, configured())
                for number in range(4):
                    await pool.submit(job, number)
                await turns()
                scope.cancel()
                await anyio.sleep_forever()

    anyio.run(main, backend=backend)
    assert [0] == begun


@both_kinds
@both_backends
def test_the_end_of_the_loop(kind: Kind, backend: str, caplog: pytest.LogCaptureFixture) -> None:
    """It is no failure of a job, and nothing that waits is begun for it."""
    given: list[BaseException] = []
    begun: list[int] = []
    ended: list[int] = []

    async def job(number: int) -> None:
        begun.append(number)
        try:
            await anyio.sleep_forever()
        finally:
            ended.append(number)

    async def main() -> None:
        pool = await get_worker_pool("p", kind.pool_type, configured(on_error=given.append))
        for number in range(3):
            await pool.submit(job, number)
        await turns()

    anyio.run(main, backend=backend)
    assert ([], [0], [0]) == (given, begun, ended)
    assert [] == [record.message for record in logged(caplog) if record.levelname == "ERROR"]


# Names.


@pytest.mark.parametrize("kind", ["queue_asyncio", "asyncio"])
@simulate(runs=5)
async def test_leaving_a_runtime_with_an_old_pool_of_the_same_name(kind: str) -> None:
    """One that drains by itself is ended with the runtime too, and what was cut short is named."""
    began = anyio.current_time()
    async with AgentRuntime(grace=1) as runtime:
        old = runtime.pool("p", kind)
        await old.submit(anyio.sleep, 1000)
        await anyio.sleep(1)
        await old.shutdown(wait=False)
        assert runtime.pool("p", kind) is not old
    assert 2 == anyio.current_time() - began
    assert runtime.report is not None
    assert 1 == len(runtime.report.jobs_cut_short)


@pytest.mark.parametrize("kind", ["queue_asyncio", "asyncio", "thread"])
async def test_the_maker_of_a_pool_is_cancelled(kind: str) -> None:
    """While the host is made: whoever has asked for the name meanwhile has a pool that works."""
    scope = anyio.CancelScope()

    async def first() -> None:
        with scope:
            await get_worker_pool("p", kind)

    async def second() -> None:
        pool: Any = await get_worker_pool("p", kind)
        scope.cancel()
        with anyio.fail_after(5):
            assert 2 == await (pool.asubmit(abs, -2) if kind == "thread" else pool.asubmit(double, 1))

    async with anyio.create_task_group() as group:
        group.start_soon(first)
        group.start_soon(second)
    await shutdown_all_worker_pools()


async def test_the_queue_is_not_kept_waiting_by_the_dead() -> None:
    """Thousands of jobs that were taken back cost those behind them nothing, and are not kept."""
    async with QueueWorkerPool("p", QueueWorkerPoolConfig(workers=1)) as pool:
        door = Door()
        await pool.submit(door)
        for _ in range(10):
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as group:
                    for _ in range(30):
                        group.start_soon(pool.asubmit, nothing)
                    await anyio.wait_all_tasks_blocked()
                    scope.cancel()
        assert sum(len(band) for band in pool._queue._bands) < 200
        door.opened.set()
    assert {"succeeded": 1, "cancelled": 300} == counts(pool.metrics)


# Odd places.


@both_kinds
async def test_a_job_from_a_callback_of_the_loop(kind: Kind) -> None:
    """Before the first worker has begun: a callback cannot start one."""
    async with kind("p", configured()) as pool:
        await anyio.to_thread.run_sync(anyio.from_thread.run_sync, pool.submit_nowait, nothing)
    assert 1 == pool.metrics.succeeded


async def test_a_timeout_that_is_none_is_refused_for_all_pools() -> None:
    for _ in range(2):
        with pytest.raises(ConfigurationError, match="timeout of a worker pool"):
            await shutdown_all_worker_pools(timeout=-1)
        await get_worker_pool("p")
    await shutdown_all_worker_pools()


async def test_a_task_that_waits_for_a_stuck_thread_is_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    """The runtime cancels it at its exit, and lets go of the thread."""
    monkeypatch.setattr("agentcore._lifetime.LAST_MOMENTS", 0.05)
    going, started = threading.Event(), threading.Event()

    def stuck() -> None:
        started.set()
        going.wait(20)

    try:
        async with AgentRuntime(grace=0) as runtime:

            @runtime.handler("wait")
            async def wait(given: Any) -> None:
                await runtime.pool("t", "thread").asubmit(stuck)

            await runtime.submit("wait")
            await anyio.to_thread.run_sync(started.wait, 20)
    finally:
        going.set()
