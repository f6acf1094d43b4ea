"""Survey a folder by a whole system: agents and handlers, a pool that reads, a pool that computes, a circuit around the disk.

    python examples/system.py .
    AGENTCORE_CPU_WORKERS=2 python examples/system.py /usr/share/doc --backend trio

`initialize_system` starts everything, as agentcore.toml and the environment want it; `execute_task` has a task executed;
leaving the block lets what still runs end, and closes everything in order: `shutdown_system` does the same without a block.
Agents and handlers find the pools by their names, so nothing has to be handed through. The report is one JSON document.
"""

import argparse
import hashlib
import json
import os
import re
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import anyio

from agentcore import (
    AgentContext,
    AgentResult,
    BaseAgent,
    CircuitOpenError,
    TaskHandle,
    TaskPriority,
    check_cancelled,
    execute_task,
    get_circuit_breaker,
    get_registry,
    initialize_system,
)

Json = dict[str, Any]

SAMPLE = 1 << 20  # Bytes of a file that are looked at.
AT_ONCE = 64  # Files that are in memory at a time, at most.
SKIPPED = {".git", ".venv", "node_modules", "__pycache__"}
WORD = re.compile(rb"[a-z]{4,}")

agents = get_registry("agents")
handlers = get_registry("task_handlers")


# ------------------------------------------------------------------------------------------- what is done, piece by piece


def list_files(folder: str) -> list[str]:
    """Return the regular files below a folder. Blocks, so it is a job for a thread."""
    found = []
    for place, folders, names in os.walk(folder):
        check_cancelled()  # Whoever wanted the list may have gone.
        folders[:] = sorted(set(folders) - SKIPPED)
        found += [str(Path(place, name)) for name in sorted(names) if Path(place, name).is_file()]
    return found


async def read(path: str) -> bytes | str:
    """Return the beginning of a file, or why it may not be read. What speaks against the disk is raised."""
    try:
        async with await anyio.open_file(path, "rb") as file:
            return await file.read(SAMPLE)
    except (FileNotFoundError, PermissionError) as error:
        return str(error.strerror)


def measure(content: bytes) -> Json:
    """Compute something of a content; the greater part of it without the interpreter's lock, so that threads are enough."""
    words = Counter(WORD.findall(content.lower())) if b"\0" not in content else Counter[bytes]()
    return {
        "bytes": len(content),
        "packed": len(zlib.compress(content)),
        "digest": hashlib.sha256(content).hexdigest(),
        "words": {word.decode(): count for word, count in words.most_common(50)},
    }


# ------------------------------------------------------------------------------------------ who does it: a handler, agents


@handlers.decorator("examine")
async def examine(asked: Json, context: AgentContext) -> Json:
    """Read a file by one pool, behind the circuit, and measure it by the other."""
    circuit = get_circuit_breaker("api_service")
    try:
        content = await circuit.execute(context.pool("io_tasks").asubmit, read, asked["path"])
    except CircuitOpenError:
        return {"trouble": "not tried: the disk is in trouble"}
    except OSError as error:
        return {"trouble": str(error.strerror)}
    if isinstance(content, str):
        return {"trouble": content}
    row: Json = await context.pool("cpu_tasks").asubmit(measure, content)
    return row


class SurveyAgent(BaseAgent):
    """What both agents have in common."""

    async def initialize(self) -> bool:
        """Have nothing to set up."""
        return True

    async def handle_error(self, error: Exception, context: AgentContext) -> AgentResult:
        """Make the error the result of the task."""
        return AgentResult.error_result(error)


@agents.decorator("survey_agent")
class Surveyor(SurveyAgent):
    """Has every file of a folder examined, many at a time, and the report made."""

    async def process(self, context: AgentContext) -> AgentResult:
        """Start a task for each file, so many at once; a file that fails is a trouble, and no more."""
        rows: Json = {}
        started: dict[str, TaskHandle] = {}
        async with context.group("collect") as group:
            for path in await context.pool("cpu_tasks").asubmit(list_files, context.input["path"]):
                if len(started) == AT_ONCE:
                    await self.take(started, rows)
                started[path] = group.start("examine", {"path": path})
            while started:
                await self.take(started, rows)
        return AgentResult.success_result(await context.run("report", {"path": context.input["path"], "rows": rows}))

    @staticmethod
    async def take(started: dict[str, TaskHandle], rows: Json) -> None:
        """Wait for the file that was started first."""
        path = next(iter(started))
        result = await started.pop(path).wait()
        rows[path] = result.output if result.success else {"trouble": str(result.error)}


@agents.decorator("report_agent")
class Reporter(SurveyAgent):
    """Makes the report."""

    async def process(self, context: AgentContext) -> AgentResult:
        """Add everything up."""
        rows: Json = context.input["rows"]
        measured = {path: row for path, row in rows.items() if "trouble" not in row}
        words: Counter[str] = Counter()
        copies: dict[str, list[str]] = {}
        for path, row in measured.items():
            words.update(row["words"])
            if row["bytes"]:
                copies.setdefault(row["digest"], []).append(path)
        report = {
            "path": context.input["path"],
            "files": len(rows),
            "bytes": sum(row["bytes"] for row in measured.values()),
            "packed": sum(row["packed"] for row in measured.values()),
            "words": dict(sorted(words.items(), key=lambda item: (-item[1], item[0]))[:10]),
            "copies": sorted(sorted(paths) for paths in copies.values() if len(paths) > 1),
            "troubles": {path: row["trouble"] for path, row in rows.items() if "trouble" in row},
        }
        return AgentResult.success_result(report)


# ---------------------------------------------------------------------------------------------------------- the program


async def survey(folder: str) -> Json:
    """Start the system, have one task executed, shut the system down."""
    async with await initialize_system():
        return await execute_task("survey", {"path": folder}, TaskPriority.HIGH)


def main() -> None:
    """Read the command line, and print the report."""
    parser = argparse.ArgumentParser(description="Survey a folder.")
    parser.add_argument("path", help="the folder")
    parser.add_argument("--backend", choices=("asyncio", "trio"), default="asyncio", help="the event loop")
    asked = parser.parse_args()
    if not Path(asked.path).is_dir():
        parser.error(f"path must be that of a folder that is there: got {asked.path!r}; name one")
    # What is no text in a path is escaped.
    print(json.dumps(anyio.run(survey, asked.path, backend=asked.backend), indent=1))


if __name__ == "__main__":
    main()
