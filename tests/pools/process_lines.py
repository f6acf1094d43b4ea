"""How a test and its jobs in other processes wait for each other, and how it sees what is left of them."""

from __future__ import annotations

import os
import select
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import anyio

LIMIT = 20.0
"""Seconds after which something that should happen at once will not."""


class Line:
    """A named pipe. A job writes to it with `process_jobs.say` and reads from it with `process_jobs.hear`.

    Args:
        path: where it is made.
    """

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = str(path)
        # Both ends, so that neither side ever waits for the other to open it.
        self._descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        self._rest = b""

    def say(self, text: object = "", times: int = 1) -> None:
        os.write(self._descriptor, f"{text}\n".encode() * times)

    async def heard(self) -> str:
        """Wait for the next line of a job."""
        with anyio.fail_after(LIMIT):
            while b"\n" not in self._rest:
                await anyio.wait_readable(self._descriptor)
                self._rest += os.read(self._descriptor, 4096)
        return self._next()

    def hear(self) -> str:
        """Wait for the next line of a job, in this thread."""
        while b"\n" not in self._rest:
            assert select.select([self._descriptor], [], [], LIMIT)[0], "nothing was said"
            self._rest += os.read(self._descriptor, 4096)
        return self._next()

    def is_silent(self) -> bool:
        """Tell whether nothing has been said that was not heard."""
        return not self._rest and not select.select([self._descriptor], [], [], 0)[0]

    def close(self) -> None:
        os.close(self._descriptor)

    def _next(self) -> str:
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode()


class Lines:
    """Two lines for jobs that meet the test: they say that they have begun, and go on when the gate is opened."""

    def __init__(self, folder: Path) -> None:
        self.begun = Line(folder / "begun")
        self.gate = Line(folder / "gate")

    @property
    def paths(self) -> tuple[str, str]:
        return self.begun.path, self.gate.path

    def close(self) -> None:
        self.gate.say(times=50)  # whoever still waits, because the test has failed
        self.begun.close()
        self.gate.close()


@contextmanager
def watched(process: int) -> Generator[int]:
    """Have a descriptor that can be read from as soon as a process has ended."""
    descriptor = os.pidfd_open(process)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


async def wait_for_end(watch: int) -> None:
    """Wait for the end of a `watched` process."""
    with anyio.fail_after(LIMIT):
        await anyio.wait_readable(watch)


def has_ended(watch: int, within: float = LIMIT) -> bool:
    """Wait for the end of a `watched` process, in this thread; tell whether it came."""
    return bool(select.select([watch], [], [], within)[0])


def exists(process: int) -> bool:
    """Tell whether there is anything left of a process, be it that nobody has asked for its exit code."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def children() -> set[int]:
    """Return the processes that this one has started, those included whose exit code nobody has asked for."""
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        try:
            found.update(map(int, (task / "children").read_text().split()))
        except FileNotFoundError:
            continue  # the thread has just ended
    return found


def open_files() -> dict[str, str]:
    """Return what descriptors this process has and what they stand for."""
    found: dict[str, str] = {}
    for entry in list(Path("/proc/self/fd").iterdir()):  # by then the one by which they are read is closed
        try:
            found[entry.name] = str(entry.readlink())
        except FileNotFoundError:
            continue
    return found
