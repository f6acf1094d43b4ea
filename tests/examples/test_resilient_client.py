"""The resilient client against a service that fails, hangs, dies and comes back: a process of its own, by real HTTP.

No time is measured. Tests wait for what the service counts or the breaker says, and what is told of numbers holds on a busy
machine as well; only a hang is cut by time, and the service is asked to hang for longer than any test runs.
"""

import gc
import json
import re
import socket
import sys
from collections import Counter
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import anyio
import anyio.abc
import anyio.lowlevel
import attrs
import httpx2
import pytest
from anyio.streams.buffered import BufferedByteReceiveStream

from agentcore import AgentRuntime, CircuitBreaker, CircuitBreakerConfig, CircuitState, TaskExecutionError
from examples import resilient_client
from examples.resilient_client import Inquirer

pytestmark = pytest.mark.anyio

SCRIPT = Path(__file__).with_name("service.py")
LIMIT = 30
"""Seconds after which a test that waits in vain fails."""
NEVER = 1e7
"""Milliseconds that do not pass in a test."""

Counts = dict[str, int]


# --------------------------------------------------------------------------------------------------------- the service


class Service:
    """The service as a process, that can be told what to do, be killed, and come back at the same port."""

    def __init__(self) -> None:
        # Bound to its port, and not listening: connections are refused while the service is dead, and nobody else gets
        # the port meanwhile, not even as the near end of a connection.
        self._place = socket.socket()
        self._place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._place.bind(("127.0.0.1", 0))
        self.port: int = self._place.getsockname()[1]
        self._process: anyio.abc.Process | None = None

    async def start(self, **command: Any) -> Counts:
        """Start the process with a first command; return its counts when it listens."""
        # Without site-packages it is there in half the time.
        line = [sys.executable, "-I", "-S", str(SCRIPT), str(self.port), json.dumps(command)]
        self._process = await anyio.open_process(line, stderr=None)
        assert self._process.stdout is not None
        self._output = BufferedByteReceiveStream(self._process.stdout)
        return await self._counts()

    async def tell(self, **command: Any) -> Counts:
        """Give a command; return the counts when it has been carried out."""
        assert self._process is not None
        assert self._process.stdin is not None
        await self._process.stdin.send(json.dumps(command).encode() + b"\n")
        return await self._counts()

    async def _counts(self) -> Counts:
        counts: Counts = json.loads(await self._output.receive_until(b"\n", 10_000))
        return counts

    async def kill(self) -> None:
        """End the process by SIGKILL, in the middle of whatever it does."""
        assert self._process is not None
        self._process.kill()
        await self._process.wait()
        await self._process.aclose()
        self._process = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        with anyio.CancelScope(shield=True):
            if self._process is not None:
                await self.kill()
        self._place.close()


# ---------------------------------------------------------------------------------------------- what each test happens in


@attrs.frozen
class Scene:
    """Who takes part."""

    service: Service
    breaker: CircuitBreaker
    inquirer: Inquirer
    runtime: AgentRuntime
    events: list[str]

    async def ask(self, question: object) -> str:
        """Ask, check the answer, and return where it comes from: ``service`` or ``memory``."""
        output = await self.runtime.run("ask", {"question": question})
        assert int(str(question)) ** 2 == output["answer"]
        return str(output["source"])

    async def ask_all(self, questions: Iterable[object]) -> Counter[str]:
        """Ask many questions at the same time; return how many answers have come from where, or not at all."""
        found: Counter[str] = Counter()

        async def ask(question: object) -> None:
            try:
                found[await self.ask(question)] += 1
            except TaskExecutionError:
                found["nowhere"] += 1

        async with anyio.create_task_group() as group:
            for question in questions:
                group.start_soon(ask, question)
        return found

    def outcomes(self) -> int:
        """Return how many calls the breaker has seen the end of."""
        metrics = self.breaker.metrics
        return metrics.successes + metrics.failures + metrics.excluded + metrics.canceled


@asynccontextmanager
async def scene(circuit: CircuitBreakerConfig, **settings: Any) -> AsyncGenerator[Scene]:
    """Have a service, and a runtime with the agent; afterwards nothing of it is left."""
    tasks, sockets = len(anyio.get_running_tasks()), open_sockets()
    circuit = attrs.evolve(circuit, failure_if=resilient_client.is_failure)
    with anyio.fail_after(LIMIT):
        async with Service() as service:
            async with AgentRuntime(hosted=True) as runtime:
                breaker = runtime.breaker("squares", circuit)
                inquirer = Inquirer(f"http://127.0.0.1:{service.port}", breaker, **settings)
                runtime.registry("agents").register("ask_agent", inquirer)
                events: list[str] = []
                breaker.subscribe(lambda event: events.append(event.event_type.removeprefix("circuit_")))
                yield Scene(service, breaker, inquirer, runtime, events)
                assert 0 == runtime.statistics().tasks.in_flight
            assert inquirer.client.is_closed
            assert 0 == (await service.tell(until={"connections": 0}))["running"]
        while sockets != open_sockets():  # uvloop closes in its next rounds.
            await anyio.lowlevel.checkpoint()
        while tasks != len(anyio.get_running_tasks()):
            await anyio.lowlevel.checkpoint()
    gc.collect()  # What was not closed warns now, and a warning is an error.


def open_sockets() -> set[str]:
    """Return the sockets of this process, where the system can tell them."""
    found = set()
    for entry in Path("/proc/self/fd").glob("*"):
        try:
            found.add(str(entry.readlink()))
        except FileNotFoundError:  # That of the listing itself.
            pass
    return {name for name in found if name.startswith("socket:")}


# ------------------------------------------------------------------------------------------------------------- it fails


async def test_what_fails_now_and_then_is_tried_again() -> None:
    """With 30% of the requests failing most questions are answered; the breaker counts what the service counts."""
    circuit = CircuitBreakerConfig(window_calls=40, failure_rate=0.8, minimum_calls=20)
    async with scene(circuit, timeout=LIMIT) as here:
        assert {"service": 30} == await here.ask_all(range(30))
        await here.service.tell(mode="failing", share=0.3, seed=2)
        found = await here.ask_all(range(60))
        counts, metrics = await here.service.tell(), here.breaker.metrics
        assert 60 == found.total()
        assert found["service"] >= 45
        assert 30 + found["service"] == counts["answered"] == metrics.successes
        assert 0 < counts["failed"] == metrics.failures
        assert {"HTTPStatusError": counts["failed"]} == metrics.failures_by_type
        assert counts["requests"] == here.outcomes() > 30 + 60
        assert ([], 0) == (here.events, metrics.rejected)


async def test_wrong_questions_do_not_speak_against_the_service() -> None:
    """A status of 404 is told to whoever asked: it is not tried again, not made up for, and counts for nothing."""
    async with scene(CircuitBreakerConfig(failure_threshold=1), timeout=LIMIT) as here:
        assert {"nowhere": 20} == await here.ask_all(["what"] * 20)
        with pytest.raises(TaskExecutionError) as caught:
            await here.ask("why")
        assert isinstance(caught.value.__cause__, httpx2.HTTPStatusError)
        counts, metrics = await here.service.tell(), here.breaker.metrics
        assert (21, 21) == (counts["requests"], counts["unknown"])
        assert (0, 0, 21) == (metrics.successes, metrics.failures, metrics.excluded)
        assert "service" == await here.ask(7)


# ------------------------------------------------------------------------------------------------------------- it hangs


async def test_what_hangs_is_cut_and_then_left_alone() -> None:
    """Hanging requests are cut, the circuit opens, and from then on memory answers without a single request."""
    circuit = CircuitBreakerConfig(failure_threshold=5, reset_timeout_ms=NEVER)
    async with scene(circuit, timeout=0.3, at_once=8) as here:
        here.inquirer.memory.update({str(number): number**2 for number in range(60)})
        await here.service.tell(mode="hanging")
        assert {"memory": 60} == await here.ask_all(range(60))
        assert (CircuitState.OPEN, ["opened"]) == (here.breaker.state, here.events)
        cut = await here.service.tell(until={"running": 0, "connections": 0})
        # Whoever waits for a place gets one when a request has been cut, and the fifth time the circuit is open.
        assert 0 < cut["abandoned"] == cut["requests"] <= 8 + 4
        metrics = here.breaker.metrics
        assert {"CallTimeoutError": 5} == metrics.failures_by_type
        assert 5 == metrics.failures == metrics.timeouts

        assert {"memory": 120} == await here.ask_all([*range(60)] * 2)
        assert {"nowhere": 1} == await here.ask_all([99])
        assert cut == await here.service.tell()
        assert 121 == here.breaker.metrics.rejected - metrics.rejected


async def test_a_bulkhead_keeps_requests_few() -> None:
    """However many ask at a time, so many requests are under way and no more; the others wait, and are answered."""
    async with scene(CircuitBreakerConfig(), timeout=LIMIT, at_once=4) as here:
        await here.service.tell(mode="hanging")

        async def release() -> None:
            await here.service.tell(until={"running": 4})
            await anyio.wait_all_tasks_blocked()
            assert 4 == (await here.service.tell(mode="healthy"))["requests"]

        async with anyio.create_task_group() as group:
            group.start_soon(release)
            assert {"service": 50} == await here.ask_all(range(50))
        counts = await here.service.tell()
        assert (50, 4) == (counts["answered"], counts["peak"])
        assert counts["connections"] <= 4


async def test_who_gives_up_leaves_nothing_behind() -> None:
    """Requests that are cancelled are cut off from the service, and blame it for nothing."""
    async with scene(CircuitBreakerConfig(failure_threshold=1), timeout=LIMIT) as here:
        await here.service.tell(mode="hanging")
        async with anyio.create_task_group() as group:
            group.start_soon(here.ask_all, range(5))
            await here.service.tell(until={"running": 5})
            group.cancel_scope.cancel()
        assert 5 == (await here.service.tell(until={"running": 0, "connections": 0}))["abandoned"]
        metrics = here.breaker.metrics
        assert (0, 0, 5) == (metrics.successes, metrics.failures, metrics.canceled)
        assert here.breaker.is_closed
        await here.service.tell(mode="healthy")
        assert {"service": 5} == await here.ask_all(range(5))


# ------------------------------------------------------------------------------------------- it dies, and it comes back


async def test_it_is_killed_and_comes_back() -> None:
    """Killed in the middle of answers, it is left alone but for probes; coming back it meets two of them, not a herd."""
    circuit = CircuitBreakerConfig(
        failure_threshold=5, success_threshold=2, reset_timeout_ms=100, probe_timeout_ms=1000 * LIMIT
    )
    callers = 30
    async with scene(circuit, timeout=LIMIT, at_once=8) as here:
        assert {"service": callers} == await here.ask_all(range(callers))
        await here.service.tell(mode="hanging")
        async with anyio.create_task_group() as group:
            group.start_soon(kill_when_running, here.service, 8)
            assert {"memory": 8} == await here.ask_all(range(8))
        assert not here.breaker.is_closed

        # Nobody is there: some asking goes on and on, and each time that the period is over, a probe finds that out.
        while here.breaker.metrics.opened_count < 4:
            assert {"memory": 2} == await here.ask_all(range(2))
        assert "ConnectError" in here.breaker.metrics.failures_by_type

        # It comes back, slow at first. All ask all the time; when the open period ends, two requests get through.
        await here.service.start(mode="hanging")
        crowd = Crowd(here, callers)
        async with anyio.create_task_group() as group:
            for caller in range(callers):
                group.start_soon(crowd.ask_until_it_is_fresh, caller)
            await here.service.tell(until={"running": 2})
            await crowd.is_turned_away()
            counts = await here.service.tell()
            assert (2, 2) == (counts["requests"], counts["peak"])
            assert (CircuitState.HALF_OPEN, 0) == (here.breaker.state, crowd.answered)
            await here.service.tell(mode="healthy")

        # Each caller has asked the service once, and two of these requests have closed the circuit.
        counts = await here.service.tell()
        assert callers == crowd.answered == counts["answered"] == counts["requests"]
        assert counts["peak"] <= 8
        assert here.breaker.is_closed
        assert re.fullmatch(r"opened (half_opened opened ){3,}half_opened closed", " ".join(here.events))
        assert here.events.count("opened") == here.breaker.metrics.opened_count
        assert {"service": callers} == await here.ask_all(range(callers))


async def kill_when_running(service: Service, count: int) -> None:
    """Kill the service when so many requests are under way."""
    await service.tell(until={"running": count})
    await service.kill()


@attrs.define
class Crowd:
    """Callers that ask again and again without a pause, the worst that a service can meet when it comes back."""

    here: Scene
    callers: int
    answered: int = 0
    turned_away: Counter[int] = attrs.Factory(Counter)

    async def ask_until_it_is_fresh(self, caller: int) -> None:
        """Ask until the service itself has answered."""
        while await self.here.ask(caller) != "service":
            self.turned_away[caller] += 1
            await anyio.lowlevel.checkpoint()
        self.answered += 1

    async def is_turned_away(self) -> None:
        """Return when half of the callers have been turned away once more."""
        before = self.turned_away.copy()
        while len(self.turned_away - before) < self.callers / 2:
            await anyio.lowlevel.checkpoint()


# --------------------------------------------------------------------------------------------------------- the workflow


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_the_report_of_the_workflow_adds_up() -> None:
    """Every question is accounted for, and the circuit that has opened is closed in the end."""
    tasks, sockets = len(anyio.get_running_tasks()), open_sockets()
    with anyio.fail_after(LIMIT):
        async with AgentRuntime() as runtime:
            runtime.handler("workflow")(resilient_client.workflow)
            report = await runtime.run("workflow", {"questions": 20})
    periods, metrics = report["periods"], report["breaker"]
    assert ["none", "fails", "hangs", "dead", "none"] == [row["trouble"] for row in periods[:5]]
    for row in periods:
        assert 20 == row["asked"] == row["fresh"] + row["degraded"] + row["unanswered"]
        assert row["fresh"] <= row["requests"]
    assert [(0, False), (0, True)] == [(row["fresh"], row["requests"] == 0) for row in periods[2:4]]
    assert (0, "closed") == (sum(row["unanswered"] for row in periods[1:]), periods[-1]["circuit"])
    assert {"HTTPStatusError", "CallTimeoutError"} <= set(metrics["failures_by_type"])
    names = " ".join(row["event"].removeprefix("circuit_") for row in report["events"])
    assert re.fullmatch(r"(opened (half_opened opened )*half_opened closed ?)+", names)
    assert metrics["opened_count"] == names.split().count("opened")
    gc.collect()
    assert (tasks, sockets) == (len(anyio.get_running_tasks()), open_sockets())
