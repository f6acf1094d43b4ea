"""The circuit under every sequence of a few steps, all of them: what chance may miss has no place to hide in here.

Two owners start calls, nest them, end them in every way or not at all, ask and report by hand, forget what they asked for,
while time goes on and back. After each step stands what `circuit_model` asserts, liveness included. Sequences that lead to
the same state go on together, so that there are thousands of states to look at instead of a hundred million sequences.

Six steps take some seconds; eight take a minute or two::

    CIRCUIT_DEPTH=8 pytest tests/rules/test_circuit_enumeration.py
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterator
from typing import Any, NamedTuple

import pytest

from agentcore import CircuitBreakerConfig
from agentcore._rules.circuit import Circuit, Permit
from agentcore._rules.windows import Consecutive, CountWindow, Window
from tests.rules.circuit_model import CLOSED, HALF_OPEN, OPEN, Call, Owner, World, names_of

pytestmark = pytest.mark.thorough

DEPTH = max(6, int(os.environ.get("CIRCUIT_DEPTH", "6")))
NESTED = 2
"""How many calls an owner makes within each other."""
TICKS = (1.0, 2.0, 4.0, -8.0)
"""The open period is 2 s at first, then 4 s and 8 s; a lease 4 s."""

Step = Callable[[World], object]


def steps(world: World) -> Iterator[tuple[str, Step]]:
    """Yield everything that can happen next, as functions of a world."""
    for seconds in TICKS:
        yield f"tick {seconds:g}", lambda world, seconds=seconds: world.tick(seconds)
    if world.circuit.probers:
        yield "active probe", lambda world: world.start(world.owners[0], active=True)
    for owner in world.owners:
        yield from steps_of(world, owner)


def steps_of(world: World, owner: Owner) -> Iterator[tuple[str, Step]]:
    """Yield everything that an owner can do next."""
    running = sum(call.owner is owner for call in world.calls)
    if running < NESTED:
        yield f"{owner} starts", lambda world: world.start(owner)
    yield f"{owner} asks", lambda world: world.ask(owner)
    if running:
        # A deadline that has passed is a failure with a name of its own; what is cancelled or interrupted is released.
        for outcome in ("ok", "slow", "fail", "timeout", "release"):
            yield f"{owner}: {outcome}", lambda world, outcome=outcome: world.finish(latest(world, owner), outcome)
        yield f"{owner} hangs", lambda world: world.lose(latest(world, owner))
    for outcome in ("ok", "fail", "release"):
        yield f"{owner} reports {outcome}", lambda world, outcome=outcome: world.report(owner, outcome)
    if owner in world.held:
        yield f"{owner} abandons", lambda world: world.abandon(owner)


def latest(world: World, owner: Owner) -> Call:
    """Return the innermost call of an owner."""
    return next(call for call in reversed(world.calls) if call.owner is owner)


# Which states are the same: those that nothing that comes later can tell apart. Whatever a circuit holds is looked at,
# but for what is named here.

NEVER_READ = {"config", "_config", "counters", "last_error", "_random", "_changes", "successes"}
MOMENTS = {"_until", "until", "_reserved_until"}
IN_THE_KEY_BY_ITSELF = {"_window", "closed", "_permits", "run"}
NOT_WHILE_CLOSED = {"period", "_reopenings"}  # the reopenings of a closed circuit are none, those of an open one add up
ONLY_WHILE_HALF_OPEN = {"_successes"}


def key(world: World) -> Hashable:
    """Return what the future of a world depends on. Moments count from now, and owners have no names."""
    circuit, now = world.circuit, world.now
    without = NEVER_READ | IN_THE_KEY_BY_ITSELF
    if world.state is CLOSED:
        without |= NOT_WHILE_CLOSED
    if world.state is not HALF_OPEN:
        without |= ONLY_WHILE_HALF_OPEN
    if not circuit.probers or world.state is CLOSED:
        without |= {"_reserved_until"}
    held = [(getattr(circuit, name) - now if name in MOMENTS else getattr(circuit, name)) for name in CIRCUIT - without]
    return (
        tuple(held),
        (world.state, world.went_back, circuit.closed is None),
        (world.proved, world.loose) if world.state is HALF_OPEN else (),
        (world.until - now) if world.state is OPEN else None,
        world.reopenings if world.state is not CLOSED else None,
        key_of_window(circuit._window, world) if world.state is CLOSED else (),
        tuple(sorted(key_of_owner(world, owner) for owner in world.owners)),
    )


CIRCUIT = set(Circuit.__slots__)


def key_of_window(window: Window, world: World) -> Hashable:
    # A run that is longer than what is looked at is like one that is as long.
    run = min(window.run, world.config.window_calls or 1)
    without = NEVER_READ | IN_THE_KEY_BY_ITSELF
    return run, *(getattr(window, name) for name in names_of(type(window)) if name not in without), *world.memory.calls


def key_of_owner(world: World, owner: Owner) -> tuple[Any, ...]:
    permits = [permit for permit in world.circuit.permits if permit.owner() is owner]
    held = world.held.get(owner)
    return (
        tuple(sorted((permit.expires - world.now, permit.guarded) for permit in permits)),
        tuple(standing(world, call.token, call.era) for call in world.calls if call.owner is owner),
        () if held is None else standing(world, held.token, held.era),
    )


def standing(world: World, token: Any, era: int) -> tuple[bool, bool, bool]:
    """Return what a token can still bring about."""
    is_permit = isinstance(token, Permit) and token in world.circuit.permits
    is_window = token is world.circuit._window
    return is_permit, is_window, (is_permit or is_window) and era == world.era


def test_the_key_of_a_state_names_what_there_is() -> None:
    """What is left out of a key exists, and a permit has nothing that is not in it."""
    names = {name for value in (Circuit, *Circuit.__mro__, CountWindow, Consecutive) for name in dir(value)}
    assert (NEVER_READ | MOMENTS | NOT_WHILE_CLOSED | ONLY_WHILE_HALF_OPEN | IN_THE_KEY_BY_ITSELF) - names <= {
        "_config"
    }
    assert set(Permit.__slots__) == {"owner", "expires", "guarded"}


# The search.


def settings(**changed: Any) -> CircuitBreakerConfig:
    return CircuitBreakerConfig(
        **{"reset_timeout_ms": 2000, "probe_timeout_ms": 4000, "backoff": 2, "max_reset_timeout_ms": 8000, **changed}
    )


class Path(NamedTuple):
    """A way to a state; the first one that was found."""

    world: World
    steps: tuple[str, ...]
    number: int = 1
    """How many ways of this length there are."""


def explore(world: World, depth: int, *, merging: bool = True) -> tuple[list[int], set[Hashable]]:
    """Go through all sequences of steps, and check the world after each.

    Returns:
        How many sequences there are of each length, and the states that they lead to.
    """
    level: dict[Hashable, Path] = {key(world): Path(world, ())}
    seen: set[Hashable] = set()
    numbers = []
    for _ in range(depth):
        following: dict[Hashable, Path] = {}
        for path in level.values():
            for name, step in steps(path.world):
                reached = take(path, name, step)
                state = key(reached.world)
                if state not in seen:
                    seen.add(state)
                    check(reached)
                place = state if merging else reached.steps
                known = following.get(place)
                following[place] = reached if known is None else known._replace(number=known.number + reached.number)
        level = following
        numbers.append(sum(path.number for path in level.values()))
    return numbers, seen


def take(path: Path, name: str, step: Step) -> Path:
    """Go on by a step, in a copy of the world."""
    reached = Path(path.world.fork(), (*path.steps, name), path.number)
    try:
        step(reached.world)
    except Exception as error:
        error.add_note(" → ".join(reached.steps))
        raise
    return reached


def check(path: Path) -> None:
    """Check a world; if it is not as it should be, say how it came about."""
    try:
        path.world.check()
    except AssertionError as error:
        error.add_note(" → ".join(path.steps))
        raise


def begin_world(*, due: bool = False, probers: int = 0, **changed: Any) -> World:
    """Make a world to begin with; one that is due is open, and its period has just ended."""
    world = World(settings(**changed))
    world.circuit.probers = probers
    if due:
        world.report(world.owners[0], "fail")
        world.tick(world.circuit.period)
    return world


@pytest.mark.parametrize(
    ("sequences", "changed"),
    [
        (14_000_000, {"failure_threshold": 1, "success_threshold": 1}),
        (15_000_000, {"failure_threshold": 2, "success_threshold": 1}),
        (14_000_000, {"failure_threshold": 1, "success_threshold": 2}),
        (15_000_000, {"failure_threshold": 2, "success_threshold": 2}),
        (15_000_000, {"failure_threshold": 2, "success_threshold": 2, "window_calls": 3}),
        (23_000_000, {"failure_threshold": 1, "success_threshold": 2, "probers": 1}),
    ],
)
def test_every_sequence_of_six_steps(sequences: int, changed: dict[str, Any]) -> None:
    """Whatever happens to a closed circuit: it stays safe and alive. At least so many sequences are looked at."""
    numbers, states = explore(begin_world(**changed), DEPTH)
    assert numbers[5] >= sequences
    assert len(states) > 500


@pytest.mark.parametrize(
    ("sequences", "changed"),
    [
        (870_000, {"success_threshold": 2}),
        (870_000, {"success_threshold": 3}),
        (960_000, {"success_threshold": 1, "probers": 1}),
        (960_000, {"success_threshold": 2, "probers": 1}),
    ],
)
def test_every_sequence_of_five_steps_from_where_it_matters(sequences: int, changed: dict[str, Any]) -> None:
    """The same for a circuit that has opened and is due: with the two steps that lead there, seven in all."""
    numbers, states = explore(begin_world(due=True, failure_threshold=1, **changed), DEPTH - 1)
    assert numbers[4] >= sequences
    assert len(states) > 1000


@pytest.mark.parametrize("due", [False, True])
def test_to_go_on_together_loses_nothing(due: bool) -> None:
    """Sequences that are all gone through by themselves lead to the same states, and are as many."""
    world = begin_world(due=due, failure_threshold=2 - due, success_threshold=2)
    together, apart = explore(world, 3), explore(world, 3, merging=False)
    assert apart == together
