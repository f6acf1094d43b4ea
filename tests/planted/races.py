"""Decisions that are outdated when they are carried out."""

from __future__ import annotations

from collections import deque

import anyio

from tests.planted._bug import found_by_schedule, steps


class Account:
    """A balance that is read, sent to the store and written back.

    What is paid in between the two is lost.
    """

    def __init__(self) -> None:
        self.balance = 0

    async def pay_in(self, amount: int) -> None:
        balance = self.balance
        await steps()  # ask the store
        self.balance = balance + amount


class FixedAccount(Account):
    """The balance is read and written in one step."""

    async def pay_in(self, amount: int) -> None:
        await steps()
        self.balance += amount


@found_by_schedule(Account, FixedAccount)
async def update_lost(account: Account) -> None:
    async def pay_in(after: int, amount: int) -> None:
        await steps(after)
        await account.pay_in(amount)

    async with anyio.create_task_group() as tg:
        for n, amount in enumerate([1, 10, 100]):
            tg.start_soon(pay_in, 2 * n, amount)
    assert account.balance == 111, f"1 + 10 + 100 made {account.balance}"


class Client:
    """A connection that is opened by who needs it first.

    Who comes while it is being opened opens another one.
    """

    def __init__(self) -> None:
        self.opened = 0
        self._connection: int | None = None

    async def connection(self) -> int:
        if self._connection is None:
            self._connection = await self._open()
        return self._connection

    async def _open(self) -> int:
        self.opened += 1
        number = self.opened
        await steps()
        return number


class FixedClient(Client):
    """One at a time looks whether there is a connection, and opens it."""

    def __init__(self) -> None:
        super().__init__()
        self._opening = anyio.Lock()

    async def connection(self) -> int:
        async with self._opening:
            return await super().connection()


@found_by_schedule(Client, FixedClient)
async def opened_twice(client: Client) -> None:
    async def use(after: int) -> None:
        await steps(after)
        await client.connection()

    async with anyio.create_task_group() as tg:
        for n in range(3):
            tg.start_soon(use, 3 * n)
    assert client.opened == 1, f"{client.opened} connections were opened, one was wanted"


class Breaker:
    """A half-open circuit breaker: one probe may pass, and closes it.

    The probe is announced before it is noted: a second caller gets past the check and probes as well.
    """

    def __init__(self) -> None:
        self.probes = 0
        self._half_open = True
        self._probing = False

    async def call(self) -> None:
        if not self._half_open:
            await steps()
        elif not self._probing:
            await self._admit()
            self.probes += 1
            await steps(2)
            self._half_open = self._probing = False

    async def _admit(self) -> None:
        await steps()  # announce the probe
        self._probing = True


class FixedBreaker(Breaker):
    """The probe is noted in the same step as the check, and announced afterwards."""

    async def _admit(self) -> None:
        self._probing = True
        await steps()


@found_by_schedule(Breaker, FixedBreaker)
async def two_probes(breaker: Breaker) -> None:
    async def call(after: int) -> None:
        await steps(after)
        await breaker.call()

    async with anyio.create_task_group() as tg:
        for n in range(3):
            tg.start_soon(call, 2 * n)
    assert breaker.probes == 1, f"{breaker.probes} probes passed a half-open breaker"


class Jobs:
    """A queue that runs what it has accepted when it is closed.

    A job is written down before it is queued: when the queue closes meanwhile, the job is accepted and never run.
    """

    def __init__(self) -> None:
        self.done: list[int] = []
        self._queue: deque[int] = deque()
        self._closed = False

    async def submit(self, job: int) -> bool:
        if self._closed:
            return False
        await self._accept(job)
        return True

    async def _accept(self, job: int) -> None:
        await steps()  # write the job down
        self._queue.append(job)

    async def close(self) -> None:
        self._closed = True
        while self._queue:
            job = self._queue.popleft()
            await steps()
            self.done.append(job)


class FixedJobs(Jobs):
    """A job is queued in the same step as the look at the flag."""

    async def _accept(self, job: int) -> None:
        self._queue.append(job)
        await steps()


@found_by_schedule(Jobs, FixedJobs)
async def job_lost_at_close(jobs: Jobs) -> None:
    accepted: list[int] = []

    async def submit(job: int, after: int) -> None:
        await steps(after)
        if await jobs.submit(job):
            accepted.append(job)

    async def close() -> None:
        await steps(3)
        await jobs.close()

    async with anyio.create_task_group() as tg:
        for job, after in enumerate([0, 1, 6]):
            tg.start_soon(submit, job, after)
        tg.start_soon(close)
    assert sorted(accepted) == sorted(jobs.done), f"accepted were {accepted}, done are {jobs.done}"


class Cache:
    """A cache before a store. Who misses gets a lease, and a change takes it back: no outdated value is filled in.

    Any lease will do, so a reader with an outdated value fills it in on the lease of a later one. It takes six events
    in one order: a miss, its read, a change, its clearing of the cache, another miss, the first reader's fill.
    """

    def __init__(self) -> None:
        self.store = "old"
        self.value: str | None = None
        self._lease: object | None = None

    async def read(self) -> None:
        if self.value is not None:
            return
        lease = object()
        self._lease = self._lease or lease
        await steps()
        value = self.store
        await steps()
        if self._may_fill(lease):
            self.value = value
            self._lease = None

    def _may_fill(self, lease: object) -> bool:
        return self._lease is not None

    async def change(self, value: str) -> None:
        self.store = value
        await steps()
        self.value = self._lease = None


class FixedCache(Cache):
    """A reader fills only on its own lease."""

    def _may_fill(self, lease: object) -> bool:
        return self._lease is lease


@found_by_schedule(Cache, FixedCache)
async def filled_on_the_lease_of_another(cache: Cache) -> None:
    async def read(after: int) -> None:
        await steps(after)
        await cache.read()

    async with anyio.create_task_group() as tg:
        tg.start_soon(cache.change, "new")
        tg.start_soon(read, 0)
        tg.start_soon(read, 3)
    assert cache.value in (None, cache.store), f"the cache says {cache.value!r}, the store says {cache.store!r}"


class Order:
    """An order that customer, warehouse and bank push on; each step looks whether it may be taken.

    The parcel is sent without a look whether the order was cancelled. Five events must come in one order for goods and
    money to go to the same side: pay, pack, settle, cancel, and then ship and refund.
    """

    def __init__(self) -> None:
        self.paid = self.packed = self.settled = self.cancelled = self.shipped = self.refunded = False

    def pay(self) -> None:
        self.paid = True

    def cancel(self) -> None:
        self.cancelled = not self.shipped

    def pack(self) -> None:
        self.packed = self.paid and not self.cancelled

    def ship(self) -> None:
        self.shipped = self.packed

    def settle(self) -> None:
        self.settled = self.packed and not self.cancelled

    def refund(self) -> None:
        self.refunded = self.settled and self.cancelled


class FixedOrder(Order):
    """What was cancelled is not sent."""

    def ship(self) -> None:
        self.shipped = self.packed and not self.cancelled


@found_by_schedule(Order, FixedOrder)
async def shipped_and_refunded(order: Order) -> None:
    async def bank() -> None:
        order.settle()
        await steps()
        order.refund()

    async def warehouse() -> None:
        order.pack()
        await steps()
        order.ship()

    async def customer() -> None:
        order.pay()
        await steps()
        order.cancel()

    async with anyio.create_task_group() as tg:
        tg.start_soon(bank)
        tg.start_soon(warehouse)
        tg.start_soon(customer)
    assert not (order.shipped and order.refunded), "the customer has both the goods and the money"


BUGS = [
    update_lost,
    opened_twice,
    two_probes,
    job_lost_at_close,
    filled_on_the_lease_of_another,
    shipped_and_refunded,
]
