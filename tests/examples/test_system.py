"""The system of the example tells the truth about a folder, gets along with a disk in trouble, and leaves nothing behind."""

import errno
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib import reload
from pathlib import Path
from typing import Any

import anyio
import pytest

from agentcore import AgentRuntime, RuntimeClosedError
from examples import system
from tests.core.systems import process_of_its_own


@pytest.fixture(autouse=True)
def of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Begin without anything of the process, in a folder without a configuration."""
    monkeypatch.chdir(tmp_path)
    with process_of_its_own():
        reload(system)
        yield


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with texts, copies, what is no text, and what is not looked at."""
    root = tmp_path / "folder"
    (root / "deep" / "er").mkdir(parents=True)
    (root / "node_modules").mkdir()
    contents = {
        "one.txt": b"Apples and pears, apples and plums\n",
        "deep/two.txt": b"pears\n",
        "deep/er/copy of two.txt": b"pears\n",
        "empty": b"",
        "also empty": b"",
        "binary": bytes(range(256)) * 9,
        "large": b"large " * (1 << 18),
        os.fsdecode(b"caf\xe9"): b"cafe\n",
        "node_modules/skipped.txt": b"skipped\n",
    }
    for name, content in contents.items():
        (root / name).write_bytes(content)
    return root


def samples_of(folder: Path) -> list[bytes]:
    """Return the beginnings of all files that are looked at."""
    files = [path for path in folder.rglob("*") if path.is_file() and "node_modules" not in path.parts]
    return [path.read_bytes()[: system.SAMPLE] for path in files]


@pytest.mark.anyio
async def test_the_report_is_true(folder: Path) -> None:
    """Counts, words and copies are those of the files, as far as they are looked at."""
    report = await system.survey(str(folder))
    samples = samples_of(folder)
    assert (len(samples), sum(map(len, samples)), {}) == (report["files"], report["bytes"], report["troubles"])
    assert {"apples": 2, "pears": 3, "plums": 1, "cafe": 1} == {
        word: count for word, count in report["words"].items() if word not in {"large", "larg"}
    }
    assert [[str(folder / "deep/er/copy of two.txt"), str(folder / "deep/two.txt")]] == report["copies"]
    assert 0 < report["packed"] < report["bytes"]


@pytest.mark.anyio
async def test_nothing_is_left_of_it(folder: Path) -> None:
    """No runtime, no pool and no thread of one; and it can be started again."""
    first = await system.survey(str(folder))
    with pytest.raises(RuntimeClosedError, match="there is no open runtime here"):
        AgentRuntime.current()
    assert [] == [thread.name for thread in threading.enumerate() if "tasks" in thread.name]
    assert first == await system.survey(str(folder))


@pytest.mark.anyio
async def test_one_worker_is_enough(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The configuration of the environment is in force, and changes nothing of the report."""
    report = await system.survey(str(folder))
    monkeypatch.setenv("AGENTCORE_IO_WORKERS", "1")
    monkeypatch.setenv("AGENTCORE_CPU_WORKERS", "1")
    monkeypatch.setenv("AGENTCORE_RUNTIME__IN_FLIGHT", "1")
    assert report == await system.survey(str(folder))


@pytest.mark.anyio
async def test_what_may_not_be_read_is_a_trouble_of_its_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says nothing about the disk, so the circuit stays closed however many of them there are."""
    paths = await anyio.to_thread.run_sync(lambda: [str(folder / f"gone {number}") for number in range(9)])
    listed = system.list_files(str(folder))
    monkeypatch.setattr(system, "list_files", lambda _: [*paths, *listed])
    report = await system.survey(str(folder))
    assert dict.fromkeys(paths, "No such file or directory") == report["troubles"]
    assert len(paths) + len(listed) == report["files"]


@pytest.mark.anyio
async def test_a_disk_in_trouble_is_left_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After so many errors in a row nothing is read any more, and the report says so."""
    tried = []

    async def read(path: str) -> bytes:
        tried.append(path)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(system, "read", read)
    monkeypatch.setenv("AGENTCORE_API_FAILURE_THRESHOLD", "3")
    monkeypatch.setenv("AGENTCORE_IO_WORKERS", "1")
    monkeypatch.setenv("AGENTCORE_RUNTIME__IN_FLIGHT", "1")
    report = await system.survey(str(folder))
    assert 3 == len(tried)
    assert {"Input/output error": 3, "not tried: the disk is in trouble": report["files"] - 3} == {
        text: list(report["troubles"].values()).count(text) for text in set(report["troubles"].values())
    }


@pytest.mark.anyio
async def test_giving_up_closes_everything(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is cancelled in the middle waits for nothing but the unwinding."""
    reading = anyio.Event()

    async def read(path: str) -> bytes:
        reading.set()
        await anyio.sleep_forever()
        raise AssertionError(path)

    monkeypatch.setattr(system, "read", read)
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(system.survey, str(folder))
            await reading.wait()
            group.cancel_scope.cancel()
    with pytest.raises(RuntimeClosedError, match="there is no open runtime here"):
        AgentRuntime.current()
    assert [] == [thread.name for thread in threading.enumerate() if "tasks" in thread.name]


def test_a_sample_is_measured() -> None:
    """The figures of one content, and none of words for what is no text."""
    content = b"Some words, some MORE words"
    row: dict[str, Any] = system.measure(content)
    assert {"some": 2, "words": 2, "more": 1} == row["words"]
    assert (len(content), hashlib.sha256(content).hexdigest()) == (row["bytes"], row["digest"])
    assert {} == system.measure(b"words\0")["words"]


def command(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run the example as a program."""
    line = [sys.executable, "-W", "error", system.__file__ or "", *arguments]
    return subprocess.run(line, capture_output=True, text=True, check=False, timeout=60)


def test_the_command_says_the_same_on_both_backends(folder: Path) -> None:
    """On the output stands the report and nothing else."""
    documents = []
    for backend in ("asyncio", "trio"):
        done = command(str(folder), "--backend", backend)
        assert 0 == done.returncode, done.stderr
        assert done.stderr.endswith("INFO agentcore.system: the system is shut down\n")
        documents.append(json.loads(done.stdout))
    assert documents[0] == documents[1]
    assert 8 == documents[0]["files"]


def test_the_command_refuses_what_is_no_folder(folder: Path) -> None:
    """The exit code is that of a wrong command line, the message says what to do."""
    done = command(str(folder / "one.txt"))
    assert (2, "") == (done.returncode, done.stdout)
    assert "path must be that of a folder that is there: got" in done.stderr
