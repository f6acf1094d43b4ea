"""What the simulator says on an asyncio, a trio or an AnyIO that it does not know."""

from __future__ import annotations

import ast
import pickle
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from agentcore import AgentRuntime
from agentcore.testing import BACKENDS, Simulation, UnsupportedVersionError, check, run_sim
from agentcore.testing import _check as module
from agentcore.testing._loops._asyncio import _AsyncioLoop

both = pytest.mark.parametrize("backend", BACKENDS)
TABLES = {"asyncio": "_ASYNCIO", "trio": "_TRIO"}


@pytest.fixture(autouse=True)
def unchecked(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Begin as if nothing had been checked yet in this process, and forget afterwards what was."""
    passed: set[str] = set()
    monkeypatch.setattr(module, "_passed", passed)
    return passed


async def gives_way() -> int:
    await anyio.sleep(1)
    return 1


def refused(backend: Any) -> UnsupportedVersionError:
    """Return the error of a check that fails, which is that of a simulation too."""
    with pytest.raises(UnsupportedVersionError) as raised:
        check(backend)
    with pytest.raises(UnsupportedVersionError) as again:
        Simulation(backend)
    with pytest.raises(UnsupportedVersionError):
        run_sim(gives_way, backend=backend)
    assert str(again.value) == str(raised.value)
    return raised.value


# ------------------------------------------------------------------------------------------ what is known


@both
def test_the_versions_that_are_installed_are_known(backend: Any, unchecked: set[str]) -> None:
    check(backend)
    assert unchecked == {backend}


@both
def test_a_simulation_checks_once(backend: Any, unchecked: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """For its own backend alone."""
    runs: list[str] = []
    original = module._check_behaviour

    def spy(name: str) -> None:
        runs.append(name)
        original(name)

    monkeypatch.setattr(module, "_check_behaviour", spy)
    for _ in range(3):
        assert run_sim(gives_way, backend=backend).unwrap() == 1
    assert runs == [backend]
    assert unchecked == {backend}


@both
def test_every_attribute_of_the_tables_is_there(backend: Any) -> None:
    for place, names in getattr(module, TABLES[backend]).items():
        assert [name for name in names if not module._has(place, name)] == []


@pytest.mark.parametrize(
    ("place", "name"), [("asyncio:Task", "no_such"), ("asyncio:NoSuch", "x"), ("no_such_module", "x"), ("asyncio", "x")]
)
def test_what_is_not_there_is_not_found(place: str, name: str) -> None:
    assert not module._has(place, name)


# ------------------------------------------------------------------------------------------ what is not


@both
@pytest.mark.parametrize(
    ("place", "name"), [("asyncio:Task", "no_such"), ("no.such.module", "x"), ("asyncio:NoSuch.deep", "x")]
)
def test_an_attribute_that_is_gone_is_named(
    backend: Any, place: str, name: str, unchecked: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(getattr(module, TABLES[backend]), place, (name,))
    error = refused(backend)
    assert error.backend == backend
    assert error.reason == f"{place} has no {name}"
    assert unchecked == set()


def test_an_attribute_that_asyncio_has_lost_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Really lost: neither the table nor the check has changed."""
    import asyncio  # noqa: PLC0415

    monkeypatch.delattr(asyncio.base_events.BaseEventLoop, "_run_once")
    assert refused("asyncio").reason == "asyncio:SelectorEventLoop has no _run_once"


def test_an_attribute_that_trio_has_lost_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import trio  # noqa: PLC0415

    monkeypatch.delattr(trio._core._run, "_r")
    assert refused("trio").reason == "trio._core._run has no _r"


@both
def test_an_attribute_that_anyio_has_lost_is_named(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    name, kind = {"asyncio": ("_asyncio", "AsyncIOBackend"), "trio": ("_trio", "TrioBackend")}[backend]
    owner = getattr(sys.modules[f"anyio._backends.{name}"], kind)
    for base in owner.__mro__:
        monkeypatch.delattr(base, "run_async_from_thread", raising=False)
    assert refused(backend).reason == f"anyio._backends.{name}:{kind} has no run_async_from_thread"


def test_attributes_that_a_loop_has_lost_are_named_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOOP", (*module._LOOP, "_one", "_two"))
    assert refused("asyncio").reason == "its loop has no _one, _two"


@both
def test_another_clock_is_found(backend: Any, unchecked: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    async def clock() -> tuple[float, bool, bool]:
        return 0.1, False, True

    monkeypatch.setattr(module, "_clock", clock)
    assert refused(backend).reason == "virtual time gives (0.1, False, True)"
    assert unchecked == set()


def test_a_loop_that_asks_another_clock_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_AsyncioLoop, "time", lambda self: 2 * self.kernel.now)
    assert refused("asyncio").reason.startswith(("virtual time gives", "a program ends with"))


@both
def test_other_orders_are_found(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer than there are, or more."""

    async def always_the_same() -> tuple[int, ...]:
        await anyio.lowlevel.checkpoint()
        return (1, 1, 2, 2)

    monkeypatch.setattr(module, "_two_by_two", always_the_same)
    assert refused(backend).reason == "1 orders where there are 6"

    monkeypatch.setattr(module, "_two_by_two", two_by_three)
    assert refused(backend).reason == "20 orders where there are 6"


async def two_by_three() -> tuple[int, ...]:
    order: list[int] = []

    async def work(number: int) -> None:
        for _ in range(3):
            order.append(number)
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as group:
        group.start_soon(work, 1)
        group.start_soon(work, 2)
    return tuple(order)


@both
def test_a_program_that_fails_is_an_unknown_version(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails() -> tuple[float, bool, bool]:
        raise AttributeError("no _ready")

    monkeypatch.setattr(module, "_clock", fails)
    error = refused(backend)
    assert error.reason == "a program ends with AttributeError('no _ready')"
    assert isinstance(error.__cause__, AttributeError)


@both
def test_a_program_that_never_ends_is_an_unknown_version(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def waits() -> tuple[float, bool, bool]:
        await anyio.Event().wait()
        raise AssertionError("never")

    monkeypatch.setattr(module, "_clock", waits)
    assert refused(backend).reason.startswith("a program ends with DeadlockError('deadlock: every task waits")

    async def turns() -> tuple[float, bool, bool]:
        while True:
            await anyio.lowlevel.checkpoint()

    monkeypatch.setattr(module, "_clock", turns)
    assert refused(backend).reason.startswith("a program ends with LivelockError('no end after 1000 steps")


@both
def test_what_was_refused_is_known_again_once_it_is_mended(
    backend: Any, unchecked: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of a failed check is left in the event loops or in this process."""

    async def fails() -> tuple[float, bool, bool]:
        raise OSError

    with monkeypatch.context() as patch:
        patch.setattr(module, "_clock", fails)
        refused(backend)
    check(backend)
    assert unchecked == {backend}
    assert run_sim(gives_way, backend=backend).unwrap() == 1


# ------------------------------------------------------------------------------------------ the error


@both
def test_the_message_names_the_versions(backend: Any) -> None:
    error = UnsupportedVersionError(backend, "its loop has no _ready")
    python = sys.version.split(maxsplit=1)[0]
    more = f", trio {version('trio')}" if backend == "trio" else ""
    assert str(error) == (
        f"agentcore.testing does not know this version of {backend}: its loop has no _ready (Python {python}, "
        f"anyio {version('anyio')}{more}); install versions that it knows, or a newer agentcore. Programs run without the "
        "simulator as they did"
    )


@both
def test_the_error_pickles(backend: Any) -> None:
    error = UnsupportedVersionError(backend, "why")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is UnsupportedVersionError
    assert (again.backend, again.reason, str(again)) == (backend, "why", str(error))


# ------------------------------------------------------------------------------------------ everything else


@pytest.mark.anyio
async def test_programs_run_where_the_simulator_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here, on the event loop of the test itself."""
    monkeypatch.setattr(module, "_LOOP", ("_gone",))
    monkeypatch.setitem(module._TRIO, "trio", ("_gone",))
    for backend in BACKENDS:
        with pytest.raises(UnsupportedVersionError):
            Simulation(backend)
    async with AgentRuntime() as runtime:

        @runtime.handler("double")
        async def double(given: dict[str, Any]) -> dict[str, Any]:
            await anyio.lowlevel.checkpoint()
            return {"value": 2 * given["value"]}

        assert await runtime.run("double", {"value": 4}) == {"value": 8}


PROGRAM = """
import anyio, trio
from agentcore import AgentRuntime
from agentcore.testing import UnsupportedVersionError, run_sim

del trio._core._run._r

async def main():
    async with AgentRuntime() as runtime:
        async def double(given):
            await anyio.sleep(0)
            return {"value": 2 * given["value"]}
        runtime.handler("double")(double)
        return (await runtime.run("double", {"value": 4}))["value"]

try:
    run_sim(main, backend="trio")
except UnsupportedVersionError as error:
    print(error.reason)
print(run_sim(main, backend="asyncio").unwrap(), anyio.run(main))
"""


def test_a_process_with_an_unknown_trio_simulates_on_asyncio() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout.splitlines(), done.stderr) == (
        ["trio._core._run has no _r", "8 8"],
        "",
    )


def test_every_private_attribute_that_is_touched_is_listed() -> None:
    """What the loops touch of asyncio, trio and AnyIO stands in the self-test."""
    folder = Path(module.__file__).parent
    own = {
        name
        for path in folder.rglob("*.py")
        for name in re.findall(
            r"(?:self\.|def |class |^|\s)(_[a-z]\w*)\b(?= =|:|\(|,)", path.read_text(encoding="utf-8")
        )
    }
    touched = {
        node.attr
        for path in (folder / "_loops").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and re.match(r"_[a-zA-Z]", node.attr)
    }
    listed = Path(module.__file__).read_text(encoding="utf-8")
    assert 10 < len(touched - own)
    # `_agentcore` is a mark of our own, on AnyIO's classes.
    foreign = touched - own - {"_agentcore"}
    assert [name for name in sorted(foreign) if not re.search(rf"\b{name}\b", listed)] == []
