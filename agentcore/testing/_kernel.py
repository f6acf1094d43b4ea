"""The heart of a simulation: the clock, the tasks that are ready, and what happens when none is.

It knows no event loop. A loop tells it which tasks have become ready and asks which one goes next; when none is ready it
asks what to do, and the answer is at most one of: let in the result of a thread, wait for real, move the clock, fail.
"""

import inspect
import math
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final, Protocol

import attrs

from agentcore._interop import SYSTEM

from ._failures import DeadlockError, LivelockError, SimulationFailure, StallError, Waiting
from ._frames import describe, stop_of
from ._schedule import FIFO, Strategy
from ._threads import Threads

# How long inputs from outside (sockets, pipes) may take to arrive before the clock moves on without them, in real seconds.
IO_GRACE: Final = 0.01
# A call that gives way this often without ever waiting is no single stop any more.
GIVES_WAY: Final = 8
# Steps in which nothing moves the clock, before that is called a livelock.
STEPS_PER_INSTANT: Final = 50_000
STEPS_PER_INSTANT_AND_TASK: Final = 100
# Steps that the tasks of a failed simulation have to end in.
STEPS_TO_END: Final = 2_000
STEPS_TO_END_AND_TASK: Final = 50


class Abandoned(BaseException):
    """The tasks of a failed simulation do not end, not even when they are cancelled without their shields."""


class SimTask:
    """One task of a simulation.

    Attributes:
        serial: its number, in the order of the starts.
        native: what the event loop calls it.
        coroutine: what it runs.
        payload: what the event loop needs to run its next step.
        ready: whether it can run.
        stops: how often it has stopped.
    """

    __slots__ = ("_name", "call", "coroutine", "gave_way", "native", "payload", "ready", "serial", "stops")

    def __init__(self, serial: int, native: Any, coroutine: Any, name: Callable[[], str]) -> None:
        self.serial = serial
        self.native = native
        self.coroutine = coroutine
        self._name = name
        self.payload: Any = None
        self.ready = False
        self.stops = 0
        self.call: Any = None
        self.gave_way = 0

    @property
    def name(self) -> str:
        """What it is called; asked for late, for some are named after they have been made."""
        return self._name() if self.serial else "main"

    def where(self) -> Waiting:
        """Return where the task is."""
        if inspect.iscoroutine(self.coroutine) and inspect.getcoroutinestate(self.coroutine) == inspect.CORO_CREATED:
            return Waiting(self.serial, self.name, "its start", "", "")
        place, call, file = describe(self.coroutine)
        return Waiting(self.serial, self.name, place, call, file)


@attrs.frozen
class Step:
    """One step of a trace: a task goes on from a place.

    Attributes:
        task: the number of the task.
        stop: how often it had stopped.
        now: the virtual time, in seconds.
        place: where it had stopped: `function:line in call`, or `start`.
        switched: whether it goes although another one would have, had each run until it had to wait.
    """

    task: int
    stop: int
    now: float
    place: str
    switched: bool = False

    def __str__(self) -> str:
        """Return one line, with a star if the step is a switch."""
        mark = "*" if self.switched else " "
        return f"{mark} {self.now:.9g} s  task {self.task} from {self.place}"


def _nothing(_task: SimTask) -> None:
    """Do nothing: what a hook does by default."""


class Kernel:
    """Clock and order of one simulation.

    Args:
        strategy: chooses the next task.
        max_steps: how many steps the simulation may take.
        max_steps_per_instant: how many of them while the clock stands still, apart from some for each task.
        watchdog: how long it may wait for something outside of it, in real seconds.
        wake: wakes up the event loop from another thread.
        abort: ends the simulation after a failure; called with the number of calls before, 0 at first.
        trace: whether to note every step.
    """

    def __init__(
        self,
        strategy: Strategy,
        *,
        max_steps: int,
        max_steps_per_instant: int = STEPS_PER_INSTANT,
        watchdog: float,
        wake: Callable[[], object],
        abort: Callable[[int], object],
        trace: bool = False,
    ) -> None:
        self.strategy = strategy
        # Not looked for if nobody asks: ten thousand tasks may be ready.
        self._asks_current = getattr(strategy, "asks_current", True)
        self.now = 0.0
        self.steps = 0
        self.decisions = 0
        self.tasks: dict[Any, SimTask] = {}
        self.current: SimTask | None = None
        self.failure: SimulationFailure | None = None
        self.holds = 0
        self.inline_threads = False
        self.threads = Threads(wake)
        self.tracing = trace
        self.trace: list[Step] = []
        self.names: dict[int, str] = {}
        self.invariants: list[Callable[[], SimulationFailure | None]] = []
        self.idle_waiters: list[Callable[[], object]] = []
        # For sweeps: called when a task has come to a stop, and before it goes on from one.
        self.stopped: Callable[[SimTask], object] = _nothing
        self.resuming: Callable[[SimTask], object] = _nothing
        self._max_steps = max_steps
        self._max_per_instant = max_steps_per_instant
        self._watchdog = watchdog
        self._abort = abort
        self._aborts = 0
        # Whether tasks have an error thrown in that they cannot take for a cancellation.
        self.forcing = False
        self._serial = 0
        self._ready: list[SimTask] = []
        self._unsorted = 0
        self._switched = False
        self._continues: SimTask | None = None
        self._instant_began = 0
        self._polled = False
        self._waiting_since: float | None = None

    # ------------------------------------------------------------ tasks

    def adopt(self, native: Any, coroutine: Any, name: Callable[[], str]) -> SimTask:
        """Number a new task."""
        task = self.tasks[native] = SimTask(self._serial, native, coroutine, name)
        self._serial += 1
        return task

    def arrived(self, task: SimTask, payload: Any = None) -> None:
        """Note that a task is ready."""
        task.payload = payload
        task.ready = True
        self._ready.append(task)
        self._unsorted += 1

    @property
    def any_ready(self) -> bool:
        """Whether a task can run."""
        return bool(self._ready)

    def where(self) -> tuple[Waiting, ...]:
        """Return where every task is."""
        return tuple(task.where() for task in self.tasks.values())

    # ------------------------------------------------------------ steps

    def next(self) -> SimTask | None:
        """Take the task that goes next from those that are ready; None if there is none."""
        ready = self._ready
        if not ready:
            return None
        if self._continues is not None:
            task, self._continues = self._continues, None
            ready.remove(task)
            self._unsorted -= 1
            task.ready = False
            return task
        if self._unsorted > 1:
            # Event loops keep the tasks of a scope in sets: within one step, the order of arrival is no order.
            # But whoever gives way does so at the end of his step, behind those whom he has woken up or started.
            recent = len(ready) - self._unsorted
            current = self.current
            ready[recent:] = sorted(ready[recent:], key=lambda task: (task is current, task.serial))
        self._unsorted = 0
        self._switched = False
        task = ready.pop() if len(ready) == 1 else ready.pop(self._choose(ready))
        task.ready = False
        self._begin(task)
        return task

    def _choose(self, ready: Sequence[SimTask]) -> int:
        self.decisions += 1
        current = self.current
        index = None
        if current is not None and current.ready and (self._asks_current or self.tracing):
            # Looked for from the end: whoever has just run and is ready again is one of the last.
            index = next(i for i in range(len(ready) - 1, -1, -1) if ready[i] is current)
        try:
            chosen = self.strategy.choose(ready, index)
            ready[chosen]
        except Exception as error:  # noqa: BLE001 - raised here it would be the event loop's
            text = f"the strategy has failed: {error!r}"
            self.fail(
                error if isinstance(error, SimulationFailure) else SimulationFailure(text, self.where(), self.now)
            )
            self.strategy = FIFO.start()
            chosen = 0
        self._switched = chosen != (index or 0)
        return chosen

    def _begin(self, task: SimTask) -> None:
        if self.tracing:
            self.names[task.serial] = task.name
            place = "start" if task.stops == 0 else " in ".join(filter(None, describe(task.coroutine)[:2]))
            self.trace.append(Step(task.serial, task.stops, self.now, place, self._switched))
        self.current = task
        self._polled = False
        self._waiting_since = None
        self.resuming(task)

    def ended(self, *, done: bool) -> None:
        """Note that the step of the current task is over."""
        task = self.current
        assert task is not None
        if done:
            self.tasks.pop(task.native, None)
            task.call = None
        elif not self._stops(task):
            return
        self.steps += 1
        if self.invariants and self.failure is None:
            for invariant in self.invariants:
                if (failure := invariant()) is not None:
                    self.fail(failure)
                    break
        if self.steps >= self._max_steps or self.steps - self._instant_began >= self._max_per_instant:
            self._check_steps()

    def _stops(self, task: SimTask) -> bool:
        _user, call = stop_of(task.coroutine)
        # None: the task's own code gives way itself, and each time is a stop.
        if call is not None and call is task.call and task.ready and task.gave_way < GIVES_WAY:
            # The same call of the event loop or of AnyIO gives way once more: no stop of its own. The other event loop
            # does without it, and a schedule has to fit both. The task goes on at once.
            task.gave_way += 1
            self._continues = task
            return False
        task.call = call
        task.gave_way = 0
        task.stops += 1
        self.stopped(task)
        return True

    def _check_steps(self) -> None:
        if self.failure is not None:
            if self.steps >= self._max_steps:
                self._force()
            return
        if self.steps >= self._max_steps:
            self.fail(
                LivelockError(f"no end after {self.steps} steps; allow more by max_steps", self.where(), self.now)
            )
        instant = self.steps - self._instant_began
        if instant >= self._max_per_instant + STEPS_PER_INSTANT_AND_TASK * len(self.tasks):
            self.fail(
                LivelockError(
                    f"{instant} steps, and the clock stands still; allow more by max_steps_per_instant",
                    self.where(),
                    self.now,
                )
            )

    # ------------------------------------------------------------ failing

    def fail(self, failure: SimulationFailure) -> None:
        """Note what was found, and end the simulation: everything in it is cancelled."""
        if self.failure is None:
            self.failure = failure
            self._allow_an_end()
            self.tracing = False  # what follows is a consequence
        self._end()

    def wind_up(self) -> None:
        """Let what is left come to its end: nothing is watched any more, but that it does end."""
        self.strategy = FIFO.start()
        self.invariants.clear()
        self.tracing = False
        self.stopped = self.resuming = _nothing
        self._allow_an_end()
        self._aborts = 0
        self.forcing = False

    def _allow_an_end(self) -> None:
        self._max_steps = self.steps + STEPS_TO_END + STEPS_TO_END_AND_TASK * len(self.tasks)

    def _end(self) -> None:
        self._aborts += 1
        if self._aborts > 3:
            self._force()
        else:
            self._abort(self._aborts - 1)

    def _force(self) -> None:
        """End tasks that cancellation does not end, and give up if that does not help either."""
        if self.forcing:
            raise Abandoned
        self.forcing = True
        self._allow_an_end()

    # ------------------------------------------------------------ nothing can run

    def idle(self, deadline: float, *, inputs: bool, threads: bool = False) -> float:
        """Decide what happens now that no task is ready.

        Args:
            deadline: when the next timer is due, infinity if there is none.
            inputs: whether a task waits for a socket or a pipe.
            threads: whether a task waits for a thread that `Threads` does not know of.

        Returns:
            The real seconds to wait for something from outside; 0 if something can go on at once.
        """
        if self.idle_waiters:
            waiters, self.idle_waiters = self.idle_waiters, []
            for wake in waiters:
                wake()
            return 0.0
        if self.threads.release():
            return 0.0
        working = self.threads.busy or threads
        if working or self.holds:
            return self._wait("a worker thread" if working else "sim.hold()")
        if inputs and not self._polled:
            self._polled = True
            return IO_GRACE
        if deadline < math.inf:
            self.move_to(deadline)
            return 0.0
        if inputs:
            return self._wait("a socket or a pipe")
        if self.failure is not None:
            self._end()
        else:
            self.fail(DeadlockError("deadlock: every task waits, and nothing will wake one", self.where(), self.now))
        return 0.0

    def move_to(self, when: float) -> None:
        """Move the clock forward."""
        if when > self.now:
            self.now = when
            self._instant_began = self.steps

    def _wait(self, what: str) -> float:
        now = SYSTEM.monotonic()
        if self._waiting_since is None:
            self._waiting_since = now
        left = self._waiting_since + self._watchdog - now
        if left > 0:
            return min(left, 0.1)
        self._waiting_since = None
        text = f"{what} kept the simulation waiting for {self._watchdog:g} real seconds"
        self.fail(StallError(text, self.where(), self.now))
        return 0.0


Main = Callable[[], Coroutine[Any, Any, None]]


class Scope(Protocol):
    """What the scopes of both backends have in common."""

    deadline: float
    shield: bool


class Loop(Protocol):
    """What a simulation needs of an event loop."""

    kernel: Kernel
    unretrieved: list[str]

    def inside(self) -> AbstractContextManager[None]:
        """Have this loop be the one of the thread: around all that follows, whatever loop the caller has."""

    def start(self, main: Main) -> None:
        """Make ready to run `main`."""

    def pump(self, over: Callable[[], bool]) -> None:
        """Run until `over()`, which becomes true in a step of the main task, or until the main task has ended."""

    def stop(self) -> None:
        """Have `pump` return after this step."""

    def close(self) -> None:
        """Let go of everything."""

    def scopes(self, task: SimTask) -> Iterator[Scope]:
        """Yield the cancel scopes around a task, the innermost one first."""

    def cancel_natively(self, task: SimTask) -> None:
        """Cancel a task as those do who know nothing of scopes."""

    def uncancel(self, task: SimTask) -> None:
        """Take such a cancellation back, once it has arrived."""
