"""Thread pools: jobs that take too long, in the queue and in their thread, and threads that hang."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeAlias

import anyio
import anyio.to_thread
import pytest

from agentcore import (
    JobCancelledError,
    ThreadWorkerPool,
    WorkerPoolError,
    WorkerTimeoutError,
    check_cancelled,
    propagated,
)
from tests.pools.thread_helpers import AWHILE, SOON, Hold, counts, heard, soon, thread_pool

pytestmark = pytest.mark.anyio

Way: TypeAlias = Callable[..., Awaitable[Any]]


async def by_asubmit(pool: ThreadWorkerPool, *args: Any, timeout: float | None = None) -> Any:
    return await pool.asubmit(*args, timeout=timeout)


async def by_options(pool: ThreadWorkerPool, *args: Any, timeout: float | None = None) -> Any:
    return await pool.options(timeout=timeout).asubmit(*args)


async def by_future(pool: ThreadWorkerPool, *args: Any, timeout: float | None = None) -> Any:
    return await pool.submit(*args, timeout=timeout)


async def by_thread(pool: ThreadWorkerPool, *args: Any, timeout: float | None = None) -> Any:
    future = pool.submit(*args, timeout=timeout)
    return await anyio.to_thread.run_sync(future.result, 10)


async def by_map(pool: ThreadWorkerPool, function: Any, *args: Any, timeout: float | None = None) -> Any:
    return await by_items(partial(anyio.to_thread.run_sync, pool.map), function, *args, timeout=timeout)


async def by_amap(pool: ThreadWorkerPool, function: Any, *args: Any, timeout: float | None = None) -> Any:
    return await by_items(pool.amap, function, *args, timeout=timeout)


async def by_items(run: Any, function: Any, *args: Any, timeout: float | None) -> Any:
    one = function if args else partial(_without, function)
    [outcome] = await run(one, [args[0] if args else None], timeout)
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome


def _without(function: Callable[[], Any], _: object) -> Any:
    return function()


ways = pytest.mark.parametrize("way", [by_asubmit, by_options, by_future, by_thread, by_map, by_amap])
calls = pytest.mark.parametrize("way", [by_asubmit, by_options, by_future, by_thread])


def echo(value: Any) -> Any:
    return value


# In the queue.


@ways
async def test_a_job_that_does_not_begin_in_time(way: Way) -> None:
    hold, seen = Hold(), list[int]()
    with thread_pool(workers=1) as pool:
        pool.submit(hold.stay)
        await hold.begins()
        sibling = pool.submit(echo, 1)
        with pytest.raises(WorkerTimeoutError) as caught:
            await way(pool, seen.append, 5, timeout=SOON)
        assert caught.value.details["phase"] == "queued"
        assert caught.value.details["timeout"] <= SOON
        assert (pool.metrics.queued, pool.metrics.abandoned) == (1, 0)
        hold.release()
        assert await sibling == 1
        assert await way(pool, echo, 2) == 2
        assert pool.metrics.timed_out == 1
    assert seen == [], "it never ran"


async def test_the_error_of_a_job_that_does_not_begin_in_time() -> None:
    hold = Hold()
    with thread_pool(workers=1) as pool:
        pool.submit(hold.stay)
        await hold.begins()
        with pytest.raises(WorkerTimeoutError) as caught:
            await pool.asubmit(echo, 5, timeout=0.01)
        error = caught.value
        assert str(error) == (
            "job echo of worker pool 'pool' was not begun within its timeout: got more than 0.01 s; "
            "add workers or allow more time"
        )
        assert error.details == {"pool": "pool", "function": "echo", "timeout": 0.01, "phase": "queued"}
        assert isinstance(error, TimeoutError)
        assert isinstance(error, WorkerPoolError)
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again), again.details) == (WorkerTimeoutError, str(error), error.details)
        hold.release()


async def test_no_time_at_all() -> None:
    """A timeout of 0 passes for what has to wait; it is no error by itself."""
    hold = Hold()
    with thread_pool(workers=1) as pool:
        pool.submit(hold.stay)
        await hold.begins()
        for way in (by_asubmit, by_future, by_map, by_amap):
            with pytest.raises(WorkerTimeoutError):
                await way(pool, echo, 5, timeout=0)
        hold.release()


# In its thread.


@ways
async def test_a_job_that_does_not_end_in_time(way: Way) -> None:
    """Its caller is free at once, its slot is taken by another worker, its result is dropped."""
    hold = Hold()
    with thread_pool(workers=1) as pool:
        with pytest.raises(WorkerTimeoutError) as caught:
            await way(pool, hold.stay, timeout=AWHILE)
        assert caught.value.details["phase"] == "running"
        assert not hold.ended.is_set()
        metrics = pool.metrics
        assert (metrics.running, metrics.abandoned, metrics.workers, metrics.timed_out) == (0, 1, 1, 1)
        assert await way(pool, echo, 2, timeout=10) == 2
        assert pool.metrics.workers == 2
        [info] = pool.jobs()
        assert info.abandoned
        hold.release()
        await soon(lambda: pool.metrics.workers == 1)
        assert pool.metrics.abandoned == 0
        assert pool.jobs() == ()
        assert counts(pool.metrics) == {"succeeded": 1, "timed_out": 1}


async def test_the_error_of_a_job_that_does_not_end_in_time() -> None:
    hold = Hold()
    with thread_pool(workers=1) as pool:
        with pytest.raises(WorkerTimeoutError) as caught:
            await pool.asubmit(hold.stay, timeout=AWHILE)
        assert str(caught.value) == (
            "job Hold.stay of worker pool 'pool' did not end within its timeout: got more than 0.1 s; "
            "allow more time or do less at once"
        )
        assert caught.value.details == {"pool": "pool", "function": "Hold.stay", "timeout": AWHILE, "phase": "running"}
        hold.release()


async def test_queueing_counts() -> None:
    """The timeout is for both together: a job that begins late has the less time."""
    first, second = Hold(), Hold()
    with thread_pool(workers=1) as pool:
        pool.submit(first.stay)
        await first.begins()
        future = pool.submit(second.stay, timeout=2 * AWHILE)
        first.release()
        with pytest.raises(WorkerTimeoutError) as caught:
            await future
        assert caught.value.details["phase"] == "running"
        second.release()


@calls
async def test_the_timeout_of_a_call_goes_before_that_of_the_options(way: Way) -> None:
    if way is by_options:
        way = by_asubmit
    hold = Hold()
    with thread_pool(workers=1) as pool:
        with pytest.raises(WorkerTimeoutError) as caught:
            await way(pool.options(timeout=100), hold.stay, timeout=AWHILE)
        assert caught.value.details["timeout"] == AWHILE
        hold.release()


async def test_a_job_is_told_that_nobody_waits() -> None:
    hold, found = Hold(), list[BaseException]()
    done = threading.Event()

    def work() -> None:
        check_cancelled()
        hold.stay()
        try:
            check_cancelled()
        except JobCancelledError as error:
            found.append(error)
        done.set()

    with thread_pool(workers=1) as pool:
        with pytest.raises(WorkerTimeoutError):
            await pool.asubmit(work, timeout=AWHILE)
        hold.release()
        await heard(done)
    assert str(found[0]) == (
        f"job {work.__qualname__} of worker pool 'pool' should end: got nobody who still waits for it; let this error end it"
    )


async def test_what_an_abandoned_job_comes_to_is_dropped() -> None:
    hold = Hold()

    def boom() -> None:
        hold.stay()
        raise SystemExit

    with thread_pool(workers=1) as pool:
        future = pool.submit(boom, timeout=AWHILE)
        with pytest.raises(WorkerTimeoutError):
            await future
        hold.release()
        await soon(lambda: pool.metrics.abandoned == 0)
        with pytest.raises(WorkerTimeoutError):
            await future
        assert counts(pool.metrics) == {"timed_out": 1}


async def test_a_job_that_ends_in_time_is_left_alone() -> None:
    with thread_pool(workers=2) as pool:
        for number in range(50):
            assert await pool.asubmit(echo, number, timeout=10) == number
        assert await pool.amap(echo, range(50), timeout=10) == list(range(50))
        assert counts(pool.metrics) == {"succeeded": 100}


async def test_many_timeouts_at_once() -> None:
    """Each job has its own deadline, in whatever order they come."""
    hold, late = Hold(), list[int]()
    with thread_pool(workers=1) as pool:
        pool.submit(hold.stay)
        await hold.begins()

        async def call(number: int) -> None:
            try:
                await pool.asubmit(echo, number, timeout=SOON * (1 + number % 3) if number % 2 else 10)
            except WorkerTimeoutError:
                late.append(number)
                if len(late) == 50:
                    hold.release()

        async with anyio.create_task_group() as group:
            for number in range(100):
                group.start_soon(call, number)
        assert sorted(late) == list(range(1, 100, 2))
        assert counts(pool.metrics) == {"succeeded": 51, "timed_out": 50}


# Threads that hang.


async def test_slots_are_replaced_up_to_a_limit() -> None:
    """Then jobs wait until one of those that were given up comes back."""
    holds = [Hold() for _ in range(3)]
    with thread_pool(workers=1, max_abandoned=2) as pool:
        for hold in holds:
            with pytest.raises(WorkerTimeoutError) as caught:
                await pool.asubmit(hold.stay, timeout=AWHILE)
            assert caught.value.details["phase"] == "running"
        assert (pool.metrics.abandoned, pool.metrics.workers) == (3, 3)
        with pytest.raises(WorkerTimeoutError) as caught:
            await pool.asubmit(echo, 1, timeout=SOON)
        assert caught.value.details["phase"] == "queued", "the slot stays taken"
        waiting = pool.submit(echo, 2)
        assert len(pool.jobs()) == 3
        holds[2].release()
        assert await waiting == 2
        for hold in holds:
            hold.release()
        await soon(lambda: pool.metrics.abandoned == 0)
        await soon(lambda: pool.metrics.workers == 1)
        assert await pool.asubmit(echo, 3) == 3


async def test_no_slot_is_replaced() -> None:
    hold = Hold()
    with thread_pool(workers=1, max_abandoned=0) as pool:
        with pytest.raises(WorkerTimeoutError):
            await pool.asubmit(hold.stay, timeout=AWHILE)
        waiting = pool.submit(echo, 1)
        await anyio.wait_all_tasks_blocked()
        assert not waiting.done()
        assert pool.metrics.workers == 1
        hold.release()
        assert await waiting == 1


async def test_as_many_are_replaced_as_there_are_workers() -> None:
    holds = [Hold() for _ in range(4)]
    with thread_pool(workers=2) as pool:
        for hold in holds:
            with pytest.raises(WorkerTimeoutError):
                await pool.asubmit(hold.stay, timeout=AWHILE)
        assert (pool.metrics.abandoned, pool.metrics.workers) == (4, 4)
        waiting = pool.submit(echo, 1)
        holds[0].release()
        assert not await anyio.to_thread.run_sync(partial(_is_done_soon, waiting)), "it had been replaced already"
        holds[3].release()
        assert await waiting == 1
        for hold in holds:
            hold.release()


def _is_done_soon(future: Any) -> bool:
    try:
        future.result(SOON)
    except TimeoutError:
        return False
    return True


async def test_queued_jobs_go_on_when_a_slot_is_replaced() -> None:
    """Without another submission."""
    hold = Hold()
    with thread_pool(workers=1) as pool:
        stuck = pool.submit(hold.stay, timeout=AWHILE)
        await hold.begins()
        waiting = [pool.submit(echo, number) for number in range(3)]
        assert [await one for one in waiting] == [0, 1, 2]
        with pytest.raises(WorkerTimeoutError):
            await stuck
        hold.release()


@calls
async def test_a_job_that_runs_for_longer_than_the_pool_allows(way: Way) -> None:
    hold = Hold()
    with thread_pool(workers=1, task_timeout=AWHILE) as pool:
        with pytest.raises(WorkerTimeoutError) as caught:
            await way(pool, hold.stay)
        assert str(caught.value) == (
            "job Hold.stay of worker pool 'pool' ran for longer than the task_timeout of its pool: got more than 0.1 s; "
            "allow more time or do less at once"
        )
        assert caught.value.details == {"pool": "pool", "function": "Hold.stay", "timeout": AWHILE, "phase": "worker"}
        assert await way(pool, echo, 1) == 1, "by another worker"
        assert (pool.metrics.abandoned, pool.metrics.workers) == (1, 2)
        hold.release()
        await soon(lambda: pool.metrics.workers == 1)
        assert counts(pool.metrics) == {"succeeded": 1, "timed_out": 1}


async def test_queueing_does_not_count_for_the_pool() -> None:
    """What waits for longer than the task_timeout is no hung worker."""
    holds = [Hold() for _ in range(3)]
    with thread_pool(workers=1, max_abandoned=0, task_timeout=AWHILE) as pool:
        first = pool.submit(holds[0].stay)
        second = pool.submit(echo, 2)
        with pytest.raises(WorkerTimeoutError) as caught:
            await first
        assert caught.value.details["phase"] == "worker"
        with pytest.raises(TimeoutError):
            await anyio.to_thread.run_sync(second.result, AWHILE)
        holds[0].release()
        assert await second == 2
        assert pool.metrics.timed_out == 1


async def test_the_shorter_of_two_limits_counts() -> None:
    first, second = Hold(), Hold()
    with thread_pool(workers=1, task_timeout=2 * AWHILE) as pool:
        with pytest.raises(WorkerTimeoutError) as caught:
            await pool.asubmit(first.stay, timeout=AWHILE)
        assert caught.value.details["phase"] == "running"
        with pytest.raises(WorkerTimeoutError) as caught:
            await pool.asubmit(second.stay, timeout=100)
        assert caught.value.details["phase"] == "worker"
        first.release()
        second.release()


async def test_hung_workers_are_replaced_again_and_again() -> None:
    holds = [Hold() for _ in range(5)]
    with thread_pool(workers=2, max_abandoned=5, task_timeout=AWHILE) as pool:
        outcomes = await pool.amap(lambda hold: hold.stay(), holds)
        assert [one.details["phase"] for one in outcomes] == ["worker"] * 5
        assert await pool.amap(echo, range(10)) == list(range(10))
        for hold in holds:
            hold.release()
        await soon(lambda: pool.metrics.abandoned == 0)


async def test_the_task_timeout_holds_while_the_loop_is_blocked() -> None:
    hold = Hold()
    with thread_pool(workers=1, task_timeout=AWHILE) as pool:
        with pytest.raises(WorkerTimeoutError):
            pool.submit(hold.stay).result()
        hold.release()


async def test_jobs_are_shown_while_they_run() -> None:
    """The longest first, with what nobody waits for any more."""
    holds = [Hold() for _ in range(2)]
    with thread_pool(workers=2) as pool:
        for hold in holds:
            pool.submit(hold.stay)
            await hold.begins()
        with pytest.raises(WorkerTimeoutError):
            await pool.asubmit(echo, 1, timeout=SOON)
        first, second = pool.jobs()
        assert first.function == second.function == "Hold.stay"
        assert first.seconds >= second.seconds >= SOON / 2
        assert not first.abandoned
        assert not second.abandoned
        for hold in holds:
            hold.release()
        await soon(lambda: pool.jobs() == ())


async def test_an_abandoned_job_keeps_its_variables() -> None:
    """Its context is its own, whatever comes next in the pool."""
    hold, found = Hold(), list[Any]()

    def work() -> None:
        hold.stay()
        found.append(dict(propagated()))

    with thread_pool(workers=1) as pool:
        with pytest.raises(WorkerTimeoutError):
            await pool.asubmit(work, timeout=AWHILE)
        assert await pool.asubmit(echo, 1) == 1
        hold.release()
        await soon(lambda: found)
    assert found == [{}]
