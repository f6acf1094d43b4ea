"""Who waits for how long: urgent tasks first, and the others within a time that can be told.

All in virtual time, on asyncio and on trio, strict and hosted. A task works for a second; as many CRITICAL ones come each
second as can run, half a second before the slots are free again, so that there is always one to overtake the others.
"""

from __future__ import annotations

import math
from typing import Any

import anyio
import pytest

from agentcore import AgentConfig, AgentContext, AgentResult, AgentRuntime, BaseAgent, TaskHandle, TaskPriority
from agentcore.testing import current_simulation, simulate
from tests.runtime.lives import both_kinds, living

LOW, NORMAL, HIGH, CRITICAL = TaskPriority
AGEING = 10
BEFORE = 4


class Office:
    """A runtime's handler that works for a second, and when which task began."""

    def __init__(self, runtime: AgentRuntime) -> None:
        self.runtime = runtime
        self.began: dict[str, float] = {}
        runtime.handler("work")(self.work)

    async def work(self, given: dict[str, Any]) -> None:
        assert given["name"] not in self.began
        self.began[given["name"]] = anyio.current_time()
        await anyio.sleep(1)

    async def submit(self, name: str, priority: TaskPriority) -> TaskHandle:
        """Submit a task by a name."""
        return await self.runtime.submit("work", {"name": name}, priority=priority)

    async def fill(self, number: int) -> None:
        """Submit urgent ones at once."""
        for one in range(number):
            await self.submit(f"at once {one}", CRITICAL)

    async def stream(self, a_second: int, seconds: int) -> None:
        """Submit urgent ones for a time, so many a second."""
        await anyio.sleep(0.5)
        for second in range(seconds):
            for one in range(a_second):
                await self.submit(f"second {second} {one}", CRITICAL)
            await anyio.sleep(1)


in_flights = pytest.mark.parametrize("in_flight", [1, 4])


@both_kinds
@in_flights
@simulate(runs=2)
async def test_under_a_stream_of_urgent_ones_each_waits_for_as_long_as_the_rule_says(
    hosted: bool, in_flight: int
) -> None:
    """Each step of priority that it lacks costs `ageing` seconds, in which whoever comes overtakes it, and not one more.

    So before it go those that run, those that stood before it, all who come within that time, and the few of its own kind.
    """
    async with living(hosted, in_flight=in_flight, ageing=AGEING) as runtime, anyio.create_task_group() as group:
        office = Office(runtime)
        await office.fill((1 + BEFORE) * in_flight)
        for priority in (LOW, NORMAL, HIGH):
            await office.submit(priority.name, priority)
        group.start_soon(office.stream, in_flight, 50)
        await anyio.sleep(45)
        for peers, priority in enumerate((HIGH, NORMAL, LOW)):
            overtaking = (CRITICAL - priority) * AGEING * in_flight
            place = (1 + BEFORE) * in_flight + overtaking + peers
            assert office.began[priority.name] == place // in_flight
        assert office.began["LOW"] <= 3 * AGEING + 1 + BEFORE + 2
        group.cancel_scope.cancel()


@both_kinds
@in_flights
@simulate(runs=2)
async def test_without_ageing_a_stream_of_urgent_ones_starves_the_others(hosted: bool, in_flight: int) -> None:
    """They wait for as long as it lasts, and are served in the order of their priority when it is over."""
    async with living(hosted, in_flight=in_flight, ageing=math.inf) as runtime, anyio.create_task_group() as group:
        office = Office(runtime)
        await office.fill(2 * in_flight)
        for priority in (LOW, NORMAL, HIGH):
            for one in range(in_flight):
                await office.submit(f"{priority.name} {one}", priority)
        group.start_soon(office.stream, in_flight, 200)
        await anyio.sleep(201.75)
        assert not [name for name in office.began if name.startswith(("LOW", "NORMAL", "HIGH"))]
        await anyio.sleep(4)
        last = [math.floor(office.began[f"{priority.name} 0"]) for priority in (HIGH, NORMAL, LOW)]
        assert last == [202, 203, 204]


@both_kinds
@in_flights
@simulate(runs=2)
async def test_what_comes_back_again_and_again_does_not_climb(hosted: bool, in_flight: int) -> None:
    """A storm of tasks that submit themselves anew counts from then each time; who waits in peace is served in time."""
    async with living(hosted, in_flight=in_flight, ageing=AGEING) as runtime:
        began: list[float] = []

        @runtime.handler("storm")
        async def storm(given: dict[str, Any]) -> None:
            await anyio.sleep(1)
            await runtime.submit("storm", given, priority=NORMAL)

        @runtime.handler("peace")
        async def peace(given: dict[str, Any]) -> None:
            began.append(anyio.current_time())

        for _ in range(10 * in_flight):
            await runtime.submit("storm", priority=NORMAL)
        await runtime.submit("peace", priority=LOW)
        await anyio.sleep(60)
        # Each of them once, and those that come back within the first 10 s.
        assert began == [20]


@both_kinds
@simulate(runs=2)
async def test_the_line_of_submitters_ages_as_well(hosted: bool) -> None:
    """Who waits for a place in a full queue gets one after as long, and then waits for a slot among few."""
    async with (
        living(hosted, in_flight=1, queue=1, ageing=AGEING) as runtime,
        anyio.create_task_group() as group,
    ):
        office = Office(runtime)
        accepted: list[float] = []

        async def one_who_submits() -> None:
            await office.submit("low", LOW)
            accepted.append(anyio.current_time())

        await office.fill(2)
        group.start_soon(one_who_submits)
        await anyio.sleep(0.5)
        for second in range(40):
            group.start_soon(office.submit, f"second {second}", CRITICAL)
            await anyio.sleep(1)
        assert (accepted, office.began["low"]) == ([31], 32)
        group.cancel_scope.cancel()


@both_kinds
@simulate(runs=2)
async def test_the_line_of_submitters_starves_whom_it_is_told_to(hosted: bool) -> None:
    """Without ageing, nobody who is less urgent gets a place as long as others want one."""
    async with (
        living(hosted, in_flight=1, queue=1, ageing=math.inf) as runtime,
        anyio.create_task_group() as group,
    ):
        office = Office(runtime)
        await office.fill(2)
        group.start_soon(office.submit, "low", LOW)
        await anyio.sleep(0.5)
        for second in range(100):
            group.start_soon(office.submit, f"second {second}", CRITICAL)
            await anyio.sleep(1)
        assert "low" not in office.began
        await anyio.sleep(3)
        assert office.began["low"] == 102
        group.cancel_scope.cancel()


@both_kinds
@simulate(runs=2)
async def test_keys_of_others_cost_nobody_his_age(hosted: bool) -> None:
    """In the line of submitters each is as old as he is, however often others learn that their task has been submitted."""
    async with (
        living(hosted, in_flight=1, queue=1, ageing=AGEING, retention=1) as runtime,
        anyio.create_task_group() as group,
    ):
        office = Office(runtime)
        accepted: list[float] = []

        async def one_who_submits() -> None:
            await office.submit("low", LOW)
            accepted.append(anyio.current_time())

        async def submit_once(name: str) -> None:
            await runtime.submit("work", {"name": name}, priority=CRITICAL, key=name)

        await office.fill(2)
        group.start_soon(one_who_submits)
        await anyio.sleep(0.5)
        for second in range(40):
            for _ in range(2):
                group.start_soon(submit_once, f"second {second}")
            await anyio.sleep(1)
        assert (accepted, office.began["low"]) == ([31], 32)
        group.cancel_scope.cancel()


@both_kinds
@simulate(runs=2)
async def test_who_leaves_the_line_leaves_the_others_their_places(hosted: bool) -> None:
    """Cancelled ones are not served, and whoever stands behind them comes next, as if they had never been there."""
    async with living(hosted, in_flight=1, ageing=AGEING) as runtime:
        office = Office(runtime)
        await office.fill(1)
        handles = [
            await office.submit(f"{priority.name} {number}", priority)
            for number in range(4)
            for priority in (LOW, CRITICAL, NORMAL)
        ]
        for handle in handles[::2]:
            assert handle.cancel("not needed")
        await anyio.sleep(20)
        expected = ["at once 0", "CRITICAL 0", "CRITICAL 2", "NORMAL 1", "NORMAL 3", "LOW 1", "LOW 3"]
        assert list(office.began) == expected
        assert list(office.began.values()) == list(range(7))


class Counter(BaseAgent):
    """An agent that notes whom it serves, one at a time."""

    def __init__(self) -> None:
        super().__init__(AgentConfig("counter", "bank", max_concurrency=1))
        self.served: list[str] = []

    async def initialize(self) -> bool:
        return True

    async def process(self, context: AgentContext) -> AgentResult:
        await anyio.sleep(1)
        self.served.append(context.input["name"])
        return AgentResult.success_result({})

    async def handle_error(self, error: Exception, context: AgentContext) -> AgentResult:
        return AgentResult.error_result(str(error))


@both_kinds
@simulate(runs=2)
async def test_an_agent_takes_what_runs_in_order_of_arrival(hosted: bool) -> None:
    """Priority is for the slots of the runtime; whoever has one waits for a busy agent in a plain line."""
    async with living(hosted, in_flight=8, ageing=AGEING) as runtime:
        agent = Counter()
        runtime.registry("agents").register("counter", agent)
        for name, priority in (("a", LOW), ("b", LOW), ("c", CRITICAL), ("d", NORMAL)):
            await runtime.submit("counter", {"name": name}, priority=priority)
            await current_simulation().settle()
        await anyio.sleep(10)
        assert agent.served == ["a", "b", "c", "d"]
