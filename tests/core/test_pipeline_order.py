"""Why the order of the layers matters: the same layers in two orders, and what differs."""

from __future__ import annotations

from typing import Any

import anyio
import anyio.lowlevel
import pytest

from agentcore import (
    Backoff,
    Bulkhead,
    BulkheadFullError,
    CallTimeoutError,
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitOpenError,
    Fallback,
    Layer,
    Pipeline,
    RateLimit,
    RateLimitError,
    Retry,
    RetryBudget,
    Timeout,
)
from agentcore.testing import simulate
from tests.core.fakes import Step, hanging, noting, raising, returning

EVERY_SECOND = Backoff(1, 1, 1, jitter=False)


class Boom(Exception):
    """What the service raises."""


class Failing:
    """A service that fails, and notes when it was called."""

    def __init__(self) -> None:
        self.at: list[float] = []

    async def __call__(self) -> None:
        self.at.append(anyio.current_time())
        raise Boom


async def outcome_of(pipeline: Layer, function: Step) -> Any:
    """Call a function through a pipeline; return what comes of it, and the seconds that it took."""
    outcomes: list[Any] = []
    began = anyio.current_time()
    await noting(outcomes, pipeline.execute, function)
    outcome = outcomes[0]
    return type(outcome) if isinstance(outcome, Exception) else outcome, anyio.current_time() - began


def breaker(threshold: int = 3) -> CircuitBreaker:
    """Make a breaker that opens for a minute."""
    return CircuitBreaker("api", CircuitBreakerConfig(failure_threshold=threshold, reset_timeout_ms=60_000))


# Timeout and Retry.


@simulate(runs=2)
async def test_a_timeout_inside_of_retry_limits_each_attempt() -> None:
    """An attempt that hangs is cut, and there is another one."""
    pipeline = Pipeline(Retry(3, backoff=EVERY_SECOND), Timeout(2))
    assert (CallTimeoutError, 3 * 2 + 2) == await outcome_of(pipeline, hanging)


@simulate(runs=2)
async def test_a_timeout_outside_of_retry_limits_all_of_them() -> None:
    """The caller knows how long it takes at most; what hangs is not tried again."""
    failing = Failing()
    pipeline = Pipeline(Timeout(2), Retry(3, backoff=EVERY_SECOND))
    assert (CallTimeoutError, 2) == await outcome_of(pipeline, hanging)
    # A retry that could not begin in time is not waited for.
    assert (Boom, 1) == await outcome_of(pipeline, failing)
    assert 2 == len(failing.at)


@simulate(runs=2)
async def test_both_limit_an_attempt_and_all_of_them() -> None:
    """Here the third attempt is cut by the outer one."""
    pipeline = Pipeline(Timeout(7, name="all"), Retry(9, backoff=EVERY_SECOND), Timeout(2, name="one"))
    outcomes: list[Any] = []
    await noting(outcomes, pipeline.execute, hanging)
    assert (7.0, "all") == (anyio.current_time(), outcomes[0].details["name"])


# Breaker and Retry.


@simulate(runs=2)
async def test_a_breaker_inside_of_retry_sees_each_attempt() -> None:
    """It opens as soon as the service deserves it, and retry does not hammer it then."""
    circuit, failing = breaker(), Failing()
    pipeline = Pipeline(Retry(5, backoff=EVERY_SECOND), circuit)
    assert (CircuitOpenError, 3) == await outcome_of(pipeline, failing)
    assert (3, 3, 1) == (len(failing.at), circuit.metrics.failures, circuit.metrics.rejected)
    assert (CircuitOpenError, 0) == await outcome_of(pipeline, failing)
    assert 3 == len(failing.at)


@simulate(runs=2)
async def test_a_breaker_outside_of_retry_sees_their_outcome() -> None:
    """So the service is called many times before it opens, and each caller waits through all attempts."""
    circuit, failing = breaker(), Failing()
    pipeline = Pipeline(circuit, Retry(5, backoff=EVERY_SECOND))
    for _ in range(3):
        assert (Boom, 4) == await outcome_of(pipeline, failing)
    assert (15, 3) == (len(failing.at), circuit.metrics.failures)
    assert (CircuitOpenError, 0) == await outcome_of(pipeline, failing)


@simulate(runs=2)
async def test_a_breaker_outside_of_a_timeout_sees_what_hangs() -> None:
    """As a failure; inside, the call is only cancelled, and it takes the reason of that to know better."""
    circuit = breaker(1)
    assert (CallTimeoutError, 2) == await outcome_of(Pipeline(circuit, Timeout(2)), hanging)
    assert (True, {"CallTimeoutError": 1}) == (circuit.is_open, dict(circuit.metrics.failures_by_type))
    inner = breaker(1)
    assert (CallTimeoutError, 2) == await outcome_of(Pipeline(Timeout(2), inner), hanging)
    assert 1 == inner.metrics.timeouts


# Bulkhead.


@simulate(runs=2)
async def test_a_bulkhead_outside_of_retry_is_held_during_the_backoff() -> None:
    """So others are kept out by a call that does nothing but wait."""
    await _call_during_a_backoff(bulkhead := Bulkhead(1), Pipeline(bulkhead, Retry(2, backoff=EVERY_SECOND)), held=True)


@simulate(runs=2)
async def test_a_bulkhead_inside_of_retry_is_free_during_the_backoff() -> None:
    """It limits the calls that run."""
    await _call_during_a_backoff(
        bulkhead := Bulkhead(1), Pipeline(Retry(2, backoff=EVERY_SECOND), bulkhead), held=False
    )


async def _call_during_a_backoff(bulkhead: Bulkhead, pipeline: Pipeline, *, held: bool) -> None:
    failing = Failing()
    async with anyio.create_task_group() as group:
        group.start_soon(outcome_of, pipeline, failing)
        await anyio.wait_all_tasks_blocked()
        assert 1 == len(failing.at)
        assert held == bulkhead.statistics().running
        expected = BulkheadFullError if held else "fine"
        assert (expected, 0) == await outcome_of(bulkhead, returning("fine"))
    assert (2, 0) == (len(failing.at), bulkhead.statistics().running)


@simulate(runs=2)
async def test_a_timeout_outside_of_a_bulkhead_limits_the_wait_too() -> None:
    """Inside, a call has all of its time once it has a place; outside, a caller knows when it will be told."""
    for inside in (False, True):
        bulkhead = Bulkhead(1, queue=1)
        layers = (bulkhead, Timeout(2)) if inside else (Timeout(2), bulkhead)
        async with anyio.create_task_group() as group:
            group.start_soon(bulkhead.execute, anyio.sleep, 3)
            await anyio.wait_all_tasks_blocked()
            assert (CallTimeoutError, 5 if inside else 2) == await outcome_of(Pipeline(*layers), hanging)


@simulate(runs=2)
async def test_a_bulkhead_outside_of_a_breaker_may_queue_up_for_nothing() -> None:
    """That is its price: who waits for a place may hear in the end that the circuit is open."""
    for inside in (True, False):
        circuit, bulkhead = breaker(1), Bulkhead(1, queue=1)
        await outcome_of(circuit, Failing())
        layers = (circuit, bulkhead) if inside else (bulkhead, circuit)
        async with anyio.create_task_group() as group:
            group.start_soon(bulkhead.execute, anyio.sleep, 3)
            await anyio.wait_all_tasks_blocked()
            assert (CircuitOpenError, 0 if inside else 3) == await outcome_of(Pipeline(*layers), hanging)


@simulate(runs=2)
async def test_whoever_the_breaker_lets_through_goes_to_the_service_at_once() -> None:
    """If it waits outside. Inside, those who stand in line were let through before the service failed."""
    for limit in (Bulkhead(1, queue=9), RateLimit(1, burst=1)):
        for inside in (True, False):
            circuit, failing = breaker(1), Failing()
            layers = (circuit, limit) if inside else (limit, circuit)

            async def fail_slowly(failing: Failing = failing) -> None:
                await anyio.sleep(0.5)
                await failing()

            await anyio.sleep(1)
            async with anyio.create_task_group() as group:
                for _ in range(5):
                    group.start_soon(outcome_of, Pipeline(*layers), fail_slowly)
            assert (5 if inside else 1) == len(failing.at)


# RateLimit.


@simulate(runs=2)
async def test_a_rate_limit_inside_of_retry_counts_each_attempt() -> None:
    """Which is what the other side counts."""
    failing = Failing()
    pipeline = Pipeline(Retry(4, backoff=Backoff(0, 1, 0)), RateLimit(0.5, burst=2))
    assert (Boom, 4.0) == await outcome_of(pipeline, failing)
    assert [0.0, 0.0, 2.0, 4.0] == failing.at


@simulate(runs=2)
async def test_a_rate_limit_outside_of_retry_counts_a_call_once() -> None:
    """However often it is made."""
    failing = Failing()
    pipeline = Pipeline(RateLimit(0.5, burst=2), Retry(4, backoff=Backoff(0, 1, 0)))
    assert (Boom, 0.0) == await outcome_of(pipeline, failing)
    assert 4 == len(failing.at)


@simulate(runs=2)
async def test_retry_comes_back_when_the_rate_limit_says() -> None:
    """A rejection is an error with a time in it."""
    limit = RateLimit(0.1, burst=1, max_wait=0)
    pipeline = Pipeline(Retry(2, backoff=EVERY_SECOND), limit)
    assert ("fine", 0) == await outcome_of(pipeline, returning("fine"))
    assert ("fine", 11) == await outcome_of(pipeline, returning("fine"))
    assert 1 == limit.statistics().rejected


@simulate(runs=2)
async def test_a_rate_limit_outside_of_a_breaker_costs_tokens_while_it_is_open() -> None:
    """That is its price: rejected calls have paid too. Its own rejections say nothing of the service."""
    for inside in (True, False):
        circuit, limit = breaker(1), RateLimit(0.001, burst=5)
        await outcome_of(circuit, Failing())
        for _ in range(5):
            layers = (circuit, limit) if inside else (limit, circuit)
            assert (CircuitOpenError, 0) == await outcome_of(Pipeline(*layers), hanging)
        assert (5 if inside else 0) == limit.statistics().available
    circuit, limit = breaker(1), RateLimit(0.001, burst=1, max_wait=0)
    for expected in ("fine", RateLimitError):
        assert (expected, 0) == await outcome_of(Pipeline(circuit, limit), returning("fine"))
    assert circuit.is_closed


# Fallback.


@simulate(runs=2)
async def test_a_fallback_outside_of_all_answers_rejections_too() -> None:
    """Whatever a layer inside has to say."""
    circuit = breaker(1)
    await outcome_of(circuit, Failing())
    limit = RateLimit(0.001, burst=1, max_wait=0)
    await outcome_of(limit, returning(None))
    full = Bulkhead(1)
    async with full:
        for layer in (circuit, limit, full, Timeout(1)):
            pipeline = Pipeline(Fallback.value("degraded"), layer)
            assert ("degraded", 1 if isinstance(layer, Timeout) else 0) == await outcome_of(pipeline, hanging)


@simulate(runs=2)
async def test_a_fallback_inside_hides_failures_from_who_should_know() -> None:
    """There is no retry, and the circuit stays closed."""
    circuit, failing = breaker(1), Failing()
    pipeline = Pipeline(Retry(3), circuit, Fallback.value("degraded"))
    assert ("degraded", 0) == await outcome_of(pipeline, failing)
    assert (1, True) == (len(failing.at), circuit.is_closed)


# All of them.


@simulate(runs=10)
async def test_all_layers_together_leave_nothing_behind(sim: Any) -> None:
    """A service that fails, hangs and comes back: everybody is answered, and everything is free in the end."""
    circuit = CircuitBreaker(
        "api", CircuitBreakerConfig(failure_threshold=5, success_threshold=1, reset_timeout_ms=2_000)
    )
    limit, bulkhead, budget = RateLimit(50), Bulkhead(4, queue=50), RetryBudget()
    pipeline = Pipeline(
        Fallback.value("degraded"),
        Retry(3, budget=budget, open_circuit="wait", max_elapsed=5),
        limit,
        bulkhead,
        circuit,
        Timeout(0.5),
    )
    broken = True
    answers: list[str] = []

    async def service() -> str:
        what = sim.random.choice(["fail", "hang", "work"]) if broken else "work"
        if what == "hang":
            await anyio.sleep_forever()
        if what == "fail":
            raise Boom
        await anyio.sleep(0.01)
        return "fine"

    async def client() -> None:
        answers.append(await pipeline.execute(service))

    async with anyio.create_task_group() as group:
        for _ in range(60):
            group.start_soon(client)
            await anyio.sleep(0.05)
        broken = False
        await anyio.sleep(10)
        for _ in range(5):
            assert "fine" == await pipeline.execute(service)
    assert 60 == len(answers)
    assert {"fine", "degraded"} >= set(answers)
    assert (0, 0) == (bulkhead.statistics().running, bulkhead.statistics().waiting)
    assert 0 == limit.statistics().waiting
    assert circuit.is_closed


@pytest.mark.parametrize("cancelled", [0, 1, 2])
@simulate(runs=5)
async def test_one_caller_that_is_cancelled_concerns_no_other(cancelled: int) -> None:
    """Wherever in the pipeline it is: running, waiting for a place, waiting for a retry."""
    bulkhead = Bulkhead(1, queue=2)
    pipeline = Pipeline(Retry(2, backoff=EVERY_SECOND, on=Boom), bulkhead, Timeout(5))
    scopes = [anyio.CancelScope() for _ in range(3)]
    outcomes: dict[int, object] = {}

    async def client(number: int, function: Step) -> None:
        with scopes[number]:
            outcomes[number] = (await outcome_of(pipeline, function))[0]

    async with anyio.create_task_group() as group:
        for number, function in enumerate((raising(Boom()), hanging, returning("fine"))):
            group.start_soon(client, number, function)
            await anyio.wait_all_tasks_blocked()
        scopes[cancelled].cancel()
    expected = {0: Boom, 1: CallTimeoutError, 2: "fine"}
    del expected[cancelled]
    assert expected == outcomes
    assert (0, 0) == (bulkhead.statistics().running, bulkhead.statistics().waiting)
