"""What a call has said of the service, told by what was counted."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.lowlevel

from agentcore import CircuitBreaker
from tests.core.circuits import Stop, due, hang, make, permits_of

Act = Callable[[CircuitBreaker], Awaitable[object]]


def verdict(breaker: CircuitBreaker, before: Any) -> str:
    """Return what the one call since then has said, by what was counted."""
    after = breaker.metrics
    names = ("successes", "failures", "excluded", "canceled")
    changes = {name: getattr(after, name) - getattr(before, name) for name in names}
    changes = {name: change for name, change in changes.items() if change}
    assert set(changes.values()) <= {1}
    assert len(changes) <= 1
    (name,) = changes or ("nothing",)
    if name == "failures":
        return "timeout" if after.timeouts > before.timeouts else "failure"
    return name.removesuffix("es") if name == "successes" else name


async def judged(act: Act, *, half_open: bool, **settings: Any) -> tuple[str, str]:
    """Let a call through a breaker; return what it has said and the state afterwards."""
    breaker = make(probe_timeout_ms=50_000, **settings)
    if half_open:
        await due(breaker)
    before = breaker.metrics
    try:
        await act(breaker)
    except (Exception, Stop, SystemExit, KeyboardInterrupt, BaseExceptionGroup):  # noqa: BLE001 - the caller's own
        pass
    if half_open and breaker.is_half_open:
        assert () == permits_of(breaker)  # whatever it was, its permit is back
    return verdict(breaker, before), breaker.state


async def check(expected: str, act: Act, **settings: Any) -> None:
    """Check what a call says, to a closed circuit and to a half-open one."""
    counted = {"success": "closed", "failure": "open", "timeout": "open"}
    for half_open in (False, True):
        state = counted.get(expected, "half_open" if half_open else "closed")
        assert (expected, state) == await judged(act, half_open=half_open, **settings)


def raising(error: BaseException | type[BaseException]) -> Act:
    """Make an act that calls something that raises this."""

    async def call() -> None:
        await anyio.lowlevel.checkpoint()
        raise error

    return lambda breaker: breaker.execute(call)


async def cancelled_by_caller(breaker: CircuitBreaker) -> None:
    """Be cancelled after half a minute, by who has called."""
    async with anyio.create_task_group() as group:
        group.start_soon(breaker.execute, hang)
        await anyio.sleep(30)
        group.cancel_scope.cancel("no longer needed")


async def late_for_a_deadline(breaker: CircuitBreaker) -> None:
    with anyio.move_on_after(30):
        await breaker.execute(hang)
