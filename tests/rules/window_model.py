"""What a closed circuit remembers of its calls, as plainly as possible: a list of them."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from fractions import Fraction

from agentcore import CircuitBreakerConfig


def is_share(number: int, calls: int, rate: float) -> bool:
    """Tell whether so many of the calls are the share that a rate asks for, in exact arithmetic."""
    return number >= Fraction(rate).limit_denominator(10**6) * calls


@dataclass
class Memory:
    """What a closed circuit goes by: a list of the calls that it looks at, the oldest first."""

    config: CircuitBreakerConfig
    calls: deque[tuple[int, bool, bool]] = field(default_factory=deque)  # bucket, failed, slow
    newest: int | None = None

    def note(self, now: float, *, failed: bool, slow: bool) -> bool:
        """Add a call; return whether the circuit has to open."""
        self.turn_to(now)
        self._add(failed, slow)
        return (failed or slow) and self.is_over()

    def run(self) -> None:
        """Add a plain success of the bucket that is the newest."""
        self._add(False, False)

    def turn_to(self, now: float) -> None:
        """Go on to the bucket of a moment. The clock may go back a little; if by more, it is another one."""
        if self.config.window_ms is None:
            return
        bucket = math.floor(now / (self.config.window_ms / 1000 / 10))
        if self.newest is None or bucket < self.newest - 10:
            self.calls.clear()
            self.newest = bucket
        self.newest = max(self.newest, bucket)
        while self.calls and self.calls[0][0] <= self.newest - 10:
            self.calls.popleft()

    def prune(self, now: float) -> int:
        """Forget what has left the window; return how many failures and slow calls that were."""
        before = sum(self.counts()[1:])
        self.turn_to(now)
        return before - sum(self.counts()[1:])

    def counts(self) -> tuple[int, int, int]:
        """Return how many calls are looked at, how many of them failed, how many were slow."""
        return len(self.calls), sum(call[1] for call in self.calls), sum(call[2] for call in self.calls)

    def is_over(self) -> bool:
        """Tell whether that is too much."""
        config = self.config
        calls, failed, slow = self.counts()
        if config.window_calls is None and config.window_ms is None:
            return config.failure_threshold in {failed, slow}
        return any(
            number >= config.failure_threshold
            if rate is None
            else calls >= config.minimum_calls and is_share(number, calls, rate)
            for number, rate in ((failed, config.failure_rate), (slow, config.slow_call_rate))
        )

    def _add(self, failed: bool, slow: bool) -> None:
        self.calls.append((self.newest or 0, failed, slow))
        keep = self.config.window_calls or self.config.failure_threshold
        while self.config.window_ms is None and len(self.calls) > keep:
            self.calls.popleft()
