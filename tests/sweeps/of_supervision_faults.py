"""A life of supervised agents in which calls go wrong: when the faults are over, every agent is up and handles messages."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import anyio

from agentcore import AgentRef, Backoff, CoreError, Supervisor
from agentcore.testing import FaultPlan, inject
from tests.sweeps.of_supervision import Tree, crash
from tests.sweeps.scenarios import Boom

BOOM: Final = "tests.sweeps.scenarios:Boom"
ANY: Final = (f"raise({BOOM})", f"raise_after({BOOM})", "raise(AgentCrash)", "delay(3)", "hang", "cancel")
LIKELY: Final[tuple[tuple[str, tuple[str, ...]], ...]] = (
    ("agent:first", (*ANY, "corrupt(7)")),
    ("agent:second", ANY),
    ("agent:third", ANY),
    ("agent:first.initialize", (*ANY, "corrupt(False)", "raise(SystemExit)")),
    ("agent:third.initialize", (*ANY, "corrupt(False)")),
    ("agent:first.handle_error", ANY),
    ("agent:first.terminate", (f"raise_after({BOOM})", "delay(0.5)")),
    ("agent:third.terminate", (f"raise_after({BOOM})", "delay(3)")),
    ("agent:lively.live", (f"raise({BOOM})", "raise(AgentCrash)", "delay(3)", "hang")),
)
PLANS: Final = tuple(f"{target}#{call}:{action}" for target, actions in LIKELY for action in actions for call in (1, 2))
"""One fault each, at the first call of a target or at the second one."""


def make(strategy: str = "one_for_one") -> Tree:
    """Make the state that plans of faults work on."""
    lose = ("Boom", "AgentTimeoutError", "AgentCrash", "CoreError", "AgentCrashedError")
    return Tree(strategy=strategy, delay=0.5, lose=lose, in_flight=3, is_empty=True)


async def patiently(work: Callable[[], Awaitable[object]]) -> None:
    """Do something that may hang or fail."""
    try:
        with anyio.move_on_after(20):
            await work()
    except (CoreError, Boom, SystemExit):
        return


async def everything(state: Tree) -> None:
    """Spawn, tell, ask, have agents crash and stop, several at a time, below two supervisors."""
    config = Supervisor("rest_for_one", intensity=2, period=1.0, backoff=Backoff(initial=0.25, maximum=1))
    below = await state.runtime.supervisor.supervise("below", config)
    gone: list[AgentRef] = []

    async def stop() -> None:
        gone.append(await state.spawn("gone", below))
        await state.tell("sleep", gone[0])
        await gone[0].stop()

    async def send(sender: str, *words: str) -> None:
        for do in words:
            await patiently(lambda do=do: state.tell(do, sender.partition(" ")[0], sender))

    async def submitted() -> None:
        handle = await state.submit("second", {"do": "sleep"}, timeout=5)
        with anyio.move_on_after(9):
            await state.retrieve(handle)

    for name in ("first", "second", "lively"):
        await patiently(lambda name=name: state.spawn(name))
    await patiently(lambda: state.spawn("third", below))
    async with anyio.create_task_group() as group:
        for work in (
            stop,
            lambda: send("first 1", "work", "sleep", "fail", "work", "sleep"),
            lambda: send("first 2", "work", "work"),
            lambda: send("second 1", "sleep", "work", "sleep"),
            lambda: send("third 1", "work", "fail", "work", "fail", "fail", "work"),
            lambda: state.ask("sleep", "first"),
            lambda: state.ask("work", "third", then=crash),
            lambda: state.run("first", {"do": "sleep"}, timeout=5),
            submitted,
        ):
            group.start_soon(patiently, work)
    await anyio.sleep(12)


async def with_faults(plan: FaultPlan | str, build: Callable[[], Tree] = make) -> tuple[int, float]:
    """Go through everything with these faults, then look whether all is well; return how many there were, and the time."""
    state = build()
    async with state:
        with anyio.CancelScope() as scope, inject(plan, scope=scope) as injection:
            await everything(state)
        await state.check()
    return len(injection.fired), anyio.current_time()
