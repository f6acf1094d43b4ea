"""Layers around a call: a time limit, an answer instead of an error, and several of them around each other."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from agentcore import (
    Bulkhead,
    CallTimeoutError,
    CircuitBreaker,
    ConfigurationError,
    Fallback,
    Pipeline,
    RateLimit,
    Retry,
    Timeout,
)
from agentcore.testing import assert_no_checkpoints, simulate
from tests.core.fakes import hanging, raising, returning

pytestmark = pytest.mark.anyio

GUARDS: dict[str, Callable[[], Any]] = {
    "Timeout": lambda: Timeout(5),
    "Bulkhead": lambda: Bulkhead(5),
    "RateLimit": lambda: RateLimit(5),
    "CircuitBreaker": lambda: CircuitBreaker("breaker"),
    "Pipeline": lambda: Pipeline(Bulkhead(5), Timeout(5)),
    "empty Pipeline": Pipeline,
}
LAYERS: dict[str, Callable[[], Any]] = {
    "Retry": lambda: Retry(1),
    "Fallback": lambda: Fallback.value(0, on=KeyError),
    "Pipeline of all": lambda: Pipeline(
        *(make() for make in GUARDS.values()), Retry(1), Fallback.value(0, on=KeyError)
    ),
    **GUARDS,
}
layers = pytest.mark.parametrize("layer", LAYERS.values(), ids=list(LAYERS))
guards = pytest.mark.parametrize("layer", GUARDS.values(), ids=list(GUARDS))


class Boom(Exception):
    """What the called functions raise."""


class Stop(BaseException):
    """What no `except Exception` may catch."""


async def add(one: int, *, other: int) -> int:
    return one + other


# All layers alike.


@layers
@simulate(runs=1)
async def test_a_call_comes_through(layer: Callable[[], Any]) -> None:
    """Asynchronous functions and others, with their arguments, without a checkpoint."""
    one = layer()
    with assert_no_checkpoints():
        assert 3 == await one.execute(add, 1, other=2)
        assert 3 == await one.execute(lambda x, other: x + other, 1, other=2)
        assert 3 == await one.execute(functools.partial(add, 1, other=2))


@layers
async def test_errors_come_through_as_they_are(layer: Callable[[], Any]) -> None:
    """The very object, without a note and without a context."""
    for error in (Boom("as told"), Stop("as told"), ExceptionGroup("", [Boom()]), TimeoutError("its own")):
        with pytest.raises(type(error)) as caught:
            await layer().execute(raising(error))
        assert error is caught.value
        assert error.__context__ is None
        # Attempts that are used up are told.
        notes = [note for note in getattr(error, "__notes__", ()) if "gave up after 1 attempt" not in note]
        assert notes == []


@layers
async def test_a_decorated_function_is_called_through_the_layer(layer: Callable[[], Any]) -> None:
    """It keeps its name and its arguments; methods too."""
    decorate = layer()

    @decorate
    async def double(number: int) -> int:
        """Twice as much."""
        return 2 * number

    class Calculator:
        factor = 3

        @decorate
        async def multiply(self, number: int) -> int:
            return self.factor * number

    assert (10, 15) == (await double(5), await Calculator().multiply(5))
    assert ("double", "Twice as much.") == (double.__name__, double.__doc__)


@layers
async def test_what_is_no_function_is_refused(layer: Callable[[], Any]) -> None:
    """A coroutine is closed, and the message tells what to write."""
    with pytest.raises(ConfigurationError, match="write add, not add\\(\\)"):
        await layer().execute(add(1, other=2))
    with pytest.raises(ConfigurationError, match="takes a function: got 5"):
        await layer().execute(5)
    if layer is not LAYERS["CircuitBreaker"]:  # which can call a synchronous function without an event loop
        with pytest.raises(ConfigurationError, match="decorates coroutine functions"):
            layer()(lambda: 5)


@guards
@simulate(runs=1)
async def test_a_block_is_one_call(layer: Callable[[], Any]) -> None:
    """Without a checkpoint; its error comes through; the layer can be used again, inside of itself too."""
    one = layer()
    with assert_no_checkpoints():
        async with one, one:
            pass
    for error in (Boom("as told"), Stop("as told")):
        with pytest.raises(type(error)) as caught:
            async with one:
                raise error
        assert error is caught.value
    async with one:
        await anyio.lowlevel.checkpoint()


@guards
@simulate(runs=10)
async def test_several_tasks_may_be_in_blocks_of_one_layer(layer: Callable[[], Any]) -> None:
    """Each leaves its own."""
    one = layer()

    async def work(steps: int) -> None:
        async with one:
            for _ in range(steps):
                await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as group, one:
        for steps in (1, 3, 2):
            group.start_soon(work, steps)
    assert 3 == await one.execute(add, 1, other=2)


@pytest.mark.parametrize("make", [Timeout, Bulkhead, RateLimit, Retry, Fallback], ids=lambda make: str(make.__name__))
@pytest.mark.parametrize("name", ["", None, 5])
def test_a_name_is_a_string(make: Callable[..., Any], name: object) -> None:
    """Since it appears in messages."""
    argument = print if make is Fallback else 1
    with pytest.raises(ConfigurationError, match=f"name of a {make.__name__} must be a string that is not empty"):
        make(argument, name=name)
    with pytest.raises(ConfigurationError, match="name of a Pipeline must be a string"):
        Pipeline(name=name)  # type: ignore[arg-type]


# Timeout.


@pytest.mark.parametrize("as_block", [False, True])
@simulate(runs=10)
async def test_a_call_that_takes_too_long_is_cut(as_block: bool) -> None:
    """At its deadline; the error says which layer it was, and hides no cancellation behind it."""
    timeout = Timeout(3.0, name="slow calls")
    with pytest.raises(CallTimeoutError) as caught:
        if as_block:
            async with timeout:
                await anyio.sleep_forever()
        else:
            await timeout.execute(hanging)
    assert 3.0 == anyio.current_time()
    assert str(caught.value) == (
        "timeout 'slow calls' ends calls that are too long: got one of more than 3 s; allow more time, or do less at once"
    )
    assert {"name": "slow calls", "timeout": 3.0} == caught.value.details
    assert isinstance(caught.value, TimeoutError)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or caught.value.__suppress_context__


@pytest.mark.parametrize("as_block", [False, True])
@simulate(runs=5)
async def test_an_outer_deadline_is_not_this_layers(as_block: bool) -> None:
    """Whoever is cancelled from outside is cancelled, and told so by whoever has done it."""
    with anyio.move_on_after(1) as scope:
        if as_block:
            async with Timeout(3):
                await anyio.sleep_forever()
        else:
            await Timeout(3).execute(hanging)
    assert scope.cancelled_caught
    with pytest.raises(CallTimeoutError, match="'outer'"):
        await Timeout(1, name="outer").execute(Timeout(3, name="inner").execute, hanging)
    with pytest.raises(CallTimeoutError, match="'inner'"):
        await Timeout(3, name="outer").execute(Timeout(1, name="inner").execute, hanging)


@simulate(runs=5)
async def test_a_timeout_of_the_call_itself_comes_through() -> None:
    """It is an error like any other."""

    async def impatient() -> None:
        with anyio.fail_after(1):
            await anyio.sleep_forever()

    with pytest.raises(TimeoutError) as caught:
        await Timeout(3).execute(impatient)
    assert not isinstance(caught.value, CallTimeoutError)
    assert not hasattr(caught.value, "__notes__")


@pytest.mark.parametrize("as_block", [False, True])
@pytest.mark.parametrize("in_group", [False, True])
@simulate(runs=5)
async def test_an_error_of_the_unwinding_is_not_lost(as_block: bool, in_group: bool) -> None:
    """It is raised, and a note says why it was unwound."""
    timeout = Timeout(2.0)

    async def clumsy() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise Boom("cannot clean up")

    async def work() -> None:
        if not in_group:
            await clumsy()
        async with anyio.create_task_group() as group:
            group.start_soon(clumsy)
            await anyio.sleep_forever()

    with pytest.raises((Boom, ExceptionGroup)) as caught:
        if as_block:
            async with timeout:
                await work()
        else:
            await timeout.execute(work)
    error = caught.value
    assert isinstance(error, ExceptionGroup) == in_group
    assert error.__notes__ == ["timeout 'timeout' of 2 s was over, and this was raised in the unwinding"]


@simulate(runs=5)
async def test_a_call_that_returns_nevertheless_has_returned() -> None:
    """What it did may have cost something: its result is not thrown away."""

    async def stubborn() -> str:
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            return "saved"

    assert "saved" == await Timeout(1).execute(stubborn)
    async with Timeout(1):
        assert "saved" == await stubborn()


@simulate(runs=5)
async def test_a_call_that_blocks_the_event_loop_cannot_be_cut(sim: Any) -> None:
    """Nothing is raised behind its back: it has ended when it could be."""
    assert "late" == await Timeout(1).execute(lambda: sim.advance(5) or "late")
    with pytest.raises(Boom) as caught:
        await Timeout(1).execute(lambda: sim.advance(5) or (_ for _ in ()).throw(Boom()))
    assert not hasattr(caught.value, "__notes__")


async def test_a_native_cancellation_comes_through(anyio_backend_name: str) -> None:
    """`Task.cancel()` is not this layer's deadline."""
    if anyio_backend_name != "asyncio":
        pytest.skip("asyncio only")
    task = asyncio.ensure_future(Pipeline(Fallback.value("no"), Retry(), Timeout(100)).execute(hanging))
    await anyio.lowlevel.checkpoint()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("seconds", [0, -1, float("inf"), float("nan"), None, "1", True])
def test_a_timeout_is_a_number_of_seconds(seconds: Any) -> None:
    """None means nothing here: the layer can be left out."""
    with pytest.raises(ConfigurationError) as caught:
        Timeout(seconds, name="api")
    assert str(caught.value) == (
        f"seconds of timeout 'api' must be a number of seconds, more than 0: got {seconds!r}; leave it out for no limit"
    )


# Fallback.


async def test_an_answer_instead_of_an_error() -> None:
    """By a function, asynchronous or not, or a value."""

    async def slowly(error: Exception) -> str:
        await anyio.lowlevel.checkpoint()
        return f"instead of {error}"

    assert "instead of boom" == await Fallback(slowly).execute(raising(Boom("boom")))
    assert "boom" == await Fallback(str).execute(raising(Boom("boom")))
    value = ["a value"]
    assert value is await Fallback.value(value).execute(raising(Boom("boom")))
    assert "fine" == await Fallback(slowly).execute(returning("fine"))
    assert await Fallback.value(print).execute(raising(Boom("boom"))) is print


async def test_the_handler_gets_the_arguments_if_it_takes_them() -> None:
    """A function of the error alone gets no more."""

    async def fetch(url: str, *, depth: int = 0) -> None:
        raise Boom(url)

    class Memory:
        def recall(self, error: Exception, url: str, depth: int = 0) -> tuple[str, str, int]:
            return str(error), url, depth

    def everything(*args: Any, **kwargs: Any) -> tuple[int, dict[str, Any]]:
        return len(args), kwargs

    def by_name(error: Exception, *args: Any, depth: int) -> int:
        return depth

    def with_default(error: Exception, *, log: str = "log") -> str:
        return log

    def named(error: Exception, **names: Any) -> Any:
        return names

    async def call(handler: Callable[..., Any]) -> Any:
        return await Pipeline(Retry(1), Fallback(handler), Timeout(5)).execute(fetch, "url", depth=2)

    assert ("url", "url", 2) == await call(Memory().recall)
    assert (2, {"depth": 2}) == await call(everything)
    assert 2 == await call(by_name)
    assert "log" == await call(with_default)
    assert "url" == await call(lambda error: str(error))  # noqa: PLW0108 - `str` takes more than one argument
    assert ("url", "x") == await call(functools.partial(lambda found, error: (str(error), found), "x"))


async def test_a_handler_that_must_be_named_its_arguments() -> None:
    """Without `*args` it gets what is given by name."""

    def by_name(error: Exception, *, depth: int) -> int:
        return depth

    async def fetch(*, depth: int) -> None:
        raise Boom

    assert 2 == await Fallback(by_name).execute(fetch, depth=2)


async def test_only_selected_errors_are_answered() -> None:
    """Others pass, groups with others in them too."""
    fallback = Fallback.value("instead", on=(Boom, OSError))
    for error in (Boom(), FileNotFoundError(), ExceptionGroup("", [Boom(), ExceptionGroup("", [OSError()])])):
        assert "instead" == await fallback.execute(raising(error))
    for passing in (ValueError(), ExceptionGroup("", [Boom(), ValueError()]), Stop(), KeyboardInterrupt()):
        with pytest.raises(type(passing)) as caught:
            await fallback.execute(raising(passing))
        assert passing is caught.value


@simulate(runs=5)
async def test_cancellation_is_not_answered() -> None:
    """Nor is an error that is raised while a cancelled caller is unwound: nobody waits for the answer."""
    answers: list[Exception] = []

    async def clumsy() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise Boom("cannot clean up")

    with anyio.move_on_after(1) as scope:
        await Fallback(answers.append).execute(hanging)
    assert scope.cancelled_caught
    with pytest.raises(Boom), anyio.move_on_after(1):
        await Fallback(answers.append).execute(clumsy)
    assert answers == []


async def test_the_error_of_a_handler_is_raised_from_the_first() -> None:
    """Both are told, by whichever way the handler fails; nothing is its own cause."""
    first, second, third = Boom("first"), ValueError("second"), LookupError("third")

    async def fail(error: Exception) -> None:
        raise second

    async def fail_from(error: Exception) -> None:
        raise second from third

    async def again(error: Exception) -> None:
        raise error

    async def unwrap(error: Exception) -> None:
        assert error.__cause__ is not None
        raise error.__cause__

    async def caused() -> None:
        raise first from third

    async def raised(handler: Callable[..., Any], call: Any = None) -> BaseException:
        with pytest.raises(Exception) as caught:  # noqa: PT011 - the caller looks at it
            await Fallback(handler).execute(call or raising(first))
        return caught.value

    assert (second, first) == (found := await raised(fail), found.__cause__)
    second.__cause__ = None
    assert (second, third, first) == (found := await raised(fail_from), found.__cause__, found.__context__)
    assert first is await raised(again)
    assert first.__cause__ is None
    assert third is await raised(unwrap, caused)
    assert third.__cause__ is None


@pytest.mark.parametrize("handler", [None, "sorry", 5])
def test_a_handler_is_a_function(handler: Any) -> None:
    """There is another way to give a value."""
    with pytest.raises(ConfigurationError) as caught:
        Fallback(handler, name="degraded")
    assert str(caught.value) == (
        f"handler of fallback 'degraded' must be a function: got {handler!r}; write Fallback.value(...) for a value"
    )


@pytest.mark.parametrize("on", [None, "OSError", BaseException, (OSError, Stop)])
def test_a_fallback_is_for_exceptions(on: Any) -> None:
    """Nobody can ask it to swallow cancellation."""
    for make in (Fallback, Fallback.value):
        with pytest.raises(ConfigurationError, match="on of fallback 'fallback' must be classes below Exception"):
            make(print, on=on)
