"""Worker pools with one fault at a time, and with several in any order; what a worker process does when it is cancelled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import anyio
import pytest
from hypothesis import Phase, given, settings

from agentcore import ProcessWorkerPool, ProcessWorkerPoolConfig
from agentcore.testing import (
    BACKENDS,
    FaultPlan,
    Schedule,
    cancel_everywhere,
    fault_plans,
    run_sim,
    schedules,
)
from agentcore.testing._simulation import Backend
from tests.sweeps import of_pools_faults
from tests.sweeps.everything import TABLE
from tests.sweeps.scenarios import Boom, hosted

MINUTE = 60.0
# One of each kind of call, swept on every version.
QUICK = (
    "pool_jobs_in_the_queue_by_threads",
    "pool_jobs_in_the_queue_by_queue",
    "pool_map_by_threads",
    "pool_map_by_tasks",
    "pool_submit_when_there_is_room_by_queue",
    "pool_leave_with_work_to_do_by_threads_hosted",
    "pool_leave_with_work_to_do_by_tasks",
    "host_pool_asked_for_from_several_sides_by_queue",
    "own_pool_by_tasks",
)

pytestmark = pytest.mark.parametrize("backend", BACKENDS)
kinds = pytest.mark.parametrize(
    "build",
    [of_pools_faults.make, hosted(of_pools_faults.make), of_pools_faults.make_host],
    ids=["strict", "hosted", "host"],
)


@pytest.mark.parametrize("name", QUICK)
def test_cancelled_at_every_stop(name: str, backend: Backend) -> None:
    """Some of the sweeps, in one order and at the stops alone."""
    scenario = TABLE[name]
    cancel_everywhere(
        scenario.act,
        build=scenario.build,
        check=lambda state: state.check(),
        modes=("block",),
        backends=(backend,),
        allow=scenario.allow,
        within=scenario.within,
    )


@kinds
@pytest.mark.parametrize("target", [target for target, _ in of_pools_faults.LIKELY])
def test_with_a_fault(target: str, build: Callable[[], Any], backend: Backend) -> None:
    """Whatever goes wrong in a call or in a job, no job is lost, no slot, and nothing is left."""
    fired = 0
    for plan in of_pools_faults.PLANS:
        if plan.startswith(f"{target}#"):
            result = run_sim(of_pools_faults.with_faults, plan, build, backend=backend)
            assert result.unwrap()[1] < MINUTE, plan
            fired += result.unwrap()[0]
    assert fired


@pytest.mark.campaign
@kinds
def test_with_any_faults_in_any_order(build: Callable[[], Any], backend: Backend) -> None:
    """The same for up to three faults, and whoever goes next."""
    targets = [target for target, _ in of_pools_faults.LIKELY if target.startswith("pool")]
    plans = fault_plans(targets, exceptions=(Boom,), max_faults=3)
    # As in the sweeps of runtimes: `pct` lets one task go on for as long as it can.
    orders = schedules().filter(lambda schedule: not str(schedule).startswith("pct"))

    @settings(max_examples=100, deadline=None, derandomize=True, phases=[Phase.generate])
    @given(plans, orders)
    def search(plan: FaultPlan, schedule: Schedule) -> None:
        run_sim(of_pools_faults.with_faults, plan, build, backend=backend, schedule=schedule).unwrap()

    search()


# Processes, which the simulator knows nothing of: their results come when they come.


@pytest.fixture(scope="module")
def processes() -> Iterator[ProcessWorkerPool]:
    """One worker process for all runs; another one whenever it is killed."""
    with ProcessWorkerPool("processes", ProcessWorkerPoolConfig(workers=1)) as pool:
        yield pool


def test_process_jobs_cancelled_at_every_stop(processes: ProcessWorkerPool, backend: Backend) -> None:
    """One that runs is killed with its worker, one that waits is taken back; the next call works."""

    async def act(_: None) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(processes.asubmit, abs, -1)
            group.start_soon(processes.asubmit, abs, -2)
            assert await processes.asubmit(abs, -3) == 3

    async def check(_: None) -> None:
        assert await processes.asubmit(abs, -4) == 4
        metrics = processes.metrics
        assert (0, 0, 0, 0) == (metrics.queued, metrics.running, metrics.crashed, metrics.failed)
        assert metrics.workers <= 1

    cancel_everywhere(act, build=lambda: None, check=check, modes=("block", "native"), backends=(backend,))
