"""What all errors of agentcore have in common: details, severity, a safe text, and that they pickle."""

# No `from __future__ import annotations` here: `__module__` of these classes reads agentcore, where names in strings could
# not be found by who reads annotations at run time.

import enum
import logging
import sys
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self, TypeVar

E = TypeVar("E", bound="CoreError")


class Severity(enum.IntEnum):
    """How bad an error is; the values are the levels of :mod:`logging`."""

    INFO = logging.INFO
    WARNING = logging.WARNING
    ERROR = logging.ERROR
    CRITICAL = logging.CRITICAL


class CoreError(Exception):
    """Base of every error of agentcore.

    Args:
        message: what happened, for a developer: subject, rule, value, remedy.
        details: the values behind the message, by name. Copied.

    Every error pickles. A detail that does not arrives on the other side as its text, an exception that does not as a
    CoreError with its text.
    """

    code: ClassVar[str] = "core_error"
    """Stable, machine readable name of the class of error."""
    severity: ClassVar[Severity] = Severity.ERROR
    """The level that :meth:`log` uses."""
    safe_text: ClassVar[str] = "An internal error occurred."
    """What :meth:`safe_message` says: fixed for each class, free of values."""

    details: dict[str, Any]

    def __init__(self, message: str, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.details = dict(details) if details else {}

    @property
    def message(self) -> str:
        """What happened, for a developer."""
        return str(self.args[0]) if self.args else ""

    def __str__(self) -> str:
        # Not left to the bases: OSError (of TimeoutError) and ExceptionGroup each have a format of their own.
        return self.message

    def safe_message(self) -> str:
        """Return a text for people who must not see internals: the same for every error of a class, never a detail."""
        return self.safe_text

    def log(self, logger: logging.Logger | logging.LoggerAdapter[Any]) -> None:
        """Log this error with its traceback at its own severity.

        Args:
            logger: where to. The record has ``error_code`` and ``error_details`` as extra attributes.
        """
        logger.log(
            self.severity,
            "%s",
            self.message,
            exc_info=self,
            extra={"error_code": self.code, "error_details": self.details},
        )

    def __reduce__(self) -> tuple[Any, ...]:
        arguments = tuple(_portable(argument) for argument in self._arguments())
        return _rebuild, (type(self), arguments, _portable(self.__dict__))

    def __copy__(self) -> Self:
        return _rebuild(type(self), self._arguments(), dict(self.__dict__))

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # What an error tells of are the very objects; copies of them would be others.
        return self.__copy__()

    def _arguments(self) -> tuple[Any, ...]:
        return (self.message,)


def text_of(value: object) -> str:
    """Return ``str(value)``, or what it is if that raises: foreign objects must not break the telling of an error."""
    try:
        return str(value)
    except Exception as error:  # noqa: BLE001 - told in the text
        return f"<{type(value).__qualname__} whose str() raised {type(error).__name__}>"


MAX_TOLD = 5
"""How many failures a message tells of by their text; further ones are counted."""


def texts_of(failures: Sequence[BaseException], count: int | None = None) -> str:
    """Return what several failures say, for one message: the first ones by their text, the rest by their number.

    Args:
        failures: the failures.
        count: how many there are in all; None for as many as are given.
    """
    told = [text_of(failure) or type(failure).__name__ for failure in failures[:MAX_TOLD]]
    left = (len(failures) if count is None else count) - len(told)
    return "; ".join([*told, f"and {left} more"] if left > 0 else told)


def _rebuild(cls: type[E], arguments: tuple[Any, ...], state: dict[str, Any]) -> E:
    # A subclass of a user may have a constructor of its own; the state is restored without calling it.
    new = BaseExceptionGroup.__new__ if issubclass(cls, BaseExceptionGroup) else _builtin_base(cls).__new__
    error = new(cls, *arguments)
    error.args = arguments
    error.__dict__.update(state)
    return error


def _builtin_base(cls: type[BaseException]) -> type[BaseException]:
    return next(base for base in cls.__mro__ if base.__module__ == "builtins")


def _can_be_found(cls: type) -> bool:
    found: Any = sys.modules.get(cls.__module__)
    for name in cls.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is cls


def _portable(value: Any, depth: int = 5) -> Any:
    """Return a value that pickles and comes back: itself, a container of such, a stand-in for an exception, a text."""
    # What is known to be portable is not tried: it would try what is in it in turn, twice as often with each level.
    if isinstance(value, CoreError) and type(value).__reduce__ is CoreError.__reduce__ and _can_be_found(type(value)):
        return value
    if depth and type(value) is dict:
        return {_portable(key, 0): _portable(item, depth - 1) for key, item in value.items()}
    if depth and type(value) in (list, tuple):
        return type(value)(_portable(item, depth - 1) for item in value)
    import pickle  # noqa: PLC0415 - most programs never pickle an error

    try:
        # Both ways: exceptions with constructors of their own pickle, and fail when they are loaded.
        pickle.loads(pickle.dumps(value))  # noqa: S301 - what this process has just written
    except Exception:  # noqa: BLE001 - anything may be raised by a foreign __reduce__
        if isinstance(value, Exception):
            return CoreError(f"{type(value).__name__}: {text_of(value)}", {"type": type(value).__qualname__})
        return text_of(value)
    return value
