"""`lifespan`, used as servers do: entered in one task, left in another, and again at the next start."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from agentcore import AgentRuntime, ConfigurationError, RuntimeConfig, lifespan
from agentcore._host import Host
from tests.runtime.parts import echo, fail, hang, holding
from tests.runtime.test_health import leaves, raising

pytestmark = pytest.mark.anyio

Lifespan = Callable[[object], AbstractAsyncContextManager[dict[str, AgentRuntime]]]


def register(runtime: AgentRuntime) -> None:
    for function in (echo, fail, hang):
        runtime.handler(function.__name__)(function)


async def serve(
    made: Lifespan, use: Callable[[AgentRuntime], Awaitable[Any]], app: object = None, error: Exception | None = None
) -> Any:
    """Do what a server does: a task for the lifespan, that of a request beside it."""
    started, stopped = anyio.Event(), anyio.Event()
    state: dict[str, AgentRuntime] = {}
    results: list[Any] = []

    async def live() -> None:
        async with made(app) as given:
            state.update(given)
            started.set()
            await stopped.wait()
            if error is not None:
                raise error

    async def request() -> None:
        await started.wait()
        results.append(await use(state["runtime"]))
        stopped.set()

    async with anyio.create_task_group() as group:
        group.start_soon(request)
        await live()
    return results[0]


async def test_an_application_has_a_runtime() -> None:
    """In the state of each request, hosted, current in its tasks, and over when the application has ended."""

    async def use(runtime: AgentRuntime) -> AgentRuntime:
        register(runtime)
        assert await runtime.run("echo", {"n": 1}) == {"n": 1}
        assert AgentRuntime.current() is runtime
        return runtime

    runtime = await serve(lifespan, use, app=object())
    assert runtime.health().state == "closed"
    assert Host.find() is None


async def test_each_start_has_its_own() -> None:
    """A server may start the same application twice, one after the other."""
    made = lifespan(setup=register)

    async def use(runtime: AgentRuntime) -> AgentRuntime:
        await runtime.run("echo", {"n": 1})
        return runtime

    runtimes = [await serve(made, use) for _ in range(2)]
    assert runtimes[0] is not runtimes[1]
    assert ["closed"] * 2 == [runtime.health().state for runtime in runtimes]


async def test_two_applications_in_one_loop() -> None:
    """Each has its own; what is current is told by the tasks alone then."""
    made = lifespan(setup=register)
    async with made("one") as one, made("two") as two:
        assert one["runtime"] is not two["runtime"]
        assert await two["runtime"].run("echo", {"n": 2}) == {"n": 2}


async def test_the_configuration_is_that_of_the_runtime() -> None:
    """With the grace beside it."""
    config = RuntimeConfig(in_flight=3)
    async with lifespan(config=config, grace=0.5)(None) as state:
        assert (state["runtime"].config.in_flight, state["runtime"].config.grace) == (3, 0.5)


@pytest.mark.parametrize("options", [{"grace": -1}, {"config": 3}])
async def test_unusable_arguments_are_refused_at_once(options: dict[str, Any]) -> None:
    """Where they stand, not when the server starts."""
    with pytest.raises(ConfigurationError):
        lifespan(**options)


@pytest.mark.parametrize("kind", ["plain", "coroutine", "class"])
async def test_the_set_up_may_be_of_any_kind(kind: str) -> None:
    """It has the open runtime; requests come when it has returned."""
    seen: list[str] = []

    async def coroutine(runtime: AgentRuntime) -> None:
        await anyio.lowlevel.checkpoint()
        register(runtime)
        seen.append(runtime.health().state)
        await runtime.run("echo", {"n": 1})

    def plain(runtime: AgentRuntime) -> None:
        register(runtime)
        seen.append(runtime.health().state)

    class Setup:
        async def __call__(self, runtime: AgentRuntime) -> None:
            await coroutine(runtime)

    setup: Any = {"plain": plain, "coroutine": coroutine, "class": Setup()}[kind]
    assert await serve(lifespan(setup=setup), lambda runtime: runtime.run("echo", {"n": 2})) == {"n": 2}
    assert seen == ["open"]


async def test_what_a_plain_set_up_returns_is_not_looked_at() -> None:
    """Such as that of a lambda which registers something."""
    setup: Any = lambda runtime: runtime.handler("echo")(echo)  # noqa: E731
    assert await serve(lifespan(setup=setup), lambda runtime: runtime.run("echo", {"n": 2})) == {"n": 2}


@pytest.mark.parametrize("kind", ["plain", "coroutine"])
async def test_a_set_up_that_fails_ends_everything(kind: str) -> None:
    """Its error comes out as it is; what it has begun is cut, and nothing is left in the loop."""
    error = OSError("no database")
    runtimes: list[AgentRuntime] = []

    def plain(runtime: AgentRuntime) -> None:
        runtimes.append(runtime)
        raise error

    async def coroutine(runtime: AgentRuntime) -> None:
        register(runtime)
        await runtime.submit("hang")
        plain(runtime)

    with pytest.raises(OSError, match="no database") as caught:
        async with lifespan(setup=plain if kind == "plain" else coroutine)(None):
            pytest.fail("it started")
    assert caught.value is error
    assert runtimes[0].health().state == "closed"
    assert runtimes[0].tasks.is_idle
    assert Host.find() is None


async def test_a_set_up_that_is_cancelled_ends_everything() -> None:
    """A server that is stopped while it starts."""
    entered = anyio.Event()

    async def setup(runtime: AgentRuntime) -> None:
        entered.set()
        await anyio.sleep_forever()

    async def start() -> None:
        async with lifespan(setup=setup)(None):
            pytest.fail("it started")

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(start)
            await entered.wait()
            group.cancel_scope.cancel()
    assert Host.find() is None


async def test_the_end_of_the_application_drains() -> None:
    """What was submitted in a request goes on after it, and ends within the grace."""
    holds: list[Any] = []

    async def use(runtime: AgentRuntime) -> Any:
        holds.append(holding(runtime))
        return await runtime.submit("hold", {"n": 1})

    async with anyio.create_task_group() as group:

        async def release() -> None:
            while not holds:
                await anyio.lowlevel.checkpoint()
            await anyio.wait_all_tasks_blocked()
            holds[0].opened.set()

        group.start_soon(release)
        handle = await serve(lifespan(grace=10), use)
    assert handle.task.output == {"n": 1}


async def test_failures_come_out_at_the_end() -> None:
    """With the server's own error, if there is one."""

    async def use(runtime: AgentRuntime) -> None:
        handle = await runtime.submit("fail", {"n": 1})
        while not handle.is_done:
            await anyio.lowlevel.checkpoint()

    with raising() as caught:
        await serve(lifespan(setup=register), use)
    assert ["number 1"] == [str(leaf.__cause__) for leaf in leaves(caught.value)]
    own = LookupError("own")
    with raising() as caught:
        await serve(lifespan(setup=register), use, error=own)
    assert own in leaves(caught.value)
