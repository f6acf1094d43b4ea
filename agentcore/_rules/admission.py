"""Who may go on, and who is next: a fixed number of slots, and a line of those who wait for one.

`Slots` decides for the concurrency limit of an agent and for the tasks in flight of a runtime. It never waits: who gets
no slot leaves a ticket, and whoever gives a slot back learns whose ticket is served by it. So taking and giving have no
await between the decision and its bookkeeping, and no lock that a cancelled scope could fail to take.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

from agentcore._rules.task_states import TaskPriority

T = TypeVar("T")


class Slots(Generic[T]):
    """A number of slots, taken at once while there are free ones, else in order of priority and then of arrival.

    Args:
        limit: how many slots there are; None for no limit.
    """

    __slots__ = ("_bands", "_waiting", "in_use", "limit")

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self.in_use = 0
        self._waiting = 0
        # One queue a priority, made when somebody has to wait for the first time: an agent made for one task never
        # needs them, and four empty deques are 2.5 kB. Serving the first that is not empty is exact and O(bands).
        self._bands: tuple[deque[T], ...] = ()

    def __len__(self) -> int:
        """Return how many wait."""
        return self._waiting

    def __repr__(self) -> str:
        return f"<Slots {self.in_use} of {self.limit if self.limit is not None else 'unlimited'} in use, {self._waiting} waiting>"

    def try_take(self) -> bool:
        """Take a slot if one is free and nobody waits for it; who waits is never overtaken."""
        if self._waiting or (self.limit is not None and self.in_use >= self.limit):
            return False
        self.in_use += 1
        return True

    def wait(self, ticket: T, priority: TaskPriority = TaskPriority.NORMAL) -> None:
        """Get into the line. The ticket comes out of a later `give` or `serve`."""
        if not self._bands:
            self._bands = tuple(deque() for _ in TaskPriority)
        self._bands[priority].append(ticket)
        self._waiting += 1

    def withdraw(self, ticket: T, priority: TaskPriority = TaskPriority.NORMAL) -> bool:
        """Leave the line; False if the ticket has been served already, so that its slot must be given back."""
        if not self._waiting:
            return False
        try:
            self._bands[priority].remove(ticket)
        except ValueError:
            return False
        self._waiting -= 1
        return True

    def give(self) -> T | None:
        """Give a slot back; return the ticket that it passes to, whose holder has it from now on."""
        self.in_use -= 1
        return self.serve()

    def serve(self) -> T | None:
        """Hand a free slot to the first in line, if there are both."""
        if not self._waiting or (self.limit is not None and self.in_use >= self.limit):
            return None
        self.in_use += 1
        return self._pop()

    def reclaim(self) -> None:
        """Take back a slot that was lent, even over the limit.

        Who lent a slot while it waited for its own children must not wait for strangers to get it back: with every slot
        lent, that would be a deadlock. The excess is at most the number of lenders, and goes with their next `give`.
        """
        self.in_use += 1

    def drop_all(self) -> list[T]:
        """Empty the line; return the tickets, the most urgent first."""
        tickets = [ticket for band in reversed(self._bands) for ticket in band]
        for band in self._bands:
            band.clear()
        self._waiting = 0
        return tickets

    def _pop(self) -> T:
        self._waiting -= 1
        return next(band for band in reversed(self._bands) if band).popleft()
