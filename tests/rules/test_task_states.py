"""The table of a task's transitions."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from agentcore import BaseTask, TaskPriority, TaskState, TaskStateError
from agentcore._rules.task_states import INITIAL, TERMINAL, TRANSITIONS, allowed_transitions
from tests.core.fakes import task_in

PENDING, RUNNING, COMPLETED, FAILED, CANCELED = TaskState

# Every pair, written out: what is not in here is not allowed.
ALLOWED = {
    (PENDING, "start"): RUNNING,
    (PENDING, "fail"): FAILED,
    (PENDING, "cancel"): CANCELED,
    (RUNNING, "complete"): COMPLETED,
    (RUNNING, "fail"): FAILED,
    (RUNNING, "cancel"): CANCELED,
    (RUNNING, "retry"): PENDING,
}
NOW = datetime(2026, 1, 2, tzinfo=UTC)
ARGUMENTS: dict[str, tuple[object, ...]] = {"complete": ({},), "fail": ({},), "retry": ({}, NOW)}


def test_the_table_is_exactly_what_it_should_be() -> None:
    """Each transition leads from the states that allow it to one state."""
    table = {(state, name): target for name, ways in TRANSITIONS.items() for state, target in ways.items()}
    assert table == ALLOWED


def test_terminal_states_have_no_way_out() -> None:
    """Terminal is what no transition leaves."""
    assert {COMPLETED, FAILED, CANCELED} == TERMINAL
    assert PENDING is INITIAL


@pytest.mark.parametrize("state", TaskState)
def test_allowed_transitions_are_listed_in_order(state: TaskState) -> None:
    """The list for an error message is what the table has."""
    expected = [name for name in ("start", "complete", "fail", "cancel", "retry") if (state, name) in ALLOWED]
    assert expected == allowed_transitions(state)


def written(task: BaseTask) -> dict[str, object]:
    """Return the task as it is stored, but for the time that a running one takes: that goes on."""
    return task.to_dict() | {"duration_ms": None}


@pytest.mark.parametrize("name", ["start", "complete", "fail", "cancel", "retry"])
@pytest.mark.parametrize("state", TaskState)
def test_a_task_follows_the_table(state: TaskState, name: str) -> None:
    """A task goes where the table says or stays as it is; only `cancel` of what has ended is no error."""
    task = task_in(state)
    before = written(task)
    transition = getattr(task, name)
    arguments = ARGUMENTS.get(name, ())
    if (state, name) in ALLOWED:
        assert transition(*arguments) is task
        assert ALLOWED[state, name] is task.state
    elif name == "cancel":
        assert transition(*arguments) is task
        assert before == written(task)
    else:
        with pytest.raises(TaskStateError) as caught:
            transition(*arguments)
        assert allowed_transitions(state) == caught.value.details["allowed"]
        assert before == written(task)


def test_values_and_order_are_stable() -> None:
    """What is stored and compared: names of states, values of priorities."""
    assert ["pending", "running", "completed", "failed", "canceled"] == [str(state) for state in TaskState]
    assert [0, 1, 2, 3] == list(TaskPriority)
    assert ["LOW", "NORMAL", "HIGH", "CRITICAL"] == [priority.name for priority in TaskPriority]


def test_a_new_task_is_in_the_initial_state() -> None:
    """Where the table begins, a task does."""
    assert BaseTask.create("work").state is INITIAL
