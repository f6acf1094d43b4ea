"""A runtime for programs that are not asynchronous: it lives in a thread of its own, and any thread may call it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Iterable, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Literal, TypeVar, TypeVarTuple, final

from anyio.from_thread import start_blocking_portal

from agentcore._agent_records import AgentContext, AgentResult
from agentcore._agents import BaseAgent
from agentcore._handle import TaskHandle
from agentcore._registry import Registry
from agentcore._resources import Manager
from agentcore._retry import RetryPolicy
from agentcore._rules.task_states import TaskState
from agentcore._runtime import AgentRuntime
from agentcore._runtime_records import RuntimeConfig, RuntimeHealth, RuntimeStatistics
from agentcore._task_result import TaskResult
from agentcore._tasks import BaseTask
from agentcore.errors import ConfigurationError

Args = TypeVarTuple("Args")
F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")


@final
class SyncTaskHandle:
    """A task that was submitted, for threads: wait for it, cancel it, look at it."""

    def __init__(self, handle: TaskHandle, runtime: AgentRuntime) -> None:
        self._handle = handle
        self._runtime = runtime

    def __repr__(self) -> str:
        return f"<Sync{repr(self._handle)[1:]}"

    @property
    def task(self) -> BaseTask:
        """The task itself."""
        return self._handle.task

    @property
    def id(self) -> str:
        """The task's identifier."""
        return self._handle.id

    @property
    def state(self) -> TaskState:
        """Where the task is in its life."""
        return self._handle.state

    @property
    def is_done(self) -> bool:
        """Whether the task has ended and what it started has been unwound."""
        return self._handle.is_done

    def progress(self) -> Any:
        """Return what the task has told last of how far it has come; None before."""
        return self._handle.progress()

    def wait(self, timeout: float | None = None) -> TaskResult:
        """Wait until the task has ended, however it did.

        Args:
            timeout: seconds to wait; the task goes on after them.

        Raises:
            CallTimeoutError: it has not ended by then.
            RuntimeClosedError: the runtime was left meanwhile.
        """
        return self._runtime.from_thread(self._handle.wait, timeout=timeout)

    def result(self, timeout: float | None = None) -> dict[str, Any]:
        """Wait until the task has ended and return its output.

        Args:
            timeout: seconds to wait; the task goes on after them.

        Raises:
            CallTimeoutError: it has not ended by then.
            TaskExecutionError: the task failed.
            TaskTimeoutError: its deadline passed before it could begin.
            TaskCanceledError: it was cancelled.
            RuntimeClosedError: the runtime was left meanwhile.
        """
        return self._runtime.from_thread(self._handle.result, timeout=timeout)

    def cancel(self, reason: str | None = None) -> bool:
        """Cancel the task. It is CANCELED when what it runs has been unwound; `wait` for that.

        Args:
            reason: why, for whoever waits.

        Returns:
            False if it has ended already; then nothing changes.

        Raises:
            RuntimeClosedError: the runtime has been left.
        """

        async def cancel() -> bool:  # noqa: ASYNC124 - to be called in the loop
            return self._handle.cancel(reason)

        return self._runtime.from_thread(cancel)


@final
class SyncRuntime:
    """What threads have of a runtime; `sync_runtime` gives it. Every method may be called in any number of threads at once.

    A timeout that passes, or Ctrl-C in the main thread, cancels what is called and waits until it has been unwound.

    Attributes:
        runtime: the runtime itself, which lives in an event loop in another thread.
    """

    def __init__(self, runtime: AgentRuntime) -> None:
        self.runtime = runtime

    def __repr__(self) -> str:
        return f"<Sync{repr(self.runtime)[1:]}"

    def handler(
        self,
        task_type: str,
        *,
        timeout: float | None = None,
        max_concurrency: int | None = None,
        retry: RetryPolicy | Literal[False] | None = None,
    ) -> Callable[[F], F]:
        """Return a decorator that has a function execute the tasks of a type; as `AgentRuntime.handler`."""
        return self.runtime.handler(task_type, timeout=timeout, max_concurrency=max_concurrency, retry=retry)

    def registry(self, name: str) -> Registry[Any]:
        """Return a registry of the runtime; as `AgentRuntime.registry`."""
        return self.runtime.registry(name)

    def call(self, function: Callable[[*Args], Awaitable[T]], *args: *Args, timeout: float | None = None) -> T:
        """Run a coroutine function in the event loop of the runtime; as `AgentRuntime.from_thread`."""
        return self.runtime.from_thread(function, *args, timeout=timeout)

    def run(
        self,
        task: BaseTask | str,
        input: Mapping[str, Any] | None = None,
        *,
        timeout: float | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """Execute a task and return its output; as `AgentRuntime.run`, ``deadline`` and further fields included.

        Args:
            task: a task, or a type to make one of.
            input: of the new task.
            timeout: seconds that this call may take; then the task is cancelled.
            **options: as for `AgentRuntime.run`.

        Raises:
            CallTimeoutError: it took longer.
            Exception: whatever `AgentRuntime.run` raises.
        """
        return self.call(partial(self.runtime.run, task, input, **options), timeout=timeout)

    def submit(self, task: BaseTask | str, input: Mapping[str, Any] | None = None, **options: Any) -> SyncTaskHandle:
        """Hand a task over and return a handle to it; as `AgentRuntime.submit`.

        Args:
            task: a task, or a type to make one of.
            input: of the new task.
            **options: as for `AgentRuntime.submit`.

        Raises:
            Exception: whatever `AgentRuntime.submit` raises.
        """
        handle = self.call(partial(self.runtime.submit, task, input, **options))
        return SyncTaskHandle(handle, self.runtime)

    def ask(
        self,
        ref: BaseAgent | str,
        context: AgentContext | Mapping[str, Any] | None = None,
        *,
        timeout: float | None = None,
    ) -> AgentResult:
        """Have an agent execute and return its result; as `AgentRuntime.ask`."""
        return self.call(partial(self.runtime.ask, ref, context, timeout=timeout))

    def map(
        self, task_type: str, inputs: Iterable[Mapping[str, Any]], *, timeout: float | None = None, **options: Any
    ) -> list[dict[str, Any]]:
        """Run a task for each input and return the outputs in their order; as `AgentRuntime.map`.

        Args:
            task_type: what tasks.
            inputs: of the tasks.
            timeout: seconds that all of it may take; then what is left is cancelled.
            **options: as for `AgentRuntime.map`.

        Raises:
            CallTimeoutError: it took longer.
            Exception: whatever `AgentRuntime.map` raises.
        """
        return self.call(partial(self.runtime.map, task_type, inputs, **options), timeout=timeout)

    def resource(self, manager: Manager[T], name: str | None = None, *, close_timeout: float = 5.0) -> T:
        """Open a context manager that agents share; as `AgentRuntime.resource`."""
        return self.call(partial(self.runtime.resource, manager, name, close_timeout=close_timeout))

    def health(self) -> RuntimeHealth:
        """Return whether the runtime works; as `AgentRuntime.health`."""
        return self.runtime.health()

    def statistics(self) -> RuntimeStatistics:
        """Return what has been done so far; as `AgentRuntime.statistics`."""
        return self.runtime.statistics()


@contextmanager
def sync_runtime(
    config: RuntimeConfig | None = None,
    *,
    grace: float | None = None,
    backend: str = "asyncio",
    backend_options: Mapping[str, Any] | None = None,
) -> Generator[SyncRuntime]:
    """Open a runtime in a thread of its own: ``with agentcore.sync_runtime() as runtime: runtime.run(...)``.

    Leaving the block lets running tasks end for the grace, as everywhere; leaving it by an exception cancels them.

    Args:
        config: as for `AgentRuntime`.
        grace: as for `AgentRuntime`.
        backend: ``asyncio`` or ``trio``.
        backend_options: as for `anyio.run`.

    Raises:
        ConfigurationError: an argument is not usable.
        AgentCrashedError: there were failures in the background; raised at the end.
    """
    runtime = AgentRuntime(config, grace=grace, hosted=True)
    with ExitStack() as stack:
        try:
            portal = stack.enter_context(
                start_blocking_portal(backend=backend, backend_options=dict(backend_options or {}))
            )
        except LookupError as error:
            raise ConfigurationError(
                f"backend must be 'asyncio' or 'trio': got {backend!r}; {error}", {"name": "backend", "value": backend}
            ) from error
        portal.call(runtime.__aenter__)
        try:
            yield SyncRuntime(runtime)
        except BaseException as error:
            portal.call(runtime.__aexit__, type(error), error, error.__traceback__)
            raise
        portal.call(runtime.aclose)
