"""The one place that knows which event loop runs: clock, random source, threads, host tasks, wake-ups.

Everything else speaks AnyIO. What is injected under test (time, randomness, identifiers) and what leaves the event loop
for a thread goes through here, so that there is exactly one seam for each.

Private attributes of other libraries that this module touches: none.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager, suppress
from contextvars import Context, ContextVar
from typing import Any, Final, Protocol, TypeVar, TypeVarTuple, cast

import anyio
import anyio.to_thread
import attrs
from anyio.lowlevel import RunVar, current_token

Args = TypeVarTuple("Args")
T = TypeVar("T")


class HandOff(Protocol):
    """One job that runs in a thread, as somebody sees it who drives the clock: that must stand still meanwhile."""

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function to call in the thread instead."""

    def rest(self) -> None:
        """Tell that it waits for a thread that does something else."""

    def resume(self) -> None:
        """Tell that a thread has come for it."""

    def leave(self) -> None:
        """Tell that nobody waits for the job any more, whether it has ended or not. In the event loop."""


@attrs.frozen(eq=False)
class Sources:
    """Where time and chance come from.

    Attributes:
        monotonic: seconds on a clock that never goes back; only differences mean something.
        wall: seconds since the epoch, UTC.
        random: for jitter and sampling.
        identifier: gives the next identifier; None for those that no other process gives.
        hand_off: told of each job that is handed to a thread that AnyIO knows nothing of; None if nobody wants to know.
    """

    monotonic: Callable[[], float]
    wall: Callable[[], float]
    random: random.Random
    identifier: Callable[[], str] | None = None
    hand_off: Callable[[], HandOff] | None = None


SYSTEM: Final = Sources(monotonic=time.monotonic, wall=time.time, random=random.Random())  # noqa: S311 - not for secrets

# A context variable and no global: several simulations may run in one process, each in threads and tasks of its own.
# Hot paths read `sources.get()` themselves, everything else calls the functions below.
sources: Final[ContextVar[Sources]] = ContextVar("agentcore_sources", default=SYSTEM)


def monotonic() -> float:
    """Return the seconds of the monotonic clock."""
    return sources.get().monotonic()


# The same clock for the hottest paths, which call `_interop.clock()`: as long as no block of `use_sources` is open in the
# whole process, it is the system's own, without the look into the context, which takes as long as the clock itself.
clock: Callable[[], float] = SYSTEM.monotonic
_replacements = 0
_replacing: Final = threading.Lock()


def _count_replacements(change: int) -> None:
    global _replacements, clock  # noqa: PLW0603 - process-wide by nature
    with _replacing:
        _replacements += change
        clock = monotonic if _replacements else SYSTEM.monotonic


@contextmanager
def use_sources(replacement: Sources) -> Generator[None]:
    """Take time and chance from elsewhere inside the block, and in the tasks and threads that are started there."""
    _count_replacements(1)
    token = sources.set(replacement)
    try:
        yield
    finally:
        _count_replacements(-1)
        sources.reset(token)


def wall_time() -> float:
    """Return the seconds since the epoch."""
    return sources.get().wall()


_counter = itertools.count(1)
_prefix = ""


def _renew_prefix() -> None:
    """Draw the process's own part of identifiers, again after a fork: two processes must never share one."""
    global _prefix, _counter  # noqa: PLW0603 - process-wide by nature
    # From the operating system and not from `sources`: identifiers are made in modules' bodies too, long before a
    # simulation has begun. 48 bits: among a million processes a shared prefix has a chance of 0.2 %.
    _prefix = f"{int.from_bytes(os.urandom(6), 'big'):012x}-"
    _counter = itertools.count(1)


_renew_prefix()
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_renew_prefix)


def new_id() -> str:
    """Return an identifier that no other call gives, here or in another process: a prefix of the process, a counter."""
    if (own := sources.get().identifier) is not None:
        return own()
    return f"{_prefix}{next(_counter)}"


_threads: Final[RunVar[anyio.CapacityLimiter]] = RunVar("agentcore_threads")


async def forget_cancellations() -> None:
    """Take back what the present task of asyncio has been cancelled by asyncio's own ways, and swallow what is on its way."""
    asyncio = sys.modules["asyncio"]
    task = asyncio.current_task()
    while task.cancelling():
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(0)
        task.uncancel()


async def run_in_thread(function: Callable[[*Args], T], *args: *Args) -> T:
    """Run a function in a worker thread and return what it returns.

    Leaving by cancellation waits for the function, which `anyio.from_thread.check_cancelled` tells that it should end:
    no thread outlives its scope unnoticed. The number of threads is bounded by who calls, not here: with AnyIO's limit of
    40 for everything, 40 functions that wait for another one in a thread would wait for ever.
    """
    try:
        limiter = _threads.get()
    except LookupError:
        limiter = anyio.CapacityLimiter(math.inf)
        _threads.set(limiter)
    return await anyio.to_thread.run_sync(function, *args, limiter=limiter)


def is_in_loop() -> bool:
    """Tell whether an event loop runs here."""
    try:
        current_token()
    except anyio.NoEventLoopError:
        return False
    return True


def split_cancellation(error: BaseException) -> tuple[bool, BaseException | None]:
    """Tell cancellation from failure.

    Returns:
        Whether the error is, or contains, a cancellation; and what it is or contains besides, None if nothing.
    """
    if isinstance(error, GeneratorExit):  # the coroutine is being closed; there need not be an event loop any more
        return True, None
    cancelled = anyio.get_cancelled_exc_class()  # noqa: ASYNC118 - asked for twice below, on a path that is hot
    if isinstance(error, cancelled):
        return True, None
    if isinstance(error, BaseExceptionGroup):
        cancellations, rest = error.split(cancelled)
        if cancellations is not None:
            return True, rest
    return False, error


def cancellation_cause(error: BaseException) -> str | None:
    """Tell why something was cancelled.

    Returns:
        None if the error is no cancellation; ``deadline`` if the deadline of a scope passed; ``other`` for everything else,
        also for asyncio's own ways to cancel, which give no reason.
    """
    # Those of both, and not of the loop that runs here: threads without a loop are cancelled as well.
    found = (
        getattr(sys.modules.get("asyncio"), "CancelledError", None),
        getattr(sys.modules.get("trio"), "Cancelled", None),
    )
    if not isinstance(error, tuple(cls for cls in found if cls is not None)):
        return None
    return "deadline" if _is_by_deadline(error) else "other"


def is_native_cancellation(error: BaseException) -> bool:
    """Tell whether this is a cancellation by asyncio's own ways, ``Task.cancel()`` or the end of the loop, and by no scope."""
    cancelled = getattr(sys.modules.get("asyncio"), "CancelledError", None)
    if cancelled is None or not isinstance(error, cancelled):
        return False
    # What AnyIO cancels it says so of.
    message = error.args[0] if error.args else None
    return not (isinstance(message, str) and message.startswith("Cancelled via cancel scope "))


def cancel_requests() -> int:
    """Return how often the running task has been asked to end by asyncio's own ways, less what has been taken back.

    More of them than before tell that it is being cancelled, by ``Task.cancel()`` or what is made of that, which no scope
    of AnyIO knows of. Scopes take back what they have asked for themselves. On trio, and outside of every task, 0.
    """
    current_task = getattr(sys.modules.get("asyncio"), "current_task", None)
    if current_task is None:
        return 0
    try:
        task = current_task()
    except RuntimeError:  # no loop of asyncio runs here
        return 0
    return 0 if task is None else int(task.cancelling())


def _is_by_deadline(error: BaseException) -> bool:
    # trio says so in an attribute. But where a task group of AnyIO on trio makes one cancellation of many, only the many
    # have it, which are the cause of the one.
    source = getattr(error, "source", None)
    if source == "unknown" and isinstance(error.__cause__, BaseExceptionGroup):
        return any(_is_by_deadline(leaf) for leaf in leaves_of(error.__cause__))
    if source is not None:
        return bool(source == "deadline")
    # AnyIO on asyncio says so in the message, and task groups hand it on.
    message = error.args[0] if error.args else None
    return isinstance(message, str) and message.endswith("; reason: deadline exceeded")


def leaves_of(error: BaseException) -> Iterator[BaseException]:
    """Go through the exceptions of a group and of the groups in it; through itself if it is none."""
    left = [error]
    while left:  # not by recursion: a group may be nested deeper than the stack
        one = left.pop()
        if isinstance(one, BaseExceptionGroup):
            left.extend(reversed(one.exceptions))
        else:
            yield one


def current_owner() -> object:
    """Return what a permit belongs to: the task that calls, or the thread outside of every task. It can be weakly referenced."""
    # trio first: in its guest mode there is an asyncio loop around it, whose task is not the one that runs.
    for name, find in (("trio.lowlevel", "current_task"), ("asyncio", "current_task")):
        # While another thread imports it for the first time it is there, and has nothing in it.
        current_task = getattr(sys.modules.get(name), find, None)
        if current_task is not None:
            try:
                task: object = current_task()
            except RuntimeError:  # this event loop does not run here
                continue
            if task is not None:
                return task
    return threading.current_thread()


def fresh_context() -> Context:
    """Return a context of which only the clock and the random source are the caller's."""
    context = Context()
    context.run(sources.set, sources.get())
    return context


def spawn_host_task(function: Callable[[], Coroutine[Any, Any, None]], name: str) -> object:
    """Start a task that belongs to the event loop and to no task group: trio's system task, a task of asyncio.

    The loop cancels it when its main task has ended. It must raise nothing but that cancellation: on trio anything else
    is an internal error. Keep what is returned: asyncio itself does not.
    """
    context = fresh_context()
    token = current_token().native_token
    system_task: Callable[..., object] | None = getattr(sys.modules.get("trio.lowlevel"), "spawn_system_task", None)
    if system_task is not None and not hasattr(token, "create_task"):
        return system_task(function, name=name, context=context)
    # A loop of asyncio, found by AnyIO, for trio has none.
    return token.create_task(function(), name=name, context=context)  # type: ignore[attr-defined]


@functools.cache
def _locals_of_trio() -> Any:
    # trio's own, for it goes with the run, whatever stands in it.
    return sys.modules["trio.lowlevel"].RunVar("agentcore_locals")


def loop_locals() -> dict[str, Any]:
    """Return a dictionary that belongs to the running event loop, and is gone with it."""
    loop = current_token().native_token
    if hasattr(loop, "create_task"):
        # With a loop of asyncio itself: it owns none of its tasks, so it must own what does. A table besides, even a weak
        # one, would keep a loop that was closed with tasks pending for ever, for those know their loop.
        return cast("dict[str, Any]", vars(loop).setdefault("_agentcore_locals", {}))
    variable = _locals_of_trio()
    try:
        return cast("dict[str, Any]", variable.get())
    except LookupError:
        found: dict[str, Any] = {}
        variable.set(found)
        return found


def context_with(variables: Context) -> Context:
    """Return a context with the variables of another one, but for those that say which loop runs."""
    context = fresh_context()
    for variable, value in variables.items():
        # Of AnyIO and of sniffio: in a thread that has run another loop they speak of that one.
        if "async_library" not in variable.name:
            context.run(variable.set, value)
    return context


def local_clock() -> Callable[[], float | None]:
    """Return the clock of the running event loop, which gives None wherever that is not the loop that runs.

    So one call answers two questions of a hot path: whether it is the right place, and what time it is.
    """
    token: Any = current_token().native_token
    if hasattr(token, "create_task"):
        running, now = sys.modules["asyncio"].get_running_loop, token.time
    else:
        running, now = sys.modules["trio.lowlevel"].current_trio_token, sys.modules["trio"].current_time

    def local_time() -> float | None:
        try:
            return now() if running() is token else None
        except RuntimeError:  # no loop of this kind runs here
            return None

    return local_time


def wake_up_function() -> Callable[[Callable[[], object]], None]:
    """Return a function that, called in any thread or in a signal handler, has the running loop call another one soon."""
    token = current_token().native_token
    # trio's token and asyncio's loop; both calls are documented as safe in signal handlers.
    post: Callable[[Callable[[], object]], Any] = getattr(token, "run_sync_soon", None) or token.call_soon_threadsafe  # type: ignore[attr-defined]

    def wake_up(callback: Callable[[], object]) -> None:
        post(callback)

    return wake_up


def start_thread(function: Callable[[], object], name: str) -> threading.Thread:
    """Start a thread that the end of the interpreter does not wait for. Who starts it joins it."""
    # With the clock of whoever starts it, and no other variable.
    thread = threading.Thread(target=fresh_context().run, args=(function,), name=name, daemon=True)
    thread.start()
    return thread


def is_time_replaced() -> bool:
    """Tell whether time and chance come from elsewhere here, as in a simulation."""
    return _replacements > 0 and sources.get() is not SYSTEM


@functools.cache
def _library() -> Any:
    """Return the variable that says which event loop runs; None if there is none."""
    return getattr(sys.modules.get("sniffio"), "current_async_library_cvar", None)


def forget_library(context: Context) -> None:
    """Have a copy of the current context not say which event loop runs: in a thread of its own there is none."""
    variable = _library()
    if variable is not None and variable.get() is not None:
        context.run(variable.set, None)
