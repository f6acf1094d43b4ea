"""The event loops that every asynchronous test runs on, and no real sleep in any of them.

A test module says `pytestmark = pytest.mark.anyio`; each of its `async def` tests then runs once
for each loop below. Some of them exist because they find what the plain loop hides: debug mode fails
a call into the loop from a foreign thread instead of losing its wake-up, eager tasks run the first step
of a task inside the call that starts it, and uvloop is what many servers run on. With `--plain-loops`
there are but the two that every program has, where the others have been run already.
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


def _loops() -> dict[str, Backend]:
    loops: dict[str, Backend] = {"asyncio": ("asyncio", {"debug": True})}
    if sys.version_info >= (3, 12):
        loops["asyncio-eager"] = ("asyncio", {"loop_factory": _eager_loop})
    if importlib.util.find_spec("uvloop"):
        loops["uvloop"] = ("asyncio", {"use_uvloop": True})
    loops["trio"] = ("trio", {})
    return loops


PLAIN: dict[str, Backend] = {"asyncio": ("asyncio", {}), "trio": ("trio", {})}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add what says on how many loops the tests run."""
    parser.addoption("--plain-loops", action="store_true", help="run on asyncio and trio as they are, and on no others")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Have each asynchronous test run on each loop."""
    chosen = [mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")]
    if "anyio_backend" in metafunc.fixturenames and "anyio_backend" not in chosen:
        loops = PLAIN if metafunc.config.getoption("--plain-loops") else _loops()
        metafunc.parametrize("anyio_backend", list(loops.values()), ids=list(loops), indirect=True)


def _eager_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined, unused-ignore]
    return loop


@pytest.fixture
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
