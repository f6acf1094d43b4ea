"""How a circuit breaker behaves, as data."""

# No `from __future__ import annotations` here: the fields of public classes are read at run time, by cattrs and others.
# Their `__module__` reads agentcore, where names in strings could not be found.

import inspect
from collections.abc import Callable, Iterable
from typing import Any, Final, final

import attrs

from agentcore.errors import ConfigurationError

_LEAST_PROBE_TIMEOUT_MS: Final = 1000.0
_LEAST: Final = 0.001
_MOST: Final = 1e15  # in milliseconds, thirty thousand years
_MOST_CALLS: Final = 1_000_000


def _unusable(name: str, value: object, rule: str, remedy: str) -> ConfigurationError:
    return ConfigurationError(
        f"{name} of a circuit breaker must be {rule}: got {value!r}; {remedy}", {"name": name, "value": value}
    )


def _check_count(_: object, field: "attrs.Attribute[int]", value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise _unusable(field.name, value, "a whole number, 1 or more", "count calls")


def _check_optional_count(_: object, field: "attrs.Attribute[int | None]", value: object) -> None:
    if value is not None:
        _check_count(_, field, value)  # type: ignore[arg-type]


def _is_number(value: object) -> bool:
    # Compared and not `isfinite`: an integer may be longer than any float.
    return not isinstance(value, bool) and isinstance(value, int | float) and -_MOST <= value <= _MOST


def _check_period(_: object, field: "attrs.Attribute[float]", value: Any) -> None:
    if not _is_number(value) or value < _LEAST:
        raise _unusable(field.name, value, f"a number of milliseconds, {_LEAST} or more", "a second is 1000")


def _check_optional_period(_: object, field: "attrs.Attribute[float | None]", value: object) -> None:
    if value is not None:
        _check_period(_, field, value)  # type: ignore[arg-type]


def _check_rate(_: object, field: "attrs.Attribute[float | None]", value: Any) -> None:
    if value is not None and (not _is_number(value) or not 0 < value <= 1):
        raise _unusable(field.name, value, "a share, more than 0 and at most 1", "a half is 0.5")


def _check_jitter(_: object, field: "attrs.Attribute[float]", value: Any) -> None:
    if not _is_number(value) or not 0 <= value < 1:
        raise _unusable(field.name, value, "a share, 0 or more and less than 1", "0.1 is a tenth up or down")


def _check_backoff(_: object, field: "attrs.Attribute[float]", value: Any) -> None:
    if not _is_number(value) or not 1 <= value <= 1000:
        raise _unusable(field.name, value, "a factor from 1 to 1000", "1 keeps the period as it is, 2 doubles it")


def _check_blame(_: object, field: "attrs.Attribute[float]", value: Any) -> None:
    if not _is_number(value) or value < 0:
        raise _unusable(field.name, value, "a number of milliseconds, 0 or more", "0 blames a call for every deadline")


def _check_predicate(_: object, field: "attrs.Attribute[Any]", value: object) -> None:
    if value is not None and (not callable(value) or inspect.iscoroutinefunction(value)):
        raise _unusable(field.name, value, "a function that does not wait", "return True for what counts as a failure")


def _to_exceptions(value: object) -> tuple[type[BaseException], ...]:
    values: tuple[Any, ...] = tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else (value,)
    for one in values:
        if not (isinstance(one, type) and issubclass(one, BaseException)):
            raise _unusable("excluded_exceptions", one, "classes of exceptions", "write (KeyError, ...)")
    return values


@final
@attrs.frozen
class CircuitBreakerConfig:
    """How a circuit breaker behaves.

    A circuit opens by failures in a row; with a window, by so many failures among the latest calls or in the latest time;
    with a rate, by the share of them. Slow calls are counted by themselves, by the same rule.

    Args:
        failure_threshold: failures that open the circuit, in a row or within the window.
        success_threshold: successes that close a half-open circuit; as many probes may run at a time.
        reset_timeout_ms: milliseconds that the circuit stays open.
        excluded_exceptions: exceptions of these classes are no failures; of a group, those among its leaves.
        failure_if: tells whether an exception is a failure; all are, if omitted, but the excluded ones.
        failure_if_result: tells whether a result is one; none is, if omitted.
        window_calls: how many of the latest calls are looked at.
        window_ms: how many of the latest milliseconds are looked at; at most one of the two is given.
        failure_rate: share of the calls in the window that have to fail, instead of `failure_threshold`.
        minimum_calls: calls that have to be in the window before a share of them says anything.
        slow_call_ms: milliseconds from which on a call is slow, whatever comes of it; None for never. A slow probe failed.
        slow_call_rate: share of the calls in the window that have to be slow; `failure_threshold` of them, if omitted.
        backoff: what the open period is multiplied by with each time that a probe fails.
        max_reset_timeout_ms: what it never exceeds, also if an error asks for more by its ``retry_after`` (seconds); None
            for ten times `reset_timeout_ms`.
        jitter: share by which each open period is longer or shorter, at random.
        probe_timeout_ms: milliseconds that a probe may take, then it is cut and has failed, and that a permit of
            `allow_request` holds; None for `reset_timeout_ms`, one second at least.
        min_blame_ms: a call that is cut by a deadline of its caller has failed if it was older than this.

    Raises:
        ConfigurationError: a value is not usable, or two of them contradict each other.
    """

    failure_threshold: int = attrs.field(default=5, validator=_check_count)
    success_threshold: int = attrs.field(default=2, validator=_check_count)
    reset_timeout_ms: float = attrs.field(default=30_000.0, validator=_check_period)
    excluded_exceptions: tuple[type[BaseException], ...] = attrs.field(default=(), converter=_to_exceptions)
    failure_if: Callable[[BaseException], bool] | None = attrs.field(default=None, validator=_check_predicate)
    failure_if_result: Callable[[Any], bool] | None = attrs.field(default=None, validator=_check_predicate)
    window_calls: int | None = attrs.field(default=None, validator=_check_optional_count)
    window_ms: float | None = attrs.field(default=None, validator=_check_optional_period)
    failure_rate: float | None = attrs.field(default=None, validator=_check_rate)
    minimum_calls: int = attrs.field(default=10, validator=_check_count)
    slow_call_ms: float | None = attrs.field(default=None, validator=_check_optional_period)
    slow_call_rate: float | None = attrs.field(default=None, validator=_check_rate)
    backoff: float = attrs.field(default=1.0, validator=_check_backoff)
    max_reset_timeout_ms: float | None = attrs.field(default=None, validator=_check_optional_period)
    jitter: float = attrs.field(default=0.0, validator=_check_jitter)
    probe_timeout_ms: float | None = attrs.field(default=None, validator=_check_optional_period)
    min_blame_ms: float = attrs.field(default=10.0, validator=_check_blame)

    def __attrs_post_init__(self) -> None:
        rated = self.failure_rate is not None or self.slow_call_rate is not None
        if self.window_calls is not None and self.window_ms is not None:
            raise _unusable("window_ms", self.window_ms, "None next to window_calls", "choose one of the windows")
        if rated and self.window_calls is None and self.window_ms is None:
            name = "failure_rate" if self.failure_rate is not None else "slow_call_rate"
            raise _unusable(name, getattr(self, name), "given with a window", "add window_calls or window_ms")
        if self.slow_call_rate is not None and self.slow_call_ms is None:
            raise _unusable("slow_call_rate", self.slow_call_rate, "given with slow_call_ms", "say what slow is")
        if self.window_calls is not None and self.window_calls > _MOST_CALLS:
            raise _unusable("window_calls", self.window_calls, f"at most {_MOST_CALLS}", "lower it, or use window_ms")
        # A number that does not fit into the window could never be reached. Of the two, a rate has the one, its lack the other.
        if self.window_calls is not None:
            needed = {
                "failure_threshold" if rate is None else "minimum_calls"
                for rate, used in ((self.failure_rate, True), (self.slow_call_rate, self.slow_call_ms is not None))
                if used
            }
            for name in sorted(needed):
                if getattr(self, name) > self.window_calls:
                    raise _unusable(
                        name, getattr(self, name), f"at most window_calls ({self.window_calls})", "lower it"
                    )
        if self.max_reset_timeout_ms is not None and self.max_reset_timeout_ms < self.reset_timeout_ms:
            raise _unusable(
                "max_reset_timeout_ms",
                self.max_reset_timeout_ms,
                f"at least reset_timeout_ms ({self.reset_timeout_ms})",
                "raise it",
            )

    @property
    def reset_timeout(self) -> float:
        """Seconds that the circuit stays open at first."""
        return self.reset_timeout_ms / 1000

    @property
    def max_reset_timeout(self) -> float:
        """Seconds that the circuit stays open at most."""
        longest = self.max_reset_timeout_ms
        return (10 * self.reset_timeout_ms if longest is None else longest) / 1000

    @property
    def probe_timeout(self) -> float:
        """Seconds that a probe may take."""
        given = self.probe_timeout_ms
        return (max(self.reset_timeout_ms, _LEAST_PROBE_TIMEOUT_MS) if given is None else given) / 1000
