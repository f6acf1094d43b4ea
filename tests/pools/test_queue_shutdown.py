"""Pools for coroutines, of either kind: their end, and the places where they cannot be used."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable
from typing import Any, Self

import anyio
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread
import pytest

from agentcore import (
    ConfigurationError,
    WorkerPoolClosedError,
    WorkerPoolDeadlockError,
    WorkerPoolError,
    WorkerPoolReport,
)
from agentcore._host import Host
from agentcore.testing import cancel_everywhere, simulate
from tests.pools.coroutines import (
    Boom,
    Door,
    Kind,
    Pool,
    both_kinds,
    busy,
    configured,
    counts,
    double,
    logged,
    nothing,
    turns,
)

pytestmark = [pytest.mark.anyio, both_kinds]


async def sleep(seconds: float) -> float:
    """Take some time."""
    await anyio.sleep(seconds)
    return seconds


async def opened(kind: Kind, **settings: Any) -> Pool:
    """Enter a pool that the test shuts down by itself."""
    pool: Pool = await kind("p", configured(**settings)).__aenter__()
    return pool


def shape(report: WorkerPoolReport) -> tuple[bool, tuple[str, ...]]:
    """Return what a report says, without the time it took."""
    return report.drained, report.cut_short


async def check_closed(pool: Pool) -> None:
    """It takes no jobs in any way, and another shutdown changes nothing."""
    text = re.escape("worker pool 'p' takes no jobs any more: got one in state 'closed'; get another pool")
    assert "closed" == pool.state
    for refused in (pool.submit(nothing), pool.asubmit(nothing), pool.amap(double, [1]), pool.__aenter__()):
        with pytest.raises(WorkerPoolClosedError, match=text):
            await refused
    with pytest.raises(WorkerPoolClosedError, match=text):
        pool.submit_nowait(nothing)
    before = pool.metrics
    assert isinstance(await pool.shutdown(), WorkerPoolReport)
    assert before == pool.metrics
    assert (0, 0, 0, ()) == (before.queued, before.running, before.workers, pool.jobs())


# Waiting.


@pytest.mark.parametrize("name", ["shutdown", "ashutdown"])
async def test_shutdown_drains(kind: Kind, name: str) -> None:
    """All that was accepted is done first; then nothing of the pool is left."""
    door = Door()
    pool = await opened(kind, workers=2)
    for number in range(5):
        await pool.submit(door, number)
    reports: list[WorkerPoolReport] = []

    async def shut_down() -> None:
        reports.append(await getattr(pool, name)(wait=True))

    async with anyio.create_task_group() as group:
        group.start_soon(shut_down)
        await anyio.wait_all_tasks_blocked()
        assert ("draining", []) == (pool.state, reports)
        with pytest.raises(WorkerPoolClosedError, match="in state 'draining'"):
            await pool.submit(nothing)
        door.opened.set()
    assert [(True, ())] == [shape(report) for report in reports]
    assert reports[0].duration >= 0
    assert list(range(5)) == sorted(door.left)
    assert {"succeeded": 5} == counts(pool.metrics)
    assert Host.find() is None
    await check_closed(pool)


@simulate(runs=10)
async def test_a_limit_for_the_draining(kind: Kind, caplog: pytest.LogCaptureFixture) -> None:
    """What is not done by then is cut short, and named; what has been done is not."""
    caplog.clear()
    unwound: list[str] = []

    async def work() -> None:
        try:
            await sleep(100)
        finally:
            with anyio.CancelScope(shield=True):
                await sleep(1)
            unwound.append("work")

    pool = await opened(kind)
    await pool.submit(sleep, 2)
    await pool.submit(work)
    await pool.submit(nothing)
    began = anyio.current_time()
    report = await pool.shutdown(timeout=5)
    assert 6 == anyio.current_time() - began
    assert (False, {work.__qualname__, "nothing"}, 6) == (report.drained, set(report.cut_short), report.duration)
    assert (["work"], {"succeeded": 1, "cancelled": 2}) == (unwound, counts(pool.metrics))
    (record,) = logged(caplog)
    assert ("agentcore.pools", logging.WARNING) == (record.name, record.levelno)
    assert f"worker pool 'p' was shut down before these jobs had ended: {work.__qualname__}" == record.message
    await check_closed(pool)


@simulate(runs=5)
async def test_the_limit_of_the_configuration(kind: Kind) -> None:
    """It counts where nothing else is said: for `shutdown` and for leaving the block."""
    for way in ("shutdown", "block", "given"):
        pool = await opened(kind, shutdown_timeout=3)
        await pool.submit(sleep, 100)
        began = anyio.current_time()
        if way == "block":
            await pool.__aexit__(None, None, None)
        else:
            await pool.shutdown(timeout=7 if way == "given" else None)
        assert (7 if way == "given" else 3) == anyio.current_time() - began
        await check_closed(pool)


async def test_callers_are_told_when_they_are_cut_short(kind: Kind) -> None:
    """Those whose job runs, after it has unwound, and those whose job waits."""
    door, told = Door(), list[str]()
    pool = await opened(kind)

    async def call(who: str) -> None:
        with pytest.raises(WorkerPoolClosedError, match="worker pool 'p' takes no jobs any more"):
            await pool.asubmit(door, who)
        told.append(who)

    async with anyio.create_task_group() as group:
        for who in ("running", "queued"):
            group.start_soon(call, who)
            await anyio.wait_all_tasks_blocked()
        report = await pool.shutdown(timeout=0)
    assert (False, {"Door"}, 2) == (report.drained, set(report.cut_short), len(report.cut_short))
    assert {"running", "queued"} == set(told)
    assert ["running"] == door.came == door.left
    await check_closed(pool)


async def test_no_time_for_a_job_that_has_not_made_its_first_step(kind: Kind) -> None:
    """It is named as well, begun or not."""
    pool = await opened(kind)
    pool.submit_nowait(anyio.sleep_forever)
    report = await pool.shutdown(timeout=0)
    assert (False, 1) == (report.drained, len(report.cut_short))
    await check_closed(pool)


@simulate(runs=5)
async def test_a_second_shutdown(kind: Kind) -> None:
    """It waits for the same end, and may be in more of a hurry."""
    ends: list[tuple[str, float]] = []
    begun = anyio.Event()
    pool = await opened(kind)

    async def work() -> None:
        begun.set()
        await anyio.sleep(10)

    await pool.submit(work)
    await begun.wait()

    async def shut_down(name: str, timeout: float | None, wait: bool = True) -> None:
        await pool.shutdown(wait, timeout)
        ends.append((name, anyio.current_time() - began))

    began = anyio.current_time()
    async with anyio.create_task_group() as group:
        group.start_soon(shut_down, "patient", None)
        await turns()
        group.start_soon(shut_down, "impatient", 3)
        group.start_soon(shut_down, "gone", None, False)
    assert [("gone", 0), ("impatient", 3), ("patient", 3)] == sorted(ends, key=lambda end: (end[1], end[0]))
    await check_closed(pool)


# Not waiting.


async def test_without_waiting(kind: Kind) -> None:
    """What waits is cancelled and named, what runs goes on to its end, and the caller is free at once."""
    door, told = Door(), list[bool]()
    pool = await opened(kind)

    async def call() -> None:
        with pytest.raises(WorkerPoolClosedError):
            await pool.asubmit(door, "queued")
        told.append(True)

    async with anyio.create_task_group() as group:
        await pool.submit(door, "running")
        await anyio.wait_all_tasks_blocked()
        group.start_soon(call)
        await anyio.wait_all_tasks_blocked()
        report = await pool.shutdown(wait=False)
        assert (False, ("Door",)) == shape(report)
        assert ("draining", 1) == (pool.state, door.inside)
        await anyio.wait_all_tasks_blocked()
        assert [True] == told
        door.opened.set()
        await anyio.wait_all_tasks_blocked()
        assert "closed" == pool.state
    assert ["running"] == door.left
    assert Host.find() is None
    await check_closed(pool)


async def test_without_waiting_and_nothing_to_wait_for(kind: Kind) -> None:
    pool = await opened(kind)
    await pool.asubmit(nothing)
    assert (True, ()) == shape(await pool.shutdown(wait=False))
    await anyio.wait_all_tasks_blocked()
    await check_closed(pool)


async def test_waiting_after_all(kind: Kind) -> None:
    """A shutdown that waits, after one that does not."""
    door = Door()
    pool = await opened(kind)
    await pool.submit(door)
    await anyio.wait_all_tasks_blocked()
    await pool.shutdown(wait=False)
    async with anyio.create_task_group() as group:
        group.start_soon(pool.shutdown)
        await anyio.wait_all_tasks_blocked()
        assert "draining" == pool.state
        door.opened.set()
    await check_closed(pool)


# Who shuts it down.


async def test_a_job_cannot_wait_for_its_own_end(kind: Kind) -> None:
    """Neither can a task of a job. Without waiting it may."""
    pool = await opened(kind, workers=2)

    async def from_inside() -> str:
        with pytest.raises(WorkerPoolDeadlockError) as caught:
            await pool.shutdown()
        with pytest.raises(ExceptionGroup) as group_caught:
            async with anyio.create_task_group() as group:
                group.start_soon(pool.shutdown)
        assert group_caught.group_contains(WorkerPoolDeadlockError)
        assert "open" == pool.state
        await pool.shutdown(wait=False)
        return str(caught.value)

    assert (
        f"shutdown of worker pool 'p' would wait for the job that calls it: got a call in {pool!r} itself; "
        "pass wait=False, or call it elsewhere"
    ) == await pool.asubmit(from_inside)
    await anyio.wait_all_tasks_blocked()
    await check_closed(pool)


async def test_a_job_of_another_pool_may(kind: Kind) -> None:
    async with kind("other", configured()) as other:
        pool = await opened(kind)
        await pool.submit(double, 1)
        assert (True, ()) == shape(await other.asubmit(pool.shutdown))
    await check_closed(pool)


async def test_a_cancelled_shutdown(kind: Kind) -> None:
    """The pool goes on draining; another call waits for the end."""
    door = Door()
    pool = await opened(kind)
    await pool.submit(door, 1)
    await pool.submit(door, 2)
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as group:
            group.start_soon(pool.shutdown)
            await anyio.wait_all_tasks_blocked()
            scope.cancel()
    assert ("draining", 1, 1) == (pool.state, pool.metrics.queued, pool.metrics.running)
    door.opened.set()
    assert (True, ()) == shape(await pool.shutdown())
    assert [1, 2] == door.left
    await check_closed(pool)


def test_a_shutdown_cancelled_wherever_it_waits(kind: Kind) -> None:
    """Whatever it had come to, the next one comes to the end."""

    class Build:
        async def __aenter__(self) -> Self:
            self.done: list[int] = []
            self.pool = await opened(kind)
            for number in range(3):
                await self.pool.submit(self.note, number)
            return self

        async def __aexit__(self, *_error: object) -> None:
            await self.pool.shutdown()

        async def note(self, number: int) -> None:
            await anyio.sleep(1)
            self.done.append(number)

    async def check(build: Build) -> None:
        await build.pool.shutdown()
        assert [0, 1, 2] == build.done
        await check_closed(build.pool)

    report = cancel_everywhere(lambda build: build.pool.shutdown(), build=Build, check=check, within=60)
    assert sum(report.points.values()) > 4


async def test_the_timeout_is_checked(kind: Kind) -> None:
    async with kind("p") as pool:
        for wrong in (-1, "3", float("nan")):
            with pytest.raises(ConfigurationError, match="timeout"):
                await pool.shutdown(timeout=wrong)  # type: ignore[arg-type]
        assert "open" == pool.state


# Places.


async def test_a_pool_that_was_never_entered(kind: Kind) -> None:
    """It says what to do; shutting it down is enough to be rid of it."""
    pool = kind("p")
    text = (
        "worker pool 'p' must be entered before it gets jobs: got one in a pool that lives nowhere; "
        "write `async with pool:`, or get it by get_worker_pool"
    )
    for call in (lambda: pool.submit(nothing), lambda: pool.asubmit(nothing)):
        with pytest.raises(WorkerPoolError) as caught:
            await call()
        assert text == str(caught.value)
    with pytest.raises(WorkerPoolError, match="must be entered"):
        pool.submit_nowait(nothing)
    assert [WorkerPoolError] == [type(error) for error in await pool.amap(double, [1])]
    assert ("open", 0, ()) == (pool.state, pool.metrics.workers, pool.jobs())
    assert (True, ()) == shape(await pool.shutdown())
    assert "closed" == pool.state
    with pytest.raises(WorkerPoolClosedError):
        async with pool:
            pass


async def test_a_plain_with_is_an_error_that_says_so(kind: Kind) -> None:
    text = "worker pool 'p' lives in an event loop: got a plain `with`; write `async with` or await its shutdown"
    pool = kind("p")
    with pytest.raises(TypeError) as caught, pool:
        pass
    assert text == str(caught.value)
    async with pool:
        with pytest.raises(TypeError, match="write `async with`"), pool:
            pass
        assert 2 == await pool.asubmit(double, 1)


async def test_the_plain_map_is_refused(kind: Kind) -> None:
    async with kind("p") as pool:
        for view in (pool, pool.options(timeout=3)):
            with pytest.raises(WorkerPoolError) as caught:
                view.map(double, [1, 2])
            assert (
                "map of worker pool 'p' would block the event loop that its jobs run in: got a call of it; "
                "use `await pool.amap(...)`"
            ) == str(caught.value)


async def test_amap_and_as_completed(kind: Kind) -> None:
    """In the order of the items, errors among them; or as they come."""

    async def odd(number: int) -> int:
        await turns(20 - number)
        if number % 2:
            raise Boom(str(number))
        return number

    async with kind("p", configured(workers=3, max_queue_size=2)) as pool:
        found = await pool.amap(odd, range(20))
        assert [number if number % 2 == 0 else str(number) for number in range(20)] == [
            str(one) if isinstance(one, Boom) else one for one in found
        ]
        assert [] == await pool.amap(odd, [])
        async with pool.as_completed(odd, [4, 5]) as results:
            ended = {one.item: (one.index, one.value, str(one.error)) async for one in results}
        assert {4: (0, 4, "None"), 5: (1, None, "5")} == ended
        door = Door()
        async with pool.as_completed(door, range(10)) as results:
            await anyio.wait_all_tasks_blocked()
        assert 3 == door.peak == len(door.left)
    assert {"succeeded": 11, "failed": 11, "cancelled": 6} == counts(pool.metrics)


def _elsewhere(kind: str, function: Callable[[], Any]) -> Any:
    """Call a function in a thread without a loop, or await what it gives in another loop."""
    found: list[BaseException] = []

    async def in_loop() -> None:
        result = function()
        if hasattr(result, "__await__"):
            await result

    def run() -> None:
        try:
            function() if kind == "thread" else anyio.run(in_loop, backend=kind)
        except WorkerPoolError as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(30)
    return found


@pytest.mark.parametrize("other", ["thread", "asyncio", "trio"])
async def test_in_another_place(kind: Kind, other: str) -> None:
    """Of another thread and of another loop: refused, and nothing is changed."""
    async with kind("p", configured()) as pool:
        calls: list[Callable[[], Any]] = [lambda: pool.submit_nowait(nothing)]
        if other != "thread":
            calls += [
                lambda: pool.submit(nothing),
                lambda: pool.asubmit(nothing),
                lambda: pool.options(when_full="wait").submit(nothing),
                pool.shutdown,
                pool.__aenter__,
            ]
        for call in calls:
            (error,) = await anyio.to_thread.run_sync(_elsewhere, other, call)
            assert (
                "worker pool 'p' must be used in its own event loop: got a call in another one, or in a thread; "
                "use runtime.from_thread(...)"
            ) == str(error)
        assert (True, {}) == (pool.state == "open", counts(pool.metrics))
        assert 2 == await anyio.to_thread.run_sync(anyio.from_thread.run, pool.asubmit, double, 1)


async def test_entered_twice(kind: Kind) -> None:
    """The inner block ends it."""
    async with kind("p", configured()) as pool:
        async with pool as same:
            assert same is pool
            assert 2 == await pool.asubmit(double, 1)
        await check_closed(pool)


async def test_names_are_checked(kind: Kind) -> None:
    for wrong in ("", None, 3):
        with pytest.raises(ConfigurationError, match="name of a worker pool must be a string that is not empty"):
            kind(wrong)  # type: ignore[arg-type]


async def test_what_it_is_called(kind: Kind) -> None:
    pool = kind("p")
    assert f"<{kind.__name__} 'p' open>" == repr(pool)
    async with pool, busy(pool):
        (job,) = pool.jobs()
        assert ("Door", False) == (job.function, job.abandoned)
        assert job.seconds >= 0
    assert f"<{kind.__name__} 'p' closed>" == repr(pool)
