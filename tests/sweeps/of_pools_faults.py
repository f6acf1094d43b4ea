"""A life of worker pools in which calls go wrong: what each plan of faults must leave as it was, whatever it does on the way."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError
from functools import partial
from typing import Any, Final

import anyio

from agentcore import AgentCrashedError, CoreError
from agentcore.testing import FaultPlan, Target, inject
from tests.sweeps.of_life_faults import BOOM
from tests.sweeps.of_pools import _call, block_of_pools
from tests.sweeps.pool_states import KINDS, InHost, InRuntime, Jobs
from tests.sweeps.scenarios import Boom

TARGETS: Final = {"job": Target(Jobs, "step")}
AT_A_CALL: Final = (
    f"raise({BOOM})",
    f"raise_after({BOOM})",
    "delay(3)",
    "hang",
    "cancel",
    "duplicate",
    "corrupt(7)",
)
IN_A_JOB: Final = (f"raise({BOOM})", f"raise_after({BOOM})", "raise(SystemError)")
LIKELY: Final = (*((f"pool:{kind}", AT_A_CALL) for kind in KINDS), ("job", IN_A_JOB))
PLANS: Final = tuple(
    f"{target}#{call}:{action}"
    for target, actions in LIKELY
    for action in actions
    for call in ((1, 4) if target.startswith("pool") else (1, 5, 9))
)
"""One fault each: at the first job that somebody waits for, or at a later one; in a job."""


def make() -> InRuntime:
    """Make a runtime with pools, which plans of faults work on."""
    return InRuntime(inside=True, grace=1.0, lose=("CoreError",))


def make_host() -> InHost:
    """Make pools of the event loop."""
    return InHost()


async def patiently(work: Callable[[], Awaitable[object]]) -> None:
    """Do something that may hang or fail."""
    try:
        with anyio.move_on_after(20):
            await work()
    except (CoreError, Boom, SystemError, CancelledError):  # the last one is that of a future
        return


async def everything(state: Any) -> None:
    """Use each kind of call of each kind of pool, several at a time, and leave something to the exit."""

    async def mapped(kind: str) -> None:
        pool = await state.find(kind)
        await pool.amap(_call(kind), [state.jobs.make(kind) for _ in range(3)], 9.0)

    async def one_by_one(kind: str) -> None:
        pool = await state.find(kind)
        async with pool.as_completed(_call(kind), [state.jobs.make(kind) for _ in range(3)]) as results:
            async for _ in results:
                pass

    async def handed_over(kind: str) -> None:
        future = await state.hand_over(kind)
        if future is not None:
            await future

    async with anyio.create_task_group() as group:
        for kind in KINDS:
            for work in (
                partial(state.perform, kind, timeout=5.0),
                partial(state.perform, kind, "fail"),
                partial(state.perform, kind),
                partial(mapped, kind),
                partial(one_by_one, kind),
                partial(handed_over, kind),
            ):
                group.start_soon(patiently, work)
    for kind in KINDS:
        await patiently(partial(state.hand_over, kind))


async def with_faults(plan: FaultPlan | str, build: Callable[[], Any] = make) -> tuple[int, float]:
    """Go through everything with these faults, then look at what is left; return how many faults there were, and the time."""
    state = build()
    state.jobs.most = 2 if "duplicate" in str(plan) else 1
    async with state:
        with anyio.CancelScope() as scope, inject(plan, TARGETS, scope=scope) as injection:
            if isinstance(state, InRuntime):
                try:
                    await block_of_pools(state, everything)
                except AgentCrashedError as error:
                    state.note(error)
            else:
                await everything(state)
        took = anyio.current_time()
        await state.check()
    return len(injection.fired), took
