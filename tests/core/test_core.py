"""The parts of the core as a user meets them, in a program of plain asyncio.

One class for each component, as the specification's chapter on testing has it, and its
fixtures. What only one backend can show is elsewhere: the other test modules run their
tests on every loop.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import anyio
import attrs
import pytest

from agentcore import (
    AgentConfig,
    AgentContext,
    AgentExecutionError,
    AgentInitializationError,
    AgentResult,
    AgentState,
    AgentTerminatedError,
    AgentTimeoutError,
    BaseTask,
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitOpenError,
    CircuitState,
    ClassRegistry,
    FunctionRegistry,
    Registry,
    RegistryError,
    TaskFactory,
    TaskPriority,
    TaskResult,
    TaskState,
    TaskStateError,
    TaskTimeoutError,
    clear_registries,
    get_class_registry,
    get_function_registry,
    get_registry,
)
from agentcore.testing import simulate
from tests.core.fakes import (
    OK,
    Gate,
    MockAgent,
    Step,
    configuration,
    hanging,
    raising,
    returning,
    task_in,
)
from tests.core.worker_pools import TestWorkerPool  # noqa: F401 - collected with those below


@pytest.fixture
def agent_config() -> AgentConfig:
    """Configure an agent as most tests want it."""
    return configuration()


@pytest.fixture
def mock_agent(agent_config: AgentConfig) -> MockAgent:
    """Make an agent that succeeds until it is told otherwise."""
    return MockAgent(agent_config)


@pytest.fixture
def circuit_config() -> CircuitBreakerConfig:
    """Configure a circuit breaker that opens early and tries again soon."""
    return CircuitBreakerConfig(failure_threshold=3, success_threshold=2, reset_timeout_ms=100)


@pytest.fixture
def circuit(circuit_config: CircuitBreakerConfig) -> CircuitBreaker:
    """Make a circuit breaker that has seen nothing yet."""
    return CircuitBreaker("test_service", circuit_config)


@pytest.fixture
def registry() -> Registry[str]:
    """Make a registry of strings."""
    return Registry[str]("words")


@pytest.fixture
def function_registry() -> FunctionRegistry:
    """Make a registry of functions."""
    return FunctionRegistry("functions")


@pytest.fixture
def class_registry() -> ClassRegistry:
    """Make a registry of classes."""
    return ClassRegistry("classes")


@pytest.fixture
def no_global_registries() -> Iterator[None]:
    """Leave no process-wide registry behind, and find none."""
    clear_registries()
    yield
    clear_registries()


class TestAgent:
    """The life of an agent, its errors, its limits and its end."""

    @pytest.mark.asyncio
    async def test_lifecycle(self, mock_agent: MockAgent) -> None:
        """An agent is IDLE before and after its work, and TERMINATED at the end."""
        seen = [mock_agent.state]
        ready = await mock_agent.initialize()
        results = [await step(AgentContext()) for step in (mock_agent.process, mock_agent.execute)]
        seen.append(mock_agent.state)
        await mock_agent.terminate()
        seen.append(mock_agent.state)
        assert (ready, [result.success for result in results]) == (True, [True, True])
        assert seen == [AgentState.IDLE, AgentState.IDLE, AgentState.TERMINATED]

    @pytest.mark.asyncio
    async def test_states_seen_from_inside(self, mock_agent: MockAgent) -> None:
        """Each step of an execution sees its own state, and `is_busy` follows it."""
        mock_agent.on_process = raising(ValueError("no"))
        await mock_agent.execute(AgentContext())
        assert mock_agent.calls == ["initialize", "process", "handle_error"]
        assert mock_agent.states == [
            AgentState.INITIALIZING,
            AgentState.PROCESSING,
            AgentState.ERROR,
        ]
        assert (mock_agent.is_idle, mock_agent.is_busy) == (True, False)

    @pytest.mark.asyncio
    @pytest.mark.parametrize("step", [returning(False), raising(OSError("disk"))])
    async def test_failed_initialization(self, mock_agent: MockAgent, step: Step) -> None:
        """An agent that cannot start handles that as an error, processes nothing, and tries again."""
        mock_agent.on_initialize = step
        assert (await mock_agent.execute(AgentContext())).error == {"sorry": True}
        assert mock_agent.calls == ["initialize", "handle_error"]
        assert isinstance(mock_agent.errors[0], AgentInitializationError)
        assert "mock" in str(mock_agent.errors[0])
        mock_agent.on_initialize = None
        assert (await mock_agent.execute(AgentContext())).success is True

    @pytest.mark.asyncio
    @pytest.mark.parametrize(
        "error",
        [
            ValueError("bad"),
            TimeoutError("its own, not the deadline"),
            ExceptionGroup("both", [KeyError("a"), OSError("b")]),
            AgentTimeoutError("somebody else's"),
        ],
        ids=lambda error: type(error).__name__,
    )
    async def test_error_reaches_handle_error_as_it_is(self, mock_agent: MockAgent, error: Exception) -> None:
        """`handle_error` gets the very exception that `process` raised, and its result is the outcome."""
        mock_agent.on_process = raising(error)
        result = await mock_agent.execute(AgentContext())
        assert (result.success, result.error) == (False, {"sorry": True})
        assert mock_agent.errors == [error]
        assert result.cause is error
        assert mock_agent.metrics.timeouts == 0

    @pytest.mark.asyncio
    async def test_failing_handle_error(self, mock_agent: MockAgent) -> None:
        """When handling fails too, both errors arrive and the agent shows ERROR until it works again."""
        first, second = ValueError("first"), KeyError("second")
        mock_agent.on_process, mock_agent.on_error = raising(first), raising(second)
        with pytest.raises(AgentExecutionError, match="mock") as caught:
            await mock_agent.execute(AgentContext())
        assert caught.value.errors == (first, second)
        assert caught.value.__cause__ is second
        assert mock_agent.state == AgentState.ERROR
        mock_agent.on_process = None
        assert (await mock_agent.execute(AgentContext()), mock_agent.is_idle) == (OK, True)

    @pytest.mark.parametrize("step", ["on_initialize", "on_process"])
    @simulate(runs=5, backends=["asyncio"])
    async def test_deadline(self, agent_config: AgentConfig, step: str) -> None:
        """A step that hangs is cut at the timeout, handled as an error, and the agent works again."""
        agent = MockAgent(attrs.evolve(agent_config, timeout=5.0))
        setattr(agent, step, hanging)
        assert (await agent.execute(AgentContext())).success is False
        kinds = {"on_initialize": AgentInitializationError, "on_process": AgentTimeoutError}
        assert [type(error) for error in agent.errors] == [kinds[step]]
        assert asyncio.get_running_loop().time() == 5.0
        setattr(agent, step, None)
        assert (await agent.execute(AgentContext())).success is True
        assert agent.is_idle is True

    @pytest.mark.asyncio
    async def test_cancelled_by_its_caller(self, mock_agent: MockAgent) -> None:
        """Cancellation passes through: nothing handles it, and the agent is IDLE and works again."""
        mock_agent.on_process = gate = Gate()
        run = asyncio.create_task(mock_agent.execute(AgentContext()))
        await gate.entered.wait()
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        assert (mock_agent.errors, gate.inside, mock_agent.is_idle) == ([], 0, True)
        assert mock_agent.metrics.cancellations == 1
        mock_agent.on_process = None
        assert (await mock_agent.execute(AgentContext())).success is True

    @pytest.mark.parametrize(("limit", "peak"), [(1, 1), (3, 3), (None, 12)])
    @simulate(runs=20, backends=["asyncio"])
    async def test_concurrency_limit(self, agent_config: AgentConfig, limit: int | None, peak: int) -> None:
        """At most the configured number of executions run at once, and each gives its own result."""
        agent = MockAgent(attrs.evolve(agent_config, max_concurrency=limit))
        agent.on_process = gate = Gate()
        async with asyncio.TaskGroup() as group:
            contexts = [AgentContext(parameters={"number": number}) for number in range(12)]
            runs = [group.create_task(agent.execute(context)) for context in contexts]
            await anyio.wait_all_tasks_blocked()
            assert (gate.inside, agent.state) == (peak, AgentState.PROCESSING)
            gate.opened.set()
        assert [run.result().output for run in runs] == [{"number": n} for n in range(12)]
        assert (gate.peak, agent.state) == (peak, AgentState.IDLE)

    @pytest.mark.asyncio
    async def test_terminated_agent_refuses(self, mock_agent: MockAgent) -> None:
        """After `terminate`, which can be called again, nothing runs any more."""
        await mock_agent.terminate()
        await mock_agent.terminate()
        with pytest.raises(AgentTerminatedError, match="mock"):
            await mock_agent.execute(AgentContext())
        assert (mock_agent.calls, mock_agent.is_terminated) == ([], True)

    @pytest.mark.asyncio
    async def test_context_manager(self, mock_agent: MockAgent) -> None:
        """`async with` gives the agent and terminates it, whichever way the block is left."""

        async def leave_by(error: Exception) -> None:
            async with mock_agent as agent:
                assert agent is mock_agent
                assert (await agent.execute(AgentContext())).success is True
                raise error

        with pytest.raises(KeyError, match="block"):
            await leave_by(KeyError("block"))
        assert mock_agent.is_terminated is True

    @pytest.mark.asyncio
    async def test_agents_carry_out_tasks(self, agent_config: AgentConfig) -> None:
        """Agents made from a registry take tasks through their lives side by side, whatever becomes of each."""
        agents = ClassRegistry("agents")
        agents.register_class("divider")(Divider)
        tasks = [TaskFactory.create_task("divider", {"by": by}) for by in (1, 2, 0, 4)]

        async def carry_out(task: BaseTask) -> TaskResult:
            async with await agents.create_instance(task.type, agent_config) as agent:
                task.start()
                result = await agent.execute(AgentContext(task=task))
                if result.success:
                    task.complete(result.output)
                else:
                    task.fail(result.error)
            return TaskResult.from_task(task)

        results = await asyncio.gather(*(carry_out(task) for task in tasks))
        assert [result.success for result in results] == [True, True, False, True]
        assert [result.output for result in results] == [{"quotient": q} for q in (8, 4)] + [None, {"quotient": 2}]
        assert results[2].error == {"kind": "ZeroDivisionError"}
        assert {result.task_id for result in results} == {task.id for task in tasks}


class Divider(MockAgent):
    """Divides eight by the number in its task."""

    async def process(self, context: AgentContext) -> AgentResult:
        assert context.task is not None
        await asyncio.sleep(0)
        return AgentResult.success_result({"quotient": 8 // context.task.input["by"]})

    async def handle_error(self, error: Exception, context: AgentContext) -> AgentResult:
        return AgentResult.error_result({"kind": type(error).__name__})


class TestCircuitBreaker:
    """How a circuit opens, tries again and closes, by hand and around calls."""

    @pytest.mark.asyncio
    async def test_opens_after_failures(self, circuit: CircuitBreaker) -> None:
        """As many failures as the threshold says open the circuit, and no request is allowed."""
        for number in range(circuit.config.failure_threshold):
            assert (circuit.state, await circuit.allow_request()) == (CircuitState.CLOSED, True)
            await circuit.on_failure(f"error_{number}")
        assert circuit.state == CircuitState.OPEN
        assert (circuit.is_open, circuit.is_closed, circuit.is_half_open) == (True, False, False)
        assert await circuit.allow_request() is False

    @pytest.mark.asyncio
    async def test_failures_that_do_not_count(self, circuit: CircuitBreaker) -> None:
        """A success ends the row of failures, and what does not count towards the threshold is none."""
        for count in (True, True, False, False):
            await circuit.on_failure("OSError", count_towards_threshold=count)
        await circuit.on_success()
        await circuit.on_failure("OSError")
        await circuit.on_failure("KeyError")
        assert circuit.is_closed is True
        await circuit.on_failure("OSError")
        assert circuit.is_open is True
        assert (circuit.metrics.failures, circuit.metrics.excluded) == (5, 2)
        assert circuit.metrics.failures_by_type == {"OSError": 4, "KeyError": 1}

    @pytest.mark.parametrize(
        ("outcomes", "states"),
        [("ok ok", "HALF_OPEN CLOSED"), ("bad", "OPEN"), ("ok bad ok ok", "HALF_OPEN OPEN HALF_OPEN CLOSED")],
    )
    @simulate(runs=1, backends=["asyncio"])
    async def test_tries_again(self, circuit_config: CircuitBreakerConfig, outcomes: str, states: str) -> None:
        """After the reset time the circuit is half open: enough successes close it, a failure opens it anew."""
        circuit, seen = CircuitBreaker("test_service", circuit_config), []
        for _ in range(3):
            await circuit.on_failure("OSError")
        for outcome in outcomes.split():
            if circuit.is_open:
                await asyncio.sleep(0.0625)
                assert await circuit.allow_request() is False
                await asyncio.sleep(0.0625)
            assert (await circuit.allow_request(), circuit.is_half_open) == (True, True)
            await (circuit.on_success() if outcome == "ok" else circuit.on_failure("OSError"))
            seen.append(circuit.state.name)
        assert " ".join(seen) == states

    @simulate(runs=20, backends=["asyncio"])
    async def test_around_calls(self, circuit_config: CircuitBreakerConfig) -> None:
        """Too many failed calls keep all others away; then as many try again as the circuit needs successes."""
        circuit, calls, answer = CircuitBreaker("test_service", circuit_config), [], asyncio.Event()

        async def service(number: int) -> int:
            calls.append(number)
            if number < 3:
                raise ConnectionError(f"call {number}")
            await answer.wait()
            return number

        for number in range(3):
            with pytest.raises(ConnectionError, match=f"call {number}"):
                await circuit.execute(service, number)
        with pytest.raises(CircuitOpenError, match="test_service") as caught:
            await circuit.execute(service, 3)
        assert (caught.value.details["circuit_name"], caught.value.retry_after) == ("test_service", 0.1)
        await asyncio.sleep(0.125)
        asyncio.get_running_loop().call_later(0.5, answer.set)
        answers = await asyncio.gather(*(circuit.execute(service, n) for n in range(4, 14)), return_exceptions=True)
        assert [number for number in answers if isinstance(number, int)] == sorted(calls[3:])
        assert (len(calls), circuit.is_closed) == (5, True)
        assert (circuit.metrics.rejected, circuit.metrics.successes, circuit.metrics.opened_count) == (9, 2, 1)


TRANSITIONS: dict[str, Callable[[BaseTask], BaseTask]] = {
    "start": BaseTask.start,
    "complete": lambda task: task.complete({"late": 1}),
    "fail": lambda task: task.fail({"late": 1}),
}
LEGAL = {
    (TaskState.PENDING, "start"): TaskState.RUNNING,
    (TaskState.PENDING, "fail"): TaskState.FAILED,
    (TaskState.RUNNING, "complete"): TaskState.COMPLETED,
    (TaskState.RUNNING, "fail"): TaskState.FAILED,
}


class TestTask:
    """The states of a task, its history, its timeout and its result."""

    def test_lifecycle(self) -> None:
        """A task that runs to its end shows it in its state, its output and its history."""
        task = BaseTask.create("work", {"size": 1})
        assert (task.state, task.is_finished, task.duration_ms) == (TaskState.PENDING, False, None)
        assert task.start().state == TaskState.RUNNING
        assert task.complete({"done": 1}) is task
        assert (task.state, task.output, task.error) == (TaskState.COMPLETED, {"done": 1}, None)
        assert task.is_finished is True
        assert isinstance(task.duration_ms, int)
        assert [event["event_type"] for event in task.get_event_history()] == ["task_started", "task_completed"]

    @pytest.mark.parametrize("transition", TRANSITIONS)
    @pytest.mark.parametrize("state", TaskState)
    def test_every_transition(self, state: TaskState, transition: str) -> None:
        """A transition happens where it is legal; elsewhere it is an error and changes nothing at all."""
        task = task_in(state)
        before = task.to_dict() | {"duration_ms": None}
        if (target := LEGAL.get((state, transition))) is not None:
            assert TRANSITIONS[transition](task).state == target
            return
        with pytest.raises(TaskStateError) as caught:
            TRANSITIONS[transition](task)
        assert isinstance(caught.value, ValueError)
        assert [word in str(caught.value) for word in (task.id, state.name, transition)] == [True] * 3
        assert (caught.value.details["task_id"], caught.value.details["state"]) == (task.id, state)
        assert task.to_dict() | {"duration_ms": None} == before

    @pytest.mark.parametrize("state", TaskState)
    def test_cancel(self, state: TaskState) -> None:
        """An unfinished task is cancelled with the reason; a finished one stays as it is, without an error."""
        task, finished = task_in(state), task_in(state).is_finished
        before = (task.state, task.cancel_reason, task.get_event_history())
        assert task.cancel("too late") is task
        if finished:
            assert (task.state, task.cancel_reason, task.get_event_history()) == before
        else:
            assert (task.state, task.cancel_reason) == (TaskState.CANCELED, "too late")
            assert task.get_event_history()[-1]["event_type"] == "task_canceled"
            assert task.get_event_history()[-1]["data"] == {"reason": "too late"}

    def test_state_moves_by_transitions_alone(self) -> None:
        """Nobody sets the state of a task from outside."""
        task = BaseTask.create("work", {})
        with pytest.raises(AttributeError):
            task.state = TaskState.COMPLETED  # type: ignore[misc]
        assert task.state == TaskState.PENDING

    def test_checkpoints_and_history(self) -> None:
        """Checkpoints are kept with the newest on top, and the history tells everything in order."""
        task = BaseTask.create("work", {}).start()
        assert task.get_latest_checkpoint() is None
        assert task.checkpoint({"page": 1}).checkpoint({"page": 2}) is task
        assert task.get_latest_checkpoint() == {"page": 2}
        task.fail({"why": "broken"})
        history = task.get_event_history()
        assert [(event["sequence"], event["event_type"]) for event in history] == [
            (1, "task_started"),
            (2, "task_checkpoint"),
            (3, "task_checkpoint"),
            (4, "task_failed"),
        ]
        assert [event["at"] for event in history] == sorted(event["at"] for event in history)
        assert history[0]["at"].tzinfo is not None

    @pytest.mark.parametrize("state", TaskState)
    @simulate(runs=5, backends=["asyncio"])
    async def test_timeout(self, state: TaskState) -> None:
        """`with_timeout` works in every state, changes none, and cuts what is too slow."""
        task = task_in(state)
        before = (task.state, task.get_event_history())

        async def value() -> int:
            await asyncio.sleep(0)
            return 5

        assert await task.with_timeout(value(), 60_000) == 5
        with pytest.raises(TaskTimeoutError) as caught:
            await task.with_timeout(hanging(), 5)
        assert asyncio.get_running_loop().time() == 0.005
        assert isinstance(caught.value, TimeoutError)
        assert (caught.value.details["task_id"], caught.value.details["timeout_ms"]) == (task.id, 5)
        assert (task.state, task.get_event_history()) == before

    @simulate(runs=20, backends=["asyncio"])
    async def test_timeouts_in_parallel(self) -> None:
        """Of many coroutines at once each is cut, or not, by its own limit alone."""
        task = BaseTask.create("work", {}, timeout_ms=60_000)
        gate = asyncio.Event()

        async def patient(number: int) -> int:
            await gate.wait()
            return number

        runs = [asyncio.create_task(task.with_timeout(patient(number))) for number in range(10)]
        cut = await asyncio.gather(*(task.with_timeout(hanging(), 5) for _ in range(10)), return_exceptions=True)
        gate.set()
        assert [type(error) for error in cut] == [TaskTimeoutError] * 10
        assert await asyncio.gather(*runs) == list(range(10))

    @pytest.mark.parametrize("state", TaskState)
    def test_result(self, state: TaskState) -> None:
        """A result can be taken in any state and says what the task says."""
        task = task_in(state)
        result = TaskResult.from_task(task)
        assert (result.task_id, result.type, result.state) == (task.id, "work", state)
        assert (result.output, result.error) == (task.output, task.error)
        assert result.success is (state is TaskState.COMPLETED)

    def test_factory(self) -> None:
        """The factory makes what `create` makes, and every task has an id of its own."""
        made = TaskFactory.create_task("work", {"size": 1}, priority=TaskPriority.LOW, trace_id="t")
        assert (type(made), made.type, made.input) == (BaseTask, "work", {"size": 1})
        assert (made.priority, made.trace_id) == (TaskPriority.LOW, "t")
        assert BaseTask.create("work", {}).priority == TaskPriority.NORMAL
        assert len({TaskFactory.create_task("work", {}).id for _ in range(1000)}) == 1000


class TestRegistry:
    """Names, what they stand for, and many threads that ask at once."""

    def test_lifecycle(self, registry: Registry[str]) -> None:
        """An item is registered, found, listed, replaced and removed."""
        assert registry.register("one", "eins", language="de") == "eins"
        registry.register("two", "zwei")
        assert (registry.get_sync("one"), registry.has("one"), registry.size()) == ("eins", True, 2)
        assert (registry.list_names(), registry.list_items()) == (["one", "two"], ["eins", "zwei"])
        assert registry.list_all() == {"one": "eins", "two": "zwei"}
        assert (registry.get_metadata("one"), registry.get_metadata("two")) == ({"language": "de"}, {})
        registry.register("one", "uno", language="it")
        assert (registry.get_sync("one"), registry.get_metadata("one")) == ("uno", {"language": "it"})
        assert (registry.unregister("one"), registry.unregister("one")) == ("uno", None)
        assert (registry.has("one"), registry.get_metadata("one"), registry.size()) == (False, None, 1)
        registry.clear()
        assert (registry.size(), registry.list_all(), registry.get_sync("two")) == (0, {}, None)

    @pytest.mark.asyncio
    async def test_unknown_name(self, registry: Registry[str]) -> None:
        """A name that is not there gives None, asked for in either way."""
        assert (await registry.get("nobody"), registry.get_sync("nobody")) == (None, None)
        assert (registry.get_metadata("nobody"), registry.unregister("nobody")) == (None, None)

    def test_threads_lose_nothing(self, registry: Registry[str]) -> None:
        """Eight threads register, read, list and remove at once, and every item is there in the end."""
        barrier = threading.Barrier(8)

        def work(thread: int) -> int:
            barrier.wait(30)
            for number in range(200):
                registry.register(f"{thread}-{number}", str(number), thread=thread)
                assert registry.get_sync(f"{thread}-{number}") == str(number)
                assert registry.get_metadata(f"{thread}-{number}") == {"thread": thread}
                registry.register(f"gone-{thread}", "x")
                names = registry.list_names()
                assert len(names) == len(set(names))
                assert registry.unregister(f"gone-{thread}") == "x"
            return thread

        with ThreadPoolExecutor(8) as threads:
            assert list(threads.map(work, range(8))) == list(range(8))
        assert set(registry.list_names()) == {f"{t}-{n}" for t in range(8) for n in range(200)}

    @pytest.mark.asyncio
    async def test_functions(self, function_registry: FunctionRegistry) -> None:
        """A function is registered under its own name or another, and stays what it was."""

        @function_registry.register_function()
        def double(number: int) -> int:
            """Give the number twice."""
            return 2 * number

        @function_registry.register_function("later", group="slow")
        async def triple(number: int) -> int:
            return 3 * number

        assert await function_registry.get("double") is double
        assert (double(4), await triple(4)) == (8, 12)
        assert function_registry.list_names() == ["double", "later"]
        assert (function_registry.get_metadata("later") or {})["group"] == "slow"

    @pytest.mark.asyncio
    async def test_classes(self, class_registry: ClassRegistry) -> None:
        """A class is registered, stays what it was, and is instantiated by name with any arguments."""

        @class_registry.register_class("point", dimensions=2)
        class Point:
            def __init__(self, x: int, *, name: str = "") -> None:
                if x < 0:
                    raise ValueError("x is negative")
                self.x, self.name = x, name

        assert class_registry.get_sync("point") is Point
        point = await class_registry.create_instance("point", 3, name="centre")
        assert (type(point), point.x, point.name) == (Point, 3, "centre")
        assert await class_registry.create_instance("point", 3) is not point
        with pytest.raises(ValueError, match="x is negative"):
            await class_registry.create_instance("point", -1)
        with pytest.raises(RegistryError, match="circle"):
            await class_registry.create_instance("circle")

    def test_decorator(self, registry: Registry[str]) -> None:
        """The decorator registers under the name of what it decorates or the given one, and returns it."""
        anything = Registry[object]("anything")

        @anything.decorator()
        def first() -> None: ...

        @anything.decorator("renamed", kind="class")
        class Second: ...

        assert anything.list_all() == {"first": first, "renamed": Second}
        assert anything.get_metadata("renamed") == {"kind": "class"}
        with pytest.raises(RegistryError, match="name"):
            registry.decorator()("a string has no name of its own")

    @pytest.mark.usefixtures("no_global_registries")
    def test_process_wide_registries(self) -> None:
        """A name finds the same registry everywhere, and cannot be two kinds at once."""
        plain, functions, classes = get_registry("p"), get_function_registry("f"), get_class_registry("c")
        assert [type(found) for found in (plain, functions, classes)] == [Registry, FunctionRegistry, ClassRegistry]
        assert (get_registry("p"), get_function_registry("f"), get_class_registry("c")) == (plain, functions, classes)
        assert get_registry("q") is not plain
        for other in (get_function_registry, get_class_registry):
            with pytest.raises(RegistryError, match="p"):
                other("p")
