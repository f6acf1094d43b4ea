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
from typing import Any, Final, TypeAlias

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
        figure: the subject's median, with its unit.
        reference: what it was compared with.
        reference_figure: its median.
        ratio: the median of the ratios.
        quartiles: their lower and upper quartile.
        goal: what was promised; empty if nothing was.
        note: what else there is to say.
        kept: whether the promise was kept; None if there was none.
    """

    what: str
    backend: str = ""
    figure: str = ""
    reference: str = ""
    reference_figure: str = ""
    ratio: float | None = None
    quartiles: tuple[float, float] | None = None
    goal: str = ""
    note: str = ""
    kept: bool | None = None

    def cells(self) -> tuple[str, ...]:
        """Return the texts of the columns."""
        ratio = ""
        if self.ratio is not None and self.quartiles is not None:
            low, high = self.quartiles
            ratio = f"{self.ratio:.2f}x ({low:.2f}–{high:.2f})"
        verdict = {None: self.note, True: "kept", False: "MISSED"}[self.kept]
        if self.kept is not None and self.note:
            verdict += f": {self.note}"
        return self.what, self.backend, self.figure, self.reference, self.reference_figure, ratio, self.goal, verdict


HEADS: Final = ("what", "backend", "takes", "compared with", "takes", "ratio (quartiles)", "goal", "")


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
        figure=amount(statistics.median(subject), unit),
        reference=pair.reference,
        reference_figure=amount(statistics.median(reference), unit),
        ratio=middle,
        quartiles=(low, high),
        goal=goal,
        note=f"adds {amount(difference, unit)}" if pair.tells_difference else "",
        kept=kept,
    )


def amount(value: float, unit: str) -> str:
    """Return a figure as people read it."""
    if unit == "ns" and value >= 1000:
        value, unit = value / 1000, "µs"
    return f"{value:.3g} {unit}" if value < 1000 else f"{value:,.0f} {unit}"


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
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rounds", type=int, default=31, help=f"{LEAST_ROUNDS} or more (default: %(default)s)")
    form: Any = parser.add_mutually_exclusive_group()
    form.add_argument("--json", dest="form", action="store_const", const=as_json, help="print JSON")
    form.add_argument("--markdown", dest="form", action="store_const", const=as_markdown, help="print the table of the docs")
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
