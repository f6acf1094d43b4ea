"""Several layers around each other, layers of one's own, and blocks: how they are entered and left."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import anyio
import pytest

from agentcore import (
    Bulkhead,
    BulkheadFullError,
    CallTimeoutError,
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitOpenError,
    ConfigurationError,
    Fallback,
    GuardLayer,
    Layer,
    Pipeline,
    RateLimit,
    Retry,
    Timeout,
)
from agentcore.testing import simulate
from tests.core.services import Boom

pytestmark = pytest.mark.anyio


async def add(one: int, *, other: int) -> int:
    return one + other


class Note(Layer):
    """Notes who is called through it, and how that ends."""

    def __init__(self, name: str, seen: list[str]) -> None:
        super().__init__(name)
        self.seen = seen

    async def _execute(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.seen.append(f"{self.name}+")
        try:
            return await func(*args, **kwargs)
        finally:
            self.seen.append(f"{self.name}-")


async def test_the_first_layer_is_the_outermost() -> None:
    """Pipelines in pipelines are as if their layers stood there; layers of one's own are as good as any."""
    seen: list[str] = []
    inner = Pipeline(Note("b", seen), Note("c", seen), name="inner")
    pipeline = Pipeline(Note("a", seen), inner, Note("d", seen))
    assert 3 == await pipeline.execute(add, 1, other=2)
    assert ["a+", "b+", "c+", "d+", "d-", "c-", "b-", "a-"] == seen
    assert "<Pipeline 'inner' of <Note 'b'>, <Note 'c'>>" == repr(inner)
    assert "<Pipeline 'none' of nothing>" == repr(Pipeline(name="none"))


class Counting(GuardLayer):
    """A layer of one's own that can stand around a block: it counts who is inside."""

    def __init__(self) -> None:
        super().__init__("counting")
        self.inside = 0

    def guard(self) -> AbstractAsyncContextManager[None]:
        @asynccontextmanager
        async def count() -> AsyncGenerator[None]:
            self.inside += 1
            try:
                yield
            finally:
                self.inside -= 1

        return count()


async def test_a_layer_of_ones_own_that_can_stand_around_a_block() -> None:
    """It says how a block begins and ends; the rest is there."""
    counting = Counting()
    seen: list[int] = []

    @Pipeline(counting, Timeout(5))
    async def look() -> None:
        seen.append(counting.inside)

    await look()
    async with counting, Pipeline(counting):
        await counting.execute(look)
    assert ([1, 4, 0], "<Counting 'counting'>") == ([*seen, counting.inside], repr(counting))


def test_what_can_be_decorated() -> None:
    """Partial functions and objects too, if calling them is asynchronous."""

    class Asynchronous:
        async def __call__(self) -> None: ...

    class Synchronous:
        def __call__(self) -> None: ...

    for function in (add, functools.partial(functools.partial(add, 1), other=2), Asynchronous()):
        assert callable(Timeout(1)(function))
    for wrong in (functools.partial(print), Synchronous(), print):
        with pytest.raises(ConfigurationError, match="decorates coroutine functions"):
            Timeout(1)(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((Timeout,), "is made of layers: got <class 'agentcore"),
        ((Timeout,), "write Timeout\\(...\\)"),
        ((add,), "give it layers, outermost first"),
        (([Timeout(1)],), "is made of layers: got \\["),
        ((None,), "got None"),
    ],
)
def test_a_pipeline_is_made_of_layers(arguments: tuple[Any, ...], message: str) -> None:
    """Nothing else has their interface."""
    with pytest.raises(ConfigurationError, match=message):
        Pipeline(Bulkhead(1), *arguments)


def test_a_layer_stands_once_in_a_pipeline() -> None:
    """A bulkhead would wait for itself."""
    bulkhead = Bulkhead(1)
    with pytest.raises(ConfigurationError) as caught:
        Pipeline(bulkhead, Timeout(1), bulkhead, name="twice")
    assert str(caught.value) == (
        "pipeline 'twice' takes each layer once: got <Bulkhead 'bulkhead' 0 of 1 running, 0 of 0 waiting> again; "
        "leave one out, or make a second one"
    )


@pytest.mark.parametrize("layer", [Retry(name="r"), Fallback.value(0, name="r"), Pipeline(Retry(), name="r")])
async def test_a_block_needs_layers_that_can_stand_around_one(layer: Any) -> None:
    """A block cannot be run twice, and has no result. Nothing has begun by then."""
    bulkhead = Bulkhead(1)
    pipeline = Pipeline(bulkhead, layer, name="p")
    with pytest.raises(ConfigurationError) as caught:
        async with pipeline:
            pytest.fail("entered")
    inner = "<Retry 'retry'>" if isinstance(layer, Pipeline) else repr(layer)
    name = "r" if isinstance(layer, Pipeline) else "p"
    assert str(caught.value) == (
        f"`async with` of pipeline {name!r} needs layers that can stand around a block: got {inner}; "
        "call a function by `execute`, or leave the layer out"
    )
    assert 0 == bulkhead.statistics().running


async def test_a_block_in_several_layers_is_left_by_all() -> None:
    """In the order in which one leaves nested blocks, whatever the block raises."""
    breaker = CircuitBreaker("api", CircuitBreakerConfig(failure_threshold=1))
    bulkhead = Bulkhead(1)
    pipeline = Pipeline(breaker, bulkhead, Timeout(5))
    with pytest.raises(Boom):
        async with pipeline:
            assert 1 == bulkhead.statistics().running
            raise Boom
    assert (True, 0) == (breaker.is_open, bulkhead.statistics().running)
    with pytest.raises(CircuitOpenError):
        async with pipeline:
            pytest.fail("entered")


@simulate(runs=5)
async def test_a_block_that_cannot_begin_leaves_what_it_has_begun() -> None:
    """Rejected by an inner layer, or cut by an outer one while it waits for an inner one."""
    full = Bulkhead(1, queue=1)
    outer = Bulkhead(1)
    async with full:
        with pytest.raises(CallTimeoutError):
            async with Pipeline(outer, Timeout(3), full):
                pytest.fail("entered")
        assert (3.0, 0, 0) == (anyio.current_time(), outer.statistics().running, full.statistics().waiting)
        with pytest.raises(BulkheadFullError):
            async with Pipeline(outer, Bulkhead(1), _full()):
                pytest.fail("entered")
        assert 0 == outer.statistics().running


def _full() -> Bulkhead:
    bulkhead = Bulkhead(1)
    assert bulkhead._slots.try_take()
    return bulkhead


async def test_a_block_is_left_in_the_task_that_has_entered_it() -> None:
    """Anything else is told. What the block holds is given back all the same."""
    bulkhead = Bulkhead(1)
    for block in (bulkhead, Pipeline(CircuitBreaker("b"), RateLimit(5), bulkhead)):
        for error in (None, Boom()):
            await in_another_context(block.__aenter__)
            assert 1 == bulkhead.statistics().running
            with pytest.raises(ConfigurationError, match="must be left in the task that has entered it"):
                await block.__aexit__(error and type(error), error, None)
            assert 0 == bulkhead.statistics().running


async def in_another_context(function: Callable[[], Any]) -> None:
    """Call something in a task of its own."""
    async with anyio.create_task_group() as group:
        group.start_soon(function)


@pytest.mark.parametrize("in_pipeline", [False, True])
def test_a_block_that_is_closed_by_somebody_else_holds_nothing(in_pipeline: bool) -> None:
    """As by an event loop that ends with tasks pending: in another context, and with nobody to tell."""
    bulkhead = Bulkhead(1)
    layer = Pipeline(RateLimit(5), bulkhead, name="p") if in_pipeline else bulkhead

    async def block() -> None:
        async with layer:
            await asyncio.get_running_loop().create_future()

    loop = asyncio.new_event_loop()
    coroutine = block()
    task = loop.create_task(coroutine)
    loop.run_until_complete(asyncio.sleep(0))
    assert 1 == bulkhead.statistics().running
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.close()
    coroutine.close()
    assert 0 == bulkhead.statistics().running
