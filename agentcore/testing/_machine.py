"""A state machine of Hypothesis whose rules drive a simulation."""

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, ClassVar, Self, TypeVar, TypeVarTuple, cast

from ._schedule import FIFO, Ready, Schedule, Strategy
from ._simulation import BACKENDS, Backend, Simulation
from ._strategies import schedules, stateful

# pytest leaves the frames of this file out of the traceback: the reader's own rule comes first.
__tracebackhide__ = True

Args = TypeVarTuple("Args")
T = TypeVar("T")


class _Order:
    """An order that is known only after the simulation has begun."""

    def __init__(self) -> None:
        self.strategy: Strategy = FIFO.start()

    def choose(self, ready: Sequence[Ready], current: int | None) -> int:
        return self.strategy.choose(ready, current)


class SimMachine(stateful.RuleBasedStateMachine):
    """Drives one simulation for each example, from rules that are synchronous.

        class PoolMachine(SimMachine):
            @initialize(size=st.integers(1, 3))
            def open(self, size):
                self.pool = self.enter(Pool, size)

            @rule(seconds=st.floats(0, 10))
            def work(self, seconds):
                self.sim.run(self.pool.submit, anyio.sleep, seconds)

            @rule()
            def wait(self):
                self.sim.run(anyio.sleep, 5)

            @invariant()
            def is_bounded(self):
                assert self.pool.busy <= self.pool.size

        TestPoolOnAsyncio = PoolMachine.on("asyncio").TestCase
        TestPoolOnTrio = PoolMachine.on("trio").TestCase

    Between two calls of `sim.run` time stands still and no task runs; to let it pass is a rule like others. What the
    simulation finds, such as a deadlock, is the failure of the rule that it came up in, with the place where each task waits.
    What is left behind at the end of an example is a failure as well.

    Hypothesis draws the order of the tasks with a rule of its own, `follow`. It runs rules marked `initialize` in any order:
    those that come before it run in the order of an event loop.
    """

    backend: ClassVar[Backend] = "asyncio"
    """Where the simulations run."""
    options: ClassVar[dict[str, Any]] = {}
    """Further arguments of `Simulation`. With a `schedule` among them, that is the order of every example."""

    def __init__(self) -> None:
        super().__init__()
        # What is being handled around the example: no failure of it.
        self._around = sys.exception()
        self._order = _Order()
        self._simulation: Simulation | None = None

    @classmethod
    def on(cls, backend: Backend) -> type[Self]:
        """Return the same machine for another backend, with the settings that this one has now.

        Args:
            backend: `asyncio` or `trio`.

        Raises:
            ValueError: it is neither.
        """
        if backend not in BACKENDS:
            raise ValueError(f"a machine runs on one of {', '.join(BACKENDS)}: got {backend!r}")
        members = {"backend": backend, "__module__": cls.__module__, "__doc__": cls.__doc__}
        machine = cast("type[Self]", type(f"{cls.__name__}On{backend.capitalize()}", (cls,), members))
        machine.TestCase.settings = cls.TestCase.settings
        return machine

    @property
    def sim(self) -> Simulation:
        """The simulation of this example. Not for `__init__`: nobody would close it if that raises."""
        if self._simulation is None:
            self._simulation = Simulation(self.backend, **{"schedule": self._order, **self.options})
        return self._simulation

    @stateful.initialize(schedule=schedules())
    def follow(self, schedule: Schedule) -> None:
        """Follow an order from now on."""
        self._order.strategy = schedule.start()

    def enter(
        self,
        function: Callable[[*Args], AbstractAsyncContextManager[T, Any] | AbstractContextManager[T, Any]],
        *args: *Args,
    ) -> T:
        """Enter a context manager in the simulation, and leave it when the example ends, the last one first.

        In between, rules run inside of it. In an example that has failed it is left by cancellation.

        Args:
            function: makes the context manager, synchronous or not: ``self.enter(AgentRuntime)``,
                ``self.enter(inject, plan, targets)``.
            *args: its arguments.

        Returns:
            What entering it gives.

        Raises:
            BaseException: whatever comes of making and entering it. What it raises later, because a task of it has failed, is
                raised by the `sim.run` in which that happens, and every block is left then.
        """
        return self.sim.enter(function, *args)

    def finish(self) -> None:
        """Check what must hold in the end: override it. Does nothing by default.

        Called at the end of each example that has not failed, before what was entered is left. As with invariants, not before
        all rules marked `initialize` have run.
        """

    def teardown(self) -> None:
        """End the example. Who overrides it calls this last; `finish` is the better place for checks."""
        error = sys.exception()
        failed = error is not None and error is not self._around
        try:
            if not failed and not self._initialize_rules_to_run:  # an attribute of the base class
                self.finish()
        except BaseException:
            failed = True
            raise
        finally:
            self._end(failed=failed)

    def _end(self, *, failed: bool) -> None:
        if self._simulation is None:
            return
        problem = self._simulation._end(cancel=failed)
        # What is found in a simulation that has failed already follows from that, and must not take its place.
        if problem is not None and not failed:
            raise problem
