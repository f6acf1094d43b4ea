"""What is said of the futures that executors return, and of the functions that wait for several of them."""

# ruff: noqa: TID251 - the interface of the standard library is what is tested here

import concurrent.futures
import threading
from concurrent.futures import CancelledError, Executor, Future
from typing import Any

import pytest

from agentcore.testing._executors import _jobs
from agentcore.testing._executors._base import MOMENT, Cases, Gate, Notes, Start


class FutureCases(Cases):
    """One future."""

    def test_result_is_what_the_function_returns(self, executor: Executor) -> None:
        """And `exception` is None."""
        future = executor.submit(pow, 2, 10)
        assert future.result(self.patience) == 1024
        assert future.exception(self.patience) is None
        assert future.result() == 1024

    def test_result_raises_what_the_function_raised(self, executor: Executor) -> None:
        """With its type and its arguments, each time."""
        future = executor.submit(_jobs.fail, "no", 42)
        with pytest.raises(_jobs.JobError) as caught:
            future.result(self.patience)
        assert caught.value.args == ("no", 42)
        assert future.exception() is caught.value

    def test_job_that_leaves_by_system_exit_has_that_as_its_error(self, start: Start) -> None:
        """A worker takes it for an outcome and goes on."""
        executor = start(max_workers=1)
        error = executor.submit(_jobs.leave, 3).exception(self.patience)
        assert isinstance(error, SystemExit)
        assert error.code == 3
        assert executor.submit(pow, 2, 3).result(self.patience) == 8

    def test_result_waits_no_longer_than_its_timeout(self, executor: Executor, gate: Gate) -> None:
        """The job is none the worse for it. A timeout may be whole or broken."""
        future = self._hold(executor, gate)
        for timeout in (0, MOMENT):
            with pytest.raises(TimeoutError):
                future.result(timeout)
            with pytest.raises(concurrent.futures.TimeoutError):
                future.exception(timeout=timeout)
        gate.open()
        assert future.result(self.patience) == "held"
        assert future.result(0) == "held"

    def test_running_job(self, executor: Executor, gate: Gate) -> None:
        """It is neither done nor cancelled, and cannot be cancelled any more."""
        future = self._hold(executor, gate)
        assert future.running()
        assert not future.done()
        assert not future.cancel()
        assert not future.cancelled()
        gate.open()
        assert future.result(self.patience) == "held"

    def test_finished_job(self, executor: Executor) -> None:
        """It is done, and cannot be cancelled any more; whether it returned or raised."""
        for future in (executor.submit(pow, 2, 2), executor.submit(_jobs.fail)):
            future.exception(self.patience)
            assert future.done()
            assert not future.running()
            assert not future.cancel()
            assert not future.cancelled()

    def test_queued_job(self, start: Start, gate: Gate, notes: Notes) -> None:
        """It is neither running nor done."""
        executor = start(max_workers=1)
        self._hold(executor, gate)
        future = self._queue(executor, notes)[-1]
        assert not future.running()
        assert not future.done()
        assert not future.cancelled()
        gate.open()
        assert future.result(self.patience)

    def test_queued_job_can_be_cancelled(self, start: Start, gate: Gate, notes: Notes) -> None:
        """It is done then, has neither a result nor an error, and never begins."""
        executor = start(max_workers=1)
        held = self._hold(executor, gate)
        *others, future = self._queue(executor, notes)
        assert future.cancel()
        assert future.cancel()
        assert future.cancelled()
        assert future.done()
        assert not future.running()
        with pytest.raises(CancelledError):
            future.result(self.patience)
        with pytest.raises(CancelledError):
            future.exception(self.patience)
        gate.open()
        self._promptly(executor.shutdown)
        assert notes.read() == [other.result(0) for other in others]
        assert held.result(0) == "held"

    def test_cancelling_wakes_who_waits(self, start: Start, gate: Gate, notes: Notes) -> None:
        """A thread in `result` gets the CancelledError, although no worker is free."""
        executor = start(max_workers=1)
        self._hold(executor, gate)
        future = self._queue(executor, notes)[-1]
        waiting = self._apart(future.result)
        with pytest.raises(TimeoutError):
            waiting.result(MOMENT)
        assert future.cancel()
        assert isinstance(waiting.exception(self.patience), CancelledError)


class CallbackCases(Cases):
    """What is called when a future is done."""

    def test_callback_gets_the_future_when_it_is_done(self, executor: Executor, gate: Gate) -> None:
        """Once, and in this process."""
        future = self._hold(executor, gate)
        calls: list[tuple[Future[Any], bool]] = []
        called = threading.Event()
        future.add_done_callback(lambda done: calls.append((done, done.done())))
        future.add_done_callback(lambda _: called.set())
        assert calls == []
        gate.open()
        assert called.wait(self.patience)
        assert calls == [(future, True)]

    def test_callbacks_are_called_in_the_order_in_which_they_were_added(self, executor: Executor, gate: Gate) -> None:
        """For errors as for results."""
        future = executor.submit(_jobs.fail_late, gate.address)
        gate.wait_for(1)
        calls: list[int] = []
        called = threading.Event()
        for number in range(5):
            future.add_done_callback(lambda _, number=number: calls.append(number))  # type: ignore[misc]
        future.add_done_callback(lambda _: called.set())
        gate.open()
        assert called.wait(self.patience)
        assert calls == [0, 1, 2, 3, 4]

    def test_callback_of_a_done_future_is_called_at_once(self, executor: Executor) -> None:
        """Before `add_done_callback` returns, in the same thread."""
        future = executor.submit(pow, 2, 2)
        future.result(self.patience)
        calls: list[tuple[Future[int], int]] = []
        future.add_done_callback(lambda done: calls.append((done, threading.get_ident())))
        assert calls == [(future, threading.get_ident())]

    def test_callback_is_called_for_a_cancelled_future(self, start: Start, gate: Gate, notes: Notes) -> None:
        """When it is cancelled, not when a worker comes to it."""
        executor = start(max_workers=1)
        self._hold(executor, gate)
        future = self._queue(executor, notes)[-1]
        calls: list[bool] = []
        future.add_done_callback(lambda done: calls.append(done.cancelled()))
        assert future.cancel()
        assert calls == [True]
        future.add_done_callback(lambda done: calls.append(done.cancelled()))
        assert calls == [True, True]

    def test_error_of_a_callback_is_logged_and_ignored(
        self, executor: Executor, gate: Gate, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The callbacks behind it are called, and the result is what it is."""
        future = self._hold(executor, gate)
        called = threading.Event()
        future.add_done_callback(lambda _: _jobs.fail("in a callback"))
        future.add_done_callback(lambda _: called.set())
        gate.open()
        assert called.wait(self.patience)
        assert future.result(self.patience) == "held"
        future.add_done_callback(lambda _: _jobs.fail("at once"))
        logged = [record for record in caplog.records if record.name == "concurrent.futures" and record.exc_info]
        assert [str(record.exc_info[1]) for record in logged if record.exc_info] == ["in a callback", "at once"]


class WaitCases(Cases):
    """`concurrent.futures.wait` and `as_completed`."""

    def test_wait_for_all(self, executor: Executor) -> None:
        """Results and errors alike."""
        futures: list[Future[Any]] = [executor.submit(pow, 2, 2), executor.submit(_jobs.fail), executor.submit(abs, -1)]
        found = concurrent.futures.wait(futures, timeout=self.patience)
        assert found.done == set(futures)
        assert found.not_done == set()

    def test_wait_for_the_first(self, executor: Executor, gate: Gate) -> None:
        """The others go on."""
        held = self._hold(executor, gate)
        quick = executor.submit(pow, 2, 2)
        done, not_done = concurrent.futures.wait(
            [held, quick], timeout=self.patience, return_when=concurrent.futures.FIRST_COMPLETED
        )
        assert (done, not_done) == ({quick}, {held})

    def test_wait_for_the_first_error(self, executor: Executor, gate: Gate) -> None:
        """A result does not end the wait."""
        held = self._hold(executor, gate)
        quick = executor.submit(pow, 2, 2)
        failing: Future[Any] = executor.submit(_jobs.fail)
        found = concurrent.futures.wait(
            [held, quick, failing], timeout=self.patience, return_when=concurrent.futures.FIRST_EXCEPTION
        )
        assert failing in found.done
        assert found.not_done == {held}

    def test_wait_for_the_first_error_where_there_is_none(self, executor: Executor) -> None:
        """It is the wait for all."""
        futures = [executor.submit(pow, 2, number) for number in range(4)]
        found = concurrent.futures.wait(futures, timeout=self.patience, return_when=concurrent.futures.FIRST_EXCEPTION)
        assert found.done == set(futures)

    def test_wait_no_longer_than_the_timeout(self, executor: Executor, gate: Gate) -> None:
        """What is done by then, and what is not. A future that is given twice counts once."""
        held = self._hold(executor, gate)
        quick = executor.submit(pow, 2, 2)
        quick.result(self.patience)
        found = concurrent.futures.wait([held, quick, held, quick], timeout=MOMENT)
        assert found == ({quick}, {held})

    def test_wait_counts_a_cancelled_future_as_done(self, start: Start, gate: Gate, notes: Notes) -> None:
        """As soon as a worker could have come to it."""
        executor = start(max_workers=1)
        held = self._hold(executor, gate)
        future = self._queue(executor, notes)[-1]
        assert future.cancel()
        gate.open()
        found = concurrent.futures.wait([held, future], timeout=self.patience)
        assert found == ({held, future}, set())

    def test_wait_for_futures_of_several_executors(self, executor: Executor) -> None:
        """The standard library's own among them."""
        with concurrent.futures.ThreadPoolExecutor(1) as other:
            futures = [executor.submit(pow, 2, 2), other.submit(pow, 2, 3)]
            assert concurrent.futures.wait(futures, timeout=self.patience).not_done == set()
            found = concurrent.futures.as_completed(futures, timeout=self.patience)
            assert sorted(future.result() for future in found) == [4, 8]

    def test_as_completed_gives_futures_as_they_end(self, executor: Executor, gate: Gate) -> None:
        """Those first that have ended before, each once."""
        early = executor.submit(pow, 2, 2)
        early.result(self.patience)
        first, second = self._hold(executor, gate, "first"), self._hold(executor, gate, "second")
        found = concurrent.futures.as_completed([first, second, early, first], timeout=self.patience)
        assert next(found) is early
        gate.release("second")
        assert next(found) is second
        gate.release("first")
        assert list(found) == [first]

    def test_as_completed_waits_no_longer_than_the_timeout(self, executor: Executor, gate: Gate) -> None:
        """What has ended by then comes first."""
        held = self._hold(executor, gate)
        quick = executor.submit(pow, 2, 2)
        quick.result(self.patience)
        found = concurrent.futures.as_completed([held, quick], timeout=MOMENT)
        assert next(found) is quick
        with pytest.raises(TimeoutError):
            next(found)
