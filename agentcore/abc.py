"""Protocols at the seams: what one part asks of another that it must not know."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Literal, Protocol, Self, TypeVar, runtime_checkable

from agentcore._breaker import CircuitBreaker
from agentcore._handle import TaskHandle
from agentcore._rules.circuit_config import CircuitBreakerConfig
from agentcore._task_result import TaskResult
from agentcore._tasks import BaseTask

__all__ = ["Completed", "Group", "ResourceKeeper", "Stream", "TaskRunner", "WorkerPool"]

R_co = TypeVar("R_co", covariant=True)


class _Block(Protocol):
    async def __aenter__(self) -> Self:
        """Enter the block."""

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        """Leave the block; a group that was cancelled is left silently."""


class Group(_Block, Protocol):
    """A block for tasks that end with it; `TaskGroup` is one."""

    @property
    def handles(self) -> tuple[TaskHandle, ...]:
        """The tasks that have been started, in order."""

    @property
    def results(self) -> tuple[TaskResult, ...]:
        """How those did that have ended, in the order of their start."""

    def start(self, task: BaseTask | str, input: Mapping[str, Any] | None = None, **options: Any) -> TaskHandle:
        """Start a task and return a handle to it."""

    def cancel(self, reason: str | None = None) -> None:
        """Cancel every task that runs or waits, and the block."""


class Completed(_Block, Protocol):
    """A block to go through tasks as they end; `Completions` is one."""

    def __aiter__(self) -> Self:
        """Go through them."""

    async def __anext__(self) -> TaskHandle:
        """Wait for the next one."""


class Stream(_Block, Protocol[R_co]):
    """A block to go through what an agent emits; `AgentStream` is one."""

    def __aiter__(self) -> Self:
        """Go through it."""

    async def __anext__(self) -> Any:
        """Wait for the next item."""

    @property
    def result(self) -> R_co:
        """How the execution ended."""


class ResourceKeeper(Protocol):
    """Has what agents share."""

    def get(self, name: str) -> Any:
        """Return what is open by a name."""


@runtime_checkable
class WorkerPool(Protocol):
    """Runs jobs by a bounded number of workers; every kind of pool is one."""

    @property
    def name(self) -> str:
        """What it is called."""

    @property
    def state(self) -> str:
        """``open``, ``draining``, ``closed`` or ``broken``."""

    async def asubmit(self, func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Have a job done and return what it returned."""

    async def shutdown(self, wait: bool = True, timeout: float | None = None) -> Any:
        """Take no further jobs and end the workers."""


class TaskRunner(Protocol):
    """Runs tasks and agents on behalf of agents and programs; a runtime is one.

    What is loosely typed here stands above this file: `AgentContext` and `AgentRuntime` say what it is.
    """

    @property
    def resources(self) -> ResourceKeeper:
        """What agents share."""

    async def ask(self, ref: Any, context: Any = None, *, timeout: float | None = None) -> Any:
        """Have an agent execute in the caller's own task and return its result."""

    async def tell(self, ref: Any, message: Any = None) -> None:
        """Put a message into the mailbox of a spawned agent."""

    def tell_nowait(self, ref: Any, message: Any = None) -> None:
        """Put a message into the mailbox of a spawned agent, without waiting."""

    def stream(self, ref: Any, context: Any = None, *, timeout: float | None = None, buffer: int = 0) -> Any:
        """Return a block in which an agent executes, to go through what it emits."""

    def group(self, on_error: Literal["cancel", "collect", "first"] = "cancel") -> Group:
        """Return a block for tasks that end with it."""

    async def map(self, task_type: str, inputs: Iterable[Mapping[str, Any]], **options: Any) -> list[dict[str, Any]]:
        """Run a task for each input and return the outputs in their order."""

    def as_completed(self, task_type: str, inputs: Iterable[Mapping[str, Any]], **options: Any) -> Completed:
        """Return a block to go through tasks as they end."""

    async def run(
        self,
        task: BaseTask | str,
        input: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """Run a task in the caller's own task and return its output."""

    async def submit(
        self,
        task: BaseTask | str,
        input: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> TaskHandle:
        """Hand a task over and return a handle to it."""

    def breaker(
        self,
        name: str,
        config: CircuitBreakerConfig | None = None,
        *,
        probe: Callable[[], Awaitable[object]] | None = None,
    ) -> CircuitBreaker:
        """Return the circuit breaker of a name."""

    def pool(self, name: str, pool_type: Any = None, config: Any = None) -> Any:
        """Return the worker pool of a name."""
