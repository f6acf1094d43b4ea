"""One breaker in several threads: event loops of both kinds, and threads without one."""

from __future__ import annotations

import gc
import sys
import threading
import time
from collections.abc import Callable, Generator
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from agentcore import CircuitBreaker, CircuitOpenError, Event, KeyedCircuitBreaker
from agentcore.testing import BACKENDS
from tests.core.circuits import (
    RESET,
    Clock,
    Down,
    at_once,
    fail,
    heard_by,
    make,
    open_up,
    permits_of,
    probers_of,
    succeed,
)

LOOPS = ("asyncio", "trio", "asyncio", "trio")
PATIENCE = 30.0
"""Real seconds that a thread may take that is expected to end at once."""


@pytest.fixture(autouse=True)
def impatient() -> Generator[None]:
    """Have threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def in_threads(*functions: Callable[[], Any]) -> None:
    """Run each function in a thread of its own, all beginning at the same time; raise what one of them raises."""
    errors: list[BaseException] = []
    barrier = threading.Barrier(len(functions))

    def run(function: Callable[[], Any]) -> None:
        try:
            barrier.wait(PATIENCE)
            function()
        except BaseException as error:  # noqa: BLE001 - raised below
            errors.append(error)

    threads = [threading.Thread(target=run, args=(function,), daemon=True) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert [False] * len(threads) == [thread.is_alive() for thread in threads]
    if errors:
        raise errors[0]


def in_loops(function: Callable[..., Any], *args: Any) -> None:
    """Run a coroutine function in two event loops of each kind at the same time."""
    in_threads(*(partial(anyio.run, function, *args, backend=backend) for backend in LOOPS))


# ---------------------------------------------------------------- counting


@pytest.mark.parametrize(
    "settings",
    [{}, {"slow_call_ms": 60_000}, {"window_calls": 100, "failure_rate": 1.0}, {"window_ms": 1, "failure_rate": 1.0}],
    ids=["plain", "slow", "calls", "time"],
)
@pytest.mark.parametrize("kind", ["successes", "both"])
def test_counts_are_exact(settings: dict[str, Any], kind: str) -> None:
    """As long as one thread runs at a time: no outcome is lost, none counts twice."""
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        pytest.skip("successes are counted without a lock")
    breaker = make(failure_threshold=10**9 if not settings.get("window_calls") else 50, minimum_calls=100, **settings)
    breaker.subscribe(lambda event: pytest.fail(f"{event}"))
    each = 1_000

    async def calls() -> None:
        for number in range(each):
            await breaker.execute(succeed)
            if kind == "both" and number % 4 == 0:
                try:
                    await breaker.execute(fail)
                except Down:
                    pass

    in_loops(calls)
    metrics = breaker.metrics
    failures = 4 * each // 4 if kind == "both" else 0
    assert (4 * each, failures) == (metrics.successes, metrics.failures)
    assert failures == sum(metrics.failures_by_type.values())


def test_counts_by_hand_and_without_a_loop() -> None:
    """Every way to call and to report, at the same time."""
    breaker = make(failure_threshold=10**9)
    each = 500

    def down() -> None:
        raise Down

    def synchronous() -> None:
        for _ in range(each):
            breaker.call(lambda: 1)
            with pytest.raises(Down):
                breaker.call(down)

    def by_hand() -> None:
        for _ in range(each):
            assert at_once(breaker.allow_request())
            at_once(breaker.on_success())
            assert at_once(breaker.allow_request())
            at_once(breaker.on_failure("Down"))

    async def blocks() -> None:
        for _ in range(each):
            async with breaker:
                pass
            with pytest.raises(Down):
                async with breaker:
                    raise Down

    in_threads(synchronous, by_hand, synchronous, by_hand, *(partial(anyio.run, blocks, backend=b) for b in BACKENDS))
    assert (6 * each, 6 * each) == (breaker.metrics.successes, breaker.metrics.failures)
    assert {"Down": 6 * each} == dict(breaker.metrics.failures_by_type)


def test_rejections_are_counted() -> None:
    breaker = make(clock=Clock())
    open_up(breaker)

    async def calls() -> None:
        for _ in range(500):
            with pytest.raises(CircuitOpenError):
                await breaker.execute(succeed)
            assert not await breaker.allow_request()

    in_loops(calls)
    assert 4 * 1_000 == breaker.metrics.rejected


def test_it_opens_once() -> None:
    """However many failures come at the same time."""
    for _ in range(20):
        breaker = make(failure_threshold=20, clock=Clock())
        events = heard_by(breaker)

        async def calls(breaker: CircuitBreaker = breaker) -> None:
            for _ in range(10):
                try:
                    await breaker.execute(fail)
                except (Down, CircuitOpenError):
                    pass

        in_loops(calls)
        assert ["circuit_opened"] == [event.event_type for event in events]
        # What was under way when it opened failed in an era that was over.
        assert 20 == breaker.metrics.failures
        assert 0 < breaker.metrics.rejected <= 20


def test_sequences_are_numbered_one_by_one() -> None:
    """Events of several threads have numbers of their own, without gaps."""
    breaker = make()
    events = heard_by(breaker)

    def flip() -> None:
        for _ in range(200):
            at_once(breaker.on_failure("Down"))
            breaker.reset()

    in_threads(*4 * [flip])
    numbers = [event.sequence for event in events]
    assert list(range(1, len(numbers) + 1)) == sorted(numbers)


# ---------------------------------------------------------------- probes


class Service:
    """Lets nobody out before everybody else was rejected, and counts who is inside."""

    def __init__(self, rejections: int) -> None:
        self.rejections = rejections
        self.opened = threading.Event()
        self.lock = threading.Lock()
        self.calls = self.inside = self.peak = 0

    def enter(self) -> None:
        with self.lock:
            self.calls += 1
            self.inside += 1
            self.peak = max(self.peak, self.inside)

    def leave(self) -> None:
        with self.lock:
            self.inside -= 1

    def reject(self) -> None:
        """Note that somebody else was rejected."""
        with self.lock:
            self.rejections -= 1
            if not self.rejections:
                self.opened.set()

    async def __call__(self) -> str:
        self.enter()
        try:
            assert await anyio.to_thread.run_sync(self.opened.wait, PATIENCE)
        finally:
            self.leave()
        return "well"


@pytest.mark.parametrize("threshold", [1, 3])
@pytest.mark.parametrize("attempt", range(3))
def test_callers_of_all_threads_at_the_moment_of_reset(threshold: int, attempt: int) -> None:
    """Together they make as many probes as are needed, and not one more."""
    breaker = make(success_threshold=threshold, probe_timeout_ms=60_000, clock=(clock := Clock()))
    open_up(breaker)
    clock.now += RESET
    each = 50
    service = Service(4 * each - threshold)

    async def caller() -> None:
        try:
            assert "well" == await breaker.execute(service)
        except CircuitOpenError:
            service.reject()

    async def herd() -> None:
        async with anyio.create_task_group() as group:
            for _ in range(each):
                group.start_soon(caller)

    in_loops(herd)
    assert (threshold, threshold, True) == (service.calls, service.peak, breaker.is_closed)
    assert 4 * each - threshold == breaker.metrics.rejected
    assert () == permits_of(breaker)


def test_eras_do_not_mix_between_threads() -> None:
    """While circuits open, reopen and close in all threads: never more probes than allowed, and it ends closed."""
    clock = Clock()
    breaker = make(success_threshold=2, failure_threshold=3, probe_timeout_ms=60_000, clock=clock)
    permits: list[int] = []

    async def work(number: int) -> None:
        permits.append(len(permits_of(breaker)))
        await anyio.lowlevel.checkpoint()
        if number // 8 % 2:
            raise Down

    async def calls() -> None:
        for number in range(300):
            try:
                await breaker.execute(work, number)
            except CircuitOpenError:
                clock.now += RESET
            except Down:
                pass
            await anyio.lowlevel.checkpoint()

    in_loops(calls)
    assert max(permits) in (1, 2)
    assert breaker.metrics.state_changes > 10
    clock.now += 10 * RESET
    for _ in range(2):
        breaker.call(lambda: 1)
    assert breaker.is_closed
    assert () == permits_of(breaker)


def test_a_permit_belongs_to_a_thread_without_a_loop() -> None:
    """A thread is what asks there; another one has to ask for itself."""
    breaker = make(success_threshold=2, clock=(clock := Clock()))
    open_up(breaker)
    clock.now += RESET
    asked: list[bool] = []
    first = threading.Event()

    def ask_twice() -> None:
        asked.append(at_once(breaker.allow_request()))
        asked.append(at_once(breaker.allow_request()))
        first.set()

    def ask_later() -> None:
        first.wait(PATIENCE)
        asked.append(at_once(breaker.allow_request()))
        at_once(breaker.on_success())

    in_threads(ask_twice, ask_later)
    # The first one has gone with his permit, the second one has succeeded: one more is needed, and one is out.
    assert [True, True, True] == asked
    assert not at_once(breaker.allow_request())
    assert (1, 2) == (len(permits_of(breaker)), breaker.metrics.successes + 1)


# ---------------------------------------------------------------- no lock across calls


def down() -> None:
    raise Down


def call_ignoring(breaker: CircuitBreaker, function: Callable[[], object]) -> None:
    """Make a call whose outcome is of no interest."""
    try:
        breaker.call(function)
    except (Down, CircuitOpenError):
        pass


def use_all(breaker: CircuitBreaker) -> None:
    """Ask for everything, call, and report."""
    assert breaker.metrics is not None
    assert breaker.retry_after is not None
    call_ignoring(breaker, lambda: 1)
    at_once(breaker.allow_request())
    at_once(breaker.on_success())


BLOCKING: dict[str, tuple[str, Callable[[CircuitBreaker, Any], None]]] = {
    "closed": ("", call_ignoring),
    "half_open": ("", call_ignoring),
    "predicate": ("failure_if", lambda breaker, block: call_ignoring(breaker, down)),
    "result": ("failure_if_result", lambda breaker, block: call_ignoring(breaker, lambda: 1)),
    "sink": ("", lambda breaker, block: open_up(breaker)),
}


@pytest.mark.parametrize("path", BLOCKING)
def test_no_lock_is_held_while_other_code_runs(path: str) -> None:
    """A call, a predicate or a sink that blocks its thread blocks no other one."""
    entered, leave = threading.Event(), threading.Event()

    def block(*args: object) -> bool:
        if threading.current_thread() is blocked:
            entered.set()
            assert leave.wait(PATIENCE)
        return True

    setting, use = BLOCKING[path]
    settings: dict[str, Any] = {setting: block} if setting else {}
    breaker = make(success_threshold=2, failure_threshold=2, clock=(clock := Clock()), **settings)
    if path == "half_open":
        open_up(breaker)
        clock.now += RESET
    if path == "sink":
        breaker.subscribe(block)
    blocked = threading.Thread(target=use, args=(breaker, block), daemon=True)
    blocked.start()
    assert entered.wait(PATIENCE)
    try:
        in_threads(partial(use_all, breaker))
    finally:
        leave.set()
        blocked.join(PATIENCE)
    assert not blocked.is_alive()


def test_sinks_come_and_go_in_all_threads() -> None:
    """Whoever leaves takes nobody with him."""
    breaker = make(clock=Clock())
    told: list[Event] = []

    def come_and_go() -> None:
        for _ in range(300):
            breaker.subscribe(lambda event: None)()

    def come_and_stay() -> None:
        for _ in range(100):
            breaker.subscribe(told.append)

    in_threads(come_and_go, come_and_stay, come_and_go, come_and_stay)
    open_up(breaker)
    assert 200 == len(told)


def test_a_finalizer_may_use_the_breaker() -> None:
    """Garbage may be collected at any moment, also in the middle of the breaker: it must not wait for itself."""
    breaker = make(failure_threshold=10**9)

    class Resource:
        def __del__(self) -> None:
            at_once(breaker.on_failure("Finalizer"))

    def clock() -> float:
        if resources:
            resources.pop()
            gc.collect()
        return 0.0

    resource: Any = Resource()
    resource.itself = resource
    resources = [resource]
    del resource
    breaker._circuit._clock = clock
    in_threads(lambda: at_once(breaker.on_failure("Down")))
    assert {"Finalizer": 1, "Down": 1} == dict(breaker.metrics.failures_by_type)


# ---------------------------------------------------------------- active probes


@pytest.mark.parametrize("backend", BACKENDS)
def test_opening_in_another_thread_wakes_the_prober(backend: str) -> None:
    """It sleeps without an end as long as the circuit is closed."""
    breaker = make(reset_timeout_ms=1, probe_timeout_ms=60_000, probe=succeed)
    closed = threading.Event()
    breaker.subscribe(lambda event: closed.set() if event.event_type == "circuit_closed" else None)

    async def owner() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(breaker.run_probes)
            assert await anyio.to_thread.run_sync(closed.wait, PATIENCE)
            group.cancel_scope.cancel()

    def opener() -> None:
        await_probers(breaker, 1)
        at_once(breaker.on_failure("Down"))  # once: it may be closed again before anybody looks

    in_threads(partial(anyio.run, owner, backend=backend), opener)
    assert (True, 1) == (breaker.is_closed, breaker.metrics.successes)


def await_probers(breaker: CircuitBreaker, number: int) -> None:
    """Block until so many are there."""
    give_up = time.monotonic() + PATIENCE
    while probers_of(breaker) < number:
        assert time.monotonic() < give_up


def test_probers_in_several_loops() -> None:
    """They share the work: as many probes as are needed close it, each time that it opens in a thread without a loop."""
    service_lock = threading.Lock()
    counts = {"inside": 0, "peak": 0}
    done = threading.Event()

    async def probe() -> None:
        with service_lock:
            counts["inside"] += 1
            counts["peak"] = max(counts["peak"], counts["inside"])
        await anyio.lowlevel.checkpoint()
        with service_lock:
            counts["inside"] -= 1

    breaker = make(success_threshold=2, reset_timeout_ms=1, probe_timeout_ms=60_000, probe=probe)
    opened = 0

    async def owner() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(breaker.run_probes)
            assert await anyio.to_thread.run_sync(done.wait, PATIENCE)
            group.cancel_scope.cancel()

    def opener() -> None:
        nonlocal opened
        closed = threading.Event()
        breaker.subscribe(lambda event: closed.set() if event.event_type == "circuit_closed" else None)
        try:
            await_probers(breaker, 4)
            for _ in range(20):
                closed.clear()
                at_once(breaker.on_failure("Down"))
                assert closed.wait(PATIENCE)
                opened += 1
        finally:
            done.set()

    in_threads(opener, *(partial(anyio.run, owner, backend=backend) for backend in LOOPS))
    assert (20, 20) == (opened, breaker.metrics.opened_count)
    # A prober that comes a moment too late finds it closed, and has called once more than was needed.
    assert 40 <= breaker.metrics.successes <= 40 + 3 * 20
    assert counts["peak"] <= 2
    assert 0 == probers_of(breaker)


# ---------------------------------------------------------------- by name


def test_keys_in_all_threads() -> None:
    """Everybody gets the same breaker of a key, and never are more kept than allowed."""
    keyed = KeyedCircuitBreaker("hosts", max_keys=10)
    seen: list[int] = []
    known: list[CircuitBreaker] = []

    def use() -> None:
        for number in range(500):
            breaker = keyed[f"host{number % 7}"]
            known.append(breaker)
            seen.append(len(keyed))

    def use_others() -> None:
        for number in range(500):
            assert keyed[f"other{number}"].is_closed
            seen.append(len(keyed))

    in_threads(use, use, use)
    assert 7 == len({id(breaker) for breaker in known})
    in_threads(use, use_others, use_others)
    assert max(seen) <= 10
