"""An hour of a system of twenty agents, with crashes, deadlines and messages, in virtual time: the same on both backends."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import anyio
import pytest

from agentcore import (
    AgentConfig,
    AgentContext,
    AgentCrash,
    AgentCrashedError,
    AgentResult,
    AgentRuntime,
    Backoff,
    BaseAgent,
    CoreError,
    RuntimeConfig,
    Supervisor,
)
from agentcore.testing import BACKENDS, run_sim
from tests.runtime.test_transcripts import Entry, Transcript

HOUR = 3600.0
NAMES = tuple(f"agent {number}" for number in range(20))
SCHEDULES = ("fifo", "walk/1")


class Hour(Transcript):
    """A system, and what it has done."""

    def __init__(self, seed: int, *, hosted: bool) -> None:
        super().__init__(hosted=hosted)
        backoff = Backoff(initial=0.1, factor=2.0, maximum=30.0)
        self.runtime = AgentRuntime(
            RuntimeConfig(in_flight=4),
            supervisor=Supervisor(intensity=1000, backoff=backoff),
            grace=60.0,
            hosted=hosted,
        )
        self.runtime.subscribe(lambda event: self.note(event.event_type, *sorted(event.data.items())))
        self.seed = seed
        self.counts: Counter[str] = Counter()

    async def spawn_all(self) -> None:
        """Start the agents below five supervisors, of each strategy some."""
        for index, strategy in enumerate(("one_for_one", "one_for_all", "rest_for_one", "one_for_one", "one_for_all")):
            config = Supervisor(strategy, intensity=3, period=60.0, backoff=Backoff(initial=0.5, maximum=20.0))
            supervisor = await self.runtime.supervisor.supervise(f"team {index}", config)
            for name in NAMES[index * 4 : index * 4 + 4]:
                await supervisor.spawn(
                    lambda config: Busy(config, self), AgentConfig(name, "busy", timeout=20.0), mailbox=4
                )


class Busy(BaseAgent):
    """An agent that does by itself what its own dice say, and what others want of it."""

    def __init__(self, config: AgentConfig, state: Hour) -> None:
        super().__init__(config)
        self.hour = state
        state.counts[f"life of {config.name}"] += 1
        self.dice = random.Random(f"{state.seed} {config.name} {state.counts[f'life of {config.name}']}")

    async def initialize(self) -> bool:
        await anyio.sleep(self.dice.uniform(0, 0.5))
        return self.dice.random() > 0.02 or self.hour.counts[f"life of {self.name}"] == 1

    async def live(self, context: AgentContext) -> None:
        while True:
            await anyio.sleep(self.dice.uniform(1, 60))
            kind = self.dice.choice(("tell", "tell", "tell at once", "ask", "submit", "run", "crash"))
            self.hour.counts[kind] += 1
            if kind == "crash" and self.dice.random() < 0.3:
                raise AgentCrash(f"{self.name} has had enough")
            wish = {"seconds": self.dice.uniform(0, 8), "fate": self.dice.random()}
            try:
                await self.turn_to(self.dice.choice(NAMES), kind, wish, context)
            except CoreError as error:
                self.hour.counts[type(error).__name__] += 1

    async def turn_to(self, other: str, kind: str, wish: dict[str, Any], context: AgentContext) -> None:
        """Want something of another agent."""
        if kind == "tell":
            await context.tell(other, wish)
        elif kind == "tell at once":
            context.tell_nowait(other, wish)
        elif kind == "ask":
            await context.ask(other, wish, timeout=self.dice.uniform(1, 10))
        elif kind == "submit":
            handle = await context.submit(other, wish, deadline=self.dice.uniform(1, 10))
            await handle.result()
        elif kind == "run":
            await context.run(other, wish, deadline=self.dice.uniform(1, 10))

    async def process(self, context: AgentContext) -> AgentResult:
        await anyio.sleep(context.input["seconds"])
        if context.input["fate"] < 0.05:
            raise AgentCrash(f"{self.name} cannot go on")
        if context.input["fate"] < 0.15:
            raise ValueError("mended")
        if context.input["fate"] < 0.2:
            raise KeyError("not mended")
        self.hour.counts["done"] += 1
        return AgentResult.success_result({"by": self.name})

    async def handle_error(self, error: Exception, context: AgentContext) -> AgentResult:
        if isinstance(error, ValueError):
            return AgentResult.success_result({})
        return AgentResult.error_result(repr(error))


async def hour(seed: int, hosted: bool) -> tuple[list[Entry], dict[str, int]]:
    """Run the system for an hour; return the transcript, and how often what has happened."""
    state = Hour(seed, hosted=hosted)
    try:
        async with state.runtime:
            await state.spawn_all()
            await anyio.sleep(HOUR - anyio.current_time())
            assert len(NAMES) == len(state.runtime.supervisor._agents())
    except AgentCrashedError as error:  # tasks of agents that have crashed while they waited for them
        state.told(error)
    report: Any = state.runtime.report
    state.note("report", report.summary())
    assert 0 == state.runtime.statistics().messages
    restarts = Counter(entry[1] for entry in state.entries)
    return state.entries, {**state.counts, **restarts}


@pytest.mark.parametrize("hosted", [False, pytest.param(True, marks=pytest.mark.thorough)], ids=["strict", "hosted"])
def test_an_hour_of_twenty_agents_is_the_same_on_both_backends(hosted: bool) -> None:
    """Event by event, to the second; and enough of everything has happened."""
    for schedule in SCHEDULES:
        first, second = (run_sim(hour, 1, hosted, backend=backend, schedule=schedule) for backend in BACKENDS)
        assert first.unwrap() == second.unwrap(), schedule
        assert HOUR <= first.now == second.now < HOUR + 100
        counts: Any = first.unwrap()[1]
        assert counts["done"] > 500
        assert counts["agent_crashed"] > 50
        assert counts["supervisor_gave_up"] > 0
        assert counts["message_dropped"] > 0
        assert counts["TaskExecutionError"] > 0


@pytest.mark.thorough
def test_another_seed_is_another_hour() -> None:
    """So the transcripts tell something."""
    first, second = (run_sim(hour, seed, False).unwrap() for seed in (1, 2))
    assert first[0] != second[0]
