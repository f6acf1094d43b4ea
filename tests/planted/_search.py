"""How a planted bug is searched for: by the tests, by the long campaign and by the benchmark.

A search knows of a bug what its author would know before there is one: what it works on, and what could disturb it,
which is another order, a cancellation or a failing call. The same search goes through the correct twin.
"""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Final, TypeAlias, final, get_args

import anyio
import attrs

from agentcore.testing import (
    FIFO,
    RUN_TO_BLOCK,
    Action,
    Fault,
    FaultPlan,
    Replay,
    Schedule,
    cancel_everywhere,
    explore,
    inject,
    run_sim,
)
from tests.planted._bug import Bug, Sweep

# `native` is left out: whom asyncio cancels behind AnyIO's back loses items of memory streams, however correct he is.
MODES: Final = ("block", "wake", "deadline")
CALLS: Final = 4
LATE: Final = 2.0
NO_LIMIT: Final = 10**9

Targets: TypeAlias = Mapping[str, Callable[[Any], tuple[object, str]]]
# An error and the line that brings it back.
Failure: TypeAlias = tuple[BaseException, Replay]


@final
@attrs.frozen(eq=False)
class Outcome:
    """What a search has come to.

    Attributes:
        runs: how many runs there were, the first one that failed included; without those that made it shorter.
        seconds: the real seconds it took, with those.
        error: what went wrong; None if nothing did.
        replay: what brings it back.
    """

    runs: int
    seconds: float
    error: BaseException | None = None
    replay: Replay | None = None

    @property
    def switches(self) -> int:
        """To how many switches between tasks the failure could be shortened; 0 if an order that needs none will do."""
        return len(self.replay.schedule.switches) if self.replay is not None else 0


def search(
    bug: Bug,
    backend: Any,
    *,
    correct: bool = False,
    runs: int = NO_LIMIT,
    budget: float = float("inf"),
    seed: int = 0,
) -> Outcome:
    """Disturb a bug in all the ways that could bring it to light, until one does.

    Args:
        bug: what to disturb.
        backend: `asyncio` or `trio`.
        correct: whether to disturb its twin instead.
        runs: after how many runs to give up; a sweep that has begun is gone through.
        budget: after how many real seconds to give up.
        seed: where the seeds of the orders begin.
    """
    version = bug.correct if correct else bug.buggy
    began = time.monotonic()
    done, failure = 0, None
    if isinstance(version, Sweep):
        for more, failure in _disturb(version, bug.targets, backend, seed):
            done += more
            if failure is not None or done >= runs or time.monotonic() - began >= budget:
                break
    else:
        report = explore(version, backend=backend, runs=runs, budget=budget, seed=seed)
        done, failure = report.runs, report.found and (report.found.error, report.found.replay)
    seconds = time.monotonic() - began
    return Outcome(done, seconds) if failure is None else Outcome(done, seconds, *failure)


def replay(bug: Bug, line: Replay, *, correct: bool = False) -> BaseException | None:
    """Run a bug or its twin once, as a replay line says, and return what goes wrong."""
    version = bug.correct if correct else bug.buggy
    if isinstance(version, Sweep) and bug.targets is None:
        return _cancel(version, replay=line)[1]
    run = version if not isinstance(version, Sweep) else partial(_run_with, version, bug.targets or {}, line.plan)
    return run_sim(run, backend=line.backend, schedule=line.schedule).error  # type: ignore[arg-type]


def told(error: BaseException | None) -> str:
    """Return what a failure says in a line: its type and its message, of the first one if there are several."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return "nothing" if error is None else f"{type(error).__name__}: {error}".splitlines()[0]


def _disturb(version: Sweep, targets: Targets | None, backend: Any, seed: int) -> Iterator[tuple[int, Failure | None]]:
    """Yield how many runs there were, and what failed in the last of them."""
    for number in itertools.count():
        if targets is None:
            for mode in MODES:
                yield _sweep(version, backend, _order(number, seed), mode)
        else:
            for plan in _single_faults(targets):
                yield 1, _fail(partial(_run_with, version, targets, plan), plan, backend, _order(number, seed))


def _order(number: int, seed: int) -> Schedule:
    return (FIFO, RUN_TO_BLOCK)[number] if number < 2 else Schedule("walk", seed + number)


def _sweep(sweep: Sweep, backend: Any, schedule: Schedule, mode: Any) -> tuple[int, Failure | None]:
    runs, error = _cancel(sweep, modes=(mode,), backends=(backend,), schedules=(schedule,))
    if error is None:
        return runs, None
    line = Replay.parse(re.findall(r"AGENTCORE_SIM='(.+)'", "\n".join(error.__notes__))[-1])
    # One run cancels nothing, and then each point has its own.
    return 1 if line.cancel is None else line.cancel.index + 2, (error, line)


def _cancel(sweep: Sweep, **options: Any) -> tuple[int, BaseException | None]:
    try:
        report = cancel_everywhere(sweep.scenario, build=sweep.build, check=sweep.check, **options)
    except Exception as error:  # noqa: BLE001 - it is the result
        return 0, error
    return report.runs, None


def _single_faults(targets: Targets) -> Iterator[FaultPlan]:
    for target, call, action in itertools.product(targets, range(1, CALLS + 1), get_args(Action)):
        argument = LATE if action == "delay" else None
        yield FaultPlan([Fault(target, call, action, argument)])
        if call == 1:
            yield FaultPlan([Fault(target, call, action, argument, onwards=True)])


def _fail(run: Any, plan: FaultPlan, backend: Any, schedule: Schedule) -> Failure | None:
    error = run_sim(run, backend=backend, schedule=schedule).error
    if error is None:
        return None
    if schedule in (FIFO, RUN_TO_BLOCK):
        return error, Replay(backend, schedule, None, plan)
    found = explore(run, backend=backend, runs=1, strategy="walk", seed=schedule.seed).found
    assert found is not None, "the same schedule gave another run"
    # What shortens the order knows of no faults: its own would also be in force during the check.
    return found.error, attrs.evolve(found.replay, plan=plan)


async def _run_with(sweep: Sweep, targets: Targets, plan: FaultPlan) -> None:
    state = sweep.build()
    places = {name: place(state) for name, place in targets.items()}
    with anyio.CancelScope() as scope, inject(plan, places, scope=scope):
        await sweep.scenario(state)
    await sweep.check(state)
