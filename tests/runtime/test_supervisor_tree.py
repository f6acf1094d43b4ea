"""Supervisors below supervisors: what one gives up the one above mends."""

from __future__ import annotations

from functools import partial

import anyio
import anyio.lowlevel
import pytest

from agentcore import (
    AgentContext,
    AgentCrash,
    AgentCrashedError,
    AgentError,
    AgentExecutionError,
    AgentTerminatedError,
    Supervisor,
)
from agentcore.testing import simulate
from tests.runtime.supervised import (
    NAMES,
    NO_WAIT,
    TEN,
    Boom,
    below,
    both_kinds,
    config,
    crash,
    settle,
    supervised,
    told,
)

RUNS = 5


# Supervisors below supervisors.


@both_kinds
@simulate(runs=RUNS)
async def test_what_one_supervisor_gives_up_the_one_above_mends(hosted: bool) -> None:
    """It is started again with its children, all but temporary ones, and counts anew; nobody else is interrupted."""
    async with supervised(hosted) as (runtime, log):
        above = await runtime.spawn(log.make, config("above"))
        supervisor, refs = await below(runtime, log, *NAMES, intensity=1, backoff=NO_WAIT)
        gone = await supervisor.spawn(log.make, config("gone"), restart="temporary")
        log.take()
        await crash(runtime, "two")
        assert "up" == supervisor.state
        await crash(runtime, "two")
        assert ["down two", "up two", "down two", "down gone", "down three", "down one"] == log.entries[:6]
        assert ["up one", "up two", "up three"] == log.entries[6:]
        assert ("up", "stopped", 0) == (supervisor.state, gone.state, above.restarts)
        assert {"one": 1, "two": 2, "three": 1} == {name: ref.restarts for name, ref in refs.items()}
        await crash(runtime, "one")
        assert "up" == supervisor.state
        assert [("supervisor_gave_up", "below")] == log.of("supervisor_gave_up")
        assert [("agent_restarted", "below")] == [one for one in log.of("agent_restarted") if one[1] == "below"]
        for ref in refs.values():
            assert (await runtime.ask(ref)).success


@both_kinds
@simulate(runs=RUNS)
async def test_all_the_crashes_come_to_the_top(hosted: bool) -> None:
    """Those of the supervisor below, each time it gave up, in the group of the first one."""
    with pytest.raises(AgentCrashedError) as caught:
        async with supervised(hosted, supervisor=Supervisor(intensity=1, backoff=NO_WAIT)) as (runtime, log):
            supervisor, _ = await below(runtime, log, "one", intensity=0, backoff=NO_WAIT)
            for word in ("crash", "boom"):
                await runtime.tell("one", {"do": word})
                await settle()
            await settle()
            assert "stopped" == supervisor.state
            await anyio.sleep_forever() if not hosted else None
    group = caught.value.exceptions[0]
    assert isinstance(group, AgentCrashedError)
    assert {"supervisor": "root", "agents": ["below"], "intensity": 1} == group.details
    kinds = [[type(leaf) for leaf in inner.exceptions] for inner in group.exceptions]  # type: ignore[attr-defined]
    assert [[AgentCrash], [AgentExecutionError]] == kinds
    assert caught.value.subgroup(AgentExecutionError) is not None


@pytest.mark.parametrize("restart", ["transient", "temporary"])
@both_kinds
@simulate(runs=RUNS)
async def test_a_supervisor_that_is_not_started_again(hosted: bool, restart: str) -> None:
    """A temporary one is gone with its children, and why is told at the exit; giving up is a crash, so others are not."""
    errors: list[BaseException] = []
    try:
        async with supervised(hosted) as (runtime, log):
            supervisor, refs = await below(runtime, log, "one", "two", restart=restart, intensity=0, backoff=NO_WAIT)
            await runtime.tell("one", {"do": "hang"})
            await runtime.tell("one", {"n": 1})
            await crash(runtime, "two")
            if restart == "transient":
                assert ("up", 1) == (supervisor.state, refs["one"].restarts)
            else:
                assert ("stopped", {"stopped"}) == (supervisor.state, {ref.state for ref in refs.values()})
                assert AgentTerminatedError is await told(lambda: runtime.tell(refs["one"]))
                assert AgentError is await told(lambda: supervisor.spawn(log.make, config("three")))
                assert [] == runtime.supervisor._agents()
                assert 2 == refs["one"].dropped
    except AgentCrashedError as error:
        errors += error.exceptions
    assert ([AgentCrashedError] if restart == "temporary" else []) == [type(error) for error in errors]


@both_kinds
@simulate(runs=RUNS)
async def test_messages_and_asks_wait_for_a_supervisor_that_is_started_again(hosted: bool) -> None:
    async with supervised(hosted, supervisor=Supervisor(backoff=TEN)) as (runtime, log):
        _, refs = await below(runtime, log, "one", "two", intensity=0, backoff=NO_WAIT)
        await crash(runtime, "two")
        assert {"restarting"} == {ref.state for ref in refs.values()}
        await runtime.tell("one", {"n": 1})
        assert (await runtime.ask("one")).success
        assert 10 == anyio.current_time()
        await settle()
    assert [1, None] == sorted(log.handled["one"], key=str)


@both_kinds
@simulate(runs=RUNS)
async def test_an_agent_is_stopped_while_its_supervisor_is_down(hosted: bool) -> None:
    """At once, and it does not come back with the others; so is the supervisor itself."""
    async with supervised(hosted, supervisor=Supervisor(backoff=TEN)) as (runtime, log):
        supervisor, refs = await below(runtime, log, *NAMES, intensity=0, backoff=NO_WAIT)
        await crash(runtime, "two")
        with anyio.fail_after(1):
            await refs["one"].stop()
        assert ("stopped", "restarting") == (refs["one"].state, refs["three"].state)
        await anyio.sleep(11)
        assert ("stopped", "up", "up") == tuple(refs[name].state for name in NAMES)
        await crash(runtime, "two")
        with anyio.fail_after(1):
            await supervisor.stop()
        assert {"stopped"} == {ref.state for ref in refs.values()}
        await anyio.sleep(11)
        assert 2 == log.made["two"]


@both_kinds
@simulate(runs=RUNS)
async def test_an_agent_is_stopped_in_the_moment_its_supervisor_gives_up(hosted: bool) -> None:
    """Whichever comes first, whoever stops it is told, and it does not come back."""
    async with supervised(hosted) as (runtime, log):
        _, refs = await below(runtime, log, "one", "two", intensity=0, backoff=NO_WAIT)
        log.ends["one"] = partial(anyio.sleep, 3)
        async with anyio.create_task_group() as group:
            await runtime.tell("two", {"do": "crash"})
            group.start_soon(refs["one"].stop)
            await anyio.sleep(1)
            group.start_soon(refs["one"].stop)
        await settle()
        assert ("stopped", "up") == (refs["one"].state, refs["two"].state)


@both_kinds
@simulate(runs=RUNS)
async def test_a_crash_while_the_supervisor_comes_back(hosted: bool) -> None:
    """One that crashes before its siblings are up is started again when they are, by the strategy as ever."""
    async with supervised(hosted) as (runtime, log):
        crashes = 0

        async def live(_: AgentContext) -> None:
            nonlocal crashes
            if log.made["one"] == 3:  # in the second life of the supervisor
                crashes += 1
                raise Boom("at once")
            await anyio.sleep_forever()

        log.lives["one"] = live
        supervisor, refs = await below(runtime, log, "one", "two", strategy="one_for_all", intensity=1, backoff=NO_WAIT)
        log.starts["two"] = [True, partial(anyio.sleep, 1)]
        await crash(runtime, "two")
        await crash(runtime, "two")
        assert (1, "restarting") == (crashes, refs["one"].state)
        log.take()
        await anyio.sleep(2)
        assert ["up two", "down one", "down two", "up one", "up two"] == log.take()
        assert (1, "up", {"up"}) == (crashes, supervisor.state, {ref.state for ref in refs.values()})
        for ref in refs.values():
            assert (await runtime.ask(ref)).success


@both_kinds
@simulate(runs=RUNS)
async def test_a_supervisor_is_stopped(hosted: bool) -> None:
    """With all its children, the last one first; from outside and from inside. The first one is not."""
    async with supervised(hosted, grace=60) as (runtime, log):
        with pytest.raises(AgentError, match="the first supervisor ends with its runtime"):
            await runtime.supervisor.stop()
        supervisor, refs = await below(runtime, log, *NAMES)
        log.take()
        await supervisor.stop()
        assert ["down three", "down two", "down one"] == log.take()
        assert ("stopped", {"stopped"}) == (supervisor.state, {ref.state for ref in refs.values()})
        await supervisor.stop()
        assert AgentError is await told(lambda: supervisor.spawn(log.make, config("four")))
        supervisor, refs = await below(runtime, log, *NAMES)

        async def stop(_: AgentContext) -> None:
            await supervisor.stop()

        with anyio.fail_after(1):
            await runtime.tell("two", {"do": stop})
            await anyio.sleep(0.1)
        assert ("stopped", {"stopped"}) == (supervisor.state, {ref.state for ref in refs.values()})
        assert () == runtime.supervisor.children
