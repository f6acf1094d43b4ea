"""Pools of processes."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Mapping
from contextvars import Context
from typing import Any, ClassVar, Final, final

from agentcore import _interop
from agentcore.errors import JobCancelledError, WorkerCrashedError, WorkerPoolBrokenError, WorkerPoolError
from agentcore.pools import _child
from agentcore.pools._calls import WorkerCalls
from agentcore.pools._jobs import SETTLED, Job, own_error, propagated_to_thread
from agentcore.pools._owning import WorkerOwningPool
from agentcore.pools._records import ProcessWorkerPoolConfig, WorkerPoolConfig, WorkerPoolType
from agentcore.pools._settling import Worker, closed_gate
from agentcore.pools._worker_process import Child, StartError, decode_error

ATTEMPTS: Final = 3
"""How often a job that has not begun is given to another worker, and how often in turn a worker may fail to start."""
LOOK: Final = 65536
"""Bytes after which whoever submits a job stops to pickle it. What is longer keeps its event loop for too long, and is left to
the thread of a worker."""


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

    # What whoever submits a job does himself, if a worker has nothing to do: so no thread has to be woken up to send it.

    def _admit(self, job: Job, *, must_fit: bool) -> None:
        # A look without the lock: whoever is mistaken has pickled something that he would not have had to, or goes the long way.
        if self._idle and not self._queue and job.hand_off is None:
            self._prepare(job)
            if self._give(job):
                return
        super()._admit(job, must_fit=must_fit)

    def _prepare(self, job: Job) -> None:
        """Pickle a job, unless that takes long."""
        parts = _Beginning()
        try:
            self._pickle(job, parts)
            job.content = parts
        except (_TooLong, RecursionError):
            return  # a thread of its own has more room on its stack, too
        except Exception as error:  # noqa: BLE001 - it belongs to whoever waits
            job.content = error

    def _pickle(self, job: Job, parts: _child.Parts | _Beginning) -> None:
        try:
            pickle.Pickler(parts, 5).dump((job.function, job.args, job.kwargs, self._propagated(job.context)))
        except _TooLong:
            raise
        except BaseException as error:
            error.add_note(f"raised while job {job.describe()} was pickled for worker pool {self.name!r}")
            raise

    def _give(self, job: Job) -> bool:
        """Send a job to a process that has nothing to do; tell whether there was one."""
        content = job.content
        if not isinstance(content, _Beginning) or content.length > _child.INLINE:
            return False
        with self._lock:
            if self._state != "open" or self._queue:
                return False
            if job.deadline is not None or self._is_limited:
                self._watch(job)
            now = _interop.clock()
            if job.deadline is not None and job.deadline <= now:
                return False
            # Nothing comes between these two: the collector of garbage may submit something as well.
            if not self._idle or self._idle[-1].child is None or not self._idle[-1].child.bell.is_ours:
                return False
            worker = self._idle.pop()
            self._begin(worker, job, now)
            # With the lock, lest the child goes meanwhile and its descriptor becomes somebody else's. It never waits: nothing
            # else is on the line of a child that has nothing to do, and so much fits in.
            worker.child.give(content)
        return True

    # What the thread of a worker does.

    def _sleep(self, worker: Worker) -> bool:
        child: Child | None = worker.child
        if child is not None:
            is_awake = child.bell.wait(self.config.idle_timeout)
            if not is_awake or worker.job is not None or not self._lose(worker):
                return False
            child.kill()
            child.reap()
        return super()._sleep(worker)

    def _lose(self, worker: Worker) -> bool:
        """Take the child from a worker that nobody has called, and that something has come from all the same: its end, or nonsense.

        Tell whether it is so. The next job goes to a worker that has one, if there is any.
        """
        with self._lock:
            if worker not in self._idle:
                return False
            self._idle.remove(worker)
            self._idle.insert(0, worker)
            self._set_child(worker, None)
        return True

    def _set_child(self, worker: Worker, child: Child | None) -> None:
        worker.child = child
        worker.gate = closed_gate() if child is None else child.bell

    def _run(self, worker: Worker, job: Job) -> tuple[Any, BaseException | None]:
        content, job.content = job.content, None
        try:
            if isinstance(content, Exception):
                raise content
            if content is None:
                content = _child.Parts()
                self._pickle(job, content)
        except BaseException as error:  # noqa: ASYNC103, BLE001 - it belongs to whoever waits
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
            self._set_child(worker, None)
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
            self._set_child(worker, child)  # from now on it can be killed
            if worker.job is not None and worker.job.is_unwanted:
                child.kill()  # which nobody could before
        try:
            child.boot(self._own)
        except BaseException:
            self._set_child(worker, None)
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
        return not isinstance(error, StartError) or self._failed_starts >= ATTEMPTS

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
            self._set_child(worker, None)
            child.close()

    def _interrupt(self, worker: Worker, job: Job) -> bool:
        job.is_unwanted = True
        if worker.child is not None:
            worker.child.kill()
        return True

    def _is_free_soon(self, worker: Worker) -> bool:
        return True


class _TooLong(Exception):  # noqa: N818 - none that anybody sees
    """More has been pickled than is looked at."""


@final
class _Beginning(list[bytes]):
    """What was pickled, in pieces, as long as it is short."""

    length = 0

    def write(self, part: bytes) -> None:
        """Add a piece; the pickler does so once for what is short."""
        self.length += len(part)
        if self.length > LOOK:
            raise _TooLong
        self.append(part)


def _can_travel(value: object) -> bool:
    try:
        pickle.dumps(value)
    except Exception:  # noqa: BLE001 - whatever it is: it stays here
        return False
    return True
