"""A circuit breaker as a decorator and around blocks."""

from __future__ import annotations

import functools
import gc
import inspect
from collections.abc import AsyncGenerator, Generator
from typing import Any

import anyio
import pytest

from agentcore import CircuitOpenError, ConfigurationError
from agentcore._layer import _entered
from agentcore.testing import simulate
from tests.core.callables import MISTAKES, Adder, AsyncAdder, add, add_async
from tests.core.circuits import Down, make, succeed

pytestmark = pytest.mark.anyio


# ---------------------------------------------------------------- as a decorator


async def test_decorator_of_coroutine_functions() -> None:
    """It looks like what it decorates, and counts each call."""
    breaker = make()

    @breaker
    async def fetch(url: str, *, times: int = 1) -> str:
        """Fetch a page."""
        if not url:
            raise Down("no page")
        return url * times

    assert ("fetch", "Fetch a page.") == (fetch.__name__, fetch.__doc__)
    assert inspect.iscoroutinefunction(fetch)
    assert ["url", "times"] == list(inspect.signature(fetch).parameters)
    assert "aa" == await fetch("a", times=2)
    with pytest.raises(Down):
        await fetch("")
    with pytest.raises(CircuitOpenError):
        await fetch("a")
    metrics = breaker.metrics
    assert (1, 1, 1) == (metrics.successes, metrics.failures, metrics.rejected)


def test_decorator_of_functions() -> None:
    """A synchronous one stays synchronous, and needs no event loop."""
    breaker = make()

    @breaker
    def load(path: str, *, times: int = 1) -> str:
        """Load a file."""
        if not path:
            raise Down("no file")
        return path * times

    assert ("load", "Load a file.") == (load.__name__, load.__doc__)
    assert not inspect.iscoroutinefunction(load)
    assert "aa" == load("a", times=2)
    with pytest.raises(Down):
        load("")
    with pytest.raises(CircuitOpenError):
        load("a")


async def test_decorator_of_methods() -> None:
    """The object comes through as the first argument."""
    breaker = make()

    class Client:
        host = "here"

        @breaker
        async def fetch(self, path: str) -> str:
            return f"{self.host}/{path}"

        @breaker
        def load(self, path: str) -> str:
            return f"{self.host}:{path}"

    assert ("here/a", "here:a") == (await Client().fetch("a"), Client().load("a"))
    assert 2 == breaker.metrics.successes


async def test_decorator_of_partials_and_objects() -> None:
    breaker = make()
    assert 3 == await breaker(functools.partial(add_async, 1))(2)
    assert 3 == await breaker(AsyncAdder())(1, 2)
    assert 3 == breaker(functools.partial(add, 1))(2)
    assert 3 == breaker(Adder())(1, 2)
    assert 4 == breaker.metrics.successes


def numbers() -> Generator[int]:
    yield 1


async def numbers_async() -> AsyncGenerator[int]:
    yield 1


@pytest.mark.parametrize("function", [numbers, numbers_async, functools.partial(numbers)])
def test_decorator_refuses_generators(function: Any) -> None:
    """What they raise comes later, when nobody looks."""
    with pytest.raises(ConfigurationError) as caught:
        make()(function)
    assert (
        f"@api decorates functions that return: got the generator {function!r}; "
        "put what may fail into a function, or write `async with` inside of it"
    ) == str(caught.value)


def test_decorator_refuses_what_cannot_be_called() -> None:
    for mistake, text in [*MISTAKES, (succeed(), "write succeed, not succeed()")]:
        with pytest.raises(ConfigurationError) as caught:
            make()(mistake)
        assert str(caught.value).startswith("@api takes a function: got ")
        assert str(caught.value).endswith(text)


async def test_synchronous_decorator_refuses_what_gives_a_coroutine() -> None:
    """It is known only when it is called."""
    breaker = make()
    decorated = breaker(lambda: succeed())  # noqa: PLW0108 - it must not look like a coroutine function
    with pytest.raises(ConfigurationError, match="takes synchronous functions"):
        decorated()
    assert 0 == breaker.metrics.failures
    gc.collect()


# ---------------------------------------------------------------- as a block


async def test_block() -> None:
    """It counts as one call; what it raises comes out as it is."""
    breaker = make(failure_threshold=2)
    async with breaker as given:
        assert given is None
    assert 1 == breaker.metrics.successes
    error = Down("no answer")
    for _ in range(2):
        with pytest.raises(Down) as caught:
            async with breaker:
                raise error
        assert error is caught.value
    with pytest.raises(CircuitOpenError):
        async with breaker:
            pytest.fail("it was entered")
    assert () == _entered.get()
    metrics = breaker.metrics
    assert (1, 2, 1) == (metrics.successes, metrics.failures, metrics.rejected)


async def test_blocks_within_blocks() -> None:
    """Of the same breaker and of others; each is a call."""
    one, other = make("one"), make("other")
    async with one, other, one:
        assert (0, 0) == (one.metrics.successes, other.metrics.successes)
    assert (2, 1) == (one.metrics.successes, other.metrics.successes)
    with pytest.raises(Down):
        async with one, other:
            raise Down
    assert (True, True) == (one.is_open, other.is_open)
    assert () == _entered.get()


@simulate(runs=20)
async def test_blocks_in_parallel() -> None:
    """Each task has its own: they are left in any order, and each tells what came of it."""
    breaker = make(failure_threshold=100)
    inside = 0

    async def visit(number: int) -> None:
        nonlocal inside
        try:
            async with breaker:
                inside += 1
                await anyio.sleep(number % 3)
                inside -= 1
                if number % 2:
                    raise Down
        except Down:
            return

    async with anyio.create_task_group() as group:
        for number in range(10):
            group.start_soon(visit, number)
    assert (0, 5, 5) == (inside, breaker.metrics.successes, breaker.metrics.failures)


@simulate(runs=10)
async def test_blocks_around_tasks() -> None:
    """A task that is started in a block leaves its own blocks, and not those of its parent."""
    breaker = make(failure_threshold=100)
    seen: list[int] = []

    async def child() -> None:
        async with breaker:
            seen.append(len(_entered.get()))
            await anyio.sleep(2)
        seen.append(len(_entered.get()))

    async with anyio.create_task_group() as group:
        async with breaker:
            group.start_soon(child)
            await anyio.sleep(1)
        assert 1 == breaker.metrics.successes
        assert () == _entered.get()
    assert ([2, 1], 2) == (seen, breaker.metrics.successes)


async def test_a_block_is_left_in_its_task() -> None:
    """In a task without one it is an error that says what happened."""
    breaker = make()
    with pytest.raises(ConfigurationError) as caught:
        await breaker.__aexit__(None, None, None)
    assert (
        "a block of 'api' must be left in the task that has entered it: got a task without one; "
        "do not keep it open across a `yield`"
    ) == str(caught.value)
    assert 0 == breaker.metrics.successes


async def test_blocks_are_left_in_any_order() -> None:
    """As an exit stack may do that closes one before the others."""
    one, other = make("one"), make("other")
    await one.__aenter__()
    await other.__aenter__()
    await one.__aexit__(None, None, None)
    assert (1, 0) == (one.metrics.successes, other.metrics.successes)
    await other.__aexit__(None, None, None)
    assert (1, 1, ()) == (one.metrics.successes, other.metrics.successes, _entered.get())
