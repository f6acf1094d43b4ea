"""Supervisors and agents in odd moments: who waits for whom, what counts, and who is told."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from agentcore import (
    AgentContext,
    AgentCrash,
    AgentCrashedError,
    AgentDeadlockError,
    AgentRuntime,
    BaseTask,
    CoreError,
    RuntimeConfig,
    Supervisor,
)
from agentcore._interop import sources
from agentcore.testing import simulate
from tests.runtime.supervised import NO_WAIT, TEN, Log, at_once, config, settle, supervised, told

RUNS = 2


def crash_together(log: Log) -> anyio.Event:
    """Have the first agent ``a``, and each ``t``, crash by themselves in one step: when the event is set."""
    go = anyio.Event()

    async def boom(context: AgentContext) -> None:
        await go.wait()
        raise AgentCrash("x")

    async def once(context: AgentContext) -> None:
        if log.made["a"] == 1:
            await boom(context)
        await anyio.sleep_forever()

    log.lives["t"], log.lives["a"] = boom, once
    return go


@simulate(runs=RUNS)
async def test_start_asks_one_of_a_team_that_is_down() -> None:
    """one_for_all: both are down, the supervisor is at `a`, whose start asks `w` of the team which comes after it."""
    seen: list[Any] = []
    async with supervised(supervisor=at_once("one_for_all"), grace=0) as (runtime, log):
        await runtime.spawn(log.make, config("a"))
        team = await runtime.supervisor.supervise("team", Supervisor(intensity=0))
        w = await team.spawn(log.make, config("w"))

        async def start() -> None:
            with anyio.move_on_after(1000) as scope:
                seen.append(await told(lambda: runtime.ask("w", {"n": 1})))
            seen.append(scope.cancelled_caught)

        log.starts["a"] = [start]
        await runtime.tell(w, {"do": "crash"})
        await anyio.sleep(2000)
    assert seen == [AgentDeadlockError, False]


@simulate(runs=RUNS)
async def test_start_tells_one_that_crashes_meanwhile() -> None:
    """Its mailbox is full, and the supervisor that would start it again is at this very start."""
    seen: list[Any] = []
    async with supervised(supervisor=at_once(), grace=0) as (runtime, log):
        a = await runtime.spawn(log.make, config("a"))
        b = await runtime.spawn(log.make, config("b"), mailbox=1)

        async def start() -> None:
            await anyio.sleep(10)
            with anyio.move_on_after(1000) as scope:
                seen.append(await told(lambda: runtime.tell("b", {"n": 9})))
            seen.append(scope.cancelled_caught)

        async def slow(context: AgentContext) -> None:
            await anyio.sleep(5)
            raise AgentCrash("x")

        log.starts["a"] = [start]
        await runtime.tell(a, {"do": "crash"})
        await settle()
        await runtime.tell(b, {"do": slow})
        await settle()
        await runtime.tell(b, {"n": 1})
        await anyio.sleep(2000)
    assert seen == [AgentDeadlockError, False]


@simulate(runs=RUNS)
async def test_stale_wait_for_a_start() -> None:
    """`w` waits for `a`, whose start failed meanwhile; the supervisor is at `y`, whose start asks `w`."""
    seen: list[Any] = []
    async with supervised(supervisor=Supervisor(intensity=100, backoff=TEN), grace=0) as (runtime, log):
        a = await runtime.spawn(log.make, config("a"))
        y = await runtime.spawn(log.make, config("y"))
        w = await runtime.spawn(log.make, config("w"))

        async def start_a() -> None:
            await anyio.sleep(1)
            raise AgentCrash("no")

        async def start_y() -> None:
            with anyio.move_on_after(1000) as scope:
                seen.append(await told(lambda: runtime.ask("w", {"n": 1})))
            seen.append(scope.cancelled_caught)

        async def ask_a(context: AgentContext) -> None:
            await context.ask("a", {"n": 2})

        log.starts["a"] = [start_a]
        log.starts["y"] = [start_y]
        await runtime.tell(a, {"do": "crash"})
        await anyio.sleep(0.5)
        await runtime.tell(y, {"do": "crash"})
        await anyio.sleep(9.7)  # a is being started
        await runtime.tell(w, {"do": ask_a})
        await anyio.sleep(2000)
    assert seen == [AgentDeadlockError, False]


@simulate(runs=RUNS)
async def test_transient_end_in_the_moment_of_giving_up_is_no_crash() -> None:
    """Only the crash is among the errors."""
    log = Log()
    go = anyio.Event()

    async def live(context: AgentContext) -> None:
        await go.wait()

    async def boom(context: AgentContext) -> None:
        await go.wait()
        raise AgentCrash("x")

    log.lives["t"] = live
    log.lives["a"] = boom
    with pytest.raises(AgentCrashedError) as info:
        async with AgentRuntime(supervisor=Supervisor(intensity=0), grace=0) as runtime:
            await runtime.spawn(log.make, config("a"))
            await runtime.spawn(log.make, config("t"), restart="transient")
            await settle()
            go.set()
            await anyio.sleep(5)
    (error,) = info.value.exceptions if not info.value.details.get("supervisor") else (info.value,)
    assert len(error.exceptions) == 1, error.exceptions


@simulate(runs=RUNS)
async def test_transient_that_has_ended_is_not_back_with_its_team() -> None:
    """It has ended by itself in the step in which the team gave up."""
    async with supervised(supervisor=at_once(), grace=0) as (runtime, log):
        go = anyio.Event()

        async def live(context: AgentContext) -> None:
            await go.wait()

        async def boom(context: AgentContext) -> None:
            await go.wait()
            if log.made["a"] == 1:
                raise AgentCrash("x")
            await anyio.sleep_forever()

        log.lives["t"] = live
        log.lives["a"] = boom
        team = await runtime.supervisor.supervise("team", Supervisor(intensity=0))
        await team.spawn(log.make, config("a"))
        await team.spawn(log.make, config("t"), restart="transient")
        await settle()
        go.set()
        await anyio.sleep(5)
        assert log.made["t"] == 1


@pytest.mark.parametrize("strategy", ["one_for_one", "one_for_all"])
@pytest.mark.parametrize("first", ["a", "t"])
@simulate(runs=RUNS)
async def test_crash_of_a_temporary_one_taken_down_with_others(strategy: str, first: str) -> None:
    """It is told of all the same, whichever report is read first."""
    log = Log()
    failures: Any = None
    go = crash_together(log)
    try:
        async with AgentRuntime(supervisor=Supervisor(strategy, backoff=TEN), grace=0) as runtime:
            for n in ["a", "t"] if first == "a" else ["t", "a"]:
                await runtime.spawn(log.make, config(n), restart="temporary" if n == "t" else "transient")
            await settle()
            go.set()
            await anyio.sleep(5)
            failures = runtime.health().failures
    except CoreError:
        pass
    assert len(failures) == 1, failures


@simulate(runs=RUNS)
async def test_crash_of_a_temporary_one_when_its_team_gives_up() -> None:
    """It is no reason of the team, and told of as it always is."""
    log = Log()
    failures: Any = None
    go = crash_together(log)
    try:
        async with AgentRuntime(supervisor=Supervisor(backoff=TEN), grace=0) as runtime:
            team = await runtime.supervisor.supervise("team", Supervisor(intensity=0))
            await team.spawn(log.make, config("a"))
            await team.spawn(log.make, config("t"), restart="temporary")
            await settle()
            go.set()
            await anyio.sleep(5)
            failures = runtime.health().failures
    except CoreError:
        pass
    assert len(failures) == 1, failures


@pytest.mark.parametrize("nested", [False, True])
@simulate(runs=RUNS)
async def test_giving_up_takes_longer_than_the_period(nested: bool) -> None:
    """What it has given up for counts at the moment in which it did."""
    log = Log()

    async def end() -> None:
        await anyio.sleep(3)

    log.ends["b"] = end
    caught: list[AgentCrashedError] = []
    try:
        async with AgentRuntime(
            supervisor=at_once() if nested else Supervisor(intensity=0, period=1), grace=0
        ) as runtime:
            top = (
                await runtime.supervisor.supervise("team", Supervisor(intensity=0, period=1))
                if nested
                else runtime.supervisor
            )
            a = await top.spawn(log.make, config("a"))
            await top.spawn(log.make, config("b"))
            await runtime.tell(a, {"do": "crash"})
            await anyio.sleep(10)
            assert nested
            assert top.state == "up"
            assert a.restarts == 1
    except AgentCrashedError as error:
        caught.append(error)
    assert nested != bool(caught)
    assert all("got 1 restarts" in str(error) for error in caught)


@simulate(runs=RUNS)
async def test_agent_that_is_asked_itself_crashes_while_others_stand_in_line() -> None:
    """Its supervisor knows of none of them; they are told that it is gone."""
    seen: list[Any] = []
    async with supervised(supervisor=at_once(), grace=0) as (runtime, log):
        ref = await runtime.spawn(log.make, config("a"))
        agent = ref.agent

        async def ask(what: Any) -> None:
            with anyio.move_on_after(100) as scope:
                seen.append(await told(lambda: runtime.ask(agent, {"do": what})))
            seen.append(scope.cancelled_caught)

        async def slow(context: AgentContext) -> None:
            await anyio.sleep(1)
            raise AgentCrash("x")

        async with anyio.create_task_group() as group:
            group.start_soon(ask, slow)
            await settle()
            group.start_soon(ask, None)
            group.start_soon(ask, None)
    assert True not in seen, seen


@simulate(runs=RUNS)
async def test_agent_by_object_ended_by_its_live() -> None:
    """As above, when the agent ends by itself."""
    seen: list[Any] = []
    async with supervised(supervisor=at_once(), grace=0) as (runtime, log):

        async def live(context: AgentContext) -> None:
            await anyio.sleep(1)

        async def slow(context: AgentContext) -> None:
            await anyio.sleep(1)

        log.lives["a"] = live
        ref = await runtime.spawn(log.make, config("a"), restart="transient")
        agent = ref.agent

        async def ask(what: Any) -> None:
            with anyio.move_on_after(100) as scope:
                seen.append(await told(lambda: runtime.ask(agent, {"do": what})))
            seen.append(scope.cancelled_caught)

        async with anyio.create_task_group() as group:
            group.start_soon(ask, slow)
            await settle()
            group.start_soon(ask, None)
            group.start_soon(ask, None)
    assert True not in seen, seen


@pytest.mark.parametrize("period", [1e-6, 1e-14, 1e-300, 1e15])
@simulate(runs=RUNS)
async def test_periods(period: float) -> None:
    """Also if two of them later is no later at all for a float."""
    async with supervised(supervisor=Supervisor(intensity=5, period=period, backoff=NO_WAIT), grace=0) as (
        runtime,
        log,
    ):
        a = await runtime.spawn(log.make, config("a"))
        await anyio.sleep(1000.1)
        await runtime.tell(a, {"do": "crash"})
        await anyio.sleep(5)
        assert a.restarts == 1


@simulate(runs=RUNS)
async def test_clean_up_in_a_team_stops_a_helper_above() -> None:
    """The supervisor above waits for the team that waits for this clean-up."""
    async with supervised(supervisor=at_once(), grace=0) as (runtime, log):
        team = await runtime.supervisor.supervise("team", at_once())
        helper = await runtime.spawn(log.make, config("helper"))
        await team.spawn(log.make, config("w"))

        async def end() -> None:
            await helper.stop()

        log.ends["w"] = end
        start = anyio.current_time()
        await team.stop()
        assert anyio.current_time() - start < 1, anyio.current_time() - start


def put_off(seconds: float) -> BaseTask:
    """Return a task that has failed elsewhere, and may be executed again only later."""
    task = BaseTask(type="note", input={"n": 0})
    task.start()
    task.retry({"message": "x"}, datetime.fromtimestamp(sources.get().wall() + seconds, UTC))
    return BaseTask.from_dict(task.to_dict())


@pytest.mark.parametrize("what", ["past", "queue", "place", "far"])
@simulate(runs=RUNS)
async def test_not_before(what: str) -> None:
    """Until then it holds nothing and is not late for anything but the total deadline; afterwards it is like any other."""
    seen: list[int] = []
    async with AgentRuntime(RuntimeConfig(in_flight=1, queue=1 if what == "place" else 100), grace=0) as runtime:

        @runtime.handler("note")
        async def note(given: dict[str, Any]) -> None:
            seen.append(given["n"])
            await anyio.sleep(given.get("s", 0))

        if what == "far":
            task = put_off(7e10)
            h = await runtime.submit(task, deadline=5)
            await h.wait()
            assert anyio.current_time() < 6
            assert h.task.error["deadline"] == "total"
            task = put_off(2e11)
            h = await runtime.submit(task)
            await anyio.sleep(1)
            h.cancel("x")
            await h.wait()
            await runtime.submit("note", {"n": 3})
            await runtime.drain()
            assert seen == [3]
            return
        await runtime.submit("note", {"n": 9, "s": 10})
        await settle()
        if what == "past":
            a = await runtime.submit(put_off(-5))
            b = await runtime.submit("note", {"n": 1})
            await b.wait()
            await a.wait()
            assert seen == [9, 0, 1]
        elif what == "queue":
            a = await runtime.submit(put_off(100), queue_timeout=5)
            await a.wait()
            assert a.task.error is None, a.task.error
        elif what == "place":
            a = await runtime.submit(put_off(100))
            with anyio.fail_after(1):
                await runtime.submit("note", {"n": 1})


@pytest.mark.parametrize("when", ["crash", "stop", "terminate", "cut", "drain"])
@simulate(runs=6)
async def test_messages_in_line_are_handled_once(when: str) -> None:  # noqa: C901 - each end is but a line
    """Accounting of what is put back, with senders that wait for a place."""
    sent: list[int] = []
    async with supervised(supervisor=at_once(), grace=100 if when == "drain" else 0) as (runtime, log):
        ref = await runtime.spawn(log.make, config("a"), mailbox=2)

        async def slow(context: AgentContext) -> None:
            await anyio.sleep(1)
            if when in ("crash", "drain") and log.made["a"] == 1:
                raise AgentCrash("x")

        async def send() -> None:
            for n in range(8):
                await told(lambda n=n: runtime.tell(ref, {"n": n}))
                sent.append(n)

        async with anyio.create_task_group() as group:

            async def asker() -> None:
                await told(lambda: runtime.ask(ref, {"do": slow}))

            group.start_soon(asker)
            await settle()
            group.start_soon(send)
            await settle()
            if when == "stop":
                await ref.stop()
            elif when == "terminate":
                assert ref.agent is not None
                await ref.agent.terminate()
            if when in ("crash", "terminate"):
                await anyio.sleep(5)
            elif when == "drain":
                assert await runtime.drain()
            elif when == "cut":
                await runtime.shutdown(0)
        if when in ("crash", "terminate", "drain"):
            got = [n for n in log.handled["a"] if n is not None]
            want = list(range(8)) if when != "drain" else got
            assert got == want
            assert got == sorted(set(got))
            assert ref.dropped == 0, ref.dropped
            assert len(ref._post._mailbox) == 0


@simulate(runs=6)
async def test_a_sender_of_one_that_was_put_back_is_cancelled() -> None:
    """What he had a place for is handled once, or not at all."""
    async with supervised(supervisor=Supervisor(intensity=10, backoff=TEN), grace=0) as (runtime, log):
        ref = await runtime.spawn(log.make, config("a"), mailbox=1)

        async def slow(context: AgentContext) -> None:
            await anyio.sleep(1)
            raise AgentCrash("x")

        async with anyio.create_task_group() as group:

            async def asker() -> None:
                await told(lambda: runtime.ask(ref, {"do": slow}))

            group.start_soon(asker)
            await settle()
            for n in range(4):
                group.start_soon(lambda n=n: runtime.tell(ref, {"n": n}))
            await anyio.sleep(1)
            group.cancel_scope.cancel()
        await anyio.sleep(20)
        assert runtime.statistics().messages == 0
        got = log.handled.get("a", [])
        assert sorted(got) == sorted(set(got))
        assert ref.dropped == 0


@pytest.mark.parametrize("team_first", [True, False])
@pytest.mark.parametrize("strategy", ["one_for_one", "one_for_all", "rest_for_one"])
@pytest.mark.parametrize("restart", ["permanent", "transient"])
@simulate(runs=6)
async def test_team_gives_up_while_the_one_above_mends(restart: str, strategy: str, team_first: bool) -> None:
    async with supervised(supervisor=at_once(strategy), grace=0) as (runtime, log):
        go = anyio.Event()

        async def boom(context: AgentContext) -> None:
            await go.wait()
            if log.made["a"] == 1 or log.made["w"] == 1:
                pass
            raise AgentCrash("x")

        async def slow() -> None:
            await anyio.sleep(1)

        log.ends["w"] = log.ends["v"] = slow
        a = None
        if not team_first:
            a = await runtime.spawn(log.make, config("a"))
        team = await runtime.supervisor.supervise("team", Supervisor(intensity=0), restart=restart)
        w = await team.spawn(log.make, config("w"))
        v = await team.spawn(log.make, config("v"))
        if a is None:
            a = await runtime.spawn(log.make, config("a"))

        async def crash_at(context: AgentContext) -> None:
            await go.wait()
            raise AgentCrash("x")

        for one in (a, w, v):
            await runtime.tell(one, {"do": crash_at})
        await settle()
        go.set()
        await anyio.sleep(30)
        assert a.state == "up"
        assert a.restarts in (1, 2)
        if restart == "temporary":
            assert w.state == v.state == "stopped"
            assert team.state == "stopped"
            assert len(runtime.supervisor.children) == 1
        else:
            assert w.state == v.state == "up", (w, v)
            assert log.of("agent_crashed").count(("agent_crashed", "team")) <= 1, log.of("agent_crashed")
        for n in "awv":
            assert log.of("agent_crashed").count(("agent_crashed", n)) <= 1, log.of("agent_crashed")
        runtime_failures.append(1)


runtime_failures: list[int] = []


@simulate(runs=RUNS)
async def test_team_that_is_stopped_with_a_crash_nobody_heard_of() -> None:
    """It does not give up any more: it has stopped."""
    async with supervised(supervisor=at_once(), grace=0) as (runtime, log):
        team = await runtime.supervisor.supervise("team", Supervisor(intensity=0))
        go = anyio.Event()

        async def crash_at(context: AgentContext) -> None:
            await go.wait()
            raise AgentCrash("x")

        async def slow() -> None:
            await anyio.sleep(1)

        w = await team.spawn(log.make, config("w"))
        await team.spawn(log.make, config("v"))
        log.ends["v"] = slow
        await runtime.tell(w, {"do": crash_at})
        await settle()
        async with anyio.create_task_group() as group:
            group.start_soon(team.stop)
            await anyio.sleep(0.5)
            go.set()
        await anyio.sleep(5)
        assert runtime.supervisor.children == ()
        ev = [(e.event_type, e.data.get("agent", e.data.get("supervisor"))) for e in log.events]
        assert ("supervisor_gave_up", "team") not in ev
        assert ("agent_stopped", "team") == [one for one in ev if one[1] == "team"][-1]


@simulate(runs=RUNS)
async def test_a_wait_in_the_line_of_a_crashed_agent() -> None:
    """`w` stands in the line of `a`, which has crashed; the supervisor is at `y`, whose start asks `w`."""
    seen: list[Any] = []
    async with supervised(supervisor=at_once(), grace=0) as (runtime, log):
        y = await runtime.spawn(log.make, config("y"))
        a = await runtime.spawn(log.make, config("a"))
        w = await runtime.spawn(log.make, config("w"))

        async def slow(context: AgentContext) -> None:
            await anyio.sleep(1)
            raise AgentCrash("x")

        async def ask_a(context: AgentContext) -> None:
            await context.ask("a", {"n": 2})

        async def start_y() -> None:
            await anyio.sleep(10)
            with anyio.move_on_after(1000) as scope:
                seen.append(await told(lambda: runtime.ask("w", {"n": 1})))
            seen.append(scope.cancelled_caught)

        log.starts["y"] = [start_y]
        await runtime.tell(a, {"do": slow})
        await settle()
        await runtime.tell(w, {"do": ask_a})
        await settle()
        await runtime.tell(y, {"do": "crash"})
        await anyio.sleep(2000)
    assert seen == [AgentDeadlockError, False]


@pytest.mark.parametrize("strategy", ["one_for_one", "one_for_all"])
@simulate(runs=RUNS)
async def test_a_temporary_team_that_gives_up_is_told_of(strategy: str) -> None:
    """As the crash of a temporary agent is."""
    log = Log()
    failures: Any = None
    try:
        async with AgentRuntime(supervisor=at_once(strategy), grace=0) as runtime:
            go = anyio.Event()

            async def crash_at(context: AgentContext) -> None:
                await go.wait()
                raise AgentCrash("x")

            a = await runtime.spawn(log.make, config("a"))
            team = await runtime.supervisor.supervise("team", Supervisor(intensity=0), restart="temporary")
            w = await team.spawn(log.make, config("w"))
            for one in (a, w):
                await runtime.tell(one, {"do": crash_at})
            await settle()
            go.set()
            await anyio.sleep(30)
            failures = runtime.health().failures
    except CoreError:
        pass
    assert len(failures) == 1, (failures, log.entries)
