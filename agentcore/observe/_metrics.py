"""What is counted, and where it is collected.

Breakers, registries and runtimes count by themselves, whether somebody looks or not; `Metrics.collect` pulls from them
when it is called. The only thing that is counted here is events, because whoever had them may be gone.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Final, Protocol, final

import attrs

from agentcore import _registry
from agentcore._breakers import of_process
from agentcore._events import Event
from agentcore._rules.backoff import show
from agentcore._rules.circuit import CircuitState
from agentcore.config import MetricsConfiguration
from agentcore.errors import ConfigurationError


class Observed(Protocol):
    """What can be attached: an `AgentRuntime`."""

    def subscribe(self, sink: Callable[[Event], object]) -> Callable[[], None]:
        """Call a sink with every event; returns the function that ends this."""

    def statistics(self) -> Any:
        """Return a record of attrs, with numbers and further records in it."""


@final
class Metrics:
    """What has happened in this process, as numbers. `init_metrics` makes it.

    Runtimes are known weakly: one that is referenced nowhere else vanishes, and what it has done stays in the counts of
    events. Safe to use from several threads.
    """

    def __init__(self) -> None:
        # Reentrant: the collector of garbage may run anything in the middle of a count, another count too.
        self._lock = threading.RLock()
        self._events: dict[str, int] = {}
        self._attached: weakref.WeakKeyDictionary[Observed, weakref.ref[_Counter]] = weakref.WeakKeyDictionary()
        self._is_open = True

    def __repr__(self) -> str:
        return f"<Metrics of {len(self._attached)} runtimes{'' if self._is_open else ', disabled'}>"

    @property
    def enabled(self) -> bool:
        """Whether anything is counted."""
        return self._is_open

    def attach(self, runtime: Observed) -> None:
        """Count the events of a runtime from now on, and have its statistics collected. Doing so again does nothing."""
        with self._lock:
            if not self._is_open or runtime in self._attached:
                return
            counter = _Counter(self)
            # The runtime's log holds the counter. Held from here, a sink beside it that knows the runtime would keep that
            # alive.
            counter.unsubscribe = runtime.subscribe(counter)
            self._attached[runtime] = weakref.ref(counter)

    def collect(self) -> dict[str, int | float]:
        """Return all numbers by name; nothing if metrics are disabled.

        - ``events.<event type>``: events of all runtimes that were ever attached; these only grow.
        - ``runtimes``: how many of them there are; ``runtimes.<name>``: what their statistics say, added up.
        - ``breakers.<name>.<name of CircuitBreakerMetrics>`` and ``breakers.<name>.open``, 1 or 0: of each process-wide one.
        - ``registries.<name>.<name of RegistryStatistics>``: of each process-wide one.
        """
        with self._lock:
            if not self._is_open:
                return {}
            events = dict(self._events)
            runtimes = list(self._attached)
        # Not under the lock: what is asked here has locks of its own, and who holds one of those may count an event.
        collected: dict[str, int | float] = {f"events.{name}": count for name, count in sorted(events.items())}
        collected["runtimes"] = len(runtimes)
        for runtime in runtimes:
            for name, number in _numbers(runtime.statistics(), "runtimes."):
                collected[name] = collected.get(name, 0) + number
        for name, breaker in sorted(of_process.list_all().items()):
            collected.update(_numbers(breaker.metrics, f"breakers.{name}."))
            collected[f"breakers.{name}.open"] = int(breaker.state is CircuitState.OPEN)
        for registry in _process_registries():
            collected.update(_numbers(registry.statistics(), f"registries.{registry.name}."))
        return collected

    def count(self, event: Event) -> None:
        """Count an event."""
        with self._lock:
            self._events[event.event_type] = self._events.get(event.event_type, 0) + 1

    def close(self) -> None:
        """Count nothing any more, and forget all runtimes."""
        with self._lock:
            self._is_open = False
            counters = [reference() for reference in self._attached.values()]
            self._attached.clear()
            self._events.clear()
        for counter in counters:
            if counter is not None:
                counter.unsubscribe()


@final
class _Counter:
    """The sink in one runtime. An object of its own: it goes with the runtime's log."""

    __slots__ = ("__weakref__", "_metrics", "unsubscribe")

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self.unsubscribe: Callable[[], None] = lambda: None

    def __call__(self, event: Event) -> None:
        self._metrics.count(event)


def _numbers(record: Any, prefix: str) -> Iterator[tuple[str, int | float]]:
    """Yield the numbers of a record, and of the records in it, by dotted name."""
    for field in attrs.fields(type(record)):
        value = getattr(record, field.name)
        if attrs.has(type(value)):
            yield from _numbers(value, f"{prefix}{field.name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{field.name}", value


def _process_registries() -> list[_registry.Registry[Any]]:
    with _registry._lock:
        return [registry for _, registry in sorted(_registry._known.items())]


_lock: Final = threading.Lock()
_current: Metrics | None = None


def init_metrics(config: MetricsConfiguration | None = None) -> Metrics:
    """Begin to count, in the whole process: what new runtimes do is counted from now on.

    A runtime that was there before is counted after ``metrics.attach(runtime)``. May be called again: as long as metrics
    stay enabled it is the same object, which goes on counting.

    Args:
        config: whether to. With ``enabled=False`` what was counted is forgotten and every runtime is left alone.

    Returns:
        What counts; if disabled, one that never has anything to tell.

    Raises:
        ConfigurationError: `config` is none.
    """
    global _current  # noqa: PLW0603 - process-wide by nature
    config = MetricsConfiguration() if config is None else config
    if not isinstance(config, MetricsConfiguration):
        raise ConfigurationError(
            f"config of init_metrics must be a MetricsConfiguration: got {show(config)}; "
            "pass load_configuration().metrics",
            {"name": "config", "value": config},
        )
    with _lock:
        metrics = _current or Metrics()
        _current = metrics if config.enabled else None
    if not config.enabled:
        metrics.close()
    return metrics


def current() -> Metrics | None:
    """Return what counts in this process; None as long as nobody wants it."""
    return _current


def replace(metrics: Metrics | None) -> Metrics | None:
    """Have something else, or nothing, count in this process; return what did before. For tests."""
    global _current
    with _lock:
        before, _current = _current, metrics
    return before


def attach(runtime: Observed) -> None:
    """Have a new runtime counted, if anything is. Costs a look at a variable otherwise."""
    if (metrics := _current) is not None:
        metrics.attach(runtime)
