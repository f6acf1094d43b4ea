"""Pools for coroutines, of either kind: limits of time, and jobs that would wait for each other for ever."""

from __future__ import annotations

import logging
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from agentcore import (
    ConfigurationError,
    WorkerPoolDeadlockError,
    WorkerPoolError,
    WorkerTimeoutError,
)
from agentcore.testing import simulate
from tests.pools.coroutines import Boom, Door, Kind, Pool, both_kinds, busy, configured, counts, double, logged, nothing

pytestmark = [pytest.mark.anyio, both_kinds]


async def sleep(seconds: float) -> float:
    """Take some time."""
    await anyio.sleep(seconds)
    return seconds


# Limits of time.


@simulate(runs=10)
async def test_a_timeout_in_the_queue(kind: Kind) -> None:
    """The caller is told at once, and the job is never begun."""
    door = Door()
    async with kind("p", configured()) as pool:
        await pool.submit(sleep, 10)
        began = anyio.current_time()
        with pytest.raises(WorkerTimeoutError) as caught:
            await pool.options(timeout=3).asubmit(door)
        assert 3 == anyio.current_time() - began
        assert {"running": 1, "timed_out": 1} == counts(pool.metrics)
    error = caught.value
    assert isinstance(error, TimeoutError)
    assert isinstance(error, WorkerPoolError)
    assert (
        "job Door of worker pool 'p' was not begun within its timeout: got more than 3 s; add workers or allow more time"
    ) == str(error)
    assert {"pool": "p", "function": "Door", "timeout": 3, "phase": "queued"} == error.details
    assert [] == door.came


@simulate(runs=10)
async def test_a_timeout_of_a_running_job(kind: Kind) -> None:
    """It covers the wait in the queue; the job is cancelled, and its clean-up waited for."""
    log: list[str] = []

    async def work() -> None:
        try:
            await anyio.sleep(100)
        finally:
            log.append("cancelled")
            with anyio.CancelScope(shield=True):
                await anyio.sleep(2)
            log.append("unwound")

    async with kind("p", configured()) as pool:
        await pool.submit(sleep, 4)
        began = anyio.current_time()
        with pytest.raises(WorkerTimeoutError) as caught:
            await pool.options(timeout=5).asubmit(work)
        assert (["cancelled", "unwound"], 7) == (log, anyio.current_time() - began)
        assert 1 == await pool.asubmit(sleep, 1)
    assert ("running", 5) == (caught.value.details["phase"], caught.value.details["timeout"])
    assert "did not end within its timeout: got more than 5 s; allow more time or do less at once" in str(caught.value)
    assert {"succeeded": 2, "timed_out": 1} == counts(pool.metrics)


@simulate(runs=10)
async def test_the_limit_of_the_pool(kind: Kind) -> None:
    """It begins when the job does, for those that nobody waits for too."""
    given: list[BaseException] = []
    async with kind("p", configured(task_timeout=3, on_error=given.append)) as pool:
        began = anyio.current_time()
        await pool.submit(sleep, 2)
        await pool.submit(sleep, 10)
        with pytest.raises(WorkerTimeoutError) as caught:
            await pool.options(timeout=100).asubmit(sleep, 10)
        assert 2 + 3 + 3 == anyio.current_time() - began
        assert 3 == await pool.asubmit(sleep, 2) + 1
    assert "ran for longer than the task_timeout of its pool: got more than 3 s" in str(caught.value)
    assert "worker" == caught.value.details["phase"]
    assert [WorkerTimeoutError] == [type(error) for error in given]
    assert {"succeeded": 2, "timed_out": 2} == counts(pool.metrics)


@simulate(runs=5)
async def test_the_shorter_limit_counts(kind: Kind) -> None:
    async with kind("p", configured(task_timeout=3)) as pool:
        for timeout, phase in ((2, "running"), (4, "worker")):
            with pytest.raises(WorkerTimeoutError) as caught:
                await pool.options(timeout=timeout).asubmit(sleep, 10)
            assert phase == caught.value.details["phase"]


@simulate(runs=5)
async def test_the_timeout_of_a_submitted_job(kind: Kind, caplog: pytest.LogCaptureFixture) -> None:
    """Once it runs, it is cut, logged and given to `on_error`."""
    caplog.clear()
    given: list[BaseException] = []
    async with kind("p", configured(on_error=given.append)) as pool:
        await pool.options(timeout=2).submit(sleep, 10)
    assert ["running"] == [error.details["phase"] for error in given if isinstance(error, WorkerTimeoutError)]
    assert [logging.ERROR] == [record.levelno for record in logged(caplog)]
    assert {"timed_out": 1} == counts(pool.metrics)


@simulate(runs=5)
async def test_jobs_that_end_in_time(kind: Kind) -> None:
    """Whatever they do after that."""
    async with kind("p", configured(task_timeout=3)) as pool:
        view = pool.options(timeout=3)
        assert [2, 2] == [await view.asubmit(sleep, 2) for _ in range(2)]
        await view.submit(sleep, 2)
        await anyio.sleep(10)
        assert 2 == await view.asubmit(sleep, 2)
    assert {"succeeded": 4} == counts(pool.metrics)


async def test_no_time_at_all(kind: Kind) -> None:
    """A timeout of 0 still asks for what is there at once, and ends the rest."""
    async with kind("p", configured()) as pool:
        with pytest.raises(WorkerTimeoutError):
            await pool.options(timeout=0).asubmit(anyio.sleep_forever)
        assert 2 == await pool.asubmit(double, 1)
    assert {"succeeded": 1, "timed_out": 1} == counts(pool.metrics)


@simulate(runs=5)
async def test_a_timeout_error_of_the_job(kind: Kind) -> None:
    """One that the job has made itself is a failure, and the job's own."""

    async def work() -> None:
        with anyio.fail_after(1):
            await anyio.sleep(10)

    async with kind("p", configured(task_timeout=5)) as pool:
        with pytest.raises(TimeoutError) as caught:
            await pool.asubmit(work)
        assert not isinstance(caught.value, WorkerTimeoutError)
    assert {"failed": 1} == counts(pool.metrics)


@simulate(runs=5)
async def test_a_clean_up_that_fails_after_the_timeout(kind: Kind) -> None:
    """What it raises is told, and not hidden by the timeout."""

    async def work() -> None:
        try:
            await anyio.sleep(10)
        finally:
            raise Boom("clean-up")

    async with kind("p", configured()) as pool:
        with pytest.raises(Boom, match="clean-up"):
            await pool.options(timeout=1).asubmit(work)
    assert {"failed": 1} == counts(pool.metrics)


@simulate(runs=20)
async def test_a_caller_cancelled_at_the_moment_of_his_timeout(kind: Kind) -> None:
    """He is told of one of the two; the job is ended either way."""
    ended: list[bool] = []

    async def work() -> None:
        try:
            await anyio.sleep(10)
        finally:
            ended.append(True)

    async with kind("p", configured()) as pool:
        with anyio.move_on_after(1):
            with pytest.raises(WorkerTimeoutError):
                await pool.options(timeout=1).asubmit(work)
                pytest.fail("it returned")
        assert [True] == ended
        assert 1 == await pool.asubmit(sleep, 1)


async def test_options_are_checked(kind: Kind) -> None:
    """And given again by views of views; what is omitted stays."""
    pool = kind("p")
    for wrong in ({"timeout": -1}, {"timeout": "3"}, {"priority": "high"}, {"priority": 1}, {"when_full": "block"}):
        (name,) = wrong
        with pytest.raises(ConfigurationError, match=name):
            pool.options(**wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        pool.options(deadline=3)  # type: ignore[call-arg]
    view = pool.options(timeout=3).options(when_full="wait")
    assert "timeout=3" in repr(view)
    assert "when_full='wait'" in repr(view)
    await pool.shutdown()


# Jobs that wait for jobs.


async def nested(pool: Pool, depth: int) -> int:
    """Do something by another job of the same pool, so often."""
    if not depth:
        return 0
    return 1 + await pool.asubmit(nested, pool, depth - 1)


@pytest.mark.parametrize("workers", [1, 2, 4])
async def test_waiting_for_a_job_of_the_own_full_pool(kind: Kind, workers: int) -> None:
    """As long as there are workers it goes on; then there is an error, and no deadlock."""
    async with kind("p", configured(workers=workers)) as pool:
        assert workers - 1 == await pool.asubmit(nested, pool, workers - 1)
        with pytest.raises(WorkerPoolDeadlockError) as caught:
            await pool.asubmit(nested, pool, workers)
        assert (
            "job nested would wait for ever: got a call of nested in worker pool 'p', whose workers are all taken by jobs "
            "that wait for it; call the function directly, add workers, or use another pool"
        ) == str(caught.value)
        assert {"pool": "p"} == caught.value.details
        assert 2 == await pool.asubmit(double, 1)
    assert 0 == pool.metrics.queued == pool.metrics.running


async def test_in_a_task_of_the_job(kind: Kind) -> None:
    """The tasks that a job starts are the job's."""

    async def work(pool: Pool) -> None:
        with pytest.raises(ExceptionGroup) as caught:
            async with anyio.create_task_group() as group:
                group.start_soon(pool.asubmit, nothing)
        assert caught.group_contains(WorkerPoolDeadlockError)
        with pytest.raises(WorkerPoolDeadlockError):
            await pool.amap(double, [1])

    async with kind("p", configured()) as pool:
        await pool.asubmit(work, pool)
    assert (1, 0, 0) == (pool.metrics.succeeded, pool.metrics.queued, pool.metrics.running)


async def test_around_two_pools(kind: Kind) -> None:
    """Each of which waits for the other."""

    async def across(first: Pool, second: Pool, depth: int) -> int:
        if not depth:
            return 0
        return 1 + await second.asubmit(across, second, first, depth - 1)

    async with kind("p", configured()) as first, kind("q", configured()) as second:
        assert 1 == await first.asubmit(across, first, second, 1)
        with pytest.raises(WorkerPoolDeadlockError, match="worker pool 'p'"):
            await first.asubmit(across, first, second, 2)
        assert [2, 2] == [await pool.asubmit(double, 1) for pool in (first, second)]


async def test_waiting_for_a_pool_that_is_only_busy(kind: Kind) -> None:
    """As soon as one of the others ends, the job begins: no error."""
    async with kind("p", configured(workers=2)) as pool, anyio.create_task_group() as group, busy(pool):
        found: list[int] = []

        async def call() -> None:
            found.append(await pool.asubmit(nested, pool, 1))

        group.start_soon(call)
        await anyio.wait_all_tasks_blocked()
        assert {"queued": 1, "running": 2} == counts(pool.metrics)
    assert [1] == found


async def test_the_last_of_those_that_wait_is_told(kind: Kind) -> None:
    """All workers begin before one of them waits: the one that closes the circle has the error, the others their results."""
    here, found = list[int](), list[Any]()
    together = anyio.Event()

    async def work(pool: Pool, number: int) -> int:
        here.append(number)
        if len(here) == 4:
            together.set()
        await together.wait()
        return await pool.asubmit(double, number)

    async def call(pool: Pool, number: int) -> None:
        try:
            found.append(await pool.asubmit(work, pool, number))
        except WorkerPoolDeadlockError as error:
            found.append(type(error))

    async with kind("p", configured(workers=4)) as pool, anyio.create_task_group() as group:
        for number in range(4):
            group.start_soon(call, pool, number)
    assert 1 == found.count(WorkerPoolDeadlockError)
    assert 4 == len(found)


async def test_a_job_may_submit_to_its_own_pool(kind: Kind) -> None:
    """It does not wait for that."""
    door = Door()
    door.opened.set()

    async def work(pool: Pool) -> None:
        await pool.submit(door, 1)
        pool.submit_nowait(door, 2)

    async with kind("p", configured()) as pool:
        await pool.asubmit(work, pool)
    assert [1, 2] == door.left


@simulate(runs=5)
async def test_with_a_timeout_there_is_an_end(kind: Kind) -> None:
    """So the wait is allowed."""

    async def work(pool: Pool) -> str:
        with pytest.raises(WorkerTimeoutError) as caught:
            await pool.options(timeout=2).asubmit(nothing)
        phase: str = caught.value.details["phase"]
        return phase

    async with kind("p", configured()) as pool:
        assert "queued" == await pool.asubmit(work, pool)


@simulate(runs=10)
async def test_a_timeout_of_who_waits_for_space(kind: Kind) -> None:
    """It is his, for nobody else can be told yet."""
    door = Door()
    async with kind("p", configured(max_queue_size=1)) as pool:
        await pool.submit(door)
        await anyio.wait_all_tasks_blocked()
        await pool.submit(nothing)
        began = anyio.current_time()
        with pytest.raises(WorkerTimeoutError, match="was not begun within its timeout: got more than 3 s"):
            await pool.options(when_full="wait", timeout=3).submit(nothing)
        assert 3 == anyio.current_time() - began
        assert {"queued": 1, "running": 1, "timed_out": 1} == counts(pool.metrics)
        door.opened.set()
    assert {"succeeded": 2, "timed_out": 1} == counts(pool.metrics)
