"""The start-up self-test: does the simulator know the asyncio, the trio and the AnyIO that it finds?

It runs once for each backend, before the first simulation, and takes a few milliseconds. First every private attribute
that `_loops/` touches is looked for, then small programs are run whose outcome is known.

Every private attribute of other libraries that the simulator touches, all of them in `_loops/`:

| of | attribute | what for |
|---|---|---|
| asyncio | `BaseEventLoop._run_once`, `_ready`, `_scheduled`, `_selector`, `_process_events`, `_stopping`, `_write_to_self`, `_check_closed`, `_timer_cancelled_count`, `_asyncgens`, `_default_executor` | the order of steps, timers, inputs |
| asyncio | `Handle._callback`, `_args`, `_cancelled`, `_run`, `TimerHandle._when`, `_scheduled`, `Task._log_destroy_pending`, `_log_traceback` | the steps of tasks, and their end |
| trio | `_core._run._r`, `_ALLOW_DETERMINISTIC_SCHEDULING`, `GLOBAL_RUN_CONTEXT.runner` | the order of steps |
| trio | `Runner.runq`, `entry_queue`, `trio_token`, `waiting_for_idle`, `deadlines`, `io_manager`, `init`, `TrioToken._create`, `EntryQueue.task` | steps, calls from threads |
| trio | `_timeouts.sleep_until`, `Task._next_send_fn`, `_next_send`, `_cancel_status`, `_counter`, `Nursery._children`, `CancelStatus._scope`, `_parent` | the scopes around a task |
| asyncio | `_get_running_loop` | to refuse a loop in a loop |
| AnyIO | `_core._eventloop.set_current_async_library`, `reset_current_async_library` | which loop is the current one |
| AnyIO | `_backends._asyncio.TaskGroup.__aexit__` and the `_tasks` it waits for | which wake-ups are no steps |
| AnyIO | `_backends._asyncio._threadpool_workers`, `_task_states`, `TaskState.cancel_scope`, `CancelScope._parent_scope` | the scopes around a task |
| AnyIO | `run_sync_in_worker_thread`, `run_async_from_thread` and `wait_all_tasks_blocked` of the backend classes | threads, quiescence |
"""

import asyncio
import importlib
import math
import sys
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from typing import Any, Final, final

import anyio
from anyio.lowlevel import checkpoint

from ._kernel import Abandoned, Kernel, Loop
from ._loops import AsyncioLoop, TrioLoop
from ._schedule import FIFO, DepthFirst, Strategy

_ASYNCIO: Final = {
    "asyncio:SelectorEventLoop": ("_run_once", "_process_events", "_write_to_self", "_check_closed"),
    "asyncio:Handle": ("_run",),
    "asyncio": ("_get_running_loop",),
    "asyncio:Task": ("get_coro", "uncancel", "cancelling", "_log_traceback", "_log_destroy_pending"),
    "anyio._backends._asyncio": ("_threadpool_workers",),
    "anyio._backends._asyncio:TaskGroup": ("__aexit__",),
    "anyio._backends._asyncio:AsyncIOBackend": (
        "run_sync_in_worker_thread",
        "run_async_from_thread",
        "wait_all_tasks_blocked",
    ),
    "anyio._backends._asyncio:CancelScope": ("deadline", "shield", "_parent_scope"),
    "anyio._backends._asyncio:TaskState": ("cancel_scope",),
    "anyio._backends._asyncio:_task_states": ("get",),
}
_LOOP: Final = (
    "_ready",
    "_scheduled",
    "_selector",
    "_stopping",
    "_timer_cancelled_count",
    "_asyncgens",
    "_default_executor",
)
_TRIO: Final = {
    "trio._core._run:Runner": (
        "init",
        "runq",
        "entry_queue",
        "trio_token",
        "waiting_for_idle",
        "deadlines",
        "io_manager",
    ),
    "trio._timeouts": ("sleep_until",),
    "trio._core._run:EntryQueue": ("task", "run_sync_soon", "size"),
    "trio._core._run": ("_r", "_ALLOW_DETERMINISTIC_SCHEDULING", "GLOBAL_RUN_CONTEXT"),
    "trio.lowlevel:TrioToken": ("_create",),
    "trio._core._run:CancelStatus": ("_scope", "_parent"),
    "trio._core._run:Task": ("_cancel_status", "_counter", "_next_send", "_next_send_fn"),
    "anyio._backends._trio:TrioBackend": ("run_sync_in_worker_thread", "run_async_from_thread"),
}

_passed: set[str] = set()


@final
class UnsupportedVersionError(RuntimeError):
    """The simulator does not know the insides of an installed version of asyncio, trio or AnyIO.

    Args:
        backend: `asyncio` or `trio`.
        reason: what is not as it was.
    """

    def __init__(self, backend: str, reason: str) -> None:
        self.backend = backend
        self.reason = reason
        super().__init__(
            f"agentcore.testing does not know this version of {backend}: {reason} ({_versions(backend)}); install versions "
            "that it knows, or a newer agentcore. Programs run without the simulator as they did"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle with both arguments."""
        return type(self), (self.backend, self.reason)


def _versions(backend: str) -> str:
    found = [f"Python {sys.version.split()[0]}", f"anyio {version('anyio')}"]
    if backend == "trio":
        found.append(f"trio {version('trio')}")
    return ", ".join(found)


def check(backend: str) -> None:
    """Check that the simulator works here; does nothing once it has found that it does.

    Args:
        backend: `asyncio` or `trio`.

    Raises:
        UnsupportedVersionError: it does not.
        ModuleNotFoundError: trio is not installed; the extra is `agentcore-runtime[trio]`.
    """
    if backend in _passed:
        return
    _check_attributes(backend)
    _check_behaviour(backend)
    _passed.add(backend)


def _check_attributes(backend: str) -> None:
    if backend == "trio":
        importlib.import_module("trio")
    for place, names in (_ASYNCIO if backend == "asyncio" else _TRIO).items():
        for name in names:
            if not _has(place, name):
                raise UnsupportedVersionError(backend, f"{place} has no {name}")
    if backend == "asyncio":
        loop = asyncio.SelectorEventLoop()
        missing = [name for name in _LOOP if not hasattr(loop, name)]
        handle = loop.call_soon(print)
        timer = loop.call_later(1, print)
        missing += [name for name in ("_callback", "_cancelled") if not hasattr(handle, name)]
        missing += [name for name in ("_when", "_scheduled") if not hasattr(timer, name)]
        loop.close()
        if missing:
            raise UnsupportedVersionError(backend, f"its loop has no {', '.join(missing)}")


def _has(place: str, name: str) -> bool:
    module, _, attribute = place.partition(":")
    try:
        owner: Any = importlib.import_module(module)
        if attribute:
            owner = getattr(owner, attribute)
    except (ImportError, AttributeError):
        return False
    return hasattr(owner, name) or (isinstance(owner, type) and name in getattr(owner, "__annotations__", ()))


def _check_behaviour(backend: str) -> None:
    value = _run(backend, _clock, FIFO.start())
    if value != (86_400.0, True, True):
        raise UnsupportedVersionError(backend, f"virtual time gives {value!r}")
    orders: set[tuple[int, ...]] = set()
    search = DepthFirst()
    for _run_number in range(100):
        if search.exhausted:
            break
        orders.add(_run(backend, _two_by_two, search))
        search.advance()
    # Two tasks of two steps each: 4! / (2! 2!) orders.
    if len(orders) != math.comb(4, 2):
        raise UnsupportedVersionError(backend, f"{len(orders)} orders where there are {math.comb(4, 2)}")


def _run(backend: str, function: Callable[[], Awaitable[Any]], strategy: Strategy) -> Any:
    """Run a function on the bare loop: whatever goes wrong is an unknown version."""

    def make_kernel(wake: Callable[[], object]) -> Kernel:
        return Kernel(strategy, max_steps=1_000, watchdog=5.0, wake=wake, abort=abort)

    def abort(_calls: int) -> None:
        raise Abandoned

    async def main() -> None:
        values.append(await function())

    values: list[Any] = []
    loop: Loop = AsyncioLoop(make_kernel) if backend == "asyncio" else TrioLoop(make_kernel)
    with loop.inside():
        try:
            loop.start(main)
            loop.pump(lambda: False)
        except (Exception, Abandoned) as error:
            raise UnsupportedVersionError(backend, f"a program ends with {loop.kernel.failure or error!r}") from error
        finally:
            loop.close()
    return values[0]


async def _clock() -> tuple[float, bool, bool]:
    began = anyio.current_time()
    event = anyio.Event()
    async with anyio.create_task_group() as group:
        group.start_soon(event.wait)
        await anyio.wait_all_tasks_blocked()
        waited = anyio.current_time() == began and not event.is_set()
        with anyio.move_on_after(86_400) as scope:
            await anyio.sleep_forever()
        event.set()
    return anyio.current_time() - began, waited, scope.cancelled_caught


async def _two_by_two() -> tuple[int, ...]:
    order: list[int] = []

    async def work(number: int) -> None:
        order.append(number)
        await checkpoint()
        order.append(number)

    async with anyio.create_task_group() as group:
        group.start_soon(work, 1)
        group.start_soon(work, 2)
    return tuple(order)
