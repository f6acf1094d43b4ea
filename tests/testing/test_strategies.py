"""What Hypothesis draws is valid, differs, and shrinks to the simplest."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any, get_args

import anyio
import anyio.lowlevel
import attrs
import pytest
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st

from agentcore import (
    AgentConfig,
    AgentRuntime,
    BaseTask,
    CircuitBreaker,
    CircuitBreakerConfig,
    RuntimeConfig,
    TaskExecutionError,
    TaskPriority,
    TaskState,
)
from agentcore.testing import (
    BACKENDS,
    FIFO,
    RUN_TO_BLOCK,
    Action,
    Fault,
    FaultPlan,
    InjectedFault,
    Schedule,
    SimMachine,
    Target,
    agent_configs,
    circuit_configs,
    explore,
    fault_plans,
    inject,
    run_sim,
    runtime_configs,
    schedules,
    tasks,
)
from agentcore.testing._simulation import Backend
from tests.core.fakes import MockAgent
from tests.planted.permits import slot_returned_twice

pytestmark = pytest.mark.thorough

# The same examples in every run. `explain` takes more time than all the rest, and nobody reads it here.
STABLE = settings(
    database=None,
    derandomize=True,
    deadline=None,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)
MANY = settings(STABLE, max_examples=1_000)
SOME = settings(STABLE, max_examples=250)
FEW = settings(STABLE, max_examples=50)

ACTIONS = get_args(Action)
WAITING: set[Action] = {"delay", "hang"}


class Ledger:
    """A store of what has been paid."""

    def __init__(self) -> None:
        self.paid: list[int] = []

    async def charge(self, amount: int) -> None:
        await anyio.sleep(0.1)
        self.paid.append(amount)

    async def read(self) -> int:
        await anyio.sleep(0.1)
        return sum(self.paid)

    def size(self) -> int:
        return len(self.paid)


LEDGER: dict[str, Target | tuple[object, str]] = {
    "ledger.charge": (Ledger, "charge"),
    "ledger.read": (Ledger, "read"),
}


async def buy() -> int:
    """Pay once, with a second try if the first one fails, and return what was paid."""
    ledger = Ledger()

    async def pay(_context: Any) -> dict[str, Any]:
        try:
            await ledger.charge(80)
        except InjectedFault:
            await ledger.charge(80)
        return {"total": await ledger.read()}

    async with AgentRuntime() as runtime:
        runtime.handler("pay")(pay)
        try:
            await runtime.run("pay")
        except TaskExecutionError:
            return -1  # told, so that somebody can look into it
    return sum(ledger.paid)


def bought(plan: FaultPlan, backend: Backend) -> Any:
    """Return what was paid under a plan; faults may also hang it, or cancel it."""
    return run_sim(buy, backend=backend, plan=plan, targets=LEDGER).value


def drawn(strategy: st.SearchStrategy[Any], bounds: settings = MANY) -> list[Any]:
    """Return what a test would be called with."""
    values: list[Any] = []

    @settings(bounds, phases=[Phase.generate])
    @given(strategy)
    def collect(value: Any) -> None:
        values.append(value)

    collect()
    return values


# ---------------------------------------------------------------- fault plans


@pytest.mark.parametrize("backend", BACKENDS)
def test_double_charge_shrinks_to_one_fault(backend: Backend) -> None:
    """An acknowledgement that is lost is tried again; nothing else is needed to pay twice."""
    plan = find(fault_plans(LEDGER), lambda plan: bought(plan, backend) == 160, settings=MANY)
    assert "ledger.charge#1:raise_after(InjectedFault)" == str(plan)


def test_plans_shrink_to_nothing_then_to_the_first_call() -> None:
    """And to the first target and the simplest action, whatever else there is."""
    plans = fault_plans(["a", "b"], exceptions=[OSError, ValueError], max_faults=5, max_calls=9)
    assert FaultPlan() == find(plans, lambda plan: True, settings=STABLE)
    assert "a#1:raise(OSError)" == str(find(plans, bool, settings=STABLE))
    assert "a#1:raise(OSError);b#1:raise(OSError)" == str(
        find(plans, lambda plan: {"a", "b"} == {fault.target for fault in plan}, settings=STABLE)
    )
    assert "a#3:raise(OSError)" == str(
        find(plans, lambda plan: plan.at("a", 3) and not plan.at("a", 2), settings=STABLE)
    )


def test_plans_are_within_what_was_asked_for() -> None:
    """Every target, action, argument and call comes up, nothing else does, and no two faults collide."""
    options: dict[str, Any] = {"exceptions": [OSError, InjectedFault], "delays": [1, 2]}
    plans = drawn(fault_plans(["a", "b"], max_faults=3, max_calls=2, **options))
    assert {0, 1, 2, 3} == {len(plan) for plan in plans}
    faults = {fault for plan in plans for fault in plan}
    arguments = {
        "raise": (OSError, InjectedFault),
        "raise_after": (OSError, InjectedFault),
        "delay": (1.0, 2.0),
    }
    assert faults == {
        Fault(target, call, action, argument, onwards)
        for target in "ab"
        for call in (1, 2)
        for action in ACTIONS
        for argument in arguments.get(action, (None,))
        for onwards in (False, True)
    }
    assert plans == [FaultPlan.parse(str(plan)) for plan in plans]


def test_plans_can_be_injected() -> None:
    """Whatever is drawn for a mapping or for registered kinds fits it: nothing is refused."""
    kinds = ["agent:nobody", "agent:nobody.initialize", "registry:none", "thread:any", "handler:pay"]
    targets = LEDGER | {"ledger.size": (Ledger, "size"), "one.size": (Ledger(), "size")}
    strategy = st.tuples(fault_plans(targets, max_faults=5), fault_plans(kinds, max_faults=5))

    async def inject_all() -> None:
        for of_targets, of_kinds in drawn(strategy, SOME):
            with inject(of_targets | of_kinds, targets):
                pass

    run_sim(inject_all).unwrap()


def test_synchronous_targets_do_not_wait() -> None:
    """They get every action but those that would block the event loop."""
    targets = LEDGER | {"ledger.size": (Ledger, "size")}
    faults = [fault for plan in drawn(fault_plans(targets), SOME) for fault in plan]
    assert set(ACTIONS) - WAITING == {fault.action for fault in faults if fault.target == "ledger.size"}
    assert set(ACTIONS) == {fault.action for fault in faults if fault.target == "ledger.read"}
    only = drawn(fault_plans(targets, actions=WAITING), FEW)
    assert {"ledger.charge", "ledger.read"} == {fault.target for plan in only for fault in plan}


def test_actions_have_the_same_chance() -> None:
    """However many arguments one of them has."""
    exceptions = [OSError, ValueError, KeyError, LookupError]
    plans = drawn(fault_plans(["a"], exceptions=exceptions, delays=range(9)))
    counts = [sum(fault.action == action for plan in plans for fault in plan) for action in ACTIONS]
    assert max(counts) < 3 * min(counts)


@pytest.mark.parametrize(
    ("targets", "options", "error", "text"),
    [
        ("store", {}, TypeError, r"must be a collection of names: got 'store'; write \['store'\]"),
        ([], {}, ValueError, "something to draw from: .*targets are none, actions are raise, "),
        ({"size": (Ledger, "size")}, {"actions": ["hang"]}, ValueError, "targets are 'size', actions are hang"),
        (["a"], {"actions": []}, ValueError, "targets are 'a', actions are none"),
        (["a"], {"actions": ["raise"], "exceptions": []}, ValueError, "something to draw from"),
        (["a"], {"actions": ["crash", "raise"]}, ValueError, "must be of raise, .*: got 'crash'"),
        (["a"], {"max_faults": 0}, ValueError, "1 or more: got 0 and 4"),
        (["a"], {"max_calls": 0}, ValueError, "1 or more: got 3 and 0"),
        (["a"], {"delays": [-1]}, ValueError, "must be finite and not negative: got -1"),
        (["a"], {"exceptions": [1]}, TypeError, "must be a class of exceptions: got 1"),
        (["a b"], {}, ValueError, "target of a fault must be a name"),
        ({"a": (Ledger, "nothing")}, {}, AttributeError, "got Ledger.nothing, which is missing"),
        ({"a": Ledger}, {}, TypeError, "target 'a' must be a Target or a pair"),
    ],
)
def test_what_no_plan_can_have_is_refused(
    targets: Any, options: dict[str, Any], error: type[Exception], text: str
) -> None:
    """Where the strategy is made, not where it is drawn from."""
    with pytest.raises(error, match=text):
        fault_plans(targets, **options)


# ---------------------------------------------------------------- schedules


def test_schedules_shrink_to_plain_orders() -> None:
    """That of an event loop, then run to block."""
    assert FIFO == find(schedules(), lambda schedule: True, settings=STABLE)
    assert RUN_TO_BLOCK == find(schedules(), lambda schedule: schedule != FIFO, settings=STABLE)


def test_schedules_differ() -> None:
    """All strategies come up, most of the draws are random ones, and each reads back from its text."""
    found = drawn(schedules())
    assert {"fifo", "switches", "walk", "rare", "pct"} == {schedule.strategy for schedule in found}
    assert 900 < len(set(found))
    assert {16, 32, 64, 128, 256, 512} == {schedule.length for schedule in found if schedule.strategy == "pct"}
    assert list(map(str, found)) == [str(Schedule.parse(str(schedule))) for schedule in found]


@pytest.mark.parametrize("backend", BACKENDS)
def test_race_is_found_by_the_schedule_alone(backend: Backend) -> None:
    """The order of an event loop hides it, and so does every example of a test without schedules."""
    race: Any = slot_returned_twice.buggy
    assert run_sim(race, backend=backend).error is None

    def fails(schedule: Schedule) -> bool:
        return run_sim(race, backend=backend, schedule=schedule).error is not None

    found = find(schedules(), fails, settings=MANY)
    assert found.strategy in {"walk", "rare", "pct"}
    report = explore(race, backend=backend, runs=1_000)
    assert report.found is not None
    assert 1 == len(report.found.replay.schedule.switches)


# ---------------------------------------------------------------- tasks


@attrs.define(kw_only=True, eq=False)
class CopyTask(BaseTask):
    """A task with fields of its own."""

    source: str
    pages: list[int]
    retries: int = 2


@SOME
@given(tasks())
def test_tasks_survive_json(task: BaseTask) -> None:
    """Every task is valid, and what is written of it reads back as the same."""
    written = task.to_dict()
    again = BaseTask.from_dict(json.loads(json.dumps(written)))
    assert written == again.to_dict()


def test_tasks_have_all_that_can_be_set() -> None:
    """Each argument of the class but the identifier takes more than its default, and every priority comes up."""
    found = drawn(tasks(), SOME)
    for name in ("type", "input", "priority", "metadata", "trace_id", "parent_id", "timeout_ms"):
        assert 1 < len({repr(getattr(task, name)) for task in found}), name
    assert set(TaskPriority) == {task.priority for task in found}
    assert len(found) == len({task.id for task in found})


def test_tasks_shrink_to_the_defaults() -> None:
    """With the shortest name there is."""
    task = find(tasks(), lambda task: True, settings=STABLE)
    plain = BaseTask.create("0", id=task.id)
    assert plain.to_dict() | {"created_at": ""} == task.to_dict() | {"created_at": ""}


def test_fields_can_be_fixed() -> None:
    """By strategies, with the names of the arguments."""
    for task in drawn(tasks(type=st.just("sum"), id=st.sampled_from("ab"), timeout_ms=st.integers(1, 9)), FEW):
        assert ("sum", True, True) == (task.type, task.id in {"a", "b"}, task.timeout_ms in range(1, 10))


def test_subclass_has_its_own_fields() -> None:
    """Those that it requires by their annotations, others by their defaults unless there is a strategy for them."""
    found = drawn(tasks(CopyTask), FEW)
    assert {CopyTask} == {type(task) for task in found}
    assert {2} == {task.retries for task in found}
    assert 1 < len({task.source for task in found})
    assert all(type(page) is int for task in found for page in task.pages)
    assert {0, 1} == {task.retries for task in drawn(tasks(CopyTask, retries=st.integers(0, 1)), FEW)}


def test_annotation_must_be_known_at_run_time() -> None:
    """Unless there is a strategy for it."""

    @attrs.define(kw_only=True, eq=False)
    class Odd(BaseTask):
        page: "Unknown"  # type: ignore[name-defined]  # noqa: F821, UP037

    with pytest.raises(
        TypeError, match=r"annotation of Odd.page must be known at run time: .*; give a strategy by its"
    ):
        tasks(Odd)
    assert {7} == {task.page for task in drawn(tasks(Odd, page=st.just(7)), FEW)}


def test_unknown_fields_are_refused() -> None:
    """With those that there are."""
    with pytest.raises(TypeError, match="an argument of BaseTask: got prio, x; it has type, input, id, priority, "):
        tasks(prio=st.none(), x=st.none())
    with pytest.raises(TypeError, match="an argument of AgentConfig: got retries; it has name, agent_type, "):
        agent_configs(retries=st.none())


@pytest.mark.parametrize("backend", BACKENDS)
def test_runtime_takes_what_is_drawn(backend: Backend) -> None:
    """Each of them is executed, in one order or another."""

    async def handle(_context: Any) -> dict[str, Any]:
        await anyio.lowlevel.checkpoint()
        return {}

    async def run_all(batch: list[BaseTask]) -> None:
        async with AgentRuntime() as runtime:
            for task_type in {task.type for task in batch}:
                runtime.handler(task_type)(handle)
            for task in batch:
                await runtime.submit(task)
            await runtime.drain()

    @settings(FEW, max_examples=25)
    @given(st.lists(tasks(timeout_ms=st.none() | st.integers(1, 10_000)), max_size=4), schedules())
    def completes(batch: list[BaseTask], schedule: Schedule) -> None:
        run_sim(run_all, batch, backend=backend, schedule=schedule).unwrap()
        assert {TaskState.COMPLETED} >= {task.state for task in batch}

    completes()


# ---------------------------------------------------------------- configurations


def test_configurations_are_valid_and_differ() -> None:
    """Every field takes more than its default; an agent takes every one."""
    found = drawn(agent_configs(), SOME)
    for field in attrs.fields(AgentConfig):
        assert 1 < len({repr(getattr(config, field.name)) for config in found}), field.name
    for config in found:
        assert config is MockAgent(config).config
        assert config == attrs.evolve(config)


def test_configurations_shrink_to_the_defaults() -> None:
    """With the shortest names there are."""
    assert AgentConfig("0", "0") == find(agent_configs(), lambda config: True, settings=STABLE)
    fixed = find(agent_configs(name=st.just("planner")), lambda config: config.timeout is not None, settings=STABLE)
    assert AgentConfig("planner", "0", timeout=0.0) == fixed


def test_configurations_of_circuits_are_valid_and_differ() -> None:
    """Every field but the functions takes more than its default; a breaker takes every one."""
    found = drawn(circuit_configs(), SOME)
    for field in attrs.fields(CircuitBreakerConfig):
        if field.name not in ("failure_if", "failure_if_result"):
            assert 1 < len({repr(getattr(config, field.name)) for config in found}), field.name
    for config in found:
        assert config is CircuitBreaker("api", config).config


def test_configurations_of_runtimes_are_valid_differ_and_shrink_to_the_defaults() -> None:
    """A runtime takes every one."""
    found = drawn(runtime_configs(), SOME)
    for field in attrs.fields(RuntimeConfig):
        assert 1 < len({getattr(config, field.name) for config in found}), field.name
    for config in found:
        assert config is AgentRuntime(config).config
    assert RuntimeConfig() == find(runtime_configs(), lambda config: True, settings=STABLE)


def test_configurations_of_circuits_shrink_to_the_defaults() -> None:
    """And take strategies by the names of the fields."""
    assert CircuitBreakerConfig() == find(circuit_configs(), lambda config: True, settings=STABLE)
    fixed = find(circuit_configs(failure_threshold=st.just(1)), lambda config: True, settings=STABLE)
    assert CircuitBreakerConfig(failure_threshold=1) == fixed
    with pytest.raises(TypeError, match="an argument of CircuitBreakerConfig: got threshold; it has failure_threshold"):
        circuit_configs(threshold=st.just(1))


# ---------------------------------------------------------------- the import


def python(code: str) -> str:
    """Run code in a new interpreter and return what it prints."""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert "" == done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    "exported", [SimMachine, agent_configs, circuit_configs, fault_plans, runtime_configs, schedules, tasks]
)
def test_what_is_exported_reads_agentcore_testing(exported: Any) -> None:
    """Also what is loaded later than all else."""
    assert "agentcore.testing" == exported.__module__


def test_hypothesis_is_imported_when_it_is_used() -> None:
    """Not by the package, whose other names work without it."""
    code = "import sys, agentcore.testing as t; t.FaultPlan; a = 'hypothesis' in sys.modules; t.schedules; print(a, "
    assert "False True" == python(f"{code}'hypothesis' in sys.modules)")


@pytest.mark.parametrize("name", ["SimMachine", "fault_plans"])
def test_missing_hypothesis_is_named(name: str) -> None:
    """With what to install."""
    code = (
        "import sys; sys.modules['hypothesis'] = None\n"
        "try:\n"
        f"    from agentcore.testing import {name}\n"
        "except ModuleNotFoundError as error:\n"
        "    print(error.name, error, sep=': ')"
    )
    expected = "need Hypothesis: got no module named 'hypothesis'; install agentcore-runtime[testing]"
    assert f"hypothesis: strategies and SimMachine of agentcore.testing {expected}" == python(code)
