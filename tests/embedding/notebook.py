"""A notebook without its page: a real kernel, whose cells are sent by the test."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any, NamedTuple, Self

import jupyter_client
import pytest

from tests.embedding.hosts import INT, LIMIT, Program

COLOURS = re.compile(r"\x1b\[[0-9;]*m")
GROUP = re.compile(r"Exception Group Traceback.*?^  \| (?:\w+\.)*(\w+): ", re.DOTALL | re.MULTILINE)


class Cell(NamedTuple):
    """What came of a cell.

    Attributes:
        said: on both channels while it ran, by whomever.
        error: the name of the exception; empty if there was none.
        traceback: as the page shows it, without colours.
    """

    said: str
    error: str
    traceback: str


class Notebook(Program):
    """A kernel that has started when the block begins, with its client."""

    def __init__(self, place: Path, **environment: str) -> None:
        self._file = place / "kernel.json"
        homes = dict.fromkeys(("HOME", "IPYTHONDIR", "JUPYTER_RUNTIME_DIR"), str(place))
        super().__init__("-m", "ipykernel_launcher", "-f", str(self._file), **homes, **environment)

    def __enter__(self) -> Self:
        super().__enter__()
        try:
            self.wait_for("--existing")
            self._client = jupyter_client.BlockingKernelClient(connection_file=str(self._file))
            self._client.load_connection_file()
            self._client.start_channels()
            self._client.wait_for_ready(timeout=LIMIT)
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        self.said = ""
        return self

    def __exit__(self, *told: object) -> None:
        client = getattr(self, "_client", None)
        if client is not None:
            client.stop_channels()
            client.context.destroy(linger=0)
        super().__exit__(*told)

    def start(self, code: str) -> str:
        """Run a cell; return what `result` takes."""
        cell: str = self._client.execute(code)
        return cell

    def result(self, cell: str) -> Cell:
        """Wait for the end of a cell."""
        before = len(self.said)
        error = traceback = ""
        while True:
            message = self._message()
            content = message["content"]
            if message["parent_header"].get("msg_id") != cell:
                continue
            if message["msg_type"] == "error":
                error, traceback = content["ename"], COLOURS.sub("", "\n".join(content["traceback"]))
            if message["msg_type"] == "status" and content["execution_state"] == "idle":
                said = self.said[before:]
                # The kernel prints a group of exceptions, and does not tell of it otherwise.
                group = GROUP.search(said)
                return Cell(said, group[1], said) if group else Cell(said, error, traceback)

    def run(self, code: str) -> Cell:
        """Run a cell and wait for its end."""
        return self.result(self.start(code))

    def interrupt(self) -> None:
        """Send the signal that the button 'stop' sends."""
        self.signal(INT)
        # The kernel notes the signal, and does not wake up its loop for it: it acts at the next message.
        self._client.kernel_info()

    def until_said(self, pattern: str) -> None:
        """Wait until something stands below any of the cells."""
        end = time.monotonic() + LIMIT
        while not re.search(pattern, self.said, re.MULTILINE):
            assert time.monotonic() < end, f"in vain: no {pattern!r} in {self.said!r}"
            self._message()

    def _message(self) -> dict[str, Any]:
        """Take the next message of the kernel, and keep what is said."""
        try:
            message: dict[str, Any] = self._client.get_iopub_msg(timeout=LIMIT)
        except Exception as error:
            error.add_note(f"said so far:\n{self.said}")
            raise
        if message["msg_type"] == "stream":
            self.said += message["content"]["text"]
        return message

    def shut_down(self) -> int:
        """End the kernel as the menu does; return its exit code."""
        self._client.shutdown()
        return self.finish()


def good(cell: Cell) -> str:
    """Return what was said by a cell that has not failed."""
    if cell.error:
        pytest.fail(f"the cell failed: {cell.traceback}")
    return cell.said
