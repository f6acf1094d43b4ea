"""Jobs, callbacks and initializers that harm whoever looks at them: they cost themselves, and no other job."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any
from unittest.mock import MagicMock, Mock

import anyio
import pytest

from agentcore import (
    ConfigurationError,
    ThreadWorkerPool,
    ThreadWorkerPoolConfig,
    WorkerPoolBrokenError,
    WorkerPoolClosedError,
    WorkerTimeoutError,
)
from agentcore import _interop as interop
from tests.pools.thread_helpers import LIMIT, Hold, heard, thread_pool, until


class Proxy:
    """As the proxy of a web framework outside of its request."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("working outside of context")

    def __call__(self) -> int:
        return 7


class Unspeakable(Exception):
    """An error that cannot be shown."""

    def __repr__(self) -> str:
        raise ValueError("no repr")

    __str__ = __repr__


HOSTILE: dict[str, Callable[[], Any]] = {
    "mock": lambda: Mock(return_value=7),
    "magic mock": lambda: MagicMock(return_value=7),
    "proxy": Proxy,
}
hostile = pytest.mark.parametrize("kind", HOSTILE)


@hostile
@pytest.mark.parametrize("timeout", [None, LIMIT])
def test_function_without_a_name(kind: str, timeout: float | None) -> None:
    with thread_pool(workers=1) as pool:
        for _ in range(2):
            assert 7 == pool.submit(HOSTILE[kind](), timeout=timeout).result(LIMIT)
        assert 3 == pool.submit(len, "abc").result(LIMIT)


@hostile
@pytest.mark.anyio
async def test_function_without_a_name_that_is_awaited(kind: str) -> None:
    with thread_pool(workers=1) as pool:
        assert 7 == await pool.asubmit(HOSTILE[kind]())
        assert 7 == await pool.asubmit(HOSTILE[kind](), timeout=LIMIT)


@hostile
def test_function_without_a_name_that_comes_too_late(kind: str) -> None:
    """Nor does the thread that watches deadlines mind."""
    hold = Hold()
    with thread_pool(workers=1) as pool:
        pool.submit(hold.stay)
        for function in (HOSTILE[kind](), len):
            with pytest.raises(WorkerTimeoutError):
                pool.submit(function, timeout=0.01).result(LIMIT)
        hold.release()


@hostile
def test_function_without_a_name_that_is_taken_back(kind: str) -> None:
    hold = Hold()
    with thread_pool(workers=1) as pool:
        pool.submit(hold.stay)
        assert pool.submit(HOSTILE[kind]()).cancel()
        hold.release()
        assert 3 == pool.submit(len, "abc").result(LIMIT)


def test_initializer_with_an_error_that_cannot_be_shown() -> None:
    hold = Hold()

    def initialize() -> None:
        hold.stay()
        raise Unspeakable

    pool = ThreadWorkerPool("unspeakable", ThreadWorkerPoolConfig(workers=1, initializer=initialize))
    futures = [pool.submit(len, "abc") for _ in range(3)]
    hold.release()
    for future in futures:
        assert isinstance(future.exception(LIMIT), WorkerPoolBrokenError)


def test_broken_while_it_drains_is_closed_at_the_end() -> None:
    hold = Hold()

    def initialize() -> None:
        hold.stay()
        raise Unspeakable

    with ThreadWorkerPool("drains", ThreadWorkerPoolConfig(workers=1, initializer=initialize)) as pool:
        future = pool.submit(len, "abc")
        ending = threading.Thread(target=pool.__exit__, args=(None, None, None))
        ending.start()
        until(lambda: pool.state == "draining")
        hold.release()
        ending.join(LIMIT)
        assert isinstance(future.exception(LIMIT), WorkerPoolBrokenError)
        assert "closed" == pool.state


def leave(_: Future[Any]) -> None:
    """Be a callback that thinks it may end the program."""
    raise SystemExit(1)


def test_callback_that_exits() -> None:
    """It is logged; the worker goes on."""
    hold = Hold()
    with thread_pool(workers=1) as pool:
        first = pool.submit(hold.stay)
        first.add_done_callback(leave)
        second = pool.submit(len, "abc")
        hold.release()
        assert 3 == second.result(LIMIT)


@pytest.mark.anyio
async def test_callback_that_exits_while_others_are_taken_back() -> None:
    hold = Hold()
    pool = ThreadWorkerPool("cancelled", ThreadWorkerPoolConfig(workers=1))
    pool.submit(hold.stay)
    await hold.begins()
    second, third = pool.submit(len, ""), pool.submit(len, "")
    second.add_done_callback(leave)
    await pool.shutdown(wait=False)
    assert second.cancelled()
    assert third.cancelled()
    hold.release()
    await pool.shutdown()


class Slow:
    """A callback that takes its time."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.may_end = threading.Event()

    def __call__(self, _: Future[Any]) -> None:
        self.begun.set()
        assert self.may_end.wait(LIMIT)


def test_job_behind_a_callback_goes_to_another_worker() -> None:
    """Which the callback may wait for."""
    holds, slow = [Hold(), Hold()], Slow()
    with thread_pool(workers=2) as pool:
        first, _ = [pool.submit(hold.stay) for hold in holds]
        first.add_done_callback(slow)
        behind = pool.submit(len, "abc")
        holds[0].release()
        assert slow.begun.wait(LIMIT)
        holds[1].release()
        assert 3 == behind.result(LIMIT)
        slow.may_end.set()


def test_job_behind_a_callback_can_be_taken_back() -> None:
    """It has not begun."""
    hold, slow = Hold(), Slow()
    with thread_pool(workers=1) as pool:
        pool.submit(hold.stay).add_done_callback(slow)
        behind = pool.submit(len, "abc")
        hold.release()
        assert slow.begun.wait(LIMIT)
        assert behind.cancel()
        slow.may_end.set()


def test_job_behind_the_callback_of_one_that_came_too_late() -> None:
    hold, slow = Hold(), Slow()
    with thread_pool(workers=1) as pool:
        pool.submit(hold.stay)
        pool.submit(len, "", timeout=0.01).add_done_callback(slow)
        behind = pool.submit(len, "abc")
        assert slow.begun.wait(LIMIT)
        hold.release()
        slow.may_end.set()
        assert 3 == behind.result(LIMIT)


def test_no_thread_when_there_are_only_abandoned_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool says so, instead of keeping a job that nobody will ever begin."""
    hold = Hold()
    with thread_pool(workers=1) as pool:
        with pytest.raises(WorkerTimeoutError):
            pool.submit(hold.stay, timeout=0.05).result(LIMIT)
        with monkeypatch.context() as patch:
            patch.setattr(interop, "start_thread", Mock(side_effect=RuntimeError("can't start new thread")))
            assert isinstance(pool.submit(len, "abc").exception(LIMIT), WorkerPoolBrokenError)
        hold.release()


@pytest.mark.parametrize("seconds", [1e10, 1e17])
def test_more_seconds_than_can_be_waited_for(seconds: float) -> None:
    with thread_pool(workers=1) as pool:
        with pytest.raises(ConfigurationError, match=r"timeout of a worker pool must be at most 1e\+09 seconds: got"):
            pool.submit(len, "abc", timeout=seconds)
        with pytest.raises(ConfigurationError, match="timeout of a worker pool must be at most"):
            pool.map(len, ["abc"], timeout=seconds)
        assert 3 == pool.submit(len, "abc", timeout=1e9).result(LIMIT)
    for name in ("task_timeout", "idle_timeout", "shutdown_timeout"):
        with pytest.raises(ConfigurationError, match=f"{name} of a worker pool must be at most"):
            ThreadWorkerPoolConfig(**{name: seconds})


def test_no_time_at_all_for_items() -> None:
    """The shorter of two limits counts, also if it is 0."""
    with thread_pool(workers=1) as pool:
        (error,) = pool.options(timeout=0).map(len, ["abc"], timeout=LIMIT)
        assert isinstance(error, WorkerTimeoutError)


@pytest.mark.anyio
async def test_items_that_use_another_pool_which_is_closed() -> None:
    """That is the error of one item."""
    other = ThreadWorkerPool("other", ThreadWorkerPoolConfig(workers=1))
    await other.shutdown()

    def use(number: int) -> int:
        return other.submit(abs, number).result(LIMIT) if number == 1 else number

    with thread_pool(workers=2) as pool:
        first, second, third = await pool.amap(use, range(3))
        assert (0, 2) == (first, third)
        assert isinstance(second, WorkerPoolClosedError)


@pytest.mark.anyio
async def test_wait_that_a_scope_ends_is_no_deadlock() -> None:
    """A job of a full pool gives up by itself, and its caller learns nothing of it."""

    async def give_up() -> bool:
        with anyio.move_on_after(0.01) as scope:
            await pool.asubmit(len, "abc")
        return scope.cancelled_caught

    ended = threading.Event()

    def job() -> bool:
        try:
            return anyio.run(give_up)
        finally:
            ended.set()

    with thread_pool(workers=1) as pool:
        future = pool.submit(job)
        await heard(ended)
        assert await future
