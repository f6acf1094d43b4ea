"""The rules of supervision against a naive model of OTP's, under whatever can happen to a supervisor, by chance.

The model is a list of children and plain loops, written from what the documentation of OTP's supervisors says. A longer
search, after a change of the rules::

    RESTART_EXAMPLES=20000 pytest tests/rules/test_restart_machine.py
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from agentcore import Backoff
from agentcore._rules.restart import RestartType, Supervision, SupervisionStrategy, Verdict

pytestmark = pytest.mark.thorough


@dataclass
class Child:
    """A child, as the model sees it."""

    name: str
    restart: str
    up_since: float
    state: str = "up"  # or "waiting", or "starting"
    due: float = 0
    row: int = 0


@dataclass
class Model:
    """OTP's supervisor: the children in the order of their start, and when there were restarts."""

    strategy: str
    intensity: int
    period: float
    first_wait: float
    longest_wait: float
    reset_after: float
    children: list[Child] = field(default_factory=list)
    restarts: list[float] = field(default_factory=list)
    dead: bool = False

    def find(self, name: str) -> Child | None:
        for child in self.children:
            if child.name == name:
                return child
        return None

    def is_affected(self, child: Child, by: Child) -> bool:
        """Whether a child is started again with another one."""
        if child is by or self.strategy == "one_for_all":
            return True
        if self.strategy == "one_for_one":
            return False
        for one in self.children:
            if one is by:
                return True
            if one is child:
                return False
        raise AssertionError

    def end(self, name: str, now: float, draw: float, crashed: bool) -> Verdict:
        child = self.find(name)
        if child is None or self.dead or child.state == "waiting":
            return Verdict()
        if child.restart == "temporary" or (child.restart == "transient" and not crashed):
            self.children.remove(child)
            return Verdict(removed=(name,))
        self.restarts.append(now)
        if len([time for time in self.restarts if now - time <= self.period]) > self.intensity:
            self.dead = True
            self.children.remove(child)
            stopped = [one.name for one in self.children if one.state == "up"]
            stopped.reverse()
            return Verdict(stop=tuple(stopped), gives_up=True)
        if child.state == "up" and now - child.up_since >= self.reset_after:
            child.row = 0
        wait = self.first_wait
        for _ in range(child.row):
            wait *= 2
        child.row += 1
        return self.start_again(child, now, now + min(wait, self.longest_wait) * draw)

    def start_again(self, child: Child, now: float, due: float) -> Verdict:
        affected = [one for one in self.children if self.is_affected(one, child)]
        stopped: list[str] = []
        again, gone = [], []
        for one in affected:
            if one is not child and one.state == "up":
                stopped.insert(0, one.name)
                if now - one.up_since >= self.reset_after:
                    one.row = 0
            if one.restart == "temporary":
                gone.append(one.name)
                self.children.remove(one)
                continue
            again.append(one.name)
            if one.state == "up" or due > one.due:
                one.due = due
            one.state = "waiting"
        return Verdict(tuple(stopped), tuple(again), tuple(gone))

    def next_due(self) -> float | None:
        times = [child.due for child in self.children if child.state != "up"]
        if self.dead or not times:
            return None
        if self.strategy == "one_for_one":
            times.sort()
        return times[0]

    def due(self, now: float) -> str | None:
        for child in self.children:
            if self.dead or child.state == "up":
                continue
            if child.due <= now:
                child.state = "starting"
                return child.name
            if self.strategy != "one_for_one":
                return None
        return None


NAMES = st.sampled_from("abcd")
# Powers of two and their halves, so that sums are exact.
DRAWS = st.sampled_from([0.0, 0.5, 1.0, 1.0])


class RestartMachine(RuleBasedStateMachine):
    """Children come, end, are removed, are started again or do not come up, until the supervisor gives up and beyond."""

    @initialize(
        strategy=st.sampled_from(SupervisionStrategy),
        intensity=st.sampled_from([0, 1, 2, 100, 100]),
        period=st.sampled_from([0.5, 2, 8, 64]),
        first_wait=st.sampled_from([0, 0.5, 1]),
        reset_after=st.sampled_from([0.5, 1, 4]),
        family=st.lists(st.sampled_from(RestartType), min_size=1, max_size=4),
    )
    def begin(
        self,
        *,
        strategy: SupervisionStrategy,
        intensity: int,
        period: float,
        first_wait: float,
        reset_after: float,
        family: list[RestartType],
    ) -> None:
        self.now = 0.0
        self.subject = Supervision(strategy, intensity, period, Backoff(first_wait, 2, 4), reset_after)
        self.model = Model(str(strategy), intensity, period, first_wait, 4, reset_after)
        for name, restart in zip("abcd", family, strict=False):
            self.add(name, restart)

    @rule(name=NAMES, restart=st.sampled_from(RestartType))
    @precondition(lambda self: not self.model.dead)
    def add(self, name: str, restart: RestartType) -> None:
        if self.model.find(name) is None:
            self.subject.add(name, restart, self.now)
            self.model.children.append(Child(name, str(restart), self.now))

    @rule(name=NAMES)
    def remove(self, name: str) -> None:
        self.subject.remove(name)
        child = self.model.find(name)
        if child is not None:
            self.model.children.remove(child)

    @rule(name=NAMES, draw=DRAWS, crashed=st.sampled_from([True, True, False]))
    def end(self, name: str, draw: float, crashed: bool) -> None:
        expected = self.model.end(name, self.now, draw, crashed)
        assert expected == self.subject.ended(name, self.now, draw, crashed=crashed)

    @rule(step=st.sampled_from([0.25, 0.5, 1, 2, 8, 32]))
    def wait(self, step: float) -> None:
        self.now += step

    @rule(what=st.sampled_from(["due", "period", "reset_after"]))
    def wait_until(self, what: str) -> None:
        """Go to the very edge of something."""
        model = self.model
        due = model.next_due()
        times = {
            "due": [] if due is None else [due],
            "period": [time + model.period for time in model.restarts],
            "reset_after": [child.up_since + model.reset_after for child in model.children],
        }[what]
        self.now = min((time for time in times if time > self.now), default=self.now)

    @rule(draw=DRAWS, comes_up=st.sampled_from([True, True, False]))
    def start(self, draw: float, comes_up: bool) -> None:
        name = self.model.due(self.now)
        assert name == self.subject.due(self.now)
        if name is None:
            return
        if not comes_up:
            self.end(name, draw, True)
            return
        self.subject.started(name, self.now)
        child = self.model.find(name)
        assert child is not None
        child.state, child.up_since = "up", self.now

    @rule()
    def start_all(self) -> None:
        while self.model.due(self.now) is not None:
            self.start(0.5, True)

    @rule(name=NAMES, after=st.sampled_from([0, 0, 1]))
    def crash_and_recover(self, name: str, after: int) -> None:
        """All in one step: longer stories come together by chance."""
        self.now += after * self.model.reset_after
        self.end(name, 1.0, True)
        for _ in self.model.children:
            self.wait_until("due")
        self.start_all()

    @invariant()
    def they_agree(self) -> None:
        children = self.model.children
        assert tuple(child.name for child in children) == self.subject.in_order()
        assert len(children) == len(self.subject)
        for name in "abcd":
            child = self.model.find(name)
            assert (child is not None) == (name in self.subject)
            assert (child is not None and child.state == "up") == self.subject.is_up(name)
        assert self.model.dead == self.subject.has_given_up
        assert self.model.next_due() == self.subject.next_due()

    @invariant()
    def what_is_remembered_is_bounded(self) -> None:
        assert len(self.subject._restarts) <= self.model.intensity + 1


TestRestart = RestartMachine.TestCase
TestRestart.settings = settings(
    max_examples=int(os.environ.get("RESTART_EXAMPLES", "300")), stateful_step_count=40, deadline=None
)
