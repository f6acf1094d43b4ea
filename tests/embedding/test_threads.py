"""A synchronous program whose threads share a runtime."""

from __future__ import annotations

import pytest

from tests.embedding.hosts import INT, TERM, Program, Work, records, traces

both = pytest.mark.parametrize("backend", ["asyncio", "trio"])
NAMES = [f"thread {n}" for n in range(4)]


def program(backend: str, case: str, *, grace: float = 10) -> Program:
    return Program("-m", "tests.embedding.apps.threads", backend, case, GRACE=str(grace))


def under_way(process: Program) -> list[Work]:
    return process.expect(*NAMES)


@both
def test_four_threads_have_their_results(backend: str) -> None:
    """All at a time; the block ends with the last of them."""
    with program(backend, "end") as process:
        for work in under_way(process):
            work.end()
        assert process.finish() == 0
        outputs = [line for line in process.output.splitlines() if line.startswith("output ")]
        assert sorted(outputs) == [f"output {{'name': {name!r}}}" for name in NAMES]
        assert process.output.endswith("line closed\nblock left\n")
        assert records(process.output, "[A-Z]+") == []


@both
def test_a_failure_that_nobody_looks_at_comes_out_of_the_block(backend: str) -> None:
    with program(backend, "fail") as process:
        assert process.finish() == 1
        assert "agentcore.AgentCrashedError: 1 failures in the background" in process.output
        assert traces(process.output, "ValueError: nobody looked") == 1
        assert "block left" not in process.output


@both
@pytest.mark.parametrize(
    ("case", "text"), [("exit", "the agent gave up"), ("break", "the line is dead")], ids=["exit", "resource"]
)
def test_a_crash_reaches_every_thread(backend: str, case: str, text: str) -> None:
    """Each gets an error for its call; the end of the block raises what happened."""
    with program(backend, case) as process:
        works = under_way(process)
        process.go_on()
        for work in works:
            work.wait_for_cut()
        assert process.finish() == 1
        output = process.output
        assert output.count(" cleaned up\n") == 4
        assert output.count(" got TaskCanceledError\n") == 4
        assert "state failed, 1 failures\n" in output
        assert text in next(line for line in output.splitlines() if line.startswith("refused: "))
        assert len(records(output, "CRITICAL")) == 1
        assert "agentcore.AgentCrashedError: 1 failures in the background" in output


@both
def test_sigint_cuts_the_calls_of_every_thread(backend: str) -> None:
    """KeyboardInterrupt in the main thread leaves the block; no thread hangs in its call."""
    with program(backend, "wait") as process:
        works = under_way(process)
        process.settle()
        process.signal(INT)
        for work in works:
            work.wait_for_cut()
        assert process.finish() == -INT
        assert process.output.count(" cleaned up\n") == 4
        assert len([line for line in process.output.splitlines() if " got " in line]) == 4


@both
def test_sigterm_that_the_program_handles_lets_calls_end(backend: str) -> None:
    with program(backend, "own handler") as process:
        works = under_way(process)
        process.wait_for("ready")
        process.signal(TERM)
        for work in works:
            work.wait_for_draining()
            work.end()
        assert process.finish() == 0
        assert process.output.count("output ") == 4


@both
def test_sigterm_that_the_program_handles_cuts_calls_after_the_grace(backend: str) -> None:
    with program(backend, "own handler", grace=0.1) as process:
        works = under_way(process)
        process.wait_for("ready")
        process.signal(TERM)
        for work in works:
            work.wait_for_cut()
        assert process.finish() == 0
        assert process.output.count(" cleaned up\n") == 4
        assert process.output.count(" got TaskCanceledError\n") == 4
