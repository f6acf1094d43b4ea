"""The parts of the triage, each by itself: options, kinds, counts, complexity, the walk, batches, the report."""

import os
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentcore import ConfigurationError, WorkerCrashedError
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


def measured(root: Path | str, path: str, size: int = 7, inode: str = "") -> dict[str, Any]:
    """Return the row of figures of a file."""
    row: dict[str, Any] = triage.measure({"root": str(root), "file": triage.Planned(path, size, inode)})
    return row


def row_of(folder: Path, name: str, content: bytes) -> dict[str, Any]:
    """Return the row of figures of a file that has this name and this content."""
    (folder / name).write_bytes(content)
    return measured(folder, name)


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


def test_walking_can_be_stopped_between_entries(tmp_path: Path) -> None:
    """What the check raises ends a thread in the middle of a walk."""
    seen = []

    def stop_at_the_third() -> None:
        seen.append(1)
        if len(seen) == 3:
            raise KeyboardInterrupt

    for name in "abcd":
        (tmp_path / name).mkdir()
    with pytest.raises(KeyboardInterrupt):
        triage.walk({"path": str(tmp_path), "ignore": []}, stop_at_the_third)
    assert 3 == len(seen)


@pytest.mark.parametrize(
    ("why", "expected"),
    [
        (TimeoutError("late"), "it took more than 2.5 s"),
        (WorkerCrashedError("signal 9"), "the process that measured it died"),
        (PermissionError(13, "Permission denied", "file"), "Permission denied"),
        (ZeroDivisionError("division by zero"), "division by zero"),
    ],
)
def test_a_loss_has_a_reason(why: BaseException, expected: str) -> None:
    """Whatever became of a file, its finding says it in a few words."""
    assert expected == triage.loss(why, 2.5)


def test_jobs_and_rows_travel_between_processes(tmp_path: Path) -> None:
    """What goes to another process and comes back from there is the same as here."""
    (tmp_path / "a.py").write_bytes(b"def f(): pass\n")
    job = {"root": str(tmp_path), "file": triage.Planned("a.py", 14, "1:2"), "deadline": 1.0}
    function, there = pickle.loads(pickle.dumps((triage.measure, job)))
    assert triage.measure(job) == pickle.loads(pickle.dumps(function(there)))


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
