"""What `init_logging` shows, and what it leaves alone."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from agentcore import ConfigurationError
from agentcore.config import LoggingConfiguration
from agentcore.observe import init_logging

logger = logging.getLogger("agentcore.tests")


@pytest.fixture(autouse=True)
def no_handler() -> Iterator[None]:
    """Begin and end without a handler of agentcore's own."""
    init_logging(LoggingConfiguration(enabled=False))
    yield
    init_logging(LoggingConfiguration(enabled=False))


class Remembering(logging.Handler):
    """A handler of somebody else."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.told.append(record.getMessage())


@pytest.fixture
def of_root() -> Iterator[Remembering]:
    """A handler at the root, as a program has it."""
    handler = Remembering()
    logging.getLogger().addHandler(handler)
    yield handler
    logging.getLogger().removeHandler(handler)


def test_records_are_shown_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    """One line each, with time, level and logger, from the level on."""
    assert init_logging() is logging.getLogger("agentcore")
    logger.info("hello %s", "you")
    logger.debug("too quiet")
    out, err = capsys.readouterr()
    time, _, rest = err.partition(" ")
    assert (out, rest) == ("", "INFO agentcore.tests: hello you\n")
    assert datetime.fromisoformat(time).utcoffset() == timedelta(0)


def test_stderr_is_the_one_of_the_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever puts another stream there later gets the records."""
    init_logging()
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    logger.error("here")
    monkeypatch.setattr(sys, "stderr", None)  # as in a program without a console
    logger.error("nowhere")
    assert stream.getvalue().endswith(" ERROR agentcore.tests: here\n")


@pytest.mark.parametrize("level", ["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"])
def test_level(level: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What is below it costs no more than a look."""
    init_logging(LoggingConfiguration(level=level))
    for name in ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"):
        logger.log(getattr(logging, name), "x")
    shown = [line.split()[1] for line in capsys.readouterr().err.splitlines()]
    assert shown[0] == level
    assert logger.isEnabledFor(logging.DEBUG) == (level == "DEBUG")


def test_text_says_what_a_record_belongs_to(capsys: pytest.CaptureFixture[str]) -> None:
    """Task, agent and trace, as far as they are known, and nothing else that may be in the record."""
    init_logging()
    logger.error("bad", extra={"task_id": "t-1", "trace_id": None, "agent": "fox", "password": "hunter2"})
    assert capsys.readouterr().err.endswith("agentcore.tests: bad [task_id=t-1 agent=fox]\n")


def test_text_shows_tracebacks(capsys: pytest.CaptureFixture[str]) -> None:
    """Below the line."""
    init_logging()
    try:
        raise OSError("gone")
    except OSError:
        logger.exception("failed")
    lines = capsys.readouterr().err.splitlines()
    assert (lines[0].split(": ")[-1], lines[1], lines[-1]) == (
        "failed",
        "Traceback (most recent call last):",
        "OSError: gone",
    )


def test_json_is_one_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever is in the record: line breaks, quotes, an exception, a stack, things that JSON does not know."""
    init_logging(LoggingConfiguration(format="json"))
    try:
        raise OSError('so "sad"\n')
    except OSError:
        logger.exception('a\n"b" ü', extra={"task_id": 5, "agent": Path("x"), "other": object()}, stack_info=True)
    logger.info("next")
    first, second = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert first.pop("error").endswith('OSError: so "sad"\n')
    assert first.pop("stack").startswith("Stack (most recent call last):")
    assert datetime.fromisoformat(first.pop("time")).utcoffset() == timedelta(0)
    assert first == {
        "level": "ERROR",
        "logger": "agentcore.tests",
        "message": 'a\n"b" ü',
        "task_id": 5,
        "agent": "x",
    }
    assert (second["message"], sorted(second)) == ("next", ["level", "logger", "message", "time"])


@pytest.mark.parametrize("form", ["text", "json"])
def test_no_record_is_lost_for_a_letter(form: str, tmp_path: Path) -> None:
    """What UTF-8 cannot say is escaped."""
    file = tmp_path / "a.log"
    init_logging(LoggingConfiguration(format=form, output=str(file)))
    logger.error("name \udc80 ü")
    text = file.read_text(encoding="utf-8")
    assert "name \\udc80 ü" in text
    if form == "json":
        assert json.loads(text)["message"] == "name \udc80 ü"


def test_a_file_is_appended_to(tmp_path: Path) -> None:
    """What an earlier run has written stays."""
    file = tmp_path / "a.log"
    file.write_text("before\n", encoding="utf-8")
    init_logging(LoggingConfiguration(output=str(file)))
    logger.info("now")
    assert [line.split()[-1] for line in file.read_text(encoding="utf-8").splitlines()] == ["before", "now"]


def test_again_replaces_what_was_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """There is one handler however often it is called; each record is in one place, and old files are closed."""
    files = [tmp_path / name for name in ("a.log", "b.log")]
    for file in files:
        init_logging(LoggingConfiguration(output=str(file)))
        logger.info("to %s", file.name)
    init_logging(LoggingConfiguration(level="ERROR", format="json"))
    logger.info("too quiet")
    logger.error("to stderr")
    assert len(logging.getLogger("agentcore").handlers) == 1
    assert [file.read_text(encoding="utf-8").split(": ")[1] for file in files] == ["to a.log\n", "to b.log\n"]
    assert json.loads(capsys.readouterr().err)["message"] == "to stderr"
    for file in files:
        file.unlink()  # fails on some systems if it were still open


def test_other_handlers_are_left_alone(of_root: Remembering, capsys: pytest.CaptureFixture[str]) -> None:
    """Those of the root logger get none of its records, which would be shown twice; one at the logger itself stays."""
    root = logging.getLogger()
    before = (list(root.handlers), root.level)
    mine = Remembering()
    logging.getLogger("agentcore").addHandler(mine)
    try:
        init_logging()
        init_logging()
        logger.warning("once")
        logging.getLogger("elsewhere").warning("of another")
    finally:
        logging.getLogger("agentcore").removeHandler(mine)
    assert (mine.told, of_root.told) == (["once"], ["of another"])
    assert capsys.readouterr().err.count("once") == 1
    assert before == (list(root.handlers), root.level)


def test_disabled_puts_back_what_was_before(of_root: Remembering, tmp_path: Path) -> None:
    """Level and propagation are those of the program again, and the file is closed. Doing so again does nothing."""
    own = logging.getLogger("agentcore")
    own.setLevel(logging.ERROR)
    try:
        file = tmp_path / "a.log"
        init_logging(LoggingConfiguration(output=str(file), level="DEBUG"))
        init_logging(LoggingConfiguration(output=str(file), level="INFO"))
        assert (own.level, own.propagate) == (logging.INFO, False)
        for _ in range(2):
            init_logging(LoggingConfiguration(enabled=False))
        assert (own.level, own.propagate, own.handlers) == (logging.ERROR, True, [])
        logger.error("to the root")
        assert (of_root.told, file.read_text(encoding="utf-8")) == (["to the root"], "")
    finally:
        own.setLevel(logging.NOTSET)


def test_a_handler_that_somebody_has_taken_away_comes_back(capsys: pytest.CaptureFixture[str]) -> None:
    """Test runners and servers clear handlers; a further call is enough."""
    init_logging()
    logging.getLogger("agentcore").handlers.clear()
    init_logging()
    logger.info("here")
    assert capsys.readouterr().err.count("here") == 1


def test_a_file_that_cannot_be_opened_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The error names it, and records go where they went before."""
    init_logging()
    file = tmp_path / "no" / "a.log"
    with pytest.raises(ConfigurationError) as caught:
        init_logging(LoggingConfiguration(output=str(file), level="ERROR"))
    assert str(caught.value) == (
        f"the file of logging.output must be writable: got {str(file)!r}, No such file or directory; "
        "create its directory, or name another"
    )
    assert caught.value.details == {"name": "logging.output", "value": str(file)}
    logger.info("still here")
    assert "still here" in capsys.readouterr().err


def test_a_file_that_cannot_be_opened_at_first(of_root: Remembering, tmp_path: Path) -> None:
    """The logger is as nobody had touched it."""
    with pytest.raises(ConfigurationError):
        init_logging(LoggingConfiguration(output=str(tmp_path)))
    logger.error("to the root")
    own = logging.getLogger("agentcore")
    assert (own.handlers, own.propagate, of_root.told) == ([], True, ["to the root"])


@pytest.mark.parametrize("config", [{}, "DEBUG", 5])
def test_a_configuration_must_be_one(config: Any) -> None:
    """The error says where it is from."""
    with pytest.raises(ConfigurationError) as caught:
        init_logging(config)
    assert str(caught.value) == (
        f"config of init_logging must be a LoggingConfiguration: got {config!r}; pass load_configuration().logging"
    )


def test_a_record_that_cannot_be_written_harms_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    """It is told as logging does it, and the program goes on."""
    init_logging()
    logger.info("%d pieces", "three")
    logger.info("next")
    err = capsys.readouterr().err
    assert "--- Logging error ---" in err
    assert err.endswith("agentcore.tests: next\n")


def test_running_out_of_stack_is_not_hidden() -> None:
    """To tell of it would need the stack that is used up: the program learns of it."""
    init_logging()

    class Deep:
        def __str__(self) -> str:
            raise RecursionError("deep")

    with pytest.raises(RecursionError, match="deep"):
        logger.info("%s", Deep())


def test_no_record_is_lost_or_doubled_while_the_place_changes(tmp_path: Path) -> None:
    """Threads log all the time; each record is in one of the two files, once and whole."""
    files = [str(tmp_path / name) for name in ("a.log", "b.log")]
    init_logging(LoggingConfiguration(output=files[0]))

    def tell(thread: int) -> None:
        for number in range(200):
            logger.info("%s", f"{thread}-{number}")

    with ThreadPoolExecutor(4) as threads:
        telling = [threads.submit(tell, thread) for thread in range(4)]
        turns = 0
        while turns < 4 or not all(one.done() for one in telling):
            turns += 1
            init_logging(LoggingConfiguration(output=files[turns % 2]))
    init_logging(LoggingConfiguration(enabled=False))
    lines = [line for file in files for line in Path(file).read_text(encoding="utf-8").splitlines()]
    assert sorted(line.split(": ")[1] for line in lines) == sorted(
        f"{thread}-{number}" for thread in range(4) for number in range(200)
    )


def test_at_the_end_of_the_process(tmp_path: Path) -> None:
    """The file is closed in order; what is logged after that is shown and not lost; nothing is said of open files."""
    file = tmp_path / "a.log"
    program = (
        "import logging, sys, threading\n"
        "from agentcore.config import LoggingConfiguration\n"
        "from agentcore.observe import init_logging\n"
        "assert logging.getLogger('agentcore').handlers == []\n"
        "init_logging(LoggingConfiguration(output=sys.argv[1]))\n"
        "logging.getLogger('agentcore.x').info('in time')\n"
        "logging.shutdown()\n"
        "logging.getLogger('agentcore.x').info('late')\n"
    )
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", program, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert file.read_text(encoding="utf-8").endswith("agentcore.x: in time\n")
    assert done.stderr.endswith("agentcore.x: late\n")
    assert len(done.stderr.splitlines()) == 1
