"""The pure parts of thread pools against simple models: the queue of jobs, the deadlines, and what can wait for what."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import Context
from typing import Any, Self

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentcore import TaskPriority
from agentcore import _interop as interop_module
from agentcore.pools._jobs import SETTLED, Job, JobQueue, name_of
from agentcore.pools._manager import Manager
from tests.pools.thread_helpers import LIMIT, Hold, thread_pool, until


def job_of(priority: int = TaskPriority.NORMAL, timeout: float | None = None) -> Job:
    return Job(print, (), {}, Context(), priority, timeout)


# The queue.

steps = st.lists(
    st.one_of(
        st.tuples(st.just("push"), st.sampled_from(list(TaskPriority))),
        st.tuples(st.just("push many"), st.sampled_from(list(TaskPriority))),
        st.tuples(st.just("pop"), st.just(0)),
        st.tuples(st.just("settle"), st.integers(0, 10_000)),
        st.tuples(st.just("settle many"), st.integers(0, 10_000)),
    ),
    max_size=60,
)


class Model:
    """All jobs that wait, in a plain list."""

    def __init__(self) -> None:
        self.queue = JobQueue()
        self.waiting: list[Job] = []

    def push(self, priority: TaskPriority) -> None:
        job = job_of(priority)
        self.queue.push(job)
        self.waiting.append(job)

    def pop(self) -> None:
        expected = max(self.waiting, key=lambda job: job.priority, default=None)  # the first of the most urgent ones
        assert self.queue.pop() is expected
        if expected is not None:
            expected.state = SETTLED
            self.waiting.remove(expected)

    def settle(self, number: int) -> None:
        if self.waiting:
            job = self.waiting.pop(number % len(self.waiting))
            job.state = SETTLED
            self.queue.discard()

    def check(self) -> None:
        assert len(self.queue) == len(self.waiting)
        expected = sorted(self.waiting, key=lambda job: -job.priority)
        assert self.queue.take_all() == expected
        kept = sum(len(band) for band in self.queue._bands)
        assert kept <= 2 * len(self.waiting) + 66, "what was settled goes away in time"


@settings(max_examples=150, deadline=None)
@given(steps)
def test_the_queue_is_a_sorted_list(given_steps: list[tuple[str, Any]]) -> None:
    """Urgent ones first, otherwise in their order, and what was settled in it never comes out."""
    model = Model()
    for step, what in given_steps:
        times = 40 if step.endswith("many") else 1
        for number in range(times):
            if step.startswith("push"):
                model.push(what)
            elif step.startswith("settle"):
                model.settle(what + number)
            else:
                model.pop()
        model.check()
    while model.waiting:
        model.pop()
    assert model.queue.pop() is None
    assert len(model.queue) == 0


def test_cancelled_jobs_take_no_room() -> None:
    """A hundred thousand of them behind one that runs: only a few are still there."""
    hold = Hold()
    with thread_pool(workers=1) as pool:
        pool.submit(hold.stay)
        hold.wait_until_begun()
        last = pool.submit(str, 1)
        for number in range(20_000):
            assert pool.submit(str, number).cancel()
        assert sum(len(band) for band in pool._queue._bands) < 100
        assert pool.metrics.queued == 1
        hold.release()
        assert last.result(LIMIT) == "1"


# The deadlines.


class Watched:
    """A manager whose jobs expire in here."""

    def __init__(self, check: Callable[[], float | None] = lambda: None) -> None:
        self.expired: list[Job] = []
        self.manager = Manager("watch", self.expired.append, check)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.manager.stop()
        self.manager.join()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.integers(0, 20) | st.just(10_000), max_size=30))
def test_deadlines_pass_in_order(milliseconds: list[int]) -> None:
    """Each once, none before its time, and those that are far away not at all."""
    with Watched() as watched:
        jobs = [job_of(timeout=one / 1000) for one in milliseconds]
        for job in jobs:
            watched.manager.add(job, len(jobs))
        due = [job for job, one in zip(jobs, milliseconds, strict=True) if one < 10_000]
        until(lambda: len(watched.expired) >= len(due))
        now = interop_module.monotonic()
    assert set(watched.expired) == set(due)
    assert len(watched.expired) == len(due)
    assert all(job.deadline is not None and job.deadline <= now for job in watched.expired)


def test_deadlines_that_are_added_late_and_come_early() -> None:
    with Watched() as watched:
        far, near = job_of(timeout=1000), job_of(timeout=0.005)
        watched.manager.add(far, 2)
        watched.manager.add(near, 2)
        until(lambda: watched.expired == [near])


def test_deadlines_of_settled_jobs_are_forgotten() -> None:
    """A million of them leave nothing behind."""
    with Watched() as watched:
        waiting = [job_of(timeout=1000) for _ in range(10)]
        for job in waiting:
            watched.manager.add(job, 10)
        for _ in range(5_000):
            job = job_of(timeout=1000)
            watched.manager.add(job, 11)
            job.state = SETTLED
        assert len(watched.manager._deadlines) < 200
        assert {entry[2] for entry in watched.manager._deadlines} >= set(waiting)


def test_jobs_with_timeouts_leave_nothing_behind() -> None:
    with thread_pool(workers=1) as pool:
        for number in range(2_000):
            assert pool.submit(str, number, timeout=1000).result(LIMIT) == str(number)
        assert pool._manager is not None
        assert len(pool._manager._deadlines) < 200


def test_the_watch_looks_as_often_as_it_is_asked_to() -> None:
    looks, enough = list[int](), threading.Event()

    def look() -> float | None:
        looks.append(1)
        if len(looks) == 5:
            enough.set()
            return None
        return 0.001

    with Watched(look):
        assert enough.wait(LIMIT)


def test_the_watch_ends_at_once() -> None:
    with Watched(lambda: 1000) as watched:
        watched.manager.add(job_of(timeout=1000), 1)
    assert watched.expired == []


def test_a_pool_without_limits_has_no_watch() -> None:
    with thread_pool(workers=1) as pool:
        assert pool.submit(str, 1).result(LIMIT) == "1"
        assert pool._manager is None
        assert pool.submit(str, 1, timeout=LIMIT).result(LIMIT) == "1"
        assert pool._manager is not None


# Names.


def test_what_functions_are_called() -> None:
    from functools import partial  # noqa: PLC0415 - looked at here alone

    class Tool:
        def __call__(self) -> None: ...
        def use(self) -> None: ...

    assert name_of(print) == "print"
    assert name_of(partial(partial(print, 1), 2)) == "print"
    assert name_of(Tool().use).endswith("Tool.use")
    assert name_of(Tool()).endswith("Tool")
    assert name_of(Tool).endswith("Tool")
    assert name_of(lambda: None).endswith("<lambda>")
