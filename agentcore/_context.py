"""What the current task is part of: its runtime, its job, its chain of executions.

These variables are structural: they say where a task hangs in the tree, so they end where ownership ends. What a runtime
starts for a submission gets a copy of the submitter's context with these set anew; every other variable travels along.

Last in the file: how a coroutine runs inside of a task with other variables than that has.

The values belong to parts that stand above this file, so they are plain objects here; each part knows its own.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator, Mapping
from contextlib import AbstractContextManager
from contextvars import Context, ContextVar, copy_context
from types import coroutine
from typing import Any, Final, Protocol


class Lender(Protocol):
    """Has something that others may use while it waits, and is interested in what happens inside of it."""

    def lending(self) -> AbstractContextManager[object]:
        """Return a context manager for the time of the wait."""

    @property
    def attempt(self) -> int:
        """Which execution of the task this is."""

    def progressed(self, task: Any, value: object, fields: Mapping[str, Any]) -> None:
        """Hear that a task, or what it waits for, has told of progress."""


current_runtime: Final[ContextVar[object]] = ContextVar("agentcore_runtime", default=None)
"""The `AgentRuntime` whose block or job this is."""

current_job: Final[ContextVar[Lender | None]] = ContextVar("agentcore_job", default=None)
"""The `Job` that a runtime executes here; it knows the task."""

current_terminations: Final[ContextVar[tuple[object, ...]]] = ContextVar("agentcore_terminations", default=())
"""The agents whose own clean-up this is a part of."""

current_execution: Final[ContextVar[object]] = ContextVar("agentcore_execution", default=None)
"""The innermost `Execution` of an agent; it knows the one around it."""

current_pool_job: Final[ContextVar[object]] = ContextVar("agentcore_pool_job", default=None)
"""The job of a pool for coroutines that runs here."""

current_visitor: Final[ContextVar[int | None]] = ContextVar("agentcore_visitor", default=None)
"""In a call that a worker of a pool makes from its thread: that thread, which goes on when the call has ended."""


def end_structure() -> None:
    """Have the current context say that it is part of nothing: what begins here belongs to the runtime or to the event loop.

    Which runtime is the current one stays; so do all variables of others.
    """
    current_job.set(None)
    current_execution.set(None)
    current_terminations.set(())
    current_pool_job.set(None)
    current_visitor.set(None)


def detached_context(left: Callable[[Context], object] | None = None) -> Context:
    """Return a copy of the current context that says that it is part of nothing; see `end_structure`.

    Args:
        left: called with the copy, if there was something that it is no part of.
    """
    context = copy_context()
    # Only if there is something to end: this stands on a path that is hot.
    if (
        current_job.get() is not None
        or current_execution.get() is not None
        or current_pool_job.get() is not None
        or current_visitor.get() is not None
        or current_terminations.get()
    ):
        context.run(end_structure)
        if left is not None:
            left(context)
    return context


@coroutine
def drive(context: Context, made: Coroutine[Any, Any, Any]) -> Generator[Any, Any, Any]:
    """Run a coroutine inside of the present task, with other variables than that has."""
    try:
        wanted = context.run(made.send, None)
    except StopIteration as stop:
        return stop.value
    return (yield from drive_on(context, made, wanted))


@coroutine
def drive_on(context: Context, made: Coroutine[Any, Any, Any], wanted: Any) -> Generator[Any, Any, Any]:
    """Run the rest of a coroutine, of which the first step has been made, and wants this of the event loop."""
    run, send = context.run, made.send
    try:
        while True:
            try:
                given = yield wanted
            except BaseException as error:  # noqa: ASYNC103, BLE001 - it is the coroutine's
                wanted = run(made.throw, error)
            else:
                wanted = run(send, given)
    except StopIteration as stop:
        return stop.value
