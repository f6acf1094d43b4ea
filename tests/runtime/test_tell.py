"""Messages: `tell` and `tell_nowait`, from every place, to agents in every state, and what becomes of each message."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from agentcore import (
    AgentContext,
    AgentCrash,
    AgentDeadlockError,
    AgentError,
    AgentRef,
    AgentRuntime,
    AgentTerminatedError,
    Backoff,
    ConfigurationError,
    MailboxFullError,
    RuntimeClosedError,
    Supervisor,
    TaskRoutingError,
)
from agentcore.testing import simulate
from tests.runtime.supervised import Log, at_once, both_kinds, config, crash, settle, supervised, told

RUNS = 5
trace: ContextVar[str] = ContextVar("trace", default="none")
LATER = Supervisor(backoff=Backoff(initial=10, maximum=10, jitter=False))


async def hold(runtime: AgentRuntime, ref: AgentRef | str) -> anyio.Event:
    """Have an agent be busy with a message until an event that is returned."""
    go_on = anyio.Event()

    async def wait(_: AgentContext) -> None:
        await go_on.wait()

    await runtime.tell(ref, {"do": wait, "n": "held"})
    await settle()
    return go_on


async def full(runtime: AgentRuntime, log: Log, name: str = "one") -> tuple[AgentRef, anyio.Event]:
    """Spawn an agent that is busy, with a mailbox of one place, which is taken."""
    ref = await runtime.spawn(log.make, config(name), mailbox=1)
    go_on = await hold(runtime, ref)
    runtime.tell_nowait(ref, {"n": 0})
    return ref, go_on


# Order and back-pressure.


@both_kinds
@simulate(runs=RUNS)
async def test_a_full_mailbox_pushes_back(hosted: bool) -> None:
    """Whoever tells waits, and is handled in turn; whoever does not want to wait is told."""
    async with supervised(hosted) as (runtime, log):
        ref, go_on = await full(runtime, log)
        with pytest.raises(MailboxFullError, match="the mailbox of agent 'one' takes no more than its capacity"):
            runtime.tell_nowait(ref, {"n": "refused"})
        async with anyio.create_task_group() as group:
            group.start_soon(runtime.tell, ref, {"n": 1})
            await settle()
            group.start_soon(runtime.tell, ref, {"n": 2})
            await settle()
            assert (1, 2) == (ref.waiting, runtime.statistics().messages)
            go_on.set()
        assert await runtime.drain()
    assert {"one": ["held", 0, 1, 2]} == log.handled


@both_kinds
@simulate(runs=RUNS)
async def test_each_sender_is_handled_in_his_order(hosted: bool) -> None:
    """Also over restarts, and with a mailbox that is always full."""
    async with supervised(hosted) as (runtime, log):
        ref = await runtime.spawn(log.make, config("one"), mailbox=2)

        async def send(sender: int) -> None:
            for number in range(6):
                await runtime.tell(ref, {"n": (sender, number)})
                if number == sender:
                    await runtime.tell(ref, {"do": "crash"})

        async with anyio.create_task_group() as group:
            for sender in range(4):
                group.start_soon(send, sender)
        assert await runtime.drain()
        assert (4, 4) == (ref.dropped, ref.restarts)
    for sender in range(4):
        assert [(sender, number) for number in range(6)] == [n for n in log.handled["one"] if n[0] == sender]


@both_kinds
@simulate(runs=RUNS)
async def test_whoever_is_cancelled_in_line_has_told_nothing(hosted: bool) -> None:
    async with supervised(hosted) as (runtime, log):
        ref, go_on = await full(runtime, log)
        with anyio.move_on_after(1) as scope:
            await runtime.tell(ref, {"n": "cancelled"})
        assert scope.cancelled_caught
        go_on.set()
        assert await runtime.drain()
        assert 0 == ref.dropped
    assert ["held", 0] == log.handled["one"]


@both_kinds
@simulate(runs=RUNS, backends=("asyncio",))
async def test_a_native_cancellation_of_a_teller(hosted: bool) -> None:
    """It takes back what has not been taken out, as one by a scope does."""
    async with supervised(hosted) as (runtime, log):
        ref, go_on = await full(runtime, log)
        tellers = [asyncio.ensure_future(runtime.tell(ref, {"n": number})) for number in (1, 2, 3)]
        await settle()
        tellers[1].cancel()
        await asyncio.wait([tellers[1]])
        assert tellers[1].cancelled()
        go_on.set()
        await asyncio.wait(tellers)
        assert await runtime.drain()
        assert 0 == ref.dropped
    assert sorted(["held", 0, 1, 3], key=str) == sorted(log.handled["one"], key=str)


@both_kinds
@simulate(runs=RUNS)
async def test_tell_is_a_checkpoint_and_tell_nowait_is_none(hosted: bool) -> None:
    """Who is cancelled already tells nothing by the one."""
    async with supervised(hosted) as (runtime, log):
        ref = await runtime.spawn(log.make, config("one"))
        with anyio.CancelScope() as scope:
            scope.cancel()
            runtime.tell_nowait(ref, {"n": 1})
            await runtime.tell(ref, {"n": 2})
        assert scope.cancelled_caught
        assert await runtime.drain()
    assert [1] == log.handled["one"]


@both_kinds
@simulate(runs=RUNS)
async def test_an_agent_that_waits_for_nothing_lets_others_run(hosted: bool) -> None:
    """Also if it always finds a further message, for it tells itself: others run, and it can be stopped."""
    async with supervised(hosted, grace=0) as (runtime, log):

        async def again(context: AgentContext) -> None:
            context.tell_nowait("one", {"do": again})

        ref = await runtime.spawn(log.make, config("one"))
        runtime.tell_nowait(ref, {"do": again})
        for _ in range(100):
            await anyio.lowlevel.checkpoint()
        assert "up" == ref.state
        await ref.stop()
        assert ("stopped", 1) == (ref.state, ref.dropped)


# Circles.


@both_kinds
@simulate(runs=RUNS)
async def test_an_agent_that_waits_for_its_own_full_mailbox(hosted: bool) -> None:
    """It would wait for ever, and is told; directly, through another agent, in a task and in a group of its own."""
    async with supervised(hosted, in_flight=1) as (runtime, log):
        ways: list[Any] = [
            lambda context: context.tell("one"),
            lambda context: context.ask("two", {"do": lambda inner: inner.tell("one")}),
            lambda context: in_group(partial(context.tell, "one")),
        ]

        async def in_group(work: Any) -> None:
            async with anyio.create_task_group() as group:
                group.start_soon(work)

        errors: list[Any] = []

        async def attempt(context: AgentContext, way: Any) -> None:
            context.tell_nowait("one", {"n": "fills it"})
            try:
                await way(context)
            except* AgentDeadlockError as group:
                errors.append(group)

        await runtime.spawn(log.make, config("one"), mailbox=1)
        await runtime.spawn(log.make, config("two"))
        for way in ways[::2]:
            await runtime.tell("one", {"do": partial(attempt, way=way)})
            await settle()
        assert 2 == len(errors)
        leaf = errors[0].exceptions[0]
        assert "mailbox of one" in str(leaf)
        # An agent between them handles it as any other error.
        await runtime.tell("one", {"do": partial(attempt, way=ways[1])})
        await settle()
        assert (2, "up") == (len(errors), (await runtime.spawn(log.make, config("three"))).state)
        assert await runtime.drain()
    assert 3 == log.handled["one"].count("fills it")


@both_kinds
@simulate(runs=RUNS)
async def test_two_agents_with_full_mailboxes_that_tell_each_other(hosted: bool) -> None:
    """Exactly one of them is told of the circle; the other one's message comes through."""
    outcomes: list[Any] = []
    async with supervised(hosted) as (runtime, log):
        both_full = anyio.Event()

        async def tell(context: AgentContext) -> None:
            await both_full.wait()
            outcomes.append(await told(lambda: context.tell(context.input["to"], {"n": "crossed"})))

        for name in ("one", "two"):
            await runtime.spawn(log.make, config(name), mailbox=1)
        await runtime.tell("one", {"do": tell, "to": "two"})
        await runtime.tell("two", {"do": tell, "to": "one"})
        await settle()
        for name in ("one", "two"):
            runtime.tell_nowait(name, {"n": 0})
        both_full.set()
        assert await runtime.drain()
    assert {None, AgentDeadlockError} == set(outcomes)
    assert 1 == sum(numbers.count("crossed") for numbers in log.handled.values())


@both_kinds
@simulate(runs=RUNS)
async def test_three_agents_that_tell_each_other_in_a_circle(hosted: bool) -> None:
    outcomes: list[Any] = []
    async with supervised(hosted) as (runtime, log):
        all_full = anyio.Event()

        async def tell(context: AgentContext) -> None:
            await all_full.wait()
            outcomes.append(await told(lambda: context.tell(context.input["to"], {"n": "crossed"})))

        names = ("one", "two", "three")
        for name in names:
            await runtime.spawn(log.make, config(name), mailbox=1)
        for index, name in enumerate(names):
            await runtime.tell(name, {"do": tell, "to": names[(index + 1) % 3]})
        await settle()
        for name in names:
            runtime.tell_nowait(name, {"n": 0})
        all_full.set()
        assert await runtime.drain()
    assert 1 == outcomes.count(AgentDeadlockError)
    assert 2 == outcomes.count(None)


@both_kinds
@simulate(runs=RUNS)
async def test_a_message_that_waits_for_its_turn_behind_who_waits_for_room(hosted: bool) -> None:
    """The ask has the agent and wants room in the mailbox, the message has been taken out and wants the agent."""
    outcomes: list[Any] = []
    async with supervised(hosted) as (runtime, log):
        go_on = anyio.Event()

        async def tell(context: AgentContext) -> None:
            await go_on.wait()
            outcomes.append(await told(lambda: context.tell("one", {"n": "too much"})))

        ref = await runtime.spawn(log.make, config("one"), mailbox=1)
        async with anyio.create_task_group() as group:
            group.start_soon(runtime.ask, ref, {"do": tell})
            await settle()
            await runtime.tell(ref, {"n": "taken out"})
            await settle()
            await runtime.tell(ref, {"n": "in the mailbox"})
            go_on.set()
        assert [AgentDeadlockError] == outcomes
        assert await runtime.drain()
    assert [None, "taken out", "in the mailbox"] == log.handled["one"]


# Agents that are not there.


@both_kinds
@simulate(runs=RUNS)
async def test_nobody_is_told_who_is_not_there(hosted: bool) -> None:
    """An agent that was stopped, a name that nothing is spawned by, something that is neither."""
    async with supervised(hosted) as (runtime, log):
        ref = await runtime.spawn(log.make, config("one"))
        await runtime.spawn(log.make, config("two"))
        await ref.stop()
        for tell in (runtime.tell, runtime.tell_nowait):
            assert AgentTerminatedError is await told(partial(_call, tell, ref))
            with pytest.raises(TaskRoutingError, match="got 'one'; known are 'two'"):
                await _call(tell, "one")
            with pytest.raises(TaskRoutingError, match="got 7"):
                await _call(tell, 7)
            with pytest.raises(ConfigurationError, match="got 7"):
                await _call(tell, "two", 7)
    for tell in (runtime.tell, runtime.tell_nowait):
        assert RuntimeClosedError is await told(partial(_call, tell, "two"))
        assert RuntimeClosedError is await told(partial(_call, tell, ref))
    assert RuntimeClosedError is await told(partial(AgentRuntime().tell, "one"))


async def _call(tell: Any, *args: Any) -> None:
    result = tell(*args)
    if result is not None:
        await result


@both_kinds
@simulate(runs=RUNS)
async def test_whoever_waits_for_room_when_the_agent_is_stopped_is_told(hosted: bool) -> None:
    """His message was not accepted, so it is not dropped either; the one in flight and the one that waits are."""
    outcomes: list[Any] = []
    async with supervised(hosted) as (runtime, log):
        ref, _ = await full(runtime, log)

        async def tell() -> None:
            outcomes.append(await told(lambda: runtime.tell(ref)))

        async with anyio.create_task_group() as group:
            group.start_soon(tell)
            group.start_soon(tell)
            await settle()
            await ref.stop()
        assert [AgentTerminatedError] * 2 == outcomes
        assert (2, 0) == (ref.dropped, ref.waiting)
        assert [("message_dropped", "one")] * 2 == log.of("message_dropped")


@both_kinds
@simulate(runs=RUNS)
async def test_messages_to_an_agent_that_is_started_again_are_kept(hosted: bool) -> None:
    """Those that were there, and those that come meanwhile, as many as there is room for."""
    async with supervised(hosted, supervisor=LATER) as (runtime, log):
        ref = await runtime.spawn(log.make, config("one"), mailbox=3)
        runtime.tell_nowait(ref, {"do": "crash"})
        runtime.tell_nowait(ref, {"n": 1})
        await settle()
        assert ("restarting", 1) == (ref.state, ref.waiting)
        await runtime.tell(ref, {"n": 2})
        runtime.tell_nowait("one", {"n": 3})
        with pytest.raises(MailboxFullError):
            runtime.tell_nowait(ref)
        await runtime.tell(ref, {"n": 4})
        assert 10 == anyio.current_time()
        assert await runtime.drain()
        assert (1, 1) == (ref.dropped, ref.restarts)
    assert [1, 2, 3, 4] == log.handled["one"]


@both_kinds
@simulate(runs=RUNS)
async def test_no_message_is_given_to_an_agent_that_has_crashed(hosted: bool) -> None:
    """Nor to one that somebody terminates: what was told in the very same moment waits for the next one."""
    async with supervised(hosted) as (runtime, log):
        ref = await runtime.spawn(log.make, config("one", max_concurrency=3))
        with pytest.raises(AgentCrash):
            await runtime.ask(ref, {"do": "crash"})
        runtime.tell_nowait(ref, {"n": 1})
        await settle()
        assert ref.agent is not None
        async with anyio.create_task_group() as group:
            group.start_soon(ref.agent.terminate)
            runtime.tell_nowait(ref, {"n": 2})
        await settle()
        assert (2, 0) == (ref.restarts, ref.dropped)
    assert [1, 2] == log.handled["one"]


@pytest.mark.parametrize("word", ["crash", "boom", "exit"])
@both_kinds
@simulate(runs=RUNS)
async def test_the_message_in_flight_is_dropped_and_told_of_once(hosted: bool, word: str) -> None:
    async with supervised(hosted) as (runtime, log):
        ref = await runtime.spawn(log.make, config("one"))
        await runtime.tell(ref, {"do": word})
        await runtime.tell(ref, {"n": 1})
        assert await runtime.drain()
        assert (1, 1) == (ref.dropped, ref.restarts)
        assert [("message_dropped", "one")] == log.of("message_dropped")
    assert ([1], 0) == (log.handled["one"], runtime.report and runtime.report.messages_dropped)


@simulate(runs=RUNS)
async def test_exit_in_a_task_group_of_a_handler_is_a_crash() -> None:
    """As it is without the group; what is meant for the program ends the runtime in a group as well."""

    async def fail(_: AgentContext, error: type[BaseException]) -> None:
        async with anyio.create_task_group():  # not in a task of it: asyncio ends with those itself
            raise error

    async with supervised() as (runtime, log):
        ref = await runtime.spawn(log.make, config("one"))
        await runtime.tell(ref, {"do": partial(fail, error=SystemExit)})
        await settle()
        assert (1, "up") == (ref.restarts, ref.state)
    with pytest.raises(BaseExceptionGroup) as caught:
        async with supervised() as (runtime, log):
            await runtime.spawn(log.make, config("one"))
            await runtime.tell("one", {"do": partial(fail, error=KeyboardInterrupt)})
            await anyio.sleep_forever()
    assert caught.value.subgroup(KeyboardInterrupt) is not None


@both_kinds
@simulate(runs=RUNS)
async def test_an_error_that_is_handled_is_no_crash(hosted: bool) -> None:
    async with supervised(hosted) as (runtime, log):
        ref = await runtime.spawn(log.make, config("one"))
        await runtime.tell(ref, {"do": "fail"})
        assert await runtime.drain()
        assert (0, 0) == (ref.dropped, ref.restarts)


# The end of the runtime.


@both_kinds
@simulate(runs=RUNS)
async def test_all_accepted_messages_are_handled_before_the_end(hosted: bool) -> None:
    """Those that agents send each other meanwhile as well, and nothing from outside."""
    async with supervised(hosted, grace=10) as (runtime, log):

        async def work(context: AgentContext) -> None:
            await anyio.sleep(0.1)
            if context.input["n"] < 5:
                await context.tell("two", {"do": work, "n": context.input["n"] + 10})

        for name in ("one", "two"):
            await runtime.spawn(log.make, config(name), mailbox=2)

        async def refused() -> None:
            await anyio.sleep(0.1)
            assert "draining" == runtime.statistics().state
            assert RuntimeClosedError is await told(lambda: runtime.tell("one", {"n": "late"}))

        async with anyio.create_task_group() as group:
            for number in range(5):
                group.start_soon(runtime.tell, "one", {"do": work, "n": number})
            await anyio.sleep(0.35)
            group.start_soon(refused)
            await runtime.shutdown()
        assert runtime.report is not None
        assert runtime.report.drained
    assert [*range(5)] == sorted(log.handled["one"])
    assert [number + 10 for number in log.handled["one"]] == log.handled["two"]


@both_kinds
@simulate(runs=RUNS)
async def test_an_exception_of_the_block_drops_messages_and_tells(hosted: bool) -> None:
    """The one in flight, those that wait; who waits for room is refused."""
    outcomes: list[Any] = []
    log = Log()
    with pytest.raises(ZeroDivisionError):
        async with anyio.create_task_group() as group:
            try:
                async with supervised(hosted, grace=60) as (runtime, log):
                    ref, _ = await full(runtime, log)

                    async def tell() -> None:
                        outcomes.append(await told(lambda: runtime.tell(ref)))

                    group.start_soon(tell)
                    await settle()
                    raise ZeroDivisionError
            except ZeroDivisionError:
                await settle()
                error = ZeroDivisionError()
        raise error
    assert ([RuntimeClosedError], 0) == (outcomes, anyio.current_time())
    assert [("message_dropped", "one")] * 2 == log.of("message_dropped")
    assert runtime.report is not None
    assert (2, False) == (runtime.report.messages_dropped, runtime.report.drained)
    assert "2 messages" in runtime.report.summary()


@both_kinds
@simulate(runs=RUNS)
async def test_what_is_not_handled_within_the_grace_is_dropped(hosted: bool) -> None:
    async with supervised(hosted, grace=2) as (runtime, log):
        ref, _ = await full(runtime, log)
        assert not await runtime.drain(1)
        report = await runtime.shutdown(1)
        assert (2, 2, 2) == (report.messages_dropped, ref.dropped, anyio.current_time())


@both_kinds
@simulate(runs=RUNS)
async def test_a_message_to_an_agent_that_never_comes_up_does_not_hold_up_the_end(hosted: bool) -> None:
    """It was told by its name while it was initialised; it is dropped when the runtime ends."""
    async with anyio.create_task_group() as group, supervised(hosted, grace=1) as (runtime, log):
        log.starts["one"] = [anyio.sleep_forever]
        scope = anyio.CancelScope()

        async def spawn() -> None:
            with scope:
                await runtime.spawn(log.make, config("one"))

        group.start_soon(spawn)
        await settle()
        await runtime.tell("one", {"n": 1})
        report = await runtime.shutdown()
        assert (1, 1) == (report.messages_dropped, anyio.current_time())
        scope.cancel()
        await settle()


# Where it is called, and what travels along.


@both_kinds
@simulate(runs=RUNS)
async def test_a_message_is_a_copy(hosted: bool) -> None:
    """One context may be told several agents; what they look at is the same, what they get is their own."""
    seen: list[AgentContext] = []

    async def look(context: AgentContext) -> None:
        seen.append(context)
        context.memory["by"] = context.memory.get("by", 0) + 1
        await context.emit("to nobody")

    async with supervised(hosted) as (runtime, log):
        for name in ("one", "two"):
            await runtime.spawn(log.make, config(name))
        given = AgentContext(parameters={"do": look})
        parameters = {"do": look}
        for name in ("one", "two"):
            await runtime.tell(name, given)
        await runtime.tell("one", parameters)
        parameters["do"] = None  # type: ignore[assignment]
        await settle()
    assert 3 == len({id(context) for context in (*seen, given)}) - 1
    assert ({"by": 2}, None) == (given.memory, given._call)


@both_kinds
@simulate(runs=RUNS)
async def test_messages_from_handlers_and_from_what_an_agent_does_by_itself(hosted: bool) -> None:
    """By the context, by the runtime itself, by names and references; of no chain of the sender's is it a part."""
    refs: dict[str, AgentRef] = {}
    async with supervised(hosted) as (runtime, log):

        async def pass_on(context: AgentContext) -> None:
            await context.tell("two", {"n": "by name"})
            context.tell_nowait(refs["two"], {"n": "by reference"})
            await runtime.tell(refs["two"], {"n": "by the runtime"})

        async def live(context: AgentContext) -> None:
            await context.tell("two", {"n": "by itself"})
            await context.tell("three", {"n": "to itself"})
            await anyio.sleep_forever()

        log.lives["three"] = live
        for name in ("two", "three", "one"):
            refs[name] = await runtime.spawn(log.make, config(name))
        await runtime.tell("one", {"do": pass_on})
        # To oneself, without a circle: there is room.
        await runtime.tell("one", {"do": lambda context: context.tell("one", {"n": "to itself"})})
        await settle()
    assert "by itself" in log.handled["two"]
    assert ["by name", "by reference", "by the runtime"] == [n for n in log.handled["two"] if n != "by itself"]
    assert (["to itself"], [None, None, "to itself"]) == (log.handled["three"], log.handled["one"])


@simulate(runs=RUNS)
async def test_a_message_is_handled_with_the_variables_of_its_sender() -> None:
    """As an ask is. What the agent does by itself has those of whoever has spawned it."""
    seen: list[str] = []

    async def look(_: AgentContext) -> None:
        seen.append(trace.get())

    async def look_and_stay(context: AgentContext) -> None:
        await look(context)
        await anyio.sleep_forever()

    async with supervised() as (runtime, log):
        log.lives["one"] = look_and_stay
        trace.set("spawner")
        ref = await runtime.spawn(log.make, config("one"))
        await settle()
        trace.set("teller")
        await runtime.tell(ref, {"do": look})
        await settle()
        assert ["spawner", "teller"] == seen


@simulate(runs=RUNS)
async def test_variables_that_are_set_while_a_message_is_handled_end_with_it() -> None:
    """Neither the next message nor the next agent sees them, whether the handler has waited or not."""
    seen: list[str] = []

    async def leave(_: AgentContext) -> None:
        trace.set("left")

    async def wait_and_leave(_: AgentContext) -> None:
        trace.set("left")
        await anyio.sleep(1)
        seen.append(trace.get())

    async def look(_: AgentContext) -> None:
        seen.append(trace.get())

    async with supervised() as (runtime, log):
        ref = await runtime.spawn(log.make, config("one"))
        trace.set("first")
        for do in (leave, look, wait_and_leave, look):
            runtime.tell_nowait(ref, {"do": do})
        trace.set("second")
        runtime.tell_nowait(ref, {"do": look})
        await settle()
        await anyio.sleep(2)
        await crash(runtime, ref)
        await runtime.tell(ref, {"do": look})
        await settle()
        assert ref.restarts == 1
    assert ["first", "left", "first", "second", "second"] == seen


@simulate(runs=RUNS)
async def test_a_message_is_a_part_of_nothing_that_its_sender_does() -> None:
    """It may ask the very agent that has sent it, which is no circle; what it submits is of the agent's own runtime."""
    runtimes: list[object] = []

    async def look(_: AgentContext) -> None:
        runtimes.append(AgentRuntime.current())

    async def ask_back(context: AgentContext) -> None:
        await context.ask("two", {"n": "asked"})

    async def send(_: AgentContext) -> None:
        first.tell_nowait(one, {"do": ask_back})

    async with supervised() as (first, log):
        one = await first.spawn(log.make, config("one"))
        two = await first.spawn(log.make, config("two"))
        await first.tell(two, {"do": send})
        await settle()
        assert [None, "asked"] == log.handled["two"]
        async with supervised(True) as (second, _):
            await second.tell(one, {"do": look})
            await settle()
        assert [first] == runtimes


@simulate(runs=RUNS)
async def test_an_agent_of_another_runtime_in_the_same_loop() -> None:
    """A reference works everywhere in its event loop; a name only in its own runtime. The message is its runtime's."""
    async with supervised() as (first, log):
        ref = await first.spawn(log.make, config("one"))
        async with supervised(True) as (second, _):
            await second.tell(ref, {"n": 1})
            assert (1, 0) == (first.statistics().messages, second.statistics().messages)
            with pytest.raises(TaskRoutingError, match="got 'one'; known are none"):
                await second.tell("one")
            assert await second.drain()
        await settle()
    assert [1] == log.handled["one"]
    async with supervised() as (third, _):
        assert RuntimeClosedError is await told(lambda: third.tell(ref))


@pytest.mark.anyio
async def test_an_agent_in_another_event_loop_is_refused() -> None:
    """It could not be told without breaking what it does there; neither asked nor stopped."""
    outcomes: list[Any] = []

    async def elsewhere(ref: AgentRef) -> None:
        async with AgentRuntime() as other:
            outcomes.extend(
                [
                    await told(lambda: other.tell(ref)),
                    await told(partial(_call, other.tell_nowait, ref)),
                    await told(lambda: other.ask(ref)),
                    await told(ref.stop),
                    await told(runtime.supervisor.stop),
                    await told(lambda: runtime.supervisor.supervise("below")),
                    await told(lambda: runtime.supervisor.spawn(Log().make, config("two"))),
                ]
            )

    async with AgentRuntime(supervisor=at_once()) as runtime:
        ref = await runtime.spawn(Log().make, config("one"))
        await anyio.to_thread.run_sync(anyio.run, elsewhere, ref)
        assert ("up", 0) == (ref.state, ref.waiting)
    assert [AgentError] * 7 == outcomes
