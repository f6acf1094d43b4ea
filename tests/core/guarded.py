"""An agent's call behind a circuit breaker: the ways to guard it and to bring it about, and what the breaker shows then."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

import attrs
import pytest

from agentcore import (
    AgentContext,
    AgentRuntime,
    BaseAgent,
    BaseTask,
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitState,
)
from tests.core.outcomes import TABLE, Guard, Row, Scripted, Step, Told, pass_time

RESET: Final = 1.0
# The lease of a probe is longer than any test: a permit that is there again has been given back.
CONFIG: Final = CircuitBreakerConfig(
    failure_threshold=2, success_threshold=1, reset_timeout_ms=RESET * 1000, probe_timeout_ms=3_600_000
)
OUTAGE: Final = "outage"


def by_block(breaker: CircuitBreaker) -> Guard:
    """Guard a call by a block."""

    async def guard(step: Step) -> Any:
        async with breaker:
            return await step()

    return guard


WAYS: Final[Mapping[str, Callable[[CircuitBreaker], Guard]]] = {
    "execute": lambda breaker: breaker.execute,
    "decorator": lambda breaker: lambda step: breaker(step)(),
    "block": by_block,
}


def expecting(error: type[BaseException] | None) -> AbstractContextManager[Any]:
    """Return a block that has to raise an error, or none."""
    return nullcontext() if error is None else pytest.raises(error)


async def execute(row: Row, agent: Scripted) -> None:
    """Bring a row about by a direct execution."""
    with expecting(row.gives if isinstance(row.gives, type) else None):
        await agent.execute(AgentContext(task=BaseTask.create("scripted")))


async def run(row: Row, agent: BaseAgent) -> None:
    """Bring a row about by a task of the caller."""
    async with AgentRuntime() as runtime:
        runtime.registry("agents").register("scripted", agent)
        with expecting(row.waiter):
            await runtime.run("scripted", **row.options)


async def submit(row: Row, agent: Scripted) -> None:
    """Bring a row about by a task of the runtime."""
    async with AgentRuntime() as runtime:
        runtime.registry("agents").register("scripted", agent)
        handle = await runtime.submit("scripted", **row.options)
        await handle.wait()


ENTRIES: Final = (execute, run, submit)


def row_of(name: str) -> Row:
    """Return the row of this name."""
    return next(row for row in TABLE if row.name == name)


def counts_of(breaker: CircuitBreaker) -> dict[str, int]:
    """Return the numbers of a breaker's metrics that are not zero, but those of the outage and of the states."""
    metrics = attrs.asdict(breaker.metrics, recurse=False)
    types = dict(metrics.pop("failures_by_type"))
    metrics["failures"] -= types.pop(OUTAGE, 0)
    metrics |= {f"failures_by_type.{name}": number for name, number in types.items()}
    return {
        name: number
        for name, number in metrics.items()
        if number and name not in {"last_failure_at", "opened_count", "state_changes"}
    }


def told_by(row: Row) -> Told:
    """Return the breaker's cell of a row; a dash says that it is told nothing, and an open circuit stays as it is."""
    return row.breaker if isinstance(row.breaker, Told) else Told({}, CircuitState.OPEN)


async def await_probe(breaker: CircuitBreaker) -> None:
    """Have an outage open the circuit, and wait until the next call is its probe."""
    for _ in range(breaker.config.failure_threshold):
        await breaker.on_failure(OUTAGE)
    await pass_time(RESET)
    if (breaker.state, breaker.retry_after) != (CircuitState.OPEN, 0.0):
        raise AssertionError(f"the circuit is not due: {breaker!r}")


@attrs.frozen
class Aftermath:
    """What there is to see of a breaker after its one probe.

    Attributes:
        counts: as in `counts_of`.
        state: the state that the probe has left.
        retry_after: seconds until the next call may be made.
        allowed: whether it may be made by then.
        at_last: the state when that one has succeeded.
    """

    counts: Mapping[str, int]
    state: CircuitState
    retry_after: float | None
    allowed: bool
    at_last: CircuitState

    @classmethod
    def of(cls, told: Told) -> Aftermath:
        """Return what there is to see if the breaker was told so: whatever it was, no permit is lost."""
        wait = RESET if told.counts and told.after_probe is CircuitState.OPEN else 0.0
        return cls(told.counts, told.after_probe, wait, True, CircuitState.CLOSED)


async def aftermath(breaker: CircuitBreaker) -> Aftermath:
    """Look at a breaker whose probe is over, wait as long as it says, and make the next call."""
    counts, state, retry_after = counts_of(breaker), breaker.state, breaker.retry_after
    if retry_after:
        await pass_time(retry_after)
    allowed = await breaker.allow_request()
    await breaker.on_success()
    return Aftermath(counts, state, retry_after, allowed, breaker.state)
