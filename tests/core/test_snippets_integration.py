"""Programs written as the specification's chapters on usage and integration have them.

Each makes the same calls in the same order and expects the same outcomes, with other names and other data, in a program
of plain asyncio and in one of plain trio.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

import agentcore
from agentcore import (
    AgentCapability,
    AgentConfig,
    AgentContext,
    AgentResult,
    AgentRuntime,
    BaseAgent,
    BaseTask,
    CircuitBreakerConfig,
    CircuitOpenError,
    QueueWorkerPool,
    QueueWorkerPoolConfig,
    RuntimeConfig,
    SystemContext,
    TaskExecutionError,
    TaskFactory,
    TaskPriority,
    TaskResult,
    TaskState,
    ThreadWorkerPool,
    WorkerPoolClosedError,
    WorkerPoolConfig,
    WorkerPoolType,
    clear_circuit_breakers,
    clear_registries,
    execute_task,
    get_circuit_breaker,
    get_registry,
    get_worker_pool,
    initialize_system,
    register_agents,
    register_task_handlers,
    register_tools,
    shutdown_all_worker_pools,
    shutdown_system,
)
from agentcore.config import SystemConfiguration, load_configuration
from agentcore.observe import init_logging, init_metrics
from tests.core.loops import ASYNCIO, TRIO, Loop


@pytest.fixture(params=[ASYNCIO, TRIO], ids=["asyncio", "trio"])
def loop(request: pytest.FixtureRequest) -> Loop:
    """Give the test one of the two kinds of program to live in."""
    chosen: Loop = request.param
    return chosen


@pytest.fixture(autouse=True)
def process_wide() -> Iterator[None]:
    """Forget what programs share: registries, circuits, the handler of the log, what is counted."""
    logger = logging.getLogger("agentcore")
    before = logger.level, list(logger.handlers), logger.propagate
    clear_registries()
    clear_circuit_breakers()
    yield
    clear_registries()
    clear_circuit_breakers()
    init_logging(load_configuration(env={}, logging={"enabled": False}).logging)
    init_metrics(load_configuration(env={}, metrics={"enabled": False}).metrics)
    logger.setLevel(before[0])
    logger.handlers[:] = before[1]
    logger.propagate = before[2]


class Cook(BaseAgent):
    """Base of the agents of a kitchen: notes its end, and turns an error into a result."""

    ended: list[str]

    async def initialize(self) -> bool:
        self.ended = []
        return True

    async def handle_error(self, error: Exception, context: AgentContext) -> AgentResult:
        return AgentResult.error_result({"error_type": type(error).__name__, "message": str(error)})


class Planner(Cook):
    """Makes the steps of a dish."""

    async def process(self, context: AgentContext) -> AgentResult:
        assert context.task is not None
        dish = context.task.input["dish"]
        if dish == "unknown":
            raise LookupError("no recipe")
        return AgentResult.success_result({"steps": [f"buy {dish}", f"cook {dish}"]})


class Worker(Cook):
    """Does the steps that it is given."""

    async def process(self, context: AgentContext) -> AgentResult:
        done = [f"{step}: done" for step in context.parameters["plan"]]
        return AgentResult.success_result({"log": done})


def planner() -> Planner:
    return Planner(
        AgentConfig(name="chef", agent_type="planner", capabilities={AgentCapability.PLANNING}, timeout=10.0)
    )


def worker() -> Worker:
    capabilities = {AgentCapability.EXECUTION, AgentCapability.TOOL_USE}
    return Worker(AgentConfig(name="cook", agent_type="worker", capabilities=capabilities, timeout=30.0))


# Several agents, one after the other.


async def prepare(dish: str) -> tuple[str, Any]:
    """Plan a dish, then do it: the program of the usage examples."""
    chef, cook = planner(), worker()
    task = TaskFactory.create_task("prepare", {"dish": dish, "guests": 4}, priority=TaskPriority.HIGH)
    planned = await chef.execute(AgentContext(task=task))
    if not planned.success:
        return "not planned", planned.error
    assert planned.output is not None
    done = await cook.execute(AgentContext(task=task, parameters={"plan": planned.output["steps"]}))
    return ("done", done.output) if done.success else ("not done", done.error)


@pytest.mark.parametrize(
    ("dish", "expected"),
    [
        ("soup", ("done", {"log": ["buy soup: done", "cook soup: done"]})),
        ("unknown", ("not planned", {"error_type": "LookupError", "message": "no recipe"})),
    ],
)
def test_a_workflow_of_two_agents(loop: Loop, dish: str, expected: tuple[str, Any]) -> None:
    """What the first one gives is the second one's parameter; a failure is told by its result."""

    async def main() -> None:
        assert await prepare(dish) == expected

    loop.run(main)


def test_the_same_workflow_in_a_runtime(loop: Loop) -> None:
    """By asks, in a strict one and in a hosted one."""

    async def main() -> None:
        for hosted in (False, True):
            async with AgentRuntime(hosted=hosted) as runtime:
                runtime.registry("agents").register("chef", planner())
                runtime.registry("agents").register("cook", worker())
                task = TaskFactory.create_task("prepare", {"dish": "soup"}, priority=TaskPriority.HIGH)
                planned = await runtime.ask("chef", AgentContext(task=task))
                assert planned.output is not None
                done = await runtime.ask("cook", {"plan": planned.output["steps"]})
                assert done.output == {"log": ["buy soup: done", "cook soup: done"]}

    loop.run(main)


# An external service behind circuits.


class Shop:
    """Orders at a supplier, and falls back where that is down."""

    def __init__(self) -> None:
        self.catalogue = get_circuit_breaker(
            "catalogue", CircuitBreakerConfig(failure_threshold=2, success_threshold=1, reset_timeout_ms=60_000)
        )
        self.orders = get_circuit_breaker(
            "orders", CircuitBreakerConfig(failure_threshold=1, success_threshold=1, reset_timeout_ms=30_000)
        )
        self.down = False
        self.calls = 0
        self.waiting: list[str] = []

    async def price(self, article: str) -> str:
        try:
            return await self.catalogue.execute(self._ask, article)
        except CircuitOpenError:
            return f"{article}: as last week"

    async def order(self, article: str) -> dict[str, str]:
        try:
            return {"status": await self.orders.execute(self._ask, article)}
        except CircuitOpenError:
            self.waiting.append(article)
            return {"status": "waits"}

    async def _ask(self, article: str) -> str:
        self.calls += 1
        if self.down:
            raise ConnectionError("no line")
        return f"{article}: here"


def test_a_service_behind_two_circuits(loop: Loop) -> None:
    """Each opens by itself; then nothing is called and the fall-back answers."""

    async def main() -> None:
        shop = Shop()
        assert await shop.price("salt") == "salt: here"
        assert await shop.order("salt") == {"status": "salt: here"}
        shop.down = True
        for _ in range(2):
            with pytest.raises(ConnectionError):
                await shop.price("salt")
        with pytest.raises(ConnectionError):
            await shop.order("salt")
        calls = shop.calls
        assert await shop.price("salt") == "salt: as last week"
        assert await shop.order("salt") == {"status": "waits"}
        assert (shop.calls, shop.waiting) == (calls, ["salt"])
        assert get_circuit_breaker("catalogue").is_open
        assert get_circuit_breaker("orders") is shop.orders

    loop.run(main)


# Pools for two kinds of work.


class Kitchen:
    """Fetches by a pool for what waits, and chops by a pool for what computes."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.fetched: list[str] = []
        self.pools: list[Any] = []

    async def work(self, articles: list[str], weights: list[int]) -> list[int]:
        """Do both; the program of the usage examples."""
        io_pool = await get_worker_pool("fetching", WorkerPoolType.QUEUE_ASYNCIO)
        cpu_pool = await get_worker_pool(
            "chopping", WorkerPoolType.THREAD, WorkerPoolConfig(workers=4, max_queue_size=100)
        )
        assert isinstance(io_pool, QueueWorkerPool)
        assert isinstance(cpu_pool, ThreadWorkerPool)
        self.pools = [io_pool, cpu_pool]
        for article in articles:
            await io_pool.submit(self._fetch, article)
        pieces = []
        for weight in weights:
            result = await cpu_pool.asubmit(self._chop, weight)
            pieces.append(result)
        await io_pool.shutdown(wait=True)
        await cpu_pool.ashutdown(wait=True)
        return pieces

    async def _fetch(self, article: str) -> str:
        await self.loop.sleep(0)
        self.fetched.append(article)
        return article

    @staticmethod
    def _chop(weight: int) -> int:
        return weight // 10


@pytest.mark.parametrize("place", ["outside", "strict", "hosted"])
def test_work_in_two_pools(loop: Loop, place: str) -> None:
    """Outside of any block and in each kind of runtime: everything is done when the pools are shut down."""

    async def main() -> None:
        kitchen = Kitchen(loop)
        if place == "outside":
            pieces = await kitchen.work(["salt", "rice", "leek"], [10, 25])
        else:
            async with AgentRuntime(hosted=place == "hosted"):
                pieces = await kitchen.work(["salt", "rice", "leek"], [10, 25])
        assert [1, 2] == pieces
        assert {"salt", "rice", "leek"} == set(kitchen.fetched)
        assert ["closed", "closed"] == [pool.state for pool in kitchen.pools]
        with pytest.raises(WorkerPoolClosedError, match="takes no jobs any more"):
            kitchen.pools[1].submit(len, "")

    loop.run(main)


# Handlers that are found by name.


class Dispatcher:
    """Executes tasks by what is registered for their type."""

    def __init__(self) -> None:
        self.registry = get_registry("task_handlers")

    async def dispatch(self, task: BaseTask) -> TaskResult:
        handler = await self.registry.get(task.type)
        if not handler:
            task.fail({"error": f"nobody does {task.type}"})
            return TaskResult.from_task(task)
        task.start()
        try:
            task.complete({"result": handler(task.input)})
        except Exception as error:  # noqa: BLE001 - it becomes the task's error
            task.fail({"error_type": type(error).__name__, "message": str(error)})
        return TaskResult.from_task(task)


def test_a_dispatcher_over_a_registry(loop: Loop) -> None:
    """Handlers are registered by their own names; an unknown type and a failure are states of the task."""
    handlers = get_registry("task_handlers")

    @handlers.decorator()
    def count_words(given: dict[str, Any]) -> int:
        return len(given["text"].split())

    @handlers.decorator()
    def divide(given: dict[str, Any]) -> float:
        return float(given["left"] / given["right"])

    async def main() -> None:
        dispatcher = Dispatcher()
        counted = await dispatcher.dispatch(TaskFactory.create_task("count_words", {"text": "two words"}))
        assert (counted.success, counted.output) == (True, {"result": 2})
        failed = await dispatcher.dispatch(TaskFactory.create_task("divide", {"left": 1, "right": 0}))
        assert (failed.state, failed.error) == (
            TaskState.FAILED,
            {"error_type": "ZeroDivisionError", "message": "division by zero"},
        )
        unknown = await dispatcher.dispatch(TaskFactory.create_task("sing"))
        assert (unknown.success, unknown.error) == (False, {"error": "nobody does sing"})

    loop.run(main)


def test_a_runtime_finds_the_same_handlers(loop: Loop) -> None:
    """What is registered for the process is executed by every runtime."""
    get_registry("task_handlers").register("count_words", lambda given: len(given["text"].split()))

    async def main() -> None:
        async with AgentRuntime() as runtime:
            assert await runtime.run("count_words", {"text": "three short words"}) == {"result": 3}

    loop.run(main)


# The start of a system, the execution of tasks, and the end.


async def start_system(file: Path) -> SystemConfiguration:
    """Load the configuration, begin to log and to count, register what there is, make the circuits."""
    configuration = load_configuration(file, env={"AGENTCORE_API_FAILURE_THRESHOLD": "2"})
    init_logging(configuration.logging)
    init_metrics(configuration.metrics)
    register_agents()
    register_task_handlers()
    register_tools()
    get_circuit_breaker(
        "supplier",
        CircuitBreakerConfig(
            failure_threshold=configuration.api_failure_threshold, reset_timeout_ms=configuration.api_reset_timeout
        ),
    )
    return configuration


def test_a_system_from_its_start_to_its_end(loop: Loop, tmp_path: Path) -> None:
    """Everything that the configuration says is in force, and tasks are executed with what is registered."""
    file, log = tmp_path / "agentcore.toml", tmp_path / "agentcore.log"
    file.write_text(
        f"""
io_workers = 3
api_reset_timeout = 1500
[logging]
level = "warning"
output = {str(log)!r}
[runtime]
in_flight = 7
grace = 0.0
""",
        encoding="utf-8",
    )
    seen: list[AgentRuntime] = []

    async def main() -> None:
        configuration = await start_system(file)
        assert (configuration.io_workers, configuration.cpu_workers) == (3, None)
        breaker = get_circuit_breaker("supplier")
        assert (breaker.config.failure_threshold, breaker.config.reset_timeout_ms) == (2, 1500)
        get_registry("agents").register("prepare_agent", planner)
        async with AgentRuntime(RuntimeConfig(**configuration.runtime.given())) as runtime:
            seen.append(runtime)
            assert runtime.config.in_flight == 7
            output = await execute_task("prepare", {"dish": "rice"}, TaskPriority.CRITICAL)
            assert output == {"steps": ["buy rice", "cook rice"]}
            with pytest.raises(ValueError, match="paint"):
                await execute_task("paint", {})
            with pytest.raises(TaskExecutionError, match="no recipe"):
                await execute_task("prepare", {"dish": "unknown"})
            logging.getLogger("agentcore.runtime").warning("almost done")
            logging.getLogger("agentcore.runtime").info("not shown")

    loop.run(main)
    assert seen[0].statistics().tasks.failed == 1
    text = log.read_text(encoding="utf-8")
    assert "almost done" in text
    assert "not shown" not in text


def test_registering_twice_changes_nothing(loop: Loop) -> None:
    """A program may start its system again."""

    async def main() -> None:
        for _ in range(2):
            register_agents()
            register_task_handlers()
            register_tools()
        assert agentcore.register_agents() == []

    loop.run(main)


def test_a_task_without_a_runtime(loop: Loop) -> None:
    """As the integration chapter has it: the factory makes an agent for one task, which is ended afterwards."""
    made: list[Planner] = []

    def factory() -> Planner:
        made.append(planner())
        return made[-1]

    get_registry("agents").register("prepare_agent", factory)

    async def main() -> None:
        assert await execute_task("prepare", {"dish": "rice"}) == {"steps": ["buy rice", "cook rice"]}
        with pytest.raises(TaskExecutionError):
            await execute_task("prepare", {"dish": "unknown"})

    loop.run(main)
    assert [True, True] == [agent.is_terminated for agent in made]


# The start and the end as the integration chapter writes them itself, with our parts.


async def open_kitchen() -> SystemContext:
    """Do what `initialize_system` does, step by step."""
    config = load_configuration(env={}, io_workers=2, logging={"enabled": False}, metrics={"enabled": False})
    init_logging(config.logging)
    init_metrics(config.metrics)
    io_pool = await get_worker_pool(
        "io_tasks", WorkerPoolType.QUEUE_ASYNCIO, QueueWorkerPoolConfig(workers=config.io_workers)
    )
    cpu_pool = await get_worker_pool("cpu_tasks", WorkerPoolType.THREAD, WorkerPoolConfig(workers=config.cpu_workers))
    register_agents()
    register_task_handlers()
    register_tools()
    api_circuit = get_circuit_breaker(
        "api_service",
        CircuitBreakerConfig(failure_threshold=config.api_failure_threshold, reset_timeout_ms=config.api_reset_timeout),
    )
    return SystemContext(io_pool=io_pool, cpu_pool=cpu_pool, api_circuit=api_circuit)


async def close_kitchen(loop: Loop, system_context: SystemContext, timeout: float = 30.0) -> list[str]:
    """Do what `shutdown_system` does, step by step; return what there was to tell."""
    told = []
    system_context.accepting_tasks = False
    try:
        await loop.give_up(timeout / 2, system_context.task_queue.join)
    except TimeoutError:
        told.append("tasks have not ended")
    for agent in system_context.active_agents:
        told.append(f"{agent.name} goes home")
        await agent.terminate()
    await shutdown_all_worker_pools(wait=True, timeout=timeout / 2)
    return told


async def order(task_type: str, input_data: dict[str, Any], priority: TaskPriority = TaskPriority.NORMAL) -> Any:
    """Do what `execute_task` does, step by step."""
    task = TaskFactory.create_task(task_type, input_data, priority=priority)
    agent_factory = await get_registry("agents").get(f"{task_type}_agent")
    if not agent_factory:
        raise ValueError(f"nobody does {task_type}")
    agent = agent_factory()
    context = AgentContext(task=task)
    try:
        result = await agent.execute(context)
        if result.success:
            return result.output
        raise TaskExecutionError(f"not done: {result.error}")
    finally:
        await agent.terminate()


@pytest.mark.parametrize("place", ["outside", "strict", "hosted"])
def test_a_system_written_by_hand(loop: Loop, place: str) -> None:
    """Its three functions, as a program of its own has them, work with the parts of this library wherever they run."""
    get_registry("agents").register("prepare_agent", planner)
    delivered: list[str] = []

    async def deliver(dish: str) -> None:
        await loop.sleep(0)
        delivered.append(dish)

    async def work() -> SystemContext:
        system = await open_kitchen()
        assert (system.runtime is None) == (place == "outside")
        assert {"steps": ["buy rice", "cook rice"]} == await order("prepare", {"dish": "rice"}, TaskPriority.HIGH)
        with pytest.raises(ValueError, match="nobody does paint"):
            await order("paint", {})
        with pytest.raises(TaskExecutionError, match="no recipe"):
            await order("prepare", {"dish": "unknown"})
        assert 4 == await system.cpu_pool.asubmit(len, "rice")
        await system.io_pool.submit(deliver, "rice")
        assert [] == await close_kitchen(loop, system)
        return system

    async def main() -> None:
        if place == "outside":
            system = await work()
        else:
            async with AgentRuntime(hosted=place == "hosted"):
                system = await work()
        assert (["rice"], False) == (delivered, system.accepting_tasks)
        assert ("closed", "closed") == (system.io_pool.state, system.cpu_pool.state)

    loop.run(main)


def test_a_system_written_by_hand_ends_what_does_not_end(loop: Loop) -> None:
    """When the first half of the time is over agents are terminated, which ends their tasks; jobs have the second half."""

    class Stubborn(Cook):
        async def process(self, context: AgentContext) -> AgentResult:
            await loop.sleep(3600)
            raise AssertionError

    async def main() -> None:
        async with AgentRuntime() as runtime:
            system = await open_kitchen()
            config = AgentConfig(name="stubborn", agent_type="cook", timeout=3600.0, terminate_timeout=1.0)
            runtime.registry("agents").register("idle", planner())
            runtime.registry("agents").register("stew_agent", lambda: Stubborn(config))
            handle = await runtime.submit("stew")
            await system.io_pool.submit(loop.sleep, 3600)
            await loop.sleep(1)
            told = await close_kitchen(loop, system, timeout=8.0)
            assert ["tasks have not ended", "chef goes home", "stubborn goes home"] == told
            result = await handle.wait()
            assert (TaskState.FAILED, "AgentTerminatedError") == (result.state, result.error["error_type"])  # type: ignore[index]
            assert "closed" == system.io_pool.state

    loop.simulate(main)


def test_the_system_of_the_library_does_the_same(loop: Loop) -> None:
    """The three calls in its stead, with tasks in a runtime, which are told why they end."""
    get_registry("agents").register("prepare_agent", planner)

    async def main() -> None:
        config = load_configuration(env={}, logging={"enabled": False}, metrics={"enabled": False})
        system = await initialize_system(config)
        output = await execute_task("prepare", {"dish": "rice"}, TaskPriority.HIGH)
        assert {"steps": ["buy rice", "cook rice"]} == output
        await system.io_pool.submit(loop.sleep, 3600)
        assert system.runtime is not None

        @system.runtime.handler("stew")
        async def stew(_: dict[str, Any]) -> None:
            await loop.sleep(3600)

        handle = await system.runtime.submit("stew")
        await loop.sleep(1)
        began = anyio.current_time()
        report = await shutdown_system(system, timeout=8.0)
        assert report is not None
        assert (False, 8.0) == (report.drained, anyio.current_time() - began)
        assert (TaskState.CANCELED, "the system is shutting down") == (handle.state, handle.task.cancel_reason)
        assert ("closed", "closed") == (system.io_pool.state, system.cpu_pool.state)

    loop.simulate(main)
