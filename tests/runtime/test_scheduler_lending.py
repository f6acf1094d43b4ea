"""A task that waits for its children lends its slot: however deep or wide, nothing waits in a circle, no slot is lost."""

from __future__ import annotations

from typing import Any

import anyio
import anyio.from_thread
import pytest

from agentcore import (
    AgentContext,
    AgentDeadlockError,
    AgentRuntime,
    TaskCanceledError,
    TaskExecutionError,
    TaskTimeoutError,
)
from agentcore.testing import simulate
from tests.runtime.parts import check_at_rest, holding, runtime_of

pytestmark = pytest.mark.anyio


def recursive(runtime: AgentRuntime, way: str) -> None:
    """Register ``tree``: each task has `width` children down to a depth, in the way that is named; it counts them all."""

    @runtime.handler("tree")
    async def tree(given: dict[str, Any], context: AgentContext) -> dict[str, Any]:
        depth, width = given["depth"], given["width"]
        counts: list[int] = []
        children = [{"depth": depth - 1, "width": width}] * (width if depth else 0)

        async def run(child: dict[str, Any]) -> None:
            counts.append((await context.run("tree", child))["count"])

        async def submit(child: dict[str, Any]) -> None:
            counts.append((await (await context.submit("tree", child)).result())["count"])

        if way == "run one by one":
            for child in children:
                await run(child)
        elif way == "submit all, then wait":
            handles = [await context.submit("tree", child) for child in children]
            counts.extend([(await handle.result())["count"] for handle in handles])
        else:
            async with anyio.create_task_group() as group:
                for number, child in enumerate(children):
                    group.start_soon(submit if way == "mixed at once" and number % 2 else run, child)
        return {"count": 1 + sum(counts)}


@pytest.mark.parametrize("in_flight", [1, 2])
@pytest.mark.parametrize("way", ["run one by one", "submit all, then wait", "run at once", "mixed at once"])
async def test_trees_of_tasks_end(way: str, in_flight: int) -> None:
    """Three levels of more children than there are slots and places in the queue: all run, nothing is stuck."""
    async with runtime_of(in_flight=in_flight, queue=1) as runtime:
        recursive(runtime, way)
        with anyio.fail_after(5):
            assert await runtime.run("tree", {"depth": 3, "width": 4}) == {"count": 1 + 4 + 16 + 64}
            await check_at_rest(runtime, in_flight)


@pytest.mark.parametrize("in_flight", [1, 2])
@pytest.mark.parametrize("way", ["run one by one", "submit all, then wait", "run at once", "mixed at once"])
@simulate(runs=10)
async def test_small_trees_end_in_any_order(way: str, in_flight: int) -> None:
    """So it is whoever goes next."""
    async with runtime_of(in_flight=in_flight, queue=1) as runtime:
        recursive(runtime, way)
        assert await runtime.run("tree", {"depth": 2, "width": 2}) == {"count": 1 + 2 + 4}
        await check_at_rest(runtime, in_flight)


@simulate(runs=5)
async def test_several_trees_at_once() -> None:
    """Trees of all kinds, run and submitted from outside at the same time, share one slot and end."""
    async with runtime_of(in_flight=1, queue=1) as runtime:
        recursive(runtime, "mixed at once")
        outputs: list[dict[str, Any]] = []

        async def run() -> None:
            outputs.append(await runtime.run("tree", {"depth": 2, "width": 3}))

        async def submit() -> None:
            outputs.append(await (await runtime.submit("tree", {"depth": 2, "width": 3})).result())

        async with anyio.create_task_group() as group:
            for number in range(6):
                group.start_soon(submit if number % 2 else run)
        assert [{"count": 13}] * 6 == outputs
        await check_at_rest(runtime, 1)


@simulate(runs=20)
async def test_a_nested_run_takes_the_place_of_its_parent() -> None:
    """It does not get into the line behind strangers, and nobody else runs meanwhile."""
    async with runtime_of(in_flight=1) as runtime:
        order: list[str] = []
        ready = anyio.Event()

        @runtime.handler("child")
        async def child(given: dict[str, Any]) -> None:
            order.append("child")

        @runtime.handler("stranger")
        async def stranger(given: dict[str, Any]) -> None:
            order.append("stranger")

        @runtime.handler("parent")
        async def parent(given: dict[str, Any], context: AgentContext) -> None:
            await ready.wait()
            await context.run("child")
            order.append("parent")

        await runtime.submit("parent")
        await anyio.wait_all_tasks_blocked()
        await runtime.submit("stranger", priority="CRITICAL")
        ready.set()
        await runtime.tasks.wait_idle()
        assert order == ["child", "parent", "stranger"]
        await check_at_rest(runtime, 1)


@simulate(runs=20)
async def test_a_lent_slot_comes_back_without_waiting_for_strangers() -> None:
    """A parent goes on when its child has ended, though a stranger has the only slot and keeps it."""
    async with runtime_of(in_flight=1) as runtime:
        stranger = holding(runtime, "stranger")

        @runtime.handler("parent")
        async def parent(given: dict[str, Any], context: AgentContext) -> None:
            child = await context.submit("echo", priority="CRITICAL")
            await context.submit("stranger")
            await child.result()

        await runtime.run("parent")
        await anyio.wait_all_tasks_blocked()
        assert (stranger.inside, runtime.statistics().tasks.in_flight) == (1, 1)
        stranger.opened.set()
        await runtime.tasks.wait_idle()
        await check_at_rest(runtime, 1)


@simulate(runs=20)
async def test_a_slot_that_was_lent_is_over_the_limit_only_as_long_as_needed() -> None:
    """While parent and stranger both run there are two; nobody else begins before there are none."""
    async with runtime_of(in_flight=1) as runtime:
        stranger, last = holding(runtime, "stranger"), holding(runtime, "last")
        begin, go_on = anyio.Event(), anyio.Event()

        @runtime.handler("parent")
        async def parent(given: dict[str, Any], context: AgentContext) -> None:
            await begin.wait()
            child = await context.submit("echo", priority="CRITICAL")
            await child.result()
            await go_on.wait()

        handle = await runtime.submit("parent")
        await anyio.wait_all_tasks_blocked()
        await runtime.submit("stranger")
        await runtime.submit("last")
        begin.set()
        await anyio.wait_all_tasks_blocked()
        assert (stranger.inside, runtime.statistics().tasks.in_flight) == (1, 2)
        go_on.set()
        await handle.wait()
        await anyio.wait_all_tasks_blocked()
        assert (last.inside, runtime.statistics().tasks.in_flight) == (0, 1)
        stranger.opened.set()
        last.opened.set()
        await runtime.tasks.wait_idle()
        await check_at_rest(runtime, 1)


@pytest.mark.parametrize("wait", ["run", "result", "wait", "submit", "drain"])
@simulate(runs=10)
async def test_cancelled_waits_for_children_leak_nothing(wait: str) -> None:
    """A parent that gives up its wait has its slot again and goes on; the child's way is its own."""
    async with runtime_of(in_flight=1, queue=1) as runtime:

        @runtime.handler("parent")
        async def parent(given: dict[str, Any], context: AgentContext) -> dict[str, Any]:
            with anyio.move_on_after(5) as scope:
                if wait == "run":
                    await context.run("hang")
                elif wait == "submit":
                    for _ in range(5):
                        await context.submit("hang")
                elif wait == "drain":
                    await context.submit("hang")
                    await runtime.drain()
                else:
                    await getattr(await context.submit("hang"), wait)()
            return {"gave up": scope.cancelled_caught, "in flight": runtime.statistics().tasks.in_flight}

        output = await runtime.run("parent")
        assert anyio.current_time() == 5
        lent_to_child = wait in ("result", "wait", "submit")
        assert output == {"gave up": True, "in flight": 2 if lent_to_child else 1}
        for job in list(runtime.tasks._ledger.jobs.values()):
            assert job.handle is not None
            job.handle.cancel()
            await job.handle.wait()
        assert runtime.statistics().tasks.in_flight == 0
        if wait != "drain":
            await check_at_rest(runtime, 1)


@simulate(runs=20)
async def test_cancelled_siblings_leak_nothing() -> None:
    """Of several nested runs at once, some are cancelled while they run and some while they wait."""
    async with runtime_of(in_flight=2) as runtime:

        @runtime.handler("parent")
        async def parent(given: dict[str, Any], context: AgentContext) -> dict[str, Any]:
            async with anyio.create_task_group() as group:
                for _ in range(5):
                    group.start_soon(context.run, "hang")
                await anyio.wait_all_tasks_blocked()
                while_they_hang = runtime.statistics().tasks
                group.cancel_scope.cancel()
            after = runtime.statistics().tasks
            return {
                "hang": (while_they_hang.in_flight, while_they_hang.queued),
                "after": (after.in_flight, after.queued),
            }

        assert await runtime.run("parent") == {"hang": (2, 3), "after": (1, 0)}
        await check_at_rest(runtime, 2)


@simulate(runs=20)
async def test_a_parent_that_is_cancelled_in_its_wait_leaks_nothing() -> None:
    """Cancelled by its handle while a nested run is in its place: both end CANCELED, the slot is free."""
    async with runtime_of(in_flight=1) as runtime:
        recursed = anyio.Event()

        @runtime.handler("parent")
        async def parent(given: dict[str, Any], context: AgentContext) -> None:
            recursed.set()
            await context.run("hang")

        handle = await runtime.submit("parent")
        await recursed.wait()
        await anyio.wait_all_tasks_blocked()
        child = runtime.tasks.active()[1]
        handle.cancel("enough")
        with pytest.raises(TaskCanceledError, match="enough"):
            await handle.result()
        assert child.is_finished
        await check_at_rest(runtime, 1)


async def test_the_failure_of_a_child_is_its_parents_to_handle() -> None:
    """A nested run raises in the parent, which may go on; the cause is the child's own exception."""
    async with runtime_of(in_flight=1) as runtime:

        @runtime.handler("parent")
        async def parent(given: dict[str, Any], context: AgentContext) -> dict[str, Any]:
            try:
                await context.run("fail", {"n": 7})
            except TaskExecutionError as error:
                return {"cause": repr(error.__cause__)}
            return {}

        assert await runtime.run("parent") == {"cause": "ValueError('number 7')"}
        await check_at_rest(runtime, 1)


async def test_children_know_their_parent_and_its_trace() -> None:
    """Made inside of a task, a task has its id as parent_id and its trace_id, however it is started."""
    async with runtime_of() as runtime:

        @runtime.handler("parent")
        async def parent(given: dict[str, Any], context: AgentContext) -> dict[str, Any]:
            handle = await context.submit("echo")
            await handle.wait()
            await context.run("echo")
            other = await runtime.submit("echo", parent_id="mine", trace_id="own")
            await other.wait()
            return {}

        handle = await runtime.submit("parent", trace_id="trace")
        await handle.result()
        children = [task for task in runtime.tasks._ledger._recent.values() if task.type == "echo"]
        expected = [(handle.id, "trace"), (handle.id, "trace"), ("mine", "own")]
        assert expected == [(task.parent_id, task.trace_id) for task in children]


@simulate(runs=20)
async def test_a_child_that_gets_no_turn_in_time_fails_alone() -> None:
    """A nested run whose deadline passes in line returns what it borrowed."""
    async with runtime_of(in_flight=1) as runtime:

        @runtime.handler("parent")
        async def parent(given: dict[str, Any], context: AgentContext) -> dict[str, Any]:
            async with anyio.create_task_group() as group:
                group.start_soon(context.run, "hang")
                await anyio.wait_all_tasks_blocked()
                with pytest.raises(TaskTimeoutError):
                    await context.run("echo", deadline=5)
                group.cancel_scope.cancel()
            return {"in flight": runtime.statistics().tasks.in_flight}

        assert (await runtime.run("parent"), anyio.current_time()) == ({"in flight": 1}, 5)
        await check_at_rest(runtime, 1)


@pytest.mark.parametrize("way", ["run", "submit"])
async def test_children_of_a_handler_in_a_thread(way: str) -> None:
    """A plain function reaches the runtime through `anyio.from_thread`, and its slot is lent as any other."""
    async with runtime_of(in_flight=1, queue=1) as runtime:

        @runtime.handler("parent")
        def parent(given: dict[str, Any], context: AgentContext) -> dict[str, Any]:
            if way == "run":
                return anyio.from_thread.run(context.run, "echo", {"n": 1})
            handles = [anyio.from_thread.run(context.submit, "echo", {"n": number}) for number in range(4)]
            return {"n": sum(anyio.from_thread.run(handle.result)["n"] for handle in handles)}

        with anyio.fail_after(5):
            handle = await runtime.submit("parent")
            assert await handle.result() == {"n": 1 if way == "run" else 6}
            children = [task for task in runtime.tasks._ledger._recent.values() if task.type == "echo"]
            assert {handle.id} == {task.parent_id for task in children}
            await check_at_rest(runtime, 1)


@simulate(runs=20)
async def test_a_task_that_outlives_its_parent_is_no_child() -> None:
    """What a handler left running in somebody else's group still works, as a stranger."""
    async with runtime_of(in_flight=1) as runtime, anyio.create_task_group() as group:
        go_on, ended, outputs = anyio.Event(), anyio.Event(), list[dict[str, Any]]()

        async def straggler() -> None:
            await go_on.wait()
            outputs.append(await runtime.run("echo", {"n": 1}))
            handle = await runtime.submit("echo", {"n": 2})
            outputs.append(await handle.result())
            assert handle.task.parent_id is None
            ended.set()

        @runtime.handler("parent")
        async def parent(given: dict[str, Any]) -> None:
            group.start_soon(straggler)

        await runtime.run("parent")
        go_on.set()
        await ended.wait()
        assert outputs == [{"n": 1}, {"n": 2}]
        await check_at_rest(runtime, 1)


@simulate(runs=20)
async def test_a_parent_that_ends_while_something_in_it_still_waits() -> None:
    """The wait that outlives the job takes back no slot for it."""
    async with runtime_of(in_flight=1) as runtime, anyio.create_task_group() as group:
        hold = holding(runtime)

        @runtime.handler("parent")
        async def parent(given: dict[str, Any], context: AgentContext) -> None:
            child = await context.submit("hold")
            group.start_soon(child.wait)
            await anyio.wait_all_tasks_blocked()

        await runtime.run("parent")
        hold.opened.set()
        await runtime.tasks.wait_idle()
        await anyio.wait_all_tasks_blocked()
        await check_at_rest(runtime, 1)


# Agents that take one execution at a time.


async def test_an_agent_in_its_own_chain_is_refused() -> None:
    """A handler with one execution at a time that runs its own type would wait for itself."""
    async with runtime_of(in_flight=2) as runtime:

        @runtime.handler("self", max_concurrency=1)
        async def itself(given: dict[str, Any], context: AgentContext) -> None:
            await context.run("self")

        with pytest.raises(TaskExecutionError) as caught:
            await runtime.run("self")
        assert isinstance(caught.value.__cause__, TaskExecutionError)
        assert isinstance(caught.value.__cause__.__cause__, AgentDeadlockError)
        await check_at_rest(runtime, 2)


@simulate(runs=20)
async def test_waiting_for_the_handle_of_ones_own_kind_is_refused_too() -> None:
    """Submitted and waited for instead of run: as much a circle, and as much an error instead of a hang."""
    async with runtime_of(in_flight=4) as runtime:

        @runtime.handler("self", max_concurrency=1)
        async def itself(given: dict[str, Any], context: AgentContext) -> None:
            await (await context.submit("self")).result()

        with pytest.raises(TaskExecutionError):
            await runtime.run("self")


@simulate(runs=20)
async def test_an_execution_that_is_just_handed_on_is_no_deadlock() -> None:
    """An agent whose place passes to the next in line in this moment is not idle, and who comes then can wait for it."""
    async with runtime_of() as runtime:
        opened = anyio.Event()

        @runtime.handler("narrow", max_concurrency=1)
        async def narrow(given: dict[str, Any]) -> dict[str, Any]:
            if given.get("wait"):
                await opened.wait()
            return given

        @runtime.handler("caller", max_concurrency=1)
        async def caller(given: dict[str, Any], context: AgentContext) -> dict[str, Any]:
            await opened.wait()
            return await context.run("narrow", {"n": 3})

        first = await runtime.submit("narrow", {"wait": True})
        await anyio.wait_all_tasks_blocked()
        second = await runtime.submit("narrow", {"n": 2})
        third = await runtime.submit("caller")
        await anyio.wait_all_tasks_blocked()
        opened.set()
        assert await first.result() == {"wait": True}
        assert await second.result() == {"n": 2}
        assert await third.result() == {"n": 3}
