"""Pools for coroutines: what the kinds have in common whose jobs run in the event loop.

Such a pool belongs to one event loop. What it runs lives in a task group of its own, inside of a task of its owner: of a
runtime, or of the event loop's host. So no native cancellation of a caller's task can reach a worker and take a job with it.
"""

from __future__ import annotations

import abc
import inspect
import logging
import math
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from contextvars import Context
from typing import Any, ClassVar, Final, Literal, Never, Self

import anyio
import anyio.abc
import anyio.lowlevel

from agentcore import _interop
from agentcore._context import current_pool_job, detached_context
from agentcore._host import Host
from agentcore._interop._waiting import Waiter, WaitingRoom
from agentcore.errors import (
    JobCancelledError,
    WorkerPoolClosedError,
    WorkerPoolDeadlockError,
    WorkerPoolError,
    WorkerPoolFullError,
)
from agentcore.pools._base import BaseWorkerPool
from agentcore.pools._caller import Caller
from agentcore.pools._drive import drive, wait_for, will_begin
from agentcore.pools._jobs import QUEUED, RUNNING, SETTLED, Job, JobQueue, own_error, propagate_task
from agentcore.pools._records import (
    Counts,
    JobInfo,
    JobOptions,
    QueueWorkerPoolConfig,
    WorkerPoolConfig,
    WorkerPoolMetrics,
    WorkerPoolReport,
)

_logger: Final = logging.getLogger("agentcore.pools")


class LoopWorkerPool(BaseWorkerPool):
    """A pool whose jobs are coroutines."""

    config_type: ClassVar[type[WorkerPoolConfig]] = QueueWorkerPoolConfig

    def __init__(self, name: str, config: Any = None) -> None:
        super().__init__(name, config)
        own = self.config
        assert isinstance(own, QueueWorkerPoolConfig)  # `config_type` makes it  # noqa: S101
        self._on_error = own.on_error
        self._size = own.size
        self._queue = JobQueue()
        self._counts = Counts()
        self._running: set[Job] = set()
        self._room: WaitingRoom | None = None  # of its event loop; None before it lives in one
        self._group: anyio.abc.TaskGroup | None = None
        self._bell: anyio.Event | None = None  # calls the task that owns the workers
        self._is_to_end = False
        self._ended: anyio.Event | None = None
        self._is_ended = False
        # How often the task around the workers has been cancelled by asyncio's own ways.
        self._cancellations: Callable[[], int] = int
        self._space: deque[Waiter] = deque()
        self._calm: list[Callable[[], object]] = []
        self._cut: list[str] = []

    # What the kinds say.

    def _is_in_task(self) -> bool:
        """Tell whether tasks can be started here: in a callback of the event loop they cannot."""
        return self._room is not None and self._room.is_here()

    def _ring(self) -> None:
        """Have the task that owns the workers look whether there is something to begin."""
        if self._bell is not None:
            self._bell.set()

    def _spawn(self, group: anyio.abc.TaskGroup, function: Callable[..., Coroutine[Any, Any, None]], name: str) -> None:
        """Start a task of the pool, with nothing of the context of whoever happens to call."""
        group.start_soon(function, name=name)

    @abc.abstractmethod
    def _begin(self) -> None:
        """Start what runs the jobs that wait: the task group is there."""

    @abc.abstractmethod
    def _call(self) -> None:
        """Have a job looked at that has just come into the queue."""

    @property
    @abc.abstractmethod
    def _number_of_workers(self) -> int:
        """How many there are."""

    # Living.

    def _settle_in(self) -> None:
        """Belong to the running event loop from now on. Jobs may come, and begin when `_supervise` runs."""
        self._room = WaitingRoom.current()
        self._bell, self._ended = anyio.Event(), anyio.Event()

    async def _supervise(self) -> None:
        """Own what runs the jobs, until the pool is shut down or whoever lives around it is cancelled."""
        ended = self._ended
        self._cancellations = WaitingRoom.current().native_cancellations()
        assert self._bell is not None and ended is not None  # `_settle_in` has set them  # noqa: S101, PT018
        try:
            async with anyio.create_task_group() as group:
                self._group = group
                self._begin()
                while not self._is_to_end:
                    await self._bell.wait()
                    self._bell = anyio.Event()
                    self._begin()  # for what has come from a callback, which starts no tasks
                self._is_ended = True
                group.cancel_scope.cancel(f"worker pool {self.name!r} is shut down")
        finally:
            self._is_ended = True
            self._group = None
            self._drop_waiting()
            self._state = "closed"
            self._tell_calm()
            ended.set()

    async def _live(self) -> None:
        try:
            await self._supervise()
        finally:
            if self._gone is not None:
                self._gone.set()

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        if self._room is not None:
            self._check_place()
            return self
        self._settle_in()
        host = self._host = Host.current()
        self._gone = anyio.Event()
        try:
            await host.move_in(self._live, f"worker pool {self.name}")
        except BaseException as error:
            self._state = "closed"
            with anyio.CancelScope(shield=True):
                await host.wait_if_deserted()
            if isinstance(error, RuntimeError):
                raise self._closed_error() from error  # noqa: ASYNC104 - told elsewhere
            raise
        return self

    def __enter__(self) -> Never:
        raise TypeError(
            f"worker pool {self.name!r} lives in an event loop: got a plain `with`; write `async with` or await its shutdown"
        )

    def __exit__(self, *_exc: object) -> None:
        """Never called; without it Python would not even ask `__enter__`."""

    # Jobs.

    @property
    def metrics(self) -> WorkerPoolMetrics:
        """What it has done so far."""
        return self._counts.show(queued=len(self._queue), workers=self._number_of_workers, abandoned=0)

    def jobs(self) -> tuple[JobInfo, ...]:
        """Return what the workers are at, the longest first."""
        now = _interop.clock()
        jobs = sorted(self._running, key=lambda job: job.started)
        return tuple(
            JobInfo(function=job.describe(), seconds=now - job.started, abandoned=job.is_unwanted) for job in jobs
        )

    def _make(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], options: JobOptions
    ) -> Job:
        context = detached_context()
        propagate_task(context)
        return Job(function, args, kwargs, context, options.priority, options.timeout)

    def _check_place(self) -> None:
        if self._state == "closed":
            raise self._closed_error()
        if self._room is None:
            raise WorkerPoolError(
                f"worker pool {self.name!r} must be entered before it gets jobs: got one in a pool that lives nowhere; "
                "write `async with pool:`, or get it by get_worker_pool",
                {"pool": self.name},
            )
        if not self._room.is_in_loop():
            raise WorkerPoolError(
                f"worker pool {self.name!r} must be used in its own event loop: got a call in another one, or in a thread; "
                "use runtime.from_thread(...)",
                {"pool": self.name},
            )

    def _admit(self, job: Job, *, must_fit: bool) -> None:
        if self._room is None or not self._room.is_in_loop():
            self._check_place()
        if self._state != "open":
            raise self._closed_error()
        if must_fit and len(self._queue) >= self.config.max_queue_size:
            self._counts.rejected += 1
            raise WorkerPoolFullError(
                f"worker pool {self.name!r} lets no more than max_queue_size jobs wait: got one more than "
                f"{self.config.max_queue_size}; try later, use asubmit or options(when_full='wait'), or raise max_queue_size",
                {"pool": self.name, "max_queue_size": self.config.max_queue_size},
            )
        self._queue.push(job)
        self._call()

    def _send(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], options: JobOptions
    ) -> None:
        """Hand over a job that nobody waits for."""
        self._admit(self._make(function, args, kwargs, options), must_fit=True)

    async def _send_when_it_fits(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], options: JobOptions
    ) -> None:
        job = self._make(function, args, kwargs, options)
        await self._wait_for_space(job)
        self._admit(job, must_fit=True)

    @property
    def _jobs_now(self) -> AbstractSet[Job]:
        """The jobs that run now."""
        return self._running

    @property
    def _has_room(self) -> bool:
        """Whether a further job would be begun at once, or as soon as the event loop comes to it."""
        return len(self._running) < self._size

    async def _wait_for_space(self, job: Job) -> None:
        self._check_place()
        with self._awaiting(job, "the place in the queue for"):
            await self._get_space()

    async def _get_space(self) -> None:
        while self._state == "open" and len(self._queue) >= self.config.max_queue_size:
            waiter = WaitingRoom.current().waiter()
            self._space.append(waiter)
            try:
                await waiter.wait(_leaves)
            except BaseException:
                if waiter.is_woken:  # for nothing: somebody else can use it
                    self._offer_space()
                else:
                    self._space.remove(waiter)
                raise

    def _offer_space(self) -> None:
        if self._space:
            self._space.popleft().wake()

    async def _perform(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], options: JobOptions
    ) -> Any:
        await anyio.lowlevel.checkpoint_if_cancelled()
        self._check_place()
        job = self._make(function, args, kwargs, options)
        caller = Caller(self, job, WaitingRoom.current().waiter())
        job.listener = caller
        self._admit(job, must_fit=options.when_full == "raise")
        if current_pool_job.get() is None or options.timeout is not None:
            await caller.wait(options.timeout)
        else:
            try:
                with self._awaiting(job, "a call of"):
                    await caller.wait(None)
            except WorkerPoolDeadlockError:
                self._withdraw(job)
                raise
        if isinstance(job.error, JobCancelledError | WorkerPoolClosedError):
            await anyio.lowlevel.checkpoint_if_cancelled()  # for a caller who is cancelled himself
        return job.give()

    @contextmanager
    def _awaiting(self, job: Job, what: str) -> Generator[None]:
        """Note that the job around waits for another one, or for its place in the queue, inside the block.

        Raises:
            WorkerPoolDeadlockError: it would do so for ever.
        """
        around = current_pool_job.get()
        if not isinstance(around, Job):
            yield
            return
        around.awaits = {**around.awaits, job: self}
        try:
            if not will_begin(self):
                raise WorkerPoolDeadlockError(
                    f"job {around.describe()} would wait for ever: got {what} {job.describe()} in worker pool {self.name!r}, "
                    "whose workers are all taken by jobs that wait for it; call the function directly, add workers, or use "
                    "another pool",
                    {"pool": self.name},
                )
            yield
        finally:
            around.awaits = {one: pool for one, pool in around.awaits.items() if one is not job}

    def _withdraw(self, job: Job) -> bool:
        """End a job because its caller has been cancelled; tell whether it has not begun, so that he may go."""
        if job.state is QUEUED:
            self._counts.cancelled += 1
            self._settle_waiting(job, None)
            return True
        if job.state is RUNNING:
            job.is_unwanted = True
            if job.worker is not None:
                job.worker.cancel("whoever waits for the job was cancelled")
        return False

    def _expire(self, job: Job) -> bool:
        """End a job whose time is over; tell whether it had not begun. If it has, it has a limit of its own."""
        if job.state is not QUEUED:
            return False
        self._counts.timed_out += 1
        self._settle_waiting(job, job.too_late(self.name, "queued", job.timeout or 0.0))
        return True

    def _settle_waiting(self, job: Job, error: BaseException | None) -> None:
        job.listener = None
        self._queue.discard()
        self._offer_space()
        self._settle(job, None, error)

    # Running.

    def _take(self) -> Job | None:
        """Take the job that comes next, as one that runs now."""
        while not self._is_doomed() and (job := self._queue.pop()) is not None:
            if self._space:
                self._offer_space()
            now = _interop.clock()
            if job.deadline is not None and job.deadline <= now:
                self._counts.timed_out += 1
                is_awaited, late = job.listener is not None, job.too_late(self.name, "queued", job.timeout or 0.0)
                self._settle(job, None, late)
                if not is_awaited:
                    self._report_failure(job, late)
                continue
            job.state = RUNNING
            job.started = now
            self._counts.begin(now - job.submitted)
            self._running.add(job)
            return job
        return None

    async def _run(self, job: Job) -> None:
        """Run a job in this task, with its own variables. Raises what must not be kept from whoever lives around the pool."""
        value: Any = None
        error: BaseException | None = None
        try:
            context = job.context
            assert context is not None  # it has not ended  # noqa: S101
            context.run(current_pool_job.set, job)
            if job.listener is None and job.deadline is None and self.config.task_timeout is None:
                value = await drive(context, self._start(job))
            else:
                value, error = await self._run_limited(job, context)
        except BaseException as raised:  # noqa: ASYNC103 - a cancellation goes on
            error = raised
            if _interop.split_cancellation(raised)[0] and self._is_ending():
                self._end_cut(job)
                raise
        self._end(job, value, error)

    async def _run_limited(self, job: Job, context: Context) -> tuple[Any, BaseException | None]:
        """Run a job whose caller may be cancelled, or that may take too long."""
        scope = job.worker = anyio.CancelScope()
        phase, limit = self._limit_of(job, scope)
        if job.is_unwanted:  # since before its first step
            scope.cancel("whoever waits for the job was cancelled")
        value: Any = None
        with scope:
            value = await drive(context, self._start(job))
            return value, None
        if job.is_unwanted:
            return None, JobCancelledError(
                f"job {job.describe()} of worker pool {self.name!r} was cancelled: got nobody who still waits for it",
                {"pool": self.name},
            )
        job.is_late = True
        return None, job.too_late(self.name, phase, limit)

    def _limit_of(self, job: Job, scope: anyio.CancelScope) -> tuple[str, float]:
        """Set the deadline of a job that runs; return which of the limits it is, and its seconds."""
        now = _interop.clock()
        left = None if job.deadline is None else max(0.0, job.deadline - now)
        most = self.config.task_timeout
        if left is None and most is None:
            return "running", 0.0
        is_own = most is None or (left is not None and left <= most)
        scope.deadline = anyio.current_time() + (left if is_own else most)  # type: ignore[operator]
        return ("running", job.timeout or 0.0) if is_own else ("worker", most or 0.0)

    def _start(self, job: Job) -> Coroutine[Any, Any, Any]:
        assert job.function is not None and job.context is not None  # it has not ended  # noqa: S101, PT018
        made = job.context.run(job.function, *job.args, **job.kwargs)
        if inspect.iscoroutine(made):
            return made
        if inspect.isawaitable(made):
            return wait_for(made)
        raise WorkerPoolError(
            f"a job of worker pool {self.name!r} must be a coroutine function: got {job.describe()}, which returned {made!r}; "
            "use a thread pool for plain functions",
            {"pool": self.name, "function": job.describe()},
        )

    def _is_ending(self) -> bool:
        """Tell whether a cancellation that came to a worker is meant for the pool, and was not made by the job itself."""
        if anyio.current_effective_deadline() == -math.inf:
            self._is_ended = True
        return self._is_doomed()

    def _is_doomed(self) -> bool:
        """Tell whether whoever lives around the pool is being cancelled."""
        return self._is_ended or self._cancellations() > 0

    def _end(self, job: Job, value: Any, error: BaseException | None) -> None:
        """Settle a job that has run, and tell of its failure if nobody else does."""
        if job.state is SETTLED:
            return
        self._leave_running(job)
        is_awaited = job.listener is not None
        if error is None:
            self._counts.succeeded += 1
        elif isinstance(error, JobCancelledError) and job.is_unwanted:
            self._counts.cancelled += 1
        elif job.is_late:
            self._counts.timed_out += 1
        else:
            error = own_error(error, job, self.name)
            self._counts.failed += 1
        self._settle(job, value, error)
        if error is not None and not is_awaited:
            self._report_failure(job, error)

    def _end_cut(self, job: Job) -> None:
        """Settle a job that was cut short with the pool."""
        if job.state is not SETTLED:
            self._leave_running(job)
            self._cut.append(job.describe())
            self._counts.cancelled += 1
            self._settle(job, None, self._closed_error())

    def _leave_running(self, job: Job) -> None:
        self._running.discard(job)
        self._counts.end(_interop.clock() - job.started)

    def _report_failure(self, job: Job, error: BaseException) -> None:
        if not isinstance(error, Exception):
            raise error
        _logger.error("job %s of worker pool %r failed", job.describe(), self.name, exc_info=error)
        if self._on_error is not None:
            try:
                self._on_error(error)
            except Exception:
                _logger.exception("on_error of worker pool %r failed", self.name)

    def _settle(self, job: Job, value: Any, error: BaseException | None) -> None:
        job.value, job.error, job.state = value, error, SETTLED
        job.release()
        listener, job.listener = job.listener, None
        if listener is not None:
            listener.job_ended(job)
        if self._state != "open" and not self._queue and not self._running:
            self._tell_calm()

    # The end.

    async def shutdown(self, wait: bool = True, timeout: float | None = None) -> WorkerPoolReport:
        """Take no further jobs and end the workers; see `BaseWorkerPool.shutdown`."""
        limit = self._limit(timeout)
        began = _interop.monotonic()
        if self._room is None:  # it has never lived
            self._state = "closed"
        if self._state == "closed":
            await anyio.lowlevel.checkpoint()
            return self._report(began)
        self._check_place()
        await anyio.lowlevel.checkpoint()
        if wait and self._is_inside():
            raise WorkerPoolDeadlockError(
                f"shutdown of worker pool {self.name!r} would wait for the job that calls it: got a call in {self!r} itself; "
                "pass wait=False, or call it elsewhere",
                {"pool": self.name},
            )
        self._begin_end(cancel_waiting=not wait)
        if not wait:
            self._end_when_calm()
            return self._report(began)
        try:
            is_calm = await self._wait_until_calm(limit)
        except BaseException:
            self._end_when_calm()
            raise
        if not is_calm:
            self._cut_short()
        await self._wait_for_end()
        return self._report(began)

    async def _finish(self, grace: float | None) -> WorkerPoolReport:
        began = _interop.monotonic()
        with anyio.CancelScope(shield=True):
            self._begin_end(cancel_waiting=grace == 0)
            if grace == 0 or not await self._wait_until_calm(grace):
                self._cut_short()
            await self._wait_for_end()
        return self._report(began)

    async def _abort(self) -> WorkerPoolReport:
        return await self._finish(0)

    def _is_inside(self) -> bool:
        job = current_pool_job.get()
        return isinstance(job, Job) and job in self._running

    def _begin_end(self, *, cancel_waiting: bool) -> None:
        if self._state == "open":
            self._state = "draining"
        if cancel_waiting:
            self._drop_waiting()
        while self._space:
            self._offer_space()

    def _drop_waiting(self) -> None:
        for job in self._queue.take_all():
            self._counts.cancelled += 1
            self._cut.append(job.describe())
            self._queue.discard()
            self._settle(job, None, self._closed_error())

    def _end_when_calm(self) -> None:
        """Have the end come by itself."""
        if self._running or self._queue:
            self._calm.append(self._let_end)
        else:
            self._let_end()

    def _let_end(self) -> None:
        self._is_to_end = True
        if self._bell is not None:
            self._bell.set()

    async def _wait_until_calm(self, limit: float | None) -> bool:
        """Wait until the last job is settled; tell whether that came in time."""
        if self._state == "closed" or not (self._queue or self._running):
            return True
        waiter = WaitingRoom.current().waiter()
        self._calm.append(waiter.wake)
        with anyio.move_on_after(limit):
            await waiter.wait(_leaves)
        return waiter.is_woken

    def _cut_short(self) -> None:
        self._drop_waiting()
        if self._running:
            names = ", ".join(sorted(job.describe() for job in self._running)[:20])
            _logger.warning("worker pool %r was shut down before these jobs had ended: %s", self.name, names)

    async def _wait_for_end(self) -> None:
        if self._ended is None:
            self._state = "closed"
            return
        self._let_end()
        with anyio.CancelScope(shield=True):
            await self._ended.wait()
        await self._leave_host()

    def _tell_calm(self) -> None:
        calm, self._calm = self._calm, []
        for callback in calm:
            callback()

    def _report(self, began: float) -> WorkerPoolReport:
        cut = tuple(self._cut)
        return WorkerPoolReport(drained=not cut, cut_short=cut, duration=_interop.monotonic() - began)


def _leaves() -> Literal[True]:
    return True
