"""Slots: who may go on, and who is next."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentcore import TaskPriority
from agentcore._rules.admission import Slots

LOW, NORMAL, HIGH, CRITICAL = TaskPriority


def full(limit: int = 1) -> Slots[str]:
    """Make slots that are all taken."""
    slots: Slots[str] = Slots(limit)
    for _ in range(limit):
        assert slots.try_take()
    return slots


def test_free_slots_are_taken_at_once() -> None:
    """As many as there are slots get one; the next gets none, and nothing changes for it."""
    slots: Slots[str] = Slots(2)
    assert [True, True, False] == [slots.try_take() for _ in range(3)]
    assert (2, 0) == (slots.in_use, len(slots))


def test_without_a_limit_everyone_goes_on() -> None:
    """With no limit nobody waits, however many there are."""
    slots: Slots[str] = Slots(None)
    assert all(slots.try_take() for _ in range(1000))
    assert slots.in_use == 1000
    assert slots.give() is None
    assert slots.in_use == 999


def test_a_slot_that_is_given_back_passes_to_the_first_in_line() -> None:
    """The holder of the ticket has the slot from that moment, so nobody can come between."""
    slots = full()
    slots.wait("first")
    slots.wait("second")
    assert slots.give() == "first"
    assert (1, 1) == (slots.in_use, len(slots))
    assert not slots.try_take()
    assert slots.give() == "second"
    assert slots.give() is None
    assert (0, 0) == (slots.in_use, len(slots))


def test_urgent_ones_are_served_first_and_equals_in_order_of_arrival() -> None:
    """CRITICAL before HIGH before NORMAL before LOW; first come, first served within each."""
    slots = full()
    for number, priority in enumerate([LOW, NORMAL, CRITICAL, HIGH, NORMAL, CRITICAL, LOW]):
        slots.wait(f"{priority.name} {number}", priority)
    served = [slots.give() for _ in range(8)]
    expected = ["CRITICAL 2", "CRITICAL 5", "HIGH 3", "NORMAL 1", "NORMAL 4", "LOW 0", "LOW 6", None]
    assert expected == served


def test_waiting_makes_up_for_priority() -> None:
    """With ageing, whoever waits for long enough goes before the more urgent who came late."""
    slots: Slots[str] = Slots(1, ageing=10)
    assert slots.try_take()
    slots.wait("low", LOW, 0)
    slots.wait("high, late", HIGH, 20.5)
    slots.wait("critical, in time", CRITICAL, 30)
    assert [slots.give() for _ in range(3)] == ["critical, in time", "low", "high, late"]


def test_without_priorities_the_line_is_served_in_order_of_arrival() -> None:
    """Nobody has to tell the time for that."""
    slots = full()
    for number in range(50):
        slots.wait(str(number))
    assert slots.withdraw("7")
    assert [slots.give() for _ in range(49)] == [str(number) for number in range(50) if number != 7]


def test_who_waits_is_not_overtaken_by_who_comes() -> None:
    """While somebody waits there is no slot for anybody who only asks, though one be free."""
    slots = full()
    slots.wait("first")
    slots.limit = 2  # one is free now
    assert not slots.try_take()
    assert slots.serve() == "first"
    assert slots.serve() is None


def test_serve_hands_out_nothing_over_the_limit() -> None:
    """`serve` without a free slot leaves the line as it is."""
    slots = full()
    slots.wait("first")
    assert slots.serve() is None
    assert (1, 1) == (slots.in_use, len(slots))


def test_who_withdraws_is_not_served() -> None:
    """A ticket that was withdrawn does not come out again."""
    slots = full()
    slots.wait("first", HIGH)
    slots.wait("second", HIGH)
    assert slots.withdraw("first", HIGH)
    assert slots.give() == "second"


def test_withdrawing_a_served_ticket_tells_that_it_was_served() -> None:
    """False says that the slot is the holder's, who must give it back."""
    slots = full()
    slots.wait("first")
    slots.wait("second")
    slots.give()
    assert not slots.withdraw("first")
    assert slots.withdraw("second")
    assert not slots.withdraw("second")
    assert (1, 0) == (slots.in_use, len(slots))


def test_withdrawing_what_never_waited_changes_nothing() -> None:
    """Nobody is served instead of somebody else, whether there was a line before or not."""
    slots = full()
    assert not slots.withdraw("stranger")
    slots.wait("first")
    assert not slots.withdraw("stranger")
    assert len(slots) == 1


def test_a_reclaimed_slot_may_exceed_the_limit_until_it_is_given_back() -> None:
    """Who lent a slot gets it back at once; strangers go on waiting until the excess is gone."""
    slots = full()
    slots.wait("stranger")
    assert slots.give() == "stranger"
    slots.reclaim()
    slots.wait("another")
    assert slots.in_use == 2
    assert slots.give() is None
    assert slots.give() == "another"


@pytest.mark.parametrize("waited", [False, True])
def test_the_line_can_be_dissolved(waited: bool) -> None:
    """All tickets come out, the most urgent first, and none of them later."""
    slots = full()
    if waited:
        slots.wait("low", LOW)
        slots.wait("high", HIGH)
        slots.wait("also high", HIGH)
    assert (["high", "also high", "low"] if waited else []) == slots.drop_all()
    assert len(slots) == 0
    assert slots.give() is None
    assert slots.in_use == 0


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(3, "<Slots 1 of 3 in use, 0 waiting>"), (None, "<Slots 1 of unlimited in use, 0 waiting>")],
)
def test_repr_tells_live_counts(limit: int | None, expected: str) -> None:
    """The text has the numbers of the moment."""
    slots: Slots[str] = Slots(limit)
    slots.try_take()
    assert expected == repr(slots)


@dataclass
class Model:
    """What slots are, written as plainly as possible: one sorted list."""

    limit: int
    ageing: float
    in_use: int = 0
    line: list[tuple[float, int, int]] = field(default_factory=list)  # (rank, -priority, ticket)

    def wait(self, ticket: int, priority: int, now: float) -> None:
        self.line.append((now - priority * self.ageing if priority else now, -priority, ticket))
        self.line.sort()

    def withdraw(self, ticket: int) -> bool:
        left = [one for one in self.line if one[2] != ticket]
        was_there = len(left) < len(self.line)
        self.line = left
        return was_there

    def serve(self) -> int | None:
        if not self.line or self.in_use >= self.limit:
            return None
        self.in_use += 1
        return self.line.pop(0)[2]


steps = st.lists(
    st.one_of(
        st.tuples(st.just("take"), st.sampled_from(TaskPriority)),
        st.tuples(st.just("later"), st.sampled_from([1, 4, 32])),
        st.tuples(st.just("give"), st.none()),
        st.tuples(st.just("lend"), st.none()),
        st.tuples(st.just("withdraw"), st.integers(0, 20)),
        st.tuples(st.just("drop"), st.none()),
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(limit=st.integers(1, 3), ageing=st.sampled_from([0, 1, 8, math.inf]), steps=steps)
def test_slots_agree_with_a_sorted_list(limit: int, ageing: float, steps: list[tuple[str, int | None]]) -> None:
    """Whatever is done in whichever order: the same tickets come out, nobody has two slots, none is lost."""
    slots: Slots[int] = Slots(limit, ageing)
    model = Model(limit, ageing)
    priorities: dict[int, TaskPriority] = {}
    holders = lent = now = 0
    for number, (step, value) in enumerate(steps):
        if step == "take":
            took = slots.try_take()
            assert took == (model.in_use < limit and not model.line)
            if took:
                model.in_use += 1
                holders += 1
            else:
                priorities[number] = TaskPriority(value)
                slots.wait(number, priorities[number], now)
                model.wait(number, priorities[number], now)
        elif step == "give" and holders:
            model.in_use -= 1
            served = slots.give()
            assert model.serve() == served
            holders -= served is None
        elif step == "lend" and holders:
            # Given away for a while, then taken back whatever has happened since.
            model.in_use -= 1
            served = slots.give()
            assert model.serve() == served
            lent = 0 if served is None else 1
            slots.reclaim()
            model.in_use += 1
            holders += lent
        elif step == "withdraw" and value in priorities:
            assert model.withdraw(value) == slots.withdraw(value, priorities[value])
        elif step == "later" and value is not None:
            now += value
        elif step == "drop":
            assert [ticket for *_, ticket in model.line] == slots.drop_all()
            model.line.clear()
        assert (model.in_use, len(model.line)) == (slots.in_use, len(slots))
        assert holders == slots.in_use
        assert not (len(slots) and slots.in_use < limit), "a slot is free while somebody waits"
