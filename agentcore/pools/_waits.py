"""Threads that wait for jobs, and the question whether such a wait could ever end.

A worker that waits for a job of its own pool, an event loop that is blocked in `PoolFuture.result` while the job calls back
into it: each of these waits for itself, maybe through several pools. Waits with a timeout end by themselves, so only those
without one are looked at, and only when one begins: whoever closes the circle gets the error.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Final, Protocol, TypeAlias

import anyio

from agentcore._context import current_visitor
from agentcore.errors import WorkerPoolDeadlockError
from agentcore.pools._jobs import QUEUED, RUNNING, Job, current_worker

_lock: Final = threading.Lock()


class Crew(Protocol):
    """Has the workers that a job may wait for."""

    @property
    def name(self) -> str:
        """Of the pool."""

    def _threads(self) -> list[int] | None:
        """Return the threads of the workers; None if there can be further ones, or ones that wait for nothing here."""


# What a thread waits for: a job with its pool, or another thread: one whose event loop it calls into.
_Wanted: TypeAlias = "tuple[Job, Crew] | int"
# All that each thread waits for. Several things at once in the event loop of a job's own: it ends when all have come.
_waiting: Final[dict[int, list[_Wanted]]] = {}


@contextmanager
def waiting_for(wanted: _Wanted, what: str, *, thread: int | None = None) -> Generator[None]:
    """Note that a thread waits for something inside the block.

    Args:
        wanted: a job and its pool, or the thread of an event loop.
        what: who waits, for the message.
        thread: which; this one if omitted.

    Raises:
        WorkerPoolDeadlockError: it would never end.
    """
    me = threading.get_ident() if thread is None else thread
    with _lock:
        _waiting.setdefault(me, []).append(wanted)
        if not _goes_on(me):
            _forget(me, wanted)
            pool = wanted[1].name if isinstance(wanted, tuple) else None
            raise WorkerPoolDeadlockError(
                f"{what} would wait for ever: got {_describe(wanted)}, which waits for this very thread; "
                "await the job instead of blocking, use another pool for nested jobs, or pass a timeout",
                {"pool": pool},
            )
    try:
        yield
    finally:
        with _lock:
            _forget(me, wanted)


def waiting_in_worker(wanted: _Wanted, what: str) -> AbstractContextManager[None]:
    """Do as `waiting_for` if a worker does not go on before this: it has an event loop of its own, or has called into this one.

    Unless a scope ends the wait anyway, some time.
    """
    if not is_awaited_by_worker() or anyio.current_effective_deadline() < math.inf:
        return nullcontext()
    return waiting_for(wanted, what, thread=current_visitor.get())


def is_awaited_by_worker() -> bool:
    """Tell whether a worker does not go on before what is done here has ended."""
    return current_visitor.get() is not None or current_worker() is not None


def _forget(me: int, wanted: _Wanted) -> None:
    _waiting[me].remove(wanted)
    if not _waiting[me]:
        del _waiting[me]


def _goes_on(me: int) -> bool:
    """Tell whether a thread that waits goes on some time: the least set of threads that do, grown until nothing is added."""
    needs: dict[int, list[list[int]]] = {}
    found = [me]
    while found:
        thread = found.pop()
        if thread not in needs:
            needs[thread] = [one for wanted in _waiting.get(thread, ()) if (one := _any_of(wanted)) is not None]
            found += itertools.chain.from_iterable(needs[thread])
    going: set[int] = set()
    grew = True
    while grew and me not in going:
        more = {
            thread
            for thread, all_of in needs.items()
            if thread not in going and not any(going.isdisjoint(any_of) for any_of in all_of)
        }
        grew = bool(more)
        going |= more
    return me in going


def _any_of(wanted: _Wanted) -> list[int] | None:
    """Return the threads of which one has to go on for this to come; None if it comes in any case."""
    if isinstance(wanted, int):
        return [wanted]
    job, crew = wanted
    if job.state is RUNNING:
        ident = getattr(job.worker, "ident", None)  # gone if it has just ended
        return None if ident is None else [ident]
    return crew._threads() if job.state is QUEUED else None


def _describe(wanted: _Wanted) -> str:
    return f"a call into a blocked event loop (thread {wanted})" if isinstance(wanted, int) else f"{wanted[0]!r}"
