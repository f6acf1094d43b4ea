"""The same sweeps of worker pools once more, in hosted runtimes."""

from __future__ import annotations

import attrs

from tests.sweeps import of_pools
from tests.sweeps.pool_states import InRuntime
from tests.sweeps.scenarios import TABLE, hosted

for one in list(TABLE.values()):
    if one.act.__module__ == of_pools.__name__ and isinstance(one.build(), InRuntime):
        name = f"{one.name}_hosted"
        TABLE[name] = attrs.evolve(one, name=name, build=hosted(one.build))
