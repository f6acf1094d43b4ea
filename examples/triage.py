"""Say what is in a directory: kinds, sizes, complexity, duplicates, unfinished places, troubles.

    agentcore run examples/triage.py:workflow --input .
    agentcore run examples/triage.py:workflow --input '{"path": "/usr/lib", "deadline": 2}'

Three agents share the work. The planner finds the files, readers have them measured side by side, the summariser makes the
report. The walk through the folders waits for the disk, so it runs in a worker thread. To measure a file is to compute, so
that runs in a pool of processes: on all CPUs, and where a file that takes too long is ended with its process, whatever it
does. A file that cannot be read, or not in time, is a line among the findings; the rest of the report is complete.
"""

import ast
import errno
import fnmatch
import hashlib
import heapq
import os
import re
import stat
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from operator import itemgetter
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import attrs
from anyio.from_thread import check_cancelled

from agentcore import (
    AgentContext,
    AgentResult,
    BaseAgent,
    ConfigurationError,
    CoreError,
    ProcessWorkerPoolConfig,
    TaskHandle,
    WorkerCrashedError,
    get_registry,
)

Json = dict[str, Any]

PARALLEL = max(8, 2 * (os.cpu_count() or 1))  # Batches at once: no process waits for a file.
BATCH_FILES, BATCH_BYTES, CHUNK = 64, 1 << 23, 1 << 20
SOURCE_LIMIT = 1 << 20  # Parsing a MiB of Python takes half a second.
SKIPPED = [".git", ".hg", ".svn", ".venv", "venv", "node_modules", "__pycache__", ".*_cache", ".hypothesis", ".[nt]ox"]


# What may be asked: what holds if nothing is said, the rule, and whether a value keeps to it.
OPTIONS: dict[str, tuple[Any, str, Callable[[Any], bool]]] = {
    "path": (None, "the path of a directory that is there", lambda v: isinstance(v, str) and Path(v).is_dir()),
    "deadline": (10.0, "a number of seconds above zero", lambda v: type(v) in {int, float} and 0 < v < 1e9),
    "ignore": (SKIPPED, "a list of names or patterns", lambda v: isinstance(v, list) and {*map(type, v)} <= {str}),
    "largest": (10, "a whole number above zero", lambda v: type(v) is int and v > 0),
}

agents = get_registry("agents")
handlers = get_registry("task_handlers")


# ----------------------------------------------------------------------------------------- the workflow and its agents


async def workflow(given: Json, context: AgentContext) -> Json:
    """Plan, read side by side, summarise; return the report."""
    asked = options(given)
    plan = await context.run("plan", asked)
    tally = new_tally()
    reading: deque[TaskHandle] = deque()
    try:
        for batch in plan["batches"]:
            if len(reading) == PARALLEL:
                add(tally, await outcome(reading.popleft()), asked["largest"])
            reading.append(await context.submit("read", {**asked, "files": batch}))
        while reading:
            add(tally, await outcome(reading.popleft()), asked["largest"])
    finally:
        for handle in reading:
            handle.cancel("the triage has ended early")
    found = {"count": plan["count"], "findings": plan["findings"]}
    return await context.run("summarise", {**found, "tally": tally, "limit": asked["largest"]})


def options(given: Mapping[str, Any]) -> Json:
    """Complete what was asked; raise ConfigurationError for the first thing that is wrong in it."""
    for name in given:
        if name not in OPTIONS:
            message = f"triage option must be one of {', '.join(OPTIONS)}: got {name!r}; rename it"
            raise ConfigurationError(message, {"option": name})
    asked = {name: given.get(name, default) for name, (default, _, _) in OPTIONS.items()}
    for name, (default, rule, holds) in OPTIONS.items():
        if not holds(asked[name]):
            message = f"triage option {name!r} must be {rule}: got {asked[name]!r}; "
            message += "name one" if default is None else f"leave it out for {default!r}"
            raise ConfigurationError(message, {"option": name, "value": asked[name]})
    return asked


async def outcome(handle: TaskHandle) -> list[Json]:
    """Wait for one batch. If it was lost as a whole, each of its files is a finding."""
    try:
        rows: list[Json] = (await handle.result())["rows"]
        return rows
    except CoreError as error:
        return [not_read(Planned(*file), error.message) for file in handle.task.input["files"]]


class TriageAgent(BaseAgent):
    """What the three agents have in common."""

    async def initialize(self) -> bool:
        """Have nothing to set up."""
        return True

    async def handle_error(self, error: Exception, context: AgentContext) -> AgentResult:
        """Make the error the result of the task."""
        return AgentResult.error_result(error)


@agents.decorator("plan_agent")
class PlannerAgent(TriageAgent):
    """Finds the files and cuts them into batches."""

    async def process(self, context: AgentContext) -> AgentResult:
        """Have the tree walked."""
        return AgentResult.success_result(await context.run("walk", context.input))


@agents.decorator("read_agent")
class ReaderAgent(TriageAgent):
    """Measures the files of one batch; what fails with one of them does not harm the others."""

    async def process(self, context: AgentContext) -> AgentResult:
        """Have file after file measured, each under its own deadline."""
        asked, rows = context.input, []
        for file in map(Planned._make, asked["files"]):
            try:
                job = {"root": asked["path"], "file": file, "deadline": asked["deadline"]}
                rows.append(await context.run("measure", job))
            except CoreError as error:
                rows.append(not_read(file, loss(error.__cause__ or error, asked["deadline"])))
        return AgentResult.success_result({"rows": rows})


@handlers.decorator("measure")
async def measure_apart(job: Json, context: AgentContext) -> Json:
    """Have a file measured in a process, which has so many seconds from when it begins.

    Where this is cancelled, or the time is over, the process is killed, and another one takes its place: the next file
    does not notice. Pools are found by name, and all jobs of one have the same limit.
    """
    config = ProcessWorkerPoolConfig(task_timeout=job["deadline"], initializer=prepare_process)
    pool = context.pool(f"files within {job['deadline']:g} s", "process", config)
    row: Json = await pool.asubmit(measure, job)
    return row


def loss(why: BaseException, deadline: float) -> str:
    """Say why nothing is known of what is in a file."""
    if isinstance(why, TimeoutError):
        return f"it took more than {deadline:g} s"
    return "the process that measured it died" if isinstance(why, WorkerCrashedError) else reason(why)


@agents.decorator("summarise_agent")
class SummariserAgent(TriageAgent):
    """Makes the report."""

    async def process(self, context: AgentContext) -> AgentResult:
        """Put plan and tally together."""
        return AgentResult.success_result(report(**context.input))


# ----------------------------------------------------------------------------------------- how the planner finds files


class Planned(NamedTuple):
    """A file that is to be read."""

    path: str  # Below the root, as the system has it: bytes that are no UTF-8 are surrogates.
    size: int
    inode: str  # Which file it is, if another one has the same size so that they must be compared.


@handlers.decorator("walk")
def walk(asked: Json, check: Callable[[], object] = check_cancelled) -> Json:
    """Find the regular files below a directory and cut them into batches.

    A plain function, so it runs in a worker thread. Calling `check` now and then is what lets it be cancelled there.
    """
    tree = Tree(asked["path"], re.compile("|".join(map(fnmatch.translate, asked["ignore"])) or "(?!)"), check)
    while tree.folders:
        tree.enter(tree.folders.pop())
    sizes = Counter(file.size for file in tree.files)
    files = (file if file.size and sizes[file.size] > 1 else file._replace(inode="") for file in sorted(tree.files))
    count = {"path": shown(str(Path(tree.root).resolve())), **tree.count}
    return {"count": count, "batches": batches(files), "findings": tree.findings}


@attrs.define
class Tree:
    """What a walk has seen so far."""

    root: str
    skipped: re.Pattern[str]
    check: Callable[[], object]
    folders: list[str] = attrs.Factory(lambda: [""])
    files: list[Planned] = attrs.Factory(list)
    findings: list[Json] = attrs.Factory(list)
    count: Counter[str] = attrs.Factory(lambda: Counter(directories=0, links=0, special=0, ignored=0))

    def enter(self, folder: str) -> None:
        """Look at everything in one folder."""
        try:
            with os.scandir(Path(self.root, folder)) as entries:
                for entry in entries:
                    self.check()
                    path = str(Path(folder, entry.name))
                    try:
                        self.see(entry, path)
                    except OSError as error:
                        self.findings.append(finding(path, reason(error)))
        except OSError as error:
            self.findings.append(finding(folder, reason(error)))

    def see(self, entry: os.DirEntry[str], path: str) -> None:
        """Sort one entry in. A link is looked at and never followed: no loop, no way out of the directory."""
        if self.skipped.match(entry.name):
            self.count["ignored"] += 1
        elif entry.is_symlink():
            self.count["links"] += 1
            entry.stat()
        elif entry.is_dir():
            self.count["directories"] += 1
            self.folders.append(path)
        elif entry.is_file():
            status = entry.stat()
            self.files.append(Planned(path, status.st_size, f"{status.st_dev}:{entry.inode()}"))
        else:
            self.count["special"] += 1
            what = {"p": "named pipe", "s": "socket"}.get(stat.filemode(entry.stat().st_mode)[0], "device")
            self.findings.append(finding(path, f"not read: {what}"))


def batches(files: Iterable[Planned]) -> list[list[Planned]]:
    """Cut the files into batches of few files and few bytes; a large file has its own."""
    result: list[list[Planned]] = []
    room = 0
    for file in files:
        if not result or file.size > room or len(result[-1]) == BATCH_FILES:
            result.append([])
            room = BATCH_BYTES
        result[-1].append(file)
        room -= file.size
    return result


def finding(path: str, text: str) -> Json:
    """Return a row for the table of troubles."""
    return {"path": shown(path), "finding": text}


def reason(error: BaseException) -> str:
    """Say what the system says, without number and path."""
    return getattr(error, "strerror", None) or str(error)


def shown(path: str) -> str:
    """Return a path as it can be printed and written as JSON: what is no text, is escaped."""
    if path.isprintable():
        return path or "."
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


# ---------------------------------------------------------------------------------------- what a reader sees in a file

FORMATS = {
    "code": "Assembly: .asm .s; C: .c .h; C#: .cs; C++: .cc .cpp .cxx .hh .hpp; Cython: .pyx .pxd; Go: .go; Java: .java;"
    "JavaScript: .js .cjs .mjs .jsx; Julia: .jl; Kotlin: .kt; Lua: .lua; Make: makefile .mk; Perl: .pl .pm;"
    "PHP: .php; PowerShell: .ps1; Python: .py .pyi .pyw; R: .r; Ruby: .rb; Rust: .rs; Scala: .scala;"
    "Shell: .sh .bash .zsh .fish; SQL: .sql; Swift: .swift; Tcl: .tcl; TypeScript: .ts .tsx",
    "text": "CSS: .css .scss; HTML: .html .htm; Markdown: .md; reStructuredText: .rst; TeX: .tex; plain text: .txt .log",
    "data": "CSV: .csv .tsv; INI: .ini .cfg .conf; JSON: .json .jsonl .ipynb; TOML: .toml; XML: .xml .xsd .svg;"
    "YAML: .yaml .yml",
    "media": "audio: .mp3 .ogg .wav .flac; GIF: .gif; icon: .ico; JPEG: .jpg .jpeg; PDF: .pdf; PNG: .png;"
    "video: .mp4 .mkv .webm .avi; WebP: .webp",
    "archive": "compressed: .gz .bz2 .xz .zst; tar: .tar .tgz; zip: .zip .whl .jar",
    "binary": "bytecode: .pyc .class .wasm; machine code: .so .o .a .dll .exe; SQLite: .sqlite .db",
}
BY_NAME = {
    name: (kind, language)
    for kind, languages in FORMATS.items()
    for language, _, names in (entry.strip().partition(":") for entry in languages.split(";"))
    for name in names.split()
}
BY_INTERPRETER = {"node": "JavaScript", "perl": "Perl", "python": "Python", "ruby": "Ruby", "tclsh": "Tcl"}
BY_INTERPRETER |= dict.fromkeys(("bash", "dash", "sh", "zsh"), "Shell")
SHEBANG = re.compile(rb"#!\s*(?:\S*/env\s+(?:-\S+\s+)*)?(?:\S*/)?([a-z]+)")
TEXTUAL = {"code", "text", "data"}
# The fixed word comes first in the pattern: so the search runs twenty times faster.
MARKERS = {word.lower(): re.compile(rf"{word}(?<!\w{word})\b".encode()) for word in ("TODO", "FIXME")}


def by_name(path: str) -> tuple[str, str] | None:
    """Return kind and language as far as the name of a file tells them."""
    name = PurePath(path.lower())
    return BY_NAME.get(name.suffix or name.name)


def classify(path: str, head: bytes) -> tuple[str, str]:
    """Return kind and language: where the content contradicts the name, it is right."""
    named = by_name(path)
    if b"\0" in head and not head.startswith((b"\xff\xfe", b"\xfe\xff")):
        binary = ("binary", "machine code" if head.startswith(b"\x7fELF") else "unknown")
        return named if named and named[0] not in TEXTUAL else binary
    shebang = SHEBANG.match(head)
    language = BY_INTERPRETER.get(shebang[1].decode()) if shebang else None
    return named or (("code", language) if language else ("text", "plain text"))


def prepare_process() -> None:
    """Make a process ready for files: this module is loaded then, before the time of the first one begins."""
    warnings.filterwarnings("ignore", module="<triage>")  # Doubtful escapes in sources are not ours to warn of.


def measure(asked: Json) -> Json:
    """Read a file to its end and return its row of figures; if that fails, what is known of it.

    It stands in a module and takes and returns plain data, which is all that a function in another process needs.
    """
    file: Planned = asked["file"]
    kind = language = ""
    size = lines = 0
    markers = Counter(dict.fromkeys(MARKERS, 0))
    source, line, digest = bytearray(), b"", hashlib.sha256()
    try:
        for block in blocks(Path(asked["root"], file.path)):
            if not kind:
                kind, language = classify(file.path, block[:4096])
            size += len(block)
            lines += block.count(b"\n")
            if kind in TEXTUAL:
                line = search(line, block, markers)
            if language == "Python" and size <= SOURCE_LIMIT:
                source += block
            if file.inode:
                digest.update(block)
    except OSError as error:
        return not_read(file, reason(error))
    row = {"path": shown(file.path), "kind": kind, "language": language, "bytes": size}
    row |= {"lines": lines, "markers": markers.total(), **markers}
    if file.inode:
        row["content"] = (digest.hexdigest(), file.inode)
    return row | (complexity(bytes(source), size) if language == "Python" else {})


def not_read(file: Planned, why: str) -> Json:
    """Return the row of a file whose content is not known; its size is the planned one."""
    kind, language = by_name(file.path) or ("unknown", "unknown")
    row = {"path": shown(file.path), "kind": kind, "language": language, "bytes": file.size}
    return row | {"lines": None, "finding": f"not read: {why}"}


def blocks(path: Path) -> Iterator[bytes]:
    """Yield the content of a regular file, then an empty block. What has become a pipe or a link is an OSError."""
    flags = (getattr(os, name, 0) for name in ("O_NONBLOCK", "O_NOFOLLOW", "O_BINARY"))
    descriptor = os.open(path, sum(flags, os.O_RDONLY))
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "no longer a regular file")
        while block := os.read(descriptor, CHUNK):
            yield block
        yield b""
    finally:
        os.close(descriptor)


def search(line: bytes, block: bytes, markers: Counter[str]) -> bytes:
    """Count the markers up to the last end of a line and return what stands behind it, for the next block."""
    text = line + block
    end = (text.rfind(b"\n") + 1 if block else 0) or len(text)
    for name, pattern in MARKERS.items():
        markers[name] += len(pattern.findall(text, 0, end))
    return text[end:]


FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
NAMED = (*FUNCTIONS, ast.ClassDef)
BRANCHES = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler)


def complexity(source: bytes, size: int) -> Json:
    """Return the most complex function of a Python file, or why there is none."""
    if size > SOURCE_LIMIT:
        return {"finding": f"complexity not measured: more than {SOURCE_LIMIT} bytes of source"}
    try:
        found = list(complexities(source))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        text = getattr(error, "msg", None) or str(error) or "nested too deeply"
        return {"finding": f"complexity not measured: {text}"}
    score, line, name = max(found, key=lambda function: (function[0], -function[1]))
    return {"complexity": score, "function": name, "line": line, "functions": len(found) - 1}


def complexities(source: bytes) -> Iterator[tuple[int, int, str]]:
    """Yield McCabe's complexity, the line and the name of a module and of each function in it.

    That is 1 + the number of decisions (T. McCabe, A Complexity Measure, 1976), counted like rule C901 of flake8 and
    ruff, but a function inside of another one counts for itself alone.
    """
    scopes: list[tuple[str, ast.AST]] = [("", ast.parse(source, "<triage>"))]
    for scope_name, scope in scopes:  # It grows while it is gone through.
        score = 1
        inside = [(scope_name, scope)]
        while inside:
            prefix, node = inside.pop()
            score += decisions(node)
            for child in ast.iter_child_nodes(node):
                name = f"{prefix}.{child.name}" if isinstance(child, NAMED) else prefix
                (scopes if isinstance(child, FUNCTIONS) else inside).append((name, child))
        yield score, getattr(scope, "lineno", 1), scope_name.lstrip(".") or "<module>"


def decisions(node: ast.AST) -> int:
    """Return how many more ways than one lead through a node."""
    match node:
        case ast.Match(cases=[*_, ast.match_case(ast.MatchAs(pattern=None), guard=None)]):
            return len(node.cases) - 1
        case ast.Match():
            return len(node.cases)
        case ast.Try(orelse=[_, *_]) | ast.TryStar(orelse=[_, *_]):
            return 1
        case _:
            return isinstance(node, BRANCHES)


# ------------------------------------------------------------------------------------------- what the summariser makes

RANKINGS = {
    "largest_files": ("bytes", ("path", "language", "bytes", "lines")),
    "most_complex": ("complexity", ("path", "complexity", "function", "line", "functions")),
    "unfinished": ("markers", ("path", *MARKERS, "per_1000_lines")),
}


def new_tally() -> Json:
    """Return what is known before the first file. It grows with the report, not with the tree."""
    return {"formats": {}, "contents": {}, "findings": [], **{name: [] for name in RANKINGS}}


def add(tally: Json, rows: list[Json], limit: int) -> None:
    """Add files to the tally, in whatever order; a ranking keeps its first `limit` rows."""
    for row in rows:
        figures = tally["formats"].setdefault(f"{row['kind']}/{row['language']}", Counter())
        figures.update(files=1, bytes=row["bytes"], lines=row["lines"] or 0)
        figures.update(empty=not row["bytes"], unread=row["lines"] is None)
        figures.update({name: row.get(name, 0) for name in MARKERS})
        if "content" in row:
            digest, inode = row["content"]
            tally["contents"].setdefault(digest, []).append((row["bytes"], inode, row["path"]))
        if "finding" in row:
            tally["findings"].append({"path": row["path"], "finding": row["finding"]})
    for name, (by, _) in RANKINGS.items():
        tally[name] = highest(by, limit, [*tally[name], *(row for row in rows if row.get(by))])


def highest(by: str, limit: int, rows: list[Json]) -> list[Json]:
    """Return the rows with the highest figures; among equals the order of their paths decides."""
    return heapq.nsmallest(limit, rows, key=lambda row: (-row[by], row["path"]))


def report(count: Json, findings: list[Json], tally: Json, limit: int) -> Json:
    """Make the report: figures about everything, then tables."""
    total = Counter(dict.fromkeys(("files", "bytes", "lines", "empty", "unread", *MARKERS), 0))
    kinds: dict[str, Counter[str]] = {}
    languages = []
    for name, figures in tally["formats"].items():
        kind, _, language = name.partition("/")
        total.update(figures)
        kinds.setdefault(kind, Counter()).update(figures)
        languages.append({"language": language, "kind": kind, **density(figures)})
    copies = duplicates(tally["contents"])
    tables = {
        name: [{column: row[column] for column in columns} for row in map(density, tally[name])]
        for name, (_, columns) in RANKINGS.items()
    }
    return {
        **count,
        **total,
        "duplicates": sum(row["copies"] - 1 for row in copies),
        "wasted": sum(row["wasted"] for row in copies),
        "kinds": sorted(({"kind": kind, **kinds[kind]} for kind in kinds), key=itemgetter("bytes"), reverse=True),
        "languages": sorted(languages, key=itemgetter("bytes"), reverse=True),
        **tables,
        "duplicate_files": copies[:limit],
        "findings": sorted([*findings, *tally["findings"]], key=lambda row: row["path"]),
    }


def density(figures: Mapping[str, Any]) -> Json:
    """Add to a row how many markers there are in a thousand lines."""
    markers = sum(figures.get(name, 0) for name in MARKERS)
    return {**figures, "per_1000_lines": round(1000 * markers / max(figures["lines"] or 0, 1), 1)}


def duplicates(contents: Mapping[str, list[tuple[int, str, str]]]) -> list[Json]:
    """Return what is there more than once, the most wasteful first."""
    rows = []
    for copies in contents.values():
        # Several names of one inode are no copies. The first by name stands for it.
        names = {inode: path for _, inode, path in sorted(copies, reverse=True)}
        if len(names) > 1:
            size, extra = copies[0][0], len(names) - 1
            row = {"wasted": size * extra, "bytes": size, "copies": extra + 1}
            rows.append({**row, "paths": sorted(names.values())})
    return sorted(rows, key=lambda row: (-row["wasted"], row["paths"]))
