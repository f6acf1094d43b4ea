"""Messages that the end of a runtime cuts short, wherever their handling is: what handles them ends, and tells of them."""

from __future__ import annotations

import anyio
import pytest

from agentcore import AgentConfig, AgentContext, AgentResult, AgentRuntime, BaseAgent
from agentcore.testing import simulate
from tests.runtime.supervised import both_kinds, settle


class Stuck(BaseAgent):
    """An agent that gets stuck where its test wants it."""

    def __init__(self, config: AgentConfig, fails: bool, log: list[str]) -> None:
        super().__init__(config)
        self.fails = fails
        self.log = log
        self.gate = anyio.Event()

    async def initialize(self) -> bool:
        return True

    async def process(self, context: AgentContext) -> AgentResult:
        if "ask" in context.parameters:
            await self.gate.wait()
            return AgentResult.success_result()
        if self.fails:
            raise ValueError("now handle it")
        return await self.hang("process")

    async def handle_error(self, error: Exception, context: AgentContext) -> AgentResult:
        return await self.hang("handle_error")

    async def hang(self, where: str) -> AgentResult:
        try:
            await anyio.sleep_forever()
        finally:
            self.log.append(f"{where} ended")
        raise AssertionError


@both_kinds
@pytest.mark.parametrize("fails", [False, True], ids=["process", "handle_error"])
@pytest.mark.parametrize("timeout", [None, 1000.0], ids=["no timeout", "a timeout"])
@pytest.mark.parametrize("waits", [False, True], ids=["at once", "after its turn"])
@simulate(runs=3)
async def test_a_message_is_cut_short_at_the_end(hosted: bool, fails: bool, timeout: float | None, waits: bool) -> None:
    """However it came to where it is; also if it had to wait until an ask was through."""
    log: list[str] = []
    async with anyio.create_task_group() as group:
        async with AgentRuntime(grace=0, hosted=hosted) as runtime:
            agent = Stuck(AgentConfig("stuck", "test", timeout=timeout), fails, log)
            ref = await runtime.spawn(agent)
            if waits:
                group.start_soon(runtime.ask, ref, {"ask": True})
                await settle()
            await runtime.tell(ref)
            await settle()
            agent.gate.set()
            await settle()
            assert not log
        assert [f"{'handle_error' if fails else 'process'} ended"] == log
        assert runtime.report is not None
        assert (1, 1) == (runtime.report.messages_dropped, ref.dropped)
        (event,) = [event for event in runtime.events() if event.event_type == "message_dropped"]
        assert "it is shutting down" in event.data["reason"]
        assert agent.is_terminated
