"""Have pytest tell what the assertions of scenarios compare."""

import pytest

pytest.register_assert_rewrite(
    *(
        f"tests.sweeps.{module}"
        for module in (
            "scenarios",
            "of_agents",
            "of_breakers",
            "of_life",
            "of_life_ends",
            "of_life_faults",
            "of_life_groups",
            "of_life_hosted",
            "of_pipeline",
            "of_pools",
            "of_pools_faults",
            "of_pools_hosted",
            "of_pools_hosts",
            "of_retries",
            "of_runtime",
            "of_supervision",
            "of_supervision_faults",
            "of_supervision",
            "of_supervision_faults",
            "of_systems",
            "of_tasks",
            "pool_states",
        )
    )
)
