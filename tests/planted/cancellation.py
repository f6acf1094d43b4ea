"""Cancelled work that leaves something wrong behind."""

from __future__ import annotations

from typing import Literal

import anyio

from tests.planted._bug import found_by_cancel, steps


class Source:
    """Answers from a service, or a fallback when three attempts have failed.

    A cancellation is swallowed as a failed attempt: the fallback is kept though the service has never failed.
    """

    def __init__(self) -> None:
        self.answers: dict[str, str] = {}

    async def fetch(self, question: str) -> None:
        for _ in range(3):
            try:
                self.answers[question] = await self._ask()
                return
            except BaseException:  # noqa: BLE001 - the bug
                continue
        self.answers[question] = "fallback"

    async def _ask(self) -> str:
        await steps(2)
        return "answer"


class FixedSource(Source):
    """Only an `Exception` is a failed attempt."""

    async def fetch(self, question: str) -> None:
        for _ in range(3):
            try:
                self.answers[question] = await self._ask()
                return
            except Exception:  # noqa: BLE001 - whatever it is, the service has failed
                continue
        self.answers[question] = "fallback"


async def _no_fallback(source: Source) -> None:
    assert "fallback" not in source.answers.values(), f"nothing has failed, yet the answers are {source.answers}"


@found_by_cancel(Source, FixedSource, check=_no_fallback)
async def cancellation_swallowed(source: Source) -> None:
    async with anyio.create_task_group() as tg:
        tg.start_soon(source.fetch, "one")
        tg.start_soon(source.fetch, "two")


class Connections:
    """Connections that are reset on their way back.

    The reset waits in `finally`: in a cancelled scope it raises, and the connection never gets back.
    """

    def __init__(self) -> None:
        self.idle = ["one", "two"]

    async def use(self) -> None:
        connection = self.idle.pop()
        try:
            await steps(2)
        finally:
            await self._put_back(connection)

    async def _put_back(self, connection: str) -> None:
        await steps()  # reset it
        self.idle.append(connection)


class FixedConnections(Connections):
    """The way back is shielded."""

    async def _put_back(self, connection: str) -> None:
        with anyio.CancelScope(shield=True):
            await super()._put_back(connection)


async def _connections_are_back(connections: Connections) -> None:
    assert sorted(connections.idle) == ["one", "two"], f"of connections one and two are back: {connections.idle}"


@found_by_cancel(Connections, FixedConnections, check=_connections_are_back)
async def clean_up_not_shielded(connections: Connections) -> None:
    async with anyio.create_task_group() as tg:
        tg.start_soon(connections.use)
        tg.start_soon(connections.use)


class Purse:
    """Money that is given back when its delivery is cancelled.

    The inner and the outer step both see the cancellation pass, and both give the money back.
    """

    def __init__(self) -> None:
        self.inside = 20
        self.spent = 0
        self._on_the_way: dict[str, int] = {}

    async def buy(self, item: str) -> None:
        await steps()  # ask for the price
        self.inside -= 10
        self._on_the_way[item] = 10
        try:
            await self._deliver(item)
            await steps()  # print the receipt
        except BaseException:
            self._give_back(item)
            raise

    async def _deliver(self, item: str) -> None:
        try:
            await steps(2)
        except BaseException:
            self._give_back(item)
            raise
        self.spent += self._on_the_way.pop(item)

    def _give_back(self, item: str) -> None:
        self.inside += 10
        self._on_the_way.pop(item, None)


class FixedPurse(Purse):
    """Only what is still on the way is given back."""

    def _give_back(self, item: str) -> None:
        self.inside += self._on_the_way.pop(item, 0)


async def _no_money_made(purse: Purse) -> None:
    assert purse.inside + purse.spent == 20, f"20 became {purse.inside} in the purse and {purse.spent} spent"


@found_by_cancel(Purse, FixedPurse, check=_no_money_made)
async def undone_twice(purse: Purse) -> None:
    async with anyio.create_task_group() as tg:
        tg.start_soon(purse.buy, "bread")
        tg.start_soon(purse.buy, "milk")


class Job:
    """A job that knows its state and can be run again.

    Success and failure end the state RUNNING, a cancellation does not.
    """

    def __init__(self) -> None:
        self.state: Literal["PENDING", "RUNNING", "COMPLETED", "FAILED", "CANCELED"] = "PENDING"

    async def run(self) -> None:
        await steps()  # fetch the input
        assert self.state != "RUNNING", "the job runs already"
        self.state = "RUNNING"
        await self._process()

    async def _process(self) -> None:
        try:
            await steps(2)
        except Exception:
            self.state = "FAILED"
            raise
        self.state = "COMPLETED"


class FixedJob(Job):
    """A cancellation has a state of its own, and goes on."""

    async def _process(self) -> None:
        try:
            await super()._process()
        except anyio.get_cancelled_exc_class():
            self.state = "CANCELED"
            raise


async def _can_run_again(job: Job) -> None:
    assert job.state != "RUNNING", "the job has ended and is still RUNNING"
    await job.run()
    assert job.state == "COMPLETED", f"the second run left the job {job.state}"


@found_by_cancel(Job, FixedJob, check=_can_run_again)
async def still_running_after_cancel(job: Job) -> None:
    async def wait_for_something_else() -> None:
        await steps(5)

    async with anyio.create_task_group() as tg:
        tg.start_soon(job.run)
        tg.start_soon(wait_for_something_else)


class Breaker:
    """A circuit breaker that opens after one failure.

    It counts whatever leaves the call, so it opens when a caller is cancelled.
    """

    def __init__(self) -> None:
        self.failures = 0

    async def call(self) -> None:
        await steps()  # wait for a permit
        try:
            await steps()
        except BaseException:
            self.failures += 1
            raise


class FixedBreaker(Breaker):
    """Only an `Exception` is a failure of the service."""

    async def call(self) -> None:
        await steps()
        try:
            await steps()
        except Exception:
            self.failures += 1
            raise


async def _is_closed(breaker: Breaker) -> None:
    assert breaker.failures == 0, f"no call has failed, {breaker.failures} were counted"


@found_by_cancel(Breaker, FixedBreaker, check=_is_closed)
async def cancellation_counted_as_failure(breaker: Breaker) -> None:
    async with anyio.create_task_group() as tg:
        tg.start_soon(breaker.call)
        tg.start_soon(breaker.call)


class Till:
    """Charges a card and books what was charged.

    A `finally` waits in between: cancelled there, money was taken that is in no book.
    """

    def __init__(self) -> None:
        self.charged = 0
        self.booked = 0

    async def sell(self) -> None:
        try:
            amount = await self._charge()
        finally:
            await steps()  # send the metrics
        self.booked += amount

    async def _charge(self) -> int:
        await steps(3)
        self.charged += 10
        return 10


class FixedTill(Till):
    """The charge is booked in the step in which it was made, before anything waits."""

    async def sell(self) -> None:
        try:
            amount = await self._charge()
            self.booked += amount
        finally:
            await steps()


async def _books_are_right(till: Till) -> None:
    assert till.charged == till.booked, f"{till.charged} was charged, {till.booked} was booked"


@found_by_cancel(Till, FixedTill, check=_books_are_right)
async def outcome_lost_in_finally(till: Till) -> None:
    async with anyio.create_task_group() as tg:
        tg.start_soon(till.sell)
        tg.start_soon(till.sell)


BUGS = [
    cancellation_swallowed,
    clean_up_not_shielded,
    undone_twice,
    still_running_after_cancel,
    cancellation_counted_as_failure,
    outcome_lost_in_finally,
]
