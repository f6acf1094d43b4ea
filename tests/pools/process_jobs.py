"""What the tests of process pools have done in worker processes. Light: each worker imports it when it begins its first job."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any, NoReturn, Self

SETTINGS: dict[str, Any] = {}
"""What the initializer has left behind."""


# Both ends of a line; see `tests.pools.process_lines`.


def say(line: str, text: object = "") -> None:
    """Write a line of text into a pipe or at the end of a file, whole."""
    descriptor = os.open(line, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, f"{text}\n".encode())
    finally:
        os.close(descriptor)


def hear(line: str) -> str:
    """Wait for a line of text from a pipe."""
    descriptor = os.open(line, os.O_RDONLY)
    try:
        found = more = os.read(descriptor, 1)
        while more and not found.endswith(b"\n"):
            more = os.read(descriptor, 1)
            found += more
        return found.decode().rstrip("\n")
    finally:
        os.close(descriptor)


# Jobs that end well.


def double(number: int) -> int:
    return 2 * number


def pid(_: object = None) -> int:
    return os.getpid()


def meet(begun: str, gate: str, value: Any = None) -> Any:
    """Say which process this is, and return the value when that is asked for."""
    say(begun, os.getpid())
    hear(gate)
    return value


def spin(begun: str, *, times: int = 0) -> NoReturn:
    """Compute for ever, in Python."""
    say(begun, os.getpid())
    while True:
        times += 1


def echo(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, kwargs


def blank(length: int) -> bytes:
    return bytes(length)


def flood(stream: str, length: int) -> int:
    """Write into a stream of the process."""
    return int(getattr(sys, stream).write("." * (length - 1) + "\n"))


def around() -> tuple[list[str], list[str], str, bytes]:
    """Tell of the surroundings: where modules are found, the arguments of the program, the folder, what there is to read."""
    return sys.path, sys.argv, str(Path.cwd()), os.read(0, 1)


def note(path: str, number: int, rounds: int) -> int:
    """Write into a file that this job has begun, and by which process; compute a little; return the number."""
    say(path, f"{number} {os.getpid()}")
    total = 0
    for one in range(rounds):
        total += one
    return number


def find_propagated() -> dict[str, Any]:
    from agentcore import propagated  # noqa: PLC0415 - slow

    return dict(propagated())


# The life of a worker.


def begin(*settings: Any) -> None:
    """Initialize."""
    SETTINGS["settings"] = settings
    SETTINGS["times"] = SETTINGS.get("times", 0) + 1


def settings() -> tuple[int, Any, Any]:
    return os.getpid(), SETTINGS.get("times"), SETTINGS.get("settings")


def fail_to_begin(path: str) -> None:
    say(path, os.getpid())
    raise Picky("no database", 5432)


def die_at_begin(path: str) -> None:
    say(path, os.getpid())
    os._exit(9)


def die_twice_at_begin(path: str) -> None:
    """End the process, unless that has been done twice."""
    say(path, os.getpid())
    with open(path, encoding="utf-8") as lines:  # noqa: PTH123 - light
        if len(lines.readlines()) <= 2:
            os._exit(9)


def refuse_to_begin() -> None:
    """Have the process end when it is given a job, before it has noted that."""
    os.pwrite = lambda *_: os._exit(4)  # type: ignore[assignment]


def leave_thread_behind(begun: str, gate: str) -> int:
    """Start a thread that the process would wait for."""
    threading.Thread(target=hear, args=(gate,)).start()
    say(begun, os.getpid())
    return os.getpid()


# What ends a worker, or should.


def die(number: int = signal.SIGKILL) -> NoReturn:
    os.kill(os.getpid(), number)
    while True:
        signal.pause()


def exit_now(code: int) -> NoReturn:
    os._exit(code)


def call_exit(code: object) -> NoReturn:
    sys.exit(code)


def interrupt() -> NoReturn:
    raise KeyboardInterrupt("by the job")


def fork_and_die(begun: str, gate: str) -> NoReturn:
    """Die and leave a child behind that has everything open that this process has."""
    if os.fork():
        os._exit(3)
    say(begun, os.getpid())
    hear(gate)
    os._exit(0)


def leave_daemon(begun: str, gate: str, *, dies: bool) -> int:
    """Start a process that belongs to nobody, and die, or return."""
    child = os.fork()
    if not child:
        os.setsid()
        if os.fork():
            os._exit(0)
        say(begun, os.getpid())
        hear(gate)
        os._exit(0)
    os.waitpid(child, 0)
    if dies:
        os._exit(3)
    return os.getpid()


def babble_later(begun: str, gate: str) -> int:
    """Leave a thread behind that writes to the line of this process when it may."""

    def babble() -> None:
        hear(gate)
        os.write(int(sys.orig_argv[-3]), b"nonsense")

    threading.Thread(target=babble, daemon=True).start()
    return os.getpid()


def close_everything() -> None:
    os.closerange(3, 256)


class KillsAtLoading:
    """Ends the process in which it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (7,)


def _raise(message: str) -> NoReturn:
    raise LookupError(message)


class FailsAtLoading:
    def __reduce__(self) -> tuple[Any, ...]:
        return _raise, ("not here",)


class ExitsAtLoading:
    def __reduce__(self) -> tuple[Any, ...]:
        return sys.exit, ("not here",)


def hand_over(cls: type[Any]) -> Any:
    """Return something of a class."""
    return cls()


def hand_over_lock() -> Any:
    return threading.Lock()


# Errors.


class Picky(Exception):
    """Its constructor takes something else than what it hands on."""

    def __init__(self, what: str, number: int) -> None:
        super().__init__(f"{what} ({number})")
        self.what = what
        self.number = number


class Prefixed(Exception):
    """Its constructor makes something else of what it is given, each time anew."""

    def __init__(self, what: str) -> None:
        super().__init__(f"no such thing: {what}")


class Made(Exception):
    """Is made by a call of its own, that takes something else than what it hands on."""

    def __new__(cls, what: str, number: int) -> Self:
        return super().__new__(cls, what, number)

    def __init__(self, what: str, number: int) -> None:
        super().__init__(f"{what}/{number}")


class Missing(FileNotFoundError):
    """As `Prefixed`, of a class of the system's errors."""

    def __init__(self, what: str) -> None:
        super().__init__(2, "no such file", f"/tmp/{what}")


class Silent:
    """A stream that only takes."""

    def write(self, text: str) -> int:
        return len(text)


def replace_output() -> int:
    sys.stdout = Silent()  # type: ignore[assignment]
    return 1


def drop_output() -> int:
    del sys.stdout
    return 2


class Locked(Exception):
    """Has what cannot be pickled."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.lock = threading.Lock()


class Mute(Exception):
    """Cannot be pickled, and cannot say anything either."""

    def __init__(self) -> None:
        super().__init__(threading.Lock())

    def __str__(self) -> str:
        raise ValueError("mute")


class Unloadable(Exception):
    """Can be pickled and not loaded: neither whole nor in parts."""

    def __init__(self) -> None:
        super().__init__(FailsAtLoading())


def raise_plain(message: str) -> NoReturn:
    error = ValueError(message, 7)
    error.add_note("first note")
    error.add_note("second note")
    error.place = ("x", 1)  # type: ignore[attr-defined]
    raise error


def raise_picky(what: str, number: int) -> NoReturn:
    error = Picky(what, number)
    error.add_note("a note")
    raise error


def raise_chain() -> NoReturn:
    try:
        raise_picky("inner", 1)
    except Picky as error:
        raise RuntimeError("outer") from error


def raise_group() -> NoReturn:
    raise ExceptionGroup("several", [ValueError("one"), ExceptionGroup("inner", [KeyError("two")])])


def raise_of(cls: type[BaseException], *args: Any) -> NoReturn:
    raise cls(*args)


def raise_cancellation() -> NoReturn:
    import asyncio  # noqa: PLC0415 - slow

    raise asyncio.CancelledError("by the job")
