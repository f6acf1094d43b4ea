"""Worker threads under virtual time: real threads, whose results come in a fixed order.

While a task waits for a thread, virtual time stands still. Whatever a thread hands to the event loop (its result, a call
through `from_thread`) is kept back until nothing else can run, and is then let in one at a time, in the order in which
the threads were started: a thousand runs with real threads are a thousand times the same run.
"""

import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import attrs
from anyio.lowlevel import checkpoint

from agentcore._interop import SYSTEM

# How long the oldest thread may hold up the results of younger ones, in real seconds. Threads that wait for each
# other would otherwise never end; threads that only work are never so much slower than their like.
PATIENCE: Final = 0.5

_local = threading.local()


@attrs.define(eq=False)
class Job:
    """One call in a worker thread.

    Attributes:
        serial: its number, in the order in which the threads were started.
        threads: those of its simulation.
        asks: how many asynchronous functions the event loop runs for it while it waits.
        begun: whether it counts among those that work.
        resting: whether it waits for a thread that does something else.
        posts: what it has handed to the event loop and is not let in yet.
    """

    serial: int
    threads: "Threads"
    asks: int = 0
    begun: bool = False
    resting: bool = False
    posts: deque[Callable[[], object]] = attrs.field(factory=deque)

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return `function`, with everything that its thread hands over known to come from this job."""

        def in_thread(*args: Any) -> Any:
            # Not taken back at the end: the result is handed over after `function` has returned. Weak, for threads live on.
            _local.job = weakref.ref(self)
            self.begin()
            try:
                return function(*args)
            finally:
                self.threads.count(-1)

        return in_thread

    def rest(self) -> None:
        """Note that it waits for a thread that does something else."""
        self.resting = True

    def resume(self) -> None:
        """Note that a thread has come for it."""
        self.resting = False

    def leave(self) -> None:
        """Note that no task waits for it any longer."""
        self.threads.leave(self)

    def begin(self) -> None:
        """Count it among those that work; once."""
        if not self.begun:
            self.begun = True
            self.threads.count(1)


def current_job() -> Job | None:
    """Return the job that this thread works at and that is waited for, None in other threads."""
    known: Callable[[], Job | None] | None = getattr(_local, "job", None)
    job = known() if known is not None else None
    # A thread lives on, with the job of a simulation that is over.
    return job if job is not None and job.threads.awaits(job) else None


class Threads:
    """The worker threads of one simulation."""

    def __init__(self, wake: Callable[[], object]) -> None:
        self._wake = wake
        self._serial = 0
        self._working = 0
        self._lock = threading.Lock()
        self._awaited: dict[int, Job] = {}
        self._foreign: deque[Callable[[], object]] = deque()
        self._home = threading.get_ident()
        self._since: float | None = None

    @property
    def busy(self) -> bool:
        """Whether a task waits for a thread that works."""
        return any(not job.asks and not job.resting for job in list(self._awaited.values()))

    @property
    def awaited(self) -> int:
        """How many tasks wait for a thread."""
        return len(self._awaited)

    @property
    def working(self) -> int:
        """How many functions run in threads, awaited or abandoned."""
        return self._working

    def start(self) -> Job:
        """Note that a task waits for a new thread from now on."""
        self._serial += 1
        job = self._awaited[self._serial] = Job(self._serial, self)
        return job

    def count(self, change: int) -> None:
        """Note that a function has begun or ended in its thread."""
        with self._lock:
            self._working += change

    def leave(self, job: Job) -> None:
        """Note that the task waits no longer: it has the result, or has abandoned the thread."""
        self._awaited.pop(job.serial, None)
        # An abandoned thread may still hand over something; nobody waits for it, so it comes in when it comes.
        self._foreign.extend(job.posts)
        job.posts.clear()

    def awaits(self, job: Job) -> bool:
        """Tell whether a task waits for this job."""
        return self._awaited.get(job.serial) is job

    def at_home(self) -> bool:
        """Tell whether this is the thread of the event loop."""
        return threading.get_ident() == self._home

    def post(self, callback: Callable[[], object]) -> None:
        """Keep back what another thread hands to the event loop."""
        job = current_job()
        if job is not None and job.threads is self:
            job.posts.append(callback)
        else:
            self._foreign.append(callback)
        self._wake()

    def release(self) -> bool:
        """Let in what comes next, now that nothing else can run; tell whether there was anything."""
        if self._foreign:
            self._foreign.popleft()()
            return True
        oldest = True
        for job in self._awaited.values():
            if job.posts and (oldest or self._impatient()):
                self._since = None
                job.posts.popleft()()
                return True
            oldest = oldest and bool(job.asks)
        return False

    def _impatient(self) -> bool:
        now = SYSTEM.monotonic()
        if self._since is None:
            self._since = now
        return now - self._since >= PATIENCE


class _Gate:
    """Stands around a limiter of threads, and notes from when to when a task waits for its thread."""

    def __init__(self, limiter: Any, threads: Threads, borrower: object) -> None:
        self._limiter = limiter
        self._threads = threads
        self._token = borrower
        self.job: Job | None = None
        self._ended = self._left = False

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def in_thread(*args: Any) -> Any:
            assert self.job is not None
            return self.job.wrap(function)(*args)

        return in_thread

    async def wait(self) -> None:
        # Here and not below: with the limiter at its limit one backend would stop once more than the other.
        await self._limiter.acquire_on_behalf_of(self._token)

    def leave(self) -> None:
        """The task goes on, with the result or without it. The permit is free once the thread has ended as well."""
        self._left = True
        if self.job is not None:
            self._threads.leave(self.job)
        if self.job is None or self._ended:
            self._limiter.release_on_behalf_of(self._token)

    def _end(self) -> None:
        # One backend tells it from the event loop as soon as the thread has ended, the other when the task goes on.
        self._ended = True
        if self._left:
            self._limiter.release_on_behalf_of(self._token)

    def _start(self) -> None:
        self.job = self._threads.start()
        self.job.begin()

    async def __aenter__(self) -> None:
        self._start()

    async def __aexit__(self, *_exc: object) -> None:
        self._end()

    async def acquire_on_behalf_of(self, _borrower: object) -> None:
        self._start()

    def release_on_behalf_of(self, _borrower: object) -> None:
        self._end()


def gated(original: Any, current: Callable[[], Any], borrower: Callable[[Any], object]) -> Any:
    """Return AnyIO's hand-off to a thread, which tells the current simulation when a task waits for it.

    Args:
        original: the method of a backend that is replaced.
        current: gives the kernel of the simulation that runs here, None outside of one.
        borrower: gives in whose name the permit of a thread is taken.
    """

    async def run_sync_in_worker_thread(
        cls: Any, func: Any, args: Any, abandon_on_cancel: bool = False, limiter: Any = None
    ) -> Any:
        kernel = current()
        if kernel is None:
            return await original(cls, func, args, abandon_on_cancel, limiter)
        if kernel.inline_threads:
            await checkpoint()
            async with limiter or cls.current_default_thread_limiter():
                return func(*args)
        gate = _Gate(limiter or cls.current_default_thread_limiter(), kernel.threads, borrower(kernel))
        await gate.wait()
        try:
            return await original(cls, gate.wrap(func), args, abandon_on_cancel, gate)
        finally:
            gate.leave()

    return classmethod(run_sync_in_worker_thread)


def asking(original: Any) -> Any:
    """Return AnyIO's call of an asynchronous function from a thread, which gives the clock free while it runs."""

    def run_async_from_thread(cls: Any, func: Any, args: Any, token: Any) -> Any:
        job = current_job()

        async def answer(*args: Any) -> Any:
            # The thread waits for the event loop now: it must not stop the clock that it waits for.
            assert job is not None
            job.asks += 1
            try:
                return await func(*args)
            finally:
                job.asks -= 1

        return original(cls, func if job is None else answer, args, token)

    return classmethod(run_async_from_thread)
