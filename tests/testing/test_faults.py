"""Faults as data, and what they do to calls."""

import asyncio
import concurrent.futures
import contextlib
import functools
import inspect
import pickle
import queue
import subprocess
import sys
import threading
import types
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import anyio
import anyio.to_thread
import attrs
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from agentcore.errors import TaskError, TaskTimeoutError
from agentcore.testing import _faults
from agentcore.testing._fault_plans import Fault, FaultPlan, InjectedFault
from agentcore.testing._faults import (
    Injection,
    Target,
    default_scope,
    inject,
    known_kinds,
    register_targets,
)


class Boom(Exception):
    class Inner(Exception):
        pass


class Demanding(Exception):
    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class Base:
    def __init__(self) -> None:
        self.log: list[str] = []
        self.hook = lambda: "hooked"

    async def fetch(self, key: str = "a") -> str:
        self.log.append(f"fetch {key}")
        await anyio.lowlevel.checkpoint()
        return f"value of {key}"

    def read(self, key: str = "a") -> str:
        self.log.append(f"read {key}")
        return f"text of {key}"

    @classmethod
    def named(cls) -> str:
        return cls.__name__

    @staticmethod
    def fixed(value: int = 1) -> int:
        return value

    @property
    def size(self) -> int:
        raise AssertionError("a property must not be asked")

    async def stream(self) -> AsyncIterator[int]:
        yield 1

    def walk(self) -> Iterator[int]:
        yield 1


class Api(Base):
    pass


class Other(Base):
    pass


class Numbers(list[int]):
    pass


@attrs.frozen
class Frozen:
    hook: Callable[[], str]

    def read(self) -> str:
        return "frozen"


class Caller:
    async def __call__(self) -> str:
        return "called"


async def module_function() -> str:
    return "module"


@pytest.fixture(autouse=True)
def nothing_stays_behind() -> Iterator[None]:
    """After every test no dispatcher is left and every class and module is what it was."""
    holders = (Base, Api, Other, Numbers, Frozen, Caller, sys.modules[__name__])
    before = [dict(vars(holder)) for holder in holders]
    yield
    assert {} == _faults._dispatchers
    assert () == _faults._active.get()
    for holder, attributes in zip(holders, before, strict=True):
        after = dict(vars(holder))
        assert attributes.keys() == after.keys()
        assert all(after[name] is value for name, value in attributes.items())


@pytest.fixture
def kinds() -> Iterator[dict[str, Any]]:
    """The registered kinds, which are put back afterwards."""
    before = dict(_faults._kinds)
    yield _faults._kinds
    _faults._kinds.clear()
    _faults._kinds.update(before)


# ---------------------------------------------------------------- faults as text


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        (Fault("store.charge", 1, "raise_after"), "store.charge#1:raise_after(InjectedFault)"),
        (Fault("api.fetch", 2, "delay", 0.5, onwards=True), "api.fetch#2+:delay(0.5)"),
        (Fault("api.fetch", action="hang"), "api.fetch#1:hang"),
        (Fault("agent:planner", action="cancel"), "agent:planner#1:cancel"),
        (Fault("api.fetch", 3, "corrupt", {"a": 1}), "api.fetch#3:corrupt({'a': 1})"),
        (Fault("api.fetch", 3, "corrupt"), "api.fetch#3:corrupt"),
        (Fault("queue.put", action="duplicate"), "queue.put#1:duplicate"),
        (Fault("a"), "a#1:raise(InjectedFault)"),
        (Fault("a", argument=OSError), "a#1:raise(OSError)"),
        (Fault("a", argument=TaskTimeoutError), "a#1:raise(TaskTimeoutError)"),
        (Fault("a", argument=anyio.ClosedResourceError), "a#1:raise(anyio:ClosedResourceError)"),
        (Fault("a", argument=KeyboardInterrupt), "a#1:raise(KeyboardInterrupt)"),
        (Fault("a", argument=Boom.Inner), f"a#1:raise({__name__}:Boom.Inner)"),
        (Fault("a", action="delay", argument=2), "a#1:delay(2.0)"),
        (Fault("a", action="delay", argument=-0.0), "a#1:delay(0.0)"),
        (Fault("pool:cpu/x-1_y", action="corrupt", argument=("a;b)", [b"'"])), "pool:cpu/x-1_y#1:corrupt(('a;b)', [b\"'\"]))"),
    ],
)  # fmt: skip
def test_fault_prints_and_parses(fault: Fault, text: str) -> None:
    """The text of a fault is fixed: replay lines outlive releases."""
    assert text == str(fault)
    assert fault == Fault.parse(text)
    assert hash(fault) == hash(Fault.parse(text))
    assert fault == eval(repr(fault))
    assert fault == pickle.loads(pickle.dumps(fault))


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        (" a#01:raise ", "a#1:raise(InjectedFault)"),
        ("a#1:raise(IOError)", "a#1:raise(OSError)"),
        ("a#1:raise(agentcore:TaskError)", "a#1:raise(TaskError)"),
        ("a#1:delay(1)", "a#1:delay(1.0)"),
        ("a#1:corrupt(None)", "a#1:corrupt"),
        ('a#1:corrupt( "x" )', "a#1:corrupt('x')"),
    ],
)
def test_what_people_write_is_read(text: str, canonical: str) -> None:
    """A fault that was written by hand may differ from how it prints."""
    assert canonical == str(Fault.parse(text))


def _literals() -> st.SearchStrategy[Any]:
    leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    leaves |= st.text() | st.binary()
    return st.recursive(leaves, lambda inner: st.lists(inner) | st.tuples(inner) | st.dictionaries(st.text(), inner))


@st.composite
def _fault(draw: st.DrawFn, targets: st.SearchStrategy[str]) -> Fault:
    arguments: dict[str, st.SearchStrategy[Any]] = {
        "raise": st.sampled_from([None, InjectedFault, KeyError, Boom, Boom.Inner, TaskError, SystemExit]),
        "delay": st.floats(0, 1e300) | st.integers(0, 10**20),
        "hang": st.none(),
        "cancel": st.none(),
        "corrupt": _literals(),
        "duplicate": st.none(),
    }
    arguments["raise_after"] = arguments["raise"]
    action: Any = draw(st.sampled_from(sorted(arguments)))
    return Fault(draw(targets), draw(st.integers(1, 10**6)), action, draw(arguments[action]), draw(st.booleans()))


_names = st.from_regex(r"[A-Za-z0-9_.:/-]+", fullmatch=True)
_plans = st.lists(_fault(_names), max_size=5, unique_by=lambda fault: (fault.target, fault.call, fault.onwards))


@given(_fault(_names))
def test_every_fault_parses_back(fault: Fault) -> None:
    """`Fault.parse` is the inverse of `str`."""
    assert fault == Fault.parse(str(fault))
    assert str(fault) == str(Fault.parse(str(fault)))
    assert "\n" not in str(fault)


@pytest.mark.thorough
@given(_plans)
def test_every_plan_parses_back(faults: list[Fault]) -> None:
    """`FaultPlan.parse` is the inverse of `str`, whatever the literals contain."""
    plan = FaultPlan(faults)
    assert plan == FaultPlan.parse(str(plan)) == eval(repr(plan))
    assert str(plan) == str(FaultPlan.parse(str(plan)))


@given(st.text(st.sampled_from("a#1+:;()'\"\\ raisedlycopt{}[],.")))
def test_any_text_is_read_or_refused(text: str) -> None:
    """Nothing but the two documented errors comes of a text that makes no sense."""
    with contextlib.suppress(ValueError, TypeError):
        assert str(FaultPlan.parse(text)) == str(FaultPlan.parse(str(FaultPlan.parse(text))))


def _fault_with(**arguments: Any) -> Callable[[], Fault]:
    return lambda: Fault(**{"target": "a", **arguments})


def _local_exception() -> type[Exception]:
    class Local(Exception):
        pass

    return Local


_endless: list[Any] = []
_endless.append(_endless)


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (_fault_with(target=""), ValueError, "target of a fault must be a name of letters"),
        (_fault_with(target="a b"), ValueError, "got 'a b'"),
        (_fault_with(target=1), TypeError, "target of a fault must be a name"),
        (_fault_with(call=0), ValueError, "call of a fault must be 1 or more: got 0; the first call is 1"),
        (_fault_with(call=True), TypeError, "call of a fault must be an integer"),
        (_fault_with(call="1"), TypeError, "call of a fault must be an integer"),
        (_fault_with(onwards=1), TypeError, "onwards True or False: got 1 and 1"),
        (_fault_with(action="explode"), ValueError, "must be one of raise, raise_after, delay, .*: got 'explode'"),
        (_fault_with(action="delay"), TypeError, r"must be seconds: got None; write for example delay\(0.5\)"),
        (_fault_with(action="delay", argument=True), TypeError, "must be seconds: got True"),
        (_fault_with(action="delay", argument=-1), ValueError, "must be finite and not negative: got -1"),
        (_fault_with(action="delay", argument=float("inf")), ValueError, "got inf; try 'hang'"),
        (_fault_with(action="delay", argument=float("nan")), ValueError, "got nan"),
        (_fault_with(action="hang", argument=1), TypeError, "argument of 'hang' must be left out: got 1"),
        (_fault_with(action="cancel", argument=1), TypeError, "argument of 'cancel' must be left out"),
        (_fault_with(action="duplicate", argument=0), TypeError, "argument of 'duplicate' must be left out"),
        (_fault_with(argument=KeyError("x")), TypeError, "must be a class of exceptions: got KeyError.*the class itself"),
        (_fault_with(argument=int), TypeError, "must be a class of exceptions: got <class 'int'>"),
        (_fault_with(argument=asyncio.CancelledError), ValueError, "cancellation is injected with 'cancel'"),
        (_fault_with(argument=trio.Cancelled), ValueError, "cancellation is injected with 'cancel'"),
        (_fault_with(argument=GeneratorExit), ValueError, "got GeneratorExit, which comes from"),
        (_fault_with(argument=_local_exception()), ValueError, "<locals>.*in the body of a module"),
        (_fault_with(action="corrupt", argument=object()), ValueError, "let the target's own `corrupt` make"),
        (_fault_with(action="corrupt", argument={1}), ValueError, "the order of a set differs from run to run"),
        (_fault_with(action="corrupt", argument=set()), ValueError, "the order of a set differs from run to run"),
        (_fault_with(action="corrupt", argument=[float("nan")]), ValueError, "must be a literal without sets"),
        (_fault_with(action="corrupt", argument=-1j), ValueError, "it reads back as"),
        (_fault_with(action="corrupt", argument=_endless), ValueError, "must be a literal"),
        (lambda: Fault.parse("a:raise"), ValueError, "must read 'target#call:action'.*: got 'a:raise'; write for example"),
        (lambda: Fault.parse("a#x:raise"), ValueError, "must read 'target#call:action'"),
        (lambda: Fault.parse("a#1:explode"), ValueError, "action of a fault must be one of"),
        (lambda: Fault.parse("a#1:raise(Nothing)"), ValueError, "got 'Nothing', which gave KeyError.*by their bare name"),
        (lambda: Fault.parse("a#1:raise(print)"), ValueError, "got 'print'"),
        (lambda: Fault.parse("a#1:raise(no.such:Error)"), ValueError, "which gave ModuleNotFoundError"),
        (lambda: Fault.parse("a#1:raise(json:Nothing)"), ValueError, "which gave AttributeError"),
        (lambda: Fault.parse("a#1:raise(json:loads)"), TypeError, "must be a class of exceptions"),
        (lambda: Fault.parse("a#1:corrupt(x)"), ValueError, "must be a literal of Python: got 'x'.*put strings into quotes"),
        (lambda: Fault.parse("a#1:hang()"), ValueError, "must be a literal of Python: got ''"),
        (lambda: FaultPlan.parse("a#1:raise;"), ValueError, "got ''"),
        (lambda: FaultPlan(["a#1:raise"]), TypeError, "must consist of faults: got 'a#1:raise'; FaultPlan.parse reads text"),
    ],
)  # fmt: skip
def test_faults_that_make_no_sense_are_refused(make: Callable[[], object], error: type[Exception], text: str) -> None:
    """The error names the rule, the value and what to do."""
    with pytest.raises(error, match=text):
        make()


def test_exception_that_another_hides_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that leads to another class would replay another fault."""
    hidden = Boom
    monkeypatch.setitem(globals(), "Boom", KeyError)
    with pytest.raises(ValueError, match="local or hidden by another of its name"):
        Fault("a", argument=hidden)


def test_fault_keeps_its_own_copy_of_a_literal() -> None:
    """Neither who makes the fault nor who meets it can change it."""
    given_one = {"a": [1]}
    fault = Fault("read", action="corrupt", argument=given_one)
    given_one["a"].append(2)
    with inject(fault, {"read": (api := Api(), "read")}):
        result: Any = api.read()
        result["a"].append(3)
    assert "read#1:corrupt({'a': [1]})" == str(fault)


def test_faults_with_equal_arguments_that_print_otherwise_differ() -> None:
    """True, 1 and 1.0 are equal to Python, and three different results of a call."""
    assert 3 == len({Fault("a", action="corrupt", argument=value) for value in (True, 1, 1.0)})


# ---------------------------------------------------------------- plans


def test_plan_is_a_frozen_sequence() -> None:
    """A plan is iterated, counted, added to and reduced without being changed."""
    one, two = Fault("a"), Fault("b", action="hang")
    plan = FaultPlan([one, two])
    assert [one, two] == list(plan)
    assert (2, True, False) == (len(plan), bool(plan), bool(FaultPlan()))
    assert one in plan
    assert "a#1:raise(InjectedFault);b#1:hang" == str(plan)
    assert FaultPlan([two]) == plan.without(one)
    assert plan == FaultPlan([one]) | two == FaultPlan() | plan
    assert "" == str(FaultPlan())
    assert FaultPlan() == FaultPlan.parse(" ")
    assert hash(plan) == hash(FaultPlan((one, two)))
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        plan.faults = ()  # type: ignore[misc]
    with pytest.raises(ValueError, match="'c#1:hang' must be one of the plan"):
        plan.without(Fault("c", action="hang"))
    with pytest.raises(TypeError):
        plan | 1  # type: ignore[operator]


def test_two_faults_at_one_call_are_refused() -> None:
    """Which of the two acts could not be told."""
    with pytest.raises(ValueError, match=r"got 'a#2:hang' and 'a#2:cancel'; leave one out or move it"):
        FaultPlan.parse("a#2:hang;a#2:cancel")
    with pytest.raises(ValueError, match="one fault at most"):
        FaultPlan([Fault("a", onwards=True), Fault("a", onwards=True)])


def test_which_fault_acts() -> None:
    """The exact one, or the latest of those that act onwards."""
    plan = FaultPlan.parse("a#2+:delay(2);a#3:raise;a#5+:hang;a#5:cancel;b#1:duplicate")
    acting = [plan.at("a", call) for call in range(1, 8)]
    assert [None, "delay", "raise", "delay", "cancel", "hang", "hang"] == [f and f.action for f in acting]
    assert None is plan.at("c", 1)


# ---------------------------------------------------------------- actions


def _sync(plan: Any, calls: int = 1, **options: Any) -> tuple[list[Any], Api, Injection]:
    """Call `Api.read` so many times under a plan; return the results or errors."""
    api, results = Api(), []
    with inject(plan, {"read": Target(api, "read", **options)}) as injection:
        for _ in range(calls):
            try:
                results.append(api.read())
            except Exception as error:  # noqa: BLE001 - compared
                results.append(repr(error))
    return results, api, injection


def test_raise_makes_no_call() -> None:
    """The error says which fault it is; the calls before and after are as ever."""
    results, api, injection = _sync("read#2:raise(KeyError)", 3)
    assert ["text of a", "KeyError('injected fault read#2:raise(KeyError)')", "text of a"] == results
    assert ["read a", "read a"] == api.log
    assert (Fault("read", 2, argument=KeyError),) == injection.fired
    assert {"read": 3} == injection.calls
    assert () == injection.unused


def test_raise_after_makes_the_call() -> None:
    """Done, and not acknowledged."""
    results, api, _ = _sync("read#1:raise_after")
    assert ["InjectedFault('injected fault read#1:raise_after(InjectedFault)')"] == results
    assert ["read a"] == api.log


def test_onwards_acts_at_every_later_call() -> None:
    """And is told once for each time."""
    results, _, injection = _sync("read#2+:corrupt(0)", 4)
    assert ["text of a", 0, 0, 0] == results
    assert 3 == len(injection.fired)
    assert () == injection.unused


def test_corrupt_without_argument_asks_the_target() -> None:
    """What a plausible wrong result is, the target knows."""
    assert ["TEXT OF A"] == _sync("read#1:corrupt", corrupt=str.upper)[0]
    assert [1] == _sync("read#1:corrupt(1)", corrupt=str.upper)[0]
    assert [None] == _sync("read#1:corrupt")[0]


def test_duplicate_calls_twice() -> None:
    """With the same arguments, and gives what the second call gives."""
    api = Api()
    with inject("read#1:duplicate", {"read": (api, "read")}):
        assert "text of k" == api.read(key="k")
        assert "text of j" == api.read("j")
    assert ["read k", "read k", "read j"] == api.log


@pytest.mark.parametrize("action", ["raise_after", "corrupt", "duplicate"])
def test_error_of_the_call_goes_its_way(action: str) -> None:
    """A fault that acts on success does not act on failure, and is not told to have."""

    def fail() -> None:
        raise Boom

    owner = types.SimpleNamespace(fail=fail)
    with inject(f"fail#1:{action}", {"fail": (owner, "fail")}) as injection, pytest.raises(Boom):
        owner.fail()
    assert () == injection.fired
    assert 1 == len(injection.unused)


@pytest.mark.anyio
async def test_delay_sleeps_before_the_call() -> None:
    """No call is made before the time is over."""
    api = Api()
    with inject("fetch#1:delay(3600);fetch#2:delay(0.001);fetch#3:delay(0)", {"fetch": (api, "fetch")}) as injection:
        with anyio.move_on_after(0) as scope:
            await api.fetch()
        assert scope.cancelled_caught
        assert [] == api.log
        before = anyio.current_time()
        assert "value of a" == await api.fetch()
        assert anyio.current_time() > before
        assert "value of a" == await api.fetch()
    assert ["delay"] * 3 == [fault.action for fault in injection.fired]


@pytest.mark.anyio
async def test_hang_never_returns() -> None:
    """Until it is cancelled; no call is made."""
    api = Api()
    with inject("fetch#1:hang", {"fetch": (api, "fetch")}) as injection:
        with anyio.move_on_after(0.001) as scope:
            await api.fetch()
        assert scope.cancelled_caught
        assert "value of a" == await api.fetch()
    assert ["fetch a"] == api.log
    assert (Fault("fetch", action="hang"),) == injection.fired


@pytest.mark.anyio
async def test_cancel_is_met_at_the_first_checkpoint() -> None:
    """The call begins, which the program under test has to clean up after."""
    api = Api()
    with anyio.CancelScope() as scope:
        with inject("fetch#2:cancel", {"fetch": (api, "fetch")}, scope=scope):
            await api.fetch("a")
            await api.fetch("b")
        raise AssertionError("not reached")
    assert scope.cancelled_caught
    assert ["fetch a", "fetch b"] == api.log


@pytest.mark.anyio
async def test_cancel_of_a_synchronous_call_lets_it_end() -> None:
    """There is no checkpoint in it."""
    api = Api()
    with anyio.CancelScope() as scope, inject("read#1:cancel", {"read": (api, "read")}, scope=scope):
        assert "text of a" == api.read()
        assert scope.cancel_called
        await anyio.lowlevel.checkpoint()
    assert scope.cancelled_caught


@pytest.mark.anyio
async def test_cancel_from_a_worker_thread() -> None:
    """A scope belongs to the thread of its event loop."""
    api = Api()
    with anyio.CancelScope() as scope, inject("read#1:cancel", {"read": (api, "read")}, scope=scope):
        await anyio.to_thread.run_sync(api.read)
        await anyio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    assert ["read a"] == api.log


@pytest.mark.anyio
async def test_cancel_takes_the_default_scope() -> None:
    """A simulation sets it; an own one goes first."""
    api = Api()
    with anyio.CancelScope() as scope, anyio.CancelScope() as own:
        token = default_scope.set(lambda: scope)
        try:
            with inject("read#1:cancel;read#2:cancel", {"read": (api, "read")}, scope=own):
                api.read()
                assert (False, True) == (scope.cancel_called, own.cancel_called)
            with inject("read#1:cancel", {"read": (api, "read")}):
                api.read()
                assert scope.cancel_called
        finally:
            default_scope.reset(token)
        await anyio.lowlevel.checkpoint()
    assert scope.cancelled_caught


@pytest.mark.anyio
async def test_actions_on_a_coroutine_function() -> None:
    """Those that need no waiting act as on a function, when the coroutine is awaited."""
    api = Api()
    plan = "fetch#1:raise;fetch#2:raise_after(Boom);fetch#3:corrupt(3);fetch#4:duplicate"
    with inject(plan.replace("Boom", f"{__name__}:Boom"), {"fetch": (api, "fetch")}) as injection:
        coroutine = api.fetch("1")
        assert {"fetch": 0} == injection.calls
        with pytest.raises(InjectedFault):
            await coroutine
        with pytest.raises(Boom):
            await api.fetch("2")
        assert 3 == await api.fetch("3")
        assert "value of 4" == await api.fetch("4")
        assert "value of 5" == await api.fetch("5")
    assert ["fetch 2", "fetch 3", "fetch 4", "fetch 4", "fetch 5"] == api.log


def test_stop_iteration_can_be_injected() -> None:
    """Inside of a generator it would become a RuntimeError."""
    with inject("read#1:raise(StopIteration)", {"read": (api := Api(), "read")}), pytest.raises(StopIteration):
        api.read()


def test_heal_ends_faults_and_not_counting() -> None:
    """Liveness is checked after the faults have stopped."""
    api = Api()
    with inject("read#1+:raise", {"read": (api, "read")}) as injection:
        with pytest.raises(InjectedFault):
            api.read()
        injection.heal()
        assert "text of a" == api.read()
        text = "<Injection of 'read#1+:raise(InjectedFault)', healed, 1 fired, 2 calls>"
        assert text == repr(injection)
    assert {"read": 2} == injection.calls


@pytest.mark.anyio
async def test_heal_leaves_calls_under_way() -> None:
    """A call that hangs still hangs; one that begins does not."""
    api = Api()
    async with anyio.create_task_group() as group:
        with inject("fetch#1+:hang", {"fetch": (api, "fetch")}) as injection:
            group.start_soon(api.fetch, "hangs")
            await anyio.wait_all_tasks_blocked()
            injection.heal()
            await api.fetch("goes")
            await anyio.wait_all_tasks_blocked()
        assert ["fetch goes"] == api.log
        group.cancel_scope.cancel()


# ---------------------------------------------------------------- what a target may be


def test_target_on_an_object_is_of_that_object_alone() -> None:
    """And nothing is put on it."""
    api, other = Api(), Api()
    before = dict(vars(api))
    with inject("read#1+:corrupt(0)", {"read": (api, "read")}) as injection:
        assert (0, "text of a") == (api.read(), other.read())
        assert before.keys() == vars(api).keys()
        assert 0 == Api.read(api)
    assert {"read": 2} == injection.calls
    assert "text of a" == api.read()


def test_target_on_a_class_is_of_all_its_instances() -> None:
    """Also where the class inherits the method: others that inherit it are let alone."""
    with inject("read#1+:corrupt(0)", {"read": (Api, "read")}) as injection:
        assert (0, 0, "text of a", "text of a") == (Api().read(), Api().read(), Other().read(), Base().read())
    assert {"read": 2} == injection.calls
    with inject("read#1+:corrupt(0)", {"read": (Base, "read")}):
        assert (0, 0, 0) == (Api().read(), Other().read(), Base().read())


def test_class_and_static_methods() -> None:
    """They stay what they are, on the class and on an object."""
    api = Api()
    with inject("named#1+:duplicate;fixed#1+:corrupt(5)", {"named": (Api, "named"), "fixed": (Api, "fixed")}) as one:
        assert ("Api", "Api", "Other", "Base") == (Api.named(), api.named(), Other.named(), Base.named())
        assert (5, 5, 1, 1) == (Api.fixed(), api.fixed(2), Other.fixed(), Base.fixed())
        assert isinstance(inspect.getattr_static(Api, "fixed"), staticmethod)
        assert isinstance(inspect.getattr_static(Api, "named"), classmethod)
    assert {"named": 2, "fixed": 2} == one.calls
    with inject("named#1+:corrupt(0);fixed#1+:corrupt(5)", {"named": (api, "named"), "fixed": (api, "fixed")}):
        assert (0, 5) == (api.named(), api.fixed())
        assert ("Api", 1) == (Api.named(), Api.fixed())
    assert {"log", "hook"} == vars(api).keys()
    with inject("named#1+:corrupt(0)", {"named": (Base, "named")}):
        assert (0, 0) == (Api.named(), Base.named())


def test_function_in_an_attribute_of_an_object() -> None:
    """It is replaced where it is, and put back."""
    api = Api()
    hook = api.hook
    with inject("hook#1:corrupt(0)", {"hook": (api, "hook")}):
        assert (0, "hooked") == (api.hook(), api.hook())
    assert vars(api)["hook"] is hook


def test_slots_and_frozen_objects() -> None:
    """What refuses `setattr` does not notice."""
    frozen, other = Frozen(lambda: "hooked"), Frozen(lambda: "hooked")
    hook = frozen.hook
    with inject("h#1+:corrupt(0);r#1+:corrupt(1)", {"h": (frozen, "hook"), "r": (frozen, "read")}):
        assert (0, 1) == (frozen.hook(), frozen.read())
        assert ("hooked", "frozen") == (other.hook(), other.read())
    assert frozen.hook is hook


def test_method_of_a_built_in_base() -> None:
    """It cannot be replaced in its class, but in one of Python that inherits it."""
    numbers = Numbers()
    with inject("all#2:raise;one#1+:duplicate", {"all": (Numbers, "append"), "one": (numbers, "append")}) as injection:
        numbers.append(1)
        with pytest.raises(InjectedFault):
            Numbers().append(2)
    assert [1, 1] == numbers
    assert {"all": 2, "one": 1} == injection.calls


@pytest.mark.anyio
async def test_function_of_a_module_and_callable_object() -> None:
    """An object with an asynchronous `__call__` counts as a coroutine function."""
    module = sys.modules[__name__]
    owner = types.SimpleNamespace(call=Caller(), part=functools.partial(Base().fetch, "p"))
    targets = {"m": (module, "module_function"), "call": (owner, "call"), "part": (owner, "part")}
    with inject("m#1:delay(0);m#2:corrupt(0);call#1:delay(0);part#1:duplicate", targets) as injection:
        assert ("module", 0) == (await module_function(), await module_function())
        assert ("called", "value of p") == (await owner.call(), await owner.part())
    assert () == injection.unused
    assert {"m": 2, "call": 1, "part": 1} == injection.calls


def test_attribute_made_on_demand() -> None:
    """What `__getattr__` gives is replaced on the object, and gone afterwards."""

    class Proxy:
        def __getattr__(self, name: str) -> Callable[[], str]:
            return lambda: name

    proxy = Proxy()
    with inject("ping#1:corrupt(0)", {"ping": (proxy, "ping")}):
        assert (0, "ping") == (proxy.ping(), proxy.ping())
    assert {} == vars(proxy)


def test_stand_in_looks_like_the_function() -> None:
    """Name, signature and kind stay."""
    signature = inspect.signature(Api.fetch)
    with inject("f#1:hang;r#1:raise", {"f": (Api, "fetch"), "r": (Api, "read")}):
        assert inspect.iscoroutinefunction(Api.fetch)
        assert inspect.iscoroutinefunction(Api().fetch)
        assert not inspect.iscoroutinefunction(Api.read)
        assert ("fetch", signature) == (Api.fetch.__name__, inspect.signature(Api.fetch))


def test_matches_tells_which_calls() -> None:
    """With self if the owner is a class, without if it is an object."""
    api, other = Api(), Api()
    by_class = Target(Api, "read", matches=lambda self, key="a": self is other and key == "x")
    by_object = Target(api, "read", matches=lambda key="a": key == "x")
    with inject("c#1+:corrupt(0);o#1+:corrupt(1)", {"c": by_class, "o": by_object}) as injection:
        assert ["text of a", "text of x"] == [Api().read("a"), Api().read(key="x")]
        assert ["text of a", 1, 1] == [api.read(), api.read("x"), api.read(key="x")]
        assert ["text of a", 0] == [other.read(), other.read(key="x")]
    assert {"c": 1, "o": 2} == injection.calls


def test_several_names_of_one_call() -> None:
    """Each counts; the first of the targets comes first and the next acts on what it lets through."""
    api = Api()
    plan = "a#1:duplicate;b#2:corrupt(2);b#3:raise"
    with inject(plan, {"a": (api, "read"), "b": (Api, "read")}) as injection:
        assert 2 == api.read()
        with pytest.raises(InjectedFault):
            api.read()
    assert {"a": 2, "b": 3} == injection.calls
    assert ["duplicate", "corrupt", "raise"] == [fault.action for fault in injection.fired]


@pytest.mark.parametrize(
    ("owner", "attribute", "error", "text"),
    [
        (Api(), "size", TypeError, "target 't' must be a function or method: got Api.size, which is a property"),
        (Api, "size", TypeError, "got Api.size, which is a property"),
        (Api(), "log", TypeError, "got Api.log, which is a list"),
        (Boom, "Inner", TypeError, "got Boom.Inner, which is a type; name what is called"),
        (Api(), "nothing", AttributeError, "got Api.nothing, which is missing"),
        (Api, "nothing", AttributeError, "got Api.nothing, which is missing"),
        (Frozen, "hook", TypeError, "got Frozen.hook, which is a member_descriptor"),
        (Api(), "stream", TypeError, "got Api.stream, which only makes a generator"),
        (Api, "walk", TypeError, "got Api.walk, which only makes a generator"),
        (list, "append", TypeError, "got list.append, which is built in; name a function or method in Python"),
        ([], "append", TypeError, "got list.append, which is built in"),
    ],
)
def test_what_cannot_be_replaced_is_refused(owner: object, attribute: str, error: type[Exception], text: str) -> None:
    """Before anything is replaced."""
    with pytest.raises(error, match=text), inject("t#1:raise", {"r": (Api, "read"), "t": (owner, attribute)}):
        raise AssertionError("not reached")


@pytest.mark.parametrize(
    ("plan", "error", "text"),
    [
        ("read#1:hang", ValueError, "'read#1:hang' must be one of a coroutine function.*hang what calls it"),
        ("read#1:delay(1)", ValueError, "must be one of a coroutine function"),
        ("read#1:cancel", ValueError, r"must have a scope to cancel: got none; write inject\(..., scope=...\)"),
        ("reed#1:raise", LookupError, "got 'reed'; did you mean 'read'. given are 'read', kinds are none"),
        ("zoo:reed#1:raise", LookupError, "given or of a registered kind: got 'zoo:reed'; given are 'read'"),
        (f"read#1:raise({__name__}:Demanding)", TypeError, "must be made from one message: got TypeError"),
        ("read", ValueError, "must read 'target#call:action'"),
        ([1], TypeError, "must consist of faults"),
    ],
)
def test_plan_that_cannot_happen_is_refused(
    plan: Any, error: type[Exception], text: str, kinds: dict[str, Any]
) -> None:
    """On entering, where the program under test cannot swallow it."""
    kinds.clear()
    with pytest.raises(error, match=text), inject(plan, {"read": (Api, "read")}):
        raise AssertionError("not reached")


def test_plan_may_be_written_in_four_ways() -> None:
    """Text, a fault, several faults, a plan."""
    fault = Fault("read", action="corrupt", argument=0)
    for plan in (str(fault), fault, [fault], FaultPlan([fault])):
        with inject(plan, {"read": (api := Api(), "read")}) as injection:
            assert 0 == api.read()
        assert FaultPlan([fault]) == injection.plan


def test_targets_without_a_fault_are_counted() -> None:
    """A first run without faults tells where they can be."""
    api = Api()
    with inject("", {"read": (api, "read"), "fetch": (api, "fetch")}) as injection:
        api.read()
    assert {"read": 1, "fetch": 0} == injection.calls


def test_what_names_no_target_is_refused(kinds: dict[str, Any]) -> None:
    """Whoever has given it."""
    register_targets("odd", lambda name: name)  # type: ignore[arg-type, return-value]
    with (
        pytest.raises(TypeError, match=r"target 'odd:x' must be a Target or a pair.*: got 'x'"),
        inject("odd:x#1:raise"),
    ):
        pass
    for odd in (Api, (Api,), (Api, 1)):
        with pytest.raises(TypeError, match="target 'read' must be a Target"), inject("", {"read": odd}):  # type: ignore[dict-item]
            pass


def test_subclass_with_its_own_method_is_another() -> None:
    """Unless it calls the one of the class."""

    class Own(Api):
        def read(self, key: str = "a") -> str:
            return f"own {super().read(key) if key == 'super' else key}"

    with inject("read#1+:corrupt(0)", {"read": (Api, "read")}) as injection:
        assert ("own a", "own 0", 0) == (Own().read(), Own().read("super"), Api().read())
    assert {"read": 2} == injection.calls
    with inject("read#1+:corrupt(0)", {"read": (own := Own(), "read")}):
        assert (0, "own a") == (own.read(), Own().read())


def test_registered_kinds(kinds: dict[str, Any]) -> None:
    """`kind:name` is resolved by who has registered the kind; names that are given go first."""
    apis = {"a": Api(), "b:c": Api()}

    def resolve(name: str) -> Target:
        return Target(apis[name], "read", corrupt=str.upper)

    kinds.clear()
    register_targets("api", resolve)
    register_targets("api", resolve)
    register_targets("another", resolve)
    assert ("another", "api") == known_kinds()
    with inject("api:a#1:corrupt;api:b:c#1:corrupt(0);api:x#1:corrupt(1)", {"api:x": (Other, "read")}) as injection:
        assert ("TEXT OF A", 0, 1) == (apis["a"].read(), apis["b:c"].read(), Other().read())
    assert {"api:a": 1, "api:b:c": 1, "api:x": 1} == injection.calls
    with pytest.raises(KeyError), inject("api:unknown#1:raise"):
        pass
    with pytest.raises(ValueError, match=r"'api' must have one resolver: got .*take another name"):
        register_targets("api", lambda name: Target(Api, name))
    with pytest.raises(ValueError, match=r"kind of targets must be a name.*got 'a:b'"):
        register_targets("a:b", resolve)


# ---------------------------------------------------------------- where faults act


def test_nothing_is_replaced_outside_of_a_block() -> None:
    """Also after an error in the block."""
    read = Api.__mro__[1].__dict__["read"]
    with pytest.raises(Boom), inject("read#1:raise", {"read": (Api, "read")}) as injection:
        assert vars(Base)["read"] is not read
        raise Boom
    assert vars(Base)["read"] is read
    assert "closed" in repr(injection)


@pytest.mark.anyio
async def test_cancellation_takes_the_stand_in_away() -> None:
    """A block that is cancelled is left like any other."""
    fetch = vars(Base)["fetch"]
    with anyio.move_on_after(0.001), inject("fetch#1:hang", {"fetch": (Api, "fetch")}):
        await Api().fetch()
    assert vars(Base)["fetch"] is fetch


@pytest.mark.anyio
async def test_faults_act_in_tasks_and_threads_of_the_block() -> None:
    """And in none that were there before, nor after the block was left."""
    api, results = Api(), {}
    ready, left, begun = anyio.Event(), anyio.Event(), anyio.Event()

    async def call(name: str, wait: anyio.Event) -> None:
        begun.set()
        await wait.wait()
        results[name] = api.read()

    async with anyio.create_task_group() as group:
        group.start_soon(call, "before", ready)
        await begun.wait()
        with inject("read#1+:corrupt(0)", {"read": (api, "read")}) as injection:
            async with anyio.create_task_group() as inner:
                inner.start_soon(call, "inside", ready)
                group.start_soon(call, "after", left)
                ready.set()
            results["thread"] = await anyio.to_thread.run_sync(api.read)
            with concurrent.futures.ThreadPoolExecutor(1) as pool:
                results["foreign thread"] = pool.submit(api.read).result()
        left.set()
    genuine = "text of a"
    assert {"before": genuine, "inside": 0, "after": genuine, "thread": 0, "foreign thread": genuine} == results
    assert {"read": 2} == injection.calls


def test_blocks_nest() -> None:
    """The inner block acts first, the outer one on what it lets through; each has its own count."""
    api = Api()
    with inject("read#2:corrupt(2);read#4:corrupt(4)", {"read": (Api, "read")}) as outer:
        assert "text of a" == api.read()
        with inject("read#1:corrupt(1);read#2:raise", {"read": (api, "read")}) as inner:
            assert 1 == api.read()
            with pytest.raises(InjectedFault):
                api.read()
            assert "text of a" == api.read()
        assert 4 == api.read()
    assert ({"read": 4}, {"read": 3}) == (outer.calls, inner.calls)


def test_blocks_are_left_in_any_order() -> None:
    """Two blocks of one thread need not be one inside of the other."""
    api = Api()
    one, two = (inject(f"read#1+:corrupt({n})", {"read": (api, "read")}) for n in (1, 2))
    one.__enter__()
    two.__enter__()
    assert 2 == api.read()
    one.__exit__(None, None, None)
    assert 2 == api.read()
    two.__exit__(None, None, None)
    assert "text of a" == api.read()


@given(st.permutations(range(4)), st.permutations(range(4)))
@settings(max_examples=20, deadline=None)
def test_threads_enter_and_leave_in_any_order(entering: list[int], leaving: list[int]) -> None:
    """Each sees its own faults while it is inside, and the function before and after."""
    api, read = Api(), vars(Base)["read"]
    orders: list[queue.Queue[str]] = [queue.Queue() for _ in range(4)]
    answers: list[queue.Queue[Any]] = [queue.Queue() for _ in range(4)]

    def work(number: int) -> None:
        block = inject(f"read#1+:corrupt({number})", {"read": (api if number % 2 else Api, "read")})
        while (order := orders[number].get()) != "end":
            if order == "enter":
                block.__enter__()
            elif order == "leave":
                block.__exit__(None, None, None)
            answers[number].put(api.read())

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    inside: set[int] = set()
    for order, numbers in (("enter", entering), ("leave", leaving)):
        for number in numbers:
            (inside.add if order == "enter" else inside.remove)(number)
            orders[number].put(order)
            assert (number if number in inside else "text of a") == answers[number].get(timeout=10)
            for other in range(4):
                orders[other].put("call")
                assert (other if other in inside else "text of a") == answers[other].get(timeout=10)
    for number, thread in enumerate(threads):
        orders[number].put("end")
        thread.join()
    assert vars(Base)["read"] is read


def test_calls_of_many_threads_are_each_counted_once() -> None:
    """And each of the faults acts at exactly one of them."""
    api = Api()

    async def main() -> list[Any]:
        results: list[Any] = []
        with inject([Fault("read", n, "corrupt", n) for n in range(1, 100, 3)], {"read": (api, "read")}) as injection:
            async with anyio.create_task_group() as group:
                for _ in range(10):
                    group.start_soon(anyio.to_thread.run_sync, lambda: results.extend(api.read() for _ in range(20)))
        assert {"read": 200} == injection.calls
        assert () == injection.unused
        return results

    assert list(range(1, 100, 3)) == sorted(result for result in anyio.run(main) if isinstance(result, int))


def test_what_another_has_put_there_is_left() -> None:
    """It is for who has put it there to take it away."""
    owner = types.SimpleNamespace(run=lambda: 1)
    with inject("run#1:raise", {"run": (owner, "run")}):
        owner.run = replacement = lambda: 2
    assert owner.run is replacement


def test_failure_to_replace_takes_back_what_was_replaced() -> None:
    """An object may refuse even `object.__setattr__`."""
    local = threading.local()
    local.run = lambda: 1
    targets = {"read": (Api, "read"), "run": (local, "run")}
    with pytest.raises((TypeError, AttributeError)), inject("run#1:raise", targets):
        raise AssertionError("not reached")
    assert {} == _faults._dispatchers


# ---------------------------------------------------------------- properties


_harmless = st.builds(
    Fault,
    st.just("fetch"),
    st.integers(1, 4),
    st.sampled_from(["raise", "raise_after", "hang", "corrupt", "duplicate", "cancel"]),
    onwards=st.booleans(),
)


@pytest.mark.anyio
@given(st.lists(_harmless, max_size=4, unique_by=lambda fault: (fault.call, fault.onwards)))
@settings(max_examples=30, deadline=None)
async def test_faults_of_one_target_leave_others_alone(faults: list[Fault]) -> None:
    """Neither other attributes nor other objects give another result, and each call is counted."""
    api, other = Api(), Api()
    targets = {"fetch": (api, "fetch"), "read": (api, "read"), "other": (other, "fetch")}
    plan = FaultPlan(faults)
    with inject(plan, targets, scope=anyio.CancelScope()) as injection:
        for number in range(4):
            fault = plan.at("fetch", number + 1)
            with (
                anyio.move_on_after(0 if fault and fault.action == "hang" else None),
                contextlib.suppress(InjectedFault),
            ):
                await api.fetch()
            assert f"text of {number}" == api.read(str(number))
            assert f"value of {number}" == await other.fetch(str(number))
    assert {"fetch": 4, "read": 4, "other": 4} == injection.calls
    assert {plan.at("fetch", call) for call in range(1, 5)} - {None} == set(injection.fired)


def test_import_loads_no_backend() -> None:
    """A plan can be read where neither event loop is wanted."""
    code = "import sys, agentcore.testing._faults as f; f.Fault('a'); print('trio' in sys.modules)"
    assert (
        "False"
        == subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    )
