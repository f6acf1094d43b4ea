"""Who does what: finds the handler or the agent for a type of task.

Functions stand in the registry ``task_handlers``, agents in ``agents``: a class or a factory without arguments gives one
agent for each task, an instance serves all of them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from typing import Any, Final, TypeVar, final

import attrs

from agentcore import _interop
from agentcore._agent_records import AgentCapability, AgentConfig, AgentContext, AgentResult
from agentcore._agents import BaseAgent
from agentcore._registry import Registry, get_registry
from agentcore._retry import RetryPolicy, check_retry
from agentcore.errors import RegistryError, TaskRoutingError, text_of

F = TypeVar("F", bound=Callable[..., Any])

AGENTS: Final = "agents"
HANDLERS: Final = "task_handlers"


@final
@attrs.frozen
class Route:
    """The way to an agent.

    Attributes:
        take: gives the agent.
        owned: whether it is there for one task only, and is to be terminated afterwards.
        retry: whether tasks are executed again, unless they say so themselves.
    """

    take: Callable[[], BaseAgent]
    owned: bool
    retry: RetryPolicy | None = None


@final
class FunctionAgent(BaseAgent):
    """An agent around a plain function: its argument is the task's input, its result the task's output.

    A synchronous function runs in a worker thread. A function with a second parameter gets the context in it.

    Args:
        function: the function.
        config: how the agent behaves.
    """

    def __init__(self, function: Callable[..., Any], config: AgentConfig) -> None:
        super().__init__(config)
        self._function = function
        self._is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
            getattr(function, "__call__", None)  # noqa: B004 - not whether it can be called, but what it gives
        )
        self._takes_context = _takes_two(function)

    async def initialize(self) -> bool:
        """Return True: a function needs nothing."""
        return True

    async def process(self, context: AgentContext) -> AgentResult:
        """Call the function."""
        arguments = (context.input, context) if self._takes_context else (context.input,)
        if self._is_async:
            value = await self._function(*arguments)
        else:
            value = await _interop.run_in_thread(self._function, *arguments)
            if inspect.iscoroutine(value):  # a lambda around a coroutine function, for instance
                value = await value
        if isinstance(value, AgentResult):
            return value
        return AgentResult.success_result(value if isinstance(value, dict) else {"result": value})

    async def handle_error(self, error: Exception, context: AgentContext) -> AgentResult:  # noqa: ARG002
        """Return a result with the type of the error and its message."""
        return AgentResult.error_result(describe(error))


def describe(error: BaseException) -> dict[str, Any]:
    """Return what a task keeps of an exception."""
    return {"error_type": type(error).__name__, "message": text_of(error)}


class Directory:
    """The agents and handlers of one runtime, on top of those of the process.

    Attributes:
        agents: the registry of agents; registering here is seen by this runtime alone.
        handlers: the registry of functions, likewise.
    """

    def __init__(self) -> None:
        self._overlays: dict[str, Registry[Any]] = {}
        self.agents: Registry[Any] = self.registry(AGENTS)
        self.handlers: Registry[Any] = self.registry(HANDLERS)
        # The ways to the agents around functions, each with what it was made for: a name may be registered anew.
        self._functions: dict[str, tuple[object, Route]] = {}

    def __repr__(self) -> str:
        return f"<Directory of {self.agents.size()} agents and {self.handlers.size()} handlers>"

    def registry(self, name: str) -> Registry[Any]:
        """Return a registry of this runtime, in which the process-wide one of the same name is seen too.

        Raises:
            ConfigurationError: the name is not usable.
        """
        if name not in self._overlays:
            self._overlays[name] = Registry(name, beneath=get_registry(name))
        return self._overlays[name]

    def handler(
        self, task_type: str, *, timeout: float | None, max_concurrency: int | None, retry: RetryPolicy | None = None
    ) -> Callable[[F], F]:
        """Return a decorator that registers a function as the handler of a type of task."""
        check_retry(f"the handler of task type {task_type!r}", retry)
        # Made here to have wrong values told at once.
        config = AgentConfig(task_type, "function", timeout=timeout, max_concurrency=max_concurrency)

        def register(function: F) -> F:
            if not callable(function) or isinstance(function, type):
                raise RegistryError(
                    f"the handler of task type {task_type!r} must be a function: got {function!r}; "
                    "register classes of agents in registry('agents')",
                    {"registry": HANDLERS, "name": task_type, "item": repr(function)},
                )
            metadata = {"config": config} if retry is None else {"config": config, "retry": retry}
            self.handlers.register(task_type, function, **metadata)
            return function

        return register

    def route(self, task_type: str, requires: Collection[AgentCapability | str] = ()) -> Route:  # noqa: ARG002
        """Return the way to what serves a type of task: its handler, else the agent ``<type>`` or ``<type>_agent``.

        Raises:
            TaskRoutingError: nothing does, or what is registered cannot.
        """
        function = self.handlers.get_sync(task_type)
        if function is not None:
            return self._function_route(task_type, function)
        for name in (task_type, f"{task_type}_agent"):
            item = self.agents.get_sync(name)
            if item is not None:
                return self._agent_route(name, task_type, item)
        known = sorted(
            {*self.handlers.list_names(), *(name.removesuffix("_agent") for name in self.agents.list_names())}
        )
        raise TaskRoutingError(
            f"nothing is registered for tasks of this type: got {task_type!r}; "
            + (f"known are {', '.join(map(repr, known))}" if known else "nothing is registered at all")
            + f"; add it with @runtime.handler({task_type!r}) or registry('agents').register('{task_type}_agent', ...)",
            {"type": task_type, "known": known},
        )

    def own_agents(self) -> list[BaseAgent]:
        """Return the shared agents of this runtime alone, in the order of registration."""
        # One that is registered in the process as well has other users.
        others = {id(item) for item in get_registry(AGENTS)._own_items()}
        return [item for item in self.agents._own_items() if isinstance(item, BaseAgent) and id(item) not in others]

    def _function_route(self, task_type: str, function: Callable[..., Any]) -> Route:
        metadata = self.handlers.get_metadata(task_type) or {}
        config, retry = metadata.get("config"), metadata.get("retry")
        made_for, route = self._functions.get(task_type, (None, None))
        if route is not None and made_for == (function, config, retry):
            return route
        if not callable(function):
            raise TaskRoutingError(
                f"the handler of task type {task_type!r} must be a function: got {function!r}; register another one",
                {"type": task_type, "known": []},
            )
        default = AgentConfig(task_type, "function", max_concurrency=None)
        agent = FunctionAgent(function, config if isinstance(config, AgentConfig) else default)
        route = Route(lambda: agent, owned=False, retry=retry if isinstance(retry, RetryPolicy) else None)
        self._functions[task_type] = ((function, config, retry), route)
        return route

    def _agent_route(self, name: str, task_type: str, item: object) -> Route:
        if isinstance(item, BaseAgent):
            return Route(lambda: item, owned=False)
        if not callable(item):
            raise TaskRoutingError(
                f"item {name!r} of registry {AGENTS!r} must be a class of agents, a factory or an agent: got {item!r}; "
                "register another one",
                {"type": task_type, "known": [name]},
            )
        metadata = self.agents.get_metadata(name) or {}
        return Route(lambda: _make(name, task_type, item, metadata), owned=True)


def _make(name: str, task_type: str, maker: Callable[..., Any], metadata: Mapping[str, Any]) -> BaseAgent:
    """Make an agent. A class that wants a configuration gets the registered one, or one with its names."""
    if isinstance(maker, type) and _wants_config(maker):
        agent = maker(metadata.get("config") or AgentConfig(name, task_type))
    else:
        agent = maker()
    if not isinstance(agent, BaseAgent):
        if inspect.iscoroutine(agent):
            agent.close()
        raise TaskRoutingError(
            f"factory {name!r} of registry {AGENTS!r} must return an agent: got {agent!r}; return a BaseAgent",
            {"type": task_type, "known": [name]},
        )
    return agent


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """Return the parameters that positional arguments can fill; none for callables that do not tell."""
    with suppress(TypeError, ValueError):
        return [
            parameter
            for parameter in inspect.signature(function).parameters.values()
            if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        ]
    return []


def _takes_two(function: Callable[..., Any]) -> bool:
    parameters = _parameters(function)
    # A second parameter with a default is the function's own affair, unless it says what it is by its name.
    return len(parameters) > 1 and (parameters[1].default is parameters[1].empty or parameters[1].name == "context")


def _wants_config(cls: type) -> bool:
    parameters = _parameters(cls)
    return bool(parameters) and (parameters[0].default is parameters[0].empty or parameters[0].name == "config")
