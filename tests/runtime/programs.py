"""A program for `agentcore.run` in a process of its own: says when it is ready, what it does is the first argument."""

from __future__ import annotations

import signal
import sys
import time
from typing import Any

import anyio

import agentcore
from agentcore import AgentRuntime, RuntimeConfig


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


async def main(runtime: AgentRuntime, what: str) -> str:
    @runtime.handler("work")
    async def work(given: dict[str, Any]) -> dict[str, Any]:
        say("ready")
        if what == "block the loop":
            while True:
                time.sleep(0.01)  # noqa: ASYNC251 - that is the point
        try:
            await anyio.sleep(0.3 if what == "end in time" else 60)
        finally:
            say("unwound")
            if what == "never unwind":
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(60)
        return {"done": True}

    if what == "idle":
        say("ready")
        await anyio.sleep(60)
    if what == "submit":
        handle = await runtime.submit("work")
        return str(await handle.result())
    result = str(await runtime.run("work", id="the-task"))
    if what == "end in time":
        for _ in range(5):  # what a program does with a result
            await anyio.sleep(0.01)
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
