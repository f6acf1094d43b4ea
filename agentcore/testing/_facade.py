"""What `agentcore.testing` exports, loaded at the first use of any of it."""

from types import FunctionType
from typing import TYPE_CHECKING

from . import _targets  # noqa: F401 - registers the kinds of targets
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
from ._run import SimResult, run_sim
from ._schedule import FIFO, RUN_TO_BLOCK, Schedule, Switch
from ._simulate import simulate
from ._simulation import BACKENDS, Simulation, current_simulation
from ._sweep import SweepReport, cancel_everywhere

if TYPE_CHECKING:
    from ._conformance import ExecutorConformance
    from ._machine import SimMachine
    from ._strategies import agent_configs, circuit_configs, fault_plans, runtime_configs, schedules, tasks

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
    "circuit_configs",
    "fault_plans",
    "runtime_configs",
    "schedules",
    "tasks",
    # executors
    "ExecutorConformance",
    # itself
    "UnsupportedVersionError",
    "check",
]


def _own_what_is_exported() -> None:
    """Have everything exported read agentcore.testing as its module: in tracebacks, in documentation, in pickles."""
    for name in __all__:
        item = globals().get(name)
        if isinstance(item, type | FunctionType) and item.__module__.startswith("agentcore.testing."):
            item.__module__ = "agentcore.testing"


_own_what_is_exported()
