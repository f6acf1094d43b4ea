"""Programs in processes of their own, held by both ends: requests, signals and what they say.

Nothing is timed. A test waits for a line of the output, for a connection or for its end; `LIMIT` is for what hangs.
"""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

ROOT = Path(__file__).parent.parent.parent
INT, TERM = signal.SIGINT, signal.SIGTERM
LIMIT = 30
"""Seconds after which a test that waits in vain fails."""

# What no host may print, however it ends.
NOISE = re.compile(
    r"Task was destroyed|never retrieved|never awaited|TrioInternalError|[Cc]ancel scope|different task|Exception ignored"
    r"|async_generator_asend|asynchronous generator is already running|GeneratorExit|ResourceWarning|loop is closed"
)

Answer = tuple[int, dict[str, Any]]


def needs(*modules: str) -> pytest.MarkDecorator:
    """Return the mark of what can run only where these are installed."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


def until(condition: Callable[[], bool], what: str) -> None:
    """Ask again until a condition holds that sends no word of it: the end of a process that is not ours to wait for."""
    end = time.monotonic() + LIMIT
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"in vain: {what}")
        time.sleep(0.005)


def status_of(process: int) -> str:
    """Return what a process does: R for running, S for waiting."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]


def alive(group: int) -> list[int]:
    """Return the processes of a group that run; not those that have ended, but whose parent has not noticed yet."""
    found = []
    for place in Path("/proc").glob("[0-9]*/stat"):
        try:
            status, _parent, of = place.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(of) == group and status not in "ZX":
            found.append(int(place.parent.name))
    return found


class Work:
    """One piece of work under way in the program: it does what the test says."""

    def __init__(self, name: str, connection: socket.socket) -> None:
        self.name = name
        self._connection = connection

    def wait_for_draining(self) -> None:
        """Wait until the runtime that it runs in no longer is open."""
        self._connection.sendall(b"d")
        assert self._connection.recv(1) == b"d"

    def end(self) -> None:
        """Let it come to its own end."""
        self._connection.sendall(b"e")

    def wait_for_cut(self) -> None:
        """Wait until it is cut short."""
        assert self._connection.recv(1) == b""

    def close(self) -> None:
        self._connection.close()


class Gate:
    """Where work reports that it is under way."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(0.2)
        self.port: int = self._listener.getsockname()[1]
        self._open: list[Work] = []

    def take(self) -> Work | None:
        """Return the next work that reports; None if there is none for a moment."""
        try:
            connection, _address = self._listener.accept()
        except TimeoutError:
            return None
        connection.settimeout(LIMIT)
        with connection.makefile() as lines:
            work = Work(lines.readline().strip(), connection)
        self._open.append(work)
        return work

    def close(self) -> None:
        for work in self._open:
            work.close()
        self._listener.close()


class Program:
    """A Python program: started with the block, ended at the latest with it.

    Args:
        *line: what stands behind `python` in the command line.
        **environment: further variables; modules of `PYTHONPATH` are found before those of this project.
    """

    def __init__(self, *line: str, **environment: str) -> None:
        self._line = [sys.executable, *line]
        self.gate = Gate()
        self._environment = {
            **os.environ,
            "GATE": str(self.gate.port),
            "PYTHONUNBUFFERED": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONWARNINGS": "default::ResourceWarning,default::RuntimeWarning",
            **environment,
            "PYTHONPATH": os.pathsep.join([environment.get("PYTHONPATH", ""), str(ROOT)]).strip(os.pathsep),
        }
        self._lines: list[str] = []
        self._news = threading.Condition()
        self._ended = False

    def __enter__(self) -> Self:
        # In a session of its own, so that what it starts can be told from what the test has started.
        self.process = subprocess.Popen(
            self._line,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            env=self._environment,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if exc is not None:
            exc.add_note(f"the program has said:\n{self.output}")
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        self._reader.join()
        for channel in (self.process.stdin, self.process.stdout):
            assert channel is not None
            channel.close()
        self.gate.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for text in self.process.stdout:
            with self._news:
                self._lines.append(text)
                self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    @property
    def output(self) -> str:
        """What it has said so far, on both of its channels."""
        with self._news:
            return "".join(self._lines)

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Wait until it has said something; return the match."""
        end = time.monotonic() + LIMIT
        with self._news:
            while True:
                found = re.search(pattern, "".join(self._lines), re.MULTILINE)
                if found:
                    return found
                if self._ended or not self._news.wait(end - time.monotonic()):
                    break
        pytest.fail(f"{'it ended' if self._ended else 'in vain'}: no {pattern!r} in the output")

    def expect(self, *names: str) -> list[Work]:
        """Wait until work of these names is under way; return it in their order."""
        arrived: dict[str, Work] = {}
        end = time.monotonic() + LIMIT
        while len(arrived) < len(names):
            work = self.gate.take()
            if work is not None:
                arrived[work.name] = work
            elif self.process.poll() is not None or time.monotonic() > end:
                pytest.fail(f"of {', '.join(names)} only {', '.join(arrived) or 'nothing'} is under way")
        return [arrived[name] for name in names]

    def signal(self, number: signal.Signals) -> None:
        """Send a signal as it comes in life: SIGINT from the keyboard to every process, others to the first one."""
        if number == INT:
            os.killpg(self.process.pid, number)
        else:
            self.process.send_signal(number)

    def settle(self) -> None:
        """Wait until it waits: an interrupt that comes between two steps may hit any of its tasks."""
        until(lambda: status_of(self.process.pid) == "S", "a program that waits")

    def go_on(self) -> None:
        """Let a program go on that waits for a line."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def finish(self) -> int:
        """Wait for its end; return the exit code.

        Nothing is left of it then, and nothing of its output is noise.
        """
        code = self.process.wait(LIMIT)
        until(lambda: not alive(self.process.pid), "the end of the processes that it has started")
        self._reader.join(LIMIT)
        found = NOISE.search(self.output)
        assert found is None, f"noise in the output: {found[0]!r}"
        return code


class Server(Program):
    """A web server that is ready when the block begins."""

    def __enter__(self) -> Self:
        super().__enter__()
        try:
            # Both servers say where they have bound port 0 to, and only when the start-up of the app is through.
            self.port = int(self.wait_for(r"unning on http://127\.0\.0\.1:(\d+)")[1])
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def send(self, method: str, path: str) -> http.client.HTTPConnection:
        """Send a request; the answer is read by `getresponse` of what is returned."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT)
        connection.request(method, path)
        return connection

    def request(self, method: str, path: str) -> Answer:
        """Send a request; return the status and the content of the answer."""
        return answer(self.send(method, path))

    def finish(self) -> int:
        """Wait for its end as every program; its port is free then."""
        code = super().finish()
        with socket.socket() as place:
            place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            place.bind(("127.0.0.1", self.port))
        return code


def answer(connection: http.client.HTTPConnection) -> Answer:
    """Wait for the answer to a request; return its status and content, and close the connection."""
    try:
        response = connection.getresponse()
        content = response.read()
        return response.status, json.loads(content) if content.startswith(b"{") else {"text": content.decode()}
    finally:
        connection.close()


def traces(output: str, line: str) -> int:
    """Return how many tracebacks, alone or in groups, end with this line."""
    return len(re.findall(rf"^[ |]*{re.escape(line)}$", output, re.MULTILINE))


def records(output: str, level: str) -> list[str]:
    """Return the messages that the runtime has logged at a level."""
    return re.findall(rf"^{level} agentcore\.runtime: (.*)$", output, re.MULTILINE)
