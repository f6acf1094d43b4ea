"""Single promises: each assertion where it holds and where it does not."""

from __future__ import annotations

import re
import time
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from agentcore import AgentRuntime
from agentcore.testing import (
    BACKENDS,
    FIFO,
    DeadlockError,
    InvariantError,
    LeakError,
    NondeterminismError,
    Simulation,
    Step,
    assert_cancellable,
    assert_checkpoints,
    assert_deterministic,
    assert_no_checkpoints,
    assert_no_leaks,
    run_sim,
    trace_hash,
)
from agentcore.testing import _asserts as module

both = pytest.mark.parametrize("backend", BACKENDS)


async def steps(count: int = 1) -> None:
    for _ in range(count):
        await anyio.lowlevel.checkpoint()


async def nothing() -> None: ...


def in_simulation(function: Any, backend: Any, **options: Any) -> Any:
    """Run a function and return its value, or raise its error."""
    return run_sim(function, backend=backend, **options).unwrap()


# ------------------------------------------------------------------------------------------ checkpoints


@both
@pytest.mark.parametrize("waits", [steps, lambda: anyio.sleep(0.1), lambda: anyio.sleep(5), lambda: steps(3)])
def test_what_gives_way_executes_a_checkpoint(backend: Any, waits: Any) -> None:
    async def main() -> None:
        with assert_checkpoints():
            await waits()

    in_simulation(main, backend)


@both
def test_what_never_gives_way_executes_none(backend: Any) -> None:
    async def main() -> None:
        with assert_no_checkpoints():
            await nothing()
            anyio.Event().set()
        with assert_checkpoints():
            await nothing()

    with pytest.raises(InvariantError, match=r"^the block must execute a checkpoint: it never gave way"):
        in_simulation(main, backend)


@both
def test_the_number_of_checkpoints_is_told(backend: Any) -> None:
    async def main() -> None:
        with assert_no_checkpoints():
            await steps(3)

    with pytest.raises(InvariantError, match=r"^the block must execute no checkpoint: it gave way 3 times"):
        in_simulation(main, backend)


@both
def test_only_the_task_itself_counts(backend: Any) -> None:
    """And what it starts has its own count."""

    async def child(log: list[str]) -> None:
        with assert_no_checkpoints():
            log.append("child")
        with assert_checkpoints():
            await steps()

    async def main() -> list[str]:
        log: list[str] = []
        async with anyio.create_task_group() as group:
            with assert_no_checkpoints():
                group.start_soon(child, log)
                group.start_soon(child, log)
            with assert_checkpoints():
                await steps(4)
        return log

    assert in_simulation(main, backend) == ["child", "child"]


@both
def test_an_error_of_the_block_goes_its_way(backend: Any) -> None:
    async def main() -> None:
        with pytest.raises(KeyError), assert_checkpoints():
            raise KeyError
        with pytest.raises(KeyError), assert_no_checkpoints():
            await steps()
            raise KeyError
        with pytest.raises(KeyError), assert_no_leaks():
            raise KeyError

    in_simulation(main, backend)


@pytest.mark.parametrize("check", [assert_checkpoints, assert_no_checkpoints, assert_no_leaks])
def test_outside_of_a_simulation_nothing_can_be_checked(check: Any) -> None:
    told = "no simulation runs here; use @simulate, run_sim or Simulation.run"
    with pytest.raises(RuntimeError, match=told), check():
        raise AssertionError("never")


@pytest.mark.anyio
@pytest.mark.parametrize("check", [assert_checkpoints, assert_no_checkpoints, assert_no_leaks])
async def test_in_an_event_loop_of_its_own_nothing_can_be_checked(check: Any) -> None:
    with pytest.raises(RuntimeError, match="no simulation runs here"), check():
        raise AssertionError("never")


# ------------------------------------------------------------------------------------------ cancellable


async def sleeps_twice(first: float = 1, second: float = 1) -> None:
    await anyio.sleep(first)
    await anyio.sleep(second)


async def swallows() -> None:
    try:
        await anyio.sleep(1)
    except anyio.get_cancelled_exc_class():
        return


async def goes_on() -> None:
    try:
        await anyio.sleep(1)
    except anyio.get_cancelled_exc_class():
        pass
    with anyio.CancelScope(shield=True):
        await anyio.sleep(1)


async def cleans_up(seconds: float) -> None:
    try:
        await anyio.sleep(1)
    finally:
        with anyio.move_on_after(seconds, shield=True):
            await anyio.sleep_forever()


async def starts_and_forgets() -> None:
    import asyncio  # noqa: PLC0415

    task = asyncio.ensure_future(anyio.sleep(5))
    await anyio.sleep(1)
    await task


def test_what_ends_at_once_is_cancellable() -> None:
    report = assert_cancellable(sleeps_twice)
    assert str(report) == "asyncio block 2, trio block 2; 6 runs"
    report = assert_cancellable(sleeps_twice, 3, 4, backends=["trio"], schedule="walk/1", seed=3)
    assert str(report) == "trio block 2; 3 runs"


@both
@pytest.mark.parametrize("function", [swallows, goes_on])
def test_what_swallows_a_cancellation_is_not_cancellable(backend: Any, function: Any) -> None:
    with pytest.raises(InvariantError, match=r"the scenario must end (by the cancellation|within 0 s)") as raised:
        assert_cancellable(function, backends=[backend])
    assert raised.value.__notes__[-1] == f"replay: AGENTCORE_SIM='sim1:{backend}:fifo:block@0'"


@both
def test_a_clean_up_takes_the_time_that_it_may_take(backend: Any) -> None:
    assert_cancellable(cleans_up, 3, within=3.0, backends=[backend])
    with pytest.raises(InvariantError, match=r"within 2.5 s of its cancellation: it took 3 s"):
        assert_cancellable(cleans_up, 3, within=2.5, backends=[backend])
    with pytest.raises(InvariantError, match=r"within 0 s of its cancellation"):
        assert_cancellable(cleans_up, 3, backends=[backend])


def test_what_leaves_tasks_is_not_cancellable() -> None:
    with pytest.raises(LeakError, match="1 task is left when the scenario has ended"):
        assert_cancellable(starts_and_forgets, backends=["asyncio"])


@both
def test_what_waits_for_ever_is_not_cancellable(backend: Any) -> None:
    async def waits() -> None:
        try:
            await anyio.sleep(1)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.Event().wait()

    with pytest.raises(DeadlockError):
        assert_cancellable(waits, backends=[backend])


def test_what_never_waits_cannot_be_cancelled() -> None:
    with pytest.raises(ValueError, match="a sweep needs a scenario that waits at least once"):
        assert_cancellable(nothing)


# ------------------------------------------------------------------------------------------ leaks


@both
def test_a_block_that_leaves_nothing_passes(backend: Any) -> None:
    async def main() -> None:
        limiter, semaphore = anyio.CapacityLimiter(2), anyio.Semaphore(3)
        send, receive = anyio.create_memory_object_stream[int](3)
        with send, receive:
            async with AgentRuntime() as runtime, anyio.create_task_group() as before:
                before.start_soon(anyio.sleep, 10)
                with assert_no_leaks(limiter, semaphore, send, runtime):
                    async with limiter, semaphore, anyio.create_task_group() as group:
                        group.start_soon(steps, 3)
                        await send.send(1)
                        assert await receive.receive() == 1
                    assert await anyio.to_thread.run_sync(abs, -1) == 1

    in_simulation(main, backend)


@both
def test_tasks_that_a_block_leaves_are_found(backend: Any) -> None:
    async def main() -> None:
        async with anyio.create_task_group() as group:
            try:
                with assert_no_leaks():
                    group.start_soon(anyio.sleep, 1, name="one")
                    group.start_soon(anyio.sleep, 1, name="two")
                    await steps()
            finally:
                group.cancel_scope.cancel()

    result = run_sim(main, backend=backend)
    error: Any = result.error
    if isinstance(error, BaseExceptionGroup):
        (error,) = error.exceptions
    assert isinstance(error, LeakError)
    assert error.message == "the block leaves behind: 2 tasks"
    assert [task.name for task in error.tasks] == ["one", "two"]


@both
@pytest.mark.parametrize(
    ("make", "take", "told"),
    [
        (lambda: anyio.Semaphore(3), lambda one: one.acquire_nowait(), "which was 3 and is 2"),
        (lambda: anyio.CapacityLimiter(2), lambda one: one.acquire_on_behalf_of_nowait(1), "borrowed_tokens=1"),
        (anyio.Lock, lambda one: one.acquire_nowait(), "locked=True"),
    ],
    ids=["semaphore", "limiter", "lock"],
)
def test_what_a_block_does_not_give_back_is_found(backend: Any, make: Any, take: Any, told: str) -> None:
    async def main() -> None:
        resource = make()
        with assert_no_leaks(resource):
            take(resource)

    with pytest.raises(LeakError, match=rf"^the block leaves behind: .*{re.escape(told)}") as raised:
        in_simulation(main, backend)
    assert raised.value.tasks == ()


@both
def test_items_in_a_stream_are_found(backend: Any) -> None:
    async def main() -> None:
        send, receive = anyio.create_memory_object_stream[int](3)
        with send, receive, assert_no_leaks(receive):
            await send.send(1)

    with pytest.raises(LeakError, match=r"current_buffer_used=0.* and is .*current_buffer_used=1"):
        in_simulation(main, backend)


@both
def test_a_thread_that_a_block_abandons_is_found(backend: Any) -> None:
    import threading  # noqa: PLC0415

    begun, goes_on = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        goes_on.wait(10)

    async def main() -> None:
        try:
            with assert_no_leaks():
                with anyio.CancelScope() as scope:
                    async with anyio.create_task_group() as group:
                        group.start_soon(lambda: anyio.to_thread.run_sync(work, abandon_on_cancel=True))
                        await steps(3)
                        begun.wait(10)
                        scope.cancel()
        finally:
            goes_on.set()

    with pytest.raises(LeakError, match=r"^the block leaves behind: 1 working threads"):
        in_simulation(main, backend)


def test_what_cannot_be_compared_is_refused() -> None:
    async def main() -> None:
        with assert_no_leaks(object()):
            raise AssertionError("never")

    with pytest.raises(TypeError, match=r"a resource must have statistics\(\) or a value to compare: got <object"):
        in_simulation(main, "asyncio")


@both
def test_several_leaks_are_told_together(backend: Any) -> None:
    async def main() -> None:
        semaphore, other = anyio.Semaphore(3), anyio.Semaphore(4)
        with assert_no_leaks(semaphore, other):
            await semaphore.acquire()
            await other.acquire()

    with pytest.raises(LeakError, match=r"which was 3 and is 2; .*which was 4 and is 3"):
        in_simulation(main, backend)


# ------------------------------------------------------------------------------------------ determinism


async def race(*names: str) -> None:
    async def work(count: int) -> None:
        for _ in range(count):
            await steps()
            await anyio.sleep(0.5)

    async with anyio.create_task_group() as group:
        for count in range(3):
            group.start_soon(work, count)


def test_what_depends_on_its_schedule_alone_has_one_hash() -> None:
    found = assert_deterministic(race)
    assert re.fullmatch("[0-9a-f]{16}", found)
    assert found == assert_deterministic(race, runs=1, backends=["trio"])
    assert found == trace_hash(run_sim(race, backend="trio", schedule="walk/1", trace=True))
    assert found != assert_deterministic(race, schedule="walk/2")
    assert assert_deterministic(race, "a", "b", schedule=FIFO, seed=3) == assert_deterministic(race, schedule="fifo")


def test_chance_that_the_simulation_knows_nothing_of_is_found() -> None:
    runs: list[int] = []

    async def main() -> None:
        runs.append(1)
        await steps(2)
        if len(runs) > 2:
            await anyio.sleep(1)
        await steps()

    told = (
        r"two runs with the same schedule differ from step 3 on: on asyncio it was \[  0 s  task 0 from .*\], on trio it is "
        r"\[  0 s  task 0 from main:.* in sleep.*\]|two runs .* differ from step 3 on: on asyncio it was .* it is \[  1 s"
    )
    with pytest.raises(NondeterminismError, match=told):
        assert_deterministic(main, runs=2)


def test_a_run_that_is_longer_differs_where_the_other_one_ends() -> None:
    runs: list[int] = []

    async def main() -> None:
        runs.append(1)
        for _ in runs:
            await steps()

    with pytest.raises(
        NondeterminismError, match=r"differ from step 2 on: on asyncio it was \[None\], on asyncio it is \["
    ):
        assert_deterministic(main)


def test_real_time_is_found() -> None:
    """Here a clock that nobody has asked the simulation about."""
    clock = iter(range(100))

    async def main() -> None:
        await anyio.sleep(next(clock))
        await steps()

    with pytest.raises(NondeterminismError, match=r"it was \[  0 s .*it is \[  1 s "):
        assert_deterministic(main, backends=["asyncio"])


@both
def test_an_error_of_the_function_goes_its_way(backend: Any) -> None:
    async def main() -> None:
        raise KeyError("here")

    with pytest.raises(KeyError, match="here"):
        assert_deterministic(main, backends=[backend])


@pytest.mark.parametrize("options", [{"runs": 0}, {"backends": []}])
def test_there_must_be_something_to_compare(options: Any) -> None:
    with pytest.raises(ValueError, match="it takes at least 1 run on 1 backend to compare: got"):
        assert_deterministic(race, **options)


def test_the_hash_is_that_of_the_text_of_the_steps() -> None:
    """The same on every machine: what is hashed has no address, no file and no real time in it."""
    trace = (Step(0, 0, 0.0, "start"), Step(1, 2, 0.30000000000000004, "f:3 in sleep", switched=True))

    class Result:
        def __init__(self, *trace: Step) -> None:
            self.trace = trace

    assert trace_hash(Result(*trace)) == "607b9725c682b7c4"  # type: ignore[arg-type]
    assert trace_hash(Result()) == "e3b0c44298fc1c14"  # type: ignore[arg-type]
    assert trace_hash(Result(*trace[:1])) != trace_hash(Result(*trace))  # type: ignore[arg-type]


def test_nothing_here_takes_real_time() -> None:
    began = time.monotonic()
    with Simulation("asyncio") as sim:
        sim.run(anyio.sleep, 10**6)
    assert time.monotonic() - began < 5
    assert module.__name__ == "agentcore.testing._asserts"
