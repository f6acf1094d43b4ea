"""Runtimes in fixtures: of AnyIO's pytest plugin, of pytest-asyncio and of pytest-trio, and the one of agentcore itself.

Each test runs pytest on a file that it writes, as users do.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.embedding.hosts import INT, TERM, Program, needs, records

# How a test and a fixture look like under each plugin, and how often each test runs.
PLUGINS = {
    "anyio": ("pytest.mark.anyio", "pytest.fixture", 2, ["anyio", "trio"]),
    "pytest-asyncio": ("pytest.mark.asyncio", "pytest_asyncio.fixture", 1, ["pytest_asyncio"]),
    "pytest-trio": ("pytest.mark.trio", "pytest.fixture", 1, ["pytest_trio"]),
}

HEAD = """\
import anyio
import pytest
{imports}

from agentcore import AgentRuntime, RuntimeClosedError
from tests.embedding.apps.parts import CONFIG, equip
from tests.embedding.apps.program import until_failed

pytestmark = {marker}

"""

# Warnings are errors, and what is said and logged is seen as soon as it is.
SETTINGS = """\
[pytest]
filterwarnings = error
asyncio_default_fixture_loop_scope = function
log_cli = true
log_cli_level = WARNING
log_cli_format = %(levelname)s %(name)s: %(message)s
"""
OPTIONS = ("-p", "no:cacheprovider", "-p", "no:xdist", "-q", "-s", "--show-capture=no")

# By hand, and around the one that the plugin of agentcore gives.
HOSTED = """
@{fixture}
async def runtime():
    async with AgentRuntime(CONFIG, hosted=True) as runtime:
        await equip(runtime)
        yield runtime
"""
GIVEN = """
@{fixture}
async def runtime(agent_runtime):
    await equip(agent_runtime)
    return agent_runtime
"""
STRICT = """
@{fixture}
async def runtime():
    async with AgentRuntime(CONFIG) as runtime:
        yield runtime
"""

WORK = """
async def test_work(runtime):
    assert await runtime.run("work", {"name": "own"}) == {"name": "own"}
"""
FAIL = """
async def test_fail(runtime):
    await runtime.submit("fail")
"""
CRASH = """
@pytest.mark.parametrize("how", ["exit", "break"])
async def test_crash(runtime, how):
    assert runtime.health().state == "open"
    await runtime.submit(how)
    await until_failed(runtime)
    with pytest.raises(RuntimeClosedError):
        await runtime.run("work", {"name": "late"})
"""
BOTH_FAIL = """
async def test_both(runtime):
    await runtime.submit("fail")
    raise LookupError("the test's own")
"""

plugins = pytest.mark.parametrize("plugin", [pytest.param(name, marks=needs(*PLUGINS[name][3])) for name in PLUGINS])
fixtures = pytest.mark.parametrize("fixture", [HOSTED, GIVEN], ids=["hosted", "agent_runtime"])


def session(place: Path, plugin: str, fixture: str, *tests: str) -> Program:
    """Return a run of pytest on a file with a fixture and some tests."""
    marker, decorator, _times, modules = PLUGINS[plugin]
    imports = "import pytest_asyncio" if "pytest_asyncio" in modules else ""
    head = HEAD.format(imports=imports, marker=marker)
    file = place / "test_it.py"
    file.write_text(head + fixture.format(fixture=decorator) + "".join(tests), encoding="utf-8")
    (place / "pytest.ini").write_text(SETTINGS, encoding="utf-8")
    return Program("-m", "pytest", *OPTIONS, "-c", str(place / "pytest.ini"), str(file))


def summary(output: str) -> str:
    """Return the last line of pytest, without the time."""
    return output.rstrip().splitlines()[-1].strip("= ").partition(" in ")[0]


@plugins
@fixtures
def test_work_and_failures_in_tests(plugin: str, fixture: str, tmp_path: Path) -> None:
    """What nobody has looked at, and what has crashed, is the error of that test's teardown; the rest passes."""
    with session(tmp_path, plugin, fixture, WORK, FAIL, CRASH, BOTH_FAIL) as process:
        times = PLUGINS[plugin][2]
        for _ in range(times):
            process.expect("own")[0].end()
        assert process.finish() == 1
        # pytest-trio has fixtures and the test in one nursery, and tells of both at once.
        one = (
            "4 failed, 1 passed"
            if plugin == "pytest-trio"
            else f"{times} failed, {4 * times} passed, {4 * times} errors"
        )
        assert summary(process.output) == one
        assert len(records(process.output, "ERROR")) <= 2 * times
        assert len(records(process.output, "CRITICAL")) == 2 * times


@plugins
def test_the_keyboard_ends_a_session(plugin: str, tmp_path: Path) -> None:
    """SIGINT while work is under way: it is cut and cleans up."""
    with session(tmp_path, plugin, GIVEN, WORK) as process:
        (own,) = process.expect("own")
        process.settle()
        process.signal(INT)
        own.wait_for_cut()
        # pytest-trio tells of the interruption as of a failure of the test.
        assert process.finish() == (1 if plugin == "pytest-trio" else 2)
        assert process.output.count("own cleaned up") == 1
        assert process.output.count("line closed") == 1


@plugins
def test_sigterm_ends_a_session_at_once(plugin: str, tmp_path: Path) -> None:
    """It is not handled by pytest."""
    with session(tmp_path, plugin, HOSTED, WORK) as process:
        process.expect("own")
        process.signal(TERM)
        assert process.finish() == -TERM


@plugins
def test_a_strict_runtime_in_a_fixture_is_refused_at_once(plugin: str, tmp_path: Path) -> None:
    """The error comes at the entry, and names both choices; at the exit it would be too late."""
    with session(tmp_path, plugin, STRICT, WORK) as process:
        assert process.finish() == 1
        assert summary(process.output) == {"anyio": "2 errors", "pytest-asyncio": "1 error"}.get(plugin, "1 failed")
        assert "ConfigurationError" in process.output
        assert "hosted=True" in process.output
        assert "hosted=False" in process.output
