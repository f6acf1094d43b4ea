"""Wake-ups that nobody hears."""

from __future__ import annotations

from collections import deque

import anyio

from tests.planted._bug import found_by_schedule, steps


class Inbox:
    """Items for one reader, and an event that wakes it.

    The event is made some time after the look into the inbox: what is put in between wakes nobody.
    """

    def __init__(self) -> None:
        self._items: deque[int] = deque()
        self._filled = anyio.Event()

    def put(self, item: int) -> None:
        self._items.append(item)
        self._filled.set()

    async def get(self) -> int:
        while not self._items:
            await self._wait()
        return self._items.popleft()

    async def _wait(self) -> None:
        await steps()  # report that the reader is idle
        self._filled = anyio.Event()
        await self._filled.wait()


class FixedInbox(Inbox):
    """The event is made in the same step as the look into the inbox."""

    async def _wait(self) -> None:
        self._filled = anyio.Event()
        await steps()
        await self._filled.wait()


@found_by_schedule(Inbox, FixedInbox)
async def wake_up_lost(inbox: Inbox) -> None:
    got: list[int] = []

    async def read() -> None:
        while len(got) < 2:
            got.append(await inbox.get())

    async def write() -> None:
        for item in range(2):
            await steps(3)
            inbox.put(item)

    async with anyio.create_task_group() as tg:
        tg.start_soon(read)
        tg.start_soon(write)
    assert got == [0, 1], f"the reader got {got}"


class Price:
    """A price, and an event for its next change.

    The event is looked up late: a change on the way has replaced it, and the watcher waits for another change.
    """

    def __init__(self) -> None:
        self._price = 1
        self._changed = anyio.Event()

    def change(self, price: int) -> None:
        self._price = price
        self._changed.set()
        self._changed = anyio.Event()

    async def next(self) -> int:
        await steps()  # see whether the watcher may know
        await self._changed.wait()
        return self._price


class FixedPrice(Price):
    """The event is taken in the first step of the call."""

    async def next(self) -> int:
        changed = self._changed
        await steps()
        await changed.wait()
        return self._price


@found_by_schedule(Price, FixedPrice)
async def event_replaced_before_the_wait(price: Price) -> None:
    called = [anyio.Event(), anyio.Event()]
    seen: list[int] = []

    async def watch(n: int) -> None:
        called[n].set()
        seen.append(await price.next())

    async def change() -> None:
        for event in called:
            await event.wait()
        price.change(2)

    async with anyio.create_task_group() as tg:
        tg.start_soon(watch, 0)
        tg.start_soon(watch, 1)
        tg.start_soon(change)
    assert seen == [2, 2], f"the watchers saw {seen}"


class Door:
    """A door that is opened once, for all who wait.

    The guest waits to be told, and does not look: told before it listens, it waits for ever.
    """

    def __init__(self) -> None:
        self._told = anyio.Condition()
        self._open = False
        self.entered = 0

    async def open(self) -> None:
        async with self._told:
            self._open = True
            self._told.notify_all()

    async def enter(self) -> None:
        async with self._told:
            await self._wait()
            self.entered += 1

    async def _wait(self) -> None:
        await self._told.wait()


class FixedDoor(Door):
    """The guest looks first, and waits only before a closed door."""

    async def _wait(self) -> None:
        while not self._open:
            await self._told.wait()


@found_by_schedule(Door, FixedDoor)
async def told_before_it_listens(door: Door) -> None:
    async def open_later() -> None:
        await steps(2)
        await door.open()

    async with anyio.create_task_group() as tg:
        tg.start_soon(door.enter)
        tg.start_soon(door.enter)
        tg.start_soon(open_later)
    assert door.entered == 2, f"{door.entered} of 2 guests came in"


BUGS = [wake_up_lost, event_replaced_before_the_wait, told_before_it_listens]
