"""Sweeps of worker pools that live outside of every runtime: in the event loop, or in a block of their own."""

from __future__ import annotations

from functools import partial
from typing import Any

import anyio

from agentcore import get_worker_pool, shutdown_all_worker_pools
from agentcore.testing import current_simulation
from tests.sweeps.of_pools import ALL, ASUBMIT, MAP, SHUTDOWN, SUBMIT, THREADS
from tests.sweeps.pool_states import CLASSES, KINDS, LOOPS, Alone, InHost, of_kinds
from tests.sweeps.scenarios import Boom, scenario, steps

GET = ("get_worker_pool", "HostedWorkerPools.find_or_make")
BLOCK = ("BaseWorkerPool.__aenter__", "BaseWorkerPool.__aexit__", "LoopWorkerPool.__aenter__")


# In the event loop.


@of_kinds(InHost, *GET, *ASUBMIT, within=0.0)
async def host_jobs(state: InHost, kind: str) -> None:
    state.expect("work" == await state.perform(kind))
    with state.raises(Boom):
        await state.perform(kind, "fail")
    await state.hand_over(kind)


@of_kinds(InHost, *GET, *ASUBMIT, within=0.0)
async def host_pool_asked_for_from_several_sides(state: InHost, kind: str) -> None:
    """Whoever comes first may be cancelled while it is made: the others have it all the same."""
    found = []

    async def find() -> None:
        found.append(await state.find(kind))

    async with anyio.create_task_group() as group:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as inner:
                inner.start_soon(find)
                await steps()
                scope.cancel()
        for _ in range(2):
            group.start_soon(find)
        await state.perform(kind)
    state.expect(1 == len(set(found)))


@scenario(InHost, *GET, *ALL, *SUBMIT, within=1.0)
async def host_pools_shut_down(state: InHost) -> None:
    """They drain; then others may have their names."""
    for kind in KINDS:
        await state.hand_over(kind)
        await state.hand_over(kind, "sleep")
    reports = await shutdown_all_worker_pools()
    state.expect(set(KINDS) == set(reports) and all(report.drained for report in reports.values()))
    state.expect([2, 2, 2] == [sum(n.ended for n in state.jobs.notes if n.kind == kind) for kind in KINDS])
    for kind in KINDS:
        await state.perform(kind)


@scenario(lambda: InHost(workers=1), *GET, *ALL, within=2.0)
async def host_pools_shut_down_in_a_hurry(state: InHost) -> None:
    """First without a wait, then for as long as it takes."""
    async with state.holding(*KINDS) as group:
        for kind in KINDS:
            group.start_soon(state.perform_quietly, kind)
        await current_simulation().settle()
        await shutdown_all_worker_pools(wait=False)
    await shutdown_all_worker_pools()
    state.expect(3 == sum(note.ended for note in state.jobs.notes))


@scenario(InHost, *GET, *ALL, within=60.0)
async def host_pools_shut_down_in_a_limited_time(state: InHost) -> None:
    async with anyio.create_task_group() as group:
        for kind in KINDS:
            group.start_soon(state.perform_quietly, kind, "long")
            group.start_soon(state.perform_quietly, kind, "sleep")
        await current_simulation().settle()
        reports = await shutdown_all_worker_pools(timeout=1.5)
    state.expect([1, 1, 1] == [len(reports[kind].cut_short) for kind in KINDS])


@of_kinds(InHost, *GET, *SHUTDOWN, within=1.0)
async def host_pool_shut_down_while_it_is_asked_for(state: InHost, kind: str) -> None:
    async def use() -> None:
        pool = state.know(await get_worker_pool(kind, CLASSES[kind].pool_type, state.config(kind)))
        await pool.shutdown()

    async with anyio.create_task_group() as group:
        for _ in range(2):
            group.start_soon(use)
            group.start_soon(state.perform_quietly, kind)


# In a block.


@of_kinds(Alone, *BLOCK, *ASUBMIT, *SUBMIT, within=1.0)
async def own_pool(state: Alone, kind: str) -> None:
    """It drains at the end of its block."""
    async with state.pool:
        state.expect("work" == await state.perform(kind))
        await state.hand_over(kind)
        await state.hand_over(kind, "sleep")
    state.expect([1, 1, 1] == [note.ended for note in state.jobs.notes])


@of_kinds(Alone, *BLOCK, *MAP, within=1.0)
async def own_pool_left_by_an_error(state: Alone, kind: str) -> None:
    """What waits is cancelled, what runs is waited for."""
    is_told = False
    try:
        async with state.pool, anyio.create_task_group() as group:
            for _ in range(4):
                group.start_soon(state.perform_quietly, kind)
            await steps()
            raise Boom("as told")
    except* Boom:
        is_told = True
    state.expect(is_told)


@of_kinds(Alone, *BLOCK, *SHUTDOWN, within=2.0)
async def own_pool_shut_down_inside(state: Alone, kind: str) -> None:
    async with state.pool as pool:
        await state.hand_over(kind, "sleep")
        async with anyio.create_task_group() as group:
            group.start_soon(state.perform_quietly, kind)
            group.start_soon(pool.shutdown)
            group.start_soon(partial(pool.shutdown, wait=False))
            await pool.shutdown(timeout=5.0)


@of_kinds(Alone, *BLOCK, *SHUTDOWN, kinds=LOOPS, within=1.5)
async def own_pool_with_what_is_hard_to_cancel(state: Alone, kind: str) -> None:
    async with state.pool as pool:
        await state.hand_over(kind, "stubborn")
        await state.hand_over(kind, "long")
        await steps(3)
        await pool.shutdown(timeout=0.5)


@of_kinds(Alone, *BLOCK, kinds=THREADS, within=1.0)
async def own_pool_entered_and_left(state: Alone, kind: str) -> None:
    """With a plain `with` as well, for jobs that nobody waits for."""

    async def submit() -> Any:
        with state.pool:
            return await state.hand_over(kind)

    future = await submit()
    state.expect("work" == await future)
    await steps()
