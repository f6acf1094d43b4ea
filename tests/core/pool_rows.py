"""The specification's chapter on worker pools as rows of the table in `test_specification`."""

from __future__ import annotations

import abc
import concurrent.futures
import contextlib
import enum
from collections.abc import Callable, Mapping
from types import MappingProxyType, NoneType
from typing import Final

import agentcore
from tests.core.shapes import Base, Call, Keywords, Members, Row, fields, properties

_SETTINGS: Final[Mapping[str, object]] = {
    "workers": 4,
    "max_queue_size": 100,
    "task_timeout": 2.5,
    "idle_timeout": 30.0,
    "shutdown_timeout": 5.0,
}
_SUBMIT: Final = ("func", "/", "*args", ("timeout", None), "**kwargs")
_OPTIONS: Final = (
    Call("ThreadWorkerPool.options"),
    Call("ProcessWorkerPool.options"),
    Call("QueueWorkerPool.options"),
    Call("AsyncioWorkerPool.options"),
)


def _config(name: str, **further: object) -> tuple[Row, ...]:
    return (
        Keywords(name, (), {**_SETTINGS, **further}),
        *fields(
            name,
            workers=NoneType,
            max_queue_size=int,
            task_timeout=NoneType,
            idle_timeout=float,
            shutdown_timeout=NoneType,
        ),
    )


def _pool(name: str) -> tuple[Row, ...]:
    return (
        Base(name, ("BaseWorkerPool", contextlib.AbstractAsyncContextManager)),
        Call(name, ("name", ("config", None))),
        *fields(name, name=str, config=agentcore.WorkerPoolConfig, pool_type=agentcore.WorkerPoolType),
        *properties(name, state=str, metrics=agentcore.WorkerPoolMetrics),
        Call(f"{name}.shutdown", (("wait", True), ("timeout", None)), is_async=True),
        Call(f"{name}.ashutdown", (("wait", True), ("timeout", None)), is_async=True),
        Call(f"{name}.jobs"),
        Call(f"{name}.amap", ("func", "items", ("timeout", None)), is_async=True),
        Call(f"{name}.as_completed", ("func", "items", ("timeout", None))),
        Call(f"{name}.map", ("func", "items", ("timeout", None))),
    )


def _of_workers(name: str) -> tuple[Row, ...]:
    return (
        *_pool(name),
        # By design a class of its own below the standard library's: it can be awaited too. Positional-only, so that the
        # function may have a keyword `func` of its own.
        Call(f"{name}.submit", _SUBMIT),
        Call(f"{name}.asubmit", _SUBMIT, is_async=True),
        Call(f"{name}.executor"),
    )


def _of_coroutines(name: str) -> tuple[Row, ...]:
    return (
        *_pool(name),
        Call(f"{name}.submit", ("func", "/", "*args", "**kwargs"), is_async=True),
        Call(f"{name}.submit_nowait", ("func", "/", "*args", "**kwargs")),
        Call(f"{name}.asubmit", ("func", "/", "*args", "**kwargs"), is_async=True),
    )


POOLS: Final[tuple[Row, ...]] = (
    # The specification names the first four; the design adds those that lend their workers from elsewhere.
    Members("WorkerPoolType", ("THREAD", "PROCESS", "ASYNCIO", "QUEUE_ASYNCIO", "EXECUTOR", "DASK"), enum.StrEnum),
    *_config("WorkerPoolConfig"),
    *_config("QueueWorkerPoolConfig", on_error=print),
    *_config("ThreadWorkerPoolConfig", max_abandoned=2, initializer=print, initargs=(1,), max_jobs_per_worker=10),
    *_config(
        "ProcessWorkerPoolConfig",
        initializer=print,
        initargs=(1,),
        max_jobs_per_worker=10,
        propagate=("trace_id",),
        start_timeout=10.0,
    ),
    *(
        Base(name, ("WorkerPoolConfig",))
        for name in ("QueueWorkerPoolConfig", "ThreadWorkerPoolConfig", "ProcessWorkerPoolConfig")
    ),
    Base("BaseWorkerPool", (abc.ABC, contextlib.AbstractAsyncContextManager)),
    Call("BaseWorkerPool", ("name", ("config", None))),
    Call("BaseWorkerPool.shutdown", (("wait", True), ("timeout", None)), is_async=True, abstract=True),
    Call("BaseWorkerPool.ashutdown", (("wait", True), ("timeout", None)), is_async=True),
    *_of_workers("ThreadWorkerPool"),
    *_of_workers("ProcessWorkerPool"),
    *_of_coroutines("QueueWorkerPool"),
    *_of_coroutines("AsyncioWorkerPool"),
    *_OPTIONS,
    Base("PoolFuture", (concurrent.futures.Future,)),
    # By design an omitted type finds what is there, and is a queue only where there is nothing.
    Call("get_worker_pool", ("name", ("pool_type", None), ("config", None)), is_async=True),
    Call("shutdown_all_worker_pools", (("wait", True), ("timeout", None)), is_async=True),
    Call("AgentRuntime.pool", ("name", ("pool_type", None), ("config", None))),
    Call("AgentContext.pool", ("name", ("pool_type", None), ("config", None))),
    Call("check_cancelled"),
    Call("propagated"),
    Base("WorkerPoolFullError", ("WorkerPoolError",)),
    Base("WorkerPoolClosedError", ("WorkerPoolError", RuntimeError)),
    Base("WorkerPoolBrokenError", ("WorkerPoolError", concurrent.futures.BrokenExecutor)),
    Base("WorkerCrashedError", ("WorkerPoolError", concurrent.futures.BrokenExecutor)),
    Base("WorkerPoolDeadlockError", ("WorkerPoolError",)),
    # "TimeoutError: If execution times out"; "WorkerPoolError: If submission fails".
    Base("WorkerTimeoutError", ("WorkerPoolError", TimeoutError)),
    # What the design measures, where the specification leaves it open.
    *fields(
        "WorkerPoolMetrics",
        queued=int,
        running=int,
        workers=int,
        succeeded=int,
        failed=int,
        timed_out=int,
        cancelled=int,
        crashed=int,
        abandoned=int,
        rejected=int,
        wait_histogram=tuple,
        run_histogram=tuple,
        histogram_bounds=tuple,
    ),
)

FRESH_POOLS: Final[Mapping[str, Callable[[], object]]] = MappingProxyType(
    {
        "WorkerPoolConfig": agentcore.WorkerPoolConfig,
        "QueueWorkerPoolConfig": agentcore.QueueWorkerPoolConfig,
        "ThreadWorkerPoolConfig": agentcore.ThreadWorkerPoolConfig,
        "ProcessWorkerPoolConfig": agentcore.ProcessWorkerPoolConfig,
        "ThreadWorkerPool": lambda: agentcore.ThreadWorkerPool("sample"),
        "ProcessWorkerPool": lambda: agentcore.ProcessWorkerPool("sample"),
        "QueueWorkerPool": lambda: agentcore.QueueWorkerPool("sample"),
        "AsyncioWorkerPool": lambda: agentcore.AsyncioWorkerPool("sample"),
        "WorkerPoolMetrics": lambda: agentcore.QueueWorkerPool("sample").metrics,
    }
)
"""One fresh instance of each class of this chapter that has `Field` or `Property` rows."""
