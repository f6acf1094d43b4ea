"""What the comparisons of circuit breakers ask of a library: a breaker with given settings, and a way to call through it."""

from __future__ import annotations

import abc
import importlib.metadata
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar, Literal, Protocol, TypeAlias

import attrs

AsyncFunction: TypeAlias = Callable[..., Awaitable[Any]]
Counting: TypeAlias = Literal["consecutive", "calls", "time"]


class DownError(Exception):
    """What the dependency raises when it is down: counts as a failure."""


class CallerError(Exception):
    """What the dependency raises when it is well and the caller is wrong: must not count."""


@attrs.frozen(kw_only=True)
class Settings:
    """How a breaker shall behave.

    Attributes:
        counting: what opens it: so many failures in a row; half of the last 100 calls; or half of the calls, or of them
            slow ones, within ten seconds.
        failures: how many in a row.
        probes: how many successes close it again, and how many trial calls run at a time, where one can say so.
        reset: seconds that it stays open.
        lease: seconds that a trial call may take, where a library bounds that.
        exclude: whether `CallerError` is an exception that does not count, and `DownError` one that does.
        listener: is called at everything that the library tells of.
    """

    counting: Counting = "consecutive"
    failures: int = 5
    probes: int = 1
    reset: float = 30.0
    lease: float = 30.0
    exclude: bool = False
    listener: Callable[[], None] | None = None


@attrs.frozen
class Guarded:
    """A function behind a breaker.

    Attributes:
        call: what is called.
        func: its first argument, for libraries that take the function with each call.
        breaker: the breaker.
    """

    call: AsyncFunction
    func: AsyncFunction | None = None
    breaker: object = None

    @property
    def kept(self) -> object:
        """What a program keeps of it: the breaker, or the decorated function that has it."""
        return self.call if self.func is None else self.breaker

    async def __call__(self, *args: Any) -> Any:
        """Call the function through the breaker."""
        if self.func is None:
            return await self.call(*args)
        return await self.call(self.func, *args)


class Permits(Protocol):
    """Admission by hand: ask first, report afterwards."""

    async def ask(self) -> bool:
        """Ask for a permit."""

    async def succeeded(self) -> None:
        """Report a success."""

    async def failed(self) -> None:
        """Report a failure."""


class Peer(abc.ABC):
    """One library.

    Attributes:
        distribution: its name on the package index, which is its name in the tables.
        on_trio: whether it is measured on trio as well.
        countings: what it can count.
        has_probes: whether one can say how many successes close it.
        has_exclusion: whether one can say which exceptions do not count, or which ones do.
        has_listeners: whether one can be told of events.
    """

    distribution: ClassVar[str]
    on_trio: ClassVar[bool] = True
    countings: ClassVar[tuple[Counting, ...]] = ("consecutive",)
    has_probes: ClassVar[bool] = False
    has_exclusion: ClassVar[bool] = True
    has_listeners: ClassVar[bool] = True

    @abc.abstractmethod
    def guard(self, func: AsyncFunction, settings: Settings) -> Guarded:
        """Put a function behind a new breaker."""

    def permits(self, settings: Settings) -> Permits | None:
        """Return the admission by hand of a new breaker; None if the library has no such thing."""
        return None

    def version(self) -> str | None:
        """Return the version that is installed, None if there is none."""
        try:
            return importlib.metadata.version(self.distribution)
        except importlib.metadata.PackageNotFoundError:
            return None


def ignoring(listener: Callable[[], None]) -> Callable[..., None]:
    """Return a listener that takes whatever it is told."""

    def listen(*args: object, **kwargs: object) -> None:
        listener()

    return listen


def ignoring_async(listener: Callable[[], None]) -> Callable[..., Awaitable[None]]:
    async def listen(*args: object, **kwargs: object) -> None:
        listener()

    return listen


def listening(base: type, listener: Callable[[], None], *methods: str, is_async: bool = False) -> Any:
    """Return an object of a library's class of listeners whose methods call ours."""
    wrapped = ignoring_async(listener) if is_async else ignoring(listener)
    return type("Listening", (base,), dict.fromkeys(methods, staticmethod(wrapped)))()
