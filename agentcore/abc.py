"""Protocols at the seams: what one part asks of another that it must not know."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from agentcore._breaker import CircuitBreaker
from agentcore._handle import TaskHandle
from agentcore._rules.circuit_config import CircuitBreakerConfig
from agentcore._tasks import BaseTask

__all__ = ["TaskRunner"]


class TaskRunner(Protocol):
    """Runs tasks on behalf of agents and programs; a runtime is one."""

    async def run(
        self,
        task: BaseTask | str,
        input: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """Run a task in the caller's own task and return its output."""

    async def submit(
        self,
        task: BaseTask | str,
        input: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> TaskHandle:
        """Hand a task over and return a handle to it."""

    def breaker(
        self,
        name: str,
        config: CircuitBreakerConfig | None = None,
        *,
        probe: Callable[[], Awaitable[object]] | None = None,
    ) -> CircuitBreaker:
        """Return the circuit breaker of a name."""
