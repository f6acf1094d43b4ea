"""The handler of the logger ``agentcore``.

There is one, for the whole process. A further `init_logging` does not replace it but what is in it, in one step under its
lock: a record of another thread is written to the old place or to the new one, never to both or to none.
"""

from __future__ import annotations

import logging
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TextIO, final

from agentcore._rules.backoff import show
from agentcore.config import LoggingConfiguration
from agentcore.errors import ConfigurationError

_logger: Final = logging.getLogger("agentcore")
_FIELDS: Final = ("task_id", "agent", "trace_id")
"""What a record may have besides; given by ``extra=``."""


def init_logging(config: LoggingConfiguration | None = None) -> logging.Logger:
    """Show the records of agentcore: set the level of the logger ``agentcore``, and give it a handler of its own.

    Its records no longer reach the handlers of the root logger: who has some there would see each twice. Neither the root
    logger nor any other handler is touched. May be called again, at any time and from any thread: the last call counts.

    Args:
        config: what is shown, how and where. With ``enabled=False`` the handler goes, if there is one, and level and
            propagation are what they were before it came.

    Returns:
        The logger.

    Raises:
        ConfigurationError: `config` is none, or its file cannot be opened; everything is as it was then.
    """
    config = LoggingConfiguration() if config is None else config
    if not isinstance(config, LoggingConfiguration):
        raise ConfigurationError(
            f"config of init_logging must be a LoggingConfiguration: got {show(config)}; "
            "pass load_configuration().logging",
            {"name": "config", "value": config},
        )
    if config.enabled:
        _install(config)
    else:
        _uninstall()
    return _logger


_lock: Final = threading.Lock()
_installed: _Handler | None = None
# The level and the propagation of the logger before the handler came.
_before: tuple[int, bool] = (logging.NOTSET, True)


def _install(config: LoggingConfiguration) -> None:
    global _installed, _before  # noqa: PLW0603 - process-wide by nature
    formatter = _JsonFormatter() if config.format == "json" else _TextFormatter()
    with _lock:
        file = _open(config.output)
        if _installed is None:
            _installed = _Handler()
            _before = (_logger.level, _logger.propagate)
        _installed.turn_to(file, formatter)
        _logger.setLevel(config.level)
        _logger.propagate = False
        _logger.addHandler(_installed)  # once, however often it is called


def _uninstall() -> None:
    global _installed  # noqa: PLW0603 - process-wide by nature
    with _lock:
        if _installed is None:
            return
        _logger.removeHandler(_installed)
        _installed.close()
        _installed = None
        _logger.setLevel(_before[0])
        _logger.propagate = _before[1]


def _open(output: str) -> TextIO | None:
    if output == "stderr":
        return None
    try:
        # What cannot be said in UTF-8 is escaped: a record is never lost for one letter.
        return Path(output).open("a", encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise ConfigurationError(
            f"the file of logging.output must be writable: got {output!r}, {error.strerror}; "
            "create its directory, or name another",
            {"name": "logging.output", "value": output},
        ) from error


@final
class _Handler(logging.Handler):
    """Writes to a file, or to whatever is the standard error stream at the moment."""

    _file: TextIO | None = None

    def turn_to(self, file: TextIO | None, formatter: logging.Formatter) -> None:
        """Write there from now on, and close the file before."""
        self.acquire()
        try:
            old, self._file = self._file, file
            self.setFormatter(formatter)
        finally:
            self.release()
        if old is not None:
            old.close()

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record; called under the lock. What goes wrong is told as logging does it, and harms nobody."""
        try:
            # Asked for each time: tests and servers put another stream there. A program without a console has none.
            stream = self._file or sys.stderr
            if stream is not None:
                stream.write(f"{self.format(record)}\n")
                stream.flush()
        except RecursionError:
            raise
        except Exception:  # noqa: BLE001 - a record that cannot be written is no reason to break what it tells of
            self.handleError(record)

    def close(self) -> None:
        """Close the file. What is logged after that, at the end of the process, goes to the standard error stream."""
        self.turn_to(None, self.formatter or _TextFormatter())
        super().close()


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    """Return what the record has besides: which task, agent and trace it belongs to."""
    found = {name: getattr(record, name, None) for name in _FIELDS}
    return {name: value for name, value in found.items() if value is not None}


@final
class _TextFormatter(logging.Formatter):
    """A line for people, and a traceback below it if there is one."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - so it is called in logging
        """Return the line."""
        line = f"{_time(record)} {record.levelname} {record.name}: {record.message}"
        fields = " ".join(f"{name}={value}" for name, value in _fields(record).items())
        return f"{line} [{fields}]" if fields else line


@final
class _JsonFormatter(logging.Formatter):
    """One JSON object in one line, whatever is in the record."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        import json  # noqa: PLC0415 - loaded when needed

        told: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            told["error"] = self.formatException(record.exc_info)
        if record.stack_info:
            told["stack"] = self.formatStack(record.stack_info)
        return json.dumps(told, ensure_ascii=False, default=str)
