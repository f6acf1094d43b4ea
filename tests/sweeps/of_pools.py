"""Sweeps of worker pools of a runtime: jobs that are waited for, handed over and mapped, and the end of the pools."""

from __future__ import annotations

from functools import partial
from typing import Any

import anyio

from agentcore import (
    RuntimeClosedError,
    WorkerPoolClosedError,
    WorkerPoolFullError,
    WorkerTimeoutError,
    shutdown_all_worker_pools,
)
from agentcore.testing import current_simulation
from tests.sweeps.of_runtime import BLOCK, END, block
from tests.sweeps.pool_states import KINDS, LOOPS, InRuntime, of_kinds
from tests.sweeps.scenarios import Boom, Crash, scenario, steps

ASUBMIT = ("WorkerCalls.asubmit", "LoopCalls.asubmit", "WorkerPool.asubmit")
SUBMIT = ("LoopCalls.submit", "PoolFuture.__await__")
MAP = ("Calls.amap", "JobResults.__aenter__", "JobResults.__aexit__", "JobResults.__anext__")
SHUTDOWN = (
    "WorkerPool.shutdown",
    "BaseWorkerPool.shutdown",
    "BaseWorkerPool.ashutdown",
    "WorkerOwningPool.shutdown",
    "LoopWorkerPool.shutdown",
)
ALL = ("shutdown_all_worker_pools", "WorkerPools.shutdown_all")
THREADS = ("threads",)


def open_(**settings: Any) -> Any:
    """Return what makes a runtime with pools that is entered before the scenario begins."""
    return lambda: InRuntime(**settings)


def closed(**settings: Any) -> Any:
    """Return what makes a runtime with pools that the scenario enters and leaves."""
    return lambda: InRuntime(inside=True, **settings)


# One job after the other.


@of_kinds(open_(), *ASUBMIT, within=0.0)
async def pool_jobs(state: InRuntime, kind: str) -> None:
    state.expect("work" == await state.perform(kind))
    with state.raises(Boom):
        await state.perform(kind, "fail")
    state.expect("work" == await state.perform(kind))


@of_kinds(open_(workers=1), *ASUBMIT, within=0.0)
async def pool_jobs_contended(state: InRuntime, kind: str) -> None:
    async with anyio.create_task_group() as group:
        for what in ("work", "fail", "work", "work"):
            group.start_soon(state.perform_quietly, kind, what)
    state.expect(4 == sum(note.ended for note in state.jobs.notes))


@of_kinds(open_(workers=1), *ASUBMIT, within=1.0)
async def pool_jobs_in_the_queue(state: InRuntime, kind: str) -> None:
    """Two wait for the only worker; one of them is given up."""
    async with state.holding(kind) as group:
        group.start_soon(state.perform, kind)
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as inner:
                inner.start_soon(state.perform, kind)
                await current_simulation().settle()
                scope.cancel()
    state.expect([0, 1, 1] == sorted(note.ended for note in state.jobs.notes))


@of_kinds(open_(), *ASUBMIT, within=1.0)
async def pool_job_that_takes_too_long(state: InRuntime, kind: str) -> None:
    with state.raises(WorkerTimeoutError):
        await state.perform(kind, "sleep", timeout=0.5)
    state.expect("sleep" == await state.perform(kind, "sleep", timeout=5.0))


@of_kinds(open_(workers=1), *ASUBMIT, kinds=LOOPS, within=1.0)
async def pool_job_late_in_the_queue(state: InRuntime, kind: str) -> None:
    async with state.holding(kind):
        with state.raises(WorkerTimeoutError):
            await state.perform(kind, timeout=0.5)
        await state.perform(kind, timeout=5.0)


@of_kinds(open_(), *ASUBMIT, kinds=LOOPS, within=2.0)
async def pool_job_that_is_hard_to_cancel(state: InRuntime, kind: str) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(state.perform_quietly, kind, "stubborn")
        with state.raises(WorkerTimeoutError):
            await state.perform(kind, "stubborn", timeout=0.5)
        group.cancel_scope.cancel()


@of_kinds(open_(workers=1), *ASUBMIT, kinds=THREADS, within=0.0)
async def pool_job_that_is_left_behind(state: InRuntime, kind: str) -> None:
    """Its caller goes at once, and the slot is free for others."""
    async with anyio.create_task_group() as group:
        group.start_soon(partial(state.perform, kind, "gate", abandon_on_cancel=True))
        await current_simulation().settle()
        group.cancel_scope.cancel()
    state.expect(1 == state.pools[0].metrics.abandoned)
    state.expect("work" == await state.perform(kind))


@scenario(open_(workers=1), *ASUBMIT, within=0.0)
async def pool_jobs_inside_of_jobs(state: InRuntime) -> None:
    """One pool for each level."""

    async def inner() -> None:
        pool = await state.find("tasks")
        await pool.asubmit(state.jobs.make("tasks", "work", innermost))

    async def innermost() -> None:
        await state.perform("threads")

    pool = await state.find("queue")
    state.expect("sleep" == await pool.asubmit(state.jobs.make("queue", "sleep", inner)))
    state.expect(3 == sum(note.ended for note in state.jobs.notes))


@scenario(open_(), *ASUBMIT, "AgentRuntime.run", within=0.0)
async def pool_jobs_inside_of_a_task(state: InRuntime) -> None:
    async def inner() -> Any:
        return [await state.perform(kind) for kind in KINDS]

    state.expect({"then": ["work"] * 3} == await state.run("work", {"then": inner}))


# Jobs that are handed over.


@of_kinds(open_(), *SUBMIT, within=0.0)
async def pool_submit_and_forget(state: InRuntime, kind: str) -> None:
    """Whatever becomes of whoever has submitted it, each is done once."""
    for what in ("work", "fail", "work"):
        await state.hand_over(kind, what)
        await steps()


@of_kinds(open_(workers=1), *SUBMIT, kinds=THREADS, within=0.0)
async def pool_await_futures(state: InRuntime, kind: str) -> None:
    futures = [await state.hand_over(kind, what) for what in ("work", "fail", "gate", "work")]
    state.expect("work" == await futures[0])
    with state.raises(Boom):
        await futures[1]
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as group:
            group.start_soon(_await, futures[2])
            await current_simulation().settle()
            state.expect(futures[3].cancel())
            scope.cancel()
    state.jobs.gate.set()
    state.expect("gate" == await futures[2])
    state.expect("gate" == await futures[2])


async def _await(future: Any) -> None:
    await future


@of_kinds(open_(workers=1, max_queue_size=1), *SUBMIT, *ASUBMIT, within=1.0)
async def pool_submit_to_a_full_queue(state: InRuntime, kind: str) -> None:
    """One is done, one waits; a third one is refused, unless its caller waits for it anyway."""
    async with state.holding(kind) as group:
        await state.hand_over(kind)
        with state.raises(WorkerPoolFullError):
            await state.hand_over(kind)
        with state.raises(WorkerPoolFullError):
            await state.perform(kind, when_full="raise")
        group.start_soon(state.perform, kind)
        await current_simulation().settle()
    state.expect(3 == sum(note.ended for note in state.jobs.notes))


@of_kinds(open_(workers=1, max_queue_size=1), *SUBMIT, kinds=LOOPS, within=0.0)
async def pool_submit_when_there_is_room(state: InRuntime, kind: str) -> None:
    async with anyio.create_task_group() as group:
        for what in ("sleep", "work", "sleep", "work"):
            group.start_soon(partial(state.hand_over, kind, what, when_full="wait"))


@of_kinds(closed(lose=("Crash",)), *SUBMIT, *BLOCK, kinds=LOOPS, within=1.0, allow=(Crash,))
async def pool_submit_what_crashes(state: InRuntime, kind: str) -> None:
    """The runtime has failed then, and says so at its end."""

    async def inside(state: Any) -> None:
        await state.hand_over(kind, "stubborn")
        await state.hand_over(kind, "crash")
        await anyio.sleep(5)

    await block_of_pools(state, inside)
    state.expect(any(isinstance(error, Crash) for error in state.told))


# Many at once.


@of_kinds(open_(), *MAP, within=0.0)
async def pool_map(state: InRuntime, kind: str) -> None:
    pool = await state.find(kind)
    whats = ("work", "fail", "work", "work", "work")
    jobs = [state.jobs.make(kind, what) for what in whats]
    results = await pool.amap(_call(kind), jobs)
    state.expect(["work", "Boom", "work", "work", "work"] == [name_of(result) for result in results])


@of_kinds(open_(), *MAP, kinds=LOOPS, within=0.0)
async def pool_map_in_a_limited_time(state: InRuntime, kind: str) -> None:
    pool = await state.find(kind)
    results = await pool.amap(_call(kind), [state.jobs.make(kind, "sleep") for _ in range(5)], 1.5)
    state.expect(["sleep"] * 2 + ["WorkerTimeoutError"] * 3 == [name_of(result) for result in results])


@of_kinds(open_(), *MAP, within=0.0)
async def pool_map_and_leave_early(state: InRuntime, kind: str) -> None:
    """What has not begun is taken back."""
    pool = await state.find(kind)
    found = 0
    async with pool.as_completed(_call(kind), [state.jobs.make(kind) for _ in range(9)]) as results:
        async for _ in results:
            found += 1
            if found == 2:
                break
    state.expect(found == 2)
    try:
        async with pool.as_completed(_call(kind), [state.jobs.make(kind) for _ in range(9)]) as results:
            async for _ in results:
                raise Boom("as told")
    except Boom:
        return
    state.expect(False)


def _call(kind: str) -> Any:
    def in_thread(job: Any) -> Any:
        return job()

    async def in_loop(job: Any) -> Any:
        return await job()

    return in_thread if kind == "threads" else in_loop


def name_of(result: object) -> str:
    """Return what a job has returned, or the name of what it has raised."""
    return type(result).__name__ if isinstance(result, Exception) else str(result)


# The end of a pool.


@of_kinds(open_(), *SHUTDOWN, *SUBMIT, within=1.0)
async def pool_shutdown_with_work_to_do(state: InRuntime, kind: str) -> None:
    """It drains, for all who ask for it; then another pool may have its name."""
    pool = await state.find(kind)
    for what in ("work", "sleep", "work"):
        await state.hand_over(kind, what)
    async with anyio.create_task_group() as group:
        group.start_soon(state.perform_quietly, kind)
        group.start_soon(pool.ashutdown)
        report = await pool.shutdown()
    state.expect((True, ()) == (report.drained, report.cut_short))
    with state.raises(WorkerPoolClosedError):
        await pool.asubmit(state.jobs.make(kind))
    state.expect(await state.find(kind) is not pool)
    state.expect("work" == await state.perform(kind))


@of_kinds(open_(workers=1), *SHUTDOWN, within=2.0)
async def pool_shutdown_without_a_wait(state: InRuntime, kind: str) -> None:
    """What waits is cancelled, what runs is not."""
    pool = await state.find(kind)
    async with state.holding(kind) as group:
        group.start_soon(state.perform_quietly, kind)
        await state.hand_over(kind)
        await current_simulation().settle()
        await pool.shutdown(wait=False)
    await pool.shutdown()
    state.expect([1, 0, 0] == [note.ended for note in state.jobs.notes])


@of_kinds(open_(), *SHUTDOWN, kinds=LOOPS, within=2.0)
@of_kinds(open_(), *SHUTDOWN, kinds=THREADS, within=60.0)
async def pool_shutdown_in_a_limited_time(state: InRuntime, kind: str) -> None:
    """What takes too long is cut, and named."""
    pool = await state.find(kind)
    async with anyio.create_task_group() as group:
        group.start_soon(state.perform_quietly, kind, "long")
        group.start_soon(state.perform_quietly, kind, "sleep")
        await current_simulation().settle()
        report = await pool.shutdown(timeout=1.5)
    state.expect((False, 1) == (report.drained, len(report.cut_short)))


@scenario(open_(), *ALL, within=1.0)
async def pool_shutdown_of_all(state: InRuntime) -> None:
    for kind in KINDS:
        await state.hand_over(kind)
        await state.hand_over(kind, "sleep")
    reports = await shutdown_all_worker_pools()
    state.expect(set(KINDS) == set(reports) and all(report.drained for report in reports.values()))


# The end of a runtime.


async def block_of_pools(state: InRuntime, inside: Any) -> None:
    """Enter the runtime, do something, leave it; threads that are held go on."""

    async def held(state: Any) -> None:
        try:
            await inside(state)
        finally:
            state.jobs.gate.set()

    await block(state, held)


@of_kinds(closed(grace=5.0), *BLOCK, *END, *SUBMIT, "WorkerPools.finish", within=5.0)
async def pool_leave_with_work_to_do(state: InRuntime, kind: str) -> None:
    async def inside(state: Any) -> None:
        for what in ("sleep", "work", "fail"):
            await state.hand_over(kind, what)

    await block_of_pools(state, inside)
    state.expect([1, 1, 1] == [note.ended for note in state.jobs.notes])
    state.expect(() == state.runtime.report.jobs_cut_short)


@of_kinds(closed(grace=0.5, workers=1), *BLOCK, *END, "WorkerPools.finish", kinds=LOOPS, within=2.0)
async def pool_leave_when_the_grace_is_over(state: InRuntime, kind: str) -> None:
    async def inside(state: Any) -> None:
        for what in ("stubborn", "long", "work"):
            await state.hand_over(kind, what)

    await block_of_pools(state, inside)
    state.expect(3 == len(state.runtime.report.jobs_cut_short))


@of_kinds(closed(grace=1.0), *BLOCK, *END, *ASUBMIT, within=2.0)
async def pool_leave_while_jobs_are_waited_for(state: InRuntime, kind: str) -> None:
    """Whoever waits for a job is told, or has it."""

    async def waits(given: Any) -> None:
        # While all threads wait for the event loop, with more jobs behind them, a simulation cannot go on.
        await state.perform(kind, "work" if kind == "threads" else "sleep")

    async def inside(state: Any) -> None:
        state.runtime.handler("waits")(waits)
        for _ in range(3):
            await state.submit("waits")
        await state.perform(kind)

    await block_of_pools(state, inside)


@of_kinds(closed(grace=1.0), *BLOCK, *ASUBMIT, within=2.0)
async def pool_leave_by_an_error(state: InRuntime, kind: str) -> None:
    async def inside(state: Any) -> None:
        await state.hand_over(kind)
        await state.hand_over(kind, "sleep")
        await steps(2)
        raise ValueError("the block fails")

    try:
        await block_of_pools(state, inside)
    except ValueError:
        return
    state.told = [error for error in state.told if not isinstance(error, ValueError)]


@scenario(closed(), *BLOCK, *ASUBMIT, within=1.0)
async def pool_after_the_end(state: InRuntime) -> None:
    """A pool takes nothing any more when its runtime has been left; a runtime makes none."""

    async def inside(state: Any) -> None:
        for kind in KINDS:
            await state.perform(kind)

    await block_of_pools(state, inside)
    for pool in state.pools:
        with state.raises(WorkerPoolClosedError):
            await pool.asubmit(state.jobs.make(pool.name))
    with state.raises(RuntimeClosedError):
        state.runtime.pool("other")
