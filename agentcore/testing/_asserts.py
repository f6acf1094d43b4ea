"""Single promises, checked in one line: checkpoints, cancellation, leaks, determinism."""

import hashlib
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any

from ._failures import InvariantError, LeakError, NondeterminismError
from ._loops import current_task
from ._run import SimResult, run_sim
from ._schedule import FIFO, Schedule
from ._simulation import BACKENDS, Backend, current_simulation
from ._sweep import SweepReport, cancel_everywhere


@contextmanager
def assert_checkpoints() -> Iterator[None]:
    """Check that the block lets other tasks run at least once, and notices cancellation there.

    For code that runs in a simulation.

    Raises:
        InvariantError: the block never gave way.
        RuntimeError: no simulation runs here.
    """
    task = current_task()
    before = task.stops
    yield
    if task.stops == before:
        raise InvariantError("the block must execute a checkpoint: it never gave way")


@contextmanager
def assert_no_checkpoints() -> Iterator[None]:
    """Check that the block never lets other tasks run.

    For code that runs in a simulation.

    Raises:
        InvariantError: the block gave way.
        RuntimeError: no simulation runs here.
    """
    task = current_task()
    before = task.stops
    yield
    if task.stops != before:
        raise InvariantError(f"the block must execute no checkpoint: it gave way {task.stops - before} times")


def assert_cancellable(
    function: Callable[..., Awaitable[Any]],
    *args: Any,
    within: float = 0.0,
    backends: Sequence[Backend] = BACKENDS,
    schedule: Schedule | str = FIFO,
    **options: Any,
) -> SweepReport:
    """Check that an asynchronous function ends soon wherever it is cancelled, and does not swallow the cancellation.

    It is cancelled at every stop that it makes, one run each. It may finish regularly if it needs no more checkpoint for
    that; it may not go on to wait for anything else.

    Args:
        function: the function.
        *args: its arguments.
        within: the virtual seconds that it may take to end.
        backends: where to run it.
        schedule: the order of the tasks.
        **options: further arguments of `Simulation`.

    Returns:
        What was gone through.

    Raises:
        InvariantError: it took longer, or went on as if nothing had happened.
        LeakError: it left tasks behind.
    """

    async def scenario() -> None:
        await function(*args)

    return cancel_everywhere(
        scenario, modes=("block",), backends=backends, schedules=(schedule,), within=within, strict=True, **options
    )


@contextmanager
def assert_no_leaks(*resources: Any) -> Iterator[None]:
    """Check that the block leaves nothing behind.

    Tasks that were started in it are gone at its end, and so are functions in worker threads. For code that runs in a
    simulation.

    Args:
        *resources: what else must be as it was: each has `statistics()` (limiters, streams, pools, runtimes) or a `value`
            (semaphores), which is compared.

    Raises:
        LeakError: something is left.
        RuntimeError: no simulation runs here.
        TypeError: a resource has neither `statistics()` nor a `value`.
    """
    simulation = current_simulation()
    tasks = {task.task for task in simulation.tasks()}
    threads = simulation._kernel.threads.working
    before = [_state(resource) for resource in resources]
    yield
    left = tuple(task for task in simulation.tasks() if task.task not in tasks)
    found = [f"{len(left)} tasks"] if left else []
    if (working := simulation._kernel.threads.working - threads) > 0:
        found.append(f"{working} working threads")
    for resource, was in zip(resources, before, strict=True):
        if (now := _state(resource)) != was:
            found.append(f"{resource!r}, which was {was!r} and is {now!r}")
    if found:
        raise LeakError(f"the block leaves behind: {'; '.join(found)}", left, simulation.now)


def _state(resource: Any) -> object:
    # First the value: the statistics of a semaphore tell who waits, and not what is left.
    if hasattr(resource, "value"):
        return resource.value
    statistics = getattr(resource, "statistics", None)
    if callable(statistics):
        return statistics()
    raise TypeError(f"a resource must have statistics() or a value to compare: got {resource!r}")


def assert_deterministic(
    function: Callable[..., Awaitable[Any]],
    *args: Any,
    runs: int = 3,
    backends: Sequence[Backend] = BACKENDS,
    schedule: Schedule | str = "walk/1",
    **options: Any,
) -> str:
    """Check that a function depends on its schedule alone: not on real time, chance, or the order of a set.

    Args:
        function: the function.
        *args: its arguments.
        runs: how often to run it on each backend.
        backends: where to run it. All must give the same trace.
        schedule: the order of the tasks.
        **options: further arguments of `Simulation`.

    Returns:
        The hash of the trace.

    Raises:
        NondeterminismError: two runs differ; it names the first step that does.
        BaseException: what the function raises.
    """
    if runs < 1 or not backends:
        raise ValueError(f"it takes at least 1 run on 1 backend to compare: got {runs!r} runs on {backends!r}")
    first: SimResult | None = None
    for backend in [backend for backend in backends for _ in range(runs)]:
        result = run_sim(function, *args, backend=backend, schedule=schedule, trace=True, **options)
        result.unwrap()
        first = first or result
        _compare(first, result)
    assert first is not None
    return trace_hash(first)


def _compare(first: SimResult, second: SimResult) -> None:
    for index, (one, other) in enumerate(zip_longest(first.trace, second.trace)):
        if one != other:
            raise NondeterminismError(
                f"two runs with the same schedule differ from step {index} on: on {first.backend} it was "
                f"[{one}], on {second.backend} it is [{other}]"
            )


def trace_hash(result: SimResult) -> str:
    """Return 16 hexadecimal digits that are the same for the same trace, on every backend, version and machine."""
    text = "\n".join(map(str, result.trace))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
