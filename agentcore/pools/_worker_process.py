"""A worker process, seen from the process that has started it: its beginning, its end, and the line between the two."""

from __future__ import annotations

import os
import pickle
import selectors
import socket
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Final, final

from agentcore.errors import WorkerPoolError
from agentcore.pools import _child
from agentcore.pools._records import ProcessWorkerPoolConfig

LAST_MOMENTS: Final = 1.0
"""Seconds that a worker has to end by itself when there is nothing more to do."""
KEPT: Final = 8 << 20
"""Bytes that the file of a worker keeps for the next job; what a greater one has taken is given back."""
LONGEST: Final = 1_000_000.0
"""Seconds for which a descriptor can be waited for."""
_NO_SIGNAL: Final = getattr(socket, "MSG_NOSIGNAL", 0)
"""For a program that would be ended by writing to a worker that has died: it has SIGPIPE as the shell does."""
_ANSWERS: Final = frozenset((_child.RESULT, _child.ERROR, _child.PARTS, _child.TEXT))


class RemoteTraceback(Exception):  # noqa: N818 - no error of its own, but what one is said to come from
    """The traceback of an exception in the worker process where it was raised, as text: the cause of that exception."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


class StartError(Exception):
    """A worker process ended, or was silent for too long, before it was ready."""


@final
class Child:
    """One worker process, as its pool sees it. Used by one thread; `kill` by any, and `give` by whoever has the pool's lock.

    Attributes:
        bell: wakes up that thread while it waits for this.
        has_begun: if it has been reaped, whether it had begun the job that it was given last.
    """

    def __init__(self) -> None:
        self.has_begun = False
        self._serial = 0
        self._is_asked = self._is_reaped = False
        with ExitStack() as undo, ExitStack() as theirs:
            self._socket, their_socket = _socket_pair()
            undo.callback(self._socket.close)
            theirs.callback(their_socket.close)
            self._file = _file_in_memory()
            undo.callback(os.close, self._file)
            # Whose other end closes with this process, and with nothing else.
            lifeline, self._line = _pipe()
            theirs.callback(os.close, lifeline)
            undo.callback(self._close_line)
            self.bell = Bell(self._socket.fileno())
            undo.callback(self.bell.close)
            numbers = (their_socket.fileno(), self._file, lifeline)
            _lines.update((self._line, numbers[0]))
            theirs.callback(_lines.discard, numbers[0])
            self._process = subprocess.Popen(
                # -P: the folder of the script is no place for modules to be found in.
                [sys.executable, "-P", *_options(), str(Path(_child.__file__)), *map(str, numbers)],
                stdin=subprocess.DEVNULL,
                pass_fds=numbers,
            )
            undo.pop_all()
        # Nothing that knows this object: what the channel has open goes with the last reference to it.
        self._channel = _child.Channel(self._socket.fileno(), self._file, partial(_write, self._socket))

    def boot(self, config: ProcessWorkerPoolConfig) -> None:
        """Make it ready.

        Raises:
            StartError: it ended, or took too long.
            BaseException: what the initializer raised.
        """
        initializer = None
        if config.initializer is not None:
            initializer = pickle.dumps((config.initializer, config.initargs), 5)
        settings = {"path": sys.path, "argv": sys.argv, "main": _main_module(), "initializer": initializer}
        try:
            self._channel.send(_child.BOOT, 0, _child.pickled(settings))
            # Not by a timer, which is a thread: while the interpreter ends there can be no further one.
            answer = self._channel.receive() if self._answers(config.start_timeout) else None
        except OSError:
            answer = None
        if answer is None:
            raise StartError("a worker process ended before it was ready, or was not ready in time")
        if answer[0] == _child.BROKEN:
            kind, content = pickle.loads(answer[2])
            raise decode_error(kind, b"".join(content))

    def _answers(self, timeout: float | None) -> bool:
        """Tell whether something comes from it within so many seconds."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._socket, selectors.EVENT_READ)
            return bool(selector.select(timeout))

    def give(self, content: list[bytes]) -> None:
        """Send it a short job, whose answer `ask` returns to its own thread; while it has nothing to do."""
        self._serial += 1
        self._is_asked = True
        try:
            self._channel.send(_child.JOB, self._serial, content)
        except OSError:
            self.kill()  # if it is there at all; its thread sees the end of it

    def ask(self, content: list[bytes]) -> tuple[int, bytes | memoryview] | None:
        """Have it do a job, or what it was given before; return its answer, None if it has died. Then it is to be reaped."""
        answer = None
        try:
            if self._is_asked:
                self._is_asked = False
            else:
                self._serial += 1
                self._channel.send(_child.JOB, self._serial, content)
            answer = self._channel.receive()
            if answer is not None and (answer[1] != self._serial or answer[0] not in _ANSWERS):
                raise ValueError(f"an answer must be one to job {self._serial}: got {answer[:2]}")
        except OSError:
            pass  # it is gone
        except Exception:  # noqa: BLE001 - a job has written to the line, and nothing on it can be believed
            answer = None
            self.kill()
        return None if answer is None else (answer[0], answer[2])

    def tidy(self) -> None:
        """Give back what a great job has taken, when its answer has been loaded."""
        if os.fstat(self._file).st_size > KEPT:
            os.ftruncate(self._file, _child.OFFSET)

    def kill(self) -> None:
        """End it at once."""
        if not self._is_reaped:
            self._process.kill()

    def reap(self) -> int:
        """Wait until nothing of it is left, for which it has to be dead or dying; return its exit code."""
        self.bell.close()
        self._socket.close()
        try:
            exit_code = self._process.wait(LAST_MOMENTS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            exit_code = self._process.wait()
        if not self._is_reaped:
            self._is_reaped = True
            begun = os.pread(self._file, 8, 0)  # now nothing more can begin
            self.has_begun = int.from_bytes(begun, "little") == self._serial
            os.close(self._file)
            self._close_line()
        return exit_code

    def _close_line(self) -> None:
        _lines.discard(self._line)
        os.close(self._line)

    def close(self) -> None:
        """Let it end, and wait for that."""
        self.reap()


def _write(line: socket.socket, data: bytes) -> int:
    return line.send(data, _NO_SIGNAL)


def decode_error(kind: int, content: bytes | memoryview) -> BaseException:
    """Return the error that a worker process has told of, with its traceback as the cause."""
    loaded = pickle.loads(content)
    text: str = loaded[-1]
    if kind == _child.ERROR:
        error: BaseException = loaded[0]
    elif kind == _child.PARTS:
        cls, args, state, _ = loaded
        base = _child.built_in(cls)
        error = base.__new__(cls, *args)
        base.__init__(error, *args)
        vars(error).update(state)
    else:
        name, message, _ = loaded
        error = WorkerPoolError(
            f"an exception of a worker process must be picklable: got {name}: {message}; raise one that is",
            {"type": name, "message": message},
        )
    error.__cause__ = RemoteTraceback(text)
    return error


def _main_module() -> tuple[str, str] | None:
    """Return how a worker process finds the program's main module; None if it cannot, as in a notebook."""
    worker = sys.modules.get(_child.WORKER)
    if worker is not None:  # this is one itself
        found: tuple[str, str] | None = worker.main_module
        return found
    main = sys.modules["__main__"]
    name = getattr(getattr(main, "__spec__", None), "name", None)
    if name == "__main__":  # of a folder or an archive, which is run as a whole
        return "path", str(Path(sys.argv[0]).absolute())
    if isinstance(name, str):
        return "name", name
    path = getattr(main, "__file__", None)
    if isinstance(path, str) and Path(path).is_file():
        return "path", str(Path(path).absolute())
    return None


def _options() -> list[str]:
    """Return how this interpreter was started, for those of the workers."""
    options = ["-O"] * sys.flags.optimize
    options += [f"-W{option}" for option in sys.warnoptions]
    for name, value in sys._xoptions.items():
        options += ["-X", name if value is True else f"{name}={value}"]
    return options


@final
class Bell:
    """The gate of a worker that has a child: its thread waits there for both, a call and whatever comes from the child.

    Args:
        handle: of the socket to the child.
    """

    def __init__(self, handle: int) -> None:
        self._era = _era
        self._selector = selectors.DefaultSelector()
        try:
            self._mouth, self._tongue = _pipe()
        except BaseException:
            self._selector.close()
            raise
        self._selector.register(handle, selectors.EVENT_READ)
        self._selector.register(self._mouth, selectors.EVENT_READ)

    @property
    def is_ours(self) -> bool:
        """Whether this is the process that waits here, and not one that was forked from that: they share the line."""
        return self._era is _era

    def wait(self, timeout: float | None) -> bool:
        """Wait until there is a call, which is not taken, or something from the child; tell whether it came in time."""
        return bool(self._selector.select(None if timeout is None else min(timeout, LONGEST)))

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Take a call, which has come or is about to."""
        return bool(os.read(self._mouth, 1))

    def release(self) -> None:
        """Call."""
        if self.is_ours:
            os.write(self._tongue, b"!")

    def close(self) -> None:
        """Be gone. May be called again."""
        if self._mouth >= 0:
            self._selector.close()
            os.close(self._mouth)
            os.close(self._tongue)
            self._mouth = self._tongue = -1


def _above_stdio(*descriptors: int) -> tuple[int, ...]:
    """Return descriptors, none of which is one of the three that a job prints to: a program may have been started without those."""
    if min(descriptors) > 2:
        return descriptors
    import fcntl  # noqa: PLC0415 - not on Windows

    with ExitStack() as undo, ExitStack() as lower:
        higher = []
        for one in descriptors:
            lower.callback(os.close, one)
        for one in descriptors:
            higher.append(fcntl.fcntl(one, fcntl.F_DUPFD_CLOEXEC, 3))
            undo.callback(os.close, higher[-1])
        undo.pop_all()
    return tuple(higher)


def _socket_pair() -> tuple[socket.socket, socket.socket]:
    near, far = _above_stdio(*(end.detach() for end in socket.socketpair()))
    return socket.socket(fileno=near), socket.socket(fileno=far)


def _pipe() -> tuple[int, int]:
    reading, writing = _above_stdio(*os.pipe())
    return reading, writing


def _file_in_memory() -> int:
    make = getattr(os, "memfd_create", None)  # Linux alone
    if make is not None:
        file: int = make("agentcore-worker", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as temporary:
            file = os.dup(temporary.fileno())
    os.ftruncate(file, _child.OFFSET)
    (higher,) = _above_stdio(file)
    return higher


# The ends of the lines to workers that this process holds. What it forks must let go of them: a line ends when the last end
# is closed.
_lines: Final[set[int]] = set()
_era = object()  # of this process, in which its workers were started: those belong to nobody whom it forks


def _let_go() -> None:
    global _era  # noqa: PLW0603 - as the lines
    _era = object()
    for line in _lines:
        os.close(line)
    _lines.clear()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_let_go)
