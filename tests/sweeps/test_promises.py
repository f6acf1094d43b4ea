"""What the docstrings say of single coroutines: whether each gives way, and how soon it ends when it is cancelled."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import anyio
import anyio.lowlevel
import pytest

from agentcore import (
    AgentConfig,
    AgentContext,
    AgentResult,
    AgentRuntime,
    BaseAgent,
    BaseTask,
    ClassRegistry,
    Registry,
    TaskHandle,
)
from agentcore._directory import FunctionAgent
from agentcore.testing import (
    BACKENDS,
    assert_cancellable,
    assert_checkpoints,
    assert_no_checkpoints,
    current_simulation,
    run_sim,
)
from agentcore.testing._simulation import Backend

backends = pytest.mark.parametrize("backend", BACKENDS)
Call: TypeAlias = Callable[[], Awaitable[Any]]


class Ready(BaseAgent):
    """An agent that never waits by itself."""

    async def initialize(self) -> bool:
        return True

    async def process(self, context: AgentContext) -> AgentResult:
        if context.parameters.get("fail"):
            raise ValueError("as told")
        return AgentResult.success_result({})

    async def handle_error(self, error: Exception, context: AgentContext) -> AgentResult:
        return AgentResult.error_result({})


def ready(**settings: Any) -> Ready:
    return Ready(AgentConfig("ready", "ready", **settings))


async def echo(given: dict[str, Any]) -> dict[str, Any]:
    """Return at once."""
    return given


async def hang(given: dict[str, Any]) -> None:
    """Never end."""
    await anyio.sleep_forever()


# The agent, the runtime with `echo` and `hang`, and a handle of a task that has ended: what one call works on.
Given: TypeAlias = tuple[Ready, AgentRuntime, TaskHandle]
Use: TypeAlias = Callable[[Ready, AgentRuntime, TaskHandle], Awaitable[Any]]


NEVER: dict[str, Use] = {
    "execute": lambda agent, runtime, handle: agent.execute(AgentContext()),
    "execute what fails": lambda agent, runtime, handle: agent.execute(AgentContext(parameters={"fail": True})),
    "execute with a timeout": lambda agent, runtime, handle: ready(timeout=1.0).execute(AgentContext()),
    "execute a function": lambda agent, runtime, handle: FunctionAgent(echo, AgentConfig("f", "f")).execute(
        AgentContext()
    ),
    "run": lambda agent, runtime, handle: runtime.run("echo"),
    "run with a timeout": lambda agent, runtime, handle: runtime.run("echo", timeout=1, deadline=1),
    "with_timeout": lambda agent, runtime, handle: BaseTask.create("t").with_timeout(echo({}), 1_000),
    "with_timeout without any": lambda agent, runtime, handle: BaseTask.create("t").with_timeout(echo({})),
    "get": lambda agent, runtime, handle: Registry[int]("numbers").get("one"),
    "create_instance": lambda agent, runtime, handle: classes().create_instance("ready", AgentConfig("r", "r")),
}
ALWAYS: dict[str, Use] = {
    "submit": lambda agent, runtime, handle: runtime.submit("echo"),
    "result": lambda agent, runtime, handle: handle.result(),
    "wait": lambda agent, runtime, handle: handle.wait(),
    "drain": lambda agent, runtime, handle: runtime.drain(),
    "drain for no time": lambda agent, runtime, handle: runtime.drain(0),
    "shutdown": lambda agent, runtime, handle: runtime.shutdown(),
}


def classes() -> ClassRegistry:
    registry = ClassRegistry("agents")
    registry.register("ready", Ready)
    return registry


async def with_all(use: Callable[[Call], Awaitable[None]], call: Use) -> None:
    """Make what calls work on, and use one call of it."""
    async with AgentRuntime() as runtime:
        runtime.handler("echo")(echo)
        runtime.handler("hang")(hang)
        handle = await runtime.submit("echo")
        await handle.wait()
        await use(lambda: call(ready(), runtime, handle))


@backends
@pytest.mark.parametrize("name", NEVER)
def test_no_checkpoint_of_its_own(name: str, backend: Backend) -> None:
    """What runs code of the caller inline gives way when that code does, and not otherwise."""

    async def use(call: Call) -> None:
        with assert_no_checkpoints():
            await call()

    run_sim(with_all, use, NEVER[name], backend=backend).unwrap()


@backends
@pytest.mark.parametrize("name", ALWAYS)
def test_always_a_checkpoint(name: str, backend: Backend) -> None:
    """What waits gives way also if there is nothing to wait for."""

    async def use(call: Call) -> None:
        with assert_checkpoints():
            await call()

    run_sim(with_all, use, ALWAYS[name], backend=backend).unwrap()


@backends
@pytest.mark.parametrize("name", ALWAYS)
def test_a_cancelled_scope_is_noticed(name: str, backend: Backend) -> None:
    """In a scope that is cancelled already, what always gives way ends there."""

    async def use(call: Call) -> None:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await call()
        assert scope.cancelled_caught

    run_sim(with_all, use, ALWAYS[name], backend=backend).unwrap()


async def waiting(call: Use) -> None:
    """Make a call that waits, in a runtime and with an agent that are busy; the exit is not waited for."""
    async with AgentRuntime(grace=0) as runtime:
        runtime.handler("echo")(echo)
        runtime.handler("hang")(hang)
        handle = await runtime.submit("hang")
        await current_simulation().settle()
        await call(ready(), runtime, handle)


WAITS: dict[str, Use] = {
    "run": lambda agent, runtime, handle: waited(runtime.run("hang")),
    "wait": lambda agent, runtime, handle: waited(handle.wait()),
    "result": lambda agent, runtime, handle: waited(handle.result()),
    "drain": lambda agent, runtime, handle: runtime.drain(10),
    "shutdown": lambda agent, runtime, handle: runtime.shutdown(10),
    "submit": lambda agent, runtime, handle: waited(submit_for_ever(runtime)),
}


async def waited(work: Awaitable[object]) -> None:
    """Wait for what never comes, for ten seconds."""
    with anyio.move_on_after(10):
        await work


async def submit_for_ever(runtime: AgentRuntime) -> None:
    """Submit again and again."""
    while True:
        await (await runtime.submit("echo")).result()
        await anyio.sleep(1)


@backends
@pytest.mark.parametrize("name", WAITS)
def test_ends_at_once_when_cancelled(name: str, backend: Backend) -> None:
    """Wherever it is cancelled it ends without any further wait, and nobody swallows it."""
    report = assert_cancellable(waiting, WAITS[name], backends=(backend,))
    assert report.points[backend, "block"]
