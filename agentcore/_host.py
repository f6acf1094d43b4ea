"""The task group of an event loop, for what has no block of its own to live in.

A task group that is held open across a ``yield``, or is entered in one task and left in another, breaks the cancel scopes
of its task. What has to be entered and left like that lives here instead: in a task group inside of a task that belongs to
the event loop itself. The host is made when something moves in and ends when the last resident has left, so a program
that leaves what it entered leaves nothing behind; and it is gone with its loop.

A resident deals with its errors by itself: nothing that it raises could reach anybody. Whatever comes out of one all the
same is logged.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from types import FrameType
from typing import Final, final

import anyio
import anyio.abc

from agentcore import _interop
from agentcore._context import end_structure

_logger: Final = logging.getLogger("agentcore.host")
_KEY: Final = "host"
_ASYNC_GENERATOR: Final = 0x200  # inspect.CO_ASYNC_GENERATOR


@final
class Host:
    """The task group of one event loop. `current` gives it; nobody else makes one.

    Attributes:
        residents: what lives there, for those who look for it.
    """

    def __init__(self) -> None:
        self.residents: list[object] = []
        # Kept: when a loop was closed under it, there is none to ask any more.
        self._locals = _interop.loop_locals()
        self._expected = 0
        self._group: anyio.abc.TaskGroup | None = None
        self._opened = anyio.Event()
        self._deserted = anyio.Event()
        self._ended = anyio.Event()
        self._task = _interop.spawn_host_task(self._run, "host of agentcore")

    def __repr__(self) -> str:
        return f"<Host, {self._expected} residents>"

    @staticmethod
    def find() -> Host | None:
        """Return the host of the running event loop, if there is one."""
        return _interop.loop_locals().get(_KEY)

    @staticmethod
    def current() -> Host:
        """Return the host of the running event loop, made now if there is none. Somebody has to `move_in` at once."""
        host = Host.find()
        if host is None:
            host = _interop.loop_locals()[_KEY] = Host()
        return host

    async def move_in(self, resident: Callable[[], Awaitable[None]], name: str) -> None:
        """Have a coroutine function run here, and return as soon as it is started. It counts from the call on.

        If the caller is cancelled meanwhile, or the event loop ends, it is not run any more.

        Raises:
            RuntimeError: the event loop is ending.
        """
        self._expected += 1
        try:
            await self._opened.wait()
        except BaseException:
            self._move_out()
            raise
        if self._group is None:
            self._move_out()
            raise RuntimeError("the event loop is ending: nothing can move into its host any more")
        # No await between this and the check above.
        context = copy_context()
        context.run(end_structure)
        context.run(self._start, self._group, resident, name)

    def _start(self, group: anyio.abc.TaskGroup, resident: Callable[[], Awaitable[None]], name: str) -> None:
        group.start_soon(self._lodge, resident, name=name)

    def is_here(self) -> bool:
        """Tell whether this is the host of the running event loop, or has been."""
        return _interop.is_in_loop() and self._locals is _interop.loop_locals()

    async def wait_if_deserted(self) -> None:
        """Wait until the host has ended, if nobody lives there any more, so that nothing of it is left."""
        if self._deserted.is_set():
            await self._ended.wait()

    async def _lodge(self, resident: Callable[[], Awaitable[None]]) -> None:
        try:
            await resident()
        except BaseException as error:  # noqa: ASYNC103 - a cancellation is raised again
            if _log_unless_cancelled(error, "what lived in the host of the event loop raised, with nobody to tell"):
                raise
        finally:
            self._move_out()

    def _move_out(self) -> None:
        self._expected -= 1
        if not self._expected:
            self._forget()
            self._deserted.set()

    def _forget(self) -> None:
        # At once: whoever moves in from now on needs another one.
        if self._locals.get(_KEY) is self:
            del self._locals[_KEY]

    async def _run(self) -> None:
        try:
            async with anyio.create_task_group() as group:
                self._group = group
                self._opened.set()
                await self._deserted.wait()
        except BaseException as error:  # noqa: ASYNC103 - a cancellation is raised again
            # Of the residents nothing comes here; so this is the end of the loop, or a defect.
            if _log_unless_cancelled(error, "the host of the event loop failed"):
                raise
        finally:
            self._group = None
            self._forget()
            self._opened.set()
            self._ended.set()


def _log_unless_cancelled(error: BaseException, what: str) -> bool:
    """Log what nobody can be told; return whether there is a cancellation in it, to be raised again."""
    if not _interop.is_in_loop():  # closed under its tasks: the collector of garbage closes their coroutines
        return False
    cancelled, rest = _interop.split_cancellation(error)
    if rest is not None:
        _logger.critical("%s", what, exc_info=rest)
    return cancelled


def generator_on_stack() -> str | None:
    """Return the name of an asynchronous generator that the caller is called by, within its task; None if there is none.

    What such a generator enters it may keep open across a ``yield``, directly or by an `AsyncExitStack`.
    """
    outermost = getattr(anyio.get_current_task().coro, "cr_frame", None)
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_flags & _ASYNC_GENERATOR:
            return frame.f_code.co_qualname
        if frame is outermost:
            return None
        frame = frame.f_back
    return None
