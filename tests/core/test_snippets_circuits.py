"""What the specification's snippets of circuit breakers do, done again with other names and other data.

As in `test_snippets`: programs of plain asyncio and of plain trio, which know nothing of AnyIO.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from agentcore import (
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitBreakerError,
    CircuitOpenError,
    CircuitState,
    ConfigurationError,
    CoreError,
    TaskError,
    clear_circuit_breakers,
    get_circuit_breaker,
    with_circuit_breaker,
)
from tests.core.loops import ASYNCIO, TRIO, Loop


@pytest.fixture(params=[ASYNCIO, TRIO], ids=["asyncio", "trio"])
def loop(request: pytest.FixtureRequest) -> Loop:
    """Give the test one of the two kinds of program to live in."""
    chosen: Loop = request.param
    return chosen


@pytest.fixture(autouse=True)
def no_breaker_outlives_a_test() -> Iterator[None]:
    """Forget the process-wide breakers, since scenarios name them as programs do."""
    clear_circuit_breakers()
    yield
    clear_circuit_breakers()


class Harbour:
    """A service that answers, or does not."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.is_closed = False
        self.asked: list[str] = []

    async def tide(self, place: str, *, unit: str = "m") -> str:
        """Tell how high the water is."""
        self.asked.append(place)
        await self.loop.sleep(0)
        if self.is_closed:
            raise ConnectionError(f"nobody at {place}")
        return f"{place}: 2 {unit}"


async def outcome_of(call: Callable[[], Awaitable[Any]]) -> tuple[str, Any]:
    """Make a guarded call in the way of the specification's example, and tell which branch it has reached."""
    try:
        answer = await call()
    except CircuitOpenError as error:
        return "degraded", error.details["circuit_name"]
    except Exception as error:  # noqa: BLE001 - the scenario records whatever comes
        return "failed", str(error)
    return "answered", answer


def test_usage_example(loop: Loop) -> None:
    """A circuit is made and calls go through it: to an answer, to an error, or to the branch of the open circuit."""

    async def main() -> None:
        circuit = CircuitBreaker(
            "tide_tables", CircuitBreakerConfig(failure_threshold=3, success_threshold=2, reset_timeout_ms=60_000)
        )
        harbour = Harbour(loop)
        ask = functools.partial(circuit.execute, harbour.tide, "Brest", unit="ft")
        assert ("answered", "Brest: 2 ft") == await outcome_of(ask)
        harbour.is_closed = True
        assert [("failed", "nobody at Brest")] * 3 == [await outcome_of(ask) for _ in range(3)]
        assert [("degraded", "tide_tables")] * 3 == [await outcome_of(ask) for _ in range(3)]
        assert (4, CircuitState.OPEN) == (len(harbour.asked), circuit.state)
        harbour.is_closed = False
        await loop.sleep(60)
        assert [("answered", "Brest: 2 ft")] * 2 == [await outcome_of(ask) for _ in range(2)]
        assert (6, CircuitState.CLOSED) == (len(harbour.asked), circuit.state)

    loop.simulate(main)


def test_helper_example(loop: Loop) -> None:
    """The helper takes the name of a breaker, a function and its arguments; the breaker is there under its name."""

    async def main() -> None:
        harbour = Harbour(loop)

        async def depth(place: str, hour: int, *, name: str, func: str = "") -> tuple[Any, ...]:
            return await harbour.tide(place), hour, name, func

        answer = await with_circuit_breaker("soundings", depth, "Brest", 12, name="low", func="neap")
        assert ("Brest: 2 m", 12, "low", "neap") == answer
        assert 1 == get_circuit_breaker("soundings").metrics.successes
        harbour.is_closed = True
        ask = functools.partial(with_circuit_breaker, "soundings", harbour.tide, "Brest")
        for _ in range(get_circuit_breaker("soundings").config.failure_threshold):
            assert ("failed", "nobody at Brest") == await outcome_of(ask)
        assert ("degraded", "soundings") == await outcome_of(ask)

    loop.run(main)


def test_helper_takes_plain_functions(loop: Loop) -> None:
    """What is guarded need not be asynchronous."""

    async def main() -> None:
        assert 5 == await with_circuit_breaker("sums", sum, [2, 3])
        assert [3, 2] == await get_circuit_breaker("sums").execute(sorted, [2, 3], reverse=True)

    loop.run(main)


class Pilot:
    """A client of two services, each behind a circuit of its own, with something to fall back on for both."""

    def __init__(self, loop: Loop) -> None:
        self.harbour = Harbour(loop)
        self.archive = Harbour(loop)
        self.last_known: dict[str, str] = {}
        self.waiting: list[str] = []
        self.tides = get_circuit_breaker(
            "tides", CircuitBreakerConfig(failure_threshold=4, success_threshold=1, reset_timeout_ms=60_000)
        )
        self.logbook = get_circuit_breaker(
            "logbook", CircuitBreakerConfig(failure_threshold=2, success_threshold=2, reset_timeout_ms=30_000)
        )

    async def read(self, place: str) -> str:
        try:
            self.last_known[place] = await self.tides.execute(self._ask, place)
            return self.last_known[place]
        except CircuitOpenError:
            return await self._remember(place)

    async def write(self, entry: str) -> dict[str, str]:
        try:
            return await self.logbook.execute(self._store, entry)
        except CircuitOpenError:
            await self._keep_for_later(entry)
            return {"status": "waiting"}

    async def _ask(self, place: str) -> str:
        return await self.harbour.tide(place)

    async def _store(self, entry: str) -> dict[str, str]:
        return {"status": "written", "receipt": await self.archive.tide(entry)}

    async def _remember(self, place: str) -> str:
        await self.harbour.loop.sleep(0)
        return f"{self.last_known[place]}, when last heard of"

    async def _keep_for_later(self, entry: str) -> None:
        await self.harbour.loop.sleep(0)
        self.waiting.append(entry)


def test_client_example(loop: Loop) -> None:
    """One service that is down costs the answers of that one alone, and not for longer than it is down."""

    async def main() -> None:
        pilot = Pilot(loop)
        assert "Brest: 2 m" == await pilot.read("Brest")
        assert "written" == (await pilot.write("09:00 all well"))["status"]

        pilot.harbour.is_closed = True
        for _ in range(4):
            with pytest.raises(ConnectionError):
                await pilot.read("Brest")
        assert "Brest: 2 m, when last heard of" == await pilot.read("Brest")
        assert (True, True) == (pilot.tides.is_open, pilot.logbook.is_closed)
        assert "written" == (await pilot.write("10:00 no news"))["status"]

        pilot.archive.is_closed = True
        for _ in range(2):
            with pytest.raises(ConnectionError):
                await pilot.write("11:00 storm")
        assert {"status": "waiting"} == await pilot.write("11:05 storm")
        assert ["11:05 storm"] == pilot.waiting

        pilot.harbour.is_closed = pilot.archive.is_closed = False
        await loop.sleep(30)
        assert "written" == (await pilot.write("12:00 calm"))["status"]
        assert (True, True) == (pilot.logbook.is_half_open, pilot.tides.is_open)
        await loop.sleep(30)
        assert "Brest: 2 m" == await pilot.read("Brest")
        assert (True, 1, 1) == (pilot.tides.is_closed, pilot.tides.metrics.rejected, pilot.logbook.metrics.rejected)

    loop.simulate(main)


def test_client_example_with_callers_side_by_side(loop: Loop) -> None:
    """Of those who come together when the service may be back, one asks it, and the others have the old answer."""

    async def main() -> None:
        pilot = Pilot(loop)
        pilot.last_known["Brest"] = "Brest: 1 m"
        pilot.harbour.is_closed = True
        outcomes: list[tuple[str, Any]] = []

        async def read() -> None:
            outcomes.append(await outcome_of(functools.partial(pilot.read, "Brest")))

        await loop.together(*[read] * 20)  # all at once: each of them finds a closed circuit
        assert ([("failed", "nobody at Brest")] * 20, True) == (outcomes, pilot.tides.is_open)
        await loop.together(*[read] * 20)
        assert [("answered", "Brest: 1 m, when last heard of")] * 20 == outcomes[20:]
        await loop.sleep(60)
        await loop.together(*[read] * 20)
        assert [21, 1] == [len(pilot.harbour.asked), [outcome for outcome, _ in outcomes[40:]].count("failed")]
        pilot.harbour.is_closed = False
        await loop.sleep(60)
        await loop.together(*[read] * 20)
        assert [22, 1] == [len(pilot.harbour.asked), outcomes[60:].count(("answered", "Brest: 2 m"))]
        assert (True, 58) == (pilot.tides.is_closed, pilot.tides.metrics.rejected)

    loop.simulate(main)


def test_process_wide_breakers(loop: Loop) -> None:
    """A name finds the same breaker everywhere; its configuration is given once."""

    async def main() -> None:
        config = CircuitBreakerConfig(failure_threshold=7, reset_timeout_ms=900)
        made = get_circuit_breaker("weather", config)
        assert (made, config) == (get_circuit_breaker("weather"), made.config)
        assert made is get_circuit_breaker("weather", CircuitBreakerConfig(failure_threshold=7, reset_timeout_ms=900))
        assert made is not get_circuit_breaker("news")
        with pytest.raises(ConfigurationError, match="weather"):
            get_circuit_breaker("weather", CircuitBreakerConfig(failure_threshold=8))
        await loop.sleep(0)
        assert made is get_circuit_breaker("weather")

    loop.run(main)


@dataclass
class Settings:
    """What a program has read from somewhere."""

    api_failure_threshold: int
    api_reset_timeout: float


@dataclass
class Ship:
    """The part of a system that has to do with circuits."""

    radio: CircuitBreaker


def test_system_example(loop: Loop) -> None:
    """A program that sets its system up takes the breaker's numbers from its settings, and others find it by name."""

    async def launch(settings: Settings) -> Ship:
        await loop.sleep(0)
        radio = get_circuit_breaker(
            "radio",
            CircuitBreakerConfig(
                failure_threshold=settings.api_failure_threshold, reset_timeout_ms=settings.api_reset_timeout
            ),
        )
        return Ship(radio=radio)

    async def main() -> None:
        ship = await launch(Settings(api_failure_threshold=2, api_reset_timeout=250))
        assert (2, 250) == (ship.radio.config.failure_threshold, ship.radio.config.reset_timeout_ms)
        assert "over" == await ship.radio.execute(lambda: "over")
        assert ship.radio is get_circuit_breaker("radio")

    loop.run(main)


def test_exception_example(loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
    """A handler of all errors of circuits gets the name from the details; what the call itself raises passes it by."""
    logger = logging.getLogger("scenario")

    async def main() -> None:
        harbour = Harbour(loop)
        harbour.is_closed = True
        circuit = CircuitBreaker("tide_tables", CircuitBreakerConfig(failure_threshold=1))
        for _ in range(2):
            try:
                await circuit.execute(harbour.tide, "Brest")
            except TaskError as error:
                logger.error("task: %s", error.message)
            except CircuitBreakerError as error:
                logger.warning("no %s, we take the old ones", error.details["circuit_name"])
            except CoreError as error:
                logger.error("system: %s", error.safe_message())
            except ConnectionError as error:
                logger.error("%s", error)

    loop.run(main)
    assert [("ERROR", "nobody at Brest"), ("WARNING", "no tide_tables, we take the old ones")] == [
        (entry.levelname, entry.getMessage()) for entry in caplog.records
    ]


def test_expected_errors_example(loop: Loop) -> None:
    """Errors that a program expects are configured not to count, and still reach it."""

    async def find(place: str) -> str:
        await loop.sleep(0)
        return {"Brest": "48 N"}[place]

    async def main() -> None:
        circuit = CircuitBreaker("atlas", CircuitBreakerConfig(failure_threshold=1, excluded_exceptions=(KeyError,)))
        for _ in range(5):
            with pytest.raises(KeyError, match="Atlantis"):
                await circuit.execute(find, "Atlantis")
        assert "48 N" == await circuit.execute(find, "Brest")
        assert (CircuitState.CLOSED, 5, 0) == (circuit.state, circuit.metrics.excluded, circuit.metrics.failures)

    loop.run(main)


def test_monitoring_example(loop: Loop) -> None:
    """A program tracks the states and counts how often the circuit opens, and prunes now and then."""

    async def main() -> None:
        circuit = CircuitBreaker("tide_tables", CircuitBreakerConfig(failure_threshold=2, reset_timeout_ms=1000))
        seen: list[tuple[str, str]] = []
        stop = circuit.subscribe(lambda event: seen.append((event.event_type, event.data["circuit_name"])))
        for _ in range(2):
            await circuit.on_failure("ConnectionError")
        await loop.sleep(1)
        for _ in range(2):
            assert await circuit.allow_request() is True
            await circuit.on_success()
        stop()
        await circuit.on_failure("ConnectionError")
        await circuit.on_failure("ConnectionError")
        assert [(f"circuit_{what}", "tide_tables") for what in ("opened", "half_opened", "closed")] == seen
        metrics = circuit.metrics
        assert (2, 4, 2, 4) == (metrics.opened_count, metrics.state_changes, metrics.successes, metrics.failures)
        assert metrics.last_failure_at is not None
        assert {"ConnectionError": 4} == metrics.failures_by_type
        assert 4 == circuit.prune()
        assert ({}, 4) == (circuit.metrics.failures_by_type, circuit.metrics.failures)

    loop.simulate(main)
