"""Agents that are supervised while calls go wrong: when that is over, every one of them is up and handles messages."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import Phase, given, settings

from agentcore.testing import BACKENDS, FaultPlan, Schedule, fault_plans, run_sim, schedules
from agentcore.testing._simulation import Backend
from tests.sweeps import of_supervision_faults
from tests.sweeps.of_supervision import Tree
from tests.sweeps.scenarios import Boom, hosted

LATE = 500.0
make = of_supervision_faults.make

pytestmark = pytest.mark.parametrize("backend", BACKENDS)
kinds = pytest.mark.parametrize(
    "build",
    [pytest.param(make, id="strict"), pytest.param(hosted(make), id="hosted", marks=pytest.mark.thorough)],
)


@kinds
@pytest.mark.parametrize("target", [target for target, _ in of_supervision_faults.LIKELY])
def test_with_a_fault(target: str, build: Callable[[], Tree], backend: Backend) -> None:
    """Whatever goes wrong in a call, no message vanishes, nothing is left, and the system heals."""
    fired = 0
    for plan in of_supervision_faults.PLANS:
        if plan.startswith(f"{target}#"):
            result = run_sim(of_supervision_faults.with_faults, plan, build, backend=backend)
            assert result.unwrap()[1] < LATE, plan
            fired += result.unwrap()[0]
    assert fired


@pytest.mark.thorough
@pytest.mark.parametrize("strategy", ["one_for_one", "one_for_all", "rest_for_one"])
def test_with_any_faults_in_any_order(strategy: str, backend: Backend) -> None:
    """The same for up to four faults, whoever goes next."""
    targets = [target for target, actions in of_supervision_faults.LIKELY if actions == of_supervision_faults.ANY]
    plans = fault_plans([*targets, "agent:first.initialize"], exceptions=(Boom,), max_faults=4, actions=ACTIONS)
    orders = schedules().filter(lambda schedule: not str(schedule).startswith("pct"))
    build = partial(make, strategy)

    @settings(max_examples=60, deadline=None, derandomize=True, phases=[Phase.generate])
    @given(plans, orders)
    def search(plan: FaultPlan, schedule: Schedule) -> None:
        run_sim(of_supervision_faults.with_faults, plan, build, backend=backend, schedule=schedule).unwrap()

    search()


ACTIONS = ("raise", "raise_after", "delay", "hang", "cancel")
