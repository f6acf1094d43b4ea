"""A program with a process pool, in a process of its own; what it does is the first argument."""

from __future__ import annotations

import os
import signal
import sys
import threading

import anyio

from agentcore import ProcessWorkerPool, ProcessWorkerPoolConfig, RemoteTraceback
from tests.pools import process_jobs as jobs
from tests.pools.process_lines import LIMIT

LOADED = os.getpid()
CONFIG = ProcessWorkerPoolConfig(workers=1)


class Point:
    """A class of the main module."""

    def __init__(self, x: int) -> None:
        self.x = x


class MainError(Exception):
    """An error of the main module."""


def say(*texts: object) -> None:
    sys.stdout.write(" ".join(map(str, texts)) + "\n")
    sys.stdout.flush()


def move(point: Point) -> Point:
    assert type(point) is Point
    return Point(point.x + 1)


def fail(point: Point) -> None:
    raise MainError(point)


def where() -> tuple[int, int, str, bool]:
    """Tell in which process this runs and the module was loaded, and what it is called there."""
    return os.getpid(), LOADED, __name__, sys.modules["__main__"] is sys.modules["__mp_main__"]


def use_main() -> None:
    """Functions and classes of this very module."""
    with ProcessWorkerPool("own", CONFIG) as pool:
        point = pool.submit(move, Point(1)).result(LIMIT)
        say("moved", type(point) is Point, point.x)
        first, second = (pool.submit(where).result(LIMIT) for _ in range(2))
        say("loaded once", first == second, first[0] == first[1] != os.getpid(), *first[2:])
        try:
            pool.submit(fail, Point(7)).result(LIMIT)
        except MainError as error:
            say("raised", type(error.args[0]) is Point, isinstance(error.__cause__, RemoteTraceback))


def be_interrupted(begun: str, gate: str) -> None:
    """Ctrl-C in the terminal, which all processes of the program are told of."""
    heard = threading.Event()
    signal.signal(signal.SIGINT, lambda *_: heard.set())
    with ProcessWorkerPool("own", CONFIG) as pool:
        future = pool.submit(jobs.meet, begun, gate, "unharmed")
        while not heard.is_set():
            signal.pause()
        say("heard")
        say(future.result(LIMIT), pool.submit(jobs.pid).result(LIMIT))


def be_interrupted_by_default(begun: str, gate: str, backend: str) -> None:
    """Ctrl-C, and nobody has said what that means."""

    async def main() -> None:
        async with ProcessWorkerPool("own", CONFIG) as pool:
            await pool.asubmit(jobs.spin, begun)

    try:
        anyio.run(main, backend=backend)
    except KeyboardInterrupt:
        say("interrupted")


def be_killed(begun: str) -> None:
    """Leave several workers behind that hear of nothing, and a child that knows all that this process knows."""
    pool = ProcessWorkerPool("own", ProcessWorkerPoolConfig(workers=3))
    futures = [pool.submit(jobs.spin, begun) for _ in range(3)]
    sys.stdin.readline()
    if not os.fork():
        say("forked")
        signal.pause()
    futures[0].result()


def leave(begun: str, gate: str) -> None:
    """End without a word to the pool, which is at something."""
    pool = ProcessWorkerPool("own", ProcessWorkerPoolConfig(workers=1))
    pool.submit(jobs.spin, begun)
    sys.stdin.readline()


def leave_loop(begun: str, gate: str, backend: str) -> None:
    """The loop ends while a job of a pool of it runs."""
    from agentcore import get_worker_pool  # noqa: PLC0415 - what the test is about

    async def main() -> None:
        pool = await get_worker_pool("own", "process", CONFIG)
        assert isinstance(pool, ProcessWorkerPool)
        pool.submit(jobs.spin, begun)
        await anyio.to_thread.run_sync(sys.stdin.readline)

    anyio.run(main, backend=backend)
    say("over")


def fork(begun: str, gate: str) -> None:
    """Fork while a pool is at something; the other one ends as programs do, and this one goes on."""
    pool = ProcessWorkerPool("own", CONFIG)
    future = pool.submit(jobs.meet, begun, gate, "unharmed")
    sys.stdin.readline()
    child = os.fork()
    if not child:
        sys.exit(5)
    say("child", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    say(future.result(LIMIT))
    # One that lives longer than the workers, and has this side of their lines open.
    child = os.fork()
    if not child:
        signal.pause()
    with pool:
        first = pool.submit(jobs.pid).result(LIMIT)
        os.kill(first, signal.SIGKILL)
        say("next", first != pool.submit(jobs.pid).result(LIMIT))
    say(pool.state)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def fork_first(begun: str, gate: str) -> None:
    """A program that forks has pools of its own in both processes."""
    with ProcessWorkerPool("parent", CONFIG) as pool:
        pool.submit(jobs.pid).result(LIMIT)
        child = os.fork()
        if not child:
            with ProcessWorkerPool("child", CONFIG) as own:
                os._exit(own.submit(jobs.double, 4).result(LIMIT))
        say("child", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        say(pool.submit(jobs.double, 5).result(LIMIT))


if __name__ == "__main__":
    WHAT = {
        "use main": use_main,
        "be interrupted": be_interrupted,
        "be interrupted by default": be_interrupted_by_default,
        "be killed": be_killed,
        "leave": leave,
        "leave loop": leave_loop,
        "fork": fork,
        "fork first": fork_first,
    }
    WHAT[sys.argv[1]](*sys.argv[2:])
