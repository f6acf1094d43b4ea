"""What the tests of circuit breakers share: services that do as they are told, and short ways to a state."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

import anyio

from agentcore import CircuitBreaker, CircuitBreakerConfig, CircuitMode, CircuitState, Event
from agentcore._rules.circuit import Permit

T = TypeVar("T")

RESET: Final = 10.0
"""Seconds that the circuits of these tests stay open."""
LEASE: Final = 4.0
"""Seconds that their probes may take."""


class Down(Exception):
    """What a service raises that does not work."""


class Stop(BaseException):
    """What no `except Exception` may catch."""


class Clock:
    """Shows what it is told to."""

    def __init__(self, now: float = 1_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def make(name: str = "api", *, clock: Any = None, probe: Any = None, **settings: Any) -> CircuitBreaker:
    """Make a breaker that opens by one failure, for `RESET` seconds, and closes by one success."""
    short = {"failure_threshold": 1, "success_threshold": 1, "reset_timeout_ms": RESET * 1000}
    config = CircuitBreakerConfig(**{**short, "probe_timeout_ms": LEASE * 1000, **settings})
    return CircuitBreaker(name, config, probe=probe, clock=clock)


def at_once(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never waits, with no event loop or in the middle of one."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        value: T = end.value
        return value
    coroutine.close()
    raise AssertionError(f"{coroutine} waits")


def open_up(breaker: CircuitBreaker, error_type: str = "Down") -> None:
    """Have failures reported until the circuit is open."""
    while not breaker.is_open:
        at_once(breaker.on_failure(error_type))


def heard_by(breaker: CircuitBreaker) -> list[Event]:
    """Return a list that all events of a breaker come into."""
    events: list[Event] = []
    breaker.subscribe(events.append)
    return events


def types_of(events: list[Event]) -> list[str]:
    """Return what has happened, without ``circuit_``."""
    return [event.event_type.removeprefix("circuit_") for event in events]


async def succeed() -> str:
    """Come back well."""
    return "well"


async def fail() -> None:
    """Raise at once."""
    raise Down("no answer")


async def hang() -> None:
    """Never come back."""
    await anyio.sleep_forever()


async def hang_shielded(seconds: float) -> str:
    """Come back late, whoever cancels."""
    with anyio.CancelScope(shield=True):
        await anyio.sleep(seconds)
    return "late"


async def due(breaker: CircuitBreaker) -> None:
    """Open a circuit, and wait until it is due for a probe."""
    open_up(breaker)
    await anyio.sleep(breaker.retry_after or 0)


PATHS: Final = ("closed", "watched", "half_open", "nested", "disabled", "metrics_only")
"""All the ways that a call can take through a breaker."""


@asynccontextmanager
async def on_path(path: str, **settings: Any) -> AsyncGenerator[CircuitBreaker]:
    """Give a breaker whose next call goes a certain way. Its clock stands still."""
    clock = Clock()
    if path == "watched":
        settings |= {"slow_call_ms": 1.0, "window_ms": 60_000, "slow_call_rate": 1.0}
    breaker = make(clock=clock, **{"success_threshold": 3, "probe_timeout_ms": 60_000, **settings})
    if path in ("disabled", "metrics_only"):
        breaker.set_mode(CircuitMode(path))
    if path in ("half_open", "nested"):
        open_up(breaker)
        clock.now += RESET
    if path == "nested":
        async with breaker:
            assert breaker.state is CircuitState.HALF_OPEN
            yield breaker
    else:
        yield breaker


# What only tests look at.


def permits_of(breaker: CircuitBreaker) -> tuple[Permit, ...]:
    """Return the permits that are out."""
    return breaker._circuit.machine.permits


def probers_of(breaker: CircuitBreaker) -> int:
    """Return how many probe of their own accord."""
    return breaker._circuit.machine.probers


def sinks_of(breaker: CircuitBreaker) -> int:
    """Return how many listen."""
    emitter = breaker._circuit._emitter
    return 0 if emitter is None else len(emitter._sinks)


def admissions_of(breaker: CircuitBreaker) -> int:
    """Return how many tasks have asked by hand and not reported."""
    return len(breaker._circuit._admissions or ())
