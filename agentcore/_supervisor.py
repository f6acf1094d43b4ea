"""Supervisors: agents in the order of their start, and what is done when one of them ends.

What is done is decided by `_rules.restart`; here it is carried out, one step after the other, by a task for each supervisor.
A supervisor that gives up fails as an agent does, which is for the one above to mend; above the first one stands the runtime,
which ends then.
"""

# No `from __future__ import annotations` here: the fields of public classes are read at run time, by cattrs and others.
# Their `__module__` reads agentcore, where names in strings could not be found.

import logging
import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from functools import partial
from typing import Any, Final, Literal, final

import anyio
import anyio.abc
import anyio.lowlevel

from agentcore import _agent_errors, _interop
from agentcore._agent_records import AgentConfig
from agentcore._agent_refs import AgentRef
from agentcore._agents import BaseAgent
from agentcore._blueprint import blueprint
from agentcore._chains import links
from agentcore._context import current_execution, current_runtime, end_structure
from agentcore._layer import check_name
from agentcore._rules.backoff import check_number, show
from agentcore._rules.restart import RestartType, Supervision, Verdict, is_started_again, to_member
from agentcore._spawned import Doing, House, Spawned, is_crash, waiting
from agentcore._supervisor_records import Child, Supervisor, checked_supervisor
from agentcore.errors import AgentCrash, AgentCrashedError, AgentError, text_of, texts_of

_logger: Final = logging.getLogger("agentcore.agents")
NAME: Final = "root"
"""What the first supervisor of a runtime is called."""


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
        self._names: dict[str, Child] = {name: self} if above is None else above._names  # of all in the tree
        self._children: dict[str, Child] = {}  # in the order of their start
        self._rule = self._new_rule()
        self._ends: deque[tuple[float, str, BaseException | None]] = deque()  # those within the period
        self._reports: deque[tuple[Any, BaseException | None, object]] = deque()
        self._life: _Life | None = None  # of the task
        self._group: anyio.abc.TaskGroup | None = None  # of the runtime: everything lives in that
        self._coming: tuple[Child, anyio.CancelScope] | None = None  # who is being started again
        self._hooks: list[list[Any]] = []  # the links of the hooks that are called now
        self._ender: object = None  # the chain of who waits for its end
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
        make, config, restart = blueprint(agent, config, restart, shutdown)
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
        kind = to_member(RestartType, f"supervisor {name!r}", "restart", restart)
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
        # Neither does a hook wait that the supervisor itself waits for.
        if not child._is_around() and not any(link[0] is self._doing for link in links(current_execution.get())):
            with waiting(self._doing):
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
            self._ender = current_execution.get()
            try:
                with anyio.CancelScope(shield=True):
                    await self._life.ended.wait()
            finally:
                self._ender = None
        if for_good:
            self._retire()

    def _child_ended(self, child: Child, error: BaseException | None, presence: object) -> None:
        """Hear that a child has ended; without an error it has done so by itself."""
        self._reports.append((child, error, presence))
        if self._hooks and isinstance(child, Spawned):
            self._hold(child.held)
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
        try:
            for child in again:
                await self._bring_back(child, group)
        except BaseException:
            await self._take_down(for_good=False)  # noqa: ASYNC102 - shields itself
            raise
        for child in self._children.values():  # with those that have come meanwhile, in their order
            self._rule.add(child.name, child.restart, anyio.current_time())
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
        with anyio.CancelScope() as scope, self._at_hooks():
            self._coming = child, scope
            try:
                await anyio.lowlevel.checkpoint()  # one that fails at once, again and again, lets others run
                await child._restart(group)
            finally:
                self._coming = None
        if scope.cancelled_caught:
            return False
        self._house.log.emit("agent_restarted", agent=child.name)
        return True

    @contextmanager
    def _at_hooks(self) -> Generator[None]:
        """Have it known, while children come or go, who waits for that: for this supervisor, or for who is down."""
        # Who ends this supervisor waits for the hooks as well.
        around = current_execution.get() if self._ender is None else self._ender
        before, self._hooks = self._hooks, [[self._doing, around, None]]
        self._hold(self._held())
        token = current_execution.set(self._hooks[0])
        try:
            yield
        finally:
            current_execution.reset(token)
            for link in self._hooks:  # what hooks have started elsewhere may outlive them
                link[0] = None
            self._hooks = before

    def _hold(self, held: Iterable[Doing]) -> None:
        """Have the hooks of this moment be what somebody waits for who waits for something else, from now on."""
        for one in held:
            self._hooks[0][1] = link = [one, self._hooks[0][1], None]
            self._hooks.append(link)

    def _held(self) -> Iterator[Doing]:
        """Go through what depends on this supervisor alone now: all that has to do with those below it who are down."""
        for child in self._children.values():
            if isinstance(child, AgentSupervisor):
                if child._is_over:
                    yield child._doing
                    yield from child._held()
            elif isinstance(child, Spawned) and child.agent is None:
                yield from child.held

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
        try:
            with life.scope:
                await self._watch(life)
        except BaseException as error:  # noqa: ASYNC103 - a cancellation that is nobody's would end the others silently
            cancelled, rest = _interop.split_cancellation(error)
            if rest is not None or not cancelled or anyio.current_effective_deadline() == -math.inf:
                raise
            failure = self._cut_off()
        finally:
            self._state = "stopped"
            # Ended from above it has nothing to give up any more. Above the first one is nobody who would look at a crash.
            counts = self._above is None or not life.scope.cancel_called
            gone = self._hear_the_rest(counts=counts)
            self._is_for_good |= self._rule.has_given_up and self._is_gone_with_it()
            try:
                with anyio.CancelScope(shield=True):
                    for child in reversed(list(self._children.values())):
                        await self._end_child(child, for_good=self._is_for_good)
            finally:
                life.ended.set()  # whatever happens: it is waited for in shields
                for child in gone + self._hear_the_rest(counts=counts, all_are_down=True):
                    self._forget(child)
                if self._is_for_good:
                    self._retire()
        if self._rule.has_given_up:
            failure = self._too_many()
        if failure is not None:
            self._give_up(failure, life)

    def _is_gone_with_it(self) -> bool:
        """Tell whether nobody will start this supervisor again when it has given up."""
        return self._above is None or self.restart is RestartType.TEMPORARY

    def _hear_the_rest(self, *, counts: bool, all_are_down: bool = False) -> list[Child]:
        """Note the ends that nobody came to any more; return who is gone for good.

        Who wants somebody to be stopped is told when all are down.

        Args:
            counts: whether a crash can still be one too many.
            all_are_down: whether nobody is up any more.
        """
        gone: list[Child] = []
        reports, self._reports = self._reports, deque()
        for child, error, presence in reports:
            if isinstance(presence, _Request):
                if all_are_down:
                    self._forget(child)
                    presence.done.set()
                else:
                    self._reports.append((child, error, presence))
                continue
            if error is not None:
                self._note_crash(child, error)
            if all_are_down or child._incarnation is presence:
                if counts:
                    self._judge(child, error)
                if not is_started_again(child.restart, crashed=error is not None):
                    gone.append(child)
        return gone

    def _give_up(self, failure: AgentCrashedError, life: "_Life") -> None:
        self._house.log.emit("supervisor_gave_up", supervisor=self.name, crashes=len(failure.exceptions))
        _logger.error("%s", failure)
        if self._above is None:
            self._house.failures.crash(failure)
        else:
            self._above._child_ended(self, failure, life)

    async def _watch(self, life: "_Life") -> None:
        """Do what there is to be done, until nothing more can be."""
        await life.ready.wait()
        while not self._rule.has_given_up:
            if self._reports:
                await self._take_report(*self._reports.popleft())
            elif (name := self._rule.due(anyio.current_time())) is not None:
                await self._start_again(self._children[name])
            else:
                self._forget_old_ends()
                due = self._rule.next_due()
                # Errors of crashes that count no more go, with all that their tracebacks keep. Not in the last moment of the
                # period, in which they do count.
                over = self._ends[0][0] + max(2 * self.config.period, 1.0) if self._ends else math.inf
                with anyio.move_on_at(min(math.inf if due is None else due, over)):
                    await life.bell.wait()
                life.bell = anyio.Event()

    async def _take_report(self, child: Child, error: BaseException | None, presence: object) -> None:
        if isinstance(presence, _Request):
            if self._children.get(child.name) is child:
                await self._end_child(child, for_good=True)
                self._forget(child)
            presence.done.set()
            return
        if error is not None:
            self._note_crash(child, error)
        if self._children.get(child.name) is not child or child._incarnation is not presence:
            return  # it has been taken down meanwhile, with another one
        await self._end_child(child, for_good=False)
        await self._carry_out(child, error)

    async def _end_child(self, child: Child, *, for_good: bool) -> None:
        with self._at_hooks():
            await child._take_down(for_good=for_good)

    async def _start_again(self, child: Child) -> None:
        assert self._group is not None  # it is up  # noqa: S101
        failure: BaseException | None = None
        try:
            if not await self._bring_back(child, self._group):
                return  # who has stopped it is next
        except BaseException as error:  # noqa: ASYNC103 - what is none of an agent goes on
            if not is_crash(error):
                raise
            failure = error
        if failure is not None:
            self._note_crash(child, failure)
            await self._carry_out(child, failure)
        else:
            self._rule.started(child.name, anyio.current_time())

    async def _carry_out(self, child: Child, error: BaseException | None) -> None:
        """Do what follows from the end of a child. Who is up when there were too many is stopped by the end of the task."""
        verdict = self._judge(child, error)
        if verdict.gives_up:
            return
        for name in verdict.stop:
            await self._end_child(self._children[name], for_good=name in verdict.removed)
        for name in verdict.removed:
            self._forget(self._children[name])

    def _judge(self, child: Child, error: BaseException | None) -> Verdict:
        """Decide what follows from the end of a child, and note it."""
        now, draw, is_crash = anyio.current_time(), _interop.sources.get().random.random(), error is not None
        counts = is_started_again(child.restart, crashed=is_crash) and (is_crash or not self._rule.has_given_up)
        verdict = self._rule.ended(child.name, now, draw, crashed=is_crash)
        if counts:
            self._ends.append((now, child.name, error))
        if verdict.gives_up:
            self._forget_old_ends()  # now: until everybody is stopped more of the period may be over
        return verdict

    def _forget_old_ends(self) -> None:
        oldest = anyio.current_time() - self.config.period
        while self._ends and self._ends[0][0] < oldest:
            self._ends.popleft()

    def _too_many(self) -> AgentCrashedError:
        """Make the error of a supervisor that gives up: of all the ends that were too many."""
        errors = [_agent_errors.as_failure(name, error) for _, name, error in self._ends]
        names = sorted({name for _, name, _ in self._ends})
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
        if child.restart is RestartType.TEMPORARY:
            what = f"agent {child.name!r} crashed, and is not started again"
            self._house.failures.add(_agent_errors.as_failure(child.name, error), what)

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
        if self._life is not None and self._life.ready.is_set():  # else it is added with all the others
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
