"""Sweeps of runtimes: running and submitting tasks, waiting for them, and the end of the block."""

from __future__ import annotations

from typing import Any

import anyio

from agentcore import (
    AgentCapability,
    AgentConfig,
    AgentContext,
    AgentCrashedError,
    AgentRuntime,
    CoreError,
    RuntimeClosedError,
    TaskCanceledError,
    TaskExecutionError,
    TaskTimeoutError,
)
from agentcore.testing import current_simulation
from tests.sweeps.scenarios import Crash, Runtime, Worker, leaves, scenario, steps

RUN = ("AgentRuntime.run", "Scheduler.run")
SUBMIT = ("AgentRuntime.submit", "Scheduler.submit")
RESULT = ("TaskHandle.result", "TaskHandle.wait")
BLOCK = ("AgentRuntime.__aenter__", "AgentRuntime.__aexit__")
END = ("AgentRuntime.shutdown", "AgentRuntime.drain", "Scheduler.wait_idle", "Scheduler.cut")


def open_(**settings: Any) -> Any:
    """Return what makes a runtime that is entered before the scenario begins."""
    return lambda: Runtime(**settings)


def closed(**settings: Any) -> Any:
    """Return what makes a runtime that the scenario enters and leaves."""
    return lambda: Runtime(inside=True, **settings)


# Running.


@scenario(open_(), *RUN, strict=True, within=0.0)
async def run_alone(state: Runtime) -> None:
    state.expect({"word": "work"} == await state.run("work"))
    state.expect({"word": "sleep"} == await state.run("sleep"))


@scenario(open_(in_flight=1), *RUN, strict=True, within=0.0)
async def run_contended(state: Runtime) -> None:
    async with anyio.create_task_group() as group:
        for word in ("work", "sleep", "fail", "work"):
            group.start_soon(state.run_quietly, word)


@scenario(open_(in_flight=2, concurrency=1), *RUN, strict=True, within=0.0)
async def run_with_one_at_a_time(state: Runtime) -> None:
    """Who waits for an agent lends his slot to another task."""
    async with anyio.create_task_group() as group:
        for word in ("sleep", "sleep", "sleep", "work"):
            group.start_soon(state.run_quietly, word)


@scenario(open_(), *RUN, strict=True, within=0.0)
async def run_what_fails(state: Runtime) -> None:
    with state.raises(TaskExecutionError):
        await state.run("fail")


@scenario(open_(), *RUN, strict=True, within=0.5)
async def run_with_a_timeout(state: Runtime) -> None:
    with state.raises(TaskExecutionError):
        await state.run("sleep", timeout=0.5)
    await state.run("sleep", timeout=5)


@scenario(open_(in_flight=1), *RUN, within=1.0)
async def run_with_a_deadline_in_the_queue(state: Runtime) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(state.run_quietly, "sleep")
        await current_simulation().settle()
        with state.raises(TaskTimeoutError):
            await state.run("work", deadline=0.5)


@scenario(open_(), *RUN, within=1.0)
async def run_what_is_hard_to_cancel(state: Runtime) -> None:
    with state.raises(TaskExecutionError):
        await state.run("stubborn", timeout=1)


@scenario(open_(in_flight=1), *RUN, strict=True, within=0.0)
async def run_inside_of_a_task(state: Runtime) -> None:
    async def inner() -> Any:
        return await state.run("sleep", {"then": innermost})

    async def innermost() -> Any:
        await steps()
        return await state.run("work")

    async with anyio.create_task_group() as group:
        group.start_soon(state.run_quietly, "work")
        group.start_soon(state.run, "work", {"then": inner})


@scenario(open_(in_flight=1), *RUN, *SUBMIT, *RESULT, strict=True, within=0.0)
async def submit_inside_of_a_task(state: Runtime) -> None:
    """The parent lends its slot while it waits for its child."""

    async def inner() -> Any:
        handle = await state.submit("sleep")
        other = await state.submit("fail")
        return [await handle.result(), str(await state.retrieve(other))]

    async with anyio.create_task_group() as group:
        group.start_soon(state.run_quietly, "work")
        group.start_soon(state.run, "work", {"then": inner})


class Temporary(Worker):
    """An agent of one task."""

    def __init__(self, config: AgentConfig) -> None:
        super().__init__(config.name, clean_up=str(config.metadata.get("clean_up", "work")), timeout=30.0)


class OfClass(Runtime):
    """A runtime with a class of agents; notes what it has made."""

    def __init__(self, clean_up: str = "work", **settings: Any) -> None:
        super().__init__(**settings)
        self.made: list[Temporary] = []

        def make() -> Temporary:
            agent = Temporary(
                AgentConfig("temporary", "t", {AgentCapability.PLANNING}, metadata={"clean_up": clean_up})
            )
            self.made.append(agent)
            return agent

        self.runtime.registry("agents").register("temporary", make)

    def check_tasks(self) -> None:
        super().check_tasks()
        assert all(agent.is_terminated and agent.inside == 0 for agent in self.made)
        assert {1} >= {agent.begun["terminate"] for agent in self.made}


@scenario(OfClass, *RUN, *SUBMIT, *RESULT, within=0.0)
async def run_by_an_agent_of_its_own(state: OfClass) -> None:
    state.expect({"by": "temporary"} == await state.run("temporary"))
    await state.run_quietly("temporary", {"do": "fail"})
    handle = await state.submit("temporary", {"do": "sleep"})
    state.expect({"by": "temporary"} == await state.retrieve(handle))


@scenario(lambda: OfClass("fail", lose=("Boom",)), *RUN, within=0.0)
async def run_by_an_agent_that_cannot_be_terminated(state: OfClass) -> None:
    state.expect({"by": "temporary"} == await state.run("temporary"))


class InThread(Runtime):
    """A runtime with a handler that runs in a thread."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.calls = self.returns = 0

        @self.runtime.handler("thread")
        def thread(given: dict[str, Any]) -> int:
            self.calls += 1
            if given.get("do") == "fail":
                self.returns += 1
                raise ValueError("as told")
            self.returns += 1
            return self.calls

    def check_tasks(self) -> None:
        super().check_tasks()
        assert self.calls == self.returns


@scenario(InThread, *RUN, *SUBMIT, *RESULT, strict=True, within=0.0)
async def run_in_a_thread(state: InThread) -> None:
    await state.run("thread")
    handle = await state.submit("thread", {"do": "fail"})
    state.expect(isinstance(await state.retrieve(handle), TaskExecutionError))


class Contexts(Runtime):
    """A runtime with an agent that uses its context."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)

        @self.runtime.handler("parent")
        async def parent(given: dict[str, Any], context: AgentContext) -> dict[str, Any]:
            task = self.make("sleep")
            handle = await context.submit(task)
            self.handles.append(handle)
            ran = await context.run(self.make("work"))
            context.checkpoint({"ran": 1})
            return {"ran": ran, "submitted": await handle.result()}


@scenario(
    lambda: Contexts(in_flight=1),
    "AgentContext.run",
    "AgentContext.submit",
    *RUN,
    *SUBMIT,
    strict=True,
    within=0.0,
)
async def run_by_the_context(state: Contexts) -> None:
    found = await state.run("parent")
    state.expect({"ran": {"word": "work"}, "submitted": {"word": "sleep"}} == found)


@scenario(lambda: Contexts(in_flight=2), "AgentContext.run", "AgentContext.submit", *SUBMIT, *RESULT, within=0.0)
async def submit_by_the_context(state: Contexts) -> None:
    handles = [await state.submit("parent") for _ in range(2)]
    for handle in handles:
        await handle.result()


# Submitting and waiting.


@scenario(open_(), *SUBMIT, *RESULT, strict=True, within=0.0)
async def submit_alone(state: Runtime) -> None:
    handle = await state.submit("sleep")
    state.expect({"word": "sleep"} == await handle.result())
    state.expect({"word": "sleep"} == await handle.result())
    state.expect((await handle.wait()).success)


@scenario(open_(), *SUBMIT, *RESULT, strict=True, within=0.0)
async def submit_what_fails(state: Runtime) -> None:
    handle = await state.submit("fail")
    state.expect(isinstance(await state.retrieve(handle), TaskExecutionError))


@scenario(open_(in_flight=1, queue=1), *SUBMIT, strict=True, within=0.0)
async def submit_to_a_full_queue(state: Runtime) -> None:
    async with anyio.create_task_group() as group:
        for word in ("sleep", "work", "sleep", "work"):
            group.start_soon(state.submit, word)


async def submit_quietly(state: Runtime, word: str, deadline: float | None = None) -> None:
    """Submit what may be refused."""
    try:
        await state.submit(word, deadline=deadline)
    except CoreError:
        return


@scenario(open_(in_flight=1, queue=1), *SUBMIT, within=2.0)
async def submit_to_a_full_queue_with_a_deadline(state: Runtime) -> None:
    async with anyio.create_task_group() as group:
        for word, deadline in (("sleep", 5.0), ("sleep", 5.0), ("work", 0.5), ("work", 1.0)):
            group.start_soon(submit_quietly, state, word, deadline)


@scenario(open_(), *SUBMIT, *RESULT, strict=True, within=0.0)
async def wait_from_several_sides(state: Runtime) -> None:
    handle = await state.submit("sleep")
    async with anyio.create_task_group() as group:
        group.start_soon(handle.wait)
        group.start_soon(handle.result)
        await handle.wait()


@scenario(open_(in_flight=1), *SUBMIT, *RESULT, within=0.0)
async def cancel_what_was_submitted(state: Runtime) -> None:
    """One that runs, and one that waits for its turn."""
    handles = [await state.submit(word) for word in ("hang", "hang", "stubborn", "work")]
    await steps(2)
    for handle in reversed(handles):
        handle.cancel("not needed")
    for handle in handles[:2]:
        with state.raises(TaskCanceledError):
            await handle.result()


@scenario(open_(), *SUBMIT, *RESULT, within=1.0)
async def wait_for_what_is_hard_to_cancel(state: Runtime) -> None:
    handle = await state.submit("stubborn")
    await anyio.sleep(0.5)
    handle.cancel("not needed")
    state.expect(not (await handle.wait()).success)


@scenario(open_(concurrency=1), *SUBMIT, *RESULT, within=0.0)
async def wait_in_a_circle(state: Runtime) -> None:
    """A task waits for another of the same agent, which takes one at a time: it is told of a deadlock."""

    async def inner() -> Any:
        handle = await state.submit("work")
        return str(await state.retrieve(handle))

    first = await state.submit("work", {"then": inner})
    await state.retrieve(first)


# Draining and shutting down.


@scenario(open_(in_flight=1), *END, strict=True, within=0.0)
async def drain_at_leisure(state: Runtime) -> None:
    await state.submit("sleep")
    await state.submit("work")
    state.expect(await state.runtime.drain())


@scenario(open_(in_flight=1), "AgentRuntime.drain", within=0.5)
async def drain_in_too_short_a_time(state: Runtime) -> None:
    await state.submit("long")
    state.expect(not await state.runtime.drain(0.5))


@scenario(open_(in_flight=1, queue=1), *END, *SUBMIT, within=1.0)
async def drain_while_submitters_wait(state: Runtime) -> None:
    async with anyio.create_task_group() as group:
        for word in ("sleep", "work", "work", "work"):
            group.start_soon(submit_quietly, state, word)
        await current_simulation().settle()
        group.start_soon(state.runtime.drain)
        await current_simulation().settle()
        with state.raises(RuntimeClosedError):
            await state.submit("work")


@scenario(open_(in_flight=1, grace=0.5), *END, within=2.0)
async def shut_down_from_two_sides(state: Runtime) -> None:
    async with anyio.create_task_group() as group:
        for word in ("stubborn", "hang"):
            await state.submit(word)
        group.start_soon(state.run_quietly, "sleep")
        await anyio.sleep(0.1)
        group.start_soon(state.runtime.shutdown)
        await state.runtime.shutdown(0.2)
    state.expect(state.runtime.report is not None)


@scenario(open_(), *END, *SUBMIT, within=5.0)
async def shut_down_inside_of_a_task(state: Runtime) -> None:
    async def inner() -> Any:
        return (await state.runtime.shutdown(1.0, "a task says so")).drained

    await state.submit("hang")
    handle = await state.submit("work", {"then": inner})
    await state.retrieve(handle)


@scenario(open_(in_flight=1), "Scheduler.wait_idle", *SUBMIT, strict=True, within=0.0)
async def wait_until_all_have_ended(state: Runtime) -> None:
    await state.submit("sleep")
    await state.submit("work")
    await state.runtime.tasks.wait_idle()


@scenario(open_(in_flight=1), "Scheduler.cut", within=1.0)
async def cut_what_there_is(state: Runtime) -> None:
    for word in ("stubborn", "hang", "work"):
        await state.submit(word)
    await steps(2)
    await state.runtime.tasks.cut("enough")
    state.expect(not state.runtime.tasks.active())


# The block.


async def block(state: Runtime, inside: Any) -> None:
    """Enter the runtime, do something, leave it, and note what it raises then."""
    try:
        async with state.runtime:
            await inside(state)
    except (AgentCrashedError, BaseExceptionGroup) as error:
        state.note(error)
        if not isinstance(error, AgentCrashedError):
            cancelled = anyio.get_cancelled_exc_class()
            if any(isinstance(leaf, cancelled) for leaf in leaves(error)):
                raise


@scenario(closed(in_flight=1), *BLOCK, *END, *SUBMIT, within=5.0)
async def leave_with_work_to_do(state: Runtime) -> None:
    async def inside(state: Runtime) -> None:
        for word in ("sleep", "work", "fail"):
            await state.submit(word)

    await block(state, inside)
    state.expect(state.told)


@scenario(closed(in_flight=2, grace=0.5), *BLOCK, *END, within=1.5)
async def leave_when_the_grace_is_over(state: Runtime) -> None:
    async def inside(state: Runtime) -> None:
        for word in ("hang", "stubborn", "long", "work"):
            await state.submit(word)

    await block(state, inside)


@scenario(closed(in_flight=2), *BLOCK, *END, within=1.0)
async def leave_by_an_error(state: Runtime) -> None:
    async def inside(state: Runtime) -> None:
        for word in ("hang", "stubborn", "fail"):
            await state.submit(word)
        await steps(2)
        raise ValueError("the block fails")

    try:
        await block(state, inside)
    except ValueError:
        return
    state.told = [error for error in state.told if not isinstance(error, ValueError)]


def with_agents() -> Runtime:
    return Runtime(
        inside=True,
        grace=1.0,
        agents=(
            Worker("first", max_concurrency=1, timeout=90.0, terminate_timeout=1.0),
            Worker("failing", clean_up="fail", terminate_timeout=1.0),
            Worker("hanging", clean_up="hang", terminate_timeout=1.0),
            Worker("last", max_concurrency=1, timeout=90.0, terminate_timeout=1.0),
        ),
        lose=("Boom", "AgentTimeoutError"),
    )


@scenario(closed(grace=1.0), *BLOCK, *END, within=8.0)
async def leave_while_a_task_shuts_down(state: Runtime) -> None:
    """What was cut short has ended when the report is made, also if it was shutting the runtime down itself."""

    async def inner() -> Any:
        await state.runtime.shutdown(3.0, "a task says so")
        await anyio.sleep(1)

    async def inside(state: Runtime) -> None:
        await state.submit("stubborn")
        await state.submit("work", {"then": inner})
        await anyio.sleep(0.1)

    await block(state, inside)


@scenario(with_agents, *BLOCK, *END, "BaseAgent.terminate", within=8.0)
async def leave_with_agents_of_its_own(state: Runtime) -> None:
    """Each is terminated, although the clean-up of two fails."""

    async def inside(state: Runtime) -> None:
        await state.submit("first", {"do": "work"})
        await state.submit("last", {"do": "long"})
        await state.submit("last", {"do": "work"})

    await block(state, inside)


@scenario(closed(lose=("Crash",)), *BLOCK, within=1.0, allow=(Crash,))
async def leave_after_a_crash(state: Runtime) -> None:
    async def inside(state: Runtime) -> None:
        await state.submit("stubborn")
        await state.submit("crash")
        await anyio.sleep(5)

    await block(state, inside)
    state.expect(any(isinstance(error, Crash) for error in state.told))


@scenario(closed(in_flight=2), *BLOCK, *RUN, within=10.0)
async def leave_two_runtimes(state: Runtime) -> None:
    """A task of the outer one enters another, which runs tasks of the outer one."""

    async def enter() -> Any:
        async with AgentRuntime(grace=1.0) as inner:

            @inner.handler("inner")
            async def work(given: dict[str, Any]) -> Any:
                return await state.run("work")

            handle = await inner.submit("inner")
            return (await handle.wait()).output

    async def inside(state: Runtime) -> None:
        await state.submit("sleep")
        await state.run("work", {"then": enter})

    await block(state, inside)
