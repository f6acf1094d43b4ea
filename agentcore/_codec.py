"""Objects to plain values and back, with every fault named by its path. cattrs is loaded when first needed."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING, Any, Final, NewType, TypeVar

import attrs

from agentcore._events import to_datetime
from agentcore._rules.task_states import TaskPriority

if TYPE_CHECKING:
    from cattrs import Converter

T = TypeVar("T")

Timestamp = NewType("Timestamp", float)
"""Seconds since the epoch inside, ISO 8601 in UTC outside."""

NOT_STORED: Final[Mapping[str, Any]] = {"agentcore.stored": False}
"""Metadata of a field that `unstructure` leaves out, because its class writes it in a form of its own."""


@attrs.frozen
class StoredEvent:
    """An event as `BaseTask.to_dict` writes it."""

    sequence: int
    event_type: str
    at: Timestamp
    data: dict[str, Any]


@attrs.frozen
class StoredCheckpoint:
    """A checkpoint as `BaseTask.to_dict` writes it."""

    at: Timestamp
    data: dict[str, Any]


class StructureError(Exception):
    """Plain values do not fit a class. ``problems`` lists every fault as ``message @ $.path``."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


def unstructure(instance: object) -> dict[str, Any]:
    """Return the fields of an attrs instance as plain values, private ones under their public names."""
    values: dict[str, Any] = _converter().unstructure(instance)
    return values


def structure(values: Mapping[str, Any], cls: type[T]) -> T:
    """Make an instance of an attrs class from plain values.

    Raises:
        StructureError: they do not fit.
    """
    from cattrs.errors import BaseValidationError  # noqa: PLC0415 - loaded when needed
    from cattrs.v import transform_error  # noqa: PLC0415

    if not isinstance(values, Mapping):
        raise StructureError([f"a mapping is expected: got {values!r} @ $"])
    try:
        return _converter().structure(values, cls)
    except BaseValidationError as error:
        raise StructureError(transform_error(error)) from error
    except Exception as error:  # noqa: BLE001 - a hook or a constructor may raise anything; it is named, not hidden
        raise StructureError([f"{error} @ $"]) from error


def _priority_by_name(name: object, _: object) -> TaskPriority:
    # No KeyError out of here: cattrs takes that for a field that is missing.
    if name not in TaskPriority.__members__:
        raise ValueError(f"one of {', '.join(TaskPriority.__members__)} is expected: got {name!r}")
    return TaskPriority[str(name)]


@cache
def _converter() -> Converter:
    from cattrs import Converter  # noqa: PLC0415
    from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn, override  # noqa: PLC0415

    converter = Converter(use_alias=True)
    converter.register_unstructure_hook(TaskPriority, lambda priority: priority.name)
    converter.register_structure_hook(TaskPriority, _priority_by_name)
    converter.register_unstructure_hook(Timestamp, lambda seconds: to_datetime(seconds).isoformat())
    converter.register_structure_hook(Timestamp, lambda text, _: datetime.fromisoformat(text).timestamp())

    def omitted(cls: type) -> dict[str, Any]:
        return {
            field.name: override(omit=True) for field in attrs.fields(cls) if field.metadata.get("agentcore.stored") is False
        }

    @converter.register_unstructure_hook_factory(attrs.has)
    def _unstructure(cls: type) -> Any:
        return make_dict_unstructure_fn(
            cls, converter, _cattrs_include_init_false=True, _cattrs_use_alias=True, **omitted(cls)
        )

    @converter.register_structure_hook_factory(attrs.has)
    def _structure(cls: type) -> Any:
        return make_dict_structure_fn(
            cls, converter, _cattrs_include_init_false=True, _cattrs_use_alias=True, **omitted(cls)
        )

    return converter
