"""Where runtime, agents, slots and threads meet: combinations that once went wrong."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import anyio
import anyio.from_thread
import pytest

from agentcore import (
    AgentConfig,
    AgentContext,
    AgentCrashedError,
    AgentResult,
    AgentRuntime,
    BaseAgent,
    BaseTask,
    RuntimeConfig,
    TaskExecutionError,
    TaskState,
    TaskTimeoutError,
)
from agentcore.testing import simulate

pytestmark = pytest.mark.anyio


class Relay(BaseAgent):
    """An agent, shared by all, that has its work done by a child."""

    async def initialize(self) -> bool:
        return True

    async def process(self, context: AgentContext) -> AgentResult:
        handle = await context.submit("leaf")
        return AgentResult.success_result(await handle.result())

    async def handle_error(self, error: Exception, context: AgentContext) -> AgentResult:
        return AgentResult.error_result({"error_type": type(error).__name__, "message": str(error)})


class ClumsyRelay(Relay):
    """One that cannot clean up."""

    async def terminate(self) -> None:
        raise OSError("the disk is full")


async def leaf(given: dict[str, Any]) -> dict[str, Any]:
    await anyio.lowlevel.checkpoint()
    return {"leaf": True}


async def fail(given: dict[str, Any]) -> None:
    raise KeyError("in the background")


@pytest.mark.parametrize("way", ["move_on_after", "fail_after"])
@simulate(runs=20)
async def test_failures_of_the_background_outlive_the_cancellation_of_the_block(way: str) -> None:
    """A block that is cancelled tells what failed in its background, as a task group does."""
    with pytest.raises(AgentCrashedError) as caught, getattr(anyio, way)(5):
        async with AgentRuntime() as runtime:
            runtime.handler("fail")(fail)
            await runtime.submit("fail")
            await anyio.sleep_forever()
    assert [KeyError] == [type(error.__cause__) for error in caught.value.exceptions]
    assert 5 == anyio.current_time()


@simulate(runs=20)
async def test_a_failing_clean_up_outlives_the_cancellation_of_the_block() -> None:
    """So it is with an agent whose clean-up fails then."""
    with pytest.raises(AgentCrashedError) as caught:
        with anyio.move_on_after(5):
            async with AgentRuntime() as runtime:
                runtime.registry("agents").register("relay", ClumsyRelay(AgentConfig("relay", "test")))
                await anyio.sleep_forever()
    assert [OSError] == [type(error) for error in caught.value.exceptions]
    assert 5 == anyio.current_time()


@pytest.mark.parametrize(("in_flight", "concurrency", "count"), [(1, 1, 2), (1, 2, 6), (3, 1, 20), (16, 8, 60)])
async def test_slots_and_turns_do_not_wait_for_each_other(in_flight: int, concurrency: int, count: int) -> None:
    """A task that waits for an agent's turn lends its slot, which the child of whoever has the turn may need."""
    with anyio.fail_after(5):
        async with AgentRuntime(RuntimeConfig(in_flight=in_flight)) as runtime:
            runtime.handler("leaf")(leaf)
            relay = Relay(AgentConfig("relay", "test", max_concurrency=concurrency))
            runtime.registry("agents").register("relay", relay)
            handles = [await runtime.submit("relay") for _ in range(count)]
            assert [{"leaf": True}] * count == [await handle.result() for handle in handles]
        assert 0 == runtime.statistics().tasks.in_flight


@pytest.mark.parametrize(("in_flight", "concurrency"), [(1, 1), (1, 2), (2, 1)])
@simulate(runs=20)
async def test_slots_and_turns_do_not_wait_for_each_other_in_any_order(in_flight: int, concurrency: int) -> None:
    """So it is whoever goes next."""
    async with AgentRuntime(RuntimeConfig(in_flight=in_flight)) as runtime:
        runtime.handler("leaf")(leaf)
        relay = Relay(AgentConfig("relay", "test", max_concurrency=concurrency))
        runtime.registry("agents").register("relay", relay)
        handles = [await runtime.submit("relay") for _ in range(4)]
        assert [{"leaf": True}] * 4 == [await handle.result() for handle in handles]
    assert 0 == runtime.statistics().tasks.in_flight


class Evil(dict[str, Any]):
    """A mapping that cannot be read."""

    def __iter__(self) -> Iterator[str]:
        raise RuntimeError("evil")

    def keys(self) -> Any:
        raise RuntimeError("evil")


async def test_objects_that_cannot_be_asked_do_not_keep_a_task_from_ending() -> None:
    """Whatever a handler gives or raises, its task ends, its slot comes back and who waits is told."""
    with anyio.fail_after(5):
        async with AgentRuntime(RuntimeConfig(in_flight=1)) as runtime:

            @runtime.handler("mapping")
            async def mapping(given: dict[str, Any]) -> AgentResult:
                return AgentResult.error_result(Evil(a=1))

            @runtime.handler("details")
            async def details(given: dict[str, Any]) -> None:
                error = TaskTimeoutError("late")
                error.details = None  # type: ignore[assignment]
                raise error

            for name in ("mapping", "details"):
                handle = await runtime.submit(name)
                with pytest.raises(TaskExecutionError):
                    await handle.result()
                assert (TaskState.FAILED, 0) == (handle.state, runtime.statistics().tasks.in_flight)


async def test_a_task_that_cannot_be_moved_gives_its_slot_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A subclass whose transition raises is told at the exit; nothing waits for it for ever."""

    def complete(self: BaseTask, output: Any) -> BaseTask:
        raise RuntimeError("not me")

    with pytest.raises(AgentCrashedError, match="not me"), anyio.fail_after(5):
        async with AgentRuntime(RuntimeConfig(in_flight=1)) as runtime:
            runtime.handler("leaf")(leaf)
            with monkeypatch.context() as patch:
                patch.setattr(BaseTask, "complete", complete)
                await (await runtime.submit("leaf")).wait()
            assert {"leaf": True} == await runtime.run("leaf")
            assert 0 == runtime.statistics().tasks.in_flight


async def test_functions_in_threads_may_wait_for_others_in_threads() -> None:
    """Sixty functions that each wait for one more: the number of threads is bounded by in_flight, not by a limit of 40."""
    count = 60
    barrier = threading.Barrier(count)
    with anyio.fail_after(10):
        async with AgentRuntime() as runtime:

            @runtime.handler("outer")
            def outer(given: dict[str, Any]) -> dict[str, Any]:
                barrier.wait(timeout=5)
                return anyio.from_thread.run(runtime.run, "inner")

            @runtime.handler("inner")
            def inner(given: dict[str, Any]) -> dict[str, Any]:
                return {"thread": threading.get_ident()}

            handles = [await runtime.submit("outer") for _ in range(count)]
            results = [await handle.result() for handle in handles]
    assert [{"thread"}] * count == [set(result) for result in results]


@simulate(runs=20)
async def test_two_runtimes_in_a_circle() -> None:
    """A task of one runtime that comes back to it by way of another has its slot to go on with."""
    async with AgentRuntime(RuntimeConfig(in_flight=1)) as outer, AgentRuntime(RuntimeConfig(in_flight=1)) as inner:
        outer.handler("leaf")(leaf)

        @inner.handler("back")
        async def back(given: dict[str, Any]) -> dict[str, Any]:
            return await outer.run("leaf")

        @outer.handler("there")
        async def there(given: dict[str, Any]) -> dict[str, Any]:
            return await inner.run("back")

        assert {"leaf": True} == await outer.run("there")
        assert (0, 0) == (outer.statistics().tasks.in_flight, inner.statistics().tasks.in_flight)


async def test_a_cancellation_out_of_nowhere_is_not_cut_short() -> None:
    """Code that raises a cancellation by itself ends its task CANCELED; the report of the shutdown does not name it."""
    if anyio.get_cancelled_exc_class() is not asyncio.CancelledError:
        return
    async with AgentRuntime() as runtime:

        @runtime.handler("by itself")
        async def by_itself(given: dict[str, Any]) -> None:
            raise asyncio.CancelledError

        handle = await runtime.submit("by itself")
        assert TaskState.CANCELED is (await handle.wait()).state
        assert "its asyncio task was cancelled from outside of the runtime" == handle.task.cancel_reason
    assert runtime.report is not None
    assert (True, ()) == (runtime.report.drained, runtime.report.cut_short)


@pytest.mark.parametrize("method", ["drain", "shutdown"])
@simulate(runs=20)
async def test_ending_the_runtime_in_a_child_that_is_waited_for(method: str) -> None:
    """Whoever waits for the caller is not waited for."""
    async with AgentRuntime(grace=60) as runtime:

        @runtime.handler("child")
        async def child(given: dict[str, Any]) -> None:
            await getattr(runtime, method)()

        @runtime.handler("parent")
        async def parent(given: dict[str, Any], context: AgentContext) -> None:
            await (await context.submit("child")).result()

        assert ({"result": None}, 0) == (await runtime.run("parent"), anyio.current_time())


class BadText:
    """An object that cannot be shown."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


async def test_a_lost_failure_that_cannot_be_shown_does_not_hide_another() -> None:
    """Both reach the exit of the runtime."""
    with pytest.raises(AgentCrashedError) as caught:
        async with AgentRuntime() as runtime:
            runtime.handler("fail")(fail)

            @runtime.handler("unshowable")
            async def unshowable(given: dict[str, Any]) -> AgentResult:
                return AgentResult.error_result({"message": BadText()})

            await runtime.submit("unshowable")
            await runtime.submit("fail")
    assert 2 == len(caught.value.exceptions)
