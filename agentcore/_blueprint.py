"""What is spawned: how the agent is made, each time, and after which ends."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import attrs

from agentcore._agent_records import AgentConfig
from agentcore._agents import BaseAgent
from agentcore._rules.backoff import check_number, show
from agentcore._rules.restart import RestartType, to_member
from agentcore.errors import ConfigurationError


def blueprint(
    agent: object, config: AgentConfig | None, restart: RestartType | str | None, shutdown: float | None
) -> tuple[Callable[[], BaseAgent], AgentConfig, RestartType]:
    """Return how an agent is made, how it behaves, and after which ends it is started again.

    Raises:
        ConfigurationError: that cannot be.
    """
    kind = None if restart is None else to_member(RestartType, "an agent", "restart", restart)
    if isinstance(agent, BaseAgent):
        if config is not None or kind not in (None, RestartType.TEMPORARY):
            raise ConfigurationError(
                f"an agent that is there already cannot be made once more: got {agent!r} with restart={restart!r} and "
                f"config={config!r}; spawn its class, or use restart='temporary' and no config",
                {"name": "agent", "value": agent},
            )
        kind = RestartType.TEMPORARY
        config = agent.config
    elif not callable(agent) or not isinstance(config, AgentConfig):
        raise ConfigurationError(
            f"spawn takes a class of agents or a factory, and an AgentConfig: got {show(agent)} and {show(config)}; "
            "write spawn(MyAgent, AgentConfig(name=..., agent_type=...))",
            {"name": "agent", "value": agent},
        )
    if shutdown is not None:
        check_number(
            f"agent {config.name!r}", "shutdown", shutdown, "leave it out for that of its config", unit="seconds"
        )
        config = attrs.evolve(config, terminate_timeout=shutdown)
    return partial(_make, agent, config), config, kind or RestartType.PERMANENT


def _make(agent: Any, config: AgentConfig) -> BaseAgent:
    made = agent if isinstance(agent, BaseAgent) else agent(config)
    if not isinstance(made, BaseAgent):
        if inspect.iscoroutine(made):
            made.close()
        raise ConfigurationError(
            f"what is spawned must give an agent when it is called with an AgentConfig: got {show(made)}; "
            "return a BaseAgent",
            {"name": "agent", "value": made},
        )
    if made._keeper is not None:
        raise ConfigurationError(
            f"an agent has one supervisor at a time: got {made!r}, which has one; make another agent",
            {"name": "agent", "value": made},
        )
    made.config = config
    return made
