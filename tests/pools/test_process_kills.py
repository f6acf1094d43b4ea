"""Workers are killed at any moment: that costs the job which each of them has begun, and nothing else."""

from __future__ import annotations

import itertools
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from agentcore import ProcessWorkerPool, ProcessWorkerPoolConfig, WorkerCrashedError, WorkerTimeoutError
from tests.pools import process_jobs as jobs
from tests.pools.process_lines import LIMIT, Lines, children, exists, wait_for_end, watched

pytestmark = pytest.mark.anyio

CALLERS = 12
WORKERS = 3


class Load:
    """Callers that have one job done after another while workers are killed.

    Args:
        pool: does the jobs.
        diary: file in which each job writes that it has begun.
    """

    def __init__(self, pool: ProcessWorkerPool, diary: Path) -> None:
        self.pool = pool
        self.diary = diary
        self.done: set[int] = set()
        self.crashed: dict[int, int] = {}
        self.is_over = False
        self._numbers = itertools.count()

    async def call(self) -> None:
        while not self.is_over:
            number = next(self._numbers)
            try:
                assert number == await self.pool.asubmit(jobs.note, str(self.diary), number, 20_000)
            except WorkerCrashedError as error:
                self.crashed[number] = error.details["exit_code"]
            else:
                self.done.add(number)

    def begun(self) -> list[tuple[int, int]]:
        """Return the jobs that have begun, each with its process, in their order."""
        return [(int(number), int(process)) for number, process in map(str.split, self.diary.read_text().splitlines())]


def kill_some(load: Load, kills: int, chance: random.Random) -> None:
    """Kill workers that have begun something, at moments that have nothing to do with what they do."""
    seen, killed, at = set[int](), set[int](), 0
    with load.diary.open() as diary:
        while len(killed) < kills:
            time.sleep(chance.random() * 0.01)
            diary.seek(at)
            whole = diary.read().rpartition("\n")[0]
            at += len(whole)
            seen |= {int(line.split()[1]) for line in whole.splitlines() if line}
            seen = (seen - killed) & children()
            if seen:
                victim = chance.choice(sorted(seen))
                os.kill(victim, signal.SIGKILL)  # there, if only as what is left of it: nobody else kills here
                killed.add(victim)


@pytest.mark.parametrize("kills", [20, pytest.param(2000, marks=pytest.mark.campaign)])
async def test_kills_cost_what_has_begun(tmp_path: Path, kills: int) -> None:
    """No job is lost, none is done twice, nobody waits for ever."""
    diary = tmp_path / "diary"
    diary.touch()
    pool = ProcessWorkerPool("killed", ProcessWorkerPoolConfig(workers=WORKERS))
    load = Load(pool, diary)
    with anyio.fail_after(LIMIT + kills * 0.5):
        async with pool, anyio.create_task_group() as group:
            for _ in range(CALLERS):
                group.start_soon(load.call)
            await anyio.to_thread.run_sync(kill_some, load, kills, random.Random(kills))
            load.is_over = True
    times = Counter(number for number, _ in load.begun())
    assert {1} == set(times.values()), "a job was begun twice"
    assert load.done <= set(times), "a job has a result that was never begun"
    assert set(times) <= load.done | set(load.crashed)
    assert load.done | set(load.crashed) == set(range(len(load.done) + len(load.crashed)))
    assert len(load.crashed) <= kills
    assert set(load.crashed.values()) <= {-signal.SIGKILL}
    metrics = pool.metrics
    assert (len(load.done), len(load.crashed)) == (metrics.succeeded, metrics.crashed)
    assert (0, 0, 0, 0, 0) == (metrics.queued, metrics.running, metrics.failed, metrics.cancelled, metrics.workers)


@pytest.fixture(autouse=True)
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers start as fast as elsewhere while these tests are measured: of what is killed nothing would come anyway."""
    for name in [name for name in os.environ if name.startswith("COVERAGE")]:
        monkeypatch.delenv(name)


@pytest.fixture
def lines(tmp_path: Path) -> Iterator[Lines]:
    lines = Lines(tmp_path)
    yield lines
    lines.close()


async def test_idle_worker_that_is_killed_costs_no_job() -> None:
    """The next job is given to another one; also if the first has not even died yet."""
    async with ProcessWorkerPool("idle", ProcessWorkerPoolConfig(workers=1)) as pool:
        for is_dead in (True, False):
            first = await pool.asubmit(jobs.pid)
            with watched(first) as worker:
                os.kill(first, signal.SIGKILL)
                if is_dead:
                    await wait_for_end(worker)
                with anyio.fail_after(LIMIT):
                    second = await pool.asubmit(jobs.pid)
            assert first != second
            assert not exists(first)
        assert (4, 0, 0) == (pool.metrics.succeeded, pool.metrics.crashed, pool.metrics.failed)


async def test_worker_that_is_killed_twice_while_it_starts_costs_no_job(lines: Lines, tmp_path: Path) -> None:
    """The initializer has begun, the job has not."""
    before = children()
    config = ProcessWorkerPoolConfig(workers=1, initializer=jobs.meet, initargs=lines.paths)
    async with ProcessWorkerPool("starting", config) as pool:
        future = pool.submit(jobs.note, str(tmp_path / "diary"), 7, 1)
        for _ in range(2):
            os.kill(int(await lines.begun.heard()), signal.SIGKILL)
        third = int(await lines.begun.heard())
        lines.gate.say()
        with anyio.fail_after(LIMIT):
            assert 7 == await future
        assert f"7 {third}\n" == (tmp_path / "diary").read_text()
        assert {third} == children() - before
        assert (1, 0) == (pool.metrics.succeeded, pool.metrics.crashed)


async def test_job_that_no_worker_begins_is_given_up() -> None:
    """Three have died with it in their hands, before they began; the pool goes on."""
    settings = ProcessWorkerPoolConfig(workers=1, initializer=jobs.refuse_to_begin)
    async with ProcessWorkerPool("refusing", settings) as pool:
        for _ in range(2):
            with anyio.fail_after(LIMIT), pytest.raises(WorkerCrashedError, match="got exit code 4;"):
                await pool.asubmit(jobs.pid)
        assert ("open", 2) == (pool.state, pool.metrics.crashed)


async def test_stopped_worker_is_killed_by_the_timeout(lines: Lines) -> None:
    """It hears of nothing else."""
    async with ProcessWorkerPool("stopped", ProcessWorkerPoolConfig(workers=1, task_timeout=2.0)) as pool:
        future = pool.submit(jobs.meet, *lines.paths)
        stopped = int(await lines.begun.heard())
        with watched(stopped) as worker:
            os.kill(stopped, signal.SIGSTOP)
            with pytest.raises(WorkerTimeoutError, match="ran for longer than the task_timeout of its pool") as caught:
                await future
            assert "worker" == caught.value.details["phase"]
            await wait_for_end(worker)
        assert stopped != await pool.asubmit(jobs.pid)
