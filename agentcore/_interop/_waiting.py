"""Tasks that wait for what other threads do, and how these wake them up: natively, for it is on the path of every job."""

from __future__ import annotations

import abc
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any, Final, final

import anyio
from anyio.lowlevel import current_token

from agentcore._interop import is_native_cancellation, loop_locals, sources, wake_up_function


class Waiter(abc.ABC):
    """One task that waits to be woken up, once. `WaitingRoom.waiter` makes it, in the task."""

    __slots__ = ("is_woken", "room")

    def __init__(self, room: WaitingRoom) -> None:
        self.room = room
        self.is_woken = False

    @abc.abstractmethod
    def wake(self) -> None:
        """Have the task go on. In its event loop; `call` does it from any thread."""

    def call(self, _what: object = None) -> None:
        """Have the task go on. From any thread; what has happened is not looked at."""
        self.room.call(self)

    job_ended = call

    @abc.abstractmethod
    async def wait(self, may_leave: Callable[[], bool]) -> None:
        """Wait. A checkpoint, but for the first cancellation of the caller: that has `may_leave` decide.

        Args:
            may_leave: called when the waiting task is cancelled. True: the cancellation is raised. False: it goes on
                waiting, whatever comes, and returns when it is woken up; a cancellation by asyncio's own ways is raised then.
        """


class WaitingRoom(abc.ABC):
    """Where the tasks of one event loop wait for what other threads do. Of many that are called only the first wakes up the loop.

    A lock guards the flag and the list: without the global lock of the interpreter each thread could see the other's old one.
    It is reentrant, for the collector of garbage may run anything at any place.
    """

    def __init__(self) -> None:
        self._post = wake_up_function()
        # The backend's own, found once: finding it takes as long as the check.
        self.checkpoint_if_cancelled: Final = current_token().backend_class.checkpoint_if_cancelled
        self._lock = threading.RLock()
        self._called: list[Waiter] = []
        self._is_posted = False
        # Where someone else orders what comes from threads, each has to come by itself.
        self._is_batched = sources.get().hand_off is None

    @staticmethod
    def current() -> WaitingRoom:
        """Return that of the running event loop."""
        known = _rooms.last()
        if known is not None and known.is_here():
            return known
        in_loop = loop_locals()
        room: WaitingRoom | None = in_loop.get("waiting_room")
        if room is None:
            token = current_token().native_token
            room = _AsyncioRoom(token) if hasattr(token, "create_task") else _TrioRoom(token)
            in_loop["waiting_room"] = room
        _rooms.last = weakref.ref(room)
        return room

    @abc.abstractmethod
    def waiter(self) -> Waiter:
        """Return what the calling task can wait with."""

    @abc.abstractmethod
    def is_here(self) -> bool:
        """Tell whether a task of that event loop runs here."""

    @abc.abstractmethod
    def is_in_loop(self) -> bool:
        """Tell whether this is in that event loop, in a task or in a callback."""

    @abc.abstractmethod
    def native_cancellations(self) -> Callable[[], int]:
        """Return a function that tells how often the present task has been cancelled by asyncio's own ways, and by scopes."""

    def call(self, waiter: Waiter) -> None:
        """Have a waiting task go on; in any thread."""
        if not self._is_batched:
            self._send(waiter.wake)
            return
        with self._lock:
            self._called.append(waiter)
            if self._is_posted:
                return
            self._is_posted = True
        self._send(self._wake_all)

    def _send(self, callback: Callable[[], object]) -> None:
        try:
            self._post(callback)
        except RuntimeError:  # the event loop has ended, and with it whoever waited
            self._called.clear()

    def _wake_all(self) -> None:
        with self._lock:
            self._is_posted = False
            called, self._called = self._called, []
        for waiter in called:
            waiter.wake()


class _Rooms(threading.local):
    """The room that was asked for last in each thread. Weak, for a room knows its loop."""

    last: Callable[[], WaitingRoom | None] = staticmethod(lambda: None)


_rooms: Final = _Rooms()


@final
class _AsyncioRoom(WaitingRoom):
    def __init__(self, loop: Any) -> None:
        super().__init__()
        asyncio = sys.modules["asyncio"]
        self._loop = loop
        self._running: Callable[[], object] = asyncio.get_running_loop
        self._current_task: Callable[[], object] = asyncio.current_task
        self.make_future: Callable[[], Any] = loop.create_future
        self.cancelled: type[BaseException] = asyncio.CancelledError

    def waiter(self) -> Waiter:
        return _AsyncioWaiter(self)

    def is_here(self) -> bool:
        # A task too: in trio's guest mode the loop runs around it, but no task of it does.
        try:
            return self._running() is self._loop and self._current_task() is not None
        except RuntimeError:  # no loop of asyncio runs here
            return False

    def is_in_loop(self) -> bool:
        try:
            return self._running() is self._loop
        except RuntimeError:  # no loop of asyncio runs here
            return False

    def native_cancellations(self) -> Callable[[], int]:
        task: Any = self._current_task()
        count: Callable[[], int] = task.cancelling
        return count


@final
class _AsyncioWaiter(Waiter):
    __slots__ = ("_future",)
    room: _AsyncioRoom

    def __init__(self, room: _AsyncioRoom) -> None:
        self.room = room
        self.is_woken = False
        self._future = room.make_future()

    def wake(self) -> None:
        self.is_woken = True
        if not self._future.done():
            self._future.set_result(None)

    async def wait(self, may_leave: Callable[[], bool]) -> None:
        try:
            await self._future
        except self.room.cancelled as error:
            # If it is woken up in the same step, what it has waited for is there: only asyncio's own cancellation, which
            # comes once, must not be lost for that.
            if self.is_woken:
                if is_native_cancellation(error):
                    raise
            elif may_leave():
                raise
            else:
                await self._stay(error)

    async def _stay(self, error: BaseException) -> None:
        native = error if is_native_cancellation(error) else None
        with anyio.CancelScope(shield=True):
            while not self.is_woken:
                self._future = self.room.make_future()
                try:
                    await self._future
                except self.room.cancelled as again:  # noqa: ASYNC103 - raised below
                    native = native or again
        if native is not None:
            raise native


@final
class _TrioRoom(WaitingRoom):
    def __init__(self, token: object) -> None:
        super().__init__()
        self._token = token
        self.lowlevel: Any = sys.modules["trio.lowlevel"]
        self._current_token: Callable[[], object] = self.lowlevel.current_trio_token

    def waiter(self) -> Waiter:
        return _TrioWaiter(self)

    def is_here(self) -> bool:
        try:
            return self._current_token() is self._token
        except RuntimeError:  # trio does not run here
            return False

    is_in_loop = is_here

    def native_cancellations(self) -> Callable[[], int]:
        return int


@final
class _TrioWaiter(Waiter):
    __slots__ = ("_may_leave", "_task")
    room: _TrioRoom

    def __init__(self, room: _TrioRoom) -> None:
        self.room = room
        self.is_woken = False
        self._task: Any = None

    def wake(self) -> None:
        if not self.is_woken:
            self.is_woken = True
            if self._task is not None:
                task, self._task = self._task, None
                self.room.lowlevel.reschedule(task)

    async def wait(self, may_leave: Callable[[], bool]) -> None:
        lowlevel = self.room.lowlevel
        if self.is_woken:
            await lowlevel.cancel_shielded_checkpoint()
            return
        self._task = lowlevel.current_task()
        self._may_leave = may_leave
        await lowlevel.wait_task_rescheduled(self._abort)

    def _abort(self, _raise_cancel: object) -> Any:
        task, self._task = self._task, None
        if self._may_leave():
            return self.room.lowlevel.Abort.SUCCEEDED
        self._task = task
        return self.room.lowlevel.Abort.FAILED
