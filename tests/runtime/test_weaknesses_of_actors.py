"""Weaknesses of frameworks with actors and messages, one test each: here they are not. The numbers are those of `test_weaknesses`.

1. Requests that wait when everything is stopped; 3. a handler that raises when nobody waits any more; 4. a message that is
dropped; 5. an error of what nobody waits for; 6. agents that are left alive; 11. trio; 14. one bad message, a flood, a
circle; 16. a producer that never gives way. And the one that they have in common: who is dead stays dead.
"""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from agentcore import (
    AgentContext,
    AgentCrash,
    AgentCrashedError,
    AgentDeadlockError,
    AgentTerminatedError,
    MailboxFullError,
    RuntimeClosedError,
    Supervisor,
)
from agentcore.testing import current_simulation, simulate
from tests.runtime.supervised import (
    NO_WAIT,
    Boom,
    at_once,
    both_at_length,
    both_kinds,
    config,
    settle,
    supervised,
    told,
)

RUNS = 5


@both_kinds
@simulate(runs=RUNS)
async def test_stop_with_requests_queued_leaves_no_requester_waiting(hosted: bool) -> None:
    """Row 1. Asks, tasks and messages at an agent that is stopped, and at one of a runtime that is: all are told at once."""
    outcomes: list[Any] = []
    async with supervised(hosted, grace=0) as (runtime, log):
        for name in ("one", "two"):
            await runtime.spawn(log.make, config(name), mailbox=1)

        async def note(work: Any) -> None:
            outcomes.append(await told(work))

        async with anyio.create_task_group() as group:
            for name in ("one", "two"):
                for _ in range(20):
                    group.start_soon(note, lambda name=name: runtime.ask(name, {"do": "hang"}))
                await settle()
                for _ in range(20):
                    group.start_soon(note, lambda name=name: runtime.tell(name, {"do": "hang"}))
                await settle()
            ref = next(child for child in runtime.supervisor.children if child.name == "one")
            await ref.stop()
            await settle()
            # Two messages of each were accepted: one was taken out, one waits.
            assert (38, 2) == (outcomes.count(AgentTerminatedError), outcomes.count(None) - 2)
            await runtime.shutdown(0)
        assert (38, 38, 4) == tuple(outcomes.count(kind) for kind in (AgentTerminatedError, RuntimeClosedError, None))
        assert (4, 0) == (len(log.of("message_dropped")), anyio.current_time())


@both_kinds
@simulate(runs=RUNS)
async def test_a_message_that_is_dropped_does_not_hang_the_shutdown(hosted: bool) -> None:
    """Rows 3 and 4. Taken back, dropped with a crash, raising while it is unwound: none is waited for."""
    async with supervised(hosted, grace=60) as (runtime, log):

        async def raise_late(_: AgentContext) -> None:
            try:
                await anyio.sleep_forever()
            finally:
                raise Boom("while it was unwound")

        ref = await runtime.spawn(log.make, config("one", timeout=3), mailbox=1)
        await runtime.tell(ref, {"do": raise_late})
        await runtime.tell(ref, {"do": "crash"})
        with anyio.move_on_after(0.1):
            await runtime.tell(ref)
        await anyio.sleep(1)
        assert await runtime.drain()
        assert 3 == anyio.current_time()


@both_kinds
@simulate(runs=RUNS)
async def test_the_error_of_a_message_is_seen(hosted: bool) -> None:
    """Row 5. By an event, in the log, by the count of the reference; of one that is not started again at the exit too."""
    with pytest.raises(AgentCrashedError, match="nobody sees it"):
        async with supervised(hosted) as (runtime, log):

            async def fail(_: AgentContext) -> None:
                raise AgentCrash("nobody sees it")

            for name, restart in (("one", "permanent"), ("two", "temporary")):
                ref = await runtime.spawn(log.make, config(name), restart=restart)
                await runtime.tell(ref, {"do": fail})
                await settle()
                assert 1 == ref.dropped
            assert [("agent_crashed", "one"), ("agent_crashed", "two")] == log.of("agent_crashed")


@both_at_length
@simulate(runs=1)
async def test_thousands_of_agents_leave_nothing(hosted: bool) -> None:
    """Row 6. Spawned and stopped, or crashed for good: no task, name, agent or number is kept of them."""
    async with supervised(hosted) as (runtime, log):
        before = len(current_simulation().tasks())
        for number in range(500):
            ref = await runtime.spawn(log.make, config(f"agent {number}"), restart="transient")
            await runtime.tell(ref)
            await ref.stop()
        tree = runtime.supervisor
        assert ({"root": tree}, {}, 0) == (tree._names, tree._children, len(tree._rule))
        assert before + 1 == len(current_simulation().tasks())  # that of the supervisor


@both_kinds
@simulate(runs=RUNS)
async def test_one_bad_message_kills_no_agent_for_good(hosted: bool) -> None:
    """Row 14. Whatever it raises, the next message is handled, by the next agent of this name."""
    async with supervised(hosted) as (runtime, log):
        ref = await runtime.spawn(log.make, config("one"))
        for number, word in enumerate(("boom", "crash", "exit", "fail")):
            await runtime.tell(ref, {"do": word})
            await runtime.tell(ref, {"n": number})
        assert await runtime.drain()
        assert (3, "up") == (ref.restarts, ref.state)
    assert [0, 1, 2, 3] == log.handled["one"]


@both_kinds
@simulate(runs=RUNS)
async def test_a_flood_of_messages_is_pushed_back(hosted: bool) -> None:
    """Row 14. Of 10,000 for an agent that is at work, as many are accepted as its mailbox takes."""
    async with supervised(hosted, grace=0) as (runtime, log):
        ref = await runtime.spawn(log.make, config("one"), mailbox=100)
        await runtime.tell(ref, {"do": "hang"})
        await settle()
        refused = 0
        for _ in range(10_000):
            try:
                runtime.tell_nowait(ref)
            except MailboxFullError:
                refused += 1
        assert (9_900, 100, 101) == (refused, ref.waiting, runtime.statistics().messages)


@both_kinds
@simulate(runs=RUNS)
async def test_a_circle_of_messages_and_asks_is_told_at_once(hosted: bool) -> None:
    """Row 14. A is told something, asks B, and B tells A, whose mailbox is full: an error, and no timeouts."""
    errors: list[Any] = []
    async with supervised(hosted) as (runtime, log):

        async def ask(context: AgentContext) -> None:
            context.tell_nowait("one", {"n": "fills it"})
            await context.ask("two", {"do": tell})

        async def tell(context: AgentContext) -> None:
            errors.append(await told(lambda: context.tell("one")))

        for name in ("one", "two"):
            await runtime.spawn(log.make, config(name), mailbox=1)
        await runtime.tell("one", {"do": ask})
        await settle()
        assert ([AgentDeadlockError], 0) == (errors, anyio.current_time())


@both_kinds
@simulate(runs=RUNS)
async def test_a_producer_gives_way_to_what_it_has_told(hosted: bool) -> None:
    """Row 16. Of 2,000 messages told in one go most have been handled before the last one is told; then none is left."""
    async with supervised(hosted) as (runtime, log):
        ref = await runtime.spawn(log.make, config("one"), mailbox=10)
        for number in range(2_000):
            await runtime.tell(ref, {"n": number})
        assert len(log.handled["one"]) >= 1_989
        with anyio.fail_after(1):
            assert await runtime.drain()
    assert [*range(2_000)] == log.handled["one"]


@both_kinds
@simulate(runs=RUNS)
async def test_who_crashes_again_and_again_is_given_up_and_told(hosted: bool) -> None:
    """A system that cannot heal ends, with all the reasons; it neither hangs nor goes round in circles."""
    with pytest.raises(AgentCrashedError) as caught:
        async with supervised(hosted, supervisor=Supervisor(intensity=5, backoff=NO_WAIT)) as (runtime, log):
            log.starts["one"] = [True, *[Boom("no disk")] * 9]
            ref = await runtime.spawn(log.make, config("one"))
            await runtime.tell(ref, {"do": "crash"})
            await anyio.sleep(1)
            assert await runtime.drain()
    (given_up,) = caught.value.exceptions
    assert isinstance(given_up, AgentCrashedError)
    assert 5 == sum("no disk" in str(error) for error in given_up.exceptions)
    assert 6 == len(log.of("agent_crashed"))


def test_the_default_is_to_heal_and_to_give_up() -> None:
    """Whoever says nothing gets a supervisor with a limit."""
    assert (3, 5.0, "one_for_one") == (Supervisor().intensity, Supervisor().period, Supervisor().strategy)
    assert at_once().intensity > 3
