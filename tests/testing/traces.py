"""Programs whose traces must be the same on every event loop, interpreter and machine.

Run as a program, it prints one line: two hashes of their traces, on both event loops, under a few schedules.
"""

from __future__ import annotations

import hashlib
import math
import re
import sys
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import anyio.to_thread

import agentcore
from agentcore.testing import BACKENDS, SimResult, current_simulation, run_sim

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

Program = Callable[[], Awaitable[Any]]

PROGRAMS: dict[str, Program] = {}
SCHEDULES = ("fifo", "-", "walk/1", "rare/2", "pct/3/64")


def program(function: Program) -> Program:
    """Add a function to the programs."""
    PROGRAMS[function.__name__] = function
    return function


async def steps(count: int = 1) -> None:
    """Let others run so often."""
    for _ in range(count):
        await anyio.lowlevel.checkpoint()


# ------------------------------------------------------------------------------------------ clocks


@program
async def sleepers() -> list[Any]:
    """Timers at different, equal and almost equal times."""
    log: list[Any] = []

    async def sleep(name: str, seconds: float) -> None:
        await anyio.sleep(seconds)
        log.append((name, anyio.current_time()))

    async with anyio.create_task_group() as group:
        for name, seconds in [("a", 0.1 + 0.2), ("b", 0.3), ("c", 0.3), ("d", 0.0), ("e", 86_400.0), ("f", 0.3)]:
            group.start_soon(sleep, name, seconds)
    return log


@program
async def timeouts() -> list[Any]:
    """Deadlines inside of deadlines, met and not met."""
    log: list[Any] = []
    with anyio.move_on_after(5) as outer:
        with anyio.move_on_after(1) as inner:
            await anyio.sleep(2)
        log.append((inner.cancelled_caught, anyio.current_time()))
        with suppress(TimeoutError), anyio.fail_after(3):
            await anyio.sleep_forever()
        log.append(anyio.current_time())
        with anyio.fail_after(math.inf):
            await anyio.sleep(30)
    log.append((outer.cancelled_caught, anyio.current_time()))
    return log


@program
async def equal_deadlines() -> list[Any]:
    """Several tasks whose deadlines pass at the same moment, some of them together with a timer."""
    log: list[Any] = []

    async def bounded(name: str, seconds: float) -> None:
        with anyio.move_on_after(seconds) as scope:
            await anyio.sleep(1)
        log.append((name, scope.cancelled_caught, anyio.current_time()))

    async with anyio.create_task_group() as group:
        for number, seconds in enumerate((1, 1, 0.5, 2, 1, 0.5)):
            group.start_soon(bounded, f"{number}", seconds)
    return log


@program
async def moved_deadline() -> list[Any]:
    """A deadline that another task moves while it is waited for."""
    log: list[Any] = []

    async def work(scope: anyio.CancelScope) -> None:
        with scope:
            await anyio.sleep(10)
        log.append(anyio.current_time())

    async with anyio.create_task_group() as group:
        scopes = [anyio.CancelScope(deadline=anyio.current_time() + 5) for _ in range(3)]
        for scope in scopes:
            group.start_soon(work, scope)
        await anyio.sleep(1)
        scopes[0].deadline = anyio.current_time() + 1
        scopes[1].deadline = math.inf
        scopes[2].deadline = anyio.current_time() - 1
    return log


# ------------------------------------------------------------------------------------------ groups


@program
async def yields() -> list[int]:
    """Tasks that only give way."""
    log: list[int] = []

    async def work(number: int) -> None:
        for _ in range(3):
            log.append(number)
            await steps()

    async with anyio.create_task_group() as group:
        for number in range(4):
            group.start_soon(work, number)
    return log


@program
async def nested_groups() -> list[str]:
    """Groups inside of tasks of groups, with errors inside."""
    log: list[str] = []

    async def leaf(name: str, seconds: float, fails: bool) -> None:
        try:
            await steps(2)
            await anyio.sleep(seconds)
            if fails:
                raise ValueError(name)
            await anyio.sleep(10)
        finally:
            log.append(name)

    async def branch(name: str) -> None:
        try:
            async with anyio.create_task_group() as group:
                for number in range(3):
                    group.start_soon(leaf, f"{name}{number}", number, number == 1)
        except* ValueError as errors:
            log.append(f"{name}:{len(errors.exceptions)}")

    async with anyio.create_task_group() as group:
        for name in "abc":
            group.start_soon(branch, name)
    return log


@program
async def two_errors() -> list[str]:
    """Two tasks that fail while the others clean up."""
    log: list[str] = []

    async def fails(number: int) -> None:
        try:
            await steps(number)
            raise KeyError(number)
        finally:
            log.append(f"fail {number}")

    async def cleans(number: int) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(number)
            log.append(f"clean {number}")

    try:
        async with anyio.create_task_group() as group:
            for number in range(3):
                group.start_soon(cleans, number)
                group.start_soon(fails, number)
            await steps(5)
    except* KeyError as errors:
        log.append(str(sorted(str(error) for error in errors.exceptions)))
    return log


@program
async def started() -> list[Any]:
    """`TaskGroup.start`, with a task that is ready at once, one that waits, and one that fails first."""
    log: list[Any] = []

    async def server(seconds: float, *, task_status: Any) -> None:
        await anyio.sleep(seconds)
        task_status.started(seconds)
        await steps(2)
        log.append(("up", seconds))
        await anyio.sleep(1)

    async def broken(*, task_status: Any) -> None:
        await steps()
        raise OSError("no port")

    async def starts(seconds: float) -> None:
        log.append(await group.start(server, seconds))

    async with anyio.create_task_group() as group:
        for seconds in (0.0, 1.0, 0.0, 0.5):
            group.start_soon(starts, seconds)
        try:
            await group.start(broken)
        except OSError as error:
            log.append(str(error))
    return log


@program
async def groups_in_groups_cancelled() -> list[str]:
    """A group that is cancelled from outside and from inside at about the same time."""
    log: list[str] = []

    async def worker(name: str) -> None:
        try:
            while True:
                await steps()
        except BaseException:
            log.append(name)
            raise

    async def inner(name: str, group: Any) -> None:
        async with anyio.create_task_group() as own:
            own.start_soon(worker, f"{name}1")
            own.start_soon(worker, f"{name}2")
            await steps(3)
            own.cancel_scope.cancel()
        group.cancel_scope.cancel()
        log.append(f"{name} left")

    async with anyio.create_task_group() as group:
        group.start_soon(inner, "a", group)
        group.start_soon(inner, "b", group)
    return log


@program
async def exits_at_once() -> str:
    """Groups without tasks, with tasks that never wait, cancelled before they begin."""
    async with anyio.create_task_group():
        pass
    log = []

    async def nothing() -> None:
        log.append("ran")

    async with anyio.create_task_group() as group:
        group.start_soon(nothing)
        group.start_soon(nothing)
    async with anyio.create_task_group() as group:
        group.start_soon(nothing)
        group.start_soon(steps, 2)
        group.cancel_scope.cancel()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await steps()
        log.append("never")
    return ",".join(log)


@program
async def error_in_body() -> list[str]:
    """The body of a group fails while its tasks run."""
    log: list[str] = []

    async def work(number: int) -> None:
        try:
            await anyio.sleep(number)
        finally:
            log.append(f"{number} ends at {anyio.current_time()}")

    try:
        async with anyio.create_task_group() as group:
            for number in range(4):
                group.start_soon(work, number)
            await anyio.sleep(1.5)
            raise RuntimeError("body")
    except* RuntimeError:
        log.append("caught")
    return log


# ------------------------------------------------------------------------------------------ cancellation


@program
async def shields() -> list[Any]:
    """Shields, a timeout inside of one, and what comes after it."""
    log: list[Any] = []

    async def work(name: str) -> None:
        try:
            await anyio.sleep(5)
        finally:
            with anyio.CancelScope(shield=True):
                await steps(2)
                with anyio.move_on_after(1):
                    await anyio.sleep_forever()
                log.append((name, anyio.current_time()))
            with suppress(anyio.get_cancelled_exc_class()):
                await steps()
                log.append("never")
            with anyio.move_on_after(2, shield=True):
                await anyio.sleep_forever()
            log.append((name, anyio.current_time()))

    async with anyio.create_task_group() as group:
        group.start_soon(work, "a")
        group.start_soon(work, "b")
        await anyio.sleep(1)
        group.cancel_scope.cancel()
    return log


@program
async def swallowed() -> list[Any]:
    """Cancellation that is caught and ignored again and again."""
    log: list[Any] = []

    async def stubborn(name: str, times: int) -> None:
        for number in range(times):
            try:
                await anyio.sleep_forever()
            except anyio.get_cancelled_exc_class():
                log.append((name, number))
        await steps()

    async with anyio.create_task_group() as group:
        group.start_soon(stubborn, "a", 3)
        group.start_soon(stubborn, "b", 2)
        group.start_soon(anyio.sleep, 3)
        await anyio.sleep(1)
        group.cancel_scope.cancel()
        await anyio.lowlevel.cancel_shielded_checkpoint()
        log.append("main")
    return log


@program
async def cancels_itself() -> list[str]:
    """Tasks that cancel themselves, each other, and their group."""
    log: list[str] = []
    scopes: dict[int, anyio.CancelScope] = {}

    async def work(number: int) -> None:
        with anyio.CancelScope() as scope:
            scopes[number] = scope
            await steps(number)
            if (number + 1) % 4 in scopes:
                scopes[(number + 1) % 4].cancel()
            await steps()
            if number == 2:
                scope.cancel()
            await anyio.sleep(number)
        log.append(f"{number} {scope.cancelled_caught}")

    async with anyio.create_task_group() as group:
        for number in range(4):
            group.start_soon(work, number)
    return log


@program
async def checkpoints_if_cancelled() -> list[Any]:
    """Both halves of a checkpoint by themselves."""
    log: list[Any] = []

    async def halves(name: str) -> None:
        try:
            for number in range(4):
                await anyio.lowlevel.checkpoint_if_cancelled()
                log.append((name, number))
                await anyio.lowlevel.cancel_shielded_checkpoint()
        except anyio.get_cancelled_exc_class():
            log.append(name)
            raise

    async with anyio.create_task_group() as group:
        group.start_soon(halves, "a")
        group.start_soon(halves, "b")
        await steps(3)
        group.cancel_scope.cancel()
    return log


@program
async def cancelled_waiters() -> list[Any]:
    """Every primitive, waited for and cancelled by a deadline."""
    log: list[Any] = []
    lock, semaphore, event = anyio.Lock(), anyio.Semaphore(0), anyio.Event()
    condition, limiter = anyio.Condition(), anyio.CapacityLimiter(1)
    send, receive = anyio.create_memory_object_stream[int](0)
    await lock.acquire()
    limiter.acquire_on_behalf_of_nowait(send)

    async def wait_condition() -> None:
        async with condition:
            await condition.wait()

    async def bounded(name: str, seconds: float, wait: Any, *args: Any) -> None:
        with anyio.move_on_after(seconds) as scope:
            await wait(*args)
        log.append((name, scope.cancelled_caught, anyio.current_time()))

    async with anyio.create_task_group() as group:
        for seconds in (1, 2, 1):
            group.start_soon(bounded, "lock", seconds, lock.acquire)
            group.start_soon(bounded, "semaphore", seconds, semaphore.acquire)
            group.start_soon(bounded, "event", seconds, event.wait)
            group.start_soon(bounded, "condition", seconds, wait_condition)
            group.start_soon(bounded, "limiter", seconds, limiter.acquire)
            group.start_soon(bounded, "receive", seconds, receive.receive)
    lock.release()
    send.close()
    receive.close()
    return log


# ------------------------------------------------------------------------------------------ primitives


@program
async def locks() -> list[Any]:
    """A lock that several tasks want, fair and fast."""
    log: list[Any] = []

    async def work(name: str, lock: anyio.Lock) -> None:
        for _ in range(2):
            async with lock:
                log.append(name)
                await steps()
            await steps()

    for fast in (False, True):
        lock = anyio.Lock(fast_acquire=fast)
        async with anyio.create_task_group() as group:
            for name in "abc":
                group.start_soon(work, name, lock)
    return log


@program
async def semaphores() -> list[Any]:
    """Two permits for five tasks, one of which gives up."""
    log: list[Any] = []
    semaphore = anyio.Semaphore(2)

    async def work(number: int) -> None:
        with anyio.move_on_after(3 if number == 3 else 100) as scope:
            async with semaphore:
                await anyio.sleep(2)
                log.append((number, anyio.current_time()))
        if scope.cancelled_caught:
            log.append((number, "gave up"))

    async with anyio.create_task_group() as group:
        for number in range(5):
            group.start_soon(work, number)
    assert semaphore.value == 2
    return log


@program
async def limiters() -> list[Any]:
    """A capacity limiter whose size changes while tasks wait for it."""
    log: list[Any] = []
    limiter = anyio.CapacityLimiter(1)

    async def work(number: int) -> None:
        async with limiter:
            log.append((number, anyio.current_time()))
            await anyio.sleep(1)

    async with anyio.create_task_group() as group:
        for number in range(6):
            group.start_soon(work, number)
        await anyio.sleep(1.5)
        limiter.total_tokens = 3
    assert limiter.statistics().borrowed_tokens == 0
    return log


@program
async def conditions() -> list[Any]:
    """A condition, notified once, for several and for all, with waiters that give up."""
    log: list[Any] = []
    condition, items = anyio.Condition(), list[int]()

    async def take(name: str, patience: float) -> None:
        with anyio.move_on_after(patience) as scope:
            async with condition:
                while not items:
                    await condition.wait()
                log.append((name, items.pop()))
        if scope.cancelled_caught:
            log.append((name, anyio.current_time()))

    async def give(count: int) -> None:
        async with condition:
            items.extend(range(count))
            condition.notify(count)
        await steps()

    async with anyio.create_task_group() as group:
        for number in range(6):
            group.start_soon(take, f"t{number}", 1 if number % 3 == 0 else 50)
        await anyio.sleep(0.5)
        await give(1)
        await anyio.sleep(0.5)
        await give(2)
        await anyio.sleep(1)
        async with condition:
            items.extend(range(10))
            condition.notify_all()
    return log


@program
async def events() -> list[Any]:
    """Many waiters, one event; and one that is set already."""
    log: list[Any] = []
    event = anyio.Event()

    async def wait(number: int) -> None:
        await event.wait()
        log.append(number)
        await event.wait()
        log.append(-number)

    async with anyio.create_task_group() as group:
        for number in range(5):
            group.start_soon(wait, number)
        await steps(2)
        event.set()
        event.set()
        await steps(2)
        log.append("main")
    return log


@program
async def blocked() -> list[Any]:
    """`wait_all_tasks_blocked` from two tasks, and what runs before it returns."""
    log: list[Any] = []

    async def work(count: int) -> None:
        await steps(count)
        log.append(f"work {count}")

    async def settle(name: str) -> None:
        await anyio.wait_all_tasks_blocked()
        log.append(name)
        await anyio.sleep(1)

    async with anyio.create_task_group() as group:
        group.start_soon(settle, "a")
        group.start_soon(work, 5)
        group.start_soon(anyio.sleep, 2)
        group.start_soon(settle, "b")
        group.start_soon(work, 2)
        await anyio.wait_all_tasks_blocked()
        log.append(("main", anyio.current_time()))
        await current_simulation().settle()
        await anyio.sleep(1)
        await anyio.wait_all_tasks_blocked()
    return log


# ------------------------------------------------------------------------------------------ streams


async def _pipe(size: float, senders: int, receivers: int) -> list[Any]:
    log: list[Any] = []
    send, receive = anyio.create_memory_object_stream[int](size)

    async def produce(number: int, stream: Any) -> None:
        async with stream:
            for item in range(3):
                await stream.send(10 * number + item)

    async def consume(name: str, stream: Any) -> None:
        async with stream:
            async for item in stream:
                log.append((name, item))
                await steps()

    async with anyio.create_task_group() as group, send, receive:
        for number in range(senders):
            group.start_soon(produce, number, send.clone())
        for number in range(receivers):
            group.start_soon(consume, f"r{number}", receive.clone())
    return log


@program
async def streams_0() -> list[Any]:
    """A stream without a buffer, two senders and two receivers."""
    return await _pipe(0, 2, 2)


@program
async def streams_1() -> list[Any]:
    """A stream with room for one item."""
    return await _pipe(1, 3, 1)


@program
async def streams_any() -> list[Any]:
    """A stream with room for everything."""
    return await _pipe(math.inf, 2, 3)


@program
async def streams_broken() -> list[Any]:
    """Streams whose other end goes away, and receivers that give up."""
    log: list[Any] = []
    send, receive = anyio.create_memory_object_stream[int](0)

    async def sends(number: int) -> None:
        try:
            await send.send(number)
            log.append(f"sent {number}")
        except anyio.BrokenResourceError:
            log.append(f"broken {number}")

    async def receives(seconds: float) -> None:
        with anyio.move_on_after(seconds) as scope:
            log.append(await receive.receive())
        log.append((scope.cancelled_caught, anyio.current_time()))

    async with anyio.create_task_group() as group:
        group.start_soon(receives, 1)
        group.start_soon(receives, 3)
        await anyio.sleep(1)
        for number in range(3):
            group.start_soon(sends, number)
        await anyio.sleep(1)
        receive.close()
    send.close()
    return log


# ------------------------------------------------------------------------------------------ generators, contexts


@program
async def generators() -> list[Any]:
    """Asynchronous generators and context managers between a task and where it waits."""
    log: list[Any] = []

    async def numbers(count: int) -> AsyncIterator[int]:
        try:
            for number in range(count):
                await steps()
                yield number
                await anyio.sleep(0.1)
        finally:
            log.append("closed")

    @asynccontextmanager
    async def around(name: str) -> AsyncIterator[str]:
        await steps()
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.sleep, 0.15)
            yield name
        await steps()

    async def work(name: str) -> None:
        async with around(name) as value:
            async for number in numbers(3):
                log.append((value, number, round(anyio.current_time(), 6)))  # noqa: PERF401 - it may be cancelled in between

    async with anyio.create_task_group() as group:
        group.start_soon(work, "a")
        group.start_soon(work, "b")
    return log


# ------------------------------------------------------------------------------------------ threads


@program
async def threads() -> list[Any]:
    """Worker threads.

    None of them calls back: what `from_thread` runs is a task or a callback of its own on asyncio, and a step of the task
    that waits for the thread on trio.
    """
    log: list[Any] = []

    async def work(number: int) -> None:
        log.append(await anyio.to_thread.run_sync(abs, -number))
        await steps()

    async with anyio.create_task_group() as group:
        for number in range(4):
            group.start_soon(work, number)
        await anyio.sleep(0.5)
        log.append(anyio.current_time())
    return log


@program
async def threads_limited() -> list[Any]:
    """Worker threads under a limiter, beside timers."""
    log: list[Any] = []
    limiter = anyio.CapacityLimiter(2)

    async def work(number: int) -> None:
        with anyio.fail_after(300):
            log.append(await anyio.to_thread.run_sync(abs, -number, limiter=limiter))
        await anyio.sleep(1)
        log.append((number, anyio.current_time()))

    async with anyio.create_task_group() as group:
        for number in range(5):
            group.start_soon(work, number)
    return log


# ------------------------------------------------------------------------------------------ agentcore


class Worker(agentcore.BaseAgent):
    """An agent that works for as long as it is told, and fails if it is told so."""

    async def initialize(self) -> bool:
        await steps()
        return True

    async def process(self, context: agentcore.AgentContext) -> agentcore.AgentResult:
        task = context.input
        await anyio.sleep(task.get("seconds", 0))
        if task.get("fails"):
            raise ValueError("told to fail")
        return agentcore.AgentResult.ok({"done": task.get("name", "")})


@program
async def runtime() -> list[Any]:
    """Tasks that succeed, fail, time out and are cancelled, with two workers."""
    log: list[Any] = []
    async with agentcore.AgentRuntime(agentcore.RuntimeConfig(in_flight=2)) as runtime:

        @runtime.handler("work", timeout=2)
        async def work(given: dict[str, Any]) -> dict[str, Any]:
            await steps(given.get("steps", 0))
            await anyio.sleep(given.get("seconds", 0))
            if given.get("fails"):
                raise ValueError("told to fail")
            return {"at": anyio.current_time()}

        handles = [
            await runtime.submit("work", given)
            for given in ({"seconds": 1}, {"fails": True}, {"seconds": 5}, {"steps": 3}, {"seconds": 1.5})
        ]
        handles[4].cancel("not needed")
        for handle in handles:
            result = await handle.wait()
            log.append((str(result.state), anyio.current_time()))
    return log


@program
async def runtime_shutdown() -> list[Any]:
    """A runtime that is shut down while tasks run and wait.

    No sleep ends when the grace period does: cancelled before it goes on, it is over on asyncio, and cancelled on trio.
    """
    log: list[Any] = []

    async def watch(handle: Any) -> None:
        result = await handle.wait()
        log.append((str(result.state), anyio.current_time()))

    async with anyio.create_task_group() as group:  # noqa: SIM117 - the two are left at different times
        async with agentcore.AgentRuntime(agentcore.RuntimeConfig(in_flight=2), grace=1.25) as runtime:

            @runtime.handler("work")
            async def work(given: dict[str, Any]) -> dict[str, Any]:
                await anyio.sleep(given["seconds"])
                return {}

            for seconds in (1, 2, 0.25, 3, 1):
                group.start_soon(watch, await runtime.submit("work", {"seconds": seconds}))
            await anyio.sleep(0.5)
            report = await runtime.shutdown()
            log.append(len(report.cut_short) if hasattr(report, "cut_short") else bool(report))
    return log


def run(function: Program, backend: str, schedule: Any, **options: Any) -> SimResult:
    """Run a program and keep its trace."""
    return run_sim(function, backend=backend, schedule=schedule, trace=True, **options)  # type: ignore[arg-type]


def text_of(result: SimResult) -> str:
    """Return all that must be the same: the steps, the value and the clock."""
    result.unwrap()
    return "\n".join([*map(str, result.trace), repr(result.value), repr(result.now), str(result.steps)])


def all_traces() -> tuple[str, str]:
    """Return the hash of all traces, and that of those which have nothing of agentcore's own programs in them.

    Without the numbers of lines, which change with every edit. It is the same on both event loops.
    """
    hashes = []
    for backend in BACKENDS:
        digests = hashlib.sha256(), hashlib.sha256()
        for name, function in PROGRAMS.items():
            for schedule in SCHEDULES:
                text = re.sub(r":\d+", "", text_of(run(function, backend, schedule)))
                for digest in digests[: 1 if name.startswith("runtime") else 2]:
                    digest.update(f"{name} {schedule}\n{text}\n".encode())
        hashes.append((digests[0].hexdigest()[:16], digests[1].hexdigest()[:16]))
    assert len(set(hashes)) == 1, f"the event loops differ: {dict(zip(BACKENDS, hashes, strict=True))}"
    return hashes[0]


if __name__ == "__main__":
    sys.stdout.write(" ".join(all_traces()) + "\n")
