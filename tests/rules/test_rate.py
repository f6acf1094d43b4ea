"""Token buckets, and the lines in front of them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from agentcore._rules.rate import EARLY, TokenBucket, TokenLine

rates = st.sampled_from([0.1, 1.0, 3.0, 1000.0, 1 / 3, 1e6])
begins = st.sampled_from([0.0, 0.1, 12345.678, 1e7 + 1 / 3])


def test_it_begins_full_and_fills_with_time() -> None:
    """Five at once, then one each half of a second, and never more than five saved up."""
    bucket = TokenBucket(2.0, 5)
    assert [True] * 5 + [False] == [bucket.try_take(10.0) for _ in range(6)]
    assert 0.5 == bucket.wait(10.0)
    assert [False, True, False] == [bucket.try_take(now) for now in (10.4, 10.5, 10.9)]
    assert 5 == bucket.available(100.0)


def test_the_wait_for_several() -> None:
    """Nothing if they are there; else what is missing, at the rate."""
    bucket = TokenBucket(2.0, 2)
    assert [0.0, 0.0, 0.5, 4.0] == [bucket.wait(0.0, count) for count in (1, 2, 3, 10)]


def test_without_a_rate_only_gifts_come() -> None:
    """The wait for a token that will never come is infinite."""
    bucket = TokenBucket(0, 1)
    assert bucket.try_take(0.0)
    assert not bucket.try_take(1e6)
    assert math.inf == bucket.wait(1e6)
    bucket.give(0.4)
    assert not bucket.try_take(1e6)
    bucket.give(0.6)
    assert bucket.try_take(1e6)


def test_gifts_do_not_overflow() -> None:
    """What there is no room for is lost."""
    bucket = TokenBucket(1.0, 3)
    bucket.give(100)
    assert 3 == bucket.available(0.0)


def test_a_clock_that_goes_back_earns_and_costs_nothing() -> None:
    """Time goes on from wherever the clock is now, as from there on it is counted anew."""
    bucket = TokenBucket(1.0, 2)
    assert bucket.try_take(1000.0)
    assert bucket.try_take(1000.0)
    assert [0.0, 0.0, 0.5] == [bucket.available(now) for now in (1000.0, 3.0, 3.5)]
    assert 0.5 == bucket.wait(3.5)
    assert bucket.try_take(4.0)


def test_a_clock_that_wavers_earns_nothing() -> None:
    """No second is counted twice; none that has passed is lost."""
    bucket = TokenBucket(1.0, 2)
    assert [True, True, False] == [bucket.try_take(100.0) for _ in range(3)]
    assert not any(bucket.try_take(now) for _ in range(100) for now in (98.0, 99.0, 100.0))
    assert 2.0 == bucket.wait(99.0)
    assert [False, True] == [bucket.try_take(now) for now in (100.5, 101.0)]


def test_a_clock_that_is_set_back_starves_nobody() -> None:
    """For more than the time of a whole bucket nobody waits for it to come back."""
    bucket = TokenBucket(1.0, 2)
    assert [True, True] == [bucket.try_take(100.0) for _ in range(2)]
    assert [3.0, 1.0] == [bucket.wait(98.0), bucket.wait(97.9)]
    assert bucket.try_take(98.9)


@settings(deadline=None)
@given(
    rate=rates,
    capacity=st.integers(1, 5),
    begin=begins,
    steps=st.lists(st.floats(-10, 10), min_size=1, max_size=60),
)
def test_no_more_than_the_bucket_holds(rate: float, capacity: int, begin: float, steps: list[float]) -> None:
    """Between any two moments, no more than the capacity and what has come in the meantime, even if the clock jumps."""
    bucket = TokenBucket(rate, capacity)
    now, passed = begin, 0.0
    taken: list[float] = []
    for step in steps:
        now += step / rate
        passed += max(0.0, step / rate)
        while bucket.try_take(now):
            taken.append(passed)
        assert bucket.available(now) < 1
    tolerance = 1e-6 + rate * max(EARLY, 64 * math.ulp(begin + 1000 / rate))
    for first, start in enumerate(taken):
        for last in range(first, len(taken)):
            assert last - first + 1 <= capacity + rate * (taken[last] - start) + tolerance


@settings(deadline=None)
@given(rate=rates, begin=begins, ahead=st.integers(1, 50))
def test_who_sleeps_for_the_wait_finds_a_token(rate: float, begin: float, ahead: int) -> None:
    """However the sum is rounded: otherwise it would sleep for nothing, again and again."""
    bucket = TokenBucket(rate, 1)
    now = begin
    assert bucket.try_take(now)
    for _ in range(ahead):
        now += bucket.wait(now)
        assert bucket.try_take(now)
    assert now - begin == pytest.approx(ahead / rate, rel=1e-3, abs=1e-6)


class Ticket:
    """Who waits."""


def test_the_line_is_served_in_order_of_arrival() -> None:
    """One for each token; who comes does not overtake who waits."""
    line: TokenLine[str] = TokenLine(TokenBucket(1.0, 1))
    assert line.try_take(0.0)
    assert [True, False, False] == [line.join(ticket) for ticket in "abc"]
    assert (3, "a", 4.0) == (len(line), line.first(), line.wait(0.0))
    assert not line.try_take(1.0)
    assert [0.0, 1.0] == [line.take("a", 1.0), line.take("b", 1.0)]
    assert ("b", 2.5) == (line.first(), line.wait(1.5))
    assert [0.0, 0.0] == [line.take("b", 2.0), line.take("c", 3.0)]
    assert line.first() is None
    assert line.try_take(4.0)


def test_who_leaves_costs_nothing_and_those_behind_move_up() -> None:
    """Only if the first leaves is somebody the first that was not before."""
    line: TokenLine[str] = TokenLine(TokenBucket(1.0, 1))
    assert line.try_take(0.0)
    for ticket in "abcd":
        line.join(ticket)
    assert line.leave("c") is None
    assert "b" == line.leave("a")
    assert line.leave("a") is None
    assert (2, 3.0) == (len(line), line.wait(0.0))
    assert 0.0 == line.take("b", 1.0)
    assert line.leave("d") is None
    assert (0, 1.0) == (len(line), line.wait(1.0))


class LineMachine(RuleBasedStateMachine):
    """A line against a list, with tokens counted as fractions of whole steps."""

    @initialize(capacity=st.integers(1, 3))
    def begin(self, capacity: int) -> None:
        self.capacity = self.tokens = capacity
        self.now = self.counted = 0.0
        self.line: TokenLine[Ticket] = TokenLine(TokenBucket(1.0, capacity))
        self.model: list[Ticket] = []

    @rule()
    def come(self) -> None:
        if self.line.try_take(self.now):
            assert self.model == []
            self.tokens -= 1
            return
        assert self.model or not self.tokens
        assert self.wait(len(self.model) + 1) == self.line.wait(self.now)
        ticket = Ticket()
        assert (not self.model) == self.line.join(ticket)
        self.model.append(ticket)

    @rule(seconds=st.integers(0, 3))
    def pass_time(self, seconds: int) -> None:
        self.now += seconds
        self.tokens = min(self.capacity, self.tokens + max(0, int(self.now - self.counted)))
        self.counted = max(self.counted, self.now)

    @rule(back=st.integers(1, 3))
    def go_back(self, back: int) -> None:
        self.line.bucket.available(self.now)
        self.now -= back
        self.line.bucket.available(self.now)
        if self.counted - self.now > self.capacity:
            self.counted = self.now

    def wait(self, count: int) -> float:
        """Return the seconds until there are so many tokens."""
        return count - self.tokens + self.counted - self.now if count > self.tokens else 0.0

    @precondition(lambda self: self.model)
    @rule(index=st.integers(0, 10), respected=st.sets(st.integers(0, 10)))
    def serve(self, index: int, respected: set[int]) -> None:
        index %= len(self.model)
        kept = [ticket for number, ticket in enumerate(self.model) if number in respected]
        wait = self.line.take(self.model[index], self.now, lambda other: other in kept)
        if any(number < index for number in respected):
            assert self.wait(len(self.model)) == wait
        else:
            assert self.wait(1) == wait
            if not wait:
                self.tokens -= 1
                self.model.pop(index)

    @precondition(lambda self: self.model)
    @rule(index=st.integers(0, 10))
    def leave(self, index: int) -> None:
        ticket = self.model[index % len(self.model)]
        was_first = ticket is self.model[0]
        self.model.remove(ticket)
        assert (self.model[0] if was_first and self.model else None) is self.line.leave(ticket)

    @invariant()
    def agrees(self) -> None:
        assert len(self.model) == len(self.line)
        assert (self.model[0] if self.model else None) is self.line.first()
        assert self.tokens == self.line.bucket.available(self.now)


TestLine = LineMachine.TestCase


def test_who_is_late_is_overtaken_by_those_who_need_not_wait_for_it() -> None:
    """By default nobody is; who has to wait looks again when all in the line should have been served."""
    line: TokenLine[str] = TokenLine(TokenBucket(1.0, 1))
    assert line.try_take(0.0)
    for ticket in "abc":
        line.join(ticket)
    assert 2.0 == line.take("c", 1.0)
    assert 2.0 == line.take("c", 1.0, {"b"}.__contains__)
    assert 0.0 == line.take("b", 1.0, {"b", "c"}.__contains__)
    assert ("a", 2, 1.0) == (line.first(), len(line), line.take("c", 1.0, {"b"}.__contains__))
    assert 0.0 == line.take("a", 2.0)


def test_order_is_kept_whoever_leaves() -> None:
    """Those who stay are served in the order in which they came."""
    line: TokenLine[int] = TokenLine(TokenBucket(1.0, 1))
    line.try_take(0.0)
    for number in range(100):
        line.join(number)
    for number in range(0, 100, 3):
        line.leave(number)
    served = []
    now = 0.0
    while (first := line.first()) is not None:
        now += line.bucket.wait(now)
        assert 0.0 == line.take(first, now)
        served.append(first)
    assert [number for number in range(100) if number % 3] == served
    assert now == pytest.approx(len(served))
