"""What the tests of whole systems have in common."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import anyio

import agentcore
from agentcore import (
    AgentConfig,
    AgentContext,
    AgentResult,
    AgentRuntime,
    BaseAgent,
    SystemContext,
    load_configuration,
)
from agentcore._host import Host
from agentcore.testing import isolated_globals

QUIET = load_configuration(
    env={}, io_workers=3, cpu_workers=2, logging={"enabled": False}, metrics={"enabled": False}, api_failure_threshold=4
)
"""A configuration that leaves log and metrics of the process alone."""


@contextmanager
def process_of_its_own() -> Generator[None]:
    """Begin without anything of the process, and put its log back."""
    logger = logging.getLogger("agentcore")
    with isolated_globals():
        before = logger.level, list(logger.handlers), logger.propagate
        yield
        agentcore.init_logging(agentcore.LoggingConfiguration(enabled=False))
        assert (before[0], before[2]) == (logger.level, logger.propagate)


class Clerk(BaseAgent):
    """Notes what happens to it, and does what a test tells it."""

    def __init__(self, log: list[Any], at_end: Callable[[], Any] | None = None) -> None:
        super().__init__(AgentConfig("clerk", "clerk"))
        self.log = log
        self.at_end = at_end

    async def initialize(self) -> bool:
        return True

    async def process(self, context: AgentContext) -> AgentResult:
        return AgentResult.success_result(dict(context.input))

    async def handle_error(self, error: Exception, context: AgentContext) -> AgentResult:
        return AgentResult.error_result(error)

    async def terminate(self) -> None:
        self.log.append("agent" if self.at_end is None else await self.at_end())


def of(system: SystemContext) -> AgentRuntime:
    """Return the runtime of a system that has one."""
    assert system.runtime is not None
    return system.runtime


def check_over(system: SystemContext) -> None:
    """Check that nothing of a system is left."""
    assert ("closed", "closed") == (system.io_pool.state, system.cpu_pool.state)
    assert not system.accepting_tasks
    if system.runtime is not None:
        assert system.runtime.health().state in ("closed", "failed")
        assert 0 == len(system.task_queue)
    host = Host.find()
    assert host is None or host.residents == []
    names = [thread.name for thread in threading.enumerate()]
    assert [] == [name for name in names if name.startswith(("cpu_tasks", "io_tasks"))]


async def forever(_: object = None) -> None:
    """Never end."""
    await anyio.sleep_forever()
