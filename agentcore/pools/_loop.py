"""Pools for coroutines: what the kinds have in common whose jobs run in the event loop.

Such a pool belongs to one event loop. What it runs lives in a task group of its own, inside of a task of its owner: of a
runtime, or of the event loop's host. So no native cancellation of a caller's task can reach a worker and take a job with it.
"""

from __future__ import annotations

import abc
import logging
from collections.abc import Callable, Coroutine, Generator
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from contextvars import Context
from functools import partial
from typing import Any, Final, Literal, Never, Self

import anyio
import anyio.abc
import anyio.lowlevel

from agentcore import _interop
from agentcore._context import current_pool_job, current_visitor, detached_context
from agentcore._host import Host
from agentcore._interop._waiting import WaitingRoom
from agentcore.errors import (
    JobCancelledError,
    WorkerPoolClosedError,
    WorkerPoolDeadlockError,
    WorkerPoolError,
    WorkerPoolFullError,
)
from agentcore.pools._caller import Caller
from agentcore.pools._circles import will_begin
from agentcore.pools._jobs import QUEUED, RUNNING, Job, propagate_task
from agentcore.pools._loop_calls import LoopCalls
from agentcore.pools._records import JobInfo, JobOptions, WorkerPoolMetrics, WorkerPoolReport
from agentcore.pools._running import RunsJobs

_logger: Final = logging.getLogger("agentcore.pools")


class LoopWorkerPool(LoopCalls, RunsJobs):
    """A pool whose jobs are coroutines."""

    def __init__(self, name: str, config: Any = None) -> None:
        super().__init__(name, config)
        self._size = self.config.size
        self._most = self.config.max_queue_size
        self._room: WaitingRoom | None = None  # of its event loop; None before it lives in one
        self._group: anyio.abc.TaskGroup | None = None
        self._bell: anyio.Event | None = None  # calls the task that owns the workers
        self._is_to_end = False
        self._ended: anyio.Event | None = None

    # What the kinds say.

    def _is_in_task(self) -> bool:
        """Tell whether tasks can be started here: in a callback of the event loop they cannot."""
        return self._room is not None and self._room.is_here()

    def _ring(self) -> None:
        """Have the task that owns the workers look whether there is something to begin."""
        if self._bell is not None:
            self._bell.set()

    def _spawn(
        self, context: Context, name: str, function: Callable[..., Coroutine[Any, Any, None]], *args: Any
    ) -> None:
        """Start a task of the pool, with these variables and nothing of the context of whoever happens to call."""
        assert self._group is not None  # there is nothing to start without  # noqa: S101
        _ = context.run(partial(self._group.start_soon, function, *args, name=name))

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
    def _pool(self) -> Self:  # type: ignore[override]
        return self

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
        if must_fit and self._queue.live >= self._most:
            self._counts.rejected += 1
            raise WorkerPoolFullError(
                f"worker pool {self.name!r} lets no more than max_queue_size jobs wait: got one more than {self._most}; "
                "try later, use asubmit or options(when_full='wait'), or raise max_queue_size",
                {"pool": self.name, "max_queue_size": self._most},
            )
        self._queue.push(job)
        self._call()

    def _send(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], options: JobOptions
    ) -> None:
        self._admit(
            Job(function, args, kwargs, detached_context(propagate_task), options.priority, options.timeout),
            must_fit=True,
        )

    async def _send_when_it_fits(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], options: JobOptions
    ) -> None:
        job = Job(function, args, kwargs, detached_context(propagate_task), options.priority, options.timeout)
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
        if job.timeout is None:
            with self._awaiting(job, "the place in the queue for"):
                await self._get_space()
            return
        with anyio.move_on_after(job.timeout) as scope:
            await self._get_space()
        if scope.cancelled_caught:
            self._counts.timed_out += 1
            raise job.too_late(self.name, "queued", job.timeout)

    async def _get_space(self) -> None:
        while self._state == "open" and self._queue.live >= self._most:
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

    async def _perform(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], options: JobOptions
    ) -> Any:
        room = WaitingRoom.current()
        await room.checkpoint_if_cancelled()
        self._check_place()
        context = detached_context(propagate_task)
        job = Job(function, args, kwargs, context, options.priority, options.timeout)
        caller = Caller(self, job, room.waiter())
        job.listener = caller
        if options.timeout is None and (visitor := current_visitor.get()) is not None:
            context.run(current_visitor.set, visitor)  # who waits for this waits for all that it waits for
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
            await room.checkpoint_if_cancelled()  # for a caller who is cancelled himself
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
        if wait:
            self._check_outside()
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

    def _check_outside(self) -> None:
        if self._is_inside():
            raise WorkerPoolDeadlockError(
                f"shutdown of worker pool {self.name!r} would wait for the job that calls it: got a call in {self!r} itself; "
                "pass wait=False, or call it elsewhere",
                {"pool": self.name},
            )

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

    def _report(self, began: float) -> WorkerPoolReport:
        cut = tuple(self._cut)
        return WorkerPoolReport(drained=not cut, cut_short=cut, duration=_interop.monotonic() - began)


def _leaves() -> Literal[True]:
    return True
