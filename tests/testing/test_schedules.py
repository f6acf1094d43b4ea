"""Orders of tasks: all of them, drawn ones, recorded ones; the same on both event loops."""

from __future__ import annotations

import asyncio
import math
import sys
import threading
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import trio

from agentcore.testing import BACKENDS, Schedule, Switch, run_sim
from agentcore.testing._schedule import DepthFirst, portfolio
from tests.testing.traces import PROGRAMS, run, text_of

pytestmark = pytest.mark.thorough

both = pytest.mark.parametrize("backend", BACKENDS)
LINES = ("fifo", "-", *(f"walk/{seed}" for seed in range(20)), "rare/1", "rare/2", "pct/1/64", "pct/2/64")


@both
@pytest.mark.parametrize(("tasks", "each"), [(2, 2), (2, 4), (3, 2), (3, 3)])
def test_depth_first_finds_every_order_once(backend: Any, tasks: int, each: int) -> None:
    async def main() -> tuple[int, ...]:
        order: list[int] = []

        async def work(number: int) -> None:
            for left in reversed(range(each)):
                order.append(number)
                if left:
                    await anyio.lowlevel.checkpoint()

        async with anyio.create_task_group() as group:
            for number in range(tasks):
                group.start_soon(work, number)
        return tuple(order)

    search, orders, runs = DepthFirst(), set[tuple[int, ...]](), 0
    while not search.exhausted:
        orders.add(run_sim(main, backend=backend, schedule=search).unwrap())
        search.advance()
        runs += 1
    assert len(orders) == runs == math.factorial(tasks * each) // math.factorial(each) ** tasks


def test_depth_first_notices_that_a_program_is_not_the_same_each_time() -> None:
    search, runs = DepthFirst(), [2, 3]

    async def main() -> None:
        async with anyio.create_task_group() as group:
            for _ in range(runs.pop()):
                group.start_soon(anyio.lowlevel.checkpoint)

    run_sim(main, schedule=search).unwrap()
    search.advance()
    result = run_sim(main, schedule=search)
    assert "had 4 ready tasks and has 3 now" in str(result.error) or "does not depend on its schedule" in str(
        result.error
    )


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_line_gives_the_same_trace_on_both_event_loops(name: str) -> None:
    different = []
    for line in LINES:
        first, second = (text_of(run(PROGRAMS[name], backend, line)).splitlines() for backend in BACKENDS)
        if first != second:
            pairs = enumerate(zip(first, second, strict=False))
            different.append((line, next((step for step in pairs if step[1][0] != step[1][1]), "length")))
    assert different == []


@both
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_recorded_order_replays(backend: Any, name: str) -> None:
    for seed in range(4):
        drawn = run(PROGRAMS[name], backend, f"walk/{seed}", record=True)
        again = run(PROGRAMS[name], backend, str(drawn.schedule))
        assert again.trace == drawn.trace


@both
@pytest.mark.parametrize("line", ["walk/3", "rare/3", "pct/3/64"])
def test_a_seed_names_one_order(backend: Any, line: str) -> None:
    program = PROGRAMS["streams_0"]
    assert len({run(program, backend, line).trace for _ in range(3)}) == 1
    others = {run(program, backend, line.replace("3", str(seed), 1)).trace for seed in range(30)}
    assert len(others) > 3


@both
def test_who_gives_way_lets_those_go_first_whom_it_has_started(backend: Any) -> None:
    """As event loops do: its own turn comes after all that it has made ready."""

    async def main() -> list[str]:
        order: list[str] = []

        async def child(name: str) -> None:
            order.append(name)

        async with anyio.create_task_group() as group:
            group.start_soon(child, "a")
            group.start_soon(child, "b")
            await anyio.lowlevel.checkpoint()
            order.append("main")
        return order

    assert run_sim(main, backend=backend).unwrap() == ["a", "b", "main"]


# ------------------------------------------------------------------------------------------ asyncio's own code


@pytest.mark.parametrize("line", LINES)
def test_callbacks_are_not_overtaken(line: str) -> None:
    async def main() -> list[str]:
        loop, order = asyncio.get_running_loop(), list[str]()

        async def step(name: str) -> None:
            order.append(name)

        for number in range(3):
            loop.call_soon(order.append, f"soon {number}")
        task = asyncio.create_task(step("task"))
        loop.call_later(0, order.append, "later")
        future = loop.create_future()
        future.add_done_callback(lambda _: order.append("done"))
        loop.call_soon(future.set_result, None)
        await future
        await task
        await asyncio.sleep(0.1)
        return order

    order = run_sim(main, schedule=line).unwrap()
    assert order[:3] == ["soon 0", "soon 1", "soon 2"]
    assert sorted(order[3:]) == ["done", "later", "task"]


async def native_asyncio() -> list[Any]:
    loop, log = asyncio.get_running_loop(), list[Any]()
    queue: asyncio.Queue[int] = asyncio.Queue(1)

    async def produce() -> None:
        for number in range(3):
            await queue.put(number)

    async def consume() -> None:
        for _ in range(3):
            log.append(await queue.get())

    await asyncio.gather(produce(), consume())
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.sleep(10), 1)
    log.append(loop.time())
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(2):
            await loop.create_future()
    log.append(loop.time())
    async with asyncio.TaskGroup() as group:
        group.create_task(produce())
        group.create_task(consume())
    done, left = await asyncio.wait(
        [asyncio.create_task(asyncio.sleep(seconds, seconds)) for seconds in (1, 2, 3)],
        return_when=asyncio.FIRST_COMPLETED,
    )
    log.append([task.result() for task in done])
    for task in left:
        task.cancel()
    await asyncio.wait(left)
    return [*log, loop.time()]


@pytest.mark.parametrize("debug", [False, True])
def test_code_for_asyncio_alone_runs(debug: bool) -> None:
    for line in LINES:
        result = run_sim(native_asyncio, schedule=line, debug=debug)
        assert result.unwrap() == [0, 1, 2, 1.0, 3.0, 0, 1, 2, [1], 4.0]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="asyncio has no eager tasks before 3.12")
def test_eager_tasks_run_and_repeat() -> None:
    async def main() -> list[Any]:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined, unused-ignore]
        return await native_asyncio()

    for line in LINES:
        first, second = (run_sim(main, schedule=line, trace=True) for _ in range(2))
        assert first.unwrap() == [0, 1, 2, 1.0, 3.0, 0, 1, 2, [1], 4.0]
        assert first.trace == second.trace


# ------------------------------------------------------------------------------------------ trio's own code


async def native_trio() -> list[Any]:
    log: list[Any] = []
    send, receive = trio.open_memory_channel[int](0)
    lock = trio.Lock()

    async def produce() -> None:
        async with send:
            for number in range(3):
                async with lock:
                    await send.send(number)

    async def system() -> None:
        await trio.sleep(1)

    trio.lowlevel.spawn_system_task(system)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(produce)
        log.extend([number async for number in receive])
    with trio.move_on_after(2):
        await trio.sleep_forever()
    await trio.testing.wait_all_tasks_blocked()
    return [*log, trio.current_time()]


def test_code_for_trio_alone_runs() -> None:
    for line in LINES:
        assert run_sim(native_trio, backend="trio", schedule=line).unwrap() == [0, 1, 2, 2.0]


# ------------------------------------------------------------------------------------------ other event loops


def _plain(backend: str) -> tuple[list[Any], bool]:
    """Run something without a simulation; tell its order, and whether its clock is a real one."""

    async def main() -> tuple[list[Any], bool]:
        order: list[Any] = []

        async def work(number: int) -> None:
            for _ in range(3):
                order.append(number)
                await anyio.lowlevel.checkpoint()

        began = anyio.current_time()
        async with anyio.create_task_group() as group:
            group.start_soon(work, 1)
        await anyio.sleep(0.001)
        return order, 0 < anyio.current_time() - began < 5

    return anyio.run(main, backend=backend)


@both
@pytest.mark.parametrize("other", BACKENDS)
def test_other_event_loops_keep_their_order_and_clock(backend: Any, other: str) -> None:
    expected = ([1, 1, 1], True)
    assert _plain(other) == expected

    async def main() -> None:
        found: list[Any] = []
        thread = threading.Thread(target=lambda: found.append(_plain(other)))
        thread.start()
        thread.join()
        assert found == [expected]
        await anyio.sleep(10)

    run_sim(main, backend=backend).unwrap()
    assert _plain(other) == expected


def test_trios_order_is_given_back() -> None:
    before = trio._core._run._r, trio._core._run._ALLOW_DETERMINISTIC_SCHEDULING  # type: ignore[attr-defined]
    run_sim(anyio.lowlevel.checkpoint, backend="trio").unwrap()
    run_sim(anyio.sleep_forever, backend="trio")
    after = trio._core._run._r, trio._core._run._ALLOW_DETERMINISTIC_SCHEDULING  # type: ignore[attr-defined]
    assert after == before


# ------------------------------------------------------------------------------------------ as data


def test_a_portfolio_begins_with_the_plain_orders() -> None:
    lines = [str(portfolio(number, 10, 100)) for number in range(6)]
    assert lines == ["fifo", "-", "walk/12", "pct/13/128", "walk/14", "rare/15"]


@pytest.mark.parametrize("text", ["4.2", "4>5", "x.1>2", "4.2>5>6", "4.2.1.1>5", ""])
def test_what_is_no_switch_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"a switch reads task\.stop>task, such as 4\.2>5: got"):
        Switch.parse(text)


@pytest.mark.parametrize("text", ["walk", "walk/x", "dfs", "4.2>5,,7.1>2", "pct/1/2/3"])
def test_what_is_no_schedule_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a switch reads"):
        Schedule.parse(text)


def test_a_strategy_must_be_known() -> None:
    with pytest.raises(
        ValueError, match="the strategy of a schedule is one of switches, fifo, walk, rare, pct: got 'dfs'"
    ):
        Schedule("dfs")
