"""What goes to a worker process and what comes back."""

from __future__ import annotations

import os
import pickle
import sys
import threading
import weakref
from collections.abc import Iterator
from contextvars import ContextVar
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
    ThreadWorkerPoolConfig,
    WorkerPoolConfig,
    WorkerPoolFullError,
    get_worker_pool,
    propagated,
)
from tests.pools import process_jobs as jobs
from tests.pools.process_lines import LIMIT, Lines

pytestmark = pytest.mark.anyio

TEXT = "a text of 36 characters, with a ß in"
request: ContextVar[Any] = ContextVar("request")
user: ContextVar[str] = ContextVar("user")


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessWorkerPool]:
    pool = ProcessWorkerPool("shared", ProcessWorkerPoolConfig(workers=2, propagate=("trace_id", "task_id", "request")))
    yield pool
    assert anyio.run(pool.shutdown, True, 5.0).drained


@pytest.fixture
def lines(tmp_path: Path) -> Iterator[Lines]:
    lines = Lines(tmp_path)
    yield lines
    lines.close()


# The call and its result.


async def test_call_is_made_in_another_process(pool: ProcessWorkerPool) -> None:
    """With its arguments, by position and by name; values are what they were."""
    assert os.getpid() != await pool.asubmit(jobs.pid)
    assert ((1, [2]), {"x": {3}, "timeouts": None}) == await pool.asubmit(jobs.echo, 1, [2], x={3}, timeouts=None)
    future = pool.submit(jobs.echo, TEXT, key=b"\0")
    assert ((TEXT,), {"key": b"\0"}) == await future
    assert ((TEXT,), {"key": b"\0"}) == future.result()


@pytest.mark.parametrize("length", [0, 1, 32_700, 32_768, 32_769, 65_536, 1_000_000, (8 << 20) + 1])
async def test_contents_of_every_length(pool: ProcessWorkerPool, length: int) -> None:
    """Short ones go through a socket, long ones through a file; one after the other."""
    content = bytes(range(256)) * (length // 256) + bytes(length % 256)
    assert ((content,), {}) == await pool.asubmit(jobs.echo, content)
    assert ((), {}) == await pool.asubmit(jobs.echo)


async def test_many_at_once_come_back_in_order(pool: ProcessWorkerPool) -> None:
    assert [2 * number for number in range(100)] == await pool.amap(jobs.double, range(100))
    found = set()
    async with pool.as_completed(jobs.double, range(20)) as results:
        async for one in results:
            found.add((one.index, one.item, one.value, one.error))
    assert {(number, number, 2 * number, None) for number in range(20)} == found


async def test_map_gives_errors_in_their_places(pool: ProcessWorkerPool) -> None:
    """In a thread, for it blocks."""
    found = await anyio.to_thread.run_sync(pool.map, jobs.double, [1, None, "x"])
    assert [2, "xx"] == [found[0], found[2]]
    assert isinstance(found[1], TypeError)
    assert isinstance(found[1].__cause__, RemoteTraceback)


async def test_blocked_event_loop_does_not_hold_it_up(pool: ProcessWorkerPool) -> None:
    """All of it happens in other threads."""
    assert 10 == pool.submit(jobs.double, 5).result(LIMIT)
    assert [0, 2, 4] == pool.map(jobs.double, range(3), timeout=LIMIT)


async def test_classes_and_methods_can_be_jobs(pool: ProcessWorkerPool) -> None:
    """Whatever can be pickled by its name."""
    assert "ab" == await pool.asubmit("a".__add__, "b")
    assert 255 == await pool.asubmit(int, "ff", 16)
    picky = await pool.asubmit(jobs.hand_over, dict)
    assert {} == picky


# Errors.


async def test_error_is_what_was_raised(pool: ProcessWorkerPool) -> None:
    """Its type, arguments, notes and attributes; by what it was raised stands in the cause."""
    with pytest.raises(ValueError, match="broken") as caught:
        await pool.asubmit(jobs.raise_plain, "broken")
    error = caught.value
    assert (ValueError, ("broken", 7)) == (type(error), error.args)
    assert ["first note", "second note"] == error.__notes__
    assert ("x", 1) == error.place  # type: ignore[attr-defined]
    cause = error.__cause__
    assert isinstance(cause, RemoteTraceback)
    assert str(cause).startswith("\nTraceback (most recent call last):\n")
    assert "process_jobs.py" in str(cause)
    assert "in raise_plain" in str(cause)
    assert str(cause).endswith("ValueError: ('broken', 7)\nfirst note\nsecond note\n")


async def test_error_of_a_class_with_arguments_of_its_own(pool: ProcessWorkerPool) -> None:
    """Is made without its constructor, and can be pickled again no worse than before."""
    with pytest.raises(jobs.Picky, match=r"disk full \(28\)") as caught:
        await pool.asubmit(jobs.raise_picky, "disk full", 28)
    error = caught.value
    assert ("disk full", 28, ["a note"]) == (error.what, error.number, error.__notes__)
    assert "in raise_picky" in str(error.__cause__)


async def test_error_with_causes_tells_them_in_its_traceback(pool: ProcessWorkerPool) -> None:
    with pytest.raises(RuntimeError, match="outer") as caught:
        await pool.asubmit(jobs.raise_chain)
    text = str(caught.value.__cause__)
    assert (
        text.index("Picky: inner (1)") < text.index("direct cause of the following") < text.index("RuntimeError: outer")
    )


async def test_group_of_errors_is_whole(pool: ProcessWorkerPool) -> None:
    with pytest.raises(ExceptionGroup) as caught:
        await pool.asubmit(jobs.raise_group)
    assert caught.group_contains(ValueError, match="one", depth=1)
    assert caught.group_contains(KeyError, match="two", depth=2)


async def test_error_of_the_library_keeps_its_details(pool: ProcessWorkerPool) -> None:
    with pytest.raises(ConfigurationError, match="x is wrong") as caught:
        await pool.asubmit(jobs.raise_of, ConfigurationError, "x is wrong", {"name": "x"})
    assert {"name": "x"} == caught.value.details


async def test_remote_traceback_can_be_pickled() -> None:
    """With the error that it is the cause of, it may go on to yet another process."""
    copy = pickle.loads(pickle.dumps(RemoteTraceback("Traceback: ...")))
    assert "\nTraceback: ..." == str(copy)


async def test_future_keeps_no_arguments() -> None:
    """Whoever keeps the outcome may keep it for long."""
    content = {1, 2}
    known = weakref.ref(content)
    async with ProcessWorkerPool("own", WorkerPoolConfig(workers=1)) as own:
        future = own.submit(jobs.double, 1)
        failed = own.submit(jobs.double, content)
        del content
    assert (2, TypeError) == (future.result(0), type(failed.exception(0)))
    assert known() is None


# What surrounds a job.


async def test_surroundings_are_those_of_the_program(pool: ProcessWorkerPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules are found as here, and there is nothing to read from the standard input."""
    monkeypatch.setattr(sys, "argv", ["program", "--option"])
    monkeypatch.setattr(sys, "path", [*sys.path, "/nowhere"])
    async with ProcessWorkerPool("own", WorkerPoolConfig(workers=1)) as own:
        path, argv, folder, given = await own.asubmit(jobs.around)
    assert (sys.path, ["program", "--option"], str(Path.cwd()), b"") == (path, argv, folder, given)


async def test_what_is_propagated_is_found_in_the_job(pool: ProcessWorkerPool) -> None:
    """The context variables that the pool names, as they are when the job is submitted; nothing of the job before."""
    assert {} == await pool.asubmit(jobs.find_propagated)
    request.set({"id": 7})
    user.set("nobody asks for this")
    assert {"request": {"id": 7}} == await pool.asubmit(jobs.find_propagated)
    future = pool.submit(jobs.find_propagated)
    request.set(8)
    assert {"request": {"id": 7}} == await future
    assert [{"request": 8}] * 4 == await pool.amap(_find, range(4))
    assert {} == propagated()


def _find(_: int) -> dict[str, Any]:
    return jobs.find_propagated()


async def test_task_is_propagated_by_name(pool: ProcessWorkerPool) -> None:
    """A job knows which task has submitted it."""
    async with AgentRuntime() as runtime:

        @runtime.handler("work")
        async def work(given: dict[str, Any]) -> dict[str, Any]:
            return await pool.asubmit(jobs.find_propagated)

        handle = await runtime.submit("work", trace_id="trace")
        assert {"task_id": handle.id, "trace_id": "trace"} == await handle.result()


async def test_nothing_is_propagated_where_nothing_is_named() -> None:
    request.set("asked for by no pool")
    async with ProcessWorkerPool("own", ProcessWorkerPoolConfig(workers=1, propagate=())) as own:
        assert {} == await own.asubmit(jobs.find_propagated)


# Many who submit.


async def test_full_queue_refuses_and_has_callers_wait(lines: Lines) -> None:
    async with ProcessWorkerPool("small", ProcessWorkerPoolConfig(workers=1, max_queue_size=1)) as own:
        running = own.submit(jobs.meet, *lines.paths, "running")
        await lines.begun.heard()
        waiting = own.submit(jobs.double, 1)
        with pytest.raises(WorkerPoolFullError, match="no more than max_queue_size jobs wait: got one more than 1"):
            own.submit(jobs.double, 2)
        async with anyio.create_task_group() as group:
            group.start_soon(own.asubmit, jobs.double, 3)
            await anyio.wait_all_tasks_blocked()
            assert waiting.cancel()
            lines.gate.say()
        assert "running" == await running
        metrics = own.metrics
        assert (2, 1, 1) == (metrics.succeeded, metrics.cancelled, metrics.rejected)


@pytest.mark.parametrize("backends", [("asyncio", "trio", "asyncio", "trio")])
def test_loops_and_threads_share_a_pool(pool: ProcessWorkerPool, backends: tuple[str, ...]) -> None:
    """Each gets its own results, all of them."""
    found: dict[int, list[Any]] = {}

    async def ask(number: int) -> None:
        found[number] = await pool.amap(jobs.double, range(number * 100, number * 100 + 30))

    def in_loop(number: int, backend: str) -> None:
        anyio.run(ask, number, backend=backend)

    def in_thread(number: int) -> None:
        found[number] = pool.map(jobs.double, range(number * 100, number * 100 + 30))

    before = pool.metrics.succeeded
    many = [threading.Thread(target=in_loop, args=(number, backend)) for number, backend in enumerate(backends)]
    many += [threading.Thread(target=in_thread, args=(number,)) for number in range(len(many), 8)]
    for thread in many:
        thread.start()
    for thread in many:
        thread.join(LIMIT)
    assert {number: [2 * (number * 100 + item) for item in range(30)] for number in range(8)} == found
    assert before + 8 * 30 == pool.metrics.succeeded


async def test_pool_of_the_loop_by_its_name() -> None:
    """Outside of any block."""
    pool = await get_worker_pool("measures", "process", WorkerPoolConfig(workers=1))
    assert isinstance(pool, ProcessWorkerPool)
    assert 4 == await pool.asubmit(jobs.double, 2)
    assert pool is await get_worker_pool("measures")
    assert (await pool.shutdown()).drained


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"propagate": "trace_id"}, r"propagate of a worker pool must be names of context variables: got 'trace_id'"),
        ({"propagate": ("",)}, r"propagate of a worker pool must be names of context variables: got \(''"),
        ({"start_timeout": 0}, "start_timeout"),
        ({"max_jobs_per_worker": 0}, "max_jobs_per_worker"),
        ({"initializer": 3}, "initializer of a worker pool must be a function: got 3"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        ProcessWorkerPoolConfig(**settings)


def test_settings_of_another_kind_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="must be a WorkerPoolConfig or a ProcessWorkerPoolConfig"):
        ProcessWorkerPool("own", ThreadWorkerPoolConfig())  # type: ignore[arg-type, unused-ignore]
