"""Thread pools: how workers begin, idle, are recycled and counted."""

from __future__ import annotations

import threading
from collections import Counter
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
import pytest

from agentcore import (
    ConfigurationError,
    ThreadWorkerPool,
    ThreadWorkerPoolConfig,
    WorkerPoolBrokenError,
    WorkerPoolClosedError,
    WorkerPoolConfig,
    WorkerPoolFullError,
    WorkerTimeoutError,
)
from agentcore import _interop as interop_module
from tests.pools.thread_helpers import (
    AWHILE,
    LIMIT,
    SOON,
    Caller,
    Hold,
    counts,
    know_others,
    soon,
    thread_pool,
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


# Idle ones.


@pytest.mark.parametrize("idle_timeout", [0, SOON])
def test_idle_workers_end(idle_timeout: float) -> None:
    with thread_pool("idlers", workers=3, idle_timeout=idle_timeout) as pool:
        for _ in range(3):
            barrier = threading.Barrier(3)
            for future in [pool.submit(barrier.wait, LIMIT) for _ in range(3)]:
                future.result(LIMIT)
            until(lambda: pool.metrics.workers == 0)
            until(lambda: not threads_of("idlers"))


def test_idle_workers_stay() -> None:
    with thread_pool(workers=1, idle_timeout=None) as pool:
        names = {pool.submit(lambda: threading.current_thread().name).result(LIMIT) for _ in range(20)}
        assert names == {"pool-1"}
        assert pool.metrics.workers == 1


def test_the_worker_that_became_idle_last_is_taken_first() -> None:
    """So the others can end."""
    with thread_pool(workers=4, idle_timeout=None) as pool:
        barrier = threading.Barrier(4)
        for future in [pool.submit(barrier.wait, LIMIT) for _ in range(4)]:
            future.result(LIMIT)
        until(lambda: len(pool._idle) == 4)
        names = set()
        for _ in range(20):
            names.add(pool.submit(lambda: threading.current_thread().name).result(LIMIT))
            until(lambda: len(pool._idle) == 4)
        assert len(names) == 1


def test_a_job_comes_just_when_its_worker_ends() -> None:
    """At the very moment, again and again: no job is left in the queue."""
    with thread_pool(workers=1, idle_timeout=0.0005) as pool:
        gate = threading.Event()
        for number in range(200):
            assert pool.submit(echo, number).result(LIMIT) == number
            gate.wait(0.0004 + 0.000001 * number)


# Recycled ones.


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("most", [1, 2])
async def test_workers_are_recycled(workers: int, most: int) -> None:
    """The standard library hangs here."""
    with thread_pool("recycled", workers=workers, max_jobs_per_worker=most) as pool:
        futures = [pool.submit(threading.get_ident) for _ in range(10)]
        for future in futures:
            await future
        names = [await pool.asubmit(lambda: threading.current_thread().name) for _ in range(10)]
        assert max(Counter(names).values()) <= most
        assert counts(pool.metrics) == {"succeeded": 20}
        await soon(lambda: len(threads_of("recycled")) <= workers)


def test_recycling_with_everything_else() -> None:
    """Failing and timed-out jobs, and waits for room."""
    holds = [Hold() for _ in range(3)]
    with thread_pool(workers=2, max_jobs_per_worker=1, max_queue_size=2) as pool:
        view = pool.options(when_full="wait")
        for hold in holds:
            assert isinstance(view.submit(hold.stay, timeout=AWHILE).exception(LIMIT), WorkerTimeoutError)
            assert isinstance(view.submit(int, "x").exception(LIMIT), ValueError)
            hold.release()
        assert [view.submit(echo, number) for number in range(20)][-1].result(LIMIT) == 19
    assert counts(pool.metrics) == {"succeeded": 20, "failed": 3, "timed_out": 3}


# Beginning.


def test_the_initializer_runs_in_each_worker() -> None:
    local = threading.local()
    seen: list[str] = []

    def begin(*args: str) -> None:
        local.args = args
        seen.append(threading.current_thread().name)

    def look() -> Any:
        barrier.wait(LIMIT)
        return local.args

    barrier = threading.Barrier(2)
    with thread_pool(workers=2, initializer=begin, initargs=["a", "b"]) as pool:
        futures = [pool.submit(look) for _ in range(6)]
        assert [future.result(LIMIT) for future in futures] == [("a", "b")] * 6
    assert sorted(seen) == ["pool-1", "pool-2"]


def test_recycled_workers_are_initialized_too() -> None:
    seen: list[int] = []
    with thread_pool(workers=1, max_jobs_per_worker=1, initializer=partial(seen.append, 1)) as pool:
        for number in range(5):
            assert pool.submit(echo, number).result(LIMIT) == number
    assert seen == [1] * 5


@pytest.mark.parametrize("error", [ValueError("no model"), SystemExit(3), KeyboardInterrupt()])
async def test_an_initializer_that_raises_breaks_the_pool(error: BaseException) -> None:
    """All who wait are told, those who come later too, and the pool can be shut down."""

    def begin() -> None:
        assert gate.wait(LIMIT)
        raise error

    gate = threading.Event()
    async with ThreadWorkerPool("pool", ThreadWorkerPoolConfig(workers=1, initializer=begin)) as pool:
        futures = [pool.submit(echo, number) for number in range(3)]
        outcomes: list[BaseException] = []

        async def call() -> None:
            try:
                await pool.asubmit(echo, 3)
            except WorkerPoolBrokenError as raised:
                outcomes.append(raised)

        async with anyio.create_task_group() as group:
            group.start_soon(call)
            await soon(lambda: pool.metrics.queued == 4)
            gate.set()
        outcomes += [await anyio.to_thread.run_sync(future.exception, LIMIT) for future in futures]
        with pytest.raises(WorkerPoolBrokenError) as caught:
            pool.submit(echo, 1)
        with pytest.raises(WorkerPoolBrokenError):
            await pool.asubmit(echo, 1)
        with pytest.raises(WorkerPoolBrokenError):
            pool.map(echo, [1])
        assert pool.state == "broken"
        for outcome in [*outcomes, caught.value]:
            assert str(outcome) == (
                f"workers of pool 'pool' cannot be started, so it takes no jobs any more: got {error!r}; "
                "mend that, and get another pool, whose name may be the same"
            )
            assert outcome.__cause__ is error
        assert pool.metrics.queued == 0
        assert counts(pool.metrics) == {"failed": 4}
    await soon(lambda: not threads_of("pool"))


def test_a_pool_that_breaks_later_ends_what_runs() -> None:
    """One worker is there, the second cannot be: the running job is not concerned."""
    hold = Hold()
    begun: list[int] = []

    def begin() -> None:
        begun.append(1)
        if len(begun) > 1:
            raise ValueError("no second one")

    with thread_pool(workers=2, initializer=begin) as pool:
        running = pool.submit(hold.stay, 1)
        hold.wait_until_begun()
        assert isinstance(pool.submit(echo, 2).exception(LIMIT), WorkerPoolBrokenError)
        assert pool.state == "broken"
        hold.release()
        assert running.result(LIMIT) == 1


def test_a_broken_pool_is_not_entered() -> None:
    pool = ThreadWorkerPool("pool", ThreadWorkerPoolConfig(initializer=lambda: 1 / 0))
    assert isinstance(pool.submit(echo, 1).exception(LIMIT), WorkerPoolBrokenError)
    with pytest.raises(WorkerPoolClosedError), pool:
        raise AssertionError
    until(lambda: not threads_of("pool"))


def test_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any worker the pool is broken."""

    def refuse(*args: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(interop_module, "start_thread", refuse)
    with thread_pool(workers=1) as pool:
        error = pool.submit(echo, 1).exception(LIMIT)
        assert isinstance(error, WorkerPoolBrokenError)
        assert "can't start new thread" in str(error)


def test_no_further_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are there do the work."""

    def refuse(*args: object) -> None:
        raise RuntimeError("can't start new thread")

    hold = Hold()
    with thread_pool(workers=2) as pool:
        first = pool.submit(hold.stay, 1)
        hold.wait_until_begun()
        with monkeypatch.context() as patch:
            patch.setattr(interop_module, "start_thread", refuse)
            second = pool.submit(echo, 2)
        assert pool.state == "open"
        assert pool.metrics.workers == 1
        third = pool.submit(echo, 3)
        assert [second.result(LIMIT), third.result(LIMIT)] == [2, 3], "there are threads again"
        hold.release()
        assert first.result(LIMIT) == 1


# What is counted.


async def test_everything_is_counted_once() -> None:
    hold = Hold()
    with thread_pool(workers=1, max_queue_size=3) as pool:
        assert pool.metrics == type(pool.metrics)(
            queued=0,
            running=0,
            workers=0,
            succeeded=0,
            failed=0,
            timed_out=0,
            cancelled=0,
            crashed=0,
            abandoned=0,
            rejected=0,
            wait_histogram=(0,) * 13,
            run_histogram=(0,) * 13,
        )
        running = pool.submit(hold.stay)
        await hold.begins()
        late = pool.submit(echo, 1, timeout=SOON)
        failing = pool.submit(int, "x")
        cancelled = pool.submit(echo, 2)
        with pytest.raises(WorkerPoolFullError):
            pool.submit(echo, 3)
        assert (pool.metrics.queued, pool.metrics.running, pool.metrics.workers) == (3, 1, 1)
        cancelled.cancel()
        with pytest.raises(WorkerTimeoutError):
            await late
        hold.release()
        await running
        with pytest.raises(ValueError, match="invalid literal"):
            await failing
        metrics = pool.metrics
        expected = {"succeeded": 1, "failed": 1, "timed_out": 1, "cancelled": 1, "rejected": 1}
        assert counts(metrics) == expected
        assert (metrics.queued, metrics.running, metrics.abandoned, metrics.crashed) == (0, 0, 0, 0)
        assert sum(metrics.wait_histogram) == 2, "those that began"
        assert sum(metrics.run_histogram) == 2


async def test_histograms() -> None:
    """Each duration is counted below the first bound that it does not exceed."""
    hold = Hold()
    with thread_pool(workers=1) as pool:
        bounds = pool.metrics.histogram_bounds
        first = pool.submit(hold.stay)
        await hold.begins()
        second = pool.submit(echo, 1)
        with pytest.raises(TimeoutError):
            await anyio.to_thread.run_sync(first.result, 0.04)
        hold.release()
        await second
        metrics = pool.metrics
        assert len(metrics.wait_histogram) == len(metrics.run_histogram) == len(bounds) + 1
        above = next(index for index, bound in enumerate(bounds) if bound > 0.04)
        assert sum(metrics.wait_histogram[above:]) >= 1, "the second waited"
        assert sum(metrics.run_histogram[above:]) >= 1, "the first ran"
        assert sum(metrics.wait_histogram) == sum(metrics.run_histogram) == 2


# Wrong settings.


@pytest.mark.parametrize("config", [WorkerPoolConfig, ThreadWorkerPoolConfig])
@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("workers", 0, "a whole number, 1 or more: got 0; use a whole number"),
        ("workers", 1.5, "a whole number, 1 or more: got 1.5; use a whole number"),
        ("workers", True, "a whole number, 1 or more: got True; use a whole number"),
        ("workers", "2", "a whole number, 1 or more: got '2'; use a whole number"),
        ("max_queue_size", 0, "a whole number, 1 or more: got 0; use a whole number"),
        ("max_queue_size", None, "a whole number, 1 or more: got None; use a whole number"),
        ("task_timeout", 0, "a number of seconds, more than 0: got 0; use None for no limit"),
        ("task_timeout", float("nan"), "a number of seconds, more than 0: got nan; use None for no limit"),
        ("idle_timeout", -1, "a number of seconds, 0 or more: got -1; use None for no limit"),
        ("shutdown_timeout", -0.5, "a number of seconds, 0 or more: got -0.5; use None for no limit"),
        ("shutdown_timeout", "1", "a number of seconds, 0 or more: got '1'; use None for no limit"),
    ],
)
def test_wrong_settings(config: type[WorkerPoolConfig], name: str, value: Any, text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        config(**{name: value})
    assert str(caught.value) == f"{name} of a worker pool must be {text}"
    assert caught.value.details["name"] == name


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("max_abandoned", -1, "must be a whole number, 0 or more: got -1; use a whole number"),
        ("max_jobs_per_worker", 0, "must be a whole number, 1 or more: got 0; use a whole number"),
        ("initializer", 5, "must be a function: got 5; pass one, or None"),
    ],
)
def test_wrong_settings_of_threads(name: str, value: Any, text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        ThreadWorkerPoolConfig(**{name: value})
    assert str(caught.value) == f"{name} of a worker pool {text}"


def test_waiting_for_room_ends_with_the_timeout_or_with_the_pool() -> None:
    hold = Hold()
    with thread_pool(workers=1, max_queue_size=1) as pool:
        pool.submit(hold.stay)
        hold.wait_until_begun()
        pool.submit(echo, 1)
        view = pool.options(when_full="wait")
        with pytest.raises(WorkerTimeoutError, match="was not begun within its timeout") as caught:
            view.submit(echo, 2, timeout=SOON)
        assert caught.value.details["phase"] == "queued"
        caller = Caller(lambda: view.submit(echo, 3))
        until(lambda: pool._waiting_for_space)
        ender = Caller(lambda: anyio.run(pool.shutdown))
        with pytest.raises(WorkerPoolClosedError):
            caller.join()
        hold.release()
        ender.join()
    assert counts(pool.metrics) == {"succeeded": 2, "timed_out": 1}
