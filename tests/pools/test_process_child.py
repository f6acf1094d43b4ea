"""The script of the worker processes, piece by piece, in this process."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from agentcore import RemoteTraceback, WorkerPoolError
from agentcore.pools import _child
from agentcore.pools._worker_process import decode_error
from tests.pools import process_jobs as jobs
from tests.pools.process_lines import LIMIT

Message = tuple[int, int, bytes]


class Pair:
    """Both ends of a line."""

    def __init__(self) -> None:
        self.sockets = socket.socketpair()
        self.file = os.memfd_create("tested")
        os.ftruncate(self.file, _child.OFFSET)
        self.near, self.far = (_child.Channel(end.fileno(), self.file) for end in self.sockets)

    def tell(self, kind: int, serial: int, content: bytes = b"") -> None:
        self.near.send(kind, serial, [content])

    def told(self) -> Message | None:
        """Return the answer."""
        return whole(self.near.receive())

    def begun(self) -> int:
        """Return the number of the job that was begun last."""
        return int.from_bytes(os.pread(self.file, 8, 0), "little")

    def close(self) -> None:
        for end in self.sockets:
            end.close()
        os.close(self.file)


def whole(message: tuple[int, int, Any] | None) -> Message | None:
    """Return a message with its content copied out of the file."""
    return None if message is None else (*message[:2], bytes(message[2]))


def joined(answer: tuple[int, list[bytes]]) -> tuple[int, bytes]:
    return answer[0], b"".join(answer[1])


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    pair.close()


# The line.


@pytest.mark.parametrize("length", [0, 1, _child.INLINE - 1, _child.INLINE, _child.INLINE + 1, 3 << 20])
def test_message_comes_as_it_was_sent(pair: Pair, length: int) -> None:
    """Long ones through the file: nobody has to read them meanwhile."""
    content = os.urandom(length)
    pair.tell(_child.JOB, 2**40, content)
    assert (_child.JOB, 2**40, content) == whole(pair.far.receive())


def test_messages_that_come_together_are_told_apart(pair: Pair) -> None:
    messages: list[Message] = [(_child.JOB, number, bytes([number]) * number) for number in range(20)]
    for message in messages:
        pair.tell(*message)
    assert messages == [whole(pair.far.receive()) for _ in messages]


def test_message_that_comes_in_pieces_is_put_together(pair: Pair) -> None:
    """However the system cuts it."""
    data = _child.head(_child.RESULT, 7, 5) + b"abcde"
    received: list[Message | None] = []
    reader = threading.Thread(target=lambda: received.append(whole(pair.far.receive())))
    reader.start()
    for index in range(len(data)):
        pair.sockets[0].send(data[index : index + 1])
    reader.join(LIMIT)
    assert [(_child.RESULT, 7, b"abcde")] == received


def test_message_that_is_taken_in_pieces_is_sent_whole(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system may take less than it is given, of either kind."""
    write, pwrite = os.write, os.pwrite
    long = bytes(range(256)) * 300
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda handle, data: write(handle, data[:3]))
        patch.setattr(os, "pwrite", lambda file, data, at: pwrite(file, data[:1000], at))
        pair.tell(_child.JOB, 1, b"short one")
        pair.tell(_child.JOB, 2, long)
        found = [whole(pair.far.receive()), whole(pair.far.receive())]
    assert [(_child.JOB, 1, b"short one"), (_child.JOB, 2, long)] == found


@pytest.mark.parametrize("sent", [b"", _child.head(_child.JOB, 1, 9), _child.head(_child.JOB, 1, 9) + b"half"])
def test_end_of_the_other_side_is_the_end(pair: Pair, sent: bytes) -> None:
    """Also in the middle of a message."""
    pair.sockets[0].send(sent)
    pair.sockets[0].close()
    assert pair.far.receive() is None


def test_other_side_that_ends_without_reading_is_the_end(pair: Pair) -> None:
    """Which the system calls a reset."""
    pair.far.send(_child.RESULT, 1, [b"unread"])
    pair.sockets[0].close()
    assert pair.far.receive() is None
    with pytest.raises(BrokenPipeError):
        pair.far.send(_child.RESULT, 2, [b"unread"])


# Errors.


def raised(function: Callable[..., Any], *args: Any) -> BaseException:
    with pytest.raises(BaseException) as caught:  # noqa: PT011 - whatever it is
        function(*args)
    return caught.value


@pytest.mark.parametrize(
    ("function", "args", "kind"),
    [
        (jobs.raise_plain, ("x",), _child.ERROR),
        (jobs.raise_group, (), _child.ERROR),
        (jobs.call_exit, (3,), _child.ERROR),
        (jobs.raise_picky, ("x", 1), _child.PARTS),
        (jobs.raise_of, (jobs.Prefixed, "x"), _child.PARTS),
        (jobs.raise_of, (jobs.Made, "x", 1), _child.PARTS),
        (jobs.raise_of, (jobs.Missing, "x"), _child.PARTS),
    ],
)
def test_error_arrives_as_it_was(function: Callable[..., Any], args: tuple[Any, ...], kind: int) -> None:
    error = raised(function, *args)
    found, content = joined(_child.encode(error))
    copy = decode_error(found, content)
    assert kind == found
    assert type(error) is type(copy)
    assert (str(error), repr(error.args)) == (str(copy), repr(copy.args))
    assert getattr(error, "filename", None) == getattr(copy, "filename", None)
    assert repr(vars(error)) == repr(vars(copy))
    assert isinstance(copy.__cause__, RemoteTraceback)
    assert f"in {function.__name__}" in str(copy.__cause__)


@pytest.mark.parametrize(
    ("cls", "args", "message"),
    [
        (jobs.Locked, ("the door",), "got Locked: the door;"),
        (jobs.Mute, (), "got Mute: <its str() raised>;"),
    ],
)
def test_error_that_cannot_be_pickled_arrives_as_text(
    cls: type[Exception], args: tuple[Any, ...], message: str
) -> None:
    kind, content = joined(_child.encode(raised(jobs.raise_of, cls, *args)))
    assert kind == _child.TEXT
    error = decode_error(kind, content)
    assert isinstance(error, WorkerPoolError)
    assert f"an exception of a worker process must be picklable: {message} raise one that is" == str(error)
    assert cls.__name__ == error.details["type"]
    assert "in raise_of" in str(error.__cause__)


def test_error_of_a_class_of_a_function_arrives_as_text() -> None:
    """Nobody else finds it."""

    class HiddenError(Exception):
        pass

    error = decode_error(*joined(_child.encode(raised(jobs.raise_of, HiddenError, "x"))))
    assert isinstance(error, WorkerPoolError)
    assert "HiddenError: x" in str(error)


class Changing(Exception):
    """Comes back as something else."""

    def __reduce__(self) -> tuple[Any, ...]:
        return ValueError, ("changed",)


def test_error_that_would_come_back_as_another_arrives_in_parts() -> None:
    error = decode_error(*joined(_child.encode(raised(jobs.raise_of, Changing, "x"))))
    assert (Changing, ("x",)) == (type(error), error.args)


# Jobs.


def call(function: Callable[..., Any], *args: Any, variables: dict[str, Any] | None = None, **kwargs: Any) -> bytes:
    return pickle.dumps((function, args, kwargs, variables or {}), 5)


@pytest.fixture
def variables() -> Iterator[dict[str, Any]]:
    yield _child.variables
    _child.variables.clear()


def test_job_is_performed(variables: dict[str, Any]) -> None:
    kind, content = joined(_child.perform(call(jobs.echo, 1, variables={"trace_id": "t"}, x=2)))
    assert (_child.RESULT, ((1,), {"x": 2})) == (kind, pickle.loads(content))
    assert {"trace_id": "t"} == variables
    _child.perform(call(jobs.pid))
    assert {} == variables


@pytest.mark.parametrize(
    ("content", "cls"),
    [
        (call(jobs.raise_plain, "x"), ValueError),
        (call(jobs.call_exit, 3), SystemExit),
        (call(jobs.interrupt), KeyboardInterrupt),
        (call(jobs.hand_over_lock), TypeError),
        (call(jobs.echo, jobs.FailsAtLoading()), LookupError),
        (b"no pickle", pickle.UnpicklingError),
    ],
)
def test_job_that_fails_is_answered(content: bytes, cls: type[BaseException]) -> None:
    kind, answer = joined(_child.perform(content))
    assert kind == _child.ERROR
    assert type(decode_error(kind, answer)) is cls


@pytest.fixture
def settings() -> dict[str, Any]:
    return {"path": list(sys.path), "argv": list(sys.argv), "main": None, "initializer": None}


def test_jobs_are_served_until_the_other_side_is_gone(pair: Pair) -> None:
    """Each is noted before it begins, even if it cannot be loaded."""
    server = threading.Thread(target=_child.serve, args=(pair.far, pair.file))
    server.start()
    pair.tell(_child.JOB, 1, call(jobs.double, 4))
    assert (_child.RESULT, 1, pickle.dumps(8, 5)) == pair.told()
    pair.tell(_child.JOB, 2, call(jobs.blank, 1 << 20))
    answer = pair.told()
    assert answer is not None
    assert (_child.RESULT, 2, bytes(1 << 20)) == (*answer[:2], pickle.loads(answer[2]))
    pair.tell(_child.JOB, 3, b"no pickle")
    answer = pair.told()
    assert answer is not None
    assert (_child.ERROR, 3, 3) == (*answer[:2], pair.begun())
    pair.sockets[0].shutdown(socket.SHUT_RDWR)
    server.join(LIMIT)
    assert not server.is_alive()


def test_worker_without_streams_serves(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """As under pythonw, or after a job has set it so."""
    pair.tell(_child.JOB, 1, call(jobs.double, 4))
    pair.sockets[0].shutdown(socket.SHUT_WR)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", None)
        _child.serve(pair.far, pair.file)
    assert (_child.RESULT, 1, pickle.dumps(8, 5)) == pair.told()


def test_worker_is_made_like_the_program(pair: Pair, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("path", "argv"):
        monkeypatch.setattr(sys, name, getattr(sys, name)[:])
    monkeypatch.setattr(_child, "_main", None)
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    settings.update(path=[*sys.path, "/nowhere"], argv=["program"], main=("name", "json"))
    settings["initializer"] = pickle.dumps((jobs.begin, (1, 2)), 5)
    pair.tell(_child.BOOT, 0, pickle.dumps(settings, 5))
    assert _child.boot(pair.far)
    assert (_child.READY, 0, b"") == pair.told()
    assert (["program"], "/nowhere", ("name", "json")) == (sys.argv, sys.path[-1], _child._main)
    assert isinstance(sys.modules["__main__"], _child._LazyMain)
    assert (1, 2) == jobs.SETTINGS["settings"]


def test_initializer_that_raises_is_told(pair: Pair, settings: dict[str, Any]) -> None:
    settings["initializer"] = pickle.dumps((jobs.raise_picky, ("x", 1)), 5)
    pair.tell(_child.BOOT, 0, pickle.dumps(settings, 5))
    assert not _child.boot(pair.far)
    answer = pair.told()
    assert answer is not None
    assert answer[0] == _child.BROKEN
    assert isinstance(decode_error(*joined(pickle.loads(answer[2]))), jobs.Picky)


def test_worker_whose_pool_is_gone_does_not_begin(pair: Pair) -> None:
    pair.sockets[0].close()
    assert not _child.boot(pair.far)


# The main module.

CALL_OF_MAIN = b"(c__main__\ntold\n)}}t."
"""What a program pickles for a call of its function `told`; here it has none."""


@pytest.fixture
def main_module(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Sets how the main module is found, and keeps that of the tests from being replaced."""

    def find(how: str, where: str) -> None:
        monkeypatch.setattr(_child, "_main", (how, where))

    monkeypatch.setattr(_child, "_main", None)
    monkeypatch.setattr(_child, "_main_failure", None)
    monkeypatch.setitem(sys.modules, "__mp_main__", ModuleType("__mp_main__"))
    monkeypatch.setitem(sys.modules, "__main__", _child._LazyMain("__main__"))
    return find


@pytest.mark.parametrize("how", ["path", "name"])
def test_main_module_is_loaded_when_something_of_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, main_module: Callable[[str, str], None], how: str
) -> None:
    """Under another name, so that what is behind its guard does not run; once."""
    file = tmp_path / "a_main_module.py"
    file.write_text("times = []\nname = __name__\ndef told():\n    times.append(1)\n    return len(times), name\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    main_module(how, str(file) if how == "path" else file.stem)
    assert [(1, "__mp_main__"), (2, "__mp_main__")] == [
        pickle.loads(joined(_child.perform(CALL_OF_MAIN))[1]) for _ in range(2)
    ]
    assert sys.modules["__main__"] is sys.modules["__mp_main__"]
    assert not _child.is_loading_main


def test_what_every_module_has_does_not_load_the_main_module(main_module: Callable[[str, str], None]) -> None:
    """Whoever looks around in a worker asks for it."""
    main_module("path", "/no/such/file.py")
    main = sys.modules["__main__"]
    assert ("__main__", None) == (main.__name__, getattr(main, "__file__", None))
    assert _child._main is not None


def test_main_module_that_cannot_be_loaded_is_tried_once(
    tmp_path: Path, main_module: Callable[[str, str], None]
) -> None:
    """Everybody who needs it is told."""
    file = tmp_path / "a_main_module.py"
    file.write_text(f"import os\nos.mkdir({str(tmp_path / 'been here')!r})\nraise SystemExit('no guard')\n")
    main_module("path", str(file))
    for _ in range(2):
        error = decode_error(*joined(_child.perform(CALL_OF_MAIN)))
        assert isinstance(error, ImportError)
        assert "must be loadable in a worker process: got SystemExit: no guard; put what it does behind" in str(error)
    assert (tmp_path / "been here").is_dir()
    assert not _child.is_loading_main


# The process.


@pytest.fixture
def heard() -> Iterator[list[int]]:
    """Signals of the lifeline, which would end this process."""
    heard: list[int] = []
    before = signal.signal(signal.SIGIO, lambda number, _: heard.append(number))
    yield heard
    signal.signal(signal.SIGIO, before)


def test_end_of_the_lifeline_is_a_signal(heard: list[int]) -> None:
    reading, writing = os.pipe()
    _child.live_with(reading)
    os.close(writing)
    for _ in range(1000):
        if not heard:
            signal.sigtimedwait([], 0.01)
    os.close(reading)
    assert {signal.SIGIO} == set(heard)


def test_lifeline_that_cannot_signal_is_none() -> None:
    """Then the worker ends after its job."""
    reading, writing = os.pipe()
    os.close(reading)
    os.close(writing)
    _child.live_with(reading)


@contextmanager
def killed_at_the_end(process: subprocess.Popen[str]) -> Generator[None]:
    try:
        yield
    finally:
        process.kill()


def test_script_is_a_worker(pair: Pair, settings: dict[str, Any]) -> None:
    """It loads nothing of the package, and ends with its pool."""
    lifeline = os.pipe()
    numbers = (pair.sockets[1].fileno(), pair.file, lifeline[0])
    worker = subprocess.Popen(
        [sys.executable, "-P", _child.__file__, *map(str, numbers)],
        pass_fds=numbers,
        # Nothing that measures it: that would load modules of its own.
        env={name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    with worker, killed_at_the_end(worker):
        pair.sockets[1].close()
        pair.tell(_child.BOOT, 0, pickle.dumps(settings, 5))
        assert (_child.READY, 0, b"") == pair.told()
        pair.tell(_child.JOB, 1, call(eval, "sorted(name for name in __import__('sys').modules)"))
        answer = pair.told()
        assert answer is not None
        loaded = set(pickle.loads(answer[2]))
        assert _child.WORKER in loaded
        assert not loaded & {"agentcore", "anyio", "attrs", "asyncio", "typing", "logging", "threading", "subprocess"}
        pair.tell(_child.JOB, 2, call(print, "told at once"))
        assert pair.told() is not None
        assert worker.stdout is not None
        assert "told at once\n" == worker.stdout.readline()
        assert 2 == pair.begun()
        pair.sockets[0].close()
        assert 0 == worker.wait(LIMIT)
    for end in lifeline:
        os.close(end)
