"""A strict runtime inside of an asynchronous generator: refused at the entry, where it can still be told."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from agentcore import AgentRuntime, ConfigurationError
from agentcore._host import Host
from tests.runtime.parts import echo

pytestmark = pytest.mark.anyio

Block = Callable[[bool | None], Any]


async def plain(hosted: bool | None) -> AsyncGenerator[AgentRuntime]:
    async with AgentRuntime(hosted=hosted) as runtime:
        yield runtime


async def stacked(hosted: bool | None) -> AsyncGenerator[AgentRuntime]:
    async with AsyncExitStack() as stack:
        yield await stack.enter_async_context(AgentRuntime(hosted=hosted))


@asynccontextmanager
async def managed(hosted: bool | None) -> AsyncIterator[AgentRuntime]:
    async with AgentRuntime(hosted=hosted) as runtime:
        yield runtime


async def helped(hosted: bool | None) -> AsyncGenerator[AgentRuntime]:
    """Enters by a coroutine that is called by another one."""
    stack = AsyncExitStack()
    yield await outer_helper(stack, hosted)
    await stack.aclose()


async def outer_helper(stack: AsyncExitStack, hosted: bool | None) -> AgentRuntime:
    await anyio.lowlevel.checkpoint()
    return await inner_helper(stack, hosted)


async def inner_helper(stack: AsyncExitStack, hosted: bool | None) -> AgentRuntime:
    return await stack.enter_async_context(AgentRuntime(hosted=hosted))


async def delegated(hosted: bool | None) -> AsyncGenerator[AgentRuntime]:
    """Enters by the context manager that another generator makes."""
    async with managed(hosted) as runtime:
        yield runtime


class Application:
    """As servers have it: a lifespan that is a method."""

    @asynccontextmanager
    async def lifespan(self, hosted: bool | None) -> AsyncIterator[AgentRuntime]:
        async with AgentRuntime(hosted=hosted) as runtime:
            yield runtime


@asynccontextmanager
async def iterated(hosted: bool | None) -> AsyncIterator[AgentRuntime]:
    """Goes through a generator that enters it."""
    async with aclosing(plain(hosted)) as inner:
        async for runtime in inner:
            yield runtime


BLOCKS: dict[str, Block] = {
    "plain": asynccontextmanager(plain),
    "AsyncExitStack": asynccontextmanager(stacked),
    "asynccontextmanager": managed,
    "coroutines between": asynccontextmanager(helped),
    "another context manager": asynccontextmanager(delegated),
    "method": Application().lifespan,
    "async for": iterated,
}
blocks = pytest.mark.parametrize("block", BLOCKS.values(), ids=list(BLOCKS))


@blocks
async def test_it_is_refused_at_the_entry(block: Block) -> None:
    """With both choices and the name of the generator; nothing has been entered, so the program goes on as if nothing was."""
    with pytest.raises(ConfigurationError, match="must be left by the task that has entered it") as caught:
        async with block(None):
            pytest.fail("it was entered")
    assert "hosted=True" in caught.value.message
    assert "hosted=False" in caught.value.message
    assert "yield" in caught.value.message
    details = caught.value.details
    assert (details["name"], details["value"]) == ("hosted", None)
    assert repr(details["generator"]) in caught.value.message
    assert Host.find() is None
    async with AgentRuntime() as runtime:
        runtime.handler("echo")(echo)
        assert await runtime.run("echo", {"n": 1}) == {"n": 1}


@blocks
@pytest.mark.parametrize("hosted", [True, False])
async def test_who_says_what_is_meant_may_enter_it(block: Block, hosted: bool) -> None:
    """Hosted for a yield; strict, by the word of who knows that the same task leaves it."""
    async with block(hosted) as runtime:
        runtime.handler("echo")(echo)
        assert await runtime.run("echo", {"n": 1}) == {"n": 1}
        assert AgentRuntime.current() is runtime
    assert runtime.health().state == "closed"
    assert Host.find() is None


async def test_a_refused_runtime_can_be_entered_elsewhere() -> None:
    """The refusal changes nothing."""
    runtime = AgentRuntime()

    async def generator() -> AsyncGenerator[None]:
        with pytest.raises(ConfigurationError):
            await runtime.__aenter__()
        yield

    async for _ in generator():
        pass
    assert runtime.health().state == "new"
    async with runtime:
        assert runtime.health().healthy


async def test_the_generator_is_named() -> None:
    """The innermost one, as the program calls it."""

    async def inner() -> AsyncGenerator[None]:
        async with AgentRuntime():
            yield

    async def outer() -> AsyncGenerator[None]:
        async for _ in inner():
            yield

    with pytest.raises(ConfigurationError) as caught:
        await anext(outer())
    assert caught.value.details["generator"] == f"{test_the_generator_is_named.__name__}.<locals>.inner"


# Where there is no generator on the stack.


async def test_a_suspended_generator_is_none_on_the_stack() -> None:
    """The body of an `async for`, and of a block that a generator makes, are no part of it."""

    async def numbers() -> AsyncGenerator[int]:
        for number in range(2):
            await anyio.lowlevel.checkpoint()
            yield number

    @asynccontextmanager
    async def around() -> AsyncIterator[None]:
        yield

    async with around():
        async for number in numbers():
            async with AgentRuntime() as runtime:
                runtime.handler("echo")(echo)
                assert await runtime.run("echo", {"n": number}) == {"n": number}


async def test_a_task_of_its_own_has_a_stack_of_its_own() -> None:
    """What a generator starts in a task group is not called by it."""
    entered: list[str] = []

    async def work() -> None:
        async with AgentRuntime() as runtime:
            entered.append(runtime.health().state)

    async def generator() -> AsyncGenerator[None]:
        async with anyio.create_task_group() as group:
            group.start_soon(work)
        yield

    async with aclosing(generator()) as opened:
        async for _ in opened:
            pass
    assert entered == ["open"]


async def test_a_handler_of_a_runtime_may_enter_another_one() -> None:
    """Though its runtime was entered in a generator: it executes in a task of its own."""

    @asynccontextmanager
    async def outer() -> AsyncIterator[AgentRuntime]:
        async with AgentRuntime(hosted=True) as runtime:
            yield runtime

    async with outer() as runtime:

        @runtime.handler("inner")
        async def inner(given: dict[str, Any]) -> str:
            async with AgentRuntime() as own:
                return own.health().state

        handle = await runtime.submit("inner")
        assert await handle.result() == {"result": "open"}


async def test_a_class_with_an_exit_stack_needs_no_generator() -> None:
    """A context manager that is written by hand enters and leaves in the task of its block."""

    class Service:
        async def __aenter__(self) -> AgentRuntime:
            self.stack = AsyncExitStack()
            return await self.stack.enter_async_context(AgentRuntime())

        async def __aexit__(self, *error: object) -> None:
            await self.stack.aclose()

    async with Service() as runtime:
        assert runtime.health().healthy


async def test_a_plain_generator_or_a_comprehension_does_no_harm() -> None:
    """Only what is asynchronous and may yield can keep it open."""

    async def state(number: int) -> str:
        async with AgentRuntime() as runtime:
            return f"{runtime.health().state} {number}"

    coroutines: list[Awaitable[str]] = [state(number) for number in range(2)]
    assert [await one for one in coroutines] == ["open 0", "open 1"]


async def test_a_generator_that_only_waits_is_refused_too() -> None:
    """Nobody can tell from outside whether it is going to yield inside of the block; the message says what to write."""

    async def whole() -> str:
        async with AgentRuntime(hosted=hosted) as runtime:
            return runtime.health().state

    async def generator() -> AsyncGenerator[str]:
        yield await whole()

    hosted: bool | None = None
    with pytest.raises(ConfigurationError, match="hosted=False"):
        await anext(generator())
    hosted = False
    assert [one async for one in generator()] == ["open"]


# Fixtures are asynchronous generators as well.


@pytest.fixture
async def refusal(anyio_backend: Any) -> AsyncIterator[ConfigurationError]:
    with pytest.raises(ConfigurationError) as caught:
        async with AgentRuntime():
            yield ConfigurationError("it was entered")
    yield caught.value


@pytest.fixture
async def hosted_runtime(anyio_backend: Any) -> AsyncIterator[AgentRuntime]:
    async with AgentRuntime(hosted=True) as runtime:
        runtime.handler("echo")(echo)
        yield runtime


async def test_in_a_fixture(refusal: ConfigurationError, hosted_runtime: AgentRuntime) -> None:
    """The strict one is refused, the hosted one works in the test, which is another task."""
    assert "'refusal'" in refusal.message
    assert await hosted_runtime.run("echo", {"n": 1}) == {"n": 1}
    assert AgentRuntime.current() is hosted_runtime


@pytest.mark.parametrize("value", [2, "yes", "host"])
async def test_an_unusable_choice_is_refused(value: object) -> None:
    """It is True, False or left out."""
    with pytest.raises(ConfigurationError, match=f"must be True, False or None: got {value!r}"):
        AgentRuntime(hosted=value)  # type: ignore[arg-type]
