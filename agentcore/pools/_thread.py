"""Pools of threads."""

from __future__ import annotations

from types import CoroutineType
from typing import Any, ClassVar, Final, final

from agentcore.errors import JobCancelledError, WorkerPoolBrokenError, WorkerPoolError
from agentcore.pools._calls import WorkerCalls
from agentcore.pools._jobs import RUNNING, Job, current_worker, own_error
from agentcore.pools._owning import WorkerOwningPool
from agentcore.pools._records import ThreadWorkerPoolConfig, WorkerPoolConfig, WorkerPoolType
from agentcore.pools._settling import Worker


@final
class ThreadWorkerPool(WorkerCalls, WorkerOwningPool):
    """Runs functions in threads: for what waits without an event loop, and for what computes without the interpreter's lock.

        pool = ThreadWorkerPool("parsers")
        with pool:
            future = pool.submit(parse, text)
            print(future.result())

    It can be made and used with or without an event loop, and from several at a time. A thread cannot be stopped: a job that
    nobody waits for any more learns of that by `check_cancelled`, and may be left behind, see `options`.

    Args:
        name: what it is called, in messages, metrics and the names of its threads.
        config: how it behaves.

    Raises:
        ConfigurationError: an argument is not usable.
    """

    pool_type: ClassVar[WorkerPoolType] = WorkerPoolType.THREAD
    config_type: ClassVar[type[WorkerPoolConfig]] = ThreadWorkerPoolConfig

    def __init__(self, name: str, config: WorkerPoolConfig | None = None) -> None:
        super().__init__(name, config)
        own = self.config
        assert isinstance(own, ThreadWorkerPoolConfig)  # `config_type` makes it  # noqa: S101
        self._own: Final = own
        self._max_jobs = own.max_jobs_per_worker

    def _open(self, worker: Worker) -> None:
        if self._own.initializer is not None:
            self._own.initializer(*self._own.initargs)

    def _broken_class(self) -> type[WorkerPoolBrokenError]:
        from agentcore.pools._crash import BrokenThreadsError  # noqa: PLC0415 - it is slow to import

        return BrokenThreadsError

    def _run(self, worker: Worker, job: Job) -> tuple[Any, BaseException | None]:
        function, context = job.function, job.context
        assert function is not None and context is not None  # it has not ended  # noqa: S101, PT018
        try:
            value = context.run(function, *job.args, **job.kwargs)
            if type(value) is CoroutineType:
                value.close()
                raise WorkerPoolError(
                    f"a job of worker pool {self.name!r} must be a plain function: got coroutine function {job.describe()}; "
                    "use a QueueWorkerPool, or await it",
                    {"pool": self.name, "function": job.describe()},
                )
            return value, None
        except BaseException as error:  # noqa: ASYNC103, BLE001 - it belongs to whoever waits
            return None, own_error(error, job, self.name)  # noqa: ASYNC104 - told elsewhere

    def _interrupt(self, worker: Worker, job: Job) -> bool:
        job.is_unwanted = True  # `check_cancelled` says so
        return False

    def _is_free_soon(self, worker: Worker) -> bool:
        return False

    @property
    def _max_abandoned(self) -> int:
        return self._size if self._own.max_abandoned is None else self._own.max_abandoned


def check_cancelled() -> None:
    """Raise if nobody waits any more for the job of a thread pool that calls this. In all other places it does nothing.

    Its caller was cancelled, it took longer than its timeout, or its pool was shut down: a job that takes long calls this
    now and then, and lets the error end it.

    Raises:
        JobCancelledError: nobody waits for it.
    """
    worker = current_worker()
    job = worker.job if worker is not None else None
    if job is not None and (job.is_unwanted or job.state is not RUNNING):
        raise JobCancelledError(
            f"job {job.describe()} of worker pool {worker.pool.name!r} should end: got nobody who still waits for it; "
            "let this error end it",
            {"pool": worker.pool.name},
        )
