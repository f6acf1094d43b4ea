"""Backoff: longer each time, up to a limit, and drawn."""

from __future__ import annotations

import math
import random
from fractions import Fraction
from statistics import mean
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agentcore import Backoff, ConfigurationError
from agentcore._rules.backoff import MOST, check_number, show

seconds = st.floats(1e-6, 1e6)
retries = st.one_of(st.integers(0, 100), st.integers(0), st.just(10**400))
draws = st.floats(0, 1)


def test_the_limit_doubles_up_to_the_maximum() -> None:
    """The numbers of the documentation."""
    backoff = Backoff(initial=0.1, factor=2, maximum=1.0, jitter=False)
    assert [0.1, 0.2, 0.4, 0.8, 1.0, 1.0] == [backoff.delay(retry, 0.5) for retry in range(6)]


@given(initial=st.one_of(st.just(0.0), seconds), factor=st.floats(1, 100), more=st.floats(0, 1e6), retry=retries)
@example(initial=0.0, factor=2.0, more=1.0, retry=10**400)
@example(initial=1.0, factor=1.0, more=1.0, retry=10**400)
@example(initial=1.0, factor=2.0, more=1.0, retry=100_000)
def test_the_limit_is_the_formula(initial: float, factor: float, more: float, retry: int) -> None:
    """`min(maximum, initial * factor**n)`, however large n is."""
    backoff = Backoff(initial, factor, initial + more)
    limit = backoff.limit(retry)
    assert min(initial, backoff.maximum) <= limit <= backoff.maximum
    if retry <= 100:
        exact = min(Fraction(backoff.maximum), Fraction(initial) * Fraction(factor) ** retry)
        assert math.isclose(limit, exact, rel_tol=1e-9)
    elif factor > 1.01 and initial:
        assert limit == backoff.maximum or retry < 5000


@given(retry=retries, draw=draws)
def test_a_drawn_wait_lies_between_nothing_and_the_limit(retry: int, draw: float) -> None:
    """The draw says where; the whole range is used."""
    backoff = Backoff()
    assert 0 <= backoff.delay(retry, draw) <= backoff.limit(retry)
    assert (0, backoff.limit(retry)) == (backoff.delay(retry, 0), backoff.delay(retry, 1))


def test_the_waits_are_spread_evenly() -> None:
    """Full jitter: half of the limit on average, a tenth of the waits in each tenth."""
    chance = random.Random(1)
    waits = [Backoff().delay(3, chance.random()) for _ in range(10_000)]
    assert mean(waits) == pytest.approx(0.4, rel=0.05)
    tenths = [sum(1 for wait in waits if wait // 0.08 == tenth) for tenth in range(10)]
    assert all(800 < count < 1200 for count in tenths)


def test_it_is_a_value() -> None:
    """Equal settings are equal, and cannot be changed."""
    assert Backoff() == Backoff(initial=0.1, factor=2.0, maximum=10.0, jitter=True)
    with pytest.raises(AttributeError):
        Backoff().initial = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"initial": -1},
            "initial of a Backoff must be a number of seconds, 0 or more: got -1; use 0 for no wait",
        ),
        (
            {"initial": "1"},
            "initial of a Backoff must be a number of seconds, 0 or more: got '1'; use 0 for no wait",
        ),
        (
            {"initial": True},
            "initial of a Backoff must be a number of seconds, 0 or more: got True; use 0 for no wait",
        ),
        (
            {"factor": 0.5},
            "factor of a Backoff must be a number, 1 or more: got 0.5; use 1 for waits of the same length",
        ),
        (
            {"factor": math.nan},
            "factor of a Backoff must be a number, 1 or more: got nan; use 1 for waits of the same length",
        ),
        (
            {"maximum": math.inf},
            "maximum of a Backoff must be a number of seconds, 0 or more: got inf; a wait always has a limit",
        ),
        (
            {"maximum": None},
            "maximum of a Backoff must be a number of seconds, 0 or more: got None; a wait always has a limit",
        ),
        ({"maximum": 0.05}, "maximum of a Backoff must not be less than initial, 0.1 s: got 0.05; raise it"),
        ({"jitter": 1}, "jitter of a Backoff must be True or False: got 1; True draws each wait"),
    ],
)
def test_settings_that_cannot_be_used(settings: dict[str, Any], message: str) -> None:
    """Each says what it must be, what it was, and what to do."""
    with pytest.raises(ConfigurationError) as caught:
        Backoff(**settings)
    assert message == str(caught.value)
    name, value = next(iter(settings.items()))
    assert name == caught.value.details["name"]
    assert str(value) == str(caught.value.details["value"])


@pytest.mark.parametrize(
    ("value", "rule"),
    [(0, {}), (1e-300, {"above": True}), (1, {"least": 1, "whole": True}), (MOST / 2, {}), (10**17, {"whole": True})],
)
def test_numbers_that_can_be_used(value: object, rule: dict[str, Any]) -> None:
    """From the least one on, or above it; whole ones if asked for."""
    check_number("a thing", "size", value, "take another", **rule)


@pytest.mark.parametrize(
    ("value", "rule", "text"),
    [
        (0.0, {"above": True}, "a number, more than 0"),
        (1.0, {"least": 1, "whole": True}, "a whole number, 1 or more"),
        (0, {"least": 1, "whole": True, "unit": "calls"}, "a whole number of calls, 1 or more"),
        (False, {}, "a number, 0 or more"),
        (MOST, {}, "a number, 0 or more and less than 1e+18"),
        (10**18, {"whole": True, "above": True}, "a whole number, more than 0 and less than 1e+18"),
        (math.inf, {}, "a number, 0 or more"),
        (-(10**100), {}, "a number, 0 or more"),
        ([], {}, "a number, 0 or more"),
    ],
)
def test_numbers_that_cannot_be_used(value: object, rule: dict[str, Any], text: str) -> None:
    """Others are refused, and so is what no float can hold."""
    with pytest.raises(ConfigurationError) as caught:
        check_number("a thing", "size", value, "take another", **rule)
    assert f"size of a thing must be {text}: got {value!r}; take another" == str(caught.value)


@pytest.mark.parametrize("value", [10**5000, -(10**5000)], ids=["great", "small"])
def test_numbers_that_cannot_be_written(value: int) -> None:
    """Neither the message nor its details hold what nobody could print."""
    with pytest.raises(ConfigurationError, match=r"got <int whose repr\(\) raised ValueError>; take another") as caught:
        check_number("a thing", "size", value, "take another")
    assert {"name": "size", "value": "<int whose repr() raised ValueError>"} == caught.value.details


def test_values_are_shown() -> None:
    """Shortened, so that a message can be read."""
    assert ("'a'", "[1]") == (show("a"), show([1]))
    assert ("1" + "0" * 199, "1" + "0" * 199 + "...") == (show(10**199), show(10**200))
