"""The errors of agents, as texts: what was wrong, and what to do."""

from __future__ import annotations

from agentcore._agent_records import Limit
from agentcore.errors import (
    AgentBusyError,
    AgentCrash,
    AgentError,
    AgentExecutionError,
    AgentInitializationError,
    AgentResultError,
    AgentTerminatedError,
    AgentTimeoutError,
    ConfigurationError,
    text_of,
)


def gone(agent: str) -> AgentTerminatedError:
    """Make the error for who wants something of an agent that is terminated."""
    return AgentTerminatedError(f"agent {agent!r} has been terminated; make a new one", {"agent": agent})


def busy(agent: str, limit: int) -> AgentBusyError:
    """Make the error for who comes when as many wait for an agent as may."""
    return AgentBusyError(
        f"agent {agent!r} is busy and lets {limit} executions wait for their turn: got one more; "
        "try again later, or raise max_waiting or max_concurrency",
        {"agent": agent, "limit": limit},
    )


def too_late(agent: str, limit: Limit) -> AgentTimeoutError:
    """Make the error for an execution that has outlived its deadline."""
    return AgentTimeoutError(
        f"agent {agent!r} exceeded its deadline {limit.which!r} of {limit.seconds:g} s; "
        "allow more time or do less at once",
        {"agent": agent, "deadline": limit.which, "timeout": limit.seconds},
    )


def cannot_end(agent: str, executions: int, seconds: float) -> AgentTimeoutError:
    """Make the error for an agent that is terminated while executions go on that nothing can end."""
    return AgentTimeoutError(
        f"agent {agent!r} is terminated, but got {executions} executions without a deadline that could not be ended; "
        "give it a timeout",
        {"agent": agent, "deadline": "terminate", "timeout": seconds},
    )


def not_ready(agent: str, why: str) -> AgentInitializationError:
    """Make the error for an agent that could not be initialised."""
    return AgentInitializationError(f"agent {agent!r} could not be initialised: {why}", {"agent": agent})


def not_handled(agent: str, error: Exception, second: Exception) -> AgentExecutionError:
    """Make the error for an agent whose ``handle_error`` has failed as well."""
    return AgentExecutionError(
        f"agent {agent!r} failed to handle an error: handle_error() raised {type(second).__name__}: "
        f"{text_of(second)}; the error to handle was {type(error).__name__}: {text_of(error)}",
        {"agent": agent, "error_type": type(error).__name__},
        errors=(error, second),
    )


def not_a_result(agent: str, method: str, value: object) -> AgentResultError:
    """Make the error for a method that has returned something else than a result."""
    return AgentResultError(
        f"{method} of agent {agent!r} must return an AgentResult: got {value!r}; "
        "return AgentResult.success_result(...) or AgentResult.error_result(...)",
        {"agent": agent, "method": method, "type": type(value).__qualname__},
    )


def not_a_config(cls: str, value: object) -> ConfigurationError:
    """Make the error for an agent that is made with something else than a configuration."""
    return ConfigurationError(
        f"config of {cls} must be an AgentConfig: got {value!r}; write AgentConfig(name=..., agent_type=...)",
        {"name": "config", "value": value},
    )


def not_a_context(agent: str, value: object) -> ConfigurationError:
    """Make the error for an execution without a context."""
    return ConfigurationError(
        f"execute of agent {agent!r} takes an AgentContext: got {value!r}; write AgentContext(task=...)",
        {"name": "context", "value": value},
    )


def as_failure(name: str, error: BaseException | None) -> Exception:
    """Return the end of an agent as what can be raised in a group of errors."""
    if isinstance(error, Exception):
        return error
    what = "has ended by itself" if error is None else f"raised {error!r}"
    failure = AgentCrash(f"agent {name!r} {what}", {"agent": name})
    failure.__cause__ = error
    return failure


def not_handled_message(agent: str, said: object, cause: BaseException | None) -> BaseException:
    """Make the error for a message that an agent has failed to handle: nobody else learns of it."""
    if cause is not None:
        return cause
    return AgentError(
        f"agent {agent!r} failed to handle a message: got a result with success False and the error {text_of(said)}; "
        "make a success of what may be passed over",
        {"agent": agent, "error": said},
    )
