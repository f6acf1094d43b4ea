"""Process-wide registries, circuit breakers and metrics of one's own, for the time of a test."""

from collections.abc import Iterator
from contextlib import contextmanager

from agentcore import _breakers, _registry
from agentcore.observe import _metrics


@contextmanager
def isolated_globals() -> Iterator[None]:
    """Begin with no process-wide registry, circuit breaker or metrics, and put back at the end those that were there.

    For everything in the process: tests that run at the same time in other threads see it too.
    """
    known, filled = _registry._known, _registry._filled
    with _registry._lock:
        before, before_filled = dict(known), dict(filled)
        known.clear()
        filled.clear()
    breakers = _breakers.of_process.list_all()
    _breakers.of_process.clear()
    metrics = _metrics.replace(None)
    try:
        yield
    finally:
        _metrics.replace(metrics)
        _breakers.of_process.replace(breakers)
        _registry.clear_registries()
        with _registry._lock:
            known.update(before)
            filled.update(before_filled)
