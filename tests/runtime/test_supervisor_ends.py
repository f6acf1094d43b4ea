"""How agents that are supervised come to their end: by themselves, by somebody else, with the runtime."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from agentcore import (
    AgentContext,
    AgentCrash,
    AgentCrashedError,
    AgentRef,
    AgentRuntime,
    AgentTerminatedError,
    Supervisor,
)
from agentcore.testing import simulate
from tests.runtime.supervised import (
    NAMES,
    NO_WAIT,
    TEN,
    Boom,
    at_once,
    below,
    both_kinds,
    config,
    crash,
    settle,
    spawn_all,
    supervised,
    told,
)

RUNS = 5


# What an agent does by itself.


@pytest.mark.parametrize("restart", ["permanent", "transient", "temporary"])
@both_kinds
@simulate(runs=RUNS)
async def test_an_agent_whose_life_has_come_to_its_end(hosted: bool, restart: str) -> None:
    """Only a permanent one is started again; it is terminated in any case."""
    async with supervised(hosted) as (runtime, log):

        async def live(_: AgentContext) -> None:
            await anyio.sleep(10)

        log.lives["one"] = live
        ref = await runtime.spawn(log.make, config("one"), restart=restart)
        await anyio.sleep(9)
        assert ("up", 0) == (ref.state, ref.restarts)
        await anyio.sleep(2)
        assert (("up", 1) if restart == "permanent" else ("stopped", 0)) == (ref.state, ref.restarts)
        assert ["up one", "down one"] == log.take()[:2]
        assert [] == log.of("agent_crashed")


@pytest.mark.parametrize("error", [Boom("lived"), AgentCrash("lived"), SystemExit(3)])
@both_kinds
@simulate(runs=RUNS)
async def test_what_a_life_raises_is_a_crash(hosted: bool, error: BaseException) -> None:
    async with supervised(hosted) as (runtime, log):

        async def live(_: AgentContext) -> None:
            await anyio.lowlevel.checkpoint()
            if log.made["one"] < 3:
                raise error
            await anyio.sleep_forever()

        log.lives["one"] = live
        ref = await runtime.spawn(log.make, config("one"), restart="transient")
        await settle()
        assert (2, "up", 2) == (ref.restarts, ref.state, len(log.of("agent_crashed")))
        assert (await runtime.ask(ref)).success


@both_kinds
@simulate(runs=RUNS)
async def test_a_life_is_cancelled_when_the_runtime_is_drained(hosted: bool) -> None:
    """It is unwound before the agent's messages are through, and is neither a crash nor begun again."""
    notes: list[str] = []
    async with supervised(hosted, grace=10) as (runtime, log):

        async def live(_: AgentContext) -> None:
            try:
                await anyio.sleep_forever()
            finally:
                notes.append("life is over")

        async def work(_: AgentContext) -> None:
            await anyio.sleep(1)
            notes.append("worked")

        async def crash_and_work(_: AgentContext) -> None:
            await anyio.sleep(0.5)
            raise AgentCrash("while it drains")

        log.lives["one"] = live
        ref = await runtime.spawn(log.make, config("one"))
        await runtime.tell(ref, {"do": crash_and_work})
        await runtime.tell(ref, {"do": work})
        await settle()
        assert await runtime.drain()
        assert (["life is over", "worked"], 1, 1.5) == (notes, ref.restarts, anyio.current_time())


@pytest.mark.parametrize("how", ["swallows it", "ends at once", "fails", "is refused"])
@both_kinds
@simulate(runs=RUNS)
async def test_how_a_life_takes_its_end(hosted: bool, how: str) -> None:
    """A life that swallows its cancellation has not come to its end by itself; an error of its clean-up is told."""
    errors: list[BaseException] = []
    try:
        async with supervised(hosted, grace=10) as (runtime, log):

            async def live(context: AgentContext) -> None:
                try:
                    await anyio.sleep_forever()
                except anyio.get_cancelled_exc_class():
                    if how == "swallows it":
                        return
                    if how == "fails":
                        raise Boom("while it was ended") from None
                    if how == "is refused":
                        context.tell_nowait("one")
                    raise

            async def work(_: AgentContext) -> None:
                await anyio.sleep(1)

            log.lives["one"] = live
            ref = await runtime.spawn(log.make, config("one"))
            await runtime.tell(ref, {"do": work})
            await settle()
            assert await runtime.drain()
            assert (0, "up", [None]) == (ref.restarts, ref.state, log.handled["one"])
    except AgentCrashedError as error:
        errors += error.exceptions
    assert ([Boom] if how == "fails" else []) == [type(error) for error in errors]


@both_kinds
@simulate(runs=RUNS)
async def test_a_life_that_shuts_the_runtime_down(hosted: bool) -> None:
    """It waits for nothing that waits for it."""
    async with supervised(hosted) as (runtime, log):

        async def live(_: AgentContext) -> None:
            await anyio.sleep(1)
            await runtime.shutdown(5, "by an agent")

        log.lives["one"] = live
        refs = await spawn_all(runtime, log, "one", "two")
        await anyio.sleep(2)
        assert {"stopped"} == {ref.state for ref in refs.values()}
        assert runtime.report is not None
        assert ("by an agent", True) == (runtime.report.reason, runtime.report.drained)


# Ends that somebody brings about.


@both_kinds
@simulate(runs=RUNS)
async def test_stop_from_outside(hosted: bool) -> None:
    """The agent is terminated when it returns, and nothing of it goes on; whoever was at it is told."""
    outcomes: list[Any] = []
    async with supervised(hosted, in_flight=3) as (runtime, log):
        ref = await runtime.spawn(log.make, config("one", max_concurrency=2))

        async def ask() -> None:
            outcomes.append(await told(lambda: runtime.ask(ref, {"do": "hang"})))

        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            group.start_soon(ask)
            await settle()
            group.start_soon(ask)  # waits for its turn
            await runtime.tell(ref, {"do": "hang"})
            await runtime.tell(ref, {"n": 1})
            await settle()
            await ref.stop()
            assert ("down one", "stopped", None) == (log.entries[-1], ref.state, ref.agent)
        assert ([AgentTerminatedError] * 3, 2) == (outcomes, ref.dropped)
        await ref.stop()
        assert [("agent_stopped", "one")] == log.of("agent_stopped")
        assert [] == log.of("agent_crashed", "agent_restarted")


@pytest.mark.parametrize("where", ["message", "ask", "task", "life", "initialize", "terminate"])
@both_kinds
@simulate(runs=RUNS)
async def test_stop_from_inside(hosted: bool, where: str) -> None:
    """It waits for nothing that waits for it."""
    refs: list[AgentRef] = []
    async with supervised(hosted, grace=60) as (runtime, log):

        async def stop(_: AgentContext | None = None) -> bool:
            await refs[0].stop()
            return True

        async def live(context: AgentContext) -> None:
            if where == "life":
                await anyio.lowlevel.checkpoint()
                await stop()
            await anyio.sleep_forever()

        log.lives["one"] = live
        ref = await runtime.spawn(log.make, config("one"))
        refs.append(ref)
        with anyio.fail_after(1):
            if where == "message":
                await runtime.tell(ref, {"do": stop})
            elif where == "ask":
                assert (await runtime.ask(ref, {"do": stop})).success
            elif where == "task":
                await runtime.run("one", {"do": stop})
            elif where == "initialize":
                log.starts["one"] = [stop]
                await crash(runtime, ref)
            elif where == "terminate":
                log.ends["one"] = stop
                await crash(runtime, ref)
            await anyio.sleep(0.1)
        assert ("stopped", "down one") == (ref.state, log.entries[-1])
        assert log.made["one"] == log.entries.count("down one")
        assert 0 == ref.dropped


@both_kinds
@simulate(runs=RUNS)
async def test_two_agents_that_stop_each_other(hosted: bool) -> None:
    """Neither waits for the other for ever; one of them may be stopped before it has said what it wants."""
    refs: dict[str, AgentRef] = {}
    async with supervised(hosted, grace=60) as (runtime, log):
        refs |= await spawn_all(runtime, log, "one", "two")

        async def stop(context: AgentContext) -> None:
            await anyio.sleep(1)
            await refs[context.input["whom"]].stop()

        await runtime.tell("one", {"do": stop, "whom": "two"})
        await runtime.tell("two", {"do": stop, "whom": "one"})
        await anyio.sleep(2)
        assert "stopped" in {ref.state for ref in refs.values()}
        for ref in refs.values():
            await ref.stop()


@both_kinds
@simulate(runs=RUNS)
async def test_stop_while_it_waits_to_be_started_again(hosted: bool) -> None:
    """It is not started again; who waited for it is told."""
    outcomes: list[Any] = []
    async with supervised(hosted, supervisor=Supervisor(backoff=TEN)) as (runtime, log):
        ref = await runtime.spawn(log.make, config("one"))
        await crash(runtime, ref)

        async def ask() -> None:
            outcomes.append(await told(lambda: runtime.ask(ref)))

        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            await runtime.tell(ref, {"n": 1})
            await ref.stop()
        assert ([AgentTerminatedError], 0, 1) == (outcomes, anyio.current_time(), ref.dropped)
        await anyio.sleep(20)
        assert (1, "stopped") == (log.made["one"], ref.state)


@both_kinds
@simulate(runs=RUNS)
async def test_stop_while_its_start_takes_for_ever(hosted: bool) -> None:
    """The next agent hangs in ``initialize``, which has no limit: that holds up neither who stops it nor the others."""
    async with supervised(hosted, supervisor=at_once("rest_for_one")) as (runtime, log):
        refs = await spawn_all(runtime, log, *NAMES)
        log.starts["two"] = [anyio.sleep_forever]
        await crash(runtime, "one")
        assert ["down one", "down three", "down two", "up one"] == log.take()
        await refs["two"].stop()
        assert "stopped" == refs["two"].state
        await settle()
        assert ["up", "up"] == [refs["one"].state, refs["three"].state]
        assert [("agent_stopped", "two")] == log.of("agent_stopped")
        assert (await runtime.ask("three")).success


@both_kinds
@simulate(runs=RUNS)
async def test_stop_while_its_supervisor_comes_back(hosted: bool) -> None:
    """As above, one level deeper: the supervisor and its other agents come up without it."""
    async with supervised(hosted) as (runtime, log):
        supervisor, refs = await below(runtime, log, *NAMES, intensity=0, backoff=NO_WAIT)
        log.starts["two"] = [anyio.sleep_forever]
        await crash(runtime, "one")
        assert ["up", "restarting", "restarting"] == [ref.state for ref in refs.values()]
        await refs["two"].stop()
        await settle()
        assert ["up", "stopped", "up"] == [ref.state for ref in refs.values()]
        assert ["one", "three"] == [child.name for child in supervisor.children]
        log.starts["one"] = [anyio.sleep_forever]
        await crash(runtime, "three")
        await supervisor.stop()
        assert ["stopped"] * 3 == [ref.state for ref in refs.values()]
        assert () == runtime.supervisor.children


@pytest.mark.parametrize("depth", ["first", "below"])
@both_kinds
@simulate(runs=RUNS, backends=["asyncio"])
async def test_the_task_of_a_supervisor_is_cancelled_from_outside(hosted: bool, depth: str) -> None:
    """By asyncio's own ways, which no scope knows of. It is told of, not passed over: the one above mends it, or nobody can."""
    async with AsyncExitStack() as stack:
        if depth == "first":
            stack.enter_context(pytest.raises(AgentCrashedError, match="'root' was cancelled from outside"))
        runtime, log = await stack.enter_async_context(supervised(hosted))
        supervisor, _ = await below(runtime, log, "one")
        await settle()
        name = "root" if depth == "first" else "below"
        (task,) = [task for task in asyncio.all_tasks() if task.get_name() == f"supervisor {name}"]
        log.take()
        task.cancel()
        if depth == "first":
            await (anyio.sleep_forever() if not hosted else settle())
            return
        await settle()
        assert ["down one", "up one"] == log.take()
        assert "up" == supervisor.state
        assert (await runtime.ask("one")).success


@both_kinds
@simulate(runs=RUNS)
async def test_cancelling_who_stops_ends_the_waiting_alone(hosted: bool) -> None:
    async with supervised(hosted) as (runtime, log):
        ref = await runtime.spawn(log.make, config("one"))
        log.ends["one"] = partial(anyio.sleep, 3)
        with anyio.move_on_after(1) as scope:
            await ref.stop()
        assert scope.cancelled_caught
        await anyio.sleep(2.5)
        assert "stopped" == ref.state


@both_kinds
@simulate(runs=RUNS)
async def test_stop_while_the_runtime_ends(hosted: bool) -> None:
    """Whoever waits for it is told, though its supervisor has ended first; it may be asked for afterwards, too."""
    async with anyio.create_task_group() as group:
        async with supervised(hosted) as (runtime, log):
            refs = await spawn_all(runtime, log, "one", "two")
            log.ends["two"] = partial(anyio.sleep, 3)
            group.start_soon(runtime.shutdown)
            await anyio.sleep(1)
            group.start_soon(refs["one"].stop)
            group.start_soon(refs["two"].stop)
        await refs["one"].stop()


@both_kinds
@simulate(runs=RUNS)
async def test_the_shutdown_is_called_by_an_agent(hosted: bool) -> None:
    """In a message, an ask and a task: it ends, everything is stopped, and references say so."""
    for way in ("message", "ask", "run", "submit"):
        async with supervised(hosted, grace=60) as (runtime, log):
            refs = await spawn_all(runtime, log, "one", "two")

            async def end(_: AgentContext, runtime: AgentRuntime = runtime) -> None:
                await runtime.shutdown(0, "by an agent")

            with anyio.fail_after(1):
                if way == "message":
                    await runtime.tell("one", {"do": end})
                    await settle()
                else:
                    call: Any = {"ask": runtime.ask, "run": runtime.run, "submit": runtime.submit}[way]
                    await told(lambda call=call, end=end: call("one", {"do": end}))
                    await settle()
            assert runtime.report is not None
            assert {"stopped"} == {ref.state for ref in refs.values()}, way
            assert "stopped" == runtime.supervisor.state
            assert () == runtime.supervisor.children


@both_kinds
@simulate(runs=RUNS)
async def test_ctrl_c_in_an_agent_is_meant_for_the_program(hosted: bool) -> None:
    """It is no crash: strict it ends the runtime and flies on, hosted the program gets it."""
    if hosted:
        return  # the signal is sent to the process then; see the tests of hosted runtimes
    with pytest.raises(BaseExceptionGroup) as caught:
        async with supervised() as (runtime, log):
            await runtime.spawn(log.make, config("one"))
            await runtime.tell("one", {"do": "interrupt"})
            await anyio.sleep_forever()
    assert caught.value.subgroup(KeyboardInterrupt) is not None
    assert [] == log.of("agent_restarted", "agent_crashed")
    assert "down one" == log.entries[-1]
