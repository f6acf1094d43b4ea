"""`agentcore.run`: what comes out of it, and what signals do."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

import agentcore
from agentcore import (
    AgentCrashedError,
    AgentRuntime,
    ConfigurationError,
    RuntimeConfig,
    TaskExecutionError,
)
from tests.runtime.parts import fail

ROOT = Path(__file__).parent.parent.parent
INT, TERM = signal.SIGINT, signal.SIGTERM

both = pytest.mark.parametrize("backend", ["asyncio", "trio"])


@both
def test_the_value_of_main_is_returned(backend: str) -> None:
    """Arguments go in, the value comes out, and the runtime is over then."""
    runtimes: list[AgentRuntime] = []

    async def main(runtime: AgentRuntime, left: int, right: int) -> int:
        runtimes.append(runtime)
        assert AgentRuntime.current() is runtime
        return left + right

    config = RuntimeConfig(in_flight=3)
    assert agentcore.run(main, 1, 2, backend=backend, config=config) == 3
    assert (runtimes[0].statistics().state, runtimes[0].config) == ("closed", config)


@both
@pytest.mark.parametrize(
    "error",
    [ValueError("own"), ExceptionGroup("own", [OSError()]), SystemExit(3), KeyboardInterrupt(), LookupError("x")],
)
def test_exceptions_of_main_come_out_untouched(backend: str, error: BaseException) -> None:
    """The very object, in no group."""

    async def main(runtime: AgentRuntime) -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        agentcore.run(main, backend=backend)
    assert caught.value is error


@both
def test_failures_in_the_background_come_out(backend: str) -> None:
    """What reached nobody is raised, though main has returned."""

    async def main(runtime: AgentRuntime) -> str:
        runtime.handler("fail")(fail)
        await runtime.submit("fail", {"n": 1})
        return "value"

    with pytest.raises(AgentCrashedError) as caught:
        agentcore.run(main, backend=backend)
    assert [TaskExecutionError] == [type(leaf) for leaf in caught.value.exceptions]


@both
def test_background_options_reach_the_backend(backend: str) -> None:
    """They are those of `anyio.run`."""

    async def main(runtime: AgentRuntime) -> bool:
        if backend == "asyncio":
            import asyncio  # noqa: PLC0415

            return asyncio.get_running_loop().get_debug()
        return True

    assert agentcore.run(main, backend=backend, backend_options={"debug": True} if backend == "asyncio" else {})


def test_an_unknown_backend_is_refused() -> None:
    """The error names it and those that there are; main has not been called."""
    called: list[bool] = []

    async def main(runtime: AgentRuntime) -> None:
        called.append(True)

    with pytest.raises(ConfigurationError, match="backend must be 'asyncio' or 'trio': got 'twisted'"):
        agentcore.run(main, backend="twisted")
    assert called == []


def test_inside_of_a_loop_it_is_refused() -> None:
    """There is one loop already: the error is the backend's own."""

    async def inner(runtime: AgentRuntime) -> None:
        pass

    async def outer() -> None:
        with pytest.raises(RuntimeError, match="Already running"):
            agentcore.run(inner)

    anyio.run(outer)


@both
def test_outside_of_the_main_thread_signals_are_left_alone(backend: str) -> None:
    """It works there too."""
    before = signal.getsignal(INT), signal.getsignal(TERM)
    seen: list[Any] = []

    async def main(runtime: AgentRuntime) -> None:
        seen.append((signal.getsignal(INT), signal.getsignal(TERM)))

    thread = threading.Thread(target=agentcore.run, args=(main,), kwargs={"backend": backend})
    thread.start()
    thread.join(5)
    assert seen == [before]


@both
def test_handlers_are_restored(backend: str) -> None:
    """Whatever was there before, also after an exception."""
    handler = lambda number, frame: None  # noqa: E731
    before = signal.signal(TERM, handler)
    try:

        async def main(runtime: AgentRuntime) -> None:
            assert signal.getsignal(TERM) is not handler
            raise ValueError("own")

        with pytest.raises(ValueError, match="own"):
            agentcore.run(main, backend=backend)
        assert signal.getsignal(TERM) is handler
        assert signal.getsignal(INT) is signal.default_int_handler
    finally:
        signal.signal(TERM, before)


# Signals, in processes of their own.


@contextmanager
def program(what: str, backend: str, grace: float) -> Generator[subprocess.Popen[str]]:
    """Start a program and wait until it is ready."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.runtime.programs", what, backend, str(grace)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def interrupt(process: subprocess.Popen[str], number: signal.Signals) -> None:
    """Send a signal and wait until it has been handled: two at once would be one."""
    process.send_signal(number)
    assert process.stderr is not None
    assert process.stderr.readline() == "heard\n"


def finish(process: subprocess.Popen[str], given: str = "") -> tuple[int, str]:
    """Wait for the end of a process, which may read what is given; return its exit code and what it said."""
    output, errors = process.communicate(given, timeout=30)
    assert errors == ""
    return process.returncode, output


@both
@pytest.mark.parametrize("number", [INT, TERM])
def test_the_first_signal_lets_tasks_end(number: signal.Signals, backend: str) -> None:
    """A task that ends within the grace has its value returned as if nothing had happened, and main can make use of it."""
    with program("end in time", backend, 10) as process:
        interrupt(process, number)
        assert finish(process, "go on\n") == (0, "unwound\n{'done': True}\nrestored True\n")


@both
@pytest.mark.parametrize(
    ("number", "expected"), [(INT, "KeyboardInterrupt  ["), (TERM, "SystemExit 143 [")], ids=["SIGINT", "SIGTERM"]
)
@pytest.mark.parametrize("what", ["run", "submit"])
def test_after_the_grace_tasks_are_cut_and_named(
    number: signal.Signals, expected: str, backend: str, what: str
) -> None:
    """The exception is that of the signal; its note names the task, its cause is what main raised."""
    with program(what, backend, 0.01) as process:
        interrupt(process, number)
        code, output = finish(process)
    assert (code, output.splitlines()[0]) == (0, "unwound")
    assert expected in output
    assert f"interrupted by {number.name} after 0." in output
    assert "cut short: work " in output
    assert "cause TaskCanceledError" in output
    assert "restored True" in output


@both
def test_a_program_without_tasks_is_ended_too(backend: str) -> None:
    """Main itself is cancelled a moment after the runtime has been shut down, and that is told."""
    with program("idle", backend, 0.01) as process:
        interrupt(process, INT)
        code, output = finish(process)
    assert code == 0
    assert output.startswith("KeyboardInterrupt")
    assert "the program itself was cut short" in output


@both
def test_the_second_signal_does_not_wait_for_the_grace(backend: str) -> None:
    """Everything is cancelled at once and unwound."""
    with program("run", backend, 60) as process:
        interrupt(process, INT)
        interrupt(process, INT)
        code, output = finish(process)
    assert code == 0
    assert output.startswith("unwound\nKeyboardInterrupt")
    assert "restored True" in output


@both
@pytest.mark.parametrize("number", [INT, TERM])
@pytest.mark.parametrize("what", ["block the loop", "never unwind"])
def test_the_third_signal_ends_the_process(number: signal.Signals, backend: str, what: str) -> None:
    """Though the loop is blocked in plain code, or a clean-up hangs: no further line of the program runs."""
    with program(what, backend, 60) as process:
        interrupt(process, number)
        interrupt(process, number)
        process.send_signal(number)
        code, output = finish(process)
    assert code == 128 + number
    assert "restored" not in output
