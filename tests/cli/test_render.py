"""Tables on a terminal, JSON in a pipe, and nothing that comes out of files can do harm there."""

from __future__ import annotations

import builtins
import errno
import io
import json
import os
import pty
import struct
import subprocess
import sys
import termios
from fcntl import ioctl
from pathlib import Path
from typing import Any

import pytest

from agentcore import Event
from agentcore._events import to_datetime
from agentcore.cli._progress import Progress
from agentcore.cli._render import render
from tests.cli.test_main import FAILED, HERE, OK, ROOT, command

OUTPUT: dict[str, Any] = {
    "total_size": 1234567,
    "ratio": 0.5,
    "ok": True,
    "nothing": None,
    "by_kind": {"python": 3, "text": 12},
    "files": [{"name": "a.py", "size": 10, "tags": ["x", "y"]}, {"name": "b.py", "note": {"n": 1}}],
    "names": ["one", "two"],
    "empty": [],
}


def without_rich(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have `import rich` fail."""
    real = builtins.__import__

    def refuse(name: str, *arguments: Any, **options: Any) -> Any:
        if name.partition(".")[0] == "rich":
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)


def drawn(output: dict[str, Any]) -> str:
    """Return what `render` writes."""
    stream = io.StringIO()
    render(output, stream)
    return stream.getvalue()


@pytest.mark.parametrize("rich", [True, False])
def test_tables(rich: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values, records and lists are all there, with or without rich."""
    if not rich:
        without_rich(monkeypatch)
    text = drawn(OUTPUT)
    for word in ("total size", "1,234,567", "0.50", "yes", "python", "12", "a.py", "x, y", "n: 1", "one", "two"):
        assert word in text
    assert all(title in text.lower() for title in ("by kind", "files", "names", "empty"))


def test_plain_tables_are_aligned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers to the right, text to the left, no trailing blanks."""
    without_rich(monkeypatch)
    assert drawn({"a": 1, "sizes": {"short": 5, "longer": 1000}, "rows": [{"n": "x", "m": 1}]}) == (
        "a  1\n\nSIZES\nshort       5\nlonger  1,000\n\nROWS\nn  m\nx  1\n"
    )


def test_nothing_to_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty output is an empty text."""
    assert drawn({}) == ""
    without_rich(monkeypatch)
    assert drawn({}) == ""


@pytest.mark.parametrize("rich", [True, False])
def test_control_characters_do_not_reach_the_terminal(rich: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in values, not in keys, titles and heads of columns, not in lists; and markup is text."""
    if not rich:
        without_rich(monkeypatch)
    evil = "\x1b[2J\r\x07\x9b\u202e\udcff[bold]"
    text = drawn({evil: evil, f"map{evil}": {evil: evil}, f"rows{evil}": [{evil: evil}], f"list{evil}": [evil]})
    assert {"\n"} >= {character for character in text if not character.isprintable()}
    assert text.count("[bold]") >= 5
    text.encode("utf-8")


# In a pipe.


def test_json_in_a_pipe() -> None:
    """One line, strict, whatever is in it; the values come back as they were."""
    code, output, errors = command(f"{HERE}:strange")
    assert (code, errors, output.count("\n")) == (OK, "", 1)
    parsed = json.loads(output)
    assert parsed["escape"] == "\x1b[31mred\x07"
    assert parsed["caf\u00e9"] == "na\u00efve"
    assert parsed["undecodable"] == "a\udcffb"
    assert "\x1b" not in output


@pytest.mark.parametrize("form", ["json", "table"])
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_encoding_of_the_output(form: str, encoding: str) -> None:
    """A terminal or pipe that cannot show a character gets it escaped; the run has not failed for that."""
    code, output, errors = command(
        f"{HERE}:strange", "--output", form, environment={"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    )
    assert (code, errors) == (OK, "")
    assert "not bold" in output


def test_a_table_in_a_pipe() -> None:
    """If it is asked for: without colours."""
    code, output, _ = command(f"{HERE}:strange", "--output", "table")
    assert code == OK
    assert "1,234,567" in output
    assert "\x1b" not in output


@pytest.mark.parametrize("target", ["unserialisable", "not_a_number"])
def test_output_that_is_no_json(target: str) -> None:
    """Either it is written in a form that is strict JSON, or it is said that it cannot be; nothing is written by half."""
    code, output, errors = command(f"{HERE}:{target}")
    assert "Traceback" not in errors
    if code == OK:
        json.loads(output, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    else:
        assert (code, output) == (FAILED, "")
        assert errors.startswith("agentcore: ")


def test_a_reader_that_goes_away() -> None:
    """As `| head -c 10` does: no traceback, no complaint at exit."""
    process = subprocess.Popen(
        [sys.executable, "-m", "agentcore", "run", f"{HERE}:big"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.read(10) == b'{"lines": '
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert process.wait(10) in (OK, FAILED)
    assert errors == b""


# On a terminal.


def on_terminal(
    *arguments: str, also_output: bool = False, environment: dict[str, str] | None = None
) -> tuple[int, str, str]:
    """Run the command with a terminal of 60 columns as its standard error; return its code, its output, what was drawn."""
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "agentcore", "run", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=theirs if also_output else subprocess.PIPE,
        stderr=theirs,
        cwd=ROOT,
        env={**os.environ, "TERM": "xterm", **(environment or {})},
    )
    os.close(theirs)
    drawn = b""
    while True:
        try:
            block = os.read(ours, 65536)
        except OSError as error:
            if error.errno != errno.EIO:  # how Linux says that the other side was closed
                raise
            break
        if not block:
            break
        drawn += block
    os.close(ours)
    output = "" if process.stdout is None else process.stdout.read().decode()
    if process.stdout is not None:
        process.stdout.close()
    return process.wait(10), output, drawn.decode()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_progress_on_a_terminal(backend: str) -> None:
    """One line that is drawn over, then wiped; the output in the pipe has none of it."""
    code, output, drawn = on_terminal(f"{HERE}:family", "--backend", backend)
    assert (code, json.loads(output)) == (OK, {"children": 3})
    assert "family 0/1" in drawn
    assert "child 3/4" in drawn
    assert "\n" not in drawn
    assert drawn.split("\r")[-2].strip() == ""
    assert max(map(len, drawn.split("\r"))) < 60, "wider than the terminal"
    assert drawn.endswith("\r")


def test_progress_is_wiped_before_an_error() -> None:
    """The message stands on a line of its own."""
    code, _, drawn = on_terminal(f"{HERE}:fail")
    assert code == FAILED
    assert drawn.split("\r")[-2].startswith("agentcore: task ")


def test_a_table_on_a_terminal() -> None:
    """Output and progress on one terminal: the table comes after the progress is gone."""
    code, _, drawn = on_terminal(f"{HERE}:strange", also_output=True)
    assert code == OK
    assert "1,234,567" in drawn
    assert "\x1b[2J" not in drawn
    assert "\x1b[31m" not in drawn


def event(kind: str, task_type: str = "t") -> Event:
    """Make an event of a task."""
    return Event(sequence=1, event_type=kind, at=to_datetime(0), data={"type": task_type})


def test_the_line_counts_by_type() -> None:
    """What has ended of what was accepted, in order of appearance, and the failures."""
    progress = Progress(io.StringIO(), 40)
    assert progress.line() == ""
    for one in (
        event("task_accepted", "a"),
        event("task_accepted", "a"),
        event("task_started", "a"),
        event("task_accepted", "b"),
        event("task_completed", "a"),
        event("task_failed", "a"),
        event("task_canceled", "b"),
        event("runtime_closed"),
    ):
        progress(one)
    assert progress.line() == "a 2/2  b 1/1  1 failed"


@pytest.mark.parametrize("width", [1, 2, 20])
def test_the_line_fits_the_terminal(width: int) -> None:
    """It never reaches the last column, where a terminal would begin another line; and it has no control characters."""
    stream = io.StringIO()
    progress = Progress(stream, width)
    progress(event("task_accepted", "a long name \x1b[2J\n of a task"))
    progress.clear()
    lines = stream.getvalue().split("\r")
    assert max(map(len, lines)) <= width - 1
    assert all(line.isprintable() for line in lines)


def test_events_come_faster_than_they_are_drawn() -> None:
    """A thousand events make few drawings."""
    stream = io.StringIO()
    progress = Progress(stream, 40)
    for _ in range(1000):
        progress(event("task_accepted"))
    assert stream.getvalue().count("\r") < 20


def test_the_module_is_the_command(tmp_path: Path) -> None:
    """``python -m agentcore`` and the installed script are one."""
    script = Path(sys.executable).with_name("agentcore")
    done = subprocess.run([script, "run", f"{HERE}:echo"], capture_output=True, check=True, cwd=ROOT, timeout=10)
    assert json.loads(done.stdout) == {}
