"""Tests of the circuit breakers of a runtime: by name, told of in its events, probed in its task group."""

from __future__ import annotations

import threading
from typing import Any

import anyio
import anyio.to_thread
import pytest

from agentcore import (
    AgentContext,
    AgentError,
    AgentRuntime,
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitOpenError,
    ConfigurationError,
    get_circuit_breaker,
)
from agentcore.testing import simulate

CONFIG = CircuitBreakerConfig(failure_threshold=1, success_threshold=2, reset_timeout_ms=10_000)


class Service:
    """Fails until it is healthy, and counts."""

    def __init__(self) -> None:
        self.healthy = False
        self.probes: list[float] = []

    async def probe(self) -> None:
        self.probes.append(anyio.current_time())
        await self.fetch()

    async def fetch(self) -> str:
        await anyio.sleep(0.5)
        if not self.healthy:
            raise OSError("down")
        return "page"


async def opened(breaker: CircuitBreaker, service: Service) -> None:
    """Open a circuit by a call."""
    with pytest.raises(OSError, match="down"):
        await breaker.execute(service.fetch)
    assert breaker.is_open


@simulate(runs=5)
async def test_a_runtime_has_breakers_of_its_own() -> None:
    """One for each name, and none of the process."""
    async with AgentRuntime() as runtime, AgentRuntime() as other:
        breaker = runtime.breaker("api", CONFIG)
        assert breaker is runtime.breaker("api") is runtime.breaker("api", CONFIG)
        assert breaker is not other.breaker("api")
        assert breaker is not get_circuit_breaker("api")
        with pytest.raises(ConfigurationError, match="circuit 'api' exists with another config"):
            runtime.breaker("api", CircuitBreakerConfig())
        with pytest.raises(ConfigurationError, match="circuit 'api' exists with another probe"):
            runtime.breaker("api", probe=Service().probe)
        with pytest.raises(ConfigurationError, match="name of a circuit breaker"):
            runtime.breaker("")


@simulate(runs=5)
async def test_agents_and_handlers_reach_them_through_their_context() -> None:
    """The same breaker, whoever asks."""
    async with AgentRuntime() as runtime:

        @runtime.handler("fetch")
        async def fetch(_input: Any, context: AgentContext) -> dict[str, Any]:
            return {"same": context.breaker("api") is runtime.breaker("api")}

        assert {"same": True} == await runtime.run("fetch")
    with pytest.raises(AgentError, match="breaker of an AgentContext works inside a runtime only"):
        AgentContext().breaker("api")


@simulate(runs=5)
async def test_what_happens_to_them_is_told_by_the_events_of_the_runtime() -> None:
    """With the name of the circuit."""
    service = Service()
    async with AgentRuntime() as runtime:
        await opened(runtime.breaker("api", CONFIG), service)
        (event,) = [event for event in runtime.events() if event.event_type.startswith("circuit")]
        assert "circuit_opened" == event.event_type
        assert ("api", "OSError: down", 10.0) == (
            event.data["circuit_name"],
            event.data["reason"],
            event.data["retry_after"],
        )


@simulate(runs=10)
async def test_the_runtime_probes_so_that_no_caller_has_to() -> None:
    """When the circuit is due, and as often as it takes; callers are rejected until it has closed."""
    service = Service()
    async with AgentRuntime() as runtime:
        breaker = runtime.breaker("api", CONFIG, probe=service.probe)
        await opened(breaker, service)
        began = anyio.current_time()
        await anyio.sleep(10.1)
        with pytest.raises(CircuitOpenError):  # the first probe is under way
            await breaker.execute(service.fetch)
        await anyio.sleep(1)
        assert breaker.is_open
        service.healthy = True
        await anyio.sleep(20)
        assert breaker.is_closed
        assert [10.0, 20.5, 21.0] == [round(at - began, 3) for at in service.probes]
        assert "page" == await breaker.execute(service.fetch)


@simulate(runs=10)
async def test_a_breaker_that_is_made_before_the_runtime_is_entered_is_probed_in_it() -> None:
    """And no longer: afterwards callers probe."""
    service = Service()
    runtime = AgentRuntime()
    breaker = runtime.breaker("api", CONFIG, probe=service.probe)
    await opened(breaker, service)
    await anyio.sleep(60)
    assert [] == service.probes
    async with runtime:
        await anyio.sleep(1)
        assert 1 == len(service.probes)
        assert breaker.is_open
    service.healthy = True
    await anyio.sleep(60)
    assert 1 == len(service.probes)
    assert "page" == await breaker.execute(service.fetch)
    assert breaker.is_half_open


@simulate(runs=10)
async def test_a_probe_under_way_is_cancelled_with_the_runtime_and_says_nothing() -> None:
    """The permit is returned: the next caller is the probe."""
    service = Service()
    async with AgentRuntime() as runtime:
        breaker = runtime.breaker("api", CONFIG, probe=service.probe)
        await opened(breaker, service)
        await anyio.sleep(10.2)
        assert breaker.is_half_open
        failures = breaker.metrics.failures
    assert (failures, 1) == (breaker.metrics.failures, breaker.metrics.canceled)
    service.healthy = True
    assert "page" == await breaker.execute(service.fetch)
    assert runtime.breaker("api") is breaker
    runtime.breaker("late", CONFIG, probe=service.probe)  # nobody probes it any more; nothing hangs


@simulate(runs=10)
async def test_a_circuit_that_opens_in_another_thread_is_probed_and_told_of() -> None:
    """Handlers that are plain functions use breakers there."""
    service = Service()
    service.healthy = True

    def fail() -> None:
        raise OSError("down")

    def make_and_fail() -> None:
        breaker = runtime.breaker("api", CONFIG, probe=service.probe)
        assert threading.current_thread() is not threading.main_thread()
        with pytest.raises(OSError, match="down"):
            breaker.call(fail)

    async with AgentRuntime() as runtime:
        await anyio.to_thread.run_sync(make_and_fail)
        await anyio.sleep(30)
        assert runtime.breaker("api").is_closed
        assert 2 == len(service.probes)
        names = [event.event_type for event in runtime.events() if event.event_type.startswith("circuit")]
        assert ["circuit_opened", "circuit_half_opened", "circuit_closed"] == names


@simulate(runs=3)
async def test_a_foreign_thread_cannot_have_the_runtime_probe() -> None:
    """It is told so, and nothing is half made."""
    async with AgentRuntime() as runtime:
        found: list[object] = []

        def make() -> None:
            try:
                runtime.breaker("api", CONFIG, probe=Service().probe)
            except ConfigurationError as error:
                found.append(error)
            found.append(runtime.breaker("other"))

        thread = threading.Thread(target=make, name="foreign")
        thread.start()
        thread.join()
        error, other = found
        assert "circuit 'api' with a probe must be made in the event loop of its runtime" in str(error)
        assert other is runtime.breaker("other")
        assert ["other"] == list(runtime.breakers.list_all())
