"""The documentation runs.

Every block that is marked `python` in the README and in the pages of `docs` is a whole program: it
is run by itself, and prints exactly what the `text` block right behind it shows. Every example with
`>>>` in a docstring gives what it says. Every link to a file of the project leads somewhere.
"""

import doctest
import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import agentcore

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
SNIPPET = re.compile(r"^```python\n(.*?)^```\n(?:\n*^```text\n(.*?)^```\n)?", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\[[^\]]*\]\((?!\w+:|#)([^)#\s]+)")


def snippets() -> list[Any]:
    """Return the code and the expected output of each snippet, named by page and line."""
    found = []
    for page in PAGES:
        content = page.read_text(encoding="utf-8")
        for match in SNIPPET.finditer(content):
            line = content.count("\n", 0, match.start()) + 1
            found.append(pytest.param(match[1], match[2], id=f"{page.relative_to(ROOT)}:{line}"))
    return found


def modules() -> list[str]:
    """Return the name of every module of the package."""
    inside = pkgutil.walk_packages(agentcore.__path__, "agentcore.")
    return [
        "agentcore",
        *(module.name for module in inside if not module.name.endswith("__main__")),
    ]


@pytest.mark.parametrize(("code", "output"), snippets())
def test_snippet_runs_and_prints_what_the_page_shows(code: str, output: str | None, tmp_path: Path) -> None:
    """A reader who pastes the snippet into a file sees what the page promises."""
    program = tmp_path / "snippet.py"
    program.write_text(code, encoding="utf-8")
    command = [sys.executable, "-W", "error", program]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    if output is not None:
        assert output == done.stdout


@pytest.mark.parametrize("name", modules())
def test_docstring_examples_give_what_they_say(name: str) -> None:
    """Each example in a docstring is true."""
    module: ModuleType = importlib.import_module(name)
    assert doctest.testmod(module, optionflags=doctest.ELLIPSIS).failed == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_to_files_lead_somewhere(page: Path) -> None:
    """No page points at a file that is not there."""
    targets = LINK.findall(page.read_text(encoding="utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []
