"""Ways into a runtime: for scripts, for the lifespan of servers, for a single task."""

from __future__ import annotations

import inspect
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final, TypeAlias, TypeVar, TypeVarTuple, overload

import anyio

from agentcore import _interop, _signals
from agentcore._rules.task_states import TaskPriority
from agentcore._runtime import AgentRuntime
from agentcore._runtime_records import RuntimeConfig
from agentcore._task_factory import TaskFactory
from agentcore.errors import ConfigurationError, RuntimeClosedError

Args = TypeVarTuple("Args")
T = TypeVar("T")

Setup: TypeAlias = "Callable[[AgentRuntime], Awaitable[object] | None]"

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
            with _signals.signals_to(interruption, SIGNALS):
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
    if signals and report is not None and (not report.drained or not (finished or failures)):
        cut = "" if finished or failures else "; the program itself was cut short"
        raise _interruption(signals[0], report.summary() + cut) from (failures[0] if failures else None)
    if failures:
        raise failures[0]
    return finished[0]


@overload
def lifespan(app: object, /) -> AbstractAsyncContextManager[dict[str, AgentRuntime]]: ...


@overload
def lifespan(
    *, config: RuntimeConfig | None = None, grace: float | None = None, setup: Setup | None = None
) -> Callable[[object], AbstractAsyncContextManager[dict[str, AgentRuntime]]]: ...


def lifespan(
    app: object = None,
    /,
    *,
    config: RuntimeConfig | None = None,
    grace: float | None = None,
    setup: Setup | None = None,
) -> Any:
    """Have a runtime live as long as an ASGI application does: ``Starlette(lifespan=agentcore.lifespan)``, FastAPI likewise.

    It is hosted, and a new one at each start. Requests find it as ``request.state.runtime``.
    With keywords this returns such a function: ``Starlette(lifespan=agentcore.lifespan(setup=register))``.

    Args:
        app: the application; it is not looked at.
        config: as for `AgentRuntime`.
        grace: as for `AgentRuntime`.
        setup: called with the runtime before the application starts; a coroutine function or a plain one.

    Raises:
        ConfigurationError: an argument is not usable.
        AgentCrashedError: there were failures in the background; raised when the application ends.
    """
    if setup is not None and not callable(setup):
        raise ConfigurationError(
            f"setup of a lifespan must be a function: got {setup!r}; it is called with the runtime",
            {"name": "setup", "value": setup},
        )
    # Made once for its errors: what is wrong is told where it stands, not when the server starts.
    AgentRuntime(config, grace=grace, hosted=True)

    @asynccontextmanager
    async def block(_app: object) -> AsyncIterator[dict[str, AgentRuntime]]:
        async with AgentRuntime(config, grace=grace, hosted=True) as runtime:
            if setup is not None:
                made = setup(runtime)
                if inspect.isawaitable(made):
                    await made
            yield {"runtime": runtime}

    return block if app is None else block(app)


async def execute_task(
    task_type: str,
    input_data: Mapping[str, Any] | None = None,
    priority: TaskPriority = TaskPriority.NORMAL,
) -> dict[str, Any]:
    """Execute one task and return its output, in the current runtime if there is one, else without.

    Args:
        task_type: what task. Its agent is registered as ``<type>_agent`` or ``<type>``, its handler as ``<type>``.
        input_data: what to work on.
        priority: which tasks go first, in a runtime.

    Raises:
        TaskRoutingError: nothing is registered for it; also a ValueError.
        TaskExecutionError: it failed.
        TaskTimeoutError, TaskCanceledError, RuntimeClosedError: as `AgentRuntime.run`.
        ConfigurationError: an argument is not usable.
    """
    task = TaskFactory.create_task(task_type, input_data, priority=priority)
    try:
        runtime = AgentRuntime.current()
    except RuntimeClosedError as error:
        if error.details["state"] == "ambiguous":
            raise
        # A runtime for this task alone: so the outcome is the same, whatever it is.
        async with AgentRuntime(hosted=False) as runtime:
            return await runtime.run(task)
    return await runtime.run(task)


def _interruption(number: int, summary: str) -> BaseException:
    error = KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)
    error.add_note(summary)
    return error
