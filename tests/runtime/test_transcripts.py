"""Programs that leave the same transcript on asyncio and on trio, under the same order of their tasks.

A transcript has the events of the runtime and what the program has noted itself, each with the moment and with identifiers
that are counted from the first; then how the program ended. The testing kit documents three places where AnyIO itself does
not do the same on both; the programs keep clear of them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import anyio
import anyio.lowlevel
import pytest

from agentcore import (
    AgentConfig,
    AgentContext,
    AgentCrashedError,
    AgentResult,
    AgentRuntime,
    Backoff,
    BaseAgent,
    CoreError,
    RetryPolicy,
    RuntimeConfig,
    TaskGroupError,
)
from agentcore.testing import BACKENDS, run_sim

Entry: TypeAlias = tuple[Any, ...]
SCHEDULES = ("fifo", "-", "walk/1", "walk/2", "rare/3", "pct/4/50")


class Transcript:
    """What a program has done, in order."""

    def __init__(self, *, hosted: bool, **limits: int) -> None:
        self.runtime = AgentRuntime(RuntimeConfig(**limits), grace=1.0, hosted=hosted)
        self.entries: list[Entry] = []
        self._ids: dict[str, str] = {}
        self.runtime.subscribe(lambda event: self.note(event.event_type, *sorted(event.data.items())))
        for handler in (self.work, self.fail, self.slow, self.parent, self.crash):
            self.runtime.handler(handler.__name__)(handler)

    def note(self, what: str, *details: Any) -> None:
        """Note something, with the moment of it."""
        self.entries.append((anyio.current_time(), what, self.normal(repr(details))))

    def normal(self, text: str) -> str:
        """Replace identifiers by their numbers, and leave out what lies in memory where."""
        text = re.sub(r"sim-\d+", lambda found: self._ids.setdefault(found[0], f"id {len(self._ids) + 1}"), text)
        return re.sub(r"0x[0-9a-f]+|[0-9a-f]{12}", "address", text)

    def told(self, error: BaseException) -> None:
        """Note an error, all of its parts, causes and notes."""
        self.note("error", *describe(error))

    # The handlers.

    async def work(self, given: dict[str, Any]) -> dict[str, Any]:
        for _ in range(given.get("steps", 2)):
            await anyio.lowlevel.checkpoint()
        self.note("worked", given.get("n"))
        return {"n": given.get("n")}

    async def fail(self, given: dict[str, Any]) -> None:
        await anyio.sleep(given.get("after", 0))
        raise ValueError(f"number {given.get('n')}")

    async def slow(self, given: dict[str, Any]) -> None:
        try:
            await anyio.sleep(given.get("seconds", 60))
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.25)
            self.note("cleaned", given.get("n"))

    async def parent(self, given: dict[str, Any], context: AgentContext) -> dict[str, Any]:
        async with context.group() as group:
            child = group.start("work", {"n": "child"})
            ran = await context.run("work", {"n": "inner"})
        return {"child": await child.result(), "ran": ran}

    async def crash(self, given: dict[str, Any]) -> None:
        await anyio.lowlevel.checkpoint()
        raise Crash("as told")


class Crash(BaseException):
    """What no ``except Exception`` may catch."""


class Speaker(BaseAgent):
    """An agent that emits some numbers, asks the next one if there is one, and fails if it is told to."""

    def __init__(self, state: Transcript, name: str, **settings: Any) -> None:
        super().__init__(AgentConfig(name, "speaker", **settings))
        self._state = state

    async def initialize(self) -> bool:
        self._state.note("initialised", self.name)
        return True

    async def process(self, context: AgentContext) -> AgentResult:
        for number in range(context.input.get("emit", 1)):
            await context.emit(number)
            self._state.note("emitted", self.name, number)
        if "ask" in context.input:
            return await context.ask(context.input["ask"])
        if context.input.get("fail"):
            raise ValueError(f"{self.name} fails")
        await anyio.sleep(context.input.get("seconds", 0))
        return AgentResult.success_result({"by": self.name})

    async def handle_error(self, error: Exception, context: AgentContext) -> AgentResult:
        return AgentResult.error_result(repr(error))

    async def terminate(self) -> None:
        self._state.note("terminated", self.name)


def describe(error: BaseException | None) -> tuple[Any, ...]:
    """Return what an error says: type, text, parts in the order of their texts, cause, notes."""
    if error is None:
        return ()
    assert error.__cause__ is not error
    parts = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    below = tuple(sorted((describe(part) for part in parts), key=repr))
    return type(error).__name__, str(error), below, describe(error.__cause__), getattr(error, "__notes__", [])


Program: TypeAlias = Callable[[Transcript], Awaitable[None]]


async def asks(state: Transcript) -> None:
    """Shared and owned agents, in line for one, through one another, with a timeout and an error."""
    first, second = Speaker(state, "first", max_concurrency=1), Speaker(state, "second")
    state.runtime.registry("agents").register("owned", lambda: Speaker(state, "owned"))

    async def ask(ref: Any, **given: Any) -> None:
        result = await state.runtime.ask(ref, given, timeout=0.5)
        state.note("result", result.success, result.output, str(result.error), describe(result.cause))

    async with anyio.create_task_group() as group:
        group.start_soon(lambda: ask(first, ask=second))
        group.start_soon(lambda: ask(first, fail=True))
        group.start_soon(lambda: ask("owned", seconds=0.25))
        group.start_soon(lambda: ask(second, seconds=9))
        group.start_soon(lambda: ask("owned", ask="nobody knows it"))


async def groups(state: Transcript) -> None:
    """A group that succeeds, one with failures, one that tells the first, one that collects."""
    for on_error in ("cancel", "first", "collect"):
        try:
            async with state.runtime.group(on_error) as group:  # type: ignore[arg-type]
                group.start("work", {"n": on_error})
                group.start("slow", {"n": on_error, "seconds": 2})
                group.start("fail", {"n": on_error, "after": 1})
        except CoreError as error:
            state.told(error)
        state.note("results", [(result.state.name, result.output, result.error) for result in group.results])
    state.note("parent", await state.runtime.run("parent"))


async def streams(state: Transcript) -> None:
    """To the end, left early, from two sides, and one that fails."""
    agent = Speaker(state, "speaker", max_concurrency=1)

    async def listen(name: str, most: int, **given: Any) -> None:
        async with state.runtime.stream(agent, given) as stream:
            async for item in stream:
                state.note("heard", name, item)
                most -= 1
                if not most:
                    return
        state.note("result", name, stream.result.success, stream.result.output, str(stream.result.error))

    await listen("all", 9, emit=3)
    await listen("some", 2, emit=5)
    async with anyio.create_task_group() as group:
        group.start_soon(lambda: listen("one", 9, emit=2))
        group.start_soon(lambda: listen("other", 9, emit=2, fail=True))


async def maps(state: Transcript) -> None:
    """In order, in the order of the ends, and with a failure."""
    inputs: list[dict[str, Any]] = [{"n": number, "steps": 5 - number} for number in range(5)]
    state.note("mapped", await state.runtime.map("work", inputs, limit=2))
    async with state.runtime.as_completed("work", inputs, limit=3) as ended:
        async for handle in ended:
            state.note("ended", handle.task.input["n"])
            if handle.task.input["n"] == 3:
                break
    try:
        await state.runtime.map("fail", inputs, limit=2)
    except TaskGroupError as error:
        state.told(error)


async def lines(state: Transcript) -> None:
    """More tasks than slots, of different priority; some are cancelled, some fail, some are left to the exit."""
    handles = [
        await state.runtime.submit("work", {"n": number}, priority=priority)
        for number, priority in enumerate(["low", "normal", "critical", "low", "high"])
    ]
    failed = await state.runtime.submit("fail", {"n": "looked at"})
    await state.runtime.submit("fail", {"n": "not looked at"})
    await state.runtime.submit("slow", {"n": "cut short"})
    handles[3].cancel("not needed")
    for handle in [*handles, failed]:
        try:
            state.note("result", await handle.result())
        except CoreError as error:
            state.told(error)


async def resources(state: Transcript) -> None:
    """Closed in reverse, after an agent; one of them cannot be closed."""

    @asynccontextmanager
    async def tool(name: str, error: Exception | None = None) -> AsyncGenerator[str]:
        await anyio.lowlevel.checkpoint()
        state.note("opened", name)
        yield name
        await anyio.sleep(0.25)
        state.note("closed", name)
        if error is not None:
            raise error

    state.runtime.registry("agents").register("shared", Speaker(state, "shared"))
    for name, error in (("one", None), ("two", ValueError("cannot be closed")), ("three", None)):
        state.note("gave", await state.runtime.resource(tool(name, error), name))
    state.note("run", await state.runtime.run("shared"))


async def crashes(state: Transcript) -> None:
    """Something that nothing catches ends all: strict the block too, hosted what comes after it."""
    await state.runtime.submit("slow", {"n": "beside it"})
    await anyio.lowlevel.checkpoint()
    await state.runtime.submit("crash")
    try:
        await anyio.sleep(5)
    finally:
        state.note("health", state.runtime.health().state)
    try:
        await state.runtime.run("work")
    except CoreError as error:
        state.told(error)


async def refusals(state: Transcript) -> None:
    """Drained with an ask under way: who comes then is refused, who does not end in time is told."""
    agent = Speaker(state, "speaker")

    async def ask() -> None:
        try:
            await state.runtime.ask(agent, {"seconds": 9})
        except CoreError as error:
            state.told(error)

    async with anyio.create_task_group() as group:
        group.start_soon(ask)
        await anyio.sleep(0.1)
        state.note("drained", await state.runtime.drain(0.1))
        try:
            await state.runtime.submit("work")
        except CoreError as error:
            state.told(error)
        state.note("report", (await state.runtime.shutdown(0.5, "closing time")).summary())


async def retries(state: Transcript) -> None:
    """In line for few slots, with every deadline, a budget, a key, signs of progress; given up and done once more."""
    policy = RetryPolicy(attempts=3, backoff=Backoff(0.25, maximum=1.0))
    failed: Counter[str] = Counter()

    @state.runtime.handler("flaky", retry=policy)
    async def flaky(given: dict[str, Any], context: AgentContext) -> dict[str, Any]:
        failed[str(given["n"])] += 1
        context.progress(failed[str(given["n"])], n=given["n"])
        await anyio.sleep(0.1)
        if failed[str(given["n"])] <= given["times"]:
            raise ValueError(f"number {given['n']}")
        return {"n": given["n"]}

    handles = [
        await state.runtime.submit("flaky", {"n": number, "times": number % 4}, key=f"key {number % 7}")
        for number in range(8)
    ]
    handles.append(await state.runtime.submit("slow", retry=policy, timeout=0.5, deadline=2.0))
    handles.append(await state.runtime.submit("slow", retry=policy, idle_timeout=0.5))
    handles.append(await state.runtime.submit("work", retry=policy, queue_timeout=0.1))
    handles.append(await state.runtime.submit("flaky", {"n": "cancelled", "times": 9}))
    await anyio.sleep(0.3)
    handles[-1].cancel("not needed")
    for handle in handles:
        try:
            state.note("result", await handle.result())
        except CoreError as error:
            state.told(error)
    letters = state.runtime.tasks.dead_letters
    state.note("letters", [(letter.type, letter.attempts, letter.error) for letter in letters.list()])
    again = await letters.requeue(letters.list()[0].task_id)
    state.note("again", (await again.wait()).state.name, again.progress())
    state.note("statistics", state.runtime.statistics().tasks)


PROGRAMS: tuple[Program, ...] = (asks, groups, streams, maps, lines, resources, crashes, refusals, retries)


async def play(program: Program, hosted: bool) -> list[Entry]:
    """Run a program in a runtime of its own, and return the transcript."""
    state = Transcript(hosted=hosted, in_flight=3, queue=20)
    try:
        async with state.runtime:
            await program(state)
    except (AgentCrashedError, BaseExceptionGroup) as error:
        state.told(error)
    state.note("report", state.runtime.report and state.runtime.report.summary())
    state.note("health", state.runtime.health().state, state.runtime.statistics().asks)
    await anyio.wait_all_tasks_blocked()
    return state.entries


@pytest.mark.parametrize("hosted", [False, True], ids=["strict", "hosted"])
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_the_transcript_is_the_same_on_both_backends(program: Program, hosted: bool) -> None:
    """Event by event, result by result, error by error."""
    for schedule in SCHEDULES:
        first, second = (run_sim(play, program, hosted, backend=backend, schedule=schedule) for backend in BACKENDS)
        assert first.unwrap() == second.unwrap(), schedule
        assert first.now == second.now
        assert len(first.value or ()) > 5


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_the_transcript_is_the_same_strict_and_hosted(program: Program) -> None:
    """As long as nothing breaks the runtime, it makes no difference to what runs in it who holds its task group."""
    if program is crashes:
        pytest.skip("this is the difference")
    strict, hosted = (run_sim(play, program, kind).unwrap() for kind in (False, True))
    assert strict == hosted


@pytest.mark.thorough
@pytest.mark.parametrize("hosted", [False, True], ids=["strict", "hosted"])
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_the_transcript_is_the_same_under_many_orders(program: Program, hosted: bool) -> None:
    """The same for a hundred orders."""
    for seed in range(100):
        schedule = f"{('walk', 'rare')[seed % 2]}/{seed}"
        first, second = (run_sim(play, program, hosted, backend=backend, schedule=schedule) for backend in BACKENDS)
        assert first.unwrap() == second.unwrap(), schedule
