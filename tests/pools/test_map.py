"""`map`, `amap` and `as_completed` of thread pools: many items, few at a time, errors among the results."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from agentcore import (
    ConfigurationError,
    TaskPriority,
    ThreadWorkerPool,
    WorkerPoolClosedError,
    WorkerTimeoutError,
)
from tests.pools.thread_helpers import AWHILE, LIMIT, SOON, Caller, Hold, counts, heard, soon, thread_pool

pytestmark = pytest.mark.anyio


async def by_map(pool: Any, function: Any, items: Any, timeout: float | None = None) -> list[Any]:
    """Call `map` in a thread of its own, as a program without an event loop does."""
    return await anyio.to_thread.run_sync(partial(pool.map, function, items, timeout=timeout))


async def by_map_in_loop(pool: Any, function: Any, items: Any, timeout: float | None = None) -> list[Any]:
    """It blocks the loop, which no worker needs."""
    found: list[Any] = pool.map(function, items, timeout=timeout)
    return found


async def by_amap(pool: Any, function: Any, items: Any, timeout: float | None = None) -> list[Any]:
    found: list[Any] = await pool.amap(function, items, timeout)
    return found


async def by_as_completed(pool: Any, function: Any, items: Any, timeout: float | None = None) -> list[Any]:
    found = {}
    async with pool.as_completed(function, items, timeout) as results:
        async for one in results:
            found[one.index] = one.value if one.error is None else one.error
    return [found[index] for index in sorted(found)]


ways = pytest.mark.parametrize("way", [by_map, by_map_in_loop, by_amap, by_as_completed])


def square(number: int) -> int:
    return number * number


@ways
async def test_results_come_in_the_order_of_the_items(way: Any) -> None:
    with thread_pool(workers=3) as pool:
        assert await way(pool, square, range(50)) == [number * number for number in range(50)]
        assert await way(pool, square, []) == []
        assert await way(pool, square, iter([3])) == [9]
        assert counts(pool.metrics) == {"succeeded": 51}


@ways
async def test_the_order_is_that_of_the_items_whatever_ends_first(way: Any) -> None:
    last = threading.Event()

    def work(number: int) -> int:
        if number == 0:
            assert last.wait(LIMIT)
        elif number == 3:
            last.set()
        return number

    with thread_pool(workers=2) as pool:
        assert await way(pool, work, range(4)) == [0, 1, 2, 3]


@ways
async def test_errors_stand_in_the_places_of_results(way: Any) -> None:
    def work(number: int) -> float:
        return 1 / number

    with thread_pool(workers=2) as pool:
        outcomes = await way(pool, work, [1, 0, 2, 0])
        assert [type(one) for one in outcomes] == [float, ZeroDivisionError, float, ZeroDivisionError]
        assert counts(pool.metrics) == {"succeeded": 2, "failed": 2}


@ways
async def test_what_ends_programs_is_raised(way: Any) -> None:
    def work(number: int) -> int:
        if number == 2:
            raise SystemExit(4)
        return number

    with thread_pool(workers=1) as pool:
        with pytest.raises(SystemExit):
            await way(pool, work, range(100))
        assert pool.metrics.succeeded < 10
        assert await way(pool, square, [3]) == [9]


@ways
async def test_items_are_drawn_as_there_is_room(way: Any) -> None:
    """Never more than two for each worker ahead of what has ended."""
    drawn, done = [0], [0]
    ahead = list[int]()
    lock = threading.Lock()

    def draw() -> Iterator[int]:
        for number in range(200):
            drawn[0] += 1
            with lock:
                ahead.append(drawn[0] - done[0])
            yield number

    def work(number: int) -> int:
        with lock:
            done[0] += 1
        return number

    with thread_pool(workers=2) as pool:
        assert await way(pool, work, draw()) == list(range(200))
        assert pool.metrics.rejected == 0
    assert max(ahead) <= 5


@ways
async def test_the_bound_of_the_queue_is_no_obstacle(way: Any) -> None:
    with thread_pool(workers=1, max_queue_size=1) as pool:
        assert await way(pool, square, range(20)) == [number * number for number in range(20)]


@ways
async def test_the_timeout_is_for_the_whole(way: Any) -> None:
    """What has ended by then is there, the rest comes back as errors: begun or not."""
    hold = Hold()

    def work(number: int) -> Any:
        return number if number < 3 else hold.stay(number)

    with thread_pool(workers=1) as pool:
        outcomes = await way(pool, work, range(10), timeout=2 * AWHILE)
        assert outcomes[:3] == [0, 1, 2]
        assert [type(one) for one in outcomes[3:]] == [WorkerTimeoutError] * 7
        assert outcomes[3].details["phase"] == "running"
        assert outcomes[9].details["phase"] == "queued"
        assert not hold.ended.is_set()
        hold.release()
        await soon(lambda: pool.metrics.abandoned == 0)
        assert await way(pool, square, [2], timeout=LIMIT) == [4]


class Slow(list[int]):
    """Takes its time for all items but the first."""

    def __iter__(self) -> Iterator[int]:
        for number in super().__iter__():
            if number:
                threading.Event().wait(2 * SOON)
            yield number


@ways
async def test_items_that_come_too_late_are_not_begun(way: Any) -> None:
    seen, hold = list[int](), Hold()

    def work(number: int) -> int:
        seen.append(number)
        return hold.stay(number) if number == 0 else number  # type: ignore[no-any-return]

    with thread_pool(workers=1) as pool:
        outcomes = await way(pool, work, Slow([0, 1]), timeout=SOON)
        assert [type(one) for one in outcomes] == [WorkerTimeoutError] * 2
        assert str(outcomes[1]) == (
            f"job {work.__qualname__} of worker pool 'pool' was not begun within the timeout of all items: "
            "got more than 0.02 s; add workers or allow more time"
        )
        assert 1 not in seen
        hold.release()


@ways
async def test_options_hold_for_each_item(way: Any) -> None:
    hold = Hold()
    with thread_pool(workers=2) as pool:
        view = pool.options(timeout=AWHILE, priority=TaskPriority.HIGH)
        outcomes = await way(view, hold.stay, [1, 2])
        assert [one.details["phase"] for one in outcomes] == ["running"] * 2
        hold.release()


@ways
async def test_a_closed_pool_takes_no_items(way: Any) -> None:
    with thread_pool(workers=1) as pool:
        pass
    with pytest.raises(WorkerPoolClosedError, match="takes no jobs any more: got one in state 'closed'"):
        await way(pool, square, [1])


@pytest.mark.parametrize("way", [by_map, by_amap, by_as_completed])
async def test_a_pool_that_closes_meanwhile(way: Any) -> None:
    hold = Hold()
    with thread_pool(workers=1) as pool:

        async def call() -> None:
            with pytest.raises(WorkerPoolClosedError):
                await way(pool, hold.stay, itertools.count())

        async with anyio.create_task_group() as group:
            group.start_soon(call)
            await hold.begins()
            await pool.shutdown(wait=False)
            hold.release()


# Generators.


@pytest.mark.parametrize("way", [by_map, by_map_in_loop])
async def test_items_that_raise(way: Any) -> None:
    """What waits is taken back; the error comes out as it is."""

    def draw() -> Iterator[int]:
        yield 1
        yield 2
        raise LookupError("no more")

    with thread_pool(workers=1) as pool:
        with pytest.raises(LookupError, match="no more"):
            await way(pool, square, draw())
        await soon(lambda: (pool.metrics.queued, pool.metrics.running) == (0, 0))
        assert await way(pool, square, [2]) == [4]


async def test_infinite_items_and_an_early_exit() -> None:
    """What has not begun is taken back, and hardly more was drawn than was used."""
    numbers = itertools.count()
    with thread_pool(workers=2) as pool:
        async with pool.as_completed(square, numbers) as results:
            seen = 0
            async for one in results:
                assert one.value == one.item * one.item
                assert one.result() == one.value
                assert one.index == one.item
                seen += 1
                if seen == 10:
                    break
        assert next(numbers) <= 15
        assert (pool.metrics.queued, pool.metrics.running) == (0, 0)
        assert await pool.amap(square, [1]) == [1]


async def test_an_early_exit_waits_for_what_runs() -> None:
    hold = Hold()

    def work(number: int) -> Any:
        return number if number == 0 else hold.stay(number)

    with thread_pool(workers=1) as pool:
        threading.Timer(2 * SOON, hold.release).start()
        async with pool.as_completed(work, range(100)) as results:
            async for _ in results:
                await hold.begins()
                break
        assert hold.ended.is_set()
        assert counts(pool.metrics)["succeeded"] == 2


async def test_the_block_is_cancelled() -> None:
    hold = Hold()
    with thread_pool(workers=1) as pool:
        with anyio.CancelScope() as scope:
            async with pool.as_completed(hold.stay, itertools.count()) as results:
                await hold.begins()
                scope.cancel()
                hold.release()
                async for _ in results:
                    raise AssertionError
        assert scope.cancelled_caught
        assert (pool.metrics.queued, pool.metrics.running) == (0, 0)


@pytest.mark.parametrize("way", [by_amap, by_as_completed])
async def test_a_cancelled_caller_takes_back_what_has_not_begun(way: Any) -> None:
    hold, seen = Hold(), list[int]()

    def work(number: int) -> None:
        seen.append(number)
        hold.stay()

    with thread_pool(workers=1) as pool:
        scope = anyio.CancelScope()

        async def call() -> None:
            with scope:
                await way(pool, work, range(50))

        async with anyio.create_task_group() as group:
            group.start_soon(call)
            await hold.begins()
            scope.cancel()
            await soon(lambda: pool.metrics.queued == 0)
            hold.release()
        assert seen == [0]
        assert (pool.metrics.queued, pool.metrics.running) == (0, 0)


async def test_slow_consumers_hold_up_the_items() -> None:
    numbers = itertools.count()
    with thread_pool(workers=1) as pool:
        async with pool.as_completed(square, numbers) as results:
            assert (await anext(results)).index in {0, 1}
            await soon(lambda: (pool.metrics.queued, pool.metrics.running) == (0, 0))
            await anyio.wait_all_tasks_blocked()
            assert next(numbers) <= 4


async def test_a_result_that_is_an_error() -> None:
    with thread_pool(workers=1) as pool:
        async with pool.as_completed(int, ["1", "x"]) as results:
            found = {one.item: one async for one in results}
        assert (found["1"].value, found["1"].error, found["1"].result()) == (1, None, 1)
        assert found["x"].value is None
        assert isinstance(found["x"].error, ValueError)
        with pytest.raises(ValueError, match="invalid literal"):
            found["x"].result()


async def test_an_exhausted_block_goes_on_saying_so() -> None:
    with thread_pool(workers=1) as pool:
        async with pool.as_completed(square, [1]) as results:
            assert [one.value async for one in results] == [1]
            assert [one.value async for one in results] == []


async def test_several_go_through_one_block() -> None:
    with thread_pool(workers=2) as pool:
        found = list[int]()

        async with pool.as_completed(square, range(100)) as results:

            async def consume() -> None:
                async for one in results:
                    found.append(one.index)

            async with anyio.create_task_group() as group:
                for _ in range(3):
                    group.start_soon(consume)
        assert sorted(found) == list(range(100))


async def test_blocks_are_used_as_such() -> None:
    with thread_pool(workers=1) as pool:
        block = pool.as_completed(square, [1])
        with pytest.raises(
            ConfigurationError, match="results come inside of their block: got none; write `async with`"
        ):
            await anext(block)
        async with block:
            pass
        with pytest.raises(ConfigurationError, match="can be entered once: got a second time; make another one"):
            async with block:
                pass


async def test_asynchronous_items_are_refused() -> None:
    async def draw() -> Any:
        yield 1

    items = draw()
    with thread_pool(workers=1) as pool:
        with pytest.raises(ConfigurationError, match="items of a worker pool must be a plain iterable: got <async_gen"):
            pool.as_completed(square, items)
        with pytest.raises(ConfigurationError, match="items of a worker pool must be iterable: got <async_gen"):
            pool.map(square, items)
    await items.aclose()


def test_map_without_any_event_loop() -> None:
    with thread_pool(workers=2) as pool:
        assert pool.map(square, range(100)) == [number * number for number in range(100)]
        assert pool.options(timeout=LIMIT).map(square, [2]) == [4]


def test_two_maps_at_once() -> None:
    with thread_pool(workers=2) as pool:
        callers = [Caller(partial(pool.map, square, range(100))) for _ in range(4)]
        for caller in callers:
            assert caller.join() == [number * number for number in range(100)]


async def test_an_interrupted_map_takes_back_what_waits() -> None:
    """Its job raises what ends programs: nothing stays in the queue."""
    hold = Hold()
    ended = threading.Event()

    def work(number: int) -> Any:
        if number == 0:
            raise KeyboardInterrupt
        return hold.stay()

    def call(pool: ThreadWorkerPool) -> None:
        try:
            pool.map(work, range(4))
        except KeyboardInterrupt:
            ended.set()

    with thread_pool(workers=2) as pool:
        caller = Caller(partial(call, pool))
        await heard(ended)
        assert pool.metrics.queued == 0
        hold.release()
        caller.join()
