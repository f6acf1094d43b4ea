"""Whatever befalls a job in a worker process is told at once, and concerns no other job."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import anyio
import pytest

from agentcore import (
    JobCancelledError,
    ProcessWorkerPool,
    ProcessWorkerPoolConfig,
    RemoteTraceback,
    ThreadWorkerPool,
    WorkerCrashedError,
    WorkerPoolError,
    WorkerTimeoutError,
)
from tests.pools import process_jobs as jobs
from tests.pools.process_lines import LIMIT, Lines, exists, wait_for_end, watched

pytestmark = pytest.mark.anyio

LARGE = 64 << 20
CONFIG = ProcessWorkerPoolConfig(workers=2, idle_timeout=None)


class Fault(NamedTuple):
    """A call that goes wrong, or looks as if it could.

    Attributes:
        function, args: the call.
        check: of what it raised, or returned.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    check: Callable[[Any], object]


def crashes(how: str) -> Callable[[Any], None]:
    def check(outcome: Any) -> None:
        assert isinstance(outcome, WorkerCrashedError)
        assert isinstance(outcome, BrokenProcessPool)
        assert f"got {how};" in str(outcome)
        code = int(how.rpartition(" ")[2])
        assert outcome.details["exit_code"] == (-code if how.startswith("signal") else code)

    return check


def raises(cls: type[BaseException], text: str, *, remote: bool = True) -> Callable[[Any], None]:
    def check(outcome: Any) -> None:
        assert type(outcome) is cls
        assert text in str(outcome)
        assert isinstance(outcome.__cause__, RemoteTraceback) is remote

    return check


def cannot_be_loaded(cause: str) -> Callable[[Any], None]:
    def check(outcome: Any) -> None:
        assert type(outcome) is WorkerPoolError
        assert "in worker pool 'faults' must be loadable here" in str(outcome)
        assert cause == repr(outcome.__cause__)

    return check


def is_picky(outcome: Any) -> None:
    assert type(outcome) is jobs.Picky
    assert ("disk full", 28, ("disk full (28)",)) == (outcome.what, outcome.number, outcome.args)
    assert ["a note"] == outcome.__notes__
    assert isinstance(outcome.__cause__, RemoteTraceback)


def is_not_sent(outcome: Any) -> None:
    assert isinstance(outcome, (TypeError, pickle.PicklingError, AttributeError))
    assert ["was pickled for worker pool 'faults'"] == [note.partition(" job ")[2][-36:] for note in outcome.__notes__]


def is_equal(value: object) -> Callable[[Any], None]:
    def check(outcome: Any) -> None:
        assert value == outcome

    return check


def of_parent_only() -> Callable[[], int]:
    """Return a function of a module that no other process finds."""
    module = ModuleType("tests_pools_of_this_process_alone")
    exec("def found(): return 1", module.__dict__)
    sys.modules[module.__name__] = module
    found: Callable[[], int] = module.found
    return found


FAULTS = {
    "killed": Fault(jobs.die, (), crashes("signal 9")),
    "terminated": Fault(jobs.die, (signal.SIGTERM,), crashes("signal 15")),
    "segmentation fault": Fault(jobs.die, (signal.SIGSEGV,), crashes("signal 11")),
    "exit at once": Fault(jobs.exit_now, (0,), crashes("exit code 0")),
    "descriptors closed": Fault(jobs.close_everything, (), crashes("exit code 1")),
    "argument that cannot be pickled": Fault(jobs.echo, (threading.Lock(),), is_not_sent),
    "function that cannot be pickled": Fault(lambda: 1, (), is_not_sent),
    "result that cannot be pickled": Fault(jobs.hand_over_lock, (), raises(TypeError, "cannot pickle")),
    "exception that cannot be pickled": Fault(
        jobs.raise_of,
        (jobs.Locked, "the door"),
        raises(WorkerPoolError, "an exception of a worker process must be picklable: got Locked: the door; raise one"),
    ),
    "exception that cannot say anything": Fault(
        jobs.raise_of,
        (jobs.Mute,),
        raises(WorkerPoolError, "must be picklable: got Mute: <its str() raised>; raise one"),
    ),
    "exception with arguments of its own": Fault(jobs.raise_picky, ("disk full", 28), is_picky),
    "exception that cannot be loaded": Fault(
        jobs.raise_of, (jobs.Unloadable,), cannot_be_loaded("LookupError('not here')")
    ),
    "argument that kills at loading": Fault(jobs.echo, (jobs.KillsAtLoading(),), crashes("exit code 7")),
    "argument that fails at loading": Fault(jobs.echo, (jobs.FailsAtLoading(),), raises(LookupError, "not here")),
    "result that fails at loading": Fault(
        jobs.hand_over, (jobs.FailsAtLoading,), cannot_be_loaded("LookupError('not here')")
    ),
    "result that exits at loading": Fault(
        jobs.hand_over, (jobs.ExitsAtLoading,), cannot_be_loaded("SystemExit('not here')")
    ),
    "system exit": Fault(jobs.call_exit, (3,), raises(SystemExit, "3")),
    "keyboard interrupt": Fault(jobs.interrupt, (), raises(KeyboardInterrupt, "by the job")),
    "cancellation": Fault(
        jobs.raise_cancellation, (), raises(WorkerPoolError, "must not raise a cancellation", remote=False)
    ),
    "function of the parent alone": Fault(
        of_parent_only(), (), raises(ModuleNotFoundError, "tests_pools_of_this_process_alone")
    ),
    "large argument": Fault(len, (bytes(LARGE),), is_equal(LARGE)),
    "large result": Fault(jobs.blank, (LARGE,), is_equal(bytes(LARGE))),
    "flood on stdout": Fault(jobs.flood, ("stdout", 4 << 20), is_equal(4 << 20)),
    "flood on stderr": Fault(jobs.flood, ("stderr", 4 << 20), is_equal(4 << 20)),
}


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessWorkerPool]:
    """One for all of it, through many event loops: whatever happens, it goes on."""
    pool = ProcessWorkerPool("faults", CONFIG)
    yield pool
    report = anyio.run(pool.shutdown, True, 5.0)
    assert report.drained
    assert 0 == pool.metrics.workers


@pytest.fixture
def lines(tmp_path: Path) -> Iterator[Lines]:
    lines = Lines(tmp_path)
    yield lines
    lines.close()


class Others:
    """What else there is in the pool while a job goes wrong: a job that runs, in the worker beside, and jobs that wait."""

    def __init__(self, pool: ProcessWorkerPool, lines: Lines) -> None:
        self._pool = pool
        self._lines = lines
        self._sibling = pool.submit(jobs.meet, *lines.paths, "unharmed")
        self._before = pool.metrics

    async def begin(self) -> None:
        self._process = int(await self._lines.begun.heard())

    def wait(self) -> None:
        """Have jobs wait for the worker of the one that goes wrong."""
        self._queued = [self._pool.submit(jobs.double, number) for number in range(5)]

    async def are_unharmed(self) -> None:
        with anyio.fail_after(LIMIT):
            assert [0, 2, 4, 6, 8] == [await future for future in self._queued]
            assert not self._sibling.done()
            self._lines.gate.say()
            assert "unharmed" == await self._sibling
            assert 84 == await self._pool.asubmit(jobs.double, 42)
        assert exists(self._process)
        metrics = self._pool.metrics
        assert (0, 0, 0) == (metrics.queued, metrics.running, metrics.abandoned)
        assert self._before.succeeded + 7 <= metrics.succeeded


@pytest.mark.parametrize("name", FAULTS)
async def test_fault_costs_its_own_job_alone(pool: ProcessWorkerPool, lines: Lines, name: str) -> None:
    """The sibling goes on, what waits is done, and so is the next call."""
    function, args, check = FAULTS[name]
    others = Others(pool, lines)
    await others.begin()
    future = pool.submit(function, *args)
    others.wait()
    with anyio.fail_after(LIMIT):
        try:
            outcome = await future
        except BaseException as error:  # noqa: BLE001 - what the test is about
            outcome = error
    check(outcome)
    await others.are_unharmed()


@pytest.mark.parametrize("name", ["killed", "system exit", "exception with arguments of its own"])
async def test_caller_that_waits_is_told_the_same(pool: ProcessWorkerPool, name: str) -> None:
    """By `asubmit`."""
    function, args, check = FAULTS[name]
    with anyio.fail_after(LIMIT):
        try:
            outcome = await pool.asubmit(function, *args)
        except BaseException as error:  # noqa: BLE001 - what the test is about
            outcome = error
    check(outcome)


async def test_cancelled_caller_ends_a_job_that_computes(pool: ProcessWorkerPool, lines: Lines) -> None:
    """Nothing is left of its worker when the caller is gone."""
    others = Others(pool, lines)
    await others.begin()
    before = pool.metrics.cancelled
    async with anyio.create_task_group() as group:
        group.start_soon(pool.asubmit, jobs.spin, lines.begun.path)
        process = int(await lines.begun.heard())
        others.wait()
        group.cancel_scope.cancel()
    assert not exists(process)
    assert before + 1 == pool.metrics.cancelled
    await others.are_unharmed()


async def test_timeout_ends_a_job_that_computes(pool: ProcessWorkerPool, lines: Lines) -> None:
    """The caller is told when the time is over; the worker ends meanwhile."""
    others = Others(pool, lines)
    await others.begin()
    future = pool.submit(jobs.spin, lines.begun.path, timeout=0.4)
    with watched(int(await lines.begun.heard())) as worker:
        others.wait()
        with pytest.raises(WorkerTimeoutError, match=r"did not end within its timeout: got more than 0\.4 s") as caught:
            await future
        assert "running" == caught.value.details["phase"]
        await wait_for_end(worker)
    await others.are_unharmed()


@pytest.mark.parametrize("start", [jobs.fork_and_die, jobs.leave_daemon])
async def test_death_is_noticed_though_a_grandchild_lives(
    pool: ProcessWorkerPool, lines: Lines, tmp_path: Path, start: Callable[..., Any]
) -> None:
    """It has inherited every descriptor of the worker."""
    options = {"dies": True} if start is jobs.leave_daemon else {}
    own = tmp_path / "grandchild"
    own.mkdir()
    of_grandchild = Lines(own)
    others = Others(pool, lines)
    await others.begin()
    future = pool.submit(start, *of_grandchild.paths, **options)
    others.wait()
    grandchild = int(await of_grandchild.begun.heard())
    with watched(grandchild) as watch:
        with anyio.fail_after(LIMIT), pytest.raises(WorkerCrashedError, match="got exit code 3"):
            await future
        await others.are_unharmed()
        assert exists(grandchild)
        of_grandchild.close()
        await wait_for_end(watch)


async def test_daemon_of_a_job_keeps_nobody_waiting(pool: ProcessWorkerPool, lines: Lines) -> None:
    """A process that a job leaves behind when it returns concerns neither the result nor the next job."""
    with anyio.fail_after(LIMIT):
        worker = await pool.asubmit(jobs.leave_daemon, *lines.paths, dies=False)
        with watched(int(await lines.begun.heard())) as daemon:
            assert exists(worker)
            assert 2 == await pool.asubmit(jobs.double, 1)
            lines.gate.say()
            await wait_for_end(daemon)


async def test_job_whose_worker_was_killed_for_its_caller_says_so(pool: ProcessWorkerPool, lines: Lines) -> None:
    """Who shares the future is not told of a crash."""
    own = ProcessWorkerPool("own", ProcessWorkerPoolConfig(workers=1))
    future = own.submit(jobs.spin, lines.begun.path)
    await lines.begun.heard()
    with pytest.raises(ZeroDivisionError):
        async with own:
            raise ZeroDivisionError
    with pytest.raises(JobCancelledError, match="was killed with its worker: got nobody who still waits for it"):
        future.result(0)
    assert ("closed", 1) == (own.state, own.metrics.cancelled)


async def test_job_may_do_anything_with_its_output(pool: ProcessWorkerPool) -> None:
    """The result counts."""
    assert [1, 2, 4] == [await pool.asubmit(job) for job in (jobs.replace_output, jobs.drop_output)] + [
        await pool.asubmit(jobs.double, 2)
    ]


async def test_memory_of_a_great_argument_is_given_back() -> None:
    """As that of a great result is."""
    async with ProcessWorkerPool("own", ProcessWorkerPoolConfig(workers=1)) as own:
        assert LARGE == await own.asubmit(len, bytes(LARGE))
        (worker,) = own._workers
        assert os.fstat(worker.child._file).st_size < LARGE


async def test_crash_of_another_pool_is_a_failure_of_this_one(pool: ProcessWorkerPool) -> None:
    """A job that asks another pool, and hands on what has become of it."""
    async with ThreadWorkerPool("threads") as threads:
        with pytest.raises(WorkerCrashedError):
            await threads.asubmit(lambda: pool.submit(jobs.exit_now, 3).result(LIMIT))
        assert (1, 0) == (threads.metrics.failed, threads.metrics.crashed)
