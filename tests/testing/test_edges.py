"""What a fresh look at the testing kit has found: each a program that was judged wrongly once."""

import asyncio
import dataclasses
import types
from collections.abc import Generator
from typing import Any

import anyio
import pytest
import trio
import trio.testing

from agentcore.testing import (
    BACKENDS,
    Replay,
    cancel_everywhere,
    current_simulation,
    explore,
    run_sim,
    simulate,
)

backends = pytest.mark.parametrize("backend", BACKENDS)


@types.coroutine
def give_way() -> Generator[None]:
    """Give way as asyncio lets everybody do it: by a bare yield."""
    yield


def test_each_bare_yield_is_a_stop() -> None:
    """Depth first finds all 6! / (3! 3!) orders of two tasks with three steps each."""
    orders = set()

    async def two() -> None:
        order: list[str] = []

        async def work(name: str) -> None:
            for _ in range(2):
                order.append(name)
                await give_way()
            order.append(name)

        async with asyncio.TaskGroup() as group:
            group.create_task(work("a"))
            group.create_task(work("b"))
        orders.add("".join(order))

    report = explore(two, strategy="dfs", runs=1_000)
    assert (20, True, 20) == (report.runs, report.exhausted, len(orders))


@pytest.mark.parametrize("cushion", [0.0, 0.5, 3.0])
def test_trio_waits_until_all_are_blocked_without_waiting(cushion: float) -> None:
    async def main() -> float:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep, 100)
            await trio.testing.wait_all_tasks_blocked(cushion)
            nursery.cancel_scope.cancel()
        return trio.current_time()

    assert 0.0 == run_sim(main, backend="trio", watchdog=0.2).unwrap()


@backends
def test_much_work_at_one_instant_is_no_livelock(backend: Any) -> None:
    async def main() -> int:
        send, receive = anyio.create_memory_object_stream[int](0)

        async def produce() -> None:
            async with send:
                for number in range(12_000):
                    await send.send(number)

        async with anyio.create_task_group() as group:
            group.start_soon(produce)
            async with receive:
                return sum([1 async for _ in receive])

    assert 12_000 == run_sim(main, backend=backend).unwrap()


def test_a_group_of_asyncio_may_take_its_time_to_end() -> None:
    """AnyIO cancels it again and again meanwhile, which is no reason for the clock to stand still."""

    async def child() -> None:
        try:
            await asyncio.sleep(10)
        finally:
            await asyncio.sleep(0.5)

    async def main() -> float:
        with anyio.move_on_after(1):
            async with asyncio.TaskGroup() as group:
                group.create_task(child())
        return anyio.current_time()

    assert 1.5 == run_sim(main).unwrap()


@backends
def test_what_a_predicate_raises_comes_where_it_is_waited_for(backend: Any) -> None:
    seen: list[int] = []

    async def main() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.sleep, 1)
            await current_simulation().eventually(lambda: seen[0] == 1, within=5)

    with pytest.raises(ExceptionGroup) as caught:
        run_sim(main, backend=backend).unwrap()
    assert [IndexError] == [type(error) for error in caught.value.exceptions]


@backends
def test_an_invariant_that_cannot_be_looked_at_is_told(backend: Any) -> None:
    async def main() -> None:
        current_simulation().always(lambda: pytest.fail("no"), "the rule")
        await anyio.sleep(1)

    assert "cannot be looked at" in str(run_sim(main, backend=backend).error)


async def _nap() -> None:
    await anyio.sleep(1)


def test_native_cancellation_is_refused_on_trio() -> None:
    with pytest.raises(ValueError, match="mode native is for asyncio"):
        cancel_everywhere(_nap, replay=Replay.parse("sim1:trio:fifo:native@0"))


@pytest.mark.parametrize("nothing", [{"modes": ()}, {"backends": ()}, {"schedules": ()}])
def test_a_sweep_of_nothing_is_refused(nothing: Any) -> None:
    with pytest.raises(ValueError, match="a sweep needs a mode, a backend and a schedule"):
        cancel_everywhere(_nap, **nothing)


def test_a_sweep_that_is_misspelt_is_refused() -> None:
    misspelt: Any = "swep"
    with pytest.raises(ValueError, match="cancel is None or 'sweep': got 'swep'"):
        simulate(cancel=misspelt)(_nap)


def test_errors_that_refuse_notes_stay_what_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    @dataclasses.dataclass(frozen=True)
    class Frozen(Exception):
        number: int

    @simulate(runs=3)
    async def test() -> None:
        raise Frozen(1)

    with pytest.raises(Frozen):
        test()
    assert "replay: AGENTCORE_SIM='sim1:asyncio:-'" in capsys.readouterr().err


def test_a_second_error_is_told_beside_the_first() -> None:
    async def main() -> None:
        async def bad() -> None:
            raise KeyError("lost")

        task = asyncio.create_task(bad())
        await asyncio.sleep(1)
        assert task.done()
        raise ValueError("main")

    error = run_sim(main).error
    assert isinstance(error, ValueError)
    assert "KeyError('lost')" in "\n".join(error.__notes__)
