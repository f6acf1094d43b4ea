"""Which runtime is the current one: that of the block or task, else the one that the event loop hosts, else an error."""

from __future__ import annotations

import contextvars
import threading
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from agentcore import AgentConfig, AgentContext, AgentResult, AgentRuntime, RuntimeClosedError
from tests.runtime.parts import Clumsy, runtime_of

pytestmark = pytest.mark.anyio


def current() -> AgentRuntime | str:
    """Return the current runtime, or the state that the error tells."""
    try:
        return AgentRuntime.current()
    except RuntimeClosedError as error:
        return str(error.details["state"])


async def in_a_task(function: Any) -> Any:
    """Call a function in a task that the loop starts with an empty context, and return what it returns."""
    found: list[Any] = []

    async def call() -> None:
        found.append(contextvars.Context().run(function))

    async with anyio.create_task_group() as group:
        group.start_soon(call)
    return found[0]


class Asked(Clumsy):
    """An agent that gives what is current where it executes."""

    def __init__(self) -> None:
        super().__init__(AgentConfig("asked", "t", max_concurrency=4))
        self.found: list[AgentRuntime | str] = []

    async def process(self, context: AgentContext) -> AgentResult:
        await anyio.lowlevel.checkpoint()
        self.found.append(current())
        return AgentResult.success_result({})


# The order.


async def test_without_any_it_is_an_error() -> None:
    """It says what to write."""
    with pytest.raises(RuntimeClosedError, match=r"got None; write `async with AgentRuntime\(\)") as caught:
        AgentRuntime.current()
    assert caught.value.details == {"state": "none"}


def test_outside_of_every_loop_it_is_the_same_error() -> None:
    """No error of AnyIO."""
    assert current() == "none"


async def test_the_block_comes_before_the_host() -> None:
    """A strict runtime inside of a hosted one; after its block the hosted one is found again."""
    async with AgentRuntime(hosted=True) as hosted:
        assert current() is hosted
        async with AgentRuntime() as strict:
            assert current() is strict
            async with AgentRuntime() as inner:
                assert current() is inner
            assert current() is strict
        assert current() is hosted
    assert current() == "none"


async def test_a_hosted_one_is_found_from_everywhere_in_its_loop() -> None:
    """Also where no context variable tells of it; a strict one is not."""
    async with AgentRuntime(hosted=True) as hosted:
        assert await in_a_task(current) is hosted
    async with AgentRuntime():
        assert await in_a_task(current) == "none"


async def test_a_hosted_one_sets_no_variable() -> None:
    """So a hosted one inside of a strict block does not hide that."""
    async with AgentRuntime() as strict, AgentRuntime(hosted=True):
        assert current() is strict


async def test_two_hosted_ones_are_an_error() -> None:
    """It names both; with one of them left, the other one is meant."""
    async with AgentRuntime(hosted=True) as first:
        async with AgentRuntime(hosted=True):
            with pytest.raises(
                RuntimeClosedError, match=r"hosts several runtimes: got <AgentRuntime open.*, <"
            ) as caught:
                AgentRuntime.current()
            assert caught.value.details == {"state": "ambiguous"}
            assert "keep the one you mean in a variable" in caught.value.message
            async with AgentRuntime() as strict:
                assert current() is strict
        assert current() is first


async def test_a_variable_that_holds_a_closed_one_is_passed_over() -> None:
    """A context that was copied in a block outlives it: then the hosted one is meant, if there is one."""
    async with AgentRuntime():
        context = contextvars.copy_context()
    assert context.run(current) == "closed"
    async with AgentRuntime(hosted=True) as hosted:
        assert context.run(current) is hosted
    async with AgentRuntime() as another:
        assert context.run(current) == "closed"
        assert current() is another


async def test_a_draining_one_is_still_current() -> None:
    """For the tasks that it lets end; what comes from outside it refuses by itself."""
    seen: list[AgentRuntime | str] = []
    async with AgentRuntime(hosted=True) as runtime:

        @runtime.handler("look")
        async def look(given: dict[str, Any]) -> None:
            await opened.wait()
            seen.append(current())

        opened = anyio.Event()
        handle = await runtime.submit("look")
        await runtime.drain(0)
        assert current() is runtime
        with pytest.raises(RuntimeClosedError, match="shutting down"):
            await AgentRuntime.current().run("look")
        opened.set()
        await handle.result()
    assert seen == [runtime]


async def test_one_that_is_shut_down_does_not_stand_in_the_way() -> None:
    """The next hosted one is meant, though the old one has not been left yet."""
    async with AgentRuntime(hosted=True) as old:
        await old.shutdown()
        async with AgentRuntime(hosted=True) as new:
            assert current() is new


# Where it is asked for.


@pytest.mark.parametrize("hosted", [True, False])
async def test_in_tasks_and_asks(hosted: bool) -> None:
    """It is the runtime that executes, whatever is current for the caller and whichever else is hosted."""
    agent = Asked()
    async with AgentRuntime(hosted=hosted) as outer, AgentRuntime(hosted=True) as another:
        for runtime in (outer, another):
            runtime.registry("agents").register("asked", agent)
        async with AgentRuntime():
            for runtime in (outer, another):
                await runtime.run("asked")
                handle = await runtime.submit("asked")
                await handle.result()
                await runtime.ask("asked")
                await runtime.ask(agent)
                async with runtime.group() as group:
                    group.start("asked")
                async with runtime.stream(agent) as stream:
                    async for _ in stream:
                        pass
                assert [runtime] * 6 == agent.found
                agent.found.clear()


async def test_after_an_ask_the_callers_own_is_current_again() -> None:
    """Also after one that was cancelled."""

    class Stuck(Asked):
        async def process(self, context: AgentContext) -> AgentResult:
            self.found.append(current())
            await anyio.sleep_forever()
            raise AssertionError

    agent = Stuck()
    async with AgentRuntime(hosted=True) as hosted, AgentRuntime() as own:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(hosted.ask, agent)
                await anyio.wait_all_tasks_blocked()
                scope.cancel()
        assert agent.found == [hosted]
        assert current() is own


async def test_in_worker_threads() -> None:
    """A handler that is a plain function finds the runtime that executes it; a thread of the program, that of its block."""
    async with runtime_of() as runtime:
        runtime.handler("plain")(lambda given: repr(current() is runtime))
        assert await runtime.run("plain") == {"result": "True"}
        assert await anyio.to_thread.run_sync(current) is runtime


async def test_in_foreign_threads_there_is_none() -> None:
    """The hosted one of a loop belongs to that loop."""
    found: list[AgentRuntime | str] = []
    async with AgentRuntime(hosted=True), AgentRuntime():
        thread = threading.Thread(target=lambda: found.append(contextvars.Context().run(current)))
        thread.start()
        await anyio.to_thread.run_sync(thread.join)
    assert found == ["none"]


@pytest.mark.parametrize("other", ["asyncio", "trio"])
async def test_in_another_loop(other: str) -> None:
    """It finds its own; a hosted one of the loop next door it does not see, and a variable that came along is refused."""
    found: list[Any] = []

    async def main(runtime: AgentRuntime) -> None:
        found.append(await in_a_task(current))
        async with AgentRuntime(hosted=True) as own:
            found.append(await in_a_task(current) is own)

    def in_thread(runtime: AgentRuntime) -> None:
        anyio.run(main, runtime, backend=other)

    async with AgentRuntime(hosted=True) as runtime:
        await anyio.to_thread.run_sync(in_thread, runtime)
        assert current() is runtime
    assert found == ["none", True]


@pytest.mark.parametrize("other", ["asyncio", "trio"])
async def test_calls_from_another_loop_are_refused(other: str) -> None:
    """A block's variable travels into a thread and from there into another loop, where it is not the current one."""
    told: list[str] = []

    async def main() -> None:
        with pytest.raises(RuntimeClosedError, match="no open runtime here"):
            AgentRuntime.current()
        for call in (runtime.run, runtime.submit, runtime.ask):
            with pytest.raises(Exception, match=r"use runtime\.from_thread") as caught:
                await call("echo")
            told.append(type(caught.value).__name__)

    async with runtime_of() as runtime:
        await anyio.to_thread.run_sync(lambda: anyio.run(main, backend=other))
        assert await runtime.run("echo", {"n": 1}) == {"n": 1}
    assert told == ["AgentError"] * 3
