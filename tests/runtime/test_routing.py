"""Where tasks go: by their type, by the name of an agent, by what an agent can do."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from agentcore import (
    AgentCapability,
    AgentConfig,
    AgentRuntime,
    ConfigurationError,
    Supervisor,
    TaskRoutingError,
)
from agentcore._directory import Route
from agentcore.testing import simulate
from tests.runtime.supervised import TEN, Told, both_kinds, config, crash, settle, supervised

RUNS = 3
PLANNING, REASONING, MEMORY = AgentCapability.PLANNING, AgentCapability.REASONING, AgentCapability.MEMORY


def name_of(route: Route) -> str:
    """Return the name of the agent that a way leads to."""
    route = route.now()
    return route.post.name if route.post is not None else route.take().name


def chosen(runtime: AgentRuntime, *requires: Any, count: int = 1) -> list[str]:
    """Return who is chosen for tasks that require something."""
    return [name_of(runtime.agents.route("unknown", requires)) for _ in range(count)]


async def by(given: dict[str, Any]) -> dict[str, Any]:
    """Be a handler."""
    return {"by": "handler"}


# By type and by name.


@both_kinds
@simulate(runs=RUNS)
async def test_a_spawned_agent_is_found_by_its_name(hosted: bool) -> None:
    """By ``<type>`` before ``<type>_agent``, whether it is asked, runs a task or is given one, and below any supervisor."""
    async with supervised(hosted) as (runtime, log):
        below = await runtime.supervisor.supervise("below")
        await below.spawn(log.make, config("read_agent"))
        assert "read_agent" == (await runtime.run("read"))["by"]
        await runtime.spawn(log.make, config("read"))
        assert "read" == (await runtime.run("read"))["by"]
        assert "read" == (await runtime.ask("read")).output["by"]
        assert "read_agent" == (await runtime.run("read_agent"))["by"]
        handle = await runtime.submit("read")
        assert "read" == (await handle.result())["by"]


@both_kinds
@simulate(runs=RUNS)
async def test_a_handler_comes_first_and_a_spawned_agent_before_a_registered_one(hosted: bool) -> None:
    async with supervised(hosted) as (runtime, log):
        registered = Told(config("registered"), log)
        runtime.registry("agents").register("read", registered)
        assert "registered" == (await runtime.run("read"))["by"]
        ref = await runtime.spawn(log.make, config("read"))
        assert "read" == (await runtime.run("read"))["by"]
        runtime.handler("read")(by)
        assert "handler" == (await runtime.run("read"))["by"]
        await _unregister(runtime, "read")
        await ref.stop()
        assert "registered" == (await runtime.run("read"))["by"]


async def _unregister(runtime: AgentRuntime, name: str) -> None:
    result: Any = runtime.registry("task_handlers").unregister(name)
    if hasattr(result, "__await__"):
        await result


@both_kinds
@simulate(runs=RUNS)
async def test_an_agent_that_is_started_again_is_still_found(hosted: bool) -> None:
    """Tasks wait for it, and are not given to the one that is registered by the same name."""
    async with supervised(hosted, supervisor=Supervisor(backoff=TEN)) as (runtime, log):
        runtime.registry("agents").register("read", Told(config("registered"), log))
        ref = await runtime.spawn(log.make, config("read"))
        await crash(runtime, ref)
        assert "read" == (await runtime.run("read"))["by"]
        assert 10 == anyio.current_time()


# By what they can do.


@both_kinds
@simulate(runs=RUNS)
async def test_only_who_can_do_all_of_it_is_chosen(hosted: bool) -> None:
    """Known capabilities by their names as well, and any of one's own; a name comes before a capability."""
    async with supervised(hosted) as (runtime, log):
        await runtime.spawn(log.make, config("one", capabilities={PLANNING, "cooking"}))
        await runtime.spawn(log.make, config("two", capabilities={PLANNING, REASONING}))
        await runtime.spawn(log.make, config("three"))
        assert ["two"] * 2 == chosen(runtime, PLANNING, "reasoning", count=2)
        assert ["one"] * 2 == chosen(runtime, "cooking", "planning", count=2)
        assert "three" == name_of(runtime.agents.route("three", {PLANNING}))
        with pytest.raises(ConfigurationError, match="must be a collection"):
            runtime.agents.route("unknown", "planning")


@both_kinds
@simulate(runs=RUNS)
async def test_the_least_busy_one_is_chosen(hosted: bool) -> None:
    """What it executes counts, who waits for it, and the messages in its mailbox; of shared agents as well."""
    async with supervised(hosted, grace=0) as (runtime, log):
        shared = Told(config("shared", capabilities={PLANNING}), log)
        runtime.registry("agents").register("shared", shared)
        one = await runtime.spawn(log.make, config("one", capabilities={PLANNING}))
        two = await runtime.spawn(log.make, config("two", capabilities={PLANNING}))
        async with anyio.create_task_group() as group:
            group.start_soon(runtime.ask, one, {"do": "hang"})
            group.start_soon(runtime.ask, two, {"do": "hang"})
            await settle()
            assert ["shared"] * 3 == chosen(runtime, PLANNING, count=3)
            for _ in range(3):
                group.start_soon(runtime.ask, shared, {"do": "hang"})
            await runtime.tell(one)
            await settle()
            await runtime.tell(one)
            # One: an ask, a message in line for its turn, one in the mailbox. Shared: an ask and two in line.
            assert ["two"] * 3 == chosen(runtime, PLANNING, count=3)
            group.cancel_scope.cancel()


@both_kinds
@simulate(runs=RUNS)
async def test_of_those_that_are_equally_busy_the_one_chosen_least_often(hosted: bool) -> None:
    """So idle agents take turns, also when one of them comes later."""
    async with supervised(hosted) as (runtime, log):
        for name in ("one", "two"):
            await runtime.spawn(log.make, config(name, capabilities={PLANNING, MEMORY}))
        assert ["one", "two", "one", "two"] == chosen(runtime, PLANNING, count=4)
        await runtime.spawn(log.make, config("three", capabilities={PLANNING}))
        assert ["three", "three", "one", "two", "three"] == chosen(runtime, PLANNING, count=5)
        assert ["one", "two"] == chosen(runtime, MEMORY, count=2)


@both_kinds
@simulate(runs=RUNS)
async def test_who_is_there_is_chosen_before_who_is_started_again(hosted: bool) -> None:
    """If nobody else is able to, the task waits for that one; who is gone for good is not chosen."""
    async with supervised(hosted, supervisor=Supervisor(backoff=TEN)) as (runtime, log):
        one = await runtime.spawn(log.make, config("one", capabilities={PLANNING}))
        two = await runtime.spawn(log.make, config("two", capabilities={PLANNING}))
        shared = Told(config("shared", capabilities={PLANNING}), log)
        await crash(runtime, one)
        assert ["two"] * 3 == chosen(runtime, PLANNING, count=3)
        await two.stop()
        assert ["one"] == chosen(runtime, PLANNING)
        runtime.registry("agents").register("shared", shared)
        assert ["shared"] == chosen(runtime, PLANNING)
        await shared.terminate()
        assert ["one"] == chosen(runtime, PLANNING)
        await one.stop()
        with pytest.raises(TaskRoutingError):
            chosen(runtime, PLANNING)


# Nothing fits.


@both_kinds
@simulate(runs=RUNS)
async def test_if_nothing_fits_what_is_known_is_listed(hosted: bool) -> None:
    """Handlers, agents of both kinds, and what they can do."""
    async with supervised(hosted) as (runtime, log):
        with pytest.raises(TaskRoutingError, match="got 'read'; nothing is registered at all"):
            await runtime.run("read")
        with pytest.raises(TaskRoutingError, match=r"can do all of planning: no agent says what it can"):
            runtime.agents.route("read", {PLANNING})
        runtime.handler("handled")(by)
        runtime.registry("agents").register("made_agent", lambda: Told(config("made"), log))
        ref = await runtime.spawn(log.make, config("spawned_agent", capabilities={PLANNING, "cooking"}))
        gone = await runtime.spawn(log.make, config("gone", capabilities={REASONING}))
        await gone.stop()
        with pytest.raises(TaskRoutingError, match="got 'read'; known are 'handled', 'made', 'spawned'") as caught:
            await runtime.submit("read")
        assert {"type": "read", "known": ["handled", "made", "spawned"]} == caught.value.details
        with pytest.raises(TaskRoutingError, match="nobody can do all of planning, reasoning") as caught:
            runtime.agents.route("read", {REASONING, PLANNING})
        assert "'spawned_agent' can cooking, planning" in str(caught.value)
        assert ("up", {"spawned_agent": ["cooking", "planning"]}) == (
            ref.state,
            (caught.value.details or {})["capabilities"],
        )


@simulate(runs=RUNS)
async def test_a_task_type_is_not_found_in_another_runtime() -> None:
    async with supervised() as (first, log), supervised(True, alone=False) as (second, _):
        await first.spawn(log.make, config("read", capabilities={PLANNING}))
        for call in (lambda: second.run("read"), lambda: second.ask("read")):
            with pytest.raises(TaskRoutingError):
                await call()
        with pytest.raises(TaskRoutingError):
            second.agents.route("unknown", {PLANNING})


def test_the_configuration_takes_capabilities_by_name() -> None:
    """The ones that are known, whatever their case; and others as they are."""
    assert {PLANNING, "Cooking"} == AgentConfig("one", "test", {"Planning", "Cooking"}).capabilities
