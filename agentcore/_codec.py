"""Objects to plain values and back, with every fault named by its path. cattrs is loaded when first needed."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING, Any, NewType, TypeVar

from agentcore._events import to_datetime
from agentcore._rules.task_states import TaskPriority

if TYPE_CHECKING:
    from cattrs import Converter

A = TypeVar("A")
B = TypeVar("B")

Timestamp = NewType("Timestamp", float)
"""Seconds since the epoch inside, ISO 8601 in UTC outside."""


def timestamp(seconds: float | None) -> Timestamp | None:
    """Mark seconds since the epoch as what they are."""
    return None if seconds is None else Timestamp(seconds)


def unstructure(instance: object) -> dict[str, Any]:
    """Return the arguments that an attrs instance was made with as plain values."""
    values: dict[str, Any] = _converter().unstructure(instance)
    return values


def structure_all(values: object, first: type[A], second: type[B]) -> tuple[tuple[A, B], list[str]]:
    """Make instances of two attrs classes from one mapping that has the values of both.

    Returns:
        The instances; and the faults of both, each as ``message @ $.path``. If there are any, the instances are not to be used.
    """
    made: list[Any] = []
    problems: list[str] = []
    for cls in (first, second):
        instance, faults = _structure(values, cls)
        made.append(instance)
        problems += faults
    return (made[0], made[1]), problems


def _structure(values: object, cls: type[A]) -> tuple[A | None, list[str]]:
    from cattrs.errors import BaseValidationError  # noqa: PLC0415 - loaded when needed
    from cattrs.v import transform_error  # noqa: PLC0415

    if not isinstance(values, Mapping):
        return None, [f"a mapping is expected: got {values!r} @ $"]
    try:
        return _converter().structure(values, cls), []
    except BaseValidationError as error:
        # cattrs names fields as the class does; the key of a private one has no underscore.
        return None, [fault.replace("$._", "$.") for fault in transform_error(error, format_exception=_told)]
    except Exception as error:  # noqa: BLE001 - a hook or a constructor may raise anything; it is named, not hidden
        return None, [f"{error} @ $"]


def _told(error: BaseException, expected: type | None) -> str:
    """Return the words of a fault; cattrs' own would drop the text of hooks and validators."""
    from cattrs.v import format_exception  # noqa: PLC0415

    return str(error) if isinstance(error, ValueError | TypeError) and str(error) else format_exception(error, expected)


@cache
def _converter() -> Converter:
    from cattrs.preconf.json import make_converter  # noqa: PLC0415

    # Times, sets and bytes of fields that subclasses add are written as JSON can say them.
    converter = make_converter(use_alias=True)
    converter.register_unstructure_hook(TaskPriority, lambda priority: priority.name)
    converter.register_structure_hook(TaskPriority, _priority)
    converter.register_unstructure_hook(Timestamp, lambda seconds: to_datetime(seconds).isoformat())
    converter.register_structure_hook(Timestamp, _timestamp)
    # cattrs would call str() and int() on anything.
    converter.register_structure_hook(str, _text)
    converter.register_structure_hook(int, _whole)
    converter.register_structure_hook(bool, _flag)
    return converter


# No KeyError out of these: cattrs takes that for a field that is missing.


def _priority(name: object, _: object) -> TaskPriority:
    if not isinstance(name, str) or name not in TaskPriority.__members__:
        raise ValueError(f"one of {', '.join(TaskPriority.__members__)} is expected: got {name!r}")
    return TaskPriority[name]


def _timestamp(text: object, _: object) -> Timestamp:
    if not isinstance(text, str):
        raise TypeError(f"a time in ISO 8601 is expected: got {text!r}")
    return Timestamp(datetime.fromisoformat(text).timestamp())


def _text(value: object, cls: type[str]) -> str:
    if cls is not str:  # an enumeration of strings
        return cls(value)
    if not isinstance(value, str):
        raise TypeError(f"a string is expected: got {value!r}")
    return value


def _whole(value: Any, cls: type[int]) -> int:
    if cls is not int:  # an enumeration of numbers
        return cls(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"a whole number is expected: got {value!r}")
    return value


def _flag(value: object, _: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"true or false is expected: got {value!r}")
    return value
