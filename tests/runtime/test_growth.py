"""A runtime that lives for long: what it keeps does not grow with what it has done, and its end with many takes no longer.

What is kept by design is bounded: the newest tasks (`retention`), events and unseen failures. So there is a first part in
which these fill up, and then a number of further rounds that must leave nothing.
"""

from __future__ import annotations

import gc
import logging
import tracemalloc
import weakref
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeAlias

import anyio
import pytest

from agentcore import (
    AgentConfig,
    AgentContext,
    AgentCrashedError,
    AgentResult,
    AgentRuntime,
    Backoff,
    BaseAgent,
    RetryPolicy,
    RuntimeClosedError,
    RuntimeConfig,
    TaskExecutionError,
    TaskGroupError,
    TaskState,
)
from agentcore import _interop as interop
from agentcore._host import Host
from agentcore.testing import BACKENDS, current_simulation, run_sim, simulate
from agentcore.testing._simulation import Backend
from tests.runtime.lives import Worker, both_kinds, living
from tests.runtime.parts import echo, fail, hang

pytestmark = pytest.mark.thorough

WARM_UP = 550  # rounds in which everything that is kept by design fills up: 50 tasks, 100 failures, 1,024 events
ROUNDS = 300
MANY = 5_000
OBJECTS = 150  # that may be there besides: caches of the interpreter and of pytest
BYTES = 100_000

backends = pytest.mark.parametrize("backend", BACKENDS)


class Speaker(BaseAgent):
    """An agent that emits two numbers."""

    async def initialize(self) -> bool:
        return True

    async def process(self, context: AgentContext) -> AgentResult:
        for number in range(2):
            await context.emit(number)
        return AgentResult.success_result({})

    async def handle_error(self, error: Exception, context: AgentContext) -> AgentResult:
        return AgentResult.error_result(str(error))


Round: TypeAlias = Callable[[AgentRuntime], Awaitable[object]]


async def submit(runtime: AgentRuntime) -> None:
    await (await runtime.submit("echo", {"n": 1})).result()


async def submit_and_fail(runtime: AgentRuntime) -> None:
    with pytest.raises(TaskExecutionError):
        await (await runtime.submit("fail", {"n": 1})).result()


async def fail_unseen(runtime: AgentRuntime) -> None:
    await runtime.submit("fail", {"n": 1})
    await runtime.tasks.wait_idle()


async def cancel(runtime: AgentRuntime) -> None:
    handle = await runtime.submit("hang")
    handle.cancel("not needed")
    await handle.wait()


async def run_and_fail(runtime: AgentRuntime) -> None:
    with pytest.raises(TaskExecutionError):
        await runtime.run("fail", {"n": 1})


async def ask_one_of_its_own(runtime: AgentRuntime) -> None:
    assert (await runtime.ask("speaker")).success


async def group(runtime: AgentRuntime) -> None:
    with pytest.raises(TaskGroupError):
        async with runtime.group() as tasks:
            tasks.start("echo", {"n": 1})
            tasks.start("fail", {"n": 2})


async def collect(runtime: AgentRuntime) -> None:
    async with runtime.group("collect") as tasks:
        tasks.start("fail", {"n": 1})
    assert [False] == [result.success for result in tasks.results]


async def stream(runtime: AgentRuntime) -> None:
    async with runtime.stream("speaker") as items:
        assert 2 == len([item async for item in items])
    async with runtime.stream("speaker") as items:
        async for _ in items:
            break


async def as_completed(runtime: AgentRuntime) -> None:
    async with runtime.as_completed("echo", [{"n": 1}, {"n": 2}]) as ended:
        async for handle in ended:
            await handle.result()


async def tell(given: dict[str, int], context: AgentContext) -> None:
    """Tell of progress."""
    context.progress({"of": given})


TWICE = RetryPolicy(attempts=2, backoff=Backoff(0, maximum=0))


async def retry(runtime: AgentRuntime) -> None:
    """Given up after two attempts, and kept as a dead letter."""
    with pytest.raises(TaskExecutionError):
        await (await runtime.submit("fail", {"n": 1}, retry=TWICE)).result()
    assert len(runtime.tasks.dead_letters) <= 50


async def cancel_a_retry(runtime: AgentRuntime) -> None:
    handle = await runtime.submit("fail", {"n": 1}, retry=RetryPolicy(backoff=Backoff(60, maximum=60)))
    await anyio.wait_all_tasks_blocked()
    handle.cancel("not needed")
    await handle.wait()


async def submit_with_keys(runtime: AgentRuntime) -> None:
    """One that is COMPLETED and one that has FAILED, each with a key of its own."""
    number = runtime.statistics().tasks.accepted
    for word in ("echo", "fail"):
        for _ in range(2):
            await (await runtime.submit(word, {"n": 1}, key=f"{word} {number}")).wait()
    assert len(runtime.tasks._ledger.keys) <= 50


async def tell_of_progress(runtime: AgentRuntime) -> None:
    await runtime.run("tell", idle_timeout=60)


KINDS: dict[str, Round] = {
    "run": lambda runtime: runtime.run("echo", {"n": 1}),
    "run and fail": run_and_fail,
    "submit": submit,
    "submit and fail": submit_and_fail,
    "fail unseen": fail_unseen,
    "cancel": cancel,
    "ask": lambda runtime: runtime.ask("shared"),
    "ask one of its own": ask_one_of_its_own,
    "group": group,
    "collect": collect,
    "map": lambda runtime: runtime.map("echo", [{"n": 1}, {"n": 2}]),
    "as_completed": as_completed,
    "stream": stream,
    "retry": retry,
    "cancel a retry": cancel_a_retry,
    "submit with keys": submit_with_keys,
    "progress": tell_of_progress,
}


def long_lived(hosted: bool) -> AgentRuntime:
    """Return a runtime that keeps little, with what the rounds use."""
    config = RuntimeConfig(retention=50, dead_letters=50, retry_budget=None)
    runtime = AgentRuntime(config, grace=0, hosted=hosted)
    for handler in (echo, fail):
        runtime.handler(handler.__name__)(handler)
    runtime.handler("hang")(Worker())
    runtime.handler("tell")(tell)
    runtime.registry("agents").register("shared", Speaker(AgentConfig("shared", "speaker")))
    runtime.registry("agents").register("speaker", lambda: Speaker(AgentConfig("speaker", "speaker")))
    return runtime


async def grown(hosted: bool, kind: str, rounds: int) -> tuple[Counter[str], int]:
    """Return by how many objects of each type, and by how many bytes, a runtime grows in so many rounds."""
    runtime, once = long_lived(hosted), KINDS[kind]
    try:
        async with runtime:
            for _ in range(WARM_UP):
                await once(runtime)
            before = await measured()
            for _ in range(rounds):
                await once(runtime)
            after = await measured()
    except AgentCrashedError:
        assert kind == "fail unseen"
    return after[0] - before[0], after[1] - before[1]


async def measured() -> tuple[Counter[str], int]:
    """Return how many objects of each type there are, and the bytes if they are traced, at rest."""
    await anyio.wait_all_tasks_blocked()
    for _ in range(3):
        gc.collect()
    return Counter(type(found).__qualname__ for found in gc.get_objects()), tracemalloc.get_traced_memory()[0]


@pytest.fixture
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Keep what hosted runtimes log from being kept itself."""
    caplog.set_level(logging.CRITICAL, "agentcore.runtime")
    yield
    caplog.clear()


@pytest.mark.usefixtures("quiet")
@backends
@both_kinds
@pytest.mark.parametrize("kind", KINDS)
def test_what_a_runtime_keeps_does_not_grow_with_what_it_has_done(kind: str, hosted: bool, backend: Backend) -> None:
    """After hundreds of rounds of a kind there are as many objects as before."""
    objects, _ = anyio.run(grown, hosted, kind, ROUNDS, backend=backend)
    assert objects.total() < OBJECTS, objects.most_common(5)


@pytest.mark.usefixtures("quiet")
@backends
@pytest.mark.parametrize(("kind", "hosted"), [("run", False), ("submit", True)])
def test_what_a_runtime_keeps_does_not_grow_in_the_long_run(kind: str, hosted: bool, backend: Backend) -> None:
    """Nor after thousands, in bytes. benchmarks/runtime.py goes on to a million."""
    tracemalloc.start()
    try:
        objects, size = anyio.run(grown, hosted, kind, MANY, backend=backend)
    finally:
        tracemalloc.stop()
    assert size < BYTES, objects.most_common(5)


@backends
def test_a_thousand_hosted_runtimes_leave_nothing(backend: Backend) -> None:
    """Entered and left, one after the other and one in the other: no host, no task, no mark on the loop, no runtime."""

    async def scenario() -> None:
        seen: list[weakref.ref[AgentRuntime]] = []

        async def once() -> None:
            async with AgentRuntime(grace=0, hosted=True) as outer:
                inner = await AgentRuntime.open(grace=0)
                seen.extend((weakref.ref(outer), weakref.ref(inner)))
                for function in (echo, hang):
                    inner.handler(function.__name__)(function)
                assert {"n": 1} == await inner.run("echo", {"n": 1})
                handle = await inner.submit("hang")
                await inner.aclose()
                assert handle.state is TaskState.CANCELED

        for _ in range(50):
            await once()
        seen.clear()
        before, tasks = (await measured())[0], living_tasks(backend)
        for _ in range(500):
            await once()
        grown = (await measured())[0] - before
        assert 1_000 == len(seen)
        assert [] == [ref for ref in seen if ref() is not None]
        assert (None, {}) == (Host.find(), interop.loop_locals())
        assert tasks == living_tasks(backend)
        del grown["weakref"], grown["ReferenceType"]  # in `seen`
        assert grown.total() < OBJECTS, grown.most_common(5)

    anyio.run(scenario, backend=backend)


def living_tasks(backend: Backend) -> int:
    """Return how many tasks there are, those of the loop itself among them."""
    if backend == "asyncio":
        import asyncio  # noqa: PLC0415 - only where it runs

        return len(asyncio.all_tasks())
    import trio  # noqa: PLC0415 - only where it runs

    return trio.lowlevel.current_statistics().tasks_living


# The end of a runtime with many at once.

GRACE = 2.0


async def end_with_many(hosted: bool, kind: str, count: int, cleanup: float) -> None:
    """Leave a runtime with so many executions under way."""
    worker = Worker(cleanup=cleanup)
    told: list[type[BaseException]] = []

    async def ask(runtime: AgentRuntime, agent: BaseAgent) -> None:
        try:
            await runtime.ask(agent)
        except RuntimeClosedError as error:
            told.append(type(error))

    async with anyio.create_task_group() as others:
        async with living(hosted, grace=GRACE, in_flight=count) as runtime:
            runtime.handler("slow")(worker)
            if kind == "tasks":
                handles = [await runtime.submit("slow", {"n": number}) for number in range(count)]
            else:
                agent = Working(AgentConfig("working", "w", max_concurrency=count), worker)
                for _ in range(count):
                    others.start_soon(ask, runtime, agent)
            await current_simulation().settle()
            assert (worker.alive, anyio.current_time()) == (count, 0)
            left = anyio.current_time()
        assert (worker.alive, worker.cancelled, worker.cleaned) == (0, count, count)
        assert anyio.current_time() - left == GRACE + cleanup
        report = runtime.report
        assert report is not None
        assert (report.drained, report.duration) == (False, GRACE + cleanup)
        if kind == "tasks":
            assert [handle.id for handle in handles] == [result.task_id for result in report.cut_short]
            assert {TaskState.CANCELED} == {handle.state for handle in handles}
            assert {"the runtime is shutting down"} == {handle.task.cancel_reason for handle in handles}
    assert len(told) == (count if kind == "asks" else 0)


class Working(Speaker):
    """An agent that does what a worker does."""

    def __init__(self, config: AgentConfig, worker: Worker) -> None:
        super().__init__(config)
        self._worker = worker

    async def process(self, context: AgentContext) -> AgentResult:
        return AgentResult.success_result(await self._worker(context.input))


@both_kinds
@pytest.mark.parametrize("kind", ["tasks", "asks"])
@backends
def test_a_thousand_executions_are_ended_when_the_grace_is_over(backend: Backend, kind: str, hosted: bool) -> None:
    """Cut at exactly the grace, unwound as long as one of them takes, each of them told and named."""
    run_sim(end_with_many, hosted, kind, 1_000, 0.0, backend=backend).unwrap()


@both_kinds
@pytest.mark.parametrize("kind", ["tasks", "asks"])
@simulate(runs=20)
async def test_executions_are_ended_when_the_grace_is_over_in_any_order(kind: str, hosted: bool) -> None:
    """The same for a few, whoever goes next."""
    await end_with_many(hosted, kind, 5, 0.5)
