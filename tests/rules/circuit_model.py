"""A circuit, those who call through it, and what has to be true after each of their steps.

`World` does to a `Circuit` what tasks do to it, in whatever order it is told to, and keeps books of its own, as plain as
they can be: which calls the closed circuit has seen, how many probes have succeeded, until when it is open. After each
step the books must agree with the circuit, and whatever has happened before, a service that works again must be called
again in time. The tests of the machine, by chance and by enumeration, are made of it.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from agentcore import CircuitBreakerConfig, CircuitMode, CircuitState
from agentcore._rules.circuit import FREE, LOOSE, MAX_TYPES, Change, Circuit, Permit, Token
from agentcore._rules.windows import Window
from tests.rules.window_model import Memory

T = TypeVar("T")

CLOSED, OPEN, HALF_OPEN = CircuitState
OUTCOMES = ("ok", "slow", "fail", "slow fail", "timeout", "release")


class Owner:
    """A task, as far as a circuit knows it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


STRANGERS = [Owner(f"stranger {number}") for number in range(8)]
"""Callers whom a circuit has not seen before."""


class Dice:
    """A random source that gives what it was told to."""

    value = 0.5

    def __call__(self) -> float:
        return self.value


# Copies and pictures of a circuit.


@functools.cache
def names_of(cls: type) -> tuple[str, ...]:
    """Return the names of all slots of a class."""
    return tuple(name for base in cls.__mro__ for name in base.__dict__.get("__slots__", ()))


def twin(value: T) -> T:
    """Copy an object with slots, its lists and dictionaries as well."""
    copy: T = object.__new__(type(value))
    for name in names_of(type(value)):
        part = getattr(value, name)
        setattr(copy, name, part.copy() if isinstance(part, list | dict) else part)
    return copy


def fork(circuit: Circuit) -> tuple[Circuit, dict[Any, Any]]:
    """Copy a circuit, so that the copy can go another way; return what each of its tokens is in the copy as well."""
    copy = twin(circuit)
    twins: dict[Any, Any] = {one: twin(one) for one in (circuit._window, *circuit.permits)}
    copy._window = twins[circuit._window]
    copy._permits = tuple(twins[permit] for permit in circuit.permits)
    copy.closed = None if circuit.closed is None else twins[circuit.closed]
    copy.counters = twin(circuit.counters)
    return copy, twins


def picture(value: object) -> Any:
    """Return everything that an object with slots holds, in a form that can be compared."""
    if isinstance(value, Circuit | Window | Permit) or type(value).__name__ == "Counters":
        return {name: picture(getattr(value, name)) for name in names_of(type(value))}
    if isinstance(value, list | dict):
        return value.copy()
    if isinstance(value, tuple):
        return tuple(picture(one) for one in value)
    return value


# Everybody.


@dataclass
class Call:
    """A call that was let through and has not come back."""

    owner: Owner
    token: Token
    era: int


class Lease(NamedTuple):
    """A permit as it was before a step."""

    permit: Permit
    owner: object
    expires: float
    guarded: bool


class World:
    """A circuit with its callers and its clock.

    All times are multiples of a power of two, so that sums of them are exact.

    Args:
        config: of the circuit.
        owners: how many there are to call.

    Attributes:
        calls: those that run under the breaker, and by whom.
        held: what owners have got by asking by hand.
    """

    def __init__(self, config: CircuitBreakerConfig, owners: int = 2) -> None:
        self.config = config
        self.dice = Dice()
        self.circuit = Circuit(config, self.dice)
        self.now = 1000.0
        self.owners = [Owner("ABCDEF"[number]) for number in range(owners)]
        self.calls: list[Call] = []
        self.held: dict[Owner, Call] = {}
        self.went_back = False
        # The books.
        self.era = 0
        self.state = CLOSED
        self.mode = CircuitMode.NORMAL
        self.isolations = 0
        self.memory = Memory(config)
        self.proved = 0
        self.loose = False
        self.until = -math.inf
        self.reopenings = 0
        self.counted: Counter[str] = Counter()

    def fork(self) -> World:
        """Copy everything that changes."""
        copy = object.__new__(World)
        copy.__dict__.update(self.__dict__)
        copy.circuit, twins = fork(self.circuit)
        copy.calls = [Call(call.owner, twins.get(call.token, call.token), call.era) for call in self.calls]
        copy.held = {
            owner: Call(call.owner, twins.get(call.token, call.token), call.era) for owner, call in self.held.items()
        }
        copy.memory = Memory(self.config, self.memory.calls.copy(), self.memory.newest)
        copy.counted = self.counted.copy()
        return copy

    # Steps.

    def tick(self, seconds: float) -> None:
        """Let time pass; less than 0 sets the clock back."""
        self.now += seconds
        self.went_back |= seconds < 0

    def start(self, owner: Owner, *, active: bool = False) -> bool:
        """Begin a call under the breaker, within another one if the owner has one."""
        token = self._ask(owner, guarded=True, active=active)
        if token is not None:
            self.calls.append(Call(owner, token, self.era))
        return token is not None

    def ask(self, owner: Owner) -> bool:
        """Ask by hand whether a call may be made, as `allow_request` does."""
        token = self._ask(owner, guarded=False, active=False)
        if token not in {None, FREE}:
            self.held[owner] = Call(owner, token, self.era)
        return token is not None

    def finish(self, call: Call, outcome: str, *, error_type: str = "Boom", retry_after: float | None = None) -> None:
        """End a call under the breaker."""
        self.calls.remove(call)
        if outcome == "ok" and isinstance(call.token, Window) and self.now < call.token.turn:
            call.token.run += 1  # as the shell does, without the lock
            if call.era == self.era:
                self.memory.run()
                self.counted["successes"] += 1
            return
        self._report(call, outcome, error_type, retry_after)

    def report(self, owner: Owner, outcome: str, *, error_type: str = "Boom") -> None:
        """Report an outcome by hand, with a permit or without, as `on_success` and `on_failure` do."""
        call = self.held.pop(owner, None)
        if call is None:
            leases = self._leases()
            token = self.circuit.token_of(self.now, owner)
            self._follow_time(leases, must=self.mode is not CircuitMode.DISABLED)
            self._check_token_of(token, owner, leases)
            if token is None:
                return
            call = Call(owner, token, self.era)
        self._report(call, outcome, error_type, None)

    def lose(self, call: Call) -> None:
        """Have a call hang for ever."""
        self.calls.remove(call)

    def die(self, number: int) -> None:
        """Have an owner be gone, with all that he has begun, and another one in his place."""
        owner = self.owners[number]
        self.owners[number] = Owner(owner.name)
        self.calls = [call for call in self.calls if call.owner is not owner]
        self.held.pop(owner, None)

    def abandon(self, owner: Owner) -> None:
        """Have an owner never report what came of the call that it was let through for."""
        del self.held[owner]

    def poll(self) -> None:
        """Ask when a probe is due."""
        leases = self._leases()
        seconds = self.circuit.due_in(self.now)
        self._follow_time(leases, must=self._decides() and self.state is not CLOSED)
        if not self._decides() or self.state is CLOSED:
            assert seconds == math.inf
        else:
            copy, _ = fork(self.circuit)
            assert 0 <= seconds <= max(self.circuit.period, self.config.probe_timeout)
            token = copy.admit(self.now + seconds, STRANGERS[0], guarded=True, active=True)
            assert token is not None or self._others_probe(self.circuit), (
                "a prober came when it was due, and was rejected"
            )

    def set_mode(self, mode: CircuitMode) -> None:
        """Change the mode."""
        self.circuit.set_mode(mode)
        expected = () if mode is self.mode else (("circuit_mode_changed", {"mode": mode}),)
        assert expected == self.circuit.take_changes()
        if expected:
            self.mode = mode
            self._close()

    def isolate(self, change: int) -> None:
        """Isolate the circuit once more, or once less."""
        before = self.isolations > 0
        self.circuit.isolate(change)
        self.isolations += change
        after = self.isolations > 0
        expected = () if before is after else (("circuit_isolated", {"isolated": after}),)
        assert expected == self.circuit.take_changes()

    def reset(self) -> None:
        """Close the circuit by hand."""
        self.circuit.reset()
        changes = self.circuit.take_changes()
        assert (() if self.state is CLOSED else (("circuit_closed", {}),)) == changes
        self.counted["state_changes"] += len(changes)
        self._close()

    def prune(self) -> None:
        """Forget what can be forgotten."""
        assert self.circuit.prune(self.now) >= 0
        assert self.circuit.counters.failures_by_type == {}
        self.memory.turn_to(self.now)

    # What has to come of them.

    def _decides(self) -> bool:
        return self.mode is CircuitMode.NORMAL and not self.isolations

    def _leases(self) -> list[Lease]:
        return [Lease(one, one.owner(), one.expires, one.guarded) for one in self.circuit.permits]

    def _others_probe(self, circuit: Circuit) -> bool:
        """Tell whether the end of a lease may make no room: somebody is probing."""
        # Or more permits are out than are needed, because an outcome came without one.
        is_crowded = self.loose and len(circuit.permits) > self.config.success_threshold - self.proved
        return is_crowded or any(self._is_running(lease) and lease.expires > self.now for lease in self._leases())

    def _ask(self, owner: Owner, *, guarded: bool, active: bool) -> Token | None:
        leases, era = self._leases(), self.era
        token = self.circuit.admit(self.now, owner, guarded=guarded, active=active)
        self._follow_time(leases, must=self._decides())
        live = [lease for lease in leases if lease.expires > self.now] if self.era == era else []
        if self.isolations or self.mode is CircuitMode.FORCED_OPEN:
            assert token is None
        elif self.mode is CircuitMode.DISABLED:
            assert token is FREE
        elif self.state is CLOSED:
            assert token is self.circuit.closed is not None
        elif self.state is OPEN:
            assert token is None
            assert self.now < self.until or (self.circuit.probers and not active)
        else:
            self._check_half_open(token, owner, guarded, active, live)
        return token

    def _check_half_open(self, token: Any, owner: Owner, guarded: bool, active: bool, live: Sequence[Lease]) -> None:
        permits = [lease.permit for lease in live]
        mine = next((lease for lease in live if lease.owner is owner), None)
        until = self.now + self.config.probe_timeout
        if mine is not None:
            assert token is (FREE if mine.guarded else mine.permit)
            taken_over = guarded and not mine.guarded
            assert (guarded or mine.guarded) == mine.permit.guarded
            assert (until if taken_over else min(mine.expires, until)) == mine.permit.expires
        elif token is None:
            room = self.config.success_threshold - self.proved - len(live)
            assert room <= 0 or (self.circuit.probers and not active), "rejected although a permit is free"
        else:
            assert len(live) < self.config.success_threshold - self.proved, "more permits than successes are needed"
            assert isinstance(token, Permit)
            assert token not in permits
            assert (owner, until, guarded) == (token.owner(), token.expires, token.guarded)
            permits.append(token)
        assert permits == list(self.circuit.permits)

    def _check_token_of(self, token: Token | None, owner: Owner, leases: Sequence[Lease]) -> None:
        if self.mode is CircuitMode.DISABLED:
            assert token is FREE
        elif self.mode is CircuitMode.FORCED_OPEN:
            pass  # whatever it is, it must not change the state
        elif self.state is CLOSED:
            assert isinstance(token, Window)
        elif self.state is OPEN:
            assert token is None
        else:
            live = [lease for lease in leases if lease.expires > self.now and lease.owner is owner]
            assert token is ((FREE if live[0].guarded else live[0].permit) if live else LOOSE)

    def _report(self, call: Call, outcome: str, error_type: str, retry_after: float | None) -> None:
        circuit, token = self.circuit, call.token
        leases = self._leases()
        is_permit = isinstance(token, Permit)
        counts = call.era == self.era and token is not FREE and (not is_permit or token in circuit.permits)
        before = None if counts and self.mode is not CircuitMode.FORCED_OPEN else picture(circuit)
        slow = "slow" in outcome
        if outcome in {"ok", "slow"}:
            counted = circuit.succeed(token, self.now, slow=slow)
        elif outcome == "release":
            counted = circuit.release(token, self.now)
        else:
            is_timeout = outcome == "timeout"
            counted = circuit.fail(token, self.now, error_type, timeout=is_timeout, slow=slow, retry_after=retry_after)
        if self._is_ended_by_another(token, leases):
            return
        if self.mode is CircuitMode.FORCED_OPEN:
            self._check_forced_open(before)
            return
        if not counts:
            assert not counted
            assert before == picture(circuit), "an outcome of another era has changed something"
        elif isinstance(token, Window):
            assert counted
            self._count_closed(outcome, slow, retry_after)
        else:
            late = any(lease.permit is token and self._is_hung(lease) for lease in leases)
            assert counted is not (late and outcome == "release")
            self._count_half_open(token, outcome, slow, retry_after, leases)

    def _is_ended_by_another(self, token: Token, leases: Sequence[Lease]) -> bool:
        """Tell whether another probe was found to have hung before this outcome came; both views of that are right."""
        hung = [lease for lease in leases if self._is_hung(lease)]
        others = [lease for lease in hung if lease.permit is not token]
        if not others or "a probe took longer" not in str(self.circuit._changes):
            return False
        if self.circuit._until - self.circuit.period != min(lease.expires for lease in hung):
            return False
        self._follow_time(leases, must=True)
        return True

    def _is_running(self, lease: Lease) -> bool:
        # What has become of the call of an owner who is gone, nobody will ever know.
        return lease.guarded and lease.owner is not None

    def _is_hung(self, lease: Lease) -> bool:
        return self._is_running(lease) and lease.expires <= self.now

    def _check_forced_open(self, before: Any) -> None:
        assert not self.circuit.take_changes(), "nobody decides, and yet the state has changed"
        after = self.circuit.counters
        self.counted.update(
            {name: getattr(after, name) - before["counters"][name] for name in ("failures", "timeouts", "slow")},
            successes=self.circuit.successes - self.counted["successes"],
        )

    def _count_closed(self, outcome: str, slow: bool, retry_after: float | None) -> None:
        failed = outcome not in {"ok", "slow", "release"}
        self.counted.update(failures=failed, timeouts=outcome == "timeout", slow=slow)
        self.counted["successes"] += outcome in {"ok", "slow"}
        changes = self.circuit.take_changes()
        if outcome == "release" or not self.memory.note(self.now, failed=failed, slow=slow):
            assert changes == ()
        elif self.mode is CircuitMode.METRICS_ONLY:
            assert [("circuit_would_open", ["reason"])] == [(name, list(data)) for name, data in changes]
            self._close()
        else:
            self.reopenings = -1
            self._open(changes, self.now, retry_after if failed else None)

    def _count_half_open(
        self, token: Token, outcome: str, slow: bool, retry_after: float | None, leases: Sequence[Lease]
    ) -> None:
        changes = self.circuit.take_changes()
        expires = token.expires if isinstance(token, Permit) else math.inf
        is_late = isinstance(token, Permit) and token.guarded and expires <= self.now
        if outcome in {"fail", "slow fail", "timeout"}:
            self.counted.update(failures=1, timeouts=outcome == "timeout", slow=slow)
            self._open(changes, min(self.now, expires), retry_after)
        elif is_late:
            self.counted.update(failures=1, timeouts=1)
            self._open(changes, expires, None)
        elif outcome == "slow":
            self.counted.update(successes=1, slow=1)
            self._open(changes, self.now, None)
        elif outcome == "ok":
            self.counted["successes"] += 1
            self.proved += 1
            self.loose |= token is LOOSE
            self._check_proved(changes, token, leases)
        else:
            assert changes == ()
            assert [one.permit for one in leases if one.permit is not token] == list(self.circuit.permits)

    def _check_proved(self, changes: tuple[Change, ...], token: Token, leases: Sequence[Lease]) -> None:
        if self.proved < self.config.success_threshold:
            assert changes == ()
            assert [one.permit for one in leases if one.permit is not token] == list(self.circuit.permits)
        else:
            assert changes == (("circuit_closed", {}),)
            self.counted["state_changes"] += 1
            self._close()

    def _follow_time(self, leases: Sequence[Lease], *, must: bool) -> None:
        """Follow what time alone has brought about; it must have been looked at, unless nobody had to ask for it."""
        changes = self.circuit.take_changes()
        hung = [lease.expires for lease in leases if self._is_hung(lease)]
        if changes and changes[0][0] == "circuit_opened":
            assert self.state is HALF_OPEN
            assert hung
            self.counted.update(failures=1, timeouts=1)
            self._open(changes[:1], min(hung), None)
            changes = changes[1:]
        else:
            assert not (must and hung), "a probe outlives its lease, and nobody cares"
        if self.state is OPEN and must:
            self.until = min(self.until, self.now + self.circuit.period)
        if changes:
            assert (("circuit_half_opened", {}),) == changes
            assert self.state is OPEN
            assert self.now >= self.until
            self.counted["state_changes"] += 1
            self.state, self.proved, self.loose = HALF_OPEN, 0, False
            self.era += 1

    def _open(self, changes: tuple[Change, ...], at: float, retry_after: float | None) -> None:
        """Open the books: the circuit must just have told that it is open, and for how long."""
        assert len(changes) == 1
        name, data = changes[0]
        assert name == "circuit_opened"
        self.reopenings += 1
        assert self.reopenings == data["reopenings"]
        assert self.circuit.period == data["retry_after"] == self._expected_period(retry_after)
        self.until = at + self.circuit.period
        self.counted.update(opened=1, state_changes=1)
        self.state = OPEN
        self.era += 1

    def _expected_period(self, retry_after: float | None) -> float:
        config = self.config
        try:
            period = config.reset_timeout * config.backoff**self.reopenings
        except OverflowError:
            period = math.inf
        period *= 1 + config.jitter * (2 * self.dice.value - 1)
        return min(max(period, retry_after or 0.0), config.max_reset_timeout)

    def _close(self) -> None:
        self.state = CLOSED
        self.memory = Memory(self.config)
        self.reopenings = 0
        self.era += 1

    # What has to be true at any time.

    def check(self) -> None:
        """Assert everything that has to be true after each step."""
        circuit = self.circuit
        is_open = self.mode is CircuitMode.FORCED_OPEN or self.isolations > 0
        assert (OPEN if is_open else self.state) is circuit.state
        assert (self.mode, ()) == (circuit.mode, circuit._changes)
        self.check_permits()
        self.check_counters()
        self.check_published()
        self.check_retry_after()
        self.check_liveness()

    def check_permits(self) -> None:
        """Never more live permits than there are successes to come; one that is given back late does not take one away."""
        live = [permit for permit in self.circuit.permits if permit.expires > self.now]
        needed = self.config.success_threshold - (0 if self.loose else self.proved)
        assert len(live) <= needed if self.state is HALF_OPEN else not self.circuit.permits

    def check_counters(self) -> None:
        """Nothing is counted twice, or lost, and memory is bounded."""
        counters = self.circuit.counters
        names = ("failures", "timeouts", "slow", "opened", "state_changes")
        expected = {name: self.counted[name] for name in (*names, "successes")}
        actual = {name: getattr(counters, name) for name in names} | {"successes": self.circuit.successes}
        assert expected == actual
        assert len(counters.failures_by_type) <= MAX_TYPES + 1
        assert all(number > 0 for number in counters.failures_by_type.values())
        assert sum(counters.failures_by_type.values()) <= counters.failures

    def check_published(self) -> None:
        """What callers read without the lock is what the machine would tell them."""
        circuit = self.circuit
        is_counting = not self.isolations and self.mode in {CircuitMode.NORMAL, CircuitMode.METRICS_ONLY}
        assert (circuit.closed is not None) == (is_counting and self.state is CLOSED)
        assert (self.until if self._decides() and self.state is OPEN else -math.inf) == circuit.until
        assert (circuit.period > 0) == (self.counted["opened"] > 0)
        assert circuit.period <= self.config.max_reset_timeout
        if 0 < circuit.until - self.now <= circuit.period:
            copy, _ = fork(circuit)
            assert copy.admit(self.now, STRANGERS[0], guarded=True) is None, "rejected without the lock, not with it"

    def check_retry_after(self) -> None:
        """Who waits for as long as he is told to is let through, unless somebody else has the permits."""
        copy, _ = fork(self.circuit)
        seconds = copy.retry_after(self.now)
        if self.isolations or self.mode is CircuitMode.FORCED_OPEN:
            assert seconds is None
            return
        assert seconds is not None
        assert 0 <= seconds < math.inf
        now, _ = fork(self.circuit)
        is_admitted = now.admit(self.now, STRANGERS[0], guarded=True) is not None
        assert is_admitted == (seconds == 0), "0 means now"
        if self.state is not HALF_OPEN or not self._others_probe(copy):
            assert copy.admit(self.now + seconds, STRANGERS[0], guarded=True) is not None

    def check_liveness(self) -> None:
        """Whatever has happened: if the service works from now on, it is called in time, and the circuit closes."""
        if self.isolations or self.mode is CircuitMode.FORCED_OPEN:
            return
        # A clock that was set back shows that to who asks. If it never was, nobody has to ask in between.
        for is_asked in (True,) if self.went_back else (True, False):
            circuit, _ = fork(self.circuit)
            if is_asked:
                token = circuit.admit(self.now, STRANGERS[0], guarded=True)
                if token is not None:
                    circuit.succeed(token, self.now)
            now = self.now + self.config.max_reset_timeout + self.config.probe_timeout
            for number in range(self.config.success_threshold):
                # A prober that is there goes on; the first one to be called may be anybody.
                active = number > 0 and circuit.probers > 0
                token = circuit.admit(now, STRANGERS[number], guarded=True, active=active)
                assert token is not None, "called too late, or never"
                if circuit.state is CLOSED:
                    break
                assert circuit.succeed(token, now)
            assert circuit.state is CLOSED
