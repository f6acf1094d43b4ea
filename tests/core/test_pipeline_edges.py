"""Layers in a pipeline where it gets narrow: asyncio's own cancellation, deep groups, loops that stand still."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from agentcore import (
    Backoff,
    ConfigurationError,
    Fallback,
    Layer,
    Pipeline,
    RateLimit,
    Retry,
    RetryBudget,
    Timeout,
    _interop,
)
from agentcore.testing import BACKENDS, Simulation, run_sim, simulate
from tests.core.fakes import hanging, raising, returning
from tests.core.services import Boom, Service
from tests.core.test_pipeline_limits import Abandoned

AT_ONCE = Backoff(0, 1, 0)


class Untidy:
    """A service whose connection breaks when a call is cut short."""

    def __init__(self) -> None:
        self.calls = 0

    async def __call__(self) -> str:
        self.calls += 1
        try:
            await anyio.sleep_forever()
        finally:
            await self.close()
        raise AssertionError

    async def close(self) -> None:
        raise ConnectionResetError("while closing")


class Stubborn(Untidy):
    """One that does not even tell."""

    async def __call__(self) -> str:
        self.calls += 1
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            return "bad"


# ---------------------------------------------------------------- asyncio's own cancellation


async def by_cancel(call: Callable[[], Any]) -> None:
    task = asyncio.create_task(call())
    await asyncio.sleep(1)
    task.cancel()
    await task


async def by_timeout(call: Callable[[], Any]) -> None:
    async with asyncio.timeout(1):
        await call()


async def by_wait_for(call: Callable[[], Any]) -> None:
    await asyncio.wait_for(call(), 1)


async def by_task_group(call: Callable[[], Any]) -> None:
    async def fail() -> None:
        await asyncio.sleep(1)
        raise Boom

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(call())
            group.create_task(fail())
    except ExceptionGroup as error:
        boom, rest = error.split(Boom)
        assert boom is not None
        if rest is not None:
            raise rest.exceptions[0] from None


WAYS = [by_cancel, by_timeout, by_wait_for, by_task_group]
LAYERS: list[Callable[[], Layer]] = [
    lambda: Retry(5, backoff=AT_ONCE),
    lambda: Fallback.value("hidden"),
    lambda: Pipeline(Fallback.value("hidden"), Retry(5, backoff=AT_ONCE), Timeout(60)),
]


@pytest.mark.parametrize("make", LAYERS)
@pytest.mark.parametrize("way", WAYS)
def test_the_error_of_a_clean_up_is_neither_retried_nor_answered(way: Any, make: Callable[[], Layer]) -> None:
    """Whoever cancels by a way of asyncio means all of the call."""
    service = Untidy()

    async def main() -> float:
        layer = make()
        with pytest.raises(ConnectionResetError, match="while closing"):
            await way(lambda: layer.execute(service))
        return anyio.current_time()

    assert 1.0 == run_sim(main, backend="asyncio").unwrap()
    assert 1 == service.calls


def test_a_result_that_hides_a_cancellation_is_not_retried() -> None:
    """It is returned, as it would be without a retry."""
    service = Stubborn()

    async def main() -> list[str]:
        retry = Retry(5, backoff=AT_ONCE, retry_if_result=lambda result: result == "bad")
        task = asyncio.create_task(retry.execute(service))
        await asyncio.sleep(1)
        task.cancel()
        return [await task]

    assert ["bad"] == run_sim(main, backend="asyncio").unwrap()
    assert 1 == service.calls


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_cut_inside_is_retried(backend: Any) -> None:
    """That nobody else is cancelled by: a timeout of ours, or of asyncio, takes back what it has asked for."""

    async def cut() -> None:
        async with asyncio.timeout(1):
            await service()

    async def main() -> None:
        for layer in (Retry(3, backoff=AT_ONCE), Fallback.value("answered")):
            expected = 3 if isinstance(layer, Retry) else 1
            for function in (Pipeline(Timeout(1)).execute, cut):
                if function is cut and backend == "trio":
                    continue
                service.calls = 0
                call = layer.execute(cut) if function is cut else layer.execute(function, service)
                if expected == 1:
                    assert "answered" == await call
                else:
                    with pytest.raises(ConnectionResetError):
                        await call
                assert expected == service.calls

    service = Untidy()
    run_sim(main, backend=backend).unwrap()


def test_a_cancellation_of_the_past_counts_no_more() -> None:
    """Somebody has swallowed one without taking it back: that is not the business of later calls."""

    async def main() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.sleep(0)
        assert 1 == task.cancelling()
        service = Service(Boom(), Boom(), "fine")
        assert "fine" == await Retry(3, backoff=AT_ONCE).execute(service)
        assert "answered" == await Fallback.value("answered").execute(raising(Boom()))
        task.uncancel()

    run_sim(main, backend="asyncio").unwrap()


# ---------------------------------------------------------------- groups


@simulate(runs=2)
async def test_groups_may_be_nested_deeper_than_the_stack() -> None:
    error: Exception = Boom()
    for _ in range(3000):
        error = ExceptionGroup("nested", [error])
    with pytest.raises(ExceptionGroup) as caught:
        await Retry(2, backoff=AT_ONCE).execute(raising(error))
    assert ["retry 'retry' gave up after 2 attempts: that was the last attempt"] == caught.value.__notes__
    assert "answered" == await Fallback.value("answered", on=Boom).execute(raising(error))


# ---------------------------------------------------------------- retries


class Stop(BaseException):
    """What ends a program."""


@simulate(runs=2)
async def test_a_budget_gets_back_what_an_interruption_has_cost() -> None:
    """Whoever is told of a retry ends everything, and the retry is not made."""
    budget = RetryBudget(0, 0, 5)

    def stop(notice: object) -> None:
        raise Stop

    for retry in (
        Retry(3, budget=budget, on_retry=stop),
        Retry(3, budget=budget, on_retry=stop, retry_if_result=lambda _: True),
    ):
        with pytest.raises(Stop):
            await retry.execute(Service("bad") if retry._retry_if_result else raising(Boom()))
        assert 5 == budget.available


@simulate(runs=2)
async def test_what_a_predicate_raises_that_is_no_exception_passes() -> None:
    def stop(value: object) -> bool:
        raise Stop

    with pytest.raises(Stop):
        await Retry(retry_if=stop).execute(raising(Boom()))
    with pytest.raises(Stop):
        await Retry(retry_if_result=stop).execute(returning("fine"))


# ---------------------------------------------------------------- pipelines


def test_a_layer_is_in_a_pipeline_once() -> None:
    """In those that it is made of as well."""
    timeout, other = Timeout(1, name="one"), Timeout(2, name="two")
    inner = Pipeline(Pipeline(timeout), Retry())
    for layers in ((timeout, inner), (inner, timeout), (inner, inner), (Pipeline(timeout), inner), (other, other)):
        with pytest.raises(ConfigurationError) as caught:
            Pipeline(*layers, name="api")
        assert str(caught.value).startswith("pipeline 'api' takes each layer once: got <")
        assert str(caught.value).endswith(" again; leave one out, or make a second one")
    assert (other, inner) == Pipeline(other, inner).layers


@pytest.mark.parametrize("value", [10**5000, -(10**5000)], ids=["great", "small"])
def test_numbers_that_no_message_can_hold(value: int) -> None:
    """They are refused like others."""
    for make in (Timeout, RateLimit, Retry):
        with pytest.raises(ConfigurationError, match=r"got <int whose repr\(\) raised ValueError>; "):
            make(value)


# ---------------------------------------------------------------- event loops that stand still


def in_time_of(sim: Simulation, make: Callable[[], Any]) -> Any:
    """Make something that reads the clock of a simulation, outside of its event loop."""
    with _interop.use_sources(sim.call(_interop.sources.get)):
        return make()


class Blocked:
    """An event loop that is held up while a task of it waits in a limit."""

    def __init__(self, layer: Any, calls: int = 1) -> None:
        self.loop = asyncio.new_event_loop()
        self.tasks = [self.loop.create_task(layer.execute(hanging)) for _ in range(calls)]
        self.loop.run_until_complete(asyncio.sleep(0))

    def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        self.loop.run_until_complete(asyncio.wait(self.tasks))
        self.loop.close()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("make", [Blocked, Abandoned])
def test_a_loop_that_stands_still_holds_no_other_up(make: Any, backend: Any) -> None:
    """Its calls were the first, and are overtaken: late by no more than their own time and a moment."""
    limit = RateLimit(1.0, burst=1)
    ends: list[float] = []

    async def note() -> None:
        ends.append(anyio.current_time())

    with Simulation(backend) as sim:
        group = sim.enter(anyio.create_task_group)
        sim.run(limit.execute, note)
        held_up = in_time_of(sim, lambda: make(limit))
        for _ in range(4):
            sim.call(group.start_soon, limit.execute, note)
        sim.run(anyio.sleep, 20)
        assert [0.0, 2.05, 3.05, 4.05, 5.05] == pytest.approx(ends)
        assert (1 if make is Blocked else 0) == limit.statistics().waiting
        held_up.close()
        assert 0 == limit.statistics().waiting


def test_calls_of_one_loop_stay_in_order_whoever_is_held_up() -> None:
    """One that comes late is no sooner there than those before it; and the rate holds."""
    limit = RateLimit(1.0, burst=1)
    ends: list[tuple[int, float]] = []

    async def note(number: int) -> None:
        ends.append((number, anyio.current_time()))

    with Simulation() as sim:
        group = sim.enter(anyio.create_task_group)
        sim.run(limit.execute, note, 0)
        held_up = in_time_of(sim, lambda: Blocked(limit, calls=3))
        for number in range(1, 4):
            sim.call(group.start_soon, limit.execute, note, number)
            sim.run(anyio.wait_all_tasks_blocked)
        sim.run(anyio.sleep, 60)
        assert [0, 1, 2, 3] == [number for number, _ in ends]
        assert all(later - earlier > 0.999 for (_, earlier), (_, later) in itertools.pairwise(ends))
        assert 7.06 > ends[-1][1]
        held_up.close()
