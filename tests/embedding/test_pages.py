"""The recipes of docs/embedding.md, each run in its host as its reader would.

Blocks that name no file are whole programs, which tests/test_docs.py runs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.embedding.hosts import ROOT, TERM, Program, Server, needs, traces

RECIPE = re.compile(r'^```python title="([\w.]+)"\n(.*?)^```\n', re.DOTALL | re.MULTILINE)
PAGE = (ROOT / "docs" / "embedding.md").read_text(encoding="utf-8")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A directory with the files of the page."""
    for name, code in RECIPE.findall(PAGE):
        (tmp_path / name).write_text(code, encoding="utf-8")
    return tmp_path


UVICORN = ("uvicorn", "--port", "0", "--no-access-log")
HYPERCORN = ("hypercorn", "-b", "127.0.0.1:0")
TRIO = (*HYPERCORN, "-k", "trio")


@pytest.mark.parametrize(
    ("server", "app", "code"),
    [
        pytest.param(UVICORN, "web", -TERM, marks=needs("uvicorn", "starlette")),
        pytest.param(HYPERCORN, "web", 0, marks=needs("hypercorn", "starlette")),
        pytest.param(TRIO, "web", 0, marks=needs("hypercorn", "starlette")),
        pytest.param(UVICORN, "api", -TERM, marks=needs("uvicorn", "fastapi")),
        pytest.param(TRIO, "counter", 0, marks=needs("quart_trio")),
    ],
    ids=["web-uvicorn", "web-hypercorn", "web-trio", "api-uvicorn", "counter-trio"],
)
def test_servers_serve(server: tuple[str, ...], app: str, code: int, place: Path) -> None:
    with Server("-m", *server, f"{app}:app", PYTHONPATH=str(place)) as process:
        assert process.request("GET", "/count?text=cancel+means+cancel") == (200, {"words": 3})
        status, health = process.request("GET", "/healthz")
        assert (status, health["state"]) == (200, "open")
        process.signal(TERM)
        assert process.finish() == code
        assert "Traceback" not in process.output


BROKEN = """
import web

register = web.register


def register_broken(runtime):
    register(runtime)

    @runtime.handler("count")
    async def count(input):
        await runtime.submit("exit")
        return {"words": 0}

    @runtime.handler("exit")
    async def leave(input):
        raise SystemExit("the agent gave up")


web.register = register_broken

from stop import app
"""


@needs("uvicorn", "starlette")
def test_a_server_ends_itself_when_its_runtime_breaks(place: Path) -> None:
    """It shuts down as by any other SIGTERM."""
    (place / "broken.py").write_text(BROKEN, encoding="utf-8")
    with Server("-m", *UVICORN, "broken:app", PYTHONPATH=str(place)) as process:
        process.request("GET", "/count?text=exit")
        assert process.finish() == -TERM
        # Python's own handler, which has no level in its lines, writes what nobody has configured.
        assert traces(process.output, "SystemExit: the agent gave up") == 2
        assert "Waiting for application shutdown." in process.output


def test_fixtures_work(place: Path) -> None:
    (place / "pytest.ini").write_text(
        "[pytest]\nfilterwarnings = error\nasyncio_default_fixture_loop_scope = function\n", encoding="utf-8"
    )
    line = (
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-c",
        str(place / "pytest.ini"),
        str(place / "test_desk.py"),
    )
    with Program(*line) as process:
        assert process.finish() == 0
        assert "4 passed" in process.output


@needs("ipykernel", "jupyter_client")
def test_cells_work(place: Path) -> None:
    from tests.embedding.notebook import Notebook, good  # noqa: PLC0415 - needs what may not be installed

    with Notebook(place) as kernel:
        for name in ("cell_1.py", "cell_2.py", "cell_3.py"):
            assert good(kernel.run((place / name).read_text(encoding="utf-8"))) == ""
        assert kernel.shut_down() == 0


def test_a_worker_drains(place: Path) -> None:
    with Program(str(place / "worker.py")) as process:
        process.wait_for("ready")
        process.signal(TERM)
        assert process.finish() == 0
        assert process.output == "ready\n"
