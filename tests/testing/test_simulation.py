"""What a simulation is, and what it finds."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import pickle
import re
import subprocess
import sys
import threading
import warnings
import weakref
from collections.abc import AsyncIterator
from typing import Any

import anyio
import anyio.lowlevel
import attrs
import pytest
import trio

import agentcore
from agentcore._interop import sources
from agentcore.testing import (
    BACKENDS,
    DeadlockError,
    InvariantError,
    LeakError,
    LivelockError,
    NondeterminismError,
    Simulation,
    SimulationFailure,
    StallError,
    Step,
    UnretrievedError,
    Waiting,
    current_simulation,
    isolated_globals,
    run_sim,
)
from agentcore.testing._frames import describe, stop_of
from tests.testing.traces import PROGRAMS, text_of

both = pytest.mark.parametrize("backend", BACKENDS)


async def steps(count: int = 1) -> None:
    for _ in range(count):
        await anyio.lowlevel.checkpoint()


# ------------------------------------------------------------------------------------------ driving


@both
def test_time_stands_still_between_two_calls(backend: Any) -> None:
    async def work(log: list[Any]) -> None:
        for _ in range(3):
            await anyio.sleep(1)
            log.append(anyio.current_time())

    log: list[Any] = []
    with Simulation(backend) as sim:
        group = sim.enter(anyio.create_task_group)
        sim.call(group.start_soon, work, log)
        assert (log, sim.now) == ([], 0.0)
        sim.run(anyio.sleep, 1.5)
        assert (log, sim.now) == ([1.0], 1.5)
        assert sim.tasks()[0].name == "main"
        assert len(sim.tasks()) == 2
        assert sim.steps > 0
        assert sim.trace == ()
    # The group is left at the end: it waits for its tasks.
    assert (log, sim.now) == ([1.0, 2.0, 3.0], 3.0)


@both
def test_an_error_is_raised_and_the_simulation_goes_on(backend: Any) -> None:
    async def fails() -> None:
        await anyio.sleep(1)
        raise KeyError("here")

    with Simulation(backend) as sim:
        for _ in range(2):
            with pytest.raises(KeyError, match="here"):
                sim.run(fails)
        sim.run(anyio.sleep, 1)
        assert sim.now == 3.0


@both
def test_the_scope_of_a_call_cancels_it(backend: Any) -> None:
    async def main() -> str:
        current_simulation().scope.cancel()
        await anyio.sleep_forever()
        return "never"

    with Simulation(backend) as sim:
        assert sim.run(main) is None
        assert sim.run(steps) is None


@both
def test_a_simulation_that_is_over_says_so(backend: Any) -> None:
    sim = Simulation(backend)
    sim.close()
    sim.close()
    with pytest.raises(RuntimeError, match="this simulation is over; make another one"):
        sim.run(steps)
    with Simulation(backend) as sim:
        sim.run(steps)
        sim.close()
    with pytest.raises(RuntimeError, match="over"):
        sim.run(steps)


@both
def test_a_simulation_that_has_failed_is_over(backend: Any) -> None:
    sim = Simulation(backend)
    with pytest.raises(DeadlockError):
        sim.run(anyio.sleep_forever)
    with pytest.raises(RuntimeError, match="over"):
        sim.run(steps)
    sim.close()


@both
def test_no_simulation_runs_inside_of_itself(backend: Any) -> None:
    async def main() -> None:
        current_simulation().run(steps)

    with pytest.raises(RuntimeError, match=r"inside|running|runs"):
        run_sim(main, backend=backend).unwrap()


@pytest.mark.parametrize("inner", BACKENDS)
@both
def test_a_simulation_is_not_run_by_code_of_another_one(backend: Any, inner: Any) -> None:
    """The thread has one event loop at a time, of whichever kind."""

    async def inside() -> float:
        await anyio.sleep(7)
        return anyio.current_time()

    async def main() -> list[float]:
        await anyio.sleep(1)
        there = run_sim(inside, backend=inner).unwrap()
        await anyio.sleep(1)
        return [there, anyio.current_time()]

    result = run_sim(main, backend=backend)
    assert isinstance(result.error, RuntimeError)
    assert "in this thread already; await the function" in str(result.error)


def test_no_simulation_runs_outside_of_one() -> None:
    with pytest.raises(RuntimeError, match=r"no simulation runs here; use @simulate, run_sim or Simulation\.run"):
        current_simulation()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "uvloop"}, "a simulation runs on one of asyncio, trio: got 'uvloop'"),
        ({"threads": "none"}, "threads are 'hold' or 'inline': got 'none'"),
        ({"max_steps": 0}, "max_steps is at least 1: got 0"),
        ({"watchdog": 0}, "the watchdog is a positive number of seconds: got 0"),
        ({"watchdog": float("nan")}, "the watchdog is a positive number of seconds: got nan"),
        ({"schedule": "walk"}, "a switch reads"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Simulation(**options)


@both
def test_the_random_source_of_agentcore_is_seeded(backend: Any) -> None:
    async def main() -> float:
        assert current_simulation().random is sources.get().random
        return sources.get().random.random()

    first, again, other = (run_sim(main, backend=backend, seed=seed).unwrap() for seed in (1, 1, 2))
    assert first == again != other


@both
def test_agentcore_sees_the_same_times_in_every_run(backend: Any) -> None:
    async def main() -> str:
        async with agentcore.AgentRuntime() as runtime:

            @runtime.handler("work")
            async def work(given: dict[str, Any]) -> dict[str, Any]:
                await anyio.sleep(given["seconds"])
                return {}

            handle = await runtime.submit("work", {"seconds": 90})
            result = await handle.wait()
        return f"{result.task.created_at} {result.task.duration_ms}" if hasattr(result, "task") else str(result.state)

    assert len({run_sim(main, backend=backend).unwrap() for _ in range(3)}) == 1


@both
def test_a_result_tells_what_became_of_it(backend: Any) -> None:
    async def main() -> str:
        await anyio.sleep(2)
        return "value"

    result = run_sim(main, backend=backend, trace=True)
    assert (result.backend, result.value, result.error, result.now) == (backend, "value", None, 2.0)
    assert result.steps == len(result.trace)
    assert result.decisions == 0
    assert result.fired == ()
    assert str(result.schedule) == "fifo"
    assert isinstance(result.trace[0], Step)
    assert re.fullmatch(r"  2 s  task 0 from .*main:\d+ in sleep", str(result.trace[1]))


# ------------------------------------------------------------------------------------------ what it finds


@both
def test_a_deadlock_is_found_and_says_where_every_task_waits(backend: Any) -> None:
    locks: dict[str, anyio.Lock] = {}

    async def transfer(first: str, second: str) -> None:
        async with locks[first]:
            await steps()
            async with locks[second]:
                pass

    async def main() -> None:
        locks.update(a=anyio.Lock(), b=anyio.Lock())
        await anyio.sleep(3)
        async with anyio.create_task_group() as group:
            group.start_soon(transfer, "a", "b", name="one")
            group.start_soon(transfer, "b", "a", name="other")

    line = transfer.__code__.co_firstlineno + 3
    with pytest.raises(DeadlockError) as caught:
        run_sim(main, backend=backend).unwrap()
    error = caught.value
    assert str(error).splitlines() == [
        "deadlock: every task waits, and nothing will wake one (at 3 s)",
        f"  task 0 'main' at main:{main.__code__.co_firstlineno + 3} in TaskGroup.__aexit__ (test_simulation.py)",
        f"  task 1 'one' at transfer:{line} in Lock.__aenter__ (test_simulation.py)",
        f"  task 2 'other' at transfer:{line} in Lock.__aenter__ (test_simulation.py)",
    ]
    assert error.now == 3.0
    assert [task.task for task in error.tasks] == [0, 1, 2]


@both
def test_a_deadlock_under_a_shield_is_found(backend: Any) -> None:
    ended: list[str] = []

    async def main() -> None:
        try:
            with anyio.CancelScope(shield=True):
                async with anyio.create_task_group() as group:
                    group.start_soon(anyio.sleep_forever)
                    with anyio.CancelScope(shield=True):
                        await anyio.Event().wait()
        finally:
            ended.append("ended")

    with pytest.raises(DeadlockError):
        run_sim(main, backend=backend).unwrap()
    assert ended == ["ended"]


@both
def test_a_deadlock_of_a_task_that_cannot_be_cancelled_is_found(backend: Any) -> None:
    async def stubborn() -> None:
        while True:
            with contextlib.suppress(anyio.get_cancelled_exc_class()):
                await anyio.sleep_forever()

    async def main() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(stubborn)

    with pytest.raises(DeadlockError) as caught:
        run_sim(main, backend=backend).unwrap()
    assert f"stubborn:{stubborn.__code__.co_firstlineno + 3} in sleep_forever" in str(caught.value)
    # The next simulation does not notice.
    assert run_sim(anyio.sleep, 1, backend=backend).now == 1.0


@both
def test_a_deadlock_in_a_clean_up_is_found(backend: Any) -> None:
    async def main() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep_forever()

    with pytest.raises(DeadlockError):
        run_sim(main, backend=backend).unwrap()


@both
def test_a_future_that_nobody_resolves_is_a_deadlock(backend: Any) -> None:
    async def main() -> None:
        if backend == "asyncio":
            await asyncio.get_running_loop().create_future()
        else:
            await trio.lowlevel.wait_task_rescheduled(lambda _raise: trio.lowlevel.Abort.FAILED)

    with pytest.raises(DeadlockError):
        run_sim(main, backend=backend).unwrap()


@both
def test_tasks_that_give_way_for_ever_are_a_livelock(backend: Any) -> None:
    async def spin() -> None:
        while True:
            await anyio.lowlevel.checkpoint()

    async def main() -> None:
        await anyio.sleep(2)
        async with anyio.create_task_group() as group:
            group.start_soon(spin)
            await anyio.sleep(1)

    with pytest.raises(LivelockError, match=r"\d+ steps, and the clock stands still; .* \(at 2 s\)") as caught:
        run_sim(main, backend=backend).unwrap()
    assert f"spin:{spin.__code__.co_firstlineno + 2}" in str(caught.value)


@both
def test_a_timeout_that_never_gets_its_turn_is_a_livelock(backend: Any) -> None:
    """The clock does not move while anything can run: a deadline does not help against spinning."""

    async def main() -> None:
        with anyio.fail_after(1):
            while True:
                await anyio.lowlevel.checkpoint()

    with pytest.raises(LivelockError):
        run_sim(main, backend=backend).unwrap()


@both
def test_what_sleeps_again_and_again_is_a_livelock_in_the_end(backend: Any) -> None:
    async def main() -> None:
        while True:  # noqa: ASYNC110 - just this is what it is about
            await anyio.sleep(1)

    with pytest.raises(LivelockError, match="no end after 500 steps; allow more by max_steps") as caught:
        run_sim(main, backend=backend, max_steps=500).unwrap()
    assert 400 <= caught.value.now <= 500


@both
def test_a_livelock_that_ignores_cancellation_ends(backend: Any) -> None:
    async def main() -> None:
        while True:
            with contextlib.suppress(anyio.get_cancelled_exc_class()):
                await anyio.lowlevel.checkpoint()

    with pytest.raises(LivelockError):
        run_sim(main, backend=backend, max_steps=300).unwrap()
    assert run_sim(anyio.sleep, 1, backend=backend).now == 1.0


@both
def test_a_callback_that_calls_itself_for_ever_does_not_hang(backend: Any) -> None:
    if backend == "trio":
        pytest.skip("trio has no callbacks")

    async def main() -> None:
        loop = asyncio.get_running_loop()

        def again() -> None:
            loop.call_soon(again)

        again()
        await anyio.sleep(1)

    result = run_sim(main, backend=backend, watchdog=1)
    assert result.error is None or isinstance(result.error, SimulationFailure)


def test_two_callbacks_that_call_each_other_for_ever_are_a_livelock() -> None:
    """In a process of its own: it must not hang this one."""
    program = """
import asyncio
import anyio
from agentcore.testing import run_sim

async def main():
    loop = asyncio.get_running_loop()
    def one(): loop.call_soon(other)
    def other(): loop.call_soon(one)
    one()
    await anyio.sleep(1)

print(type(run_sim(main, watchdog=1, max_steps=10_000).error).__name__)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=20, check=False)
    assert done.stdout.strip() == "LivelockError"


def test_a_task_of_asyncio_that_is_forgotten_is_a_leak() -> None:
    async def forgotten() -> None:
        await anyio.sleep(10)

    async def main() -> None:
        main.task = asyncio.create_task(forgotten(), name="orphan")  # type: ignore[attr-defined]
        await steps()

    result = run_sim(main)
    with pytest.raises(LeakError, match="1 task is left when the simulation ends") as caught:
        result.unwrap()
    line = forgotten.__code__.co_firstlineno + 1
    assert str(caught.value.tasks[0]) == f"task 1 'orphan' at forgotten:{line} in sleep (test_simulation.py)"


def test_a_system_task_of_trio_that_is_forgotten_is_a_leak() -> None:
    async def forgotten() -> None:
        await anyio.sleep(10)

    async def main() -> None:
        trio.lowlevel.spawn_system_task(forgotten, name="orphan")
        trio.lowlevel.spawn_system_task(forgotten, name="orphan")
        await steps()

    with pytest.raises(LeakError, match="2 tasks are left when the simulation ends") as caught:
        run_sim(main, backend="trio").unwrap()
    assert [task.name for task in caught.value.tasks] == ["orphan", "orphan"]


def test_a_task_that_is_left_by_a_failed_call_is_no_second_failure() -> None:
    async def main() -> None:
        main.task = asyncio.create_task(asyncio.sleep(10))  # type: ignore[attr-defined]
        raise KeyError("first")

    with pytest.raises(KeyError, match="first"):
        run_sim(main).unwrap()


def test_an_error_of_a_task_that_nobody_awaits_is_found() -> None:
    async def fails() -> None:
        raise OSError("nobody looks")

    async def main() -> None:
        task = asyncio.create_task(fails())
        await steps(3)
        del task

    result = run_sim(main)
    gc.collect()
    with pytest.raises(UnretrievedError, match="nobody looks"):
        result.unwrap()


def test_an_error_of_a_task_that_is_kept_is_found() -> None:
    """Whether the task is collected in time is chance; that its error was never looked at is not."""
    kept: list[Any] = []

    async def fails() -> None:
        raise OSError("nobody looks")

    async def main() -> None:
        kept.append(asyncio.create_task(fails()))
        await steps(3)

    result = run_sim(main)
    try:
        with pytest.raises(UnretrievedError, match="nobody looks"):
            result.unwrap()
    finally:
        with contextlib.suppress(OSError):
            kept[0].result()


def test_an_error_in_a_callback_is_found() -> None:
    async def main() -> None:
        asyncio.get_running_loop().call_soon(lambda: 1 // 0)
        asyncio.get_running_loop().call_later(5, int, "x")
        await anyio.sleep(10)

    with pytest.raises(UnretrievedError, match="ZeroDivisionError") as caught:
        run_sim(main).unwrap()
    assert "invalid literal" in str(caught.value)
    sim = Simulation("asyncio")
    sim.run(main)
    with pytest.raises(UnretrievedError, match="ZeroDivisionError"):
        sim.close()


def test_an_error_of_a_system_task_is_raised_on_trio() -> None:
    async def fails() -> None:
        raise OSError("nobody looks")

    async def main() -> None:
        trio.lowlevel.spawn_system_task(fails)
        await anyio.sleep(1)

    result = run_sim(main, backend="trio")
    assert "nobody looks" in repr(result.error) + repr(getattr(result.error, "__cause__", None))


@both
@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("where", ["main", "task", "thread"])
def test_an_interrupt_is_raised_and_leaves_no_hang(backend: Any, kind: type[BaseException], where: str) -> None:
    ended: list[str] = []

    async def fails() -> None:
        await anyio.sleep(1)
        raise kind

    async def main() -> None:
        try:
            if where == "main":
                await fails()
            elif where == "thread":
                await anyio.to_thread.run_sync(_raise, kind)
            else:
                async with anyio.create_task_group() as group:
                    group.start_soon(fails)
                    group.start_soon(anyio.sleep_forever)
        finally:
            ended.append("ended")

    def _raise(kind: type[BaseException]) -> None:
        raise kind

    with pytest.raises(BaseException) as caught:  # noqa: PT011 - any kind, from any backend
        run_sim(main, backend=backend, watchdog=2).unwrap()
    error = caught.value
    while isinstance(error, BaseExceptionGroup):
        (error,) = error.exceptions
    assert type(error) is kind
    assert ended == ["ended"]
    assert run_sim(anyio.sleep, 1, backend=backend).now == 1.0


@both
def test_a_cancelled_error_out_of_nowhere_is_the_result(backend: Any) -> None:
    async def main() -> None:
        await steps()
        raise asyncio.CancelledError

    result = run_sim(main, backend=backend)
    assert isinstance(result.error, asyncio.CancelledError)


# ------------------------------------------------------------------------------------------ promises


@both
def test_what_must_always_hold_is_looked_at_after_every_step(backend: Any) -> None:
    async def main() -> None:
        sim, state = current_simulation(), {"n": 0}
        sim.always(lambda: state["n"] < 3, "n stays below 3")

        async def count() -> None:
            for _ in range(5):
                await anyio.sleep(1)
                state["n"] += 1

        async with anyio.create_task_group() as group:
            group.start_soon(count)

    with pytest.raises(InvariantError, match=r"does not hold after step \d+, of task 1: n stays below 3") as caught:
        run_sim(main, backend=backend).unwrap()
    assert caught.value.now == 3.0


@both
def test_an_invariant_is_called_by_its_name(backend: Any) -> None:
    def never() -> bool:
        return False

    async def main() -> None:
        current_simulation().always(never)
        await steps(2)

    with pytest.raises(InvariantError, match=r"never"):
        run_sim(main, backend=backend).unwrap()


@both
def test_an_invariant_that_raises_is_told(backend: Any) -> None:
    async def main() -> None:
        current_simulation().always(lambda: 1 // 0 == 0, "divides")
        await steps(2)

    result = run_sim(main, backend=backend)
    assert "ZeroDivisionError" in repr(result.error) + repr(getattr(result.error, "__cause__", None))


@both
def test_what_comes_about_in_time_is_waited_for(backend: Any) -> None:
    async def main() -> list[Any]:
        sim, seen = current_simulation(), list[int]()

        async def work() -> None:
            for number in range(10):
                await anyio.sleep(1)
                seen.append(number)

        async with anyio.create_task_group() as group:
            group.start_soon(work)
            await sim.eventually(lambda: True, within=0)
            await sim.eventually(lambda: len(seen) == 4, within=60)
            at = anyio.current_time()
            with pytest.raises(InvariantError, match="did not come about within 2 s: twenty"):
                await sim.eventually(lambda: len(seen) == 20, within=2, what="twenty")
            with pytest.raises(InvariantError, match="lambda"):
                await sim.eventually(lambda: False, within=1)
            with anyio.move_on_after(1) as scope:
                await sim.eventually(lambda: False, within=100)
        return [at, scope.cancelled_caught, len(sim._kernel.invariants)]

    assert run_sim(main, backend=backend).unwrap() == [4.0, True, 0]


# ------------------------------------------------------------------------------------------ failures as values

FAILURES = [
    DeadlockError,
    InvariantError,
    LeakError,
    LivelockError,
    NondeterminismError,
    SimulationFailure,
    StallError,
    UnretrievedError,
]


@pytest.mark.parametrize("kind", FAILURES)
def test_failures_pickle(kind: type[SimulationFailure]) -> None:
    error = kind("what", (Waiting(1, "name", "place:3", "Event.wait", "file.py"),), 2.5)
    error.add_note("a note")
    back = pickle.loads(pickle.dumps(error))
    assert (type(back), back.message, back.tasks, back.now) == (kind, "what", error.tasks, 2.5)
    assert back.__notes__ == ["a note"]
    assert str(back) == "what (at 2.5 s)\n  task 1 'name' at place:3 in Event.wait (file.py)"


def test_a_failure_is_an_assertion() -> None:
    assert issubclass(SimulationFailure, AssertionError)
    assert str(SimulationFailure("what")) == "what (at 0 s)"
    assert str(Waiting(0, "main", "f:1", "", "x.py")) == "task 0 'main' at f:1 (x.py)"


# ------------------------------------------------------------------------------------------ where a task is


@both
def test_a_task_is_where_its_own_code_is(backend: Any) -> None:
    """Through asynchronous generators, context managers and plain generators between it and the event loop."""

    async def numbers() -> AsyncIterator[int]:
        await anyio.sleep(100)
        yield 1

    @contextlib.asynccontextmanager
    async def around() -> AsyncIterator[None]:
        await anyio.sleep(100)
        yield

    async def iterates() -> None:
        async for _ in numbers():
            pass

    async def enters() -> None:
        async with around():
            pass

    class Awaited:
        def __await__(self) -> Any:
            yield from anyio.sleep(100).__await__()

    async def awaits() -> None:
        await Awaited()

    async def main() -> list[str]:
        async with anyio.create_task_group() as group:
            for function in (iterates, enters, awaits, anyio.sleep_forever):
                group.start_soon(function)
            await anyio.sleep(1)
            places = [task.place.rpartition(":")[0] for task in current_simulation().tasks()]
            group.cancel_scope.cancel()
        return places

    places = run_sim(main, backend=backend).unwrap()
    assert places[1:4] == ["numbers", "around", "Awaited.__await__"]
    assert len(places) == 5


def test_what_is_no_coroutine_has_no_place() -> None:
    assert stop_of(None) == (None, None)
    assert describe(object()) == ("?", "object", "?")


# ------------------------------------------------------------------------------------------ beside other programs


@both
def test_simulations_in_threads_are_the_same_as_one_after_the_other(backend: Any) -> None:
    programs = [PROGRAMS[name] for name in ("locks", "streams_1", "shields", "nested_groups")]

    def hashes() -> list[str]:
        return [
            text_of(run_sim(program, backend=backend, schedule=f"walk/{seed}", trace=True))
            for program in programs
            for seed in range(3)
        ]

    expected, found = hashes(), list[list[str]]()
    threads = [threading.Thread(target=lambda: found.append(hashes())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 4


def test_the_collector_is_as_it_was() -> None:
    seen: list[bool] = []

    async def main() -> None:
        seen.append(gc.isenabled())

    run_sim(main)
    assert (seen, gc.isenabled()) == ([False], True)
    gc.disable()
    try:
        run_sim(main)
        assert not gc.isenabled()
    finally:
        gc.enable()


@both
def test_nothing_is_left_of_a_simulation(backend: Any) -> None:
    """Neither warnings of unclosed things, nor the loop."""
    seen: list[Any] = []

    async def main() -> None:
        seen.append(weakref.ref(current_simulation()))
        generator = _forever()
        async for _ in generator:
            break
        with anyio.move_on_after(1):
            await anyio.sleep_forever()
        await generator.aclose()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run_sim(main, backend=backend).unwrap()
        gc.collect()
    assert seen[0]() is None


async def _forever() -> AsyncIterator[int]:
    while True:
        await anyio.lowlevel.checkpoint()
        yield 1


def test_generators_that_are_not_finished_are_closed_at_the_end() -> None:
    closed: list[str] = []

    async def numbers() -> AsyncIterator[int]:
        try:
            while True:
                await anyio.lowlevel.checkpoint()
                yield 1
        finally:
            closed.append("closed")

    async def main() -> None:
        main.generator = numbers()  # type: ignore[attr-defined]
        await anext(main.generator)  # type: ignore[attr-defined]

    run_sim(main)
    assert closed == ["closed"]


@both
def test_registries_may_be_those_of_a_test(backend: Any) -> None:
    async def main() -> int:
        agentcore.get_registry("tools").register("one", 1)
        await steps()
        return agentcore.get_registry("tools").size()

    before = agentcore.get_registry("isolated")
    with isolated_globals():
        assert agentcore.get_registry("isolated") is not before
        assert run_sim(main, backend=backend).unwrap() == 1
    assert agentcore.get_registry("isolated") is before


def test_a_step_is_a_value() -> None:
    step = Step(1, 2, 0.5, "place:3 in Event.wait")
    assert attrs.evolve(step) == step
    assert str(step) == "  0.5 s  task 1 from place:3 in Event.wait"
    assert str(attrs.evolve(step, now=0.1 + 0.2, switched=True)) == "* 0.3 s  task 1 from place:3 in Event.wait"
