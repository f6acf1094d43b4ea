"""The same sweeps once more, of hosted runtimes: whatever can be done in a strict one, and is left in the same state."""

from __future__ import annotations

import attrs

from tests.sweeps import of_life, of_life_ends, of_life_groups, of_retries, of_runtime, of_supervision
from tests.sweeps.scenarios import TABLE, Runtime, hosted

FILLED_BY = (of_runtime, of_life, of_life_groups, of_life_ends, of_retries, of_supervision)

for one in list(TABLE.values()):
    if one.act.__module__ in {module.__name__ for module in FILLED_BY} and isinstance(one.build(), Runtime):
        name = f"{one.name}_hosted"
        TABLE[name] = attrs.evolve(one, name=name, build=hosted(one.build))
