"""Sweeps of agents without a runtime."""

from __future__ import annotations

import threading
from typing import Any

import anyio
import pytest

from agentcore import (
    AgentConfig,
    AgentContext,
    AgentError,
    AgentExecutionError,
    AgentTerminatedError,
    AgentTimeoutError,
    BaseAgent,
)
from agentcore._directory import FunctionAgent
from tests.sweeps.scenarios import Agents, Boom, Worker, do, scenario, steps

EXECUTE = ("BaseAgent.execute", "BaseAgent.initialize", "BaseAgent.process")
HANDLE = (*EXECUTE, "BaseAgent.handle_error")
END = ("BaseAgent.terminate",)


def one(**settings: Any) -> Any:
    """Return what makes a state of one agent."""
    return lambda: Agents(Worker(**settings))


async def all_at_once(state: Agents, *words: str, **parameters: Any) -> None:
    """Have the first agent do several things at the same time."""
    async with anyio.create_task_group() as group:
        for word in words:
            group.start_soon(quietly, state, word)


async def quietly(state: Agents, word: str) -> None:
    """Have the first agent do something, which it may refuse."""
    try:
        await state.execute(word)
    except AgentError:
        return


@scenario(one(), *EXECUTE, strict=True, within=0.0)
async def execute_alone(state: Agents) -> None:
    state.expect((await state.execute()).success)
    state.expect((await state.execute()).success)


@scenario(one(max_concurrency=1), *EXECUTE, strict=True, within=0.0)
async def execute_contended(state: Agents) -> None:
    await all_at_once(state, "work", "work", "sleep")
    state.expect([True, True, True] == [result.success for result in state.results])


@scenario(one(max_concurrency=2, timeout=30.0), *HANDLE, within=30.0)
async def execute_contended_with_a_timeout(state: Agents) -> None:
    await all_at_once(state, "work", "fail", "sleep", "work")
    state.expect([False, True, True, True] == sorted(result.success for result in state.results))


@scenario(one(), *HANDLE, strict=True, within=0.0)
async def execute_what_fails(state: Agents) -> None:
    state.expect(not (await state.execute("fail")).success)
    state.expect((await state.execute()).success)


@scenario(one(timeout=0.5), *HANDLE, within=0.5)
async def execute_what_takes_too_long(state: Agents) -> None:
    result = await state.execute("sleep")
    state.expect(isinstance(result.cause, AgentTimeoutError))


@scenario(
    lambda: Agents(Worker(timeout=1.0, handle="hang"), broken=True),
    *HANDLE,
    within=2.0,
    allow=(AgentExecutionError,),
)
async def execute_and_handle_too_long(state: Agents) -> None:
    with state.raises(AgentExecutionError):
        await state.execute("fail")


def broken() -> Agents:
    return Agents(Worker(handle="fail"), broken=True)


@scenario(broken, *HANDLE, strict=True, within=0.0)
async def execute_what_cannot_be_handled(state: Agents) -> None:
    for _ in range(2):
        with state.raises(AgentExecutionError):
            await state.execute("fail")


@scenario(one(timeout=5.0), *HANDLE, within=6.0, allow=(AgentExecutionError,))
async def execute_what_is_hard_to_cancel(state: Agents) -> None:
    await state.execute("stubborn")


@scenario(one(initialize=("fail", "work")), *HANDLE, strict=True, within=0.0)
async def execute_after_a_failed_initialisation(state: Agents) -> None:
    state.expect([False, True] == [(await state.execute()).success for _ in range(2)])


@scenario(one(initialize=("fail", "sleep"), max_concurrency=None), *HANDLE, strict=True, within=0.0)
async def initialise_for_several(state: Agents) -> None:
    await all_at_once(state, "work", "work", "work")
    state.expect([False, True, True] == sorted(result.success for result in state.results))


@scenario(one(initialize=("hang",), timeout=1.0, max_concurrency=None), *HANDLE, within=3.0)
async def initialise_too_long(state: Agents) -> None:
    await all_at_once(state, "work", "work")
    state.expect([False, False] == [result.success for result in state.results])


@scenario(one(), *EXECUTE, *END, "BaseAgent.__aenter__", "BaseAgent.__aexit__", within=1.0)
async def enter_and_leave(state: Agents) -> None:
    async with state.agents[0]:
        await state.execute("sleep")


@scenario(
    one(terminate_timeout=2.0, timeout=60.0, max_concurrency=2),
    *END,
    "BaseAgent.__aenter__",
    "BaseAgent.__aexit__",
    within=8.0,
)
async def leave_while_it_executes(state: Agents) -> None:
    async with anyio.create_task_group() as group, state.agents[0]:
        for word in ("sleep", "long", "stubborn"):
            group.start_soon(quietly, state, word)
        await anyio.sleep(0.1)
    state.expect(state.agents[0].is_terminated)


@scenario(one(initialize=("fail",)), "BaseAgent.__aenter__", strict=True, within=0.0)
async def enter_what_cannot_be_initialised(state: Agents) -> None:
    with state.raises(AgentError):
        async with state.agents[0]:
            pytest.fail("it was entered")


@scenario(one(terminate_timeout=1.0, timeout=90.0), *END, within=3.0)
async def terminate_from_two_sides(state: Agents) -> None:
    async with anyio.create_task_group() as group:
        for word in ("long", "work"):
            group.start_soon(quietly, state, word)
        await anyio.sleep(0.1)
        group.start_soon(state.agents[0].terminate)
        group.start_soon(state.agents[0].terminate)
        with state.raises(AgentTerminatedError):
            await anyio.sleep(0.1)
            await state.execute()
    state.expect(state.agents[0].is_terminated)


@scenario(one(clean_up="hang", terminate_timeout=1.0), *END, within=1.0, allow=(AgentTimeoutError,))
async def terminate_too_long(state: Agents) -> None:
    await state.execute()
    with state.raises(AgentTimeoutError):
        await state.agents[0].terminate()


@scenario(one(clean_up="fail"), *END, within=0.0, allow=(Exception,))
async def terminate_and_fail(state: Agents) -> None:
    await state.execute()
    with state.raises(Exception):
        await state.agents[0].terminate()


@scenario(one(initialize=("long",), terminate_timeout=1.0, timeout=90.0), *END, within=3.0)
async def terminate_while_it_initialises(state: Agents) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(quietly, state, "work")
        await anyio.sleep(0.1)
        await state.agents[0].terminate()


@scenario(one(), *END, *EXECUTE, within=0.0)
async def terminate_itself(state: Agents) -> None:
    agent = state.agents[0]
    with state.raises(AgentTerminatedError):
        await state.execute("work", then=agent.terminate)
        await state.execute()


@scenario(lambda: Agents(Worker("outer"), Worker("inner")), *EXECUTE, strict=True, within=0.0)
async def execute_one_inside_of_another(state: Agents) -> None:
    async def inner() -> None:
        await state.execute("sleep", 1)

    async with anyio.create_task_group() as group:
        for _ in range(2):
            group.start_soon(execute_then, state, 0, inner)
        group.start_soon(inner)


async def execute_then(state: Agents, agent: int, inner: Any) -> None:
    await state.execute("work", agent, then=inner)


@scenario(lambda: Agents(Worker("one"), Worker("other")), *HANDLE, strict=True, within=0.0)
async def execute_in_a_circle(state: Agents) -> None:
    """Each executes the other: one of the two is told of a deadlock, and nothing hangs."""

    def into(agent: int) -> Any:
        async def inner() -> None:
            await steps(2)
            await state.execute("work", agent)

        return inner

    async with anyio.create_task_group() as group:
        group.start_soon(execute_then, state, 0, into(1))
        group.start_soon(execute_then, state, 1, into(0))


def functions() -> Agents:
    async def asynchronous(given: dict[str, Any], context: AgentContext) -> dict[str, Any]:
        if "then" in given:
            await given["then"]()
        await do(given.get("do", "work"))
        return given

    return Agents(FunctionAgent(asynchronous, AgentConfig("function", "function")))


FUNCTION = ("FunctionAgent.initialize", "FunctionAgent.process", "FunctionAgent.handle_error")


@scenario(functions, *FUNCTION, "BaseAgent.execute", strict=True, within=0.0)
async def execute_a_function(state: Agents) -> None:
    await all_at_once(state, "work", "fail", "sleep")
    state.expect([False, True, True] == sorted(result.success for result in state.results))


class Threaded(Agents):
    """A function in a thread."""

    def __init__(self) -> None:
        self.inside = self.calls = 0
        self._lock = threading.Lock()
        super().__init__(FunctionAgent(self._work, AgentConfig("thread", "function")))

    def _work(self, given: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            self.inside += 1
            self.calls += 1
        try:
            if given.get("do") == "fail":
                raise Boom("as told")
            return given
        finally:
            with self._lock:
                self.inside -= 1

    async def check(self) -> None:
        assert self.inside == 0
        agent: BaseAgent = self.agents[0]
        assert agent.is_idle
        result = await agent.execute(AgentContext(parameters={"n": 1}))
        assert {"n": 1} == result.output
        assert (0, 0) == (agent.metrics.running, agent.metrics.waiting)


@scenario(Threaded, *FUNCTION, "BaseAgent.execute", within=0.0, allow=(Boom,))
async def execute_a_function_in_a_thread(state: Threaded) -> None:
    await all_at_once(state, "work", "fail")
    state.expect(state.calls == 2)
