"""How a circuit breaker behaves, as data: what is refused says which field, what it must be, what it got, what to do."""

from __future__ import annotations

import math
from typing import Any

import attrs
import pytest

from agentcore import CircuitBreakerConfig, ConfigurationError

COUNT = "a whole number, 1 or more"
PERIOD = "a number of milliseconds, 0.001 or more"
SHARE = "a share, more than 0 and at most 1"
NAN, INF = math.nan, math.inf

DEFAULTS = {
    "failure_threshold": 5,
    "success_threshold": 2,
    "reset_timeout_ms": 30_000.0,
    "excluded_exceptions": (),
    "failure_if": None,
    "failure_if_result": None,
    "window_calls": None,
    "window_ms": None,
    "failure_rate": None,
    "minimum_calls": 10,
    "slow_call_ms": None,
    "slow_call_rate": None,
    "backoff": 1.0,
    "max_reset_timeout_ms": None,
    "jitter": 0.0,
    "probe_timeout_ms": None,
    "min_blame_ms": 10.0,
}


def test_the_fields_have_an_order_and_defaults() -> None:
    """They are part of the interface: the specification passes some of them by position."""
    assert list(DEFAULTS.items()) == list(attrs.asdict(CircuitBreakerConfig()).items())


def test_a_configuration_does_not_change() -> None:
    """Everyone who shares it can rely on it; what is equal in all fields is equal, also as a key."""
    config = CircuitBreakerConfig(3, 1, 1000)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        config.failure_threshold = 4  # type: ignore[misc]
    assert {config: "found"}[CircuitBreakerConfig(failure_threshold=3, success_threshold=1, reset_timeout_ms=1000)]
    assert config != attrs.evolve(config, jitter=0.5)


# What is refused, each by itself.


def refused(**values: Any) -> ConfigurationError:
    """Return the error that values are refused with."""
    with pytest.raises(ConfigurationError) as caught:
        CircuitBreakerConfig(**values)
    return caught.value


def check_refusal(name: str, value: object, rule: str, remedy: str, **others: Any) -> None:
    error = refused(**{name: value}, **others)
    assert f"{name} of a circuit breaker must be {rule}: got {value!r}; {remedy}" == str(error)
    assert {"name": name, "value": value}.keys() == error.details.keys()
    assert name == error.details["name"]
    assert value is error.details["value"]
    assert isinstance(error, ValueError)


@pytest.mark.parametrize("value", [0, -1, 1.0, 2.5, True, False, "5", NAN, [1]])
@pytest.mark.parametrize("name", ["failure_threshold", "success_threshold", "minimum_calls", "window_calls"])
def test_counts_are_whole_numbers(name: str, value: object) -> None:
    check_refusal(name, value, COUNT, "count calls")


@pytest.mark.parametrize("name", ["failure_threshold", "success_threshold", "minimum_calls"])
def test_counts_are_needed(name: str) -> None:
    check_refusal(name, None, COUNT, "count calls")


@pytest.mark.parametrize("value", [0, 0.0, -1, NAN, INF, -INF, True, "1000", 1j])
@pytest.mark.parametrize(
    "name", ["reset_timeout_ms", "window_ms", "slow_call_ms", "max_reset_timeout_ms", "probe_timeout_ms"]
)
def test_periods_are_finite_and_more_than_nothing(name: str, value: object) -> None:
    check_refusal(name, value, PERIOD, "a second is 1000")


def test_the_open_period_is_needed() -> None:
    check_refusal("reset_timeout_ms", None, PERIOD, "a second is 1000")


@pytest.mark.parametrize("value", [0, 0.0, -0.5, 1.001, 50, NAN, INF, True, "0.5"])
@pytest.mark.parametrize("name", ["failure_rate", "slow_call_rate"])
def test_rates_are_shares(name: str, value: object) -> None:
    check_refusal(name, value, SHARE, "a half is 0.5", window_calls=10, slow_call_ms=1)


@pytest.mark.parametrize("value", [-0.1, 1, 1.5, NAN, INF, True, None, "0.1"])
def test_jitter_is_less_than_the_whole(value: object) -> None:
    """An open period of nothing would be none."""
    check_refusal("jitter", value, "a share, 0 or more and less than 1", "0.1 is a tenth up or down")


@pytest.mark.parametrize("value", [0.99, 0, -2, 1000.5, NAN, INF, True, None, "2"])
def test_backoff_never_shortens(value: object) -> None:
    check_refusal("backoff", value, "a factor from 1 to 1000", "1 keeps the period as it is, 2 doubles it")


@pytest.mark.parametrize("value", [-1, NAN, INF, True, None, "10"])
def test_blame_begins_at_an_age(value: object) -> None:
    check_refusal("min_blame_ms", value, "a number of milliseconds, 0 or more", "0 blames a call for every deadline")


async def wait(_: object) -> bool:
    """Stand for a predicate that would have to be awaited."""
    return True


@pytest.mark.parametrize("value", [True, 1, "raise", KeyError("k"), wait])
@pytest.mark.parametrize("name", ["failure_if", "failure_if_result"])
def test_predicates_are_functions(name: str, value: object) -> None:
    check_refusal(name, value, "a function that does not wait", "return True for what counts as a failure")


@pytest.mark.parametrize(
    ("given", "value"),
    [
        (int, int),
        ("KeyError", "KeyError"),
        (None, None),
        (5, 5),
        ([KeyError, "ValueError"], "ValueError"),
        ((KeyError, None), None),
    ],
)
def test_what_is_excluded_are_exceptions(given: object, value: object) -> None:
    """The message shows the one that is none, not all of them."""
    error = refused(excluded_exceptions=given)
    expected = f"excluded_exceptions of a circuit breaker must be classes of exceptions: got {value!r}; "
    assert f"{expected}write (KeyError, ...)" == str(error)
    assert {"name": "excluded_exceptions", "value": value} == error.details


@pytest.mark.parametrize(
    "name",
    [
        "reset_timeout_ms",
        "window_ms",
        "slow_call_ms",
        "max_reset_timeout_ms",
        "probe_timeout_ms",
        "jitter",
        "backoff",
        "min_blame_ms",
    ],
)
def test_a_number_beyond_all_floats_is_refused_like_infinity(name: str) -> None:
    """An integer may be too large for a float; that is no other error."""
    assert name == refused(**{name: 10**400}).details["name"]


def test_a_window_of_calls_has_a_largest_size() -> None:
    """It is one number with a bit for each call, which is shifted with each of them."""
    check_refusal("window_calls", 1_000_001, "at most 1000000", "lower it, or use window_ms")
    assert CircuitBreakerConfig(window_calls=1_000_000).window_calls == 1_000_000


# What contradicts each other.


def test_there_is_one_window() -> None:
    check_refusal("window_ms", 1000, "None next to window_calls", "choose one of the windows", window_calls=10)


@pytest.mark.parametrize("name", ["failure_rate", "slow_call_rate"])
def test_a_rate_needs_a_window(name: str) -> None:
    check_refusal(name, 0.5, "given with a window", "add window_calls or window_ms", slow_call_ms=1)


def test_of_two_rates_without_a_window_the_first_is_named() -> None:
    check_refusal(
        "failure_rate", 0.5, "given with a window", "add window_calls or window_ms", slow_call_rate=0.6, slow_call_ms=1
    )


def test_a_rate_of_slow_calls_needs_to_know_what_slow_is() -> None:
    check_refusal("slow_call_rate", 0.5, "given with slow_call_ms", "say what slow is", window_calls=10)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("failure_threshold", {}),
        ("failure_threshold", {"minimum_calls": 11}),
        ("failure_threshold", {"slow_call_rate": 0.5, "slow_call_ms": 1}),  # of failures
        ("failure_threshold", {"failure_rate": 0.5, "slow_call_ms": 1}),  # of slow calls
        ("minimum_calls", {"failure_rate": 0.5, "failure_threshold": 11}),
        ("minimum_calls", {"failure_rate": 0.5, "slow_call_rate": 0.5, "slow_call_ms": 1}),
        ("minimum_calls", {"slow_call_rate": 0.5, "slow_call_ms": 1}),
    ],
)
def test_a_number_that_a_window_never_reaches_is_refused(name: str, values: dict[str, Any]) -> None:
    """Such a circuit would never open. Only numbers that are used are looked at."""
    check_refusal(name, 11, "at most window_calls (10)", "lower it", window_calls=10, **values)
    assert CircuitBreakerConfig(window_calls=11, **{**values, name: 11})


def test_of_two_numbers_that_are_too_large_the_first_by_name_is_named() -> None:
    error = refused(window_calls=3, slow_call_rate=0.5, slow_call_ms=1)
    assert {"name": "failure_threshold", "value": 5} == error.details


@pytest.mark.parametrize(
    "values",
    [
        {"window_calls": 5},  # ten calls at least are for rates
        {"window_calls": 10, "failure_rate": 0.5, "failure_threshold": 100},
        {"window_ms": 1, "failure_threshold": 10**6, "failure_rate": 1, "minimum_calls": 10**6},
        {"window_calls": 10, "failure_rate": 1, "slow_call_rate": 1.0, "slow_call_ms": 0.5, "failure_threshold": 99},
    ],
)
def test_numbers_that_are_not_used_may_be_anything(values: dict[str, Any]) -> None:
    assert values.items() <= attrs.asdict(CircuitBreakerConfig(**values)).items()


def test_the_longest_open_period_is_no_shorter_than_the_first() -> None:
    check_refusal("max_reset_timeout_ms", 999, "at least reset_timeout_ms (1000)", "raise it", reset_timeout_ms=1000)
    assert CircuitBreakerConfig(reset_timeout_ms=1000, max_reset_timeout_ms=1000).max_reset_timeout == 1.0


# What is accepted, and what follows from it.


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (KeyError, (KeyError,)),
        ([KeyError, OSError], (KeyError, OSError)),
        ({KeyError}, (KeyError,)),
        ((one for one in (KeyError, KeyboardInterrupt)), (KeyError, KeyboardInterrupt)),
        ((), ()),
    ],
)
def test_excluded_exceptions_become_a_tuple(given: Any, expected: tuple[type[BaseException], ...]) -> None:
    """One class, or several in anything that can be gone through."""
    assert expected == CircuitBreakerConfig(excluded_exceptions=given).excluded_exceptions


def test_values_at_the_edge_are_accepted() -> None:
    """Each is the last one on its side."""
    for values in (
        {"failure_threshold": 1, "success_threshold": 1, "minimum_calls": 1, "window_calls": 1},
        {"window_ms": 1, "failure_rate": 1, "slow_call_rate": 1e-9, "slow_call_ms": 0.001},
        {"reset_timeout_ms": 0.001, "max_reset_timeout_ms": 1e15, "probe_timeout_ms": 1e15, "window_ms": 0.001},
        {"jitter": 0, "backoff": 1, "min_blame_ms": 0},
        {"jitter": 0.999, "backoff": 1000},
        {"failure_if": callable, "failure_if_result": bool},
    ):
        assert values.items() <= attrs.asdict(CircuitBreakerConfig(**values)).items()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, (30.0, 300.0, 30.0)),
        ({"reset_timeout_ms": 1}, (0.001, 0.01, 1.0)),
        ({"reset_timeout_ms": 999.5}, (0.9995, 9.995, 1.0)),
        ({"reset_timeout_ms": 5000, "max_reset_timeout_ms": 6000}, (5.0, 6.0, 5.0)),
        ({"reset_timeout_ms": 5000, "probe_timeout_ms": 20}, (5.0, 50.0, 0.02)),
    ],
)
def test_periods_are_given_in_seconds(values: dict[str, Any], expected: tuple[float, float, float]) -> None:
    """Open at first, open at most (ten times as long), and for a probe (as long as open at first, one second at least)."""
    config = CircuitBreakerConfig(**values)
    assert expected == (config.reset_timeout, config.max_reset_timeout, config.probe_timeout)
