"""Injecting faults: `inject` makes a plan happen inside a ``with`` block.

Faults act at the boundaries of calls and nowhere else: an exception thrown in at a checkpoint would be one that correct
code cannot meet.

An attribute that a block needs is replaced by one stand-in while any block needs it, counted under a lock. Wrappers around
wrappers would come off in the wrong order when blocks of several threads overlap. What the stand-in does is decided at
each call, from the context of who calls: outside of the blocks it is the function.
"""

# No `from __future__ import annotations` here: names in strings could not be found by who reads annotations at run time,
# once `__module__` of these classes reads agentcore.testing.

import contextlib
import copy
import difflib
import functools
import inspect
import math
import operator
import threading
import types
from collections.abc import Callable, Container, Generator, Iterable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, Final, Literal, TypeAlias, TypeVar, final

import anyio
import anyio.from_thread
import attrs

from agentcore.testing._fault_plans import TARGET, Fault, FaultPlan, make_exception

# pytest leaves the frames of this file out of the traceback: the reader's own test comes first.
__tracebackhide__ = True

F = TypeVar("F", bound=Callable[..., Any])


@final
@attrs.frozen(eq=False)
class Target:
    """What a name in a fault plan stands for: calls of an attribute.

    Args:
        owner: an object, a class or a module. A class means the calls of all its instances, apart from subclasses that
            have their own method in its place.
        attribute: the name of a function or method of it. A coroutine function takes every action; a synchronous one
            neither `delay` nor `hang`.
        matches: told the arguments of a call, with ``self`` (or ``cls``) first if `owner` is a class, returns whether
            this is one of the calls; all are by default. Must not wait.
        corrupt: what a `corrupt` without an argument makes of the call's result.
        passed: position of an argument, ``self`` not counted, that is a function: the calls are those that the attribute, a
            coroutine function, makes of it. None for the calls of the attribute itself.
    """

    owner: object
    attribute: str
    matches: Callable[..., bool] | None = None
    corrupt: Callable[[Any], Any] | None = None
    passed: int | None = None


default_scope: Final[ContextVar[Callable[[], anyio.CancelScope | None]]] = ContextVar(
    "agentcore_fault_scope", default=lambda: None
)
"""Gives the scope that `cancel` cancels in blocks that name none."""

# The blocks that the present task or thread is in, the innermost last.
_active: Final[ContextVar[tuple["Injection", ...]]] = ContextVar("agentcore_injections", default=())

# Guards what follows and every replacement. Entered again by the same thread if looking an attribute up runs user code.
_lock: Final = threading.RLock()
Resolver: TypeAlias = Callable[[str], Target | list[Target]]
_kinds: Final[dict[str, Resolver]] = {}


def register_targets(kind: str, resolve: Resolver) -> None:
    """Say what the names of a kind stand for: ``agent:planner`` is resolved by kind ``agent`` with ``planner``.

    Args:
        kind: letters, digits and ``_ . / -``.
        resolve: called in the context of `inject` with what follows the colon; raises LookupError for unknown names.
            Gives one place, or several that are counted together.

    Raises:
        ValueError: `kind` is not usable, or has another resolver.
    """
    if not TARGET.fullmatch(kind) or ":" in kind:
        raise ValueError(f"kind of targets must be a name of letters, digits and _ . / -: got {kind!r}")
    with _lock:
        if _kinds.setdefault(kind, resolve) != resolve:
            raise ValueError(
                f"kind of targets {kind!r} must have one resolver: got {resolve!r}, it has {_kinds[kind]!r}; "
                "take another name"
            )


def known_kinds() -> tuple[str, ...]:
    """Return the kinds that `register_targets` was told, in alphabetical order."""
    with _lock:
        return tuple(sorted(_kinds))


@final
class Injection:
    """A fault plan that is being injected: what has happened so far.

    Attributes:
        plan: the plan.
    """

    def __init__(self, plan: FaultPlan, scope: Callable[[], anyio.CancelScope | None]) -> None:
        self.plan = plan
        self._scope = scope
        self._thread = threading.get_ident()
        self._lock = threading.Lock()
        self._fired: list[Fault] = []
        self._calls: dict[str, int] = {}
        self._points: dict[_Dispatcher, list[_Point]] = {}
        self._open = True
        self._healed = False

    def __repr__(self) -> str:
        state = "closed" if not self._open else "healed" if self._healed else "open"
        return (
            f"<Injection of {str(self.plan)!r}, {state}, {len(self._fired)} fired, {sum(self._calls.values())} calls>"
        )

    @property
    def fired(self) -> tuple[Fault, ...]:
        """The faults that have acted, in order; one that acts onwards stands here once for each time."""
        with self._lock:
            return tuple(self._fired)

    @property
    def calls(self) -> Mapping[str, int]:
        """How often each target has been called, those without a fault too."""
        with self._lock:
            return types.MappingProxyType(dict(self._calls))

    @property
    def unused(self) -> tuple[Fault, ...]:
        """The faults that have not acted yet: their call was not made, or failed by itself, or another fault won."""
        fired = self.fired
        return tuple(fault for fault in self.plan if fault not in fired)

    def heal(self) -> None:
        """Let no fault act at calls that begin from now on. They are still counted.

        Calls under way go on as they are: one that hangs still hangs until it is cancelled.
        """
        self._healed = True

    def _next(self, name: str) -> Fault | None:
        with self._lock:
            self._calls[name] += 1
            return None if self._healed else self.plan.at(name, self._calls[name])

    def _act(self, fault: Fault) -> None:
        with self._lock:
            self._fired.append(fault)

    def _cancel(self, fault: Fault) -> None:
        scope = self._scope()
        assert scope is not None, "inject() refuses such a plan"
        cancel = functools.partial(scope.cancel, f"injected fault {fault}")
        # Scopes belong to the thread of their event loop; a synchronous target may be called in a worker thread.
        if threading.get_ident() == self._thread:
            cancel()
        else:
            anyio.from_thread.run_sync(cancel)


# Tells from the first argument of a call whether it is one of the target.
_Whose: TypeAlias = Callable[[Any], bool]


@final
@attrs.frozen(eq=False)
class _Point:
    """One target of one injection."""

    injection: Injection
    name: str
    target: Target
    whose: _Whose | None

    def concerns(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        if self.whose is not None:
            if not args or not self.whose(args[0]):
                return False
            if not isinstance(self.target.owner, type):  # a `self` that who wrote `matches` has bound already
                args = args[1:]
        return self.target.matches is None or bool(self.target.matches(*args, **kwargs))


# What a call consists of, with faults: make the call, sleep so many seconds, raise this, return that.
_Step: TypeAlias = tuple[Literal["call", "sleep", "raise", "return"], Any]


def _steps(points: list[_Point]) -> Generator[_Step, Any, None]:
    """Decide what to do at one call. Whoever does it sends the result of each "call"."""
    yield "return", (yield from _steps_from(points, 0))


def _steps_from(points: list[_Point], index: int) -> Generator[_Step, Any, Any]:
    # What is a call to one point are the steps of all points after it.
    if index == len(points):
        return (yield "call", None)
    point, rest = points[index], functools.partial(_steps_from, points, index + 1)
    fault = point.injection._next(point.name)
    if fault is None:
        return (yield from rest())
    result = (yield from rest()) if fault.action in ("raise_after", "corrupt", "duplicate") else None
    point.injection._act(fault)
    match fault.action:
        case "raise" | "raise_after":
            yield "raise", make_exception(fault)
        case "delay":
            yield "sleep", fault.argument
        case "hang":
            yield "sleep", math.inf
        case "cancel":
            point.injection._cancel(fault)
        case "corrupt":
            return _corrupted(fault, point.target, result)
        case "duplicate":
            pass
    return (yield from rest())


def _corrupted(fault: Fault, target: Target, result: Any) -> Any:
    if fault.argument is None and target.corrupt is not None:
        return target.corrupt(result)
    return copy.deepcopy(fault.argument)  # the caller may change what it gets


_NOTHING: Final = object()


@final
class _Dispatcher:
    """Stands in for one attribute of one holder, from the first block that needs it to the last."""

    def __init__(self, holder: Any, attribute: str, function: Callable[..., Any], wrap: Callable[..., Any]) -> None:
        self._holder = holder
        self._attribute = attribute
        self._before = _stored(holder, attribute)
        self.is_async = _is_async(function)
        self._stand_in = wrap(_stand_in(function, self))
        self._users = 0

    def enter(self) -> "_Dispatcher":
        """Join the blocks; returns the dispatcher that stands here already, if there is one."""
        found = _dispatchers.get((id(self._holder), self._attribute), self)
        if not found._users:
            found._write(found._stand_in)
            _dispatchers[id(self._holder), self._attribute] = found
        found._users += 1
        return found

    def leave(self) -> None:
        with _lock:
            self._users -= 1
            if not self._users:
                del _dispatchers[id(self._holder), self._attribute]
                # Unless somebody else has put something here meanwhile: that is theirs to take away.
                if _stored(self._holder, self._attribute) is self._stand_in:
                    self._write(self._before)

    def points(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[_Point]:
        """Return the targets that a call in this context is one of; those of the innermost block come first."""
        blocks = [injection for injection in reversed(_active.get()) if injection._open]
        return [point for block in blocks for point in block._points.get(self, ()) if point.concerns(args, kwargs)]

    def _write(self, value: Any) -> None:
        # Past the holder's own `__setattr__` and `__delattr__`, which frozen objects refuse.
        base: Any = type if isinstance(self._holder, type) else object
        if value is _NOTHING:
            base.__delattr__(self._holder, self._attribute)
        else:
            base.__setattr__(self._holder, self._attribute, value)


_dispatchers: Final[dict[tuple[int, str], _Dispatcher]] = {}


def _stored(holder: Any, attribute: str) -> Any:
    """Return what the holder itself has there, `_NOTHING` if it has it from a class or does not have it."""
    if isinstance(inspect.getattr_static(type(holder), attribute, None), types.MemberDescriptorType):
        return getattr(holder, attribute, _NOTHING)  # a slot
    return getattr(holder, "__dict__", {}).get(attribute, _NOTHING)


def _is_async(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def _stand_in(function: Callable[..., Any], dispatcher: _Dispatcher) -> Callable[..., Any]:
    async def async_stand_in(*args: Any, **kwargs: Any) -> Any:
        points = dispatcher.points(args, kwargs)
        for point in points:
            args = _with_faults(point, args)
        return await _play([point for point in points if point.target.passed is None], function, args, kwargs)

    def stand_in(*args: Any, **kwargs: Any) -> Any:
        steps = _steps(dispatcher.points(args, kwargs))
        step, value = next(steps)
        while step != "return":
            if step == "raise":
                raise value
            step, value = steps.send(function(*args, **kwargs))
        return value

    return functools.update_wrapper(async_stand_in if _is_async(function) else stand_in, function)


async def _play(
    points: list[_Point], function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    steps = _steps(points)
    step, value = next(steps)
    while step != "return":
        if step == "raise":
            raise value
        if step == "sleep":
            step, value = steps.send(await anyio.sleep(value))  # type: ignore[func-returns-value]
        else:
            result = function(*args, **kwargs)
            step, value = steps.send(await result if inspect.isawaitable(result) else result)
    return value


def _with_faults(point: _Point, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Put the faults of a point around the function that is passed, if they belong there."""
    passed = point.target.passed
    if passed is None:
        return args
    index = passed + (point.whose is not None or isinstance(point.target.owner, type))
    if index >= len(args) or not callable(args[index]):
        return args  # what is called complains by itself
    function = args[index]

    @functools.wraps(function, updated=())
    async def faulty(*args: Any, **kwargs: Any) -> Any:
        return await _play([point], function, args, kwargs)

    return (*args[:index], faulty, *args[index + 1 :])


def _locate(name: str, target: Target) -> tuple[_Dispatcher, _Whose | None]:
    """Find where the attribute is to be replaced, and whose calls there are those of the target (None: all are).

    What takes ``self`` is replaced in the class that defines it (or inherits it from one that is built in), even for a
    target that is one object: nothing is put on objects that they did not have, slots and frozen classes make no
    difference, and targets that share a function share a dispatcher. Everything else is replaced in the owner itself.
    """
    owner, attribute = target.owner, target.attribute
    cls = owner if isinstance(owner, type) else type(owner)
    home, raw = _find_in_class(cls, attribute)
    if not _can_hold(home, attribute):
        home = cls
    of_class = isinstance(raw, classmethod)
    takes_self = hasattr(type(raw), "__get__") and not isinstance(raw, staticmethod)
    whose: _Whose | None = None
    wrap: Callable[..., Any] = _as_it_is
    if isinstance(owner, type):
        holder = home if takes_self else owner
        function = raw.__func__ if isinstance(raw, classmethod | staticmethod) else raw
        wrap = classmethod if of_class else _as_it_is if takes_self else staticmethod
        if holder is not owner:
            belongs = issubclass if of_class else isinstance
            whose = lambda first: belongs(first, owner)  # noqa: E731
    elif takes_self and not of_class and _stored(owner, attribute) is _NOTHING and _can_hold(home, attribute):
        holder, function, whose = home, raw, functools.partial(operator.is_, owner)
    else:
        holder, function = owner, getattr(owner, attribute, None)
    _check(f"target {name!r}", f"{getattr(owner, '__name__', cls.__name__)}.{attribute}", function)
    if not _can_hold(holder, attribute):
        raise TypeError(
            f"target {name!r} must be an attribute that can be replaced: got {cls.__name__}.{attribute}, which is built "
            "in; name a function or method in Python that calls it"
        )
    return _Dispatcher(holder, attribute, function, wrap), whose


def _check(subject: str, told: str, function: Any) -> None:
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(
            f"{subject} must do something when it is called: got {told}, which only makes a generator then; "
            "name a function that what is in the generator calls"
        )
    if isinstance(function, type) or not callable(function):
        kind = "missing" if function is None else f"a {type(function).__name__}"
        raise (AttributeError if function is None else TypeError)(
            f"{subject} must be a function or method: got {told}, which is {kind}; name what is called"
        )


def _find_in_class(cls: type, attribute: str) -> tuple[Any, Any]:
    return next(((base, vars(base)[attribute]) for base in cls.__mro__ if attribute in vars(base)), (None, None))


def _can_hold(holder: Any, attribute: str) -> bool:
    if isinstance(holder, type):
        return not holder.__flags__ & 1 << 8  # Py_TPFLAGS_IMMUTABLETYPE, of types in C
    return hasattr(holder, "__dict__") or _stored(holder, attribute) is not _NOTHING


def _as_it_is(function: F) -> F:
    return function


Targets: TypeAlias = Mapping[str, Target | tuple[object, str]]


@contextlib.contextmanager
def inject(
    plan: FaultPlan | Fault | Iterable[Fault] | str,
    targets: Targets | None = None,
    *,
    scope: anyio.CancelScope | None = None,
) -> Generator[Injection]:
    """Make a plan happen inside the block, in this task or thread and in those that are started inside.

    What runs already when the block is entered, such as an agent that waits for messages, never meets a fault, and nobody
    does once the block is left. Blocks nest: the faults of the inner one come first, those of the outer one act on what it
    lets through. Calls of a synchronous function, and of one that returns an awaitable without being ``async def``, are
    over when it returns.

    Args:
        plan: a plan, a fault, several faults, or the text of a plan.
        targets: what the names stand for: a `Target`, or ``(owner, "attribute")``. Other names are resolved by the kind
            before their first colon. All that are given here are counted in `Injection.calls`, also without a fault.
        scope: what `cancel` cancels; that of the running simulation if omitted.

    Returns:
        A context manager that gives the `Injection`. Errors are raised on entering, before anything is replaced.

    Raises:
        LookupError: a target is neither given nor of a registered kind.
        TypeError: a target is nothing that is called or that can be replaced; an exception cannot be made from one message.
        ValueError: `plan` does not read as one; it has a `cancel` and there is no scope; it has a `delay` or a `hang` of a
            synchronous function.
    """
    plan = _as_plan(plan)
    injection = Injection(plan, default_scope.get() if scope is None else lambda: scope)
    _check_plan(injection)
    with _replaced(injection, _resolve(plan, targets or {})):
        _active.set((*_active.get(), injection))
        try:
            yield injection
        finally:
            injection._open = False
            # Not by a token: blocks need not be left in the order of entering, nor in the context of entering.
            _active.set(tuple(other for other in _active.get() if other is not injection))


def _as_plan(plan: FaultPlan | Fault | Iterable[Fault] | str) -> FaultPlan:
    if isinstance(plan, FaultPlan):
        return plan
    if isinstance(plan, str):
        return FaultPlan.parse(plan)
    return FaultPlan([plan] if isinstance(plan, Fault) else plan)


def _check_plan(injection: Injection) -> None:
    for fault in injection.plan:
        if fault.action == "cancel" and injection._scope() is None:
            raise ValueError(
                f"fault {str(fault)!r} must have a scope to cancel: got none; write inject(..., scope=...)"
            )
        if fault.action.startswith("raise"):
            make_exception(fault)  # tried here: raised by the call, the program under test could swallow it


def _resolve(plan: FaultPlan, targets: Targets) -> dict[str, list[Target]]:
    found = {name: _places(name, target) for name, target in targets.items()}
    for name in dict.fromkeys(fault.target for fault in plan):
        if name in found:
            continue
        kind, colon, rest = name.partition(":")
        if not colon or kind not in known_kinds():
            near = difflib.get_close_matches(name, found, n=1)
            raise LookupError(
                f"target of a fault must be given or of a registered kind: got {name!r}; "
                + (f"did you mean {near[0]!r}? " if near else "")
                + f"given are {', '.join(map(repr, found)) or 'none'}, kinds are {', '.join(known_kinds()) or 'none'}"
            )
        found[name] = _places(name, _kinds[kind](rest))
    return found


def _places(name: str, given: Target | tuple[object, str] | list[Target]) -> list[Target]:
    return [_as_target(name, place) for place in (given if isinstance(given, list) else [given])]


def can_wait(name: str, target: Target | tuple[object, str] | None) -> bool:
    """Tell whether all calls of a target are asynchronous; yes if that cannot be known yet.

    Args:
        name: the name of the target.
        target: what it stands for; None for a name of a kind, which may not be registered, or not be there before the test.
    """
    places: Any = target
    if target is None:
        kind, _, rest = name.partition(":")
        try:
            places = _kinds[kind](rest)
        except LookupError:
            return True
    return all(_locate(name, place)[0].is_async for place in _places(name, places))


def _as_target(name: str, value: Target | tuple[object, str]) -> Target:
    target = Target(*value) if isinstance(value, tuple) and len(value) == 2 else value
    if not isinstance(target, Target) or not isinstance(target.attribute, str):
        raise TypeError(
            f"target {name!r} must be a Target or a pair of an owner and an attribute's name: got {value!r}"
        )
    return target


def _check_waiting(plan: FaultPlan, synchronous: Container[str]) -> None:
    for fault in plan:
        if fault.action in ("delay", "hang") and fault.target in synchronous:
            raise ValueError(
                f"fault {str(fault)!r} must be one of a coroutine function: got a synchronous one, which cannot wait "
                "without blocking the event loop; delay or hang what calls it"
            )


@contextlib.contextmanager
def _replaced(injection: Injection, targets: Mapping[str, Sequence[Target]]) -> Generator[None]:
    """Have dispatchers in the place of all targets."""
    with contextlib.ExitStack() as stack:
        with _lock:
            places = [(name, target, *_locate(name, target)) for name, several in targets.items() for target in several]
            _check_waiting(injection.plan, {name for name, _, dispatcher, _ in places if not dispatcher.is_async})
            for name, target, dispatcher, whose in places:
                entered = dispatcher.enter()
                stack.callback(entered.leave)
                injection._calls[name] = 0
                injection._points.setdefault(entered, []).append(_Point(injection, name, target, whose))
        yield
