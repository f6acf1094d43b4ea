"""Context variables: what says where a task hangs in the tree ends where ownership ends; everything else travels along."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar, copy_context
from typing import Any

import anyio
import anyio.to_thread
import attrs
import pytest

from agentcore import (
    AgentContext,
    AgentRuntime,
    CircuitBreakerConfig,
    CircuitOpenError,
    CircuitState,
    ConfigurationError,
)
from agentcore import _layer as layer
from agentcore._chains import links
from agentcore._context import current_execution, current_job, current_runtime, current_terminations
from agentcore._interop import current_owner
from agentcore._job import Job
from agentcore.testing import simulate
from tests.runtime.doing import Doing, both, opened, register, runtime

pytestmark = pytest.mark.anyio

user: ContextVar[str] = ContextVar("user", default="nobody")
trace: ContextVar[str] = ContextVar("trace", default="no trace")

Probe = Callable[[], Awaitable[None]]


@attrs.frozen
class Seen:
    """What some code sees of its surroundings."""

    runtime: object
    job: Job | None
    agents: list[object]
    terminations: tuple[object, ...]
    user: str
    trace: str

    @classmethod
    def here(cls) -> Seen:
        job: Any = current_job.get()
        chain = [link[0] for link in links(current_execution.get())]
        return cls(
            current_runtime.get(),
            job,
            [one for one in chain if not isinstance(one, Job)],
            current_terminations.get(),
            user.get(),
            trace.get(),
        )


# Each has a function executed behind one boundary, from within an agent, and waits for it.


async def by_ask(context: AgentContext, made: AgentRuntime, probe: Probe) -> None:
    await context.ask(Doing(lambda _: probe(), name="asked"))


async def by_run(context: AgentContext, made: AgentRuntime, probe: Probe) -> None:
    await context.run("probe")


async def by_submit(context: AgentContext, made: AgentRuntime, probe: Probe) -> None:
    await (await context.submit("probe")).result()


async def by_group(context: AgentContext, made: AgentRuntime, probe: Probe) -> None:
    async with context.group() as group:
        group.start("probe")


async def by_map(context: AgentContext, made: AgentRuntime, probe: Probe) -> None:
    await context.map("probe", [{}])


async def by_as_completed(context: AgentContext, made: AgentRuntime, probe: Probe) -> None:
    async with context.as_completed("probe", [{}]) as done:
        async for _ in done:
            pass


async def by_stream(context: AgentContext, made: AgentRuntime, probe: Probe) -> None:
    async with context.stream(Doing(lambda _: probe(), name="streamed")) as stream:
        async for _ in stream:
            pass


async def by_resource(context: AgentContext, made: AgentRuntime, probe: Probe) -> None:
    @asynccontextmanager
    async def service() -> AsyncGenerator[None]:
        await probe()
        yield

    await made.resource(service())


async def by_thread(context: AgentContext, made: AgentRuntime, probe: Probe) -> None:
    await anyio.to_thread.run_sync(made.from_thread, probe)


INLINE = [by_ask, by_run]
OWN = [by_submit, by_group, by_map, by_as_completed]
REST = [by_stream, by_resource, by_thread]
ways = pytest.mark.parametrize("way", [*INLINE, *OWN, *REST], ids=lambda way: way.__name__)


async def cross(way: Any, made: AgentRuntime, hosted: bool) -> tuple[Seen, Seen, str, Doing]:
    """Cross a boundary within an agent, that is asked in a task; return what is seen before, behind and in the end."""
    found: list[Any] = []

    async def probe() -> None:
        found.append(Seen.here())
        user.set("changed inside")

    async def process(context: AgentContext) -> None:
        user.set("of the agent")
        current_terminations.set((outer,))
        found.append(Seen.here())
        await way(context, made, probe)
        found.append(user.get())
        current_terminations.set(())

    @made.handler("probe")
    async def run_probe(given: dict[str, Any]) -> None:
        await probe()

    @made.handler("outer")
    async def run_outer(given: dict[str, Any], context: AgentContext) -> None:
        result = await context.ask(outer)
        assert result.success, result

    outer = Doing(process, name="outer")
    user.set("of the caller")
    trace.set("t-1")
    await made.run("outer")
    before, behind, after = found
    return before, behind, after, outer


@both
@ways
async def test_user_variables_travel(hosted: bool, way: Any) -> None:
    """What the program has set is seen behind every boundary; what is set there is not seen outside, but inline."""
    async with opened(hosted=hosted) as made:
        before, behind, after, _ = await cross(way, made, hosted)
    assert (before.user, before.trace) == ("of the agent", "t-1")
    assert (behind.user, behind.trace) == ("of the agent", "t-1")
    assert after == ("changed inside" if way in INLINE else "of the agent")


@both
@ways
async def test_structural_variables_end(hosted: bool, way: Any) -> None:
    """What belongs to somebody else does not see itself in the job, the chain and the clean-up that it was started from."""
    async with opened(hosted=hosted) as made:
        before, behind, _, outer = await cross(way, made, hosted)
    assert before.job is not None
    assert before.runtime is behind.runtime is made
    if way is by_ask:
        assert behind.job is before.job
        assert behind.terminations == (outer,)
    elif way in (*OWN, by_run):
        assert behind.job is not None
        assert behind.job is not before.job
        assert behind.job.task.parent_id == before.job.task.id
    if way in (*OWN, by_resource):
        assert behind.terminations == ()
    if way is by_resource:
        assert behind.job is None
    # Who waits for it is in the chain, for the wait-for graph; a submission and a resource are on their own.
    assert (outer in behind.agents) == (way not in (by_submit, by_resource))


@both
async def test_a_synchronous_handler(hosted: bool) -> None:
    """In its thread it sees what its task sees, and a call back into the loop sees what the thread has set."""
    async with opened(hosted=hosted) as made:
        seen: list[Any] = []

        async def back() -> None:
            seen.append((user.get(), AgentRuntime.current() is made))

        @made.handler("work")
        def work(given: dict[str, Any]) -> dict[str, Any]:
            seen.append((user.get(), AgentRuntime.current() is made))
            user.set("of the thread")
            made.from_thread(back)
            made.from_thread(made.run, "child")
            return given

        @made.handler("child")
        async def child(given: dict[str, Any], context: AgentContext) -> None:
            assert context.task is not None
            seen.append((user.get(), context.task.parent_id is not None))

        user.set("of the caller")
        await made.run("work")
        assert seen == [("of the caller", True), ("of the thread", True), ("of the thread", True)]
        assert user.get() == "of the caller"


@both
async def test_the_context_is_that_of_the_submission(hosted: bool) -> None:
    """Values are those at the moment of the submission, not of the execution."""
    async with opened(hosted=hosted, in_flight=1) as made:
        seen: list[str] = []

        @made.handler("note")
        async def note(given: dict[str, Any]) -> None:
            seen.append(user.get())
            user.set("noted")

        for name in ("one", "two"):
            user.set(name)
            handle = await made.submit("note")
        user.set("three")
        async with made.group() as group:
            group.start("note")
            user.set("four")
        await handle.wait()
        assert (seen, user.get()) == (["one", "two", "three"], "four")


@both
async def test_a_task_that_outlives_its_parent(hosted: bool) -> None:
    """What was started by a task is not taken for a part of it after its end."""
    async with opened(hosted=hosted) as made, anyio.create_task_group() as outside:
        ended, ids = anyio.Event(), []

        async def later() -> None:
            await ended.wait()
            ids.append((await made.submit("echo")).task.parent_id)
            assert (await made.ask(parent_agent)).success  # no circle: that execution has ended

        async def process(context: AgentContext) -> None:
            if not ended.is_set():
                outside.start_soon(later)

        parent_agent = register(made, "parent", Doing(process))
        await made.run("parent")
        ended.set()
    assert ids == [None]


@both
async def test_a_hosted_runtime_that_is_opened_in_a_task(hosted: bool) -> None:
    """It is not a part of the task, and what lives in it is not either."""
    async with opened(hosted=hosted) as made:
        seen: list[Seen] = []

        @asynccontextmanager
        async def service() -> AsyncGenerator[None]:
            seen.append(Seen.here())
            yield

        @made.handler("host")
        async def host(given: dict[str, Any]) -> None:
            async with runtime(hosted=True) as inner:
                await inner.resource(service())

                @inner.handler("tell")
                async def tell(given: dict[str, Any], context: AgentContext) -> None:
                    assert AgentRuntime.current() is inner
                    assert context.task is not None
                    seen.append(Seen.here())
                    assert context.task.parent_id is None

                await (await inner.submit("tell")).result()
            assert AgentRuntime.current() is made

        user.set("of the caller")
        await made.run("host")
    assert [one.user for one in seen] == ["of the caller"] * 2
    assert (seen[0].job, seen[0].agents) == (None, [])
    assert seen[1].agents[1:] == []


# Circuit breakers: what a call may ride on belongs to its task.


@both
@pytest.mark.parametrize(
    "way", [way for way in [*INLINE, *OWN, *REST] if way is not by_thread], ids=lambda way: way.__name__
)
async def test_permits_end(hosted: bool, way: Any) -> None:
    """A permit of a half-open circuit is ridden on in the same task alone; behind every other boundary one is rejected."""
    async with opened(hosted=hosted) as made:
        breaker = made.breaker(
            "b", CircuitBreakerConfig(failure_threshold=1, success_threshold=1, reset_timeout_ms=0.001)
        )
        found: list[str] = []

        async def nested() -> None:
            found.append("called")

        async def probe() -> None:
            blocks = [block for block in layer._entered.get() if block.owner() is current_owner()]
            found.append(f"{len(blocks)} blocks")
            if way not in INLINE:
                with pytest.raises(ConfigurationError, match="must be left in the task"):
                    await breaker.__aexit__(None, None, None)
            try:
                await breaker.execute(nested)
            except CircuitOpenError:
                found.append("rejected")

        @made.handler("probe")
        async def run_probe(given: dict[str, Any]) -> None:
            await probe()

        async def process(context: AgentContext) -> None:
            await breaker.on_failure("Down")
            assert breaker.state is CircuitState.OPEN  # and due
            async with breaker:
                await way(context, made, probe)
            assert breaker.state is CircuitState.CLOSED

        result = await made.ask(Doing(process))
        assert result.success, result.cause
        assert found == (["1 blocks", "called"] if way in INLINE else ["0 blocks", "rejected"])


@simulate(runs=5)
async def test_a_context_that_is_copied_by_hand() -> None:
    """Tasks that run in a copy of an agent's context, long after it, are no part of it."""
    async with opened() as made, anyio.create_task_group() as group:
        copies: list[Any] = []

        async def process(context: AgentContext) -> None:
            copies.append(copy_context())

        agent = Doing(process)
        await made.ask(agent)
        done = anyio.Event()

        async def ask_again() -> None:
            assert (await made.ask(agent)).success
            done.set()

        copies[0].run(group.start_soon, ask_again)
        await done.wait()
