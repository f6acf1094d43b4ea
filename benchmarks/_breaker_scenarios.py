"""What a circuit breaker should do, as scenarios: each plays one situation with one library, and raises `Fails` if it goes wrong.

A scenario sees a library as its callers and the dependency do: who is let through, who is rejected, what the callers get. It
does not look inside. Whatever a call raises that has reached the dependency is a failed call; what it raises without having
been there is a rejection.

Time is real, with short periods; what has to happen is waited for, not hoped for. Whoever is expected to come through gets
many times the time that it takes.
"""

# What a library does inside is not known here: it is asked again and again, and whatever it raises is looked at.
# ruff: noqa: ASYNC110, BLE001

from __future__ import annotations

import contextlib
import gc
import math
import tracemalloc
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias

import anyio
import anyio.abc
import attrs
from _breaker_adapter import CallerError, DownError, Peer, Permits, Settings

Behave: TypeAlias = Callable[[], Awaitable[Any]]
Scenario: TypeAlias = Callable[[Peer, float], Awaitable[None]]

ANSWERED: Final = "answered"
FAILED: Final = "failed"
REJECTED: Final = "rejected"
FAILURES: Final = 3
# A trial call may take this many open periods; somebody else has to come through within so many.
LEASE: Final = 3
PATIENCE: Final = 20


class Fails(Exception):  # noqa: N818 - a verdict, no error
    """The library does something else; the text says what."""


class NotOffered(Exception):  # noqa: N818 - the same
    """The library has no such thing."""


def check(right: bool, otherwise: str) -> None:
    """Raise `Fails` with a text if something is not right."""
    if not right:
        raise Fails(otherwise)


async def until(condition: Callable[[], bool], seconds: float = 2.0) -> bool:
    """Wait until something is so; return False if it does not become so in time."""
    with anyio.move_on_after(seconds):
        while not condition():
            await anyio.sleep(0.002)
        return True
    return condition()


# ---------------------------------------------------------------- the dependency


async def well() -> str:
    """Answer."""
    await anyio.sleep(0)
    return ANSWERED


async def down() -> None:
    """Fail."""
    await anyio.sleep(0)
    raise DownError


async def hang() -> None:
    """Never answer."""
    await anyio.sleep(math.inf)


def raising(make: Callable[[], Exception]) -> Behave:
    """Return a behaviour that raises what a function makes."""

    async def behave() -> None:
        await anyio.sleep(0)
        raise make()

    return behave


class Held:
    """A call that stays at the dependency until it is told how to end."""

    def __init__(self) -> None:
        self.arrived = anyio.Event()
        self.over = anyio.Event()
        self.outcome = ""
        self._released = anyio.Event()
        self._error: Exception | None = None

    async def behave(self) -> None:
        """Be at the dependency."""
        self.arrived.set()
        await self._released.wait()
        if self._error is not None:
            raise self._error

    async def end(self, error: Exception | None = None) -> None:
        """Answer or fail, and wait until the caller knows."""
        self._error = error
        self._released.set()
        await self.over.wait()


class Stage:
    """A dependency behind a breaker that opens after three failures in a row.

    Attributes:
        guarded: the dependency behind the breaker.
        inside: how many calls are at the dependency.
        peak: how many there have been at a time, since the circuit was last seen open.
    """

    def __init__(self, peer: Peer, reset: float, **settings: Any) -> None:
        self.reset = reset
        self.guarded = peer.guard(
            self._serve, Settings(failures=FAILURES, reset=reset, lease=LEASE * reset, **settings)
        )
        self.inside = 0
        self.peak = 0
        self._rejection: Exception | None = None

    async def _serve(self, behave: Behave) -> Any:
        self.inside += 1
        self.peak = max(self.peak, self.inside)
        try:
            return await behave()
        finally:
            self.inside -= 1

    async def ask(self, behave: Behave = well) -> str:
        """Call the dependency; return `ANSWERED`, `FAILED` or `REJECTED`."""
        reached = False

        async def served() -> Any:
            nonlocal reached
            reached = True
            return await behave()

        try:
            await self.guarded(served)
        except Exception as error:
            if reached:
                return FAILED
            self._rejection = self._rejection or error.with_traceback(None)
            check(type(error) is type(self._rejection), f"a caller gets {error!r}")
            return REJECTED
        return ANSWERED

    async def trip(self) -> None:
        """Open the circuit by failures."""
        for _ in range(FAILURES):
            check(await self.ask(down) == FAILED, f"a caller gets {self._rejection!r} before it has opened")
        check(await self.ask() == REJECTED, f"does not open after {FAILURES} failures")
        self.peak = 0

    async def due(self) -> None:
        """Wait until the open period is over."""
        await anyio.sleep(self.reset * 1.2)

    async def open_and_wait(self) -> None:
        """Open the circuit, and wait until the open period is over."""
        await self.trip()
        await self.due()

    async def hold(self, group: anyio.abc.TaskGroup) -> Held:
        """Start a call that stays at the dependency; return when it is there, or has been rejected."""
        held = Held()

        async def call() -> None:
            held.outcome = await self.ask(held.behave)
            held.over.set()

        group.start_soon(call)
        # Some let callers wait for the trial call that is under way: these are not there either.
        await until(lambda: held.arrived.is_set() or held.over.is_set(), 0.1)
        return held

    async def cancel_one(self, otherwise: str, after: float = 0.0) -> None:
        """Start a call that hangs, and cancel it as a user does who has lost interest. It has to be let through."""
        async with anyio.create_task_group() as group:
            held = await self.hold(group)
            check(held.arrived.is_set(), otherwise)
            await anyio.sleep(after)
            group.cancel_scope.cancel()

    async def is_answered_soon(self) -> bool:
        """Ask again and again, well; return whether that is answered within twenty open periods."""
        with anyio.move_on_after(PATIENCE * self.reset):
            while await self.ask() != ANSWERED:
                await anyio.sleep(self.reset / 4)
            return True
        return False


# ---------------------------------------------------------------- the ordinary


async def lives(peer: Peer, reset: float) -> None:
    """It opens after three failures, rejects without calling, opens again if the trial call fails, closes if it succeeds."""
    stage = Stage(peer, reset)
    await stage.trip()
    for _ in range(10):
        check(await stage.ask() == REJECTED, "lets calls through while it is open")
    await stage.due()
    check(await stage.ask(down) == FAILED, "makes no trial call when the open period is over")
    check(await stage.ask() == REJECTED, "stays closed although the trial call has failed")
    await stage.due()
    for _ in range(5):
        check(await stage.ask() == ANSWERED, "stays open although the trial call has succeeded")


async def lives_on_trio(peer: Peer, reset: float) -> None:
    """The same on trio, and fifty callers at a time, also when the trial call is due."""
    await lives(peer, reset)
    stage = Stage(peer, reset)
    outcomes: list[str] = []

    async def call() -> None:
        outcomes.append(await stage.ask(lambda: anyio.sleep(reset / 10)))

    async def call_all() -> None:
        outcomes.clear()
        async with anyio.create_task_group() as group:
            for _ in range(50):
                group.start_soon(call)

    await call_all()
    check(outcomes == [ANSWERED] * 50, "does not let callers through side by side")
    stage = Stage(peer, reset)
    await stage.open_and_wait()
    await call_all()
    check(FAILED not in outcomes and ANSWERED in outcomes, "breaks when callers meet at the trial call")


# ---------------------------------------------------------------- cancellation


async def forgets_a_cancelled_trial(peer: Peer, reset: float) -> None:
    """A trial call that is cancelled neither closes the circuit nor keeps its slot."""
    stage = Stage(peer, reset)
    await stage.open_and_wait()
    await stage.cancel_one("makes no trial call when the open period is over")
    check(await until(lambda: stage.inside == 0, 0.2), "the cancelled call goes on at the dependency")
    for _ in range(PATIENCE):
        if await stage.ask(down) == FAILED:
            break
        await anyio.sleep(reset / 4)
    else:
        raise Fails("the slot of the cancelled call is lost: nobody is let through any more")
    check(await stage.ask() == REJECTED, "the cancelled call closes the circuit")


async def forgets_cancelled_calls(peer: Peer, reset: float) -> None:
    """Cancelled calls neither open a closed circuit nor count as successes."""
    stage = Stage(peer, reset)
    for _ in range(10):
        await stage.cancel_one("cancelled calls open it")
    check(await stage.ask() == ANSWERED, "cancelled calls open it")
    stage = Stage(peer, reset)
    await stage.ask(down)
    await stage.ask(down)
    await stage.cancel_one("opens too early")
    await stage.ask(down)
    check(await stage.ask() == REJECTED, "a cancelled call counts as a success between failures")


async def tells_deadlines_from_users(peer: Peer, reset: float) -> None:
    """A dependency that outruns its callers' deadlines opens it; users who lose interest do not."""
    stage = Stage(peer, reset)
    for _ in range(FAILURES):
        with anyio.move_on_after(reset / 2):
            await stage.ask(hang)
    check(await stage.ask() == REJECTED, "a dependency that hangs until its callers' deadlines never opens it")
    stage = Stage(peer, reset)
    for _ in range(2 * FAILURES):
        await stage.cancel_one("users who lose interest open it", after=reset / 2)
    check(await stage.ask() == ANSWERED, "users who lose interest open it")


# ---------------------------------------------------------------- trial calls


async def bounds_trials(peer: Peer, reset: float) -> None:
    """Of a thousand callers at the moment of the reset no more reach the dependency than there are trial calls: one."""
    stage = Stage(peer, reset)
    await stage.open_and_wait()
    await _crowd(stage, 1000)
    check(stage.peak <= 1, f"{stage.peak} of 1000 callers reach the dependency at the reset")


async def _crowd(stage: Stage, number: int) -> None:
    """Have callers come at once, and wait until nobody comes through any more."""
    async with anyio.create_task_group() as group:
        for _ in range(number):
            group.start_soon(stage.ask, hang)
        before = -1
        while before != stage.peak:
            before = stage.peak
            await anyio.sleep(0.1)
        group.cancel_scope.cancel()


async def outlives_a_hung_trial(peer: Peer, reset: float) -> None:
    """While a trial call hangs, others are let through again before long."""
    stage = Stage(peer, reset)
    await stage.open_and_wait()
    async with anyio.create_task_group() as group:
        group.start_soon(stage.ask, hang)
        check(await until(lambda: stage.inside == 1), "makes no trial call when the open period is over")
        answered = await stage.is_answered_soon()
        group.cancel_scope.cancel()
    check(answered, f"one trial call that hangs keeps everybody out for {PATIENCE} open periods and more")


async def bounds_and_outlives(peer: Peer, reset: float) -> None:
    """Both at once: a hundred callers hang at the reset, one reaches the dependency, and others come through later."""
    stage = Stage(peer, reset)
    await stage.open_and_wait()
    async with anyio.create_task_group() as group:
        for _ in range(100):
            group.start_soon(stage.ask, hang)
        await anyio.sleep(reset / 2)
        check(stage.peak <= 1, f"{stage.peak} of 100 callers hang at the dependency")
        answered = await stage.is_answered_soon()
        group.cancel_scope.cancel()
    check(answered, f"one trial call that hangs keeps everybody out for {PATIENCE} open periods and more")


async def closes_by_a_nested_trial(peer: Peer, reset: float) -> None:
    """A trial call that calls through the same breaker inside is answered, with one slot, and closes the circuit."""
    stage = Stage(peer, reset)
    await stage.trip()

    async def nested() -> Any:
        return await stage.guarded(well)

    for _ in range(5):
        await stage.due()
        if await stage.ask(nested) == ANSWERED:
            break
    else:
        raise Fails("the call inside is rejected, which fails the trial call: it never closes")
    check(await stage.ask() == ANSWERED, "does not close")


async def recovers_permits(peer: Peer, reset: float) -> None:
    """Asked by hand it gives one permit at the reset, and another one when the first never comes back."""
    permits = peer.permits(Settings(failures=FAILURES, reset=reset, lease=LEASE * reset))
    if permits is None:
        raise NotOffered
    for _ in range(FAILURES):
        check(await permits.ask(), "refuses before it has opened")
        await permits.failed()
    check(not await permits.ask(), f"does not open after {FAILURES} failures")
    await anyio.sleep(reset * 1.2)
    check(await _ask_in_task(permits), "gives no permit when the open period is over")
    check(not await _ask_in_task(permits), "gives permits to everybody at the reset")
    with anyio.move_on_after(PATIENCE * reset):
        while not await permits.ask():
            await anyio.sleep(reset / 4)
        await permits.succeeded()
        check(await permits.ask() and await permits.ask(), "does not close")
        return
    raise Fails("a permit that never comes back is lost: nobody gets one any more")


async def _ask_in_task(permits: Permits) -> bool:
    """Ask in a task that ends without a report."""
    granted = False

    async def ask() -> None:
        nonlocal granted
        granted = await permits.ask()

    async with anyio.create_task_group() as group:
        group.start_soon(ask)
    return granted


# ---------------------------------------------------------------- late outcomes


async def ignores_late_successes(peer: Peer, reset: float) -> None:
    """A call from before that comes back well changes nothing: neither an open circuit, nor a half-open one, nor its count."""
    stage = Stage(peer, reset)
    async with anyio.create_task_group() as group:
        first, second = await stage.hold(group), await stage.hold(group)
        await stage.trip()
        await first.end()
        check(await stage.ask() == REJECTED, "a success from before the circuit opened closes it")
        await stage.due()
        trial = await stage.hold(group)
        await second.end()
        await trial.end(DownError())
        check(await stage.ask() == REJECTED, "a success from before the circuit opened counts as a trial call")
        group.cancel_scope.cancel()
    if peer.has_probes:
        await _count_anew(Stage(peer, reset, probes=2))


async def _count_anew(stage: Stage) -> None:
    """With two successes needed: one of an earlier half-open period must not count in the next."""
    await stage.open_and_wait()
    async with anyio.create_task_group() as group:
        late, failing = await stage.hold(group), await stage.hold(group)
        await failing.end(DownError())
        await stage.due()
        trial = await stage.hold(group)
        if trial.arrived.is_set():  # else the first period is not over
            await late.end()
            await trial.end()
            await stage.ask(down)
            check(await stage.ask() == REJECTED, "a success of an earlier half-open period counts in the next")
        group.cancel_scope.cancel()


async def ignores_late_failures(peer: Peer, reset: float) -> None:
    """A call from before that fails changes nothing: neither a half-open circuit nor one that has closed again."""
    stage = Stage(peer, reset)
    async with anyio.create_task_group() as group:
        late = await stage.hold(group)
        await stage.open_and_wait()
        trial, another = await stage.hold(group), await stage.hold(group)
        await late.end(DownError())
        if another.arrived.is_set():  # everybody is let through at the moment
            another = await stage.hold(group)
            check(another.arrived.is_set(), "a failure from before opens a half-open circuit again")
        await trial.end()
        check(await stage.ask() == ANSWERED, "a failure from before keeps the trial call from closing the circuit")
        group.cancel_scope.cancel()
    stage = Stage(peer, reset)
    async with anyio.create_task_group() as group:
        several = [await stage.hold(group) for _ in range(FAILURES)]
        await stage.open_and_wait()
        trial = await stage.hold(group)
        await trial.end()
        for late in several:
            await late.end(DownError())
        check(await stage.ask() == ANSWERED, "failures from before open a circuit that has closed again")
        group.cancel_scope.cancel()


# ---------------------------------------------------------------- what callers get


async def survives_listeners(peer: Peer, reset: float) -> None:
    """A listener that raises at everything it is told changes neither what callers get nor the course of the circuit."""
    if not peer.has_listeners:
        raise NotOffered
    told = 0

    def listen() -> None:
        nonlocal told
        told += 1
        raise RuntimeError("listener")

    stage = Stage(peer, reset, listener=listen)

    async def call(behave: Behave) -> BaseException | None:
        try:
            await stage.guarded(behave)
        except Exception as error:
            check(
                not isinstance(error, RuntimeError),
                "the listener's error takes the place of what the caller should get",
            )
            return error
        return None

    for _ in range(FAILURES):
        await call(down)
    check(await call(well) is not None, "does not open if a listener raises")
    await stage.due()
    for _ in range(FAILURES):
        check(await call(well) is None, "does not close if a listener raises")
    check(told > 0, "tells listeners nothing")


async def keeps_own_errors(peer: Peer, reset: float) -> None:
    """Whoever opens the circuit gets what the dependency has raised, and so does the trial call."""
    stage = Stage(peer, reset)
    for number in range(FAILURES + 1):
        own = DownError(number)
        try:
            await stage.guarded(raising(lambda own=own: own))
        except Exception as error:
            what = "the trial call" if number == FAILURES else f"failure {number + 1} of {FAILURES}"
            check(error is own, f"{what} gets {type(error).__name__} instead of its own error")
        if number == FAILURES - 1:
            check(await stage.ask() == REJECTED, f"does not open after {FAILURES} failures")
            await stage.due()


async def keeps_nothing_of_rejections(peer: Peer, reset: float) -> None:
    """A thousand rejected callers, each with 20 kB at hand, leave nothing behind."""
    stage = Stage(peer, 1000 * reset)
    await stage.trip()

    async def call() -> int:
        at_hand = bytearray(20_000)
        await stage.guarded(well)
        return len(at_hand)

    async def call_often(number: int) -> None:
        for _ in range(number):
            with contextlib.suppress(Exception):
                await call()
            await anyio.sleep(0)  # some tidy up in the event loop

    await call_often(10)
    gc.collect()
    tracemalloc.start()
    try:
        await call_often(1000)
        gc.collect()
        kept, _peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    check(kept < 100_000, f"a thousand rejections keep {kept / 1e6:.1f} MB alive")


async def looks_into_groups(peer: Peer, reset: float) -> None:
    """What does not count does not count in a group of exceptions either; a failure in one does."""
    if not peer.has_exclusion:
        raise NotOffered
    for what, make in {
        "an exception that should not count opens it": CallerError,
        "a group of exceptions that do not count opens it": lambda: ExceptionGroup("", [CallerError(), CallerError()]),
    }.items():
        stage = Stage(peer, reset, exclude=True)
        for _ in range(FAILURES):
            await stage.ask(raising(make))
        check(await stage.ask() == ANSWERED, what)
    stage = Stage(peer, reset, exclude=True)
    for _ in range(FAILURES):
        await stage.ask(raising(lambda: ExceptionGroup("", [CallerError(), DownError()])))
    check(await stage.ask() == REJECTED, "a group with a failure in it does not count")


# ---------------------------------------------------------------- all of them


@attrs.frozen
class Behaviour:
    """A column of the table.

    Attributes:
        name: its head.
        scenario: what plays it.
        backend: where it is played, if only there.
    """

    name: str
    scenario: Scenario
    backend: str | None = None


BEHAVIOURS: Final = (
    Behaviour("opens, recovers", lives),
    Behaviour("trio", lives_on_trio, "trio"),
    Behaviour("cancelled trial", forgets_a_cancelled_trial),
    Behaviour("cancelled calls", forgets_cancelled_calls),
    Behaviour("deadlines", tells_deadlines_from_users),
    Behaviour("herd", bounds_trials),
    Behaviour("hung trial", outlives_a_hung_trial),
    Behaviour("bounded and alive", bounds_and_outlives),
    Behaviour("nested trial", closes_by_a_nested_trial),
    Behaviour("permits", recovers_permits),
    Behaviour("late success", ignores_late_successes),
    Behaviour("late failure", ignores_late_failures),
    Behaviour("listeners", survives_listeners),
    Behaviour("own errors", keeps_own_errors),
    Behaviour("memory", keeps_nothing_of_rejections),
    Behaviour("groups", looks_into_groups),
)
