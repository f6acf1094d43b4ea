"""Items that are lost on the way, or arrive twice."""

from __future__ import annotations

import anyio
from anyio.abc import TaskGroup
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from tests.planted._bug import found_by_cancel, found_by_schedule, steps


class Feed:
    """A stream that its writer closes.

    The reader stops as soon as it sees that the writer has closed, and leaves what is still in the buffer.
    """

    def __init__(self) -> None:
        self.got: list[int] = []
        self._send, self._receive = anyio.create_memory_object_stream[int](8)
        self._closed = False

    async def write(self, count: int) -> None:
        with self._send:
            for item in range(count):
                self._send.send_nowait(item)
                await steps(2)
            self._closed = True

    async def read(self) -> None:
        with self._receive:
            try:
                while self._goes_on():
                    item = await self._receive.receive()
                    await steps()  # handle it
                    self.got.append(item)
            except anyio.EndOfStream:
                pass

    def _goes_on(self) -> bool:
        return not self._closed


class FixedFeed(Feed):
    """The reader goes on until the stream itself has ended."""

    def _goes_on(self) -> bool:
        return True


@found_by_schedule(Feed, FixedFeed)
async def item_left_at_close(feed: Feed) -> None:
    async with anyio.create_task_group() as tg:
        tg.start_soon(feed.read)
        tg.start_soon(feed.write, 3)
    assert feed.got == [0, 1, 2], f"of items 0, 1 and 2 arrived {feed.got}"


class Line:
    """Items that go to one of two workers.

    An item is noted when it has been handled: a worker that is cancelled before takes it along.
    """

    def __init__(self) -> None:
        self.sent: list[int] = []
        self.handled: list[int] = []
        self._returned: list[int] = []
        self._send, self._receive = anyio.create_memory_object_stream[int](8)

    async def fill(self) -> None:
        with self._send:
            for item in range(4):
                self._send.send_nowait(item)
                self.sent.append(item)
                await steps()

    async def work(self) -> None:
        async for item in self._receive:
            await self._handle(item)

    async def _handle(self, item: int) -> None:
        await steps(2)
        self.handled.append(item)

    def close(self) -> list[int]:
        """Return what no worker has handled."""
        with self._send, self._receive:
            waiting = self._receive.statistics().current_buffer_used
            return self._returned + [self._receive.receive_nowait() for _ in range(waiting)]


class FixedLine(Line):
    """A worker that is cancelled puts its item back."""

    async def _handle(self, item: int) -> None:
        try:
            await super()._handle(item)
        except BaseException:
            self._returned.append(item)
            raise


async def _nothing_is_lost(line: Line) -> None:
    left = line.close()
    assert line.sent == sorted(line.handled + left), f"sent {line.sent}, handled {line.handled}, left {left}"


@found_by_cancel(Line, FixedLine, check=_nothing_is_lost)
async def item_lost_in_the_hand(line: Line) -> None:
    async with anyio.create_task_group() as tg:
        tg.start_soon(line.work)
        tg.start_soon(line.work)
        tg.start_soon(line.fill)


class FanIn:
    """Several writers on one stream, which ends with the last of them.

    A writer takes its end of the stream when it first runs: if the owner has closed its own by then, it comes too late.
    """

    def __init__(self) -> None:
        self.got: list[int] = []

    async def read(self, receive: MemoryObjectReceiveStream[int]) -> None:
        with receive:
            async for item in receive:
                self.got.append(item)

    def start(self, tg: TaskGroup, send: MemoryObjectSendStream[int], item: int) -> None:
        tg.start_soon(self._clone_and_write, send, item)

    async def _clone_and_write(self, send: MemoryObjectSendStream[int], item: int) -> None:
        await self._write(send.clone(), item)

    async def _write(self, send: MemoryObjectSendStream[int], item: int) -> None:
        with send:
            await steps(2)
            send.send_nowait(item)


class FixedFanIn(FanIn):
    """The owner takes the writer's end of the stream before it starts the writer."""

    def start(self, tg: TaskGroup, send: MemoryObjectSendStream[int], item: int) -> None:
        tg.start_soon(self._write, send.clone(), item)


@found_by_schedule(FanIn, FixedFanIn)
async def writer_counted_too_late(fan_in: FanIn) -> None:
    send, receive = anyio.create_memory_object_stream[int](8)
    async with anyio.create_task_group() as tg:
        tg.start_soon(fan_in.read, receive)
        with send:
            for item in range(3):
                fan_in.start(tg, send, item)
            await steps(2)  # tell that all are on their way
    assert sorted(fan_in.got) == [0, 1, 2], f"of items 0, 1 and 2 arrived {fan_in.got}"


class Hub:
    """Subscribers get what was published before they came, and then each new item.

    A subscriber is listed before it has its backlog: what is published meanwhile reaches it twice.
    """

    def __init__(self) -> None:
        self.published: list[int] = []
        self.inboxes: list[list[int]] = []

    def publish(self, item: int) -> None:
        self.published.append(item)
        for inbox in self.inboxes:
            inbox.append(item)

    async def subscribe(self) -> None:
        inbox: list[int] = []
        self.inboxes.append(inbox)
        await steps()  # open the archive
        inbox.extend(self.published)


class FixedHub(Hub):
    """The backlog is copied in the step in which the subscriber is listed."""

    async def subscribe(self) -> None:
        await steps()
        self.inboxes.append(self.published.copy())


@found_by_schedule(Hub, FixedHub)
async def delivered_twice(hub: Hub) -> None:
    async def publish() -> None:
        for item in range(3):
            hub.publish(item)
            await steps(4)

    async def subscribe(after: int) -> None:
        await steps(after)
        await hub.subscribe()

    async with anyio.create_task_group() as tg:
        tg.start_soon(publish)
        tg.start_soon(subscribe, 1)
        tg.start_soon(subscribe, 6)
    for inbox in hub.inboxes:
        assert inbox == hub.published, f"published were {hub.published}, delivered {inbox}"


BUGS = [item_left_at_close, item_lost_in_the_hand, writer_counted_too_late, delivered_twice]
