"""Every error that agentcore raises by itself.

CoreError
├── TaskError
│   ├── TaskStateError            (also ValueError)     a transition that the task's state does not allow
│   ├── TaskTimeoutError          (also TimeoutError)   a deadline of the task passed
│   ├── TaskCanceledError                               to who waits for a task that was cancelled
│   ├── TaskExecutionError                              to who waits for a task that failed
│   ├── TaskGroupError            (also ExceptionGroup) children of a group failed
│   ├── TaskNotFoundError         (also LookupError)    no task has this id
│   └── TaskRoutingError          (also ValueError)     nothing is registered that could run this task
├── AgentError
│   ├── AgentInitializationError                        ``initialize`` was False, raised or took too long
│   ├── AgentTimeoutError         (also TimeoutError)   an execution outlived its deadline
│   ├── AgentResultError          (also TypeError)      ``process`` returned something else than an AgentResult
│   ├── AgentExecutionError                             ``handle_error`` failed as well; carries both errors
│   ├── AgentTerminatedError                            the agent has been terminated
│   ├── AgentCrash                                      raised by an agent that cannot go on: no error to handle
│   ├── AgentBusyError                                  as many executions wait for the agent as may
│   ├── AgentRestartedError                             an agent was restarted while it executed
│   ├── MailboxFullError                                as many messages wait as an agent's mailbox takes
│   ├── AgentDeadlockError                              agents wait for each other in a circle
│   └── AgentCrashedError         (also ExceptionGroup) failures of the background, raised when the runtime is left
├── CircuitBreakerError
│   ├── CircuitOpenError                                a circuit breaker rejected the call
│   └── CircuitTimeoutError       (also TimeoutError)   a probe outlived its time and was cut
├── PipelineError
│   ├── CallTimeoutError          (also TimeoutError)   a call outlived its `Timeout`
│   ├── BulkheadFullError                               as many calls run and wait as a `Bulkhead` allows
│   └── RateLimitError                                  a `RateLimit` allows no further call in time
├── WorkerPoolError
│   ├── WorkerPoolFullError                             as many jobs wait as a worker pool allows
│   ├── WorkerPoolClosedError     (also RuntimeError)   the pool has been shut down
│   ├── WorkerPoolBrokenError     (also BrokenExecutor) its workers cannot be started
│   ├── WorkerPoolDeadlockError                         a job would wait for ever
│   ├── WorkerTimeoutError        (also TimeoutError)   a job took too long, in the queue or in its worker
│   ├── WorkerCrashedError        (also BrokenExecutor) the worker of a job died
│   └── JobCancelledError                               in a job that nobody waits for any more
├── RegistryError
├── StoreError
├── ConfigurationError            (also ValueError)
└── RuntimeClosedError            (also RuntimeError)

A message reads ``<subject> <rule>: got <value>; <what to do>``. The values stand in ``details`` as well, for programs.
"""

# No `from __future__ import annotations` here: `__module__` of these classes reads agentcore, where names in strings could
# not be found by who reads annotations at run time.

from collections.abc import Mapping, Sequence
from concurrent.futures import BrokenExecutor  # noqa: TID251 - the name alone: what users of executors catch
from typing import Any, ClassVar, Self

from agentcore.errors._base import CoreError, Severity
from agentcore.errors._base import text_of as text_of
from agentcore.errors._base import texts_of as texts_of

__all__ = [
    "AgentBusyError",
    "AgentCrash",
    "AgentCrashedError",
    "AgentDeadlockError",
    "AgentError",
    "AgentExecutionError",
    "AgentInitializationError",
    "AgentRestartedError",
    "AgentResultError",
    "AgentTerminatedError",
    "AgentTimeoutError",
    "BulkheadFullError",
    "CallTimeoutError",
    "CircuitBreakerError",
    "CircuitOpenError",
    "CircuitTimeoutError",
    "ConfigurationError",
    "CoreError",
    "JobCancelledError",
    "MailboxFullError",
    "PipelineError",
    "RateLimitError",
    "RegistryError",
    "RuntimeClosedError",
    "Severity",
    "StoreError",
    "TaskCanceledError",
    "TaskError",
    "TaskExecutionError",
    "TaskGroupError",
    "TaskNotFoundError",
    "TaskRoutingError",
    "TaskStateError",
    "TaskTimeoutError",
    "WorkerCrashedError",
    "WorkerPoolBrokenError",
    "WorkerPoolClosedError",
    "WorkerPoolDeadlockError",
    "WorkerPoolError",
    "WorkerPoolFullError",
    "WorkerTimeoutError",
]


class TaskError(CoreError):
    """Base of the errors of tasks."""

    code = "task_error"
    safe_text = "The task could not be processed."


class TaskStateError(TaskError, ValueError):
    """A transition that the task's state does not allow. Nothing has changed.

    Details: ``task_id``, ``state``, ``transition``, ``allowed`` (the transitions that the state does allow).
    """

    code = "task_state"
    safe_text = "The task is not in a state that allows this."


class TaskTimeoutError(TaskError, TimeoutError):
    """A deadline of the task passed.

    Details: ``task_id``, ``deadline`` (which one: ``timeout``, ``queue``, ``total``), ``timeout`` (seconds) or ``timeout_ms``.
    """

    code = "task_timeout"
    safe_text = "The task took too long."


class TaskCanceledError(TaskError):
    """Raised to who waits for a task that was cancelled. The waiter itself is not cancelled.

    Details: ``task_id``, ``type``, ``reason``.
    """

    code = "task_canceled"
    severity = Severity.WARNING
    safe_text = "The task was cancelled."


class TaskExecutionError(TaskError):
    """Raised to who waits for a task that failed. ``__cause__`` is the original exception where there was one.

    Details: ``task_id``, ``type``, ``attempt``, ``error`` (the task's error).
    """

    code = "task_execution"
    safe_text = "The task failed."


class TaskNotFoundError(TaskError, LookupError):
    """No task has this id. Details: ``task_id``."""

    code = "task_not_found"
    severity = Severity.WARNING
    safe_text = "The task does not exist."


class TaskRoutingError(TaskError, ValueError):
    """No handler and no agent is registered for a type of task. Details: ``type``, ``known``."""

    code = "task_routing"
    safe_text = "There is nothing that could process this task."


class TaskGroupError(TaskError, ExceptionGroup[Exception]):
    """Children of a group failed; raised when the group is left.

    The leaves are the errors of the children, and what the block of the group raised besides. Details: ``failures``, how
    many there are, and ``task_ids`` of the children that failed.

    Attributes:
        results: how every child that has ended did, in the order of their start: those that succeeded as well.
    """

    code = "task_group"
    safe_text = "Some of several tasks could not be carried out."

    def __new__(
        cls,
        message: str,
        exceptions: Sequence[Exception],
        details: Mapping[str, Any] | None = None,
        results: Sequence[Any] = (),
    ) -> Self:
        """Make the group; the rest is for ``__init__``."""
        del details, results
        return super().__new__(cls, message, exceptions)

    def __init__(
        self,
        message: str,
        exceptions: Sequence[Exception],
        details: Mapping[str, Any] | None = None,
        results: Sequence[Any] = (),
    ) -> None:
        del exceptions  # `__new__` has taken them
        super().__init__(message, details)
        # Plain objects here: they are `TaskResult`s, which stand above this file.
        self.results: tuple[Any, ...] = tuple(results)

    def derive(self, excs: Sequence[Exception], /) -> "TaskGroupError":  # type: ignore[override]
        """Return a group of the same kind around some of the leaves (for ``split`` and ``except*``)."""
        return type(self)(self.message, excs, self.details, self.results)

    def _arguments(self) -> tuple[Any, ...]:
        return self.message, list(self.exceptions)


class AgentError(CoreError):
    """Base of the errors of agents."""

    code = "agent_error"
    safe_text = "An agent could not do its work."


class AgentInitializationError(AgentError):
    """``initialize`` returned False, raised (then ``__cause__`` is that) or outlived the timeout. Details: ``agent``."""

    code = "agent_initialization"
    safe_text = "An agent could not be started."


class AgentTimeoutError(AgentError, TimeoutError):
    """An execution or a termination outlived its deadline.

    Details: ``agent``, ``deadline`` (which one: ``agent``, ``timeout``, ``idle``, ``total``, ``terminate``), ``timeout``
    (seconds).
    """

    code = "agent_timeout"
    safe_text = "An agent took too long."


class AgentResultError(AgentError, TypeError):
    """``process`` or ``handle_error`` returned something else than an AgentResult. Details: ``agent``, ``method``, ``type``."""

    code = "agent_result"
    safe_text = "An agent gave a result that cannot be used."


class AgentExecutionError(AgentError):
    """``handle_error`` failed while it handled another error. Details: ``agent``.

    Args:
        message: as for :class:`CoreError`.
        details: as for :class:`CoreError`.
        errors: the error that was to be handled, and the one that ``handle_error`` raised. The latter is ``__cause__`` too.
    """

    code = "agent_execution"
    safe_text = "An agent failed, and so did its error handling."

    errors: tuple[BaseException, ...]

    def __init__(
        self,
        message: str,
        details: Mapping[str, Any] | None = None,
        *,
        errors: Sequence[BaseException] = (),
    ) -> None:
        super().__init__(message, details)
        self.errors = tuple(errors)


class AgentTerminatedError(AgentError):
    """The agent has been terminated, or was while it executed. Details: ``agent``."""

    code = "agent_terminated"
    safe_text = "An agent is no longer available."


class AgentBusyError(AgentError):
    """As many executions wait for their turn as the agent allows: this one was not begun. Details: ``agent``, ``limit``."""

    code = "agent_busy"
    severity = Severity.WARNING
    safe_text = "An agent is busy. Please try again later."
    retryable: ClassVar[bool] = True
    """Calling again later may be of use."""


class AgentDeadlockError(AgentError):
    """An execution would wait for an agent that waits for it. Details: ``agents``, the names along the circle."""

    code = "agent_deadlock"
    safe_text = "Agents wait for each other."


class AgentCrash(AgentError):  # noqa: N818 - what an agent says, not what has happened to its caller
    """An agent cannot go on, and says so by raising this: ``handle_error`` is not asked.

    The caller gets it as it is; an agent that is supervised is started again, as its restart type says.
    """

    code = "agent_crash"
    severity = Severity.CRITICAL
    safe_text = "A part of the system has failed."


class AgentRestartedError(AgentError):
    """An agent was started again by its supervisor while it executed. Details: ``agent``."""

    code = "agent_restarted"
    safe_text = "A part of the system was restarted; try again."


class MailboxFullError(AgentError):
    """As many messages wait for an agent as its mailbox takes. Details: ``agent``, ``capacity``."""

    code = "mailbox_full"
    safe_text = "The system is busy; try again later."


class AgentCrashedError(AgentError, ExceptionGroup[Exception]):
    """What failed in the background of a runtime and reached nobody; raised when the runtime is left.

    The leaves are the failures themselves, so ``except*`` finds them. If the block inside the runtime failed too,
    its exception is one of the leaves.
    """

    code = "agent_crashed"
    severity = Severity.CRITICAL
    safe_text = "A part of the system failed in the background."

    def __new__(cls, message: str, exceptions: Sequence[Exception], details: Mapping[str, Any] | None = None) -> Self:
        """Make the group; ``details`` is for ``__init__``."""
        del details
        return super().__new__(cls, message, exceptions)

    def __init__(self, message: str, exceptions: Sequence[Exception], details: Mapping[str, Any] | None = None) -> None:
        del exceptions  # `__new__` has taken them
        super().__init__(message, details)

    def derive(self, excs: Sequence[Exception], /) -> "AgentCrashedError":  # type: ignore[override]
        """Return a group of the same kind around some of the leaves (for ``split`` and ``except*``)."""
        return type(self)(self.message, excs, self.details)

    def _arguments(self) -> tuple[Any, ...]:
        return self.message, list(self.exceptions)


class CircuitBreakerError(CoreError):
    """Base of the errors of circuit breakers."""

    code = "circuit_breaker"
    severity = Severity.WARNING
    safe_text = "A service is not available at the moment."


class CircuitOpenError(CircuitBreakerError):
    """A circuit breaker rejected the call: nothing was called.

    Details: ``circuit_name``, ``state``, ``retry_after`` (seconds until a call may be let through, None if nobody knows),
    ``last_error`` (what opened the circuit, as text; None if nothing did). The error keeps nothing else alive.
    """

    code = "circuit_open"
    safe_text = "A service is not available at the moment. Please try again later."
    retryable: ClassVar[bool] = False
    """Calling again at once is of no use."""

    _rejection: tuple[str, str, float | None, str | None]

    @classmethod
    def _of(cls, circuit_name: str, state: str, retry_after: float | None, last_error: str | None) -> Self:
        """Make the error of one rejection; its text and its details are made if somebody reads them."""
        error = cls.__new__(cls)
        error._rejection = (circuit_name, state, retry_after, last_error)
        return error

    def __getattr__(self, name: str) -> Any:
        if name == "details" and "_rejection" in self.__dict__:
            names = ("circuit_name", "state", "retry_after", "last_error")
            details = self.__dict__["details"] = dict(zip(names, self._rejection, strict=True))
            return details
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)

    @property
    def args(self) -> tuple[Any, ...]:
        """The message, as with every error."""
        arguments: tuple[Any, ...] = super().args
        return arguments if arguments or "_rejection" not in self.__dict__ else (self.message,)

    @args.setter
    def args(self, arguments: tuple[Any, ...]) -> None:
        BaseException.args.__set__(self, arguments)  # type: ignore[attr-defined]

    @property
    def message(self) -> str:
        """What happened, for a developer."""
        if super().args or "_rejection" not in self.__dict__:
            return super().message
        circuit_name, state, retry_after, last_error = self._rejection
        wait = "until it is released" if retry_after is None else f"for {retry_after:.3g} s"
        because = "" if last_error is None else f" (it opened because of {last_error})"
        return (
            f"circuit {circuit_name!r} lets no call through: got one while it is {state}; "
            f"wait {wait}, or do without{because}"
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.message!r})"

    @property
    def retry_after(self) -> float | None:
        """Seconds until a call may be let through; None if nobody knows."""
        seconds: float | None = self.details.get("retry_after")
        return seconds


class CircuitTimeoutError(CircuitBreakerError, TimeoutError):
    """A probe outlived its time and was cut; the circuit is open again. Details: ``circuit_name``, ``timeout`` (seconds)."""

    code = "circuit_timeout"
    safe_text = "A service did not answer in time."


class PipelineError(CoreError):
    """Base of the errors of the layers around a call: `Timeout`, `Bulkhead`, `RateLimit`."""

    code = "pipeline"
    severity = Severity.WARNING
    safe_text = "A service is not available at the moment."


class CallTimeoutError(PipelineError, TimeoutError):
    """A call outlived its `Timeout` and was cut. Details: ``name``, ``timeout`` (seconds)."""

    code = "call_timeout"
    safe_text = "A service did not answer in time."


class BulkheadFullError(PipelineError):
    """As many calls run and wait as a `Bulkhead` allows. Details: ``name``, ``limit``, ``queue``."""

    code = "bulkhead_full"
    safe_text = "A service is busy. Please try again later."


class RateLimitError(PipelineError):
    """A `RateLimit` allows no further call in time. Details: ``name``, ``retry_after`` (seconds until it would)."""

    code = "rate_limit"
    safe_text = "There were too many calls. Please try again later."

    @property
    def retry_after(self) -> float | None:
        """Seconds until a call would be allowed."""
        seconds: float | None = self.details.get("retry_after")
        return seconds


class WorkerPoolError(CoreError):
    """Base of the errors of worker pools."""

    code = "worker_pool"
    safe_text = "A background job could not be processed."


class WorkerPoolFullError(WorkerPoolError):
    """As many jobs wait as a worker pool allows. Details: ``pool``, ``max_queue_size``."""

    code = "worker_pool_full"
    severity = Severity.WARNING
    safe_text = "The system is busy. Please try again later."


class WorkerPoolClosedError(WorkerPoolError, RuntimeError):
    """The worker pool has been shut down, or was before the job had ended. Details: ``pool``."""

    code = "worker_pool_closed"
    severity = Severity.WARNING
    safe_text = "The system is shutting down."


class WorkerPoolBrokenError(WorkerPoolError, BrokenExecutor):
    """The workers of a pool cannot be started, so it takes no jobs any more. Details: ``pool``. Its cause says why."""

    code = "worker_pool_broken"
    severity = Severity.CRITICAL
    safe_text = "A background job could not be processed."


class WorkerPoolDeadlockError(WorkerPoolError):
    """A thread would have waited for a job for ever, because that job waits for this very thread. Details: ``pool``."""

    code = "worker_pool_deadlock"
    safe_text = "Background jobs wait for each other."


class WorkerTimeoutError(WorkerPoolError, TimeoutError):
    """A job took too long.

    Details: ``pool``, ``function``, ``timeout`` (seconds), ``phase``: ``queued`` if it had not begun when its timeout was
    over, ``running`` if it had; ``worker`` if it ran for longer than the pool's ``task_timeout``.
    """

    code = "worker_timeout"
    safe_text = "A background job took too long."


class WorkerCrashedError(WorkerPoolError, BrokenExecutor):
    """The worker of a job died while it ran; other jobs are not concerned. From a process pool it is a BrokenProcessPool too.

    Details: ``pool``, ``function``, ``exit_code`` (negative: the signal), None if nobody knows.
    """

    code = "worker_crashed"


class JobCancelledError(WorkerPoolError):
    """Raised by `check_cancelled` in a job that nobody waits for any more. Details: ``pool``."""

    code = "job_cancelled"
    severity = Severity.INFO
    safe_text = "A background job was cancelled."


class RegistryError(CoreError):
    """Base of the errors of registries."""

    code = "registry"
    safe_text = "A component is not available."


class StoreError(CoreError):
    """Base of the errors of task stores."""

    code = "store"
    safe_text = "The state of a task could not be stored or read."


class ConfigurationError(CoreError, ValueError):
    """A setting or an argument that cannot be used. Details: its name and the value."""

    code = "configuration"
    safe_text = "The system is not configured correctly."


class RuntimeClosedError(CoreError, RuntimeError):
    """The runtime does not accept work (any more, or yet). Details: ``state``."""

    code = "runtime_closed"
    severity = Severity.WARNING
    safe_text = "The system is shutting down."
