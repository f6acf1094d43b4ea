"""The pytest plugin: its fixtures, its marker and options, beside other plugins, in sessions of their own."""

import argparse
import ast
import os
import re
import shlex
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from agentcore import AgentRuntime
from agentcore.testing import FaultPlan, InjectedFault, Simulation, _plugin, inject, simulate
from agentcore.testing import _replay as replay_module

FAILED, USAGE = 1, 4
ALL = "all that are installed"

SETTINGS = """\
[pytest]
addopts = -p no:cacheprovider -rA --strict-markers
filterwarnings = error
"""


class Project:
    """A project with tests, which run in processes of their own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.write("pytest.ini", SETTINGS)

    def write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def test(self, *arguments: str, plugins: str = "agentcore", status: int = 0, **environment: str) -> str:
        """Run pytest with some plugins or all there are, check how it ends, and return what it says."""
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith(("AGENTCORE_", "PYTEST_"))
        }
        alone = {} if plugins == ALL else {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        loaded = [] if plugins == ALL else [f"-p{name}" for name in plugins.split()]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *loaded, *arguments],
            cwd=self.root,
            env={**inherited, **alone, "COLUMNS": "80", **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        said = done.stdout + done.stderr
        assert done.returncode == status, said
        return said

    def lines(self, name: str) -> list[str]:
        """Return what the tests have written into a file, and take it away."""
        path = self.root / name
        found = path.read_text(encoding="utf-8").splitlines()
        path.unlink()
        return found


def outcomes(said: str) -> dict[str, list[str]]:
    """Return the names of the tests by what became of them, as the summary tells."""
    found: dict[str, list[str]] = {}
    for outcome, name in re.findall(r"^(PASSED|FAILED|ERROR|SKIPPED) \S*?::(\S+)", said, re.MULTILINE):
        found.setdefault(outcome, []).append(name)
    return {outcome: sorted(names) for outcome, names in found.items()}


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """An empty project."""
    return Project(tmp_path)


# ---------------------------------------------------------------- fixtures, in this session


def test_sim_runs_on_each_backend(sim: Simulation, request: pytest.FixtureRequest) -> None:
    """A test that takes `sim` is one test for each backend, in virtual time."""
    assert request.node.name == f"test_sim_runs_on_each_backend[{sim.backend}]"
    sim.run(anyio.sleep, 3600)
    assert sim.now == 3600


async def fetch() -> str:
    await anyio.sleep(1)
    return "fetched"


async def call() -> str:
    return await fetch()


TARGETS = {"api.fetch": (sys.modules[__name__], "fetch")}


@pytest.mark.sim(backend="asyncio", plan="api.fetch#1:raise", targets=TARGETS, trace=True)
class TestMarker:
    """The marker says how the simulation is made; what stands closer to the test has the last word."""

    def test_of_class(self, sim: Simulation, fault_plan: FaultPlan) -> None:
        """The plan is at work in the simulation by itself."""
        assert sim.backend == "asyncio"
        assert fault_plan == FaultPlan.parse("api.fetch#1:raise")
        with pytest.raises(InjectedFault):
            sim.run(call)
        assert sim.run(call) == "fetched"
        assert sim.now == 1
        assert sim.trace != ()

    @pytest.mark.sim(backend=["trio"], plan=FaultPlan.parse("api.fetch#1:delay(5)"))
    def test_of_function(self, sim: Simulation, fault_plan: FaultPlan) -> None:
        assert sim.backend == "trio"
        assert str(fault_plan) == "api.fetch#1:delay(5.0)"
        assert sim.run(call) == "fetched"
        assert sim.now == 6
        assert sim.trace != ()

    @simulate(runs=2)
    async def test_of_simulate(self, fault_plan: FaultPlan, sim: Simulation) -> None:
        """Elsewhere the plan is put to work where the test wants it."""
        assert await fetch() == "fetched"
        with inject(fault_plan, TARGETS), pytest.raises(InjectedFault):
            await fetch()
        assert sim.now == 1


def test_without_a_marker_there_are_no_faults(fault_plan: FaultPlan) -> None:
    """The plan is empty then, not None."""
    assert fault_plan == FaultPlan()


@pytest.mark.anyio
async def test_runtime_is_entered_in_the_task_of_the_test(agent_runtime: AgentRuntime) -> None:
    """It is the current one, and runs tasks."""

    @agent_runtime.handler("double")
    async def double(given: dict[str, Any]) -> dict[str, Any]:
        await anyio.lowlevel.checkpoint()
        return {"twice": 2 * given["number"]}

    assert AgentRuntime.current() is agent_runtime
    assert await agent_runtime.run("double", {"number": 4}) == {"twice": 8}


def test_sim_by_its_name(request: pytest.FixtureRequest) -> None:
    """Asked for while the test runs, it comes on the first backend."""
    sim: Simulation = request.getfixturevalue("sim")
    assert sim.backend == "asyncio"


@pytest.mark.sim(plan="api.fetch#1:raise", targets=TARGETS)
class TestReplay:
    """The fixtures follow a replay line: its backend, its order, and its faults if it has any."""

    def order(self, sim: Simulation) -> list[int]:
        order = []

        async def work(number: int) -> None:
            await anyio.lowlevel.checkpoint()
            order.append(number)

        async def main() -> None:
            async with anyio.create_task_group() as group:
                group.start_soon(work, 1)
                group.start_soon(work, 2)

        sim.run(main)
        return order

    @pytest.mark.sim(backend="trio")
    def test_order(self, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
        monkeypatch.setenv("AGENTCORE_SIM", "sim1:trio:1.1>2")
        assert self.order(request.getfixturevalue("sim")) == [2, 1]
        assert str(request.getfixturevalue("fault_plan")) == "api.fetch#1:raise(InjectedFault)"

    def test_faults(self, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
        monkeypatch.setenv("AGENTCORE_SIM", "sim1:asyncio:::api.fetch#1:delay(9)")
        sim = request.getfixturevalue("sim")
        assert self.order(sim) == [1, 2]
        sim.run(call)
        assert sim.now == 10
        assert str(request.getfixturevalue("fault_plan")) == "api.fetch#1:delay(9.0)"

    def test_other_backend(self, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
        monkeypatch.setenv("AGENTCORE_SIM", "sim1:trio:-")
        with pytest.raises(pytest.skip.Exception, match="the replay line is for trio"):
            request.getfixturevalue("sim")


def test_backend_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Without trio the tests run on asyncio; those that ask for it are skipped."""
    monkeypatch.setattr(_plugin, "_installed", lambda backend: backend == "asyncio")
    assert _plugin._backends(request.node) == ["asyncio"]
    request.node.add_marker(pytest.mark.sim(backend="trio"))
    with pytest.raises(pytest.skip.Exception, match=r"the extra is agentcore-runtime\[trio\]"):
        request.getfixturevalue("sim")


# ---------------------------------------------------------------- passive


def test_plugin_imports_little() -> None:
    """Only pytest and the standard library, at the top of its file."""
    tree = ast.parse(Path(_plugin.__file__).read_text(encoding="utf-8"))
    names = []
    for node in tree.body:
        if isinstance(node, ast.Import):
            names += [alias.name.partition(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names.append("." if node.level else str(node.module).partition(".")[0])
    assert {name for name in names if name not in sys.stdlib_module_names} == {"pytest"}
    assert "asyncio" not in names


def test_plugin_knows_the_variable() -> None:
    """It stands in two files, of which one is too much to import for it."""
    assert replay_module.VARIABLE == _plugin.VARIABLE


def test_plugin_is_found_by_its_entry_point() -> None:
    """Installing the package is enough."""
    (entry,) = entry_points(group="pytest11", name="agentcore")
    assert entry.value == "agentcore.testing._plugin"


def test_plugin_is_passive(project: Project) -> None:
    """It loads nothing that can wait, and a project's own fixtures of the same names stay as they are."""
    project.write(
        "conftest.py",
        """\
import pytest

@pytest.fixture
def sim():
    return "sim"

@pytest.fixture
def fault_plan(sim):
    return f"{sim} plan"

@pytest.fixture
def agent_runtime():
    return "runtime"
""",
    )
    project.write(
        "test_own.py",
        """\
import sys

def test_loads_little():
    assert "agentcore.testing._plugin" in sys.modules
    assert [name for name in ("cattrs", "hypothesis", "rich", "trio", "uvloop") if name in sys.modules] == []

def test_own_fixtures(sim, fault_plan, agent_runtime):
    assert (sim, fault_plan, agent_runtime) == ("sim", "sim plan", "runtime")
""",
    )
    said = project.test()
    assert outcomes(said) == {"PASSED": ["test_loads_little", "test_own_fixtures"]}
    assert "agentcore: " not in said


# ---------------------------------------------------------------- beside other plugins

SIMULATED = """\
import anyio
import pytest
from hypothesis import given, settings, strategies
from agentcore import AgentRuntime
from agentcore.testing import simulate

@pytest.fixture
def number():
    return 4

@simulate(runs=3)
async def test_plain():
    await anyio.sleep(3600)

@simulate(runs=3)
async def test_parameters(number, sim, tmp_path, agent_runtime):
    assert number == 4
    assert tmp_path.is_dir()
    assert AgentRuntime.current() is agent_runtime
    await anyio.sleep(5)
    assert sim.now == 5

class TestMethods:
    @pytest.mark.parametrize("seconds", [1, 2])
    @simulate(runs=2)
    async def test_above(self, seconds, number, sim):
        assert isinstance(self, TestMethods)
        await anyio.sleep(seconds * number)
        assert sim.now == seconds * number

    @simulate(runs=2)
    @pytest.mark.parametrize("seconds", [1, 2])
    async def test_below(self, seconds, sim):
        await anyio.sleep(seconds)
        assert sim.now == seconds

@settings(deadline=None, database=None, max_examples=5)
@given(seconds=strategies.integers(0, 9))
@pytest.mark.parametrize("factor", [1])
@simulate(runs=2)
async def test_given(factor, seconds, sim):
    await anyio.sleep(seconds * factor)
    assert sim.now == seconds
"""
IN_SIMULATED = [
    "TestMethods::test_above[1]",
    "TestMethods::test_above[2]",
    "TestMethods::test_below[1]",
    "TestMethods::test_below[2]",
    "test_given[1]",
    "test_parameters",
    "test_plain",
]
MARKED = """\
import asyncio
import anyio
import pytest
import trio
from agentcore import AgentRuntime
from agentcore.testing import simulate

@pytest.fixture
async def answer():
    yield 42

@pytest.mark.anyio
async def test_anyio(answer, agent_runtime):
    assert answer == 42
    assert AgentRuntime.current() is agent_runtime
    await anyio.sleep(0)

@pytest.mark.asyncio
async def test_asyncio(agent_runtime):
    assert AgentRuntime.current() is agent_runtime
    await asyncio.sleep(0)

@pytest.mark.trio
async def test_trio(answer, nursery, agent_runtime):
    assert answer == 42
    assert AgentRuntime.current() is agent_runtime
    await trio.sleep(0)

@pytest.mark.anyio
@simulate(runs=2)
async def test_simulated(sim):
    await anyio.sleep(60)
    assert sim.now == 60

def test_sim(sim):
    sim.run(anyio.sleep, 60)
    assert sim.now == 60
"""
IN_MARKED = [
    "test_anyio[asyncio]",
    "test_anyio[trio]",
    "test_asyncio",
    "test_sim[asyncio]",
    "test_sim[trio]",
    "test_simulated",
    "test_trio",
]
ON_ASYNCIO = """\
import asyncio
import pytest
import pytest_asyncio
from agentcore.testing import simulate

@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def loop():
    return asyncio.get_running_loop()

async def test_unmarked():
    await asyncio.sleep(0)

@simulate(runs=2, backends=["asyncio"])
async def test_with_their_fixture(loop, sim):
    await asyncio.sleep(9)
    assert sim.now == 9

@pytest.mark.asyncio(loop_scope="module")
async def test_after(loop):
    assert asyncio.get_running_loop() is loop

@pytest.fixture
def anyio_backend():
    return "asyncio"

@pytest.mark.anyio
async def test_taken(agent_runtime, anyio_backend):
    pass
"""
ON_TRIO = """\
import pytest
import trio

async def test_unmarked(autojump_clock, nursery):
    nursery.start_soon(trio.sleep, 5)
    await trio.sleep(9)
"""


@pytest.mark.parametrize(
    ("arguments", "text", "expected"),
    [
        pytest.param([], MARKED, IN_MARKED, id="strict"),
        pytest.param(
            ["--asyncio-mode=auto"],
            ON_ASYNCIO,
            ["test_after", "test_taken", "test_unmarked", "test_with_their_fixture"],
            id="asyncio_mode",
        ),
        pytest.param(["-otrio_mode=true"], ON_TRIO, ["test_unmarked"], id="trio_mode"),
        pytest.param(["--asyncio-mode=auto", "-otrio_mode=true", "-n1"], "", [], id="both_modes"),
    ],
)
def test_simulated_tests_beside_other_plugins(
    project: Project, arguments: list[str], text: str, expected: list[str]
) -> None:
    """They are plain functions for every plugin, whatever else runs in the session, without a single warning.

    A test that is marked for AnyIO and taken over by another plugin gets its runtime there.
    """
    project.write("test_simulated.py", SIMULATED)
    project.write("test_neighbours.py", text)
    said = project.test("-oasyncio_default_fixture_loop_scope=function", *arguments, plugins=ALL)
    assert outcomes(said) == ({"PASSED": sorted([*IN_SIMULATED, *expected])})


def test_simulated_tests_without_any_plugin(project: Project) -> None:
    """They need none, not even the one of agentcore."""
    project.write("test_simulated.py", SIMULATED)
    said = project.test(plugins="no:agentcore", AGENTCORE_SIM="sim1:asyncio:-")
    assert outcomes(said) == {"PASSED": IN_SIMULATED}


ALIVE = """\
import anyio
import pytest
from agentcore.testing import simulate

@pytest.fixture(scope="module", params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param

@pytest.fixture(scope="module")
async def answer(anyio_backend):
    yield 42

@simulate(runs=2)
async def test_simulated(answer, sim):
    await anyio.sleep(60)
    assert (answer, sim.now) == (42, 60)
"""


def test_simulated_tests_with_fixtures_of_anyio(project: Project) -> None:
    """An event loop that is there, and does not run meanwhile, is left alone and disturbs nothing."""
    project.write("test_alive.py", ALIVE)
    assert outcomes(project.test("-oasyncio_default_fixture_loop_scope=function", plugins=ALL)) == {
        "PASSED": ["test_simulated[asyncio]", "test_simulated[trio]"]
    }


REFUSED = """\
import anyio
import pytest
from agentcore import AgentRuntime

def test_plain(agent_runtime):
    pass

@pytest.mark.sim(backend="trio")
@pytest.mark.anyio
async def test_sim_in_async_test(sim, anyio_backend):
    pass

@pytest.mark.sim("trio")
def test_marker_with_position(fault_plan):
    pass

@pytest.mark.sim(backend="asyncio", schedules="walk/3")
def test_marker_with_unknown_option(sim):
    pass

@pytest.mark.sim(backend="curio")
def test_marker_with_unknown_backend(sim):
    pass

async def forever():
    import asyncio
    asyncio.get_running_loop().left = asyncio.create_task(anyio.sleep_forever(), name="left")
    await anyio.sleep(1)

@pytest.mark.sim(backend="asyncio")
def test_leak(sim):
    sim.run(forever)

@pytest.mark.sim(backend="asyncio")
def test_failure_and_leak(sim):
    sim.run(forever)
    assert sim.now == 2

@pytest.fixture
def anyio_backend():
    return "asyncio"

runtimes = []

@pytest.mark.anyio
async def test_failure_in_runtime(agent_runtime):
    runtimes.append(agent_runtime)
    agent_runtime.handler("stuck")(lambda given: anyio.sleep_forever())
    await agent_runtime.submit("stuck")
    await anyio.lowlevel.checkpoint()
    assert not runtimes

def test_what_became_of_it():
    assert runtimes[0].report.reason == "the test has failed"
"""


def test_what_cannot_be_is_told(project: Project) -> None:
    """Each mistake gives one message that says what to write instead, and nothing goes wrong behind it."""
    project.write("test_refused.py", REFUSED)
    said = project.test("-oasyncio_default_fixture_loop_scope=function", plugins=ALL, status=FAILED)
    assert outcomes(said) == {
        "PASSED": ["test_leak[asyncio]", "test_what_became_of_it"],
        "FAILED": ["test_failure_and_leak[asyncio]", "test_failure_in_runtime"],
        "ERROR": [
            "test_leak[asyncio]",
            "test_marker_with_position",
            "test_marker_with_unknown_backend[curio]",
            "test_marker_with_unknown_option[asyncio]",
            "test_plain",
            "test_sim_in_async_test[trio]",
        ],
    }
    for told in (
        "the fixture `agent_runtime` is for `async def` tests that a plugin runs, by `pytest.mark.anyio`",
        "`pytest.mark.trio`: this one is a plain function; add one, or write `with sync_runtime() as runtime:`",
        "the fixture `sim` is for tests that are plain functions, which call `sim.run(function)`",
        "pytest.mark.sim takes keyword arguments alone: got ('trio',)",
        "pytest.mark.sim: Simulation.__init__() got an unexpected keyword argument 'schedules'",
        "pytest.mark.sim: a simulation runs on one of asyncio, trio: got 'curio'",
        "LeakError: 1 task is left when the simulation ends",
    ):
        assert told in said


# ---------------------------------------------------------------- failures and their replay

FAILING = """\
import os
from pathlib import Path

import anyio
import pytest
from agentcore.testing import Fault, FaultPlan, simulate

def note(test):
    with Path(__file__).with_name("runs").open("a") as file:
        file.write(f"{test}\\n")

@simulate(runs=50, backends=["asyncio"])
async def test_race():
    note("race")
    order = []

    async def work(number):
        await anyio.lowlevel.checkpoint()
        order.append(number)

    async with anyio.create_task_group() as group:
        for number in range(3):
            group.start_soon(work, number)
    assert order == [0, 1, 2], "this message is much longer than the terminal is wide, which is as it may be"

@simulate(runs=1, backends=["trio"], cancel="sweep")
async def test_sweep():
    note("sweep")
    await anyio.sleep(1)
    try:
        await anyio.sleep(1)
    except anyio.get_cancelled_exc_class():
        raise RuntimeError("swallowed") from None

class BoomError(Exception):
    pass

class Api:
    async def fetch(self):
        await anyio.sleep(1)

API = Api()

@pytest.mark.parametrize("word", ["a b", "c"])
@simulate(
    runs=1,
    backends=["trio"],
    plan=FaultPlan([Fault("api.fetch", 1, "delay", 1), Fault("api.fetch", 2, "raise", BoomError)]),
    targets={"api.fetch": (API, "fetch")},
)
async def test_fault(word):
    note("fault")
    await API.fetch()
    try:
        await API.fetch()
    except BoomError:
        assert word != "a b"
"""


@pytest.fixture
def failing(project: Project) -> dict[str, list[str]]:
    """The words of the commands that replay the failures of a project, by the name of the test."""
    project.write("part/test_failing.py", FAILING)
    said = project.test("--tb=short", status=FAILED, COLUMNS="40")
    project.lines("part/runs")
    assert outcomes(said)["FAILED"] == ["test_fault[a", "test_race", "test_sweep"]
    notes = re.findall(r"^E +replay: (AGENTCORE_SIM='.*')$", said, re.MULTILINE)
    assert len(notes) == 3
    _before, _title, summary = said.partition(" replays of simulations ")
    commands = re.findall(r"^(AGENTCORE_SIM='.*') pytest (.*)$", summary, re.MULTILINE)
    assert sorted(line for line, _name in commands) == sorted(notes)
    assert all(len(note) <= 200 for note in notes)
    found = {}
    for line, name in commands:
        (assignment,) = shlex.split(line)
        (nodeid,) = shlex.split(name)
        found[nodeid.partition("::test_")[2]] = [assignment, nodeid]
    return found


def test_failures_come_back_at_once(project: Project, failing: dict[str, list[str]]) -> None:
    """What the summary prints fails again, by the environment and by the option, in one run."""
    line, nodeid = failing["race"]
    assert line.startswith("AGENTCORE_SIM=sim1:asyncio:")
    said = project.test(nodeid, status=FAILED, AGENTCORE_SIM=line.partition("=")[2])
    assert f"agentcore: every simulation runs once, as AGENTCORE_SIM='{line.partition('=')[2]}' says" in said
    assert "E       replayed: AGENTCORE_SIM='sim1:asyncio:" in said
    assert "[2, 0, 1]" in said or "[1, 0, 2]" in said or "order == [0, 1, 2]" in said
    assert project.lines("part/runs") == ["race"]

    # The option takes what was copied together with the variable, and wins against the environment.
    line, nodeid = failing["sweep"]
    said = project.test("--sim-replay", line, nodeid, status=FAILED, AGENTCORE_SIM="sim1:asyncio:walk/3")
    assert "RuntimeError: swallowed" in said
    assert project.lines("part/runs") == ["sweep"]

    # The exception of the line is found once its module has been collected. The processes of xdist know the line too.
    line, nodeid = failing["fault[a b]"]
    assert "test_failing:BoomError" in line
    said = project.test("--sim-replay", line.partition("=")[2], "-n1", nodeid, plugins="xdist agentcore", status=FAILED)
    assert "1 failed" in said
    assert project.lines("part/runs") == ["fault"]


def test_wrong_line_ends_the_session(project: Project) -> None:
    """It is an error of usage, told in one line before any test runs."""
    project.write("test_nothing.py", "def test_nothing(): pass\n")
    said = project.test("--sim-replay=sim1:curio:-", status=USAGE)
    assert said.startswith(
        "ERROR: --sim-replay: this is no replay line: 'sim1:curio:-': it begins with sim1:asyncio: or "
    )
    assert "Traceback" not in said


@pytest.mark.parametrize("line", ["", "sim1:trio:1-2", "sim1:trio:::api#1:raise(KeyboardError)", "sim1z:abc"])
def test_wrong_lines(line: str) -> None:
    """Whatever is wrong with it, the message names the source and the line."""
    with pytest.raises(pytest.UsageError, match=rf"AGENTCORE_SIM: this is no replay line: {re.escape(repr(line))}: "):
        _plugin._check(line, "AGENTCORE_SIM")


def test_line_with_an_exception_of_a_test() -> None:
    """Its module is imported when it is collected, so nothing is said before."""
    _plugin._check("sim1:trio:::api#1:raise(not_collected_yet:BoomError)", "AGENTCORE_SIM")


@pytest.mark.parametrize(
    ("convert", "text"),
    [
        (_plugin._runs, "0"),
        (_plugin._runs, "1.5"),
        (_plugin._runs, "many"),
        (_plugin._seed, "-1"),
        (_plugin._budget, "-0.1"),
        (_plugin._budget, "inf"),
        (_plugin._budget, "nan"),
    ],
)
def test_wrong_numbers(convert: Any, text: str) -> None:
    """The options of numbers say what they take and what they got."""
    with pytest.raises(argparse.ArgumentTypeError, match=rf"must be a .* or more: got '{text}'"):
        convert(text)


COUNTED = """\
from pathlib import Path

import anyio
from agentcore.testing import simulate

@simulate(runs=500, seed=1)
async def test_counted(sim):
    with Path(__file__).with_name("runs").open("a") as file:
        file.write(f"{sim.backend}\\n")
    await anyio.sleep(1)

@simulate(strategy="walk", runs=500)
async def test_seeded():
    assert False
"""


def test_options_override_simulate(project: Project) -> None:
    """Runs and seed of the command line have the last word, in the processes of xdist too."""
    project.write("test_counted.py", COUNTED)
    said = project.test("--sim-runs=3", "--sim-seed=7", "-n1", plugins="xdist agentcore", status=FAILED)
    assert project.lines("runs") == ["asyncio"] * 3 + ["trio"] * 3
    assert "found on asyncio in run 1 (walk/7)" in said
    assert "AGENTCORE_SIM='sim1:asyncio:-' pytest test_counted.py::test_seeded" in said
