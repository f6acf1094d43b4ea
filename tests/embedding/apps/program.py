"""A program with an event loop of its own: `python -m tests.embedding.apps.program BACKEND MODE CASE`."""

from __future__ import annotations

import asyncio
import importlib
import signal
import sys

import anyio

from agentcore import AgentRuntime, RuntimeClosedError
from agentcore._events import Event
from tests.embedding.apps.parts import CONFIG, equip, say, until_under_way


async def until_failed(runtime: AgentRuntime) -> None:
    """Wait until the runtime says that it has crashed."""
    failed = anyio.Event()

    def note(event: Event) -> None:
        if event.event_type == "runtime_failed":
            failed.set()

    end = runtime.subscribe(note)
    if runtime.health().state == "open":
        await failed.wait()
    end()


async def crash(runtime: AgentRuntime, how: str) -> None:
    """Break the runtime while work is under way, and go on."""
    await runtime.submit("work", {"name": "background"})
    await until_under_way("background")
    await runtime.submit(how)
    await until_failed(runtime)
    say(f"state {runtime.health().state}, {len(runtime.health().failures)} failures")
    try:
        await runtime.submit("work", {"name": "late"})
    except RuntimeClosedError as error:
        say(f"refused: {error} because of {error.__cause__}")


async def until_sigterm(runtime: AgentRuntime) -> None:
    """Work until the signal comes: the program's own business, for the runtime is embedded."""
    await runtime.submit("work", {"name": "background"})
    with anyio.open_signal_receiver(signal.SIGTERM) as signals:
        say("ready")
        async for _number in signals:
            return


async def main(hosted: bool | None, case: str) -> None:
    async with AgentRuntime(CONFIG, hosted=hosted) as runtime:
        await equip(runtime)
        match case:
            case "end":
                await runtime.submit("work", {"name": "background"})
            case "fail":
                await runtime.submit("fail")
            case "exit" | "break":
                await crash(runtime, case)
            case "wait":
                await runtime.submit("work", {"name": "background"})
                await runtime.run("work", {"name": "own"})
            case "own handler":
                await until_sigterm(runtime)
    say("block left")


async def never_leave() -> None:
    """Forget `aclose`."""
    runtime = await AgentRuntime.open(CONFIG)
    await equip(runtime)
    await runtime.submit("work", {"name": "background"})
    await until_under_way("background")


if __name__ == "__main__":
    backend, mode, case = sys.argv[1:]
    if mode == "open":
        program, arguments = never_leave, ()
    else:
        program, arguments = main, (None if mode == "strict" else True, case)
    if backend == "asyncio":
        asyncio.run(program(*arguments))
    else:
        importlib.import_module("trio").run(program, *arguments)
    say("loop left")
