"""How pools of threads end: drained, cut short, in whatever way they are left."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from agentcore import (
    AgentRuntime,
    ConfigurationError,
    JobCancelledError,
    ThreadWorkerPool,
    ThreadWorkerPoolConfig,
    WorkerPoolClosedError,
    WorkerPoolReport,
    WorkerTimeoutError,
    check_cancelled,
)
from tests.pools.thread_helpers import (
    LIMIT,
    SOON,
    Caller,
    Hold,
    counts,
    heard,
    in_loop,
    know_others,
    soon,
    threads_of,
    until,
)

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def own_threads() -> None:
    """Threads that an earlier test has left are no concern of the next one."""
    know_others()


def echo(value: Any) -> Any:
    return value


def made(**config: Any) -> ThreadWorkerPool:
    return ThreadWorkerPool("pool", ThreadWorkerPoolConfig(workers=config.pop("workers", 1), **config))


def check_gone() -> None:
    until(lambda: not threads_of("pool"))


# Draining.


@pytest.mark.parametrize("name", ["shutdown", "ashutdown"])
async def test_everything_is_done(name: str) -> None:
    pool, seen = made(workers=2), list[int]()
    futures = [pool.submit(seen.append, number) for number in range(50)]
    report = await getattr(pool, name)()
    assert isinstance(report, WorkerPoolReport)
    assert (report.drained, report.cut_short) == (True, ())
    assert 0 <= report.duration < LIMIT
    assert all(future.done() for future in futures)
    assert sorted(seen) == list(range(50))
    assert pool.state == "closed"
    assert not threads_of("pool"), "no thread is left when it returns"
    assert counts(pool.metrics) == {"succeeded": 50}
    assert pool.metrics.workers == 0


async def test_an_unused_pool() -> None:
    pool = made()
    assert (await pool.shutdown()).drained
    assert pool.state == "closed"


async def test_it_is_a_checkpoint() -> None:
    pool = made()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await pool.shutdown()
    assert scope.cancelled_caught
    assert pool.state == "open"
    await pool.shutdown()


async def test_no_job_is_taken_meanwhile() -> None:
    pool, hold = made(), Hold()
    future = pool.submit(hold.stay, 1)
    await hold.begins()
    async with anyio.create_task_group() as group:
        group.start_soon(pool.shutdown)
        await soon(lambda: pool.state == "draining")
        for call in (
            partial(pool.submit, echo, 1),
            partial(pool.options(timeout=1).submit, echo, 1),
            partial(pool.map, echo, [1]),
        ):
            with pytest.raises(WorkerPoolClosedError) as caught:
                call()
            assert str(caught.value) == (
                "worker pool 'pool' takes no jobs any more: got one in state 'draining'; "
                "get another pool, whose name may be the same"
            )
            assert isinstance(caught.value, RuntimeError)
        with pytest.raises(WorkerPoolClosedError):
            await pool.asubmit(echo, 1)
        with pytest.raises(WorkerPoolClosedError):
            async with pool:
                raise AssertionError
        with pytest.raises(WorkerPoolClosedError), pool:
            raise AssertionError
        hold.release()
    assert await future == 1
    assert pool.metrics.rejected == 0


async def test_callers_get_their_results_meanwhile() -> None:
    pool, hold, results = made(), Hold(), list[int]()

    async def call(number: int) -> None:
        results.append(await pool.asubmit(echo, number))

    async with anyio.create_task_group() as group:
        pool.submit(hold.stay)
        await hold.begins()
        for number in range(5):
            group.start_soon(call, number)
        await soon(lambda: pool.metrics.queued == 5)
        group.start_soon(pool.shutdown)
        await soon(lambda: pool.state == "draining")
        hold.release()
    assert sorted(results) == list(range(5))
    check_gone()


async def test_queued_jobs_are_still_cancelled_and_still_time_out() -> None:
    pool, hold = made(), Hold()
    pool.submit(hold.stay)
    await hold.begins()
    cancelled, late = pool.submit(echo, 1), pool.submit(echo, 2, timeout=SOON)
    async with anyio.create_task_group() as group:
        group.start_soon(pool.shutdown)
        await soon(lambda: pool.state == "draining")
        assert cancelled.cancel()
        with pytest.raises(WorkerTimeoutError):
            await late
        hold.release()
    assert pool.state == "closed"
    check_gone()


async def test_recycling_workers_drain_too() -> None:
    pool = made(max_jobs_per_worker=1)
    futures = [pool.submit(echo, number) for number in range(10)]
    assert (await pool.shutdown()).drained
    assert [future.result(0) for future in futures] == list(range(10))


# Cutting short.


async def test_a_timeout_bounds_it_and_names_what_was_cut(caplog: pytest.LogCaptureFixture) -> None:
    pool, hold = made(), Hold()
    running, queued = pool.submit(hold.stay), pool.submit(echo, 1)
    await hold.begins()
    errors: list[BaseException] = []

    async def call() -> None:
        try:
            await pool.asubmit(echo, 2)
        except WorkerPoolClosedError as error:
            errors.append(error)

    async with anyio.create_task_group() as group:
        group.start_soon(call)
        await soon(lambda: pool.metrics.queued == 2)
        with anyio.fail_after(LIMIT / 2), caplog.at_level(logging.WARNING, "agentcore.pools"):
            report = await pool.shutdown(timeout=SOON)
    assert not report.drained
    assert sorted(report.cut_short) == ["Hold.stay", "echo", "echo"]
    assert report.duration >= SOON
    with pytest.raises(WorkerPoolClosedError):
        await running
    with pytest.raises(CancelledError):
        await queued
    assert len(errors) == 1
    assert pool.state == "closed"
    assert counts(pool.metrics) == {"cancelled": 3}
    [record] = caplog.records
    assert "worker pool 'pool' was shut down before these jobs had ended: echo, echo, Hold.stay" in record.getMessage()
    assert pool.metrics.abandoned == 1, "its thread cannot be stopped"
    hold.release()
    await soon(lambda: pool.metrics.abandoned == 0)
    check_gone()


@pytest.mark.parametrize("timeout", [0, SOON])
async def test_the_timeout_of_the_config(timeout: float) -> None:
    pool, hold = made(shutdown_timeout=timeout), Hold()
    pool.submit(hold.stay)
    await hold.begins()
    report = await pool.shutdown()
    assert report.cut_short == ("Hold.stay",)
    hold.release()
    check_gone()


async def test_a_timeout_of_the_call_goes_before_that_of_the_config() -> None:
    pool, hold = made(shutdown_timeout=0), Hold()
    pool.submit(hold.stay)
    await hold.begins()
    threading.Timer(SOON, hold.release).start()
    assert (await pool.shutdown(timeout=LIMIT)).drained


async def test_jobs_that_are_cut_are_told() -> None:
    pool, begun, told = made(), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        try:
            until(_look)
        except JobCancelledError:
            told.set()

    pool.submit(work)
    await heard(begun)
    report = await pool.shutdown(timeout=0)
    assert len(report.cut_short) == 1
    await heard(told)
    check_gone()


def _look() -> bool:
    check_cancelled()
    return False


async def test_not_waiting_cancels_the_queue() -> None:
    """And leaves alone what runs."""
    pool, hold = made(), Hold()
    running, queued = pool.submit(hold.stay, 1), pool.submit(echo, 2)
    await hold.begins()
    await pool.shutdown(wait=False)
    assert pool.state == "draining"
    assert queued.cancelled()
    with pytest.raises(CancelledError):
        await queued
    assert not running.done()
    hold.release()
    assert await running == 1
    await soon(lambda: pool.state == "closed")
    check_gone()
    assert counts(pool.metrics) == {"succeeded": 1, "cancelled": 1}


async def test_not_waiting_tells_callers() -> None:
    pool, hold = made(), Hold()
    pool.submit(hold.stay)
    await hold.begins()

    async def call() -> None:
        with pytest.raises(WorkerPoolClosedError):
            await pool.asubmit(echo, 1)

    async with anyio.create_task_group() as group:
        group.start_soon(call)
        await soon(lambda: pool.metrics.queued == 1)
        await pool.shutdown(wait=False)
    hold.release()
    check_gone()


# More than once.


async def test_twice() -> None:
    pool = made()
    pool.submit(echo, 1)
    assert (await pool.shutdown()).drained
    assert (await pool.shutdown()).drained
    assert (await pool.shutdown(wait=False)).drained
    assert (await pool.shutdown(timeout=0)).drained


async def test_not_waiting_and_then_waiting() -> None:
    pool, hold = made(), Hold()
    running = pool.submit(hold.stay, 1)
    await hold.begins()
    await pool.shutdown(wait=False)
    threading.Timer(SOON, hold.release).start()
    await pool.shutdown()
    assert pool.state == "closed"
    assert running.result(0) == 1
    assert not threads_of("pool")


async def test_several_at_once_wait_for_the_same_end() -> None:
    pool, hold, ended = made(), Hold(), list[bool]()
    pool.submit(hold.stay)
    await hold.begins()

    async def end() -> None:
        report = await pool.shutdown()
        ended.append(hold.ended.is_set() and report.drained)

    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(end)
        await anyio.wait_all_tasks_blocked()
        assert ended == []
        hold.release()
    assert ended == [True] * 3


async def test_the_shortest_of_several_counts() -> None:
    pool, hold, reports = made(), Hold(), list[WorkerPoolReport]()
    pool.submit(hold.stay)
    await hold.begins()

    async def end(timeout: float | None) -> None:
        reports.append(await pool.shutdown(timeout=timeout))

    async with anyio.create_task_group() as group:
        group.start_soon(end, None)
        group.start_soon(end, SOON)
    assert [report.cut_short for report in reports] == [("Hold.stay",)] * 2
    hold.release()
    check_gone()


def test_from_several_event_loops() -> None:
    pool, hold = made(), Hold()
    future = pool.submit(hold.stay, 1)
    enders = [Caller(partial(anyio.run, pool.shutdown, backend=backend)) for backend in ("asyncio", "trio") * 2]
    until(lambda: pool.state == "draining")
    hold.release()
    assert all(ender.join().drained for ender in enders)
    assert future.result(0) == 1
    assert not threads_of("pool")


async def test_a_cancelled_shutdown_goes_on_by_itself() -> None:
    pool, hold, scope = made(), Hold(), anyio.CancelScope()
    running, queued = pool.submit(hold.stay, 1), pool.submit(echo, 2)

    async def end() -> None:
        with scope:
            await pool.shutdown()

    async with anyio.create_task_group() as group:
        group.start_soon(end)
        await soon(lambda: pool.state == "draining")
        scope.cancel()
    assert scope.cancelled_caught
    assert pool.state == "draining"
    hold.release()
    assert [await running, await queued] == [1, 2]
    await soon(lambda: pool.state == "closed")
    check_gone()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_from_inside_of_a_job_without_waiting(backend: str) -> None:
    async def end() -> None:
        await pool.shutdown(wait=False)

    pool = made()
    future = pool.submit(partial(anyio.run, end, backend=backend))
    assert future.exception(LIMIT) is None
    until(lambda: pool.state == "closed")
    check_gone()


# Blocks.


def test_a_plain_block_drains() -> None:
    seen = list[int]()
    with made() as pool:
        for number in range(20):
            pool.submit(seen.append, number)
    assert seen == list(range(20))
    assert pool.state == "closed"
    assert not threads_of("pool")


def test_an_error_leaves_a_plain_block() -> None:
    """Then what has not begun is cancelled, and what runs is waited for."""
    hold = Hold()
    with pytest.raises(LookupError), made() as pool:
        running, queued = pool.submit(hold.stay, 1), pool.submit(echo, 2)
        hold.wait_until_begun()
        threading.Timer(SOON, hold.release).start()
        raise LookupError
    assert running.result(0) == 1
    assert queued.cancelled()
    assert not threads_of("pool")


def test_a_plain_block_has_the_limit_of_the_config() -> None:
    hold = Hold()
    with made(shutdown_timeout=SOON) as pool:
        running = pool.submit(hold.stay)
        hold.wait_until_begun()
    assert isinstance(running.exception(0), WorkerPoolClosedError)
    assert pool.state == "closed"
    hold.release()
    check_gone()


async def test_an_asynchronous_block_drains() -> None:
    seen = list[int]()
    async with made() as pool:
        for number in range(20):
            pool.submit(seen.append, number)
    assert seen == list(range(20))
    assert pool.state == "closed"
    assert not threads_of("pool")


async def test_an_error_leaves_an_asynchronous_block() -> None:
    """What has not begun is cancelled, what runs is told, and waited for."""
    begun, told = threading.Event(), list[bool]()

    def work() -> None:
        begun.set()
        try:
            until(_look)
        except JobCancelledError:
            told.append(True)
            raise

    with pytest.raises(LookupError, match="mine"):
        async with made() as pool:
            running, queued = pool.submit(work), pool.submit(echo, 2)
            await heard(begun)
            raise LookupError("mine")
    assert told == [True]
    assert isinstance(running.exception(0), JobCancelledError)
    assert queued.cancelled()
    assert not threads_of("pool")


async def test_an_asynchronous_block_is_cancelled() -> None:
    hold = Hold()
    with anyio.CancelScope() as scope:
        async with made() as pool:
            running, queued = pool.submit(hold.stay, 1), pool.submit(echo, 2)
            await hold.begins()
            threading.Timer(SOON, hold.release).start()
            scope.cancel()
            await anyio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    assert hold.ended.is_set()
    assert running.done()
    assert queued.cancelled()
    assert not threads_of("pool")


async def test_an_asynchronous_block_is_cancelled_while_it_drains() -> None:
    """Then it drains no longer: what waits is cancelled, what runs is waited for. Nothing outlives the block."""
    pool, hold, scope = made(), Hold(), anyio.CancelScope()
    running, queued = pool.submit(hold.stay, 1), pool.submit(echo, 2)

    async def use() -> None:
        with scope:
            async with pool:
                await hold.begins()

    async with anyio.create_task_group() as group:
        group.start_soon(use)
        await soon(lambda: pool.state == "draining")
        scope.cancel()
        await soon(queued.cancelled)
        assert not running.done()
        hold.release()
    assert scope.cancelled_caught
    assert running.result(0) == 1
    assert pool.state == "closed"
    assert not threads_of("pool")


async def test_a_pool_is_shut_down_in_its_block() -> None:
    async with made() as pool:
        await pool.shutdown()
    with made() as pool:
        await pool.shutdown()
    assert pool.state == "closed"


async def test_a_closed_pool_is_not_entered() -> None:
    pool = made()
    await pool.shutdown()
    with pytest.raises(WorkerPoolClosedError, match="in state 'closed'"):
        async with pool:
            raise AssertionError
    with pytest.raises(WorkerPoolClosedError, match="in state 'closed'"), pool:
        raise AssertionError


# Owned pools.


async def test_a_runtime_drains_its_pools() -> None:
    seen = list[int]()
    async with AgentRuntime() as runtime:
        pool = runtime.pool("pool", "thread", ThreadWorkerPoolConfig(workers=1))
        assert isinstance(pool, ThreadWorkerPool)
        for number in range(20):
            pool.submit(seen.append, number)
    assert seen == list(range(20))
    assert pool.state == "closed"
    assert not threads_of("pool")


async def test_a_runtime_cuts_its_pools_after_its_grace() -> None:
    hold = Hold()
    with anyio.fail_after(LIMIT / 2):
        async with AgentRuntime(grace=SOON) as runtime:
            pool = runtime.pool("pool", "thread", ThreadWorkerPoolConfig(workers=1))
            assert isinstance(pool, ThreadWorkerPool)
            future = pool.submit(hold.stay)
            await hold.begins()
    assert isinstance(future.exception(0), WorkerPoolClosedError)
    hold.release()
    check_gone()


@pytest.mark.parametrize("timeout", [-1, float("nan"), "soon"])
async def test_wrong_timeouts(timeout: Any) -> None:
    pool = made()
    for call in (pool.shutdown, pool.ashutdown):
        with pytest.raises(ConfigurationError, match="must be a number of seconds, 0 or more: got"):
            await call(timeout=timeout)
    assert pool.state == "open"


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("end", [lambda pool: pool.shutdown(), lambda pool: pool.shutdown(timeout=LIMIT)])
def test_the_loop_that_submitted_is_gone(backend: str, end: Callable[[ThreadWorkerPool], Any]) -> None:
    """Its caller is told nothing, and the pool is not concerned."""
    pool, hold = made(), Hold()

    async def leave() -> None:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await pool.submit(hold.stay)

    in_loop(leave, backend)
    hold.wait_until_begun()
    hold.release()
    assert in_loop(partial(end, pool), backend).drained
