"""Coroutines inside of others: run with variables of their own, and waiting for each other."""

from __future__ import annotations

from collections.abc import Coroutine, Generator
from collections.abc import Set as AbstractSet
from contextvars import Context
from types import coroutine
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


@coroutine
def drive(context: Context, made: Coroutine[Any, Any, Any]) -> Generator[Any, Any, Any]:
    """Run a coroutine inside of the present task, with other variables than that has."""
    try:
        wanted = context.run(made.send, None)
    except StopIteration as stop:
        return stop.value
    return (yield from drive_on(context, made, wanted))


@coroutine
def drive_on(context: Context, made: Coroutine[Any, Any, Any], wanted: Any) -> Generator[Any, Any, Any]:
    """Run the rest of a coroutine, of which the first step has been made, and wants this of the event loop."""
    run, send = context.run, made.send
    try:
        while True:
            try:
                given = yield wanted
            except BaseException as error:  # noqa: ASYNC103, BLE001 - it is the coroutine's
                wanted = run(made.throw, error)
            else:
                wanted = run(send, given)
    except StopIteration as stop:
        return stop.value
