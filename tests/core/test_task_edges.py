"""What tasks do at the edges: races, timeouts at odd moments, other processes, subclasses, unusable values."""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from inspect import CORO_CLOSED, getcoroutinestate
from types import MappingProxyType
from typing import Any, ClassVar

import anyio
import attrs
import pytest

from agentcore import (
    BaseTask,
    ConfigurationError,
    TaskError,
    TaskFactory,
    TaskPriority,
    TaskState,
    TaskStateError,
    TaskTimeoutError,
    _tasks,
)
from agentcore._interop import SYSTEM, use_sources
from agentcore.testing import simulate
from tests.core.fakes import hanging, raising, task_in


@attrs.define(kw_only=True, eq=False)
class Parcel(BaseTask):
    """A task with a field of its own."""

    weight: int = 1


def test_history_is_a_copy() -> None:
    """Whoever changes what they were given changes nothing in the task."""
    task = BaseTask.create("work", {}).start().checkpoint({"page": 1})
    task.get_event_history()[0].clear()
    task.get_event_history().clear()
    latest = task.get_latest_checkpoint()
    assert latest is not None
    latest["page"] = 99
    assert (len(task.get_event_history()), task.get_latest_checkpoint()) == (2, {"page": 1})


def test_of_racing_ends_one_wins() -> None:
    """When several threads end a task at once, one does, and the others are told and change nothing."""
    ends: dict[str, Callable[[BaseTask], BaseTask]] = {
        "task_completed": lambda task: task.complete({"by": "complete"}),
        "task_failed": lambda task: task.fail({"by": "fail"}),
    }
    barrier = threading.Barrier(8)

    def end(task: BaseTask, number: int) -> bool:
        barrier.wait(30)
        try:
            list(ends.values())[number % 2](task)
        except TaskStateError:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        for _ in range(50):
            task = task_in(TaskState.RUNNING)
            won = list(threads.map(functools.partial(end, task), range(8)))
            assert sum(won) == 1
            assert (task.output is None) is (won.index(True) % 2 == 1)
            assert (task.error is None) is (won.index(True) % 2 == 0)
            last = list(ends)[won.index(True) % 2]
            assert [event["event_type"] for event in task.get_event_history()] == ["task_started", last]


@pytest.mark.anyio
@pytest.mark.parametrize("error", [ValueError("its own"), TimeoutError("its own"), TaskTimeoutError("another's")])
async def test_errors_of_the_coroutine_pass(error: Exception) -> None:
    """What the coroutine raises comes out as it is, a TimeoutError of its own included."""
    with pytest.raises(type(error)) as caught:
        await BaseTask.create("work").with_timeout(raising(error)(), 60_000)
    assert caught.value is error


@simulate(runs=5)
async def test_which_timeout_holds() -> None:
    """The override goes before the task's own timeout, and without both there is no limit."""
    quick, free = BaseTask.create("work", timeout_ms=5000), BaseTask.create("work")
    with pytest.raises(TaskTimeoutError):
        await quick.with_timeout(hanging())
    assert anyio.current_time() == 5
    assert await quick.with_timeout(anyio.sleep(59), 60_000) is None
    assert anyio.current_time() == 64
    with anyio.move_on_after(3600) as scope:
        await free.with_timeout(hanging())
    assert (scope.cancelled_caught, anyio.current_time()) == (True, 3664)


@simulate(runs=5)
async def test_outer_deadline_is_not_the_tasks() -> None:
    """When the caller's scope ends first, that is a cancellation and no timeout of the task."""
    with anyio.move_on_after(59) as scope:
        await BaseTask.create("work").with_timeout(hanging(), 60_000)
    assert (scope.cancelled_caught, anyio.current_time()) == (True, 59)


@simulate(runs=5)
async def test_result_at_the_last_moment_is_kept() -> None:
    """A coroutine that shields its last step past the deadline still gives its result."""

    async def stubborn() -> str:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(7)
        return "done"

    assert await BaseTask.create("work").with_timeout(stubborn(), 5000) == "done"
    assert anyio.current_time() == 7


@pytest.mark.anyio
@pytest.mark.parametrize("timeout", [-1, float("nan"), "5", True])
async def test_unusable_timeout_closes_the_coroutine(timeout: Any) -> None:
    """A timeout that cannot be used is an error that names it, and the coroutine is not left behind."""
    coroutine = hanging()
    with pytest.raises(ConfigurationError, match=r"timeout.*got") as caught:
        await BaseTask.create("work").with_timeout(coroutine, timeout)  # type: ignore[arg-type]
    assert repr(timeout) in str(caught.value)
    assert getcoroutinestate(coroutine) == CORO_CLOSED  # type: ignore[arg-type]


@pytest.mark.anyio
async def test_function_instead_of_a_coroutine() -> None:
    """Who forgets to call the function is told so."""
    with pytest.raises(TypeError, match="call"):
        await BaseTask.create("work").with_timeout(hanging, 5)  # type: ignore[arg-type]


@pytest.mark.parametrize("state", TaskState)
def test_round_trip_through_json(state: TaskState) -> None:
    """A task written as JSON and read again is the same in everything that it tells."""
    task = task_in(state)
    if not task.is_finished:
        task.checkpoint({"page": 3})
    written = json.loads(json.dumps(task.to_dict()))
    read = BaseTask.from_dict(written)
    assert read.to_dict() | {"duration_ms": 0} == task.to_dict() | {"duration_ms": 0}
    assert (read.state, read.get_event_history()) == (state, task.get_event_history())
    assert (written["priority"], "schema_version" in written) == ("NORMAL", True)


def test_a_task_that_was_read_goes_on() -> None:
    """A running task that another process takes over checks its transitions and counts its events on."""
    read = BaseTask.from_dict(task_in(TaskState.RUNNING).checkpoint({"page": 3}).to_dict())
    assert read.get_latest_checkpoint() == {"page": 3}
    with pytest.raises(TaskStateError):
        read.start()
    read.complete({"done": 1})
    assert [event["sequence"] for event in read.get_event_history()] == [1, 2, 3]


def test_subclass_keeps_its_fields() -> None:
    """Fields of a subclass are set by keyword, survive the round trip, and tell tasks from one another."""
    parcel = Parcel.create("deliver", {"to": "Oslo"}, weight=7, priority=TaskPriority.LOW)
    read = Parcel.from_dict(json.loads(json.dumps(parcel.to_dict())))
    assert (type(read), read.weight, read.priority) == (Parcel, 7, TaskPriority.LOW)
    assert parcel.start() is parcel


def test_subclass_without_the_decorator() -> None:
    """A subclass that forgets attrs' decorator is told so, by its name, instead of losing its fields."""

    class Forgotten(BaseTask):
        weight: int = 1

    with pytest.raises(TypeError, match=r"Forgotten.*attrs"):
        Forgotten.create("deliver")


@pytest.mark.parametrize(
    "change",
    [
        {"state": "dreaming"},
        {"priority": "URGENT"},
        {"schema_version": 999},
        {"schema_version": "new"},
        {"events": [{"sequence": "first"}]},
        {"created_at": "yesterday"},
        {"type": None},
    ],
    ids="-".join,
)
def test_unreadable_task(change: dict[str, Any]) -> None:
    """A task that cannot be read is one typed error that says what is wrong."""
    with pytest.raises(TaskError, match=r"task"):
        BaseTask.from_dict(task_in(TaskState.RUNNING).to_dict() | change)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("type", ""),
        ("type", None),
        ("input", ["no", "mapping"]),
        ("priority", "urgent"),
        ("priority", 99),
        ("priority", True),
        ("timeout_ms", -1),
        ("timeout_ms", float("nan")),
        ("timeout_ms", 0.5),
        ("timeout_ms", float("inf")),
        ("id", ""),
        ("id", None),
        ("id", 7),
        ("trace_id", 7),
        ("parent_id", b"7"),
    ],
)
def test_unusable_field(field: str, value: object) -> None:
    """A field that cannot be used is an error that names it and the value."""
    values: dict[str, Any] = {"type": "work", "input": {}, field: value}
    with pytest.raises(ConfigurationError, match=field) as caught:
        TaskFactory.create_task(**values)
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize("value", [None, 5, "text", [("a", 1)]])
@pytest.mark.parametrize("call", ["complete", "fail", "checkpoint"])
def test_unusable_data(call: str, value: Any) -> None:
    """What is no mapping is refused, and the task stays as it was."""
    task = task_in(TaskState.RUNNING)
    with pytest.raises(ConfigurationError, match="mapping"):
        getattr(task, call)(value)
    assert (task.state, task.output, task.error, len(task.events)) == (TaskState.RUNNING, None, None, 1)


def test_history_is_bounded() -> None:
    """A task that saves its progress a thousand times keeps the newest, under their own numbers."""
    task = task_in(TaskState.RUNNING)
    for page in range(1000):
        task.checkpoint({"page": page})
    assert task.get_latest_checkpoint() == {"page": 999}
    history = task.get_event_history()
    assert (history[-1]["sequence"], history[-1]["data"]) == (1001, {"page": 999})
    assert (len(history) < 1000, len(task.checkpoints) < 1000) == (True, True)
    numbers = [event["sequence"] for event in history]
    assert numbers == list(range(numbers[0], 1002))


def test_finished_task_takes_no_checkpoint() -> None:
    """Progress cannot be saved once the task has ended."""
    task = task_in(TaskState.COMPLETED)
    with pytest.raises(TaskStateError, match="COMPLETED"):
        task.checkpoint({"page": 1})
    assert task.get_latest_checkpoint() is None


def test_duration() -> None:
    """The duration is absent before the start, never falls, and stands still after the end."""
    task = BaseTask.create("work")
    assert (task.duration_ms, task_in(TaskState.CANCELED).duration_ms is None) == (None, False)
    assert BaseTask.create("work").fail({"why": "late"}).duration_ms is None
    task.start()
    seen = [task.duration_ms or 0 for _ in range(100)]
    assert seen == sorted(seen)
    task.complete({})
    assert task.duration_ms == task.duration_ms


@pytest.mark.parametrize("interrupted", ["writer", "reader"])
def test_duration_in_the_middle_of_the_end(interrupted: str) -> None:
    """A duration that one thread reads while another one ends the task is one of a few milliseconds."""
    task = BaseTask.create("work")
    seen: list[int | None] = []
    meet: list[Callable[[], object]] = []

    def monotonic() -> float:
        if meet:
            other = threading.Thread(target=copy_context().run, args=[meet.pop()])
            other.start()
            # A thread that waits for the one in the middle is right to; it goes on when that one is through.
            if not _tasks._transition._is_owned():  # type: ignore[attr-defined]
                other.join(30)
            threads.append(other)
        return next(clock)

    threads: list[threading.Thread] = []
    clock = iter(1000.0 + number / 1000 for number in range(100))
    with use_sources(attrs.evolve(SYSTEM, monotonic=monotonic)):
        task.start()
        read, end = (lambda: seen.append(task.duration_ms)), (lambda: task.complete({}))
        meet.append(read if interrupted == "writer" else end)
        (end if interrupted == "writer" else read)()
    for thread in threads:
        thread.join(30)
    assert [duration is not None and 0 <= duration < 100 for duration in seen] == [True]


def test_inputs_are_not_shared() -> None:
    """Tasks made without input do not share one."""
    one, other = BaseTask.create("work"), BaseTask.create("work")
    one.input["key"] = one.metadata["key"] = 1
    assert (other.input, other.metadata) == ({}, {})


def test_ids_are_unique_across_threads() -> None:
    """Eight threads that make tasks at once never make the same id twice."""
    with ThreadPoolExecutor(8) as threads:
        batches = list(threads.map(lambda _: [BaseTask.create("work").id for _ in range(500)], range(8)))
    assert len({name for batch in batches for name in batch}) == 4000


def test_factory_with_defaults() -> None:
    """A factory's subclass decides what is made, and the call goes before its defaults."""

    class Parcels(TaskFactory):
        task_class = Parcel
        defaults = {"timeout_ms": 30_000, "weight": 5}  # noqa: RUF012 - as its docstring shows

    made = Parcels.create_task("deliver", {"to": "Oslo"}, weight=6)
    assert isinstance(made, Parcel)
    assert (made.weight, made.timeout_ms) == (6, 30_000)


def test_whole_timeout_that_is_a_float() -> None:
    """A timeout of 500.0 milliseconds is one of 500."""
    task = BaseTask.create("work", timeout_ms=500.0)
    assert (500, int) == (task.timeout_ms, type(task.timeout_ms))


@pytest.mark.anyio
async def test_unusable_timeout_of_something_without_close() -> None:
    """What can be awaited and cannot be closed is left alone when the timeout cannot be used."""

    class Awaitable:
        def __await__(self) -> Iterator[None]:
            raise AssertionError("unreachable")

    with pytest.raises(ConfigurationError, match="timeout_override_ms"):
        await BaseTask.create("work").with_timeout(Awaitable(), -1)  # type: ignore[arg-type]


def test_mappings_become_dictionaries() -> None:
    """A mapping of another kind is as good as a dictionary wherever one is taken."""
    mapping = MappingProxyType({"key": 1})
    task = BaseTask.create("work", mapping, metadata=mapping).start()
    task.checkpoint(mapping).complete(mapping)
    assert [{"key": 1}] * 4 == [task.input, task.metadata, task.output, task.get_latest_checkpoint()]


def test_events_never_exceed_their_limit() -> None:
    """The end of a task that has saved its progress often is one of its events, and not one too many."""
    task = task_in(TaskState.RUNNING)
    for page in range(400):
        task.checkpoint({"page": page})
        assert len(task.events) <= BaseTask.max_events
    task.complete({})
    assert (BaseTask.max_events, 402) == (len(task.events), task.events[-1].sequence)
    assert ["task_checkpoint", "task_completed"] == [event.event_type for event in task.events[-2:]]


def test_limits_of_ones_own() -> None:
    """A subclass says how much it keeps, and may keep no progress at all."""

    @attrs.define(kw_only=True, eq=False)
    class Forgetful(BaseTask):
        max_checkpoints: ClassVar[int] = 0
        max_events: ClassVar[int] = 3

    task = Forgetful.create("work").start()
    for page in range(9):
        task.checkpoint({"page": page})
    task.complete({})
    assert ((), None) == (task.checkpoints, task.get_latest_checkpoint())
    assert [9, 10, 11] == [event.sequence for event in task.events]
    assert [] == task.to_dict()["checkpoints"]


def test_defaults_of_a_factory_are_not_shared() -> None:
    """What one task makes of the factory's defaults is not seen by the next one."""

    class Marked(TaskFactory):
        defaults: ClassVar[dict[str, Any]] = {"metadata": {"owner": "me"}}

    Marked.create_task("work").metadata["changed"] = True
    assert {"owner": "me"} == Marked.create_task("work").metadata
    assert {"metadata": {"owner": "me"}} == Marked.defaults


def test_defaults_of_a_factory_are_not_shared_however_deep() -> None:
    """That holds for what the defaults contain as well, and for lists."""

    @attrs.define(kw_only=True, eq=False)
    class Tagged(BaseTask):
        tags: list[str] = attrs.field(factory=list)

    class Tagging(TaskFactory):
        task_class = Tagged
        defaults: ClassVar[dict[str, Any]] = {"tags": ["a"], "metadata": {"seen": []}}

    first = Tagging.create_task("work")
    assert isinstance(first, Tagged)
    first.tags.append("b")
    first.metadata["seen"].append("b")
    second = Tagging.create_task("work")
    assert isinstance(second, Tagged)
    assert (["a"], {"seen": []}) == (second.tags, second.metadata)


@pytest.mark.parametrize("priority", [TaskPriority.HIGH, "HIGH", "high", TaskPriority.HIGH.value])
def test_ways_to_write_a_priority(priority: Any) -> None:
    """A priority may be given as the member, its name in any case, or its value."""
    assert BaseTask.create("work", priority=priority).priority is TaskPriority.HIGH


def test_repr_of_a_task() -> None:
    """A task shows what it is and how far it has come."""
    task = BaseTask.create("deliver", id="p-1").start()
    assert "<BaseTask p-1 of type 'deliver', RUNNING, attempt 1>" == repr(task)
