"""How jobs are handed to the pools that own their workers, by a pool itself and by its `options`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sized
from concurrent.futures import CancelledError
from typing import Any, TypeVar, final

import attrs

from agentcore import _interop
from agentcore._layer import check_callable
from agentcore._rules.backoff import show
from agentcore.errors import ConfigurationError, WorkerTimeoutError
from agentcore.pools._base import Calls, check_timeout
from agentcore.pools._future import PoolFuture
from agentcore.pools._jobs import name_of
from agentcore.pools._owning import WorkerOwningPool
from agentcore.pools._records import JobOptions

R = TypeVar("R")
T = TypeVar("T")


class WorkerCalls(Calls):
    """`submit`, `asubmit` and `map` of a pool of threads or processes, or of a view of it."""

    @property
    def _target(self) -> WorkerOwningPool:
        """The pool."""
        assert isinstance(self, WorkerOwningPool)  # a view says something else  # noqa: S101
        return self

    @property
    def _pool(self) -> WorkerOwningPool:  # type: ignore[override]
        return self._target

    def submit(
        self, func: Callable[..., R], /, *args: Any, timeout: float | None = None, **kwargs: Any
    ) -> PoolFuture[R]:
        """Hand a job over and return its future, which can be waited for in a thread and awaited in an event loop.

        Never waits, unless `options` say ``when_full="wait"``, which is for threads without an event loop.

        Args:
            func: what to call.
            *args: its arguments.
            timeout: seconds that it may take, the wait in the queue included; None for no limit.
            **kwargs: its arguments.

        Raises:
            WorkerPoolFullError: `max_queue_size` jobs wait already.
            WorkerPoolClosedError: the pool has been shut down.
            WorkerPoolBrokenError: no worker can be started.
            ConfigurationError: an argument is not usable.
        """
        return self._target._send(func, args, kwargs, self._with(func, timeout), is_bounded=True)

    async def asubmit(self, func: Callable[..., R], /, *args: Any, timeout: float | None = None, **kwargs: Any) -> R:
        """Have a job done and return what it returned. Always a checkpoint; waits however many jobs wait already.

        If the caller is cancelled, a job that has not begun is taken back. A running one of a process is killed with its
        worker. A running one of a thread is waited for, told by `check_cancelled` meanwhile, and its result is returned; unless
        `options` say ``abandon_on_cancel=True``.

        Args:
            func: as for `submit`.
            *args: as for `submit`.
            timeout: as for `submit`.
            **kwargs: as for `submit`.

        Raises:
            WorkerTimeoutError: it took longer than `timeout`, or than the pool's `task_timeout`.
            WorkerCrashedError: its worker died.
            WorkerPoolFullError: `max_queue_size` jobs wait already; only with the option ``when_full="raise"``.
            WorkerPoolClosedError: the pool has been shut down, or was before the job had ended.
            WorkerPoolBrokenError: no worker can be started.
            ConfigurationError: an argument is not usable.
            BaseException: whatever the function raises.
        """
        result: R = await self._target._perform(func, args, kwargs, self._with(func, timeout))
        return result

    def map(self, func: Callable[[T], R], items: Iterable[T], timeout: float | None = None) -> list[R | Exception]:
        """Call a function with each item and return what it returned or raised, in order. Blocks the thread meanwhile.

        Items are drawn as there is room for them.

        Args:
            func: a function of one argument.
            items: what to call it with.
            timeout: seconds for the whole; what has not ended then comes back as a `WorkerTimeoutError`. Of items without a
                length none is drawn any more then.

        Raises:
            WorkerPoolClosedError, WorkerPoolBrokenError: the pool takes no jobs.
            WorkerPoolDeadlockError: it would wait for the very job that calls this.
            ConfigurationError: an argument is not usable.
        """
        check_callable("func of a worker pool", func)
        check_timeout(timeout)
        if not isinstance(items, Iterable):
            raise ConfigurationError(
                f"items of a worker pool must be iterable: got {show(items)}; pass a list",
                {"name": "items", "value": items},
            )
        return _Map(self._target, self._options, func, timeout).run(items)

    def _with(self, func: object, timeout: float | None) -> JobOptions:
        if not callable(func):
            check_callable(f"a job of worker pool {self._target.name!r}", func)
        return self._options if timeout is None else attrs.evolve(self._options, timeout=timeout)

    def _view(self, options: JobOptions) -> WorkerPoolView:
        return WorkerPoolView(self._target, options)


@final
class WorkerPoolView(WorkerCalls):
    """A pool with other options; `Calls.options` makes it."""

    def __init__(self, pool: WorkerOwningPool, options: JobOptions) -> None:
        self._viewed = pool
        self._options = options

    def __repr__(self) -> str:
        return f"<WorkerPoolView of {self._viewed!r} {self._options}>"

    @property
    def _target(self) -> WorkerOwningPool:
        return self._viewed


@final
class _Map:
    """One call of `WorkerCalls.map`."""

    def __init__(
        self, pool: WorkerOwningPool, options: JobOptions, func: Callable[[Any], Any], timeout: float | None
    ) -> None:
        self._pool = pool
        self._options = options
        self._func = func
        self._timeout = timeout
        self._deadline = None if timeout is None else _interop.monotonic() + timeout
        # In the order of the items: what has not been waited for yet, and how the rest ended.
        self._slots: list[PoolFuture[Any] | Any] = []
        self._waited = 0

    def run(self, items: Iterable[Any]) -> list[Any]:
        """Return the outcomes."""
        window = 2 * self._pool.config.size  # enough for each worker to have something and one more to go on with
        try:
            for item in items:
                if len(self._slots) - self._waited >= window:
                    self._wait_for_oldest()
                left = None if self._deadline is None else self._deadline - _interop.monotonic()
                if left is None:
                    self._slots.append(self._pool._send(self._func, (item,), {}, self._options))
                elif left > 0:
                    options = attrs.evolve(
                        self._options,
                        timeout=min(left, left if self._options.timeout is None else self._options.timeout),
                    )
                    self._slots.append(self._pool._send(self._func, (item,), {}, options))
                elif isinstance(items, Sized):
                    self._slots.append(self._too_late())
                else:
                    break  # there may be no end of them
            while self._waited < len(self._slots):
                self._wait_for_oldest()
        finally:
            for slot in self._slots[self._waited :]:
                if isinstance(slot, PoolFuture):
                    slot.cancel()
        return self._slots

    def _wait_for_oldest(self) -> None:
        slot = self._slots[self._waited]
        if isinstance(slot, PoolFuture):
            self._slots[self._waited] = self._outcome(slot)
        self._waited += 1

    def _outcome(self, future: PoolFuture[Any]) -> Any:
        left = None if self._deadline is None else max(0.0, self._deadline - _interop.monotonic())
        try:
            error = future.exception(left)
        except CancelledError:
            raise self._pool._refusal() from None  # noqa: ASYNC104 - told elsewhere
        except TimeoutError:
            self._pool._expire(future._job, limit=self._timeout)
            error = future.exception()
        if error is None:
            return future.result()
        if not isinstance(error, Exception):
            raise error
        return error

    def _too_late(self) -> WorkerTimeoutError:
        name = name_of(self._func)
        return WorkerTimeoutError(
            f"job {name} of worker pool {self._pool.name!r} was not begun within the timeout of all items: "
            f"got more than {self._timeout:g} s; add workers or allow more time",
            {"pool": self._pool.name, "function": name, "timeout": self._timeout, "phase": "queued"},
        )
