"""What runs in a worker process: takes jobs from a socket, one at a time, until that is closed.

This file is started as a script, by its path, so that nothing else of the package is loaded: a worker starts as fast as the
interpreter does. It imports what it cannot do without, and everything else when it is needed.

A message is a head of 17 bytes and its content: what it is, the number of the job, the length. A long content stands in a
file in memory instead, which both sides have open: whoever writes it never waits for the other side to read.
"""

from __future__ import annotations

import os
import sys

try:
    from _pickle import Pickler, dumps, loads  # without the parts in Python, which take twice as long to import
except ImportError:  # another implementation of Python
    from pickle import Pickler, dumps, loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

HEAD = 17
INLINE = 32768  # bytes; a socket that is empty takes as many at once
OFFSET = 4096  # of a content in the file; before it stands the number of the job that was begun last

BOOT, READY, BROKEN, JOB, RESULT, ERROR, PARTS, TEXT = range(8)
IN_FILE = 128

WORKER = "__agentcore_worker__"
"""By this name the script knows itself, when ``__main__`` has become the program's own."""

variables: dict[str, Any] = {}
"""What was propagated with the job that runs."""
is_loading_main = False
"""Whether the program's main module is being run, which must not start workers in turn."""
main_module: tuple[str, str] | None = None
"""As `_main`, for the workers of this worker."""
_main: tuple[str, str] | None = None
"""How the program's main module is found: by ``path`` or by ``name``. None: it cannot, or that has been tried."""
_main_failure: str | None = None


class Parts(list):  # type: ignore[type-arg]
    """What was pickled, in pieces: long bytes are one of their own, and are not copied."""

    write = list.append


def pickled(value: object) -> Parts:
    """Return a value as what can be sent."""
    parts = Parts()
    Pickler(parts, 5).dump(value)
    return parts


class Channel:
    """One side of the line between a pool and a worker.

    Args:
        handle: of a socket.
        file: descriptor of the file for long contents.
        write: how bytes are written to the socket, if not as to any file; returns how many were.
    """

    def __init__(self, handle: int, file: int, write: Callable[[bytes], int] | None = None) -> None:
        self._handle = handle
        self._file = file
        self._write = write if write is not None else lambda data: os.write(handle, data)
        self._rest = b""
        self._map: Any = None  # of the file, when there has been something in it

    def send(self, kind: int, serial: int, content: list[bytes]) -> None:
        """Send a message.

        Raises:
            OSError: the other side is gone.
        """
        length = sum(map(len, content))
        if length > INLINE:
            write_all(self._file, content)
            data = head(kind | IN_FILE, serial, length)
        else:
            data = head(kind, serial, length) + b"".join(content)
        sent = self._write(data)
        while sent < len(data):
            sent += self._write(data[sent:])

    def receive(self) -> tuple[int, int, bytes | memoryview] | None:
        """Wait for a message; return what it is, the number of the job and the content. None: the other side is gone.

        A long content is a view of the file, and has to be loaded before anything is sent.
        """
        data = self._read(HEAD)
        if data is None:
            return None
        kind, serial, length = data[0], int.from_bytes(data[1:9], "little"), int.from_bytes(data[9:17], "little")
        if kind & IN_FILE:
            return kind & ~IN_FILE, serial, self._view(length)
        content = self._read(length)
        return None if content is None else (kind, serial, content)

    def _view(self, length: int) -> memoryview:
        if self._map is None or len(self._map) < OFFSET + length:
            import mmap

            # The old one goes when the last view of it does.
            self._map = mmap.mmap(self._file, OFFSET + length, access=mmap.ACCESS_READ)
        return memoryview(self._map)[OFFSET : OFFSET + length]

    def _read(self, length: int) -> bytes | None:
        while len(self._rest) < length:
            try:
                more = os.read(self._handle, 65536)
            except ConnectionResetError:
                more = b""
            if not more:
                return None
            self._rest += more
        data, self._rest = self._rest[:length], self._rest[length:]
        return data


def head(kind: int, serial: int, length: int) -> bytes:
    """Return the beginning of a message."""
    return bytes((kind,)) + serial.to_bytes(8, "little") + length.to_bytes(8, "little")


def write_all(file: int, content: list[bytes]) -> None:
    """Put a content into the file."""
    done = 0
    for part in content:
        view = memoryview(part)
        while view:
            written = os.pwrite(file, view, OFFSET + done)
            view = view[written:]
            done += written


class _LazyMain(type(sys)):  # type: ignore[misc]
    """Stands for the program's main module until something of it is asked for."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        load_main()
        return getattr(sys.modules["__main__"], name)


def load_main() -> None:
    """Run the program's main module, under the name ``__mp_main__``, as multiprocessing does it.

    Raises:
        ImportError: it cannot be run here. It is tried once.
    """
    global is_loading_main, _main, _main_failure
    if _main is not None:
        import runpy
        from types import ModuleType

        (how, where), _main, is_loading_main = _main, None, True
        module = ModuleType("__mp_main__")
        try:
            run = runpy.run_module if how == "name" else runpy.run_path
            module.__dict__.update(run(where, run_name="__mp_main__"))
            sys.modules["__main__"] = sys.modules["__mp_main__"] = module
        except BaseException as error:  # noqa: ASYNC103, BLE001 - told below, every time
            _main_failure = f"{type(error).__name__}: {_text_of(error)}"
        finally:
            is_loading_main = False
    if _main_failure is not None:
        raise ImportError(
            f"the main module of the program must be loadable in a worker process: got {_main_failure}; "
            "put what it does behind `if __name__ == '__main__':`, or the function into a module of its own"
        )


def perform(content: bytes | memoryview) -> tuple[int, list[bytes]]:
    """Run a job; return what is to be answered."""
    try:
        function, args, kwargs, found = loads(content)
        del content  # may be a view of the file, which the answer needs
        variables.clear()
        variables.update(found)
        value = function(*args, **kwargs)
        del function, args, kwargs
        return RESULT, pickled(value)
    except BaseException as error:  # noqa: ASYNC103, BLE001 - SystemExit too: the worker goes on
        return encode(error)  # noqa: ASYNC104 - told elsewhere


def encode(error: BaseException) -> tuple[int, list[bytes]]:
    """Return an error in a way in which it can be loaded: whole, or in parts, or as text."""
    import traceback

    text = "".join(traceback.format_exception(error))
    for kind, content_of in (
        (ERROR, lambda: (error, text)),
        # Of a class whose constructor takes something else than what it hands on: made without it.
        (PARTS, lambda: (type(error), built_in(type(error)).__reduce__(error)[1], dict(vars(error)), text)),
    ):
        try:
            data = dumps(content_of(), 5)
            if kind == PARTS or _is_same(loads(data)[0], error):
                return kind, [data]
        except BaseException:  # noqa: ASYNC103, BLE001, S112 - then in the next way
            continue  # noqa: ASYNC104 - told elsewhere
    return TEXT, [dumps((type(error).__qualname__, _text_of(error), text), 5)]


def built_in(cls: type[BaseException]) -> Any:
    """Return the class of Python itself that an exception class is made from."""
    return next(base for base in cls.__mro__ if base.__module__ == "builtins")


def _is_same(loaded: BaseException, error: BaseException) -> bool:
    """Tell whether an error comes back as it was: its constructor may have made something else of what it was given."""
    return type(loaded) is type(error) and dumps(loaded.args, 5) == dumps(error.args, 5)


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException:  # noqa: ASYNC103, BLE001 - told instead
        return "<its str() raised>"  # noqa: ASYNC104 - told elsewhere


def serve(channel: Channel, file: int) -> None:
    """Take jobs and answer them until the other side is gone."""
    while (message := channel.receive()) is not None:
        _, serial, content = message
        os.pwrite(file, serial.to_bytes(8, "little"), 0)
        kind, answer = perform(content)
        del message, content
        flush()
        channel.send(kind, serial, answer)
        del answer


def flush() -> None:
    """Have what a job has printed come out with its result."""
    try:
        flush_it = getattr(getattr(sys, "stdout", None), "flush", None)
        if flush_it is not None:
            flush_it()
    except BaseException:  # noqa: ASYNC103, BLE001 - nobody reads it any more, or the job has put something else there
        return  # noqa: ASYNC104 - the result of the job matters more


def boot(channel: Channel) -> bool:
    """Make this process like the one that has started it; tell whether it is ready."""
    global _main, main_module
    message = channel.receive()
    if message is None:
        return False
    settings = loads(message[2])
    sys.path[:] = settings["path"]
    sys.argv[:] = settings["argv"]
    _main = main_module = settings["main"]
    if _main is not None:
        sys.modules["__main__"] = sys.modules["__mp_main__"] = _LazyMain("__main__")
    else:  # of a notebook, or of `-c`: nothing of this script must be taken for it
        sys.modules["__main__"] = type(sys)("__main__")
    try:
        if settings["initializer"] is not None:
            function, args = loads(settings["initializer"])
            function(*args)
    except BaseException as error:  # noqa: ASYNC103, BLE001 - the pool is told
        channel.send(BROKEN, 0, pickled(encode(error)))
        return False  # noqa: ASYNC104 - told elsewhere
    channel.send(READY, 0, [])
    return True


def live_with(lifeline: int) -> None:
    """Have the system end this process when the other one is gone, whatever it does then."""
    try:
        import fcntl

        fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
        # A signal at the end of the line, whose default is to end the process.
        fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    except (ImportError, AttributeError, OSError):
        return  # then the end of the next job is the end


def main() -> None:
    """Be a worker. The arguments are the descriptors of the socket, the file and the lifeline."""
    import signal

    handle, file, lifeline = (int(argument) for argument in sys.argv[1:4])
    sys.modules[WORKER] = sys.modules["__main__"]
    # Ctrl-C in a terminal is meant for the program, which decides what becomes of its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGIO"):  # whatever the program does with it: here it is the end of the line
        signal.signal(signal.SIGIO, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGIO})
    for descriptor in (handle, file, lifeline):
        os.set_inheritable(descriptor, False)
    if hasattr(os, "register_at_fork"):  # what a job forks must not hold the line when the worker is gone
        os.register_at_fork(after_in_child=lambda: os.close(handle))
    live_with(lifeline)
    channel = Channel(handle, file)
    try:
        if boot(channel):
            serve(channel, file)
    except (BrokenPipeError, ConnectionResetError):
        return


if __name__ == "__main__":
    main()
