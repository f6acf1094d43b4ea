"""Runtimes that live in the lifespan of a web application, under real servers with real signals.

The server is started once for each case. What users see in each cell is told in docs/embedding.md.
"""

from __future__ import annotations

import http.client
from typing import Any, NamedTuple

import pytest

from tests.embedding.hosts import INT, TERM, Server, Work, answer, needs, records, traces

UVICORN = ("uvicorn", "--port", "0", "--no-access-log", "--timeout-graceful-shutdown")
ASYNCIO = ("hypercorn", "-b", "127.0.0.1:0", "-k", "asyncio", "--graceful-timeout")
TRIO = ("hypercorn", "-b", "127.0.0.1:0", "-k", "trio", "--graceful-timeout")


class Host(NamedTuple):
    """A server with an app.

    Attributes:
        line: behind `python -m`.
        patience: the option for how many seconds requests may go on for after the signal.
        code: of the end by SIGTERM, whether the shutdown of the app has failed or not. Uvicorn ends by the signal itself.
        told: how many tracebacks it prints of what the shutdown of the app has raised. Hypercorn prints one and repeats it in
            another on asyncio, and says nothing on trio.
        closes_idle: whether the signal shows by the end of connections that wait for nothing. Quart keeps them.
    """

    line: tuple[str, ...]
    patience: str
    code: int = 0
    told: int = 1
    closes_idle: bool = True

    def start(self, *, patience: int = 20, grace: float = 10) -> Server:
        return Server("-m", *self.line, self.patience, str(patience), GRACE=str(grace))


def host(name: str, server: tuple[str, ...], app: str, *modules: str, **rest: Any) -> Any:
    line = (*server[:-1], f"tests.embedding.apps.{app}:app")
    return pytest.param(Host(line, server[-1], **rest), id=name, marks=needs(server[0], *modules))


hosts = pytest.mark.parametrize(
    "host",
    [
        host("starlette-uvicorn", UVICORN, "web_starlette", "starlette", code=-TERM),
        host("starlette-hypercorn-asyncio", ASYNCIO, "web_starlette", "starlette", told=2),
        host("starlette-hypercorn-trio", TRIO, "web_starlette", "starlette", told=0),
        host("fastapi-uvicorn", UVICORN, "web_fastapi", "fastapi", code=-TERM),
        host("fastapi-hypercorn-asyncio", ASYNCIO, "web_fastapi", "fastapi", told=2),
        host("fastapi-hypercorn-trio", TRIO, "web_fastapi", "fastapi", told=0),
        host("quart-trio", TRIO, "web_quart", "quart_trio", closes_idle=False),
    ],
)


def under_way(server: Server) -> tuple[http.client.HTTPConnection, Work, Work]:
    """Start a request and a background task; return them when both are under way."""
    pending = server.send("POST", "/run/work?name=request")
    (request,) = server.expect("request")
    assert server.request("POST", "/submit/work?name=background")[0] == 202
    (background,) = server.expect("background")
    return pending, request, background


@hosts
@pytest.mark.parametrize("number", [INT, TERM])
def test_an_idle_server_ends_by_a_signal(host: Host, number: Any) -> None:
    """It has answered, ends with its usual code, closes its resources and says nothing else."""
    with host.start() as server:
        assert server.request("GET", "/healthz") == (200, {"state": "open", "failures": []})
        server.signal(number)
        assert server.finish() == (host.code if number == TERM else 0)
        assert server.output.count("line closed") == 1
        assert records(server.output, "[A-Z]+") == []
        assert "Traceback" not in server.output


def fail_unseen(server: Server) -> None:
    """Have a task fail whose handle nobody has: it is told at once, and harms nothing else."""
    assert server.request("POST", "/submit/fail")[0] == 202
    assert "nobody looked" in server.wait_for("^ERROR agentcore.runtime: .*")[0]
    status, health = server.request("GET", "/healthz")
    assert (status, health["state"]) == (200, "open")
    assert "nobody looked" in str(health["failures"])


@hosts
@pytest.mark.parametrize(
    ("how", "text", "line"),
    [
        ("exit", "the agent gave up", "SystemExit: the agent gave up"),
        ("break", "the line is dead", "ValueError: the line is dead"),
    ],
    ids=["exit", "resource"],
)
def test_a_crash_shows_in_the_health_and_the_server_stays(host: Host, how: str, text: str, line: str) -> None:
    """All work is cut and cleaned up, it is logged once, calls give 503; nothing ends but by its orchestrator.

    What has failed before without harm is told at the end too.
    """
    with host.start() as server:
        assert server.request("GET", "/healthz") == (200, {"state": "open", "failures": []})
        fail_unseen(server)
        pending, request, background = under_way(server)
        assert server.request("POST", f"/submit/{how}")[0] == 202
        request.wait_for_cut()
        background.wait_for_cut()
        server.wait_for("^CRITICAL agentcore.runtime: .*")
        for name in ("request cleaned up", "background cleaned up", "line closed"):
            server.wait_for(name)
        assert answer(pending)[0] == 503
        status, health = server.request("GET", "/healthz")
        assert (status, health["state"]) == (503, "failed")
        assert text in str(health["failures"])
        status, content = server.request("POST", "/submit/work?name=late")
        assert status == 503
        assert text in content["cause"]
        server.signal(TERM)
        assert server.finish() == host.code
        assert len(records(server.output, "[A-Z]+")) == 2
        assert traces(server.output, line) == 1 + host.told
        assert traces(server.output, "ValueError: nobody looked") == host.told


@hosts
def test_work_ends_within_the_grace_after_sigterm(host: Host) -> None:
    """The request gets its answer, then the background task comes to its own end."""
    with host.start() as server:
        idle = server.send("GET", "/healthz")
        assert idle.getresponse().read()
        pending, request, background = under_way(server)
        server.signal(TERM)
        if host.closes_idle:
            # As soon as the signal has been taken.
            assert idle.sock.recv(1) == b""
        idle.close()
        request.end()
        assert answer(pending) == (200, {"name": "request"})
        background.wait_for_draining()
        background.end()
        assert server.finish() == host.code
        assert server.output.count("background done") == 1
        assert "Traceback" not in server.output


@hosts
def test_work_is_cut_after_the_grace(host: Host) -> None:
    """Whatever takes longer than the server and the runtime wait for is cancelled, and cleans up."""
    with host.start(patience=1, grace=0.1) as server:
        pending, request, background = under_way(server)
        server.signal(TERM)
        request.wait_for_cut()
        background.wait_for_cut()
        assert server.finish() == host.code
        pending.close()
        for name in ("request cleaned up", "background cleaned up", "line closed"):
            assert server.output.count(name) == 1
        assert " done" not in server.output
