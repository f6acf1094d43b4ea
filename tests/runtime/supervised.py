"""Agents that are spawned and told what to do, and a record of what became of all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import anyio
import pytest

from agentcore import (
    AgentConfig,
    AgentContext,
    AgentCrash,
    AgentRef,
    AgentResult,
    AgentRuntime,
    AgentSupervisor,
    Backoff,
    BaseAgent,
    CoreError,
    Event,
    RuntimeConfig,
    Supervisor,
)
from agentcore.testing import current_simulation
from tests.runtime.lives import check_gone

both_kinds = pytest.mark.parametrize("hosted", [False, True], ids=["strict", "hosted"])
# For what takes long: the other kind at another time.
both_at_length = pytest.mark.parametrize(
    "hosted", [False, pytest.param(True, marks=pytest.mark.thorough)], ids=["strict", "hosted"]
)
NO_WAIT: Final = Backoff(initial=0, maximum=0)
TEN: Final = Backoff(initial=10, maximum=10, jitter=False)
NAMES: Final = ("one", "two", "three")
Live = Callable[[AgentContext], Awaitable[None]]


def at_once(strategy: str = "one_for_one", intensity: int = 1_000_000, **settings: Any) -> Supervisor:
    """Return a supervisor that starts agents again at once, and for as long as it takes."""
    return Supervisor(strategy, intensity, backoff=NO_WAIT, **settings)


class Boom(Exception):
    """What agents of these tests raise."""


class Log:
    """What has happened to agents, in order.

    Attributes:
        entries: what happened, such as ``up one`` and ``down one``.
        handled: the numbers of the messages and asks that were handled to the end, by agent.
        starts: what `initialize` does at each start, by agent; the rest succeeds.
    """

    def __init__(self) -> None:
        self.entries: list[str] = []
        self.handled: dict[str, list[Any]] = {}
        self.starts: dict[str, list[Any]] = {}
        self.lives: dict[str, Live] = {}
        self.ends: dict[str, Any] = {}
        self.made: Counter[str] = Counter()
        self.events: list[Event] = []

    def note(self, what: str) -> None:
        """Note something."""
        self.entries.append(what)

    def take(self) -> list[str]:
        """Return what has happened since the last time."""
        entries, self.entries = self.entries, []
        return entries

    def make(self, config: AgentConfig) -> Told:
        """Make an agent that notes here what happens to it."""
        self.made[config.name] += 1
        return (Living if config.name in self.lives else Told)(config, self)

    def of(self, *types: str) -> list[tuple[str, Any]]:
        """Return the events of some types, with the agent or supervisor that each is of."""
        return [
            (event.event_type, event.data.get("agent", event.data.get("supervisor")))
            for event in self.events
            if event.event_type in types
        ]


class Told(BaseAgent):
    """An agent that does what the parameters say.

    ``do`` is a word: ``crash``, ``boom`` (which ``handle_error`` does not mend), ``fail`` (which it does), ``exit``,
    ``interrupt``, ``hang``; or a coroutine function that takes the context. ``n`` is noted when it is handled.
    """

    def __init__(self, config: AgentConfig, log: Log) -> None:
        super().__init__(config)
        self.log = log

    async def initialize(self) -> bool:
        starts = self.log.starts.get(self.name, [])
        what = starts.pop(0) if starts else True
        if callable(what):
            what = await what() is not False
        if isinstance(what, BaseException):
            raise what
        self.log.note(f"up {self.name}" if what else f"not up {self.name}")
        return bool(what)

    async def process(self, context: AgentContext) -> AgentResult:
        what = context.input.get("do")
        if callable(what):
            await what(context)
        elif what is not None:
            await _do(what)
        self.log.handled.setdefault(self.name, []).append(context.input.get("n"))
        return AgentResult.success_result({"by": self.name, "n": context.input.get("n")})

    async def handle_error(self, error: Exception, context: AgentContext) -> AgentResult:
        if isinstance(error, Boom) and context.input.get("do") == "boom":
            raise error
        return AgentResult.success_result({"error": repr(error)})

    async def terminate(self) -> None:
        self.log.note(f"down {self.name}")
        if (end := self.log.ends.get(self.name)) is not None:
            await end()


class Living(Told):
    """One that does something by itself."""

    async def live(self, context: AgentContext) -> None:
        await self.log.lives[self.name](context)


async def _do(what: str) -> None:
    if what == "hang":
        await anyio.sleep_forever()
    errors = {
        "crash": AgentCrash("as told"),
        "boom": Boom("as told"),
        "fail": Boom("as told"),
        "exit": SystemExit(3),
        "interrupt": KeyboardInterrupt(),
    }
    raise errors[what]


def config(name: str, **settings: Any) -> AgentConfig:
    """Return the configuration of an agent of that name."""
    return AgentConfig(name, "told", **settings)


@asynccontextmanager
async def supervised(
    hosted: bool = False, *, supervisor: Supervisor | None = None, grace: float = 1.0, alone: bool = True, **limits: int
) -> AsyncGenerator[tuple[AgentRuntime, Log]]:
    """Enter a runtime and leave it; then check that nothing is left: no task, message, ask, and everything was ended once."""
    before = len(current_simulation().tasks())
    log = Log()
    runtime = AgentRuntime(
        RuntimeConfig(**limits), supervisor=at_once() if supervisor is None else supervisor, grace=grace, hosted=hosted
    )
    runtime.subscribe(log.events.append)
    try:
        async with runtime:
            yield runtime, log
    finally:
        await check_gone(runtime)
        with anyio.CancelScope(shield=True):
            await current_simulation().settle()
        assert not alone or len(current_simulation().tasks()) == before
        assert 0 == runtime.statistics().messages
        assert [] == runtime.supervisor._agents()
        assert Counter(log.of("agent_started")).total() == Counter(log.of("agent_stopped")).total()
        assert {name for _, name in log.of("agent_started")} == {name for _, name in log.of("agent_stopped")}


async def settle() -> None:
    """Let everything go on that can, in this moment."""
    await current_simulation().settle()


async def crash(runtime: AgentRuntime, ref: AgentRef | str) -> None:
    """Have an agent crash by an ask, and wait until that has had its consequences."""
    with pytest.raises(AgentCrash):
        await runtime.ask(ref, {"do": "crash"})
    await settle()


async def told(work: Callable[[], Awaitable[Any]]) -> type[CoreError] | None:
    """Return which error of this library a call raises."""
    try:
        await work()
    except CoreError as error:
        return type(error)
    return None


async def spawn_all(runtime: AgentRuntime, log: Log, *names: str, **options: Any) -> dict[str, AgentRef]:
    """Spawn agents, and forget how they have come up."""
    refs = {name: await runtime.spawn(log.make, config(name), **options) for name in names}
    log.take()
    return refs


async def below(
    runtime: AgentRuntime, log: Log, *names: str, **settings: Any
) -> tuple[AgentSupervisor, dict[str, AgentRef]]:
    """Start a supervisor below the first one, and agents below that."""
    restart = settings.pop("restart", "permanent")
    supervisor = await runtime.supervisor.supervise("below", Supervisor(**settings), restart=restart)
    return supervisor, {name: await supervisor.spawn(log.make, config(name)) for name in names}
