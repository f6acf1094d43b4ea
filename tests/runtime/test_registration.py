"""What installed packages offer, with packages that are really installed: files that Python finds by itself."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agentcore import AgentRuntime, Registry, RegistryError, get_function_registry, get_registry
from agentcore._registration import register_agents, register_task_handlers, register_tools
from agentcore.testing import isolated_globals

pytestmark = pytest.mark.anyio

MODULE = "forest_of_plugins"
SOURCE = """
from agentcore import AgentConfig, AgentResult, BaseAgent


class Fox(BaseAgent):
    def __init__(self):
        super().__init__(AgentConfig("fox", "animal"))

    async def initialize(self):
        return True

    async def process(self, context):
        return AgentResult.success_result({"says": "ring-ding", "to": context.parameters.get("name")})

    async def handle_error(self, error, context):
        return AgentResult.error_result({"message": str(error)})


async def greet(given):
    return f"hello {given['name']}"


class tools:
    @staticmethod
    def axe():
        return "chop"
"""
ENTRIES = f"""
[agentcore.agents]
fox_agent = {MODULE}:Fox
lost_agent = {MODULE}:Wolf
[agentcore.task_handlers]
greeting = {MODULE}:greet
[agentcore.tools]
axe = {MODULE}:tools.axe
saw = no_such_module:saw
[other.agents]
bear = {MODULE}:Bear
"""


@pytest.fixture(autouse=True)
def own_registries() -> Iterator[None]:
    """Begin without registries of the process."""
    with isolated_globals():
        yield


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that installs a distribution with these entry points."""

    def install(entries: str = ENTRIES, name: str = "forest") -> None:
        metadata = tmp_path / f"{name}-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", encoding="utf-8")
        (metadata / "entry_points.txt").write_text(entries, encoding="utf-8")
        (tmp_path / f"{MODULE}.py").write_text(SOURCE, encoding="utf-8")
        monkeypatch.syspath_prepend(tmp_path)
        # Known to monkeypatch from the start, so that the import is undone after the test.
        monkeypatch.setitem(sys.modules, MODULE, None)  # type: ignore[arg-type]
        del sys.modules[MODULE]

    return install


def test_nothing_installed() -> None:
    """Without packages there is nothing to add."""
    assert ([], [], []) == (register_agents(), register_task_handlers(), register_tools())


def test_each_group_goes_into_its_registry(install: Callable[..., None]) -> None:
    """Lazily: nothing is imported before it is asked for."""
    install()
    assert (["fox_agent", "lost_agent"], ["greeting"], ["axe", "saw"]) == (
        register_agents(),
        register_task_handlers(),
        register_tools(),
    )
    assert MODULE not in sys.modules
    assert get_registry("agents").list_names() == ["fox_agent", "lost_agent"]
    assert get_registry("task_handlers").list_names() == ["greeting"]
    assert get_registry("tools").get_metadata("axe") == {"entry_point": "agentcore.tools"}
    assert get_registry("tools").get_sync("axe")() == "chop"
    assert MODULE in sys.modules


def test_calling_twice_is_harmless(install: Callable[..., None]) -> None:
    """The second call adds nothing and replaces nothing."""
    install()
    assert register_agents() == ["fox_agent", "lost_agent"]
    fox = get_registry("agents").get_sync("fox_agent")
    assert register_agents() == []
    assert get_registry("agents").get_sync("fox_agent") is fox
    assert get_registry("agents").statistics().replacements == 0


def test_what_is_registered_already_stays(install: Callable[..., None]) -> None:
    """The program goes before what is merely installed; of two packages, one has the name."""
    install()
    install(f"[agentcore.tools]\naxe = {MODULE}:greet\nhammer = {MODULE}:greet", "smithy")
    get_registry("tools").register("saw", "mine")
    assert sorted(register_tools()) == ["axe", "hammer"]
    assert get_registry("tools").get_sync("saw") == "mine"


@pytest.mark.parametrize(
    ("register", "names"),
    [
        (register_agents, ["fox_agent", "lost_agent"]),
        (register_task_handlers, ["greeting"]),
        (register_tools, ["axe", "saw"]),
    ],
)
def test_another_registry(
    register: Callable[[Registry[object]], list[str]], names: list[str], install: Callable[..., None]
) -> None:
    """Only that one is written to, also while it is empty."""
    install()
    mine = Registry[object]("mine")
    assert (register(mine), mine.list_names()) == (names, names)
    assert [get_registry(name).size() for name in ("agents", "task_handlers", "tools")] == [0, 0, 0]


def test_a_registry_of_functions(install: Callable[..., None]) -> None:
    """A program that keeps its tools in one passes it; without, the error says what is there."""
    install()
    tools = get_function_registry("tools")
    with pytest.raises(RegistryError, match="registry 'tools' is a FunctionRegistry: got a request for a Registry"):
        register_tools()
    assert register_tools(tools) == ["axe", "saw"]


@pytest.mark.parametrize(
    ("registry", "name", "reason"),
    [
        ("agents", "lost_agent", f"AttributeError.* has no attribute 'Wolf'.* from '{MODULE}:Wolf'"),
        ("tools", "saw", "ModuleNotFoundError.*No module named 'no_such_module'.* from 'no_such_module:saw'"),
    ],
)
def test_what_cannot_be_loaded_is_told_when_it_is_used(
    registry: str, name: str, reason: str, install: Callable[..., None]
) -> None:
    """By its name and with the reason; the others work."""
    install()
    register_agents()
    register_tools()
    with pytest.raises(RegistryError, match=f"item {name!r} of registry {registry!r} cannot be imported: got {reason}"):
        get_registry(registry).get_sync(name)
    assert get_registry("tools").get_sync("axe")() == "chop"


async def test_a_runtime_finds_what_is_installed(install: Callable[..., None]) -> None:
    """Handlers and agents do tasks as if the program had registered them, and agents answer under their type."""
    install()
    register_agents()
    register_task_handlers()
    async with AgentRuntime() as runtime:
        assert await runtime.run("greeting", {"name": "otter"}) == {"result": "hello otter"}
        assert (await runtime.run("fox"))["says"] == "ring-ding"
