"""What is said of `Executor.submit` and `Executor.map`."""

# ruff: noqa: TID251 - the interface of the standard library is what is tested here, with real threads

import inspect
import itertools
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Executor, Future

import pytest

from agentcore.testing._executors import _jobs
from agentcore.testing._executors._base import MOMENT, Cases, Gate, Start


class SubmitCases(Cases):
    """`submit`."""

    def test_submit_returns_a_future(self, executor: Executor) -> None:
        """That of the standard library, which `wait` and `as_completed` know."""
        future = executor.submit(pow, 2, 2)
        assert isinstance(future, Future)
        assert future.result(self.patience) == 4

    def test_submit_passes_everything_to_the_function(self, executor: Executor) -> None:
        """Keywords too that the executor could take for its own."""
        future = executor.submit(_jobs.arguments, 1, "two", self=3, fn=4, timeout=5, wait=6, priority=7)
        expected = ((1, "two"), {"self": 3, "fn": 4, "timeout": 5, "wait": 6, "priority": 7})
        assert future.result(self.patience) == expected

    def test_submit_needs_a_function(self, executor: Executor) -> None:
        """Not by keyword: that one is for the function."""
        with pytest.raises(TypeError):
            executor.submit()  # type: ignore[call-arg]
        with pytest.raises(TypeError):
            executor.submit(fn=pow)  # type: ignore[call-arg]

    def test_submit_does_not_wait_for_a_worker(self, start: Start, gate: Gate) -> None:
        """However many jobs there are already, and each is run once."""
        executor = start(max_workers=1)
        self._hold(executor, gate)
        futures = self._promptly(lambda: [executor.submit(pow, number, 2) for number in range(2000)])
        gate.open()
        assert [future.result(self.patience) for future in futures] == [number**2 for number in range(2000)]

    def test_threads_can_submit_at_the_same_time(self, executor: Executor) -> None:
        """Nothing is lost."""
        lists = [
            self._apart(lambda first=first: [executor.submit(pow, first + step, 2) for step in range(50)])
            for first in range(0, 200, 50)
        ]
        futures = itertools.chain.from_iterable(one.result(self.patience) for one in lists)
        assert [future.result(self.patience) for future in futures] == [number**2 for number in range(200)]

    def test_jobs_run_at_the_same_time(self, start: Start, gate: Gate) -> None:
        """As many as there are workers, and no more."""
        executor = start(max_workers=2)
        futures = [executor.submit(_jobs.hold, gate.address, name) for name in ("a", "b", "c")]
        assert gate.wait_for(2) == ["a", "b"]
        assert gate.is_quiet()
        gate.release("a")
        assert gate.wait_for(1) == ["c"]
        gate.open()
        assert [future.result(self.patience) for future in futures] == ["a", "b", "c"]

    def test_number_of_workers_can_be_left_open(self, start: Start) -> None:
        """There is a default."""
        for options in ({}, {"max_workers": None}):
            assert start(**options).submit(pow, 2, 2).result(self.patience) == 4

    def test_there_must_be_a_worker(self, start: Start) -> None:
        """None, or fewer, is an error at once."""
        for number in (0, -1):
            with pytest.raises(ValueError, match="workers"):
                start(max_workers=number)


class MapCases(Cases):
    """`map`."""

    def test_map_gives_results_in_the_order_of_the_items(self, executor: Executor, gate: Gate) -> None:
        """Whichever ends first."""
        found = executor.map(_jobs.hold_if, [gate.address] * 2, ["held", ""])
        assert gate.wait_for(1) == ["held"]
        gate.open()
        assert self._promptly(list, found) == ["held", ""]

    def test_map_takes_several_iterables(self, executor: Executor) -> None:
        """Up to the end of the shortest one."""
        found = executor.map(pow, [1, 2, 3, 4], itertools.count(1), iter([5, 5, 5]))
        assert self._promptly(list, found) == [1, 4, 2]
        assert self._promptly(list, executor.map(pow, [], [1])) == []

    def test_map_returns_an_iterator(self, executor: Executor) -> None:
        """Of which each result comes once."""
        found = executor.map(abs, [-1, 2, -3])
        assert isinstance(found, Iterator)
        assert self._promptly(list, found) == [1, 2, 3]
        assert list(found) == []

    def test_map_draws_all_items_at_once(self, executor: Executor) -> None:
        """Before any result is asked for."""
        drawn: list[int] = []
        items = (drawn.append(number) or number for number in range(20))  # type: ignore[func-returns-value]
        found = executor.map(abs, items)
        assert drawn == list(range(20))
        assert self._promptly(list, found) == drawn

    def test_map_begins_before_a_result_is_asked_for(self, executor: Executor, gate: Gate) -> None:
        """The jobs are submitted by the call itself."""
        found = executor.map(_jobs.hold, [gate.address] * 2, ["a", "b"])
        assert gate.wait_for(2) == ["a", "b"]
        gate.open()
        assert self._promptly(list, found) == ["a", "b"]

    def test_map_raises_an_error_where_its_item_is(self, executor: Executor) -> None:
        """Not before."""
        found = executor.map(_jobs.reciprocal, [1, 2, 0, 4])
        assert self._promptly(next, found) == 1
        assert self._promptly(next, found) == 0.5
        with pytest.raises(ZeroDivisionError):
            self._promptly(next, found)

    def test_map_waits_no_longer_than_the_timeout(self, executor: Executor, gate: Gate) -> None:
        """What has ended by then is given; a timeout may be whole or broken."""
        found = executor.map(_jobs.hold_if, [gate.address] * 2, ["", "held"], timeout=MOMENT)
        gate.wait_for(1)
        with pytest.raises(TimeoutError):
            self._promptly(lambda: list(found))
        with pytest.raises(TimeoutError):
            self._promptly(next, executor.map(_jobs.hold, [gate.address], timeout=0))

    def test_timeout_of_map_is_counted_from_the_call(self, executor: Executor, gate: Gate) -> None:
        """However late the result is asked for."""
        limit = 0.4
        called = time.monotonic()
        found = executor.map(_jobs.hold, [gate.address], timeout=limit)
        threading.Event().wait(limit - 2 * MOMENT)  # time that passes is what this is about
        asked = time.monotonic()
        with pytest.raises(TimeoutError):
            self._promptly(next, found)
        assert limit <= time.monotonic() - called
        assert time.monotonic() - asked < limit

    def test_map_with_a_timeout_that_is_not_needed(self, executor: Executor) -> None:
        """It changes nothing."""
        for timeout in (None, self.patience, int(self.patience)):
            assert self._promptly(list, executor.map(abs, [-1, -2], timeout=timeout)) == [1, 2]

    def test_map_in_chunks_gives_the_same(self, executor: Executor) -> None:
        """For chunks of each size, also those that do not come out even."""
        expected = [number**2 for number in range(10)]
        for size in (1, 2, 3, 10, 99):
            found = executor.map(pow, range(10), itertools.repeat(2), chunksize=size)
            assert self._promptly(list, found) == expected

    def test_map_in_chunks_raises_errors(self, executor: Executor) -> None:
        """The chunks before it are given."""
        found = executor.map(_jobs.reciprocal, [1, 2, 4, 0, 5, 6], chunksize=2)
        assert self._promptly(next, found) == 1
        assert self._promptly(next, found) == 0.5
        with pytest.raises(ZeroDivisionError):
            self._promptly(lambda: list(found))

    def test_size_of_chunks_has_no_effect_on_threads(self, start: Start, gate: Gate) -> None:
        """Each item is a job of its own; no size is refused."""
        self._only("thread")
        executor = start(max_workers=2)
        found = executor.map(_jobs.hold, [gate.address] * 2, ["a", "b"], chunksize=2)
        assert gate.wait_for(2) == ["a", "b"]
        gate.open()
        assert self._promptly(list, found) == ["a", "b"]
        assert self._promptly(list, executor.map(abs, [-1], chunksize=0)) == [1]

    def test_items_of_a_chunk_go_to_one_process(self, executor: Executor) -> None:
        """One after the other."""
        self._only("process")
        found: list[int] = self._promptly(list, executor.map(_jobs.process_of, range(12), chunksize=4))
        assert all(len(set(found[first : first + 4])) == 1 for first in (0, 4, 8))

    def test_size_of_chunks_must_be_positive_for_processes(self, executor: Executor) -> None:
        """Zero is an error at once."""
        self._only("process")
        for size in (0, -1):
            with pytest.raises(ValueError, match="chunksize"):
                executor.map(abs, [-1], chunksize=size)

    def test_map_with_a_buffer_draws_items_as_results_are_taken(self, executor: Executor) -> None:
        """Where `map` knows ``buffersize``, as it does from Python 3.14 on."""
        self._needs_buffers(executor)
        drawn: list[int] = []
        items = (drawn.append(number) or number for number in itertools.count())  # type: ignore[func-returns-value]
        found = executor.map(abs, items, buffersize=3)  # type: ignore[call-arg, unused-ignore]
        assert drawn == [0, 1, 2]
        assert [self._promptly(next, found) for _ in range(5)] == [0, 1, 2, 3, 4]
        assert len(drawn) == 8
        found = executor.map(abs, iter(range(10)), buffersize=20)  # type: ignore[call-arg, unused-ignore]
        assert self._promptly(list, found) == list(range(10))

    def test_buffer_of_map_must_be_positive(self, executor: Executor) -> None:
        """None stands for no limit."""
        self._needs_buffers(executor)
        found = executor.map(abs, [-1], buffersize=None)  # type: ignore[call-arg, unused-ignore]
        assert self._promptly(list, found) == [1]
        with pytest.raises(ValueError, match="buffersize"):
            executor.map(abs, [-1], buffersize=0)  # type: ignore[call-arg, unused-ignore]
        with pytest.raises(TypeError, match="buffersize"):
            executor.map(abs, [-1], buffersize="1")  # type: ignore[call-arg, unused-ignore]

    def _needs_buffers(self, executor: Executor) -> None:
        if "buffersize" not in inspect.signature(executor.map).parameters:
            pytest.skip("map() takes no buffersize")
