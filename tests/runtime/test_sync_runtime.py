"""A runtime for programs that are not asynchronous: threads call it, and no thread of it is left."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from agentcore import (
    AgentConfig,
    AgentCrashedError,
    AgentRuntime,
    CallTimeoutError,
    ConfigurationError,
    RuntimeClosedError,
    RuntimeConfig,
    SyncRuntime,
    TaskCanceledError,
    TaskExecutionError,
    TaskGroupError,
    TaskState,
    sync_runtime,
)
from tests.runtime.parts import Clumsy, Hold, echo, fail, hang
from tests.runtime.test_health import leaves, raising

pytestmark = pytest.mark.parametrize("backend", ["asyncio", "trio"])
SOON = 0.02


@contextmanager
def opened(backend: str, **options: Any) -> Iterator[SyncRuntime]:
    """Open one with the handlers ``echo``, ``fail``, ``hang`` and ``exit``."""
    with sync_runtime(backend=backend, grace=options.pop("grace", 0), **options) as runtime:
        for function in (echo, fail, hang):
            runtime.handler(function.__name__)(function)

        @runtime.handler("exit")
        async def leave(given: dict[str, Any]) -> None:
            raise SystemExit("the agent gave up")

        yield runtime


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    """Neither the loop's own nor a worker's, whatever the test does."""
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        if not thread.name.startswith("Trio thread"):  # idle ones, which trio keeps for whoever needs one next
            thread.join(5)  # those of AnyIO are told to end when their loop has ended, and are not waited for
            assert not thread.is_alive(), f"{thread} is left"


def in_threads(function: Callable[[int], Any], count: int = 4) -> list[Any]:
    """Call a function in several threads at once and return what it returns, in order."""
    barrier = threading.Barrier(count)

    def call(number: int) -> Any:
        barrier.wait(5)
        return function(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(call, range(count), timeout=10))


# Calls.


def test_four_threads_share_it(backend: str) -> None:
    """Every method, in all of them at once."""
    with opened(backend) as runtime:
        runtime.registry("agents").register("quick", Clumsy(AgentConfig("quick", "t", max_concurrency=2)))

        def work(number: int) -> list[Any]:
            given = {"n": number}
            handle = runtime.submit("echo", given)
            return [
                runtime.run("echo", given),
                handle.result(timeout=5),
                handle.wait().success,
                runtime.ask("quick").output,
                runtime.map("echo", [given, {"n": -1}]),
                runtime.call(runtime.runtime.run, "echo", given),
                runtime.health().healthy,
            ]

        expected = [
            [{"n": n}, {"n": n}, True, {"by": "quick"}, [{"n": n}, {"n": -1}], {"n": n}, True] for n in range(4)
        ]
        assert in_threads(work) == expected
        assert runtime.statistics().tasks.completed == 4 * 5
    assert runtime.health().state == "closed"


def test_timeouts_in_four_threads(backend: str) -> None:
    """Each ends its own call alone, which has been unwound when the error is there."""
    log: list[int] = []

    async def stay(number: int) -> str:
        try:
            if number % 2:
                await anyio.sleep_forever()
            return "value"
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.lowlevel.checkpoint()
            log.append(number)

    with opened(backend) as runtime:

        def work(number: int) -> str:
            try:
                return runtime.call(stay, number, timeout=SOON if number % 2 else 5)
            except CallTimeoutError:
                return f"unwound {number in log}"

        assert in_threads(work) == ["value", "unwound True", "value", "unwound True"]


@pytest.mark.parametrize("method", ["run", "map", "call"])
def test_a_timeout_cancels_the_tasks_of_a_call(backend: str, method: str) -> None:
    """Nothing of them runs on."""
    with opened(backend) as runtime:
        with pytest.raises(CallTimeoutError):
            if method == "run":
                runtime.run("hang", timeout=SOON)
            elif method == "map":
                runtime.map("hang", [{}, {}], timeout=SOON)
            else:
                runtime.call(runtime.runtime.run, "hang", timeout=SOON)
        statistics = runtime.statistics().tasks
        assert (statistics.in_flight, statistics.queued) == (0, 0)
        assert statistics.canceled == (2 if method == "map" else 1)


def test_the_timeout_of_an_ask_is_that_of_the_execution(backend: str) -> None:
    """As in the loop: the agent handles it."""

    class Stuck(Clumsy):
        async def process(self, context: Any) -> Any:
            await anyio.sleep_forever()

    with opened(backend) as runtime:
        result = runtime.ask(Stuck(AgentConfig("stuck", "t")), timeout=SOON)
        assert result.success is False
        assert "stuck" in str(result.error)


def test_errors_come_out_as_in_the_loop(backend: str) -> None:
    """Of a task, of several, of the call's own."""
    with opened(backend) as runtime:
        with pytest.raises(TaskExecutionError) as caught:
            runtime.run("fail", {"n": 3})
        assert str(caught.value.__cause__) == "number 3"
        with pytest.raises(TaskGroupError):
            runtime.map("fail", [{"n": 1}, {"n": 2}])
        error = LookupError("own")

        async def own() -> None:
            raise error

        with pytest.raises(LookupError) as raised:
            runtime.call(own)
        assert raised.value is error


def test_the_methods_of_a_handle(backend: str) -> None:
    """Waiting has a timeout that harms nothing; the task goes on until it is cancelled."""
    with opened(backend) as runtime:
        handle = runtime.submit("hang", id="mine")
        assert (handle.id, handle.task.id, handle.is_done) == ("mine", "mine", False)
        assert repr(handle).startswith("<SyncTaskHandle mine of type 'hang', ")
        for method in (handle.wait, handle.result):
            with pytest.raises(CallTimeoutError):
                method(timeout=SOON)
        assert handle.state is TaskState.RUNNING
        assert handle.cancel("enough") is True
        assert handle.wait().state is TaskState.CANCELED
        with pytest.raises(TaskCanceledError, match="enough"):
            handle.result()
        assert (handle.cancel(), handle.is_done, handle.state) == (False, True, TaskState.CANCELED)
        failed = runtime.submit("fail", {"n": 1})
        assert failed.wait().success is False


def test_resources(backend: str) -> None:
    """They are opened in the loop and closed at the end."""
    log: list[str] = []

    @asynccontextmanager
    async def line() -> Any:
        log.append("open")
        yield "line"
        log.append("closed")

    with opened(backend) as runtime:
        assert runtime.resource(line(), "line") == "line"

        @runtime.handler("use")
        async def use(given: dict[str, Any], context: Any) -> str:
            return str(context.resource("line"))

        assert runtime.run("use") == {"result": "line"}
        assert log == ["open"]
    assert log == ["open", "closed"]


def test_the_configuration_is_that_of_the_runtime(backend: str) -> None:
    """As given."""
    config = RuntimeConfig(in_flight=3)
    with sync_runtime(config, backend=backend) as runtime:
        assert runtime.runtime.config == config
        assert repr(runtime) == "<SyncAgentRuntime open, 0 tasks>"
    with pytest.raises(ConfigurationError), sync_runtime(grace=-1, backend=backend):
        pytest.fail("it was opened")


def test_handlers_that_are_plain_functions(backend: str) -> None:
    """They run in threads of their own, and may use the same runtime."""
    with opened(backend) as runtime:

        @runtime.handler("outer")
        def outer(given: dict[str, Any]) -> Any:
            return runtime.run("echo", given)

        assert in_threads(lambda number: runtime.run("outer", {"n": number})) == [{"n": n} for n in range(4)]


# The end.


def test_leaving_lets_tasks_end(backend: str) -> None:
    """For the grace; what was submitted and is not looked at is done then."""
    holds: list[Hold] = []
    with opened(backend, grace=10) as runtime:

        async def register() -> None:
            holds.append(Hold())
            runtime.handler("hold")(holds[0])

        async def release() -> None:
            holds[0].opened.set()

        runtime.call(register)
        handle = runtime.submit("hold", {"n": 1})
        timer = threading.Timer(SOON, lambda: runtime.call(release))
        timer.start()
    timer.join()
    assert (handle.state, holds[0].left) == (TaskState.COMPLETED, [1])
    assert runtime.runtime.report is not None
    assert runtime.runtime.report.drained


@pytest.mark.parametrize(
    "error", [ValueError("own"), SystemExit(3), KeyboardInterrupt()], ids=lambda e: type(e).__name__
)
def test_leaving_by_an_exception_cancels(backend: str, error: BaseException) -> None:
    """At once, whatever the grace; and it comes out as it is."""
    with pytest.raises(type(error)) as caught, opened(backend, grace=60) as runtime:
        handle = runtime.submit("hang")
        raise error
    assert caught.value is error
    assert handle.state is TaskState.CANCELED
    assert runtime.health().state == "closed"


def test_calls_of_other_threads_end_with_it(backend: str) -> None:
    """They are cancelled, unwound and told."""
    entered = threading.Event()
    log: list[str] = []

    async def stay() -> None:
        entered.set()
        try:
            await anyio.sleep_forever()
        finally:
            log.append("unwound")

    def work() -> None:
        try:
            runtime.call(stay)
        except RuntimeClosedError:
            log.append("told")

    with opened(backend) as runtime:
        thread = threading.Thread(target=work)
        thread.start()
        assert entered.wait(5)
    thread.join(5)
    assert log == ["unwound", "told"]


def test_after_the_end_everything_is_refused(backend: str) -> None:
    """Also what a handle would do; nothing hangs."""
    with opened(backend) as runtime:
        handle = runtime.submit("echo", {"n": 1})
        handle.wait()
    for call in (
        lambda: runtime.run("echo"),
        lambda: runtime.submit("echo"),
        lambda: runtime.ask("echo"),
        lambda: runtime.map("echo", []),
        lambda: runtime.call(anyio.lowlevel.checkpoint),
        handle.wait,
        handle.result,
        handle.cancel,
    ):
        with pytest.raises(RuntimeClosedError):
            call()
    assert (handle.state, handle.is_done) == (TaskState.COMPLETED, True)
    assert runtime.health().state == "closed"


def test_failures_in_the_background_come_out(backend: str) -> None:
    """What nobody has looked at is raised at the end, alone or with what the block raises."""
    with raising(AgentCrashedError) as caught, opened(backend) as runtime:
        runtime.submit("fail", {"n": 1})
        runtime.runtime.from_thread(runtime.runtime.drain)
    assert [TaskExecutionError] == [type(leaf) for leaf in leaves(caught.value)]
    own = LookupError("own")
    with raising(AgentCrashedError) as caught, opened(backend) as runtime:
        runtime.submit("fail", {"n": 1})
        runtime.runtime.from_thread(runtime.runtime.drain)
        raise own
    assert leaves(caught.value)[0] is own


# SystemExit in the group that leaving raises ends AnyIO's portal too, which then may have a call that never begins.
@pytest.mark.filterwarnings("ignore:coroutine 'BlockingPortal._call_func' was never awaited:RuntimeWarning")
def test_a_crash_in_the_background(backend: str, caplog: pytest.LogCaptureFixture) -> None:
    """The block goes on; its calls are refused with the state, the end raises what happened, the log has it once."""
    with raising() as caught, opened(backend) as runtime:
        waiting = runtime.submit("hang")
        runtime.submit("exit")
        with pytest.raises((TaskCanceledError, RuntimeClosedError)):
            waiting.result()
        while runtime.runtime.report is None:
            threading.Event().wait(0.001)
        assert (runtime.health().state, runtime.health().healthy) == ("failed", False)
        assert [str(leaf.__cause__) for leaf in runtime.health().failures] == ["the agent gave up"]
        for call in (runtime.run, runtime.submit):
            with pytest.raises(RuntimeClosedError):
                call("echo")
    assert [str(leaf.__cause__) for leaf in leaves(caught.value)] == ["the agent gave up"]
    assert ["CRITICAL"] == [record.levelname for record in caplog.records if record.name == "agentcore.runtime"]
    gc.collect()


def test_one_after_the_other_and_one_in_the_other(backend: str) -> None:
    """Each has a loop and a thread of its own, on whatever backend."""
    for _ in range(2):
        with opened(backend) as runtime:
            assert runtime.run("echo", {"n": 1}) == {"n": 1}
    with opened(backend) as outer, opened("trio") as inner:
        assert outer.run("echo", {"n": 1}) == inner.run("echo", {"n": 1})
        assert outer.runtime is not inner.runtime


def test_the_runtime_is_hosted(backend: str) -> None:
    """And current in what is called."""

    async def look() -> AgentRuntime:
        return AgentRuntime.current()

    with opened(backend) as runtime:
        assert runtime.call(look) is runtime.runtime


def test_an_unknown_backend_is_refused(backend: str) -> None:
    """The error names those that there are."""
    with (
        pytest.raises(ConfigurationError, match="backend must be 'asyncio' or 'trio': got 'twisted'"),
        sync_runtime(backend="twisted"),
    ):
        pytest.fail("it was opened")


def test_options_reach_the_backend(backend: str) -> None:
    """They are those of `anyio.run`."""

    async def look() -> bool:
        if backend == "asyncio":
            import asyncio  # noqa: PLC0415 - not on trio

            return asyncio.get_running_loop().get_debug()
        return True

    options = {"debug": True} if backend == "asyncio" else {}
    with sync_runtime(backend=backend, backend_options=options) as runtime:
        assert runtime.call(look) is True
