"""What tests of thread pools share: jobs that wait for the test, pools that end with it, waits that cannot hang."""

from __future__ import annotations

import threading
import time
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import anyio
import anyio.to_thread

from agentcore import ThreadWorkerPool, ThreadWorkerPoolConfig, WorkerPoolMetrics

T = TypeVar("T")

LIMIT: Final = 10.0
"""Seconds after which a wait counts as hung. No test that passes waits for so long."""
SOON: Final = 0.02
"""Seconds, for timeouts that are meant to pass."""
AWHILE: Final = 0.1
"""Seconds, for those that are meant to pass while a job runs: it must have begun by then."""


class Hold:
    """A job that notes that it has begun and stays until the test releases it."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.released = threading.Event()
        self.ended = threading.Event()

    def stay(self, value: Any = None) -> Any:
        """Be the job."""
        self.begun.set()
        try:
            assert self.released.wait(LIMIT), "nobody has released the job"
        finally:
            self.ended.set()
        return value

    def release(self) -> None:
        self.released.set()

    def wait_until_begun(self) -> None:
        """Wait in a thread, or in a loop that has nothing else to do."""
        assert self.begun.wait(LIMIT), "the job has not begun"

    async def begins(self) -> None:
        """Wait in an event loop."""
        await heard(self.begun)


async def heard(event: threading.Event) -> None:
    """Wait for an event of a thread."""
    assert await anyio.to_thread.run_sync(event.wait, LIMIT), "the event has not come"


def until(condition: Callable[[], Any]) -> None:
    """Wait for what no event tells, in a thread."""
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end, "that has not come"
        time.sleep(0.0005)


async def soon(condition: Callable[[], Any]) -> None:
    """Wait for what no event tells, in an event loop."""
    await anyio.to_thread.run_sync(until, condition)


@contextmanager
def thread_pool(name: str = "pool", **config: Any) -> Generator[ThreadWorkerPool]:
    """A pool that is drained in the end, in bounded time, and leaves no thread."""
    config.setdefault("shutdown_timeout", LIMIT)
    before = set(threading.enumerate())
    pool = ThreadWorkerPool(name, ThreadWorkerPoolConfig(**config))
    with pool:
        yield pool
    until(lambda: not (threads_of(name) - before))


def threads_of(name: str) -> set[threading.Thread]:
    """Return the threads of the pools of that name, without those that were there before; see `know_others`."""
    return {thread for thread in threading.enumerate() if thread.name.startswith(f"{name}-")} - _others


_others: set[threading.Thread] = set()


def know_others() -> None:
    """Count from now on: whatever an earlier test has left behind is not this one's."""
    _others.clear()
    _others.update(threading.enumerate())


class Caller:
    """A thread of the program's own that calls something; the test looks at what it came to."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self.value: Any = None
        self.error: BaseException | None = None
        self._function = function
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.value = self._function()
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            self.error = error

    @property
    def is_over(self) -> bool:
        return not self._thread.is_alive()

    def join(self) -> Any:
        """Wait for the end, and return or raise what it came to."""
        self._thread.join(LIMIT)
        assert not self._thread.is_alive(), "it hangs"
        if self.error is not None:
            raise self.error
        return self.value


def guarded(function: Callable[[], T]) -> T:
    """Call what might hang: in a thread, with a limit."""
    result: T = Caller(function).join()
    return result


def in_loop(function: Callable[[], Awaitable[T]], backend: str) -> T:
    """Run a coroutine function in an event loop of its own, in a thread, with a limit."""

    async def main() -> T:
        return await function()

    return guarded(lambda: anyio.run(main, backend=backend))


def counts(metrics: WorkerPoolMetrics, *names: str) -> dict[str, int]:
    """Return those numbers that are not 0, or the named ones."""
    known = ("succeeded", "failed", "timed_out", "cancelled", "crashed", "rejected")
    found = {name: getattr(metrics, name) for name in names or known}
    return {name: value for name, value in found.items() if names or value}
