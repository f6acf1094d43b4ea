"""Pools by name, outside of any block: found again, refused where they differ, gone when they are shut down."""

from __future__ import annotations

from typing import Any

import anyio
import anyio.lowlevel
import pytest

from agentcore import (
    AgentConfig,
    AgentContext,
    AgentResult,
    AgentRuntime,
    AsyncioWorkerPool,
    BaseAgent,
    BaseWorkerPool,
    ConfigurationError,
    ProcessWorkerPool,
    ProcessWorkerPoolConfig,
    QueueWorkerPool,
    QueueWorkerPoolConfig,
    RuntimeClosedError,
    ThreadWorkerPool,
    ThreadWorkerPoolConfig,
    WorkerPoolClosedError,
    WorkerPoolConfig,
    WorkerPoolDeadlockError,
    WorkerPoolReport,
    WorkerPoolType,
    get_worker_pool,
    shutdown_all_worker_pools,
)
from agentcore.testing import current_simulation, simulate
from tests.pools.coroutines import Door, counts, double
from tests.pools.loops_of_pools import every_start, left, settled

pytestmark = pytest.mark.anyio

KINDS: dict[WorkerPoolType, type[BaseWorkerPool]] = {
    WorkerPoolType.THREAD: ThreadWorkerPool,
    WorkerPoolType.PROCESS: ProcessWorkerPool,
    WorkerPoolType.ASYNCIO: AsyncioWorkerPool,
    WorkerPoolType.QUEUE_ASYNCIO: QueueWorkerPool,
}
all_kinds = pytest.mark.parametrize("kind", list(KINDS), ids=str)
# Processes are started when there is work, so making and ending such a pool costs nothing either.
WORK: dict[WorkerPoolType, Any] = {
    WorkerPoolType.THREAD: lambda number: 2 * number,
    WorkerPoolType.ASYNCIO: double,
    WorkerPoolType.QUEUE_ASYNCIO: double,
}


@every_start
def test_a_program_without_a_block(start: Any) -> None:
    """Makes pools of all kinds, finds them, works with them, shuts them down; nothing is left."""

    async def main() -> None:
        for kind, cls in KINDS.items():
            pool = await get_worker_pool(f"a {kind}", kind, WorkerPoolConfig(workers=2))
            assert isinstance(pool, cls)
            assert (f"a {kind}", "open", kind) == (pool.name, pool.state, pool.pool_type)
            if kind in WORK:
                assert 42 == await pool.asubmit(WORK[kind], 21)
        reports = await shutdown_all_worker_pools()
        assert [f"a {kind}" for kind in KINDS] == sorted(reports, key=[f"a {kind}" for kind in KINDS].index)
        assert all(isinstance(report, WorkerPoolReport) and report.drained for report in reports.values())
        await settled()
        assert [] == left()

    for _ in range(2):
        start(main)
        assert [] == left()


@all_kinds
@pytest.mark.parametrize("in_runtime", [False, True], ids=["outside", "runtime"])
async def test_the_same_name_again(kind: WorkerPoolType, in_runtime: bool) -> None:
    """Is the same pool: with nothing said, with the same said, and with the plain form of the same said."""

    async def check() -> None:
        config = WorkerPoolConfig(workers=3, task_timeout=5)
        pool = await get_worker_pool("p", kind, config)
        same = [
            await get_worker_pool("p"),
            await get_worker_pool("p", kind),
            await get_worker_pool("p", kind.value),
            await get_worker_pool("p", kind.value.upper()),
            await get_worker_pool("p", config=config),
            await get_worker_pool("p", kind, WorkerPoolConfig(workers=3, task_timeout=5)),
            await get_worker_pool("p", None, type(pool.config)(workers=3, task_timeout=5)),
        ]
        assert [True] * 7 == [one is pool for one in same]
        assert await get_worker_pool("q", kind) is not pool
        await shutdown_all_worker_pools()

    if in_runtime:
        async with AgentRuntime():
            await check()
    else:
        await check()


@all_kinds
@pytest.mark.parametrize("in_runtime", [False, True], ids=["outside", "runtime"])
async def test_the_same_name_with_something_else(kind: WorkerPoolType, in_runtime: bool) -> None:
    """Another type and another configuration are errors that say so; the pool is as before."""

    async def check() -> None:
        pool = await get_worker_pool("p", kind, WorkerPoolConfig(workers=3))
        for other in set(KINDS) - {kind}:
            for value in (other, other.value):
                with pytest.raises(ConfigurationError) as caught:
                    await get_worker_pool("p", value)
                assert (
                    f"worker pool 'p' exists with another type: got {value!r}, it has {kind.value!r}; "
                    "omit the type to find it, or take another name"
                ) == str(caught.value)
                assert {"pool": "p", "pool_type": value} == caught.value.details
        config = WorkerPoolConfig(workers=4)
        with pytest.raises(ConfigurationError) as caught:
            await get_worker_pool("p", kind, config)
        assert str(caught.value).startswith(f"worker pool 'p' exists with another config: got {config!r}, it has ")
        assert str(caught.value).endswith("; omit the config to find it, or take another name")
        with pytest.raises(ConfigurationError, match="exists with another config"):
            await get_worker_pool("p", config=WorkerPoolConfig())
        wrong = ProcessWorkerPoolConfig() if kind is not WorkerPoolType.PROCESS else ThreadWorkerPoolConfig()
        with pytest.raises(ConfigurationError, match="config of worker pool 'p' must be a WorkerPoolConfig or a"):
            await get_worker_pool("p", config=wrong)
        with pytest.raises(ConfigurationError, match="type of a worker pool must be one of"):
            await get_worker_pool("p", "fiber")
        assert (pool, "open") == (await get_worker_pool("p"), pool.state)
        await shutdown_all_worker_pools()

    if in_runtime:
        async with AgentRuntime():
            await check()
    else:
        await check()


async def test_what_is_not_said() -> None:
    """A new name without a type is a queue."""
    pool = await get_worker_pool("p")
    assert isinstance(pool, QueueWorkerPool)
    assert QueueWorkerPoolConfig() == pool.config
    await pool.shutdown()


@pytest.mark.parametrize("kind", ["executor", "dask", WorkerPoolType.EXECUTOR, WorkerPoolType.DASK])
async def test_kinds_that_have_no_workers_of_their_own(kind: Any) -> None:
    value = WorkerPoolType.of(kind).value
    with pytest.raises(ConfigurationError) as caught:
        await get_worker_pool("p", kind)
    assert (
        f"type of a worker pool must be one that owns its workers: got {value!r}; "
        "use one of 'thread', 'process', 'queue_asyncio', 'asyncio'"
    ) == str(caught.value)
    assert [] == left()


@pytest.mark.parametrize("in_runtime", [False, True], ids=["outside", "runtime"])
async def test_arguments_that_cannot_be_used(in_runtime: bool) -> None:
    """Nothing is made of them: the name stays free."""

    async def check() -> None:
        for name in ("", None, 3, ["p"]):
            with pytest.raises(ConfigurationError, match="name of a worker pool must be a string that is not empty"):
                await get_worker_pool(name)  # type: ignore[arg-type]
        for kind in ("fiber", "", 3, ()):
            with pytest.raises(ConfigurationError, match="type of a worker pool must be one of 'thread'"):
                await get_worker_pool("p", kind)  # type: ignore[arg-type]
        for config in (3, {"workers": 3}, ThreadWorkerPoolConfig()):
            with pytest.raises(ConfigurationError, match="config of worker pool 'p' must be"):
                await get_worker_pool("p", "asyncio", config)  # type: ignore[arg-type]
        pool = await get_worker_pool("p", "thread")
        assert isinstance(pool, ThreadWorkerPool)
        await pool.shutdown()

    if in_runtime:
        async with AgentRuntime():
            await check()
    else:
        await check()
        assert [] == left()


@all_kinds
@pytest.mark.parametrize("in_runtime", [False, True], ids=["outside", "runtime"])
async def test_a_name_is_free_after_the_shutdown(kind: WorkerPoolType, in_runtime: bool) -> None:
    """Even for another kind; the old pool stays closed, and does not end the new one."""

    async def check() -> None:
        first = await get_worker_pool("p", kind, WorkerPoolConfig(workers=2))
        await first.shutdown()
        for other in KINDS:
            pool = await get_worker_pool("p", other)
            assert ("closed", "open") == (first.state, pool.state)
            assert pool is not first
            await first.shutdown()
            assert await get_worker_pool("p") is pool
            await pool.ashutdown()
        with pytest.raises(WorkerPoolClosedError):
            await first.asubmit(WORK.get(kind, len), 1)

    if in_runtime:
        async with AgentRuntime():
            await check()
    else:
        await check()
        await settled()
        assert [] == left()


async def test_a_name_is_free_while_the_old_pool_drains() -> None:
    """That goes on by itself, with its jobs."""
    old_door, new_door = Door(), Door()
    old = await get_worker_pool("p", config=QueueWorkerPoolConfig(workers=1))
    await old.submit(old_door, "old")
    await anyio.wait_all_tasks_blocked()
    await old.shutdown(wait=False)
    assert "draining" == old.state
    new = await get_worker_pool("p", WorkerPoolType.ASYNCIO)
    assert new is not old
    await new.submit(new_door, "new")
    old_door.opened.set()
    await anyio.wait_all_tasks_blocked()
    assert ("closed", ["old"], "open") == (old.state, old_door.left, new.state)
    assert await get_worker_pool("p") is new
    new_door.opened.set()
    await new.shutdown()
    assert ["new"] == new_door.left


async def test_many_at_once() -> None:
    """The first makes it, however many ask before there is a host."""
    found: list[Any] = []

    async def ask() -> None:
        pool = await get_worker_pool("p", "asyncio", WorkerPoolConfig(workers=2))
        found.append(pool)
        assert 2 == await pool.asubmit(double, 1)

    async with anyio.create_task_group() as group:
        for _ in range(20):
            group.start_soon(ask)
    assert (20, 1) == (len(found), len(set(found)))
    assert {"succeeded": 20} == counts(found[0].metrics)
    await found[0].shutdown()


@simulate(runs=40)
async def test_asking_and_shutting_down_in_any_order() -> None:
    """Whoever asks has an open pool, or one that somebody has shut down since."""

    async def use(number: int) -> None:
        pool = await get_worker_pool("p")
        assert isinstance(pool, QueueWorkerPool)
        try:
            assert 2 * number == await pool.asubmit(double, number)
        except WorkerPoolClosedError:
            assert "open" != pool.state
        if number % 2:
            await pool.shutdown()

    async with anyio.create_task_group() as group:
        for number in range(5):
            group.start_soon(use, number)
    await shutdown_all_worker_pools()
    await current_simulation().settle()
    assert [] == left()


# All of them.


async def test_shutting_down_all_of_nothing() -> None:
    assert {} == await shutdown_all_worker_pools()
    assert {} == await shutdown_all_worker_pools(wait=False, timeout=3)
    assert [] == left()


@simulate(runs=10)
async def test_shutting_down_all_at_once() -> None:
    """Each has the whole time; the reports go by name."""
    for name, seconds in (("short", 1), ("long", 3), ("hung", 100)):
        pool = await get_worker_pool(name, "asyncio")
        await pool.submit(anyio.sleep, seconds)
    began = anyio.current_time()
    reports = await shutdown_all_worker_pools(wait=True, timeout=5)
    assert 5 == anyio.current_time() - began
    assert {"short": True, "long": True, "hung": False} == {name: report.drained for name, report in reports.items()}
    assert 1 == len(reports["hung"].cut_short)
    assert {} == await shutdown_all_worker_pools()
    await current_simulation().settle()


async def test_shutting_down_all_without_waiting() -> None:
    """What waits is cancelled, what runs goes on."""
    door = Door()
    pool = await get_worker_pool("p", config=QueueWorkerPoolConfig(workers=1))
    await pool.submit(door, 1)
    await pool.submit(door, 2)
    await anyio.wait_all_tasks_blocked()
    reports = await shutdown_all_worker_pools(wait=False)
    assert {"p": ("Door",)} == {name: report.cut_short for name, report in reports.items()}
    assert "draining" == pool.state
    door.opened.set()
    await anyio.wait_all_tasks_blocked()
    assert ("closed", [1], []) == (pool.state, door.left, left())


# Whose they are.


async def test_runtimes_and_the_loop_do_not_share() -> None:
    """Inside of a block the name is the runtime's; outside, also of a pool that was made before, the loop's."""
    outside = await get_worker_pool("p", "thread")
    async with AgentRuntime() as runtime:
        inside = await get_worker_pool("p", "asyncio")
        assert inside is not outside
        assert inside is runtime.pool("p")
        assert {"p": inside} == runtime.pools.list_all()
        assert ["p"] == list(await shutdown_all_worker_pools())
        assert ("closed", "open") == (inside.state, outside.state)
        assert {} == runtime.pools.list_all()
    assert await get_worker_pool("p") is outside
    assert ["p"] == list(await shutdown_all_worker_pools())


async def test_a_hosted_runtime_is_the_one() -> None:
    """As long as there is one; two are an error, which names the way out."""
    runtime = await AgentRuntime.open()
    pool = await get_worker_pool("p")
    assert pool is runtime.pool("p")
    other = await AgentRuntime.open()
    for call in (get_worker_pool("p"), shutdown_all_worker_pools()):
        with pytest.raises(RuntimeClosedError, match="several"):
            await call
    await other.aclose()
    assert await get_worker_pool("p") is pool
    await runtime.aclose()
    assert "closed" == pool.state
    assert await get_worker_pool("p") is not pool
    await shutdown_all_worker_pools()


async def test_a_job_must_not_wait_for_the_end_of_all() -> None:
    """Told as it is, and before any pool is ended."""
    first, second = await get_worker_pool("first"), await get_worker_pool("second")
    with pytest.raises(WorkerPoolDeadlockError, match="shutdown of worker pool 'first' would wait for the job"):
        await first.asubmit(shutdown_all_worker_pools)
    assert ("open", "open") == (first.state, second.state)
    assert 2 == await second.asubmit(double, 1)
    await shutdown_all_worker_pools()


async def test_what_ends_after_its_runtime_gets_no_pool_of_the_loop() -> None:
    """An agent that is terminated, for instance: nobody would shut that pool down."""
    refused: list[str] = []

    class Agent(BaseAgent):
        async def initialize(self) -> bool:
            return True

        async def process(self, context: AgentContext) -> AgentResult:
            return AgentResult.success_result({"pool": str(await get_worker_pool("p"))})

        async def handle_error(self, error: Exception, context: AgentContext) -> None:
            raise error

        async def terminate(self) -> None:
            for call in (get_worker_pool("p"), shutdown_all_worker_pools()):
                try:
                    await call
                except RuntimeClosedError as error:
                    refused.append(str(error))

    async with AgentRuntime() as runtime:
        runtime.registry("agents").register("one", Agent(AgentConfig("one", "test")))
        await runtime.ask("one", AgentContext())
    assert 2 == len(refused)
    assert refused[0].startswith("there is no open runtime here: got <AgentRuntime closed")
    assert {} == await shutdown_all_worker_pools()


def test_each_loop_has_its_own() -> None:
    """One after the other, and a pool of a loop that has gone is of no use in the next one."""
    pools: list[Any] = []

    async def main() -> None:
        pool = await get_worker_pool("p", "asyncio" if pools else "queue_asyncio")
        pools.append(pool)
        assert 2 == await pool.asubmit(double, 1)
        if len(pools) > 1:
            with pytest.raises(WorkerPoolClosedError):
                await pools[0].__aenter__()

    for backend in ("asyncio", "trio", "asyncio"):
        anyio.run(main, backend=backend)
    assert 3 == len(set(pools))
    assert ["closed"] * 3 == [pool.state for pool in pools]


async def test_no_loop() -> None:
    """It takes one."""
    with pytest.raises(anyio.NoEventLoopError):
        await anyio.to_thread.run_sync(lambda: get_worker_pool("p").send(None))
