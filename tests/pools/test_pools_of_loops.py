"""Worker pools without a runtime: they live in the host of their event loop, and are gone with it, however it ends."""

from __future__ import annotations

import asyncio
import gc
import logging
import subprocess
import sys
import textwrap
import weakref
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from agentcore import (
    AgentRuntime,
    AsyncioWorkerPool,
    QueueWorkerPool,
    QueueWorkerPoolConfig,
    RuntimeClosedError,
    ThreadWorkerPool,
    WorkerPoolClosedError,
    WorkerPoolConfig,
    get_worker_pool,
    shutdown_all_worker_pools,
)
from agentcore._host import Host
from agentcore.testing import simulate
from tests.pools.coroutines import Boom, Door, counts, double, logged, nothing
from tests.pools.loops_of_pools import STARTS, every_start, left, settled

pytestmark = pytest.mark.anyio

of_coroutines = pytest.mark.parametrize("kind", ["queue_asyncio", "asyncio"])
starts_of_asyncio = pytest.mark.parametrize("start", [start for name, start in STARTS.items() if "trio" not in name])


def one() -> QueueWorkerPoolConfig:
    """Configure a pool with one worker."""
    return QueueWorkerPoolConfig(workers=1)


# Living there.


async def test_who_lives_in_the_host() -> None:
    """Each pool by name is a resident; the host goes with the last one, and comes again with the next."""
    assert Host.find() is None
    first = await get_worker_pool("1")
    host = Host.find()
    assert host is not None
    second = await get_worker_pool("2", "thread")
    await settled()
    assert [first, second] == host.residents
    assert Host.find() is host
    await first.shutdown()
    await settled()
    assert ([second], host) == (host.residents, Host.find())
    await second.shutdown()
    await settled()
    assert ([], None, []) == (host.residents, Host.find(), left())
    third = await get_worker_pool("1")
    assert Host.find() not in (None, host)
    await third.shutdown()


@pytest.mark.parametrize("cls", [QueueWorkerPool, AsyncioWorkerPool])
@simulate(runs=20)
async def test_a_pool_that_is_entered_leaves_nothing(cls: Any) -> None:
    """Not even for a moment: when the block has been left, its host has ended too."""
    async with cls("p", one()) as pool:
        await pool.submit(nothing)
        assert 2 == await pool.asubmit(double, 1)
    assert ([], None) == (left(), Host.find())


async def test_beside_a_hosted_runtime() -> None:
    """Both live there; neither ends with the other."""
    async with QueueWorkerPool("p", one()) as pool:
        async with AgentRuntime(hosted=True) as runtime:
            assert 2 == await pool.asubmit(double, 1)
            assert 2 == await runtime.pool("p").asubmit(double, 1)
        assert "open" == pool.state
    runtime = await AgentRuntime.open()
    async with QueueWorkerPool("p", one()) as pool:
        pass
    assert runtime.health().healthy
    await runtime.aclose()


async def test_entered_here_and_left_there() -> None:
    """In another task, and across the yield of a fixture: no scope of anybody is broken."""
    pools: list[QueueWorkerPool] = []

    async def enter() -> None:
        with anyio.move_on_after(60):
            pools.append(await QueueWorkerPool("p", one()).__aenter__())

    async with anyio.create_task_group() as group:
        group.start_soon(enter)
    (pool,) = pools
    assert 2 == await pool.asubmit(double, 1)

    async def leave() -> None:
        with anyio.CancelScope():
            await pool.__aexit__(None, None, None)

    async with anyio.create_task_group() as group:
        group.start_soon(leave)
    assert ("closed", []) == (pool.state, left())


async def test_a_pool_does_not_keep_its_maker() -> None:
    """Nor the jobs that it has done, their arguments and their results."""

    class Big:
        pass

    async def use(given: Big) -> Big:
        await anyio.lowlevel.checkpoint()
        return Big()

    async def work(pool: Any) -> list[weakref.ref[Big]]:
        given = Big()
        result = await pool.asubmit(use, given)
        await pool.submit(use, given)
        return [weakref.ref(given), weakref.ref(result)]

    refs: list[weakref.ref[Any]] = []
    for kind in ("queue_asyncio", "asyncio"):
        pool = await get_worker_pool(f"a {kind}", kind, one())
        refs += await work(pool)
        await pool.asubmit(nothing)
    await settled()
    gc.collect()
    assert [None] * 4 == [ref() for ref in refs]
    await shutdown_all_worker_pools()
    ref = weakref.ref(pool)
    del pool
    await settled()
    gc.collect()
    assert ref() is None


# The end of a loop.


@every_start
@of_coroutines
def test_main_ends_before_the_jobs_do(start: Any, kind: str) -> None:
    """What runs is cancelled and unwinds before the loop is gone; nothing is left."""
    doors: list[Door] = []
    pools: list[Any] = []

    async def main() -> str:
        door = Door()
        doors.append(door)
        pools.append(await get_worker_pool("p", kind, one()))
        await pools[-1].submit(door, "running")
        await settled()
        return "value"

    for _ in range(2):
        assert "value" == start(main)
        assert [] == left()
    assert [["running"]] * 2 == [door.left for door in doors]
    assert ["closed"] * 2 == [pool.state for pool in pools]
    assert [(0, 0)] * 2 == [(pool.metrics.queued, pool.metrics.running) for pool in pools]


@every_start
@of_coroutines
@pytest.mark.parametrize("error", [Boom("own"), SystemExit(3), KeyboardInterrupt()], ids=repr)
def test_whatever_leaves_main(start: Any, kind: str, error: BaseException) -> None:
    """It comes out of the loop as it is."""
    pools: list[Any] = []

    async def main() -> None:
        pools.append(await get_worker_pool("p", kind, one()))
        await pools[0].asubmit(nothing)
        raise error

    with pytest.raises(type(error)) as caught:
        start(main)
    assert caught.value is error
    assert ("closed", []) == (pools[0].state, left())


@every_start
def test_threads_that_are_idle_at_the_end(start: Any) -> None:
    """They are gone when the loop is."""
    pools: list[Any] = []

    async def main() -> int:
        pools.append(await get_worker_pool("p", "thread", WorkerPoolConfig(workers=2)))
        result: int = await pools[0].asubmit(len, "abc")
        return result

    assert 3 == start(main)
    assert ("closed", []) == (pools[0].state, left())


@every_start
def test_shut_down_and_over(start: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The last step of a program may be to shut everything down: nothing is logged, everything is done."""
    done: list[int] = []

    async def note(number: int) -> None:
        await anyio.lowlevel.checkpoint()
        done.append(number)

    async def main() -> None:
        for kind in ("queue_asyncio", "asyncio"):
            pool = await get_worker_pool(kind, kind, one())
            for number in range(5):
                await pool.submit(note, number)
        threads = await get_worker_pool("threads", "thread", WorkerPoolConfig(workers=1))
        assert isinstance(threads, ThreadWorkerPool)
        for number in range(5):
            threads.submit(done.append, number)
        await shutdown_all_worker_pools()

    start(main)
    assert 15 == len(done)
    assert [] == logged(caplog)
    assert [] == left()


@of_coroutines
async def test_a_loop_in_another_thread(kind: str) -> None:
    """Each has its own host and its own pools, at the same time."""
    mine = await get_worker_pool("p", kind)
    theirs: list[Any] = []

    def in_thread() -> None:
        async def main() -> None:
            pool = await get_worker_pool("p", kind)
            theirs.append(pool)
            assert 2 == await pool.asubmit(double, 1)

        for backend in ("asyncio", "trio"):
            anyio.run(main, backend=backend)

    await anyio.to_thread.run_sync(in_thread)
    assert 3 == len({mine, *theirs})
    assert ["open", "closed", "closed"] == [mine.state, *[pool.state for pool in theirs]]
    await mine.shutdown()


@starts_of_asyncio
@of_coroutines
def test_cancelling_all_tasks(start: Any, kind: str) -> None:
    """As programs of asyncio do it in the end, those of the host among them: the pool is closed, nobody hangs."""
    log: list[str] = []

    async def call(pool: Any, who: str) -> None:
        try:
            await pool.asubmit(anyio.sleep_forever)
        finally:
            log.append(who)

    async def main() -> str:
        pool = await get_worker_pool("p", kind, one())
        callers = [asyncio.create_task(call(pool, who)) for who in ("running", "queued")]
        await settled()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=30)
        assert {True} == {task.done() for task in tasks}
        assert {True} == {caller.cancelled() or isinstance(caller.exception(), Exception) for caller in callers}
        with pytest.raises(WorkerPoolClosedError):
            await pool.submit(nothing)
        return str(pool.state)

    assert "closed" == start(main)
    assert {"running", "queued"} == set(log)
    assert [] == left()


@starts_of_asyncio
def test_while_the_loop_ends(start: Any) -> None:
    """Nothing moves in any more, or it is ended with the rest: nobody hangs."""
    outcomes: list[str] = []

    async def late() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                try:
                    pool = await get_worker_pool("late")
                    await pool.asubmit(nothing)
                    outcomes.append("done")
                except (RuntimeClosedError, WorkerPoolClosedError, asyncio.CancelledError) as error:
                    outcomes.append(type(error).__name__)

    async def main() -> None:
        await get_worker_pool("p")
        keep.append(asyncio.create_task(late()))
        await settled()

    keep: list[Any] = []
    start(main)
    assert 1 == len(outcomes)
    assert [] == left()


def test_entering_cancelled_wherever_it_waits() -> None:
    """The name is free afterwards, or is that of an open pool."""

    async def scenario() -> None:
        pool = await get_worker_pool("p", "asyncio", one())
        assert 2 == await pool.asubmit(double, 1)

    async def check() -> None:
        pool = await get_worker_pool("p", "asyncio")
        assert 2 == await pool.asubmit(double, 1)
        assert {0} == {pool.metrics.queued, pool.metrics.running}
        await shutdown_all_worker_pools()
        await settled()

    for backend in ("asyncio", "trio"):
        for steps in range(6):
            anyio.run(_cancelled_after, steps, scenario, check, backend=backend)


async def _cancelled_after(steps: int, scenario: Any, check: Any) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(scenario)
        for _ in range(steps):
            await anyio.lowlevel.checkpoint()
        group.cancel_scope.cancel()
    await check()


# Nothing to hear.

PROGRAM = """
import asyncio, logging, sys, threading
import anyio, trio
from agentcore import *

# On a slow machine the debug mode of asyncio would tell of that.
logging.getLogger("asyncio").setLevel(logging.ERROR)

async def double(number):
    await anyio.lowlevel.checkpoint()
    return 2 * number

async def clean():
    async with QueueWorkerPool("q", QueueWorkerPoolConfig(workers=3)) as pool:
        await pool.submit(double, 1)
        assert [2, 4] == await pool.amap(double, [1, 2])
    for kind in ("queue_asyncio", "asyncio", "thread"):
        pool = await get_worker_pool(kind, kind)
        assert 2 == await pool.asubmit(abs if kind == "thread" else double, -2 if kind == "thread" else 1)
    await shutdown_all_worker_pools()

async def forgetful():
    for kind in ("queue_asyncio", "asyncio"):
        pool = await get_worker_pool(kind, kind, WorkerPoolConfig(workers=1))
        await pool.asubmit(double, 1)
    threads = await get_worker_pool("thread", "thread")
    assert 2 == await threads.asubmit(abs, -2)

async def busy():
    for kind in ("queue_asyncio", "asyncio"):
        pool = await get_worker_pool(kind, kind, WorkerPoolConfig(workers=1))
        await pool.submit(anyio.sleep_forever)
        await anyio.lowlevel.checkpoint()

for main in (clean, forgetful) if "trio" in sys.argv else (clean, forgetful, busy):
        trio.run(main) if "trio" in sys.argv else asyncio.run(main())
print(*(thread.name for thread in threading.enumerate() if not thread.name.startswith("Trio ")))
"""


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_programs_are_quiet(backend: str) -> None:
    """With every warning of the interpreter on, as errors."""
    ended = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", textwrap.dedent(PROGRAM), backend],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (0, "MainThread\n", "") == (ended.returncode, ended.stdout, ended.stderr)


def test_a_job_that_ends_programs(caplog: pytest.LogCaptureFixture) -> None:
    """A resident that fails with what ends programs is told of by the host, on a loop that goes on after that."""

    async def leave() -> None:
        raise SystemExit(3)

    async def main() -> str:
        pool = await get_worker_pool("p")
        await pool.submit(leave)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(WorkerPoolClosedError):
            await pool.asubmit(nothing)
        again = await get_worker_pool("p")
        assert again is not pool
        assert 2 == await again.asubmit(double, 1)
        await again.shutdown()
        assert {"failed": 1} == counts(pool.metrics)
        return str(pool.state)

    assert "closed" == anyio.run(main, backend="trio")
    (record,) = [record for record in logged(caplog) if record.levelno == logging.CRITICAL]
    assert "agentcore.host" == record.name
    assert "what lived in the host of the event loop raised" in record.message
    assert [] == left()
