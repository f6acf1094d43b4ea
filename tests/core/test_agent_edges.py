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
    AgentDeadlockError,
    AgentExecutionError,
    AgentResult,
    AgentResultError,
    AgentState,
    AgentTerminatedError,
    AgentTimeoutError,
    BaseAgent,
    ConfigurationError,
)
from agentcore.testing import simulate
from tests.core.fakes import (
    OK,
    SORRY,
    Gate,
    MockAgent,
    Step,
    configuration,
    hanging,
    noting,
    raising,
    returning,
)


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


@simulate(runs=5)
async def test_handle_error_has_the_deadline_too() -> None:
    """A `handle_error` that hangs cannot hold up the execution for ever."""
    agent = MockAgent(configuration(timeout=5.0))
    agent.on_process, agent.on_error = raising(ValueError("bad")), hanging
    with pytest.raises(AgentExecutionError) as caught:
        await agent.execute(AgentContext())
    assert [type(error) for error in caught.value.errors] == [ValueError, AgentTimeoutError]
    assert anyio.current_time() == 5.0


@pytest.mark.parametrize("step", ["on_initialize", "on_process", "on_error"])
@simulate(runs=20)
async def test_cancelled_at_each_step(step: str) -> None:
    """Cancellation passes through every step, is handled by nobody, and the agent works again."""
    agent = MockAgent(configuration())
    reached = anyio.Event()

    async def stuck(*args: object) -> None:
        reached.set()
        await anyio.sleep_forever()

    agent.on_process = raising(ValueError("bad"))
    setattr(agent, step, stuck)
    async with anyio.create_task_group() as group:
        group.start_soon(agent.execute, AgentContext())
        await reached.wait()
        group.cancel_scope.cancel()
    assert (len(agent.errors), agent.is_busy) == (int(step == "on_error"), False)
    assert agent.metrics.cancellations == 1
    agent.on_initialize = agent.on_process = agent.on_error = None
    assert (await agent.execute(AgentContext())).success is True
    assert agent.is_idle is True


@simulate(runs=20)
async def test_initializer_gives_up_while_others_wait() -> None:
    """When the execution that initialises is cancelled, another one that waits for it takes over."""
    agent = MockAgent(configuration(max_concurrency=None))
    agent.on_initialize = hanging
    outcomes: list[Any] = []
    async with anyio.create_task_group() as group:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as inner:
                inner.start_soon(noting, outcomes, agent.execute, AgentContext())
                await anyio.wait_all_tasks_blocked()
                group.start_soon(noting, outcomes, agent.execute, AgentContext())
                await anyio.wait_all_tasks_blocked()
                assert agent.calls == ["initialize"]
                agent.on_initialize = None
                scope.cancel()
    assert outcomes == [OK]
    assert agent.calls == ["initialize", "initialize", "process"]


@pytest.mark.anyio
async def test_exit_like_exceptions_fly_through(mock_agent: MockAgent) -> None:
    """What is no Exception is not the agent's to handle, and leaves it usable."""

    class Stop(BaseException):
        pass

    mock_agent.on_process = raising(Stop())
    with pytest.raises(Stop):
        await mock_agent.execute(AgentContext())
    assert (mock_agent.errors, mock_agent.is_busy) == ([], False)


@simulate(runs=20)
async def test_cancelled_in_the_line() -> None:
    """Who gives up while waiting for a slot takes none with them."""
    agent = MockAgent(configuration())
    agent.on_process = gate = Gate()
    outcomes: list[Any] = []
    contexts = [AgentContext(parameters={"number": number}) for number in range(3)]
    async with anyio.create_task_group() as group:
        group.start_soon(noting, outcomes, agent.execute, contexts[0])
        await gate.entered.wait()
        async with anyio.create_task_group() as impatient:
            impatient.start_soon(noting, outcomes, agent.execute, contexts[1])
            await anyio.wait_all_tasks_blocked()
            group.start_soon(noting, outcomes, agent.execute, contexts[2])
            await anyio.wait_all_tasks_blocked()
            impatient.cancel_scope.cancel()
        gate.opened.set()
    assert [outcome.output for outcome in outcomes] == [{"number": 0}, {"number": 2}]
    assert (gate.peak, agent.is_idle) == (1, True)


@simulate(runs=20)
async def test_slots_go_in_order_of_arrival() -> None:
    """Who has waited longest is served first, also when the one before has just begun."""
    agent = MockAgent(configuration())
    came: list[int] = []
    served: list[int] = []

    async def come(number: int) -> None:
        came.append(number)
        await agent.execute(AgentContext(parameters={"number": number}))

    async def serve(context: AgentContext) -> AgentResult:
        served.append(context.parameters["number"])
        await anyio.lowlevel.checkpoint()
        return OK

    agent.on_process = serve
    async with anyio.create_task_group() as group:
        for number in range(8):
            group.start_soon(come, number)
            await anyio.lowlevel.checkpoint()
    assert (sorted(came), came) == (list(range(8)), served)


@simulate(runs=5)
async def test_timeout_of_a_nested_agent_is_not_the_outer_ones() -> None:
    """Each execution is cut by its own deadline, however they are nested."""
    inner, outer = MockAgent(configuration(timeout=5.0)), MockAgent(configuration(name="outer"))
    inner.on_process = hanging
    outer.on_process = inner.execute
    result = await outer.execute(AgentContext())
    assert (result.error, outer.errors) == ({"sorry": True}, [])
    assert [type(error) for error in inner.errors] == [AgentTimeoutError]
    assert (inner.metrics.timeouts, outer.metrics.timeouts, anyio.current_time()) == (1, 0, 5.0)


@simulate(runs=5)
async def test_no_timeout_means_none() -> None:
    """Without a timeout the surrounding scope's deadline decides, and is not taken for the agent's."""
    agent = MockAgent(configuration(timeout=None))
    agent.on_process = hanging
    with anyio.move_on_after(3600) as scope:
        await agent.execute(AgentContext())
    assert (scope.cancelled_caught, agent.errors, agent.is_idle) == (True, [], True)
    assert anyio.current_time() == 3600


@simulate(runs=20)
async def test_terminate_ends_what_runs() -> None:
    """No execution outlives `terminate`: neither the running one nor those in the line."""
    agent = MockAgent(configuration(terminate_timeout=5.0))
    agent.on_process = gate = Gate()
    outcomes: list[Any] = []
    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(noting, outcomes, agent.execute, AgentContext())
        await gate.entered.wait()
        await anyio.wait_all_tasks_blocked()
        await agent.terminate()
        assert (agent.state, gate.inside, anyio.current_time()) == (AgentState.TERMINATED, 0, 5.0)
    assert [type(outcome) for outcome in outcomes] == [AgentTerminatedError] * 3


@pytest.mark.parametrize("step", ["on_initialize", "on_process", "on_error"])
@simulate(runs=20)
async def test_terminate_ends_each_step(step: str) -> None:
    """An execution that hangs does not outlive `terminate`, whichever of its steps it hangs in."""
    agent = MockAgent(configuration(terminate_timeout=5.0))
    agent.on_process = raising(ValueError("bad"))
    setattr(agent, step, hanging)
    outcomes: list[Any] = []
    async with anyio.create_task_group() as group:
        group.start_soon(noting, outcomes, agent.execute, AgentContext())
        await anyio.wait_all_tasks_blocked()
        await agent.terminate()
        assert (agent.is_terminated, agent.metrics.running, anyio.current_time()) == (True, 0, 5.0)
    assert [type(outcome) for outcome in outcomes] == [AgentTerminatedError]


class Forgetful(MockAgent):
    """Overrides `terminate` and does not call `super()`."""

    async def terminate(self) -> None:
        self._note("terminate")
        for _ in range(20):
            await anyio.lowlevel.checkpoint()
        self._note("terminated")


class Clumsy(MockAgent):
    """Cannot clean up."""

    async def terminate(self) -> None:
        raise OSError("cannot close")


@simulate(runs=20)
async def test_terminate_without_super() -> None:
    """A subclass that forgets `super()` ends TERMINATED all the same, having cleaned up once."""
    agent = Forgetful(configuration())
    async with anyio.create_task_group() as group:
        group.start_soon(agent.terminate)
        group.start_soon(agent.terminate)
    await agent.terminate()
    assert (agent.calls, agent.is_terminated) == (["terminate", "terminated"], True)
    with pytest.raises(AgentTerminatedError):
        await agent.execute(AgentContext())


@pytest.mark.anyio
async def test_terminate_that_raises() -> None:
    """An agent whose clean-up raises is TERMINATED, and the error is not lost."""
    agent = Clumsy(configuration())
    with pytest.raises(OSError, match="cannot close"):
        await agent.terminate()
    assert agent.is_terminated is True
    await agent.terminate()


@simulate(runs=5)
async def test_terminate_that_hangs() -> None:
    """A clean-up that hangs is cut at its time limit, and the agent is TERMINATED."""

    class Stuck(MockAgent):
        async def terminate(self) -> None:
            await anyio.sleep_forever()

    agent = Stuck(configuration(terminate_timeout=5.0))
    with pytest.raises(AgentTimeoutError, match="mock"):
        await agent.terminate()
    assert (agent.is_terminated, anyio.current_time()) == (True, 5.0)


@simulate(runs=5)
async def test_terminate_is_shielded() -> None:
    """A clean-up that waits runs to its end although its caller is cancelled."""
    agent = Forgetful(configuration())
    with anyio.CancelScope() as scope:
        scope.cancel()
        await agent.terminate()
    assert (agent.calls, agent.is_terminated) == (["terminate", "terminated"], True)


@pytest.mark.anyio
async def test_block_error_and_clean_up_error_both_arrive() -> None:
    """An error of the block and one of the clean-up after it: neither hides the other."""
    with pytest.raises(OSError, match="cannot close") as caught:
        async with Clumsy(configuration()):
            raise KeyError("block")
    assert isinstance(caught.value.__context__, KeyError)


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
    with pytest.raises(ConfigurationError, match=field.removesuffix("ies")) as caught:
        AgentConfig(**values)
    assert repr(value).strip("{}") in str(caught.value)


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


def test_unfinished_subclass() -> None:
    """A class without its three methods cannot be instantiated."""

    class Half(BaseAgent):
        async def initialize(self) -> bool:
            return True

    with pytest.raises(TypeError, match="handle_error"):
        Half(configuration())  # type: ignore[abstract]


@simulate(runs=20)
async def test_initializes_once() -> None:
    """However many executions begin together, the agent initialises once and none starts early."""
    agent = MockAgent(configuration(max_concurrency=None))
    ready = anyio.Event()

    async def slowly() -> bool:
        await ready.wait()
        return True

    agent.on_initialize = slowly
    outcomes: list[Any] = []
    async with anyio.create_task_group() as group:
        for _ in range(10):
            group.start_soon(noting, outcomes, agent.execute, AgentContext())
        await anyio.wait_all_tasks_blocked()
        assert (agent.calls, agent.state) == (["initialize"], AgentState.INITIALIZING)
        ready.set()
    assert outcomes == [OK] * 10
    assert agent.calls == ["initialize"] + ["process"] * 10


@simulate(runs=5)
async def test_metrics() -> None:
    """Every execution is counted once, under what became of it."""
    agent = MockAgent(configuration(timeout=5.0))
    for step in (returning(OK), returning(SORRY), raising(ValueError("x")), hanging):
        agent.on_process = step
        await agent.execute(AgentContext())
    metrics = agent.metrics
    assert (metrics.executions, metrics.failures, metrics.timeouts) == (4, 3, 1)
    assert (metrics.cancellations, metrics.last_duration, metrics.total_duration) == (0, 5.0, 5.0)


@pytest.mark.anyio
async def test_results_that_an_agent_gives_twice() -> None:
    """A result that several executions share says for each of them what caused it."""
    agent = MockAgent(configuration())
    causes: list[BaseException | None] = []
    for error in (ValueError("first"), KeyError("second")):
        agent.on_process = raising(error)
        causes.append((await agent.execute(AgentContext())).cause)
    assert [type(cause) for cause in causes] == [ValueError, KeyError]
    assert SORRY.cause is None


@pytest.mark.anyio
async def test_circle_in_one_chain() -> None:
    """An agent that ends up waiting for itself is told so, with the names on the way."""
    first, second = MockAgent(configuration(name="first")), MockAgent(configuration(name="second"))
    first.on_process, second.on_process = second.execute, first.execute
    with anyio.fail_after(5):
        result = await first.execute(AgentContext())
    assert result.success is False
    assert [type(error) for error in second.errors] == [AgentDeadlockError]
    assert ["first" in str(second.errors[0]), "second" in str(second.errors[0])] == [True, True]
    assert (first.is_idle, second.is_idle) == (True, True)


@simulate(runs=20)
async def test_circle_of_two_chains() -> None:
    """Two agents that each hold themselves and wait for the other: one is told so, and both end."""
    agents = [MockAgent(configuration(name=name, timeout=None)) for name in ("first", "second")]
    both = [anyio.Event(), anyio.Event()]
    outcomes: list[Any] = []

    def crossing(own: int, other: int) -> Step:
        async def step(context: AgentContext) -> AgentResult:
            if context.parameters:
                return OK
            both[own].set()
            await both[other].wait()
            return await agents[other].execute(AgentContext(parameters={"asked": True}))

        return step

    agents[0].on_process, agents[1].on_process = crossing(0, 1), crossing(1, 0)
    async with anyio.create_task_group() as group:
        for agent in agents:
            group.start_soon(noting, outcomes, agent.execute, AgentContext())
    errors = [error for agent in agents for error in agent.errors]
    assert [type(error) for error in errors] == [AgentDeadlockError]
    assert sorted(outcome.success for outcome in outcomes) == [False, True]


@pytest.mark.anyio
async def test_no_circle_where_there_is_room() -> None:
    """An agent with room for another execution may well execute itself."""
    agent = MockAgent(configuration(max_concurrency=2))

    async def deeper(context: AgentContext) -> AgentResult:
        if context.parameters:
            return OK
        return await agent.execute(AgentContext(parameters={"inner": True}))

    agent.on_process = deeper
    assert await agent.execute(AgentContext()) == OK
