"""The circuit breaker, as its users see it.

A call through a closed circuit costs two reads and an addition: it takes the window of the era with it and counts itself
there when it comes back. Everything else asks the machine, in `_circuit`.
"""

# No `from __future__ import annotations` here: the fields of public classes are read at run time, by cattrs and others.
# Their `__module__` reads agentcore, where names in strings could not be found.

import functools
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextlib import AbstractAsyncContextManager, contextmanager
from types import CoroutineType
from typing import Any, Final, NoReturn, ParamSpec, TypeVar, final, overload

from agentcore import _interop
from agentcore._breaker_records import CircuitBreakerMetrics
from agentcore._circuit import Guard, SharedCircuit
from agentcore._events import EventSink
from agentcore._layer import GuardLayer, check_callable, check_decorated, check_name, invoke, is_async
from agentcore._probing import run_probes
from agentcore._rules.circuit import CircuitMode, CircuitState
from agentcore._rules.circuit_config import CircuitBreakerConfig
from agentcore.errors import ConfigurationError

P = ParamSpec("P")
T = TypeVar("T")

_DEFAULT: Final = CircuitBreakerConfig()


@final
class CircuitBreaker(GuardLayer):
    """Keeps calls away from what does not work at the moment, and finds out by single calls when it works again.

        breaker = CircuitBreaker("api", CircuitBreakerConfig(failure_threshold=5, reset_timeout_ms=30_000))
        answer = await breaker.execute(fetch, url)

    It may be made anywhere and used from several event loops and threads at a time. Adds no checkpoint.

    What a call counts as: one that returns is a success, one that raises an exception a failure, a group of exceptions if
    one of its leaves is. Cancellation says nothing, unless it comes from a deadline that the call has outrun.

    While the circuit is half open, as many probes run as it needs successes, each under a deadline of its own. A call
    that a probe makes through the same breaker, in the same task, is a part of it.

    Args:
        name: what it is called, in messages and metrics.
        config: how it behaves.
        probe: a coroutine function without arguments that tries whether the service works, for `run_probes`.
        clock: gives seconds that never go back, instead of the system's clock.

    Raises:
        ConfigurationError: an argument is not usable.
    """

    __slots__ = ("__weakref__", "_circuit", "_clock", "_judges_successes", "_machine", "_slow", "probe")

    def __init__(
        self,
        name: str,
        config: CircuitBreakerConfig | None = None,
        *,
        probe: Callable[[], Awaitable[object]] | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        check_name("circuit breaker", name)
        if config is not None and not isinstance(config, CircuitBreakerConfig):
            raise ConfigurationError(
                f"config of circuit {name!r} must be a CircuitBreakerConfig: got {config!r}; "
                "write CircuitBreakerConfig(failure_threshold=...)",
                {"name": "config", "value": config},
            )
        for what, value in (("probe", probe), ("clock", clock)):
            if value is not None and not callable(value):
                raise ConfigurationError(
                    f"{what} of circuit {name!r} must be a function without arguments: got {value!r}; pass one or None",
                    {"name": what, "value": value},
                )
        super().__init__(name)
        self.probe: Final = probe
        self._circuit = SharedCircuit(name, config or _DEFAULT, clock)
        # What a call through a closed circuit reads stands here once more.
        self._machine = self._circuit.machine
        self._clock = clock
        self._slow = self._circuit.slow
        self._judges_successes = self._circuit.judges_successes

    def __repr__(self) -> str:
        metrics = self.metrics
        mode = "" if self.mode is CircuitMode.NORMAL else f" ({self.mode})"
        return (
            f"<CircuitBreaker {self.name!r} {self.state}{mode}, {metrics.successes} successes, "
            f"{metrics.failures} failures, {metrics.rejected} rejected>"
        )

    # What can be asked.

    @property
    def config(self) -> CircuitBreakerConfig:
        """How it behaves."""
        return self._machine.config

    @property
    def state(self) -> CircuitState:
        """What it does with calls. An open circuit becomes half open by the first call after its time, not by itself."""
        return self._machine.state

    @property
    def mode(self) -> CircuitMode:
        """Who decides about the state."""
        return self._machine.mode

    @property
    def is_closed(self) -> bool:
        """Whether calls go ahead."""
        return self.state is CircuitState.CLOSED

    @property
    def is_open(self) -> bool:
        """Whether calls are rejected."""
        return self.state is CircuitState.OPEN

    @property
    def is_half_open(self) -> bool:
        """Whether single calls try if it works again."""
        return self.state is CircuitState.HALF_OPEN

    @property
    def retry_after(self) -> float | None:
        """Seconds until a call may be let through: 0 if one would be now, None if nobody knows."""
        with self._circuit as machine:
            return machine.retry_after(self._circuit.now())

    @property
    def metrics(self) -> CircuitBreakerMetrics:
        """What it has seen, as of now."""
        return self._circuit.metrics()

    def subscribe(self, sink: EventSink) -> Callable[[], None]:
        """Call a sink with every event from now on, after what it tells of, in the thread that brought it about.

        The events are ``circuit_opened`` (with ``reason``, ``retry_after`` in seconds, ``reopenings``),
        ``circuit_half_opened``, ``circuit_closed``, ``circuit_would_open`` (``reason``), ``circuit_mode_changed`` (``mode``)
        and ``circuit_isolated`` (``isolated``), each with ``circuit_name``. A sink that raises is logged and breaks no call.

        Args:
            sink: a function of an `Event`; it must not wait.

        Returns:
            A function that ends this. Calling it again does nothing.

        Raises:
            ConfigurationError: it is no function, or a coroutine function.
        """
        check_callable(f"subscribe of circuit {self.name!r}", sink)
        if is_async(sink):
            raise ConfigurationError(
                f"a sink of circuit {self.name!r} must not be a coroutine function: got {sink!r}; "
                "hand the event over to a task of your own",
                {"name": "sink", "value": repr(sink)},
            )
        return self._circuit.subscribe(sink)

    # Calls.

    @overload
    async def execute(self, func: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T: ...
    @overload
    async def execute(self, func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T: ...
    async def execute(self, func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call a function, if the circuit lets it through. Adds no checkpoint.

        Args:
            func: a function, asynchronous or not; a synchronous one runs here, in the event loop.
            *args: its arguments.
            **kwargs: its arguments.

        Returns:
            What it returns.

        Raises:
            CircuitOpenError: the circuit is open, or half open with as many probes under way as it needs.
            CircuitTimeoutError: this was a probe, and it was cut after `probe_timeout_ms`.
            ConfigurationError: it is no function.
            Exception: whatever the function raises.
        """
        # The hottest path of the breaker: `Guard` does the same, and everything else, for blocks and probes.
        machine = self._machine
        window = machine.closed
        clock = self._clock or _interop.clock
        began = clock()
        if window is None:
            if 0.0 < machine.until - began <= machine.period and callable(func):
                raise self._circuit.rejection(machine.until - began)
            return await self._execute_guarded(func, args, kwargs)
        try:
            # Handing on no keywords costs a copy of the empty dictionary, a third of a bare call.
            result = func(*args, **kwargs) if kwargs else func(*args)
            if result.__class__ is CoroutineType or inspect.isawaitable(result):
                result = await result
        except BaseException as error:
            # Not before: what cannot be called has raised a TypeError, and that is soon enough.
            check_callable(f"execute of circuit {self.name!r}", func)
            self._circuit.note_error(window, began, error)
            raise
        if self._judges_successes:
            now = clock()
            if now < window.turn and now - began < self._slow and machine.config.failure_if_result is None:
                window.run += 1
            else:
                self._circuit.note_result(window, began, result)
        else:
            window.run += 1
        return result

    def call(self, func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a synchronous function, if the circuit lets it through. A probe cannot be cut; it fails when it is late.

        Args:
            func: a function.
            *args: its arguments.
            **kwargs: its arguments.

        Returns:
            What it returns.

        Raises:
            CircuitOpenError: the circuit is open, or half open with as many probes under way as it needs.
            ConfigurationError: it is no function, or an asynchronous one.
            Exception: whatever the function raises.
        """
        check_callable(f"call of circuit {self.name!r}", func)
        token, began = self._circuit.admit()
        try:
            result = func(*args, **kwargs)
            is_awaitable = inspect.isawaitable(result)
        except BaseException as error:
            self._circuit.note_error(token, began, error)
            raise
        if is_awaitable:
            self._circuit.give_back(token)
            self._refuse_awaitable(func, result)
        self._circuit.note_result(token, began, result)
        return result

    @overload  # type: ignore[override]
    def __call__(self, func: Callable[P, Coroutine[Any, Any, T]], /) -> Callable[P, Coroutine[Any, Any, T]]: ...
    @overload
    def __call__(self, func: Callable[P, T], /) -> Callable[P, T]: ...
    def __call__(self, func: Callable[..., Any], /) -> Callable[..., Any]:
        """Return a function that calls another one through this breaker: ``@breaker``.

        Args:
            func: a function, asynchronous or not, but no generator.

        Raises:
            ConfigurationError: it is something else.
        """
        check_decorated(self.name, func)
        if is_async(func):
            return super().__call__(func)

        @functools.wraps(func)
        def call(*args: Any, **kwargs: Any) -> Any:
            return self.call(func, *args, **kwargs)

        return call

    def guard(self) -> AbstractAsyncContextManager[object, bool | None]:
        """Return a context manager for one block, which counts as a call."""
        return Guard(self._circuit)

    async def allow_request(self) -> bool:
        """Ask whether a call may be made now, and take the permit for it. Adds no checkpoint, and needs no event loop.

        The permit belongs to the calling task, and is for one call: asked again before the report, it is the same one. Report with `on_success` or `on_failure` what came of the call; while the
        circuit is half open, a permit that has not come back after `probe_timeout_ms` is given to somebody else.

        Returns:
            Whether it may.
        """
        return self._circuit.allow()

    async def on_success(self) -> None:
        """Report that a call succeeded. Adds no checkpoint, and needs no event loop.

        It counts in the era in which `allow_request` admitted it, without that in the present one.
        """
        self._circuit.report_success()

    async def on_failure(self, error_type: str, count_towards_threshold: bool = True) -> None:
        """Report that a call failed. Adds no checkpoint, and needs no event loop.

        It counts in the era in which `allow_request` admitted it, without that in the present one.

        Args:
            error_type: what went wrong, by name.
            count_towards_threshold: False if it says nothing about the service: the permit is given back, that is all.

        Raises:
            ConfigurationError: `error_type` is no string.
        """
        if not isinstance(error_type, str) or not error_type:
            raise ConfigurationError(
                f"error_type of on_failure must be a string that is not empty: got {error_type!r}; "
                "pass type(error).__name__",
                {"name": "error_type", "value": repr(error_type)},
            )
        self._circuit.report_failure(error_type, counts=bool(count_towards_threshold))

    # By hand.

    def set_mode(self, mode: CircuitMode) -> None:
        """Have somebody else decide about the state, or nobody. A new mode begins with a closed circuit and empty windows.

        Args:
            mode: `NORMAL`, `FORCED_OPEN`, `DISABLED` or `METRICS_ONLY`.

        Raises:
            ConfigurationError: it is something else.
        """
        try:
            mode = CircuitMode(mode)
        except ValueError:
            raise ConfigurationError(
                f"mode of circuit {self.name!r} must be a CircuitMode: got {mode!r}; "
                f"it is one of {', '.join(CircuitMode)}",
                {"name": "mode", "value": repr(mode)},
            ) from None
        with self._circuit as machine:
            machine.set_mode(mode)

    @contextmanager
    def isolate(self) -> Generator[None]:
        """Let no call through inside the block. Of several blocks the last one to be left ends it.

        Calls under way still count, and time goes on: afterwards the circuit is as it would be without the block.
        """
        try:
            with self._circuit as machine:
                machine.isolate(+1)
            yield
        finally:
            with self._circuit as machine:
                machine.isolate(-1)

    def reset(self) -> None:
        """Close the circuit by hand and forget what led to its state. Metrics and mode stay."""
        with self._circuit as machine:
            machine.reset()

    def prune(self) -> int:
        """Forget the failures by type, and what has left the window. Memory is bounded without it.

        Returns:
            How many failures were forgotten.
        """
        with self._circuit as machine:
            return machine.prune(self._circuit.now())

    # Active probes.

    async def run_probes(self) -> NoReturn:
        """Probe the service with `probe` whenever the circuit is due, until cancelled: so that no caller has to be the first.

        Start it in a task group of yours; `AgentRuntime.breaker` does. Callers are rejected meanwhile until the circuit has
        closed. If nobody probes in time they do, as they do without this.

        Raises:
            ConfigurationError: the breaker has no `probe`.
            BaseException: whatever the probe raises that is no Exception.
        """
        if self.probe is None:
            raise ConfigurationError(
                f"run_probes of circuit {self.name!r} needs something to probe with: got None; "
                "write CircuitBreaker(name, config, probe=...)",
                {"name": "probe", "value": None},
            )
        await run_probes(self._circuit, self.probe)

    async def _execute_guarded(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        check_callable(f"execute of circuit {self.name!r}", func)
        async with Guard(self._circuit) as guard:
            guard.result = result = await invoke(func, args, kwargs)
        return result

    def _refuse_awaitable(self, func: object, result: object) -> NoReturn:
        if inspect.iscoroutine(result):
            result.close()
        raise ConfigurationError(
            f"call of circuit {self.name!r} takes synchronous functions: got {func!r}; write `await breaker.execute(...)`",
            {"name": "func", "value": repr(func)},
        )
