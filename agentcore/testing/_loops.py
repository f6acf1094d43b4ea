"""The one file that knows the insides of asyncio, of trio and of AnyIO.

Each loop is the real one, but for its clock, its order, and what it does when nothing can run. What is touched:

| of | attribute | what for |
|---|---|---|
| asyncio | `BaseEventLoop._run_once`, `_ready`, `_scheduled`, `_selector`, `_process_events`, `_stopping`, `_write_to_self`, `_check_closed`, `_timer_cancelled_count`, `_asyncgens`, `_default_executor` | the order of steps, timers, inputs |
| asyncio | `Handle._callback`, `_args`, `_cancelled`, `_run`, `TimerHandle._when`, `_scheduled`, `Task._log_destroy_pending` | the steps of tasks, and their end |
| trio | `_core._run._r`, `_ALLOW_DETERMINISTIC_SCHEDULING`, `GLOBAL_RUN_CONTEXT.runner` | the order of steps |
| trio | `Runner.runq`, `entry_queue`, `trio_token`, `waiting_for_idle`, `deadlines`, `io_manager`, `init`, `TrioToken._create`, `EntryQueue.task` | steps, calls from threads |
| trio | `_timeouts.sleep_until`, `Task._next_send_fn`, `_next_send`, `_cancel_status`, `CancelStatus._scope`, `_parent` | the scopes around a task |
| AnyIO | `_backends._asyncio.TaskGroup.__aexit__` and the `_tasks` it waits for | which wake-ups are no steps |
| AnyIO | `_backends._asyncio._threadpool_workers`, `_task_states`, `TaskState.cancel_scope`, `CancelScope._parent_scope` | the scopes around a task |
| AnyIO | `run_sync_in_worker_thread`, `run_async_from_thread` and `wait_all_tasks_blocked` of the backend classes | threads, quiescence |

`_check.py` tries all of it before the first simulation and says clearly when a version is too new or too old.
"""

import asyncio
import concurrent.futures
import heapq
import importlib
import math
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio

from ._frames import runs
from ._kernel import Abandoned, Kernel, Main, Scope, SimTask
from ._threads import asking, gated

if TYPE_CHECKING:
    import random

# An extra: loaded when the first simulation needs it.
trio: Any = None
# Callbacks that do nothing but call themselves again (AnyIO's delivery of cancellations) run so often between two steps.
SPINS = 16


# -------------------------------------------------------------------------------------------------------- asyncio


class _Inbox:
    """What is ready in an asyncio loop: steps of tasks go to the kernel, plain callbacks stay here in their order."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self.plain: deque[asyncio.Handle] = deque()
        self.again: deque[asyncio.Handle] = deque()
        self.running: Any = None

    def append(self, handle: asyncio.Handle) -> None:
        callback = handle._callback  # type: ignore[attr-defined]
        native = getattr(callback, "__self__", None)
        # A step has no name or is called `task_wakeup`; `call_soon(task.cancel)` is none.
        if isinstance(native, asyncio.Task) and getattr(callback, "__name__", "task_wakeup") in _STEPS:
            task = self._kernel.tasks.get(native)
            if task is None:
                task = self._kernel.adopt(native, native.get_coro(), native.get_name())
            elif _waits_for_children(task, handle):
                self.plain.append(handle)
                return
            self._kernel.arrived(task, handle)
        elif self.running is not None and callback == self.running:
            self.again.append(handle)
        else:
            self.plain.append(handle)

    def __len__(self) -> int:
        return len(self.plain) + self._kernel.any_ready

    def clear(self) -> None:
        self.plain.clear()
        self.again.clear()


_STEPS = frozenset({"task_wakeup", "__step", "__wakeup", "_Task__step", "_Task__wakeup"})


def _waits_for_children(task: SimTask, handle: asyncio.Handle) -> bool:
    """Tell whether a task that is cancelled waits at the end of a task group for tasks that are not done.

    AnyIO wakes it up on asyncio, only to have it wait again; on trio it does not. So that wake-up is no step.
    """
    args = handle._args
    if not args or not args[0].cancelled():
        return False
    from anyio._backends._asyncio import TaskGroup  # noqa: PLC0415 - only where asyncio runs

    node = runs(task.call, TaskGroup.__aexit__.__code__)
    return node is not None and bool(node.cr_frame.f_locals["self"]._tasks)


class _AsyncioLoop(asyncio.SelectorEventLoop):
    """An asyncio loop whose clock and order are the kernel's."""

    _asyncgens: Any
    _check_closed: Callable[[], None]
    _process_events: Callable[[Any], None]
    _scheduled: list[Any]
    _selector: Any
    _stopping: bool
    _timer_cancelled_count: int
    _write_to_self: Callable[[], None]

    def __init__(self, kernel: Kernel) -> None:
        # Needed by the base class already: it asks the time.
        self.kernel = kernel
        super().__init__()
        self.inbox = self._ready = _Inbox(kernel)
        self._spins = 0

    def time(self) -> float:
        return self.kernel.now

    def _run_once(self) -> None:
        kernel, inbox = self.kernel, self.inbox
        while not self._stopping:
            self._call_due()
            if inbox.plain:
                handle = inbox.plain.popleft()
                if not handle._cancelled:
                    inbox.running = handle._callback  # type: ignore[attr-defined]
                    handle._run()
                    inbox.running = None
                continue
            task = kernel.next()
            if task is None:
                self._nothing_ready()
                continue
            step, task.payload = task.payload, None
            step._run()
            del step
            kernel.ended(done=task.native.done())
            self._spins = 0
            self._call_again()

    def _call_again(self) -> None:
        if self.inbox.again:
            self.inbox.plain.extend(self.inbox.again)
            self.inbox.again.clear()

    def _call_due(self) -> None:
        timers = self._scheduled
        while timers and (timers[0]._cancelled or timers[0]._when <= self.kernel.now):
            timer = heapq.heappop(timers)
            timer._scheduled = False
            if timer._cancelled:
                self._timer_cancelled_count -= 1
            else:
                self.inbox.plain.append(timer)
        if self._timer_cancelled_count > 100 and self._timer_cancelled_count * 2 > len(timers):
            # Timeouts that were never needed: taken out once they are more than half of the heap.
            for timer in timers:
                if timer._cancelled:
                    timer._scheduled = False
            self._scheduled = [timer for timer in timers if not timer._cancelled]
            heapq.heapify(self._scheduled)
            self._timer_cancelled_count = 0

    def _nothing_ready(self) -> None:
        if self.inbox.again and self._spins < SPINS:
            self._spins += 1
            self._call_again()
            return
        timers = self._scheduled
        # Always there: the pipe by which other threads wake up the loop.
        inputs = len(self._selector.get_map()) > 1
        seconds = self.kernel.idle(timers[0]._when if timers else math.inf, inputs=inputs)
        if seconds:
            self._process_events(self._selector.select(seconds))
        self._call_again()

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Any, *args: Any, context: Any = None
    ) -> asyncio.Handle:
        if self.kernel.threads.at_home():
            return self.call_soon(callback, *args, context=context)
        self._check_closed()
        handle = asyncio.Handle(callback, args, self, context)
        self.kernel.threads.post(partial(self.inbox.append, handle))
        return handle

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Any, *args: Any
    ) -> asyncio.Future[Any]:
        job = self.kernel.threads.start()
        if executor is None or isinstance(executor, concurrent.futures.ThreadPoolExecutor):
            func = job.wrap(func)
        future = super().run_in_executor(executor, func, *args)
        future.add_done_callback(lambda _future: self.kernel.threads.leave(job))
        return future


class AsyncioLoop:
    """The asyncio side of a simulation."""

    def __init__(self, make_kernel: Callable[[Callable[[], object]], Kernel], *, debug: bool = False) -> None:
        _install_asyncio()
        self.kernel = make_kernel(lambda: self._loop._write_to_self())  # noqa: PLW0108 - it is not there yet
        self._loop = _AsyncioLoop(self.kernel)
        self._loop.set_debug(debug)
        self._loop.set_exception_handler(self._note)
        self._main: asyncio.Task[None] | None = None
        self.unretrieved: list[str] = []

    def _note(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self.unretrieved.append(f"{context['message']}: {error!r}" if error else str(context["message"]))

    def start(self, main: Main) -> None:
        self._main = self._loop.create_task(main(), name="main")
        self._main.add_done_callback(self._over)

    def pump(self, over: Callable[[], bool]) -> None:
        assert self._main is not None
        while not over() and not self._main.done():
            self._loop.run_forever()
        if self._main.done() and not self._main.cancelled() and (error := self._main.exception()):
            raise error

    def _over(self, _task: object) -> None:
        self._loop.stop()

    def stop(self) -> None:
        self._loop.stop()

    def close(self) -> None:
        loop = self._loop
        self.kernel.wind_up()
        if self._main is not None:
            self._main.remove_done_callback(self._over)
        try:
            left = asyncio.all_tasks(loop)
            for task in left:
                task.cancel()
            if left:
                loop.run_until_complete(asyncio.wait(left))
            loop.run_until_complete(_stop_workers())
            if loop._asyncgens:
                loop.run_until_complete(loop.shutdown_asyncgens())
            if getattr(loop, "_default_executor", None) is not None:
                loop.run_until_complete(loop.shutdown_default_executor())
        except Abandoned:
            # What cannot be cancelled is closed: its `finally` runs as far as it does not wait.
            for task in asyncio.all_tasks(loop):
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                _close(task.get_coro())
            self.kernel.wind_up()
            loop.run_until_complete(_stop_workers())
        finally:
            loop.close()

    def scopes(self, task: SimTask) -> Iterator[Scope]:
        from anyio._backends._asyncio import _task_states  # noqa: PLC0415 - only where asyncio runs

        state = _task_states.get(task.native)
        scope = state.cancel_scope if state is not None else None
        while scope is not None:
            yield scope
            scope = scope._parent_scope

    def cancel_natively(self, task: SimTask) -> None:
        task.native.cancel()

    def uncancel(self, task: SimTask) -> None:
        while task.native.cancelling():
            task.native.uncancel()


async def _stop_workers() -> None:
    """End AnyIO's idle threads: they end with a root task, which the loop is stopped too early for, or which never ends."""
    from anyio._backends._asyncio import _threadpool_workers  # noqa: PLC0415 - only where asyncio runs

    for worker in tuple(_threadpool_workers.get(())):
        worker.stop()


def _close(coroutine: Any) -> None:
    try:
        coroutine.close()
    except (RuntimeError, ValueError):
        # It waits again while it is closed, or is running: there is nothing more that could be done for it.
        return


# ----------------------------------------------------------------------------------------------------------- trio


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
        self.unretrieved: list[str] = []

    def start(self, main: Main) -> None:
        hook_trio(1)
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
            hook_trio(-1)
            raise

    def _finished(self, outcome: Any) -> None:
        self._outcome = outcome
        hook_trio(-1)

    def _wake(self) -> None:
        try:
            self._runner.entry_queue.run_sync_soon(_nothing, idempotent=True)
        except trio.RunFinishedError:
            return  # a thread that was abandoned, and has outlived the simulation

    def pump(self, over: Callable[[], bool]) -> None:
        self._stopped = False
        while not over() and not self._stopped and self._outcome is None:
            # Empty while trio waits for inputs, in a thread of its own.
            tick = self._ticks.popleft() if self._ticks else self._from_threads.get()
            tick()
        if self._outcome is not None and not self._told:
            self._told = True
            self._raise_inner()

    def _raise_inner(self) -> None:
        try:
            self._outcome.unwrap()
        except trio.TrioInternalError as error:
            if isinstance(error.__cause__, Abandoned):
                raise error.__cause__ from None
            raise

    def stop(self) -> None:
        self._stopped = True

    def close(self) -> None:
        self.kernel.wind_up()
        try:
            if self._outcome is None and self._runner is not None:
                self.pump(lambda: False)
        except (Abandoned, BaseExceptionGroup):
            for task in list(self.kernel.tasks.values()):
                _close(task.coroutine)

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
            self.kernel.adopt(task, task.coro, task.name)

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
            return 1.0  # trio wakes them up by itself, without waiting
        io = runner.io_manager.statistics()
        inputs = io.tasks_waiting_read + io.tasks_waiting_write > 1  # one is trio's own, for calls from threads
        # Not the deadline as given: the end of the step may have changed it.
        return self.kernel.idle(runner.deadlines.next_deadline(), inputs=inputs)

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
            if self.kernel.forcing and not any(nursery.child_tasks for nursery in task.native.child_nurseries):
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


def hook_trio(change: int) -> None:
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


# ---------------------------------------------------------------------------------------------------------- AnyIO


def current_kernel() -> Kernel | None:
    """Return the kernel of the simulation that runs in this thread, None outside of one."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        loop = None
    if loop is not None:
        return loop.kernel if isinstance(loop, _AsyncioLoop) else None
    if not _INFRASTRUCTURE:
        return None
    runner = getattr(trio._core._run.GLOBAL_RUN_CONTEXT, "runner", None)
    simulation = getattr(runner.clock, "simulation", None) if runner is not None else None
    return simulation.kernel if isinstance(simulation, TrioLoop) else None


def current_task() -> SimTask:
    """Return the task of a simulation that is running.

    Raises:
        RuntimeError: no simulation runs here.
    """
    kernel = current_kernel()
    if kernel is None or kernel.current is None:
        raise RuntimeError("no simulation runs here; use @simulate, run_sim or Simulation.run")
    return kernel.current


def _install_asyncio() -> None:
    from anyio._backends._asyncio import AsyncIOBackend  # noqa: PLC0415

    backend: Any = AsyncIOBackend
    with _hook_lock:
        if getattr(backend, "_agentcore", False):
            return
        blocked = backend.wait_all_tasks_blocked.__func__

        async def wait_all_tasks_blocked(cls: Any) -> None:
            kernel = current_kernel()
            if kernel is None:
                await blocked(cls)
                return
            # The original looks every 0.1 s, which is for ever in virtual time, or no time at all.
            idle = anyio.Event()
            kernel.idle_waiters.append(idle.set)
            await idle.wait()

        backend.wait_all_tasks_blocked = classmethod(wait_all_tasks_blocked)
        backend.run_sync_in_worker_thread = gated(backend.run_sync_in_worker_thread.__func__, current_kernel)
        backend.run_async_from_thread = asking(backend.run_async_from_thread.__func__)
        backend._agentcore = True


def _install_trio() -> None:
    global trio  # noqa: PLW0603 - an import that waits until it is needed
    trio = importlib.import_module("trio")
    from anyio._backends._trio import TrioBackend  # noqa: PLC0415

    backend: Any = TrioBackend
    with _hook_lock:
        if getattr(backend, "_agentcore", False):
            return
        run: Any = trio._core._run
        _INFRASTRUCTURE.update({run.Runner.init.__code__, run.EntryQueue.task.__code__})
        backend.run_sync_in_worker_thread = gated(backend.run_sync_in_worker_thread.__func__, current_kernel)
        backend.run_async_from_thread = asking(backend.run_async_from_thread.__func__)
        backend._agentcore = True
