"""Ways into a runtime from code that has no event loop yet."""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeVar, TypeVarTuple

import anyio

from agentcore import _interop
from agentcore._runtime import AgentRuntime, RuntimeConfig
from agentcore.errors import ConfigurationError

Args = TypeVarTuple("Args")
T = TypeVar("T")

LAST_MOMENTS: Final = 1.0
"""Seconds that a program has to end by itself, once a signal has ended its tasks."""

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


class _Interruption:
    """What signals do to a runtime: the first drains it, the second cancels everything, the third ends the process."""

    def __init__(self, scope: anyio.CancelScope, signals: list[int]) -> None:
        self.signals = signals
        self._scope = scope
        self._first = anyio.Event()
        self._wake_up = _interop.wake_up_function()

    def __call__(self, number: int) -> None:
        # In a signal handler: any line of the program may be half done, so this only notes, and wakes up the loop.
        self.signals.append(number)
        if len(self.signals) == 1:
            self._wake_up(self._first.set)
        elif len(self.signals) == 2:
            self._wake_up(self._cancel)
        else:
            os._exit(128 + number)

    def _cancel(self) -> None:
        self._scope.cancel("a second signal came")

    async def drain(self, runtime: AgentRuntime) -> None:
        """Wait for the first signal; then shut the runtime down, and soon cancel what its block still does."""
        await self._first.wait()
        await runtime.shutdown(reason=f"interrupted by {signal.Signals(self.signals[0]).name}")
        # Whoever waited for a task has been told. What remains to be done for that is done now; a block that just goes on
        # must not hold the end up.
        await anyio.sleep(min(LAST_MOMENTS, runtime.config.grace))
        self._scope.cancel("the runtime has been shut down by a signal")


def run(
    main: Callable[[AgentRuntime, *Args], Awaitable[T]],
    *args: *Args,
    backend: str = "asyncio",
    backend_options: Mapping[str, Any] | None = None,
    config: RuntimeConfig | None = None,
) -> T:
    """Run a program in a runtime of its own, and handle signals: the entry for scripts.

    The first SIGINT or SIGTERM drains the runtime: running tasks have `RuntimeConfig.grace` seconds to end, then they are
    cancelled. When they have ended, the program has one more second to do so, and is cancelled then. The second signal cancels at once, the third ends the process without any clean-up.
    In a thread other than the main one signals are left alone.

    Args:
        main: a coroutine function; it gets the runtime, then `args`.
        *args: for `main`.
        backend: ``asyncio`` or ``trio``.
        backend_options: as for `anyio.run`.
        config: of the runtime.

    Returns:
        What `main` returns, if it came to its end; after a signal too.

    Raises:
        KeyboardInterrupt: SIGINT came and something was cut short, tasks or `main` itself. A note names it.
        SystemExit: SIGTERM came and something was cut short; the code is 143.
        ConfigurationError: there is no such backend.
        BaseException: whatever `main` raises, and what failed in the background of the runtime.
    """
    runtime = AgentRuntime(config)
    finished: list[T] = []
    failures: list[BaseException] = []
    signals: list[int] = []

    async def block() -> None:
        with anyio.CancelScope() as scope:
            interruption = _Interruption(scope, signals)
            with _interop.signals_to(interruption, SIGNALS):
                async with anyio.create_task_group() as group:
                    group.start_soon(interruption.drain, runtime)
                    try:
                        async with runtime:
                            finished.append(await main(runtime, *args))
                    except BaseException as error:  # noqa: ASYNC103 - cancellations are raised again
                        # Carried out of the group by hand, which would wrap it.
                        if _interop.split_cancellation(error)[0]:
                            raise
                        failures.append(error)
                    group.cancel_scope.cancel()

    try:
        anyio.run(block, backend=backend, backend_options=dict(backend_options or {}))
    except LookupError as error:
        raise ConfigurationError(
            f"backend must be 'asyncio' or 'trio': got {backend!r}; {error}", {"name": "backend", "value": backend}
        ) from error
    report = runtime.report
    if signals and report is not None and (report.cut_short or not (finished or failures)):
        cut = "" if finished or failures else "; the program itself was cut short"
        raise _interruption(signals[0], report.summary() + cut) from (failures[0] if failures else None)
    if failures:
        raise failures[0]
    return finished[0]


def _interruption(number: int, summary: str) -> BaseException:
    error = KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)
    error.add_note(summary)
    return error
