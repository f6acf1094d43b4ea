"""Sweeps of asks and streams: agents that execute in the tasks of their callers, and while somebody listens."""

from __future__ import annotations

from typing import Any

import anyio

from agentcore import (
    AgentContext,
    AgentExecutionError,
    AgentResult,
    AgentState,
    CoreError,
    RuntimeClosedError,
    TaskHandle,
)
from tests.sweeps.of_runtime import block
from tests.sweeps.scenarios import Crash, Runtime, Worker, check_agent, leaves, scenario, steps

ASK = ("AgentRuntime.ask",)
STREAM = ("AgentStream.__aenter__", "AgentStream.__aexit__", "AgentStream.__anext__")


class Delegate(Worker):
    """An agent that uses its context first: it emits so many numbers, asks one after the other, maps words."""

    async def process(self, context: AgentContext) -> AgentResult:
        given = context.input
        for number in range(given.get("emit", 0)):
            await context.emit(number)
        if whom := given.get("ask"):
            await context.ask(whom[0], {"ask": whom[1:], "do": given.get("last", "work")})
        if words := given.get("map"):
            await context.map(words[0], [{"n": number} for number in range(len(words))], limit=2)
        return await super().process(context)


class Tool:
    """A resource that notes in which order all are opened and closed.

    Args:
        log: of all resources of a runtime.
        opening: what opening it does.
        closing: what closing it does.
    """

    def __init__(self, name: str, log: list[str], opening: str = "work", closing: str = "work") -> None:
        self.name = name
        self.log = log
        self.opening = opening
        self.closing = closing

    def note(self, what: str) -> None:
        """Note what happens to it."""
        self.log.append(f"{what} {self.name}")


class Life(Runtime):
    """A runtime with two agents that take one execution at a time, agents made for one, and a list of its resources."""

    def __init__(self, *, handle: str = "work", broken: bool = False, **settings: Any) -> None:
        self.team = tuple(
            Delegate(name, handle=handle, max_concurrency=1, timeout=90.0, terminate_timeout=1.0)
            for name in ("first", "second")
        )
        super().__init__(agents=self.team, **settings)
        self.broken = broken or handle != "work"
        self.made: list[Delegate] = []
        self.log: list[str] = []
        self.results: list[AgentResult] = []
        self.heard: list[Any] = []
        self.refused: list[CoreError] = []
        self.runtime.registry("agents").register("temporary", self._make)

    def _make(self) -> Delegate:
        agent = Delegate("temporary", timeout=30.0, terminate_timeout=1.0)
        self.made.append(agent)
        return agent

    # What a scenario does.

    async def ask(
        self, do: str = "work", ref: str = "first", timeout: float | None = None, **given: Any
    ) -> AgentResult:
        """Ask an agent to do something."""
        result = await self.runtime.ask(ref, {"do": do, **given}, timeout=timeout)
        self.results.append(result)
        return result

    async def ask_quietly(self, do: str = "work", ref: str = "first", **given: Any) -> None:
        """Ask an agent, and note what it raises; it has to be an error of this library."""
        try:
            await self.ask(do, ref, **given)
        except CoreError as error:
            self.refused.append(error)

    async def listen(
        self, do: str = "work", ref: str = "first", *, most: int = 9, buffer: int = 0, **given: Any
    ) -> None:
        """Listen to an agent, for a number of items at most."""
        async with self.runtime.stream(ref, {"do": do, **given}, buffer=buffer) as stream:
            async for item in stream:
                self.heard.append(item)
                if len(self.heard) == most:
                    return
        self.results.append(stream.result)

    def learn(self, error: BaseException) -> None:
        """Note the tasks of whose failure an error tells."""
        notes = [note for leaf in (error, *leaves(error)) for note in getattr(leaf, "__notes__", ())]
        for leaf in leaves(error):
            if isinstance(leaf, CoreError) and leaf.details:
                self._retrieved.add(leaf.details.get("task_id", ""))
        self._retrieved |= {handle.id for handle in self.handles if any(f"task {handle.id} " in note for note in notes)}

    def look(self, handle: TaskHandle) -> None:
        """Note that the scenario has looked how a task has ended."""
        self._retrieved.add(handle.id)

    # What must be true.

    async def check(self) -> None:
        """Look at the agents too, and at the order in which resources were closed."""
        await super().check()
        self.check_resources()
        for agent in self.made:
            assert agent.is_terminated
            await check_agent(agent)
        if not self.inside:
            for one in self.team:
                one.mend()
                await check_agent(one, broken=self.late or self.broken)

    def check_resources(self) -> None:
        """Check that whatever was opened was closed once, in reverse, when the agents had ended."""
        if not self.inside:
            return
        assert [] == self.runtime.resources._all
        opened = [entry.partition(" ")[2] for entry in self.log if entry.startswith("opened")]
        closing = [entry.partition(" ")[2] for entry in self.log if entry.startswith("closing")]
        assert sorted(opened) == sorted(closing)
        dead = [entry.partition(" ")[2] for entry in self.log if entry.startswith("dead")]
        assert [name for name in reversed(opened) if name not in dead] == [name for name in closing if name not in dead]


def open_(**settings: Any) -> Any:
    """Return what makes a runtime that is entered before the scenario begins."""
    return lambda: Life(**settings)


def closed(**settings: Any) -> Any:
    """Return what makes a runtime that the scenario enters and leaves."""
    return lambda: Life(inside=True, **settings)


# Asks.


@scenario(open_(), *ASK, strict=True, within=0.0)
async def ask_alone(state: Life) -> None:
    state.expect((await state.ask()).success)
    state.expect((await state.ask("sleep")).success)


@scenario(open_(), *ASK, "Scheduler.dismiss", within=0.0)
async def ask_an_agent_of_its_own(state: Life) -> None:
    state.expect((await state.ask("sleep", "temporary")).success)
    state.expect(not (await state.ask("fail", "temporary")).success)
    state.expect(2 == len(state.made))


@scenario(open_(), *ASK, strict=True, within=0.0)
async def ask_contended(state: Life) -> None:
    async with anyio.create_task_group() as group:
        for word in ("work", "sleep", "fail", "work"):
            group.start_soon(state.ask, word)
    state.expect(4 == len(state.results))


@scenario(open_(), *ASK, strict=True, within=0.5)
async def ask_with_a_timeout(state: Life) -> None:
    state.expect(not (await state.ask("long", timeout=0.5)).success)
    state.expect((await state.ask("sleep", timeout=5.0)).success)


@scenario(open_(handle="fail"), *ASK, strict=True, within=0.0, allow=(AgentExecutionError,))
async def ask_what_cannot_be_handled(state: Life) -> None:
    with state.raises(AgentExecutionError):
        await state.ask("fail")


@scenario(open_(), *ASK, within=1.0)
async def ask_what_is_hard_to_cancel(state: Life) -> None:
    state.expect(not (await state.ask("stubborn", timeout=1.0)).success)


@scenario(open_(), *ASK, "AgentContext.ask", strict=True, within=0.0)
async def ask_through_an_agent(state: Life) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(state.ask, "sleep", "second")
        state.expect((await state.ask(ask=("second", "temporary"), last="sleep")).success)


@scenario(open_(), *ASK, "AgentContext.ask", strict=True, within=0.0)
async def ask_in_a_circle(state: Life) -> None:
    """The innermost is told of a deadlock; the others take it as an error of that one."""
    await state.ask(ask=("second", "first"))


@scenario(open_(), *ASK, "AgentContext.ask", strict=True, within=0.0)
async def ask_in_chains_that_cross(state: Life) -> None:
    async def inner(other: str) -> None:
        await steps(2)
        await state.ask_quietly("work", other)

    async with anyio.create_task_group() as group:
        group.start_soon(state.ask, "work", "first", None)
        group.start_soon(lambda: state.ask("work", "first", then=lambda: inner("second")))
        group.start_soon(lambda: state.ask("work", "second", then=lambda: inner("first")))
    state.expect(4 <= len(state.results))


@scenario(lambda: Life(in_flight=1), *ASK, "AgentContext.map", strict=True, within=0.0)
async def ask_inside_of_a_task(state: Life) -> None:
    """Task, ask, tasks of the agent that is asked: all with one slot."""

    async def inner() -> Any:
        return (await state.ask(map=("sleep", "sleep", "sleep"))).success

    async with anyio.create_task_group() as group:
        group.start_soon(state.run_quietly, "work")
        group.start_soon(state.run, "work", {"then": inner})


@scenario(open_(broken=True), *ASK, strict=True, within=0.0, allow=(Crash,))
async def ask_what_crashes(state: Life) -> None:
    with state.raises(Crash):
        await state.ask("crash")


@scenario(open_(), *ASK, "AgentRuntime.shutdown", "AgentRuntime.drain", within=2.0)
async def shut_down_with_asks_under_way(state: Life) -> None:
    """Who is asked ends in the grace, or the asker is told; who waits for the agent is told as well."""
    async with anyio.create_task_group() as group:
        for word, ref in (("hang", "first"), ("work", "first"), ("stubborn", "second"), ("sleep", "temporary")):
            group.start_soon(state.ask_quietly, word, ref)
        await anyio.sleep(0.1)
        state.expect(not await state.runtime.drain(0.1))
        with state.raises(RuntimeClosedError):
            await state.ask()
        await state.runtime.shutdown(1.0)
    state.expect(len(state.refused) in (2, 3))  # whoever comes to the first agent first
    assert {RuntimeClosedError} >= {type(error) for error in state.refused}


# Streams.


@scenario(open_(), *STREAM, "AgentContext.emit", strict=True, within=0.0)
async def listen_to_the_end(state: Life) -> None:
    await state.listen("sleep", emit=3)
    state.expect([0, 1, 2] == state.heard)
    state.expect(state.results[-1:] and state.results[-1].success)


@scenario(open_(), *STREAM, "AgentContext.emit", within=0.0)
async def listen_to_the_beginning(state: Life) -> None:
    await state.listen(emit=5, most=2)
    await state.listen(emit=1, buffer=3, ref="temporary", most=3)
    state.expect([0, 1, 0] == state.heard)


@scenario(open_(), *STREAM, "AgentContext.emit", strict=True, within=0.0)
async def listen_from_two_sides(state: Life) -> None:
    """The agent takes one at a time."""
    async with anyio.create_task_group() as group:
        group.start_soon(lambda: state.listen("sleep", emit=1))
        group.start_soon(lambda: state.listen("sleep", emit=2))
        await state.ask()


@scenario(open_(), *STREAM, within=0.5)
async def listen_to_a_failure(state: Life) -> None:
    await state.listen("fail", emit=1)
    state.expect(state.results and not state.results[0].success)


@scenario(open_(handle="fail"), *STREAM, within=0.0, allow=(AgentExecutionError,))
async def listen_to_what_cannot_be_handled(state: Life) -> None:
    with state.raises(AgentExecutionError):
        await state.listen("fail", emit=1)


@scenario(open_(), *STREAM, within=1.0)
async def listen_to_what_is_hard_to_cancel(state: Life) -> None:
    await state.listen("stubborn", emit=2, most=1)
    await state.listen("stubborn", ref="second", emit=2, most=3)


@scenario(lambda: Life(in_flight=1), *STREAM, *ASK, strict=True, within=0.0)
async def listen_inside_of_a_task(state: Life) -> None:
    async def inner() -> Any:
        return await state.listen(emit=2)

    await state.run("work", {"then": inner})


@scenario(open_(), *ASK, "AgentContext.emit", strict=True, within=0.0)
async def emit_to_nobody(state: Life) -> None:
    state.expect((await state.ask(emit=2)).success)


@scenario(open_(), *STREAM, "AgentRuntime.shutdown", within=1.0)
async def shut_down_while_somebody_listens(state: Life) -> None:
    async def listen() -> None:
        try:
            await state.listen("hang", emit=2)
        except RuntimeClosedError as error:
            state.refused.append(error)

    async with anyio.create_task_group() as group:
        group.start_soon(listen)
        await anyio.sleep(0.1)
        await state.runtime.shutdown(0.5)
    state.expect(1 == len(state.refused))


@scenario(closed(lose=("Crash",)), *STREAM, within=1.0, allow=(Crash,))
async def listen_to_a_crash(state: Life) -> None:
    """The runtime has failed then, and says so at its end."""

    async def inside(state: Any) -> None:
        await state.submit("stubborn")
        with state.raises(Crash):
            await state.listen("crash", emit=1)

    await block(state, inside)
    state.expect(any(isinstance(error, Crash) for error in state.told))
    state.expect(all(agent.state is AgentState.TERMINATED for agent in state.team))
