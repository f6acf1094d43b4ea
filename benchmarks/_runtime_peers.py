"""The frameworks that asks are compared with, each behind an adapter.

An adapter has an agent, an actor or a graph of one node do what the function of the comparison does, and asks it in the way
that the framework's documentation shows, with no model, no storage and no tracing. Most of them do more with a call than
ask somebody: their rows tell what a user pays for one, not how well they are written.

Nothing is imported before it is needed: a peer that is not installed is told of and left out.
"""

# No `from __future__ import annotations` here: some of them read the annotations of functions that are written inside of others.
# ruff: noqa: PLC0415

import abc
import importlib.metadata
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Final, TypedDict

from _rounds import Loop


class Peer(abc.ABC):
    """One framework.

    Attributes:
        distribution: its name on the package index, which is its name in the tables.
        on_trio: whether it is measured on trio as well.
        times: how many times faster an ask is to be; None where nothing was promised.
    """

    distribution: ClassVar[str]
    on_trio: ClassVar[bool] = False
    times: ClassVar[float | None] = None

    @abc.abstractmethod
    def open(self) -> AbstractAsyncContextManager[Loop]:
        """Return a block inside of which there is a loop that asks."""

    def version(self) -> str | None:
        """Return the version that is installed, None if there is none."""
        try:
            return importlib.metadata.version(self.distribution)
        except importlib.metadata.PackageNotFoundError:
            return None


@dataclass
class Question:
    """What is sent to those that want a class for each kind of message."""

    number: int


class State(TypedDict):
    """What a graph works on."""

    answer: int


async def send(runtime: Any, recipient: Any, number: int) -> None:
    """Loop: messages of autogen-core."""
    for _ in range(number):
        await runtime.send_message(Question(1), recipient)


async def invoke(graph: Any, number: int) -> None:
    """Loop: runs of a graph."""
    for _ in range(number):
        await graph.ainvoke({"answer": 0})


async def run(workflow: Any, number: int) -> None:
    """Loop: runs of a workflow."""
    for _ in range(number):
        await workflow.run(1)


async def ask(actor: Any, number: int) -> None:
    """Loop: asks of pykka, which block the thread."""
    for _ in range(number):
        actor.ask({"number": 1})


class Autogen(Peer):
    """`await runtime.send_message(message, agent_id)`, in the runtime of one thread."""

    distribution = "autogen-core"
    times = 8

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[Loop]:
        """Start the runtime with one agent."""
        from autogen_core import AgentId, MessageContext, RoutedAgent, SingleThreadedAgentRuntime, message_handler

        class Answering(RoutedAgent):
            @message_handler
            async def answer(self, message: Question, ctx: MessageContext) -> Question:
                return Question(42)

        runtime = SingleThreadedAgentRuntime()
        await Answering.register(runtime, "answering", lambda: Answering("answers"))
        runtime.start()
        try:
            yield partial(send, runtime, AgentId("answering", "default"))
        finally:
            await runtime.stop()


class Langgraph(Peer):
    """`await graph.ainvoke(state)`, with one node and no checkpointer."""

    distribution = "langgraph"
    times = 25

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[Loop]:
        """Compile a graph of one node."""
        from langgraph.graph import END, START, StateGraph

        async def answer(state: State) -> State:
            return {"answer": 42}

        graph = StateGraph(State)
        graph.add_node("answer", answer)
        graph.add_edge(START, "answer")
        graph.add_edge("answer", END)
        yield partial(invoke, graph.compile())


class AgentFramework(Peer):
    """`await workflow.run(message)`, with one executor."""

    distribution = "agent-framework-core"

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[Loop]:
        """Build a workflow of one executor."""
        from typing import Never

        from agent_framework import Executor, WorkflowBuilder, WorkflowContext, handler

        class Answering(Executor):
            @handler
            async def answer(self, message: int, ctx: WorkflowContext[Never, int]) -> None:
                await ctx.yield_output(42)

        answering = Answering(id="answering")
        yield partial(run, WorkflowBuilder(start_executor=answering, output_from=[answering]).build())


class Pykka(Peer):
    """`actor.ask(message)`: the actor is a thread, and the caller's thread waits for it, whatever event loop it runs."""

    distribution = "pykka"
    on_trio = True

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[Loop]:
        """Start an actor."""
        import pykka

        class Answering(pykka.ThreadingActor):
            def on_receive(self, message: Any) -> dict[str, int]:
                return {"answer": 42}

        actor = Answering.start()
        try:
            yield partial(ask, actor)
        finally:
            actor.stop()


PEERS: Final[tuple[Peer, ...]] = (Autogen(), Langgraph(), AgentFramework(), Pykka())


def installed() -> tuple[Peer, ...]:
    """Return the peers that are here."""
    return tuple(peer for peer in PEERS if peer.version() is not None)


def missing() -> tuple[Peer, ...]:
    """Return those that are not."""
    return tuple(peer for peer in PEERS if peer.version() is None)
