"""Messages to a spawned agent, and its restart after a crash, against a bare call in AnyIO's scope.

One message at a time: told, and waited for until it has been handled, by an event that the agent sets. A hundred: told one after
the other, each with its checkpoint, and waited for together. A restart: a message that crashes the agent, and one behind it that
the next agent handles; that contains two messages, the end of one agent and the start of another one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, Final, TypeAlias

import anyio
import anyio.lowlevel
import attrs
from _rounds import Loop, Pair, Row, compare

from agentcore import (
    AgentConfig,
    AgentContext,
    AgentCrash,
    AgentRef,
    AgentResult,
    AgentRuntime,
    Backoff,
    BaseAgent,
    Supervisor,
)

WITHIN: Final = "`with anyio.fail_after(5): await f()`"
BARE: Final = (
    "for comparison: a checkpoint, a deque, a task that waits at it by an event, an event that tells of the end"
)
BATCH: Final = 100
MeasureLoops: TypeAlias = Callable[[dict[str, Loop], int], Awaitable[dict[str, list[float]]]]
# No restart is one too many, and none waits.
MENDING: Final = Supervisor(intensity=1000, period=1e-6, backoff=Backoff(0, maximum=0))


async def answer() -> AgentResult:
    """Do what the agent does."""
    return AgentResult.success_result({"answer": 42})


@attrs.define
class Expected:
    """What is waited for: it outlives the agents.

    Attributes:
        left: how many messages have not been handled yet.
        handled: set when all have.
    """

    left: int = 0
    handled: anyio.Event = attrs.Factory(anyio.Event)


class Handling(BaseAgent):
    """An agent that tells when so many messages have been handled, or crashes."""

    def __init__(self, expected: Expected, config: AgentConfig) -> None:
        super().__init__(config)
        self.expected = expected

    async def initialize(self) -> bool:
        """Need nothing."""
        return True

    async def process(self, context: AgentContext) -> AgentResult:
        """Make a result."""
        if context.parameters:
            raise AgentCrash("as wanted")
        expected = self.expected
        expected.left -= 1
        if not expected.left:
            expected.handled.set()
        return await answer()

    async def handle_error(self, error: Exception, context: AgentContext) -> AgentResult:
        """Give the error back."""
        return AgentResult.error_result(str(error))


async def call_within(number: int) -> None:
    """Loop: the bare call in AnyIO's scope."""
    for _ in range(number):
        with anyio.fail_after(5):
            await answer()


@attrs.frozen
class Bare:
    """The least that a message can be: what the tasks of AnyIO make of it."""

    box: list[anyio.Event] = attrs.Factory(list)
    bell: list[anyio.Event] = attrs.Factory(lambda: [anyio.Event()])

    async def work(self) -> None:
        """Handle messages."""
        while True:
            while not self.box:
                self.bell[0] = anyio.Event()
                await self.bell[0].wait()
            handled = self.box.pop()
            await answer()
            handled.set()

    async def tell(self, number: int) -> None:
        """Loop: tell, and wait."""
        for _ in range(number):
            await anyio.lowlevel.checkpoint()
            handled = anyio.Event()
            self.box.append(handled)
            self.bell[0].set()
            await handled.wait()


@attrs.frozen
class Told:
    """What is measured of one runtime: each method is a loop.

    Attributes:
        runtime: the runtime.
        agent: is told.
        expected: what it counts.
    """

    runtime: AgentRuntime
    agent: AgentRef
    expected: Expected

    def expect(self, number: int) -> Callable[[], Any]:
        """Return what waits until so many messages have been handled."""
        self.expected.left, self.expected.handled = number, anyio.Event()
        return self.expected.handled.wait

    async def tell(self, number: int) -> None:
        """Tell, and wait until it is handled."""
        context = AgentContext()
        for _ in range(number):
            wait = self.expect(1)
            await self.runtime.tell(self.agent, context)
            await wait()

    async def tell_many(self, number: int) -> None:
        """Tell a hundred times, and wait until all of it is handled."""
        context = AgentContext()
        for begun in range(0, number, BATCH):
            size = min(BATCH, number - begun)
            wait = self.expect(size)
            for _ in range(size):
                await self.runtime.tell(self.agent, context)
            await wait()

    async def tell_many_nowait(self, number: int) -> None:
        """Hand over a hundred messages at once, and wait until all of it is handled."""
        context = AgentContext()
        for begun in range(0, number, BATCH):
            size = min(BATCH, number - begun)
            wait = self.expect(size)
            for _ in range(size):
                self.runtime.tell_nowait(self.agent, context)
            await wait()

    async def restart(self, number: int) -> None:
        """Crash the agent, and wait until the next one has handled a message."""
        context, crash = AgentContext(), AgentContext(parameters={"crash": True})
        for _ in range(number):
            wait = self.expect(1)
            await self.runtime.tell(self.agent, crash)
            await self.runtime.tell(self.agent, context)
            await wait()


# What is measured, how its row is called, and the goal.
ROWS: Final[dict[str, tuple[str, float | None]]] = {
    "tell": ("`runtime.tell`, then handled", 2.5),
    "tell_many": (f"{BATCH} times `runtime.tell`, then all handled: a message", 2.5),
    "tell_many_nowait": (f"{BATCH} times `runtime.tell_nowait`, then all handled: a message", 2.5),
    "restart": ("an agent crashes, the next one handles the message behind", None),
}


async def measure_messages(measure: MeasureLoops, rounds: int, backend: str) -> list[Row]:
    """Measure all of them in turns by a function, in the event loop that runs."""
    loops: dict[str, Loop] = {WITHIN: call_within}
    pairs = [Pair(what=BARE, subject=BARE, reference=WITHIN)]
    async with AsyncExitStack() as stack:
        group = await stack.enter_async_context(anyio.create_task_group())
        stack.callback(group.cancel_scope.cancel)
        bare = Bare()
        group.start_soon(bare.work)
        loops[BARE] = bare.tell
        for kind, hosted in (("strict", False), ("hosted", True)):
            runtime = await stack.enter_async_context(AgentRuntime(supervisor=MENDING, hosted=hosted))
            expected = Expected()
            agent = await runtime.spawn(partial(Handling, expected), AgentConfig("handling", "bench"))
            told = Told(runtime, agent, expected)
            for name, (what, goal) in ROWS.items():
                loops[f"{kind} {name}"] = getattr(told, name)
                pairs.append(Pair(what=f"{what}, {kind}", subject=f"{kind} {name}", reference=WITHIN, at_most=goal))
        figures = await measure(loops, rounds)
    return compare(figures, pairs, "ns", backend)
