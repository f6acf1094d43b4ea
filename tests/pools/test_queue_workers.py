"""Pools for coroutines: who runs what waits. Jobs of one step, jobs that wait, and what either leaves behind."""

from __future__ import annotations

import asyncio
import gc
import logging
import weakref
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from agentcore import QueueWorkerPool
from agentcore.testing import simulate
from tests.pools.coroutines import Boom, Door, Kind, Pool, both_kinds, configured, counts, double, nothing, turns

pytestmark = pytest.mark.anyio

native = pytest.mark.parametrize("anyio_backend", [("asyncio", {"debug": True})], ids=["asyncio"])


def workers() -> list[asyncio.Task[Any]]:
    """Return the tasks of the workers of the pool ``p``."""
    return [task for task in asyncio.all_tasks() if task.get_name() == "worker of pool p"]


# Who comes.


async def test_one_worker_is_enough_for_jobs_of_one_step() -> None:
    """However many there are: none of them keeps it from the next one."""
    async with QueueWorkerPool("p", configured(workers=8)) as pool:
        for _ in range(200):
            pool.submit_nowait(nothing)
        await turns(20)
        assert ({"succeeded": 200}, 1) == (counts(pool.metrics), pool.metrics.workers)


async def test_a_worker_that_has_to_wait_calls_the_next_one() -> None:
    """Until all jobs run, or all workers do; also those that have been there before."""
    async with QueueWorkerPool("p", configured(workers=5)) as pool:
        for number in (3, 5, 9):
            door = Door()
            for who in range(number):
                pool.submit_nowait(door, who)
            await anyio.wait_all_tasks_blocked()
            assert min(number, 5) == door.inside == pool.metrics.workers
            door.opened.set()
            await anyio.wait_all_tasks_blocked()
            assert list(range(number)) == sorted(door.left)


async def test_jobs_of_one_step_behind_jobs_that_wait() -> None:
    """What can be done is done, and what comes while a worker is at the queue is not forgotten."""
    async with QueueWorkerPool("p", configured(workers=2)) as pool:
        door, later = Door(), Door()

        async def submit() -> None:
            pool.submit_nowait(nothing)
            pool.submit_nowait(later)
            pool.submit_nowait(nothing)

        pool.submit_nowait(door)
        pool.submit_nowait(submit)
        await anyio.wait_all_tasks_blocked()
        assert {"succeeded": 2, "running": 2, "queued": 1} == counts(pool.metrics)
        later.opened.set()
        await anyio.wait_all_tasks_blocked()
        assert {"succeeded": 4, "running": 1} == counts(pool.metrics)
        door.opened.set()


@simulate(runs=30)
async def test_no_job_waits_while_a_worker_is_free() -> None:
    """In any order of submitting, waiting, and ending."""

    async def job(pool: QueueWorkerPool, depth: int) -> None:
        if depth:
            pool.submit_nowait(job, pool, depth - 1)
            await pool.submit(nothing)
        await anyio.sleep(1)

    async with QueueWorkerPool("p", configured(workers=3)) as pool, anyio.create_task_group() as group:
        for _ in range(2):
            group.start_soon(pool.submit, job, pool, 2)
            group.start_soon(pool.asubmit, double, 1)
        while (metrics := pool.metrics).succeeded < 12:
            await anyio.sleep(0.25)
            assert not (pool.metrics.queued and pool.metrics.running < 3)
    assert 12 == metrics.succeeded


@native
@pytest.mark.parametrize("when", ["before its first step", "while it is called"])
async def test_the_worker_that_was_called_is_cancelled(when: str, anyio_backend: Any) -> None:
    """By asyncio's own ways: another one comes."""
    async with QueueWorkerPool("p", configured(workers=3)) as pool:
        if when == "while it is called":
            await pool.asubmit(nothing)
            await anyio.wait_all_tasks_blocked()
            pool.submit_nowait(nothing)
        else:
            pool.submit_nowait(nothing)
        for worker in workers():
            worker.cancel()
        for _ in range(3):
            pool.submit_nowait(nothing)
        await anyio.wait_all_tasks_blocked()
        assert (0, 0) == (pool.metrics.queued, pool.metrics.running)
        assert 2 == await pool.asubmit(double, 1)


# What is seen.


@both_kinds
async def test_a_job_of_one_step_is_seen_while_it_runs(kind: Kind) -> None:
    """By itself, for nobody else has a turn meanwhile; afterwards it has been counted."""
    seen: list[Any] = []

    async def look(pool: Pool) -> None:
        metrics = pool.metrics
        seen.append((metrics.running, metrics.succeeded, sum(metrics.wait_histogram), sum(metrics.run_histogram)))
        seen.append([info.function.rpartition(".")[2] for info in pool.jobs()])

    async with kind("p", configured()) as pool:
        for _ in range(2):
            pool.submit_nowait(look, pool)
    assert [(1, 0, 1, 0), ["look"], (1, 1, 2, 1), ["look"]] == seen


@both_kinds
async def test_a_function_that_raises_stop_iteration(kind: Kind) -> None:
    """Before there is a coroutine: a failure as any other, and not the end of one."""
    given: list[BaseException] = []

    def stop() -> Any:
        raise StopIteration(1)

    async with kind("p", configured(on_error=given.append)) as pool:
        pool.submit_nowait(stop)
    assert ([StopIteration], {"failed": 1}) == ([type(error) for error in given], counts(pool.metrics))


# What is left.


class Thing:
    """Something that a job is given."""


async def take(thing: Thing, *, is_waiting: bool, is_failing: bool) -> None:
    """Have something, and return or raise."""
    if is_waiting:
        await anyio.lowlevel.checkpoint()
    if is_failing:
        raise Boom(repr(thing))


@both_kinds
@pytest.mark.parametrize("is_waiting", [False, True], ids=["one step", "waiting"])
@pytest.mark.parametrize("is_failing", [False, True], ids=["returns", "raises"])
async def test_nothing_is_left_for_the_collector(kind: Kind, is_waiting: bool, is_failing: bool) -> None:
    """A job that has ended is gone, with what it was given; its context, which knows it, too."""
    logging.disable()  # a record keeps the traceback
    gc.collect()
    gc.disable()
    try:
        async with kind("p", configured()) as pool:
            thing = Thing()
            gone = weakref.ref(thing)
            pool.submit_nowait(take, thing, is_waiting=is_waiting, is_failing=is_failing)
            del thing
            await anyio.wait_all_tasks_blocked()
            assert {"failed" if is_failing else "succeeded": 1} == counts(pool.metrics)
            assert gone() is None
    finally:
        gc.enable()
        logging.disable(logging.NOTSET)
