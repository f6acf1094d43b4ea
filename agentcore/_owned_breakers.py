"""The circuit breakers of a runtime: by name, told of in its events, and probed in its task group."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import final

import anyio
import anyio.abc
import anyio.from_thread

from agentcore import _interop
from agentcore._breaker import CircuitBreaker
from agentcore._breakers import NamedCircuitBreakers
from agentcore._events import Event, EventLog
from agentcore.errors import ConfigurationError


@final
class OwnedCircuitBreakers(NamedCircuitBreakers):
    """The breakers of an owner that has a log and, for a time, a task group.

    Args:
        log: where their events go, in the owner's event loop.
    """

    def __init__(self, log: EventLog) -> None:
        super().__init__()
        self._log = log
        self._group: anyio.abc.TaskGroup | None = None
        self._stopped = False
        self._thread = threading.get_ident()
        self._post: Callable[[Callable[[], object]], None] | None = None
        self._scopes: set[anyio.CancelScope] = set()

    def open(self, group: anyio.abc.TaskGroup) -> None:
        """Probe from now on, in this task group; also what was made before."""
        self._group = group
        self._thread = threading.get_ident()
        self._post = _interop.wake_up_function()
        for breaker in self.list_all().values():
            self._start(breaker)

    def stop(self, reason: str) -> None:
        """Probe no more: callers do it from now on. What is under way is cancelled, and says nothing of the service."""
        self._stopped = True
        for scope in self._scopes:
            scope.cancel(f"probing ends: {reason!r}")

    def _made(self, breaker: CircuitBreaker) -> None:
        breaker.subscribe(self._tell)
        if breaker.probe is None or self._group is None or threading.get_ident() == self._thread:
            self._start(breaker)
            return
        try:
            anyio.from_thread.run_sync(self._start, breaker)
        except anyio.NoEventLoopError:
            self.clear([breaker.name])
            raise ConfigurationError(
                f"circuit {breaker.name!r} with a probe must be made in the event loop of its runtime, or in a worker "
                f"thread of it: got a call in thread {threading.current_thread().name!r}; make it before",
                {"circuit_name": breaker.name},
            ) from None

    def _tell(self, event: Event) -> None:
        """Hand an event over to the log: breakers are used in other threads too."""
        if self._post is None or threading.get_ident() == self._thread:
            self._log.emit(event.event_type, **event.data)
        elif not self._stopped:
            self._post(lambda: self._log.emit(event.event_type, **event.data))

    def _start(self, breaker: CircuitBreaker) -> None:
        if self._group is not None and not self._stopped and breaker.probe is not None:
            self._group.start_soon(self._run_probes, breaker, name=f"probes of circuit {breaker.name}")

    async def _run_probes(self, breaker: CircuitBreaker) -> None:
        if self._stopped:
            return
        with anyio.CancelScope() as scope:
            self._scopes.add(scope)
            try:
                await breaker.run_probes()
            except BaseException as error:  # noqa: ASYNC103 - see below
                # A cancellation is not passed on, for which AnyIO would cancel the whole group: a probe may have made it
                # itself. Whoever cancels the group finds this task at its end anyway.
                if not _interop.split_cancellation(error)[0] or _interop.split_cancellation(error)[1] is not None:
                    raise
            finally:
                self._scopes.discard(scope)
