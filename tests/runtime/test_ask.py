"""Asks: an agent executes in the caller's own task, and whoever is responsible for it can end it, and it alone."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any

import anyio
import anyio.to_thread
import attrs
import pytest

from agentcore import (
    AgentContext,
    AgentCrashedError,
    AgentError,
    AgentResult,
    AgentRuntime,
    AgentState,
    AgentTerminatedError,
    AgentTimeoutError,
    ConfigurationError,
    RuntimeClosedError,
    TaskRoutingError,
)
from agentcore.testing import assert_no_checkpoints, cancel_everywhere, simulate
from tests.runtime.doing import Doing, boom, both, forever, leave_python, opened, register, runtime

pytestmark = pytest.mark.anyio

mark: ContextVar[str] = ContextVar("mark", default="nothing")


# Where it executes.


@both
@simulate(runs=3)
async def test_in_the_task_of_the_caller(hosted: bool) -> None:
    """The same task, the same context variables in both directions, no checkpoint; and the runtime knows of it."""
    async with opened(hosted=hosted) as made:
        seen: list[Any] = []

        async def process(context: AgentContext) -> str:
            seen.extend([anyio.get_current_task().id, mark.get(), made.statistics().asks, made.health().asks])
            assert AgentRuntime.current() is made
            mark.set("agent")
            return "done"

        mark.set("caller")
        with assert_no_checkpoints():
            result = await made.ask(Doing(process))
        assert (result.success, result.output) == (True, "done")
        assert seen == [anyio.get_current_task().id, "caller", 1, 1]
        assert mark.get() == "agent"
        assert made.statistics().asks == made.health().asks == 0
        assert made.tasks.active() == []
        assert made.statistics().tasks.accepted == 0


async def test_current_runtime_is_the_one_that_is_asked() -> None:
    """In a loop with two hosted runtimes only the ask can tell which one it is; afterwards it is as before."""
    async with opened(hosted=True) as first, opened(hosted=True) as second:

        async def process(context: AgentContext) -> AgentRuntime:
            return AgentRuntime.current()

        for made in (first, second):
            assert (await made.ask(Doing(process))).output is made
            with pytest.raises(RuntimeClosedError, match="several"):
                AgentRuntime.current()
        with pytest.raises(SystemExit):
            await second.ask(Doing(leave_python))
        with pytest.raises(RuntimeClosedError, match="several"):
            AgentRuntime.current()


# What ends it.

PHASES = ["process", "turn", "initialize", "waiting for initialize", "handle_error"]


@asynccontextmanager
async def caught_in(phase: str, made: AgentRuntime, ask: Callable[[Doing], Awaitable[Any]]) -> AsyncGenerator[Doing]:
    """Have an ask be in a phase of its life inside the block; asked by a task of its own, which has ended afterwards."""

    async def hang() -> None:
        await anyio.sleep_forever()

    async def occupy(agent: Doing) -> None:
        with contextlib.suppress(AgentTerminatedError, RuntimeClosedError):
            await made.ask(agent)

    starts = phase == "initialize"
    agent = Doing(
        boom if phase == "handle_error" else forever,
        initialize=hang if phase.endswith("initialize") else None,
        handle_error=forever,
        max_concurrency=1 if phase == "turn" else 2,
        terminate_timeout=1.0,
    )
    async with anyio.create_task_group() as group:
        if phase in ("turn", "waiting for initialize"):
            group.start_soon(occupy, agent)
            await anyio.wait_all_tasks_blocked()
        group.start_soon(ask, agent)
        await anyio.wait_all_tasks_blocked()
        assert agent.metrics.waiting == (phase == "turn")
        assert (agent.state is AgentState.INITIALIZING) == (starts or phase == "waiting for initialize")
        yield agent


@both
@pytest.mark.parametrize("phase", PHASES)
@simulate(runs=6)
async def test_the_agent_is_terminated(hosted: bool, phase: str) -> None:
    """The agent knows the ask in every phase: `terminate` ends it, and tells the caller, who is not cancelled."""
    caught: list[BaseException] = []

    async def ask(agent: Doing) -> None:
        with pytest.raises(AgentTerminatedError) as told:
            await made.ask(agent)
        caught.append(told.value)
        await anyio.lowlevel.checkpoint()  # raises in a cancelled scope
        caught.append(told.value)

    async with opened(hosted=hosted) as made, caught_in(phase, made, ask) as agent:
        await agent.terminate()
        assert agent.is_terminated
        assert made.statistics().asks == 0
    assert len(caught) == 2
    assert anyio.current_time() <= 1


@both
@pytest.mark.parametrize("phase", PHASES)
@simulate(runs=6)
async def test_the_runtime_is_cut(hosted: bool, phase: str) -> None:
    """After the grace an ask is cancelled in every phase; the caller gets an error, and is not cancelled."""
    caught: list[BaseException] = []

    async def ask(agent: Doing) -> None:
        with pytest.raises(RuntimeClosedError) as told:
            await made.ask(agent)
        caught.append(told.value)
        await anyio.lowlevel.checkpoint()
        caught.append(told.value)

    async with opened(hosted=hosted) as made, caught_in(phase, made, ask) as agent:
        await made.shutdown(5)
        assert anyio.current_time() == 5
    assert len(caught) == 2
    assert agent.state is not AgentState.PROCESSING
    assert made.statistics().asks == 0


@both
@pytest.mark.parametrize("phase", ["process", "turn", "initialize"])
@simulate(runs=6)
async def test_timeout(hosted: bool, phase: str) -> None:
    """When the time of the ask is over, `handle_error` gets an error that says which deadline it was."""
    results: list[AgentResult] = []

    async def ask(agent: Doing) -> None:
        agent.handles = None
        results.append(await made.ask(agent, timeout=5))
        group.cancel_scope.cancel()  # whoever occupies the agent

    async with opened(hosted=hosted) as made, anyio.create_task_group() as group, caught_in(phase, made, ask) as agent:
        pass
    assert [result.error for result in results] == [
        "AgentInitializationError" if phase == "initialize" else "AgentTimeoutError"
    ]
    error: BaseException | None = agent.handled[0]
    if phase == "initialize":
        assert error is not None
        error = error.__cause__
    assert isinstance(error, AgentTimeoutError)
    assert (error.details["deadline"], error.details["timeout"], anyio.current_time()) == ("timeout", 5, 5)


@simulate(runs=3)
async def test_the_nearest_deadline_is_told() -> None:
    """The agent's own limit holds in an ask too; whichever comes first is told."""
    async with opened() as made:
        for own, asked, which in ((3.0, 5.0, "agent"), (5.0, 3.0, "timeout"), (3.0, None, "agent")):
            agent = Doing(forever, timeout=own)
            began = anyio.current_time()
            await made.ask(agent, timeout=asked)
            assert isinstance(agent.handled[0], AgentTimeoutError)
            assert (agent.handled[0].details["deadline"], anyio.current_time() - began) == (which, 3)


@pytest.mark.parametrize("timeout", [-1, float("inf"), "5", True])
async def test_timeouts_that_are_none(timeout: Any) -> None:
    """What is no number of seconds is refused before anything is asked."""
    async with opened() as made:
        with pytest.raises(ConfigurationError, match="timeout"):
            await made.ask(Doing(leave_python), timeout=timeout)


@both
@pytest.mark.parametrize("phase", PHASES)
@simulate(runs=6)
async def test_the_caller_is_cancelled(hosted: bool, phase: str) -> None:
    """Cancellation goes through; the agent is as before, no slot is lost."""
    async with opened(hosted=hosted) as made, anyio.create_task_group() as group:

        async def ask(agent: Doing) -> None:
            await made.ask(agent)
            raise AssertionError("the ask must not return")

        async with caught_in(phase, made, ask) as agent:
            group.cancel_scope.cancel()
    assert (agent.metrics.running, agent.metrics.waiting, agent._slots.in_use) == (0, 0, 0)
    assert agent.handled == [] or phase == "handle_error"
    assert made.statistics().asks == 0


@both
@simulate(runs=40)
async def test_the_turn_comes_with_the_end_of_the_runtime(hosted: bool) -> None:
    """An ask that gets its turn at the very moment when the runtime is cut must not begin, where nobody could end it."""
    results: list[object] = []
    async with opened(hosted=hosted) as made, anyio.create_task_group() as group:
        released = anyio.Event()

        async def process(context: AgentContext) -> None:
            await (released.wait() if context.parameters["n"] == 1 else anyio.sleep_forever())

        async def ask(number: int) -> None:
            try:
                results.append((await made.ask(agent, {"n": number})).success)
            except RuntimeClosedError:
                results.append("closed")

        agent = Doing(process)
        for number in (1, 2):
            group.start_soon(ask, number)
            await anyio.wait_all_tasks_blocked()
        released.set()
        await made.shutdown(0)
        assert made.statistics().asks == 0
    assert sorted(map(str, results)) in (["True", "closed"], ["closed", "closed"])


@both
@simulate(runs=40)
async def test_the_agent_is_ready_with_the_end_of_the_runtime(hosted: bool) -> None:
    """The same of an initialisation that ends at that moment."""
    async with opened(hosted=hosted) as made, anyio.create_task_group() as group:
        released = anyio.Event()

        async def ask() -> None:
            with pytest.raises(RuntimeClosedError):
                await made.ask(Doing(forever, initialize=released.wait))

        group.start_soon(ask)
        await anyio.wait_all_tasks_blocked()
        released.set()
        await made.shutdown(0)


@both
async def test_what_is_no_exception(hosted: bool) -> None:
    """SystemExit is raised to the caller; it is his, and the runtime works on."""
    async with opened(hosted=hosted) as made:
        with pytest.raises(SystemExit):
            await made.ask(Doing(leave_python))
        assert made.health().healthy
        assert made.statistics().asks == 0


# Asks inside of asks.


@both
async def test_nested(hosted: bool) -> None:
    """All in one task; each is known."""
    async with opened(hosted=hosted) as made:
        seen: list[Any] = []

        async def inner(context: AgentContext) -> str:
            seen.append((anyio.get_current_task().id, made.statistics().asks))
            return "inner"

        async def outer(context: AgentContext) -> Any:
            seen.append((anyio.get_current_task().id, made.statistics().asks))
            return [(await context.ask("inner")).output, (await context.ask(last)).output, made.statistics().asks]

        last = Doing(inner, name="last")
        register(made, "inner", lambda: Doing(inner, name="inner"))
        assert (await made.ask(Doing(outer))).output == ["inner", "inner", 1]
        assert seen == [(anyio.get_current_task().id, count) for count in (1, 2, 2)]


@simulate(runs=10)
async def test_of_two_nested_asks_one_is_ended() -> None:
    """Ended is the ask of the agent that is terminated; the one around it hears of it as an error of its own."""
    async with opened() as made, anyio.create_task_group() as group:
        inner = Doing(forever, name="inner")

        async def outer(context: AgentContext) -> str:
            with pytest.raises(AgentTerminatedError):
                await context.ask(inner)
            await anyio.lowlevel.checkpoint()
            return "went on"

        async def ask() -> None:
            assert (await made.ask(Doing(outer))).output == "went on"

        group.start_soon(ask)
        await anyio.wait_all_tasks_blocked()
        await inner.terminate()


async def test_an_agent_that_terminates_itself() -> None:
    """Its own execution is not ended by that, nor waited for."""
    async with opened() as made:

        async def process(context: AgentContext) -> str:
            await agent.terminate()
            await anyio.lowlevel.checkpoint()
            return "last words"

        agent = Doing(process)
        assert (await made.ask(agent)).output == "last words"
        with pytest.raises(AgentTerminatedError):
            await made.ask(agent)


async def test_ask_of_a_context_without_runtime() -> None:
    """A context that was made by hand says what it needs."""
    with pytest.raises(AgentError, match="inside a runtime"):
        await AgentContext().ask(Doing())


# Whom.


async def test_by_name() -> None:
    """An instance is shared, a class and a factory give an agent for this ask alone; names are found as those of tasks."""
    made_of: list[Doing] = []

    def factory() -> Doing:
        made_of.append(Doing(name="made"))
        return made_of[-1]

    class Own(Doing):
        def __init__(self) -> None:
            super().__init__(name="own")
            made_of.append(self)

    async with opened() as made:
        shared = register(made, "shared", Doing())
        register(made, "factory_agent", factory)
        register(made, "own", Own)
        for name, count in (("shared", 0), ("factory", 1), ("factory_agent", 2), ("own", 3), ("own", 4)):
            assert (await made.ask(name)).success
            assert (len(made_of), [agent.ended for agent in made_of]) == (count, [1] * count)
        assert (await made.ask("echo", {"n": 1})).output == {"n": 1}
        assert shared.metrics.executions == 1
        assert shared.ended == 0
    assert shared.ended == 1


@pytest.mark.parametrize("work", [boom, forever, leave_python], ids=["fails", "is cancelled", "SystemExit"])
@simulate(runs=5)
async def test_an_agent_for_one_ask_is_terminated_in_any_case(work: Any) -> None:
    """However the ask ends, the agent that was made for it is terminated, and fully."""

    async def clean_up() -> None:
        await anyio.sleep(1)
        cleaned.append(anyio.current_time())

    cleaned: list[float] = []
    agent = Doing(work, terminate=clean_up)
    async with opened() as made:
        register(made, "one", lambda: agent)
        with anyio.move_on_after(2), contextlib.suppress(SystemExit):
            await made.ask("one")
        assert (agent.is_terminated, cleaned) == (True, [3.0 if work is forever else 1.0])
        assert made.statistics().asks == 0


async def test_clean_up_that_fails() -> None:
    """The result stands; the failure of the clean-up is raised at the exit."""

    async def clean_up() -> None:
        raise ValueError("not clean")

    with pytest.raises(AgentCrashedError) as caught:
        async with opened() as made:
            register(made, "one", lambda: Doing(terminate=clean_up))
            assert (await made.ask("one")).success
    assert [str(error) for error in caught.value.exceptions] == ["not clean"]


async def test_nobody() -> None:
    """A name that nothing is registered by, and what is neither an agent nor a name."""
    async with opened() as made:
        with pytest.raises(TaskRoutingError, match="'nobody'"):
            await made.ask("nobody")
        with pytest.raises(ConfigurationError, match="registered name"):
            await made.ask(Doing)  # type: ignore[arg-type]
        register(made, "broken", lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            await made.ask("broken")
        assert made.statistics().asks == 0


# What about.


@attrs.define(eq=False)
class OwnContext(AgentContext):
    """A context with a field of its own."""

    topic: str = ""


@pytest.mark.parametrize("given", [None, {"n": 1}, AgentContext(parameters={"n": 1}), OwnContext(topic="tides")])
async def test_contexts(given: Any) -> None:
    """A dictionary becomes the parameters; a context is copied with all that it has, and stays as it is."""
    seen: list[AgentContext] = []

    async def process(context: AgentContext) -> None:
        seen.append(context)
        await context.run("echo")
        context.metadata = {"changed": True}

    async with opened() as made:
        assert (await made.ask(Doing(process))).success
        assert (await made.ask(Doing(process), given)).success
    context = seen[1]
    assert context is not given
    if isinstance(given, AgentContext):
        assert type(context) is type(given)
        assert context.memory is given.memory
        assert context.parameters is given.parameters
        assert given.metadata == {}
        assert (given._runner, given._limit, given._call, given._emit) == (None, None, None, None)
    else:
        assert (context.parameters, context.task) == (given or {}, None)
    if isinstance(given, OwnContext):
        assert isinstance(context, OwnContext)
        assert context.topic == "tides"


async def test_a_dictionary_is_copied() -> None:
    """What the agent does to its parameters is not done to those of the caller."""
    given = {"n": 1}

    async def process(context: AgentContext) -> None:
        context.parameters.clear()

    async with opened() as made:
        await made.ask(Doing(process), given)
    assert given == {"n": 1}


@both
@simulate(runs=10)
async def test_two_asks_at_once_with_one_context(hosted: bool) -> None:
    """Each has its own deadline and its own call: when one is ended, the other goes on."""
    context = AgentContext(parameters={"n": 1})
    left: list[tuple[str, float]] = []
    async with opened(hosted=hosted) as made, anyio.create_task_group() as group:

        async def ask(name: str, timeout: float | None) -> None:
            agent = Doing(forever, name=name)
            agents[name] = agent
            with contextlib.suppress(AgentTerminatedError):
                await made.ask(agent, context, timeout=timeout)
            left.append((name, anyio.current_time()))

        agents: dict[str, Doing] = {}
        for name, timeout in (("three", 3.0), ("five", 5.0), ("ended", None)):
            group.start_soon(ask, name, timeout)
        await anyio.sleep(4)
        assert left == [("three", 3.0)]
        await agents["ended"].terminate()
    assert sorted(left) == [("ended", 9.0), ("five", 5.0), ("three", 3.0)]


@pytest.mark.parametrize("given", [1, "text", [("n", 1)]])
async def test_what_is_no_context(given: Any) -> None:
    """It is refused, with what to write instead."""
    async with opened() as made:
        with pytest.raises(ConfigurationError, match=r"AgentContext\(parameters"):
            await made.ask(Doing(), given)


# From where.


async def test_from_other_threads() -> None:
    """In a thread, and in the event loop of another thread, an ask is refused; `from_thread` is the way."""
    caught: list[Exception] = []

    async def elsewhere() -> None:
        await made.ask(Doing())

    def in_thread() -> None:
        coroutine = made.ask(Doing())
        try:
            coroutine.send(None)
        except AgentError as error:
            caught.append(error)
        assert made.from_thread(made.ask, Doing()).success

    def in_another_loop() -> None:
        try:
            anyio.run(elsewhere)
        except AgentError as error:
            caught.append(error)

    async with opened() as made:
        for function in (in_thread, in_another_loop):
            await anyio.to_thread.run_sync(function)
        assert made.statistics().asks == 0
    assert ["from_thread" in str(error) for error in caught] == [True, True]
    assert threading.active_count() >= 1


@both
async def test_outside_of_the_block(hosted: bool) -> None:
    """Before and after, the state is in the error."""
    made = runtime(hosted=hosted)
    with pytest.raises(RuntimeClosedError, match="'new'"):
        await made.ask(Doing())
    async with made:
        pass
    with pytest.raises(RuntimeClosedError, match="'closed'"):
        await made.ask(Doing())


@pytest.mark.parametrize("hosted", [False, True], ids=["strict", "hosted"])
@pytest.mark.thorough
def test_cancelled_everywhere(hosted: bool) -> None:
    """Wherever two asks are cut short, one of a shared agent and one of its own: nothing is held, nothing is under way."""

    class State:
        runtime: AgentRuntime

        def __init__(self) -> None:
            self.own: list[Doing] = []
            self.shared = Doing(lambda context: context.ask("own"), initialize=anyio.lowlevel.checkpoint)

        def make(self) -> Doing:
            self.own.append(
                Doing(lambda context: anyio.lowlevel.checkpoint(), name="own", terminate=anyio.lowlevel.checkpoint)
            )
            return self.own[-1]

    @asynccontextmanager
    async def build() -> AsyncGenerator[State]:
        state = State()
        async with opened(hosted=hosted) as made:
            state.runtime = made
            register(made, "own", state.make)
            yield state

    async def act(state: State) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(state.runtime.ask, state.shared)
            group.start_soon(state.runtime.ask, state.shared)

    async def check(state: State) -> None:
        assert state.runtime.statistics().asks == 0
        assert all(agent.is_terminated for agent in state.own)
        assert (state.shared.metrics.running, state.shared._slots.in_use) == (0, 0)
        assert (await state.runtime.ask(state.shared)).success

    cancel_everywhere(act, build=build, check=check, schedules=("fifo", "walk/1"), modes=("block", "wake", "native"))
