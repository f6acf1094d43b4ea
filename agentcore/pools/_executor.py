"""The standard library's interface to a worker pool, for whatever takes an executor."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future
from contextlib import suppress
from itertools import islice
from typing import Any, Final, ParamSpec, Protocol, TypeAlias, TypeVar, final

from agentcore import _interop
from agentcore._rules.backoff import show
from agentcore.errors import ConfigurationError, WorkerPoolBrokenError, WorkerPoolClosedError
from agentcore.pools._records import WorkerPoolConfig, WorkerPoolType

P = ParamSpec("P")
T = TypeVar("T")

_Calls: TypeAlias = Iterator[tuple[Callable[..., Any], tuple[Any, ...]]]

REFUSED: Final = "cannot schedule new futures after shutdown"
REFUSED_AT_EXIT: Final = "cannot schedule new futures after interpreter shutdown"
LINGER: Final = 0.05
"""Seconds that the thread of the exit stays when the last job is over: most often the next one comes soon."""
GLANCE: Final = 0.25
"""Seconds after which that thread looks whether the program has ended, if there is a limit from then on."""


class Context(Protocol):
    """How processes are started: what `multiprocessing.get_context` returns."""

    def get_start_method(self) -> str:
        """Return the name of the way."""


class Pool(Protocol):
    """A pool as an executor sees it: that of threads or that of processes."""

    @property
    def name(self) -> str:
        """What it is called."""

    @property
    def pool_type(self) -> WorkerPoolType:
        """What runs its jobs."""

    @property
    def config(self) -> WorkerPoolConfig:
        """How it behaves."""

    def _send(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Future[Any]:
        """Hand over a job, however many wait already."""


@final
class WorkerPoolExecutor(Executor):
    """A worker pool as `concurrent.futures.Executor`: what `pool.executor()` returns.

        loop.run_in_executor(pool.executor(), parse, text)

    It is a view of the pool with a life of its own. Its jobs are the pool's, in the pool's queue and numbers, only that they are
    never refused because too many wait. Shutting it down ends nothing but itself: it takes no further jobs, and waits for its
    own. If the pool is shut down first, it takes no further jobs either. Errors have the types and the texts of the standard
    library, whose own executors pass the same tests: `agentcore.testing.ExecutorConformance`. What is beyond it: a worker
    process that dies costs the job that it had begun, and no other.

    A program that ends waits for the jobs of its executors, before exit handlers are called, as with the standard library's;
    but no longer than the pool's `shutdown_timeout`, if it has one.

    Args:
        pool: of threads or of processes.
        max_workers, thread_name_prefix, mp_context, initializer, initargs, max_tasks_per_child: what the standard library's
            executors take. Each is accepted where it asks for what the pool does anyway, so that calls written for those need
            no change: as many workers, the pool's name, ``spawn`` (workers of pools start afresh), the same initializer with the
            same arguments, as many jobs for each worker.

    Raises:
        ConfigurationError: one of them asks for something else, which is a matter of the pool's configuration; or the pool is
            of another kind.
    """

    def __init__(
        self,
        pool: Pool,
        *,
        max_workers: int | None = None,
        thread_name_prefix: str = "",
        mp_context: Context | str | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        max_tasks_per_child: int | None = None,
    ) -> None:
        wishes = _Wishes(pool)
        wishes.check("max_workers", max_workers, "workers", pool.config.size)
        wishes.check_name(thread_name_prefix)
        wishes.check_start(mp_context)
        wishes.check("initializer", initializer, "initializer")
        if initializer is not None:
            wishes.check("initargs", tuple(initargs), "initargs")
        wishes.check("max_tasks_per_child", max_tasks_per_child, "max_jobs_per_worker")
        self._pool: Final = pool
        self._changed: Final = threading.Condition()
        self._is_shut = self._cancels = False
        # Those that were sent and are not done, in this order; and how many are on their way.
        self._jobs: dict[Future[Any], None] = {}
        self._sending = 0

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._pool!r}{' shut down' if self._is_shut else ''}>"

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Hand a job over and return its future, which can be awaited as well. Never waits, is never refused for a full queue.

        Args:
            fn: what to call.
            *args: its arguments.
            **kwargs: its arguments, each of them: ``timeout`` too.

        Raises:
            RuntimeError: this executor or the pool has been shut down, or the interpreter ends.
            BrokenExecutor: `BrokenThreadPool` or `BrokenProcessPool`: the pool has no workers and gets none.
        """
        self._begin()
        future: Future[Any] | None = None
        try:
            # Not under the lock: the pool has one of its own, and ends jobs, which takes this one.
            future = self._pool._send(fn, args, kwargs)
        except WorkerPoolClosedError as error:
            raise RuntimeError(REFUSED) from error
        except WorkerPoolBrokenError as error:
            raise broken_error(self._pool.pool_type, str(error)) from error
        finally:
            self._arrive(future)
        future.add_done_callback(self._end)
        if self._cancels:
            future.cancel()
        return future

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """Call a function with the items of several iterables, as `map` does, and give the results in their order.

        The jobs are handed over at once. Closing the iterator, or its end by an error, takes back those that have not begun.

        Args:
            fn: what to call.
            *iterables: as many as it takes arguments; the shortest one counts.
            timeout: seconds for the whole, from this call on; a result that is not there by then is a TimeoutError.
            chunksize: how many items are sent to a process at a time, as one job: for many short calls. If one of them raises,
                it stands for the whole chunk. Without effect in a pool of threads.
            buffersize: how many jobs may be ahead of the results; further items are drawn as results are taken. None: all items
                are drawn at once.

        Raises:
            ValueError: a size is not positive.
            TypeError: `buffersize` is no number.
            RuntimeError, BrokenExecutor: as for `submit`.
        """
        if buffersize is not None and not isinstance(buffersize, int):
            raise TypeError("buffersize must be an integer or None")
        if buffersize is not None and buffersize < 1:
            raise ValueError("buffersize must be None or > 0")
        in_chunks = self._pool.pool_type is WorkerPoolType.PROCESS
        if in_chunks and chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        in_chunks = in_chunks and chunksize > 1
        deadline = None if timeout is None else _interop.SYSTEM.monotonic() + timeout
        items = zip(*iterables, strict=False)
        calls = _chunks(fn, items, chunksize) if in_chunks else ((fn, args) for args in items)
        futures = deque(self.submit(function, *args) for function, args in islice(calls, buffersize))
        results = self._results(futures, calls, deadline, in_chunks=in_chunks)
        next(results)  # from now on it can be closed
        return results

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no further jobs; the pool goes on. May be called again.

        Args:
            wait: whether to wait until all jobs of this executor are done.
            cancel_futures: whether to cancel those that have not begun.

        Raises:
            WorkerPoolDeadlockError: a job waits for itself here.
        """
        with self._changed:
            self._is_shut = True
            self._cancels |= cancel_futures
            jobs = list(self._jobs)
        if cancel_futures:
            for job in reversed(jobs):  # so that no worker takes the next one meanwhile
                job.cancel()
        if wait:
            self._wait()

    def _wait(self) -> None:
        """Wait for all jobs, of which no further ones come."""
        with self._changed:
            self._changed.wait_for(lambda: not self._sending)
            jobs = list(self._jobs)
        told = threading.Semaphore(0)
        for job in jobs:
            job.add_done_callback(lambda _: told.release())
        for job in jobs:
            with suppress(CancelledError):
                job.exception()  # knows a deadlock when it sees one
        for _ in jobs:
            told.acquire()  # so their other callbacks have been called

    def _begin(self) -> None:
        """Count a job that is on its way."""
        with self._changed:
            if self._is_shut:
                raise RuntimeError(REFUSED)
            if not threading.main_thread().is_alive():
                raise RuntimeError(REFUSED_AT_EXIT)
            if not self._jobs and not self._sending:
                _exit.hold(self, self._pool.config.shutdown_timeout)
            self._sending += 1

    def _arrive(self, future: Future[Any] | None) -> None:
        """Count a job that the pool has now, or has refused."""
        with self._changed:
            self._sending -= 1
            if future is not None:
                self._jobs[future] = None
            self._look()

    def _end(self, future: Future[Any]) -> None:
        """Count a job that is done."""
        with self._changed:
            del self._jobs[future]
            self._look()

    def _look(self) -> None:
        """Tell those who wait of what has changed. Under the lock."""
        if not self._sending:
            if not self._jobs:
                _exit.let_go(self)
            if self._is_shut:
                self._changed.notify_all()

    def _results(
        self,
        futures: deque[Future[Any]],
        calls: _Calls,
        deadline: float | None,
        *,
        in_chunks: bool,
    ) -> Generator[Any]:
        # The one who takes the first result gets None at once: so the block below is entered, and left when this is closed.
        try:
            yield None
            while futures:
                if in_chunks:
                    chunk = self._take(futures, calls, deadline)
                    chunk.reverse()
                    while chunk:
                        yield chunk.pop()
                else:
                    yield self._take(futures, calls, deadline)  # and keep no reference to it
        finally:
            while futures:
                futures.pop().cancel()

    def _take(self, futures: deque[Future[Any]], calls: _Calls, deadline: float | None) -> Any:
        """Wait for the oldest future; hand over the next call in its place."""
        left = None if deadline is None else max(0.0, deadline - _interop.SYSTEM.monotonic())
        found = futures[0].result(left)
        del futures[0]
        for function, args in islice(calls, 1):
            futures.append(self.submit(function, *args))
        return found


def broken_error(pool_type: WorkerPoolType, message: str) -> BrokenExecutor:
    """Return the standard library's error for an executor without workers, of threads or of processes."""
    # Here, for with these names comes what is slow to import.
    if pool_type is WorkerPoolType.THREAD:
        from concurrent.futures.thread import BrokenThreadPool  # noqa: PLC0415

        return BrokenThreadPool(message)
    from concurrent.futures.process import BrokenProcessPool  # noqa: PLC0415

    return BrokenProcessPool(message)


def _chunks(function: Callable[..., Any], items: Iterator[tuple[Any, ...]], size: int) -> _Calls:
    """Make calls of several items each, which return a list.

    Of nothing but built-in functions: for one of this library each worker would have to import it.
    """
    while chunk := list(islice(items, size)):
        yield list, (map(function, *zip(*chunk, strict=True)),)


@final
class _Wishes:
    """What is asked of an executor, and what its pool does."""

    def __init__(self, pool: Pool) -> None:
        if pool.pool_type not in (WorkerPoolType.THREAD, WorkerPoolType.PROCESS):
            raise ConfigurationError(
                f"executor must have a pool of threads or of processes: got {pool!r}; use asubmit of a pool for coroutines",
                {"name": "pool", "value": pool},
            )
        self._pool = pool

    def check(self, name: str, value: object, setting: str, own: object = None) -> None:
        """Accept what is the pool's own, and what is left open."""
        if own is None:
            own = getattr(self._pool.config, setting, () if setting == "initargs" else None)
        if value is not None and value != own:
            self._refuse(name, value, f"what its pool {self._pool.name!r} has, {show(own)}", f"set {setting} there")

    def check_name(self, prefix: str) -> None:
        """Accept the name that threads of the pool have."""
        if not prefix or (self._pool.pool_type is WorkerPoolType.THREAD and prefix == self._pool.name):
            return
        self._refuse("thread_name_prefix", prefix, f"the name of its pool, {self._pool.name!r}", "name the pool so")

    def check_start(self, context: Context | str | None) -> None:
        """Accept a start afresh, which is what processes have."""
        if context is None:
            return
        if self._pool.pool_type is WorkerPoolType.THREAD:
            self._refuse("mp_context", context, f"left out for threads, of pool {self._pool.name!r}", "leave it out")
        method = context if isinstance(context, str) else context.get_start_method()
        if method != "spawn":
            rule = f"'spawn', for workers of pool {self._pool.name!r} start afresh and are never forked"
            self._refuse("mp_context", method, rule, "leave it out, and hand data to an initializer of the pool")

    def _refuse(self, name: str, value: object, rule: str, remedy: str) -> None:
        raise ConfigurationError(
            f"{name} of an executor must be {rule}: got {show(value)}; {remedy}", {"name": name, "value": value}
        )


@final
class _Exit:
    """Keeps the interpreter from ending while executors have jobs: by a thread, which is there while they have.

    The interpreter waits for each thread that is no daemon, and calls exit handlers only then. The workers of pools are daemons,
    so that one that hangs keeps nobody; this thread is none. It sleeps until all jobs are over. Then it stays for a moment, in
    which the end of the main thread, and so of the program, wakes it.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._holders: dict[WorkerPoolExecutor, float | None] = {}
        self._is_there = self._sleeps = False
        self._ended: float | None = None

    def hold(self, executor: WorkerPoolExecutor, limit: float | None) -> None:
        """Wait for an executor.

        Args:
            executor: which has jobs from now on.
            limit: for how many seconds after the end of the program, None for as long as it takes.

        Raises:
            RuntimeError: there can be no further thread.
        """
        with self._changed:
            if not self._is_there:
                # Not by `_interop`, whose threads are daemons.
                threading.Thread(target=self._watch, name="agentcore-exit", daemon=False).start()
                self._is_there = True
            self._holders[executor] = limit
            if limit is not None and self._sleeps:
                self._changed.notify()  # to look now and then from now on

    def let_go(self, executor: WorkerPoolExecutor) -> None:
        """Wait for an executor no more."""
        with self._changed:
            self._holders.pop(executor, None)
            if not self._holders and self._sleeps:
                self._changed.notify()

    def _watch(self) -> None:
        while True:
            with self._changed:
                while self._holders and not self._is_too_late():
                    self._sleeps = True
                    has_limit = any(limit is not None for limit in self._holders.values())
                    self._changed.wait(GLANCE if has_limit else None)
                    self._sleeps = False
                if self._holders:
                    return
            threading.main_thread().join(LINGER)
            with self._changed:
                if not self._holders:
                    self._is_there = False
                    return

    def _is_too_late(self) -> bool:
        """Tell whether the program has ended so long ago that nobody waits for what is left."""
        if threading.main_thread().is_alive():
            return False
        now = _interop.SYSTEM.monotonic()
        if self._ended is None:
            self._ended = now
        ended = self._ended
        return all(limit is not None and now >= ended + limit for limit in self._holders.values())


_exit = _Exit()


def _forget() -> None:
    """After a fork: the jobs are the parent's, and the thread is there alone."""
    global _exit  # noqa: PLW0603 - process-wide by nature
    _exit = _Exit()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forget)
