"""How agents begin and end: initialisation that others wait for, termination at every moment, circles of agents."""

from __future__ import annotations

import asyncio
from typing import Any

import anyio
import pytest

from agentcore import (
    AgentContext,
    AgentDeadlockError,
    AgentInitializationError,
    AgentResult,
    AgentRuntime,
    AgentState,
    AgentTerminatedError,
    AgentTimeoutError,
    TaskExecutionError,
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

pytestmark = pytest.mark.anyio


class Opening:
    """An initialisation that takes until it is told that all is ready, whatever cancels it."""

    def __init__(self) -> None:
        self.entered = anyio.Event()
        self.ready = anyio.Event()

    async def __call__(self) -> bool:
        self.entered.set()
        with anyio.CancelScope(shield=True):
            await self.ready.wait()
        return True


class Closing(MockAgent):
    """Notes its clean-up, and does in it what the test has told it to do."""

    on_terminate: Step | None = None

    async def terminate(self) -> None:
        self._note("terminate")
        if self.on_terminate:
            await self.on_terminate()


def terminating(agent: MockAgent) -> Step:
    """Make a step in which the agent terminates itself."""

    async def step(context: AgentContext) -> AgentResult:
        await agent.terminate()
        return OK

    return step


# Waiting for an initialisation.


async def _terminated_in_the_middle(agent: MockAgent, begin: anyio.Event) -> list[Any]:
    """Execute an agent, terminate it while it waits for `begin`, and return what became of the execution."""
    outcomes: list[Any] = []
    async with anyio.create_task_group() as group:
        group.start_soon(noting, outcomes, agent.execute, AgentContext())
        await anyio.wait_all_tasks_blocked()
        group.start_soon(agent.terminate)
        await anyio.wait_all_tasks_blocked()
        begin.set()
    return outcomes


@simulate(runs=20)
async def test_wait_for_an_initialization_has_the_agents_timeout() -> None:
    """Who waits for the initialisation that another execution runs waits no longer than the agent's timeout."""
    agent = MockAgent(configuration(timeout=5.0, max_concurrency=2))
    agent.on_initialize = opening = Opening()
    outcomes: list[Any] = []
    async with anyio.create_task_group() as group:
        group.start_soon(noting, outcomes, agent.execute, AgentContext())
        await opening.entered.wait()
        await noting(outcomes, agent.execute, AgentContext())
        assert ([SORRY], [AgentTimeoutError]) == (outcomes, [type(error) for error in agent.errors])
        assert ("agent", 5.0) == (agent.errors[0].details["deadline"], anyio.current_time())  # type: ignore[attr-defined]
        opening.ready.set()
    assert ([SORRY, OK], ["initialize", "handle_error", "process"]) == (outcomes, agent.calls)


@pytest.mark.parametrize(("option", "deadline"), [("timeout", "timeout"), ("deadline", "total")])
@pytest.mark.parametrize("way", ["run", "submit"])
@simulate(runs=20)
async def test_wait_for_an_initialization_has_the_tasks_deadline(way: str, option: str, deadline: str) -> None:
    """A task whose agent is still initialised for another one ends at its own deadline."""
    agent = MockAgent(configuration(timeout=None, max_concurrency=2))
    agent.on_initialize = opening = Opening()
    options: dict[str, Any] = {option: 5.0}
    async with AgentRuntime() as runtime:
        runtime.registry("agents").register("work", agent)
        first = await runtime.submit("work")
        await opening.entered.wait()
        with pytest.raises(TaskExecutionError):
            if way == "run":
                await runtime.run("work", **options)
            else:
                await (await runtime.submit("work", **options)).result()
        assert [deadline] == [error.details["deadline"] for error in agent.errors]  # type: ignore[attr-defined]
        assert 5.0 == anyio.current_time()
        opening.ready.set()
        assert {"ok": True} == await first.result()


@simulate(runs=20)
async def test_terminate_reaches_who_waits_for_an_initialization() -> None:
    """A termination ends the wait for an initialisation, also if that cannot be ended itself."""
    agent = MockAgent(configuration(max_concurrency=2, terminate_timeout=5.0))
    agent.on_initialize = opening = Opening()
    outcomes: list[Any] = []
    async with anyio.create_task_group() as group:
        group.start_soon(agent_fails_with, AgentTerminatedError, agent)
        await opening.entered.wait()
        group.start_soon(noting, outcomes, agent.execute, AgentContext())
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(AgentTimeoutError, match="1 executions"):
            await agent.terminate()
        assert [AgentTerminatedError] == [type(outcome) for outcome in outcomes]
        # The limit twice: once for the executions to end by themselves, once for them to be cancelled.
        assert 10.0 == anyio.current_time()
        opening.ready.set()
    assert ["initialize"] == agent.calls


async def agent_fails_with(expected: type[Exception], agent: MockAgent) -> None:
    """Execute an agent that cannot."""
    with pytest.raises(expected):
        await agent.execute(AgentContext())


# Initialisations that close a circle.


@pytest.mark.parametrize("max_concurrency", [2, None])
async def test_initialize_that_executes_its_own_agent(max_concurrency: int | None) -> None:
    """An execution inside of `initialize` that would wait for the end of it is told so."""
    agent = MockAgent(configuration(max_concurrency=max_concurrency))

    async def execute_itself() -> bool:
        assert SORRY == await agent.execute(AgentContext())
        return True

    agent.on_initialize = execute_itself
    with anyio.fail_after(5):
        assert OK == await agent.execute(AgentContext())
    assert [AgentDeadlockError] == [type(error) for error in agent.errors]
    assert ["initialize", "handle_error", "process"] == agent.calls
    assert (AgentState.IDLE, 2, 1) == (agent.state, agent.metrics.executions, agent.metrics.failures)


async def test_initialize_that_executes_its_own_agent_without_room() -> None:
    """An agent that takes one execution at a time refuses the one inside of `initialize` by its slot already."""
    agent = MockAgent(configuration())

    async def execute_itself() -> bool:
        return (await agent.execute(AgentContext())).success

    agent.on_initialize = execute_itself
    with anyio.fail_after(5):
        assert SORRY == await agent.execute(AgentContext())
    assert [AgentInitializationError] == [type(error) for error in agent.errors]
    assert isinstance(agent.errors[0].__cause__, AgentDeadlockError)


@pytest.mark.parametrize("from_outside", [1, 2])
@simulate(runs=20)
async def test_initializations_that_execute_each_others_agents(from_outside: int) -> None:
    """Two agents whose initialisations execute the other one: one of them is told so, be it one chain or two."""
    agents = [MockAgent(configuration(name=name, max_concurrency=None)) for name in ("first", "second")]

    def executing(other: MockAgent) -> Step:
        async def step() -> bool:
            await anyio.wait_all_tasks_blocked()
            await other.execute(AgentContext())
            return True

        return step

    agents[0].on_initialize, agents[1].on_initialize = executing(agents[1]), executing(agents[0])
    outcomes: list[Any] = []
    async with anyio.create_task_group() as group:
        for agent in agents[:from_outside]:
            group.start_soon(noting, outcomes, agent.execute, AgentContext())
    assert [OK] * from_outside == outcomes
    errors = [error for agent in agents for error in agent.errors]
    assert [AgentDeadlockError] == [type(error) for error in errors]
    assert [True, True] == ["initialisation of first" in str(errors[0]), "initialisation of second" in str(errors[0])]


async def test_entering_an_agent_whose_initialize_executes_it() -> None:
    """`async with` finds the circle as well, and the agent can be entered if `initialize` lives with that."""
    agent = MockAgent(configuration())
    inner: list[Any] = []

    async def execute_itself() -> bool:
        await noting(inner, agent.execute, AgentContext())
        return True

    agent.on_initialize = execute_itself
    with anyio.fail_after(5):
        async with agent:
            assert ([SORRY], [AgentDeadlockError]) == (inner, [type(error) for error in agent.errors])
            assert OK == await agent.execute(AgentContext())


@simulate(runs=20)
async def test_initialize_that_waits_for_a_task_of_its_own_agent() -> None:
    """A task that is submitted in `initialize` and waited for there closes a circle too."""
    agent = MockAgent(configuration(max_concurrency=None))
    async with AgentRuntime() as runtime:
        runtime.registry("agents").register("work", agent)

        async def wait_for_itself() -> bool:
            await noting(inner, (await runtime.submit("work")).wait)
            return True

        inner: list[Any] = []
        agent.on_initialize = wait_for_itself
        assert {"ok": True} == await runtime.run("work")
    refused = [type(outcome) for outcome in [*inner, *agent.errors] if isinstance(outcome, Exception)]
    assert [AgentDeadlockError] == refused


# Termination.


@pytest.mark.parametrize("timeout", [None, 30.0])
@simulate(runs=20)
async def test_process_does_not_begin_once_the_agent_is_terminating(timeout: float | None) -> None:
    """An execution that is still initialising when the agent is terminated ends there."""
    agent = Closing(configuration(timeout=timeout))
    agent.on_initialize = opening = Opening()
    outcomes: list[Any] = []
    async with anyio.create_task_group() as group:
        group.start_soon(noting, outcomes, agent.execute, AgentContext())
        await opening.entered.wait()
        group.start_soon(agent.terminate)
        await anyio.wait_all_tasks_blocked()
        opening.ready.set()
    assert [AgentTerminatedError] == [type(outcome) for outcome in outcomes]
    assert (["initialize", "terminate"], AgentState.TERMINATED) == (agent.calls, agent.state)


@simulate(runs=20)
async def test_terminate_tells_of_an_execution_that_it_could_not_end() -> None:
    """An execution without a deadline that goes on is told of, after the agent has cleaned up."""
    agent = Closing(configuration(timeout=None, terminate_timeout=5.0))
    agent.on_process = gate = Gate()
    outcomes: list[Any] = []
    async with anyio.create_task_group() as group:
        group.start_soon(noting, outcomes, agent.execute, AgentContext())
        await gate.entered.wait()
        with pytest.raises(AgentTimeoutError, match="mock") as caught:
            await agent.terminate()
        assert ("terminate", 5.0) == (caught.value.details["deadline"], caught.value.details["timeout"])
        assert (AgentState.TERMINATED, "terminate", 1) == (agent.state, agent.calls[-1], agent.metrics.running)
        gate.opened.set()
    assert ([AgentResult.success_result({})], 0) == (outcomes, agent.metrics.running)
    await agent.terminate()


@simulate(runs=20)
async def test_terminate_while_the_agent_is_entered() -> None:
    """A termination waits for the initialisation of an `async with`, so that what it acquires is released."""
    agent = Closing(configuration(timeout=None))
    agent.on_initialize = opening = Opening()
    outcomes: list[Any] = []
    async with anyio.create_task_group() as group:
        group.start_soon(noting, outcomes, agent.__aenter__)
        await opening.entered.wait()
        group.start_soon(agent.terminate)
        await anyio.wait_all_tasks_blocked()
        assert ["initialize"] == agent.calls
        opening.ready.set()
    assert [AgentTerminatedError] == [type(outcome) for outcome in outcomes]
    assert ["initialize", "terminate"] == agent.calls


@pytest.mark.parametrize("was_used", [True, False])
async def test_entering_a_terminated_agent(was_used: bool) -> None:
    """An agent that has been terminated cannot be entered, also if it was initialised before."""
    agent = MockAgent(configuration())
    if was_used:
        await agent.execute(AgentContext())
    await agent.terminate()
    with pytest.raises(AgentTerminatedError):
        async with agent:
            raise AssertionError("unreachable")
    assert was_used is ("initialize" in agent.calls)


class Mixin:
    """Brings a clean-up and does not know of agents."""

    async def terminate(self) -> None:
        self.mixed_in = True


async def test_terminate_of_a_mixin() -> None:
    """A clean-up that comes from a class beside the agent's leads to TERMINATED too."""

    class Mixed(Mixin, MockAgent):
        pass

    agent = Mixed(configuration())
    await agent.terminate()
    assert (True, AgentState.TERMINATED) == (agent.mixed_in, agent.state)


async def test_clean_up_of_the_base_in_a_task_of_its_own() -> None:
    """A clean-up may run that of its base in a task group."""

    class Parallel(Closing):
        async def terminate(self) -> None:
            async with anyio.create_task_group() as group:
                group.start_soon(super().terminate)

    agent = Parallel(configuration())
    with anyio.fail_after(5):
        await agent.terminate()
    assert (["terminate"], AgentState.TERMINATED) == (agent.calls, agent.state)


async def test_clean_up_that_calls_that_of_all_agents() -> None:
    """A clean-up may call `super().terminate()` down to the base of all agents, which has nothing to add."""

    class Dutiful(MockAgent):
        async def terminate(self) -> None:
            await super().terminate()
            self._note("terminate")

    agent = Dutiful(configuration())
    with anyio.fail_after(5):
        await agent.terminate()
    assert (["terminate"], True) == (agent.calls, agent.is_terminated)


async def test_clean_up_with_an_argument() -> None:
    """A `terminate` with parameters of its own gets them."""

    class Reasonable(MockAgent):
        async def terminate(self, reason: str | None = None) -> None:
            self.reason = reason

    agents = [Reasonable(configuration()) for _ in range(3)]
    await agents[0].terminate("positional")
    await agents[1].terminate(reason="keyword")
    await agents[2].terminate()
    assert ["positional", "keyword", None] == [agent.reason for agent in agents]


@pytest.mark.parametrize("timeout", [None, 30.0])
@simulate(runs=20)
async def test_executions_that_terminate_their_own_agent(timeout: float | None) -> None:
    """Executions that each terminate the agent that runs them do not wait for each other."""
    agent = Closing(configuration(timeout=timeout, max_concurrency=3, terminate_timeout=30.0))
    begun, go_on = 0, anyio.Event()

    async def process(context: AgentContext) -> AgentResult:
        nonlocal begun
        begun += 1
        await go_on.wait()
        await agent.terminate()
        return OK

    agent.on_process = process
    outcomes: list[Any] = []
    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(noting, outcomes, agent.execute, AgentContext())
        await anyio.wait_all_tasks_blocked()
        assert 3 == begun
        go_on.set()
    await agent.terminate()
    assert ([OK] * 3, AgentState.TERMINATED, 1) == (outcomes, agent.state, agent.calls.count("terminate"))


@simulate(runs=20)
async def test_execution_that_terminates_its_own_agent_ends_the_others() -> None:
    """An execution that terminates its own agent is not cancelled by that; another one that hangs is."""
    agent = Closing(configuration(max_concurrency=2, terminate_timeout=5.0))
    outcomes: list[Any] = []
    async with anyio.create_task_group() as group:
        agent.on_process = hanging
        group.start_soon(noting, outcomes, agent.execute, AgentContext())
        await anyio.wait_all_tasks_blocked()
        agent.on_process = terminating(agent)
        assert OK == await agent.execute(AgentContext())
    assert [AgentTerminatedError] == [type(outcome) for outcome in outcomes]
    assert (AgentState.TERMINATED, 0, 5.0) == (agent.state, agent.metrics.running, anyio.current_time())


@simulate(runs=20)
async def test_execution_that_terminates_its_own_agent_while_others_do() -> None:
    """An execution that joins a termination from outside goes on to its end, which that one waits for."""
    agent = Closing(configuration(terminate_timeout=30.0))
    begin = anyio.Event()

    async def process(context: AgentContext) -> AgentResult:
        await begin.wait()
        await agent.terminate()
        assert agent.is_terminated is False
        return OK

    agent.on_process = process
    outcomes = await _terminated_in_the_middle(agent, begin)
    assert ([OK], True) == (outcomes, agent.is_terminated)


@simulate(runs=20)
async def test_handle_error_does_not_begin_once_the_agent_is_terminating() -> None:
    """An error that comes while the agent is terminated is handled by nobody and told as the cause."""
    agent = Closing(configuration())
    begin = anyio.Event()

    async def process(context: AgentContext) -> AgentResult:
        await begin.wait()
        raise ValueError("in the middle")

    agent.on_process = process
    outcomes = await _terminated_in_the_middle(agent, begin)
    assert [AgentTerminatedError] == [type(outcome) for outcome in outcomes]
    assert "in the middle" == str(outcomes[0].__cause__)
    assert ["initialize", "process", "terminate"] == agent.calls


@simulate(runs=20)
async def test_handle_error_that_fails_while_the_agent_is_terminated() -> None:
    """An error of `handle_error` that the termination has caused is told as what it is: the agent is gone."""
    agent = MockAgent(configuration(terminate_timeout=5.0))
    agent.on_process, agent.on_error = raising(ValueError("bad")), hanging
    outcomes: list[Any] = []
    async with anyio.create_task_group() as group:
        group.start_soon(noting, outcomes, agent.execute, AgentContext())
        await anyio.wait_all_tasks_blocked()
        await agent.terminate()
    assert ([AgentTerminatedError], 5.0) == ([type(outcome) for outcome in outcomes], anyio.current_time())


# Deadlines that pass in the line.


@simulate(runs=20)
async def test_deadline_in_the_line_is_counted() -> None:
    """An execution whose time is over before its turn is counted as one that failed by a timeout."""
    agent = MockAgent(configuration())
    agent.on_process = gate = Gate()
    async with AgentRuntime() as runtime:
        runtime.registry("agents").register("work", agent)
        first = await runtime.submit("work")
        await gate.entered.wait()
        with pytest.raises(TaskExecutionError):
            await runtime.run("work", timeout=5.0)
        assert 5.0 == anyio.current_time()
        metrics = agent.metrics
        assert (2, 1, 1, 1, 0) == (
            metrics.executions,
            metrics.failures,
            metrics.timeouts,
            metrics.running,
            metrics.waiting,
        )
        gate.opened.set()
        await first.wait()
    assert [AgentTimeoutError] == [type(error) for error in agent.errors]


@simulate(runs=20)
async def test_deadline_in_the_line_can_be_rescued() -> None:
    """A `handle_error` that makes a success of it makes the execution one."""
    agent = MockAgent(configuration())
    agent.on_process = gate = Gate()
    agent.on_error = returning(AgentResult.success_result({"rescued": True}))
    async with AgentRuntime() as runtime:
        runtime.registry("agents").register("work", agent)
        await runtime.submit("work")
        await gate.entered.wait()
        assert {"rescued": True} == await runtime.run("work", timeout=5.0)
        assert (0, 1, 5.0) == (agent.metrics.failures, agent.metrics.timeouts, anyio.current_time())
        gate.opened.set()


@pytest.mark.parametrize("ends", [True, False])
@simulate(runs=20)
async def test_terminate_and_an_error_that_is_handled_without_a_turn(ends: bool) -> None:
    """A termination waits for the handling of a deadline that passed in the line, and ends it at last."""
    agent = Closing(configuration(terminate_timeout=30.0 if ends else 7.0))
    agent.on_process = gate = Gate()
    handling, let_go = anyio.Event(), anyio.Event()

    async def handle(error: Exception) -> AgentResult:
        handling.set()
        await let_go.wait()
        return OK

    agent.on_error = handle
    outcomes: list[Any] = []
    async with AgentRuntime() as runtime:
        runtime.registry("agents").register("work", agent)
        async with anyio.create_task_group() as group:
            first = await runtime.submit("work")
            await gate.entered.wait()

            async def run() -> Any:
                return await runtime.run("work", timeout=5.0)

            group.start_soon(noting, outcomes, run)
            await handling.wait()
            gate.opened.set()
            await first.wait()
            group.start_soon(agent.terminate)
            await anyio.wait_all_tasks_blocked()
            if ends:
                assert (1, False) == (agent.metrics.running, agent.is_terminated)
                let_go.set()
    assert (["initialize", "process", "handle_error", "terminate"], 0) == (agent.calls, agent.metrics.running)
    if ends:
        assert ([{"ok": True}], 5.0) == (outcomes, anyio.current_time())
    else:
        assert [AgentTerminatedError] == [type(outcome.__cause__) for outcome in outcomes]
        assert 5.0 + 7.0 == anyio.current_time()


@simulate(runs=30, backends=["asyncio"])
async def test_native_cancellation_of_terminate() -> None:
    """An asyncio task that terminates an agent and is cancelled past every shield still runs the clean-up."""
    agent = Closing(configuration())
    agent.on_process = gate = Gate()
    execution = asyncio.create_task(agent.execute(AgentContext()))
    await gate.entered.wait()
    termination = asyncio.create_task(agent.terminate())
    await anyio.wait_all_tasks_blocked()
    termination.cancel()
    with pytest.raises(asyncio.CancelledError):
        await termination
    assert (["initialize", "process", "terminate"], True) == (agent.calls, agent.is_terminated)
    gate.opened.set()
    await execution
