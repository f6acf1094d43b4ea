"""Measures agents, tasks, registries and the runtime against what the project promises of them.

    python benchmarks/core.py [--rounds 31] [--json | --markdown]

Exits with 1 if a promise is not kept. docs/benchmarks.md has the table, and says what the rows mean.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final, TypeAlias

import anyio
from _pydantic_task import CountedPydanticTask, PydanticTask
from _rounds import LEAST_ROUNDS, Loop, Measure, Pair, Row, compare, main, measure, measure_loops, traced

from agentcore import AgentConfig, AgentContext, AgentResult, AgentRuntime, BaseAgent, BaseTask, Registry

PACKAGES: Final = ("anyio", "attrs", "trio", "pydantic", "pydantic-core")
BACKENDS: Final = ("asyncio", "trio")

Function: TypeAlias = Callable[[], Awaitable[AgentResult]]
TaskClass: TypeAlias = type[BaseTask] | type[PydanticTask]

# ---------------------------------------------------------------- agents

RESULT: Final = AgentResult.success_result({"answer": 42})


async def answer() -> AgentResult:
    """Do what `Answering` does, without an agent."""
    return AgentResult.success_result({"answer": 42})


async def ready() -> AgentResult:
    """Do what `Ready` does, without an agent."""
    return RESULT


class Answering(BaseAgent):
    """An agent that makes a result for each execution, as agents do."""

    async def initialize(self) -> bool:
        """Need nothing."""
        return True

    async def process(self, context: AgentContext) -> AgentResult:
        """Make a result."""
        return AgentResult.success_result({"answer": 42})

    async def handle_error(self, error: Exception, context: AgentContext) -> AgentResult:
        """Give the error back."""
        return AgentResult.error_result(str(error))


class Ready(Answering):
    """An agent that does nothing at all."""

    async def process(self, context: AgentContext) -> AgentResult:
        """Return the result that is there."""
        return RESULT


async def call(function: Function, number: int) -> None:
    """Loop: the bare call."""
    for _ in range(number):
        await function()


async def call_within(function: Function, number: int) -> None:
    """Loop: the call in AnyIO's scope."""
    for _ in range(number):
        with anyio.fail_after(5):
            await function()


async def execute(agent: BaseAgent, number: int) -> None:
    """Loop: the call through an agent."""
    context = AgentContext()
    for _ in range(number):
        await agent.execute(context)


async def run(runtime: AgentRuntime, number: int) -> None:
    """Loop: a task that the caller waits for."""
    for _ in range(number):
        await runtime.run("answer", {})


async def submit(runtime: AgentRuntime, number: int) -> None:
    """Loop: a task of the runtime, whose result the caller waits for."""
    for _ in range(number):
        handle = await runtime.submit("answer", {})
        await handle.result()


BARE: Final = "`await f()`"
WITHIN: Final = "`with anyio.fail_after(5): await f()`"
READY: Final = "`await f()` with a result that is there already"

AGENTS: Final = (
    Pair(what="`agent.execute`, timeout 5 s", subject="limited", reference=WITHIN, at_most=1.0),
    Pair(what="`agent.execute`, no timeout", subject="unlimited", reference=BARE, at_most=6),
    Pair(what="fixed cost: `fail_after`", subject="ready_within", reference=READY, tells_difference=True),
    Pair(
        what="fixed cost: `agent.execute`, timeout 5 s", subject="ready_limited", reference=READY, tells_difference=True
    ),
    Pair(
        what="fixed cost: `agent.execute`, no timeout",
        subject="ready_unlimited",
        reference=READY,
        tells_difference=True,
    ),
    Pair(what="`runtime.run`", subject="run", reference=WITHIN),
    Pair(what="`runtime.submit`, then `handle.result`", subject="submit", reference=WITHIN),
)


async def measure_agents(rounds: int, backend: str) -> list[Row]:
    """Measure what is asynchronous, in the event loop that runs."""
    async with AgentRuntime() as runtime:

        @runtime.handler("answer")
        async def serve(_input: dict[str, Any]) -> AgentResult:
            return await answer()

        unlimited, limited = AgentConfig("unlimited", "bench"), AgentConfig("limited", "bench", timeout=5)
        # Those that are compared stand next to each other.
        loops: dict[str, Loop] = {
            BARE: partial(call, answer),
            "unlimited": partial(execute, Answering(unlimited)),
            WITHIN: partial(call_within, answer),
            "limited": partial(execute, Answering(limited)),
            "run": partial(run, runtime),
            "submit": partial(submit, runtime),
            READY: partial(call, ready),
            "ready_unlimited": partial(execute, Ready(unlimited)),
            "ready_within": partial(call_within, ready),
            "ready_limited": partial(execute, Ready(limited)),
        }
        return compare(await measure_loops(loops, rounds), AGENTS, "ns", backend)


# ---------------------------------------------------------------- tasks


def live(task_class: TaskClass) -> object:
    """Return a task that has been made, started and completed, and so has two events."""
    return task_class.create("data_processing", {"data_id": "12345"}).start().complete({"result": 42})


def live_empty(task_class: TaskClass) -> object:
    """Return the same without anything in it: an empty dictionary is the least that both hold."""
    return task_class.create("data_processing", {}).start().complete({})


async def live_often(task_class: TaskClass, number: int) -> None:
    """Loop: the whole life of a task."""
    for _ in range(number):
        task_class.create("data_processing", {"data_id": "12345"}).start().complete({"result": 42})


UUID: Final = "a pydantic model"
COUNTED: Final = "a pydantic model with a counter for an id"
EMPTY: Final = "empty"
EMPTY_UUID: Final = "a pydantic model, likewise"
KINDS: Final[dict[str, TaskClass]] = {"task": BaseTask, UUID: PydanticTask, COUNTED: CountedPydanticTask}

TIMES: Final = (
    Pair(what="a task made, started, completed: times faster", subject="task", reference=UUID, at_least=4),
    Pair(what="a task made, started, completed: times faster", subject="task", reference=COUNTED, times_smaller=True),
)
SIZES: Final = (
    Pair(what="the same in memory: times smaller", subject="task", reference=UUID, at_least=3),
    Pair(what="the same in memory: times smaller", subject="task", reference=COUNTED, times_smaller=True),
    Pair(
        what="the same with empty input and output: times smaller",
        subject=EMPTY,
        reference=EMPTY_UUID,
        times_smaller=True,
    ),
)


async def measure_tasks(rounds: int) -> list[Row]:
    """Measure a task against a pydantic model of the same shape."""
    loops: dict[str, Loop] = {name: partial(live_often, kind) for name, kind in KINDS.items()}
    rows = compare(await measure_loops(loops, rounds), TIMES, "ns")
    sizes: dict[str, Measure] = {name: traced(partial(live, kind)) for name, kind in KINDS.items()}
    sizes |= {EMPTY: traced(partial(live_empty, BaseTask)), EMPTY_UUID: traced(partial(live_empty, PydanticTask))}
    # Memory hardly varies, and is slow to measure.
    return rows + compare(await measure(sizes, LEAST_ROUNDS), SIZES, "B")


# ---------------------------------------------------------------- registries


class Dictionary:
    """A dictionary behind methods, which is the least that a registry can be."""

    def __init__(self, items: dict[str, object]) -> None:
        self._items = items

    def get(self, name: str) -> object:
        """Return an item, None if there is none."""
        return self._items.get(name)

    def require(self, name: str) -> object:
        """Return an item that is there."""
        return self._items[name]


GET: Final = "a method with `return self._items.get(name)`"
REQUIRE: Final = "a method with `return self._items[name]`"

LOOK_UPS: Final = (
    Pair(what="`registry.get_sync`", subject="get_sync", reference=REQUIRE, at_most=2.5),
    Pair(what="`registry.get_sync`", subject="get_sync", reference=GET),
)


async def measure_registries(rounds: int) -> list[Row]:
    """Measure a look-up among a hundred items."""
    items: dict[str, object] = {f"item_{number}": object() for number in range(100)}
    registry: Registry[object] = Registry("bench")
    for name, item in items.items():
        registry.register(name, item)
    dictionary = Dictionary(items)

    async def get_sync(number: int) -> None:
        for _ in range(number):
            registry.get_sync("item_50")

    async def require(number: int) -> None:
        for _ in range(number):
            dictionary.require("item_50")

    async def get(number: int) -> None:
        for _ in range(number):
            dictionary.get("item_50")

    loops: dict[str, Loop] = {REQUIRE: require, "get_sync": get_sync, GET: get}
    return compare(await measure_loops(loops, rounds), LOOK_UPS, "ns")


def use(registry: Registry[object], barrier: threading.Barrier, names: int, thread: int) -> int:
    """Write and read as one of several threads; return how often something was not found.

    Removal is a part of it because it gives the check its teeth: it copies in a function of its own, where the interpreter
    changes threads, and a registry without a lock then loses what others have written meanwhile.
    """
    barrier.wait()
    lost = 0
    for number in range(names):
        name = f"{thread}.{number}"
        registry.register(name, (thread, number), thread=thread)
        registry.register("shared", thread)
        registry.register(f"passing.{name}", number)
        registry.unregister(f"passing.{name}")
        lost += registry.get_sync(name) != (thread, number)
        lost += registry.get_metadata(name) != {"thread": thread}
        lost += registry.get_sync("shared") not in range(barrier.parties)
    return lost


def use_from_threads(threads: int = 8, names: int = 250) -> Row:
    """Have threads write and read at once, and count what one of them or the end does not find."""
    registry: Registry[object] = Registry("threads")
    registry.register("shared", -1)
    interval = sys.getswitchinterval()
    # The interpreter changes threads wherever it can.
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(threads) as pool:
            lost = sum(pool.map(partial(use, registry, threading.Barrier(threads), names), range(threads)))
    finally:
        sys.setswitchinterval(interval)
    written = 3 * threads * names + 1
    lost += sum(registry.get_sync(f"{thread}.{number}") is None for thread in range(threads) for number in range(names))
    lost += written - registry.statistics().registrations
    lost += abs(registry.size() - threads * names - 1)
    return Row(
        what=f"{threads} threads register, replace, remove and read",
        goal="nothing lost",
        note=f"{lost} of {written:,} registrations lost",
        kept=lost == 0,
    )


def benchmark(rounds: int) -> list[Row]:
    """Measure everything."""
    rows = [row for backend in BACKENDS for row in anyio.run(measure_agents, rounds, backend, backend=backend)]
    return [*rows, *anyio.run(measure_tasks, rounds), *anyio.run(measure_registries, rounds), use_from_threads()]


if __name__ == "__main__":
    sys.exit(main(__doc__ or "", PACKAGES, benchmark))
