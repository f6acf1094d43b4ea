"""Asks: an agent executes in the task of whoever asks it, or in that of a stream."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, final

from agentcore._agent_records import AgentContext, AgentResult, Call
from agentcore._agent_refs import AgentRef
from agentcore._agents import BaseAgent
from agentcore._context import current_job, current_runtime
from agentcore._directory import Directory
from agentcore._scheduler import Scheduler
from agentcore.abc import TaskRunner
from agentcore.errors import ConfigurationError


def own_context(given: AgentContext | Mapping[str, Any] | None) -> AgentContext:
    """Return a context for one execution alone: others may use the given one at the same time.

    Raises:
        ConfigurationError: it is no context, and nothing that one can be made of.
    """
    if given.__class__ is AgentContext:  # in full, for this is the hot path
        return AgentContext(given.task, given.memory, given.parameters, given.metadata)
    if isinstance(given, AgentContext):
        own = copy.copy(given)
        own._limit = own._call = own._emit = own._idle = None
        return own
    if given is None or isinstance(given, Mapping):
        return AgentContext(parameters=dict(given or {}))
    raise ConfigurationError(
        f"an ask or a message takes an AgentContext or a dictionary of parameters: got {given!r}; write AgentContext(parameters=...)",
        {"name": "context", "value": given},
    )


@final
class Asks:
    """Executes agents for one runtime, without a task.

    Args:
        runner: what the contexts of agents reach the runtime by.
        agents: finds those that are asked by name.
        tasks: notes what is under way.
    """

    def __init__(self, runner: TaskRunner, agents: Directory, tasks: Scheduler) -> None:
        self._runner = runner
        self._agents = agents
        self._tasks = tasks

    async def execute(self, ref: BaseAgent | AgentRef | str, context: AgentContext) -> AgentResult:
        """Execute an agent here; see `AgentRuntime.ask`. The context is nobody else's."""
        route, post = None, None
        agent: BaseAgent | None = None
        if BaseAgent in type(ref).__mro__:  # isinstance() of an abstract class takes five times as long
            agent = ref  # type: ignore[assignment]
        elif isinstance(ref, AgentRef):
            post = ref._post
        else:
            route = self._agents.route(_checked(ref))
            post = route.post
            agent = route.take() if post is None else None
        call = context._call = Call()
        context._runner = self._runner
        if (job := current_job.get()) is not None:
            context._job, context._attempt = job, job.attempt
        calls = self._tasks.calls
        calls.under_way.add(call)
        # Where the event loop hosts several runtimes, this is the only way to tell which one it is.
        token = current_runtime.set(self._runner) if current_runtime.get() is not self._runner else None
        try:
            if post is not None:
                agent = await post.enter(context)
            return await agent.execute(context)  # type: ignore[union-attr]  # by now there is one
        finally:
            try:
                if post is not None:
                    post.leave(context)
                if route is not None and route.owned and agent is not None:
                    await self._tasks.dismiss(agent)  # noqa: ASYNC102 - `terminate` shields and limits itself
            finally:
                calls.leave(call)
                if token is not None:
                    current_runtime.reset(token)


def _checked(ref: object) -> str:
    if not isinstance(ref, str):
        raise ConfigurationError(
            f"an ask goes to an agent or to a registered name: got {ref!r}; pass an instance of BaseAgent",
            {"name": "ref", "value": ref},
        )
    return ref
