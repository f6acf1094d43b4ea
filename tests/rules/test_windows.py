"""The windows of a closed circuit: what they count is what a list of the calls would say."""

from __future__ import annotations

import math
import sys
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentcore import CircuitBreakerConfig
from agentcore._rules.windows import Consecutive, CountWindow, TimeWindow, Window, window_of
from tests.rules.circuit_model import names_of
from tests.rules.window_model import Memory


def window(**values: Any) -> Any:
    """Make a window of the kind that a configuration asks for."""
    return window_of(CircuitBreakerConfig(**({"slow_call_ms": 1000} | values)))


def note(window: Window, calls: str, now: float = 0.0) -> list[bool]:
    """Note calls: o is a plain success, s a slow one, x a failure, X a slow failure; return what each of them says."""
    return [window.note(now, failed=call in "xX", slow=call in "sX") for call in calls]


# Which one it is.


@pytest.mark.parametrize(
    ("expected", "values"),
    [
        (Consecutive, {}),
        (CountWindow, {"window_calls": 10}),
        (CountWindow, {"window_calls": 10, "failure_rate": 0.5}),
        (TimeWindow, {"window_ms": 1000}),
        (TimeWindow, {"window_ms": 1000, "slow_call_rate": 0.5}),
    ],
)
def test_the_configuration_says_which_window(expected: type[Window], values: dict[str, Any]) -> None:
    """Each call makes an empty one of its own."""
    one = window(**values)
    assert type(one) is expected
    assert (0, 0) == (one.run, one.successes)
    assert one is not window(**values)


def test_a_window_without_a_kind_counts_nothing() -> None:
    """The bases say what is left to their kinds."""
    with pytest.raises(NotImplementedError):
        Window().note(0.0, failed=True, slow=False)
    with pytest.raises(NotImplementedError):
        Window()._is_over()
    with pytest.raises(NotImplementedError):
        super(CountWindow, window(window_calls=10)).counts()


# Failures in a row.


@pytest.mark.parametrize(
    ("calls", "opens"),
    [
        ("xxx", True),
        ("xxoxx", False),
        ("xxoxxx", True),
        ("sss", True),
        ("xsx", False),
        ("sxs", False),
        ("ssxs", False),
        ("xxsx", False),
        ("XXX", True),
        ("xXs", False),
        ("xXX", True),
        ("sXs", True),
        ("xXsX", True),
    ],
)
def test_in_a_row_counts_failures_and_slow_calls_each_by_themselves(calls: str, opens: bool) -> None:
    """A slow success ends a row of failures, and a fast failure one of slow calls; a slow failure continues both."""
    said = note(window(failure_threshold=3), calls)
    assert [False] * (len(calls) - 1) + [opens] == said


def test_a_run_of_successes_ends_a_row() -> None:
    """What was counted in place takes effect with the next call that is noted."""
    row = window(failure_threshold=2)
    note(row, "x")
    row.run += 1
    assert [False, True] == note(row, "xx")
    assert (0, 1) == (row.run, row.successes)


# The latest calls.


@pytest.mark.parametrize(
    ("calls", "opens"),
    [
        ("xxx", True),
        ("xxoox", True),
        ("xxooox", False),  # the first of them is the sixth last
        ("xosxs", False),
        ("soxsx", False),
        ("soss", True),
        ("XXX", True),
    ],
)
def test_among_the_latest_calls_a_number_opens(calls: str, opens: bool) -> None:
    """Three of five, be they failures or slow ones."""
    assert opens is note(window(window_calls=5, failure_threshold=3), calls)[-1]


def test_a_window_of_one_call_is_the_latest_call() -> None:
    """The least window: every failure opens, no success does."""
    assert [False, True, False, True] == note(window(window_calls=1, failure_threshold=1), "oxox")


CALLS = st.lists(st.one_of(st.sampled_from("xsX"), st.sampled_from("xsXo"), st.integers(1, 12)), max_size=60)
NUMBERED = st.one_of(
    st.fixed_dictionaries({"failure_threshold": st.integers(1, 4)}),
    st.builds(
        lambda size, share, values: {
            "window_calls": size,
            "failure_threshold": max(1, size * share // 8),
            "minimum_calls": max(1, size // 2),
            **values,
        },
        st.sampled_from([1, 2, 3, 10, 100, 1000]),
        st.integers(1, 8),
        st.fixed_dictionaries(
            {}, optional={"failure_rate": st.sampled_from([0.1, 1 / 3, 0.5, 0.7, 1]), "slow_call_rate": st.just(0.3)}
        ),
    ),
)


@settings(max_examples=300, deadline=None)
@given(values=NUMBERED, calls=CALLS)
def test_windows_of_calls_agree_with_a_list(values: dict[str, Any], calls: list[str | int]) -> None:
    """Whatever comes in whichever order, a number being a run of so many successes: the same verdict at the same call."""
    counted, memory = window(**values), Memory(CircuitBreakerConfig(slow_call_ms=1000, **values))
    successes = 0
    for call in calls:
        if isinstance(call, int):
            long = call * counted_calls(values) // 10 + call
            counted.run += long
            for _ in range(long):
                memory.run()
            successes += long
        else:
            expected = memory.note(0.0, failed=call in "xX", slow=call in "sX")
            assert [expected] == note(counted, call)
            successes += call in "os"
            if isinstance(counted, CountWindow):
                assert memory.counts() == counted.counts()
        assert successes == counted.successes + counted.run


def counted_calls(values: dict[str, Any]) -> int:
    return values.get("window_calls", values["failure_threshold"])


@pytest.mark.parametrize("size", [1, 100, 1000])
def test_a_run_of_a_billion_costs_nothing(size: int) -> None:
    """It is clamped to what the window holds: a number of a billion bits would stall everybody."""
    counted = window(window_calls=size, failure_threshold=1)
    note(counted, "XX"[:size])
    counted.run = 10**9
    tracemalloc.start()
    try:
        assert [True] == note(counted, "X")
        assert tracemalloc.get_traced_memory()[1] < 5000
    finally:
        tracemalloc.stop()
    assert (size, 1, 1) == counted.counts()
    assert 10**9 == counted.successes


# Shares.


def failures_until_open(calls: int, **values: Any) -> int:
    """Return how many of so many calls have to fail; as many come as are looked at, the failures last."""
    for needed in range(1, calls + 1):
        counted = window(window_calls=calls, minimum_calls=calls, failure_threshold=1, **values)
        counted.run = calls - needed
        slow = values.get("failure_rate") is None
        if any(note(counted, ("s" if slow else "x") * needed)):
            return needed
    return calls + 1


@pytest.mark.parametrize("which", ["failure_rate", "slow_call_rate"])
def test_so_many_of_so_many_are_that_share(which: str) -> None:
    """At a rate of n of m, n of m open and one less does not, also where the floats do not come out even."""
    for calls in range(1, 30):
        for needed in range(1, calls + 1):
            assert needed == failures_until_open(calls, **{which: needed / calls})


@pytest.mark.parametrize("calls", [1, 3, 10, 20, 99, 100, 365])
def test_a_percentage_is_what_it_says(calls: int) -> None:
    """Seven of ten are 0.7, whatever 0.1 * 7 is; three of ten are as many as 0.29 asks for."""
    for percent in range(1, 101, 4):
        assert -(-percent * calls // 100) == failures_until_open(calls, failure_rate=percent / 100)


def test_a_share_says_nothing_before_there_are_enough_calls() -> None:
    """Of nine calls all may fail if ten are asked for; a success that is the tenth does not open, the next failure does."""
    assert [False] * 9 + [True] == note(window(window_calls=20, minimum_calls=10, failure_rate=0.5), "x" * 10)
    assert [False] * 10 + [True] == note(window(window_calls=20, minimum_calls=10, failure_rate=0.5), "x" * 9 + "ox")


def test_shares_of_slow_calls_and_of_failures_are_counted_by_themselves() -> None:
    """Each of two shares stays below its limit, though every call is one or the other."""
    both = {"window_calls": 4, "minimum_calls": 4, "failure_rate": 0.75, "slow_call_rate": 0.75}
    assert not any(note(window(**both), "xxssxxss"))
    assert note(window(**both), "XxXs")[-1]


def test_a_share_of_nothing_is_never_reached() -> None:
    """However small the share of slow calls may be: a failure that is not slow is none of them."""
    smallest = window(window_calls=10, minimum_calls=1, failure_rate=1, slow_call_rate=1e-12)
    assert [False, False, True] == note(smallest, "oxs")


def test_without_a_share_a_number_decides() -> None:
    """Slow calls are judged by `failure_threshold` if no share of them is given, and the other way round."""
    assert note(window(window_calls=9, minimum_calls=1, failure_threshold=2, failure_rate=1), "oss")[-1]
    assert note(window(window_calls=9, minimum_calls=1, failure_threshold=2, slow_call_rate=1), "oxx")[-1]


# The latest time.

TEN_SECONDS = {"window_ms": 10_000, "failure_threshold": 2}  # a bucket for each second


@pytest.mark.parametrize(("second", "opens"), [(9.75, True), (10.0, False), (19.75, False), (1e6, False)])
def test_a_failure_is_forgotten_with_its_bucket(second: float, opens: bool) -> None:
    """What happened in the first second is forgotten when the eleventh begins."""
    timed = window(**TEN_SECONDS)
    assert [False] == note(timed, "x", 0.875)
    assert [opens] == note(timed, "x", second)


@pytest.mark.parametrize("second", [0.0, 5.0, 1000.0, -500.0])
def test_a_clock_may_begin_anywhere(second: float) -> None:
    """Also below zero: buckets are counted from wherever that is."""
    timed = window(**TEN_SECONDS)
    assert [False] == note(timed, "x", second)
    assert [True] == note(timed, "x", second + 9)
    assert [False] == note(timed, "x", second + 19)


AGES = st.floats(0, 200, allow_subnormal=False)


@settings(max_examples=200, deadline=None)
@given(start=st.floats(-1e6, 1e6), age=AGES, span=st.sampled_from([1000, 10_000, 60_000, 333]))
def test_the_window_covers_nine_tenths_of_its_span_at_least(start: float, age: float, span: float) -> None:
    """A failure younger than that still counts, one that is older than the span does not."""
    timed = window(window_ms=span, failure_threshold=2)
    note(timed, "x", start)
    [opens] = note(timed, "x", start + age)
    share = age / (span / 1000)
    rounding = 1e-6
    assert opens or share > 0.9 - rounding
    assert not opens or share < 1 + rounding


@pytest.mark.parametrize("values", [{}, {"failure_rate": 0.5, "minimum_calls": 4}])
def test_a_clock_that_goes_back_a_little_stands_still(values: dict[str, Any]) -> None:
    """Nothing is lost, and what happens meanwhile counts in the newest bucket."""
    timed = window(window_ms=10_000, failure_threshold=4, **values)
    assert [False] == note(timed, "x", 100.0)
    assert [False, False, True] == note(timed, "xxx", 95.0)
    assert (3 + 1, 0) == timed.counts()[1:]
    assert [True] == note(timed, "x", 109.75)
    note(timed, "x", 110.0)
    assert (2, 0) == timed.counts()[1:]


@pytest.mark.parametrize(("second", "failures"), [(90.0, 2), (89.0, 1), (-1e6, 1)])
def test_a_clock_that_goes_back_by_more_than_the_window_is_another_one(second: float, failures: int) -> None:
    """Then nothing of what was counted can be placed any more, and counting begins anew."""
    timed = window(window_ms=10_000, failure_threshold=9)
    note(timed, "x", 100.0)
    note(timed, "x", second)
    assert failures == timed.counts()[1]
    if failures == 1:
        note(timed, "x", second + 9)
        assert timed.counts()[1] == 2


TIMED = st.builds(
    lambda rates, threshold: {"window_ms": 10_000, "failure_threshold": threshold, **rates},
    st.fixed_dictionaries(
        {"minimum_calls": st.integers(1, 5)},
        optional={"failure_rate": st.sampled_from([0.2, 0.5, 1]), "slow_call_rate": st.sampled_from([0.3, 1])},
    ),
    st.integers(1, 6),
)
SECONDS = st.sampled_from([0, 0, 0, 0.25, 1, 2.5, 9, 9.75, 10, 11, 1000, -0.25, -3, -9.75, -10, -10.25, -11, -1000])


@settings(max_examples=400, deadline=None)
@given(values=TIMED, calls=st.lists(st.tuples(SECONDS, st.sampled_from("xsXooop")), max_size=50))
def test_windows_of_time_agree_with_a_list(values: dict[str, Any], calls: list[tuple[float, str]]) -> None:
    """Whatever the clock does: the same verdict at the same call. A plain success counts in place whenever it may."""
    timed, memory = window(**values), Memory(CircuitBreakerConfig(slow_call_ms=1000, **values))
    now, successes = 1000.0, 0
    for seconds, call in calls:
        now += seconds
        if call == "o" and now < timed.turn:
            timed.run += 1
            memory.run()
        elif call == "p":
            assert memory.prune(now) == timed.prune(now)
            assert counts_of(memory, values) == timed.counts()
        else:
            expected = memory.note(now, failed=call in "xX", slow=call in "sX")
            assert [expected] == note(timed, call, now)
            assert counts_of(memory, values) == timed.counts()
        successes += call in "os"
        assert successes == timed.successes + timed.run


def counts_of(memory: Memory, values: dict[str, Any]) -> tuple[int, int, int]:
    """Return what a list of calls says; without a share, calls are not counted."""
    calls, failed, slow = memory.counts()
    return calls if {"failure_rate", "slow_call_rate"} & set(values) else 0, failed, slow


def test_only_a_share_within_a_time_tells_successes_apart() -> None:
    """Everywhere else a success can be counted without a look at the clock."""
    without = [{}, {"window_calls": 10}, {"window_calls": 10, "failure_rate": 1}, {"window_ms": 1000}]
    assert [math.inf] * 4 == [window(**values).turn for values in without]
    timed = window(window_ms=10_000, failure_rate=1)
    assert timed.turn == -math.inf
    note(timed, "o", 12.5)
    assert timed.turn == 13.0


def test_pruning_drops_what_has_left_the_window() -> None:
    """It says how many failures and slow calls that were; where the latest calls count, none ever leave by time."""
    timed = window(window_ms=10_000, failure_threshold=9)
    note(timed, "xxs", 0.0)
    note(timed, "x", 5.0)
    timed.run += 1
    assert [0, 3, 0, 1] == [timed.prune(now) for now in (9.75, 10.0, 10.0, 100.0)]
    assert (0, 0, 0) == timed.counts()
    assert 2 == timed.successes + timed.run
    for values in ({}, {"window_calls": 10}):
        other = window(**values)
        note(other, "xs")
        assert other.prune(1e9) == 0


# Memory.


def size_of(value: Window) -> int:
    """Return the bytes that a window holds by itself."""
    parts = [getattr(value, name) for name in names_of(type(value)) if name != "_config"]
    return sys.getsizeof(value) + sum(sys.getsizeof(part) for part in parts if part is not None)


@pytest.mark.parametrize(
    ("limit", "values"),
    [
        (300, {}),
        (350, {"window_calls": 100}),
        (700, {"window_calls": 1000}),
        (900, {"window_ms": 60_000, "failure_rate": 1}),
    ],
)
def test_memory_is_bounded(limit: int, values: dict[str, Any]) -> None:
    """However many calls a window has seen, and however fast time has gone: it stays small."""
    full = window(**({"failure_threshold": 100} | values))
    for number in range(20_000):
        full.note(number / 7, failed=number % 3 == 0, slow=number % 2 == 0)
        full.run += number % 5
    assert size_of(full) < limit
