"""Test multi-agent programs: one simulator for asyncio and trio, with faults as data.

    from agentcore.testing import simulate

    @simulate(runs=200)
    async def test_two_agents_share_a_budget():
        ...

A test runs under many schedules in virtual time, on both backends; a failure is shrunk to the few switches that matter
and prints one line that brings it back. `cancel_everywhere` cancels a scenario at each of its checkpoints; a `FaultPlan`
makes calls fail, hang or repeat; Hypothesis draws plans and drives whole programs. Importing this
package changes nothing: its parts are loaded when the first name of it is used, event loops are touched when the first
simulation starts, and Hypothesis is imported when something of it is used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._facade import *  # noqa: F403 - one list of names is enough
    from ._facade import __all__ as __all__

# What needs Hypothesis or pytest.
_LATE = {
    "ExecutorConformance": "_conformance",
    "SimMachine": "_machine",
    "agent_configs": "_strategies",
    "circuit_configs": "_strategies",
    "fault_plans": "_strategies",
    "runtime_configs": "_strategies",
    "schedules": "_strategies",
    "tasks": "_strategies",
}


def __getattr__(name: str) -> Any:
    """Load what is exported when something of it is used: pytest imports this package for its plugin, in every project."""
    if name in _LATE:
        item = getattr(importlib.import_module(f"{__name__}.{_LATE[name]}"), name)
        if item.__module__.startswith(f"{__name__}."):
            item.__module__ = __name__
        return item
    if name.startswith("_") and name != "__all__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    facade = importlib.import_module(f"{__name__}._facade")
    if name != "__all__" and name not in facade.__all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    for exported in facade.__all__:
        if exported not in _LATE:
            globals()[exported] = getattr(facade, exported)
    globals()["__all__"] = facade.__all__
    return globals()[name]
