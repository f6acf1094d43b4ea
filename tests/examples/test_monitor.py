"""The monitor counts what is in a log, heals from broken lines and says which they were, and ends when it should."""

import json
import os
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import anyio
import pytest

from agentcore import AgentCrashedError, AgentRuntime
from agentcore.testing import simulate
from examples import monitor
from tests.embedding.hosts import INT, LIMIT, Program

BROKEN = {8: b"caf\xe9 is latin", 100: b"\xff\xfe"}


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A log of five minutes with an error every five seconds, and two lines that are no text."""
    path = tmp_path / "some.log"
    path.write_bytes(b"".join(line + b"\n" for line in lines(300)))
    return path


def lines(number: int) -> list[bytes]:
    """Return lines of a log, one a second."""
    return [
        BROKEN.get(at)
        or f"2026-01-01 10:{at // 60:02d}:{at % 60:02d} {'ERROR' if at % 5 == 0 else 'INFO'} took {at} ms".encode()
        for at in range(1, number + 1)
    ]


async def watched(log: monitor.Log, lost: int = 20) -> dict[str, Any]:
    """Watch a log to its end."""
    async with AgentRuntime() as runtime:
        await monitor.watch(runtime, log, lost)
    return log.report()


@pytest.mark.anyio
async def test_the_report_is_true(log: Path) -> None:
    """What is no text is lost, each such line for itself; all else is counted as one would by hand."""
    report = await watched(monitor.Log(path=str(log), once=True))
    good = [line.decode() for line in lines(300) if line not in BROKEN.values()]
    assert (300, len(good)) == (report["read"], report["counted"])
    assert list(BROKEN) == [one["line"] for one in report["lost"]]
    assert all("codec can't decode byte" in one["why"] for one in report["lost"])
    assert Counter(line.split()[2].lower()[:4] for line in good) == Counter(
        {name[:4]: number for name, number in (("erro", report["levels"]["err"]), ("info", report["levels"]["info"]))}
    )
    assert Counter(line[:16] for line in good) == report["windows"]
    assert {"ERROR took # ms": 59, "INFO took # ms": 239} == report["patterns"]


@pytest.mark.anyio
async def test_an_alarm_is_raised_once_a_window(log: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In the line that is one too many; the lost one is none of them."""
    report = await watched(monitor.Log(path=str(log), once=True, rate=11))
    assert [175, 235, 295] == [alarm["line"] for alarm in report["alarms"]]
    assert "more than 11 within 2026-01-01 10:02, now line 175: 2026-01-01 10:02:55 ERROR took 175 ms" in caplog.text
    assert [] == (await watched(monitor.Log(path=str(log), once=True, rate=12)))["alarms"]


@pytest.mark.anyio
async def test_the_others_do_not_notice(log: Path) -> None:
    """One_for_one: only the aggregator is started again, once for each line that has crashed it."""
    watch = monitor.Log(path=str(log), once=True)
    async with AgentRuntime() as runtime:
        await monitor.watch(runtime, watch, 20)
        assert await runtime.drain()
        events = Counter((event.event_type, event.data.get("agent")) for event in runtime.events())
    crashes = {key: number for key, number in events.items() if key[0] in {"agent_crashed", "agent_restarted"}}
    assert {("agent_crashed", "aggregator"): 2, ("agent_restarted", "aggregator"): 2} == crashes


@pytest.mark.anyio
async def test_too_many_losses_end_the_watch_and_nothing_else(tmp_path: Path) -> None:
    """The runtime goes on; at its end it tells of them, and of nothing that was no loss."""
    path = tmp_path / "binary.log"
    path.write_bytes(b"\xff\n" * 50)
    watch = monitor.Log(path=str(path), once=True)
    with pytest.raises(AgentCrashedError) as caught:
        async with AgentRuntime() as runtime:
            await monitor.watch(runtime, watch, 3)
            with anyio.fail_after(LIMIT):
                await until_gone(runtime)
            assert "open" == runtime.health().state
    (failure,) = caught.value.exceptions
    assert isinstance(failure, AgentCrashedError)
    assert ["UnicodeDecodeError"] * 4 == [type(error).__name__ for error in failure.exceptions]
    assert [1, 2, 3, 4] == [one["line"] for one in watch.lost]


async def until_gone(runtime: AgentRuntime) -> None:
    """Wait until the first supervisor runs nothing any more."""
    gone = anyio.Event()
    end = runtime.subscribe(lambda event: event.event_type == "supervisor_gave_up" and gone.set())
    if not any(event.event_type == "supervisor_gave_up" for event in runtime.events()):
        await gone.wait()
    end()
    while runtime.supervisor.children:
        await anyio.lowlevel.checkpoint()


@pytest.mark.anyio
@simulate(runs=3)
async def test_a_log_is_followed(tmp_path: Path) -> None:
    """What is added is counted when its line is complete; a log that is cut off or exchanged is read from its beginning."""
    path = tmp_path / "growing.log"
    path.write_bytes(b"one\ntwo")
    watch = monitor.Log(path=str(path))
    async with AgentRuntime() as runtime:
        await monitor.start(runtime, watch)
        seen = [await after_a_while(watch)]
        aside = partial(path.rename, tmp_path / "growing.log.1")
        for change in (partial(add, path, b" and a half\nthree\n"), partial(path.write_bytes, b"four\n"), aside):
            change()
            seen.append(await after_a_while(watch))
        path.write_bytes(b"five\nsix\nseven\n")
        seen.append(await after_a_while(watch))
    assert [1, 3, 4, 4, 7] == seen
    assert not watch.lost


@pytest.mark.anyio
@simulate(runs=3)
async def test_a_log_may_be_away_for_long(tmp_path: Path) -> None:
    """What is written to it meanwhile, and what had been just before, is counted; then the one in its place."""
    path, aside = tmp_path / "app.log", tmp_path / "app.log.1"
    path.write_bytes(b"one\n")
    watch = monitor.Log(path=str(path))
    async with AgentRuntime() as runtime:
        await monitor.start(runtime, watch)
        seen = [await after_a_while(watch)]
        add(path, b"two\n")
        path.rename(aside)
        await anyio.sleep(100)
        seen.append(await after_a_while(watch))
        add(aside, b"three\nfour")
        path.write_bytes(b"five\n")
        seen.append(await after_a_while(watch))
        assert not [event for event in runtime.events() if event.event_type == "agent_crashed"]
    assert [1, 2, 5] == seen
    assert {"one": 1, "two": 1, "three": 1, "four": 1, "five": 1} == watch.report()["patterns"]


@pytest.mark.parametrize("once", [False, True])
@pytest.mark.anyio
@simulate(runs=3)
async def test_a_watch_of_what_cannot_be_read_ends(tmp_path: Path, once: bool) -> None:
    """The tailer is started again as often as it may, and no more."""
    with pytest.raises(AgentCrashedError, match=r"supervisor 'monitor' gives up: .*Is a directory"):
        await watched(monitor.Log(path=str(tmp_path), once=once))
    with pytest.raises(AgentCrashedError, match="No such file"):
        await watched(monitor.Log(path=str(tmp_path / "gone.log"), once=once))


@pytest.mark.anyio
@simulate(runs=3)
async def test_a_tailer_that_fails_is_followed_by_one_that_goes_on(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is counted twice, and nothing left out."""
    failures = [False, True, False, True]
    read_on = monitor.Tailer.read_on

    def maybe(tailer: monitor.Tailer, file: BinaryIO) -> bytes | None:
        if failures and failures.pop():
            raise OSError("a disk of another machine")
        return read_on(tailer, file)

    monkeypatch.setattr(monitor.Tailer, "read_on", maybe)
    monkeypatch.setattr(monitor, "CHUNK", 1000)
    report = await watched(monitor.Log(path=str(log), once=True))
    assert (300, 298, list(BROKEN)) == (report["read"], report["counted"], [one["line"] for one in report["lost"]])


@pytest.mark.parametrize("chunk", [1, 2, 7, 1000])
@pytest.mark.anyio
@simulate(runs=2)
async def test_a_line_that_is_written_in_parts_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    """Also where its end comes between two reads of the same look."""
    path = tmp_path / "growing.log"
    path.write_bytes(b"one\nbegin")
    parts = [b"", b" two\nand", b" and", b"ning and end\n"]
    read_on = monitor.Tailer.read_on

    def read_and_write(tailer: monitor.Tailer, file: BinaryIO) -> bytes | None:
        found = read_on(tailer, file)
        if parts:
            add(path, parts.pop())
        return found

    monkeypatch.setattr(monitor.Tailer, "read_on", read_and_write)
    monkeypatch.setattr(monitor, "CHUNK", chunk)
    watch = monitor.Log(path=str(path))
    async with AgentRuntime() as runtime:
        await monitor.start(runtime, watch)
        await anyio.sleep(10)
    assert {"one": 1, "beginning and end": 1, "and two": 1} == watch.report()["patterns"]
    assert b"and" == watch.rest


def add(path: Path, content: bytes) -> None:
    with path.open("ab") as file:
        file.write(content)


async def after_a_while(watch: monitor.Log) -> int:
    """Return how many lines are counted in a second."""
    await anyio.sleep(1)
    return watch.counted


@pytest.mark.anyio
async def test_giving_up_closes_everything(log: Path) -> None:
    """Whoever is cancelled in the middle leaves nothing behind."""
    watch = monitor.Log(path=str(log))
    with anyio.fail_after(LIMIT):
        async with anyio.create_task_group() as group:
            group.start_soon(watched, watch)
            while not watch.counted:
                await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()
    assert watch.ended.is_set()


@pytest.mark.anyio
async def test_who_watches_a_pipe_can_give_up() -> None:
    """Though nothing comes, and nothing says that nothing will."""
    read, write = os.pipe()
    try:
        watch = monitor.Log(path=f"/proc/self/fd/{read}", once=True)
        os.write(write, b"one\ntwo")
        with anyio.fail_after(LIMIT):
            async with anyio.create_task_group() as group:
                group.start_soon(watched, watch)
                while not watch.counted:
                    await anyio.lowlevel.checkpoint()
                group.cancel_scope.cancel()
    finally:
        os.close(write)
        os.close(read)
    assert (1, b"two") == (watch.counted, watch.rest)


def command(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run the example as a program."""
    line = [sys.executable, "-W", "error", monitor.__file__ or "", *arguments]
    return subprocess.run(line, capture_output=True, text=True, check=False, timeout=60)


def test_the_command_says_the_same_on_both_backends(log: Path) -> None:
    """The report stands on the output, what is lost on the error output."""
    documents = []
    for backend in ("asyncio", "trio"):
        done = command("--once", str(log), "--rate", "12", "--backend", backend)
        assert 0 == done.returncode, done.stderr
        assert [f"WARNING: line {number} is lost" for number in BROKEN] == [
            line.partition(": '")[0] for line in done.stderr.splitlines()
        ]
        documents.append(json.loads(done.stdout))
    assert documents[0] == documents[1]
    assert 298 == documents[0]["counted"]


def test_the_command_tells_of_a_watch_that_ends_early(tmp_path: Path) -> None:
    """With what is known by then, and why."""
    (tmp_path / "binary.log").write_bytes(b"\xff\n" * 50)
    done = command("--once", str(tmp_path / "binary.log"), "--lost", "2")
    assert (1, 3) == (done.returncode, len(json.loads(done.stdout)["lost"]))
    assert "supervisor 'monitor' gives up: got 3 restarts within 10 s, 2 are allowed" in done.stderr


def test_the_command_refuses_what_is_not_there(tmp_path: Path) -> None:
    """The exit code is that of a wrong command line, the message says what to do."""
    done = command(str(tmp_path / "gone.log"))
    assert (2, "") == (done.returncode, done.stdout)
    assert "path must be that of a log that is there: got" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--match", "["), "--match must be a regular expression: got one with unterminated character set"),
        (("--lost", "-1"), "--rate and --lost must not be negative: got 10 and -1"),
        (("--rate", "-1"), "--rate and --lost must not be negative: got -1 and 20"),
        (("--once", "."), "path must be that of a log that is there: got '.'"),
    ],
)
def test_the_command_explains_wrong_arguments(log: Path, arguments: tuple[str, str], message: str) -> None:
    done = command(*arguments, *([] if "." in arguments else [str(log)]))
    assert (2, "", False) == (done.returncode, done.stdout, "Traceback" in done.stderr)
    assert message in done.stderr


def test_a_long_word_takes_no_longer_than_it_is(tmp_path: Path) -> None:
    """The square of it would be half an hour."""
    path = tmp_path / "long.log"
    path.write_bytes(b"x" * 500_000 + b"\n" + b"x" * 500_000 + b"1\n")
    done = command("--once", str(path))
    assert 0 == done.returncode, done.stderr
    assert {"x" * 500_000: 1, "#": 1} == json.loads(done.stdout)["patterns"]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_an_interrupt_ends_it_while_a_pipe_is_silent(backend: str) -> None:
    """The rest of a line that has no end is none."""
    with Program(monitor.__file__ or "", "/dev/stdin", "--once", "--rate", "0", "--backend", backend) as program:
        assert program.process.stdin is not None
        program.process.stdin.write("ERROR one\nERROR two")
        program.process.stdin.flush()
        program.wait_for("now line 1")
        program.settle()
        program.signal(INT)
        assert 0 == program.finish()
        assert 1 == json.loads(program.output[program.output.index("{\n") :])["read"]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_an_interrupt_ends_it_properly(log: Path, backend: str) -> None:
    """All that is read is counted, and the report is printed."""
    with Program(monitor.__file__ or "", str(log), "--rate", "11", "--backend", backend) as program:
        program.wait_for("now line 295")
        program.settle()
        program.signal(INT)
        assert 0 == program.finish()
        report = json.loads(program.output[program.output.index("{\n") :])
    assert (300, 298) == (report["read"], report["counted"])
