"""The host of an event loop: one for each, gone with the last that lives there, and with its loop whatever ends that."""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import logging
import threading
import weakref
from collections.abc import Awaitable, Callable
from typing import Any, Self

import anyio
import anyio.lowlevel
import pytest
from anyio._backends import _asyncio as anyio_asyncio

from agentcore import AgentConfig, AgentRuntime, RuntimeClosedError
from agentcore._host import Host
from agentcore.testing import cancel_everywhere, current_simulation, explore, run_sim
from tests.runtime.parts import Clumsy, Hold, echo, holding, start_all

KINDS: dict[str, tuple[str, dict[str, Any]]] = {"asyncio": ("asyncio", {"debug": True}), "trio": ("trio", {})}
if importlib.util.find_spec("uvloop"):
    KINDS["uvloop"] = ("asyncio", {"use_uvloop": True})


every_loop = pytest.mark.parametrize("kind", list(KINDS))
loops_of_asyncio = pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "trio"])


def run(kind: str, main: Callable[..., Awaitable[Any]], *args: Any) -> Any:
    """Run a program in a loop of its own."""
    backend, options = KINDS[kind]
    return anyio.run(main, *args, backend=backend, backend_options=options)


def new_loop(kind: str) -> asyncio.AbstractEventLoop:
    """Make a loop that the test itself runs and closes."""
    if kind == "uvloop":
        import uvloop  # noqa: PLC0415 - it may not be there

        made: asyncio.AbstractEventLoop = uvloop.new_event_loop()
        return made
    return asyncio.new_event_loop()


def names() -> list[str]:
    """Return what runs in the loop, without what trio itself needs."""
    return sorted(str(task.name) for task in anyio.get_running_tasks() if str(task.name).endswith("of agentcore"))


async def settle() -> None:
    """Let what has to be done yet be done."""
    for _ in range(5):
        await anyio.lowlevel.checkpoint()


class Guest:
    """A runtime with a task that never ends, an agent and a resource, and what became of them."""

    def __init__(self) -> None:
        self.runtime = AgentRuntime(hosted=True, grace=0)
        self.log: list[str] = []
        self.hold = holding(self.runtime)
        self.runtime.registry("agents").register("quick", Clumsy(AgentConfig("quick", "t"), self.log))

    async def settle_in(self) -> None:
        await self.runtime.__aenter__()
        await self.runtime.resource(self)
        assert await self.runtime.run("quick") == {"by": "quick"}
        await self.runtime.submit("hold", {"n": 1})
        await self.hold.entered.wait()

    async def __aenter__(self) -> None:
        self.log.append("open")

    async def __aexit__(self, *_error: object) -> None:
        self.log.append("closed")

    @property
    def has_crashed(self) -> bool:
        return self.runtime.health().state == "failed" or self.log != ["open", "quick", "closed"]

    def check_gone(self) -> None:
        """Check that everything was ended, each once and in order."""
        assert self.hold.left == [1]
        assert self.log == ["open", "quick", "closed"]
        assert self.runtime.health().state == "closed"
        assert self.runtime.health().failures == ()


# One for each loop.


@every_loop
def test_all_of_a_loop_share_one_host(kind: str) -> None:
    """One task and one group; the last one that leaves takes it along, and the next gets another one."""

    async def main() -> None:
        assert Host.find() is None
        first, second = AgentRuntime(hosted=True), AgentRuntime(hosted=True)
        await first.__aenter__()
        host = Host.find()
        await second.__aenter__()
        assert Host.current() is host
        assert names() == ["host of agentcore", *["runtime of agentcore"] * 2]
        assert repr(host) == "<Host, 2 residents>"
        await first.aclose()
        assert Host.find() is host
        await second.aclose()
        assert Host.find() is None
        await settle()
        assert names() == []
        async with AgentRuntime(hosted=True):
            assert Host.find() not in (None, host)

    run(kind, main)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_nothing_is_left_when_the_block_has_been_left(backend: str) -> None:
    """Not even for a moment: the host has ended too."""

    async def main() -> None:
        async with AgentRuntime(hosted=True):
            pass
        assert names() == []

    run_sim(main, backend=backend).unwrap()


@every_loop
def test_two_loops_one_after_the_other(kind: str) -> None:
    """Each has its own; nothing of the first is left."""

    async def main() -> list[weakref.ref[Any]]:
        async with AgentRuntime(hosted=True) as runtime:
            return [weakref.ref(runtime), weakref.ref(Host.find())]  # type: ignore[type-var]

    first = run(kind, main)
    gc.collect()
    assert [None, None] == [ref() for ref in first]
    assert len(run(kind, main)) == 2


@every_loop
def test_two_loops_in_two_threads(kind: str) -> None:
    """At the same time: neither sees the host or the runtime of the other."""
    barrier = threading.Barrier(2)
    hosts: list[Host | None] = []
    errors: list[BaseException] = []

    async def main() -> None:
        async with AgentRuntime(hosted=True) as runtime:
            runtime.handler("echo")(echo)
            hosts.append(Host.find())
            barrier.wait(5)
            assert AgentRuntime.current() is runtime
            assert await runtime.run("echo", {"n": 1}) == {"n": 1}
            barrier.wait(5)

    def thread() -> None:
        try:
            run(kind, main)
        except BaseException as error:  # noqa: BLE001 - the test tells it
            errors.append(error)

    threads = [threading.Thread(target=thread) for _ in range(2)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(10)
    assert errors == []
    assert len(set(hosts) - {None}) == 2


@loops_of_asyncio
@pytest.mark.parametrize("busy", [False, True])
def test_a_loop_that_is_closed_without_cancelling(
    kind: str, busy: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of agentcore keeps the loop, its host or its runtime. What is pending is told of by asyncio alone."""
    monkeypatch.setattr("sys.unraisablehook", lambda _: None)  # AnyIO's own coroutines cannot be closed without a loop
    loop = new_loop(kind)

    async def main() -> list[weakref.ref[Any]]:
        runtime = await AgentRuntime.open()
        hold = holding(runtime)
        if busy:
            await runtime.submit("hold", {"n": 1})
            await hold.entered.wait()
        return [weakref.ref(one) for one in (asyncio.get_running_loop(), runtime, Host.find(), hold)]

    refs = loop.run_until_complete(main())
    loop.close()
    del loop
    # AnyIO remembers for each task the scope that it is in, and that knows the task: for ever, if the task never ends.
    anyio_asyncio._task_states.clear()
    gc.collect()
    assert [None] * 4 == [ref() for ref in refs]
    assert {record.name for record in caplog.records} == {"asyncio"}
    assert all("destroyed but it is pending" in record.message for record in caplog.records)
    # The next loop knows nothing of it.
    test_two_loops_one_after_the_other(kind)


@loops_of_asyncio
def test_the_host_is_quiet_when_its_loop_was_closed(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of its own coroutine nothing is raised into nowhere."""
    noise: list[str] = []
    monkeypatch.setattr("sys.unraisablehook", lambda told: noise.append(repr(told.object)))
    loop = new_loop(kind)
    loop.run_until_complete(AgentRuntime.open())
    loop.close()
    del loop
    anyio_asyncio._task_states.clear()
    gc.collect()
    assert [] == [text for text in noise if "Host" in text]


# The end of a loop.


@every_loop
@pytest.mark.parametrize(
    "error", [SystemExit(3), KeyboardInterrupt(), ValueError("own")], ids=lambda error: type(error).__name__
)
@pytest.mark.parametrize("way", ["block", "forgotten"])
def test_whatever_leaves_main(kind: str, error: BaseException, way: str, caplog: pytest.LogCaptureFixture) -> None:
    """It comes out of the loop as it is; everything hosted has been ended, in order."""
    guests: list[Guest] = []

    async def main() -> None:
        guest = Guest()
        guests.append(guest)
        await guest.settle_in()
        try:
            raise error
        except BaseException as raised:
            if way == "block":
                await guest.runtime.__aexit__(type(raised), raised, raised.__traceback__)
            raise

    with pytest.raises(type(error)) as caught:
        run(kind, main)
    assert caught.value is error
    guests[0].check_gone()
    levels = [record.levelname for record in caplog.records if record.name.startswith("agentcore")]
    assert levels == (["WARNING"] if way == "forgotten" else [])


@every_loop
def test_main_that_forgets_to_leave(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """Tasks are cancelled, agents terminated, resources closed; one warning tells what was cut short."""
    guests: list[Guest] = []

    async def main() -> str:
        guest = Guest()
        guests.append(guest)
        await guest.settle_in()
        return "value"

    assert run(kind, main) == "value"
    guests[0].check_gone()
    (record,) = [record for record in caplog.records if record.name.startswith("agentcore")]
    assert (record.levelname, record.name) == ("WARNING", "agentcore.runtime")
    assert "not left before its event loop ended" in record.message
    # asyncio may cancel the tasks itself before the runtime does: then it has cut none short.
    assert "cut short: hold " in record.message or (
        kind != "trio" and "what it still did was cancelled" in record.message
    )


@every_loop
def test_main_that_forgets_to_leave_a_runtime_without_resources(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """The same on every loop, for tasks and agents."""
    log: list[str] = []
    holds: list[Hold] = []

    async def main() -> AgentRuntime:
        runtime = await AgentRuntime.open(grace=0)
        holds.append(holding(runtime))
        runtime.registry("agents").register("quick", Clumsy(AgentConfig("quick", "t"), log))
        await runtime.run("quick")
        await runtime.submit("hold", {"n": 1})
        await holds[0].entered.wait()
        return runtime

    runtime = run(kind, main)
    assert (holds[0].left, log, runtime.health().state) == ([1], ["quick"], "closed")
    assert ["WARNING"] == [record.levelname for record in caplog.records if record.name.startswith("agentcore")]
    assert runtime.report is not None
    # asyncio may cancel the task itself before the runtime does.
    assert ["hold"] == [result.type for result in runtime.report.cut_short] or kind != "trio"


@loops_of_asyncio
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")  # what AnyIO had not begun
@pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")
def test_an_entry_that_the_end_of_the_loop_interrupts(kind: str) -> None:
    """All tasks are cancelled natively at that moment, also those that have not made their first step: none hangs."""

    async def main(steps: int) -> None:
        entering = asyncio.create_task(AgentRuntime.open())
        for _ in range(steps):
            await asyncio.sleep(0)
        kept.append(entering)

    left: list[int] = []
    for steps in range(8):
        kept: list[asyncio.Task[Any]] = []
        loop = new_loop(kind)
        loop.run_until_complete(main(steps))
        # As `asyncio.run` does it, but for the patience: that waits for ever.
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        if tasks:
            loop.run_until_complete(asyncio.wait(tasks, timeout=0.2))
        if any(not task.done() for task in tasks):
            left.append(steps)
            for task in tasks:
                task.cancel()
            loop.run_until_complete(asyncio.wait(tasks, timeout=0.2))
        loop.close()
        del tasks
        kept.clear()
        gc.collect()  # what was never begun is warned of here, and in no other test
    assert left == []


# Moving in and out.


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_who_moves_in_while_the_host_ends(backend: str) -> None:
    """Whatever the order: each one has a host for as long as it lives there, and none is left."""

    async def come_and_go(count: int) -> None:
        for _ in range(count):
            runtime = AgentRuntime(hosted=True, grace=0)
            async with runtime:
                runtime.handler("echo")(echo)
                assert Host.find() is not None
                assert await runtime.run("echo", {"n": 1}) == {"n": 1}
                handle = await runtime.submit("echo", {"n": 2})
                assert await handle.result() == {"n": 2}

    async def main() -> None:
        async with anyio.create_task_group() as group:
            for count in (1, 2, 1):
                group.start_soon(come_and_go, count)
        assert Host.find() is None
        await current_simulation().settle()
        assert names() == []

    explore(main, backend=backend, runs=25).unwrap()


async def enter_and_leave(state: Cut) -> None:
    """What is cancelled: a runtime is entered, works, and is left in another task."""
    runtime = state.runtime = AgentRuntime(hosted=True, grace=0)
    runtime.handler("echo")(echo)
    async with runtime:
        await runtime.run("echo", {"n": 1})
        await runtime.submit("echo", {"n": 2})


class Cut:
    """A runtime that is cancelled anywhere, beside another one of the same host."""

    def __init__(self) -> None:
        self.runtime: AgentRuntime | None = None
        self.other = AgentRuntime(hosted=True, grace=0)

    async def __aenter__(self) -> Self:
        await self.other.__aenter__()
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.other.aclose()
        assert Host.find() is None
        await current_simulation().settle()

    async def check(self) -> None:
        """Check that nothing of it is left, and that the other one works."""
        await current_simulation().settle()
        host = Host.find()
        assert host is not None
        assert host.residents == [self.other]
        assert names() == ["host of agentcore", "runtime of agentcore"]
        if self.runtime is not None:
            assert self.runtime.health().state in {"new", "closed"}
            assert self.runtime.tasks.is_idle
        self.other.handler("echo")(echo)
        assert await self.other.run("echo", {"n": 3}) == {"n": 3}


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_cancelled_wherever_it_waits(backend: str) -> None:
    """Entering and leaving, by scopes, deadlines and asyncio's own way: nothing stays behind in the host."""
    report = cancel_everywhere(
        enter_and_leave,
        build=Cut,
        check=lambda state: state.check(),
        modes=("block", "wake", "deadline", "native"),
        backends=(backend,),
        within=0.0,
    )
    assert report.points


@pytest.mark.anyio
async def test_who_leaves_may_be_cancelled(caplog: pytest.LogCaptureFixture) -> None:
    """The draining ends, everything else is done all the same; leaving again does nothing."""
    guest = Guest()
    runtime = guest.runtime = AgentRuntime(hosted=True, grace=60)
    guest.hold = holding(runtime)
    runtime.registry("agents").register("quick", Clumsy(AgentConfig("quick", "t"), guest.log))
    await guest.settle_in()
    with anyio.fail_after(5), anyio.CancelScope() as scope:
        async with anyio.create_task_group() as group:
            await start_all(group, runtime.aclose)
            assert runtime.health().state == "draining"
            scope.cancel()
    guest.check_gone()
    await settle()
    assert Host.find() is None
    await runtime.aclose()
    assert caplog.records == []


@loops_of_asyncio
def test_the_native_cancellation_of_who_leaves(kind: str) -> None:
    """As often as it comes: everything has been ended when the task has."""

    async def main() -> None:
        guest = Guest()
        runtime = guest.runtime = AgentRuntime(hosted=True, grace=60)
        guest.hold = holding(runtime)
        runtime.registry("agents").register("quick", Clumsy(AgentConfig("quick", "t"), guest.log))
        await guest.settle_in()
        leaving = asyncio.create_task(runtime.aclose())
        await settle()
        assert not leaving.done()
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        guest.check_gone()
        await settle()
        assert (Host.find(), names()) == (None, [])

    run(kind, main)


# Residents that go wrong.


@pytest.mark.anyio
@pytest.mark.parametrize("error", [ValueError("own"), SystemExit(3), ExceptionGroup("own", [OSError()])])
async def test_what_a_resident_raises_is_logged(error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    """Once; the others live on, and the host ends with the last of them."""
    gone = anyio.Event()

    async def resident() -> None:
        gone.set()
        raise error

    async with AgentRuntime(hosted=True) as runtime:
        runtime.handler("echo")(echo)
        await Host.current().move_in(resident, "guest")
        await gone.wait()
        await settle()
        (record,) = caplog.records
        assert (record.name, record.levelname) == ("agentcore.host", "CRITICAL")
        assert record.exc_info is not None
        assert record.exc_info[1] is error
        assert await runtime.run("echo", {"n": 1}) == {"n": 1}
    assert Host.find() is None


@every_loop
def test_entering_while_the_loop_ends_is_refused_or_ended(kind: str) -> None:
    """What lives in the host may try so in its clean-up: it does not hang, and nothing works any more."""
    told: list[str] = []

    async def resident() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                try:
                    late = await AgentRuntime.open()
                    late.handler("echo")(echo)
                    await settle()
                    await late.run("echo")
                except RuntimeClosedError as error:
                    told.append(str(error.details["state"]))

    async def main() -> None:
        await Host.current().move_in(resident, "guest")
        await settle()

    run(kind, main)
    assert len(told) == 1


def test_without_a_loop_there_is_no_host() -> None:
    """Asking for it tells so."""
    with pytest.raises(RuntimeError):
        Host.find()


def test_the_logger_is_named_after_the_package() -> None:
    """So that a program which sets the level of agentcore sets that of the host."""
    assert logging.getLogger("agentcore.host").parent is logging.getLogger("agentcore")
