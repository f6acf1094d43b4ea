"""What the tests name on the command line."""

from __future__ import annotations

import sys
from typing import Any

import anyio
import attrs

from agentcore import AgentConfig, AgentContext, AgentResult, BaseAgent, TaskTimeoutError
from agentcore._interop import sources, use_sources

VALUE = 5


async def echo(given: dict[str, Any]) -> dict[str, Any]:
    """Return the input."""
    return given


def plain(given: dict[str, Any]) -> dict[str, Any]:
    return given


async def fail(given: dict[str, Any]) -> None:
    raise ValueError("not today")


async def hang(given: dict[str, Any], context: AgentContext) -> None:
    sys.stderr.write("ready\n")
    sys.stderr.flush()
    await anyio.sleep_forever()


async def leave(given: dict[str, Any]) -> None:
    sys.exit(3)


async def inner_timeout(given: dict[str, Any]) -> None:
    raise TaskTimeoutError("something of my own took too long")


async def background(given: dict[str, Any], context: AgentContext) -> dict[str, Any]:
    """Succeed, and leave a failure behind."""
    from agentcore import AgentRuntime  # noqa: PLC0415

    runtime = AgentRuntime.current()
    runtime.handler("fail")(fail)
    await context.submit("fail")
    return {}


async def family(given: dict[str, Any], context: AgentContext) -> dict[str, Any]:
    """Run children, for the progress to show."""
    from agentcore import AgentRuntime  # noqa: PLC0415

    AgentRuntime.current().handler("child")(echo)
    for number in range(given.get("children", 3)):
        await context.run("child", {"n": number})
    # Progress is drawn again after a while, which passes here without waiting for it.
    now = sources.get()
    with use_sources(attrs.evolve(now, monotonic=lambda: now.monotonic() + 60)):
        await context.run("child")
    return {"children": given.get("children", 3)}


async def big(given: dict[str, Any]) -> dict[str, Any]:
    return {"lines": ["x" * 100] * 50_000}


async def strange(given: dict[str, Any]) -> dict[str, Any]:
    """What comes out of foreign file names: control characters, lone surrogates, other scripts, markup."""
    return {
        "caf\u00e9": "na\u00efve",
        "undecodable": "a\udcffb",
        "escape": "\x1b[31mred\x07",
        "markup": "[bold]not bold[/bold]",
        "files": {"key\x1b[2J\n": 1, "\udcfe": 2},
        "rows": [{"name\x1b": "a\r\nb"}, {"name\x1b": "c"}],
        "list": ["x\x00", "y"],
        "count": 1234567,
        "ratio": 0.5,
        "yes": True,
        "nothing": None,
        "empty": [],
    }


async def unserialisable(given: dict[str, Any]) -> dict[str, Any]:
    return {"first": 1, "pairs": {(1, 2): 3}}


async def not_a_number(given: dict[str, Any]) -> dict[str, Any]:
    return {"value": float("nan")}


class Echo(BaseAgent):
    """Return the input."""

    async def initialize(self) -> bool:
        return True

    async def process(self, context: AgentContext) -> AgentResult:
        assert context.task is not None
        return AgentResult.success_result({"by": self.name, **context.task.input})

    async def handle_error(self, error: Exception, context: AgentContext) -> AgentResult:
        return AgentResult.error_result(str(error))


class Nothing:
    """Is no agent."""


agent = Echo(AgentConfig("instance", "echo"))


class Space:
    """Holds a function."""

    nested = staticmethod(echo)


async def circular(given: dict[str, Any]) -> dict[str, Any]:
    """Return what contains itself."""
    output: dict[str, Any] = {}
    output["again"] = output
    return output


async def huge(given: dict[str, Any]) -> dict[str, Any]:
    """Return a number of more digits than Python prints."""
    return {"first": 1, "number": 10**5000}


async def unshowable(given: dict[str, Any]) -> dict[str, Any]:
    """Return an object that cannot be shown."""

    class Mute:
        def __str__(self) -> str:
            raise RuntimeError("mute")

    return {"mute": Mute()}
