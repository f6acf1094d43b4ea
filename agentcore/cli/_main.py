"""Reads the command line and runs what it names."""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final, TextIO

from agentcore import AgentRuntime, ConfigurationError, CoreError, RuntimeConfig, TaskExecutionError, run
from agentcore.cli._progress import Progress
from agentcore.cli._render import Canvas, render
from agentcore.cli._target import load_target, read_input, register_target
from agentcore.errors import text_of

OK: Final = 0
FAILED: Final = 1
USAGE: Final = 2
TIMEOUT: Final = 124
INTERRUPTED: Final = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: without the program's name; those of the process if omitted.

    Returns:
        The exit code.
    """
    try:
        return _run(_parser().parse_args(arguments))
    except ConfigurationError as error:
        return _say(f"{error}", USAGE)
    except KeyboardInterrupt:  # before or after the run itself, which has a way of its own
        return _say("interrupted", INTERRUPTED)
    except OSError as error:
        # Python would try to write the rest, and complain, once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):  # whoever reads our output has had enough, as `head` does
            return FAILED
        return _say(f"the output cannot be written: {error}", FAILED)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="agentcore", description="Run multi-agent programs.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser(
        "run",
        help="run a function or an agent as a task",
        description="Run a function or an agent as a task and print its output.",
        epilog="exit codes: 0 it worked, 1 the task failed, 2 the call was wrong, 124 the time was over, 130 interrupted; "
        "the first Ctrl-C lets running tasks end, the second cancels them, the third exits at once",
    )
    command.add_argument("target", help="module:object or file.py:object; a function (input[, context]) or an agent")
    command.add_argument(
        "--input",
        default="{}",
        help="- for JSON on standard input, a .json file, a JSON object, or a path, which arrives as {'path': ...}",
    )
    command.add_argument("--backend", choices=("asyncio", "trio"), default="asyncio")
    command.add_argument("--timeout", type=_seconds, help="seconds that the whole may take")
    command.add_argument("--grace", type=_seconds, default=10.0, help="seconds that tasks may go on for after Ctrl-C")
    command.add_argument("--in-flight", type=_count, default=64, help="tasks at a time")
    command.add_argument(
        "--output", choices=("auto", "json", "table"), default="auto", help="auto: a table on a terminal, else JSON"
    )
    return parser


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number of seconds, 0 or more: got {text!r}")
    return value


def _count(text: str) -> int:
    value = int(text) if text.isascii() and text.isdigit() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number, 1 or more: got {text!r}")
    return value


def _run(options: argparse.Namespace) -> int:
    name, target = load_target(options.target)
    given = read_input(options.input, sys.stdin)
    progress = Progress(sys.stderr, _columns(sys.stderr)) if sys.stderr.isatty() else None

    async def program(runtime: AgentRuntime) -> dict[str, Any]:
        register_target(runtime, name, target)
        if progress is not None:
            runtime.subscribe(progress)
        return await runtime.run(name, given, timeout=options.timeout)

    config = RuntimeConfig(grace=options.grace, in_flight=options.in_flight)
    output, failure, code = None, "", OK
    try:
        output = run(program, backend=options.backend, config=config)
    except BaseException as error:  # noqa: ASYNC103, BLE001 - the end of the program; each kind has its exit code
        failure, code = _explain(error)
    if progress is not None:
        progress.clear()
    if output is None:
        return _say(failure, code)
    return _print(output, options.output)


def _explain(error: BaseException) -> tuple[str, int]:
    """Return what to say of the error that a run ended with, and the exit code."""
    notes = "; ".join(getattr(error, "__notes__", ()))
    match error:
        case ConfigurationError():
            raise error
        case TaskExecutionError():
            timed_out = (error.details.get("error") or {}).get("deadline") == "timeout"
            return str(error), TIMEOUT if timed_out else FAILED
        case KeyboardInterrupt():
            return notes or "interrupted", INTERRUPTED
        case SystemExit():
            return (notes, INTERRUPTED) if notes else (f"the program exited by itself with {error.code!r}", FAILED)
        case CoreError() | BaseExceptionGroup():
            return str(error), FAILED
        case _:
            raise error


def _columns(stream: TextIO) -> int:
    """Return the width of the terminal behind a stream, which need not be the one behind standard output."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except OSError:
        return 80


def _print(output: dict[str, Any], form: str) -> int:
    # A report must not fail for a file name in it that the stream cannot say. Lone surrogates are the only such thing in
    # UTF-8, and what they are replaced by is JSON's own escape for them; other encodings get nothing but ASCII.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    terminal = sys.stdout.isatty()
    ascii_only = (sys.stdout.encoding or "").lower().replace("-", "") != "utf8"
    # Whole before the first byte is written: half a document is none.
    whole = io.StringIO()
    try:
        if form == "table" or (form == "auto" and terminal):
            width = _columns(sys.stdout) if terminal else 100
            render(output, whole, Canvas(width, colours=terminal, ascii_only=ascii_only))
        else:
            json.dump(_to_json(output), whole, ensure_ascii=ascii_only, allow_nan=False)
            whole.write("\n")
    except (ValueError, RecursionError) as error:
        return _say(f"the output cannot be shown: {type(error).__name__}: {error}", FAILED)
    sys.stdout.write(whole.getvalue())
    sys.stdout.flush()
    return OK


def _to_json(value: Any) -> Any:
    """Return a value as JSON can say it: what it knows no word for becomes text, numbers that are none become null."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {str(key): _to_json(item) for key, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_to_json(item) for item in value]
        case _:
            return text_of(value)


def _say(text: str, code: int) -> int:
    sys.stderr.write(f"agentcore: {text}\n")
    return code
