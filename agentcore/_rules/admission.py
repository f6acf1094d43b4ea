"""Who may go on, and who is next: a fixed number of slots, and a line of those who wait for one.

`Slots` decides for the concurrency limit of an agent and for the tasks in flight of a runtime. It never waits: who gets
no slot leaves a ticket, and whoever gives a slot back learns whose ticket is served by it. So taking and giving have no
await between the decision and its bookkeeping, and no lock that a cancelled scope could fail to take.
"""

from __future__ import annotations

import math
from typing import Generic, TypeVar

from agentcore._rules.priority import AgeingBands
from agentcore._rules.task_states import TaskPriority

T = TypeVar("T")


class Slots(Generic[T]):
    """A number of slots, taken at once while there are free ones, else by those in line: see `AgeingBands`.

    Where nobody says how urgent he is, they are served in order of arrival.

    Args:
        limit: how many slots there are; None for no limit.
        ageing: seconds of waiting that are worth one band of priority; infinite for none.
    """

    __slots__ = ("_ageing", "_line", "_waiting", "in_use", "limit")

    def __init__(self, limit: int | None, ageing: float = math.inf) -> None:
        self.limit = limit
        self.in_use = 0
        self._waiting = 0
        self._ageing = ageing
        # Made when somebody has to wait for the first time: an agent made for one task never needs it.
        self._line: AgeingBands[T] | None = None

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

    def wait(self, ticket: T, priority: TaskPriority = TaskPriority.NORMAL, now: float = 0.0) -> None:
        """Get into the line at a time. The ticket comes out of a later `give` or `serve`."""
        if self._line is None:
            self._line = AgeingBands(self._ageing)
        self._line.push(ticket, priority, now)
        self._waiting += 1

    def withdraw(self, ticket: T, priority: TaskPriority = TaskPriority.NORMAL) -> bool:
        """Leave the line; False if the ticket has been served already, so that its slot must be given back."""
        if self._line is None or not self._line.remove(ticket, priority):
            return False
        self._waiting -= 1
        return True

    def give(self) -> T | None:
        """Give a slot back; return the ticket that it passes to, whose holder has it from now on."""
        self.in_use -= 1
        return self.serve()

    def serve(self) -> T | None:
        """Hand a free slot to the first in line, if there are both."""
        if self._line is None or not self._waiting or (self.limit is not None and self.in_use >= self.limit):
            return None
        self.in_use += 1
        self._waiting -= 1
        return self._line.pop()

    def reclaim(self) -> None:
        """Take back a slot that was lent, even over the limit.

        Who lent a slot while it waited for its own children must not wait for strangers to get it back: with every slot
        lent, that would be a deadlock. The excess is at most the number of lenders, and goes with their next `give`.
        """
        self.in_use += 1

    def drop_all(self) -> list[T]:
        """Empty the line; return the tickets in their order."""
        tickets = [] if self._line is None else [self._line.pop() for _ in range(self._waiting)]
        self._waiting = 0
        return tickets
