"""The long search: every bug from scratch on both backends, and its twin so often that an alarm could not hide.

    python -m tests.planted.campaign [--runs 100000] [--budget 20] [--seed 0]

Prints a table. Exits with 1 if more than 2 of 30 bugs are not found in their time on a backend, or a twin fails at all.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Final

from agentcore.testing import BACKENDS
from tests.planted._catalogue import BUGS, Bug
from tests.planted._search import Outcome, search, told

NEEDED: Final = math.ceil(len(BUGS) * 28 / 30)
HEADS: Final = ("bug", "needs", "backend", "run", "seconds", "replay")
ALARMS_SHOWN: Final = 20


def say(text: str) -> None:
    """Print a line at once: the whole takes minutes."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def find_bugs(budget: float, seed: int) -> bool:
    """Search for every bug, print what was found, and return whether it is enough."""
    found = dict.fromkeys(BACKENDS, 0)
    say(line(HEADS))
    say(line("-" * len(head) for head in HEADS))
    for bug in BUGS:
        for backend in BACKENDS:
            outcome = search(bug, backend, budget=budget, seed=seed)
            # One run too long could have come too late.
            found[backend] += outcome.error is not None and outcome.seconds <= budget
            say(line(cells(bug, backend, outcome)))
    counts = ", ".join(f"{count} on {backend}" for backend, count in found.items())
    say(f"\nof {len(BUGS)} bugs, {NEEDED} of which must be found within {budget:g} s each: {counts}")
    return all(count >= NEEDED for count in found.values())


def cells(bug: Bug, backend: str, outcome: Outcome) -> Iterator[str]:
    """Yield the cells of one row."""
    yield from (bug.name, bug.needs, backend)
    yield str(outcome.runs) if outcome.error is not None else f"> {outcome.runs}"
    yield f"{outcome.seconds:.2f}"
    yield str(outcome.replay) if outcome.error is not None else "NOT FOUND"


def line(cells: Iterable[str]) -> str:
    """Join the cells of one row."""
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, (34, 8, 7, 6, 7, 0), strict=True)).rstrip()


def try_twins(runs: int, seed: int) -> bool:
    """Disturb all twins in so many runs together, print what they have come to, and return whether none has failed."""
    each = math.ceil(runs / len(BUGS) / len(BACKENDS))
    done, alarms, began = 0, [], time.monotonic()
    for bug in BUGS:
        for backend in BACKENDS:
            outcome = search(bug, backend, correct=True, runs=each, seed=seed)
            done += outcome.runs
            if outcome.error is not None:
                alarms.append(f"{bug.name} on {backend}: {told(outcome.error)}; replay: {outcome.replay}")
    seconds = time.monotonic() - began
    say(
        f"{done:,} runs of the twins in {seconds:.0f} s, at least {each:,} of each on each backend: {len(alarms)} alarms"
    )
    for alarm in alarms[:ALARMS_SHOWN]:
        say(f"ALARM {alarm}")
    return not alarms and done >= runs


def main() -> int:
    """Search, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.planted.campaign",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--runs", type=int, default=100_000, help="of all twins together (default: %(default)s)")
    parser.add_argument("--budget", type=float, default=20.0, help="seconds for each bug (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="where the orders begin (default: %(default)s)")
    arguments = parser.parse_args()
    enough = find_bugs(arguments.budget, arguments.seed)
    silent = try_twins(arguments.runs, arguments.seed)
    return 0 if enough and silent else 1


if __name__ == "__main__":
    sys.exit(main())
