"""So much and no more: a bucket that fills with time, and the line of those who wait for a token of it.

Nothing here asks a clock: `now` is given, in seconds. A clock that goes back a little neither earns nor costs tokens: no
second is counted twice, so none comes until the clock is again where it was. One that goes back by more than it takes to
fill the bucket has been set anew, and counts from there on.

A token is taken by who uses it, in one step with leaving the line. The alternative, to reserve one at arrival and to wait
until it is due, needs no line; but what a cancelled waiter gives back is then due at the same time as what a later caller
reserves, and both together are more than the bucket ever holds. In a line all who are behind move up.
"""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

EARLY = 1e-9
"""Seconds by which a token may be taken too early: who has slept until it is due may wake up a rounding error before. What
is missing then stays missing, so that the rate holds in the long run."""


class TokenBucket:
    """Tokens that come by time, and by gifts, up to a capacity. It begins full.

    Args:
        rate: tokens that come each second; 0 for none.
        capacity: how many it holds.
    """

    __slots__ = ("_at", "_tokens", "capacity", "rate")

    def __init__(self, rate: float, capacity: float) -> None:
        self.rate = rate
        self.capacity = capacity
        self._tokens = capacity
        self._at: float | None = None

    def available(self, now: float) -> float:
        """Return the tokens that there are."""
        if self._at is None:
            self._at = now
        earned = (now - self._at) * self.rate
        if earned > 0:
            self._tokens = min(self.capacity, self._tokens + earned)
            self._at = now
        elif earned < -self.capacity:
            self._at = now
        return self._tokens

    def try_take(self, now: float) -> bool:
        """Take a token if there is one."""
        # Rounding grows with the clock: after some months of uptime it is more than a nanosecond.
        if self.available(now) < 1 - self.rate * max(EARLY, 4 * math.ulp(now)):
            return False
        self._tokens -= 1
        return True

    def wait(self, now: float, count: int = 1) -> float:
        """Return the seconds until that many tokens will have come if none is taken before; infinite if they never do."""
        missing = count - self.available(now)
        if missing <= 0:
            return 0.0
        behind = 0.0 if self._at is None else max(0.0, self._at - now)
        return behind + missing / self.rate if self.rate else math.inf

    def give(self, amount: float) -> None:
        """Put tokens in, as many as there is room for."""
        self._tokens = min(self.capacity, self._tokens + amount)


class TokenLine(Generic[T]):
    """Who waits for a token of a bucket, in order of arrival.

    Whoever becomes the first is returned by what has made it so, to be told. The others need not look at the time, unless
    those in front of them are late.

    Args:
        bucket: where the tokens are.
    """

    __slots__ = ("_line", "bucket")

    def __init__(self, bucket: TokenBucket) -> None:
        self.bucket = bucket
        # Ordered, and left from anywhere in a constant time: a thousand waiters may be cancelled at once.
        self._line: OrderedDict[T, None] = OrderedDict()

    def __len__(self) -> int:
        """Return how many wait."""
        return len(self._line)

    def try_take(self, now: float) -> bool:
        """Take a token if there is one and nobody waits for it; who waits is never overtaken."""
        return not self._line and self.bucket.try_take(now)

    def wait(self, now: float) -> float:
        """Return the seconds that one who came now would have to wait, if nobody in the line leaves it."""
        return self.bucket.wait(now, len(self._line) + 1)

    def join(self, ticket: T) -> bool:
        """Get into the line; tell whether the ticket is the first."""
        self._line[ticket] = None
        return len(self._line) == 1

    def take(self, ticket: T, now: float, respects: Callable[[T], bool] = lambda _: True) -> float:
        """Take a token for somebody in the line, who leaves it.

        Args:
            ticket: whose; it is in the line.
            now: seconds.
            respects: tells of one who is in front of it whether it may not be overtaken. The first is nobody's concern.

        Returns:
            0, or the seconds until it is of use to ask again: until there will be a token, or one for each in the line.
        """
        if any(map(respects, itertools.takewhile(lambda other: other != ticket, self._line))):
            return self.bucket.wait(now, len(self._line))
        if not self.bucket.try_take(now):
            return self.bucket.wait(now)
        del self._line[ticket]
        return 0.0

    def first(self) -> T | None:
        """Return the first in line."""
        return next(iter(self._line), None)

    def leave(self, ticket: T) -> T | None:
        """Leave the line; return who has become the first by it."""
        was_first = self.first() == ticket
        self._line.pop(ticket, None)
        return self.first() if was_first else None
