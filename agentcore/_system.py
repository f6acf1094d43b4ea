"""A whole system in three calls, as the specification has it: start, have tasks executed, shut down in order.

A system is a hosted runtime with two worker pools, a circuit for an external service, and what installed packages offer.
Nothing here is needed for any of that: it is what a program without wishes of its own would write.
"""

# No `from __future__ import annotations` here: the fields of public classes are read at run time, by cattrs and others.
# Their `__module__` reads agentcore, where names in strings could not be found.

import logging
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Final, Literal, Self, final

import anyio
import anyio.lowlevel
import attrs

from agentcore import _registry
from agentcore._agents import BaseAgent
from agentcore._breaker import CircuitBreaker
from agentcore._breakers import clear_circuit_breakers, get_circuit_breaker, of_process
from agentcore._current_pools import _current_runtime
from agentcore._directory import AGENTS, HANDLERS
from agentcore._registration import register_agents, register_task_handlers, register_tools
from agentcore._registry import Registry, get_registry
from agentcore._rules.backoff import check_number, show
from agentcore._rules.circuit_config import CircuitBreakerConfig
from agentcore._runtime import AgentRuntime
from agentcore._runtime_records import RuntimeConfig, ShutdownReport
from agentcore.config import SystemConfiguration, load_configuration
from agentcore.errors import AgentError, ConfigurationError, RuntimeClosedError
from agentcore.observe import init_logging, init_metrics
from agentcore.pools._base import BaseWorkerPool
from agentcore.pools._loop import LoopWorkerPool
from agentcore.pools._named import AnyWorkerPool
from agentcore.pools._records import QueueWorkerPoolConfig, WorkerPoolConfig, WorkerPoolType

_logger: Final = logging.getLogger("agentcore.system")

IO_POOL: Final = "io_tasks"
CPU_POOL: Final = "cpu_tasks"
CIRCUIT: Final = "api_service"
"""The names that the specification gives them."""

REASON: Final = "the system is shutting down"

_OFFERED: Final[tuple[tuple[str, Callable[[Registry[Any]], object]], ...]] = (
    (AGENTS, register_agents),
    (HANDLERS, register_task_handlers),
    ("tools", register_tools),
)


@final
class TaskQueue:
    """The tasks of a system, as somebody who waits for their end sees them."""

    __slots__ = ("_runtime",)

    def __init__(self, runtime: AgentRuntime | None) -> None:
        self._runtime = runtime

    def __repr__(self) -> str:
        return f"<TaskQueue, {len(self)} tasks>"

    def __len__(self) -> int:
        """Return how many run or wait."""
        return len(self._runtime.tasks) if self._runtime is not None else 0

    async def join(self) -> None:
        """Wait until no task runs or waits, and no ask, but the ones that this is called in. Always a checkpoint.

        Raises:
            AgentError: this is not the event loop of the system.
        """
        await anyio.lowlevel.checkpoint()
        if self._runtime is not None:
            self._runtime._lifetime.check_place("join")
            await self._runtime.tasks.wait_idle()


def _check_pool(_: object, field: "attrs.Attribute[Any]", value: object) -> None:
    _check_part(field.name, value, BaseWorkerPool, "pass one of get_worker_pool(...)")


def _check_circuit(_: object, field: "attrs.Attribute[Any]", value: object) -> None:
    _check_part(field.name, value, CircuitBreaker, "pass one of get_circuit_breaker(...)")


def _check_runtime(_: object, field: "attrs.Attribute[Any]", value: object) -> None:
    if value is not None:
        _check_part(field.name, value, AgentRuntime, "leave it out for the current one")


def _check_part(name: str, value: object, kind: type, remedy: str) -> None:
    if not isinstance(value, kind):
        raise ConfigurationError(
            f"{name} of a system must be a {kind.__name__}: got {show(value)}; {remedy}", {"name": name, "value": value}
        )


@final
@attrs.define(kw_only=True, eq=False)
class SystemContext:
    """The parts of a running system; `initialize_system` makes it, or a program of its own that does the same.

        async with await initialize_system() as system:
            await execute_task("triage", {"path": "."})

    Leaving the block is `shutdown_system`; leaving it by an exception or a cancellation cuts short what still runs.

    Args:
        io_pool: runs coroutines, for what waits.
        cpu_pool: runs functions, for what computes.
        api_circuit: of the external service.
        runtime: executes the tasks. If omitted, the one that is current; None if there is none: then `execute_task` makes one
            for each task, and the system consists of the pools.

    Raises:
        ConfigurationError: an argument is not usable.
        RuntimeClosedError: the runtime is omitted, and the event loop hosts several.
    """

    io_pool: AnyWorkerPool = attrs.field(validator=_check_pool)
    cpu_pool: AnyWorkerPool = attrs.field(validator=_check_pool)
    api_circuit: CircuitBreaker = attrs.field(validator=_check_circuit)
    runtime: AgentRuntime | None = attrs.field(factory=_current_runtime, validator=_check_runtime)
    _accepts: bool = attrs.field(default=True, init=False, repr=False)

    @property
    def accepting_tasks(self) -> bool:
        """Whether new tasks are taken. Setting it to False ends that for good, but for what running tasks start."""
        return self._accepts and (self.runtime is None or self.runtime.tasks.state == "open")

    @accepting_tasks.setter
    def accepting_tasks(self, value: bool) -> None:
        if not isinstance(value, bool):
            raise ConfigurationError(
                f"accepting_tasks of a system must be True or False: got {show(value)}; set it to False to end",
                {"name": "accepting_tasks", "value": value},
            )
        if value and not self.accepting_tasks:
            raise RuntimeClosedError(
                "a system that has stopped accepting tasks stays so: got accepting_tasks = True; start another system",
                {"state": self.runtime.tasks.state if self.runtime is not None else "draining"},
            )
        if not value:
            if self.runtime is not None:
                self.runtime._lifetime.check_place("accepting_tasks")
                self.runtime.tasks.stop_accepting()
            self._accepts = False

    @property
    def task_queue(self) -> TaskQueue:
        """The tasks that run or wait; ``await system.task_queue.join()`` waits for the last of them."""
        return TaskQueue(self.runtime)

    @property
    def active_agents(self) -> tuple[BaseAgent, ...]:
        """The agents that end with the system and have not yet: those that it shares, then those of tasks that run now.

        Agents that are registered as instances for the whole process have other users, and are not among them.
        """
        if self.runtime is None:
            return ()
        others = {id(item) for item in get_registry(AGENTS)._own_items()}
        at_work = [job.agent for job in self.runtime.tasks._ledger.jobs.values()]
        found = {id(agent): agent for agent in [*self.runtime.agents.own_agents(), *at_work] if agent is not None}
        return tuple(agent for key, agent in found.items() if key not in others and not agent.is_terminated)

    async def aclose(self, timeout: float = 30.0) -> ShutdownReport | None:
        """Do what `shutdown_system` does."""
        return await shutdown_system(self, timeout)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> Literal[False]:
        if exc is None:
            await shutdown_system(self)  # noqa: ASYNC102 - a cancellation ends the draining; the rest is shielded
        elif self.runtime is not None and self.runtime.hosted:
            # It knows what to make of an exception: what failed in the background is raised together with it.
            try:
                await self.runtime.__aexit__(exc_type, exc, traceback)  # noqa: ASYNC102 - shields what must not be cut short
            finally:
                await self._end(0)  # noqa: ASYNC102 - shields itself
        else:
            await self._end(0)  # noqa: ASYNC102 - shields itself
        return False

    # The end.

    def _check_outside(self) -> None:
        """Refuse to wait for what this is a part of.

        Raises:
            AgentError: this is called in a task, or in a job of a pool, or in another event loop.
        """
        pools = {self.io_pool, self.cpu_pool}
        is_inside = False
        if self.runtime is not None:
            self.runtime._lifetime.check_place("shutdown_system")
            pools |= set(self.runtime.pools.list_all().values())
            is_inside = self.runtime.tasks.is_inside() or self.runtime._portal.is_inside()
        if is_inside or any(isinstance(pool, LoopWorkerPool) and pool._is_inside() for pool in pools):
            raise AgentError(
                "shutdown_system waits for everything that the system runs: got a call from inside of that, which would wait "
                "for itself; set accepting_tasks = False there, and call it outside"
            )

    async def _drain(self, limit: float) -> None:
        """Take nothing any more, and let the tasks that there are go on for so many seconds."""
        self.accepting_tasks = False
        if (count := len(self.task_queue)) > 0:
            _logger.info("waiting up to %g s for the end of tasks: %d", limit, count)
        if self.runtime is not None and not await self.runtime.drain(limit):
            _logger.warning("tasks that have not ended within %g s are cancelled: %d", limit, len(self.task_queue))

    async def _end(self, limit: float) -> None:
        """Cancel what still runs, terminate the agents, and give the pools so many seconds for the jobs they have."""
        self._accepts = False
        # In a task of its own: a `Task.cancel()` by the host comes through every shield, but ends only this one.
        async with anyio.create_task_group() as group:  # noqa: ASYNC112 - not redundant: see above
            group.start_soon(self._end_all, limit)

    async def _end_all(self, limit: float) -> None:
        if self.runtime is not None:
            # Only to begin with it: the tasks have the time that the pools have, of which they may wait for jobs.
            with anyio.move_on_after(0, shield=True):
                await self.runtime.tasks.cut(REASON)
            try:
                await self.runtime.shutdown(limit, REASON)
            finally:
                # Elsewhere than in the runtime there are pools only if somebody has made a context of such ones.
                await self._end_pools(0)  # noqa: ASYNC102 - shields itself
        else:
            await self._end_pools(limit)

    async def _end_pools(self, limit: float) -> None:
        async def end(pool: AnyWorkerPool) -> None:
            try:
                await pool.shutdown(wait=True, timeout=limit)
            finally:
                if pool.state != "closed":
                    await pool._finish(0)  # noqa: ASYNC102 - shields itself

        async with anyio.create_task_group() as group:
            for pool in (self.io_pool, self.cpu_pool):
                if pool.state != "closed":
                    group.start_soon(end, pool)


async def initialize_system(configuration: SystemConfiguration | None = None) -> SystemContext:
    """Start a system: a hosted runtime, a pool for what waits and one for what computes, and what installed packages offer.

    In the process it begins to log and to count, as `init_logging` and `init_metrics` do; registers what installed packages
    offer; and has the circuit ``api_service`` of `get_circuit_breaker`. The pools are called ``io_tasks`` (``queue_asyncio``)
    and ``cpu_tasks`` (``thread``), and are found by `get_worker_pool` too. If anything of this fails, all that was done
    before is undone.

    Args:
        configuration: how many workers, when the circuit opens, what is logged; what `load_configuration` gives, if omitted.

    Returns:
        Its parts. `shutdown_system` ends it, or leaving it as a block.

    Raises:
        ConfigurationError: a setting is not usable; or the circuit is there already with another configuration.
        RegistryError: what an installed package offers cannot be registered.
        RuntimeClosedError: the event loop is ending.
    """
    if configuration is None:
        configuration = load_configuration()
    elif not isinstance(configuration, SystemConfiguration):
        raise ConfigurationError(
            f"configuration of a system must be a SystemConfiguration: got {show(configuration)}; "
            "pass load_configuration(...)",
            {"name": "configuration", "value": configuration},
        )
    runtime = await AgentRuntime.open(RuntimeConfig(**configuration.runtime.given()))
    try:
        return _furnish(runtime, configuration)
    except BaseException:
        await runtime.aclose()  # noqa: ASYNC102 - shields what must not be cut short
        raise


def _furnish(runtime: AgentRuntime, configuration: SystemConfiguration) -> SystemContext:
    """Do all that needs no waiting, or nothing of it."""
    with ExitStack() as undo:
        io_pool = runtime.pool(
            IO_POOL, WorkerPoolType.QUEUE_ASYNCIO, QueueWorkerPoolConfig(workers=configuration.io_workers)
        )
        cpu_pool = runtime.pool(CPU_POOL, WorkerPoolType.THREAD, WorkerPoolConfig(workers=configuration.cpu_workers))
        for name, register in _OFFERED:
            # Of whatever kind it is: tools may well be in a registry of functions.
            registry = _registry._known.get(name) or get_registry(name)
            undo.callback(_forget_offered, registry, frozenset(registry.list_names()))
            register(registry)
        is_known = CIRCUIT in of_process.list_all()
        api_circuit = get_circuit_breaker(
            CIRCUIT,
            CircuitBreakerConfig(
                failure_threshold=configuration.api_failure_threshold,
                reset_timeout_ms=configuration.api_reset_timeout,
            ),
        )
        if not is_known:
            undo.callback(clear_circuit_breakers, CIRCUIT)
        context = SystemContext(io_pool=io_pool, cpu_pool=cpu_pool, api_circuit=api_circuit, runtime=runtime)
        # Last: what was logged and counted before cannot be brought back. The one fails without a trace, the other never.
        init_logging(configuration.logging)
        init_metrics(configuration.metrics).attach(runtime)
        undo.pop_all()
    return context


def _forget_offered(registry: Registry[Any], known: frozenset[str]) -> None:
    for name in registry.list_names():
        if name not in known and "entry_point" in (registry.get_metadata(name) or {}):
            registry.unregister(name)


async def shutdown_system(system_context: SystemContext, timeout: float = 30.0) -> ShutdownReport | None:
    """End a system in order: take no tasks, let those there are end, terminate the agents, drain the pools, close the runtime.

    Half of the time is for the tasks. What has not ended by then is cancelled, with a reason, and unwinds in the other half,
    in which the pools finish the jobs that they have; what is left then is cut short and logged. A strict runtime is shut
    down, and is left by its own block. A second call does nothing, or waits for the same end, if that is still to come.

    If the caller is cancelled, nothing is waited for any more but the unwinding of what is cancelled; the system is closed
    all the same. What the process has of it stays: the circuit, what was registered, the log.

    Args:
        system_context: what `initialize_system` has returned, or one like it.
        timeout: seconds.

    Returns:
        How the runtime was shut down; None if there is none.

    Raises:
        AgentCrashedError: there were failures in the background; the system is closed.
        AgentError: this is called in a task or in a job of the system, which would wait for itself; or in another event loop.
        ConfigurationError: an argument is not usable.
    """
    if not isinstance(system_context, SystemContext):
        raise ConfigurationError(
            f"shutdown_system takes a SystemContext: got {show(system_context)}; pass what initialize_system has returned",
            {"name": "system_context", "value": system_context},
        )
    check_number("shutdown_system", "timeout", timeout, "use 0 to cut everything short", unit="seconds")
    system_context._check_outside()
    runtime, limit = system_context.runtime, 0.0
    try:
        await system_context._drain(timeout / 2)
        limit = timeout / 2
    finally:
        try:
            await system_context._end(limit)  # noqa: ASYNC102 - shields what must not be cut short
        finally:
            if runtime is not None and runtime.hosted:
                await runtime.aclose()  # noqa: ASYNC102 - shields itself
    _logger.info("the system is shut down")
    return runtime.report if runtime is not None else None
