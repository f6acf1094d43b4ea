"""Layers around a call, and how they are put around each other.

Which layer stands outside of which decides what each of them means: a `Timeout` inside of a `Retry` limits each attempt, one
outside limits all of them together. `Bulkhead` and `RateLimit` are in `_limits`, `Retry` in `_retry`, the circuit breaker in
`_breaker`; no layer knows another one, and none starts a task.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from types import TracebackType
from typing import Any, Final, Self, final

import anyio

from agentcore import _interop
from agentcore._layer import GuardLayer, Layer, dispose, invoke, is_cancelled, note_once
from agentcore._rules.backoff import check_number, show
from agentcore._rules.retry import covers, to_exceptions
from agentcore.errors import CallTimeoutError, ConfigurationError


@final
class Timeout(GuardLayer):
    """So much time for a call, then it is cancelled.

        timeout = Timeout(2.5)
        answer = await timeout.execute(fetch, url)

    Only the time of this layer becomes its error. A TimeoutError that the call raises by itself comes through as it is, and
    so does a cancellation from outside. An error that the call raises when it is cancelled comes through too, with a note.
    A call that returns a value nevertheless has returned it. Adds no checkpoint.

    Args:
        seconds: how long a call may take.
        name: what it is called, in messages.

    Raises:
        ConfigurationError: an argument is not usable.
    """

    __slots__ = ("seconds",)

    def __init__(self, seconds: float, *, name: str = "timeout") -> None:
        super().__init__(name)
        check_number(f"timeout {name!r}", "seconds", seconds, "leave it out for no limit", above=True, unit="seconds")
        self.seconds: Final = seconds

    def guard(self) -> AbstractAsyncContextManager[object, bool | None]:
        """Return a context manager for one block."""
        return _TimedBlock(self)

    async def _execute(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        scope = anyio.move_on_at(anyio.current_time() + self.seconds)
        try:
            with scope:
                return await invoke(func, args, kwargs)
        except Exception as error:
            self._note(scope, error)
            raise
        # Behind the scope, where no cancellation is its context.
        raise self._error()

    def _note(self, scope: anyio.CancelScope, error: BaseException | None) -> None:
        if scope.cancel_called and isinstance(error, Exception):
            note_once(
                error, f"timeout {self.name!r} of {self.seconds:g} s", "was over, and this was raised in the unwinding"
            )

    def _error(self) -> CallTimeoutError:
        return CallTimeoutError(
            f"timeout {self.name!r} ends calls that are too long: got one of more than {self.seconds:g} s; "
            "allow more time, or do less at once",
            {"name": self.name, "timeout": self.seconds},
        )


class _TimedBlock:
    """A block in a `Timeout`."""

    __slots__ = ("_layer", "_scope")

    def __init__(self, layer: Timeout) -> None:
        self._layer = layer

    async def __aenter__(self) -> None:
        self._scope = anyio.move_on_at(anyio.current_time() + self._layer.seconds)
        self._scope.__enter__()

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._scope.__exit__(exc_type, exc, traceback)
        except Exception as rest:  # of a group, without the cancellations
            self._layer._note(self._scope, rest)
            raise
        self._layer._note(self._scope, exc)
        if self._scope.cancelled_caught:  # not what `__exit__` returns: trio says True of a block without an error too
            raise self._layer._error() from None


@final
class Fallback(Layer):
    """Something instead of an error: an answer that is worse, and there.

        fallback = Fallback(lambda error: "no idea", on=(CircuitOpenError, TimeoutError))
        answer = await fallback.execute(fetch, url)

    Cancellation, and all that is no Exception, passes as it is, and so does what a call raises while its caller is
    cancelled. A group of exceptions is answered only if all in it would be. Adds no checkpoint.

    Args:
        handler: a function, asynchronous or not, that gives the result instead. It gets the error, and if it takes more
            than that, the arguments of the call as well: ``def remember(error, url)``. What it raises is raised, and has
            the error as its cause.
        on: exceptions that it is called for, a class or several.
        name: what it is called, in messages.

    Raises:
        ConfigurationError: an argument is not usable.
    """

    __slots__ = ("_handler", "_takes_arguments", "on")

    def __init__(
        self,
        handler: Callable[..., Any],
        *,
        on: type[Exception] | tuple[type[Exception], ...] = (Exception,),
        name: str = "fallback",
    ) -> None:
        super().__init__(name)
        if not callable(handler):
            dispose(handler)
            raise ConfigurationError(
                f"handler of fallback {name!r} must be a function: got {show(handler)}; write Fallback.value(...) for a value",
                {"name": "handler", "value": handler},
            )
        self._handler: Final = handler
        self._takes_arguments: Final = _takes_arguments(handler)
        self.on: Final = to_exceptions(f"fallback {name!r}", "on", on)

    @classmethod
    def value(
        cls,
        value: object,
        *,
        on: type[Exception] | tuple[type[Exception], ...] = (Exception,),
        name: str = "fallback",
    ) -> Self:
        """Return a fallback to a value, the same object each time.

        Args:
            value: what is returned instead of an error.
            on: exceptions that it is returned for, a class or several.
            name: what the fallback is called, in messages.

        Raises:
            ConfigurationError: an argument is not usable.
        """
        return cls(lambda _error: value, on=on, name=name)

    async def _execute(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        requests = _interop.cancel_requests()
        try:
            return await invoke(func, args, kwargs)
        except Exception as error:
            # Whoever is cancelled waits for no answer; an error of its clean-up must not vanish behind one.
            if not covers(self.on, error) or is_cancelled(requests):
                raise
            return await self._answer(error, args, kwargs)

    async def _answer(self, error: Exception, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            if self._takes_arguments:
                return await invoke(self._handler, (error, *args), kwargs)
            return await invoke(self._handler, (error,), {})
        except Exception as second:
            if second.__cause__ is not None or any(second is trailed for trailed in _chain(error)):
                raise
            raise second from error


def _takes_arguments(handler: Callable[..., Any]) -> bool:
    """Tell whether a function takes more than one argument, or has to get one by its name."""
    try:
        parameters = list(inspect.signature(handler).parameters.values())
    except (TypeError, ValueError):  # some functions written in C have none
        return False
    for index, parameter in enumerate(parameters):
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            return True
        if parameter.kind is parameter.KEYWORD_ONLY:
            if parameter.default is parameter.empty:
                return True
        elif index:
            return True
    return False


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Go through an error and what has led to it."""
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        yield following
        seen.add(id(following))
        following = following.__cause__ or following.__context__


@final
class Pipeline(GuardLayer):
    """Several layers around a call, the first one outermost; a layer itself.

        pipeline = Pipeline(Fallback(remember), Retry(), RateLimit(100), Bulkhead(10), breaker, Timeout(2.5))
        answer = await pipeline.execute(fetch, url)

    A layer counts what it sees: all that is inside of it is one call to it. Adds no checkpoint of its own.

    As a block, ``async with pipeline:``, it is made of layers that can stand around one: not of `Retry`, since a block
    cannot be run twice, nor of `Fallback`, since it has no result.

    Args:
        *layers: the layers, pipelines among them. Each is in it once, those in its pipelines included.
        name: what it is called, in messages.

    Raises:
        ConfigurationError: an argument is not usable.
    """

    __slots__ = ("_all", "_guards", "layers")

    def __init__(self, *layers: Layer, name: str = "pipeline") -> None:
        super().__init__(name)
        found: list[Layer] = []
        for layer in layers:
            if not isinstance(layer, Layer):
                dispose(*layers)
                remedy = (
                    f"write {layer.__name__}(...)" if isinstance(layer, type) else "give it layers, outermost first"
                )
                raise ConfigurationError(
                    f"pipeline {name!r} is made of layers: got {show(layer)}; {remedy}",
                    {"name": "layers", "value": layer},
                )
            for part in (layer, *layer._all) if isinstance(layer, Pipeline) else (layer,):
                if any(part is other for other in found):
                    raise ConfigurationError(
                        f"pipeline {name!r} takes each layer once: got {part!r} again; "
                        "leave one out, or make a second one",
                        {"name": "layers", "value": part},
                    )
                found.append(part)
        self._all: Final[tuple[Layer, ...]] = tuple(found)
        self.layers: Final[tuple[Layer, ...]] = layers
        self._guards: Final = tuple(layer for layer in layers if isinstance(layer, GuardLayer))

    def __repr__(self) -> str:
        return f"<Pipeline {self.name!r} of {', '.join(map(repr, self.layers)) or 'nothing'}>"

    def guard(self) -> AbstractAsyncContextManager[object, bool | None]:
        """Return a context manager for one block.

        Raises:
            ConfigurationError: it has a layer that cannot stand around a block.
        """
        for layer in self.layers:
            if layer not in self._guards:
                raise ConfigurationError(
                    f"`async with` of pipeline {self.name!r} needs layers that can stand around a block: got {layer!r}; "
                    "call a function by `execute`, or leave the layer out",
                    {"name": self.name, "layer": layer.name},
                )
        return _Blocks([layer.guard() for layer in self._guards])

    def _abandon(self) -> None:
        for layer in self._guards:
            layer._abandon()

    async def _execute(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        for layer in reversed(self.layers):
            func = functools.partial(layer.execute, func)
        return await invoke(func, args, kwargs)


class _Blocks(AsyncExitStack):
    """A block in several others."""

    def __init__(self, guards: Sequence[AbstractAsyncContextManager[object, bool | None]]) -> None:
        super().__init__()
        self._guards = guards

    async def __aenter__(self) -> Self:
        try:
            for guard in self._guards:
                await self.enter_async_context(guard)
        except BaseException:
            # The outer ones see it like an error of the block; one of them may put another in its place.
            await self.__aexit__(*sys.exc_info())  # noqa: ASYNC102 - what waits in there shields itself
            raise
        return self
