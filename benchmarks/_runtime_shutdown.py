"""The end of a runtime with 10,000 executions asleep and no grace, against the end of a task group with as many tasks.

What is timed begins when everything sleeps and the block is about to be left, and ends when it has been left. A second
reference tells how much of it is AnyIO's: as many tasks that are cancelled one by one, and not by their group at once.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import anyio
from _rounds import Measure, Pair, Row, compare, measure

from agentcore import (
    AgentConfig,
    AgentContext,
    AgentResult,
    AgentRuntime,
    BaseAgent,
    RuntimeClosedError,
    RuntimeConfig,
)

SLEEPERS: Final = 10_000
ROUNDS: Final = 7
BARE: Final = f"{SLEEPERS:,} tasks of a task group of AnyIO that is cancelled"
EACH: Final = "the same, each task in a scope of its own that is cancelled"
AT_MOST: Final = 1.5


class Sleeping(BaseAgent):
    """An agent that sleeps."""

    async def initialize(self) -> bool:
        """Need nothing."""
        return True

    async def process(self, context: AgentContext) -> AgentResult:
        """Sleep."""
        await anyio.sleep_forever()
        raise AssertionError

    async def handle_error(self, error: Exception, context: AgentContext) -> AgentResult:
        """Give the error back."""
        return AgentResult.error_result(str(error))


async def asleep() -> float:
    """Wait until everything sleeps, and return the time then. The collector must not come in between from here on."""
    await anyio.wait_all_tasks_blocked()
    gc.collect()
    gc.disable()
    return time.perf_counter()


def over(began: int) -> float:
    """Return the milliseconds since then, and have the collector work again."""
    spent = time.perf_counter() - began
    gc.enable()
    return spent * 1000


async def cancel_group() -> float:
    """Measure: a task group is cancelled and left."""
    async with anyio.create_task_group() as group:
        for _ in range(SLEEPERS):
            group.start_soon(anyio.sleep_forever)
        began = await asleep()
        group.cancel_scope.cancel()
    return over(began)


async def cancel_each() -> float:
    """Measure: every task of a task group is cancelled by itself, as tasks and asks are, and the group is left."""
    scopes: list[anyio.CancelScope] = []

    async def sleep() -> None:
        with anyio.CancelScope() as scope:
            scopes.append(scope)
            await anyio.sleep_forever()

    async with anyio.create_task_group() as group:
        for _ in range(SLEEPERS):
            group.start_soon(sleep)
        began = await asleep()
        for scope in scopes:
            scope.cancel()
    return over(began)


def runtime_of(*, hosted: bool) -> AgentRuntime:
    """Return a runtime that has room for all of them and waits for none."""
    return AgentRuntime(RuntimeConfig(in_flight=SLEEPERS), grace=0, hosted=hosted)


async def leave_tasks(*, hosted: bool) -> float:
    """Measure: a runtime is left in which submitted tasks sleep."""
    async with runtime_of(hosted=hosted) as runtime:

        @runtime.handler("sleep")
        async def sleep(_input: dict[str, Any]) -> None:
            await anyio.sleep_forever()

        for _ in range(SLEEPERS):
            await runtime.submit("sleep", {})
        began = await asleep()
    return over(began)


async def leave_asks(*, hosted: bool) -> float:
    """Measure: a runtime is left in which an agent sleeps that many others have asked."""
    agent = Sleeping(AgentConfig("sleeping", "bench", max_concurrency=None))
    refused: list[RuntimeClosedError] = []

    async def ask(runtime: AgentRuntime) -> None:
        try:
            await runtime.ask(agent)
        except RuntimeClosedError as error:
            refused.append(error)

    async with anyio.create_task_group() as callers:
        async with runtime_of(hosted=hosted) as runtime:
            for _ in range(SLEEPERS):
                callers.start_soon(ask, runtime)
            began = await asleep()
        spent = over(began)
    assert len(refused) == SLEEPERS
    return spent


WAYS: Final[dict[str, Callable[..., Any]]] = {
    f"{SLEEPERS:,} submitted tasks asleep: leaving the block, no grace": leave_tasks,
    f"{SLEEPERS:,} asks asleep: leaving the block, no grace": leave_asks,
}


async def measure_shutdowns(backend: str) -> list[Row]:
    """Measure all of them in turns."""
    contenders: dict[str, Measure] = {BARE: cancel_group, EACH: cancel_each}
    for kind, hosted in (("strict", False), ("hosted", True)):
        contenders |= {f"{what}, {kind}": partial(way, hosted=hosted) for what, way in WAYS.items()}
    pairs: list[Pair] = []
    for what in [name for name in contenders if name not in (BARE, EACH)]:
        pairs += [
            Pair(what=what, subject=what, reference=BARE, at_most=AT_MOST),
            Pair(what=what, subject=what, reference=EACH),
        ]
    return compare(await measure(contenders, ROUNDS), pairs, "ms", backend)
