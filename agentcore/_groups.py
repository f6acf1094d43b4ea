"""Tasks that belong to a block of code: it cannot be left before they have ended.

A `TaskGroup` is a task group of AnyIO around tasks of a runtime: they wait for their turn, have handles, events and states
like all others, and a parent above them that waits. So the parent's slot in flight is lent as long as it has children.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias, final, get_args

import anyio
import anyio.abc
import anyio.lowlevel

from agentcore import _interop
from agentcore._agent_records import AgentCapability
from agentcore._context import Lender, current_execution, current_job
from agentcore._handle import TaskHandle, error_of, outcome_of
from agentcore._job import Job, Plan
from agentcore._retry import RetryPolicy
from agentcore._rules.task_states import TaskState
from agentcore._scheduler import Scheduler
from agentcore._task_result import TaskResult
from agentcore._tasks import BaseTask
from agentcore.errors import ConfigurationError, CoreError, RuntimeClosedError, TaskGroupError, text_of, texts_of

OnError: TypeAlias = Literal["cancel", "collect", "first"]
Planner: TypeAlias = "Callable[..., tuple[BaseTask, Plan]]"


@final
class TaskGroup:
    """Runs tasks inside of a block, which ends when they have.

        async with runtime.group() as group:
            sizes = [group.start("size", {"path": path}) for path in paths]
        print([(await size.result())["bytes"] for size in sizes])

    Made by `AgentRuntime.group` and `AgentContext.group`.
    """

    def __init__(self, scheduler: Scheduler, plan: Planner, on_error: OnError) -> None:
        if on_error not in get_args(OnError):
            raise ConfigurationError(
                f"on_error of a group must be one of {', '.join(map(repr, get_args(OnError)))}: got {on_error!r}; "
                "leave it out to have a failure cancel the others",
                {"name": "on_error", "value": on_error},
            )
        self._scheduler = scheduler
        self._plan = plan
        self._on_error = on_error
        self._group: anyio.abc.TaskGroup | None = None
        self._is_open = False
        self._chain: object = None
        self._parent: Lender | None = None
        self._inherited: dict[str, Any] = {}
        self._is_left = False
        self._lending: AbstractContextManager[object] | None = None
        self._handles: list[TaskHandle] = []
        self._running = 0
        self._failed: list[Job] = []  # in the order of their end
        self._crashes: list[BaseException] = []
        self._block_failed_first = False
        self._listener: Callable[[TaskHandle], object] | None = None
        self._fewer: anyio.Event | None = None

    def __repr__(self) -> str:
        return f"<TaskGroup {self._on_error!r}, {self._running} of {len(self._handles)} tasks running>"

    @property
    def handles(self) -> tuple[TaskHandle, ...]:
        """The tasks that have been started, in order."""
        return tuple(self._handles)

    @property
    def results(self) -> tuple[TaskResult, ...]:
        """How those did that have ended, in the order of their start. Whoever looks knows of their failures from then on."""
        ended = [handle for handle in self._handles if handle.is_done]
        for handle in ended:
            self._scheduler.retrieved(handle)
        return tuple(TaskResult.from_task(handle.task) for handle in ended)

    def start(
        self,
        task: BaseTask | str,
        input: Mapping[str, Any] | None = None,
        *,
        timeout: float | None = None,
        deadline: float | None = None,
        queue_timeout: float | None = None,
        idle_timeout: float | None = None,
        retry: RetryPolicy | Literal[False] | None = None,
        requires: Collection[AgentCapability | str] = (),
        **fields: Any,
    ) -> TaskHandle:
        """Start a task and return a handle to it. It is a child of the task that the block is in, and waits for its turn.

        Args:
            task: a task, or a type to make one of.
            input: of the new task.
            timeout: seconds that each execution may take.
            deadline: seconds until the end, waits and retries included.
            queue_timeout: as for `AgentRuntime.run`.
            idle_timeout: likewise.
            retry: likewise.
            requires: likewise.
            **fields: likewise.

        Raises:
            TaskRoutingError: there is neither a handler nor an agent for it.
            TaskStateError: the task is not PENDING.
            TaskError: the runtime has the task already.
            RuntimeClosedError: the block is not entered or has been left, or the runtime takes no tasks.
            ConfigurationError: an argument is not usable.
        """
        if isinstance(task, str):
            fields = {**self._inherited, **fields}  # of the task that the block is in, whoever calls this
        made, plan = self._plan(task, input, fields, timeout, deadline, queue_timeout, idle_timeout, retry, requires)
        if self._group is None or not self._is_open:
            raise RuntimeClosedError(
                f"tasks are started inside the block of their group: got one of type {made.type!r} "
                + ("before" if self._group is None else "after")
                + " that; write `async with runtime.group() as group:`",
                {"state": "new" if self._group is None else "closed", "task_id": made.id, "type": made.type},
            )
        handle = self._scheduler.start(made, plan, self._group, self, (self._parent, self._chain))
        if self._lending is None and self._parent is not None:
            # From the first child to the end of the block: whatever it waits for in there may need the slot.
            self._lending = self._parent.lending()
            self._lending.__enter__()
        self._handles.append(handle)
        self._running += 1
        return handle

    def cancel(self, reason: str | None = None) -> None:
        """Cancel every task that runs or waits, and the block, which is left silently then.

        Args:
            reason: why, for whoever waits.
        """
        self._cancel_tasks(reason)
        if self._group is not None:
            self._group.cancel_scope.cancel(f"the group was cancelled: {reason!r}")

    async def wait_below(self, count: int) -> None:
        """Wait until fewer than so many tasks run or wait. A checkpoint if it has to wait."""
        while self._running >= count:
            self._fewer = anyio.Event()
            await self._fewer.wait()

    async def __aenter__(self) -> Self:
        if self._group is not None:
            raise RuntimeClosedError(
                f"a group can be entered once: got {self!r}; make a new one",
                {"state": "open" if self._is_open else "closed"},
            )
        self._scheduler.check_open("a group of tasks")
        group = anyio.create_task_group()
        await group.__aenter__()
        self._group, self._is_open = group, True
        # Whoever starts the tasks, it is the block that waits for them.
        self._chain, self._parent = current_execution.get(), current_job.get()
        self._inherited = self._scheduler.inherited()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        assert self._group is not None  # `__aenter__` has set it  # noqa: S101
        _, of_block = _interop.split_cancellation(exc) if exc is not None else (False, None)
        if exc is not None:
            self._block_failed_first = of_block is not None and not self._failed
            why = "a cancellation" if of_block is None else type(exc).__name__
            self._cancel_tasks(f"the block of the group was left by {why}")
        # From here on tasks can be started by tasks of the group alone, for the last of them ends it.
        self._is_left = True
        self._is_open = bool(self._running)
        # Not told of an exception of the block, which would come back wrapped in a group.
        told = (None, None, None) if of_block is not None else (exc_type, exc, traceback)
        silent = False
        try:
            silent = bool(await self._group.__aexit__(*told))  # noqa: ASYNC102 - as at the end of every task group
            if exc is None or silent:
                # The tasks end without an exception. On trio, that they were cancelled from outside is not told by then.
                await anyio.lowlevel.checkpoint_if_cancelled()  # noqa: ASYNC102 - nothing is to be done after it
        except BaseException as late:  # noqa: ASYNC103 - a cancellation must not hide what the block raised
            # One of a scope comes again at the next checkpoint; one of asyncio's own would be lost.
            cancelled = _interop.split_cancellation(late)[0] and not _interop.is_native_cancellation(late)
            if of_block is None or not cancelled:
                raise
        finally:
            self._is_open = False
            # What asyncio has cancelled before its first step knows nothing of its end.
            self._cancel_tasks("it was cancelled from outside before it began")
            if self._lending is not None:
                self._lending.__exit__(None, None, None)
            # Before a cancellation too, as a task group does: errors are not lost for it.
            self._raise_failures(of_block)
        # It says so of its own cancellation, whatever else the block has raised, which it was not told of.
        return silent and of_block is None

    # What the scheduler tells.

    def child_ended(self, job: Job) -> None:
        """Hear that a task has ended."""
        assert job.handle is not None  # `start` has made one  # noqa: S101
        self._running -= 1
        if self._is_left and not self._running:
            self._is_open = False
        if job.has_failed or (job.was_cut and job.task.state is TaskState.CANCELED):
            if self._on_error == "collect":
                self._scheduler.lose(job)
            else:
                self._fail(job)
        if self._listener is not None:
            self._listener(job.handle)
        if self._fewer is not None:
            self._fewer.set()

    def child_crashed(self, job: Job, error: BaseException) -> None:
        """Hear that a task raised what no ``except Exception`` may catch."""
        self._crashes.append(error)
        self._cancel_all(f"task {job.task.id} crashed: {type(error).__name__}")

    def _fail(self, job: Job) -> None:
        self._failed.append(job)
        if len(self._failed) == 1:
            self._cancel_all(f"task {job.task.id} of the same group failed")

    def _cancel_all(self, reason: str) -> None:
        self._cancel_tasks(reason)
        assert self._group is not None  # the task lives in it  # noqa: S101
        self._group.cancel_scope.cancel(reason)

    def _cancel_tasks(self, reason: str | None) -> None:
        for handle in self._handles:
            if not handle.is_done:
                self._scheduler.cancel(handle, reason)

    # What the block raises.

    def _raise_failures(self, of_block: BaseException | None) -> None:
        """Raise what the tasks failed by, together with what the block raised; nothing if none did.

        Raises:
            TaskGroupError: tasks failed.
            TaskExecutionError, TaskCanceledError, TaskTimeoutError: with ``first``, the first one.
            BaseExceptionGroup: something among it may not be caught by ``except Exception``.
        """
        errors = self._errors(of_block)
        if self._crashes:
            others = [of_block, *errors] if of_block is not None else errors
            message = f"{len(self._crashes)} tasks of a group crashed: {self._crashes[0]!r}"
            raise BaseExceptionGroup(message, [*self._crashes, *others])
        if not self._failed:
            return
        if of_block is not None and not isinstance(of_block, Exception):
            _add_notes(of_block, errors)  # it says more than they do, and must come through as it is
            return
        if self._on_error == "first":
            self._raise_first(errors, of_block)
            return
        leaves: list[Exception] = [of_block, *errors] if of_block is not None else [*errors]
        raise TaskGroupError(
            f"{len(self._failed)} of {len(self._handles)} tasks of a group failed: {texts_of(leaves)}",
            leaves,
            {"failures": len(self._failed), "task_ids": [job.task.id for job in self._failed]},
            self.results,
        )

    def _errors(self, of_block: BaseException | None) -> list[CoreError]:
        """Return the errors of the tasks, but for one that the block has raised itself, from the handle."""
        errors = (error_of(job.task, job.cause) for job in self._failed if not _tells(of_block, job))
        return [error for error in errors if error is not None]

    def _raise_first(self, errors: list[CoreError], of_block: Exception | None) -> None:
        alone = len(errors) < len(self._failed) or self._block_failed_first
        if of_block is not None and alone:
            _add_notes(of_block, errors)
            return
        first, *others = errors
        _add_notes(first, [*others, *([of_block] if of_block is not None else [])])
        raise first


def _tells(error: BaseException | None, job: Job) -> bool:
    """Tell whether an error is that of a job, from its handle: a fresh object each time."""
    own = error_of(job.task, job.cause)
    return (
        isinstance(error, CoreError)
        and isinstance(own, type(error))
        and error.message == own.message
        and error.__cause__ is own.__cause__
    )


def _add_notes(error: BaseException, others: Iterable[BaseException]) -> None:
    for other in others:
        told = text_of(other) or type(other).__name__
        cause = (
            f", from {type(other.__cause__).__name__}: {text_of(other.__cause__)}"
            if other.__cause__ is not None
            else ""
        )
        error.add_note(f"failed as well: {told}{cause}")


@final
class Completions:
    """Goes through tasks in the order in which they end.

        async with runtime.as_completed("fetch", inputs, limit=8) as fetched:
            async for handle in fetched:
                print(handle.task.input, await handle.result())

    Inputs are drawn as tasks are taken out, so that at most `limit` have been started and not been taken. Leaving the block
    early cancels the rest. Made by `AgentRuntime.as_completed`.
    """

    def __init__(self, group: TaskGroup, start: Callable[[Any], TaskHandle], inputs: Iterable[Any], limit: int) -> None:
        self._group = group
        self._start = start
        self._inputs: Iterator[Any] | None = iter(inputs)
        self._limit = limit
        self._window = 0
        self._ended: deque[TaskHandle] = deque()
        self._news = anyio.Event()
        group._listener = self._take

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        self._group._cancel_tasks("what is left of the iteration is not wanted any more")
        return await self._group.__aexit__(exc_type, exc, traceback)  # noqa: ASYNC102 - as at the end of every group

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TaskHandle:
        """Wait for the next task that has ended. Always a checkpoint.

        Raises:
            StopAsyncIteration: all have been taken.
            Exception: whatever drawing an input or starting a task raises.
        """
        await anyio.lowlevel.checkpoint()
        self._fill()
        while not self._ended:
            if not self._window:
                raise StopAsyncIteration
            if self._news.is_set():  # shared by all who wait
                self._news = anyio.Event()
            await self._news.wait()
            self._fill()  # others may have taken some
        self._window -= 1
        return self._ended.popleft()

    def _fill(self) -> None:
        while self._inputs is not None and self._window < self._limit:
            try:
                given = next(self._inputs)
            except StopIteration:
                self._inputs = None
                return
            self._start(given)
            self._window += 1

    def _take(self, handle: TaskHandle) -> None:
        self._ended.append(handle)
        self._news.set()


def checked(inputs: Iterable[Mapping[str, Any]]) -> Iterable[Mapping[str, Any]]:
    """Return inputs for tasks.

    Raises:
        ConfigurationError: they cannot be.
    """
    if not isinstance(inputs, Iterable) or isinstance(inputs, str | bytes | Mapping):
        raise ConfigurationError(
            f"inputs must be an iterable of dictionaries: got {inputs!r}; write [{{...}}, {{...}}], "
            "and start tasks in a group for an asynchronous one",
            {"name": "inputs", "value": inputs},
        )
    return inputs


def checked_limit(limit: int | None, default: int) -> int:
    """Return how many may be under way at a time.

    Raises:
        ConfigurationError: it is no such number.
    """
    if limit is None:
        return default
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise ConfigurationError(
            f"limit must be a whole number, 1 or more: got {limit!r}; use None for in_flight of the runtime",
            {"name": "limit", "value": limit},
        )
    return limit


async def map_tasks(
    group: TaskGroup, start: Callable[[Any], TaskHandle], inputs: Iterable[Any], limit: int
) -> list[dict[str, Any]]:
    """Run a task for each input and return the outputs in their order; see `AgentRuntime.map`."""
    handles: list[TaskHandle] = []
    async with group:
        left = iter(inputs)
        while True:
            await group.wait_below(limit)
            try:
                given = next(left)
            except StopIteration:
                break
            handles.append(start(given))
    # What has failed has been raised; what somebody has cancelled by hand is, here.
    return [outcome_of(handle.task, handle._cause) for handle in handles]
