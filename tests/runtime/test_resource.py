"""Resources: opened once, in a task of their own, and closed after everything that may use them, the last one first."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from agentcore import (
    AgentContext,
    AgentCrashedError,
    AgentError,
    AgentRuntime,
    CallTimeoutError,
    ConfigurationError,
    RuntimeClosedError,
)
from agentcore.testing import cancel_everywhere, simulate
from tests.runtime.doing import Doing, behind, both, forever, opened, register, runtime

pytestmark = pytest.mark.anyio


class Service:
    """A context manager that notes what happens to it, and does what a test tells it."""

    def __init__(
        self,
        log: list[Any],
        name: str = "service",
        *,
        opening: Any = None,
        closing: Any = None,
    ) -> None:
        self.log = log
        self.name = name
        self.opening = opening
        self.closing = closing
        self.tasks: list[int] = []

    async def __aenter__(self) -> str:
        self.tasks.append(anyio.get_current_task().id)
        self.log.append(f"open {self.name}")
        if self.opening is not None:
            await self.opening()
        return self.name.upper()

    async def __aexit__(self, *_: object) -> None:
        self.tasks.append(anyio.get_current_task().id)
        if self.closing is not None:
            await self.closing()
        self.log.append(f"close {self.name}")


async def fail() -> None:
    raise OSError("no connection")


async def leave_python() -> None:
    raise SystemExit(3)


# All is well.


@both
@simulate(runs=5)
async def test_opened_once_and_closed_last(hosted: bool) -> None:
    """Asynchronous and synchronous ones, in reverse order, after the agents; what is open is given by name."""
    log: list[Any] = []

    @contextmanager
    def synchronous() -> Generator[str]:
        log.append("open sync")
        yield "SYNC"
        log.append("close sync")

    async def ended() -> None:
        await anyio.sleep(1)
        log.append("agent")

    async with opened(hosted=hosted) as made:
        register(made, "agent", Doing(terminate=ended))
        first, second = Service(log, "first"), synchronous()
        assert await made.resource(first, "one") == "FIRST"
        assert await made.resource(second) == "SYNC"
        assert await made.resource(Service(log, "third")) == "THIRD"
        assert await made.resource(first, "one") == await made.resource(first) == "FIRST"
        assert await made.resource(second) == "SYNC"

        async def process(context: AgentContext) -> Any:
            return context.resource("one")

        assert (await made.ask(Doing(process))).output == made.resources.get("one") == "FIRST"
        with pytest.raises(ConfigurationError, match="known are 'one'"):
            made.resources.get("two")
        log.append("exit")
    assert log == [
        "open first", "open sync", "open third", "exit", "agent", "close third", "close sync", "close first",
    ]  # fmt: skip
    assert first.tasks[0] == first.tasks[1] != anyio.get_current_task().id


@both
@simulate(runs=10)
async def test_opened_at_once(hosted: bool) -> None:
    """Who asks for what is being opened waits for that; several are opened at the same time."""
    log: list[Any] = []

    async def pause() -> None:
        await anyio.sleep(1)

    async with opened(hosted=hosted) as made, anyio.create_task_group() as group:
        one, two = Service(log, "one", opening=pause), Service(log, "two", opening=pause)
        seen: list[str] = []

        async def use(service: Service) -> None:
            seen.append(await made.resource(service, service.name))

        for service in (one, two, one, one):
            group.start_soon(use, service)
        await anyio.sleep(1)
        await anyio.wait_all_tasks_blocked()
        assert sorted(seen) == ["ONE", "ONE", "ONE", "TWO"]
        assert sorted(log) == ["open one", "open two"]


async def test_names() -> None:
    """A name stands for one resource, from its opening to its end."""
    async with opened() as made:
        await made.resource(Service([]), "name")
        with pytest.raises(ConfigurationError, match="one resource"):
            await made.resource(Service([]), "name")
        await made.resource(Service([]))
        await made.resource(Service([]))
    with pytest.raises(ConfigurationError, match="none"):
        made.resources.get("name")
    with pytest.raises(AgentError, match="inside a runtime"):
        AgentContext().resource("name")


@both
@simulate(runs=10)
async def test_opened_in_another_task(hosted: bool) -> None:
    """Whoever opens it may end long before: it is open until the runtime ends."""
    log: list[Any] = []
    async with opened(hosted=hosted) as made:

        @made.handler("open")
        async def open_it(given: dict[str, Any]) -> None:
            async with anyio.create_task_group() as inner:
                inner.start_soon(made.resource, service, "name")

        service = Service(log)
        await made.run("open")
        assert (log, made.resources.get("name")) == (["open service"], "SERVICE")
        assert made.tasks.active() == []
    assert log == ["open service", "close service"]
    assert service.tasks[0] == service.tasks[1]


async def test_outside_of_the_block() -> None:
    """Before and after it is refused, and nothing is opened."""
    log: list[Any] = []
    made = runtime()
    for state in ("new", "closed"):
        with pytest.raises(RuntimeClosedError, match=state):
            await made.resource(Service(log))
        if state == "new":
            async with made:
                pass
    assert log == []


@pytest.mark.parametrize("timeout", [None, -1, "5", float("inf")])
async def test_close_timeouts_that_are_none(timeout: Any) -> None:
    """Closing always has a limit."""
    async with opened() as made:
        with pytest.raises(ConfigurationError, match="close_timeout"):
            await made.resource(Service([]), close_timeout=timeout)


async def test_what_is_no_context_manager() -> None:
    """It is refused, and the runtime works on."""
    async with opened() as made:
        for thing in (42, "text", Service):
            with pytest.raises((ConfigurationError, TypeError, AttributeError)):
                await made.resource(thing)  # type: ignore[type-var,arg-type]
        assert made.health().healthy


# Failures.


@both
@simulate(runs=5)
async def test_opening_fails(hosted: bool) -> None:
    """Whoever opens it gets the error; the next one tries again; the runtime works on."""
    log: list[Any] = []
    async with opened(hosted=hosted) as made:
        service = Service(log, opening=fail)
        for _ in range(2):
            with pytest.raises(OSError, match="no connection"):
                await made.resource(service, "name")
        with pytest.raises(ConfigurationError):
            made.resources.get("name")
        service.opening = leave_python
        with pytest.raises(SystemExit):
            await made.resource(service, "name")
        service.opening = None
        assert await made.resource(service, "name") == "SERVICE"
        assert made.health().healthy
        assert made.health().failures == ()
    assert log == ["open service"] * 4 + ["close service"]


@both
@simulate(runs=10)
async def test_others_wait_for_an_opening_that_fails(hosted: bool) -> None:
    """The error is that of the one who tried; the others try by themselves."""
    tries: list[float] = []

    async def second_try() -> None:
        tries.append(anyio.current_time())
        await anyio.sleep(1)
        if len(tries) == 1:
            raise OSError("no connection")

    async with opened(hosted=hosted) as made:
        service, got = Service([], opening=second_try), []

        async def use() -> None:
            try:
                got.append(await made.resource(service))
            except OSError:
                got.append("failed")

        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(use)
        assert sorted(got) == ["SERVICE", "SERVICE", "failed"]
        assert tries == [0, 1]


@both
@simulate(runs=5)
async def test_closing_fails(hosted: bool) -> None:
    """It is raised at the exit, and the others are closed all the same; with an error of the block, both are told."""
    for of_block in (False, True):
        log: list[Any] = []
        with pytest.raises(AgentCrashedError) as caught:
            async with opened(hosted=hosted) as made:
                await made.resource(Service(log, "first"))
                await made.resource(Service(log, "second", closing=fail))
                await made.resource(Service(log, "third"))
                if of_block:
                    raise KeyError("mine")
        assert log[3:] == ["close third", "close first"]
        assert [type(leaf) for leaf in caught.value.exceptions] == [KeyError] * of_block + [OSError]


@both
@simulate(runs=5)
async def test_closing_takes_too_long(hosted: bool) -> None:
    """It is cut after its time, told of, and the others are closed."""
    log: list[Any] = []
    with pytest.raises(AgentCrashedError) as caught:
        async with opened(hosted=hosted) as made:
            await made.resource(Service(log, "first"))
            await made.resource(Service(log, "second", closing=anyio.sleep_forever), "second", close_timeout=3)
    assert (log[-1], anyio.current_time()) == ("close first", 3)
    assert [type(leaf) for leaf in caught.value.exceptions] == [CallTimeoutError]
    error = caught.value.exceptions[0]
    assert isinstance(error, CallTimeoutError)
    assert error.details == {"name": "second", "timeout": 3}


@both
@simulate(runs=5)
async def test_closing_is_shielded(hosted: bool) -> None:
    """A cancellation of the block does not cut it short."""
    log: list[Any] = []

    async def pause() -> None:
        await anyio.sleep(2)

    with anyio.move_on_after(1) as scope:
        async with opened(hosted=hosted) as made:
            await made.resource(Service(log, closing=pause))
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert (log, anyio.current_time()) == (["open service", "close service"], 3)


@both
@pytest.mark.parametrize("way", ["raises", "returns"])
@simulate(runs=5)
async def test_it_ends_by_itself(hosted: bool, way: str) -> None:
    """A connection that breaks ends the runtime: strict, its block is cancelled; hosted, it shows and is told."""

    @asynccontextmanager
    async def connection() -> AsyncGenerator[None]:
        async def work() -> None:
            await broken.wait()
            await fail()

        with contextlib.suppress(*[BaseExceptionGroup] * (way == "returns")):
            async with anyio.create_task_group() as group:
                group.start_soon(work)
                yield

    broken = anyio.Event()
    closed: list[Any] = []
    reached: list[bool] = []
    with pytest.raises(BaseExceptionGroup) as caught:
        async with opened(hosted=hosted) as made:
            await made.resource(Service(closed))
            await made.resource(connection(), "connection")
            handle = await made.submit("hang")
            broken.set()
            if not hosted:
                await anyio.sleep_forever()
            await anyio.sleep(1)
            reached.append(made.health().healthy)
            assert made.health().state == "failed"
            with pytest.raises(RuntimeClosedError):
                await made.ask(Doing())
    assert reached == [False] * hosted
    assert handle.is_done
    assert closed == ["open service", "close service"]
    assert isinstance(caught.value, AgentCrashedError)
    assert (OSError if way == "raises" else AgentError) in behind(caught.value)


# Cut short.


@both
@simulate(runs=10)
async def test_cancelled_while_opening(hosted: bool) -> None:
    """What has been done of it is undone before the cancellation goes on; it can be opened again."""
    log: list[Any] = []

    @asynccontextmanager
    async def slow() -> AsyncGenerator[str]:
        try:
            log.append("opening")
            await anyio.sleep(5)
            yield "open"
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(1)
            log.append("undone")

    async with opened(hosted=hosted) as made:
        with anyio.move_on_after(2) as scope:
            await made.resource(slow(), "name")
        assert scope.cancelled_caught
        assert (log, anyio.current_time()) == (["opening", "undone"], 3)
        assert await made.resource(slow(), "name") == "open"
        assert made.health().failures == ()
    assert log == ["opening", "undone"] * 2


@both
@simulate(runs=40)
async def test_cancelled_when_it_is_open(hosted: bool) -> None:
    """Cancelled at the moment when the opening succeeds: it is open or undone, and the runtime works on."""
    log: list[Any] = []
    async with opened(hosted=hosted) as made:
        ready = anyio.Event()
        async with anyio.create_task_group() as group:
            group.start_soon(made.resource, Service(log, opening=ready.wait))
            await anyio.wait_all_tasks_blocked()
            ready.set()
            group.cancel_scope.cancel()
        assert (made.health().healthy, made.health().failures) == (True, ())
    assert log in (["open service"], ["open service", "close service"])


@both
@simulate(runs=10)
async def test_cancelled_while_somebody_else_opens(hosted: bool) -> None:
    """Who only waits takes nothing back."""

    async def pause() -> None:
        await anyio.sleep(5)

    async with opened(hosted=hosted) as made, anyio.create_task_group() as group:
        log: list[Any] = []
        service = Service(log, opening=pause)
        group.start_soon(made.resource, service, "name")
        await anyio.wait_all_tasks_blocked()
        with anyio.move_on_after(2):
            await made.resource(service, "name")
        await anyio.sleep(4)
        assert (made.resources.get("name"), log) == ("SERVICE", ["open service"])


@both
@simulate(runs=20)
async def test_the_runtime_ends_while_it_opens(hosted: bool) -> None:
    """Opening is cancelled, whoever waits for it is told, nothing stays open."""
    log: list[Any] = []
    caught: list[str] = []
    async with opened(hosted=hosted) as made, anyio.create_task_group() as group:

        async def use() -> None:
            with pytest.raises(RuntimeClosedError) as told:
                await made.resource(service)
            await anyio.lowlevel.checkpoint()
            caught.append(str(told.value))

        service = Service(log, opening=anyio.sleep_forever)
        for _ in range(2):
            group.start_soon(use)
        await anyio.wait_all_tasks_blocked()
        await made.shutdown(0)
    assert len(caught) == 2
    assert log == ["open service"]


@both
@simulate(runs=40)
async def test_it_is_open_with_the_end_of_the_runtime(hosted: bool) -> None:
    """Whoever gets it at the very last moment gets it closed or not at all, and it is closed once."""
    log: list[Any] = []
    async with opened(hosted=hosted) as made, anyio.create_task_group() as group:
        ready = anyio.Event()

        async def use() -> None:
            with contextlib.suppress(RuntimeClosedError):
                await made.resource(Service(log, opening=ready.wait))

        group.start_soon(use)
        await anyio.wait_all_tasks_blocked()
        ready.set()
        await made.shutdown(0)
    assert log in (["open service"], ["open service", "close service"])


@both
@simulate(runs=5)
async def test_tasks_may_use_it_until_their_end(hosted: bool) -> None:
    """What is cut has its clean-up behind it before the resource is closed."""
    log: list[Any] = []
    async with opened(hosted=hosted) as made, anyio.create_task_group() as group:

        async def work(context: AgentContext) -> None:
            try:
                await forever(context)
            finally:
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(1)
                log.append(f"last use of {context.resource('name')}")

        async def ask() -> None:
            with pytest.raises(RuntimeClosedError):
                await made.ask(Doing(work))

        await made.resource(Service(log), "name")
        register(made, "work", lambda: Doing(work))
        await made.submit("work")
        group.start_soon(ask)
        await anyio.wait_all_tasks_blocked()
        await made.shutdown(0)
    assert log == ["open service", "last use of SERVICE", "last use of SERVICE", "close service"]


@both
@pytest.mark.thorough
def test_cancelled_everywhere(hosted: bool) -> None:
    """Wherever opening two of them is cut short: each is open or closed as often as it was opened."""

    class State:
        def __init__(self, made: AgentRuntime) -> None:
            self.runtime = made
            self.log: list[Any] = []
            pause = anyio.lowlevel.checkpoint
            self.services = [Service(self.log, name, opening=pause, closing=pause) for name in ("one", "two")]

    @asynccontextmanager
    async def build() -> AsyncGenerator[State]:
        async with opened(hosted=hosted) as made:
            yield State(made)

    async def act(state: State) -> None:
        async with anyio.create_task_group() as group:
            for service in (*state.services, *state.services):
                group.start_soon(state.runtime.resource, service, service.name)

    async def check(state: State) -> None:
        for service in state.services:
            assert await state.runtime.resource(service, service.name) == service.name.upper()
        assert state.runtime.health().failures == ()

    cancel_everywhere(act, build=build, check=check, schedules=("fifo", "walk/1"), modes=("block", "wake", "native"))
