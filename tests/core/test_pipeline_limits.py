"""How many calls at a time, and how many in a time: order, rejection, cancellation, several event loops."""

from __future__ import annotations

import asyncio
import math
import threading
import types
from collections.abc import Awaitable, Callable, Generator
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentcore import (
    Bulkhead,
    BulkheadFullError,
    BulkheadStatistics,
    ConfigurationError,
    RateLimit,
    RateLimitError,
)
from agentcore.testing import BACKENDS, Simulation, assert_checkpoints, current_simulation, run_sim, simulate
from tests.core.fakes import Step, hanging, noting, raising, returning

pytestmark = pytest.mark.anyio


class Boom(Exception):
    """What the called functions raise."""


class Gate:
    """A function that counts who is inside, and lets everybody out when it is opened."""

    def __init__(self) -> None:
        self.came: list[object] = []
        self.inside = self.peak = 0
        self.opened = anyio.Event()

    async def __call__(self, name: object = None) -> object:
        self.came.append(name)
        self.inside += 1
        self.peak = max(self.peak, self.inside)
        try:
            await self.opened.wait()
        finally:
            self.inside -= 1
        return name


async def start_in_order(group: anyio.abc.TaskGroup, function: Step, *names: object) -> None:
    """Start calls, each when the one before has come to a stop."""
    for name in names:
        group.start_soon(function, name)
        await anyio.wait_all_tasks_blocked()


# Bulkheads.


@simulate(runs=20)
async def test_no_more_run_than_the_limit() -> None:
    """However many come; all get their turn."""
    bulkhead, gate, outcomes = Bulkhead(3, queue=20), Gate(), []
    async with anyio.create_task_group() as group:
        for number in range(20):
            group.start_soon(noting, outcomes, bulkhead.execute, gate, number)
        await anyio.wait_all_tasks_blocked()
        statistics = BulkheadStatistics(limit=3, queue=20, running=3, waiting=17, rejected=0)
        assert statistics == bulkhead.statistics()
        assert "<Bulkhead 'bulkhead' 3 of 3 running, 17 of 20 waiting>" == repr(bulkhead)
        assert 3 == gate.inside
        gate.opened.set()
    assert list(range(20)) == sorted(outcomes)
    assert 3 == gate.peak
    assert (0, 0) == (bulkhead.statistics().running, bulkhead.statistics().waiting)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        statistics.running = 0  # type: ignore[misc]


@simulate(runs=20)
async def test_who_waits_is_served_in_order_of_arrival() -> None:
    """And is not overtaken by who comes while a place is on its way."""
    bulkhead, gate = Bulkhead(1, queue=10), Gate()
    gate.opened.set()
    first = Gate()
    async with anyio.create_task_group() as group:
        group.start_soon(bulkhead.execute, first)
        await anyio.wait_all_tasks_blocked()
        await start_in_order(group, partial(bulkhead.execute, gate), "a", "b", "c")
        first.opened.set()
        await anyio.lowlevel.checkpoint()
        group.start_soon(bulkhead.execute, gate, "late")
    assert ["a", "b", "c", "late"] == gate.came


@pytest.mark.parametrize("queue", [0, 2])
@simulate(runs=10)
async def test_who_finds_no_room_to_wait_is_rejected(queue: int) -> None:
    """At once, without a checkpoint; a block is too."""
    bulkhead, gate = Bulkhead(2, queue=queue, name="api"), Gate()
    async with anyio.create_task_group() as group:
        await start_in_order(group, partial(bulkhead.execute, gate), *range(2 + queue))
        with pytest.raises(BulkheadFullError) as caught:
            await bulkhead.execute(gate)
        with pytest.raises(BulkheadFullError):
            async with bulkhead:
                pytest.fail("entered")
        assert str(caught.value) == (
            f"bulkhead 'api' takes 2 calls at a time and {queue} that wait: got one more; "
            "call later, or raise limit or queue"
        )
        assert {"name": "api", "limit": 2, "queue": queue} == caught.value.details
        assert 2 == bulkhead.statistics().rejected
        gate.opened.set()
    assert 2 + queue == len(gate.came)
    assert "fine" == await bulkhead.execute(returning("fine"))


@simulate(runs=5)
async def test_a_place_is_given_back_whatever_happens() -> None:
    """By results, errors, cancellation; by blocks too; and who waited gets it."""
    bulkhead = Bulkhead(1, queue=1)
    with pytest.raises(Boom):
        await bulkhead.execute(raising(Boom()))
    with pytest.raises(Boom):
        async with bulkhead:
            raise Boom
    with anyio.move_on_after(1):
        await bulkhead.execute(hanging)
    with anyio.move_on_after(1):
        async with bulkhead:
            await anyio.sleep_forever()
    with assert_checkpoints():
        async with anyio.create_task_group() as group, bulkhead:
            group.start_soon(bulkhead.execute, returning("fine"))
            await anyio.wait_all_tasks_blocked()
            assert (1, 1) == (bulkhead.statistics().running, bulkhead.statistics().waiting)
    assert (0, 0) == (bulkhead.statistics().running, bulkhead.statistics().waiting)


@simulate(runs=30)
async def test_a_waiter_that_is_cancelled_loses_no_place() -> None:
    """In the moment in which its turn comes, either."""
    bulkhead, gate = Bulkhead(1, queue=10), Gate()
    scopes = [anyio.CancelScope() for _ in range(4)]

    async def call(number: int) -> None:
        with scopes[number]:
            await bulkhead.execute(gate, number)

    first = Gate()
    async with anyio.create_task_group() as group:
        group.start_soon(bulkhead.execute, first)
        await anyio.wait_all_tasks_blocked()
        await start_in_order(group, call, *range(4))
        scopes[1].cancel()
        first.opened.set()
        await anyio.lowlevel.checkpoint()
        scopes[0].cancel()
        gate.opened.set()
    assert [2, 3] == [number for number in gate.came if number in (2, 3)]
    assert 1 not in gate.came
    assert (0, 0) == (bulkhead.statistics().running, bulkhead.statistics().waiting)


@simulate(runs=20)
async def test_whoever_is_cancelled_whenever(sim: Any) -> None:
    """Never more inside than the limit, and all places there in the end."""
    bulkhead = Bulkhead(2, queue=100)
    inside = 0

    async def work(seconds: float) -> None:
        nonlocal inside
        inside += 1
        assert inside <= 2
        try:
            await anyio.sleep(seconds)
        finally:
            inside -= 1

    async def call(limit: float, seconds: float) -> None:
        with anyio.move_on_after(limit):
            await bulkhead.execute(work, seconds)

    async with anyio.create_task_group() as group:
        for _ in range(40):
            group.start_soon(call, sim.random.choice([1, 2, 3]), sim.random.choice([0, 1, 2]))
            if sim.random.random() < 0.3:
                await anyio.sleep(1)
    assert BulkheadStatistics(limit=2, queue=100, running=0, waiting=0, rejected=0) == bulkhead.statistics()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"limit": 0},
            "limit of bulkhead 'b' must be a whole number, 1 or more: got 0; say how many calls may run at a time",
        ),
        (
            {"limit": 1.5},
            "limit of bulkhead 'b' must be a whole number, 1 or more: got 1.5; say how many calls may run at a time",
        ),
        (
            {"limit": 1, "queue": -1},
            "queue of bulkhead 'b' must be a whole number, 0 or more: got -1; say how many calls may wait, 0 for none",
        ),
        (
            {"limit": 1, "queue": None},
            "queue of bulkhead 'b' must be a whole number, 0 or more: got None; say how many calls may wait, 0 for none",
        ),
    ],
)
def test_bulkheads_that_cannot_be_used(arguments: dict[str, Any], message: str) -> None:
    """Each message says what it must be, what it was, and what to do."""
    with pytest.raises(ConfigurationError) as caught:
        Bulkhead(**arguments, name="b")
    assert message == str(caught.value)


# Rate limits.


@simulate(runs=10)
async def test_calls_begin_at_the_rate() -> None:
    """What was saved up at once, then one after the other, in order of arrival."""
    limit, began = RateLimit(2, burst=3), []

    async def note(number: int) -> None:
        began.append((number, anyio.current_time()))

    async with anyio.create_task_group() as group:
        await start_in_order(group, partial(limit.execute, note), *range(7))
        assert 4 == limit.statistics().waiting
        assert "<RateLimit 'rate_limit' 2 per 1 s, 0 available, 4 waiting>" == repr(limit)
    assert [(0, 0.0), (1, 0.0), (2, 0.0), (3, 0.5), (4, 1.0), (5, 1.5), (6, 2.0)] == began
    assert (0.0, 0) == (limit.statistics().available, limit.statistics().waiting)
    await anyio.sleep(100)
    assert 3 == limit.statistics().available


@pytest.mark.parametrize(("rate", "per", "burst"), [(60, 60.0, 60), (0.5, 1.0, 1), (2.5, 1.0, 2.5), (1, 60, 1)])
def test_the_burst_is_the_rate_if_omitted(rate: float, per: float, burst: float) -> None:
    """One at least: a call has to be possible."""
    assert burst == RateLimit(rate, per=per).burst
    assert 1 == RateLimit(rate, per=per, burst=1).burst


@simulate(runs=10)
async def test_a_wait_that_would_be_too_long_is_not_begun() -> None:
    """The error says when a call would be allowed; a wait that is just as long as allowed is begun."""
    limit = RateLimit(60, per=60.0, burst=1, max_wait=1.0, name="api")
    assert "fine" == await limit.execute(returning("fine"))
    assert "fine" == await limit.execute(returning("fine"))
    assert 1.0 == anyio.current_time()
    async with anyio.create_task_group() as group:
        await start_in_order(group, limit.execute, returning("fine"))
        await anyio.sleep(0.5)
        with pytest.raises(RateLimitError) as caught:
            await limit.execute(returning("fine"))
        with pytest.raises(RateLimitError):
            async with limit:
                pytest.fail("entered")
    assert str(caught.value) == (
        "rate limit 'api' of 60 calls per 60 s allows no further one within the max_wait of 1 s: "
        "got one that would wait for 1.5 s; call again then, or allow more time"
    )
    assert ({"name": "api", "retry_after": 1.5}, 1.5) == (caught.value.details, caught.value.retry_after)
    assert 2 == limit.statistics().rejected
    impatient = RateLimit(1, burst=1, max_wait=0)
    assert "fine" == await impatient.execute(returning("fine"))
    with pytest.raises(RateLimitError, match="within the max_wait of 0 s"):
        await impatient.execute(returning("fine"))


@simulate(runs=10)
async def test_a_wait_that_the_deadline_cuts_is_not_begun() -> None:
    """Nobody waits for what comes too late. Who is cancelled already is cancelled, and not rejected."""
    limit = RateLimit(1, burst=1)
    async with limit:
        pass
    for seconds in (0.5, 1.0):
        with pytest.raises(RateLimitError, match=f"within the {seconds:g} s to the caller's deadline"):
            with anyio.fail_after(seconds):
                await limit.execute(print)
    assert 0.0 == anyio.current_time()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await limit.execute(print)
    assert scope.cancelled_caught
    assert (0, 2) == (limit.statistics().waiting, limit.statistics().rejected)
    with anyio.fail_after(1.5):
        assert "fine" == await limit.execute(returning("fine"))
    assert 1.0 == anyio.current_time()


@simulate(runs=20)
async def test_who_is_cancelled_while_it_waits_costs_no_token() -> None:
    """Those behind move up, whoever it is that goes; and no two come at once for that."""
    limit, began = RateLimit(1, burst=1), []
    scopes = [anyio.CancelScope() for _ in range(6)]

    async def note(number: int) -> None:
        began.append((number, anyio.current_time()))

    async def call(number: int) -> None:
        with scopes[number]:
            await limit.execute(note, number)

    async with anyio.create_task_group() as group:
        await start_in_order(group, call, *range(6))
        scopes[1].cancel()  # the first in line
        scopes[3].cancel()
        await anyio.sleep(0.5)
        group.start_soon(limit.execute, note, "late")
        await anyio.sleep(0.75)
        scopes[4].cancel()
    assert [(0, 0.0), (2, 1.0), (5, 2.0), ("late", 3.0)] == began


@simulate(runs=20)
async def test_no_more_begin_than_the_bucket_holds(sim: Any) -> None:
    """Whoever waits, is cancelled, or comes late: in any time, at most the burst and what has come in it."""
    limit, began = RateLimit(4, burst=3), []

    async def note() -> None:
        began.append(anyio.current_time())

    async def call(seconds: float) -> None:
        with anyio.move_on_after(seconds), anyio.CancelScope(shield=False):
            try:
                await limit.execute(note)
            except RateLimitError:
                return

    async with anyio.create_task_group() as group:
        for _ in range(60):
            group.start_soon(call, sim.random.choice([0.25, 1, 2, math.inf]))
            await anyio.sleep(sim.random.choice([0, 0, 0, 0.25, 1]))
    for first, start in enumerate(began):
        for last in range(first, len(began)):
            assert last - first + 1 <= 3 + 4 * (began[last] - start) + 1e-6
    assert 0 == limit.statistics().waiting


@settings(deadline=None, max_examples=50)
@given(rate=st.floats(0.01, 1e7), begin=st.floats(0, 1e8), calls=st.integers(2, 20))
def test_the_rate_is_kept_at_any_time_of_the_day(rate: float, begin: float, calls: int) -> None:
    """However the clock is rounded, nobody runs in circles, and the last one begins when it should."""

    async def main() -> float:
        current_simulation().advance(begin)
        limit = RateLimit(rate, burst=1)
        for _ in range(calls):
            await limit.execute(returning(None))
        return anyio.current_time() - begin

    result = run_sim(main, max_steps=1000)
    assert result.unwrap() == pytest.approx((calls - 1) / rate, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"rate": 0},
            "rate of rate limit 'r' must be a number, more than 0: got 0; say how many calls may begin in the time `per`",
        ),
        (
            {"rate": 1, "per": 0},
            "per of rate limit 'r' must be a number of seconds, more than 0: got 0; say in which time",
        ),
        (
            {"rate": 1, "burst": 0.5},
            "burst of rate limit 'r' must be a number, 1 or more: got 0.5; use 1 for calls at even distances",
        ),
        (
            {"rate": 1, "max_wait": -1},
            "max_wait of rate limit 'r' must be a number of seconds, 0 or more: got -1; use None for no limit",
        ),
    ],
)
def test_rate_limits_that_cannot_be_used(arguments: dict[str, Any], message: str) -> None:
    """Each message says what it must be, what it was, and what to do."""
    with pytest.raises(ConfigurationError) as caught:
        RateLimit(**arguments, name="r")
    assert message == str(caught.value)


# Several event loops.


def run_in_threads(backend: str, threads: int, main: Callable[[int], Awaitable[Any]]) -> list[Any]:
    """Run an event loop in each of several threads; return what their main functions return or raise."""
    results: list[Any] = [None] * threads
    together = threading.Barrier(threads)

    def run(index: int) -> None:
        together.wait(10)
        try:
            results[index] = anyio.run(main, index, backend=backend)
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            results[index] = error

    started = [threading.Thread(target=run, args=(index,), daemon=True) for index in range(threads)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join(60)
    assert not any(thread.is_alive() for thread in started), "a thread waits for ever"
    return results


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_bulkhead_serves_several_event_loops(backend: str) -> None:
    """Together they never exceed the limit, and every waiter is woken up in its own."""
    bulkhead = Bulkhead(2, queue=1000)
    lock = threading.Lock()
    inside = peak = 0

    async def work() -> None:
        nonlocal inside, peak
        with lock:
            inside += 1
            peak = max(peak, inside)
        try:
            for _ in range(3):
                await anyio.lowlevel.checkpoint()
        finally:
            with lock:
                inside -= 1

    async def call(number: int) -> None:
        # Some are cut, wherever they are by then.
        with anyio.move_on_after(0.001 * (number % 11) if number % 3 else None):
            await bulkhead.execute(work)

    async def main(_index: int) -> None:
        async with anyio.create_task_group() as group:
            for number in range(200):
                group.start_soon(call, number)

    assert [None] * 4 == run_in_threads(backend, 4, main)
    assert peak <= 2
    assert (0, 0) == (bulkhead.statistics().running, bulkhead.statistics().waiting)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_rate_limit_serves_several_event_loops(backend: str) -> None:
    """All get their turn, in about the time that it takes, wherever they wait."""
    limit = RateLimit(2000, burst=1)
    done: list[int] = []

    async def note(index: int) -> None:
        done.append(index)

    async def main(index: int) -> None:
        async with anyio.create_task_group() as group:
            for _ in range(25):
                group.start_soon(limit.execute, note, index)

    assert [None] * 4 == run_in_threads(backend, 4, main)
    assert sorted([0, 1, 2, 3] * 25) == sorted(done)
    assert 0 == limit.statistics().waiting


class Abandoned:
    """An event loop that is closed while a task of it waits in a limit, as if its thread had been careless."""

    def __init__(self, layer: Any) -> None:
        loop = asyncio.new_event_loop()
        before = layer.statistics().waiting
        self.call = layer.execute(hanging)
        task = loop.create_task(self.call)
        loop.run_until_complete(asyncio.sleep(0))
        assert before + 1 == layer.statistics().waiting
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        loop.close()

    def close(self) -> None:
        """Do what the garbage collector does sooner or later."""
        self.call.close()


def test_a_waiter_whose_event_loop_is_gone_gets_no_place() -> None:
    """The next one gets it, and when the coroutine is closed at last, that changes nothing."""
    bulkhead = Bulkhead(1, queue=10)
    assert bulkhead._slots.try_take()
    abandoned = [Abandoned(bulkhead), Abandoned(bulkhead)]

    async def main() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(bulkhead.execute, returning("fine"))
            await anyio.wait_all_tasks_blocked()
            assert 3 == bulkhead.statistics().waiting
            bulkhead._end()

    run_sim(main).unwrap()
    assert (0, 0) == (bulkhead.statistics().running, bulkhead.statistics().waiting)
    for one in abandoned:
        one.close()
    assert (0, 0) == (bulkhead.statistics().running, bulkhead.statistics().waiting)


def test_a_waiter_whose_event_loop_is_gone_holds_nobody_up() -> None:
    """Neither when its turn comes, nor when it should be the one to tell the next."""
    limit = RateLimit(1.0, burst=1)
    ends: list[float] = []

    async def note() -> None:
        ends.append(anyio.current_time())

    with Simulation() as sim:
        group = sim.enter(anyio.create_task_group)
        sim.run(limit.execute, note)
        sim.call(group.start_soon, limit.execute, note)
        sim.run(anyio.wait_all_tasks_blocked)
        abandoned = Abandoned(limit)
        for _ in range(2):
            sim.call(group.start_soon, limit.execute, note)
        sim.run(anyio.sleep, 10)
        assert [0.0, 1.0, 2.0, 3.0] == ends
        abandoned.close()
        assert 0 == limit.statistics().waiting


@types.coroutine
def stand_still() -> Generator[None]:
    """Wait for nothing in particular: no event loop is needed."""
    yield


def test_who_ends_never_waits_for_the_lock() -> None:
    """A coroutine may be closed by the garbage collector inside of the very thread that holds it."""
    bulkhead = Bulkhead(1)
    call = bulkhead.execute(stand_still)
    call.send(None)
    with bulkhead._lock:
        call.close()
    # Whoever comes next sees to it.
    with pytest.raises(BulkheadFullError):
        bulkhead.execute(stand_still).send(None)
    call = bulkhead.execute(stand_still)
    call.send(None)
    assert 1 == bulkhead.statistics().running
    call.close()
    assert 0 == bulkhead.statistics().running


@pytest.mark.parametrize("make", [lambda: Bulkhead(1, queue=9), lambda: RateLimit(1.0, burst=1)])
def test_who_waits_never_waits_for_the_lock(make: Callable[[], Any]) -> None:
    """Nor when it is closed instead."""
    layer = make()

    async def main() -> None:
        async with anyio.create_task_group() as group:
            await start_in_order(group, lambda _: layer.execute(hanging), 1, 2)
            waiting = layer.execute(hanging)
            waiting.send(None)
            assert 2 == layer.statistics().waiting
            with layer._lock:
                waiting.close()
            group.start_soon(layer.execute, hanging)
            await anyio.wait_all_tasks_blocked()
            assert 2 == layer.statistics().waiting
            group.cancel_scope.cancel()

    run_sim(main).unwrap()
