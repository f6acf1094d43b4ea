"""What registries do at the edges: lazy items, foreign threads, odd values, registries that nobody holds."""

from __future__ import annotations

import gc
import importlib
import importlib.metadata
import json
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agentcore import (
    ClassRegistry,
    ConfigurationError,
    FunctionRegistry,
    Registry,
    RegistryError,
    clear_registries,
    get_class_registry,
    get_function_registry,
    get_registry,
)


@pytest.fixture
def registry() -> Registry[Any]:
    """Make a registry of anything."""
    return Registry[Any]("things")


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Return a function that makes an importable module of some source and gives its name."""
    monkeypatch.syspath_prepend(tmp_path)

    def make(source: str) -> str:
        name = f"lazy_module_{len(list(tmp_path.iterdir()))}"
        (tmp_path / f"{name}.py").write_text(source, encoding="utf-8")
        importlib.invalidate_caches()
        # Known to monkeypatch from the start, so that the import is undone after the test.
        monkeypatch.setitem(sys.modules, name, None)  # type: ignore[arg-type]
        del sys.modules[name]
        return name

    return make


@pytest.fixture
def quick_switches() -> Iterator[None]:
    """Have threads take turns as often as the interpreter can, so that a race has its chance."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_metadata_takes_any_key(registry: Registry[Any]) -> None:
    """Metadata may be called as the parameters are."""
    registry.register("one", "eins", name="a name", item="an item", self="a self")
    assert registry.get_metadata("one") == {"name": "a name", "item": "an item", "self": "a self"}


def test_what_is_given_out_is_a_copy(registry: Registry[Any]) -> None:
    """Whoever changes what they were given changes nothing in the registry."""
    registry.register("one", "eins", language="de")
    registry.list_all().clear()
    registry.list_names().clear()
    registry.list_items().clear()
    metadata = registry.get_metadata("one")
    assert metadata is not None
    metadata.clear()
    assert (registry.list_all(), registry.get_metadata("one")) == ({"one": "eins"}, {"language": "de"})


def test_duplicates_can_be_errors() -> None:
    """A strict registry refuses a name that is taken and keeps what it had."""
    strict = Registry[str]("strict", on_duplicate="error")
    strict.register("one", "eins", language="de")
    with pytest.raises(RegistryError, match="one"):
        strict.register("one", "uno")
    assert (strict.get_sync("one"), strict.get_metadata("one")) == ("eins", {"language": "de"})


@pytest.mark.parametrize("item", [None, 0, "", False, []])
def test_empty_items_are_items(registry: Registry[Any], item: object) -> None:
    """An item that is false in itself is there all the same."""
    registry.register("empty", item)
    assert (registry.has("empty"), registry.get_sync("empty"), registry.list_all()) == (True, item, {"empty": item})
    assert registry.statistics().misses == 0


@pytest.mark.parametrize("name", ["", None, 5])
def test_unusable_names(registry: Registry[Any], name: Any) -> None:
    """A name that is no string, or an empty one, is refused for items and for registries."""
    with pytest.raises(RegistryError, match="got"):
        registry.register(name, 1)
    with pytest.raises(ConfigurationError, match="got"):
        Registry(name)
    assert registry.size() == 0


def test_find(registry: Registry[Any]) -> None:
    """Items are found by all of the metadata asked for, under any key."""
    registry.register("a", 1, kind="x", name="n")
    registry.register("b", 2, kind="x")
    registry.register("c", 3)
    assert registry.find(kind="x") == {"a": 1, "b": 2}
    assert registry.find(kind="x", name="n") == {"a": 1}
    assert registry.find(kind=None) == {}
    assert registry.find() == {"a": 1, "b": 2, "c": 3}


def test_statistics(registry: Registry[Any]) -> None:
    """Registrations and look-ups are counted, the failed ones apart."""
    registry.register("a", 1)
    registry.register("a", 2)
    for name in ("a", "a", "b"):
        registry.get_sync(name)
    found = registry.statistics()
    assert (found.registrations, found.lookups, found.hits, found.misses) == (2, 3, 2, 1)


def test_replacement_is_an_event(registry: Registry[Any]) -> None:
    """Whoever listens hears that an item was replaced, and by what."""
    heard: list[Any] = []
    registry.subscribe(heard.append)
    registry.register("a", 1)
    registry.register("a", 2)
    assert [(event.event_type, event.data["name"], event.data["new"]) for event in heard] == [("item_replaced", "a", 2)]


def test_function_metadata() -> None:
    """What a function says about itself can be read, and what the caller says goes before it."""
    functions = FunctionRegistry("functions")

    @functions.register_function(group="maths")
    def double(number: int) -> int:
        """Give the number twice."""
        return 2 * number

    @functions.register_function(module="elsewhere")
    async def later() -> None: ...

    first, second = functions.get_metadata("double"), functions.get_metadata("later")
    assert first is not None
    assert second is not None
    assert (first["docstring"], first["module"], first["is_async"]) == ("Give the number twice.", __name__, False)
    assert ("number" in str(first["signature"]), first["group"]) == (True, "maths")
    assert (second["is_async"], second["module"]) == (True, "elsewhere")


def test_something_else_than_a_function_or_class() -> None:
    """A registry of functions takes functions, one of classes takes classes."""
    with pytest.raises(RegistryError, match="function"):
        FunctionRegistry("functions").register_function("five")(5)  # type: ignore[type-var]
    with pytest.raises(RegistryError, match="class"):
        ClassRegistry("classes").register_class("five")(len)  # type: ignore[type-var]


def test_decorator_without_parentheses() -> None:
    """Who forgets the parentheses is told so where it was written, not when the function is called."""
    functions, classes = FunctionRegistry("functions"), ClassRegistry("classes")
    for decorator in (functions.register_function, functions.decorator, classes.register_class):
        with pytest.raises(RegistryError, match="got"):
            decorator(gc.collect)  # type: ignore[arg-type]


def test_lazy_item_is_imported_once(registry: Registry[Any], module: Callable[[str], str]) -> None:
    """A lazy item costs nothing before it is asked for, and is the same ever after."""
    name = module("class Thing:\n    inner = object()\n")
    registry.register_lazy("thing", f"{name}:Thing.inner", kind="lazy")
    assert (registry.has("thing"), registry.size(), name in sys.modules) == (True, 1, False)
    assert registry.get_metadata("thing") == {"kind": "lazy"}
    first = registry.get_sync("thing")
    assert first is sys.modules[name].Thing.inner
    assert (registry.get_sync("thing"), registry.list_all()) == (first, {"thing": first})


@pytest.mark.parametrize("target", ["no_such_package:thing", "json:no_such_thing", "json:decoder.nothing"])
def test_lazy_item_that_cannot_be_imported(registry: Registry[Any], target: str) -> None:
    """A target that is not there is an error at the look-up, which names it and can be repeated."""
    registry.register_lazy("thing", target)
    for _ in range(2):
        with pytest.raises(RegistryError, match=target) as caught:
            registry.get_sync("thing")
        assert isinstance(caught.value.__cause__, ImportError | AttributeError)
    assert registry.has("thing") is True


@pytest.mark.parametrize("target", ["json", "json:", ":thing", ""])
def test_misspelt_lazy_target(registry: Registry[Any], target: str) -> None:
    """A target of another form is refused when it is registered."""
    with pytest.raises(RegistryError, match="module"):
        registry.register_lazy("thing", target)
    assert registry.size() == 0


def test_lazy_item_and_the_import_lock(
    registry: Registry[Any], module: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module that registers something while one thread imports it and another looks it up blocks neither."""
    lazy = module("import threads_meet\nthreads_meet.body()\nthing = 1\n")
    registry.register_lazy("thing", f"{lazy}:thing")
    importing, asked = threading.Event(), threading.Event()
    real_import = importlib.import_module

    class Meeting:
        @staticmethod
        def body() -> None:
            importing.set()
            asked.wait(30)
            registry.register("other", 2)

    def import_module(name: str, package: str | None = None) -> Any:
        asked.set()
        return real_import(name, package)

    monkeypatch.setitem(sys.modules, "threads_meet", Meeting)  # type: ignore[arg-type]
    monkeypatch.setattr(importlib, "import_module", import_module)
    importer = threading.Thread(target=real_import, args=[lazy], daemon=True)
    asker = threading.Thread(target=registry.get_sync, args=["thing"], daemon=True)
    importer.start()
    assert importing.wait(30) is True
    asker.start()
    for thread in (importer, asker):
        thread.join(10)
    assert (importer.is_alive(), asker.is_alive()) == (False, False)
    assert registry.list_all() == {"thing": 1, "other": 2}


@pytest.mark.usefixtures("quick_switches")
def test_readers_never_see_a_write_half_done(registry: Registry[Any]) -> None:
    """While one thread registers and removes, others list and find without an error and miss nothing that stays."""
    registry.register("stays", 0, kind="k")
    done = threading.Event()

    def write() -> None:
        try:
            for number in range(3000):
                registry.register("comes", number, kind="k")
                registry.unregister("comes")
        finally:
            done.set()

    def read() -> bool:
        complete = True
        while not done.is_set():
            seen = [set(registry.list_all()), set(registry.find(kind="k")), set(registry.list_names())]
            complete &= all("stays" in names for names in seen)
            complete &= registry.get_sync("comes") in {None, *range(3000)}
        return complete

    with ThreadPoolExecutor(4) as threads:
        readers = [threads.submit(read) for _ in range(3)]
        threads.submit(write).result(60)
        assert [reader.result(60) for reader in readers] == [True] * 3


@pytest.mark.usefixtures("quick_switches")
def test_replaced_item_is_always_there(registry: Registry[Any]) -> None:
    """A name that is registered before and after a write is found at every moment between, lazy or not."""
    registry.register("name", 0)
    done = threading.Event()

    def write() -> None:
        try:
            for _ in range(3000):
                registry.register_lazy("name", "json:dumps")
                registry.get_sync("name")
                registry.register("name", 0)
        finally:
            done.set()

    def read() -> int:
        missed = 0
        while not done.is_set():
            missed += registry.get_sync("name") is None
        return missed

    with ThreadPoolExecutor(4) as threads:
        readers = [threads.submit(read) for _ in range(3)]
        threads.submit(write).result(60)
        assert [reader.result(60) for reader in readers] == [0, 0, 0]


@pytest.fixture
def no_global_registries() -> Iterator[None]:
    """Leave no process-wide registry behind, and find none."""
    clear_registries()
    yield
    clear_registries()


@pytest.mark.usefixtures("no_global_registries")
def test_registry_that_nobody_holds() -> None:
    """A process-wide registry vanishes when it is empty and unreferenced, and only then."""
    get_registry("kept").register("a", 1)
    get_registry("empty")
    get_registry("emptied").register("a", 1)
    get_registry("emptied").unregister("a")
    gc.collect()
    assert get_registry("kept").get_sync("a") == 1
    # The names of the others are free for registries of another kind.
    assert isinstance(get_function_registry("empty"), FunctionRegistry)
    assert isinstance(get_class_registry("emptied"), ClassRegistry)


@pytest.mark.usefixtures("no_global_registries")
def test_threads_get_the_same_registry() -> None:
    """However many threads ask for a name at once, there is one registry."""
    barrier = threading.Barrier(8)

    def ask(_: int) -> Registry[Any]:
        barrier.wait(30)
        return get_registry("shared")

    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(ask, range(8)))
    assert len({id(registry) for registry in found}) == 1


@pytest.mark.usefixtures("no_global_registries")
def test_clear_registries() -> None:
    """Clearing empties what somebody still holds, frees the names, and can be limited to some."""
    held, other = get_registry("held"), get_registry("other")
    held.register("a", 1)
    other.register("b", 2)
    clear_registries(["held", "unknown"])
    assert (held.size(), get_registry("held") is held, get_registry("other")) == (0, False, other)
    clear_registries()
    assert (other.size(), get_registry("other") is other) == (0, False)


@pytest.mark.usefixtures("no_global_registries")
def test_clear_one_registry() -> None:
    """A single name is a name, and not a collection of letters."""
    agents, letter = get_registry("agents"), get_registry("a")
    agents.register("one", 1)
    letter.register("two", 2)
    clear_registries("agents")
    assert (0, False, letter) == (agents.size(), get_registry("agents") is agents, get_registry("a"))


@pytest.mark.usefixtures("no_global_registries")
def test_forgotten_registry_that_is_written_to() -> None:
    """A registry that was cleared and is still held does not take its name back from the next one."""
    forgotten = get_registry("name")
    clear_registries("name")
    current = get_registry("name")
    forgotten.register("one", 1)
    assert (True, 0) == (get_registry("name") is current, current.size())


@pytest.mark.usefixtures("no_global_registries")
def test_registry_of_another_kind() -> None:
    """A name belongs to registries of one kind as long as there is one."""
    kept = get_registry("kept")
    with pytest.raises(RegistryError, match="'kept' is a Registry: got a request for a ClassRegistry"):
        get_class_registry(kept.name)


def test_unusable_duplicates() -> None:
    """What shall become of duplicates is one of two words."""
    with pytest.raises(ConfigurationError, match="'replace' or 'error': got 'ignore'"):
        Registry("things", on_duplicate="ignore")  # type: ignore[arg-type]


def test_repr_of_a_registry(registry: Registry[Any]) -> None:
    """A registry shows its kind, its name and its size."""
    registry.register("one", 1)
    assert ("<Registry 'things' with 1 items>", "<FunctionRegistry 'f' with 0 items>") == (
        repr(registry),
        repr(FunctionRegistry("f")),
    )


def test_find_beneath(registry: Registry[Any]) -> None:
    """What is beneath a registry is found through it, unless it is covered."""
    registry.register("one", "beneath", kind="k")
    registry.register("two", "beneath", kind="k")
    above = Registry[Any]("things", beneath=registry)
    above.register("one", "above", kind="other")
    above.register("three", "above", kind="k")
    assert {"two": "beneath", "three": "above"} == above.find(kind="k")
    assert (["one", "two", "three"], 3) == (above.list_names(), above.size())
    assert ({"kind": "other"}, {"kind": "k"}) == (above.get_metadata("one"), above.get_metadata("two"))
    assert (None, False, True) == (above.get_metadata("four"), above.has("four"), above.has("two"))


def test_item_that_vanishes_while_all_are_listed(registry: Registry[Any]) -> None:
    """An item that is removed while others are imported, or by its own import, is left out of the list."""

    class Removing:
        """Stands for a module whose import has a side effect."""

        @staticmethod
        def import_module(name: str) -> Any:
            registry.unregister("second")
            if name == "json":
                registry.unregister("third")
            return sys.modules[name]

    for method in (registry.list_all, lambda: registry.find(kind="k")):
        registry.register_lazy("first", "sys:path", kind="k")
        registry.register("second", 2, kind="k")
        registry.register_lazy("third", "json:dumps", kind="k")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(importlib, "import_module", Removing.import_module)
            assert {"first": sys.path} == method()


def test_entry_points(registry: Registry[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """What packages offer is registered lazily, and what is registered already stays."""
    entries = [
        EntryPoint("dumps", "json:dumps", "plugins"),
        EntryPoint("taken", "json:loads", "plugins"),
    ]

    def entry_points(*, group: str) -> list[EntryPoint]:
        return [entry for entry in entries if entry.group == group]

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
    registry.register("taken", "mine")
    assert (["dumps"], []) == (registry.load_entry_points("plugins"), registry.load_entry_points("others"))
    assert ("mine", json.dumps) == (registry.get_sync("taken"), registry.get_sync("dumps"))
    assert {"entry_point": "plugins"} == registry.get_metadata("dumps")


def test_entry_point_without_an_attribute(registry: Registry[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry point that names a module alone is refused."""
    entries = [EntryPoint("whole", "json", "plugins")]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda *, group: entries)
    with pytest.raises(RegistryError, match=r"package\.module:attribute"):
        registry.load_entry_points("plugins")


def test_events_of_a_registry(registry: Registry[Any]) -> None:
    """Replacements can be read afterwards too."""
    registry.register("one", 1)
    registry.register_lazy("one", "json:dumps")
    (event,) = registry.events()
    assert ("item_replaced", "things", "one", 1) == (
        event.event_type,
        *(event.data[key] for key in ("registry", "name", "old")),
    )
    assert 1 == registry.statistics().replacements


def test_function_without_a_signature() -> None:
    """Functions that do not tell what they take can be registered too."""
    functions = FunctionRegistry("functions")

    class Silent:
        __signature__ = "none"
        __name__ = "silent"

        def __call__(self) -> None: ...

    functions.register_function()(Silent())
    metadata = functions.get_metadata("silent")
    assert metadata is not None
    assert "(...)" == metadata["signature"]


def test_item_without_a_name(registry: Registry[Any]) -> None:
    """A decorated object that has no name of its own needs one."""
    with pytest.raises(RegistryError, match="without __name__"):
        registry.decorator()(5)
    assert 5 == registry.decorator("five", kind="k")(5)
    assert ({"five": 5}, {"kind": "k"}) == (registry.list_all(), registry.get_metadata("five"))


@pytest.mark.anyio
async def test_instances_of_registered_classes() -> None:
    """Instances are made with any arguments; a class that is not there is an error with the nearest name."""
    classes = ClassRegistry("classes")
    classes.register_class("point", module="elsewhere")(SimpleNamespace)
    made = await classes.create_instance("point", name="own", self=1)
    assert ("own", 1) == (made.name, made.self)
    with pytest.raises(RegistryError, match="got 'pont'; did you mean 'point'"):
        await classes.create_instance("pont")
    with pytest.raises(RegistryError, match="nothing is registered yet"):
        await ClassRegistry("none").create_instance("point")
