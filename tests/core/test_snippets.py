"""What the specification's snippets do, done again with other names and other data.

Each scenario makes the same calls in the same order and expects the same outcomes.
It runs in a program of plain asyncio and in a program of plain trio: `loop` is all
that such a program uses of its event loop, and nothing here knows about AnyIO.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from agentcore import (
    AgentCapability,
    AgentConfig,
    AgentContext,
    AgentError,
    AgentResult,
    AgentState,
    BaseAgent,
    BaseTask,
    CircuitBreakerError,
    CoreError,
    Registry,
    TaskError,
    TaskFactory,
    TaskNotFoundError,
    TaskPriority,
    TaskResult,
    TaskState,
    TaskStateError,
    clear_registries,
    get_class_registry,
    get_function_registry,
    get_registry,
)
from tests.core.loops import ASYNCIO, FOR_EVER, TRIO, Loop


@pytest.fixture(params=[ASYNCIO, TRIO], ids=["asyncio", "trio"])
def loop(request: pytest.FixtureRequest) -> Loop:
    """Give the test one of the two kinds of program to live in."""
    chosen: Loop = request.param
    return chosen


@pytest.fixture(autouse=True)
def no_registry_outlives_a_test() -> Iterator[None]:
    """Forget the process-wide registries, since scenarios name them as programs do."""
    clear_registries()
    yield
    clear_registries()


class Appraiser(BaseAgent):
    """Looks at the price in its task; an asking price below nothing is an error."""

    def __init__(self, config: AgentConfig, loop: Loop) -> None:
        super().__init__(config)
        self.loop = loop
        self.seen: list[tuple[str, AgentState]] = []

    async def initialize(self) -> bool:
        await self.loop.sleep(0)
        self.seen.append(("initialize", self.state))
        return True

    async def process(self, context: AgentContext) -> AgentResult:
        await self.loop.sleep(0)
        self.seen.append(("process", self.state))
        price = context.task.input["price"] if context.task else 1
        if price is None:
            await self.loop.sleep(FOR_EVER)
        if price < 0:
            raise ValueError("a price is never negative")
        return AgentResult.success_result({"worth": price * 2}, 0.25)

    async def handle_error(self, error: Exception, context: AgentContext) -> AgentResult:
        await self.loop.sleep(0)
        self.seen.append(("handle_error", self.state))
        return AgentResult.error_result({"kind": type(error).__name__, "text": str(error)}, 0.5)


def appraiser(loop: Loop, timeout: float | None = 30.0) -> Appraiser:
    """Configure an appraiser in the way that the specification's example does."""
    config = AgentConfig(
        name="old_books",
        agent_type="appraiser",
        capabilities={AgentCapability.EVALUATION},
        timeout=timeout,
    )
    return Appraiser(config, loop)


def test_agent_example(loop: Loop) -> None:
    """A configured agent executes a context and gives the result of its `process`."""

    async def main() -> None:
        agent = appraiser(loop)
        task = BaseTask.create("appraise", {"price": 21})
        result = await agent.execute(AgentContext(task=task))
        assert (result.success, result.output, result.error) == (True, {"worth": 42}, None)
        assert (agent.name, agent.agent_type, agent.state) == (
            "old_books",
            "appraiser",
            AgentState.IDLE,
        )
        assert task.state is TaskState.PENDING

    loop.run(main)


def test_agent_example_with_an_error(loop: Loop) -> None:
    """What `process` raises comes back as the result of `handle_error`, and the agent is idle again."""

    async def main() -> None:
        agent = appraiser(loop)
        task = BaseTask.create("appraise", {"price": -1})
        result = await agent.execute(AgentContext(task=task))
        assert (result.success, result.output) == (False, None)
        assert result.error == {"kind": "ValueError", "text": "a price is never negative"}
        assert agent.is_idle is True

    loop.run(main)


def test_agent_example_past_its_timeout(loop: Loop) -> None:
    """A `process` that sleeps in its own loop's way is cut at the configured timeout."""

    async def main() -> None:
        agent = appraiser(loop, timeout=30.0)
        task = BaseTask.create("appraise", {"price": None})
        result = await agent.execute(AgentContext(task=task))
        assert (result.success, agent.metrics.last_duration) == (False, 30.0)
        assert result.error is not None
        assert result.error["kind"] == "AgentTimeoutError"
        assert agent.is_idle is True

    loop.simulate(main)


def test_life_of_an_agent(loop: Loop) -> None:
    """An agent goes from its creation through direct calls and an execution to its end."""

    async def main() -> None:
        agent = appraiser(loop)
        assert agent.state is AgentState.IDLE
        assert await agent.initialize() is True
        context = AgentContext()
        assert (await agent.process(context)).success is True
        assert (await agent.execute(context)).success is True
        assert agent.state is AgentState.IDLE
        await agent.terminate()
        assert agent.state is AgentState.TERMINATED
        assert agent.is_terminated is True

    loop.run(main)


def test_agents_share_a_loop(loop: Loop) -> None:
    """Executions that a program starts side by side in its own way each give their own result."""

    async def main() -> None:
        agents = [appraiser(loop) for _ in range(3)]
        worth: dict[int, Any] = {}

        async def ask(number: int) -> None:
            task = BaseTask.create("appraise", {"price": number})
            result = await agents[number % 3].execute(AgentContext(task=task))
            worth[number] = result.output

        await loop.together(*(functools.partial(ask, number) for number in range(12)))
        assert worth == {number: {"worth": number * 2} for number in range(12)}
        assert [agent.is_idle for agent in agents] == [True, True, True]

    loop.run(main)


def test_a_program_gives_up_on_an_agent(loop: Loop) -> None:
    """A program's own time limit ends an execution; the agent is idle and works again."""

    async def main() -> None:
        agent = appraiser(loop, timeout=None)
        stuck = AgentContext(task=BaseTask.create("appraise", {"price": None}))
        with pytest.raises(TimeoutError):
            await loop.give_up(60.0, functools.partial(agent.execute, stuck))
        assert agent.is_idle is True
        assert [name for name, _ in agent.seen] == ["initialize", "process"]
        result = await agent.execute(AgentContext(task=BaseTask.create("appraise", {"price": 3})))
        assert result.output == {"worth": 6}

    loop.simulate(main)


def test_registry_example(loop: Loop) -> None:
    """Items, functions and classes are registered by name, found again and used."""

    async def main() -> None:
        colours = Registry[str]("colours")
        assert colours.register("sky", "#88ccff") == "#88ccff"
        assert colours.get_sync("sky") == "#88ccff"

        measures = get_function_registry("measures")

        @measures.register_function()
        def perimeter(sides: list[int]) -> int:
            """Add up the lengths of all sides."""
            return sum(sides)

        found = await measures.get("perimeter")
        assert found is perimeter
        assert found([3, 4, 5]) == 12

        shapes = get_class_registry("shapes")

        @shapes.register_class()
        class Polygon:
            def __init__(self, sides: list[int]) -> None:
                self.sides = sides

            def scaled(self, factor: int) -> list[int]:
                return [side * factor for side in self.sides]

        polygon = await shapes.create_instance("Polygon", sides=[1, 2])
        assert isinstance(polygon, Polygon)
        assert polygon.scaled(10) == [10, 20]

    loop.run(main)


def test_task_example(loop: Loop) -> None:
    """A task is created, started and completed, or failed with what went wrong."""

    def average(numbers: list[float]) -> float:
        return sum(numbers) / len(numbers)

    def carry_out(task: BaseTask) -> None:
        task.start()
        try:
            task.complete({"average": average(task.input["numbers"])})
        except Exception as error:  # noqa: BLE001 - the scenario records whatever comes
            task.fail({"error_type": type(error).__name__, "message": str(error)})

    async def main() -> None:
        good = BaseTask.create("statistics", {"numbers": [1.0, 2.0], "options": {"digits": 3}})
        carry_out(good)
        assert (good.state, good.output, good.error) == (
            TaskState.COMPLETED,
            {"average": 1.5},
            None,
        )
        bad = BaseTask.create("statistics", {"numbers": []})
        carry_out(bad)
        assert (bad.state, bad.output) == (TaskState.FAILED, None)
        assert bad.error == {"error_type": "ZeroDivisionError", "message": "division by zero"}

    loop.run(main)


def test_task_example_with_a_timeout(loop: Loop) -> None:
    """A coroutine run under a task's timeout gives its value, or TimeoutError when it is too slow."""

    async def weigh(seconds: float) -> str:
        await loop.sleep(seconds)
        return "3 kg"

    async def main() -> None:
        task = BaseTask.create("weigh", {"parcel": 8})
        task.start()
        assert await task.with_timeout(weigh(0), 60_000) == "3 kg"
        with pytest.raises(TimeoutError):
            await task.with_timeout(weigh(FOR_EVER), 60_000)
        assert (task.state, task.duration_ms) == (TaskState.RUNNING, 60_000)

    loop.simulate(main)


def test_task_factory_example(loop: Loop) -> None:
    """The factory makes a pending task with a priority and a trace id."""

    async def main() -> None:
        task = TaskFactory.create_task(
            "translate",
            {"text": "ahoj", "to": "en"},
            priority=TaskPriority.CRITICAL,
            trace_id="request-7",
        )
        assert (task.type, task.input) == ("translate", {"text": "ahoj", "to": "en"})
        assert (task.priority, task.trace_id) == (TaskPriority.CRITICAL, "request-7")
        assert task.state is TaskState.PENDING

    loop.run(main)


def test_life_of_a_task(loop: Loop) -> None:
    """A task that ran to its end shows its output and names both transitions in its history."""

    async def main() -> None:
        task = BaseTask.create("bake", {"loaves": 2})
        task.start()
        assert task.state is TaskState.RUNNING
        task.complete({"baked": 2})
        assert (task.state, task.output, task.is_finished) == (
            TaskState.COMPLETED,
            {"baked": 2},
            True,
        )
        assert [event["event_type"] for event in task.get_event_history()] == [
            "task_started",
            "task_completed",
        ]

    loop.run(main)


NOT_FOUND = TaskNotFoundError("task 17 is not known", {"task_id": "17"})
BREAKER = CircuitBreakerError("circuit mail is open", {"circuit_name": "mail"})
EXPECTED_LOG = [
    (NOT_FOUND, ("WARNING", "no such task: 17")),
    (TaskStateError("task 3 is finished"), ("ERROR", "task: task 3 is finished")),
    (BREAKER, ("WARNING", "mail rests")),
    (AgentError("agent x: secret"), ("ERROR", f"system: {AgentError('').safe_message()}")),
    (CoreError("secret"), ("ERROR", f"system: {CoreError('').safe_message()}")),
]


@pytest.mark.parametrize(("raised", "logged"), EXPECTED_LOG, ids=lambda value: type(value).__name__)
def test_exception_example(
    loop: Loop, caplog: pytest.LogCaptureFixture, raised: CoreError, logged: tuple[str, str]
) -> None:
    """Handlers from the specific to the general each catch their own kind of error."""
    logger = logging.getLogger("scenario")

    async def operation() -> None:
        await loop.sleep(0)
        raise raised

    async def main() -> None:
        try:
            await operation()
        except TaskNotFoundError as error:
            logger.warning("no such task: %s", error.details["task_id"])
        except TaskError as error:
            logger.error("task: %s", error.message)
        except CircuitBreakerError as error:
            logger.warning("%s rests", error.details["circuit_name"])
        except CoreError as error:
            logger.error("system: %s", error.safe_message())

    loop.run(main)
    assert [(entry.levelname, entry.getMessage()) for entry in caplog.records] == [logged]


class Navigator(BaseAgent):
    """Plans: turns the distance in its task into legs, and refuses an unknown harbour."""

    async def initialize(self) -> bool:
        return True

    async def process(self, context: AgentContext) -> AgentResult:
        assert context.task is not None
        distances = {"Oslo": 3, "Turku": 0}
        count = distances[context.task.input["harbour"]]
        return AgentResult.success_result({"legs": [f"leg {number}" for number in range(count)]})

    async def handle_error(self, error: Exception, context: AgentContext) -> AgentResult:
        return AgentResult.error_result({"unknown": str(error)})


class Skipper(BaseAgent):
    """Executes: sails the planned legs, and fails when there are none."""

    async def initialize(self) -> bool:
        return True

    async def process(self, context: AgentContext) -> AgentResult:
        legs = context.parameters["plan"]
        return AgentResult.success_result({"first": legs[0], "sailed": len(legs)})

    async def handle_error(self, error: Exception, context: AgentContext) -> AgentResult:
        return AgentResult.error_result({"ashore": type(error).__name__})


@dataclass
class Voyage:
    """The two agents of the workflow, and which of the program's three ends was reached."""

    ends: list[tuple[str, Any]] = field(default_factory=list)

    async def sail(self, harbour: str) -> None:
        navigator = Navigator(
            AgentConfig(
                name="mate",
                agent_type="navigator",
                capabilities={AgentCapability.PLANNING, AgentCapability.RETRIEVAL},
                timeout=20.0,
            )
        )
        skipper = Skipper(
            AgentConfig(
                name="captain",
                agent_type="skipper",
                capabilities={AgentCapability.TOOL_USE, AgentCapability.EXECUTION},
                timeout=45.0,
            )
        )
        task = TaskFactory.create_task("voyage", {"harbour": harbour, "sails": 3}, priority=TaskPriority.HIGH)
        planned = await navigator.execute(AgentContext(task=task))
        if not planned.success:
            self.ends.append(("not planned", planned.error))
            return
        assert planned.output is not None
        sailed = await skipper.execute(AgentContext(task=task, parameters={"plan": planned.output["legs"]}))
        if sailed.success:
            self.ends.append(("sailed", sailed.output))
        else:
            self.ends.append(("not sailed", sailed.error))


@pytest.mark.parametrize(
    ("harbour", "end"),
    [
        ("Oslo", ("sailed", {"first": "leg 0", "sailed": 3})),
        ("Turku", ("not sailed", {"ashore": "IndexError"})),
        ("Atlantis", ("not planned", {"unknown": "'Atlantis'"})),
    ],
)
def test_workflow_example(loop: Loop, harbour: str, end: tuple[str, Any]) -> None:
    """A plan made by one agent is carried out by another, and each failure reaches its own branch."""
    voyage = Voyage()
    loop.run(functools.partial(voyage.sail, harbour))
    assert voyage.ends == [end]


class PostOffice:
    """Finds who can deal with a task in a registry and carries the task through its states."""

    def __init__(self) -> None:
        self.clerks = get_registry("task_handlers")

    async def deal_with(self, errand: BaseTask) -> TaskResult:
        clerk = await self.clerks.get(errand.type)
        if clerk:
            errand.start()
            try:
                errand.complete({"answer": clerk(errand.input)})
            except Exception as problem:  # noqa: BLE001 - the scenario records whatever comes
                errand.fail({"error_type": type(problem).__name__, "message": str(problem)})
        else:
            errand.fail({"error": f"nobody knows {errand.type}"})
        return TaskResult.from_task(errand)


@pytest.mark.parametrize(
    ("task", "state", "output", "error"),
    [
        (("count_words", {"text": "one two three"}), TaskState.COMPLETED, {"answer": 3}, None),
        (("reverse", {"text": "abc"}), TaskState.COMPLETED, {"answer": "cba"}, None),
        (
            ("reverse", {"text": 5}),
            TaskState.FAILED,
            None,
            {"error_type": "TypeError", "message": "'int' object is not subscriptable"},
        ),
        (("shout", {}), TaskState.FAILED, None, {"error": "nobody knows shout"}),
    ],
)
def test_dispatcher_example(
    loop: Loop, task: tuple[str, dict[str, Any]], state: TaskState, output: Any, error: Any
) -> None:
    """Handlers registered by a decorator are found by task type; the result tells how each task ended."""
    handlers = get_registry("task_handlers")

    @handlers.decorator()
    def count_words(task_input: dict[str, Any]) -> int:
        return len(task_input["text"].split())

    @handlers.decorator()
    def reverse(task_input: dict[str, Any]) -> str:
        reversed_text: str = task_input["text"][::-1]
        return reversed_text

    async def main() -> None:
        result = await PostOffice().deal_with(BaseTask.create(*task))
        assert (result.state, result.output, result.error) == (state, output, error)
        assert result.success is (state is TaskState.COMPLETED)

    loop.run(main)
