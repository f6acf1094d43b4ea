"""Errors: what they tell and to whom, and that each of them can be copied and sent to another process."""

from __future__ import annotations

import copy
import logging
import pickle
import threading
from collections import namedtuple
from collections.abc import Callable
from typing import Any, Self, TypeVar

import pytest

from agentcore import errors
from agentcore.errors import (
    AgentCrashedError,
    AgentError,
    AgentExecutionError,
    AgentTimeoutError,
    CoreError,
    Severity,
    TaskError,
    TaskNotFoundError,
    TaskTimeoutError,
    text_of,
)

E = TypeVar("E", bound=BaseException)

CLASSES: list[type[CoreError]] = [
    cls for cls in map(errors.__dict__.__getitem__, errors.__all__) if issubclass(cls, CoreError)
]
every_class = pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)


def make(cls: type[CoreError], message: str, details: dict[str, Any]) -> CoreError:
    """Make an error of any class."""
    return cls(message, [ValueError(1)], details) if issubclass(cls, ExceptionGroup) else cls(message, details)


def sent(error: E) -> E:
    """Return what arrives of an error in another process."""
    arrived: E = pickle.loads(pickle.dumps(error))
    return arrived


every_copy = pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, sent], ids=["copy", "deepcopy", "pickle"])


class HttpError(Exception):
    """Has an argument that unpickling does not know of."""

    def __init__(self, message: str, *, response: object) -> None:
        super().__init__(message)
        self.response = response


class PairError(Exception):
    """Has other arguments than its base."""

    def __init__(self, one: int, other: int) -> None:
        super().__init__(f"{one}-{other}")


class Hostile:
    """Can neither be pickled nor shown."""

    def __reduce__(self) -> str:
        raise RuntimeError("no pickle")

    def __repr__(self) -> str:
        raise RuntimeError("no text")


class FetchError(TaskError):
    """A user's error with a constructor of its own."""

    def __init__(self, url: str, status: int) -> None:
        super().__init__(f"{url}: {status}", {"url": url})
        self.status = status


class FlockError(AgentCrashedError):
    """A user's group with constructors of its own."""

    def __new__(cls, excs: list[Exception]) -> Self:
        return super().__new__(cls, "flock", excs)

    def __init__(self, excs: list[Exception]) -> None:
        super().__init__("flock", excs, {"count": len(excs)})


class Line(list[Any]):
    """A list that is not made from a sequence of its items."""

    def __init__(self, one: object) -> None:
        super().__init__()
        self.append(one)
        self.append(one)


Point = namedtuple("Point", "x y")  # noqa: PYI024 - as users write them


# What they tell.


@every_class
def test_every_error_has_a_code_and_a_text_for_outsiders(cls: type[CoreError]) -> None:
    """The safe message is fixed for a class, so no value of the message or the details can be in it."""
    error = make(cls, "secret value", {"key": "another secret"})
    assert ("secret value", "secret value") == (str(error), error.message)
    assert ({"key": "another secret"}, cls.safe_text) == (error.details, error.safe_message())
    assert "secret" not in error.safe_message()
    assert isinstance(cls.severity, Severity)


def test_codes_are_unique() -> None:
    """No two classes share a code."""
    assert len(CLASSES) == len({cls.code for cls in CLASSES})


def test_severities_are_levels_of_logging() -> None:
    """The severities are the levels of `logging`."""
    names = ["INFO", "WARNING", "ERROR", "CRITICAL"]
    assert [getattr(logging, name) for name in names] == [Severity[name] for name in names]


def test_details_are_a_copy() -> None:
    """Whoever changes the mapping that was passed changes nothing in the error."""
    details = {"key": 1}
    error = CoreError("message", details)
    details["key"] = 2
    assert ({"key": 1}, {}) == (error.details, CoreError("message").details)


def test_an_error_without_a_message() -> None:
    """An error whose arguments were taken away has an empty message."""
    error = CoreError("message")
    error.args = ()
    assert ("", "") == (error.message, str(error))


@pytest.mark.parametrize(
    "error",
    [
        CoreError("one", {"key": 1}),
        TaskNotFoundError("one", {"key": 1}),
        AgentCrashedError("one", [ValueError(1)], {"key": 1}),
    ],
)
def test_log(error: CoreError, caplog: pytest.LogCaptureFixture) -> None:
    """An error is logged at its own severity, with its code, its details and its traceback."""
    with caplog.at_level(logging.DEBUG):
        error.log(logging.getLogger("somewhere"))
    (record,) = caplog.records
    assert (error.severity, "one", "somewhere") == (record.levelno, record.getMessage(), record.name)
    assert (error.code, {"key": 1}) == (record.error_code, record.error_details)  # type: ignore[attr-defined]
    assert record.exc_info is not None
    assert record.exc_info[1] is error


def test_log_with_an_adapter(caplog: pytest.LogCaptureFixture) -> None:
    """An adapter may stand for the logger, and a per cent sign in the message is one."""
    CoreError("100 %s").log(logging.LoggerAdapter(logging.getLogger("somewhere"), {}))
    assert ["100 %s"] == [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (ValueError("bad"), "bad"),
        (5, "5"),
        (Hostile(), "<Hostile whose str() raised RuntimeError>"),
    ],
    ids=["exception", "number", "hostile"],
)
def test_text_of(value: object, text: str) -> None:
    """A text is found for everything, for what cannot be shown too."""
    assert text == text_of(value)


# Groups.


def test_parts_of_a_group() -> None:
    """What `split` and `except*` make of a group is of the same kind and has its message and details."""
    leaf = TaskError("leaf", {"key": 1})
    group = AgentCrashedError("outer", [AgentCrashedError("inner", [leaf, ValueError(1)]), KeyError(2)], {"count": 3})
    matching, rest = group.split(TaskError)
    for part in (matching, rest):
        assert isinstance(part, AgentCrashedError)
        assert ("outer", {"count": 3}) == (part.message, part.details)
    assert matching is not None
    inner = matching.exceptions[0]
    assert isinstance(inner, AgentCrashedError)
    assert (inner.message, inner.exceptions[0]) == ("inner", leaf)
    caught: list[BaseException] = []
    try:
        raise group
    except* TaskError as part:
        caught.append(part)
    except* (ValueError, KeyError) as part:
        caught.append(part)
    assert [AgentCrashedError, AgentCrashedError] == [type(part) for part in caught]


# Copies.


@every_copy
@every_class
def test_every_error_can_be_copied(cls: type[CoreError], copied: Callable[[CoreError], CoreError]) -> None:
    """A copy is another object of the same class that tells the same, its notes included."""
    error = make(cls, "message", {"key": [1]})
    error.add_note("a note")
    other = copied(error)
    assert (cls, "message", "message") == (type(other), str(other), other.args[0])
    assert ({"key": [1]}, ["a note"], False) == (other.details, other.__notes__, other is error)


@every_copy
def test_errors_inside_of_an_error(copied: Callable[[CoreError], CoreError]) -> None:
    """The errors of an AgentExecutionError and the leaves of a group travel along."""
    pair = copied(AgentExecutionError("pair", errors=(ValueError(1), AgentTimeoutError("late", {"timeout": 5}))))
    assert isinstance(pair, AgentExecutionError)
    assert [ValueError, AgentTimeoutError] == [type(error) for error in pair.errors]
    group = copied(AgentCrashedError("outer", [AgentCrashedError("inner", [ValueError(1)], {"key": 1}), KeyError(2)]))
    assert isinstance(group, AgentCrashedError)
    assert [AgentCrashedError, KeyError] == [type(error) for error in group.exceptions]
    inner = group.exceptions[0]
    assert isinstance(inner, AgentCrashedError)
    assert ({"key": 1}, "(1,)") == (inner.details, str(inner.exceptions[0].args))


@every_copy
def test_constructors_of_ones_own(copied: Callable[[CoreError], CoreError]) -> None:
    """Subclasses need not have the constructor of their base."""
    single, group = copied(FetchError("/", 404)), copied(FlockError([ValueError(1)]))
    assert isinstance(single, FetchError)
    assert ("/: 404", {"url": "/"}, 404) == (str(single), single.details, single.status)
    assert isinstance(group, FlockError)
    assert ("flock", {"count": 1}, [ValueError]) == (
        str(group),
        group.details,
        [type(error) for error in group.exceptions],
    )


FOREIGN: list[Exception] = [
    HttpError("gone", response=404),
    PairError(1, 2),
    ValueError(threading.Lock()),
    ValueError(Hostile()),
]
foreign = pytest.mark.parametrize("inner", FOREIGN, ids=["keyword", "arguments", "lock", "hostile"])


@foreign
def test_exceptions_that_do_not_pickle(inner: Exception) -> None:
    """Where an exception cannot be sent, an error with its type and text arrives, and the others as they are."""
    pair = sent(AgentExecutionError("pair", {"error": inner}, errors=(inner, KeyError(3))))
    group = sent(AgentCrashedError("group", [inner, KeyError(3)], {"errors": [inner, 5]}))
    arrived = [*pair.errors, *group.exceptions]
    assert [CoreError, KeyError, CoreError, KeyError] == [type(error) for error in arrived]
    name = type(inner).__name__
    stand_ins = [arrived[0], arrived[2], pair.details["error"], group.details["errors"][0]]
    assert [name] * 4 == [stand_in.details["type"] for stand_in in stand_ins]
    assert all(str(stand_in).startswith(f"{name}: ") for stand_in in stand_ins)
    assert 5 == group.details["errors"][1]


@foreign
@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_copies_have_the_very_objects(inner: Exception, copied: Callable[[CoreError], CoreError]) -> None:
    """A copy in the same process tells of the very objects, whether they can be pickled or not."""
    lock = threading.Lock()
    pair = copied(AgentExecutionError("pair", {"lock": lock}, errors=(inner,)))
    group = copied(AgentCrashedError("group", [inner], {"lock": lock}))
    assert isinstance(pair, AgentExecutionError)
    assert isinstance(group, AgentCrashedError)
    assert [True] * 4 == [
        pair.details["lock"] is lock,
        pair.errors[0] is inner,
        group.details["lock"] is lock,
        group.exceptions[0] is inner,
    ]


def test_details_that_do_not_pickle() -> None:
    """A detail that cannot be sent arrives as its text, and all around it as it is."""
    lock = threading.Lock()
    details = {
        "lock": lock,
        "list": [1, lock],
        "tuple": (lock, "two"),
        "deep": {"a": {"b": [lock, 3]}},
        "plain": {1: 2},
    }
    arrived = sent(CoreError("message", details)).details
    text = repr(lock)
    assert arrived == {
        "lock": text,
        "list": [1, text],
        "tuple": (text, "two"),
        "deep": {"a": {"b": [text, 3]}},
        "plain": {1: 2},
    }


def test_detail_that_cannot_be_shown() -> None:
    """A detail that has neither a pickle nor a text harms nobody, as a key neither."""
    arrived = sent(CoreError("message", {"value": Hostile(), "dict": {Hostile(): 1}})).details
    text = "<Hostile whose str() raised RuntimeError>"
    assert {"value": text, "dict": {text: 1}} == arrived


def test_details_that_contain_themselves() -> None:
    """A dictionary that contains itself is followed a few steps; behind them it is told as a text, unless it pickles."""
    circle: dict[str, Any] = {"lock": threading.Lock()}
    circle["self"] = circle
    arrived = sent(CoreError("message", circle)).details
    depth = 0
    while isinstance(arrived, dict):
        arrived, depth = arrived["self"], depth + 1
    assert (True, True) == (isinstance(arrived, str), depth < 10)
    plain: dict[str, Any] = {}
    plain["self"] = plain
    details = sent(CoreError("message", {"circle": plain})).details["circle"]
    assert set(details) == set(details["self"])


def test_details_that_go_too_deep() -> None:
    """Details nested deeper than Python goes arrive cut off."""
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    arrived = sent(CoreError("message", {"deep": deep, "flat": 1})).details
    assert ({"deep", "flat"}, 1) == (set(arrived), arrived["flat"])
    while deep:  # taken apart by hand: to let go of it at once would go as deep
        deep = deep.pop()


@pytest.mark.parametrize("kind", [lambda lock: Point(1, lock), Line], ids=["named-tuple", "list"])
def test_containers_with_constructors_of_their_own(kind: Callable[[Any], Any]) -> None:
    """A container that cannot be made from its items arrives in some form, and the error arrives."""
    arrived = sent(CoreError("message", {"value": kind(threading.Lock()), "other": 1}))
    assert ({"value", "other"}, 1) == (set(arrived.details), arrived.details["other"])


@pytest.mark.parametrize("inner", [ValueError(1), ValueError(threading.Lock())], ids=["plain", "lock"])
def test_errors_inside_of_errors_inside_of_errors(inner: Exception) -> None:
    """The effort for an error grows with what is in it, and does not double with each level."""
    calls = 0

    class Counting(CoreError):
        def __reduce__(self) -> tuple[Any, ...]:
            nonlocal calls
            calls += 1
            return CoreError, ("counted",)

    error: Exception = AgentExecutionError("innermost", errors=(inner, Counting("counts")))
    for _ in range(7):
        error = AgentExecutionError("outer", errors=(error,))
    sent(error)
    assert calls <= 100


def test_errors_of_a_class_that_cannot_be_found() -> None:
    """Inside of an error one whose class was made in a function is as foreign as any, and has a stand-in."""

    class LocalError(TaskError):
        pass

    inner = LocalError("inside")
    pair, group = sent(AgentExecutionError("pair", errors=(inner,))), sent(AgentCrashedError("group", [inner]))
    assert [CoreError, CoreError] == [type(error) for error in (*pair.errors, *group.exceptions)]
    assert "LocalError: inside" == str(pair.errors[0])


def test_attributes_of_ones_own() -> None:
    """What was set on an error by hand travels too, as its text if need be."""
    error = AgentError("message")
    error.lock = threading.Lock()  # type: ignore[attr-defined]
    error.number = 5  # type: ignore[attr-defined]
    arrived = sent(error)
    assert (5, repr(error.lock)) == (arrived.number, arrived.lock)  # type: ignore[attr-defined]


def test_a_timeout_is_also_pythons() -> None:
    """The bases outside of agentcore do not change how an error is told."""
    error = TaskTimeoutError("too long", {"errno": 5})
    assert ("too long", True, None) == (str(error), isinstance(error, OSError), error.errno)
    assert ("gone", True) == (str(TaskNotFoundError("gone")), isinstance(TaskNotFoundError("gone"), LookupError))
