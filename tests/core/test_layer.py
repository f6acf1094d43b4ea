"""What all layers around a call have in common."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any

import anyio
import pytest

from agentcore import ConfigurationError
from agentcore._layer import GuardLayer, Layer, _entered, check_callable, check_name, invoke, is_async
from agentcore.testing import simulate
from tests.core.callables import MISTAKES, Adder, AsyncAdder, Later, add, add_async
from tests.core.circuits import Down, at_once, fail, succeed

pytestmark = pytest.mark.anyio


class Twice(Layer):
    """Calls twice."""

    __slots__ = ()

    async def _execute(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return [await invoke(func, args, kwargs), await invoke(func, args, kwargs)]


class Guard:
    """Notes who goes in and out."""

    def __init__(self, layer: Noting) -> None:
        self.layer = layer

    async def __aenter__(self) -> None:
        if self.layer.closed:
            raise PermissionError("closed")
        self.layer.noted.append("in")

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        assert kind is (None if error is None else type(error))
        self.layer.noted.append("out" if kind is None else kind.__name__)
        if self.layer.breaks:
            raise RuntimeError("the guard breaks")
        return self.layer.swallows


class Noting(GuardLayer):
    """Has a guard for each call."""

    def __init__(self, name: str = "noting", *, closed: bool = False, breaks: bool = False, swallows: bool = False):
        super().__init__(name)
        self.closed, self.breaks, self.swallows = closed, breaks, swallows
        self.noted: list[str] = []
        self.abandoned = 0

    def guard(self) -> AbstractAsyncContextManager[object, bool | None]:
        return Guard(self)

    def _abandon(self) -> None:
        self.abandoned += 1


# ---------------------------------------------------------------- the parts


@pytest.mark.parametrize("name", ["", None, 3, b"name", ["name"]])
def test_names(name: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        check_name("layer", name)
    assert f"name of a layer must be a string that is not empty: got {name!r}; give it one" == str(caught.value)
    assert {"name": "name", "value": name} == caught.value.details
    with pytest.raises(ConfigurationError, match="name of a Twice must be a string"):
        Twice(name)


def test_a_layer_tells_its_name() -> None:
    check_name("layer", "name")
    assert ("name", "<Twice 'name'>") == (Twice("name").name, repr(Twice("name")))


def test_callables() -> None:
    """What cannot be called is refused, with what to write; a coroutine is closed."""
    for function in (add, add_async, Adder(), Adder, functools.partial(add), print):
        check_callable("execute of 'x'", function)
    for mistake, text in [*MISTAKES, (succeed(), "write succeed, not succeed()")]:
        with pytest.raises(ConfigurationError) as caught:
            check_callable("execute of 'x'", mistake)
        assert str(caught.value).startswith(f"execute of 'x' takes a function: got {mistake!r}; ")
        assert str(caught.value).endswith(text)
        assert {"name": "func", "value": repr(mistake)} == caught.value.details
    assert "CORO_CLOSED" == inspect.getcoroutinestate(mistake)


@pytest.mark.parametrize(
    ("expected", "function"),
    [
        (True, add_async),
        (True, functools.partial(functools.partial(add_async), 1)),
        (True, AsyncAdder()),
        (True, functools.partial(AsyncAdder(), 1)),
        (True, Adder().method),
        (False, add),
        (False, functools.partial(add, 1)),
        (False, Adder()),
        (False, Adder),
        (False, AsyncAdder),
        (False, print),
        (False, lambda: add_async()),  # noqa: PLW0108 - it must not look like a coroutine function
    ],
)
def test_asynchronous_functions_are_known(expected: bool, function: Callable[..., Any]) -> None:
    """A class is called to make an object, whatever its objects do."""
    assert expected == is_async(function)


async def test_invoke_awaits_what_can_be_awaited() -> None:
    for function in (add, add_async, Adder(), AsyncAdder(), lambda *numbers, **more: Later(add(*numbers, **more))):
        assert 7 == await invoke(function, (1, 2), {"more": 4})


# ---------------------------------------------------------------- calls


async def test_execute() -> None:
    """Functions of all kinds; names of its own parameters are free."""
    layer = Twice("twice")
    assert [7, 7] == await layer.execute(add, 1, func=2, self=4)
    assert [7, 7] == await layer.execute(add_async, 1, func=2, self=4)
    assert [["well", "well"], ["well", "well"]] == await layer.execute(layer.execute, succeed)
    for mistake, text in [*MISTAKES, (succeed(), "write succeed, not succeed()")]:
        with pytest.raises(ConfigurationError) as caught:
            await layer.execute(mistake)
        assert str(caught.value).startswith("execute of 'twice' takes a function: got ")
        assert str(caught.value).endswith(text)


async def test_decorator() -> None:
    """It looks like what it decorates."""

    @Twice("twice")
    async def greet(name: str, *, greeting: str = "hello") -> str:
        """Greet."""
        return f"{greeting} {name}"

    assert ["hi you", "hi you"] == await greet("you", greeting="hi")
    assert ("greet", "Greet.", ["name", "greeting"]) == (
        greet.__name__,
        greet.__doc__,
        list(inspect.signature(greet).parameters),
    )
    assert inspect.iscoroutinefunction(greet)
    assert [3, 3] == await Twice("twice")(functools.partial(add_async, 1))(2)
    assert [3, 3] == await Twice("twice")(AsyncAdder())(1, 2)


@pytest.mark.parametrize("function", [add, Adder(), functools.partial(add), AsyncAdder])
def test_decorator_refuses_what_is_not_asynchronous(function: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Twice("twice")(function)
    assert (
        f"@twice decorates coroutine functions: got {function!r}; write `async def`, or call it by `execute`"
    ) == str(caught.value)


def test_decorator_refuses_what_cannot_be_called() -> None:
    for mistake, text in [*MISTAKES, (succeed(), "write succeed, not succeed()")]:
        with pytest.raises(ConfigurationError) as caught:
            Twice("twice")(mistake)
        assert str(caught.value).startswith("@twice takes a function: got ")
        assert str(caught.value).endswith(text)


def test_layers_add_no_checkpoint() -> None:
    layer = Noting()

    async def block() -> str:
        async with layer:
            return await layer.execute(succeed)

    assert "well" == at_once(block())
    assert ["in", "in", "out", "out"] == layer.noted


# ---------------------------------------------------------------- blocks


async def test_a_guard_for_each_call() -> None:
    """Its end is told how the call has ended."""
    layer = Noting()
    assert "well" == await layer.execute(succeed)
    with pytest.raises(Down):
        await layer.execute(fail)
    async with layer as given:
        assert given is None
    with pytest.raises(Down):
        async with layer:
            raise Down
    assert ["in", "out", "in", "Down", "in", "out", "in", "Down"] == layer.noted
    assert () == _entered.get()


async def test_a_block_that_is_not_entered_is_not_left() -> None:
    layer = Noting(closed=True)
    with pytest.raises(PermissionError):
        async with layer:
            pytest.fail("it was entered")
    assert ([], ()) == (layer.noted, _entered.get())


async def test_a_guard_that_breaks() -> None:
    """Its error takes the place of what came before, and the block is left all the same."""
    layer = Noting(breaks=True)
    with pytest.raises(RuntimeError, match="the guard breaks") as caught:
        async with layer:
            raise Down
    assert isinstance(caught.value.__context__, Down)
    assert (["in", "Down"], ()) == (layer.noted, _entered.get())


async def test_a_guard_may_swallow() -> None:
    layer = Noting(swallows=True)
    async with layer:
        raise Down
    assert await layer.execute(fail) is None
    assert () == _entered.get()


async def test_blocks_are_left_innermost_first() -> None:
    """Of one layer; those of others may be left in any order."""
    one, other = Noting("one"), Noting("other")
    await one.__aenter__()
    await other.__aenter__()
    await one.__aenter__()
    assert [one, other, one] == [block.layer for block in _entered.get()]
    await one.__aexit__(None, None, None)
    assert [one, other] == [block.layer for block in _entered.get()]
    await one.__aexit__(None, None, None)
    assert [other] == [block.layer for block in _entered.get()]
    await other.__aexit__(None, None, None)
    assert () == _entered.get()


async def test_a_block_is_left_in_its_task() -> None:
    """What it holds is given back nevertheless."""
    layer = Noting()
    with pytest.raises(ConfigurationError) as caught:
        await layer.__aexit__(None, None, None)
    assert (
        "a block of 'noting' must be left in the task that has entered it: got a task without one; "
        "do not keep it open across a `yield`"
    ) == str(caught.value)
    assert ({"name": "noting"}, 1, []) == (caught.value.details, layer.abandoned, layer.noted)


async def test_a_block_that_is_closed_from_elsewhere() -> None:
    """As the pending coroutines of an event loop that has ended: there is nobody to tell."""
    layer = Noting()
    assert not await layer.__aexit__(GeneratorExit, GeneratorExit(), None)
    assert (1, []) == (layer.abandoned, layer.noted)


@simulate(runs=20)
async def test_each_task_has_its_own_blocks() -> None:
    """In whatever order they come and go."""
    layer = Noting()
    seen: list[int] = []

    async def visit(number: int) -> None:
        async with layer:
            await anyio.sleep(number % 3)
            async with layer:
                await anyio.sleep(number % 2)
                seen.append(len(_entered.get()))
        seen.append(len(_entered.get()))

    async with anyio.create_task_group() as group:
        for number in range(6):
            group.start_soon(visit, number)
    assert [0] * 6 + [2] * 6 == sorted(seen)
    assert (24, ()) == (len(layer.noted), _entered.get())


@simulate(runs=20)
async def test_tasks_begin_inside_of_blocks() -> None:
    """They know of the blocks around them, and leave their own."""
    layer = Noting()
    seen: list[int] = []

    async def child() -> None:
        seen.append(len(_entered.get()))
        async with layer:
            await anyio.sleep(2)
            seen.append(len(_entered.get()))
        seen.append(len(_entered.get()))

    async with anyio.create_task_group() as group:
        async with layer:
            group.start_soon(child)
            await anyio.sleep(1)
        assert ["in", "in", "out"] == layer.noted
    assert [1, 2, 1] == seen
    assert () == _entered.get()
