"""Agents that were spawned, as others know them: by a place that somebody fills, one after the other."""

from __future__ import annotations

from typing import Literal, Protocol, final

from agentcore._agent_records import AgentConfig, AgentContext
from agentcore._agents import BaseAgent


class Post(Protocol):
    """The place of an agent that is started again when it has crashed."""

    name: str
    config: AgentConfig
    _turns: int
    """How often it was chosen for what its agent can do."""

    @property
    def state(self) -> Literal["up", "restarting", "stopped"]:
        """Whether there is somebody now, or will be, or never again."""

    @property
    def agent(self) -> BaseAgent | None:
        """Who fills it now."""

    @property
    def restarts(self) -> int:
        """How often somebody has come in the place of another."""

    @property
    def dropped(self) -> int:
        """How many messages were not handled."""

    @property
    def waiting(self) -> int:
        """How many messages wait."""

    async def enter(self, context: AgentContext) -> BaseAgent:
        """Wait for who fills it and begin a call of him, which `leave` ends."""

    def leave(self, context: AgentContext) -> None:
        """End a call."""

    async def tell(self, context: AgentContext) -> None:
        """Put a message into the mailbox, when there is a place for it."""

    def tell_nowait(self, context: AgentContext) -> None:
        """Put a message into the mailbox."""

    async def stop(self) -> None:
        """Have nobody fill it any more."""


@final
class AgentRef:
    """An agent that was spawned; it stays the same when the agent is started again. `AgentRuntime.spawn` gives it.

    It belongs to the event loop of its runtime. References to the same place are equal.
    """

    __slots__ = ("_post",)

    def __init__(self, post: Post) -> None:
        self._post = post

    def __repr__(self) -> str:
        return f"<AgentRef {self.name!r} {self.state}, {self.waiting} messages wait>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AgentRef) and other._post is self._post

    def __hash__(self) -> int:
        return hash(self._post)

    @property
    def name(self) -> str:
        """What the agent is called."""
        return self._post.name

    @property
    def config(self) -> AgentConfig:
        """How the agent behaves."""
        return self._post.config

    @property
    def state(self) -> Literal["up", "restarting", "stopped"]:
        """Whether the agent is there, is going to be started again, or is gone for good."""
        return self._post.state

    @property
    def agent(self) -> BaseAgent | None:
        """The agent itself, to look at; another one after a restart, and None meanwhile."""
        return self._post.agent

    @property
    def restarts(self) -> int:
        """How often it was started again."""
        return self._post.restarts

    @property
    def waiting(self) -> int:
        """How many messages wait in its mailbox."""
        return self._post.waiting

    @property
    def dropped(self) -> int:
        """How many messages were accepted and not handled to their end."""
        return self._post.dropped

    async def stop(self) -> None:
        """Terminate the agent for good; its supervisor does not start it again. Messages that wait are dropped and told of.

        Always a checkpoint. Called by the agent itself this does not wait for the end. Cancellation of the caller ends the
        waiting alone.
        """
        await self._post.stop()
