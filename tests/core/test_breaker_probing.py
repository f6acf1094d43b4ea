"""Probes of their own accord: somebody finds out in a task group of his when the service works again."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

from agentcore import CircuitBreaker, CircuitMode, CircuitOpenError, ConfigurationError
from agentcore.testing import current_simulation, simulate
from tests.core.circuits import (
    LEASE,
    RESET,
    Down,
    Stop,
    heard_by,
    make,
    open_up,
    permits_of,
    probers_of,
    sinks_of,
    succeed,
    types_of,
)

pytestmark = pytest.mark.anyio


class Probe:
    """Does what it is told to, and notes when."""

    def __init__(self, *acts: Callable[[], Awaitable[Any]]) -> None:
        self.acts = list(acts)
        self.times: list[float] = []

    async def __call__(self) -> Any:
        self.times.append(anyio.current_time())
        return await (self.acts.pop(0) if len(self.acts) > 1 else self.acts[0])()


class Healthy:
    """A service for callers that counts them."""

    def __init__(self) -> None:
        self.times: list[float] = []

    async def __call__(self) -> str:
        self.times.append(anyio.current_time())
        return "well"


async def keep_calling(breaker: CircuitBreaker, service: Callable[[], Awaitable[Any]], every: float = 0.5) -> None:
    """Call through a breaker from now on."""
    while True:
        seconds: float | None = 1.0
        try:
            await breaker.execute(service)
        except CircuitOpenError as error:
            seconds = error.retry_after
        assert seconds is not None
        assert seconds > 0
        await anyio.sleep(every)


async def down() -> None:
    raise Down("no answer")


async def hang() -> None:
    await anyio.sleep_forever()


async def hang_shielded() -> None:
    with anyio.CancelScope(shield=True):
        await anyio.sleep(200)


async def unknown() -> None:
    raise KeyError("unknown")


@simulate(runs=1)
async def test_there_has_to_be_a_probe() -> None:
    with pytest.raises(ConfigurationError) as caught:
        await make().run_probes()
    assert (
        "run_probes of circuit 'api' needs something to probe with: got None; "
        "write CircuitBreaker(name, config, probe=...)"
    ) == str(caught.value)


@pytest.mark.parametrize("threshold", [1, 3])
@simulate(runs=30)
async def test_it_probes_when_it_is_due(threshold: int) -> None:
    """Callers are rejected until it has closed: none of them has to be the first, also at the moment of reset."""
    probe, service = Probe(succeed), Healthy()
    breaker = make(success_threshold=threshold, probe=probe)
    events = heard_by(breaker)
    async with anyio.create_task_group() as group:
        group.start_soon(breaker.run_probes)
        await anyio.sleep(3)
        assert [] == probe.times
        open_up(breaker)
        group.start_soon(keep_calling, breaker, service)
        group.start_soon(keep_calling, breaker, service, RESET)
        await anyio.sleep(RESET - 1)
        assert ([], []) == (probe.times, service.times)
        await anyio.sleep(2)
        group.cancel_scope.cancel()
    assert threshold * [3 + RESET] == probe.times
    assert ["opened", "half_opened", "closed"] == types_of(events)
    assert 3 + RESET <= min(service.times)
    assert (1, threshold) == (breaker.metrics.failures, breaker.metrics.successes - len(service.times))


@simulate(runs=20)
async def test_callers_are_told_to_wait_for_the_prober() -> None:
    """Their `retry_after` is the time after which they would have to probe themselves."""
    breaker = make(probe=Probe(hang))
    open_up(breaker)
    assert RESET == breaker.retry_after
    async with anyio.create_task_group() as group:
        group.start_soon(breaker.run_probes)
        await anyio.sleep(1)
        assert RESET + LEASE - 1 == breaker.retry_after
        group.cancel_scope.cancel()
    assert RESET - 1 == breaker.retry_after


@simulate(runs=10)
async def test_it_goes_on_until_it_succeeds() -> None:
    """Each failure doubles the time; one that hangs is cut."""
    probe = Probe(down, hang, down, succeed)
    breaker = make(backoff=2.0, probe=probe)
    open_up(breaker)
    async with anyio.create_task_group() as group:
        group.start_soon(breaker.run_probes)
        await current_simulation().eventually(lambda: breaker.is_closed, within=200)
        group.cancel_scope.cancel()
    assert [10, 10 + 20, 30 + LEASE + 40, 74 + 80] == probe.times
    assert {"Down": 3, "CircuitTimeoutError": 1} == dict(breaker.metrics.failures_by_type)
    assert 0 == breaker.metrics.rejected


@simulate(runs=10)
async def test_it_probes_again_when_it_opens_again() -> None:
    """As often as it happens, by whatever opens it."""
    probe = Probe(succeed)
    breaker = make(probe=probe)
    async with anyio.create_task_group() as group:
        group.start_soon(breaker.run_probes)
        for _ in range(3):
            await anyio.sleep(1)
            with pytest.raises(Down):
                await breaker.execute(down)
            await anyio.sleep(RESET + 1)
            assert breaker.is_closed
        group.cancel_scope.cancel()
    assert [11, 23, 35] == probe.times


@simulate(runs=5)
async def test_a_probe_may_be_synchronous() -> None:
    called: list[float] = []
    breaker = make(probe=lambda: called.append(anyio.current_time()))
    open_up(breaker)
    async with anyio.create_task_group() as group:
        group.start_soon(breaker.run_probes)
        await anyio.sleep(RESET + 1)
        group.cancel_scope.cancel()
    assert ([RESET], True) == (called, breaker.is_closed)


@simulate(runs=5)
async def test_its_results_are_judged() -> None:
    """As those of calls are."""
    answers = ["degraded", "well"]

    async def ask() -> str:
        return answers.pop(0)

    breaker = make(failure_if_result=lambda answer: answer != "well", probe=ask)
    open_up(breaker)
    async with anyio.create_task_group() as group:
        group.start_soon(breaker.run_probes)
        await anyio.sleep(RESET + 1)
        assert (True, 1) == (breaker.is_open, breaker.metrics.failures_by_type["result"])
        await anyio.sleep(RESET)
        group.cancel_scope.cancel()
    assert breaker.is_closed


# ---------------------------------------------------------------- when nobody probes


@pytest.mark.parametrize("moment", [1.0, RESET + 1.0])
@simulate(runs=20)
async def test_callers_take_over_from_a_cancelled_prober(moment: float) -> None:
    """At once, also from one that was in the middle of a probe: its permit is back."""
    breaker, service = make(probe=Probe(hang)), Healthy()
    open_up(breaker)
    async with anyio.create_task_group() as group:
        group.start_soon(breaker.run_probes)
        await anyio.sleep(moment)
        with pytest.raises(CircuitOpenError):
            await breaker.execute(service)
        group.cancel_scope.cancel()
    assert 1 == breaker.metrics.failures
    await anyio.sleep(max(RESET - moment, 0))
    assert "well" == await breaker.execute(service)
    assert breaker.is_closed


@simulate(runs=20)
async def test_callers_take_over_from_a_prober_that_hangs() -> None:
    """One that cannot even be cut does not hold them up for longer than a probe and an open period."""
    breaker, service = make(probe=Probe(hang_shielded)), Healthy()
    open_up(breaker)
    async with anyio.create_task_group() as group:
        group.start_soon(breaker.run_probes)
        group.start_soon(keep_calling, breaker, service)
        await anyio.sleep(100)
        group.cancel_scope.cancel()
    # The probe hangs from RESET on; its lease ends, the circuit opens, is due, and nobody has to be waited for again.
    assert RESET + LEASE + RESET == min(service.times)
    assert breaker.is_closed


@simulate(runs=5)
async def test_a_probe_that_says_nothing_is_not_repeated_at_once() -> None:
    """An excluded outcome leaves the circuit as it is: the next attempt is an open period later."""
    probe = Probe(unknown)
    breaker = make(excluded_exceptions=(KeyError,), probe=probe)
    open_up(breaker)
    async with anyio.create_task_group() as group:
        group.start_soon(breaker.run_probes)
        await anyio.sleep(10 * RESET + 1)
        group.cancel_scope.cancel()
    assert [RESET * count for count in range(1, 11)] == probe.times
    assert 10 == breaker.metrics.excluded


@pytest.mark.parametrize("lease", [LEASE, RESET, 3 * RESET])
@simulate(runs=10)
async def test_callers_take_over_from_a_probe_that_says_nothing(lease: float) -> None:
    """If it never tells, they have to find out: a healthy service is called again within one probe's time."""
    breaker, service = make(excluded_exceptions=(KeyError,), probe_timeout_ms=lease * 1000, probe=Probe(unknown)), None
    service = Healthy()
    open_up(breaker)
    async with anyio.create_task_group() as group:
        group.start_soon(breaker.run_probes)
        group.start_soon(keep_calling, breaker, service)
        await anyio.sleep(RESET + lease + 1)
        group.cancel_scope.cancel()
    assert service.times
    assert breaker.is_closed


@simulate(runs=5)
async def test_what_is_no_exception_ends_the_prober() -> None:
    """It is raised to the owner; callers probe from then on."""

    async def stop() -> None:
        raise Stop

    breaker = make(probe=Probe(stop))
    open_up(breaker)
    with pytest.raises(Stop):
        await breaker.run_probes()
    assert (RESET, True) == (anyio.current_time(), breaker.is_open)
    await anyio.sleep(RESET)
    await breaker.execute(succeed)
    assert breaker.is_closed


@simulate(runs=5)
async def test_nothing_stays_of_a_prober() -> None:
    """No sink, no reservation, no permit."""
    breaker = make(probe=Probe(hang))
    for moment in (1, RESET + 1):
        with anyio.move_on_after(moment):
            await breaker.run_probes()
        assert (0, (), 0) == (probers_of(breaker), permits_of(breaker), sinks_of(breaker))
        open_up(breaker)


# ---------------------------------------------------------------- by hand, and several


@simulate(runs=10)
async def test_nobody_probes_what_is_held_open_or_disabled() -> None:
    """Until that is over."""
    probe = Probe(succeed)
    breaker = make(probe=probe)
    open_up(breaker)
    async with anyio.create_task_group() as group:
        group.start_soon(breaker.run_probes)
        await anyio.sleep(1)
        with breaker.isolate():
            await anyio.sleep(5 * RESET)
            assert [] == probe.times
        await anyio.sleep(1)
        assert ([1 + 5 * RESET], True) == (probe.times, breaker.is_closed)
        for mode in (CircuitMode.FORCED_OPEN, CircuitMode.DISABLED, CircuitMode.METRICS_ONLY):
            breaker.set_mode(mode)
            await breaker.on_failure("Down")
            await anyio.sleep(5 * RESET)
        group.cancel_scope.cancel()
    assert 1 == len(probe.times)


@simulate(runs=10)
async def test_a_reset_by_hand_spares_the_probe() -> None:
    probe = Probe(succeed)
    breaker = make(probe=probe)
    open_up(breaker)
    async with anyio.create_task_group() as group:
        group.start_soon(breaker.run_probes)
        await anyio.sleep(1)
        breaker.reset()
        await anyio.sleep(5 * RESET)
        group.cancel_scope.cancel()
    assert ([], True) == (probe.times, breaker.is_closed)


@simulate(runs=20)
async def test_isolated_while_it_probes() -> None:
    """What it finds out counts; what it cannot find out while nobody may call, it tries again afterwards."""
    probe = Probe(hang, succeed)
    breaker = make(probe=probe)
    open_up(breaker)
    async with anyio.create_task_group() as group:
        group.start_soon(breaker.run_probes)
        await anyio.sleep(RESET + 1)
        with breaker.isolate():
            await anyio.sleep(2 * RESET)
            assert 1 == breaker.metrics.timeouts
        await anyio.sleep(1)
        group.cancel_scope.cancel()
    assert ([RESET, 3 * RESET + 1], True) == (probe.times, breaker.is_closed)


@simulate(runs=30)
async def test_two_probers() -> None:
    """They share the permits: never more probes than successes are needed."""
    inside = peak = calls = 0

    async def probe() -> None:
        nonlocal inside, peak, calls
        calls += 1
        inside += 1
        peak = max(peak, inside)
        await anyio.sleep(1)
        inside -= 1

    breaker = make(success_threshold=2, probe=probe)
    open_up(breaker)
    async with anyio.create_task_group() as group:
        group.start_soon(breaker.run_probes)
        group.start_soon(breaker.run_probes)
        await anyio.sleep(RESET + 3)
        group.cancel_scope.cancel()
    assert (2, True) == (calls, breaker.is_closed)
    assert peak <= 2


@simulate(runs=20)
async def test_a_caller_who_was_first() -> None:
    """A prober that comes when a caller has the only permit waits for what he finds out."""
    probe, service = Probe(succeed), Healthy()
    breaker = make(probe=probe)
    open_up(breaker)

    async def slowly() -> None:
        await service()
        await anyio.sleep(2)

    async with anyio.create_task_group() as group:
        await anyio.sleep(RESET)
        group.start_soon(breaker.execute, slowly)
        await anyio.sleep(1)
        group.start_soon(breaker.run_probes)
        await anyio.sleep(0.5)
        assert (1, []) == (len(service.times), probe.times)
        await anyio.sleep(5)
        group.cancel_scope.cancel()
    assert ([], True) == (probe.times, breaker.is_closed)


@simulate(runs=3)
async def test_failing_probes_are_logged_quietly(caplog: pytest.LogCaptureFixture) -> None:
    """What a probe raises is told at the level for debugging, and breaks nothing."""
    caplog.clear()
    breaker = make(probe=Probe(down, succeed))
    open_up(breaker)
    with caplog.at_level(logging.DEBUG, "agentcore.breaker"):
        async with anyio.create_task_group() as group:
            group.start_soon(breaker.run_probes)
            await anyio.sleep(2 * RESET + 1)
            group.cancel_scope.cancel()
    assert [(logging.DEBUG, "a probe of circuit 'api' failed")] == [
        (record.levelno, record.getMessage()) for record in caplog.records if record.name == "agentcore.breaker"
    ]
