"""Reads the command line and runs what it names."""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import sys
from collections.abc import Sequence
from typing import Any, Final

from agentcore import AgentRuntime, ConfigurationError, CoreError, RuntimeConfig, TaskExecutionError, run
from agentcore.cli._progress import Progress
from agentcore.cli._render import render
from agentcore.cli._target import load_target, read_input, register_target

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
    options = _parser().parse_args(arguments)
    try:
        return _run(options)
    except ConfigurationError as error:
        return _say(f"{error}", USAGE)
    except BrokenPipeError:
        # Whoever reads our output has gone, as `head` does. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


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
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number of seconds, 0 or more: got {text!r}")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number, 1 or more: got {text!r}")
    return value


def _run(options: argparse.Namespace) -> int:
    name, target = load_target(options.target)
    given = read_input(options.input, sys.stdin)
    progress = Progress(sys.stderr, shutil.get_terminal_size().columns) if sys.stderr.isatty() else None

    async def program(runtime: AgentRuntime) -> dict[str, Any]:
        register_target(runtime, name, target)
        if progress is not None:
            runtime.subscribe(progress)
        return await runtime.run(name, given, timeout=options.timeout)

    try:
        output = run(
            program,
            backend=options.backend,
            config=RuntimeConfig(grace=options.grace, in_flight=options.in_flight),
        )
    except TaskExecutionError as error:
        timed_out = (error.details.get("error") or {}).get("deadline") == "timeout"
        return _say(str(error), TIMEOUT if timed_out else FAILED)
    except (KeyboardInterrupt, SystemExit) as error:
        return _say("; ".join(getattr(error, "__notes__", ["interrupted"])), INTERRUPTED)
    except CoreError as error:
        return _say(str(error), FAILED)
    finally:
        if progress is not None:
            progress.clear()
    _print(output, options.output)
    return OK


def _print(output: dict[str, Any], form: str) -> None:
    if form == "table" or (form == "auto" and sys.stdout.isatty()):
        render(output, sys.stdout)
    else:
        json.dump(output, sys.stdout, ensure_ascii=False, default=str, indent=None)
        sys.stdout.write("\n")
    sys.stdout.flush()


def _say(text: str, code: int) -> int:
    sys.stderr.write(f"agentcore: {text}\n")
    return code
