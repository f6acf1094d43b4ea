"""Children that outlive their owner, and errors that go with the group."""

from __future__ import annotations

import anyio
from anyio.abc import TaskGroup

from tests.planted._bug import found_by_schedule, steps


class Session:
    """A session with a heartbeat that runs in the group of the server.

    The heartbeat makes the scope that ends it when it first runs: a session that is closed before forgets it.
    """

    def __init__(self) -> None:
        self._scope: anyio.CancelScope | None = None

    async def use(self, server: TaskGroup) -> None:
        server.start_soon(self._beat)
        await steps(2)
        if self._scope is not None:
            self._scope.cancel()

    async def _beat(self) -> None:
        with anyio.CancelScope() as self._scope:
            await anyio.Event().wait()  # for ever


class FixedSession(Session):
    """The scope is there before the heartbeat is started."""

    def __init__(self) -> None:
        self._scope = anyio.CancelScope()

    async def _beat(self) -> None:
        assert self._scope is not None
        with self._scope:
            await anyio.Event().wait()  # for ever


@found_by_schedule(Session, FixedSession)
async def child_outlives_its_owner(session: Session) -> None:
    # Nothing is asserted: a heartbeat that nobody ends keeps the server from ending.
    async with anyio.create_task_group() as server:
        server.start_soon(session.use, server)


class Crew:
    """Runs jobs, calls off the rest when one fails, and raises what went wrong.

    Only the first error is kept: that of a job which fails before the cancellation reaches it is never seen.
    """

    def __init__(self) -> None:
        self.raised: list[str] = []
        self._errors: list[ValueError] = []

    async def run(self, *starts: anyio.Event) -> None:
        async with anyio.create_task_group() as tg:
            for n, start in enumerate(starts):
                tg.start_soon(self._guard, start, f"job {n} failed", tg.cancel_scope)
        if self._errors:
            raise ExceptionGroup("jobs failed", self._errors)

    async def _guard(self, start: anyio.Event, message: str, scope: anyio.CancelScope) -> None:
        try:
            await self._job(start, message)
        except ValueError as error:
            self._keep(error)
            scope.cancel()

    async def _job(self, start: anyio.Event, message: str) -> None:
        await start.wait()
        self.raised.append(message)
        raise ValueError(message)

    def _keep(self, error: ValueError) -> None:
        self._errors = self._errors or [error]


class FixedCrew(Crew):
    """Every error is kept."""

    def _keep(self, error: ValueError) -> None:
        self._errors.append(error)


@found_by_schedule(Crew, FixedCrew)
async def second_error_hidden(crew: Crew) -> None:
    starts = [anyio.Event(), anyio.Event()]
    seen: list[str] = []

    async def run() -> None:
        try:
            await crew.run(*starts)
        except ExceptionGroup as group:
            seen.extend(str(error) for error in group.exceptions)

    async def start() -> None:
        for event in starts:
            await steps(2)
            event.set()

    async with anyio.create_task_group() as tg:
        tg.start_soon(run)
        tg.start_soon(start)
    assert sorted(crew.raised) == sorted(seen), f"raised were {crew.raised}, seen {seen}"


BUGS = [child_outlives_its_owner, second_error_hidden]
