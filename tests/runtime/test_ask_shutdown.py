"""Asks at the end of the runtime: waited for, cut after the grace, and left alone if they are what ends it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.to_thread
import pytest

from agentcore import (
    AgentContext,
    RuntimeClosedError,
)
from agentcore.testing import simulate
from tests.runtime.doing import Doing, both, forever, opened, register

pytestmark = pytest.mark.anyio


@both
@simulate(runs=10)
async def test_draining_waits_for_asks(hosted: bool) -> None:
    """An ask that ends within the grace gives its result; the report knows nothing that was cut short."""
    async with opened(hosted=hosted, grace=10) as made, anyio.create_task_group() as group:

        async def nap(context: AgentContext) -> str:
            await anyio.sleep(5)
            return "rested"

        async def ask() -> None:
            assert (await made.ask(Doing(nap))).output == "rested"
            ended.append(anyio.current_time())

        ended: list[float] = []
        group.start_soon(ask)
        await anyio.wait_all_tasks_blocked()
        assert await made.drain(1) is False
        report = await made.shutdown()
        assert (report.drained, ended, anyio.current_time()) == (True, [5.0], 5.0)


@both
@simulate(runs=10)
async def test_shutdown_inside_of_an_ask(hosted: bool) -> None:
    """It leaves the ask alone that it is called in, and those around it, and cuts the others."""
    async with opened(hosted=hosted) as made, anyio.create_task_group() as group:

        async def close(context: AgentContext) -> str:
            report = await made.shutdown(2)
            await anyio.lowlevel.checkpoint()
            return str(report.drained)

        async def around(context: AgentContext) -> Any:
            return (await context.ask(Doing(close, name="closer"))).output

        async def other() -> None:
            with pytest.raises(RuntimeClosedError):
                await made.ask(Doing(forever, name="other"))

        group.start_soon(other)
        await anyio.wait_all_tasks_blocked()
        assert (await made.ask(Doing(around, name="around"))).output == "False"  # the other one was cut
        assert anyio.current_time() == 2


@both
async def test_work_inside_of_an_ask_while_draining(hosted: bool) -> None:
    """What runs may need more to come to its end: accepted inside, refused outside."""
    async with opened(hosted=hosted, grace=60) as made, anyio.create_task_group() as group:
        draining = anyio.Event()

        async def process(context: AgentContext) -> list[Any]:
            await draining.wait()
            async with context.group() as children:
                child = children.start("echo", {"n": 1})
            async with context.stream("echo", {"n": 2}) as stream:
                assert [item async for item in stream] == []
            return [
                child.task.output,
                stream.result.output,
                await context.run("echo", {"n": 3}),
                await (await context.submit("echo", {"n": 4})).result(),
                (await context.ask("echo", {"n": 5})).output,
                *await context.map("echo", [{"n": 6}]),
            ]

        async def ask() -> None:
            assert (await made.ask(Doing(process))).output == [{"n": number} for number in range(1, 7)]

        group.start_soon(ask)
        await anyio.wait_all_tasks_blocked()
        assert await made.drain(0) is False
        for refused in (made.ask(Doing()), made.run("echo"), made.submit("echo"), made.map("echo", [{}])):
            with pytest.raises(RuntimeClosedError, match="draining"):
                await refused
        draining.set()


@both
@pytest.mark.parametrize("around", ["", "ask", "run", "submit", "group", "stream"])
@simulate(runs=6)
async def test_an_ask_waits_for_a_task_that_shuts_the_runtime_down(hosted: bool, around: str) -> None:
    """The task is left alone, and so are all who wait for it: the ask, and whatever is around that one."""
    async with opened(hosted=hosted) as made:

        @made.handler("close")
        async def close(given: dict[str, Any]) -> bool:
            return (await made.shutdown(5)).drained

        async def wait(context: AgentContext) -> Any:
            return (await (await context.submit("close")).result())["result"]

        async def enclose(context: AgentContext) -> Any:
            if around == "ask":
                return (await context.ask(waiting)).output
            if around == "run":
                return (await context.run("waiting"))["result"]
            if around == "submit":
                return (await (await context.submit("waiting")).result())["result"]
            if around == "stream":
                async with context.stream(waiting) as stream:
                    assert [item async for item in stream] == []
                return stream.result.output
            async with context.group() as group:
                handle = group.start("waiting")
            return (await handle.result())["result"]

        @made.handler("waiting")
        async def wait_as_task(given: dict[str, Any], context: AgentContext) -> Any:
            return await wait(context)

        waiting = Doing(wait, name="waiting")
        assert (await made.ask(Doing(enclose, name="enclosing") if around else waiting)).output is True
        assert anyio.current_time() == 0


@both
@simulate(runs=6)
async def test_a_task_asks_an_agent_that_waits_for_the_end(hosted: bool) -> None:
    """The task, its ask, and the task that this one waits for: none of them is in the way of the shutdown."""
    async with opened(hosted=hosted) as made:

        @made.handler("close")
        async def close(given: dict[str, Any]) -> bool:
            return (await made.shutdown(5)).drained

        async def wait(context: AgentContext) -> Any:
            return (await (await context.submit("close")).result())["result"]

        @made.handler("job")
        async def job(given: dict[str, Any], context: AgentContext) -> Any:
            return (await context.ask(Doing(wait))).output

        assert await made.run("job") == {"result": True}
        assert anyio.current_time() == 0


@both
@simulate(runs=10)
async def test_resources_outlive_the_agent_of_one_ask(hosted: bool) -> None:
    """An agent that was made for an ask is terminated before what it may use is closed, and before `shutdown` returns."""
    log: list[str] = []

    @asynccontextmanager
    async def open_service() -> AsyncGenerator[None]:
        yield
        log.append("resource closed")

    async def clean_up() -> None:
        await anyio.sleep(1)
        log.append("agent terminated")

    async with opened(hosted=hosted) as made, anyio.create_task_group() as group:
        await made.resource(open_service())
        register(made, "one", lambda: Doing(forever, terminate=clean_up))

        async def ask() -> None:
            with pytest.raises(RuntimeClosedError):
                await made.ask("one")

        group.start_soon(ask)
        await anyio.wait_all_tasks_blocked()
        await made.shutdown(0)
        log.append("shut down")
    assert log == ["agent terminated", "resource closed", "shut down"]
