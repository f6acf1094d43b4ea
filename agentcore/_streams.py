"""What an agent gives while it executes: `AgentContext.emit` on its side, `AgentStream` on the side of who listens."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Literal, Self, final

import anyio
import anyio.abc
import anyio.lowlevel

from agentcore import _interop
from agentcore._agent_records import AgentResult, Emit
from agentcore._failures import Failures
from agentcore.errors import AgentCrashedError, AgentError, RuntimeClosedError


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
        group: the task group of the runtime.
        failures: where goes what no ``except Exception`` may catch.
        buffer: how many items the agent may be ahead.
    """

    def __init__(
        self,
        execute: Callable[[Emit], Awaitable[AgentResult]],
        group: anyio.abc.TaskGroup,
        failures: Failures,
        buffer: int,
    ) -> None:
        self._execute = execute
        self._group = group
        self._failures = failures
        self._send, self._receive = anyio.create_memory_object_stream[Any](buffer)
        self._scope = anyio.CancelScope()
        self._ended = anyio.Event()
        self._result: AgentResult | None = None
        self._error: BaseException | None = None
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
        self._group.start_soon(self._perform, name="stream of an agent")
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> Literal[False]:
        self._scope.cancel("the stream was left")
        try:
            # In a task of its own: a `Task.cancel()` by the host comes through every shield, but ends only this task.
            async with anyio.create_task_group() as group:  # noqa: ASYNC112 - not redundant: see above
                group.start_soon(self._wait_for_end)
        finally:
            self._receive.close()
        error = self._error
        if error is not None and not self._is_told:
            _, of_block = _interop.split_cancellation(exc) if exc is not None else (False, None)
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
            AgentExecutionError, AgentTerminatedError, AgentDeadlockError, RuntimeClosedError: as `AgentRuntime.ask`.
        """
        try:
            return await self._receive.receive()
        except anyio.EndOfStream:
            await self._ended.wait()
        if self._result is not None:
            raise StopAsyncIteration
        self._is_told = True
        raise (
            self._error
            if self._error is not None
            else RuntimeClosedError(
                "a stream ends with its block and with its runtime: got a look at it after that; go through it before",
                {"state": "closed"},
            )
        )

    async def _wait_for_end(self) -> None:
        with anyio.CancelScope(shield=True):
            await self._ended.wait()

    async def _emit(self, item: Any) -> None:
        try:
            await self._send.send(item)
        except anyio.ClosedResourceError:
            raise AgentError(
                f"an agent emits while it executes: got {item!r} after its end; emit before `process` returns"
            ) from None

    async def _perform(self) -> None:
        try:
            with self._scope:
                # If everything was cancelled before this first step, not a line of the agent runs.
                await anyio.lowlevel.checkpoint_if_cancelled()
                self._result = await self._execute(self._emit)
        except BaseException as error:  # noqa: ASYNC103 - cancellations are raised again
            cancelled, rest = _interop.split_cancellation(error)
            if rest is not None and not isinstance(rest, Exception):
                self._failures.crash(rest)
            self._error = rest
            if cancelled:
                raise
        finally:
            self._send.close()
            self._ended.set()
