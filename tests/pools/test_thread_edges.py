"""What once went wrong with pools of threads, and what is at their edges."""

from __future__ import annotations

import gc
import itertools
import threading
import weakref
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
import pytest

from agentcore import (
    AgentRuntime,
    ConfigurationError,
    ThreadWorkerPool,
    ThreadWorkerPoolConfig,
    WorkerPoolBrokenError,
    WorkerPoolDeadlockError,
    WorkerPoolError,
    WorkerTimeoutError,
)
from tests.pools.thread_helpers import Caller, Hold, guarded, soon, until

pytestmark = pytest.mark.anyio
BACKENDS = pytest.mark.parametrize("backend", ["asyncio", "trio"])


def echo(value: Any) -> Any:
    return value


def made(**config: Any) -> ThreadWorkerPool:
    return ThreadWorkerPool("pool", ThreadWorkerPoolConfig(**{"workers": 1, **config}))


# What is raised in a block for results comes out as it is.


async def test_an_error_in_the_block_comes_out_as_it_is() -> None:
    async with made() as pool:
        with pytest.raises(LookupError, match="mine"):
            async with pool.as_completed(echo, itertools.count()) as results:
                async for _ in results:
                    raise LookupError("mine")
        assert (pool.metrics.queued, pool.metrics.running) == (0, 0)


@pytest.mark.parametrize("error", [StopAsyncIteration(), KeyboardInterrupt(), SystemExit(1)])
async def test_whatever_is_raised_in_the_block(error: BaseException) -> None:
    async with made() as pool:
        with pytest.raises(type(error)) as caught:
            async with pool.as_completed(echo, itertools.count()):
                raise error
        assert caught.value is error


# A job that waits for another one of its own full pool is refused, also by a worker that has only just begun.


def test_a_job_waits_for_another_one_of_its_full_new_pool() -> None:
    for _ in range(200):
        pool = made(shutdown_timeout=0)
        inner: list[Any] = []

        def job(pool: ThreadWorkerPool = pool, inner: list[Any] = inner) -> Any:
            future = pool.submit(echo, 1)
            try:
                return future.result()
            except WorkerPoolDeadlockError as error:
                inner.append(error)
                raise

        future = pool.submit(job)
        until(future.done)
        assert inner


# A job that calls back into a loop that is blocked for it is refused.


@BACKENDS
def test_a_job_calls_back_into_a_loop_that_waits_for_it(backend: str) -> None:
    async def answer() -> int:
        return 1

    async def main() -> None:
        async with AgentRuntime(grace=0) as runtime:
            pool = runtime.pool("pool", "thread")
            with pytest.raises(WorkerPoolDeadlockError):
                pool.submit(partial(runtime.from_thread, answer)).result()  # type: ignore[union-attr]

    guarded(partial(anyio.run, main, backend=backend))


# A thread that hangs holds up no end for longer than its limit, replaced or not.


@pytest.mark.parametrize("how", ["shutdown", "with", "runtime"])
def test_a_hung_thread_that_was_not_replaced(how: str) -> None:
    hold = Hold()

    async def main() -> None:
        if how == "runtime":
            async with AgentRuntime(grace=0.05) as runtime:
                pool = runtime.pool("pool", "thread", ThreadWorkerPoolConfig(workers=1, max_abandoned=0))
                with pytest.raises(WorkerTimeoutError):
                    await pool.asubmit(hold.stay, timeout=0.05)
            return
        pool = made(max_abandoned=0, shutdown_timeout=0.05)
        with pytest.raises(WorkerTimeoutError):
            await pool.asubmit(hold.stay, timeout=0.05)
        if how == "with":
            with pool:
                pass
        else:
            await pool.shutdown(timeout=0.05)

    try:
        guarded(partial(anyio.run, main))
    finally:
        hold.release()


# Nor does an initializer that hangs.


def test_an_initializer_that_hangs() -> None:
    hold = Hold()
    pool = made(initializer=hold.stay)
    future = pool.submit(echo, 1)
    try:
        report = guarded(partial(anyio.run, partial(pool.shutdown, timeout=0.05)))
        assert report.cut_short == ("echo",)
        assert future.done()
    finally:
        hold.release()


# A block that is left in a cancelled scope leaves nothing behind.


async def test_a_block_that_is_left_in_a_cancelled_scope() -> None:
    pool = made()
    with anyio.CancelScope() as scope:
        scope.cancel()
        async with pool:
            pool.submit(echo, 1)
    assert pool.state != "open"
    await soon(lambda: pool.state == "closed")


# Who waits for room gets what becomes free by a cancellation, and learns that the pool is broken.


def test_room_by_a_cancellation() -> None:
    pool, hold = made(max_queue_size=1), Hold()
    pool.submit(hold.stay)
    hold.wait_until_begun()
    queued = pool.submit(echo, 1)
    caller = Caller(lambda: pool.options(when_full="wait").submit(echo, 2))
    until(lambda: pool._waiting_for_space)
    assert queued.cancel()
    try:
        assert caller.join() is not None
    finally:
        hold.release()


def test_no_room_in_a_pool_that_breaks() -> None:
    hold = Hold()

    def begin() -> None:
        hold.stay()
        raise ValueError

    pool = made(max_queue_size=1, initializer=begin)
    pool.submit(echo, 1)
    caller = Caller(lambda: pool.options(when_full="wait").submit(echo, 2))
    until(lambda: pool._waiting_for_space)
    hold.release()
    with pytest.raises(WorkerPoolBrokenError):
        caller.join()


# A job of a full pool is refused in whatever way it waits for that pool.


def test_a_job_waits_for_room_in_its_own_pool() -> None:
    pool = made(max_queue_size=1)

    def job() -> None:
        view = pool.options(when_full="wait")
        view.submit(echo, 1)
        view.submit(echo, 2)

    with pytest.raises(WorkerPoolError):
        guarded(pool.submit(job).result)


@BACKENDS
def test_a_job_waits_for_the_end_of_its_own_pool(backend: str) -> None:
    pool = made()
    with pytest.raises(WorkerPoolDeadlockError):
        guarded(pool.submit(partial(anyio.run, pool.shutdown, backend=backend)).result)


@BACKENDS
@pytest.mark.parametrize("way", ["asubmit", "future", "amap"])
def test_a_job_awaits_another_one_of_its_full_pool(backend: str, way: str) -> None:
    pool = made()

    async def main() -> Any:
        if way == "asubmit":
            return await pool.asubmit(echo, 1)
        return await (pool.submit(echo, 1) if way == "future" else pool.amap(echo, [1]))

    with pytest.raises(WorkerPoolDeadlockError):
        guarded(pool.submit(partial(anyio.run, main, backend=backend)).result)


# Nothing is begun any more when the time of a `map` is over.


@pytest.mark.parametrize("way", ["map", "amap"])
async def test_nothing_begins_when_the_time_is_over(way: str) -> None:
    hold, began = Hold(), list[int]()

    def work(number: int) -> Any:
        began.append(number)
        return hold.stay(number)

    async with made() as pool:
        if way == "map":
            outcomes = await anyio.to_thread.run_sync(pool.map, work, range(10), 0.1)
        else:
            outcomes = await pool.amap(work, range(10), 0.1)
        try:
            assert [one.details["phase"] for one in outcomes] == ["running"] + ["queued"] * 9
            assert began == [0]
        finally:
            hold.release()


# A timeout ends a `map` over items without end.


@pytest.mark.parametrize("way", ["map", "amap"])
def test_endless_items_and_a_timeout(way: str) -> None:
    pool, drawn = made(), itertools.count()
    items = itertools.takewhile(lambda _: not enough.is_set(), drawn)
    enough = threading.Event()
    run = partial(pool.map, echo, items, 0.05) if way == "map" else partial(anyio.run, pool.amap, echo, items, 0.05)
    try:
        guarded(run)
    finally:
        enough.set()


# What drawing the items raises comes out as it is.


async def test_items_that_raise() -> None:
    def draw() -> Any:
        yield 1
        raise LookupError("no more")

    async with made() as pool:
        with pytest.raises(LookupError, match="no more"):
            await pool.amap(echo, draw())
        with pytest.raises(LookupError, match="no more"):
            async with pool.as_completed(echo, draw()) as results:
                async for _ in results:
                    pass


# A pool that is broken takes no items.


async def test_a_broken_pool_takes_no_items() -> None:
    pool = made(initializer=lambda: 1 / 0)
    assert isinstance(pool.submit(echo, 1).exception(), WorkerPoolBrokenError)
    with pytest.raises(WorkerPoolBrokenError):
        await pool.amap(echo, [1, 2])


# The report names what was cancelled.


async def test_the_report_names_what_was_cancelled() -> None:
    pool, hold = made(), Hold()
    pool.submit(hold.stay)
    await hold.begins()
    pool.submit(echo, 1)
    report = await pool.shutdown(wait=False)
    hold.release()
    assert (report.drained, report.cut_short) == (False, ("echo",))


# An error that was raised to a caller is gone without the collector of garbage.


@pytest.mark.parametrize("way", ["result", "result with a timeout", "await"])
def test_an_error_is_gone_without_the_collector(way: str) -> None:
    refs: list[weakref.ref[BaseException]] = []

    class Boom(Exception):
        def __init__(self) -> None:
            refs.append(weakref.ref(self))

    def boom() -> None:
        raise Boom

    async def main() -> None:
        try:
            await pool.submit(boom)
        except Boom:
            pass

    with made() as pool:
        gc.disable()
        try:
            if way == "await":
                anyio.run(main)
            else:
                try:
                    pool.submit(boom).result(2 if way.endswith("timeout") else None)
                except Boom:
                    pass
            until(lambda: refs[0]() is None)
        finally:
            gc.enable()


# Arguments are checked.


def test_abandon_on_cancel_is_a_truth_value() -> None:
    with made() as pool, pytest.raises(ConfigurationError, match="abandon_on_cancel of a job must be True or False"):
        pool.options(abandon_on_cancel="yes")  # type: ignore[arg-type]


@pytest.mark.parametrize("call", ["map", "as_completed"])
def test_the_text_speaks_of_the_pool(call: str) -> None:
    with made() as pool, pytest.raises(ConfigurationError) as caught:
        getattr(pool, call)(echo, [1], timeout=-1)
    assert "agent" not in str(caught.value)


async def test_a_coroutine_function_is_no_job_of_a_thread() -> None:

    async def work() -> int:
        return 1

    async with made() as pool:
        with pytest.raises((ConfigurationError, WorkerPoolError)):
            (await pool.asubmit(work)).close()
