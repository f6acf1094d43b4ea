"""How many calls at a time (`Bulkhead`), and how many in a time (`RateLimit`), for all event loops of the process together.

Who may not go on at once waits in a line. The decision and its bookkeeping are in `_rules`, under a lock that is never held
across an await; whoever is next is woken up in the event loop where it waits.
"""

# No `from __future__ import annotations` here: the fields of public classes are read at run time, by cattrs and others.
# Their `__module__` reads agentcore, where names in strings could not be found.

import abc
import math
import threading
from collections import deque
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Final, final

import anyio
import anyio.lowlevel
import attrs

from agentcore import _interop
from agentcore._layer import GuardLayer, invoke
from agentcore._rules.admission import Slots
from agentcore._rules.backoff import check_number
from agentcore._rules.rate import TokenBucket, TokenLine
from agentcore.errors import BulkheadFullError, RateLimitError

_LATE: Final = 0.05
"""Seconds after its own time when somebody in a line looks whether another event loop holds it up."""


@final
class Ticket:
    """A caller in a line, in whichever event loop it waits."""

    __slots__ = ("_wake_up", "gone", "loop", "turn")

    def __init__(self) -> None:
        self.loop = anyio.lowlevel.current_token().native_token
        self.turn = anyio.Event()
        self.gone = False
        self._wake_up = _interop.wake_up_function()

    async def wait(self, seconds: float) -> None:
        """Wait until its turn, or for some time."""
        try:
            with anyio.move_on_after(seconds):
                await self.turn.wait()
        except RuntimeError as error:
            # When the coroutine is closed by the garbage collector: a scope cannot be left without its event loop.
            raise error.__context__ if isinstance(error.__context__, GeneratorExit) else error  # noqa: B904 - the same

    def call(self) -> bool:
        """Tell the caller, from any thread, that it is its turn; False if its event loop has been closed meanwhile."""
        try:
            self._wake_up(self.turn.set)
        except RuntimeError:
            return False
        return True


class _Limit(GuardLayer):
    """What both limits have in common: how a line is left.

    A coroutine may be closed by the garbage collector, in a thread that holds the lock of this very limit at the moment.
    To wait for the lock would be a deadlock then. So who leaves never waits for it: it puts its ticket down, and whoever
    holds the lock looks once more after releasing it.
    """

    __slots__ = ("_leaving", "_lock")

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._lock: Final = threading.Lock()
        self._leaving: Final[deque[Ticket | None]] = deque()

    def _leave(self, ticket: Ticket | None) -> None:
        """Leave the line, or give back what a ticket has been called for; None stands for a call that has ended."""
        self._leaving.append(ticket)
        self._settle()

    def _settle(self) -> None:
        """Have everybody out who wants to leave. To be called after each release of the lock."""
        while self._leaving and self._lock.acquire(blocking=False):
            called: list[Ticket] = []
            try:
                while self._leaving:
                    ticket = self._leaving.popleft()
                    if ticket is not None:
                        if ticket.gone:  # twice: its event loop was closed, and then its coroutine
                            continue
                        ticket.gone = True
                    if (following := self._remove(ticket)) is not None:
                        called.append(following)
            finally:
                self._lock.release()
            self._leaving.extend(following for following in called if not following.call())

    @abc.abstractmethod
    def _remove(self, ticket: Ticket | None) -> Ticket | None:
        """Take somebody out, and return whose turn it is by that. Called with the lock held."""


class _Block:
    """A block that begins and ends like a call through a limit."""

    __slots__ = ("_begin", "_end")

    def __init__(self, begin: Callable[[], Any], end: Callable[[], object] | None) -> None:
        self._begin = begin
        self._end = end

    async def __aenter__(self) -> None:
        await self._begin()

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._end is not None:
            self._end()


@final
@attrs.frozen(kw_only=True)
class BulkheadStatistics:
    """What a `Bulkhead` is doing.

    Attributes:
        limit: calls that may run at a time.
        queue: calls that may wait.
        running: calls that run, those that have been called to begin included.
        waiting: calls that wait.
        rejected: calls that have been rejected so far.
    """

    limit: int
    queue: int
    running: int
    waiting: int
    rejected: int


@final
class Bulkhead(_Limit):
    """So many calls at a time, in all event loops together: what hangs holds up no more than that.

        bulkhead = Bulkhead(10, queue=100)
        answer = await bulkhead.execute(fetch, url)

    A call that finds no room waits in order of arrival, if there is room in the queue. It waits as long as its caller lets
    it: put it into a `Timeout` to limit that. Waiting is a checkpoint; a call that need not wait adds none. However a
    waiter or a call is cut short, no place is lost.

    A function that comes back to the same bulkhead takes a second place: with none left it waits for itself.

    Args:
        limit: calls that may run at a time.
        queue: calls that may wait.
        name: what it is called, in messages.

    Raises:
        ConfigurationError: an argument is not usable.
    """

    __slots__ = ("_blocks", "_rejected", "_slots", "limit", "queue")

    def __init__(self, limit: int, *, queue: int = 0, name: str = "bulkhead") -> None:
        super().__init__(name)
        subject = f"bulkhead {name!r}"
        check_number(subject, "limit", limit, "say how many calls may run at a time", least=1, whole=True)
        check_number(subject, "queue", queue, "say how many calls may wait, 0 for none", whole=True)
        self.limit: Final = limit
        self.queue: Final = queue
        self._slots: Final[Slots[Ticket]] = Slots(limit)
        self._rejected = 0
        # One for each block that holds a place; a deque, since no lock can be taken where a block is closed by force.
        self._blocks: Final[deque[None]] = deque()

    def __repr__(self) -> str:
        now = self.statistics()
        return f"<Bulkhead {self.name!r} {now.running} of {self.limit} running, {now.waiting} of {self.queue} waiting>"

    def statistics(self) -> BulkheadStatistics:
        """Return what it is doing."""
        self._settle()
        return BulkheadStatistics(
            limit=self.limit,
            queue=self.queue,
            running=self._slots.in_use,
            waiting=len(self._slots),
            rejected=self._rejected,
        )

    def guard(self) -> AbstractAsyncContextManager[object, bool | None]:
        """Return a context manager for one block."""
        return _Block(self._begin_block, self._abandon)

    async def _execute(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        await self._begin()
        try:
            return await invoke(func, args, kwargs)
        finally:
            self._end()

    async def _begin(self) -> None:
        """Take a place, or wait for one."""
        ticket = None
        try:
            with self._lock:
                if self._slots.try_take():
                    return
                if len(self._slots) < self.queue:
                    self._slots.wait(ticket := Ticket())
                else:
                    self._rejected += 1
        finally:
            if self._leaving:
                self._settle()
        if ticket is None:
            raise BulkheadFullError(
                f"bulkhead {self.name!r} takes {self.limit} calls at a time and {self.queue} that wait: got one more; "
                "call later, or raise limit or queue",
                {"name": self.name, "limit": self.limit, "queue": self.queue},
            )
        try:
            await ticket.turn.wait()
        except BaseException:
            self._leave(ticket)
            raise

    async def _begin_block(self) -> None:
        await self._begin()
        self._blocks.append(None)

    def _end(self) -> None:
        self._leave(None)

    def _abandon(self) -> None:
        try:
            self._blocks.pop()
        except IndexError:  # who leaves has never entered: there is nothing to give back
            return
        self._end()

    def _remove(self, ticket: Ticket | None) -> Ticket | None:
        return None if ticket is not None and self._slots.withdraw(ticket) else self._slots.give()


@final
@attrs.frozen(kw_only=True)
class RateLimitStatistics:
    """What a `RateLimit` is doing.

    Attributes:
        available: calls that may begin at once; a fraction is on its way to the next one.
        waiting: calls that wait.
        rejected: calls that have been rejected so far.
    """

    available: float
    waiting: int
    rejected: int


@final
class RateLimit(_Limit):
    """So many calls in a time, in all event loops together, by a token bucket.

        limit = RateLimit(60, per=60.0, burst=10, max_wait=5.0)
        answer = await limit.execute(fetch, url)

    A token comes every ``per / rate`` seconds, and `burst` of them can be saved up. So from any moment on, no more than
    ``burst + rate * t / per`` calls begin in t seconds. A call that finds none waits in order of arrival; but an event loop
    that is blocked does not hold up the others, whose calls go first then. Waiting is a checkpoint; a call that need not
    wait adds none. Who is cancelled while it waits costs no token. A call that has begun does, whatever comes of it.

    Without `burst` a whole time's calls can be saved up, and twice as many begin in the first one.

    A wait that would be longer than `max_wait`, or than the caller's deadline allows, is not begun: the call is rejected at
    once.

    Args:
        rate: calls in the time.
        per: seconds of the time.
        burst: calls that may come at once after a silence; None for `rate`, at least 1.
        max_wait: seconds that a call may wait; None for no limit.
        name: what it is called, in messages.

    Raises:
        ConfigurationError: an argument is not usable.
    """

    __slots__ = ("_line", "_rejected", "burst", "max_wait", "per", "rate")

    def __init__(
        self,
        rate: float,
        *,
        per: float = 1.0,
        burst: float | None = None,
        max_wait: float | None = None,
        name: str = "rate_limit",
    ) -> None:
        super().__init__(name)
        subject = f"rate limit {name!r}"
        check_number(subject, "rate", rate, "say how many calls may begin in the time `per`", above=True)
        check_number(subject, "per", per, "say in which time", above=True, unit="seconds")
        if burst is not None:
            check_number(subject, "burst", burst, "use 1 for calls at even distances", least=1)
        if max_wait is not None:
            check_number(subject, "max_wait", max_wait, "use None for no limit", unit="seconds")
        self.rate: Final = rate
        self.per: Final = per
        self.burst: Final = max(1, rate) if burst is None else burst
        self.max_wait: Final = max_wait
        self._line: Final[TokenLine[Ticket]] = TokenLine(TokenBucket(rate / per, self.burst))
        self._rejected = 0

    def __repr__(self) -> str:
        now = self.statistics()
        return (
            f"<RateLimit {self.name!r} {self.rate:g} per {self.per:g} s, {max(0, now.available):.3g} available, "
            f"{now.waiting} waiting>"
        )

    def statistics(self) -> RateLimitStatistics:
        """Return what it is doing."""
        self._settle()
        with self._lock:
            available = self._line.bucket.available(_interop.clock())
        self._settle()
        return RateLimitStatistics(available=available, waiting=len(self._line), rejected=self._rejected)

    def guard(self) -> AbstractAsyncContextManager[object, bool | None]:
        """Return a context manager for one block."""
        return _Block(self._begin, None)

    async def _execute(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        await self._begin()
        return await invoke(func, args, kwargs)

    async def _begin(self) -> None:
        """Take a token, or wait for one."""
        with self._lock:
            taken = self._line.try_take(_interop.clock())
        if self._leaving:
            self._settle()
        if not taken:
            await self._wait()

    async def _wait(self) -> None:
        left = anyio.current_effective_deadline() - anyio.current_time()
        if left == -math.inf:  # cancelled already, as the first checkpoint will tell
            left = math.inf
        ticket = Ticket()
        seconds = self._join(ticket, left)
        try:
            while True:
                if ticket.turn.is_set():
                    await anyio.sleep(seconds)
                else:
                    await ticket.wait(seconds + _LATE)
                if not (seconds := self._take(ticket)):
                    return
        except BaseException:
            self._leave(ticket)
            raise

    def _join(self, ticket: Ticket, left: float) -> float:
        """Get into the line; return the seconds that it will take."""
        with self._lock:
            wait = self._line.wait(_interop.clock())
            too_long = self.max_wait is not None and wait > self.max_wait
            # Whoever is served at its very deadline is cancelled all the same.
            if rejected := too_long or wait >= left:
                self._rejected += 1
            elif self._line.join(ticket):
                ticket.turn.set()
        self._settle()
        if rejected:
            limit = (
                f"max_wait of {self.max_wait:g} s" if too_long else f"{max(0.0, left):.3g} s to the caller's deadline"
            )
            raise RateLimitError(
                f"rate limit {self.name!r} of {self.rate:g} calls per {self.per:g} s allows no further one within the "
                f"{limit}: got one that would wait for {wait:.3g} s; call again then, or allow more time",
                {"name": self.name, "retry_after": wait},
            )
        return wait

    def _take(self, ticket: Ticket) -> float:
        """Take a token; return 0, or the seconds until it is of use to ask again.

        One who is late is overtaken, unless it waits in the same event loop: there it is no later than the others.
        """
        with self._lock:
            seconds = self._line.take(ticket, _interop.clock(), lambda other: other.loop is ticket.loop)
            if not seconds:
                ticket.gone = True
            first = self._line.first()
        # To call one again who knows harms nothing, and shows whether its event loop has been closed.
        if first is not None and first is not ticket and not first.call():
            self._leaving.append(first)
        self._settle()
        return seconds

    def _remove(self, ticket: Ticket | None) -> Ticket | None:
        assert ticket is not None  # a call that has ended gives nothing back  # noqa: S101
        return self._line.leave(ticket)
