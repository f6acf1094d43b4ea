"""How a supervisor mends, and what it runs."""

# No `from __future__ import annotations` here: the fields of public classes are read at run time, by cattrs and others.
# Their `__module__` reads agentcore, where names in strings could not be found.

from typing import Final, Protocol, final

import anyio.abc
import attrs

from agentcore._rules.backoff import Backoff, check_number, show
from agentcore._rules.restart import RestartType, SupervisionStrategy, to_member
from agentcore.errors import ConfigurationError

_DEFAULT_BACKOFF: Final = Backoff(initial=0.05, factor=2.0, maximum=5.0)


def _to_strategy(value: SupervisionStrategy | str) -> SupervisionStrategy:
    return to_member(SupervisionStrategy, "a Supervisor", "strategy", value)


@final
@attrs.frozen
class Supervisor:
    """How a supervisor mends what it runs.

    Args:
        strategy: who is started again together with an agent that has ended: ``one_for_one`` (nobody else), ``one_for_all``
            (all), ``rest_for_one`` (those that were started after it).
        intensity: how many restarts there may be within `period`; one more, and the supervisor gives up.
        period: seconds.
        backoff: how long an agent waits before it is started again.
        reset_after: seconds that it has to be up for, for that to begin anew.

    Raises:
        ConfigurationError: a value is not usable.
    """

    strategy: SupervisionStrategy = attrs.field(default=SupervisionStrategy.ONE_FOR_ONE, converter=_to_strategy)
    intensity: int = 3
    period: float = 5.0
    backoff: Backoff = _DEFAULT_BACKOFF
    reset_after: float = 10.0

    def __attrs_post_init__(self) -> None:
        subject = "a Supervisor"
        check_number(subject, "intensity", self.intensity, "use 0 to give up at the first", whole=True)
        check_number(subject, "period", self.period, "say within which time", above=True, unit="seconds")
        check_number(subject, "reset_after", self.reset_after, "say after which time", unit="seconds")
        if not isinstance(self.backoff, Backoff):
            raise ConfigurationError(
                f"backoff of {subject} must be a Backoff: got {show(self.backoff)}; write Backoff(initial=...)",
                {"name": "backoff", "value": self.backoff},
            )


def checked_supervisor(config: Supervisor | None) -> Supervisor:
    """Return a configuration: the given one, or the default.

    Raises:
        ConfigurationError: it is none.
    """
    if config is not None and not isinstance(config, Supervisor):
        raise ConfigurationError(
            f"supervisor must be a Supervisor: got {show(config)}; write Supervisor(strategy=...)",
            {"name": "supervisor", "value": config},
        )
    return config or Supervisor()


class Child(Protocol):
    """What a supervisor runs: an agent, or another supervisor."""

    name: str
    restart: RestartType

    @property
    def _incarnation(self) -> object:
        """What tells its lives apart."""

    async def _restart(self, group: anyio.abc.TaskGroup) -> None:
        """Be there once more."""

    async def _take_down(self, *, for_good: bool) -> None:
        """Be gone, and wait for that."""

    def _retire(self) -> None:
        """Be gone for good, and tell those who wait."""

    def _is_around(self) -> bool:
        """Tell whether this is called from inside."""
