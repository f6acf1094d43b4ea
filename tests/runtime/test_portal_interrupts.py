"""What ends a call from a thread before it ends by itself: Ctrl-C there, or whoever has started the thread."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Generator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.lowlevel
import pytest

from agentcore import _portal as portal_module
from tests.runtime.test_portal import SOON, Caller, Stay, opened

pytestmark = pytest.mark.anyio

ROOT: Final = Path(__file__).parent.parent.parent

# What ends such a handler has to end its call, or its thread never returns. In a process of its own, which may hang.
CALL_BACK = """
import faulthandler, sys, anyio
from agentcore import AgentRuntime
faulthandler.dump_traceback_later(2, exit=True, file=open("/dev/null", "w"))

async def main(what):
    runtime = AgentRuntime(hosted=True, grace=0)
    entered = anyio.Event()

    async def stay():
        entered.set()
        await anyio.sleep_forever()

    @runtime.handler("outer")
    def outer(given):
        runtime.from_thread(stay)

    async with runtime:
        if what == "timeout":
            try:
                await runtime.run("outer", timeout=0.02)
            except Exception as error:
                print(type(error).__name__)
        else:
            handle = await runtime.submit("outer")
            await entered.wait()
            if what == "cancel":
                handle.cancel()
                await handle.wait()
    print("left")

anyio.run(main, sys.argv[1], backend=sys.argv[2])
"""


@pytest.mark.parametrize("what", ["leave", "timeout", "cancel"])
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_handler_in_a_thread_is_cut_in_its_call(backend: str, what: str) -> None:
    """By the end of the runtime, by its timeout, by its handle: nothing hangs."""
    done = subprocess.run(
        [sys.executable, "-c", CALL_BACK, what, backend],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=20,
        check=False,
    )
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["left"])


# Ctrl-C in the calling thread.


@contextmanager
def interrupting(monkeypatch: pytest.MonkeyPatch, error: BaseException, when: threading.Event) -> Generator[None]:
    """Have waiting for a call raise, as a signal in the main thread does, as soon as the event is set."""

    class Interrupted(Future[Any]):
        def result(self, timeout: float | None = None) -> Any:
            assert when.wait(5)
            if not self.done():
                raise error
            return super().result(timeout)

    with monkeypatch.context() as patch:
        patch.setattr(portal_module, "Future", Interrupted)
        yield


async def test_ctrl_c_cancels_the_call_and_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The coroutine has been unwound before the exception goes on; the runtime works."""
    error, entered = KeyboardInterrupt(), threading.Event()
    log: list[str] = []

    async def stay() -> None:
        log.append("in")
        entered.set()
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.lowlevel.checkpoint()
            log.append("unwound")

    def thread() -> None:
        try:
            runtime.from_thread(stay)
        finally:
            log.append("raised")

    async with opened() as runtime:
        with interrupting(monkeypatch, error, entered):
            caller = await Caller(thread).end()
        assert caller.error is error
        assert log == ["in", "unwound", "raised"]
        assert await runtime.run("echo", {"n": 1}) == {"n": 1}


async def test_ctrl_c_before_the_call_has_come_to_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a line of it runs."""
    error, now = KeyboardInterrupt(), threading.Event()
    now.set()
    ran: list[bool] = []

    async def note() -> None:
        ran.append(True)

    async with opened() as runtime:
        # The first call of all waits for the loop by itself.
        await Caller(lambda: runtime.from_thread(anyio.lowlevel.checkpoint)).end()
        with interrupting(monkeypatch, error, now):
            caller = Caller(lambda: runtime.from_thread(note))
            threading.Event().wait(SOON)  # in the loop: so nothing of the call can have begun
            await caller.end()
        assert caller.error is error
    assert ran == []


async def test_ctrl_c_while_the_loop_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal may come at any line, also between the call's being sent and the wait for it."""
    error = KeyboardInterrupt()
    stay = Stay()

    def wait(self: Any, post: Any, visit: Any) -> Any:
        raise error

    async with opened() as runtime:
        with monkeypatch.context() as patch:
            patch.setattr(portal_module.Portal, "_wait", wait)
            caller = await Caller(lambda: runtime.from_thread(stay)).end()
        assert caller.error is error
        await anyio.wait_all_tasks_blocked()
        left = list(stay.log)
    assert left in ([], ["in", "unwound"])


def test_ctrl_c_in_a_real_program() -> None:
    """A signal in the main thread, while it waits for a call."""
    program = """
import os, signal, anyio
import agentcore
log = []
async def stay():
    log.append("in")
    os.kill(os.getpid(), signal.SIGINT)
    try:
        await anyio.sleep_forever()
    finally:
        log.append("unwound")
for backend in ("asyncio", "trio"):
    try:
        with agentcore.sync_runtime(backend=backend, grace=0) as runtime:
            try:
                runtime.call(stay)
            except KeyboardInterrupt:
                log.append("raised")
                raise
    except KeyboardInterrupt:
        print(backend, *log)
    log.clear()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=30, check=False
    )
    assert (done.stderr, done.returncode) == ("", 0)
    assert done.stdout == "asyncio in unwound raised\ntrio in unwound raised\n"


# Ctrl-C that reaches a task of the runtime: trio raises it wherever Python code runs at the moment.

CTRL_C = """
import os, signal, sys, anyio, faulthandler
from agentcore import AgentRuntime
faulthandler.dump_traceback_later(5, exit=True, file=open("/dev/null", "w"))
backend, where = sys.argv[1:]

async def main():
    async with AgentRuntime(hosted=True, grace=0) as runtime:
        async def interrupt(given=None):
            os.kill(os.getpid(), signal.SIGINT)
            for _ in range(1000):
                pass
            await anyio.sleep_forever()

        @runtime.handler("group")
        async def group(given):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(interrupt)

        runtime.handler("alone")(interrupt)
        await runtime.submit(where)
        try:
            with anyio.move_on_after(2):
                await anyio.sleep_forever()
            print("the block went on")
        except BaseException as error:
            print(type(error).__name__)
            raise

try:
    anyio.run(main, backend=backend)
except KeyboardInterrupt:
    print("came out")
except BaseException as error:
    print(repr(error))
"""


@pytest.mark.parametrize(
    ("backend", "where"),
    [
        ("asyncio", "alone"),
        ("asyncio", "group"),
        ("trio", "alone"),
        pytest.param("trio", "group"),
    ],
)
def test_ctrl_c_in_a_hosted_task_ends_the_program(backend: str, where: str) -> None:
    """It is meant for the program: its block gets it, and it comes out of the loop alone."""
    done = subprocess.run(
        [sys.executable, "-c", CTRL_C, backend, where],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=30,
        check=False,
    )
    assert (done.stderr, done.returncode) == ("", 0)
    assert done.stdout.splitlines()[-1:] == ["came out"]
    assert "the block went on" not in done.stdout
