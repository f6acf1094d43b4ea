"""One line that brings a failure back: event loop, order, cancellation and faults."""

import base64
import os
import re
import shlex
import zlib
from typing import Final, Literal, Self

import attrs

from ._fault_plans import FaultPlan
from ._schedule import Schedule

# What the line is given by, and how long it may be: it is copied from a log into a shell.
VARIABLE: Final = "AGENTCORE_SIM"
LIMIT: Final = 200
Mode = Literal["block", "wake", "deadline", "native"]
MODES: Final[tuple[Mode, ...]] = ("block", "wake", "deadline", "native")


@attrs.frozen
class CancelPoint:
    """Where a sweep cancels.

    Attributes:
        mode: `block` cancels the scope when a task has come to a stop, `wake` just before a task goes on, `deadline` lets
            the innermost deadline around the stopped task pass, `native` calls `Task.cancel()` of the main task (asyncio).
        index: at which stop, or before which step, counted from 0 over all tasks.
    """

    mode: Mode
    index: int

    def __str__(self) -> str:
        """Return `mode@index`."""
        return f"{self.mode}@{self.index}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what `str` has written.

        Raises:
            ValueError: the text is no cancel point.
        """
        found = re.fullmatch(rf"({'|'.join(MODES)})@(\d+)", text)
        if found is None:
            raise ValueError(f"a cancel point reads mode@index, the mode one of {', '.join(MODES)}: got {text!r}")
        mode: Mode = found[1]  # type: ignore[assignment]
        return cls(mode, int(found[2]))


@attrs.frozen
class Replay:
    """All that decides how a simulation runs.

    Attributes:
        backend: `asyncio` or `trio`.
        schedule: the order of the tasks.
        cancel: where a sweep cancels, if one does.
        plan: the faults.
    """

    backend: str
    schedule: Schedule
    cancel: CancelPoint | None = None
    plan: FaultPlan = attrs.field(factory=FaultPlan)

    def __str__(self) -> str:
        """Return the line: `sim1:backend:schedule:cancel:faults`, without what is empty at its end."""
        cancel = "" if self.cancel is None else str(self.cancel)
        line = f"sim1:{self.backend}:{self.schedule}:{cancel}:{self.plan}".rstrip(":")
        if len(_assignment(line)) <= LIMIT:
            return line
        packed = "sim1z:" + base64.urlsafe_b64encode(zlib.compress(line.encode(), 9)).decode().rstrip("=")
        return min(line, packed, key=len)

    @property
    def assignment(self) -> str:
        """The line as one sets it in a shell: `AGENTCORE_SIM='sim1:trio:4.2>5'`."""
        return _assignment(str(self))

    @classmethod
    def parse(cls, line: str) -> Self:
        """Read what `str` has written.

        Raises:
            ValueError: the text is no replay line, or one of another version.
        """
        text = line.strip()
        try:
            if text.startswith("sim1z:"):
                packed = text.removeprefix("sim1z:")
                text = zlib.decompress(base64.urlsafe_b64decode(packed + "=" * (-len(packed) % 4))).decode()
            version, backend, schedule, cancel, plan = (text.split(":", 4) + [""] * 4)[:5]
            if version != "sim1" or backend not in {"asyncio", "trio"}:
                raise ValueError("it begins with sim1:asyncio: or sim1:trio:")
            point = CancelPoint.parse(cancel) if cancel else None
            return cls(backend, Schedule.parse(schedule), point, FaultPlan.parse(plan) if plan else FaultPlan())
        except (TypeError, ValueError, LookupError, zlib.error) as error:
            raise ValueError(f"this is no replay line: {line!r}: {error}") from error


def _assignment(line: str) -> str:
    quoted = shlex.quote(line)
    return f"{VARIABLE}={quoted}" if quoted.startswith("'") else f"{VARIABLE}='{line}'"


def shortest(*replays: Replay) -> Replay:
    """Return the first replay whose line fits into the limit, else the one with the shortest line."""
    fitting = (replay for replay in replays if len(replay.assignment) <= LIMIT)
    return next(fitting, min(replays, key=lambda replay: len(str(replay))))


def forced_replay() -> Replay | None:
    """Return the replay that the environment asks for, None if it asks for none.

    Raises:
        ValueError: the variable holds no replay line.
    """
    line = os.environ.get(VARIABLE, "")
    return Replay.parse(line) if line else None
