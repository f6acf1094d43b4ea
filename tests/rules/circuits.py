"""Circuits to try rules on. Times are seconds: the open period takes 10 of them, a lease 4."""

from __future__ import annotations

from typing import Any

from agentcore import CircuitBreakerConfig, CircuitState
from agentcore._rules.circuit import Circuit
from tests.rules.circuit_model import Dice, Owner

CLOSED, OPEN, HALF_OPEN = CircuitState
A, B, C, D = (Owner(name) for name in "ABCD")
CLOSED_AGAIN = ("circuit_closed", {})
HALF_OPENED = ("circuit_half_opened", {})


def make(*, dice: float = 0.5, **values: Any) -> Circuit:
    """Make a closed circuit, which two failures open and two successes close."""
    source = Dice()
    source.value = dice
    times = {"failure_threshold": 2, "reset_timeout_ms": 10_000, "probe_timeout_ms": 4000}
    return Circuit(CircuitBreakerConfig(**(times | values)), source)


def opened(at: float = 0.0, **values: Any) -> Circuit:
    """Make a circuit that one failure has opened, and would open."""
    circuit = make(**({"failure_threshold": 1} | values))
    fail(circuit, at)
    circuit.take_changes()
    return circuit


def start(circuit: Circuit, now: float, owner: Owner = A, **how: Any) -> Any:
    """Begin a call that runs under the breaker."""
    return circuit.admit(now, owner, guarded=True, **how)


def ask(circuit: Circuit, now: float, owner: Owner = A) -> Any:
    """Ask by hand whether a call may be made."""
    return circuit.admit(now, owner, guarded=False)


def fail(circuit: Circuit, now: float, **how: Any) -> None:
    """Have a call begin and fail."""
    assert circuit.fail(start(circuit, now), now, "Boom", **how)


def succeed(circuit: Circuit, now: float, owner: Owner = A) -> None:
    """Have a call begin and come back well."""
    assert circuit.succeed(start(circuit, now, owner), now)


def told(circuit: Circuit) -> list[str]:
    """Return the names of what has changed."""
    return [name for name, _ in circuit.take_changes()]
