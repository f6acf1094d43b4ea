"""Jobs that wait for jobs by way of the event loop of their runtime: refused if it could never end, and only then."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import pytest

from agentcore import (
    AgentRuntime,
    QueueWorkerPool,
    QueueWorkerPoolConfig,
    ThreadWorkerPool,
    ThreadWorkerPoolConfig,
    WorkerPoolDeadlockError,
)

pytestmark = pytest.mark.anyio

LIMIT = 10.0


class Pools:
    """A runtime with two pools of one worker each."""

    def __init__(self, runtime: AgentRuntime) -> None:
        threads = runtime.pool("threads", "thread", ThreadWorkerPoolConfig(workers=1))
        queue = runtime.pool("queue", "queue_asyncio", QueueWorkerPoolConfig(workers=1))
        assert isinstance(threads, ThreadWorkerPool)
        assert isinstance(queue, QueueWorkerPool)
        self.runtime, self.threads, self.queue = runtime, threads, queue

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        return self.runtime.from_thread(function, *args)


def own_pool(pools: Pools) -> int:
    """Wait for another job of the same worker."""
    return pools.call(pools.threads.asubmit, len, "ab")  # type: ignore[no-any-return]


def own_pool_by_a_job_between(pools: Pools) -> int:
    async def between() -> int:
        return await pools.threads.asubmit(len, "ab")

    return pools.call(pools.queue.asubmit, between)  # type: ignore[no-any-return]


def own_pool_by_a_task_of_the_call(pools: Pools) -> int:
    async def both() -> int:
        async with anyio.create_task_group() as group:
            group.start_soon(pools.threads.asubmit, len, "ab")
        return 2

    try:
        return pools.call(both)  # type: ignore[no-any-return]
    except ExceptionGroup as group:
        raise group.exceptions[0] from None


@pytest.mark.parametrize("job", [own_pool, own_pool_by_a_job_between, own_pool_by_a_task_of_the_call])
async def test_a_job_calls_for_its_own_worker(job: Callable[[Pools], int]) -> None:
    async with AgentRuntime() as runtime:
        pools = Pools(runtime)
        with pytest.raises(WorkerPoolDeadlockError, match="would wait for ever"):
            await pools.threads.asubmit(job, pools)
        assert 2 == await pools.threads.asubmit(len, "ab")


async def test_a_thread_stands_between_two_jobs_of_a_queue() -> None:
    """The first one awaits a job in a thread, which calls for the second."""

    async def second() -> int:
        return 2

    async def first() -> int:
        return await pools.threads.asubmit(pools.call, pools.queue.asubmit, second)

    with anyio.fail_after(LIMIT):
        async with AgentRuntime() as runtime:
            pools = Pools(runtime)
            with pytest.raises(WorkerPoolDeadlockError, match="would wait for ever"):
                await pools.queue.asubmit(first)
            assert 2 == await pools.queue.asubmit(second)


async def test_what_a_call_leaves_behind_may_wait() -> None:
    """A job that nobody waits for is begun when the worker that has asked for it is free; so is one of a task."""
    seen: list[int] = []

    async def later() -> None:
        seen.append(await pools.threads.asubmit(len, "abc"))

    def job() -> None:
        pools.call(pools.queue.submit, later)

    with anyio.fail_after(LIMIT):
        async with AgentRuntime() as runtime:
            pools = Pools(runtime)

            @runtime.handler("later")
            async def later_task(_input: Any) -> dict[str, Any]:
                await later()
                return {}

            await pools.threads.asubmit(job)
            await pools.queue.shutdown()
            handle = await pools.threads.asubmit(pools.call, runtime.submit, "later")
            await handle.result()
    assert [3, 3] == seen


async def test_a_call_that_waits_for_another_worker_is_fine() -> None:
    with anyio.fail_after(LIMIT):
        async with AgentRuntime() as runtime:
            pools = Pools(runtime)
            other = runtime.pool("other", "thread", ThreadWorkerPoolConfig(workers=1))
            assert 2 == await pools.threads.asubmit(pools.call, other.asubmit, len, "ab")
