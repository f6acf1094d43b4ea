"""Whether there is a further attempt: what errors say, and the course of a call."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentcore import Backoff, CallTimeoutError, CircuitOpenError, ConfigurationError, CoreError, RateLimitError
from agentcore._rules.backoff import MOST
from agentcore._rules.retry import LEAST_WAIT, Course, Facts, GaveUp, Selection, covers, to_exceptions

EVEN = Backoff(1.0, 1.0, 1.0, jitter=False)
NO = Facts(retryable=False)
YES = Facts(retryable=True)
REFUSED = Facts(retryable=True, rejected=True, retry_after=2.0)


def open_circuit(retry_after: float | None = 2.0) -> CircuitOpenError:
    """Make the error of a rejection."""
    return CircuitOpenError("open", {"circuit_name": "api", "state": "open", "retry_after": retry_after})


class Busy(OSError):
    """An error that says when to come back."""

    def __init__(self, retry_after: object = None, *, retryable: object = True) -> None:
        super().__init__("busy")
        self.retry_after = retry_after
        self.retryable = retryable


class Broken(OSError):
    """An error that cannot even be asked."""

    @property
    def retry_after(self) -> float:
        raise RuntimeError("no")

    @property
    def retryable(self) -> bool:
        raise RuntimeError("no")


class MyGroup(ExceptionGroup[Exception]):
    """A class of groups of one's own."""


def group(*errors: Exception) -> ExceptionGroup[Exception]:
    return ExceptionGroup("several", errors)


ANY = Selection((Exception,))
WAITS = Selection((Exception,), open_circuit=True)


# What errors say.


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(), YES),
        (KeyboardInterrupt(), NO),
        (GeneratorExit(), NO),
        (BaseExceptionGroup("", [OSError(), KeyboardInterrupt()]), NO),
        (Busy(3), Facts(True, False, 3.0)),
        (Busy(0.5), Facts(True, False, 0.5)),
        (Busy(-3), Facts(True, False, 0.0)),
        (Busy(math.inf), Facts(True, False, MOST)),
        (Busy(10**400), Facts(True, False, MOST)),
        (Busy(-(10**400)), Facts(True, False, 0.0)),
        (Busy(math.nan), YES),
        (Busy("3"), YES),
        (Busy(True), YES),
        (Busy(3, retryable=False), NO),
        (Busy(3, retryable=0), Facts(True, False, 3.0)),
        (Broken(), YES),
        (RateLimitError("", {"retry_after": 1.5}), Facts(True, False, 1.5)),
        (CallTimeoutError(""), YES),
        (open_circuit(), Facts(False, True, 2.0)),
    ],
    ids=repr,
)
def test_what_an_error_says(error: BaseException, expected: Facts) -> None:
    """A number to wait for, and whether it can be retried at all; nothing else is believed."""
    assert expected == ANY.examine(error)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (group(OSError(), ValueError()), YES),
        (group(OSError(), group(ValueError(), Busy(3)), Busy(1)), Facts(True, False, 3.0)),
        (group(OSError(), Busy(retryable=False)), NO),
        (group(OSError(), group(Busy(retryable=False))), NO),
        (group(open_circuit(3), open_circuit(2)), Facts(True, True, 3.0)),
        (group(open_circuit(3), open_circuit(None)), Facts(True, True, None)),
        (group(open_circuit(3), OSError()), Facts(True, False, 3.0)),
        (group(open_circuit(3), Busy(4)), Facts(True, False, 4.0)),
        (group(open_circuit(None), OSError()), NO),
    ],
    ids=repr,
)
def test_what_a_group_says(error: ExceptionGroup[Exception], expected: Facts) -> None:
    """All in it have to agree, and the longest time counts."""
    assert expected == WAITS.examine(error)
    if any(isinstance(part, CircuitOpenError) for part in error.exceptions):
        assert not ANY.examine(error).retryable


def test_a_group_may_refuse_by_itself() -> None:
    """Whatever is in it."""
    error = group(OSError())
    error.retryable = False  # type: ignore[attr-defined]
    assert NO == ANY.examine(error)
    assert NO == Selection((Exception,), (ExceptionGroup,)).examine(group(OSError()))


@pytest.mark.parametrize(
    ("selection", "retried", "passing"),
    [
        (Selection((OSError,)), [OSError(), Busy()], [ValueError(), group(OSError(), ValueError())]),
        (Selection((OSError, KeyError)), [OSError(), KeyError()], [ValueError()]),
        (Selection((OSError,), (Busy,)), [OSError()], [Busy(), ValueError(), group(OSError(), Busy())]),
        (Selection((MyGroup,)), [MyGroup("", [ValueError()])], [OSError(), group(OSError())]),
        (
            Selection((Exception,), condition=lambda error: "again" in str(error)),
            [OSError("again"), group(OSError("again"), ValueError("again"))],
            [OSError("never"), group(OSError("again"), ValueError("never"))],
        ),
    ],
    ids=["on", "several", "never_on", "groups", "condition"],
)
def test_which_errors_are_selected(selection: Selection, retried: list[Exception], passing: list[Exception]) -> None:
    """By class, by exceptions to that, and by a condition; a group only as a whole."""
    assert [True] * len(retried) == [selection.examine(error).retryable for error in retried]
    assert [False] * len(passing) == [selection.examine(error).retryable for error in passing]


def test_the_condition_is_asked_about_selected_errors_only() -> None:
    """It may rely on what it gets, and what it raises comes through."""
    asked: list[Exception] = []

    def condition(error: Exception) -> bool:
        asked.append(error)
        raise LookupError("cannot tell")

    selection = Selection((OSError,), (Busy,), condition)
    for error in (ValueError(), Busy(), open_circuit()):
        assert not selection.examine(error).retryable
    assert asked == []
    with pytest.raises(LookupError, match="cannot tell"):
        selection.examine(OSError())


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MyGroup("", [ValueError(), group(KeyError())]), YES),
        (MyGroup("", [ValueError(), Busy(3)]), Facts(True, False, 3.0)),
        (MyGroup("", [PermissionError()]), NO),
        (MyGroup("", [ValueError(), group(OSError(), PermissionError())]), NO),
        (MyGroup("", [ValueError(), group(Busy(retryable=False))]), NO),
        (MyGroup("", [open_circuit()]), Facts(False, True, 2.0)),
        (group(MyGroup("", [ValueError()]), OSError()), YES),
        (group(MyGroup("", [ValueError()]), ValueError()), NO),
    ],
    ids=repr,
)
def test_a_class_of_groups_selects_what_is_in_them(error: Exception, expected: Facts) -> None:
    """But never what may not be retried, however deep it is."""
    assert expected == Selection((MyGroup, OSError), (PermissionError,)).examine(error)


def test_a_group_that_is_selected_may_name_a_time() -> None:
    """The longest counts. The condition is asked about the group, and not about what is in it."""
    error = MyGroup("", [Busy(1), ValueError()])
    error.retry_after = 2.5  # type: ignore[attr-defined]
    asked: list[Exception] = []
    for answer in (True, False):
        selection = Selection((MyGroup,), condition=lambda error, answer=answer: asked.append(error) or answer)  # type: ignore[misc]
        assert (Facts(True, False, 2.5) if answer else NO) == selection.examine(error)
    assert [error, error] == asked


def test_groups_may_be_nested_deeper_than_the_stack() -> None:
    error: Exception = Busy(3)
    for _ in range(5000):
        error = ExceptionGroup("", [error])
    assert Facts(True, False, 3.0) == ANY.examine(error)
    assert not Selection((KeyError,)).examine(error).retryable
    assert [True, False] == [covers((OSError,), error), covers((KeyError,), error)]


def test_rejections_need_not_be_selected_but_can_be_excluded() -> None:
    """An open circuit is waited for if one says so, whatever else is retried."""
    assert Facts(True, True, 2.0) == Selection((KeyError,), open_circuit=True).examine(open_circuit())
    assert not Selection((KeyError,), (CoreError,), open_circuit=True).examine(open_circuit()).retryable


@pytest.mark.parametrize(
    ("classes", "error", "expected"),
    [
        ((OSError,), OSError(), True),
        ((OSError,), ValueError(), False),
        ((OSError,), group(OSError(), ValueError()), False),
        ((OSError, ValueError), group(OSError(), group(ValueError())), True),
        ((Exception,), group(OSError()), True),
        ((MyGroup,), MyGroup("", [OSError()]), True),
        ((MyGroup,), group(OSError(), MyGroup("", [OSError()])), False),
        ((MyGroup, OSError), group(OSError(), MyGroup("", [ValueError()])), True),
        ((Exception,), KeyboardInterrupt(), False),
        ((Exception,), BaseExceptionGroup("", [OSError(), KeyboardInterrupt()]), False),
    ],
)
def test_which_errors_are_covered(classes: tuple[type[Exception], ...], error: BaseException, expected: bool) -> None:
    """A group is covered as a whole: by its own class, or by all in it."""
    assert expected == covers(classes, error)


@pytest.mark.parametrize("value", [OSError, (OSError,), [OSError], {OSError}, frozenset({OSError})])
def test_classes_of_exceptions(value: object) -> None:
    """One, or several in anything."""
    assert (OSError,) == to_exceptions("a thing", "on", value)


@pytest.mark.parametrize("value", [None, "OSError", OSError(), int, BaseException, (OSError, KeyboardInterrupt)])
def test_what_are_no_classes_of_exceptions(value: object) -> None:
    """What is no Exception is never selected, so nobody may ask for it."""
    with pytest.raises(ConfigurationError) as caught:
        to_exceptions("a thing", "on", value)
    wrong = value[-1] if isinstance(value, tuple) else value
    assert str(caught.value) == (
        f"on of a thing must be classes below Exception: got {wrong!r}; "
        "write on=(OSError, ...): cancellation, and what ends the program, always passes"
    )


# The course of a call.


def half() -> float:
    return 0.5


def afford(answer: bool, asked: list[bool]) -> Any:
    """Make a budget that answers so, and notes that it was asked."""

    def pay() -> bool:
        asked.append(answer)
        return answer

    return pay


def test_attempts_are_counted() -> None:
    """The third one is the last."""
    course = Course(3, Backoff(1.0))
    assert [0.5, 1.0, GaveUp.ATTEMPTS] == [course.after(YES, half) for _ in range(3)]
    assert (3, 0) == (course.made, course.rejections)


def test_one_attempt_is_no_retry() -> None:
    """Nor is it one with an error that asks for it."""
    assert GaveUp.ATTEMPTS == Course(1, EVEN).after(Facts(True, False, 0.0), half)


def test_errors_that_cannot_be_retried_end_it() -> None:
    """At once, and nothing is drawn or paid."""
    asked: list[bool] = []
    decision = Course(3, EVEN).after(NO, lambda: pytest.fail("drawn"), afford=afford(True, asked))
    assert (GaveUp.NOT_RETRYABLE, []) == (decision, asked)


def test_what_an_error_asks_for_comes_before_the_backoff() -> None:
    """At least so long, and the jittered backoff more."""
    course = Course(3, Backoff(1.0))
    assert [30.5, 31.0] == [course.after(Facts(True, False, 30.0), half) for _ in range(2)]


def test_what_asks_to_be_left_alone_for_ever_is() -> None:
    """Infinity is a number too."""
    assert GaveUp.NOT_RETRYABLE == Course(3, EVEN).after(ANY.examine(Busy(math.inf)), half)
    assert GaveUp.CIRCUIT == Course(3, EVEN).after(WAITS.examine(open_circuit(math.inf)), half)


def test_rejections_are_no_attempts() -> None:
    """They can be as many as they like; the limit of what is drawn grows, until there is a real attempt."""
    course = Course(2, Backoff(1.0, 2.0, 4.0))
    assert [2.5, 3.0, 4.0, 4.0] == [course.after(REFUSED, half) for _ in range(4)]
    assert (0, 4) == (course.made, course.rejections)
    assert 0.5 == course.after(YES, half)
    assert [2.5, 3.0] == [course.after(REFUSED, half) for _ in range(2)]
    assert GaveUp.ATTEMPTS == course.after(YES, half)


def test_who_waits_for_a_circuit_is_spread_even_without_jitter() -> None:
    """All were told the same moment."""
    course = Course(1, Backoff(1.0, jitter=False))
    chance = random.Random(1)
    waits = {round(Course(1, course.backoff).after(REFUSED, chance.random), 1) for _ in range(100)}
    assert len(waits) > 8


def test_nobody_runs_in_circles_in_front_of_a_circuit() -> None:
    """Whatever the settings and the circuit say."""
    course = Course(1, Backoff(0, 1, 0))
    assert LEAST_WAIT == course.after(Facts(True, True, 0.0), half)


def test_a_circuit_that_cannot_say_how_long_is_not_waited_for() -> None:
    """It may be for ever."""
    assert GaveUp.CIRCUIT == Course(1, EVEN).after(Facts(True, True, None), half)


def test_rejections_cost_no_budget() -> None:
    """Nothing was called, so waiting for the circuit is no load."""
    asked: list[bool] = []
    course = Course(2, EVEN)
    assert 2.5 == course.after(REFUSED, half, afford=afford(False, asked))
    assert asked == []
    assert GaveUp.BUDGET == course.after(YES, half, afford=afford(False, asked))
    assert ([False], False) == (asked, course.paid)


def test_what_is_paid_for_an_attempt_that_is_rejected_pays_for_the_next() -> None:
    """It is told that it has not been used, for as long as nothing was called."""
    asked: list[bool] = []
    pay = afford(True, asked)
    course = Course(3, EVEN)
    seen = []
    for error in (REFUSED, YES, REFUSED, REFUSED, YES, YES):
        course.after(error, half, afford=pay)
        seen.append(course.paid)
    assert [False, True, True, True, True, False] == seen
    assert [True, True] == asked


@pytest.mark.parametrize("facts", [YES, REFUSED])
@pytest.mark.parametrize(
    ("left", "expected"),
    [
        ({"until_deadline": 100.0, "until_elapsed": 100.0}, None),
        ({"until_deadline": -math.inf}, GaveUp.CANCELED),
        ({"until_deadline": 0.0}, GaveUp.DEADLINE),
        ({"until_deadline": -1.0, "until_elapsed": -1.0}, GaveUp.DEADLINE),
        ({"until_deadline": 0.9}, GaveUp.DEADLINE),
        ({"until_elapsed": 0.9}, GaveUp.MAX_ELAPSED),
        ({"until_elapsed": 0.0}, GaveUp.MAX_ELAPSED),
    ],
)
def test_no_wait_for_what_cannot_come(facts: Facts, left: dict[str, float], expected: GaveUp | None) -> None:
    """It is given up at once, and not paid for, if the next attempt could not begin in time."""
    asked: list[bool] = []
    decision = Course(5, EVEN).after(facts, half, **left, afford=afford(True, asked))
    if expected is None:
        assert isinstance(decision, float)
    else:
        assert (expected, []) == (decision, asked)


def test_an_attempt_at_the_very_deadline_is_too_late() -> None:
    """It would be cancelled at once."""
    assert GaveUp.DEADLINE == Course(5, EVEN).after(YES, half, until_deadline=1.0)
    assert GaveUp.MAX_ELAPSED == Course(5, EVEN).after(YES, half, until_elapsed=1.0)
    assert 1.0 == Course(5, EVEN).after(YES, half, until_deadline=1.001, until_elapsed=1.001)


facts = st.builds(
    Facts,
    st.booleans(),
    st.booleans(),
    st.one_of(st.none(), st.floats(0, 100), st.just(MOST)),
)


@given(
    attempts=st.integers(1, 5),
    backoff=st.builds(Backoff, st.floats(0, 1), st.floats(1, 10), st.floats(1, 10), st.booleans()),
    history=st.lists(st.tuples(facts, st.floats(0, 1), st.booleans(), st.floats(-1, 200), st.floats(-1, 200))),
)
def test_whatever_happens(
    attempts: int, backoff: Backoff, history: list[tuple[Facts, float, bool, float, float]]
) -> None:
    """Never more attempts than allowed, never too soon, never too late, never without having paid."""
    course = Course(attempts, backoff)
    for error, draw, answer, deadline, elapsed in history:
        before = course.made
        asked: list[bool] = []
        decision = course.after(
            error, lambda draw=draw: draw, until_deadline=deadline, until_elapsed=elapsed, afford=afford(answer, asked)
        )
        assert before + (not error.rejected) == course.made <= attempts
        if isinstance(decision, GaveUp):
            assert asked in ([], [False])
            return
        assert error.retryable
        assert (error.retry_after or 0.0) <= decision <= (error.retry_after or 0.0) + max(LEAST_WAIT, backoff.maximum)
        assert decision < min(deadline, elapsed)
        assert ([] if error.rejected else [True]) == asked
        assert course.made < attempts or error.rejected
