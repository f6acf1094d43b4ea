"""Which children a supervisor starts again when one has ended, and when it gives up: the rules of OTP's supervisors.

    a child has ended          permanent          transient          temporary
    by itself                  started again      gone               gone
    by a crash                 started again      started again      gone

    started again with it      one_for_one        one_for_all        rest_for_one
    of the others              none               all                those that were started after it

Those that are started again with it are stopped first, the one that was started last before all others; temporary ones among
them are gone then. Whoever is started again waits for a while, longer each time, and those that belong together come in the
order of their first start. More than `intensity` restarts within `period` seconds are too many: the supervisor stops all
its children and fails itself, which is for the supervisor above to mend. However many are started again together, that
is one restart; a start that fails is another crash, of the one that did not come up.

Source: Erlang/OTP, *Supervisor Behaviour* (OTP Design Principles) and the module `supervisor` of stdlib. Two things are
different. OTP keeps the specification of a transient child that has ended by itself, and starts it again with its siblings;
here it is gone. And OTP starts again at once; the wait is that of Akka's backoff supervisors, forgotten when a child has been
up for long enough.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Final, TypeAlias, TypeVar, final

import attrs

from agentcore._rules.backoff import Backoff, show
from agentcore.errors import ConfigurationError

_Names: TypeAlias = tuple[str, ...]


E = TypeVar("E", bound=enum.StrEnum)


def to_member(cls: type[E], subject: str, name: str, value: object) -> E:
    """Return the member of an enumeration that a value stands for.

    Raises:
        ConfigurationError: it stands for none.
    """
    try:
        return cls(value)  # type: ignore[arg-type]  # that is the question
    except ValueError:
        raise ConfigurationError(
            f"{name} of {subject} must be one of {', '.join(repr(one.value) for one in cls)}: got {show(value)}; "
            f"write {cls.__name__}.{next(iter(cls)).name}",
            {"name": name, "value": value},
        ) from None


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


# The first half of the table: whether a child is started again when it has ended by itself, and by a crash.
_IS_STARTED_AGAIN: Final[Mapping[RestartType, tuple[bool, bool]]] = {
    RestartType.PERMANENT: (True, True),
    RestartType.TRANSIENT: (False, True),
    RestartType.TEMPORARY: (False, False),
}
# The second: who of all, in the order of their start, together with the one in a place.
_TOGETHER: Final[Mapping[SupervisionStrategy, Callable[[int], slice]]] = {
    SupervisionStrategy.ONE_FOR_ONE: lambda place: slice(place, place + 1),
    SupervisionStrategy.ONE_FOR_ALL: lambda _place: slice(None),
    SupervisionStrategy.REST_FOR_ONE: lambda place: slice(place, None),
}


def is_started_again(restart: RestartType, *, crashed: bool) -> bool:
    """Tell whether a child is started again when it has ended."""
    return _IS_STARTED_AGAIN[restart][crashed]


@final
@attrs.frozen
class Verdict:
    """What follows from the end of a child. The children stand in the order in which it is to be done.

    Attributes:
        stop: those that are up, and are to be stopped now. A start that is under way is for who began it to end.
        restart: those that are going to be started again, when they are due.
        removed: those that are gone for good.
        gives_up: whether there were too many restarts: nobody is started again.
    """

    stop: _Names = ()
    restart: _Names = ()
    removed: _Names = ()
    gives_up: bool = False


NOTHING: Final = Verdict()


@attrs.define
class _Child:
    """A child: it is up, or it waits to be started again, or is being started."""

    restart: RestartType
    since: float  # when it was started
    due: float | None = None  # when it is to be started again; None while it is up
    is_starting: bool = False  # whether `due` has told of it
    restarts: int = 0  # since it was up for long enough the last time


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
        self._restarts: deque[float] = deque()  # when they were, those within the period
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
        """Decide what follows from the end of a child that was up, or was being started.

        The end of one that is to be stopped by an earlier verdict is no news: it is going to be started again as it is.

        Args:
            name: which.
            now: the time.
            draw: a random number from 0 to 1, for its wait.
            crashed: whether it was a crash; else it ended by itself.
        """
        child = self._children.get(name)
        if child is None or self.has_given_up or not (child.due is None or child.is_starting):
            return NOTHING
        if not is_started_again(child.restart, crashed=crashed):
            del self._children[name]
            return Verdict(removed=(name,))
        if self._is_one_too_many(now):
            return self._give_up(name)
        names = self.in_order()
        together = names[_TOGETHER[self._strategy](names.index(name))]
        self._note_uptimes(together, now)
        due = now + self._backoff.delay(child.restarts, draw)
        child.restarts += 1
        return self._start_again(name, together, due)

    def next_due(self) -> float | None:
        """Return when the next child is to be started; None if none waits."""
        times = [child.due for child in self._children.values() if child.due is not None]
        if not times or self.has_given_up:
            return None
        return min(times) if self._strategy is SupervisionStrategy.ONE_FOR_ONE else times[0]

    def due(self, now: float) -> str | None:
        """Return the child that is to be started now; None if there is none. `started` or `ended` says how it went."""
        if self.has_given_up:
            return None
        for name, child in self._children.items():
            if child.due is None:
                continue
            if child.due <= now:
                child.is_starting = True
                return name
            if self._strategy is not SupervisionStrategy.ONE_FOR_ONE:
                break  # those after it wait for it
        return None

    def started(self, name: str, now: float) -> None:
        """Note that a child is up."""
        child = self._children[name]
        child.due, child.is_starting, child.since = None, False, now

    def _is_one_too_many(self, now: float) -> bool:
        """Note a restart; tell whether there are too many now."""
        self._restarts.append(now)
        while self._restarts[0] < now - self._period:
            self._restarts.popleft()
        return len(self._restarts) > self._intensity

    def _give_up(self, name: str) -> Verdict:
        """Stop everybody who is up, in reverse order. The child that has ended is gone."""
        self.has_given_up = True
        del self._children[name]
        return Verdict(stop=self._up_in_reverse(self._children), gives_up=True)

    def _note_uptimes(self, names: _Names, now: float) -> None:
        """Forget how often children were started again that were up for long enough until now."""
        for name in names:
            child = self._children[name]
            if child.due is None and now - child.since >= self._reset_after:
                child.restarts = 0

    def _start_again(self, name: str, together: _Names, due: float) -> Verdict:
        """Have a child, and those with it, wait for their restart."""
        stop = tuple(one for one in self._up_in_reverse(together) if one != name)
        removed = tuple(one for one in together if self._children[one].restart is RestartType.TEMPORARY)
        for one in removed:
            del self._children[one]
        restart = tuple(one for one in together if one in self._children)
        for one in restart:
            child = self._children[one]
            # Whoever waits already waits for as long as that was to be, at least.
            child.due = due if child.due is None else max(due, child.due)
            child.is_starting = False
        return Verdict(stop, restart, removed)

    def _up_in_reverse(self, names: Iterable[str]) -> _Names:
        return tuple(one for one in reversed(tuple(names)) if self._children[one].due is None)
