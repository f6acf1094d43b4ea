"""Who is started again, and when a supervisor gives up: each cell of the table."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import pytest

from agentcore import Backoff, ConfigurationError
from agentcore._rules.restart import NOTHING, RestartType, Supervision, SupervisionStrategy, Verdict, to_member

ONE_FOR_ONE, ONE_FOR_ALL, REST_FOR_ONE = SupervisionStrategy
PERMANENT, TRANSIENT, TEMPORARY = RestartType
AT_ONCE = Backoff(0, 1, 0)
STRATEGIES = list(SupervisionStrategy)


def supervision(
    strategy: SupervisionStrategy,
    children: Mapping[str, RestartType],
    *,
    intensity: int = 3,
    period: float = 5,
    backoff: Backoff = AT_ONCE,
    reset_after: float = 10,
) -> Supervision:
    """Make the rules of a supervisor whose children have been started at 0, in their order."""
    rules = Supervision(strategy, intensity, period, backoff, reset_after)
    for name, restart in children.items():
        rules.add(name, restart, 0)
    return rules


def abc(strategy: SupervisionStrategy, **options: Any) -> Supervision:
    """Make the rules of a supervisor with three permanent children."""
    return supervision(strategy, dict.fromkeys("abc", PERMANENT), **options)


def start_those_due(rules: Supervision, now: float) -> list[str]:
    """Start everybody who is due and return the names in their order."""
    names = []
    while (name := rules.due(now)) is not None:
        rules.started(name, now)
        names.append(name)
    return names


# The table.


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(
    ("restart", "crashed", "again"),
    [
        (PERMANENT, False, True),
        (PERMANENT, True, True),
        (TRANSIENT, False, False),
        (TRANSIENT, True, True),
        (TEMPORARY, False, False),
        (TEMPORARY, True, False),
    ],
)
def test_who_is_started_again_after_which_end(
    strategy: SupervisionStrategy, restart: RestartType, crashed: bool, again: bool
) -> None:
    """The first half of the table, whatever the strategy: a child that is not started again is gone."""
    rules = supervision(strategy, {"only": restart})
    verdict = rules.ended("only", 1, 0.5, crashed=crashed)
    assert verdict == (Verdict(restart=("only",)) if again else Verdict(removed=("only",)))
    assert (("only" in rules), len(rules)) == (again, int(again))
    assert rules.due(1) == ("only" if again else None)


@pytest.mark.parametrize(
    ("strategy", "name", "stop", "restart"),
    [
        (ONE_FOR_ONE, "a", "", "a"),
        (ONE_FOR_ONE, "b", "", "b"),
        (ONE_FOR_ONE, "c", "", "c"),
        (ONE_FOR_ALL, "a", "cb", "abc"),
        (ONE_FOR_ALL, "b", "ca", "abc"),
        (ONE_FOR_ALL, "c", "ba", "abc"),
        (REST_FOR_ONE, "a", "cb", "abc"),
        (REST_FOR_ONE, "b", "c", "bc"),
        (REST_FOR_ONE, "c", "", "c"),
    ],
)
def test_who_is_started_again_together(strategy: SupervisionStrategy, name: str, stop: str, restart: str) -> None:
    """The second half: stopped in reverse order of their start, started again in the order of it; the rest stays up."""
    rules = abc(strategy)
    assert rules.ended(name, 1, 0.5, crashed=True) == Verdict(tuple(stop), tuple(restart))
    assert [one for one in "abc" if rules.is_up(one)] == [one for one in "abc" if one not in restart]
    assert start_those_due(rules, 1) == list(restart)
    assert rules.in_order() == ("a", "b", "c")
    assert all(rules.is_up(one) for one in "abc")


@pytest.mark.parametrize(
    "family", [dict(zip("abc", types, strict=True)) for types in itertools.product(RestartType, repeat=3)]
)
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("crashed", [False, True])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_every_family_of_three(
    strategy: SupervisionStrategy, family: dict[str, RestartType], crashed: bool, place: int
) -> None:
    """Each strategy, each type of each child, each end of each of them: 486 cases, said in other words than the rules'."""
    rules = supervision(strategy, family)
    name = "abc"[place]
    verdict = rules.ended(name, 1, 0.5, crashed=crashed)
    if family[name] is TEMPORARY or (family[name] is TRANSIENT and not crashed):
        assert verdict == Verdict(removed=(name,))
        return
    affected = {ONE_FOR_ONE: name, ONE_FOR_ALL: "abc", REST_FOR_ONE: "abc"[place:]}[strategy]
    assert set(verdict.stop) == set(affected) - {name}
    assert list(verdict.stop) == sorted(verdict.stop, reverse=True)
    assert list(verdict.removed) == [one for one in affected if family[one] is TEMPORARY]
    assert list(verdict.restart) == [one for one in affected if family[one] is not TEMPORARY]
    assert not verdict.gives_up


def test_a_temporary_one_that_is_stopped_with_others_is_gone() -> None:
    """It is stopped, and not started again."""
    rules = supervision(ONE_FOR_ALL, {"a": PERMANENT, "b": TEMPORARY, "c": TRANSIENT})
    assert rules.ended("a", 1, 0.5, crashed=True) == Verdict(("c", "b"), ("a", "c"), ("b",))
    assert rules.in_order() == ("a", "c")


def test_who_is_gone_by_itself_does_not_come_back_with_its_siblings() -> None:
    """A transient child that has ended by itself is no child any more."""
    rules = supervision(ONE_FOR_ALL, {"a": PERMANENT, "b": TRANSIENT})
    rules.ended("b", 1, 0.5, crashed=False)
    assert rules.ended("a", 2, 0.5, crashed=True) == Verdict(restart=("a",))


def test_a_stranger_changes_nothing() -> None:
    """The end of what is no child, or no child any more."""
    rules = abc(ONE_FOR_ALL)
    rules.remove("b")
    rules.remove("b")
    assert rules.ended("b", 1, 0.5, crashed=True) is NOTHING
    assert not rules.is_up("b")
    assert rules.ended("stranger", 1, 0.5, crashed=True) is NOTHING
    assert rules.in_order() == ("a", "c")


# Intensity.


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("intensity", [0, 1, 3, 10])
def test_the_limit_trips_at_one_restart_more_than_the_intensity(strategy: SupervisionStrategy, intensity: int) -> None:
    """Exactly then: everybody who is up is stopped in reverse order, and nobody is started again."""
    rules = abc(strategy, intensity=intensity)
    for _ in range(intensity):
        assert not rules.ended("a", 1, 0.5, crashed=True).gives_up
        start_those_due(rules, 1)
    assert not rules.has_given_up
    assert rules.ended("a", 1, 0.5, crashed=True) == Verdict(stop=("c", "b"), gives_up=True)
    assert rules.has_given_up
    assert (rules.due(1e9), rules.next_due(), rules.is_up("a")) == (None, None, False)
    assert rules.ended("b", 2, 0.5, crashed=True) is NOTHING


def test_who_waits_for_a_restart_is_not_stopped_and_not_started_when_the_supervisor_gives_up() -> None:
    """There is nothing of it to stop."""
    rules = abc(ONE_FOR_ONE, intensity=1)
    rules.ended("b", 1, 0.5, crashed=True)
    assert rules.next_due() == 1
    assert rules.ended("c", 1, 0.5, crashed=True) == Verdict(stop=("a",), gives_up=True)
    assert (rules.due(1), rules.next_due()) == (None, None)


@pytest.mark.parametrize(("gap", "gives_up"), [(4.9, True), (5.0, True), (5.001, False)])
def test_a_restart_counts_for_a_period_and_not_longer(gap: float, gives_up: bool) -> None:
    """At its very end it still does, as in OTP."""
    rules = abc(ONE_FOR_ONE, intensity=1, period=5)
    assert not rules.ended("a", 1, 0.5, crashed=True).gives_up
    start_those_due(rules, 1)
    assert rules.ended("b", 1 + gap, 0.5, crashed=True).gives_up == gives_up


def test_restarts_spread_over_time_never_trip_the_limit() -> None:
    """So many within each period as are allowed, for ever; what is remembered is no more than that."""
    rules = abc(ONE_FOR_ONE, intensity=3, period=6)
    for number in range(1, 1_000):
        now = number * 2.5
        assert not rules.ended("a", now, 0.5, crashed=True).gives_up
        start_those_due(rules, now)
        assert len(rules._restarts) <= 4


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_restarting_many_together_is_one_restart(strategy: SupervisionStrategy) -> None:
    """It is crashes that are counted, not who suffers from them."""
    rules = abc(strategy, intensity=1)
    assert not rules.ended("a", 1, 0.5, crashed=True).gives_up


def test_children_that_are_gone_do_not_count() -> None:
    """A thousand temporary ones may crash."""
    rules = supervision(ONE_FOR_ONE, {"a": PERMANENT}, intensity=0)
    for number in range(1_000):
        rules.add(f"short {number}", TEMPORARY, 1)
        assert not rules.ended(f"short {number}", 1, 0.5, crashed=True).gives_up
    assert rules.in_order() == ("a",)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_start_that_fails_counts_as_a_restart(strategy: SupervisionStrategy) -> None:
    """A child that does not come up crashes once more each time, until there are too many."""
    rules = abc(strategy, intensity=3)
    for _ in range(3):
        assert not rules.ended("b", 1, 0.5, crashed=True).gives_up
        while (name := rules.due(1)) != "b":
            assert name is not None
            rules.started(name, 1)
    assert rules.ended("b", 1, 0.5, crashed=True).gives_up


def test_a_start_that_fails_stops_those_that_came_up_before_it() -> None:
    """Under one_for_all, all begin anew; under rest_for_one those that were started before are none of its business."""
    for strategy, stop in ((ONE_FOR_ALL, ("a",)), (REST_FOR_ONE, ())):
        rules = abc(strategy)
        rules.ended("a", 1, 0.5, crashed=True)
        rules.started("a", 1)
        assert rules.due(1) == "b"
        verdict = rules.ended("b", 1, 0.5, crashed=True)
        assert verdict == Verdict(stop, (*stop, "b", "c"))


def test_the_end_of_who_is_being_stopped_is_no_further_restart() -> None:
    """Two crash in the same moment: the second is started again with the first, and counted with it."""
    rules = abc(ONE_FOR_ALL, intensity=1)
    assert rules.ended("a", 1, 0.5, crashed=True).stop == ("c", "b")
    assert rules.ended("b", 1, 0.5, crashed=True) is NOTHING
    assert rules.ended("c", 1, 0.5, crashed=False) is NOTHING
    assert start_those_due(rules, 1) == ["a", "b", "c"]


def test_the_end_of_a_start_that_is_broken_off_for_another_is_no_further_restart() -> None:
    """The one before it has crashed meanwhile: both are started again, in their order."""
    rules = abc(ONE_FOR_ALL, intensity=2)
    rules.ended("a", 1, 0.5, crashed=True)
    rules.started("a", 1)
    assert rules.due(1) == "b"
    assert rules.ended("a", 1, 0.5, crashed=True) == Verdict((), ("a", "b", "c"))
    assert rules.ended("b", 1, 0.5, crashed=True) is NOTHING
    assert start_those_due(rules, 1) == ["a", "b", "c"]


# The wait.


def test_the_wait_grows_is_capped_and_is_drawn() -> None:
    """Before the n-th restart in a row a part of initial * factor**n, and never more than the maximum."""
    rules = supervision(ONE_FOR_ONE, {"a": PERMANENT}, intensity=100, backoff=Backoff(1, 2, 5), reset_after=10)
    now, waits = 0.0, []
    for _ in range(5):
        rules.ended("a", now, 0.5, crashed=True)
        due = rules.next_due()
        assert due is not None
        assert rules.due(due - 0.01) is None
        assert rules.due(due) == "a"
        waits.append(due - now)
        rules.started("a", due)
        now = due + 1
    assert waits == [0.5, 1, 2, 2.5, 2.5]


@pytest.mark.parametrize(("uptime", "wait"), [(9.9, 4), (10, 1)])
def test_the_wait_begins_anew_when_a_child_was_up_for_long_enough(uptime: float, wait: float) -> None:
    """It has to be up for `reset_after` in one go."""
    rules = supervision(
        ONE_FOR_ONE, {"a": PERMANENT}, intensity=100, backoff=Backoff(1, 2, 60, jitter=False), reset_after=10
    )
    now = 1.0
    for _ in range(2):
        rules.ended("a", now, 0.5, crashed=True)
        now = rules.next_due() or 0.0
        rules.started("a", now)
    now += uptime
    rules.ended("a", now, 0.5, crashed=True)
    assert rules.next_due() == now + wait


def test_the_wait_grows_again_after_it_has_begun_anew() -> None:
    """The first crash after a long time is forgiven, and counted for the next one."""
    rules = supervision(ONE_FOR_ONE, {"a": PERMANENT}, intensity=100, backoff=Backoff(1, 2, 60, jitter=False))
    now = 100.0
    for wait in (1, 2, 4):
        rules.ended("a", now, 0.5, crashed=True)
        assert rules.next_due() == now + wait
        now += wait
        rules.started("a", now)


def test_the_uptime_of_who_is_stopped_for_another_counts() -> None:
    """It was up for long enough; that it was stopped then was not its fault."""
    rules = abc(ONE_FOR_ALL, intensity=100, backoff=Backoff(1, 2, 60, jitter=False), reset_after=10)
    rules.ended("b", 1, 0.5, crashed=True)
    assert start_those_due(rules, 2) == ["a", "b", "c"]
    rules.ended("a", 20, 0.5, crashed=True)
    assert start_those_due(rules, 21) == ["a", "b", "c"]
    rules.ended("b", 22, 0.5, crashed=True)
    assert rules.next_due() == 23


def test_a_wait_for_a_restart_is_no_uptime() -> None:
    """Of a child that does not come up, the waits grow however long they are."""
    backoff = Backoff(20, 2, 1_000, jitter=False)
    rules = supervision(ONE_FOR_ONE, {"a": PERMANENT}, intensity=100, period=1, backoff=backoff)
    now = 1.0
    for wait in (20, 40, 80):
        rules.ended("a", now, 0.5, crashed=True)
        assert rules.next_due() == now + wait
        now += wait
        assert rules.due(now) == "a"


def test_each_child_waits_on_its_own_under_one_for_one() -> None:
    """Whoever is due first is first, whenever it was started in the beginning."""
    rules = abc(ONE_FOR_ONE, intensity=100, backoff=Backoff(8, 1, 8))
    rules.ended("a", 1, 1.0, crashed=True)
    rules.ended("c", 1, 0.25, crashed=True)
    assert rules.next_due() == 3
    assert (rules.due(2), rules.due(3)) == (None, "c")
    rules.started("c", 3)
    assert (rules.due(8), rules.next_due(), rules.due(9)) == (None, 9, "a")


@pytest.mark.parametrize("strategy", [ONE_FOR_ALL, REST_FOR_ONE])
def test_restarts_keep_the_order_of_start(strategy: SupervisionStrategy) -> None:
    """A later one that would be due already waits for those before it; `due` says the same until something is done."""
    rules = abc(strategy, intensity=100, backoff=Backoff(8, 1, 8))
    rules.ended("a", 1, 1.0, crashed=True)
    rules.add("d", PERMANENT, 2)
    rules.ended("d", 2, 0.25, crashed=True)
    assert rules.due(8.5) is None
    assert rules.next_due() == 9
    assert (rules.due(9), rules.due(9)) == ("a", "a")
    assert start_those_due(rules, 9) == ["a", "b", "c", "d"]


def test_under_rest_for_one_an_earlier_crash_shortens_nobodys_wait() -> None:
    """Who waits for 8 s does so although one before it crashes that waits for 2 s only."""
    rules = abc(REST_FOR_ONE, intensity=100, backoff=Backoff(8, 1, 8))
    rules.ended("b", 1, 1.0, crashed=True)
    assert rules.ended("a", 2, 0.25, crashed=True) == Verdict((), ("a", "b", "c"))
    assert rules.next_due() == 4
    assert start_those_due(rules, 4) == ["a"]
    assert rules.next_due() == 9
    assert start_those_due(rules, 9) == ["b", "c"]


def test_nothing_is_due_while_everybody_is_up() -> None:
    """There is no time to wait for."""
    rules = abc(ONE_FOR_ALL)
    assert (rules.due(1e9), rules.next_due()) == (None, None)


def test_a_child_that_is_removed_while_it_waits_is_not_started() -> None:
    """Those after it are."""
    rules = abc(REST_FOR_ONE)
    rules.ended("a", 1, 0.5, crashed=True)
    rules.remove("b")
    assert start_those_due(rules, 1) == ["a", "c"]


def test_a_thousand_crashes_of_one_child_are_none_of_its_siblings_business() -> None:
    """Under one_for_one nobody else is ever stopped, and the limit trips at exactly one more than the intensity."""
    rules = abc(ONE_FOR_ONE, intensity=999)
    for _ in range(999):
        assert rules.ended("b", 1, 0.5, crashed=True) == Verdict(restart=("b",))
        start_those_due(rules, 1)
    assert rules.ended("b", 1, 0.5, crashed=True) == Verdict(stop=("c", "a"), gives_up=True)


def test_a_value_that_stands_for_none() -> None:
    """What there is is listed."""
    assert RestartType.TRANSIENT is to_member(RestartType, "an agent", "restart", "transient")
    with pytest.raises(
        ConfigurationError,
        match=r"restart of an agent must be one of 'permanent', 'transient', 'temporary': got 'always'; write RestartType\.PERMANENT",
    ):
        to_member(RestartType, "an agent", "restart", "always")
