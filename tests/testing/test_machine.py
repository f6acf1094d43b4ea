"""State machines: one simulation for each example, on both backends."""

from __future__ import annotations

import asyncio
import contextlib
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import anyio
import anyio.lowlevel
import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule, run_state_machine_as_test

from agentcore import AgentRuntime, TaskHandle, TaskState
from agentcore.testing import (
    BACKENDS,
    DeadlockError,
    FaultPlan,
    InjectedFault,
    InvariantError,
    LeakError,
    SimMachine,
    Simulation,
    UnretrievedError,
    current_simulation,
    fault_plans,
    inject,
)
from agentcore.testing._simulation import Backend
from tests.planted.permits import FixedSlot, Slot

pytestmark = pytest.mark.thorough

# The same examples in every run. `explain` takes more time than all the rest, and nobody reads it here.
STABLE = settings(
    database=None,
    derandomize=True,
    deadline=None,
    max_examples=500,
    stateful_step_count=12,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)
SOME = settings(STABLE, max_examples=30)
FEW = settings(STABLE, max_examples=20)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    """One event loop after the other."""
    name: Backend = request.param
    return name


def run(machine: type[SimMachine], backend: Backend, bounds: settings = STABLE) -> None:
    run_state_machine_as_test(machine.on(backend), settings=bounds)


def falsify(machine: type[SimMachine], backend: Backend, error: type[BaseException]) -> tuple[str, list[str]]:
    """Have a machine fail; return the text of the error, and the rules of the shortest example without `follow`."""
    with pytest.raises(error) as caught:
        run(machine, backend)
    calls = re.findall(r"^state\.(\w+\(.*)$", "\n".join(caught.value.__notes__), re.MULTILINE)
    # Invariants stand there too; here they are called `is_...`.
    return str(caught.value), [call for call in calls if not call.startswith(("follow", "teardown", "is_"))]


# ---------------------------------------------------------------- a breaker and a pool


class Refused(Exception):
    """The breaker is open."""


class Breaker:
    """Opens after two failures, and lets one call through when it has been open for a while.

    Whoever is cancelled in that call keeps its permit for ever.
    """

    RESET: ClassVar = 10.0

    def __init__(self) -> None:
        self.failures = 0
        self.open_until: float | None = None
        self.probing = False

    async def call(self, seconds: float, error: Exception | None = None) -> None:
        if self.open_until is not None:
            if self.probing or anyio.current_time() < self.open_until:
                raise Refused
            self.probing = True
        try:
            await anyio.sleep(seconds)
            if error is not None:
                raise error
        except Exception:
            self.probing = False
            self.failures += 1
            if self.failures >= 2:
                self.open_until = anyio.current_time() + self.RESET
            raise
        except BaseException:
            self._cancelled()
            raise
        self.failures, self.open_until, self.probing = 0, None, False

    def _cancelled(self) -> None:
        """Do nothing."""


class FixedBreaker(Breaker):
    """The permit comes back."""

    def _cancelled(self) -> None:
        self.probing = False


class BreakerMachine(SimMachine):
    """Calls one after the other and several at once."""

    breaker_class: ClassVar = Breaker

    @initialize()
    def open(self) -> None:
        self.breaker = self.breaker_class()
        self.group = self.enter(anyio.create_task_group)

    @rule()
    def fail(self) -> None:
        with contextlib.suppress(Refused, OSError):
            self.sim.run(self.breaker.call, 0, OSError())

    @rule(seconds=st.sampled_from([0, 5]))
    def succeed(self, seconds: int) -> None:
        self.sim.run(self._call, seconds)

    @rule(count=st.integers(1, 3))
    def start(self, count: int) -> None:
        for _ in range(count):
            self.sim.call(self.group.start_soon, self._call, 5)

    @rule(seconds=st.sampled_from([1, 10]))
    def wait(self, seconds: int) -> None:
        self.sim.run(anyio.sleep, seconds)

    @invariant()
    def is_open_for_a_while_only(self) -> None:
        assert (self.breaker.open_until or 0) <= self.sim.now + Breaker.RESET

    def finish(self) -> None:
        self.sim.run(anyio.sleep, Breaker.RESET)
        self.sim.run(self.breaker.call, 0)

    async def _call(self, seconds: float) -> None:
        with contextlib.suppress(Refused), anyio.move_on_after(2):
            await self.breaker.call(seconds)


class FixedBreakerMachine(BreakerMachine):
    breaker_class: ClassVar = FixedBreaker


def test_permit_leak_is_found_and_shrunk(backend: Backend) -> None:
    """To two failures, the time until a probe, and one that is cut short."""
    _text, rules = falsify(BreakerMachine, backend, Refused)
    assert ["open()", "fail()", "fail()", "wait(seconds=10)"] == rules[:-1]
    assert rules[-1] in {"succeed(seconds=5)", "start(count=1)"}


def test_breaker_that_gives_permits_back_passes(backend: Backend) -> None:
    """Whatever is called in whatever order."""
    run(FixedBreakerMachine, backend, SOME)


class SlotMachine(SimMachine):
    """Ends jobs in two ways at once. Whether that goes wrong is up to the order alone."""

    slot_class: ClassVar = Slot

    @rule()
    def end_twice(self) -> None:
        async def end(after: int) -> None:
            for _ in range(after):
                await anyio.lowlevel.checkpoint()
            await slot.end("ended")

        async def end_both() -> None:
            async with anyio.create_task_group() as group:
                group.start_soon(end, 1)
                group.start_soon(end, 4)

        slot = self.slot_class()
        self.sim.run(end_both)
        assert 1 == slot.free


class FixedSlotMachine(SlotMachine):
    slot_class: ClassVar = FixedSlot


class PlainSlotMachine(SlotMachine):
    options: ClassVar = {"schedule": "fifo"}


def test_race_is_found_by_the_order(backend: Backend) -> None:
    """Which is drawn for each example."""
    _text, rules = falsify(SlotMachine, backend, AssertionError)
    # Not one in any case: an order that fails in the first rule is another one, and has to be drawn.
    assert {"end_twice()"} == set(rules)
    run(FixedSlotMachine, backend, SOME)


def test_order_can_be_fixed(backend: Backend) -> None:
    """Here it is that of an event loop, in which the race does not come up."""
    run(PlainSlotMachine, backend, SOME)


# ---------------------------------------------------------------- a runtime


class RuntimeMachine(SimMachine):
    """Submits tasks to a runtime that stays open across the rules, and cancels some."""

    @initialize()
    def open(self) -> None:
        self.runtime = self.enter(AgentRuntime)
        self.handles: list[TaskHandle] = []

        @self.runtime.handler("nap")
        async def nap(values: dict[str, Any]) -> dict[str, Any]:
            await anyio.sleep(values["seconds"])
            return values

    @rule(seconds=st.sampled_from([0, 1, 60]))
    def submit(self, seconds: int) -> None:
        self.handles.append(self.sim.run(self.runtime.submit, "nap", {"seconds": seconds}))

    @precondition(lambda self: self.handles)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.sim.call(data.draw(st.sampled_from(self.handles)).cancel)

    @rule()
    def wait(self) -> None:
        self.sim.run(anyio.sleep, 10)

    @invariant()
    def is_frozen_between_rules(self) -> None:
        assert 0 == self.sim.now % 10

    def finish(self) -> None:
        self.sim.run(anyio.sleep, 61)
        ended = {TaskState.COMPLETED, TaskState.CANCELED}
        assert ended >= {handle.task.state for handle in self.handles}


def test_runtime_stays_open_across_rules(backend: Backend) -> None:
    """It is entered by one rule, is used by others, and ends its tasks when the example ends."""
    run(RuntimeMachine, backend, SOME)


class FaultMachine(SimMachine):
    """Meets faults that Hypothesis draws."""

    plans: ClassVar[list[FaultPlan]] = []

    @initialize(plan=fault_plans({"store.put": (Breaker, "call")}, max_faults=2, max_calls=2))
    def open(self, plan: FaultPlan) -> None:
        self.plans.append(plan)
        self.results: list[Any] = []
        self.injection = self.enter(inject, plan, {"store.put": (Breaker, "call")})

    @rule()
    def put(self) -> None:
        async def put() -> None:
            with anyio.move_on_after(5_000):
                await Breaker().call(1)
                self.results.append("put")

        try:
            self.sim.run(put)
        except InjectedFault as fault:
            self.results.append(str(fault))

    @rule()
    def stop(self) -> None:
        assert not self.results or "raise_after" not in str(self.results[-1])


def test_faults_act_in_blocks_that_stay_open(backend: Backend) -> None:
    """One fault and one call are left of the failing example, also if a fault has cancelled what ran."""
    _text, rules = falsify(FaultMachine, backend, AssertionError)
    assert ["put()", "stop()"] == rules[1:]
    assert "store.put#1:raise_after(InjectedFault)" == str(FaultMachine.plans[-1])


# ---------------------------------------------------------------- what is found


class Idle(SimMachine):
    """Needs a rule to be one."""

    @rule()
    def idle(self) -> None:
        self.sim.run(anyio.sleep, 1)


def test_deadlock_is_the_failure_of_its_rule(backend: Backend) -> None:
    """With the place where each task waits; nothing that comes of it takes its place."""

    class Stuck(SimMachine):
        @initialize()
        def open(self) -> None:
            self.enter(AgentRuntime)

        @rule()
        def wait(self) -> None:
            async def wait_for_nothing() -> None:
                await anyio.Event().wait()

            self.sim.run(wait_for_nothing)

        def teardown(self) -> None:
            with contextlib.suppress(RuntimeError):  # the simulation is over
                self.sim.run(anyio.sleep, 1)
            super().teardown()

    text, rules = falsify(Stuck, backend, DeadlockError)
    assert ["open()", "wait()"] == rules
    assert re.search(r"\(at 0 s\)\n  task 0 'main' at wait_for_nothing:\d+ in Event.wait \(test_machine.py\)", text)


def test_invariants_of_the_simulation_are_checked(backend: Backend) -> None:
    """After each of its steps."""

    class Bounded(Idle):
        @initialize()
        def bound(self) -> None:
            self.sim.always(lambda: self.sim.now < 3, "it is early")

    text, rules = falsify(Bounded, backend, InvariantError)
    assert "does not hold after step" in text
    assert "it is early (at 3 s)" in text
    assert ["bound()", *["idle()"] * 3] == rules


def spawn(function: Callable[[], Any]) -> None:
    """Start a task as those do who know no task groups."""
    if current_simulation().backend == "asyncio":
        spawned.append(asyncio.create_task(function()))
    else:
        import trio  # noqa: PLC0415

        trio.lowlevel.spawn_system_task(function)


spawned: list[Any] = []


class Leaky(SimMachine):
    @rule()
    def spawn(self) -> None:
        self.sim.call(spawn, anyio.sleep_forever)


def test_leak_fails_the_example(backend: Backend) -> None:
    """When it ends."""
    text, rules = falsify(Leaky, backend, LeakError)
    assert "1 task is left when the simulation ends" in text
    assert ["spawn()"] == rules


def test_failure_of_a_rule_comes_before_what_it_leaves_behind(backend: Backend) -> None:
    """Tasks that are left after a failure are no news."""

    class Both(Leaky):
        @rule()
        def fail(self) -> None:
            raise OSError

    @settings(STABLE, report_multiple_bugs=False)
    class First(Both):
        @rule()
        def spawn(self) -> None:
            super().spawn()
            self.fail()

    _text, rules = falsify(First, backend, OSError)
    assert rules in (["spawn()"], ["fail()"])


def test_unretrieved_error_fails_the_example() -> None:
    """On asyncio; trio has none."""

    class Careless(SimMachine):
        @rule()
        def start(self) -> None:
            async def fail() -> None:
                raise OSError("nobody looks")

            async def start() -> None:
                task = asyncio.create_task(fail())
                await anyio.sleep(1)
                del task

            self.sim.run(start)

    text, rules = falsify(Careless, "asyncio", UnretrievedError)
    assert "nobody looks" in text
    assert ["start()"] == rules


# ---------------------------------------------------------------- blocks


class Blocks(Idle):
    """Enters two blocks and notes what happens to them."""

    log: ClassVar[list[str]] = []

    @initialize()
    def open(self) -> None:
        self.log.clear()
        assert "outer" == self.enter(self._outer)
        assert "inner" == self.enter(self._inner, "inner")

    def finish(self) -> None:
        self.log.append("finish")

    @contextlib.asynccontextmanager
    async def _outer(self) -> AsyncIterator[str]:
        assert current_simulation() is self.sim
        try:
            yield "outer"
            await anyio.lowlevel.checkpoint()
            self.log.append("outer")
        finally:
            self.log.append("end")

    @contextlib.contextmanager
    def _inner(self, name: str) -> Iterator[str]:
        yield name
        self.log.append(name)


def test_blocks_are_left_at_the_end(backend: Backend) -> None:
    """After `finish`, the last one first; synchronous ones are blocks too."""
    run(Blocks, backend, FEW)
    assert ["finish", "inner", "outer", "end"] == Blocks.log


def test_blocks_of_a_failed_example_are_cancelled(backend: Backend) -> None:
    """What they do at their regular end, they do not do then."""

    class Failing(Blocks):
        @rule()
        def fail(self) -> None:
            raise OSError

    _text, rules = falsify(Failing, backend, OSError)
    assert ["open()", "fail()"] == rules
    assert ["end"] == Failing.log


def test_failure_of_finish_is_one_of_the_example(backend: Backend) -> None:
    """It cancels the blocks as any other does."""

    class Failing(Blocks):
        def finish(self) -> None:
            raise OSError

    _text, rules = falsify(Failing, backend, OSError)
    assert ["open()"] == rules
    assert ["end"] == Failing.log


def test_failure_of_leaving_fails_the_example(backend: Backend) -> None:
    """The other blocks are left all the same."""

    class Failing(Blocks):
        @contextlib.contextmanager
        def _inner(self, name: str) -> Iterator[str]:
            yield name
            raise OSError

    _text, rules = falsify(Failing, backend, OSError)
    assert ["open()"] == rules
    assert ["end"] == Failing.log[-1:]


def test_crash_in_a_block_is_raised_where_it_happens(backend: Backend) -> None:
    """By the call that runs meanwhile. All blocks are left then."""

    async def crash() -> None:
        await anyio.sleep(5)
        raise OSError

    machine = Idle.on(backend)()
    log: list[str] = []
    stack: contextlib.ExitStack = machine.enter(contextlib.ExitStack)
    stack.callback(log.append, "left")
    group = machine.enter(anyio.create_task_group)
    machine.enter(anyio.CancelScope)
    machine.sim.call(group.start_soon, crash)
    machine.idle()
    with pytest.raises(ExceptionGroup) as caught:
        machine.sim.run(anyio.sleep, 10)
    assert [OSError] == [type(error) for error in caught.value.exceptions]
    assert (5, ["left"]) == (machine.sim.now, log)
    machine.idle()
    assert 6 == machine.sim.now
    machine.teardown()


def test_block_that_swallows_its_cancellation_is_left(backend: Backend) -> None:
    """What ran inside of it returns nothing, and is not run again."""
    calls: list[float] = []

    async def sleep() -> bool:
        calls.append(anyio.current_time())
        await anyio.sleep(5)
        return True

    machine = Idle.on(backend)()
    scope = machine.enter(anyio.move_on_after, 2)
    assert machine.sim.run(sleep) is None
    assert ([0], True) == (calls, scope.cancelled_caught)
    assert machine.sim.run(sleep)
    assert ([0, 2], 7) == (calls, machine.sim.now)
    machine.teardown()


def test_what_cannot_be_entered_leaves_no_block(backend: Backend) -> None:
    """The error is one of the rule, which may go on."""

    class Refusing(SimMachine):
        @rule()
        def enter_nothing(self) -> None:
            def refuse() -> contextlib.AbstractContextManager[None]:
                raise Refused

            with pytest.raises(Refused):
                self.enter(refuse)
            assert 1 == self.sim.run(self._one)

        async def _one(self) -> int:
            return 1

    run(Refusing, backend, FEW)


# ---------------------------------------------------------------- the machine itself


def test_both_backends_take_the_same_steps(backend: Backend) -> None:
    """The same examples give the same traces, and give them again."""

    @seed(1)
    class Traced(FixedBreakerMachine):
        options: ClassVar = {"trace": True}
        traces: ClassVar[list[Any]] = []

        def teardown(self) -> None:
            super().teardown()
            self.traces.append(self._simulation.trace if self._simulation is not None else ())

    bounds = settings(FEW, derandomize=False)
    run(Traced, "asyncio", bounds)
    first = list(Traced.traces)
    Traced.traces.clear()
    run(Traced, backend, bounds)
    assert first == Traced.traces
    assert 10 < len({len(trace) for trace in first})


def test_simulation_is_made_when_it_is_used(backend: Backend) -> None:
    """By its class attributes, and is closed at the end."""
    made: list[Simulation] = []

    class Lazy(SimMachine):
        options: ClassVar = {"seed": 5, "max_steps": 77}

        @rule()
        def look(self) -> None:
            assert self._simulation is None
            assert self.sim is self.sim
            assert (backend, 77) == (self.sim.backend, self.sim._max_steps)
            made.append(self.sim)
            self._simulation = None

    class Unused(SimMachine):
        @rule()
        def nothing(self) -> None:
            assert self._simulation is None

    machine = Lazy.on(backend)()
    machine.look()
    made[0].close()
    run(Unused, backend, FEW)
    closed: list[Simulation] = []

    class Closed(Idle):
        def teardown(self) -> None:
            super().teardown()
            if self._simulation is not None:  # an example may end before its first rule
                closed.append(self._simulation)

    run(Closed, backend, FEW)
    assert closed
    for simulation in closed:
        with pytest.raises(RuntimeError, match="this simulation is over"):
            simulation.run(anyio.sleep, 0)


def test_failure_around_the_example_is_none_of_it(backend: Backend) -> None:
    """A machine that is run while an error is handled checks its examples as ever."""
    try:
        raise OSError
    except OSError:
        falsify(Leaky, backend, LeakError)


def test_rules_before_the_order_is_drawn(backend: Backend) -> None:
    """Run as in an event loop; Hypothesis runs rules marked `initialize` in any order."""
    before: set[bool] = set()

    class Early(Idle):
        @initialize()
        def begin(self) -> None:
            before.add("follow" in {step.function.__name__ for step in self._initialize_rules_to_run})
            self.sim.run(anyio.sleep, 1)

    run(Early, backend, FEW)
    assert {True, False} == before


def test_on_keeps_what_a_machine_is(backend: Backend) -> None:
    """Its settings, name and module; only the backend is another."""
    machine = Described.on(backend)
    assert issubclass(machine, Described)
    assert backend == machine.backend
    assert "asyncio" == Described.backend
    assert (f"DescribedOn{backend.capitalize()}", Described.__module__) == (machine.__name__, machine.__module__)
    assert (7, Described.__doc__) == (machine.TestCase.settings.max_examples, machine.__doc__)
    with pytest.raises(ValueError, match="one of asyncio, trio: got 'curio'"):
        Described.on("curio")  # type: ignore[arg-type]


@settings(STABLE, max_examples=7)
class Described(Idle):
    """Is known by its name."""


PROGRAM = """
import anyio
from hypothesis import Phase, settings
from hypothesis.stateful import rule
from agentcore.testing import SimMachine

@settings(database=None, max_examples=5)
class Machine(SimMachine):
    @rule()
    def sleep(self):
        self.sim.run(anyio.sleep, 1_000)

@settings(database=None, max_examples=5, phases=[Phase.generate])
class Stuck(SimMachine):
    @rule()
    def wait(self):
        async def wait_for_nothing():
            await anyio.Event().wait()
        self.sim.run(wait_for_nothing)

TestMachineOnAsyncio = Machine.on("asyncio").TestCase
TestMachineOnTrio = Machine.on("trio").TestCase
TestStuckOnAsyncio = Stuck.on("asyncio").TestCase
TestStuckOnTrio = Stuck.on("trio").TestCase
"""


def test_pytest_runs_its_test_cases(tmp_path: Path) -> None:
    """And shows where each task waits, with the rules that lead there."""
    file = tmp_path / "test_program.py"
    file.write_text(PROGRAM)
    plugins = ["-p", "no:asyncio", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", *plugins, file.name]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "2 failed, 2 passed" in done.stdout
    assert 2 == len(re.findall(r"^E +task 0 'main' at wait_for_nothing:", done.stdout, re.MULTILINE))
    for backend in ("Asyncio", "Trio"):
        assert f"state = StuckOn{backend}()" in done.stdout
    assert 2 <= done.stdout.count("state.wait()")
