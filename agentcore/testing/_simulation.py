"""One simulation: an event loop with a clock and an order of its own, driven from synchronous code."""

import gc
import itertools
import math
import random
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, AsyncExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from importlib.util import find_spec
from typing import Any, Final, Literal, TypeVar, TypeVarTuple, final

import anyio
import anyio.lowlevel

from agentcore._interop import Sources, split_cancellation, use_sources

from ._check import check
from ._failures import InvariantError, SimulationFailure, UnretrievedError, Waiting, tasks_left
from ._fault_plans import FaultPlan
from ._faults import Injection, default_scope, inject
from ._kernel import STEPS_PER_INSTANT, Abandoned, Kernel, Loop, Step
from ._loops import AsyncioLoop, TrioLoop
from ._schedule import FIFO, Schedule, Strategy

# pytest leaves the frames of this file out of the traceback: the reader's own test comes first.
__tracebackhide__ = True

Args = TypeVarTuple("Args")
T = TypeVar("T")
Backend = Literal["asyncio", "trio"]

KNOWN: Final[tuple[Backend, ...]] = ("asyncio", "trio")
# Those that are installed: people who have no trio do not want to hear of it from every test.
BACKENDS: Final[tuple[Backend, ...]] = KNOWN if find_spec("trio") else KNOWN[:1]
# 2020-01-01T00:00:00Z: what the wall clock of every simulation shows at its start.
EPOCH: Final = 1_577_836_800.0
MAX_STEPS: Final = 1_000_000
WATCHDOG: Final = 10.0

_pumping = threading.local()
_current: ContextVar["Simulation | None"] = ContextVar("agentcore_simulation", default=None)


def current_simulation() -> "Simulation":
    """Return the simulation that the calling code runs in.

    Raises:
        RuntimeError: it runs in none.
    """
    simulation = _current.get()
    if simulation is None:
        raise RuntimeError("no simulation runs here; use @simulate, run_sim or Simulation.run")
    return simulation


@final
class Simulation:
    """An event loop with virtual time and a chosen order, driven from synchronous code.

    Time does not pass between two calls of `run`: everything in the simulation is frozen then. All calls run in one task.
    As a context manager it checks at its end that nothing is left behind.

    Args:
        backend: `asyncio` or `trio`.
        schedule: the order of the tasks: a `Schedule`, or its text.
        plan: the faults of the simulation: a `FaultPlan`, or its text.
        targets: where the targets of the plan are: name to (owner, attribute).
        threads: `hold` runs worker threads and stops the clock while a task waits for one; `inline` calls their functions
            in the event loop, which is faster and knows no `from_thread`.
        seed: of the random source that agentcore draws from.
        max_steps: how many steps the simulation may take before it counts as a livelock.
        max_steps_per_instant: the same for steps while the clock stands still; a hundred more for each task.
        watchdog: real seconds that it may wait for a thread or an input before that counts as a stall.
        trace: whether to keep every step.
        debug: whether asyncio runs in its debug mode.

    Attributes:
        backend: as given.
        injection: what has become of the plan; None without one.
        random: the random source that agentcore draws from.
    """

    def __init__(
        self,
        backend: Backend = "asyncio",
        *,
        schedule: "Schedule | Strategy | str" = FIFO,
        plan: FaultPlan | str | None = None,
        targets: dict[str, Any] | None = None,
        threads: Literal["hold", "inline"] = "hold",
        seed: int = 0,
        max_steps: int = MAX_STEPS,
        max_steps_per_instant: int = STEPS_PER_INSTANT,
        watchdog: float = WATCHDOG,
        trace: bool = False,
        debug: bool = False,
    ) -> None:
        _check_options(backend, threads, max_steps, watchdog)
        check(backend)
        self.backend: Backend = backend
        self.random: random.Random = random.Random(seed)
        self.injection: Injection | None = None
        self._plan = FaultPlan.parse(plan) if isinstance(plan, str) else plan
        self._targets = targets
        self._strategy = strategy_of(schedule)
        self._max_steps, self._watchdog, self._trace = max_steps, watchdog, trace
        self._max_per_instant = max_steps_per_instant
        self._loop: Loop = (
            AsyncioLoop(self._make_kernel, debug=debug) if backend == "asyncio" else TrioLoop(self._make_kernel)
        )
        self._kernel = self._loop.kernel
        self._kernel.inline_threads = threads == "inline"
        self._started = self._begun = self._closing = self._cancelling = self._closed = False
        self._command: tuple[Callable[..., Awaitable[Any]], tuple[Any, ...], bool] | None = None
        self._asked: anyio.Event | None = None
        self._left: tuple[Waiting, ...] = ()
        self._value: Any = None
        self._error: BaseException | None = None
        self._root: anyio.CancelScope
        self._scope: anyio.CancelScope
        self._blocks: AsyncExitStack

    def _make_kernel(self, wake: Callable[[], object]) -> Kernel:
        return Kernel(
            self._strategy,
            max_steps=self._max_steps,
            max_steps_per_instant=self._max_per_instant,
            watchdog=self._watchdog,
            wake=wake,
            abort=self._abort,
            trace=self._trace,
        )

    # ------------------------------------------------------------ from outside

    def run(self, function: Callable[[*Args], Awaitable[T]], *args: *Args) -> T:
        """Run an asynchronous function in the simulation until it returns, and freeze everything else there.

        Args:
            function: is called and awaited in the main task.
            *args: its arguments.

        Returns:
            What it returns.

        Raises:
            SimulationFailure: the simulation has found something; it is over.
            RuntimeError: the simulation is closed, or this is called inside of one.
            BaseException: whatever the function raises; the simulation goes on.
        """
        value: T = self._ask(function, args, own_scope=True)
        return value

    def _ask(self, function: Callable[..., Awaitable[Any]], args: tuple[Any, ...], *, own_scope: bool) -> Any:
        if self._closed or self._closing:
            raise RuntimeError("this simulation is over; make another one")
        self._command = function, args, own_scope
        self._pump(lambda: self._command is None)
        if self._command is not None:
            raise RuntimeError(
                "the simulation was cancelled as a whole; what is to be cancelled needs a scope of its own"
            )
        (value, self._value), (error, self._error) = (self._value, None), (self._error, None)
        if error is not None:
            raise error
        return value

    def enter(
        self,
        function: Callable[[*Args], AbstractAsyncContextManager[T, Any] | AbstractContextManager[T, Any]],
        *args: *Args,
    ) -> T:
        """Enter a context manager in the simulation. It is left when the simulation is closed, the last one first.

        In between, calls of `run` run inside of it. What it raises because something in it has failed is raised by the `run`
        in which that happens; every block is left then.

        Args:
            function: makes the context manager, synchronous or not: ``sim.enter(AgentRuntime)``,
                ``sim.enter(inject, plan, targets)``.
            *args: its arguments.

        Returns:
            What entering it gives.

        Raises:
            BaseException: as `run` does.
        """

        async def enter() -> T:
            manager = function(*args)
            if isinstance(manager, AbstractAsyncContextManager):
                return await self._blocks.enter_async_context(manager)
            return self._blocks.enter_context(manager)

        value: T = self._ask(enter, (), own_scope=False)
        return value

    def call(self, function: Callable[[*Args], T], *args: *Args) -> T:
        """Call a synchronous function in the simulation: `handle.cancel()`, `event.set()`, anything that needs its loop.

        Args:
            function: is called in the main task.
            *args: its arguments.

        Returns:
            What it returns.

        Raises:
            BaseException: as `run` does.
        """

        async def call() -> T:  # noqa: ASYNC124 - it has to run in the loop
            return function(*args)

        return self.run(call)

    def close(self) -> None:
        """End the simulation, and check that nothing is left behind.

        Raises:
            LeakError: tasks are left.
            UnretrievedError: an exception was raised where nobody looks.
        """
        failure = self._end()
        if failure is not None:
            raise failure

    def __enter__(self) -> "Simulation":
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        failure = self._end(cancel=error is not None)
        if failure is not None and error is None:
            raise failure

    def _pump(self, over: Callable[[], bool]) -> None:
        if getattr(_pumping, "simulation", None) is not None:
            raise RuntimeError("a simulation runs in this thread already; await the function instead of running it")
        _pumping.simulation = self
        try:
            with _without_gc(), self._loop.inside():
                if not self._started:
                    self._loop.start(self._main)
                    self._started = True
                elif self._asked is not None:
                    self._asked.set()
                self._loop.pump(over)
        except (Abandoned, Exception):
            # What goes wrong while a failed simulation is ended follows from the failure.
            if self._kernel.failure is None:
                raise
        finally:
            _pumping.simulation = None
        if self._kernel.failure is not None:
            failure = self._kernel.failure
            self._shut()
            raise failure

    def _end(self, *, cancel: bool = False) -> BaseException | None:
        """End the simulation, and return what is wrong with its end."""
        if self._closed:
            return None
        self._closing = True
        self._kernel.tracing = False
        failure: BaseException | None = None
        try:
            if self._started:
                self._cancelling = cancel
                self._pump(lambda: False)
                failure, self._error = self._error, None
        except Exception as error:  # noqa: BLE001 - it is told
            failure = error
        left = self._left
        self._shut()
        if failure is not None:
            return failure
        if left:
            return tasks_left(left, "the simulation ends", self.now)
        if self._loop.unretrieved:
            return UnretrievedError("; ".join(self._loop.unretrieved), (), self.now)
        return None

    def _shut(self) -> None:
        if not self._closed:
            self._closed = True
            with _without_gc(), self._loop.inside() if self._started else nullcontext():
                self._loop.close()

    def _abort(self, calls: int) -> None:
        """End everything: first as it should be, then without shields, then by force."""
        if calls == 0:
            self._root.cancel("the simulation has failed")
        elif calls == 1:
            for task in tuple(self._kernel.tasks.values()):
                for scope in self._loop.scopes(task):
                    if scope.shield:
                        scope.shield = False
        elif self.backend == "asyncio":
            for task in tuple(self._kernel.tasks.values()):
                self._loop.cancel_natively(task)

    # ------------------------------------------------------------ inside

    async def _main(self) -> None:
        numbers = itertools.count(1)
        sources = Sources(
            monotonic=self._time,
            wall=self._wall,
            random=self.random,
            identifier=lambda: f"sim-{next(numbers)}",
            hand_off=self._kernel.threads.start,
        )
        with use_sources(sources), anyio.CancelScope() as self._root:
            _current.set(self)
            self._scope = self._root
            default_scope.set(lambda: self._scope)
            with inject(self._plan or FaultPlan(), self._targets) as self.injection:
                while not self._closing:
                    try:
                        async with AsyncExitStack() as self._blocks:
                            await self._serve_all()
                        if self._begun and self._command is not None:
                            self._answer()  # a block has been cancelled, and its end is all that comes of that
                    except BaseException as error:  # noqa: ASYNC103 - told elsewhere
                        if self._root.cancel_called:
                            raise
                        # Something in a block has failed: all blocks are left by now.
                        self._answer(error=error)
            left = (task for task in self._kernel.tasks.values() if task.serial)
            # AnyIO's own, for as long as the event loop lives.
            self._left = tuple(task.where() for task in left if "process_pool" not in task.name.replace(" ", "_"))

    async def _serve_all(self) -> None:
        while not self._closing:
            if self._command is not None:
                await self._serve(*self._command)
            self._asked = anyio.Event()
            await self._asked.wait()
        if self._cancelling:
            self._root.cancel("the simulation is over")
            await anyio.lowlevel.checkpoint()

    async def _serve(self, function: Callable[..., Awaitable[Any]], args: tuple[Any, ...], own_scope: bool) -> None:
        self._begun, value, error = True, None, None
        try:
            if own_scope:
                with anyio.CancelScope() as self._scope:
                    value = await function(*args)
            else:
                value = await function(*args)
        except BaseException as caught:  # noqa: ASYNC103 - told elsewhere
            if split_cancellation(caught)[0]:
                raise
            error = caught
        finally:
            self._scope = self._root
        self._answer(value, error)

    def _answer(self, value: Any = None, error: BaseException | None = None) -> None:
        """End a call of `run`."""
        self._value, self._error = value, error
        self._command, self._begun = None, False
        if not (self._closing or self._closed):
            self._loop.stop()

    def _time(self) -> float:
        return self._kernel.now

    def _wall(self) -> float:
        return EPOCH + self._kernel.now

    @property
    def now(self) -> float:
        """The virtual time, in seconds since the start."""
        return self._kernel.now

    @property
    def steps(self) -> int:
        """How many steps the tasks have made."""
        return self._kernel.steps

    @property
    def trace(self) -> tuple[Step, ...]:
        """Every step so far; empty without `trace=True`."""
        return tuple(self._kernel.trace)

    @property
    def scope(self) -> anyio.CancelScope:
        """The scope around the function that `run` runs; it is what the `cancel` of a fault plan cancels."""
        return self._scope

    def tasks(self) -> tuple[Waiting, ...]:
        """Return where every task of the simulation is."""
        return self._kernel.where()

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Stop the clock inside the block, for what happens outside of the simulation: a subprocess, a server.

        While nothing can run and the clock is held, the simulation waits for real, for as long as its watchdog allows.
        """
        self._kernel.holds += 1
        try:
            yield
        finally:
            self._kernel.holds -= 1

    def advance(self, seconds: float) -> None:
        """Move the clock forward, as if the calling code had computed for so long.

        Args:
            seconds: how far; timers that are due by then run once this task waits.

        Raises:
            ValueError: the number is negative or not finite.
        """
        if not 0 <= seconds < math.inf:
            raise ValueError(f"the clock goes forward by a finite number of seconds: got {seconds!r}")
        self._kernel.move_to(self.now + seconds)

    def always(self, predicate: Callable[[], bool], what: str = "") -> None:
        """Check after every step, from now on, that something holds.

        Args:
            predicate: looks at the state; it changes nothing and does not wait.
            what: says what it checks, for the failure; its name by default.
        """
        name = what or getattr(predicate, "__qualname__", repr(predicate))

        def check_it() -> SimulationFailure | None:
            kernel = self._kernel
            try:
                if predicate():
                    return None
                text = "does not hold"
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:  # noqa: ASYNC103, BLE001 - raised here it would be the event loop's
                text = f"cannot be looked at, {error!r},"
            assert kernel.current is not None
            text = f"{text} after step {kernel.steps}, of task {kernel.current.serial}: {name}"
            return InvariantError(text, kernel.where(), kernel.now)

        self._kernel.invariants.append(check_it)

    async def eventually(self, predicate: Callable[[], bool], *, within: float, what: str = "") -> None:
        """Wait until something holds; it is looked at after every step.

        Args:
            predicate: looks at the state; it changes nothing and does not wait.
            within: the virtual seconds that it may take.
            what: says what it checks, for the failure; its name by default.

        Raises:
            InvariantError: it did not hold in time.
        """
        held = anyio.Event()

        problem: list[BaseException] = []

        def look() -> None:
            try:
                if not held.is_set() and predicate():
                    held.set()
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:  # noqa: ASYNC103, BLE001 - raised where it is waited for, and not in the event loop
                problem.append(error)
                held.set()

        def check_it() -> SimulationFailure | None:
            look()
            return None

        look()
        self._kernel.invariants.append(check_it)
        try:
            with anyio.move_on_after(within):
                await held.wait()
        finally:
            self._kernel.invariants.remove(check_it)
        if problem:
            raise problem[0]
        if not held.is_set():
            name = what or getattr(predicate, "__qualname__", repr(predicate))
            raise InvariantError(f"did not come about within {within:g} s: {name}", self._kernel.where(), self.now)

    def heal(self) -> None:
        """Have no fault of the plan act any more: what comes now is the test of whether the program recovers."""
        if self.injection is not None:
            self.injection.heal()

    async def settle(self) -> None:
        """Wait until no other task can run without the clock moving on."""
        await anyio.wait_all_tasks_blocked()


def _check_options(backend: object, threads: object, max_steps: int, watchdog: float) -> None:
    if backend not in KNOWN:
        raise ValueError(f"a simulation runs on one of {', '.join(KNOWN)}: got {backend!r}")
    if threads not in {"hold", "inline"}:
        raise ValueError(f"threads are 'hold' or 'inline': got {threads!r}")
    if max_steps < 1:
        raise ValueError(f"max_steps is at least 1: got {max_steps!r}")
    if not watchdog > 0:
        raise ValueError(f"the watchdog is a positive number of seconds: got {watchdog!r}")


def strategy_of(schedule: "Schedule | Strategy | str") -> Strategy:
    """Return the strategy of a schedule, or of its text."""
    if isinstance(schedule, str):
        schedule = Schedule.parse(schedule)
    return schedule.start() if isinstance(schedule, Schedule) else schedule


@contextmanager
def _without_gc() -> Iterator[None]:
    """Keep the garbage collector off: finalizers would run in the middle of a step, in one run and not in the next."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
