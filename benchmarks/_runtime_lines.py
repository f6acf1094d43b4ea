"""The line of those who wait for a slot, against a heap of the same: one comes and one is served, while a thousand wait."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Iterator
from typing import Final

from _rounds import Pair, Row, compare, measure_loops

from agentcore import TaskPriority
from agentcore._rules.priority import AgeingBands

WAITING: Final = 1_000
AGEING: Final = 10.0
STEP: Final = 0.01
"""Seconds between two who come: most of the thousand are overtaken by somebody."""
BANDS: Final = f"4 bands with ageing, {WAITING:,} waiting: one comes, one is served"
HEAP: Final = "a heapq of (rank, counter, item)"


def comers() -> Iterator[tuple[TaskPriority, float]]:
    """Yield who comes when, for ever."""
    draw = random.Random(7)
    priorities = [draw.choice(list(TaskPriority)) for _ in range(10_007)]
    return zip(itertools.cycle(priorities), itertools.count(0.0, STEP), strict=False)


class Bands:
    """The line as it is."""

    def __init__(self) -> None:
        self._line: AgeingBands[object] = AgeingBands(AGEING)
        self._comers = comers()
        for priority, now in itertools.islice(self._comers, WAITING):
            self._line.push(object(), priority, now)

    async def serve(self, number: int) -> None:
        """Loop: one comes, one is served."""
        push, pop = self._line.push, self._line.pop
        for priority, now in itertools.islice(self._comers, number):
            push(object(), priority, now)
            pop()


class Heap:
    """A heap of the same ranks, in the open: it could not take out anybody from its midst."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, object]] = []
        self._counter = itertools.count()
        self._comers = comers()
        for priority, now in itertools.islice(self._comers, WAITING):
            heapq.heappush(self._heap, (now - priority * AGEING, next(self._counter), object()))

    async def serve(self, number: int) -> None:
        """Loop: one comes, one is served."""
        heap, counter, push, pop = self._heap, self._counter, heapq.heappush, heapq.heappop
        for priority, now in itertools.islice(self._comers, number):
            push(heap, (now - priority * AGEING, next(counter), object()))
            pop(heap)[2]


async def measure_lines(rounds: int) -> list[Row]:
    """Measure both; the event loop has no part in it."""
    figures = await measure_loops({BANDS: Bands().serve, HEAP: Heap().serve}, rounds)
    return compare(figures, [Pair(what=BANDS, subject=BANDS, reference=HEAP, at_most=1.2)], "ns")
