"""A circuit breaker as a machine: who may call, and what the outcomes of the calls lead to.

                     failures, slow calls: the window says so
        CLOSED ───────────────────────────────────────────────▶ OPEN ◀───────────────┐
          ▲                                                       │                  │ a probe fails,
          │ `success_threshold` probes succeed                    │ the open period  │ is slow,
          │                                                       ▼ is over, a call  │ or outlives its lease
          └─────────────────────────────────────────────────  HALF_OPEN ─────────────┘

Two things make it safe and alive.

**Admission is an era.** Whoever is let through gets a token: the window of the CLOSED era that he calls in, or a permit of
the HALF_OPEN one. Outcomes are reported with it, and a token that the machine does not know any more changes nothing. So
there is no number to compare and to forget, and the calls of one era cannot count in another.

**A permit is a lease.** It ends by the outcome of the call, or by time: a probe that outlives its lease has failed, a
permit that was handed out by hand and never came back is handed out again. So whatever happened, a call is let through
within the longest open period and one lease from now.

Nothing happens by itself: what time has brought about is worked in at the next call, dated back to when it was due. The
clock is an argument; one that has been exchanged for another, so that something would be due later than it ever could be,
is taken as having been set back. Nothing in here waits or locks: the shell holds its lock around each call, and reads the
three attributes that are marked so without it.
"""

from __future__ import annotations

import enum
import math
import weakref
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias, final

from agentcore._rules.circuit_config import CircuitBreakerConfig
from agentcore._rules.windows import Window, window_of

MAX_TYPES: Final = 32
"""How many types of errors are counted each by itself."""
OTHER_TYPES: Final = "other"
_LONGEST_NAME: Final = 80
_LONGEST_TEXT: Final = 200
_NEVER: Final = -math.inf  # one object: there may be a breaker for each of a million keys
_LARGEST_EXPONENT: Final = 700.0  # of e; floats end at 709


class CircuitState(enum.StrEnum):
    """What a circuit breaker does with calls."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class CircuitMode(enum.StrEnum):
    """Who decides about the state."""

    NORMAL = "normal"
    """The outcomes of the calls."""
    FORCED_OPEN = "forced_open"
    """Nobody: no call is let through."""
    DISABLED = "disabled"
    """Nobody: every call is let through, and nothing is counted."""
    METRICS_ONLY = "metrics_only"
    """Nobody: every call is let through, and what would have opened the circuit is told by an event."""


@final
class Permit:
    """The right to make one call while the circuit is half open.

    Attributes:
        owner: gives the task that has it, None once that is gone.
        expires: when the lease ends, on the circuit's clock.
        guarded: whether the call is known to run. If so, it has failed when the lease ends; else nobody knows.
    """

    __slots__ = ("expires", "guarded", "owner")

    def __init__(self, owner: weakref.ref[object], expires: float, guarded: bool) -> None:
        self.owner = owner
        self.expires = expires
        self.guarded = guarded


class _Free(enum.Enum):
    FREE = "free"
    LOOSE = "loose"


FREE: Final = _Free.FREE
"""The token of a call whose outcome says nothing: it is a part of another one, or nobody counts."""
LOOSE: Final = _Free.LOOSE
"""The token of an outcome that is reported without a permit: it counts in the HALF_OPEN era of the moment."""

Token: TypeAlias = Window | Permit | _Free
Change: TypeAlias = tuple[str, Mapping[str, Any]]


@final
class Counters:
    """What a circuit has seen since it was made. Bounded: a service may invent error types for ever."""

    __slots__ = (
        "canceled",
        "excluded",
        "failures",
        "failures_by_type",
        "opened",
        "rejected",
        "slow",
        "state_changes",
        "successes",
        "timeouts",
    )

    def __init__(self) -> None:
        self.successes = 0  # without those of the window that is in use
        self.failures = 0
        self.failures_by_type: dict[str, int] = {}
        self.timeouts = 0
        self.slow = 0
        self.excluded = 0
        self.canceled = 0
        self.rejected = 0
        self.opened = 0
        self.state_changes = 0

    def count_failure(self, error_type: str, *, timeout: bool) -> None:
        types = self.failures_by_type
        name = error_type[:_LONGEST_NAME]
        if name not in types and len(types) >= MAX_TYPES:
            name = OTHER_TYPES
        types[name] = types.get(name, 0) + 1
        self.failures += 1
        self.timeouts += timeout


@final
class Circuit:
    """The machine.

    Args:
        config: how it behaves.
        random: gives a number from 0 up to 1, for the jitter.

    Attributes:
        closed: the window for a call that may go ahead with nothing else to be asked, None if there is more to ask. Read
            without the lock.
        until: until when every call is rejected, on the circuit's clock; minus infinity if there is more to ask. Read
            without the lock.
        period: seconds of the open period, the present or the last one; 0 before. Read without the lock.
        counters: what it has seen.
        last_error: what opened it, as text.
        probers: how many are there to probe it when it is due, so that no other call has to.
    """

    __slots__ = (
        "_changes",
        "_isolations",
        "_mode",
        "_permits",
        "_random",
        "_reopenings",
        "_reserved_until",
        "_state",
        "_successes",
        "_until",
        "_window",
        "closed",
        "config",
        "counters",
        "last_error",
        "period",
        "probers",
        "until",
    )

    def __init__(self, config: CircuitBreakerConfig, random: Callable[[], float]) -> None:
        self.config = config
        self._random = random
        self._mode = CircuitMode.NORMAL
        self._state = CircuitState.CLOSED
        self._window = window_of(config)
        self._permits: tuple[Permit, ...] = ()
        self._successes = 0
        self._reopenings = 0
        self._isolations = 0
        self._reserved_until = _NEVER
        self._changes: tuple[Change, ...] = ()
        self.closed: Window | None = self._window
        self.until = self._until = _NEVER
        self.period = 0.0
        self.counters = Counters()
        self.last_error: str | None = None
        self.probers = 0

    # What can be asked.

    @property
    def state(self) -> CircuitState:
        """The state that callers see: that of the mode, else that of the machine."""
        if self._mode is CircuitMode.FORCED_OPEN or self._isolations:
            return CircuitState.OPEN
        return self._state

    @property
    def mode(self) -> CircuitMode:
        return self._mode

    @property
    def permits(self) -> tuple[Permit, ...]:
        """The permits that are out, those included whose lease is over and nobody has noticed."""
        return self._permits

    @property
    def tells_successes_apart(self) -> bool:
        """Whether it matters when a call succeeds."""
        return self._window.turn < math.inf

    @property
    def successes(self) -> int:
        """Successes since the circuit was made."""
        return self.counters.successes + self._window.successes + self._window.run

    def retry_after(self, now: float) -> float | None:
        """Return the seconds until a call may be let through: 0 if one would be now, None if nobody knows."""
        if self._mode is CircuitMode.FORCED_OPEN or self._isolations:
            return None
        if self._catch_up(now) is CircuitState.CLOSED:
            return 0.0
        due = self._until
        if self._state is CircuitState.HALF_OPEN:
            due = min((permit.expires for permit in self._permits), default=now) if self._is_full() else now
        if self.probers:
            due = max(due, self._reserved_until)
        return max(0.0, due - now)

    def due_in(self, now: float) -> float:
        """Return the seconds until a probe of its own accord is of use; infinite if none is, as things stand."""
        if self._mode is not CircuitMode.NORMAL or self._isolations:
            return math.inf
        state = self._catch_up(now)
        if state is CircuitState.CLOSED:
            return math.inf
        if state is CircuitState.OPEN:
            return max(0.0, self._until - now)
        return min(permit.expires for permit in self._permits) - now if self._is_full() else 0.0

    # Calls.

    def admit(self, now: float, owner: object, *, guarded: bool, active: bool = False) -> Token | None:
        """Decide about a call.

        Args:
            now: seconds on the clock.
            owner: the task that calls.
            guarded: whether the call runs under the breaker; else its outcome may be reported by hand.
            active: whether it is a probe of its own accord.

        Returns:
            The token to report its outcome with; None if it is rejected.
        """
        if self._isolations or self._mode is CircuitMode.FORCED_OPEN:
            return None
        if self._mode is CircuitMode.DISABLED:
            return FREE
        state = self._catch_up(now)
        if state is CircuitState.CLOSED:
            return self._window
        if state is CircuitState.OPEN:
            if now < self._until or not (active or self._is_unreserved(now)):
                return None
            self._to(CircuitState.HALF_OPEN)
            self._successes = 0
            self._permits = ()
        return self._admit_half_open(now, owner, guarded, active)

    def token_of(self, now: float, owner: object) -> Token | None:
        """Return what an outcome that a task reports by hand counts with: its permit, or what it would get now."""
        if self._mode is CircuitMode.DISABLED:
            return FREE
        if self._mode is CircuitMode.FORCED_OPEN:
            return None
        state = self._catch_up(now)
        if state is CircuitState.CLOSED:
            return self._window
        if state is CircuitState.OPEN:
            return None
        permit = self._permit_of(owner)
        if permit is None:
            return LOOSE
        return FREE if permit.guarded else permit

    def succeed(self, token: Token, now: float, *, slow: bool = False) -> bool:
        """Note that a call came back well.

        Args:
            token: what it was admitted with.
            now: seconds on the clock.
            slow: whether it took too long; a probe has failed then.

        Returns:
            Whether it counted: whether the era that it belongs to is the present one.
        """
        if isinstance(token, Window):
            if token is not self._window:
                return False
            self.counters.slow += slow
            if token.note(now, failed=False, slow=slow):
                self._trip(now, "a slow call, one too many", None)
            return True
        if not self._settle(token):
            return False
        if isinstance(token, Permit) and token.guarded and token.expires <= now:
            self._hung(token)
            return True
        self.counters.successes += 1
        self.counters.slow += slow
        if slow:
            self._reopen(now, "a slow probe", None)
            return True
        self._successes += 1
        self._reserved_until = now + self.config.probe_timeout
        if self._successes >= self.config.success_threshold:
            self.reset()
        return True

    def fail(
        self,
        token: Token,
        now: float,
        error_type: str,
        *,
        text: str | None = None,
        timeout: bool = False,
        slow: bool = False,
        retry_after: float | None = None,
    ) -> bool:
        """Note that a call failed.

        Args:
            token: what it was admitted with.
            now: seconds on the clock.
            error_type: what is counted.
            text: what is told of it, if it opens the circuit.
            timeout: whether time was up.
            slow: whether it took too long as well.
            retry_after: seconds that the service asks to be left alone for.

        Returns:
            Whether it counted: whether the era that it belongs to is the present one.
        """
        text = (text or error_type)[:_LONGEST_TEXT]
        if isinstance(token, Window):
            if token is not self._window:
                return False
            self.counters.count_failure(error_type, timeout=timeout)
            self.counters.slow += slow
            if token.note(now, failed=True, slow=slow):
                self._trip(now, text, retry_after)
            return True
        if not self._settle(token):
            return False
        self.counters.count_failure(error_type, timeout=timeout)
        self.counters.slow += slow
        # A lease that is over ended when it was: whoever comes late must not keep the circuit open for longer.
        self._reopen(min(now, token.expires) if isinstance(token, Permit) else now, text, retry_after)
        return True

    def release(self, token: Token, now: float) -> bool:
        """Note that the outcome of a call says nothing; return whether that is so, and its era the present one."""
        if isinstance(token, Window):
            return token is self._window
        if not self._settle(token):
            return False
        if isinstance(token, Permit) and token.guarded and token.expires <= now:
            self._hung(token)  # it says that it took too long
            return False
        # Probers that learn nothing, or end, must not keep others from finding out.
        self._reserved_until = now
        return True

    # By hand.

    def set_mode(self, mode: CircuitMode) -> None:
        """Begin anew, closed, in another mode."""
        if mode is self._mode:
            return
        self._mode = mode
        self._changes = (*self._changes, ("circuit_mode_changed", {"mode": mode}))
        self._state = CircuitState.CLOSED
        self.reset()

    def reset(self) -> None:
        """Begin anew, closed. The mode stays."""
        was_closed = self._state is CircuitState.CLOSED
        self._reopenings = 0
        self.last_error = None
        self._permits = ()
        self._renew()
        if was_closed:
            self._until = _NEVER
            self._publish()
        else:
            self._to(CircuitState.CLOSED)

    def isolate(self, change: int) -> None:
        """Count who isolates the circuit. The machine goes on underneath: it is as it would be when the last one leaves."""
        before = self._isolations
        self._isolations += change
        if not before or not self._isolations:
            self._changes = (*self._changes, ("circuit_isolated", {"isolated": bool(self._isolations)}))
        self._publish()

    def prune(self, now: float) -> int:
        """Forget the failures by type and what has left the window; return how many failures and slow calls that were."""
        by_type = sum(self.counters.failures_by_type.values())
        self.counters.failures_by_type.clear()
        return max(by_type, self._window.prune(now))  # who was in both is one

    def take_changes(self) -> tuple[Change, ...]:
        """Return what has changed since this was asked for the last time."""
        changes, self._changes = self._changes, ()
        return changes

    # What happens inside.

    def _admit_half_open(self, now: float, owner: object, guarded: bool, active: bool) -> Token | None:
        mine = self._permit_of(owner)
        if mine is not None:
            if mine.guarded:
                return FREE  # a call within a probe: the outcome of the probe tells
            if guarded:
                # Asked by hand first, called then: from now on the call is what the permit is for.
                mine.guarded = True
                mine.expires = now + self.config.probe_timeout
            return mine
        if self._is_full() or not (active or self._is_unreserved(now)):
            return None
        permit = Permit(weakref.ref(owner), now + self.config.probe_timeout, guarded)
        self._permits = (*self._permits, permit)
        if active:
            self._reserved_until = permit.expires
        return permit

    def _is_full(self) -> bool:
        return len(self._permits) >= self.config.success_threshold - self._successes

    def _is_unreserved(self, now: float) -> bool:
        # A prober that does not come when it is due is not waited for any longer than a probe may take.
        return not self.probers or now >= self._reserved_until

    def _permit_of(self, owner: object) -> Permit | None:
        return next((permit for permit in self._permits if permit.owner() is owner), None)

    def _settle(self, token: Permit | _Free) -> bool:
        """Take a permit back; return whether its outcome is one of the present era."""
        if token is LOOSE:
            return self._state is CircuitState.HALF_OPEN
        if token not in self._permits:
            return False
        self._permits = tuple(permit for permit in self._permits if permit is not token)
        return True

    def _catch_up(self, now: float) -> CircuitState:
        """Work in what time has brought about, and return the state that this leads to."""
        lease = self.config.probe_timeout
        if self._state is CircuitState.OPEN:
            if self._until > now + self.period:
                self._until = now + self.period
                self._publish()
        elif self._state is CircuitState.HALF_OPEN:
            if self._successes >= self.config.success_threshold:
                self.reset()  # what an interrupt has kept from being done after the last success
                return CircuitState.CLOSED
            for permit in self._permits:
                permit.expires = min(permit.expires, now + lease)
            overdue = [permit for permit in self._permits if permit.expires <= now]
            # Of a call whose task is gone nothing will be known: it was closed by somebody else.
            if hung := [permit for permit in overdue if permit.guarded and permit.owner() is not None]:
                self._hung(min(hung, key=lambda permit: permit.expires))
            elif overdue:
                self._permits = tuple(permit for permit in self._permits if permit not in overdue)
        self._reserved_until = min(self._reserved_until, max(self._until, now) + lease)
        return self._state

    def _hung(self, permit: Permit) -> None:
        """End an era by a probe that has outlived its lease, at the moment when that ended."""
        self.counters.count_failure("CircuitTimeoutError", timeout=True)
        self._reopen(permit.expires, f"a probe took longer than {self.config.probe_timeout:g} s", None)
        # One lease has been waited for. If probers do not come this time, nobody waits for a second one.
        self._reserved_until = self._until

    def _trip(self, now: float, text: str, retry_after: float | None) -> None:
        if self._mode is CircuitMode.METRICS_ONLY:
            self._renew()
            self._publish()
            self._changes = (*self._changes, ("circuit_would_open", {"reason": text}))
        else:
            self._open(now, text, retry_after)

    def _reopen(self, at: float, text: str, retry_after: float | None) -> None:
        self._reopenings += 1
        self._open(at, text, retry_after)

    def _open(self, at: float, text: str, retry_after: float | None) -> None:
        config = self.config
        longest = config.max_reset_timeout
        is_beyond = self._reopenings * math.log(config.backoff) > _LARGEST_EXPONENT
        period = math.inf if is_beyond else config.reset_timeout * config.backoff**self._reopenings
        if config.jitter:
            period *= 1 + config.jitter * (2 * self._random() - 1)
        self.period = min(max(period, retry_after or 0.0), longest)
        self.last_error = text
        self._until = at + self.period
        self._reserved_until = self._until + config.probe_timeout
        self._permits = ()
        self.counters.opened += 1
        self._renew()
        self._to(CircuitState.OPEN, reason=text, retry_after=self.period, reopenings=self._reopenings)

    def _renew(self) -> None:
        """Begin an era with nothing counted in it."""
        self.counters.successes += self._window.successes + self._window.run
        self._window = window_of(self.config)

    def _to(self, state: CircuitState, **data: Any) -> None:
        self._state = state
        self.counters.state_changes += 1
        if state is not CircuitState.OPEN:
            self._until = _NEVER
        names = {
            CircuitState.CLOSED: "circuit_closed",
            CircuitState.OPEN: "circuit_opened",
            CircuitState.HALF_OPEN: "circuit_half_opened",
        }
        self._changes = (*self._changes, (names[state], data))
        self._publish()

    def _publish(self) -> None:
        """Tell callers without the lock whether they may go ahead. Last of all: what they see must be finished."""
        is_normal = self._mode is CircuitMode.NORMAL and not self._isolations
        is_counting = is_normal or (self._mode is CircuitMode.METRICS_ONLY and not self._isolations)
        self.until = self._until if is_normal and self._state is CircuitState.OPEN else _NEVER
        self.closed = self._window if is_counting and self._state is CircuitState.CLOSED else None
