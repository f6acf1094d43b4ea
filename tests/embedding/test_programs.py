"""Runtimes in programs that own their event loop: plain `asyncio.run` and `trio.run`, strict and hosted.

Nothing here handles signals unless the program does: a runtime that is embedded leaves them alone.
"""

from __future__ import annotations

import re

import pytest

from tests.embedding.hosts import INT, TERM, Program, records, traces

both = pytest.mark.parametrize("backend", ["asyncio", "trio"])
modes = pytest.mark.parametrize("mode", ["strict", "hosted"])
crashes = pytest.mark.parametrize(
    ("case", "text", "line"),
    [
        ("exit", "the agent gave up", "SystemExit: the agent gave up"),
        ("break", "the line is dead", "ValueError: the line is dead"),
    ],
    ids=["exit", "resource"],
)


def program(backend: str, mode: str, case: str, *, grace: float = 10) -> Program:
    return Program("-m", "tests.embedding.apps.program", backend, mode, case, GRACE=str(grace))


@both
@modes
def test_the_end_of_the_block_waits_for_what_was_submitted(backend: str, mode: str) -> None:
    """The background task ends by itself, and nothing is said."""
    with program(backend, mode, "end") as process:
        (background,) = process.expect("background")
        background.wait_for_draining()
        background.end()
        assert process.finish() == 0
        assert process.output.splitlines()[:2] == ["background cleaned up", "background done"]
        assert process.output.splitlines()[2:] == ["line closed", "block left", "loop left"]


@both
@modes
def test_a_failure_that_nobody_looks_at_comes_out_of_the_block(backend: str, mode: str) -> None:
    """It is in the one traceback."""
    with program(backend, mode, "fail") as process:
        assert process.finish() == 1
        assert "agentcore.AgentCrashedError: 1 failures in the background" in process.output
        assert traces(process.output, "ValueError: nobody looked") == 1
        assert "block left" not in process.output


@both
@crashes
def test_a_crash_leaves_the_block_of_a_hosted_runtime_to_its_author(
    backend: str, case: str, text: str, line: str
) -> None:
    """Its work is cut, calls are refused with the reason, the end of the block raises it."""
    with program(backend, "hosted", case) as process:
        process.expect("background")[0].wait_for_cut()
        assert process.finish() == 1
        output = process.output
        assert "background cleaned up\n" in output
        assert "state failed, 1 failures\n" in output
        assert "line closed\n" in output
        refused = next(line for line in output.splitlines() if line.startswith("refused: "))
        assert text in refused
        assert len(records(output, "CRITICAL")) == 1
        raised = re.search(r"agentcore\.AgentCrashedError: (1 failures in the background of the runtime: .*)", output)
        assert raised is not None
        assert text in raised[1]
        # Told twice: when it happened, and at the end.
        assert traces(output, line) == 2


@both
def test_what_exits_in_a_strict_runtime_ends_the_program(backend: str) -> None:
    """SystemExit cuts the block and everything in it."""
    with program(backend, "strict", "exit") as process:
        process.expect("background")[0].wait_for_cut()
        assert process.finish() == 1
        assert "background cleaned up\n" in process.output
        assert "line closed\n" in process.output
        assert "the agent gave up" in process.output
        assert "block left" not in process.output


@both
def test_a_dead_resource_cuts_a_strict_runtime(backend: str) -> None:
    """The block is cancelled, and raises the error of the resource."""
    with program(backend, "strict", "break") as process:
        process.expect("background")[0].wait_for_cut()
        assert process.finish() == 1
        assert "background cleaned up\n" in process.output
        assert "line closed\n" in process.output
        assert traces(process.output, "ValueError: the line is dead") == 1
        assert "block left" not in process.output


@both
@modes
def test_sigint_cuts_the_work(backend: str, mode: str) -> None:
    """KeyboardInterrupt comes out of the block; what was cut has cleaned up."""
    with program(backend, mode, "wait") as process:
        own, background = process.expect("own", "background")
        process.settle()
        process.signal(INT)
        own.wait_for_cut()
        background.wait_for_cut()
        assert process.finish() == -INT
        for name in ("own cleaned up\n", "background cleaned up\n", "line closed\n"):
            assert process.output.count(name) == 1
        assert process.output.rstrip().endswith("KeyboardInterrupt")


@both
def test_sigterm_is_not_handled(backend: str) -> None:
    """The process is gone, as every Python program is that does nothing about it."""
    with program(backend, "strict", "wait") as process:
        process.expect("own", "background")
        process.signal(TERM)
        assert process.finish() == -TERM
        assert process.output == ""


@both
@modes
def test_sigterm_that_the_program_handles_drains(backend: str, mode: str) -> None:
    """Leaving the block is all it takes."""
    with program(backend, mode, "own handler") as process:
        (background,) = process.expect("background")
        process.wait_for("ready")
        process.signal(TERM)
        background.wait_for_draining()
        background.end()
        assert process.finish() == 0
        assert process.output.endswith("background done\nline closed\nblock left\nloop left\n")


@both
@modes
def test_sigterm_that_the_program_handles_cuts_after_the_grace(backend: str, mode: str) -> None:
    with program(backend, mode, "own handler", grace=0.1) as process:
        (background,) = process.expect("background")
        process.wait_for("ready")
        process.signal(TERM)
        background.wait_for_cut()
        assert process.finish() == 0
        assert process.output.endswith("background cleaned up\nline closed\nblock left\nloop left\n")


@both
def test_a_runtime_that_is_never_left_ends_with_its_loop(backend: str) -> None:
    """Its tasks are cut, it is closed, and one warning says what was forgotten."""
    with program(backend, "open", "-") as process:
        process.expect("background")
        assert process.finish() == 0
        assert "background cleaned up\n" in process.output
        assert "line closed\n" in process.output
        assert [process.output.count(level) for level in ("WARNING ", "ERROR ", "CRITICAL ")] == [1, 0, 0]
        assert process.output.endswith("loop left\n")
