"""Say what is in a directory: kinds, sizes, complexity, duplicates, unfinished places, troubles.

    agentcore run examples/triage.py:workflow --input .
    agentcore run examples/triage.py:workflow --input '{"path": "/usr/lib", "deadline": 2}'

Three agents share the work. The planner finds the files, many readers measure them side by side,
the summariser makes the report. Whatever blocks stands in a plain function, and these run in worker
threads: the event loop stays free, and every file has a deadline of its own. A file that cannot be
read, or not in time, is a line among the findings; the rest of the report is complete.
"""

from __future__ import annotations

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
from math import isfinite
from typing import Any, NamedTuple

import attrs
from anyio.from_thread import check_cancelled

from agentcore import (
    AgentContext,
    AgentResult,
    BaseAgent,
    ConfigurationError,
    CoreError,
    TaskHandle,
    get_registry,
)

agents = get_registry("agents")
handlers = get_registry("task_handlers")

Json = dict[str, Any]

SKIPPED = (".git", ".hg", ".svn", ".venv", "venv", "node_modules", "__pycache__", ".*_cache")
PARALLEL = 8  # Batches at once. More would only queue up for the interpreter lock.
BATCH_FILES, BATCH_BYTES = 64, 1 << 23
CHUNK = 1 << 20
SOURCE_LIMIT = 1 << 20  # Parsing a MiB of Python takes half a second, and nothing can interrupt it.


# ------------------------------------------------------------------------------- what may be asked


def rule(text: str, remedy: str, holds: Callable[[Any], bool]) -> Callable[..., None]:
    """Return an attrs validator whose error names the value, the rule and the remedy."""

    def validate(_options: object, field: attrs.Attribute[Any], value: object) -> None:
        if not holds(value):
            message = f"triage option {field.name!r} must be {text}: got {value!r}; {remedy}"
            raise ConfigurationError(message, {"option": field.name, "value": value})

    return validate


def is_names(value: object) -> bool:
    """Tell whether this is a list of texts."""
    return isinstance(value, list | tuple) and all(isinstance(name, str) for name in value)


@attrs.frozen
class Options:
    """The input of the workflow.

    path: the directory. deadline: seconds that reading one file may take. ignore: names or patterns
    of what is left out, files and directories. largest: how many rows a ranking has.
    """

    path: str = attrs.field(
        validator=rule("a path", "name a directory", lambda v: isinstance(v, str) and v != "")
    )
    deadline: float = attrs.field(
        default=10.0,
        validator=rule(
            "a number of seconds above zero",
            "leave it out for 10",
            lambda v: type(v) in {int, float} and isfinite(v) and v > 0,
        ),
    )
    ignore: Iterable[str] = attrs.field(
        default=SKIPPED,
        validator=rule("a list of names", "use [] to leave nothing out", is_names),
    )
    largest: int = attrs.field(
        default=10,
        validator=rule(
            "a whole number above zero",
            "leave it out for 10",
            lambda v: type(v) is int and v > 0,
        ),
    )

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Options:
        """Check what was asked; raise ConfigurationError for the first thing that is wrong."""
        known = [field.name for field in attrs.fields(cls)]
        for name in given:
            if name not in known:
                message = f"triage option must be one of {', '.join(known)}: got {name!r}"
                raise ConfigurationError(f"{message}; correct or remove it", {"option": name})
        return cls(**{"path": None, **given})


# --------------------------------------------------------------------- the workflow and its agents


async def workflow(input: Json, context: AgentContext) -> Json:
    """Plan, read side by side, summarise; return the report."""
    options = Options.of(input)
    asked = attrs.asdict(options)
    plan = await context.run("plan", asked)
    tally = new_tally()
    reading: deque[TaskHandle] = deque()
    try:
        for batch in plan.pop("batches"):
            if len(reading) == PARALLEL:
                add(tally, await outcome(reading.popleft()), options.largest)
            reading.append(await context.submit("read", {**asked, "files": batch}))
        while reading:
            add(tally, await outcome(reading.popleft()), options.largest)
    finally:
        for handle in reading:
            handle.cancel("the triage has ended early")
    return await context.run("summarise", {"plan": plan, "tally": tally, **asked})


async def outcome(handle: TaskHandle) -> Json:
    """Wait for one batch. If it was lost as a whole, each of its files is a finding."""
    result = await handle.wait()
    if result.success:
        return result.output
    tally = new_tally()
    for file in handle.task.input["files"]:
        lost = not_read(Planned(*file), str(result.error))
        add(tally, tally_of(lost), handle.task.input["largest"])
    return tally


class TriageAgent(BaseAgent):
    """What the three agents have in common: nothing to set up, and an error is their result."""

    async def initialize(self) -> bool:
        """Have nothing to set up."""
        return True

    async def handle_error(self, error: Exception) -> AgentResult:
        """Make the error the result of the task."""
        return AgentResult.error_result(error)


@agents.decorator("plan_agent")
class PlannerAgent(TriageAgent):
    """Finds the files and cuts them into batches."""

    async def process(self, context: AgentContext) -> AgentResult:
        """Have the tree walked."""
        return AgentResult.success_result(await context.run("walk", context.task.input))


@agents.decorator("read_agent")
class ReaderAgent(TriageAgent):
    """Measures the files of one batch; what fails with one of them does not harm the others."""

    async def process(self, context: AgentContext) -> AgentResult:
        """Have file after file measured, each under its own deadline."""
        asked = context.task.input
        tally = new_tally()
        for file in map(Planned._make, asked["files"]):
            try:
                row = await context.run(
                    "measure", {"root": asked["path"], "file": file}, timeout=asked["deadline"]
                )
            except TimeoutError:
                row = not_read(file, f"it takes more than {asked['deadline']:g} s")
            except CoreError as error:
                row = not_read(file, error.message)
            add(tally, tally_of(row), asked["largest"])
        return AgentResult.success_result(tally)


@agents.decorator("summarise_agent")
class SummariserAgent(TriageAgent):
    """Makes the report."""

    async def process(self, context: AgentContext) -> AgentResult:
        """Put plan and tally together."""
        asked = context.task.input
        return AgentResult.success_result(report(asked["plan"], asked["tally"], asked["largest"]))


@handlers.decorator("walk")
def walk_in_thread(input: Json) -> Json:
    """Find the files below a directory. A plain function: it runs in a worker thread."""
    return walk(input["path"], input["ignore"], check_cancelled)


@handlers.decorator("measure")
def measure_in_thread(input: Json) -> Json:
    """Read one file. Between two blocks it looks whether its deadline has passed, or Ctrl-C."""
    return measure(input["root"], Planned(*input["file"]), check_cancelled)


# ----------------------------------------------------------------------- how the planner finds files


class Planned(NamedTuple):
    """A file that is to be read."""

    path: str
    """Below the root, as the system has it: bytes that are no UTF-8 are surrogates."""
    size: int
    inode: str
    """Which file it is, if another one has the same size and both are to be compared, else empty."""


def walk(root: str, ignore: Iterable[str], check: Callable[[], None]) -> Json:
    """Find the regular files below `root`, as batches; what is neither file nor folder is a finding.

    `check` is called often, here and below, and may raise: this is how a thread is cancelled.
    """
    try:
        os.scandir(root).close()
    except (OSError, ValueError) as error:
        message = f"triage option 'path' must be a directory that can be listed: got {root!r}"
        message += f" ({reason(error)}); name an existing one that you may read"
        raise ConfigurationError(message, {"option": "path", "value": root}) from error
    tree = Tree(root, re.compile("|".join(map(fnmatch.translate, ignore)) or "(?!)"))
    while tree.folders:
        tree.enter(tree.folders.pop(), check)
    sizes = Counter(size for _, size, _ in tree.files)
    files = [
        Planned(path, size, inode if size and sizes[size] > 1 else "")
        for path, size, inode in sorted(tree.files)
    ]
    return {
        "path": shown(os.path.abspath(root)),
        "files": len(files),
        "bytes": sum(file.size for file in files),
        **tree.count,
        "batches": batches(files),
        "findings": tree.findings,
    }


@attrs.define
class Tree:
    """What a walk has seen so far."""

    root: str
    skipped: re.Pattern[str]
    folders: list[str] = attrs.field(factory=lambda: [""])
    files: list[tuple[str, int, str]] = attrs.field(factory=list)
    findings: list[Json] = attrs.field(factory=list)
    count: Counter[str] = attrs.field(
        factory=lambda: Counter(directories=0, links=0, special=0, ignored=0)
    )

    def enter(self, folder: str, check: Callable[[], None]) -> None:
        """Look at everything in one folder."""
        try:
            with os.scandir(os.path.join(self.root, folder)) as entries:
                for entry in entries:
                    check()
                    self.see(entry, os.path.join(folder, entry.name))
        except OSError as error:
            self.note(folder, reason(error))

    def see(self, entry: os.DirEntry[str], path: str) -> None:
        """Say what to do with one entry. Links are looked at, never followed: no loop, no escape."""
        try:
            if self.skipped.match(entry.name):
                self.count["ignored"] += 1
            elif entry.is_symlink():
                self.count["links"] += 1
                os.stat(entry.path)
            elif entry.is_dir():
                self.count["directories"] += 1
                self.folders.append(path)
            elif entry.is_file():
                status = entry.stat()
                self.files.append((path, status.st_size, f"{status.st_dev}:{entry.inode()}"))
            else:
                self.count["special"] += 1
                self.note(path, special(entry.stat().st_mode))
        except OSError as error:
            self.note(path, ("broken link: " if entry.is_symlink() else "") + reason(error))

    def note(self, path: str, text: str) -> None:
        """Add a finding."""
        self.findings.append({"path": shown(path), "finding": text})


def batches(files: Iterable[Planned]) -> list[list[Planned]]:
    """Cut the files into batches, none of them long, and none large unless it is a single file."""
    result: list[list[Planned]] = []
    room = 0
    for file in files:
        if not result or file.size > room or len(result[-1]) == BATCH_FILES:
            result.append([])
            room = BATCH_BYTES
        result[-1].append(file)
        room -= file.size
    return result


def special(mode: int) -> str:
    """Name what is neither a file nor a folder."""
    names = {
        stat.S_IFIFO: "named pipe",
        stat.S_IFSOCK: "socket",
        stat.S_IFCHR: "character device",
        stat.S_IFBLK: "block device",
    }
    return f"{names.get(stat.S_IFMT(mode), 'special file')}: not read"


def reason(error: Exception) -> str:
    """Say what the system says, without number and path."""
    return getattr(error, "strerror", None) or str(error)


def shown(path: str) -> str:
    """Return a path as it can be printed and written as JSON: what is no text, is escaped."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


# ---------------------------------------------------------------------- what a reader sees in a file


FORMATS = {
    "code": {
        "Assembly": ".asm .s",
        "C": ".c .h",
        "C#": ".cs",
        "C++": ".cc .cpp .cxx .hh .hpp",
        "Cython": ".pyx .pxd",
        "Dart": ".dart",
        "Fortran": ".f .f90",
        "Go": ".go",
        "Haskell": ".hs",
        "Java": ".java",
        "JavaScript": ".js .cjs .mjs .jsx",
        "Julia": ".jl",
        "Kotlin": ".kt .kts",
        "Lua": ".lua",
        "Make": "makefile .mk",
        "PHP": ".php",
        "Perl": ".pl .pm",
        "PowerShell": ".ps1",
        "Python": ".py .pyi .pyw",
        "R": ".r",
        "Ruby": ".rb",
        "Rust": ".rs",
        "SQL": ".sql",
        "Scala": ".scala",
        "Shell": ".sh .bash .zsh .fish",
        "Swift": ".swift",
        "Tcl": ".tcl",
        "TypeScript": ".ts .tsx",
    },
    "text": {
        "CSS": ".css .scss .less",
        "Dockerfile": "dockerfile",
        "HTML": ".html .htm .xhtml",
        "Markdown": ".md .markdown",
        "TeX": ".tex .bib",
        "plain text": ".txt .text .log license copying readme",
        "reStructuredText": ".rst",
    },
    "data": {
        "CSV": ".csv .tsv",
        "INI": ".ini .cfg .conf",
        "JSON": ".json .jsonl .ipynb",
        "TOML": ".toml",
        "XML": ".xml .xsd .xsl",
        "YAML": ".yaml .yml",
    },
    "document": {"Office": ".docx .xlsx .pptx .odt .ods", "PDF": ".pdf"},
    "image": {"GIF": ".gif", "JPEG": ".jpg .jpeg", "PNG": ".png", "SVG": ".svg", "WebP": ".webp"},
    "media": {"audio": ".mp3 .ogg .wav .flac", "video": ".mp4 .mkv .webm .avi"},
    "archive": {"compressed": ".gz .bz2 .xz .zst", "tar": ".tar .tgz", "zip": ".zip .whl .jar"},
    "binary": {
        "Python bytecode": ".pyc .pyo",
        "SQLite": ".sqlite .db",
        "WebAssembly": ".wasm",
        "library or program": ".so .o .a .dll .dylib .exe",
    },
}
BY_NAME = {
    name: (kind, language)
    for kind, languages in FORMATS.items()
    for language, names in languages.items()
    for name in names.split()
}
BY_START = {
    b"\x7fELF": ("binary", "library or program"),
    b"SQLite format 3": ("binary", "SQLite"),
    b"\x89PNG": ("image", "PNG"),
    b"GIF8": ("image", "GIF"),
    b"\xff\xd8\xff": ("image", "JPEG"),
    b"%PDF-": ("document", "PDF"),
    b"PK\x03\x04": ("archive", "zip"),
    b"\x1f\x8b": ("archive", "compressed"),
    b"BZh": ("archive", "compressed"),
    b"\xfd7zXZ": ("archive", "compressed"),
}
INTERPRETERS = {"bash": "Shell", "node": "JavaScript", "perl": "Perl", "php": "PHP", "sh": "Shell"}
INTERPRETERS |= {"python": "Python", "ruby": "Ruby", "tclsh": "Tcl", "zsh": "Shell"}
SHEBANG = re.compile(rb"#!\s*(?:\S*/env\s+(?:-\S+\s+)*)?(?:\S*/)?([a-z]+)")
TEXTUAL = {"code", "text", "data"}
MARKERS = re.compile(rb"\b(TODO|FIXME)\b")


def classify(path: str, head: bytes) -> tuple[str, str]:
    """Return kind and language: what the content says clearly, else the name, else a guess."""
    name = os.path.basename(path).lower()
    by_name = BY_NAME.get(os.path.splitext(name)[1] or name)
    for start, by_start in BY_START.items():
        if head.startswith(start):
            return by_name if by_name and by_name[0] not in TEXTUAL else by_start
    if b"\0" in head and not head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return by_name if by_name and by_name[0] not in TEXTUAL else ("binary", "unknown")
    if by_name:
        return by_name
    shebang = SHEBANG.match(head)
    if shebang and (language := INTERPRETERS.get(shebang[1].decode())):
        return "code", language
    return "text", "plain text"


@attrs.define
class Meter:
    """Counts while the blocks of one file go by; the memory it takes does not grow with the file."""

    path: str
    format: tuple[str, str] = ("", "")
    bytes: int = 0
    lines: int = 0
    markers: Counter[str] = attrs.field(factory=Counter)
    source: bytearray = attrs.field(factory=bytearray)
    rest: bytes = b""

    def feed(self, block: bytes) -> None:
        """Count one more block."""
        if not self.bytes:
            self.format = classify(self.path, block[:4096])
        self.bytes += len(block)
        self.lines += block.count(b"\n")
        if self.format[0] in TEXTUAL:
            self.search(block)
        if self.format[1] == "Python" and self.bytes <= SOURCE_LIMIT:
            self.source += block

    def search(self, block: bytes) -> None:
        """Count markers up to the last end of a line; a word may be cut in two behind it."""
        text = self.rest + block
        end = text.rfind(b"\n") + 1 or len(text)
        self.markers.update(found.decode().lower() for found in MARKERS.findall(text, 0, end))
        self.rest = text[end:]
