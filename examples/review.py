"""Review the Python code of a folder: lines, functions, the longest, the deepest; what looks odd is measured once more.

    python examples/review.py .
    python examples/review.py src --first src/app.py --backend trio

The planner finds the files and submits a task for each; workers measure them in a pool of processes; the reviewer looks at
the figures, and sends back what cannot be true or is long or deep, for a closer look that takes longer. What is named by
``--first`` is submitted last, and overtakes whatever still waits. How far it is stands on stderr, the report on stdout.
"""

import argparse
import ast
import io
import json
import os
import sys
import tokenize
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import agentcore
from agentcore import AgentConfig, AgentContext, AgentResult, AgentRuntime, BaseAgent, ProcessWorkerPoolConfig

Json = dict[str, Any]
LONG, DEEP, MOST = 60, 5, 5
FIGURES = ("lines", "functions", "longest", "depth")
SKIPPED = {".git", ".nox", ".tox", ".venv", "venv", "node_modules", "__pycache__"}
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
LOOPS = (ast.For, ast.AsyncFor, ast.While, ast.Try, ast.TryStar)
BRANCHES = (*LOOPS, ast.If, ast.match_case, ast.IfExp, ast.BoolOp)
BLOCKS = (*FUNCTIONS, *LOOPS, ast.If, ast.ClassDef, ast.With, ast.AsyncWith, ast.Match)


def measure(path: str) -> Json:
    """Return the figures of a file; of its functions none if it cannot be parsed. Computes, so it is a job for a process."""
    content = Path(path).read_bytes()
    row: Json = {"path": path, **dict.fromkeys(FIGURES, 0), "lines": content.count(b"\n")}
    try:
        functions = table(content)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return {**row, "trouble": f"{type(error).__name__}: {error}"}
    longest, depth = (max(map(itemgetter(key), functions), default=0) for key in ("lines", "depth"))
    return {**row, "functions": len(functions), "longest": longest, "depth": depth}


def inspect(path: str) -> Json:
    """Return the figures of a file and its worst functions; of one that cannot be parsed, what its words tell."""
    row, content = measure(path), Path(path).read_bytes()
    if "trouble" not in row:
        return {**row, "worst": sorted(table(content), key=itemgetter("branches", "lines"), reverse=True)[:3]}
    with suppress(tokenize.TokenError, SyntaxError, UnicodeDecodeError):  # Up to there it tells something.
        for token in tokenize.tokenize(io.BytesIO(content).readline):
            row["functions"] += token.type == tokenize.NAME and token.string == "def"
    return row


def table(content: bytes) -> list[Json]:
    """Return a row for each function: how long it is, how deep its blocks are nested, how many branches it has."""
    with warnings.catch_warnings(action="ignore"):  # What is doubtful in a source is not ours to warn of.
        todo: list[tuple[ast.AST, list[Json], int]] = [(ast.parse(content), [], 0)]
    rows: list[Json] = []
    while todo:
        node, around, depth = todo.pop()
        if isinstance(node, FUNCTIONS):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            around = [*around, {"name": node.name, "line": node.lineno, "lines": lines, "depth": 0, "branches": 0}]
            rows.append(around[-1])
        for row in around:
            row["depth"] = max(row["depth"], depth)
            row["branches"] += isinstance(node, BRANCHES)
        for child in ast.iter_child_nodes(node):
            # An elif is a block of its own in the tree, and none to who reads it.
            chained = isinstance(node, ast.If) and isinstance(child, ast.If) and child.col_offset == node.col_offset
            todo.append((child, around, depth + (isinstance(child, BLOCKS) and not chained)))
    return rows


class Part(BaseAgent):
    """What the agents have in common."""

    async def initialize(self) -> bool:
        """Have nothing to set up."""
        return True

    async def handle_error(self, error: Exception, context: AgentContext) -> AgentResult:
        """Make the error the result of the task."""
        return AgentResult.error_result(error)


class Planner(Part):
    """Finds the files, has each reviewed, and adds everything up."""

    async def process(self, context: AgentContext) -> AgentResult:
        """Submit all there is, the most urgent last."""
        files, first = await context.pool("folders", "thread").asubmit(list_files, **context.input)
        async with context.group("collect") as group:
            handles = {path: group.start("review", {"path": path}) for path in files if path != first}
            if first:
                handles[first] = group.start("review", {"path": first}, priority=agentcore.TaskPriority.CRITICAL)
            rows, back = list[Json](), 0
            for path, handle in handles.items():
                end = await handle.wait()
                rows.append(end.output or {**dict.fromkeys(FIGURES, 0), "path": path, "trouble": str(end.error)})
                back += "sent_back" in rows[-1]
                context.progress(f"{len(rows)} of {len(handles)} files, {back} sent back")
        report: Json = {"files": len(rows), **{key: sum(row[key] for row in rows) for key in FIGURES[:2]}}
        for key in FIGURES[2:]:
            report[key] = {row["path"]: row[key] for row in sorted(rows, key=itemgetter(key), reverse=True)[:MOST]}
        for key in ("worst", "sent_back", "trouble"):
            report[key] = {row["path"]: row[key] for row in rows if key in row}
        return AgentResult.success_result({**report, "first": rows[-1] if first else None})


class Worker(Part):
    """Has files measured in the pool of processes, in one way."""

    def __init__(self, way: Callable[[str], Json], config: AgentConfig) -> None:
        super().__init__(config)
        self.way = way
        self.begun = 0

    async def process(self, context: AgentContext) -> AgentResult:
        """Measure a file; note as which one."""
        self.begun = place = self.begun + 1
        row = await context.pool("metrics").asubmit(self.way, context.input["path"])
        return AgentResult.success_result({**row, "place": place})


class Reviewer(Part):
    """Looks at figures, and has them taken once more where they are odd."""

    async def process(self, context: AgentContext) -> AgentResult:
        """Have a file measured, and maybe inspected."""
        row = await context.run("metrics", context.input)
        if why := doubt(row):
            row = {**await context.run("inspect", context.input), "sent_back": why, "place": row["place"]}
        return AgentResult.success_result(row)


def doubt(row: Json) -> str | None:
    """Return why a row should not be believed as it is, or is worth a closer look."""
    longest, lines, depth = row["longest"], row["lines"], row["depth"]
    if "trouble" in row or longest > lines + 1:
        return f"implausible: {row.get('trouble') or f'a function of {longest} lines among {lines}'}"
    return f"long: {longest} lines" if longest > LONG else f"deep: {depth} blocks" if depth > DEEP else None


def list_files(path: str, first: str | None) -> tuple[list[str], str | None]:
    """Return the Python files below a folder, and the first as it is called there. Waits for the disk: a job for a thread."""
    found = (file for file in Path(path).rglob("*.py") if not SKIPPED.intersection(file.relative_to(path).parts))
    files = sorted(str(file) for file in found if file.is_file())
    return files, first and next((file for file in files if os.path.realpath(file) == os.path.realpath(first)), first)


async def start(runtime: AgentRuntime, workers: int | None = None) -> None:
    """Have a runtime do reviews, whatever else it does: ``await runtime.run("plan", {"path": ..., "first": None})``."""
    runtime.pool("metrics", "process", ProcessWorkerPoolConfig(workers=workers))
    ways = {"metrics": partial(Worker, measure), "inspect": partial(Worker, inspect)}
    for name, make in {"plan": Planner, "review": Reviewer, **ways}.items():
        await runtime.spawn(make, AgentConfig(name, "review", max_concurrency=None))


def show(event: agentcore.Event) -> None:
    """Tell how far it is."""
    if event.event_type == "task_progress":
        print(f"\r{event.data['value']}", end="", file=sys.stderr, flush=True)


def main() -> None:
    """Read the command line, and print the report."""
    parser = argparse.ArgumentParser(description="Review the Python code of a folder.")
    parser.add_argument("path", help="the folder")
    parser.add_argument("--first", type=lambda path: str(Path(path)), help="a file that cannot wait")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="how many processes")
    parser.add_argument("--backend", choices=("asyncio", "trio"), default="asyncio", help="the event loop")
    asked = parser.parse_args()
    if not Path(asked.path).is_dir():
        parser.error(f"path must be that of a folder that is there: got {asked.path!r}; name one")
    if asked.workers < 1:
        parser.error(f"--workers must be 1 or more: got {asked.workers}; leave it out for one a processor")

    async def program(runtime: AgentRuntime) -> Json:
        runtime.subscribe(show)
        await start(runtime, asked.workers)
        return await runtime.run("plan", {"path": asked.path, "first": asked.first})

    # No more is begun than the processes can do, so that what is urgent overtakes the rest.
    report = agentcore.run(program, backend=asked.backend, config=agentcore.RuntimeConfig(in_flight=asked.workers))
    print(file=sys.stderr)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
