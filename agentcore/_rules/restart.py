"""Which children a supervisor starts again when one has ended, and when it gives up: the rules of OTP's supervisors.

    a child has ended          permanent          transient          temporary
    by itself                  started again      gone               gone
    by a crash                 started again      started again      gone

    started again with it      one_for_one        one_for_all        rest_for_one
    of the others              none               all                those that were started after it

Those that are started again with it are stopped first, the one that was started last before all others; temporary ones among
them are gone then. Whoever is started again waits for a while, longer each time, and those that belong together come in the
order of their first start. More than `intensity` restarts within `period` seconds are too many: the supervisor stops all
its children and fails itself, which is for the supervisor above to mend.

Source: Erlang/OTP, *Supervisor Behaviour* (OTP Design Principles) and the module `supervisor` of stdlib. The wait before a
restart is not OTP's; it is that of Akka's backoff supervisors, forgotten when a child has been up for long enough.
"""

from __future__ import annotations

import enum
import math
from collections import deque
from collections.abc import Iterable
from typing import Final, final

import attrs

from agentcore._rules.backoff import Backoff


class SupervisionStrategy(enum.StrEnum):
    """Who is started again together with a child that has ended."""

    ONE_FOR_ONE = "one_for_one"
    ONE_FOR_ALL = "one_for_all"
    REST_FOR_ONE = "rest_for_one"


class RestartType(enum.StrEnum):
    """After which ends a child is started again."""

    PERMANENT = "permanent"
    """After each."""
    TRANSIENT = "transient"
    """After a crash."""
    TEMPORARY = "temporary"
    """Never."""


@final
@attrs.frozen
class Verdict:
    """What follows from the end of a child. The children stand in the order in which it is to be done.

    Attributes:
        stop: those that are to be stopped now.
        restart: those that are going to be started again, when they are due.
        removed: those that are gone for good.
        gives_up: whether there were too many restarts: nobody is started again.
    """

    stop: tuple[str, ...] = ()
    restart: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    gives_up: bool = False


NOTHING: Final = Verdict()


@attrs.define
class _Child:
    restart: RestartType
    since: float
    due: float | None = None  # None while it is up
    crashes: int = 0  # in a row


@final
class Supervision:
    """The children of one supervisor, and what becomes of them.

    Args:
        strategy: who is started again together with a child that has ended.
        intensity: how many restarts there may be within `period`.
        period: seconds.
        backoff: how long a child waits before it is started again.
        reset_after: seconds that it has to be up for, for that to begin anew.
    """

    def __init__(
        self, strategy: SupervisionStrategy, intensity: int, period: float, backoff: Backoff, reset_after: float
    ) -> None:
        self._strategy = strategy
        self._intensity = intensity
        self._period = period
        self._backoff = backoff
        self._reset_after = reset_after
        self._children: dict[str, _Child] = {}  # in the order of their start
        self._restarts: deque[float] = deque()
        self.has_given_up: bool = False

    def __len__(self) -> int:
        """Return how many children there are, those that wait for their restart included."""
        return len(self._children)

    def __contains__(self, name: object) -> bool:
        """Tell whether there is a child of a name."""
        return name in self._children

    def in_order(self) -> tuple[str, ...]:
        """Return all children in the order of their start."""
        return tuple(self._children)

    def is_up(self, name: str) -> bool:
        """Tell whether a child is up, as far as is known here."""
        return name in self._children and self._children[name].due is None

    def add(self, name: str, restart: RestartType, now: float) -> None:
        """Note a new child, which has been started."""
        self._children[name] = _Child(restart, now)

    def remove(self, name: str) -> None:
        """Forget a child, which somebody has stopped for good."""
        self._children.pop(name, None)

    def ended(self, name: str, now: float, draw: float, *, crashed: bool) -> Verdict:
        """Decide what follows from the end of a child that was up, or was about to be.

        Args:
            name: which.
            now: the time.
            draw: a random number from 0 to 1, for its wait.
            crashed: whether it was a crash; else it ended by itself.
        """
        child = self._children.get(name)
        if child is None or self.has_given_up:
            return NOTHING
        if child.restart is RestartType.TEMPORARY or (child.restart is RestartType.TRANSIENT and not crashed):
            del self._children[name]
            return Verdict(removed=(name,))
        if self._is_one_too_many(now):
            self.has_given_up = True
            return Verdict(stop=self._up_in_reverse(self._children, but=name), gives_up=True)
        if child.due is None and now - child.since >= self._reset_after:
            child.crashes = 0
        due = now + self._backoff.delay(child.crashes, draw)
        child.crashes += 1
        together = self._together(name)
        stop = self._up_in_reverse(together, but=name)
        removed = tuple(one for one in together if self._children[one].restart is RestartType.TEMPORARY)
        for one in removed:
            del self._children[one]
        restart = tuple(one for one in together if one in self._children)
        for one in restart:
            self._children[one].due = max(due, self._children[one].due or -math.inf)
        return Verdict(stop, restart, removed)

    def next_due(self) -> float | None:
        """Return when the next child is to be started; None if none waits."""
        times = self._dues()
        if not times:
            return None
        return min(times) if self._strategy is SupervisionStrategy.ONE_FOR_ONE else times[0]

    def due(self, now: float) -> str | None:
        """Return the child that is to be started now; None if there is none. `started` or `ended` says how it went."""
        for name, child in self._children.items():
            if child.due is None:
                continue
            if child.due <= now:
                return name
            if self._strategy is not SupervisionStrategy.ONE_FOR_ONE:
                return None  # those after it wait for it
        return None

    def started(self, name: str, now: float) -> None:
        """Note that a child is up."""
        child = self._children[name]
        child.due = None
        child.since = now

    def _dues(self) -> list[float]:
        return [child.due for child in self._children.values() if child.due is not None]

    def _is_one_too_many(self, now: float) -> bool:
        """Note a restart; tell whether there are too many now."""
        self._restarts.append(now)
        while self._restarts[0] < now - self._period:
            self._restarts.popleft()
        return len(self._restarts) > self._intensity

    def _together(self, name: str) -> tuple[str, ...]:
        """Return who is started again with a child, that one included."""
        names = self.in_order()
        if self._strategy is SupervisionStrategy.ONE_FOR_ONE:
            return (name,)
        return names if self._strategy is SupervisionStrategy.ONE_FOR_ALL else names[names.index(name) :]

    def _up_in_reverse(self, names: Iterable[str], *, but: str) -> tuple[str, ...]:
        return tuple(one for one in reversed(tuple(names)) if one != but and self._children[one].due is None)
