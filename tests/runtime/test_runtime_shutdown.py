"""Draining and shutting down: who may still come, what is cut, who is terminated, what the report says."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from agentcore import (
    AgentConfig,
    AgentContext,
    AgentCrashedError,
    AgentRuntime,
    AgentState,
    ConfigurationError,
    RuntimeClosedError,
    TaskCanceledError,
    TaskState,
    clear_registries,
    get_registry,
)
from agentcore.testing import simulate
from tests.runtime.parts import Clumsy, holding, runtime_of, start_all, submit_all

pytestmark = pytest.mark.anyio


def clumsy(name: str, ended: list[str], error: Exception | None = None) -> Clumsy:
    """Make an agent that notes its end and may fail then."""
    return Clumsy(AgentConfig(name, "clumsy"), ended, error)


@simulate(runs=20)
async def test_leaving_the_block_lets_tasks_end() -> None:
    """Within the grace running and waiting tasks come to their own end, and nothing was cut short."""
    runtime = runtime_of(grace=5, in_flight=1)
    async with runtime:
        hold = holding(runtime)
        handles = await submit_all(runtime, "hold", 3)
        hold.opened.set()
    assert {TaskState.COMPLETED} == {handle.state for handle in handles}
    assert runtime.report is not None
    assert (runtime.report.drained, runtime.report.cut_short, runtime.report.agents_failed) == (True, (), ())
    assert runtime.report.summary().endswith("nothing was cut short")
    assert runtime.events()[-1].event_type == "runtime_closed"


@pytest.mark.parametrize("grace", [0, 10])
@simulate(runs=20)
async def test_what_does_not_end_in_time_is_cut_and_named(grace: float) -> None:
    """Running or waiting, each is CANCELED with the reason, and stands in the report in order of arrival."""
    runtime = runtime_of(in_flight=1, grace=grace)
    async with runtime:
        handles = await submit_all(runtime, "hang", 3)
        await anyio.wait_all_tasks_blocked()
    report = runtime.report
    assert report is not None
    assert not report.drained
    assert [handle.id for handle in handles] == [result.task_id for result in report.cut_short]
    assert {TaskState.CANCELED} == {result.state for result in report.cut_short}
    assert {"the runtime is shutting down"} == {handle.task.cancel_reason for handle in handles}
    assert all(f"hang {handle.id} (canceled)" in report.summary() for handle in handles)
    assert (grace, grace) == (report.duration, anyio.current_time())


@simulate(runs=20)
async def test_the_report_tells_how_what_was_cut_has_ended() -> None:
    """A task that completes in spite of its cancellation is listed as what it became."""
    runtime = runtime_of()

    @runtime.handler("stubborn")
    async def stubborn(given: dict[str, Any]) -> dict[str, Any]:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(5)
        return {"done": True}

    async with runtime:
        await runtime.submit("stubborn")
        await anyio.wait_all_tasks_blocked()
    assert runtime.report is not None
    assert [(TaskState.COMPLETED, {"done": True})] == [
        (result.state, result.output) for result in runtime.report.cut_short
    ]
    assert 5 == runtime.report.duration


@simulate(runs=20)
async def test_who_waits_for_what_was_cut_is_told_why() -> None:
    """TaskCanceledError with the reason of the shutdown, from a handle and from a run."""
    runtime = runtime_of()
    outcomes: list[str] = []

    async def run() -> None:
        with pytest.raises(TaskCanceledError, match="closing time"):
            await runtime.run("hang")
        outcomes.append("run")

    async with runtime, anyio.create_task_group() as group:
        handle = await runtime.submit("hang")
        await start_all(group, run)
        await runtime.shutdown(reason="closing time")
        with pytest.raises(TaskCanceledError, match="closing time"):
            await handle.result()
    assert outcomes == ["run"]


@simulate(runs=20)
async def test_a_draining_runtime_takes_children_only() -> None:
    """Tasks from outside are refused, those of tasks that still run are not."""
    async with runtime_of(grace=5) as runtime, anyio.create_task_group() as group:
        go_on = anyio.Event()

        @runtime.handler("parent")
        async def parent(given: dict[str, Any], context: AgentContext) -> dict[str, Any]:
            await go_on.wait()
            child = await context.submit("echo", {"n": 1})
            return {"run": await context.run("echo", {"n": 2}), "submit": await child.result()}

        handle = await runtime.submit("parent")
        await start_all(group, runtime.drain)
        assert runtime.statistics().state == "draining"
        for take in (runtime.run, runtime.submit):
            with pytest.raises(RuntimeClosedError, match="it is shutting down") as caught:
                await take("echo")
            assert caught.value.details["state"] == "draining"
        go_on.set()
        assert await handle.result() == {"run": {"n": 2}, "submit": {"n": 1}}


@simulate(runs=20)
async def test_a_closed_runtime_takes_no_children_either() -> None:
    """What is cut cannot start anything new while it is unwound."""
    runtime = runtime_of()
    refused: list[Exception] = []

    @runtime.handler("parent")
    async def parent(given: dict[str, Any], context: AgentContext) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                for take in (context.submit, context.run):
                    try:
                        await take("echo")
                    except RuntimeClosedError as error:
                        refused.append(error)

    async with runtime:
        await runtime.submit("parent")
        await anyio.wait_all_tasks_blocked()
    assert len(refused) == 2


@simulate(runs=20)
async def test_drain_says_whether_all_have_ended() -> None:
    """False when the time is over, and then they go on; True when they are done, and at once if there are none."""
    async with runtime_of() as runtime:
        hold = holding(runtime)
        handle = await runtime.submit("hold", {"n": 1})
        assert not await runtime.drain(5)
        assert (handle.state, anyio.current_time()) == (TaskState.RUNNING, 5)
        hold.opened.set()
        assert await runtime.drain()
        assert await handle.result() == {"n": 1}
        assert await runtime.drain(0)


async def test_unusable_times_are_refused() -> None:
    """Nothing begins to close then."""
    async with runtime_of() as runtime:
        for bad in (-1, float("nan"), float("inf"), "1", True):
            with pytest.raises(ConfigurationError):
                await runtime.drain(bad)  # type: ignore[arg-type]
            with pytest.raises(ConfigurationError):
                await runtime.shutdown(bad)  # type: ignore[arg-type]
        assert runtime.statistics().state == "open"
        assert await runtime.run("echo") == {}


async def test_shutdown_happens_once() -> None:
    """Later calls, and the exit, give the first report."""
    runtime = runtime_of()
    async with runtime:
        report = await runtime.shutdown(reason="first")
        assert await runtime.shutdown(reason="second") is report
    assert runtime.report is report
    assert report.reason == "first"
    assert ["runtime_closed"] == [event.event_type for event in runtime.events()]


@simulate(runs=20)
async def test_a_failing_clean_up_is_told_when_shutdowns_overlap() -> None:
    """One waits for the clean-up, another comes in: what went wrong is in the report and is raised, once."""
    ended: list[str] = []
    error = OSError("stuck")
    runtime = runtime_of()
    with pytest.raises(AgentCrashedError) as caught:
        async with runtime, anyio.create_task_group() as group:
            cleaning, clean = anyio.Event(), anyio.Event()

            class Slow(Clumsy):
                async def terminate(self) -> None:
                    cleaning.set()
                    await clean.wait()
                    raise error

            runtime.registry("agents").register("slow", Slow(AgentConfig("slow", "slow"), ended))
            await start_all(group, runtime.shutdown, runtime.shutdown)
            await cleaning.wait()
            clean.set()
    assert [error] == list(caught.value.exceptions)
    assert runtime.report is not None
    assert (("slow", error),) == runtime.report.agents_failed
    assert ["runtime_closed"] == [event.event_type for event in runtime.events()]


# Agents.


@pytest.fixture
def process_wide() -> Any:
    """Leave the registries of the process as they were: empty."""
    clear_registries()
    yield get_registry("agents")
    clear_registries()


async def test_shared_agents_are_terminated_in_reverse_order(process_wide: Any) -> None:
    """Those that were registered in the runtime, after its tasks; those of the process live on."""
    ended: list[str] = []
    of_process = clumsy("of the process", ended)
    process_wide.register("of the process", of_process)
    async with runtime_of() as runtime:
        agents = [clumsy(name, ended) for name in ("a", "b", "c")]
        for agent in agents:
            runtime.registry("agents").register(agent.name, agent)
        runtime.registry("agents").register("a again", agents[0])
        assert await runtime.run("of the process") == {"by": "of the process"}
        assert await runtime.run("b") == {"by": "b"}
        runtime.handler("last")(lambda given: ended.append("task"))
        await runtime.submit("hang")
    assert sorted(ended) == ["a", "b", "c"]
    assert ended.index("c") < ended.index("b")
    assert of_process.state is AgentState.IDLE
    assert {AgentState.TERMINATED} == {agent.state for agent in agents}


async def test_an_agent_of_the_process_that_is_registered_here_too_lives_on(process_wide: Any) -> None:
    """Others use it as well: a second name for it in one runtime does not make it that runtime's."""
    ended: list[str] = []
    shared = clumsy("shared", ended)
    process_wide.register("shared", shared)
    async with runtime_of() as runtime:
        runtime.registry("agents").register("borrowed", shared)
        assert await runtime.run("borrowed") == {"by": "shared"}
    assert (ended, shared.state) == ([], AgentState.IDLE)


async def test_failing_clean_ups_are_reported_and_raised() -> None:
    """Each agent is terminated whatever the others do; all failures are told."""
    ended: list[str] = []
    errors = {"a": OSError("a"), "c": ValueError("c")}
    runtime = runtime_of()
    with pytest.raises(AgentCrashedError) as caught:
        async with runtime:
            for name in ("a", "b", "c"):
                runtime.registry("agents").register(name, clumsy(name, ended, errors.get(name)))
    assert ended == ["c", "b", "a"]
    assert runtime.report is not None
    assert (("c", errors["c"]), ("a", errors["a"])) == runtime.report.agents_failed
    assert [errors["c"], errors["a"]] == list(caught.value.exceptions)


async def test_an_agent_of_one_task_is_terminated_with_it() -> None:
    """Each task has its own; the task's outcome stands though the clean-up fail, which the exit raises."""
    ended: list[str] = []
    error = OSError("late")
    with pytest.raises(AgentCrashedError) as caught:
        async with runtime_of() as runtime:
            names = iter("ab")

            def make() -> Clumsy:
                name = next(names)
                return clumsy(name, ended, error if name == "b" else None)

            runtime.registry("agents").register("clumsy_agent", make)
            assert await runtime.run("clumsy") == {"by": "a"}
            assert ended == ["a"]
            assert await (await runtime.submit("clumsy")).result() == {"by": "b"}
            assert ended == ["a", "b"]
    assert [error] == list(caught.value.exceptions)


@simulate(runs=20)
async def test_an_agent_of_one_task_is_terminated_when_the_task_is_cancelled() -> None:
    """Its clean-up runs to its end, shielded."""
    ended: list[str] = []

    class Hanging(Clumsy):
        async def process(self, context: AgentContext) -> Any:
            await anyio.sleep_forever()

        async def terminate(self) -> None:
            await anyio.sleep(3)
            ended.append(self.name)

    async with runtime_of() as runtime:
        runtime.registry("agents").register("hanging", Hanging)
        handle = await runtime.submit("hanging")
        await anyio.wait_all_tasks_blocked()
        handle.cancel()
        await handle.wait()
        assert (ended, anyio.current_time()) == (["hanging"], 3)


@simulate(runs=20)
async def test_the_shared_agents_end_after_the_tasks_that_use_them() -> None:
    """A task that is drained still finds its agent alive."""
    ended: list[str] = []
    async with AgentRuntime(grace=5) as runtime:
        hold = holding(runtime)
        runtime.registry("agents").register("agent", clumsy("agent", ended))

        @runtime.handler("user")
        async def user(given: dict[str, Any], context: AgentContext) -> dict[str, Any]:
            await hold.opened.wait()
            return {**await context.run("agent"), "ended": list(ended)}

        handle = await runtime.submit("user")
        await anyio.wait_all_tasks_blocked()
        hold.opened.set()
    assert await handle.result() == {"by": "agent", "ended": []}
    assert ended == ["agent"]
