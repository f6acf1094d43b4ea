"""The fixture `agent_runtime` for tests that pytest-asyncio runs; loaded only where that is."""

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from ._plugin import runtime_of_test

if TYPE_CHECKING:
    from agentcore import AgentRuntime


@pytest_asyncio.fixture
async def _agent_runtime_of_asyncio(request: pytest.FixtureRequest) -> "AsyncIterator[AgentRuntime]":
    async with runtime_of_test(request) as runtime:
        yield runtime
