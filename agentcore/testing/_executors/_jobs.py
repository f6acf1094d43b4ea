"""What is run by the executors that are tested.

Worker processes import this file, so it needs nothing but the standard library, pytest least of all.
"""

import os
import signal
import socket
import threading
from pathlib import Path
from typing import Any, Final, NoReturn

Address = tuple[str, int]

_here: Final = threading.local()
_everywhere: Final[list[object]] = []


class JobError(Exception):
    """What jobs raise."""


def hold(address: Address, name: str = "") -> str:
    """Tell a gate that this runs, wait until it opens, and return the name."""
    try:
        with socket.create_connection(address) as line:
            line.sendall(f"{name}\n".encode())
            line.recv(1)
    except OSError:
        pass  # it is open: nobody listens any more
    return name


def note(path: str, name: str, address: Address | None = None) -> str:
    """Write a name into a file, when the gate opens if there is one, and return it."""
    if address is not None:
        hold(address, name)
    with Path(path).open("a", encoding="utf-8") as file:
        file.write(f"{name}\n")
    return name


def hold_if(address: Address, name: str) -> str:
    """Wait for a gate, but not without a name."""
    return hold(address, name) if name else name


def fail(*args: object) -> NoReturn:
    """Raise an error with these arguments."""
    raise JobError(*args)


def fail_late(address: Address, *args: object) -> NoReturn:
    """Wait for a gate, then raise an error with these arguments."""
    hold(address)
    raise JobError(*args)


def leave(code: object) -> NoReturn:
    """Do what ends a program, and must not end a worker unnoticed."""
    raise SystemExit(code)


def arguments(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return what it was called with."""
    return args, kwargs


def reciprocal(number: float) -> float:
    """Return 1 over a number; zero is an error."""
    return 1 / number


def process() -> int:
    """Return in which process this runs."""
    return os.getpid()


def process_of(_item: object) -> int:
    """Return in which process this runs."""
    return os.getpid()


def thread() -> tuple[int, str]:
    """Return in which thread this runs, and its name."""
    return threading.get_ident(), threading.current_thread().name


def lock() -> object:
    """Return what cannot be pickled."""
    return threading.Lock()


def append(items: list[Any], item: object) -> list[Any]:
    """Append to a list and return it."""
    items.append(item)
    return items


def initialize(*values: object) -> None:
    """Note what a worker was started with; in its thread and in its process."""
    _here.values = values
    _everywhere.append(values)


def initialized(address: Address, name: str) -> tuple[object, ...]:
    """Return what the thread was started with, when a gate has opened."""
    hold(address, name)
    found: tuple[object, ...] = getattr(_here, "values", ())
    return found


def process_initialized(address: Address, name: str) -> list[object]:
    """Return what the process was started with, each time, when a gate has opened."""
    hold(address, name)
    return _everywhere


def die(how: str) -> NoReturn:
    """End this process, as a crash does: by its own exit, or by a signal."""
    if how == "kill" and hasattr(signal, "SIGKILL"):
        os.kill(os.getpid(), signal.SIGKILL)
    os._exit(13)
