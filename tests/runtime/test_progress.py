"""Progress: what a task tells of how far it has come, to its handle and to who listens."""

from __future__ import annotations

import threading
from typing import Any

import anyio
import anyio.to_thread
import pytest

from agentcore import (
    AgentConfig,
    AgentContext,
    AgentResult,
    AgentRuntime,
    BaseAgent,
    BaseTask,
    Event,
    TaskExecutionError,
    TaskState,
    WorkerPoolType,
    sync_runtime,
)
from agentcore.testing import simulate
from tests.runtime.parts import runtime_of

pytestmark = pytest.mark.anyio


async def step(given: dict[str, Any], context: AgentContext) -> None:
    """Tell of what is given, one a second."""
    for value in given["values"]:
        if isinstance(value, dict):
            context.progress(**value)
        else:
            context.progress(value)
        await anyio.sleep(1)


@simulate(runs=5)
async def test_the_handle_has_the_latest_value() -> None:
    """None before; the value, or the fields if there is none; a mere sign of life changes nothing."""
    async with runtime_of() as runtime:
        runtime.handler("step")(step)
        handle = await runtime.submit("step", {"values": [0.5, {"done": 3, "of": 4}, None, 0, {"value": 1, "of": 4}]})
        assert None is handle.progress()
        seen = []
        await anyio.sleep(0.5)
        for _ in range(5):
            seen.append(handle.progress())
            await anyio.sleep(1)
        assert [0.5, {"done": 3, "of": 4}, {"done": 3, "of": 4}, 0, 1] == seen
        assert handle.is_done
        assert 1 == handle.progress()


@simulate(runs=5)
async def test_who_listens_hears_of_it() -> None:
    """An event each, and none that the log keeps."""
    async with runtime_of() as runtime:
        runtime.handler("step")(step)
        heard: list[Event] = []
        end = runtime.subscribe(heard.append)
        handle = await runtime.submit("step", {"values": [1, None, {"value": 2, "of": 3}]})
        await handle.wait()
        end()
        told = [event for event in heard if event.event_type == "task_progress"]
        assert [(1, {}), (None, {}), (2, {"of": 3})] == [(event.data["value"], event.data["fields"]) for event in told]
        assert {handle.id} == {event.data["task_id"] for event in told}
        assert {"step"} == {event.data["type"] for event in told}
        assert sorted(event.sequence for event in heard) == [event.sequence for event in heard]
        assert len(heard) == len({event.sequence for event in heard})
        assert [] == [event for event in runtime.events() if event.event_type == "task_progress"]
        await runtime.run("step", {"values": [1] * 2_000})
        assert "task_accepted" == runtime.events()[0].event_type


@simulate(runs=5)
async def test_a_sink_that_raises_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """As with every other event."""

    def sink(event: Event) -> None:
        if event.event_type == "task_progress":
            raise ValueError("no")

    async with runtime_of() as runtime:
        runtime.handler("step")(step)
        runtime.subscribe(sink)
        await runtime.run("step", {"values": [1]})
    assert "raised on event 'task_progress'" in caplog.text


class Asked(BaseAgent):
    """An agent that tells of progress."""

    async def initialize(self) -> bool:
        return True

    async def process(self, context: AgentContext) -> AgentResult:
        context.progress("of the asked")
        return AgentResult.success_result({})

    async def handle_error(self, error: Exception, context: AgentContext) -> AgentResult:
        raise error


@simulate(runs=5)
async def test_an_ask_has_no_task_to_tell_it_to() -> None:
    """Nor has a context that was made by hand: nothing happens. With a task it is the task's."""
    agent = Asked(AgentConfig("asked", "test"))
    await agent.execute(AgentContext())
    task = BaseTask.create("work")
    await agent.execute(AgentContext(task=task))
    assert "of the asked" == task._progress
    async with runtime_of() as runtime:
        heard: list[Event] = []
        runtime.subscribe(heard.append)
        assert (await runtime.ask(agent)).success

        @runtime.handler("parent")
        async def parent(given: dict[str, Any], context: AgentContext) -> None:
            context.progress("of the parent")
            await context.ask(agent)

        handle = await runtime.submit("parent")
        await handle.wait()
        assert "of the parent" == handle.progress()
        assert ["of the parent"] == [event.data["value"] for event in heard if event.event_type == "task_progress"]

        @runtime.handler("hands on")
        async def hands_on(given: dict[str, Any], context: AgentContext) -> None:
            await context.ask(agent, context)

        handle = await runtime.submit("hands on")
        await handle.wait()
        assert "of the asked" == handle.progress()


@pytest.mark.parametrize("way", ["handler", "pool"])
async def test_from_threads(way: str) -> None:
    """A synchronous handler, and a job of a pool, tell of it too; who listens hears of it in the event loop."""
    heard: list[tuple[Any, int]] = []
    async with AgentRuntime() as runtime:
        home = threading.get_ident()
        runtime.subscribe(
            lambda event: (
                heard.append((event.data["value"], threading.get_ident()))
                if event.event_type == "task_progress"
                else None
            )
        )

        def work(context: AgentContext) -> str:
            for number in range(3):
                context.progress(number)
            return "done"

        if way == "handler":
            runtime.handler("work")(lambda given, context: work(context))
        else:

            @runtime.handler("work")
            async def in_pool(given: dict[str, Any], context: AgentContext) -> Any:
                return await context.pool("threads", WorkerPoolType.THREAD).asubmit(work, context)

        handle = await runtime.submit("work", idle_timeout=60)
        assert {"result": "done"} == await handle.result()
        await anyio.wait_all_tasks_blocked()
        assert 2 == handle.progress()
    # The last ones may come when the task has ended.
    assert {home} >= {thread for _, thread in heard}
    assert [value for value, _ in heard] == list(range(len(heard)))


async def test_a_thread_moves_the_idle_deadline() -> None:
    """What a synchronous handler does is no idleness, as long as it tells of it."""
    async with AgentRuntime() as runtime:

        @runtime.handler("work")
        def work(given: dict[str, Any], context: AgentContext) -> str:
            for _ in range(given["steps"]):
                pause.wait(0.02)
                context.progress()
            pause.wait(given["pause"])
            anyio.from_thread.check_cancelled()
            return "done"

        pause = threading.Event()
        assert {"result": "done"} == await runtime.run("work", {"steps": 30, "pause": 0}, idle_timeout=0.3)
        task = BaseTask.create("work", {"steps": 1, "pause": 0.5})
        with pytest.raises(TaskExecutionError):
            await runtime.run(task, idle_timeout=0.2)
        assert ("idle", TaskState.FAILED) == ((task.error or {})["deadline"], task.state)


@simulate(runs=5)
async def test_what_comes_after_the_end() -> None:
    """A sign of something that an execution has left behind is no event of its task any more."""
    async with runtime_of() as runtime, anyio.create_task_group() as outside:
        heard: list[Event] = []
        runtime.subscribe(heard.append)

        @runtime.handler("leaves")
        async def leaves(given: dict[str, Any], context: AgentContext) -> None:
            async def later() -> None:
                await anyio.sleep(1)
                context.progress("late")

            outside.start_soon(later)

        await runtime.run("leaves", idle_timeout=5)
        await anyio.sleep(2)
        assert [] == [event for event in heard if event.event_type == "task_progress"]


def test_of_a_program_that_is_not_asynchronous() -> None:
    """Its handles have it too."""
    with sync_runtime() as runtime:

        @runtime.handler("work")
        async def work(given: dict[str, Any], context: AgentContext) -> None:
            context.progress(0.5)

        handle = runtime.submit("work")
        handle.wait(5)
        assert 0.5 == handle.progress()
