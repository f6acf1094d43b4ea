"""Probes of their own accord: a loop that finds out when a service works again, so that no caller has to."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Final, NoReturn

import anyio
import anyio.lowlevel

from agentcore import _interop
from agentcore._circuit import Guard, SharedCircuit
from agentcore._layer import invoke

_logger: Final = logging.getLogger("agentcore.breaker")


async def run_probes(circuit: SharedCircuit, probe: Callable[[], Awaitable[object]]) -> NoReturn:
    """Probe a circuit whenever it is due, until cancelled.

    Raises:
        BaseException: whatever the probe raises that is no Exception.
    """
    wake_up = _interop.wake_up_function()
    changed = anyio.Event()

    def on_event(_: object) -> None:
        # The circuit may have changed in another thread. By then another event may be waited for.
        wake_up(lambda: changed.set())  # noqa: PLW0108

    unsubscribe = circuit.subscribe(on_event)
    with circuit as machine:
        machine.probers += 1
    try:
        while True:
            changed = anyio.Event()
            with circuit as machine:
                seconds = machine.due_in(circuit.now())
            if seconds > 0:
                with anyio.move_on_after(seconds):
                    await changed.wait()
            elif not await _probe(circuit, probe):
                # It has said nothing, and would say so again if it were asked at once. Callers find out meanwhile.
                await anyio.sleep(circuit.machine.config.reset_timeout)
            else:
                await anyio.lowlevel.checkpoint()  # the probe need not have one
    finally:
        with circuit as machine:
            machine.probers -= 1
        unsubscribe()


async def _probe(circuit: SharedCircuit, probe: Callable[[], Awaitable[object]]) -> bool:
    """Probe once; return whether that has said anything."""
    guard = Guard(circuit, active=True)
    try:
        async with guard:
            guard.result = await invoke(probe, (), {})
    except Exception:
        _logger.debug("a probe of circuit %r failed", circuit.name, exc_info=True)
    return guard.counted
