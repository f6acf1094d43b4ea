"""Jobs that whoever submits them writes to a worker process himself, since that has nothing to do."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from agentcore import (
    PoolFuture,
    ProcessWorkerPool,
    ProcessWorkerPoolConfig,
    TaskPriority,
    WorkerCrashedError,
    WorkerPoolClosedError,
    WorkerTimeoutError,
)
from agentcore.pools import _child
from agentcore.pools._worker_process import Bell, Child
from tests.pools import process_jobs as jobs
from tests.pools.process_lines import LIMIT, Lines, children, exists, has_ended, open_files, wait_for_end, watched
from tests.pools.thread_helpers import soon

pytestmark = pytest.mark.anyio

Give = Callable[[Child, list[bytes]], None]


class Giving:
    """What was given to processes by whoever has submitted it.

    Attributes:
        threads: who has done it, one for each job.
        before: called with the child before the job is written.
        after: called when it is.
    """

    def __init__(self, give: Give) -> None:
        self.threads: list[int] = []
        self.before: Callable[[Child], object] = str
        self.after: Callable[[], object] = str

        def method(child: Child, content: list[bytes]) -> None:
            self.threads.append(threading.get_ident())
            self.before(child)
            give(child, content)
            self.after()

        self.method = method  # a function, to be one of the class


@pytest.fixture
def giving(monkeypatch: pytest.MonkeyPatch) -> Giving:
    giving = Giving(Child.give)
    monkeypatch.setattr(Child, "give", giving.method)
    return giving


@pytest.fixture
def reaped(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Is set when a child has been reaped."""
    event, reap = threading.Event(), Child.reap

    def reap_and_tell(child: Child) -> int:
        try:
            return reap(child)
        finally:
            event.set()

    monkeypatch.setattr(Child, "reap", reap_and_tell)
    return event


@pytest.fixture
async def pool() -> AsyncIterator[ProcessWorkerPool]:
    """A pool of one worker, which has nothing to do."""
    async with ProcessWorkerPool("direct", ProcessWorkerPoolConfig(workers=1, idle_timeout=None)) as pool:
        assert 2 == await pool.asubmit(jobs.double, 1)
        yield pool


@pytest.fixture
def lines(tmp_path: Path) -> Iterator[Lines]:
    lines = Lines(tmp_path)
    yield lines
    lines.close()


async def rests(pool: ProcessWorkerPool) -> None:
    """Wait until the worker has nothing to do: it tells of a future's end before it looks for more."""
    await soon(lambda: pool._idle)


async def wait(event: threading.Event) -> None:
    assert await anyio.to_thread.run_sync(event.wait, LIMIT)


class Counted:
    """Counts how often it is pickled."""

    def __init__(self, length: int = 0) -> None:
        self.times = 0
        self.length = length

    def __reduce__(self) -> tuple[Any, ...]:
        self.times += 1
        return bytes, (b"x" * self.length,)


class Doing:
    """Does something while it is pickled."""

    def __init__(self, do: Callable[[], object]) -> None:
        self.do = do

    def __reduce__(self) -> tuple[Any, ...]:
        self.do()
        return int, ()


# Who does what.


async def test_whoever_submits_writes(pool: ProcessWorkerPool, giving: Giving) -> None:
    """In an event loop, in a thread without one; the numbers are those of any other job."""
    here = threading.get_ident()
    assert 4 == await pool.asubmit(jobs.double, 2)
    assert 6 == await pool.submit(jobs.double, 3)
    await rests(pool)
    assert 8 == pool.submit(jobs.double, 4).result(LIMIT)
    assert [here] * 3 == giving.threads
    await rests(pool)
    assert 10 == await anyio.to_thread.run_sync(lambda: pool.submit(jobs.double, 5).result(LIMIT))
    assert 4 == len(giving.threads)
    assert giving.threads[3] != here
    metrics = pool.metrics
    assert (5, 0, 0, 1) == (metrics.succeeded, metrics.queued, metrics.running, metrics.workers)
    assert 5 == sum(metrics.wait_histogram) == sum(metrics.run_histogram)


async def test_worker_is_given_a_job_before_it_sleeps(pool: ProcessWorkerPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes for the next one all the same when it has done it."""
    turn, futures = pool._turn, list[PoolFuture[int]]()

    def turn_and_submit(*args: Any) -> Any:
        job = turn(*args)
        if not futures:
            futures.extend(pool.submit(jobs.double, number) for number in (2, 3))
        return job

    monkeypatch.setattr(pool, "_turn", turn_and_submit)
    assert 2 == await pool.asubmit(jobs.double, 1)
    await soon(lambda: len(futures) == 2)
    with anyio.fail_after(LIMIT):
        assert [4, 6] == [await future for future in futures]


async def test_running_job_is_seen(pool: ProcessWorkerPool, giving: Giving, lines: Lines) -> None:
    future = pool.submit(jobs.meet, *lines.paths, "met")
    assert future.running()
    assert ["meet"] == [job.function for job in pool.jobs()]
    assert (0, 1) == (pool.metrics.queued, pool.metrics.running)
    assert not future.cancel()
    lines.gate.say()
    assert "met" == await future
    assert 1 == len(giving.threads)


async def test_busy_worker_takes_jobs_from_the_queue(pool: ProcessWorkerPool, giving: Giving, lines: Lines) -> None:
    """By their priority, as ever; whoever submits them pickles nothing."""
    first = pool.submit(jobs.meet, *lines.paths)
    counted = Counted()
    order: list[str] = []
    plain = pool.submit(jobs.echo, counted)
    urgent = pool.options(priority=TaskPriority.CRITICAL).submit(jobs.echo)
    plain.add_done_callback(lambda _: order.append("plain"))
    urgent.add_done_callback(lambda _: order.append("urgent"))
    assert 0 == counted.times
    lines.gate.say()
    await first
    await plain
    assert (["urgent", "plain"], 1, 1) == (order, counted.times, len(giving.threads))


@pytest.mark.parametrize(
    ("length", "is_direct", "times"),
    [
        (0, True, 1),
        (32_000, True, 1),
        (33_000, False, 1),
        (60_000, False, 1),
        (70_000, False, 2),
        (1_000_000, False, 2),
    ],
)
async def test_long_contents_are_left_to_the_worker(
    pool: ProcessWorkerPool, giving: Giving, length: int, *, is_direct: bool, times: int
) -> None:
    """What has been pickled whole is not pickled again."""
    counted = Counted(length)
    assert ((b"x" * length,), {}) == await pool.asubmit(jobs.echo, counted)
    assert (is_direct, times) == (bool(giving.threads), counted.times)
    assert 2 == await pool.asubmit(jobs.double, 1)


async def test_long_list_is_not_pickled_to_its_end(pool: ProcessWorkerPool) -> None:
    """In the event loop, that is: the rest could take any time."""
    here, threads = threading.get_ident(), set[int]()
    items: list[Any] = [*range(50_000), Doing(lambda: threads.add(threading.get_ident()))]
    (found,), _ = await pool.asubmit(jobs.echo, items)
    assert 50_001 == len(found)
    assert threads
    assert here not in threads


async def test_pickling_error_is_the_outcome(pool: ProcessWorkerPool, giving: Giving) -> None:
    """By the future, if it is submitted; the worker is as good as before."""
    lock = threading.Lock()
    future = pool.submit(jobs.echo, lock)
    caught: list[BaseException] = []
    with pytest.raises(TypeError) as by_future:
        await future
    with pytest.raises(TypeError) as by_call:
        await pool.asubmit(jobs.echo, lock)
    caught += [by_future.value, by_call.value]
    for error in caught:
        assert ["raised while job echo was pickled for worker pool 'direct'"] == error.__notes__
    assert (1, 2, 0) == (pool.metrics.succeeded, pool.metrics.failed, pool.metrics.running)
    assert not giving.threads
    assert 2 == await pool.asubmit(jobs.double, 1)


async def test_what_stops_the_caller_is_his(pool: ProcessWorkerPool) -> None:
    """Ctrl-C while he pickles: there is no job then."""

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pool.submit(jobs.echo, Doing(stop))
    assert (0, 0, 0) == (pool.metrics.queued, pool.metrics.running, pool.metrics.failed)
    assert 2 == await pool.asubmit(jobs.double, 1)


async def test_caller_who_is_deep_in_calls(pool: ProcessWorkerPool) -> None:
    """The thread of the worker has more room."""
    nested: list[Any] = []
    for _ in range(200):
        nested = [nested]

    def descend(left: int) -> Any:
        return descend(left - 1) if left else pool.submit(jobs.echo, nested)

    depth = 0
    frame = sys._getframe()
    while frame.f_back is not None:
        depth, frame = depth + 1, frame.f_back
    future = descend(sys.getrecursionlimit() - depth - 150)
    assert ((nested,), {}) == await future


async def test_pickling_that_submits(pool: ProcessWorkerPool) -> None:
    """The inner job takes the worker; the outer one, pickled already, waits for it."""
    inner: list[Any] = []
    counted = Counted()
    outer = pool.submit(jobs.echo, Doing(lambda: inner.append(pool.submit(jobs.double, 21))), counted)
    with anyio.fail_after(LIMIT):
        assert ((0, b""), {}) == await outer
        assert 42 == await inner[0]
    assert (1, 1) == (len(inner), counted.times)


async def test_collector_that_submits(pool: ProcessWorkerPool, giving: Giving) -> None:
    """While the job is being written: the lock is held, and can be had once more."""
    inner: list[Any] = []

    class Dying:
        def __del__(self) -> None:
            inner.append(pool.submit(jobs.double, 21))

    def collect(_: Child) -> None:
        giving.before = str
        Dying()
        gc.collect()

    giving.before = collect
    with anyio.fail_after(LIMIT):
        assert 4 == await pool.asubmit(jobs.double, 2)
        assert 42 == await inner[0]


# Workers that die.


async def test_death_of_idle_worker_is_noticed(
    pool: ProcessWorkerPool, giving: Giving, reaped: threading.Event
) -> None:
    """At once, and it costs no job; the thread of the worker stays."""
    first = await pool.asubmit(jobs.pid)
    os.kill(first, signal.SIGKILL)
    await wait(reaped)
    assert not exists(first)
    assert 1 == pool.metrics.workers
    second = await pool.asubmit(jobs.pid)
    third = await pool.asubmit(jobs.pid)
    assert (first != second, second) == (True, third)
    assert 2 == len(giving.threads)  # the first and the last
    assert (4, 0) == (pool.metrics.succeeded, pool.metrics.crashed)


async def test_worker_without_process_is_called_last(lines: Lines, reaped: threading.Event) -> None:
    """As long as there is one that has one."""
    async with ProcessWorkerPool("two", ProcessWorkerPoolConfig(workers=2, idle_timeout=None)) as pool:
        both = [pool.submit(jobs.meet, *lines.paths) for _ in range(2)]
        first, second = [int(await lines.begun.heard()) for _ in both]
        lines.gate.say(times=2)
        for future in both:
            await future
        last = await pool.asubmit(jobs.pid)
        os.kill(last, signal.SIGKILL)
        await wait(reaped)
        assert [({first, second} - {last}).pop()] * 3 == [await pool.asubmit(jobs.pid) for _ in range(3)]


async def test_worker_dies_before_it_is_written_to(pool: ProcessWorkerPool, giving: Giving) -> None:
    """The thread of the worker sees the end and gives the job to another one."""
    first = await pool.asubmit(jobs.pid)

    def kill(_: Child) -> None:
        giving.before = str
        with watched(first) as worker:
            os.kill(first, signal.SIGKILL)
            assert has_ended(worker)

    giving.before = kill
    counted = Counted()
    with anyio.fail_after(LIMIT):
        assert ((b"",), {}) == await pool.asubmit(jobs.echo, counted)
    assert (1, 2) == (counted.times, len(giving.threads))
    assert first != await pool.asubmit(jobs.pid)
    assert (4, 0, 0) == (pool.metrics.succeeded, pool.metrics.crashed, pool.metrics.running)


async def test_worker_dies_before_it_has_begun(pool: ProcessWorkerPool, giving: Giving) -> None:
    """It has what was written; but nothing has been done of it."""
    await pool.asubmit(jobs.refuse_to_begin)
    with anyio.fail_after(LIMIT):
        assert 2 == await pool.asubmit(jobs.double, 1)
    assert 2 == len(giving.threads)
    assert (3, 0) == (pool.metrics.succeeded, pool.metrics.crashed)


async def test_worker_dies_in_the_job(pool: ProcessWorkerPool, giving: Giving) -> None:
    with pytest.raises(WorkerCrashedError, match="got signal 9;"):
        await pool.asubmit(jobs.die)
    assert 2 == await pool.asubmit(jobs.double, 1)
    assert (2, 1, 1) == (pool.metrics.succeeded, pool.metrics.crashed, len(giving.threads))


async def test_line_takes_nothing(pool: ProcessWorkerPool, giving: Giving, monkeypatch: pytest.MonkeyPatch) -> None:
    """For want of memory in the system, say: the worker lives, but can be relied on no more."""
    first = await pool.asubmit(jobs.pid)
    send = _child.Channel.send

    def fail(_: Child) -> None:
        giving.before = str
        monkeypatch.setattr(_child.Channel, "send", refuse)

    def refuse(*args: Any) -> None:
        monkeypatch.setattr(_child.Channel, "send", send)
        raise OSError("no buffer")

    giving.before = fail
    with anyio.fail_after(LIMIT):
        assert first != await pool.asubmit(jobs.pid)
    assert not exists(first)


async def test_idle_worker_that_says_something(pool: ProcessWorkerPool, lines: Lines, reaped: threading.Event) -> None:
    """A thread that a job has left behind writes to the line: the process is ended."""
    first = await pool.asubmit(jobs.babble_later, *lines.paths)
    lines.gate.say()
    await wait(reaped)
    assert not exists(first)
    assert first != await pool.asubmit(jobs.pid)
    assert 0 == pool.metrics.crashed


# Limits.


@pytest.mark.parametrize("abandon", [True, False])
async def test_cancelled_when_it_has_just_been_written(
    pool: ProcessWorkerPool, giving: Giving, *, abandon: bool
) -> None:
    """The worker is killed, whether it has begun or not."""
    first = await pool.asubmit(jobs.pid)
    with watched(first) as worker, anyio.CancelScope() as scope:
        giving.after = scope.cancel
        await pool.options(abandon_on_cancel=abandon).asubmit(jobs.spin, os.devnull)
    giving.after = str
    assert scope.cancelled_caught
    with anyio.fail_after(LIMIT):
        assert first != await pool.asubmit(jobs.pid)
    assert not exists(first)
    assert (3, 1, 0, 0) == (
        pool.metrics.succeeded,
        pool.metrics.cancelled,
        pool.metrics.abandoned,
        pool.metrics.running,
    )
    assert worker


async def test_timeout_kills(pool: ProcessWorkerPool, giving: Giving) -> None:
    with pytest.raises(WorkerTimeoutError) as caught:
        await pool.asubmit(jobs.spin, os.devnull, timeout=0.05)
    assert ("running", 1) == (caught.value.details["phase"], len(giving.threads))
    assert 2 == await pool.asubmit(jobs.double, 1, timeout=LIMIT)


async def test_timeout_is_over_before_it_is_pickled(pool: ProcessWorkerPool, giving: Giving) -> None:
    """It has not begun then."""
    end = time.monotonic() + 0.01

    def compute() -> None:
        while time.monotonic() <= end:
            pass

    with pytest.raises(WorkerTimeoutError) as caught:
        await pool.asubmit(jobs.echo, Doing(compute), timeout=0.005)
    assert ("queued", 0) == (caught.value.details["phase"], len(giving.threads))
    assert 2 == await pool.asubmit(jobs.double, 1)


async def test_recycling(giving: Giving) -> None:
    """A worker does as many jobs as it is to, and no more."""
    config = ProcessWorkerPoolConfig(workers=1, max_jobs_per_worker=3)
    async with ProcessWorkerPool("recycled", config) as pool:
        found = [await pool.asubmit(jobs.pid) for _ in range(9)]
        assert 3 == len(set(found))
        assert found == [found[0]] * 3 + [found[3]] * 3 + [found[6]] * 3
    assert 6 == len(giving.threads)


@pytest.mark.parametrize("is_long", [False, True])
async def test_time_of_idle_worker_is_over_when_a_job_comes(
    pool: ProcessWorkerPool, monkeypatch: pytest.MonkeyPatch, *, is_long: bool
) -> None:
    """Given to it directly, or called: it finds that out and stays."""
    wait_for = Bell.wait
    monkeypatch.setattr(Bell, "wait", lambda bell, timeout: wait_for(bell, timeout) and False)
    await pool.asubmit(jobs.pid)  # the one wait that has begun before
    with anyio.fail_after(LIMIT):
        found = [await pool.asubmit(jobs.echo, b"x" * 100_000 * is_long) for _ in range(20)]
    assert 20 == len(found)
    assert 22 == pool.metrics.succeeded


async def test_idle_workers_expire_among_jobs() -> None:
    """At about the time at which the next job comes: none is lost."""
    config = ProcessWorkerPoolConfig(workers=1, idle_timeout=0.001)
    async with ProcessWorkerPool("brief", config) as pool:
        for number in range(30):
            end = time.monotonic() + number % 5 * 0.0005
            while time.monotonic() < end:
                pass
            with anyio.fail_after(LIMIT):
                assert 2 * number == await pool.asubmit(jobs.double, number)
    assert (30, 0) == (pool.metrics.succeeded, pool.metrics.workers)


# The end.


async def test_end_of_idle_pool_leaves_nothing(giving: Giving) -> None:
    """No process, no thread, no descriptor."""
    before, threads = children(), threading.active_count()
    files = open_files()
    for how in ("shutdown", "block", "unused"):
        pool = ProcessWorkerPool("ending", ProcessWorkerPoolConfig(workers=2, idle_timeout=None))
        async with pool:
            for number in range(2):
                assert 2 * number == await pool.asubmit(jobs.double, number)
            if how == "shutdown":
                with anyio.fail_after(LIMIT):
                    assert (await pool.shutdown()).drained
                with pytest.raises(WorkerPoolClosedError):
                    await pool.asubmit(jobs.double, 1)
                with pytest.raises(WorkerPoolClosedError):
                    pool.submit(jobs.double, 1)
        assert before == children()
        assert threads >= threading.active_count() - 1  # AnyIO's own one
    gc.collect()
    assert set(open_files().values()) <= set(files.values())
    assert 3 == len(giving.threads)


async def test_pool_ends_while_its_jobs_are_pickled(pool: ProcessWorkerPool) -> None:
    """Between the look and the lock: refused as ever."""
    with pytest.raises(WorkerPoolClosedError):
        pool.submit(jobs.echo, Doing(lambda: pool._begin_end(cancel_waiting=True)))
    assert 0 == pool.metrics.running


# Forks.


async def test_forked_program_does_not_write(pool: ProcessWorkerPool, giving: Giving, lines: Lines) -> None:
    """The workers belong to the one that has started them: no line of theirs is written to, nobody is called."""
    first = await pool.asubmit(jobs.pid)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there are threads
        forked = os.fork()
    if not forked:
        try:
            for content in (b"", b"x" * 100_000):
                pool.submit(jobs.echo, content)
            jobs.say(lines.begun.path, len(giving.threads))
        finally:
            os._exit(0)
    try:
        assert "1" == await lines.begun.heard()  # of the one before
    finally:
        os.waitpid(forked, 0)  # noqa: ASYNC222 - it is about to end
    assert [first] * 3 == [await pool.asubmit(jobs.pid) for _ in range(3)]


async def test_fork_in_a_job(pool: ProcessWorkerPool, giving: Giving, lines: Lines) -> None:
    """What it leaves behind does not keep the line open: the death of the worker is noticed."""
    first = await pool.asubmit(jobs.leave_daemon, *lines.paths, dies=False)
    await lines.begun.heard()
    assert first == await pool.asubmit(jobs.pid)
    with pytest.raises(WorkerCrashedError):
        await pool.asubmit(jobs.leave_daemon, *lines.paths, dies=True)
    await lines.begun.heard()
    lines.gate.say(times=2)
    assert first != await pool.asubmit(jobs.pid)
    assert 3 == len(giving.threads)


# Many at once.


async def test_many_submitters(giving: Giving) -> None:
    """Threads and tasks: each gets what is his, nothing is lost, nothing is done twice."""
    async with ProcessWorkerPool("many", ProcessWorkerPoolConfig(workers=3)) as pool:
        results: dict[int, Any] = {}

        def in_thread(start: int) -> None:
            for number in range(start, start + 60):
                content = b"x" * (50_000 * (number % 20 == 0))
                results[number] = pool.submit(jobs.echo, number, content).result(LIMIT)

        async def in_task(start: int) -> None:
            for number in range(start, start + 60):
                content = b"x" * (100_000 * (number % 20 == 0))
                results[number] = await pool.asubmit(jobs.echo, number, content)

        async with anyio.create_task_group() as group:
            for number in range(6):
                group.start_soon(in_task, number * 100)
                group.start_soon(anyio.to_thread.run_sync, in_thread, 1000 + number * 100)
        assert 720 == len(results)
        assert all(number == found[0][0] for number, found in results.items())
        metrics = pool.metrics
    assert (720, 0, 0, 0) == (metrics.succeeded, metrics.failed, metrics.queued, metrics.running)
    assert giving.threads


async def test_killed_while_idle_again_and_again() -> None:
    """At the moment at which the next job comes, or near it: each job is done once."""
    async with ProcessWorkerPool("killed", ProcessWorkerPoolConfig(workers=1, idle_timeout=None)) as pool:
        for number in range(25):
            process = await pool.asubmit(jobs.pid)
            with watched(process) as worker:
                os.kill(process, signal.SIGKILL)
                if number % 3 == 0:
                    await wait_for_end(worker)
                with anyio.fail_after(LIMIT):
                    assert 2 * number == await pool.asubmit(jobs.double, number)
        assert (50, 0) == (pool.metrics.succeeded, pool.metrics.crashed)
