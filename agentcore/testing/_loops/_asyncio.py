"""The asyncio loop of a simulation: the real one, but for its clock, its order, and what it does when nothing can run."""

import asyncio
import concurrent.futures
import heapq
import math
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any, Final

import anyio
from anyio._core._eventloop import reset_current_async_library, set_current_async_library

from agentcore.testing._failures import LivelockError
from agentcore.testing._frames import close, runs
from agentcore.testing._kernel import Abandoned, Kernel, Main, Scope, SimTask
from agentcore.testing._threads import asking, gated

# Callbacks that do nothing but call themselves again (AnyIO's delivery of cancellations) run so often between two steps.
SPINS: Final = 16
# So many callbacks between two steps are a livelock.
CALLBACKS: Final = 100_000

_install_lock = threading.Lock()


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
                task = self._kernel.adopt(native, native.get_coro(), native.get_name)
            elif _waits_for_children(task, handle):
                self.plain.append(handle)
                return
            self._kernel.arrived(task, handle)
        elif self.running is not None and callback == self.running:
            self.again.append(handle)
        else:
            self.plain.append(handle)

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

    for end in (TaskGroup.__aexit__, getattr(asyncio.TaskGroup, "_aexit", asyncio.TaskGroup.__aexit__)):
        node = runs(task.call, end.__code__)
        if node is not None:
            return bool(node.cr_frame.f_locals["self"]._tasks)
    return False


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
        self._spins = self._callbacks = 0
        # Tasks whose exception nobody had looked at when they ended.
        self.failed: list[asyncio.Task[Any]] = []

    def time(self) -> float:
        return self.kernel.now

    def _run_once(self) -> None:
        kernel, inbox = self.kernel, self.inbox
        while not self._stopping:
            self._call_due()
            if inbox.plain:
                self._callbacks += 1
                if self._callbacks > CALLBACKS:
                    self._too_many_callbacks()
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
            done = task.native.done()
            if done and task.native._log_traceback:
                self.failed.append(task.native)
            kernel.ended(done=done)
            self._spins = self._callbacks = 0
            self._call_again()

    def _too_many_callbacks(self) -> None:
        text = f"{CALLBACKS} callbacks without a step of a task: they call each other"
        self.kernel.failure = self.kernel.failure or LivelockError(text, self.kernel.where(), self.kernel.now)
        self.inbox.clear()
        raise Abandoned

    def _call_again(self) -> None:
        if self.inbox.again:
            self.inbox.plain.extend(self.inbox.again)
            self.inbox.again.clear()

    def _call_due(self) -> None:
        timers = self._scheduled
        due = []
        while timers and (timers[0]._cancelled or timers[0]._when <= self.kernel.now):
            timer = heapq.heappop(timers)
            timer._scheduled = False
            if timer._cancelled:
                self._timer_cancelled_count -= 1
            else:
                due.append(timer)
        if len(due) > 1:
            # A heap knows no order among equals. A deadline comes first, as on trio: who sleeps until then is cancelled.
            due.sort(key=lambda timer: (timer._when, getattr(timer._callback, "__name__", "") != "_timeout"))
        self.inbox.plain.extend(due)
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
        wrapped = threading.Event()
        if executor is None or isinstance(executor, concurrent.futures.ThreadPoolExecutor):
            function = job.wrap(func)

            def func(*args: Any) -> Any:
                # Not before the future is wrapped: a result that is there by then would not come from the thread.
                wrapped.wait()
                return function(*args)

        future = super().run_in_executor(executor, func, *args)
        wrapped.set()
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

    @contextmanager
    def inside(self) -> Iterator[None]:
        if asyncio._get_running_loop() is not None:
            raise RuntimeError(
                "an event loop runs in this thread already; await the function, or run the simulation in another thread"
            )
        token = set_current_async_library("asyncio")
        # A trio that this is called in says so in a variable of the thread, which AnyIO asks first.
        said = sys.modules["sniffio"].thread_local if "sniffio" in sys.modules else SimpleNamespace(name=None)
        name, said.name = said.name, None
        try:
            yield
        finally:
            said.name = name
            reset_current_async_library(token)

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
        if self._main is None:
            loop.close()
            return
        self._look_at_errors()
        self.kernel.wind_up()
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
            self.kernel.holds += 1  # the executor is shut down by a thread that nobody knows of
            if getattr(loop, "_default_executor", None) is not None:
                loop.run_until_complete(loop.shutdown_default_executor())
        except (Abandoned, asyncio.CancelledError):  # noqa: ASYNC103 - told elsewhere
            # What cannot be cancelled is closed: its `finally` runs as far as it does not wait.
            for task in asyncio.all_tasks(loop):
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                close(task.get_coro())
            self.kernel.wind_up()
            loop.run_until_complete(_stop_workers())
        finally:
            loop.close()

    def _look_at_errors(self) -> None:
        """Note what tasks have raised and nobody has looked at, without waiting for them to be collected."""
        for task in self._loop.failed:
            if task._log_traceback:
                self.unretrieved.append(
                    f"exception of task {task.get_name()!r} was never retrieved: {task.exception()!r}"
                )

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


async def _stop_workers() -> None:  # noqa: ASYNC124 - it has to run in the loop
    """End AnyIO's idle threads: they end with a root task, which the loop is stopped too early for, or which never ends."""
    from anyio._backends._asyncio import _threadpool_workers  # noqa: PLC0415 - only where asyncio runs

    for worker in tuple(_threadpool_workers.get(())):
        worker.stop()


def current_kernel() -> Kernel | None:
    """Return the kernel of the simulation whose asyncio loop runs in this thread, None if none does."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return None
    return loop.kernel if isinstance(loop, _AsyncioLoop) else None


def _install_asyncio() -> None:
    from anyio._backends._asyncio import AsyncIOBackend  # noqa: PLC0415

    backend: Any = AsyncIOBackend
    with _install_lock:
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
        backend.run_sync_in_worker_thread = gated(
            backend.run_sync_in_worker_thread.__func__,
            current_kernel,
            # The task, as AnyIO does: versions of it give back in the name of the task what a cancelled call has taken.
            lambda kernel: kernel.current.native,
        )
        backend.run_async_from_thread = asking(backend.run_async_from_thread.__func__)
        backend._agentcore = True
