"""Whoever waits for a job of a pool for coroutines."""

from __future__ import annotations

from typing import Protocol, final

import anyio

from agentcore._interop._waiting import Waiter
from agentcore.pools._jobs import Job


class Employer(Protocol):
    """The pool, as a caller sees it."""

    def _withdraw(self, job: Job) -> bool:
        """End a job because its caller has been cancelled; tell whether he may go."""

    def _expire(self, job: Job) -> bool:
        """End a job whose time is over; tell whether its caller may go."""


@final
class Caller:
    """Whoever waits for a job, in the same event loop."""

    __slots__ = ("_job", "_pool", "_scope", "_waiter")

    def __init__(self, pool: Employer, job: Job, waiter: Waiter) -> None:
        self._pool = pool
        self._job = job
        self._waiter = waiter
        self._scope: anyio.CancelScope | None = None

    def job_ended(self, job: Job) -> None:
        """Have him go on."""
        del job
        self._waiter.wake()

    async def wait(self, timeout: float | None) -> None:
        """Wait for the end of the job."""
        if timeout is None:
            await self._waiter.wait(self._may_leave)
            return
        with anyio.move_on_after(timeout) as self._scope:
            await self._waiter.wait(self._may_leave)

    def _may_leave(self) -> bool:
        if self._scope is not None and self._scope.deadline <= anyio.current_time():
            return self._pool._expire(self._job)
        return self._pool._withdraw(self._job)
