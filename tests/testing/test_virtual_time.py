"""Unchanged AnyIO code under a clock that jumps."""

from __future__ import annotations

import asyncio
import math
import subprocess
import sys
import time
from datetime import timedelta
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from agentcore._interop import monotonic, sources
from agentcore.testing import BACKENDS, StallError, current_simulation, run_sim

both = pytest.mark.parametrize("backend", BACKENDS)


@both
def test_a_year_passes_in_no_time(backend: Any) -> None:
    async def main() -> float:
        began = anyio.current_time()
        await anyio.sleep(timedelta(days=365).total_seconds())
        return anyio.current_time() - began

    began = time.monotonic()
    result = run_sim(main, backend=backend)
    assert result.unwrap() == 31_536_000.0
    assert result.now == 31_536_000.0
    assert time.monotonic() - began < 5


@both
def test_the_clock_begins_at_nought_and_is_the_one_of_agentcore(backend: Any) -> None:
    async def main() -> list[float]:
        sim = current_simulation()
        seen = [anyio.current_time(), monotonic(), sim.now]
        wall = sources.get().wall()
        await anyio.sleep(2.5)
        return [*seen, anyio.current_time(), monotonic(), sim.now, sources.get().wall() - wall]

    assert run_sim(main, backend=backend).unwrap() == [0.0, 0.0, 0.0, 2.5, 2.5, 2.5, 2.5]


@both
def test_deadlines_pass_at_their_moment(backend: Any) -> None:
    async def main() -> list[Any]:
        seen: list[Any] = []
        with anyio.move_on_after(3) as scope:
            await anyio.sleep_forever()
        seen.append((scope.cancelled_caught, anyio.current_time()))
        with pytest.raises(TimeoutError), anyio.fail_after(4):
            await anyio.Event().wait()
        seen.append(anyio.current_time())
        with anyio.CancelScope(deadline=8.5) as scope:
            await anyio.sleep_forever()
        seen.append((scope.cancelled_caught, anyio.current_time()))
        with anyio.fail_after(0.5):
            await anyio.sleep(0.25)
        seen.append(anyio.current_time())
        with anyio.move_on_after(0) as scope:
            await anyio.lowlevel.checkpoint()
        seen.append((scope.cancelled_caught, anyio.current_time()))
        return seen

    expected = [(True, 3.0), 7.0, (True, 8.5), 8.75, (True, 8.75)]
    assert run_sim(main, backend=backend).unwrap() == expected


@both
def test_the_outer_deadline_wins_over_a_later_inner_one(backend: Any) -> None:
    async def main() -> list[Any]:
        with anyio.move_on_after(2) as outer, anyio.move_on_after(5) as inner:
            await anyio.sleep_forever()
        with anyio.move_on_after(5) as outer2:
            with anyio.move_on_after(2) as inner2:
                await anyio.sleep_forever()
            await anyio.sleep(1)
        scopes = [outer, inner, outer2, inner2]
        return [*(scope.cancelled_caught for scope in scopes), anyio.current_time()]

    assert run_sim(main, backend=backend).unwrap() == [True, False, False, True, 5.0]


@both
@pytest.mark.parametrize("first", ["sleep", "deadline"])
def test_a_deadline_at_the_moment_of_a_timer_wins(backend: Any, first: str) -> None:
    """Both are due; whoever looks at the deadline next finds that it has passed."""

    async def main() -> tuple[bool, float]:
        with anyio.CancelScope() as scope:
            if first == "deadline":
                scope.deadline = 1.0
                await anyio.sleep(1)
            else:
                async with anyio.create_task_group() as group:

                    async def bound() -> None:
                        scope.deadline = 1.0

                    group.start_soon(bound)
                    await anyio.sleep(1)
        return scope.cancelled_caught, anyio.current_time()

    assert run_sim(main, backend=backend).unwrap() == (True, 1.0)


@pytest.mark.parametrize("delays", [(0.3, 0.1 + 0.2), (0.1 + 0.2, 0.3), (0.3, 0.3), (1e-9, 0.0), (0.1, 0.1 + 1e-12)])
@pytest.mark.parametrize("schedule", ["fifo", "-", "walk/1"])
def test_timers_at_almost_equal_times_fire_in_the_same_order_everywhere(
    delays: tuple[float, float], schedule: str
) -> None:
    async def main() -> list[Any]:
        order: list[Any] = []

        async def sleep(name: str, seconds: float) -> None:
            await anyio.sleep(seconds)
            order.append((name, anyio.current_time()))

        async with anyio.create_task_group() as group:
            for name, seconds in zip("ab", delays, strict=True):
                group.start_soon(sleep, name, seconds)
        return order

    first, second = (run_sim(main, backend=backend, schedule=schedule, trace=True) for backend in BACKENDS)
    assert first.unwrap() == second.unwrap()
    assert first.trace == second.trace
    if delays[0] != delays[1]:
        assert [time for _name, time in first.value] == sorted(delays)


@both
def test_many_equal_timers_fire_in_the_order_of_their_tasks(backend: Any) -> None:
    async def main() -> list[int]:
        order: list[int] = []

        async def sleep(number: int) -> None:
            await anyio.sleep(1)
            order.append(number)

        async with anyio.create_task_group() as group:
            for number in range(200):
                group.start_soon(sleep, number)
        return order

    assert run_sim(main, backend=backend).unwrap() == list(range(200))


@both
def test_primitives_wait_in_virtual_time(backend: Any) -> None:
    async def main() -> list[Any]:
        seen: list[Any] = []
        lock, semaphore, limiter = anyio.Lock(), anyio.Semaphore(1), anyio.CapacityLimiter(1)
        event, condition = anyio.Event(), anyio.Condition()

        async def use(name: str, around: Any) -> None:
            async with around:
                seen.append((name, anyio.current_time()))
                await anyio.sleep(10)

        async def wait() -> None:
            await event.wait()
            seen.append(("event", anyio.current_time()))
            async with condition:
                await condition.wait()
            seen.append(("condition", anyio.current_time()))

        async with anyio.create_task_group() as group:
            for name, around in (("lock", lock), ("semaphore", semaphore), ("limiter", limiter)):
                group.start_soon(use, name, around)
                group.start_soon(use, name, around)
            group.start_soon(wait)
            await anyio.sleep(15)
            event.set()
            await anyio.sleep(1)
            async with condition:
                condition.notify()
        return seen

    begun = [("lock", 0.0), ("semaphore", 0.0), ("limiter", 0.0)]
    later = [("lock", 10.0), ("semaphore", 10.0), ("limiter", 10.0), ("event", 15.0), ("condition", 16.0)]
    assert run_sim(main, backend=backend).unwrap() == [*begun, *later]


@both
@pytest.mark.parametrize("size", [0, 1, 3, math.inf])
def test_streams_pass_items_on_in_virtual_time(backend: Any, size: float) -> None:
    async def main() -> list[Any]:
        seen: list[Any] = []
        send, receive = anyio.create_memory_object_stream[int](size)

        async def produce() -> None:
            async with send:
                for number in range(5):
                    await send.send(number)
                    seen.append(("sent", number, anyio.current_time()))

        async with anyio.create_task_group() as group, receive:
            group.start_soon(produce)
            async for number in receive:
                seen.append(("got", number))
                await anyio.sleep(1)
        assert anyio.current_time() == 5.0
        return seen

    first = run_sim(main, backend=backend).unwrap()
    assert [item[1] for item in first if item[0] == "got"] == list(range(5))
    waits = {0: 3.0, 1: 3.0, 3: 1.0, math.inf: 0.0}
    if size:
        assert max(item[2] for item in first if item[0] == "sent") <= waits[size]


@both
def test_start_waits_until_a_task_is_ready(backend: Any) -> None:
    async def main() -> list[Any]:
        async def server(*, task_status: anyio.abc.TaskStatus[str]) -> None:
            await anyio.sleep(2)
            task_status.started("port")
            await anyio.sleep(3)

        async with anyio.create_task_group() as group:
            got = await group.start(server)
            at = anyio.current_time()
        return [got, at, anyio.current_time()]

    assert run_sim(main, backend=backend).unwrap() == ["port", 2.0, 5.0]


@both
def test_all_tasks_are_blocked_before_the_clock_moves(backend: Any) -> None:
    async def main() -> list[Any]:
        seen: list[Any] = []

        async def work() -> None:
            for number in range(20):
                await anyio.lowlevel.checkpoint()
                seen.append(number)
            await anyio.sleep(0.001)
            seen.append("slept")

        async with anyio.create_task_group() as group:
            group.start_soon(work)
            await anyio.wait_all_tasks_blocked()
            seen.append(("blocked", anyio.current_time()))
            await current_simulation().settle()
            seen.append(("settled", anyio.current_time()))
        return seen

    expected = [*range(20), ("blocked", 0.0), ("settled", 0.0), "slept"]
    assert run_sim(main, backend=backend).unwrap() == expected


@both
def test_several_tasks_wait_until_all_are_blocked(backend: Any) -> None:
    async def main() -> list[Any]:
        seen: list[Any] = []

        async def settle(name: str) -> None:
            await anyio.wait_all_tasks_blocked()
            seen.append(name)
            await anyio.lowlevel.checkpoint()
            seen.append(name.upper())

        async with anyio.create_task_group() as group:
            group.start_soon(settle, "a")
            group.start_soon(settle, "b")
            group.start_soon(settle, "c")
        return seen

    assert sorted(run_sim(main, backend=backend).unwrap()) == ["A", "B", "C", "a", "b", "c"]


@both
def test_waiting_until_all_are_blocked_can_be_cancelled(backend: Any) -> None:
    async def main() -> bool:
        async def spin() -> None:
            for _ in range(10):
                await anyio.lowlevel.checkpoint()
            scope.cancel()
            await anyio.lowlevel.checkpoint()

        async with anyio.create_task_group() as group:
            group.start_soon(spin)
            with anyio.CancelScope() as scope:
                await anyio.wait_all_tasks_blocked()
        await anyio.wait_all_tasks_blocked()
        return scope.cancelled_caught

    assert run_sim(main, backend=backend).unwrap() is True


def test_timers_that_are_not_needed_are_forgotten() -> None:
    async def main() -> int:
        for _ in range(5_000):
            with anyio.fail_after(1_000_000):
                await anyio.lowlevel.checkpoint()
        return len(asyncio.get_running_loop()._scheduled)  # type: ignore[attr-defined]

    assert run_sim(main, backend="asyncio").unwrap() < 300


@both
def test_time_that_the_code_takes_is_what_it_says(backend: Any) -> None:
    async def main() -> list[Any]:
        sim = current_simulation()
        seen: list[Any] = []

        async def sleep(seconds: float) -> None:
            await anyio.sleep(seconds)
            seen.append((seconds, anyio.current_time()))

        async with anyio.create_task_group() as group:
            group.start_soon(sleep, 1)
            group.start_soon(sleep, 5)
            await sim.settle()
            sim.advance(3)
            seen.append(anyio.current_time())
            with anyio.move_on_after(1) as scope:
                sim.advance(2)
                await anyio.lowlevel.checkpoint()
            seen.append(scope.cancelled_caught)
        return seen

    seen = run_sim(main, backend=backend).unwrap()
    assert seen[0] == 3.0
    assert True in seen
    assert [item for item in seen if isinstance(item, tuple)] == [(1, 5.0), (5, 5.0)]


@both
@pytest.mark.parametrize("seconds", [-1, math.inf, math.nan])
def test_the_clock_goes_forward_only(backend: Any, seconds: float) -> None:
    async def main() -> None:
        current_simulation().advance(seconds)

    with pytest.raises(ValueError, match="the clock goes forward by a finite number of seconds: got"):
        run_sim(main, backend=backend).unwrap()


# ------------------------------------------------------------------------------------------ outside


@both
def test_the_clock_stands_while_a_subprocess_runs(backend: Any) -> None:
    async def main() -> tuple[bytes, float]:
        with current_simulation().hold(), anyio.fail_after(5):
            done = await anyio.run_process([sys.executable, "-S", "-c", "import time; time.sleep(0.1); print(1)"])
        return done.stdout.strip(), anyio.current_time()

    assert run_sim(main, backend=backend, watchdog=60).unwrap() == (b"1", 0.0)


@both
def test_a_subprocess_without_hold_times_out_in_virtual_time(backend: Any) -> None:
    async def main() -> bool:
        process = subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE)  # noqa: ASYNC220
        try:
            with anyio.move_on_after(3600) as scope:
                while process.poll() is None:  # noqa: ASYNC110 - a program that knows of no better way
                    await anyio.sleep(1)
        finally:
            process.communicate()
        return scope.cancelled_caught

    assert run_sim(main, backend=backend).unwrap() is True


@both
def test_a_socket_on_this_machine_answers_before_the_clock_moves(backend: Any) -> None:
    async def main() -> bytes:
        async def echo(stream: anyio.abc.SocketStream) -> None:
            async with stream:
                async for data in stream:
                    await stream.send(data.upper())

        listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        got = b""
        async with listener, anyio.create_task_group() as group:
            group.start_soon(listener.serve, echo)
            with anyio.fail_after(60), current_simulation().hold():
                async with await anyio.connect_tcp("127.0.0.1", port) as stream:
                    for word in (b"one", b"two"):
                        await stream.send(word)
                        got += await stream.receive()
            group.cancel_scope.cancel()
        return got

    assert run_sim(main, backend=backend).unwrap() == b"ONETWO"


@both
def test_a_held_clock_does_not_wait_for_ever(backend: Any) -> None:
    async def main() -> None:
        with current_simulation().hold():
            await anyio.sleep(1)

    began = time.monotonic()
    with pytest.raises(StallError, match=r"sim.hold\(\) kept the simulation waiting for 0.2 real seconds") as caught:
        run_sim(main, backend=backend, watchdog=0.2).unwrap()
    assert time.monotonic() - began < 5
    assert [task.place.split(":")[0] for task in caught.value.tasks] == ["main"]


@both
def test_a_socket_that_stays_silent_is_a_stall(backend: Any) -> None:
    async def main() -> None:
        async with await anyio.create_udp_socket(local_host="127.0.0.1") as socket:
            await socket.receive()

    with pytest.raises(StallError, match=r"a socket or a pipe kept the simulation waiting for 0\.2 real seconds"):
        run_sim(main, backend=backend, watchdog=0.2).unwrap()


@both
def test_a_timer_beside_a_silent_socket_fires(backend: Any) -> None:
    async def main() -> float:
        async with await anyio.create_udp_socket(local_host="127.0.0.1") as socket:
            with anyio.move_on_after(100):
                await socket.receive()
        return anyio.current_time()

    assert run_sim(main, backend=backend, watchdog=0.5).unwrap() == 100.0
