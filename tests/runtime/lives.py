"""Runtimes of both kinds, from the beginning to the end: nothing of them is there afterwards."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from agentcore import AgentRuntime, RuntimeConfig
from agentcore._host import Host
from agentcore.testing import current_simulation
from tests.runtime.parts import echo, fail, hang

both_kinds = pytest.mark.parametrize("hosted", [False, True], ids=["strict", "hosted"])


class Worker:
    """A handler that notes what becomes of its calls.

    Attributes:
        begun: how many have begun.
        alive: how many run now.
        peak: how many ran at most at a time.
        cancelled: how many have met a cancellation.
        cleaned: how many have finished their clean-up.
    """

    def __init__(self, *, seconds: float = float("inf"), cleanup: float = 0, error: Exception | None = None) -> None:
        self.seconds = seconds
        self.cleanup = cleanup
        self.error = error
        self.begun = self.alive = self.peak = self.cancelled = self.cleaned = 0

    async def __call__(self, given: Any) -> dict[str, Any]:
        self.begun += 1
        self.alive += 1
        self.peak = max(self.peak, self.alive)
        try:
            await anyio.sleep(self.seconds)
        except anyio.get_cancelled_exc_class():
            self.cancelled += 1
            raise
        finally:
            with anyio.CancelScope(shield=True):
                if self.cleanup:
                    await anyio.lowlevel.checkpoint()
                    await anyio.sleep(self.cleanup)
            self.cleaned += 1
            self.alive -= 1
            if self.error is not None:
                raise self.error
        return dict(given)


@asynccontextmanager
async def living(hosted: bool, *, grace: float = 0, **limits: Any) -> AsyncGenerator[AgentRuntime]:
    """Enter a runtime with the handlers ``echo``, ``fail`` and ``hang``, and leave it; then look at what is left."""
    before = len(current_simulation().tasks())
    runtime = AgentRuntime(RuntimeConfig(**limits), grace=grace, hosted=hosted)
    for function in (echo, fail, hang):
        runtime.handler(function.__name__)(function)
    try:
        async with runtime:
            yield runtime
    finally:
        await check_gone(runtime)
        assert len(current_simulation().tasks()) == before


async def check_gone(runtime: AgentRuntime) -> None:
    """Check that nothing of a runtime is left: no job, no ask, no slot in use, no host."""
    with anyio.CancelScope(shield=True):
        await current_simulation().settle()
    statistics = runtime.statistics()
    assert (statistics.tasks.in_flight, statistics.tasks.queued, statistics.asks) == (0, 0, 0)
    assert runtime.tasks.active() == []
    assert Host.find() is None
