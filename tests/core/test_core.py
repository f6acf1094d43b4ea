"""The parts of the core as a user meets them, in a program of plain asyncio.

One class for each component, as the specification's chapter on testing has it, and its
fixtures. What only one backend can show is elsewhere: the other test modules run their
tests on every loop.
"""

from __future__ import annotations

import asyncio
import functools
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from inspect import CORO_CLOSED, getcoroutinestate
from typing import Any

import attrs
import pytest

from agentcore import (
    AgentCapability,
    AgentConfig,
    AgentContext,
    AgentExecutionError,
    AgentInitializationError,
    AgentResult,
    AgentResultError,
    AgentState,
    AgentTerminatedError,
    AgentTimeoutError,
    BaseAgent,
    BaseTask,
    ClassRegistry,
    ConfigurationError,
    FunctionRegistry,
    Registry,
    RegistryError,
    TaskError,
    TaskFactory,
    TaskPriority,
    TaskResult,
    TaskState,
    TaskStateError,
    TaskTimeoutError,
    clear_registries,
    get_class_registry,
    get_function_registry,
    get_registry,
)

@pytest.fixture
def agent_config() -> AgentConfig:
    """Configure an agent as most tests want it."""
    return AgentConfig(
        name="mock",
        agent_type="testing",
        capabilities={AgentCapability.REASONING, AgentCapability.MEMORY},
        timeout=30.0,
    )


@pytest.fixture
def mock_agent(agent_config: AgentConfig) -> MockAgent:
    """Make an agent that succeeds until it is told otherwise."""
    return MockAgent(agent_config)


@pytest.fixture
def registry() -> Registry[str]:
    """Make a registry of strings."""
    return Registry[str]("words")


@pytest.fixture
def function_registry() -> FunctionRegistry:
    """Make a registry of functions."""
    return FunctionRegistry("functions")


@pytest.fixture
def class_registry() -> ClassRegistry:
    """Make a registry of classes."""
    return ClassRegistry("classes")


@pytest.fixture
def no_global_registries() -> Iterator[None]:
    """Leave no process-wide registry behind, and find none."""
    clear_registries()
    yield
    clear_registries()


class TestAgent:
    """The life of an agent, its errors, its limits and its end."""
    @pytest.mark.asyncio
    async def test_lifecycle(self, mock_agent: MockAgent) -> None:
        """An agent is IDLE before and after its work, and TERMINATED at the end."""
        assert mock_agent.state == AgentState.IDLE
        assert await mock_agent.initialize() is True
        assert (await mock_agent.process(AgentContext())).success is True
        assert (await mock_agent.execute(AgentContext())).success is True
        assert mock_agent.state == AgentState.IDLE
        await mock_agent.terminate()
        assert mock_agent.state == AgentState.TERMINATED

    @pytest.mark.asyncio
    async def test_states_seen_from_inside(self, mock_agent: MockAgent) -> None:
        """Each step of an execution sees its own state, and `is_busy` follows it."""
        mock_agent.on_process = raising(ValueError("no"))
        await mock_agent.execute(AgentContext())
        assert mock_agent.calls == ["initialize", "process", "handle_error"]
        assert mock_agent.states == [
            AgentState.INITIALIZING,
            AgentState.PROCESSING,
            AgentState.ERROR,
        ]
        assert (mock_agent.is_idle, mock_agent.is_busy) == (True, False)

    @pytest.mark.asyncio
    async def test_initializes_once(self, agent_config: AgentConfig) -> None:
        """However many executions begin together, the agent initialises once and none starts early."""
        agent = MockAgent(attrs.evolve(agent_config, max_concurrency=None))
        ready = asyncio.Event()

        async def slowly() -> bool:
            await ready.wait()
            return True

        agent.on_initialize = slowly
        async with asyncio.TaskGroup() as group:
            runs = [group.create_task(agent.execute(AgentContext())) for _ in range(10)]
            await settled()
            assert (agent.calls, agent.is_busy) == (["initialize"], True)
            ready.set()
        assert [run.result().success for run in runs] == [True] * 10
        assert agent.calls == ["initialize"] + ["process"] * 10

    @pytest.mark.asyncio
    @pytest.mark.parametrize("step", [returning(False), raising(OSError("disk"))])
    async def test_failed_initialization(self, mock_agent: MockAgent, step: Step) -> None:
        """An agent that cannot start handles that as an error, processes nothing, and tries again."""
        mock_agent.on_initialize = step
        assert (await mock_agent.execute(AgentContext())).error == {"sorry": True}
        assert mock_agent.calls == ["initialize", "handle_error"]
        assert isinstance(mock_agent.errors[0], AgentInitializationError)
        assert "mock" in str(mock_agent.errors[0])
        mock_agent.on_initialize = None
        assert (await mock_agent.execute(AgentContext())).success is True

    @pytest.mark.asyncio
    @pytest.mark.parametrize(
        "error",
        [
            ValueError("bad"),
            TimeoutError("its own, not the deadline"),
            ExceptionGroup("both", [KeyError("a"), OSError("b")]),
            AgentTimeoutError("somebody else's"),
        ],
        ids=lambda error: type(error).__name__,
    )
    async def test_error_reaches_handle_error_as_it_is(self, mock_agent: MockAgent, error: Exception) -> None:
        """`handle_error` gets the very exception that `process` raised, and its result is the outcome."""
        mock_agent.on_process = raising(error)
        result = await mock_agent.execute(AgentContext())
        assert (result.success, result.error) == (False, {"sorry": True})
        assert mock_agent.errors == [error]
        assert result.cause is error
        assert mock_agent.metrics.timeouts == 0

    @pytest.mark.asyncio
    async def test_failing_handle_error(self, mock_agent: MockAgent) -> None:
        """When handling fails too, both errors arrive and the agent shows ERROR until it works again."""
        first, second = ValueError("first"), KeyError("second")
        mock_agent.on_process, mock_agent.on_error = raising(first), raising(second)
        with pytest.raises(AgentExecutionError, match="mock") as caught:
            await mock_agent.execute(AgentContext())
        assert caught.value.errors == (first, second)
        assert caught.value.__cause__ is second
        assert mock_agent.state == AgentState.ERROR
        mock_agent.on_process = None
        assert (await mock_agent.execute(AgentContext())).success is True
        assert mock_agent.state == AgentState.IDLE

    @pytest.mark.asyncio
    @pytest.mark.parametrize("step", ["on_initialize", "on_process"])
    async def test_deadline(self, agent_config: AgentConfig, step: str) -> None:
        """A step that hangs is cut at the timeout, handled as an error, and the agent works again."""
        agent = MockAgent(attrs.evolve(agent_config, timeout=0.01))
        setattr(agent, step, hanging)
        assert (await agent.execute(AgentContext())).success is False
        kinds = {"on_initialize": AgentInitializationError, "on_process": AgentTimeoutError}
        assert [type(error) for error in agent.errors] == [kinds[step]]
        setattr(agent, step, None)
        assert (await agent.execute(AgentContext())).success is True
        assert agent.is_idle is True

    @pytest.mark.asyncio
    async def test_cancelled_by_its_caller(self, mock_agent: MockAgent) -> None:
        """Cancellation passes through: nothing handles it, and the agent is IDLE and works again."""
        mock_agent.on_process = gate = Gate()
        run = asyncio.create_task(mock_agent.execute(AgentContext()))
        await gate.entered.wait()
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        assert (mock_agent.errors, gate.inside, mock_agent.is_idle) == ([], 0, True)
        assert mock_agent.metrics.cancellations == 1
        mock_agent.on_process = None
        assert (await mock_agent.execute(AgentContext())).success is True

    @pytest.mark.asyncio
    @pytest.mark.parametrize(("limit", "peak"), [(1, 1), (3, 3), (None, 12)])
    async def test_concurrency_limit(self, agent_config: AgentConfig, limit: int | None, peak: int) -> None:
        """At most the configured number of executions run at once, and each gives its own result."""
        agent = MockAgent(attrs.evolve(agent_config, max_concurrency=limit))
        agent.on_process = gate = Gate()
        async with asyncio.TaskGroup() as group:
            contexts = [AgentContext(parameters={"number": number}) for number in range(12)]
            runs = [group.create_task(agent.execute(context)) for context in contexts]
            await settled()
            assert (gate.inside, agent.state) == (peak, AgentState.PROCESSING)
            gate.opened.set()
        assert [run.result().output for run in runs] == [{"number": n} for n in range(12)]
        assert (gate.peak, agent.state) == (peak, AgentState.IDLE)

    @pytest.mark.asyncio
    async def test_terminated_agent_refuses(self, mock_agent: MockAgent) -> None:
        """After `terminate`, which can be called again, nothing runs any more."""
        await mock_agent.terminate()
        await mock_agent.terminate()
        with pytest.raises(AgentTerminatedError, match="mock"):
            await mock_agent.execute(AgentContext())
        assert (mock_agent.calls, mock_agent.is_terminated) == ([], True)

    @pytest.mark.asyncio
    async def test_context_manager(self, mock_agent: MockAgent) -> None:
        """`async with` gives the agent and terminates it, whichever way the block is left."""
        with pytest.raises(KeyError, match="block"):
            async with mock_agent as agent:
                assert agent is mock_agent
                assert (await agent.execute(AgentContext())).success is True
                raise KeyError("block")
        assert mock_agent.is_terminated is True

    @pytest.mark.asyncio
    async def test_metrics(self, agent_config: AgentConfig) -> None:
        """Every execution is counted once, under what became of it."""
        agent = MockAgent(attrs.evolve(agent_config, timeout=0.01))
        for step in (returning(OK), returning(SORRY), raising(ValueError("x")), hanging):
            agent.on_process = step
            await agent.execute(AgentContext())
        metrics = agent.metrics
        assert (metrics.executions, metrics.failures, metrics.timeouts) == (4, 3, 1)
        assert metrics.cancellations == 0
