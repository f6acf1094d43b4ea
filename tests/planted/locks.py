"""Tasks that wait for each other, or make way for each other, for ever."""

from __future__ import annotations

import anyio

from tests.planted._bug import found_by_schedule, steps


class Accounts:
    """Two accounts, each with a lock; a transfer holds both.

    The lock of the giver is taken first: two transfers in opposite directions wait for each other.
    """

    def __init__(self) -> None:
        self.balances = {"ann": 10, "bob": 10}
        self._locks = {"ann": anyio.Lock(), "bob": anyio.Lock()}

    async def move(self, giver: str, taker: str, amount: int) -> None:
        first, second = self._order(giver, taker)
        async with self._locks[first], self._locks[second]:
            self.balances[giver] -= amount
            await steps()
            self.balances[taker] += amount

    def _order(self, giver: str, taker: str) -> tuple[str, str]:
        return giver, taker


class FixedAccounts(Accounts):
    """The locks are always taken in the order of the names."""

    def _order(self, giver: str, taker: str) -> tuple[str, str]:
        return min(giver, taker), max(giver, taker)


@found_by_schedule(Accounts, FixedAccounts)
async def locks_in_opposite_order(accounts: Accounts) -> None:
    async def move_back() -> None:
        await steps(3)
        await accounts.move("bob", "ann", 2)

    async with anyio.create_task_group() as tg:
        tg.start_soon(accounts.move, "ann", "bob", 5)
        tg.start_soon(move_back)
    assert accounts.balances == {"ann": 7, "bob": 13}, f"the balances are {accounts.balances}"


class Agents:
    """Agents that handle one message at a time, and ask each other.

    An agent keeps its turn while it waits for an answer: two that ask each other never get one.
    """

    def __init__(self) -> None:
        self.plans: list[str] = []
        self._turns = {"ann": anyio.Lock(), "bob": anyio.Lock()}

    async def plan(self, name: str, other: str) -> None:
        async with self._turns[name]:
            await steps()  # think
            self.plans.append(f"{name} heard {await self._ask(other)}")

    async def _ask(self, name: str) -> str:
        async with self._turns[name]:
            await steps()
            return f"yes from {name}"


class FixedAgents(Agents):
    """An agent gives up its turn before it asks, and takes another one for the answer."""

    async def plan(self, name: str, other: str) -> None:
        async with self._turns[name]:
            await steps()
        answer = await self._ask(other)
        async with self._turns[name]:
            self.plans.append(f"{name} heard {answer}")


@found_by_schedule(Agents, FixedAgents)
async def agents_ask_each_other(agents: Agents) -> None:
    async def plan_later() -> None:
        await steps(4)
        await agents.plan("bob", "ann")

    async with anyio.create_task_group() as tg:
        tg.start_soon(agents.plan, "ann", "bob")
        tg.start_soon(plan_later)
    assert sorted(agents.plans) == ["ann heard yes from bob", "bob heard yes from ann"], f"the plans are {agents.plans}"


class Corridor:
    """A corridor that is wide enough for one.

    Two who meet both step back and try again, at the same pace; nobody waits, and nobody gets through.
    """

    def __init__(self) -> None:
        self.passed: list[str] = []
        self._inside: set[str] = set()

    async def walk(self, name: str) -> None:
        # As a rule, people have more patience; with four attempts the run ends, and can say what was wrong.
        for _ in range(4):
            self._inside.add(name)
            await steps()
            alone = self._inside == {name}
            self._inside.discard(name)
            if alone:
                self.passed.append(name)
                return
            await steps()


class FixedCorridor(Corridor):
    """Who comes first goes first; the other waits, and does not step back."""

    def __init__(self) -> None:
        super().__init__()
        self._turn = anyio.Lock()

    async def walk(self, name: str) -> None:
        async with self._turn:
            await super().walk(name)


@found_by_schedule(Corridor, FixedCorridor)
async def too_polite_to_pass(corridor: Corridor) -> None:
    async def walk_later() -> None:
        await steps(2)
        await corridor.walk("bob")

    async with anyio.create_task_group() as tg:
        tg.start_soon(corridor.walk, "ann")
        tg.start_soon(walk_later)
    assert sorted(corridor.passed) == ["ann", "bob"], f"of ann and bob passed {corridor.passed}"


class Shelf:
    """A shelf that one task fills and another empties, under a lock.

    Who takes waits under the lock for something to take: nobody can put it there.
    """

    def __init__(self) -> None:
        self._items: list[str] = []
        self._filled = anyio.Event()
        self._lock = anyio.Lock()

    async def put(self, item: str) -> None:
        async with self._lock:
            self._items.append(item)
            self._filled.set()

    async def take(self) -> str:
        async with self._lock:
            await self._filled.wait()
            return self._items.pop()


class FixedShelf(Shelf):
    """Who takes waits first, and takes the lock afterwards."""

    async def take(self) -> str:
        await self._filled.wait()
        async with self._lock:
            return self._items.pop()


@found_by_schedule(Shelf, FixedShelf)
async def waits_under_the_lock(shelf: Shelf) -> None:
    taken: list[str] = []

    async def put() -> None:
        await steps()
        await shelf.put("book")

    async def take() -> None:
        await steps(3)
        taken.append(await shelf.take())

    async with anyio.create_task_group() as tg:
        tg.start_soon(put)
        tg.start_soon(take)
    assert taken == ["book"], f"taken was {taken}"


BUGS = [locks_in_opposite_order, agents_ask_each_other, too_polite_to_pass, waits_under_the_lock]
