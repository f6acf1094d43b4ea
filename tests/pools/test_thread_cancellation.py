"""Thread pools: callers that are cancelled, by scopes and by asyncio's own ways. No job, no slot, no result is lost."""

from __future__ import annotations

import asyncio
import functools
import random
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from agentcore import (
    JobCancelledError,
    ThreadWorkerPool,
    ThreadWorkerPoolConfig,
    check_cancelled,
)
from agentcore.testing import cancel_everywhere
from tests.pools.thread_helpers import AWHILE, LIMIT, SOON, Hold, counts, heard, soon, thread_pool, until

pytestmark = pytest.mark.anyio


def echo(value: Any) -> Any:
    return value


async def check_at_rest(pool: ThreadWorkerPool) -> None:
    """Nothing waits or runs, and all the slots are there."""
    await soon(lambda: (pool.metrics.queued, pool.metrics.running, pool.metrics.abandoned) == (0, 0, 0))
    size = pool.config.size
    # So many at a time: each waits for all others.
    barrier = threading.Barrier(size)
    async with anyio.create_task_group() as group:
        for _ in range(size):
            group.start_soon(pool.asubmit, barrier.wait, LIMIT)


# By scopes.


async def test_a_queued_job_of_a_cancelled_caller_is_taken_back() -> None:
    hold, seen = Hold(), list[int]()
    with thread_pool(workers=1) as pool:
        pool.submit(hold.stay)
        await hold.begins()
        sibling = pool.submit(echo, 1)
        with anyio.move_on_after(SOON) as scope:
            await pool.asubmit(seen.append, 1)
        assert scope.cancelled_caught
        assert pool.metrics.queued == 1
        hold.release()
        assert await sibling == 1
        await check_at_rest(pool)
        assert pool.metrics.cancelled == 1
    assert seen == []


async def test_a_running_job_is_waited_for_and_its_result_returned() -> None:
    """What has been done is not thrown away: the cancellation comes at the next checkpoint."""
    hold, found = Hold(), list[Any]()
    with thread_pool(workers=1) as pool:
        scope = anyio.CancelScope()

        async def call() -> None:
            with scope:
                found.append(await pool.asubmit(hold.stay, 5))
                found.append("no checkpoint")
                await anyio.lowlevel.checkpoint()
                found.append("never")

        async with anyio.create_task_group() as group:
            group.start_soon(call)
            await hold.begins()
            scope.cancel()
            await anyio.wait_all_tasks_blocked()
            assert found == []
            hold.release()
        assert found == [5, "no checkpoint"]
        assert scope.cancelled_caught
        await check_at_rest(pool)
        assert pool.metrics.cancelled == 0


async def test_a_running_job_that_fails_after_the_cancellation() -> None:
    hold = Hold()

    def fail() -> None:
        hold.stay()
        raise ValueError("boom")

    with thread_pool(workers=1) as pool:
        with pytest.raises(ValueError, match="boom"), anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(functools.partial(_cancel_when, hold, scope))
                try:
                    await pool.asubmit(fail)
                except ValueError as error:
                    raised = error
            raise raised
        assert pool.metrics.failed == 1
        await check_at_rest(pool)


async def _cancel_when(hold: Hold, scope: anyio.CancelScope) -> None:
    await hold.begins()
    scope.cancel()
    hold.release()


async def test_a_running_job_is_told() -> None:
    """It ends by `check_cancelled`, and the caller sees his cancellation, nothing else."""
    begun = threading.Event()

    def work() -> None:
        begun.set()
        until(_is_cancelled)
        check_cancelled()

    with thread_pool(workers=1) as pool:
        scope, ended = anyio.CancelScope(), list[str]()

        async def call() -> None:
            with scope:
                try:
                    await pool.asubmit(work)
                except anyio.get_cancelled_exc_class():
                    ended.append("cancelled")
                    raise

        async with anyio.create_task_group() as group:
            group.start_soon(call)
            await heard(begun)
            scope.cancel()
        assert ended == ["cancelled"]
        assert scope.cancelled_caught
        assert counts(pool.metrics) == {"cancelled": 1}
        await check_at_rest(pool)


def _is_cancelled() -> bool:
    try:
        check_cancelled()
    except JobCancelledError:
        return True
    return False


async def test_one_job_is_told_and_no_other() -> None:
    holds = [Hold() for _ in range(2)]
    told = list[bool]()

    def work(hold: Hold) -> None:
        hold.stay()
        told.append(_is_cancelled())

    with thread_pool(workers=2) as pool:
        scope = anyio.CancelScope()

        async def call() -> None:
            with scope:
                await pool.asubmit(work, holds[0])

        async with anyio.create_task_group() as group:
            group.start_soon(call)
            group.start_soon(pool.asubmit, work, holds[1])
            for hold in holds:
                await hold.begins()
            scope.cancel()
            await anyio.wait_all_tasks_blocked()
            holds[0].release()
            await soon(lambda: told)
            holds[1].release()
        assert told == [True, False]
        assert await pool.asubmit(_is_cancelled) is False, "nor is the next job of that worker"


def test_outside_of_jobs_nobody_is_told() -> None:
    assert check_cancelled() is None  # type: ignore[func-returns-value]


async def test_a_job_that_raises_the_error_by_itself() -> None:
    """Then it is an error like any other."""

    def lie() -> None:
        raise JobCancelledError("not at all")

    with thread_pool(workers=1) as pool:
        with pytest.raises(JobCancelledError, match="not at all"):
            await pool.asubmit(lie)
        assert counts(pool.metrics) == {"failed": 1}


@pytest.mark.parametrize("is_running", [False, True])
async def test_a_running_job_can_be_left_behind(is_running: bool) -> None:
    """The caller is free at once, and the slot is taken by another worker."""
    first, second = Hold(), Hold()
    with thread_pool(workers=1) as pool:
        if not is_running:
            pool.submit(first.stay)
            await first.begins()
        with anyio.move_on_after(AWHILE) as scope:
            await pool.options(abandon_on_cancel=True).asubmit(second.stay)
        assert scope.cancelled_caught
        assert second.begun.is_set() == is_running
        assert pool.metrics.abandoned == is_running
        assert pool.metrics.cancelled == 1
        first.release()
        assert await pool.asubmit(echo, 1) == 1
        second.release()
        await check_at_rest(pool)


async def test_abandoned_jobs_have_a_limit_too() -> None:
    holds = [Hold(), Hold()]
    with thread_pool(workers=1, max_abandoned=1) as pool:
        for hold in holds:
            with anyio.move_on_after(AWHILE) as scope:
                await pool.options(abandon_on_cancel=True).asubmit(hold.stay)
            assert scope.cancelled_caught
        future = pool.submit(echo, 1)
        assert pool.metrics.abandoned == 2
        assert not future.done()
        holds[1].release()
        assert await future == 1
        holds[0].release()
        await check_at_rest(pool)


async def test_a_shield_holds() -> None:
    hold = Hold()
    with thread_pool(workers=1) as pool, anyio.CancelScope() as outer:
        with anyio.CancelScope(shield=True):
            async with anyio.create_task_group() as group:
                group.start_soon(pool.asubmit, hold.stay)
                await hold.begins()
                outer.cancel()
                assert [job.abandoned for job in pool.jobs()] == [False]
                hold.release()
    assert counts(pool.metrics) == {"succeeded": 1}


async def test_a_deadline_around_a_running_job() -> None:
    """It is over when the job is: with the result, since that is there."""
    hold = Hold()
    with thread_pool(workers=1) as pool:
        threading.Timer(2 * AWHILE, hold.release).start()
        with anyio.fail_after(AWHILE):
            result = await pool.asubmit(hold.stay, 5)
        assert result == 5


async def test_a_cancellation_at_the_very_moment_of_the_result() -> None:
    """The job has ended, and the caller has not heard of it yet: the result counts."""
    hold, found = Hold(), list[Any]()
    with thread_pool(workers=1) as pool:
        scope = anyio.CancelScope()

        async def call() -> None:
            with scope:
                found.append(await pool.asubmit(hold.stay, 5))

        async with anyio.create_task_group() as group:
            group.start_soon(call)
            await hold.begins()
            hold.release()
            until(lambda: pool.metrics.succeeded)  # the loop is blocked: nobody can be told
            scope.cancel()
        assert found == [5]
        assert counts(pool.metrics) == {"succeeded": 1}


async def test_many_callers_are_cancelled_at_once() -> None:
    hold, results = Hold(), list[int]()

    def work(number: int) -> int:
        hold.stay()
        return number

    with thread_pool(workers=2) as pool:

        async def call(number: int) -> None:
            results.append(await pool.asubmit(work, number))

        async with anyio.create_task_group() as group:
            for number in range(100):
                group.start_soon(call, number)
            await soon(lambda: (pool.metrics.running, pool.metrics.queued) == (2, 98))
            group.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                await soon(lambda: pool.metrics.queued == 0)
            hold.release()
        assert len(results) == 2
        assert counts(pool.metrics) == {"succeeded": 2, "cancelled": 98}
        await check_at_rest(pool)


@pytest.mark.parametrize("abandon", [False, True])
async def test_callers_that_are_cancelled_at_any_moment(abandon: bool) -> None:
    """Each job ends in one way: none is lost, and none runs twice or after it was taken back."""
    random_source = random.Random(5)
    runs, given, left = list[int](), list[int](), list[int]()
    lock = threading.Lock()

    def work(number: int) -> int:
        with lock:
            runs.append(number)
        return number

    with thread_pool(workers=2) as pool:
        view = pool.options(abandon_on_cancel=abandon)

        async def call(number: int, steps: int) -> None:
            scope = anyio.CancelScope()
            async with anyio.create_task_group() as group:
                group.start_soon(_cancel_after, scope, steps)
                with scope:
                    given.append(await view.asubmit(work, number))
                if scope.cancelled_caught and number not in given:
                    left.append(number)

        async with anyio.create_task_group() as group:
            for number in range(300):
                group.start_soon(call, number, random_source.randrange(12))
        assert sorted(given + left) == list(range(300))
        assert len(runs) == len(set(runs))
        assert set(given) <= set(runs)
        if not abandon:
            assert set(given) == set(runs)
        await check_at_rest(pool)
        assert pool.metrics.succeeded == len(given) + 2


async def _cancel_after(scope: anyio.CancelScope, steps: int) -> None:
    for _ in range(steps):
        await anyio.lowlevel.checkpoint()
    scope.cancel()


# By asyncio's own ways.


@pytest.fixture
def on_asyncio(anyio_backend_name: str) -> None:
    if anyio_backend_name != "asyncio":
        pytest.skip("asyncio's own cancellations")


async def test_task_cancel_of_a_queued_job(on_asyncio: None) -> None:
    hold, seen = Hold(), list[int]()
    with thread_pool(workers=1) as pool:
        pool.submit(hold.stay)
        await hold.begins()
        task = asyncio.ensure_future(pool.asubmit(seen.append, 1))
        await soon(lambda: pool.metrics.queued)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (pool.metrics.queued, pool.metrics.cancelled) == (0, 1)
        hold.release()
        await check_at_rest(pool)
    assert seen == []


@pytest.mark.parametrize("times", [1, 3])
async def test_task_cancel_of_a_running_job(on_asyncio: None, times: int) -> None:
    """It is waited for, however often it is cancelled, and then the cancellation is raised, for it comes once."""
    hold = Hold()
    with thread_pool(workers=1) as pool:
        task = asyncio.ensure_future(pool.asubmit(hold.stay, 5))
        await hold.begins()
        for _ in range(times):
            task.cancel()
            await anyio.wait_all_tasks_blocked()
            assert not task.done()
        hold.release()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert hold.ended.is_set()
        await check_at_rest(pool)


async def test_task_cancel_at_the_very_moment_of_the_result(on_asyncio: None) -> None:
    hold = Hold()
    with thread_pool(workers=1) as pool:
        task = asyncio.ensure_future(pool.asubmit(hold.stay, 5))
        await hold.begins()
        hold.release()
        until(lambda: pool.metrics.succeeded)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await check_at_rest(pool)


async def test_task_cancel_with_abandoning(on_asyncio: None) -> None:
    hold = Hold()
    with thread_pool(workers=1) as pool:
        task = asyncio.ensure_future(pool.options(abandon_on_cancel=True).asubmit(hold.stay))
        await hold.begins()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert pool.metrics.abandoned == 1
        hold.release()
        await check_at_rest(pool)


async def test_task_cancel_of_who_awaits_a_future(on_asyncio: None) -> None:
    hold = Hold()
    with thread_pool(workers=1) as pool:
        future = pool.submit(hold.stay, 5)

        async def wait() -> int:
            return await future  # type: ignore[no-any-return]

        task = asyncio.ensure_future(wait())
        await hold.begins()
        await anyio.wait_all_tasks_blocked()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        hold.release()
        assert await future == 5


@pytest.mark.parametrize("is_running", [False, True])
async def test_asyncio_timeout(on_asyncio: None, is_running: bool) -> None:
    first, second = Hold(), Hold()
    with thread_pool(workers=1) as pool:
        if not is_running:
            pool.submit(first.stay)
            await first.begins()
        threading.Timer(2 * AWHILE, second.release).start()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(AWHILE):
                await pool.asubmit(second.stay)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        assert second.ended.is_set() == is_running
        first.release()
        await check_at_rest(pool)


async def test_asyncio_task_group(on_asyncio: None) -> None:
    """One task fails, and the group cancels the others: a queued job is taken back, a running one waited for."""
    hold, seen = Hold(), list[int]()

    async def fail() -> None:
        await hold.begins()
        threading.Timer(SOON, hold.release).start()
        raise ValueError("boom")

    with thread_pool(workers=1) as pool:
        with pytest.raises(ExceptionGroup) as caught:
            async with asyncio.TaskGroup() as group:
                group.create_task(pool.asubmit(hold.stay))
                await hold.begins()
                group.create_task(pool.asubmit(seen.append, 1))
                await soon(lambda: pool.metrics.queued)
                group.create_task(fail())
        assert [type(error) for error in caught.value.exceptions] == [ValueError]
        assert hold.ended.is_set()
        assert seen == []
        await check_at_rest(pool)


async def test_asyncio_wait_for_and_gather(on_asyncio: None) -> None:
    with thread_pool(workers=2) as pool:
        assert await asyncio.gather(*(pool.asubmit(echo, number) for number in range(20))) == list(range(20))
        assert await asyncio.wait_for(pool.asubmit(echo, 1), LIMIT) == 1
        assert await asyncio.wrap_future(pool.submit(echo, 2)) == 2


async def test_tasks_that_are_cancelled_natively_at_any_moment(on_asyncio: None) -> None:
    random_source = random.Random(7)
    runs = list[int]()
    with thread_pool(workers=2) as pool:
        tasks = []
        for number in range(300):
            tasks.append(asyncio.ensure_future(pool.asubmit(runs.append, number)))
            for _ in range(random_source.randrange(3)):
                await anyio.lowlevel.checkpoint()
            random_source.choice(tasks).cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        done = {number for number, outcome in enumerate(outcomes) if outcome is None}
        assert done <= set(runs)
        assert len(runs) == len(set(runs))
        await check_at_rest(pool)


# Everywhere.


@pytest.mark.parametrize("abandon", [False, True])
def test_cancelled_everywhere(abandon: bool) -> None:
    """Wherever a caller is cancelled: no job waits or runs behind his back, and every slot is free."""

    @asynccontextmanager
    async def build() -> AsyncGenerator[ThreadWorkerPool]:
        async with ThreadWorkerPool("swept", ThreadWorkerPoolConfig(workers=1)) as pool:
            yield pool

    async def act(pool: ThreadWorkerPool) -> None:
        view = pool.options(abandon_on_cancel=abandon)
        async with anyio.create_task_group() as group:
            for number in range(3):
                group.start_soon(view.asubmit, echo, number)
        assert await view.asubmit(echo, 5) == 5
        assert await view.submit(echo, 6) == 6

    async def check(pool: ThreadWorkerPool) -> None:
        assert await pool.asubmit(echo, 7) == 7
        metrics = pool.metrics
        assert (metrics.queued, metrics.running, metrics.failed) == (0, 0, 0)

    _sweep(act, build, check)


def test_items_cancelled_everywhere() -> None:
    @asynccontextmanager
    async def build() -> AsyncGenerator[ThreadWorkerPool]:
        async with ThreadWorkerPool("swept", ThreadWorkerPoolConfig(workers=1)) as pool:
            yield pool

    async def act(pool: ThreadWorkerPool) -> None:
        assert await pool.amap(echo, range(4)) == [0, 1, 2, 3]
        async with pool.as_completed(echo, range(100)) as results:
            async for one in results:
                if one.index:
                    break

    async def check(pool: ThreadWorkerPool) -> None:
        assert await pool.asubmit(echo, 7) == 7
        assert (pool.metrics.queued, pool.metrics.running, pool.metrics.failed) == (0, 0, 0)

    _sweep(act, build, check)


def _sweep(act: Callable[..., Any], build: Callable[..., Any], check: Callable[..., Any]) -> None:
    cancel_everywhere(act, build=build, check=check, schedules=("fifo",), modes=("block", "wake", "native"))
