"""The circuit of `_rules/circuit` as it is shared: with a lock, a clock, and those who listen.

The lock is never held across an await or a call of somebody else's code: predicates are asked before, listeners told
afterwards. So one circuit serves several event loops in several threads, and a cancelled scope cannot keep an outcome from
being noted.
"""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Callable
from types import MappingProxyType, TracebackType
from typing import Final, NoReturn, Self, final

import anyio

from agentcore import _interop
from agentcore._breaker_records import CircuitBreakerMetrics
from agentcore._events import Emitter, EventSink, to_datetime
from agentcore._rules.circuit import FREE, Circuit, Permit, Token
from agentcore._rules.circuit_config import CircuitBreakerConfig
from agentcore._rules.windows import Window
from agentcore._verdict import Judgement, Verdict, ask, judge
from agentcore.errors import CircuitOpenError, CircuitTimeoutError

NO_RESULT: Final = object()
"""What a call has given that gives nothing: a block."""


def _random() -> float:
    return _interop.sources.get().random.random()


@final
class SharedCircuit:
    """A circuit for everyone who calls through it.

    Args:
        name: what it is called.
        config: how it behaves.
        clock: gives its time; None for the system's, or the simulation's.
    """

    __slots__ = ("_admissions", "_clock", "_emitter", "_last_failure_at", "_lock", "machine", "name")

    def __init__(self, name: str, config: CircuitBreakerConfig, clock: Callable[[], float] | None) -> None:
        self.name = name
        self.machine = Circuit(config, _random)
        self._clock = clock
        # To be entered again: a finalizer or a signal handler may call through the same breaker at any moment.
        self._lock = threading.RLock()
        self._last_failure_at: float | None = None
        # What tasks hold that have asked by hand; made when the first one does.
        self._admissions: weakref.WeakKeyDictionary[object, Token] | None = None
        self._emitter: Emitter | None = None

    @property
    def slow(self) -> float:
        """Seconds from which on a call is slow."""
        milliseconds = self.machine.config.slow_call_ms
        return math.inf if milliseconds is None else milliseconds / 1000

    @property
    def judges_successes(self) -> bool:
        """Whether a success has to be looked at: timed, placed in a window of time, or asked about."""
        config = self.machine.config
        return (
            config.slow_call_ms is not None
            or config.failure_if_result is not None
            or self.machine.tells_successes_apart
        )

    def now(self) -> float:
        """Return the seconds of the circuit's clock."""
        return (self._clock or _interop.clock)()

    def __enter__(self) -> Circuit:
        """Hold the lock: a circuit is a context manager, which gives its machine."""
        self._lock.acquire()
        return self.machine

    def __exit__(self, *_: object) -> None:
        """Tell of what has changed, without the lock."""
        try:
            changes = self.machine.take_changes()
            emitter = self._emitter
        finally:
            self._lock.release()
        if emitter is not None:
            for event_type, data in changes:
                emitter.emit(event_type, circuit_name=self.name, **data)

    def subscribe(self, sink: EventSink) -> Callable[[], None]:
        with self._lock:
            if self._emitter is None:
                self._emitter = Emitter()
        return self._emitter.subscribe(sink)

    def metrics(self) -> CircuitBreakerMetrics:
        with self._lock:
            counters = self.machine.counters
            last = self._last_failure_at
            return CircuitBreakerMetrics(
                successes=self.machine.successes,
                failures=counters.failures,
                failures_by_type=MappingProxyType(dict(counters.failures_by_type)),
                timeouts=counters.timeouts,
                slow=counters.slow,
                excluded=counters.excluded,
                canceled=counters.canceled,
                rejected=counters.rejected,
                opened_count=counters.opened,
                state_changes=counters.state_changes,
                last_failure_at=None if last is None else to_datetime(last),
            )

    # Calls that run under the breaker.

    def admit(self, *, active: bool = False) -> tuple[Token, float]:
        """Ask about a call.

        Returns:
            The token to note its outcome with, and when it began.

        Raises:
            CircuitOpenError: it is rejected.
        """
        window = self.machine.closed
        if window is not None:
            return window, self.now()
        owner = _interop.current_owner()
        token = None
        try:
            with self as machine:
                now = self.now()
                token = machine.admit(now, owner, guarded=True, active=active)
                if token is not None:
                    return token, now
                retry_after = machine.retry_after(now)
        except BaseException:  # from a listener: an interrupt
            if token is not None:
                self.give_back(token)
            raise
        raise self.rejection(retry_after)

    def rejection(self, retry_after: float | None) -> CircuitOpenError:
        """Count a rejection, and return its error. Takes no lock: it is what an open circuit does all day."""
        machine = self.machine
        machine.counters.rejected += 1
        return CircuitOpenError._of(self.name, machine.state, retry_after, machine.last_error)

    def note_result(self, token: Token, began: float, result: object) -> bool:
        """Note that a call came back; return whether it counted."""
        if isinstance(token, Window) and not self.judges_successes:
            token.run += 1
            return True
        now = self.now()
        slow = now - began >= self.slow
        failure_if_result = self.machine.config.failure_if_result
        failed = False
        if failure_if_result is not None and result is not NO_RESULT:
            try:
                failed = ask(failure_if_result, result, instead=False)
            except BaseException:
                self.give_back(token)
                raise
        if not failed:
            with self as machine:
                return machine.succeed(token, now, slow=slow)
        text = f"a result of type {type(result).__name__}"
        return self._note_failure(token, now, Judgement(Verdict.FAILURE, "result", text, False, None), slow=slow)

    def note_error(self, token: Token, began: float, error: BaseException, *, cut: bool = False) -> bool:
        """Note what an exception says of the service, whatever it is.

        Args:
            token: what the call was admitted with.
            began: when it began.
            error: what it ended with.
            cut: whether that was raised after the time of a probe was up.

        Returns:
            Whether it counted.
        """
        now = self.now()
        try:
            judgement = judge(error, now - began, self.machine.config)
        except BaseException:
            self.give_back(token)
            raise
        if cut and judgement.verdict is Verdict.FAILURE:
            judgement = judgement._replace(is_timeout=True)
        if judgement.verdict >= Verdict.TIMEOUT:
            return self._note_failure(token, now, judgement, slow=now - began >= self.slow)
        with self as machine:
            if machine.release(token, now):
                machine.counters.excluded += judgement.verdict is Verdict.EXCLUDED
                machine.counters.canceled += judgement.verdict is Verdict.CANCELED
        return False

    def note_cut(self, permit: Token) -> NoReturn:
        """Note that a probe was cut, and tell who made it.

        Raises:
            CircuitTimeoutError: always.
        """
        seconds = self.machine.config.probe_timeout
        text = f"a probe took longer than {seconds:g} s"
        judgement = Judgement(Verdict.TIMEOUT, CircuitTimeoutError.__name__, text, True, None)
        self._note_failure(permit, self.now(), judgement, slow=False)
        raise CircuitTimeoutError(
            f"a probe of circuit {self.name!r} must end within its probe_timeout_ms: got none after {seconds:g} s; "
            "it was cut, which is a failure; wait, or raise the limit",
            {"circuit_name": self.name, "timeout": seconds},
        ) from None

    def give_back(self, token: Token) -> None:
        """Note that nothing is known of a call."""
        with self as machine:
            machine.release(token, self.now())

    # Calls whose outcome is reported by hand.

    def allow(self) -> bool:
        """Give the calling task a permit, if there is one."""
        owner = _interop.current_owner()
        with self as machine:
            token = machine.admit(self.now(), owner, guarded=False)
            if token is None:
                machine.counters.rejected += 1
                return False
            if token is not FREE:
                if self._admissions is None:
                    self._admissions = weakref.WeakKeyDictionary()
                self._admissions[owner] = token
        return True

    def report_success(self) -> None:
        """Note a success in the name of the calling task."""
        with self as machine:
            now = self.now()
            token = self._take_admission(now)
            if token is not None:
                machine.succeed(token, now)

    def report_failure(self, error_type: str, *, counts: bool) -> None:
        """Note a failure in the name of the calling task, or that it says nothing."""
        with self as machine:
            now = self.now()
            token = self._take_admission(now)
            if token is None:
                return
            if not counts:
                machine.counters.excluded += machine.release(token, now)
            elif machine.fail(token, now, error_type, timeout="timeout" in error_type.lower()):
                self._last_failure_at = _interop.wall_time()

    def _take_admission(self, now: float) -> Token | None:
        owner = _interop.current_owner()
        token = None if self._admissions is None else self._admissions.pop(owner, None)
        return self.machine.token_of(now, owner) if token is None else token

    def _note_failure(self, token: Token, now: float, judgement: Judgement, *, slow: bool) -> bool:
        at = _interop.wall_time()
        with self as machine:
            counted = machine.fail(
                token,
                now,
                judgement.error_type,
                text=judgement.text,
                timeout=judgement.is_timeout,
                slow=slow,
                retry_after=judgement.retry_after,
            )
            if counted:
                self._last_failure_at = at
        return counted


@final
class Guard:
    """One call: asks, makes it a probe if it is one, and notes what came of it.

    Args:
        circuit: what it is made through.
        active: whether it is a probe of its own accord.

    Attributes:
        result: what the call has given.
        counted: whether its outcome has counted.
    """

    __slots__ = ("_active", "_began", "_circuit", "_scope", "_token", "counted", "result")

    def __init__(self, circuit: SharedCircuit, *, active: bool = False) -> None:
        self._circuit = circuit
        self._active = active
        self._scope: anyio.CancelScope | None = None
        self._token: Token = FREE
        self._began = 0.0
        self.result: object = NO_RESULT
        self.counted = False

    async def __aenter__(self) -> Self:
        self._token, self._began = self._circuit.admit(active=self._active)
        if isinstance(self._token, Permit):
            try:
                # From the time that is left of the lease: the clock of the event loop is another one.
                seconds = self._token.expires - self._began
                self._scope = anyio.CancelScope(deadline=anyio.current_time() + seconds)
                self._scope.__enter__()
            except BaseException:
                self._circuit.give_back(self._token)
                raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        scope = self._scope
        if scope is not None:
            try:
                scope.__exit__(exc_type, exc, traceback)
            except BaseException as rest:  # noqa: ASYNC103 - of what is not raised again, the GeneratorExit goes on
                if isinstance(exc, BaseExceptionGroup):  # trio: what is left of it without its cancellations
                    self._note_error(rest)
                else:
                    self._circuit.give_back(self._token)
                # Closed by somebody else, maybe without an event loop: what that lacks is no matter.
                if not isinstance(exc, GeneratorExit):
                    raise
                return  # noqa: ASYNC104 - see above
            # Not what `__exit__` returns: trio says True as well if there was nothing to catch.
            if scope.cancelled_caught:
                self.counted = True
                self._circuit.note_cut(self._token)
        if exc is None:
            self.counted = self._circuit.note_result(self._token, self._began, self.result)
        else:
            self._note_error(exc)

    def _note_error(self, error: BaseException) -> None:
        cut = self._scope is not None and self._scope.cancel_called
        self.counted = self._circuit.note_error(self._token, self._began, error, cut=cut)
