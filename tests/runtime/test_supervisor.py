"""Supervisors at work: who is started again, when, in which order, and who is told of it."""

from __future__ import annotations

from typing import Any

import anyio
import anyio.lowlevel
import pytest

from agentcore import (
    AgentContext,
    AgentCrash,
    AgentCrashedError,
    AgentDeadlockError,
    AgentExecutionError,
    AgentRef,
    AgentRestartedError,
    AgentTerminatedError,
    AgentTimeoutError,
    Backoff,
    CoreError,
    RuntimeClosedError,
    Supervisor,
    TaskExecutionError,
    TaskState,
)
from agentcore.testing import simulate
from tests.runtime.supervised import (
    NAMES,
    NO_WAIT,
    TEN,
    at_once,
    below,
    both_at_length,
    both_kinds,
    config,
    crash,
    settle,
    spawn_all,
    supervised,
    told,
)

RUNS = 5


# Strategies and restart types.

WHO_COMES_WITH = {
    "one_for_one": {"one": ["one"], "two": ["two"], "three": ["three"]},
    "one_for_all": {key: ["one", "two", "three"] for key in NAMES},
    "rest_for_one": {"one": ["one", "two", "three"], "two": ["two", "three"], "three": ["three"]},
}


@pytest.mark.parametrize("crashing", NAMES)
@pytest.mark.parametrize("strategy", list(WHO_COMES_WITH))
@both_kinds
@simulate(runs=RUNS)
async def test_a_strategy_says_who_is_started_again(hosted: bool, strategy: str, crashing: str) -> None:
    """First the one that has crashed is cleaned up, then the others are stopped in reverse; all come in order."""
    async with supervised(hosted, supervisor=at_once(strategy)) as (runtime, log):
        refs = await spawn_all(runtime, log, *NAMES)
        await crash(runtime, refs[crashing])
        again = WHO_COMES_WITH[strategy][crashing]
        others = [name for name in reversed(again) if name != crashing]
        assert [
            f"down {crashing}",
            *(f"down {name}" for name in others),
            *(f"up {name}" for name in again),
        ] == log.take()
        assert {name: int(name in again) for name in NAMES} == {name: ref.restarts for name, ref in refs.items()}
        assert list(NAMES) == [ref.name for ref in runtime.supervisor.children]  # type: ignore[union-attr]
        assert [("agent_restarted", name) for name in again] == log.of("agent_restarted")
    # At the end all are stopped in reverse.
    assert [f"down {name}" for name in reversed(NAMES)] == log.take()


@pytest.mark.parametrize("end", ["crash", "by itself"])
@pytest.mark.parametrize("restart", ["permanent", "transient", "temporary"])
@pytest.mark.parametrize("strategy", list(WHO_COMES_WITH))
@simulate(runs=RUNS)
async def test_a_restart_type_says_after_which_end(strategy: str, restart: str, end: str) -> None:
    """What is gone concerns nobody else. The crash of one that is not started again is told at the exit."""
    is_back = restart == "permanent" or (restart == "transient" and end == "crash")
    is_told = end == "crash" and not is_back
    errors: list[BaseException] = []
    try:
        async with supervised(supervisor=at_once(strategy)) as (runtime, log):
            other = await runtime.spawn(log.make, config("other"))
            ref = await runtime.spawn(log.make, config("one"), restart=restart)
            last = await runtime.spawn(log.make, config("last"))
            if end == "crash":
                await crash(runtime, ref)
            else:
                assert ref.agent is not None
                await ref.agent.terminate()
                await settle()
            assert (("up", 1) if is_back else ("stopped", 0)) == (ref.state, ref.restarts)
            with_it = {"one_for_one": (0, 0), "one_for_all": (1, 1), "rest_for_one": (0, 1)}[strategy]
            assert (with_it if is_back else (0, 0)) == (other.restarts, last.restarts)
            if not is_back:
                assert AgentTerminatedError is await told(lambda: runtime.ask(ref))
                await runtime.spawn(log.make, config("one"))  # the name is free
    except AgentCrashedError as error:
        errors += error.exceptions
    assert (["AgentCrash"] if is_told else []) == [type(error).__name__ for error in errors]


@pytest.mark.parametrize("strategy", ["one_for_all", "rest_for_one"])
@simulate(runs=RUNS)
async def test_temporary_ones_are_gone_with_those_they_belong_to(strategy: str) -> None:
    async with supervised(supervisor=at_once(strategy)) as (runtime, log):
        first = await runtime.spawn(log.make, config("first"))
        ref = await runtime.spawn(log.make, config("temporary"), restart="temporary")
        await runtime.tell(ref, {"do": "hang"})
        await runtime.tell(ref, {"n": "waits"})
        await settle()
        await crash(runtime, first)
        assert ("stopped", 2, 0, 1) == (ref.state, ref.dropped, ref.restarts, first.restarts)
        assert AgentTerminatedError is await told(lambda: runtime.tell(ref))


@simulate(runs=RUNS)
async def test_exit_by_a_temporary_agent_is_not_lost() -> None:
    """It is no error that could be raised in a group of errors; a crash with it as the cause is."""
    with pytest.raises(AgentCrashedError) as caught:
        async with supervised() as (runtime, log):
            ref = await runtime.spawn(log.make, config("one"), restart="temporary")
            await runtime.tell(ref, {"do": "exit"})
            await settle()
            assert "stopped" == ref.state
    (error,) = caught.value.exceptions
    assert (AgentCrash, SystemExit) == (type(error), type(error.__cause__))


# Time.


@both_kinds
@simulate(runs=RUNS)
async def test_the_wait_grows_and_begins_anew(hosted: bool) -> None:
    """Doubled with each crash, up to a maximum; as at first when the agent has been up for long enough."""
    backoff = Backoff(initial=1, factor=2, maximum=5, jitter=False)
    async with supervised(hosted, supervisor=Supervisor(intensity=9, backoff=backoff, reset_after=10)) as (
        runtime,
        log,
    ):
        ref = await runtime.spawn(log.make, config("one"))
        waits = []
        for up_for in (0, 9, 9.5, 0, 10, 9):
            await anyio.sleep(up_for)
            began = anyio.current_time()
            with pytest.raises(AgentCrash):
                await runtime.ask(ref, {"do": "crash"})
            assert (await runtime.ask(ref)).success  # waits until it is back
            waits.append(anyio.current_time() - began)
        assert [1, 2, 4, 5, 1, 2] == waits
        assert 6 == ref.restarts


@both_kinds
@simulate(runs=RUNS)
async def test_jitter_is_between_nothing_and_the_wait(hosted: bool) -> None:
    backoff = Backoff(initial=8, maximum=8)
    async with supervised(hosted, supervisor=Supervisor(intensity=99, backoff=backoff)) as (runtime, log):
        ref = await runtime.spawn(log.make, config("one"))
        waits = []
        for _ in range(20):
            began = anyio.current_time()
            await runtime.tell(ref, {"do": "crash"})
            await settle()
            await runtime.ask(ref)
            waits.append(anyio.current_time() - began)
        assert all(0 <= wait <= 8 for wait in waits)
        assert len(set(waits)) > 10


@pytest.mark.parametrize("intensity", [0, 1, 3])
@both_kinds
@simulate(runs=RUNS)
async def test_it_gives_up_at_exactly_one_more(hosted: bool, intensity: int) -> None:
    """With a group of all these crashes, in their order; those that are older than the period do not count."""
    supervisor = Supervisor(intensity=intensity, period=5, backoff=NO_WAIT)
    with pytest.raises(AgentCrashedError) as caught:
        async with supervised(hosted, supervisor=supervisor) as (runtime, log):
            await spawn_all(runtime, log, "one", "two")
            for _ in range(intensity):
                await runtime.tell("one", {"do": "crash"})
                await settle()
            assert "up" == runtime.supervisor.state
            await anyio.sleep(5.1)
            for number in range(intensity):
                await runtime.tell(("one", "two")[number % 2], {"do": "boom"})
                await settle()
            await anyio.sleep(5 if intensity else 0)
            assert "up" == runtime.supervisor.state
            await runtime.tell("two", {"do": "crash"})
            await settle()
            assert "stopped" == runtime.supervisor.state
            assert "failed" == runtime.health().state
            with pytest.raises(RuntimeClosedError):  # hosted: the block goes on, and learns of it
                await runtime.ask("one")
    group = next(error for error in caught.value.exceptions if isinstance(error, AgentCrashedError))
    assert [AgentExecutionError] * intensity + [AgentCrash] == [type(error) for error in group.exceptions]
    assert [("supervisor_gave_up", "root")] == log.of("supervisor_gave_up")
    assert ["down two", "down one"] == log.take()[-2:]


@simulate(runs=RUNS)
async def test_what_is_gone_for_good_is_no_part_of_the_crashes_that_were_too_many() -> None:
    """Nor does it push one of them out."""
    with pytest.raises(AgentCrashedError) as caught:
        async with supervised(supervisor=Supervisor(intensity=1, backoff=NO_WAIT)) as (runtime, log):
            await spawn_all(runtime, log, "one", "two")
            gone = await runtime.spawn(log.make, config("gone"), restart="temporary")
            await runtime.tell("one", {"do": "boom"})
            await settle()
            assert gone.agent is not None
            await gone.agent.terminate()
            await settle()
            await runtime.tell("two", {"do": "crash"})
            await anyio.sleep_forever()
    (group,) = caught.value.exceptions
    assert isinstance(group, AgentCrashedError)
    assert [AgentExecutionError, AgentCrash] == [type(error) for error in group.exceptions]
    assert ["one", "two"] == (group.details or {})["agents"]


@both_at_length
@simulate(runs=1)
async def test_a_thousand_crashes_of_one_agent_interrupt_nobody_else(hosted: bool) -> None:
    """Asks and messages under way on its siblings go on from the first one to the last."""
    async with supervised(hosted, supervisor=Supervisor(intensity=1000, period=10_000, backoff=NO_WAIT)) as (
        runtime,
        log,
    ):
        refs = await spawn_all(runtime, log, *NAMES)
        go_on = anyio.Event()
        results: list[Any] = []

        async def wait(_: AgentContext) -> None:
            await go_on.wait()

        async def ask() -> None:
            results.append(await runtime.ask("three", {"do": wait}))

        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            await runtime.tell("one", {"do": wait, "n": "told"})
            for number in range(1000):
                await runtime.tell("two", {"do": "crash" if number % 2 else "boom"})
                if number % 7 == 0:
                    await anyio.sleep(1)
            await runtime.ask("two")
            go_on.set()
        await settle()
        assert (0, 1000, 0) == tuple(refs[name].restarts for name in NAMES)
        assert ([True], ["told"]) == ([result.success for result in results], log.handled["one"])
        assert 1000 == refs["two"].dropped == log.made["two"] - 1
        assert {"down two", "up two"} == set(log.take())


@simulate(runs=RUNS)
async def test_each_agent_has_its_own_time_to_end() -> None:
    """Of an execution with a deadline: so long to end by itself, as long to be cancelled, then its clean-up."""
    async with supervised(grace=0) as (runtime, log):
        for name, seconds in (("one", 1.0), ("two", 7.0)):
            await runtime.spawn(log.make, config(name, terminate_timeout=100), shutdown=seconds)
            log.ends[name] = anyio.sleep_forever
        for name, seconds in (("one", 1), ("two", 7)):
            began = anyio.current_time()
            ref = next(child for child in runtime.supervisor.children if child.name == name)
            await ref.stop()
            assert seconds == anyio.current_time() - began
        errors = runtime.health().failures
        assert [AgentTimeoutError] * 2 == [type(error) for error in errors]
        runtime._failures._errors.clear()


# Those who wait.


@both_kinds
@simulate(runs=RUNS)
async def test_who_asks_while_it_is_started_again_waits(hosted: bool) -> None:
    """Until it is back, or his time is over: that of the ask, of the task, of his own scope."""
    outcomes: dict[str, Any] = {}
    async with supervised(hosted, supervisor=Supervisor(backoff=TEN)) as (runtime, log):
        ref = await runtime.spawn(log.make, config("one"))
        await crash(runtime, ref)

        async def note(name: str, work: Any) -> None:
            try:
                outcomes[name] = True if await work() else None
            except CoreError as error:
                outcomes[name] = (type(error), type(error.__cause__), anyio.current_time())

        async def cancelled() -> None:
            with anyio.move_on_after(3):
                await runtime.ask(ref)

        async with anyio.create_task_group() as group:
            group.start_soon(note, "ask", lambda: runtime.ask(ref))
            group.start_soon(note, "by name", lambda: runtime.ask("one"))
            group.start_soon(note, "too short", lambda: runtime.ask(ref, timeout=2))
            group.start_soon(note, "long enough", lambda: runtime.ask(ref, timeout=11))
            group.start_soon(note, "task", lambda: runtime.run("one"))
            group.start_soon(note, "short task", lambda: runtime.run("one", deadline=4))
            group.start_soon(note, "cancelled", cancelled)
            handle = await runtime.submit("one")
        assert TaskState.COMPLETED == (await handle.wait()).state
    assert {
        "ask": True,
        "by name": True,
        "too short": (AgentTimeoutError, type(None), 2),
        "long enough": True,
        "task": True,
        "short task": (TaskExecutionError, AgentTimeoutError, 4),
        "cancelled": None,
    } == outcomes


@both_kinds
@simulate(runs=RUNS)
async def test_who_is_at_an_agent_that_is_started_again_is_told(hosted: bool) -> None:
    """Whether he asks, has a task, or waits for his turn."""
    outcomes: list[Any] = []
    async with supervised(hosted, supervisor=at_once("one_for_all")) as (runtime, log):
        await spawn_all(runtime, log, "one", "two")

        async def note(work: Any) -> None:
            outcomes.append(await told(work))

        async with anyio.create_task_group() as group:
            group.start_soon(note, lambda: runtime.ask("one", {"do": "hang"}))
            await settle()
            group.start_soon(note, lambda: runtime.ask("one"))
            group.start_soon(note, lambda: runtime.run("one"))
            handle = await runtime.submit("one")
            await settle()
            await crash(runtime, "two")
        assert [AgentRestartedError] * 2 + [TaskExecutionError] == sorted(outcomes, key=str)
        result = await handle.wait()
        assert TaskState.FAILED == result.state
        assert (await runtime.ask("one")).success


@simulate(runs=RUNS)
async def test_nobody_is_executed_by_an_agent_that_has_crashed() -> None:
    """Who waited for his turn at it does not get it after the crash."""
    began: list[int] = []
    async with supervised() as (runtime, log):
        ref = await runtime.spawn(log.make, config("one"))

        async def fail(_: AgentContext) -> None:
            await anyio.sleep(1)
            raise AgentCrash("no more")

        async def begin(_: AgentContext) -> None:
            began.append(log.made["one"])
            await anyio.lowlevel.checkpoint()

        async def note(work: Any) -> None:
            await told(work)

        async with anyio.create_task_group() as group:
            group.start_soon(note, lambda: runtime.ask(ref, {"do": fail}))
            await settle()
            for _ in range(3):
                group.start_soon(note, lambda: runtime.ask(ref, {"do": begin}))
            await runtime.tell(ref, {"do": begin})
            await runtime.tell(ref, {"do": begin})
        await settle()
        assert 1 == ref.restarts
    assert {2} >= set(began)


@both_kinds
@simulate(runs=RUNS)
async def test_an_agent_that_waits_for_its_own_start(hosted: bool) -> None:
    """It would for ever, and is told; at the spawn and at a restart."""
    outcomes: list[Any] = []
    async with supervised(hosted) as (runtime, log):

        async def ask() -> bool:
            outcomes.append(await told(lambda: runtime.ask("one")))
            return True

        log.starts["one"] = [ask, ask]
        ref = await runtime.spawn(log.make, config("one"))
        await crash(runtime, ref)
        assert "up" == ref.state
    assert [AgentDeadlockError] * 2 == outcomes


@both_kinds
@simulate(runs=RUNS)
async def test_who_waits_for_an_agent_lends_his_slot(hosted: bool) -> None:
    """There is one slot: a task waits for an agent that runs a task when it starts, another for room where one is run."""
    async with supervised(hosted, in_flight=1) as (runtime, log):

        async def run_later() -> None:
            await anyio.sleep(1)
            await runtime.run("three")

        await spawn_all(runtime, log, *NAMES, mailbox=1)
        log.starts["one"] = [run_later]
        with pytest.raises(AgentCrash):
            await runtime.ask("one", {"do": "crash"})
        with anyio.fail_after(5):
            assert await runtime.run("one")
            go_on = anyio.Event()

            async def wait_and_run(_: AgentContext) -> None:
                await go_on.wait()
                await run_later()

            async def tell(context: AgentContext) -> None:
                go_on.set()
                await context.tell("one")

            for _ in range(2):
                await runtime.tell("one", {"do": wait_and_run})
                await settle()
            await runtime.run("two", {"do": tell})
            assert await runtime.drain()
    assert 3 == len(log.handled["three"])


@both_kinds
@simulate(runs=RUNS)
async def test_agents_that_wait_for_each_others_start(hosted: bool) -> None:
    """One supervisor starts one after the other: who asks, while he starts, one that comes later is told of the circle."""
    outcomes: list[Any] = []
    async with supervised(hosted, supervisor=at_once("one_for_all")) as (runtime, log):

        async def ask() -> bool:
            outcomes.append(await told(lambda: runtime.ask("two")))
            return True

        await spawn_all(runtime, log, "one", "two")
        log.starts["one"] = [ask]
        with anyio.fail_after(1):
            await crash(runtime, "two")
            assert (await runtime.ask("two")).success
    assert [AgentDeadlockError] == outcomes


# Events and looks.


@both_kinds
@simulate(runs=RUNS)
async def test_everything_is_told_by_events(hosted: bool) -> None:
    async with supervised(hosted) as (runtime, log):
        ref = await runtime.spawn(log.make, config("one"))
        await runtime.tell(ref, {"do": "boom"})
        await settle()
        await runtime.tell(ref, {"do": "hang"})
        await settle()
        await ref.stop()
        kinds = ("agent_started", "agent_crashed", "agent_restarted", "message_dropped", "agent_stopped")
        assert [
            ("agent_started", "one"),
            ("message_dropped", "one"),
            ("agent_crashed", "one"),
            ("agent_restarted", "one"),
            ("message_dropped", "one"),
            ("agent_stopped", "one"),
        ] == log.of(*kinds)
        crashed = next(event for event in log.events if event.event_type == "agent_crashed")
        assert "AgentExecutionError" in crashed.data["error"] or "Boom" in crashed.data["error"]


@simulate(runs=RUNS)
async def test_references_and_supervisors_say_what_they_are() -> None:
    async with supervised(supervisor=Supervisor(backoff=TEN)) as (runtime, log):
        assert ("new", ()) == (runtime.supervisor.state, runtime.supervisor.children)
        ref = await runtime.spawn(log.make, config("one"))
        supervisor, _ = await below(runtime, log, "two")
        assert "<AgentRef 'one' up, 0 messages wait>" == repr(ref)
        assert "<AgentSupervisor 'below' up, 1 children>" == repr(supervisor)
        first, second = runtime.supervisor.children
        assert (AgentRef, supervisor) == (type(first), second)
        await crash(runtime, ref)
        assert ("restarting", None, "one", 0) == (ref.state, ref.agent, ref.config.name, ref.restarts)
        assert repr(runtime.supervisor._find("one")) == "<Spawned 'one' restarting>"
