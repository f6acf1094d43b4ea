"""The monitor and the review as parts of programs that have another purpose: a trio program, a web application."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentcore import AgentRuntime
from examples import monitor, review
from tests.embedding.hosts import TERM, Server, needs, until
from tests.embedding.test_servers import ASYNCIO, TRIO, UVICORN

HEALTHY = {"state": "open", "failures": []}
GOOD = b"2026-01-01 10:00:00 ERROR one\n"
BROKEN = b"no t\xe9xt\n"
CODE = "def one():\n    pass\n\n\ndef two():\n    pass\n"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A log with a line that is no text."""
    path = tmp_path / "some.log"
    path.write_bytes(GOOD + BROKEN + GOOD)
    return path


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """A folder with code."""
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "some.py").write_text(CODE, encoding="utf-8")
    return folder


def add(path: Path, content: bytes) -> None:
    with path.open("ab") as file:
        file.write(content)


@pytest.mark.parametrize("hosted", [False, True], ids=["strict", "hosted"])
def test_in_a_plain_trio_program(log: Path, code: Path, hosted: bool) -> None:
    """Beside a nursery of its own, which notices nothing; what is read is counted when the block is left."""
    trio = pytest.importorskip("trio")
    watched = monitor.Log(path=str(log), once=True)
    beats: list[int] = []

    async def beat() -> None:
        while True:
            beats.append(len(beats))
            await trio.lowlevel.checkpoint()

    async def program() -> dict[str, Any]:
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(beat)
                async with AgentRuntime(hosted=hosted) as runtime:
                    await monitor.start(runtime, watched)
                    await review.start(runtime, workers=1)
                    report = await runtime.run("plan", {"path": str(code), "first": None})
                    await watched.ended.wait()
                assert runtime.health().state == "closed"
                before = len(beats)
                while len(beats) < before + 3:  # it goes on
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
        return report

    report: dict[str, Any] = trio.run(program)
    assert (1, 6, 2) == (report["files"], report["lines"], report["functions"])
    assert (3, 2, [2]) == (watched.read, watched.counted, [one["line"] for one in watched.lost])


def server(name: str, line: tuple[str, ...], code: int = 0) -> Any:
    return pytest.param(
        (*line, "20", "tests.embedding.apps.web_watch:app"), code, id=name, marks=needs(line[0], "starlette")
    )


servers = pytest.mark.parametrize(
    ("line", "status"),
    [
        server("uvicorn", UVICORN, -TERM),
        server("hypercorn-asyncio", ASYNCIO),
        server("hypercorn-trio", TRIO),
    ],
)


def until_log(host: Server, condition: Callable[[dict[str, Any]], bool], what: str) -> None:
    """Ask the application for its report until something holds."""
    until(lambda: condition(host.request("GET", "/log")[1]), what)


@servers
def test_in_a_web_application(line: tuple[str, ...], status: int, log: Path, code: Path) -> None:
    """It answers while agents crash and come again, follows the log, reviews code, and ends by its signal as ever."""
    with Server("-m", *line, LOG=str(log)) as host:
        until_log(host, lambda report: report["counted"] == 2, "two lines")
        add(log, BROKEN + GOOD)
        until_log(host, lambda report: report["counted"] == 3, "three lines")
        report = host.request("GET", "/log")[1]
        assert (5, [2, 4]) == (report["read"], [one["line"] for one in report["lost"]])
        found, figures = host.request("POST", f"/review?path={code}")
        assert (200, 1, 6, 2) == (found, figures["files"], figures["lines"], figures["functions"])
        assert (200, HEALTHY) == host.request("GET", "/healthz")
        host.signal(TERM)
        assert status == host.finish()


@servers
def test_a_watch_that_ends_early_leaves_the_application_alone(line: tuple[str, ...], status: int, log: Path) -> None:
    """Its health says why; reports and all else are there as before; the end tells of it."""
    with Server("-m", *line, LOG=str(log)) as host:
        add(log, BROKEN * 9)
        until_log(host, lambda report: len(report["lost"]) == 4, "four lines are lost")
        until(lambda: bool(host.request("GET", "/healthz")[1]["failures"]), "a failure")
        found, health = host.request("GET", "/healthz")
        assert (200, "open") == (found, health["state"])
        assert "supervisor 'monitor' gives up: got 4 restarts within 10 s, 3 are allowed" in str(health["failures"])
        host.signal(TERM)
        assert status == host.finish()
        assert "supervisor 'monitor' gives up" in host.output
