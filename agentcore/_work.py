"""What a runtime does for its callers: tasks that are run and submitted, agents that are asked, groups of both."""

# No `from __future__ import annotations` here: the fields of public classes are read at run time, by cattrs and others.
# Their `__module__` reads agentcore, where names in strings could not be found.

from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping
from functools import partial
from typing import Any, ClassVar, Final, Literal

import anyio
import anyio.lowlevel

from agentcore._agent_records import (
    AgentCapability,
    AgentConfig,
    AgentContext,
    AgentResult,
    Call,
    Emit,
    Limit,
    check_seconds,
)
from agentcore._agent_refs import AgentRef, Post
from agentcore._agents import BaseAgent
from agentcore._asks import Asks, own_context
from agentcore._context import detached_context
from agentcore._directory import Directory
from agentcore._failures import Failures
from agentcore._groups import Completions, OnError, TaskGroup, checked, checked_limit, map_tasks
from agentcore._handle import TaskHandle
from agentcore._job import Plan
from agentcore._keys import check_key
from agentcore._lifetime import Lifetime
from agentcore._retry import RetryPolicy, check_retry
from agentcore._rules.restart import RestartType
from agentcore._runtime_records import RuntimeConfig
from agentcore._scheduler import Scheduler
from agentcore._streams import AgentStream, check_buffer
from agentcore._supervisor import AgentSupervisor
from agentcore._task_factory import TaskFactory
from agentcore._tasks import BaseTask
from agentcore.errors import ConfigurationError, TaskRoutingError


class Work:
    """The part of `AgentRuntime` that takes work."""

    factory: ClassVar[type[TaskFactory]] = TaskFactory
    """Makes the tasks of which only a type is given."""

    config: Final[RuntimeConfig]
    agents: Final[Directory]
    tasks: Final[Scheduler]
    supervisor: AgentSupervisor
    """The first supervisor, below which `spawn` starts agents."""
    _asks: Asks
    _failures: Failures
    _lifetime: Lifetime

    def __init__(self, config: RuntimeConfig, agents: Directory, tasks: Scheduler) -> None:
        self.config = config
        self.agents = agents
        self.tasks = tasks
        tasks.plan_like = self._plan_like

    async def run(
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
    ) -> dict[str, Any]:
        """Execute a task here and return its output. It belongs to the caller: cancelled with him, in his context.

        It waits for its turn if `in_flight` tasks run already, and adds no checkpoint of its own otherwise. Inside
        another task it takes that one's place, which waits here anyway.

        Args:
            task: a task, or a type to make one of.
            input: of the new task.
            timeout: seconds that each execution may take.
            deadline: seconds until the end, waits and retries included.
            queue_timeout: seconds that each wait for a turn may take, before the first execution and before each retry.
            idle_timeout: seconds that an execution may go on without `AgentContext.progress`.
            retry: whether the task is executed again if it fails; False for no, None for what its handler or the runtime says.
            requires: what the agent has to be able to do.
            **fields: further fields of the new task: ``priority``, ``id``, ``metadata``, ``trace_id``, ``parent_id``,
                ``timeout_ms``. Inside another task, ``parent_id`` and ``trace_id`` are taken from that one if omitted.

        Returns:
            What the agent gave: its dictionary, or ``{"result": value}``.

        Raises:
            TaskExecutionError: the task failed; ``__cause__`` is the exception behind it, if there was one.
            TaskTimeoutError: a deadline passed before its turn.
            TaskCanceledError: the runtime cancelled it, when it was shut down.
            TaskRoutingError: there is neither a handler nor an agent for it.
            TaskStateError: the task is not PENDING.
            RuntimeClosedError: the runtime takes no tasks.
            ConfigurationError: an argument is not usable.
        """
        made, plan = self._plan(task, input, fields, timeout, deadline, queue_timeout, idle_timeout, retry, requires)
        return await self.tasks.run(made, plan)

    async def submit(
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
        key: str | None = None,
        **fields: Any,
    ) -> TaskHandle:
        """Hand a task over and return a handle to it. It belongs to the runtime: it goes on when the caller does not.

        Always a checkpoint, before the task is accepted. It waits while `queue` tasks wait already. A failure that
        nobody learns of by the handle is raised when the runtime is left.

        Args:
            task: a task, or a type to make one of.
            input: of the new task.
            timeout: seconds that each execution may take.
            deadline: seconds until the end, waits and retries included.
            queue_timeout: as for `run`; the first wait includes that for room in the queue.
            idle_timeout: as for `run`.
            retry: likewise.
            requires: likewise.
            key: what stands for this very task. As long as one with this key runs or waits, or is COMPLETED and remembered
                (`RuntimeConfig.retention`), its handle is returned and nothing is submitted, whatever else is given. When it
                has FAILED or was CANCELED, the key is free again.
            **fields: as for `run`.

        Raises:
            TaskTimeoutError: a deadline passed before the queue had room.
            TaskRoutingError: there is neither a handler nor an agent for it.
            TaskStateError: the task is not PENDING.
            TaskError: the runtime has the task already; or the key stands for one of another type.
            RuntimeClosedError: the runtime takes no tasks.
            ConfigurationError: an argument is not usable.
        """
        if key is not None and (known := await self._known(key, task)) is not None:
            return known
        made, plan = self._plan(task, input, fields, timeout, deadline, queue_timeout, idle_timeout, retry, requires)
        return await self.tasks.submit(made, plan, key)

    async def ask(
        self,
        ref: BaseAgent | AgentRef | str,
        context: AgentContext | Mapping[str, Any] | None = None,
        *,
        timeout: float | None = None,
    ) -> AgentResult:
        """Have an agent execute here, in the caller's own task, and return its result: no task is made, nothing waits in line.

        It adds no checkpoint of its own; it waits only if the agent executes as often as it may already.

        Args:
            ref: an agent, what `spawn` has given, or what one is spawned or registered as. Of a class or a factory one is made, and terminated afterwards.
            context: what to work on; a dictionary becomes the parameters of one. It is copied: the agent's context has the
                same task, memory, parameters and metadata.
            timeout: seconds that the execution may take; then `BaseAgent.handle_error` gets an AgentTimeoutError.

        Returns:
            As `BaseAgent.execute`.

        Raises:
            AgentExecutionError: the agent failed to handle an error.
            AgentTerminatedError: the agent has been terminated, or was while it executed.
            AgentRestartedError: the agent was started again while it executed.
            AgentCrash: the agent cannot go on.
            AgentBusyError: as many executions wait for their turn as `AgentConfig.max_waiting` allows.
            AgentDeadlockError: the agent executes already in this very chain of calls, and takes no further one.
            RuntimeClosedError: the runtime is not open; or it was shut down meanwhile, and the execution was cancelled.
            TaskRoutingError: nothing is registered by this name.
            AgentError: this is not the event loop of the runtime.
            ConfigurationError: an argument is not usable.
        """
        if self.tasks.state != "open":
            self.tasks.check_open("an ask", agent=str(ref))
        now = self._lifetime.now()
        if now is None:
            raise self._lifetime.elsewhere("ask")
        own = own_context(context)
        if timeout is not None:
            check_seconds("timeout", timeout)
            own._limit = Limit(now + timeout, "timeout", timeout)
        return await self._asks.execute(ref, own)

    async def spawn(
        self,
        agent: type[BaseAgent] | Callable[..., BaseAgent] | BaseAgent,
        config: AgentConfig | None = None,
        *,
        restart: RestartType | str | None = None,
        shutdown: float | None = None,
        mailbox: int = 1024,
    ) -> AgentRef:
        """Start an agent that is supervised, and return a reference to it when it is initialised.

        It is found by its name, as a registered one; it handles what it is told (`tell`), one message after the other; and it
        is started again when it crashes: when ``handle_error`` fails, a message is not handled, `BaseAgent.live` raises, or
        the agent raises AgentCrash. Its mailbox stays; the message that was being handled is dropped, and told of. It runs
        below the runtime's first supervisor; ``runtime.supervisor.supervise(...)`` makes others, which have a `spawn` as well.

        It initialises the agent in the caller's task; who is cancelled meanwhile has started nothing.

        Args:
            agent: a class of agents, or a factory, called with the configuration for each new one; or an agent that is there,
                which is never started again.
            config: how it behaves, and what it is called.
            restart: after which ends it is started again: ``permanent`` (each, the default), ``transient`` (crashes),
                ``temporary`` (none).
            shutdown: seconds, instead of the configuration's `terminate_timeout`.
            mailbox: how many messages may wait.

        Raises:
            AgentInitializationError: it could not be initialised; it is not started again.
            RuntimeClosedError: the runtime is not open.
            AgentError: there is one of this name; or this is not the event loop of the runtime.
            ConfigurationError: an argument is not usable.
        """
        self._lifetime.check_place("spawn")
        return await self.supervisor.spawn(agent, config, restart=restart, shutdown=shutdown, mailbox=mailbox)

    async def tell(self, ref: AgentRef | str, message: AgentContext | Mapping[str, Any] | None = None) -> None:
        """Put a message into the mailbox of a spawned agent. Always a checkpoint; waits while the mailbox is full.

        The agent executes with it as with what it is asked, and nobody gets the result: one without success, or an error
        that ``handle_error`` does not make a success of, is a crash of the agent. The messages of one sender are handled in
        his order, each with the context variables that he had then. One that is accepted is handled before the runtime
        ends, if the grace is long enough.

        Args:
            ref: what `spawn` has given, or the name.
            message: a context, or the parameters of one. It is copied.

        Raises:
            AgentTerminatedError: the agent is gone for good.
            AgentDeadlockError: the mailbox is full, and the agent waits for this very chain of calls.
            TaskRoutingError: nothing is spawned by this name.
            RuntimeClosedError: the runtime takes no messages.
            AgentError: this is not the event loop of the runtime.
            ConfigurationError: an argument is not usable.
        """
        await self._post(ref).tell(self._message(message))

    def tell_nowait(self, ref: AgentRef | str, message: AgentContext | Mapping[str, Any] | None = None) -> None:
        """Put a message into the mailbox of a spawned agent, as `tell`, without waiting.

        Raises:
            MailboxFullError: it is full, or others wait for a place in it.
            AgentTerminatedError, TaskRoutingError, RuntimeClosedError, AgentError, ConfigurationError: as `tell`.
        """
        self._post(ref).tell_nowait(self._message(message))

    def _post(self, ref: AgentRef | str) -> Post:
        if self.tasks.state != "open":
            self.tasks.check_open("a message", agent=str(ref))
        if isinstance(ref, AgentRef):
            return ref._post  # it knows by itself where it may be called
        self._lifetime.check_place("tell")
        post = self.supervisor._find(ref) if isinstance(ref, str) else None
        if post is None:
            known = [post.name for post in self.supervisor._agents()]
            raise TaskRoutingError(
                f"a message goes to an agent that was spawned: got {ref!r}; "
                f"known are {', '.join(map(repr, known)) or 'none'}; start it with `await runtime.spawn(...)`",
                {"type": str(ref), "known": known},
            )
        return post

    def _message(self, message: AgentContext | Mapping[str, Any] | None) -> AgentContext:
        context = own_context(message)
        context._call = Call(variables=detached_context())
        return context

    def stream(
        self,
        ref: BaseAgent | AgentRef | str,
        context: AgentContext | Mapping[str, Any] | None = None,
        *,
        timeout: float | None = None,
        buffer: int = 0,
    ) -> AgentStream:
        """Return a block in which an agent executes, to go through what it emits: ``async with``, then ``async for``.

        Args:
            ref: as for `ask`.
            context: as for `ask`.
            timeout: as for `ask`.
            buffer: how many items the agent may be ahead of who takes them.

        Raises:
            RuntimeClosedError: the runtime is not open.
            AgentError: this is not the event loop of the runtime.
            ConfigurationError: an argument is not usable.
        """
        self.tasks.check_open("a stream", agent=str(ref))
        group = self._lifetime.group
        if group is None or self._lifetime.now() is None:
            raise self._lifetime.elsewhere("stream")
        check_buffer(buffer)
        check_seconds("timeout", timeout)
        own = own_context(context)

        def start(perform: Callable[[], Coroutine[Any, Any, None]]) -> None:
            self.tasks.check_open("a stream", agent=str(ref))
            group.start_soon(perform, name="stream of an agent")

        async def execute(emit: Emit) -> AgentResult:
            self.tasks.check_open("a stream", agent=str(ref))
            own._emit = emit
            if timeout is not None:
                own._limit = Limit(anyio.current_time() + timeout, "timeout", timeout)
            return await self._asks.execute(ref, own)

        return AgentStream(execute, start, self._failures, buffer)

    def group(self, on_error: OnError = "cancel") -> TaskGroup:
        """Return a block for tasks that end with it: ``async with runtime.group() as group: group.start(...)``.

        Args:
            on_error: what happens when a task fails. ``cancel``: the others and the block are cancelled, and leaving the block
                raises all failures as a `TaskGroupError`, with the results of those that succeeded. ``first``: likewise, but
                the first failure is raised as it is, with notes of the others. ``collect``: nothing; look at the handles or
                at `TaskGroup.results`. A failure that nobody has looked at is raised when the runtime is left.

        Raises:
            ConfigurationError: there is no such way to handle errors.
        """
        return TaskGroup(self.tasks, self._plan, on_error)

    async def map(
        self,
        task_type: str,
        inputs: Iterable[Mapping[str, Any]],
        *,
        limit: int | None = None,
        timeout: float | None = None,
        **fields: Any,
    ) -> list[dict[str, Any]]:
        """Run a task for each input and return the outputs, in the order of the inputs. The first failure cancels the rest.

        Args:
            task_type: what tasks.
            inputs: of the tasks; drawn as there is room for them.
            limit: how many may run or wait at a time; None for `RuntimeConfig.in_flight`.
            timeout: seconds that each execution may take.
            **fields: as for `run`.

        Raises:
            TaskGroupError: tasks failed; it has the results of all that have ended.
            TaskRoutingError: there is neither a handler nor an agent for them.
            RuntimeClosedError: the runtime takes no tasks.
            ConfigurationError: an argument is not usable.
        """
        group = self.group()
        start = partial(self._start_in, group, task_type, timeout, fields)
        return await map_tasks(group, start, checked(inputs), checked_limit(limit, self.config.in_flight))

    def as_completed(
        self,
        task_type: str,
        inputs: Iterable[Mapping[str, Any]],
        *,
        limit: int | None = None,
        timeout: float | None = None,
        **fields: Any,
    ) -> Completions:
        """Return a block in which a task runs for each input, to go through their handles as they end.

        Args:
            task_type: what tasks.
            inputs: of the tasks; drawn as handles are taken out.
            limit: how many may have been started and not been taken; None for `RuntimeConfig.in_flight`.
            timeout: seconds that each execution may take.
            **fields: as for `run`.

        Raises:
            ConfigurationError: an argument is not usable.
        """
        group = self.group("collect")
        start = partial(self._start_in, group, task_type, timeout, fields)
        return Completions(group, start, checked(inputs), checked_limit(limit, self.config.in_flight))

    async def _known(self, key: str, task: BaseTask | str) -> TaskHandle | None:
        """Return the handle of the task that a key stands for, whatever else is given; None if it stands for none."""
        check_key(key)
        self._lifetime.check_place("submit")
        await anyio.lowlevel.checkpoint()
        return self.tasks.find(key, task.type if isinstance(task, BaseTask) else task)

    def _plan(  # noqa: PLR0917 - names would cost a hundredth of a whole task
        self,
        task: BaseTask | str,
        input: Mapping[str, Any] | None,
        fields: Mapping[str, Any],
        timeout: float | None,
        deadline: float | None,
        queue_timeout: float | None,
        idle_timeout: float | None,
        retry: RetryPolicy | Literal[False] | None,
        requires: Collection[AgentCapability | str],
    ) -> tuple[BaseTask, Plan]:
        self._lifetime.check_place("run and submit")
        made = to_task(task, input, fields, self.factory, self.tasks)
        route = self.agents.route(made.type, requires)
        if retry is None:
            retry = self.config.retry if route.retry is None else route.retry
        elif retry.__class__ is not RetryPolicy:  # a call less, on a path that is hot
            check_retry("a task", retry, or_false=True)
        return made, Plan.make(made, route, timeout, deadline, queue_timeout, idle_timeout, retry or None, requires)

    def _plan_like(self, task: BaseTask, plan: Plan) -> Plan:
        """Plan a task as another one was planned, by whoever serves it now."""
        self._lifetime.check_place("requeue")
        deadline = plan.total.seconds if plan.total is not None else None
        route = self.agents.route(task.type, plan.requires)
        return Plan.make(
            task, route, plan.timeout, deadline, plan.queue_timeout, plan.idle_timeout, plan.retry, plan.requires
        )

    def _start_in(
        self, group: TaskGroup, task_type: str, timeout: float | None, fields: dict[str, Any], input: Mapping[str, Any]
    ) -> TaskHandle:
        return group.start(task_type, input, timeout=timeout, **fields)


def to_task(
    task: BaseTask | str,
    input: Mapping[str, Any] | None,
    fields: Mapping[str, Any],
    factory: type[TaskFactory],
    scheduler: Scheduler,
) -> BaseTask:
    """Return the task that is given, or make one of a type; it is a child of the task that this is called in.

    Raises:
        ConfigurationError: it is neither; or something is given to make a task of that is there already; or a key.
    """
    if fields and "key" in fields:
        raise ConfigurationError(
            f"a key is for what is submitted: got {fields['key']!r} for a task that is run, or started in a group, "
            "whose caller has it already; use AgentRuntime.submit",
            {"name": "key", "value": fields["key"]},
        )
    if isinstance(task, str):
        return factory.create_task(task, input, **{**scheduler.inherited(), **fields})
    if not isinstance(task, BaseTask):
        raise ConfigurationError(
            f"a runtime takes a task or the name of a type: got {task!r}; write BaseTask.create(type, input)",
            {"name": "task", "value": task},
        )
    if input is not None or fields:
        raise ConfigurationError(
            f"input and fields belong to the making of a task: got them for task {task.id}, which is there; "
            "pass them to BaseTask.create",
            {"name": "input", "value": input, "fields": dict(fields)},
        )
    return task
