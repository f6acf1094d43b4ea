"""Keys: what is submitted twice is done once."""

from __future__ import annotations

from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from agentcore import (
    AgentContext,
    AgentRuntime,
    BaseTask,
    ConfigurationError,
    RetryPolicy,
    RuntimeClosedError,
    TaskError,
    TaskExecutionError,
    TaskHandle,
    TaskRoutingError,
    TaskState,
    TaskTimeoutError,
)
from agentcore.testing import assert_checkpoints, simulate
from tests.runtime.parts import check_at_rest, echo, holding, runtime_of, start_all

pytestmark = pytest.mark.anyio


@simulate(runs=10)
async def test_the_same_handle_while_it_runs_waits_or_is_remembered() -> None:
    """Whatever else is given, once it has been submitted."""
    async with runtime_of(in_flight=1) as runtime:
        hold = holding(runtime)
        running = await runtime.submit("hold", {"n": 1}, key="one")
        waiting = await runtime.submit("echo", {"n": 2}, key="two")
        await anyio.wait_all_tasks_blocked()
        for _ in range(2):
            assert running is await runtime.submit("hold", {"n": "other"}, key="one", priority="HIGH", timeout=-1)
            assert waiting is await runtime.submit("echo", {"n": "other"}, key="two", nonsense=True)
            assert waiting is await runtime.submit(BaseTask.create("echo"), {"n": 1}, key="two")
            hold.opened.set()
            await running.result()
            assert {"n": 2} == await waiting.result()
        assert ([1], 2) == (hold.came, runtime.statistics().tasks.accepted)
        await check_at_rest(runtime, 1)


@simulate(runs=5)
async def test_the_same_handle_while_it_waits_for_a_retry() -> None:
    """Its task is neither FAILED nor done."""
    async with runtime_of() as runtime:
        handle = await runtime.submit("fail", key="one", retry=RetryPolicy(attempts=2))
        await anyio.wait_all_tasks_blocked()
        assert handle.waiting_for_retry
        assert handle is await runtime.submit("fail", key="one")
        with pytest.raises(TaskExecutionError):
            await handle.result()
        assert handle is not await runtime.submit("echo", key="one")


@pytest.mark.parametrize("end", ["fail", "cancel", "cancel in line"])
@simulate(runs=5)
async def test_the_key_is_free_after_a_bad_end(end: str) -> None:
    """What has FAILED or was CANCELED may be tried again, by another type too."""
    async with runtime_of(in_flight=1) as runtime:
        if end == "cancel in line":
            await runtime.submit("echo")
        handle = await runtime.submit("fail" if end == "fail" else "hang", key="one")
        if end != "fail":
            handle.cancel()
        assert not (await handle.wait()).success
        again = await runtime.submit("echo", {"n": 1}, key="one")
        assert again is not handle
        assert {"n": 1} == await again.result()
        assert again is await runtime.submit("echo", key="one")


@simulate(runs=5)
async def test_the_key_is_free_when_the_task_is_forgotten() -> None:
    """As long as `retention` remembers the task, and no longer; nothing is kept of either."""
    async with runtime_of(retention=2) as runtime:
        first = await runtime.submit("echo", key="one")
        await first.wait()
        await runtime.run("echo")
        assert first is await runtime.submit("echo", key="one")
        await runtime.run("echo")
        second = await runtime.submit("echo", key="one")
        assert second is not first
        await second.wait()
        for number in range(20):
            await (await runtime.submit("echo", key=f"further {number}")).wait()
        keys = runtime.tasks._ledger.keys
        assert (2, 2) == (len(keys), len(keys._by_number))


@simulate(runs=5)
async def test_a_key_is_forgotten_though_its_task_has_the_id_of_a_later_one() -> None:
    """Each of the two stands for its own task, for as long as that is remembered, and then for none."""
    async with runtime_of(retention=3) as runtime:
        first = await runtime.submit("echo", id="x", key="one")
        await first.wait()
        second = await runtime.submit("echo", id="x", key="two")
        await second.wait()
        assert first is await runtime.submit("echo", key="one")
        assert second is await runtime.submit("echo", key="two")
        await runtime.run("echo")
        await runtime.run("echo")
        assert 1 == len(runtime.tasks._ledger.keys)
        assert second is await runtime.submit("echo", key="two")
        assert first is not await runtime.submit("echo", key="one")
        await runtime.run("echo")
        assert second is not await runtime.submit("echo", key="two")


@simulate(runs=5)
async def test_a_bad_end_frees_the_key_of_that_task_alone() -> None:
    """An earlier one of the same id, which is COMPLETED, keeps its own."""
    async with runtime_of() as runtime:
        first = await runtime.submit("echo", id="x", key="one")
        await first.wait()
        second = await runtime.submit("fail", id="x", key="two")
        await second.wait()
        assert first is await runtime.submit("echo", key="one")
        assert 1 == len(runtime.tasks._ledger.keys)


@simulate(runs=5)
async def test_a_key_of_another_type() -> None:
    """An error that names both."""
    async with runtime_of() as runtime:
        handle = await runtime.submit("echo", key="one")
        with pytest.raises(
            TaskError, match=r"a key stands for one task: got 'one' for one of type 'hang', but task "
        ) as told:
            await runtime.submit("hang", key="one")
        assert {"key": "one", "type": "hang", "task_id": handle.id} == told.value.details


@pytest.mark.parametrize("key", ["", 3, b"one", True])
async def test_what_is_no_key(key: Any) -> None:
    """Strings that are not empty are."""
    async with runtime_of() as runtime:
        with pytest.raises(ConfigurationError, match="key of a task must be a string that is not empty"):
            await runtime.submit("echo", key=key)


@pytest.mark.parametrize("way", ["run", "start", "map", "as_completed", "context.run"])
async def test_keys_are_for_what_is_submitted(way: str) -> None:
    """Elsewhere they are refused, in words that say what to do."""
    async with runtime_of() as runtime:

        @runtime.handler("parent")
        async def parent(given: dict[str, Any], context: AgentContext) -> None:
            with pytest.raises(ConfigurationError, match="a key is for what is submitted: got 'one'"):
                await context.run("echo", key="one")

        if way == "context.run":
            await runtime.run("parent")
            return
        with pytest.raises(ConfigurationError, match="a key is for what is submitted: got 'one'"):
            if way == "run":
                await runtime.run("echo", key="one")
            elif way == "start":
                async with runtime.group() as group:
                    group.start("echo", key="one")
            elif way == "map":
                await runtime.map("echo", [{}], key="one")
            else:
                async with runtime.as_completed("echo", [{}], key="one") as ended:
                    await ended.__anext__()


@simulate(runs=5)
async def test_what_cannot_be_submitted_has_no_key() -> None:
    """The key is taken with the task, not before."""
    async with runtime_of() as runtime:
        with pytest.raises(TaskRoutingError):
            await runtime.submit("nobody", key="one")
        with pytest.raises(ConfigurationError):
            await runtime.submit("echo", timeout=-1, key="one")
        assert 0 == len(runtime.tasks._ledger.keys)
        handle = await runtime.submit("echo", key="one")
        await handle.wait()
    with pytest.raises(RuntimeClosedError):
        await runtime.submit("echo", key="one")


@simulate(runs=30)
async def test_many_at_once() -> None:
    """Whoever comes first, all have the same handle."""
    async with runtime_of(in_flight=1, queue=1) as runtime:
        hold = holding(runtime)
        found: list[TaskHandle] = []

        async def submit() -> None:
            found.append(await runtime.submit("hold", key="one"))

        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(submit)
        assert (5, 1, 1) == (len(found), len(set(found)), runtime.statistics().tasks.accepted)
        hold.opened.set()
        await found[0].result()
        await check_at_rest(runtime, 1)


@simulate(runs=30)
async def test_many_that_wait_for_room() -> None:
    """As soon as one of them is accepted, the others know, whether there is room for them or not."""
    async with runtime_of(in_flight=1, queue=1) as runtime:
        hold = holding(runtime)
        first = await runtime.submit("hold")
        await runtime.submit("echo")
        found: list[TaskHandle] = []

        async def submit() -> None:
            found.append(await runtime.submit("hold", key="one"))

        async with anyio.create_task_group() as group:
            for _ in range(4):
                group.start_soon(submit)
            await anyio.wait_all_tasks_blocked()
            assert [] == found
            hold.opened.set()
            await first.result()
            hold.opened = anyio.Event()
            await anyio.wait_all_tasks_blocked()
            assert (4, 1) == (len(found), len(set(found)))
            hold.opened.set()
        await found[0].result()
        await runtime.tasks.wait_idle()
        await check_at_rest(runtime, 1)


@simulate(runs=30)
async def test_who_waits_for_room_learns_of_the_task_though_there_is_none() -> None:
    """The one who was accepted has the only place; the others need none. Who waits with another key goes on waiting."""
    async with runtime_of(in_flight=1, queue=1) as runtime:
        hold = holding(runtime)
        await runtime.submit("hold")
        waiting = await runtime.submit("echo")
        found: list[TaskHandle] = []

        async def submit(key: str) -> None:
            found.append(await runtime.submit("echo", key=key))

        async with anyio.create_task_group() as group:
            await start_all(group, *(partial(submit, key) for key in ("one", "two", "one", "one")))
            waiting.cancel()
            await anyio.wait_all_tasks_blocked()
            assert (3, 1) == (len(found), len(set(found)))
            assert TaskState.PENDING is found[0].state
            hold.opened.set()
        assert 2 == len(set(found))
        await runtime.tasks.wait_idle()
        await check_at_rest(runtime, 1)


@simulate(runs=30)
async def test_a_place_that_comes_while_others_learn_of_a_key_is_not_lost() -> None:
    """Who waits with the key of one that is accepted and given up at once still has his place in the line, as all others."""
    async with runtime_of(in_flight=1, queue=1) as runtime:
        hold = holding(runtime)
        await runtime.submit("hold")
        await runtime.submit("echo")
        accepted: list[str] = []

        async def submit(name: str, *, key: str | None = None, gives_up: bool = False) -> None:
            handle = await runtime.submit("echo", key=key)
            accepted.append(name)
            if gives_up:
                handle.cancel()

        async with anyio.create_task_group() as group:
            await start_all(
                group,
                partial(submit, "first", key="one", gives_up=True),
                partial(submit, "second", key="one"),
                partial(submit, "third"),
            )
            hold.opened.set()
            with anyio.fail_after(60):
                await anyio.wait_all_tasks_blocked()
        assert ["first", "second", "third"] == sorted(accepted)
        await runtime.tasks.wait_idle()
        await check_at_rest(runtime, 1)


@pytest.mark.parametrize("way", ["cancelled", "deadline"])
@simulate(runs=20)
async def test_the_first_gives_up(way: str) -> None:
    """Another one that waits for room with the same key submits the task then."""
    async with runtime_of(in_flight=1, queue=1) as runtime:
        hold = holding(runtime)
        await runtime.submit("hold")
        await runtime.submit("echo")
        found: list[TaskHandle] = []

        async def submit(deadline: float | None = None) -> None:
            try:
                found.append(await runtime.submit("echo", {"n": 1}, key="one", deadline=deadline))
            except TaskTimeoutError:
                assert way == "deadline"

        async with anyio.create_task_group() as group:
            with anyio.move_on_after(1 if way == "cancelled" else None):
                async with anyio.create_task_group() as impatient:
                    impatient.start_soon(submit, 1 if way == "deadline" else None)
                    await anyio.wait_all_tasks_blocked()
                    group.start_soon(submit)
            assert 1.0 == anyio.current_time()
            hold.opened.set()
        assert [{"n": 1}] == [await handle.result() for handle in found]
        await runtime.tasks.wait_idle()
        await check_at_rest(runtime, 1)


@simulate(runs=1)
async def test_a_known_key_is_a_checkpoint_too() -> None:
    """`submit` always is."""
    async with runtime_of() as runtime:
        handle = await runtime.submit("echo", key="one")
        with assert_checkpoints():
            assert handle is await runtime.submit("echo", key="one")
        with anyio.move_on_after(5) as scope:
            scope.cancel()
            await runtime.submit("echo", key="two")
        assert 1 == len(runtime.tasks._ledger.keys)


async def test_from_a_thread() -> None:
    """As every other argument."""
    async with AgentRuntime() as runtime:
        runtime.handler("echo")(echo)

        async def twice() -> bool:
            first = await runtime.submit("echo", {"n": 1}, key="one")
            return first is await runtime.submit("echo", {"n": 2}, key="one")

        assert await anyio.to_thread.run_sync(runtime.from_thread, twice)


@simulate(runs=5)
async def test_a_task_that_was_given_stays_as_it_is() -> None:
    """If its key stands for another one."""
    async with runtime_of() as runtime:
        handle = await runtime.submit("echo", {"n": 1}, key="one")
        task = BaseTask.create("echo", {"n": 2})
        assert handle is await runtime.submit(task, key="one")
        await handle.wait()
        assert (TaskState.PENDING, TaskState.COMPLETED) == (task.state, handle.state)
