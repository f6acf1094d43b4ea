"""Who does what: finds the handler or the agent for a type of task.

Functions stand in the registry ``task_handlers``, agents in ``agents``: a class or a factory without arguments gives one
agent for each task, an instance serves all of them.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Final, Literal, TypeVar, final

import attrs

from agentcore import _interop
from agentcore._agent_records import AgentCapability, AgentConfig, AgentContext, AgentResult, to_capabilities
from agentcore._agent_refs import Post
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
        retry: whether tasks are executed again, unless they say so themselves; None for what the runtime says.
        post: the place of one that is supervised, which gives it when it is there; None for others.
        anew: looks for the way once more; None where there is but one.
    """

    take: Callable[[], BaseAgent]
    owned: bool
    retry: RetryPolicy | Literal[False] | None = None
    post: Post | None = None
    anew: Callable[[], Route] | None = None

    def now(self) -> Route:
        """Return the way for a task whose turn it is: who was there when it came may be gone, and others may have less to do.

        Raises:
            TaskRoutingError: nobody is there any more.
        """
        if self.anew is None or (self.post is not None and self.post.state != "stopped"):
            return self
        return self.anew().now()


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
        given = context.input
        if given.__class__ is dict:
            given = given.copy()  # what it takes out of it the next execution finds there all the same
        arguments = (given, context) if self._takes_context else (given,)
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
        # The agents that are supervised, in the order of their start; the runtime's supervisors say which.
        self.posts: Callable[[], Iterable[Post]] = tuple
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
        self,
        task_type: str,
        *,
        timeout: float | None,
        max_concurrency: int | None,
        retry: RetryPolicy | Literal[False] | None = None,
    ) -> Callable[[F], F]:
        """Return a decorator that registers a function as the handler of a type of task."""
        check_retry(f"the handler of task type {task_type!r}", retry, or_false=True)
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

    def route(self, task_type: str, requires: Collection[AgentCapability | str] = ()) -> Route:
        """Return the way to what serves a type of task.

        Its handler; else the agent ``<type>`` or ``<type>_agent``, one that is spawned before one that is registered; else, of
        the agents that can do all that is required, the one that is least busy, and of those the one chosen least often.
        Which one that is is decided by `Route.now`.

        Args:
            task_type: what tasks.
            requires: what an agent must be able to do to be chosen for that.

        Raises:
            TaskRoutingError: nothing does, or what is registered cannot.
            ConfigurationError: `requires` is no collection of capabilities.
        """
        function = self.handlers.get_sync(task_type)
        if function is not None:
            return self._function_route(task_type, function)
        for name in (task_type, f"{task_type}_agent"):
            for post in self.posts():
                if post.name == name and post.state != "stopped":
                    return _post_route(post, partial(self.route, task_type, requires))
            item = self.agents.get_sync(name)
            if item is not None:
                return self._agent_route(name, task_type, item)
        needed = to_capabilities(requires) if requires else frozenset()
        if needed and self._able(needed):
            return Route(_undecided, owned=False, anew=partial(self._able_route, task_type, needed))
        raise self._no_route(task_type, needed)

    def _able_route(self, task_type: str, needed: frozenset[AgentCapability | str]) -> Route:
        """Return the way to the least busy agent that is able to do something; one that is there before all others.

        Raises:
            TaskRoutingError: nobody is.
        """
        able = self._able(needed)
        if not able:
            raise self._no_route(task_type, needed)
        _, chosen, route = min(able, key=lambda one: (one[0], one[1]._turns))
        chosen._turns += 1
        return route

    def _able(self, needed: frozenset[AgentCapability | str]) -> list[tuple[float, Post | BaseAgent, Route]]:
        """Return who is able to do something: how busy it is, itself, and the way to it."""
        able: list[tuple[float, Post | BaseAgent, Route]] = []
        for post in self.posts():
            if post.state != "stopped" and needed <= post.config.capabilities:
                load = math.inf if post.agent is None else _load(post.agent) + post.waiting
                able.append((load, post, _post_route(post)))
        able += [
            (_load(agent), agent, _instance_route(agent))
            for agent in self.shared_agents()
            if needed <= agent.config.capabilities and not agent.is_terminated
        ]
        return able

    def _no_route(self, task_type: str, needed: frozenset[AgentCapability | str]) -> TaskRoutingError:
        posts = [post for post in self.posts() if post.state != "stopped"]
        names = [*self.agents.list_names(), *(post.name for post in posts)]
        known = sorted({*self.handlers.list_names(), *(name.removesuffix("_agent") for name in names)})
        configs = [*(post.config for post in posts), *(agent.config for agent in self.shared_agents())]
        abilities = {config.name: sorted(map(str, config.capabilities)) for config in configs if config.capabilities}
        message = f"nothing is registered for tasks of this type: got {task_type!r}; "
        message += f"known are {', '.join(map(repr, known))}" if known else "nothing is registered at all"
        if needed:
            told = "; ".join(f"{name!r} can {', '.join(able)}" for name, able in sorted(abilities.items()))
            message += (
                f"; nobody can do all of {', '.join(sorted(map(str, needed)))}: {told or 'no agent says what it can'}"
            )
        return TaskRoutingError(
            f"{message}; add it with @runtime.handler({task_type!r}) or "
            f"registry('agents').register('{task_type}_agent', ...)",
            {
                "type": task_type,
                "known": known,
                **({"requires": sorted(needed), "capabilities": abilities} if needed else {}),
            },
        )

    def shared_agents(self) -> list[BaseAgent]:
        """Return the agents that are registered as such, those of the process included."""
        items = (self.agents.get_sync(name) for name in self.agents.list_names())
        return [item for item in items if isinstance(item, BaseAgent)]

    def own_agents(self) -> list[BaseAgent]:
        """Return the shared agents of this runtime alone, in the order of registration."""
        # One that is registered in the process as well has other users.
        others = {id(item) for item in get_registry(AGENTS)._own_items()}
        return [item for item in self.agents._own_items() if isinstance(item, BaseAgent) and id(item) not in others]

    def _function_route(self, task_type: str, function: Callable[..., Any]) -> Route:
        metadata = self.handlers.get_metadata(task_type) or {}
        config, retry = metadata.get("config"), _retry_in(metadata)
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
        route = Route(lambda: agent, owned=False, retry=retry)
        self._functions[task_type] = ((function, config, retry), route)
        return route

    def _agent_route(self, name: str, task_type: str, item: object) -> Route:
        metadata = self.agents.get_metadata(name) or {}
        if isinstance(item, BaseAgent):
            return _instance_route(item, _retry_in(metadata))
        if not callable(item):
            raise TaskRoutingError(
                f"item {name!r} of registry {AGENTS!r} must be a class of agents, a factory or an agent: got {item!r}; "
                "register another one",
                {"type": task_type, "known": [name]},
            )
        return Route(lambda: _make(name, task_type, item, metadata), owned=True, retry=_retry_in(metadata))


def _retry_in(metadata: Mapping[str, Any]) -> RetryPolicy | Literal[False] | None:
    """Return the policy that something was registered with, False for none at all."""
    retry = metadata.get("retry")
    return retry if isinstance(retry, RetryPolicy) or retry is False else None


def _instance_route(agent: BaseAgent, retry: RetryPolicy | Literal[False] | None = None) -> Route:
    return Route(lambda: agent, owned=False, retry=retry)


def _undecided() -> BaseAgent:
    raise AssertionError("the agent is given by its post, or is still to be chosen")


def _post_route(post: Post, anew: Callable[[], Route] | None = None) -> Route:
    return Route(_undecided, owned=False, post=post, anew=anew)


def _load(agent: BaseAgent) -> int:
    """Return how much an agent has to do."""
    return agent._life.running + len(agent._slots)


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
