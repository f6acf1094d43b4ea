"""Hosted runtimes where something goes wrong at a bad moment."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any

import anyio
import anyio.to_thread
import pytest

from agentcore import AgentCrashedError, AgentError, AgentRuntime, ConfigurationError, RuntimeClosedError, lifespan
from tests.runtime.doing import both, opened

pytestmark = pytest.mark.anyio
variable: ContextVar[str] = ContextVar("variable", default="none")


async def in_thread(function: Any) -> Any:
    """Call a function in a thread that no task waits for, and return what it returns or raises."""
    done, found = anyio.Event(), []
    token = anyio.lowlevel.current_token()

    def call() -> None:
        try:
            found.append(function())
        except BaseException as error:  # noqa: BLE001 - handed on
            found.append(error)
        anyio.from_thread.run_sync(done.set, token=token)

    thread = threading.Thread(target=call)
    thread.start()
    await done.wait()
    await anyio.to_thread.run_sync(thread.join)
    return found[0]


@both
async def test_shutdown_by_a_thread(hosted: bool) -> None:
    """It does not wait for the very call that it is made in; leaving in there is refused, for that would."""
    async with opened(hosted=hosted) as made:
        report = await in_thread(lambda: made.from_thread(made.shutdown))
        assert report.drained
    if hosted:
        made = await AgentRuntime.open()
        error = await in_thread(lambda: made.from_thread(made.aclose))
        assert isinstance(error, AgentError)
        assert "call shutdown() there" in error.message

        @made.handler("close")
        async def close(given: dict[str, Any]) -> None:
            await made.aclose()

        assert "call shutdown() there" in str((await (await made.submit("close")).wait()).error)
        await made.aclose()


async def test_what_a_thread_has_in_its_variables_stays_its_own() -> None:
    """The first one that calls leaves nothing for those that come after it."""

    async def look() -> str:
        return variable.get()

    async with opened() as made:

        def first() -> str:
            variable.set("first")
            return made.from_thread(look)

        assert await in_thread(first) == "first"
        assert await in_thread(lambda: made.from_thread(look)) == "none"


async def test_system_exit_of_a_call_from_a_worker_thread() -> None:
    """It is that thread's: the loop goes on."""

    async def leave() -> None:
        raise SystemExit(3)

    async with opened() as made:
        with pytest.raises(SystemExit):
            await anyio.to_thread.run_sync(made.from_thread, leave)
        assert await made.run("echo", {"n": 1}) == {"n": 1}


async def test_what_is_raised_while_a_cancelled_opening_unwinds_is_told() -> None:
    """Nobody waits for the resource any more, so it is told at the exit."""

    @asynccontextmanager
    async def broken() -> AsyncIterator[None]:
        try:
            await anyio.sleep_forever()
            yield
        finally:
            raise ValueError("half open")

    with pytest.raises(AgentCrashedError) as caught:
        async with opened() as made:
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as group:
                    group.start_soon(made.resource, broken())
                    await anyio.wait_all_tasks_blocked()
                    scope.cancel()
    assert ["half open"] == [str(leaf) for leaf in caught.value.exceptions]


async def test_a_failure_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """At the exit, and not again when its handle is gone after that."""
    made = await AgentRuntime.open()

    @made.handler("fail")
    async def fail(given: dict[str, Any]) -> None:
        raise ValueError("boom")

    handle: Any = await made.submit("fail")
    while not handle.is_done:
        await anyio.lowlevel.checkpoint()
    with pytest.raises(AgentCrashedError), caplog.at_level(logging.ERROR):
        await made.aclose()
    del handle
    gc.collect()
    assert 1 == sum("boom" in record.message for record in caplog.records)


@pytest.mark.parametrize("method", ["drain", "shutdown"])
async def test_ending_a_runtime_from_another_loop_is_refused(method: str) -> None:
    """As every other call is."""

    async def main() -> None:
        await getattr(made, method)(0)

    async with opened() as made:
        error = await in_thread(lambda: anyio.run(main))
        assert isinstance(error, AgentError)
        assert await made.run("echo", {"n": 1}) == {"n": 1}


@pytest.mark.parametrize("steps", range(8))
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")
def test_a_loop_that_ends_while_something_begins(steps: int) -> None:
    """What asyncio cancels before its first step is waited for by nobody."""

    @asynccontextmanager
    async def line() -> AsyncIterator[None]:
        yield

    async def main() -> None:
        made = await AgentRuntime.open(grace=0)
        for begin in (made.resource(line()), made.stream("nobody", {}).__aenter__(), AgentRuntime.open()):
            asyncio.get_running_loop().create_task(begin)
        for _ in range(steps):
            await asyncio.sleep(0)

    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(main())
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        done, pending = loop.run_until_complete(asyncio.wait(tasks, timeout=5)) if tasks else (set(), set())
        assert not pending
        for task in done:
            if not task.cancelled():
                task.exception()
    finally:
        loop.close()
        gc.collect()


def test_bad_arguments_are_told_where_they_stand() -> None:
    """Not when a server starts."""
    with pytest.raises(ConfigurationError, match="setup of a lifespan must be a function"):
        lifespan(setup=5)  # type: ignore[call-overload]
    with pytest.raises(ConfigurationError, match="hosted of a runtime must be"):
        AgentRuntime(hosted=1)  # type: ignore[arg-type]
    assert issubclass(RuntimeClosedError, RuntimeError)
