"""`@simulate`: a plain test function from an asynchronous one."""

import asyncio
import inspect
import re
import sys
from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given, settings
from hypothesis.strategies import integers

from agentcore import AgentRuntime
from agentcore.testing import (
    BACKENDS,
    DeadlockError,
    Fault,
    FaultPlan,
    InjectedFault,
    LeakError,
    Replay,
    Simulation,
    SimulationFailure,
    current_simulation,
    simulate,
)
from agentcore.testing._simulate import overrides

VARIABLE = "AGENTCORE_SIM"


@pytest.fixture(autouse=True)
def as_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Options of the session that runs these tests do not count here."""
    for name in list(overrides):
        monkeypatch.delitem(overrides, name)


class BoomError(Exception):
    """What the tests below find, with arguments and attributes of its own."""

    def __init__(self, order: list[int]) -> None:
        super().__init__(f"wrong order {order}")
        self.order = order


async def order_of(number: int) -> list[int]:
    """Return in which order so many tasks end, which each give way once."""
    order = []

    async def work(one: int) -> None:
        await anyio.lowlevel.checkpoint()
        order.append(one)

    async with anyio.create_task_group() as group:
        for one in range(number):
            group.start_soon(work, one)
    return order


async def nothing() -> None: ...


async def nothing_with(number: int) -> None: ...


async def fetch() -> str:
    """Stand for a call that may fail."""
    await anyio.sleep(1)
    return "fetched"


TARGETS = {"api.fetch": (sys.modules[__name__], "fetch")}


def failure_of(test: Callable[..., object], *args: Any) -> BaseException:
    """Run a test that fails, and return with what."""
    try:
        test(*args)
    except Exception as error:  # noqa: BLE001 - it is looked at
        return error
    raise AssertionError(f"{test} must fail")


def line_of(error: BaseException) -> str:
    """Return the line that replays an error, from its notes."""
    (line,) = [note.removeprefix("replay: ") for note in error.__notes__ if note.startswith("replay: ")]
    assert len(line) <= 200
    found = re.fullmatch(rf"{VARIABLE}='(.*)'", line)
    assert found
    return found[1]


# ---------------------------------------------------------------- what it makes


def test_makes_a_plain_function() -> None:
    """What pytest and its plugins see is no coroutine function, and has only the parameters that they fill."""

    @pytest.mark.xfail(strict=False)
    async def function(
        self: object, sim: Simulation, path: Path, agent_runtime: AgentRuntime, *, number: int = 3
    ) -> None:
        """Do something."""

    test = simulate(function)
    assert not inspect.iscoroutinefunction(test)
    assert not hasattr(test, "__wrapped__")
    assert list(inspect.signature(test).parameters) == ["self", "path", "number"]
    assert inspect.signature(test).parameters["number"].default == 3
    assert (test.__name__, test.__doc__) == ("function", "Do something.")
    assert (test.__module__, test.__qualname__) == (function.__module__, function.__qualname__)
    assert [mark.name for mark in test.pytestmark] == ["xfail"]


def test_takes_options_or_none() -> None:
    """It is a decorator with and without parentheses."""
    runs = []

    @simulate
    async def bare() -> None:
        runs.append("bare")

    @simulate()
    async def called() -> None:
        runs.append("called")

    @simulate(runs=2, backends=["trio"])
    async def told() -> None:
        runs.append("told")

    bare()
    called()
    told()
    assert [runs.count(name) for name in ("bare", "called", "told")] == [200, 200, 2]


def test_refuses_what_is_not_asynchronous() -> None:
    """That includes what another decorator has made plain already."""

    def plain() -> None: ...

    with pytest.raises(TypeError, match=r"@simulate is for `async def` functions: got <function .*plain"):
        simulate(plain)
    with pytest.raises(TypeError, match="@simulate is for `async def` functions"):
        simulate(runs=3)(given(number=integers())(nothing_with))


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"backends": []}, ValueError, "@simulate needs at least one backend: got none"),
        ({"plan": "api.fetch"}, ValueError, "a fault must read 'target#call:action'"),
    ],
)
def test_refuses_at_once(options: dict[str, Any], error: type[Exception], told: str) -> None:
    """What can be known when the module is imported is told then."""
    with pytest.raises(error, match=re.escape(told)):
        simulate(**options)(nothing)


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"backends": ["curio"]}, ValueError, "a simulation runs on one of asyncio, trio: got 'curio'"),
        ({"runs": 0}, ValueError, "a search needs at least 1 run: got 0"),
        ({"strategy": "luck"}, ValueError, "the strategy of a search is one of portfolio, walk, "),
        ({"max_step": 3}, TypeError, "unexpected keyword argument 'max_step'"),
    ],
)
def test_refuses_when_it_runs(options: dict[str, Any], error: type[Exception], told: str) -> None:
    """The rest is told by the first run."""
    with pytest.raises(error, match=re.escape(told)):
        simulate(**options)(nothing)()


# ---------------------------------------------------------------- how it runs


def test_runs_on_each_backend_in_turn() -> None:
    """All runs on one backend, then all on the next, each a simulation of its own that begins at zero."""
    seen: list[tuple[str, float]] = []

    @simulate(runs=3)
    async def test(sim: Simulation) -> None:
        assert current_simulation() is sim
        seen.append((sim.backend, sim.now))
        await anyio.sleep(86_400)
        assert sim.now == 86_400

    test()
    assert seen == [(backend, 0.0) for backend in BACKENDS for _ in range(3)]
    assert BACKENDS == ("asyncio", "trio")


def test_fixtures_are_made_once_and_runtimes_for_each_run() -> None:
    """What pytest gives is the same in every run; a runtime is entered anew, and has ended after it."""
    runtimes: list[AgentRuntime] = []

    @simulate(runs=2)
    async def test(numbers: list[int], agent_runtime: AgentRuntime, *, number: int) -> None:
        assert all(runtime.report is not None for runtime in runtimes)
        assert AgentRuntime.current() is agent_runtime
        runtimes.append(agent_runtime)
        numbers.append(number)

    numbers: list[int] = []
    test(numbers, number=5)
    assert numbers == [5, 5, 5, 5]
    assert len({id(runtime) for runtime in runtimes}) == 4


def test_depth_first_goes_through_every_order() -> None:
    """The strategy is that of `explore`, and ends when there is no order left."""
    orders: list[tuple[int, ...]] = []

    @simulate(runs=10_000, strategy="dfs", backends=["asyncio"])
    async def test() -> None:
        orders.append(tuple(await order_of(3)))

    test()
    assert set(orders) == set(permutations(range(3)))
    assert len(orders) < 10_000


@pytest.mark.parametrize("backend", BACKENDS)
def test_seed_begins_the_schedules(backend: str) -> None:
    """The failing run says which schedule it had."""

    @simulate(strategy="walk", seed=41, backends=[backend])
    async def test() -> None:
        raise BoomError([])

    assert failure_of(test).__notes__[0] == f"found on {backend} in run 1 (walk/41)"


def test_budget_ends_the_search() -> None:
    """Each backend has the budget to itself, and runs once at least."""
    runs: list[str] = []

    @simulate(runs=1_000_000, budget=0)
    async def test(sim: Simulation) -> None:
        runs.append(sim.backend)

    test()
    assert runs == ["asyncio", "trio"]


def test_command_line_has_the_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the plugin has put into `overrides` counts, not what the decorator says."""
    runs: list[str] = []

    @simulate(runs=50, seed=3)
    async def test(sim: Simulation) -> None:
        runs.append(sim.backend)

    monkeypatch.setitem(overrides, "runs", 2)
    test()
    assert runs == ["asyncio", "asyncio", "trio", "trio"]
    monkeypatch.setitem(overrides, "budget", 0.0)
    test()
    assert runs[4:] == ["asyncio", "trio"]


def test_options_go_to_the_simulation() -> None:
    """Whatever `Simulation` takes can be given."""
    drawn: list[float] = []

    @simulate(runs=2, backends=["asyncio"], seed=1, threads="inline", max_steps=100)
    async def test(sim: Simulation) -> None:
        drawn.append(sim.random.random())
        assert await anyio.to_thread.run_sync(lambda: 5) == 5

    test()
    assert len(set(drawn)) == 1

    @simulate(runs=1, max_steps=100)
    async def endless() -> None:
        for _ in range(1_000):
            await anyio.sleep(1)

    with pytest.raises(SimulationFailure, match="no end after 100 steps"):
        endless()


def test_outcomes_of_pytest_go_their_way() -> None:
    """A test may skip itself, and be expected to fail."""

    @simulate(runs=3)
    async def test(way: Callable[..., Any]) -> None:
        await anyio.sleep(1)
        way("so it is")

    with pytest.raises(pytest.skip.Exception, match="so it is"):
        test(pytest.skip)
    with pytest.raises(pytest.xfail.Exception, match="so it is"):
        test(pytest.xfail)


def test_interruption_ends_the_search() -> None:
    """Control-C is no finding."""
    runs = []

    @simulate(runs=3)
    async def test() -> None:
        runs.append(1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        test()
    assert len(runs) == 1


# ---------------------------------------------------------------- what it finds


@pytest.mark.parametrize("backend", BACKENDS)
def test_failure_is_the_error_itself(backend: str) -> None:
    """Its type, arguments and attributes stay; the notes tell how it was found and how it comes back."""

    @simulate(backends=[backend])
    async def test() -> None:
        order = await order_of(3)
        if order == [2, 0, 1]:
            raise BoomError(order)

    error = failure_of(test)
    assert type(error) is BoomError
    assert error.order == [2, 0, 1]
    how, *steps, line = error.__notes__
    assert re.match(rf"found on {backend} in run \d+ \((walk|rare|pct)/.*\), shrunk from \d+ to \d forced switch", how)
    assert any("test_failure_is_the_error_itself" in step or "order_of" in step for step in steps)
    assert line.startswith("replay: ")
    replay = Replay.parse(line_of(error))
    assert replay.backend == backend
    assert 1 <= len(replay.schedule.switches) <= 3


def test_first_backend_that_fails_ends_it() -> None:
    """A failure on asyncio is told before trio is tried."""
    backends: set[str] = set()

    @simulate(runs=5)
    async def test(sim: Simulation) -> None:
        backends.add(sim.backend)
        raise BoomError([])

    failure_of(test)
    assert backends == {"asyncio"}


def test_groups_and_findings_stay_what_they_are() -> None:
    """Two errors at once stay a group; a deadlock is found by the simulation; both have their line."""

    @simulate(runs=3)
    async def two() -> None:
        async def fail(number: int) -> None:
            raise BoomError([number])

        async with anyio.create_task_group() as group:
            group.start_soon(fail, 1)
            group.start_soon(fail, 2)

    error = failure_of(two)
    assert isinstance(error, ExceptionGroup)
    assert error.subgroup(BoomError) is not None
    assert line_of(error) == "sim1:asyncio:-"

    @simulate(runs=3)
    async def stuck() -> None:
        await anyio.Event().wait()

    error = failure_of(stuck)
    assert isinstance(error, DeadlockError)
    assert "stuck:" in str(error)
    assert line_of(error) == "sim1:asyncio:-"


def test_hypothesis_stands_above() -> None:
    """It draws the arguments, and each example is searched; the failing one is told with its line."""

    @settings(deadline=None, database=None, max_examples=20, derandomize=True)
    @given(number=integers(1, 9))
    @simulate(backends=["trio"])
    async def test(number: int) -> None:
        order = await order_of(number)
        assert order == sorted(order)

    error = failure_of(test)
    assert isinstance(error, AssertionError)
    assert any("number=2" in note for note in error.__notes__)
    assert len(Replay.parse(line_of(error)).schedule.switches) == 1


# ---------------------------------------------------------------- faults


@pytest.mark.parametrize(
    "plan", ["api.fetch#2:raise", FaultPlan([Fault("api.fetch", 2, "raise")])], ids=["text", "plan"]
)
def test_plan_acts_in_every_run(plan: FaultPlan | str) -> None:
    """Each run has the faults from the first call on."""
    runs: list[str] = []

    @simulate(runs=3, plan=plan, targets=TARGETS)
    async def test(sim: Simulation) -> None:
        assert await fetch() == "fetched"
        with pytest.raises(InjectedFault):
            await fetch()
        assert sim.injection is not None
        runs.append(*map(str, sim.injection.fired))

    test()
    assert runs == ["api.fetch#2:raise(InjectedFault)"] * 6


def test_plan_is_shrunk() -> None:
    """The line has only those faults that the failure takes, and brings it back."""
    plan = "api.fetch#1:delay(3);api.fetch#2:raise;api.fetch#3:duplicate"

    @simulate(runs=3, plan=plan, targets=TARGETS)
    async def test() -> None:
        for _ in range(3):
            await fetch()

    error = failure_of(test)
    assert isinstance(error, InjectedFault)
    assert line_of(error) == "sim1:asyncio:-::api.fetch#2:raise(InjectedFault)"
    assert "faults: api.fetch#2:raise(InjectedFault)" in error.__notes__


# ---------------------------------------------------------------- cancellation


def test_sweep_cancels_everywhere() -> None:
    """After the search, the test is cancelled at each of its checkpoints; a correct one is content with that."""
    ends: list[str] = []

    @simulate(runs=2, cancel="sweep")
    async def test() -> None:
        try:
            await anyio.sleep(1)
            await anyio.sleep(1)
        except anyio.get_cancelled_exc_class():
            ends.append("cancelled")
            raise
        ends.append("done")

    test()
    assert ends.count("done") >= 2 * (2 + 1)
    assert ends.count("cancelled") >= 2 * 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_sweep_finds_what_is_left(backend: str) -> None:
    """The line names the point."""

    @simulate(runs=1, cancel="sweep", backends=[backend])
    async def test() -> None:
        await anyio.sleep(1)
        try:
            await anyio.sleep(1)
        except anyio.get_cancelled_exc_class():
            raise BoomError([]) from None

    error = failure_of(test)
    assert isinstance(error, BoomError)
    replay = Replay.parse(line_of(error))
    assert (replay.backend, str(replay.cancel)) == (backend, "block@1")
    assert error.__notes__[0].startswith(f"cancelled on {backend} at block@1: task 0 'main' at ")


# ---------------------------------------------------------------- replay


@pytest.mark.parametrize("backend", BACKENDS)
def test_line_brings_the_failure_back(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one run, on the backend of the line whatever the decorator says; with all of the last steps."""
    runs: list[str] = []

    @simulate(backends=["asyncio"])
    async def test(sim: Simulation) -> None:
        runs.append(sim.backend)
        order = await order_of(3)
        if order == [2, 0, 1]:
            raise BoomError(order)

    line = line_of(failure_of(test)).replace("asyncio", backend)
    runs.clear()
    monkeypatch.setenv(VARIABLE, line)
    error = failure_of(test)
    assert isinstance(error, BoomError)
    assert error.order == [2, 0, 1]
    assert runs == [backend]
    assert error.__notes__[-1] == f"replayed: {VARIABLE}='{line}'"
    assert any("order_of" in step for step in error.__notes__)


def test_line_of_a_sweep_and_of_a_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """The point of a sweep and the faults come from the line alone."""
    seen: list[str] = []

    @simulate(runs=5, plan="api.fetch#1:raise", targets=TARGETS)
    async def test(sim: Simulation) -> None:
        try:
            await fetch()
        except anyio.get_cancelled_exc_class():
            seen.append("cancelled")
            raise
        seen.append(f"done at {sim.now:g}")

    monkeypatch.setenv(VARIABLE, "sim1:trio:fifo:block@0")
    test()
    monkeypatch.setenv(VARIABLE, "sim1:trio:fifo::api.fetch#1:delay(5)")
    test()
    monkeypatch.setenv(VARIABLE, "sim1:asyncio:-")
    test()
    assert seen == ["cancelled", "done at 6", "done at 1"]


def test_wrong_line_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing runs; an empty variable is none."""
    runs: list[int] = []

    @simulate(runs=1)
    async def test() -> None:
        runs.append(1)

    monkeypatch.setenv(VARIABLE, "sim2:trio:-")
    with pytest.raises(
        ValueError, match="this is no replay line: 'sim2:trio:-': it begins with sim1:asyncio: or sim1:trio:"
    ):
        test()
    assert runs == []
    monkeypatch.setenv(VARIABLE, "")
    test()
    assert runs == [1, 1]


def test_leak_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the simulation finds at its end is found again by the line."""

    @simulate(runs=1, backends=["asyncio"])
    async def test(sim: Simulation) -> None:
        sim.left = asyncio.create_task(anyio.sleep_forever())  # type: ignore[attr-defined]
        await anyio.sleep(1)

    error = failure_of(test)
    assert isinstance(error, LeakError)
    monkeypatch.setenv(VARIABLE, line_of(error))
    assert isinstance(failure_of(test), LeakError)
