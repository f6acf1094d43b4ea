"""Supervised agents under everything that can happen to them, in any order, on both event loops, against a simple model.

Two supervisors, the second one below the first. Agents are spawned and stopped; they are told and asked to work, to take
their time, to crash; somebody terminates them; who waits is cancelled; time goes on, or does not. The model knows of each
message where it may be, and of each agent whether it is still meant to be there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from anyio.abc import TaskGroup
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from agentcore import (
    AgentCrash,
    AgentError,
    AgentRef,
    AgentRuntime,
    AgentSupervisor,
    Backoff,
    CoreError,
    MailboxFullError,
    Supervisor,
)
from agentcore.testing import SimMachine
from tests.runtime.supervised import Log, config

pytestmark = pytest.mark.thorough

SOME = settings(
    database=None,
    derandomize=True,
    deadline=None,
    max_examples=50,
    stateful_step_count=25,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)
WORDS = st.sampled_from(["work", "sleep", "long", "crash", "boom", "exit", "late crash"])
STRATEGIES = st.sampled_from(["one_for_one", "one_for_all", "rest_for_one"])
NAMES = ("one", "two", "three", "four", "five")


class Message:
    """One message and what is known of it.

    Attributes:
        sender: who tells it, and the how manieth of his it is.
        was_accepted: whether the call has returned; None as long as it has not ended.
        scope: of the sender.
    """

    def __init__(self, to: str, word: str, sender: tuple[str, int]) -> None:
        self.to = to
        self.word = word
        self.sender = sender
        self.was_accepted: bool | None = None
        self.was_cancelled = False
        self.handled = 0
        self.scope = anyio.CancelScope()

    def __repr__(self) -> str:
        return f"<{self.word} to {self.to} by {self.sender}: accepted {self.was_accepted}, handled {self.handled}>"


class Place:
    """An agent that was spawned, as the model knows it."""

    def __init__(self, ref: AgentRef, restart: str, above: AgentSupervisor) -> None:
        self.ref = ref
        self.restart = restart
        self.above = above
        self.was_stopped = False


async def do(word: str) -> None:
    """Do what a message or an ask says."""
    await anyio.lowlevel.checkpoint()
    if word in ("sleep", "late crash"):
        await anyio.sleep(1)
    elif word == "long":
        await anyio.sleep(7)
    if word.endswith("crash"):
        raise AgentCrash("as told")
    if word == "exit":
        raise SystemExit(3)
    if word == "boom":
        raise ValueError("as told")


@asynccontextmanager
async def open_runtime(supervisor: Supervisor) -> AsyncGenerator[AgentRuntime]:
    """Enter a runtime; what has crashed for good is told when it is left."""
    runtime = AgentRuntime(supervisor=supervisor, grace=100.0, hosted=False)
    try:
        async with runtime:
            yield runtime
    except* CoreError:
        pass


@asynccontextmanager
async def senders() -> AsyncGenerator[TaskGroup]:
    """Give a task group that is cancelled when the example ends."""
    async with anyio.create_task_group() as group:
        yield group
        group.cancel_scope.cancel()


class SupervisorMachine(SimMachine):
    """Does everything to a tree of two supervisors that a program can do to it."""

    @initialize(
        strategy=STRATEGIES,
        below=STRATEGIES,
        intensity=st.integers(0, 2),
        delay=st.sampled_from([0.0, 2.0]),
    )
    def open(self, *, strategy: str, below: str, intensity: int, delay: float) -> None:
        backoff = Backoff(initial=delay, maximum=10.0, jitter=False)
        self.log = self.sim.call(Log)
        self.runtime = self.enter(open_runtime, Supervisor(strategy, 100_000, backoff=backoff))
        self.sim.call(lambda: self.runtime.subscribe(self.log.events.append))
        self.group = self.enter(senders)
        self.below = self.sim.run(
            lambda: self.runtime.supervisor.supervise("below", Supervisor(below, intensity, backoff=backoff))
        )
        self.places: dict[str, Place] = {}
        self.messages: list[Message] = []
        self.numbers: Counter[str] = Counter()
        self.asked: list[str] = []
        self.spawn("one", "permanent", is_below=False)
        self.spawn("two", "permanent", is_below=True)

    @property
    def opened(self) -> bool:
        """Whether the example has begun."""
        return not self._initialize_rules_to_run

    # What a program does.

    @rule(
        name=st.sampled_from(NAMES),
        restart=st.sampled_from(["permanent", "permanent", "transient", "temporary"]),
        is_below=st.booleans(),
    )
    def spawn(self, name: str, restart: str, *, is_below: bool) -> None:
        """Start an agent, unless there is one of this name, or the supervisor is down just now."""
        above = self.below if is_below else self.runtime.supervisor
        if self.runtime.supervisor._find(name) is not None or above.state == "stopped":
            return

        async def spawn() -> None:
            try:
                ref = await above.spawn(self.log.make, config(name, terminate_timeout=3.0), restart=restart, mailbox=2)
            except AgentError:
                assert above.state == "stopped"
            else:
                self.places[name] = Place(ref, restart, above)

        self.sim.run(spawn)

    @rule(name=st.sampled_from(NAMES), word=WORDS, sender=st.sampled_from("abc"), count=st.integers(1, 4))
    def tell(self, name: str, word: str, sender: str, count: int) -> None:
        """Have a sender tell several messages, one after the other."""
        if name not in self.places:
            return
        sent = []
        for _ in range(count):
            self.numbers[sender] += 1
            number = self.numbers[sender]
            sent.append(self.sim.call(lambda number=number: Message(name, word, (f"{sender} {number}", 0))))
        for index, message in enumerate(sent):
            message.sender = (sent[0].sender[0], index)
        self.messages += sent
        self.sim.call(self.group.start_soon, self._send, sent)
        self.sim.run(anyio.sleep, 0)

    @rule(name=st.sampled_from(NAMES), word=WORDS)
    def tell_nowait(self, name: str, word: str) -> None:
        """Tell a message without waiting."""
        if name not in self.places:
            return
        message = self.sim.call(lambda: Message(name, word, (f"at once {len(self.messages)}", 0)))
        self.messages.append(message)

        async def tell() -> None:
            place = self.places[name]
            try:
                self.runtime.tell_nowait(place.ref, self._content(message))
                message.was_accepted = True
            except MailboxFullError:
                message.was_accepted = False
                assert place.ref.waiting == 2
            except CoreError:
                message.was_accepted = False
                assert place.ref.state == "stopped"

        self.sim.run(tell)

    @rule(name=st.sampled_from(NAMES), word=WORDS)
    def ask(self, name: str, word: str) -> None:
        """Have somebody ask an agent."""
        if name in self.places:
            self.sim.call(self.group.start_soon, self._ask, self.places[name].ref, word)
            self.sim.run(anyio.sleep, 0)

    @precondition(lambda self: any(message.was_accepted is None for message in self.messages))
    @rule(index=st.integers(0, 5))
    def cancel(self, index: int) -> None:
        """Cancel somebody who waits for a place in a mailbox."""
        waiting = [message for message in self.messages if message.was_accepted is None]
        self._cancel(waiting[index % len(waiting)])
        self.sim.run(anyio.sleep, 0)

    @rule(name=st.sampled_from(NAMES), waits=st.booleans())
    def stop(self, name: str, *, waits: bool) -> None:
        """Stop an agent; who stops it waits for that, or is cancelled on the way."""
        if name not in self.places:
            return
        place = self.places[name]

        async def stop() -> None:
            with anyio.move_on_after(1_000 if waits else 0.5) as scope:
                await place.ref.stop()
            assert scope.cancelled_caught or place.ref.state == "stopped"
            assert not (waits and scope.cancelled_caught)

        place.was_stopped = True
        self.sim.run(stop)

    @rule(name=st.sampled_from(NAMES))
    def terminate(self, name: str) -> None:
        """Terminate an agent behind its supervisor's back."""
        place = self.places.get(name)
        if place is not None and place.ref.agent is not None:
            self.sim.run(place.ref.agent.terminate)

    @rule(seconds=st.sampled_from([0.0, 0.5, 1.0, 3.0, 12.0]))
    def tick(self, seconds: float) -> None:
        """Let time go by."""
        self.sim.run(anyio.sleep, seconds)

    # What must be true.

    @invariant()
    def no_message_vanishes(self) -> None:
        """Of what was accepted, everything was handled, is being handled, waits, or was dropped and told of."""
        if not self.opened:
            return
        calls = self.runtime.tasks.calls
        dropped = sum(event.event_type == "message_dropped" for event in self.log.events)
        accepted = sum(message.was_accepted is True and message.word != "boom" for message in self.messages)
        begun = sum(message.was_accepted is not False for message in self.messages)
        handled = sum(message.handled for message in self.messages)
        assert dropped == calls.dropped
        # A sender who is cancelled does not know; nor does one who has not gone on yet. Of an error `handle_error` makes a
        # success, unless the agent is ended in this moment.
        assert accepted <= handled + dropped + calls.messages <= begun + len(self.cancelled)
        assert all(message.handled <= (message.was_accepted is not False) for message in self.messages)

    @property
    def cancelled(self) -> list[Message]:
        """The messages whose senders were cancelled."""
        return [message for message in self.messages if message.was_cancelled]

    @invariant()
    def no_more_wait_than_there_is_room_for(self) -> None:
        if self.opened:
            assert all(place.ref.waiting <= 2 for place in self.places.values())

    @invariant()
    def who_is_gone_is_gone(self) -> None:
        """Nothing waits in its mailbox, its name is free or another's, and its agents are terminated."""
        if not self.opened:
            return
        for place in self.places.values():
            if place.ref.state == "stopped":
                assert (0, None) == (place.ref.waiting, place.ref.agent)
            elif place.restart == "permanent" and not place.was_stopped:
                assert self.runtime.supervisor._find(place.ref.name) is place.ref._post

    @invariant()
    def whoever_is_up_was_made_once_and_not_terminated(self) -> None:
        if not self.opened:
            return
        up, down = Counter[str](), Counter[str]()
        for entry in self.log.entries:
            (up if entry.startswith("up") else down)[entry.partition(" ")[2]] += 1
        for name in NAMES:
            there = (post := self.runtime.supervisor._find(name)) is not None and post.agent is not None
            assert 0 <= up[name] - down[name] <= 1
            assert not there or up[name] - down[name] == 1

    def finish(self) -> None:
        """Let everything end; whoever was not stopped is there again and works; all messages have come to an end."""
        for message in self.messages:
            if message.was_accepted is None:
                self._cancel(message)
        self.sim.run(anyio.sleep, 500.0)
        self.sim.run(self._check_liveness)
        calls = self.runtime.tasks.calls
        handled = sum(message.handled for message in self.messages)
        accepted = sum(message.was_accepted is True for message in self.messages)
        mended = sum(message.word == "boom" for message in self.messages)
        assert (0, 0) == (calls.messages, calls.asks)
        assert accepted - mended <= handled + calls.dropped <= accepted + len(self.cancelled)
        names = {task.name for task in self.sim.tasks()}
        agents = {f"agent {post.name}" for post in self.runtime.supervisor._agents()}
        assert {name for name in names if name.startswith("agent ")} <= agents

    def _cancel(self, message: Message) -> None:
        message.was_cancelled = True
        self.sim.call(message.scope.cancel)

    async def _check_liveness(self) -> None:
        for place in self.places.values():
            if place.was_stopped or (place.restart != "permanent" and place.ref.state == "stopped"):
                continue
            assert "up" == place.ref.state, place.ref
            with anyio.fail_after(1):
                assert (await self.runtime.ask(place.ref)).success
                message = Message(place.ref.name, "work", (f"at the end {place.ref.name}", 0))
                self.messages.append(message)
                await self._send([message])
                await self.runtime.tasks.wait_idle()
            assert (True, 1) == (message.was_accepted, message.handled)

    # What senders do, and what agents do for them.

    def _content(self, message: Message) -> dict[str, Any]:
        async def work(_: Any) -> None:
            await do(message.word)
            message.handled += 1
            earlier = [
                one for one in self.messages if one.sender[0] == message.sender[0] and one.sender[1] > message.sender[1]
            ]
            assert not any(one.handled for one in earlier)

        return {"do": work}

    async def _send(self, messages: list[Message]) -> None:
        """Be a sender, whose errors are his own."""
        for message in messages:
            with message.scope:
                try:
                    await self.runtime.tell(self.places[message.to].ref, self._content(message))
                    message.was_accepted = True
                except CoreError:
                    message.was_accepted = False
            if message.was_accepted is None:
                message.was_accepted = message.handled > 0

    async def _ask(self, ref: AgentRef, word: str) -> None:
        async def work(_: Any) -> None:
            await do(word)

        try:
            await self.runtime.ask(ref, {"do": work})
        except (CoreError, SystemExit) as error:
            self.asked.append(type(error).__name__)


SupervisorMachine.TestCase.settings = SOME
TestSupervisorOnAsyncio = SupervisorMachine.on("asyncio").TestCase
TestSupervisorOnTrio = SupervisorMachine.on("trio").TestCase
