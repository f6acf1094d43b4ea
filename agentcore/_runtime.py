"""The runtime: one block of code, one task group, and everything that runs for the program inside of it.

This is the only part that composes the others, and a facade in front of them: tasks are executed by `Scheduler`
(``runtime.tasks``), found their agents by `Directory` (``runtime.agents``), and how the block is entered and left is decided
by `Lifetime`. What callers have it do stands in `_work`.
"""

# No `from __future__ import annotations` here: the fields of public classes are read at run time, by cattrs and others.
# Their `__module__` reads agentcore, where names in strings could not be found.

from collections.abc import Awaitable, Callable
from functools import partial
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeVar, TypeVarTuple, final

import anyio
import anyio.lowlevel

from agentcore._agent_records import check_seconds
from agentcore._asks import Asks
from agentcore._breaker import CircuitBreaker
from agentcore._context import current_runtime
from agentcore._directory import Directory
from agentcore._events import Event, EventLog, EventSink
from agentcore._failures import Failures
from agentcore._host import Host
from agentcore._ledger import Ledger
from agentcore._lifetime import Lifetime
from agentcore._owned_breakers import OwnedCircuitBreakers
from agentcore._portal import Portal
from agentcore._registry import Registry
from agentcore._resources import Manager, Resources
from agentcore._retry import RetryPolicy
from agentcore._rules.circuit_config import CircuitBreakerConfig
from agentcore._runtime_records import RuntimeConfig, RuntimeHealth, RuntimeStatistics, ShutdownReport
from agentcore._scheduler import Scheduler
from agentcore._spawned import House
from agentcore._supervisor import NAME, AgentSupervisor
from agentcore._supervisor_records import Supervisor, checked_supervisor
from agentcore._work import Work
from agentcore.errors import ConfigurationError, RuntimeClosedError
from agentcore.observe import _metrics
from agentcore.pools._named import AnyWorkerPool, WorkerPools
from agentcore.pools._records import AnyWorkerPoolConfig, WorkerPoolType

Args = TypeVarTuple("Args")
F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")


@final
class AgentRuntime(Work):
    """Runs tasks by agents and handlers inside a block of code.

        async with AgentRuntime() as runtime:
            report = await runtime.run("triage", {"path": "."})

    Everything it starts has ended when the block has been left. Leaving it normally lets running and waiting tasks go on
    for `RuntimeConfig.grace` seconds, then cancels them; leaving it by an exception or a cancellation cancels them at
    once. Tasks that are run or submitted inside of others are accepted as long as those run.

    **Strict**, the default, it is a task group around the block: what breaks the runtime cancels the block. It has to be left
    by the task that has entered it. **Hosted**, the task group belongs to the event loop: the runtime may be entered and
    left in two tasks, or be held open across a ``yield``, as in fixtures, notebooks and the lifespan of a server. The block
    goes on if the runtime breaks; `health` shows it, further calls and the exit raise it.

    Args:
        config: how it behaves.
        supervisor: how its first supervisor mends agents.
        grace: seconds, instead of the one in `config`.
        hosted: whether it is hosted. Left out, it is strict, and entering it inside of an asynchronous generator is refused.

    Raises:
        ConfigurationError: an argument is not usable; at entry, if it is strict by default in an asynchronous generator.
    """

    def __init__(
        self,
        config: RuntimeConfig | None = None,
        *,
        supervisor: Supervisor | None = None,
        grace: float | None = None,
        hosted: bool | None = None,
    ) -> None:
        config = RuntimeConfig.of(config, grace)
        self._log = EventLog(capacity=1024)
        ledger = Ledger(config.retention)
        self._failures = Failures(ledger, is_hosted=bool(hosted))
        super().__init__(
            config,
            Directory(),
            Scheduler(
                self,
                self._log,
                ledger,
                self._failures,
                in_flight=config.in_flight,
                queue=config.queue,
                ageing=config.ageing,
                retry_budget=config.retry_budget,
                dead_letters=config.dead_letters,
            ),
        )
        self.breakers: Final = OwnedCircuitBreakers(self._log)
        self._asks = Asks(self, self.agents, self.tasks)
        self.resources: Final = Resources(self._failures)
        self.pools: Final = WorkerPools()
        self._portal = Portal(self, self.tasks.refusal)
        house = House(
            self,
            self.tasks.calls,
            self._failures,
            self._log,
            check_open=self.tasks.check_open,
            check_place=lambda method: self._lifetime.check_place(method),  # noqa: PLW0108 - it is made below
            refusal=self.tasks.refusal,
            is_ending=lambda: self.tasks.state != "open",
        )
        self.supervisor: AgentSupervisor = AgentSupervisor(NAME, checked_supervisor(supervisor), house)
        self.agents.posts = self.supervisor._agents
        self._lifetime = Lifetime(
            supervisor=self.supervisor,
            hosted=hosted,
            grace=self.config.grace,
            tasks=self.tasks,
            breakers=self.breakers,
            agents=self.agents,
            resources=self.resources,
            portal=self._portal,
            pools=self.pools,
            failures=self._failures,
            log=self._log,
        )
        _metrics.attach(self)

    def __repr__(self) -> str:
        return f"<AgentRuntime {self._lifetime.state}, {len(self.tasks)} tasks>"

    @staticmethod
    def current() -> "AgentRuntime":
        """Return the runtime that this is called in: the one of the block or task, else the one that the event loop hosts.

        Raises:
            RuntimeClosedError: there is none that is open, or the event loop hosts several.
        """
        runtime = current_runtime.get()
        if isinstance(runtime, AgentRuntime) and runtime._lifetime.is_current():
            return runtime
        try:
            host = Host.find()
        except anyio.NoEventLoopError:
            host = None
        residents = [one for one in host.residents if isinstance(one, AgentRuntime)] if host is not None else []
        hosted = [one for one in residents if one._lifetime.is_current()]
        if len(hosted) == 1:
            return hosted[0]
        if hosted:
            raise RuntimeClosedError(
                f"the event loop hosts several runtimes: got {', '.join(map(repr, hosted))}; keep the one you mean in a variable",
                {"state": "ambiguous"},
            )
        raise RuntimeClosedError(
            f"there is no open runtime here: got {runtime!r}; write `async with AgentRuntime() as runtime:`",
            {"state": "none" if runtime is None else "closed"},
        )

    @property
    def hosted(self) -> bool:
        """Whether it lives in the event loop and not in its block."""
        return bool(self._lifetime.hosted)

    async def resource(self, manager: Manager[T], name: str | None = None, *, close_timeout: float = 5.0) -> T:
        """Open a context manager that agents share, and return what it gives. It is closed when the runtime ends.

        It is entered and left in a task of its own, whoever calls this. Resources are closed after all agents, the one
        opened last first. One that ends before that by itself is a crash of the runtime. The same object is opened once:
        further calls return what it gave.

        Args:
            manager: an asynchronous or synchronous context manager.
            name: by which `AgentContext.resource` and ``runtime.resources.get`` give it.
            close_timeout: seconds that closing it may take.

        Raises:
            RuntimeClosedError: the runtime is not open.
            AgentError: this is not the event loop of the runtime.
            ConfigurationError: the name stands for another one; or an argument is not usable.
            BaseException: whatever opening it raises.
        """
        if close_timeout is None:
            raise ConfigurationError(
                "close_timeout of a resource must be a number of seconds: got None; closing always has a limit",
                {"name": "close_timeout", "value": None},
            )
        check_seconds("close_timeout", close_timeout)
        self.tasks.check_open("a resource", name=name)
        self._lifetime.check_place("resource")
        return await self.resources.enter(manager, name, close_timeout)

    def from_thread(self, function: Callable[[*Args], Awaitable[T]], *args: *Args, timeout: float | None = None) -> T:
        """Run a coroutine function in the event loop of the runtime, from any other thread, and return what it returns.

        Leaving the call in any way (its time is over, Ctrl-C) cancels the coroutine and waits until it has been unwound.

        Args:
            function: what to run.
            *args: for the function.
            timeout: seconds that it may take; None for as long as it takes.

        Raises:
            CallTimeoutError: it took longer.
            RuntimeClosedError: the runtime is not open, or was left meanwhile.
            AgentError: this is called in the event loop, which it would block.
            ConfigurationError: the timeout is not usable.
            BaseException: whatever the function raises.
        """
        check_seconds("timeout", timeout)
        return self._portal.call(partial(function, *args), timeout)

    def handler(
        self,
        task_type: str,
        *,
        timeout: float | None = None,
        max_concurrency: int | None = None,
        retry: RetryPolicy | Literal[False] | None = None,
    ) -> Callable[[F], F]:
        """Return a decorator that has a function execute the tasks of a type.

        It is called with the task's input, and with the context if it has a second parameter. A coroutine function runs
        in the event loop, any other in a worker thread. A result that is no AgentResult becomes the output.

        Args:
            task_type: what tasks.
            timeout: seconds that one execution may take.
            max_concurrency: executions at a time; None for no limit.
            retry: whether tasks that have failed are executed again, unless they say so themselves; None for what the
                runtime says, False for no.

        Raises:
            ConfigurationError: an argument is not usable.
            RegistryError: what is decorated is no function.
        """
        return self.agents.handler(task_type, timeout=timeout, max_concurrency=max_concurrency, retry=retry)

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

    def pool(
        self, name: str, pool_type: WorkerPoolType | str | None = None, config: AnyWorkerPoolConfig | None = None
    ) -> AnyWorkerPool:
        """Return this runtime's worker pool of a name, made at the first call. It ends with the runtime.

        Args:
            name: what it is called.
            pool_type: what runs its jobs; if omitted, what it is already, else ``queue_asyncio``.
            config: how it behaves; whatever it is, if omitted and it is there already.

        Raises:
            RuntimeClosedError: the runtime is not open.
            AgentError: this is not the event loop of the runtime.
            ConfigurationError: there is one of another type or configuration; or an argument is not usable.
        """
        self._lifetime.check_place("pool")
        return self.pools.get(name, pool_type, config)

    def subscribe(self, sink: EventSink) -> Callable[[], None]:
        """Call a sink with every event from now on, in the event loop; returns the function that ends this.

        The events are ``task_accepted``, ``task_started``, ``task_retried``, ``task_completed``, ``task_failed``,
        ``task_canceled``, each with ``task_id`` and ``type``; ``task_progress``, which `events` does not keep; and those of `CircuitBreaker.subscribe` for the breakers of the runtime.
        """
        return self._log.subscribe(sink)

    def events(self) -> tuple[Event, ...]:
        """Return the newest events, oldest first."""
        return self._log.recent()

    def statistics(self) -> RuntimeStatistics:
        """Return what has been done so far."""
        tasks, pools = self.tasks.statistics(), self.pools.statistics()
        return RuntimeStatistics(
            state=self.tasks.state,
            tasks=tasks,
            asks=self.tasks.calls.asks,
            messages=self.tasks.calls.messages,
            pools=pools,
        )

    def health(self) -> RuntimeHealth:
        """Return whether the runtime works, and what has failed in its background; for a server's health check."""
        state, tasks = self._lifetime.state, self.tasks.statistics()
        wrapped = self._failures.wrapped()
        return RuntimeHealth(
            healthy=state == "open",
            state=state,
            failures=wrapped.exceptions if wrapped is not None else (),
            in_flight=tasks.in_flight,
            queued=tasks.queued,
            asks=self.tasks.calls.asks,
        )

    # Entering and leaving.

    @property
    def report(self) -> ShutdownReport | None:
        """How the runtime was shut down; None before."""
        return self._lifetime.report

    async def drain(self, timeout: float | None = None) -> bool:
        """Take no further work from outside, and wait until what there is has ended. Always a checkpoint.

        Args:
            timeout: seconds; None for as long as it takes.

        Returns:
            Whether everything has. If not, it goes on.

        Raises:
            ConfigurationError: the timeout is not usable.
        """
        check_seconds("timeout", timeout)
        self._lifetime.check_place("drain")
        return await self._lifetime.drain(timeout)

    async def shutdown(
        self, grace: float | None = None, reason: str = "the runtime is shutting down"
    ) -> ShutdownReport:
        """Drain, cancel what is left, terminate the shared agents, close the resources.

        Later calls return the report, as soon as nothing is left to be done. Called inside a task, it leaves that one alone,
        and those that wait for it. Leaving the block does this by itself. Cancellation of the caller ends the draining, not
        the rest.

        Args:
            grace: seconds for draining; None for those of the configuration.
            reason: why, for who waits for what is cut short.

        Raises:
            ConfigurationError: the grace is not usable.
        """
        check_seconds("grace", grace)
        self._lifetime.check_place("shutdown")
        return await self._lifetime.shutdown(grace, reason)

    @classmethod
    async def open(cls, config: RuntimeConfig | None = None, *, grace: float | None = None) -> Self:
        """Return a hosted runtime that is entered, for where no block can be written: a notebook. `aclose` leaves it.

        Args:
            config: as for `AgentRuntime`.
            grace: as for `AgentRuntime`.

        Raises:
            ConfigurationError: an argument is not usable.
        """
        return await cls(config, grace=grace, hosted=True).__aenter__()

    async def aclose(self) -> None:
        """Leave a hosted runtime, as the end of its block would. Once it is closed, this does nothing.

        Raises:
            AgentCrashedError: there were failures in the background.
            RuntimeClosedError: this is not the event loop of the runtime.
            ConfigurationError: the runtime is strict, so it is left by its block.
        """
        await self._lifetime.close()

    async def __aenter__(self) -> Self:
        await self._lifetime.enter(self)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> Literal[False]:
        await self._lifetime.leave(exc_type, exc, traceback)  # noqa: ASYNC102 - shields what must not be cut short
        return False
