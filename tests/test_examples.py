"""Each example runs as its docstring says, as a process of its own, on both backends."""

import ast
import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.fixture
def some_files(tmp_path: Path) -> Path:
    """A small directory for an example to work on."""
    (tmp_path / "code.py").write_text("def f(x):\n    return x  # TODO: more\n", encoding="utf-8")
    (tmp_path / "same.py").write_text("def f(x):\n    return x  # TODO: more\n", encoding="utf-8")
    (tmp_path / "notes.md").write_text("# Notes\n", encoding="utf-8")
    (tmp_path / "app.log").write_bytes(b"2026-01-01 10:00:00 ERROR one\nno t\xe9xt\n2026-01-01 10:00:01 INFO two\n")
    return tmp_path


def command_of(example: Path) -> list[str]:
    """Return the command that the docstring of `example` gives, with the path made absolute."""
    docstring = ast.get_docstring(ast.parse(example.read_text(encoding="utf-8"))) or ""
    commands = [line.strip() for line in docstring.splitlines()]
    command = next((line for line in commands if line.startswith(("agentcore run ", "python examples/"))), None)
    assert command, f"{example.name} must say in its docstring how it is run: agentcore run ..., or python examples/..."
    program, *words = shlex.split(command.replace(f"examples/{example.name}", str(example)))
    return [sys.executable if program == "python" else str(Path(sys.executable).with_name(program)), *words]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_example_runs(example: Path, backend: str, some_files: Path) -> None:
    """The command ends well and prints one JSON document into a pipe."""
    done = subprocess.run(
        [*command_of(example), "--backend", backend],
        cwd=some_files,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)


def test_there_are_examples() -> None:
    """The list of examples is found, and not empty."""
    assert EXAMPLES
