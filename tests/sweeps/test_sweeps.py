"""Every public coroutine is cancelled wherever it waits, and run under several orders."""

from __future__ import annotations

import pytest

from agentcore.testing import BACKENDS, cancel_everywhere, explore
from agentcore.testing._simulation import Backend
from tests.sweeps import of_agents, of_runtime, of_tasks
from tests.sweeps.scenarios import TABLE, Scenario

EVERYTHING = (of_agents, of_runtime, of_tasks)
SCHEDULES = 20

pytestmark = pytest.mark.parametrize("backend", BACKENDS)
scenarios = pytest.mark.parametrize("scenario", TABLE.values(), ids=list(TABLE))


@scenarios
def test_cancelled_everywhere(scenario: Scenario, backend: Backend) -> None:
    """However it is cut short, nothing is held, nothing runs, everything has ended once, and the next call works."""
    report = cancel_everywhere(
        scenario.act,
        build=scenario.build,
        check=lambda state: state.check(),
        backends=(backend,),
        allow=scenario.allow,
        strict=scenario.strict,
        within=scenario.within,
    )
    assert report.points[backend, "wake"]


@scenarios
def test_in_any_order(scenario: Scenario, backend: Backend) -> None:
    """The same holds without a cancellation, whoever goes next."""
    explore(scenario.run, backend=backend, runs=SCHEDULES).unwrap()
