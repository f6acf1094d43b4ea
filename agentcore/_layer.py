"""What all layers around a call have in common: they execute a function, decorate one, or stand around a block.

A layer is shared by everyone who calls through it, so nothing of a single call is kept in it: each block that is entered
has a guard of its own.
"""

from __future__ import annotations

import abc
import functools
import inspect
import math
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from types import CodeType, TracebackType
from typing import Any, Final, NamedTuple, ParamSpec, TypeVar, overload

import anyio

from agentcore import _interop
from agentcore._rules.backoff import show
from agentcore.errors import ConfigurationError

P = ParamSpec("P")
T = TypeVar("T")


class _Block(NamedTuple):
    """A block in a layer, with the task that is in it."""

    layer: object
    owner: weakref.ref[object]
    guard: AbstractAsyncContextManager[object, bool | None]


# The blocks that the present task is in, the innermost last. There may be those of other tasks among them: of the one that
# has started it, and of any with the same context.
_entered: Final[ContextVar[tuple[_Block, ...]]] = ContextVar("agentcore_entered", default=())


_GENERATORS: Final = inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR

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
            f"name of a {part} must be a string that is not empty: got {show(name)}; give it one",
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
        f"{subject} takes a function: got {show(func)}; {remedy}", {"name": "func", "value": show(func)}
    )


def dispose(*values: object) -> None:
    """Close coroutines that were given by mistake: nobody will await them, which Python would complain of."""
    for value in values:
        if inspect.iscoroutine(value):
            value.close()


def refuse_generator(subject: str, func: Callable[..., Any], remedy: str) -> None:
    """Accept functions that return: what a generator does is done when somebody goes through it, outside of every layer.

    Raises:
        ConfigurationError: it makes a generator, asynchronous or not.
    """
    inner: object = func
    while isinstance(inner, functools.partial):
        inner = inner.func
    code = getattr(inner, "__code__", None) or getattr(type(inner).__call__, "__code__", None)
    # Some generators can be awaited, and are coroutines: those of `types.coroutine`.
    if isinstance(code, CodeType) and code.co_flags & _GENERATORS and not code.co_flags & inspect.CO_ITERABLE_COROUTINE:
        raise ConfigurationError(
            f"{subject} functions that return: got the generator {func!r}; {remedy}",
            {"name": "func", "value": repr(func)},
        )


def check_decorated(name: str, func: Callable[..., Any]) -> None:
    """Accept what a layer can decorate, asynchronous or not.

    Raises:
        ConfigurationError: it cannot be called, or makes a generator.
    """
    check_callable(f"@{name}", func)
    refuse_generator(
        f"@{name} decorates", func, "put what may fail into a function, or write `async with` inside of it"
    )


def is_cancelled(requests: int) -> bool:
    """Tell whether the caller is being cancelled, by a scope or by asyncio's own ways.

    Args:
        requests: what `_interop.cancel_requests` gave when the call began. Some may never have been taken back since.
    """
    return anyio.current_effective_deadline() == -math.inf or _interop.cancel_requests() > requests


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
            func: a function, asynchronous or not, but no generator; a synchronous one runs here, in the event loop.
            *args: its arguments.
            **kwargs: its arguments.

        Returns:
            What it returns.

        Raises:
            ConfigurationError: it is no function, or one that makes a generator.
            Exception: whatever the function raises, and the errors of this layer.
        """
        subject = f"execute of {self.name!r}"
        check_callable(subject, func)
        refuse_generator(f"{subject} takes", func, "pass a function that goes through it")
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
        check_decorated(self.name, func)
        if not is_async(func):
            raise ConfigurationError(
                f"@{self.name} decorates coroutine functions: got {func!r}; write `async def`, or call it by `execute`",
                {"name": "func", "value": repr(func)},
            )

        @functools.wraps(func)
        async def call(*args: P.args, **kwargs: P.kwargs) -> T:
            return await self.execute(func, *args, **kwargs)

        return call

    # No coroutines: there is nothing to wait for, and nothing to cancel.

    def __aenter__(self) -> Awaitable[None]:
        """Refuse to stand around a block.

        Raises:
            ConfigurationError: always; what can do it is a `GuardLayer`.
        """
        raise self._no_block()

    def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> Awaitable[bool | None]:
        """Refuse as well.

        Raises:
            ConfigurationError: always.
        """
        raise self._no_block()

    def _no_block(self) -> ConfigurationError:
        return ConfigurationError(
            f"`async with` needs layers that can stand around a block: got {self!r}; call a function by `execute`",
            {"name": self.name},
        )


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
        # Those of tasks that have ended would be handed on for ever, from each task to the ones that it starts.
        blocks = tuple(block for block in _entered.get() if block.owner() is not None)
        _entered.set((*blocks, _Block(self, weakref.ref(_interop.current_owner()), guard)))

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        """End the innermost block in this layer that the task has begun."""
        blocks = _entered.get()
        # Of this very task: a generator that is closed in the name of another task must not end that one's block.
        owner = _interop.current_owner()
        own = (index for index, block in enumerate(blocks) if block.layer is self and block.owner() is owner)
        index = max(own, default=None)
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
        return await blocks[index].guard.__aexit__(exc_type, exc, traceback)  # noqa: ASYNC102 - shields itself if it waits
