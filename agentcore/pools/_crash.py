"""The death of a worker process. A file of its own: the standard library's name for it is slow to import."""

from concurrent.futures.process import BrokenProcessPool

from agentcore.errors import WorkerCrashedError


class ProcessCrashedError(WorkerCrashedError, BrokenProcessPool):
    """The worker process of a job died while it ran; other jobs are not concerned. Details as of `WorkerCrashedError`."""
