"""States with worker pools, for their sweeps: what the jobs do, a note of each, and what must be true of pool and jobs.

However a scenario is cut short: no job has run twice or by half, none that was accepted is lost, nothing waits, nothing
runs, and as many jobs as ever run at a time.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from types import TracebackType
from typing import Any, Final, TypeAlias

import anyio
import anyio.abc
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread
import attrs

from agentcore import (
    AsyncioWorkerPool,
    QueueWorkerPool,
    QueueWorkerPoolConfig,
    RuntimeClosedError,
    ThreadWorkerPool,
    ThreadWorkerPoolConfig,
    WorkerPoolClosedError,
    WorkerPoolError,
    get_worker_pool,
    shutdown_all_worker_pools,
)
from agentcore._host import Host
from agentcore.testing import current_simulation
from tests.sweeps.scenarios import LONG, Act, Boom, Runtime, State, do, scenario

KINDS: Final = ("threads", "queue", "tasks")
LOOPS: Final = KINDS[1:]
"""The kinds whose jobs are coroutines."""
CLASSES: Final[dict[str, type[Any]]] = {
    "threads": ThreadWorkerPool,
    "queue": QueueWorkerPool,
    "tasks": AsyncioWorkerPool,
}
PATIENCE: Final = 20.0
"""Real seconds after which a thread that was forgotten lets the test fail."""
Pool: TypeAlias = ThreadWorkerPool | QueueWorkerPool | AsyncioWorkerPool


@attrs.define(eq=False)
class Note:
    """One job.

    Attributes:
        kind: of its pool.
        begun: how often.
        ended: how often, by a return, an exception or a cancellation.
        pool: to which it belongs whatever becomes of its submitter, since the call has returned; None for others.
        future: of a thread's job that was handed over.
    """

    kind: str
    begun: int = 0
    ended: int = 0
    pool: Pool | None = None
    future: Any = None


class Jobs:
    """What the jobs of a scenario do, and a note of each."""

    def __init__(self) -> None:
        self.notes: list[Note] = []
        self.gate = threading.Event()
        """What the jobs of threads wait for that are told ``gate``."""
        self.most = 1
        """How often a job may run."""
        self.now: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        self._lock = threading.Lock()

    def make(self, kind: str, what: str = "work", then: Callable[[], Awaitable[Any]] | None = None) -> Any:
        """Return a function that does what a word says, in a pool of this kind; a coroutine function where that is due.

        Args:
            kind: of the pool.
            what: as for `scenarios.do`. In a thread: ``work``, ``fail``; ``sleep`` and ``long``, in the event loop; ``gate``.
            then: done at the end, in a coroutine.
        """
        note = Note(kind)
        self.notes.append(note)
        token = anyio.lowlevel.current_token()

        def in_thread(*_: object) -> str:
            with self._noted(note):
                self.step()
                if what == "fail":
                    raise Boom("as told")
                if what == "gate":
                    assert self.gate.wait(PATIENCE)
                elif what != "work":
                    anyio.from_thread.run(do, what, token=token)
                return what

        async def in_loop(*_: object) -> str:
            with self._noted(note):
                self.step()
                await do(what)
                if then is not None:
                    await then()
                return what

        job = in_thread if kind == "threads" else in_loop
        job.note = note  # type: ignore[attr-defined]
        return job

    def step(self) -> None:
        """Be what each job does first: the place for faults in a job."""

    @contextmanager
    def _noted(self, note: Note) -> Iterator[None]:
        with self._lock:
            note.begun += 1
            self.now[note.kind] += 1
            self.peak[note.kind] = max(self.peak[note.kind], self.now[note.kind])
        try:
            yield
        finally:
            with self._lock:
                note.ended += 1
                self.now[note.kind] -= 1

    def check(self) -> None:
        """Check that no job is lost, runs, has run by half or too often."""
        for note in self.notes:
            assert note.begun == note.ended <= self.most, note
            is_cancelled = note.future is not None and note.future.cancelled()
            if note.future is not None:
                assert note.future.done()
                error = None if is_cancelled else note.future.exception()  # nobody else may have looked
                # Not begun: it was taken back, or was still in the queue when the pool was shut down.
                assert is_cancelled <= (note.begun == 0)
                assert (note.begun == 0) <= (is_cancelled or isinstance(error, WorkerPoolClosedError))
            if note.pool is not None and note.pool.state == "open":
                assert note.begun == (0 if is_cancelled else 1), note
        assert Counter() == +self.now


class Pools:
    """The pools of a state; mixed in.

    Args:
        workers: of each pool.
        max_queue_size: of each pool.
    """

    def __init__(self, *, workers: int = 2, max_queue_size: int = 100, **settings: Any) -> None:
        super().__init__(**settings)
        self.jobs = Jobs()
        self.pools: list[Pool] = []
        self.failures: list[BaseException] = []
        """What jobs raised that nobody has waited for."""
        self.workers = workers
        self._size = max_queue_size

    def config(self, kind: str, **settings: Any) -> Any:
        """Return how a pool is to behave."""
        if kind == "threads":
            return ThreadWorkerPoolConfig(workers=self.workers, max_queue_size=self._size, **settings)
        return QueueWorkerPoolConfig(
            workers=self.workers, max_queue_size=self._size, on_error=self.failures.append, **settings
        )

    async def find(self, kind: str) -> Pool:
        """Return the pool of a kind."""
        raise NotImplementedError

    def know(self, pool: Any) -> Any:
        """Note a pool, for the check."""
        if pool not in self.pools:
            self.pools.append(pool)
        return pool

    # What a scenario does.

    async def perform(self, kind: str, what: str = "work", **options: Any) -> str:
        """Have a job done."""
        pool = await self.find(kind)
        done: str = await pool.options(**options).asubmit(self.jobs.make(kind, what))
        return done

    async def perform_quietly(self, kind: str, what: str = "work", **options: Any) -> None:
        """Have a job done, and take what it raises, as well as the refusal of the pool."""
        try:
            await self.perform(kind, what, **options)
        except (Boom, WorkerPoolError, RuntimeClosedError):
            return

    async def hand_over(self, kind: str, what: str = "work", **options: Any) -> Any:
        """Hand a job over; return the future of a thread's."""
        pool = await self.find(kind)
        job = self.jobs.make(kind, what)
        future = None
        if isinstance(pool, ThreadWorkerPool):
            future = pool.options(**options).submit(job)
            job.note.future = future
        else:
            await pool.options(**options).submit(job)
        job.note.pool = pool
        return future

    @asynccontextmanager
    async def holding(self, *kinds: str) -> AsyncGenerator[anyio.abc.TaskGroup]:
        """Have a worker of each kind held by a job: a thread until the block is left, others for a second."""
        async with anyio.create_task_group() as group:
            try:
                for kind in kinds:
                    group.start_soon(self.perform_quietly, kind, "gate" if kind == "threads" else "sleep")
                await current_simulation().settle()
                yield group
            finally:
                self.jobs.gate.set()

    # What must be true.

    def residents_of_pools(self) -> set[str]:
        """Return the names of the tasks of pools that are open."""
        names = set()
        for pool in self.pools:
            if pool.state != "closed":
                names |= {f"worker pool {pool.name}", f"worker of pool {pool.name}"}
        return names

    async def check_pools(self) -> None:
        """Let everything come to its end, and look at it."""
        self.jobs.gate.set()
        await self.rest()
        self.jobs.check()
        for pool in self.pools:
            self._check_metrics(pool)
            if pool.state == "open":
                await check_slots(pool, self.workers)
            else:
                await check_closed(pool)
        for kind, peak in self.jobs.peak.items():
            same = [pool.metrics for pool in self.pools if pool.name == kind]
            # A thread that is left behind is one more.
            left = sum(one.timed_out + one.cancelled for one in same) if kind == "threads" else 0
            assert peak <= self.workers * len(same) + left

    async def rest(self) -> None:
        """Wait until nothing runs any more. In real time too: threads that are given up end when they end."""
        for _ in range(200):
            await anyio.sleep(LONG)
            metrics = [pool.metrics for pool in self.pools]
            busy = sum(one.queued + one.running + one.abandoned for one in metrics)
            ending = sum(one.workers for one, pool in zip(metrics, self.pools, strict=True) if pool.state != "open")
            if busy + ending == 0:
                return
            await anyio.to_thread.run_sync(time.sleep, 0.002)
        raise AssertionError(f"the pools do not come to rest: {[pool.metrics for pool in self.pools]}")

    def _check_metrics(self, pool: Pool) -> None:
        metrics = pool.metrics
        assert metrics.workers <= (self.workers if pool.state == "open" else 0)
        begun = sum(note.begun for note in self.jobs.notes if note.kind == pool.name)
        same = [other for other in self.pools if other.name == pool.name]
        assert sum(metrics.wait_histogram) == sum(metrics.run_histogram)
        # More than those whose function was called: a task may be cancelled before its first step.
        assert sum(sum(other.metrics.wait_histogram) for other in same) >= begun
        outcomes = metrics.succeeded + metrics.failed + metrics.timed_out + metrics.cancelled + metrics.crashed
        assert outcomes >= sum(metrics.run_histogram)


async def check_slots(pool: Any, workers: int) -> None:
    """Check that a pool runs as many jobs at a time as it has workers, and one more after them."""
    if isinstance(pool, ThreadWorkerPool):
        barrier = threading.Barrier(workers)
        results = await pool.amap(lambda _: barrier.wait(PATIENCE) >= 0, range(workers))
    else:
        inside, everybody = 0, anyio.Event()

        async def meet(_: int) -> bool:
            nonlocal inside
            inside += 1
            if inside == workers:
                everybody.set()
            await everybody.wait()
            return True

        with anyio.fail_after(LONG):
            results = await pool.amap(meet, range(workers))
    assert [True] * workers == results
    assert (0, 0) == (pool.metrics.queued, pool.metrics.running)


async def check_closed(pool: Any) -> None:
    """Check that a pool that was shut down has nothing left, and says so."""
    assert pool.state == "closed"
    assert 0 == pool.metrics.workers
    try:
        await pool.asubmit(Jobs().make(pool.name))
    except WorkerPoolClosedError:
        return
    raise AssertionError(f"{pool!r} takes jobs")


class InRuntime(Pools, Runtime):
    """Pools of a runtime."""

    async def find(self, kind: str) -> Pool:
        """Return the runtime's pool of a kind, made at the first call."""
        known = self.runtime.pools.list_all().get(kind)
        if known is not None:
            return known  # type: ignore[return-value]
        return self.know(self.runtime.pool(kind, CLASSES[kind].pool_type, self.config(kind)))  # type: ignore[no-any-return]

    def note(self, error: BaseException) -> None:
        """Note what the runtime raised at its end, without cancellations, which trio puts beside a crash."""
        super().note(error)
        self.told = [leaf for leaf in self.told if not isinstance(leaf, anyio.get_cancelled_exc_class())]

    def residents(self) -> set[str]:
        """Return the names of the tasks of the pools too."""
        return super().residents() | self.residents_of_pools()

    async def check(self) -> None:
        """Look at the pools too."""
        await self.check_pools()
        await super().check()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.jobs.gate.set()
        await super().__aexit__(kind, error, traceback)
        if error is None:
            for pool in self.pools:
                await check_closed(pool)


class InHost(Pools, State):
    """Pools of the event loop."""

    async def find(self, kind: str) -> Pool:
        """Return the event loop's pool of a kind, made at the first call."""
        return self.know(await get_worker_pool(kind, CLASSES[kind].pool_type, self.config(kind)))  # type: ignore[no-any-return]

    def residents(self) -> set[str]:
        """Return the names of the tasks of the pools and of their host."""
        return (self.residents_of_pools() | {"host of agentcore"}) if Host.find() is not None else set()

    async def check(self) -> None:
        """Look at the pools, then shut them down: nothing is left."""
        # Also those whose maker was cancelled when they were there.
        for kind in KINDS:
            self.know(await get_worker_pool(kind, CLASSES[kind].pool_type, self.config(kind)))
        await self.check_pools()
        await super().check()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.jobs.gate.set()
        await shutdown_all_worker_pools()
        if error is None:
            for pool in self.pools:
                await check_closed(pool)
            await current_simulation().settle()
            assert ([0], None) == ([task.task for task in current_simulation().tasks()], Host.find())


class Alone(Pools, State):
    """A pool of its own, which the scenario enters and leaves."""

    def __init__(self, kind: str, **settings: Any) -> None:
        super().__init__(**settings)
        self.pool: Pool = self.know(CLASSES[kind](kind, self.config(kind)))

    async def find(self, kind: str) -> Pool:
        """Return the pool."""
        assert kind == self.pool.name
        return self.pool

    async def check(self) -> None:
        """Look at the pool, which is gone."""
        await self.check_pools()
        await super().check()
        assert Host.find() is None


def of_kinds(
    build: Callable[..., State], *covers: str, kinds: tuple[str, ...] = KINDS, **rules: Any
) -> Callable[[Callable[[Any, str], Awaitable[None]]], Callable[[Any, str], Awaitable[None]]]:
    """Return a decorator that puts a scenario into the table once for each kind of pools.

    Args:
        build: makes its state; told the kind if that is `Alone`.
        *covers: the public coroutines that it sweeps.
        kinds: which.
        **rules: further attributes of the `Scenario`.
    """

    def note(act: Callable[[Any, str], Awaitable[None]]) -> Callable[[Any, str], Awaitable[None]]:
        for kind in kinds:
            scenario(_made(build, kind), *covers, **rules)(_named(act, kind))
        return act

    return note


def _made(build: Callable[..., State], kind: str) -> Callable[[], State]:
    return lambda: build(kind) if build is Alone else build()


def _named(act: Callable[[Any, str], Awaitable[None]], kind: str) -> Act:
    async def with_kind(state: Any) -> None:
        await act(state, kind)

    with_kind.__name__ = f"{act.__name__}_by_{kind}"
    with_kind.__module__ = act.__module__
    return with_kind
