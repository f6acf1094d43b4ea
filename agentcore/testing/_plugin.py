"""The pytest plugin: fixtures, a marker and options. It does nothing until one of them is used.

pytest loads it at its start, in every project of an environment that has agentcore. So this file imports pytest and the
standard library alone; whatever it needs of the simulator is imported by those who use it.
"""

import argparse
import importlib
import importlib.util
import inspect
import math
import os
import shlex
import sys
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar

import pytest

if TYPE_CHECKING:
    from agentcore import AgentRuntime

    from ._fault_plans import FaultPlan
    from ._replay import Replay
    from ._simulation import Simulation

Number = TypeVar("Number", int, float)

# As in `_replay.py`, which is too much to import for it.
VARIABLE: Final = "AGENTCORE_SIM"
NOTE: Final = f"replay: {VARIABLE}="

_MARKER: Final = (
    "sim(backend=None, **options): how the fixtures `sim` and `fault_plan` are made. `backend` is 'asyncio', 'trio' or "
    "several of them, by default all that are installed; the options are those of agentcore.testing.Simulation, such as "
    "schedule, plan, seed."
)
_RAISED: Final = pytest.StashKey[bool]()


# ---------------------------------------------------------------- options


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("agentcore", "simulations of agentcore")
    group.addoption(
        "--sim-replay",
        metavar="LINE",
        help=f"run every simulation once, as the line of a failure says; the same as {VARIABLE}=LINE in the environment",
    )
    group.addoption("--sim-runs", metavar="N", type=_runs, help="schedules that @simulate tries on each backend")
    group.addoption("--sim-seed", metavar="N", type=_seed, help="where the seeds of @simulate begin")
    group.addoption(
        "--sim-budget", metavar="SECONDS", type=_budget, help="real seconds that @simulate may take on each backend"
    )


def _runs(text: str) -> int:
    return _number(text, int, 1, "a whole number, 1 or more")


def _seed(text: str) -> int:
    return _number(text, int, 0, "a whole number, 0 or more")


def _budget(text: str) -> float:
    return _number(text, float, 0, "a number of seconds, 0 or more")


def _number(text: str, kind: Callable[[str], Number], least: int, what: str) -> Number:
    try:
        number = kind(text)
    except ValueError:
        pass
    else:
        if least <= number < math.inf:
            return number
    raise argparse.ArgumentTypeError(f"must be {what}: got {text!r}")


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker; pass on what the options say, until the end of the session."""
    config.addinivalue_line("markers", _MARKER)
    for name in ("asyncio", "trio"):
        # Those plugins are loaded already, if they are there.
        if f"pytest_{name}" in sys.modules:
            module = importlib.import_module(f"agentcore.testing._plugin_{name}")
            config.pluginmanager.register(module, f"agentcore-{name}")
    given = config.getoption("sim_replay")
    line = os.environ.get(VARIABLE, "") if given is None else _bare(given)
    if line or given is not None:
        _check(line, "--sim-replay" if given is not None else VARIABLE)
    if given is not None:
        # By the environment, so that the processes of a parallel run and of the tests themselves know it too.
        patch = pytest.MonkeyPatch()
        config.add_cleanup(patch.undo)
        patch.setenv(VARIABLE, line)
    asked = {name: config.getoption(f"sim_{name}") for name in ("runs", "seed", "budget")}
    asked = {name: value for name, value in asked.items() if value is not None}
    if asked:
        from . import _simulate  # noqa: PLC0415 - only who uses it pays for it

        config.add_cleanup(_simulate.overrides.clear)
        _simulate.overrides.update(asked)


def _bare(text: str) -> str:
    """Return the line itself, of what may have been copied together with its variable."""
    return text.strip().removeprefix(f"{VARIABLE}=").strip("'\"")


def _check(line: str, source: str) -> None:
    """Refuse what is no replay line before anything runs.

    Raises:
        pytest.UsageError: it is none.
    """
    from ._replay import Replay  # noqa: PLC0415

    try:
        Replay.parse(line)
    except (TypeError, ValueError) as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, ImportError):
                # An exception of a test module, which is imported when it is collected. If it stays unknown, the first
                # simulation says so.
                return
            cause = cause.__cause__
        raise pytest.UsageError(
            f"{source}: {error}; give what stands behind {VARIABLE}= in the report of the failure"
        ) from error


def pytest_report_header() -> str | None:
    """Say that this session replays."""
    line = os.environ.get(VARIABLE)
    return f"agentcore: every simulation runs once, as {VARIABLE}='{line}' says" if line else None


# ---------------------------------------------------------------- reports


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note which tests have raised, and by which line a failure comes back."""
    report = yield
    if call.excinfo is not None:
        item.stash[_RAISED] = True
        notes = getattr(call.excinfo.value, "__notes__", ())
        found = next((note for note in notes if isinstance(note, str) and note.startswith(NOTE)), None)
        if found is not None and report.failed:
            # An attribute travels with the report from the processes of a parallel run.
            report.agentcore_replay = found.removeprefix("replay: ")  # type: ignore[attr-defined]
    return report


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the commands that bring the failures back, each in one line however narrow the terminal is."""
    reports = [report for kind in ("failed", "error") for report in terminalreporter.stats.get(kind, ())]
    lines = {report.nodeid: report.agentcore_replay for report in reports if hasattr(report, "agentcore_replay")}
    if lines:
        terminalreporter.section("replays of simulations")
        for nodeid, line in lines.items():
            shown = terminalreporter.config.cwd_relative_nodeid(nodeid)
            terminalreporter.write_line(f"{line} pytest {shlex.quote(shown)}")


# ---------------------------------------------------------------- fixtures


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test that takes `sim` once on each backend."""
    # By a fixture behind `sim`: a project may have a fixture of its own called `sim`, and is left alone then.
    if "_sim_backend" in metafunc.fixturenames:
        metafunc.parametrize("_sim_backend", _backends(metafunc.definition), indirect=True)


def _backends(item: pytest.Item) -> list[str]:
    asked = _options(item).get("backend")
    if asked is None:
        return ["asyncio", "trio"] if _installed("trio") else ["asyncio"]
    return [asked] if isinstance(asked, str) else list(asked)


def _installed(backend: str) -> bool:
    return importlib.util.find_spec(backend) is not None


def _options(item: pytest.Item) -> dict[str, Any]:
    """Return what the markers of a test say together; the closest one has the last word."""
    options: dict[str, Any] = {}
    for marker in reversed(list(item.iter_markers("sim"))):
        if marker.args:
            pytest.fail(f"pytest.mark.sim takes keyword arguments alone: got {marker.args!r}", pytrace=False)
        options.update(marker.kwargs)
    return options


def _replay() -> "Replay | None":
    if not os.environ.get(VARIABLE):
        return None
    from ._replay import forced_replay  # noqa: PLC0415

    return forced_replay()


def _is_async(item: pytest.Item) -> bool:
    function = getattr(item, "obj", None)
    return inspect.iscoroutinefunction(getattr(getattr(function, "hypothesis", None), "inner_test", function))


@pytest.fixture
def _sim_backend(request: pytest.FixtureRequest) -> str:
    # Without a parameter it was asked for by its name, when the tests had been made.
    backend: str = getattr(request, "param", None) or _backends(request.node)[0]
    return backend


@pytest.fixture
def sim(request: pytest.FixtureRequest, _sim_backend: str) -> "Iterator[Simulation]":
    """A `Simulation` on each installed backend, for tests that are plain functions; `sim.run(function)` drives it.

    `pytest.mark.sim` says how it is made. It is closed when the test ends, and what is left behind then is an error. Under
    a replay line it has the order and the faults of that line, and only the backend of the line runs. A test of
    `@simulate` gets the simulation of each run instead of this.
    """
    from ._simulation import Simulation  # noqa: PLC0415

    item = request.node
    if _is_async(item):
        pytest.fail(
            "the fixture `sim` is for tests that are plain functions, which call `sim.run(function)`; an `async def` test "
            "gets a parameter `sim` by @simulate",
            pytrace=False,
        )
    options = {**_options(item), "backend": _sim_backend}
    replay = _replay()
    if replay is not None:
        if replay.backend != _sim_backend:
            pytest.skip(f"the replay line is for {replay.backend}")
        options["schedule"] = replay.schedule
        options["plan"] = replay.plan or options.get("plan")
    if _sim_backend == "trio" and not _installed("trio"):
        pytest.skip("trio is not installed; the extra is agentcore-runtime[trio]")
    try:
        simulation = Simulation(**options)
    except (TypeError, ValueError) as error:
        pytest.fail(f"pytest.mark.sim: {error}", pytrace=False)
    item.stash[_RAISED] = False
    yield simulation
    # As if the test were the block of a `with`: what it leaves behind is no news if it has failed.
    failed = AssertionError("the test has failed") if item.stash[_RAISED] else None
    simulation.__exit__(type(failed), failed, None)


@pytest.fixture
def fault_plan(request: pytest.FixtureRequest) -> "FaultPlan":
    """The faults that `pytest.mark.sim(plan=...)` asks for, or the replay line if it has any; else the empty plan.

    In a test that takes `sim` they are at work already. Other tests put them to work with `inject(fault_plan)`; so can
    those of `@simulate`, but what is given as `@simulate(plan=...)` is at work by itself, and is shrunk.
    """
    from ._fault_plans import FaultPlan  # noqa: PLC0415

    replay = _replay()
    if replay is not None and replay.plan:
        return replay.plan
    plan = _options(request.node).get("plan") or FaultPlan()
    return FaultPlan.parse(plan) if isinstance(plan, str) else plan


@pytest.fixture
def agent_runtime(request: pytest.FixtureRequest) -> "AgentRuntime":
    """An `AgentRuntime` that is entered, for `async def` tests that AnyIO's plugin, pytest-asyncio or pytest-trio runs.

    It is hosted, because fixtures are not always left in the task that has entered them. What fails in its background is
    an error of the test. A test of `@simulate` gets one that is entered for each run instead of this.
    """
    # A plain function, so that no plugin takes it for its own before it is known which one runs the test.
    runtime: AgentRuntime = request.getfixturevalue(_runtime_fixture(request.node))
    return runtime


def _runtime_fixture(item: pytest.Item) -> str:
    """Return the name of the fixture behind `agent_runtime` for a test."""
    for plugin in ("asyncio", "trio"):
        if item.get_closest_marker(plugin) is not None and item.config.pluginmanager.has_plugin(f"agentcore-{plugin}"):
            # pytest-trio has objects of its own for values to come. It knows this one again when it calls the test.
            return f"_agent_runtime_of_{plugin}"
    if not _is_async(item) and not hasattr(getattr(item, "obj", None), "hypothesis"):
        problem = "this one is a plain function"
    elif "anyio_backend" not in getattr(item, "fixturenames", ()):
        problem = "this one lacks the marker"
    else:
        return "_agent_runtime"
    pytest.fail(
        "the fixture `agent_runtime` is for `async def` tests that a plugin runs, by `pytest.mark.anyio`, `pytest.mark.asyncio` "
        f"or `pytest.mark.trio`: {problem}; add one, or write `with sync_runtime() as runtime:` in a plain function",
        pytrace=False,
    )


@pytest.fixture
async def _agent_runtime(request: pytest.FixtureRequest, anyio_backend: object) -> "AsyncIterator[AgentRuntime]":  # noqa: ARG001
    async with runtime_of_test(request) as runtime:
        yield runtime


@asynccontextmanager
async def runtime_of_test(request: pytest.FixtureRequest) -> "AsyncIterator[AgentRuntime]":
    """Give a runtime that lives as long as a test."""
    from agentcore import AgentRuntime  # noqa: PLC0415

    request.node.stash[_RAISED] = False
    async with AgentRuntime(hosted=True) as runtime:
        yield runtime
        if request.node.stash[_RAISED]:
            # The block does not see what the test has raised, so tasks that still run would get their time to end.
            await runtime.shutdown(grace=0, reason="the test has failed")
