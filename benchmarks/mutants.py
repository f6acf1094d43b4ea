"""Measures how soon the simulator finds the planted bugs of tests/planted, and what finds them without it.

    python benchmarks/mutants.py [--rounds 5] [--plain 300] [--quick] [--json | --markdown]

Each round searches for every bug from scratch, with orders of its own. For comparison the same bugs run, as often as
`--plain` says,

- under plain trio, whose order is random, with `MockClock(autojump_threshold=0)`;
- under plain asyncio, the bugs in random order, as by a plugin that shuffles tests: that changes what runs first, not
  how the tasks of one test take turns.

What ends in neither way in time counts as found there. Nothing cancels or fails by itself, so plain runs can only find
the bugs that need no more than another order: these are counted apart.

Exits with 1 if more than 2 of 30 bugs are not found on a backend, in 20 s, in each round.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, TypeAlias

import anyio
import attrs
import trio.testing
from _rounds import conditions

sys.path.insert(0, str(Path(__file__).parent.parent))

from agentcore.testing import BACKENDS
from tests.planted._catalogue import BUGS, Bug, Sweep
from tests.planted._search import Outcome, search

PACKAGES: Final = ("anyio", "trio")
BUDGET: Final = 20.0
NEEDED: Final = math.ceil(len(BUGS) * 28 / 30)
# Virtual seconds under trio, real ones under asyncio: what takes longer waits for ever.
PATIENCE: Final = {"trio": 3600.0, "asyncio": 1.0}

# By name of the bug and of the backend.
Key: TypeAlias = tuple[str, str]


@attrs.frozen(kw_only=True)
class OnBackend:
    """How soon one bug is found on one backend.

    Attributes:
        found: in how many rounds.
        runs: how many runs it took, the median.
        switches: to how many switches it was shortened, the median.
        seconds: the real seconds of the search, with the shortening, the median.
        plain: how many plain runs of this backend failed.
    """

    found: int
    runs: float
    switches: float
    seconds: float
    plain: int


@attrs.frozen(kw_only=True)
class Row:
    """What became of one bug.

    Attributes:
        bug: its name.
        needs: what brings it to light.
        backends: the figures, by backend.
    """

    bug: str
    needs: str
    backends: dict[str, OnBackend]


# ---------------------------------------------------------------- the simulator


def look_for(bugs: Sequence[Bug], rounds: int) -> dict[Key, list[Outcome]]:
    """Search for each bug on each backend, so many rounds."""
    outcomes: dict[Key, list[Outcome]] = {(bug.name, name): [] for bug in bugs for name in BACKENDS}
    for number in range(rounds):
        for bug in bugs:
            for backend in BACKENDS:
                # Far apart: seeds are counted up within a search.
                outcome = search(bug, backend, budget=BUDGET, seed=number * 1_000_000)
                outcomes[bug.name, backend].append(outcome)
    return outcomes


# ---------------------------------------------------------------- without it


async def run_plainly(bug: Bug, patience: float) -> None:
    """Run a bug once as it is; raise TimeoutError if it waits for ever."""
    with anyio.fail_after(patience):
        if isinstance(bug.buggy, Sweep):
            state = bug.buggy.build()
            await bug.buggy.scenario(state)
            await bug.buggy.check(state)
        else:
            await bug.buggy()


def fails_plainly(bug: Bug, backend: str) -> bool:
    """Run a bug once without the simulator, and tell whether it has failed."""
    try:
        if backend == "trio":
            clock = trio.testing.MockClock(autojump_threshold=0)
            trio.run(run_plainly, bug, PATIENCE[backend], clock=clock)
        else:
            anyio.run(run_plainly, bug, PATIENCE[backend])
    except Exception:  # noqa: BLE001 - whatever it is, the bug is seen
        return True
    return False


def run_often(bugs: Sequence[Bug], number: int) -> dict[Key, int]:
    """Run all bugs so often on each backend, each time in another order, and count the failures of each."""
    failures: dict[Key, int] = {(bug.name, backend): 0 for bug in bugs for backend in BACKENDS}
    source = random.Random(0)
    for _ in range(number):
        for bug in source.sample(bugs, len(bugs)):
            for backend in BACKENDS:
                failures[bug.name, backend] += fails_plainly(bug, backend)
    return failures


# ---------------------------------------------------------------- the table


def make_rows(outcomes: dict[Key, list[Outcome]], plain: dict[Key, int]) -> list[Row]:
    """Put together what is known of each bug."""

    def figures(key: Key) -> OnBackend:
        tries = outcomes[key]
        return OnBackend(
            found=sum(one.error is not None and one.seconds <= BUDGET for one in tries),
            runs=statistics.median(one.runs for one in tries),
            switches=statistics.median(one.switches for one in tries),
            seconds=statistics.median(one.seconds for one in tries),
            plain=plain[key],
        )

    return [
        Row(bug=bug.name, needs=bug.needs, backends={name: figures((bug.name, name)) for name in BACKENDS})
        for bug in BUGS
    ]


def heads(rounds: int, number: int) -> tuple[str, ...]:
    """Return the heads of the columns, whose cells have one figure for each backend."""
    both = " / ".join(BACKENDS)
    return (
        "bug",
        "needs",
        f"found, {both}, of {rounds}",
        "schedules",
        "switches",
        "seconds",
        f"fails plainly, {both}, of {number}",
    )


def cells(row: Row) -> tuple[str, ...]:
    """Return the texts of the columns."""
    several = row.backends.values()
    return (
        row.bug,
        row.needs,
        " / ".join(f"{one.found}" for one in several),
        " / ".join(f"{one.runs:g}" for one in several),
        " / ".join(f"{one.switches:g}" for one in several),
        " / ".join(f"{one.seconds:.3f}" for one in several),
        " / ".join(f"{one.plain}" for one in several),
    )


def count(rows: Sequence[Row], rounds: int) -> list[str]:
    """Return what the table says, in sentences."""
    kinds = {"": rows, " that need only another order": [row for row in rows if row.needs == "schedule"]}
    lines = []
    for told, some in kinds.items():
        here = [sum(row.backends[name].found == rounds for row in some) for name in BACKENDS]
        there = [sum(row.backends[name].plain > 0 for row in some) for name in BACKENDS]
        simulated = " and ".join(f"{found} on {name}" for found, name in zip(here, BACKENDS, strict=True))
        plain = " and ".join(f"{found} under plain {name}" for found, name in zip(there, BACKENDS, strict=True))
        lines.append(f"Of {len(some)} bugs{told}: {simulated} in every round; {plain}.")
    return lines


def as_text(rows: Sequence[Row], rounds: int, number: int) -> str:
    """Return the table for a terminal."""
    lines = [heads(rounds, number), *map(cells, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, tuple("-" * width for width in widths))
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def as_markdown(rows: Sequence[Row], rounds: int, number: int) -> str:
    """Return the table for a page of the documentation."""
    lines = [heads(rounds, number), *map(cells, rows)]
    lines.insert(1, ("---",) * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def as_json(rows: Sequence[Row], rounds: int, number: int) -> str:
    """Return everything for a program."""
    return json.dumps({"rounds": rounds, "plain": number, "rows": [attrs.asdict(row) for row in rows]}, indent=2)


def main() -> int:
    """Measure, print, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="searches for each bug (default: %(default)s)")
    parser.add_argument("--plain", type=int, default=300, help="plain runs of each bug (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="one round, and 30 plain runs")
    forms = parser.add_mutually_exclusive_group()
    for option, form in (("--json", as_json), ("--markdown", as_markdown)):
        forms.add_argument(option, dest="form", action="store_const", const=form)
    parser.set_defaults(form=as_text)
    arguments = parser.parse_args()
    rounds, number = (1, 30) if arguments.quick else (arguments.rounds, arguments.plain)
    if rounds < 1 or number < 0:
        parser.error(f"it takes a round at least, and no negative number of runs: got {rounds} and {number}")
    rows = make_rows(look_for(BUGS, rounds), run_often(BUGS, number))
    print(arguments.form(rows, rounds, number))
    if arguments.form is not as_json:
        print("", *count(rows, rounds), "", conditions(PACKAGES, rounds), sep="\n")
    found = [sum(row.backends[name].found == rounds for row in rows) for name in BACKENDS]
    return 0 if min(found) >= NEEDED else 1


if __name__ == "__main__":
    sys.exit(main())
