"""In the plain order, when nothing is cancelled and nothing fails, planted bugs stay hidden."""

from __future__ import annotations

from typing import Any

import pytest

from tests.planted._catalogue import BUGS, Bug, Sweep

pytestmark = pytest.mark.anyio

Backend = tuple[str, dict[str, Any]]


async def run_once(version: Any) -> None:
    """Run one version of a bug, undisturbed."""
    if isinstance(version, Sweep):
        state = version.build()
        await version.scenario(state)
        await version.check(state)
    else:
        await version()


def keeps_the_order(backend: Backend) -> bool:
    """Tell whether tasks run in the order in which they became ready: trio shuffles, eager tasks start early."""
    name, options = backend
    return name == "asyncio" and "loop_factory" not in options


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: f"{bug.theme}-{bug.name}")
async def test_bug_is_hidden_in_the_plain_order(bug: Bug, anyio_backend: Backend) -> None:
    """A bug that needs another order is run only where the order is known."""
    if bug.needs != "schedule" or keeps_the_order(anyio_backend):
        await run_once(bug.buggy)


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: f"{bug.theme}-{bug.name}")
async def test_correct_twin_passes(bug: Bug) -> None:
    """The twin has no bug, in whatever order the event loop runs it."""
    await run_once(bug.correct)


def test_catalogue_is_complete_and_uniform() -> None:
    """There are 36 bugs, each with its own name, a story, and the form that its need asks for."""
    assert len(BUGS) == 36
    assert len({bug.name for bug in BUGS}) == 36
    for bug in BUGS:
        assert bug.doc.count("\n\n") >= 2, f"{bug.name} does not tell what it is and how it is mended"
        assert isinstance(bug.buggy, Sweep) == isinstance(bug.correct, Sweep) == (bug.needs != "schedule")
        assert (bug.targets is not None) == (bug.needs == "fault")
