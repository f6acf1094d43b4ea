"""Tasks as plain values: the fields that subclasses add, and what is told of values that cannot be read."""

from __future__ import annotations

import datetime as dt
import enum
import json
from typing import Any

import attrs
import pytest

from agentcore import BaseTask, TaskError, TaskPriority


class Colour(enum.Enum):
    RED = "r"


class Size(enum.StrEnum):
    LARGE = "large"


class Level(enum.IntEnum):
    TOP = 3


@attrs.define
class Place:
    """A value with values in it."""

    city: str
    since: dt.datetime | None = None
    tags: set[str] = attrs.field(factory=set)


@attrs.define(kw_only=True, eq=False)
class Shipment(BaseTask):
    """A task with a field of every kind."""

    due: dt.datetime | None = None
    day: dt.date | None = None
    marks: set[str] = attrs.field(factory=set)
    fixed: frozenset[int] = frozenset()
    label: bytes = b""
    colour: Colour = Colour.RED
    size: Size = Size.LARGE
    level: Level = Level.TOP
    origin: Place | None = None
    stops: list[Place] = attrs.field(factory=list)
    pair: tuple[int, ...] = ()
    weight: float = 0.0
    fragile: bool = False
    urgency: TaskPriority = TaskPriority.LOW


class Opaque:
    """Nobody knows how to make one."""


@attrs.define(kw_only=True, eq=False)
class Holding(BaseTask):
    """A task with a field that cannot be read."""

    opaque: Opaque | None = None
    certain: Opaque = attrs.field(factory=Opaque)


NOON = dt.datetime(2024, 2, 29, 12, 0, 0, 500, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("due", NOON),
        ("due", None),
        ("day", dt.date(2024, 2, 29)),
        ("marks", {"a", "b"}),
        ("fixed", frozenset({1, 2})),
        ("label", b"\x00\xff"),
        ("colour", Colour.RED),
        ("size", Size.LARGE),
        ("level", Level.TOP),
        ("origin", Place("Oslo", NOON, {"north"})),
        ("stops", [Place("Oslo"), Place("Rome", NOON)]),
        ("pair", (1, 2)),
        ("weight", 2.5),
        ("fragile", True),
        ("urgency", TaskPriority.HIGH),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_field_of_a_subclass(field: str, value: object) -> None:
    """A field that a subclass adds is written as JSON can say it, and comes back as it was."""
    task = Shipment.create("ship", **{field: value})
    read = Shipment.from_dict(json.loads(json.dumps(task.to_dict())))
    assert (value, type(value)) == (getattr(read, field), type(getattr(read, field)))


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("priority", "URGENT", "one of LOW"),
        ("priority", ["HIGH"], "@ $.priority"),
        ("created_at", 5, "ISO 8601"),
        ("created_at", "yesterday", "yesterday"),
        ("type", 5, "a string is expected: got 5"),
        ("attempt", "3", "a whole number is expected: got '3'"),
        ("attempt", True, "a whole number is expected: got True"),
        ("cancel_requested", 1, "true or false is expected: got 1"),
        ("size", "small", "small"),
        ("level", 99, "99"),
        ("colour", "blue", "blue"),
        ("origin", {"city": 5}, "origin"),
        ("timeout_ms", 0.5, "timeout_ms"),
    ],
)
def test_value_that_cannot_be_read(field: str, value: object, told: str) -> None:
    """A wrong value is told with the rule that it breaks and where it stands."""
    with pytest.raises(TaskError) as caught:
        Shipment.from_dict({**Shipment.create("ship").to_dict(), field: value})
    problems = caught.value.details["problems"]
    assert (1, True) == (len(problems), field in problems[0].rpartition(" @ ")[2])
    assert told in problems[0]


def test_all_that_cannot_be_read_is_listed() -> None:
    """Of several faults none hides the others."""
    with pytest.raises(TaskError) as caught:
        BaseTask.from_dict({**BaseTask.create("work").to_dict(), "priority": 1, "attempt": "1", "created_at": None})
    found = {problem.rpartition("$.")[2] for problem in caught.value.details["problems"]}
    assert {"priority", "attempt", "created_at"} == found


@pytest.mark.parametrize("values", [None, [], "task", 5])
def test_something_else_than_a_mapping(values: Any) -> None:
    """What is no mapping is no task."""
    with pytest.raises(TaskError, match="a mapping is expected: got") as caught:
        BaseTask.from_dict(values)
    assert repr(values) in str(caught.value)


@pytest.mark.parametrize("value", [5, {"opaque": 1}])
def test_field_of_a_kind_that_nobody_can_read(value: object) -> None:
    """A field of a class that cannot be made of plain values is a fault that names the class."""
    with pytest.raises(TaskError, match="Opaque"):
        Holding.from_dict({**BaseTask.create("work").to_dict(), "certain": value})


def test_missing_value() -> None:
    """A value that has no default is missed by its name."""
    values = BaseTask.create("work").to_dict()
    del values["type"]
    with pytest.raises(TaskError, match="type"):
        BaseTask.from_dict(values)


def test_written_values_are_copies() -> None:
    """Whoever changes what a task has been written as changes nothing in the task."""
    task = BaseTask.create("work", {"size": 1}, metadata={"owner": "me"}).start().checkpoint({"page": 1})
    before = task.to_dict()
    written = task.to_dict()
    written["metadata"]["hack"] = written["input"]["hack"] = 1
    written["checkpoints"][0]["data"]["hack"] = written["events"][-1]["data"]["hack"] = 1
    assert ({"owner": "me"}, {"size": 1}) == (task.metadata, task.input)
    assert before | {"duration_ms": 0} == task.to_dict() | {"duration_ms": 0}
