"""Every public coroutine is cancelled wherever it waits, and run under several orders."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
from hypothesis import Phase, given, settings

from agentcore import CoreError
from agentcore.testing import (
    BACKENDS,
    FIFO,
    FaultPlan,
    Schedule,
    cancel_everywhere,
    explore,
    fault_plans,
    run_sim,
    schedules,
)
from agentcore.testing._simulation import Backend
from tests.sweeps import of_life_faults
from tests.sweeps.everything import TABLE
from tests.sweeps.scenarios import Boom, Runtime, Scenario, State, hosted

RUNS = 20
MINUTE = 60.0
FURTHER_SCHEDULES = ("walk/1", "walk/2", "rare/2")

# Of each kind of call that a runtime has, one that is swept on every version.
QUICK = (
    "ask_contended",
    "shut_down_with_asks_under_way_hosted",
    "group_with_a_failure",
    "group_inside_of_a_task",
    "map_some_hosted",
    "take_some",
    "listen_to_the_beginning_hosted",
    "hold_resources",
    "leave_with_everything_under_way",
    "open_and_close",
    "crash_with_all_others",
    "leave_with_agents_at_work_hosted",
)

pytestmark = pytest.mark.parametrize("backend", BACKENDS)
kinds = pytest.mark.parametrize(
    "build",
    [of_life_faults.make, hosted(of_life_faults.make), of_life_faults.make_retrying],
    ids=["strict", "hosted", "with retries"],
)


def _fewer(for_campaign: Callable[[str, Scenario], bool]) -> pytest.MarkDecorator:
    """Leave some to the campaign."""
    return pytest.mark.parametrize(
        "scenario",
        [
            pytest.param(scenario, id=name, marks=[pytest.mark.campaign] if for_campaign(name, scenario) else [])
            for name, scenario in TABLE.items()
        ],
    )


# What repeats a scenario in a hosted runtime; what asks of the life of a runtime something else than to be cancelled.
without_hosted = _fewer(lambda name, scenario: name.endswith("_hosted"))
without_life = _fewer(lambda name, scenario: name.endswith("_hosted") or "of_life" in scenario.act.__module__)


@pytest.mark.thorough
@without_hosted
def test_cancelled_everywhere(scenario: Scenario, backend: Backend) -> None:
    """However it is cut short, nothing is held, nothing runs, everything has ended once, and the next call works."""
    _cancel_everywhere(scenario, backend, (FIFO,))


@pytest.mark.campaign
@pytest.mark.parametrize("scenario", TABLE.values(), ids=list(TABLE))
def test_cancelled_everywhere_in_further_orders(scenario: Scenario, backend: Backend) -> None:
    """The same, whoever goes next."""
    _cancel_everywhere(scenario, backend, FURTHER_SCHEDULES)


def _cancel_everywhere(scenario: Scenario, backend: Backend, orders: tuple[str | Schedule, ...]) -> None:
    cancel_everywhere(
        scenario.act,
        build=scenario.build,
        check=check,
        modes=("block", "wake", "native"),
        backends=(backend,),
        schedules=orders,
        allow=scenario.allow,
        strict=scenario.strict,
        within=scenario.within,
    )


@pytest.mark.thorough
@without_life
def test_deadlines_pass_everywhere(scenario: Scenario, backend: Backend) -> None:
    """The same holds if a deadline passes at any moment; it may be told by an error of this library."""
    cancel_everywhere(
        scenario.act,
        build=scenario.build,
        check=check_late,
        modes=("deadline",),
        backends=(backend,),
        allow=(*scenario.allow, CoreError),
    )


@pytest.mark.thorough
@without_life
def test_in_any_order(scenario: Scenario, backend: Backend) -> None:
    """The same holds without a cancellation, whoever goes next."""
    explore(scenario.run, backend=backend, runs=RUNS).unwrap()


@pytest.mark.parametrize("name", QUICK)
def test_cancelled_at_every_stop(name: str, backend: Backend) -> None:
    """The first of these tests for some, in one order and at the stops alone."""
    scenario = TABLE[name]
    cancel_everywhere(
        scenario.act,
        build=scenario.build,
        check=check,
        modes=("block",),
        backends=(backend,),
        allow=scenario.allow,
        within=scenario.within,
    )


@kinds
@pytest.mark.parametrize("target", [target for target, _ in of_life_faults.LIKELY])
def test_with_a_fault(target: str, build: Callable[[], Runtime], backend: Backend) -> None:
    """Whatever goes wrong in a call, everything ends, once, and no error is lost."""
    fired = 0
    for plan in of_life_faults.PLANS:
        if plan.startswith(f"{target}#"):
            result = run_sim(of_life_faults.with_faults, plan, build, backend=backend)
            assert result.unwrap()[1] < MINUTE, plan
            fired += result.unwrap()[0]
    assert fired


@pytest.mark.thorough
@kinds
def test_with_any_faults_in_any_order(build: Callable[[], Runtime], backend: Backend) -> None:
    """The same for up to three faults, and whoever goes next."""
    targets = [target for target, actions in of_life_faults.LIKELY if actions == of_life_faults.ANY]
    plans = fault_plans(targets, exceptions=(Boom,), max_faults=3)

    # Without shrinking, which takes minutes here. And without `pct`, which lets one task go on for as long as it can:
    # on asyncio, one that waits for its cancellation to be delivered can, for ever.
    orders = schedules().filter(lambda schedule: not str(schedule).startswith("pct"))

    @settings(max_examples=100, deadline=None, derandomize=True, phases=[Phase.generate])
    @given(plans, orders)
    def search(plan: FaultPlan, schedule: Schedule) -> None:
        run_sim(of_life_faults.with_faults, plan, build, backend=backend, schedule=schedule).unwrap()

    search()


def check(state: State) -> Awaitable[None]:
    return state.check()


def check_late(state: State) -> Awaitable[None]:
    state.late = True
    return state.check()
