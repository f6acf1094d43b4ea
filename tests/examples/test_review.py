"""The review tells the truth about code, sends back what is odd, and has what cannot wait measured first."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest

from agentcore import AgentRuntime, RuntimeConfig
from examples import review

ROOT = Path(__file__).parent.parent.parent
NESTED = """
def outer(x):
    class Inner:
        def method(self):
            if x:
                for one in x:
                    return one
    if x == 1:
        return 1
    elif x == 2:
        return 2
    elif x == 3:
        return 3


async def short():
    pass
"""


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """A folder with code that is good, long, deep, odd and broken."""
    root = tmp_path / "code"
    (root / "deep" / "er").mkdir(parents=True)
    (root / "venv").mkdir()
    contents = {
        "nested.py": NESTED,
        "empty.py": "",
        "long.py": "def long():\n" + "    print()\n" * 70,
        "deep/deep.py": "def deep(x):\n"
        + "".join(f"{'    ' * n}if x > {n}:\n" for n in range(1, 8))
        + "    " * 8
        + "x()\n",
        "deep/er/broken.py": "def one():\n    pass\n\ndef two(:\n    pass\n",
        "deep/er/old.py": "def old():\r    one()\r    two()\r    three()\r",
        "venv/skipped.py": "def skipped(): pass\n",
        "notes.md": "def no_code():\n",
    }
    for name, content in contents.items():
        (root / name).write_bytes(content.encode())
    return root


async def reviewed(path: Path, first: Path | None = None, workers: int = 1) -> dict[str, Any]:
    """Review a folder in a runtime of its own."""
    async with AgentRuntime(RuntimeConfig(in_flight=workers)) as runtime:
        await review.start(runtime, workers)
        return await runtime.run("plan", {"path": str(path), "first": str(first) if first else None})


@pytest.mark.anyio
async def test_the_report_is_true(code: Path) -> None:
    """Lines, functions, the longest and the deepest, as one sees them; the words of what cannot be parsed count."""
    report = await reviewed(code)
    assert (6, 17 + 71 + 9 + 5) == (report["files"], report["lines"])
    assert 3 + 1 + 1 + 2 + 1 == report["functions"]
    assert {"long.py": 71, "nested.py": 12, "deep.py": 9, "old.py": 4, "broken.py": 0} == by_name(report["longest"])
    assert {"deep.py": 8, "nested.py": 5, "long.py": 1, "old.py": 1, "broken.py": 0} == by_name(report["depth"])


@pytest.mark.anyio
async def test_what_is_odd_is_sent_back(code: Path) -> None:
    """It is looked at more closely, and the report says why; nothing else is."""
    report = await reviewed(code)
    assert {
        "broken.py": "implausible: SyntaxError: invalid syntax (<unknown>, line 4)",
        "old.py": "implausible: a function of 4 lines among 0",
        "long.py": "long: 71 lines",
        "deep.py": "deep: 8 blocks",
    } == by_name(report["sent_back"])
    worst = by_name(report["worst"])
    assert [{"name": "deep", "line": 1, "lines": 9, "depth": 8, "branches": 7}] == worst["deep.py"]
    assert ["broken.py"] == list(by_name(report["trouble"]))


def by_name(rows: dict[str, Any]) -> dict[str, Any]:
    return {Path(path).name: row for path, row in rows.items()}


@pytest.mark.anyio
async def test_what_cannot_wait_overtakes_the_rest(code: Path) -> None:
    """It is submitted last and begun before all that waits."""
    first = code / "nested.py"
    for workers in (1, 2):
        report = await reviewed(code, first, workers)
        assert str(first) == report["first"]["path"]
        assert report["first"]["place"] <= workers + 1
        assert 6 == report["files"]


@pytest.mark.anyio
async def test_what_cannot_wait_is_counted_once(code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever path names it."""
    monkeypatch.chdir(code)
    for path, first in ((code, Path("deep/deep.py")), (Path(), code / "nested.py"), (code, code / "deep/../empty.py")):
        report = await reviewed(path, first)
        assert first.name == Path(report["first"]["path"]).name
        assert 6 == report["files"]


@pytest.mark.anyio
async def test_what_is_not_there_is_a_trouble_and_no_more(code: Path) -> None:
    report = await reviewed(code, code / "gone.py")
    assert "No such file or directory" in report["trouble"][str(code / "gone.py")]
    assert (7, 8) == (report["files"], report["functions"])


@pytest.mark.anyio
async def test_a_process_that_dies_is_a_trouble_and_no_more(code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file that kills its process is told of, the others are measured."""
    monkeypatch.setattr(review, "measure", measure_or_die)
    report = await reviewed(code)
    assert ["broken.py", "long.py"] == sorted(by_name(report["trouble"]))
    assert (6, 7) == (report["files"], report["functions"])


@pytest.mark.anyio
async def test_giving_up_closes_everything(code: Path) -> None:
    """Whoever is cancelled in the middle waits for nothing but the unwinding."""
    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:
            group.start_soon(reviewed, code)
            await anyio.wait_all_tasks_blocked()
            group.cancel_scope.cancel()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_command_counts_as_others_do(backend: str) -> None:
    """Of a part of this project: the lines as `wc -l`, the functions as a plain walk through the trees."""
    done = subprocess.run(
        [sys.executable, "-W", "error", review.__file__ or "", "agentcore/pools", "--backend", backend],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert 0 == done.returncode, done.stderr
    report = json.loads(done.stdout)
    paths = sorted((ROOT / "agentcore" / "pools").rglob("*.py"))
    counted = subprocess.run(["wc", "-l", *paths], capture_output=True, text=True, check=True).stdout
    total = re.findall(r"^ *(\d+) total$", counted, re.MULTILINE)
    assert (len(paths), [str(report["lines"])]) == (report["files"], total)
    trees = [ast.parse(path.read_bytes()) for path in paths]
    functions = [
        node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert len(functions) == report["functions"]
    assert max(node.end_lineno - node.lineno + 1 for node in functions if node.end_lineno) == max(
        report["longest"].values()
    )
    assert {} == report["trouble"]
    shown = done.stderr.splitlines()  # each of them overwrites the one before
    assert f"{len(paths)} of {len(paths)} files, {len(report['sent_back'])} sent back" == shown[-1]
    assert len(shown) == len(paths) + 1  # the first one is empty


def test_the_command_refuses_what_is_no_folder(code: Path) -> None:
    """The exit code is that of a wrong command line, the message says what to do."""
    line = [sys.executable, review.__file__ or "", str(code / "empty.py")]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=60)
    assert (2, "") == (done.returncode, done.stdout)
    assert "path must be that of a folder that is there: got" in done.stderr


@pytest.mark.parametrize("workers", ["0", "-1"])
def test_the_command_refuses_too_few_workers(code: Path, workers: str) -> None:
    line = [sys.executable, review.__file__ or "", str(code), "--workers", workers]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=60)
    assert (2, "", False) == (done.returncode, done.stdout, "Traceback" in done.stderr)
    assert f"--workers must be 1 or more: got {workers}" in done.stderr


def measure_or_die(path: str) -> dict[str, Any]:
    """Measure a file, if its name is not that of the one that kills."""
    if path.endswith("long.py"):
        os._exit(1)
    return review.measure(path)
