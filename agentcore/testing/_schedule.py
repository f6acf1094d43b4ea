"""Which task goes next: strategies, and schedules as data.

A strategy sees the tasks that are ready, in the order in which they became so, and names one. Every run, whatever chose
its order, can be written down as the *switches* in which it differs from one plain rule: a task runs until it has to
wait, then the one goes on that has been ready for longest. Few bugs need more than a handful of switches, so a schedule
that was found by chance shrinks to a line.

Sources: PCT is Burckhardt, Kothari, Musuvathi, Nagarakatte, "A randomized scheduler with probabilistic guarantees of
finding bugs", ASPLOS 2010. Depth first with a stack of choices is Godefroid, "Model checking for programming languages
using VeriSoft", POPL 1997.
"""

import random
import re
from collections.abc import Iterable, Sequence
from typing import Final, Protocol, Self

import attrs

from ._failures import NondeterminismError


class Ready(Protocol):
    """What a strategy may know of a task that is ready."""

    @property
    def serial(self) -> int:
        """The number of the task, in the order of their starts."""

    @property
    def stops(self) -> int:
        """How often the task has stopped so far, 0 before it has begun."""


class Strategy(Protocol):
    """Chooses the order of one run."""

    def choose(self, ready: Sequence[Ready], current: int | None) -> int:
        """Return the index of the task that goes next.

        Args:
            ready: at least two tasks, the one that has been ready for longest first.
            current: the index of the task that has just run, None if it is not among them.
        """


@attrs.frozen
class Switch:
    """One deviation from running each task until it waits.

    Attributes:
        task: the task that would have gone next.
        stop: how often that task had stopped by then.
        occurrence: 0 for the first time that this task is about to leave this stop, 1 for the second.
        to: the task that goes instead.
    """

    task: int
    stop: int
    occurrence: int
    to: int

    def __str__(self) -> str:
        """Return `task.stop>to`, with the occurrence where it is not the first: `4.2.1>5`."""
        occurrence = f".{self.occurrence}" if self.occurrence else ""
        return f"{self.task}.{self.stop}{occurrence}>{self.to}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what `str` has written.

        Raises:
            ValueError: the text is no switch.
        """
        found = re.fullmatch(r"(\d+)\.(\d+)(?:\.(\d+))?>(\d+)", text)
        if found is None:
            raise ValueError(f"a switch reads task.stop>task, such as 4.2>5: got {text!r}")
        task, stop, occurrence, to = (int(part or 0) for part in found.groups())
        return cls(task, stop, occurrence, to)


class _Fifo:
    """As event loops do: whoever has been ready for longest."""

    asks_current = False

    def choose(self, ready: Sequence[Ready], current: int | None) -> int:
        return 0


class _Walk:
    """Anybody, with the same chance."""

    asks_current = False

    def __init__(self, seed: int) -> None:
        self._draw = random.Random(seed).random

    def choose(self, ready: Sequence[Ready], current: int | None) -> int:
        return int(self._draw() * len(ready))


class _Rare:
    """Each task until it waits, but for a rare switch to anybody."""

    CHANCE: Final = 0.05

    def __init__(self, seed: int) -> None:
        self._draw = random.Random(seed).random

    def choose(self, ready: Sequence[Ready], current: int | None) -> int:
        if self._draw() < self.CHANCE:
            return int(self._draw() * len(ready))
        return 0 if current is None else current


class _Pct:
    """The task with the highest priority; priorities are drawn, and a few times the leader falls to the bottom."""

    CHANGES: Final = 2  # bugs of depth 3

    def __init__(self, seed: int, length: int) -> None:
        source = random.Random(seed)
        self._draw = source.random
        self._changes = {source.randrange(1, max(2, length)) for _ in range(self.CHANGES)}
        self._priorities: dict[int, float] = {}
        self._decisions = 0

    def choose(self, ready: Sequence[Ready], current: int | None) -> int:
        self._decisions += 1
        for task in ready:
            if task.serial not in self._priorities:
                self._priorities[task.serial] = 1 + self._draw()
        best = self._best(ready)
        if self._decisions in self._changes:
            self._priorities[ready[best].serial] = -self._decisions
            best = self._best(ready)
        return best

    def _best(self, ready: Sequence[Ready]) -> int:
        return max(range(len(ready)), key=lambda index: self._priorities[ready[index].serial])


class _Replay:
    """Each task until it waits, but for the switches of a schedule."""

    def __init__(self, switches: Sequence[Switch]) -> None:
        self._switches = {(switch.task, switch.stop, switch.occurrence): switch.to for switch in switches}
        self._seen: dict[tuple[int, int], int] = {}

    def choose(self, ready: Sequence[Ready], current: int | None) -> int:
        default = 0 if current is None else current
        if not self._switches:
            return default
        key = ready[default].serial, ready[default].stops
        occurrence = self._seen[key] = self._seen.get(key, -1) + 1
        to = self._switches.get((*key, occurrence))
        # A switch to a task that is not ready (another switch was taken out, the program has changed) does nothing.
        return next((index for index, task in enumerate(ready) if task.serial == to), default)


class Recorder:
    """Writes down a run as switches, whatever chooses its order."""

    def __init__(self, strategy: Strategy) -> None:
        self._strategy = strategy
        self._seen: dict[tuple[int, int], int] = {}
        self.switches: list[Switch] = []

    def choose(self, ready: Sequence[Ready], current: int | None) -> int:
        """Return what the strategy chooses, and note it if it is not the plain rule."""
        default = 0 if current is None else current
        key = ready[default].serial, ready[default].stops
        occurrence = self._seen[key] = self._seen.get(key, -1) + 1
        chosen = self._strategy.choose(ready, current)
        if chosen != default:
            self.switches.append(Switch(*key, occurrence, ready[chosen].serial))
        return chosen


class DepthFirst:
    """Every order, one run each, the last decision varied first.

    Attributes:
        exhausted: True once there is no order left.
    """

    def __init__(self) -> None:
        self._choices: list[tuple[int, int]] = []
        self._depth = 0
        self.exhausted = False

    def choose(self, ready: Sequence[Ready], current: int | None) -> int:
        """Follow the current branch, and go left below its end.

        Raises:
            NondeterminismError: another number of tasks is ready than was in an earlier run of the same order.
        """
        if self._depth == len(self._choices):
            self._choices.append((0, len(ready)))
        choice, width = self._choices[self._depth]
        if width != len(ready):
            raise NondeterminismError(
                f"decision {self._depth} had {width} ready tasks and has {len(ready)} now: the program does not depend "
                "on its schedule alone; look for clocks, random numbers and sets of strings"
            )
        self._depth += 1
        return choice

    def advance(self) -> None:
        """Go to the next order."""
        self._depth = 0
        while self._choices:
            choice, width = self._choices.pop()
            if choice + 1 < width:
                self._choices.append((choice + 1, width))
                return
        self.exhausted = True


def _as_tuple(switches: Iterable[Switch]) -> tuple[Switch, ...]:
    return tuple(switches)


@attrs.frozen(repr=False)
class Schedule:
    """The order of one run, as data.

    Attributes:
        strategy: `switches` (each task until it waits, but for `switches`), `fifo`, `walk`, `rare` or `pct`.
        seed: what the strategy draws from.
        length: about how many decisions the run has; only `pct` needs it.
        switches: the deviations, if the strategy is `switches`.
    """

    strategy: str = attrs.field(default="switches")
    seed: int = attrs.field(default=0)
    length: int = attrs.field(default=64)
    switches: tuple[Switch, ...] = attrs.field(default=(), converter=_as_tuple)

    @strategy.validator
    def _check_strategy(self, _attribute: object, value: str) -> None:
        if value not in STRATEGIES:
            raise ValueError(f"the strategy of a schedule is one of {', '.join(STRATEGIES)}: got {value!r}")

    @seed.validator
    def _check_seed(self, _attribute: object, value: int) -> None:
        if value < 0:
            raise ValueError(f"the seed of a schedule is not negative: got {value!r}")

    @length.validator
    def _check_length(self, _attribute: object, value: int) -> None:
        if value < 1:
            raise ValueError(f"the length of a schedule is at least 1: got {value!r}")

    def __repr__(self) -> str:
        """Return what makes the same schedule, in short."""
        return f"Schedule.parse({str(self)!r})"

    def start(self) -> Strategy:
        """Return a strategy for one run."""
        match self.strategy:
            case "fifo":
                return _Fifo()
            case "walk":
                return _Walk(self.seed)
            case "rare":
                return _Rare(self.seed)
            case "pct":
                return _Pct(self.seed, self.length)
            case _:
                return _Replay(self.switches)

    def __str__(self) -> str:
        """Return the schedule as `parse` reads it: `fifo`, `walk/7`, `pct/7/128`, `4.2>5,7.1>2`, `-` for no switch."""
        match self.strategy:
            case "fifo":
                return "fifo"
            case "walk" | "rare":
                return f"{self.strategy}/{self.seed}"
            case "pct":
                return f"pct/{self.seed}/{self.length}"
            case _:
                return ",".join(map(str, self.switches)) or "-"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what `str` has written.

        Raises:
            ValueError: the text is no schedule.
        """
        if text in {"", "-"}:
            return cls()
        if text == "fifo":
            return cls("fifo")
        if found := re.fullmatch(r"(walk|rare|pct)/(\d+)(?:/(\d+))?", text):
            strategy, seed, length = found.groups()
            return cls(strategy, int(seed), int(length or 64))
        return cls(switches=tuple(Switch.parse(part) for part in text.split(",")))


STRATEGIES: Final = ("switches", "fifo", "walk", "rare", "pct")
FIFO: Final = Schedule("fifo")
RUN_TO_BLOCK: Final = Schedule()
_TURNS: Final = ("walk", "rare", "walk", "pct")


def portfolio(run: int, seed: int, length: int) -> Schedule:
    """Return the schedule of the n-th run of a search that mixes the strategies: none is best for every bug.

    Args:
        run: the number of the run, from 0. The first two are the order of an event loop, and each task until it waits.
        seed: where the seeds of the runs begin.
        length: about how many decisions a run has.
    """
    if run < 2:
        return (FIFO, RUN_TO_BLOCK)[run]
    # The length goes into the replay line, so it is rounded: a schedule stays the same while runs differ a little.
    return Schedule(_TURNS[run % len(_TURNS)], seed + run, 1 << max(3, length.bit_length()))
