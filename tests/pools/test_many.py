"""One pool, many who use it at once: event loops of both kinds and plain threads. Nothing is lost, nothing runs twice."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from agentcore import (
    TaskPriority,
    ThreadWorkerPool,
    WorkerPoolClosedError,
    WorkerPoolFullError,
    WorkerTimeoutError,
)
from tests.pools.thread_helpers import LIMIT, Caller, counts, thread_pool, until

EACH = 200
BACKENDS = ("asyncio", "trio") * 4


class Ledger:
    """What has run, how often."""

    def __init__(self) -> None:
        self.runs: Counter[Any] = Counter()
        self._lock = threading.Lock()

    def note(self, entry: Any) -> Any:
        with self._lock:
            self.runs[entry] += 1
        return entry


def all_at_once(*functions: Callable[[], Any]) -> list[Any]:
    """Call each in a thread, all beginning together."""
    barrier = threading.Barrier(len(functions))

    def begin(function: Callable[[], Any]) -> Any:
        barrier.wait(LIMIT)
        return function()

    return [caller.join() for caller in [Caller(partial(begin, function)) for function in functions]]


def in_loop(backend: str, function: Callable[[], Any]) -> Any:
    return anyio.run(function, backend=backend)


def test_eight_loops_and_eight_threads_submit_at_once() -> None:
    ledger = Ledger()

    async def by_callers(name: str) -> list[Any]:
        found = []

        async def call(number: int) -> None:
            found.append(await pool.asubmit(ledger.note, (name, number)))

        async with anyio.create_task_group() as group:
            for number in range(EACH):
                group.start_soon(call, number)
        return found

    async def by_futures(name: str) -> list[Any]:
        futures = [pool.submit(ledger.note, (name, number)) for number in range(EACH)]
        return [await future for future in futures]

    def by_thread(name: str) -> list[Any]:
        futures = [pool.submit(ledger.note, (name, number)) for number in range(EACH)]
        return [future.result(LIMIT) for future in futures]

    with thread_pool(workers=3, max_queue_size=100_000) as pool:
        loops = [
            partial(in_loop, backend, partial(by_callers if index % 4 < 2 else by_futures, f"loop {index}"))
            for index, backend in enumerate(BACKENDS)
        ]
        threads = [partial(by_thread, f"thread {index}") for index in range(8)]
        found = all_at_once(*loops, *threads)
        names = [f"loop {index}" for index in range(8)] + [f"thread {index}" for index in range(8)]
        for name, outcomes in zip(names, found, strict=True):
            assert sorted(outcomes) == [(name, number) for number in range(EACH)]
        assert set(ledger.runs.values()) == {1}
        assert len(ledger.runs) == 16 * EACH
        assert counts(pool.metrics) == {"succeeded": 16 * EACH}
        assert (pool.metrics.queued, pool.metrics.running) == (0, 0)


def test_a_narrow_queue_loses_nothing() -> None:
    """Some wait for room, some come again, some wait for their result anyway."""
    ledger = Ledger()

    def wait_for_room(name: str) -> None:
        view = pool.options(when_full="wait")
        for future in [view.submit(ledger.note, (name, number)) for number in range(EACH)]:
            future.result(LIMIT)

    def come_again(name: str) -> None:
        for number in range(EACH):
            while True:
                try:
                    future = pool.submit(ledger.note, (name, number))
                except WorkerPoolFullError:
                    refused.append(number)
                    time.sleep(0)
                else:
                    break
            assert future.result(LIMIT) == (name, number)

    async def wait_anyway(name: str) -> None:
        assert await pool.amap(ledger.note, [(name, number) for number in range(EACH)]) == [
            (name, number) for number in range(EACH)
        ]

    refused: list[int] = []
    with thread_pool(workers=2, max_queue_size=2) as pool:
        all_at_once(
            *(partial(wait_for_room, f"room {index}") for index in range(3)),
            *(partial(come_again, f"again {index}") for index in range(3)),
            *(partial(in_loop, backend, partial(wait_anyway, backend)) for backend in ("asyncio", "trio")),
        )
        assert set(ledger.runs.values()) == {1}
        assert len(ledger.runs) == 8 * EACH
        assert counts(pool.metrics, "succeeded", "rejected") == {"succeeded": 8 * EACH, "rejected": len(refused)}


class Load:
    """Jobs that return and raise, whose callers wait, cancel, and give up; each end is counted on the caller's side."""

    def __init__(self, pool: ThreadWorkerPool) -> None:
        self.pool = pool
        self.ran = Ledger()
        self.ends: Counter[str] = Counter()
        self._lock = threading.Lock()

    def work(self, entry: Any, fails: bool) -> Any:
        self.ran.note(entry)
        if fails:
            raise ValueError(entry)
        return entry

    def count(self, end: str) -> None:
        with self._lock:
            self.ends[end] += 1

    def look(self, future: Future[Any]) -> None:
        if future.cancelled():
            self.count("cancelled")
        elif future.exception() is None:
            self.count("succeeded")
        else:
            self.count("timed_out" if isinstance(future.exception(), WorkerTimeoutError) else "failed")

    def by_thread(self, seed: int) -> None:
        source = random.Random(seed)
        futures = []
        for number in range(EACH):
            view = self.pool.options(priority=source.choice(list(TaskPriority)))
            timeout = source.choice([None, None, 0, 0.001, LIMIT])
            futures.append(view.submit(self.work, (seed, number), source.random() < 0.2, timeout=timeout))
            futures[-1].add_done_callback(self.look)
            if source.random() < 0.3:
                source.choice(futures).cancel()
        for future in futures:
            if not future.cancelled():
                future.exception(LIMIT)

    async def by_loop(self, seed: int) -> None:
        source = random.Random(seed)
        async with anyio.create_task_group() as group:
            for number in range(EACH):
                group.start_soon(self.call, seed, number, source.randrange(30))

    async def call(self, seed: int, number: int, steps: int) -> None:
        """Make one call that is cancelled after so many steps."""
        async with anyio.create_task_group() as group:
            group.start_soon(self.cancel, group.cancel_scope, steps)
            try:
                await self.pool.asubmit(self.work, (seed, number), number % 5 == 0)
                self.count("succeeded")
            except ValueError:
                self.count("failed")
            except BaseException:
                assert (seed, number) not in self.ran.runs
                self.count("left")
                raise
            group.cancel_scope.cancel()

    @staticmethod
    async def cancel(scope: anyio.CancelScope, steps: int) -> None:
        for _ in range(steps):
            await anyio.lowlevel.checkpoint()
        scope.cancel()


@pytest.mark.parametrize("config", [{}, {"max_jobs_per_worker": 1}, {"idle_timeout": 0}], ids=str)
def test_everything_at_once(config: dict[str, Any]) -> None:
    """Results, errors, cancellations, timeouts, all four bands: in the end each job has ended in one way."""
    with thread_pool(workers=3, max_queue_size=100_000, **config) as pool:
        load = Load(pool)
        all_at_once(
            *(partial(load.by_thread, seed) for seed in range(4)),
            *(partial(in_loop, backend, partial(load.by_loop, 10 + seed)) for seed, backend in enumerate(BACKENDS[:4])),
        )
        until(lambda: (pool.metrics.queued, pool.metrics.running, pool.metrics.abandoned) == (0, 0, 0))
        assert set(load.ran.runs.values()) == {1}, "nothing runs twice"
        told = counts(pool.metrics, "succeeded", "failed", "timed_out")
        assert told == {name: load.ends[name] for name in told}
        assert pool.metrics.cancelled >= load.ends["cancelled"]
        assert sum(load.ends.values()) == 8 * EACH, "and each caller has been told"
        barrier = threading.Barrier(3)
        assert len(pool.map(lambda _: barrier.wait(LIMIT), range(3))) == 3, "all slots are there"


def test_a_pool_that_is_shut_down_under_load() -> None:
    """Each submission is refused, or its job is done: none is forgotten."""
    ledger, refused = Ledger(), Ledger()

    def by_thread(index: int) -> int:
        futures = []
        for number in range(100_000):
            try:
                futures.append(pool.submit(ledger.note, (index, number)))
            except WorkerPoolClosedError:
                refused.note(index)
                break
            except WorkerPoolFullError:
                time.sleep(0)
        for future in futures:
            future.result(LIMIT)
        return len(futures)

    async def by_loop(index: int) -> int:
        for number in range(100_000):
            try:
                await pool.asubmit(ledger.note, (index, number))
            except WorkerPoolClosedError:
                refused.note(index)
                return number
        raise AssertionError

    def end() -> int:
        until(lambda: pool.metrics.succeeded > 200)
        assert anyio.run(pool.shutdown).drained
        return 0

    pool = ThreadWorkerPool("pool")
    done = all_at_once(
        *(partial(by_thread, index) for index in range(4)),
        *(partial(in_loop, backend, partial(by_loop, 10 + index)) for index, backend in enumerate(BACKENDS[:4])),
        end,
    )
    assert set(ledger.runs.values()) == {1}
    assert len(ledger.runs) == sum(done) == pool.metrics.succeeded
    assert len(refused.runs) == 8
    assert (pool.state, pool.metrics.workers) == ("closed", 0)


def test_many_pools_at_once() -> None:
    """Each has its own workers, and none is left."""

    def use(index: int) -> None:
        for number in range(5):
            with thread_pool(f"pool of {index} {number}", workers=2, task_timeout=LIMIT) as pool:
                assert pool.map(str, range(10)) == [str(one) for one in range(10)]

    all_at_once(*(partial(use, index) for index in range(8)))


def test_many_loops_one_after_the_other() -> None:
    """Each leaves a pool that knows nothing of it any more."""
    with thread_pool(workers=2) as pool:

        async def use() -> int:
            return await pool.asubmit(int, "7") + await pool.submit(int, "1")

        for _ in range(20):
            for backend in ("asyncio", "trio"):
                assert in_loop(backend, use) == 8
