"""Sweeps of circuit breakers, in each of their states."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from typing import Any, Final, Self

import anyio

from agentcore import (
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitMode,
    CircuitOpenError,
    CircuitTimeoutError,
    KeyedCircuitBreaker,
    get_circuit_breaker,
    with_circuit_breaker,
)
from agentcore._layer import _entered
from agentcore.testing import isolated_globals
from tests.core.circuits import admissions_of, permits_of, probers_of, sinks_of
from tests.sweeps.scenarios import Boom, Crash, State, do, scenario, steps

RESET: Final = 10.0
LEASE: Final = 4.0
CONFIG: Final = CircuitBreakerConfig(
    failure_threshold=2,
    success_threshold=2,
    reset_timeout_ms=RESET * 1000,
    probe_timeout_ms=LEASE * 1000,
    excluded_exceptions=(KeyError,),
)


class Circuits(State):
    """A breaker and a service that counts its calls.

    Args:
        state: what the circuit is when the scenario begins: `closed`, `open`, or `due` for a probe.
        mode: of the breaker.
        probe: what its own probes do.
    """

    def __init__(
        self, state: str = "closed", *, mode: CircuitMode = CircuitMode.NORMAL, probe: str | None = None
    ) -> None:
        self.breaker = CircuitBreaker("swept", CONFIG, probe=None if probe is None else self._probe)
        self.breaker.set_mode(mode)
        self.begun: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()
        self.inside = self.peak = 0
        self._state = state
        self._word = probe

    async def __aenter__(self) -> Self:
        if self._state != "closed":
            await open_up(self.breaker)
        if self._state == "due":
            await anyio.sleep(RESET)
        return self

    async def work(self, word: str, then: Callable[[], Awaitable[Any]] | None = None) -> str:
        """Do something, and count it."""
        self.begun[word] += 1
        self.inside += 1
        self.peak = max(self.peak, self.inside)
        try:
            await do(word)
            if then is not None:
                await then()
            return word
        finally:
            self.inside -= 1
            self.ended[word] += 1

    async def execute(self, word: str = "work", then: Callable[[], Awaitable[Any]] | None = None) -> str:
        """Do something through the breaker."""
        return await self.breaker.execute(self.work, word, then)

    async def quietly(self, word: str) -> None:
        """Do something through the breaker, whatever comes of it."""
        try:
            await self.execute(word)
        except (Boom, CircuitOpenError, CircuitTimeoutError):
            return

    async def block(self, word: str = "work") -> None:
        """Do something in a block."""
        async with self.breaker:
            await self.work(word)

    async def by_hand(self, word: str = "work") -> None:
        """Ask, do something, and report it."""
        if not await self.breaker.allow_request():
            raise CircuitOpenError("not allowed")
        try:
            await self.work(word)
        except Boom:
            await self.breaker.on_failure("Boom")
            raise
        except BaseException:
            await self.breaker.on_failure("none", count_towards_threshold=False)
            raise
        await self.breaker.on_success()

    async def _probe(self) -> None:
        assert self._word is not None
        await self.work(self._word)

    async def check(self) -> None:
        """Nobody runs, no permit is out, nobody listens, and a service that works is called again in time."""
        await super().check()
        assert (self.begun, 0, ()) == (self.ended, self.inside, _entered.get())
        self.breaker.set_mode(CircuitMode.NORMAL)
        await check_breaker(self.breaker)
        await super().check()


async def open_up(breaker: CircuitBreaker) -> None:
    """Report failures until a circuit is open."""
    for _ in range(CONFIG.failure_threshold):
        await breaker.on_failure("Boom")


async def check_breaker(breaker: CircuitBreaker) -> None:
    """Check that nothing is left in a breaker, and that a service that works is found within one period and one probe."""
    assert () == permits_of(breaker)
    assert (0, 0, 0) == (probers_of(breaker), sinks_of(breaker), admissions_of(breaker))
    metrics = breaker.metrics
    assert metrics.failures == sum(metrics.failures_by_type.values())
    start = anyio.current_time()
    for _ in range(CONFIG.success_threshold):
        try:
            await breaker.execute(steps)
        except CircuitOpenError as error:
            await anyio.sleep(error.retry_after or 0)
            await breaker.execute(steps)
    assert breaker.is_closed or metrics.state_changes
    while not breaker.is_closed:
        await breaker.execute(steps)
    assert anyio.current_time() <= start + RESET + LEASE
    assert 0.0 == breaker.retry_after


EXECUTE = ("CircuitBreaker.execute",)
BLOCK = ("GuardLayer.__aenter__", "GuardLayer.__aexit__")
BY_HAND = ("CircuitBreaker.allow_request", "CircuitBreaker.on_success", "CircuitBreaker.on_failure")


def due() -> Circuits:
    """Make a state in which the next call is a probe."""
    return Circuits("due")


# ---------------------------------------------------------------- closed, open, by mode


@scenario(Circuits, *EXECUTE, strict=True, within=0.0)
async def call_while_closed(state: Circuits) -> None:
    state.expect("work" == await state.execute())
    with state.raises(Boom):
        await state.execute("fail")
    state.expect("sleep" == await state.execute("sleep"))
    state.expect(state.breaker.is_closed)


@scenario(Circuits, *EXECUTE, strict=True, within=0.0)
async def call_until_it_opens(state: Circuits) -> None:
    for _ in range(CONFIG.failure_threshold):
        with state.raises(Boom):
            await state.execute("fail")
    with state.raises(CircuitOpenError):
        await state.execute()
    await steps()
    state.expect(state.breaker.is_open)


@scenario(Circuits, *EXECUTE, within=1.0)
async def call_what_is_hard_to_cancel(state: Circuits) -> None:
    with anyio.move_on_after(5):
        await state.execute("stubborn")
    state.expect(1 == state.breaker.metrics.timeouts)


@scenario(Circuits, *EXECUTE, within=1.0)
async def call_for_several(state: Circuits) -> None:
    async with anyio.create_task_group() as group:
        for word in ("work", "fail", "sleep", "stubborn"):
            group.start_soon(state.quietly, word)
        await anyio.sleep(2)
        group.cancel_scope.cancel()


@scenario(lambda: Circuits("open"), *EXECUTE, *BY_HAND, *BLOCK, strict=True, within=0.0)
async def call_while_open(state: Circuits) -> None:
    await steps()
    for call in (state.execute, state.block, state.by_hand):
        with state.raises(CircuitOpenError):
            await call()
        await steps()
    state.expect(not state.begun)


@scenario(lambda: Circuits(mode=CircuitMode.FORCED_OPEN), *EXECUTE, strict=True, within=0.0)
async def call_while_forced_open(state: Circuits) -> None:
    await steps()
    for call in (state.execute, state.block, state.by_hand):
        with state.raises(CircuitOpenError):
            await call()
        await steps()
    state.expect(not state.begun)


@scenario(lambda: Circuits(mode=CircuitMode.DISABLED), *EXECUTE, *BY_HAND, *BLOCK, strict=True, within=0.0)
async def call_while_disabled(state: Circuits) -> None:
    for call in (state.execute, state.block, state.by_hand):
        for _ in range(3):
            with state.raises(Boom):
                await call("fail")
    state.expect(0 == state.breaker.metrics.failures)


@scenario(lambda: Circuits(mode=CircuitMode.METRICS_ONLY), *EXECUTE, *BY_HAND, *BLOCK, strict=True, within=0.0)
async def call_while_only_counting(state: Circuits) -> None:
    for call in (state.execute, state.block, state.by_hand):
        for _ in range(3):
            with state.raises(Boom):
                await call("fail")
    state.expect(9 == state.breaker.metrics.failures)


@scenario(Circuits, *EXECUTE, strict=True, within=0.0)
async def call_while_isolated(state: Circuits) -> None:
    with state.breaker.isolate():
        await steps()
        with state.raises(CircuitOpenError):
            await state.execute()
        await steps()
    state.expect("work" == await state.execute())


# ---------------------------------------------------------------- half open


@scenario(due, *EXECUTE, strict=True, within=0.0)
async def probe_until_it_closes(state: Circuits) -> None:
    for _ in range(2):
        state.expect("sleep" == await state.execute("sleep"))
    state.expect(state.breaker.is_closed)


@scenario(due, *EXECUTE, strict=True, within=0.0)
async def probe_what_fails(state: Circuits) -> None:
    state.expect("work" == await state.execute())
    with state.raises(Boom):
        await state.execute("fail")
    await steps()
    state.expect(state.breaker.is_open)


@scenario(due, *EXECUTE, within=0.0)
async def probe_what_hangs(state: Circuits) -> None:
    with state.raises(CircuitTimeoutError):
        await state.execute("hang")
    await steps()
    state.expect(state.breaker.is_open)


@scenario(due, *EXECUTE, within=1.0)
async def probe_what_is_hard_to_cut(state: Circuits) -> None:
    with state.raises(CircuitTimeoutError):
        await state.execute("stubborn")
    await steps()


@scenario(due, *EXECUTE, allow=(Crash,), strict=True, within=0.0)
async def probe_what_nothing_catches(state: Circuits) -> None:
    with state.raises(Crash):
        await state.execute("crash")
    await steps()
    state.expect(state.breaker.is_open)


@scenario(due, *EXECUTE, strict=True, within=0.0)
async def probe_what_says_nothing(state: Circuits) -> None:
    async def unknown() -> None:
        raise KeyError("unknown")

    for _ in range(3):
        with state.raises(KeyError):
            await state.execute("work", unknown)
    state.expect(state.breaker.is_half_open)


@scenario(due, *EXECUTE, within=1.0)
async def probe_in_several_tasks(state: Circuits) -> None:
    async with anyio.create_task_group() as group:
        for word in ("sleep", "stubborn", "work", "sleep", "work"):
            group.start_soon(state.quietly, word)
    assert state.peak <= CONFIG.success_threshold


@scenario(due, *EXECUTE, *BLOCK, strict=True, within=0.0)
async def nest_in_a_probe(state: Circuits) -> None:
    async def inner() -> None:
        await state.execute("sleep")
        await state.block()
        await state.by_hand()
        with state.raises(Boom):
            await state.execute("fail")

    state.expect("work" == await state.execute("work", inner))
    state.expect(1 == state.breaker.metrics.successes)


@scenario(due, *EXECUTE, within=0.0)
async def start_tasks_in_a_probe(state: Circuits) -> None:
    async def inner() -> None:
        async with anyio.create_task_group() as group:
            for word in ("work", "sleep", "work"):
                group.start_soon(state.quietly, word)

    state.expect("work" == await state.execute("work", inner))


@scenario(due, *BLOCK, strict=True, within=0.0)
async def probe_in_a_block(state: Circuits) -> None:
    await state.block("sleep")
    async with state.breaker, state.breaker:
        await state.work("sleep")
    state.expect(state.breaker.is_closed)


@scenario(due, *BLOCK, within=0.0)
async def hang_in_a_block(state: Circuits) -> None:
    with state.raises(CircuitTimeoutError):
        await state.block("hang")
    await steps()


@scenario(due, *BY_HAND, strict=True, within=0.0)
async def probe_by_hand(state: Circuits) -> None:
    await state.by_hand("sleep")
    with state.raises(Boom):
        await state.by_hand("fail")
    await steps()


@scenario(due, *BY_HAND, *EXECUTE, strict=True, within=0.0)
async def ask_and_execute(state: Circuits) -> None:
    for _ in range(2):
        state.expect(await state.breaker.allow_request())
        try:
            await state.execute("sleep")
        finally:
            await state.breaker.on_failure("none", count_towards_threshold=False)


# ---------------------------------------------------------------- probes of their own accord


async def probe_for(state: Circuits, seconds: float, *words: str) -> None:
    """Have the breaker probed for a time, while callers come."""
    async with anyio.create_task_group() as group:
        group.start_soon(state.breaker.run_probes)
        for word in words:
            await anyio.sleep(seconds / len(words))
            await state.quietly(word)
        group.cancel_scope.cancel()


PROBES = ("CircuitBreaker.run_probes",)


@scenario(lambda: Circuits("open", probe="sleep"), *PROBES, strict=True, within=0.0)
async def probe_what_works(state: Circuits) -> None:
    await probe_for(state, RESET + 3, "sleep")
    state.expect(state.breaker.is_closed)
    state.expect(3 == state.ended["sleep"])


@scenario(lambda: Circuits("open", probe="fail"), *PROBES, strict=True, within=0.0)
async def probe_what_does_not_work(state: Circuits) -> None:
    await probe_for(state, 3 * RESET + 1, "work", "work")
    state.expect((3, 0) == (state.ended["fail"], state.ended["work"]))


@scenario(lambda: Circuits("open", probe="hang"), *PROBES, within=0.0)
async def probe_what_never_answers(state: Circuits) -> None:
    await probe_for(state, RESET + LEASE + 1, "work")
    state.expect(1 == state.breaker.metrics.timeouts)


@scenario(lambda: Circuits("open", probe="stubborn"), *PROBES, within=2.0)
async def probe_what_answers_late(state: Circuits) -> None:
    await probe_for(state, RESET + LEASE + 2, "work")


# ---------------------------------------------------------------- by name


class Named(Circuits):
    """The breakers of the process and of keys, which are the scenario's own."""

    def __init__(self) -> None:
        super().__init__()
        self._globals = ExitStack()
        self.keyed = KeyedCircuitBreaker("swept", CONFIG, max_keys=3)

    async def __aenter__(self) -> Self:
        self._globals.enter_context(isolated_globals())
        self.breaker = get_circuit_breaker("swept", CONFIG)
        await open_up(self.breaker)
        await open_up(self.keyed["bad"])
        await anyio.sleep(RESET)
        return self

    async def __aexit__(self, *error: object) -> None:
        self._globals.close()

    async def check(self) -> None:
        await super().check()
        for breaker in self.keyed.list_all().values():
            await check_breaker(breaker)


@scenario(Named, "with_circuit_breaker", strict=True, within=0.0)
async def call_by_name(state: Named) -> None:
    for word in ("work", "sleep"):
        state.expect(word == await with_circuit_breaker("swept", state.work, word))
    with state.raises(Boom):
        await with_circuit_breaker("swept", state.work, "fail")
    state.expect("work" == await with_circuit_breaker("another", state.work, "work"))


@scenario(Named, "KeyedCircuitBreaker.execute", strict=True, within=0.0)
async def call_by_key(state: Named) -> None:
    for key in ("good", "bad", "new", "good"):
        state.expect("sleep" == await state.keyed.execute(key, state.work, "sleep"))
    with state.raises(Boom):
        await state.keyed.execute("bad", state.work, "fail")
    with state.raises(CircuitOpenError):
        await state.keyed.execute("bad", state.work, "work")
    # One key too many: not the open one goes, though the others were used later.
    state.expect("work" == await state.keyed.execute("newer", state.work, "work"))
    state.expect("bad" in state.keyed)
    await steps()
