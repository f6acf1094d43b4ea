"""What a planted bug is: one thing in two versions, and a scenario that tells them apart."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Literal, TypeAlias, TypeVar, final

import anyio.lowlevel
import attrs

Needs: TypeAlias = Literal["schedule", "cancel", "fault"]
Run: TypeAlias = Callable[[], Coroutine[Any, Any, None]]
S = TypeVar("S")
Scenario: TypeAlias = Callable[[S], Coroutine[Any, Any, None]]


async def steps(count: int = 1) -> None:
    """Stand for I/O: give the others `count` chances to run, or to cancel."""
    for _ in range(count):
        await anyio.lowlevel.checkpoint()


@final
@attrs.frozen
class Sweep:
    """One run that is disturbed on the way, and what must be true of its state in the end.

    Attributes:
        build: Makes a fresh state; may be called outside of an event loop.
        scenario: Works on the state; it is this part that is cancelled, or in which a call fails.
        check: Runs afterwards, undisturbed and in the same event loop; asserts what must hold.
    """

    build: Callable[[], Any]
    scenario: Scenario[Any]
    check: Scenario[Any]


@final
@attrs.frozen
class Bug:
    """A planted bug and its correct twin.

    Attributes:
        name: Unique, in words joined by underscores.
        theme: The module that it is planted in.
        needs: What brings it to light: another order of the tasks ("schedule"; time jumps only when no task can run),
            a cancelled scope ("cancel"), or a failing call ("fault").
        buggy: Passes in the plain order when nothing is cancelled and nothing fails. For "schedule" it is a whole
            run, otherwise a `Sweep`.
        correct: Passes in every order; a `Sweep` also wherever it is cancelled, or with any one fault.
        doc: What the bug is and how it is mended.
        targets: The calls that may fail, by name: state -> (owner, name of the method). Only for "fault".
    """

    name: str
    theme: str
    needs: Needs
    buggy: Run | Sweep
    correct: Run | Sweep
    doc: str
    targets: Mapping[str, Callable[[Any], tuple[object, str]]] | None = None


def found_by_schedule(buggy: type[S], correct: type[S]) -> Callable[[Scenario[S]], Bug]:
    """Make a bug of a scenario that works on a fresh `buggy` or `correct`, and asserts what must hold."""

    def plant(scenario: Scenario[S]) -> Bug:
        bad, good = (_whole_run(scenario, version) for version in (buggy, correct))
        return Bug(scenario.__name__, _theme(scenario), "schedule", bad, good, _doc(buggy, correct))

    return plant


def found_by_cancel(buggy: type[S], correct: type[S], check: Scenario[S]) -> Callable[[Scenario[S]], Bug]:
    """Make a bug of a scenario that may be cancelled anywhere; `check` asserts what must hold afterwards."""

    def plant(scenario: Scenario[S]) -> Bug:
        bad, good = (Sweep(version, scenario, check) for version in (buggy, correct))
        return Bug(scenario.__name__, _theme(scenario), "cancel", bad, good, _doc(buggy, correct))

    return plant


def found_by_fault(
    buggy: type[S], correct: type[S], check: Scenario[S], targets: Mapping[str, Callable[[S], tuple[object, str]]]
) -> Callable[[Scenario[S]], Bug]:
    """Make a bug of a scenario in which one call of `targets` may fail; `check` asserts what must hold afterwards."""

    def plant(scenario: Scenario[S]) -> Bug:
        bad, good = (Sweep(version, scenario, check) for version in (buggy, correct))
        return Bug(scenario.__name__, _theme(scenario), "fault", bad, good, _doc(buggy, correct), targets)

    return plant


def _whole_run(scenario: Scenario[S], version: type[S]) -> Run:
    async def run() -> None:
        await scenario(version())

    run.__name__ = run.__qualname__ = f"{scenario.__name__}[{version.__name__}]"
    return run


def _theme(scenario: Callable[..., object]) -> str:
    return scenario.__module__.rpartition(".")[2]


def _doc(buggy: type, correct: type) -> str:
    return f"{inspect.getdoc(buggy)}\n\n{inspect.getdoc(correct)}"
