"""Spawning: what can be started, and what is left of it when that fails or is cut short."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Self

import anyio
import anyio.lowlevel
import pytest

from agentcore import (
    AgentCrash,
    AgentCrashedError,
    AgentError,
    AgentInitializationError,
    AgentRuntime,
    AgentTerminatedError,
    ConfigurationError,
    RuntimeClosedError,
    Supervisor,
)
from agentcore.testing import cancel_everywhere, current_simulation, simulate
from tests.runtime.supervised import (
    NO_WAIT,
    Boom,
    Log,
    Told,
    at_once,
    both_kinds,
    config,
    crash,
    settle,
    supervised,
    told,
)

RUNS = 5


# Spawning.


@both_kinds
@simulate(runs=RUNS)
async def test_what_can_be_spawned(hosted: bool) -> None:
    """A class, a factory, an agent that is there; and nothing else."""

    class OwnLog(Told):
        def __init__(self, config: Any) -> None:
            super().__init__(config, log)

    async with supervised(hosted) as (runtime, log):
        one = await runtime.spawn(OwnLog, config("one"), restart="transient")
        two = await runtime.spawn(log.make, config("two"))
        there = Told(config("three"), log)
        three = await runtime.spawn(there)
        four = await runtime.spawn(Told(config("four"), log), restart="temporary", shutdown=3.0)
        assert there is three.agent
        assert 3.0 == four.config.terminate_timeout
        assert isinstance(one.agent, OwnLog)
        for ref in (one, two):
            await crash(runtime, ref)
            assert (1, "up") == (ref.restarts, ref.state)
            assert (await runtime.ask(ref)).success
        assert 2 == log.made["two"]
        await there.terminate()
        await settle()
        assert "stopped" == three.state


async def make_late(_: Any) -> None:
    """Be a factory that has to be awaited, which is none."""


UNUSABLE: list[tuple[Callable[[Log], tuple[Any, ...]], dict[str, Any], str]] = [
    (lambda log: (log.make,), {}, "an AgentConfig: got"),
    (lambda log: (log.make, {"name": "one"}), {}, "an AgentConfig: got"),
    (lambda _: (7, config("one")), {}, "a class of agents or a factory"),
    (lambda _: (int, config("one")), {}, None),  # type: ignore[list-item]
    (lambda _: (make_late, config("one")), {}, "return a BaseAgent"),
    (lambda _: ((lambda _: 7), config("one")), {}, "return a BaseAgent"),
    (lambda log: (Told(config("one"), log),), {"restart": "permanent"}, "cannot be made once more"),
    (lambda log: (Told(config("one"), log),), {"config": config("two")}, "cannot be made once more"),
    (lambda log: (log.make, config("one")), {"restart": "sometimes"}, "restart of an agent must be one of"),
    (lambda log: (log.make, config("one")), {"mailbox": 0}, "mailbox"),
    (lambda log: (log.make, config("one")), {"mailbox": 1.5}, "mailbox"),
    (lambda log: (log.make, config("one")), {"shutdown": -1}, "shutdown"),
    (lambda log: (log.make, config("one")), {"shutdown": "soon"}, "shutdown"),
]


@pytest.mark.parametrize(("arguments", "options", "message"), UNUSABLE)
@simulate(runs=1)
async def test_what_cannot_be_spawned(
    arguments: Callable[[Log], tuple[Any, ...]], options: dict[str, Any], message: str | None
) -> None:
    """Nothing is left of the attempt: the name is free."""
    async with supervised() as (runtime, log):
        with pytest.raises(ConfigurationError if message is not None else TypeError, match=message):
            await runtime.spawn(*arguments(log), **options)
        assert [] == runtime.supervisor._agents()
        assert "up" == (await runtime.spawn(log.make, config("one"))).state


@simulate(runs=RUNS)
async def test_an_agent_has_one_supervisor_at_a_time() -> None:
    """One that another runtime runs already is refused, and goes on there; afterwards it is terminated."""
    async with supervised() as (first, log), supervised(True, alone=False) as (second, _):
        agent = Told(config("one"), log)
        ref = await first.spawn(agent)
        with pytest.raises(ConfigurationError, match="an agent has one supervisor at a time"):
            await second.spawn(agent)
        with pytest.raises(ConfigurationError, match="an agent has one supervisor at a time"):
            await first.spawn(lambda _: agent, config("two"))
        assert ("up", ["up one"]) == (ref.state, log.entries)
        assert (await first.ask(ref)).success
        await ref.stop()
        assert AgentTerminatedError is await told(lambda: second.spawn(agent))


@simulate(runs=RUNS)
async def test_a_name_is_given_once_in_the_whole_tree() -> None:
    """To an agent or a supervisor, also while it is being initialised; it is free when that one is gone."""
    async with supervised() as (runtime, log):
        below = await runtime.supervisor.supervise("below")
        ref = await below.spawn(log.make, config("one"))
        log.starts["slow"] = [partial(anyio.sleep, 1)]
        async with anyio.create_task_group() as group:
            group.start_soon(runtime.spawn, log.make, config("slow"), name="")
            await settle()
            for name in ("one", "below", "slow"):
                for spawn in (runtime.spawn, below.spawn):
                    with pytest.raises(AgentError, match=f"is given once: got '{name}'"):
                        await spawn(log.make, config(name))
                with pytest.raises(AgentError, match=f"is given once: got '{name}'"):
                    await runtime.supervisor.supervise(name)
            group.cancel_scope.cancel()
        await ref.stop()
        await below.stop()
        for name in ("one", "below", "slow"):
            await runtime.spawn(log.make, config(name))


@both_kinds
@simulate(runs=RUNS)
async def test_an_agent_that_cannot_be_initialised_is_not_there(hosted: bool) -> None:
    """The spawner is told, it is terminated, its name is free, and messages that came by it are dropped."""
    async with supervised(hosted) as (runtime, log):
        for start in (False, Boom("at the start"), SystemExit(3)):
            log.starts["one"] = [start]
            with pytest.raises(SystemExit if isinstance(start, SystemExit) else AgentInitializationError):
                await runtime.spawn(log.make, config("one"))
            assert "down one" == log.take()[-1]
        log.starts["one"] = [partial(anyio.sleep, 1), Boom("at the second start")]

        async def fail() -> None:
            await anyio.sleep(1)
            raise Boom("late")

        log.starts["one"] = [fail]
        async with anyio.create_task_group() as group:

            async def spawn() -> None:
                assert AgentInitializationError is await told(lambda: runtime.spawn(log.make, config("one")))

            async def ask() -> None:
                assert AgentTerminatedError is await told(lambda: runtime.ask("one"))

            group.start_soon(spawn)
            await settle()
            group.start_soon(ask)
            await runtime.tell("one", {"n": 1})
        assert [("message_dropped", "one")] == log.of("message_dropped")
        assert () == runtime.supervisor.children
        assert [] == log.of("agent_started", "agent_crashed")


@both_kinds
@simulate(runs=RUNS)
async def test_an_initialisation_that_hangs_is_cut(hosted: bool) -> None:
    """By the timeout of the agent: at the spawn the spawner is told, at a restart it is one more crash."""
    supervisor = Supervisor(intensity=3, backoff=NO_WAIT, period=100)
    async with supervised(hosted, supervisor=supervisor) as (runtime, log):
        log.starts["one"] = [anyio.sleep_forever]
        assert AgentInitializationError is await told(lambda: runtime.spawn(log.make, config("one", timeout=2)))
        assert 2 == anyio.current_time()
        log.starts["one"] = [True, anyio.sleep_forever, False]
        ref = await runtime.spawn(log.make, config("one", timeout=2))
        await crash(runtime, ref)
        assert "restarting" == ref.state
        assert (await runtime.ask(ref)).success
        assert (4, 1, 3) == (anyio.current_time(), ref.restarts, len(log.of("agent_crashed")))


@pytest.mark.parametrize("start", [False, Boom("again"), SystemExit(3), ValueError("made wrongly")])
@both_kinds
@simulate(runs=RUNS)
async def test_a_failed_restart_is_a_crash(hosted: bool, start: Any) -> None:
    """It counts, and is tried again; the one that could not come up is terminated."""
    with pytest.raises(AgentCrashedError) as caught:
        async with supervised(hosted, supervisor=Supervisor(intensity=2, backoff=NO_WAIT)) as (runtime, log):

            def make(given: Any) -> Told:
                if isinstance(start, ValueError) and log.made["one"]:
                    raise start
                return log.make(given)

            log.starts["one"] = [True, start, start]
            ref = await runtime.spawn(make, config("one"))
            await runtime.tell(ref, {"do": "crash"})
            await anyio.sleep(1)
    group = caught.value.exceptions[0]
    assert isinstance(group, AgentCrashedError)
    second = {False: AgentInitializationError, SystemExit: AgentCrash, ValueError: ValueError}
    expected = second.get(
        type(start), second.get(start, AgentInitializationError) if start is False else AgentInitializationError
    )
    assert [AgentCrash, expected, expected] == [type(error) for error in group.exceptions]
    assert log.made["one"] == log.entries.count("down one")


class Attempt:
    """A spawn that can be cut short anywhere."""

    async def __aenter__(self) -> Self:
        self.log = Log()
        self.log.starts["one"] = [self._start]
        self.runtime = AgentRuntime(supervisor=at_once(), grace=1)
        await self.runtime.__aenter__()
        return self

    async def _start(self) -> bool:
        await anyio.lowlevel.checkpoint()
        await anyio.sleep(1)
        return True

    async def act(self) -> None:
        """Spawn an agent, and use it."""
        ref = await self.runtime.spawn(self.log.make, config("one"))
        assert (await self.runtime.ask(ref, {"n": 1})).success

    async def check(self) -> None:
        """Whatever has been made is in the tree or was terminated."""
        await current_simulation().settle()
        agents = self.runtime.supervisor._agents()
        assert self.log.made["one"] == len(agents) + self.log.entries.count("down one")
        for agent in agents:
            assert ("up", (self.runtime.supervisor._find("one"),)) == (agent.state, (agent,))
        if not agents:
            self.log.starts.clear()
            await self.act()

    async def __aexit__(self, *error: object) -> None:
        await self.runtime.__aexit__(*error)
        assert self.log.made["one"] == self.log.entries.count("down one")


def test_a_spawn_that_is_cancelled_anywhere_leaves_nothing() -> None:
    cancel_everywhere(Attempt.act, build=Attempt, check=Attempt.check, schedules=("fifo", "walk/1"))


@both_kinds
@simulate(runs=RUNS)
async def test_nothing_is_spawned_into_a_runtime_that_ends(hosted: bool) -> None:
    """Neither begun, nor finished: what was being initialised is terminated, and the spawner is told."""
    async with supervised(hosted) as (runtime, log):
        log.starts["slow"] = [partial(anyio.sleep, 1)]

        async def spawn() -> None:
            assert RuntimeClosedError is await told(lambda: runtime.spawn(log.make, config("slow")))

        async with anyio.create_task_group() as group:
            group.start_soon(spawn)
            await settle()
            assert await runtime.drain()
            assert RuntimeClosedError is await told(lambda: runtime.spawn(log.make, config("one")))
            assert RuntimeClosedError is await told(lambda: runtime.supervisor.supervise("below"))
        assert ["up slow", "down slow"] == log.take()
        await runtime.shutdown()
        assert RuntimeClosedError is await told(lambda: runtime.spawn(log.make, config("one")))
    assert RuntimeClosedError is await told(lambda: runtime.spawn(log.make, config("one")))
    assert RuntimeClosedError is await told(lambda: AgentRuntime().spawn(log.make, config("one")))
