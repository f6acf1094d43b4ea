"""Agents that make it hard for their supervisor: by how they fail, when they fail, and what they do in their hooks."""

from __future__ import annotations

import asyncio
import gc
import logging
import weakref
from collections.abc import Generator
from contextvars import ContextVar
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from agentcore import (
    AgentConfig,
    AgentContext,
    AgentCrash,
    AgentCrashedError,
    AgentDeadlockError,
    AgentError,
    AgentResult,
    AgentRuntime,
    ConfigurationError,
    CoreError,
    RuntimeConfig,
    Supervisor,
)
from agentcore.testing import simulate
from tests.runtime.supervised import NO_WAIT, TEN, Log, Told, at_once, below, config, crash, settle, supervised, told

RUNS = 5
tenant: ContextVar[str] = ContextVar("tenant", default="none")


class Unmended(Told):
    """One whose ``handle_error`` gives a result without success, as that of the documentation does."""

    async def handle_error(self, error: Exception, context: AgentContext) -> AgentResult:
        return AgentResult.error_result(error)


class Exit(BaseException):
    """What is no Exception."""


@pytest.fixture
def silent() -> Generator[None]:
    """Nothing is logged: pytest would keep what the records refer to."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("how", ["tell", "ask"])
@simulate(runs=RUNS)
async def test_a_message_that_fails_by_the_end_of_another_agent_is_a_crash(how: str) -> None:
    """That another one is gone does not mean that this one is: it crashes as by any error, and the next one goes on."""
    async with supervised(supervisor=at_once()) as (runtime, log):
        gone = await runtime.spawn(log.make, config("gone"))
        ref = await runtime.spawn(lambda own: Unmended(own, log), config("one"))
        await gone.stop()

        async def reach(context: AgentContext) -> None:
            await (context.tell(gone) if how == "tell" else context.ask(gone))

        await runtime.tell(ref, {"do": reach})
        await runtime.tell(ref, {"n": 1})
        await settle()
        assert ([1], 1, 0) == (log.handled.get("one"), ref.restarts, ref.waiting)


@simulate(runs=RUNS)
async def test_a_clean_up_that_raises_no_exception_does_not_hang_the_exit() -> None:
    """Whatever a clean-up raises is told, and the others are terminated as well."""

    async def end() -> None:
        raise Exit

    log = Log()
    try:
        async with AgentRuntime(supervisor=at_once(), grace=1) as runtime:
            for name in ("one", "two"):
                await runtime.spawn(log.make, config(name))
            log.ends["two"] = end
    except (Exit, BaseExceptionGroup, CoreError):
        pass  # however it is told
    assert ["down two", "down one"] == log.entries[2:]


@pytest.mark.parametrize("when", ["exit", "restart", "stop", "start"])
@simulate(runs=RUNS, backends=("asyncio",))
async def test_the_cancellation_of_a_task_that_is_awaited_is_not_one_of_the_supervisor(when: str) -> None:
    """A hook that cancels a task of asyncio and awaits it raises a cancellation that is nobody else's."""

    async def end() -> None:
        task = asyncio.ensure_future(asyncio.sleep(1000))
        await asyncio.sleep(0)
        task.cancel()
        await task

    log = Log()
    state: Any = None
    try:
        async with AgentRuntime(supervisor=at_once(), grace=1) as runtime:
            ref = await runtime.spawn(log.make, config("one"))
            other = await runtime.spawn(log.make, config("two"))
            if when == "start":
                log.starts["one"] = [end]
            else:
                log.ends["one"] = end
            if when in ("restart", "start"):
                await runtime.tell(ref, {"do": "crash"})
            elif when == "stop":
                await ref.stop()
            await settle()
            state = runtime.supervisor.state, other.state
    except CoreError:
        pass  # that the clean-up has failed may be told
    assert ("up", "up") == state
    assert {"down one", "down two"} <= set(log.entries)


@simulate(runs=RUNS)
async def test_a_message_that_waits_for_its_turn_outlives_a_crash() -> None:
    """It has been taken out of the mailbox, but nothing of it has begun: it is the next one's."""
    async with supervised(supervisor=at_once()) as (runtime, log):
        ref = await runtime.spawn(log.make, config("one"))
        go_on = anyio.Event()

        async def wait(_: AgentContext) -> None:
            await go_on.wait()
            raise AgentCrash("by an ask")

        async with anyio.create_task_group() as group:
            group.start_soon(told, lambda: runtime.ask(ref, {"do": wait}))
            await settle()
            await runtime.tell(ref, {"n": 1})
            await settle()
            go_on.set()
        await settle()
        assert ([1], 0, 1) == (log.handled.get("one"), ref.dropped, ref.restarts)


@pytest.mark.parametrize("restart", ["temporary", "permanent"])
@simulate(runs=RUNS)
async def test_a_crash_by_the_last_message_is_not_lost(restart: str) -> None:
    """Its message has been handled, so the runtime may end before the supervisor has come to it."""
    log = Log()
    errors: list[BaseException] = []
    try:
        async with AgentRuntime(supervisor=at_once(intensity=0), grace=1) as runtime:
            runtime.subscribe(log.events.append)
            ref = await runtime.spawn(log.make, config("one"), restart=restart)
            await runtime.tell(ref, {"do": "crash"})
    except AgentCrashedError as error:
        errors.append(error)
    assert [("agent_crashed", "one")] == log.of("agent_crashed")
    assert len(errors) == 1


@simulate(runs=RUNS)
async def test_crashes_in_the_moment_it_gives_up_are_not_lost() -> None:
    """Those that come with the one too many are logged and raised together with it."""
    log = Log()
    with pytest.raises(AgentCrashedError) as caught:
        async with AgentRuntime(supervisor=at_once(intensity=0), grace=1) as runtime:
            runtime.subscribe(log.events.append)
            for name in ("one", "two", "three"):
                runtime.tell_nowait(await runtime.spawn(log.make, config(name)), {"do": "crash"})
            await anyio.sleep(1)
    dropped = {event.data["agent"] for event in log.events if event.data.get("reason") == "as told"}
    assert dropped == {name for _, name in log.of("agent_crashed")}
    assert len(dropped) == len(caught.value.exceptions[0].exceptions)  # type: ignore[attr-defined]


@simulate(runs=RUNS)
async def test_an_agent_stops_its_helper_in_its_clean_up() -> None:
    """The supervisor waits for that clean-up, so that does not wait for the supervisor."""
    async with supervised(supervisor=at_once()) as (runtime, log):
        helper = await runtime.spawn(log.make, config("helper"))
        owner = await runtime.spawn(log.make, config("owner"))
        log.ends["owner"] = helper.stop
        began = anyio.current_time()
        await owner.stop()
        await settle()
        assert ("stopped", "stopped", 0) == (owner.state, helper.state, anyio.current_time() - began)


@simulate(runs=RUNS)
async def test_an_agent_stops_its_helper_when_it_starts_again() -> None:
    """As above: the supervisor waits for the start."""
    async with supervised(supervisor=at_once()) as (runtime, log):
        helper = await runtime.spawn(log.make, config("helper"))
        owner = await runtime.spawn(log.make, config("owner"))
        log.starts["owner"] = [helper.stop]
        await crash(runtime, owner)
        with anyio.move_on_after(100):
            await told(lambda: runtime.ask(owner, {"n": 1}))
        assert ("up", [1]) == (owner.state, log.handled.get("owner"))


@pytest.mark.parametrize("by", ["itself", "an ask"])
@simulate(runs=RUNS)
async def test_a_start_that_waits_for_room_in_the_agents_own_mailbox(by: str) -> None:
    """Nobody makes room there until the start has ended, which is told instead."""
    async with supervised(supervisor=at_once()) as (runtime, log):
        one = await runtime.spawn(log.make, config("one"), mailbox=1)
        await runtime.spawn(log.make, config("two"))
        go_on = anyio.Event()

        async def wait(_: AgentContext) -> None:
            await go_on.wait()
            raise AgentCrash("as told")

        async def tell_one(context: AgentContext) -> None:
            await context.tell("one", {"n": 2})

        await runtime.tell(one, {"do": wait})
        await settle()
        runtime.tell_nowait(one, {"n": 1})
        if by == "itself":
            log.starts["one"] = [lambda: told(lambda: runtime.tell("one", {"n": 2}))]
        else:
            await runtime.tell("two", {"do": tell_one})
            await settle()
            log.starts["one"] = [lambda: told(lambda: runtime.ask("two", {"n": 3}))]
        go_on.set()
        await anyio.sleep(100)
        assert "up" == one.state


@simulate(runs=RUNS)
async def test_what_a_start_leaves_behind_may_ask_whoever_is_started_again() -> None:
    """It is no part of the start any more, nor of the supervisor: there is no circle."""
    got: list[Any] = []
    async with anyio.create_task_group() as outside, supervised(supervisor=Supervisor(backoff=TEN)) as (runtime, log):
        one = await runtime.spawn(log.make, config("one"))
        two = await runtime.spawn(log.make, config("two"))
        go_on = anyio.Event()

        async def poll() -> None:
            await go_on.wait()
            got.append(await told(lambda: runtime.ask(two, {"n": 1})))

        async def start() -> None:
            outside.start_soon(poll)

        log.starts["one"] = [start]
        await crash(runtime, one)
        await anyio.sleep(20)
        await crash(runtime, two)
        go_on.set()
        await anyio.sleep(20)
    assert [None] == got


@simulate(runs=RUNS)
async def test_the_variables_of_the_spawner_are_there_at_a_restart_and_at_the_end() -> None:
    """Also if somebody else has spawned the first agent of the runtime."""
    seen: list[str] = []

    async def look() -> None:
        seen.append(tenant.get())

    async with supervised(supervisor=at_once()) as (runtime, log):
        tenant.set("a")
        await runtime.spawn(log.make, config("one"))
        tenant.set("b")
        log.starts["two"], log.ends["two"] = [look, look], look
        await crash(runtime, await runtime.spawn(log.make, config("two")))
    assert ["b"] * 4 == seen  # up, down, up, down


@simulate(runs=RUNS)
async def test_who_waits_for_his_turn_behind_what_is_meant_for_the_program() -> None:
    """The agent goes on after it, and so do those who wait."""
    async with supervised(supervisor=at_once()) as (runtime, log):
        ref = await runtime.spawn(log.make, config("one"))

        async def leave(_: AgentContext) -> None:
            await anyio.sleep(1)
            raise Exit  # KeyboardInterrupt does the same

        async def ask() -> None:
            with pytest.raises(Exit):
                await runtime.ask(ref, {"do": leave})

        with anyio.move_on_after(100):
            async with anyio.create_task_group() as group:
                group.start_soon(ask)
                await settle()
                await told(lambda: runtime.ask(ref, {"n": 1}))
        assert anyio.current_time() < 50  # it was served, or told


@simulate(runs=RUNS)
async def test_who_is_spawned_while_the_runtime_drains_does_nothing_by_itself() -> None:
    """Nobody does, from the beginning of the end."""
    async with supervised(supervisor=Supervisor(), grace=10) as (runtime, log):

        async def live(context: AgentContext) -> None:
            await context.tell("one", {"n": "late"})
            await anyio.sleep_forever()

        async def spawn(_: AgentContext) -> None:
            await anyio.sleep(1)
            await runtime.spawn(log.make, config("two"))
            await anyio.sleep(5)

        log.lives["two"] = live
        await runtime.spawn(log.make, config("one"))
        await runtime.tell("one", {"do": spawn, "n": 1})
    assert {"one": [1]} == log.handled


@pytest.mark.parametrize("by", ["capability", "name"])
@simulate(runs=RUNS)
async def test_a_task_whose_agent_is_stopped_before_its_turn_goes_to_another(by: str) -> None:
    """Who executes it is decided when it is its turn."""
    async with supervised(supervisor=at_once(), in_flight=1) as (runtime, log):
        one = await runtime.spawn(log.make, config("one", capabilities=["cut"]))
        await runtime.spawn(log.make, config("two", capabilities=["cut"]))

        @runtime.handler("slow")
        async def slow(_: Any) -> None:
            await anyio.sleep(5)

        first = await runtime.submit("slow")
        handle = await runtime.submit("one" if by == "name" else "x", {"n": 1}, requires=["cut"])
        await settle()
        await one.stop()
        if by == "name":
            await runtime.spawn(log.make, config("one"))
        await handle.wait()
        await first.wait()
        assert [1] == [*log.handled.get("one", []), *log.handled.get("two", [])], handle.state


@simulate(runs=RUNS)
async def test_the_least_busy_one_is_chosen_when_it_is_the_tasks_turn() -> None:
    """Who had the least to do when the task came may have much to do by then."""
    async with supervised(supervisor=at_once(), in_flight=2) as (runtime, log):
        for name in ("one", "two"):
            await runtime.spawn(log.make, config(name, capabilities=["cut"]))

        def taking(seconds: float) -> Any:
            async def take(_: AgentContext) -> None:
                await anyio.sleep(seconds)

            return take

        handles = [await runtime.submit("x", {"do": taking(s)}, requires=["cut"]) for s in (100, 1, 1)]
        await handles[2].wait()
        assert anyio.current_time() < 50
        await handles[0].wait()


@simulate(runs=RUNS)
async def test_an_agent_that_is_told_from_another_runtime_reaches_its_own() -> None:
    """The context of a message is one of the runtime that the agent lives in."""
    async with supervised(supervisor=at_once()) as (runtime, log):
        ref = await runtime.spawn(log.make, config("one"))
        await runtime.spawn(log.make, config("two"))

        async def forward(context: AgentContext) -> None:
            await context.tell("two", {"n": 1})

        async with AgentRuntime() as other:
            await other.tell(ref, {"do": forward})
            await settle()
        assert [1] == log.handled.get("two")


@pytest.mark.usefixtures("silent")
@simulate(runs=1)
async def test_temporary_agents_that_have_crashed_are_not_kept_for_ever() -> None:
    """Their crashes are raised at the end: the first hundred whole, further ones are counted."""
    made: list[weakref.ref[Told]] = []
    log = Log()

    def make(own: AgentConfig) -> Told:
        made.append(weakref.ref(agent := log.make(own)))
        return agent

    with pytest.raises(AgentCrashedError):
        async with AgentRuntime(RuntimeConfig(retention=10), supervisor=at_once(), grace=1) as runtime:
            for _ in range(300):
                await runtime.tell(await runtime.spawn(make, config("one"), restart="temporary"), {"do": "crash"})
                await settle()
            gc.collect()
            alive = sum(agent() is not None for agent in made)
    assert alive <= 100


@pytest.mark.usefixtures("silent")
@simulate(runs=1)
async def test_crashes_are_not_kept_after_their_period() -> None:
    """They do not count any more, so nothing keeps what their tracebacks keep."""
    made: list[weakref.ref[Told]] = []
    async with supervised(supervisor=at_once(intensity=1000, period=5)) as (runtime, log):

        def make(own: AgentConfig) -> Told:
            made.append(weakref.ref(agent := log.make(own)))
            return agent

        ref = await runtime.spawn(make, config("one"))
        for _ in range(100):
            await runtime.tell(ref, {"do": "crash"})
            await anyio.sleep(100)
        gc.collect()
        assert sum(agent() is not None for agent in made) < 10


@simulate(runs=RUNS)
async def test_two_spawns_of_one_agent_at_a_time() -> None:
    """An agent has one supervisor at a time, also while it is being initialised."""
    outcomes: list[Any] = []
    async with supervised(supervisor=at_once()) as (runtime, log):
        agent = log.make(config("any"))
        log.starts["one"] = log.starts["two"] = [lambda: anyio.sleep(1)]

        async def spawn(name: str) -> None:
            outcomes.append(await told(lambda: runtime.spawn(lambda _: agent, config(name))))

        async with anyio.create_task_group() as group:
            group.start_soon(spawn, "one")
            group.start_soon(spawn, "two")
        assert [None, ConfigurationError] == sorted(outcomes, key=lambda one: one is not None)


@simulate(runs=1)
async def test_starts_that_fail_at_once_let_others_run() -> None:
    """There is a checkpoint between two of them, whatever they are like."""
    left: set[int] = set()
    async with supervised(supervisor=at_once()) as (runtime, log):
        ref = await runtime.spawn(log.make, config("one"))
        log.starts["one"] = [False] * 500
        await runtime.tell(ref, {"do": "crash"})
        while ref.restarts == 0:
            await anyio.lowlevel.checkpoint()
            left.add(len(log.starts["one"]))
    assert len(left) > 20


@simulate(runs=RUNS)
async def test_an_agent_that_has_ended_by_itself_is_told_of() -> None:
    """Whoever is gone for good has stopped."""
    async with supervised(supervisor=at_once()) as (runtime, log):
        log.lives["one"] = lambda _: anyio.lowlevel.checkpoint()
        ref = await runtime.spawn(log.make, config("one"), restart="transient")
        await settle()
        assert ("stopped", [("agent_stopped", "one")]) == (ref.state, log.of("agent_stopped"))


@simulate(runs=RUNS)
async def test_agents_that_come_and_go_with_their_supervisor_are_told_of() -> None:
    """Each by an event of its own."""
    async with supervised(supervisor=at_once()) as (runtime, log):
        supervisor, refs = await below(runtime, log, "one", "two", intensity=0, backoff=NO_WAIT)
        await crash(runtime, refs["one"])
        assert 1 == refs["two"].restarts
        await supervisor.stop()
        assert ("agent_restarted", "two") in log.of("agent_restarted")
        assert ("agent_stopped", "two") in log.of("agent_stopped")


@pytest.mark.parametrize("restart", ["temporary", "the first one"])
@simulate(runs=RUNS)
async def test_who_is_at_an_agent_whose_supervisor_gives_up_for_good(restart: str) -> None:
    """He is not told to ask again."""
    outcomes: list[Any] = []
    log = Log()
    with pytest.raises(AgentCrashedError):
        async with AgentRuntime(supervisor=at_once(intensity=0), grace=1, hosted=True) as runtime:
            supervisor = runtime.supervisor
            if restart == "temporary":
                supervisor = await supervisor.supervise("below", at_once(intensity=0), restart=restart)
            for name in ("one", "two"):
                await supervisor.spawn(log.make, config(name))

            async def ask() -> None:
                outcomes.append(await told(lambda: runtime.ask("two", {"do": "hang"})))

            async with anyio.create_task_group() as group:
                group.start_soon(ask)
                await settle()
                await runtime.tell("one", {"do": "crash"})
            await settle()
    assert outcomes != []
    assert "AgentRestartedError" not in [outcome.__name__ for outcome in outcomes]


@simulate(runs=RUNS)
async def test_who_is_spawned_while_the_supervisor_comes_back_is_the_last() -> None:
    """The order of the first start is the one of every start."""
    async with supervised(supervisor=at_once()) as (runtime, log):
        supervisor, refs = await below(
            runtime, log, "one", "two", strategy="one_for_all", intensity=1, backoff=NO_WAIT, period=5
        )
        await crash(runtime, refs["one"])
        log.starts["one"] = [lambda: anyio.sleep(1)]
        await crash(runtime, refs["one"])  # one too many: the supervisor itself is started again
        await supervisor.spawn(log.make, config("three"))
        await anyio.sleep(2)
        log.take()
        await crash(runtime, refs["two"])
        assert ["one", "two", "three"] == [entry[3:] for entry in log.take() if entry.startswith("up ")]


@pytest.mark.parametrize("what", ["agent", "supervisor"])
@simulate(runs=RUNS)
async def test_the_name_of_the_first_supervisor_is_taken(what: str) -> None:
    """Names are given once in the whole tree."""
    async with supervised(supervisor=at_once()) as (runtime, log):
        with pytest.raises(AgentError, match="given once"):
            if what == "agent":
                await runtime.spawn(log.make, config("root"))
            else:
                await runtime.supervisor.supervise("root")


@pytest.mark.parametrize("what", ["shutdown", "restart", "message"])
@simulate(runs=1)
async def test_errors_speak_of_what_was_given(what: str) -> None:
    """By the name that the caller has written, with a remedy that helps."""
    async with supervised() as (runtime, log):
        with pytest.raises(ConfigurationError) as caught:
            if what == "shutdown":
                await runtime.spawn(log.make, config("one"), shutdown=-1)
            elif what == "restart":
                await runtime.spawn(log.make, config("one"), restart="always")
            else:
                await runtime.tell(await runtime.spawn(log.make, config("one")), [1])  # type: ignore[arg-type]
        misleading = {"shutdown": "use None for no limit", "restart": "of a supervisor", "message": "an ask takes"}
        assert misleading[what] not in str(caught.value)


@simulate(runs=1)
async def test_references_to_one_agent_are_equal() -> None:
    """Those of a place are, however one has got them."""
    async with supervised() as (runtime, log):
        ref = await runtime.spawn(log.make, config("one"))
        assert ref in runtime.supervisor.children
        assert 1 == len({ref, *runtime.supervisor.children})


@simulate(runs=RUNS)
async def test_two_supervisors_whose_agents_ask_each_other_when_they_start_again() -> None:
    """Each supervisor waits for a start that waits for the other supervisor: one of the two is told."""
    outcomes: list[Any] = []
    async with supervised(supervisor=at_once()) as (runtime, log):
        refs = {}
        for name, other in (("one", "two"), ("two", "one")):
            supervisor = await runtime.supervisor.supervise(f"above {name}", Supervisor(backoff=NO_WAIT))
            refs[name] = await supervisor.spawn(log.make, config(name))

            async def ask(other: str = other) -> None:
                await anyio.sleep(1)
                outcomes.append(await told(lambda: runtime.ask(other, {"n": 1})))

            log.starts[name] = [ask]
        for ref in refs.values():
            await runtime.tell(ref, {"do": "crash"})
        await anyio.sleep(10)
        assert ["up", "up"] == [ref.state for ref in refs.values()]
        assert [None, AgentDeadlockError] == sorted(outcomes, key=lambda one: one is not None)
