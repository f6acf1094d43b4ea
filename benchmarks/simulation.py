"""Measures the simulator of agentcore.testing against what the project promises of it.

    python benchmarks/simulation.py [--rounds 31] [--json | --markdown]

Exits with 1 if a promise is not kept.
"""

from __future__ import annotations

import asyncio
import gc
import random
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Final, TypeAlias, TypeVar

import anyio
import anyio.lowlevel
import attrs
import trio
import trio.testing
from _rounds import Measure, Pair, Row, compare, main, measure

from agentcore import AgentConfig, AgentContext, AgentResult, AgentRuntime, BaseAgent
from agentcore.testing import BACKENDS, Fault, FaultPlan, run_sim

PACKAGES: Final = ("anyio", "trio")
NS: Final = 1_000_000_000

Async: TypeAlias = Callable[[], Awaitable[None]]
T = TypeVar("T")


def timed(act: Callable[[], object], number: int, unit: int = NS) -> Measure:
    """Return what measures one of so many acts that a call of `act` does."""

    async def measure_once() -> float:
        gc.collect()
        gc.disable()
        try:
            began = time.perf_counter_ns()
            act()
            return (time.perf_counter_ns() - began) * unit / NS / number
        finally:
            gc.enable()

    return measure_once


def in_rounds(contenders: dict[str, Measure], rounds: int) -> dict[str, list[float]]:
    """Measure in turns, outside of every event loop: a simulation brings its own."""
    return without_loop(measure(contenders, rounds))


def without_loop(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never waits."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        value: T = end.value
        return value
    raise AssertionError("it waits")


def simulate(program: Async, backend: Any) -> None:
    """Run a program in a simulation."""
    run_sim(program, backend=backend).unwrap()


def run_bare(program: Async, backend: str) -> None:
    """Run a program in the bare event loop."""
    if backend == "trio":
        trio.run(program)
    else:
        asyncio.run(program())  # type: ignore[arg-type]


# ---------------------------------------------------------------- an hour of agents

AGENTS: Final = 20
HOUR: Final = 3600.0
GOAL: Final = 6.0
# One takes seconds, and hardly varies.
HOURS: Final = 5


class Worker(BaseAgent):
    """An agent that takes its time."""

    async def initialize(self) -> bool:
        """Need nothing."""
        return True

    async def process(self, context: AgentContext) -> AgentResult:
        """Wait, as for an answer."""
        await anyio.sleep(0.4)
        return AgentResult.success_result({"answer": 42})

    async def handle_error(self, error: Exception, context: AgentContext) -> AgentResult:
        """Give the error back."""
        return AgentResult.error_result(str(error))


async def work_for_an_hour(*, as_tasks: bool) -> None:
    """Execute each agent once a second, by itself or by tasks of the runtime that it is in."""

    async def work(agent: Worker, after: float) -> None:
        context = AgentContext()
        await anyio.sleep(after)
        while anyio.current_time() - began < HOUR:
            if as_tasks:
                await runtime.run(agent.config.name, {})
            else:
                await agent.execute(context)
            await anyio.sleep(0.6)

    async with AgentRuntime() as runtime, anyio.create_task_group() as group:
        began = anyio.current_time()
        for number in range(AGENTS):
            agent = Worker(AgentConfig(f"worker_{number}", "worker", timeout=5))
            runtime.registry("agents").register(agent.config.name, agent)
            group.start_soon(work, agent, number / AGENTS)


def jump(program: Async) -> None:
    """Run a program under trio, with its own clock for tests."""
    trio.run(program, clock=trio.testing.MockClock(autojump_threshold=0))


MOCK: Final = "trio with `MockClock`"


def measure_hours() -> list[Row]:
    """Measure how long an hour takes."""
    alone, tasks = partial(work_for_an_hour, as_tasks=False), partial(work_for_an_hour, as_tasks=True)
    programs: dict[str, Async] = {f"{AGENTS} agents with timeouts, an hour": alone, "the same as tasks": tasks}
    contenders: dict[str, Measure] = {}
    for what, program in programs.items():
        contenders |= {what + name: timed(partial(simulate, program, name), 1, 1000) for name in BACKENDS}
        contenders[what + MOCK] = timed(partial(jump, program), 1, 1000)
    figures = in_rounds(contenders, HOURS)
    return [
        hour(what, backend, figures[what + backend], figures[what + MOCK], promised=program is alone)
        for what, program in programs.items()
        for backend in BACKENDS
    ]


def hour(what: str, backend: str, took: Sequence[float], mock: Sequence[float], *, promised: bool) -> Row:
    """Judge how many milliseconds an hour took. What trio's clock took is a comparison on trio only."""
    middle = statistics.median(took)
    row = Row(what=what, backend=backend, unit="ms", figure=middle)
    if backend == "trio":
        (row,) = compare({"": took, MOCK: mock}, [Pair(what=what, subject="", reference=MOCK)], "ms", backend)
    note = f"{HOUR * 1000 / middle:,.0f} simulated seconds a second, {HOURS} rounds"
    if promised:
        return attrs.evolve(row, note=note, goal=f"≤ {GOAL:g} s", kept=middle <= GOAL * 1000)
    return attrs.evolve(row, note=note)


# ---------------------------------------------------------------- scenarios with faults

SCENARIOS: Final = 100
AT_LEAST: Final = 500
CUSTOMERS: Final = 3


class Shop:
    """Fetches prices and stores orders, both of which may fail."""

    def __init__(self) -> None:
        self.stored: set[int] = set()
        self.refused: set[int] = set()
        self.line = anyio.Semaphore(2)

    async def fetch(self) -> int:
        """Answer after a while."""
        await anyio.sleep(0.1)
        return 10

    async def store(self, customer: int) -> None:
        """Store an order; twice is once."""
        await anyio.lowlevel.checkpoint()
        self.stored.add(customer)

    async def serve(self, customer: int) -> None:
        """Try twice, each time with a limit."""
        for _ in range(2):
            try:
                async with self.line:
                    with anyio.fail_after(1):
                        await self.fetch()
                        await self.store(customer)
                return
            except Exception:  # noqa: BLE001 - whatever it is, the next attempt may succeed
                await anyio.sleep(0.5)
        self.refused.add(customer)

    async def sell(self) -> None:
        """Serve all customers at once."""
        async with anyio.create_task_group() as group:
            for customer in range(CUSTOMERS):
                group.start_soon(self.serve, customer)
        served = self.stored | self.refused
        assert served == set(range(CUSTOMERS)), f"only {served} were served"
        assert self.line.value == 2, "a permit is lost"


FAULTS: Final = (
    ("raise", None),
    ("raise_after", None),
    ("delay", 2.0),
    ("hang", None),
    ("corrupt", None),
    ("duplicate", None),
)


def draw_plan(source: random.Random) -> FaultPlan:
    """Return one or two faults, of different calls."""
    places = [(target, call) for target in ("fetch", "store") for call in range(1, CUSTOMERS + 1)]
    drawn = source.sample(places, source.choice((1, 2)))
    return FaultPlan([Fault(target, call, *source.choice(FAULTS)) for target, call in drawn])


class Campaign:
    """Runs scenarios, each with its own order and its own faults, and counts the faults that acted."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._seed = 0
        self.runs = 0
        self.fired = 0

    def __call__(self) -> None:
        """Run the next scenarios."""
        for _ in range(SCENARIOS):
            self._seed += 1
            shop = Shop()
            result = run_sim(
                shop.sell,
                backend=self._backend,
                schedule=f"walk/{self._seed}",
                plan=draw_plan(random.Random(self._seed)),
                targets={"fetch": (shop, "fetch"), "store": (shop, "store")},
            )
            result.unwrap()
            self.runs += 1
            self.fired += len(result.fired)


def measure_scenarios(rounds: int) -> list[Row]:
    """Measure scenarios with faults."""
    campaigns = {name: Campaign(name) for name in BACKENDS}
    figures = in_rounds({name: timed(campaign, SCENARIOS) for name, campaign in campaigns.items()}, rounds)
    rows = []
    for backend, campaign in campaigns.items():
        took = statistics.median(figures[backend])
        rate, faults = NS / took, campaign.fired / campaign.runs
        rows.append(
            Row(
                what=f"a scenario of {CUSTOMERS} tasks with 1 or 2 faults",
                backend=backend,
                unit="ns",
                figure=took,
                goal=f"≥ {AT_LEAST} a second",
                note=f"{rate:,.0f} scenarios and {rate * faults:,.0f} faults a second",
                kept=rate >= AT_LEAST,
            )
        )
    return rows


# ---------------------------------------------------------------- steps and empty runs

# Together less than what counts as a livelock: the clock stands still meanwhile.
TASKS: Final = 4
STEPS: Final = 1_000
RUNS: Final = 20
BARE: Final = {"asyncio": "`asyncio.run`", "trio": "`trio.run`"}


async def step_by_step() -> None:
    """Have tasks take turns."""

    async def work() -> None:
        for _ in range(STEPS):
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as group:
        for _ in range(TASKS):
            group.start_soon(work)


async def nothing() -> None:
    """Do nothing."""


def often(run: Callable[[], None], number: int) -> None:
    """Run something a number of times."""
    for _ in range(number):
        run()


def measure_overhead(rounds: int) -> list[Row]:
    """Measure a step and an empty run against the bare event loop."""
    rows = []
    for backend in BACKENDS:
        bare = BARE[backend]
        contenders = {
            "step": timed(partial(simulate, step_by_step, backend), TASKS * STEPS),
            "bare step": timed(partial(run_bare, step_by_step, backend), TASKS * STEPS),
            "run": timed(partial(often, partial(simulate, nothing, backend), RUNS), RUNS),
            "bare run": timed(partial(often, partial(run_bare, nothing, backend), RUNS), RUNS),
        }
        figures = in_rounds(contenders, rounds)
        pairs = {"a step": ("step", f"in {bare}"), "an empty run": ("run", bare)}
        for what, (subject, reference) in pairs.items():
            pair = Pair(what=what, subject=subject, reference=reference, tells_difference=True)
            named = {subject: figures[subject], reference: figures[f"bare {subject}"]}
            (row,) = compare(named, [pair], "ns", backend)
            rate = NS / statistics.median(figures[subject])
            rows.append(attrs.evolve(row, note=f"{rate:,.0f} a second"))
    return rows


def benchmark(rounds: int) -> list[Row]:
    """Measure everything."""
    return [*measure_hours(), *measure_scenarios(rounds), *measure_overhead(rounds)]


if __name__ == "__main__":
    sys.exit(main(__doc__ or "", PACKAGES, benchmark))
