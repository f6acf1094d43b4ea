"""What a circuit breaker tells of itself."""

# No `from __future__ import annotations` here: the fields of public classes are read at run time, by cattrs and others.
# Their `__module__` reads agentcore, where names in strings could not be found.

from collections.abc import Mapping
from datetime import datetime
from typing import final

import attrs


@final
@attrs.frozen(kw_only=True)
class CircuitBreakerMetrics:
    """What a circuit breaker has seen since it was made.

    Outcomes of calls that the circuit had already forgotten when they came, because it has opened or closed in between, are
    not counted.

    Attributes:
        successes: calls that came back well, slow ones included.
        failures: calls that failed.
        failures_by_type: the same by the name of the error's class; at most 32 of them, all further ones are ``other``.
        timeouts: the failures that were a matter of time: deadlines that passed, probes that were cut.
        slow: calls that came to an end, well or badly, and took too long.
        excluded: calls whose exception is no failure.
        canceled: calls that were cancelled.
        rejected: calls that were not let through.
        opened_count: how often the circuit has opened.
        state_changes: how often its state has changed.
        last_failure_at: when a call failed last, in UTC; None if none has.
    """

    successes: int
    failures: int
    failures_by_type: Mapping[str, int]
    timeouts: int
    slow: int
    excluded: int
    canceled: int
    rejected: int
    opened_count: int
    state_changes: int
    last_failure_at: datetime | None
