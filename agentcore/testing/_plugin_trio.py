"""The fixture `agent_runtime` for tests that pytest-trio runs; loaded only where that is."""

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest
import pytest_trio  # type: ignore[import-untyped]

from ._plugin import runtime_of_test

if TYPE_CHECKING:
    from agentcore import AgentRuntime


@pytest_trio.trio_fixture  # type: ignore[untyped-decorator]
async def _agent_runtime_of_trio(request: pytest.FixtureRequest) -> "AsyncIterator[AgentRuntime]":
    async with runtime_of_test(request) as runtime:
        yield runtime  # noqa: ASYNC119 - pytest-trio closes it
