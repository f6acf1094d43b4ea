"""Calling again what has failed: when, and why not (`_rules/retry` decides), within a budget that many may share.

`Retry` is a layer around a call. `RetryPolicy` says the same of tasks, which a runtime executes again by it.
"""

# No `from __future__ import annotations` here: the fields of public classes are read at run time, by cattrs and others.
# Their `__module__` reads agentcore, where names in strings could not be found.

import functools
import logging
import math
import threading
from collections.abc import Callable, Iterable
from typing import Any, Final, Literal, final

import anyio
import attrs

from agentcore import _interop
from agentcore._layer import Layer, dispose, invoke, is_async, is_cancelled, note_once
from agentcore._rules.backoff import Backoff, check_number, show
from agentcore._rules.rate import TokenBucket
from agentcore._rules.retry import Course, Facts, GaveUp, Selection, to_exceptions
from agentcore.errors import AgentExecutionError, ConfigurationError

_logger: Final = logging.getLogger("agentcore.retry")

_DEFAULT_BACKOFF: Final = Backoff()
_A_POLICY: Final = "a RetryPolicy"


@final
class RetryBudget:
    """How many retries there may be: a share of the calls, so that a service in trouble is not asked many times as much.

    Each call pays in `ratio`, and time `per_second`; each retry costs 1. It begins full. Give one budget to every `Retry`
    in front of the same service; it may be shared by event loops in several threads.

    Args:
        ratio: retries for each call, in the long run.
        per_second: retries for each second besides, for times of few calls.
        capacity: retries that can be saved up.

    Raises:
        ConfigurationError: an argument is not usable.
    """

    __slots__ = ("_bucket", "_lock", "capacity", "per_second", "ratio")

    def __init__(self, ratio: float = 0.2, per_second: float = 1.0, capacity: float = 10) -> None:
        subject = "a RetryBudget"
        check_number(subject, "ratio", ratio, "use 0 for none")
        check_number(subject, "per_second", per_second, "use 0 for none")
        check_number(subject, "capacity", capacity, "say how many retries can be saved up", least=1)
        self.ratio: Final = ratio
        self.per_second: Final = per_second
        self.capacity: Final = capacity
        self._bucket: Final = TokenBucket(per_second, capacity)
        # Reentrant: a coroutine that the garbage collector closes in the middle of this gives a retry back.
        self._lock: Final = threading.RLock()

    def __repr__(self) -> str:
        return f"<RetryBudget {self.available:.3g} of {self.capacity:g}>"

    @property
    def available(self) -> float:
        """Retries that there may be at the moment."""
        with self._lock:
            return self._bucket.available(_interop.clock())

    def _earn(self) -> None:
        """Pay in for a call."""
        # Without the lock and the clock, on a path that is hot: what another thread takes out at this moment is a whole
        # retry, and this would be a part of one.
        if self._bucket._tokens >= self.capacity:
            return
        with self._lock:
            self._bucket.available(_interop.clock())
            self._bucket.give(self.ratio)

    def _spend(self) -> bool:
        """Pay for a retry; False if that cannot be."""
        with self._lock:
            return self._bucket.try_take(_interop.clock())

    def _give_back(self) -> None:
        """Take back what was paid for a retry that has not been made."""
        with self._lock:
            self._bucket.give(1)


def _to_on(value: type[Exception] | Iterable[type[Exception]]) -> tuple[type[Exception], ...]:
    return to_exceptions(_A_POLICY, "on", value)


def _to_never_on(value: type[Exception] | Iterable[type[Exception]]) -> tuple[type[Exception], ...]:
    return to_exceptions(_A_POLICY, "never_on", value)


@final
@attrs.frozen(kw_only=True)
class RetryPolicy:
    """Whether a task that has failed is executed again, and when.

        policy = RetryPolicy(attempts=5, backoff=Backoff(0.5, maximum=30), never_on=PermissionError)
        handle = await runtime.submit("fetch", {"url": url}, retry=policy)

    What counts is the exception behind the failure: what `process` raised, whatever `handle_error` has made of it. Errors
    with an attribute ``retryable`` that is False are not retried, nor groups of exceptions unless all in it would be; a
    number ``retry_after`` is added to the wait. What an open circuit has rejected is no failure: the task waits until the
    circuit lets calls through, however often, and at random up to the backoff's limit longer. If the circuit cannot say for
    how long it is open, the task fails. Cancellation is never retried, and nothing is after the total deadline.

    Args:
        attempts: executions that may fail, the first one included.
        backoff: how long to wait between them.
        on: exceptions that are retried, a class or several.
        never_on: exceptions of these that are not.
        retry_if: tells of one of the others whether it is. If it raises, that is logged, and means no.
        failed_results: whether results with `success` False are retried that no exception is behind.

    Raises:
        ConfigurationError: a value is not usable.
    """

    attempts: int = 3
    backoff: Backoff = _DEFAULT_BACKOFF
    on: tuple[type[Exception], ...] = attrs.field(default=(Exception,), converter=_to_on)
    never_on: tuple[type[Exception], ...] = attrs.field(default=(), converter=_to_never_on)
    retry_if: Callable[[Exception], object] | None = None
    failed_results: bool = True
    _selection: Selection = attrs.field(init=False, eq=False, repr=False)

    def __attrs_post_init__(self) -> None:
        check_number(_A_POLICY, "attempts", self.attempts, "1 is an execution without a retry", least=1, whole=True)
        if not isinstance(self.backoff, Backoff):
            raise _unusable(_A_POLICY, "backoff", self.backoff, "a Backoff", "write backoff=Backoff()")
        _check_function(_A_POLICY, "retry_if", self.retry_if)
        if not isinstance(self.failed_results, bool):
            raise _unusable(_A_POLICY, "failed_results", self.failed_results, "True or False", "choose one of them")
        condition = None if self.retry_if is None else functools.partial(_ask, _A_POLICY, self.retry_if)
        object.__setattr__(self, "_selection", Selection(self.on, self.never_on, condition, open_circuit=True))

    def _examine(self, error: BaseException | None) -> Facts:
        """Look at the exception behind a failure; None for a result that no exception is behind."""
        if error is None:
            return Facts(retryable=self.failed_results)
        # What was to be handled decides, also if handling it failed.
        return self._selection.examine(
            error.errors[0] if isinstance(error, AgentExecutionError) and error.errors else error
        )


def check_retry(subject: str, retry: object, *, or_false: bool = False) -> None:
    """Accept policies, and None for what is the default.

    Raises:
        ConfigurationError: it is something else.
    """
    if retry is None or isinstance(retry, RetryPolicy) or (or_false and retry is False):
        return
    raise _unusable(subject, "retry", retry, "a RetryPolicy", "write retry=RetryPolicy(attempts=3), or leave it out")


@final
@attrs.frozen(kw_only=True)
class RetryNotice:
    """A call that is about to be made again.

    Attributes:
        name: of the `Retry`.
        attempts: attempts that have been made.
        wait: seconds until the next one.
        error: what the last one raised; None if its result is the reason.
        rejected: whether it was no attempt, since an open circuit has let nothing through.
    """

    name: str
    attempts: int
    wait: float
    error: Exception | None
    rejected: bool


@final
class Retry(Layer):
    """Calls again what has failed, after a while.

        retry = Retry(attempts=4, on=(OSError, TimeoutError), never_on=(PermissionError,), budget=budget)
        answer = await retry.execute(fetch, url)

    What is not retried passes as it is: cancellation and all that is no Exception; errors that are not selected; errors
    with an attribute ``retryable`` that is False; groups of exceptions, unless all in it would be. When it is given up, the
    last error is raised, unchanged but for a note that says why; a result that was not good enough is returned.

    Between two attempts it waits: by `backoff`, and if the error has a number ``retry_after``, that many seconds more. Who
    is cancelled during that is cancelled at once. It is given up at once if the wait would be longer than `max_elapsed` or
    the caller's deadline allows. Before each further attempt there is a checkpoint; the first one adds none.

    A call that an open circuit rejects is no attempt. By default the rejection passes like any other error that says it
    cannot be retried. With ``open_circuit="wait"`` it is waited for as long as the circuit asks, and up to the backoff's
    limit longer, at random, so that those who wait do not all come at once; again and again, so give it a `max_elapsed`
    or a deadline. If the circuit cannot say for how long, it is given up.

    Args:
        attempts: how many there may be, the first one included.
        backoff: how long to wait between them.
        on: exceptions that are retried, a class or several.
        never_on: exceptions of these that are not.
        retry_if: tells of one of the others whether it is. If it raises, that is logged, and means no.
        retry_if_result: tells of a result whether there should be a further attempt. If it raises, the same.
        budget: pays for all attempts but the first; without it they are limited by `attempts` alone.
        open_circuit: ``"give_up"``, or ``"wait"``.
        max_elapsed: seconds from the first attempt on in which a further one may begin; None for no limit.
        on_retry: is called with a `RetryNotice` before each wait. An Exception that it raises is logged, and harms nothing.
        name: what it is called, in messages.

    Raises:
        ConfigurationError: an argument is not usable.
    """

    __slots__ = ("_on_retry", "_retry_if_result", "_selection", "attempts", "backoff", "budget", "max_elapsed")

    def __init__(
        self,
        attempts: int = 3,
        *,
        backoff: Backoff = _DEFAULT_BACKOFF,
        on: type[Exception] | tuple[type[Exception], ...] = (Exception,),
        never_on: type[Exception] | tuple[type[Exception], ...] = (),
        retry_if: Callable[[Exception], object] | None = None,
        retry_if_result: Callable[[Any], object] | None = None,
        budget: RetryBudget | None = None,
        open_circuit: Literal["give_up", "wait"] = "give_up",
        max_elapsed: float | None = None,
        on_retry: Callable[[RetryNotice], object] | None = None,
        name: str = "retry",
    ) -> None:
        super().__init__(name)
        subject = f"retry {name!r}"
        check_number(subject, "attempts", attempts, "1 is a call without a retry", least=1, whole=True)
        if max_elapsed is not None:
            check_number(subject, "max_elapsed", max_elapsed, "use None for no limit", unit="seconds")
        for what, value, cls in (("backoff", backoff, Backoff), ("budget", budget, RetryBudget)):
            if not isinstance(value, cls) and not (what == "budget" and value is None):
                raise _unusable(subject, what, value, f"a {cls.__name__}", f"write {what}={cls.__name__}()")
        if open_circuit not in ("give_up", "wait"):
            raise _unusable(subject, "open_circuit", open_circuit, "'give_up' or 'wait'", "choose one of them")
        functions = {"retry_if": retry_if, "retry_if_result": retry_if_result, "on_retry": on_retry}
        for what, function in functions.items():
            _check_function(subject, what, function)
        self.attempts: Final = attempts
        self.backoff: Final = backoff
        self.budget: Final = budget
        self.max_elapsed: Final = max_elapsed
        self._selection: Final = Selection(
            to_exceptions(subject, "on", on),
            to_exceptions(subject, "never_on", never_on),
            None if retry_if is None else functools.partial(_ask, subject, retry_if),
            open_circuit == "wait",
        )
        self._retry_if_result: Final = retry_if_result
        self._on_retry: Final = on_retry

    async def _execute(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        course = Course(self.attempts, self.backoff)
        requests = _interop.cancel_requests()
        ends_at = math.inf if self.max_elapsed is None else anyio.current_time() + self.max_elapsed
        if self.budget is not None:
            self.budget._earn()
        while True:
            try:
                result = await invoke(func, args, kwargs)
            except Exception as error:
                wait = self._after_error(course, ends_at, requests, error)
                if wait is None:
                    raise
            else:
                if self._retry_if_result is None or not _ask(f"retry {self.name!r}", self._retry_if_result, result):
                    return result
                wait = self._after_result(course, ends_at, requests)
                if wait is None:
                    return result
            # Out of the handler: the errors of the next attempt must not trail those of all attempts before.
            await self._pause(course, wait)

    def _after_error(self, course: Course, ends_at: float, requests: int, error: Exception) -> float | None:
        """Return the seconds to wait before the next attempt; None to raise the error."""
        facts = self._selection.examine(error)
        decision = self._decide(course, facts, ends_at, requests)
        if not isinstance(decision, GaveUp):
            self._tell(course, decision, error)
            return decision
        self._settle(course)
        # An error that is none of this layer's business from the beginning is not even noted.
        if decision is not GaveUp.NOT_RETRYABLE or course.made + course.rejections > 1:
            attempts = f"{course.made} attempt{'' if course.made == 1 else 's'}"
            note_once(error, f"retry {self.name!r} gave up", f"after {attempts}: {decision}")
        return None

    def _after_result(self, course: Course, ends_at: float, requests: int) -> float | None:
        """Return the seconds to wait before the next attempt; None to return the result."""
        decision = self._decide(course, Facts(retryable=True), ends_at, requests)
        if isinstance(decision, GaveUp):
            return None
        self._tell(course, decision, None)
        return decision

    def _decide(self, course: Course, facts: Facts, ends_at: float, requests: int) -> float | GaveUp:
        now = anyio.current_time()
        return course.after(
            facts,
            _interop.sources.get().random.random,
            until_deadline=-math.inf if is_cancelled(requests) else anyio.current_effective_deadline() - now,
            until_elapsed=ends_at - now,
            afford=None if self.budget is None else self.budget._spend,
        )

    def _tell(self, course: Course, wait: float, error: Exception | None) -> None:
        if self._on_retry is None:
            return
        notice = RetryNotice(
            name=self.name, attempts=course.made, wait=wait, error=error, rejected=course.rejections > 0
        )
        try:
            self._on_retry(notice)
        except Exception:
            _logger.exception("on_retry %r of retry %r raised; the call is made again", self._on_retry, self.name)
        except BaseException:
            self._settle(course)
            raise

    async def _pause(self, course: Course, wait: float) -> None:
        try:
            await anyio.sleep(wait)
        except BaseException:
            self._settle(course)
            raise

    def _settle(self, course: Course) -> None:
        """Take back what has been paid for an attempt that is not made."""
        if course.paid and self.budget is not None:
            self.budget._give_back()


def _ask(subject: str, predicate: Callable[[Any], object], value: object) -> bool:
    """Ask a function of the user. What has come of the call must not be lost behind an error of it."""
    try:
        return bool(predicate(value))
    except Exception:
        _logger.exception("predicate %r of %s raised; the call is not made again", predicate, subject)
        return False


def _unusable(subject: str, name: str, value: object, rule: str, remedy: str) -> ConfigurationError:
    return ConfigurationError(
        f"{name} of {subject} must be {rule}: got {show(value)}; {remedy}", {"name": name, "value": value}
    )


def _check_function(subject: str, name: str, function: object) -> None:
    if function is not None and (not callable(function) or is_async(function)):
        dispose(function)
        raise _unusable(subject, name, function, "a function that is not asynchronous", "write `def`, or pass None")
