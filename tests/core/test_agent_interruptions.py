"""What comes into an execution from outside: cancelled callers, failing clean-ups, coroutines that are closed."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextvars import copy_context
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from agentcore import (
    AgentContext,
    AgentError,
    AgentResult,
    AgentRuntime,
    AgentState,
    BaseTask,
    ConfigurationError,
    TaskState,
)
from agentcore._context import current_execution
from agentcore.testing import simulate
from tests.core.fakes import OK, SORRY, Gate, MockAgent, Step, configuration, noting, raising

pytestmark = pytest.mark.anyio


class Stop(BaseException):
    """What no `except Exception` may catch."""


def unwinding_with(error: BaseException, *, in_group: bool, begun: anyio.Event | None = None) -> Step:
    """Make a step that hangs and, when it is cancelled, raises something else; in a task of its own if asked to."""

    async def clumsy() -> None:
        try:
            if begun is not None:
                begun.set()
            await anyio.sleep_forever()
        finally:
            raise error

    async def step(*args: object) -> None:
        if not in_group:
            await clumsy()
        async with anyio.create_task_group() as group:
            group.start_soon(clumsy)
            await anyio.sleep_forever()

    return step


async def inside(scope: anyio.CancelScope, function: Step, *args: Any) -> Any:
    """Call a function inside of a scope."""
    with scope:
        return await function(*args)


def leaves(error: BaseException) -> list[BaseException]:
    """Return the exceptions in a group, or the one that is none."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for part in error.exceptions for leaf in leaves(part)]
    return [error]


@pytest.mark.parametrize("in_group", [True, False])
@pytest.mark.parametrize("timeout", [None, 30.0])
@simulate(runs=20)
async def test_failing_clean_up_of_a_cancelled_execution(in_group: bool, timeout: float | None) -> None:
    """What is raised while a cancelled caller is unwound is handled by nobody, and reaches the caller's scope."""
    agent = MockAgent(configuration(timeout=timeout))
    broken = ValueError("cannot clean up")
    begun = anyio.Event()
    agent.on_process = unwinding_with(broken, in_group=in_group, begun=begun)
    caught: list[BaseException] = []
    async with anyio.create_task_group() as group:
        scope = anyio.CancelScope()
        group.start_soon(noting, caught, inside, scope, agent.execute, AgentContext())
        await begun.wait()
        scope.cancel()
    assert [broken] == [leaf for error in caught for leaf in leaves(error)]
    assert (AgentState.IDLE, ["initialize", "process"]) == (agent.state, agent.calls)
    metrics = agent.metrics
    assert (1, 0, 0, 0) == (metrics.cancellations, metrics.failures, metrics.timeouts, metrics.running)


@pytest.mark.parametrize("in_group", [True, False])
@simulate(runs=20)
async def test_failing_clean_up_of_a_cancelled_run(in_group: bool) -> None:
    """The task of a caller who is cancelled is CANCELED, also if its clean-up raises."""
    task = BaseTask.create("work")
    agent = MockAgent(configuration())
    begun = anyio.Event()
    agent.on_process = unwinding_with(ValueError("cannot clean up"), in_group=in_group, begun=begun)
    async with AgentRuntime() as runtime:
        runtime.registry("agents").register("work", agent)
        async with anyio.create_task_group() as group:
            scope = anyio.CancelScope()
            group.start_soon(noting, [], inside, scope, runtime.run, task)
            await begun.wait()
            scope.cancel()
    assert (TaskState.CANCELED, 1) == (task.state, agent.metrics.cancellations)


@pytest.mark.parametrize("in_group", [True, False])
@simulate(runs=5)
async def test_failing_clean_up_past_the_deadline(in_group: bool) -> None:
    """An execution whose time is over and whose clean-up then raises is a timeout, and the error says so."""
    agent = MockAgent(configuration(timeout=5.0))
    broken = ValueError("cannot clean up")
    agent.on_process = unwinding_with(broken, in_group=in_group)
    assert SORRY == await agent.execute(AgentContext())
    assert 5.0 == anyio.current_time()
    metrics = agent.metrics
    assert (1, 1, 0) == (metrics.timeouts, metrics.failures, metrics.cancellations)
    assert [[broken]] == [leaves(error) for error in agent.errors]
    assert ["raised while it was unwound" in note for note in agent.errors[0].__notes__] == [True]
    assert "'agent' of 5 s" in agent.errors[0].__notes__[0]


@simulate(runs=5)
async def test_failing_clean_up_past_the_tasks_deadline() -> None:
    """The note names the deadline of the task where that was the nearer one."""
    agent = MockAgent(configuration(timeout=30.0))
    agent.on_process = unwinding_with(ValueError("cannot clean up"), in_group=False)
    async with AgentRuntime() as runtime:
        runtime.registry("agents").register("work", agent)
        handle = await runtime.submit("work", timeout=5.0)
        assert (TaskState.FAILED, 5.0) == ((await handle.wait()).state, anyio.current_time())
    assert "'timeout' of 5 s" in agent.errors[0].__notes__[0]


@pytest.mark.parametrize("error", [Stop("now"), SystemExit(3)], ids=lambda error: type(error).__name__)
@simulate(runs=20)
async def test_cancellation_together_with_something_worse(error: BaseException) -> None:
    """Where a cancellation and what is no Exception come together, the latter decides: the agent is broken."""
    agent = MockAgent(configuration())
    begun = anyio.Event()

    async def worse(context: AgentContext) -> AgentResult:
        begun.set()
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class() as cancellation:
            raise BaseExceptionGroup("both", [cancellation, error]) from None

    agent.on_process = worse
    caught: list[BaseException] = []
    async with anyio.create_task_group() as group:
        scope = anyio.CancelScope()

        async def execute() -> None:
            try:
                await agent.execute(AgentContext())
            except BaseExceptionGroup as both:
                caught.append(both)
                raise both.exceptions[0] from None

        group.start_soon(inside, scope, execute)
        await begun.wait()
        scope.cancel()
    assert [error] == leaves(caught[0])[1:]
    assert (AgentState.ERROR, 1, 0) == (agent.state, agent.metrics.failures, agent.metrics.cancellations)
    agent.on_process = None
    assert OK == await agent.execute(AgentContext())
    assert agent.is_idle is True


async def test_handle_error_that_is_left_by_something_worse() -> None:
    """What no `except Exception` may catch leaves `handle_error` as it is, and the agent broken."""
    agent = MockAgent(configuration())
    agent.on_process, agent.on_error = raising(ValueError("bad")), raising(Stop("now"))
    with pytest.raises(Stop):
        await agent.execute(AgentContext())
    assert (AgentState.ERROR, 1, 1) == (agent.state, agent.metrics.executions, agent.metrics.failures)


class Suspension:
    """Can be awaited, and does not go on."""

    def __await__(self) -> Generator[None]:
        yield


@pytest.mark.parametrize("elsewhere", [True, False])
def test_closing_an_execution(elsewhere: bool) -> None:
    """A coroutine that is closed in the middle, as a loop does at its end, gives the slot back, also in another context."""
    agent = MockAgent(configuration(timeout=None))

    async def suspend(context: AgentContext) -> AgentResult:
        await Suspension()
        raise AssertionError("unreachable")

    agent.on_process = suspend
    execution = agent.execute(AgentContext())
    if elsewhere:
        copy_context().run(execution.send, None)  # type: ignore[attr-defined]
    else:
        execution.send(None)  # type: ignore[attr-defined]
    assert (AgentState.PROCESSING, 1) == (agent.state, agent.metrics.running)
    try:
        execution.close()  # type: ignore[attr-defined]
    except ValueError:  # of the context variable, which belongs to the other context
        assert elsewhere is True
    metrics = agent.metrics
    assert (AgentState.IDLE, 0, 1, 1) == (agent.state, metrics.running, metrics.cancellations, sum(metrics.histogram))
    agent.on_process = None
    execution = agent.execute(AgentContext())
    with pytest.raises(StopIteration) as ended:
        execution.send(None)  # type: ignore[attr-defined]
    assert ended.value.value == OK
    assert current_execution.get() is None


async def test_executions_in_the_background_form_no_endless_chain() -> None:
    """Background tasks that each execute an agent and start the next one do not keep their forebears alive."""
    agent = MockAgent(configuration(timeout=None, max_concurrency=None))
    lengths: list[int] = []
    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:

            async def process(context: AgentContext) -> AgentResult:
                lengths.append(_chain_length())
                if len(lengths) < 3000:
                    group.start_soon(agent.execute, AgentContext())
                return OK

            agent.on_process = process
            await agent.execute(AgentContext())
    assert (3000, True) == (len(lengths), max(lengths) <= 2)


async def test_executions_that_overlap_form_no_endless_chain() -> None:
    """That holds as well if each execution ends only when the next one has begun."""
    agent = MockAgent(configuration(timeout=None, max_concurrency=None))
    lengths: list[int] = []
    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:

            async def process(context: AgentContext) -> AgentResult:
                lengths.append(_chain_length())
                context.parameters["begun"].set()
                if len(lengths) < 300:
                    following = anyio.Event()
                    group.start_soon(agent.execute, AgentContext(parameters={"begun": following}))
                    await following.wait()
                return OK

            agent.on_process = process
            await agent.execute(AgentContext(parameters={"begun": anyio.Event()}))
    assert (300, True) == (len(lengths), max(lengths) <= 10)


def _chain_length() -> int:
    length, link = 0, current_execution.get()
    while isinstance(link, list):
        length, link = length + 1, link[1]
    return length


@simulate(runs=30, backends=["asyncio"])
async def test_native_cancellation_in_the_moment_of_the_turn() -> None:
    """An asyncio task that is cancelled just when its turn has come passes the turn on."""
    agent = MockAgent(configuration())
    agent.on_process = gate = Gate()

    async def execute_and_cancel() -> None:
        await agent.execute(AgentContext())
        second.cancel()  # the turn is its own by now, and it has not taken a step since

    first = asyncio.create_task(execute_and_cancel())
    await gate.entered.wait()
    second = asyncio.create_task(agent.execute(AgentContext()))
    await anyio.wait_all_tasks_blocked()
    third = asyncio.create_task(agent.execute(AgentContext()))
    await anyio.wait_all_tasks_blocked()
    assert 2 == agent.metrics.waiting
    gate.opened.set()
    await first
    with pytest.raises(asyncio.CancelledError):
        await second
    assert (await third).success is True
    assert (AgentState.IDLE, 2, 0) == (agent.state, agent.metrics.executions, agent.metrics.waiting)


@pytest.mark.parametrize("value", [None, {"task": 1}, AgentContext])
async def test_something_else_than_a_context(value: Any) -> None:
    """Who passes something else than a context is told so."""
    agent = MockAgent(configuration())
    with pytest.raises(ConfigurationError, match="takes an AgentContext: got") as caught:
        await agent.execute(value)
    assert (True, 0) == (repr(value) in str(caught.value), agent.metrics.executions)


async def test_context_of_ones_own() -> None:
    """A class of contexts of one's own is as good as the one it is made from."""

    class Richer(AgentContext):
        pass

    assert OK == await MockAgent(configuration()).execute(Richer())


def test_something_else_than_a_configuration() -> None:
    """Who passes something else than a configuration is told so, by the name of the class."""
    with pytest.raises(ConfigurationError, match="config of MockAgent must be an AgentConfig: got 'mock'"):
        MockAgent("mock")  # type: ignore[arg-type]


def test_termination_always_has_a_limit() -> None:
    """Unlike the other limits that of termination cannot be none."""
    with pytest.raises(ConfigurationError, match=r"terminate_timeout.*always has a limit"):
        configuration(terminate_timeout=None)


def test_repr_of_an_agent() -> None:
    """An agent shows its name, its state and how busy it is."""
    assert "<MockAgent 'mock', IDLE, 0 running, 0 waiting>" == repr(MockAgent(configuration()))


@pytest.mark.parametrize("method", ["run", "submit"])
async def test_context_without_a_runtime(method: str) -> None:
    """A context that was made by hand starts no tasks, and says why."""
    with pytest.raises(AgentError, match=rf"{method} of an AgentContext works inside a runtime only"):
        await getattr(AgentContext(), method)("work")


async def test_context_without_a_task() -> None:
    """A context without a task has the parameters as its input, no deadline, and nothing to save progress in."""
    context = AgentContext(parameters={"size": 1})
    assert ({"size": 1}, float("inf")) == (context.input, context.deadline)
    with pytest.raises(AgentError, match="checkpoint of an AgentContext needs a task"):
        context.checkpoint({"page": 1})


async def test_context_with_a_task() -> None:
    """A context with a task has that one's input, saves its progress, and knows the deadline it runs under."""
    task = BaseTask.create("work", {"size": 2}).start()
    context = AgentContext(task, parameters={"size": 1})
    context.checkpoint({"page": 1})
    with anyio.move_on_after(30) as scope:
        await anyio.lowlevel.checkpoint()
        assert ({"size": 2}, scope.deadline) == (context.input, context.deadline)
    assert {"page": 1} == task.get_latest_checkpoint()
