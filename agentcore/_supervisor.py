"""Supervisors: agents in the order of their start, and what is done when one of them ends.

What is done is decided by `_rules.restart`; here it is carried out, one step after the other, by a task for each supervisor.
A supervisor that gives up fails as an agent does, which is for the one above to mend; above the first one stands the runtime,
which ends then.
"""

# No `from __future__ import annotations` here: the fields of public classes are read at run time, by cattrs and others.
# Their `__module__` reads agentcore, where names in strings could not be found.

import inspect
import logging
import math
from collections import deque
from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from typing import Any, Final, Literal, Protocol, final

import anyio
import anyio.abc
import anyio.lowlevel
import attrs

from agentcore import _interop
from agentcore._agent_records import AgentConfig
from agentcore._agent_refs import AgentRef
from agentcore._agents import BaseAgent
from agentcore._context import current_execution, current_runtime, end_structure
from agentcore._layer import check_name
from agentcore._rules.backoff import check_number, show
from agentcore._rules.restart import RestartType, Supervision, to_member
from agentcore._spawned import Doing, House, Spawned, as_failure, is_crash
from agentcore._supervisor_records import Supervisor, checked_supervisor
from agentcore.errors import AgentCrash, AgentCrashedError, AgentError, ConfigurationError, text_of, texts_of

_logger: Final = logging.getLogger("agentcore.agents")
NAME: Final = "root"
"""What the first supervisor of a runtime is called."""


class Child(Protocol):
    """What a supervisor runs: an agent, or another supervisor."""

    name: str
    restart: RestartType

    @property
    def _incarnation(self) -> object:
        """What tells its lives apart."""

    async def _restart(self, group: anyio.abc.TaskGroup) -> None:
        """Be there once more."""

    async def _take_down(self, *, for_good: bool) -> None:
        """Be gone, and wait for that."""

    def _retire(self) -> None:
        """Be gone for good, and tell those who wait."""

    def _is_around(self) -> bool:
        """Tell whether this is called from inside."""


@final
class AgentSupervisor:
    """Runs agents, and other supervisors, and starts them again. ``runtime.supervisor`` is the first; `supervise` makes others.

    Args:
        name: what it is called.
        config: how it mends.
        restart: after which ends it is started again itself.
        house: what all agents of the runtime share.
        above: the supervisor that runs it; None for the first.
    """

    def __init__(
        self,
        name: str,
        config: Supervisor,
        house: House,
        above: "AgentSupervisor | None" = None,
        restart: RestartType = RestartType.PERMANENT,
    ) -> None:
        self.name: str = name
        self.config: Final = config
        self.restart: RestartType = restart
        self._doing: Doing = Doing(f"supervisor {name}")
        self._house = house
        self._above = above
        self._names: dict[str, Child] = {} if above is None else above._names  # of all in the tree
        self._children: dict[str, Child] = {}  # in the order of their start
        self._rule = self._new_rule()
        self._ends: deque[tuple[float, str, BaseException | None]] = deque(maxlen=config.intensity + 1)
        self._reports: deque[tuple[Any, BaseException | None, object]] = deque()
        self._life: _Life | None = None  # of the task
        self._group: anyio.abc.TaskGroup | None = None  # of the runtime: everything lives in that
        self._coming: tuple[Child, anyio.CancelScope] | None = None  # who is being started again
        self._is_for_good = False
        self._state: Literal["new", "up", "stopped"] = "new"

    def __repr__(self) -> str:
        return f"<AgentSupervisor {self.name!r} {self.state}, {len(self._children)} children>"

    @property
    def state(self) -> Literal["new", "up", "stopped"]:
        """``new`` before the first child, ``stopped`` when it has given up, or was stopped."""
        return self._state

    @property
    def children(self) -> "tuple[AgentRef | AgentSupervisor, ...]":
        """What it runs, in the order of the start."""
        return tuple(
            child if isinstance(child, AgentSupervisor) else AgentRef(child)  # type: ignore[arg-type]
            for child in self._children.values()
        )

    # Children, by whoever wants them.

    async def spawn(
        self,
        agent: type[BaseAgent] | Callable[..., BaseAgent] | BaseAgent,
        config: AgentConfig | None = None,
        *,
        restart: RestartType | str | None = None,
        shutdown: float | None = None,
        mailbox: int = 1024,
    ) -> AgentRef:
        """Start an agent below this supervisor and return a reference to it; see `AgentRuntime.spawn`."""
        self._check_open(agent)
        make, config, restart = _blueprint(agent, config, restart, shutdown)
        check_number(f"agent {config.name!r}", "mailbox", mailbox, "say how many may wait", least=1, whole=True)
        self._check_name(config.name)
        child = Spawned(make, config, restart=restart, capacity=mailbox, house=self._house, overseer=self)
        self._names[child.name] = child
        made: BaseAgent | None = None
        try:
            made = await child.prepare()
            self._check_open(agent)
        except BaseException:
            del self._names[child.name]
            child._retire()
            if made is not None:
                await child._terminate(made)  # noqa: ASYNC102 - shields and limits itself
            raise
        # No await from here on: what is initialised has somebody who sees to it.
        child.install(made, self._adopt(child))
        return AgentRef(child)

    async def supervise(
        self, name: str, config: Supervisor | None = None, *, restart: RestartType | str = RestartType.PERMANENT
    ) -> "AgentSupervisor":
        """Start a supervisor below this one. When it is started again, so are its children, but for temporary ones.

        Always a checkpoint.

        Args:
            name: what it is called.
            config: how it mends.
            restart: after which ends it is started again: when it has given up, that is.

        Raises:
            RuntimeClosedError: the runtime is not open.
            AgentError: there is an agent or a supervisor of this name, or this one is stopped.
            ConfigurationError: an argument is not usable.
        """
        await anyio.lowlevel.checkpoint()
        self._check_open(name)
        check_name("supervisor", name)
        self._check_name(name)
        kind = to_member(RestartType, "restart", restart)
        below = AgentSupervisor(name, checked_supervisor(config), self._house, self, kind)
        self._names[name] = below
        below._begin(self._adopt(below)).ready.set()
        return below

    async def stop(self) -> None:
        """Stop all children, the last one first, and be gone. Always a checkpoint; cancellation ends the waiting alone.

        Raises:
            AgentError: it is the first supervisor, which ends with the runtime.
        """
        self._house.check_place("stop")
        await anyio.lowlevel.checkpoint()
        if self._above is None:
            raise AgentError(
                "the first supervisor ends with its runtime: got a call of its stop(); stop its children, or the runtime"
            )
        await self._above._stop_child(self)

    async def _stop_child(self, child: Any) -> None:
        """Take a child down for good and wait for that, unless it is called from inside of it."""
        if child not in self._children.values():
            return  # it is gone already
        if self._is_over:  # it has given up and is not back yet, so the child is down
            self._forget(child)
            return
        self._child_ended(child, None, request := _Request())
        if self._coming is not None and self._coming[0] is child:  # its start may take for ever
            self._coming[1].cancel(f"{child.name!r} is stopped")
        if not child._is_around():
            await request.done.wait()

    def _find(self, name: str) -> Spawned | None:
        """Return the place of an agent in the whole tree; None if there is none of this name."""
        child = self._names.get(name)
        return child if isinstance(child, Spawned) else None

    def _agents(self) -> list[Spawned]:
        """Return the places of all agents in the tree, in the order of their first start."""
        return [child for child in self._names.values() if isinstance(child, Spawned)]

    # Its own life.

    def _open(self, group: anyio.abc.TaskGroup) -> None:
        """Have everything live in this task group, from the first child on."""
        self._group = group

    @property
    def _is_over(self) -> bool:
        """Whether nothing of it runs."""
        return self._life is None or self._life.ended.is_set()

    async def _end(self, *, for_good: bool = True) -> None:
        """End everything, in reverse order, and wait for that, unless it is called from inside."""
        self._is_for_good = for_good
        self._state = "stopped"
        if self._life is not None and not self._life.ended.is_set():
            self._life.scope.cancel(f"supervisor {self.name!r} is stopped")
            if self._is_around():
                return
            with anyio.CancelScope(shield=True):
                await self._life.ended.wait()
        if for_good:
            self._retire()

    def _child_ended(self, child: Child, error: BaseException | None, presence: object) -> None:
        """Hear that a child has ended; without an error it has done so by itself."""
        self._reports.append((child, error, presence))
        if self._life is not None:
            self._life.bell.set()

    # As a child of another one.

    @property
    def _incarnation(self) -> object:
        """What tells its lives apart."""
        return self._life

    async def _restart(self, group: anyio.abc.TaskGroup) -> None:
        """Be there once more, with all children that are to be started again.

        Raises:
            Exception: one of them could not be.
        """
        again = list(self._children.values())
        self._rule = self._new_rule()
        self._reports.clear()
        self._ends.clear()
        life = self._begin(group)
        token = current_execution.set([self._doing, current_execution.get(), None])
        try:
            for child in again:
                if await self._bring_back(child, group):
                    self._rule.add(child.name, child.restart, anyio.current_time())
        except BaseException:
            await self._take_down(for_good=False)  # noqa: ASYNC102 - shields itself
            raise
        finally:
            current_execution.reset(token)
        life.ready.set()

    async def _take_down(self, *, for_good: bool) -> None:
        """Stop all children, and the task."""
        await self._end(for_good=for_good)
        for child in [one for one in self._children.values() if one.restart is RestartType.TEMPORARY]:
            self._forget(child)

    def _retire(self) -> None:
        """Have nobody wait for the children any more."""
        for child in list(self._children.values()):
            self._forget(child)

    def _quieten(self) -> None:
        """Have no agent in the tree do anything by itself any more."""
        for child in self._agents():
            child._quieten()

    def _drop_messages(self, why: str) -> None:
        """Have no mailbox in the tree accept anything any more, and drop what is in them; of those to come as well."""
        for child in self._agents():
            child._drop_messages(why)

    def _is_around(self) -> bool:
        """Tell whether this is called from inside of one of the children."""
        return any(child._is_around() for child in self._children.values())

    async def _bring_back(self, child: Child, group: anyio.abc.TaskGroup) -> bool:
        """Start a child again, unless somebody stops it meanwhile; tell whether it is there.

        Raises:
            Exception: it could not be.
        """
        with anyio.CancelScope() as scope:
            self._coming = child, scope
            try:
                await child._restart(group)
            finally:
                self._coming = None
        return not scope.cancelled_caught

    # The task.

    def _begin(self, group: anyio.abc.TaskGroup) -> "_Life":
        self._state, self._group, self._life = "up", group, _Life()
        context = copy_context()
        context.run(end_structure)
        context.run(current_runtime.set, self._house.runner)
        _ = context.run(partial(group.start_soon, self._run, self._life, name=f"supervisor {self.name}"))
        return self._life

    async def _run(self, life: "_Life") -> None:
        failure: AgentCrashedError | None = None
        current_execution.set([self._doing, None, None])
        try:
            with life.scope:
                failure = await self._watch(life)
        except BaseException as error:  # noqa: ASYNC103 - a cancellation that is nobody's would end the others silently
            cancelled, rest = _interop.split_cancellation(error)
            if rest is not None or not cancelled or anyio.current_effective_deadline() == -math.inf:
                raise
            failure = self._cut_off()
        finally:
            self._state = "stopped"
            with anyio.CancelScope(shield=True):
                for child in reversed(list(self._children.values())):
                    await child._take_down(for_good=self._is_for_good)
            life.ended.set()
            for child, _, request in list(self._reports):
                if isinstance(request, _Request):  # everything is stopped by now
                    self._forget(child)
                    request.done.set()
            self._reports.clear()
            if self._is_for_good:
                self._retire()
        if failure is not None:
            self._give_up(failure, life)

    def _give_up(self, failure: AgentCrashedError, life: "_Life") -> None:
        self._house.log.emit("supervisor_gave_up", supervisor=self.name, crashes=len(failure.exceptions))
        _logger.error("%s", failure)
        if self._above is None:
            self._house.failures.crash(failure)
        else:
            self._above._child_ended(self, failure, life)

    async def _watch(self, life: "_Life") -> AgentCrashedError | None:
        """Do what there is to be done; return why nothing more can be."""
        await life.ready.wait()
        while True:
            failure = None
            if self._reports:
                failure = await self._take_report(*self._reports.popleft())
            elif (name := self._rule.due(anyio.current_time())) is not None:
                failure = await self._start_again(self._children[name])
            else:
                due = self._rule.next_due()
                with anyio.move_on_at(math.inf if due is None else due):
                    await life.bell.wait()
                life.bell = anyio.Event()
            if failure is not None:
                return failure

    async def _take_report(
        self, child: Child, error: BaseException | None, presence: object
    ) -> AgentCrashedError | None:
        if isinstance(presence, _Request):
            if self._children.get(child.name) is child:
                await child._take_down(for_good=True)
                self._forget(child)
            presence.done.set()
            return None
        if error is not None:
            self._note_crash(child, error)
        if self._children.get(child.name) is not child or child._incarnation is not presence:
            return None  # it has been taken down meanwhile, with another one
        await child._take_down(for_good=False)
        return await self._carry_out(child, error)

    async def _start_again(self, child: Child) -> AgentCrashedError | None:
        assert self._group is not None  # it is up  # noqa: S101
        failure: BaseException | None = None
        try:
            if not await self._bring_back(child, self._group):
                return None  # who has stopped it is next
        except BaseException as error:  # noqa: ASYNC103 - what is none of an agent goes on
            if not is_crash(error):
                raise
            failure = error
        if failure is not None:
            self._note_crash(child, failure)
            return await self._carry_out(child, failure)
        self._rule.started(child.name, anyio.current_time())
        self._house.log.emit("agent_restarted", agent=child.name)
        return None

    async def _carry_out(self, child: Child, error: BaseException | None) -> AgentCrashedError | None:
        """Do what follows from the end of a child."""
        now, draw = anyio.current_time(), _interop.sources.get().random.random()
        verdict = self._rule.ended(child.name, now, draw, crashed=error is not None)
        if child.name not in verdict.removed:
            self._ends.append((now, child.name, error))
        for name in verdict.stop:
            await self._children[name]._take_down(for_good=name in verdict.removed)
        for name in verdict.removed:
            gone = self._children[name]
            self._forget(gone)
            if gone is child and error is not None:
                self._house.failures.add(as_failure(name, error), f"agent {name!r} crashed, and is not started again")
        return self._too_many(now) if verdict.gives_up else None

    def _too_many(self, now: float) -> AgentCrashedError:
        """Make the error of a supervisor that gives up: of all the ends that were too many."""
        recent = [(name, error) for at, name, error in self._ends if at >= now - self.config.period]
        errors = [as_failure(name, error) for name, error in recent]
        names = sorted({name for name, _ in recent})
        return AgentCrashedError(
            f"supervisor {self.name!r} gives up: got {len(errors)} restarts within {self.config.period:g} s, "
            f"{self.config.intensity} are allowed: {texts_of(errors)}",
            errors,
            {"supervisor": self.name, "agents": names, "intensity": self.config.intensity},
        )

    def _cut_off(self) -> AgentCrashedError:
        """Make the error of a supervisor that somebody has cancelled who must not."""
        why = AgentCrash(f"the task of supervisor {self.name!r} was cancelled from outside of the runtime")
        return AgentCrashedError(f"supervisor {self.name!r} gives up: {why}", [why], {"supervisor": self.name})

    def _note_crash(self, child: Child, error: BaseException) -> None:
        self._house.log.emit("agent_crashed", agent=child.name, error=f"{type(error).__name__}: {text_of(error)}")
        _logger.error("agent %r crashed: %s", child.name, text_of(error) or type(error).__name__, exc_info=error)

    # The children.

    def _new_rule(self) -> Supervision:
        own = self.config
        return Supervision(own.strategy, own.intensity, own.period, own.backoff, own.reset_after)

    def _adopt(self, child: Child) -> anyio.abc.TaskGroup:
        """Have a child, which is up in this moment; return where it lives."""
        assert self._group is not None  # `open` has set it  # noqa: S101
        if self._state == "new":
            self._begin(self._group).ready.set()
        self._children[child.name] = child
        self._rule.add(child.name, child.restart, anyio.current_time())
        self._house.log.emit("agent_started", agent=child.name)
        return self._group

    def _forget(self, child: Child) -> None:
        """Note that a child is gone for good, unless it was already."""
        if self._children.get(child.name) is not child:
            return
        del self._children[child.name], self._names[child.name]
        self._rule.remove(child.name)
        child._retire()
        self._house.log.emit("agent_stopped", agent=child.name)

    def _check_open(self, subject: object) -> None:
        self._house.check_place("spawn and supervise")
        self._house.check_open(f"a spawn of {show(subject)}")
        if self._state == "stopped":
            raise AgentError(
                f"supervisor {self.name!r} runs nothing any more: got {show(subject)}; it has given up, or was stopped"
            )

    def _check_name(self, name: str) -> None:
        if name in self._names:
            raise AgentError(
                f"a name below the supervisors of a runtime is given once: got {name!r}, which is there; "
                "take another one, or stop the other first",
                {"agent": name},
            )


@final
class _Life:
    """The time of a supervisor's task, which has one after the other if it is started again itself.

    Attributes:
        scope: around what it does; cancelled to end it.
        ready: set when all children are there that are to be.
        bell: wakes it up.
        ended: set when nothing of it runs.
    """

    __slots__ = ("bell", "ended", "ready", "scope")

    def __init__(self) -> None:
        self.scope = anyio.CancelScope()
        self.ready = anyio.Event()
        self.bell = anyio.Event()
        self.ended = anyio.Event()


@final
class _Request:
    """Somebody wants a child to be stopped for good."""

    __slots__ = ("done",)

    def __init__(self) -> None:
        self.done = anyio.Event()


def _blueprint(
    agent: object, config: AgentConfig | None, restart: RestartType | str | None, shutdown: float | None
) -> tuple[Callable[[], BaseAgent], AgentConfig, RestartType]:
    """Return how an agent is made, how it behaves, and after which ends it is started again.

    Raises:
        ConfigurationError: that cannot be.
    """
    kind = None if restart is None else to_member(RestartType, "restart", restart)
    if isinstance(agent, BaseAgent):
        if config is not None or kind not in (None, RestartType.TEMPORARY):
            raise ConfigurationError(
                f"an agent that is there already cannot be made once more: got {agent!r} with restart={restart!r} and "
                f"config={config!r}; spawn its class, or use restart='temporary' and no config",
                {"name": "agent", "value": agent},
            )
        kind = RestartType.TEMPORARY
        config = agent.config
    elif not callable(agent) or not isinstance(config, AgentConfig):
        raise ConfigurationError(
            f"spawn takes a class of agents or a factory, and an AgentConfig: got {show(agent)} and {show(config)}; "
            "write spawn(MyAgent, AgentConfig(name=..., agent_type=...))",
            {"name": "agent", "value": agent},
        )
    if shutdown is not None:
        config = attrs.evolve(config, terminate_timeout=shutdown)
    return partial(_make, agent, config), config, kind or RestartType.PERMANENT


def _make(agent: Any, config: AgentConfig) -> BaseAgent:
    made = agent if isinstance(agent, BaseAgent) else agent(config)
    if not isinstance(made, BaseAgent):
        if inspect.iscoroutine(made):
            made.close()
        raise ConfigurationError(
            f"what is spawned must give an agent when it is called with an AgentConfig: got {show(made)}; "
            "return a BaseAgent",
            {"name": "agent", "value": made},
        )
    if made._keeper is not None:
        raise ConfigurationError(
            f"an agent has one supervisor at a time: got {made!r}, which has one; make another agent",
            {"name": "agent", "value": made},
        )
    made.config = config
    return made
