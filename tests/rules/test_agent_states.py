"""What an agent's state is, given what it does."""

from __future__ import annotations

import itertools

import pytest

from agentcore import AgentState
from agentcore._rules.agent_states import AgentLife

FACTS = ("terminated", "handling", "broken", "initializing", "running")
STATES = {
    "terminated": AgentState.TERMINATED,
    "handling": AgentState.ERROR,
    "broken": AgentState.ERROR,
    "initializing": AgentState.INITIALIZING,
    "running": AgentState.PROCESSING,
}


def test_a_new_agent_is_idle() -> None:
    """With nothing going on the state is IDLE, and nothing has been initialised."""
    life = AgentLife()
    assert life.state is AgentState.IDLE
    assert (life.initialized, life.terminating) == (False, False)


@pytest.mark.parametrize("facts", list(itertools.product([0, 1], repeat=len(FACTS))))
def test_the_first_fact_that_holds_decides(facts: tuple[int, ...]) -> None:
    """Every combination of facts: the state is that of the first one, IDLE without any."""
    life = AgentLife()
    for name, value in zip(FACTS, facts, strict=True):
        setattr(life, name, value)
    expected = next((STATES[name] for name, value in zip(FACTS, facts, strict=True) if value), AgentState.IDLE)
    assert life.state is expected


def test_what_only_prepares_shows_no_state_of_its_own() -> None:
    """That an agent is initialised, or that its termination has begun, is not seen in its state."""
    life = AgentLife()
    life.initialized = life.terminating = True
    assert life.state is AgentState.IDLE


def test_the_first_of_several_executions_does_not_make_it_idle() -> None:
    """PROCESSING lasts as long as anything runs."""
    life = AgentLife()
    life.running = 2
    life.running -= 1
    assert life.state is AgentState.PROCESSING
    life.running -= 1
    assert life.state is AgentState.IDLE


def test_the_values_are_stable() -> None:
    """What is stored and shown."""
    assert ["idle", "initializing", "processing", "error", "terminated"] == [str(state) for state in AgentState]
