"""Pools of processes."""

from __future__ import annotations

import os
import pickle
import selectors
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextvars import Context
from pathlib import Path
from typing import Any, ClassVar, Final, TypeVar, final

from agentcore import _interop
from agentcore.errors import JobCancelledError, WorkerCrashedError, WorkerPoolBrokenError, WorkerPoolError
from agentcore.pools import _child
from agentcore.pools._calls import WorkerCalls
from agentcore.pools._jobs import SETTLED, Job, own_error, propagated_to_thread
from agentcore.pools._owning import WorkerOwningPool
from agentcore.pools._records import ProcessWorkerPoolConfig, WorkerPoolConfig, WorkerPoolType
from agentcore.pools._settling import Worker

ATTEMPTS: Final = 3
"""How often a job that has not begun is given to another worker, and how often in turn a worker may fail to start."""
LAST_MOMENTS: Final = 1.0
"""Seconds that a worker has to end by itself when there is nothing more to do."""
KEPT: Final = 8 << 20
"""Bytes that the file of a worker keeps for the next job; what a greater one has taken is given back."""


class RemoteTraceback(Exception):  # noqa: N818 - no error of its own, but what one is said to come from
    """The traceback of an exception in the worker process where it was raised, as text: the cause of that exception."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


@final
class ProcessWorkerPool(WorkerCalls, WorkerOwningPool):
    """Runs functions in processes: for what computes in Python, and for what must not harm this process.

        pool = ProcessWorkerPool("measures")
        async with pool:
            print(await pool.asubmit(measure, path))

    Functions, arguments and results are pickled, so a function has to be found by its name in a module. Each worker is started
    afresh, never forked. A job whose caller is cancelled, or that takes too long, is killed with its worker, and another one
    takes its place; a worker that dies costs the job that it has begun and no other.

    Args:
        name: what it is called, in messages, metrics and the names of its threads.
        config: how it behaves.

    Raises:
        ConfigurationError: an argument is not usable.
    """

    pool_type: ClassVar[WorkerPoolType] = WorkerPoolType.PROCESS
    config_type: ClassVar[type[WorkerPoolConfig]] = ProcessWorkerPoolConfig

    def __init__(self, name: str, config: WorkerPoolConfig | None = None) -> None:
        super().__init__(name, config)
        own = self.config
        assert isinstance(own, ProcessWorkerPoolConfig)  # `config_type` makes it  # noqa: S101
        self._own: Final = own
        self._max_jobs = own.max_jobs_per_worker
        self._failed_starts = 0
        # What it brings back of a class of the main module says that it is of `__mp_main__`, as with multiprocessing.
        sys.modules.setdefault("__mp_main__", sys.modules["__main__"])

    def _run(self, worker: Worker, job: Job) -> tuple[Any, BaseException | None]:
        try:
            variables = self._propagated(job.context)
            content = _child.pickled((job.function, job.args, job.kwargs, variables))
        except BaseException as error:  # noqa: ASYNC103, BLE001 - it belongs to whoever waits
            error.add_note(f"raised while job {job.describe()} was pickled for worker pool {self.name!r}")
            return None, error  # noqa: ASYNC104 - told elsewhere
        return self._ask(worker, job, content)

    def _ask(self, worker: Worker, job: Job, content: list[bytes]) -> tuple[Any, BaseException | None]:
        """Have a worker process do it; another one, if that has died before it began."""
        exit_code: int | None = None
        for _ in range(ATTEMPTS):
            child: Child | None = worker.child
            if child is None:
                try:
                    child = self._start_child(worker)
                except BaseException as error:  # noqa: ASYNC103, BLE001 - told to everybody, or tried again
                    if not job.is_unwanted and self._gives_up(error):
                        self._break(error)
                        return None, self._broken_error()  # noqa: ASYNC104 - told elsewhere
                    if job.is_unwanted:
                        break  # noqa: ASYNC104 - told elsewhere
                    continue  # noqa: ASYNC104 - told elsewhere
            answer = child.ask(content) if not job.is_unwanted else None
            if answer is not None:
                outcome = self._decode(job, *answer)
                if isinstance(answer[1], memoryview):
                    answer[1].release()
                    child.tidy()
                return outcome
            exit_code = child.reap()
            worker.child = None
            if job.is_unwanted or child.has_begun:
                break
        if job.is_unwanted or job.state is SETTLED:
            return None, JobCancelledError(
                f"job {job.describe()} of worker pool {self.name!r} was killed with its worker: got nobody who still waits for it",
                {"pool": self.name},
            )
        return None, self._crash(job, exit_code)

    def _start_child(self, worker: Worker) -> Child:
        if getattr(sys.modules.get(_child.WORKER), "is_loading_main", False):
            raise WorkerPoolError(
                f"worker pool {self.name!r} must not start workers while a worker loads the main module of the program: "
                "got a program that does so when it is imported; put what it does behind `if __name__ == '__main__':`",
                {"pool": self.name},
            )
        worker.is_starting = True  # which has a limit of its own
        child = Child()
        with self._lock:
            worker.child = child  # from now on it can be killed
            if worker.job is not None and worker.job.is_unwanted:
                child.kill()  # which nobody could before
        try:
            child.boot(self._own)
        except BaseException:
            worker.child = None
            worker.is_starting = False
            child.kill()
            child.reap()
            raise
        self._failed_starts = 0
        with self._lock:
            if worker.job is not None:
                worker.job.started = _interop.clock()
            worker.is_starting = False
        return child

    def _gives_up(self, error: BaseException) -> bool:
        """Tell whether a worker that could not be started means that none can."""
        with self._lock:
            self._failed_starts += 1
        return not isinstance(error, _StartError) or self._failed_starts >= ATTEMPTS

    def _crash(self, job: Job, exit_code: int | None) -> WorkerCrashedError:
        from agentcore.pools._crash import ProcessCrashedError  # noqa: PLC0415 - slow to import, and rarely needed

        how = "unknown" if exit_code is None else f"signal {-exit_code}" if exit_code < 0 else f"exit code {exit_code}"
        return ProcessCrashedError(
            f"the worker of job {job.describe()} in pool {self.name!r} must live until the job has ended: got {how}; "
            "look for what ends the process: the job itself, or the system for want of memory",
            {"pool": self.name, "function": job.describe(), "exit_code": exit_code},
        )

    def _decode(self, job: Job, kind: int, content: bytes | memoryview) -> tuple[Any, BaseException | None]:
        """Return what a worker has answered. Whatever loading it does, the pool goes on."""
        try:
            if kind == _child.RESULT:
                return pickle.loads(content), None
            return None, own_error(decode_error(kind, content), job, self.name)
        except BaseException as error:  # noqa: ASYNC103, BLE001 - it belongs to whoever waits
            wrapped = WorkerPoolError(
                f"the outcome of job {job.describe()} in worker pool {self.name!r} must be loadable here: got {error!r}; "
                "return something simpler",
                {"pool": self.name, "function": job.describe()},
            )
            wrapped.__cause__ = error
            return None, wrapped  # noqa: ASYNC104 - told elsewhere

    def _propagated(self, context: Context | None) -> Mapping[str, Any]:
        wanted = self._own.propagate
        if not wanted or context is None:
            return {}
        found = {name: value for name, value in propagated_to_thread(context).items() if name in wanted}
        if len(wanted) > len(found):
            for variable, value in context.items():
                if variable.name in wanted and _can_travel(value):
                    found[variable.name] = value
        return found

    def _broken_class(self) -> type[WorkerPoolBrokenError]:
        from agentcore.pools._crash import BrokenProcessesError  # noqa: PLC0415 - it is slow to import

        return BrokenProcessesError

    def _close(self, worker: Worker) -> None:
        child: Child | None = worker.child
        if child is not None:
            child.close()
            worker.child = None

    def _interrupt(self, worker: Worker, job: Job) -> bool:
        job.is_unwanted = True
        if worker.child is not None:
            worker.child.kill()
        return True

    def _is_free_soon(self, worker: Worker) -> bool:
        return True


_ANSWERS: Final = frozenset((_child.RESULT, _child.ERROR, _child.PARTS, _child.TEXT))


class _StartError(Exception):
    """A worker process ended, or was silent for too long, before it was ready."""


@final
class Child:
    """One worker process, as its pool sees it. Used by one thread; `kill` by any.

    Attributes:
        has_begun: if it has died, whether it had begun the job that it was given last.
    """

    def __init__(self) -> None:
        self.has_begun = False
        self._serial = 0
        self._is_reaped = False
        self._socket, theirs = (_above_stdio(end) for end in socket.socketpair())
        self._file = _above_stdio(_file_in_memory())
        # Whose other end closes with this process, and with nothing else.
        lifeline, self._line = (_above_stdio(end) for end in os.pipe())
        numbers = (theirs.fileno(), self._file, lifeline)
        _lines.update((self._line, theirs.fileno()))
        try:
            self._process = subprocess.Popen(
                # -P: the folder of the script is no place for modules to be found in.
                [sys.executable, "-P", *_options(), str(Path(_child.__file__)), *map(str, numbers)],
                stdin=subprocess.DEVNULL,
                pass_fds=numbers,
            )
        except BaseException:
            self._socket.close()
            os.close(self._file)
            self._close_line()
            raise
        finally:
            os.close(lifeline)
            _lines.discard(theirs.fileno())
            theirs.close()
        self._channel = _child.Channel(self._socket.fileno(), self._file)

    def boot(self, config: ProcessWorkerPoolConfig) -> None:
        """Make it ready.

        Raises:
            _StartError: it ended, or took too long.
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
            raise _StartError("a worker process ended before it was ready, or was not ready in time")
        if answer[0] == _child.BROKEN:
            kind, content = pickle.loads(answer[2])
            raise decode_error(kind, b"".join(content))

    def _answers(self, timeout: float | None) -> bool:
        """Tell whether something comes from it within so many seconds."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._socket, selectors.EVENT_READ)
            return bool(selector.select(timeout))

    def ask(self, content: list[bytes]) -> tuple[int, bytes | memoryview] | None:
        """Have it do a job; return its answer, None if it has died. Then `has_begun` tells whether the job had been begun."""
        self._serial += 1
        answer = None
        try:
            self._channel.send(_child.JOB, self._serial, content)
            answer = self._channel.receive()
            if answer is not None and (answer[1] != self._serial or answer[0] not in _ANSWERS):
                raise ValueError(f"an answer must be one to job {self._serial}: got {answer[:2]}")
        except OSError:
            pass  # it is gone
        except Exception:  # noqa: BLE001 - a job has written to the line, and nothing on it can be believed
            answer = None
            self.kill()
        if answer is None:
            begun = os.pread(self._file, 8, 0)
            self.has_begun = int.from_bytes(begun, "little") == self._serial
            return None
        return answer[0], answer[2]

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
        self._socket.close()
        try:
            exit_code = self._process.wait(LAST_MOMENTS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            exit_code = self._process.wait()
        if not self._is_reaped:
            self._is_reaped = True
            os.close(self._file)
            self._close_line()
        return exit_code

    def _close_line(self) -> None:
        _lines.discard(self._line)
        os.close(self._line)

    def close(self) -> None:
        """Let it end, and wait for that."""
        self.reap()


def _can_travel(value: object) -> bool:
    try:
        pickle.dumps(value)
    except Exception:  # noqa: BLE001 - whatever it is: it stays here
        return False
    return True


def decode_error(kind: int, content: bytes | memoryview) -> BaseException:
    """Return the error that a worker process has told of, with its traceback as the cause."""
    loaded = pickle.loads(content)
    text: str = loaded[-1]
    if kind == _child.ERROR:
        error: BaseException = loaded[0]
    elif kind == _child.PARTS:
        cls, args, state, _ = loaded
        error = cls.__new__(cls, *args)
        error.args = args
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


D = TypeVar("D", int, socket.socket)


def _above_stdio(descriptor: D) -> D:
    """Return a descriptor that is none of the three which a job prints to: a program may have been started without those."""
    number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
    if number > 2:
        return descriptor
    import fcntl  # noqa: PLC0415 - not on Windows

    higher: int = fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 3)
    if isinstance(descriptor, int):
        os.close(descriptor)
        return higher
    descriptor.close()
    return socket.socket(fileno=higher)


def _file_in_memory() -> int:
    make = getattr(os, "memfd_create", None)  # Linux alone
    if make is not None:
        file: int = make("agentcore-worker", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as temporary:
            file = os.dup(temporary.fileno())
    os.ftruncate(file, _child.OFFSET)
    return file


# The ends of the lines to workers that this process holds. What it forks must let go of them: a line ends when the last end
# is closed.
_lines: Final[set[int]] = set()


def _let_go() -> None:
    for line in _lines:
        os.close(line)
    _lines.clear()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_let_go)
