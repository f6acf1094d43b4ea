"""What is said of workers: how they are started, what threads and processes each promise, and what if one dies."""

# ruff: noqa: TID251 - the interface of the standard library is what is tested here

import contextlib
import multiprocessing
import os
import pickle
import threading
import traceback
from concurrent.futures import BrokenExecutor, Executor, Future
from concurrent.futures.process import BrokenProcessPool
from concurrent.futures.thread import BrokenThreadPool
from typing import Any

import pytest

from agentcore.testing._executors import _jobs
from agentcore.testing._executors._base import Cases, Gate, Notes, Start

UNPICKLABLE = (pickle.PicklingError, AttributeError, TypeError)
"""What `pickle` raises, depending on the object and on the version of Python."""


class InitializerCases(Cases):
    """``initializer`` and ``initargs``."""

    def test_initializer_is_called_in_each_worker(self, start: Start, gate: Gate) -> None:
        """With its arguments, before its first job, once."""
        self._needs("initializer")
        executor = start(max_workers=2, initializer=_jobs.initialize, initargs=("value", 7))
        job: Any = _jobs.initialized if self.kind == "thread" else _jobs.process_initialized
        futures = [executor.submit(job, gate.address, name) for name in ("a", "b")]
        gate.wait_for(2)
        gate.open()
        expected = ("value", 7) if self.kind == "thread" else [("value", 7)]
        assert [future.result(self.patience) for future in futures] == [expected] * 2
        assert executor.submit(job, gate.address, "c").result(self.patience) == expected

    def test_initializer_that_raises_breaks_the_executor(self, start: Start, gate: Gate) -> None:
        """Each job that there is, and each further one, fails with an error that says so."""
        self._needs("initializer")
        executor = start(max_workers=1, initializer=_jobs.fail_late, initargs=(gate.address, "no"))
        futures = [executor.submit(pow, 2, number) for number in range(3)]
        gate.wait_for(1)
        gate.open()
        expected = BrokenThreadPool if self.kind == "thread" else BrokenProcessPool
        errors = [future.exception(self.patience) for future in futures]
        assert [isinstance(error, expected) for error in errors] == [True] * 3, errors
        with pytest.raises(expected) as caught:
            executor.submit(pow, 2, 2)
        assert isinstance(caught.value, BrokenExecutor)
        assert isinstance(caught.value, RuntimeError)
        with pytest.raises(expected):
            executor.map(pow, [2], [2])
        self._promptly(executor.shutdown)


class ThreadCases(Cases):
    """Executors whose jobs run in threads."""

    def test_jobs_run_in_other_threads_of_this_process(self, executor: Executor) -> None:
        """None of them is the caller's."""
        self._only("thread")
        found, _ = executor.submit(_jobs.thread).result(self.patience)
        assert found != threading.get_ident()
        assert executor.submit(_jobs.process).result(self.patience) == os.getpid()

    def test_threads_share_what_they_are_given(self, executor: Executor) -> None:
        """Arguments, results and errors are the very objects."""
        self._only("thread")
        items: list[object] = []
        lock = _jobs.lock()
        assert executor.submit(_jobs.append, items, lock).result(self.patience) is items
        assert items == [lock]
        error = executor.submit(_jobs.fail, lock).exception(self.patience)
        assert isinstance(error, _jobs.JobError)
        assert error.args == (lock,)

    def test_threads_run_functions_without_a_name(self, executor: Executor) -> None:
        """Whatever can be called."""
        self._only("thread")
        assert executor.submit(lambda number: number + 1, 2).result(self.patience) == 3

    def test_threads_are_named(self, start: Start) -> None:
        """By the prefix that was given."""
        self._only("thread")
        self._needs("thread_name_prefix")
        executor = start(max_workers=1, thread_name_prefix="tested")
        _, name = executor.submit(_jobs.thread).result(self.patience)
        assert name.startswith("tested")

    def test_traceback_of_a_thread_shows_where_it_was_raised(self, executor: Executor) -> None:
        """The error knows the frame of the function."""
        self._only("thread")
        error = executor.submit(_jobs.reciprocal, 0).exception(self.patience)
        assert error is not None
        assert [frame.name for frame in traceback.extract_tb(error.__traceback__)][-1] == "reciprocal"


class ProcessCases(Cases):
    """Executors whose jobs run in processes of their own."""

    def test_jobs_run_in_other_processes(self, executor: Executor) -> None:
        """What they do to their arguments stays there."""
        self._only("process")
        assert executor.submit(_jobs.process).result(self.patience) != os.getpid()
        items = [1]
        assert executor.submit(_jobs.append, items, 2).result(self.patience) == [1, 2]
        assert items == [1]

    def test_jobs_run_in_several_processes(self, start: Start, gate: Gate) -> None:
        """One for each worker that is needed."""
        self._only("process")
        executor = start(max_workers=2)
        futures = [executor.submit(_jobs.process_initialized, gate.address, name) for name in ("a", "b")]
        gate.wait_for(2)
        processes = [executor.submit(_jobs.process) for _ in range(8)]
        gate.open()
        assert [future.result(self.patience) for future in futures] == [[], []]
        assert 1 <= len({future.result(self.patience) for future in processes}) <= 2

    def test_error_of_a_process_tells_where_it_was_raised(self, executor: Executor) -> None:
        """As text: type and arguments are the original's, and the traceback of the worker is in what is printed."""
        self._only("process")
        error = executor.submit(_jobs.fail, "no", 42).exception(self.patience)
        assert type(error) is _jobs.JobError
        assert error.args == ("no", 42)
        shown = "".join(traceback.format_exception(error))
        assert "in fail\n" in shown
        assert "raise JobError(*args)" in shown

    def test_error_in_a_chunk_tells_where_it_was_raised(self, executor: Executor) -> None:
        """As any other."""
        self._only("process")
        with pytest.raises(ZeroDivisionError) as caught:
            self._promptly(list, executor.map(_jobs.reciprocal, [1, 0], chunksize=2))
        assert "in reciprocal\n" in "".join(traceback.format_exception(caught.value))

    def test_what_cannot_be_pickled_fails_its_job(self, executor: Executor) -> None:
        """Function, argument or result: the future has the error, `submit` none, and the next job runs."""
        self._only("process")
        futures: list[Future[Any]] = [
            executor.submit(lambda: None),
            executor.submit(abs, threading.Lock()),  # type: ignore[arg-type]
            executor.submit(_jobs.lock),
        ]
        errors = [future.exception(self.patience) for future in futures]
        assert [isinstance(error, UNPICKLABLE) for error in errors] == [True] * 3, errors
        assert executor.submit(pow, 2, 2).result(self.patience) == 4

    @pytest.mark.parametrize("how", ["exit", "kill"])
    def test_process_that_dies_fails_its_job(self, start: Start, how: str) -> None:
        """Promptly; the executor can still be shut down."""
        self._only("process")
        executor = start(max_workers=1)
        error = executor.submit(_jobs.die, how).exception(self.patience)
        assert isinstance(error, BrokenProcessPool)
        assert isinstance(error, BrokenExecutor)
        self._promptly(executor.shutdown)

    def test_process_that_dies_leaves_no_job_without_an_outcome(self, start: Start, gate: Gate, notes: Notes) -> None:
        """Of its siblings and of the jobs in the queue: what `crash_costs` says is lost, the rest is unharmed."""
        self._only("process")
        executor = start(max_workers=2)
        sibling = self._hold(executor, gate)
        crash = executor.submit(_jobs.die, "kill")
        with contextlib.suppress(BrokenProcessPool):  # by now it may be broken
            queued = self._queue(executor, notes)
        assert isinstance(crash.exception(self.patience), BrokenProcessPool)
        if self.crash_costs == "pool":
            assert isinstance(sibling.exception(self.patience), BrokenProcessPool)
            with pytest.raises(BrokenProcessPool):
                executor.submit(pow, 2, 2)
            with pytest.raises(BrokenProcessPool):
                executor.map(pow, [2], [2])
        else:
            gate.open()
            assert sibling.result(self.patience) == "held"
            assert sorted(future.result(self.patience) for future in queued) == sorted(notes.read())
            assert executor.submit(pow, 2, 2).result(self.patience) == 4

    def test_processes_are_replaced_after_so_many_jobs(self, start: Start) -> None:
        """``max_tasks_per_child`` of them."""
        self._only("process")
        self._needs("max_tasks_per_child")
        executor = start(max_workers=1, max_tasks_per_child=2)
        found = [executor.submit(_jobs.process).result(self.patience) for _ in range(6)]
        assert found[0::2] == found[1::2]
        assert len(set(found)) == 3

    def test_processes_live_on(self, start: Start) -> None:
        """Unless something else is said."""
        self._only("process")
        executor = start(max_workers=1)
        assert len({executor.submit(_jobs.process).result(self.patience) for _ in range(6)}) == 1

    def test_processes_are_started_as_the_context_says(self, start: Start, gate: Gate) -> None:
        """Those that start afresh know nothing of this process."""
        self._only("process")
        self._needs("mp_context")
        gate.open()
        executor = start(max_workers=1, mp_context=multiprocessing.get_context("spawn"))
        _jobs.initialize("in the parent")
        try:
            assert executor.submit(_jobs.process_initialized, gate.address, "").result(self.patience) == []
        finally:
            _jobs._everywhere.clear()
