"""The documentation runs.

Every block that is marked `python` in the README and in the pages of `docs` is a whole program: it
is run by itself, and prints exactly what the `text` block right behind it shows. A page with blocks
that name a file, `python title="desk.py"`, is gone through as its reader does: each of these blocks is
saved, each command of a `console` block is run there, and prints what the `text` block behind it
shows. Every example with `>>>` in a docstring gives what it says. Every link to a file of the project
leads somewhere.

`python tests/test_docs.py` writes the outputs of such pages anew.
"""

import doctest
import importlib
import os
import pkgutil
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import agentcore
import agentcore.testing

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
SNIPPET = re.compile(r"^```python\n(.*?)^```\n(?:\n*^```text\n(.*?)^```\n)?", re.DOTALL | re.MULTILINE)
# A file to save, or a command with its output.
STEP = re.compile(
    r'^```python title="(?P<file>[\w.]+)"\n(?P<code>.*?)^```\n'
    r"|(?P<shown>^```console\n\$ (?P<command>[^\n]*)\n```\n\n```text\n)(?P<output>.*?)^```\n",
    re.DOTALL | re.MULTILINE,
)
WALKS = [page for page in PAGES if re.search(r"^```python title=", page.read_text(encoding="utf-8"), re.MULTILINE)]
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


def walk(content: str, directory: Path) -> str:
    """Return a page with the output that its commands have, run in a directory with the files it has saved by then."""

    def step(match: re.Match[str]) -> str:
        if match["file"]:
            (directory / match["file"]).write_text(match["code"], encoding="utf-8")
            return match[0]
        return f"{match['shown']}{run(match['command'], directory)}```\n"

    return STEP.sub(step, content)


def run(command: str, directory: Path) -> str:
    """Return what a command for pytest prints, with the plugin of agentcore and without any other."""
    command, _, wanted = command.partition(" | grep ")
    words = shlex.split(command)
    environment = {name: value for name, value in os.environ.items() if name not in {"CI", "BUILD_NUMBER"}}
    environment |= {
        "COLUMNS": "80",
        "PYTEST_ADDOPTS": "-p no:cacheprovider -W error",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTEST_PLUGINS": "agentcore.testing._plugin",
        "PYTHONDONTWRITEBYTECODE": "1",  # A file that is saved twice within a second would not be read again.
        "PYTHONPATH": str(ROOT),
    }
    while "=" in words[0]:
        name, _, value = words.pop(0).partition("=")
        environment[name] = value
    assert words[0] == "pytest"
    done = subprocess.run(
        [sys.executable, "-m", *words],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stderr == ""
    return "".join(line for line in done.stdout.splitlines(keepends=True) if re.search(wanted.strip('"'), line))


def steady(content: str) -> str:
    """Return a page without what differs from run to run, and without the line numbers of agentcore itself."""
    mine = set(re.findall(r"^ *(?:async )?def (\w+)", content, re.MULTILINE))
    content = re.sub(r" in \d+\.\d\ds$", " in 0.01s", content, flags=re.MULTILINE)
    content = re.sub(r"\b0x[0-9a-f]+", "0x0", content)
    content = re.sub(r"\b[0-9a-f]{12}-\d+", "id", content)
    return re.sub(r"(\w+):\d+(?= )", lambda place: place[0] if place[1] in mine else place[1], content)


@pytest.mark.parametrize("page", WALKS, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_of_a_page_print_what_it_shows(page: Path, tmp_path: Path) -> None:
    """A reader who saves the files and runs the commands sees what the page promises."""
    content = page.read_text(encoding="utf-8")
    assert steady(content) == steady(walk(content, tmp_path))


def test_reference_of_the_testing_kit_has_every_name() -> None:
    """Whatever is exported can be looked up."""
    content = (ROOT / "docs" / "testing-reference.md").read_text(encoding="utf-8")
    words = set(re.findall(r"\w+", " ".join(re.findall(r"`[^`\n]+`", content))))
    assert [name for name in agentcore.testing.__all__ if name not in words] == []


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


if __name__ == "__main__":
    for walked in WALKS:
        before = walked.read_text(encoding="utf-8")
        with tempfile.TemporaryDirectory() as place:
            after = walk(before, Path(place))
        if steady(before) != steady(after):
            walked.write_text(after, encoding="utf-8")
