"""What Hypothesis draws: fault plans, orders, and the data that programs are made of.

An order is drawn as one integer. With a draw for each of its decisions Hypothesis finds races too, but takes a minute to
make one small; `explore` shrinks orders by itself, in less than a second.

This is also where the parts of agentcore that come later have their strategies: one function for each kind of data that
users make, named by its plural, which draws every field from its legal range, shrinks to the defaults and takes other
strategies by the names of the fields (`_values` does that), and a line for it in the facade. Faults in a new part need
nothing here: `fault_plans` draws for every target that a name or a mapping stands for.
"""

# No `from __future__ import annotations` here: names in strings could not be found by who reads annotations at run time,
# once `__module__` of these functions reads agentcore.testing.

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Final, TypeVar, get_args, get_type_hints

import attrs

from agentcore import (
    AgentCapability,
    AgentConfig,
    Backoff,
    BaseTask,
    CircuitBreakerConfig,
    RetryPolicy,
    RuntimeConfig,
    TaskPriority,
)

from ._fault_plans import Action, Fault, FaultPlan, InjectedFault
from ._faults import Target, Targets, can_wait
from ._schedule import Schedule, portfolio

try:
    # Both here, so that this is the one place to say what is missing.
    from hypothesis import stateful
    from hypothesis import strategies as st
except ModuleNotFoundError as error:
    if error.name != "hypothesis":
        raise
    raise ModuleNotFoundError(
        "strategies and SimMachine of agentcore.testing need Hypothesis: got no module named 'hypothesis'; "
        "install agentcore-runtime[testing]",
        name="hypothesis",
    ) from None

__all__ = ["agent_configs", "circuit_configs", "fault_plans", "runtime_configs", "schedules", "stateful", "tasks"]

T = TypeVar("T")
TaskT = TypeVar("TaskT", bound=BaseTask)

# ----------------------------------------------------------------------------------------------------- faults

_ACTIONS: Final[tuple[Action, ...]] = get_args(Action)
_WAITING: Final = ("delay", "hang")


def fault_plans(
    targets: Targets | Iterable[str],
    *,
    exceptions: Iterable[type[BaseException]] = (InjectedFault,),
    actions: Collection[Action] | None = None,
    max_faults: int = 3,
    max_calls: int = 4,
    delays: Iterable[float] = (1.0, 0.01, 10.0, 100.0, 1000.0),
) -> st.SearchStrategy[FaultPlan]:
    """Draw fault plans.

    They shrink to no fault at all, then to one that raises at the first call of the first target. A plan prints as what it
    is made from, ``FaultPlan.parse('store.put#1:raise(InjectedFault)')``.

    Args:
        targets: where faults can be: names, or the mapping that `inject` is given. Of synchronous targets none is drawn that
            `inject` would refuse; a name that is neither of a mapping nor of a registered kind is taken for asynchronous.
        exceptions: what `raise` and `raise_after` raise, the simplest first.
        actions: what can go wrong, everything if omitted. `cancel` needs a simulation around `inject`, or a scope.
        max_faults: how many faults a plan has at most.
        max_calls: up to which call of a target its faults begin.
        delays: the seconds of `delay`, the simplest first: below the timeouts of the program, and above.

    Returns:
        The strategy.

    Raises:
        AttributeError: a target is not there.
        TypeError: a target, an exception or a delay is something else.
        ValueError: nothing is left to draw from, or one of the values is not usable.
    """
    if isinstance(targets, str):
        raise TypeError(f"targets of fault plans must be a collection of names: got {targets!r}; write [{targets!r}]")
    if max_faults < 1 or max_calls < 1:
        raise ValueError(f"max_faults and max_calls must be 1 or more: got {max_faults!r} and {max_calls!r}")
    arguments = _arguments(actions, list(exceptions), list(delays))
    places = targets if isinstance(targets, Mapping) else dict.fromkeys(targets)
    kinds = [kind for name, place in places.items() for kind in _kinds_of_faults(name, place, arguments)]
    if not kinds:
        raise ValueError(
            "a fault plan must have something to draw from: got no target with an action that fits it; "
            f"targets are {', '.join(map(repr, places)) or 'none'}, actions are {', '.join(arguments) or 'none'}"
        )
    # First the kind, so that each has the same chance, however many arguments it has. Then always one more number: to
    # Hypothesis, what takes fewer decisions is simpler, and `hang` would be simpler than `raise`.
    numbers = st.integers(0, math.lcm(*map(len, kinds)) - 1)
    faults = st.builds(_fault, st.sampled_from(kinds), numbers, st.integers(1, max_calls), st.booleans())
    return st.builds(FaultPlan, st.lists(faults, max_size=max_faults, unique_by=_place))


def _arguments(
    actions: Collection[Action] | None, exceptions: list[type[BaseException]], delays: list[float]
) -> dict[Action, list[Any]]:
    """Return the arguments that each action is drawn with, the simplest action first."""
    if unknown := sorted(set(actions or ()) - set(_ACTIONS)):
        raise ValueError(f"actions of faults must be of {', '.join(_ACTIONS)}: got {', '.join(map(repr, unknown))}")
    known: dict[Action, list[Any]] = {"raise": exceptions, "raise_after": exceptions, "delay": delays}
    return {action: known.get(action, [None]) for action in _ACTIONS if actions is None or action in actions}


def _kinds_of_faults(
    name: str, place: Target | tuple[object, str] | None, arguments: Mapping[Action, Sequence[Any]]
) -> list[list[Fault]]:
    """Return the faults of a target, one list for each action that fits it, one fault for each argument."""
    fitting = [action for action in arguments if action not in _WAITING or can_wait(name, place)]
    return [
        [Fault(name, action=action, argument=argument) for argument in arguments[action]]
        for action in fitting
        if arguments[action]
    ]


def _fault(kind: list[Fault], number: int, call: int, onwards: bool) -> Fault:
    return attrs.evolve(kind[number % len(kind)], call=call, onwards=onwards)


def _place(fault: Fault) -> object:
    return fault.target, fault.call, fault.onwards


# ------------------------------------------------------------------------------------------------------ order


def schedules() -> st.SearchStrategy[Schedule]:
    """Draw the order of a run: a strategy and its seed.

    It shrinks to that of an event loop, or to each task until it waits. Of the others none is simpler than the next: what
    matters in a schedule is found by `explore`, which shrinks it switch by switch.
    """
    # One number for everything. `pct` asks how long the run is, which nobody knows here: from 16 to 512 decisions, in turn.
    return st.integers(0, 2**16 - 1).map(lambda number: portfolio(number, 0, 8 << number // 4 % 6))


# ------------------------------------------------------------------------------------------------------- data

_NAMES: Final = st.text(min_size=1, max_size=20)
# Two levels: a recursive strategy takes twice as long, which is most of the time that an example takes.
_LEAVES: Final = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20)
)
_KEYS: Final = st.text(max_size=10)
_JSON: Final = _LEAVES | st.lists(_LEAVES, max_size=3) | st.dictionaries(_KEYS, _LEAVES, max_size=3)
_RECORDS: Final = st.dictionaries(_KEYS, _JSON, max_size=3)
# Up to a day: virtual time has it at no cost.
_SECONDS: Final = 86_400


def tasks(of: type[TaskT] = BaseTask, /, **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[TaskT]:  # type: ignore[assignment]
    """Draw tasks that have not begun.

    Every argument of `BaseTask` is drawn from all that it can be, `input` and `metadata` from what JSON can say. Only `id`
    is left out, so that no two tasks share one; Hypothesis would soon draw the same again. They shrink to the defaults.

    Args:
        of: the class of the tasks. What a subclass adds and requires is drawn by its annotations, what it adds with a
            default is left at that.
        **fields: strategies for arguments by name, ``tasks(type=st.just("sum"))``, those of a subclass included.

    Returns:
        The strategy.

    Raises:
        TypeError: the class has no such argument.
    """
    drawn = {
        "type": _NAMES,
        "input": _RECORDS,
        # The values themselves are in no order of simplicity.
        "priority": st.sampled_from(sorted(TaskPriority, key=lambda priority: priority is not TaskPriority.NORMAL)),
        "metadata": st.none() | _RECORDS,
        "trace_id": st.none() | st.text(max_size=20),
        "parent_id": st.none() | st.text(max_size=20),
        "timeout_ms": st.none() | st.integers(0, _SECONDS * 1000),
    }
    return _values(of, drawn, fields)


def agent_configs(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[AgentConfig]:
    """Draw configurations of agents. They shrink to the defaults.

    Args:
        **fields: strategies for fields by name, ``agent_configs(timeout=st.just(1.0))``.

    Returns:
        The strategy.

    Raises:
        TypeError: there is no such field.
    """
    default = attrs.fields(AgentConfig)
    drawn = {
        "name": _NAMES,
        "agent_type": _NAMES,
        "capabilities": st.frozensets(st.sampled_from(AgentCapability) | _NAMES, max_size=3),
        "timeout": st.none() | st.floats(0, _SECONDS),
        "max_concurrency": st.just(default.max_concurrency.default) | st.none() | st.integers(1, 8),
        "terminate_timeout": st.just(default.terminate_timeout.default) | st.floats(0, _SECONDS),
        "metadata": _RECORDS,
        "max_waiting": st.just(default.max_waiting.default) | st.integers(0, 8),
    }
    return _values(AgentConfig, drawn, fields)


def runtime_configs(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[RuntimeConfig]:
    """Draw configurations of runtimes, most of them with little room. They shrink to the defaults.

    Args:
        **fields: strategies for fields by name, ``runtime_configs(in_flight=st.just(1))``.

    Returns:
        The strategy.

    Raises:
        TypeError: there is no such field.
    """
    default = attrs.fields(RuntimeConfig)
    waits = st.builds(Backoff, initial=st.floats(0, 1), maximum=st.floats(1, _SECONDS))
    drawn = {
        "in_flight": st.just(default.in_flight.default) | st.integers(1, 8),
        "queue": st.just(default.queue.default) | st.integers(1, 8),
        "ageing": st.just(default.ageing.default) | st.floats(0, _SECONDS) | st.just(math.inf),
        "retention": st.just(default.retention.default) | st.integers(1, 8),
        "grace": st.just(default.grace.default) | st.floats(0, _SECONDS),
        "retry": st.none() | st.builds(RetryPolicy, attempts=st.integers(1, 4), backoff=waits),
        "dead_letters": st.just(default.dead_letters.default) | st.integers(0, 8),
    }
    return _values(RuntimeConfig, drawn, fields)


def circuit_configs(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[CircuitBreakerConfig]:
    """Draw configurations of circuit breakers that are free of contradictions. They shrink to the defaults.

    Args:
        **fields: strategies for fields by name, ``circuit_configs(failure_threshold=st.just(1))``.

    Returns:
        The strategy.

    Raises:
        TypeError: there is no such field.
    """
    default = attrs.fields(CircuitBreakerConfig)
    milliseconds = st.floats(1, _SECONDS * 1000)
    rates = st.none() | st.floats(0.01, 1)
    drawn = {
        "failure_threshold": st.just(default.failure_threshold.default) | st.integers(1, 20),
        "success_threshold": st.just(default.success_threshold.default) | st.integers(1, 8),
        "reset_timeout_ms": st.just(default.reset_timeout_ms.default) | milliseconds,
        "excluded_exceptions": st.just(()) | st.just((KeyError, LookupError)),
        "window_calls": st.none() | st.integers(20, 1000),
        "window_ms": st.none() | milliseconds,
        "failure_rate": rates,
        "minimum_calls": st.just(default.minimum_calls.default) | st.integers(1, 20),
        "slow_call_ms": st.none() | milliseconds,
        "slow_call_rate": rates,
        "backoff": st.just(default.backoff.default) | st.floats(1, 10),
        "max_reset_timeout_ms": st.none() | st.just(_SECONDS * 1000),
        "jitter": st.just(default.jitter.default) | st.floats(0, 0.5),
        "probe_timeout_ms": st.none() | milliseconds,
        "min_blame_ms": st.just(default.min_blame_ms.default) | st.floats(0, 1000),
    }
    return _values(_circuit_config, drawn, fields, of=CircuitBreakerConfig)


def _circuit_config(**values: Any) -> CircuitBreakerConfig:
    """Leave out of what is drawn what would contradict the rest."""
    if values.get("window_calls") is not None:
        values["window_ms"] = None
    if values.get("window_calls") is None and values.get("window_ms") is None:
        values["failure_rate"] = values["slow_call_rate"] = None
    if values.get("slow_call_ms") is None:
        values["slow_call_rate"] = None
    return CircuitBreakerConfig(**values)


def _values(
    make: Callable[..., T],
    drawn: Mapping[str, st.SearchStrategy[Any]],
    given: Mapping[str, st.SearchStrategy[Any]],
    *,
    of: type[T] | None = None,
) -> st.SearchStrategy[T]:
    """Draw instances of an attrs class, with strategies of the caller's in place of some."""
    cls: Any = make if of is None else of
    fields = {str(field.alias): field for field in attrs.fields(cls) if field.init}
    if unknown := given.keys() - fields.keys():
        raise TypeError(
            f"a strategy must be for an argument of {cls.__name__}: got {', '.join(sorted(unknown))}; "
            f"it has {', '.join(fields)}"
        )
    chosen = {**drawn, **given}
    for name, field in fields.items():
        if name not in chosen and field.default is attrs.NOTHING:
            chosen[name] = st.from_type(_annotation(cls, field.name))
    return st.builds(make, **chosen)


def _annotation(cls: type, field: str) -> Any:
    """Return the annotation of a field, which may be written as a string. Hypothesis does not look into those of attrs."""
    try:
        return get_type_hints(cls)[field]
    except NameError as error:
        raise TypeError(
            f"annotation of {cls.__name__}.{field} must be known at run time: got {error}; give a strategy by its name"
        ) from error
