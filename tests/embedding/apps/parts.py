"""What every app here gives its runtime to do: work that the test holds in its hand, and three ways to break."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio

from agentcore import AgentRuntime, RuntimeConfig

CONFIG = RuntimeConfig(grace=float(os.environ.get("GRACE", "10")))

# As most programs have it; what asyncio complains of comes out here too.
logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
# It has a handler of its own: whatever it logs would come twice.
logging.getLogger("hypercorn.error").propagate = False


_arrived: set[str] = set()


def say(text: str) -> None:
    """Write a line that the test waits for, at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


async def follow(name: str) -> None:
    """Tell the test that this work is under way, and do what it says until it says `e`, the end."""
    async with await anyio.connect_tcp("127.0.0.1", int(os.environ["GATE"])) as stream:
        await stream.send(f"{name}\n".encode())
        _arrived.add(name)
        while await stream.receive(1) != b"e":
            # It wants to know when the runtime drains, of which there is no event.
            while AgentRuntime.current().health().state == "open":  # noqa: ASYNC110
                await anyio.sleep(0.01)
            await stream.send(b"d")


async def until_under_way(name: str) -> None:
    """Wait until the test knows of this work."""
    while name not in _arrived:  # noqa: ASYNC110 - an event would belong to one event loop
        await anyio.sleep(0.01)


@asynccontextmanager
async def line() -> AsyncIterator[anyio.Event]:
    """A connection that is kept by a task of its own; the event breaks it."""
    broken = anyio.Event()

    async def keep() -> None:
        await broken.wait()
        raise ValueError("the line is dead")

    try:
        async with anyio.create_task_group() as group:
            group.start_soon(keep)
            yield broken
            group.cancel_scope.cancel()
    finally:
        say("line closed")


async def equip(runtime: AgentRuntime) -> None:
    """Register the handlers of every app."""
    broken = await runtime.resource(line(), "line")

    @runtime.handler("work")
    async def work(given: dict[str, Any]) -> dict[str, Any]:
        try:
            await follow(given["name"])
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.01)  # A clean-up that takes its time.
            say(f"{given['name']} cleaned up")
        say(f"{given['name']} done")
        return {"name": given["name"]}

    @runtime.handler("fail")
    async def fail(given: dict[str, Any]) -> None:
        raise ValueError("nobody looked")

    @runtime.handler("exit")
    async def leave(given: dict[str, Any]) -> None:
        raise SystemExit("the agent gave up")

    @runtime.handler("break")
    async def break_line(given: dict[str, Any]) -> None:
        broken.set()
