"""Mailboxes: what is to be handled one after the other, in an order that each sender can rely on, and never too much of it.

A message is accepted in the moment in which it gets a place; whoever waits for one stands in line, and nobody comes in
between. So what one sender hands over comes out in his order, whether he had to wait or not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, Generic, TypeVar, final

import anyio

T = TypeVar("T")


@final
class _Sender(Generic[T]):
    """Somebody who waits for a place."""

    __slots__ = ("event", "is_accepted", "item")

    def __init__(self, item: T) -> None:
        self.item = item
        self.event = anyio.Event()
        self.is_accepted = False


@final
class Mailbox(Generic[T]):
    """A queue with an end, for one event loop. Messages are told apart by what they are, not by what they say.

    Args:
        capacity: how many messages may wait.
        accepted: called with each message in the moment in which it gets a place.
        taken_back: called with one that whoever has sent it takes back, since he is cancelled.
    """

    def __init__(
        self, capacity: int, accepted: Callable[[T], object] = bool, taken_back: Callable[[T], object] = bool
    ) -> None:
        self.capacity: Final = capacity
        self.is_closed = False
        self._accepted = accepted
        self._taken_back = taken_back
        self._items: deque[T] = deque()
        self._senders: deque[_Sender[T]] = deque()
        self._bell: anyio.Event | None = None  # while somebody waits for a message

    def __len__(self) -> int:
        """Return how many messages wait."""
        return len(self._items)

    def __repr__(self) -> str:
        return f"<Mailbox {len(self)} of {self.capacity}, {len(self._senders)} senders wait>"

    def try_put(self, item: T) -> bool:
        """Accept a message if there is a place for it, and nobody waits for one."""
        if self.is_closed or self._senders or len(self._items) >= self.capacity:
            return False
        self._take_in(item)
        return True

    async def put(self, item: T) -> bool:
        """Wait until a message is accepted; tell whether it was, and the mailbox not closed before.

        Whoever is cancelled while he waits has sent nothing, unless his message has been taken out already.
        """
        if self.is_closed or self.try_put(item):
            return not self.is_closed
        sender = _Sender(item)
        self._senders.append(sender)
        try:
            await sender.event.wait()
        except BaseException:
            self._take_back(sender)
            raise
        return sender.is_accepted

    async def wait(self) -> None:
        """Wait until there is a message to take out. A checkpoint only if it has to wait."""
        while not self._items:
            if self._bell is None:
                self._bell = anyio.Event()
            await self._bell.wait()

    def take(self) -> T:
        """Take out the message that has been there for longest; there must be one."""
        item = self._items.popleft()
        self._let_in()
        return item

    def put_back(self, item: T) -> bool:
        """Have a message that was taken out be the first once more, whether there is a place or not; False if it is closed."""
        if self.is_closed:
            return False
        self._items.appendleft(item)
        self._ring()
        return True

    def close(self) -> list[T]:
        """Accept nothing any more; return the messages that were not taken out. Who waits for a place is told."""
        self.is_closed = True
        left = list(self._items)
        self._items.clear()
        while self._senders:
            self._senders.popleft().event.set()
        return left

    def _take_back(self, sender: _Sender[T]) -> None:
        if sender in self._senders:
            self._senders.remove(sender)
        elif sender.is_accepted and self._remove(sender.item):
            self._taken_back(sender.item)
            self._let_in()

    def _remove(self, item: T) -> bool:
        """Remove a message, and none that is only equal to it; tell whether it was there."""
        for index in reversed(range(len(self._items))):
            if self._items[index] is item:
                del self._items[index]
                return True
        return False

    def _let_in(self) -> None:
        while self._senders and len(self._items) < self.capacity:
            sender = self._senders.popleft()
            sender.is_accepted = True
            self._take_in(sender.item)
            sender.event.set()

    def _take_in(self, item: T) -> None:
        self._items.append(item)
        self._accepted(item)
        self._ring()

    def _ring(self) -> None:
        if self._bell is not None:
            self._bell.set()
            self._bell = None
