"""The search for a schedule that fails, and how short its finding becomes."""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Awaitable, Callable, Sequence
from types import SimpleNamespace
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agentcore.testing import (
    BACKENDS,
    FIFO,
    RUN_TO_BLOCK,
    DeadlockError,
    ExploreReport,
    Fault,
    FaultPlan,
    Found,
    InjectedFault,
    InvariantError,
    LivelockError,
    NondeterminismError,
    Replay,
    Schedule,
    UnretrievedError,
    current_simulation,
    explore,
    run_sim,
)
from agentcore.testing import _explore as module
from agentcore.testing._schedule import portfolio
from agentcore.testing._shrink import shrink

both = pytest.mark.parametrize("backend", BACKENDS)
STRATEGIES = ("portfolio", "walk", "rare", "pct", "dfs")
MANY = settings(max_examples=300, deadline=None, database=None, derandomize=True)


class BoomError(Exception):
    """What the programs below raise if their order is wrong."""


async def steps(count: int = 1) -> None:
    for _ in range(count):
        await anyio.lowlevel.checkpoint()


async def order_of(*counts: int) -> list[int]:
    """Return in which order tasks end that give way so often."""
    order: list[int] = []

    async def work(number: int, count: int) -> None:
        await steps(count)
        order.append(number)

    async with anyio.create_task_group() as group:
        for number, count in enumerate(counts, 1):
            group.start_soon(work, number, count)
    return order


async def lost_update() -> None:
    """Two tasks add one each; a switch between reading and writing loses one of them."""
    total = 0

    async def add() -> None:
        nonlocal total
        seen = total
        await steps()
        total = seen + 1

    async with anyio.create_task_group() as group:
        group.start_soon(add)
        group.start_soon(add)
    if total != 2:
        raise BoomError(total)


async def two_switches() -> None:
    """Two tasks only give way; it takes a switch to the second one and another one back to have them end in turns."""
    order: list[str] = []

    async def work(name: str) -> None:
        for _ in range(6):
            order.append(name)
            await steps()

    async with anyio.create_task_group() as group:
        group.start_soon(work, "x")
        group.start_soon(work, "y")
    if re.fullmatch("x+y+x+y+", "".join(order)):
        raise BoomError(order)


async def correct() -> None:
    assert sorted(await order_of(2, 2, 2)) == [1, 2, 3]


def found_by(function: Callable[..., Awaitable[Any]], *args: Any, **options: Any) -> Found:
    """Search, and return what was found."""
    report = explore(function, *args, **options)
    assert report.found is not None
    return report.found


# ------------------------------------------------------------------------------------------ searching


@both
@pytest.mark.parametrize("strategy", [*STRATEGIES, "fifo"])
def test_every_strategy_finds_a_lost_update(backend: Any, strategy: Any) -> None:
    """And all of them come to the same line."""
    found = found_by(lost_update, backend=backend, strategy=strategy, runs=200)
    assert isinstance(found.error, BoomError)
    assert len(found.replay.schedule.switches) == 1
    assert found.replay.backend == backend
    assert found.replay.cancel is None
    assert run_sim(lost_update, backend=backend, schedule=str(found.replay.schedule)).error is not None


@both
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_finds_what_takes_two_switches(backend: Any, strategy: Any) -> None:
    found = found_by(two_switches, backend=backend, strategy=strategy, runs=2_000)
    assert len(found.replay.schedule.switches) == 2
    assert found.switches >= 2
    assert found.shrinking > 0


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_is_found_is_the_same_on_both_backends(strategy: Any) -> None:
    first, second = (found_by(two_switches, backend=backend, strategy=strategy, runs=2_000) for backend in BACKENDS)
    assert first.run == second.run
    assert first.original == second.original
    assert first.replay.schedule == second.replay.schedule
    assert first.shrinking == second.shrinking
    assert first.result.trace == second.result.trace


@both
@pytest.mark.parametrize("strategy", [*STRATEGIES, "fifo"])
def test_a_correct_program_passes(backend: Any, strategy: Any) -> None:
    report = explore(correct, backend=backend, strategy=strategy, runs=30)
    assert report.found is None
    assert report.runs == 30
    assert report.backend == backend
    assert report.steps >= 30 * 9
    assert report.seconds > 0
    assert not report.exhausted
    report.unwrap()


@both
@pytest.mark.parametrize(("counts", "orders"), [((1, 1), 6), ((2, 2), 20), ((1, 1, 1), 90), ((0, 0, 0), 6)])
def test_depth_first_ends_by_itself(backend: Any, counts: tuple[int, ...], orders: int) -> None:
    """After every order has been run once; it does not look for more."""
    report = explore(order_of, *counts, backend=backend, strategy="dfs", runs=1_000)
    assert (report.runs, report.exhausted) == (orders, True)
    report = explore(order_of, *counts, backend=backend, strategy="dfs", runs=orders)
    assert (report.runs, report.exhausted) == (orders, True)
    report = explore(order_of, *counts, backend=backend, strategy="dfs", runs=orders - 1)
    assert (report.runs, report.exhausted) == (orders - 1, False)


def test_depth_first_that_finds_something_has_not_seen_everything() -> None:
    report = explore(lost_update, strategy="dfs", runs=1_000)
    assert report.found is not None
    assert not report.exhausted


@both
def test_a_portfolio_begins_with_the_plain_orders(backend: Any) -> None:
    """An event loop's own, and each task until it waits; after that seeds in a row, wherever they begin."""
    seen: list[Schedule] = []

    async def main() -> None:
        await order_of(3, 3)

    def spy(*args: Any, **options: Any) -> Any:
        seen.append(options["schedule"])
        return run_sim(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "run_sim", spy)
        explore(main, backend=backend, runs=10, seed=100)
    assert seen[:2] == [FIFO, RUN_TO_BLOCK]
    assert [schedule.seed for schedule in seen[2:]] == list(range(102, 110))
    assert {schedule.strategy for schedule in seen[2:]} == {"walk", "rare", "pct"}
    assert [portfolio(number, 100, 9).strategy for number in range(10)] == [schedule.strategy for schedule in seen]


@pytest.mark.parametrize("strategy", ["walk", "rare"])
def test_the_seed_says_where_to_begin(strategy: Any) -> None:
    """The run in which something is found is the first one of another search."""
    found = found_by(two_switches, strategy=strategy, runs=2_000)
    assert found.original == Schedule(strategy, found.run - 1, found.original.length)
    again = found_by(two_switches, strategy=strategy, runs=1, seed=found.original.seed)
    assert str(again.original) == str(found.original)
    assert again.replay == found.replay


@both
def test_the_search_goes_on_from_run_to_run_with_the_length_of_the_last_one(backend: Any) -> None:
    """`pct` needs to know about how many decisions there are."""
    report = explore(order_of, *[5] * 8, backend=backend, strategy="pct", runs=3)
    assert report.found is None
    long = run_sim(order_of, *[5] * 8, backend=backend, schedule="pct/1/64")
    assert long.decisions > 40


def test_arguments_go_to_the_function_and_options_to_the_simulation() -> None:
    seen: list[Any] = []

    async def main(*args: Any) -> None:
        seen.append((args, current_simulation().random.random()))

    explore(main, 1, "two", runs=3, seed=4, threads="inline", max_steps=50)
    assert {args for args, _ in seen} == {(1, "two")}
    assert len({drawn for _, drawn in seen}) == 1
    with pytest.raises(TypeError):
        explore(main, runs=1, no_such_option=1)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"runs": 0}, "a search needs at least 1 run: got 0"),
        ({"seed": -1}, "the seed of a search is not negative: got -1"),
        ({"runs": -3}, "a search needs at least 1 run: got -3"),
        (
            {"strategy": "best"},
            "the strategy of a search is one of portfolio, walk, rare, pct, fifo, dfs: got 'best'",
        ),
        ({"backend": "curio"}, "a simulation runs on one of asyncio, trio: got 'curio'"),
        ({"plan": "api"}, "a fault must read"),
    ],
)
def test_a_search_that_cannot_be_is_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=re.escape(told)):
        explore(correct, **options)


# ------------------------------------------------------------------------------------------ budget


def test_a_budget_ends_the_search_after_the_run_that_uses_it_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()
    monkeypatch.setattr(module, "SYSTEM", SimpleNamespace(monotonic=lambda: float(next(clock))))
    report = explore(correct, runs=1_000, budget=5.0)
    assert (report.runs, report.found) == (5, None)
    assert explore(correct, runs=3, budget=100.0).runs == 3
    assert explore(correct, runs=1_000, budget=0.0).runs == 1


def test_a_budget_does_not_hide_a_finding() -> None:
    report = explore(lost_update, runs=1_000, budget=0.0)
    assert report.found is not None
    assert len(report.found.replay.schedule.switches) == 1


@pytest.mark.parametrize(("name", "value"), [("SHRINK_RUNS", 0), ("SHRINK_SECONDS", -1.0)])
def test_shrinking_ends_in_time(monkeypatch: pytest.MonkeyPatch, name: str, value: float) -> None:
    """A failure is told soon, if not as short as can be."""
    monkeypatch.setattr(module, name, value)
    found = found_by(two_switches, strategy="walk", runs=2_000)
    assert found.shrinking == 0
    assert isinstance(found.error, BoomError)
    assert len(found.replay.schedule.switches) in {found.switches, 0}
    assert run_sim(two_switches, schedule=found.replay.schedule).error is not None


def test_a_few_runs_of_shrinking_keep_what_they_have_come_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHRINK_RUNS", 3)
    found = found_by(two_switches, strategy="walk", runs=2_000)
    assert found.shrinking == 3
    assert run_sim(two_switches, schedule=found.replay.schedule).error is not None


def test_shrinking_can_be_left_out() -> None:
    found = found_by(two_switches, strategy="walk", runs=2_000, shorten=False)
    assert found.shrinking == 0
    assert found.switches == len(found.replay.schedule.switches)
    assert found.original.strategy == "walk"
    assert run_sim(two_switches, schedule=found.original).error is not None


def test_a_line_that_would_be_too_long_is_that_of_the_seed() -> None:
    """If nothing can be taken away."""

    async def exact() -> None:
        order = await order_of(*[3] * 12)
        if order != sorted(order):
            raise BoomError

    found = found_by(exact, strategy="walk", seed=3, shorten=False)
    assert found.switches > 20
    assert str(found.replay) == "sim1:asyncio:walk/3"
    assert "shrunk" not in str(found)
    assert str(found).startswith("found on asyncio in run 1 (walk/3)\n")


# ------------------------------------------------------------------------------------------ what is found


@both
def test_notes_tell_how_to_bring_it_back(backend: Any) -> None:
    with pytest.raises(BoomError) as raised:
        explore(lost_update, backend=backend).unwrap()
    notes = raised.value.__notes__
    assert re.fullmatch(
        rf"found on {backend} in run 1 \(fifo\), shrunk from \d+ to 1 forced switch in \d+ runs?", notes[0]
    )
    assert notes[1].startswith("the steps, * where a switch was forced (")
    assert "0 is main" in notes[1]
    assert "is add" in notes[1]
    shown = [note for note in notes if re.match(r"  [* ] 0 s  task \d from ", note)]
    assert len([note for note in shown if note.startswith("  * ")]) == 1
    assert any(re.fullmatch(r"  \* 0 s  task \d from (start|add:\d+ in .*)", note) for note in shown)
    assert notes[-1].startswith(f"replay: AGENTCORE_SIM='sim1:{backend}:")
    report = explore(lost_update, backend=backend)
    assert report.found is not None
    assert str(report.found).splitlines() == notes == report.found.notes()


def test_notes_come_once() -> None:
    report = explore(lost_update)
    for _ in range(2):
        with pytest.raises(BoomError):
            report.unwrap()
    assert report.found is not None
    notes = report.found.error.__notes__
    assert len(notes) == len(set(notes))


def test_only_the_last_steps_are_shown() -> None:
    async def main() -> None:
        await steps(40)
        await lost_update()

    found = found_by(main)
    (head,) = [note for note in found.notes() if "steps, *" in note]
    total = len(found.result.trace)
    assert head.startswith(f"the last 12 of {total} steps, * where a switch was forced (")
    assert len([note for note in found.notes() if " from " in note and note.startswith("  ")]) == 12


@both
def test_what_fails_always_needs_no_switch(backend: Any) -> None:
    async def main() -> None:
        await order_of(2, 2)
        raise BoomError

    found = found_by(main, backend=backend)
    assert found.replay == Replay(backend, RUN_TO_BLOCK)
    assert "no switch is needed: it fails when each task runs until it has to wait" in found.notes()
    assert found.notes()[-1] == f"replay: AGENTCORE_SIM='sim1:{backend}:-'"


def test_run_to_block_is_told_by_its_name() -> None:
    report = explore(fails_in_a_row, runs=2)
    assert report.found is not None
    assert report.found.run == 2
    assert report.found.notes()[0] == "found on asyncio in run 2 (run to block)"


async def fails_in_a_row() -> None:
    """Each task must have gone on for as long as it can."""
    order: list[int] = []

    async def work(number: int) -> None:
        for _ in range(3):
            order.append(number)
            await steps()

    async with anyio.create_task_group() as group:
        group.start_soon(work, 1)
        group.start_soon(work, 2)
    if order == sorted(order):
        raise BoomError


def test_errors_stay_what_they_are() -> None:
    """Shrinking never slips from one failure to another one that takes fewer switches."""

    async def main() -> None:
        order = await order_of(1, 1, 1)
        if order == [2, 1, 3]:
            raise KeyError("two")
        if order != [1, 2, 3]:
            raise ValueError(order)

    kinds: dict[type[BaseException], Found] = {}
    for seed in range(60):
        found = explore(main, strategy="walk", seed=seed, runs=1).found
        if found is not None:
            assert type(run_sim(main, schedule=found.original).error) is type(found.error)
            assert type(run_sim(main, schedule=found.replay.schedule).error) is type(found.error)
            kinds[type(found.error)] = found
    assert set(kinds) == {KeyError, ValueError}
    assert len(kinds[KeyError].replay.schedule.switches) > len(kinds[ValueError].replay.schedule.switches)


def test_groups_stay_what_they_are() -> None:
    """The types inside of a group count too, and groups in groups."""

    async def fails(error: Exception) -> None:
        with anyio.CancelScope(shield=True):
            await steps()
        raise error

    async def main() -> None:
        order = await order_of(1, 1, 1)
        async with anyio.create_task_group() as group:
            if order[0] == 3:
                group.start_soon(fails, KeyError("three"))
            if order[-1] == 1:
                group.start_soon(fails, OSError("one"))

    kinds: dict[str, Found] = {}
    for seed in range(60):
        found = explore(main, strategy="walk", seed=seed, runs=1).found
        if found is not None:
            assert isinstance(found.error, ExceptionGroup)
            kinds["+".join(sorted(type(error).__name__ for error in found.error.exceptions))] = found
    assert set(kinds) == {"KeyError", "OSError", "KeyError+OSError"}
    for name, found in kinds.items():
        again = run_sim(main, schedule=found.replay.schedule).error
        assert isinstance(again, ExceptionGroup)
        assert "+".join(sorted(type(error).__name__ for error in again.exceptions)) == name


@both
def test_what_the_simulation_finds_is_shrunk_too(backend: Any) -> None:
    async def two_locks() -> None:
        first, second = anyio.Lock(), anyio.Lock()

        async def take(one: anyio.Lock, other: anyio.Lock) -> None:
            async with one:
                await steps()
                async with other:
                    await steps()

        async with anyio.create_task_group() as group:
            group.start_soon(take, first, second)
            group.start_soon(take, second, first)

    found = found_by(two_locks, backend=backend)
    assert isinstance(found.error, DeadlockError)
    assert len(found.replay.schedule.switches) == 1
    assert sum("Lock.__aenter__" in task.call for task in found.error.tasks) == 2


@both
def test_invariants_and_livelocks_are_shrunk_too(backend: Any) -> None:
    async def always() -> None:
        order: list[int] = []

        async def work(number: int) -> None:
            order.append(number)
            await steps()
            order.append(number)

        current_simulation().always(lambda: order != [1, 2], "never 1 before 2 in the middle of it")
        async with anyio.create_task_group() as group:
            group.start_soon(work, 1)
            group.start_soon(work, 2)

    found = found_by(always, backend=backend)
    assert isinstance(found.error, InvariantError)
    assert len(found.replay.schedule.switches) == 1

    async def endless() -> None:
        order = await order_of(1, 1)
        while order != [1, 2]:
            await steps()

    found = found_by(endless, backend=backend, max_steps=500)
    assert isinstance(found.error, LivelockError)


def test_an_error_that_nobody_looks_at_is_found() -> None:
    import asyncio  # noqa: PLC0415

    async def main() -> None:
        async def fails() -> None:
            raise BoomError

        task = asyncio.ensure_future(fails())
        await steps(2)
        del task

    found = found_by(main)
    assert isinstance(found.error, UnretrievedError)
    assert "BoomError" in str(found.error)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interruption_ends_the_search(error: type[BaseException]) -> None:
    runs: list[int] = []

    async def main() -> None:
        runs.append(1)
        raise error

    with pytest.raises(error):
        explore(main)
    assert len(runs) == 1


# ------------------------------------------------------------------------------------------ failures that do not come again


@both
def test_a_failure_that_does_not_come_again_is_one_of_its_own(backend: Any) -> None:
    runs: list[int] = []

    async def main() -> None:
        runs.append(1)
        await steps()
        if len(runs) == 3:
            raise BoomError("once")

    told = (
        rf"walk/2 on {backend} failed with BoomError\('once'\), and then, with the same schedule, gave None: something in "
        "the program does not come from the simulation; `assert_deterministic` names the first step that differs"
    )
    with pytest.raises(NondeterminismError, match=told) as raised:
        explore(main, backend=backend, strategy="walk")
    assert isinstance(raised.value.__cause__, BoomError)


def test_another_failure_than_before_is_none_of_the_same() -> None:
    runs: list[int] = []

    async def main() -> None:
        runs.append(1)
        raise (KeyError if len(runs) == 1 else ValueError)("here")

    told = (
        r"fifo on asyncio failed with KeyError\('here'\), and then, with the same schedule, gave ValueError\('here'\)"
    )
    with pytest.raises(NondeterminismError, match=told):
        explore(main)


def test_another_group_than_before_is_none_of_the_same() -> None:
    runs: list[int] = []

    async def main() -> None:
        runs.append(1)
        raise ExceptionGroup("here", [KeyError() if len(runs) == 1 else ValueError()])

    with pytest.raises(NondeterminismError):
        explore(main)


def test_depth_first_notices_that_a_program_is_not_the_same_each_time() -> None:
    runs: list[int] = []

    async def main() -> None:
        runs.append(1)
        await order_of(*[1] * (2 + len(runs) % 2))

    with pytest.raises((NondeterminismError, ValueError), match=r"does not (depend on its schedule|come from)"):
        explore(main, strategy="dfs").unwrap()


# ------------------------------------------------------------------------------------------ faults


class Api:
    """Two calls that may fail."""

    async def fetch(self) -> str:
        await steps()
        return "fetched"

    async def store(self) -> None:
        await steps()


TARGETS = {"api.fetch": (Api, "fetch"), "api.store": (Api, "store")}


async def needs_both() -> None:
    """Fails if the second fetch fails and a task is switched away from at the same time."""
    api, log = Api(), list[str]()

    async def fetches() -> None:
        for _ in range(3):
            try:
                log.append(await api.fetch())
            except InjectedFault:
                log.append("failed")
                await steps()
                log.append("went on")

    async def stores() -> None:
        try:
            await api.store()
        except InjectedFault:
            await api.store()
        log.append("stored")

    async with anyio.create_task_group() as group:
        group.start_soon(fetches)
        group.start_soon(stores)
    if "failed,stored,went on" in ",".join(log):
        raise BoomError(log)


@both
def test_a_plan_is_shrunk_together_with_the_switches(backend: Any) -> None:
    """What is left is the one fault and the one switch without which it does not fail."""
    plan = FaultPlan.parse(
        "api.fetch#2:raise(InjectedFault);api.fetch#3:delay(1.0);api.store#1:raise(InjectedFault);api.store#3:hang"
    )
    found = found_by(needs_both, backend=backend, plan=plan, targets=TARGETS, runs=2_000)
    assert [fault.action for fault in found.replay.plan if fault.target == "api.fetch"] == ["raise"]
    assert len(found.replay.plan) < len(plan)
    assert found.result.fired == tuple(map(str, found.replay.plan))
    assert f"faults: {', '.join(map(str, found.replay.plan))}" in found.notes()
    again = run_sim(
        needs_both, backend=backend, schedule=found.replay.schedule, plan=found.replay.plan, targets=TARGETS
    )
    assert isinstance(again.error, BoomError)
    for fault in found.replay.plan:
        fewer = found.replay.plan.without(fault)
        result = run_sim(needs_both, backend=backend, schedule=found.replay.schedule, plan=fewer, targets=TARGETS)
        assert result.error is None
    for switch in found.replay.schedule.switches:
        kept = Schedule(switches=[one for one in found.replay.schedule.switches if one != switch])
        result = run_sim(needs_both, backend=backend, schedule=kept, plan=found.replay.plan, targets=TARGETS)
        assert result.error is None


def test_a_plan_may_be_text_and_is_dropped_if_it_is_not_needed() -> None:
    found = found_by(lost_update, plan="api.fetch#1:raise;api.store#1:hang", targets=TARGETS)
    assert not found.replay.plan
    assert found.notes()[-1].count("::") == 0


def test_a_plan_without_a_shorter_one_is_kept_whole() -> None:
    plan = FaultPlan([Fault("api.fetch", 1), Fault("api.store", 1, "delay", 0.5)])
    found = found_by(needs_both, plan="api.fetch#2:raise", targets=TARGETS, shorten=False, runs=2_000)
    assert found.replay.plan == FaultPlan([Fault("api.fetch", 2)])
    assert explore(correct, plan=plan, targets=TARGETS, runs=5).found is None


def test_a_report_is_as_it_is_told() -> None:
    report = ExploreReport("trio", 1, 2, 3.0, exhausted=True, found=None)
    report.unwrap()
    assert (report.backend, report.runs, report.steps, report.seconds) == ("trio", 1, 2, 3.0)


# ------------------------------------------------------------------------------------------ shrinking by itself


def is_subsequence(part: Sequence[int], whole: Sequence[int]) -> bool:
    rest = iter(whole)
    return all(item in rest for item in part)


# Any of these sets of items is enough for a failure.
causes = st.lists(st.frozensets(st.integers(0, 15), max_size=5), min_size=1, max_size=4)


@MANY
@given(st.lists(st.integers(0, 15), max_size=40), causes)
@example([], [frozenset()])
@example([1], [frozenset({1})])
@example(list(range(16)), [frozenset(range(16))])
def test_shrinking_keeps_what_is_needed_and_nothing_else(extra: list[int], enough: list[frozenset[int]]) -> None:
    items = [*extra, *sorted(enough[0])]

    def fails(kept: list[int]) -> bool:
        return any(one <= set(kept) for one in enough)

    kept = shrink(items, fails)
    assert fails(kept)
    assert is_subsequence(kept, items)
    assert not any(fails([*kept[:index], *kept[index + 1 :]]) for index in range(len(kept)))
    # With causes that do not hang together, that is one of the sets.
    assert frozenset(kept) in enough
    assert len(kept) == len(set(kept))


@MANY
@given(st.integers(0, 12), st.integers(0, 2**32), st.floats(0.0, 1.0))
def test_shrinking_comes_to_an_end_that_cannot_be_shortened(count: int, salt: int, share: float) -> None:
    """Whatever fails: with switches, more of them may well succeed where fewer fail."""
    items = list(range(count))

    def fails(kept: list[int]) -> bool:
        return kept == items or (hash((salt, *kept)) % 1_000) / 1_000 < share

    kept = shrink(items, fails)
    assert fails(kept)
    assert is_subsequence(kept, items)
    assert not any(fails([*kept[:index], *kept[index + 1 :]]) for index in range(len(kept)))


@MANY
@given(st.lists(st.integers(0, 15), max_size=30, unique=True), st.integers(0, 20), causes)
def test_shrinking_may_be_broken_off(extra: list[int], most: int, enough: list[frozenset[int]]) -> None:
    """Then the shortest one so far is returned."""
    items, tried = [*extra, *sorted(enough[0] - set(extra))], list[list[int]]()

    def fails(kept: list[int]) -> bool:
        if len(tried) >= most:
            return False
        tried.append(kept)
        return any(one <= set(kept) for one in enough)

    kept = shrink(items, fails)
    assert any(one <= set(kept) for one in enough)
    assert is_subsequence(kept, items)
    assert len(kept) == min([len(items), *(len(one) for one in tried if any(want <= set(one) for want in enough))])


@MANY
@given(st.lists(st.integers(0, 99), min_size=1, max_size=200, unique=True), st.data())
def test_shrinking_to_one_of_many_is_quick(items: list[int], data: st.DataObject) -> None:
    """The number of runs grows with the logarithm of the items."""
    needed, runs = data.draw(st.sampled_from(items)), list[int]()

    def fails(kept: list[int]) -> bool:
        runs.append(1)
        return needed in kept

    assert shrink(items, fails) == [needed]
    assert len(runs) <= 3 * len(items).bit_length() + 3


def test_shrinking_does_not_ask_for_what_it_knows() -> None:
    """It never runs the whole again, and runs the empty list once."""
    asked: list[list[int]] = []

    def fails(kept: list[int]) -> bool:
        asked.append(kept)
        return {2, 5} <= set(kept)

    items = list(range(8))
    assert shrink(items, fails) == [2, 5]
    assert items not in asked
    assert asked.count([]) == 1
    assert shrink([], fails) == []
    assert items == list(range(8))


def test_the_module_has_the_names_that_the_facade_has() -> None:
    assert sys.modules["agentcore.testing"].explore is explore
    assert explore.__module__ == "agentcore.testing"
