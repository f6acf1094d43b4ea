"""Interleaved rounds, which all benchmarks share: measure, compare, judge, print.

Contenders are measured in turns in one process, A B C and then C B A, so that whatever the machine does meanwhile hits
all of them and no one always comes first. Ratios are made within a round. What is judged is their median; their
quartiles tell how far to trust it.

The collector of cyclic garbage runs before each batch and not within, as in `timeit`: otherwise one contender would pay
for another one's garbage. What an empty loop takes is subtracted: it would make every ratio look smaller.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
import tracemalloc
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Final, TypeAlias

import anyio
import attrs

LEAST_ROUNDS: Final = 15
BATCH_NS: Final = 10_000_000

Loop: TypeAlias = Callable[[int], Awaitable[object]]
"""Does something a number of times."""
Measure: TypeAlias = Callable[[], Awaitable[float]]
"""Gives one figure: nanoseconds a call, or bytes an object."""


async def nothing(number: int) -> None:
    """Loop: what is subtracted from what the other loops take."""
    for _ in range(number):
        pass


class Timed:
    """Measures the nanoseconds of one turn of a loop, in batches of about ten milliseconds."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._number = 0

    async def __call__(self) -> float:
        """Run one batch."""
        if not self._number:
            # The first batches also warm up what is specialised or cached by use.
            self._number = 1
            while (spent := await self._spend()) < BATCH_NS / 2:
                self._number *= 2
            self._number = max(1, round(self._number * BATCH_NS / spent))
        return await self._spend() / self._number

    async def _spend(self) -> int:
        # asyncio drops cancelled timers between the steps of tasks only: here, or they would pile up.
        await anyio.sleep(0)
        gc.collect()
        gc.disable()
        try:
            began = time.perf_counter_ns()
            await self._loop(self._number)
            return time.perf_counter_ns() - began
        finally:
            gc.enable()


def traced(make: Callable[[], object], number: int = 10_000) -> Measure:
    """Return what measures the bytes of an object, with all that it alone holds, by making a number of them."""

    async def measure() -> float:
        kept: list[object] = [None] * number
        # A full collection also empties the free lists, whose objects tracemalloc does not see.
        gc.collect()
        tracemalloc.start()
        try:
            for index in range(number):
                kept[index] = make()
            gc.collect()
            return tracemalloc.get_traced_memory()[0] / number
        finally:
            tracemalloc.stop()

    return measure


@attrs.frozen(kw_only=True)
class Pair:
    """Two contenders that are compared.

    Attributes:
        what: the row's name.
        subject: the contender that it is about.
        reference: the contender that it is compared with.
        at_most: the goal: the subject's figure is no more than this many times the reference's.
        at_least: the goal: the subject's figure is this many times smaller than the reference's, or more.
        times_smaller: whether the ratio says how many times smaller the subject's figure is; so it does with `at_least`.
        tells_difference: whether the row says what the subject costs more.
    """

    what: str
    subject: str
    reference: str
    at_most: float | None = None
    at_least: float | None = None
    times_smaller: bool = False
    tells_difference: bool = False


@attrs.frozen(kw_only=True)
class Row:
    """One line of the table.

    Attributes:
        what: what was measured.
        backend: in which event loop; empty where there is none.
        unit: of the figures, ``ns`` or ``B``.
        figure: the subject's median.
        reference: what it was compared with.
        reference_figure: its median.
        ratio: the median of the ratios.
        quartiles: their lower and upper quartile.
        difference: the median of what the subject costs more, if that is of interest.
        goal: what was promised; empty if nothing was.
        note: what else there is to say.
        kept: whether the promise was kept; None if there was none.
    """

    what: str
    backend: str = ""
    unit: str = ""
    figure: float | None = None
    reference: str = ""
    reference_figure: float | None = None
    ratio: float | None = None
    quartiles: tuple[float, float] | None = None
    difference: float | None = None
    goal: str = ""
    note: str = ""
    kept: bool | None = None

    def cells(self) -> tuple[str, ...]:
        """Return the texts of the columns."""
        ratio = ""
        if self.ratio is not None and self.quartiles is not None:
            ratio = f"{self.ratio:.2f}x ({self.quartiles[0]:.2f}–{self.quartiles[1]:.2f})"
        verdict = {None: "", True: "kept", False: "MISSED"}[self.kept]
        added = "" if self.difference is None else f"adds {amount(self.difference, self.unit)}"
        return (
            self.what,
            self.backend,
            amount(self.figure, self.unit),
            self.reference,
            amount(self.reference_figure, self.unit),
            ratio,
            self.goal,
            ", ".join(filter(None, (verdict, added, self.note))),
        )


HEADS: Final = ("what", "backend", "takes", "compared with", "which takes", "ratio (quartiles)", "goal", "outcome")


async def measure(contenders: Mapping[str, Measure], rounds: int) -> dict[str, list[float]]:
    """Measure contenders in turns.

    Returns:
        The figures of each, one a round.
    """
    for contender in contenders.values():
        await contender()
    gc.collect()
    # What is there already would be gone through by each of the many collections.
    gc.freeze()
    figures: dict[str, list[float]] = {name: [] for name in contenders}
    order = list(contenders)
    try:
        for _ in range(rounds):
            for name in order:
                figures[name].append(await contenders[name]())
            order.reverse()
    finally:
        gc.unfreeze()
    return figures


async def measure_loops(loops: Mapping[str, Loop], rounds: int) -> dict[str, list[float]]:
    """Measure the nanoseconds of one turn of each loop, without what an empty one takes."""
    empty = ""
    figures = await measure({empty: Timed(nothing), **{name: Timed(loop) for name, loop in loops.items()}}, rounds)
    overhead = statistics.median(figures.pop(empty))
    return {name: [value - overhead for value in values] for name, values in figures.items()}


def compare(figures: Mapping[str, Sequence[float]], pairs: Iterable[Pair], unit: str, backend: str = "") -> list[Row]:
    """Make rows of what was measured, and judge them."""
    return [_row(pair, figures[pair.subject], figures[pair.reference], unit, backend) for pair in pairs]


def _row(pair: Pair, subject: Sequence[float], reference: Sequence[float], unit: str, backend: str) -> Row:
    smaller = pair.times_smaller or pair.at_least is not None
    over, under = (reference, subject) if smaller else (subject, reference)
    low, middle, high = statistics.quantiles([a / b for a, b in zip(over, under, strict=True)], n=4, method="inclusive")
    goal, kept = "", None
    if pair.at_most is not None:
        goal, kept = f"≤ {pair.at_most:g}x", middle <= pair.at_most
    elif pair.at_least is not None:
        goal, kept = f"≥ {pair.at_least:g}x", middle >= pair.at_least
    difference = statistics.median(a - b for a, b in zip(subject, reference, strict=True))
    return Row(
        what=pair.what,
        backend=backend,
        unit=unit,
        figure=statistics.median(subject),
        reference=pair.reference,
        reference_figure=statistics.median(reference),
        ratio=middle,
        quartiles=(low, high),
        difference=difference if pair.tells_difference else None,
        goal=goal,
        kept=kept,
    )


def amount(value: float | None, unit: str) -> str:
    """Return a figure as people read it."""
    if value is None:
        return ""
    if unit == "ns" and value >= 1000:
        return f"{value / 1000:.2f} µs"
    return f"{value:,.0f} {unit}"


def conditions(packages: Iterable[str], rounds: int) -> str:
    """Return where and how the figures were measured, as a sentence."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    return (
        f"{os.cpu_count()} cores, {platform.python_implementation()} {platform.python_version()}, {platform.system()}; "
        f"{versions}; medians of {rounds} interleaved rounds."
    )


def as_text(rows: Iterable[Row], measured: str) -> str:
    """Return the table for a terminal."""
    lines = [HEADS, *(tuple(cell.replace("`", "") for cell in row.cells()) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, tuple("-" * width for width in widths))
    table = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)
    return "\n".join([*table, "", measured])


def as_markdown(rows: Iterable[Row], measured: str) -> str:
    """Return the table for a page of the documentation."""
    lines = [HEADS, ("---",) * len(HEADS), *(row.cells() for row in rows)]
    return "\n".join([measured, "", *(f"| {' | '.join(line)} |" for line in lines)])


def as_json(rows: Iterable[Row], measured: str) -> str:
    """Return everything for a program."""
    return json.dumps({"measured": measured, "rows": [attrs.asdict(row) for row in rows]}, indent=2, ensure_ascii=False)


def main(description: str, packages: Sequence[str], benchmark: Callable[[int], list[Row]]) -> int:
    """Run a benchmark as a program.

    Args:
        description: what it measures, for ``--help``.
        packages: distributions whose versions belong to the figures.
        benchmark: measures a number of rounds.

    Returns:
        The exit code: 1 if a promise was not kept.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=31, help=f"{LEAST_ROUNDS} or more (default: %(default)s)")
    forms = parser.add_mutually_exclusive_group()
    for option, form, told in (
        ("--json", as_json, "JSON"),
        ("--markdown", as_markdown, "the table of docs/benchmarks.md"),
    ):
        forms.add_argument(option, dest="form", action="store_const", const=form, help=f"print {told}")
    parser.set_defaults(form=as_text)
    arguments = parser.parse_args()
    if arguments.rounds < LEAST_ROUNDS:
        parser.error(f"--rounds must be {LEAST_ROUNDS} or more: got {arguments.rounds}; fewer say nothing")
    rows = benchmark(arguments.rounds)
    print(arguments.form(rows, conditions(packages, arguments.rounds)))
    missed = [row for row in rows if row.kept is False]
    for row in missed:
        print(f"missed: {row.what} {row.backend}".rstrip(), file=sys.stderr)
    return 1 if missed else 0
