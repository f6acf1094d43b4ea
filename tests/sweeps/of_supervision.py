"""Sweeps of agents that are spawned and told: they crash, are started again, stopped, and left to the end of the runtime."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import anyio

from agentcore import (
    AgentConfig,
    AgentContext,
    AgentCrash,
    AgentDeadlockError,
    AgentInitializationError,
    AgentRef,
    AgentResult,
    AgentSupervisor,
    AgentTerminatedError,
    Backoff,
    CoreError,
    Supervisor,
)
from agentcore.testing import current_simulation
from tests.sweeps.of_runtime import block
from tests.sweeps.scenarios import LONG, Boom, Runtime, Worker, check_agent, leaves, scenario, steps

SPAWN = ("AgentRuntime.spawn", "AgentSupervisor.spawn")
TELL = ("AgentRuntime.tell",)
STOP = ("AgentRef.stop",)
TREE = ("AgentSupervisor.supervise", "AgentSupervisor.stop")


class Member(Worker):
    """A worker that is spawned: it notes the messages that it has handled, and may do something by itself."""

    def __init__(self, config: AgentConfig, state: Tree) -> None:
        super().__init__(config.name, initialize=state.starts.get(config.name, ("work",)))
        self.state_of_all = state

    async def process(self, context: AgentContext) -> AgentResult:
        result = await super().process(context)
        if "n" in context.input:
            self.state_of_all.handled.append((self.name, *context.input["n"]))
        return result


class Lively(Member):
    """One that does something by itself: it tells another one each second."""

    async def live(self, context: AgentContext) -> None:
        while True:
            await anyio.sleep(1)
            await context.tell("second")


class Tree(Runtime):
    """A runtime with two agents that are supervised, and a record of the messages.

    Args:
        strategy: who is started again together with an agent that has crashed.
        delay: after how many seconds.
        starts: what `initialize` of an agent does at each start, by its name.
        is_empty: whether the two agents are for the scenario to spawn.
        **settings: of the runtime.
    """

    def __init__(
        self,
        *,
        strategy: str = "one_for_one",
        delay: float = 0.0,
        starts: dict[str, tuple[str, ...]] | None = None,
        is_empty: bool = False,
        **settings: Any,
    ) -> None:
        backoff = Backoff(initial=delay, maximum=delay, jitter=False)
        super().__init__(supervisor=Supervisor(strategy, 1000, backoff=backoff), **settings)
        self.starts = starts or {}
        self.is_empty = is_empty
        self.made: list[Member] = []
        self.begun: list[tuple[Any, ...]] = []
        self.accepted: list[tuple[Any, ...]] = []
        self.handled: list[tuple[Any, ...]] = []
        self.outcomes: list[CoreError | None] = []
        self._number: Counter[str] = Counter()

    async def __aenter__(self) -> Any:
        await super().__aenter__()
        if not self.inside and not self.is_empty:
            await self.spawn_both()
        return self

    def residents(self) -> set[str]:
        """Return the names of the tasks of all supervisors and agents as well."""
        names = {child.name for child in self.runtime.supervisor._names.values()}
        own = {
            "supervisor root",
            *(f"{kind} {name}" for name in names for kind in ("supervisor", "agent")),
            *(f"agent {name}, by itself" for name in names),
        }
        return super().residents() | (set() if self.inside else own)

    # What a scenario does.

    def make(self, config: AgentConfig | str, *args: Any) -> Any:  # type: ignore[override]
        """Make an agent; of a string and an input a task, as ever."""
        if isinstance(config, str):
            return super().make(config, *args)
        self.made.append((Lively if config.name == "lively" else Member)(config, self))
        return self.made[-1]

    async def spawn_both(self) -> None:
        """Start the two agents that there are in most scenarios."""
        for name in ("first", "second"):
            await self.spawn(name)

    async def spawn(self, name: str, below: AgentSupervisor | None = None, **options: Any) -> AgentRef:
        """Start an agent, with room for two messages."""
        config = AgentConfig(name, "swept", timeout=90.0, terminate_timeout=1.0)
        spawn: Callable[..., Any] = self.runtime.spawn if below is None else below.spawn
        ref: AgentRef = await spawn(self.make, config, mailbox=2, **options)
        return ref

    async def tell(self, do: str = "work", to: AgentRef | str = "first", sender: str = "main", **given: Any) -> None:
        """Tell an agent to do something."""
        self._number[sender] += 1
        name = to if isinstance(to, str) else to.name
        message = (sender, self._number[sender])
        self.begun.append((name, *message))
        await self.runtime.tell(to, {"do": do, "n": message, **given})
        self.accepted.append((name, *message))

    async def quietly(self, call: Callable[..., Any], *args: Any, **options: Any) -> None:
        """Call something, and note which error of this library it raises."""
        try:
            await call(*args, **options)
        except CoreError as error:
            self.outcomes.append(error)
        else:
            self.outcomes.append(None)

    async def ask(self, do: str = "work", to: str = "first", **given: Any) -> AgentResult:
        """Ask an agent to do something."""
        return await self.runtime.ask(to, {"do": do, **given})

    # What must be true.

    async def check(self) -> None:
        """Look at the messages and the agents too: who has not been stopped is up, or going to be, and works."""
        if not self.inside:
            await self.runtime.tasks.wait_idle()
            await anyio.sleep(10)  # what somebody has begun to stop is stopped by then
            if self.runtime.tasks.state == "open":
                await self._check_liveness()
        await super().check()
        self.check_messages()
        up = [post.agent for post in self.runtime.supervisor._agents()]
        for agent in self.made:
            assert agent.is_terminated != (agent in up), agent
            if not self.inside:
                await check_agent(agent, broken=True)

    async def _check_liveness(self) -> None:
        with anyio.fail_after(LONG):
            for post in self.runtime.supervisor._agents():
                assert "stopped" != post.state
                assert (await self.runtime.ask(post.name)).success
                await self.tell(to=post.name, sender="check")
        await self.runtime.tasks.wait_idle()
        await current_simulation().settle()

    def check_messages(self) -> None:
        """Check that each message was handled at most once and in the order of its sender, and that none has vanished."""
        assert 0 == self.runtime.statistics().messages
        assert {1} >= set(Counter(self.handled).values())
        assert set(self.handled) <= set(self.begun)
        numbers: dict[tuple[str, str], int] = {}
        for name, sender, number in self.handled:
            assert number > numbers.get((name, sender), 0)
            numbers[name, sender] = number
        dropped = sum(
            event.event_type == "message_dropped" and event.data["agent"] != "lively" for event in self.events
        )
        assert len(set(self.accepted) - set(self.handled)) <= dropped
        assert dropped == self.runtime.tasks.calls.dropped

    async def check_closed(self) -> None:
        """Check that nothing of the tree is left as well."""
        await super().check_closed()
        assert [] == self.runtime.supervisor._agents()
        assert all(agent.is_terminated for agent in self.made)


def open_(**settings: Any) -> Any:
    """Return what makes a runtime that is entered before the scenario begins."""
    return lambda: Tree(**settings)


def closed(**settings: Any) -> Any:
    """Return what makes a runtime that the scenario enters and leaves."""
    return lambda: Tree(inside=True, **settings)


async def crash() -> None:
    """Be what an agent cannot go on after."""
    raise AgentCrash("as told")


# Spawning and stopping.


@scenario(open_(starts={"third": ("sleep",)}), *SPAWN, *STOP, *TELL, within=0.0)
async def spawn_and_stop(state: Tree) -> None:
    ref = await state.spawn("third")
    await state.tell("sleep", ref)
    await state.tell("work", ref)
    await ref.stop()
    await ref.stop()
    state.expect("stopped" == ref.state)


@scenario(open_(starts={"third": ("fail",)}), *SPAWN, within=0.0)
async def spawn_what_cannot_be_initialised(state: Tree) -> None:
    with state.raises(AgentInitializationError):
        await state.spawn("third")
    state.expect(3 == len(state.made))


@scenario(open_(starts={"third": ("stubborn",)}), *SPAWN, *TELL, within=1.0)
async def spawn_while_somebody_tells_and_asks_it(state: Tree) -> None:
    """It is found by its name before it is there; whoever waits for it is told if it never is."""
    async with anyio.create_task_group() as group:
        group.start_soon(state.spawn, "third")
        await steps(3)
        group.start_soon(state.quietly, state.tell, "work", "third")
        group.start_soon(state.quietly, state.ask, "work", "third")


@scenario(open_(), *STOP, within=2.0)
async def stop_from_all_sides(state: Tree) -> None:
    """From outside, from inside, and by who waits in its mailbox for a place."""
    ref = next(child for child in state.runtime.supervisor.children if isinstance(child, AgentRef))
    async with anyio.create_task_group() as group:
        await state.tell("stubborn", ref)
        for sender in ("one", "two"):
            group.start_soon(state.quietly, state.tell, "work", ref, sender)
        group.start_soon(lambda: state.quietly(state.ask, "sleep", then=ref.stop))
        group.start_soon(ref.stop)
        await ref.stop()
    state.expect("stopped" == ref.state)


# Messages.


@scenario(open_(), *TELL, within=0.0)
async def tell_more_than_there_is_room_for(state: Tree) -> None:
    """Several senders, with crashes in between."""

    async def send(sender: str, bad: str) -> None:
        for do in ("work", "sleep", bad, "work"):
            await state.tell(do, "first", sender)

    async with anyio.create_task_group() as group:
        group.start_soon(send, "one", "fail")
        group.start_soon(send, "two", "work")
        group.start_soon(send, "three", "sleep")


@scenario(open_(delay=1.0), *TELL, "AgentContext.tell", within=0.0)
async def tell_who_is_started_again(state: Tree) -> None:
    """By other agents as well."""
    await state.tell("work", then=crash)
    await state.tell()
    await state.tell("work", "second", then=lambda: state.tell("work", "first", "second"))
    async with anyio.create_task_group() as group:
        for number in range(3):
            group.start_soon(state.tell, "work", "first", f"other {number}")


@scenario(open_(), *TELL, within=0.0)
async def tell_in_a_circle(state: Tree) -> None:
    """Both mailboxes are full: one of the two is told, and the other one's message comes through."""
    go_on = anyio.Event()

    async def cross(to: str, sender: str) -> None:
        with anyio.move_on_after(5):
            await go_on.wait()
        await state.quietly(state.tell, "work", to, sender)

    for name, other in (("first", "second"), ("second", "first")):
        await state.tell("work", name, then=lambda name=name, other=other: cross(other, name))
    await current_simulation().settle()
    for name in ("first", "second"):
        await state.tell("work", name)
        await state.tell("work", name)
    go_on.set()
    await state.runtime.tasks.wait_idle()
    state.expect([AgentDeadlockError] == [type(error) for error in state.outcomes if error is not None])


# Crashes.


@scenario(open_(delay=1.0), within=0.0)
async def ask_who_is_started_again(state: Tree) -> None:
    """Whoever comes too late for the one that has crashed gets the next one."""
    async with anyio.create_task_group() as group:
        group.start_soon(state.quietly, state.ask, "sleep", "second")
        await state.quietly(state.ask, "work", then=crash)
        for _ in range(2):
            group.start_soon(state.quietly, state.ask)
        group.start_soon(state.quietly, state.run, "first")
        handle = await state.submit("first")
        await state.retrieve(handle)
    state.expect([AgentCrash] == [type(error) for error in state.outcomes if error is not None])


@scenario(open_(strategy="one_for_all"), within=2.0)
async def crash_with_all_others(state: Tree) -> None:
    """Those who are at the others are told, in asks, tasks and messages."""
    async with anyio.create_task_group() as group:
        group.start_soon(state.quietly, state.ask, "stubborn", "second")
        group.start_soon(state.quietly, state.run, "second", {"do": "sleep"})
        await state.tell("work", "second")
        await steps(4)
        await state.tell("fail")
        await state.tell()
        await state.tell("work", "second")


@scenario(open_(starts={"third": ("work", "fail", "sleep")}), *SPAWN, within=0.0)
async def crash_at_the_restart(state: Tree) -> None:
    ref = await state.spawn("third")
    await state.tell("fail", ref)
    await state.tell("work", ref)
    await state.runtime.tasks.wait_idle()
    await state.ask("work", "third")


# Supervisors below supervisors.


@scenario(open_(), *TREE, *SPAWN, *STOP, within=1.0)
async def mend_what_is_given_up(state: Tree) -> None:
    """One supervisor gives up, the one above starts it again; an agent is stopped meanwhile, then all of it."""
    config = Supervisor(intensity=0, backoff=Backoff(initial=0, maximum=0))
    below = await state.runtime.supervisor.supervise("below", config)
    refs = [await state.spawn(name, below) for name in ("third", "fourth")]
    await state.tell("sleep", "third")
    async with anyio.create_task_group() as group:
        group.start_soon(state.quietly, state.ask, "sleep", "first")
        await state.tell("fail", "fourth")
        group.start_soon(refs[0].stop)
        group.start_soon(state.quietly, state.ask, "work", "third")
        group.start_soon(state.quietly, state.ask, "work", "fourth")
    await below.stop()
    state.expect({"stopped"} == {ref.state for ref in refs})
    with state.raises(AgentTerminatedError):
        await state.runtime.ask(refs[1])


# The end.


@scenario(closed(grace=0.5), *SPAWN, *TELL, *TREE, "AgentRuntime.__aexit__", "BaseAgent.live", within=4.0)
async def leave_with_agents_at_work(state: Tree) -> None:
    """With messages in line, a life, a restart that is due, an ask, and a supervisor below."""

    async def inside(state: Any) -> None:
        await state.spawn_both()
        below = await state.runtime.supervisor.supervise("below", Supervisor(backoff=Backoff(initial=60, maximum=60)))
        await state.spawn("lively")
        await state.spawn("third", below)
        for do in ("sleep", "stubborn", "work"):
            await state.tell(do)
        await state.tell("fail", "third")
        await state.tell("work", "third")
        await anyio.sleep(1.5)

    await block(state, inside)
    report = state.runtime.report
    state.expect(report and report.messages_dropped == 3)


@scenario(closed(lose=("Boom",)), *SPAWN, *TELL, "AgentRuntime.__aexit__", within=2.0)
async def leave_agents_by_an_error(state: Tree) -> None:
    async def inside(state: Any) -> None:
        await state.spawn_both()
        for do in ("stubborn", "work"):
            await state.tell(do)
        await steps(3)
        raise Boom("of the block")

    try:
        await block(state, inside)
    except Boom as error:
        state.told += leaves(error)


@scenario(open_(), "AgentRuntime.shutdown", "AgentRuntime.drain", *TELL, within=1.0)
async def shut_down_by_an_agent(state: Tree) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(state.quietly, state.ask, "sleep", "second")
        await state.tell("work", then=lambda: state.runtime.shutdown(1.0, "by an agent"))
        await state.quietly(state.tell)
        await state.quietly(state.tell)
    await current_simulation().settle()
    await state.runtime.tasks.wait_idle()
