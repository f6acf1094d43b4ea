"""Agents: a life, a timeout, a way to handle errors, and metrics, around a coroutine that does the work.

`BaseAgent.execute` works anywhere, with a runtime or without. It runs `process` inline in the caller's task, so
cancellation, deadlines, context variables and tracebacks are the caller's. Each outcome is decided as the table of
outcomes in ARCHITECTURE.md says.
"""

from __future__ import annotations

import abc
import copy
import functools
import math
from bisect import bisect_left
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from types import TracebackType
from typing import Any, Final, Self, TypeAlias, TypeVar

import anyio

from agentcore import _agent_errors
from agentcore._agent_records import (
    HISTOGRAM_BOUNDS,
    AgentConfig,
    AgentContext,
    AgentMetrics,
    AgentResult,
    Call,
    Idle,
    Keeper,
    Limit,
)
from agentcore._chains import Execution, Initialization, Waitable, Waits, links, living
from agentcore._context import current_execution, current_job, current_terminations
from agentcore._interop import leaves_of, sources, split_cancellation
from agentcore._rules.admission import Slots
from agentcore._rules.agent_states import AgentLife, AgentState
from agentcore.errors import AgentCrash, AgentTerminatedError, AgentTimeoutError, text_of

T = TypeVar("T")

_Hook: TypeAlias = Callable[[], Awaitable[None]]


class BaseAgent(abc.ABC):
    """Base of all agents: implement `initialize`, `process` and `handle_error`, and `terminate` to clean up.

    Used as an asynchronous context manager, an agent is initialised on entering and terminated on leaving.

    Args:
        config: how the agent behaves.

    Raises:
        ConfigurationError: `config` is no AgentConfig.
    """

    def __init__(self, config: AgentConfig) -> None:
        if not isinstance(config, AgentConfig):
            raise _agent_errors.not_a_config(type(self).__qualname__, config)
        self.config = config
        self._life = AgentLife()
        self._turns = 0  # how often it was chosen for what it can do
        self._slots: Slots[anyio.Event] = Slots(config.max_concurrency)
        # The scopes of the executions that have a deadline, for `terminate` to cancel; the execution by its scope.
        self._scopes: dict[anyio.CancelScope, Execution] = {}
        # While an initialisation runs; while something waits for the end of the executions, of the termination.
        self._initializing: Initialization | None = None
        self._idle: anyio.Event | None = None
        self._terminated: anyio.Event | None = None
        self._keeper: Keeper | None = None  # its supervisor, if it has one
        self._begun = self._failures = self._timeouts = self._cancellations = 0
        self._total_duration = 0.0
        self._last_duration: float | None = None
        self._histogram = [0] * (len(HISTOGRAM_BOUNDS) + 1)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # Termination has to reach TERMINATED whatever a subclass writes, also without super(): what it writes becomes
        # a hook of the protocol in `_terminate`.
        hook = cls.terminate  # its own, or that of a mixin
        if not hasattr(hook, "_is_protocol"):

            @functools.wraps(hook)
            async def terminate(self: BaseAgent, *args: Any, **kwargs: Any) -> None:
                await self._terminate(functools.partial(hook, self, *args, **kwargs))

            terminate._is_protocol = True  # type: ignore[attr-defined]
            cls.terminate = terminate  # type: ignore[method-assign]

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} {self.name!r}, {self.state.name}, "
            f"{self._life.running} running, {len(self._slots)} waiting>"
        )

    @property
    def name(self) -> str:
        """What the agent is called."""
        return self.config.name

    @property
    def agent_type(self) -> str:
        """What kind of agent it is."""
        return self.config.agent_type

    @property
    def state(self) -> AgentState:
        """What the agent is doing."""
        return self._life.state

    @property
    def is_idle(self) -> bool:
        """Whether the agent is IDLE."""
        return self._life.state is AgentState.IDLE

    @property
    def is_busy(self) -> bool:
        """Whether the agent is INITIALIZING or PROCESSING."""
        return self._life.state in (AgentState.INITIALIZING, AgentState.PROCESSING)

    @property
    def is_terminated(self) -> bool:
        """Whether the agent is TERMINATED."""
        return self._life.terminated

    @property
    def metrics(self) -> AgentMetrics:
        """What the agent has done so far."""
        return AgentMetrics(
            executions=self._begun,
            failures=self._failures,
            timeouts=self._timeouts,
            cancellations=self._cancellations,
            total_duration=self._total_duration,
            last_duration=self._last_duration,
            histogram=tuple(self._histogram),
            waiting=len(self._slots),
            running=self._life.running,
        )

    @abc.abstractmethod
    async def initialize(self) -> bool:
        """Acquire what the agent needs. Runs once, before the first execution, and again if it failed.

        Returns:
            Whether the agent is ready.
        """

    @abc.abstractmethod
    async def process(self, context: AgentContext) -> AgentResult:
        """Do the work.

        Args:
            context: what to work on.

        Returns:
            How it ended.
        """

    @abc.abstractmethod
    async def handle_error(self, error: Exception, context: AgentContext) -> AgentResult:
        """Turn an error into a result.

        Args:
            error: what `process` raised; an AgentTimeoutError if its time was over; an AgentInitializationError.
            context: what was worked on.

        Returns:
            The result of the execution.
        """

    async def live(self, context: AgentContext) -> None:  # noqa: B027 - most agents do nothing by themselves
        """Do what the agent does by itself, beside answering, while it is supervised. Override it for that.

        `AgentRuntime.spawn` starts it when the agent is initialised, and cancels it when the agent is to end. If it returns,
        the agent has come to its end; what it raises is a crash.

        Args:
            context: the agent's way to the runtime; it has no task.
        """

    async def terminate(self) -> None:
        """Release what the agent has. Override it for that; calling super() is not needed.

        Running executions may end for `AgentConfig.terminate_timeout` seconds and are cancelled then. One without any
        deadline has no scope to be cancelled by; it is given as long again, and then told of by the error. Cancellation
        of the caller does not cut this short. Afterwards the agent is TERMINATED whatever happened, and a further call
        does nothing.

        Raises:
            AgentTimeoutError: the agent's own clean-up was cut because it took longer than the limit; or an execution
                goes on that could not be ended.
            Exception: whatever the agent's own clean-up raises.
        """
        await self._terminate(None)

    async def __aenter__(self) -> Self:
        await self._initialize(AgentContext(), None)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.terminate()  # noqa: ASYNC102 - shields and limits itself

    async def execute(self, context: AgentContext) -> AgentResult:
        """Run the agent once: initialise it if need be, `process`, `handle_error` on an error.

        It runs in the caller's task and adds no checkpoint of its own; it waits only if `max_concurrency` executions
        run already.

        Args:
            context: what to work on.

        Returns:
            What `process` returned; on an error, a timeout included, what `handle_error` returned.

        Raises:
            AgentExecutionError: `handle_error` failed; it carries both errors, and the agent's state is ERROR.
            AgentTerminatedError: the agent has been terminated, or was while it executed.
            AgentBusyError: `max_waiting` executions wait for their turn already.
            AgentDeadlockError: the agent is executing already in this very chain of calls, and takes no further one.
            ConfigurationError: `context` is no AgentContext.
        """
        life = self._life
        if life.terminating or context.__class__ is not AgentContext:
            self._check(context)
        around: Any = current_execution.get()
        if around is not None:
            around = living(around)
        if not self._slots.try_take():
            try:
                await self._wait_for_turn(around, context)
            except AgentTimeoutError as error:
                return await self._give_up(error, context, around)
        clock = sources.get().monotonic
        began = clock()
        life.running += 1
        life.broken = False
        self._begun += 1
        execution: Execution = [self, around, context._call]
        token = current_execution.set(execution)
        try:
            is_limited = self.config.timeout is not None or context._limit or context._idle
            # The scope of a message's call is that of who handles messages, which saves it one of its own.
            if life.initialized and not is_limited and ((call := context._call) is None or call.is_message):
                result = await self.process(context)
            else:
                result = await self._process(context, execution)
            if result.__class__ is not AgentResult:
                raise _agent_errors.not_a_result(self.name, "process", result)
        except Exception as error:  # noqa: BLE001 - handed to handle_error, whatever it is
            result = await self._recover(error, context, execution)
        except BaseException as error:
            self._interrupted(error)
            raise
        finally:
            # No await in here, and what could raise comes last: every way out gives the slot back and leaves no trace.
            execution[0] = None
            life.running -= 1
            self._pass_turn_on()
            self._last_duration = duration = clock() - began
            self._total_duration += duration
            self._histogram[bisect_left(HISTOGRAM_BOUNDS, duration)] += 1
            # Raises if this coroutine is closed from another context, as a loop does that ends with tasks pending.
            current_execution.reset(token)
        if not result.success:
            self._failures += 1
        return result

    async def _process(self, context: AgentContext, execution: Execution) -> AgentResult:
        """Initialise the agent if need be, and run `process` under the earliest deadline."""
        outer, call, idle = context._limit, context._call, context._idle
        if not self._life.initialized:
            await self._initialize(context, execution)
        at = math.inf if outer is None else outer.at
        if self.config.timeout is not None:
            at = min(at, anyio.current_time() + self.config.timeout)
        elif outer is None and idle is None and (call is None or call.is_message):
            return await self.process(context)
        # move_on_at and no CancelScope(): the latter initialises each scope twice (AnyIO 4.16).
        scope = anyio.move_on_at(at)
        self._scopes[scope] = execution
        if call is not None:
            call.enter(scope)
        if idle is not None:
            idle.watch(scope, anyio.current_time())
        try:
            with scope:
                return await self.process(context)
        except Exception as error:
            if scope.cancel_called and not self._is_ended_from_outside(call):
                # The time was over, and then its clean-up failed. Both are told.
                self._timeouts += 1
                error.add_note(
                    f"raised while it was unwound: {_agent_errors.too_late(self.name, self._limit_at(at, outer, idle))}"
                )
            raise
        finally:
            del self._scopes[scope]
        if self._is_ended_from_outside(call):
            raise self._end_from_outside(call)
        self._timeouts += 1
        raise _agent_errors.too_late(self.name, self._limit_at(at, outer, idle))

    async def _give_up(self, error: AgentTimeoutError, context: AgentContext, around: object) -> AgentResult:
        """Handle that a deadline came before the turn: an execution that never had a slot, and is counted all the same."""
        self._begun += 1
        self._timeouts += 1
        self._life.running += 1
        execution: Execution = [self, around, context._call]
        try:
            result = await self._recover(error, context, execution)
        finally:
            execution[0] = None
            self._life.running -= 1
            self._note_end()
        if not result.success:
            self._failures += 1
        return result

    async def _initialize(self, context: AgentContext, execution: Execution | None) -> None:
        life, call = self._life, context._call
        idle = context._idle and context._idle.limit(anyio.current_time())
        limits = (self._fresh_limit(self.config.timeout), context._limit, idle)
        limit = min((one for one in limits if one is not None), key=lambda one: one.at, default=None)
        chain = current_execution.get()
        while self._initializing is not None:
            # Another execution is at it. If it fails, its error is its own and this one tries again.
            wait = waits.begin(self._initializing, chain)
            try:
                await self._bounded(self._initializing.ended.wait(), limit, execution, call)
            finally:
                waits.remove(wait)
        if life.terminating:
            raise _agent_errors.gone(self.name)
        if life.initialized:
            return
        initialization = self._initializing = Initialization(f"initialisation of {self.name}")
        life.initializing = True
        link: Execution = [initialization, chain, None]
        token = current_execution.set(link)
        try:
            ready = await self._bounded(self.initialize(), limit, execution, call)
        except Exception as error:
            if self._tells_end(error, call):
                raise
            raise _agent_errors.not_ready(self.name, f"{type(error).__name__}: {text_of(error)}") from error
        finally:
            link[0] = self._initializing = None
            life.initializing = False
            initialization.ended.set()
            self._note_end()
            current_execution.reset(token)
        if life.terminating:
            raise _agent_errors.gone(self.name)
        if not ready:
            raise _agent_errors.not_ready(
                self.name, f"initialize() returned {ready!r}; return True once everything is ready"
            )
        life.initialized = True

    async def _recover(self, error: Exception, context: AgentContext, execution: Execution | None) -> AgentResult:
        """Have `handle_error` turn an error into a result; if it cannot, the agent is in ERROR."""
        life = self._life
        call = context._call
        if any(isinstance(leaf, AgentCrash) for leaf in leaves_of(error)):
            self._failures += 1
            self._crash(error)
            raise error
        if self._is_ended_from_outside(call):
            self._cancellations += 1
            if self._tells_end(error, call):
                raise error
            raise self._end_from_outside(call) from error
        if anyio.current_effective_deadline() == -math.inf:
            # The caller is cancelled, and this was raised while it was unwound: on trio it comes in a group with the
            # cancellation, on asyncio alone. There is nobody to handle it for.
            self._cancellations += 1
            raise error
        life.handling += 1
        try:
            # Counted anew, also if the limit came from outside and has passed: an error has to be handled after it.
            seconds = self.config.timeout
            if seconds is None and (given := context._limit or context._idle) is not None:
                seconds = given.seconds
            result = await self._bounded(self.handle_error(error, context), self._fresh_limit(seconds), execution, call)
            if result.__class__ is not AgentResult:
                raise _agent_errors.not_a_result(self.name, "handle_error", result)
        except Exception as second:
            if self._tells_end(second, call):
                raise
            self._failures += 1
            failure = _agent_errors.not_handled(self.name, error, second)
            self._crash(failure)
            raise failure from second
        except BaseException as interruption:
            self._interrupted(interruption)
            raise
        finally:
            life.handling -= 1
        # On a copy: an agent may give the same object for every error, and would show each caller another one's.
        result = copy.copy(result)
        result.cause = None if result.success else error
        return result

    def _interrupted(self, interruption: BaseException) -> None:
        """Count a cancellation; anything else that is no Exception breaks the agent."""
        cancelled, rest = split_cancellation(interruption)
        if cancelled and isinstance(rest, Exception | None):
            self._cancellations += 1
        else:
            self._failures += 1
            self._crash(interruption if rest is None else rest)

    def _crash(self, error: BaseException) -> None:
        """Note that the agent is broken, and have whoever is responsible know."""
        self._life.broken = True
        if self._keeper is not None:
            self._keeper.crashed(self, error)

    async def _bounded(
        self, work: Awaitable[T], limit: Limit | None, execution: Execution | None = None, call: Call | None = None
    ) -> T:
        """Await something until a limit; as a part of an execution or a call, until that is ended from outside as well."""
        if limit is None and call is None:
            return await work
        scope = anyio.move_on_at(limit.at if limit is not None else None)
        if execution is not None:
            self._scopes[scope] = execution
        around = None
        if call is not None:
            around = call.scope
            call.enter(scope)
        try:
            with scope:
                return await work
        finally:
            self._scopes.pop(scope, None)
            if call is not None:
                call.scope = around
        if execution is not None and self._life.terminating:
            raise _agent_errors.gone(self.name)
        if call is not None and call.interruption is not None:
            raise call.interruption
        assert limit is not None  # by what else it would have ended  # noqa: S101
        raise _agent_errors.too_late(self.name, limit)

    def _is_ended_from_outside(self, call: Call | None) -> bool:
        return self._life.terminating or (call is not None and call.interruption is not None)

    def _end_from_outside(self, call: Call | None) -> Exception:
        return _agent_errors.gone(self.name) if call is None or call.interruption is None else call.interruption

    def _tells_end(self, error: Exception, call: Call | None) -> bool:
        by_call = call is not None and error is call.interruption
        return by_call or (self._life.terminating and isinstance(error, AgentTerminatedError))

    def _fresh_limit(self, seconds: float | None) -> Limit | None:
        return None if seconds is None else Limit(anyio.current_time() + seconds, "agent", seconds)

    def _limit_at(self, at: float, outer: Limit | None, idle: Idle | None) -> Limit:
        if idle is not None and (limit := idle.passed()) is not None:
            return limit
        if outer is not None and at == outer.at:
            return outer
        assert self.config.timeout is not None  # whose deadline it would be otherwise  # noqa: S101
        return Limit(at, "agent", self.config.timeout)

    async def _wait_for_turn(self, around: object, context: AgentContext) -> None:
        """Wait in order of arrival for one of the executions that run to end."""
        wait = waits.begin(self, around)
        turn = anyio.Event()
        self._slots.wait(turn)
        job, call, most = current_job.get(), context._call, self.config.max_waiting
        try:
            # This one is in the line by now. A message has been accepted before.
            if most is not None and len(self._slots) > most and (call is None or not call.is_message):
                raise _agent_errors.busy(self.name, most)
            if call is not None:
                call.is_in_line = True
            # The slot in flight of a task that waits here is free for others: whoever has the turn may need it.
            with job.lending() if job is not None else nullcontext():
                await self._bounded(turn.wait(), context._limit, None, call)
                if call is not None and self._keeper is not None and (end := self._keeper.ending(self, call)):
                    before, wait = wait, waits.begin(end, around)
                    waits.remove(before)
                    await self._bounded(anyio.sleep_forever(), context._limit, None, call)
            if call is not None and call.interruption is not None:
                raise call.interruption  # in the very step in which the turn came
            if call is not None:
                call.is_in_line = self._life.terminating
        except BaseException:
            if not self._slots.withdraw(turn) and not self._life.terminating:
                self._pass_turn_on()
            raise
        finally:
            waits.remove(wait)
        if self._life.terminating:
            raise _agent_errors.gone(self.name)

    def _pass_turn_on(self) -> None:
        if (turn := self._slots.give()) is not None:
            turn.set()
        self._note_end()

    def _note_end(self) -> None:
        if self._idle is not None:
            self._idle.set()

    async def _terminate(self, hook: _Hook | None) -> None:
        life = self._life
        if any(agent is self for agent in current_terminations.get()):
            # super().terminate() in a subclass's own, in whatever task: a part of the termination that is under way.
            if hook is not None:
                await hook()
            return
        if life.terminated or (life.terminating and self._own_links()):
            return  # whoever is executed by the agent does not wait for the end of it
        if self._terminated is not None:
            await self._terminated.wait()
            return
        life.terminating = True
        self._terminated = anyio.Event()
        if self._keeper is not None:
            self._keeper.terminating(self)
        try:
            for turn in self._slots.drop_all():
                turn.set()
            await self._end_executions()
        finally:
            # Also if a native cancellation got through the shield: what the agent has must be released.
            try:
                await self._clean_up(hook)  # noqa: ASYNC102 - shields and limits itself
            finally:
                life.terminated = True
                self._terminated.set()
        if left := self._still_busy():
            raise _agent_errors.cannot_end(self.name, left, self.config.terminate_timeout)

    async def _clean_up(self, hook: _Hook | None) -> None:
        if hook is None:
            return
        seconds = self.config.terminate_timeout
        token = current_terminations.set((*current_terminations.get(), self))
        try:
            with anyio.CancelScope(shield=True):
                await self._bounded(hook(), Limit(anyio.current_time() + seconds, "terminate", seconds))
        finally:
            current_terminations.reset(token)

    async def _end_executions(self) -> None:
        """Let the executions end, then make them; give up on those that cannot be made to."""
        for cancel in (False, True):
            with anyio.CancelScope(deadline=anyio.current_time() + self.config.terminate_timeout, shield=True):
                while self._still_busy():
                    if cancel:
                        self._cancel_executions()
                    if self._idle is None or self._idle.is_set():
                        self._idle = anyio.Event()
                    await self._idle.wait()

    def _own_links(self) -> list[Execution]:
        """Return the executions and the initialisation of this agent that the caller is a part of."""
        return [link for link in links(current_execution.get()) if link[0] is self or link[0] is self._initializing]

    def _still_busy(self) -> int:
        """Return how much runs of the agent that the caller is no part of."""
        own = self._own_links()
        executions = self._life.running - sum(link[0] is self for link in own)
        initializing = self._initializing is not None and all(link[0] is self for link in own)
        return max(executions, int(initializing))

    def _cancel_executions(self) -> None:
        own = {id(link) for link in links(current_execution.get())}
        for scope, execution in list(self._scopes.items()):
            if id(execution) not in own:
                scope.cancel(f"agent {self.name!r} is being terminated")

    def _check(self, context: object) -> None:
        if self._life.terminating:
            raise _agent_errors.gone(self.name)
        if not isinstance(context, AgentContext):
            raise _agent_errors.not_a_context(self.name, context)


def _holders(waitable: Waitable) -> int:
    # An agent: those who have a slot of it, running or about to. Anything else: its own chain, which has to end first.
    return waitable._slots.in_use if isinstance(waitable, BaseAgent) else 1


waits: Final = Waits(_holders)

BaseAgent.terminate._is_protocol = True  # type: ignore[attr-defined]
