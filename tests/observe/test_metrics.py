"""What is counted, from where it is collected, and that nothing is as long as nobody wants it."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import attrs
import pytest

from agentcore import (
    AgentRuntime,
    CircuitBreakerConfig,
    ConfigurationError,
    Registry,
    TaskExecutionError,
    get_circuit_breaker,
    get_function_registry,
    get_registry,
)
from agentcore._events import Event, EventLog
from agentcore.config import MetricsConfiguration
from agentcore.observe import Metrics, _metrics, init_metrics
from agentcore.testing import isolated_globals


@pytest.fixture(autouse=True)
def nothing_counted() -> Iterator[None]:
    """Begin and end without metrics, registries and breakers of the process."""
    init_metrics(MetricsConfiguration(enabled=False))
    with isolated_globals():
        yield
    init_metrics(MetricsConfiguration(enabled=False))


@attrs.frozen
class Tasks:
    """What a part of a runtime says."""

    completed: int
    waited: float


@attrs.frozen
class Statistics:
    """What a runtime says: text and truth are no numbers."""

    state: str
    healthy: bool
    tasks: Tasks


class Source:
    """As much of a runtime as metrics need."""

    def __init__(self, completed: int = 1) -> None:
        self.log = EventLog()
        self.completed = completed

    def subscribe(self, sink: Callable[[Event], object]) -> Callable[[], None]:
        return self.log.subscribe(sink)

    def statistics(self) -> Statistics:
        return Statistics("open", healthy=True, tasks=Tasks(self.completed, 0.5))

    def sinks(self) -> int:
        """Return how many listen."""
        return len(self.log._sinks)


# Whether anything is counted.


def test_nothing_is_counted_before_somebody_wants_it() -> None:
    """A new runtime looks at one variable."""
    source = Source()
    assert _metrics.current() is None
    _metrics.attach(source)
    assert source.sinks() == 0


def test_new_runtimes_are_counted_from_then_on() -> None:
    """By the hook that they call."""
    metrics = init_metrics()
    source = Source()
    assert _metrics.current() is metrics
    _metrics.attach(source)
    source.log.emit("task_started")
    source.log.emit("task_started")
    assert (source.sinks(), metrics.enabled) == (1, True)
    assert metrics.collect() == {
        "events.task_started": 2,
        "runtimes": 1,
        "runtimes.tasks.completed": 1,
        "runtimes.tasks.waited": 0.5,
    }


def test_again_is_the_same() -> None:
    """What was counted stays."""
    metrics = init_metrics()
    source = Source()
    metrics.attach(source)
    source.log.emit("x")
    assert init_metrics(MetricsConfiguration()) is metrics
    assert metrics.collect()["events.x"] == 1


def test_disabled() -> None:
    """It has nothing to tell and takes nothing on."""
    metrics = init_metrics(MetricsConfiguration(enabled=False))
    source = Source()
    metrics.attach(source)
    _metrics.attach(source)
    get_registry("agents").register("x", 1)
    assert (metrics.collect(), source.sinks(), _metrics.current()) == ({}, 0, None)
    assert (metrics.enabled, repr(metrics)) == (False, "<Metrics of 0 runtimes, disabled>")


def test_disabled_later() -> None:
    """Every runtime is left alone; enabled again, it begins anew."""
    metrics = init_metrics()
    source = Source()
    metrics.attach(source)
    source.log.emit("x")
    assert init_metrics(MetricsConfiguration(enabled=False)) is metrics
    source.log.emit("x")
    assert (metrics.collect(), source.sinks()) == ({}, 0)
    again = init_metrics()
    assert again is not metrics
    assert again.collect() == {"runtimes": 0}


@pytest.mark.parametrize("config", [{}, True, 5])
def test_a_configuration_must_be_one(config: Any) -> None:
    """The error says where it is from."""
    with pytest.raises(ConfigurationError) as caught:
        init_metrics(config)
    assert str(caught.value) == (
        f"config of init_metrics must be a MetricsConfiguration: got {config!r}; pass load_configuration().metrics"
    )


# Runtimes.


def test_attached_twice_is_counted_once() -> None:
    """Who attaches a runtime by hand need not know whether it is."""
    metrics = init_metrics()
    source = Source()
    metrics.attach(source)
    metrics.attach(source)
    source.log.emit("x")
    assert metrics.collect()["events.x"] == 1
    assert repr(metrics) == "<Metrics of 1 runtimes>"


def test_several_runtimes_are_added_up() -> None:
    """Their statistics and their events."""
    metrics = init_metrics()
    sources = [Source(2), Source(3)]
    for source in sources:
        metrics.attach(source)
        source.log.emit("x")
    assert metrics.collect() == {
        "events.x": 2,
        "runtimes": 2,
        "runtimes.tasks.completed": 5,
        "runtimes.tasks.waited": 1.0,
    }


def test_a_runtime_that_is_gone_vanishes() -> None:
    """Metrics hold none of them, also not by way of another sink that knows it; the events stay counted."""
    metrics = init_metrics()
    source = Source()
    alive = weakref.ref(source)

    def knows(_: Event, source: Source = source) -> None:
        assert source.completed

    source.subscribe(knows)
    metrics.attach(source)
    source.log.emit("x")
    del source, knows
    gc.collect()
    assert alive() is None
    assert metrics.collect() == {"events.x": 1, "runtimes": 0}


@pytest.mark.anyio
async def test_a_real_runtime() -> None:
    """What it says of its tasks, and each of its events by type."""
    metrics = init_metrics()
    async with AgentRuntime() as runtime:
        metrics.attach(runtime)

        @runtime.handler("work")
        async def work(given: dict[str, Any]) -> int:
            return 1 // int(given["by"])

        await runtime.run("work", {"by": 1})
        with pytest.raises(TaskExecutionError):
            await runtime.run("work", {"by": 0})
        collected = metrics.collect()
    assert {
        "events.task_accepted": 2,
        "events.task_started": 2,
        "events.task_completed": 1,
        "events.task_failed": 1,
        "runtimes": 1,
        "runtimes.tasks.accepted": 2,
        "runtimes.tasks.completed": 1,
        "runtimes.tasks.failed": 1,
        "runtimes.tasks.in_flight": 0,
    }.items() <= collected.items()
    assert all(type(number) in {int, float} for number in collected.values())


def test_no_event_is_lost_among_threads() -> None:
    """Runtimes in several threads, and breakers that several threads use, count into one place."""
    metrics = init_metrics()
    sources = [Source() for _ in range(2)]
    for source in sources:
        metrics.attach(source)
    start = threading.Barrier(4)

    def emit(source: Source) -> None:
        start.wait(30)
        for _ in range(2000):
            source.log.emit("x")

    with ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(emit, source) for source in sources * 2]:
            done.result(60)
    assert metrics.collect()["events.x"] == 8000


def test_collected_while_runtimes_come_and_go() -> None:
    """Whoever asks always gets an answer."""
    metrics = init_metrics()
    done = threading.Event()

    def come_and_go() -> None:
        try:
            for _ in range(500):
                source = Source()
                metrics.attach(source)
                source.log.emit("x")
        finally:
            done.set()

    def ask() -> int:
        asked = 0
        while not done.is_set():
            asked += metrics.collect()["runtimes"] >= 0
        return asked

    with ThreadPoolExecutor(3) as threads:
        asking = [threads.submit(ask) for _ in range(2)]
        threads.submit(come_and_go).result(60)
        assert all(one.result(60) >= 0 for one in asking)
    assert metrics.collect()["events.x"] == 500


# What the process has.


@pytest.mark.anyio
async def test_circuit_breakers_of_the_process() -> None:
    """By name, also one with dots in it: what stands behind the last dot is never one of the name."""
    metrics = init_metrics()

    def fail() -> None:
        raise OSError("gone")

    breaker = get_circuit_breaker("api.example.org", CircuitBreakerConfig(failure_threshold=1))
    get_circuit_breaker("quiet")
    with pytest.raises(OSError, match="gone"):
        await breaker.execute(fail)
    collected = metrics.collect()
    assert {
        "breakers.api.example.org.failures": 1,
        "breakers.api.example.org.opened_count": 1,
        "breakers.api.example.org.open": 1,
        "breakers.quiet.failures": 0,
        "breakers.quiet.open": 0,
    }.items() <= collected.items()


def test_registries_of_the_process() -> None:
    """Of every kind; those of one's own are not among them."""
    metrics = init_metrics()
    get_registry("agents").register("fox", 1)
    get_registry("agents").get_sync("fox")
    functions = get_function_registry("tools")
    functions.get_sync("axe")
    Registry[int]("mine").register("x", 1)
    collected = metrics.collect()
    assert {
        "registries.agents.size": 1,
        "registries.agents.hits": 1,
        "registries.tools.misses": 1,
    }.items() <= collected.items()
    assert not [name for name in collected if "mine" in name]


def test_a_disabled_one_of_ones_own() -> None:
    """`Metrics` by itself is what `init_metrics` gives, but nobody's current one."""
    metrics = Metrics()
    source = Source()
    _metrics.attach(source)
    assert (metrics.collect(), source.sinks()) == ({"runtimes": 0}, 0)
