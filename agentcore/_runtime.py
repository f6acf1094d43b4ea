"""The runtime: one block of code, one task group, and everything that runs for the program inside of it.

This is the only part that composes the others. What it offers is done by `Scheduler` (``runtime.tasks``) and by
`Directory` (``runtime.agents``); what is its own is how the block is entered and left.
"""

# No `from __future__ import annotations` here: the fields of public classes are read at run time, by cattrs and others.
# Their `__module__` reads agentcore, where names in strings could not be found.

import math
from collections.abc import Awaitable, Callable, Mapping
from contextvars import Token
from types import TracebackType
from typing import Any, ClassVar, Final, Literal, Self, TypeVar, final

import anyio
import anyio.abc
import anyio.lowlevel
import attrs

from agentcore import _interop
from agentcore._agent_records import Limit, check_seconds
from agentcore._breaker import CircuitBreaker
from agentcore._context import current_runtime
from agentcore._directory import Directory
from agentcore._events import Event, EventLog, EventSink
from agentcore._handle import TaskHandle
from agentcore._job import Plan
from agentcore._owned_breakers import OwnedCircuitBreakers
from agentcore._registry import Registry
from agentcore._rules.circuit_config import CircuitBreakerConfig
from agentcore._scheduler import Scheduler, TaskStatistics
from agentcore._tasks import BaseTask, TaskFactory, TaskResult
from agentcore.errors import AgentCrashedError, ConfigurationError, RuntimeClosedError, text_of

F = TypeVar("F", bound=Callable[..., Any])


def _check_count(_: object, field: "attrs.Attribute[int]", value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigurationError(
            f"{field.name} of a runtime must be a whole number, 1 or more: got {value!r}; pass one to RuntimeConfig",
            {"name": field.name, "value": value},
        )


def _check_grace(_: object, field: "attrs.Attribute[float]", value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ConfigurationError(
            f"{field.name} of a runtime must be a number of seconds, 0 or more: got {value!r}; use 0 to cut at once",
            {"name": field.name, "value": value},
        )


@final
@attrs.frozen(kw_only=True)
class RuntimeConfig:
    """How a runtime behaves.

    Args:
        in_flight: how many tasks run at a time.
        queue: how many submitted tasks may wait for that; then `submit` waits.
        retention: how many tasks are remembered after their end, the newest.
        grace: seconds that tasks may go on for when the block has been left.

    Raises:
        ConfigurationError: a value is not usable.
    """

    in_flight: int = attrs.field(default=256, validator=_check_count)
    queue: int = attrs.field(default=1024, validator=_check_count)
    retention: int = attrs.field(default=256, validator=_check_count)
    grace: float = attrs.field(default=10.0, validator=_check_grace)


@final
@attrs.frozen(kw_only=True)
class ShutdownReport:
    """How a runtime was shut down.

    Attributes:
        reason: why what was cut short was.
        drained: whether everything came to its own end in time.
        cut_short: what was cancelled, as it ended, in the order of arrival.
        agents_failed: names of the shared agents whose clean-up failed, with the error.
        duration: seconds it took.
    """

    reason: str
    drained: bool
    cut_short: tuple[TaskResult, ...]
    agents_failed: tuple[tuple[str, Exception], ...]
    duration: float

    def summary(self) -> str:
        """Return what happened in a line, with the first 20 tasks that were cut short by name."""
        if not self.cut_short:
            return f"drained in {self.duration:.1f} s, nothing was cut short"
        names = [f"{result.type} {result.task_id} ({result.state})" for result in self.cut_short[:20]]
        if len(self.cut_short) > len(names):
            names.append(f"and {len(self.cut_short) - len(names)} more")
        return f"{self.reason} after {self.duration:.1f} s; cut short: {', '.join(names)}"


@final
@attrs.frozen(kw_only=True)
class RuntimeStatistics:
    """What a runtime has done.

    Attributes:
        state: ``new``, ``open``, ``draining`` or ``closed``.
        tasks: what became of its tasks.
    """

    state: str
    tasks: TaskStatistics


@final
class AgentRuntime:
    """Runs tasks by agents and handlers inside a block of code.

        async with AgentRuntime() as runtime:
            report = await runtime.run("triage", {"path": "."})

    Everything it starts has ended when the block has been left. Leaving it normally lets running and waiting tasks go on
    for `RuntimeConfig.grace` seconds, then cancels them; leaving it by an exception or a cancellation cancels them at
    once. Tasks that are run or submitted inside of others are accepted as long as those run.

    Args:
        config: how it behaves.
        grace: seconds, instead of the one in `config`.

    Raises:
        ConfigurationError: an argument is not usable.
    """

    factory: ClassVar[type[TaskFactory]] = TaskFactory
    """Makes the tasks of which only a type is given."""

    def __init__(self, config: RuntimeConfig | None = None, *, grace: float | None = None) -> None:
        if config is not None and not isinstance(config, RuntimeConfig):
            raise ConfigurationError(
                f"config of a runtime must be a RuntimeConfig: got {config!r}; write RuntimeConfig(in_flight=...)",
                {"name": "config", "value": config},
            )
        config = config or RuntimeConfig()
        self.config: Final = config if grace is None else attrs.evolve(config, grace=grace)
        self._log = EventLog(capacity=1024)
        self.agents: Final = Directory()
        self.breakers: Final = OwnedCircuitBreakers(self._log)
        self.tasks: Final = Scheduler(
            self,
            self._log,
            in_flight=self.config.in_flight,
            queue=self.config.queue,
            retention=self.config.retention,
        )
        self._group: anyio.abc.TaskGroup | None = None
        self._token: Token[object] | None = None
        self._report: ShutdownReport | None = None
        self._agents_failed: list[tuple[str, Exception]] = []
        # Why the runtime is being shut down, and since when.
        self._closing: tuple[str, float] | None = None

    def __repr__(self) -> str:
        return f"<AgentRuntime {self.tasks.state}, {len(self.tasks)} tasks>"

    @staticmethod
    def current() -> "AgentRuntime":
        """Return the runtime whose block or task this is called in.

        Raises:
            RuntimeClosedError: there is none.
        """
        runtime = current_runtime.get()
        if not isinstance(runtime, AgentRuntime):
            raise RuntimeClosedError(
                "there is no runtime here: got a call outside of every block; write `async with AgentRuntime() as runtime:`",
                {"state": "none"},
            )
        return runtime

    # Work.

    async def run(
        self,
        task: BaseTask | str,
        input: Mapping[str, Any] | None = None,
        *,
        timeout: float | None = None,
        deadline: float | None = None,
        **fields: Any,
    ) -> dict[str, Any]:
        """Execute a task here and return its output. It belongs to the caller: cancelled with him, in his context.

        It waits for its turn if `in_flight` tasks run already, and adds no checkpoint of its own otherwise. Inside
        another task it takes that one's place, which waits here anyway.

        Args:
            task: a task, or a type to make one of.
            input: of the new task.
            timeout: seconds that the execution may take.
            deadline: seconds until the end, the wait for a turn included.
            **fields: further fields of the new task: ``priority``, ``id``, ``metadata``, ``trace_id``, ``parent_id``,
                ``timeout_ms``. Inside another task, ``parent_id`` and ``trace_id`` are taken from that one if omitted.

        Returns:
            What the agent gave: its dictionary, or ``{"result": value}``.

        Raises:
            TaskExecutionError: the task failed; ``__cause__`` is the exception behind it, if there was one.
            TaskTimeoutError: its deadline passed before its turn.
            TaskCanceledError: the runtime cancelled it, when it was shut down.
            TaskRoutingError: there is neither a handler nor an agent for it.
            TaskStateError: the task is not PENDING.
            RuntimeClosedError: the runtime takes no tasks.
            ConfigurationError: an argument is not usable.
        """
        made, plan = self._plan(task, input, timeout, deadline, fields)
        return await self.tasks.run(made, plan)

    async def submit(
        self,
        task: BaseTask | str,
        input: Mapping[str, Any] | None = None,
        *,
        timeout: float | None = None,
        deadline: float | None = None,
        **fields: Any,
    ) -> TaskHandle:
        """Hand a task over and return a handle to it. It belongs to the runtime: it goes on when the caller does not.

        Always a checkpoint, before the task is accepted. It waits while `queue` tasks wait already. A failure that
        nobody learns of by the handle is raised when the runtime is left.

        Args:
            task: a task, or a type to make one of.
            input: of the new task.
            timeout: seconds that the execution may take.
            deadline: seconds until the end, waits included.
            **fields: as for `run`.

        Raises:
            TaskTimeoutError: the deadline passed before the queue had room.
            TaskRoutingError: there is neither a handler nor an agent for it.
            TaskStateError: the task is not PENDING.
            TaskError: the runtime has the task already.
            RuntimeClosedError: the runtime takes no tasks.
            ConfigurationError: an argument is not usable.
        """
        made, plan = self._plan(task, input, timeout, deadline, fields)
        return await self.tasks.submit(made, plan)

    def handler(
        self, task_type: str, *, timeout: float | None = None, max_concurrency: int | None = None
    ) -> Callable[[F], F]:
        """Return a decorator that has a function execute the tasks of a type.

        It is called with the task's input, and with the context if it has a second parameter. A coroutine function runs
        in the event loop, any other in a worker thread. A result that is no AgentResult becomes the output.

        Args:
            task_type: what tasks.
            timeout: seconds that one execution may take.
            max_concurrency: executions at a time; None for no limit.

        Raises:
            ConfigurationError: an argument is not usable.
            RegistryError: what is decorated is no function.
        """
        return self.agents.handler(task_type, timeout=timeout, max_concurrency=max_concurrency)

    def registry(self, name: str) -> Registry[Any]:
        """Return a registry of this runtime, in which the process-wide one of the same name is seen too.

        Args:
            name: ``agents``, ``task_handlers``, or one of your own.
        """
        return self.agents.registry(name)

    def breaker(
        self,
        name: str,
        config: CircuitBreakerConfig | None = None,
        *,
        probe: Callable[[], Awaitable[object]] | None = None,
    ) -> CircuitBreaker:
        """Return this runtime's circuit breaker of a name, made at the first call. Never one of the process.

        Args:
            name: what it is called.
            config: how it behaves; whatever it is, if omitted and it is there already.
            probe: a coroutine function without arguments that tries whether the service works. The runtime calls it when
                the circuit is due, so that no caller has to be the first, until it is shut down.

        Raises:
            ConfigurationError: there is one with another configuration or probe; or an argument is not usable.
        """
        return self.breakers.get(name, config, probe)

    def subscribe(self, sink: EventSink) -> Callable[[], None]:
        """Call a sink with every event from now on, in the event loop; returns the function that ends this.

        The events are ``task_accepted``, ``task_started``, ``task_completed``, ``task_failed``, ``task_canceled``, each
        with ``task_id`` and ``type``, and those of `CircuitBreaker.subscribe` for the breakers of the runtime.
        """
        return self._log.subscribe(sink)

    def events(self) -> tuple[Event, ...]:
        """Return the newest events, oldest first."""
        return self._log.recent()

    def statistics(self) -> RuntimeStatistics:
        """Return what has been done so far."""
        return RuntimeStatistics(state=self.tasks.state, tasks=self.tasks.statistics())

    # Entering and leaving.

    @property
    def report(self) -> ShutdownReport | None:
        """How the runtime was shut down; None before."""
        return self._report

    async def drain(self, timeout: float | None = None) -> bool:
        """Take no further tasks from outside, and wait until those there are have ended. Always a checkpoint.

        Args:
            timeout: seconds; None for as long as it takes.

        Returns:
            Whether they have. If not, they go on.

        Raises:
            ConfigurationError: the timeout is not usable.
        """
        check_seconds("timeout", timeout)
        self.tasks.stop_accepting()
        await anyio.lowlevel.checkpoint()
        with anyio.move_on_after(timeout) as scope:
            await self.tasks.wait_idle()
        return not scope.cancelled_caught

    async def shutdown(
        self, grace: float | None = None, reason: str = "the runtime is shutting down"
    ) -> ShutdownReport:
        """Drain, cancel what is left and terminate the shared agents. Later calls return the report, as soon as nothing is left to be done.

        Called inside a task, it leaves that one alone, and those that wait for it. Leaving the block does this by itself. Cancellation of the caller ends the draining, not the rest.

        Args:
            grace: seconds for draining; None for those of the configuration.
            reason: why, for who waits for what is cut short.

        Raises:
            ConfigurationError: the grace is not usable.
        """
        check_seconds("grace", grace)
        if self._report is not None and not self.tasks:
            return self._report
        if self._closing is None:
            self._closing = reason, _interop.monotonic()
        try:
            await self.drain(self.config.grace if grace is None else grace)
        finally:
            # In a task of its own: a `Task.cancel()` by the host comes through every shield, but ends only this task.
            async with anyio.create_task_group() as group:  # noqa: ASYNC112 - not redundant: see above
                group.start_soon(self._end_all, *self._closing)
        assert self._report is not None  # `_end_all` has made it  # noqa: S101
        return self._report

    async def _end_all(self, reason: str, began: float) -> None:
        """Cancel every task, terminate the shared agents, and report.

        Limited in time by what the agents do: a task ends when its clean-up has, and no sooner. If two calls overlap, each
        does all of this, for the first reason; every step may be done twice.
        """
        with anyio.CancelScope(shield=True):
            await self.tasks.cut(reason)
            self.breakers.stop(reason)
            await self._terminate_agents()
        cut_short = self.tasks.cut_short()
        first = self._report is None
        self._report = ShutdownReport(
            reason=reason,
            drained=not cut_short,
            cut_short=cut_short,
            agents_failed=tuple(self._agents_failed),
            duration=_interop.monotonic() - began,
        )
        if first:
            self._log.emit("runtime_closed", summary=self._report.summary())

    async def __aenter__(self) -> Self:
        if self.tasks.state != "new":
            raise RuntimeClosedError(
                f"a runtime can be entered once: got one in state {self.tasks.state!r}; make a new one",
                {"state": self.tasks.state},
            )
        self._group = anyio.create_task_group()
        await self._group.__aenter__()
        self.tasks.open(self._group)
        self.breakers.open(self._group)
        self._token = current_runtime.set(self)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> Literal[False]:
        assert self._group is not None and self._token is not None  # `__aenter__` has set them  # noqa: S101, PT018
        _, of_block = _interop.split_cancellation(exc) if exc is not None else (False, None)
        grace, reason = None, "the runtime is shutting down"
        if exc is not None:
            grace, reason = 0, f"the block was left by {type(exc).__name__}"
        try:
            await self.shutdown(grace, reason)  # noqa: ASYNC102 - a cancellation ends the draining; the rest is shielded
        except BaseException as error:  # noqa: ASYNC103 - a cancellation must not hide what the block raised
            if of_block is None or not _interop.split_cancellation(error)[0]:
                raise
        finally:
            current_runtime.reset(self._token)
            # Not told of an exception of the block, which would come back wrapped in a group. No task is left by now.
            told = (None, None, None) if of_block is not None else (exc_type, exc, traceback)
            try:
                own = await self._group.__aexit__(*told)  # noqa: ASYNC102 - as at the end of every task group
            finally:
                # Before a cancellation too, as a task group does: errors are not lost for it.
                self._raise_failures(of_block)
            if own and exc is not None and of_block is None:
                raise RuntimeClosedError(
                    "a runtime ends with its block: got a cancellation of its task group; "
                    "cancel tasks by their handles, not by Task.cancel()",
                    {"state": self.tasks.state},
                )
        return False

    async def _terminate_agents(self) -> None:
        for agent in reversed(self.agents.own_agents()):
            try:
                await agent.terminate()
            except Exception as error:  # noqa: BLE001 - it is told by the report and raised at the exit
                self._agents_failed.append((agent.name, error))
                self.tasks.crashes.append(error)

    def _raise_failures(self, of_block: BaseException | None) -> None:
        """Raise what failed in the background, together with what the block raised; nothing if nothing did.

        Raises:
            AgentCrashedError: there were failures.
            BaseExceptionGroup: there was something among them that no `except Exception` may catch.
        """
        lost, lost_count = self.tasks.take_lost()
        background: list[BaseException] = [*self.tasks.crashes, *lost]
        if not background:
            return
        count = len(self.tasks.crashes) + lost_count
        told = [text_of(failure) or type(failure).__name__ for failure in background[:5]]
        if count > len(told):
            told.append(f"and {count - len(told)} more")
        message = f"{count} failures in the background of the runtime: {'; '.join(told)}"
        failures = [of_block, *background] if of_block is not None else background
        ordinary = [failure for failure in failures if isinstance(failure, Exception)]
        if len(ordinary) == len(failures):
            raise AgentCrashedError(message, ordinary, {"failures": count})
        raise BaseExceptionGroup(message, failures)

    def _plan(
        self,
        task: BaseTask | str,
        input: Mapping[str, Any] | None,
        timeout: float | None,
        deadline: float | None,
        fields: dict[str, Any],
    ) -> tuple[BaseTask, Plan]:
        check_seconds("timeout", timeout)
        check_seconds("deadline", deadline)
        made = self._task(task, input, fields)
        route = self.agents.route(made.type)
        if made.timeout_ms is not None:
            timeout = min(made.timeout_ms / 1000, math.inf if timeout is None else timeout)
        total = None if deadline is None else Limit(anyio.current_time() + deadline, "total", deadline)
        return made, Plan(route, total, timeout)

    def _task(
        self,
        task: BaseTask | str,
        input: Mapping[str, Any] | None,
        fields: dict[str, Any],
    ) -> BaseTask:
        if isinstance(task, str):
            return self.factory.create_task(task, input, **{**self.tasks.inherited(), **fields})
        if not isinstance(task, BaseTask):
            raise ConfigurationError(
                f"a runtime takes a task or the name of a type: got {task!r}; write BaseTask.create(type, input)",
                {"name": "task", "value": task},
            )
        if input is not None or fields:
            raise ConfigurationError(
                f"input and fields belong to the making of a task: got them for task {task.id}, which is there; "
                "pass them to BaseTask.create",
                {"name": "input", "value": input, "fields": fields},
            )
        return task
