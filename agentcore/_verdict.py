"""What the end of a call says of the service that was called.

| the call | says |
|---|---|
| raises an exception | `FAILURE`, unless it is excluded or `failure_if` denies it: `EXCLUDED` |
| raises a group of them | what its leaves say, the gravest first |
| is cancelled | `CANCELED`: nothing; but `TIMEOUT`, if a deadline was the cause and the call was older than `min_blame_ms` |
| was never made: a circuit breaker, a bulkhead or a rate limit rejected it | `EXCLUDED` |
| is closed or interrupted from the keyboard | `NOTHING` |
| raises SystemExit or the like | `FAILURE`: it was the called one's own act |
"""

from __future__ import annotations

import enum
import logging
import math
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from agentcore import _interop
from agentcore._rules.circuit_config import CircuitBreakerConfig
from agentcore.errors import AgentBusyError, BulkheadFullError, CircuitOpenError, RateLimitError, text_of

_logger: Final = logging.getLogger("agentcore.breaker")

_LONGEST: Final = 1e12
# Whoever is rejected on this side has not called the service, which says nothing of it.
_REJECTIONS: Final = (AgentBusyError, BulkheadFullError, CircuitOpenError, RateLimitError)


class Verdict(enum.IntEnum):
    """What a call says; the greater value goes first."""

    NOTHING = 0
    CANCELED = 1
    EXCLUDED = 2
    TIMEOUT = 3
    FAILURE = 4


class Judgement(NamedTuple):
    """A verdict, with what an open circuit tells of it."""

    verdict: Verdict
    error_type: str
    text: str
    is_timeout: bool
    retry_after: float | None


def judge(error: BaseException, seconds: float, config: CircuitBreakerConfig) -> Judgement:
    """Say what an exception means that a call has ended with.

    Args:
        error: the exception.
        seconds: how long the call took.
        config: of the breaker.
    """
    if isinstance(error, BaseExceptionGroup) and isinstance(error, config.excluded_exceptions):
        return _judgement(Verdict.EXCLUDED, error)
    found = Judgement(Verdict.NOTHING, "", "", False, None)
    for leaf in _interop.leaves_of(error):
        verdict = _judge_leaf(leaf, seconds, config)
        if verdict > found.verdict:
            found = _judgement(verdict, leaf)
    return found


def ask(predicate: Callable[[Any], bool], value: object, *, instead: bool) -> bool:
    """Ask a function of the user. One that raises is logged, and the call judged as if it were not there."""
    try:
        return bool(predicate(value))
    except Exception:
        _logger.exception("predicate %r of a circuit breaker raised; the call is judged without it", predicate)
        return instead


def _judge_leaf(error: BaseException, seconds: float, config: CircuitBreakerConfig) -> Verdict:
    excluded = config.excluded_exceptions
    cause = _interop.cancellation_cause(error)
    if cause is not None:
        late = cause == "deadline" and seconds * 1000 >= config.min_blame_ms
        return Verdict.TIMEOUT if late and not issubclass(TimeoutError, excluded) else Verdict.CANCELED
    if isinstance(error, GeneratorExit | KeyboardInterrupt):
        return Verdict.NOTHING
    if isinstance(error, (*excluded, *_REJECTIONS)):
        return Verdict.EXCLUDED
    if config.failure_if is not None and not ask(config.failure_if, error, instead=True):
        return Verdict.EXCLUDED
    return Verdict.FAILURE


def _judgement(verdict: Verdict, error: BaseException) -> Judgement:
    if verdict is Verdict.TIMEOUT:
        return Judgement(verdict, "timeout", "a deadline of the caller passed", True, None)
    name = type(error).__name__
    return Judgement(verdict, name, f"{name}: {text_of(error)}", isinstance(error, TimeoutError), _retry_after(error))


def _retry_after(error: BaseException) -> float | None:
    """Return the seconds that a service asks to be left alone for, if its error says so."""
    try:
        seconds = getattr(error, "retry_after", None)
        if isinstance(seconds, int | float) and not isinstance(seconds, bool) and 0 < seconds < math.inf:
            return float(min(seconds, _LONGEST))  # an integer may be longer than any float
    except Exception:
        _logger.exception("retry_after of a %s raised; nobody is asked to wait", type(error).__name__)
    return None
