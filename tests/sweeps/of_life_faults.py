"""A life of a runtime in which calls go wrong: what each plan of faults must leave as it was, whatever it does on the way."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

import anyio

from agentcore import Backoff, CoreError, RetryPolicy
from agentcore.testing import FaultPlan, Target, inject
from tests.sweeps.of_life import Life
from tests.sweeps.of_life_ends import Asynchronous
from tests.sweeps.of_life_groups import grouped, mapped, start
from tests.sweeps.of_runtime import block
from tests.sweeps.scenarios import Boom, Runtime

BOOM: Final = "tests.sweeps.scenarios:Boom"
TARGETS: Final = {
    "open": Target(Asynchronous, "__aenter__"),
    "close": Target(Asynchronous, "__aexit__"),
}
ANY: Final = (f"raise({BOOM})", f"raise_after({BOOM})", "delay(3)", "hang", "cancel", "duplicate")
# What is never closed because the fault is in the place of the call, or is closed twice, is not what is looked at here.
END: Final = (f"raise_after({BOOM})", "delay(0.5)")
LIKELY: Final[tuple[tuple[str, tuple[str, ...]], ...]] = (
    ("handler:work", (*ANY, "corrupt(7)")),
    ("handler:sleep", ANY),
    ("agent:first", (*ANY, "corrupt(7)")),
    ("agent:temporary", ANY),
    ("agent:first.initialize", ANY),
    ("agent:first.terminate", END),
    ("agent:temporary.terminate", (f"raise_after({BOOM})",)),
    ("resource:db", (f"raise({BOOM})", f"raise_after({BOOM})", "delay(3)", "hang", "cancel", "duplicate")),
    ("open", (f"raise({BOOM})", "delay(0)", "hang", "cancel")),
    ("close", (*END, "cancel")),
)
PLANS: Final = tuple(
    f"{target}#{call}:{action}"
    for target, actions in LIKELY
    for action in actions
    for call in ((1,) if target in ("resource:db", "agent:first.initialize", "agent:first.terminate") else (1, 2))
)
"""One fault each, at the first call of a target or at the second one."""


def make() -> Life:
    """Make the state that plans of faults work on."""
    lose = ("Boom", "CallTimeoutError", "AgentTimeoutError", "CoreError")
    return Life(inside=True, in_flight=2, grace=1.0, lose=lose, broken=True)


def make_retrying() -> Life:
    """Make the same, whose tasks are executed again when they fail."""
    lose = ("Boom", "CallTimeoutError", "AgentTimeoutError", "CoreError")
    policy: Any = RetryPolicy(attempts=3, backoff=Backoff(0.25))
    return Life(inside=True, in_flight=2, grace=1.0, lose=lose, broken=True, retry=policy)


async def patiently(work: Callable[[], Awaitable[object]]) -> None:
    """Do something that may hang or fail."""
    try:
        with anyio.move_on_after(20):
            await work()
    except (CoreError, Boom):
        return


async def everything(state: Life) -> None:
    """Use each kind of call at least once, several at a time, and leave something to the exit."""

    async def submitted() -> None:
        handle = await state.submit("work", timeout=5)
        with anyio.move_on_after(9):
            await state.retrieve(handle)

    async def in_group() -> None:
        async def body(group: Any) -> None:
            start(state, group, "work", timeout=5)
            start(state, group, "sleep", timeout=5)

        await grouped(state, body)

    async def inside(state: Any) -> None:
        async with anyio.create_task_group() as group:
            for work in (
                lambda: state.runtime.resource(Asynchronous("db", state.log), "db", close_timeout=2.0),
                lambda: state.runtime.resource(Asynchronous("other", state.log), close_timeout=2.0),
                lambda: state.ask("sleep", timeout=5.0),
                lambda: state.ask("work", "temporary", timeout=5.0),
                lambda: state.ask(ask=("second", "temporary"), timeout=9.0),
                lambda: state.listen(emit=2),
                lambda: state.listen(ref="temporary", emit=3, most=1),
                lambda: state.run("work", timeout=5),
                lambda: mapped(state, "sleep", 3, limit=2, timeout=5),
                submitted,
                in_group,
            ):
                group.start_soon(patiently, work)
        await state.submit("sleep")
        await state.submit("long")

    await block(state, inside)


async def with_faults(plan: FaultPlan | str, build: Callable[[], Runtime] = make) -> tuple[int, float]:
    """Go through everything with these faults, then look at what is left; return how many faults there were, and the time."""
    state: Any = build()
    async with state:
        with anyio.CancelScope() as scope, inject(plan, TARGETS, scope=scope) as injection:
            await everything(state)
        await state.check()
    return len(injection.fired), anyio.current_time()
