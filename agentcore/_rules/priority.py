"""Who of those who wait comes next: bands of priority that age, so that nobody waits for ever.

Whoever waits is worth a band more for every `ageing` seconds. Between two who wait the order never changes by that, since both
age alike: who came at ``t`` in band ``p`` stands where a plain queue would have him if he had come at ``t - p * ageing``. So
each band is a queue of its own, and the next one is the foremost of four heads.

The bound: who has come at ``t`` in band ``p`` is overtaken by those of band ``q`` alone that have come before
``t + (q - p) * ageing``. After 3 * `ageing` seconds nobody overtakes whoever waits since then, and what stands before him
only becomes less, however many urgent ones come.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final, Generic, TypeVar

from agentcore._rules.task_states import TaskPriority

T = TypeVar("T")

_MOST_URGENT_FIRST: Final = tuple(sorted(TaskPriority, reverse=True))
_FEW: Final = 64
"""How many of those who have left may still stand in the bands, beside as many as wait."""


class AgeingBands(Generic[T]):
    """A queue of four bands. What is in it can be hashed, and is in it once.

    Args:
        ageing: seconds of waiting that are worth one band; infinite for bands that never mix.
    """

    __slots__ = ("_bands", "_gone", "_heads", "_leads", "_live")

    def __init__(self, ageing: float = math.inf) -> None:
        # How long before his time whoever comes counts as having come. In the least urgent band it is 0, not 0 * inf.
        self._leads = tuple(priority * ageing if priority else 0.0 for priority in _MOST_URGENT_FIRST)
        self._bands: tuple[deque[tuple[float, T]], ...] = tuple(deque() for _ in _MOST_URGENT_FIRST)
        # The rank of each band's first; of equal ones the most urgent is found first.
        self._heads = [math.inf] * len(self._bands)
        self._live = 0
        # Who has left from the midst of a band. Nobody at its head has.
        self._gone: set[T] = set()

    def __len__(self) -> int:
        """Return how many wait."""
        return self._live

    def push(self, ticket: T, priority: TaskPriority, now: float) -> None:
        """Let somebody wait from now on."""
        place = 3 - priority
        rank = now - self._leads[place]
        band = self._bands[place]
        if not band:
            self._heads[place] = rank
        band.append((rank, ticket))
        self._live += 1

    def pop(self) -> T:
        """Take out who comes next.

        Raises:
            IndexError: there is nobody.
        """
        heads = self._heads
        place = heads.index(min(heads))
        band = self._bands[place]
        _, ticket = band.popleft()
        heads[place] = band[0][0] if band else math.inf
        self._live -= 1
        if self._gone:
            self._tidy(place)
        return ticket

    def remove(self, ticket: T, priority: TaskPriority) -> None:
        """Take somebody out who waits no longer, and has waited until now."""
        place = 3 - priority
        self._live -= 1
        self._gone.add(ticket)
        if self._bands[place][0][1] in self._gone:
            self._tidy(place)
        elif len(self._gone) > _FEW + self._live:
            self._compact()

    def take_all(self) -> list[T]:
        """Take out everybody; return them in their order."""
        return [self.pop() for _ in range(self._live)]

    def _tidy(self, place: int) -> None:
        """Have somebody at the head of a band who waits."""
        band, gone = self._bands[place], self._gone
        while band and band[0][1] in gone:
            gone.discard(band.popleft()[1])
        self._heads[place] = band[0][0] if band else math.inf

    def _compact(self) -> None:
        """Let go of those who have left: most of them have."""
        gone = self._gone
        for band in self._bands:
            left = [one for one in band if one[1] not in gone]
            band.clear()
            band.extend(left)
        gone.clear()
