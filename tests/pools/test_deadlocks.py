"""Jobs that wait for jobs: what could never end is refused in bounded time, and what can end is not."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

import anyio
import pytest

from agentcore import (
    PoolFuture,
    ThreadWorkerPool,
    WorkerPoolDeadlockError,
    WorkerTimeoutError,
)
from tests.pools.thread_helpers import AWHILE, LIMIT, SOON, Caller, Hold, guarded, thread_pool

pytestmark = pytest.mark.anyio


def echo(value: Any) -> Any:
    return value


def outcome(function: Callable[[], Any]) -> Any:
    """Return what it returns or raises."""
    try:
        return function()
    except Exception as error:  # noqa: BLE001 - the test looks at it
        return error


def warm(*pools: ThreadWorkerPool) -> None:
    """Have all workers there."""
    for pool in pools:
        barrier = threading.Barrier(pool.config.size)
        for future in [pool.submit(barrier.wait, LIMIT) for _ in range(pool.config.size)]:
            future.result(LIMIT)


def nested(pool: ThreadWorkerPool, depth: int) -> int:
    """Be a job that waits for another one, so many levels deep."""
    return 0 if depth == 0 else 1 + pool.submit(nested, pool, depth - 1).result()


# Refused.


@pytest.mark.parametrize("wait", ["result", "exception"])
def test_a_job_waits_for_another_one_of_its_full_pool(wait: str) -> None:
    def job() -> Any:
        future = pool.submit(echo, 1)
        try:
            return getattr(future, wait)()
        finally:
            futures.append(future)

    futures: list[PoolFuture[Any]] = []
    with thread_pool(workers=1) as pool:
        warm(pool)
        with pytest.raises(WorkerPoolDeadlockError) as caught:
            guarded(pool.submit(job).result)
        assert str(caught.value).startswith(
            "a thread that waits for a job would wait for ever: got <Job echo queued>, "
        )
        assert str(caught.value).endswith(
            "which waits for this very thread; await the job instead of blocking, use another pool for nested jobs, "
            "or pass a timeout"
        )
        assert caught.value.details == {"pool": "pool"}
        assert futures[0].result(LIMIT) == 1, "the inner job runs when its worker is free"
        assert pool.submit(echo, 2).result(LIMIT) == 2


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_recursion_that_is_too_deep(workers: int) -> None:
    with thread_pool(workers=workers) as pool:
        warm(pool)
        assert isinstance(outcome(partial(guarded, pool.submit(nested, pool, workers).result)), WorkerPoolDeadlockError)
        assert guarded(pool.submit(nested, pool, workers - 1).result) == workers - 1


def test_all_workers_wait_at_once() -> None:
    """The last one gets the error; by that the others can go on."""
    barrier = threading.Barrier(3)

    def job(number: int) -> Any:
        future = pool.submit(echo, number)
        barrier.wait(LIMIT)
        return future.result()

    with thread_pool(workers=3) as pool:
        warm(pool)
        futures = [pool.submit(job, number) for number in range(3)]
        outcomes = [outcome(partial(guarded, future.result)) for future in futures]
    refused = [one for one in outcomes if isinstance(one, WorkerPoolDeadlockError)]
    assert len(refused) == 1
    assert [one for number, one in enumerate(outcomes) if one == number] == [
        one for one in outcomes if one not in refused
    ]


@pytest.mark.parametrize("length", [2, 3])
def test_pools_cross(length: int) -> None:
    """Each waits for the next one, and the last for the first."""
    barrier = threading.Barrier(length)

    def job(number: int) -> Any:
        future = pools[(number + 1) % length].submit(echo, number)
        barrier.wait(LIMIT)
        return future.result()

    pools: list[ThreadWorkerPool] = []
    with (
        thread_pool("first", workers=1) as one,
        thread_pool("second", workers=1) as two,
        thread_pool("third", workers=1) as three,
    ):
        pools += [one, two, three][:length]
        warm(*pools)
        futures = [pool.submit(job, number) for number, pool in enumerate(pools)]
        outcomes = [outcome(partial(guarded, future.result)) for future in futures]
    assert sum(isinstance(one, WorkerPoolDeadlockError) for one in outcomes) == 1
    assert sum(isinstance(one, int) for one in outcomes) == length - 1


def test_jobs_that_wait_for_each_other() -> None:
    """Both run already: there is a worker for each, and it does not help."""
    futures: list[PoolFuture[Any]] = []
    both = threading.Event()

    def job(other: int) -> Any:
        assert both.wait(LIMIT)
        return futures[other].result()

    with thread_pool(workers=4) as pool:
        warm(pool)
        futures += [pool.submit(job, 1), pool.submit(job, 0)]
        both.set()
        outcomes = [outcome(partial(guarded, future.result)) for future in futures]
    # The one that is refused raises that, which the other one waits for.
    assert [type(one) for one in outcomes] == [WorkerPoolDeadlockError] * 2


def test_a_job_waits_for_itself() -> None:
    futures: list[PoolFuture[Any]] = []
    there = threading.Event()

    def job() -> Any:
        assert there.wait(LIMIT)
        return futures[0].result()

    with thread_pool(workers=2) as pool:
        warm(pool)
        futures.append(pool.submit(job))
        there.set()
        with pytest.raises(WorkerPoolDeadlockError, match=r"got <Job .*job running>"):
            guarded(futures[0].result)


def test_a_job_maps_over_its_own_full_pool() -> None:
    with thread_pool(workers=1) as pool:
        warm(pool)
        with pytest.raises(WorkerPoolDeadlockError):
            guarded(pool.submit(pool.map, echo, [1, 2]).result)
        assert guarded(lambda: pool.map(echo, [1, 2])) == [1, 2]


def test_a_job_leaves_its_own_pool() -> None:
    def job() -> None:
        with pool:
            pass

    with thread_pool(workers=1) as pool:
        warm(pool)
        with pytest.raises(WorkerPoolDeadlockError) as caught:
            guarded(pool.submit(job).result)
        assert str(caught.value) == (
            "the end of worker pool 'pool' would wait for the job that asks for it: got a call in "
            "<ThreadWorkerPool 'pool' open> itself; pass wait=False, or leave the pool elsewhere"
        )
        assert pool.submit(echo, 1).result(LIMIT) == 1, "nothing has happened"


async def test_the_error_reaches_who_awaits() -> None:
    with thread_pool(workers=1) as pool:
        warm(pool)
        with pytest.raises(WorkerPoolDeadlockError):
            await pool.asubmit(nested, pool, 1)
        assert await pool.asubmit(echo, 1) == 1


# Not refused.


def test_recursion_that_fits() -> None:
    with thread_pool(workers=4) as pool:
        warm(pool)
        for _ in range(20):
            assert guarded(pool.submit(nested, pool, 3).result) == 3


def test_another_worker_becomes_free() -> None:
    """It is busy now, and waits for nothing: the inner job has its turn."""
    hold = Hold()

    def job() -> Any:
        future = pool.submit(echo, 1)
        waits.set()
        return future.result()

    waits = threading.Event()
    with thread_pool(workers=2) as pool:
        warm(pool)
        other = pool.submit(hold.stay)
        hold.wait_until_begun()
        future = pool.submit(job)
        assert waits.wait(LIMIT)
        hold.release()
        assert guarded(future.result) == 1
        other.result(LIMIT)


def test_a_job_waits_for_another_pool() -> None:
    with thread_pool("outer", workers=1) as outer, thread_pool("inner", workers=1) as inner:

        def job(depth: int) -> Any:
            return inner.submit(echo, depth).result()

        assert [outer.submit(job, number) for number in range(10)][-1].result(LIMIT) == 9


def test_a_wait_with_a_timeout_ends_by_itself() -> None:
    def job() -> Any:
        future = pool.submit(echo, 1)
        try:
            return future.result(SOON)
        except TimeoutError:
            future.cancel()
            return "late"

    with thread_pool(workers=1) as pool:
        warm(pool)
        assert guarded(pool.submit(job).result) == "late"


def test_a_map_with_a_timeout_ends_by_itself() -> None:
    with thread_pool(workers=1) as pool:
        warm(pool)
        outcomes = guarded(pool.submit(partial(pool.map, echo, [1], SOON)).result)
        assert [type(one) for one in outcomes] == [WorkerTimeoutError]


def test_a_job_waits_for_one_that_has_ended() -> None:
    with thread_pool(workers=1) as pool:
        warm(pool)
        done = pool.submit(echo, 1)
        assert done.result(LIMIT) == 1
        assert guarded(pool.submit(done.result).result) == 1


def test_a_job_waits_for_a_future_of_another_kind() -> None:
    """Of which nothing is known."""
    future: Future[int] = Future()
    with thread_pool(workers=1) as pool:
        warm(pool)
        waiting = pool.submit(future.result)
        future.set_result(3)
        assert guarded(waiting.result) == 3


def test_many_threads_wait_for_the_same_job() -> None:
    hold = Hold()
    with thread_pool(workers=1) as pool:
        warm(pool)
        future = pool.submit(hold.stay, 4)
        callers = [Caller(future.result) for _ in range(8)]
        hold.release()
        assert [caller.join() for caller in callers] == [4] * 8


def test_an_abandoned_worker_is_no_obstacle() -> None:
    """Its slot has been taken by another one."""
    hold = Hold()
    with thread_pool(workers=2) as pool:
        warm(pool)
        with pytest.raises(WorkerTimeoutError):
            pool.submit(hold.stay, timeout=AWHILE).result(LIMIT)
        assert guarded(pool.submit(nested, pool, 1).result) == 1
        assert isinstance(outcome(partial(guarded, pool.submit(nested, pool, 2).result)), WorkerPoolDeadlockError)
        hold.release()


async def test_a_loop_that_blocks_is_no_obstacle() -> None:
    """Workers need no event loop."""
    with thread_pool(workers=2) as pool:
        warm(pool)
        assert pool.submit(nested, pool, 1).result() == 1
        assert await pool.asubmit(nested, pool, 1) == 1


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_job_awaits_in_a_loop_of_its_own(backend: str) -> None:
    async def main() -> Any:
        return await inner.asubmit(echo, 1), await inner.submit(echo, 2)

    with thread_pool("outer", workers=1) as outer, thread_pool("inner", workers=1) as inner:
        assert guarded(outer.submit(partial(anyio.run, main, backend=backend)).result) == (1, 2)
