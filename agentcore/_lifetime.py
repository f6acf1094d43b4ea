"""How a runtime is entered and left: strict, around a block, or hosted by the event loop.

Strict: one task group around the block, so what breaks the runtime cancels the block. Hosted: the task group lives in the
host of the event loop (`_host`), so the runtime may be entered in one task and left in another, or be held open across a
``yield``; the block goes on when the runtime breaks, and learns of it by every further call and at the exit.

Both end in the same order, whatever ends them: no further work, time for the work there is, cancellation, supervisors,
agents, worker pools, resources.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextvars import Token
from types import TracebackType
from typing import Final, final

import anyio
import anyio.abc
import anyio.lowlevel

from agentcore import _interop, _signals
from agentcore._context import current_runtime
from agentcore._directory import Directory
from agentcore._events import EventLog
from agentcore._failures import Failures
from agentcore._host import Host, generator_on_stack
from agentcore._owned_breakers import OwnedCircuitBreakers
from agentcore._portal import Portal
from agentcore._resources import Resources
from agentcore._runtime_records import ShutdownReport
from agentcore._scheduler import Scheduler
from agentcore._supervisor import AgentSupervisor
from agentcore.errors import AgentError, ConfigurationError, RuntimeClosedError
from agentcore.pools._named import WorkerPools

_logger: Final = logging.getLogger("agentcore.runtime")
LAST_MOMENTS: Final = 1.0
"""Seconds that calls from threads have to end by themselves when all tasks have been cancelled."""


@final
class Lifetime:
    """The life of one runtime and its parts.

    Args:
        hosted: whether it is hosted; None for strict, refused where that could go wrong.
        grace: seconds that tasks may go on for at the exit.
        supervisor, tasks, breakers, agents, resources, portal, pools, failures, log: the parts.
    """

    def __init__(
        self,
        *,
        hosted: bool | None,
        grace: float,
        supervisor: AgentSupervisor,
        tasks: Scheduler,
        breakers: OwnedCircuitBreakers,
        agents: Directory,
        resources: Resources,
        portal: Portal,
        pools: WorkerPools,
        failures: Failures,
        log: EventLog,
    ) -> None:
        if not isinstance(hosted, bool | None):
            raise ConfigurationError(
                f"hosted of a runtime must be True, False or None: got {hosted!r}; use True across a `yield`",
                {"name": "hosted", "value": hosted},
            )
        self.hosted = hosted
        self.report: ShutdownReport | None = None
        self.group: anyio.abc.TaskGroup | None = None
        # The time of the event loop, there; None everywhere else.
        self.now: Callable[[], float | None] = lambda: None
        self._post: Callable[[Callable[[], object]], None] | None = None
        self._grace = grace
        self._supervisor = supervisor
        self._tasks = tasks
        self._breakers = breakers
        self._agents = agents
        self._resources = resources
        self._portal = portal
        self._pools = pools
        self._failures = failures
        self._log = log
        self._agents_failed: list[tuple[str, Exception]] = []
        self._dropped_before: int | None = None  # how many messages were, when the end began
        # Why the runtime is being shut down, and since when.
        self._closing: tuple[str, float] | None = None
        self._token: Token[object] | None = None  # if strict
        self._owner: object = None  # if hosted, and the rest too
        self._host: Host | None = None
        self._opened: anyio.Event | None = None
        self._over: anyio.Event | None = None
        self._gone: anyio.Event | None = None
        failures.on_crash(self._crashed)

    @property
    def state(self) -> str:
        """``new``, ``open``, ``draining``, ``closed`` or ``failed``."""
        return "failed" if self._failures.fatal is not None else self._tasks.state

    def is_current(self) -> bool:
        """Tell whether the runtime is open here: variables come along into the loops of other threads, where it is not."""
        return self._tasks.state in ("open", "draining") and (self.now() is not None or not _interop.is_in_loop())

    def check_place(self, method: str) -> None:
        """Accept calls in the event loop of the runtime; before it is entered, all.

        Raises:
            AgentError: this is another one, or none.
        """
        if self.now() is None and self._tasks.state != "new":
            raise self.elsewhere(method)

    @staticmethod
    def elsewhere(method: str) -> AgentError:
        """Make the error for a call in the wrong place."""
        return AgentError(
            f"{method} of a runtime must be called in its event loop: got a call in another one, or in a thread; "
            "use runtime.from_thread(...)",
            {"method": method},
        )

    # Entering.

    async def enter(self, owner: object) -> None:
        """Begin. What is current from now on is `owner`."""
        if self._tasks.state != "new" or self._opened is not None:
            raise RuntimeClosedError(
                f"a runtime can be entered once: got one in state {self.state!r}; make a new one", {"state": self.state}
            )
        if self.hosted:
            await self._move_in(owner)
            return
        if self.hosted is None and (generator := generator_on_stack()) is not None:
            raise ConfigurationError(
                "a strict runtime must be left by the task that has entered it, before anything is yielded: got one entered "
                f"in the asynchronous generator {generator!r}; write AgentRuntime(hosted=True) if its block contains a "
                "`yield`, AgentRuntime(hosted=False) if it does not",
                {"name": "hosted", "value": None, "generator": generator},
            )
        group = anyio.create_task_group()
        await group.__aenter__()
        self._open(group)
        self._token = current_runtime.set(owner)

    def _open(self, group: anyio.abc.TaskGroup) -> None:
        self.group = group
        self.now = _interop.local_clock()
        self._post = _interop.wake_up_function()
        self._tasks.open(group)
        self._supervisor._open(group)
        self._breakers.open(group)
        self._resources.open(group)
        self._portal.open(group, self.now)
        self._pools.open(group)

    async def _move_in(self, owner: object) -> None:
        """Have the task group opened in the host of the event loop."""
        self._owner = owner
        self._opened, self._over, self._gone = anyio.Event(), anyio.Event(), anyio.Event()
        try:
            host = self._host = Host.current()
            await host.move_in(self._live, "runtime of agentcore")
        except RuntimeError as error:
            raise RuntimeClosedError(f"a runtime cannot be entered any more: {error}", {"state": "closed"}) from error
        try:
            await self._opened.wait()
        except BaseException:
            self._over.set()
            if self.group is not None:  # otherwise nothing has begun, and nothing is going to
                with anyio.CancelScope(shield=True):
                    await self._gone.wait()
            raise

    async def _live(self) -> None:
        """Hold the task group of a hosted runtime until it is over: left, broken, or gone with its event loop."""
        assert self._opened is not None and self._over is not None and self._gone is not None  # noqa: S101, PT018
        host = self._host
        assert host is not None  # as above  # noqa: S101
        try:
            if self._over.is_set():
                return
            async with anyio.create_task_group() as group:
                self._open(group)
                host.residents.append(self._owner)
                self._opened.set()
                try:
                    await self._over.wait()
                finally:
                    await self._end_hosted()  # noqa: ASYNC102 - shields itself
        except BaseException as error:  # noqa: ASYNC103 - a cancellation goes on
            cancelled, rest = _interop.split_cancellation(error)
            if rest is not None:
                self._failures.crash(rest)
            if cancelled:
                raise
        finally:
            if self._owner in host.residents:
                host.residents.remove(self._owner)
            self._opened.set()
            self._gone.set()

    async def _end_hosted(self) -> None:
        """End what nobody has ended: the runtime broke, or nobody left it before its event loop ended."""
        assert self._over is not None  # `_move_in` has set it  # noqa: S101
        if self.report is not None:
            return
        is_abandoned = not self._over.is_set()
        if self._closing is None:
            reason = "its event loop ended" if is_abandoned else "the runtime has failed"
            self._closing = reason, _interop.monotonic()
        await self._end_all(*self._closing, 0)
        if is_abandoned:
            assert self.report is not None  # `_end_all` has made it  # noqa: S101
            _logger.warning(
                "a runtime was not left before its event loop ended: %s; leave its block, or call its aclose()",
                # Where the loop has cancelled the tasks itself, before this one, none was cut short by the runtime.
                self.report.summary() if self.report.cut_short else "what it still did was cancelled",
            )

    def _crashed(self, error: BaseException) -> None:
        """End everything: nothing can go on after this."""
        self._log.emit("runtime_failed", error=f"{type(error).__name__}: {error}")
        self._tasks.stop_accepting()
        if self._over is not None:
            self._over.set()
            interrupted = any(isinstance(leaf, KeyboardInterrupt) for leaf in _interop.leaves_of(error))
            if interrupted and self._post is not None:
                # It came to a task of the runtime by chance, and is meant for the program: that gets it once more.
                self._post(_signals.interrupt)
        elif self.group is not None:
            self.group.cancel_scope.cancel(f"the runtime has failed: {error!r}")

    # Leaving.

    async def drain(self, timeout: float | None) -> bool:
        """Take no further work from outside, and wait until what there is has ended; see `AgentRuntime.drain`."""
        self._tasks.stop_accepting()
        self._supervisor._quieten()
        await anyio.lowlevel.checkpoint()
        with anyio.move_on_after(timeout) as scope:
            await self._tasks.wait_idle()
        return not scope.cancelled_caught

    async def shutdown(self, grace: float | None, reason: str) -> ShutdownReport:
        """Drain, then end everything in order; see `AgentRuntime.shutdown`."""
        if self.report is not None and self._tasks.is_idle and self._supervisor._is_over:
            return self.report
        if self._closing is None:
            self._closing = reason, _interop.monotonic()
        grace = self._grace if grace is None else grace
        try:
            await self.drain(grace)
        except BaseException:
            grace = 0
            raise
        finally:
            # In a task of its own: a `Task.cancel()` by the host comes through every shield, but ends only this task.
            async with anyio.create_task_group() as group:  # noqa: ASYNC112 - not redundant: see above
                group.start_soon(self._end_all, *self._closing, grace)
        assert self.report is not None  # `_end_all` has made it  # noqa: S101
        return self.report

    async def _end_all(self, reason: str, began: float, grace: float) -> None:
        """Cancel all work, terminate the shared agents, end the worker pools, close the resources, and report.

        Limited in time by what the agents do: a task ends when its clean-up has, and no sooner. If two calls overlap, each
        does all of this, for the first reason; every step may be done twice.
        """
        if self._dropped_before is None:
            self._dropped_before = self._tasks.calls.dropped
        with anyio.CancelScope(shield=True):
            self._supervisor._drop_messages(f"the runtime ends: {reason!r}")
            # Threads that wait for a task learn of its end by that. But a task may wait for a thread that waits for something
            # else, so they have no more than a moment.
            with anyio.move_on_after(LAST_MOMENTS) as last_moments:
                await self._tasks.cut(reason)
            self._portal.cancel_all(reason)
            if last_moments.cancelled_caught:
                self._pools.cut_short()  # a task may wait for a thread that does not come back
            await self._tasks.cut(reason)
            self._breakers.stop(reason)
            await self._portal.stop(reason)
            await self._supervisor._end()
            await self._terminate_agents()
            jobs_cut_short = await self._pools.finish(max(0.0, began + grace - _interop.monotonic()))
            await self._resources.close_all()
        cut_short = self._tasks.cut_short()
        dropped = self._tasks.calls.dropped - self._dropped_before
        first = self.report is None
        self.report = ShutdownReport(
            reason=reason,
            drained=not (cut_short or self._tasks.calls.cut_short or dropped or jobs_cut_short),
            cut_short=cut_short,
            asks_cut_short=self._tasks.calls.cut_short,
            messages_dropped=dropped,
            jobs_cut_short=jobs_cut_short,
            agents_failed=tuple(self._agents_failed),
            duration=_interop.monotonic() - began,
        )
        if first:
            self._log.emit("runtime_closed", summary=self.report.summary())

    async def _terminate_agents(self) -> None:
        for agent in reversed(self._agents.own_agents()):
            try:
                await agent.terminate()
            except Exception as error:  # noqa: BLE001 - it is told by the report and raised at the exit
                self._agents_failed.append((agent.name, error))
                self._failures.add(error, f"the clean-up of agent {agent.name!r} failed")

    async def leave(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End. Raises what has failed in the background, together with what the block has raised."""
        if self.now() is None:
            raise RuntimeClosedError(
                "a runtime must be left in its own event loop: got another one; leave it before its loop ends",
                {"state": self.state},
            )
        _, of_block = _interop.split_cancellation(exc) if exc is not None else (False, None)
        grace, reason = None, "the runtime is shutting down"
        if exc is not None:
            # Without the name of a cancellation, which is another one on each backend.
            grace, reason = 0, f"the block was left by {'a cancellation' if of_block is None else type(exc).__name__}"
        try:
            await self.shutdown(grace, reason)  # noqa: ASYNC102 - a cancellation ends the draining; the rest is shielded
        except BaseException as error:  # noqa: ASYNC103 - a cancellation must not hide what the block raised
            if of_block is None or not _interop.split_cancellation(error)[0]:
                raise
        finally:
            if self._over is not None:
                await self._leave_host(of_block)  # noqa: ASYNC102 - shields itself
            else:
                await self._leave_group(exc_type, exc, traceback, of_block)  # noqa: ASYNC102 - as every task group

    async def close(self) -> None:
        """Leave what has no block; see `AgentRuntime.aclose`."""
        if self._over is None:
            raise ConfigurationError(
                f"aclose is for a hosted runtime that was entered: got one with hosted={self.hosted!r} in state {self.state!r}; "
                "a strict one is left by its block",
                {"name": "hosted", "value": self.hosted},
            )
        if self._tasks.is_inside() or self._portal.is_inside():
            raise AgentError(
                "aclose of a runtime waits for everything that it runs: got a call from inside of that, which would wait for "
                "itself; call shutdown() there, and aclose() outside"
            )
        await self.leave(None, None, None)

    async def _leave_group(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
        of_block: BaseException | None,
    ) -> None:
        assert self.group is not None and self._token is not None  # `enter` has set them  # noqa: S101, PT018
        current_runtime.reset(self._token)
        # Not told of an exception of the block, which would come back wrapped in a group. No task is left by now.
        told = (None, None, None) if of_block is not None else (exc_type, exc, traceback)
        try:
            own = await self.group.__aexit__(*told)
        finally:
            # Before a cancellation too, as a task group does: errors are not lost for it.
            self._raise_failures(of_block)
        if own and exc is not None and of_block is None:
            raise RuntimeClosedError(
                "a runtime ends with its block: got a cancellation of its task group; "
                "cancel tasks by their handles, not by Task.cancel()",
                {"state": self.state},
            )

    async def _leave_host(self, of_block: BaseException | None) -> None:
        assert self._over is not None and self._gone is not None  # `_move_in` has set them  # noqa: S101, PT018
        self._over.set()
        try:
            with anyio.CancelScope(shield=True):
                await self._gone.wait()
                if self._host is not None:
                    await self._host.wait_if_deserted()
        finally:
            self._raise_failures(of_block)

    def _raise_failures(self, of_block: BaseException | None) -> None:
        if (group := self._failures.take(of_block)) is not None:
            raise group from None  # how the block was cancelled for it is of no interest
