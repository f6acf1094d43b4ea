"""What a runtime is given and what it tells of itself."""

# No `from __future__ import annotations` here: the fields of public classes are read at run time, by cattrs and others.
# Their `__module__` reads agentcore, where names in strings could not be found.

import math
from typing import final

import attrs

from agentcore._agent_records import is_seconds
from agentcore._retry import RetryBudget, RetryPolicy, check_retry
from agentcore._task_result import TaskResult, TaskStatistics
from agentcore.errors import ConfigurationError
from agentcore.pools._records import WorkerPoolsStatistics


def _check_count(_: object, field: "attrs.Attribute[int]", value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigurationError(
            f"{field.name} of a runtime must be a whole number, 1 or more: got {value!r}; pass one to RuntimeConfig",
            {"name": field.name, "value": value},
        )


def _check_grace(_: object, field: "attrs.Attribute[float]", value: object) -> None:
    if not is_seconds(value):
        raise ConfigurationError(
            f"{field.name} of a runtime must be a number of seconds, 0 or more: got {value!r}; use 0 to cut at once",
            {"name": field.name, "value": value},
        )


def _check_ageing(_: object, field: "attrs.Attribute[float]", value: object) -> None:
    if not (is_seconds(value) or value == math.inf):
        raise ConfigurationError(
            f"{field.name} of a runtime must be a number of seconds, 0 or more: got {value!r}; "
            "use math.inf for the most urgent first, however long others wait",
            {"name": field.name, "value": value},
        )


def _check_kept(_: object, field: "attrs.Attribute[int]", value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ConfigurationError(
            f"{field.name} of a runtime must be a whole number, 0 or more: got {value!r}; use 0 to keep none",
            {"name": field.name, "value": value},
        )


def _default_budget() -> RetryBudget:
    return RetryBudget(ratio=0.2, per_second=10, capacity=100)


def _check_retry(_: object, __: "attrs.Attribute[RetryPolicy | None]", value: object) -> None:
    check_retry("a runtime", value)


def _check_budget(_: object, field: "attrs.Attribute[RetryBudget | None]", value: object) -> None:
    if value is not None and not isinstance(value, RetryBudget):
        raise ConfigurationError(
            f"{field.name} of a runtime must be a RetryBudget: got {value!r}; use None for retries without a limit",
            {"name": field.name, "value": value},
        )


@final
@attrs.frozen(kw_only=True)
class RuntimeConfig:
    """How a runtime behaves.

    Args:
        in_flight: how many tasks run at a time.
        queue: how many submitted tasks may wait for that; then `submit` waits.
        ageing: seconds of waiting that are worth one step of `TaskPriority`, so that urgent ones go first and others do not
            wait for ever. Infinite for the most urgent first, however many of them come; 0 for the order of arrival.
        retention: how many tasks are remembered after their end, the newest.
        grace: seconds that tasks may go on for when the block has been left.
        retry: whether tasks that have failed are executed again, unless they or their handler say so themselves; None for no.
        retry_budget: pays for the retries of all tasks together, so that a service in trouble is not asked many times as
            much; None for no limit. By default there may be one for every five tasks with a policy and ten a second
            besides, and a hundred can be saved up.
        dead_letters: how many tasks are kept that have failed for good although they had a policy, the newest.

    Raises:
        ConfigurationError: a value is not usable.
    """

    in_flight: int = attrs.field(default=256, validator=_check_count)
    queue: int = attrs.field(default=1024, validator=_check_count)
    ageing: float = attrs.field(default=10.0, validator=_check_ageing)
    retention: int = attrs.field(default=256, validator=_check_count)
    grace: float = attrs.field(default=10.0, validator=_check_grace)
    retry: RetryPolicy | None = attrs.field(default=None, validator=_check_retry)
    retry_budget: RetryBudget | None = attrs.field(factory=_default_budget, validator=_check_budget, eq=False)
    dead_letters: int = attrs.field(default=256, validator=_check_kept)

    @classmethod
    def of(cls, config: "RuntimeConfig | None", grace: float | None) -> "RuntimeConfig":
        """Return a configuration: the given one, or the default, with another grace if one is given.

        Raises:
            ConfigurationError: it is none; or the grace is not usable.
        """
        if config is not None and not isinstance(config, cls):
            raise ConfigurationError(
                f"config of a runtime must be a RuntimeConfig: got {config!r}; write RuntimeConfig(in_flight=...)",
                {"name": "config", "value": config},
            )
        config = config or cls()
        return config if grace is None else attrs.evolve(config, grace=grace)


@final
@attrs.frozen(kw_only=True)
class ShutdownReport:
    """How a runtime was shut down.

    Attributes:
        reason: why what was cut short was.
        drained: whether everything came to its own end in time.
        cut_short: what was cancelled, as it ended, in the order of arrival.
        asks_cut_short: how many asks were cancelled; their callers were told.
        messages_dropped: how many messages to agents were not handled, or not to their end, because the runtime ended.
        jobs_cut_short: the functions of jobs in worker pools that did not come to their end, with the pool.
        agents_failed: names of the shared agents whose clean-up failed, with the error.
        duration: seconds it took.
    """

    reason: str
    drained: bool
    cut_short: tuple[TaskResult, ...]
    agents_failed: tuple[tuple[str, Exception], ...]
    duration: float
    asks_cut_short: int = 0
    messages_dropped: int = 0
    jobs_cut_short: tuple[str, ...] = ()

    def summary(self) -> str:
        """Return what happened in a line, with the first 20 tasks that were cut short by name."""
        if not (self.cut_short or self.asks_cut_short or self.messages_dropped or self.jobs_cut_short):
            return f"drained in {self.duration:.1f} s, nothing was cut short"
        names = [f"{result.type} {result.task_id} ({result.state})" for result in self.cut_short[:20]]
        if len(self.cut_short) > len(names):
            names.append(f"and {len(self.cut_short) - len(names)} more")
        if self.asks_cut_short:
            names.append(f"{self.asks_cut_short} asks")
        if self.messages_dropped:
            names.append(f"{self.messages_dropped} messages")
        names += self.jobs_cut_short[:20]
        if len(self.jobs_cut_short) > 20:
            names.append(f"and {len(self.jobs_cut_short) - 20} more jobs")
        return f"{self.reason} after {self.duration:.1f} s; cut short: {', '.join(names)}"


@final
@attrs.frozen(kw_only=True)
class RuntimeStatistics:
    """What a runtime has done.

    Attributes:
        state: ``new``, ``open``, ``draining`` or ``closed``.
        tasks: what became of its tasks.
        asks: how many executions by `AgentRuntime.ask` and `stream` are under way now.
        messages: how many messages to agents wait or are being handled now.
        pools: what its worker pools have done.
    """

    state: str
    tasks: TaskStatistics
    asks: int = 0
    messages: int = 0
    pools: WorkerPoolsStatistics = attrs.field(factory=WorkerPoolsStatistics)


@final
@attrs.frozen(kw_only=True)
class RuntimeHealth:
    """Whether a runtime works.

    Attributes:
        healthy: whether it takes tasks. A task that has failed does not make it unhealthy.
        state: ``new``, ``open``, ``draining``, ``closed``, or ``failed`` if a crash has ended it.
        failures: what has failed in the background and reached nobody so far, what ended the runtime first; as it is
            going to be raised at its exit.
        in_flight: slots that tasks use now.
        queued: tasks that wait for a slot now.
        asks: executions by `AgentRuntime.ask` and `stream` that are under way now.
    """

    healthy: bool
    state: str
    failures: tuple[BaseException, ...]
    in_flight: int
    queued: int
    asks: int
