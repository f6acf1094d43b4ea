"""Calling again with others in mind: circuits that are open, and budgets that are shared."""

from __future__ import annotations

import threading
from typing import Any

import anyio
import pytest

from agentcore import (
    Backoff,
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitOpenError,
    CircuitState,
    ConfigurationError,
    Retry,
    RetryBudget,
)
from agentcore.testing import simulate
from tests.core.fakes import hanging
from tests.core.services import EVEN, NONE, Boom, Service, notes_of

# Open circuits.


def breaker(**settings: Any) -> CircuitBreaker:
    """Make a breaker that opens at the second failure, for ten seconds."""
    return CircuitBreaker(
        "api",
        CircuitBreakerConfig(**{"failure_threshold": 2, "success_threshold": 1, "reset_timeout_ms": 10_000} | settings),
    )


@simulate(runs=5)
async def test_an_open_circuit_is_not_hammered() -> None:
    """The rejection is the end of it; the one before has been noted."""
    circuit, service = breaker(), Service(Boom())
    retry = Retry(9, backoff=EVEN)
    with pytest.raises(CircuitOpenError) as caught:
        await retry.execute(circuit.execute, service)
    assert [0.0, 1.0] == service.at
    assert ["retry 'retry' gave up after 2 attempts: the error is none to retry"] == notes_of(caught.value)
    with pytest.raises(CircuitOpenError) as caught:
        await retry.execute(circuit.execute, service)
    assert ([], 2, 2) == (notes_of(caught.value), len(service.at), circuit.metrics.rejected)
    assert 3.0 == anyio.current_time()


@simulate(runs=5)
async def test_an_open_circuit_can_be_waited_for() -> None:
    """As long as it asks, and a little longer. Rejections are no attempts."""
    circuit, service = breaker(), Service(Boom(), Boom(), "fine")
    assert "fine" == await Retry(3, backoff=EVEN, open_circuit="wait").execute(circuit.execute, service)
    assert [0.0, 1.0] == service.at[:2]
    assert 11.0 <= service.at[2] <= 12.0
    assert (1, CircuitState.CLOSED) == (circuit.metrics.rejected, circuit.state)


@simulate(runs=5)
async def test_those_who_wait_for_a_circuit_do_not_come_at_once() -> None:
    """They are spread over the backoff, though all were told the same moment."""
    circuit = breaker()
    for _ in range(2):
        await circuit.on_failure("Boom")
    came: list[float] = []

    async def attempt() -> None:
        came.append(anyio.current_time())

    async with anyio.create_task_group() as group:
        for _ in range(20):
            group.start_soon(Retry(1, backoff=EVEN, open_circuit="wait").execute, circuit.execute, attempt)
    assert 20 == len(came) == len(set(came))
    assert 10.0 <= came[0]
    assert came[-1] <= 11.0


@simulate(runs=5)
async def test_waiting_for_a_circuit_ends_in_time() -> None:
    """By the deadline, by max_elapsed, and if nobody knows when; the rejection is raised at once then."""
    circuit, service = breaker(), Service("fine")
    for _ in range(2):
        await circuit.on_failure("Boom")
    with pytest.raises(CircuitOpenError) as caught:
        await Retry(open_circuit="wait", max_elapsed=5).execute(circuit.execute, service)
    assert notes_of(caught.value) == [
        "retry 'retry' gave up after 0 attempts: max_elapsed is over before the next attempt could begin"
    ]
    with pytest.raises(CircuitOpenError) as caught, anyio.fail_after(9):
        await Retry(open_circuit="wait").execute(circuit.execute, service)
    assert notes_of(caught.value) == [
        "retry 'retry' gave up after 0 attempts: the caller's deadline comes before the next attempt could begin"
    ]
    with circuit.isolate(), pytest.raises(CircuitOpenError) as caught:
        await Retry(open_circuit="wait").execute(circuit.execute, service)
    assert caught.value.retry_after is None
    assert notes_of(caught.value) == [
        "retry 'retry' gave up after 0 attempts: the circuit is open, and nobody knows for how long"
    ]
    assert (0.0, []) == (anyio.current_time(), service.at)


# Budgets.


@simulate(runs=2)
async def test_a_budget_limits_retries() -> None:
    """Ten at first; then one for each five calls, and one for each second."""
    budget = RetryBudget(ratio=0.2, per_second=1.0, capacity=10)
    service = Service(Boom())
    retry = Retry(2, backoff=NONE, budget=budget)
    for _ in range(100):
        with pytest.raises(Boom) as caught:
            await retry.execute(service)
    # The first ones are paid out of what was saved up: ten, and a fifth for each call in the meantime.
    assert 100 + 29 == len(service.at)
    assert ["retry 'retry' gave up after 1 attempt: the retry budget is used up"] == notes_of(caught.value)
    assert budget.available < 1.0
    await anyio.sleep(3)
    service.at.clear()
    for _ in range(10):
        with pytest.raises(Boom):
            await retry.execute(service)
    assert 10 + 5 <= len(service.at) <= 10 + 6


@simulate(runs=2)
async def test_a_budget_can_be_shared() -> None:
    """By several layers; rejections of an open circuit cost nothing."""
    budget = RetryBudget(ratio=0, per_second=0.001, capacity=2)
    one, other = Retry(backoff=NONE, budget=budget), Retry(backoff=NONE, budget=budget, open_circuit="wait")
    assert "fine" == await one.execute(Service(Boom(), "fine"))
    assert "fine" == await other.execute(Service(CircuitOpenError("", {"retry_after": 1.0}), "fine"))
    assert "fine" == await other.execute(Service(Boom(), "fine"))
    assert "<RetryBudget 0.001 of 2>" == repr(budget)
    with pytest.raises(Boom):
        await one.execute(Service(Boom(), "fine"))


@simulate(runs=5)
async def test_a_retry_that_is_cancelled_before_it_begins_is_not_paid_for() -> None:
    """That of a rejected call never was."""
    budget = RetryBudget(ratio=0, per_second=0.001, capacity=1)
    retry = Retry(backoff=Backoff(100, 1, 100, jitter=False), budget=budget, open_circuit="wait")
    for error in (Boom(), CircuitOpenError("", {"retry_after": 100.0})):
        async with anyio.create_task_group() as group:
            group.start_soon(retry.execute, Service(error))
            await anyio.sleep(1)
            assert (budget.available < 0.1) == isinstance(error, Boom)
            group.cancel_scope.cancel()
        assert 1 == budget.available
    with anyio.move_on_after(200):
        await Retry(backoff=EVEN).execute(hanging)
    assert 1 == budget.available


@simulate(runs=5)
async def test_a_retry_that_an_open_circuit_rejects_is_not_paid_for() -> None:
    """It has reached nobody. The one after the circuit has been waited for is paid for once."""
    budget = RetryBudget(ratio=0, per_second=0, capacity=5)
    with pytest.raises(CircuitOpenError):
        await Retry(9, backoff=NONE, budget=budget).execute(breaker().execute, Service(Boom()))
    assert 4 == budget.available
    retry = Retry(9, backoff=NONE, budget=budget, open_circuit="wait")
    assert "fine" == await retry.execute(breaker().execute, Service(Boom(), Boom(), "fine"))
    assert 2 == budget.available
    async with anyio.create_task_group() as group:
        group.start_soon(retry.execute, breaker().execute, Service(Boom()))
        await anyio.sleep(5)
        assert 0 == budget.available
        group.cancel_scope.cancel()
    assert 1 == budget.available


def test_a_budget_can_be_shared_by_threads() -> None:
    """No retry is paid for twice, none for nothing."""
    budget = RetryBudget(ratio=0, per_second=0, capacity=1000)
    won: list[int] = []

    def spend() -> None:
        won.append(sum(budget._spend() for _ in range(1000)))

    threads = [threading.Thread(target=spend) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 1000 == sum(won)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ratio": -1}, "ratio of a RetryBudget must be a number, 0 or more: got -1; use 0 for none"),
        ({"per_second": None}, "per_second of a RetryBudget must be a number, 0 or more: got None; use 0 for none"),
        (
            {"capacity": 0.5},
            "capacity of a RetryBudget must be a number, 1 or more: got 0.5; say how many retries can be saved up",
        ),
    ],
)
def test_budgets_that_cannot_be_used(settings: dict[str, Any], message: str) -> None:
    """Each message says what it must be, what it was, and what to do."""
    with pytest.raises(ConfigurationError) as caught:
        RetryBudget(**settings)
    assert message == str(caught.value)
