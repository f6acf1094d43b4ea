"""All planted bugs, and what a planted bug is."""

from __future__ import annotations

from tests.planted import (
    cancellation,
    deadlines,
    faults,
    groups,
    locks,
    permits,
    races,
    shutdown,
    signals,
    streams,
)
from tests.planted._bug import Bug, Sweep

__all__ = ["BUGS", "Bug", "Sweep"]

BUGS: list[Bug] = [
    *permits.BUGS,
    *signals.BUGS,
    *races.BUGS,
    *cancellation.BUGS,
    *streams.BUGS,
    *groups.BUGS,
    *locks.BUGS,
    *deadlines.BUGS,
    *shutdown.BUGS,
    *faults.BUGS,
]
