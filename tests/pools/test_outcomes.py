"""The table of outcomes of jobs: what happened, for each kind of pool: what the caller gets, and what is counted.

| outcome | thread | process | queue, asyncio |
|---|---|---|---|
| returns | the value | the value | the value |
| raises E | E | E, with its remote traceback | E |
| the worker dies | – | `WorkerCrashedError`, also a BrokenProcessPool | – |
| caller cancelled, queued | never begun | never begun | never begun |
| caller cancelled, running | waited for, the result is returned | killed | cancelled |
| the same with abandon_on_cancel | left behind | killed | cancelled |
| timeout, queued | `WorkerTimeoutError`, phase queued | the same | the same |
| timeout, running | phase running, left behind | phase running, killed | phase running, cancelled |
| task_timeout | phase worker, left behind | phase worker, killed | phase worker, cancelled |
| shutdown(wait=True) | the value | the value | the value |
| shutdown(wait=False), queued | `WorkerPoolClosedError` | the same | the same |
| shutdown(timeout=0), running | `WorkerPoolClosedError`, named in the report | the same | the same |
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import attrs
import pytest

from agentcore import (
    AsyncioWorkerPool,
    ProcessWorkerPool,
    QueueWorkerPool,
    RemoteTraceback,
    ThreadWorkerPool,
    WorkerCrashedError,
    WorkerPoolClosedError,
    WorkerPoolConfig,
    WorkerTimeoutError,
)
from tests.pools import outcome_jobs as jobs

pytestmark = pytest.mark.anyio


@attrs.frozen
class Kind:
    """One kind of pool, with jobs that it can run."""

    make: Callable[..., Any]
    answer: Callable[..., Any]
    boom: Callable[..., Any]
    wait: Callable[..., Any]

    @asynccontextmanager
    async def pool(self, **settings: Any) -> AsyncIterator[Any]:
        pool = self.make("outcomes", WorkerPoolConfig(workers=1, shutdown_timeout=5, **settings))
        async with pool:
            try:
                yield pool
            finally:
                jobs.gate.set()


KINDS = {
    "thread": Kind(ThreadWorkerPool, jobs.answer, jobs.boom, jobs.wait_for_gate),
    "process": Kind(ProcessWorkerPool, jobs.answer, jobs.boom, jobs.wait_for_gate),
    "queue": Kind(QueueWorkerPool, jobs.answer_later, jobs.boom_later, jobs.wait_for_ever),
    "asyncio": Kind(AsyncioWorkerPool, jobs.answer_later, jobs.boom_later, jobs.wait_for_ever),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


@pytest.fixture(autouse=True)
def closed_gate() -> Iterator[None]:
    jobs.gate.clear()
    yield
    jobs.gate.set()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what other threads do."""
    with anyio.fail_after(20):
        while not condition():
            await anyio.lowlevel.checkpoint()


async def busy(pool: Any, kind: Kind, group: anyio.abc.TaskGroup) -> None:
    """Have the only worker do something that does not end."""

    async def occupy() -> None:
        with anyio.CancelScope():
            try:
                await pool.asubmit(kind.wait)
            except WorkerPoolClosedError:
                pass

    group.start_soon(occupy)
    await until(lambda: pool.metrics.running == 1)


async def test_returns(kind: Kind) -> None:
    async with kind.pool() as pool:
        assert 3 == await pool.asubmit(kind.answer, 2)
        assert 1 == pool.metrics.succeeded


async def test_raises(kind: Kind) -> None:
    async with kind.pool() as pool:
        with pytest.raises(ValueError, match="boom") as caught:
            await pool.asubmit(kind.boom)
        assert (kind is KINDS["process"]) == isinstance(caught.value.__cause__, RemoteTraceback)
        assert 1 == pool.metrics.failed
        assert 3 == await pool.asubmit(kind.answer, 2)


async def test_the_worker_dies() -> None:
    async with KINDS["process"].pool() as pool:
        with pytest.raises(WorkerCrashedError, match="exit code 3") as caught:
            await pool.asubmit(jobs.die)
        assert isinstance(caught.value, BrokenProcessPool)
        assert 1 == pool.metrics.crashed
        assert 3 == await pool.asubmit(jobs.answer, 2)


async def test_caller_cancelled_queued(kind: Kind) -> None:
    """It is taken back: nothing of it ever begins."""
    async with kind.pool() as pool, anyio.create_task_group() as group:
        await busy(pool, kind, group)
        with anyio.CancelScope() as scope:
            group.start_soon(_cancel_when, scope, lambda: pool.metrics.queued == 1)
            await pool.asubmit(kind.answer, 2)
        assert scope.cancelled_caught
        assert (0, 1) == (pool.metrics.queued, pool.metrics.cancelled)
        jobs.gate.set()
        group.cancel_scope.cancel()
    assert 0 == pool.metrics.queued


async def _cancel_when(scope: anyio.CancelScope, condition: Callable[[], bool]) -> None:
    await until(condition)
    scope.cancel()


@pytest.mark.parametrize("abandon", [False, True])
async def test_caller_cancelled_running(kind: Kind, abandon: bool) -> None:
    async with kind.pool() as pool, anyio.create_task_group() as group:
        returned = []
        waits = kind is KINDS["thread"] and not abandon

        async def cancel(scope: anyio.CancelScope) -> None:
            await _cancel_when(scope, lambda: pool.metrics.running == 1)
            if waits:
                await until(lambda: pool.jobs()[0].seconds > 0)
                jobs.gate.set()

        with anyio.CancelScope() as scope:
            group.start_soon(cancel, scope)
            returned.append(await pool.options(abandon_on_cancel=abandon).asubmit(kind.wait))
        assert (["waited"] if waits else []) == returned
        assert (int(waits), int(not waits)) == (pool.metrics.succeeded, pool.metrics.cancelled)
        assert 3 == await pool.asubmit(kind.answer, 2)


async def test_timeout_queued(kind: Kind) -> None:
    async with kind.pool() as pool, anyio.create_task_group() as group:
        await busy(pool, kind, group)
        with pytest.raises(WorkerTimeoutError) as caught:
            await pool.options(timeout=0.02).asubmit(kind.answer, 2)
        assert "queued" == caught.value.details["phase"]
        assert 1 == pool.metrics.timed_out
        jobs.gate.set()
        group.cancel_scope.cancel()


async def test_timeout_running(kind: Kind) -> None:
    async with kind.pool() as pool:
        await pool.asubmit(kind.answer, 1)  # a worker is there
        with pytest.raises(WorkerTimeoutError) as caught:
            await pool.options(timeout=0.05).asubmit(kind.wait)
        assert "running" == caught.value.details["phase"]
        assert 1 == pool.metrics.timed_out
        assert 3 == await pool.asubmit(kind.answer, 2)


async def test_task_timeout(kind: Kind) -> None:
    async with kind.pool(task_timeout=0.3) as pool:
        with pytest.raises(WorkerTimeoutError) as caught:
            await pool.asubmit(kind.wait)
        assert "worker" == caught.value.details["phase"]
        assert 1 == pool.metrics.timed_out
        assert 3 == await pool.asubmit(kind.answer, 2)


async def test_shutdown_drains(kind: Kind) -> None:
    async with kind.pool() as pool, anyio.create_task_group() as group:
        found = []

        async def call() -> None:
            found.append(await pool.asubmit(kind.answer, 2))

        for _ in range(5):
            group.start_soon(call)
        await until(lambda: pool.metrics.queued + pool.metrics.running + pool.metrics.succeeded == 5)
        report = await pool.shutdown()
        assert report.drained
    assert [3] * 5 == found


async def test_shutdown_without_waiting(kind: Kind) -> None:
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(kind.pool())
        group = await stack.enter_async_context(anyio.create_task_group())
        await busy(pool, kind, group)
        refused = []

        async def call() -> None:
            with pytest.raises(WorkerPoolClosedError):
                await pool.asubmit(kind.answer, 2)
            refused.append(True)

        group.start_soon(call)
        await until(lambda: pool.metrics.queued == 1)
        await pool.shutdown(wait=False)
        await until(lambda: bool(refused))
        jobs.gate.set()
        group.cancel_scope.cancel()


async def test_shutdown_cuts_short(kind: Kind) -> None:
    async with kind.pool() as pool, anyio.create_task_group() as group:
        cut = []

        async def call() -> None:
            with pytest.raises(WorkerPoolClosedError):
                await pool.asubmit(kind.wait)
            cut.append(True)

        group.start_soon(call)
        await until(lambda: pool.metrics.running == 1)
        report = await pool.shutdown(timeout=0)
        assert (False, (kind.wait.__qualname__,)) == (report.drained, report.cut_short)
        assert "closed" == pool.state
    assert [True] == cut
