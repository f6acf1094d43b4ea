"""What a simulation can find, as errors.

SimulationFailure(AssertionError)
├── DeadlockError        nothing can run, and no timer, thread or input will ever change that
├── LivelockError        tasks run for ever, and virtual time stands still or nothing ends
├── StallError           a worker thread, a held clock or an input kept the simulation waiting, in real time
├── LeakError            tasks, permits or threads are left when they should be gone
├── UnretrievedError     an exception that nobody has looked at
├── InvariantError       what should always hold did not, or what should come about did not
└── NondeterminismError  the same schedule gave two different runs
"""

import sys
from collections.abc import Iterable
from typing import Any, final

import attrs


@attrs.frozen
class Waiting:
    """Where a task is.

    Attributes:
        task: the number of the task: 0 is the main one, the others are counted in the order of their start.
        name: what the task is called.
        place: `function:line` of the innermost frame that is not a part of the event loop or of AnyIO.
        call: what that line waits in, empty if it waits in nothing that has a name.
        file: the file of that line; empty if the task has not begun.
    """

    task: int
    name: str
    place: str
    call: str
    file: str

    def __str__(self) -> str:
        """Return one line: `task 2 'worker' at drain:41 in Event.wait (pool.py)`."""
        call = f" in {self.call}" if self.call else ""
        file = f" ({self.file})" if self.file else ""
        return f"task {self.task} {self.name!r} at {self.place}{call}{file}"


class SimulationFailure(AssertionError):  # noqa: N818 - as pytest says it: a test that fails
    """A simulation has found something.

    Args:
        message: what it is.
        tasks: where every task was at that moment.
        now: the virtual time of that moment, in seconds.
    """

    def __init__(self, message: str, tasks: tuple[Waiting, ...] = (), now: float = 0.0) -> None:
        super().__init__(message)
        self.message = message
        self.tasks = tasks
        self.now = now

    def __str__(self) -> str:
        """Return the message, and a line for each task."""
        return "\n".join([f"{self.message} (at {self.now:g} s)", *(f"  {task}" for task in self.tasks)])

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle with every argument."""
        return type(self), (self.message, self.tasks, self.now), self.__dict__


@final
class DeadlockError(SimulationFailure):
    """Nothing can run, and no timer, thread or input will ever change that."""


@final
class LivelockError(SimulationFailure):
    """Tasks run and run, and nothing comes of it."""


@final
class StallError(SimulationFailure):
    """Something outside of the event loop kept the simulation waiting for longer than its watchdog allows."""


@final
class LeakError(SimulationFailure):
    """Something is left that should be gone."""


@final
class UnretrievedError(SimulationFailure):
    """An exception was raised where nobody looks."""


@final
class InvariantError(SimulationFailure):
    """What should always hold did not, or what should come about did not."""


@final
class NondeterminismError(SimulationFailure):
    """The same schedule gave two different runs: something in them does not come from the simulation."""


def tasks_left(left: tuple[Waiting, ...], when: str, now: float) -> LeakError:
    """Return the error that tells of tasks which are left at some moment."""
    what = "task is" if len(left) == 1 else "tasks are"
    return LeakError(f"{len(left)} {what} left when {when}", left, now)


def annotate(error: BaseException, notes: Iterable[str]) -> BaseException:
    """Add notes to an error, once. One that refuses them is left as it is, and they go to the standard error output."""
    for note in notes:
        if note in getattr(error, "__notes__", ()):
            continue
        try:
            error.add_note(note)
        except Exception:  # noqa: BLE001 - a frozen class: its own error counts, and not that it is frozen
            sys.stderr.write(f"{note}\n")
    return error
