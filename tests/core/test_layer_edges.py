"""Layers where it gets narrow: blocks that others close, generators, mistakes that Python would complain of later."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
import types
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import aclosing
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from agentcore import (
    Bulkhead,
    CircuitBreaker,
    CircuitBreakerConfig,
    ConfigurationError,
    Fallback,
    Layer,
    Pipeline,
    RateLimit,
    Retry,
    Timeout,
    _interop,
)
from agentcore._layer import _entered, check_decorated, dispose, is_cancelled
from agentcore.testing import BACKENDS, run_sim, simulate
from tests.core.circuits import Down, fail, succeed
from tests.core.test_layer import Noting

pytestmark = pytest.mark.anyio


async def rows(layer: Any) -> AsyncGenerator[int]:
    """Go through something, in a block that is open as long as that takes."""
    async with layer:
        yield 1
        yield 2


async def begin_elsewhere(generator: AsyncGenerator[int]) -> None:
    """Have another task begin with a generator."""

    async def begin() -> None:
        assert 1 == await anext(generator)

    async with anyio.create_task_group() as group:
        group.start_soon(begin)


async def close_in_a_task(generator: AsyncGenerator[int]) -> None:
    """Have another task close a generator, which has the blocks of this one in its context."""
    async with anyio.create_task_group() as group:
        group.start_soon(generator.aclose)


# ---------------------------------------------------------------- blocks of others


@simulate(runs=3)
async def test_a_generator_that_is_closed_elsewhere_takes_no_block_of_another_task() -> None:
    """Neither the one of the task that closes it, nor the one of who has started that task."""
    layer = Noting()
    generator = rows(layer)
    await begin_elsewhere(generator)
    async with layer:
        await close_in_a_task(generator)
        assert (1, ["in", "in"]) == (layer.abandoned, layer.noted)
    assert (1, ["in", "in", "out"]) == (layer.abandoned, layer.noted)


@simulate(runs=3)
async def test_a_generator_is_closed_in_its_task() -> None:
    """Then its block is found."""
    layer = Noting()
    async with aclosing(rows(layer)) as generator:
        assert 1 == await anext(generator)
    assert (0, ["in", "GeneratorExit"], ()) == (layer.abandoned, layer.noted, _entered.get())


@simulate(runs=3)
async def test_a_foreign_generator_does_not_end_a_probe() -> None:
    """The garbage collector has one closed while a probe is under way: only what the probe does counts."""
    breaker = CircuitBreaker(
        "api", CircuitBreakerConfig(failure_threshold=1, success_threshold=1, reset_timeout_ms=100, jitter=0)
    )
    generator = rows(breaker)
    await begin_elsewhere(generator)
    with pytest.raises(Down):
        await breaker.execute(fail)
    await anyio.sleep(0.2)
    async with breaker:
        await close_in_a_task(generator)
        assert breaker.is_half_open
    assert (True, 1) == (breaker.is_closed, breaker.metrics.successes)


def test_two_tasks_may_share_a_context() -> None:
    """Each leaves the block that it has entered, in whatever order."""

    async def main() -> list[str]:
        context = contextvars.copy_context()
        timeout = Timeout(5)
        outcomes: list[str] = []

        async def stay(begin: float, seconds: float, name: str) -> None:
            await asyncio.sleep(begin)
            try:
                async with timeout:
                    await asyncio.sleep(seconds)
            except TimeoutError:
                outcomes.append(f"{name} was cut at {anyio.current_time():g}")
            else:
                outcomes.append(f"{name} ended at {anyio.current_time():g}")

        tasks = [
            asyncio.create_task(stay(0, 3, "the first"), context=context),
            asyncio.create_task(stay(1, 9, "the second"), context=context),
        ]
        await asyncio.gather(*tasks)
        return outcomes

    assert ["the first ended at 3", "the second was cut at 6"] == run_sim(main, backend="asyncio").unwrap()


@pytest.mark.thorough
@simulate(runs=2)
async def test_what_tasks_leave_behind_is_not_handed_on() -> None:
    """In a chain of tasks, each started by the one before, the blocks of those that have ended do not pile up."""
    layer = Noting()
    seen: list[int] = []

    async def late(group: Any, left: int) -> None:
        await anyio.sleep(1)
        gc.collect()
        async with layer:
            seen.append(len(_entered.get()))
            if left:
                group.start_soon(late, group, left - 1)

    async with anyio.create_task_group() as group:
        group.start_soon(late, group, 9)
    assert [1] * 10 == seen


@simulate(runs=2)
async def test_a_bulkhead_gives_back_only_what_was_taken() -> None:
    """Who leaves a block that nobody has entered frees no place; who leaves one that is not found frees its place."""
    bulkhead = Bulkhead(2)
    pipeline = Pipeline(bulkhead, Timeout(5))
    for layer in (bulkhead, pipeline):
        with pytest.raises(ConfigurationError, match="must be left in the task that has entered it"):
            await layer.__aexit__(None, None, None)
        assert 0 == bulkhead.statistics().running
        generator = rows(bulkhead)
        await begin_elsewhere(generator)
        assert 1 == bulkhead.statistics().running
        await close_in_a_task(generator)
        assert 0 == bulkhead.statistics().running
    with pytest.raises(Down):
        async with bulkhead:
            assert 1 == bulkhead.statistics().running
            raise Down
    assert 0 == bulkhead.statistics().running


# ---------------------------------------------------------------- generators


async def numbers() -> AsyncGenerator[int]:
    yield 1


def digits() -> Generator[int]:
    yield 1


class Rows:
    """An object whose call makes a generator."""

    def __call__(self) -> Generator[int]:
        yield 1

    async def method(self) -> AsyncGenerator[int]:
        yield 1


GENERATORS = [numbers, digits, Rows(), Rows().method, functools.partial(functools.partial(numbers))]
LAYERS = [Timeout(1), Retry(), Bulkhead(1), RateLimit(1), Fallback.value(1), Pipeline()]


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.name)
@pytest.mark.parametrize("function", GENERATORS)
async def test_generators_are_refused(layer: Layer, function: Any) -> None:
    """Nothing of them would be done inside of the layer. A coroutine function would not be what is wanted either."""
    with pytest.raises(ConfigurationError) as caught:
        layer(function)
    assert (
        f"@{layer.name} decorates functions that return: got the generator {function!r}; "
        "put what may fail into a function, or write `async with` inside of it"
    ) == str(caught.value)
    with pytest.raises(ConfigurationError) as caught:
        await layer.execute(function)
    assert (
        f"execute of {layer.name!r} takes functions that return: got the generator {function!r}; "
        "pass a function that goes through it"
    ) == str(caught.value)


class Anything:
    """An object that has every attribute, and can be called."""

    def __getattr__(self, name: str) -> str:
        return name

    def __call__(self) -> str:
        return "well"


async def test_other_functions_are_none() -> None:
    """A generator that can be awaited is a coroutine; who returns a generator need not be one."""

    @types.coroutine
    def stand_still() -> Generator[Any]:
        yield from anyio.lowlevel.checkpoint().__await__()

    assert await Timeout(1).execute(stand_still) is None
    assert [1] == list(await Timeout(1).execute(lambda: digits()))  # noqa: PLW0108 - it must not look like a generator
    assert "well" == await Timeout(1).execute(Anything())
    for function in (succeed, print, Anything(), Rows, len):
        check_decorated("layer", function)


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize("layer", [Retry(), Fallback.value(1)], ids=lambda layer: layer.name)
async def test_layers_that_cannot_stand_around_a_block_say_so(layer: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        async with layer:
            pytest.fail("it was entered")
    assert (
        f"`async with` needs layers that can stand around a block: got {layer!r}; call a function by `execute`"
    ) == str(caught.value)
    with pytest.raises(ConfigurationError, match="needs layers that can stand around a block"):
        layer.__aexit__(None, None, None)


@pytest.mark.parametrize(
    "make",
    [
        Fallback,
        lambda call: Retry(retry_if=call),
        lambda call: Retry(retry_if_result=call),
        lambda call: Retry(on_retry=call),
        lambda call: Pipeline(Retry(), call),
        lambda call: Pipeline(3, call),  # type: ignore[arg-type]
    ],
)
def test_coroutines_that_are_given_by_mistake_are_closed(make: Callable[[Any], object]) -> None:
    """Otherwise Python would complain of them somewhere else."""
    call = succeed()
    with pytest.raises(ConfigurationError):
        make(call)
    with pytest.raises(RuntimeError, match="cannot reuse already awaited coroutine"):
        call.send(None)
    dispose(3, None, call)


@pytest.mark.parametrize("backend", BACKENDS)
def test_who_is_cancelled(backend: Any) -> None:
    """By a scope on any backend."""

    async def main() -> list[bool]:
        seen = [is_cancelled(_interop.cancel_requests())]
        with anyio.CancelScope() as scope:  # noqa: ASYNC100 - it is about what is known inside
            scope.cancel()
            seen.append(is_cancelled(_interop.cancel_requests()))
            with anyio.CancelScope(shield=True):  # noqa: ASYNC100 - it is about what is known inside
                seen.append(is_cancelled(_interop.cancel_requests()))
        seen.append(is_cancelled(_interop.cancel_requests()))
        return seen

    assert [False, True, False, False] == run_sim(main, backend=backend).unwrap()


def test_requests_to_end() -> None:
    """They are counted on asyncio, in tasks."""
    assert 0 == _interop.cancel_requests()

    async def main() -> list[int]:
        task = asyncio.current_task()
        assert task is not None
        seen = [_interop.cancel_requests()]
        task.cancel()
        seen.append(_interop.cancel_requests())
        task.uncancel()
        seen.append(_interop.cancel_requests())
        loop = asyncio.get_running_loop()
        # Outside of every task.
        loop.call_soon(lambda: seen.append(_interop.cancel_requests()))
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:  # 3.11 and 3.12 do not forget that one was asked for
            await asyncio.sleep(0)
        return seen

    assert [0, 1, 0, 0] == run_sim(main, backend="asyncio").unwrap()


def test_requests_to_end_without_asyncio(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not imported for that."""
    monkeypatch.delitem(__import__("sys").modules, "asyncio")
    assert 0 == _interop.cancel_requests()
