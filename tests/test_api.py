"""The public surface against its snapshots, `tests/api.txt` and `tests/api_testing.txt`.

A change of the surface is a decision, and shows as a change of these files:
`nox -s api -- --update` writes them anew.
"""

import enum
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import agentcore
import agentcore.testing

SNAPSHOTS = {
    agentcore: Path(__file__).with_name("api.txt"),
    agentcore.testing: Path(__file__).with_name("api_testing.txt"),
}
facades = pytest.mark.parametrize("facade", SNAPSHOTS, ids=lambda facade: facade.__name__)
HOW = "Changed on purpose? Then run: nox -s api -- --update"


@facades
def test_public_surface_is_the_one_in_the_snapshot(facade: ModuleType) -> None:
    """No public name, parameter, default or base class changes by accident."""
    expected = SNAPSHOTS[facade].read_text(encoding="utf-8").splitlines()
    actual = render(facade).splitlines()
    gone = [line for line in expected if line not in actual]
    new = [line for line in actual if line not in expected]
    assert expected == actual, "\n".join([HOW, *(f"- {line}" for line in gone), *(f"+ {line}" for line in new)])


@facades
def test_public_names_say_that_they_come_from_the_facade(facade: ModuleType) -> None:
    """Tracebacks, reprs and pickles name the facade, not the private module behind it."""
    foreign = {
        name: member.__module__
        for name in facade.__all__
        if inspect.isclass(member := getattr(facade, name)) or inspect.isroutine(member)
        if member.__module__ != facade.__name__
    }
    assert foreign == {}


@facades
def test_list_of_public_names_has_no_doubles_and_no_private_names(facade: ModuleType) -> None:
    """`__all__` is the surface: each name once, none with an underscore but dunders."""
    names = list(facade.__all__)
    assert len(set(names)) == len(names)
    assert [name for name in names if name.startswith("_") and not name.endswith("__")] == []


def render(module: ModuleType) -> str:
    """Return the public surface of `module` as text, one line a name or member."""
    blocks = ["\n".join(describe(name, getattr(module, name))) for name in sorted(module.__all__)]
    return "\n\n".join(blocks) + "\n"


def describe(name: str, member: Any) -> Iterator[str]:
    """Yield the lines for one public name."""
    if inspect.isclass(member):
        yield f"class {name}({', '.join(base.__qualname__ for base in member.__bases__)})"
        yield from (f"    {name}.{line}" for line in sorted(class_members(member)))
    elif inspect.isroutine(member):
        yield f"{keyword(member)} {name}{signature(member)}"
    elif inspect.ismodule(member):
        yield f"module {name}"
    else:
        yield f"{name}: {type(member).__qualname__}"


def class_members(cls: type) -> Iterator[str]:
    """Yield how `cls` is made, and its public members with those of its private bases."""
    if issubclass(cls, enum.Enum):
        yield from (f"{item.name} = {item.value!r}" for item in cls)
    else:
        yield f"__init__{signature(cls)}"
    seen = set()
    for owner in cls.__mro__:
        # What is exported says that it comes from the package itself.
        private_base = owner.__module__.startswith("agentcore") and (
            owner.__name__[0] == "_" or "._" in owner.__module__
        )
        if owner is not cls and not private_base:
            continue
        for name, member in list(vars(owner).items()):
            if name[0] == "_" or name in seen or isinstance(member, cls):
                continue
            seen.add(name)
            annotation = owner.__annotations__.get(name) if "__annotations__" in vars(owner) else None
            yield describe_member(name, member, annotation)


def describe_member(name: str, member: Any, annotation: Any) -> str:
    """Return the line for one member of a class."""
    if isinstance(member, property):
        access = "property" if member.fset is None else "property, settable"
        returns = text(inspect.signature(member.fget).return_annotation)  # type: ignore[arg-type]
        return f"{name}: {returns} ({access})"
    kind = ""
    if isinstance(member, (classmethod, staticmethod)):
        kind = f"{type(member).__name__} "
        member = member.__func__
    if inspect.isroutine(member) and not inspect.isdatadescriptor(member):
        return f"{name}{signature(member)} ({kind}{keyword(member)})"
    shown = f"{name}: {text(annotation)}" if annotation else name
    return f"{shown} = {member!r}" if isinstance(member, (str, int)) else shown


def keyword(function: Any) -> str:
    """Return how a call of `function` is written."""
    return "async def" if inspect.iscoroutinefunction(function) else "def"


def signature(member: Any) -> str:
    """Return the parameters of `member`, written alike on every version of Python."""
    try:
        found = inspect.signature(member)
    except (TypeError, ValueError):  # A class that the interpreter makes, as exceptions are.
        return "(...)"
    parameters = [
        parameter.replace(annotation=Verbatim(text(parameter.annotation)))
        if parameter.annotation is not parameter.empty
        else parameter
        for parameter in found.parameters.values()
    ]
    returns = "" if found.return_annotation is found.empty else f" -> {text(found.return_annotation)}"
    listed = str(found.replace(parameters=parameters, return_annotation=found.empty))
    return re.sub(r" at 0x[0-9a-f]+", "", listed) + returns


class Verbatim:
    """An annotation that is shown as it was written, without quotes."""

    def __init__(self, written: str) -> None:
        self.written = written

    def __repr__(self) -> str:
        return self.written


def text(annotation: Any) -> str:
    """Return an annotation as it would be written in the source."""
    written = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    written = re.sub(r"\bUnpack\[(\w+)\]", r"*\1", written)  # as later versions write it
    # Without the modules' names: a deferred annotation is a string that lacks them.
    return re.sub(r"\b(?:[a-z_]\w*\.)+", "", written)


if __name__ == "__main__" and "--update" in sys.argv:
    for module, snapshot in SNAPSHOTS.items():
        snapshot.write_text(render(module), encoding="utf-8")
