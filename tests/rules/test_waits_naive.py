"""Random programs of agents that call each other: each refusal and each wait is judged by playing the program on, naively.

The rules of `_rules.waits` are tested by themselves in `test_waits`; here is what the runtime makes of them, in the ways
in which agents call each other. A program that waits for ever is found by the simulation.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any

import anyio
import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentcore import AgentContext, AgentDeadlockError, Event, TaskExecutionError
from agentcore._agents import waits
from agentcore._rules.waits import Wait
from agentcore.testing import BACKENDS, run_sim
from tests.runtime.doing import Doing, opened, register

WAYS = ("ask", "run", "submit", "stream")


@attrs.frozen
class Node:
    """A call of an agent, and what that one does: its own calls, one after the other or all at once."""

    agent: int
    way: str
    calls: tuple[Node, ...] = ()
    at_once: bool = False
    pause: int = 0


def nodes(agents: int) -> st.SearchStrategy[Node]:
    """Draw calls that go up to three agents deep."""

    def extend(children: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
        return st.builds(
            Node,
            st.integers(0, agents - 1),
            st.sampled_from(WAYS),
            st.lists(children, min_size=1, max_size=2).map(tuple),
            st.booleans(),
            st.integers(0, 2),
        )

    leaf = st.builds(Node, st.integers(0, agents - 1), st.sampled_from(WAYS), pause=st.integers(0, 2))
    return st.recursive(leaf, extend, max_leaves=4)


@st.composite
def programs(draw: st.DrawFn) -> tuple[list[int], list[Node]]:
    """Draw how often each agent may execute at a time, and the calls that begin at once."""
    limits = draw(st.lists(st.integers(1, 2), min_size=1, max_size=3))
    return limits, draw(st.lists(nodes(len(limits)), min_size=1, max_size=3))


@attrs.define(eq=False)
class Call:
    """A call while it is under way.

    Attributes:
        agent: who is called.
        parent: in which call it was made and is waited for; None for the first ones, and for a submission.
        runs: whether it executes.
        wants: the submission that it waits for.
        in_line: whether it has asked for its turn. What has not may yet be refused, so it holds nobody up.
    """

    agent: int
    parent: Call | None
    runs: bool = False
    wants: Call | None = None
    in_line: bool = False


current: ContextVar[Call | None] = ContextVar("current", default=None)


class World:
    """What is under way, as the agents themselves have noted it, and how it would go on."""

    def __init__(self, limits: list[int]) -> None:
        self.limits = limits
        self.calls: list[Call] = []
        self.refused = self.judged = 0
        self.wrong: list[str] = []

    def can_end(self, asked: Call) -> bool:
        """Play it on: who waits for nothing ends, who waits for a free agent begins, until nothing moves."""
        left = {id(call): (call, call.runs, call.wants) for call in self.calls if call.runs or call.in_line}
        while True:
            before = [(key, runs) for key, (_, runs, _) in left.items()]
            for key, (call, runs, wants) in list(left.items()):
                if call is asked and self._may_go_on(call, left):
                    return True
                has_children = any(other.parent is call for other, _, _ in left.values())
                if runs and not has_children and (wants is None or id(wants) not in left):
                    del left[key]
                elif not runs and self._is_free(call.agent, left):
                    left[key] = (call, True, wants)
            if [(key, runs) for key, (_, runs, _) in left.items()] == before:
                return False

    def _may_go_on(self, call: Call, left: dict[int, Any]) -> bool:
        if call.runs:
            return call.wants is None or id(call.wants) not in left
        return self._is_free(call.agent, left)

    def _is_free(self, agent: int, left: dict[int, Any]) -> bool:
        return sum(runs and call.agent == agent for call, runs, _ in left.values()) < self.limits[agent]

    @contextmanager
    def judging(self) -> Iterator[None]:
        """Have every decision of the wait-for graph judged inside the block."""
        decide = waits.begin

        def begin(wanted: Any, chain: object) -> Wait[Any]:
            asked = current.get()
            assert asked is not None
            self.judged += 1
            asked.in_line = True
            try:
                wait = decide(wanted, chain)
            except AgentDeadlockError:
                self.refused += 1
                if self.can_end(asked):
                    self.wrong.append(f"refused, but it would have ended: {asked}")
                asked.in_line = False
                raise
            # A submission that is waited for may not have come to its own wait yet, which is refused then.
            if asked.wants is None and not self.can_end(asked):
                self.wrong.append(f"it waits, but will never end: {asked}")
            return wait

        waits.begin = begin  # type: ignore[method-assign]
        try:
            yield
        finally:
            del waits.begin


class Program:
    """A drawn program, executed by agents of a runtime."""

    def __init__(self, limits: list[int], roots: list[Node]) -> None:
        self.limits = limits
        self.roots = roots
        self.world = World(limits)
        self.under_way: dict[int, tuple[Node, Call]] = {}
        self.submitted: dict[str, Call] = {}
        self.numbers = itertools.count()

    async def execute(self) -> None:
        async with opened(in_flight=2) as made:
            for number, limit in enumerate(self.limits):
                register(made, f"agent {number}", Doing(self.process, name=f"agent {number}", max_concurrency=limit))
            made.subscribe(self.note)
            with self.world.judging():
                async with anyio.create_task_group() as group:
                    for root in self.roots:
                        group.start_soon(self.call, made, root, None)
        assert (self.world.wrong, self.world.calls, waits._waits) == ([], [], {})

    async def process(self, context: AgentContext) -> None:
        node, call = self.under_way[context.input["number"]]
        call.runs = True
        current.set(call)
        await anyio.sleep(node.pause)
        if node.at_once:
            async with anyio.create_task_group() as group:
                for inner in node.calls:
                    group.start_soon(self.call, context, inner, call)
        else:
            for inner in node.calls:
                await self.call(context, inner, call)

    def note(self, event: Event) -> None:
        """Forget a submission when its task has ended, whoever waits for it."""
        if event.event_type in ("task_completed", "task_failed") and event.data["task_id"] in self.submitted:
            self.world.calls.remove(self.submitted.pop(event.data["task_id"]))

    async def call(self, via: Any, node: Node, parent: Call | None) -> None:
        """Make a call by a runtime or a context, and note it as long as it is under way."""
        call = Call(node.agent, None if node.way == "submit" else parent)
        number = next(self.numbers)
        self.under_way[number] = node, call
        self.world.calls.append(call)
        token = current.set(call)
        name, given = f"agent {node.agent}", {"number": number}
        try:
            if node.way == "submit":
                await self.submit(via, name, given, parent, call)
            elif node.way == "run":
                await self.run(via, name, given)
            elif node.way == "ask":
                await via.ask(name, given)
            else:
                async with via.stream(name, given) as stream:
                    async for _ in stream:
                        pass
        except AgentDeadlockError:
            pass
        finally:
            current.reset(token)
            if node.way != "submit":
                self.world.calls.remove(call)

    async def run(self, via: Any, name: str, given: dict[str, Any]) -> None:
        with suppress(TaskExecutionError):  # refused, here or further in
            await via.run(name, given)

    async def submit(self, via: Any, name: str, given: dict[str, Any], parent: Call | None, call: Call) -> None:
        handle = await via.submit(name, given)
        self.submitted[handle.id] = call
        waiter = Call(-1, parent, runs=True, wants=call)
        self.world.calls.append(waiter)
        token = current.set(waiter)
        try:
            await handle.wait()
        finally:
            current.reset(token)
            self.world.calls.remove(waiter)


def judge(program: tuple[list[int], list[Node]], backend: Any, seed: int) -> None:
    """Execute a program in one order of its tasks."""
    run_sim(Program(*program).execute, backend=backend, schedule=f"walk/{seed}").unwrap()


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(program=programs(), seed=st.integers(0, 999))
def test_every_decision_is_right(backend: Any, program: tuple[list[int], list[Node]], seed: int) -> None:
    """A call is refused exactly if it could never get its turn, however much everybody else hurries."""
    judge(program, backend, seed)
