"""Worker threads: real ones, and the clock stands still for them."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import anyio
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread
import pytest
import trio

from agentcore._interop import monotonic
from agentcore.testing import BACKENDS, DeadlockError, LeakError, StallError, assert_no_leaks, run_sim
from agentcore.testing._threads import PATIENCE, Threads, current_job

both = pytest.mark.parametrize("backend", BACKENDS)


def work(seconds: float, value: Any = None) -> Any:
    """Be busy for real."""
    time.sleep(seconds)
    return value


@both
def test_a_long_timeout_does_not_fire_while_a_thread_works(backend: Any) -> None:
    async def main() -> tuple[str, float]:
        with anyio.fail_after(300):
            value = await anyio.to_thread.run_sync(work, 0.05, "done")
        return value, anyio.current_time()

    for _ in range(3):
        assert run_sim(main, backend=backend).unwrap() == ("done", 0.0)


@both
def test_other_tasks_run_while_a_thread_works_but_no_timer_fires(backend: Any) -> None:
    async def main() -> list[Any]:
        seen: list[Any] = []
        began, go_on = threading.Event(), threading.Event()

        def in_thread() -> None:
            began.set()
            assert go_on.wait(10)

        async def thread() -> None:
            await anyio.to_thread.run_sync(in_thread)
            seen.append(("thread", anyio.current_time()))

        async def timer() -> None:
            await anyio.sleep(0.001)
            seen.append(("timer", anyio.current_time()))

        async with anyio.create_task_group() as group:
            group.start_soon(thread)
            group.start_soon(timer)
            while not began.is_set():
                await anyio.lowlevel.checkpoint()
            for _ in range(100):
                await anyio.lowlevel.checkpoint()
            seen.append(99)
            go_on.set()
        return seen

    result = run_sim(main, backend=backend, max_steps=10_000_000)
    assert result.unwrap() == [99, ("thread", 0.0), ("timer", 0.001)]


@both
def test_racing_threads_give_one_trace(backend: Any) -> None:
    """The results come in the order in which the threads were started, however long each of them takes."""

    async def main() -> list[int]:
        order: list[int] = []

        async def one(number: int) -> None:
            order.append(await anyio.to_thread.run_sync(work, random.uniform(0, 0.01), number))
            await anyio.lowlevel.checkpoint()
            order.append(-number)

        async with anyio.create_task_group() as group:
            for number in range(8):
                group.start_soon(one, number)
        return order

    runs = [run_sim(main, backend=backend, trace=True, schedule="walk/5") for _ in range(12)]
    assert len({(str(run.unwrap()), run.trace) for run in runs}) == 1
    assert [number for number in run_sim(main, backend=backend).unwrap() if number > 0] == [1, 2, 3, 4, 5, 6, 7]


@both
def test_an_error_in_a_thread_reaches_its_task(backend: Any) -> None:
    async def main() -> None:
        await anyio.to_thread.run_sync(int, "x")

    with pytest.raises(ValueError, match="invalid literal"):
        run_sim(main, backend=backend).unwrap()


@both
def test_a_thread_runs_an_asynchronous_function_that_sleeps(backend: Any) -> None:
    async def main() -> list[Any]:
        async def slow(seconds: float) -> float:
            await anyio.sleep(seconds)
            return anyio.current_time()

        def in_thread() -> list[float]:
            return [anyio.from_thread.run(slow, 3600), anyio.from_thread.run(slow, 60)]

        return [await anyio.to_thread.run_sync(in_thread), anyio.current_time()]

    assert run_sim(main, backend=backend).unwrap() == [[3600.0, 3660.0], 3660.0]


@both
def test_threads_call_back_in_a_fixed_order(backend: Any) -> None:
    async def main() -> list[Any]:
        order: list[Any] = []

        def in_thread(number: int) -> None:
            work(random.uniform(0, 0.005))
            anyio.from_thread.run_sync(order.append, ("first", number))
            work(random.uniform(0, 0.005))
            anyio.from_thread.run(note, number)
            anyio.from_thread.run_sync(order.append, ("last", number))

        async def note(number: int) -> None:
            await anyio.sleep(number)
            order.append(("note", number, anyio.current_time()))

        async with anyio.create_task_group() as group:
            for number in range(4):
                group.start_soon(anyio.to_thread.run_sync, in_thread, number)
        return order

    runs = [run_sim(main, backend=backend, trace=True) for _ in range(6)]
    assert len({(str(run.unwrap()), run.trace) for run in runs}) == 1


def test_threads_that_call_back_give_the_same_values_on_both_backends() -> None:
    async def main() -> list[Any]:
        order: list[Any] = []

        async def back(number: int) -> None:
            await anyio.sleep(1 + number)
            order.append((number, anyio.current_time()))

        async with anyio.create_task_group() as group:
            for number in range(3):
                group.start_soon(anyio.to_thread.run_sync, partial(anyio.from_thread.run, back, number))
        return order

    assert [run_sim(main, backend=backend).unwrap() for backend in BACKENDS] == [[(0, 1.0), (1, 2.0), (2, 3.0)]] * 2


@both
def test_an_error_of_an_asynchronous_function_reaches_the_thread(backend: Any) -> None:
    async def main() -> str:
        async def fails() -> None:
            await anyio.sleep(1)
            raise KeyError("inside")

        def in_thread() -> str:
            try:
                anyio.from_thread.run(fails)
            except KeyError as error:
                return repr(error)
            return "nothing"

        return await anyio.to_thread.run_sync(in_thread)

    assert run_sim(main, backend=backend).unwrap() == "KeyError('inside')"


@both
def test_a_thread_notices_that_its_task_is_cancelled(backend: Any) -> None:
    async def main() -> list[Any]:
        seen: list[Any] = []
        began = threading.Event()

        def in_thread() -> None:
            began.set()
            until = time.monotonic() + 10
            try:
                while time.monotonic() < until:
                    anyio.from_thread.check_cancelled()
                    time.sleep(0.001)
            except BaseException as error:
                seen.append(type(error).__name__)
                raise

        async with anyio.create_task_group() as group:
            group.start_soon(anyio.to_thread.run_sync, in_thread)
            while not began.is_set():
                await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()
        seen.append(anyio.current_time())
        return seen

    result = run_sim(main, backend=backend, max_steps=10_000_000).unwrap()
    assert result in (["CancelledError", 0.0], ["Cancelled", 0.0])


@both
def test_an_abandoned_thread_does_not_stop_the_clock(backend: Any) -> None:
    go_on = threading.Event()

    async def main() -> list[Any]:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:

                async def give_up() -> None:
                    await anyio.lowlevel.checkpoint()
                    scope.cancel()

                group.start_soon(give_up)
                await anyio.to_thread.run_sync(go_on.wait, 10, abandon_on_cancel=True)
        await anyio.sleep(1000)
        return [scope.cancelled_caught, anyio.current_time()]

    result = run_sim(main, backend=backend)
    go_on.set()
    assert result.unwrap() == [True, 1000.0]


@both
def test_a_result_that_comes_after_the_end_is_dropped(backend: Any, capfd: pytest.CaptureFixture[str]) -> None:
    """The simulation is over and its loop closed: the thread that was abandoned must not notice."""
    go_on = threading.Event()
    workers: list[threading.Thread] = []

    def in_thread() -> None:
        workers.append(threading.current_thread())
        go_on.wait(10)

    async def main() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(partial(anyio.to_thread.run_sync, in_thread, abandon_on_cancel=True))
            while not workers:
                await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()

    run_sim(main, backend=backend, max_steps=10_000_000).unwrap()
    go_on.set()
    # The next simulation gets the same thread on trio: by then it has handed over its first result.
    run_sim(anyio.to_thread.run_sync, abs, 1, backend=backend).unwrap()
    workers[0].join(0.2)
    assert capfd.readouterr().err == ""


@both
def test_a_limiter_of_threads_is_respected(backend: Any) -> None:
    async def main() -> tuple[int, float]:
        limiter = anyio.CapacityLimiter(2)
        lock, running, most = threading.Lock(), 0, 0

        def in_thread() -> None:
            nonlocal running, most
            with lock:
                running += 1
                most = max(most, running)
            time.sleep(0.002)
            with lock:
                running -= 1

        async with anyio.create_task_group() as group:
            for _ in range(6):
                group.start_soon(partial(anyio.to_thread.run_sync, in_thread, limiter=limiter))
        assert limiter.statistics().borrowed_tokens == 0
        return most, limiter.total_tokens

    assert run_sim(main, backend=backend).unwrap() == (2, 2)


@both
def test_waiting_for_a_thread_of_a_full_limiter_can_be_cancelled(backend: Any) -> None:
    async def main() -> list[Any]:
        limiter = anyio.CapacityLimiter(1)
        async with limiter:
            with anyio.move_on_after(5) as scope:
                async with anyio.create_task_group() as group:
                    group.start_soon(partial(anyio.to_thread.run_sync, abs, -1, limiter=limiter))
        return [scope.cancelled_caught, anyio.current_time(), limiter.borrowed_tokens]

    assert run_sim(main, backend=backend).unwrap() == [True, 5.0, 0]


@both
@pytest.mark.parametrize("limited", [False, True])
def test_functions_run_inline_if_wanted(backend: Any, limited: bool) -> None:
    async def main() -> list[Any]:
        home = threading.get_ident()
        limiter = anyio.CapacityLimiter(1) if limited else None
        there = await anyio.to_thread.run_sync(threading.get_ident, limiter=limiter)
        with pytest.raises(ValueError, match="invalid literal"):
            await anyio.to_thread.run_sync(int, "x", limiter=limiter)
        assert limiter is None or limiter.borrowed_tokens == 0
        with anyio.move_on_after(0) as scope:
            await anyio.to_thread.run_sync(abs, 1)
        return [there == home, scope.cancelled_caught]

    assert run_sim(main, backend=backend, threads="inline").unwrap() == [True, True]


def test_functions_run_inline_give_the_same_trace_on_both_backends() -> None:
    async def main() -> list[int]:
        order: list[int] = []

        async def one(number: int) -> None:
            order.append(await anyio.to_thread.run_sync(abs, -number))

        async with anyio.create_task_group() as group:
            for number in range(5):
                group.start_soon(one, number)
        return order

    for schedule in ("fifo", "-", "walk/3"):
        first, second = (
            run_sim(main, backend=backend, schedule=schedule, threads="inline", trace=True) for backend in BACKENDS
        )
        assert first.unwrap() == second.unwrap()
        assert list(map(str, first.trace)) == list(map(str, second.trace))


def test_the_executors_of_asyncio_stop_the_clock_too() -> None:
    async def main() -> list[Any]:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(300):
            first = await loop.run_in_executor(None, work, 0.02, "executor")
            second = await asyncio.to_thread(work, 0.02, "to_thread")
            third, fourth = await asyncio.gather(
                asyncio.to_thread(work, 0.02, "slow"), asyncio.to_thread(work, 0.0, "quick")
            )
        return [first, second, third, fourth, loop.time()]

    assert run_sim(main).unwrap() == ["executor", "to_thread", "slow", "quick", 0.0]


def test_racing_executors_of_asyncio_give_one_trace() -> None:
    async def main() -> list[int]:
        order: list[int] = []

        async def one(number: int) -> None:
            order.append(await asyncio.to_thread(work, random.uniform(0, 0.005), number))

        async with asyncio.TaskGroup() as group:
            for number in range(8):
                group.create_task(one(number))
        return order

    runs = [run_sim(main, trace=True) for _ in range(10)]
    assert len({(str(run.unwrap()), run.trace) for run in runs}) == 1


def test_calls_from_threads_into_asyncio_arrive() -> None:
    async def main() -> list[Any]:
        loop = asyncio.get_running_loop()
        seen: list[Any] = []

        async def back() -> str:
            await asyncio.sleep(0)
            return "back"

        def in_thread() -> str:
            loop.call_soon_threadsafe(seen.append, "soon")
            return asyncio.run_coroutine_threadsafe(back(), loop).result(10)

        loop.call_soon_threadsafe(seen.append, "at home")
        seen.append(await asyncio.to_thread(in_thread))
        return [*seen, loop.time()]

    assert run_sim(main, watchdog=2).unwrap() == ["at home", "soon", "back", 0.0]


def test_trios_own_threads_stop_the_clock_too() -> None:
    async def main() -> list[Any]:
        with trio.fail_after(300):
            value = await trio.to_thread.run_sync(work, 0.05, "done")
        return [value, trio.current_time()]

    assert run_sim(main, backend="trio").unwrap() == ["done", 0.0]


def test_trios_own_racing_threads_all_arrive() -> None:
    """In an order of their own: only what goes through AnyIO is put in order."""

    async def main() -> tuple[list[int], float]:
        order: list[int] = []

        async def one(number: int) -> None:
            order.append(await trio.to_thread.run_sync(work, random.uniform(0, 0.005), number))

        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(one, number)
        return sorted(order), trio.current_time()

    assert run_sim(main, backend="trio").unwrap() == ([*range(8)], 0.0)


@both
def test_threads_may_wait_for_younger_ones(backend: Any) -> None:
    """The oldest thread waits for what a younger one's task does next: its result may not be kept back for ever."""

    async def main() -> list[str]:
        order: list[str] = []
        done = threading.Event()

        async def waits() -> None:
            order.append(f"waited {await anyio.to_thread.run_sync(done.wait, 10)}")

        async def helps() -> None:
            await anyio.to_thread.run_sync(abs, 1)
            order.append("helped")
            done.set()

        async with anyio.create_task_group() as group:
            group.start_soon(waits)
            await anyio.wait_all_tasks_blocked()
            group.start_soon(helps)
        return order

    began = time.monotonic()
    assert run_sim(main, backend=backend).unwrap() == ["helped", "waited True"]
    assert time.monotonic() - began < 10 * PATIENCE


@both
def test_a_hung_thread_is_a_stall(backend: Any) -> None:
    go_on = threading.Event()

    async def waits_for_it() -> None:
        with anyio.fail_after(60):
            await anyio.to_thread.run_sync(go_on.wait, 1.0)

    async def main() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(waits_for_it)

    result = run_sim(main, backend=backend, watchdog=0.2)
    go_on.set()
    with pytest.raises(
        StallError, match=r"a worker thread kept the simulation waiting for 0\.2 real seconds"
    ) as caught:
        result.unwrap()
    line = waits_for_it.__code__.co_firstlineno + 2
    assert f"waits_for_it:{line} in run_sync" in str(caught.value)
    assert caught.value.now == 0.0


@both
def test_a_deadlock_beside_a_thread_that_asks_is_found(backend: Any) -> None:
    async def main() -> None:
        await anyio.to_thread.run_sync(anyio.from_thread.run, anyio.Event().wait)

    with pytest.raises(DeadlockError):
        run_sim(main, backend=backend, watchdog=1).unwrap()


@both
def test_context_variables_reach_threads(backend: Any) -> None:
    async def main() -> float:
        await anyio.sleep(3)

        return await anyio.to_thread.run_sync(monotonic)

    assert run_sim(main, backend=backend).unwrap() == 3.0


@both
def test_threads_outside_of_a_simulation_are_as_they_were(backend: Any) -> None:
    async def main() -> tuple[int, int]:
        def in_thread() -> int:
            assert current_job() is None
            return anyio.from_thread.run(back) + anyio.from_thread.run_sync(abs, -1)

        async def back() -> int:
            await anyio.lowlevel.checkpoint()
            return 1

        with anyio.move_on_after(0.02) as scope:
            await anyio.to_thread.run_sync(work, 0.05, abandon_on_cancel=True)
        assert scope.cancelled_caught
        with anyio.fail_after(5):
            await anyio.wait_all_tasks_blocked()
        return await anyio.to_thread.run_sync(in_thread), threading.active_count()

    run_sim(anyio.lowlevel.checkpoint, backend=backend).unwrap()
    assert anyio.run(main, backend=backend)[0] == 2


@both
def test_a_worker_thread_of_an_earlier_simulation_is_not_taken_for_one(backend: Any) -> None:
    """AnyIO keeps its threads: what they have done before says nothing about what they do now."""

    async def main() -> Any:
        return await anyio.to_thread.run_sync(current_job)

    serials = [run_sim(main, backend=backend).unwrap().serial for _ in range(3)]
    assert serials == [1, 1, 1]
    assert anyio.run(main, backend=backend) is None


# ------------------------------------------------------------------------------------------ the parts


def test_results_of_threads_come_in_the_order_of_their_starts() -> None:
    order: list[str] = []
    woken: list[int] = []
    threads = Threads(lambda: woken.append(1))
    first, second = threads.start(), threads.start()

    def post(job: Any, name: str) -> None:
        job.wrap(threads.post)(partial(order.append, name))

    for job, name in ((second, "second"), (first, "first")):
        thread = threading.Thread(target=post, args=(job, name))
        thread.start()
        thread.join()
    assert threads.working == 0
    assert threads.busy
    assert [threads.release() for _ in range(2)] == [True, False]
    assert order == ["first"]
    threads.leave(first)
    assert threads.release()
    assert order == ["first", "second"]
    threads.leave(second)
    threads.leave(second)
    assert not threads.busy
    assert woken == [1, 1]


def test_what_nobody_waits_for_is_let_in_when_it_comes() -> None:
    order: list[str] = []
    threads = Threads(lambda: None)
    job = threads.start()
    call: Callable[[], None] = partial(order.append, "abandoned")
    thread = threading.Thread(target=job.wrap(threads.post), args=(call,))
    thread.start()
    thread.join()
    threads.leave(job)
    threads.post(partial(order.append, "foreign"))
    assert [threads.release() for _ in range(3)] == [True, True, False]
    assert order == ["abandoned", "foreign"]


@both
def test_a_working_thread_that_is_left_behind_is_a_leak(backend: Any) -> None:
    began, go_on = threading.Event(), threading.Event()

    def in_thread() -> None:
        began.set()
        go_on.wait(10)

    async def main() -> None:
        with assert_no_leaks(), anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(partial(anyio.to_thread.run_sync, in_thread, abandon_on_cancel=True))
                while not began.is_set():
                    await anyio.lowlevel.checkpoint()
                scope.cancel()

    result = run_sim(main, backend=backend, max_steps=10_000_000)
    go_on.set()
    with pytest.raises(LeakError, match="the block leaves behind: 1 working threads"):
        result.unwrap()
