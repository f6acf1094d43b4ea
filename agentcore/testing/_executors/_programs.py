"""Programs that end while an executor has jobs; `ExitCases` runs them.

`python -m agentcore.testing._executors._programs NAME MODULE FILE CLASS HOST PORT NOTES` makes an executor as the class in
that file does, uses it as the function NAME here says, and prints a line when there is nothing more to do.
"""

# ruff: noqa: TID251 - the interface of the standard library is what is tested here

import atexit
import importlib
import importlib.util
import operator
import sys
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from agentcore.testing._executors import _jobs

MANY: Final = 8

_kept: Final[list[Executor]] = []

Submit = Callable[[Executor], "Future[str]"]


def forget(executor: Executor, submit: Submit, _path: str) -> None:
    """Never shut the executor down."""
    submit(executor)


def drop(executor: Executor, submit: Submit, _path: str) -> None:
    """Never shut the executor down, and keep no reference to it."""
    submit(executor)
    _kept.clear()


def shut_down(executor: Executor, submit: Submit, _path: str) -> None:
    """Shut it down without waiting."""
    submit(executor)
    executor.shutdown(wait=False)


def cancel(executor: Executor, submit: Submit, _path: str) -> None:
    """Shut it down without waiting, and cancel what has not begun."""
    first = submit(executor)
    while not first.running():  # else it would be cancelled too
        time.sleep(0.001)
    executor.shutdown(wait=False, cancel_futures=True)


def fail(executor: Executor, submit: Submit, _path: str) -> None:
    """Leave the program by an exception."""
    submit(executor)
    raise SystemExit(3)


def clean_up(executor: Executor, submit: Submit, path: str) -> None:
    """Have handlers called at the exit, registered before and after the jobs."""
    atexit.register(_jobs.note, path, "early handler")
    submit(executor)
    atexit.register(_jobs.note, path, "late handler")


def submit_late(executor: Executor, submit: Submit, path: str) -> None:
    """Submit a job in a handler that is called at the exit."""
    submit(executor)
    begin_late(executor, submit, path)


def begin_late(executor: Executor, _submit: Submit, path: str) -> None:
    """The same, and none before."""

    def handler() -> None:
        try:
            executor.submit(pow, 2, 2)
        except RuntimeError as error:
            _jobs.note(path, f"{type(error).__name__}: {error}")

    atexit.register(handler)


def main(name: str, module: str, file: str, cls: str, host: str, port: str, path: str) -> None:  # noqa: PLR0917 - as given on the command line
    """Run one of them."""
    address = (host, int(port))

    def submit(executor: Executor) -> Future[str]:
        futures = [executor.submit(_jobs.note, path, f"job {number}", address) for number in range(MANY)]
        return futures[0]

    try:
        run: Callable[[Executor, Submit, str], None] = globals()[name]
        _kept.append(_find(module, file, cls)().make(max_workers=1))
        run(_kept[0], submit, path)
    finally:
        print("end of the program", flush=True)  # noqa: T201 - whoever runs it waits for this


def _find(module: str, file: str, cls: str) -> Any:
    """Return a class of a test module, which may be known to nobody but pytest by its name."""
    if "<locals>" in cls:
        raise TypeError(f"class must be found by its name in another process: got {cls}; define it in a module")
    try:
        found = importlib.import_module(module)
    except ImportError:
        found = _load(module, file)
    if found.__file__ is None or Path(found.__file__).resolve() != Path(file).resolve():
        found = _load(module, file)
    return operator.attrgetter(cls)(found)


def _load(module: str, file: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(module, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"module {module} cannot be loaded: got {file!r}; put the class into a file of Python")
    found = sys.modules[module] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
