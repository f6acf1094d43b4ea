"""Faults as data: what goes wrong, at which call of what, in text that parses back.

A `Fault` is one line, ``store.charge#1:raise_after(InjectedFault)``; a `FaultPlan` is several, joined with ``;``.
"""

# No `from __future__ import annotations` here: names in strings could not be found by who reads annotations at run time,
# once `__module__` of these classes reads agentcore.testing.

import ast
import builtins
import functools
import importlib
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, Literal, Self, final, get_args

import attrs

from agentcore import errors

Action = Literal["raise", "raise_after", "delay", "hang", "cancel", "corrupt", "duplicate"]

TARGET: Final = re.compile(r"[\w.:/-]+")
_FAULT: Final = re.compile(r"([\w.:/-]+)#([0-9]+)(\+?):(\w+)(?:\((.*)\))?", re.DOTALL)
# The literal of a `corrupt` is the one place where a semicolon can be that joins no faults: inside of a string.
_PARTS: Final = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|.""", re.DOTALL)
_EXCEPTION: Final = re.compile(r"[\w.]+:[\w.]+")
# By name, so that neither backend is imported for it.
_NOT_RAISED: Final = {("asyncio.exceptions", "CancelledError"), ("trio", "Cancelled"), ("builtins", "GeneratorExit")}


class InjectedFault(Exception):  # noqa: N818 - the name stands in every printed plan
    """What ``raise`` and ``raise_after`` raise unless they name something else."""


# What goes by its bare name in a plan.
_WELL_KNOWN: Final[Mapping[str, type[BaseException]]] = {
    name: value
    for name, value in {**vars(errors), **vars(builtins), "InjectedFault": InjectedFault}.items()
    if isinstance(value, type) and issubclass(value, BaseException)
}


def _name_exception(cls: type[BaseException]) -> str:
    """Return the name under which `_find_exception` finds a class again."""
    if _WELL_KNOWN.get(cls.__name__) is cls:
        return cls.__name__
    name = f"{cls.__module__}:{cls.__qualname__}"
    if not _EXCEPTION.fullmatch(name) or _find_exception(name) is not cls:
        raise ValueError(
            f"exception of a fault must be found by its name: got {name!r}, which is local or hidden by another of its name; "
            "define it in the body of a module that can be imported"
        )
    return name


def _find_exception(name: str) -> Any:
    """Return what a name stands for; that it is an exception is for the fault to check."""
    module, colon, path = name.partition(":")
    try:
        return (
            functools.reduce(getattr, path.split("."), importlib.import_module(module)) if colon else _WELL_KNOWN[name]
        )
    except Exception as error:
        raise ValueError(
            f"exception of a fault must be found by its name: got {name!r}, which gave {error!r}; builtins, InjectedFault "
            "and the errors of agentcore go by their bare name, all others read 'module:Class'"
        ) from error


def _argument_text(argument: Any) -> str:
    return _name_exception(argument) if isinstance(argument, type) else repr(argument)


@final
@attrs.frozen
class Fault:
    """One thing that goes wrong.

    It prints as ``target#call:action(argument)``, with a ``+`` after `call` if `onwards`, and `parse` reads that back.
    Faults are equal if they print the same.

    ============= ======================================= =====================================================
    action        argument                                what happens at the call
    ============= ======================================= =====================================================
    `raise`       a class of exceptions: `InjectedFault`  it is raised, and no call made
    `raise_after` the same                                the call is made, then it is raised: done, but not acknowledged
    `delay`       seconds                                 the call is made after this time
    `hang`        –                                       no call is made and nothing returns, until it is cancelled
    `cancel`      –                                       a scope is cancelled, then the call made: it meets the
                                                          cancellation at its first checkpoint
    `corrupt`     a literal                               the call is made, and the literal returned
    `duplicate`   –                                       the call is made twice; the second result is returned
    ============= ======================================= =====================================================

    A ``corrupt`` without an argument returns what `Target.corrupt` makes of the result, or None. An exception of the call
    itself always goes its way: ``raise_after``, ``corrupt`` and ``duplicate`` act on success.

    Args:
        target: what is called: letters, digits and ``_ . : / -``. What the name stands for is up to `inject`.
        call: at which call, counted from 1.
        action: what happens.
        argument: as in the table. An exception is found by its name again: it must not be a local class.
        onwards: at every later call too.

    Raises:
        TypeError: an argument is of another type.
        ValueError: an argument of this type has a value that is not usable.
    """

    target: str
    call: int = 1
    action: Action = "raise"
    argument: Any = attrs.field(default=None, eq=_argument_text)
    onwards: bool = False

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.target, str) or not TARGET.fullmatch(self.target):
            raise (ValueError if isinstance(self.target, str) else TypeError)(
                f"target of a fault must be a name of letters, digits and _ . : / -: got {self.target!r}"
            )
        if isinstance(self.call, bool) or not isinstance(self.call, int) or not isinstance(self.onwards, bool):
            raise TypeError(
                f"call of a fault must be an integer and onwards True or False: got {self.call!r} and {self.onwards!r}"
            )
        if self.call < 1:
            raise ValueError(f"call of a fault must be 1 or more: got {self.call}; the first call is 1")
        if self.action not in get_args(Action):
            raise ValueError(f"action of a fault must be one of {', '.join(get_args(Action))}: got {self.action!r}")
        object.__setattr__(self, "argument", _usable_argument(self.action, self.argument))

    def __str__(self) -> str:
        text = f"{self.target}#{self.call}{'+' if self.onwards else ''}:{self.action}"
        return text if self.argument is None else f"{text}({_argument_text(self.argument)})"

    def __repr__(self) -> str:
        return f"Fault.parse({str(self)!r})"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a fault from its text, the inverse of ``str``. Imports the module of an exception that it names.

        Raises:
            TypeError: the text names something that is no exception, or has an argument that its action does not take.
            ValueError: the text has another form, or a part of it is not usable.
        """
        match = _FAULT.fullmatch(text.strip())
        if match is None:
            raise ValueError(
                "a fault must read 'target#call:action' or 'target#call:action(argument)', with a + after the call "
                f"for later calls too: got {text!r}; write for example 'api.fetch#1+:delay(0.5)'"
            )
        target, call, onwards, action, argument = match.groups()
        value = None if argument is None else _parse_argument(action, argument)
        return cls(target, int(call), action, value, bool(onwards))  # type: ignore[arg-type] # checked


def _as_tuple(faults: Iterable[Fault]) -> tuple[Fault, ...]:
    return tuple(faults)


@final
@attrs.frozen
class FaultPlan:
    """Faults of one run. Prints as its faults, joined with ``;``. Falsy if there are none.

    At each call, the fault of exactly this call acts. If there is none, that ``onwards`` fault acts which starts last
    among those that have started: in ``api#1+:delay(1);api#3:raise;api#5+:hang`` calls 1, 2 and 4 are late.

    Args:
        faults: the faults, in any order.

    Raises:
        TypeError: something in `faults` is no fault.
        ValueError: two faults have the same target, the same call and the same `onwards`.
    """

    faults: tuple[Fault, ...] = attrs.field(default=(), converter=_as_tuple)

    def __attrs_post_init__(self) -> None:
        taken: dict[tuple[str, int, bool], Fault] = {}
        for fault in self.faults:
            if not isinstance(fault, Fault):
                raise TypeError(f"a fault plan must consist of faults: got {fault!r}; FaultPlan.parse reads text")
            other = taken.setdefault((fault.target, fault.call, fault.onwards), fault)
            if other is not fault:
                raise ValueError(
                    f"a fault plan must have one fault at most for a call of a target: got {str(other)!r} and "
                    f"{str(fault)!r}; leave one out or move it to another call"
                )

    def __str__(self) -> str:
        return ";".join(map(str, self.faults))

    def __repr__(self) -> str:
        return f"FaultPlan.parse({str(self)!r})"

    def __iter__(self) -> Iterator[Fault]:
        return iter(self.faults)

    def __len__(self) -> int:
        return len(self.faults)

    def __or__(self, other: "FaultPlan | Fault") -> "FaultPlan":
        if not isinstance(other, FaultPlan | Fault):
            return NotImplemented
        return FaultPlan((*self.faults, *([other] if isinstance(other, Fault) else other.faults)))

    def without(self, fault: Fault) -> "FaultPlan":
        """Return the plan without one of its faults.

        Raises:
            ValueError: the plan does not have the fault.
        """
        if fault not in self.faults:
            raise ValueError(f"fault {str(fault)!r} must be one of the plan to be left out: got {str(self)!r}")
        return FaultPlan(one for one in self.faults if one != fault)

    def at(self, target: str, call: int) -> Fault | None:
        """Return the fault that acts at a call of a target, counted from 1; None if none does."""
        latest = None
        for fault in self.faults:
            if fault.target != target:
                continue
            if not fault.onwards:
                if fault.call == call:
                    return fault
            elif fault.call <= call and (latest is None or fault.call > latest.call):
                latest = fault
        return latest

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a plan from its text, the inverse of ``str``. The empty text is the empty plan.

        Raises:
            TypeError: as `Fault.parse`.
            ValueError: as `Fault.parse`; or two of the faults collide.
        """
        if not text.strip():
            return cls()
        pieces = [""]
        for part in _PARTS.findall(text):
            if part == ";":
                pieces.append("")
            else:
                pieces[-1] += part
        return cls(Fault.parse(piece) for piece in pieces)


def _usable_argument(action: Action, value: Any) -> Any:
    """Return a fault's argument in its one form, so that what is equal prints the same."""
    match action:
        case "raise" | "raise_after":
            return InjectedFault if value is None else _usable_exception(action, value)
        case "delay":
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(f"argument of 'delay' must be seconds: got {value!r}; write for example delay(0.5)")
            if not 0 <= value < math.inf:
                raise ValueError(f"argument of 'delay' must be finite and not negative: got {value!r}; try 'hang'")
            return float(value) + 0.0  # minus zero would be equal to zero and print otherwise
        case "corrupt":
            return _usable_literal(value)
        case "hang" | "cancel" | "duplicate":
            if value is not None:
                raise TypeError(f"argument of {action!r} must be left out: got {value!r}")
            return None


def _usable_exception(action: Action, value: Any) -> type[BaseException]:
    if not isinstance(value, type) or not issubclass(value, BaseException):
        raise TypeError(f"argument of {action!r} must be a class of exceptions: got {value!r}; give the class itself")
    if any((base.__module__, base.__qualname__) in _NOT_RAISED for base in value.__mro__):
        raise ValueError(
            f"argument of {action!r} must be what calls raise by themselves: got {value.__qualname__}, which comes from "
            "scopes that are cancelled or coroutines that are closed; cancellation is injected with 'cancel'"
        )
    _name_exception(value)  # or refuse it
    return value


def _usable_literal(value: Any) -> Any:
    try:
        tree = ast.parse(repr(value), mode="eval")
        if any(isinstance(node, ast.Set | ast.Call) for node in ast.walk(tree)):
            raise ValueError("the order of a set differs from run to run")
        # A copy: what was given can be changed by who has given it.
        literal = ast.literal_eval(tree)
        if repr(literal) != repr(value):
            raise ValueError(f"it reads back as {literal!r}")
    except (TypeError, ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(
            f"argument of 'corrupt' must be a literal without sets that reads back from its text: got {value!r} ({error}); "
            "let the target's own `corrupt` make other values"
        ) from error
    return literal


def _parse_argument(action: str, text: str) -> Any:
    if action in ("raise", "raise_after"):
        return _find_exception(text)
    try:
        return ast.literal_eval(text)
    except (TypeError, ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(
            f"argument of {action!r} must be a literal of Python: got {text!r} ({error}); put strings into quotes"
        ) from error


def make_exception(fault: Fault) -> BaseException:
    try:
        exception: BaseException = fault.argument(f"injected fault {fault}")
    except Exception as error:
        raise TypeError(
            f"exception of fault {str(fault)!r} must be made from one message: got {error!r}; "
            "name a subclass of it whose constructor takes just that"
        ) from error
    return exception
