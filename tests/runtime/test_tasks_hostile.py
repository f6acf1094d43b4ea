"""Tasks that come to their ends by odd ways: what is recorded, counted and kept of them."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from typing import Any

import anyio
import pytest

from agentcore import (
    AgentConfig,
    AgentContext,
    AgentCrash,
    AgentCrashedError,
    AgentResult,
    AgentRuntime,
    Backoff,
    BaseAgent,
    BaseTask,
    ConfigurationError,
    RetryPolicy,
    RuntimeConfig,
)
from agentcore._interop import sources
from agentcore.testing import simulate
from tests.runtime.parts import echo, fail, hang

pytestmark = pytest.mark.anyio
TWICE = RetryPolicy(attempts=2, backoff=Backoff(0, maximum=0))


def runtime_of(*, grace: float = 0, **settings: Any) -> AgentRuntime:
    """Make a runtime with the handlers ``echo``, ``fail`` and ``hang``."""
    runtime = AgentRuntime(RuntimeConfig(**settings), grace=grace)
    for function in (echo, fail, hang):
        runtime.handler(function.__name__)(function)
    return runtime


@simulate(runs=3)
async def test_a_task_whose_input_was_let_go_ends_all_the_same() -> None:
    """An agent may set a large input free; the letter of the task has none then."""
    async with runtime_of() as runtime:

        @runtime.handler("lets go")
        async def lets_go(given: dict[str, Any], context: AgentContext) -> None:
            assert context.task is not None
            context.task.input = None  # type: ignore[assignment]
            raise ValueError("boom")

        handle = await runtime.submit("lets go", {"n": 1}, retry=RetryPolicy(attempts=1))
        with anyio.move_on_after(10):
            await handle.wait()
        assert handle.is_done


class Unkind(BaseAgent):
    """An agent that hangs, and does not handle what comes of it."""

    async def initialize(self) -> bool:
        if self.config.metadata["hangs"] == "initialize":
            await anyio.sleep_forever()
        return True

    async def process(self, context: AgentContext) -> AgentResult:
        await anyio.sleep_forever()
        raise AssertionError("unreachable")

    async def handle_error(self, error: Exception, context: AgentContext) -> AgentResult:
        if self.config.metadata["hangs"] == "initialize":
            return AgentResult.error_result(str(error))
        raise error


@pytest.mark.parametrize("hangs", ["initialize", "process"])
@pytest.mark.parametrize(("name", "which"), [("timeout", "timeout"), ("deadline", "total"), ("idle_timeout", "idle")])
@simulate(runs=2)
async def test_which_deadline_fired_is_recorded(name: str, which: str, hangs: str) -> None:
    """Also if it fires while the agent is initialised, or if the agent does not handle what comes of it."""
    async with runtime_of() as runtime:
        config = AgentConfig("unkind", "test", metadata={"hangs": hangs})
        runtime.registry("agents").register("unkind", partial(Unkind, config))
        handle = await runtime.submit("unkind", **{name: 1})
        await handle.wait()
        assert which == (handle.task.error or {}).get("deadline")


@simulate(runs=2)
async def test_what_an_open_circuit_has_rejected_is_no_failure_in_the_end_either() -> None:
    """It is one more attempt, but no execution has failed."""
    async with runtime_of() as runtime:
        breaker = runtime.breaker("service")

        @runtime.handler("call")
        async def call(given: dict[str, Any]) -> Any:
            return await breaker.execute(echo, given)

        with breaker.isolate():
            handle = await runtime.submit("call", retry=TWICE)
            await handle.wait()
        assert (1, 0) == (handle.task.attempt, handle.task.failures)


@simulate(runs=2)
async def test_what_was_never_executed_has_no_failed_execution() -> None:
    """Its deadline came while it waited for its turn."""
    async with runtime_of(in_flight=1) as runtime:
        await runtime.submit("hang")
        handle = await runtime.submit("echo", queue_timeout=1)
        await handle.wait()
        assert (0, 0) == (handle.task.attempt, handle.task.failures)


@simulate(runs=2)
async def test_progress_of_an_earlier_execution_is_no_sign_of_life_of_the_next() -> None:
    """What the first one has left behind, a thread for instance, does not keep alive the second one, which hangs."""
    async with runtime_of() as runtime, anyio.create_task_group() as outside:
        executions = 0

        @runtime.handler("work")
        async def work(given: dict[str, Any], context: AgentContext) -> None:
            nonlocal executions
            executions += 1
            if executions == 1:

                async def later() -> None:
                    for _ in range(10):
                        await anyio.sleep(0.5)
                        context.progress("of the first")

                outside.start_soon(later)
                raise ValueError("first")
            context.progress("of the second")
            await anyio.sleep_forever()

        handle = await runtime.submit("work", idle_timeout=1, retry=TWICE)
        await handle.wait()
        assert (1.0, "of the second") == (anyio.current_time(), handle.progress())


@simulate(runs=2)
async def test_a_task_that_waits_for_its_retry_waits_in_another_runtime_too() -> None:
    """What another process has ordered holds for whoever takes the task over."""
    async with runtime_of() as runtime:
        moment = datetime.fromtimestamp(sources.get().wall() + 100, UTC)
        task = BaseTask.from_dict(BaseTask.create("echo").start().retry({}, moment).to_dict())
        handle = await runtime.submit(task)
        await handle.wait()
        assert anyio.current_time() >= 100


class Able(BaseAgent):
    """An agent that crashes if it is told to."""

    async def initialize(self) -> bool:
        return True

    async def process(self, context: AgentContext) -> AgentResult:
        if self.config.metadata.get("crashes"):
            raise AgentCrash("gone for good")
        return AgentResult.success_result({"by": self.name})

    async def handle_error(self, error: Exception, context: AgentContext) -> AgentResult:
        return AgentResult.error_result(str(error))


@pytest.mark.filterwarnings("ignore")
@simulate(runs=2)
async def test_a_retry_finds_another_agent_that_is_able() -> None:
    """The agent of the first execution is gone for good; another one can do it."""
    with pytest.raises(AgentCrashedError):
        async with runtime_of() as runtime:
            crashing = AgentConfig("a", "test", capabilities={"skill"}, metadata={"crashes": True})
            await runtime.spawn(Able, crashing, restart="temporary")
            await runtime.spawn(Able, AgentConfig("b", "test", capabilities={"skill"}))
            policy = RetryPolicy(attempts=3, backoff=Backoff(1))
            handle = await runtime.submit("anything", requires={"skill"}, retry=policy)
            end = await handle.wait()
    assert {"by": "b"} == end.output


@simulate(runs=2)
async def test_each_attempt_gets_the_input_that_was_submitted() -> None:
    """A handler has a dictionary of its own: what it takes out of it the next execution, and the letter, have all the same."""
    async with runtime_of() as runtime:
        seen: list[Any] = []

        @runtime.handler("takes out")
        async def takes_out(given: dict[str, Any]) -> None:
            seen.append(given.pop("n", "nothing"))
            raise OSError("not now")

        handle = await runtime.submit("takes out", {"n": 1}, retry=TWICE)
        await handle.wait()
        assert [1, 1] == seen
        assert {"n": 1} == runtime.tasks.dead_letters.get(handle.id).input


@simulate(runs=2)
async def test_a_requeued_task_shares_nothing_with_the_old_one() -> None:
    """It is a fresh task."""
    async with runtime_of() as runtime:
        task = BaseTask.create("fail", {"n": 1}, metadata={"who": "me"})
        handle = await runtime.submit(task, retry=TWICE)
        await handle.wait()
        again = await runtime.tasks.dead_letters.requeue(task.id)
        await again.wait()
        assert again.task.input is not task.input
        assert again.task.metadata is not task.metadata


@pytest.mark.parametrize("name", ["timeout", "deadline", "queue_timeout", "idle_timeout"])
@simulate(runs=1)
async def test_a_number_that_no_clock_can_hold_is_refused(name: str) -> None:
    """A whole number may be greater than every time."""
    async with runtime_of() as runtime:
        with pytest.raises(ConfigurationError):
            await runtime.submit("echo", **{name: 10**400})


@pytest.mark.parametrize("name", ["ageing", "grace"])
def test_a_setting_that_no_clock_can_hold_is_refused(name: str) -> None:
    """As above."""
    with pytest.raises(ConfigurationError):
        RuntimeConfig(**{name: 10**400})
