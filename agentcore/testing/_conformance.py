"""The tests that an executor must pass to be one, for executors of users as for those of this library."""

from agentcore.testing._executors._calls import MapCases, SubmitCases
from agentcore.testing._executors._futures import CallbackCases, FutureCases, WaitCases
from agentcore.testing._executors._shutdown import ExitCases, ShutdownCases
from agentcore.testing._executors._workers import InitializerCases, ProcessCases, ThreadCases

__all__ = ["ExecutorConformance"]


class ExecutorConformance(
    SubmitCases,
    MapCases,
    FutureCases,
    CallbackCases,
    WaitCases,
    ShutdownCases,
    ExitCases,
    InitializerCases,
    ThreadCases,
    ProcessCases,
):
    """What the standard library's documentation says of its executors, as tests for any other one.

        class TestMine(ExecutorConformance):
            kind = "process"
            takes = frozenset({"initializer"})

            def make(self, **options):
                return MyExecutor(**options)

    A subclass in a test module, whose name begins as pytest wants it, has them all. The standard library's
    `ThreadPoolExecutor` and `ProcessPoolExecutor` pass them. The class is made anew in other processes, so it must be
    found by its name in its module, and `make` can use no fixtures.

    Attributes:
        kind: ``thread`` or ``process``: where jobs run.
        takes: the options that `make` knows besides ``max_workers``; by default all that the standard library's know. Tests
            of others are skipped.
        crash_costs: ``pool`` if a worker that dies takes the other jobs and the executor with it, as in the standard library;
            ``job`` if only its own.
        patience: seconds in which everything happens that should; what takes longer counts as hung, and fails.
    """
