"""Sweeps of the layers around a call."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import anyio

from agentcore import (
    Backoff,
    Bulkhead,
    BulkheadFullError,
    CallTimeoutError,
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitOpenError,
    Fallback,
    Pipeline,
    RateLimit,
    RateLimitError,
    Retry,
    RetryBudget,
    Timeout,
)
from tests.sweeps.scenarios import LONG, Boom, State, do, scenario, steps

WAITS = Backoff(1.0, 1.0, 1.0, jitter=False)


class Calls(State):
    """One layer of each kind, and a function that counts its calls."""

    def __init__(self) -> None:
        self.bulkhead = Bulkhead(1, queue=10)
        self.limit = RateLimit(1.0, burst=1)
        self.budget = RetryBudget(ratio=0, per_second=0, capacity=5)
        self.breaker = CircuitBreaker("swept", CircuitBreakerConfig(failure_threshold=2, reset_timeout_ms=2_000))
        self.retry = Retry(3, backoff=WAITS, on=Boom, budget=self.budget, open_circuit="wait")
        self.begun: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()
        self.inside = self.peak = self.paid = 0

    async def work(self, *words: str) -> str:
        """Do something, another thing each time, and count it."""
        word = words[min(self.begun[words[0]], len(words) - 1)]
        self.begun[words[0]] += 1
        self.inside += 1
        self.peak = max(self.peak, self.inside)
        try:
            await do(word)
            return word
        finally:
            self.inside -= 1
            self.ended[words[0]] += 1

    async def block(self, layer: Any, word: str) -> None:
        """Do something in a block."""
        async with layer:
            await self.work(word)

    async def check(self) -> None:
        """Nobody runs, nobody waits, nothing is lost: all of it can be had again."""
        await super().check()
        assert self.begun == self.ended
        assert self.inside == 0
        statistics = self.bulkhead.statistics()
        assert (0, 0) == (statistics.running, statistics.waiting)
        assert 0 == self.limit.statistics().waiting
        assert 5 - self.paid == self.budget.available
        await anyio.sleep(LONG)
        assert 1 == self.limit.statistics().available
        pipeline = Pipeline(self.retry, self.breaker, self.limit, self.bulkhead, Timeout(5))
        for _ in range(2):
            assert "work" == await pipeline.execute(self.work, "work")
        async with Pipeline(self.breaker, self.limit, self.bulkhead, Timeout(5)):
            await steps()
        await super().check()


class Alone(Calls):
    """With a bulkhead that must never let in two."""

    async def check(self) -> None:
        assert self.peak <= 1
        await super().check()


BLOCKS = ("GuardLayer.__aenter__", "GuardLayer.__aexit__")


@scenario(Calls, "Layer.execute", strict=True, within=0.0)
async def call_with_time_enough(state: Calls) -> None:
    state.expect("sleep" == await Timeout(5).execute(state.work, "sleep"))


@scenario(Calls, "Layer.execute", within=2.0)
async def call_with_too_little_time(state: Calls) -> None:
    for word in ("long", "stubborn"):
        with state.raises(CallTimeoutError):
            await Timeout(1).execute(state.work, word)


@scenario(Calls, *BLOCKS, within=1.0)
async def block_with_too_little_time(state: Calls) -> None:
    with state.raises(CallTimeoutError):
        await state.block(Timeout(1), "long")


@scenario(Alone, "Layer.execute", *BLOCKS, strict=True, within=0.0)
async def wait_for_places(state: Alone) -> None:
    """Calls and blocks, one behind the other."""
    async with anyio.create_task_group() as group:
        for word in ("work", "sleep", "fail"):
            group.start_soon(quietly, state.bulkhead.execute, state.work, word)
            group.start_soon(quietly, state.block, state.bulkhead, word)


@scenario(Alone, "Layer.execute", strict=True, within=0.0)
async def wait_for_a_place_for_some_time(state: Alone) -> None:
    """Deadlines of their own pass in the line."""
    async with anyio.create_task_group() as group:
        for seconds in (5.0, 0.5, 1.0, 5.0):
            group.start_soon(quietly, Timeout(seconds).execute, state.bulkhead.execute, state.work, "sleep")


@scenario(Calls, "Layer.execute", within=0.0)
async def find_no_place(state: Calls) -> None:
    full = Bulkhead(1)
    async with anyio.create_task_group() as group, full:
        group.start_soon(quietly, full.execute, state.work, "work")
        with state.raises(BulkheadFullError):
            await full.execute(state.work, "work")
        await steps()


@scenario(Calls, "Layer.execute", *BLOCKS, strict=True, within=0.0)
async def wait_for_tokens(state: Calls) -> None:
    """Calls and blocks, one each second."""
    async with anyio.create_task_group() as group:
        for word in ("work", "fail"):
            group.start_soon(quietly, state.limit.execute, state.work, word)
            group.start_soon(quietly, state.block, state.limit, word)


@scenario(Calls, "Layer.execute", within=0.0)
async def wait_for_a_token_for_some_time(state: Calls) -> None:
    """Who would be too late is rejected, who is cancelled later costs nothing."""
    async with anyio.create_task_group() as group:
        for seconds in (LONG, 1.5, 5.0, 2.5):
            group.start_soon(quietly, Timeout(seconds).execute, state.limit.execute, state.work, "sleep")
        with anyio.move_on_after(0.5):
            await state.limit.execute(state.work, "sleep")


@scenario(Calls, "Layer.execute", within=0.0)
async def call_again(state: Calls) -> None:
    state.expect("work" == await pay(state, state.retry.execute, state.work, "fail", "fail", "work"))


@scenario(Calls, "Layer.execute", within=0.0)
async def call_again_in_vain(state: Calls) -> None:
    with state.raises(Boom):
        await pay(state, state.retry.execute, state.work, "fail")


@scenario(Calls, "Layer.execute", within=0.0, allow=(CircuitOpenError,))
async def wait_for_a_circuit(state: Calls) -> None:
    """The third attempt meets it open, costs nothing, and comes again when it lets calls through.

    A rejection that comes to a cancelled caller is raised: nobody can tell it from an error of the unwinding.
    """
    pipeline = Pipeline(state.retry, state.breaker)
    state.expect("work" == await pay(state, pipeline.execute, state.work, "fail", "fail", "work"))


@scenario(Calls, "Layer.execute", within=2.0)
async def answer_instead(state: Calls) -> None:
    """Whatever is raised; the answer takes its time as well."""

    async def degraded(error: Exception, word: str) -> str:
        return await state.work("sleep")

    for word in ("fail", "long"):
        answer = await Pipeline(Fallback(degraded, on=(Boom, CallTimeoutError)), Timeout(1)).execute(state.work, word)
        state.expect("sleep" == answer)


@scenario(Alone, "Layer.execute", within=2.0)
async def call_through_all(state: Alone) -> None:
    """Several callers, each through everything."""
    pipeline = Pipeline(
        Fallback.value("degraded", on=(Boom, CallTimeoutError, RateLimitError)),
        Retry(2, backoff=WAITS, on=Boom),
        state.limit,
        state.bulkhead,
        Timeout(1.5),
    )
    async with anyio.create_task_group() as group:
        for word in ("sleep", "fail", "long"):
            group.start_soon(pipeline.execute, state.work, word)


@scenario(Alone, *BLOCKS, within=2.0)
async def stand_in_all(state: Alone) -> None:
    """Several blocks, each in everything that can stand around one."""
    pipeline = Pipeline(state.breaker, state.limit, state.bulkhead, Timeout(1.5))
    async with anyio.create_task_group() as group:
        for word in ("sleep", "long", "work"):
            group.start_soon(quietly, state.block, pipeline, word)


async def quietly(function: Callable[..., Any], *args: Any) -> None:
    """Call something, and let the errors pass that these layers are made for."""
    try:
        await function(*args)
    except (Boom, BulkheadFullError, CallTimeoutError, RateLimitError):
        return


async def pay(state: Calls, function: Callable[..., Any], work: Any, *words: str) -> Any:
    """Call something with retries; note how many have been made."""
    try:
        return await function(work, *words)
    finally:
        state.paid += max(0, state.begun[words[0]] - 1)
