"""The circuit under everything that can happen to it, by chance: whatever came before, it stays safe and alive.

What has to be true after each step stands in `circuit_model`. A longer search, after a change of the rules::

    CIRCUIT_EXAMPLES=5000 pytest tests/rules/test_circuit_machine.py
"""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from agentcore import CircuitBreakerConfig, CircuitMode
from tests.rules.circuit_model import CLOSED, HALF_OPEN, OPEN, OUTCOMES, Call, World

pytestmark = pytest.mark.thorough

WINDOWS = st.one_of(
    st.just({}),
    st.fixed_dictionaries({"window_calls": st.integers(3, 6)}),
    st.fixed_dictionaries({"window_ms": st.sampled_from([10_000, 40_000])}),
)
RATES = st.fixed_dictionaries(
    {"minimum_calls": st.integers(1, 3)},
    optional={
        "failure_rate": st.sampled_from([0.25, 0.5, 1]),
        "slow_call_rate": st.sampled_from([0.5, 1]),
    },
)


@st.composite
def configs(draw: st.DrawFn) -> CircuitBreakerConfig:
    """Draw a configuration whose times are powers of two, so that sums of them are exact."""
    settings: dict[str, Any] = {
        "failure_threshold": draw(st.integers(1, 3)),
        "success_threshold": draw(st.integers(1, 3)),
        "reset_timeout_ms": draw(st.sampled_from([1000, 8000])),
        "probe_timeout_ms": draw(st.sampled_from([None, 2000, 16_000])),
        "backoff": draw(st.sampled_from([1, 1.5, 2, 1000])),
        "max_reset_timeout_ms": draw(st.sampled_from([None, 8000, 64_000])),
        "jitter": draw(st.sampled_from([0, 0.5])),
        "slow_call_ms": 1000,
    }
    window = draw(WINDOWS)
    return CircuitBreakerConfig(**settings, **window, **(draw(RATES) if window else {}))


# How far the clock goes: a little, by the periods of the circuit, or far; and back.
STEPS = st.sampled_from(
    ["0", "0.25", "0.25", "1", "period", "lease", "until", "expires", "cap", "100", "-0.25", "-4", "-1000"]
)
WHO = st.integers(0, 2)
WHICH = st.integers(0, 20)


class CircuitMachine(RuleBasedStateMachine):
    """Three owners call, hang, report and forget; a prober comes and goes; the clock does what clocks do."""

    @initialize(config=configs())
    def begin(self, config: CircuitBreakerConfig) -> None:
        self.world = World(config, owners=3)

    # What callers do.

    @rule(who=WHO)
    def start(self, who: int) -> None:
        self.world.start(self.world.owners[who])

    @rule(who=WHO)
    def ask(self, who: int) -> None:
        self.world.ask(self.world.owners[who])

    @rule(which=WHICH, by_hand=st.booleans())
    def nest(self, which: int, by_hand: bool) -> None:
        if call := self.call(which):
            begin = self.world.ask if by_hand else self.world.start
            begin(call.owner)

    @rule(
        which=WHICH,
        outcome=st.sampled_from(OUTCOMES),
        number=st.integers(0, 50),
        retry_after=st.sampled_from([None, None, 0.5, 3.0, 1e9]),
    )
    def finish(self, which: int, outcome: str, number: int, retry_after: float | None) -> None:
        if call := self.call(which):
            self.world.finish(call, outcome, error_type=f"Boom{number}", retry_after=retry_after)

    @rule(which=WHICH)
    def succeed(self, which: int) -> None:
        """Have what is most common be more common than the rest."""
        if call := self.call(which):
            self.world.finish(call, "ok")

    @rule(which=WHICH, error_type=st.sampled_from([None, "SystemExit"]))
    def raise_base_exception(self, which: int, error_type: str | None) -> None:
        """Have a call end with what is no Exception: an interrupt says nothing, SystemExit is a failure."""
        if call := self.call(which):
            self.world.finish(call, "fail" if error_type else "release", error_type=str(error_type))

    @rule(which=WHICH)
    def hang(self, which: int) -> None:
        if call := self.call(which):
            self.world.lose(call)

    @rule(who=WHO)
    def die(self, who: int) -> None:
        self.world.die(who)

    @rule(which=WHICH)
    def abandon(self, which: int) -> None:
        if held := list(self.world.held):
            self.world.abandon(held[which % len(held)])

    @rule(who=WHO, outcome=st.sampled_from(["ok", "fail", "release"]))
    def report(self, who: int, outcome: str) -> None:
        self.world.report(self.world.owners[who], outcome)

    def call(self, which: int) -> Call | None:
        """Return one of the calls that are under way."""
        calls = self.world.calls
        return calls[which % len(calls)] if calls else None

    # What a prober does.

    @rule(change=st.sampled_from([1, -1]))
    def change_probers(self, change: int) -> None:
        self.world.circuit.probers = max(0, self.world.circuit.probers + change)

    @rule()
    def poll(self) -> None:
        self.world.poll()

    @rule(who=WHO)
    def probe(self, who: int) -> None:
        if self.world.circuit.probers:
            self.world.start(self.world.owners[who], active=True)

    # What is delicate, and does not come about often by single steps.

    @rule(who=WHO, outcome=st.sampled_from(OUTCOMES), step=STEPS)
    def make_probe(self, who: int, outcome: str, step: str) -> None:
        """Have the circuit open and its time be over, and make a call, which takes a while."""
        self.come_due(who)
        owner = self.world.owners[who]
        if self.world.start(owner):
            self.tick(step)
            latest = [call for call in self.world.calls if call.owner is owner][-1]
            self.world.finish(latest, outcome)

    @rule(by_hand=st.lists(st.booleans(), min_size=3, max_size=3), steps=st.lists(STEPS, min_size=3, max_size=3))
    def start_all(self, by_hand: list[bool], steps: list[str]) -> None:
        """Have everybody call, one after the other, at the time when only some may."""
        self.come_due(0)
        for owner, asks, step in zip(self.world.owners, by_hand, steps, strict=True):
            begin = self.world.ask if asks else self.world.start
            begin(owner)
            self.tick(step)

    # What time does.

    @rule(who=WHO)
    def come_due(self, who: int) -> None:
        """Have the circuit open, and its time be over: what is delicate begins there."""
        world = self.world
        for _ in range(10 if world.state is CLOSED else 0):
            world.report(world.owners[who], "fail")
        if world.state is OPEN:
            world.tick(max(0.0, world.until - world.now))

    @rule(step=STEPS)
    def tick(self, step: str) -> None:
        world, config = self.world, self.world.config
        permits = world.circuit.permits
        seconds = {
            "period": world.circuit.period,
            "lease": config.probe_timeout,
            "until": max(0.0, world.until - world.now) if world.state is OPEN else 0.0,
            "expires": max(0.0, min((permit.expires for permit in permits), default=world.now) - world.now),
            "cap": config.max_reset_timeout,
        }
        world.tick(seconds[step] if step in seconds else float(step))

    @rule(value=st.sampled_from([0.0, 0.25, 0.5, 0.984375]))
    def throw_dice(self, value: float) -> None:
        if self.world.state is not HALF_OPEN:  # or a probe that has hung would seem to have seen other dice
            self.world.dice.value = value

    @invariant()
    def everything_holds(self) -> None:
        self.world.check()


class ManagedCircuitMachine(CircuitMachine):
    """The same, with somebody who has a hand in it."""

    @rule(mode=st.sampled_from(CircuitMode))
    def set_mode(self, mode: CircuitMode) -> None:
        self.world.set_mode(mode)

    @rule()
    def return_to_normal(self) -> None:
        self.world.set_mode(CircuitMode.NORMAL)

    @rule()
    def isolate(self) -> None:
        self.world.isolate(+1)

    @rule()
    def join(self) -> None:
        if self.world.isolations:
            self.world.isolate(-1)

    @rule()
    def reset(self) -> None:
        self.world.reset()

    @rule()
    def prune(self) -> None:
        self.world.prune()


EXAMPLES = int(os.environ.get("CIRCUIT_EXAMPLES", "250"))

TestCircuit = CircuitMachine.TestCase
TestCircuit.settings = settings(max_examples=EXAMPLES, stateful_step_count=50, deadline=None)
TestManagedCircuit = ManagedCircuitMachine.TestCase
TestManagedCircuit.settings = settings(max_examples=EXAMPLES, stateful_step_count=50, deadline=None)
