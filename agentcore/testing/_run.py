"""Run one function in a simulation of its own."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import attrs

from ._failures import UnretrievedError, annotate
from ._kernel import Step
from ._schedule import FIFO, Recorder, Schedule, Strategy
from ._simulation import Backend, Simulation, strategy_of

# pytest leaves the frames of this file out of the traceback: the reader's own test comes first.
__tracebackhide__ = True


@attrs.frozen(eq=False)
class SimResult:
    """What became of one simulation.

    Attributes:
        backend: where it ran.
        schedule: its order, as data.
        value: what the function returned.
        error: what it raised or the simulation has found; None if all is well.
        now: the virtual time at the end, in seconds.
        steps: how many steps the tasks made.
        decisions: how often more than one task could have gone next.
        trace: every step, if asked for.
        names: what the tasks of the trace are called, by their numbers.
        fired: the faults that acted, as text.
    """

    backend: Backend
    schedule: Schedule
    value: Any
    error: BaseException | None
    now: float
    steps: int
    decisions: int
    trace: tuple[Step, ...] = ()
    names: Mapping[int, str] = attrs.field(factory=dict)
    fired: tuple[str, ...] = ()

    def unwrap(self) -> Any:
        """Return the value.

        Raises:
            BaseException: the error, if there is one.
        """
        if self.error is not None:
            raise self.error
        return self.value


def run_sim(
    function: Callable[..., Awaitable[Any]],
    *args: Any,
    backend: Backend = "asyncio",
    schedule: "Schedule | Strategy | str" = FIFO,
    record: bool = False,
    prepare: Callable[[Simulation], object] | None = None,
    **options: Any,
) -> SimResult:
    """Run an asynchronous function in a simulation of its own.

    Args:
        function: is called and awaited in the main task.
        *args: its arguments.
        backend: `asyncio` or `trio`.
        schedule: the order of the tasks.
        record: whether to write the order down as switches, whatever has chosen it.
        prepare: is called with the simulation before it starts.
        **options: further arguments of `Simulation`.

    Returns:
        What became of it. Errors and findings are in the result; only KeyboardInterrupt and SystemExit are raised.
    """
    schedule = Schedule.parse(schedule) if isinstance(schedule, str) else schedule
    strategy = strategy_of(schedule)
    recorder = Recorder(strategy) if record or not isinstance(schedule, Schedule) else None
    simulation = Simulation(backend, schedule=recorder or strategy, **options)
    value, error = None, None
    try:
        if prepare is not None:
            prepare(simulation)
        value = simulation.run(function, *args)
    except (KeyboardInterrupt, SystemExit):
        simulation._end()
        raise
    except BaseException as caught:  # noqa: ASYNC103 - told elsewhere
        if not simulation._started:
            simulation._end()
            raise  # nothing has run: it is the call that is wrong
        error = caught
    kernel = simulation._kernel
    now, steps = kernel.now, kernel.steps
    failure = simulation._end()
    if error is not None and isinstance(failure, UnretrievedError):
        annotate(error, [f"besides: {failure}"])  # a second error is no consequence of the first
    injection = simulation.injection
    return SimResult(
        backend=backend,
        schedule=Schedule(switches=tuple(recorder.switches)) if recorder is not None else schedule,  # type: ignore[arg-type]
        value=value,
        error=error if error is not None else failure,
        now=now,
        steps=steps,
        decisions=kernel.decisions,
        trace=simulation.trace,
        names=kernel.names,
        fired=tuple(str(fault) for fault in injection.fired) if injection is not None else (),
    )
