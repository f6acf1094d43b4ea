"""What the project says about itself holds: its commands, its metadata, the shape of its code."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SOURCES = sorted((ROOT / "agentcore").rglob("*.py"))


def marked_command(marker: str) -> str:
    """Return the one command in the block that follows `<!-- marker -->` in the README."""
    block = re.search(rf"<!-- {marker} -->\s*```\w*\n(.*?)\n```", README, re.DOTALL)
    assert block, f"README.md has no block marked {marker!r}"
    return block[1]


@pytest.mark.parametrize("marker", ["first command", "test command"])
def test_commands_of_the_readme_are_one_line_and_make_their_own_environment(marker: str) -> None:
    """Each works in a fresh clone where the system's Python must not be touched."""
    command = marked_command(marker)
    assert "\n" not in command
    assert command.startswith("python3 -m venv .venv && .venv/bin/pip install ")


def test_ci_takes_its_command_from_the_readme() -> None:
    """CI has no test command of its own that could differ from what people are told to run."""
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "<!-- test command -->" in script
    assert "nox" not in script
    assert "pip install" not in script


def test_readme_is_short() -> None:
    """What does not fit into 600 words belongs into docs."""
    assert len(README.split()) <= 600


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_source_stays_readable_in_size(path: Path) -> None:
    """A file is at most 600 lines, a function 80, a class 25 public methods."""
    source = path.read_text(encoding="utf-8")
    nodes = list(ast.walk(ast.parse(source)))
    functions = [n for n in nodes if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert len(source.splitlines()) <= 600
    assert [n.name for n in functions if code_lines(n) > 80] == []
    classes = [n for n in nodes if isinstance(n, ast.ClassDef)]
    assert [n.name for n in classes if public_methods(n) > 25] == []


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the lines of `function` behind its docstring: documentation is not held against it."""
    first = function.body[1:] if ast.get_docstring(function) else function.body
    return (function.end_lineno or 0) - first[0].lineno + 1 if first else 0


def public_methods(node: ast.ClassDef) -> int:
    """Return how many public methods a class defines; properties are not methods to its user."""
    return sum(
        isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
        and not child.name.startswith("_")
        and not any(ast.unparse(line).endswith("property") for line in child.decorator_list)
        for child in node.body
    )
