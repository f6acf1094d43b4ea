"""How long to wait before something is tried again: longer each time, up to a limit, and never all at the same moment.

Callers that failed together would come again together. So each waits for a time of its own, drawn evenly between nothing
and the limit of that retry: "full jitter", which of the known ways costs the least work in all (Marc Brooker, *Exponential
Backoff And Jitter*, AWS Architecture Blog, 2015).
"""

# No `from __future__ import annotations` here: the fields of public classes are read at run time, by cattrs and others.
# Their `__module__` reads agentcore, where names in strings could not be found.

import math
from typing import Final, final

import attrs

from agentcore.errors import ConfigurationError

MOST: Final = 1e18
"""No setting is as great as this: sums and products of a few stay far from what a float can hold."""


_LONGEST: Final = 200


def show(value: object) -> str:
    """Return ``repr(value)`` for a message, shortened if it is long; what it is if that raises, as of very long integers."""
    try:
        text = repr(value)
    except Exception as error:  # noqa: BLE001 - told in the text
        return f"<{type(value).__qualname__} whose repr() raised {type(error).__name__}>"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def check_number(
    subject: str,
    name: str,
    value: object,
    remedy: str,
    *,
    least: float = 0.0,
    above: bool = False,
    whole: bool = False,
    unit: str = "",
) -> None:
    """Accept numbers from a least one on, up to `MOST`.

    Args:
        subject: whose setting it is, with its article.
        name: the setting.
        value: what was given.
        remedy: what to do instead.
        least: the smallest number that can be used.
        above: whether it has to be more than that.
        whole: whether it has to be an integer.
        unit: of the number, in the plural.

    Raises:
        ConfigurationError: it is something else.
    """
    is_number = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    if is_number and least <= value < MOST and not (above and value == least):  # type: ignore[operator]
        return
    bound = f"more than {least:g}" if above else f"{least:g} or more"
    number_of = f"a {'whole ' if whole else ''}number{f' of {unit}' if unit else ''}"
    if is_number and MOST <= value < math.inf:  # type: ignore[operator]
        bound += f" and less than {MOST:g}"
    # Of an integer that is too long to be written, not even those who read the details could make a text.
    raise ConfigurationError(
        f"{name} of {subject} must be {number_of}, {bound}: got {show(value)}; {remedy}",
        {"name": name, "value": show(value) if isinstance(value, int) and abs(value) >= MOST else value},
    )


@final
@attrs.frozen
class Backoff:
    """Exponential backoff with full jitter: before retry n (from 0), ``uniform(0, min(maximum, initial * factor**n))``.

    Args:
        initial: seconds, the limit of the first wait; 0 for no wait at all.
        factor: what the limit is multiplied by each time, 1 or more.
        maximum: seconds, the limit of every wait.
        jitter: whether the wait is drawn; False waits for the limit itself, and callers that failed together come again
            together.

    Raises:
        ConfigurationError: a value is not usable.
    """

    initial: float = 0.1
    factor: float = 2.0
    maximum: float = 10.0
    jitter: bool = True

    def __attrs_post_init__(self) -> None:
        subject = "a Backoff"
        check_number(subject, "initial", self.initial, "use 0 for no wait", unit="seconds")
        check_number(subject, "factor", self.factor, "use 1 for waits of the same length", least=1)
        check_number(subject, "maximum", self.maximum, "a wait always has a limit", unit="seconds")
        if self.maximum < self.initial:
            raise ConfigurationError(
                f"maximum of a Backoff must not be less than initial, {self.initial!r} s: got {self.maximum!r}; raise it",
                {"name": "maximum", "value": self.maximum},
            )
        if not isinstance(self.jitter, bool):
            raise ConfigurationError(
                f"jitter of a Backoff must be True or False: got {show(self.jitter)}; True draws each wait",
                {"name": "jitter", "value": self.jitter},
            )

    def limit(self, retry: int) -> float:
        """Return the longest wait before a retry, in seconds.

        Args:
            retry: its number, from 0; any number.
        """
        try:
            return min(float(self.maximum), self.initial * float(self.factor) ** retry)
        except OverflowError:  # of the power, or of a number of the retry that is no float
            return float(self.initial if self.factor == 1 or self.initial == 0 else self.maximum)

    def delay(self, retry: int, draw: float) -> float:
        """Return how long to wait before a retry, in seconds.

        Args:
            retry: its number, from 0; any number.
            draw: a random number from 0 to 1. Not used without jitter.
        """
        return self.limit(retry) * draw if self.jitter else self.limit(retry)
