"""The table of scenarios together with all that fill it."""

from __future__ import annotations

from tests.sweeps import (
    of_agents,
    of_breakers,
    of_life,
    of_life_ends,
    of_life_groups,
    of_life_hosted,
    of_pipeline,
    of_pools,
    of_pools_hosted,
    of_pools_hosts,
    of_retries,
    of_runtime,
    of_supervision,
    of_systems,
    of_tasks,
)
from tests.sweeps.scenarios import TABLE

__all__ = ["FILLED_BY", "TABLE"]

FILLED_BY = (
    of_agents,
    of_breakers,
    of_life,
    of_life_groups,
    of_life_ends,
    of_life_hosted,
    of_pipeline,
    of_pools,
    of_pools_hosted,
    of_pools_hosts,
    of_retries,
    of_runtime,
    of_supervision,
    of_systems,
    of_tasks,
)
