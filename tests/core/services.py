"""A service to call that does one thing after the other, and the ways to wait for it."""

from __future__ import annotations

from typing import Any, Final

import anyio

from agentcore import Backoff

EVEN: Final = Backoff(1.0, 2.0, 100.0, jitter=False)
"""Waits that can be reckoned: 1, 2, 4 seconds."""
NONE: Final = Backoff(0, 1, 0)
"""No waits."""


class Boom(Exception):
    """What the service raises."""


class Service:
    """Does one thing after the other, and notes when it was called.

    Args:
        *script: what to return or to raise; the last one again and again.
    """

    def __init__(self, *script: object) -> None:
        self.script = script
        self.at: list[float] = []

    async def __call__(self, *args: object) -> Any:
        return self.sync(*args)

    def sync(self, *args: object) -> Any:
        self.at.append(anyio.current_time())
        outcome = self.script[min(len(self.at), len(self.script)) - 1]
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome


def notes_of(error: BaseException) -> list[str]:
    """Return the notes of an error."""
    return list(getattr(error, "__notes__", []))
