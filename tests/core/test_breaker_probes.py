"""A half-open circuit breaker: who may try, for how long, and what becomes of those who hang, vanish or come late."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

from agentcore import CircuitBreaker, CircuitOpenError, CircuitTimeoutError
from agentcore.testing import BACKENDS, current_simulation, run_sim, simulate
from agentcore.testing._simulation import Backend
from tests.core.circuits import (
    LEASE,
    RESET,
    Clock,
    Down,
    due,
    fail,
    hang,
    hang_shielded,
    heard_by,
    make,
    open_up,
    permits_of,
    succeed,
    types_of,
)

pytestmark = pytest.mark.anyio


class Service:
    """Takes a second, and counts who is inside of it."""

    def __init__(self, seconds: float = 1.0) -> None:
        self.seconds = seconds
        self.calls = self.inside = self.peak = 0

    async def __call__(self) -> str:
        self.calls += 1
        self.inside += 1
        self.peak = max(self.peak, self.inside)
        try:
            await anyio.sleep(self.seconds)
        finally:
            self.inside -= 1
        return "well"


class Caller:
    """Calls once, and notes what came of it."""

    def __init__(self, breaker: CircuitBreaker) -> None:
        self.breaker = breaker
        self.results: list[Any] = []
        self.rejections: list[CircuitOpenError] = []
        self.errors: list[BaseException] = []

    async def __call__(self, function: Callable[[], Awaitable[Any]]) -> None:
        try:
            self.results.append(await self.breaker.execute(function))
        except CircuitOpenError as error:
            self.rejections.append(error)
        except Exception as error:  # noqa: BLE001 - whatever it is
            self.errors.append(error)


def rejects(breaker: CircuitBreaker) -> float | None:
    """Check that a call is rejected now; return when it may be tried again."""
    with pytest.raises(CircuitOpenError) as caught:
        breaker.call(lambda: pytest.fail("it was let through"))
    assert caught.value.retry_after == breaker.retry_after
    return caught.value.retry_after


# ---------------------------------------------------------------- how many


@pytest.mark.parametrize("threshold", [1, 2, 3])
@simulate(runs=30)
async def test_as_many_probes_as_successes_are_needed(threshold: int) -> None:
    """All others are rejected, and told when to come back."""
    breaker, service = make(success_threshold=threshold), Service()
    await due(breaker)
    call = Caller(breaker)
    async with anyio.create_task_group() as group:
        for _ in range(10):
            group.start_soon(call, service)
    assert (threshold, threshold) == (service.calls, service.peak)
    assert (True, threshold, 10 - threshold) == (breaker.is_closed, len(call.results), len(call.rejections))
    assert {("half_open", LEASE)} == {(error.details["state"], error.retry_after) for error in call.rejections}


@simulate(runs=30)
async def test_fewer_probes_with_each_success() -> None:
    """Never more at a time than are still needed."""
    breaker, service = make(success_threshold=3), Service()
    await due(breaker)
    call = Caller(breaker)
    allowed: list[bool] = []

    def look() -> bool:
        allowed.append(service.inside <= 3 - breaker.metrics.successes)
        return allowed[-1] or breaker.is_closed

    current_simulation().always(look, "no more probes than are needed")
    async with anyio.create_task_group() as group:
        for number in range(40):
            service.seconds = 1 + number % 3
            group.start_soon(call, service)
            await anyio.sleep(0.1)
    assert breaker.is_closed
    assert not call.errors
    assert len(allowed) > 40


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("threshold", "healthy"),
    [pytest.param(1, True, marks=pytest.mark.thorough), (3, True), pytest.param(3, False, marks=pytest.mark.thorough)],
)
def test_ten_thousand_callers_at_the_moment_of_reset(backend: Backend, threshold: int, healthy: bool) -> None:
    """At most the probe limit reach the service before it has answered."""

    async def herd() -> None:
        breaker, service = make(success_threshold=threshold), Service()
        open_up(breaker)
        call = Caller(breaker)

        async def come() -> None:
            await anyio.sleep(RESET)
            await call(service if healthy else fail_late)

        async def fail_late() -> None:
            await service()
            raise Down

        async with anyio.create_task_group() as group:
            for _ in range(10_000):
                group.start_soon(come)
        assert (threshold, threshold, 0) == (service.calls, service.peak, service.inside)
        assert 10_000 - threshold == len(call.rejections) == breaker.metrics.rejected
        assert healthy == breaker.is_closed

    run_sim(herd, backend=backend).unwrap()


@simulate(runs=10)
async def test_a_failed_probe_ends_the_attempt() -> None:
    """The circuit is open again at once; what the other probes of that attempt bring counts no more."""
    breaker, service = make(success_threshold=3), Service()
    await due(breaker)
    call = Caller(breaker)
    async with anyio.create_task_group() as group:
        group.start_soon(call, service)
        group.start_soon(call, service)
        await anyio.sleep(0.5)
        with pytest.raises(Down):
            await breaker.execute(fail)
        assert (True, RESET) == (breaker.is_open, rejects(breaker))
    assert ["well", "well"] == call.results
    assert (True, 0) == (breaker.is_open, breaker.metrics.successes)


@simulate(runs=5)
async def test_each_attempt_counts_for_itself() -> None:
    """A success of an attempt that has failed is none of the next one."""
    breaker = make(success_threshold=2)
    await due(breaker)
    for _ in range(3):
        await breaker.execute(succeed)
        with pytest.raises(Down):
            await breaker.execute(fail)
        await anyio.sleep(RESET)
    await breaker.execute(succeed)
    assert breaker.is_half_open
    await breaker.execute(succeed)
    assert breaker.is_closed


# ---------------------------------------------------------------- for how long


@simulate(runs=5)
async def test_a_hung_probe_is_cut() -> None:
    """After its time, by the breaker itself; the circuit is open again from then on."""
    breaker = make()
    events = heard_by(breaker)
    await due(breaker)
    with pytest.raises(CircuitTimeoutError) as caught:
        await breaker.execute(hang)
    assert RESET + LEASE == anyio.current_time()
    assert (
        "a probe of circuit 'api' must end within its probe_timeout_ms: got none after 4 s; "
        "it was cut, which is a failure; wait, or raise the limit"
    ) == str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    assert ["opened", "half_opened", "opened"] == types_of(events)
    assert (1, 2, RESET) == (breaker.metrics.timeouts, breaker.metrics.failures, rejects(breaker))
    assert {"Down": 1, "CircuitTimeoutError": 1} == dict(breaker.metrics.failures_by_type)


@simulate(runs=5)
async def test_a_hung_block_is_cut() -> None:
    """`async with` has the same limit."""
    breaker = make()
    await due(breaker)
    with pytest.raises(CircuitTimeoutError):
        async with breaker:
            await hang()
    assert RESET + LEASE == anyio.current_time()
    assert breaker.is_open


@simulate(runs=5)
async def test_a_hung_probe_is_cut_with_its_tasks() -> None:
    """Whatever it has started ends with it."""
    breaker = make()
    await due(breaker)
    ended: list[float] = []

    async def child() -> None:
        try:
            await hang()
        finally:
            ended.append(anyio.current_time())

    async def probe() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(child)
            group.start_soon(child)

    with pytest.raises(CircuitTimeoutError):
        await breaker.execute(probe)
    assert 2 * [RESET + LEASE] == ended


@simulate(runs=5)
async def test_a_clock_of_its_own_does_not_measure_probes() -> None:
    """A hung probe is cut after so many seconds of the event loop, also if the breaker's clock stands still."""
    breaker = make(clock=(clock := Clock(now=-5e6)))
    open_up(breaker)
    clock.now += RESET
    with pytest.raises(CircuitTimeoutError):
        await breaker.execute(hang)
    assert (LEASE, True) == (anyio.current_time(), breaker.is_open)


@simulate(runs=20)
async def test_a_shielded_probe_does_not_block_the_circuit() -> None:
    """Nobody can end it, but its lease passes: others are admitted later, and what it brings in the end is old."""
    breaker, call = make(), Caller(make())
    call.breaker = breaker
    await due(breaker)
    start = anyio.current_time()
    async with anyio.create_task_group() as group:
        group.start_soon(call, lambda: hang_shielded(100))
        await anyio.sleep(1)
        assert LEASE - 1 == rejects(breaker)
        await anyio.sleep(LEASE)  # a second too late: the circuit has opened when the lease had ended
        assert RESET - 1 == rejects(breaker)
        assert (True, 1) == (breaker.is_open, breaker.metrics.timeouts)
        await anyio.sleep(RESET - 1)
        assert "well" == await breaker.execute(succeed)
        assert breaker.is_closed
        metrics = breaker.metrics
    assert start + 100 == anyio.current_time()
    assert (["late"], [], []) == (call.results, call.rejections, call.errors)
    assert (metrics, True) == (breaker.metrics, breaker.is_closed)


@simulate(runs=20)
async def test_many_shielded_probes() -> None:
    """However many hang one after the other, a healthy service is found again in time."""
    breaker = make(success_threshold=2)
    await due(breaker)
    call = Caller(breaker)
    async with anyio.create_task_group() as group:
        for _ in range(5):
            for _ in range(2):
                group.start_soon(call, lambda: hang_shielded(1_000))
            await anyio.sleep(0.5)
            assert rejects(breaker) == LEASE - 0.5
            await anyio.sleep(LEASE + RESET)
        await breaker.execute(succeed)
        await breaker.execute(succeed)
        assert breaker.is_closed
    assert (10, 5) == (len(call.results), breaker.metrics.timeouts)
    assert breaker.is_closed


async def swallow() -> str:
    """Take a cancellation for nothing."""
    try:
        await hang()
    except anyio.get_cancelled_exc_class():
        return "swallowed"


async def swallow_and_go_on() -> str:
    """Take a cancellation for nothing, and be busy for another while."""
    await swallow()
    return await hang_shielded(2)


@pytest.mark.parametrize(("probe", "late"), [(swallow, 0), (swallow_and_go_on, 2)])
@simulate(runs=5)
async def test_a_probe_that_swallows_its_cancellation(probe: Callable[[], Awaitable[str]], late: float) -> None:
    """Its result is its caller's. For the circuit it was too late, and nothing of the cancellation stays in the task."""
    breaker = make()
    await due(breaker)
    assert await breaker.execute(probe) in ("swallowed", "late")
    assert RESET + LEASE + late == anyio.current_time()
    assert (True, 1, 0) == (breaker.is_open, breaker.metrics.timeouts, breaker.metrics.successes)
    assert RESET - late == rejects(breaker)
    await anyio.sleep(RESET - late)
    assert "well" == await breaker.execute(succeed)
    assert breaker.is_closed


@simulate(runs=5)
async def test_a_probe_that_makes_another_error_of_its_cancellation() -> None:
    """The error is the caller's; it is a failure, and one of time."""
    breaker = make()
    await due(breaker)

    async def translate() -> None:
        try:
            await hang()
        except anyio.get_cancelled_exc_class():
            raise Down("gave up") from None

    with pytest.raises(Down):
        await breaker.execute(translate)
    assert (True, 1) == (breaker.is_open, breaker.metrics.timeouts)
    assert {"Down": 2} == dict(breaker.metrics.failures_by_type)


@pytest.mark.parametrize(("excluded", "counted"), [((), "Down"), ((Down,), "CircuitTimeoutError")])
@simulate(runs=10)
async def test_a_cut_probe_whose_clean_up_fails(excluded: tuple[type[Exception], ...], counted: str) -> None:
    """In a task of its own, next to others that are cancelled: the error is the caller's, and it was late in any case."""
    breaker = make(excluded_exceptions=excluded)
    await due(breaker)

    async def clumsy() -> None:
        try:
            await hang()
        finally:
            raise Down("cannot clean up")

    async def probe() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(clumsy)
            group.start_soon(hang)

    with pytest.raises(ExceptionGroup) as caught:
        await breaker.execute(probe)
    assert [Down] == [type(error) for error in caught.value.exceptions]
    assert RESET + LEASE == anyio.current_time()
    assert (True, 1, 2) == (breaker.is_open, breaker.metrics.timeouts, breaker.metrics.failures)
    assert counted in breaker.metrics.failures_by_type
    assert (0, 0) == (breaker.metrics.excluded, len(permits_of(breaker)))


@simulate(runs=5)
async def test_a_slow_probe_has_failed() -> None:
    breaker = make(slow_call_ms=500)
    await due(breaker)
    assert "well" == await breaker.execute(Service(0.5))
    assert (True, 1, 1) == (breaker.is_open, breaker.metrics.successes, breaker.metrics.slow)


# ---------------------------------------------------------------- permits come back


@simulate(runs=30)
async def test_a_cancelled_probe_gives_its_permit_back() -> None:
    """At once: the next caller is let through in the same instant, and nothing is counted against the service."""
    breaker, service = make(), Service()
    await due(breaker)
    for count in range(1, 4):
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(breaker.execute, service)
                await anyio.sleep(0.5)
                rejects(breaker)
                scope.cancel()
        assert (True, count, 1) == (breaker.is_half_open, breaker.metrics.canceled, breaker.metrics.failures)
    assert "well" == await breaker.execute(succeed)
    assert breaker.is_closed


@simulate(runs=5)
async def test_an_excluded_outcome_gives_the_permit_back() -> None:
    breaker = make(excluded_exceptions=(KeyError,))
    await due(breaker)

    async def unknown() -> None:
        raise KeyError("unknown")

    for count in range(1, 4):
        with pytest.raises(KeyError):
            await breaker.execute(unknown)
        assert (True, count) == (breaker.is_half_open, breaker.metrics.excluded)
    await breaker.execute(succeed)
    assert breaker.is_closed


@simulate(runs=10)
async def test_an_abandoned_permit_is_given_to_somebody_else() -> None:
    """Asked for by hand and never reported: after the time of a probe. It says nothing about the service."""
    breaker = make(success_threshold=2)
    await due(breaker)

    async def ask_and_vanish() -> None:
        assert await breaker.allow_request()

    async with anyio.create_task_group() as group:
        group.start_soon(ask_and_vanish)
        group.start_soon(ask_and_vanish)
    assert LEASE == rejects(breaker)
    assert not await breaker.allow_request()
    await anyio.sleep(LEASE - 0.5)
    assert 0.5 == rejects(breaker)
    await anyio.sleep(0.5)
    assert 0.0 == breaker.retry_after
    for _ in range(2):
        assert await breaker.allow_request()
        await breaker.on_success()
    assert (True, 1) == (breaker.is_closed, breaker.metrics.failures)


@simulate(runs=10)
async def test_a_late_report_of_an_abandoned_permit_is_old() -> None:
    """When it has been given to somebody else, what its first owner reports changes nothing."""
    breaker = make()
    await due(breaker)
    call = Caller(breaker)
    assert await breaker.allow_request()
    await anyio.sleep(LEASE)
    async with anyio.create_task_group() as group:
        group.start_soon(call, Service())
        await anyio.sleep(0.5)
        await breaker.on_failure("Late")
        assert breaker.is_half_open
    assert (True, ["well"], {"Down": 1}) == (breaker.is_closed, call.results, dict(breaker.metrics.failures_by_type))


@simulate(runs=10)
async def test_a_permit_that_was_asked_for_by_hand_is_used_by_a_call() -> None:
    """Ask, then `execute`: one permit for both, and from then on the call has the time of a probe."""
    breaker = make()
    await due(breaker)
    assert await breaker.allow_request()
    await anyio.sleep(LEASE - 1)
    with pytest.raises(CircuitTimeoutError):
        await breaker.execute(hang)
    assert RESET + LEASE - 1 + LEASE == anyio.current_time()
    assert breaker.is_open
    await breaker.on_success()  # there is nothing left to report
    assert breaker.is_open


@simulate(runs=5)
async def test_asking_twice_takes_one_permit() -> None:
    breaker = make(success_threshold=2)
    await due(breaker)
    assert await breaker.allow_request()
    assert await breaker.allow_request()
    assert 1 == len(permits_of(breaker))


# ---------------------------------------------------------------- eras


@pytest.mark.parametrize("function", [succeed, fail])
@simulate(runs=10)
async def test_a_late_call_of_the_closed_era(function: Callable[[], Awaitable[Any]]) -> None:
    """It neither closes a half-open circuit nor opens it again."""
    breaker = make()
    call = Caller(breaker)

    async def late() -> None:
        await anyio.sleep(RESET + 2)
        await function()

    async with anyio.create_task_group() as group:
        group.start_soon(call, late)
        await anyio.sleep(0.5)
        await due(breaker)
        group.start_soon(call, Service(3))
        await anyio.sleep(0.5)
        metrics = breaker.metrics
        assert breaker.is_half_open
        await anyio.sleep(1.5)
        assert (True, metrics) == (breaker.is_half_open, breaker.metrics)
    assert breaker.is_closed


@simulate(runs=10)
async def test_a_late_probe_of_another_attempt() -> None:
    """Each attempt is an era of its own."""
    breaker = make(success_threshold=2, probe_timeout_ms=100_000)
    await due(breaker)
    call = Caller(breaker)
    async with anyio.create_task_group() as group:
        group.start_soon(call, Service(RESET + 2))
        await anyio.sleep(0.5)
        with pytest.raises(Down):
            await breaker.execute(fail)
        await anyio.sleep(RESET)
        await breaker.execute(succeed)
        assert breaker.is_half_open
        await anyio.sleep(3)
        assert breaker.is_half_open
        await breaker.execute(succeed)
        assert breaker.is_closed
    assert 2 == breaker.metrics.successes


def test_orders_of_two_probes() -> None:
    """Whichever of two probes ends first, one failure is enough, two successes are needed."""
    for outcomes in itertools.product((succeed, fail), repeat=2):

        async def two(outcomes: Any = outcomes) -> None:
            breaker = make(success_threshold=2)
            await due(breaker)
            call = Caller(breaker)

            async def probe(number: int) -> None:
                await anyio.sleep(number)
                await outcomes[number]()

            async with anyio.create_task_group() as group:
                group.start_soon(call, lambda: probe(0))
                group.start_soon(call, lambda: probe(1))
            assert breaker.is_closed == (fail not in outcomes)

        for backend in BACKENDS:
            run_sim(two, backend=backend).unwrap()
