"""How jobs run in an event loop: from the queue to the outcome, in the task of whoever works.

Most jobs of a queue end in their first step. What all of them need is looked up once for many, and nothing is made for one
that only a job needs that waits, that somebody waits for, or that has a limit.
"""

from __future__ import annotations

import inspect
import logging
import math
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextvars import Context
from types import CoroutineType, coroutine
from typing import Any, ClassVar, Final

import anyio
import anyio.lowlevel

from agentcore import _interop
from agentcore._context import current_pool_job, drive, drive_on
from agentcore._interop._waiting import Waiter
from agentcore.errors import JobCancelledError, WorkerPoolError
from agentcore.pools._base import BaseWorkerPool
from agentcore.pools._circles import wait_for
from agentcore.pools._jobs import RUNNING, SETTLED, Job, JobQueue, own_error
from agentcore.pools._records import Counts, QueueWorkerPoolConfig, WorkerPoolConfig

TURNS: Final = 64
"""Jobs that never wait, after which a worker lets others run."""

_logger: Final = logging.getLogger("agentcore.pools")


class RunsJobs(BaseWorkerPool):
    """The part of a pool for coroutines that runs them."""

    config_type: ClassVar[type[WorkerPoolConfig]] = QueueWorkerPoolConfig

    def __init__(self, name: str, config: Any = None) -> None:
        super().__init__(name, config)
        own = self.config
        assert isinstance(own, QueueWorkerPoolConfig)  # `config_type` makes it  # noqa: S101
        self._on_error = own.on_error
        self._limit_of_all = own.task_timeout
        self._queue = JobQueue()
        self._counts = Counts()
        self._running: set[Job] = set()
        self._is_ended = False
        # How often the task around the workers has been cancelled by asyncio's own ways.
        self._cancellations: Callable[[], int] = int
        self._space: deque[Waiter] = deque()
        self._calm: list[Callable[[], object]] = []
        self._cut: list[str] = []

    def _step_aside(self) -> None:
        """Have somebody else see to the queue: whoever calls this has a job that takes longer."""

    # From the queue to the first step.

    @coroutine
    def _serve(self, is_struck: Callable[[], int]) -> Generator[Any, Any, None]:
        """Run the jobs that wait, in this task, one after the other, until there are none.

        Args:
            is_struck: whether a job has cancelled the task, by asyncio's own ways, which concerns no other job.
        """
        clock, counts, running, pop = _interop.clock, self._counts, self._running, self._queue.pop
        is_cancelled, step, limit = self._cancellations, self._first_step, self._limit_of_all
        turns, now = TURNS, clock()
        while not (self._is_ended or is_cancelled()) and (job := pop()) is not None:
            if self._space:
                self._offer_space()
            if job.listener is not None or job.deadline is not None or limit is not None:
                if self._begins(job, now):
                    self._step_aside()
                    yield from self._run(job)
                now = clock()
            else:
                job.state, job.started = RUNNING, now
                counts.begin(now - job.submitted)
                running.add(job)
                try:
                    rest = job.context.run(step, job)  # type: ignore[union-attr]  # it has not ended
                    if rest is not None:
                        self._step_aside()
                        yield from drive_on(*rest)
                except BaseException as error:  # noqa: ASYNC103, BLE001 - `_fail` lets a cancellation go on
                    self._fail(job, error)
                    now = clock()
                else:
                    now = clock()  # the end of one is the beginning of the next
                    self._succeed(job, now)
            turns -= 1
            if is_struck() and not self._is_ending():
                yield from _interop.forget_cancellations()
            elif not turns:
                turns = TURNS
                yield from anyio.lowlevel.checkpoint()
                now = clock()

    def _take(self, now: float) -> Job | None:
        """Take the job that comes next, as one that runs from now on."""
        while not self._is_doomed() and (job := self._queue.pop()) is not None:
            if self._space:
                self._offer_space()
            if self._begins(job, now):
                return job
        return None

    def _begins(self, job: Job, now: float) -> bool:
        """Have a job that was in the queue run from now on; tell whether it does, and its time is not over already."""
        if job.deadline is not None and job.deadline <= now:
            self._counts.timed_out += 1
            is_awaited, late = job.listener is not None, job.too_late(self.name, "queued", job.timeout or 0.0)
            self._settle(job, None, late)
            if not is_awaited:
                self._report_failure(job, late)
            return False
        job.state, job.started = RUNNING, now
        self._counts.begin(now - job.submitted)
        self._running.add(job)
        return True

    def _first_step(self, job: Job) -> tuple[Context, Coroutine[Any, Any, Any], Any] | None:
        """Start a job and have it go as far as it goes at once; in the variables of the job.

        Returns:
            What `drive_on` needs for the rest of it; None if it has ended.
        """
        current_pool_job.set(job)
        made = job.function(*job.args, **job.kwargs)  # type: ignore[misc]  # it has not ended
        if type(made) is not CoroutineType:
            made = self._as_coroutine(job, made)
        try:
            return job.context, made, made.send(None)  # type: ignore[return-value]  # it has not ended
        except StopIteration:
            return None

    def _start(self, job: Job) -> Coroutine[Any, Any, Any]:
        """Call the function of a job; in the variables of the job."""
        current_pool_job.set(job)
        made = job.function(*job.args, **job.kwargs)  # type: ignore[misc]  # it has not ended
        return made if type(made) is CoroutineType else self._as_coroutine(job, made)

    def _as_coroutine(self, job: Job, made: Any) -> Coroutine[Any, Any, Any]:
        if inspect.isawaitable(made):
            return wait_for(made)
        raise WorkerPoolError(
            f"a job of worker pool {self.name!r} must be a coroutine function: got {job.describe()}, which returned {made!r}; "
            "use a thread pool for plain functions",
            {"pool": self.name, "function": job.describe()},
        )

    # Jobs that take longer.

    async def _run(self, job: Job) -> None:
        """Run a job in this task, with its own variables. Raises what must not be kept from whoever lives around the pool."""
        value: Any = None
        error: BaseException | None = None
        try:
            if job.listener is None and job.deadline is None and self._limit_of_all is None:
                value = await self._go(job)
            else:
                value, error = await self._run_limited(job)
        except BaseException as raised:  # noqa: ASYNC103, BLE001 - `_fail` lets a cancellation go on
            self._fail(job, raised)
        else:
            self._end(job, value, error)

    def _go(self, job: Job) -> Awaitable[Any]:
        """Begin a job in this task, with its own variables; return what gives its value."""
        assert job.context is not None  # it has not ended  # noqa: S101
        return drive(job.context, job.context.run(self._start, job))

    async def _run_limited(self, job: Job) -> tuple[Any, BaseException | None]:
        """Run a job whose caller may be cancelled, or that may take too long."""
        scope = job.worker = anyio.CancelScope()
        phase, limit = self._limit_of(job, scope)
        if job.is_unwanted:  # since before its first step
            scope.cancel("whoever waits for the job was cancelled")
        value: Any = None
        with scope:
            value = await self._go(job)
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
        most = self._limit_of_all
        if left is None and most is None:
            return "running", 0.0
        is_own = most is None or (left is not None and left <= most)
        scope.deadline = anyio.current_time() + (left if is_own else most)  # type: ignore[operator]
        return ("running", job.timeout or 0.0) if is_own else ("worker", most or 0.0)

    # The outcome.

    def _is_ending(self) -> bool:
        """Tell whether a cancellation that came to a worker is meant for the pool, and was not made by the job itself."""
        if anyio.current_effective_deadline() == -math.inf:
            self._is_ended = True
        return self._is_doomed()

    def _is_doomed(self) -> bool:
        """Tell whether whoever lives around the pool is being cancelled."""
        return self._is_ended or self._cancellations() > 0

    def _fail(self, job: Job, error: BaseException) -> None:
        """End a job that has raised. What is meant for whoever lives around the pool is raised again."""
        if _interop.split_cancellation(error)[0] and self._is_ending():
            self._end_cut(job)
            raise error
        self._end(job, None, error)

    def _succeed(self, job: Job, now: float) -> None:
        """End a job that has returned, and that nobody waits for."""
        self._leave_running(job, now)
        self._counts.succeeded += 1
        job.state = SETTLED
        job.release()
        if self._state != "open":
            self._tell_if_calm()

    def _end(self, job: Job, value: Any, error: BaseException | None) -> None:
        """Settle a job that has run, and tell of its failure if nobody else does."""
        if job.state is SETTLED:
            return
        self._leave_running(job, _interop.clock())
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
        if is_awaited:
            self._settle(job, value, error)
            return
        self._settle(job, None, None)  # which nobody would take from it again
        if error is not None:
            self._report_failure(job, error)

    def _end_cut(self, job: Job) -> None:
        """Settle a job that was cut short with the pool."""
        if job.state is not SETTLED:
            self._leave_running(job, _interop.clock())
            self._cut.append(job.describe())
            self._counts.cancelled += 1
            self._settle(job, None, self._closed_error())

    def _leave_running(self, job: Job, now: float) -> None:
        self._running.discard(job)
        self._counts.end(now - job.started)

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
        if self._state != "open":
            self._tell_if_calm()

    def _tell_if_calm(self) -> None:
        if not self._queue and not self._running:
            self._tell_calm()

    def _offer_space(self) -> None:
        if self._space:
            self._space.popleft().wake()

    def _tell_calm(self) -> None:
        calm, self._calm = self._calm, []
        for callback in calm:
            callback()
