"""The circuit breakers that are compared, each behind an adapter.

An adapter calls an asynchronous function in the cheapest way that the library's documentation shows. It uses what is
documented and nothing else; where a setting can only be approached, its docstring says how. Whoever has settings that help
gets them, and a library is only asked about what it claims to have.

Nothing is imported before it is needed: a peer that is not installed is skipped.
"""

# ruff: noqa: PLC0415

from __future__ import annotations

import functools
from collections.abc import Callable
from datetime import timedelta
from fractions import Fraction
from typing import Any, Final

import attrs
from _breaker_adapter import (
    AsyncFunction,
    CallerError,
    Counting,
    DownError,
    Guarded,
    Peer,
    Permits,
    Settings,
    ignoring,
    ignoring_async,
    listening,
)

WINDOW_CALLS: Final = 100
WINDOW_SECONDS: Final = 10
MINIMUM_CALLS: Final = 10
RATE: Final = 0.5
SLOW_SECONDS: Final = 1.0

# ---------------------------------------------------------------- ours


class Agentcore(Peer):
    """`await breaker.execute(func)`; with a lease for its probes."""

    distribution = "agentcore-runtime"
    has_probes = True
    countings = ("consecutive", "calls", "time")

    def guard(self, func: AsyncFunction, settings: Settings) -> Guarded:
        """Use `execute`."""
        breaker = self._breaker(settings)
        return Guarded(breaker.execute, func, breaker)

    def permits(self, settings: Settings) -> Permits | None:
        """Use `allow_request`, `on_success` and `on_failure`."""
        return _AgentcorePermits(self._breaker(settings))

    def _breaker(self, settings: Settings) -> Any:
        from agentcore import CircuitBreaker

        breaker = CircuitBreaker("peer", self._config(settings))
        if settings.listener is not None:
            breaker.subscribe(ignoring(settings.listener))
        return breaker

    @staticmethod
    @functools.cache
    def _config(settings: Settings) -> Any:
        from agentcore import CircuitBreakerConfig

        windows: dict[Counting, dict[str, Any]] = {
            "consecutive": {"failure_threshold": settings.failures},
            "calls": {"window_calls": WINDOW_CALLS, "failure_rate": RATE, "minimum_calls": MINIMUM_CALLS},
            "time": {
                "window_ms": WINDOW_SECONDS * 1000,
                "failure_rate": RATE,
                "minimum_calls": MINIMUM_CALLS,
                "slow_call_ms": SLOW_SECONDS * 1000,
                "slow_call_rate": RATE,
            },
        }
        return CircuitBreakerConfig(
            success_threshold=settings.probes,
            reset_timeout_ms=settings.reset * 1000,
            probe_timeout_ms=settings.lease * 1000,
            excluded_exceptions=(CallerError,) if settings.exclude else (),
            **windows[settings.counting],
        )


@attrs.frozen
class _AgentcorePermits:
    breaker: Any

    async def ask(self) -> bool:
        return bool(await self.breaker.allow_request())

    async def succeeded(self) -> None:
        await self.breaker.on_success()

    async def failed(self) -> None:
        await self.breaker.on_failure("DownError")


# ---------------------------------------------------------------- the older ones


class Circuitbreaker(Peer):
    """`@CircuitBreaker(...)`. What does not count is said by its predicate, as it has no list for that."""

    distribution = "circuitbreaker"
    has_listeners = False

    def guard(self, func: AsyncFunction, settings: Settings) -> Guarded:
        """Decorate."""
        from circuitbreaker import CircuitBreaker

        counts = Exception if not settings.exclude else lambda kind, _error: not issubclass(kind, CallerError)
        breaker = CircuitBreaker(
            failure_threshold=settings.failures,
            recovery_timeout=settings.reset,
            expected_exception=counts,
            name="peer",
        )
        return Guarded(breaker(func), None, breaker)


class Pybreaker(Peer):
    """`breaker.call_async(func)`, which needs tornado; `throw_new_error_on_trip=False` lets the caller's own error through."""

    distribution = "pybreaker"
    has_probes = True
    on_trio = False

    def guard(self, func: AsyncFunction, settings: Settings) -> Guarded:
        """Use `call_async`."""
        import pybreaker

        breaker = pybreaker.CircuitBreaker(
            fail_max=settings.failures,
            reset_timeout=settings.reset,
            success_threshold=settings.probes,
            exclude=[CallerError] if settings.exclude else None,
            throw_new_error_on_trip=False,
            name="peer",
        )
        if settings.listener is not None:
            base = pybreaker.CircuitBreakerListener
            breaker.add_listener(listening(base, settings.listener, "success", "failure", "state_change"))
        return Guarded(breaker.call_async, func, breaker)


class Aiobreaker(Peer):
    """`breaker.call_async(func)`."""

    distribution = "aiobreaker"

    def guard(self, func: AsyncFunction, settings: Settings) -> Guarded:
        """Use `call_async`."""
        import aiobreaker
        from aiobreaker.listener import CircuitBreakerListener

        breaker = aiobreaker.CircuitBreaker(
            fail_max=settings.failures,
            timeout_duration=timedelta(seconds=settings.reset),
            exclude=[CallerError] if settings.exclude else None,
            name="peer",
        )
        if settings.listener is not None:
            base = CircuitBreakerListener
            breaker.add_listener(listening(base, settings.listener, "success", "failure", "state_change"))
        return Guarded(breaker.call_async, func, breaker)


class Asyncbreaker(Peer):
    """`breaker.call(func)`."""

    distribution = "asyncbreaker"

    def guard(self, func: AsyncFunction, settings: Settings) -> Guarded:
        """Use `call`."""
        import asyncbreaker

        breaker = asyncbreaker.CircuitBreaker(
            fail_max=settings.failures,
            timeout_duration=timedelta(seconds=settings.reset),
            exclude=[CallerError] if settings.exclude else None,
            name="peer",
        )
        if settings.listener is not None:
            names = ("success", "failure", "state_change")
            breaker.add_listener(listening(asyncbreaker.Listener, settings.listener, *names, is_async=True))
        return Guarded(breaker.call, func, breaker)


class Purgatory(Peer):
    """`@factory("name")`: the other way, `async with await factory.get_breaker("name")`, does the same."""

    distribution = "purgatory"

    def guard(self, func: AsyncFunction, settings: Settings) -> Guarded:
        """Decorate."""
        from purgatory import AsyncCircuitBreakerFactory

        factory = AsyncCircuitBreakerFactory(
            default_threshold=settings.failures,
            default_ttl=settings.reset,
            exclude=[CallerError] if settings.exclude else None,
        )
        if settings.listener is not None:
            factory.add_listener(ignoring(settings.listener))
        return Guarded(factory("peer")(func), None, factory)


class Hyx(Peer):
    """`@consecutive_breaker(...)`. It has no exclusions: it is told which exceptions count."""

    distribution = "hyx"
    has_probes = True
    has_listeners = False

    def guard(self, func: AsyncFunction, settings: Settings) -> Guarded:
        """Decorate."""
        from hyx.circuitbreaker import consecutive_breaker

        breaker = consecutive_breaker(
            exceptions=DownError if settings.exclude else Exception,
            failure_threshold=settings.failures,
            recovery_time_secs=settings.reset,
            recovery_threshold=settings.probes,
        )
        return Guarded(breaker(func), None, breaker)


class Grit(Peer):
    """`@breaker(...)`. It has no exclusions: it is told which exceptions count."""

    distribution = "grit-toolkit"
    has_probes = True

    def guard(self, func: AsyncFunction, settings: Settings) -> Guarded:
        """Decorate."""
        import grit

        breaker = grit.breaker(
            fails=settings.failures,
            reset_after=settings.reset,
            on=DownError if settings.exclude else Exception,
            name="peer",
            success_threshold=settings.probes,
        )
        if settings.listener is not None:
            breaker.on_change(ignoring(settings.listener))
        return Guarded(breaker(func), None, breaker)


# ---------------------------------------------------------------- those with windows


class Nopanic(Peer):
    """`await breaker.acall(func)`. It counts rates in time only: so many failures in a row are all calls of the window."""

    distribution = "nopanic"
    has_probes = True
    countings = ("consecutive", "time")

    def guard(self, func: AsyncFunction, settings: Settings) -> Guarded:
        """Use `acall`."""
        import nopanic

        rules: dict[str, Any] = {"failure_threshold": 1.0, "min_calls": settings.failures, "window": WINDOW_SECONDS}
        if settings.counting == "time":
            rules |= {"failure_threshold": RATE, "min_calls": MINIMUM_CALLS}
            rules |= {"slow_call_duration": SLOW_SECONDS, "slow_call_threshold": RATE}
        if settings.exclude:
            rules["on"] = lambda error: not isinstance(error, CallerError)
        if settings.listener is not None:
            rules["on_state_change"] = ignoring(settings.listener)
        breaker = nopanic.CircuitBreaker(
            reset_timeout=settings.reset, half_open_max_calls=settings.probes, name="peer", **rules
        )
        return Guarded(breaker.acall, func, breaker)


class Interlock(Peer):
    """`await breaker.call_async(func)`. So many failures in a row are a window of as many calls, all of them failures."""

    distribution = "interlock-cb"
    has_probes = True
    countings = ("consecutive", "calls", "time")

    def guard(self, func: AsyncFunction, settings: Settings) -> Guarded:
        """Use `call_async`."""
        import interlock

        breaker = interlock.CircuitBreaker(
            name="peer",
            config=self._config(settings),
            classifier=_InterlockClassifier() if settings.exclude else None,
            listener=self._listener(settings.listener),
        )
        return Guarded(breaker.call_async, func, breaker)

    @staticmethod
    @functools.cache
    def _config(settings: Settings) -> Any:
        import interlock

        rules: dict[Counting, dict[str, Any]] = {
            "consecutive": {
                "window_size": settings.failures,
                "minimum_number_of_calls": settings.failures,
                "failure_rate_threshold": 1.0,
            },
            "calls": {"window_size": WINDOW_CALLS, "minimum_number_of_calls": MINIMUM_CALLS},
            "time": {
                "window_type": interlock.WindowType.TIME_BASED,
                "window_size": WINDOW_SECONDS,
                "minimum_number_of_calls": MINIMUM_CALLS,
                "slow_call_duration_threshold": SLOW_SECONDS,
                "slow_call_rate_threshold": RATE,
            },
        }
        return interlock.Config(
            wait_duration_in_open=settings.reset,
            permitted_calls_in_half_open=settings.probes,
            max_concurrent_probes=settings.probes,
            **rules[settings.counting],
        )

    def _listener(self, listener: Callable[[], None] | None) -> Any:
        import interlock

        if listener is None:
            return None
        names = ("on_state_change", "on_call", "on_rejected", "on_reset")
        return listening(interlock.EventListener, listener, *names)


class _InterlockClassifier:
    def is_failure(self, *, result: object, exception: Exception | None) -> bool:
        return exception is not None and not isinstance(exception, CallerError)


class Fluxgate(Peer):
    """`await breaker.call(func)`. All trial calls are let through, one at a time; the first failure among them decides."""

    distribution = "fluxgate"
    on_trio = False
    countings = ("consecutive", "calls", "time")

    def guard(self, func: AsyncFunction, settings: Settings) -> Guarded:
        """Use `call`."""
        from fluxgate import AsyncCircuitBreaker, permits, retries, trackers, trippers, windows

        rates = trippers.FailureRate(RATE)
        rules: dict[Counting, tuple[Any, Any]] = {
            "consecutive": (trippers.FailureStreak(settings.failures), windows.CountWindow(settings.failures)),
            "calls": (trippers.MinRequests(MINIMUM_CALLS) & rates, windows.CountWindow(WINDOW_CALLS)),
            "time": (
                trippers.MinRequests(MINIMUM_CALLS) & (rates | trippers.SlowRate(RATE, threshold=SLOW_SECONDS)),
                windows.TimeWindow(WINDOW_SECONDS),
            ),
        }
        tripper, window = rules[settings.counting]
        tracker = trackers.All() & ~trackers.TypeOf(CallerError) if settings.exclude else trackers.All()
        breaker = AsyncCircuitBreaker(
            window=window,
            tracker=tracker,
            tripper=tripper | (trippers.HalfOpened() & trippers.FailureStreak(1)),
            retry=retries.Cooldown(settings.reset),
            permit=permits.All(),
            max_half_open_calls=1,
            listeners=() if settings.listener is None else (ignoring(settings.listener),),
        )
        return Guarded(breaker.call, func, breaker)


class Pyresilience(Peer):
    """`@resilient(circuit_breaker=...)`. It has no windows of time: where one is compared it counts 100 calls."""

    distribution = "pyresilience"
    has_probes = True
    countings = ("consecutive", "calls", "time")

    def guard(self, func: AsyncFunction, settings: Settings) -> Guarded:
        """Decorate."""
        from pyresilience import resilient

        listeners = None if settings.listener is None else [ignoring(settings.listener)]
        call = resilient(circuit_breaker=self._config(settings), listeners=listeners)(func)
        return Guarded(call, None, call)

    def permits(self, settings: Settings) -> Permits | None:
        """Use its class by itself."""
        from pyresilience import CircuitBreaker

        return _PyresiliencePermits(CircuitBreaker(self._config(settings)))

    @staticmethod
    @functools.cache
    def _config(settings: Settings) -> Any:
        from pyresilience import CircuitBreakerConfig

        rules: dict[str, Any] = {}
        if settings.counting != "consecutive":
            rules = {
                "sliding_window_size": WINDOW_CALLS,
                "failure_rate_threshold": RATE,
                "minimum_calls": MINIMUM_CALLS,
            }
        if settings.counting == "time":
            rules |= {"slow_call_duration": SLOW_SECONDS, "slow_call_rate_threshold": RATE}
        return CircuitBreakerConfig(
            failure_threshold=settings.failures,
            recovery_timeout=settings.reset,
            success_threshold=settings.probes,
            ignore_on=(CallerError,) if settings.exclude else (),
            **rules,
        )


@attrs.frozen
class _PyresiliencePermits:
    breaker: Any

    async def ask(self) -> bool:
        return bool(self.breaker.allow_request())

    async def succeeded(self) -> None:
        self.breaker.record_success()

    async def failed(self) -> None:
        self.breaker.record_failure()


class Aioresilience(Peer):
    """`await circuit.call(func)`. Without its `timeout`: that is a time limit for every call, as one would put around it."""

    distribution = "aioresilience"
    has_probes = True
    on_trio = False

    def guard(self, func: AsyncFunction, settings: Settings) -> Guarded:
        """Use `call`."""
        circuit = self._circuit(settings)
        return Guarded(circuit.call, func, circuit)

    def permits(self, settings: Settings) -> Permits | None:
        """Use `can_execute`, `on_success` and `on_failure`."""
        return _AioresiliencePermits(self._circuit(settings))

    def _circuit(self, settings: Settings) -> Any:
        from aioresilience import CircuitBreaker, CircuitConfig

        config = CircuitConfig(
            failure_threshold=settings.failures,
            recovery_timeout=settings.reset,
            success_threshold=settings.probes,
            half_open_max_calls=settings.probes,
            failure_predicate=(lambda error: not isinstance(error, CallerError)) if settings.exclude else None,
        )
        circuit = CircuitBreaker("peer", config)
        if settings.listener is not None:
            circuit.events.add_handler("*", ignoring_async(settings.listener))
        return circuit


@attrs.frozen
class _AioresiliencePermits:
    circuit: Any

    async def ask(self) -> bool:
        return bool(await self.circuit.can_execute())

    async def succeeded(self) -> None:
        await self.circuit.on_success()

    async def failed(self) -> None:
        await self.circuit.on_failure()


class ResilientCircuit(Peer):
    """`@CircuitProtectorPolicy(...)`. Of so many calls it opens at all failures but one: it cannot be told to wait for all."""

    distribution = "resilient-circuit"
    on_trio = False
    countings = ("consecutive", "calls")

    def guard(self, func: AsyncFunction, settings: Settings) -> Guarded:
        """Decorate."""
        from resilient_circuit import CircuitProtectorPolicy

        consecutive = Fraction(settings.failures - 1, settings.failures)
        rules: dict[str, Any] = {}
        if settings.exclude:
            rules["should_handle"] = lambda error: not isinstance(error, CallerError)
        if settings.listener is not None:
            rules["on_status_change"] = ignoring(settings.listener)
        policy = CircuitProtectorPolicy(
            cooldown=timedelta(seconds=settings.reset),
            # A fraction is reduced: 50 of 100 would be 1 of 2.
            failure_limit=consecutive if settings.counting == "consecutive" else Fraction(51, WINDOW_CALLS),
            success_limit=Fraction(1, 1),
            **rules,
        )
        return Guarded(policy(func), None, policy)


AGENTCORE: Final[Peer] = Agentcore()
PEERS: Final[tuple[Peer, ...]] = (
    Grit(),
    Circuitbreaker(),
    Hyx(),
    Aiobreaker(),
    Asyncbreaker(),
    Purgatory(),
    Nopanic(),
    Pyresilience(),
    Interlock(),
    Aioresilience(),
    Fluxgate(),
    Pybreaker(),
    ResilientCircuit(),
)


@functools.cache
def installed() -> tuple[Peer, ...]:
    """Return the peers that are here."""
    return tuple(peer for peer in PEERS if peer.version() is not None)


def missing() -> list[str]:
    """Return the names of those that are not."""
    return [peer.distribution for peer in PEERS if peer not in installed()]
