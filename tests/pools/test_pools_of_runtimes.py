"""The worker pools of a runtime: they are made in it, counted by it, and end with it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import attrs
import pytest

from agentcore import (
    AgentConfig,
    AgentContext,
    AgentCrashedError,
    AgentError,
    AgentResult,
    AgentRuntime,
    AsyncioWorkerPool,
    BaseAgent,
    BaseWorkerPool,
    ConfigurationError,
    QueueWorkerPool,
    QueueWorkerPoolConfig,
    RuntimeClosedError,
    ThreadWorkerPool,
    WorkerPoolClosedError,
    WorkerPoolConfig,
    WorkerPoolsStatistics,
    get_worker_pool,
    init_metrics,
    propagated,
)
from agentcore.config import load_configuration
from agentcore.testing import simulate
from tests.pools.coroutines import Boom, Door, counts, double, fail, logged, nothing
from tests.pools.loops_of_pools import left, settled

pytestmark = pytest.mark.anyio

hosts = pytest.mark.parametrize("hosted", [False, True], ids=["strict", "hosted"])
of_coroutines = pytest.mark.parametrize("kind", ["queue_asyncio", "asyncio"])


def one() -> QueueWorkerPoolConfig:
    """Configure a pool with one worker."""
    return QueueWorkerPoolConfig(workers=1)


@pytest.fixture
def release() -> Iterator[threading.Event]:
    """Give an event that threads may wait for; at the end they go on."""
    event = threading.Event()
    yield event
    event.set()


# Making and finding.


@hosts
async def test_made_at_the_first_call(hosted: bool) -> None:
    """Without a wait; found by everybody who asks in the runtime; the type and the configuration are kept to."""
    async with AgentRuntime(hosted=hosted) as runtime:
        pool = runtime.pool("p")
        assert isinstance(pool, QueueWorkerPool)
        assert pool is runtime.pool("p") is await get_worker_pool("p") is runtime.pools.get("p")
        threads = runtime.pool("t", "thread", WorkerPoolConfig(workers=2))
        assert isinstance(threads, ThreadWorkerPool)
        with pytest.raises(ConfigurationError, match="worker pool 't' exists with another type: got 'asyncio'"):
            runtime.pool("t", "asyncio")
        with pytest.raises(ConfigurationError, match="worker pool 't' exists with another config"):
            runtime.pool("t", config=WorkerPoolConfig(workers=3))
        assert {"p": pool, "t": threads} == runtime.pools.list_all()
        pool.submit_nowait(nothing)
        assert [42, 3] == [await pool.asubmit(double, 21), await threads.asubmit(len, "abc")]
    assert ["closed", "closed"] == [pool.state, threads.state]
    assert {} == runtime.pools.list_all()
    await settled()
    assert [] == left()


@hosts
async def test_only_while_it_is_open(hosted: bool) -> None:
    runtime = AgentRuntime(hosted=hosted)
    for _ in range(2):
        with pytest.raises(RuntimeClosedError) as caught:
            runtime.pool("p")
        assert (
            "worker pools are made between entering and leaving the block of a runtime: got 'p'; "
            "make it inside of the block"
        ) == str(caught.value) or runtime.health().state == "closed"
        if runtime.health().state == "new":
            async with runtime:
                runtime.pool("p")


@hosts
async def test_only_in_its_loop(hosted: bool) -> None:
    """Threads go by `from_thread`."""
    async with AgentRuntime(hosted=hosted) as runtime:

        def in_thread() -> Any:
            with pytest.raises(AgentError, match="pool of a runtime must be called in its event loop"):
                runtime.pool("p")
            pool = runtime.from_thread(get_worker_pool, "p", "asyncio")
            return runtime.from_thread(pool.asubmit, double, 21)

        assert 42 == await anyio.to_thread.run_sync(in_thread)
        assert isinstance(runtime.pool("p"), AsyncioWorkerPool)


async def test_runtimes_in_runtimes() -> None:
    """Each has its own; the inner one is asked first, and its end is none for the outer one's."""
    async with AgentRuntime() as outer:
        outside = await get_worker_pool("p")
        async with AgentRuntime() as inner:
            inside = await get_worker_pool("p")
            assert inner.pool("p") is inside is not outside is outer.pool("p")
            # A job belongs to the runtime that has submitted it, whichever pool does it.
            assert (await outside.asubmit(get_worker_pool, "p")) is inside
        assert ("closed", "open") == (inside.state, outside.state)
        assert await get_worker_pool("p") is outside
        assert 2 == await outside.asubmit(double, 1)


class Counting(BaseAgent):
    """Has everything done by a pool."""

    async def initialize(self) -> bool:
        return True

    async def process(self, context: AgentContext) -> AgentResult:
        pool = context.pool("agents'", "thread", WorkerPoolConfig(workers=1))
        assert pool is await get_worker_pool("agents'")
        assert isinstance(pool, ThreadWorkerPool)
        return AgentResult.success_result({"number": await pool.asubmit(len, context.parameters["text"])})

    async def handle_error(self, error: Exception, context: AgentContext) -> AgentResult:
        raise error


@hosts
async def test_in_an_agent(hosted: bool) -> None:
    """By its context."""
    async with AgentRuntime(hosted=hosted) as runtime:
        runtime.registry("agents").register("counting", Counting(AgentConfig("counting", "test")))
        result = await runtime.ask("counting", AgentContext(parameters={"text": "four"}))
        assert {"number": 4} == result.output
        assert ["agents'"] == list(runtime.pools.list_all())
    with pytest.raises(AgentError, match="pool"):
        AgentContext().pool("p")


@of_coroutines
async def test_in_a_handler(kind: str) -> None:
    """A job is no part of the task, and knows by name which task it is for."""
    told: list[dict[str, Any]] = []

    async def job(runtime: AgentRuntime) -> int:
        told.append(dict(propagated()))
        assert AgentRuntime.current() is runtime
        # What it submits is no child of the task either.
        handle = await runtime.submit("plain")
        return (await handle.result())["number"]  # type: ignore[no-any-return]

    async with AgentRuntime() as runtime:

        @runtime.handler("plain")
        async def plain(given: dict[str, Any]) -> dict[str, Any]:
            return {"number": 7}

        @runtime.handler("pooled")
        async def pooled(given: dict[str, Any]) -> dict[str, Any]:
            pool = await get_worker_pool("p", kind)
            return {"number": await pool.asubmit(job, runtime)}

        handle = await runtime.submit("pooled", trace_id="t-1")
        assert {"number": 7} == await handle.result()
    assert [{"trace_id": "t-1", "task_id": handle.id}] == told
    assert {} == propagated()


# Numbers.


async def test_statistics() -> None:
    """All pools that there are, added up; those that have been shut down are forgotten when others are made."""
    async with AgentRuntime() as runtime:
        assert WorkerPoolsStatistics() == runtime.statistics().pools
        door = Door()
        first, second = runtime.pool("1", "asyncio", one()), runtime.pool("2", "queue_asyncio", one())
        for pool in (first, second):
            await pool.submit(door)
            await pool.submit(door)
        await anyio.wait_all_tasks_blocked()
        expected = WorkerPoolsStatistics(pools=2, queued=2, running=2, workers=2)
        assert expected == runtime.statistics().pools
        door.opened.set()
        with pytest.raises(Boom):
            await first.asubmit(fail)
        await anyio.wait_all_tasks_blocked()
        statistics = runtime.statistics().pools
        assert (4, 1, 0, 0) == (statistics.succeeded, statistics.failed, statistics.queued, statistics.running)


async def test_metrics() -> None:
    """What `init_metrics` collects has them by name."""
    metrics = init_metrics(load_configuration(env={}, metrics={"enabled": True}).metrics)
    try:
        async with AgentRuntime() as runtime:
            metrics.attach(runtime)
            await runtime.pool("p").asubmit(nothing)
            collected = metrics.collect()
            found = {name: number for name, number in collected.items() if name.startswith("runtimes.pools.")}
            assert {f"runtimes.pools.{field.name}" for field in attrs.fields(WorkerPoolsStatistics)} == set(found)
            assert (1, 1, 0) == (
                found["runtimes.pools.pools"],
                found["runtimes.pools.succeeded"],
                found["runtimes.pools.failed"],
            )
    finally:
        init_metrics(load_configuration(env={}, metrics={"enabled": False}).metrics)


# The end.


@simulate(runs=10)
@hosts
@of_coroutines
async def test_leaving_drains(hosted: bool, kind: str) -> None:
    """Whatever was accepted before is done, if the grace allows for it."""
    done: list[int] = []

    async def work(number: int) -> None:
        await anyio.sleep(1)
        done.append(number)

    async with AgentRuntime(hosted=hosted, grace=10) as runtime:
        pool = runtime.pool("p", kind, one())
        for number in range(5):
            await pool.submit(work, number)
    assert list(range(5)) == done
    assert runtime.report is not None
    assert (True, ()) == (runtime.report.drained, runtime.report.jobs_cut_short)
    assert "nothing was cut short" in runtime.report.summary()


@simulate(runs=10)
@hosts
@of_coroutines
async def test_leaving_cuts_short_after_the_grace(hosted: bool, kind: str) -> None:
    """What is not done by then, and the report names it; each pool has the same time."""
    unwound: list[str] = []

    async def work(name: str) -> None:
        try:
            await anyio.sleep(100)
        finally:
            unwound.append(name)

    began = anyio.current_time()
    async with AgentRuntime(hosted=hosted, grace=3) as runtime:
        for name in ("p", "q"):
            pool = runtime.pool(name, kind, one())
            await pool.submit(work, name)
            await pool.submit(nothing)
        await anyio.sleep(1)
    assert 4 == anyio.current_time() - began
    assert ["p", "q"] == sorted(unwound)
    assert runtime.report is not None
    cut = [f"{function} in pool {name}" for name in ("p", "q") for function in (work.__qualname__, "nothing")]
    assert sorted(cut) == sorted(runtime.report.jobs_cut_short)
    assert not runtime.report.drained
    assert all(one in runtime.report.summary() for one in cut)


@hosts
@of_coroutines
async def test_a_block_that_fails(hosted: bool, kind: str) -> None:
    """Nothing is drained; the exception is untouched."""
    door = Door()
    error = Boom("of the block")
    with pytest.raises(Boom) as caught:
        async with AgentRuntime(hosted=hosted, grace=60) as runtime:
            pool = runtime.pool("p", kind, one())
            await pool.submit(door, 1)
            await pool.submit(door, 2)
            await anyio.wait_all_tasks_blocked()
            raise error
    assert caught.value is error
    assert ([1], [1], "closed") == (door.came, door.left, pool.state)
    assert runtime.report is not None
    assert ("Door in pool p",) * 2 == runtime.report.jobs_cut_short
    assert {"cancelled": 2} == counts(pool.metrics)


@hosts
@of_coroutines
async def test_a_block_that_is_cancelled(hosted: bool, kind: str) -> None:
    """The same, and all has unwound when the cancellation comes out."""
    door = Door()
    with anyio.CancelScope() as scope:
        async with AgentRuntime(hosted=hosted, grace=60) as runtime:
            pool = runtime.pool("p", kind, one())
            await pool.submit(door, 1)
            await anyio.wait_all_tasks_blocked()
            scope.cancel()
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert ([1], "closed", "closed") == (door.left, pool.state, runtime.health().state)
    await settled()
    assert [] == left()


@hosts
@of_coroutines
async def test_a_task_that_waits_for_a_job(hosted: bool, kind: str) -> None:
    """Both are cut short together: the job unwinds before the task does."""
    log: list[str] = []

    async def job() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.lowlevel.checkpoint()
            log.append("job")

    async with AgentRuntime(hosted=hosted, grace=0) as runtime:

        @runtime.handler("wait")
        async def wait(given: dict[str, Any]) -> None:
            try:
                await runtime.pool("p", kind).asubmit(job)
            finally:
                log.append("task")

        await runtime.submit("wait")
        await anyio.wait_all_tasks_blocked()
    assert ["job", "task"] == log
    assert runtime.report is not None
    assert ["wait"] == [result.type for result in runtime.report.cut_short]


@hosts
@pytest.mark.parametrize("grace", [0, 0.05], ids=["no grace", "grace"])
async def test_a_task_that_waits_for_a_stuck_thread(
    hosted: bool,
    grace: float,
    release: threading.Event,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The runtime ends all the same, soon after its grace, and names the function."""
    monkeypatch.setattr("agentcore._lifetime.LAST_MOMENTS", 0.05)
    ended: list[str] = []
    started = threading.Event()

    def stuck() -> None:
        started.set()
        release.wait(30)

    began = anyio.current_time()
    async with AgentRuntime(hosted=hosted, grace=grace) as runtime:

        @runtime.handler("wait")
        async def wait(given: dict[str, Any]) -> None:
            try:
                await runtime.pool("threads", "thread", WorkerPoolConfig(workers=1)).asubmit(stuck)
            except WorkerPoolClosedError:
                pass  # if it learns of it by that
            finally:
                ended.append("task")

        await runtime.submit("wait")
        assert await anyio.to_thread.run_sync(started.wait, 30)
    assert anyio.current_time() - began < grace + 3
    assert ["task"] == ended
    assert runtime.report is not None
    assert (f"{stuck.__qualname__} in pool threads",) == runtime.report.jobs_cut_short
    assert not runtime.report.drained
    assert logged(caplog)


@hosts
async def test_jobs_that_wait_at_the_end_are_told(hosted: bool) -> None:
    """Also those whose callers live outside of the runtime."""
    door, told = Door(), list[str]()

    async def call(pool: Any, who: str) -> None:
        with pytest.raises(WorkerPoolClosedError):
            await pool.asubmit(door, who)
        told.append(who)

    async with anyio.create_task_group() as group, AgentRuntime(hosted=hosted, grace=0) as runtime:
        pool = runtime.pool("p", config=one())
        for who in ("running", "queued"):
            group.start_soon(call, pool, who)
            await anyio.wait_all_tasks_blocked()
    assert {"running", "queued"} == set(told)
    assert ["running"] == door.left


@hosts
async def test_pools_of_ones_own(hosted: bool) -> None:
    """One that is entered by hand lives in the host: the runtime does not count it, and its end is none of the runtime's."""
    async with QueueWorkerPool("p", one()) as own:
        async with AgentRuntime(hosted=hosted) as runtime:
            assert runtime.pool("p") is not own
            assert 2 == await own.asubmit(double, 1)
            assert 1 == runtime.statistics().pools.pools
        assert "open" == own.state
        assert 2 == await own.asubmit(double, 1)


# Jobs that end programs.


@pytest.mark.parametrize("kind", [QueueWorkerPool, AsyncioWorkerPool])
async def test_what_ends_programs_is_the_callers(kind: type[BaseWorkerPool]) -> None:
    """A caller that waits has it, and the runtime knows nothing of it."""

    async def leave() -> None:
        raise SystemExit(3)

    async with AgentRuntime() as runtime:
        pool = runtime.pool("p", kind.pool_type)
        with pytest.raises(SystemExit):
            await pool.asubmit(leave)
        assert 2 == await pool.asubmit(double, 1)
        assert runtime.health().healthy


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
@of_coroutines
def test_what_ends_programs_in_a_strict_runtime(kind: str, error: type[BaseException]) -> None:
    """With nobody to tell it cancels the block, and comes out of it. asyncio ends its loop by it."""

    async def leave() -> None:
        raise error(3)

    async def main() -> None:
        async with AgentRuntime() as runtime:
            await runtime.pool("p", kind).submit(leave)
            await anyio.sleep_forever()

    with pytest.raises(BaseExceptionGroup) as caught:
        anyio.run(main, backend="trio")
    assert caught.group_contains(error)


@of_coroutines
def test_what_ends_programs_in_a_hosted_runtime(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """It fails, which its health shows, and says so at its exit."""
    health: list[str] = []

    async def leave() -> None:
        raise SystemExit(3)

    async def main() -> None:
        async with AgentRuntime(hosted=True) as runtime:
            await runtime.pool("p", kind).submit(leave)
            await anyio.wait_all_tasks_blocked()
            health.append(runtime.health().state)

    with pytest.raises(AgentCrashedError, match="SystemExit"):
        anyio.run(main, backend="trio")
    assert ["failed"] == health
    assert logging.CRITICAL in {record.levelno for record in logged(caplog)}


@of_coroutines
@pytest.mark.parametrize("place", ["strict", "hosted", "host"])
@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_asyncio_ends_its_loop(kind: str, place: str, error: type[BaseException]) -> None:
    """By its own rule, wherever such an exception comes from: it comes out of `run`, whatever else does."""

    async def leave() -> None:
        raise error(3)

    async def main() -> None:
        if place == "host":
            await (await get_worker_pool("p", kind)).submit(leave)
            await anyio.sleep_forever()
        async with AgentRuntime(hosted=place == "hosted") as runtime:
            await runtime.pool("p", kind).submit(leave)
            await anyio.sleep_forever()

    with pytest.raises(error):
        anyio.run(main, backend="asyncio")
