"""A program for `agentcore.run` in a process of its own: says when it is ready, what it does is the first argument."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread

import agentcore
from agentcore import AgentRuntime, RuntimeConfig

Handler = Callable[[int, FrameType | None], object]


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def announce_signals() -> None:
    """Say of each signal that it has been handled: whoever sends another one too early sends both as one."""
    for number in (signal.SIGINT, signal.SIGTERM):
        handle = signal.getsignal(number)
        assert callable(handle)

        def handle_and_say(number: int, frame: FrameType | None, handle: Handler = handle) -> None:
            handle(number, frame)
            os.write(2, b"heard\n")  # at any line of the program, so not through a stream

        signal.signal(number, handle_and_say)


async def main(runtime: AgentRuntime, what: str) -> str:
    announce_signals()

    @runtime.handler("work")
    async def work(given: dict[str, Any]) -> dict[str, Any]:
        say("ready")
        while what == "block the loop":
            signal.pause()
        try:
            if what == "end in time":
                await anyio.to_thread.run_sync(sys.stdin.readline)
            else:
                await anyio.sleep_forever()
        finally:
            say("unwound")
            if what == "never unwind":
                with anyio.CancelScope(shield=True):
                    await anyio.sleep_forever()
        return {"done": True}

    if what == "idle":
        say("ready")
        await anyio.sleep_forever()
    if what == "submit":
        handle = await runtime.submit("work")
        return str(await handle.result())
    result = str(await runtime.run("work", id="the-task"))
    if what == "end in time":
        for _ in range(100):  # what a program does with a result
            await anyio.lowlevel.checkpoint()
    return result


if __name__ == "__main__":
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    what, backend, grace = sys.argv[1:]
    try:
        say(agentcore.run(main, what, backend=backend, config=RuntimeConfig(grace=float(grace))))
    except BaseException as error:  # noqa: BLE001 - the test looks at it
        say(f"{type(error).__name__} {error} {getattr(error, '__notes__', [])}")
        say(f"cause {type(error.__cause__).__name__}")
    same = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    say(f"restored {same}")
