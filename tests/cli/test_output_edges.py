"""Outputs that cannot be said, and streams that cannot take them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from agentcore.cli import main
from tests.cli.test_main import FAILED, HERE, INTERRUPTED, ROOT, command


@pytest.mark.parametrize("form", ["json", "table"])
@pytest.mark.parametrize("target", ["circular", "huge"])
def test_output_that_cannot_be_shown(target: str, form: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It is told in one line, and nothing of it is written."""
    code = main(["run", f"{HERE}:{target}", "--output", form])
    output, errors = capsys.readouterr()
    assert (FAILED, "", 1) == (code, output, errors.count("\n"))
    assert errors.startswith("agentcore: the output cannot be shown: ")


@pytest.mark.parametrize("form", ["json", "table"])
def test_an_object_without_a_text(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An object whose text cannot be had is named by its class."""
    assert 0 == main(["run", f"{HERE}:unshowable", "--output", form])
    assert "Mute whose str() raised RuntimeError" in capsys.readouterr().out


def test_a_stream_that_is_full() -> None:
    """What cannot be written is a failure, told in one line."""
    full = Path("/dev/full")
    if not full.exists():
        return
    with full.open("w") as stream:
        done = subprocess.run(
            [sys.executable, "-m", "agentcore", "run", f"{HERE}:echo"],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.PIPE,
            timeout=10,
            check=False,
            cwd=ROOT,
        )
    assert FAILED == done.returncode
    assert done.stderr.startswith(b"agentcore: the output cannot be written: ")


def test_an_interrupt_while_the_target_is_imported(tmp_path: Path) -> None:
    """Ctrl-C outside of the run is an interruption as well, without a traceback."""
    target = tmp_path / "slow_import.py"
    target.write_text("raise KeyboardInterrupt\n", encoding="utf-8")
    code, output, errors = command(f"{target}:anything")
    assert (INTERRUPTED, "", "agentcore: interrupted\n") == (code, output, errors)
