"""Worker pools by name, and the tasks that own them: those of a runtime, or of an event loop."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final, TypeAlias, final

import anyio
import anyio.abc

from agentcore import _interop
from agentcore._context import end_structure
from agentcore._host import Host
from agentcore._rules.backoff import show
from agentcore.errors import ConfigurationError, RuntimeClosedError
from agentcore.pools._asyncio import AsyncioWorkerPool
from agentcore.pools._base import BaseWorkerPool, check_timeout
from agentcore.pools._loop import LoopWorkerPool
from agentcore.pools._owning import WorkerOwningPool
from agentcore.pools._process import ProcessWorkerPool
from agentcore.pools._queue import QueueWorkerPool
from agentcore.pools._records import AnyWorkerPoolConfig, WorkerPoolReport, WorkerPoolsStatistics, WorkerPoolType
from agentcore.pools._thread import ThreadWorkerPool

AnyWorkerPool: TypeAlias = ThreadWorkerPool | ProcessWorkerPool | QueueWorkerPool | AsyncioWorkerPool

_KINDS: Final[dict[WorkerPoolType, Callable[[str, Any], AnyWorkerPool]]] = {
    WorkerPoolType.THREAD: ThreadWorkerPool,
    WorkerPoolType.PROCESS: ProcessWorkerPool,
    WorkerPoolType.QUEUE_ASYNCIO: QueueWorkerPool,
    WorkerPoolType.ASYNCIO: AsyncioWorkerPool,
}


class WorkerPools:
    """The pools of one owner, each made when its name is asked for by the first time. Used in one event loop.

    A pool that is shut down is forgotten: its name may be had again.
    """

    def __init__(self) -> None:
        self._pools: dict[str, AnyWorkerPool] = {}
        self._leaving: list[
            AnyWorkerPool
        ] = []  # shut down, with jobs that still run; their names may be others' by now
        self._group: anyio.abc.TaskGroup | None = None

    def open(self, group: anyio.abc.TaskGroup) -> None:
        """Have pools live in this task group from now on."""
        self._group = group

    def get(
        self,
        name: str,
        pool_type: WorkerPoolType | str | None = None,
        config: AnyWorkerPoolConfig | None = None,
    ) -> AnyWorkerPool:
        """Return the pool of a name, made at the first call.

        Args:
            name: what it is called.
            pool_type: what runs its jobs. If omitted: whatever it is, if it is there already, else ``queue_asyncio``.
            config: how it behaves; whatever it is, if omitted and it is there already.

        Raises:
            RuntimeClosedError: the owner takes no pools.
            ConfigurationError: there is one of another type or configuration; or an argument is not usable.
        """
        if (known := self._find(name, pool_type, config)) is not None:
            return known
        if self._group is None:
            raise RuntimeClosedError(
                f"worker pools are made between entering and leaving the block of a runtime: got {name!r}; "
                "make it inside of the block",
                {"state": "closed"},
            )
        pool = self._add(_make(name, pool_type, config))
        context = _interop.fresh_context()
        context.run(self._start, self._group, pool)
        return pool

    def _add(self, pool: AnyWorkerPool) -> AnyWorkerPool:
        self._leaving = [one for one in [*self._leaving, *self._pools.values()] if one.state == "draining"]
        self._pools = {name: one for name, one in self._pools.items() if one.state in ("open", "broken")}
        self._pools[pool.name] = pool
        return pool

    def _all(self) -> list[AnyWorkerPool]:
        return list(dict.fromkeys([*self._leaving, *self._pools.values()]))

    def list_all(self) -> dict[str, AnyWorkerPool]:
        """Return those that have not been shut down by name, in the order in which they were made."""
        return {name: pool for name, pool in self._pools.items() if pool.state in ("open", "broken")}

    def statistics(self) -> WorkerPoolsStatistics:
        """Return what those have done that are there, added up."""
        return WorkerPoolsStatistics.of([pool.metrics for pool in self._all() if pool.state != "closed"])

    async def shutdown_all(self, wait: bool = True, timeout: float | None = None) -> dict[str, WorkerPoolReport]:
        """Shut down all of them at once; see `BaseWorkerPool.shutdown`. Returns the reports by name."""
        check_timeout(timeout)
        reports: dict[str, WorkerPoolReport] = {}

        if wait:
            for pool in self._all():
                pool._check_outside()

        async def shut_down(name: str, pool: AnyWorkerPool) -> None:
            reports[name] = await pool.shutdown(wait, timeout)

        async with anyio.create_task_group() as group:
            for pool in self._all():
                group.start_soon(shut_down, pool.name, pool)
        return reports

    def cut_short(self) -> None:
        """Settle all jobs, so that nobody waits for one any more, whatever the workers do."""
        for pool in self._all():
            if isinstance(pool, WorkerOwningPool):
                pool._begin_end(cancel_waiting=True)
                pool._cut_short()

    async def finish(self, grace: float) -> tuple[str, ...]:
        """Take no further pools and end these within so many seconds; return the jobs that were cut short by it."""
        self._group = None
        cut: list[str] = []
        if not self._all():
            return ()

        async def end(pool: BaseWorkerPool) -> None:
            report = await pool._finish(grace)
            cut.extend(f"{function} in pool {pool.name}" for function in report.cut_short)

        async with anyio.create_task_group() as group:
            for pool in self._all():
                group.start_soon(end, pool)
        return tuple(cut)

    def _find(self, name: object, pool_type: object, config: object) -> AnyWorkerPool | None:
        pool = self._pools.get(name) if isinstance(name, str) else None
        if pool is None or pool.state not in ("open", "broken"):
            return None
        if pool_type is not None and WorkerPoolType.of(pool_type) is not pool.pool_type:
            raise ConfigurationError(
                f"worker pool {name!r} exists with another type: got {show(pool_type)}, it has {pool.pool_type.value!r}; "
                "omit the type to find it, or take another name",
                {"pool": name, "pool_type": pool_type},
            )
        if config is not None and pool.config_type.of(config, pool.name) != pool.config:  # type: ignore[arg-type]
            raise ConfigurationError(
                f"worker pool {name!r} exists with another config: got {show(config)}, it has {pool.config!r}; "
                "omit the config to find it, or take another name",
                {"pool": name, "config": config},
            )
        return pool

    @staticmethod
    def _start(group: anyio.abc.TaskGroup, pool: AnyWorkerPool) -> None:
        if isinstance(pool, LoopWorkerPool):
            pool._settle_in()
        group.start_soon(pool._supervise, name=f"worker pool {pool.name}")


def _make(name: str, pool_type: WorkerPoolType | str | None, config: AnyWorkerPoolConfig | None) -> AnyWorkerPool:
    kind = WorkerPoolType.QUEUE_ASYNCIO if pool_type is None else WorkerPoolType.of(pool_type)
    if kind not in _KINDS:
        raise ConfigurationError(
            f"type of a worker pool must be one that owns its workers: got {kind.value!r}; "
            f"use one of {', '.join(repr(known.value) for known in _KINDS)}",
            {"name": "pool_type", "value": pool_type},
        )
    return _KINDS[kind](name, config)


@final
class HostedWorkerPools(WorkerPools):
    """The pools of an event loop, which live in its host. `current` gives it."""

    @staticmethod
    def current() -> HostedWorkerPools:
        """Return those of the running event loop."""
        found: HostedWorkerPools = _interop.loop_locals().setdefault("worker_pools", HostedWorkerPools())
        return found

    async def find_or_make(
        self, name: str, pool_type: WorkerPoolType | str | None, config: AnyWorkerPoolConfig | None
    ) -> AnyWorkerPool:
        """Return the pool of a name, made at the first call, when it is at home in the host; see `get`."""
        if (known := self._find(name, pool_type, config)) is not None:
            return known
        pool = self._add(_make(name, pool_type, config))
        if isinstance(pool, LoopWorkerPool):
            pool._settle_in()
        host = pool._host = Host.current()
        pool._gone = anyio.Event()
        try:
            # Shielded, for the pool may be in other hands already. It is a matter of a step or two of the host.
            with anyio.CancelScope(shield=True):
                await host.move_in(partial(self._live, pool, host), f"worker pool {name}")
        except BaseException as error:
            if self._pools.get(name) is pool:
                del self._pools[name]
            pool._state = "closed"
            if isinstance(error, RuntimeError):
                raise RuntimeClosedError(  # noqa: ASYNC104 - told elsewhere
                    f"worker pool {name!r} cannot be made any more: {error}", {"state": "closed"}
                ) from error
            raise
        return pool

    async def _live(self, pool: AnyWorkerPool, host: Host) -> None:
        end_structure()
        host.residents.append(pool)
        try:
            await pool._supervise()
        finally:
            host.residents.remove(pool)
            if pool._gone is not None:
                pool._gone.set()
            if self._pools.get(pool.name) is pool:
                del self._pools[pool.name]
