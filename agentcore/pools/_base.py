"""What all worker pools have in common, whatever runs their jobs."""

from __future__ import annotations

import abc
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sized
from types import TracebackType
from typing import Any, ClassVar, Final, Generic, Literal, Self, TypeVar, final

import anyio
import anyio.abc
import attrs
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from agentcore import _interop
from agentcore._context import current_pool_job
from agentcore._host import Host
from agentcore._layer import check_callable, check_name
from agentcore._rules.backoff import show
from agentcore._rules.task_states import TaskPriority
from agentcore.errors import (
    ConfigurationError,
    WorkerPoolBrokenError,
    WorkerPoolClosedError,
    WorkerPoolDeadlockError,
    WorkerTimeoutError,
)
from agentcore.pools._jobs import current_worker, name_of
from agentcore.pools._records import (
    DEFAULT_OPTIONS,
    JobInfo,
    JobOptions,
    WorkerPoolConfig,
    WorkerPoolMetrics,
    WorkerPoolReport,
    WorkerPoolType,
    check_seconds,
)

R = TypeVar("R")
T = TypeVar("T")


@final
@attrs.frozen(kw_only=True)
class JobResult(Generic[T, R]):
    """How the job of one item ended, as `as_completed` gives it.

    Attributes:
        index: of the item.
        item: what the function was called with.
        value: what it returned; None if it raised.
        error: what it raised; None if it returned.
    """

    index: int
    item: T
    value: R | None = None
    error: Exception | None = None

    def result(self) -> R:
        """Return what the function returned, or raise what it raised."""
        if self.error is not None:
            raise self.error
        return self.value  # type: ignore[return-value]


class BaseWorkerPool(abc.ABC):
    """Runs jobs by a bounded number of workers. Each kind of worker has a class of its own below this one.

    Leaving ``async with pool:`` drains the pool; by an exception or a cancellation, jobs that have not begun are cancelled.

    Args:
        name: what it is called, in messages, metrics and the names of its threads.
        config: how it behaves.

    Raises:
        ConfigurationError: an argument is not usable.
    """

    pool_type: ClassVar[WorkerPoolType]
    """What runs the jobs."""
    config_type: ClassVar[type[WorkerPoolConfig]]
    """Knows all settings of the kind."""

    name: Final[str]
    config: Final[WorkerPoolConfig]

    def __init__(self, name: str, config: WorkerPoolConfig | None = None) -> None:
        check_name("worker pool", name)
        self.name = name
        self.config = self.config_type.of(config, name)
        self._state: Literal["open", "draining", "closed", "broken"] = "open"
        # Where it lives, if that is the host of an event loop, and what is set when it has left.
        self._host: Host | None = None
        self._gone: anyio.Event | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} {self._state}>"

    @property
    def state(self) -> Literal["open", "draining", "closed", "broken"]:
        """``open``; ``draining`` from the begin of a shutdown on; ``closed``; ``broken`` if no worker can be started."""
        return self._state

    @property
    @abc.abstractmethod
    def metrics(self) -> WorkerPoolMetrics:
        """What it has done so far."""

    @abc.abstractmethod
    def jobs(self) -> tuple[JobInfo, ...]:
        """Return what the workers are at, the longest first; also what nobody waits for any more."""

    @abc.abstractmethod
    def _check_outside(self) -> None:
        """Raise WorkerPoolDeadlockError if this is a part of one of its jobs, which an end of the pool would wait for."""

    @abc.abstractmethod
    async def shutdown(self, wait: bool = True, timeout: float | None = None) -> WorkerPoolReport:
        """Take no further jobs and end the workers. Always a checkpoint. A second call waits for the same end.

        Args:
            wait: whether to wait for the jobs there are. If not, those that have not begun are cancelled, and this returns.
            timeout: seconds to wait, then what is left is cut short; None for the pool's `shutdown_timeout`. If the caller is
                cancelled meanwhile, the pool goes on draining by itself.

        Raises:
            ConfigurationError: the timeout is not usable.
        """

    async def ashutdown(self, wait: bool = True, timeout: float | None = None) -> WorkerPoolReport:
        """Do what `shutdown` does."""
        return await self.shutdown(wait, timeout)

    @abc.abstractmethod
    async def _finish(self, grace: float | None) -> WorkerPoolReport:
        """End the pool within so many seconds, whatever it takes: drain, then cut short. 0: nothing that waits is begun."""

    @abc.abstractmethod
    async def _abort(self) -> WorkerPoolReport:
        """End the pool because the block around it failed: what waits is cancelled, what runs is ended and waited for."""

    @abc.abstractmethod
    async def _supervise(self) -> None:
        """Own the pool, in a task group, until it is closed."""

    @abc.abstractmethod
    async def _perform(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], options: JobOptions
    ) -> Any:
        """Run one job and return what it returns; `asubmit` of every kind."""

    async def __aenter__(self) -> Self:
        if self._state != "open":
            raise self._closed_error()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> Literal[False]:
        if exc is not None:
            await self._surely_abort()  # noqa: ASYNC102 - shields itself
        else:
            try:
                await self.shutdown()  # noqa: ASYNC102 - shields itself
            except BaseException:
                await self._surely_abort()  # noqa: ASYNC102 - shields itself
                raise
        return False

    async def _surely_abort(self) -> None:
        # In a task of its own: a `Task.cancel()` by the host comes through every shield, but ends only this task.
        async with anyio.create_task_group() as group:  # noqa: ASYNC112 - not redundant: see above
            group.start_soon(self._abort)

    async def _leave_host(self) -> None:
        """Wait until nothing of the pool is left in the host of this event loop, if it has lived there."""
        if self._gone is not None and self._host is not None and self._host.is_here():
            with anyio.CancelScope(shield=True):
                await self._gone.wait()
                await self._host.wait_if_deserted()

    def _limit(self, timeout: float | None) -> float | None:
        check_timeout(timeout)
        return timeout if timeout is not None else self.config.shutdown_timeout

    def _closed_error(self) -> WorkerPoolClosedError:
        return WorkerPoolClosedError(
            f"worker pool {self.name!r} takes no jobs any more: got one in state {self._state!r}; "
            "get another pool, whose name may be the same",
            {"pool": self.name},
        )


class Calls:
    """How jobs are handed to a pool by those who wait for them: by the pool itself, and by its `options`.

    Attributes:
        _pool: which one.
        _options: how.
    """

    _pool: BaseWorkerPool
    _options: JobOptions = DEFAULT_OPTIONS

    def options(
        self,
        *,
        priority: TaskPriority | None = None,
        timeout: float | None = None,
        when_full: Literal["raise", "wait"] | None = None,
        abandon_on_cancel: bool | None = None,
    ) -> Any:
        """Return a view of the pool that hands jobs over like this; what is omitted stays as it is.

        Args:
            priority: of the jobs; more urgent ones are begun first.
            timeout: seconds that each may take, the wait in the queue included; then a `WorkerTimeoutError`.
            when_full: ``raise`` or ``wait``. By default who is given a result to wait for later is refused when too many jobs
                wait, and who waits anyway is not.
            abandon_on_cancel: whether a cancelled caller leaves a running job of a thread behind instead of waiting for it.

        Raises:
            ConfigurationError: an argument is not usable.
        """
        changes = {
            "priority": priority,
            "timeout": timeout,
            "when_full": when_full,
            "abandon_on_cancel": abandon_on_cancel,
        }
        given: dict[str, Any] = {name: value for name, value in changes.items() if value is not None}
        return self._view(attrs.evolve(self._options, **given))

    def _view(self, options: JobOptions) -> Any:
        raise NotImplementedError

    async def amap(self, func: Callable[[T], Any], items: Iterable[T], timeout: float | None = None) -> list[Any]:
        """Call a function with each item and return what it returned or raised, in the order of the items.

        Items are drawn as there is room for them. A cancelled caller takes back what has not begun.

        Args:
            func: a function of one argument; for the kinds for coroutines, a coroutine function.
            items: what to call it with.
            timeout: seconds for the whole; what has not ended then comes back as a `WorkerTimeoutError`. Of items without a
                length none is drawn any more then.

        Raises:
            WorkerPoolClosedError, WorkerPoolBrokenError: the pool takes no jobs.
            ConfigurationError: an argument is not usable.
        """
        found: dict[int, Any] = {}
        async with self.as_completed(func, items, timeout) as results:
            async for one in results:
                found[one.index] = one.value if one.error is None else one.error
        return [found[index] for index in range(len(found))]

    def as_completed(self, func: Callable[[T], Any], items: Iterable[T], timeout: float | None = None) -> JobResults[T]:
        """Return a block to go through the results of a function for each item, as they come.

            async with pool.as_completed(measure, paths) as results:
                async for one in results:
                    print(one.item, one.value)

        Leaving the block early takes back what has not begun, and ends the rest as a cancelled `asubmit` does.

        Args:
            func: as for `amap`.
            items: as for `amap`.
            timeout: as for `amap`.

        Raises:
            WorkerPoolClosedError: inside of the block: the pool takes no jobs.
            ConfigurationError: an argument is not usable.
        """
        check_callable("func of a worker pool", func)
        check_timeout(timeout)
        if isinstance(items, AsyncIterator) or not isinstance(items, Iterable):
            raise ConfigurationError(
                f"items of a worker pool must be a plain iterable: got {show(items)}; pass a list",
                {"name": "items", "value": items},
            )
        return JobResults(self._pool, self._options, func, items, timeout)


@final
class JobResults(Generic[T]):
    """A block in which a function is called with each of many items; `Calls.as_completed` makes it."""

    def __init__(
        self,
        pool: BaseWorkerPool,
        options: JobOptions,
        func: Callable[[T], Any],
        items: Iterable[T],
        timeout: float | None,
    ) -> None:
        self._pool = pool
        self._options = options
        self._func = func
        self._items: Iterator[tuple[int, T]] = enumerate(items)
        self._is_sized = isinstance(items, Sized)
        self._timeout = timeout
        self._deadline: float | None = None
        self._group: anyio.abc.TaskGroup | None = None
        self._results: MemoryObjectReceiveStream[JobResult[T, Any]] | None = None
        self._failure: BaseException | None = None

    async def __aenter__(self) -> Self:
        if self._group is not None:
            raise ConfigurationError("a block for results can be entered once: got a second time; make another one")
        if self._timeout is not None:
            self._deadline = _interop.monotonic() + self._timeout
        self._group = await anyio.create_task_group().__aenter__()
        send, self._results = anyio.create_memory_object_stream[JobResult[T, Any]](0)
        with send:
            # Enough for each worker to have something and one more to go on with.
            for _ in range(2 * self._pool.config.size):
                self._group.start_soon(self._work, send.clone(), name=f"items for worker pool {self._pool.name}")
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        assert self._group is not None and self._results is not None  # `__aenter__` has set them  # noqa: S101, PT018
        is_cancelled = exc is not None and _interop.split_cancellation(exc) == (True, None)
        self._group.cancel_scope.cancel("the block for results was left")
        try:
            # Not told of an exception of the block, which would come back wrapped in a group.
            told = (exc_type, exc, traceback) if is_cancelled else (None, None, None)
            swallowed = bool(await self._group.__aexit__(*told))  # noqa: ASYNC102 - shields itself
        finally:
            self._results.close()
        if exc is not None and not is_cancelled:
            return False
        if self._failure is not None and (exc is None or swallowed):
            raise self._failure
        return swallowed

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> JobResult[T, Any]:
        if self._results is None:
            raise ConfigurationError("results come inside of their block: got none; write `async with` around the loop")
        try:
            return await self._results.receive()
        except anyio.EndOfStream:
            raise StopAsyncIteration from None

    async def _work(self, send: MemoryObjectSendStream[JobResult[T, Any]]) -> None:
        with send:
            while (one := self._draw()) is not None:
                index, item = one
                value, error = None, None
                try:
                    value = await self._pool._perform(self._func, (item,), {}, self._options_now())
                except BaseException as raised:  # noqa: ASYNC103 - a cancellation goes on
                    if _interop.split_cancellation(raised)[0]:
                        raise
                    if not isinstance(raised, Exception) or self._is_of_all(raised):
                        self._fail(raised)
                        return  # noqa: ASYNC104 - told elsewhere
                    error = raised
                await send.send(JobResult(index=index, item=item, value=value, error=error))

    def _is_of_all(self, error: BaseException) -> bool:
        """Tell whether an error is one of this call, and not of a single job, which may have used another pool."""
        if isinstance(error, WorkerPoolClosedError | WorkerPoolBrokenError):
            return self._pool.state != "open"
        is_in_job = current_worker() is not None or current_pool_job.get() is not None
        return is_in_job and isinstance(error, WorkerPoolDeadlockError)

    def _draw(self) -> tuple[int, T] | None:
        """Return the next item with its index; None if there is none, or none that has to be answered."""
        if not self._is_sized and self._deadline is not None and self._deadline <= _interop.monotonic():
            return None  # there may be no end of them
        try:
            return next(self._items, None)
        except Exception as error:  # noqa: BLE001 - raised by the block
            self._fail(error)
            return None

    def _fail(self, error: BaseException) -> None:
        """End the block: what has happened concerns more than one item."""
        assert self._group is not None  # `__aenter__` has set it  # noqa: S101
        self._failure = error
        self._group.cancel_scope.cancel("there are no further results")

    def _options_now(self) -> JobOptions:
        if self._deadline is None:
            return self._options
        left = self._deadline - _interop.monotonic()
        if left <= 0:
            raise WorkerTimeoutError(
                f"job {name_of(self._func)} of worker pool {self._pool.name!r} was not begun within the timeout of all items: "
                f"got more than {self._timeout:g} s; add workers or allow more time",
                {"pool": self._pool.name, "function": name_of(self._func), "timeout": self._timeout, "phase": "queued"},
            )
        own = self._options.timeout
        return attrs.evolve(self._options, timeout=left if own is None else min(left, own))


def check_timeout(timeout: object) -> None:
    """Accept None and numbers of seconds, 0 or more, that can be waited for.

    Raises:
        ConfigurationError: it is something else.
    """
    check_seconds("timeout", timeout)
