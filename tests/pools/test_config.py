"""What worker pools are configured with: what is accepted, what is refused, and with which words."""

from __future__ import annotations

import copy
import math
import os
import pickle
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentcore import (
    AsyncioWorkerPool,
    BaseWorkerPool,
    ConfigurationError,
    CoreError,
    ProcessWorkerPool,
    ProcessWorkerPoolConfig,
    QueueWorkerPool,
    QueueWorkerPoolConfig,
    ThreadWorkerPool,
    ThreadWorkerPoolConfig,
    WorkerPoolConfig,
    WorkerPoolType,
)

CONFIGS: tuple[type[WorkerPoolConfig], ...] = (
    WorkerPoolConfig,
    ThreadWorkerPoolConfig,
    ProcessWorkerPoolConfig,
    QueueWorkerPoolConfig,
)
POOLS: dict[type[BaseWorkerPool], type[WorkerPoolConfig]] = {
    ThreadWorkerPool: ThreadWorkerPoolConfig,
    ProcessWorkerPool: ProcessWorkerPoolConfig,
    QueueWorkerPool: QueueWorkerPoolConfig,
    AsyncioWorkerPool: QueueWorkerPoolConfig,
}
# What each number may be: whole or not, whether 0 will do, whether None means something.
NUMBERS: dict[str, tuple[bool, bool, bool]] = {
    "workers": (True, False, True),
    "max_queue_size": (True, False, False),
    "task_timeout": (False, False, True),
    "idle_timeout": (False, True, True),
    "shutdown_timeout": (False, True, True),
    "max_abandoned": (True, True, True),
    "max_jobs_per_worker": (True, False, True),
    "start_timeout": (False, False, True),
}

configs = pytest.mark.parametrize("config", CONFIGS)
numbers = pytest.mark.parametrize(
    ("config", "name"),
    [(config, name) for config in CONFIGS for name in NUMBERS if name in attrs.fields_dict(config)],
)


def refused(config: type[WorkerPoolConfig], **settings: Any) -> ConfigurationError:
    """Return the error that these settings are."""
    with pytest.raises(ConfigurationError) as caught:
        config(**settings)
    return caught.value


# Numbers.


def test_no_number_is_forgotten() -> None:
    """Every field that takes numbers is in the table above."""
    found = {field.name for config in CONFIGS for field in attrs.fields(config)}
    assert found - set(NUMBERS) == {"initializer", "initargs", "propagate", "on_error"}


@numbers
@settings(deadline=None, max_examples=50)
@given(data=st.data())
def test_numbers_that_are_accepted(config: type[WorkerPoolConfig], name: str, data: st.DataObject) -> None:
    """They are kept as they are."""
    whole, zero, none = NUMBERS[name]
    least: float = 0 if zero else (1 if whole else 1e-9)
    values: st.SearchStrategy[Any] = st.integers(min_value=1 if not zero else 0, max_value=10**17 if whole else 10**9)
    if not whole:
        values |= st.floats(min_value=least, max_value=1e9)
    value = data.draw(values | st.none() if none else values)
    made = config(**{name: value})
    kept = getattr(made, name)
    assert (value, type(value)) == (kept, type(kept))
    assert made == pickle.loads(pickle.dumps(made)) == copy.deepcopy(made)
    assert hash(made) == hash(copy.copy(made))


@numbers
@settings(deadline=None, max_examples=50)
@given(data=st.data())
def test_numbers_that_are_refused(config: type[WorkerPoolConfig], name: str, data: st.DataObject) -> None:
    """With the name, the rule and the value; the error is of ours, and travels."""
    whole, zero, none = NUMBERS[name]
    wrong: st.SearchStrategy[Any] = (
        st.integers(max_value=-1 if zero else 0)
        | st.integers(min_value=10**18)
        | st.floats(max_value=-1e-9)
        | st.sampled_from([math.nan, math.inf, -math.inf, True, False, "3", "", [], b"1", 3 + 0j])
    )
    if whole:
        wrong |= st.floats()
    if not none:
        wrong |= st.none()
    value = data.draw(wrong)
    error = refused(config, **{name: value})
    assert isinstance(error, CoreError)
    number = "a whole number" if whole else "a number of seconds"
    bound = "1 or more" if whole and not zero else "0 or more" if zero else "more than 0"
    assert str(error).startswith(f"{name} of a worker pool must be {number}, {bound}")
    assert ": got " in str(error)
    assert str(error).endswith("; use a whole number" if whole else "; use None for no limit")
    assert name == error.details["name"]
    assert str(error) == str(pickle.loads(pickle.dumps(error)))


@pytest.mark.parametrize("value", [0, -1, 1.0, True, "4"])
def test_the_text_for_workers(value: object) -> None:
    assert (f"workers of a worker pool must be a whole number, 1 or more: got {value!r}; use a whole number") == str(
        refused(WorkerPoolConfig, workers=value)
    )


# Functions and names.


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (ThreadWorkerPoolConfig, "initializer"),
        (ProcessWorkerPoolConfig, "initializer"),
        (QueueWorkerPoolConfig, "on_error"),
    ],
)
@pytest.mark.parametrize("value", ["print", 3, (), {}])
def test_functions_are_checked(config: type[WorkerPoolConfig], name: str, value: object) -> None:
    assert f"{name} of a worker pool must be a function: got {value!r}; pass one, or None" == str(
        refused(config, **{name: value})
    )
    assert getattr(config(**{name: print}), name) is print
    assert getattr(config(), name) is None


@pytest.mark.parametrize("config", [ThreadWorkerPoolConfig, ProcessWorkerPoolConfig])
def test_initargs_are_a_tuple(config: type[ThreadWorkerPoolConfig]) -> None:
    """Whatever they were given as, so that the configuration stays as it is."""
    assert () == config().initargs
    assert (1, "two") == config(initargs=[1, "two"]).initargs  # type: ignore[arg-type]


@pytest.mark.parametrize("value", ["trace_id", ["trace_id"], ("trace_id", ""), (1,), None])
def test_names_to_propagate(value: object) -> None:
    text = str(refused(ProcessWorkerPoolConfig, propagate=value))
    assert text.startswith("propagate of a worker pool must be names of context variables: got ")
    assert text.endswith("; write ('trace_id', 'task_id')")
    assert () == ProcessWorkerPoolConfig(propagate=()).propagate
    assert ("trace_id", "task_id") == ProcessWorkerPoolConfig().propagate


# As a whole.


@configs
def test_a_configuration_stays_as_it_is(config: type[WorkerPoolConfig]) -> None:
    """It is compared by what it says, takes keywords alone, and no wrong ones."""
    made = config(workers=3)
    assert config(workers=3) == made != config(workers=4)
    assert attrs.has(config)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        made.workers = 4  # type: ignore[misc]
    with pytest.raises(TypeError):
        config(3)  # type: ignore[call-arg, misc]
    with pytest.raises(TypeError, match="worker"):
        config(worker=3)  # type: ignore[call-arg]
    with pytest.raises(ConfigurationError):
        attrs.evolve(made, workers=0)
    assert f"{config.__name__}(workers=3, max_queue_size=1000," in repr(made)


def test_the_defaults() -> None:
    made = WorkerPoolConfig()
    assert (None, 1000, None, 60.0, None) == attrs.astuple(made)
    assert (None, 1000, None, 60.0, None) == attrs.astuple(QueueWorkerPoolConfig())[:5]
    assert 30.0 == ProcessWorkerPoolConfig().start_timeout


def test_how_many_workers_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as this process may use; where jobs mostly wait at least 16."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    assert [6, 6, 6, 16] == [config().size for config in CONFIGS]
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(40)), raising=False)
    assert [40] * 4 == [config().size for config in CONFIGS]
    assert [3] * 4 == [config(workers=3).size for config in CONFIGS]
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert [1, 1, 1, 16] == [config().size for config in CONFIGS]


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("config", [*CONFIGS, None])
def test_what_a_pool_takes(pool: type[BaseWorkerPool], config: type[WorkerPoolConfig] | None) -> None:
    """The plain one, its own kind's, none; the pool's own is always of its kind."""
    own = POOLS[pool]
    if config not in {own, WorkerPoolConfig, None}:
        assert config is not None
        with pytest.raises(ConfigurationError) as caught:
            pool("p", config(workers=3))
        assert (f"config of worker pool 'p' must be a WorkerPoolConfig or a {own.__name__}: got {config(workers=3)!r}")[
            :200
        ] in str(caught.value)
        assert str(caught.value).endswith(f"; write {own.__name__}(workers=...)")
        return
    made = pool("p", None if config is None else config(workers=3, max_queue_size=7))
    assert type(made.config) is own
    assert ((None, 1000) if config is None else (3, 7)) == (made.config.workers, made.config.max_queue_size)


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("wrong", [3, "thread", {"workers": 3}, WorkerPoolConfig])
def test_what_no_pool_takes(pool: type[BaseWorkerPool], wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match="config of worker pool 'p' must be a WorkerPoolConfig or a "):
        pool("p", wrong)


def test_a_kind_of_ones_own() -> None:
    """A class below one of the kinds' is one of that kind."""

    @attrs.frozen(kw_only=True)
    class Own(QueueWorkerPoolConfig):
        colour: str = "red"

    made = QueueWorkerPool("p", Own(workers=2))
    assert Own(workers=2) == made.config
    with pytest.raises(ConfigurationError):
        ThreadWorkerPool("p", Own())


# Types.


@pytest.mark.parametrize("member", WorkerPoolType)
def test_types_by_their_values(member: WorkerPoolType) -> None:
    """In any case, and a member is one of its own."""
    for value in (member, member.value, member.value.upper(), member.name):
        assert WorkerPoolType.of(value) is member
    assert member.name.lower() == member.value == str(member)


@settings(deadline=None)
@given(st.text() | st.integers() | st.none() | st.floats() | st.lists(st.integers()))
def test_other_types_are_refused(value: object) -> None:
    if isinstance(value, str) and value.lower() in set(WorkerPoolType):
        return
    with pytest.raises(ConfigurationError) as caught:
        WorkerPoolType.of(value)
    assert str(caught.value).startswith(
        "type of a worker pool must be one of 'thread', 'process', 'asyncio', 'queue_asyncio', 'executor', 'dask': got "
    )
    assert str(caught.value).endswith("; pass a member of WorkerPoolType")
    assert {"name", "value"} == set(caught.value.details)
