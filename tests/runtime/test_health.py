"""What a hosted runtime shows of itself, what its calls raise when it is over, and what is logged when."""

from __future__ import annotations

import gc
import logging
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from agentcore import (
    AgentConfig,
    AgentCrashedError,
    AgentRuntime,
    RuntimeClosedError,
    TaskExecutionError,
    TaskHandle,
)
from tests.runtime.parts import Clumsy, holding, runtime_of

pytestmark = pytest.mark.anyio

DEAD = "the line is dead"


def hosted(**limits: int) -> AgentRuntime:
    """Make a hosted runtime with the handlers of every test, an agent, and two ways to break."""
    runtime = runtime_of(**limits)
    made = AgentRuntime(runtime.config, hosted=True)
    for name in ("echo", "fail", "hang"):
        made.handler(name)(runtime.registry("task_handlers").get_sync(name))
    made.registry("agents").register("quick", Clumsy(AgentConfig("quick", "t")))

    @made.handler("exit")
    async def leave(given: dict[str, Any]) -> None:
        raise SystemExit("the agent gave up")

    return made


@asynccontextmanager
async def line(broken: anyio.Event) -> AsyncIterator[None]:
    """A connection that is kept by a task of its own."""

    async def keep() -> None:
        await broken.wait()
        raise ValueError(DEAD)

    async with anyio.create_task_group() as group:
        group.start_soon(keep)
        yield
        group.cancel_scope.cancel()


async def crash(runtime: AgentRuntime, how: str) -> None:
    """Have a runtime fail and wait until it has ended everything."""
    if how == "exit":
        await runtime.submit("exit")
    else:
        broken = anyio.Event()
        await runtime.resource(line(broken))
        broken.set()
    with anyio.fail_after(5):
        while runtime.report is None:
            await anyio.lowlevel.checkpoint()


def leaves(error: BaseException | None) -> list[BaseException]:
    """Return what a group is made of, however deep."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for one in error.exceptions for leaf in leaves(one)]
    return [] if error is None else [error]


def reasons(error: BaseException | None) -> list[str]:
    """Return the texts of what is behind the leaves of a group: a crash is told as an error of agentcore, from its cause."""
    return [str(cause) for leaf in leaves(error) for cause in (leaves(leaf.__cause__) or [leaf])]


@contextmanager
def raising(kind: type[BaseException] = BaseExceptionGroup) -> Iterator[pytest.ExceptionInfo[BaseException]]:
    """Expect a group, which must not hide what a test has found wrong in the block of the runtime."""
    with pytest.raises(kind) as caught:
        yield caught
    for leaf in leaves(caught.value):
        if isinstance(leaf, AssertionError | pytest.fail.Exception):
            raise leaf


def records(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    """Return who has logged what, of agentcore."""
    return [(one.name, one.levelname) for one in caplog.records if one.name.startswith("agentcore")]


async def ended(handle: TaskHandle) -> None:
    """Wait for the end of a task without asking its handle."""
    while not handle.is_done:
        await anyio.lowlevel.checkpoint()
    for _ in range(3):
        await anyio.lowlevel.checkpoint()


crashes = pytest.mark.parametrize("how", ["exit", "resource"])


# health() in each state.


@pytest.mark.parametrize("mode", [True, False], ids=["hosted", "strict"])
async def test_from_new_to_closed(mode: bool) -> None:
    """Only an open runtime is healthy."""
    runtime = AgentRuntime(hosted=mode, grace=0)
    seen = [runtime.health()]
    async with runtime:
        seen.append(runtime.health())
        await runtime.drain()
        seen.append(runtime.health())
        await runtime.shutdown()
        seen.append(runtime.health())
    seen.append(runtime.health())
    assert ["new", "open", "draining", "closed", "closed"] == [health.state for health in seen]
    assert [False, True, False, False, False] == [health.healthy for health in seen]
    assert all(health.failures == () for health in seen)


async def test_what_is_under_way_is_counted() -> None:
    """Slots, the line in front of them, and asks."""

    class Slow(Clumsy):
        async def process(self, context: Any) -> Any:
            await anyio.sleep_forever()

    async with hosted(in_flight=2) as runtime:
        hold = holding(runtime)
        for number in range(5):
            await runtime.submit("hold", {"n": number})
        async with anyio.create_task_group() as group:
            group.start_soon(runtime.ask, Slow(AgentConfig("slow", "t")))
            await anyio.wait_all_tasks_blocked()
            health = runtime.health()
            assert (health.in_flight, health.queued, health.asks) == (2, 3, 1)
            assert health.healthy
            group.cancel_scope.cancel()
        hold.opened.set()
        await anyio.wait_all_tasks_blocked()
        health = runtime.health()
        assert (health.in_flight, health.queued, health.asks) == (0, 0, 0)


async def test_a_failed_task_does_not_make_it_unhealthy() -> None:
    """It is shown as long as nobody has learned of it."""
    async with hosted() as runtime:
        handle = await runtime.submit("fail", {"n": 7})
        await ended(handle)
        health = runtime.health()
        assert (health.healthy, health.state) == (True, "open")
        (failure,) = health.failures
        assert isinstance(failure, TaskExecutionError)
        assert "number 7" in failure.message
        # Made for each look, around the same cause.
        (again,) = runtime.health().failures
        assert again is not failure
        assert again.__cause__ is failure.__cause__
        await handle.wait()
        assert runtime.health().failures == ()


@crashes
async def test_a_crash_makes_it_failed(how: str, caplog: pytest.LogCaptureFixture) -> None:
    """Its work has been ended; it says what happened, to the log once, and to the one who leaves it."""
    with raising() as caught:
        async with hosted() as runtime:
            hold = holding(runtime)
            await runtime.submit("hold", {"n": 1})
            await hold.entered.wait()
            await crash(runtime, how)
            assert hold.left == [1]
            health = runtime.health()
            assert (health.healthy, health.state, health.in_flight) == (False, "failed", 0)
            told = [text for failure in health.failures for text in reasons(failure)]
            assert told == ["the agent gave up" if how == "exit" else DEAD]
    assert reasons(caught.value) == told
    assert isinstance(caught.value, AgentCrashedError)
    assert records(caplog) == [("agentcore.runtime", "CRITICAL")]
    assert (runtime.health().state, runtime.health().healthy) == ("failed", False)


async def test_a_strict_runtime_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """It raises where it is left."""
    with raising():
        async with runtime_of() as runtime:
            broken = anyio.Event()
            await runtime.resource(line(broken))
            await ended(await runtime.submit("fail"))
            broken.set()
            await anyio.sleep_forever()
    assert runtime.health().state == "failed"
    assert records(caplog) == []


# Calls when it is over.

Way = Callable[[AgentRuntime], Awaitable[Any]]


async def by_stream(runtime: AgentRuntime) -> None:
    async with runtime.stream("quick"):
        pytest.fail("it streams")


async def by_group(runtime: AgentRuntime) -> None:
    group = runtime.group()
    async with group:
        group.start("echo")


async def by_as_completed(runtime: AgentRuntime) -> None:
    async with runtime.as_completed("echo", [{"n": 1}]) as done:
        async for _ in done:
            pytest.fail("it works")


async def by_thread(runtime: AgentRuntime) -> None:
    await anyio.to_thread.run_sync(lambda: runtime.from_thread(anyio.lowlevel.checkpoint))


WAYS: dict[str, Way] = {
    "run": lambda runtime: runtime.run("echo"),
    "submit": lambda runtime: runtime.submit("echo"),
    "ask": lambda runtime: runtime.ask("quick"),
    "stream": by_stream,
    "group": by_group,
    "map": lambda runtime: runtime.map("echo", [{"n": 1}]),
    "as_completed": by_as_completed,
    "resource": lambda runtime: runtime.resource(line(anyio.Event())),
    "from_thread": by_thread,
    "enter": lambda runtime: runtime.__aenter__(),
}
ways = pytest.mark.parametrize("way", list(WAYS))


async def refusal(runtime: AgentRuntime, way: str) -> RuntimeClosedError:
    """Return what a call raises, alone or as the only leaf of a group."""
    with pytest.raises((RuntimeClosedError, BaseExceptionGroup)) as caught:
        await WAYS[way](runtime)
    (error,) = leaves(caught.value)
    assert isinstance(error, RuntimeClosedError)
    return error


@ways
async def test_a_closed_runtime_refuses_every_call(way: str) -> None:
    """With its state, in a fresh error each time."""
    async with hosted() as runtime:
        await runtime.shutdown()
        errors = [await refusal(runtime, way) for _ in range(2)]
    errors += [await refusal(runtime, way) for _ in range(2)]
    assert len({id(error) for error in errors}) == 4
    assert ["closed"] * 4 == [error.details["state"] for error in errors]


@crashes
@pytest.mark.parametrize(
    "way",
    [way for way in WAYS if way != "enter"],
)
async def test_a_failed_runtime_refuses_every_call_with_the_reason(way: str, how: str) -> None:
    """The causes are fresh groups around the same failures, whose tracebacks do not grow."""
    with raising():
        async with hosted() as runtime:
            await crash(runtime, how)
            errors = [await refusal(runtime, way) for _ in range(3)]
            assert ["failed"] * 3 == [error.details["state"] for error in errors]
            assert "make a new one" in errors[0].message
            causes = [error.__cause__ for error in errors]
            assert len({id(cause) for cause in causes}) == 3
            found = [leaves(cause) for cause in causes]
            assert found[0] == found[1] == found[2]
            assert len({id(leaf) for leaf in found[0]}) == len(found[0]) == 1
            depths = []
            for _ in range(3):
                error = await refusal(runtime, way)
                depths.append([len(traceback.extract_tb(leaf.__traceback__)) for leaf in leaves(error.__cause__)])
            assert depths[0] == depths[1] == depths[2]


@crashes
async def test_after_it_was_left_a_failed_runtime_still_tells_the_reason(how: str) -> None:
    """Whoever calls it then may be somebody else than who has left it."""
    with raising() as caught:
        async with hosted() as runtime:
            await crash(runtime, how)
    error = await refusal(runtime, "run")
    assert error.details["state"] == "failed"
    assert leaves(error.__cause__) == leaves(caught.value)


async def test_leaving_raises_once() -> None:
    """Who leaves it again has nothing more to hear."""
    runtime = await hosted().__aenter__()
    await crash(runtime, "resource")
    with raising(AgentCrashedError) as caught:
        await runtime.aclose()
    assert [DEAD] == reasons(caught.value)
    await runtime.aclose()


async def test_the_error_of_the_block_comes_with_the_crash() -> None:
    """Neither hides the other."""
    own = LookupError("own")
    with raising(AgentCrashedError) as caught:
        async with hosted() as runtime:
            await crash(runtime, "resource")
            raise own
    assert ["own", DEAD] == reasons(caught.value)
    assert leaves(caught.value)[0] is own


async def test_who_waits_for_a_task_is_told_of_the_crash() -> None:
    """Waiters in the block and callers of `run` are not left alone."""
    told: list[str] = []

    async def wait(function: Callable[[], Awaitable[Any]]) -> None:
        try:
            await function()
        except Exception as error:  # noqa: BLE001 - its kind is looked at
            told.append(type(error).__name__)

    with raising(AgentCrashedError):
        async with hosted() as runtime:
            handle = await runtime.submit("hang")
            async with anyio.create_task_group() as group:
                group.start_soon(wait, handle.result)
                group.start_soon(wait, lambda: runtime.run("hang"))
                await anyio.wait_all_tasks_blocked()
                await crash(runtime, "resource")
    assert told == ["TaskCanceledError"] * 2


# Failures of submitted tasks.


async def test_a_failure_whose_handle_is_kept_is_not_logged_yet(caplog: pytest.LogCaptureFixture) -> None:
    """Somebody may still ask; who does learns of it, and nothing is raised or logged."""
    async with hosted() as runtime:
        handle = await runtime.submit("fail", {"n": 1})
        await ended(handle)
        gc.collect()
        assert records(caplog) == []
        assert (await handle.wait()).success is False
        del handle
        gc.collect()
    assert records(caplog) == []


@pytest.mark.parametrize("what", ["fail", "broken"])
async def test_a_failure_whose_handle_is_gone_is_logged(what: str, caplog: pytest.LogCaptureFixture) -> None:
    """Once, with its traceback, while the runtime goes on; and raised at the exit."""
    with raising(AgentCrashedError):
        async with hosted() as runtime:

            def broken() -> None:
                raise ValueError("number 1")

            runtime.registry("agents").register("broken", broken)
            handle = await runtime.submit(what, {"n": 1})
            await ended(handle)
            del handle
            gc.collect()
            assert records(caplog) == [("agentcore.runtime", "ERROR")]
            assert "number 1" in caplog.records[0].getMessage()
            assert runtime.health().healthy
    assert len(records(caplog)) == 1


async def test_a_failure_that_nobody_has_looked_at_is_raised_at_the_exit() -> None:
    """Whether its handle is kept or not."""
    with raising(AgentCrashedError) as caught:
        async with hosted() as runtime:
            handles = [await runtime.submit("fail", {"n": number}) for number in range(3)]
            for handle in handles:
                await ended(handle)
            await handles[1].wait()
            del handles, handle
    assert ["number 0", "number 2"] == [str(leaf.__cause__) for leaf in leaves(caught.value)]


async def test_a_clean_up_that_fails_is_logged_when_it_happens(caplog: pytest.LogCaptureFixture) -> None:
    """With its traceback, once; the runtime goes on, and raises it when it is left."""
    with raising(AgentCrashedError) as caught:
        async with hosted() as runtime:
            error = OSError("disk")
            runtime.registry("agents").register("own", lambda: Clumsy(AgentConfig("own", "t"), error=error))
            assert await runtime.run("own") == {"by": "own"}
            assert records(caplog) == [("agentcore.runtime", "ERROR")]
            assert caplog.records[0].exc_info is not None
            assert runtime.health().healthy
    assert error in [leaf if leaf is error else leaf.__cause__ for leaf in leaves(caught.value)]
    assert len(records(caplog)) == 1


async def test_nothing_is_logged_when_nothing_happens(caplog: pytest.LogCaptureFixture) -> None:
    """From entering to leaving, tasks that are cut included."""
    caplog.set_level(logging.DEBUG, "agentcore")
    async with hosted() as runtime:
        await runtime.run("echo", {"n": 1})
        await runtime.submit("hang")
        await anyio.wait_all_tasks_blocked()
    assert [name for name in records(caplog) if name[1] != "DEBUG"] == []
