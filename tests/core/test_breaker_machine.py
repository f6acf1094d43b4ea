"""A circuit breaker under everything that can happen to its callers, in any order, on both event loops.

The same machine as of the rules alone, over the asynchronous shell: calls start, come back well, fail, are cancelled, outrun
a deadline, hang, vanish, nest, and raise what nothing catches; time goes on, or does not.
"""

from __future__ import annotations

import contextlib
import gc
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import anyio
import pytest
from anyio.abc import TaskGroup
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from agentcore import CircuitBreaker, CircuitBreakerConfig, CircuitOpenError, CircuitState, CircuitTimeoutError
from agentcore.testing import SimMachine
from tests.core.circuits import Down, Stop, admissions_of, permits_of, probers_of, succeed

pytestmark = pytest.mark.thorough

RESET, CAP = 10.0, 25.0
LATE = 3.0
"""Seconds that a deadline leaves to a call."""
POLL = 0.5
"""Seconds after which a caller asks again who does not know when the breaker's own probe will have ended."""

SOME = settings(
    database=None,
    derandomize=True,
    deadline=None,
    max_examples=60,
    stateful_step_count=25,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)

WINDOWS: list[dict[str, Any]] = [
    {},
    {"window_calls": 4},
    {"window_ms": 8_000.0},
    {"window_calls": 4, "failure_rate": 0.5, "minimum_calls": 2},
    {"slow_call_ms": 2_500.0},
]


WAYS = st.sampled_from(["execute", "block", "by hand", "nested", "nested in a task", "abandoned"])


class Excluded(Exception):
    """What says nothing about the service."""


class Call:
    """One call and what is known of it.

    Attributes:
        how: the way in which it goes through the breaker.
        outcome: what the service will do, once it is told to.
        go_on: tells it.
        scope: of the caller.
    """

    def __init__(self, how: str, *, stubborn: bool, deadline: bool, outcome: str = "ok") -> None:
        self.how = how
        self.stubborn = stubborn
        self.deadline = deadline
        self.outcome = outcome
        self.go_on = anyio.Event()
        self.scope = anyio.CancelScope()
        self.inside = self.done = False
        self.probes_until: float | None = None
        self.ended = "not yet"

    def __repr__(self) -> str:
        return f"<{self.how} call, {self.ended}>"


class Books:
    """What the service and the callers note.

    Attributes:
        probing: until when each call that came in while the circuit was half open has its lease, by era and call.
        peak: the most of them at a time, by era.
        ends: how calls ended, as their callers saw it.
    """

    def __init__(self) -> None:
        self.probing: dict[int, dict[Call, float]] = {}
        self.needed: dict[int, int] = {}
        self.ends: Counter[str] = Counter()
        self.answer = "ok"

    def probes(self, era: int, now: float) -> int:
        """Return how many calls of an era are in the service whose lease is not over."""
        return sum(until > now for until in self.probing.get(era, {}).values())


@asynccontextmanager
async def callers() -> AsyncGenerator[TaskGroup]:
    """Give a task group that is cancelled when the example ends."""
    async with anyio.create_task_group() as group:
        yield group
        group.cancel_scope.cancel()


class BreakerMachine(SimMachine):
    """Does everything to one breaker that callers can do to it."""

    @property
    def running(self) -> list[Call]:
        """The calls that have not ended."""
        return [call for call in self.open_calls if not call.done]

    @initialize(
        probes=st.integers(1, 3),
        failures=st.integers(1, 2),
        lease=st.sampled_from([4.0, 12.0]),
        window=st.sampled_from(WINDOWS),
        backoff=st.sampled_from([1.0, 2.0]),
        jitter=st.sampled_from([0.0, 0.1]),
        active=st.booleans(),
        due=st.booleans(),
    )
    def open(
        self, *, probes: int, failures: int, lease: float, window: dict[str, Any], active: bool, due: bool, **rest: Any
    ) -> None:
        config = CircuitBreakerConfig(
            failure_threshold=failures,
            success_threshold=probes,
            reset_timeout_ms=RESET * 1000,
            max_reset_timeout_ms=CAP * 1000,
            probe_timeout_ms=lease * 1000,
            excluded_exceptions=(Excluded,),
            **rest,
            **window,
        )
        self.books = Books()
        self.open_calls: list[Call] = []
        self.breaker = self.sim.call(lambda: CircuitBreaker("api", config, probe=self._probe))
        self.group = self.enter(callers)
        if active:
            self.sim.call(self.group.start_soon, self.breaker.run_probes)
            self.sim.run(anyio.sleep, 0)
        self.active, self.lease = active, lease
        if due:
            self.become_due()

    # Calls.

    @rule(how=WAYS, stubborn=st.booleans(), deadline=st.booleans(), count=st.integers(1, 4))
    def start(self, *, how: str, stubborn: bool, deadline: bool, count: int) -> None:
        """Begin calls that go on until they are told to end."""
        for _ in range(count):
            call = self.sim.call(lambda: Call(how, stubborn=stubborn, deadline=deadline))
            self.open_calls.append(call)
            self.sim.call(self.group.start_soon, self._call, call)
        self.sim.run(anyio.sleep, 0)

    @rule(how=st.sampled_from(["execute", "block", "by hand"]), outcome=st.sampled_from(["ok", "fail", "excluded"]))
    def finish_at_once(self, how: str, outcome: str) -> None:
        """Make a call that takes no time."""
        call = self.sim.call(lambda: Call(how, stubborn=False, deadline=False, outcome=outcome))
        self.sim.call(call.go_on.set)
        self.sim.run(self._call, call)

    @precondition(lambda self: self.running)
    @rule(index=st.integers(0, 3), outcome=st.sampled_from(["ok", "ok", "fail", "excluded", "stop", "raise the group"]))
    def end(self, index: int, outcome: str) -> None:
        """Tell a call how to end, and wait until it has."""
        call = self.running[index % len(self.running)]
        call.outcome = outcome
        self.sim.call(call.go_on.set)
        self.sim.run(anyio.sleep, 0)

    @precondition(lambda self: self.running)
    @rule(index=st.integers(0, 3))
    def cancel(self, index: int) -> None:
        """Cancel the caller of one."""
        self.sim.call(self.running[index % len(self.running)].scope.cancel)
        self.sim.run(anyio.sleep, 0)

    @rule(seconds=st.sampled_from([0.5, LATE, 4.0, RESET, 12.0, CAP]))
    def tick(self, seconds: float) -> None:
        """Let time go by. Whatever hangs, hangs."""
        self.sim.run(anyio.sleep, seconds)

    @precondition(lambda self: not self.breaker.is_half_open)
    @rule(how=WAYS, stubborn=st.booleans(), deadline=st.booleans(), count=st.integers(1, 4))
    def start_probes(self, *, how: str, stubborn: bool, deadline: bool, count: int) -> None:
        """Have it open, let its time pass, and begin calls at that moment."""
        self.become_due()
        self.start(how=how, stubborn=stubborn, deadline=deadline, count=count)

    def become_due(self) -> None:
        """Have it open, and let its time pass."""
        while not self.breaker.is_open:
            self.sim.run(self.breaker.on_failure, "Down")
        # Asked inside of the simulation: outside it is another time.
        self.sim.run(anyio.sleep, self.sim.call(lambda: self.breaker.retry_after) or 0)

    # By hand.

    @precondition(lambda self: self.active)
    @rule(answer=st.sampled_from(["ok", "fail", "excluded", "hang"]))
    def change_the_service(self, answer: str) -> None:
        """Have the breaker's own probes succeed, fail, say nothing or hang."""
        self.books.answer = answer

    @precondition(lambda self: self.breaker.is_half_open)
    @rule(what=st.sampled_from(["reset", "success", "failure"]))
    def interfere(self, what: str) -> None:
        """Close it by hand, or report without having asked."""
        if what == "reset":
            self.sim.call(self.breaker.reset)
        elif what == "success":
            self.sim.run(self.breaker.on_success)
        else:
            self.sim.run(self.breaker.on_failure, "Down")

    # What must be true.

    @invariant()
    def never_more_probes_than_allowed(self) -> None:
        """In no era more than successes are needed, whatever hangs in there."""
        if self._initialize_rules_to_run:
            return
        for era, needed in self.books.needed.items():
            assert self.books.probes(era, self.sim.now) <= needed
        assert len(permits_of(self.breaker)) <= self.breaker.config.success_threshold

    @invariant()
    def no_permit_without_a_call(self) -> None:
        """Whatever a call ends with, its permit is back; who only asks may forget it."""
        if self._initialize_rules_to_run:
            return
        permits = permits_of(self.breaker)
        if self.breaker.state is not CircuitState.HALF_OPEN:
            assert () == permits
        under_way = [call for call in self.open_calls if not call.done and call.how not in {"by hand", "abandoned"}]
        assert sum(permit.guarded for permit in permits) <= len(under_way) + self.active

    @invariant()
    def no_probe_outlives_its_time(self) -> None:
        """What hangs is cut, unless it cannot be."""
        if self._initialize_rules_to_run:
            return
        for call in self.open_calls:
            if not call.done and not call.stubborn and call.probes_until is not None:
                assert self.sim.now <= call.probes_until

    @invariant()
    def metrics_add_up(self) -> None:
        if self._initialize_rules_to_run:
            return
        metrics = self.breaker.metrics
        assert metrics.failures == sum(metrics.failures_by_type.values())
        assert metrics.timeouts <= metrics.failures

    def finish(self) -> None:
        """Have a healthy service be found in time, whoever still hangs in it; then let them go, and look at what is left."""
        # The service works; the breaker's own probe may be one that never tells.
        if self.books.answer != "excluded":
            self.books.answer = "ok"
        self.sim.run(self._check_liveness)
        self.sim.run(anyio.sleep, 0.001)  # whoever has been started goes in
        # What is still under way belongs to an era that is over now, whatever it brings.
        self.sim.call(self.breaker.reset)
        before = self.breaker.metrics
        for call in self.running:
            call.outcome = "ok" if len(self.open_calls) % 2 else "fail"
            self.sim.call(call.go_on.set)
        self.sim.run(anyio.sleep, CAP)
        assert [] == self.running
        assert (True, (), before) == (self.breaker.is_closed, permits_of(self.breaker), self.breaker.metrics)
        assert int(self.active) == probers_of(self.breaker)
        del self.open_calls
        gc.collect()
        # What `by hand` calls of the main task hold stays as long as the task.
        assert admissions_of(self.breaker) <= 1

    async def _check_liveness(self) -> None:
        """Check that a call is let through within the longest open period and the time of one probe."""
        within = CAP + self.lease
        if self.active:
            # The breaker's own probes take their time first. For one that never tells, callers wait for once more.
            within += (
                self.lease if self.books.answer == "excluded" else POLL + 0.1 * self.breaker.config.success_threshold
            )
        start = anyio.current_time()
        while (seconds := await self._rejected()) is not None:
            assert 0 < seconds <= CAP + self.lease
            await anyio.sleep(min(seconds, POLL) if self.active else seconds)
        assert anyio.current_time() - start <= within + 1e-6
        with anyio.fail_after(self.breaker.config.success_threshold * (CAP + 2 * self.lease)):
            while not self.breaker.is_closed:  # noqa: ASYNC110 - nobody else closes it
                await anyio.sleep(await self._rejected() or 0)

    async def _rejected(self) -> float | None:
        """Make a call that succeeds; return after how many seconds to come back if it is rejected."""
        try:
            await self.breaker.execute(succeed)
        except CircuitOpenError as error:
            return error.retry_after
        return None

    # What callers and the service do.

    async def _probe(self) -> None:
        await anyio.sleep(0.1)
        if self.books.answer == "hang":
            await anyio.sleep_forever()
        await self._outcome(self.books.answer)

    async def _call(self, call: Call) -> None:
        """Be a caller, whose errors are his own."""
        try:
            with call.scope:
                if call.deadline:
                    call.scope.deadline = anyio.current_time() + LATE
                await self._ways[call.how](self, call)
                call.ended = "ok"
        except (Down, Excluded, Stop, CircuitOpenError, CircuitTimeoutError, BaseExceptionGroup) as error:
            call.ended = type(error).__name__
        finally:
            call.done = True
            self.books.ends[call.ended] += 1

    async def _execute(self, call: Call) -> None:
        await self.breaker.execute(self._serve, call)

    async def _enter(self, call: Call) -> None:
        async with self.breaker:
            await self._serve(call)

    async def _ask(self, call: Call) -> None:
        if not await self.breaker.allow_request():
            raise CircuitOpenError("not allowed")
        try:
            await self._serve(call, leased=False)
        except Down:
            await self.breaker.on_failure("Down")
            raise
        except Exception:
            await self.breaker.on_failure("other", count_towards_threshold=False)
            raise
        # A caller who is cancelled, or who is stopped, forgets to report: his permit is abandoned.
        await self.breaker.on_success()

    async def _nest(self, call: Call) -> None:
        async def outer() -> None:
            era = self.breaker.metrics.state_changes
            await self._serve(call)
            until = call.probes_until
            if until is not None and anyio.current_time() < until and self.breaker.metrics.state_changes == era:
                # The lease lives on: a call in the same task is a part of the probe.
                assert await self._rejected() is None

        await self.breaker.execute(outer)

    async def _nest_in_a_task(self, call: Call) -> None:
        async def outer() -> None:
            async with anyio.create_task_group() as group:
                group.start_soon(self.breaker.execute, succeed)
                await self._serve(call)

        await self.breaker.execute(outer)

    async def _abandon(self, call: Call) -> None:
        await self.breaker.allow_request()

    _ways: ClassVar[dict[str, Callable[[Any, Call], Awaitable[None]]]] = {
        "execute": _execute,
        "block": _enter,
        "by hand": _ask,
        "nested": _nest,
        "nested in a task": _nest_in_a_task,
        "abandoned": _abandon,
    }

    async def _serve(self, call: Call, *, leased: bool = True) -> None:
        """Be the service: note who comes in while the circuit is half open, and do as the call is told to."""
        breaker, books = self.breaker, self.books
        era = breaker.metrics.state_changes
        if breaker.is_half_open and leased:
            books.needed.setdefault(era, breaker.config.success_threshold)
            call.probes_until = anyio.current_time() + self.lease
            books.probing.setdefault(era, {})[call] = call.probes_until
        assert not breaker.is_open or call.how.startswith("nested")
        call.inside = True
        try:
            with anyio.CancelScope(shield=call.stubborn):
                await call.go_on.wait()
        finally:
            call.inside = False
            books.probing.get(era, {}).pop(call, None)
        await self._outcome(call.outcome)

    async def _outcome(self, outcome: str) -> None:
        errors: dict[str, BaseException] = {
            "fail": Down("no answer"),
            "excluded": Excluded("not found"),
            "stop": Stop(),
            "raise the group": ExceptionGroup("group", [Excluded("not found"), Down("no answer")]),
        }
        with contextlib.suppress(KeyError):
            raise errors[outcome]


BreakerMachine.TestCase.settings = SOME
TestBreakerOnAsyncio = BreakerMachine.on("asyncio").TestCase
TestBreakerOnTrio = BreakerMachine.on("trio").TestCase
