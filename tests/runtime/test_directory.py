"""Who serves a type of task: handlers, agents, classes, factories, and what is none of these."""

from __future__ import annotations

import functools
import gc
from collections.abc import Generator
from typing import Any

import anyio
import pytest

from agentcore import (
    AgentConfig,
    AgentContext,
    AgentResult,
    AgentTimeoutError,
    BaseAgent,
    BaseTask,
    ConfigurationError,
    RegistryError,
    TaskExecutionError,
    TaskRoutingError,
    clear_registries,
    get_registry,
)
from agentcore._directory import Directory
from agentcore.testing import simulate
from tests.runtime.parts import Clumsy, check_at_rest, echo, holding, must_end, runtime_of

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _clean() -> Generator[None]:
    clear_registries()
    yield
    clear_registries()


# Functions.


class Callable:
    """An object that is called."""

    async def __call__(self, given: dict[str, Any]) -> dict[str, Any]:
        return given

    async def method(self, given: dict[str, Any], context: AgentContext) -> dict[str, Any]:
        assert context.task is not None
        return context.task.input


async def two(given: dict[str, Any], context: AgentContext) -> dict[str, Any]:
    assert context.task is not None
    return context.task.input


async def second_by_name(given: dict[str, Any], context: AgentContext | None = None) -> dict[str, Any]:
    assert context is not None
    return given


async def own_default(given: dict[str, Any], verbose: bool = False) -> dict[str, Any]:
    assert verbose is False
    return given


async def keywords(given: dict[str, Any], *, verbose: bool = False, **others: Any) -> dict[str, Any]:
    return given


def plain(given: dict[str, Any]) -> dict[str, Any]:
    return given


def plain_two(given: dict[str, Any], context: AgentContext) -> dict[str, Any]:
    assert context.task is not None
    return context.task.input


@pytest.mark.parametrize(
    "function",
    [
        echo,
        two,
        second_by_name,
        own_default,
        keywords,
        plain,
        plain_two,
        Callable(),
        Callable().method,
        functools.partial(echo),
        functools.partial(two),
        lambda given: given,
    ],
    ids=lambda function: getattr(function, "__name__", type(function).__name__),
)
async def test_functions_of_every_kind(function: Any) -> None:
    """Each is called with the input, and with the context if it has a second parameter that wants it."""
    async with runtime_of() as runtime:
        assert runtime.handler("f")(function) is function
        assert await runtime.run("f", {"n": 1}) == {"n": 1}


@pytest.mark.parametrize(
    ("value", "output"),
    [
        ({"a": 1}, {"a": 1}),
        ({}, {}),
        (5, {"result": 5}),
        (None, {"result": None}),
        ([1], {"result": [1]}),
        (AgentResult.success_result({"a": 1}), {"a": 1}),
        (AgentResult.success_result(7), {"result": 7}),
        (AgentResult.success_result(), {"result": None}),
    ],
)
async def test_what_a_function_returns_becomes_the_output(value: object, output: dict[str, Any]) -> None:
    """A dictionary as it is, anything else under ``result``."""
    async with runtime_of() as runtime:
        runtime.handler("f")(lambda given: value)
        assert await runtime.run("f") == output


@pytest.mark.parametrize("error", [StopIteration("s"), StopAsyncIteration("s")], ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("way", ["async", "thread"])
async def test_exceptions_that_mean_something_to_python(error: BaseException, way: str) -> None:
    """What iterators and generators raise ends the task and nothing else."""
    runtime = runtime_of(in_flight=1)

    async def raise_async(given: dict[str, Any]) -> None:
        raise error

    def raise_plain(given: dict[str, Any]) -> None:
        raise error

    async with must_end(runtime), runtime:
        runtime.handler("odd")(raise_async if way == "async" else raise_plain)
        handle = await runtime.submit("odd")
        with anyio.fail_after(2):
            assert (await handle.wait()).success is False
        await check_at_rest(runtime, 1)


@pytest.mark.parametrize("bad", [5, None, "name", dict, Clumsy])
async def test_what_is_no_function_is_refused_as_a_handler(bad: object) -> None:
    """Classes too: a class of agents belongs elsewhere, and the message says where."""
    async with runtime_of() as runtime:
        with pytest.raises(RegistryError, match=r"must be a function.*registry\('agents'\)"):
            runtime.handler("bad")(bad)  # type: ignore[type-var]
        with pytest.raises(TaskRoutingError):
            await runtime.run("bad")


@pytest.mark.parametrize(
    "options", [{"timeout": -1}, {"timeout": "1"}, {"max_concurrency": 0}, {"max_concurrency": 1.5}]
)
async def test_unusable_options_of_a_handler_are_refused_at_once(options: dict[str, Any]) -> None:
    """When `handler` is called, not when the first task comes."""
    async with runtime_of() as runtime:
        with pytest.raises(ConfigurationError):
            runtime.handler("f", **options)
        with pytest.raises((ConfigurationError, RegistryError)):
            runtime.handler("")(echo)


@simulate(runs=20)
async def test_a_handlers_timeout_and_concurrency_hold() -> None:
    """Both are those of the agent around the function."""
    async with runtime_of() as runtime:

        @runtime.handler("slow", timeout=5.0)
        async def slow(given: dict[str, Any]) -> None:
            await anyio.sleep_forever()

        with pytest.raises(TaskExecutionError) as caught:
            await runtime.run("slow")
        assert isinstance(caught.value.__cause__, AgentTimeoutError)
        assert (caught.value.details["error"]["deadline"], anyio.current_time()) == ("agent", 5.0)

        hold = holding(runtime)
        runtime.handler("narrow", max_concurrency=2)(hold)
        handles = [await runtime.submit("narrow", {"n": number}) for number in range(5)]
        await anyio.wait_all_tasks_blocked()
        assert hold.inside == 2
        hold.opened.set()
        for handle in handles:
            await handle.result()
        assert (hold.peak, sorted(hold.came)) == (2, [0, 1, 2, 3, 4])


@simulate(runs=20)
async def test_a_handler_can_be_replaced_while_it_runs() -> None:
    """What runs or waits goes on with the old one, what comes then has the new one."""
    async with runtime_of(in_flight=1) as runtime:
        hold = holding(runtime, "f")
        running = await runtime.submit("f", {"by": "old"})
        waiting = await runtime.submit("f", {"by": "old"})
        await anyio.wait_all_tasks_blocked()
        runtime.handler("f")(lambda given: {"by": "new"})
        new = await runtime.submit("f")
        hold.opened.set()
        assert [{"by": "old"}, {"by": "old"}, {"by": "new"}] == [await one.result() for one in (running, waiting, new)]


@simulate(runs=5)
async def test_the_same_function_registered_anew_has_its_new_options() -> None:
    """Options belong to the registration, not to the function."""
    async with runtime_of() as runtime:

        async def slow(given: dict[str, Any]) -> dict[str, Any]:
            await anyio.sleep(30)
            return {"done": True}

        runtime.handler("slow", timeout=5.0)(slow)
        with pytest.raises(TaskExecutionError):
            await runtime.run("slow")
        assert anyio.current_time() == 5
        runtime.handler("slow")(slow)
        assert await runtime.run("slow") == {"done": True}
        assert anyio.current_time() == 35


async def test_a_handler_that_is_unregistered_is_gone() -> None:
    """The next task of its type finds nobody."""
    async with runtime_of() as runtime:
        runtime.registry("task_handlers").unregister("echo")
        with pytest.raises(TaskRoutingError):
            await runtime.run("echo")


async def test_a_registered_item_that_cannot_be_called_is_told() -> None:
    """The registry takes anything; the router says what it found."""
    async with runtime_of() as runtime:
        runtime.registry("task_handlers").register("odd", 5)
        runtime.registry("agents").register("odd_agent", "text")
        with pytest.raises(TaskRoutingError, match="must be a function: got 5"):
            await runtime.run("odd")
        runtime.registry("task_handlers").unregister("odd")
        with pytest.raises(
            TaskRoutingError, match=r"'odd_agent'.* must be a class of agents, a factory or an agent: got 'text'"
        ):
            await runtime.run("odd")


# Agents.


class NoArguments(Clumsy):
    """Makes its own configuration."""

    def __init__(self) -> None:
        super().__init__(AgentConfig("self-made", "self-made"))


class Optional(Clumsy):
    """May be given a configuration."""

    def __init__(self, config: AgentConfig | None = None) -> None:
        super().__init__(config or AgentConfig("default", "default"))


@pytest.mark.parametrize(
    ("item", "metadata", "by"),
    [
        (NoArguments, {}, "self-made"),
        (Clumsy, {}, "work_agent"),
        (Clumsy, {"config": AgentConfig("registered", "x")}, "registered"),
        (Optional, {}, "work_agent"),
        (lambda: Clumsy(AgentConfig("by a factory", "x")), {}, "by a factory"),
        ("instance", {}, "an instance"),
    ],
)
async def test_classes_factories_and_instances(item: Any, metadata: dict[str, Any], by: str) -> None:
    """A class that wants a configuration gets the registered one, or one with its names."""
    async with runtime_of() as runtime:
        if item == "instance":
            item = Clumsy(AgentConfig("an instance", "x"))
        runtime.registry("agents").register("work_agent", item, **metadata)
        assert await runtime.run("work") == {"by": by}
        assert await runtime.run("work_agent") == {"by": by}


async def test_the_order_of_the_search() -> None:
    """The handler, then the agent of that very name, then ``<type>_agent``."""
    async with runtime_of() as runtime:
        agents = runtime.registry("agents")
        agents.register("work_agent", Clumsy)
        assert await runtime.run("work") == {"by": "work_agent"}
        agents.register("work", Clumsy)
        assert await runtime.run("work") == {"by": "work"}
        runtime.handler("work")(lambda given: {"by": "handler"})
        assert await runtime.run("work") == {"by": "handler"}


async def test_the_registries_of_the_process_are_seen_and_covered() -> None:
    """What is registered in the runtime goes first, and is seen by it alone."""
    get_registry("task_handlers").register("f", lambda given: {"by": "process"})
    async with runtime_of() as first, runtime_of() as second:
        assert await first.run("f") == {"by": "process"}
        first.handler("f")(lambda given: {"by": "first"})
        assert await first.run("f") == {"by": "first"}
        assert await second.run("f") == {"by": "process"}
    assert get_registry("task_handlers").size() == 1


def raising_factory() -> BaseAgent:
    raise OSError("no agents today")


async def asynchronous_factory() -> BaseAgent:
    return Clumsy(AgentConfig("late", "late"))


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (raising_factory, "no agents today"),
        (lambda: 5, "must return an agent: got 5"),
        (lambda: None, "must return an agent: got None"),
        (lambda: Clumsy, "must return an agent: got <class"),
        (BaseAgent, "abstract"),
        (asynchronous_factory, "must return an agent: got <coroutine"),
    ],
)
async def test_factories_that_give_no_agent_fail_the_task(factory: Any, message: str) -> None:
    """The task is FAILED with what they did, and the slot is free."""
    async with runtime_of(in_flight=1) as runtime:
        runtime.registry("agents").register("work", factory)
        for way in ("run", "submit"):
            with pytest.raises(TaskExecutionError) as caught:
                if way == "run":
                    await runtime.run("work")
                else:
                    await (await runtime.submit("work")).result()
            assert message in str(caught.value)
        await check_at_rest(runtime, 1)
    del caught
    gc.collect()  # a coroutine that was not awaited warns here, and not in some other test


async def test_what_is_known_is_listed() -> None:
    """Handlers and agents, without the suffix, in order; the error tells how to add one."""
    directory = Directory()
    with pytest.raises(TaskRoutingError, match="got 'x'; nothing is registered at all; add it with"):
        directory.route("x")
    directory.agents.register("write_agent", Clumsy)
    directory.handlers.register("read", echo)
    with pytest.raises(TaskRoutingError, match="known are 'read', 'write'") as caught:
        directory.route("x")
    assert caught.value.details == {"type": "x", "known": ["read", "write"]}
    assert repr(directory) == "<Directory of 1 agents and 1 handlers>"


@simulate(runs=20)
async def test_a_shared_agent_takes_one_after_the_other() -> None:
    """An instance serves all tasks of its type, as many at a time as it allows."""
    async with runtime_of() as runtime:
        hold = holding(runtime)

        class Shared(Clumsy):
            async def process(self, context: AgentContext) -> AgentResult:
                assert context.task is not None
                return AgentResult.success_result(await hold(context.task.input))

        runtime.registry("agents").register("shared", Shared(AgentConfig("shared", "shared")))
        handles = [await runtime.submit("shared", {"n": number}) for number in range(3)]
        await anyio.wait_all_tasks_blocked()
        assert len(hold.came) == 1
        hold.opened.set()
        assert [{"n": number} for number in range(3)] == [await handle.result() for handle in handles]
        assert (hold.peak, sorted(hold.came)) == (1, [0, 1, 2])


async def test_registries_of_ones_own() -> None:
    """A runtime has any registry, and the same one under the same name."""
    async with runtime_of() as runtime:
        tools = runtime.registry("tools")
        tools.register("hammer", 1)
        assert runtime.registry("tools") is tools
        assert get_registry("tools").size() == 0
        with pytest.raises(ConfigurationError):
            runtime.registry("")


async def test_a_task_of_a_subclass_arrives_as_it_is() -> None:
    """The context has the very task."""
    async with runtime_of() as runtime:
        seen: list[Any] = []

        @runtime.handler("f")
        async def look(given: dict[str, Any], context: AgentContext) -> None:
            seen.append(context.task)

        task = BaseTask.create("f")
        await runtime.run(task)
        assert seen == [task]
