"""What agents do at the edges: wrong results, cancellation at odd moments, forgetful subclasses."""

from __future__ import annotations

from typing import Any

import anyio
import anyio.lowlevel
import pytest

from agentcore import (
    AgentCapability,
    AgentConfig,
    AgentContext,
    AgentExecutionError,
    AgentResult,
    AgentResultError,
    AgentState,
    AgentTerminatedError,
    AgentTimeoutError,
    BaseAgent,
    ConfigurationError,
)
from tests.core.fakes import OK, Gate, MockAgent, Step, configuration, hanging, raising, returning, settled


@pytest.fixture
def mock_agent() -> MockAgent:
    """Make an agent that succeeds until it is told otherwise."""
    return MockAgent(configuration())


@pytest.mark.anyio
async def test_direct_calls_change_no_state(mock_agent: MockAgent) -> None:
    """`initialize` and `process` called directly run in IDLE, and do not count as the initialisation."""
    await mock_agent.initialize()
    await mock_agent.process(AgentContext())
    assert mock_agent.states == [AgentState.IDLE, AgentState.IDLE]


@pytest.mark.anyio
async def test_handle_error_can_rescue(mock_agent: MockAgent) -> None:
    """A result of success from `handle_error` is a success."""
    mock_agent.on_process = raising(ValueError("bad"))
    mock_agent.on_error = returning(OK)
    result = await mock_agent.execute(AgentContext())
    assert (result.success, result.output) == (True, {"ok": True})


@pytest.mark.anyio
@pytest.mark.parametrize("value", [None, {"success": True}, (True, {}), "done", AgentResult])
async def test_something_else_than_a_result(mock_agent: MockAgent, value: object) -> None:
    """A `process` that returns no AgentResult has failed, and the error says what came."""
    mock_agent.on_process = returning(value)
    assert (await mock_agent.execute(AgentContext())).success is False
    assert isinstance(mock_agent.errors[0], AgentResultError)
    assert isinstance(mock_agent.errors[0], TypeError)
    assert repr(value) in str(mock_agent.errors[0])


@pytest.mark.anyio
async def test_something_else_than_a_result_from_handle_error(mock_agent: MockAgent) -> None:
    """A `handle_error` that forgets its return statement has failed as well."""
    mock_agent.on_process, mock_agent.on_error = raising(ValueError("x")), returning(None)
    with pytest.raises(AgentExecutionError) as caught:
        await mock_agent.execute(AgentContext())
    assert [type(error) for error in caught.value.errors] == [ValueError, AgentResultError]


@pytest.mark.anyio
async def test_handle_error_has_the_deadline_too(agent_config: AgentConfig) -> None:
    """A `handle_error` that hangs cannot hold up the execution for ever."""
    agent = MockAgent(attrs.evolve(agent_config, timeout=0.01))
    agent.on_process, agent.on_error = raising(ValueError("bad")), hanging
    with pytest.raises(AgentExecutionError) as caught:
        await agent.execute(AgentContext())
    assert [type(error) for error in caught.value.errors] == [ValueError, AgentTimeoutError]


@pytest.mark.anyio
async def test_cancelled_while_initializing(mock_agent: MockAgent) -> None:
    """A cancelled initialisation counts as none, and the next execution starts afresh."""
    mock_agent.on_initialize = hanging
    run = asyncio.create_task(mock_agent.execute(AgentContext()))
    await settled()
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    mock_agent.on_initialize = None
    assert (await mock_agent.execute(AgentContext())).success is True
    assert mock_agent.calls == ["initialize", "initialize", "process"]


@pytest.mark.anyio
async def test_exit_like_exceptions_fly_through(mock_agent: MockAgent) -> None:
    """What is no Exception is not the agent's to handle, and leaves it usable."""

    class Stop(BaseException):
        pass

    mock_agent.on_process = raising(Stop())
    with pytest.raises(Stop):
        await mock_agent.execute(AgentContext())
    assert (mock_agent.errors, mock_agent.is_busy) == ([], False)


@pytest.mark.anyio
async def test_cancelled_in_the_line(mock_agent: MockAgent) -> None:
    """Who gives up while waiting for a slot takes none with them."""
    mock_agent.on_process = gate = Gate()
    first, second, third = (
        asyncio.create_task(mock_agent.execute(AgentContext(parameters={"number": number}))) for number in range(3)
    )
    await settled()
    second.cancel()
    await settled()
    gate.opened.set()
    assert ((await first).output, (await third).output) == ({"number": 0}, {"number": 2})
    assert (second.cancelled(), gate.peak, mock_agent.is_idle) == (True, 1, True)


@pytest.mark.anyio
async def test_terminate_ends_what_runs(agent_config: AgentConfig) -> None:
    """No execution outlives `terminate`: neither the running one nor those in the line."""
    agent = MockAgent(attrs.evolve(agent_config, terminate_timeout=0.01))
    agent.on_process = gate = Gate()
    runs = [asyncio.create_task(agent.execute(AgentContext())) for _ in range(3)]
    await gate.entered.wait()
    await agent.terminate()
    assert (agent.state, gate.inside) == (AgentState.TERMINATED, 0)
    outcomes = await asyncio.gather(*runs, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [AgentTerminatedError] * 3


@pytest.mark.anyio
async def test_terminate_without_super(agent_config: AgentConfig) -> None:
    """A subclass that forgets `super()`, or whose hook raises, ends TERMINATED all the same."""

    class Forgetful(MockAgent):
        async def terminate() -> None:
            self.calls.append("cleaned up")

    class Clumsy(MockAgent):
        async def terminate() -> None:
            raise OSError("cannot close")

    forgetful, clumsy = Forgetful(agent_config), Clumsy(agent_config)
    await forgetful.terminate()
    with pytest.raises(OSError, match="cannot close"):
        await clumsy.terminate()
    assert (forgetful.calls, forgetful.is_terminated) == (["cleaned up"], True)
    assert clumsy.is_terminated is True


@pytest.mark.anyio
async def test_terminate_is_shielded(agent_config: AgentConfig) -> None:
    """A clean-up that waits runs to its end although its caller is cancelled."""
    steps: list[str] = []

    class Careful(MockAgent):
        async def terminate() -> None:
            steps.append("begun")
            await settled()
            steps.append("done")

    agent = Careful(agent_config)
    run = asyncio.create_task(agent.terminate())
    await asyncio.sleep(0)
    run.cancel()
    await asyncio.gather(run, return_exceptions=True)
    assert (steps, agent.is_terminated) == (["begun", "done"], True)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("timeout", -1.0),
        ("timeout", float("nan")),
        ("timeout", "5"),
        ("max_concurrency", 0),
        ("max_concurrency", 1.5),
        ("capabilities", {42}),
        ("capabilities", "planning"),
        ("name", ""),
    ],
)
def test_unusable_configuration(field: str, value: object) -> None:
    """A setting that cannot be used is an error that names it and the value."""
    values: dict[str, Any] = {"name": "mock", "agent_type": "testing", field: value}
    with pytest.raises(ConfigurationError, match=field) as caught:
        AgentConfig(**values)
    assert (repr(value) if value != {42} else "42") in str(caught.value)


def test_capabilities_of_ones_own() -> None:
    """Plain strings stand next to the known capabilities."""
    mixed = {AgentCapability.MEMORY, "juggling"}
    config = AgentConfig(name="mock", agent_type="testing", capabilities=mixed)
    assert config.capabilities == mixed


def test_contexts_share_nothing() -> None:
    """What is written into one context does not show in another."""
    one, other = AgentContext(), AgentContext()
    one.memory["key"] = one.parameters["key"] = 1
    assert (other.memory, other.parameters) == ({}, {})


def test_unfinished_subclass(agent_config: AgentConfig) -> None:
    """A class without its three methods cannot be instantiated."""

    class Half(BaseAgent):
        async def initialize() -> bool:
            return True

    with pytest.raises(TypeError, match="handle_error"):
        Half(agent_config)  # type: ignore[abstract]
