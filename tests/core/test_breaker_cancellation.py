"""What the many ways to be cancelled say of the service that was called."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest

from agentcore import (
    AgentConfig,
    AgentContext,
    AgentResult,
    AgentRuntime,
    BaseAgent,
    CircuitBreaker,
    CircuitOpenError,
    TaskCanceledError,
)
from agentcore.testing import current_simulation, run_sim, simulate
from tests.core.circuits import Down, hang, make, open_up, succeed
from tests.core.verdicts import Act, cancelled_by_caller, check, late_for_a_deadline, verdict

pytestmark = pytest.mark.anyio

# ---------------------------------------------------------------- cancelled


async def cancelled_with_a_trap(breaker: CircuitBreaker) -> None:
    """Be cancelled for a reason that speaks of deadlines."""
    async with anyio.create_task_group() as group:
        group.start_soon(breaker.execute, hang)
        await anyio.sleep(30)
        group.cancel_scope.cancel("the deadline exceeded by the others")


async def late_for_a_failing_deadline(breaker: CircuitBreaker) -> None:
    with anyio.fail_after(30):
        await breaker.execute(hang)


async def late_in_a_block(breaker: CircuitBreaker) -> None:
    with anyio.move_on_after(30):
        async with breaker:
            await hang()


async def late_through_nested_groups(breaker: CircuitBreaker) -> None:
    async def nested() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(breaker.execute, within_a_group, hang)

    with anyio.move_on_after(30):
        async with anyio.create_task_group() as group:
            group.start_soon(nested)


async def within_a_group(function: Callable[[], Awaitable[Any]]) -> None:
    """Do something in a task of one's own, next to another one."""
    async with anyio.create_task_group() as group:
        group.start_soon(function)
        group.start_soon(anyio.sleep_forever)


async def late_for_the_outer_deadline(breaker: CircuitBreaker) -> None:
    with anyio.move_on_after(30), anyio.move_on_after(40), anyio.CancelScope():
        await breaker.execute(within_a_group, partial(within_a_group, hang))


async def failed_sibling(breaker: CircuitBreaker) -> None:
    async def fail_soon() -> None:
        await anyio.sleep(30)
        raise Down

    async with anyio.create_task_group() as group:
        group.start_soon(breaker.execute, hang)
        group.start_soon(fail_soon)


async def failed_host(breaker: CircuitBreaker) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(breaker.execute, within_a_group, hang)
        await anyio.sleep(30)
        raise Down


async def cancelled_before(breaker: CircuitBreaker) -> None:
    """Be cancelled before the deadline, which passes while it ends."""

    async def slow_to_end() -> None:
        try:
            await hang()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(10)

    with anyio.move_on_after(35):
        async with anyio.create_task_group() as group:
            group.start_soon(breaker.execute, slow_to_end)
            await anyio.sleep(30)
            group.cancel_scope.cancel()


async def gave_up_in_time(breaker: CircuitBreaker) -> None:
    """Have a deadline of one's own inside of the call, and make the best of it."""

    async def careful() -> str:
        with anyio.move_on_after(1):
            await hang()
        return "degraded"

    await breaker.execute(careful)


async def gave_up_with_an_error(breaker: CircuitBreaker) -> None:
    async def careful() -> None:
        with anyio.fail_after(1):
            await hang()

    await breaker.execute(careful)


@pytest.mark.parametrize(
    ("expected", "act"),
    [
        ("canceled", cancelled_by_caller),
        ("canceled", cancelled_with_a_trap),
        ("canceled", cancelled_before),
        ("canceled", failed_sibling),
        ("canceled", failed_host),
        ("timeout", late_for_a_deadline),
        ("timeout", late_for_a_failing_deadline),
        ("timeout", late_in_a_block),
        ("timeout", late_through_nested_groups),
        ("timeout", late_for_the_outer_deadline),
        ("timeout", gave_up_with_an_error),
        ("success", gave_up_in_time),
    ],
)
@simulate(runs=10)
async def test_cancellation_is_judged_by_its_cause(expected: str, act: Act) -> None:
    """It says nothing, unless it is a deadline that the call has outrun."""
    await check(expected, act)
    neutral = {"timeout": "canceled" if act is not gave_up_with_an_error else "excluded"}
    await check(neutral.get(expected, expected), act, excluded_exceptions=(TimeoutError,))


@pytest.mark.parametrize(
    ("expected", "age", "least"),
    [
        ("canceled", 0.5, 1_000.0),
        ("timeout", 1.5, 1_000.0),
        ("canceled", 0.009, 10.0),
        ("timeout", 0.011, 10.0),
        ("timeout", 0.001, 0.0),
    ],
)
@simulate(runs=3)
async def test_a_deadline_blames_only_calls_that_are_old_enough(expected: str, age: float, least: float) -> None:
    """Whoever came when there was hardly any time left blames nobody."""

    async def act(breaker: CircuitBreaker) -> None:
        with anyio.move_on_after(5):
            await anyio.sleep(5 - age)
            await breaker.execute(hang)

    await check(expected, act, min_blame_ms=least)


@simulate(runs=1)
async def test_a_deadline_that_had_passed_before() -> None:
    """The call is cut at its first checkpoint, and has done nothing wrong."""

    async def act(breaker: CircuitBreaker) -> None:
        with anyio.move_on_after(0):
            await breaker.execute(hang)

    await check("canceled", act)


@simulate(runs=10)
async def test_a_timeout_is_told_as_one() -> None:
    breaker = make()
    await late_for_a_deadline(breaker)
    assert {"timeout": 1} == dict(breaker.metrics.failures_by_type)
    with pytest.raises(CircuitOpenError, match="it opened because of a deadline of the caller passed"):
        await breaker.execute(succeed)


@pytest.mark.parametrize("cause", ["cancel", "deadline"])
@simulate(runs=20)
async def test_an_error_while_it_is_cancelled(cause: str) -> None:
    """A failing clean-up, alone or in a group, is a failure: it is what comes out."""

    async def clumsy() -> None:
        try:
            await hang()
        finally:
            raise Down("cannot clean up")

    async def act(breaker: CircuitBreaker, function: Callable[..., Awaitable[Any]], *args: Any) -> None:
        with anyio.CancelScope() as scope:
            if cause == "deadline":
                scope.deadline = anyio.current_time() + 30
            async with anyio.create_task_group() as group:
                group.start_soon(breaker.execute, function, *args)
                await anyio.sleep(20)
                if cause == "cancel":
                    scope.cancel()

    await check("failure", lambda breaker: act(breaker, clumsy))
    await check("failure", lambda breaker: act(breaker, within_a_group, clumsy))
    if cause == "cancel":  # of a deadline that has passed as well a group tells on trio only
        await check("excluded", lambda breaker: act(breaker, within_a_group, clumsy), excluded_exceptions=(Down,))


def test_groups_mixed_with_cancellations_on_trio() -> None:
    """There a group may hold cancellations next to errors; they count for what they are."""
    import trio  # noqa: PLC0415 - this test alone is about it

    async def nursery(breaker: CircuitBreaker, errors: bool, deadline: bool) -> None:
        async def clumsy() -> None:
            try:
                await trio.sleep_forever()
            finally:
                if errors:
                    raise KeyError("k")

        async def probe() -> None:
            async with trio.open_nursery() as group:
                group.start_soon(clumsy)
                group.start_soon(trio.sleep_forever)

        with trio.CancelScope() as scope:
            if deadline:
                scope.deadline = trio.current_time() + 30
            async with trio.open_nursery() as group:
                group.start_soon(breaker.execute, probe)
                await trio.sleep(20)
                if not deadline:
                    scope.cancel()

    async def main() -> None:
        rules = {"excluded_exceptions": (KeyError,)}
        for errors, deadline, expected in (
            (False, False, "canceled"),
            (False, True, "timeout"),
            (True, False, "excluded"),
            (True, True, "timeout"),
        ):
            await check(expected, partial(nursery, errors=errors, deadline=deadline), **rules)

    run_sim(main, backend="trio").unwrap()


# ---------------------------------------------------------------- cancelled in other ways


def test_asyncio_s_own_ways_to_cancel() -> None:
    """They give no reason, so they say nothing."""

    async def native(breaker: CircuitBreaker) -> None:
        task = asyncio.create_task(breaker.execute(hang))
        await asyncio.sleep(30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def wait_for(breaker: CircuitBreaker) -> None:
        await asyncio.wait_for(breaker.execute(hang), 30)

    async def timeout(breaker: CircuitBreaker) -> None:
        async with asyncio.timeout(30):
            await breaker.execute(within_a_group, hang)

    async def task_group(breaker: CircuitBreaker) -> None:
        async def fail_soon() -> None:
            await asyncio.sleep(30)
            raise Down

        async with asyncio.TaskGroup() as group:
            group.create_task(breaker.execute(hang))
            group.create_task(fail_soon())

    async def with_a_message(breaker: CircuitBreaker) -> None:
        task = asyncio.create_task(breaker.execute(hang))
        await asyncio.sleep(30)
        task.cancel(("deadline", 3))  # a message may be anything
        with pytest.raises(asyncio.CancelledError):
            await task

    async def main() -> None:
        for act in (native, wait_for, timeout, task_group, with_a_message):
            await check("canceled", act)

    run_sim(main).unwrap()


@pytest.mark.parametrize("cause", ["cancel", "deadline"])
async def test_cancelled_in_a_worker_thread(cause: str) -> None:
    """A synchronous call that is told by `check_cancelled` to end says as little as an asynchronous one."""
    breaker = make()
    begun = anyio.Event()

    def work() -> None:
        anyio.from_thread.run_sync(begun.set)
        while True:
            anyio.from_thread.check_cancelled()
            threading.Event().wait(0.001)

    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.to_thread.run_sync, breaker.call, work)
            await begun.wait()
            if cause == "cancel":
                scope.cancel()
            else:
                scope.deadline = anyio.current_time()
    metrics = breaker.metrics
    assert 1 == metrics.canceled + metrics.timeouts
    assert cause == "deadline" or metrics.canceled
    assert set(metrics.failures_by_type) <= {"timeout"}


# ---------------------------------------------------------------- agents and runtimes


class Guarded(BaseAgent):
    """Calls a service that hangs, through a breaker."""

    def __init__(self, breaker: CircuitBreaker, **settings: Any) -> None:
        super().__init__(AgentConfig("guarded", "guarded", **settings))
        self.breaker = breaker

    async def initialize(self) -> bool:
        return True

    async def process(self, context: AgentContext) -> AgentResult:
        await self.breaker.execute(hang)
        raise AssertionError("it came back")

    async def handle_error(self, error: Exception, context: AgentContext) -> AgentResult:
        return AgentResult.error_result({"error_type": type(error).__name__, "message": str(error)})

    async def terminate(self) -> None:
        """Do nothing."""


async def timeout_of_the_agent(breaker: CircuitBreaker) -> None:
    await Guarded(breaker, timeout=30.0).execute(AgentContext())


async def agent_is_terminated(breaker: CircuitBreaker) -> None:
    agent = Guarded(breaker, terminate_timeout=1.0)
    async with anyio.create_task_group() as group:
        group.start_soon(agent.execute, AgentContext())
        await anyio.sleep(30)
        await agent.terminate()


async def caller_of_the_agent_is_cancelled(breaker: CircuitBreaker) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(Guarded(breaker, timeout=60.0).execute, AgentContext())
        await anyio.sleep(30)
        group.cancel_scope.cancel()


async def deadline_of_the_task(breaker: CircuitBreaker) -> None:
    async with AgentRuntime() as runtime:
        runtime.registry("agents").register("guarded", Guarded(breaker))
        handle = await runtime.submit("guarded", timeout=30)
        await handle.wait()


async def handle_is_cancelled(breaker: CircuitBreaker) -> None:
    async with AgentRuntime() as runtime:
        runtime.registry("agents").register("guarded", Guarded(breaker, timeout=60.0))
        handle = await runtime.submit("guarded", timeout=60)
        await anyio.sleep(30)
        handle.cancel("no longer needed")
        with pytest.raises(TaskCanceledError):
            await handle.result()


async def runtime_shuts_down(breaker: CircuitBreaker) -> None:
    async with AgentRuntime(grace=5) as runtime:
        runtime.registry("agents").register("guarded", Guarded(breaker, timeout=60.0))
        await runtime.submit("guarded", timeout=60)
        await anyio.sleep(30)


async def runtime_fails(breaker: CircuitBreaker) -> None:
    async with AgentRuntime(grace=5) as runtime:
        runtime.registry("agents").register("guarded", Guarded(breaker, timeout=60.0))
        await runtime.submit("guarded", timeout=60)
        await anyio.sleep(30)
        raise Down


@pytest.mark.parametrize(
    ("expected", "act"),
    [
        ("timeout", timeout_of_the_agent),
        ("timeout", deadline_of_the_task),
        ("canceled", agent_is_terminated),
        ("canceled", caller_of_the_agent_is_cancelled),
        ("canceled", handle_is_cancelled),
        ("canceled", runtime_shuts_down),
        ("canceled", runtime_fails),
    ],
)
@simulate(runs=10)
async def test_deadlines_and_cancellations_of_agents(expected: str, act: Act) -> None:
    """A deadline of an agent or of a task is one; whoever is cancelled, terminated or shut down blames nobody."""
    await check(expected, act)
    assert 1 == len(current_simulation().tasks())


def test_what_a_rejected_call_says_is_nothing() -> None:
    """A rejection is counted as such, and moves nothing."""
    breaker = make(reset_timeout_ms=60_000)
    open_up(breaker)
    before = breaker.metrics
    for _ in range(3):
        with pytest.raises(CircuitOpenError):
            breaker.call(lambda: 1)
    assert ("nothing", 3) == (verdict(breaker, before), breaker.metrics.rejected)
