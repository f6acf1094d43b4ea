"""One line on the terminal that says how far a run has come."""

from __future__ import annotations

from collections import Counter
from typing import Final, TextIO

from agentcore import Event
from agentcore._interop import monotonic
from agentcore.cli._render import printable

INTERVAL: Final = 0.1
"""Seconds between two drawings; events come thousands of times as often."""

ENDED: Final = ("task_completed", "task_failed", "task_canceled")


class Progress:
    """Counts the events of a runtime and draws them.

    Args:
        stream: a terminal.
        width: its columns.
    """

    def __init__(self, stream: TextIO, width: int = 80) -> None:
        self._stream = stream
        self._width = width
        self._accepted: Counter[str] = Counter()
        self._ended: Counter[str] = Counter()
        self._failed = 0
        self._drawn_at = -INTERVAL

    def __call__(self, event: Event) -> None:
        """Take an event of the runtime."""
        task_type = event.data.get("type")
        if event.event_type == "task_accepted":
            self._accepted[str(task_type)] += 1
        elif event.event_type in ENDED:
            self._ended[str(task_type)] += 1
            self._failed += event.event_type == "task_failed"
        now = monotonic()
        if now - self._drawn_at >= INTERVAL:
            self._drawn_at = now
            self._stream.write(f"\r{self.line():<{self._width - 1}.{self._width - 1}}")
            self._stream.flush()

    def line(self) -> str:
        """Return how many tasks of each type have ended, of how many."""
        parts = [f"{printable(name)} {self._ended[name]}/{count}" for name, count in self._accepted.items()]
        if self._failed:
            parts.append(f"{self._failed} failed")
        return "  ".join(parts)

    def clear(self) -> None:
        """Wipe the line away."""
        self._stream.write(f"\r{'':<{self._width - 1}}\r")
        self._stream.flush()
