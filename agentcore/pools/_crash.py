"""The death of a worker process. A file of its own: the standard library's name for it is slow to import."""

from concurrent.futures.process import BrokenProcessPool
from concurrent.futures.thread import BrokenThreadPool

from agentcore.errors import WorkerCrashedError, WorkerPoolBrokenError


class ProcessCrashedError(WorkerCrashedError, BrokenProcessPool):
    """The worker process of a job died while it ran; other jobs are not concerned. Details as of `WorkerCrashedError`."""


class BrokenProcessesError(WorkerPoolBrokenError, BrokenProcessPool):
    """No worker process of a pool can be started. Details as of `WorkerPoolBrokenError`."""


class BrokenThreadsError(WorkerPoolBrokenError, BrokenThreadPool):
    """No worker thread of a pool can be started. Details as of `WorkerPoolBrokenError`."""
