"""Tests of the names by which faults hit agentcore itself."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from agentcore import (
    AgentConfig,
    AgentContext,
    AgentResult,
    AgentRuntime,
    BaseAgent,
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitOpenError,
    QueueWorkerPoolConfig,
    Registry,
    TaskFactory,
    ThreadWorkerPool,
    WorkerTimeoutError,
)
from agentcore.testing import BACKENDS, InjectedFault, known_kinds, run_sim

backends = pytest.mark.parametrize("backend", BACKENDS)


class Planner(BaseAgent):
    """Plans for a second."""

    async def initialize(self) -> bool:
        return True

    async def process(self, context: AgentContext) -> AgentResult:
        await anyio.sleep(1)
        return AgentResult.success_result({"plan": ["a"]})

    async def handle_error(self, error: Exception, context: AgentContext) -> AgentResult:
        return AgentResult.error_result(error)


class CarefulPlanner(Planner):
    """Calls the method that it overrides: still one call."""

    async def process(self, context: AgentContext) -> AgentResult:
        return await super().process(context)


def _planner(cls: type[Planner] = Planner, name: str = "planner") -> Planner:
    return cls(AgentConfig(name=name, agent_type="planner", timeout=5))


async def _execute(cls: type[Planner], name: str = "planner") -> tuple[bool, str, float]:
    context = AgentContext(task=TaskFactory.create_task("plan", {}))
    result = await _planner(cls, name).execute(context)
    error = "" if result.error is None else type(result.error).__name__
    return result.success, error, anyio.current_time()


@backends
@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        ("agent:planner#2:raise", (True, "", 1.0)),
        ("agent:planner#1:raise", (False, "InjectedFault", 0.0)),
        ("agent:planner#1:raise_after(OSError)", (False, "OSError", 1.0)),
        ("agent:planner#1:delay(2)", (True, "", 3.0)),
        ("agent:planner#1:hang", (False, "AgentTimeoutError", 5.0)),
        ("agent:planner.initialize#1:hang", (False, "AgentInitializationError", 5.0)),
        ("agent:somebody#1:raise", (True, "", 1.0)),
    ],
)
@pytest.mark.parametrize("cls", [Planner, CarefulPlanner])
def test_faults_hit_the_methods_of_an_agent(backend: Any, cls: type[Planner], plan: str, expected: Any) -> None:
    """A hang runs into the agent's own deadline, an exception into its own handler."""
    result = run_sim(_execute, cls, backend=backend, plan=plan)
    assert expected == result.unwrap()


@backends
def test_a_corrupt_result_is_refused(backend: Any) -> None:
    success, error, _now = run_sim(_execute, Planner, backend=backend, plan="agent:planner#1:corrupt").unwrap()
    assert (False, "AgentResultError") == (success, error)


@backends
def test_a_name_with_dots_is_a_name(backend: Any) -> None:
    """Only the names of methods are cut off."""
    result = run_sim(_execute, Planner, "team.planner", backend=backend, plan="agent:team.planner#1:raise")
    assert (False, "InjectedFault", 0.0) == result.unwrap()


@backends
@pytest.mark.parametrize("target", ["handler:work", "agent:work", "thread:work"])
def test_faults_hit_handlers_and_their_threads(backend: Any, target: str) -> None:
    async def main() -> str:
        async with AgentRuntime() as runtime:

            @runtime.handler("work")
            def work(input: Any) -> dict[str, int]:
                return {"n": 1}

            handle = await runtime.submit("work", {})
            result = await handle.wait()
            assert result.error is not None
            return str(result.error)

    result = run_sim(main, backend=backend, plan=f"{target}#1:raise")
    assert "InjectedFault" in result.unwrap()
    assert (f"{target}#1:raise(InjectedFault)",) == result.fired


@backends
def test_faults_hit_the_look_up_of_a_registry(backend: Any) -> None:
    async def main() -> list[Any]:
        tools: Registry[int] = Registry("tools")
        other: Registry[int] = Registry("other")
        tools.register("one", 1)
        other.register("one", 2)
        found: list[Any] = [await other.get("one")]
        try:
            await tools.get("one")
        except InjectedFault:
            found.append("fault")
        return [*found, await tools.get("one")]

    assert [2, "fault", 1] == run_sim(main, backend=backend, plan="registry:tools#1:raise").unwrap()


async def _call_through(breaker_name: str) -> tuple[str, int, float, int]:
    breaker = CircuitBreaker(breaker_name, CircuitBreakerConfig(failure_threshold=1))

    @breaker
    async def fetch(what: str) -> str:
        await anyio.sleep(1)
        return what

    try:
        with anyio.move_on_after(5):
            answer = await fetch("page")
    except (InjectedFault, OSError) as error:
        answer = type(error).__name__
    try:
        answer += await breaker.execute(str.upper, "+sync")
    except (CircuitOpenError, OSError) as error:
        answer += type(error).__name__
    return answer, breaker.metrics.failures, anyio.current_time(), breaker.metrics.successes


@backends
@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        ("", ("page+SYNC", 0, 1.0, 2)),
        ("breaker:api#1:raise", ("InjectedFaultCircuitOpenError", 1, 0.0, 0)),
        ("breaker:api#1:raise_after(OSError)", ("OSErrorCircuitOpenError", 1, 1.0, 0)),
        ("breaker:api#1:delay(2)", ("page+SYNC", 0, 3.0, 2)),
        ("breaker:api#2:raise(OSError)", ("pageOSError", 1, 1.0, 1)),
        ("breaker:api#2:delay(2)", ("page+SYNC", 0, 3.0, 2)),
        ("breaker:other#1:raise", ("page+SYNC", 0, 1.0, 2)),
    ],
)
def test_faults_hit_what_a_breaker_calls(backend: Any, plan: str, expected: Any) -> None:
    """Within the breaker, which counts them; what it rejects is no call."""
    assert expected == run_sim(_call_through, "api", backend=backend, plan=plan).unwrap()


async def _open_twice(name: str) -> tuple[list[str], float]:
    seen: list[str] = []

    @asynccontextmanager
    async def pool() -> AsyncIterator[str]:
        seen.append("opened")
        yield "pool"
        seen.append("closed")

    async with AgentRuntime() as runtime:
        manager = pool()
        for _ in range(2):
            try:
                seen.append(await runtime.resource(manager, name))
            except (InjectedFault, OSError) as error:
                seen.append(type(error).__name__)
    return seen, anyio.current_time()


@backends
@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        ("resource:db#1:raise", (["InjectedFault", "opened", "pool", "closed"], 0.0)),
        ("resource:db#1:raise_after(OSError)", (["opened", "OSError", "pool", "closed"], 0.0)),
        ("resource:db#1:delay(2)", (["opened", "pool", "pool", "closed"], 2.0)),
        ("resource:other#1:raise", (["opened", "pool", "pool", "closed"], 0.0)),
    ],
)
def test_faults_hit_the_opening_of_a_resource(backend: Any, plan: str, expected: Any) -> None:
    """After a fault behind it, it is open all the same, and closed once."""
    assert expected == run_sim(_open_twice, "db", backend=backend, plan=plan).unwrap()


def _double(number: int) -> int:
    return 2 * number


async def _double_later(number: int) -> int:
    await anyio.lowlevel.checkpoint()
    return 2 * number


async def _submit_twice(name: str, kind: str) -> tuple[list[Any], int, float]:
    double: Any = _double if kind == "thread" else _double_later
    seen: list[Any] = []
    async with AgentRuntime() as runtime:
        pool = runtime.pool(name, kind)
        for number in (1, 2):
            try:
                seen.append(await pool.options(timeout=4.0).asubmit(double, number))
            except (InjectedFault, OSError, WorkerTimeoutError) as error:
                seen.append(type(error).__name__)
        return seen, pool.metrics.succeeded, anyio.current_time()


@backends
@pytest.mark.parametrize("kind", ["thread", "queue_asyncio", "asyncio"])
@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        ("pool:pages#1:raise", (["InjectedFault", 4], 1, 0.0)),
        ("pool:pages#2:raise_after(OSError)", ([2, "OSError"], 2, 0.0)),
        ("pool:pages#1:delay(9)", ([2, 4], 2, 9.0)),
        ("pool:pages#2:corrupt('no number')", ([2, "no number"], 2, 0.0)),
        ("pool:pages#1:duplicate", ([2, 4], 3, 0.0)),
        ("pool:other#1+:raise", ([2, 4], 2, 0.0)),
    ],
)
def test_faults_hit_the_jobs_of_a_pool(backend: Any, kind: str, plan: str, expected: Any) -> None:
    """Of each kind, around the hand-over: a delay comes before it, and is no part of the job's own time."""
    assert expected == run_sim(_submit_twice, "pages", kind, backend=backend, plan=plan).unwrap()


@backends
def test_faults_hit_views_and_maps_of_a_pool(backend: Any) -> None:
    """Each item is a call. What is handed over by `submit`, so that nobody waits for it here, is none."""

    async def main() -> list[Any]:
        async with AgentRuntime() as runtime:
            pool = runtime.pool("pages", "queue_asyncio", QueueWorkerPoolConfig(workers=1))
            await pool.submit(_double_later, 1)
            found = await pool.amap(_double_later, (1, 2))
            async with pool.options(timeout=5.0).as_completed(_double_later, (3, 4)) as results:
                found += [one.error or one.value async for one in results]
            return [type(one).__name__ if isinstance(one, Exception) else one for one in found]

    result = run_sim(main, backend=backend, plan="pool:pages#2:raise; pool:pages#4:raise(OSError)")
    assert sorted([2, "InjectedFault", 6, "OSError"], key=str) == sorted(result.unwrap(), key=str)


@backends
def test_faults_hit_a_pool_of_nobody(backend: Any) -> None:
    """Also one that was made before, and belongs to no runtime."""
    with ThreadWorkerPool("pages") as pool:

        async def main() -> int:
            return await pool.asubmit(_double, 1)

        assert isinstance(run_sim(main, backend=backend, plan="pool:pages#1:raise").error, InjectedFault)
        assert 2 == run_sim(main, backend=backend).unwrap()


def test_the_kinds_are_known() -> None:
    assert {"agent", "breaker", "handler", "pool", "registry", "resource", "thread"} <= set(known_kinds())
