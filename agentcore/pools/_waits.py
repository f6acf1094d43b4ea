"""Threads that wait for jobs, and the question whether such a wait could ever end.

A worker that waits for a job of its own pool, an event loop that is blocked in `PoolFuture.result` while the job calls back
into it: each of these waits for itself, maybe through several pools. Waits with a timeout end by themselves, so only those
without one are looked at, and only when one begins: whoever closes the circle gets the error.
"""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final, Protocol, TypeAlias

from agentcore.errors import WorkerPoolDeadlockError
from agentcore.pools._jobs import QUEUED, RUNNING, Job

_lock: Final = threading.Lock()


class Crew(Protocol):
    """Has the workers that a job may wait for."""

    @property
    def name(self) -> str:
        """Of the pool."""

    def threads(self) -> list[int] | None:
        """Return the threads of the workers; None if there can be further ones, or ones that wait for nothing here."""


# What each thread waits for: a job with its pool, or another thread: one whose event loop it calls into.
_Wanted: TypeAlias = "tuple[Job, Crew] | int"
_waiting: Final[dict[int, _Wanted]] = {}


@contextmanager
def waiting_for(wanted: _Wanted, what: str) -> Generator[None]:
    """Note that this thread waits for something inside the block.

    Args:
        wanted: a job and its pool, or the thread of an event loop.
        what: who waits, for the message.

    Raises:
        WorkerPoolDeadlockError: it would never end.
    """
    me = threading.get_ident()
    with _lock:
        before = _waiting.get(me)  # in a finaliser, or in a signal handler, one wait may begin inside of another
        _waiting[me] = wanted
        if not _can_end(wanted, {me}):
            _restore(me, before)
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
            _restore(me, before)


def _restore(me: int, before: _Wanted | None) -> None:
    if before is None:
        _waiting.pop(me, None)
    else:
        _waiting[me] = before


def _can_end(wanted: _Wanted, waiting: set[int]) -> bool:
    """Tell whether a wait can end, given threads of which none goes on before it has."""
    if isinstance(wanted, int):
        return _goes_on(wanted, waiting)
    job, crew = wanted
    if job.state is RUNNING:
        thread = getattr(job.worker, "ident", None)  # gone if it has just ended
        return thread is None or _goes_on(thread, waiting)
    if job.state is QUEUED:
        threads = crew.threads()
        return threads is None or any(_goes_on(thread, waiting) for thread in threads)
    return True


def _goes_on(thread: int, waiting: set[int]) -> bool:
    if thread in waiting:
        return False
    wanted = _waiting.get(thread)
    return wanted is None or _can_end(wanted, waiting | {thread})


def _describe(wanted: _Wanted) -> str:
    return f"a call into a blocked event loop (thread {wanted})" if isinstance(wanted, int) else f"{wanted[0]!r}"
