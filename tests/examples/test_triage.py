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
from collections import Counter
from collections.abc import Callable, Iterator
from importlib import reload
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

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


def nothing() -> None:
    """Stand in for the check of cancellation where nothing is going to be cancelled."""


def whole(root: Path | str, **given: Any) -> dict[str, Any]:
    """Do without agents what the workflow does with them."""
    asked = triage.options({"path": str(root), **given})
    plan = triage.walk(asked, nothing)
    tally = triage.new_tally()
    for batch in plan["batches"]:
        rows = [measured(root, *file) for file in batch]
        triage.add(tally, rows, asked["largest"])
    return triage.report(plan["count"], plan["findings"], tally, asked["largest"])


def measured(root: Path | str, path: str, size: int = 7, inode: str = "", check: Any = nothing) -> dict[str, Any]:
    """Return the row of figures of a file."""
    row: dict[str, Any] = triage.measure({"root": str(root), "file": triage.Planned(path, size, inode)}, check)
    return row


def row_of(folder: Path, name: str, content: bytes) -> dict[str, Any]:
    """Return the row of figures of a file that has this name and this content."""
    (folder / name).write_bytes(content)
    return measured(folder, name)


def findings(report: dict[str, Any]) -> dict[str, str]:
    """Return what the report says about troubles, by path."""
    return {row["path"]: row["finding"] for row in report["findings"]}


# --------------------------------------------------------------------------------------------------- what may be asked


def test_options_are_completed() -> None:
    """Who names a directory and nothing else gets the defaults."""
    expected = {"path": ".", "deadline": 10.0, "ignore": triage.SKIPPED, "largest": 10}
    assert expected == triage.options({"path": "."})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "triage option 'path' must be the path of a directory that is there: got None; name one"),
        ({"path": 7}, "triage option 'path' must be the path of a directory that is there: got 7; name one"),
        (
            {"path": ".", "deadline": 0},
            "triage option 'deadline' must be a number of seconds above zero: got 0; leave it out for 10.0",
        ),
        (
            {"path": ".", "deadline": float("nan")},
            "triage option 'deadline' must be a number of seconds above zero: got nan; leave it out for 10.0",
        ),
        (
            {"path": ".", "deadline": True},
            "triage option 'deadline' must be a number of seconds above zero: got True; leave it out for 10.0",
        ),
        (
            {"path": ".", "largest": 2.5},
            "triage option 'largest' must be a whole number above zero: got 2.5; leave it out for 10",
        ),
        (
            {"path": ".", "ignore": ".git"},
            f"triage option 'ignore' must be a list of names or patterns: got '.git'; leave it out for {triage.SKIPPED!r}",
        ),
        (
            {"path": ".", "dedline": 1},
            "triage option must be one of path, deadline, ignore, largest: got 'dedline'; rename it",
        ),
    ],
)
def test_bad_options_are_explained(given: dict[str, Any], message: str) -> None:
    """An option that cannot be used is an error with the value, the rule and the remedy."""
    with pytest.raises(ConfigurationError) as caught:
        triage.options(given)
    assert message == str(caught.value)


@pytest.mark.parametrize("name", ["absent", "file", "file/below", "zero\0", "loop"])
def test_what_is_no_directory_is_refused(tmp_path: Path, name: str) -> None:
    """A root that is not there is an error at once, not an empty report."""
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    root = f"{tmp_path}/{name}"
    with pytest.raises(ConfigurationError) as caught:
        triage.options({"path": root})
    rule = "must be the path of a directory that is there"
    assert f"triage option 'path' {rule}: got {root!r}; name one" == str(caught.value)
    assert {"option": "path", "value": root} == caught.value.details


# ------------------------------------------------------------------------------------------------- what is in one file


@pytest.mark.parametrize(
    ("path", "head", "expected"),
    [
        ("a/b.py", b"x = 1\n", ("code", "Python")),
        ("a.b/Makefile", b"all:\n", ("code", "Make")),
        ("UPPER.PY", b"", ("code", "Python")),
        ("tool", b"#!/usr/bin/env -S python3.11 -u\n", ("code", "Python")),
        ("tool", b"#! /bin/sh -e\n", ("code", "Shell")),
        ("tool", b"#!/opt/thing/unheard-of\n", ("text", "plain text")),
        ("note", b"hello", ("text", "plain text")),
        ("note", b"", ("text", "plain text")),
        ("note", "grüße".encode("utf-16"), ("text", "plain text")),
        ("tool", b"\x7fELF\2\1\1\0", ("binary", "machine code")),
        ("tool", b"\0\1\2", ("binary", "unknown")),
        ("video.ts", b"G\0\0\0", ("binary", "unknown")),
        ("photo.png", b"\x89PNG\0", ("media", "PNG")),
        (".gitignore", b"*.pyc\n", ("text", "plain text")),
        (NAMELESS, b"hello\n", ("text", "plain text")),
    ],
)
def test_kind_and_language(path: str, head: bytes, expected: tuple[str, str]) -> None:
    """The name tells the language, then the first line; the content has the last word on what is text."""
    assert expected == triage.classify(path, head)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("", "."),
        ("plain/name.py", "plain/name.py"),
        ("grüße/名前", "grüße/名前"),
        (NAMELESS, r"caf\xe9.txt"),
        ("two\nlines\t\x1b[31m", r"two\nlines\t\x1b[31m"),
        ("\u202ereversed\ue000", r"\u202ereversed\ue000"),
    ],
)
def test_paths_can_be_shown(path: str, expected: str) -> None:
    """What would break a terminal or an encoder arrives escaped, all else as it is."""
    assert expected == triage.shown(path)
    assert expected.encode().decode() == expected


def test_lines_are_counted_as_wc_counts_them(tmp_path: Path) -> None:
    """A line is an end of a line: text behind the last one counts in bytes alone."""
    row = row_of(tmp_path, "a.txt", b"one\ntwo\r\nthree")
    assert (14, 2) == (row["bytes"], row["lines"])


MARKED = b"TODO: a\nxTODO TODOx\nFIXME(TODO)\n# TO\nDO _FIXME TODO"


def test_markers_are_words(tmp_path: Path) -> None:
    """A marker inside of a longer word is none, nor one in a binary file."""
    row = row_of(tmp_path, "a.c", MARKED)
    assert (3, 1, 4) == (row["todo"], row["fixme"], row["markers"])
    row = row_of(tmp_path, "b.c", MARKED + b"\0")
    assert (0, 0, 0) == (row["todo"], row["fixme"], row["markers"])


@given(st.lists(st.sampled_from([b"TODO", b"FIXME", b"TO", b"DO", b"x", b" ", b"\n"])), st.sets(st.integers(0, 99)))
def test_markers_do_not_depend_on_blocks(words: list[bytes], borders: set[int]) -> None:
    """Wherever a text is cut into blocks, none of them inside of a single line, each marker is found once."""
    text = b"".join(words)
    blocks = [b""]
    for position in range(len(text)):
        if position in borders and b"\n" in blocks[-1]:
            blocks.append(b"")
        blocks[-1] += text[position : position + 1]
    found: Counter[str] = Counter()
    rest = b""
    for block in [*filter(None, blocks), b""]:
        rest = triage.search(rest, block, found)
    assert {name: len(pattern.findall(text)) for name, pattern in triage.MARKERS.items()} == found


def test_a_file_without_lines_takes_little_memory() -> None:
    """What has no end of a line in a whole block is not kept for the next one."""
    assert b"" == triage.search(b"", b"x" * 1000, Counter())


def complexity_of(source: str) -> dict[str, int]:
    """Return the complexity of the module and of each function, by name."""
    return {name: score for score, _, name in triage.complexities(source.encode())}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("pass", 1),
        ("if a: b", 2),
        ("if a: b\n elif c: d\n else: e", 3),
        ("for a in b: c\n else: d", 2),
        ("while a: b", 2),
        ("try: a\n except B: c\n except D: e\n finally: f", 3),
        ("try: a\n except B: c\n else: d", 3),
        ("with a: b", 1),
        ("return a if b and c else [d for d in e if f]", 1),
        ("match a:\n  case 1: b\n  case 2: c", 3),
        ("match a:\n  case 1: b\n  case _: c", 2),
        ("match a:\n  case 1: b\n  case c if d: e", 3),
    ],
)
def test_complexity_counts_decisions(body: str, expected: int) -> None:
    """The measure is that of rule C901, here with what it gives for each kind of statement."""
    assert {"<module>": 1, "f": expected} == complexity_of(f"async def f():\n {body}\n")


def test_complexity_of_nested_functions() -> None:
    """Each function counts for itself, under its full name; so does the module."""
    source = """
if a: b
class C:
    if a: b
    def f(self):
        if a: b
        def g():
            if a: b
            elif c: d
        class D:
            def h(self): lambda: a
"""
    assert {"<module>": 3, "C.f": 2, "C.f.g": 3, "C.f.D.h": 1} == complexity_of(source)


def test_the_most_complex_function_stands_for_its_file(tmp_path: Path) -> None:
    """Of equal functions that is the first one."""
    row = row_of(tmp_path, "a.py", b"def f(): pass\ndef g():\n if a: b\ndef h():\n if a: b\n")
    expected = {"complexity": 2, "function": "g", "line": 2, "functions": 3}
    assert expected == {name: row[name] for name in expected}


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (b"def f(:", "invalid syntax"),
        (b"x = '\xff'", "(unicode error)"),
        (b"# coding: nonsense\n", "unknown encoding: nonsense"),
        (b"-" * 100_000 + b"1", ""),
        (b"(" * 300, "too many nested parentheses"),
        (b"a" + b".b" * 100_000, "maximum recursion depth exceeded"),
        (b"#" * (triage.SOURCE_LIMIT + 1), "more than 1048576 bytes of source"),
    ],
)
def test_what_is_no_python_is_a_finding(tmp_path: Path, source: bytes, reason: str) -> None:
    """A file that cannot be parsed is counted all the same, and the report says why it has no complexity."""
    row = row_of(tmp_path, "a.py", source)
    assert row["finding"].startswith(f"complexity not measured: {reason}")
    assert (len(source), False) == (row["bytes"], "complexity" in row)


def test_what_has_become_something_else_is_not_waited_for(tmp_path: Path) -> None:
    """A file that is gone, or a pipe or a link or a folder now, is a finding at once."""
    os.mkfifo(tmp_path / "pipe.py")
    (tmp_path / "link").symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    rows = [measured(tmp_path, name) for name in ("gone.md", "pipe.py", "link", "folder")]
    assert [
        ("gone.md", "text", "Markdown", 7, None, "not read: No such file or directory"),
        ("pipe.py", "code", "Python", 7, None, "not read: no longer a regular file"),
        ("link", "unknown", "unknown", 7, None, "not read: Too many levels of symbolic links"),
        ("folder", "unknown", "unknown", 7, None, "not read: no longer a regular file"),
    ] == [tuple(row.values()) for row in rows]


def test_reading_can_be_stopped_between_blocks(tmp_path: Path) -> None:
    """What the check raises ends a thread in the middle of a file, and of a walk."""
    blocks_read = []

    def stop_at_the_third() -> None:
        blocks_read.append(1)
        if len(blocks_read) == 3:
            raise KeyboardInterrupt

    with (tmp_path / "large").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(KeyboardInterrupt):
        measured(tmp_path, "large", check=stop_at_the_third)
    assert 3 == len(blocks_read)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    blocks_read.clear()
    with pytest.raises(KeyboardInterrupt):
        triage.walk({"path": str(tmp_path), "ignore": []}, stop_at_the_third)


# --------------------------------------------------------------------------------------------------- what is in a tree


@given(st.lists(st.integers(0, 3 * triage.BATCH_BYTES), max_size=200))
def test_batches_are_small(sizes: list[int]) -> None:
    """Every file is in one batch, in order; none is larger than it may be but that of a single large file."""
    files = [triage.Planned(str(number), size, "") for number, size in enumerate(sizes)]
    cut = triage.batches(files)
    assert files == [file for batch in cut for file in batch]
    for batch in cut:
        assert 1 <= len(batch) <= triage.BATCH_FILES
        assert len(batch) == 1 or sum(file.size for file in batch) <= triage.BATCH_BYTES


@given(st.permutations(range(12)), st.integers(1, 5))
def test_the_order_of_files_does_not_matter(order: list[int], limit: int) -> None:
    """However the readers overtake each other, the report is the same."""

    def report(numbers: list[int]) -> dict[str, Any]:
        tally = triage.new_tally()
        for number in numbers:
            figures = {"bytes": number % 3, "lines": number, "markers": number % 4, "todo": number % 4, "fixme": 0}
            row = {"path": f"{number:02}", "kind": "code", "language": "C", **figures, "finding": "odd"}
            if number < 9:
                row["content"] = (f"digest of {number % 3}", f"inode {number // 2}")
            triage.add(tally, [row], limit)
        return triage.report({}, [], tally, limit)

    assert report(sorted(order)) == report(order)


def test_names_of_one_file_are_no_duplicates(tmp_path: Path) -> None:
    """A hard link wastes nothing, neither does an empty file; of what is there twice one copy is needed."""
    for name, content in {"a": b"same", "b": b"same", "c": b"emas", "d": b"", "e": b"", "f": b"other"}.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "a2").hardlink_to(tmp_path / "a")
    (tmp_path / "f2").hardlink_to(tmp_path / "f")
    report = whole(tmp_path)
    assert (1, 4, 2) == (report["duplicates"], report["wasted"], report["empty"])
    assert [{"wasted": 4, "bytes": 4, "copies": 2, "paths": ["a", "b"]}] == report["duplicate_files"]


def test_names_and_patterns_are_left_out(tmp_path: Path) -> None:
    """Files and folders are skipped by name at any depth, and counted; nothing is with an empty list."""
    for path in (".git/config", "a/node_modules/b.js", "a/keep.o", "a/x.egg-info/y", "a/keep.o2"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    counted = [
        (report["files"], report["ignored"])
        for report in (whole(tmp_path), whole(tmp_path, ignore=["*.o", "*.egg-info"]), whole(tmp_path, ignore=[]))
    ]
    assert [(3, 2), (3, 2), (5, 0)] == counted


def test_an_empty_directory_has_a_report(tmp_path: Path) -> None:
    """With nothing to count the figures are there, and zero."""
    report = whole(tmp_path)
    assert (0, 0, 0, 0, 0) == tuple(report[name] for name in ("files", "bytes", "lines", "todo", "wasted"))
    assert [] == report["kinds"] == report["largest_files"] == report["findings"]


def test_a_folder_that_cannot_be_listed_is_a_finding(tmp_path: Path) -> None:
    """What has vanished before the walk comes to it is named, be it the root itself."""
    plan = triage.walk({"path": str(tmp_path / "gone"), "ignore": []}, nothing)
    assert ([], [{"path": ".", "finding": "No such file or directory"}]) == (plan["batches"], plan["findings"])


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
    report = await triaged(nasty, deadline=0.3, largest=2)
    late = "not read: it took more than 0.3 s"
    assert {**findings(without), "huge.md": late, "huge too": late} == findings(report)
    assert [
        {"path": "huge too", "language": "unknown", "bytes": 1 << 42, "lines": None},
        {"path": "huge.md", "language": "Markdown", "bytes": 1 << 42, "lines": None},
    ] == report["largest_files"]
    expected = [without["files"] + 2, without["bytes"] + 2 * (1 << 42), without["lines"], without["unread"] + 2]
    assert expected == [report[name] for name in ("files", "bytes", "lines", "unread")]


@pytest.mark.anyio
async def test_files_are_measured_off_the_event_loop(nasty: Path) -> None:
    """What blocks runs in worker threads, the walk too."""
    reload(triage)
    threads = []

    def watched(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def call(asked: Any) -> Any:
            threads.append(threading.current_thread())
            return function(asked)

        return call

    async with AgentRuntime() as runtime:
        for name in ("walk", "measure"):
            runtime.handler(name)(watched(getattr(triage, name)))
        runtime.handler("triage")(triage.workflow)
        report = await runtime.run("triage", {"path": str(nasty)})
    assert 1 + report["files"] == len(threads)
    assert threading.current_thread() not in threads


@pytest.mark.anyio
async def test_one_failure_costs_one_file(nasty: Path) -> None:
    """A bug that one file brings to light is a finding, and the other files of its batch are read."""
    reload(triage)

    def measure(asked: dict[str, Any]) -> dict[str, Any]:
        if asked["file"].path == "binary":
            raise ZeroDivisionError("division by zero")
        return dict(triage.measure(asked))

    async with AgentRuntime() as runtime:
        runtime.handler("measure")(measure)
        runtime.handler("triage")(triage.workflow)
        report = await runtime.run("triage", {"path": str(nasty)})
    assert "not read: division by zero" == findings(report)["binary"]
    assert told_by_tools(nasty)["unread"] + 1 == report["unread"]
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
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(Path(triage.__file__ or "").parent), os.getcwd()))}
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
