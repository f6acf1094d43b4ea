"""The seam: clock, chance, identifiers, threads, cancellation, wake-ups, signals."""

from __future__ import annotations

import os
import random
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import anyio
import anyio.from_thread
import anyio.lowlevel
import pytest

from agentcore import _interop
from agentcore._interop import (
    SYSTEM,
    Sources,
    new_id,
    run_in_thread,
    sources,
    split_cancellation,
    use_sources,
    wake_up_function,
)
from agentcore._signals import signals_to

FIXED = Sources(monotonic=lambda: 1.5, wall=lambda: 2.5, random=random.Random(1))


def test_sources_are_replaced_inside_of_a_block_only() -> None:
    """Nested blocks too; whatever happens, the ones from before are back."""
    inner = Sources(monotonic=lambda: 9.0, wall=lambda: 9.0, random=random.Random(2))
    with use_sources(FIXED):
        assert (_interop.monotonic(), _interop.wall_time()) == (1.5, 2.5)
        with pytest.raises(ValueError, match="out"), use_sources(inner):
            assert _interop.monotonic() == 9.0
            raise ValueError("out")
        assert sources.get() is FIXED
    assert sources.get() is SYSTEM


@pytest.mark.anyio
async def test_sources_travel_into_tasks_and_threads() -> None:
    """What is started in the block has them."""
    seen: list[float] = []

    async def look() -> None:
        seen.append(_interop.monotonic())

    with use_sources(FIXED):
        assert await run_in_thread(_interop.monotonic) == 1.5
        async with anyio.create_task_group() as group:
            group.start_soon(look)
    assert seen == [1.5]
    assert await run_in_thread(sources.get) is SYSTEM


def test_identifiers_are_unique_across_threads() -> None:
    """Many threads draw at once, and all share the prefix of the process."""
    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(lambda _: new_id(), range(4000)))
    assert len(set(ids)) == 4000
    assert len({text.rpartition("-")[0] for text in ids}) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_has_a_prefix_of_its_own() -> None:
    """Two processes never give the same identifier."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, new_id().encode())
        os._exit(0)
    os.waitpid(child, 0)
    other = os.read(reader, 100).decode()
    os.close(reader)
    os.close(writer)
    assert other.rpartition("-")[0] != new_id().rpartition("-")[0]
    assert other.endswith("-1")


@pytest.mark.anyio
async def test_a_function_runs_in_a_thread() -> None:
    """Arguments go in, the value or the exception comes out."""
    assert await run_in_thread(lambda left, right: (left + right, threading.get_ident()), 1, 2) != (
        3,
        threading.get_ident(),
    )
    with pytest.raises(ZeroDivisionError):
        await run_in_thread(lambda: 1 / 0)


@pytest.mark.anyio
async def test_cancellation_waits_for_the_thread() -> None:
    """No thread outlives its scope: the function is told, and what it does then is waited for."""
    ended: list[bool] = []
    begun = anyio.Event()

    def work() -> None:
        anyio.from_thread.run_sync(begun.set)
        try:
            while True:
                anyio.from_thread.check_cancelled()
                anyio.from_thread.run(anyio.lowlevel.checkpoint)
        finally:
            ended.append(True)

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(run_in_thread, work)
            await begun.wait()
            group.cancel_scope.cancel()
    assert ended == [True]


@pytest.mark.anyio
async def test_cancellation_is_told_from_failure() -> None:
    """Alone, in groups, in groups of groups, and what is left of them."""
    cancelled = anyio.get_cancelled_exc_class()
    error = ValueError("x")
    caught: list[BaseException] = []
    with anyio.CancelScope() as scope:
        scope.cancel()
        try:
            await anyio.lowlevel.checkpoint()
        except cancelled as one:
            caught.append(one)
            raise
    one = caught[0]
    assert split_cancellation(error) == (False, error)
    assert split_cancellation(one) == (True, None)
    assert split_cancellation(GeneratorExit()) == (True, None)
    assert split_cancellation(SystemExit(3))[0] is False
    group = ExceptionGroup("g", [error])
    assert split_cancellation(group) == (False, group)
    assert split_cancellation(BaseExceptionGroup("g", [one, BaseExceptionGroup("h", [one])])) == (True, None)
    was_cancelled, rest = split_cancellation(BaseExceptionGroup("g", [one, BaseExceptionGroup("h", [one, error])]))
    assert was_cancelled
    assert isinstance(rest, ExceptionGroup)
    assert isinstance(rest.exceptions[0], ExceptionGroup)
    assert rest.exceptions[0].exceptions == (error,)


def test_a_closed_coroutine_needs_no_loop() -> None:
    """GeneratorExit comes when there may be no event loop any more."""
    assert split_cancellation(GeneratorExit()) == (True, None)


@pytest.mark.anyio
async def test_a_thread_wakes_the_loop_up() -> None:
    """The callback runs in the loop's thread."""
    woken, where = anyio.Event(), list[int]()

    def callback() -> None:
        where.append(threading.get_ident())
        woken.set()

    thread = threading.Thread(target=wake_up_function(), args=(callback,))
    thread.start()
    with anyio.fail_after(5):
        await woken.wait()
    thread.join()
    assert where == [threading.get_ident()]


@pytest.mark.anyio
async def test_a_signal_wakes_the_loop_up() -> None:
    """A loop that sleeps hears of a signal at once."""
    woken = anyio.Event()
    wake_up = wake_up_function()
    with signals_to(lambda number: wake_up(woken.set), [signal.SIGUSR1]), anyio.fail_after(5):
        os.kill(os.getpid(), signal.SIGUSR1)
        await woken.wait()
    assert woken.is_set()


def test_signals_come_to_the_callback_inside_of_the_block() -> None:
    """Afterwards the handler from before is back, after an exception too."""
    old: list[int] = []
    numbers: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: old.append(number))
    try:
        with pytest.raises(ValueError, match="out"), signals_to(numbers.append, [signal.SIGUSR1]):
            signal.raise_signal(signal.SIGUSR1)
            raise ValueError("out")
        signal.raise_signal(signal.SIGUSR1)
        assert (numbers, old) == ([signal.SIGUSR1], [signal.SIGUSR1])
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_outside_of_the_main_thread_no_handler_is_set() -> None:
    """Python allows none there: the block runs without."""
    seen: list[object] = []

    def work() -> None:
        with signals_to(lambda number: None, [signal.SIGUSR1]):
            seen.append(signal.getsignal(signal.SIGUSR1))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGUSR1)]
