"""What a closed circuit remembers of its calls: three kinds of windows with one interface.

A window belongs to one era: it is made when the circuit closes, and a call that begins in it reports to it. So an outcome
of an older era reaches a window that nobody asks any more; counts of two eras cannot mix.

A plain success, neither failed nor slow, is the hottest path of the breaker. It is counted in place, ``window.run += 1``,
and takes effect when something else is noted: the run is worked in then. That is exact, because nothing but a failure or a
slow call ever opens a circuit. Where successes have to be told apart by time, `turn` says until when the run may grow.
"""

from __future__ import annotations

import math
from typing import Final

from agentcore._rules.circuit_config import CircuitBreakerConfig

_BUCKETS: Final = 10


class Window:
    """The base of all windows.

    Attributes:
        run: plain successes since something was noted last.
        turn: seconds on the clock from which on a plain success has to be noted as well.
        successes: successes worked in so far. All of the era: `successes + run`.
    """

    __slots__ = ("run", "successes", "turn")

    def __init__(self) -> None:
        self.run = 0
        self.successes = 0
        self.turn = math.inf

    def note(self, now: float, *, failed: bool, slow: bool) -> bool:
        """Count a call.

        Args:
            now: seconds on the circuit's clock.
            failed: whether it failed.
            slow: whether it took too long.

        Returns:
            Whether the circuit is to be opened. A plain success never does that.
        """
        run, self.run = self.run, 0
        self.successes += run + (not failed)
        self._count(run, now, failed, slow)
        return (failed or slow) and self._is_over()

    def prune(self, now: float) -> int:
        """Drop what has left the window; return how many calls that were."""
        del now
        return 0

    def _count(self, run: int, now: float, failed: bool, slow: bool) -> None:
        """Count a run of plain successes, and then a call."""
        raise NotImplementedError

    def _is_over(self) -> bool:
        raise NotImplementedError


class Consecutive(Window):
    """Counts failures in a row, and slow calls in a row."""

    __slots__ = ("_failed", "_slow", "_threshold")

    def __init__(self, threshold: int) -> None:
        super().__init__()
        self._threshold = threshold
        self._failed = 0
        self._slow = 0

    def _count(self, run: int, now: float, failed: bool, slow: bool) -> None:
        del now
        if run:
            self._failed = self._slow = 0
        self._failed = self._failed + 1 if failed else 0
        self._slow = self._slow + 1 if slow else 0

    def _is_over(self) -> bool:
        return self._failed >= self._threshold or self._slow >= self._threshold


class _Rated(Window):
    """A window that is judged by numbers of calls or by shares of them."""

    __slots__ = ("_config",)

    def __init__(self, config: CircuitBreakerConfig) -> None:
        super().__init__()
        self._config = config

    def counts(self) -> tuple[int, int, int]:
        """Return how many calls are in the window, how many of them failed, how many were slow."""
        raise NotImplementedError

    def _is_over(self) -> bool:
        config = self._config
        calls, failed, slow = self.counts()
        return self._too_many(failed, calls, config.failure_rate) or self._too_many(slow, calls, config.slow_call_rate)

    def _too_many(self, number: int, calls: int, rate: float | None) -> bool:
        if rate is None:
            return number >= self._config.failure_threshold
        # Not number / calls >= rate: 7 of 10 is 0.7, and 0.1 * 7 is more.
        return calls >= self._config.minimum_calls and number >= max(1, math.ceil(rate * calls - 1e-9))


class CountWindow(_Rated):
    """Counts over the latest calls.

    One integer is the ring, a bit for each call: 40 bytes for a hundred of them, and an exact count in one instruction.
    """

    __slots__ = ("_calls", "_failed", "_slow")

    def __init__(self, config: CircuitBreakerConfig) -> None:
        super().__init__(config)
        self._failed = 0
        self._slow = 0
        self._calls = 0

    def counts(self) -> tuple[int, int, int]:
        return self._calls, self._failed.bit_count(), self._slow.bit_count()

    def _count(self, run: int, now: float, failed: bool, slow: bool) -> None:
        del now
        size = self._config.window_calls or 1
        # Never further than the ring is long: an integer as long as a run of a billion successes would stall the loop.
        shift = min(run + 1, size)
        self._calls = min(self._calls + shift, size)
        mask = (1 << size) - 1
        self._failed = (self._failed << shift | failed) & mask
        self._slow = (self._slow << shift | slow) & mask


class TimeWindow(_Rated):
    """Counts over the latest seconds, in ten buckets: it covers nine tenths of its span at least, and all of it at most."""

    __slots__ = ("_bucket", "_calls", "_counts_calls", "_failed", "_slow", "_width")

    def __init__(self, config: CircuitBreakerConfig, seconds: float) -> None:
        super().__init__(config)
        self._width = seconds / _BUCKETS
        self._bucket: int | None = None  # which one is the newest, counted from the beginning of the clock
        self._failed = [0] * _BUCKETS
        self._slow = [0] * _BUCKETS
        # Only a rate asks how many calls there were: without one, successes need no clock.
        self._counts_calls = config.failure_rate is not None or config.slow_call_rate is not None
        self._calls = [0] * _BUCKETS if self._counts_calls else []
        if self._counts_calls:
            self.turn = -math.inf

    def counts(self) -> tuple[int, int, int]:
        return sum(self._calls), sum(self._failed), sum(self._slow)

    def prune(self, now: float) -> int:
        before = sum(self._failed) + sum(self._slow)
        run, self.run = self.run, 0
        self.successes += run
        self._turn_to(now, run)
        return before - sum(self._failed) - sum(self._slow)

    def _count(self, run: int, now: float, failed: bool, slow: bool) -> None:
        index = self._turn_to(now, run)
        self._failed[index] += failed
        self._slow[index] += slow
        if self._counts_calls:
            self._calls[index] += 1

    def _turn_to(self, now: float, run: int) -> int:
        """Make the bucket of the present the newest, and return where it is."""
        newest = math.floor(now / self._width)
        last = newest if self._bucket is None else self._bucket
        if self._counts_calls:
            # The run was counted while the bucket that was the newest up to here still was.
            self._calls[last % _BUCKETS] += run
        if newest < last - _BUCKETS:
            last = newest - _BUCKETS  # another clock: nothing of what was counted can be placed on it
        # One that has gone back a little counts into the newest bucket, as if it stood still.
        newest = max(newest, last)
        for bucket in range(last + 1, min(newest, last + _BUCKETS) + 1):
            for counts in (self._failed, self._slow, self._calls):
                if counts:
                    counts[bucket % _BUCKETS] = 0
        self._bucket = newest
        if self._counts_calls:
            self.turn = (newest + 1) * self._width
        return newest % _BUCKETS


def window_of(config: CircuitBreakerConfig) -> Window:
    """Return an empty window of the kind that a configuration asks for."""
    if config.window_calls is not None:
        return CountWindow(config)
    if config.window_ms is not None:
        return TimeWindow(config, config.window_ms / 1000)
    return Consecutive(config.failure_threshold)
