"""Streams: what an agent emits, as it does, and its result in the end; whoever leaves early cancels it and waits."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from agentcore import (
    AgentContext,
    AgentCrashedError,
    AgentError,
    AgentExecutionError,
    AgentRuntime,
    AgentTerminatedError,
    AgentTimeoutError,
    ConfigurationError,
    RuntimeClosedError,
    TaskRoutingError,
)
from agentcore.testing import cancel_everywhere, simulate
from tests.runtime.doing import Doing, behind, boom, both, forever, leave_python, opened, register, runtime

pytestmark = pytest.mark.anyio


def counting(count: int, then: Any = None, **config: Any) -> Doing:
    """Make an agent that emits numbers from 0 on and notes how far it is; `then` comes after them."""

    async def process(context: AgentContext) -> Any:
        for number in range(count):
            emitted.append(number)
            await context.emit(number)
        return await then(context) if then is not None else count

    agent = Doing(process, **config)
    emitted: list[int] = []
    agent.emitted = emitted  # type: ignore[attr-defined]
    return agent


# Items.


@both
@pytest.mark.parametrize("buffer", [0, 1, 3])
@simulate(runs=10)
async def test_items_in_order_and_the_result(hosted: bool, buffer: int) -> None:
    """Everything arrives in order; the result is there when everything was taken."""
    async with opened(hosted=hosted) as made:
        async with made.stream(counting(5), buffer=buffer) as stream:
            assert await anext(stream) == 0
            with pytest.raises(AgentError, match="to its end"):
                stream.result  # noqa: B018
            assert [item async for item in stream] == [1, 2, 3, 4]
            assert stream.result.output == 5
            with pytest.raises(StopAsyncIteration):
                await anext(stream)
        assert (stream.result.success, stream.result.output) == (True, 5)
        assert made.statistics().asks == 0


@pytest.mark.parametrize("buffer", [0, 1, 3])
@simulate(runs=10)
async def test_back_pressure(buffer: int) -> None:
    """The agent is ahead of who takes by the buffer and the one item that it holds."""
    async with opened() as made:
        agent = counting(20)
        emitted: list[int] = agent.emitted  # type: ignore[attr-defined]
        async with made.stream(agent, buffer=buffer) as stream:
            taken = 0
            async for _ in stream:
                taken += 1
                await anyio.sleep(1)
                assert len(emitted) == min(20, taken + buffer + 1)


@both
async def test_an_agent_that_emits_nothing(hosted: bool) -> None:
    """A stream of any agent works, by name too, and one of its own is terminated in the end."""
    agents: list[Doing] = []

    def make() -> Doing:
        agents.append(Doing())
        return agents[-1]

    async with opened(hosted=hosted) as made:
        register(made, "own", make)
        async with made.stream("own", {"n": 1}) as stream:
            assert [item async for item in stream] == []
            assert agents[0].is_terminated
        async with made.stream("echo", {"n": 1}) as stream:
            assert [item async for item in stream] == []
        assert stream.result.output == {"n": 1}


@both
async def test_in_an_agent(hosted: bool) -> None:
    """An agent goes through what another one emits, and emits to its own listener."""

    async def double(context: AgentContext) -> Any:
        async with context.stream("count") as stream:
            async for number in stream:
                await context.emit(2 * number)
        return stream.result.output

    async with opened(hosted=hosted) as made:
        register(made, "count", counting(3, name="count"))
        async with made.stream(Doing(double)) as stream:
            assert [number async for number in stream] == [0, 2, 4]
        assert stream.result.output == 3


async def test_emit_without_a_listener() -> None:
    """Nothing happens: in an ask, in a task, in a context that was made by hand. Asked by an agent of a stream too."""
    async with opened() as made:
        agent = register(made, "count", counting(3))
        assert (await made.ask(agent)).output == 3
        assert await made.run("count") == {"result": 3}
        assert (await agent.execute(AgentContext())).output == 3

        async def pass_on(context: AgentContext) -> Any:
            return (await context.ask(agent, context)).output

        async with made.stream(Doing(pass_on)) as stream:
            assert [item async for item in stream] == []
        assert stream.result.output == 3


@simulate(runs=5)
async def test_emit_is_a_checkpoint() -> None:
    """With a listener that takes at once and without one: an agent that emits for ever can be cancelled."""
    async with opened() as made:

        async def flood(context: AgentContext) -> None:
            while True:
                await context.emit(1)

        with anyio.move_on_after(0) as scope:
            await made.ask(Doing(flood))
        assert scope.cancelled_caught
        async with made.stream(Doing(flood), buffer=5) as stream:
            await anext(stream)


@simulate(runs=5)
async def test_emit_after_the_end() -> None:
    """It is refused, whether it begins after the end or is under way then."""
    async with opened() as made, anyio.create_task_group() as group:
        contexts: list[AgentContext] = []
        caught: list[str] = []

        async def late(context: AgentContext) -> None:
            try:
                await context.emit("late")
            except AgentError as error:
                caught.append(str(error))

        async def process(context: AgentContext) -> None:
            contexts.append(context)
            group.start_soon(late, context)
            await anyio.sleep(1)

        async with made.stream(Doing(process)) as stream:
            await anyio.sleep(2)
        assert isinstance(stream.result.success, bool)
        with pytest.raises(AgentError, match="after its end"):
            await contexts[0].emit("later")
        await anyio.wait_all_tasks_blocked()
        assert len(caught) <= 1  # what was under way may count as given to nobody


# Failures.


@both
@pytest.mark.parametrize("buffer", [0, 5])
@simulate(runs=10)
async def test_items_first_then_the_error(hosted: bool, buffer: int) -> None:
    """What was emitted before the failure arrives; then the failure, once."""
    async with opened(hosted=hosted) as made:
        agent = counting(2, boom, handle_error=boom)
        seen: list[int] = []
        with pytest.raises(AgentExecutionError):
            async with made.stream(agent, buffer=buffer) as stream:
                async for item in stream:
                    seen.append(item)  # noqa: PERF401
        assert seen == [0, 1]
        with pytest.raises(AgentError, match="after a failure"):
            stream.result  # noqa: B018


@both
async def test_a_result_without_success(hosted: bool) -> None:
    """It is a result like any other: nothing is raised."""
    async with opened(hosted=hosted) as made:
        async with made.stream(counting(2, boom)) as stream:
            assert [item async for item in stream] == [0, 1]
        assert (stream.result.success, stream.result.error) == (False, "ValueError")
        assert isinstance(stream.result.cause, ValueError)


@both
@simulate(runs=10)
async def test_the_agent_fails_and_nobody_takes(hosted: bool) -> None:
    """Leaving the block raises what nobody has got."""
    async with opened(hosted=hosted) as made:
        with pytest.raises(AgentExecutionError):
            async with made.stream(counting(0, boom, handle_error=boom)):
                await anyio.sleep(1)


@both
@simulate(runs=10)
async def test_block_and_agent_fail(hosted: bool) -> None:
    """Both are told. If only the block fails, its exception is untouched."""
    async with opened(hosted=hosted) as made:
        with pytest.raises(AgentCrashedError) as caught:
            async with made.stream(counting(0, boom, handle_error=boom)):
                await anyio.sleep(1)
                raise KeyError("mine")
        assert [type(leaf) for leaf in caught.value.exceptions] == [KeyError, AgentExecutionError]
        for agent in (Doing(forever), counting(3)):
            with pytest.raises(KeyError, match="mine"):
                async with made.stream(agent) as stream:
                    await anyio.sleep(1)
                    raise KeyError("mine")
            with pytest.raises(AgentError):
                stream.result  # noqa: B018


@both
async def test_what_is_no_exception(hosted: bool) -> None:
    """SystemExit in the agent is raised by the stream, and ends the runtime, in whose task it was raised."""
    made = runtime(hosted=hosted)
    seen: list[BaseException] = []
    with pytest.raises(BaseException) as caught:  # noqa: PT011
        async with made:
            try:
                async with made.stream(counting(1, leave_python)) as stream:
                    async for item in stream:
                        assert item == 0
                    raise AssertionError("unreachable")
            except SystemExit as error:
                seen.append(error)
                await anyio.lowlevel.checkpoint()
    assert made.health().state == "failed"
    assert SystemExit in behind(caught.value)
    assert hosted is False or seen


@both
@simulate(runs=6)
async def test_the_agent_is_terminated(hosted: bool) -> None:
    """The agent knows the execution; the listener is told."""
    async with opened(hosted=hosted) as made:
        agent = counting(1, forever)
        with pytest.raises(AgentTerminatedError):
            async with made.stream(agent) as stream:
                assert await anext(stream) == 0
                await agent.terminate()
                await anext(stream)


@both
@simulate(runs=6)
async def test_timeout(hosted: bool) -> None:
    """The time counts from the beginning of the execution, waits for the listener included."""
    async with opened(hosted=hosted) as made:
        agent = counting(10)
        async with made.stream(agent, timeout=5) as stream:
            seen = []
            async for item in stream:
                seen.append(item)
                await anyio.sleep(2)
        assert seen == [0, 1, 2]
        assert stream.result.error == "AgentTimeoutError"
        assert isinstance(agent.handled[0], AgentTimeoutError)
        assert agent.handled[0].details["deadline"] == "timeout"


# Leaving early.


@both
@pytest.mark.parametrize("way", ["break", "cancel", "at once"])
@simulate(runs=20)
async def test_left_early(hosted: bool, way: str) -> None:
    """The execution is cancelled, and the block left when it has been unwound; the agent goes on for others."""
    log: list[str] = []

    async def unwind(context: AgentContext) -> None:
        try:
            await context.emit(0)
            await context.emit(1)
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(3)
            log.append("unwound")

    async with opened(hosted=hosted) as made:
        agent = Doing(unwind)
        with anyio.CancelScope() as scope:
            async with made.stream(agent) as stream:
                if way != "at once":
                    async for _ in stream:
                        if way == "break":
                            break
                        scope.cancel()
        log.append("left")
        assert log in (["unwound", "left"], ["left"]) if way == "at once" else log == ["unwound", "left"]
        assert (agent.metrics.running, agent._slots.in_use, made.statistics().asks) == (0, 0, 0)
        with pytest.raises(AgentError):
            stream.result  # noqa: B018
        assert agent.handled == []


@both
@simulate(runs=5)
async def test_across_a_yield(hosted: bool) -> None:
    """A generator holds the stream open; it is entered in one task and closed in another."""
    async with opened(hosted=hosted) as made:
        agent = counting(10)

        async def items() -> AsyncGenerator[int]:
            async with made.stream(agent) as stream:
                async for item in stream:
                    yield item

        seen: list[int] = []
        numbers = items()

        async def take() -> None:
            seen.append(await anext(numbers))

        for _ in range(2):
            async with anyio.create_task_group() as group:
                group.start_soon(take)
        async with anyio.create_task_group() as group:
            group.start_soon(numbers.aclose)
        assert seen == [0, 1]
        assert (made.statistics().asks, agent._slots.in_use) == (0, 0)
        assert made.health().failures == ()


@both
@simulate(runs=5)
async def test_a_generator_outlives_the_runtime(hosted: bool) -> None:
    """The execution ends with the runtime; closing the generator afterwards ends, and tells why."""
    async with opened(hosted=hosted) as made:

        async def items() -> AsyncGenerator[int]:
            async with made.stream(counting(10)) as stream:
                async for item in stream:
                    yield item

        numbers = items()
        assert await anext(numbers) == 0
    assert made.statistics().asks == 0
    with contextlib.suppress(RuntimeClosedError), anyio.fail_after(5):
        await numbers.aclose()


# The end of the runtime.


@both
@simulate(runs=10)
async def test_shutdown_while_streaming(hosted: bool) -> None:
    """After the grace the execution is cancelled; the listener gets an error, and is not cancelled."""
    async with opened(hosted=hosted) as made, anyio.create_task_group() as group:
        caught: list[BaseException] = []

        async def listen() -> None:
            with pytest.raises(RuntimeClosedError) as told:
                async with made.stream(counting(1, forever)) as stream:
                    assert await anext(stream) == 0
                    await anext(stream)
            await anyio.lowlevel.checkpoint()
            caught.append(told.value)

        group.start_soon(listen)
        await anyio.wait_all_tasks_blocked()
        await made.shutdown(4)
        assert (made.statistics().asks, anyio.current_time()) == (0, 4)
    assert len(caught) == 1


@both
@simulate(runs=10)
async def test_draining_waits_for_streams(hosted: bool) -> None:
    """A stream that comes to its end within the grace gives everything."""
    async with opened(hosted=hosted) as made, anyio.create_task_group() as group:
        seen: list[int] = []

        async def listen() -> None:
            async with made.stream(counting(3)) as stream:
                async for item in stream:
                    seen.append(item)
                    await anyio.sleep(1)

        group.start_soon(listen)
        await anyio.wait_all_tasks_blocked()
        assert (await made.shutdown(10)).drained
    assert seen == [0, 1, 2]


@both
@simulate(runs=40)
async def test_shutdown_right_after_the_beginning(hosted: bool) -> None:
    """A stream whose execution has not made its first step: it is not executed any more, and the listener is told."""
    ran: list[str] = []

    async def process(context: AgentContext) -> None:
        ran.append(made.statistics().state)
        await anyio.sleep_forever()

    async with opened(hosted=hosted) as made:
        with pytest.raises(RuntimeClosedError):
            async with made.stream(Doing(process)) as stream:
                await made.shutdown(0)
                await anyio.wait_all_tasks_blocked()
                assert "closed" not in ran
                await anext(stream)
        assert "closed" not in ran


@both
async def test_entered_after_the_end(hosted: bool) -> None:
    """A stream that was made before and is entered after the shutdown executes nothing."""
    async with opened(hosted=hosted) as made:
        agent = Doing()
        stream = made.stream(agent)
        await made.shutdown(0)
        with pytest.raises(RuntimeClosedError):
            async with stream:
                await anyio.wait_all_tasks_blocked()
        assert agent.metrics.executions == 0
    with pytest.raises(RuntimeClosedError):
        made.stream(Doing())


# Used wrongly.


async def test_out_of_the_block() -> None:
    """Before and after its block a stream says so, and does not wait for ever; it is entered once."""
    async with opened() as made:
        stream = made.stream(counting(3))
        with pytest.raises(RuntimeClosedError), anyio.fail_after(1):
            with anyio.move_on_after(0) as scope:
                await anext(stream)
            assert not scope.cancelled_caught, "it would wait for ever"
        async with stream:
            assert await anext(stream) == 0
            with pytest.raises(RuntimeClosedError):
                await stream.__aenter__()
        with pytest.raises(RuntimeClosedError):
            await anext(stream)


@pytest.mark.filterwarnings("error")
async def test_never_entered() -> None:
    """A stream that is not used leaves nothing behind, no warning either."""
    async with opened() as made:
        made.stream(Doing())


async def test_arguments() -> None:
    """What is not usable is refused at once, but for a name that nothing has, which is looked up when it begins."""
    async with opened() as made:
        for buffer in (-1, True, 1.5, None):
            with pytest.raises(ConfigurationError, match="buffer"):
                made.stream(Doing(), buffer=buffer)  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match="timeout"):
            made.stream(Doing(), timeout=-1)
        with pytest.raises(ConfigurationError, match="parameters"):
            made.stream(Doing(), 5)  # type: ignore[arg-type]
        with pytest.raises(TaskRoutingError):
            async with made.stream("nobody") as stream:
                await anext(stream)
    with pytest.raises(AgentError, match="inside a runtime"):
        AgentContext().stream(Doing())


@both
@pytest.mark.thorough
def test_cancelled_everywhere(hosted: bool) -> None:
    """Wherever a stream is cut short: the agent is free, nothing is under way."""

    @asynccontextmanager
    async def build() -> AsyncGenerator[AgentRuntime]:
        async with opened(hosted=hosted) as made:
            register(made, "count", counting(3))
            yield made

    async def act(made: AgentRuntime) -> None:
        async with made.stream("count") as stream:
            async for _ in stream:
                await anyio.lowlevel.checkpoint()

    async def check(made: AgentRuntime) -> None:
        assert made.statistics().asks == 0
        async with made.stream("count") as stream:
            assert [item async for item in stream] == [0, 1, 2]

    cancel_everywhere(act, build=build, check=check, schedules=("fifo", "walk/1"), modes=("block", "wake", "native"))
