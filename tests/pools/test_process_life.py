"""Worker processes from their start to their end, and that nothing is left of them."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from agentcore import (
    AgentRuntime,
    ConfigurationError,
    ProcessWorkerPool,
    ProcessWorkerPoolConfig,
    RemoteTraceback,
    RuntimeConfig,
    WorkerPoolBrokenError,
    WorkerPoolClosedError,
    WorkerPoolError,
    WorkerTimeoutError,
)
from tests.pools import process_jobs as jobs
from tests.pools.process_lines import LIMIT, Lines, children, exists, open_files, wait_for_end, watched

pytestmark = pytest.mark.anyio


def config(**settings: Any) -> ProcessWorkerPoolConfig:
    return ProcessWorkerPoolConfig(**{"workers": 1, **settings})


@pytest.fixture
def lines(tmp_path: Path) -> Iterator[Lines]:
    lines = Lines(tmp_path)
    yield lines
    lines.close()


@pytest.fixture(autouse=True)
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers start as fast as elsewhere while these tests are measured: of most of them nothing would come anyway."""
    for name in [name for name in os.environ if name.startswith("COVERAGE")]:
        monkeypatch.delenv(name)


@pytest.fixture
def diary(tmp_path: Path) -> Path:
    """File in which each worker writes that it has begun."""
    return tmp_path / "diary"


def begun(diary: Path) -> list[int]:
    return [int(line) for line in diary.read_text().split()]


async def look_around() -> Callable[[], None]:
    """Return a check that there is nothing then that is not there now."""
    async with ProcessWorkerPool("warm", config()) as pool:  # what is imported by the first of all stays
        await pool.asubmit(jobs.pid)
    files, processes, threads = set(open_files().items()), children(), own_threads()

    def check() -> None:
        for thread in own_threads() - threads:
            thread.join(LIMIT)  # a timer that was called off needs a moment to end
        assert set() == files ^ set(open_files().items())
        assert processes == children()
        assert threads == own_threads()

    return check


def own_threads() -> set[threading.Thread]:
    """Return the threads that there are, without those that the event loop keeps for later."""
    return {thread for thread in threading.enumerate() if not thread.name.startswith(("AnyIO", "Trio"))}


def is_there(path: Path) -> bool:
    return path.exists()


# The start.


async def test_initializer_prepares_each_worker() -> None:
    """Once, before its first job, with its arguments."""
    async with ProcessWorkerPool("own", config(initializer=jobs.begin, initargs=("url", 7))) as pool:
        first = await pool.asubmit(jobs.settings)
        assert (1, ("url", 7)) == first[1:]
        assert first == await pool.asubmit(jobs.settings)
        with pytest.raises(WorkerPoolError, match="exit code 3"):
            await pool.asubmit(jobs.exit_now, 3)
        second = await pool.asubmit(jobs.settings)
        assert first[0] != second[0]
        assert first[1:] == second[1:]


async def test_workers_start_when_there_is_something_to_do() -> None:
    """And no more of them than jobs at a time."""
    before = children()
    async with ProcessWorkerPool("own", config(workers=3)) as pool:
        assert (before, 0) == (children(), pool.metrics.workers)
        for _ in range(3):
            await pool.asubmit(jobs.pid)
        assert (len(before) + 1, 1) == (len(children()), pool.metrics.workers)


async def test_initializer_that_raises_breaks_the_pool(diary: Path) -> None:
    """Everybody is told why, those who wait and those who come later; it is not tried again."""
    async with ProcessWorkerPool("own", config(initializer=jobs.fail_to_begin, initargs=(str(diary),))) as pool:
        futures = [pool.submit(jobs.double, number) for number in range(3)]
        for future in futures:
            with pytest.raises(
                WorkerPoolBrokenError, match=r"workers of pool 'own' cannot be started.*no database"
            ) as caught:
                with anyio.fail_after(LIMIT):
                    await future
            cause = caught.value.__cause__
            assert isinstance(cause, jobs.Picky)
            assert ("no database", 5432) == (cause.what, cause.number)
            assert isinstance(cause.__cause__, RemoteTraceback)
        with pytest.raises(WorkerPoolBrokenError, match="no database"):
            pool.submit(jobs.double, 1)
        with pytest.raises(WorkerPoolBrokenError, match="no database"):
            await pool.asubmit(jobs.double, 1)
        assert ("broken", 1, 3) == (pool.state, len(begun(diary)), pool.metrics.failed)
    assert not exists(begun(diary)[0])
    assert 0 == pool.metrics.workers


async def test_initializer_that_cannot_be_sent_breaks_the_pool() -> None:
    async with ProcessWorkerPool("own", config(initializer=lambda: None)) as pool:
        with pytest.raises(WorkerPoolBrokenError, match=r"cannot be started, so it takes no jobs.*lambda"):
            await pool.asubmit(jobs.pid)


async def test_initializer_that_kills_is_tried_three_times(diary: Path) -> None:
    async with ProcessWorkerPool("own", config(initializer=jobs.die_at_begin, initargs=(str(diary),))) as pool:
        with anyio.fail_after(LIMIT), pytest.raises(WorkerPoolBrokenError, match="ended before it was ready"):
            await pool.asubmit(jobs.pid)
        assert ("broken", 3) == (pool.state, len(set(begun(diary))))
    assert not any(exists(worker) for worker in begun(diary))


async def test_initializer_that_kills_twice_costs_no_job(diary: Path) -> None:
    """Nor does it count any more when a worker has started."""
    settings = config(initializer=jobs.die_twice_at_begin, initargs=(str(diary),), max_jobs_per_worker=1)
    async with ProcessWorkerPool("own", settings) as pool:
        assert 2 == await pool.asubmit(jobs.double, 1)
        assert 3 == len(set(begun(diary)))
        assert 4 == await pool.asubmit(jobs.double, 2)
        assert ("open", 2, 0) == (pool.state, pool.metrics.succeeded, pool.metrics.crashed)


@pytest.mark.parametrize(
    ("executable", "message"),
    [("/bin/false", "ended before it was ready"), ("/no/such/python", "FileNotFoundError")],
)
async def test_workers_that_cannot_start_break_the_pool(
    monkeypatch: pytest.MonkeyPatch, executable: str, message: str
) -> None:
    """With several that try at the same time, nobody waits for ever."""
    nothing_left = await look_around()
    monkeypatch.setattr(sys, "executable", executable)
    pool = ProcessWorkerPool("own", config(workers=2))

    async def ask() -> None:
        with pytest.raises(WorkerPoolBrokenError, match=message):
            await pool.asubmit(jobs.pid)

    async with pool:
        with anyio.fail_after(LIMIT):
            async with anyio.create_task_group() as group:
                for _ in range(5):
                    group.start_soon(ask)
        assert "broken" == pool.state
    nothing_left()


async def test_worker_that_is_not_ready_in_time_counts_as_one_that_cannot_start(lines: Lines) -> None:
    before = children()
    settings = config(initializer=jobs.meet, initargs=lines.paths, start_timeout=0.1)
    async with ProcessWorkerPool("own", settings) as pool:
        with anyio.fail_after(LIMIT), pytest.raises(WorkerPoolBrokenError, match="or was not ready in time"):
            await pool.asubmit(jobs.pid)
        assert before == children()


async def test_cancelled_caller_ends_a_worker_that_starts(lines: Lines) -> None:
    """However long its initializer would have taken."""
    settings = config(initializer=jobs.meet, initargs=lines.paths)
    async with ProcessWorkerPool("own", settings) as pool:
        async with anyio.create_task_group() as group:
            group.start_soon(pool.asubmit, jobs.pid)
            worker = int(await lines.begun.heard())
            group.cancel_scope.cancel()
        assert not exists(worker)
        lines.gate.say()
        assert worker != await pool.asubmit(jobs.pid)


async def test_timeout_ends_a_worker_that_starts(lines: Lines) -> None:
    before = children()
    settings = config(initializer=jobs.meet, initargs=lines.paths)
    async with ProcessWorkerPool("own", settings) as pool:
        with pytest.raises(WorkerTimeoutError, match="did not end within its timeout"):
            await pool.asubmit(jobs.pid, timeout=0.15)
        lines.gate.say(times=2)  # the one that dies may hear it too
        with anyio.fail_after(LIMIT):
            assert {await pool.asubmit(jobs.pid)} == children() - before


# The course of its life.


@pytest.mark.parametrize("limit", [1, 2])
async def test_worker_is_replaced_after_its_number_of_jobs(limit: int) -> None:
    """Ten jobs, one worker at a time, none of which is left."""
    async with ProcessWorkerPool("own", config(max_jobs_per_worker=limit)) as pool:
        with anyio.fail_after(LIMIT):
            workers = [await future for future in [pool.submit(jobs.pid) for _ in range(6)]]
        assert [limit] * (6 // limit) == [workers.count(worker) for worker in dict.fromkeys(workers)]
    assert not any(exists(worker) for worker in workers)


async def test_idle_worker_ends() -> None:
    """The next job starts another one."""
    async with ProcessWorkerPool("own", config(idle_timeout=0.05)) as pool:
        first = await pool.asubmit(jobs.pid)
        try:
            with watched(first) as worker:
                await wait_for_end(worker)
        except ProcessLookupError:
            pass  # it was quicker
        second = await pool.asubmit(jobs.pid)
        assert first != second
        assert (2, 0) == (pool.metrics.succeeded, pool.metrics.crashed)


async def test_idle_worker_stays_without_a_limit() -> None:
    async with ProcessWorkerPool("own", config(idle_timeout=None, start_timeout=None)) as pool:
        first = await pool.asubmit(jobs.pid)
        assert first == await pool.asubmit(jobs.pid)


async def test_hung_worker_is_ended_by_the_limit_of_the_pool(lines: Lines) -> None:
    """Though the loop is blocked; the job that waits for the worker is done by the next one."""
    async with ProcessWorkerPool("own", config(task_timeout=0.5)) as pool:
        hung = pool.submit(jobs.spin, lines.begun.path)
        process = int(lines.begun.hear())
        waiting = pool.submit(jobs.pid)
        with pytest.raises(
            WorkerTimeoutError, match=r"ran for longer than the task_timeout of its pool: got more than 0\.5"
        ):
            hung.result(LIMIT)
        assert process != waiting.result(LIMIT)
        assert not exists(process)
        assert 1 == pool.metrics.timed_out


async def test_job_that_waits_too_long_never_begins(lines: Lines, diary: Path) -> None:
    async with ProcessWorkerPool("own", config()) as pool:
        running = pool.submit(jobs.meet, *lines.paths, "unharmed")
        await lines.begun.heard()
        with pytest.raises(WorkerTimeoutError, match="was not begun within its timeout") as caught:
            await pool.asubmit(jobs.note, str(diary), 1, 1, timeout=0.05)
        assert "queued" == caught.value.details["phase"]
        lines.gate.say()
        assert "unharmed" == await running
    assert not is_there(diary)


async def test_cancelled_caller_takes_back_what_has_not_begun(lines: Lines, diary: Path) -> None:
    """The worker, which is at something else, lives on."""
    async with ProcessWorkerPool("own", config()) as pool:
        running = pool.submit(jobs.meet, *lines.paths, "unharmed")
        worker = int(await lines.begun.heard())
        async with anyio.create_task_group() as group:
            group.start_soon(pool.asubmit, jobs.note, str(diary), 1, 1)
            await anyio.wait_all_tasks_blocked()
            group.cancel_scope.cancel()
        lines.gate.say()
        assert "unharmed" == await running
        assert worker == await pool.asubmit(jobs.pid)
    assert not is_there(diary)


async def test_future_that_is_no_longer_awaited_goes_on(lines: Lines) -> None:
    """It belongs to the pool."""
    async with ProcessWorkerPool("own", config()) as pool:
        future = pool.submit(jobs.meet, *lines.paths, "unharmed")
        await lines.begun.heard()
        assert (True, False) == (future.running(), future.cancel())
        with anyio.move_on_after(0):
            await future
        lines.gate.say()
        assert "unharmed" == await future


# The end.


async def end_by_block(pool: ProcessWorkerPool, lines: Lines) -> None:
    async with pool:
        future = pool.submit(jobs.meet, *lines.paths, 1)
        await lines.begun.heard()
        lines.gate.say()
    assert 1 == future.result(0)


async def end_by_exception(pool: ProcessWorkerPool, lines: Lines) -> None:
    with pytest.raises(ZeroDivisionError):
        async with pool:
            running = pool.submit(jobs.spin, lines.begun.path)
            await lines.begun.heard()
            waiting = pool.submit(jobs.double, 1)
            raise ZeroDivisionError
    assert running.done()
    assert waiting.cancelled()


async def end_by_cancellation(pool: ProcessWorkerPool, lines: Lines) -> None:
    with anyio.CancelScope() as scope:
        async with pool:
            future = pool.submit(jobs.spin, lines.begun.path)
            await lines.begun.heard()
            scope.cancel()
            await future
    assert scope.cancelled_caught
    assert future.done()


async def end_without_waiting(pool: ProcessWorkerPool, lines: Lines) -> None:
    running = pool.submit(jobs.meet, *lines.paths, 1)
    await lines.begun.heard()
    waiting = pool.submit(jobs.double, 1)
    report = await pool.shutdown(wait=False)
    assert (waiting.cancelled(), running.done(), pool.state) == (True, False, "draining")
    assert ("double",) == report.cut_short
    with pytest.raises(WorkerPoolClosedError):
        pool.submit(jobs.double, 1)
    lines.gate.say()
    assert 1 == await running
    await pool.shutdown()


async def end_by_timeout(pool: ProcessWorkerPool, lines: Lines) -> None:
    running = pool.submit(jobs.spin, lines.begun.path)
    await lines.begun.heard()
    waiting = pool.submit(jobs.double, 1)
    report = await pool.shutdown(timeout=0.1)
    assert (False, ("double", "spin")) == (report.drained, report.cut_short)
    assert waiting.cancelled()
    with pytest.raises(WorkerPoolClosedError):
        running.result(0)


async def end_at_once(pool: ProcessWorkerPool, lines: Lines) -> None:
    running = pool.submit(jobs.spin, lines.begun.path)
    await lines.begun.heard()
    assert ("spin",) == (await pool.shutdown(timeout=0)).cut_short
    assert running.done()


async def end_in_a_thread(pool: ProcessWorkerPool, lines: Lines) -> None:
    def use() -> int:
        with pool:
            return pool.submit(jobs.double, 4).result(LIMIT)

    assert 8 == await anyio.to_thread.run_sync(use)


async def end_unused(pool: ProcessWorkerPool, lines: Lines) -> None:
    assert (await pool.ashutdown()).drained


async def end_with_crash(pool: ProcessWorkerPool, lines: Lines) -> None:
    async with pool:
        with pytest.raises(WorkerPoolError):
            await pool.asubmit(jobs.die)


@pytest.mark.parametrize(
    "end",
    [
        end_by_block,
        end_by_exception,
        end_by_cancellation,
        end_without_waiting,
        end_by_timeout,
        end_at_once,
        end_in_a_thread,
        end_unused,
        end_with_crash,
    ],
)
async def test_nothing_is_left(lines: Lines, end: Callable[[ProcessWorkerPool, Lines], Any]) -> None:
    """No descriptor, no process, not even a dead one, no thread, no file."""
    nothing_left = await look_around()
    pool = ProcessWorkerPool("own", config(workers=1))
    with anyio.fail_after(LIMIT):
        await end(pool, lines)
    assert ("closed", 0) == (pool.state, pool.metrics.workers)
    nothing_left()


async def test_job_that_was_cut_short_is_over_when_shutdown_returns(lines: Lines) -> None:
    """Its worker is gone, and whoever shared the future has been told."""
    pool = ProcessWorkerPool("own", config())
    pool.submit(jobs.spin, lines.begun.path)
    worker = int(await lines.begun.heard())
    began = time.monotonic()
    await pool.shutdown(timeout=0.1)
    assert time.monotonic() - began < 5
    assert not exists(worker)


async def test_files_for_long_contents_are_had_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system has none in memory alone, they have no name."""
    nothing_left = await look_around()
    monkeypatch.delattr(os, "memfd_create")
    async with ProcessWorkerPool("own", config()) as pool:
        assert ((bytes(100_000),), {}) == await pool.asubmit(jobs.echo, bytes(100_000))
    nothing_left()


# In a runtime.


async def test_runtime_drains_its_pools(lines: Lines) -> None:
    nothing_left = await look_around()
    async with AgentRuntime() as runtime:
        pool = runtime.pool("own", "process", config())
        assert isinstance(pool, ProcessWorkerPool)
        assert pool is runtime.pool("own")
        with pytest.raises(ConfigurationError, match="exists with another type"):
            runtime.pool("own", "thread")
        future = pool.submit(jobs.meet, *lines.paths, "drained")
        await lines.begun.heard()
        lines.gate.say()
    assert "drained" == future.result(0)
    assert "closed" == pool.state
    nothing_left()


async def test_runtime_ends_what_does_not_end(lines: Lines) -> None:
    """When the grace is over; its report says so."""
    nothing_left = await look_around()
    runtime = AgentRuntime(RuntimeConfig(grace=0.2))
    async with runtime:
        pool = runtime.pool("own", "process", config())
        assert isinstance(pool, ProcessWorkerPool)
        future = pool.submit(jobs.spin, lines.begun.path)
        worker = int(await lines.begun.heard())
    assert not exists(worker)
    with pytest.raises(WorkerPoolClosedError):
        future.result(0)
    assert runtime.report is not None
    assert "spin in pool own" in str(runtime.report)
    nothing_left()


async def test_failure_of_the_block_ends_the_jobs_of_the_runtime(lines: Lines) -> None:
    nothing_left = await look_around()
    with anyio.fail_after(LIMIT), pytest.raises(ZeroDivisionError):
        async with AgentRuntime() as runtime:
            pool = runtime.pool("own", "process", config())
            assert isinstance(pool, ProcessWorkerPool)
            pool.submit(jobs.spin, lines.begun.path)
            worker = int(await lines.begun.heard())
            raise ZeroDivisionError
    assert not exists(worker)
    nothing_left()


def test_thread_that_a_job_has_left_holds_up_no_end(lines: Lines) -> None:
    """The worker would wait for it; it has a moment for that."""
    before = open_files(), children()
    with ProcessWorkerPool("own", config()) as pool:
        worker = pool.submit(jobs.leave_thread_behind, *lines.paths).result(LIMIT)
    assert not exists(worker)
    assert before == (open_files(), children())
