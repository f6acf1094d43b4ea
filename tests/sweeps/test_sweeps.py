"""Every public coroutine is cancelled wherever it waits, and run under several orders."""

from __future__ import annotations

from collections.abc import Awaitable

import pytest

from agentcore import CoreError
from agentcore.testing import BACKENDS, FIFO, cancel_everywhere, explore
from agentcore.testing._simulation import Backend
from tests.sweeps import (
    of_agents,
    of_breakers,
    of_life,
    of_life_ends,
    of_life_groups,
    of_life_hosted,
    of_pipeline,
    of_runtime,
    of_tasks,
)
from tests.sweeps.scenarios import TABLE, Scenario, State

FILLED_BY = (
    of_agents,
    of_breakers,
    of_life,
    of_life_groups,
    of_life_ends,
    of_life_hosted,
    of_pipeline,
    of_runtime,
    of_tasks,
)
RUNS = 20
SCHEDULES = (FIFO, "walk/1", "rare/2")

pytestmark = [pytest.mark.parametrize("backend", BACKENDS), pytest.mark.thorough]
scenarios = pytest.mark.parametrize("scenario", TABLE.values(), ids=list(TABLE))


@scenarios
def test_cancelled_everywhere(scenario: Scenario, backend: Backend) -> None:
    """However it is cut short, nothing is held, nothing runs, everything has ended once, and the next call works."""
    cancel_everywhere(
        scenario.act,
        build=scenario.build,
        check=check,
        modes=("block", "wake", "native"),
        backends=(backend,),
        schedules=SCHEDULES,
        allow=scenario.allow,
        strict=scenario.strict,
        within=scenario.within,
    )


@scenarios
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


@scenarios
def test_in_any_order(scenario: Scenario, backend: Backend) -> None:
    """The same holds without a cancellation, whoever goes next."""
    explore(scenario.run, backend=backend, runs=RUNS).unwrap()


def check(state: State) -> Awaitable[None]:
    return state.check()


def check_late(state: State) -> Awaitable[None]:
    state.late = True
    return state.check()
