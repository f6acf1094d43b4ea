"""Calls into the event loop of a runtime from threads that have none.

Each call is a task in the runtime's task group, so it ends with the runtime at the latest, and leaving it in the thread
(its time is over, Ctrl-C) cancels it and waits for it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import Future  # noqa: TID251 - no work is handed to a thread: one waits for the loop here
from contextvars import copy_context
from typing import Any, Final, TypeVar, final

import anyio
import anyio.abc
import anyio.from_thread
from anyio.lowlevel import EventLoopToken, current_token

from agentcore import _interop
from agentcore.errors import AgentError, CallTimeoutError, RuntimeClosedError

T = TypeVar("T")

LOOK: Final = 1.0
"""Seconds after which a thread that waits looks whether the event loop still runs at all."""


@final
class _Visit:
    """One call: what is called, and where the thread learns how it ended."""

    def __init__(self, function: Callable[[], Awaitable[Any]], timeout: float | None) -> None:
        self.function = function
        self.timeout = timeout
        self.future: Future[Any] = Future()
        self.context = copy_context()
        # What the loop has of it; looked at in the loop alone.
        self.scope: anyio.CancelScope | None = None
        self.is_left = False

    def leave(self) -> None:
        """Cancel it, for nobody waits any more."""
        self.is_left = True
        if self.scope is not None:
            self.scope.cancel("the calling thread has left the call")


@final
class Portal:
    """The way into the event loop of one runtime, for other threads."""

    def __init__(self) -> None:
        self._group: anyio.abc.TaskGroup | None = None
        self._now: Callable[[], float | None] = lambda: None
        self._post: Callable[[Callable[[], object]], None] | None = None
        self._lock = threading.Lock()
        # From the thread's call on, so that none can be forgotten between the thread and the loop.
        self._visits: set[_Visit] = set()
        self._closed: str | None = None
        self._deserted: anyio.Event | None = None
        # Calls that have come into the loop, for the task that starts them. A callback cannot: it is in no task.
        self._arrivals: deque[_Visit] = deque()
        self._bell: anyio.Event | None = None  # None until the first call: a runtime without any has no such task
        self._token: EventLoopToken | None = None

    def open(self, group: anyio.abc.TaskGroup, now: Callable[[], float | None]) -> None:
        """Take calls from now on, in the running event loop; `now` is its clock, which gives None elsewhere."""
        self._group = group
        self._now = now
        self._token = current_token()
        self._post = _interop.wake_up_function()

    def call(self, function: Callable[[], Awaitable[T]], timeout: float | None) -> T:
        """Run a coroutine function in the event loop and return what it returns; see `AgentRuntime.from_thread`."""
        if self._now() is not None:
            raise AgentError(
                "from_thread of a runtime is for other threads: got a call in its event loop, which it would block for ever; "
                "await the function there"
            )
        visit = _Visit(function, timeout)
        with self._lock:
            post = self._post
            if post is None or self._closed is not None:
                raise self._refusal()
            self._visits.add(visit)
        try:
            if self._bell is None:
                self._send(self._run_in_loop, self._open_door)
            self._send(post, lambda: self._announce(visit))
            result: T = self._wait(post, visit)
            return result
        finally:
            with self._lock:
                self._visits.discard(visit)

    async def stop(self, reason: str) -> None:
        """Take no further calls, cancel those that run and wait for their end. In the event loop."""
        with self._lock:
            self._closed = reason
            visits = list(self._visits)
        if self._bell is not None:
            self._bell.set()
        for visit in visits:
            if visit.scope is not None:
                visit.scope.cancel(f"the runtime ends: {reason!r}")
            elif not visit.future.done():
                visit.future.set_exception(self._refusal())
        while any(visit.scope is not None and not visit.future.done() for visit in visits):
            self._deserted = anyio.Event()
            await self._deserted.wait()

    def _refusal(self) -> RuntimeClosedError:
        return RuntimeClosedError(
            "a runtime takes calls from threads between entering and leaving its block: got one "
            + ("before that" if self._closed is None else "after that")
            + "; call it inside of the block",
            {"state": "new" if self._closed is None else "closed"},
        )

    def _send(self, post: Callable[[Callable[[], object]], None], callback: Callable[[], object]) -> None:
        try:
            post(callback)
        except RuntimeError as error:  # asyncio: the loop is closed; trio: the run has finished
            raise RuntimeClosedError(
                f"the event loop of the runtime has ended: got a call from thread {threading.current_thread().name!r}; "
                "leave the block of a runtime before its loop ends",
                {"state": "closed"},
            ) from error

    def _wait(self, post: Callable[[Callable[[], object]], None], visit: _Visit) -> Any:
        while True:
            try:
                return visit.future.result(LOOK)
            except TimeoutError:
                if visit.future.done():  # raised by what was called
                    raise
                self._send(post, _nothing)
            except BaseException:
                if not visit.future.done():  # Ctrl-C, in this thread: the call does not go on behind its back
                    self._send(post, visit.leave)
                    visit.future.exception()
                raise

    def _run_in_loop(self, callback: Callable[[], object]) -> None:
        anyio.from_thread.run_sync(callback, token=self._token)

    def _open_door(self) -> None:
        """Begin to take calls. In the event loop."""
        if self._bell is None and self._group is not None and self._closed is None:
            self._bell = anyio.Event()
            self._group.start_soon(self._attend, name="portal for threads")

    def _announce(self, visit: _Visit) -> None:
        """Take a call in. In the event loop, as a callback."""
        self._arrivals.append(visit)
        if self._bell is not None:
            self._bell.set()

    async def _attend(self) -> None:
        """Start the calls that come."""
        assert self._group is not None and self._bell is not None  # `open` has set them  # noqa: S101, PT018
        while self._closed is None:
            await self._bell.wait()
            self._bell = anyio.Event()
            while self._arrivals:
                visit = self._arrivals.popleft()
                if visit.is_left:
                    visit.future.set_result(None)
                elif not visit.future.done():
                    visit.context.run(self._start, self._group, visit)

    def _start(self, group: anyio.abc.TaskGroup, visit: _Visit) -> None:
        group.start_soon(self._perform, visit, name="call from a thread")

    async def _perform(self, visit: _Visit) -> None:
        result: object = None
        error: BaseException | None = None
        scope = visit.scope = anyio.move_on_after(visit.timeout)
        try:
            with scope:
                result = await visit.function()
        except BaseException as raised:
            cancelled, error = _interop.split_cancellation(raised)
            if cancelled:
                error = error or self._refusal()
                raise
        finally:
            if error is None and scope.cancelled_caught:
                error = self._cut(visit)
            self._finish(visit, result, error)

    def _cut(self, visit: _Visit) -> Exception:
        if visit.timeout is None or self._closed is not None or visit.is_left:
            return self._refusal()
        return CallTimeoutError(
            f"a call from a thread took longer than its timeout: got {visit.function!r} with {visit.timeout:g} s; "
            "allow more time or do less at once",
            {"name": "from_thread", "timeout": visit.timeout},
        )

    def _finish(self, visit: _Visit, result: object, error: BaseException | None) -> None:
        if error is None:
            visit.future.set_result(result)
        else:
            visit.future.set_exception(error)
        if self._deserted is not None:
            self._deserted.set()


def _nothing() -> None:
    """Do nothing: that it can be posted is what is asked for."""
