"""An agent that was spawned: who fills its place now, what it does by itself, and the messages in its mailbox.

Whatever ends the agent is noted at once (`Keeper`), so nobody gets a broken one any more; the supervisor learns of it and
decides. The mailbox outlives the agent: only the message that was being handled is lost with it, and told of.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from contextvars import Context, copy_context
from typing import Any, Final, Literal, Protocol, final

import anyio
import anyio.abc
import anyio.lowlevel
import attrs

from agentcore import _agent_errors, _interop
from agentcore._agent_records import AgentConfig, AgentContext, Call
from agentcore._agents import BaseAgent, waits
from agentcore._calls import Calls
from agentcore._chains import links
from agentcore._context import (
    current_execution,
    current_job,
    current_runtime,
    current_terminations,
    drive,
    end_structure,
)
from agentcore._events import EventLog
from agentcore._failures import Failures
from agentcore._mailbox import Mailbox
from agentcore._rules.restart import RestartType
from agentcore.abc import TaskRunner
from agentcore.errors import (
    AgentCrash,
    AgentRestartedError,
    AgentTerminatedError,
    AgentTimeoutError,
    MailboxFullError,
    RuntimeClosedError,
    text_of,
)

_logger: Final = logging.getLogger("agentcore.agents")
_BATCH: Final = 16
"""After how many messages an agent lets others run, also if it waits for nothing itself."""


@final
@attrs.frozen
class House:
    """What all agents of a runtime share.

    Attributes:
        runner: what their contexts reach the runtime by.
        calls: what is under way, messages included.
        failures: where what reaches nobody goes.
        log: where events go.
        check_open: raises if the runtime takes nothing from the caller.
        check_place: raises if this is not its event loop.
        refusal: makes the error for who comes then.
        is_ending: tells whether the runtime is about to end, so that nobody does anything by himself any more.
    """

    runner: TaskRunner
    calls: Calls
    failures: Failures
    log: EventLog
    check_open: Callable[[str], None]
    check_place: Callable[[str], None]
    refusal: Callable[[str], Exception]
    is_ending: Callable[[], bool]


@final
class Doing:
    """What an agent or a supervisor is at, at the root of a chain of executions: others may have to wait for the end of it.

    There is room in a mailbox when a message has been handled, and an agent is there when its supervisor has come to it.
    """

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name: str = name


class Overseer(Protocol):
    """Decides what becomes of an agent that has ended: a supervisor.

    Attributes:
        _doing: what is waited for by who waits for an agent that is to be started again.
    """

    _doing: Doing

    def _child_ended(self, child: Any, error: BaseException | None, presence: object) -> None:
        """Hear that a child has ended; without an error it has done so by itself."""

    async def _stop_child(self, child: Any) -> None:
        """Take a child down for good."""


@final
class _Presence:
    """The time of one agent in a place.

    Attributes:
        agent: the agent.
        scope: around the handling of messages.
        life: around what the agent does by itself.
        tasks: how many of the two go on.
        ended: set when none does.
    """

    __slots__ = ("agent", "ended", "life", "scope", "tasks")

    def __init__(self, agent: BaseAgent) -> None:
        self.agent = agent
        self.scope = anyio.CancelScope()
        self.life = anyio.CancelScope()
        self.tasks = 0
        self.ended = anyio.Event()

    def leave(self) -> None:
        """Note the end of a task."""
        self.tasks -= 1
        if not self.tasks:
            self.ended.set()


@final
class Spawned:
    """The place of one agent.

    Args:
        make: gives a new agent.
        config: how it behaves.
        restart: after which ends it is started again.
        capacity: of the mailbox.
        house: what it shares with others.
        overseer: who decides.
    """

    def __init__(
        self,
        make: Callable[[], BaseAgent],
        config: AgentConfig,
        *,
        restart: RestartType,
        capacity: int,
        house: House,
        overseer: Overseer,
    ) -> None:
        self.name: str = config.name
        self.config: AgentConfig = config
        self.restart: RestartType = restart
        self.restarts: int = 0
        self._turns: int = 0
        self.dropped: int = 0
        self.agent: BaseAgent | None = None
        self._make = make
        self._house = house
        self._overseer = overseer
        self._mailbox: Mailbox[AgentContext] = Mailbox(capacity, self._note_accepted, self._note_end)
        self._room = Doing(f"mailbox of {self.name}")
        self._life = Doing(f"life of {self.name}")
        self._coming = Doing(f"start of {self.name}")
        self._is_gone = self._is_refusing = False
        self._change = anyio.Event()  # set when somebody comes, or nobody ever will
        self._presence: _Presence | None = None  # of the agent that is there, or has just crashed
        self._passing: BaseAgent | None = None  # who is about to come, or to go
        self._calls: set[Call] = set()
        self._variables: Context = copy_context()  # of whoever spawns it; it is a part of nothing of his
        self._variables.run(end_structure)
        self._variables.run(current_runtime.set, house.runner)

    def __repr__(self) -> str:
        return f"<Spawned {self.name!r} {self.state}>"

    @property
    def state(self) -> Literal["up", "restarting", "stopped"]:
        """Whether there is an agent, or will be, or never again."""
        return "stopped" if self._is_gone else "restarting" if self.agent is None else "up"

    @property
    def held(self) -> tuple[Doing, ...]:
        """What depends on its supervisor alone while there is no agent."""
        return self._coming, self._room

    @property
    def waiting(self) -> int:
        """How many messages wait."""
        return len(self._mailbox)

    # Coming and going, by its supervisor.

    @property
    def _incarnation(self) -> object:
        """What tells the agents apart that have been here; None while none is."""
        return self._presence

    async def prepare(self) -> BaseAgent:
        """Return a new agent that is initialised.

        Raises:
            AgentInitializationError: it could not be.
            Exception: what making it raises.
        """
        variables, requests = self._own_variables(), _interop.cancel_requests()
        agent = self._passing = variables.run(self._make)
        agent._keeper = self
        # Whoever waits for the agent, or for room in its mailbox, waits for this.
        room = [self._room, current_execution.get(), None]
        start = [self._coming, room, None]
        variables.run(current_execution.set, start)
        try:
            await drive(variables, agent._initialize(AgentContext(), None))
        except BaseException as error:
            await self._terminate(agent)  # noqa: ASYNC102 - shields and limits itself
            if _is_foreign(error, requests):
                why = "something that it waited for was cancelled"
                raise _agent_errors.not_ready(self.name, why) from error  # noqa: ASYNC104 - it is not the caller's
            raise
        finally:
            self._passing = start[0] = room[0] = None
        return agent

    def _own_variables(self) -> Context:
        """Return the variables of whoever has spawned it, for a part of what this is called in."""
        variables = self._variables.copy()
        for structural in (current_execution, current_job, current_terminations):
            variables.run(structural.set, structural.get())  # type: ignore[arg-type]  # of each its own
        return variables

    def install(self, agent: BaseAgent, group: anyio.abc.TaskGroup) -> None:
        """Have an agent fill the place from now on."""
        self.agent = agent
        self._presence = _Presence(agent)
        self._variables.copy().run(self._start, self._presence, group)
        self._change.set()

    async def _restart(self, group: anyio.abc.TaskGroup) -> None:
        """Have another agent fill the place.

        Raises:
            Exception: it could not be made or initialised.
        """
        agent = await self.prepare()
        self.restarts += 1
        self.install(agent, group)

    async def _take_down(self, *, for_good: bool) -> None:
        """End the agent that is there, and what it does. Shields itself; limited in time by what the agent does."""
        presence, self.agent, self._presence = self._presence, None, None
        if presence is None:
            return
        if self._change.is_set():
            self._change = anyio.Event()
        reason = f"agent {self.name!r} is {'stopped' if for_good else 'started again'}"
        with anyio.CancelScope(shield=True):
            for call in list(self._calls):
                call.end(self._gone() if for_good else self._restarted(), reason)
            presence.life.cancel(reason)
            presence.scope.cancel(reason)
            await presence.ended.wait()
            self._passing = presence.agent
            try:
                await self._terminate(presence.agent)
            finally:
                self._passing = None

    def _retire(self) -> None:
        """Have nobody fill the place any more."""
        self._is_gone = True
        self._drop_messages("the agent is gone for good")
        self._change.set()

    def _quieten(self) -> None:
        """Have the agent do nothing by itself any more: the runtime is about to end."""
        if self._presence is not None:
            self._presence.life.cancel("the runtime ends")

    def _drop_messages(self, why: str) -> None:
        """Accept no message any more and drop those that wait."""
        self._is_refusing |= not self._is_gone
        for context in self._mailbox.close():
            self._drop(context, why)

    async def stop(self) -> None:
        """Have nobody fill the place any more, and wait for that, unless the agent itself calls this."""
        self._house.check_place("stop")
        await anyio.lowlevel.checkpoint()
        await self._overseer._stop_child(self)

    def _is_around(self) -> bool:
        """Tell whether this is called by the agent itself, or on its behalf."""
        agent = self._passing if self._presence is None else self._presence.agent
        own: list[Any] = [self._room, self._life]
        if agent is not None:
            own += [agent, agent._initializing]
        return agent in current_terminations.get() or any(link[0] in own for link in links(current_execution.get()))

    # What it hears of the agent.

    def crashed(self, agent: BaseAgent, error: BaseException) -> None:
        """Note that the agent cannot go on."""
        if is_crash(error):
            self._end(agent, error)

    def ending(self, agent: BaseAgent, call: Call) -> Doing | None:
        """Return what is to be waited for if the supervisor is about to end the agent, and a call with it; None if it is not.

        Raises:
            AgentTerminatedError: it is about to end the agent; the call came to that past its place, and nobody would end it.
        """
        if agent is self.agent:
            return None
        if call not in self._calls:
            raise self._gone()
        return self._overseer._doing

    def terminating(self, agent: BaseAgent) -> None:
        """Note that somebody terminates the agent."""
        self._end(agent, None)

    def _end(self, agent: BaseAgent, error: BaseException | None) -> None:
        if agent is self.agent:
            self.agent = None
            self._change = anyio.Event()  # for those who come now
            self._overseer._child_ended(self, error, self._presence)

    # Calls.

    async def enter(self, context: AgentContext) -> BaseAgent:
        """Begin a call of the agent, which `leave` ends; waits only while it is being started again.

        Raises:
            AgentTerminatedError: it is gone for good.
            AgentTimeoutError: the call's deadline came first.
        """
        self._house.check_place("ask")
        call, limit = context._call, context._limit
        assert call is not None  # whoever calls has made it  # noqa: S101
        while self.agent is None:
            if self._is_gone:
                raise self._gone()
            scope = anyio.move_on_at(math.inf if limit is None else limit.at)
            call.enter(scope)
            with scope, waiting(self._coming if self._passing is not None else self._overseer._doing):
                await self._change.wait()
            if call.interruption is not None:
                raise call.interruption
            if scope.cancelled_caught and limit is not None:
                raise AgentTimeoutError(
                    f"agent {self.name!r} must be back within the deadline {limit.which!r} of {limit.seconds:g} s: got one "
                    "that is still being started again; allow more time",
                    {"agent": self.name, "deadline": limit.which, "timeout": limit.seconds},
                )
        self._calls.add(call)
        return self.agent

    def leave(self, context: AgentContext) -> None:
        """End a call."""
        if context._call is not None:
            self._calls.discard(context._call)

    # Messages.

    async def tell(self, context: AgentContext) -> None:
        """Put a message into the mailbox, when there is a place for it. Always a checkpoint.

        Raises:
            AgentTerminatedError: the agent is gone for good.
            AgentDeadlockError: nothing would ever make room.
        """
        await anyio.lowlevel.checkpoint()
        self._check_there()
        if self._mailbox.try_put(context):
            return
        with waiting(self._room):
            is_accepted = await self._mailbox.put(context)
        if not is_accepted:
            self._check_there()

    def tell_nowait(self, context: AgentContext) -> None:
        """Put a message into the mailbox.

        Raises:
            MailboxFullError: there is no place for it.
            AgentTerminatedError: the agent is gone for good.
        """
        self._check_there()
        if not self._mailbox.try_put(context):
            raise MailboxFullError(
                f"the mailbox of agent {self.name!r} takes no more than its capacity: got one message more than "
                f"{self._mailbox.capacity}; use `await tell(...)`, which waits, or spawn it with a greater mailbox",
                {"agent": self.name, "capacity": self._mailbox.capacity},
            )

    def _check_there(self) -> None:
        self._house.check_place("tell")
        if self._mailbox.is_closed:
            # Of an agent that is gone with its runtime too: who has waited may go on only then.
            raise self._house.refusal("a message") if self._is_refusing else self._gone()

    def _note_accepted(self, context: AgentContext) -> None:
        assert context._call is not None  # whoever sends it has made it  # noqa: S101
        context._runner = self._house.runner  # whoever has sent it may be of another runtime
        self._house.calls.accept(context._call)

    def _note_end(self, context: AgentContext) -> None:
        assert context._call is not None  # as above  # noqa: S101
        self._calls.discard(context._call)
        self._house.calls.settle(context._call)

    def _drop(self, context: AgentContext, why: str) -> None:
        """Tell of a message that is not handled to its end, or not at all."""
        self.dropped += 1
        self._house.calls.dropped += 1
        self._house.log.emit("message_dropped", agent=self.name, reason=why)
        _logger.warning("a message to agent %r was dropped: %s", self.name, why)
        self._note_end(context)

    # The agent at work, in tasks of its supervisor.

    def _start(self, presence: _Presence, group: anyio.abc.TaskGroup) -> None:
        presence.tasks = 1
        group.start_soon(self._work, presence, name=f"agent {self.name}")
        life = type(presence.agent).live
        if not self._house.is_ending() and life is not BaseAgent.live and callable(life):
            presence.tasks = 2
            group.start_soon(self._do, presence, name=f"agent {self.name}, by itself")

    async def _work(self, presence: _Presence) -> None:
        """Handle the messages, one after the other."""
        agent = presence.agent
        handled = 0
        try:
            with presence.scope:
                while True:
                    if not self._mailbox:
                        await self._mailbox.wait()
                    if self.agent is not agent:
                        return  # it has come to its end: what waits is for the next one
                    if not await self._handle(presence, self._mailbox.take()):
                        return
                    handled += 1
                    if handled % _BATCH == 0:
                        await anyio.lowlevel.checkpoint()
        except BaseException as error:  # noqa: ASYNC103, BLE001 - told elsewhere; the supervisor ends with its own scope
            self._note_interruption(agent, error)
        finally:
            presence.leave()

    async def _do(self, presence: _Presence) -> None:
        """Have the agent do what it does by itself."""
        agent, context = presence.agent, AgentContext()
        context._runner = self._house.runner
        current_execution.set([self._life, None, None])
        try:
            with presence.life:
                await agent.live(context)
                if not presence.life.cancel_called:
                    self._end(agent, None)
        except Exception as error:  # noqa: BLE001 - a crash
            if not presence.life.cancel_called:
                agent._crash(error)
            elif not all(isinstance(leaf, RuntimeClosedError) for leaf in _interop.leaves_of(error)):
                # To be refused in the moment before it learns of the end is no failure.
                self._house.failures.add(error, f"agent {self.name!r} failed while it was ended")
        except BaseException as error:  # noqa: ASYNC103, BLE001 - as above
            self._note_interruption(agent, error)
        finally:
            presence.leave()

    def _note_interruption(self, agent: BaseAgent, error: BaseException) -> None:
        """See to what no handler of errors may keep. A cancellation is not passed on, for it would end the supervisor."""
        cancelled, rest = _interop.split_cancellation(error)
        if rest is not None and not is_crash(rest):
            self._house.failures.crash(rest)
        elif rest is not None:
            self.crashed(agent, rest)
        elif cancelled and anyio.current_effective_deadline() > -math.inf:
            self.crashed(agent, AgentCrash(f"a task of agent {self.name!r} was cancelled from outside of the runtime"))

    async def _handle(self, presence: _Presence, context: AgentContext) -> bool:
        """Handle a message; tell whether the agent can go on."""
        agent, call = presence.agent, context._call
        assert call is not None  # whoever has sent it has made it  # noqa: S101
        assert call.variables is not None  # as above  # noqa: S101
        if call.interruption is not None:
            self._drop(context, text_of(call.interruption))
            return True
        self._calls.add(call)
        call.scope = presence.scope  # to end the handling is to end the agent
        link = [self._room, None, call]
        call.variables.run(self._enter_message, link)
        failure: BaseException | None = None
        try:
            result = await drive(call.variables, agent.execute(context))
            failure = (
                None if result.success else _agent_errors.not_handled_message(self.name, result.error, result.cause)
            )
        except Exception as error:  # noqa: BLE001 - a crash, or how it was ended
            failure = error
        except BaseException:
            self._lose(
                context, "its handling was cancelled" if call.interruption is None else text_of(call.interruption)
            )
            raise
        finally:
            link[0] = None
        if failure is None:
            self._note_end(context)
            return True
        self._lose(context, text_of(failure))
        if call.interruption is None and not agent._life.terminating:
            agent._crash(failure)
        return False

    def _lose(self, context: AgentContext, why: str) -> None:
        """Drop a message that was being handled; if nothing of that has begun, it is the next one's."""
        old = context._call
        assert old is not None  # whoever has sent it has made it  # noqa: S101
        if not (old.is_in_line and self._mailbox.put_back(context)):
            self._drop(context, why)
            return
        context._call = Call(old.variables)
        self._house.calls.accept(context._call)
        self._calls.discard(old)
        self._house.calls.settle(old)

    def _enter_message(self, link: object) -> None:
        """Have the variables of a sender say what the handling of the message is a part of."""
        current_execution.set(link)
        if current_runtime.get() is not self._house.runner:
            current_runtime.set(self._house.runner)

    # Its end.

    async def _terminate(self, agent: BaseAgent) -> None:
        """Terminate an agent. Whatever its clean-up raises is told at the exit of the runtime: nobody may be kept by it."""
        agent._keeper = None
        what = f"the clean-up of agent {self.name!r} failed"
        try:
            await drive(self._own_variables(), agent.terminate())
        except Exception as error:  # noqa: BLE001 - as the docstring says
            self._house.failures.add(error, what)
        except BaseException as error:  # noqa: ASYNC103 - as above
            cancelled, rest = _interop.split_cancellation(error)
            if cancelled and anyio.current_effective_deadline() == -math.inf:
                raise  # the end itself shields itself: the cancellation has come before or after it
            if rest is not None and not is_crash(rest):
                self._house.failures.crash(rest)
            else:
                self._house.failures.add(_agent_errors.as_failure(self.name, error), what)

    def _gone(self) -> AgentTerminatedError:
        return _agent_errors.gone(self.name)

    def _restarted(self) -> AgentRestartedError:
        return AgentRestartedError(
            f"agent {self.name!r} was started again while it executed this; ask again", {"agent": self.name}
        )


@contextmanager
def waiting(wanted: Doing) -> Generator[None]:
    """Have it known that the caller waits here. The slot in flight of a task is free meanwhile, for who is waited for.

    Raises:
        AgentDeadlockError: the wait would never end; on entering.
    """
    wait, job = waits.begin(wanted, current_execution.get()), current_job.get()
    try:
        with job.lending() if job is not None else nullcontext():
            yield
    finally:
        waits.remove(wait)


def _is_foreign(error: BaseException, requests: int) -> bool:
    """Tell whether an error is the cancellation of something else, which was waited for; not the one of the caller."""
    cancelled, rest = _interop.split_cancellation(error)
    is_own = anyio.current_effective_deadline() == -math.inf or _interop.cancel_requests() > requests
    return cancelled and rest is None and not is_own


def is_crash(error: BaseException) -> bool:
    """Tell whether an error is one of an agent; others, such as Ctrl-C, are meant for the program."""
    return all(isinstance(leaf, Exception | SystemExit) for leaf in _interop.leaves_of(error))
