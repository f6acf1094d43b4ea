"""Who of those who wait comes next: bands of priority that age, so that nobody waits for ever.

Whoever waits is worth a band more for every `ageing` seconds. Between two who wait the order never changes by that, since both
age alike: who came at ``t`` in band ``p`` stands where a plain queue would have him if he had come at ``t - p * ageing``. So
each band is a queue of its own, and the next one is the foremost of four heads. Who comes anew, after a failure for
instance, is as old as he is then: trying often makes nobody more urgent.

The bound: who has come at ``t`` in band ``p`` is overtaken by those of band ``q`` alone that have come before
``t + (q - p) * ageing``. After 3 * `ageing` seconds nobody overtakes whoever waits since then, and what stands before him
only becomes less, however many urgent ones come.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Generic, TypeVar

from agentcore._rules.task_states import TaskPriority

T = TypeVar("T")


class AgeingBands(Generic[T]):
    """A queue of four bands. What is in it can be hashed, and is in it once. Time never goes back.

    Args:
        ageing: seconds of waiting that are worth one band; infinite for bands that never mix.
    """

    __slots__ = ("_bands", "_heads", "_leads")

    def __init__(self, ageing: float = math.inf) -> None:
        # By priority: how long before his time whoever comes counts as having come. For LOW it is 0, not 0 * inf.
        self._leads = tuple(priority * ageing if priority else 0.0 for priority in TaskPriority)
        # The ranks of those who wait, in order of arrival. With deques, coming and going takes two thirds of the time; but
        # whoever is cancelled leaves from the midst: ten thousand of them take 250 ms then, and here 4 ms.
        self._bands: tuple[OrderedDict[T, float], ...] = tuple(OrderedDict() for _ in TaskPriority)
        # The rank of each band's first.
        self._heads = [math.inf for _ in TaskPriority]

    def __len__(self) -> int:
        """Return how many wait."""
        return sum(map(len, self._bands))

    def push(self, ticket: T, priority: TaskPriority, now: float) -> None:
        """Let somebody wait from now on."""
        rank = now - self._leads[priority]
        band = self._bands[priority]
        if not band:
            self._heads[priority] = rank
        band[ticket] = rank

    def pop(self) -> T:
        """Take out who comes next.

        Raises:
            KeyError: there is nobody.
        """
        heads = self._heads
        # Written out: with min() and index(), this would be half of the time. Of equal ones the most urgent is first.
        low, normal, high, first = heads
        place = 3
        if high < first:
            place, first = 2, high
        if normal < first:
            place, first = 1, normal
        if low < first:
            place = 0
        band = self._bands[place]
        ticket, _ = band.popitem(False)
        heads[place] = math.inf
        for head in band:
            heads[place] = band[head]
            break
        return ticket

    def remove(self, ticket: T, priority: TaskPriority) -> bool:
        """Take somebody out who waits no longer; False if he has been taken out before."""
        band = self._bands[priority]
        if band.pop(ticket, None) is None:
            return False
        self._heads[priority] = next(iter(band.values()), math.inf)
        return True
