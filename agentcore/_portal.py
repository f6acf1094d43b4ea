"""Calls into the event loop of a runtime from threads that have none.

Each call is a task in the runtime's task group, so it ends with the runtime at the latest, and leaving it in the thread
(its time is over, Ctrl-C) cancels it and waits for it. A worker thread of the loop itself is different: there is a task
that waits for it, and the call is a part of that one.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import Future  # noqa: TID251 - no work is handed to a thread: one waits for the loop here
from contextlib import suppress
from contextvars import ContextVar, copy_context
from typing import Any, Final, TypeVar, final

import anyio
import anyio.abc
import anyio.from_thread
import anyio.lowlevel
from anyio.lowlevel import EventLoopToken, current_token

from agentcore import _interop
from agentcore._context import current_pool_job, current_runtime, current_visitor
from agentcore.errors import AgentError, CallTimeoutError, RuntimeClosedError, WorkerPoolDeadlockError
from agentcore.pools._jobs import current_worker
from agentcore.pools._waits import waiting_for

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
        self.variables = copy_context()
        # Of a call that a job makes: its worker waits for it, and so does the job that waits for that one.
        worker = current_worker()
        if worker is not None:
            self.variables.run(current_visitor.set, threading.get_ident())
            self.variables.run(current_pool_job.set, getattr(worker.job, "within", None))
        # Made in the loop, when the call is started; looked at there alone.
        self.scope: anyio.CancelScope | None = None
        self.is_begun = False

    def end(self, reason: str, error: Exception | None = None) -> None:
        """Cancel it; if it has not begun, it has ended by that. In the event loop."""
        if self.scope is not None and self.is_begun:
            self.scope.cancel(reason)
        elif not self.future.done():
            self.future.set_exception(error or RuntimeClosedError(reason))


_current_visit: Final[ContextVar[_Visit | None]] = ContextVar("agentcore_visit", default=None)
"""The call from a thread that this is a part of."""


@final
class Portal:
    """The way into the event loop of one runtime, for other threads.

    Args:
        owner: the runtime, which is the current one in every call.
        refusal: makes the error for a call that comes too early or too late.
    """

    def __init__(self, owner: object, refusal: Callable[[str], RuntimeClosedError]) -> None:
        self._owner = owner
        self._refusal = refusal
        self._group: anyio.abc.TaskGroup | None = None
        self._now: Callable[[], float | None] = lambda: None
        self._token: EventLoopToken | None = None
        self._post: Callable[[Callable[[], object]], None] | None = None
        self._thread = 0  # of the event loop
        self._lock = threading.Lock()
        # From the thread's call on, so that none can be forgotten between the thread and the loop.
        self._visits: set[_Visit] = set()
        self._is_closed = False
        self._deserted: anyio.Event | None = None
        # Calls that have come into the loop, for the task that starts them. A callback cannot: it is in no task.
        self._arrivals: deque[_Visit] = deque()
        self._bell: anyio.Event | None = None  # None until the first call: a runtime without any has no such task

    def open(self, group: anyio.abc.TaskGroup, now: Callable[[], float | None]) -> None:
        """Take calls from now on, in the running event loop; `now` is its clock, which gives None elsewhere."""
        self._group = group
        self._now = now
        self._token = current_token()
        self._thread = threading.get_ident()
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
            if post is None or self._is_closed:
                raise self._refusal("a call from a thread")
            self._visits.add(visit)
        result: T
        try:
            if self._is_worker():
                anyio.from_thread.run(self._perform_inline, visit)
                result = visit.future.result()
            else:
                # A job of a worker pool that the event loop is blocked for, by `PoolFuture.result`, would wait for itself.
                with waiting_for(self._thread, "a call into the event loop"):
                    self._announce_from_here(post, visit)
                    result = self._wait(post, visit)
        except WorkerPoolDeadlockError:  # before anything was called; or it is what has come of the call
            raise
        except BaseException:
            if not visit.future.done():  # Ctrl-C, in this thread: the call does not go on behind its back
                self._leave(post, visit)
            raise
        finally:
            with self._lock:
                self._visits.discard(visit)
        return result

    def is_inside(self) -> bool:
        """Tell whether this is a part of one of the calls."""
        return _current_visit.get() in self._visits

    def cancel_all(self, reason: str) -> None:
        """Take no further calls, and cancel those there are. In the event loop."""
        with self._lock:
            self._is_closed = True
            visits = list(self._visits)
        for visit in visits:
            if visit is _current_visit.get():
                continue  # what is called here ends by itself
            visit.end(f"the runtime ends: {reason!r}", self._refusal("a call from a thread"))
        if self._bell is not None:
            self._bell.set()

    async def stop(self, reason: str) -> None:
        """Take no further calls, cancel those that run and wait for their end. In the event loop."""
        self.cancel_all(reason)
        own = _current_visit.get()
        while any(visit.is_begun and visit is not own and not visit.future.done() for visit in list(self._visits)):
            self._deserted = anyio.Event()
            await self._deserted.wait()

    # In the thread.

    def _is_worker(self) -> bool:
        """Tell whether this is a worker thread of the runtime's own loop."""
        try:
            return anyio.from_thread.run_sync(self._now) is not None
        except RuntimeError:  # no worker thread at all
            return False

    def _announce_from_here(self, post: Callable[[Callable[[], object]], None], visit: _Visit) -> None:
        if self._bell is None:
            try:
                anyio.from_thread.run_sync(self._open_door, token=self._token)
            except RuntimeError:
                # The loop has ended, which is told below; or trio runs in this very thread too, and refuses to block. There
                # a callback is in a task.
                self._send(post, self._open_door)
        self._send(post, lambda: self._announce(visit))

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
                if visit.future.done():  # raised by what was called; or it has just ended
                    return visit.future.result()
                self._send(post, _nothing)

    def _leave(self, post: Callable[[Callable[[], object]], None], visit: _Visit) -> None:
        """Cancel a call and wait until it has been unwound, or until its loop is gone."""
        with suppress(RuntimeClosedError):
            self._send(post, lambda: visit.end("the calling thread has left the call"))
            while not visit.future.done():
                with suppress(BaseException):  # whatever it ended with, and a further Ctrl-C: it has to end
                    visit.future.exception(LOOK)
                self._send(post, _nothing)

    # In the event loop.

    async def _perform_inline(self, visit: _Visit) -> None:
        """Run the call of a worker thread, as a part of the task that waits for the thread, and end with it."""
        token = current_runtime.set(self._owner)
        visit.scope = anyio.CancelScope()
        try:
            await self._perform(visit)
        finally:
            current_runtime.reset(token)

    def _open_door(self) -> None:
        """Begin to take calls. Raises nothing: it may be a callback."""
        if self._bell is None and self._group is not None and not self._is_closed:
            bell = anyio.Event()
            with suppress(RuntimeError):  # the task group has ended, without a word
                self._group.start_soon(self._attend, name="portal for threads")
                self._bell = bell

    def _announce(self, visit: _Visit) -> None:
        """Take a call in. A callback."""
        self._arrivals.append(visit)
        if self._bell is not None:
            self._bell.set()

    async def _attend(self) -> None:
        """Start the calls that come."""
        assert self._group is not None and self._bell is not None  # `_open_door` has set them  # noqa: S101, PT018
        while not self._is_closed:
            await self._bell.wait()
            self._bell = anyio.Event()
            while self._arrivals and not self._is_closed:
                visit = self._arrivals.popleft()
                if not visit.future.done():
                    visit.scope = anyio.CancelScope()
                    context = _interop.context_with(visit.variables)
                    context.run(current_runtime.set, self._owner)
                    context.run(self._start, self._group, visit)

    def _start(self, group: anyio.abc.TaskGroup, visit: _Visit) -> None:
        group.start_soon(self._perform_alone, visit, name="call from a thread")

    async def _perform_alone(self, visit: _Visit) -> None:
        """Run a call as a task of its own. A cancellation is not passed on, for which AnyIO would cancel the whole group."""
        try:
            await self._perform(visit)
        except BaseException as error:  # noqa: ASYNC103 - told in the thread; see above
            if not _interop.split_cancellation(error)[0]:
                raise

    async def _perform(self, visit: _Visit) -> None:
        result: object = None
        scope = visit.scope
        if visit.future.done():  # ended before this first step
            return
        visit.is_begun = True
        _current_visit.set(visit)
        assert scope is not None  # `_attend` has made it  # noqa: S101
        # What it ends with if nothing else is known: it was cancelled from outside.
        error: BaseException | None = self._refusal("a call from a thread")
        try:
            if visit.timeout is not None:
                scope.deadline = anyio.current_time() + visit.timeout
            with scope:
                await anyio.lowlevel.checkpoint_if_cancelled()
                result = await visit.function()
                error = None
            if error is not None and visit.timeout is not None and anyio.current_time() >= scope.deadline:
                error = self._too_late(visit.function, visit.timeout)
        except BaseException as raised:  # noqa: ASYNC103 - told in the thread; a cancellation goes on
            cancelled, rest = _interop.split_cancellation(raised)
            error = rest if rest is not None else error
            if cancelled:
                raise
        finally:
            if error is None:
                visit.future.set_result(result)
            else:
                visit.future.set_exception(error)
            if self._deserted is not None:
                self._deserted.set()

    def _too_late(self, function: object, timeout: float | None) -> CallTimeoutError:
        return CallTimeoutError(
            f"a call from a thread took longer than its timeout: got {function!r} with {timeout:g} s; "
            "allow more time or do less at once",
            {"name": "from_thread", "timeout": timeout},
        )


def _nothing() -> None:
    """Do nothing: that it can be posted is what is asked for."""
