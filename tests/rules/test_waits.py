"""The wait-for graph: a wait is refused if, and only if, it could never end."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentcore._rules.waits import Wait, WaitGraph


def graph(**holders: int) -> WaitGraph[str]:
    """Make a graph of resources with so many holders each."""
    return WaitGraph(holders.__getitem__)


def wait(wanted: str, *held: tuple[str, int]) -> Wait[str]:
    """Make a wait of a chain that holds something, from the inside out."""
    return Wait(wanted, held)


def test_who_holds_nothing_closes_no_circle() -> None:
    """A chain that holds nothing delays nobody, whatever it waits for."""
    assert graph(a=1).circle(wait("a")) is None


def test_waiting_for_what_one_holds_is_a_circle() -> None:
    """The shortest circle: a chain that wants what it has."""
    assert graph(a=1).circle(wait("a", ("a", 1))) == ["a"]


def test_another_holder_can_end_the_wait() -> None:
    """With two holders, one of them free, the wait ends when that one is done."""
    assert graph(a=2).circle(wait("a", ("a", 1))) is None


def test_all_units_held_along_one_chain_are_a_circle() -> None:
    """Both units of a resource are held by the chain itself: nobody else could give one back."""
    assert graph(a=2).circle(wait("a", ("a", 1), ("a", 2))) == ["a"]


def test_two_chains_that_cross_are_a_circle() -> None:
    """One has a and wants b, the other has b and wants a."""
    waits = graph(a=1, b=1)
    waits.add(wait("b", ("a", 1)))
    circle = waits.circle(wait("a", ("b", 2)))
    assert circle is not None
    assert {"a", "b"} == set(circle)


def test_a_circle_is_named_with_what_lies_between() -> None:
    """One called another and that one a third, which wants the first: the circle leads through all three."""
    circle = graph(a=1, b=1, c=1).circle(wait("a", ("b", 3), ("c", 2), ("a", 1)))
    assert circle == ["a", "c", "b"]


def test_what_leads_to_a_circle_is_no_part_of_it() -> None:
    """Who waits for the circle from outside is stuck as well, but the error names the circle alone."""
    waits = graph(a=1, b=1, outside=1)
    waits.add(wait("b", ("a", 1)))
    waits.add(wait("a", ("b", 2)))
    circle = waits.circle(wait("a", ("outside", 3)))
    assert circle is not None
    assert {"a", "b"} == set(circle)


def test_a_circle_with_a_way_out_is_none() -> None:
    """A circle is necessary but not sufficient: b has a second holder, who will be done."""
    waits = graph(a=1, b=2)
    waits.add(wait("b", ("a", 1)))
    assert waits.circle(wait("a", ("b", 2))) is None


def test_a_way_out_may_be_far_away() -> None:
    """Each waits for the next, and the last for somebody who is free."""
    waits = graph(a=1, b=1, c=1)
    waits.add(wait("b", ("a", 1)))
    waits.add(wait("c", ("b", 2)))
    assert waits.circle(wait("a", ("x", 9))) is None


def test_one_holder_with_two_waits_counts_once() -> None:
    """A holder may wait in several places at once (in a task group); it is blocked, but no other is."""
    waits = graph(a=2, b=1)
    waits.add(wait("b", ("a", 1)))
    waits.add(wait("b", ("a", 1)))
    assert waits.circle(wait("a", ("b", 5))) is None


def test_a_wait_that_has_ended_blocks_nobody() -> None:
    """What was removed is forgotten, and a graph without waits keeps nothing."""
    waits = graph(a=1, b=1)
    other = wait("b", ("a", 1), ("a", 7))
    waits.add(other)
    waits.remove(other)
    assert waits.circle(wait("a", ("b", 2))) is None
    assert waits._waits == {}


def test_of_equal_waits_one_is_removed() -> None:
    """Two waits of one chain are two: the end of one leaves the other."""
    waits = graph(a=1, b=1)
    first, second = wait("b", ("a", 1)), wait("b", ("a", 1))
    waits.add(first)
    waits.add(second)
    waits.remove(first)
    circle = waits.circle(wait("a", ("b", 2)))
    assert circle is not None
    assert {"a", "b"} == set(circle)


@pytest.mark.parametrize("holders", [0, 1])
def test_a_resource_without_blocked_holders_can_be_waited_for(holders: int) -> None:
    """Nobody who holds it waits, be it that nobody holds it at the moment: the wait can end."""
    assert graph(a=holders).circle(wait("a", ("b", 1))) is None


@dataclass
class World:
    """Chains of holders, some of which wait: what the graph is asked about."""

    holders: dict[str, int]
    waits: list[Wait[str]]


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """Draw holders of up to four resources, and waits of chains through them, one more than there is asked about."""
    holders = {name: draw(st.integers(1, 3)) for name in "abcd"[: draw(st.integers(1, 4))]}
    every = [(name, f"{name}{number}") for name, count in holders.items() for number in range(count)]
    numbers = {label: number for number, (_, label) in enumerate(every)}
    chains = st.lists(st.sampled_from(every), min_size=1, max_size=3, unique=True)
    waits = [
        Wait(draw(st.sampled_from(sorted(holders))), tuple((name, numbers[label]) for name, label in draw(chains)))
        for _ in range(draw(st.integers(1, 7)))
    ]
    return World(holders, waits)


def can_end(world: World, asked: Wait[str]) -> bool:
    """Play it through: whoever has no wait left is done and lets one more in, until nothing moves."""
    waiting = list(world.waits)
    while True:
        done = [
            one
            for one in waiting
            if len({holder for other in waiting for name, holder in other.held if name == one.wanted})
            < world.holders[one.wanted]
        ]
        if any(one is asked for one in done):
            return True
        if not done:
            return False
        waiting = [one for one in waiting if all(one is not other for other in done)]


@settings(max_examples=400, deadline=None)
@given(worlds())
def test_the_graph_agrees_with_playing_it_through(world: World) -> None:
    """A wait is refused exactly if it never ends when everybody who can go on does."""
    *others, asked = world.waits
    waits: WaitGraph[str] = WaitGraph(world.holders.__getitem__)
    for other in others:
        waits.add(other)
    circle = waits.circle(asked)
    assert can_end(world, asked) == (circle is None)
    if circle is not None:
        stuck = [one for one in world.waits if not can_end(world, one)]
        # Each resource is held by somebody who waits for the next one, or whose chain goes on to it.
        for this, following in zip(circle, [*circle[1:], circle[0]], strict=True):
            assert any(follows(one, this, following) for one in stuck), (circle, this, following)
    for other in others:
        waits.remove(other)
    assert waits._waits == {}


def follows(wait: Wait[str], this: str, following: str) -> bool:
    """Tell whether a chain holds one resource and next to it, inwards, has or wants the other."""
    inwards = [wait.wanted, *(name for name, _ in wait.held)]
    return any((inwards[place], inwards[place + 1]) == (following, this) for place in range(len(inwards) - 1))
