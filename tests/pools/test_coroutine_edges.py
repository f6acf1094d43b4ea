"""What once went wrong with pools for coroutines, and what is at their edges."""

from __future__ import annotations

import asyncio
import threading

import anyio
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread
import pytest

from agentcore import (
    AgentRuntime,
    ConfigurationError,
    QueueWorkerPool,
    WorkerPoolClosedError,
    WorkerPoolDeadlockError,
    WorkerPoolError,
    WorkerTimeoutError,
    get_worker_pool,
    shutdown_all_worker_pools,
)
from agentcore.testing import cancel_everywhere, simulate
from tests.pools.coroutines import Door, both_kinds, configured, double, nothing, turns
from tests.pools.loops_of_pools import left

pytestmark = pytest.mark.anyio
BOTH = pytest.mark.parametrize("backend", ["asyncio", "trio"])
NATIVE = pytest.mark.parametrize("anyio_backend", [("asyncio", {})], ids=["asyncio"])


# Looking for a deadlock takes a moment, however many jobs wait for each other.
@BOTH
@both_kinds
def test_deadlock_search_is_cheap(kind, backend):
    async def main():
        n = 16
        started = 0
        all_ = anyio.Event()
        took = []

        async def outer(pool):
            nonlocal started
            started += 1
            if started == n:
                all_.set()
            await all_.wait()
            try:
                await pool.asubmit(nothing)
            except WorkerPoolDeadlockError:
                took.append(1)

        async with kind("p", configured(workers=n)) as pool, anyio.create_task_group() as g:
            for _ in range(n):
                g.start_soon(pool.asubmit, outer, pool)
        assert len(took) == 1

    anyio.run(main, backend=backend)


# A place in the queue that becomes free by a caller's cancellation or timeout goes to whoever waits for space.
@both_kinds
@simulate(runs=1)
async def test_space_that_becomes_free(kind):
    async with kind("p", configured(max_queue_size=1)) as pool:
        await pool.submit(anyio.sleep, 5)
        await anyio.lowlevel.checkpoint()
        await anyio.lowlevel.checkpoint()
        async with anyio.create_task_group() as group:

            async def gives_up():
                with anyio.move_on_after(1):
                    await pool.asubmit(nothing)

            group.start_soon(gives_up)
            await anyio.sleep(0.5)
            group.start_soon(pool.options(when_full="wait").submit, nothing)
            await anyio.sleep(10)
            done = pool.metrics.succeeded
            group.cancel_scope.cancel()
        assert 2 == done


# A block that is left while it is cancelled leaves nothing behind.
@both_kinds
async def test_leaving_cancelled(kind):
    with anyio.CancelScope() as scope:
        async with kind("p", configured()) as pool:
            await pool.asubmit(nothing)
            scope.cancel()
    await turns(30)
    assert "closed" == pool.state
    assert [] == left()


# When the caller of `shutdown` is cancelled, the pool goes on draining by itself, and closes.
@both_kinds
async def test_shutdown_cancelled(kind):
    door = Door()
    pool = await kind("p", configured()).__aenter__()
    await pool.submit(door)
    await anyio.wait_all_tasks_blocked()
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as group:
            group.start_soon(pool.shutdown)
            await anyio.wait_all_tasks_blocked()
            scope.cancel()
    door.opened.set()
    await turns(30)
    state = pool.state
    await pool.shutdown()
    assert "closed" == state


# A job that cancels its own task natively and returns harms no other job.
@both_kinds
@NATIVE
async def test_pending_cancellation(kind, anyio_backend):
    async def bad():
        asyncio.current_task().cancel()

    async with kind("p", configured()) as pool:
        await pool.submit(bad)
        assert 2 == await pool.asubmit(double, 1)
        assert 2 == await pool.asubmit(double, 1)


# A job that raises CancelledError by itself, or cancels its own task, fails; that is no matter of the pool's end.
@both_kinds
@NATIVE
@pytest.mark.parametrize("how", ["raises", "cancels"])
async def test_own_cancellation(kind, how, anyio_backend):
    async def bad():
        if how == "raises":
            raise asyncio.CancelledError
        asyncio.current_task().cancel()
        await asyncio.sleep(0)

    pool = await kind("p", configured()).__aenter__()
    with pytest.raises(WorkerPoolError) as caught:
        await pool.asubmit(bad)
    report = await pool.shutdown()
    assert not isinstance(caught.value, WorkerPoolClosedError)
    assert report.drained


# What a job raises is told, also if it is the error of another pool that is closed.
@both_kinds
async def test_closed_error_of_another_pool(kind):
    given = []
    async with kind("other") as other:
        pass
    async with kind("p", configured(on_error=given.append)) as pool:
        await pool.submit(other.submit, nothing)
    assert (1, 1) == (len(given), pool.metrics.failed)


# A submitted job whose time is over in the queue is a failure that is told.
@both_kinds
@simulate(runs=1)
async def test_expired_in_the_queue(kind):
    given = []
    async with kind("p", configured(on_error=given.append)) as pool:
        await pool.submit(anyio.sleep, 5)
        await pool.options(timeout=1).submit(nothing)
    assert 1 == len(given)


# A pool that was shut down without waiting still ends with its runtime, when another one has its name.
@pytest.mark.parametrize("kind", ["queue_asyncio", "asyncio"])
@simulate(runs=1)
async def test_exit_with_an_old_pool_of_the_same_name(kind):
    with anyio.move_on_after(60, shield=False) as scope:
        async with AgentRuntime(grace=1) as runtime:
            old = runtime.pool("p", kind)
            await old.submit(anyio.sleep, 1000)
            await anyio.sleep(0.1)
            await old.shutdown(wait=False)
            runtime.pool("p", kind)
    assert not scope.cancelled_caught
    assert runtime.report.jobs_cut_short


# Whoever has got a pool keeps it when the one who made it is cancelled.
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("kind", ["queue_asyncio", "asyncio"])
def test_the_maker_is_cancelled(kind, backend):
    async def main():
        scope = anyio.CancelScope()

        async def first():
            with scope:
                await get_worker_pool("x", kind)

        async def second():
            pool = await get_worker_pool("x", kind)
            scope.cancel()
            with anyio.fail_after(0.5):
                assert 2 == await pool.asubmit(double, 1)

        async with anyio.create_task_group() as group:
            group.start_soon(first)
            group.start_soon(second)
        await shutdown_all_worker_pools()

    anyio.run(main, backend=backend)


# The end of the loop is no failure of the jobs that it cancels, and no further job is begun.
@both_kinds
def test_the_end_of_trio(kind, caplog):
    given, begun = [], []

    async def job(number):
        begun.append(number)
        await anyio.sleep_forever()

    async def main():
        pool = await get_worker_pool("p", kind.pool_type, configured(on_error=given.append))
        for number in range(3):
            await pool.submit(job, number)
        await turns()

    anyio.run(main, backend="trio")
    assert ([], [], [0]) == (given, [r.message for r in caplog.records if r.levelname == "ERROR"], begun)


# The same by a scope around a strict runtime.
@BOTH
@both_kinds
def test_a_scope_around_a_runtime(kind, backend):
    begun = []

    async def job(number):
        begun.append(number)
        await anyio.sleep_forever()

    async def main():
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


# A job does not wait for space in its own full pool: it would do so for ever.
@both_kinds
async def test_waiting_for_space_of_ones_own_pool(kind):
    async def work(pool):
        await pool.submit(nothing)
        await pool.options(when_full="wait").submit(nothing)

    async with kind("p", configured(max_queue_size=1)) as pool:
        with anyio.move_on_after(0.3) as scope, pytest.raises(WorkerPoolDeadlockError):
            await pool.asubmit(work, pool)
        assert not scope.cancelled_caught


# Jobs may be handed over in a callback of the event loop.
@both_kinds
@NATIVE
async def test_from_a_callback(kind, anyio_backend):
    async with kind("p", configured()) as pool:
        await anyio.to_thread.run_sync(anyio.from_thread.run_sync, pool.submit_nowait, nothing)
    assert 1 == pool.metrics.succeeded


# When a shutdown has returned, nothing of the pool is left in the event loop.
@simulate(runs=5)
async def test_nothing_left_after_shutdown():
    pool = await get_worker_pool("p")
    await pool.asubmit(nothing)
    await pool.shutdown()


@simulate(runs=5)
async def test_nothing_left_after_shutdown_all():
    await get_worker_pool("p", "thread")
    await shutdown_all_worker_pools()


# A timeout that is none is refused, whether there are pools or not.
async def test_timeout_of_all():
    await get_worker_pool("p")
    try:
        with pytest.raises(ConfigurationError, match="timeout of a worker pool"):
            await shutdown_all_worker_pools(timeout=-1)
    finally:
        await shutdown_all_worker_pools()


# A job that fails by the timeout of another job of the same name has failed, and has not timed out.
@simulate(runs=1)
async def test_timeout_of_an_inner_job():
    async with QueueWorkerPool("p", configured(workers=3)) as pool:

        async def job(depth):
            if not depth:
                await anyio.sleep_forever()
            await pool.options(timeout=1).asubmit(job, depth - 1)

        with pytest.raises(WorkerTimeoutError):
            await pool.asubmit(job, 1)
    assert (1, 1) == (pool.metrics.timed_out, pool.metrics.failed)


# A pool that was closed before it lived is closed.
@both_kinds
async def test_closed_before_it_lived(kind):
    pool = kind("p")
    await pool.shutdown()
    with pytest.raises(WorkerPoolClosedError):
        await pool.submit(nothing)


# A task that the runtime cancels while it waits for a stuck thread is cancelled, and no crash.
async def test_stuck_thread_at_exit(monkeypatch):
    monkeypatch.setattr("agentcore._lifetime.LAST_MOMENTS", 0.05)
    going, started = threading.Event(), threading.Event()

    def stuck():
        started.set()
        going.wait(20)

    try:
        async with AgentRuntime(grace=0) as runtime:

            @runtime.handler("wait")
            async def wait(given):
                await runtime.pool("t", "thread").asubmit(stuck)

            await runtime.submit("wait")
            await anyio.to_thread.run_sync(started.wait, 20)
    finally:
        going.set()


# Wherever a block is cancelled, no job is left.
@both_kinds
def test_block_cancelled_wherever_it_is(kind):
    pools = []

    async def scenario():
        pool = kind("p", configured(workers=2))
        pools.append(pool)
        async with pool:
            for _ in range(3):
                await pool.submit(anyio.sleep, 1)
            await pool.asubmit(anyio.sleep, 1)

    async def check():
        assert (0, 0) == (pools[-1].metrics.queued, pools[-1].metrics.running)

    cancel_everywhere(scenario, check=check, within=60)
