"""What the tests of executors have in common: how one is made, and how its jobs are held."""

# ruff: noqa: TID251 - the interface of the standard library is what is tested here, with real threads

import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, Protocol, TypeVar, final

import pytest

from agentcore.testing._executors import _jobs

T = TypeVar("T")

MOMENT: Final = 0.05
"""Seconds in which something that must not happen is watched for."""
GLANCE: Final = 0.2
"""Seconds after which a program that is waited for is looked at."""
MANY: Final = 8
"""Jobs, of which the last has certainly not begun while the first is held by the only worker.

The standard library's processes have one or two further jobs sent to them ahead of time, which count as running.
"""

_SHARED: Final = pytest.StashKey[Executor]()


class Start(Protocol):
    """Makes an executor that is shut down at the end of the test."""

    def __call__(self, **options: Any) -> Executor:
        """Make one with these options."""


@final
class Gate:
    """Holds jobs, in threads and in processes, until it is opened; tells which of them run.

    Attributes:
        address: what jobs are given to find it.
        is_open: whether it holds nothing any more.
    """

    def __init__(self, patience: float) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._patience = patience
        self.is_open: bool = False
        self._lines: dict[str, socket.socket] = {}
        host, port = self._listener.getsockname()
        self.address: Final[_jobs.Address] = (host, port)

    def wait_for(self, count: int, is_vain: Callable[[], bool] | None = None) -> list[str]:
        """Wait until so many further jobs are held here; return their names.

        Args:
            count: of jobs.
            is_vain: tells whether none will come any more, and is asked now and then; these are those that have come then.
        """
        names: list[str] = []
        deadline = time.monotonic() + self._patience
        while len(names) < count and not (is_vain is not None and is_vain()):
            left = deadline - time.monotonic()
            if left <= 0:
                pytest.fail(f"no further job has begun within {self._patience:g} s; held are {sorted(self._lines)}")
            if select.select([self._listener], [], [], min(left, GLANCE))[0]:
                names.append(self._accept())
        return sorted(names)

    def _accept(self) -> str:
        line, _ = self._listener.accept()
        line.settimeout(self._patience)
        with line.makefile("r", encoding="utf-8") as text:
            name = text.readline().rstrip("\n")
        self._lines[name] = line
        return name

    def is_quiet(self) -> bool:
        """Tell whether no further job comes here for a moment."""
        return not select.select([self._listener], [], [], MOMENT)[0]

    def release(self, name: str) -> None:
        """Let one job go on."""
        self._lines.pop(name).close()

    def open(self) -> None:
        """Let all jobs go on, those too that come later."""
        self.is_open = True
        self._listener.close()
        for line in self._lines.values():
            line.close()
        self._lines.clear()


@final
class Notes:
    """What jobs have written into a file.

    Attributes:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path: Final = str(path)

    def read(self) -> list[str]:
        """Return the lines that there are by now."""
        path = Path(self.path)
        return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


class Cases:
    """Base of all tests of executors: what users say of theirs, and what the tests use."""

    kind: ClassVar[Literal["thread", "process"]] = "thread"
    """Whether jobs run in threads of this process or in processes of their own."""
    takes: ClassVar[frozenset[str]] = frozenset(
        {"initializer", "thread_name_prefix", "mp_context", "max_tasks_per_child"}
    )
    """Which options `make` knows besides ``max_workers``; those of the other kind do not matter."""
    crash_costs: ClassVar[Literal["job", "pool"]] = "pool"
    """What is lost when a worker process dies: its job, or all that the executor has, and the executor."""
    patience: ClassVar[float] = 30.0
    """Seconds in which everything happens that should; what takes longer counts as hung."""

    def make(self, **options: Any) -> Executor:
        """Make the executor that is tested. To be overridden.

        Args:
            options: ``max_workers`` and those named in `takes`, as the constructors of the standard library know them.
        """
        raise NotImplementedError(
            f"{type(self).__qualname__} must define make(self, **options), which makes an executor"
        )

    def release(self, executor: Executor) -> None:
        """End an executor that `make` has made, whatever state the test has left it in. May be overridden."""
        executor.shutdown(wait=True, cancel_futures=True)

    @pytest.fixture
    def start(self) -> Iterator[Start]:
        """Make executors for one test alone."""
        made: list[Executor] = []

        def start(**options: Any) -> Executor:
            made.append(self._promptly(self.make, **options))
            return made[-1]

        yield start
        for executor in made:
            self._promptly(self.release, executor)

    @pytest.fixture
    def executor(self, request: pytest.FixtureRequest) -> Executor:
        """Give one with two workers, for tests that do it no harm: starting processes takes its time."""
        node = request.node.getparent(pytest.Class)
        shared: Executor | None = node.stash.get(_SHARED, None)
        if shared is None:
            shared = node.stash[_SHARED] = self._promptly(self.make, max_workers=2)
            node.addfinalizer(lambda: self._promptly(self.release, shared))
        return shared

    # After `start`, so that no job is held any more when executors are shut down.
    @pytest.fixture
    def gate(self, start: Start) -> Iterator[Gate]:  # noqa: ARG002
        """Hold jobs."""
        gate = Gate(self.patience)
        yield gate
        gate.open()

    @pytest.fixture
    def notes(self, tmp_path: Path) -> Notes:
        """Have jobs leave a trace."""
        return Notes(tmp_path / "notes.txt")

    def _only(self, kind: Literal["thread", "process"]) -> None:
        if self.kind != kind:
            pytest.skip(f"only where jobs run in a {kind}")

    def _needs(self, option: str) -> None:
        if option not in self.takes:
            pytest.skip(f"make() takes no {option}")

    def _promptly(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Call a function that may hang: then the test fails instead."""
        outcome = self._apart(function, *args, **kwargs)
        try:
            return outcome.result(self.patience)
        except TimeoutError:
            if outcome.done():
                raise
            pytest.fail(f"{getattr(function, '__qualname__', function)} has not ended within {self.patience:g} s")

    def _apart(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> "Future[T]":
        """Call a function in a thread of its own."""
        outcome: Future[T] = Future()

        def call() -> None:
            try:
                outcome.set_result(function(*args, **kwargs))
            except BaseException as error:  # noqa: ASYNC103, BLE001 - handed to whoever asks
                outcome.set_exception(error)

        threading.Thread(target=call, daemon=True).start()
        return outcome

    def _hold(self, executor: Executor, gate: Gate, name: str = "held") -> "Future[Any]":
        """Submit a job and wait until it is held at the gate."""
        future = executor.submit(_jobs.hold, gate.address, name)
        assert gate.wait_for(1) == [name]
        return future

    def _queue(self, executor: Executor, notes: Notes) -> "list[Future[Any]]":
        """Submit many jobs behind the one that is held."""
        return self._promptly(
            lambda: [executor.submit(_jobs.note, notes.path, f"queued {number}") for number in range(MANY)]
        )
