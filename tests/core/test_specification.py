"""The functional specification as a table: every public name with its shape.

`TABLE` is the whole of it, one tuple of rows for each chapter; whoever builds a
further part adds its rows, and no row is ever skipped. The rows are compared with
the code by `inspect`. What the table asks for is a minimum: a callable may have
further keywords, and further parameters that have a default and follow the
specified ones. Where the design deliberately departs from the specification the
row follows the design, and a comment next to it says so.
"""

from __future__ import annotations

import abc
import contextlib
import enum
import inspect
from collections.abc import Callable, Mapping
from datetime import datetime
from inspect import Parameter
from types import MappingProxyType, NoneType
from typing import Any, Final, Generic

import attrs
import pytest

import agentcore
from tests.core.pool_rows import FRESH_POOLS, POOLS
from tests.core.shapes import (
    ANY_DEFAULT,
    Base,
    Call,
    Field,
    Keywords,
    Members,
    Property,
    Row,
    Spec,
    differences,
    expected,
    fields,
    find,
    parameters,
    properties,
    static,
)

AGENTS: Final[tuple[Row, ...]] = (
    Members(
        "AgentState",
        ("IDLE", "INITIALIZING", "PROCESSING", "ERROR", "TERMINATED"),
    ),
    # The specification names four and leaves the list open; the design closes it.
    Members(
        "AgentCapability",
        (
            "PLANNING",
            "EXECUTION",
            "REASONING",
            "TOOL_USE",
            "MEMORY",
            "LEARNING",
            "COMMUNICATION",
            "RETRIEVAL",
            "PERCEPTION",
            "EVALUATION",
        ),
    ),
    Keywords(
        "AgentConfig",
        (),
        {
            "name": "reader",
            "agent_type": "reading",
            "capabilities": {agentcore.AgentCapability.RETRIEVAL},
            "timeout": 2.5,
        },
    ),
    *fields("AgentConfig", name=str, agent_type=str, capabilities=frozenset, timeout=float | None),
    Keywords(
        "AgentContext",
        (),
        {
            "task": agentcore.BaseTask.create("read", {}),
            "memory": {"page": 3},
            "parameters": {"speed": 2},
        },
    ),
    *fields("AgentContext", task=NoneType, memory=dict, parameters=dict),
    *fields("AgentResult", success=bool, output=dict | None, error=dict | None, execution_time=float),
    Call(
        "AgentResult.success_result",
        (("output", ANY_DEFAULT), ("execution_time", ANY_DEFAULT)),
        on_class=True,
    ),
    Call(
        "AgentResult.error_result",
        (("error", ANY_DEFAULT), ("execution_time", ANY_DEFAULT)),
        on_class=True,
    ),
)

BASE_AGENT: Final[tuple[Row, ...]] = (
    Base("BaseAgent", (abc.ABC, contextlib.AbstractAsyncContextManager)),
    Call("BaseAgent", ("config",)),
    *properties(
        "BaseAgent",
        name=str,
        agent_type=str,
        state=agentcore.AgentState,
        is_idle=bool,
        is_busy=bool,
        is_terminated=bool,
    ),
    *fields("BaseAgent", metrics=object),
    Call("BaseAgent.initialize", is_async=True, abstract=True),
    Call("BaseAgent.process", ("context",), is_async=True, abstract=True),
    Call("BaseAgent.handle_error", ("error", "context"), is_async=True, abstract=True),
    Call("BaseAgent.execute", ("context",), is_async=True),
    Call("BaseAgent.terminate", is_async=True),
)

CIRCUITS: Final[tuple[Row, ...]] = (
    Members("CircuitState", ("CLOSED", "OPEN", "HALF_OPEN")),
    Keywords(
        "CircuitBreakerConfig",
        (),
        {
            "failure_threshold": 3,
            "success_threshold": 1,
            "reset_timeout_ms": 250,
            "excluded_exceptions": (KeyError, LookupError),
        },
    ),
    *fields(
        "CircuitBreakerConfig",
        failure_threshold=int,
        success_threshold=int,
        reset_timeout_ms=float,
        excluded_exceptions=tuple,
    ),
    # The specification leaves open what is measured; these are the design's.
    *fields(
        "CircuitBreakerMetrics",
        successes=int,
        failures=int,
        failures_by_type=Mapping,
        timeouts=int,
        excluded=int,
        rejected=int,
        opened_count=int,
        state_changes=int,
        last_failure_at=datetime | None,
    ),
    Call("CircuitBreaker", ("name", ("config", None))),
    *fields("CircuitBreaker", name=str, config=agentcore.CircuitBreakerConfig),
    *properties(
        "CircuitBreaker",
        state=agentcore.CircuitState,
        is_closed=bool,
        is_open=bool,
        is_half_open=bool,
        metrics=agentcore.CircuitBreakerMetrics,
    ),
    Call("CircuitBreaker.allow_request", is_async=True),
    Call("CircuitBreaker.on_success", is_async=True),
    Call("CircuitBreaker.on_failure", ("error_type", ("count_towards_threshold", True)), is_async=True),
    # Positional-only, so that the function may have a keyword `func` of its own.
    Call("CircuitBreaker.execute", ("func", "/", "*args", "**kwargs"), is_async=True),
    # "Periodically prune failure history": the specification gives it no name.
    Call("CircuitBreaker.prune"),
    Call("get_circuit_breaker", ("name", ("config", None))),
    # Positional-only for the same reason.
    Call("with_circuit_breaker", ("name", "func", "/", "*args", "**kwargs"), is_async=True),
    # What the design adds.
    Members("CircuitMode", ("NORMAL", "FORCED_OPEN", "DISABLED", "METRICS_ONLY")),
    *properties("CircuitBreaker", mode=agentcore.CircuitMode, retry_after=float | None),
    Call("CircuitBreaker.call", ("func", "/", "*args", "**kwargs")),
    Call("CircuitBreaker.set_mode", ("mode",)),
    Call("CircuitBreaker.isolate"),
    Call("CircuitBreaker.reset"),
    Call("CircuitBreaker.run_probes", is_async=True),
    Call("KeyedCircuitBreaker", ("name", ("config", None))),
    Call("KeyedCircuitBreaker.execute", ("key", "func", "/", "*args", "**kwargs"), is_async=True),
    Call("clear_circuit_breakers", (("names", None),)),
    Call("AgentRuntime.breaker", ("name", ("config", None))),
    Call("AgentContext.breaker", ("name", ("config", None))),
)

REGISTRY: Final[tuple[Row, ...]] = (
    Base("Registry", (Generic,)),
    Call("Registry", ("name",)),
    *fields("Registry", name=str),
    # Positional-only by design, so that metadata may use these two words as keys.
    Call("Registry.register", ("name", "item", "/", "**metadata")),
    Call("Registry.unregister", ("name",)),
    Call("Registry.get", ("name",), is_async=True),
    Call("Registry.get_sync", ("name",)),
    Call("Registry.get_metadata", ("name",)),
    Call("Registry.has", ("name",)),
    Call("Registry.list_names"),
    Call("Registry.list_items"),
    Call("Registry.list_all"),
    Call("Registry.clear"),
    Call("Registry.size"),
    Call("Registry.decorator", (("name", None), "**metadata")),
    Base("FunctionRegistry", ("Registry",)),
    Call("FunctionRegistry", ("name",)),
    Call("FunctionRegistry.register_function", (("name", None), "**metadata")),
    Base("ClassRegistry", ("Registry",)),
    Call("ClassRegistry", ("name",)),
    Call("ClassRegistry.register_class", (("name", None), "**metadata")),
    # Positional-only as in `register`: a constructor may have a `name` of its own.
    Call(
        "ClassRegistry.create_instance",
        ("name", "/", "*args", "**kwargs"),
        is_async=True,
    ),
    Call("get_registry", ("name",)),
    Call("get_function_registry", ("name",)),
    Call("get_class_registry", ("name",)),
)

# By design the factory and `create` take every field that can be set.
SETTABLE: Final[Mapping[str, Any]] = {
    "id": "task-1",
    "priority": agentcore.TaskPriority.HIGH,
    "metadata": {"tenant": "north"},
    "trace_id": "trace-1",
    "parent_id": "task-0",
    "timeout_ms": 250,
}

TASKS: Final[tuple[Row, ...]] = (
    Members("TaskState", ("PENDING", "RUNNING", "COMPLETED", "FAILED", "CANCELED")),
    Members("TaskPriority", ("LOW", "NORMAL", "HIGH", "CRITICAL"), enum.IntEnum),
    Call("TaskFactory.create_task", ("type", ("input", ANY_DEFAULT)), on_class=True),
    Keywords("TaskFactory.create_task", ("read", {"page": 1}), SETTABLE),
    Call("TaskResult.from_task", ("task",), on_class=True),
    *fields(
        "TaskResult",
        task_id=str,
        type=str,
        state=agentcore.TaskState,
        success=bool,
        duration_ms=int | None,
        attempt=int,
        output=dict | None,
        error=dict | None,
    ),
)

# The specification derives it from a pydantic model; by design it is an attrs class,
# and its state moves by transitions alone.
BASE_TASK: Final[tuple[Row, ...]] = (
    *fields("BaseTask", id=str, type=str),
    *properties("BaseTask", state=agentcore.TaskState),
    *fields(
        "BaseTask",
        priority=agentcore.TaskPriority,
        input=dict,
        output=dict | None,
        error=dict | None,
        metadata=dict,
        trace_id=str | None,
    ),
    # The specification leaves its further fields open; these are the design's.
    *fields(
        "BaseTask",
        parent_id=str | None,
        timeout_ms=int | None,
        attempt=int,
        failures=int,
        created_at=datetime,
        started_at=datetime | None,
        finished_at=datetime | None,
        cancel_reason=str | None,
        checkpoints=tuple,
        events=tuple,
    ),
    *properties("BaseTask", duration_ms=int | None, is_finished=bool),
    Call("BaseTask.create", ("type", ("input", ANY_DEFAULT)), on_class=True),
    Keywords("BaseTask.create", ("read", {"page": 1}), SETTABLE),
    Call("BaseTask.start"),
    Call("BaseTask.complete", ("output",)),
    Call("BaseTask.fail", ("error",)),
    Call("BaseTask.cancel", (("reason", None),)),
    Call("BaseTask.with_timeout", ("coro", ("timeout_override_ms", None)), is_async=True),
    Call("BaseTask.checkpoint", ("data",)),
    Call("BaseTask.get_latest_checkpoint"),
    Call("BaseTask.get_event_history"),
)

ERRORS: Final[tuple[Row, ...]] = (
    Base("CoreError", (Exception,)),
    Call("CoreError", ("message", ("details", None))),
    *fields("CoreError", message=str, details=dict),
    Call("CoreError.safe_message"),
    Call("CoreError.log", ("logger",)),
    Base("TaskError", ("CoreError",)),
    Base("AgentError", ("CoreError",)),
    Base("CircuitBreakerError", ("CoreError",)),
    Base("CircuitOpenError", ("CircuitBreakerError",)),
    *fields("CircuitOpenError", retry_after=float | None),
    Base("WorkerPoolError", ("CoreError",)),
    Base("TaskNotFoundError", ("TaskError",)),
    Base("TaskExecutionError", ("TaskError",)),
    # Where the specification raises a builtin error, ours is one of that kind too.
    Base("TaskStateError", ("TaskError", ValueError)),
    Base("TaskTimeoutError", ("TaskError", TimeoutError)),
    Base("CircuitTimeoutError", ("CircuitBreakerError", TimeoutError)),
)

# The chapter on integration.
INTEGRATION: Final[tuple[Row, ...]] = (
    Call("initialize_system", (("configuration", None),), is_async=True),
    Call("shutdown_system", ("system_context", ("timeout", 30.0)), is_async=True),
    *fields(
        "SystemContext",
        io_pool=agentcore.BaseWorkerPool,
        cpu_pool=agentcore.BaseWorkerPool,
        api_circuit=agentcore.CircuitBreaker,
        # None where no runtime is current: the specification's own functions know of none.
        runtime=agentcore.AgentRuntime | None,
        accepting_tasks=bool,
    ),
    *properties("SystemContext", task_queue=object, active_agents=tuple),
    Call(
        "execute_task",
        ("task_type", ("input_data", ANY_DEFAULT), ("priority", agentcore.TaskPriority.NORMAL)),
        is_async=True,
    ),
    Call("load_configuration"),
    *fields(
        "SystemConfiguration",
        io_workers=int | None,
        cpu_workers=int | None,
        api_failure_threshold=int,
        api_reset_timeout=float,
        logging=agentcore.LoggingConfiguration,
        metrics=agentcore.MetricsConfiguration,
    ),
    Call("init_logging", (("config", ANY_DEFAULT),)),
    Call("init_metrics", (("config", ANY_DEFAULT),)),
    Call("register_agents"),
    Call("register_task_handlers"),
    Call("register_tools"),
    # What the design adds.
    Call("run", ("main", "*args")),
    Call("lifespan"),
    Call("sync_runtime", (("config", None),)),
    Call("AgentRuntime", (("config", None),)),
    Call("AgentRuntime.current", on_class=True),
    Call("AgentRuntime.open", (("config", None),), is_async=True, on_class=True),
    Call("AgentRuntime.aclose", is_async=True),
    Call("AgentRuntime.run", ("task", ("input", None)), is_async=True),
    Call("AgentRuntime.submit", ("task", ("input", None)), is_async=True),
    Call("AgentRuntime.ask", ("ref", ("context", None)), is_async=True),
    Call("AgentRuntime.stream", ("ref", ("context", None))),
    Call("AgentRuntime.group", (("on_error", "cancel"),)),
    Call("AgentRuntime.map", ("task_type", "inputs"), is_async=True),
    Call("AgentRuntime.as_completed", ("task_type", "inputs")),
    Call("AgentRuntime.resource", ("manager", ("name", None)), is_async=True),
    Call("AgentRuntime.from_thread", ("function", "*args")),
    Call("AgentRuntime.health"),
    Call("AgentRuntime.statistics"),
)

TABLE: Final = MappingProxyType(
    {
        "agents": AGENTS,
        "base_agent": BASE_AGENT,
        "circuits": CIRCUITS,
        "registry": REGISTRY,
        "tasks": TASKS,
        "base_task": BASE_TASK,
        "errors": ERRORS,
        "pools": POOLS,
        "integration": INTEGRATION,
    }
)


class _Agent(agentcore.BaseAgent):
    """The least that a concrete agent has to define."""

    async def initialize(self) -> bool:
        return True

    async def process(self, context: agentcore.AgentContext) -> agentcore.AgentResult:
        return agentcore.AgentResult.success_result({})

    async def handle_error(self, error: Exception, context: agentcore.AgentContext) -> agentcore.AgentResult:
        return agentcore.AgentResult.error_result({})


def _config() -> agentcore.AgentConfig:
    return agentcore.AgentConfig(name="sample", agent_type="sample")


FRESH: Final[MappingProxyType[str, Callable[[], object]]] = MappingProxyType(
    {
        "AgentConfig": _config,
        "AgentContext": agentcore.AgentContext,
        "AgentResult": lambda: agentcore.AgentResult.success_result({}),
        "BaseAgent": lambda: _Agent(_config()),
        "BaseTask": lambda: agentcore.BaseTask.create("sample", {}),
        "CircuitBreaker": lambda: agentcore.CircuitBreaker("sample"),
        "CircuitBreakerConfig": agentcore.CircuitBreakerConfig,
        "CircuitBreakerMetrics": lambda: agentcore.CircuitBreaker("sample").metrics,
        "CircuitOpenError": lambda: agentcore.CircuitOpenError("sample"),
        "CoreError": lambda: agentcore.CoreError("sample"),
        "Registry": lambda: agentcore.Registry[str]("sample"),
        "SystemConfiguration": agentcore.SystemConfiguration,
        "SystemContext": lambda: agentcore.SystemContext(
            io_pool=agentcore.QueueWorkerPool("sample"),
            cpu_pool=agentcore.ThreadWorkerPool("sample"),
            api_circuit=agentcore.CircuitBreaker("sample"),
        ),
        "TaskResult": lambda: agentcore.TaskResult.from_task(agentcore.BaseTask.create("sample", {})),
        **FRESH_POOLS,
    }
)
"""One fresh instance of each class that has `Field` or `Property` rows."""


def _rows(*kinds: type[Row]) -> list[Any]:
    return [
        pytest.param(row, id=f"{chapter}-{row.path}")
        for chapter, rows in TABLE.items()
        for row in rows
        if isinstance(row, kinds)
    ]


PUBLIC: Final = sorted({row.path.split(".")[0] for rows in TABLE.values() for row in rows})


@pytest.mark.parametrize("name", PUBLIC)
def test_every_name_is_exported_and_documented(name: str) -> None:
    """Each specified name is in the facade, listed, and has a docstring of its own."""
    assert name in agentcore.__all__
    assert getattr(agentcore, name).__doc__


@pytest.mark.parametrize("row", _rows(Base))
def test_a_class_stands_below_its_bases(row: Base) -> None:
    """Each class can be caught and checked as the classes it is specified below."""
    bases = [find(base) if isinstance(base, str) else base for base in row.bases]
    assert [base for base in bases if not issubclass(find(row.path), base)] == []


@pytest.mark.parametrize("row", _rows(Members))
def test_an_enum_has_exactly_the_specified_members(row: Members) -> None:
    """Each enum has its members, no other, in order, and no two share a value."""
    found = find(row.path)
    assert issubclass(found, row.kind)
    assert tuple(found.__members__) == row.names
    assert len(list(found)) == len(row.names)


@pytest.mark.parametrize("row", _rows(Call))
def test_a_callable_takes_the_specified_parameters(row: Call) -> None:
    """Names, kinds, order and defaults of the parameters are the specified ones."""
    assert differences(expected(row.parameters), parameters(row)) == []


@pytest.mark.parametrize("row", _rows(Call))
def test_a_callable_is_awaited_exactly_where_specified(row: Call) -> None:
    """Async functions are async, and nothing else is."""
    assert inspect.iscoroutinefunction(find(row.path)) is row.is_async


@pytest.mark.parametrize("row", _rows(Call))
def test_a_callable_is_bound_as_specified(row: Call) -> None:
    """What needs no instance is called on the class; what is abstract must be defined."""
    on_class = isinstance(static(row.path), classmethod | staticmethod)
    abstract = bool(getattr(find(row.path), "__isabstractmethod__", False))
    assert (on_class, abstract) == (row.on_class, row.abstract)


@pytest.mark.parametrize("row", _rows(Keywords))
def test_a_callable_takes_and_keeps_the_specified_keywords(row: Keywords) -> None:
    """Each value that is passed by keyword can be read back under the same name."""
    made = find(row.path)(*row.first, **row.values)
    assert {name: getattr(made, name) for name in row.values} == row.values


@pytest.mark.parametrize("row", _rows(Keywords))
def test_a_callable_refuses_a_misspelt_keyword(row: Keywords) -> None:
    """A keyword that means nothing is an error and not passed over."""
    with pytest.raises(TypeError, match="no_such_keyword"):
        find(row.path)(*row.first, **row.values, no_such_keyword=1)


@pytest.mark.parametrize("row", _rows(Property))
def test_a_property_only_reads(row: Property) -> None:
    """Each property gives its type on a fresh instance and cannot be set."""
    owner, name = row.path.split(".")
    found, instance = static(row.path), FRESH[owner]()
    assert isinstance(found, property)
    assert isinstance(getattr(instance, name), row.types)
    with pytest.raises(AttributeError):
        setattr(instance, name, getattr(instance, name))


@pytest.mark.parametrize("row", _rows(Field))
def test_a_field_is_there_from_the_start(row: Field) -> None:
    """Each field can be read on a fresh instance and has its type."""
    owner, name = row.path.split(".")
    assert isinstance(getattr(FRESH[owner](), name), row.types)


RECORDS: Final = (
    "AgentConfig",
    "AgentContext",
    "AgentResult",
    "BaseTask",
    "CircuitBreakerConfig",
    "CircuitBreakerMetrics",
    "ProcessWorkerPoolConfig",
    "QueueWorkerPoolConfig",
    "SystemConfiguration",
    "SystemContext",
    "TaskResult",
    "ThreadWorkerPoolConfig",
    "WorkerPoolConfig",
    "WorkerPoolMetrics",
)


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_is_an_attrs_class(name: str) -> None:
    """Records are attrs classes, and their instances take no misspelt attribute."""
    assert attrs.has(getattr(agentcore, name))
    with pytest.raises(AttributeError):
        setattr(FRESH[name](), "no_such_field", 1)  # noqa: B010 - the name is the point


def test_the_table_has_no_row_twice() -> None:
    """A row stands in one chapter only, so that a change is made in one place."""
    rows = [(type(row), row.path) for chapter in TABLE.values() for row in chapter]
    assert sorted({str(row) for row in rows if rows.count(row) > 1}) == []


def test_task_priorities_are_ordered() -> None:
    """Priorities compare as their names say."""
    names = ["HIGH", "LOW", "CRITICAL", "NORMAL"]
    ordered = sorted(agentcore.TaskPriority[name] for name in names)
    assert [priority.name for priority in ordered] == ["LOW", "NORMAL", "HIGH", "CRITICAL"]


@pytest.mark.parametrize(
    ("specs", "function", "found"),
    [
        (("a", ("b", 1)), lambda a, b=1: 0, []),
        (("a",), lambda a, b=1, *, c=2: 0, []),
        (("a", "/", "**rest"), lambda a, /, **rest: 0, []),
        (("a", "*args", ("c", None)), lambda a, *args, c=None: 0, []),
        (("a", ("b", ANY_DEFAULT)), lambda a, b=(): 0, []),
        (("a", "b"), lambda b, a: 0, ["the order is ['b', 'a']"]),
        (("a",), lambda *, b=1: 0, ["a is missing"]),
        ((("a", 1),), lambda a=2: 0, ["a defaults to 2"]),
        ((("a", 1),), lambda a: 0, [f"a defaults to {Parameter.empty!r}"]),
        ((("a", ANY_DEFAULT),), lambda a: 0, []),
        (("a",), lambda *, a: 0, ["a is keyword-only"]),
        (("a",), lambda a, b: 0, ["b is required or variable"]),
        (("a",), lambda a, *, b: 0, ["b is required or variable"]),
        (("a",), lambda a, *rest: 0, ["rest is required or variable"]),
        (("a",), lambda a, **rest: 0, []),
        (
            (("a", 1), ("b", 2)),
            lambda a=1, x=0, b=2: 0,
            ["x stands between the specified ones"],
        ),
    ],
)
def test_differences_tells_a_short_signature(
    specs: tuple[Spec, ...], function: Callable[..., int], found: list[str]
) -> None:
    """The comparison itself sees each way in which a signature can be wrong."""
    actual = list(inspect.signature(function).parameters.values())
    assert differences(expected(specs), actual) == found
