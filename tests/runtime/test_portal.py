"""Calls into a runtime from threads: what comes out, and that nothing goes on behind the back of who has left."""

from __future__ import annotations

import contextvars
import gc
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.abc
import anyio.lowlevel
import anyio.to_thread
import pytest

from agentcore import (
    AgentError,
    AgentRuntime,
    CallTimeoutError,
    ConfigurationError,
    RuntimeClosedError,
    TaskExecutionError,
)
from agentcore import _portal as portal_module
from agentcore.testing import current_simulation, explore
from tests.runtime.parts import runtime_of
from tests.runtime.test_health import raising

pytestmark = pytest.mark.anyio

ROOT: Final = Path(__file__).parent.parent.parent
SOON: Final = 0.02
colour: contextvars.ContextVar[str] = contextvars.ContextVar("colour", default="none")
both_modes = pytest.mark.parametrize("hosted", [True, False], ids=["hosted", "strict"])


def opened(hosted: bool = True, grace: float = 0) -> AgentRuntime:
    """Make a runtime with the handlers ``echo``, ``fail`` and ``hang``."""
    runtime = AgentRuntime(hosted=hosted, grace=grace)
    for name in ("echo", "fail", "hang"):
        runtime.handler(name)(runtime_of().registry("task_handlers").get_sync(name))
    return runtime


class Caller:
    """A thread of the program's own that makes one call; the test waits for what it came to."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self.value: Any = None
        self.error: BaseException | None = None
        self._function = function
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.value = self._function()
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            self.error = error

    def join(self) -> Caller:
        """Wait for the end, in a thread."""
        self._thread.join(10)
        assert not self._thread.is_alive(), "the calling thread hangs"
        return self

    async def end(self) -> Caller:
        """Wait for the end in the event loop, which must go on for that."""
        return await anyio.to_thread.run_sync(self.join)


class Stay:
    """A coroutine function that stays until it is cancelled, cleans up, and notes both."""

    def __init__(self, clean_up: Callable[[], Awaitable[Any]] = anyio.lowlevel.checkpoint) -> None:
        self.log: list[str] = []
        self.entered = anyio.Event()
        self._clean_up = clean_up

    async def __call__(self) -> None:
        self.log.append("in")
        self.entered.set()
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await self._clean_up()
            self.log.append("unwound")


@pytest.fixture
def collected(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is left of a test is gone before the next one begins, and says nothing then."""
    monkeypatch.setattr("sys.unraisablehook", lambda _: None)
    yield
    gc.collect()


# Results.


@both_modes
async def test_many_threads_call_at_once(hosted: bool) -> None:
    """Each has its own value."""

    async def double(number: int) -> int:
        await anyio.lowlevel.checkpoint()
        return number * 2

    async with opened(hosted) as runtime:
        callers = [
            Caller(lambda number=number: [runtime.from_thread(double, number + step) for step in range(5)])  # type: ignore[misc]
            for number in range(4)
        ]
        for number, caller in enumerate(callers):
            await caller.end()
            assert (caller.error, caller.value) == (None, [2 * (number + step) for step in range(5)])


async def test_the_methods_of_a_runtime_can_be_called() -> None:
    """They take their arguments by position; tasks behave as in the loop."""
    async with opened() as runtime:
        caller = await Caller(lambda: runtime.from_thread(runtime.run, "echo", {"n": 1})).end()
        assert caller.value == {"n": 1}
        caller = await Caller(lambda: runtime.from_thread(runtime.run, "fail", {"n": 2})).end()
        assert isinstance(caller.error, TaskExecutionError)
        assert str(caller.error.__cause__) == "number 2"


@pytest.mark.parametrize(
    "error",
    [
        ValueError("own"),
        TimeoutError("own"),
        SystemExit(3),
        KeyboardInterrupt(),
        ExceptionGroup("own", [OSError()]),
        RuntimeClosedError("own"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_exceptions_come_out_as_they_are(error: BaseException) -> None:
    """The very object, of whatever kind; the runtime goes on."""

    async def fail() -> None:
        await anyio.lowlevel.checkpoint()
        raise error

    async with opened() as runtime:
        caller = await Caller(lambda: runtime.from_thread(fail, timeout=5)).end()
        assert caller.error is error
        assert runtime.health().healthy
        assert await runtime.run("echo", {"n": 1}) == {"n": 1}


async def test_variables_of_the_thread_travel() -> None:
    """Into the call and into tasks that are started there; what is set there does not come back."""
    seen: list[str] = []

    async def look() -> None:
        seen.append(colour.get())
        colour.set("green")

    def thread() -> str:
        colour.set("red")
        runtime.from_thread(look)
        runtime.from_thread(runtime.run, "look")
        return colour.get()

    async with opened() as runtime:
        runtime.handler("look")(lambda given: seen.append(colour.get()))
        caller = await Caller(thread).end()
    assert (caller.value, seen) == ("red", ["red", "red"])


async def test_the_runtime_is_current_in_a_call() -> None:
    """The hosted one of the loop."""

    async def look() -> AgentRuntime:
        return AgentRuntime.current()

    async with opened() as runtime:
        caller = await Caller(lambda: runtime.from_thread(look)).end()
        assert caller.value is runtime


async def test_the_called_runtime_is_current_in_a_call() -> None:
    """It is the one whose method was called, strict or not."""

    async def look() -> AgentRuntime:
        return AgentRuntime.current()

    async with opened(hosted=False) as strict:
        caller = await Caller(lambda: strict.from_thread(look)).end()
        assert caller.value is strict


# Timeouts.


@both_modes
async def test_a_timeout_cancels_and_waits(hosted: bool) -> None:
    """When the error is there, the coroutine has been unwound."""
    seen: list[list[str]] = []
    stay = Stay()

    def thread() -> None:
        try:
            runtime.from_thread(stay, timeout=SOON)
        finally:
            seen.append(list(stay.log))

    async with opened(hosted) as runtime:
        caller = await Caller(thread).end()
        assert isinstance(caller.error, CallTimeoutError)
        assert isinstance(caller.error, TimeoutError)
        assert caller.error.details == {"name": "from_thread", "timeout": SOON}
        assert "longer than its timeout" in caller.error.message
    assert seen == [["in", "unwound"]]


async def test_what_a_clean_up_raises_hides_the_timeout() -> None:
    """It says more, and is not lost."""

    async def clean_up() -> None:
        raise OSError("disk")

    async with opened() as runtime:
        caller = await Caller(lambda: runtime.from_thread(Stay(clean_up), timeout=SOON)).end()
        assert isinstance(caller.error, OSError)


async def test_a_timeout_cancels_the_task_that_is_run() -> None:
    """It belongs to the call."""
    async with opened() as runtime:
        caller = await Caller(lambda: runtime.from_thread(runtime.run, "hang", timeout=SOON)).end()
        assert isinstance(caller.error, CallTimeoutError)
        assert runtime.tasks.is_idle
        assert runtime.statistics().tasks.canceled == 1


@pytest.mark.parametrize("timeout", [-1, float("nan"), True, "1"])
async def test_an_unusable_timeout_is_refused(timeout: Any) -> None:
    """Nothing is called."""
    stay = Stay()
    async with opened() as runtime:
        caller = await Caller(lambda: runtime.from_thread(stay, timeout=timeout)).end()
        assert isinstance(caller.error, ConfigurationError)
    assert stay.log == []


async def test_waiting_may_take_longer_than_a_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread looks whether the loop still runs; that is nothing that its caller sees."""
    monkeypatch.setattr(portal_module, "LOOK", 0.001)
    hold = anyio.Event()

    async def wait() -> str:
        await hold.wait()
        return "value"

    async with opened() as runtime:
        caller = Caller(lambda: runtime.from_thread(wait))
        for _ in range(20):
            await anyio.to_thread.run_sync(threading.Event().wait, 0.001)
        hold.set()
        assert (await caller.end()).value == "value"


async def test_a_result_that_comes_with_a_look_is_no_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the end of a wait and the question whether the call is done, it may get done."""

    class Late(Future[Any]):
        def result(self, timeout: float | None = None) -> Any:
            value = super().result()
            if timeout is not None:
                raise TimeoutError
            return value

    monkeypatch.setattr(portal_module, "Future", Late)

    async def value() -> str:
        return "value"

    async with opened() as runtime:
        caller = await Caller(lambda: runtime.from_thread(value)).end()
        assert (caller.error, caller.value) == (None, "value")


# The end of the runtime.


@both_modes
async def test_leaving_the_runtime_cancels_calls(hosted: bool) -> None:
    """They are unwound before the block has been left; the threads are told that it is over."""
    stays = [Stay() for _ in range(3)]
    async with opened(hosted) as runtime:
        callers = [Caller(lambda stay=stay: runtime.from_thread(stay)) for stay in stays]  # type: ignore[misc]
        for stay in stays:
            await stay.entered.wait()
    assert [["in", "unwound"]] * 3 == [stay.log for stay in stays]
    for caller in callers:
        await caller.end()
        assert isinstance(caller.error, RuntimeClosedError)


async def test_calls_go_on_while_the_runtime_drains() -> None:
    """The grace is for tasks; a call that makes one wait ends with it."""
    async with opened(grace=60) as runtime:
        stay = Stay()
        caller = Caller(lambda: runtime.from_thread(stay))
        await stay.entered.wait()
        await runtime.drain()
        assert stay.log == ["in"]
        refused = await Caller(lambda: runtime.from_thread(runtime.run, "echo")).end()
        assert isinstance(refused.error, RuntimeClosedError)
    assert stay.log == ["in", "unwound"]
    await caller.end()


@pytest.mark.parametrize("how", ["exit", "resource"])
@both_modes
async def test_a_crash_ends_calls(hosted: bool, how: str) -> None:
    """They are unwound, and the threads told."""
    stay = Stay()

    class Line:
        async def __aenter__(self) -> None:
            self.group = await anyio.create_task_group().__aenter__()
            self.group.start_soon(self.fail)

        async def __aexit__(self, *error: object) -> None:
            await self.group.__aexit__(*error)

        async def fail(self) -> None:
            await stay.entered.wait()
            raise ValueError("dead")

    async def leave(given: dict[str, Any]) -> None:
        raise SystemExit(3)

    with raising():
        async with opened(hosted) as runtime:
            runtime.handler("exit")(leave)
            caller = Caller(lambda: runtime.from_thread(stay))
            if how == "resource":
                await runtime.resource(Line())
                await stay.entered.wait()
            else:
                await stay.entered.wait()
                await runtime.submit("exit")
            with anyio.fail_after(5):
                while runtime.report is None:
                    await anyio.lowlevel.checkpoint()
    assert stay.log == ["in", "unwound"]
    await caller.end()
    assert isinstance(caller.error, RuntimeClosedError)


async def test_before_and_after_the_block_calls_are_refused() -> None:
    """The message says which."""
    runtime = opened()
    caller = await Caller(lambda: runtime.from_thread(anyio.lowlevel.checkpoint)).end()
    assert isinstance(caller.error, RuntimeClosedError)
    assert caller.error.details["state"] == "new"
    assert "got a call from a thread in state 'new'" in caller.error.message
    async with runtime:
        pass
    caller = await Caller(lambda: runtime.from_thread(anyio.lowlevel.checkpoint)).end()
    assert isinstance(caller.error, RuntimeClosedError)
    assert caller.error.details["state"] == "closed"
    assert "got a call from a thread in state 'closed'" in caller.error.message


@both_modes
async def test_in_the_loop_it_is_refused(hosted: bool) -> None:
    """It would block for ever."""
    async with opened(hosted) as runtime:
        with pytest.raises(AgentError, match="got a call in its event loop"):
            runtime.from_thread(anyio.lowlevel.checkpoint)

        @runtime.handler("inside")
        async def inside(given: dict[str, Any]) -> None:
            runtime.from_thread(anyio.lowlevel.checkpoint)

        with pytest.raises(TaskExecutionError, match="got a call in its event loop"):
            await runtime.run("inside")


@pytest.mark.parametrize(
    "other",
    [
        "asyncio",
        "trio",
    ],
)
async def test_a_thread_may_have_another_loop(other: str, collected: None) -> None:
    """It blocks that one, as any synchronous call does."""

    async def main() -> Any:
        return runtime.from_thread(runtime.run, "echo", {"n": 1})

    async with opened() as runtime:
        caller = await Caller(lambda: anyio.run(main, backend=other)).end()
        assert (caller.error, caller.value) == (None, {"n": 1})


def test_a_call_whose_loop_is_gone_does_not_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop that was closed without cancelling: those who wait in it are told, and who comes later is too."""
    import asyncio  # noqa: PLC0415 - only trio's loop cannot be closed under its tasks

    monkeypatch.setattr(portal_module, "LOOK", 0.01)
    monkeypatch.setattr("sys.unraisablehook", lambda _: None)
    loop = asyncio.new_event_loop()
    stays: list[Stay] = []

    async def main() -> tuple[AgentRuntime, Caller]:
        runtime = await AgentRuntime.open()
        stays.append(Stay())
        caller = Caller(lambda: runtime.from_thread(stays[0]))
        await stays[0].entered.wait()
        return runtime, caller

    runtime, caller = loop.run_until_complete(main())
    loop.close()
    assert isinstance(caller.join().error, RuntimeClosedError)
    later = Caller(lambda: runtime.from_thread(anyio.lowlevel.checkpoint)).join()
    assert isinstance(later.error, RuntimeClosedError)
    assert "event loop of the runtime has ended" in later.error.message


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_loop_that_ends_takes_calls_along(backend: str) -> None:
    """A runtime that was not left: the calls are unwound all the same, and the threads told."""
    stays: list[Stay] = []

    async def main() -> Caller:
        runtime = await AgentRuntime.open(grace=0)
        stays.append(Stay())
        caller = Caller(lambda: runtime.from_thread(stays[0]))
        await stays[0].entered.wait()
        return caller

    caller = anyio.run(main, backend=backend).join()
    assert isinstance(caller.error, RuntimeClosedError)
    assert stays[0].log == ["in", "unwound"]


# A handler that is a plain function is called in a thread, and may call back.


async def test_a_handler_in_a_thread_may_call_back() -> None:
    """What it runs takes its place: one slot is enough for both."""
    runtime = AgentRuntime(runtime_of(in_flight=1).config, hosted=True)

    @runtime.handler("inner")
    async def inner(given: dict[str, Any]) -> int:
        return given["n"] + 1

    @runtime.handler("outer")
    def outer(given: dict[str, Any]) -> dict[str, Any]:
        return runtime.from_thread(runtime.run, "inner", given)

    async with runtime:
        with anyio.fail_after(5):
            assert await runtime.run("outer", {"n": 1}) == {"result": 2}


# Nothing is forgotten between the thread and the loop.


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_leaving_while_a_call_comes(backend: str, collected: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the order: the call never begins, or is cancelled; and its thread is told."""
    announce = portal_module.Portal._announce

    async def main() -> None:
        runtime = AgentRuntime(hosted=True, grace=0)
        log: list[str] = []
        arrived = anyio.Event()

        def noticed(self: Any, visit: Any) -> None:
            announce(self, visit)
            if log:
                arrived.set()

        async def stay() -> None:
            log.append("in")
            try:
                await anyio.sleep_forever()
            finally:
                log.append("unwound")

        def thread() -> None:
            runtime.from_thread(anyio.lowlevel.checkpoint)
            log.append("calls")
            with pytest.raises(RuntimeClosedError):
                runtime.from_thread(stay)
            log.append("told")

        monkeypatch.setattr(portal_module.Portal, "_announce", noticed)
        # As if it were a thread that no task waits for.
        monkeypatch.setattr(portal_module.Portal, "_is_worker", lambda self: False)
        async with anyio.create_task_group() as group, runtime:
            group.start_soon(anyio.to_thread.run_sync, thread)
            await arrived.wait()
        assert log in (["calls", "told"], ["calls", "in", "unwound", "told"])
        await current_simulation().settle()

    explore(main, backend=backend, runs=40, watchdog=2).unwrap()
