"""What faults can hit in agentcore itself, by name. Each part that is added to agentcore adds its own kind here.

| name | the calls |
|---|---|
| `agent:planner` | `process` of every agent whose configuration is called `planner` |
| `agent:planner.initialize` | its `initialize`; also `.terminate`, `.handle_error` and `.live` |
| `handler:summarise` | the function that handles tasks of type `summarise` |
| `thread:parse` | the hand-off of a function called `parse` to a worker thread |
| `registry:tools` | `get` of the registry called `tools` |
| `breaker:api` | what the circuit breaker called `api` calls, by `execute` or as a decorator |
| `resource:db` | the opening of the resource called `db` |
| `pool:pages` | the jobs of the worker pool called `pages` that somebody waits for: `asubmit`, `amap`, `as_completed` |
"""

from collections.abc import Callable, Iterator
from typing import Any, Final

from agentcore import BaseAgent, BaseWorkerPool, CircuitBreaker, Registry, _interop
from agentcore._directory import FunctionAgent
from agentcore._resources import Resources

from ._faults import Target, register_targets

_AGENT_METHODS: Final = ("process", "initialize", "terminate", "handle_error", "live")


def _agents(name: str) -> list[Target]:
    agent, dot, method = name.rpartition(".")
    if not dot or method not in _AGENT_METHODS:
        agent, method = name, "process"
    # Agents override these methods, so each class that does is a place of its own. Those made later are not reached.
    classes = {cls for cls in _subclasses(BaseAgent) if method in vars(cls)}
    return [Target(cls, method, matches=_called(agent, cls, method)) for cls in sorted(classes, key=_order)]


def _subclasses(cls: type) -> Iterator[type]:
    yield cls
    children: list[type] = cls.__subclasses__()
    for child in children:
        yield from _subclasses(child)


def _order(cls: type) -> tuple[str, str]:
    return cls.__module__, cls.__qualname__


def _called(name: str, owner: type, method: str) -> Callable[..., bool]:
    def matches(self: Any, *_args: Any, **_kwargs: Any) -> bool:
        # The outermost method only: one that calls `super()` is still one call.
        return self.name == name and next(cls for cls in type(self).__mro__ if method in vars(cls)) is owner

    return matches


def _handlers(name: str) -> Target:
    return Target(FunctionAgent, "process", matches=lambda self, *_args: self.name == name)


def _threads(name: str) -> Target:
    def matches(function: Callable[..., Any], *_args: Any) -> bool:
        return name in {getattr(function, "__name__", None), getattr(function, "__qualname__", None)}

    return Target(_interop, "run_in_thread", matches=matches)


def _registries(name: str) -> Target:
    return Target(Registry, "get", matches=lambda self, *_args, **_kwargs: self.name == name)


def _breakers(name: str) -> Target:
    return Target(CircuitBreaker, "execute", matches=lambda self, *_args, **_kwargs: self.name == name, passed=0)


def _resources(name: str) -> Target:
    return Target(Resources, "enter", matches=lambda _resources, _manager, called, *_args: called == name)


def _pools(name: str) -> list[Target]:
    # One place for each kind of workers. The abstract method is none: an override of it need not call it.
    classes = {cls for cls in _subclasses(BaseWorkerPool) if "_perform" in vars(cls)} - {BaseWorkerPool}
    return [Target(cls, "_perform", matches=_called(name, cls, "_perform")) for cls in sorted(classes, key=_order)]


register_targets("agent", _agents)
register_targets("handler", _handlers)
register_targets("thread", _threads)
register_targets("registry", _registries)
register_targets("breaker", _breakers)
register_targets("resource", _resources)
register_targets("pool", _pools)
