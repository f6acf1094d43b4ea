"""The trio loop of a simulation: the real one, but for its clock, its order, and what it does when nothing can run."""

import importlib
import queue
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from anyio._core._eventloop import reset_current_async_library, set_current_async_library

from agentcore.testing._frames import close, runs
from agentcore.testing._kernel import Abandoned, Kernel, Main, Scope, SimTask
from agentcore.testing._threads import asking, gated

if TYPE_CHECKING:
    import random

# An extra: loaded when the first simulation needs it.
trio: Any = None


class TrioLoop:
    """The trio side of a simulation: a guest run, whose host is the caller of `pump`."""

    def __init__(self, make_kernel: Callable[[Callable[[], object]], Kernel]) -> None:
        _install_trio()
        self.kernel = make_kernel(self._wake)
        self._ticks: deque[Callable[[], object]] = deque()
        self._from_threads: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._outcome: Any = None
        self._runner: Any = None
        self._running: SimTask | None = None
        self._done = False
        self._stopped = False
        self._told = False
        self._ambient: dict[str, Any] = {}
        self._hooks = (None, None)
        self.unretrieved: list[str] = []

    @contextmanager
    def inside(self) -> Iterator[None]:
        ambient, hooks = trio._core._run.GLOBAL_RUN_CONTEXT.__dict__, sys.get_asyncgen_hooks()
        outer = dict(ambient)
        token = set_current_async_library("trio")
        _exchange(ambient, self._ambient)
        sys.set_asyncgen_hooks(*self._hooks)
        try:
            yield
        finally:
            self._ambient, self._hooks = dict(ambient), sys.get_asyncgen_hooks()  # type: ignore[assignment]
            _exchange(ambient, outer)
            sys.set_asyncgen_hooks(*hooks)
            reset_current_async_library(token)

    def start(self, main: Main) -> None:
        _hook_trio(1)
        try:
            trio.lowlevel.start_guest_run(
                main,
                run_sync_soon_threadsafe=self._from_threads.put,
                run_sync_soon_not_threadsafe=self._ticks.append,
                done_callback=self._finished,
                host_uses_signal_set_wakeup_fd=True,
                clock=_make_clock(self),
                instruments=[_make_instrument(self)],
            )
        except BaseException:
            _hook_trio(-1)
            raise

    def _finished(self, outcome: Any) -> None:
        self._outcome = outcome
        _hook_trio(-1)

    def _wake(self) -> None:
        try:
            self._runner.entry_queue.run_sync_soon(_nothing, idempotent=True)
        except (trio.RunFinishedError, OSError):
            return  # a thread that was abandoned, and has outlived the simulation

    def pump(self, over: Callable[[], bool]) -> None:
        self._stopped = False
        while not over() and not self._stopped and self._outcome is None:
            # Empty while trio waits for inputs, in a thread of its own.
            tick = self._ticks.popleft() if self._ticks else self._from_threads.get()
            tick()
        self._end_step()
        if self._outcome is not None and not self._told:
            self._told = True
            self._raise_inner()

    def _raise_inner(self) -> None:
        try:
            self._outcome.unwrap()
        except trio.TrioInternalError as error:
            if isinstance(error.__cause__, Abandoned):
                self._disarm()
                raise error.__cause__ from None
            raise

    def _disarm(self) -> None:
        """Keep what an abandoned run leaves from complaining when it is collected, in the middle of something else."""
        for task in tuple(self._runner.tasks):
            for nursery in task.child_nurseries:
                getattr(nursery, "_children", set()).clear()  # set when it is made, so it is not known to be there
        for task in sorted(self._runner.tasks, key=lambda task: task._counter, reverse=True):
            close(task.coro)

    def stop(self) -> None:
        self._stopped = True

    def close(self) -> None:
        self.kernel.wind_up()
        try:
            if self._outcome is None and self._runner is not None:
                self.pump(lambda: False)
        except (Abandoned, BaseExceptionGroup):
            return  # what there is to tell has been told

    def scopes(self, task: SimTask) -> Iterator[Scope]:
        status = task.native._cancel_status
        if runs(task.coroutine, trio._timeouts.sleep_until.__code__):
            status = status._parent  # a sleep is a scope of its own there
        while status is not None:
            yield status._scope
            status = status._parent

    def cancel_natively(self, task: SimTask) -> None:
        raise NotImplementedError("trio has no way to cancel a task but scopes")

    uncancel = cancel_natively

    # Called by trio, through the clock, the instrument and the hook of its random order.

    def began(self) -> None:
        runner = self._runner = trio._core._run.GLOBAL_RUN_CONTEXT.runner
        create = trio.lowlevel.TrioToken._create
        runner.trio_token = create(_Entrance(runner.entry_queue, self.kernel))

    def spawned(self, task: Any) -> None:
        if task.coro.cr_code not in _INFRASTRUCTURE:
            self.kernel.adopt(task, task.coro, lambda: task.name)

    def exited(self, task: Any) -> None:
        if self._running is not None and self._running.native is task:
            self._done = True
        else:
            self.kernel.tasks.pop(task, None)

    def sleep_time(self) -> float:
        self._end_step()
        runner = self._runner
        # Stopped: trio asks once more within the tick that `pump` returns after. The run queue: the end of the step may
        # have made tasks ready. The entry queue: trio's own task for calls from elsewhere is about to be woken up.
        if self._stopped or self.kernel.any_ready or runner.runq or runner.entry_queue.size():
            return 0.0
        if runner.waiting_for_idle:
            # As trio does once nothing has happened for as long as they ask for; here, nothing can happen meanwhile.
            cushion = runner.waiting_for_idle.keys()[0][0]
            while runner.waiting_for_idle and runner.waiting_for_idle.keys()[0][0] == cushion:
                _key, task = runner.waiting_for_idle.popitem(0)
                runner.reschedule(task)
            return 0.0
        io = runner.io_manager.statistics()
        inputs = io.tasks_waiting_read + io.tasks_waiting_write > 1  # one is trio's own, for calls from threads
        # Not the deadline as given: the end of the step may have changed it.
        threads = trio.testing.active_thread_count() > self.kernel.threads.awaited
        return self.kernel.idle(runner.deadlines.next_deadline(), inputs=inputs, threads=threads)

    def order(self, batch: list[Any]) -> None:
        """Leave one task in the batch: the one that goes next."""
        own = self._arrive(batch)
        now = self.kernel.now
        self._end_step()
        if self.kernel.now > now:
            self._runner.deadlines.expire(self.kernel.now)
        # What the end of the step has made ready: a sweep may have cancelled a scope.
        own += self._arrive(list(self._runner.runq))
        self._runner.runq.clear()
        batch[:] = own
        if not own and (task := self.kernel.next()) is not None:
            self._running = task
            batch.append(task.native)
            if self.kernel.forcing and not task.native.child_nurseries:
                task.native._next_send_fn, task.native._next_send = task.coroutine.throw, Abandoned()

    def _arrive(self, batch: list[Any]) -> list[Any]:
        own = []
        for native in batch:
            task = self.kernel.tasks.get(native)
            if task is None:
                own.append(native)
            else:
                self.kernel.arrived(task)
        return own

    def _end_step(self) -> None:
        if self._running is not None:
            done, self._done, self._running = self._done, False, None
            self.kernel.ended(done=done)


class _Entrance:
    """Where other threads call into trio: their calls are kept back until nothing else can run."""

    def __init__(self, entry_queue: Any, kernel: Kernel) -> None:
        self._queue = entry_queue
        self._kernel = kernel

    def run_sync_soon(self, function: Any, *args: Any, idempotent: bool = False) -> None:
        call = partial(self._queue.run_sync_soon, function, *args, idempotent=idempotent)
        if self._queue.done or self._kernel.threads.at_home():
            call()  # raises RunFinishedError once the run is over
        else:
            self._kernel.threads.post(call)


def _exchange(ambient: dict[str, Any], own: dict[str, Any]) -> None:
    ambient.clear()
    ambient.update(own)


def _nothing() -> None:
    """Do nothing: the call itself wakes up trio."""


def _make_clock(loop: TrioLoop) -> Any:
    class Clock(trio.abc.Clock):  # type: ignore[misc]
        simulation = loop

        def start_clock(self) -> None:
            """Do nothing: virtual time begins at 0."""

        def current_time(self) -> float:
            return loop.kernel.now

        def deadline_to_sleep_time(self, deadline: float) -> float:  # noqa: ARG002 - see `sleep_time`
            return loop.sleep_time()

    return Clock()


def _make_instrument(loop: TrioLoop) -> Any:
    class Instrument(trio.abc.Instrument):  # type: ignore[misc]
        def before_run(self) -> None:
            loop.began()

        def task_spawned(self, task: Any) -> None:
            loop.spawned(task)

        def task_exited(self, task: Any) -> None:
            loop.exited(task)

    return Instrument()


_INFRASTRUCTURE: set[Any] = set()
_hooks = 0
_hook_lock = threading.Lock()
_was: Any = None


class _Order:
    """Stands in for trio's random source: orders the tasks of simulations, and leaves those of other runs as they were."""

    def __init__(self, original: "random.Random") -> None:
        self._original = original

    def shuffle(self, batch: list[Any]) -> None:
        clock: Any = trio._core._run.GLOBAL_RUN_CONTEXT.runner.clock
        simulation = getattr(clock, "simulation", None)
        if isinstance(simulation, TrioLoop):
            simulation.order(batch)
        elif self._original.random() < 0.5:
            batch.reverse()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)


def _hook_trio(change: int) -> None:
    """Take over the order of trio's tasks while at least one simulation runs, and give it back afterwards."""
    global _hooks, _was  # noqa: PLW0603 - trio's own switch is global too
    module: Any = trio._core._run
    with _hook_lock:
        if _hooks == 0:
            _was = module._r, module._ALLOW_DETERMINISTIC_SCHEDULING
            module._r, module._ALLOW_DETERMINISTIC_SCHEDULING = _Order(module._r), True
        _hooks += change
        if _hooks == 0:
            module._r, module._ALLOW_DETERMINISTIC_SCHEDULING = _was


def current_kernel() -> Kernel | None:
    """Return the kernel of the simulation whose trio runs in this thread, None if none does."""
    if trio is None:
        return None
    runner = getattr(trio._core._run.GLOBAL_RUN_CONTEXT, "runner", None)
    simulation = getattr(runner.clock, "simulation", None) if runner is not None else None
    return simulation.kernel if isinstance(simulation, TrioLoop) else None


def _install_trio() -> None:
    global trio  # noqa: PLW0603 - an import that waits until it is needed
    trio = importlib.import_module("trio")
    importlib.import_module("trio.testing")
    from anyio._backends._trio import TrioBackend  # noqa: PLC0415

    backend: Any = TrioBackend
    with _hook_lock:
        if getattr(backend, "_agentcore", False):
            return
        run: Any = trio._core._run
        _INFRASTRUCTURE.update({run.Runner.init.__code__, run.EntryQueue.task.__code__})
        backend.run_sync_in_worker_thread = gated(
            backend.run_sync_in_worker_thread.__func__, current_kernel, lambda _kernel: object()
        )
        backend.run_async_from_thread = asking(backend.run_async_from_thread.__func__)
        backend._agentcore = True
