"""Bands of priority that age: who comes next, and how long anybody can be kept waiting."""

from __future__ import annotations

import math
import sys
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentcore import TaskPriority
from agentcore._rules.priority import AgeingBands

LOW, NORMAL, HIGH, CRITICAL = TaskPriority
STRICT = math.inf

# Times in quarters of a second and ageings in powers of two: sums of them are exact.
ageings = st.sampled_from([0, 0.25, 1, 4, 32, STRICT])
priorities = st.sampled_from(TaskPriority)
gaps = st.sampled_from([0, 0, 0.25, 0.5, 1, 2, 8, 64])


def rank(priority: TaskPriority, at: float, ageing: float) -> float:
    """Return when somebody would have had to come to a plain queue, to stand where he stands."""
    return at - priority * ageing if priority else at


def drain(bands: AgeingBands[Any]) -> list[Any]:
    """Take out everybody."""
    return [bands.pop() for _ in range(len(bands))]


def test_without_ageing_the_bands_never_mix() -> None:
    """All that are more urgent go first, however late they come; those of a band in order of arrival."""
    bands: AgeingBands[str] = AgeingBands()
    for number, priority in enumerate([LOW, NORMAL, CRITICAL, HIGH, NORMAL, CRITICAL, LOW]):
        bands.push(f"{priority.name} {number}", priority, number * 1e9)
    assert drain(bands) == ["CRITICAL 2", "CRITICAL 5", "HIGH 3", "NORMAL 1", "NORMAL 4", "LOW 0", "LOW 6"]


def test_waiting_is_worth_a_band_for_every_ageing() -> None:
    """Who has waited for 10 s stands as if he came now, a band above; who came in that very moment goes first still."""
    bands: AgeingBands[str] = AgeingBands(10)
    bands.push("low", LOW, 0)
    bands.push("normal, in time", NORMAL, 10)
    bands.push("normal, too late", NORMAL, 10.25)
    bands.push("critical, in time", CRITICAL, 30)
    bands.push("critical, too late", CRITICAL, 30.25)
    assert drain(bands) == ["critical, in time", "normal, in time", "low", "critical, too late", "normal, too late"]


def test_without_any_worth_of_a_band_they_are_served_in_order_of_arrival() -> None:
    """With an ageing of 0 the priority decides between those alone who come at the same time."""
    bands: AgeingBands[str] = AgeingBands(0)
    for name, priority, at in (("a", LOW, 0), ("b", LOW, 1), ("c", CRITICAL, 1), ("d", HIGH, 2)):
        bands.push(name, priority, at)
    assert drain(bands) == ["a", "c", "b", "d"]


def test_nobody_comes_next_where_nobody_waits() -> None:
    """There is nobody to take out."""
    bands: AgeingBands[str] = AgeingBands(10)
    assert len(bands) == 0
    with pytest.raises(KeyError):
        bands.pop()


@pytest.mark.parametrize("ageing", [10, STRICT])
def test_who_has_been_taken_out_is_told_apart(ageing: float) -> None:
    """Taking out says whether somebody waited: not if he has been served, has gone before, or never came."""
    bands: AgeingBands[str] = AgeingBands(ageing)
    for name in ("a", "b", "c"):
        bands.push(name, HIGH, 0)
    assert bands.pop() == "a"
    assert [bands.remove(name, HIGH) for name in ("a", "b", "b", "stranger")] == [False, True, False, False]
    assert drain(bands) == ["c"]


def test_the_head_of_a_band_can_be_taken_out() -> None:
    """The next one of it counts from then on, and a band whose only one has gone does not."""
    bands: AgeingBands[str] = AgeingBands(10)
    bands.push("critical", CRITICAL, 0)
    bands.push("low", LOW, 0)
    bands.push("later", CRITICAL, 40)
    assert bands.remove("critical", CRITICAL)
    assert bands.pop() == "low"
    assert bands.remove("later", CRITICAL)
    bands.push("normal", NORMAL, 1_000)
    assert drain(bands) == ["normal"]


steps = st.lists(
    st.one_of(
        st.tuples(st.just("push"), priorities),
        st.tuples(st.just("push"), priorities),
        st.tuples(st.just("pop"), st.none()),
        st.tuples(st.just("remove"), st.integers(0, 40)),
        st.tuples(st.just("wait"), gaps),
    ),
    max_size=80,
)


@settings(max_examples=300, deadline=None)
@given(ageing=ageings, steps=steps)
def test_it_is_a_sorted_list(ageing: float, steps: list[tuple[str, Any]]) -> None:
    """Whatever is pushed, taken and removed: the next one is the first of a plain list, sorted by rank."""
    bands: AgeingBands[int] = AgeingBands(ageing)
    model: list[tuple[float, int, int]] = []  # rank, -priority, number
    came: dict[int, TaskPriority] = {}
    now = 0.0
    for number, (step, value) in enumerate(steps):
        if step == "push":
            came[number] = value
            bands.push(number, value, now)
            model.append((rank(value, now, ageing), -value, number))
        elif step == "pop" and model:
            model.sort()
            assert model.pop(0)[2] == bands.pop()
        elif step == "remove" and value in came:
            left = [one for one in model if one[2] != value]
            assert (len(left) < len(model)) == bands.remove(value, came[value])
            model = left
        elif step == "wait":
            now += value
        assert len(model) == len(bands)
    assert [number for *_, number in sorted(model)] == drain(bands)


arrivals = st.lists(st.tuples(priorities, gaps, st.integers(0, 3)), min_size=1, max_size=60)


@settings(max_examples=300, deadline=None)
@given(ageing=ageings, arrivals=arrivals)
def test_nobody_who_comes_too_late_overtakes(ageing: float, arrivals: list[tuple[TaskPriority, float, int]]) -> None:
    """The bound, for any stream, served in any rhythm, and between any two of them.

    Who has come at t in band p is overtaken by those of band q alone that have come before t + (q - p) * ageing; within a
    band nobody overtakes.
    """
    bands: AgeingBands[tuple[TaskPriority, float]] = AgeingBands(ageing)
    now, served = 0.0, []
    for number, (priority, gap, taken) in enumerate(arrivals):
        now += gap
        bands.push((priority, now + number / 1e9), priority, now)  # told apart, and in order
        served += [bands.pop() for _ in range(min(taken, len(bands)))]
    served += drain(bands)
    assert len(served) == len(arrivals)
    for place, (priority, at) in enumerate(served):
        for other, since in served[place + 1 :]:
            if since < at:  # `other` came before, and was overtaken
                assert priority > other, "within a band, or by one that is less urgent"
                assert at - since <= (priority - other) * ageing + 1e-6


@pytest.mark.parametrize("ageing", [0.5, 2, 10])
@pytest.mark.parametrize("priority", [LOW, NORMAL, HIGH])
@pytest.mark.parametrize("before", [0, 7])
def test_a_saturating_stream_of_urgent_ones_starves_nobody(ageing: float, priority: TaskPriority, before: int) -> None:
    """One comes and one is served each second, for ever: whoever is less urgent waits for as long as the bound says."""
    bands: AgeingBands[object] = AgeingBands(ageing)
    for _ in range(before):
        bands.push(object(), CRITICAL, 0)
    waits = "waits"
    bands.push(waits, priority, 0)
    served = 0
    bands.push(object(), CRITICAL, 0)
    while bands.pop() is not waits:
        served += 1
        bands.push(object(), CRITICAL, served)
    # What stood before him, and of those who come, one a second, all until the bound and in the moment of it.
    assert served == before + 1 + math.floor((CRITICAL - priority) * ageing)


def test_without_ageing_a_saturating_stream_starves_everybody_else() -> None:
    """Which is what is asked for then."""
    bands: AgeingBands[object] = AgeingBands(STRICT)
    bands.push("low", LOW, 0)
    for second in range(10_000):
        bands.push(second, CRITICAL, second)
        assert bands.pop() == second


def test_who_comes_again_and_again_does_not_climb() -> None:
    """A storm of those who fail and come anew counts from then each time: who waits in peace is served before them."""
    bands: AgeingBands[str] = AgeingBands(10)
    bands.push("waits in peace", LOW, 0)
    for number in range(50):
        bands.push(f"storm {number}", NORMAL, 0)
    now, tries = 0.0, 0
    while (name := bands.pop()) != "waits in peace":
        now += 1
        tries += 1
        bands.push(name, NORMAL, now)
    # All that were there, and those that came again within the first 10 s.
    assert tries == 60


@pytest.mark.parametrize(
    "which", [0, 5, -2, -1], ids=["the first", "from the midst", "one before the last", "the last"]
)
def test_what_has_gone_leaves_nothing_behind(which: int) -> None:
    """After 100,000 who came and went, no more is kept than of those who wait."""
    bands: AgeingBands[int] = AgeingBands(10)
    waiting = list(range(10))
    for number in waiting:
        bands.push(number, LOW, 0)
    for number in range(10, 100_000):
        bands.push(number, LOW, number)
        waiting.append(number)
        assert bands.remove(waiting.pop(which), LOW)
    assert sum(sys.getsizeof(band) for band in bands._bands) < 10_000
    assert drain(bands) == waiting


@settings(max_examples=100, deadline=None)
@given(ageing=ageings, arrivals=arrivals)
def test_each_band_is_first_come_first_served(ageing: float, arrivals: list[tuple[TaskPriority, float, int]]) -> None:
    """Whatever the ageing, and whatever happens in the other bands."""
    bands: AgeingBands[tuple[int, int]] = AgeingBands(ageing)
    now = 0.0
    for number, (priority, gap, _) in enumerate(arrivals):
        now += gap
        bands.push((priority, number), priority, now)
    served = drain(bands)
    for priority in TaskPriority:
        numbers = [number for band, number in served if band == priority]
        assert all(one < other for one, other in pairwise(numbers))
