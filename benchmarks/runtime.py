"""Measures what passes through a runtime against a bare call in AnyIO's scope, and against other frameworks for agents.

    python benchmarks/runtime.py [--rounds 31] [--json | --markdown] [--million]

- Asks, runs, submissions, groups, maps and streams, of a strict and of a hosted runtime, against
  `with anyio.fail_after(5): await f()`. Agent, handler and `f` do the same, and metrics are on, as always.
- The frameworks of `_runtime_peers`, in the same rounds; on asyncio, where they all work. They are in no environment of the
  project, so this needs one of its own: `nox -s bench_runtime`. What is not installed has a line that says so.
- Messages to a spawned agent until they have been handled, and its restart after a crash.
- The end of a runtime with 10,000 executions asleep and no grace, against the end of a task group with as many tasks.
- The line for a slot, with its bands of priority that age, against a heap.
- With ``--million``, a million tasks through one runtime: what they leave behind. That takes some minutes.

Exits with 1 if a promise is not kept. docs/benchmarks.md has the table.
"""

from __future__ import annotations

import argparse
import gc
import logging
import statistics
import sys
import time
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, Final

import anyio
import anyio.abc
import anyio.lowlevel
import attrs
from _rounds import Loop, Pair, Row, Timed, compare, main, measure, nothing
from _runtime_growth import measure_million
from _runtime_lines import measure_lines
from _runtime_messages import measure_messages
from _runtime_peers import Peer, installed, missing
from _runtime_shutdown import measure_shutdowns

from agentcore import AgentConfig, AgentContext, AgentResult, AgentRuntime, BaseAgent, RetryPolicy

BACKENDS: Final = ("asyncio", "trio")
WITHIN: Final = "`with anyio.fail_after(5): await f()`"
SPAWN: Final = "for comparison: a checkpoint, a task of AnyIO, an event that tells of its end"
KINDS: Final = {"strict": False, "hosted": True}
BATCH: Final = 100
WARMING: Final = 10
CHILDREN: Final = 10
POLICY: Final = RetryPolicy()


async def answer() -> AgentResult:
    """Do what the agent and the handler do."""
    return AgentResult.success_result({"answer": 42})


class Answering(BaseAgent):
    """An agent that makes a result."""

    async def initialize(self) -> bool:
        """Need nothing."""
        return True

    async def process(self, context: AgentContext) -> AgentResult:
        """Make a result."""
        return await answer()

    async def handle_error(self, error: Exception, context: AgentContext) -> AgentResult:
        """Give the error back."""
        return AgentResult.error_result(str(error))


class Telling(Answering):
    """An agent that tells of as many things as it is asked for."""

    async def process(self, context: AgentContext) -> AgentResult:
        """Tell, and make a result."""
        for number in range(context.parameters["number"]):
            await context.emit(number)
        return await answer()


async def call_within(number: int) -> None:
    """Loop: the bare call in AnyIO's scope."""
    for _ in range(number):
        with anyio.fail_after(5):
            await answer()


async def spawn(group: anyio.abc.TaskGroup, number: int) -> None:
    """Loop: a bare task of AnyIO for each call, and the wait for its end; the least that a submitted task can be."""

    async def serve(ended: anyio.Event) -> None:
        await answer()
        ended.set()

    for _ in range(number):
        await anyio.lowlevel.checkpoint()
        ended = anyio.Event()
        group.start_soon(serve, ended)
        await ended.wait()


def inputs(number: int) -> Any:
    """Yield inputs of tasks."""
    return ({} for _ in range(number))


@attrs.frozen
class Uses:
    """What is measured of one runtime: each method is a loop.

    Attributes:
        runtime: the runtime, whose handler ``answer`` does what `answer` does.
        agent: is asked.
        teller: is streamed from.
    """

    runtime: AgentRuntime
    agent: BaseAgent
    teller: BaseAgent

    async def ask_within(self, number: int) -> None:
        """Ask, with a timeout."""
        context = AgentContext()
        for _ in range(number):
            await self.runtime.ask(self.agent, context, timeout=5)

    async def ask(self, number: int) -> None:
        """Ask, without one."""
        context = AgentContext()
        for _ in range(number):
            await self.runtime.ask(self.agent, context)

    async def ask_by_name(self, number: int) -> None:
        """Ask whatever is registered by a name."""
        context = AgentContext()
        for _ in range(number):
            await self.runtime.ask("answering", context, timeout=5)

    async def run(self, number: int) -> None:
        """Run a task."""
        for _ in range(number):
            await self.runtime.run("answer", {})

    async def submit(self, number: int) -> None:
        """Submit a task and wait for its result."""
        for _ in range(number):
            handle = await self.runtime.submit("answer", {})
            await handle.result()

    async def run_patiently(self, number: int) -> None:
        """Run a task with a retry policy, which is not used."""
        for _ in range(number):
            await self.runtime.run("answer", {}, retry=POLICY)

    async def submit_patiently(self, number: int) -> None:
        """Submit one, and wait for its result."""
        for _ in range(number):
            handle = await self.runtime.submit("answer", {}, retry=POLICY)
            await handle.result()

    async def submit_many(self, number: int) -> None:
        """Submit a hundred tasks and wait for their results."""
        for begun in range(0, number, BATCH):
            handles = [await self.runtime.submit("answer", {}) for _ in range(min(BATCH, number - begun))]
            for handle in handles:
                await handle.result()

    async def group(self, number: int) -> None:
        """Start ten tasks in a group and leave it."""
        for begun in range(0, number, CHILDREN):
            async with self.runtime.group() as group:
                for _ in range(min(CHILDREN, number - begun)):
                    group.start("answer", {})

    async def map(self, number: int) -> None:
        """Run a task for each of many inputs."""
        await self.runtime.map("answer", inputs(number))

    async def as_completed(self, number: int) -> None:
        """Go through the tasks for many inputs."""
        async with self.runtime.as_completed("answer", inputs(number)) as done:
            async for _ in done:
                pass

    async def stream(self, number: int) -> None:
        """Take many things out of a stream."""
        async with self.runtime.stream(self.teller, {"number": number}) as stream:
            async for _ in stream:
                pass


# What is measured, how its row is called, and the goal.
ROWS: Final[dict[str, tuple[str, float | None]]] = {
    "ask_within": ("`runtime.ask(agent, context, timeout=5)`", 1.1),
    "ask": ("`runtime.ask(agent, context)`", 1.1),
    "ask_by_name": ('`runtime.ask("answering", context, timeout=5)`', None),
    "run": ("`runtime.run`", None),
    "submit": ("`runtime.submit`, then `handle.result`", 4),
    "submit_many": (f"{BATCH} times `runtime.submit`, then their results: a task", 4),
    "group": (f"`runtime.group` of {CHILDREN}: a child", None),
    "map": ("`runtime.map`: an input", None),
    "as_completed": ("`runtime.as_completed`: a handle", None),
    "stream": ("`runtime.stream`: an item", None),
}


# What costs more than the same without it: the loop, how its row is called, the loop without, and the goal.
BESIDE: Final[tuple[tuple[str, str, str, float], ...]] = (
    ("run_patiently", "`runtime.run` with a `RetryPolicy` that is not used", "run", 1.1),
    ("submit_patiently", "`runtime.submit` with one, then `handle.result`", "submit", 1.1),
)


def uses_of(runtime: AgentRuntime) -> Uses:
    """Return what is measured of a runtime that has been entered."""

    @runtime.handler("answer")
    async def serve(_input: dict[str, Any]) -> AgentResult:
        return await answer()

    agent = Answering(AgentConfig("answering", "bench"))
    runtime.registry("agents").register("answering", agent)
    return Uses(runtime, agent, Telling(AgentConfig("telling", "bench")))


def peers_on(backend: str) -> list[Peer]:
    """Return who is compared."""
    return [peer for peer in installed() if backend == "asyncio" or peer.on_trio]


async def measure_uses(rounds: int, backend: str) -> list[Row]:
    """Measure everything that takes microseconds, in the event loop that runs."""
    loops: dict[str, Loop] = {WITHIN: call_within}
    pairs = [Pair(what=SPAWN, subject=SPAWN, reference=WITHIN)]
    async with AsyncExitStack() as stack:
        loops[SPAWN] = partial(spawn, await stack.enter_async_context(anyio.create_task_group()))
        for kind, hosted in KINDS.items():
            uses = uses_of(await stack.enter_async_context(AgentRuntime(hosted=hosted)))
            for name, (what, goal) in ROWS.items():
                loops[f"{kind} {name}"] = getattr(uses, name)
                pairs.append(Pair(what=f"{what}, {kind}", subject=f"{kind} {name}", reference=WITHIN, at_most=goal))
            for name, what, without, most in BESIDE:
                loops[f"{kind} {name}"] = getattr(uses, name)
                reference = f"{kind} {without}"
                pairs.append(Pair(what=f"{what}, {kind}", subject=f"{kind} {name}", reference=reference, at_most=most))
        for peer in peers_on(backend):
            loops[peer.distribution] = await stack.enter_async_context(peer.open())
            pairs += pairs_with(peer)
        figures = await measure_warm(loops, rounds)
    return with_costs(compare(figures, pairs, "ns", backend), figures)


class Warm(Timed):
    """Measures as `Timed` does, but for a few turns in front that are not counted.

    The collection before each batch empties the caches of the interpreter and of the processor. Of what takes a
    microsecond a batch has thousands, and nobody sees that; a batch of LangGraph has twenty, and took twice as long.
    """

    async def _spend(self) -> int:
        await anyio.sleep(0)
        gc.collect()
        gc.disable()
        try:
            await self._loop(WARMING)
            began = time.perf_counter_ns()
            await self._loop(self._number)
            return time.perf_counter_ns() - began
        finally:
            gc.enable()


async def measure_warm(loops: dict[str, Loop], rounds: int) -> dict[str, list[float]]:
    """Measure the nanoseconds of one turn of each loop, without what an empty one takes."""
    figures = await measure({"": Warm(nothing), **{name: Warm(loop) for name, loop in loops.items()}}, rounds)
    overhead = statistics.median(figures.pop(""))
    return {name: [value - overhead for value in values] for name, values in figures.items()}


def pairs_with(peer: Peer) -> list[Pair]:
    """Return the comparisons with a peer: with a timeout, which none of the others has, and which is most of what an ask costs."""
    return [
        Pair(
            what=f"{ROWS['ask_within'][0]}, {kind}: times faster",
            subject=f"{kind} ask_within",
            reference=peer.distribution,
            at_least=peer.times,
            times_smaller=True,
        )
        for kind in KINDS
    ]


def with_costs(rows: list[Row], figures: dict[str, list[float]]) -> list[Row]:
    """Note in the rows about peers what these cost against the bare call."""
    bare = [Pair(what=row.reference, subject=row.reference, reference=WITHIN) for row in rows]
    costs = {row.what: row.ratio for row in compare(figures, bare, "ns")}
    return [
        row if row.reference == WITHIN else attrs.evolve(row, note=f"that is {costs[row.reference]:.1f}x {WITHIN}")
        for row in rows
    ]


def rows_of_missing() -> list[Row]:
    """Return a row for each peer that is not installed."""
    return [
        Row(
            what=f"{ROWS['ask_within'][0]}: times faster",
            reference=peer.distribution,
            goal="" if peer.times is None else f"≥ {peer.times:g}x",
            note="not compared: it is not installed; `nox -s bench_runtime` does that",
        )
        for peer in missing()
    ]


def benchmark(rounds: int, *, million: bool) -> list[Row]:
    """Measure everything."""
    logging.disable()  # some of the others tell of each message
    rows = [row for backend in BACKENDS for row in anyio.run(measure_uses, rounds, backend, backend=backend)]
    rows += rows_of_missing()
    for backend in BACKENDS:
        rows += anyio.run(measure_messages, measure_warm, rounds, backend, backend=backend)
    rows += [row for backend in BACKENDS for row in anyio.run(measure_shutdowns, backend, backend=backend)]
    rows += anyio.run(measure_lines, rounds)
    if million:
        rows += [anyio.run(measure_million, backend, backend=backend) for backend in BACKENDS]
    return rows


def packages() -> tuple[str, ...]:
    """Return the distributions whose versions belong to the figures."""
    return ("anyio", "attrs", "trio", *(peer.distribution for peer in installed()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--million", action="store_true")
    arguments, sys.argv[1:] = parser.parse_known_args()
    sys.exit(main(__doc__ or "", packages(), partial(benchmark, million=arguments.million)))
