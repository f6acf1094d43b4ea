"""Whether a call that has failed is made again, and when.

An error is looked at once (`Selection.examine`); what follows from it is decided by the course of the call so far
(`Course.after`). A call that an open circuit has rejected was none: nothing was tried, so it is not counted. It is of no
use to make it again before the circuit lets calls through, and harmful if all who wait come at that very moment.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from typing import Final, NamedTuple, final

import attrs

from agentcore._rules.backoff import MOST, Backoff, show
from agentcore.errors import CircuitOpenError, ConfigurationError

LEAST_WAIT: Final = 0.001
"""Seconds between two tries at an open circuit, whatever the settings say: nobody runs in circles in front of it."""


class GaveUp(enum.StrEnum):
    """Why there is no further attempt."""

    NOT_RETRYABLE = "the error is none to retry"
    ATTEMPTS = "that was the last attempt"
    CIRCUIT = "the circuit is open, and nobody knows for how long"
    CANCELED = "the caller is cancelled"
    DEADLINE = "the caller's deadline comes before the next attempt could begin"
    MAX_ELAPSED = "max_elapsed is over before the next attempt could begin"
    BUDGET = "the retry budget is used up"
    CLOSED = "the runtime is shutting down"


class Facts(NamedTuple):
    """What an error says about trying again.

    Attributes:
        retryable: whether it is of use at all.
        rejected: whether an open circuit has let nothing through.
        retry_after: seconds from now before which it is of no use, from `MOST` on for ever; None if it does not say.
    """

    retryable: bool
    rejected: bool = False
    retry_after: float | None = None


def to_exceptions(subject: str, name: str, value: object) -> tuple[type[Exception], ...]:
    """Return a class of exceptions, or several, as a tuple.

    Raises:
        ConfigurationError: there is something else in it.
    """
    classes = tuple(value) if isinstance(value, tuple | list | set | frozenset) else (value,)
    for cls in classes:
        if not isinstance(cls, type) or not issubclass(cls, Exception):
            raise ConfigurationError(
                f"{name} of {subject} must be classes below Exception: got {show(cls)}; "
                f"write {name}=(OSError, ...): cancellation, and what ends the program, always passes",
                {"name": name, "value": value},
            )
    return classes


def covers(classes: tuple[type[Exception], ...], error: BaseException) -> bool:
    """Tell whether an error is one of some classes; a group: if one of them is a class of such groups, or covers all in it."""
    groups = _groups(classes)
    left = [error]
    while left:  # not by recursion: a group may be nested deeper than the stack
        one = left.pop()
        if not isinstance(one, BaseExceptionGroup):
            if not isinstance(one, classes):
                return False
        elif not isinstance(one, groups):
            left.extend(one.exceptions)
    return True


def _groups(classes: tuple[type[Exception], ...]) -> tuple[type[Exception], ...]:
    # Exception is a base of every group that arrives here, and says nothing of what is in it.
    return tuple(cls for cls in classes if issubclass(cls, BaseExceptionGroup))


@final
@attrs.frozen
class Selection:
    """Which errors are retried.

    Attributes:
        on: the classes that are; a group is if everything in it is, or if there is a class of such groups.
        never_on: of these, the classes that are not; a group is not if anything in it is, whatever `on` says of groups.
        condition: decides on the rest.
        open_circuit: whether rejections by an open circuit are.
    """

    on: tuple[type[Exception], ...]
    never_on: tuple[type[Exception], ...] = ()
    condition: Callable[[Exception], object] | None = None
    open_circuit: bool = False

    def examine(self, error: BaseException) -> Facts:
        """Look at an error.

        Raises:
            Exception: whatever the condition raises.
        """
        parts: list[Facts] = []
        times: list[float] = []
        groups = _groups(self.on)
        left = [(error, False)]
        while left:  # not by recursion: a group may be nested deeper than the stack
            one, selected = left.pop()
            if not isinstance(one, BaseExceptionGroup) or self._is_refused(one):
                parts.append(self._examine(one, selected=selected))
                continue
            if not selected and isinstance(one, groups):
                if not self._agrees(one):
                    parts.append(Facts(retryable=False))
                    continue
                # The group was meant. What is in it may still say that it is of no use, or not yet.
                selected = True
                if (seconds := _retry_after(one)) is not None:
                    times.append(seconds)
            left.extend((part, selected) for part in one.exceptions)
        return _together(parts, times)

    def _examine(self, error: BaseException, *, selected: bool) -> Facts:
        """Look at an error that is no group, or refused at once; if it is selected, it need not be one of the classes."""
        rejected = isinstance(error, CircuitOpenError)
        if self._is_refused(error) or not isinstance(error, Exception):
            return Facts(retryable=False, rejected=rejected)
        if rejected:
            return Facts(self.open_circuit, rejected, _retry_after(error))
        selected = selected or (isinstance(error, self.on) and self._agrees(error))
        return Facts(selected, rejected, _retry_after(error))

    def _is_refused(self, error: BaseException) -> bool:
        if not isinstance(error, Exception) or isinstance(error, self.never_on):
            return True
        # A rejection by a circuit says so too: it is `open_circuit` that decides about those.
        return not isinstance(error, CircuitOpenError) and _attribute(error, "retryable") is False

    def _agrees(self, error: BaseException) -> bool:
        return self.condition is None or (isinstance(error, Exception) and bool(self.condition(error)))


def _together(parts: list[Facts], times: list[float]) -> Facts:
    """Return what the errors of a group say: each has to agree, and the longest wait counts."""
    retryable = all(part.retryable for part in parts)
    rejected = all(part.rejected for part in parts)
    if any(part.rejected and part.retry_after is None for part in parts):
        # Nobody knows until when. Of a rejection that is told as such, of a failure beside one it ends the matter.
        return Facts(retryable and rejected, rejected)
    times += [part.retry_after for part in parts if part.retry_after is not None]
    return Facts(retryable, rejected, max(times, default=None))


def _retry_after(error: Exception) -> float | None:
    value = _attribute(error, "retry_after")
    if (
        not isinstance(value, int | float)
        or isinstance(value, bool)
        or (isinstance(value, float) and math.isnan(value))
    ):
        return None
    return float(min(max(value, 0), MOST))


def _attribute(error: Exception, name: str) -> object:
    try:
        return getattr(error, name, None)
    except Exception:  # noqa: BLE001 - a property of a foreign error that fails says nothing
        return None


@final
@attrs.define
class Course:
    """One call through all of its attempts.

    Attributes:
        attempts: how many there may be.
        backoff: how long to wait between them.
        made: how many there were.
        rejections: how often in a row an open circuit has let nothing through.
        paid: whether an attempt has been paid for that has not been made: nothing was called, or nothing yet.
    """

    attempts: int
    backoff: Backoff
    made: int = 0
    rejections: int = 0
    paid: bool = False

    def after(
        self,
        facts: Facts,
        draw: Callable[[], float],
        *,
        until_deadline: float = math.inf,
        until_elapsed: float = math.inf,
        afford: Callable[[], bool] | None = None,
    ) -> float | GaveUp:
        """Decide what comes after a call that has failed.

        Args:
            facts: what its error says.
            draw: gives a random number from 0 to 1.
            until_deadline: seconds that the caller has; minus infinity if it is cancelled.
            until_elapsed: seconds that all attempts together have.
            afford: pays for a further attempt, or tells that it cannot. Called only if everything else is in favour.

        Returns:
            The seconds to wait before the next attempt, or why there is none.
        """
        if facts.rejected:
            self.rejections += 1
        else:
            self.made += 1
            self.rejections = 0
            self.paid = False
        never = facts.retry_after is not None and facts.retry_after >= MOST
        if not facts.retryable or (never and not facts.rejected):
            return GaveUp.NOT_RETRYABLE
        if facts.rejected:
            if never or facts.retry_after is None:
                return GaveUp.CIRCUIT
            # Drawn even if the backoff is not: whoever waits for the circuit was told the same moment.
            wait = max(LEAST_WAIT, facts.retry_after + self.backoff.limit(self.rejections - 1) * draw())
        elif self.made >= self.attempts:
            return GaveUp.ATTEMPTS
        else:
            wait = (facts.retry_after or 0.0) + self.backoff.delay(self.made - 1, draw())
        # A call that would begin at the very deadline is cancelled at once.
        if wait >= until_deadline:
            return GaveUp.CANCELED if until_deadline == -math.inf else GaveUp.DEADLINE
        if wait >= until_elapsed:
            return GaveUp.MAX_ELAPSED
        if not facts.rejected and afford is not None:
            if not afford():
                return GaveUp.BUDGET
            self.paid = True
        return wait
