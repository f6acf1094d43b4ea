"""The triage counts what `find`, `wc` and `sha256sum` count, and whatever cannot be read is named."""

import asyncio
import email
import encodings
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib import reload
from pathlib import Path
from typing import Any

import anyio
import pytest

from agentcore import (
    AgentContext,
    AgentResult,
    AgentRuntime,
    ConfigurationError,
    Event,
    RuntimeConfig,
    TaskExecutionError,
    TaskState,
)
from examples import triage

NAMELESS = os.fsdecode(b"caf\xe9.txt")
"""A file name that is no UTF-8."""


def findings(report: dict[str, Any]) -> dict[str, str]:
    """Return what the report says about troubles, by path."""
    return {row["path"]: row["finding"] for row in report["findings"]}


# -------------------------------------------------------------------------------------------------------- the workflow


@pytest.fixture
def nasty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory with everything that programs stumble over."""
    root = tmp_path / "nasty"
    (root / "deep" / "er").mkdir(parents=True)
    monkeypatch.chdir(root)
    contents = {
        "no end of line.md": b"# Title\ntext",
        "empty": b"",
        "deep/__init__.py": b"",
        "deep/code.py": b"def f(a):\n    if a:  # TODO: more\n        return 1\n",
        "deep/er/copy.py": b"def f(a):\n    if a:  # TODO: more\n        return 1\n",
        "deep/as long.py": b"def f(b):\n    if b:  # TODO: more\n        return 1\n",
        "deep/broken.py": b"def f(:\n",
        "deep/escape.py": b'x = "\\d"\n',
        "binary": bytes(range(256)) * 999,
        "windows.txt": b"a\r\nb\r\n",
        "sixteen.txt": "grüße\n".encode("utf-16"),
        NAMELESS: b"caf\xe9\n",
        "two\nlines \x1b[31m\u202e": b"odd\n",
        "-n": b"an option\n",
        "closed": b"secret\n",
    }
    for name, content in contents.items():
        Path(name).write_bytes(content)
    Path("closed").chmod(0)
    Path("shut").mkdir(mode=0)
    Path("link to nothing").symlink_to("absent")
    Path("link to itself").symlink_to("link to itself")
    Path("link up").symlink_to("..")
    Path("link out").symlink_to("/etc/passwd")
    Path("second name").hardlink_to("windows.txt")
    os.mkfifo("pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
    yield root
    Path("shut").chmod(0o700)


def told_by_tools(root: Path) -> dict[str, Any]:
    """Return what find, wc and sha256sum say about the files below `root`; lines and contents of those one may read."""

    def tell(command: str) -> bytes:
        shell = ["sh", "-c", f'find "$1" -type f {command}', "sh", str(root)]
        return subprocess.run(shell, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False).stdout

    copies: dict[bytes, dict[tuple[int, int], str]] = {}
    for entry in tell("-readable -not -empty -exec sha256sum -z {} +").split(b"\0")[:-1]:
        digest, path = entry.split(b"  ", 1)
        status = Path(os.fsdecode(path)).stat()
        name = triage.shown(os.path.relpath(os.fsdecode(path), root))
        names = copies.setdefault(digest, {})
        names[status.st_dev, status.st_ino] = min(name, names.get((status.st_dev, status.st_ino), name))
    return {
        "files": tell("-print0").count(b"\0"),
        "bytes": sum(map(int, tell("-printf '%s\\n'").split())),
        "lines": int(tell("-readable -exec cat {} + | wc -l")),
        "empty": tell("-empty -print0").count(b"\0"),
        "unread": tell("-not -readable -print0").count(b"\0"),
        "todo": int(tell("-readable -exec cat {} + | grep -a -o -w TODO | wc -l")),
        "copies": sorted(sorted(names.values()) for names in copies.values() if len(names) > 1),
    }


def told_by_triage(report: dict[str, Any]) -> dict[str, Any]:
    """Return the same figures out of a report, after a look at whether it agrees with itself."""
    figures = {name: report[name] for name in ("files", "bytes", "lines", "empty", "unread", "todo")}
    for table in ("kinds", "languages"):
        assert figures == {name: sum(row[name] for row in report[table]) for name in figures}
    return figures | {"copies": sorted(row["paths"] for row in report["duplicate_files"])}


async def triaged(root: Path, config: RuntimeConfig | None = None, **given: Any) -> dict[str, Any]:
    """Run the workflow in a runtime of its own."""
    reload(triage)  # It registers its agents, whatever other tests have done to the registries.
    async with AgentRuntime(config) as runtime:
        runtime.handler("triage")(triage.workflow)
        return await runtime.run("triage", {"path": str(root), **given})


@pytest.mark.anyio
async def test_totals_of_a_nasty_tree(nasty: Path) -> None:
    """Totals and duplicates are those of the tools, and each trouble is named with its reason."""
    report = await triaged(nasty)
    assert told_by_tools(nasty) == told_by_triage(report)
    assert (3, 4, 2) == tuple(report[name] for name in ("directories", "links", "special"))
    expected = {
        "deep/broken.py": "complexity not measured: invalid syntax",
        "link to itself": "Too many levels of symbolic links",
        "link to nothing": "No such file or directory",
        "pipe": "not read: named pipe",
        "socket": "not read: socket",
    }
    if not os.access("closed", os.R_OK):  # The superuser may read it.
        expected |= {"closed": "not read: Permission denied", "shut": "Permission denied"}
    assert expected == findings(report)


@pytest.mark.anyio
async def test_the_report_can_be_written_anywhere(nasty: Path) -> None:
    """The report is JSON without surrogates, and no name in it moves a terminal's cursor."""
    report = await triaged(nasty, largest=100)
    text = json.dumps(report, ensure_ascii=False, allow_nan=False).encode().decode()
    assert report == json.loads(text)
    assert text.isprintable()
    names = {row["path"] for row in report["largest_files"]}
    assert {r"caf\xe9.txt", r"two\nlines \x1b[31m\u202e", "-n", "windows.txt", "second name"} <= names


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A part of the standard library. A copy: other programs may compile the original at any time."""
    root = tmp_path_factory.mktemp("real")
    for package in (asyncio, email, encodings):
        folder = Path(package.__file__ or "").parent
        shutil.copytree(folder, root / folder.name, ignore=shutil.ignore_patterns("*.pyc.*"))
    return root


@pytest.mark.anyio
async def test_totals_of_real_code(real: Path) -> None:
    """On a part of the standard library triage and tools agree as well, compiled modules included."""
    report = await triaged(real, ignore=[], largest=1000)
    assert {} == findings(report)
    assert told_by_tools(real) == told_by_triage(report)
    code = next(row for row in report["languages"] if row["language"] == "Python")
    assert code["files"] - code["empty"] <= len(report["most_complex"]) <= code["files"]


@pytest.mark.anyio
@pytest.mark.parametrize("in_flight", [1, 2])
async def test_few_slots_are_enough(tmp_path: Path, in_flight: int) -> None:
    """A workflow that waits for its readers lends them its slot; a queue of one holds it back, and does no harm."""
    for number in range(10 * triage.BATCH_FILES):
        (tmp_path / str(number)).touch()
    report = await triaged(tmp_path, RuntimeConfig(in_flight=in_flight, queue=1))
    assert (10 * triage.BATCH_FILES, []) == (report["files"], report["findings"])


@pytest.mark.anyio
async def test_files_that_take_too_long_are_named(nasty: Path) -> None:
    """A huge file is read until its own deadline and no longer; all others are in the report."""
    without = await triaged(nasty)
    for name in ("huge.md", "huge too"):
        with (nasty / name).open("wb") as file:
            file.truncate(1 << 42)
    report = await triaged(nasty, deadline=4, largest=2)
    late = "not read: it took more than 4 s"
    assert {**findings(without), "huge.md": late, "huge too": late} == findings(report)
    assert [
        {"path": "huge too", "language": "unknown", "bytes": 1 << 42, "lines": None},
        {"path": "huge.md", "language": "Markdown", "bytes": 1 << 42, "lines": None},
    ] == report["largest_files"]
    expected = [without["files"] + 2, without["bytes"] + 2 * (1 << 42), without["lines"], without["unread"] + 2]
    assert expected == [report[name] for name in ("files", "bytes", "lines", "unread")]


@pytest.mark.anyio
async def test_files_are_measured_off_the_event_loop(nasty: Path) -> None:
    """The walk runs in a worker thread, each file is a job of a pool of processes."""
    reload(triage)
    threads = []

    def walk(asked: Any) -> Any:
        threads.append(threading.current_thread())
        return triage.walk(asked)

    async with AgentRuntime() as runtime:
        runtime.handler("walk")(walk)
        runtime.handler("triage")(triage.workflow)
        report = await runtime.run("triage", {"path": str(nasty), "deadline": 20})
        pools = runtime.pools.list_all()
    assert [("files within 20 s", "process", report["files"])] == [
        (name, pool.pool_type, pool.metrics.succeeded) for name, pool in pools.items()
    ]
    assert 1 == len(threads)
    assert threading.current_thread() not in threads


@pytest.mark.anyio
async def test_one_failure_costs_one_file(nasty: Path) -> None:
    """A bug that one file brings to light is a finding, or the death of its process; the others of its batch are read."""
    reload(triage)

    async def measure(job: dict[str, Any], context: AgentContext) -> Any:
        path = job["file"].path
        if path == "windows.txt":
            return await context.pool("files", "process").asubmit(os._exit, 7)
        return await triage.measure_apart(job if path != "binary" else {**job, "file": None}, context)

    async with AgentRuntime() as runtime:
        runtime.handler("measure")(measure)
        runtime.handler("triage")(triage.workflow)
        report = await runtime.run("triage", {"path": str(nasty)})
    assert "not read: 'NoneType' object has no attribute 'path'" == findings(report)["binary"]
    assert "not read: the process that measured it died" == findings(report)["windows.txt"]
    assert told_by_tools(nasty)["unread"] + 2 == report["unread"]
    assert told_by_tools(nasty)["files"] == report["files"]


@pytest.mark.anyio
async def test_a_lost_batch_costs_its_files(nasty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a reader breaks down, the files of its batch are named, and those of the others are in the report."""
    reload(triage)
    monkeypatch.setattr(triage, "BATCH_FILES", 2)

    class Clumsy(triage.ReaderAgent):
        async def process(self, context: AgentContext) -> AgentResult:
            assert context.task is not None
            if any(file.path == "binary" for file in context.task.input["files"]):
                return AgentResult.error_result({"message": "dropped it"})
            return await super().process(context)

    async with AgentRuntime() as runtime:
        runtime.registry("agents").register("read_agent", Clumsy)
        runtime.handler("triage")(triage.workflow)
        report = await runtime.run("triage", {"path": str(nasty)})
    lost = {path for path, text in findings(report).items() if "dropped it" in text}
    assert {"-n", "binary"} == lost
    assert told_by_tools(nasty)["files"] == report["files"]


@pytest.mark.anyio
async def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    """The task fails, and whoever waits learns what to do."""
    with pytest.raises(TaskExecutionError, match="'path' must be the path of a directory that is there: got") as caught:
        await triaged(tmp_path / "absent")
    assert isinstance(caught.value.__cause__, ConfigurationError)


@pytest.mark.anyio
async def test_cancelling_the_triage_cancels_its_readers(tmp_path: Path) -> None:
    """Nothing goes on reading for a triage that nobody wants any more."""
    for number in range(2 * triage.PARALLEL):
        with (tmp_path / f"huge {number}").open("wb") as file:
            file.truncate(1 << 42)
    reload(triage)
    reading = anyio.Event()
    async with AgentRuntime() as runtime:

        def note(event: Event) -> None:
            if event.data.get("type") == "measure":
                reading.set()

        runtime.subscribe(note)
        runtime.handler("triage")(triage.workflow)
        handle = await runtime.submit("triage", {"path": str(tmp_path), "deadline": 1e6})
        await reading.wait()
        handle.cancel("no longer wanted")
        result = await handle.wait()
        assert await runtime.drain()
        tasks = runtime.statistics().tasks
    assert (TaskState.CANCELED, "no longer wanted") == (result.state, handle.task.cancel_reason)
    # The plan, and the walk for it.
    assert (2, 0, 0) == (tasks.completed, tasks.failed, tasks.in_flight)


# --------------------------------------------------------------------------------------------------------- the command


def command(target: Path | str, given: dict[str, Any], *options: str) -> list[str]:
    """Return the command that has the workflow in a file do something."""
    return [sys.executable, "-m", "agentcore", "run", f"{target}:workflow", "--input", json.dumps(given), *options]


def test_the_command_says_the_same_on_both_backends(nasty: Path) -> None:
    """Into a pipe goes one JSON document, and which event loop it was made on cannot be told from it."""
    documents = []
    for backend in ("asyncio", "trio"):
        line = command(triage.__file__ or "", {"path": str(nasty)}, "--backend", backend)
        done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=60)
        assert (0, "") == (done.returncode, done.stderr)
        documents.append(json.loads(done.stdout))
    assert documents[0] == documents[1]
    assert told_by_tools(nasty) == told_by_triage(documents[0])


def test_the_command_refuses_what_is_no_directory(tmp_path: Path) -> None:
    """The exit code tells that it failed, the message why, and nothing goes into the pipe."""
    line = command(triage.__file__ or "", {"path": str(tmp_path / "absent")})
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=60)
    assert (1, "") == (done.returncode, done.stdout)
    assert "must be the path of a directory that is there" in done.stderr


WATCHED = """
import sys

import triage
from agentcore import AgentRuntime


def tell(event):
    if event.event_type == "task_started" and event.data["type"] == "measure":
        print("reading", file=sys.stderr, flush=True)


async def workflow(given, context):
    AgentRuntime.current().subscribe(tell)
    return await triage.workflow(given, context)
"""


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_an_interrupt_ends_the_reading(tmp_path: Path, backend: str) -> None:
    """Ctrl-C in the middle of a file that nobody could ever read to its end: the command says what was cut short."""
    folder = tmp_path / "folder"
    folder.mkdir()
    with (folder / "huge").open("wb") as file:
        file.truncate(1 << 42)
    (tmp_path / "watched.py").write_text(WATCHED, encoding="utf-8")
    line = command("watched.py", {"path": str(folder), "deadline": 1e6}, "--grace", "0", "--backend", backend)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join((str(Path(triage.__file__ or "").parent), str(Path.cwd()))),
    }
    with subprocess.Popen(
        line, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stderr is not None
            assert "reading\n" == process.stderr.readline()
            process.send_signal(signal.SIGINT)
            output, errors = process.communicate(timeout=30)
        finally:
            process.kill()
    assert (130, "") == (process.returncode, output)
    assert "cut short: workflow" in errors
