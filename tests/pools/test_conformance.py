"""The standard library's executors do what it says of them, and so do those of our pools."""

import multiprocessing
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any, ClassVar

import anyio
import pytest

from agentcore import ProcessWorkerPool, ProcessWorkerPoolConfig, ThreadWorkerPool, ThreadWorkerPoolConfig
from agentcore.testing import ExecutorConformance

# How the standard library calls what a pool is configured with.
SETTINGS = {
    "max_workers": "workers",
    "initializer": "initializer",
    "initargs": "initargs",
    "max_tasks_per_child": "max_jobs_per_worker",
}
_pools: dict[Executor, ThreadWorkerPool | ProcessWorkerPool] = {}

# Started once, with what jobs need: each process that it makes is there at once.
_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(["agentcore.testing._executors._jobs"])


@pytest.mark.thorough
class TestThreadPoolExecutor(ExecutorConformance):
    kind = "thread"

    def make(self, **options: Any) -> Executor:
        return ThreadPoolExecutor(**options)


@pytest.mark.thorough
class TestProcessPoolExecutor(ExecutorConformance):
    kind = "process"

    def make(self, **options: Any) -> Executor:
        return ProcessPoolExecutor(**{"mp_context": _server, **options})


class OfPool(ExecutorConformance):
    """Each executor has a pool of its own, configured as the options say."""

    pool_class: ClassVar[type[ThreadWorkerPool | ProcessWorkerPool]]
    config_class: ClassVar[type[ThreadWorkerPoolConfig | ProcessWorkerPoolConfig]]

    def make(self, **options: Any) -> Executor:
        settings = {SETTINGS[name]: value for name, value in options.items() if name in SETTINGS}
        pool = self.pool_class(options.get("thread_name_prefix", "tested"), self.config_class(**settings))
        executor = pool.executor(**options)
        _pools[executor] = pool
        return executor

    def release(self, executor: Executor) -> None:
        super().release(executor)
        anyio.run(_pools.pop(executor).shutdown)


class TestThreadsOfPool(OfPool):
    kind = "thread"
    pool_class = ThreadWorkerPool
    config_class = ThreadWorkerPoolConfig


class TestProcessesOfPool(OfPool):
    kind = "process"
    crash_costs = "job"
    pool_class = ProcessWorkerPool
    config_class = ProcessWorkerPoolConfig
