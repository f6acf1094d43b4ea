"""Cancel a scenario at every checkpoint it has, one run each, and look at what is left.

The first run counts: every stop of every task while the scenario runs, every step, every stop that has a deadline around
it. Then each of them has a run of its own, with the cancellation there. Exceptions other than cancellation are not thrown
in at checkpoints: on asyncio that would break code that is correct.
"""

import inspect
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any, Final, final

import anyio
import attrs

from ._failures import InvariantError, annotate, tasks_left
from ._fault_plans import FaultPlan
from ._kernel import SimTask
from ._replay import MODES, CancelPoint, Mode, Replay, forced_replay, shortest
from ._run import SimResult, run_sim
from ._schedule import FIFO, Schedule
from ._simulation import BACKENDS, Backend, Simulation, current_simulation

# pytest leaves the frames of this file out of the traceback: the reader's own test comes first.
__tracebackhide__ = True

_LISTED: Final = 8
_NO_STATE: Final = object()


@final
@attrs.frozen(eq=False)
class SweepReport:
    """What a sweep has gone through without finding anything.

    Attributes:
        points: the number of cancel points, by backend and mode.
        runs: how many runs it took.
        steps: how many steps they had together.
    """

    points: dict[tuple[Backend, Mode], int]
    runs: int
    steps: int

    def __str__(self) -> str:
        """Return one line: `asyncio block 30, asyncio wake 39; 70 runs`."""
        points = ", ".join(f"{backend} {mode} {count}" for (backend, mode), count in self.points.items())
        return f"{points}; {self.runs} runs"


class _Probe:
    """Counts the points of a run at which it could be cancelled, and cancels at one of them."""

    def __init__(self, point: CancelPoint | None) -> None:
        self.point = point
        self.counts: dict[Mode, int] = dict.fromkeys(MODES, 0)
        self.hit = ""
        self.when: float | None = None
        self.reached_main = False
        self._simulation: Simulation
        self._scope: anyio.CancelScope | None = None

    def attach(self, simulation: Simulation) -> None:
        self._simulation = simulation
        simulation._kernel.stopped = self._stopped
        simulation._kernel.resuming = self._resuming

    def watch(self, scope: anyio.CancelScope | None) -> None:
        self._scope = scope

    def _stopped(self, task: SimTask) -> None:
        scope = self._scope
        if scope is None:
            return
        if self._reached("block", task):
            self.reached_main = self._main_waits()
            scope.cancel("the sweep")
        if self._reached("native", task):
            self._simulation._loop.cancel_natively(self._main())
        deadlines = (inner for inner in self._simulation._loop.scopes(task) if inner.deadline < float("inf"))
        innermost = next(deadlines, None)
        if innermost is not None and self._reached("deadline", task):
            # As if the step had taken so long: no scope ever ends before the clock has reached its deadline.
            self._simulation._kernel.move_to(innermost.deadline)

    def _resuming(self, task: SimTask) -> None:
        if self._scope is not None and self._reached("wake", task):
            self._scope.cancel("the sweep")

    def _main(self) -> SimTask:
        return next(iter(self._simulation._kernel.tasks.values()))

    def _main_waits(self) -> bool:
        """Tell whether the main task is waiting now, with no shield between it and the scope.

        At the end of a group it is the children who meet a cancellation; the group makes of it what they do.
        """
        main = self._main()
        if main.ready or getattr(main.call, "__qualname__", "").endswith("__aexit__"):
            return False
        for scope in self._simulation._loop.scopes(main):
            if scope.shield:
                return False
            if scope is self._scope or scope is getattr(self._scope, "_CancelScope__original", None):
                return True
        return False

    def _reached(self, mode: Mode, task: SimTask) -> bool:
        index = self.counts[mode]
        self.counts[mode] += 1
        if self.point is None or self.point.mode != mode or self.point.index != index:
            return False
        self.hit = str(task.where())
        if mode != "deadline":
            self.when = self._simulation.now
        return True


def cancel_everywhere(
    scenario: Callable[..., Awaitable[Any]],
    *,
    build: Callable[[], Any] | None = None,
    check: Callable[..., Any] | None = None,
    modes: Sequence[Mode] = MODES,
    backends: Sequence[Backend] = BACKENDS,
    schedules: Sequence[Schedule | str] = (FIFO,),
    allow: tuple[type[BaseException], ...] = (),
    within: float | None = None,
    strict: bool = False,
    plan: FaultPlan | str | None = None,
    replay: Replay | None = None,
    **options: Any,
) -> SweepReport:
    """Run a scenario once for every point at which it can be cancelled, and check after each what is left of it.

    Args:
        scenario: is cancelled. Called with what `build` returned, without arguments if there is no `build`.
        build: makes the state of a run anew, outside of what is cancelled. It may be asynchronous, and what it returns may
            be an asynchronous context manager: that is entered, and left after the check.
        check: looks at the state after the scenario, cancelled or not, and raises if something is wrong. May be
            asynchronous; it is not cancelled.
        modes: where to cancel: `block` when a task has come to a stop, `wake` just before a task goes on, `deadline` by
            letting the innermost deadline pass, `native` by `Task.cancel()` of the main task, which is for asyncio only.
        backends: where to run it.
        schedules: the orders to do it under.
        allow: exceptions that the scenario may raise when it is cut short. TimeoutError is always allowed where a
            deadline has passed.
        within: the virtual seconds that the scenario may take to end, once it is cancelled; None for any number.
        strict: whether the scenario must end by the cancellation if it meets it: one that returns has swallowed it.
        plan: faults that happen in every run.
        replay: go through this one point only. The environment may say so too.
        **options: further arguments of `Simulation`.

    Returns:
        What it has gone through.

    Raises:
        BaseException: what was wrong at the first point that failed, with notes that name the others and the line that
            replays it. Tasks that are left are a `LeakError`, a scenario that does not end a `DeadlockError`.
        ValueError: there is nothing to go through.
    """
    for mode in modes:
        if mode not in MODES:
            raise ValueError(f"a mode of a sweep is one of {', '.join(MODES)}: got {mode!r}")
    if not modes or not backends or not schedules:
        raise ValueError(f"a sweep needs a mode, a backend and a schedule: got {modes!r}, {backends!r}, {schedules!r}")
    plan = FaultPlan.parse(plan) if isinstance(plan, str) else plan or FaultPlan()
    sweep = _Sweep(scenario, build, check, _Rules(allow, within, strict), options)
    replay = replay or forced_replay()
    if replay is not None:
        sweep.replay(replay)
        return sweep.report()
    for backend in backends:
        for schedule in schedules:
            parsed = Schedule.parse(schedule) if isinstance(schedule, str) else schedule
            sweep.sweep(Replay(backend, parsed, None, plan), modes)
    return sweep.report()


@attrs.frozen
class _Rules:
    """How a scenario may end once it is cancelled."""

    allow: tuple[type[BaseException], ...]
    within: float | None
    strict: bool


class _Sweep:
    def __init__(
        self,
        scenario: Callable[..., Awaitable[Any]],
        build: Callable[[], Any] | None,
        check: Callable[..., Any] | None,
        rules: _Rules,
        options: dict[str, Any],
    ) -> None:
        self._scenario = scenario
        self._build = build
        self._check = check
        self._rules = rules
        self._options = options
        self._points: dict[tuple[Backend, Mode], int] = {}
        self._runs = 0
        self._steps = 0

    def report(self) -> SweepReport:
        return SweepReport(self._points, self._runs, self._steps)

    def sweep(self, plain: Replay, modes: Sequence[Mode]) -> None:
        result, probe = self._run(plain)
        if result.error is not None:
            raise annotate(
                result.error, ["the scenario failed before anything was cancelled", f"replay: {plain.assignment}"]
            )
        if not probe.counts["wake"]:
            raise ValueError(f"a sweep needs a scenario that waits at least once: {self._scenario!r} does not")
        points = []
        for mode in modes:
            if mode == "native" and plain.backend == "trio":
                continue
            count = probe.counts[mode]
            self._points[plain.backend, mode] = self._points.get((plain.backend, mode), 0) + count  # type: ignore[index,arg-type]
            points += [CancelPoint(mode, index) for index in range(count)]
        self.run_all(plain, points)

    def replay(self, replay: Replay) -> None:
        point = replay.cancel
        if point is not None and point.mode == "native" and replay.backend == "trio":
            raise ValueError(f"mode native is for asyncio, which has Task.cancel(): got {replay}")
        self.run_all(replay, [point])

    def run_all(self, plain: Replay, points: Sequence[CancelPoint | None]) -> None:
        failures: list[tuple[CancelPoint | None, BaseException, str]] = []
        for point in points:
            result, probe = self._run(attrs.evolve(plain, cancel=point))
            if result.error is not None:
                failures.append((point, result.error, probe.hit))
        if failures:
            point, error, where = failures[0]
            line = shortest(attrs.evolve(plain, cancel=point))
            notes = [f"cancelled on {plain.backend} at {point}: {where}", f"replay: {line.assignment}"]
            if len(failures) > 1:
                notes[1:1] = _by_place(failures, len(points))
            raise annotate(error, notes)

    def _run(self, replay: Replay) -> tuple[SimResult, _Probe]:
        probe = _Probe(replay.cancel)
        result = run_sim(
            self._episode,
            probe,
            backend=replay.backend,  # type: ignore[arg-type]
            schedule=replay.schedule,
            plan=replay.plan,
            prepare=probe.attach,
            **self._options,
        )
        self._runs += 1
        self._steps += result.steps
        return result, probe

    async def _episode(self, probe: _Probe) -> None:
        async with AsyncExitStack() as stack:
            state = _NO_STATE
            if self._build is not None:
                state = await _value(self._build())
                if hasattr(state, "__aenter__"):
                    state = await stack.enter_async_context(state)
            arguments = () if state is _NO_STATE else (state,)
            before = current_simulation()._kernel.tasks.copy()
            await self._cut_short(probe, arguments)
            self._look_for_leaks(before)
            if self._check is not None:
                await _value(self._check(*arguments))

    async def _cut_short(self, probe: _Probe, arguments: tuple[Any, ...]) -> None:
        simulation = current_simulation()
        point, scope = probe.point, anyio.CancelScope()
        try:
            with scope:
                probe.watch(scope)
                try:
                    await self._scenario(*arguments)
                finally:
                    probe.watch(None)
        except BaseException as error:  # noqa: ASYNC103 - told elsewhere
            if not self._expected(error, point):
                raise
        self._judge(probe, scope)
        if point is not None and point.mode == "native" and probe.hit:
            simulation._loop.uncancel(probe._main())

    def _judge(self, probe: _Probe, scope: anyio.CancelScope) -> None:
        simulation, within = current_simulation(), self._rules.within
        if within is not None and probe.when is not None and simulation.now - probe.when > within:
            raise InvariantError(
                f"the scenario must end within {within:g} s of its cancellation: it took {simulation.now - probe.when:g} s",
                simulation.tasks(),
                simulation.now,
            )
        if self._rules.strict and probe.reached_main and not scope.cancelled_caught:
            raise InvariantError(
                "the scenario must end by the cancellation that it meets: it has swallowed it, and returned",
                simulation.tasks(),
                simulation.now,
            )

    def _expected(self, error: BaseException, point: CancelPoint | None) -> bool:
        if point is None:
            return False
        allowed: tuple[type[BaseException], ...] = self._rules.allow
        if point.mode == "deadline":
            allowed += (TimeoutError,)
        if point.mode == "native":
            allowed += (anyio.get_cancelled_exc_class(),)
        if isinstance(error, BaseExceptionGroup):
            _matching, rest = error.split(allowed)
            return rest is None
        return isinstance(error, allowed)

    def _look_for_leaks(self, before: dict[Any, SimTask]) -> None:
        simulation = current_simulation()
        left = tuple(task.where() for task in simulation._kernel.tasks.values() if task.native not in before)
        if left and self._build is None:
            raise tasks_left(left, "the scenario has ended", simulation.now)


def _by_place(failures: Sequence[tuple[CancelPoint | None, BaseException, str]], points: int) -> list[str]:
    places: dict[str, list[str]] = {}
    for point, _error, where in failures:
        places.setdefault(where, []).append(str(point))
    lines = [f"  {where}: {', '.join(found)}" for where, found in places.items()]
    more = [f"  and {len(lines) - _LISTED} more places"] if len(lines) > _LISTED else []
    return [f"{len(failures)} of {points} points fail:", *lines[:_LISTED], *more]


async def _value(result: Any) -> Any:
    return await result if inspect.isawaitable(result) else result
