"""The event loops that every asynchronous test runs on, and no real sleep in any of them.

A test module says `pytestmark = pytest.mark.anyio`; each of its `async def` tests then runs once
for each loop below. Two of them exist because they find what the plain loop hides: eager tasks run
the first step of a task inside the call that starts it, and uvloop is what many servers run on.
"""

import asyncio
import importlib.util
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from agentcore.testing import current_simulation

TIMED = [str(Path(__file__).parent / name) for name in ("cli", "core", "examples", "rules", "runtime")]
# Watch over a program that may hang; they sleep only in a test that has failed.
WATCHES = {"watch"}

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


@pytest.fixture(autouse=True)
def no_real_sleep() -> Iterator[None]:
    """What takes time runs in virtual time, in a simulation; everything else waits for events."""
    # Not by the fixture `monkeypatch`: it would be set up for each test, before what the test asks for.
    with pytest.MonkeyPatch.context() as patch:
        for module in (anyio, asyncio, sys.modules.get("trio")):
            if module is not None:
                patch.setattr(module, "sleep", _virtual(module.sleep))
        yield


def _virtual(sleep: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    # No coroutine function: a simulation looks at the frames of what waits, and must find the real one.
    def only_virtual(delay: float, *args: Any) -> Awaitable[Any]:
        caller = sys._getframe(1).f_code
        if delay > 0 and caller.co_name not in WATCHES and caller.co_filename.startswith(tuple(TIMED)):
            try:
                current_simulation()
            except RuntimeError:
                pytest.fail(
                    f"{caller.co_qualname} sleeps for {delay} real seconds; use @simulate, or wait for the event"
                )
        return sleep(delay, *args)

    return only_virtual
