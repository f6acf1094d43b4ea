"""What an agent gives while it executes: `AgentContext.emit` on its side, `AgentStream` on the side of who listens."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from types import TracebackType
from typing import Any, Literal, Self, final

import anyio
import anyio.abc
import anyio.lowlevel
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from agentcore import _interop
from agentcore._agent_records import AgentResult, Emit
from agentcore._context import current_terminations
from agentcore._failures import Failures
from agentcore.errors import AgentCrashedError, AgentError, ConfigurationError, RuntimeClosedError


def check_buffer(buffer: object) -> None:
    """Accept whole numbers, 0 or more.

    Raises:
        ConfigurationError: it is something else.
    """
    if isinstance(buffer, bool) or not isinstance(buffer, int) or buffer < 0:
        raise ConfigurationError(
            f"buffer of a stream must be a whole number, 0 or more: got {buffer!r}; use 0 to have the agent wait",
            {"name": "buffer", "value": buffer},
        )


@final
class AgentStream:
    """Goes through what an agent emits, as it does, and has its result in the end.

        async with runtime.stream("writer", {"topic": "tides"}) as stream:
            async for part in stream:
                print(part)
        print(stream.result)

    The agent executes in a task of the runtime, for as long as the block lasts: leaving it earlier cancels the execution
    and waits for its end. So the block may be held open across a ``yield``.

    Args:
        execute: runs the agent, with what its context emits by.
        start: starts a coroutine function as a task of the runtime; raises RuntimeClosedError if that takes nothing any more.
        failures: where goes what no ``except Exception`` may catch.
        buffer: how many items the agent may be ahead.
    """

    def __init__(
        self,
        execute: Callable[[Emit], Awaitable[AgentResult]],
        start: Callable[[Callable[[], Coroutine[Any, Any, None]]], None],
        failures: Failures,
        buffer: int,
    ) -> None:
        self._execute = execute
        self._start = start
        self._failures = failures
        self._buffer = buffer
        # None before the block is entered: what is never entered leaves nothing behind.
        self._channel: tuple[MemoryObjectSendStream[Any], MemoryObjectReceiveStream[Any]] | None = None
        self._scope = anyio.CancelScope()
        self._ended = anyio.Event()
        self._result: AgentResult | None = None
        self._error: BaseException | None = None
        self._is_left = self._is_begun = False
        self._is_told = False  # whether the listener has got the error

    @property
    def result(self) -> AgentResult:
        """How the execution ended.

        Raises:
            AgentError: it has not, or not with a result.
        """
        if self._result is None:
            raise AgentError(
                "a stream has a result when everything was taken out of it: got a look at it before that, or after a failure; "
                "go through it to its end first"
            ) from self._error
        return self._result

    async def __aenter__(self) -> Self:
        if self._channel is not None:
            raise RuntimeClosedError(
                f"a stream can be entered once: got {self!r}; make a new one",
                {"state": "closed" if self._is_left else "open"},
            )
        self._start(self._perform)
        self._channel = anyio.create_memory_object_stream[Any](self._buffer)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> Literal[False]:
        self._scope.cancel("the stream was left")
        self._is_left = True
        if self._channel is not None:
            self._channel[1].close()
            if not self._is_begun:
                self._channel[0].close()
        _, of_block = _interop.split_cancellation(exc) if exc is not None else (False, None)
        try:
            # In a task of its own: a `Task.cancel()` by the host comes through every shield, but ends only this task.
            async with anyio.create_task_group() as group:  # noqa: ASYNC112 - not redundant: see above
                group.start_soon(self._wait_for_end)
        except BaseException as late:  # noqa: ASYNC103 - a cancellation must not hide what the block raised
            # One of a scope comes again at the next checkpoint; one of asyncio's own would be lost.
            cancelled = _interop.split_cancellation(late)[0] and not _interop.is_native_cancellation(late)
            if of_block is None or not cancelled:
                raise
        error = self._error
        if error is not None and not self._is_told:
            if of_block is None or not isinstance(of_block, Exception) or not isinstance(error, Exception):
                raise error
            raise AgentCrashedError(
                f"the block of a stream failed and so did the agent: {error}", [of_block, error], {"failures": 2}
            )
        return False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        """Wait for the next item.

        Raises:
            StopAsyncIteration: the execution has ended; `result` tells how.
            AgentExecutionError, AgentTerminatedError, AgentBusyError, AgentDeadlockError, RuntimeClosedError: as
                `AgentRuntime.ask`.
        """
        if self._channel is None or self._is_left:
            raise self._not_open()
        try:
            return await self._channel[1].receive()
        except anyio.EndOfStream:
            await self._ended.wait()
        except anyio.ClosedResourceError:  # left by another task meanwhile
            raise self._not_open() from None
        if self._result is not None:
            raise StopAsyncIteration
        self._is_told = True
        raise self._error if self._error is not None else self._not_open()

    def _not_open(self) -> RuntimeClosedError:
        return RuntimeClosedError(
            "a stream lasts from entering its block to leaving it, and ends with its runtime: got a look at it "
            + ("before that" if self._channel is None else "after that")
            + "; write `async with runtime.stream(...) as stream:`",
            {"state": "new" if self._channel is None else "closed"},
        )

    async def _wait_for_end(self) -> None:
        if not self._is_begun:
            return
        with anyio.CancelScope(shield=True):
            await self._ended.wait()

    async def _emit(self, item: Any) -> None:
        assert self._channel is not None  # `__aenter__` has made it  # noqa: S101
        try:
            await self._channel[0].send(item)
        except anyio.BrokenResourceError:
            return  # the listener has left, and nobody can listen any more
        except anyio.ClosedResourceError:
            raise AgentError(
                f"an agent emits while it executes: got {item!r} after its end; emit before `process` returns"
            ) from None

    async def _perform(self) -> None:
        if self._is_left:  # before the first step: `__aexit__` has not waited for this
            return
        self._is_begun = True
        # In the listener's chain, whom he waits for; but no part of a clean-up that he does.
        current_terminations.set(())
        try:
            with self._scope:
                # If everything was cancelled before this first step, not a line of the agent runs.
                await anyio.lowlevel.checkpoint_if_cancelled()
                self._result = await self._execute(self._emit)
        except BaseException as error:  # noqa: ASYNC103, BLE001 - told to the listener, here and now
            # A cancellation is not passed on, for which AnyIO would cancel the whole group of the runtime: it may be of the
            # agent's own making. Whoever cancels the group finds this task at its end anyway.
            _, rest = _interop.split_cancellation(error)
            if rest is not None and not isinstance(rest, Exception):
                self._failures.crash(rest)
            self._error = rest
        finally:
            if self._channel is not None:
                self._channel[0].close()
            self._ended.set()
