"""Jobs that wait for each other in a pool for coroutines: whether any of them can go on."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from typing import Any, Protocol

from agentcore.pools._jobs import QUEUED, SETTLED, Job


class Runs(Protocol):
    """A pool, as a job in its queue sees it."""

    @property
    def _jobs_now(self) -> AbstractSet[Job]:
        """What its workers are at."""

    @property
    def _has_room(self) -> bool:
        """Whether a worker is free, or will be as soon as the event loop comes to it."""


def will_begin(pool: Runs) -> bool:
    """Tell whether some job of a full pool can end: if not, what is in its queue waits for ever.

    The jobs that can end are the least set such that each waits for nothing but jobs in it, and places that they leave.
    """
    if pool._has_room or any(not job.awaits for job in pool._jobs_now):
        return True
    jobs: dict[Job, None] = {}
    found = list(pool._jobs_now)
    while found:
        job = found.pop()
        if job not in jobs:
            jobs[job] = None
            for wanted, other in job.awaits.items():
                found += other._jobs_now if wanted.state is QUEUED else [wanted]
    ending: set[Job] = set()
    grew = True
    while grew and ending.isdisjoint(pool._jobs_now):
        more = {job for job in jobs if job not in ending and all(_comes(*one, ending) for one in job.awaits.items())}
        grew = bool(more)
        ending |= more
    return not ending.isdisjoint(pool._jobs_now)


def _comes(wanted: Job, pool: Runs, ending: set[Job]) -> bool:
    if wanted.state is QUEUED:
        return pool._has_room or not ending.isdisjoint(pool._jobs_now)
    return wanted.state is SETTLED or wanted in ending


async def wait_for(awaitable: Any) -> Any:
    return await awaitable
