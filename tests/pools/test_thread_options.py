"""Thread pools: their settings, urgency and back-pressure, and what is refused."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from agentcore import (
    ConfigurationError,
    TaskPriority,
    ThreadWorkerPool,
    ThreadWorkerPoolConfig,
    WorkerPoolConfig,
    WorkerPoolError,
    WorkerPoolFullError,
    WorkerPoolType,
)
from tests.pools.test_thread import add
from tests.pools.thread_helpers import LIMIT, Caller, Hold, counts, thread_pool, until

pytestmark = pytest.mark.anyio


# The pool itself.


def test_what_it_is() -> None:
    with thread_pool("parsers", workers=3) as pool:
        assert (pool.name, pool.pool_type, pool.state) == ("parsers", WorkerPoolType.THREAD, "open")
        assert isinstance(pool.config, ThreadWorkerPoolConfig)
        assert pool.config.workers == 3
        assert repr(pool) == "<ThreadWorkerPool 'parsers' open>"
    assert repr(pool) == "<ThreadWorkerPool 'parsers' closed>"


def test_a_plain_config_is_taken() -> None:
    pool = ThreadWorkerPool("plain", WorkerPoolConfig(workers=2, max_queue_size=3, task_timeout=4, idle_timeout=None))
    assert isinstance(pool.config, ThreadWorkerPoolConfig)
    assert (pool.config.workers, pool.config.max_queue_size, pool.config.task_timeout) == (2, 3, 4)
    assert ThreadWorkerPool("default").config == ThreadWorkerPoolConfig()
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert ThreadWorkerPoolConfig().size == available


def test_no_more_workers_than_needed_or_allowed() -> None:
    holds = [Hold() for _ in range(5)]
    with thread_pool(workers=3) as pool:
        assert pool.metrics.workers == 0
        for number in range(4):
            pool.submit(add, number).result(LIMIT)
            until(lambda: pool.metrics.running == 0)
        for hold in holds:
            pool.submit(hold.stay)
        for hold in holds[:3]:
            hold.wait_until_begun()
        assert (pool.metrics.workers, pool.metrics.running, pool.metrics.queued) == (3, 3, 2)
        assert not holds[3].begun.is_set()
        for hold in holds:
            hold.release()


# Urgency and back-pressure.


@pytest.mark.parametrize("way", ["submit", "asubmit"])
async def test_the_more_urgent_goes_first(way: str) -> None:
    hold, order = Hold(), list[str]()
    given = [TaskPriority.LOW, TaskPriority.NORMAL, TaskPriority.HIGH, TaskPriority.CRITICAL] * 2
    with thread_pool(workers=1) as pool:
        pool.submit(hold.stay)
        await hold.begins()
        async with anyio.create_task_group() as group:
            for number, priority in enumerate(given):
                view, text = pool.options(priority=priority), f"{priority.name} {number // 4}"
                if way == "submit":
                    view.submit(order.append, text)
                else:
                    group.start_soon(view.asubmit, order.append, text)
                    await anyio.wait_all_tasks_blocked()
            hold.release()
    expected = [f"{name} {number}" for name in ("CRITICAL", "HIGH", "NORMAL", "LOW") for number in (0, 1)]
    assert order == expected


def test_submit_is_refused_when_too_many_wait() -> None:
    hold = Hold()
    with thread_pool(workers=1, max_queue_size=2) as pool:
        pool.submit(hold.stay)
        hold.wait_until_begun()
        futures = [pool.submit(add, number) for number in range(2)]
        for refused in (pool.submit, pool.options(when_full="raise").submit):
            with pytest.raises(WorkerPoolFullError) as caught:
                refused(add, 3)
            assert str(caught.value) == (
                "worker pool 'pool' lets no more than max_queue_size jobs wait: got one more than 2; "
                "try later, use asubmit, which waits, or raise max_queue_size"
            )
            assert caught.value.details == {"pool": "pool", "max_queue_size": 2}
        assert pool.metrics.rejected == 2
        assert futures[0].cancel(), "that makes room"
        again = pool.submit(add, 4)
        hold.release()
        assert [futures[1].result(LIMIT), again.result(LIMIT)] == [1, 4]
        assert counts(pool.metrics) == {"succeeded": 3, "cancelled": 1, "rejected": 2}


async def test_asubmit_is_refused_on_demand() -> None:
    hold = Hold()
    with thread_pool(workers=1, max_queue_size=1) as pool:
        pool.submit(hold.stay)
        await hold.begins()
        pool.submit(add, 1)
        with pytest.raises(WorkerPoolFullError):
            await pool.options(when_full="raise").asubmit(add, 2)
        hold.release()


def test_submit_waits_for_room_on_demand() -> None:
    hold = Hold()
    with thread_pool(workers=1, max_queue_size=1) as pool:
        pool.submit(hold.stay)
        hold.wait_until_begun()
        pool.submit(add, 1)
        caller = Caller(lambda: pool.options(when_full="wait").submit(add, 2))
        until(lambda: pool._waiting_for_space)
        assert not caller.is_over
        hold.release()
        assert caller.join().result(LIMIT) == 2
        assert pool.metrics.rejected == 0


def test_many_wait_for_room() -> None:
    """Never do more jobs wait than are allowed to, and each gets its turn."""
    with thread_pool(workers=2, max_queue_size=1) as pool:
        view, done = pool.options(when_full="wait"), list[int]()
        most = [0]

        def put(first: int) -> None:
            for number in range(first, first + 50):
                view.submit(done.append, number)
                most[0] = max(most[0], pool.metrics.queued)

        for caller in [Caller(functools.partial(put, 50 * number)) for number in range(6)]:
            caller.join()
        until(lambda: len(done) == 300)
    assert sorted(done) == list(range(300))
    assert most == [1]


async def test_submit_does_not_wait_for_room_in_a_loop() -> None:
    with thread_pool(workers=1) as pool, pytest.raises(WorkerPoolError) as caught:
        pool.options(when_full="wait").submit(add, 1)
    assert str(caught.value) == (
        "submit of worker pool 'pool' must not wait in an event loop, which it would block: got when_full='wait'; "
        "use `await pool.asubmit(...)` there"
    )


def test_options_add_up() -> None:
    with thread_pool(workers=1) as pool:
        view = pool.options(priority=TaskPriority.HIGH).options(timeout=5).options(when_full="raise")
        again = view.options(abandon_on_cancel=True, timeout=6)
        text = repr(again)
        assert text.startswith("<WorkerPoolView of <ThreadWorkerPool 'pool' open> ")
        for part in ("HIGH", "timeout=6", "when_full='raise'", "abandon_on_cancel=True"):
            assert part in text
        assert "timeout=5" in repr(view), "which has not changed"
        assert again.submit(add, 1).result(LIMIT) == 1


# Wrong arguments.


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda pool: ThreadWorkerPool(""),
            "name of a worker pool must be a string that is not empty: got ''; give it one",
        ),
        (
            lambda pool: ThreadWorkerPool(3),
            "name of a worker pool must be a string that is not empty: got 3; give it one",
        ),
        (
            lambda pool: ThreadWorkerPool("x", {"workers": 1}),
            (
                "config of worker pool 'x' must be a WorkerPoolConfig or a ThreadWorkerPoolConfig: got {'workers': 1}; "
                "write ThreadWorkerPoolConfig(workers=...)"
            ),
        ),
        (
            lambda pool: pool.submit(5),
            "a job of worker pool 'pool' takes a function: got 5; pass a function and its arguments",
        ),
        (
            lambda pool: pool.options(timeout=1).submit(None),
            "a job of worker pool 'pool' takes a function: got None; pass a function and its arguments",
        ),
        (
            lambda pool: pool.options(priority=2),
            "priority of a job must be a TaskPriority: got 2; write TaskPriority.HIGH",
        ),
        (
            lambda pool: pool.options(when_full="drop"),
            "when_full of a job must be 'raise' or 'wait': got 'drop'; use 'wait' for back-pressure",
        ),
        (
            lambda pool: pool.map(None, [1]),
            "func of a worker pool takes a function: got None; pass a function and its arguments",
        ),
        (lambda pool: pool.map(str, 5), "items of a worker pool must be iterable: got 5; pass a list"),
        (
            lambda pool: pool.as_completed(str, 5),
            "items of a worker pool must be a plain iterable: got 5; pass a list",
        ),
        (
            lambda pool: pool.as_completed("str", [5]),
            "func of a worker pool takes a function: got 'str'; pass a function and its arguments",
        ),
    ],
)
def test_wrong_arguments(call: Callable[[Any], Any], text: str) -> None:
    """Each is refused where it is given, with the value, the rule and what to do."""
    with thread_pool(workers=1) as pool:
        with pytest.raises(ConfigurationError) as caught:
            call(pool)
        assert str(caught.value) == text
        assert pool.metrics.workers == 0


@pytest.mark.parametrize("timeout", [-1, float("nan"), float("inf"), "1", True])
def test_timeouts_are_numbers(timeout: Any) -> None:
    with thread_pool(workers=1) as pool:
        for call in (
            lambda: pool.submit(add, 1, timeout=timeout),
            lambda: pool.options(timeout=timeout),
            lambda: pool.map(str, [1], timeout=timeout),
            lambda: pool.as_completed(str, [1], timeout=timeout),
        ):
            with pytest.raises(
                ConfigurationError, match=r"^timeout of .* must be a number of seconds, 0 or more: got "
            ):
                call()


async def test_wrong_arguments_of_asubmit() -> None:
    with thread_pool(workers=1) as pool:
        with pytest.raises(ConfigurationError, match="takes a function: got 5"):
            await pool.asubmit(5)  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match="must be a number of seconds, 0 or more: got -1"):
            await pool.asubmit(add, 1, timeout=-1)
        with pytest.raises(ConfigurationError, match="must be a number of seconds, 0 or more: got -1"):
            await pool.shutdown(timeout=-1)
        assert pool.state == "open"


async def test_a_coroutine_in_place_of_its_function() -> None:
    """It is closed, so that Python does not complain of it as well."""

    async def work() -> None:
        raise AssertionError

    with thread_pool(workers=1) as pool, pytest.raises(ConfigurationError, match=r"write work, not work\(\)"):
        pool.submit(work())  # type: ignore[arg-type]
