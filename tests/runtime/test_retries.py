"""Tasks that are executed again: when, and what becomes of their slots, of who waits, and of the runtime meanwhile."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Self

import anyio
import anyio.lowlevel
import attrs
import pytest

from agentcore import (
    AgentConfig,
    AgentContext,
    AgentCrashedError,
    AgentResult,
    AgentRuntime,
    Backoff,
    BaseAgent,
    BaseTask,
    CircuitBreakerConfig,
    CircuitOpenError,
    ConfigurationError,
    RetryBudget,
    RetryPolicy,
    RuntimeConfig,
    TaskCanceledError,
    TaskExecutionError,
    TaskGroupError,
    TaskPriority,
    TaskState,
    TaskStateError,
)
from agentcore._interop import sources
from agentcore._rules.retry import GaveUp
from agentcore.testing import BACKENDS, run_sim, simulate
from tests.core.outcomes import Row, Scripted, raise_boom
from tests.runtime.parts import check_at_rest, echo, fail, hang, holding

pytestmark = pytest.mark.anyio

STEADY = Backoff(1.0, 2.0, 60.0, jitter=False)
TWICE = RetryPolicy(attempts=2, backoff=STEADY)
THRICE = RetryPolicy(attempts=3, backoff=STEADY)


class Flaky:
    """A handler that raises what it is told, one after the other, and succeeds then; it notes when it was called."""

    def __init__(self, *errors: BaseException | AgentResult) -> None:
        self.errors = list(errors)
        self.times: list[float] = []
        self.inputs: list[Any] = []

    async def __call__(self, given: dict[str, Any]) -> Any:
        self.times.append(anyio.current_time())
        self.inputs.append(given.get("n"))
        if self.errors:
            error = self.errors.pop(0)
            if isinstance(error, AgentResult):
                return error
            raise error
        return given


def runtime_of(*, grace: float = 0, **settings: Any) -> AgentRuntime:
    """Make a runtime with the handlers ``echo``, ``fail`` and ``hang``."""
    runtime = AgentRuntime(RuntimeConfig(**settings), grace=grace)
    for function in (echo, fail, hang):
        runtime.handler(function.__name__)(function)
    return runtime


def flaky(runtime: AgentRuntime, *errors: BaseException | AgentResult, **options: Any) -> Flaky:
    """Register a `Flaky`."""
    made = Flaky(*errors)
    runtime.handler("flaky", **options)(made)
    return made


# When.


@simulate(runs=5)
async def test_waits_get_longer() -> None:
    """Between two executions it waits by the backoff, and `retry_after` of an error is added."""
    slow = ValueError("later")
    slow.retry_after = 10  # type: ignore[attr-defined]
    async with runtime_of() as runtime:
        handler = flaky(runtime, ValueError("1"), slow, ValueError("3"))
        assert {"n": 1} == await runtime.run("flaky", {"n": 1}, retry=RetryPolicy(attempts=4, backoff=STEADY))
    assert [0, 1, 1 + 2 + 10, 13 + 4] == handler.times


@simulate(runs=20)
async def test_waits_are_drawn() -> None:
    """With jitter each wait is drawn anew, below its limit."""
    async with runtime_of(retry=RetryPolicy(attempts=6, backoff=Backoff(1.0, 2.0, 4.0))) as runtime:
        handler = flaky(runtime, *[ValueError(str(number)) for number in range(5)])
        await runtime.run("flaky")
    waits = [after - before for before, after in zip(handler.times, handler.times[1:], strict=False)]
    assert all(0 <= wait <= limit for wait, limit in zip(waits, (1, 2, 4, 4, 4), strict=True))
    assert 5 == len(set(waits))


@pytest.mark.parametrize(
    ("policy", "error", "attempts"),
    [
        (RetryPolicy(attempts=2, on=OSError), OSError("o"), 2),
        (RetryPolicy(attempts=2, on=OSError), ValueError("v"), 1),
        (RetryPolicy(attempts=2, never_on=(LookupError,)), KeyError("k"), 1),
        (RetryPolicy(attempts=2, retry_if=lambda error: "again" in str(error)), ValueError("again"), 2),
        (RetryPolicy(attempts=2, retry_if=lambda error: "again" in str(error)), ValueError("no"), 1),
        (RetryPolicy(attempts=2, retry_if=lambda error: error.missing), ValueError("no"), 1),  # type: ignore[attr-defined]
        (RetryPolicy(attempts=2, on=OSError), ExceptionGroup("g", [OSError("1"), OSError("2")]), 2),
        (RetryPolicy(attempts=2, on=OSError), ExceptionGroup("g", [OSError("1"), ValueError("2")]), 1),
        (RetryPolicy(attempts=2), AgentResult.error_result("no"), 2),
        (RetryPolicy(attempts=2, on=OSError), AgentResult.error_result("no"), 2),
        (RetryPolicy(attempts=2, failed_results=False), AgentResult.error_result("no"), 1),
    ],
)
@simulate(runs=3)
async def test_what_is_retried(policy: RetryPolicy, error: Any, attempts: int) -> None:
    """Exceptions by their classes and by the condition, which says no if it raises; results by themselves."""
    async with runtime_of() as runtime:
        handler = flaky(runtime, error, error)
        with pytest.raises(TaskExecutionError) as caught:
            await runtime.run("flaky", retry=policy)
    assert attempts == len(handler.times)
    told = caught.value.details["error"]
    assert (attempts, str(GaveUp.ATTEMPTS if attempts == 2 else GaveUp.NOT_RETRYABLE)) == (
        told["attempts"],
        told["gave_up"],
    )


@simulate(runs=3)
async def test_an_error_that_says_it_is_of_no_use() -> None:
    """`retryable` False is the last word."""
    error = ValueError("never")
    error.retryable = False  # type: ignore[attr-defined]
    async with runtime_of(retry=THRICE) as runtime:
        handler = flaky(runtime, error)
        with pytest.raises(TaskExecutionError):
            await runtime.run("flaky")
    assert 1 == len(handler.times)


@simulate(runs=3)
async def test_the_error_that_was_to_be_handled_decides() -> None:
    """An agent whose `handle_error` fails too is retried if the first error is retried."""

    async def refuse() -> Any:
        raise KeyError("while it handled it")

    for never_on, attempts in (((KeyError,), 2), ((LookupError, Exception), 1)):
        async with runtime_of() as runtime:
            row = Row(
                name="",
                process=raise_boom,
                handle_error=refuse,
                gives=None,
                seen=[],
                task=TaskState.FAILED,
                breaker="-",
            )
            runtime.registry("agents").register("scripted", agent := Scripted(row))
            with pytest.raises(TaskExecutionError):
                await runtime.run("scripted", retry=RetryPolicy(attempts=2, never_on=never_on))
        assert attempts == len(agent.handled)


# Who says so.


@simulate(runs=3)
async def test_the_call_goes_before_the_handler_before_the_runtime() -> None:
    """The nearest policy counts; False is no policy."""
    async with runtime_of(retry=RetryPolicy(attempts=4, backoff=Backoff(0, maximum=0))) as runtime:
        for options, attempts in (
            ({}, 4),
            ({"retry": RetryPolicy(attempts=1)}, 1),
            ({"retry": False}, 1),
            ({"retry": RetryPolicy(attempts=7, backoff=Backoff(0, maximum=0))}, 7),
        ):
            task = BaseTask.create("fail")
            with pytest.raises(TaskExecutionError):
                await runtime.run(task, **options)
            assert attempts == task.attempt
        handler = flaky(runtime, ValueError("1"), ValueError("2"), retry=RetryPolicy(attempts=2))
        with pytest.raises(TaskExecutionError):
            await runtime.run("flaky")
        assert 2 == len(handler.times)
        handler = flaky(runtime, ValueError("1"))
        await runtime.run("flaky")
        assert 2 == len(handler.times)
        handler = flaky(runtime, ValueError("1"), retry=False)
        with pytest.raises(TaskExecutionError):
            await runtime.run("flaky")
        assert 1 == len(handler.times)


class FlakyAgent(BaseAgent):
    """An agent that succeeds at its third execution."""

    tried = 0

    async def initialize(self) -> bool:
        return True

    async def process(self, context: AgentContext) -> AgentResult:
        type(self).tried += 1
        return AgentResult(success=type(self).tried == 3)

    async def handle_error(self, error: Exception, context: AgentContext) -> AgentResult:
        raise error


@pytest.mark.parametrize("kind", ["class", "instance"])
@simulate(runs=5)
async def test_an_agent_is_registered_with_a_policy(kind: str) -> None:
    """As a handler is, whether there is one for all tasks or one for each."""
    FlakyAgent.tried = 0
    async with runtime_of() as runtime:
        agent = FlakyAgent if kind == "class" else FlakyAgent(AgentConfig("flaky_agent", "flaky"))
        runtime.agents.agents.register("flaky_agent", agent, retry=THRICE)
        await runtime.run("flaky")
        assert (3, 3) == (FlakyAgent.tried, anyio.current_time())


@pytest.mark.parametrize("way", ["run", "submit", "start", "map", "handler", "config"])
async def test_what_is_no_policy_is_refused(way: str) -> None:
    """Wherever one can be given."""
    async with runtime_of() as runtime:
        with pytest.raises(ConfigurationError, match=r"retry of .* must be a RetryPolicy: got 3"):
            if way == "run":
                await runtime.run("echo", retry=3)  # type: ignore[arg-type]
            elif way == "submit":
                await runtime.submit("echo", retry=3)  # type: ignore[arg-type]
            elif way == "start":
                async with runtime.group() as group:
                    group.start("echo", retry=3)  # type: ignore[arg-type]
            elif way == "map":
                await runtime.map("echo", [{}], retry=3)
            elif way == "handler":
                runtime.handler("echo", retry=3)  # type: ignore[arg-type]
            else:
                RuntimeConfig(retry=3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"attempts": 0}, "attempts of a RetryPolicy must be a whole number, 1 or more: got 0"),
        ({"attempts": 2.5}, "attempts of a RetryPolicy"),
        ({"backoff": 3}, "backoff of a RetryPolicy must be a Backoff: got 3"),
        ({"on": KeyboardInterrupt}, "on of a RetryPolicy must be classes below Exception"),
        ({"never_on": "no"}, "never_on of a RetryPolicy must be classes below Exception"),
        ({"retry_if": 3}, "retry_if of a RetryPolicy must be a function"),
        ({"retry_if": echo}, "retry_if of a RetryPolicy must be a function that is not asynchronous"),
        ({"failed_results": "no"}, "failed_results of a RetryPolicy must be True or False"),
    ],
)
def test_a_policy_checks_its_values(values: dict[str, Any], told: str) -> None:
    """The message names the field and says what to do."""
    with pytest.raises(ConfigurationError, match=told):
        RetryPolicy(**values)


def test_policies_are_values() -> None:
    """Two that say the same are equal, one class stands for a tuple of it, and other processes understand them."""
    assert RetryPolicy(on=OSError) == pickle.loads(pickle.dumps(RetryPolicy(on=[OSError])))
    assert RetryPolicy(attempts=4, retry_if=str) == attrs.evolve(RetryPolicy(retry_if=str), attempts=4)
    assert 1 == len({RetryPolicy(), RetryPolicy()})
    assert RetryPolicy(on=OSError) == RetryPolicy(on=(OSError,))
    assert RetryPolicy() != RetryPolicy(attempts=4)
    assert "attempts=3" in repr(RetryPolicy())


# While it waits.


@simulate(runs=10)
async def test_nothing_is_held_while_it_waits() -> None:
    """PENDING, with the moment of the next execution, no slot, and no place in the queue."""
    async with runtime_of(in_flight=1, queue=1) as runtime:
        flaky(runtime, ValueError("once"))
        handle = await runtime.submit("flaky", {"n": 1}, retry=TWICE)
        assert (0, False, None) == (handle.retried, handle.waiting_for_retry, handle.task.not_before)
        await anyio.wait_all_tasks_blocked()
        task, statistics = handle.task, runtime.statistics().tasks
        assert (TaskState.PENDING, 1, 1) == (task.state, task.attempt, task.failures)
        assert (1, True) == (handle.retried, handle.waiting_for_retry)
        assert task.not_before is not None
        assert timedelta(seconds=1) == task.not_before - task.events[-1].at
        assert (None, None, "task_retried") == (task.error, task.duration_ms, task.events[-1].event_type)
        assert "once" == task.events[-1].data["error"]["message"]
        assert (0, 0, 1, 1) == (
            statistics.in_flight,
            statistics.queued,
            statistics.retried,
            statistics.waiting_for_retry,
        )
        assert [task] == runtime.tasks.active()
        assert {"n": 2} == await runtime.run("echo", {"n": 2})
        hold = holding(runtime)
        others = [await runtime.submit("hold") for _ in range(2)]  # one runs, one has the place in the queue
        await anyio.sleep(2)
        assert (1, TaskState.PENDING, None, False) == (
            hold.inside,
            task.state,
            runtime.statistics().tasks.waiting_for_retry or None,
            task.is_finished,
        )
        hold.opened.set()
        assert {"n": 1} == await handle.result()
        assert (None, 1, False) == (task.not_before, handle.retried, handle.waiting_for_retry)
        for other in others:
            await other.result()
        await check_at_rest(runtime, 1)


@simulate(runs=10)
async def test_it_lines_up_as_whoever_comes_then() -> None:
    """Those of the same priority that came before that moment are served before it, those that come later after it."""
    async with runtime_of(in_flight=1) as runtime:
        handler = flaky(runtime, ValueError("once"))
        hold = holding(runtime)
        retried = await runtime.submit("flaky", {"n": "retried"}, retry=TWICE)
        await anyio.wait_all_tasks_blocked()
        first = await runtime.submit("hold")
        await runtime.submit("flaky", {"n": "before"})
        await anyio.sleep(1.5)
        await runtime.submit("flaky", {"n": "after"})
        await runtime.submit("flaky", {"n": "urgent"}, priority=TaskPriority.HIGH)
        hold.opened.set()
        await first.result()
        await retried.result()
        await runtime.drain()
    assert ["retried", "urgent", "before", "retried", "after"] == handler.inputs


@simulate(runs=10)
async def test_waiting_for_a_retry_does_not_make_up_for_priority() -> None:
    """What has waited is worth something from the moment on in which it lines up anew."""
    async with runtime_of(in_flight=1, ageing=10) as runtime:
        handler = flaky(runtime, ValueError("once"))
        policy = RetryPolicy(backoff=Backoff(60, maximum=60, jitter=False))
        retried = await runtime.submit("flaky", {"n": "retried"}, priority="LOW", retry=policy)
        await anyio.sleep(59)
        hold = holding(runtime)
        await runtime.submit("hold")
        await anyio.sleep(6)  # it has come at 60
        await runtime.submit("flaky", {"n": "at 65"})
        await anyio.sleep(10)
        await runtime.submit("flaky", {"n": "at 75"})
        hold.opened.set()
        await retried.result()
        await runtime.drain()
    assert ["retried", "at 65", "retried", "at 75"] == handler.inputs


@simulate(runs=20)
async def test_cancelled_while_it_waits() -> None:
    """It is CANCELED at that moment, and the slot of nobody is lost."""
    async with runtime_of(in_flight=1) as runtime:
        handler = flaky(runtime, ValueError("once"))
        handle = await runtime.submit("flaky", retry=RetryPolicy(backoff=Backoff(60, maximum=60, jitter=False)))
        await anyio.wait_all_tasks_blocked()
        assert handle.cancel("not needed")
        with pytest.raises(TaskCanceledError, match="not needed"):
            await handle.result()
        assert (0, TaskState.CANCELED, 1) == (anyio.current_time(), handle.state, len(handler.times))
        assert (None, 0) == (handle.task.not_before, runtime.statistics().tasks.waiting_for_retry)
        assert handle.cancel() is False
        await check_at_rest(runtime, 1)


@pytest.mark.parametrize("seconds", [0.5, 1.0, 1.5])
@simulate(runs=20)
async def test_cancelled_before_at_and_after_the_moment(seconds: float) -> None:
    """Whether it waits for the moment or for its turn."""
    async with runtime_of(in_flight=1) as runtime:
        flaky(runtime, ValueError("once"))
        handle = await runtime.submit("flaky", retry=TWICE)
        await anyio.wait_all_tasks_blocked()
        hold = holding(runtime)
        other = await runtime.submit("hold")
        await anyio.sleep(seconds)
        handle.cancel()
        assert TaskState.CANCELED is (await handle.wait()).state
        hold.opened.set()
        await other.result()
        await check_at_rest(runtime, 1)


@simulate(runs=20)
async def test_the_caller_is_cancelled_while_it_waits() -> None:
    """What is run waits in its caller's own task, so it ends with him."""
    task = BaseTask.create("fail")
    async with runtime_of(in_flight=1) as runtime:
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: runtime.run(task, retry=THRICE))
            await anyio.wait_all_tasks_blocked()
            assert task.not_before is not None
            group.cancel_scope.cancel()
        assert (TaskState.CANCELED, 1) == (task.state, task.attempt)
        await check_at_rest(runtime, 1)


@simulate(runs=5)
async def test_no_wait_beyond_the_callers_deadline() -> None:
    """A caller who has no time for another execution learns of the error, at once."""
    async with runtime_of() as runtime:
        with anyio.fail_after(0.5), pytest.raises(TaskExecutionError) as caught:
            await runtime.run("fail", retry=THRICE)
        assert (0.0, str(GaveUp.DEADLINE)) == (anyio.current_time(), caught.value.details["error"]["gave_up"])


# The budget.


@simulate(runs=5)
async def test_the_budget_is_used_up() -> None:
    """Then a task fails with its error at once, and says so."""
    budget = RetryBudget(ratio=0, per_second=0, capacity=2)
    async with runtime_of(retry=RetryPolicy(attempts=9, backoff=STEADY), retry_budget=budget) as runtime:
        task = BaseTask.create("fail", {"n": 7})
        with pytest.raises(TaskExecutionError):
            await runtime.run(task)
        assert (3, 3, 3.0, 0) == (task.attempt, task.failures, anyio.current_time(), budget.available)
        assert {
            "attempts": 3,
            "gave_up": str(GaveUp.BUDGET),
            "error_type": "ValueError",
            "message": "number 7",
        } == task.error
        second = BaseTask.create("fail")
        with pytest.raises(TaskExecutionError):
            await runtime.run(second)
        assert (1, 3.0) == (second.attempt, anyio.current_time())


@simulate(runs=5)
async def test_tasks_with_a_policy_pay_in() -> None:
    """A share of a retry for each of them, and nothing for the others."""
    budget = RetryBudget(ratio=0.25, per_second=0, capacity=2)
    while budget._spend():
        pass
    async with runtime_of(retry_budget=budget) as runtime:
        await runtime.run("echo")
        assert 0 == budget.available
        for _ in range(4):
            await runtime.run("echo", retry=THRICE)
        assert 1 == budget.available
        task = BaseTask.create("fail")
        with pytest.raises(TaskExecutionError):
            await runtime.run(task, retry=THRICE)
        assert (2, 0.25) == (task.attempt, budget.available)


@pytest.mark.parametrize("way", ["while it waits", "in line", "deadline in line"])
@simulate(runs=10)
async def test_what_is_not_made_is_not_paid(way: str) -> None:
    """A retry that never begins is given back to the budget."""
    budget = RetryBudget(ratio=0, per_second=0, capacity=2)
    async with runtime_of(retry_budget=budget, in_flight=1) as runtime:
        flaky(runtime, ValueError("once"))
        queue_timeout = 1.0 if way == "deadline in line" else None
        handle = await runtime.submit("flaky", retry=THRICE, queue_timeout=queue_timeout)
        await anyio.wait_all_tasks_blocked()
        assert 1 == budget.available
        hold = holding(runtime)
        await runtime.submit("hold")
        await anyio.sleep(0.5 if way == "while it waits" else 3)
        handle.cancel()
        await handle.wait()
        assert 2 == budget.available
        hold.opened.set()


@simulate(runs=5)
async def test_no_budget_is_no_limit() -> None:
    """None lets every policy have its way."""
    async with runtime_of(retry_budget=None) as runtime:
        handles = [await runtime.submit("fail", retry=RetryPolicy(attempts=3, backoff=STEADY)) for _ in range(300)]
        for handle in handles:
            assert 3 == (await handle.wait()).attempt


def test_the_default_budget_is_each_configurations_own() -> None:
    """Two configurations are equal, but do not pay for each other's tasks."""
    first, second = RuntimeConfig(), RuntimeConfig()
    assert first == second
    assert first.retry_budget is not second.retry_budget
    with pytest.raises(ConfigurationError, match="retry_budget of a runtime must be a RetryBudget: got 3"):
        RuntimeConfig(retry_budget=3)  # type: ignore[arg-type]


# Circuits.


def calling(runtime: AgentRuntime, errors: list[Exception]) -> list[float]:
    """Register ``call``, which calls a service through a circuit; return when it was called."""
    called: list[float] = []

    async def service() -> None:
        called.append(anyio.current_time())
        if errors:
            raise errors.pop(0)

    @runtime.handler("call")
    async def call(given: dict[str, Any], context: AgentContext) -> None:
        breaker = context.breaker("service", CircuitBreakerConfig(failure_threshold=1, reset_timeout_ms=30_000))
        await breaker.execute(service)

    return called


@simulate(runs=10)
async def test_an_open_circuit_is_waited_for() -> None:
    """As long as it asks for, and at random a little longer; that is an attempt and no failure, and costs no budget."""
    budget = RetryBudget(ratio=0, per_second=0, capacity=3)
    async with runtime_of(retry_budget=budget) as runtime:
        called = calling(runtime, [OSError("down")])
        with pytest.raises(TaskExecutionError):
            await runtime.run("call")
        handle = await runtime.submit("call", retry=RetryPolicy(attempts=1, backoff=Backoff(2.0)))
        await anyio.wait_all_tasks_blocked()
        task = handle.task
        assert (TaskState.PENDING, 1, 0) == (task.state, task.attempt, task.failures)
        await handle.result()
        assert (2, 0, 3.0) == (task.attempt, task.failures, budget.available)
        assert 30 <= called[1] <= 32 + 1e-6


@simulate(runs=5)
async def test_failures_and_rejections_are_counted_apart() -> None:
    """Two failures are two, whatever circuit was open in between."""
    async with runtime_of() as runtime:
        called = calling(runtime, [OSError("1"), OSError("2"), OSError("3")])
        task = BaseTask.create("call")
        with pytest.raises(TaskExecutionError) as caught:
            await runtime.run(task, retry=RetryPolicy(attempts=2, backoff=STEADY))
        assert isinstance(caught.value.__cause__, OSError)
        assert (2, 3, 2) == (len(called), task.attempt, task.failures)
        assert str(GaveUp.ATTEMPTS) == (task.error or {})["gave_up"]


@simulate(runs=5)
async def test_a_circuit_that_is_open_for_nobody_knows_how_long() -> None:
    """The task fails at once."""
    async with runtime_of() as runtime:
        calling(runtime, [])
        breaker = runtime.breaker("service", CircuitBreakerConfig(failure_threshold=1, reset_timeout_ms=30_000))
        with breaker.isolate():
            task = BaseTask.create("call")
            with pytest.raises(TaskExecutionError) as caught:
                await runtime.run(task, retry=THRICE)
        assert isinstance(caught.value.__cause__, CircuitOpenError)
        assert (0.0, 1, str(GaveUp.CIRCUIT)) == (anyio.current_time(), task.attempt, (task.error or {})["gave_up"])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_group_of_rejections_alone_waits_for_the_longest(backend: Any) -> None:
    """Together with another error it counts as that one does."""

    async def scenario(others: list[Exception]) -> tuple[int, int]:
        async with runtime_of() as runtime:
            rejections = [
                CircuitOpenError._of(name, "open", seconds, None) for name, seconds in (("a", 5.0), ("b", 9.0))
            ]
            handler = flaky(runtime, ExceptionGroup("both", [*rejections, *others]))
            task = BaseTask.create("flaky")
            await runtime.run(task, retry=RetryPolicy(attempts=2, backoff=Backoff(0, maximum=0)))
            assert handler.times[1] >= 9.0
            return task.attempt, task.failures

    assert (2, 0) == run_sim(scenario, [], backend=backend).unwrap()
    assert (2, 1) == run_sim(scenario, [OSError("too")], backend=backend).unwrap()


# Children.


@simulate(runs=20)
async def test_a_child_gives_the_slot_back_while_it_waits() -> None:
    """A child that is run has its parent's slot. While it waits others have it; with its end the parent has one again."""
    async with runtime_of(in_flight=1) as runtime:
        flaky(runtime, ValueError("once"))
        seen: list[tuple[int, int]] = []

        @runtime.handler("parent")
        async def parent(given: dict[str, Any], context: AgentContext) -> Any:
            try:
                return await context.run("flaky", {"n": "child"}, retry=TWICE)
            finally:
                statistics = runtime.statistics().tasks
                seen.append((statistics.in_flight, statistics.waiting_for_retry))

        handle = await runtime.submit("parent")
        await anyio.wait_all_tasks_blocked()
        assert (0, 1) == (runtime.statistics().tasks.in_flight, runtime.statistics().tasks.waiting_for_retry)
        assert {"n": 1} == await runtime.run("echo", {"n": 1})
        hold = holding(runtime)
        other = await runtime.submit("hold")
        await anyio.sleep(5)
        assert not handle.is_done
        hold.opened.set()
        await other.result()
        assert {"n": "child"} == await handle.result()
        assert [(1, 0)] == seen
        await check_at_rest(runtime, 1)


@simulate(runs=20)
async def test_a_child_is_cancelled_while_it_waits() -> None:
    """Its parent goes on with a slot."""
    async with runtime_of(in_flight=1) as runtime:

        @runtime.handler("parent")
        async def parent(given: dict[str, Any], context: AgentContext) -> Any:
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as group:
                    group.start_soon(lambda: context.run("fail", retry=THRICE))
                    await anyio.sleep(0.5)
                    scope.cancel()
            return {"in flight": runtime.statistics().tasks.in_flight}

        assert {"in flight": 1} == await runtime.run("parent")
        await check_at_rest(runtime, 1)


@simulate(runs=10)
async def test_children_of_a_group() -> None:
    """A failure that is retried cancels nobody; the last one does."""
    async with runtime_of(in_flight=2) as runtime:
        flaky(runtime, ValueError("once"))
        async with runtime.group() as group:
            first = group.start("flaky", {"n": 1}, retry=TWICE)
            second = group.start("echo", {"n": 2})
        assert [{"n": 1}, {"n": 2}] == [await first.result(), await second.result()]
        with pytest.raises(TaskGroupError):
            async with runtime.group() as group:
                group.start("fail", retry=TWICE)
                hanging = group.start("hang")
                await anyio.lowlevel.checkpoint()
        assert TaskState.CANCELED is hanging.state
        assert [{"n": 1}, {"n": 2}] == await runtime.map("echo", [{"n": 1}, {"n": 2}], retry=TWICE)
        await check_at_rest(runtime, 2)


@simulate(runs=10)
async def test_what_an_execution_leaves_behind_waits_on() -> None:
    """Code of the first execution may wait for a handle still when the second one begins: no slot is lost or made."""
    async with runtime_of(in_flight=2) as runtime, anyio.create_task_group() as outside:
        hold = holding(runtime)
        held = await runtime.submit("hold")
        waited: list[Any] = []

        async def wait() -> None:
            waited.append(await held.result())

        times: list[float] = []

        @runtime.handler("leaves")
        async def leaves(given: dict[str, Any]) -> None:
            times.append(anyio.current_time())
            if len(times) == 1:
                outside.start_soon(wait)
                await anyio.wait_all_tasks_blocked()
                raise ValueError("once")
            hold.opened.set()
            await anyio.sleep(1)

        await runtime.run("leaves", retry=TWICE)
        assert 1 == len(waited)
        await check_at_rest(runtime, 2)


@simulate(runs=10)
async def test_what_an_execution_leaves_behind_ends_while_it_waits() -> None:
    """The job must not have a slot then."""
    async with runtime_of(in_flight=2) as runtime, anyio.create_task_group() as outside:
        hold = holding(runtime)
        held = await runtime.submit("hold")
        flags: list[int] = []

        @runtime.handler("leaves")
        async def leaves(given: dict[str, Any]) -> None:
            flags.append(1)
            if len(flags) == 1:
                outside.start_soon(held.wait)
                await anyio.wait_all_tasks_blocked()
                raise ValueError("once")

        handle = await runtime.submit("leaves", retry=TWICE)
        await anyio.sleep(0.5)
        hold.opened.set()
        await held.wait()
        await anyio.wait_all_tasks_blocked()
        assert 0 == runtime.statistics().tasks.in_flight
        await handle.result()
        await check_at_rest(runtime, 2)


# The end of the runtime.


@simulate(runs=10)
async def test_draining_waits_for_retries() -> None:
    """What waits for its next execution is work that there is."""
    async with runtime_of() as runtime:
        handler = flaky(runtime, ValueError("1"), ValueError("2"))
        handle = await runtime.submit("flaky", {"n": 1}, retry=THRICE)
        assert not await runtime.drain(2.0)
        assert await runtime.drain()
        assert (3, TaskState.COMPLETED) == (len(handler.times), handle.state)


@simulate(runs=10)
async def test_the_exit_cuts_retries_short() -> None:
    """After the grace it is CANCELED, and in the report."""
    async with runtime_of(grace=0.5) as runtime:
        handle = await runtime.submit("fail", retry=THRICE)
    assert (TaskState.CANCELED, 0.5) == (handle.state, anyio.current_time())
    assert runtime.report is not None
    assert [handle.id] == [cut.task_id for cut in runtime.report.cut_short]


@simulate(runs=10)
async def test_no_retry_when_the_runtime_is_closed() -> None:
    """A task that shuts its runtime down and fails then is not executed again."""
    async with runtime_of() as runtime:
        times: list[float] = []

        @runtime.handler("closing")
        async def closing(given: dict[str, Any]) -> None:
            times.append(anyio.current_time())
            await runtime.shutdown(0)
            raise ValueError("after it")

        with pytest.raises(TaskExecutionError) as caught:
            await runtime.run("closing", retry=THRICE)
    assert ([0.0], str(GaveUp.CLOSED)) == (times, caught.value.details["error"]["gave_up"])


@simulate(runs=5)
async def test_only_the_last_failure_reaches_the_exit() -> None:
    """Those that were retried are not lost: they are what the task's events tell."""
    with pytest.raises(AgentCrashedError) as caught:
        async with runtime_of(grace=60) as runtime:
            handle = await runtime.submit("fail", {"n": 1}, retry=THRICE)
    assert ["number 1"] == [str(error.__cause__) for error in caught.value.exceptions]
    retried = [event.data["error"]["message"] for event in handle.task.events if event.event_type == "task_retried"]
    assert ["number 1"] * 2 == retried


# By hand, and in other processes.


@pytest.mark.parametrize("end", ["complete", "fail", "cancel"])
@simulate(runs=5)
async def test_ended_by_hand(end: str) -> None:
    """Who ends a task by hand while it runs, or while it waits, has the last word."""
    ends: dict[str, Callable[[BaseTask], BaseTask]] = {
        "complete": lambda task: task.complete({}),
        "fail": lambda task: task.fail({"by": "hand"}),
        "cancel": lambda task: task.cancel("by hand"),
    }
    async with runtime_of(in_flight=1) as runtime:
        calls: list[BaseTask] = []

        @runtime.handler("ending")
        async def ending(given: dict[str, Any], context: AgentContext) -> None:
            assert context.task is not None
            calls.append(ends[end](context.task))
            raise ValueError("then")

        handle = await runtime.submit("ending", retry=THRICE)
        await handle.wait()
        assert 1 == len(calls)
        if end != "complete":
            waiting = await runtime.submit("fail", retry=THRICE)
            await anyio.wait_all_tasks_blocked()
            ends[end](waiting.task)
            result = await waiting.wait()
            assert (TaskState.FAILED if end == "fail" else TaskState.CANCELED, 1) == (result.state, result.attempt)
            assert 0.0 < anyio.current_time()
        await check_at_rest(runtime, 1)


@simulate(runs=5)
async def test_started_by_somebody_else_while_it_waits() -> None:
    """He executes it then; the runtime lets go of it."""
    async with runtime_of(in_flight=1) as runtime:
        handle = await runtime.submit("fail", retry=THRICE)
        await anyio.wait_all_tasks_blocked()
        handle.task.start()
        await handle.wait()
        assert TaskState.RUNNING is handle.state
        await check_at_rest(runtime, 1)


async def test_a_waiting_task_is_stored() -> None:
    """`to_dict` has the moment; a task that has begun again has none any more."""
    moment = datetime(2030, 1, 2, tzinfo=UTC)
    task = BaseTask.create("work").start().retry({"message": "once"}, moment)
    stored = task.to_dict()
    again = BaseTask.from_dict(stored)
    assert moment.isoformat() == stored["not_before"]
    assert (moment, 1, 1, TaskState.PENDING) == (again.not_before, again.attempt, again.failures, again.state)
    assert stored == again.to_dict()
    assert (None, 2) == (again.start().not_before, again.attempt)
    assert again.to_dict()["not_before"] is None
    del stored["not_before"]
    assert BaseTask.from_dict(stored).not_before is None


def test_what_retry_refuses() -> None:
    """A moment without a time zone, an error that is none; and every state but RUNNING."""
    task = BaseTask.create("work").start()
    with pytest.raises(ConfigurationError, match="not_before of a task must be a datetime with its time zone"):
        task.retry({}, datetime(2030, 1, 2))  # noqa: DTZ001
    with pytest.raises(ConfigurationError, match="error of a task must be a mapping"):
        task.retry(3, datetime(2030, 1, 2, tzinfo=UTC))  # type: ignore[arg-type]
    task.retry({}, datetime(2030, 1, 2, tzinfo=UTC), counts=False)
    assert (0, TaskState.PENDING) == (task.failures, task.state)
    with pytest.raises(TaskStateError, match="cannot retry: it is PENDING"):
        task.retry({}, datetime(2030, 1, 2, tzinfo=UTC))


def test_events_of_many_retries_are_capped() -> None:
    """The newest are kept, and the end is among them."""
    task = BaseTask.create("work")
    for _ in range(300):
        task.start().retry({}, datetime(2030, 1, 2, tzinfo=UTC))
    assert len(task.events) <= BaseTask.max_events
    task.start().complete({})
    assert (BaseTask.max_events, 602) == (len(task.events), task.events[-1].sequence)
    assert ["task_started", "task_completed"] == [event.event_type for event in task.events[-2:]]


@simulate(runs=3)
async def test_failures_of_another_process_count() -> None:
    """A task that was taken over goes on counting."""
    task = BaseTask.from_dict(BaseTask.create("fail").start().retry({}, datetime(2020, 1, 2, tzinfo=UTC)).to_dict())
    async with runtime_of() as runtime:
        with pytest.raises(TaskExecutionError):
            await runtime.run(task, retry=THRICE)
    assert (3, 3) == (task.attempt, task.failures)


# What may not happen.


@simulate(runs=3)
async def test_a_condition_that_ends_the_program() -> None:
    """What no `except Exception` may catch goes on, and the task is settled before."""

    def condition(error: Exception) -> bool:
        raise SystemExit(3)

    task = BaseTask.create("fail")
    async with runtime_of(in_flight=1) as runtime:
        with pytest.raises(SystemExit):
            await runtime.run(task, retry=RetryPolicy(retry_if=condition))
        assert TaskState.FAILED is task.state
        await check_at_rest(runtime, 1)


@attrs.define(kw_only=True, eq=False)
class Broken(BaseTask):
    """A task that cannot be retried."""

    def retry(self, error: Mapping[str, Any], not_before: datetime, *, counts: bool = True) -> Self:
        raise KeyError("of the subclass")


@simulate(runs=3)
async def test_a_task_that_breaks_when_it_is_retried() -> None:
    """It fails by its own error, and what broke is raised at the exit."""
    task = Broken.create("fail", {"n": 1})
    with pytest.raises(AgentCrashedError) as caught:
        async with runtime_of(in_flight=1) as runtime:
            with pytest.raises(TaskExecutionError, match="number 1"):
                await runtime.run(task, retry=THRICE)
            await check_at_rest(runtime, 1)
    assert [KeyError] == [type(error) for error in caught.value.exceptions]
    assert TaskState.FAILED is task.state


@simulate(runs=3)
async def test_a_sink_that_ends_the_program() -> None:
    """The same of who hears of a retry."""

    def sink(event: Any) -> None:
        if event.event_type == "task_retried":
            raise SystemExit(3)

    task = BaseTask.create("fail")
    async with runtime_of(in_flight=1) as runtime:
        end = runtime.subscribe(sink)
        with pytest.raises(SystemExit):
            await runtime.run(task, retry=THRICE)
        end()
        assert (TaskState.FAILED, 0) == (task.state, runtime.statistics().tasks.waiting_for_retry)
        await check_at_rest(runtime, 1)


@simulate(runs=3, backends=["asyncio"])
async def test_a_native_cancellation_is_not_retried() -> None:
    """Whoever turns `Task.cancel()` into another error is not executed again."""
    import asyncio  # noqa: PLC0415 - only where it runs

    times: list[float] = []
    async with runtime_of() as runtime:

        @runtime.handler("turning")
        async def turning(given: dict[str, Any]) -> None:
            times.append(anyio.current_time())
            try:
                await anyio.sleep_forever()
            except asyncio.CancelledError:
                raise ValueError("instead of it") from None

        job = asyncio.ensure_future(runtime.run("turning", retry=THRICE))
        await anyio.wait_all_tasks_blocked()
        job.cancel()
        with pytest.raises(TaskExecutionError) as caught:
            await job
    assert ([0.0], str(GaveUp.CANCELED)) == (times, caught.value.details["error"]["gave_up"])


@simulate(runs=3)
async def test_a_moment_beyond_every_calendar() -> None:
    """An error may ask for any time."""
    error = ValueError("much later")
    error.retry_after = 1e15  # type: ignore[attr-defined]
    async with runtime_of() as runtime:
        flaky(runtime, error)
        handle = await runtime.submit("flaky", retry=THRICE)
        await anyio.wait_all_tasks_blocked()
        assert handle.task.not_before is not None
        assert 9999 == handle.task.not_before.year


@simulate(runs=3)
async def test_what_a_runtime_tells_of_retries() -> None:
    """An event each, with the wait; statistics."""
    async with runtime_of() as runtime:
        task = BaseTask.create("fail")
        with pytest.raises(TaskExecutionError):
            await runtime.run(task, retry=THRICE)
        told = [event for event in runtime.events() if event.data.get("task_id") == task.id]
        assert [
            "task_accepted",
            "task_started",
            "task_retried",
            "task_started",
            "task_retried",
            "task_started",
            "task_failed",
        ] == [event.event_type for event in told]
        assert {"task_id": task.id, "type": "fail", "attempt": 1, "wait": 1.0} == told[2].data
        statistics = runtime.statistics().tasks
        assert (1, 1, 2, 0) == (
            statistics.accepted,
            statistics.failed,
            statistics.retried,
            statistics.waiting_for_retry,
        )


async def test_an_agent_of_its_own_is_made_for_each_execution() -> None:
    """A class gives a fresh agent to each attempt, and each is terminated."""
    ended: list[str] = []
    async with runtime_of() as runtime:

        class Once(BaseAgent):
            async def initialize(self) -> bool:
                return True

            async def process(self, context: AgentContext) -> AgentResult:
                if not ended:
                    raise ValueError("the first of them")
                return AgentResult.success_result({})

            async def handle_error(self, error: Exception, context: AgentContext) -> AgentResult:
                return AgentResult.error_result(str(error))

            async def terminate(self) -> None:
                ended.append(self.name)

        runtime.registry("agents").register("once", lambda: Once(AgentConfig("once", "once")))
        await runtime.run("once", retry=RetryPolicy(backoff=Backoff(0, maximum=0)))
    assert ["once", "once"] == ended


# Under faults.

PATIENT = RetryPolicy(attempts=1_000, backoff=Backoff(0.5, maximum=8.0))


@simulate(runs=8)
async def test_everything_is_done_once_the_faults_stop() -> None:
    """Errors, hangs, rejections, cancellations of callers: when there are none any more, all tasks end, and well."""
    until = 60.0
    random = sources.get().random
    async with runtime_of(in_flight=2, queue=3, retry=PATIENT, retry_budget=None, grace=600) as runtime:

        async def service() -> None:
            await anyio.sleep(random.random())
            if anyio.current_time() < until and random.random() < 0.7:
                raise OSError("down")

        @runtime.handler("work")
        async def work(given: dict[str, Any], context: AgentContext) -> dict[str, Any]:
            fate = random.random() if anyio.current_time() < until else 1.0
            if fate < 0.2:
                await anyio.sleep_forever()
            if fate < 0.4:
                raise ValueError("by chance")
            await context.breaker("service", CircuitBreakerConfig(reset_timeout_ms=2_000)).execute(service)
            if given.get("child"):
                await context.run("work", {"n": given["n"]}, timeout=3)
            return {"n": given["n"]}

        handles = [
            await runtime.submit("work", {"n": number, "child": number % 3 == 0}, timeout=10, idle_timeout=5)
            for number in range(12)
        ]
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(lambda: runtime.run("work", {"n": "run"}, timeout=5))
            with anyio.move_on_after(20):
                await runtime.run("work", {"n": "gives up"}, timeout=5)
        for number, handle in enumerate(handles):
            assert {"n": number} == await handle.result()
        assert anyio.current_time() < until + 120
        assert 0 == len(runtime.tasks.dead_letters)
        await runtime.tasks.wait_idle()
        await check_at_rest(runtime, 2)


@simulate(runs=2)
async def test_a_storm_of_retries_keeps_nobody_from_his_turn() -> None:
    """Thirty that fail again and again line up behind whoever has come before, whatever their priority was worth."""
    policy = RetryPolicy(attempts=30, backoff=Backoff(0.1, 1.0, jitter=False))
    async with runtime_of(in_flight=1, queue=300, retry_budget=None) as runtime:

        @runtime.handler("storm")
        async def storm(given: dict[str, Any]) -> None:
            await anyio.sleep(0.01)
            raise ValueError("again")

        for _ in range(30):
            await runtime.submit("storm", retry=policy)
        await anyio.sleep(2)
        waits: list[float] = []
        for number in range(5):
            began = anyio.current_time()
            assert {"n": number} == await runtime.run("echo", {"n": number})
            waits.append(anyio.current_time() - began)
        # No more than each of the thirty once.
        assert max(waits) <= 30 * 0.01 + 1e-6
        for handle in runtime.tasks.active():
            handle.cancel()
