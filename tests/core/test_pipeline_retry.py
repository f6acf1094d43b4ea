"""Calling again: which errors, when, how often, and why not any more."""

from __future__ import annotations

import gc
import logging
import math
import weakref
from collections.abc import Callable
from typing import Any

import anyio
import anyio.lowlevel
import attrs
import pytest

from agentcore import (
    Backoff,
    CallTimeoutError,
    CircuitOpenError,
    ConfigurationError,
    RateLimitError,
    Retry,
    RetryBudget,
    RetryNotice,
    Timeout,
)
from agentcore.testing import Simulation, assert_checkpoints, run_sim, simulate
from tests.core.fakes import hanging, raising
from tests.core.services import EVEN, NONE, Boom, Service, notes_of

pytestmark = pytest.mark.anyio


class Stop(BaseException):
    """What no `except Exception` may catch."""


class Busy(Exception):
    """What says when to come back."""

    def __init__(self, retry_after: float) -> None:
        super().__init__("busy")
        self.retry_after = retry_after


# Attempts and waits.


@simulate(runs=5)
async def test_a_call_that_fails_is_made_again() -> None:
    """After the backoff, until it comes back."""
    service = Service(Boom(), Boom(), Boom(), "fine")
    assert "fine" == await Retry(4, backoff=EVEN).execute(service)
    assert [0.0, 1.0, 3.0, 7.0] == service.at
    sync = Service(Boom(), "fine")
    assert "fine" == await Retry(backoff=EVEN).execute(sync.sync)


@simulate(runs=5)
async def test_the_last_error_is_raised_with_a_note() -> None:
    """The very object; the errors of the other attempts do not trail it."""
    first, last = Boom("first"), Boom("last")
    service = Service(first, last)
    with pytest.raises(Boom) as caught:
        await Retry(2, backoff=EVEN, name="api").execute(service)
    assert last is caught.value
    assert ["retry 'api' gave up after 2 attempts: that was the last attempt"] == notes_of(last)
    assert (None, None, []) == (last.__context__, last.__cause__, notes_of(first))


@simulate(runs=2)
async def test_one_error_that_is_raised_again_and_again_does_not_grow() -> None:
    """One note for each layer, the newest; and at most so many."""
    error = Boom()
    for attempts in (1, 2, 3):
        with pytest.raises(Boom):
            await Retry(attempts, backoff=NONE).execute(raising(error))
    assert ["retry 'retry' gave up after 3 attempts: that was the last attempt"] == notes_of(error)
    for number in range(100):
        with pytest.raises(Boom):
            await Retry(1, name=f"number {number}").execute(raising(error))
    assert 16 == len(notes_of(error))
    error.__notes__ = "not a list"  # type: ignore[assignment]
    with pytest.raises(Boom):
        await Retry(1).execute(raising(error))


@simulate(runs=2)
async def test_an_error_that_takes_no_notes_gets_none() -> None:
    """It is raised all the same."""

    class Frozen(Exception):
        def __setattr__(self, name: str, value: object) -> None:
            raise AttributeError("frozen")

        def __getattr__(self, name: str) -> Any:
            raise RuntimeError("do not ask")

    error = Frozen()
    with pytest.raises(Frozen) as caught:
        await Retry(2, backoff=NONE).execute(raising(error))
    assert error is caught.value


@simulate(runs=20)
async def test_waits_are_drawn() -> None:
    """From the random source of the simulation, up to the limit."""
    service = Service(Boom())
    with pytest.raises(Boom):
        await Retry(5, backoff=Backoff(1.0, 2.0, 100.0)).execute(service)
    waits = [later - earlier for earlier, later in zip(service.at, service.at[1:], strict=False)]
    assert all(0 <= wait <= 2**index for index, wait in enumerate(waits))
    assert len(set(waits)) == 4


def test_two_simulations_with_the_same_seed_wait_the_same() -> None:
    """So a failure can be replayed."""

    async def times() -> list[float]:
        service = Service(Boom())
        with pytest.raises(Boom):
            await Retry(5).execute(service)
        return service.at

    first, second, other = (run_sim(times, seed=seed).unwrap() for seed in (1, 1, 2))
    assert first == second != other


@simulate(runs=5)
async def test_there_is_a_checkpoint_before_each_further_attempt() -> None:
    """A retry without a wait does not keep others from running, and can be cancelled."""
    with assert_checkpoints():
        assert "fine" == await Retry(backoff=NONE).execute(Service(Boom(), "fine"))
    service = Service(Boom())
    with anyio.CancelScope() as scope:
        scope.cancel()
        with pytest.raises(Boom) as caught:
            await Retry(10**9, backoff=NONE).execute(service)
    assert 1 == len(service.at)
    assert ["retry 'retry' gave up after 1 attempt: the caller is cancelled"] == notes_of(caught.value)


@simulate(runs=5)
async def test_an_error_may_say_when_to_come_back() -> None:
    """Not before that; and the backoff more, so that all who were told so do not come at once."""
    service = Service(Busy(30), RateLimitError("", {"retry_after": 5}), Busy(-5), "fine")
    assert "fine" == await Retry(4, backoff=EVEN).execute(service)
    assert [0.0, 31.0, 38.0, 42.0] == service.at


# Which errors.


@pytest.mark.parametrize(
    ("settings", "error", "attempts"),
    [
        ({}, Boom(), 3),
        ({"on": Boom}, Boom(), 3),
        ({"on": (OSError, ValueError)}, Boom(), 1),
        ({"never_on": Boom}, Boom(), 1),
        ({"retry_if": lambda error: "again" in str(error)}, Boom("again"), 3),
        ({"retry_if": lambda error: "again" in str(error)}, Boom("never"), 1),
        ({}, ExceptionGroup("", [Boom(), OSError()]), 3),
        ({"on": Boom}, ExceptionGroup("", [Boom(), OSError()]), 1),
        ({}, Stop(), 1),
        ({}, BaseExceptionGroup("", [Boom(), Stop()]), 1),
        ({}, CircuitOpenError("", {"retry_after": 1.0}), 1),
        ({}, CallTimeoutError(""), 3),
    ],
)
@simulate(runs=1)
async def test_which_errors_are_retried(settings: dict[str, Any], error: BaseException, attempts: int) -> None:
    """What is none of its business passes as it is."""
    error.__notes__ = []
    service = Service(error)
    with pytest.raises(type(error)) as caught:
        await Retry(backoff=EVEN, **settings).execute(service)
    assert error is caught.value
    assert attempts == len(service.at)
    assert (attempts > 1) == bool(notes_of(error))


@simulate(runs=1)
async def test_an_error_that_is_not_retried_any_more_is_noted() -> None:
    """If others were before it, one wonders."""
    service = Service(Boom(), KeyError("nothing here"))
    with pytest.raises(KeyError) as caught:
        await Retry(on=Boom).execute(service)
    assert ["retry 'retry' gave up after 2 attempts: the error is none to retry"] == notes_of(caught.value)


@simulate(runs=1)
async def test_a_predicate_that_raises_says_no(caplog: pytest.LogCaptureFixture) -> None:
    """What has come of the call is not lost behind its error, which is logged."""
    caplog.clear()
    error = Boom()

    def predicate(error: object) -> bool:
        raise LookupError("cannot tell")

    with pytest.raises(Boom) as caught:
        await Retry(retry_if=predicate).execute(raising(error))
    assert (error, None) == (caught.value, caught.value.__context__)
    service = Service("fine")
    assert "fine" == await Retry(retry_if_result=predicate).execute(service)
    assert [0.0] == service.at
    assert 2 == len(caplog.records)
    assert all("LookupError: cannot tell" in (record.exc_text or "") for record in caplog.records)


@simulate(runs=5)
async def test_results_can_be_retried() -> None:
    """The last one is returned, however it is."""
    retry = Retry(backoff=EVEN, retry_if_result=lambda result: result is None)
    assert "fine" == await retry.execute(Service(None, "fine"))
    service = Service(None)
    began = anyio.current_time()
    assert await retry.execute(service) is None
    assert [0.0, 1.0, 3.0] == [at - began for at in service.at]
    # Errors and results count together.
    assert await retry.execute(Service(Boom(), None, None, "fine")) is None


# Time.


@simulate(runs=5)
async def test_cancellation_ends_it() -> None:
    """During an attempt, and during a wait."""
    for service in (hanging, Service(Boom())):
        began = anyio.current_time()
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(Retry(9, backoff=Backoff(100, 1, 100, jitter=False)).execute, service)
                await anyio.sleep(5)
                scope.cancel()
        assert scope.cancelled_caught
        assert 5.0 == anyio.current_time() - began


@simulate(runs=5)
async def test_it_is_given_up_if_the_deadline_comes_first() -> None:
    """At once: the caller has the time that is left for something else."""
    service = Service(Boom())
    with pytest.raises(Boom) as caught, anyio.fail_after(3):
        await Retry(9, backoff=EVEN).execute(service)
    assert (1.0, [0.0, 1.0]) == (anyio.current_time(), service.at)
    assert notes_of(caught.value) == [
        "retry 'retry' gave up after 2 attempts: the caller's deadline comes before the next attempt could begin"
    ]
    results = Service(None)
    with anyio.fail_after(3):
        assert await Retry(9, backoff=EVEN, retry_if_result=lambda _: True).execute(results) is None
    assert 2 == len(results.at)


@simulate(runs=5)
async def test_max_elapsed_limits_the_beginning_of_the_last_attempt() -> None:
    """From the beginning of the first one on. It does not cut an attempt."""

    async def slow() -> None:
        service()
        await anyio.sleep(4)
        raise Boom

    service = Service("").sync
    with pytest.raises(Boom) as caught:
        await Retry(9, backoff=EVEN, max_elapsed=6).execute(slow)
    assert 9.0 == anyio.current_time()
    assert notes_of(caught.value) == [
        "retry 'retry' gave up after 2 attempts: max_elapsed is over before the next attempt could begin"
    ]
    with pytest.raises(Boom) as caught:
        await Retry(9, backoff=NONE, max_elapsed=0).execute(raising(Boom()))
    assert "after 1 attempt: max_elapsed" in notes_of(caught.value)[0]


@simulate(runs=5)
async def test_errors_of_a_caller_that_is_cancelled_are_not_retried() -> None:
    """They come from the unwinding."""

    async def clumsy() -> None:
        attempts.append(anyio.current_time())
        try:
            await anyio.sleep_forever()
        finally:
            raise Boom("cannot clean up")

    attempts: list[float] = []
    with pytest.raises(Boom), anyio.move_on_after(1):
        await Retry(9, backoff=NONE).execute(clumsy)
    assert [0.0] == attempts


# Listeners.


@simulate(runs=2)
async def test_who_listens_hears_of_each_retry() -> None:
    """Before the wait; of a rejection, and of a result, too."""
    heard: list[RetryNotice] = []
    error, rejection = Boom(), CircuitOpenError("", {"retry_after": 5.0})
    retry = Retry(
        5,
        backoff=EVEN,
        retry_if_result=lambda result: result is None,
        open_circuit="wait",
        on_retry=heard.append,
        name="api",
    )
    assert "fine" == await retry.execute(Service(error, rejection, None, "fine"))
    told = [(notice.attempts, notice.error, notice.rejected) for notice in heard]
    assert [(1, error, False), (1, rejection, True), (2, None, False)] == told
    assert {"api"} == {notice.name for notice in heard}
    assert [1.0, 2.0] == [heard[0].wait, heard[2].wait]
    assert 5.0 <= heard[1].wait <= 6.0
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        heard[0].wait = 1.0  # type: ignore[misc]


def test_a_listener_cannot_break_the_call(caplog: pytest.LogCaptureFixture) -> None:
    """What it raises is logged."""

    def listener(notice: RetryNotice) -> None:
        raise LookupError("listener")

    with caplog.at_level(logging.ERROR, "agentcore.retry"):
        result = run_sim(Retry(on_retry=listener).execute, Service(Boom(), "fine"))
    assert "fine" == result.unwrap()
    assert ["agentcore.retry"] == [record.name for record in caplog.records]
    assert "the call is made again" in caplog.text
    assert "LookupError: listener" in caplog.text


def test_nothing_is_kept_of_a_call() -> None:
    """Neither the errors of former attempts while the next one waits, nor anything afterwards."""
    retry = Retry(backoff=EVEN, budget=RetryBudget())

    class Big(Exception):
        pass

    references: list[weakref.ref[Big]] = []

    async def fail() -> str:
        if len(references) == 2:
            gc.collect()
            assert [None, None] == [reference() for reference in references]
            return "fine"
        error = Big()
        references.append(weakref.ref(error))
        raise error

    assert "fine" == run_sim(retry.execute, fail).unwrap()


# Settings.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"attempts": 0},
            "attempts of retry 'api' must be a whole number, 1 or more: got 0; 1 is a call without a retry",
        ),
        (
            {"attempts": 2.0},
            "attempts of retry 'api' must be a whole number, 1 or more: got 2.0; 1 is a call without a retry",
        ),
        (
            {"max_elapsed": -1},
            "max_elapsed of retry 'api' must be a number of seconds, 0 or more: got -1; use None for no limit",
        ),
        ({"backoff": 1.0}, "backoff of retry 'api' must be a Backoff: got 1.0; write backoff=Backoff()"),
        ({"backoff": None}, "backoff of retry 'api' must be a Backoff: got None; write backoff=Backoff()"),
        ({"budget": 3}, "budget of retry 'api' must be a RetryBudget: got 3; write budget=RetryBudget()"),
        (
            {"open_circuit": True},
            "open_circuit of retry 'api' must be 'give_up' or 'wait': got True; choose one of them",
        ),
        (
            {"retry_if": Boom()},
            "retry_if of retry 'api' must be a function that is not asynchronous: got Boom(); write `def`, or pass None",
        ),
        (
            {"retry_if_result": 5},
            "retry_if_result of retry 'api' must be a function that is not asynchronous: got 5; write `def`, or pass None",
        ),
        (
            {"on_retry": hanging},
            (
                f"on_retry of retry 'api' must be a function that is not asynchronous: got {hanging!r}; "
                "write `def`, or pass None"
            ),
        ),
        (
            {"on": "OSError"},
            (
                "on of retry 'api' must be classes below Exception: got 'OSError'; "
                "write on=(OSError, ...): cancellation, and what ends the program, always passes"
            ),
        ),
        (
            {"never_on": BaseException},
            (
                "never_on of retry 'api' must be classes below Exception: got <class 'BaseException'>; "
                "write never_on=(OSError, ...): cancellation, and what ends the program, always passes"
            ),
        ),
    ],
    # Not by the messages: one has an address in it, and processes must agree on the names of tests.
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_settings_that_cannot_be_used(settings: dict[str, Any], message: str) -> None:
    """Each message says what it must be, what it was, and what to do."""
    with pytest.raises(ConfigurationError) as caught:
        Retry(**settings, name="api")
    assert message == str(caught.value)


async def test_it_cannot_stand_around_a_block() -> None:
    """A block cannot be run twice."""
    with pytest.raises(ConfigurationError, match="`async with` needs layers that can stand around a block: got <Retry"):
        async with Retry():
            pytest.fail("it was entered")


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_retry_serves_many_callers(backend: Any) -> None:
    """Each has attempts of its own, each attempt a time of its own."""
    retry = Retry(3, backoff=EVEN)
    simulation: Callable[..., Any] = Simulation
    with simulation(backend) as sim:

        async def call(number: int, ends: dict[int, float]) -> None:
            with pytest.raises(CallTimeoutError):
                await retry.execute(Timeout(number).execute, hanging)
            ends[number] = anyio.current_time()

        async def main() -> dict[int, float]:
            ends: dict[int, float] = {}
            async with anyio.create_task_group() as group:
                for number in (1, 2, 3):
                    group.start_soon(call, number, ends)
            return ends

        assert {1: 6.0, 2: 9.0, 3: 12.0} == sim.run(main)
        assert math.isclose(12.0, sim.now)
