"""How jobs are handed to the pools for coroutines, by a pool itself and by its `options`."""

from __future__ import annotations

import abc
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Never, TypeVar, final

import anyio.lowlevel

from agentcore._layer import check_callable
from agentcore.errors import WorkerPoolError
from agentcore.pools._base import Calls
from agentcore.pools._records import JobOptions

R = TypeVar("R")


class LoopCalls(Calls, abc.ABC):
    """`submit` and `asubmit` of a pool for coroutines, or of a view of it."""

    # What the pool says, and its views have it say.

    @abc.abstractmethod
    def _send(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], options: JobOptions
    ) -> None:
        """Hand over a job that nobody waits for."""

    @abc.abstractmethod
    async def _send_when_it_fits(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], options: JobOptions
    ) -> None:
        """Hand over a job that nobody waits for, when there is a place for it in the queue."""

    # What everybody says.

    async def submit(self, func: Callable[..., Coroutine[Any, Any, Any]], /, *args: Any, **kwargs: Any) -> None:
        """Hand over a job that nobody waits for. Always a checkpoint, before the job is accepted.

        What it returns is dropped. What it raises is counted, logged, and given to the pool's `on_error`.

        Args:
            func: a coroutine function.
            *args: its arguments.
            **kwargs: its arguments.

        Raises:
            WorkerPoolFullError: `max_queue_size` jobs wait already. With the option ``when_full="wait"`` this waits instead.
            WorkerTimeoutError: there was no place for it within the option `timeout`. What comes later is logged.
            WorkerPoolClosedError: the pool has been shut down.
            WorkerPoolError: this is not the event loop of the pool.
            ConfigurationError: an argument is not usable.
        """
        if not callable(func):
            check_callable(f"a job of worker pool {self._pool.name!r}", func)
        await anyio.lowlevel.checkpoint()
        if self._options.when_full == "wait":
            await self._send_when_it_fits(func, args, kwargs, self._options)
        else:
            self._send(func, args, kwargs, self._options)

    def submit_nowait(self, func: Callable[..., Coroutine[Any, Any, Any]], /, *args: Any, **kwargs: Any) -> None:
        """Hand over a job that nobody waits for, as `submit`, and without a checkpoint.

        Args:
            func: a coroutine function.
            *args: its arguments.
            **kwargs: its arguments.

        Raises:
            WorkerPoolFullError, WorkerPoolClosedError, WorkerPoolError, ConfigurationError: as `submit`.
        """
        if not callable(func):
            check_callable(f"a job of worker pool {self._pool.name!r}", func)
        self._send(func, args, kwargs, self._options)

    async def asubmit(self, func: Callable[..., Coroutine[Any, Any, R]], /, *args: Any, **kwargs: Any) -> R:
        """Have a job done and return what it returned. Always a checkpoint; waits however many jobs wait already.

        If the caller is cancelled, the job is taken back or cancelled, and waited for.

        Args:
            func: a coroutine function.
            *args: its arguments.
            **kwargs: its arguments.

        Raises:
            WorkerTimeoutError: it took longer than the option `timeout`, or than the pool's `task_timeout`.
            WorkerPoolFullError: `max_queue_size` jobs wait already; only with the option ``when_full="raise"``.
            WorkerPoolClosedError: the pool has been shut down, or was before the job had ended.
            WorkerPoolDeadlockError: a job calls this, and all workers are taken by jobs that wait for it.
            WorkerPoolError: this is not the event loop of the pool.
            ConfigurationError: an argument is not usable.
            BaseException: whatever the function raises.
        """
        if not callable(func):
            check_callable(f"a job of worker pool {self._pool.name!r}", func)
        result: R = await self._pool._perform(func, args, kwargs, self._options)
        return result

    def map(self, func: Callable[..., Any], items: Iterable[Any], timeout: float | None = None) -> Never:
        """Refuse: it would block the event loop that the jobs need.

        Args:
            func: as for `amap`, which is what can be used.
            items: as for `amap`.
            timeout: as for `amap`.

        Raises:
            WorkerPoolError: always.
        """
        del func, items, timeout
        raise WorkerPoolError(
            f"map of worker pool {self._pool.name!r} would block the event loop that its jobs run in: got a call of it; "
            "use `await pool.amap(...)`",
            {"pool": self._pool.name},
        )

    def _view(self, options: JobOptions) -> LoopPoolView:
        return LoopPoolView(self, options)


@final
class LoopPoolView(LoopCalls):
    """A pool for coroutines with other options; `Calls.options` makes it."""

    def __init__(self, viewed: LoopCalls, options: JobOptions) -> None:
        self._viewed = viewed
        self._pool = viewed._pool
        self._options = options

    def __repr__(self) -> str:
        return f"<LoopPoolView of {self._pool!r} {self._options}>"

    def _view(self, options: JobOptions) -> LoopPoolView:
        return LoopPoolView(self._viewed, options)

    def _send(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], options: JobOptions
    ) -> None:
        self._viewed._send(function, args, kwargs, options)

    async def _send_when_it_fits(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], options: JobOptions
    ) -> None:
        await self._viewed._send_when_it_fits(function, args, kwargs, options)
