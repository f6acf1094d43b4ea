"""Test multi-agent programs: one simulator for asyncio and trio, with faults as data.

    from agentcore.testing import simulate

    @simulate(runs=200)
    async def test_two_agents_share_a_budget():
        ...

A test runs under many schedules in virtual time, on both backends; a failure is shrunk to the few switches that matter
and prints one line that brings it back. `cancel_everywhere` cancels a scenario at each of its checkpoints; a `FaultPlan`
makes calls fail, hang or repeat; Hypothesis draws plans and drives whole programs. Importing this package changes nothing:
event loops are touched when the first simulation starts, and Hypothesis is imported when something of it is used.
"""

from types import FunctionType
from typing import TYPE_CHECKING, Any

from . import _targets as _targets
from ._asserts import (
    assert_cancellable,
    assert_checkpoints,
    assert_deterministic,
    assert_no_checkpoints,
    assert_no_leaks,
    trace_hash,
)
from ._check import UnsupportedVersionError, check
from ._explore import ExploreReport, Found, explore
from ._failures import (
    DeadlockError,
    InvariantError,
    LeakError,
    LivelockError,
    NondeterminismError,
    SimulationFailure,
    StallError,
    UnretrievedError,
    Waiting,
)
from ._fault_plans import Action, Fault, FaultPlan, InjectedFault
from ._faults import Injection, Target, inject, known_kinds, register_targets
from ._globals import isolated_globals
from ._kernel import Step
from ._replay import CancelPoint, Replay
from ._schedule import FIFO, RUN_TO_BLOCK, Schedule, Switch
from ._simulate import simulate
from ._simulation import BACKENDS, SimResult, Simulation, current_simulation, run_sim
from ._sweep import SweepReport, cancel_everywhere

if TYPE_CHECKING:
    from ._machine import SimMachine
    from ._strategies import agent_configs, fault_plans, schedules, tasks

__all__ = [  # noqa: RUF022 - in the order of use
    # run
    "BACKENDS",
    "SimResult",
    "Simulation",
    "Step",
    "current_simulation",
    "isolated_globals",
    "run_sim",
    "simulate",
    # order
    "FIFO",
    "RUN_TO_BLOCK",
    "ExploreReport",
    "Found",
    "Schedule",
    "Switch",
    "explore",
    # cancel
    "CancelPoint",
    "Replay",
    "SweepReport",
    "assert_cancellable",
    "assert_checkpoints",
    "assert_deterministic",
    "assert_no_checkpoints",
    "assert_no_leaks",
    "cancel_everywhere",
    "trace_hash",
    # faults
    "Action",
    "Fault",
    "FaultPlan",
    "InjectedFault",
    "Injection",
    "Target",
    "inject",
    "known_kinds",
    "register_targets",
    # findings
    "DeadlockError",
    "InvariantError",
    "LeakError",
    "LivelockError",
    "NondeterminismError",
    "SimulationFailure",
    "StallError",
    "UnretrievedError",
    "Waiting",
    # Hypothesis
    "SimMachine",
    "agent_configs",
    "fault_plans",
    "schedules",
    "tasks",
    # itself
    "UnsupportedVersionError",
    "check",
]

_HYPOTHESIS = {
    "SimMachine": "_machine",
    "agent_configs": "_strategies",
    "fault_plans": "_strategies",
    "schedules": "_strategies",
    "tasks": "_strategies",
}


def _own_what_is_exported() -> None:
    """Have everything exported read agentcore.testing as its module: in tracebacks, in documentation, in pickles."""
    for name in __all__:
        item = globals().get(name)
        if isinstance(item, type | FunctionType) and item.__module__.startswith("agentcore.testing."):
            item.__module__ = __name__


_own_what_is_exported()


def __getattr__(name: str) -> Any:
    """Import what needs Hypothesis when it is used."""
    if name not in _HYPOTHESIS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib  # noqa: PLC0415

    return getattr(importlib.import_module(f"{__name__}.{_HYPOTHESIS[name]}"), name)
