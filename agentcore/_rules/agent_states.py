"""The life of an agent: what its state is, given what it is doing.

The state is not stored, it follows from four facts, the first that holds deciding:

    terminated                                        TERMINATED
    an error is being handled, or handling it failed  ERROR
    the initialisation runs                           INITIALIZING
    an execution runs                                 PROCESSING
    otherwise                                         IDLE

So an agent with several executions can never be told IDLE by the first that ends, and no code path can forget to reset
a state.
"""

from __future__ import annotations

import enum


class AgentState(enum.StrEnum):
    """What an agent is doing."""

    IDLE = "idle"
    INITIALIZING = "initializing"
    PROCESSING = "processing"
    ERROR = "error"
    TERMINATED = "terminated"


class AgentLife:
    """The facts behind the state of one agent.

    ``running`` and ``handling`` count executions; the others are flags. The counters are bumped in place by the
    execution itself, which is the hottest path of the library.
    """

    __slots__ = ("broken", "handling", "initialized", "initializing", "running", "terminated", "terminating")

    def __init__(self) -> None:
        self.initialized = False
        self.initializing = False
        self.running = 0
        self.handling = 0
        # Set when handle_error itself failed; the next execution clears it.
        self.broken = False
        # From the call of terminate() on nothing new begins; `terminated` follows when the hook has run.
        self.terminating = False
        self.terminated = False

    @property
    def state(self) -> AgentState:
        if self.terminated:
            return AgentState.TERMINATED
        if self.handling or self.broken:
            return AgentState.ERROR
        if self.initializing:
            return AgentState.INITIALIZING
        if self.running:
            return AgentState.PROCESSING
        return AgentState.IDLE
