"""The thread of a pool that watches the time: deadlines of jobs, and workers that hang.

A thread and no task, for all this has to happen while the event loop is blocked as well. There is none until the first job
that has a limit.
"""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable
from typing import Final, final

from agentcore import _interop
from agentcore.pools._jobs import SETTLED, Job


@final
class Manager:
    """Calls back when the time of something is over.

    Args:
        name: of the thread.
        expire: called with each job whose deadline has passed, unless it is settled.
        check: ends what has run for too long; returns in how many seconds to look again, None for never.
    """

    def __init__(self, name: str, expire: Callable[[Job], object], check: Callable[[], float | None]) -> None:
        self._expire = expire
        self._check = check
        self._changed = threading.Condition()
        self._deadlines: list[tuple[float, int, Job]] = []
        self._serial = itertools.count()
        self._is_over = False
        self._thread: Final = _interop.start_thread(self._watch, name)

    def add(self, job: Job, live: int) -> None:
        """Watch the deadline of a job.

        Args:
            job: with a deadline.
            live: how many jobs there are that have not ended, at least; all others are forgotten now and then.
        """
        assert job.deadline is not None  # the caller has looked  # noqa: S101
        with self._changed:
            if len(self._deadlines) > 64 + 2 * live:
                self._deadlines = [entry for entry in self._deadlines if entry[2].state is not SETTLED]
                heapq.heapify(self._deadlines)
            heapq.heappush(self._deadlines, (job.deadline, next(self._serial), job))
            if self._deadlines[0][2] is job:
                self._changed.notify()

    def stop(self) -> None:
        """Watch nothing any more."""
        with self._changed:
            self._is_over = True
            self._changed.notify()

    def join(self) -> None:
        """Wait for the thread, which has been told to stop. Not in the thread itself."""
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _watch(self) -> None:
        while True:
            due = self._due()
            if due is None:
                return
            for job in due:
                self._expire(job)
            del due

    def _due(self) -> list[Job] | None:
        """Wait for deadlines to pass; return the jobs, or None when this is over."""
        while True:
            look = self._check()  # without the lock: it takes that of the pool, under which `add` is called
            with self._changed:
                if self._is_over:
                    return None
                now = _interop.SYSTEM.monotonic()
                jobs = []
                while self._deadlines and self._deadlines[0][0] <= now:
                    jobs.append(heapq.heappop(self._deadlines)[2])
                if jobs:
                    return jobs
                waits = [] if look is None else [look]
                if self._deadlines:
                    waits.append(self._deadlines[0][0] - now)
                self._changed.wait(min(waits, default=None))
