"""Worker pools under the simulator: virtual time, one order, and faults at the jobs of a pool."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import anyio
import anyio.from_thread
import anyio.lowlevel
import pytest

from agentcore import (
    AgentRuntime,
    AsyncioWorkerPool,
    JobCancelledError,
    PoolFuture,
    QueueWorkerPool,
    QueueWorkerPoolConfig,
    TaskPriority,
    ThreadWorkerPool,
    ThreadWorkerPoolConfig,
    WorkerPoolClosedError,
    WorkerPoolFullError,
    WorkerTimeoutError,
    check_cancelled,
    get_worker_pool,
    shutdown_all_worker_pools,
)
from agentcore.testing import BACKENDS, InjectedFault, Simulation, current_simulation, run_sim, simulate

backends = pytest.mark.parametrize("backend", BACKENDS)
AGAIN = 20
PATIENCE = 10.0
"""Real seconds after which something that never comes lets a test fail."""

_chance = random.Random()


def threads(workers: int = 2, **settings: Any) -> ThreadWorkerPoolConfig:
    return ThreadWorkerPoolConfig(workers=workers, **settings)


def queue(workers: int = 2, **settings: Any) -> QueueWorkerPoolConfig:
    return QueueWorkerPoolConfig(workers=workers, **settings)


def work(what: Any) -> Any:
    """Take a while that is never the same."""
    time.sleep(_chance.random() / 1_000)
    return what


def fail() -> None:
    raise LookupError("as told")


async def nap(seconds: float) -> float:
    """Take some virtual time."""
    await anyio.sleep(seconds)
    return seconds


async def quietly(call: Callable[[], Awaitable[Any]], log: list[Any]) -> None:
    """Note what comes of a call, and when."""
    try:
        outcome = await call()
    except Exception as error:  # noqa: BLE001 - it is noted
        outcome = type(error).__name__
    log.append((outcome, anyio.current_time()))


# Time.


@backends
def test_the_clock_stands_still_while_a_thread_works(backend: Any) -> None:
    """However long it takes, no deadline and no timer passes it."""

    async def main() -> list[Any]:
        log: list[Any] = []
        async with AgentRuntime() as runtime, anyio.create_task_group() as group:
            pool = runtime.pool("x", "thread", threads())
            group.start_soon(quietly, partial(nap, 0.001), log)
            with anyio.fail_after(0.001):
                log.append((await pool.asubmit(lambda: time.sleep(0.05) or "slept"), anyio.current_time()))
        return log

    assert [("slept", 0.0), (0.001, 0.001)] == run_sim(main, backend=backend).unwrap()


@backends
def test_the_clock_stands_still_for_a_future_that_nobody_awaits(backend: Any) -> None:
    async def main() -> list[Any]:
        async with AgentRuntime() as runtime:
            pool = runtime.pool("x", "thread", threads(1))
            futures = [pool.submit(lambda: time.sleep(0.02)) for _ in range(2)]
            await anyio.sleep(1)
            return [future.done() for future in futures]

    assert [True, True] == run_sim(main, backend=backend).unwrap()


@backends
def test_the_clock_moves_on_without_a_thread_that_is_left_behind(backend: Any) -> None:
    """Nobody waits for it any more."""
    gate = threading.Event()

    async def main() -> tuple[Any, ...]:
        async with AgentRuntime(grace=1) as runtime:
            pool = runtime.pool("x", "thread", threads(1)).options(abandon_on_cancel=True)
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as group:
                    group.start_soon(pool.asubmit, gate.wait, PATIENCE)
                    await current_simulation().settle()
                    scope.cancel()
            abandoned = runtime.pools.list_all()["x"].metrics.abandoned
            await anyio.sleep(5)
            done = await pool.asubmit(work, "next")
            gate.set()
            return abandoned, done, anyio.current_time()

    assert (1, "next", 5.0) == run_sim(main, backend=backend).unwrap()


@backends
def test_a_thread_that_waits_for_the_event_loop_gives_the_clock_free(backend: Any) -> None:
    async def main() -> list[Any]:
        token = anyio.lowlevel.current_token()
        log: list[Any] = []
        async with AgentRuntime() as runtime:
            pool = runtime.pool("x", "thread", threads(1))
            ask = partial(anyio.from_thread.run, nap, token=token)
            await quietly(partial(pool.asubmit, ask, 2.0), log)
            await quietly(partial(pool.asubmit, ask, 10.0, timeout=3), log)
            await quietly(partial(pool.asubmit, work, "next"), log)
            await anyio.sleep(10)  # the thread that was left behind has its answer
        return log

    expected = [(2.0, 2.0), ("WorkerTimeoutError", 5.0), ("next", 5.0)]
    assert expected == run_sim(main, backend=backend).unwrap()


@backends
@pytest.mark.parametrize("kind", ["queue_asyncio", "asyncio"])
def test_deadlines_of_coroutines_are_virtual(backend: Any, kind: str) -> None:
    """In the queue, while they run, and by the pool's own limit."""

    async def main() -> tuple[list[Any], list[str]]:
        log: list[Any] = []
        phases: list[str] = []

        async def one(seconds: float, timeout: float | None) -> float:
            try:
                return await pool.options(timeout=timeout).asubmit(nap, seconds)  # type: ignore[no-any-return]
            except WorkerTimeoutError as error:
                phases.append(error.details["phase"])
                raise

        async with AgentRuntime() as runtime:
            pool = runtime.pool("x", kind, queue(1, task_timeout=3.0))
            async with anyio.create_task_group() as group:
                for seconds, timeout in ((2.0, None), (1.0, 1.5), (2.0, 2.5), (9.0, None), (1.0, None)):
                    group.start_soon(quietly, partial(one, seconds, timeout), log)
        return log, phases

    log, phases = run_sim(main, backend=backend).unwrap()
    late = "WorkerTimeoutError"
    assert [(late, 1.5), (2.0, 2.0), (late, 2.5), (late, 5.5), (1.0, 6.5)] == log
    assert ["queued", "running", "worker"] == phases


@backends
def test_a_year_of_jobs(backend: Any) -> None:
    """One each day, in each kind of pool."""

    async def main() -> tuple[int, float]:
        done = 0
        async with AgentRuntime() as runtime:
            pools = [runtime.pool(kind, kind) for kind in ("thread", "queue_asyncio", "asyncio")]
            for _ in range(365):
                await anyio.sleep(86_400)
                done += await pools[0].asubmit(work, 1)
                done += bool(await pools[1].asubmit(nap, 1.0)) + bool(await pools[2].asubmit(nap, 1.0))
        return done, anyio.current_time()

    assert (365 * 3, 365 * 86_402.0) == run_sim(main, backend=backend).unwrap()


# Order.


async def several(log: list[Any]) -> None:
    """Use threads from several sides, in one order after the other."""
    async with AgentRuntime() as runtime:
        pool = runtime.pool("x", "thread", threads(3))

        async def one(number: int) -> None:
            await anyio.sleep(number % 3)
            log.append((await pool.asubmit(work, number), anyio.current_time()))
            await anyio.sleep(number % 2)
            log.append((await pool.asubmit(work, -number), anyio.current_time()))

        async with anyio.create_task_group() as group:
            for number in range(8):
                group.start_soon(one, number)
            async with pool.as_completed(work, "abcdefgh") as results:
                log.extend([result.value async for result in results])
        log.append(await pool.amap(work, range(9)))


async def futures(log: list[Any]) -> None:
    """Await some of the futures, and leave the others to the end."""
    async with AgentRuntime() as runtime:
        pool = runtime.pool("x", "thread", threads(2))
        found = [pool.submit(work, number) for number in range(6)]
        await anyio.sleep(1)
        log.append([future.done() for future in found])
        found += [pool.submit(work, number) for number in range(6)]
        log.append(found[3].result())
        await anyio.sleep(1)
        report = await pool.shutdown()
        log.append((report.drained, report.duration, [future.result() for future in found]))


async def mixed(log: list[Any]) -> None:
    """Use all three kinds at once."""
    async with AgentRuntime() as runtime:
        pools = {kind: runtime.pool(kind, kind) for kind in ("thread", "queue_asyncio", "asyncio")}

        async def in_loop(number: int) -> Any:
            await anyio.sleep(number % 2)
            return await pools["thread"].asubmit(work, number)

        async def use(kind: str) -> None:
            for number in range(4):
                job = work if kind == "thread" else in_loop
                log.append((kind, await pools[kind].asubmit(job, number), anyio.current_time()))

        async with anyio.create_task_group() as group:
            for kind in pools:
                group.start_soon(use, kind)
                group.start_soon(use, kind)


@backends
@pytest.mark.parametrize("schedule", ["fifo", "walk/3"])
@pytest.mark.parametrize("use", [several, futures, mixed])
def test_the_same_run_again_and_again(backend: Any, schedule: str, use: Any) -> None:
    """Real threads, each time as quick as they like: the same steps in the same order."""
    runs = set()
    for _ in range(AGAIN):
        log: list[Any] = []
        result = run_sim(use, log, backend=backend, schedule=schedule, trace=True)
        result.unwrap()
        runs.add((repr(log), "\n".join(map(str, result.trace))))
    assert len(runs) == 1


@pytest.mark.skipif(len(BACKENDS) < 2, reason="there is only one backend")
@pytest.mark.parametrize("use", [several, futures, mixed])
def test_the_same_on_both_backends(use: Any) -> None:
    logs: list[list[Any]] = []
    for backend in BACKENDS:
        logs.append([])
        run_sim(use, logs[-1], backend=backend).unwrap()
    assert logs[0] == logs[1]


@pytest.mark.thorough
@simulate
async def test_any_order_of_the_tasks() -> None:
    """Whoever goes first: each job is done once, by no more workers than there are."""
    log: list[Any] = []
    await mixed(log)
    assert 3 * 2 * 4 == len(log)


@backends
def test_the_more_urgent_goes_first(backend: Any) -> None:
    """The queue has one order, of which the threads change nothing."""
    gate = threading.Event()

    async def main() -> list[str]:
        log: list[str] = []
        async with AgentRuntime() as runtime:
            pool = runtime.pool("x", "thread", threads(1))
            pool.submit(gate.wait, PATIENCE)
            for name in ("LOW", "NORMAL", "HIGH", "CRITICAL"):
                pool.options(priority=TaskPriority[name]).submit(log.append, name)
            gate.set()
        return log

    assert ["CRITICAL", "HIGH", "NORMAL", "LOW"] == run_sim(main, backend=backend).unwrap()


# Faults.


async def _three(kind: str, log: list[Any]) -> float:
    async with AgentRuntime() as runtime:
        pool = runtime.pool("x", kind, threads(2) if kind == "thread" else queue(2))
        job: Any = work if kind == "thread" else nap
        for number in (1, 2, 3):
            with anyio.move_on_after(10):
                await quietly(partial(pool.asubmit, job, number), log)
        log.append(pool.metrics.succeeded)
    return anyio.current_time()


@backends
@pytest.mark.parametrize("kind", ["thread", "queue_asyncio", "asyncio"])
@pytest.mark.parametrize(
    ("plan", "outcomes", "took"),
    [
        ("", [1, 2, 3], 0),
        ("pool:x#2:raise", [1, "InjectedFault", 3], 0),
        ("pool:x#2:raise_after(OSError)", [1, "OSError", 3], 0),
        ("pool:x#2:delay(7)", [1, 2, 3], 7),
        ("pool:x#2:hang", [1, 3], 10),
        ("pool:x#2:corrupt('spoilt')", [1, "spoilt", 3], 0),
        ("pool:x#2:duplicate", [1, 2, 3], 0),
        ("pool:y#2:raise", [1, 2, 3], 0),
    ],
)
def test_faults_hit_the_jobs_of_a_pool(backend: Any, kind: str, plan: str, outcomes: list[Any], took: int) -> None:
    """Before the hand-over or after the result, whatever the pool is."""
    log: list[Any] = []
    now = run_sim(_three, kind, log, backend=backend, plan=plan).unwrap()
    done = 2 if plan.endswith((":raise", ":hang")) and "x" in plan else 4 if plan.endswith("duplicate") else 3
    assert [*outcomes, done] == [entry[0] if isinstance(entry, tuple) else entry for entry in log]
    if kind == "thread":
        assert took == now


@backends
@pytest.mark.parametrize("kind", ["thread", "queue_asyncio", "asyncio"])
def test_a_cancellation_at_a_job(backend: Any, kind: str) -> None:
    """It is not handed over; the pool goes on."""

    async def main() -> tuple[Any, ...]:
        async with AgentRuntime() as runtime:
            pool = runtime.pool("x", kind)
            job: Any = work if kind == "thread" else nap
            with anyio.CancelScope() as scope:
                sim = current_simulation()
                sim._scope = scope
                await pool.asubmit(job, 1)
            sim._scope = sim._root
            return scope.cancelled_caught, pool.metrics.cancelled, await pool.asubmit(job, 2), pool.metrics.succeeded

    result = run_sim(main, backend=backend, plan="pool:x#1:cancel")
    assert (True, 0, 2, 1) == result.unwrap()
    assert ("pool:x#1:cancel",) == result.fired


@backends
@pytest.mark.parametrize("kind", ["thread", "queue_asyncio", "asyncio"])
def test_faults_hit_maps(backend: Any, kind: str) -> None:
    """One item has the fault, the others their result."""

    async def main() -> list[Any]:
        async with AgentRuntime() as runtime:
            pool = runtime.pool("x", kind, threads(1) if kind == "thread" else queue(1))
            job: Any = work if kind == "thread" else nap
            found = await pool.amap(job, (1, 2, 3))
        return [type(one) if isinstance(one, Exception) else one for one in found]

    assert [1, InjectedFault, 3] == run_sim(main, backend=backend, plan="pool:x#2:raise").unwrap()


# Futures, refusals, ends.


@backends
def test_a_job_that_fails_and_nobody_asks(backend: Any) -> None:
    """It stands in the future; the simulation finds nothing left behind."""

    async def main() -> tuple[bool, int]:
        async with AgentRuntime() as runtime:
            pool = runtime.pool("x", "thread", threads(1))
            future = pool.submit(fail)
            await anyio.sleep(1)
            return isinstance(future.exception(), LookupError), pool.metrics.failed

    assert (True, 1) == run_sim(main, backend=backend).unwrap()


@backends
def test_who_awaits_a_future_may_be_cancelled(backend: Any) -> None:
    """The job belongs to the pool."""
    gate = threading.Event()

    async def main() -> tuple[Any, ...]:
        async with AgentRuntime() as runtime:
            pool = runtime.pool("x", "thread", threads(1))
            future = pool.submit(gate.wait, PATIENCE)
            queued = pool.submit(work, "queued")
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as group:
                    group.start_soon(_await, future)
                    group.start_soon(_await, queued)
                    await current_simulation().settle()
                    scope.cancel()
            is_cancelled = queued.cancel()
            gate.set()
            return is_cancelled, await future, queued.cancelled(), pool.metrics.cancelled

    assert (True, True, True, 1) == run_sim(main, backend=backend).unwrap()


async def _await(future: PoolFuture[Any]) -> None:
    await future


@backends
def test_a_cancelled_job_in_the_queue_is_taken_back(backend: Any) -> None:
    """One that runs is waited for; it learns of it."""
    gate = threading.Event()
    told: list[str] = []

    def wait() -> str:
        assert gate.wait(PATIENCE)
        try:
            check_cancelled()
        except JobCancelledError as error:
            told.append(type(error).__name__)
        return "done"

    async def main() -> tuple[Any, ...]:
        log: list[Any] = []
        async with AgentRuntime() as runtime:
            pool = runtime.pool("x", "thread", threads(1))
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as group:
                    group.start_soon(quietly, partial(pool.asubmit, wait), log)
                    await current_simulation().settle()
                    group.start_soon(quietly, partial(pool.asubmit, work, "queued"), log)
                    await current_simulation().settle()
                    scope.cancel()
                    gate.set()
            return log, pool.metrics.cancelled, await pool.asubmit(work, "next")

    assert ([("done", 0.0)], 1, "next") == run_sim(main, backend=backend).unwrap()
    assert ["JobCancelledError"] == told


@backends
@pytest.mark.parametrize("kind", ["queue_asyncio", "asyncio"])
def test_what_is_submitted_to_coroutines_is_seen(backend: Any, kind: str) -> None:
    """Its steps are steps of the simulation, and the runtime waits for it."""

    async def main() -> tuple[int, list[str]]:
        async with AgentRuntime(grace=10) as runtime:
            pool = runtime.pool("x", kind, queue(2, max_queue_size=2))
            for _ in range(2):
                await pool.submit(nap, 3.0)
            await current_simulation().settle()
            for _ in range(2):
                await pool.submit(nap, 3.0)
            with pytest.raises(WorkerPoolFullError):
                await pool.submit(nap, 3.0)
            names = [task.name for task in current_simulation().tasks()]
        return pool.metrics.succeeded, names

    succeeded, names = run_sim(main, backend=backend).unwrap()
    assert 4 == succeeded
    assert 2 == sum(name.startswith(("worker of pool x", "job nap of pool x")) for name in names)


@backends
@pytest.mark.parametrize("cls", [ThreadWorkerPool, QueueWorkerPool, AsyncioWorkerPool])
def test_a_pool_of_its_own(backend: Any, cls: type[Any]) -> None:
    """Left, it is drained; nothing of it is there any more."""

    async def main() -> tuple[Any, ...]:
        job: Any = work if cls is ThreadWorkerPool else nap
        async with cls("x") as pool:
            found = await pool.amap(job, (1, 2, 3))
            handed = pool.submit(job, 4)
            if cls is not ThreadWorkerPool:
                await handed
        with pytest.raises(WorkerPoolClosedError):
            await pool.asubmit(job, 5)
        return found, pool.state, pool.metrics.succeeded, [task.task for task in current_simulation().tasks()]

    assert ([1, 2, 3], "closed", 4, [0]) == run_sim(main, backend=backend).unwrap()


@backends
def test_pools_of_the_event_loop(backend: Any) -> None:
    """Outside of every block; shut down, nothing is left of them."""

    async def main() -> tuple[Any, ...]:
        found = []
        for kind in ("thread", "queue_asyncio", "asyncio"):
            pool = await get_worker_pool(kind, kind)
            found.append(await pool.asubmit(*((work, 1) if kind == "thread" else (nap, 1.0))))  # type: ignore[arg-type]
        reports = await shutdown_all_worker_pools()
        return found, [report.drained for report in reports.values()], len(current_simulation().tasks())

    assert ([1, 1.0, 1.0], [True] * 3, 1) == run_sim(main, backend=backend).unwrap()


@backends
def test_a_thread_pool_that_is_older_than_the_simulation(backend: Any) -> None:
    """It needs no event loop, so one pool serves several simulations, and what is outside of them."""
    with ThreadWorkerPool("x", threads(2)) as pool:
        assert 0 == pool.submit(work, 0).result()
        for number in (1, 2):

            async def main(number: int = number) -> tuple[Any, ...]:
                await anyio.sleep(1)
                return await pool.asubmit(work, number), await pool.submit(work, number), anyio.current_time()

            assert (number, number, 1.0) == run_sim(main, backend=backend).unwrap()
        assert 3 == pool.submit(work, 3).result()


@backends
def test_between_two_calls_nothing_goes_on(backend: Any) -> None:
    """A pool that is entered in a simulation lives for as long as that."""
    with Simulation(backend) as sim:
        runtime = sim.enter(AgentRuntime)
        pool: Any = sim.call(lambda: runtime.pool("x", "queue_asyncio"))
        sim.run(pool.submit, nap, 5.0)
        assert (0.0, 0) == (sim.now, pool.metrics.succeeded)
        sim.run(anyio.sleep, 6)
        assert (6.0, 1) == (sim.now, pool.metrics.succeeded)
        assert 1 == sim.run(pool.asubmit, nap, 1)
    assert "closed" == pool.state
