"""What agents are made of and what passes through them: configuration, context, result, metrics."""

# No `from __future__ import annotations` here: the fields of public classes are read at run time, by cattrs and others.
# Their `__module__` reads agentcore, where names in strings could not be found.

import enum
import math
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextvars import Context
from typing import Any, Final, Literal, Protocol, Self, TypeAlias, final

import anyio
import anyio.lowlevel
import attrs

from agentcore._breaker import CircuitBreaker
from agentcore._context import Lender
from agentcore._handle import TaskHandle
from agentcore._rules.circuit_config import CircuitBreakerConfig
from agentcore._tasks import BaseTask
from agentcore.abc import Completed, Group, Stream, TaskRunner
from agentcore.errors import AgentError, ConfigurationError

HISTOGRAM_BOUNDS: Final = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
"""Upper bounds, in seconds, of the buckets that durations are counted in; one more bucket holds what is longer."""


class AgentCapability(enum.StrEnum):
    """What an agent is able to do. Configurations also take plain strings of one's own."""

    PLANNING = "planning"
    EXECUTION = "execution"
    REASONING = "reasoning"
    TOOL_USE = "tool_use"
    MEMORY = "memory"
    LEARNING = "learning"
    COMMUNICATION = "communication"
    RETRIEVAL = "retrieval"
    PERCEPTION = "perception"
    EVALUATION = "evaluation"


_CAPABILITIES: Final = {member.value: member for member in AgentCapability}


def _unusable(name: str, value: object, rule: str, remedy: str) -> ConfigurationError:
    return ConfigurationError(
        f"{name} of an agent must be {rule}: got {value!r}; {remedy}", {"name": name, "value": value}
    )


MOST_SECONDS: Final = sys.float_info.max
"""More than this is no time that a clock could tell: a whole number may be greater than every other one."""


def is_seconds(value: object) -> bool:
    """Tell whether a value is a finite number of seconds, 0 or more."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= MOST_SECONDS


def check_seconds(name: str, value: object) -> None:
    """Accept None and finite numbers of seconds, 0 or more.

    Raises:
        ConfigurationError: it is something else.
    """
    if value is not None and not is_seconds(value):
        raise _unusable(name, value, "a number of seconds, 0 or more", "use None for no limit")


def to_capabilities(values: object) -> frozenset[AgentCapability | str]:
    """Return capabilities as a set, names and values of known ones as members of `AgentCapability`.

    Raises:
        ConfigurationError: there is something else than strings in it, or it is a single string.
    """
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise _unusable("capabilities", values, "a collection", f"write {{{values!r}}}")
    found: set[AgentCapability | str] = set()
    for value in values:
        if not isinstance(value, str) or not value:
            raise _unusable(
                "capabilities", value, "members of AgentCapability or strings of your own", "name what it can do"
            )
        found.add(_CAPABILITIES.get(value.lower(), value))
    return frozenset(found)


def _check_name(_: object, field: "attrs.Attribute[str]", value: object) -> None:
    if not isinstance(value, str) or not value:
        raise _unusable(field.name, value, "a string that is not empty", "give it one")


def _check_timeout(_: object, field: "attrs.Attribute[float | None]", value: object) -> None:
    check_seconds(field.name, value)


def _check_terminate_timeout(_: object, field: "attrs.Attribute[float]", value: object) -> None:
    if not is_seconds(value):
        raise _unusable(field.name, value, "a number of seconds, 0 or more", "termination always has a limit")


def _check_max_waiting(_: object, field: "attrs.Attribute[Any]", value: object) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
        raise _unusable(field.name, value, "a whole number, 0 or more", "use None for no limit")


def _check_max_concurrency(_: object, field: "attrs.Attribute[Any]", value: object) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise _unusable(field.name, value, "a whole number, 1 or more", "use None for no limit")


@final
@attrs.frozen
class AgentConfig:
    """How an agent behaves.

    Args:
        name: what it is called, in messages and metrics.
        agent_type: what kind of agent it is.
        capabilities: what it is able to do.
        timeout: seconds that one execution may take, and `initialize` and `handle_error` each; None for no limit.
        max_concurrency: executions at a time, further ones wait in order; None for no limit.
        terminate_timeout: seconds that `terminate` lets executions end by themselves, then waits for cancelled ones,
            then gives the agent's own clean-up: three times this at most.
        metadata: anything else.
        max_waiting: executions that may wait for their turn; further ones get an AgentBusyError at once, but for messages,
            whose line is the mailbox. None for no limit.

    Raises:
        ConfigurationError: a value is not usable.
    """

    name: str = attrs.field(validator=_check_name)
    agent_type: str = attrs.field(validator=_check_name)
    capabilities: frozenset[AgentCapability | str] = attrs.field(default=(), converter=to_capabilities)
    timeout: float | None = attrs.field(default=None, validator=_check_timeout)
    max_concurrency: int | None = attrs.field(default=1, validator=_check_max_concurrency)
    terminate_timeout: float = attrs.field(default=5.0, validator=_check_terminate_timeout)
    metadata: Mapping[str, Any] = attrs.field(factory=dict)
    max_waiting: int | None = attrs.field(default=None, validator=_check_max_waiting)


# Not frozen: that takes three times as long to make, on a hot path.
@final
@attrs.define(eq=False)
class Limit:
    """A deadline from outside of the agent. Never changed.

    Attributes:
        at: when, on the clock of the event loop.
        which: its name, for the error.
        seconds: how long it was when it was set.
    """

    at: float
    which: str
    seconds: float


@final
class Idle:
    """How long an execution may go without telling of progress.

    Args:
        seconds: that long.

    Attributes:
        seconds: as given.
    """

    __slots__ = ("_latest", "_scope", "seconds")

    def __init__(self, seconds: float) -> None:
        self.seconds: float = seconds
        self._scope: anyio.CancelScope | None = None
        self._latest: float = math.inf

    def watch(self, scope: anyio.CancelScope, now: float) -> None:
        """Move the deadline of a scope from now on, which has its latest one by now."""
        self._latest = scope.deadline
        self._scope = scope
        self.move(now)

    def move(self, now: float) -> None:
        """Give the execution its time anew."""
        if self._scope is not None and not self._scope.cancel_called:
            self._scope.deadline = min(self._latest, now + self.seconds)

    def limit(self, now: float) -> "Limit":
        """Return the deadline of something that begins now and cannot tell of progress."""
        return Limit(now + self.seconds, "idle", self.seconds)

    def passed(self) -> "Limit | None":
        """Return the deadline that has passed, of the execution that was cut; None if it was another one."""
        if self._scope is None or self._scope.deadline >= self._latest:
            return None
        return Limit(self._scope.deadline, "idle", self.seconds)


Emit: TypeAlias = "Callable[[Any], Awaitable[None]]"
"""Hands an item over to who listens to an agent."""


@final
class Call:
    """An ask that is under way: by this, whoever is responsible for it can end it, and it alone.

    Attributes:
        scope: encloses whatever of it runs now; None before anything does.
        interruption: what the caller gets if it was ended from outside.
        variables: what the sender of a message has set, with which it is handled; None if it is no message.
        is_in_line: whether it waits for its turn: nothing of it has begun.
    """

    __slots__ = ("interruption", "is_in_line", "scope", "variables")

    def __init__(self, variables: Context | None = None) -> None:
        self.variables: Context | None = variables
        self.scope: anyio.CancelScope | None = None
        self.interruption: Exception | None = None
        self.is_in_line: bool = False

    @property
    def is_message(self) -> bool:
        """Whether it is a message, of which nobody gets the result."""
        return self.variables is not None

    def enter(self, scope: anyio.CancelScope) -> None:
        """Note the scope of what runs of it from now on. It is cancelled if the call was ended between two of them."""
        self.scope = scope
        if self.interruption is not None:
            scope.cancel("the call has been ended")

    def end(self, interruption: Exception, reason: str) -> None:
        """Cancel what runs of it and have the caller get an error; the first one that comes."""
        if self.interruption is None:
            self.interruption = interruption
        if self.scope is not None:
            self.scope.cancel(reason)


class Keeper(Protocol):
    """Is responsible for the life of an agent. What it hears it hears at once, and must not wait."""

    def crashed(self, agent: Any, error: BaseException) -> None:
        """Hear that an agent cannot go on."""

    def terminating(self, agent: Any) -> None:
        """Hear that somebody terminates an agent."""

    def ending(self, agent: Any, call: Call) -> Any:
        """Return what will end a call, if the agent is about to be ended; raises if the call would be left behind."""


class Executes(Protocol):
    """What can be asked: an agent."""

    async def execute(self, context: "AgentContext") -> "AgentResult":
        """Work on something once."""


@attrs.define(eq=False)
class AgentContext:
    """What an execution works on, and its way to the rest of the system.

    Args:
        task: the task that is executed, if there is one.
        memory: what agents leave for each other.
        parameters: what the caller wants of this execution.
        metadata: anything else.
    """

    task: BaseTask | None = None
    memory: dict[str, Any] = attrs.field(factory=dict)
    parameters: dict[str, Any] = attrs.field(factory=dict)
    metadata: dict[str, Any] = attrs.field(factory=dict)
    # Set by a runtime.
    _runner: TaskRunner | None = attrs.field(default=None, init=False, repr=False)
    _limit: Limit | None = attrs.field(default=None, init=False, repr=False)
    _call: Call | None = attrs.field(default=None, init=False, repr=False)
    _emit: "Emit | None" = attrs.field(default=None, init=False, repr=False)
    _idle: Idle | None = attrs.field(default=None, init=False, repr=False)
    _job: Lender | None = attrs.field(default=None, init=False, repr=False)
    _attempt: int = attrs.field(default=0, init=False, repr=False)

    @property
    def input(self) -> dict[str, Any]:
        """What to work on: the task's input, or the parameters if there is no task."""
        return self.parameters if self.task is None else self.task.input

    @property
    def deadline(self) -> float:
        """When this is going to be cancelled, on the clock of the event loop; infinite if never, as things stand."""
        return anyio.current_effective_deadline()

    async def run(self, task: BaseTask | str, input: Mapping[str, Any] | None = None, **options: Any) -> dict[str, Any]:
        """Run a child of this task here and now and return its output; as `AgentRuntime.run`.

        Raises:
            AgentError: there is no runtime.
        """
        return await self._in_runtime("run").run(task, input, **options)

    async def submit(self, task: BaseTask | str, input: Mapping[str, Any] | None = None, **options: Any) -> TaskHandle:
        """Hand a child of this task to the runtime, which owns it from then on; as `AgentRuntime.submit`.

        Raises:
            AgentError: there is no runtime.
        """
        return await self._in_runtime("submit").submit(task, input, **options)

    def breaker(
        self,
        name: str,
        config: CircuitBreakerConfig | None = None,
        *,
        probe: Callable[[], Awaitable[object]] | None = None,
    ) -> CircuitBreaker:
        """Return the runtime's circuit breaker of a name; as `AgentRuntime.breaker`.

        Raises:
            AgentError: there is no runtime.
            ConfigurationError: there is one with another configuration or probe; or an argument is not usable.
        """
        return self._in_runtime("breaker").breaker(name, config, probe=probe)

    def pool(self, name: str, pool_type: Any = None, config: Any = None) -> Any:
        """Return the runtime's worker pool of a name; as `AgentRuntime.pool`.

        Raises:
            AgentError: there is no runtime.
            ConfigurationError: there is one of another type or configuration; or an argument is not usable.
        """
        return self._in_runtime("pool").pool(name, pool_type, config)

    async def ask(
        self,
        ref: "Executes | str",
        context: "AgentContext | Mapping[str, Any] | None" = None,
        *,
        timeout: float | None = None,
    ) -> "AgentResult":
        """Have another agent execute here and now and return its result; as `AgentRuntime.ask`.

        Raises:
            AgentError: there is no runtime.
        """
        result: AgentResult = await self._in_runtime("ask").ask(ref, context, timeout=timeout)
        return result

    async def tell(self, ref: Any, message: "AgentContext | Mapping[str, Any] | None" = None) -> None:
        """Put a message into the mailbox of a spawned agent; as `AgentRuntime.tell`.

        Raises:
            AgentError: there is no runtime.
        """
        await self._in_runtime("tell").tell(ref, message)

    def tell_nowait(self, ref: Any, message: "AgentContext | Mapping[str, Any] | None" = None) -> None:
        """Put a message into the mailbox of a spawned agent, without waiting; as `AgentRuntime.tell_nowait`.

        Raises:
            AgentError: there is no runtime.
        """
        self._in_runtime("tell_nowait").tell_nowait(ref, message)

    def stream(
        self,
        ref: "Executes | str",
        context: "AgentContext | Mapping[str, Any] | None" = None,
        *,
        timeout: float | None = None,
        buffer: int = 0,
    ) -> "Stream[AgentResult]":
        """Return a block in which another agent executes, to go through what it emits; as `AgentRuntime.stream`.

        Raises:
            AgentError: there is no runtime.
        """
        stream: Stream[AgentResult] = self._in_runtime("stream").stream(ref, context, timeout=timeout, buffer=buffer)
        return stream

    def group(self, on_error: Literal["cancel", "collect", "first"] = "cancel") -> Group:
        """Return a block for children of this task that end with it; as `AgentRuntime.group`.

        Raises:
            AgentError: there is no runtime.
        """
        return self._in_runtime("group").group(on_error)

    async def map(self, task_type: str, inputs: Iterable[Mapping[str, Any]], **options: Any) -> list[dict[str, Any]]:
        """Run a child of this task for each input and return the outputs in their order; as `AgentRuntime.map`.

        Raises:
            AgentError: there is no runtime.
        """
        return await self._in_runtime("map").map(task_type, inputs, **options)

    def as_completed(self, task_type: str, inputs: Iterable[Mapping[str, Any]], **options: Any) -> Completed:
        """Return a block in which a child of this task runs for each input; as `AgentRuntime.as_completed`.

        Raises:
            AgentError: there is no runtime.
        """
        return self._in_runtime("as_completed").as_completed(task_type, inputs, **options)

    def resource(self, name: str) -> Any:
        """Return what `AgentRuntime.resource` has opened by a name.

        Raises:
            AgentError: there is no runtime.
            ConfigurationError: nothing is open by this name.
        """
        return self._in_runtime("resource").resources.get(name)

    async def emit(self, item: Any) -> None:
        """Hand something over to who listens, by `AgentRuntime.stream`, and wait until he takes it. Always a checkpoint.

        If nobody can listen, because the agent was not asked by a stream, it is dropped.

        Raises:
            AgentError: the execution has ended.
        """
        if self._emit is None:
            await anyio.lowlevel.checkpoint()
        else:
            await self._emit(item)

    def progress(self, value: Any = None, **fields: Any) -> None:
        """Tell that the execution goes on, and how far it has come; `TaskHandle.progress` gives it.

        The idle deadline is counted anew, that of the tasks that wait for this one too. Who listens to the runtime hears of a
        ``task_progress``. Never waits; works in threads too. Without a task only the deadline moves, without a runtime none.
        What an earlier execution of the task has left behind tells nothing.

        Args:
            value: how far; the fields, if left out.
            **fields: further facts.
        """
        task = self.task
        if self._job is not None and self._job.attempt != self._attempt:
            return  # left behind by an earlier execution
        if value is None and fields:
            value = fields
        if task is not None and value is not None:
            task._progress = value
        if self._job is not None:
            self._job.progressed(task, value, fields)

    def checkpoint(self, data: Mapping[str, Any]) -> None:
        """Save progress of the task.

        Raises:
            AgentError: there is no task.
            TaskStateError: the task has ended.
        """
        if self.task is None:
            raise AgentError("checkpoint of an AgentContext needs a task: got None; pass AgentContext(task=...)")
        self.task.checkpoint(data)

    def _in_runtime(self, method: str) -> TaskRunner:
        if self._runner is None:
            raise AgentError(
                f"{method} of an AgentContext works inside a runtime only: got a context that was made by hand; "
                "have AgentRuntime.run or submit execute the agent"
            )
        return self._runner


@final
@attrs.define
class AgentResult:
    """How an execution ended.

    Args:
        success: whether it did what it should.
        output: what it gave.
        error: what went wrong.
        execution_time: seconds it took, as the agent says.
        metadata: anything else.

    Attributes:
        cause: the exception that `BaseAgent.handle_error` turned into this result; None if there was none.
    """

    success: bool
    output: Any = None
    error: Any = None
    execution_time: float = 0.0
    metadata: dict[str, Any] = attrs.field(factory=dict)
    cause: BaseException | None = attrs.field(default=None, init=False, eq=False, repr=False)

    @classmethod
    def success_result(
        cls, output: Any = None, execution_time: float = 0.0, metadata: Mapping[str, Any] | None = None
    ) -> Self:
        """Make a result of an execution that succeeded.

        Args:
            output: what it gave, usually a dictionary.
            execution_time: seconds it took.
            metadata: anything else.
        """
        return cls(True, output, None, execution_time, dict(metadata) if metadata else {})

    @classmethod
    def error_result(cls, error: Any, execution_time: float = 0.0, metadata: Mapping[str, Any] | None = None) -> Self:
        """Make a result of an execution that failed.

        Args:
            error: what went wrong, usually a dictionary.
            execution_time: seconds it took.
            metadata: anything else.
        """
        return cls(False, None, error, execution_time, dict(metadata) if metadata else {})


@final
@attrs.frozen(kw_only=True)
class AgentMetrics:
    """What an agent has done so far.

    Attributes:
        executions: executions that have begun.
        failures: those that raised or gave a result with success False, timeouts included.
        timeouts: those that were cut by a deadline.
        cancellations: those that were cancelled from outside.
        total_duration: seconds of all executions that have ended.
        last_duration: seconds of the one that ended last; None before that.
        histogram: how many executions ended within each of ``histogram_bounds``, and in the last place the longer ones.
        histogram_bounds: seconds.
        waiting: executions that wait for their turn now.
        running: executions that run now.
    """

    executions: int
    failures: int
    timeouts: int
    cancellations: int
    total_duration: float
    last_duration: float | None
    histogram: tuple[int, ...]
    histogram_bounds: tuple[float, ...] = HISTOGRAM_BOUNDS
    waiting: int
    running: int
