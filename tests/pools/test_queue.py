"""Pools for coroutines, of either kind: handing jobs over, their order, their variables."""

from __future__ import annotations

import asyncio
import functools
import types
from collections.abc import AsyncGenerator, Callable, Generator
from contextvars import ContextVar
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from agentcore import (
    TaskPriority,
    WorkerPoolClosedError,
    WorkerPoolFullError,
)
from agentcore.testing import assert_checkpoints, assert_no_checkpoints, simulate
from tests.pools.coroutines import Boom, Door, Kind, both_kinds, busy, configured, counts, double, fail, nothing

pytestmark = [pytest.mark.anyio, both_kinds]

place: ContextVar[str] = ContextVar("place", default="nowhere")


# Handing over.


async def test_submit_gives_nothing_and_the_job_is_done(kind: Kind) -> None:
    """Leaving the block drains the pool."""
    done: list[tuple[Any, ...]] = []

    async def note(*args: int, **kwargs: int) -> None:
        await anyio.lowlevel.checkpoint()
        done.append((args, kwargs))

    async with kind("p", configured()) as pool:
        assert await pool.submit(note, 1, two=2) is None  # type: ignore[func-returns-value]
        assert pool.submit_nowait(note, 3) is None  # type: ignore[func-returns-value]
        assert [] == done
    assert [((1,), {"two": 2}), ((3,), {})] == done
    assert ("closed", {"succeeded": 2}) == (pool.state, counts(pool.metrics))


async def test_asubmit_gives_the_result(kind: Kind) -> None:
    async with kind("p", configured()) as pool:
        assert 42 == await pool.asubmit(double, 21)
        assert 42 == await pool.asubmit(double, number=21)
        assert await pool.asubmit(nothing) is None
    assert {"succeeded": 3} == counts(pool.metrics)


async def test_every_keyword_is_the_functions(kind: Kind) -> None:
    """Those too that mean something to other pools, and those that are names of parameters here."""

    async def take(**kwargs: Any) -> dict[str, Any]:
        return kwargs

    given = {"timeout": 1, "priority": 2, "func": 3, "self": 4, "args": 5, "when_full": 6}
    taken: list[dict[str, Any]] = []

    async def keep(**kwargs: Any) -> None:
        taken.append(kwargs)

    async with kind("p", configured()) as pool:
        assert given == await pool.asubmit(take, **given)
        await pool.submit(keep, **given)
        pool.submit_nowait(keep, **given)
        await pool.options(priority=TaskPriority.LOW).submit(keep, **given)
    assert [given] * 3 == taken


@simulate(runs=5)
async def test_which_calls_are_checkpoints(kind: Kind) -> None:
    async with kind("p", configured()) as pool:
        with assert_checkpoints():
            await pool.submit(nothing)
        with assert_no_checkpoints():
            pool.submit_nowait(nothing)
        with assert_checkpoints():
            await pool.asubmit(double, 1)
        with assert_checkpoints():
            await pool.shutdown()
        with assert_checkpoints():
            await pool.shutdown()
    with assert_checkpoints():
        await kind("never entered").shutdown()


async def test_a_cancelled_submit_hands_nothing_over(kind: Kind) -> None:
    """The checkpoint comes first, so that what is raised says what has happened."""
    async with kind("p", configured()) as pool:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await pool.submit(nothing)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await pool.asubmit(nothing)
        assert scope.cancelled_caught
    assert {} == counts(pool.metrics)


class Later:
    """Can be awaited, and is no coroutine."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __await__(self) -> Generator[Any, None, int]:
        yield from anyio.lowlevel.checkpoint().__await__()
        return self.value


class Adder:
    """Can be called, and gives a coroutine."""

    async def __call__(self, left: int, right: int) -> int:
        return left + right

    async def method(self, left: int) -> int:
        return left + 1


@types.coroutine
def old_style(value: int) -> Generator[Any, None, int]:
    yield from anyio.lowlevel.checkpoint().__await__()
    return value


@pytest.mark.parametrize(
    ("function", "args"),
    [
        (functools.partial(Adder(), 4), (3,)),
        (Adder(), (3, 4)),
        (Adder().method, (6,)),
        (lambda: double(3), ()),
        (Later, (7,)),
        (old_style, (7,)),
    ],
    ids=["partial", "object", "method", "lambda", "awaitable", "generator"],
)
async def test_whatever_gives_something_to_await(
    kind: Kind, function: Callable[..., Any], args: tuple[int, ...]
) -> None:
    async with kind("p") as pool:
        assert await pool.asubmit(function, *args) in {6, 7}
        await pool.submit(function, *args)
    assert {"succeeded": 2} == counts(pool.metrics)


# A full queue.


async def test_a_full_pool_refuses(kind: Kind) -> None:
    async with kind("p", configured(max_queue_size=2)) as pool, busy(pool):
        await pool.submit(nothing)
        pool.submit_nowait(nothing)
        for refused in (pool.submit(nothing), pool.options(when_full="raise").asubmit(nothing)):
            with pytest.raises(WorkerPoolFullError) as caught:
                await refused
        with pytest.raises(WorkerPoolFullError):
            pool.submit_nowait(nothing)
        assert {"pool": "p", "max_queue_size": 2} == caught.value.details
        assert (
            "worker pool 'p' lets no more than max_queue_size jobs wait: got one more than 2; "
            "try later, use asubmit or options(when_full='wait'), or raise max_queue_size"
        ) == str(caught.value)
        assert {"queued": 2, "running": 1, "rejected": 3} == counts(pool.metrics)
    assert {"succeeded": 3, "rejected": 3} == counts(pool.metrics)


async def test_asubmit_is_not_refused(kind: Kind) -> None:
    """Who waits anyway may wait a little longer."""
    async with kind("p", configured(max_queue_size=1)) as pool, anyio.create_task_group() as group, busy(pool):
        for _ in range(5):
            group.start_soon(pool.asubmit, nothing)
        await anyio.wait_all_tasks_blocked()
        assert {"queued": 5, "running": 1} == counts(pool.metrics)
    assert {"succeeded": 6} == counts(pool.metrics)


async def test_submit_that_waits_for_space(kind: Kind) -> None:
    """With ``when_full="wait"``, each of those who wait is let in, in their order; nobody else is held up."""
    door, order = Door(), list[int]()

    async def note(number: int) -> None:
        order.append(number)

    async with kind("p", configured(max_queue_size=1)) as pool, anyio.create_task_group() as group:
        waiting = pool.options(when_full="wait")
        await pool.submit(door)
        for number in range(10):
            group.start_soon(waiting.submit, note, number)
            await anyio.wait_all_tasks_blocked()
        assert {"queued": 1, "running": 1} == counts(pool.metrics)
        door.opened.set()
    assert list(range(10)) == order
    assert {"succeeded": 11} == counts(pool.metrics)


async def test_who_waits_for_space_may_be_cancelled(kind: Kind) -> None:
    """His place is free for the next one, and his job is never run."""
    ran: list[str] = []

    async def note(who: str) -> None:
        ran.append(who)

    async with kind("p", configured(max_queue_size=1)) as pool, anyio.create_task_group() as group:
        waiting = pool.options(when_full="wait")
        async with busy(pool):
            await pool.submit(note, "first")
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as cancelled:
                    cancelled.start_soon(waiting.submit, note, "cancelled")
                    await anyio.wait_all_tasks_blocked()
                    group.start_soon(waiting.submit, note, "second")
                    await anyio.wait_all_tasks_blocked()
                    scope.cancel()
            assert {"queued": 1, "running": 1} == counts(pool.metrics)
    assert ["first", "second"] == ran


async def test_who_waits_for_space_learns_of_the_end(kind: Kind) -> None:
    async with kind("p", configured(max_queue_size=1)) as pool, anyio.create_task_group() as group, busy(pool):
        await pool.submit(nothing)

        async def refused() -> None:
            with pytest.raises(WorkerPoolClosedError, match="takes no jobs any more: got one in state 'draining'"):
                await pool.options(when_full="wait").submit(nothing)

        group.start_soon(refused)
        await anyio.wait_all_tasks_blocked()
        group.start_soon(pool.shutdown)
        await anyio.wait_all_tasks_blocked()


# Order.


async def test_first_come_first_served(kind: Kind) -> None:
    order: list[int] = []

    async def note(number: int) -> None:
        order.append(number)
        await anyio.lowlevel.checkpoint()

    async with kind("p", configured()) as pool, busy(pool):
        for number in range(20):
            await pool.submit(note, number)
    assert list(range(20)) == order


async def test_urgent_jobs_first(kind: Kind) -> None:
    """By priority, and in their order within one; `asubmit` and `submit` alike."""
    order: list[str] = []

    async def note(name: str) -> None:
        order.append(name)

    async with kind("p", configured()) as pool, anyio.create_task_group() as group, busy(pool):
        for number in (1, 2):
            await pool.submit(note, f"NORMAL {number}")
            for priority in (TaskPriority.LOW, TaskPriority.HIGH, TaskPriority.CRITICAL):
                view = pool.options(priority=priority)
                (view.submit_nowait if number == 1 else functools.partial(group.start_soon, view.asubmit))(
                    note, f"{priority.name} {number}"
                )
                await anyio.wait_all_tasks_blocked()
    assert [f"{name} {number}" for name in ("CRITICAL", "HIGH", "NORMAL", "LOW") for number in (1, 2)] == order


@pytest.mark.parametrize("workers", [1, 3, 17])
async def test_so_many_at_a_time(kind: Kind, workers: int) -> None:
    async with kind("p", configured(workers=workers)) as pool:
        door = Door()
        for number in range(2 * workers + 1):
            await pool.submit(door, number)
        await anyio.wait_all_tasks_blocked()
        assert workers == door.inside == pool.metrics.workers == pool.metrics.running == len(pool.jobs())
        assert workers + 1 == pool.metrics.queued
        door.opened.set()
    assert workers == door.peak
    assert sorted(door.left) == list(range(2 * workers + 1))
    assert 0 == pool.metrics.workers


async def test_jobs_that_never_wait_do_not_starve_the_loop(kind: Kind) -> None:
    """Others have their turns while one worker does thousands of such jobs."""
    done, seen = list[int](), set[int]()

    async def note(number: int) -> None:
        done.append(number)

    async def watch() -> None:
        while len(done) < 1000:
            seen.add(len(done))
            await anyio.lowlevel.checkpoint()

    async with kind("p", configured(max_queue_size=1000)) as pool, anyio.create_task_group() as group:
        async with busy(pool):
            for number in range(1000):
                pool.submit_nowait(note, number)
        group.start_soon(watch)
    assert list(range(1000)) == done
    assert len(seen) > 5


# Variables.


async def test_the_variables_of_a_job_are_its_own(kind: Kind) -> None:
    """Neither the next job of the same worker nor the submitter sees them; those of the submitter travel in."""
    seen: list[str] = []

    async def visit(name: str) -> str:
        seen.append(place.get())
        place.set(name)
        await anyio.lowlevel.checkpoint()
        return place.get()

    async with kind("p", configured()) as pool:
        for name in ("Rome", "Oslo"):
            assert name == await pool.asubmit(visit, name)
            await pool.submit(visit, name)
        token = place.set("home")
        await pool.submit(visit, "Bern")
        assert "Graz" == await pool.asubmit(visit, "Graz")
        assert "home" == place.get()
        place.reset(token)
        assert "Kyiv" == await pool.asubmit(visit, "Kyiv")
    assert ["nowhere"] * 4 + ["home"] * 2 + ["nowhere"] == seen
    assert "nowhere" == place.get()


async def test_the_variables_of_the_moment_of_submitting(kind: Kind) -> None:
    """Not those of when the job begins, nor those of whoever has entered the pool."""
    seen: list[str] = []

    async def look() -> None:
        seen.append(place.get())

    place.set("at the door")
    async with kind("p", configured()) as pool, busy(pool):
        for name in ("one", "two"):
            place.set(name)
            pool.submit_nowait(look)
        place.set("later")
    assert ["one", "two"] == seen


async def test_variables_across_awaits(kind: Kind) -> None:
    """Jobs that take turns keep theirs apart; tasks, threads and scopes inside of one see them."""

    async def tell(found: list[str]) -> None:
        await anyio.lowlevel.checkpoint()
        found.append(place.get())

    async def work(name: str) -> list[str]:
        place.set(name)
        found: list[str] = []
        for _ in range(3):
            await anyio.lowlevel.checkpoint()
            found.append(place.get())
        async with anyio.create_task_group() as group:
            group.start_soon(tell, found)
            group.start_soon(tell, found)
        with anyio.move_on_after(5):
            found.append(await anyio.to_thread.run_sync(place.get))
        return found

    async with kind("p", configured(workers=3)) as pool:
        names = ["a", "b", "c", "d"]
        assert [[name] * 6 for name in names] == await pool.amap(work, names)
    assert "nowhere" == place.get()


async def test_variables_in_callbacks(kind: Kind) -> None:
    """What a job has asyncio call later sees the variables of the job."""
    if anyio.get_cancelled_exc_class() is not asyncio.CancelledError:
        pytest.skip("trio has no callbacks that belong to a task")
    seen: list[str] = []

    async def work(name: str) -> None:
        place.set(name)
        loop = asyncio.get_running_loop()
        loop.call_soon(lambda: seen.append(place.get()))
        future: asyncio.Future[None] = loop.create_future()
        future.add_done_callback(lambda _: seen.append(place.get()))
        loop.call_soon(future.set_result, None)
        await future
        await asyncio.create_task(double(1))
        place.set(f"{name} later")
        loop.call_soon(lambda: seen.append(place.get()))
        await anyio.lowlevel.checkpoint()

    async with kind("p", configured(workers=2)) as pool, anyio.create_task_group() as group:
        group.start_soon(pool.asubmit, work, "a")
        group.start_soon(pool.asubmit, work, "b")
    assert ["a", "a", "a later", "b", "b", "b later"] == sorted(seen)


async def test_task_groups_and_scopes_inside_of_a_job(kind: Kind) -> None:
    """A job may do with cancellation what any coroutine may; the next one of the same worker is not concerned."""

    async def work(number: int) -> list[Any]:
        found: list[Any] = []
        with anyio.move_on_after(0) as scope:
            await anyio.sleep_forever()
        found.append(scope.cancelled_caught)
        with pytest.raises(TimeoutError), anyio.fail_after(0):
            await anyio.sleep_forever()
        with anyio.CancelScope() as scope:
            scope.cancel()
            with anyio.CancelScope(shield=True):
                await anyio.lowlevel.checkpoint()
                found.append("shielded")
            await anyio.sleep_forever()
        with pytest.raises(ExceptionGroup) as caught:
            async with anyio.create_task_group() as group:
                group.start_soon(fail)
                group.start_soon(anyio.sleep_forever)
        found.append(caught.group_contains(Boom))
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.sleep_forever)
            group.cancel_scope.cancel()
        await anyio.lowlevel.checkpoint()
        return [*found, number]

    async with kind("p", configured(workers=2)) as pool:
        for number in range(3):
            await pool.submit(work, number)
        assert [[True, "shielded", True, number] for number in range(5)] == await pool.amap(work, range(5))
    assert {"succeeded": 8} == counts(pool.metrics)


async def test_generators_of_a_job(kind: Kind) -> None:
    """One that is left open inside of a job is closed as anywhere else, and not by the next job."""
    closed: list[str] = []

    async def numbers() -> AsyncGenerator[int]:
        try:
            yield 1
            yield 2
        finally:
            closed.append(place.get())

    async def work() -> int:
        place.set("work")
        found = 0
        async for number in (made := numbers()):
            found += number
            break
        await made.aclose()
        return found

    async with kind("p", configured()) as pool:
        assert [1, 1] == [await pool.asubmit(work), await pool.asubmit(work)]
    assert ["work"] * 2 == closed
