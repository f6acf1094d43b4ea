"""No public coroutine without a sweep."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import pytest

import agentcore
from agentcore import AgentRuntime
from agentcore._work import Work
from tests.sweeps.everything import TABLE


def public_classes() -> set[type]:
    """Return what is exported, and of the package what can be reached from there: subclasses, attributes of runtimes."""
    found = {item for name in agentcore.__all__ if inspect.isclass(item := getattr(agentcore, name))}
    found |= {type(value) for name, value in vars(AgentRuntime()).items() if not name.startswith("_")}
    frontier = list(found)
    while frontier:
        below = {cls for cls in frontier.pop().__subclasses__() if is_ours(cls)} - found
        found |= below
        frontier += below
    return {cls for cls in found if is_ours(cls)}


def is_ours(cls: type) -> bool:
    """Tell whether a class is one of the package, and not of its testing kit."""
    file = inspect.getfile(cls) if cls.__module__.startswith("agentcore") else ""
    return bool(file) and not cls.__module__.startswith("agentcore.testing")


def is_asynchronous(function: Any) -> bool:
    """Tell whether a function has to be awaited, or entered or gone through with `async`."""
    function = inspect.unwrap(getattr(function, "__func__", function))
    return inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)


def public_coroutines() -> Iterator[str]:
    """Give the name of every public coroutine function, as `Class.method` or `function`."""
    for name in agentcore.__all__:
        if is_asynchronous(getattr(agentcore, name)):
            yield name
    for cls in public_classes():
        for name in dir(cls):
            is_public = not name.startswith("_") or name in (
                "__aenter__",
                "__aexit__",
                "__call__",
                "__anext__",
                "__await__",
            )
            # Who defines how it is awaited need not do so by a coroutine function.
            if is_public and (name == "__await__" or is_asynchronous(inspect.getattr_static(cls, name))):
                owner = next(base for base in cls.__mro__ if name in base.__dict__)
                # `Work` is a part of the runtime that nobody sees.
                yield f"{AgentRuntime.__name__ if owner is Work else owner.__name__}.{name}"


def test_every_public_coroutine_is_swept() -> None:
    """Whoever adds one adds a scenario that cancels it everywhere."""
    swept = {name for scenario in TABLE.values() for name in scenario.covers}
    assert set(public_coroutines()) - swept == set(), "add a scenario that covers these to tests/sweeps"


def test_nothing_is_swept_that_is_gone() -> None:
    """A name in the table that is not there any more covers nothing."""
    swept = {name for scenario in TABLE.values() for name in scenario.covers}
    inherited = {name for name in swept if name.partition(".")[0] in ("FunctionRegistry", "ClassRegistry")}
    assert swept - inherited - set(public_coroutines()) == set()


@pytest.mark.parametrize("name", ["AgentRuntime.run", "BaseAgent.execute", "TaskHandle.wait", "Registry.get"])
def test_the_search_finds_them(name: str) -> None:
    """What looks for public coroutines is not blind."""
    assert name in set(public_coroutines())
