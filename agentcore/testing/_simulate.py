"""A test function from an asynchronous one: synchronous, in virtual time, under many schedules."""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, Literal

from agentcore import AgentRuntime

from ._explore import AsyncFunction, StrategyName, explore, last_steps
from ._failures import annotate
from ._fault_plans import FaultPlan
from ._replay import Replay, forced_replay
from ._run import run_sim
from ._simulation import BACKENDS, Backend, current_simulation
from ._sweep import cancel_everywhere

# pytest leaves the frames of this file out of the traceback: the reader's own test comes first.
__tracebackhide__ = True

# Parameters that each run fills in by itself; everything else comes from pytest.
OWN = ("sim", "agent_runtime")

# What the command line says of `runs`, `seed` and `budget`. The pytest plugin fills it, and empties it at its end.
overrides: dict[str, Any] = {}


def simulate(
    function: AsyncFunction | None = None,
    *,
    runs: int = 100,
    backends: Sequence[Backend] = BACKENDS,
    strategy: StrategyName = "portfolio",
    seed: int = 0,
    cancel: Literal["sweep"] | None = None,
    budget: float | None = None,
    plan: FaultPlan | str | None = None,
    **options: Any,
) -> Any:
    """Make a plain synchronous test of an asynchronous one, which runs under many schedules in virtual time.

    The test may take pytest's fixtures, and values of `pytest.mark.parametrize`; they are made once for all runs, so what
    the runs change is made inside of the function. A parameter called `sim` is the `Simulation` of each run, one called
    `agent_runtime` an `AgentRuntime` that is entered for each run.

    Args:
        function: the test. Without it, the call returns a decorator.
        runs: how many schedules to try on each backend.
        backends: where to run it; by default on those that are installed.
        strategy: as of `explore`.
        seed: as of `explore`.
        cancel: `sweep` also cancels the test at each of its checkpoints, and looks for what is left behind.
        budget: real seconds for each backend, None for no limit.
        plan: faults that happen in every run.
        **options: further arguments of `Simulation`.

    Returns:
        The test.

    Raises:
        TypeError: the function is not asynchronous.
    """
    if function is None:
        return functools.partial(
            simulate,
            runs=runs,
            backends=backends,
            strategy=strategy,
            seed=seed,
            cancel=cancel,
            budget=budget,
            plan=plan,
            **options,
        )
    if not inspect.iscoroutinefunction(function):
        raise TypeError(f"@simulate is for `async def` functions: got {function!r}")
    if not backends:
        raise ValueError("@simulate needs at least one backend: got none")
    if cancel not in (None, "sweep"):
        raise ValueError(f"cancel is None or 'sweep': got {cancel!r}")
    parsed = FaultPlan.parse(plan) if isinstance(plan, str) else plan
    search = {"runs": runs, "strategy": strategy, "seed": seed, "budget": budget}
    return _simulated(function, tuple(backends), cancel, parsed, search=search, options=options)


def _simulated(
    function: AsyncFunction,
    backends: tuple[Backend, ...],
    cancel: Literal["sweep"] | None,
    plan: FaultPlan | None,
    *,
    search: dict[str, Any],
    options: dict[str, Any],
) -> Callable[..., None]:
    signature = inspect.signature(function)
    own = [name for name in OWN if name in signature.parameters]

    @functools.wraps(function)
    def test(*args: Any, **kwargs: Any) -> None:
        __tracebackhide__ = True
        bound = functools.partial(_call, function, own, args, kwargs)
        if (replay := forced_replay()) is not None:
            replay_one(bound, replay, options)
            return
        for backend in backends:
            explore(bound, backend=backend, plan=plan, **{**search, **overrides}, **options).unwrap()
        if cancel == "sweep":
            cancel_everywhere(bound, backends=backends, plan=plan, **options)

    shown = [parameter for name, parameter in signature.parameters.items() if name not in own]
    test.__signature__ = signature.replace(parameters=shown)  # type: ignore[attr-defined]
    # pytest and its plugins look at what is wrapped, and would take the test for an asynchronous one.
    del test.__wrapped__
    return test


async def _call(function: AsyncFunction, own: list[str], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    given = dict(kwargs)
    if "sim" in own:
        given["sim"] = current_simulation()
    if "agent_runtime" in own:
        async with AgentRuntime() as given["agent_runtime"]:
            await function(*args, **given)
    else:
        await function(*args, **given)


def replay_one(function: AsyncFunction, replay: Replay, options: dict[str, Any]) -> None:
    """Run a function once, as a replay line says, and raise what comes of it."""
    if replay.cancel is not None:
        cancel_everywhere(function, replay=replay, **options)
        return
    given = {**options, "trace": True}
    result = run_sim(function, backend=replay.backend, schedule=replay.schedule, plan=replay.plan, **given)  # type: ignore[arg-type]
    if result.error is not None:
        raise annotate(result.error, [*last_steps(result, 50), f"replayed: {replay.assignment}"])
