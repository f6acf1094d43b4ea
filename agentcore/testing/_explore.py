"""Search for a schedule under which a program fails, and make it short."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Literal, final

import attrs

from agentcore._interop import SYSTEM

from ._failures import NondeterminismError, annotate
from ._fault_plans import Fault, FaultPlan
from ._replay import Replay, shortest
from ._run import SimResult, run_sim
from ._schedule import FIFO, RUN_TO_BLOCK, DepthFirst, Schedule, Switch, portfolio
from ._shrink import shrink
from ._simulation import Backend

# pytest leaves the frames of this file out of the traceback: the reader's own test comes first.
__tracebackhide__ = True

StrategyName = Literal["portfolio", "walk", "rare", "pct", "fifo", "dfs"]
STRATEGY_NAMES: Final = ("portfolio", "walk", "rare", "pct", "fifo", "dfs")

# Shrinking stops after so many runs or real seconds: a failure is told soon rather than as short as can be.
SHRINK_RUNS: Final = 1_000
SHRINK_SECONDS: Final = 10.0
# So many of the last steps are shown with a failure.
STEPS_SHOWN: Final = 12

AsyncFunction = Callable[..., Awaitable[Any]]


@final
@attrs.frozen(eq=False)
class Found:
    """A failure that a search has found.

    Attributes:
        error: what was raised, or what the simulation has found.
        replay: what brings it back, as short as it could be made.
        original: the schedule under which it was found.
        run: in which run, from 1.
        switches: how many switches it had when it was found.
        shrinking: how many runs it took to make it short.
        result: the shortest run, with its trace.
    """

    error: BaseException
    replay: Replay
    original: Schedule
    run: int
    switches: int
    shrinking: int
    result: SimResult

    def __str__(self) -> str:
        """Return how it was found, and the line that replays it."""
        return "\n".join(self.notes())

    def notes(self) -> list[str]:
        """Return what to say with the error, line by line."""
        left = len(self.replay.schedule.switches)
        how = f"found on {self.replay.backend} in run {self.run} ({_named(self.original)})"
        if self.replay.schedule.strategy == "switches" and self.switches:
            how += f", shrunk from {self.switches} to {_count(left, 'forced switch', 'forced switches')}"
            how += f" in {_count(self.shrinking, 'run', 'runs')}"
        lines = [how]
        if not left and self.replay.schedule.strategy == "switches":
            lines.append("no switch is needed: it fails when each task runs until it has to wait")
        if self.result.fired:
            lines.append(f"faults: {', '.join(self.result.fired)}")
        if self.result.trace:
            lines += last_steps(self.result, STEPS_SHOWN)
        return [*lines, f"replay: {self.replay.assignment}"]


@final
@attrs.frozen(eq=False)
class ExploreReport:
    """What a search has come to.

    Attributes:
        backend: where it ran.
        runs: how many runs it took.
        steps: how many steps they had together.
        seconds: the real seconds it took, without shrinking.
        exhausted: whether every order there is has been run; only depth first can know.
        found: the failure; None if there was none.
    """

    backend: Backend
    runs: int
    steps: int
    seconds: float
    exhausted: bool
    found: Found | None

    def unwrap(self) -> None:
        """Raise what was found, with notes that tell how to bring it back.

        Raises:
            BaseException: the error that was found, if one was.
        """
        if self.found is not None:
            raise annotate(self.found.error, self.found.notes())


def explore(
    function: AsyncFunction,
    *args: Any,
    backend: Backend = "asyncio",
    runs: int = 100,
    budget: float | None = None,
    strategy: StrategyName = "portfolio",
    seed: int = 0,
    plan: FaultPlan | str | None = None,
    shorten: bool = True,
    **options: Any,
) -> ExploreReport:
    """Run an asynchronous function under many schedules, until one fails.

    Args:
        function: is run once for each schedule; it makes everything that it needs anew, and raises if something is wrong.
        *args: its arguments.
        backend: `asyncio` or `trio`.
        runs: how many schedules to try; with `dfs` at most so many.
        budget: real seconds after which to stop, None for no limit.
        strategy: `portfolio` mixes `walk` (anybody goes next), `rare` (run to block, with rare switches) and `pct`; `dfs`
            goes through every order there is, one after the other.
        seed: where the seeds of the schedules begin.
        plan: faults that happen in every run.
        shorten: whether to make the failing schedule short.
        **options: further arguments of `Simulation`.

    Returns:
        What it has come to; `unwrap()` raises the failure.

    Raises:
        NondeterminismError: the failing schedule does not fail again.
    """
    if runs < 1:
        raise ValueError(f"a search needs at least 1 run: got {runs!r}")
    if seed < 0:
        raise ValueError(f"the seed of a search is not negative: got {seed!r}")
    if strategy not in STRATEGY_NAMES:
        raise ValueError(f"the strategy of a search is one of {', '.join(STRATEGY_NAMES)}: got {strategy!r}")
    plan = FaultPlan.parse(plan) if isinstance(plan, str) else plan
    search = _Search(function, args, backend, plan or FaultPlan(), options)
    began = SYSTEM.monotonic()
    depth_first = DepthFirst() if strategy == "dfs" else None
    done, steps, decisions, found = 0, 0, 64, None
    while done < runs and found is None and not (depth_first and depth_first.exhausted):
        schedule = depth_first or _schedule(strategy, done, seed, decisions)
        result = search.run(schedule)
        done, steps, decisions = done + 1, steps + result.steps, result.decisions
        if result.error is not None:
            found = search.found(result, done, shorten=shorten)
        elif depth_first is not None:
            depth_first.advance()
        if budget is not None and SYSTEM.monotonic() - began >= budget:
            break
    exhausted = depth_first is not None and depth_first.exhausted
    return ExploreReport(backend, done, steps, SYSTEM.monotonic() - began, exhausted, found)


def _schedule(strategy: StrategyName, run: int, seed: int, decisions: int) -> Schedule:
    if strategy == "portfolio":
        return portfolio(run, seed, decisions)
    if strategy == "fifo":
        return FIFO
    return Schedule(strategy, seed + run, 1 << max(3, decisions.bit_length()))


@attrs.frozen(eq=False)
class _Search:
    """One function with all that stays the same in every run."""

    function: AsyncFunction
    args: tuple[Any, ...]
    backend: Backend
    plan: FaultPlan
    options: dict[str, Any]

    def run(self, schedule: Any, plan: FaultPlan | None = None, **more: Any) -> SimResult:
        return run_sim(
            self.function,
            *self.args,
            backend=self.backend,
            schedule=schedule,
            plan=self.plan if plan is None else plan,
            **{**self.options, **more},
        )

    def found(self, result: SimResult, run: int, *, shorten: bool) -> Found:
        original = result.schedule
        recorded = self.run(original, record=True)
        expected = _signature(result.error)
        if _signature(recorded.error) != expected:
            raise NondeterminismError(
                f"{_named(original)} on {self.backend} failed with {result.error!r}, and then, with the same schedule, gave "
                f"{recorded.error!r}: something in the program does not come from the simulation; `assert_deterministic` "
                "names the first step that differs"
            ) from result.error
        switches, faults, spent = list(recorded.schedule.switches), list(self.plan), 0
        if shorten:
            switches, faults, spent = self._shorten(switches, faults, expected)
        plan = FaultPlan(faults)
        short = Replay(self.backend, Schedule(switches=switches), None, plan)
        replay = shortest(short, Replay(self.backend, original, None, plan))
        final_run = self.run(replay.schedule, plan, trace=True)
        error = final_run.error if final_run.error is not None else result.error
        assert error is not None
        return Found(error, replay, original, run, len(recorded.schedule.switches), spent, final_run)

    def _shorten(
        self, switches: list[Switch], faults: list[Fault], expected: object
    ) -> tuple[list[Switch], list[Fault], int]:
        spent, until = 0, SYSTEM.monotonic() + SHRINK_SECONDS

        def fails(causes: Sequence[Switch | Fault]) -> bool:
            nonlocal spent
            if spent >= SHRINK_RUNS or SYSTEM.monotonic() > until:
                return False
            spent += 1
            kept = Schedule(switches=[cause for cause in causes if isinstance(cause, Switch)])
            plan = FaultPlan([cause for cause in causes if isinstance(cause, Fault)])
            return _signature(self.run(kept, plan).error) == expected

        together: list[Switch | Fault] = [*faults, *switches]
        causes = shrink(together, fails)
        return (
            [cause for cause in causes if isinstance(cause, Switch)],
            [cause for cause in causes if isinstance(cause, Fault)],
            spent,
        )


def last_steps(result: SimResult, most: int) -> list[str]:
    """Return the last steps of a run, line by line, and what their tasks are called."""
    last = result.trace[-most:]
    what = "the steps" if len(last) == len(result.trace) else f"the last {len(last)} of {len(result.trace)} steps"
    tasks = sorted({step.task for step in last})
    names = ", ".join(f"{task} is {result.names[task].rpartition('.')[2]}" for task in tasks)
    return [f"{what}, * where a switch was forced ({names}):", *(f"  {step}" for step in last)]


def _count(number: int, one: str, more: str) -> str:
    return f"{number} {one if number == 1 else more}"


def _named(schedule: Schedule) -> str:
    return "run to block" if schedule == RUN_TO_BLOCK else str(schedule)


def _signature(error: BaseException | None) -> object:
    """Return what makes two failures the same: their type, and those of what they contain."""
    if isinstance(error, BaseExceptionGroup):
        return type(error), tuple(sorted(str(_signature(inner)) for inner in error.exceptions))
    return type(error)
