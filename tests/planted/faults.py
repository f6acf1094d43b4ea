"""Calls that fail, and what is wrong afterwards.

Each call has a limit of a second, so a call that hangs, or comes late, is a failed one.
"""

from __future__ import annotations

import anyio

from tests.planted._bug import found_by_fault, steps


class Bank:
    """Charges once for each key, however often it is asked."""

    def __init__(self) -> None:
        self.charged: dict[str, int] = {}
        self._keys: set[str] = set()

    async def charge(self, order: str, key: str) -> None:
        await steps()
        if key not in self._keys:
            self._keys.add(key)
            self.charged[order] = self.charged.get(order, 0) + 10


class Shop:
    """Charges for an order, and tries again when the call fails.

    Each attempt has a key of its own: a charge that was made, but whose answer was lost, is made again.
    """

    def __init__(self) -> None:
        self.bank = Bank()

    async def sell(self, order: str) -> None:
        for attempt in range(3):
            try:
                with anyio.fail_after(1):
                    await self.bank.charge(order, self._key(order, attempt))
                return
            except Exception:  # noqa: BLE001 - whatever it is, the next attempt may succeed
                await steps()

    def _key(self, order: str, attempt: int) -> str:
        return f"{order}, attempt {attempt}"


class FixedShop(Shop):
    """All attempts for one order have the same key."""

    def _key(self, order: str, attempt: int) -> str:
        return order


async def _charged_once(shop: Shop) -> None:
    for order, amount in shop.bank.charged.items():
        assert amount == 10, f"{amount} was charged for {order}, which costs 10"


@found_by_fault(Shop, FixedShop, check=_charged_once, targets={"bank.charge": lambda shop: (shop.bank, "charge")})
async def charged_twice(shop: Shop) -> None:
    async with anyio.create_task_group() as tg:
        tg.start_soon(shop.sell, "bread")
        tg.start_soon(shop.sell, "milk")


class Source:
    """Something to fetch."""

    async def fetch(self) -> str:
        await steps()
        return "fresh"


class Mirror:
    """A copy that one task at a time refreshes.

    A refresh that fails leaves its mark, and the copy is never refreshed again.
    """

    def __init__(self) -> None:
        self.source = Source()
        self.copy = "stale"
        self.refreshing = False

    async def refresh(self) -> None:
        if self.refreshing:
            return
        self.refreshing = True
        await self._fetch()
        self.refreshing = False

    async def _fetch(self) -> None:
        with anyio.fail_after(1):
            self.copy = await self.source.fetch()


class FixedMirror(Mirror):
    """The mark is taken away however the refresh ends."""

    async def refresh(self) -> None:
        if self.refreshing:
            return
        self.refreshing = True
        try:
            await self._fetch()
        finally:
            self.refreshing = False


async def _may_be_refreshed(mirror: Mirror) -> None:
    # Nothing is fetched here: a plan that is still in force would strike at the check.
    assert not mirror.refreshing, "nobody refreshes, and nobody ever will"


@found_by_fault(
    Mirror, FixedMirror, check=_may_be_refreshed, targets={"source.fetch": lambda mirror: (mirror.source, "fetch")}
)
async def mark_left_by_failed_refresh(mirror: Mirror) -> None:
    async def refresh(after: int) -> None:
        await steps(after)
        try:
            await mirror.refresh()
        except Exception:  # noqa: BLE001 - a stale copy will do
            await steps()

    async with anyio.create_task_group() as tg:
        tg.start_soon(refresh, 0)
        tg.start_soon(refresh, 3)


class Line:
    """A line to the outside that is told when a visitor leaves."""

    async def hang_up(self, visitor: str) -> None:
        await steps()


class Lobby:
    """Visitors who have a line and a key, and give both back when they leave.

    When the line fails, the key is not given back.
    """

    def __init__(self) -> None:
        self.line = Line()
        self.keys_out: set[str] = set()

    async def visit(self, visitor: str) -> None:
        await steps()  # look around
        self.keys_out.add(visitor)
        try:
            await self._leave(visitor)
        except Exception:  # noqa: BLE001 - who leaves does not mind
            await steps()

    async def _leave(self, visitor: str) -> None:
        await self._hang_up(visitor)
        self.keys_out.discard(visitor)

    async def _hang_up(self, visitor: str) -> None:
        with anyio.fail_after(1):
            await self.line.hang_up(visitor)


class FixedLobby(Lobby):
    """The key is given back whatever becomes of the line."""

    async def _leave(self, visitor: str) -> None:
        try:
            await self._hang_up(visitor)
        finally:
            self.keys_out.discard(visitor)


async def _keys_are_back(lobby: Lobby) -> None:
    assert not lobby.keys_out, f"these have left, and their keys are still out: {sorted(lobby.keys_out)}"


@found_by_fault(
    Lobby, FixedLobby, check=_keys_are_back, targets={"line.hang_up": lambda lobby: (lobby.line, "hang_up")}
)
async def clean_up_skipped_after_failure(lobby: Lobby) -> None:
    async with anyio.create_task_group() as tg:
        tg.start_soon(lobby.visit, "ann")
        tg.start_soon(lobby.visit, "bob")


BUGS = [charged_twice, mark_left_by_failed_refresh, clean_up_skipped_after_failure]
