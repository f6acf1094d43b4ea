"""The errors of circuit breakers and of the layers around a call: where they stand, what they tell, how they travel."""

from __future__ import annotations

import copy
import gc
import logging
import pickle
import traceback
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from agentcore import (
    BulkheadFullError,
    CallTimeoutError,
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitBreakerError,
    CircuitMode,
    CircuitOpenError,
    CircuitState,
    CircuitTimeoutError,
    CoreError,
    PipelineError,
    RateLimitError,
    Severity,
)

# The errors, each with its bases, its code and what people are told who must not see internals.
NOT_AVAILABLE = "A service is not available at the moment."
TREE: dict[type[CoreError], tuple[tuple[type, ...], str, str]] = {
    CircuitBreakerError: ((CoreError,), "circuit_breaker", NOT_AVAILABLE),
    CircuitOpenError: ((CircuitBreakerError,), "circuit_open", f"{NOT_AVAILABLE} Please try again later."),
    CircuitTimeoutError: (
        (CircuitBreakerError, TimeoutError),
        "circuit_timeout",
        "A service did not answer in time.",
    ),
    PipelineError: ((CoreError,), "pipeline", NOT_AVAILABLE),
    CallTimeoutError: ((PipelineError, TimeoutError), "call_timeout", "A service did not answer in time."),
    BulkheadFullError: ((PipelineError,), "bulkhead_full", "A service is busy. Please try again later."),
    RateLimitError: ((PipelineError,), "rate_limit", "There were too many calls. Please try again later."),
}

every_copy = pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))],
    ids=["copy", "deepcopy", "pickle"],
)


class GoneError(Exception):
    """What opens the circuits here."""


def go_wrong(text: str = "the service is gone") -> None:
    """Fail as a service does."""
    raise GoneError(text)


def opened(text: str = "the service is gone", name: str = "mail") -> CircuitBreaker:
    """Make a breaker that one failure has opened, on a clock that stands still."""
    breaker = CircuitBreaker(name, CircuitBreakerConfig(failure_threshold=1), clock=lambda: 100.0)
    with pytest.raises(GoneError):
        breaker.call(go_wrong, text)
    return breaker


def rejected(breaker: CircuitBreaker) -> CircuitOpenError:
    """Return the error of a call that is not let through."""
    with pytest.raises(CircuitOpenError) as caught:
        breaker.call(go_wrong)
    return caught.value


TEXT = (
    "circuit 'mail' lets no call through: got one while it is open; wait for 30 s, or do without "
    "(it opened because of GoneError: the service is gone)"
)
DETAILS = {
    "circuit_name": "mail",
    "state": CircuitState.OPEN,
    "retry_after": 30.0,
    "last_error": "GoneError: the service is gone",
}


@pytest.mark.parametrize("cls", TREE, ids=lambda cls: cls.__name__)
def test_tree(cls: type[CoreError]) -> None:
    """Each stands below its bases, those of Python included, and has a code and a text for outsiders of its own."""
    bases, code, safe_text = TREE[cls]
    assert (bases, code, Severity.WARNING) == (cls.__bases__, cls.code, cls.severity)
    error = cls("message", {"secret": 1})
    assert ("message", "message", safe_text) == (str(error), error.message, error.safe_message())
    assert {"secret": 1} == error.details


@pytest.mark.parametrize("cls", [CircuitOpenError, RateLimitError])
def test_retry_after(cls: type[CircuitOpenError | RateLimitError]) -> None:
    """It is one of the details, None if there is none."""
    assert (2.5, None) == (cls("message", {"retry_after": 2.5}).retry_after, cls("message").retry_after)


@pytest.mark.parametrize("cls", [CircuitTimeoutError, CallTimeoutError])
def test_a_timeout_is_also_pythons(cls: type[CoreError]) -> None:
    """Whoever catches TimeoutError catches it, and its text is not that of an OSError."""
    error = cls("too long", {"timeout": 5.0})
    assert (True, True, "too long", None) == (
        isinstance(error, TimeoutError),
        isinstance(error, OSError),
        str(error),
        error.errno,  # type: ignore[attr-defined]
    )


# What a rejection tells. Its text and details are made when somebody reads them.


def test_rejection() -> None:
    """It names the circuit, its state, how long to wait and why it opened, in words and as values."""
    error = rejected(opened())
    assert (TEXT, TEXT, f"CircuitOpenError({TEXT!r})") == (str(error), error.message, repr(error))
    assert (DETAILS, 30.0, False) == (error.details, error.retry_after, error.retryable)
    assert list(DETAILS) == list(error.details)


@pytest.mark.parametrize("first", ["details", "message", "retry_after", "args"])
def test_rejection_is_the_same_in_whatever_order_it_is_read(first: str) -> None:
    """What is read first makes no difference to the rest, and details are made once."""
    error = rejected(opened())
    getattr(error, first)
    assert (TEXT, DETAILS, 30.0) == (error.message, error.details, error.retry_after)
    error.details["note"] = "added by who has caught it"
    assert "added by who has caught it" == error.details["note"]


def test_rejection_by_hand() -> None:
    """Nobody knows how long a forced circuit stays open, and nothing has opened it."""
    breaker = CircuitBreaker("mail")
    breaker.set_mode(CircuitMode.FORCED_OPEN)
    error = rejected(breaker)
    assert {"circuit_name": "mail", "state": "open", "retry_after": None, "last_error": None} == error.details
    assert (
        "circuit 'mail' lets no call through: got one while it is open; wait until it is released, or do without"
        == str(error)
    )


def test_rejections_are_objects_of_their_own() -> None:
    """Two callers may each add notes, causes and tracebacks to what they have got."""
    breaker = opened()
    first, second = rejected(breaker), rejected(breaker)
    first.add_note("a note")
    first.details["key"] = 1
    assert (False, DETAILS, False) == (first is second, second.details, hasattr(second, "__notes__"))
    assert (TEXT, TEXT) == (str(first), str(second))


def test_rejection_keeps_nothing_alive() -> None:
    """What the service has raised, and the breaker, are gone when nobody else has them."""

    def reject() -> tuple[CircuitOpenError, list[weakref.ref[Any]]]:
        heavy = GoneError("heavy")

        def raise_heavy() -> None:
            raise heavy

        breaker = CircuitBreaker("mail", CircuitBreakerConfig(failure_threshold=1))
        with pytest.raises(GoneError):
            breaker.call(raise_heavy)
        return rejected(breaker).with_traceback(None), [weakref.ref(heavy), weakref.ref(breaker)]

    error, others = reject()
    gc.collect()
    assert [None, None] == [other() for other in others]
    assert "GoneError: heavy" == error.details["last_error"]
    assert (None, None) == (error.__cause__, error.__context__)


def test_rejection_of_a_circuit_that_a_chatterbox_has_opened() -> None:
    """A text without end is kept up to a length, whatever is in it."""
    error = rejected(opened("\N{SNOWMAN}" * 100_000))
    assert len(error.details["last_error"]) <= 200
    assert len(str(error)) <= 400


def test_traceback_and_log(caplog: pytest.LogCaptureFixture) -> None:
    """Who prints or logs it without having read it sees all there is."""
    printed = "".join(traceback.format_exception_only(rejected(opened())))
    assert f"agentcore.CircuitOpenError: {TEXT}\n" == printed
    rejected(opened()).log(logging.getLogger("somewhere"))
    (record,) = caplog.records
    assert (Severity.WARNING, TEXT) == (record.levelno, record.getMessage())
    assert ("circuit_open", DETAILS) == (record.error_code, record.error_details)  # type: ignore[attr-defined]


@every_copy
@pytest.mark.parametrize("read", [False, True], ids=["unread", "read"])
def test_rejection_travels(copied: Callable[[CircuitOpenError], CircuitOpenError], read: bool) -> None:
    """A copy, and what arrives in another process, tells the same, whether somebody has read it before or not."""
    error = rejected(opened())
    if read:
        assert DETAILS == error.details
    error.add_note("a note")
    other = copied(copied(error))
    assert (CircuitOpenError, TEXT, TEXT, ["a note"]) == (type(other), str(other), other.message, other.__notes__)
    assert (DETAILS, 30.0, False) == (other.details, other.retry_after, other is error)
    assert f"CircuitOpenError({TEXT!r})" == repr(other)


def test_unknown_attributes() -> None:
    """An attribute that does not exist is told as for any object, with and without a rejection behind it."""
    for error in (rejected(opened()), CircuitOpenError("by hand")):
        with pytest.raises(AttributeError, match=r"'CircuitOpenError' object has no attribute 'detail'"):
            error.detail  # type: ignore[attr-defined]  # noqa: B018 - the look is the point
        assert "default" == getattr(error, "response", "default")
        assert not hasattr(error, "__notes__")


class TenantOpenError(CircuitOpenError):
    """A user's error with a constructor of its own."""

    def __init__(self, tenant: str) -> None:
        super().__init__(f"{tenant} has to wait", {"circuit_name": tenant, "retry_after": 4})
        self.tenant = tenant


@every_copy
def test_error_of_a_user(copied: Callable[[CircuitOpenError], CircuitOpenError]) -> None:
    """A subclass that is raised by hand has its own text and details, and they travel."""
    other = copied(TenantOpenError("north"))
    assert isinstance(other, TenantOpenError)
    assert ("north has to wait", "north", 4) == (str(other), other.tenant, other.retry_after)


@pytest.mark.parametrize("text", ["", "line one\nline two", "{braces} %s"])
def test_texts_of_all_kinds(text: str) -> None:
    """What the service has said is quoted as it is."""
    error: Any = rejected(opened(text))
    assert f"GoneError: {text}" == error.details["last_error"]
    assert error.message.endswith(f"(it opened because of GoneError: {text})")
