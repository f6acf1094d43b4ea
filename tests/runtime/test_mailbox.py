"""Mailboxes by themselves: the order of each sender, a bound, and what is left by whoever is cancelled or closes them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio
import anyio.lowlevel
import pytest

from agentcore._mailbox import Mailbox
from agentcore.testing import cancel_everywhere, current_simulation, simulate

pytestmark = pytest.mark.anyio
RUNS = 20


class Books:
    """A mailbox, and what its owner is told of messages.

    Attributes:
        held: messages that were accepted, and neither taken out, taken back nor left when it was closed.
    """

    def __init__(self, capacity: int = 1) -> None:
        self.accepted: list[object] = []
        self.back: list[object] = []
        self.taken: list[object] = []
        self.refused: list[object] = []
        self.left: list[object] = []
        self.box: Mailbox[object] = Mailbox(capacity, self.accepted.append, self.back.append)

    async def send(self, *items: object) -> None:
        """Put messages in, one after the other."""
        for item in items:
            if not await self.box.put(item):
                self.refused.append(item)

    def take(self) -> None:
        """Take out one message."""
        self.taken.append(self.box.take())

    async def receive(self, count: int) -> None:
        """Take out messages, as they come."""
        for _ in range(count):
            await self.box.wait()
            self.take()
            await anyio.lowlevel.checkpoint()

    def close(self) -> None:
        """Close it."""
        self.left += self.box.close()

    def check(self) -> None:
        """Check that every accepted message is in exactly one place."""
        gone = sorted(map(repr, [*self.back, *self.taken, *self.left, *self.box._items]))
        assert sorted(map(repr, self.accepted)) == gone
        assert len(self.box) <= self.box.capacity


async def settle() -> None:
    await current_simulation().settle()


@pytest.mark.parametrize("capacity", [1, 2, 7])
@simulate(runs=RUNS)
async def test_each_sender_keeps_his_order(capacity: int) -> None:
    """Whether he had to wait or not."""
    books = Books(capacity)
    async with anyio.create_task_group() as group:
        for sender in range(4):
            group.start_soon(books.send, *[(sender, number) for number in range(5)])
        await books.receive(20)
    for sender in range(4):
        assert list(range(5)) == [number for who, number in books.taken if who == sender]  # type: ignore[misc,attr-defined]
    assert books.accepted == books.taken
    books.check()


@simulate(runs=RUNS)
async def test_nobody_overtakes_those_who_wait() -> None:
    """Neither who waits as well, nor who does not want to, also when there is room for a moment."""
    books = Books()
    assert books.box.try_put("first")
    async with anyio.create_task_group() as group:
        for name in ("second", "third"):
            group.start_soon(books.send, name)
            await settle()
        books.take()
        # The place is taken already, though the one who waited for it has not gone on yet.
        assert not books.box.try_put("pushy")
        assert ["first", "second"] == books.accepted
        await books.receive(2)
    assert ["first", "second", "third"] == books.taken
    books.check()


@simulate(runs=RUNS)
async def test_whoever_is_cancelled_in_line_has_sent_nothing() -> None:
    books = Books()
    scopes = [anyio.CancelScope() for _ in range(3)]

    async def send(index: int) -> None:
        with scopes[index]:
            await books.send(index)

    books.box.try_put("first")
    async with anyio.create_task_group() as group:
        for index in range(3):
            group.start_soon(send, index)
            await settle()
        scopes[1].cancel()
        await settle()
        await books.receive(3)
    assert ["first", 0, 2] == books.taken
    assert [] == books.back
    books.check()


@pytest.mark.parametrize("is_taken_out", [False, True])
@simulate(runs=RUNS)
async def test_whoever_is_cancelled_in_the_moment_of_acceptance(is_taken_out: bool) -> None:
    """He takes his message back if it is still there, and the next one comes in; if it is not, it counts as sent."""
    books = Books()
    scope = anyio.CancelScope()

    async def send() -> None:
        with scope:
            await books.send("mine")
        # On which side the coin falls is the event loop's: he may have gone on before the cancellation came.
        assert ("mine" in books.accepted) or scope.cancelled_caught

    books.box.try_put("first")
    async with anyio.create_task_group() as group:
        group.start_soon(send)
        await settle()
        group.start_soon(books.send, "next")
        await settle()
        books.take()
        assert ["first", "mine"] == books.accepted
        if is_taken_out:
            books.take()
        scope.cancel()
        await settle()
        left = [] if is_taken_out or not scope.cancelled_caught else ["mine"]
        assert left == books.back
        await books.receive(len(books.box) + len(books.box._senders))
    assert ("mine" in books.taken) == (not left)
    assert "next" == books.taken[-1]
    books.check()


@simulate(runs=RUNS)
async def test_messages_are_told_apart_by_what_they_are() -> None:
    """Of two that are equal, the one that is taken back is that of who was cancelled."""
    books = Books(2)
    mine: list[str] = []
    others: list[str] = []
    scope = anyio.CancelScope()

    async def send() -> None:
        with scope:
            await books.send(mine)

    books.box.try_put("first")
    books.box.try_put(others)
    async with anyio.create_task_group() as group:
        group.start_soon(send)
        await settle()
        books.take()
        scope.cancel()
    await books.receive(len(books.box))
    assert books.taken[1] is others
    if books.back:
        assert books.back[0] is mine
    books.check()


@simulate(runs=RUNS)
async def test_who_waits_when_it_is_closed_is_told() -> None:
    books = Books()
    async with anyio.create_task_group() as group:
        group.start_soon(books.send, 1)
        await settle()
        group.start_soon(books.send, 2)
        await settle()
        books.close()
    await books.send(3)
    assert not books.box.try_put(4)
    assert ([1], [2, 3], [1]) == (books.accepted, books.refused, books.left)
    assert [] == books.box.close()
    books.check()


@simulate(runs=RUNS)
async def test_who_is_accepted_and_then_sees_it_closed_has_sent() -> None:
    """His message is among those that are left: it is not refused as well."""
    books = Books()
    books.box.try_put(1)
    async with anyio.create_task_group() as group:
        group.start_soon(books.send, 2)
        await settle()
        books.take()
        books.close()
    assert ([2], [], []) == (books.left, books.refused, books.back)
    books.check()


@simulate(runs=RUNS)
async def test_a_cancelled_receiver_leaves_the_message() -> None:
    """And the next receiver gets it, whenever that one comes."""
    books = Books()
    async with anyio.create_task_group() as group:
        group.start_soon(books.receive, 1)
        await settle()
        group.cancel_scope.cancel()
    books.box.try_put(1)
    await books.receive(1)
    assert [1] == books.taken


@simulate(runs=RUNS)
async def test_one_message_for_two_receivers_goes_to_one() -> None:
    books = Books(3)
    async with anyio.create_task_group() as group:
        group.start_soon(books.receive, 1)
        group.start_soon(books.receive, 1)
        await settle()
        books.box.try_put(1)
        await settle()
        assert [1] == books.taken
        books.box.try_put(2)
    assert [1, 2] == books.taken


async def traffic(books: Books) -> None:
    """Send more than there is room for, and take it out."""
    async with anyio.create_task_group() as group:
        for sender in range(3):
            group.start_soon(books.send, f"{sender}a", f"{sender}b")
        await books.receive(5)
        books.close()


async def check(books: Books) -> None:
    """Nobody waits, nothing is in two places, and it goes on."""
    books.check()
    assert [] == list(books.box._senders)
    for sender in range(3):
        assert ["a", "b"][: len(own := [str(one)[1] for one in books.taken if str(one)[0] == str(sender)])] == own
    if not books.box.is_closed:
        while len(books.box):
            books.take()
        await books.send("after")
        books.take()
        books.check()


@pytest.mark.parametrize("capacity", [1, 2])
def test_cancelled_everywhere(capacity: int) -> None:
    """Whoever is cut short, wherever: each accepted message is in one place, and nobody is left in line."""
    build: Callable[[], Books] = lambda: Books(capacity)  # noqa: E731
    after: Callable[[Books], Awaitable[None]] = check
    cancel_everywhere(traffic, build=build, check=after, schedules=("fifo", "walk/1", "rare/2"))


def test_it_says_what_is_in_it() -> None:
    books = Books(3)
    books.box.try_put(1)
    assert ("<Mailbox 1 of 3, 0 senders wait>", 1) == (repr(books.box), len(books.box))
