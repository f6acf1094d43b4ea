"""The monitor counts what is in a log, heals from broken lines and says which they were, and ends when it should."""

import json
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

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
    """What is added is counted when its line is complete; a log that is cut off or exchanged is read from its beginning.

    While it is not there the tailer is started again and again.
    """
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
