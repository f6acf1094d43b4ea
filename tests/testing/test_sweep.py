"""Cancellation at every point of a scenario: which points there are, and what is found at them."""

from __future__ import annotations

import math
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Self

import anyio
import anyio.lowlevel
import pytest

from agentcore.testing import (
    BACKENDS,
    FIFO,
    CancelPoint,
    DeadlockError,
    FaultPlan,
    InvariantError,
    LeakError,
    Replay,
    SweepReport,
    cancel_everywhere,
    current_simulation,
)
from agentcore.testing._replay import MODES, VARIABLE, Mode

both = pytest.mark.parametrize("backend", BACKENDS)
# What AnyIO's parts promise holds for cancellation of scopes.
SCOPES: tuple[Mode, ...] = ("block", "wake", "deadline")


class BoomError(Exception):
    """What scenarios raise if something is wrong."""


async def steps(count: int = 1) -> None:
    for _ in range(count):
        await anyio.lowlevel.checkpoint()


async def two_sleeps() -> None:
    await anyio.sleep(1)
    await anyio.sleep(1)


async def swallows() -> None:
    try:
        await anyio.sleep(1)
    except anyio.get_cancelled_exc_class():
        return


def sweep_fails(*args: Any, **options: Any) -> BaseException:
    """Sweep, and return what was found."""
    try:
        cancel_everywhere(*args, **options)
    except Exception as error:  # noqa: BLE001 - it is looked at
        return error
    raise AssertionError("the sweep must find something")


def replay_of(error: BaseException) -> Replay:
    (line,) = [note for note in error.__notes__ if note.startswith("replay: ")]
    found = re.fullmatch(rf"replay: {VARIABLE}='(.*)'", line)
    assert found
    return Replay.parse(found[1])


# ------------------------------------------------------------------------------------------ points


@pytest.mark.parametrize(
    ("scenario", "counts"),
    [(two_sleeps, {"block": 2, "wake": 2, "deadline": 0, "native": 2}), (steps, {"block": 1, "wake": 1})],
)
def test_every_stop_is_a_point(scenario: Any, counts: dict[Any, int]) -> None:
    report = cancel_everywhere(scenario)
    assert set(report.points) == {(backend, mode) for backend in BACKENDS for mode in MODES} - {("trio", "native")}
    for (_backend, mode), count in report.points.items():
        assert count == counts.get(mode, count)


async def everything() -> None:
    """Use a bit of all there is."""
    lock, event = anyio.Lock(), anyio.Event()
    send, receive = anyio.create_memory_object_stream[int](1)

    async def work(number: int) -> None:
        with anyio.move_on_after(10):
            async with lock:
                await anyio.sleep(number)
        await send.send(number)
        await event.wait()

    with send, receive, anyio.move_on_after(100):
        async with anyio.create_task_group() as group:
            for number in range(3):
                group.start_soon(work, number)
            for _ in range(3):
                await receive.receive()
            event.set()
            with anyio.CancelScope(shield=True):
                await steps(2)


@pytest.mark.parametrize("schedule", ["fifo", "-", "walk/1", "rare/2", "pct/3/64"])
def test_the_points_are_the_same_on_both_backends(schedule: str) -> None:
    """One is cancelled at the same places as the other."""
    report = cancel_everywhere(everything, schedules=(schedule,))
    counts = {mode: {report.points[backend, mode] for backend in BACKENDS} for mode in SCOPES}
    assert all(len(found) == 1 for found in counts.values())
    assert report.points["asyncio", "block"] > 10
    assert report.points["asyncio", "native"] == report.points["asyncio", "block"]
    # Every step but the first begins where one has stopped; a task that ends makes no stop.
    assert report.points["asyncio", "wake"] >= report.points["asyncio", "block"]


def test_the_points_of_several_schedules_are_counted_together() -> None:
    one, two = cancel_everywhere(everything), cancel_everywhere(everything, schedules=(FIFO, "fifo"))
    assert {key: 2 * count for key, count in one.points.items()} == two.points
    assert two.runs == 2 * one.runs
    assert two.steps == 2 * one.steps


def test_a_report_says_what_was_gone_through() -> None:
    report = cancel_everywhere(two_sleeps, modes=("block", "wake"))
    assert str(report) == "asyncio block 2, asyncio wake 2, trio block 2, trio wake 2; 10 runs"
    assert report.points == {(backend, mode): 2 for backend in BACKENDS for mode in ("block", "wake")}
    assert report.runs == 10
    assert str(SweepReport({}, 1, 2)) == "; 1 runs"


@both
def test_each_mode_cancels_where_it_says(backend: Any) -> None:
    """At a stop, before a step, at a deadline: what has been done by then differs."""
    seen: list[tuple[Any, ...]] = []

    async def scenario() -> None:
        log: list[Any] = []
        try:
            log.append("a")
            await anyio.sleep(1)
            log.append("b")
            with anyio.move_on_after(5) as scope:
                await anyio.sleep(3)
            log.append(scope.cancelled_caught)
        except anyio.get_cancelled_exc_class():
            log.append("cancelled")
            raise
        finally:
            seen.append((*log, anyio.current_time()))

    whole = ("a", "b", False, 4.0)
    cancel_everywhere(scenario, backends=[backend], modes=("block",))
    assert seen == [whole, ("a", "cancelled", 0.0), ("a", "b", "cancelled", 1.0)]
    seen.clear()
    cancel_everywhere(scenario, backends=[backend], modes=("wake",))
    # On trio a sleep is a scope: it hands on a cancellation that comes before it has been left. On asyncio it is over.
    first, second = (("a",), ("a", "b")) if backend == "trio" else (("a", "b"), ())
    assert seen[1] == (*first, "cancelled", 1.0)
    assert seen[2] == ((*second, "cancelled", 4.0) if second else whole)
    seen.clear()
    cancel_everywhere(scenario, backends=[backend], modes=("deadline",))
    # The sleep is over too by then, which on asyncio is enough for it to end well.
    assert seen == [whole, ("a", "b", backend == "trio", 6.0)]


def test_native_cancellation_goes_to_the_main_task() -> None:
    seen: list[str] = []

    async def child() -> None:
        try:
            await anyio.sleep(1)
        except anyio.get_cancelled_exc_class():
            seen.append("child")
            raise

    async def scenario() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(child)
            try:
                await anyio.sleep(2)
            except anyio.get_cancelled_exc_class():
                seen.append("main")
                raise

    report = cancel_everywhere(scenario, modes=("native",))
    assert report.points == {("asyncio", "native"): 3}
    assert report.runs == 5
    # Not where the main task leaves the group: that is shielded.
    assert seen == ["main", "child"] * 2
    assert "native" not in str(cancel_everywhere(scenario, backends=["trio"]))


def test_native_alone_has_nothing_to_do_on_trio() -> None:
    assert cancel_everywhere(two_sleeps, backends=["trio"], modes=("native",)).points == {}


@both
def test_a_deadline_is_the_innermost_one(backend: Any) -> None:
    seen: list[tuple[bool, bool]] = []

    async def scenario() -> None:
        event = anyio.Event()

        async def later() -> None:
            await anyio.sleep(1)
            event.set()

        async with anyio.create_task_group() as group:
            group.start_soon(later)
            with anyio.move_on_after(9) as outer, anyio.move_on_after(5) as inner:
                await event.wait()
        seen.append((outer.cancelled_caught, inner.cancelled_caught))

    assert cancel_everywhere(scenario, backends=[backend], modes=("deadline",)).points == {(backend, "deadline"): 1}
    assert seen == [(False, False), (False, True)]


@both
def test_a_timeout_error_is_what_a_deadline_makes(backend: Any) -> None:
    async def scenario() -> None:
        with anyio.fail_after(5):
            await anyio.sleep(1)

    async def in_a_group() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(scenario)

    cancel_everywhere(scenario, backends=[backend])
    cancel_everywhere(in_a_group, backends=[backend])


# ------------------------------------------------------------------------------------------ rules


@both
def test_an_error_of_the_scenario_is_found(backend: Any) -> None:
    async def scenario() -> None:
        try:
            await two_sleeps()
        except anyio.get_cancelled_exc_class():
            raise BoomError("in the way") from None

    error = sweep_fails(scenario, backends=[backend])
    assert isinstance(error, BoomError)
    assert replay_of(error) == Replay(backend, FIFO, CancelPoint("block", 0))
    assert error.__notes__[0].startswith(
        f"cancelled on {backend} at block@0: task 0 'main' at two_sleeps:{two_sleeps.__code__.co_firstlineno + 1} in "
    )


@both
def test_errors_may_be_allowed(backend: Any) -> None:
    """By themselves and in groups, if the group has no others."""

    async def scenario(error: type[Exception] = BoomError) -> None:
        try:
            await two_sleeps()
        except anyio.get_cancelled_exc_class():
            raise error from None

    async def group(*errors: type[Exception]) -> None:
        async with anyio.create_task_group() as tasks:
            for error in errors:
                tasks.start_soon(scenario, error)

    cancel_everywhere(scenario, backends=[backend], allow=(BoomError,))
    cancel_everywhere(lambda: group(BoomError), backends=[backend], allow=(BoomError,))
    cancel_everywhere(lambda: group(BoomError, OSError), backends=[backend], allow=(OSError, BoomError))
    cancel_everywhere(scenario, backends=[backend], allow=(Exception,))
    assert isinstance(sweep_fails(scenario, backends=[backend], allow=(OSError,)), BoomError)
    error = sweep_fails(lambda: group(BoomError, OSError), backends=[backend], allow=(BoomError,))
    assert isinstance(error, ExceptionGroup)


@both
def test_what_is_allowed_must_not_come_without_cancellation(backend: Any) -> None:
    async def scenario() -> None:
        await anyio.sleep(1)
        raise BoomError("always")

    error = sweep_fails(scenario, backends=[backend], allow=(BoomError,))
    assert isinstance(error, BoomError)
    assert error.__notes__ == [
        "the scenario failed before anything was cancelled",
        f"replay: AGENTCORE_SIM='sim1:{backend}:fifo'",
    ]


@both
def test_a_scenario_may_have_to_end_in_time(backend: Any) -> None:
    async def scenario() -> None:
        try:
            await anyio.sleep(1)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(3)

    cancel_everywhere(scenario, backends=[backend])
    cancel_everywhere(scenario, backends=[backend], within=3.0)
    error = sweep_fails(scenario, backends=[backend], within=2.5)
    assert isinstance(error, InvariantError)
    assert str(error).startswith("the scenario must end within 2.5 s of its cancellation: it took 3 s (at 3 s)\n")


@both
def test_time_that_is_allowed_does_not_count_for_deadlines(backend: Any) -> None:
    """A deadline that has passed is the scenario's own matter."""

    async def scenario() -> None:
        with anyio.move_on_after(1):
            await anyio.sleep(0.5)
        with anyio.CancelScope(shield=True):
            await anyio.sleep(7)

    cancel_everywhere(scenario, backends=[backend], modes=("deadline",), within=0.0)
    assert isinstance(sweep_fails(scenario, backends=[backend], modes=("block",), within=0.0), InvariantError)


@both
def test_a_strict_sweep_finds_what_swallows_a_cancellation(backend: Any) -> None:
    cancel_everywhere(swallows, backends=[backend])
    error = sweep_fails(swallows, backends=[backend], strict=True)
    assert isinstance(error, InvariantError)
    assert "the scenario must end by the cancellation that it meets: it has swallowed it, and returned" in str(error)
    assert str(replay_of(error).cancel) == "block@0"


@both
def test_a_strict_sweep_is_content_with_what_does_not_swallow(backend: Any) -> None:
    """Whoever meets no cancellation may return: behind a shield, at the last step, in a task of a group."""

    async def shielded() -> None:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(1)

    async def group() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(two_sleeps)
            tasks.start_soon(shielded)

    async def timeouts() -> None:
        with anyio.move_on_after(0.5):
            await anyio.sleep(1)
        await steps()

    for scenario in (two_sleeps, shielded, group, timeouts, everything):
        cancel_everywhere(scenario, backends=[backend], strict=True)


@both
def test_a_scenario_that_never_ends_is_a_deadlock(backend: Any) -> None:
    async def scenario() -> None:
        try:
            await anyio.sleep(1)
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):
                await anyio.Event().wait()

    assert isinstance(sweep_fails(scenario, backends=[backend]), DeadlockError)


def test_tasks_that_are_left_are_a_leak() -> None:
    import asyncio  # noqa: PLC0415

    async def scenario() -> None:
        task = asyncio.ensure_future(anyio.sleep(2))
        await anyio.sleep(1)
        await task

    error = sweep_fails(scenario, backends=["asyncio"])
    assert isinstance(error, LeakError)
    assert str(error).startswith("1 task is left when the scenario has ended (at 0 s)\n  task 1 ")

    async def two() -> None:
        tasks = [asyncio.ensure_future(anyio.sleep(2)) for _ in range(2)]
        await anyio.sleep(1)
        for task in tasks:
            await task

    assert str(sweep_fails(two, backends=["asyncio"])).startswith("2 tasks are left when the scenario has ended")


# ------------------------------------------------------------------------------------------ state


class Box:
    """A state that notes what is done with it."""

    made = 0

    def __init__(self) -> None:
        Box.made += 1
        self.log: list[str] = []
        self.entered = False


def make() -> Box:
    return Box()


async def make_asynchronously() -> Box:
    await anyio.sleep(10)
    return Box()


@asynccontextmanager
async def make_around() -> AsyncIterator[Box]:
    box = Box()
    async with anyio.create_task_group() as group:
        group.start_soon(anyio.sleep_forever)
        await anyio.sleep(10)
        box.log.append("entered")
        yield box
        assert box.log[-1] == "checked"
        await anyio.sleep(10)
        group.cancel_scope.cancel()


async def make_around_asynchronously() -> Any:
    await anyio.sleep(10)
    return make_around()


@pytest.mark.parametrize("build", [make, make_asynchronously, make_around, make_around_asynchronously, Box])
@both
def test_the_state_is_made_anew_for_each_run(backend: Any, build: Callable[[], Any]) -> None:
    """Outside of what is cancelled: the points are those of the scenario alone."""
    boxes: list[Box] = []

    async def scenario(box: Box) -> None:
        boxes.append(box)
        await two_sleeps()
        box.log.append("done")

    def check(box: Box) -> None:
        box.log.append("checked")

    before = Box.made
    report = cancel_everywhere(scenario, build=build, check=check, backends=[backend], modes=("block", "wake"))
    assert report.points == {(backend, "block"): 2, (backend, "wake"): 2}
    assert Box.made - before == report.runs == len(boxes) == 5
    assert len({id(box) for box in boxes}) == 5
    assert all(box.log[-1] == "checked" for box in boxes)
    assert [("done" in box.log) for box in boxes[:3]] == [True, False, False]


@both
def test_a_check_may_wait(backend: Any) -> None:
    """It is not cancelled, whatever the scenario has met."""
    checked: list[float] = []

    async def check(box: Box) -> None:
        await anyio.sleep(5)
        checked.append(anyio.current_time())

    async def scenario(box: Box) -> None:
        await two_sleeps()

    report = cancel_everywhere(scenario, build=Box, check=check, backends=[backend])
    assert len(checked) == report.runs
    assert checked[0] == 7.0
    assert checked[1] == 5.0


@both
def test_a_check_without_a_state_takes_nothing(backend: Any) -> None:
    checked: list[int] = []
    report = cancel_everywhere(two_sleeps, check=lambda: checked.append(1), backends=[backend])
    assert len(checked) == report.runs


@both
def test_a_state_may_be_none(backend: Any) -> None:
    seen: list[Any] = []

    async def scenario(*args: Any) -> None:
        seen.append(args)
        await steps()

    cancel_everywhere(scenario, build=lambda: None, check=lambda *args: seen.append(args), backends=[backend])
    assert set(seen) == {(None,)}


@both
def test_what_a_check_raises_is_found(backend: Any) -> None:
    async def scenario(box: Box) -> None:
        box.log.append("taken")
        await anyio.sleep(1)
        await anyio.sleep(1)
        box.log.remove("taken")

    def check(box: Box) -> None:
        if box.log:
            raise BoomError(box.log)

    error = sweep_fails(scenario, build=Box, check=check, backends=[backend], modes=("block",))
    assert isinstance(error, BoomError)
    assert error.__notes__[1] == "2 of 2 points fail:"

    async def later(box: Box) -> None:
        await anyio.sleep(1)
        check(box)

    assert isinstance(sweep_fails(scenario, build=Box, check=later, backends=[backend]), BoomError)


@both
def test_a_state_that_cannot_be_made_is_found(backend: Any) -> None:
    async def scenario(box: Box) -> None:
        raise AssertionError("never")

    def build() -> Box:
        raise BoomError("no state")

    error = sweep_fails(scenario, build=build, backends=[backend])
    assert isinstance(error, BoomError)
    assert error.__notes__[0] == "the scenario failed before anything was cancelled"


@both
def test_tasks_of_the_state_are_no_leak(backend: Any) -> None:
    async def scenario(group: Any) -> None:
        group.start_soon(anyio.sleep, 3)
        await anyio.sleep(1)

    cancel_everywhere(scenario, build=anyio.create_task_group, backends=[backend])


# ------------------------------------------------------------------------------------------ notes, replay


@both
def test_failures_are_told_by_place(backend: Any) -> None:
    async def first() -> None:
        await anyio.sleep(1)

    async def second() -> None:
        await steps(1)

    async def scenario() -> None:
        try:
            await first()
            await anyio.sleep(0.5)
            for _ in range(2):
                await second()
        except anyio.get_cancelled_exc_class():
            raise BoomError from None

    error = sweep_fails(scenario, backends=[backend], modes=("block",))
    notes = error.__notes__
    assert notes[0].startswith(f"cancelled on {backend} at block@0: task 0 'main' at first:")
    assert notes[1] == "4 of 4 points fail:"
    assert [re.sub(r":\d+ in .*?\(.*?\)|:\d+ .*?\(.*?\)", "", note) for note in notes[2:-1]] == [
        "  task 0 'main' at first: block@0",
        "  task 0 'main' at scenario: block@1",
        "  task 0 'main' at steps: block@2, block@3",
    ]


@both
def test_many_places_are_cut_short(backend: Any) -> None:
    async def scenario() -> None:
        try:
            await steps()
            await anyio.sleep(0.1)
            await anyio.sleep(0.2)
            await anyio.sleep(0.3)
            await anyio.sleep(0.4)
            await anyio.sleep(0.5)
            await anyio.sleep(0.6)
            await anyio.sleep(0.7)
            await anyio.sleep(0.8)
            await anyio.sleep(0.9)
        except anyio.get_cancelled_exc_class():
            raise BoomError from None

    notes = sweep_fails(scenario, backends=[backend], modes=("block",)).__notes__
    assert notes[1] == "10 of 10 points fail:"
    assert len([note for note in notes if note.startswith("  task 0 ")]) == 8
    assert notes[-2] == "  and 2 more places"


@both
def test_one_failure_needs_no_list(backend: Any) -> None:
    async def scenario() -> None:
        await anyio.sleep(1)
        try:
            await anyio.sleep(1)
        except anyio.get_cancelled_exc_class():
            raise BoomError from None

    notes = sweep_fails(scenario, backends=[backend], modes=("block",)).__notes__
    assert len(notes) == 2
    assert notes[1] == f"replay: AGENTCORE_SIM='sim1:{backend}:fifo:block@1'"


@both
@pytest.mark.parametrize("environment", [False, True])
def test_one_point_can_be_gone_through_again(backend: Any, environment: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    ends: list[tuple[str, float]] = []

    async def scenario() -> None:
        try:
            await two_sleeps()
            ends.append((current_simulation().backend, anyio.current_time()))
        except anyio.get_cancelled_exc_class():
            ends.append((current_simulation().backend, anyio.current_time()))
            raise BoomError from None

    replay = Replay(backend, FIFO, CancelPoint("block", 1), FaultPlan())
    options: dict[str, Any] = {} if environment else {"replay": replay}
    if environment:
        monkeypatch.setenv(VARIABLE, str(replay))
    error = sweep_fails(scenario, **options)
    assert isinstance(error, BoomError)
    assert ends == [(backend, 1.0)]
    assert replay_of(error) == replay
    ends.clear()
    report = cancel_everywhere(scenario, allow=(BoomError,), **options)
    assert ends == [(backend, 1.0)]
    assert (report.points, report.runs) == ({}, 1)


@both
def test_a_line_without_a_point_cancels_nothing(backend: Any) -> None:
    ends: list[float] = []

    async def scenario() -> None:
        await two_sleeps()
        ends.append(anyio.current_time())

    assert cancel_everywhere(scenario, replay=Replay(backend, FIFO)).runs == 1
    assert ends == [2.0]


def test_an_argument_goes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    async def scenario() -> None:
        seen.append(current_simulation().backend)
        await steps()

    monkeypatch.setenv(VARIABLE, "sim1:trio:fifo:block@0")
    cancel_everywhere(scenario, replay=Replay("asyncio", FIFO, CancelPoint("wake", 0)))
    assert seen == ["asyncio"]


def test_a_point_that_is_never_reached_does_nothing() -> None:
    assert cancel_everywhere(two_sleeps, replay=Replay("trio", FIFO, CancelPoint("block", 99))).runs == 1


@both
def test_a_plan_acts_in_every_run(backend: Any) -> None:
    ends: list[float] = []

    async def scenario(box: Clock) -> None:
        await box.wait()
        ends.append(anyio.current_time())

    class Clock:
        async def wait(self) -> None:
            await anyio.sleep(1)

    for plan in ("clock.wait#1:delay(4)", FaultPlan.parse("clock.wait#1:delay(4)")):
        ends.clear()
        report = cancel_everywhere(
            scenario,
            build=Clock,
            plan=plan,
            targets={"clock.wait": (Clock, "wait")},
            backends=[backend],
            modes=("block",),
        )
        assert report.points == {(backend, "block"): 2}
        assert ends == [5.0]

    async def swallowing(clock: Clock) -> None:
        try:
            await clock.wait()
        except anyio.get_cancelled_exc_class():
            return

    error = sweep_fails(
        swallowing,
        build=Clock,
        plan="clock.wait#1:delay(4)",
        targets={"clock.wait": (Clock, "wait")},
        backends=[backend],
        strict=True,
    )
    assert str(replay_of(error)) == f"sim1:{backend}:fifo:block@0:clock.wait#1:delay(4.0)"


# ------------------------------------------------------------------------------------------ what cannot be


async def never_waits() -> None: ...


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"modes": ("block", "never")}, "a mode of a sweep is one of block, wake, deadline, native: got 'never'"),
        ({"plan": "api"}, "a fault must read"),
        ({"schedules": ("walk",)}, "a switch reads"),
        ({"backends": ("curio",)}, "a simulation runs on one of asyncio, trio: got 'curio'"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=re.escape(told)):
        cancel_everywhere(two_sleeps, **options)


@both
def test_a_scenario_that_never_waits_cannot_be_swept(backend: Any) -> None:
    told = f"a sweep needs a scenario that waits at least once: {never_waits!r} does not"
    with pytest.raises(ValueError, match=re.escape(told)):
        cancel_everywhere(never_waits, backends=[backend])


def test_a_line_that_is_none_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "sim1:trio:fifo:never@0")
    with pytest.raises(ValueError, match="this is no replay line"):
        cancel_everywhere(two_sleeps)


# ------------------------------------------------------------------------------------------ AnyIO's own parts


class Parts:
    """What is shared, and what must be true of it in the end."""

    def __init__(self) -> None:
        self.lock = anyio.Lock()
        self.fast_lock = anyio.Lock(fast_acquire=True)
        self.semaphore = anyio.Semaphore(2, max_value=2)
        self.limiter = anyio.CapacityLimiter(2)
        self.condition = anyio.Condition()
        self.event = anyio.Event()

    def check(self) -> None:
        assert not self.lock.locked()
        assert not self.fast_lock.locked()
        assert self.lock.statistics().tasks_waiting == self.fast_lock.statistics().tasks_waiting == 0
        assert self.semaphore.value == 2
        assert self.semaphore.statistics().tasks_waiting == 0
        assert self.limiter.borrowed_tokens == 0
        assert self.limiter.statistics().tasks_waiting == 0
        assert not self.condition.statistics().lock_statistics.locked
        assert self.condition.statistics().tasks_waiting == 0
        assert self.event.statistics().tasks_waiting == 0


async def use(part: Any, seconds: float) -> None:
    for _ in range(2):
        async with part:
            await anyio.sleep(seconds)


async def notify(condition: anyio.Condition) -> None:
    for _ in range(3):
        await anyio.sleep(1)
        async with condition:
            condition.notify()
    async with condition:
        condition.notify_all()


async def wait(condition: anyio.Condition) -> None:
    async with condition:
        await condition.wait()


async def of_locks(parts: Parts) -> None:
    async with anyio.create_task_group() as group:
        for seconds in (1, 2, 0.5):
            group.start_soon(use, parts.lock, seconds)
            group.start_soon(use, parts.fast_lock, seconds)


async def of_semaphores(parts: Parts) -> None:
    async with anyio.create_task_group() as group:
        for seconds in (1, 2, 0.5, 0):
            group.start_soon(use, parts.semaphore, seconds)


async def of_limiters(parts: Parts) -> None:
    async with anyio.create_task_group() as group:
        for seconds in (1, 2, 0.5, 0):
            group.start_soon(use, parts.limiter, seconds)


async def of_conditions(parts: Parts) -> None:
    async with anyio.create_task_group() as group:
        for _ in range(4):
            group.start_soon(wait, parts.condition)
        await notify(parts.condition)


async def of_events(parts: Parts) -> None:
    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(parts.event.wait)
        await anyio.sleep(1)
        parts.event.set()


async def of_timeouts(parts: Parts) -> None:
    async def impatient(part: Any, seconds: float) -> None:
        with anyio.move_on_after(seconds):
            await use(part, 1)

    async with anyio.create_task_group() as group:
        for part in (parts.lock, parts.semaphore, parts.limiter):
            for seconds in (0.5, 1, 1.5):
                group.start_soon(impatient, part, seconds)


@pytest.mark.parametrize("schedule", ["fifo", "walk/1", "rare/2"])
@pytest.mark.parametrize(
    "scenario",
    [of_locks, of_semaphores, of_limiters, of_conditions, of_events, of_timeouts],
    ids=lambda one: one.__name__,
)
def test_the_parts_of_anyio_leave_nothing_behind(scenario: Any, schedule: str) -> None:
    report = cancel_everywhere(
        scenario, build=Parts, check=Parts.check, modes=SCOPES, schedules=(schedule,), within=0.0, strict=True
    )
    assert report.points["asyncio", "block"] == report.points["trio", "block"] > 3
    assert report.points["asyncio", "wake"] == report.points["trio", "wake"] > 3


class Pipe:
    """A memory stream, what has gone in and what has come out."""

    def __init__(self, size: float) -> None:
        self.send, self.receive = anyio.create_memory_object_stream[int](size)
        self.sent: list[int] = []
        self.received: list[int] = []
        self.producing = anyio.create_task_group()

    async def __aenter__(self) -> Self:
        await self.producing.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.producing.cancel_scope.cancel()
        await self.producing.__aexit__(None, None, None)
        self.send.close()
        self.receive.close()

    async def produce(self) -> None:
        """Go on sending, whoever is cancelled."""
        for item in range(4):
            await self.send.send(item)
            self.sent.append(item)

    async def consume(self) -> None:
        self.producing.start_soon(self.produce)
        for _ in range(4):
            self.received.append(await self.receive.receive())

    async def check(self) -> None:
        """Take the rest: nothing is lost, nothing comes twice, and nothing overtakes."""
        with anyio.move_on_after(1):
            while len(self.received) < 4:
                self.received.append(await self.receive.receive())
        assert self.received == list(range(4))
        await anyio.sleep(1)
        assert self.sent == list(range(4))


@pytest.mark.parametrize("schedule", ["fifo", "walk/1", "rare/2"])
@pytest.mark.parametrize("size", [0, 1, math.inf])
def test_the_streams_of_anyio_lose_nothing(size: float, schedule: str) -> None:
    report = cancel_everywhere(
        Pipe.consume,
        build=lambda: Pipe(size),
        check=Pipe.check,
        modes=("block", "wake"),
        schedules=(schedule,),
        within=0.0,
        strict=True,
    )
    assert report.points["asyncio", "block"] == report.points["trio", "block"] > 3


def test_a_stream_of_anyio_loses_an_item_where_a_task_is_cancelled_natively() -> None:
    """Known of AnyIO 4.16: between the hand-off and the wake-up, who receives is cancelled with the item in its hands."""
    error = sweep_fails(Pipe.consume, build=lambda: Pipe(0), check=Pipe.check, modes=("native",))
    assert isinstance(error, AssertionError)
    assert replay_of(error).backend == "asyncio"
    assert str(replay_of(error).cancel).startswith("native@")
    assert "produce" in error.__notes__[0]
