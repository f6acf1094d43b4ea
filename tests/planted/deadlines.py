"""Deadlines that come too late.

The limits are a few milliseconds and the checks allow a whole second, so that a slow machine makes no difference
where the clock is real; what goes wrong takes many seconds, which only cost something there.
"""

from __future__ import annotations

import anyio

from tests.planted._bug import found_by_schedule, steps

LIMIT = 0.005
MUCH_TOO_LONG = 60.0


class Clerk:
    """A clerk for one customer at a time, who spends at most the limit on each.

    The limit begins with the customer's turn, so the time in the queue is not limited at all.
    """

    def __init__(self) -> None:
        self.turn = anyio.Lock()

    async def call(self) -> None:
        async with self.turn:
            with anyio.fail_after(LIMIT):
                await steps()


class FixedClerk(Clerk):
    """The limit begins with the call."""

    async def call(self) -> None:
        with anyio.fail_after(LIMIT):
            async with self.turn:
                await steps()


@found_by_schedule(Clerk, FixedClerk)
async def queue_time_not_limited(clerk: Clerk) -> None:
    waited: list[float] = []

    async def call(scope: anyio.CancelScope) -> None:
        asked = anyio.current_time()
        try:
            await clerk.call()
        except TimeoutError:
            pass
        waited.append(anyio.current_time() - asked)
        scope.cancel()

    async def talk() -> None:
        await steps()
        async with clerk.turn:
            await anyio.sleep(MUCH_TOO_LONG)

    async with anyio.create_task_group() as tg:
        tg.start_soon(call, tg.cancel_scope)
        tg.start_soon(talk)
    assert waited[0] < 1, f"a call with a limit of {LIMIT} s took {waited[0]} s"


class Reader:
    """Reads from a service that may sleep, tries again when there is no answer, and gives up at the limit.

    The limit begins anew with each attempt: together they take as long as there are attempts.
    """

    def __init__(self) -> None:
        self.awake = anyio.Event()
        self.awake.set()

    async def read(self) -> None:
        for _ in range(400):
            with anyio.move_on_after(LIMIT):
                await self.awake.wait()
                return
        raise TimeoutError


class FixedReader(Reader):
    """One limit holds for all attempts."""

    async def read(self) -> None:
        with anyio.fail_after(LIMIT):
            while True:
                with anyio.move_on_after(LIMIT * 0.4):
                    await self.awake.wait()
                    return


@found_by_schedule(Reader, FixedReader)
async def limit_begins_anew(reader: Reader) -> None:
    waited: list[float] = []

    async def read(scope: anyio.CancelScope) -> None:
        await steps()
        asked = anyio.current_time()
        try:
            await reader.read()
        except TimeoutError:
            pass
        waited.append(anyio.current_time() - asked)
        scope.cancel()

    async def nap() -> None:
        await steps(2)
        reader.awake = anyio.Event()
        await anyio.sleep(MUCH_TOO_LONG)
        reader.awake.set()

    async with anyio.create_task_group() as tg:
        tg.start_soon(read, tg.cancel_scope)
        tg.start_soon(nap)
    assert waited[0] < 1, f"a call with a limit of {LIMIT} s took {waited[0]} s"


class Watch:
    """Looks now and then whether something is ready, until a deadline.

    The interval is longer than the deadline is away: neither the deadline nor what comes before it is seen in time.
    """

    def __init__(self) -> None:
        self.ready = anyio.Event()

    async def wait(self, timeout: float) -> bool:
        deadline = anyio.current_time() + timeout
        while not self.ready.is_set() and anyio.current_time() < deadline:  # noqa: ASYNC110 - the bug
            await anyio.sleep(MUCH_TOO_LONG)  # the interval
        return self.ready.is_set()


class FixedWatch(Watch):
    """It waits for the event itself, in a scope with the deadline."""

    async def wait(self, timeout: float) -> bool:
        with anyio.move_on_after(timeout):
            await self.ready.wait()
        return self.ready.is_set()


@found_by_schedule(Watch, FixedWatch)
async def deadline_between_two_looks(watch: Watch) -> None:
    took: list[float] = []

    async def prepare() -> None:
        await steps()
        watch.ready.set()

    async def wait() -> None:
        await steps(2)
        asked = anyio.current_time()
        # Half a second, which is never used up: what is waited for needs no time at all.
        assert await watch.wait(0.5), "it was ready, and was not seen"
        took.append(anyio.current_time() - asked)

    async with anyio.create_task_group() as tg:
        tg.start_soon(prepare)
        tg.start_soon(wait)
    assert took[0] < 1, f"a wait of at most 0.5 s took {took[0]} s"


BUGS = [queue_time_not_limited, limit_begins_anew, deadline_between_two_looks]
