"""The end of a whole system: in order, in time, and whoever is cancelled."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import anyio
import pytest

from agentcore import (
    AgentCrashedError,
    AgentError,
    AgentRuntime,
    ConfigurationError,
    QueueWorkerPoolConfig,
    RuntimeClosedError,
    SystemContext,
    TaskState,
    ThreadWorkerPool,
    WorkerPoolClosedError,
    WorkerPoolConfig,
    execute_task,
    get_circuit_breaker,
    get_registry,
    get_worker_pool,
    initialize_system,
    shutdown_system,
)
from agentcore.testing import cancel_everywhere, simulate
from tests.core.systems import QUIET, Clerk, check_over, forever, of, process_of_its_own

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def of_its_own() -> Iterator[None]:
    """Begin without anything of the process, and put its log back."""
    with process_of_its_own():
        yield


@simulate(runs=20)
async def test_tasks_come_to_their_own_end() -> None:
    """Nothing new is taken; what there is goes on, and so do the jobs in the pools."""
    system = await initialize_system(QUIET)
    done: list[str] = []

    async def write(line: str) -> None:
        await anyio.sleep(2)
        done.append(line)

    @of(system).handler("work")
    async def work(_: dict[str, Any]) -> dict[str, Any]:
        await anyio.sleep(3)
        await system.io_pool.submit(write, "written at the end")
        return {}

    handle = await of(system).submit("work")
    await anyio.wait_all_tasks_blocked()
    system.accepting_tasks = False
    with pytest.raises(RuntimeClosedError, match="got a task of type 'work' in state 'draining'"):
        await of(system).submit("work")
    report = await shutdown_system(system)
    assert (TaskState.COMPLETED, ["written at the end"]) == (handle.state, done)
    assert report is not None
    assert (True, 5.0) == (report.drained, anyio.current_time())
    check_over(system)


@simulate(runs=20)
async def test_half_of_the_time_is_for_the_tasks_and_half_for_the_pools() -> None:
    """What does not end is cancelled with the reason, the jobs have the other half; the report names both."""
    system = await initialize_system(QUIET)
    of(system).handler("hang")(forever)
    began = anyio.current_time()
    handle = await of(system).submit("hang")
    await system.io_pool.submit(forever)
    ended: list[float] = []

    async def watch() -> None:
        await handle.wait()
        ended.append(anyio.current_time() - began)

    async with anyio.create_task_group() as group:
        group.start_soon(watch)
        report = await shutdown_system(system, timeout=8)
    assert ([4.0], 8.0) == (ended, anyio.current_time() - began)
    assert (TaskState.CANCELED, "the system is shutting down") == (handle.state, handle.task.cancel_reason)
    assert report is not None
    assert (False, "the system is shutting down") == (report.drained, report.reason)
    assert [handle.id] == [result.task_id for result in report.cut_short]
    assert ("forever in pool io_tasks",) == report.jobs_cut_short
    check_over(system)


async def test_agents_end_after_the_tasks_and_before_the_pools() -> None:
    """So that an agent can write down by a pool what it has left."""
    system = await initialize_system(QUIET)
    log: list[Any] = []

    async def at_end() -> Any:
        return len(system.task_queue), await system.cpu_pool.asubmit(str, "by the pool")

    clerk = Clerk(log, at_end)
    of(system).registry("agents").register("clerk", clerk)
    assert {"n": 1} == await execute_task("clerk", {"n": 1})
    assert (clerk,) == system.active_agents
    await shutdown_system(system)
    assert [(0, "by the pool")] == log
    assert () == system.active_agents


async def test_agents_of_running_tasks_are_active() -> None:
    """Those of the process that are shared are not: they have other users."""
    shared, log = Clerk([]), []
    get_registry("agents").register("shared", shared)
    get_registry("agents").register("clerk", lambda: Clerk(log))
    inside = anyio.Event()
    async with await initialize_system(QUIET) as system:

        @of(system).handler("hold")
        async def hold(_: object) -> None:
            inside.set()
            await anyio.sleep_forever()

        await execute_task("shared", {})
        await execute_task("clerk", {})
        assert (["agent"], ()) == (log, system.active_agents)
        handle = await of(system).submit("hold")
        await inside.wait()
        assert ["hold"] == [agent.name for agent in system.active_agents]
        handle.cancel()
    assert not shared.is_terminated


async def test_a_thread_that_does_not_come_back_holds_nothing_up() -> None:
    """The task that waits for it is told, the thread is left behind and named."""
    system = await initialize_system(QUIET)
    stuck, began = threading.Event(), anyio.Event()
    token = anyio.lowlevel.current_token()

    def wait() -> None:
        anyio.from_thread.run_sync(began.set, token=token)
        stuck.wait()

    try:

        @of(system).handler("compute")
        async def compute(_: object) -> None:
            await system.cpu_pool.asubmit(wait)

        handle = await of(system).submit("compute")
        await began.wait()
        with anyio.fail_after(5):
            report = await shutdown_system(system, timeout=0.1)
        assert report is not None
        assert [True] == [name.endswith("wait in pool cpu_tasks") for name in report.jobs_cut_short]
        assert handle.task.is_finished
        assert "closed" == system.cpu_pool.state
    finally:
        stuck.set()
    for thread in threading.enumerate():
        if thread.name.startswith("cpu_tasks"):
            thread.join(5)
    check_over(system)


@simulate(runs=20)
async def test_who_is_cancelled_waits_for_nothing_but_the_unwinding() -> None:
    """The system is closed all the same, and the time for draining is not used up."""
    system = await initialize_system(QUIET)
    of(system).handler("hang")(forever)
    handle = await of(system).submit("hang")
    await system.io_pool.submit(forever)
    with anyio.move_on_after(2) as scope:
        await shutdown_system(system, timeout=1000)
    assert (True, 2.0, TaskState.CANCELED) == (scope.cancelled_caught, anyio.current_time(), handle.state)
    check_over(system)


@pytest.mark.parametrize("load", [pytest.param("idle", marks=pytest.mark.thorough), "busy"])
def test_shutting_down_can_be_cancelled_anywhere(load: str) -> None:
    """By a scope or by asyncio's own means: afterwards nothing is left, and nobody waits for ever."""

    async def build() -> SystemContext:
        system = await initialize_system(QUIET)
        of(system).registry("agents").register("clerk", Clerk([]))
        if load == "busy":
            of(system).handler("hang")(forever)
            await of(system).submit("hang")
            await system.io_pool.submit(forever)
        return system

    async def check(system: SystemContext) -> None:
        await shutdown_system(system, timeout=1)
        check_over(system)

    cancel_everywhere(
        lambda system: shutdown_system(system, timeout=10),
        build=build,
        check=check,
        schedules=("fifo", "walk/1"),
        modes=("block", "wake", "deadline", "native"),
        within=20,
    )


@simulate(runs=20)
async def test_shutting_down_twice_is_shutting_down_once() -> None:
    """Later calls give the same report; calls at the same time wait for one end, and the more impatient one decides when."""
    system = await initialize_system(QUIET)
    of(system).handler("hang")(forever)
    await of(system).submit("hang")
    reports = []

    async def shut_down(timeout: float) -> None:
        reports.append(await shutdown_system(system, timeout))

    async with anyio.create_task_group() as group:
        group.start_soon(shut_down, 100)
        group.start_soon(shut_down, 6)
    assert 3.0 == anyio.current_time()
    assert await system.aclose() is of(system).report
    assert {of(system).report} == {*reports} or reports[0].cut_short == reports[1].cut_short
    check_over(system)


async def test_failures_of_the_background_are_raised_once() -> None:
    """When everything is closed; they are not lost, and not told twice."""
    system = await initialize_system(QUIET)

    @of(system).handler("fail")
    def fail(_: object) -> None:
        raise ValueError("out of ink")

    await of(system).submit("fail")
    await system.task_queue.join()
    with pytest.raises(AgentCrashedError, match="out of ink"):
        await shutdown_system(system)
    check_over(system)
    assert await shutdown_system(system) is of(system).report


# ---------------------------------------------------------------------------------------------------------- as a block


@simulate(runs=10)
async def test_an_exception_in_the_block_cuts_everything_short() -> None:
    """It flies untouched, and nothing is waited for."""
    with pytest.raises(ZeroDivisionError):
        async with await initialize_system(QUIET) as system:
            of(system).handler("hang")(forever)
            handle = await of(system).submit("hang")
            await system.io_pool.submit(forever)
            await anyio.sleep(1)
            raise ZeroDivisionError
    assert (1.0, TaskState.CANCELED) == (anyio.current_time(), handle.state)
    check_over(system)


async def test_an_exception_in_the_block_does_not_hide_the_others() -> None:
    """What failed in the background is raised together with it."""
    with pytest.raises(AgentCrashedError) as caught:
        async with await initialize_system(QUIET) as system:

            @of(system).handler("fail")
            def fail(_: object) -> None:
                raise ValueError("out of ink")

            await of(system).submit("fail")
            await system.task_queue.join()
            raise ZeroDivisionError
    assert isinstance(caught.value.exceptions[0], ZeroDivisionError)
    assert 2 == len(caught.value.exceptions)
    check_over(system)


# -------------------------------------------------------------------------------------------------------- what is wrong


@pytest.mark.parametrize("place", ["task", "job", "thread"])
async def test_a_system_is_not_shut_down_from_its_inside(place: str) -> None:
    """It would wait for itself: the error says what can be done there, and nothing has happened."""
    async with await initialize_system(QUIET) as system:

        async def inside(_: object = None) -> str:
            with pytest.raises(AgentError, match="set accepting_tasks = False there, and call it outside"):
                await shutdown_system(system)
            return "told"

        if place == "task":
            of(system).handler("inside")(inside)
            assert {"result": "told"} == await of(system).run("inside")
        elif place == "job":
            assert "told" == await system.io_pool.asubmit(inside)
        else:
            assert "told" == await system.cpu_pool.asubmit(of(system).from_thread, inside)
        assert system.accepting_tasks


async def test_what_is_not_usable_is_explained() -> None:
    """Each argument, with the remedy; the system goes on."""
    async with await initialize_system(QUIET) as system:
        parts: dict[str, Any] = {
            "io_pool": system.io_pool,
            "cpu_pool": system.cpu_pool,
            "api_circuit": system.api_circuit,
        }
        with pytest.raises(
            ConfigurationError, match="io_pool of a system must be a BaseWorkerPool: got 7; pass one of"
        ):
            SystemContext(**{**parts, "io_pool": 7})
        with pytest.raises(ConfigurationError, match="api_circuit of a system must be a CircuitBreaker: got None"):
            SystemContext(**{**parts, "api_circuit": None})
        with pytest.raises(
            ConfigurationError, match="runtime of a system must be a AgentRuntime: got 'mine'; leave it"
        ):
            SystemContext(**parts, runtime="mine")  # type: ignore[arg-type]
        with pytest.raises(
            ConfigurationError, match=r"timeout of shutdown_system must be .*, 0 or more: got None; use 0"
        ):
            await shutdown_system(system, None)  # type: ignore[arg-type]
        with pytest.raises(
            ConfigurationError, match=r"timeout of shutdown_system must be .*, 0 or more: got -1; use 0"
        ):
            await shutdown_system(system, -1)
        with pytest.raises(ConfigurationError, match="shutdown_system takes a SystemContext: got None; pass what"):
            await shutdown_system(None)  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match="accepting_tasks of a system must be True or False: got 0"):
            system.accepting_tasks = 0  # type: ignore[assignment]
        system.accepting_tasks = True
        assert system.accepting_tasks
        system.accepting_tasks = False
        with pytest.raises(RuntimeClosedError, match="has stopped accepting tasks stays so"):
            system.accepting_tasks = True


async def test_another_thread_cannot_end_it() -> None:
    """A system belongs to its event loop."""
    async with await initialize_system(QUIET) as system:

        def end() -> None:
            with pytest.raises(AgentError, match="must be called in its event loop"):
                system.accepting_tasks = False

        await system.cpu_pool.asubmit(end)
        assert system.accepting_tasks


# ------------------------------------------------------------------------------------------------- made by one's own hand


async def test_a_system_without_a_runtime() -> None:
    """Of pools that belong to the event loop: shutting it down ends those two, and no others."""
    io_pool = await get_worker_pool("io", "queue_asyncio", QueueWorkerPoolConfig(workers=1))
    cpu_pool = await get_worker_pool("cpu", "thread", WorkerPoolConfig(workers=1))
    other = await get_worker_pool("other", "thread")
    system = SystemContext(io_pool=io_pool, cpu_pool=cpu_pool, api_circuit=get_circuit_breaker("api"))
    assert (None, (), True) == (system.runtime, system.active_agents, system.accepting_tasks)
    future = cpu_pool.submit(len, "four")  # type: ignore[union-attr]
    await system.task_queue.join()
    assert await shutdown_system(system) is None
    assert 4 == await future
    assert ("closed", "closed", "open") == (io_pool.state, cpu_pool.state, other.state)
    await shutdown_system(system)
    await other.shutdown()
    await anyio.wait_all_tasks_blocked()
    check_over(system)


@simulate(runs=10)
async def test_a_system_without_a_runtime_has_the_same_time_for_its_jobs() -> None:
    """Half of the whole; an exception in the block leaves them none."""
    for timeout, expected in ((6, 3.0), (None, 0.0)):
        began = anyio.current_time()
        io_pool = await get_worker_pool("io")
        cpu_pool = await get_worker_pool("cpu", "thread")
        system = SystemContext(io_pool=io_pool, cpu_pool=cpu_pool, api_circuit=get_circuit_breaker("api"))
        await io_pool.submit(forever)  # type: ignore[misc]
        await anyio.wait_all_tasks_blocked()
        if timeout is not None:
            await shutdown_system(system, timeout)
        else:
            with pytest.raises(ZeroDivisionError):
                async with system:
                    raise ZeroDivisionError
        assert expected == anyio.current_time() - began
        check_over(system)


async def test_a_strict_runtime_is_left_by_its_own_block() -> None:
    """Shutting the system down ends everything in it."""
    async with AgentRuntime() as runtime:
        system = SystemContext(
            io_pool=await get_worker_pool("io"),
            cpu_pool=await get_worker_pool("cpu", "thread"),
            api_circuit=get_circuit_breaker("api"),
        )
        assert system.runtime is runtime
        report = await shutdown_system(system)
        assert report is runtime.report
        assert "closed" == runtime.health().state
        with pytest.raises(WorkerPoolClosedError):
            await system.cpu_pool.asubmit(len, "")
    check_over(system)


async def test_pools_that_are_not_of_the_runtime_end_too() -> None:
    """Whoever puts them into a system wants them to end with it."""
    async with AgentRuntime() as runtime:
        cpu_pool = ThreadWorkerPool("cpu_tasks of its own")
        system = SystemContext(
            io_pool=runtime.pool("io"), cpu_pool=cpu_pool, api_circuit=get_circuit_breaker("api"), runtime=runtime
        )
        assert 4 == await cpu_pool.asubmit(len, "four")
        await shutdown_system(system)
    check_over(system)
