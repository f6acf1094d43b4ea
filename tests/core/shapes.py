"""Rows that describe the shape of a public name, and the comparison with what is there."""

from __future__ import annotations

import enum
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from inspect import Parameter
from types import UnionType
from typing import Any, Final

import agentcore

ANY_DEFAULT: Final = object()
"""Stands for what the specification leaves open: whichever default, or none."""

Spec = str | tuple[str, object]
"""`"x"` required, `("x", 1)` with its default, `"/"`, `"*args"` and `"**kwargs"`."""


@dataclass(frozen=True)
class Base:
    """`path` is a class below every one of `bases`: a name of ours, or a class."""

    path: str
    bases: tuple[Any, ...]


@dataclass(frozen=True)
class Members:
    """`path` is an enum with exactly these members, in this order."""

    path: str
    names: tuple[str, ...]
    kind: type[enum.Enum] = enum.Enum


@dataclass(frozen=True)
class Call:
    """`path` is called with these parameters (without `self` or `cls`)."""

    path: str
    parameters: tuple[Spec, ...] = ()
    is_async: bool = False
    abstract: bool = False
    on_class: bool = False
    """Needs no instance: a class method or a static method."""


@dataclass(frozen=True)
class Keywords:
    """`path`, called with `first`, takes each of `values` by keyword and keeps it."""

    path: str
    first: tuple[Any, ...]
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Property:
    """`path` is a property without a setter that gives one of `types`."""

    path: str
    types: type | UnionType


@dataclass(frozen=True)
class Field:
    """Every fresh instance of the class has this attribute, of one of `types`."""

    path: str
    types: type | UnionType


Row = Base | Members | Call | Keywords | Property | Field


def fields(path: str, **types: type | UnionType) -> tuple[Field, ...]:
    """Make a `Field` row of each keyword."""
    return tuple(Field(f"{path}.{name}", allowed) for name, allowed in types.items())


def properties(path: str, **types: type | UnionType) -> tuple[Property, ...]:
    """Make a `Property` row of each keyword."""
    return tuple(Property(f"{path}.{name}", allowed) for name, allowed in types.items())


def find(path: str) -> Any:
    """Return what the facade has under a dotted path."""
    found: Any = agentcore
    for part in path.split("."):
        found = getattr(found, part)
    return found


def static(path: str) -> Any:
    """Return what `path` is before descriptors act: a property, a class method ..."""
    owner, _, name = path.rpartition(".")
    return inspect.getattr_static(find(owner) if owner else agentcore, name)


def parameters(row: Call) -> list[Parameter]:
    """Return the parameters that a caller of the row's path can pass."""
    found = list(inspect.signature(find(row.path)).parameters.values())
    plain_method = inspect.isfunction(static(row.path)) and "." in row.path
    return found[1:] if plain_method else found


def expected(specs: tuple[Spec, ...]) -> list[Parameter]:
    """Return the parameters that a row writes in short."""
    kind = Parameter.POSITIONAL_ONLY if "/" in specs else Parameter.POSITIONAL_OR_KEYWORD
    made: list[Parameter] = []
    for spec in specs:
        name, default = (spec, Parameter.empty) if isinstance(spec, str) else spec
        if name == "/":
            kind = Parameter.POSITIONAL_OR_KEYWORD
        elif name.startswith("**"):
            made.append(Parameter(name[2:], Parameter.VAR_KEYWORD))
        elif name.startswith("*"):
            made.append(Parameter(name[1:], Parameter.VAR_POSITIONAL))
            kind = Parameter.KEYWORD_ONLY
        else:
            made.append(Parameter(name, kind, default=default))
    return made


def differences(specified: list[Parameter], actual: list[Parameter]) -> list[str]:
    """Say in words where a signature falls short of the specified one."""
    have = {parameter.name: parameter for parameter in actual}
    wanted = {parameter.name for parameter in specified}
    common = [want for want in specified if want.name in have]
    found = [f"{want.name} is missing" for want in specified if want.name not in have]
    found += [
        f"{want.name} is {have[want.name].kind.description}" for want in common if want.kind is not have[want.name].kind
    ]
    found += [
        f"{want.name} defaults to {have[want.name].default!r}"
        for want in common
        if want.default is not ANY_DEFAULT and want.default != have[want.name].default
    ]
    order = [parameter.name for parameter in actual if parameter.name in wanted]
    if order != [want.name for want in common]:
        found.append(f"the order is {order}")
    return found + _unwelcome(specified, actual)


def _unwelcome(specified: list[Parameter], actual: list[Parameter]) -> list[str]:
    """Say which further parameters would break or shift a specified call."""
    wanted = {parameter.name for parameter in specified}
    places = sum(parameter.kind < Parameter.VAR_POSITIONAL for parameter in specified)
    found: list[str] = []
    for place, extra in enumerate(actual):
        if extra.name in wanted:
            continue
        if extra.kind is Parameter.VAR_KEYWORD:
            continue  # the keywords that it does take have a row of their own
        if extra.default is Parameter.empty:
            found.append(f"{extra.name} is required or variable")
        elif extra.kind < Parameter.VAR_POSITIONAL and place < places:
            found.append(f"{extra.name} stands between the specified ones")
    return found
