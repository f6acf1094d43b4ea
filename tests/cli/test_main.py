"""The command line: what it runs, what it says, how it ends."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from agentcore.cli import main

ROOT = Path(__file__).parent.parent.parent
HERE = "tests.cli.targets"
FILE = str(Path(__file__).with_name("targets.py"))
OK, FAILED, USAGE, TIMEOUT, INTERRUPTED = 0, 1, 2, 124, 130

both = pytest.mark.parametrize("backend", ["asyncio", "trio"])


def command(
    *arguments: str, given: bytes | None = None, environment: dict[str, str] | None = None, cwd: Path = ROOT
) -> tuple[int, str, str]:
    """Run the command as a process; return its exit code, its output and what it complained of."""
    done = subprocess.run(
        [sys.executable, "-m", "agentcore", "run", *arguments],
        input=given,
        stdin=subprocess.DEVNULL if given is None else None,
        capture_output=True,
        timeout=10,
        check=False,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
    )
    return done.returncode, done.stdout.decode("utf-8", "surrogateescape"), done.stderr.decode()


def refused(capsys: pytest.CaptureFixture[str], arguments: Sequence[str]) -> str:
    """Run the command in this process; check that it calls the call wrong, in one line, and return that."""
    assert main(["run", *arguments]) == USAGE
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.startswith("agentcore: ")
    assert errors.count("\n") == 1
    return errors


# Targets.


@both
@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (f"{HERE}:echo", {"n": 1}),
        (f"{HERE}:plain", {"n": 1}),
        (f"{HERE}:Space.nested", {"n": 1}),
        (f"{HERE}:Echo", {"by": "Echo", "n": 1}),
        (f"{FILE}:echo", {"n": 1}),
    ],
)
def test_targets(target: str, expected: dict[str, Any], backend: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Functions, nested ones and classes of agents, in modules and in files, on both backends: one line of JSON."""
    assert main(["run", target, "--input", '{"n": 1}', "--backend", backend]) == OK
    output, errors = capsys.readouterr()
    assert (json.loads(output), output.count("\n"), errors) == (expected, 1, "")


def test_an_agent_as_a_target() -> None:
    """An instance serves, and is terminated at the end."""
    code, output, errors = command(f"{HERE}:agent", "--input", '{"n": 1}')
    assert (code, json.loads(output), errors) == (OK, {"by": "instance", "n": 1}, "")


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("nothing", "read module:object or file.py:object"),
        (":echo", "read module:object or file.py:object"),
        (f"{HERE}:", "read module:object or file.py:object"),
        ("nowhere.py:main", "name a file that is there"),
        ("no.such.module:main", "ModuleNotFoundError"),
        (f"{HERE}:missing", "there is "),
        (f"{HERE}:echo.missing", f"name something in {HERE}"),
        (f"{HERE}:VALUE", "this is 5"),
        (f"{HERE}:VALUE.missing", f"name something in {HERE}"),
        (f"{HERE}:Nothing", "name a function, a class of agents or an agent"),
    ],
)
def test_unusable_targets(target: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each is told with what was given and what would do."""
    errors = refused(capsys, [target])
    assert message in errors
    assert "got " in errors


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def broken(:", "SyntaxError"),
        ("1 / 0", "ZeroDivisionError"),
        ("import sys; sys.exit(0)", "SystemExit"),
        ("import no_such_module_anywhere", "no_such_module_anywhere"),
    ],
)
def test_modules_that_do_not_import(source: str, message: str, tmp_path: Path) -> None:
    """Not to be imported is a wrong call, whatever the module does; exit code 0 would hide it."""
    (tmp_path / "broken_target.py").write_text(source, encoding="utf-8")
    for target in ("broken_target.py:main", "broken_target:main"):
        code, output, errors = command(target, cwd=tmp_path)
        assert (code, output) == (USAGE, "")
        assert message in errors
        assert "Traceback" not in errors


@pytest.mark.parametrize("name", ["json", "types", "agentcore", "anyio"])
def test_a_file_may_be_called_like_a_module(name: str, tmp_path: Path) -> None:
    """A file that is named by its path takes no other module's place."""
    path = tmp_path / "somewhere" / f"{name}.py"
    path.parent.mkdir()
    path.write_text("async def main(given):\n    import json\n    return json.loads('{\"n\": 1}')\n", encoding="utf-8")
    code, output, errors = command(f"{path}:main", cwd=tmp_path)
    assert (code, errors) == (OK, "")
    assert json.loads(output) == {"n": 1}


def test_a_file_finds_what_lies_beside_it(tmp_path: Path) -> None:
    """As if it were run by itself, from any directory."""
    (tmp_path / "beside_it.py").write_text("N = 7\n", encoding="utf-8")
    (tmp_path / "the_target.py").write_text(
        "import beside_it\nasync def main(given):\n    return {'n': beside_it.N}\n", encoding="utf-8"
    )
    code, output, _ = command(f"{tmp_path / 'the_target.py'}:main")
    assert (code, json.loads(output)) == (OK, {"n": 7})


# Input.


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Give a function that sets what standard input has."""

    def put(content: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))

    return put


def echoed(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    """Run ``echo`` with these arguments and return what it got."""
    assert main(["run", f"{HERE}:echo", *arguments]) == OK
    return json.loads(capsys.readouterr().out)


def test_input_of_every_kind(tmp_path: Path, stdin: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing, standard input, a file, an object, a path."""
    file = tmp_path / "in.json"
    file.write_text('{"from": "file \u00e9"}', encoding="utf-8")
    stdin(b'{"from": "stdin"}\n')
    assert echoed(capsys) == {}
    assert echoed(capsys, "--input", "-") == {"from": "stdin"}
    assert echoed(capsys, "--input", str(file)) == {"from": "file \u00e9"}
    assert echoed(capsys, "--input", ' {"from": "object"}') == {"from": "object"}
    assert echoed(capsys, "--input", str(tmp_path)) == {"path": str(tmp_path)}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("{", "be JSON, but --input is not"),
        ('{"a": 1} trailing', "be JSON"),
        ("nowhere.json", "name a file that can be read"),
        ('{"a":' + "[" * 100_000, "be JSON"),
    ],
)
def test_unusable_input(given: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Said in one line, with the beginning of what was given."""
    assert message in refused(capsys, [f"{HERE}:echo", "--input", given])


@pytest.mark.parametrize("content", [b"", b"[1]", b"null", b"{'a': 1}", b'"text"', b"\xff\xfe{}", b'{"a": "\xff"}'])
@pytest.mark.parametrize("way", ["standard input", "file"])
def test_unusable_content(
    content: bytes, way: str, tmp_path: Path, stdin: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is no JSON object is refused, undecodable bytes too, from wherever it comes."""
    file = tmp_path / "in.json"
    file.write_bytes(content)
    stdin(content)
    assert "--input must " in refused(capsys, [f"{HERE}:echo", "--input", str(file) if way == "file" else "-"])


def test_a_directory_that_is_called_like_a_json_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It cannot be read, and that is said."""
    (tmp_path / "d.json").mkdir()
    assert "name a file that can be read" in refused(capsys, [f"{HERE}:echo", "--input", str(tmp_path / "d.json")])


# Options.


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["run"],
        ["walk"],
        *[
            ["run", f"{HERE}:echo", *more]
            for more in (
                ["--backend", "twisted"],
                ["--timeout", "-1"],
                ["--timeout", "nan"],
                ["--timeout", "soon"],
                ["--grace", "inf"],
                ["--in-flight", "0"],
                ["--in-flight", "many"],
                ["--output", "xml"],
                ["--unknown"],
            )
        ],
    ],
)
def test_wrong_calls(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """The usage and what is wrong go to the standard error, and the code is 2."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == USAGE
    output, errors = capsys.readouterr()
    assert output == ""
    assert "usage: agentcore" in errors
    assert "error: " in errors


def test_help_tells_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    """As promised: what each means."""
    with pytest.raises(SystemExit) as caught:
        main(["run", "--help"])
    assert caught.value.code == OK
    text = " ".join(capsys.readouterr().out.split())
    assert "0 it worked, 1 the task failed, 2 the call was wrong, 124 the time was over, 130 interrupted" in text


# Ends.


@both
def test_a_task_that_fails(backend: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Code 1, and one line that says what went wrong; no traceback, no output."""
    assert main(["run", f"{HERE}:fail", "--backend", backend]) == FAILED
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.startswith("agentcore: task ")
    assert "ValueError: not today" in errors
    assert "Traceback" not in errors


@both
def test_the_time_is_over(backend: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Code 124, and which deadline it was."""
    assert main(["run", f"{HERE}:hang", "--timeout", "0.02", "--backend", backend]) == TIMEOUT
    assert "0.02 s" in capsys.readouterr().err


def test_a_timeout_of_the_tasks_own_is_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    """Not the time of the call was over."""
    assert main(["run", f"{HERE}:inner_timeout", "--timeout", "10"]) == FAILED
    assert "something of my own" in capsys.readouterr().err


def test_a_failure_in_the_background(capsys: pytest.CaptureFixture[str]) -> None:
    """The target succeeded, but something that it started did not: that is a failure, and told."""
    assert main(["run", f"{HERE}:background"]) == FAILED
    output, errors = capsys.readouterr()
    assert output == ""
    assert "not today" in errors


@both
def test_a_target_that_exits_has_failed(backend: str) -> None:
    """`sys.exit(3)` in a task is no interruption."""
    code, output, errors = command(f"{HERE}:leave", "--backend", backend)
    assert (code in (FAILED, 3), output) == (True, "")
    assert "interrupted" not in errors
    assert "Traceback" not in errors


@both
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption(number: signal.Signals, backend: str) -> None:
    """Code 130, and the names of what was cut short."""
    process = subprocess.Popen(
        [sys.executable, "-m", "agentcore", "run", f"{HERE}:hang", "--grace", "0.05", "--backend", backend],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        assert process.stderr is not None
        assert process.stderr.readline() == "ready\n"
        process.send_signal(number)
        output, errors = process.communicate(timeout=5)
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, output) == (INTERRUPTED, "")
    assert f"interrupted by {number.name}" in errors
    assert "cut short: hang " in errors
    assert "Traceback" not in errors
