"""What the end of a call says of the service: errors, groups of them, what predicates make of them."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from agentcore import AgentBusyError, BulkheadFullError, CircuitBreaker, CircuitOpenError, RateLimitError
from agentcore.testing import simulate
from tests.core.circuits import RESET, Clock, Down, Stop, due, make, open_up, permits_of, succeed
from tests.core.verdicts import cancelled_by_caller, check, late_for_a_deadline, raising, verdict

pytestmark = pytest.mark.anyio


class Custom(Exception):
    """An error that is not what it seems."""


class NotThere(Custom, KeyError):
    """A subclass of two."""


@pytest.mark.parametrize(
    ("expected", "error"),
    [
        ("failure", Down("no")),
        ("failure", AssertionError()),
        ("timeout", TimeoutError()),
        ("failure", OSError(110, "Connection timed out")),
        ("failure", Stop()),
        ("failure", SystemExit(3)),
        ("nothing", KeyboardInterrupt()),
        ("nothing", GeneratorExit()),
        ("excluded", BulkheadFullError("full")),
        ("excluded", AgentBusyError("busy")),
        ("excluded", RateLimitError("too many")),
        ("excluded", CircuitOpenError("foreign", {"circuit_name": "foreign"})),
        ("excluded", CircuitOpenError("own", {"circuit_name": "api"})),
    ],
    ids=repr,
)
@simulate(runs=1)
async def test_errors(expected: str, error: BaseException) -> None:
    """An exception is a failure, whatever it is; what comes from this side of the service is none."""

    async def act(breaker: CircuitBreaker) -> None:
        with pytest.raises(type(error)) as caught:
            await raising(error)(breaker)
        assert caught.value is error

    # An OSError of ETIMEDOUT is a TimeoutError by its class.
    await check("timeout" if isinstance(error, TimeoutError) else expected, act)


@pytest.mark.parametrize(
    ("expected", "error", "excluded"),
    [
        ("excluded", KeyError("k"), (KeyError,)),
        ("excluded", NotThere("k"), (KeyError,)),
        ("failure", LookupError("k"), (KeyError,)),
        ("excluded", LookupError("k"), (ValueError, LookupError)),
        ("excluded", Stop(), (Stop,)),
        ("excluded", SystemExit(), (BaseException,)),
        ("nothing", KeyboardInterrupt(), (BaseException,)),
        ("excluded", TimeoutError(), (TimeoutError,)),
    ],
    ids=repr,
)
@simulate(runs=1)
async def test_excluded_errors(expected: str, error: BaseException, excluded: Any) -> None:
    await check(expected, raising(error), excluded_exceptions=excluded)


@simulate(runs=1)
async def test_an_own_rejection_further_in() -> None:
    """A call of the same breaker in another task is rejected, and what it was called from is neither well nor broken."""
    breaker = make(success_threshold=1)
    await due(breaker)

    async def probe() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(breaker.execute, succeed)

    with pytest.raises(ExceptionGroup) as caught:
        await breaker.execute(probe)
    assert [CircuitOpenError] == [type(error) for error in caught.value.exceptions]
    assert (True, 1, 1) == (breaker.is_half_open, breaker.metrics.failures, breaker.metrics.rejected)


@simulate(runs=1)
async def test_a_closed_coroutine_says_nothing() -> None:
    """Whoever closes it gets the permit back as well."""

    async def forever() -> None:
        await anyio.sleep_forever()

    for half_open in (False, True):
        breaker = make()
        if half_open:
            await due(breaker)
        before = breaker.metrics
        coroutine = breaker.execute(forever)
        coroutine.send(None)
        coroutine.close()
        assert ("nothing", ()) == (verdict(breaker, before), permits_of(breaker))
        await breaker.execute(succeed)
        assert breaker.is_closed


@pytest.mark.thorough
def test_a_coroutine_that_outlives_its_loop_says_nothing() -> None:
    """Nobody waits for it any more, and there is no scope left to leave."""
    breaker = make(clock=(clock := Clock()))
    open_up(breaker)
    clock.now += RESET
    loop = asyncio.new_event_loop()

    async def forever() -> None:
        await asyncio.get_running_loop().create_future()

    async def step() -> None:
        await anyio.lowlevel.checkpoint()

    coroutine = breaker.execute(forever)
    task = loop.create_task(coroutine)
    loop.run_until_complete(step())
    assert 1 == len(permits_of(breaker))
    coroutine.close()
    assert ((), True, 1) == (permits_of(breaker), breaker.is_half_open, breaker.metrics.failures)
    loop.run_until_complete(asyncio.wait([task]))
    with pytest.raises(RuntimeError):
        task.result()
    loop.close()
    assert breaker.call(lambda: True)
    assert breaker.is_closed


# ---------------------------------------------------------------- predicates


@simulate(runs=1)
async def test_predicate_on_exceptions() -> None:
    """What it denies is no failure; the excluded ones are not asked about, nor is cancellation."""
    asked: list[BaseException] = []

    def failure_if(error: BaseException) -> bool:
        asked.append(error)
        return "bad" in str(error)

    rules = {"failure_if": failure_if, "excluded_exceptions": (KeyError,)}
    for expected, error in (("failure", Down("bad")), ("excluded", Down("good")), ("excluded", KeyError("bad"))):
        await check(expected, raising(error), **rules)
    await check("canceled", cancelled_by_caller, **rules)
    await check("timeout", late_for_a_deadline, **rules)
    await check("nothing", raising(KeyboardInterrupt("bad")), **rules)
    assert {"bad", "good"} == {str(error) for error in asked}
    assert 4 == len(asked)


@simulate(runs=1)
async def test_predicate_on_results() -> None:
    """What it says is a failure by the name of `result`; the result comes back all the same."""

    async def answer(status: int) -> int:
        return status

    breaker = make(failure_threshold=2, failure_if_result=lambda status: status >= 500)
    assert [200, 503, 503] == [await breaker.execute(answer, status) for status in (200, 503, 503)]
    assert (True, {"result": 2}) == (breaker.is_open, dict(breaker.metrics.failures_by_type))
    with pytest.raises(CircuitOpenError, match=r"it opened because of a result of type int"):
        await breaker.execute(answer, 200)
    await check("failure", lambda breaker: breaker.execute(answer, 500), failure_if_result=lambda status: status == 500)
    await check("success", lambda breaker: breaker.execute(answer, 200), failure_if_result=lambda status: status == 500)


@simulate(runs=1)
async def test_a_block_has_no_result() -> None:
    """There is nothing to ask about."""

    async def enter(breaker: CircuitBreaker) -> None:
        async with breaker:
            await anyio.lowlevel.checkpoint()

    await check("success", enter, failure_if_result=lambda result: True)


@pytest.mark.parametrize("value", [0, "", None, [], 2, "yes"])
@simulate(runs=1)
async def test_predicates_are_true_or_false(value: Any) -> None:
    """Whatever they return is taken as such."""
    expected = "failure" if value else "excluded"
    await check(expected, raising(Down), failure_if=lambda error: value)
    act = lambda breaker: breaker.execute(succeed)  # noqa: E731
    await check("failure" if value else "success", act, failure_if_result=lambda result: value)


@simulate(runs=1)
async def test_predicates_that_raise(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged, and the call judged as if they were not there; its outcome is the caller's in any case."""
    caplog.clear()

    def broken(value: object) -> bool:
        raise ZeroDivisionError("broken predicate")

    with caplog.at_level(logging.ERROR, "agentcore.breaker"):
        await check("failure", raising(Down), failure_if=broken)
        await check("success", lambda breaker: breaker.execute(succeed), failure_if_result=broken)
        breaker = make(failure_if_result=broken)
        assert "well" == await breaker.execute(succeed)
    assert 5 == len(caplog.records)
    for record in caplog.records:
        assert record.exc_info
        assert "the call is judged without it" in record.getMessage()


@simulate(runs=1)
async def test_an_interrupted_predicate_costs_no_permit() -> None:
    """It is no Exception, so it is the caller's; nothing is known of the call."""

    def interrupted(value: object) -> bool:
        raise KeyboardInterrupt

    await check("nothing", raising(Down), failure_if=interrupted)
    await check("nothing", lambda breaker: breaker.execute(succeed), failure_if_result=interrupted)


# ---------------------------------------------------------------- what errors tell besides


class Busy(Exception):
    """An error that asks for time, in whatever way."""

    def __init__(self, retry_after: Any) -> None:
        super().__init__("busy")
        self._retry_after = retry_after

    @property
    def retry_after(self) -> Any:
        if isinstance(self._retry_after, Exception):
            raise self._retry_after
        return self._retry_after


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (30, 30),
        (30.5, 30.5),
        (3, 10),
        (0, 10),
        (-5, 10),
        (1_000, 100),
        (float("inf"), 10),
        (float("nan"), 10),
        (True, 10),
        ("30", 10),
        (None, 10),
    ],
)
@pytest.mark.parametrize("grouped", [False, True])
@simulate(runs=1)
async def test_errors_that_ask_for_time(given: Any, expected: float, grouped: bool) -> None:
    """The open period is that long, unless it is longer anyway or the cap is shorter."""
    breaker = make()
    error: Exception = Busy(given)
    if grouped:
        error = ExceptionGroup("group", [error])
    with pytest.raises((Busy, ExceptionGroup)):
        await raising(error)(breaker)
    assert expected == breaker.retry_after


@simulate(runs=1)
async def test_an_error_that_cannot_tell_its_time(caplog: pytest.LogCaptureFixture) -> None:
    caplog.clear()
    breaker = make()
    with pytest.raises(Busy):
        await raising(Busy(RuntimeError("no attribute today")))(breaker)
    assert (True, 10) == (breaker.is_open, breaker.retry_after)
    assert ["retry_after of a Busy raised; nobody is asked to wait"] == [
        record.getMessage() for record in caplog.records
    ]


class Mute(Exception):
    """An error that has no text."""

    def __str__(self) -> str:
        raise RuntimeError("no text today")


@simulate(runs=1)
async def test_an_error_without_a_text() -> None:
    """The call is judged, and its error comes through."""
    breaker = make()
    with pytest.raises(Mute):
        await raising(Mute())(breaker)
    with pytest.raises(CircuitOpenError, match=r"Mute: <Mute whose str\(\) raised RuntimeError>"):
        await breaker.execute(succeed)


# ---------------------------------------------------------------- groups


@pytest.mark.parametrize(
    ("expected", "errors"),
    [
        ("failure", [Down("no")]),
        ("failure", [KeyError("k"), Down("no")]),
        ("excluded", [KeyError("k"), KeyError("l")]),
        ("excluded", [KeyError("k"), RateLimitError("wait")]),
        ("timeout", [TimeoutError(), KeyError("k")]),
        ("failure", [ExceptionGroup("inner", [KeyError("k"), ExceptionGroup("innermost", [Down("no")])])]),
        ("excluded", [ExceptionGroup("inner", [KeyError("k")])]),
        ("failure", [Stop(), KeyError("k")]),
        ("excluded", [KeyboardInterrupt(), KeyError("k")]),
        ("nothing", [KeyboardInterrupt()]),
    ],
)
@simulate(runs=1)
async def test_groups_are_judged_by_their_leaves(expected: str, errors: list[BaseException]) -> None:
    """The gravest tells; the group comes through as it is."""
    group = BaseExceptionGroup("group", errors)
    await check(expected, raising(group), excluded_exceptions=(KeyError,))


@simulate(runs=1)
async def test_the_leaf_that_tells_gives_the_name() -> None:
    breaker = make(excluded_exceptions=(KeyError,))
    with pytest.raises(ExceptionGroup):
        await raising(ExceptionGroup("group", [KeyError("k"), ExceptionGroup("inner", [Down("no answer")])]))(breaker)
    assert {"Down": 1} == dict(breaker.metrics.failures_by_type)
    with pytest.raises(CircuitOpenError, match="it opened because of Down: no answer"):
        await breaker.execute(succeed)


@simulate(runs=1)
async def test_a_group_may_be_excluded_as_such() -> None:
    await check("excluded", raising(ExceptionGroup("group", [Down("no")])), excluded_exceptions=(ExceptionGroup,))
    await check("excluded", raising(ExceptionGroup("group", [Down("no")])), excluded_exceptions=(Exception,))


@simulate(runs=20)
async def test_a_task_group_that_fails() -> None:
    """The failure of one task counts, and not the cancellation of the others."""

    async def fail_soon() -> None:
        await anyio.sleep(1)
        raise Down

    async def both() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.sleep_forever)
            group.start_soon(fail_soon)

    await check("failure", lambda breaker: breaker.execute(both))
