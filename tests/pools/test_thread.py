"""Thread pools: jobs in, outcomes out, from event loops and from threads."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import functools
import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from agentcore import (
    PoolFuture,
    WorkerPoolError,
)
from tests.pools.thread_helpers import AWHILE, LIMIT, SOON, Caller, Hold, counts, guarded, heard, thread_pool, until

pytestmark = pytest.mark.anyio

colour: contextvars.ContextVar[str] = contextvars.ContextVar("colour", default="none")


def add(first: int, second: int = 0) -> int:
    return first + second


def fail(*args: Any) -> None:
    raise ValueError("boom", *args)


class Thing:
    """Can be referred to weakly."""


# The future.


def test_submit_gives_a_future_of_the_standard_library() -> None:
    with thread_pool(workers=1) as pool:
        future = pool.submit(add, 1, second=2)
        assert isinstance(future, PoolFuture)
        assert isinstance(future, concurrent.futures.Future)
        assert future.result(LIMIT) == 3
        assert future.done()
        assert not future.running()
        assert not future.cancelled()
        assert future.exception() is None


def test_a_job_runs_in_a_thread_of_the_pool() -> None:
    with thread_pool("workshop", workers=1) as pool:
        name, daemon = pool.submit(
            lambda: (threading.current_thread().name, threading.current_thread().daemon)
        ).result()
    assert name == "workshop-1"
    assert daemon


def test_a_future_tells_when_it_runs() -> None:
    hold = Hold()
    with thread_pool(workers=1) as pool:
        first, second = pool.submit(hold.stay, 1), pool.submit(add, 2)
        hold.wait_until_begun()
        assert first.running()
        assert not first.cancel()
        assert not second.running()
        assert not second.done()
        hold.release()
        assert [first.result(LIMIT), second.result(LIMIT)] == [1, 2]


def test_a_queued_job_is_cancelled_exactly() -> None:
    hold, seen = Hold(), list[int]()
    with thread_pool(workers=1) as pool:
        pool.submit(hold.stay)
        hold.wait_until_begun()
        future = pool.submit(seen.append, 1)
        assert future.cancel()
        assert future.cancel(), "a second time: still cancelled"
        assert future.cancelled()
        assert pool.metrics.queued == 0
        with pytest.raises(concurrent.futures.CancelledError):
            future.result(LIMIT)
        with pytest.raises(concurrent.futures.CancelledError):
            future.exception(LIMIT)
        hold.release()
        assert pool.submit(add, 4).result(LIMIT) == 4
        assert counts(pool.metrics) == {"succeeded": 2, "cancelled": 1}
    assert seen == []


def test_a_future_that_has_ended_is_not_cancelled() -> None:
    with thread_pool(workers=1) as pool:
        future = pool.submit(add, 1)
        assert future.result(LIMIT) == 1
        assert not future.cancel()
        assert counts(pool.metrics) == {"succeeded": 1}


def test_what_a_job_raises_comes_out() -> None:
    with thread_pool(workers=1) as pool:
        future = pool.submit(fail, 7)
        with pytest.raises(ValueError, match="boom") as caught:
            future.result(LIMIT)
        assert caught.value.args == ("boom", 7)
        assert future.exception() is caught.value
        assert "fail" in [entry.name for entry in caught.traceback], "where it was raised"
        assert counts(pool.metrics) == {"failed": 1}
        assert pool.submit(add, 1).result(LIMIT) == 1


def test_waiting_for_a_result_has_a_limit() -> None:
    hold = Hold()
    with thread_pool(workers=1) as pool:
        future = pool.submit(hold.stay, 5)
        with pytest.raises(TimeoutError):
            future.result(SOON)
        with pytest.raises(TimeoutError):
            future.exception(0)
        hold.release()
        assert future.result(LIMIT) == 5, "the job goes on"


def test_callbacks_and_the_helpers_of_the_standard_library() -> None:
    with thread_pool(workers=2) as pool:
        futures = [pool.submit(add, number) for number in range(20)]
        done, pending = concurrent.futures.wait(futures, LIMIT)
        assert (len(done), len(pending)) == (20, 0)
        assert {one.result() for one in concurrent.futures.as_completed(futures, LIMIT)} == set(range(20))
        told = threading.Event()
        futures[0].add_done_callback(lambda _: told.set())
        assert told.is_set()


async def test_a_future_can_be_awaited() -> None:
    with thread_pool(workers=1) as pool:
        future = pool.submit(add, 1)
        assert await future == 1
        assert await future == 1, "as often as one likes"
        failed = pool.submit(fail)
        with pytest.raises(ValueError, match="boom"):
            await failed
        with pytest.raises(ValueError, match="boom"):
            await failed


async def test_several_wait_for_one_future() -> None:
    hold, found = Hold(), list[int]()
    with thread_pool(workers=1) as pool:
        future = pool.submit(hold.stay, 9)

        async def wait() -> None:
            found.append(await future)

        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(wait)
            thread = Caller(lambda: future.result(LIMIT))
            await hold.begins()
            await anyio.wait_all_tasks_blocked()
            hold.release()
        assert await anyio.to_thread.run_sync(thread.join) == 9
    assert found == [9] * 5


@pytest.mark.parametrize("is_running", [False, True])
async def test_who_stops_awaiting_leaves_the_job_alone(is_running: bool) -> None:
    first, second = Hold(), Hold()
    with thread_pool(workers=1) as pool:
        future = pool.submit(first.stay, 1)
        await first.begins()
        if not is_running:
            future = pool.submit(second.stay, 2)
        with anyio.move_on_after(SOON) as scope:
            await future
        assert scope.cancelled_caught
        assert not future.done()
        first.release()
        second.release()
        assert await future == (1 if is_running else 2)
        assert pool.metrics.cancelled == 0


async def test_awaiting_a_cancelled_future() -> None:
    hold = Hold()
    with thread_pool(workers=1) as pool:
        pool.submit(hold.stay)
        await hold.begins()
        future = pool.submit(add, 1)

        async def wait() -> None:
            with pytest.raises(concurrent.futures.CancelledError):
                await future

        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            assert future.cancel()
        hold.release()


@pytest.mark.parametrize("done", [False, True])
async def test_awaiting_in_a_cancelled_scope_is_left_at_once(done: bool) -> None:
    hold = Hold()
    with thread_pool(workers=1) as pool:
        future = pool.submit(hold.stay, 1)
        if done:
            hold.release()
            await heard(hold.ended)
            until(future.done)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await future
        assert scope.cancelled_caught
        hold.release()


async def test_result_may_be_waited_for_in_the_loop_itself() -> None:
    """It blocks the loop, and the workers go on all the same, with deadlines too."""
    with thread_pool(workers=1) as pool:
        assert pool.submit(add, 1).result() == 1
        hold = Hold()
        with pytest.raises(TimeoutError, match="did not end within its timeout"):
            pool.submit(hold.stay, timeout=AWHILE).result()
        hold.release()


# asubmit.


async def test_asubmit_gives_the_result() -> None:
    with thread_pool(workers=1) as pool:
        assert await pool.asubmit(add, 1, second=2) == 3
        with pytest.raises(ValueError, match="boom") as caught:
            await pool.asubmit(fail, 1)
        assert caught.value.args == ("boom", 1)
        assert counts(pool.metrics) == {"succeeded": 1, "failed": 1}


async def test_asubmit_is_a_checkpoint() -> None:
    with thread_pool(workers=1) as pool, anyio.CancelScope() as scope:
        scope.cancel()
        await pool.asubmit(add, 1)
    assert scope.cancelled_caught
    assert sum(pool.metrics.wait_histogram) == 0, "no job was begun"


async def test_asubmit_is_never_refused() -> None:
    hold, results = Hold(), list[int]()
    with thread_pool(workers=1, max_queue_size=1) as pool:

        async def call(number: int) -> None:
            results.append(await pool.asubmit(add, number))

        async with anyio.create_task_group() as group:
            group.start_soon(pool.asubmit, hold.stay)
            await hold.begins()
            for number in range(20):
                group.start_soon(call, number)
            await anyio.wait_all_tasks_blocked()
            assert pool.metrics.queued == 20
            hold.release()
        assert sorted(results) == list(range(20))
        assert pool.metrics.rejected == 0


async def test_arguments_named_like_the_own_ones() -> None:
    """Only `timeout` is the pool's; `func` and `self` are the function's."""

    def take(**kwargs: Any) -> dict[str, Any]:
        return kwargs

    with thread_pool(workers=1) as pool:
        given = {"func": 1, "self": 2, "priority": 3, "args": 4}
        assert await pool.asubmit(take, timeout=LIMIT, **given) == given
        assert pool.submit(take, **given).result(LIMIT) == given


@pytest.mark.parametrize("how", ["partial", "method", "builtin", "callable object", "class"])
async def test_whatever_can_be_called(how: str) -> None:
    class Adder:
        def __call__(self, first: int, second: int) -> int:
            return first + second

    function: Callable[..., Any] = {
        "partial": functools.partial(add, 1),
        "method": Adder().__call__,
        "builtin": max,
        "callable object": Adder(),
        "class": complex,
    }[how]
    args = (2,) if how == "partial" else (1, 2)
    with thread_pool(workers=1) as pool:
        assert await pool.asubmit(function, *args) == function(*args)


# What does not mean the same in a thread as in a loop.


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
async def test_a_job_raises_what_ends_programs(error: BaseException) -> None:
    """It reaches who waits, and does the worker no harm."""

    def leave() -> None:
        raise error

    with thread_pool(workers=1) as pool:
        with pytest.raises(type(error)):
            await pool.asubmit(leave)
        with pytest.raises(type(error)):
            pool.submit(leave).result(LIMIT)
        assert await pool.asubmit(add, 1) == 1
        assert counts(pool.metrics) == {"succeeded": 1, "failed": 2}


async def test_a_job_raises_stop_iteration() -> None:
    """A coroutine cannot raise it: Python makes a RuntimeError of it. A thread can."""
    with thread_pool(workers=1) as pool:
        with pytest.raises(RuntimeError, match="StopIteration"):
            await pool.asubmit(next, iter(()))
        with pytest.raises(RuntimeError, match="StopIteration"):
            await pool.submit(next, iter(()))
        with pytest.raises(StopIteration):
            pool.submit(next, iter(())).result(LIMIT)


def cancellations() -> list[BaseException]:
    """Return one of asyncio, and one of trio, as its own loop raises it."""

    async def main() -> None:
        with anyio.CancelScope() as scope:
            scope.cancel()
            try:
                await anyio.sleep_forever()
            except BaseException as error:
                found.append(error)
                raise

    found: list[BaseException] = [asyncio.CancelledError("look")]
    anyio.run(main, backend="trio")
    return found


@pytest.mark.parametrize("index", [0, 1], ids=["asyncio", "trio"])
async def test_a_job_raises_a_cancellation(index: int) -> None:
    """To the caller's loop it would look like one of his own task."""
    error = guarded(cancellations)[index]

    def give_up() -> None:
        raise error

    with thread_pool(workers=1) as pool:
        rule = r"job .*give_up of worker pool 'pool' must not raise a cancellation of an event loop: got .*; look where"
        with pytest.raises(WorkerPoolError, match=rule) as caught:
            await pool.asubmit(give_up)
        assert caught.value.__cause__ is error
        with pytest.raises(WorkerPoolError, match=rule):
            await pool.submit(give_up)
        assert await pool.asubmit(add, 1) == 1


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
async def test_a_job_runs_an_event_loop_of_its_own(backend: str) -> None:
    async def main(number: int) -> tuple[int, str]:
        await anyio.lowlevel.checkpoint()
        return number, type(anyio.lowlevel.current_token().native_token).__name__

    with thread_pool(workers=1) as pool:
        for _ in range(3):
            number, loop = await pool.asubmit(anyio.run, functools.partial(main, 5), backend=backend)
            assert number == 5
            assert ("Trio" in loop) == (backend == "trio")


# Context variables.


async def test_context_variables_travel_in_and_do_not_leak_back() -> None:
    def swap(value: str) -> str:
        before = colour.get()
        colour.set(value)
        return before

    with thread_pool(workers=1) as pool:
        colour.set("red")
        assert await pool.asubmit(swap, "green") == "red"
        assert colour.get() == "red"
        assert await pool.submit(swap, "blue") == "red", "nor from one job of a worker to the next"
        colour.set("white")
        assert await pool.asubmit(swap, "black") == "white"
        assert contextvars.Context().run(lambda: pool.submit(swap, "grey").result(LIMIT)) == "none"


def test_context_variables_are_those_of_the_submission() -> None:
    hold = Hold()
    with thread_pool(workers=1) as pool:
        pool.submit(hold.stay)
        hold.wait_until_begun()
        colour.set("early")
        future = pool.submit(colour.get)
        colour.set("late")
        hold.release()
        assert future.result(LIMIT) == "early"
    colour.set("none")


# Nothing is kept alive.


@pytest.mark.parametrize("what", ["argument", "result", "function", "error", "context"])
def test_an_idle_worker_keeps_nothing_alive(what: str) -> None:
    class Boom(Exception):
        pass

    def give(thing: Thing | None) -> Thing | None:
        return thing

    def raise_it() -> None:
        raise Boom(thing)

    with thread_pool(workers=1) as pool:
        thing: Thing | None = Thing()
        ref = weakref.ref(thing)
        if what == "argument":
            pool.submit(lambda one: None, thing).result(LIMIT)
        elif what == "result":
            assert pool.submit(give, thing).result(LIMIT) is thing
        elif what == "function":
            pool.submit(functools.partial(give, None), thing).exception(LIMIT)
        elif what == "error":
            assert isinstance(pool.submit(raise_it).exception(LIMIT), Boom)
        else:
            variable: contextvars.ContextVar[Any] = contextvars.ContextVar("thing")
            contextvars.copy_context().run(lambda: (variable.set(thing), pool.submit(add, 1))[1].result(LIMIT))
        thing = None
        gc.collect()
        until(lambda: ref() is None)
        assert pool.metrics.workers == 1


async def test_a_caller_of_asubmit_keeps_nothing_alive() -> None:
    with thread_pool(workers=1) as pool:
        thing: Thing | None = Thing()
        ref = weakref.ref(thing)
        assert await pool.asubmit(lambda one: one, thing) is thing
        thing = None
        until(lambda: ref() is None)


async def test_a_future_keeps_the_result_and_nothing_else() -> None:
    with thread_pool(workers=1) as pool:
        argument, result = Thing(), Thing()
        refs = weakref.ref(argument), weakref.ref(result)
        future: Any = pool.submit(lambda argument, result: result, argument, result)
        await future
        del argument, result
        until(lambda: refs[0]() is None)
        assert refs[1]() is future.result()
        del future
        until(lambda: refs[1]() is None)


def test_an_error_of_asubmit_is_gone_without_the_collector() -> None:
    """No cycle leads from the error through its traceback back to it."""
    refs: list[weakref.ref[BaseException]] = []

    class Boom(Exception):
        def __init__(self) -> None:
            refs.append(weakref.ref(self))

    def boom() -> None:
        raise Boom

    async def main() -> None:
        try:
            await pool.asubmit(boom)
        except Boom:
            pass

    with thread_pool(workers=1) as pool:
        gc.disable()
        try:
            anyio.run(main)
            until(lambda: refs[0]() is None)
        finally:
            gc.enable()
