"""The event loops that every asynchronous test runs on.

A test module says `pytestmark = pytest.mark.anyio`; each of its `async def` tests then runs once
for each loop below. Two of them exist because they find what the plain loop hides: eager tasks run
the first step of a task inside the call that starts it, and uvloop is what many servers run on.
"""

import asyncio
import importlib.util
import sys
from typing import Any

import pytest

Backend = tuple[str, dict[str, Any]]


def _loops() -> list[Any]:
    # Debug mode fails a call into the loop from a foreign thread instead of losing its wake-up.
    loops = [pytest.param(("asyncio", {"debug": True}), id="asyncio")]
    if sys.version_info >= (3, 12):
        loops.append(pytest.param(("asyncio", {"loop_factory": _eager_loop}), id="asyncio-eager"))
    if importlib.util.find_spec("uvloop"):
        loops.append(pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"))
    loops.append(pytest.param(("trio", {}), id="trio"))
    return loops


def _eager_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined, unused-ignore]
    return loop


@pytest.fixture(params=_loops())
def anyio_backend(request: pytest.FixtureRequest) -> Backend:
    """One event loop, as AnyIO's pytest plugin wants it: a name and its options."""
    backend: Backend = request.param
    return backend
