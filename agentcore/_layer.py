"""What all layers around a call have in common: they execute a function, decorate one, or stand around a block.

A layer is shared by everyone who calls through it, so nothing of a single call is kept in it: each block that is entered
has a guard of its own.
"""

from __future__ import annotations

import abc
import functools
import inspect
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Final, ParamSpec, TypeVar, overload

from agentcore.errors import ConfigurationError

P = ParamSpec("P")
T = TypeVar("T")

# The blocks that the present task is in, the innermost last, each with its layer. Tasks that are started inside have it
# too, and leave their own blocks before they could come across one of their parent's.
_entered: Final[ContextVar[tuple[tuple[object, AbstractAsyncContextManager[object, bool | None]], ...]]] = ContextVar(
    "agentcore_entered", default=()
)


_MOST_NOTES: Final = 16
"""On one error, whoever has added them."""


async def invoke(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a function, and await what it gives if that can be awaited. Adds no checkpoint."""
    result = func(*args, **kwargs)
    return await result if inspect.isawaitable(result) else result


def check_name(part: str, name: object) -> None:
    """Accept strings that are not empty.

    Raises:
        ConfigurationError: it is something else.
    """
    if not isinstance(name, str) or not name:
        raise ConfigurationError(
            f"name of a {part} must be a string that is not empty: got {name!r}; give it one",
            {"name": "name", "value": name},
        )


def check_callable(subject: str, func: object) -> None:
    """Accept what can be called.

    Raises:
        ConfigurationError: it is something else, such as the coroutine that a call has given.
    """
    if callable(func):
        return
    remedy = "pass a function and its arguments"
    if inspect.iscoroutine(func):
        remedy = f"write {func.__name__}, not {func.__name__}()"
        func.close()
    raise ConfigurationError(
        f"{subject} takes a function: got {func!r}; {remedy}", {"name": "func", "value": repr(func)}
    )


def is_async(func: Callable[..., Any]) -> bool:
    """Tell whether calling it gives a coroutine: a coroutine function, a partial of one, an object with such a call."""
    while isinstance(func, functools.partial):
        func = func.func
    return inspect.iscoroutinefunction(func) or inspect.iscoroutinefunction(type(func).__call__)


def note_once(error: BaseException, subject: str, text: str) -> None:
    """Add a note to an error, in the place of an earlier one with the same subject.

    The same object may be raised again and again, and must not grow by that. An error that takes no notes gets none.
    """
    note = f"{subject} {text}"
    try:
        notes = getattr(error, "__notes__", None)
        if not isinstance(notes, list):
            error.add_note(note)
            return
        for index, present in enumerate(notes):
            if isinstance(present, str) and present.startswith(subject):
                notes[index] = note
                return
        if len(notes) < _MOST_NOTES:
            notes.append(note)
    except Exception:  # noqa: BLE001, S110 - it may have any base, and may be frozen: what counts is the error itself
        pass


class Layer(abc.ABC):
    """Something around a call: it decides whether, when and how often the function is called.

    `execute` calls a function through it; as a decorator it does so at each call. It may be used by many tasks at a time.
    """

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        check_name(type(self).__name__, name)
        self.name: Final = name

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"

    @overload
    async def execute(self, func: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T: ...
    @overload
    async def execute(self, func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T: ...
    async def execute(self, func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call a function through this layer. Adds no checkpoint, but where the layer waits.

        Args:
            func: a function, asynchronous or not; a synchronous one runs here, in the event loop.
            *args: its arguments.
            **kwargs: its arguments.

        Returns:
            What it returns.

        Raises:
            ConfigurationError: it is no function.
            Exception: whatever the function raises, and the errors of this layer.
        """
        check_callable(f"execute of {self.name!r}", func)
        return await self._execute(func, args, kwargs)

    @abc.abstractmethod
    async def _execute(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the function through this layer."""

    def __call__(self, func: Callable[P, Awaitable[T]], /) -> Callable[P, Coroutine[Any, Any, T]]:
        """Return a function that calls another one through this layer: ``@layer``.

        Args:
            func: a coroutine function.

        Raises:
            ConfigurationError: it is something else.
        """
        check_callable(f"@{self.name}", func)
        if not is_async(func):
            raise ConfigurationError(
                f"@{self.name} decorates coroutine functions: got {func!r}; write `async def`, or call it by `execute`",
                {"name": "func", "value": repr(func)},
            )

        @functools.wraps(func)
        async def call(*args: P.args, **kwargs: P.kwargs) -> T:
            return await self.execute(func, *args, **kwargs)

        return call


class GuardLayer(Layer):
    """A layer that can stand around a block: ``async with layer:``. What the block is counts as one call."""

    __slots__ = ()

    @abc.abstractmethod
    def guard(self) -> AbstractAsyncContextManager[object, bool | None]:
        """Return a context manager for one block."""

    def _abandon(self) -> None:
        """Give back what a block holds that is left where its guard cannot be found. By default it holds nothing."""

    async def _execute(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        async with self.guard():
            return await invoke(func, args, kwargs)

    async def __aenter__(self) -> None:
        """Begin a block in this layer. It is left in the same task."""
        guard = self.guard()
        await guard.__aenter__()
        _entered.set((*_entered.get(), (self, guard)))

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        """End the innermost block in this layer that the task has begun."""
        blocks = _entered.get()
        index = max((index for index, (layer, _) in enumerate(blocks) if layer is self), default=None)
        if index is None:
            self._abandon()
            if exc_type is GeneratorExit:  # closed by somebody else, as by an event loop that ends with tasks pending
                return None
            raise ConfigurationError(
                f"a block of {self.name!r} must be left in the task that has entered it: got a task without one; "
                "do not keep it open across a `yield`",
                {"name": self.name},
            )
        _entered.set((*blocks[:index], *blocks[index + 1 :]))
        return await blocks[index][1].__aexit__(exc_type, exc, traceback)  # noqa: ASYNC102 - shields itself if it waits
