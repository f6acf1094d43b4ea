"""The end of the interpreter, in real processes: no thread of a pool holds it up."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
BEGIN = """
import sys, threading, time
import anyio
from agentcore import *

begun = threading.Event()

def stuck():
    begun.set()
    threading.Event().wait(60)

def mark():
    print(time.monotonic(), flush=True)
"""
both = pytest.mark.parametrize("backend", ["asyncio", "trio"])


def run(program: str) -> tuple[float, str, int]:
    """Run a program; return the seconds from its mark to its end, what it complained of, and its exit code."""
    process = subprocess.Popen(
        [sys.executable, "-c", BEGIN + textwrap.dedent(program)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        output, errors = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    end = time.monotonic()  # the clock of the machine: one for all processes
    assert output, errors
    return end - float(output), errors, process.returncode


def check_exit(program: str, deadline: float = 0.0, *, code: int = 0, complaint: str = "") -> None:
    """The program ends by itself, in time. A machine that is busy with other things gets two further chances for the time."""
    for _ in range(3):
        took, errors, found = run(program)
        assert (found, errors.strip()) == (code, complaint)
        if took < deadline + 0.5:
            return
    pytest.fail(f"the end took {took:.2f} s")


@both
def test_a_stuck_thread_after_the_end_of_a_runtime(backend: str) -> None:
    """The deadline, and half a second at most."""
    check_exit(
        f"""
        async def main():
            async with AgentRuntime(grace=0.2) as runtime:
                runtime.pool("pool", "thread").submit(stuck)
                begun.wait()
                mark()
        anyio.run(main, backend={backend!r})
        """,
        0.2,
        complaint="worker pool 'pool' was shut down before these jobs had ended: stuck",
    )


def test_a_stuck_thread_of_a_pool_with_a_limit() -> None:
    check_exit(
        """
        async def main():
            async with ThreadWorkerPool("pool", ThreadWorkerPoolConfig(shutdown_timeout=0.1)) as pool:
                pool.submit(stuck)
                begun.wait()
                mark()
        anyio.run(main, backend="trio")
        """,
        0.1,
        complaint="worker pool 'pool' was shut down before these jobs had ended: stuck",
    )


def test_a_stuck_thread_whose_caller_has_left() -> None:
    check_exit("""
        pool = ThreadWorkerPool("pool", ThreadWorkerPoolConfig(workers=1, max_abandoned=9))

        async def late():
            try:
                await pool.asubmit(stuck, timeout=0.05)
            except WorkerTimeoutError:
                pass

        async def cancelled():
            with anyio.move_on_after(0.05):
                await pool.options(abandon_on_cancel=True).asubmit(stuck)

        for backend in ("asyncio", "trio"):
            for caller in (late, cancelled):
                begun.clear()
                anyio.run(caller, backend=backend)
                assert begun.is_set()
        mark()
    """)


def test_pools_that_are_never_shut_down() -> None:
    """Unused, idle, with a watch, with a worker that has gone. Without jobs they have no thread."""
    check_exit("""
        pools = [
            ThreadWorkerPool("pool", ThreadWorkerPoolConfig(idle_timeout=None, max_jobs_per_worker=most))
            for most in (None, None, None, 1)
        ]
        assert threading.enumerate() == [threading.main_thread()]
        for pool in pools[1:]:
            assert pool.submit(abs, -1).result() == 1
        assert pools[2].submit(abs, -1, timeout=60).result() == 1
        mark()
    """)


def test_a_pool_that_is_never_shut_down_and_has_jobs() -> None:
    check_exit("""
        pool = ThreadWorkerPool("pool", ThreadWorkerPoolConfig(workers=1, task_timeout=60))
        pool.submit(stuck)
        begun.wait()
        pool.submit(print, "never")
        mark()
    """)


def test_jobs_that_run_on_while_the_interpreter_ends() -> None:
    """They are busy with Python code until the last moment, which is no reason to complain or to crash."""
    check_exit(
        """
        def spin():
            begun.set()
            while True:
                sum(range(100))

        pool = ThreadWorkerPool("pool", ThreadWorkerPoolConfig(workers=3))
        for _ in range(3):
            pool.submit(spin, timeout=60)
        begun.wait()
        mark()
        """,
        0.5,
    )


@both
def test_the_main_task_leaves_by_an_exit(backend: str) -> None:
    """Out of the loop in whose host the pool lives."""
    check_exit(
        f"""
        async def main():
            pool = await get_worker_pool("pool", "thread")
            assert await pool.asubmit(abs, -1) == 1
            pool.submit(stuck)
            begun.wait()
            mark()
            sys.exit(3)
        anyio.run(main, backend={backend!r})
        """,
        code=3,
        complaint="worker pool 'pool' was shut down before these jobs had ended: stuck",
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_has_pools_of_its_own() -> None:
    """That its parent has used one is no obstacle."""
    check_exit("""
        import os, warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        pool = ThreadWorkerPool("pool")
        assert pool.submit(abs, -1).result() == 1
        child = os.fork()
        if child == 0:
            sys.exit(ThreadWorkerPool("other").submit(abs, -5).result(5))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5
        assert pool.submit(abs, -2).result() == 2
        mark()
    """)
