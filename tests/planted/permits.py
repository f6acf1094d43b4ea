"""Permits that are lost, or come back twice."""

from __future__ import annotations

from collections import deque

import anyio

from tests.planted._bug import found_by_cancel, found_by_schedule, steps


class Desk:
    """Two clerks behind a semaphore.

    The customer is announced between the permit and the `try`: cancelled there, the permit is never given back.
    """

    def __init__(self) -> None:
        self.permits = anyio.Semaphore(2)

    async def serve(self) -> None:
        await self.permits.acquire()
        await steps()  # announce the customer
        try:
            await steps()
        finally:
            self.permits.release()


class FixedDesk(Desk):
    """Nothing waits between the permit and what gives it back."""

    async def serve(self) -> None:
        async with self.permits:
            await steps(2)


async def _clerks_are_free(desk: Desk) -> None:
    assert desk.permits.value == 2, f"{desk.permits.value} of 2 permits came back"


@found_by_cancel(Desk, FixedDesk, check=_clerks_are_free)
async def permit_lost_before_the_try(desk: Desk) -> None:
    async with anyio.create_task_group() as tg:
        for _ in range(3):
            tg.start_soon(desk.serve)


class Handover:
    """One permit that is handed to whoever waits longest.

    Who is cancelled just after it was handed the permit leaves without passing it on.
    """

    def __init__(self) -> None:
        self.free = 1
        self._queue: deque[anyio.Event] = deque()

    async def use(self) -> None:
        await self._acquire()
        try:
            # Asleep, so that a cancellation wakes it together with those who wait for the permit.
            await anyio.sleep(0.001)
        finally:
            self._release()

    async def _acquire(self) -> None:
        if self.free:
            self.free -= 1
            return
        turn = anyio.Event()
        self._queue.append(turn)
        try:
            await turn.wait()
        except BaseException:
            self._leave(turn)
            raise

    def _release(self) -> None:
        if self._queue:
            self._queue.popleft().set()
        else:
            self.free += 1

    def _leave(self, turn: anyio.Event) -> None:
        if turn in self._queue:
            self._queue.remove(turn)


class FixedHandover(Handover):
    """Who leaves with the permit in hand passes it on."""

    def _leave(self, turn: anyio.Event) -> None:
        if turn in self._queue:
            self._queue.remove(turn)
        else:
            self._release()


async def _permit_is_back(handover: Handover) -> None:
    assert handover.free == 1, f"{handover.free} of 1 permit came back"


@found_by_cancel(Handover, FixedHandover, check=_permit_is_back)
async def permit_handed_to_one_who_left(handover: Handover) -> None:
    async with anyio.create_task_group() as tg:
        for _ in range(3):
            tg.start_soon(handover.use)


class Slot:
    """A job that holds a slot until it ends, by its own doing or by being called off.

    The end is stored before it is noted: both get past the check, and the slot comes back twice.
    """

    def __init__(self) -> None:
        self.free = 0
        self.outcomes: list[str] = []

    async def end(self, outcome: str) -> None:
        if self.outcomes:
            return
        await steps()  # store the outcome
        self._note(outcome)

    def _note(self, outcome: str) -> None:
        self.outcomes.append(outcome)
        self.free += 1


class FixedSlot(Slot):
    """The end is noted in the same step as the check, and stored afterwards."""

    async def end(self, outcome: str) -> None:
        if self.outcomes:
            return
        self._note(outcome)
        await steps()


@found_by_schedule(Slot, FixedSlot)
async def slot_returned_twice(slot: Slot) -> None:
    async def end(after: int, outcome: str) -> None:
        await steps(after)
        await slot.end(outcome)

    async with anyio.create_task_group() as tg:
        tg.start_soon(end, 1, "completed")
        tg.start_soon(end, 4, "called off")
    assert len(slot.outcomes) == 1, f"the job ended {len(slot.outcomes)} times: {slot.outcomes}"
    assert slot.free == 1, f"one slot came back as {slot.free}"


BUGS = [permit_lost_before_the_try, permit_handed_to_one_who_left, slot_returned_twice]
