"""agentcore: the structured-concurrency core of multi-agent programs, on asyncio and on trio."""

from agentcore._agent_records import AgentCapability, AgentConfig, AgentContext, AgentMetrics, AgentResult
from agentcore._agent_refs import AgentRef
from agentcore._agents import BaseAgent
from agentcore._breaker import CircuitBreaker
from agentcore._breaker_records import CircuitBreakerMetrics
from agentcore._breakers import (
    KeyedCircuitBreaker,
    clear_circuit_breakers,
    get_circuit_breaker,
    with_circuit_breaker,
)
from agentcore._current_pools import get_worker_pool, shutdown_all_worker_pools
from agentcore._dead_letters import DeadLetter, DeadLetters
from agentcore._entry import execute_task, lifespan, run
from agentcore._events import Event
from agentcore._groups import Completions, TaskGroup
from agentcore._handle import TaskHandle
from agentcore._layer import GuardLayer, Layer
from agentcore._limits import Bulkhead, BulkheadStatistics, RateLimit, RateLimitStatistics
from agentcore._pipeline import Fallback, Pipeline, Timeout
from agentcore._registration import register_agents, register_task_handlers, register_tools
from agentcore._registry import (
    ClassRegistry,
    FunctionRegistry,
    Registry,
    RegistryStatistics,
    clear_registries,
    get_class_registry,
    get_function_registry,
    get_registry,
)
from agentcore._retry import Retry, RetryBudget, RetryNotice, RetryPolicy
from agentcore._rules.agent_states import AgentState
from agentcore._rules.backoff import Backoff
from agentcore._rules.circuit import CircuitMode, CircuitState
from agentcore._rules.circuit_config import CircuitBreakerConfig
from agentcore._rules.restart import RestartType, SupervisionStrategy
from agentcore._rules.task_states import TaskPriority, TaskState
from agentcore._runtime import AgentRuntime
from agentcore._runtime_records import RuntimeConfig, RuntimeHealth, RuntimeStatistics, ShutdownReport
from agentcore._streams import AgentStream
from agentcore._supervisor import AgentSupervisor
from agentcore._supervisor_records import Supervisor
from agentcore._sync import SyncRuntime, SyncTaskHandle, sync_runtime
from agentcore._system import SystemContext, initialize_system, shutdown_system
from agentcore._task_factory import TaskFactory
from agentcore._task_records import Checkpoint
from agentcore._task_result import TaskResult, TaskStatistics
from agentcore._tasks import BaseTask
from agentcore.abc import WorkerPool
from agentcore.config import (
    LoggingConfiguration,
    MetricsConfiguration,
    RuntimeSettings,
    SystemConfiguration,
    load_configuration,
)
from agentcore.errors import (
    AgentBusyError,
    AgentCrash,
    AgentCrashedError,
    AgentDeadlockError,
    AgentError,
    AgentExecutionError,
    AgentInitializationError,
    AgentRestartedError,
    AgentResultError,
    AgentTerminatedError,
    AgentTimeoutError,
    BulkheadFullError,
    CallTimeoutError,
    CircuitBreakerError,
    CircuitOpenError,
    CircuitTimeoutError,
    ConfigurationError,
    CoreError,
    JobCancelledError,
    MailboxFullError,
    PipelineError,
    RateLimitError,
    RegistryError,
    RuntimeClosedError,
    Severity,
    StoreError,
    TaskCanceledError,
    TaskError,
    TaskExecutionError,
    TaskGroupError,
    TaskNotFoundError,
    TaskRoutingError,
    TaskStateError,
    TaskTimeoutError,
    WorkerCrashedError,
    WorkerPoolBrokenError,
    WorkerPoolClosedError,
    WorkerPoolDeadlockError,
    WorkerPoolError,
    WorkerPoolFullError,
    WorkerTimeoutError,
)
from agentcore.observe import Metrics, init_logging, init_metrics
from agentcore.pools._asyncio import AsyncioWorkerPool
from agentcore.pools._base import BaseWorkerPool, JobResult, JobResults
from agentcore.pools._calls import WorkerPoolView
from agentcore.pools._future import PoolFuture
from agentcore.pools._jobs import propagated
from agentcore.pools._loop_calls import LoopPoolView
from agentcore.pools._named import AnyWorkerPool, WorkerPools
from agentcore.pools._process import ProcessWorkerPool
from agentcore.pools._queue import QueueWorkerPool
from agentcore.pools._records import (
    AnyWorkerPoolConfig,
    JobInfo,
    ProcessWorkerPoolConfig,
    QueueWorkerPoolConfig,
    ThreadWorkerPoolConfig,
    WorkerPoolConfig,
    WorkerPoolMetrics,
    WorkerPoolReport,
    WorkerPoolsStatistics,
    WorkerPoolType,
)
from agentcore.pools._thread import ThreadWorkerPool, check_cancelled
from agentcore.pools._worker_process import RemoteTraceback

__all__ = [  # noqa: RUF022 - grouped by part, as a reader looks for them
    # runtime
    "AgentRuntime",
    "RuntimeConfig",
    "RuntimeHealth",
    "RuntimeStatistics",
    "ShutdownReport",
    "SyncRuntime",
    "SyncTaskHandle",
    "SystemContext",
    "TaskStatistics",
    "execute_task",
    "initialize_system",
    "lifespan",
    "run",
    "shutdown_system",
    "sync_runtime",
    # configuration and observation
    "LoggingConfiguration",
    "Metrics",
    "MetricsConfiguration",
    "RuntimeSettings",
    "SystemConfiguration",
    "init_logging",
    "init_metrics",
    "load_configuration",
    # agents
    "AgentCapability",
    "AgentConfig",
    "AgentContext",
    "AgentMetrics",
    "AgentRef",
    "AgentResult",
    "AgentState",
    "AgentStream",
    "AgentSupervisor",
    "BaseAgent",
    "RestartType",
    "SupervisionStrategy",
    "Supervisor",
    # tasks
    "BaseTask",
    "Checkpoint",
    "Completions",
    "DeadLetter",
    "DeadLetters",
    "RetryPolicy",
    "TaskFactory",
    "TaskGroup",
    "TaskHandle",
    "TaskPriority",
    "TaskResult",
    "TaskState",
    # circuit breakers
    "CircuitBreaker",
    "CircuitBreakerConfig",
    "CircuitBreakerMetrics",
    "CircuitMode",
    "CircuitState",
    "KeyedCircuitBreaker",
    "clear_circuit_breakers",
    "get_circuit_breaker",
    "with_circuit_breaker",
    # layers around a call
    "Backoff",
    "Bulkhead",
    "BulkheadStatistics",
    "Fallback",
    "GuardLayer",
    "Layer",
    "Pipeline",
    "RateLimit",
    "RateLimitStatistics",
    "Retry",
    "RetryBudget",
    "RetryNotice",
    "Timeout",
    # registries
    "ClassRegistry",
    "FunctionRegistry",
    "Registry",
    "RegistryStatistics",
    "clear_registries",
    "get_class_registry",
    "get_function_registry",
    "get_registry",
    "register_agents",
    "register_task_handlers",
    "register_tools",
    # worker pools
    "AnyWorkerPool",
    "AnyWorkerPoolConfig",
    "AsyncioWorkerPool",
    "BaseWorkerPool",
    "JobInfo",
    "JobResult",
    "JobResults",
    "LoopPoolView",
    "PoolFuture",
    "ProcessWorkerPool",
    "ProcessWorkerPoolConfig",
    "QueueWorkerPool",
    "QueueWorkerPoolConfig",
    "RemoteTraceback",
    "ThreadWorkerPool",
    "ThreadWorkerPoolConfig",
    "WorkerPool",
    "WorkerPoolConfig",
    "WorkerPoolMetrics",
    "WorkerPoolReport",
    "WorkerPoolType",
    "WorkerPoolView",
    "WorkerPools",
    "WorkerPoolsStatistics",
    "check_cancelled",
    "get_worker_pool",
    "propagated",
    "shutdown_all_worker_pools",
    # events
    "Event",
    # errors
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


def _own_what_is_exported() -> None:
    """Have everything exported read agentcore as its module: in tracebacks, in documentation, in pickles."""
    for name in __all__:
        item = globals()[name]
        if item.__module__.startswith("agentcore."):
            item.__module__ = "agentcore"


_own_what_is_exported()
