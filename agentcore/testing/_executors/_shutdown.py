"""What is said of `Executor.shutdown`, of the block, and of programs that end while jobs are left."""

# ruff: noqa: TID251 - the interface of the standard library is what is tested here

import contextlib
import inspect
import os
import subprocess
import sys
from concurrent.futures import CancelledError, Future
from typing import Any, Final

import pytest

from agentcore.testing._executors import _jobs
from agentcore.testing._executors._base import MANY, MOMENT, Cases, Gate, Notes, Start

REFUSED: Final = "cannot schedule new futures after shutdown"
REFUSED_AT_EXIT: Final = "cannot schedule new futures after interpreter shutdown"


class ShutdownCases(Cases):
    """`shutdown` and ``with``."""

    def test_shutdown_waits_for_all_jobs(self, start: Start, gate: Gate, notes: Notes) -> None:
        """Those that run and those that wait; their results can be had later."""
        executor = start(max_workers=1)
        futures = [self._hold(executor, gate), *self._queue(executor, notes)]
        ending = self._apart(executor.shutdown)
        with pytest.raises(TimeoutError):
            ending.result(MOMENT)
        gate.open()
        assert ending.result(self.patience) is None
        assert all(future.done() for future in futures)
        assert notes.read() == [future.result(0) for future in futures[1:]]

    def test_shutdown_without_waiting_lets_the_jobs_end(self, start: Start, gate: Gate, notes: Notes) -> None:
        """It returns at once."""
        executor = start(max_workers=1)
        futures = [self._hold(executor, gate), *self._queue(executor, notes)]
        self._promptly(executor.shutdown, wait=False)
        assert not futures[0].done()
        gate.open()
        assert [future.result(self.patience) for future in futures] == ["held", *notes.read()]
        assert len(notes.read()) == MANY

    def test_shutdown_can_cancel_what_has_not_begun(self, start: Start, gate: Gate, notes: Notes) -> None:
        """What has begun goes on to its end, which the call waits for."""
        executor = start(max_workers=1)
        held, *queued = self._hold(executor, gate), *self._queue(executor, notes)
        ending = self._apart(executor.shutdown, cancel_futures=True)
        with pytest.raises(CancelledError):
            queued[-1].result(self.patience)
        with pytest.raises(TimeoutError):
            ending.result(MOMENT)
        gate.open()
        ending.result(self.patience)
        assert held.result(0) == "held"
        assert all(future.done() for future in queued)
        assert notes.read() == [future.result(0) for future in queued if not future.cancelled()]
        if self.kind == "thread":
            assert all(future.cancelled() for future in queued)

    def test_shutdown_can_cancel_without_waiting(self, start: Start, gate: Gate, notes: Notes) -> None:
        """Nobody waits in vain for what is cancelled."""
        executor = start(max_workers=1)
        held, *queued = self._hold(executor, gate), *self._queue(executor, notes)
        self._promptly(executor.shutdown, wait=False, cancel_futures=True)
        with pytest.raises(CancelledError):
            queued[-1].result(self.patience)
        assert not held.done()
        gate.open()
        assert held.result(self.patience) == "held"
        for future in queued:
            # Not by `wait`, which learns of a cancelled future from a worker, and none need come to these any more.
            with contextlib.suppress(CancelledError):
                future.result(self.patience)

    def test_options_of_shutdown_have_their_names(self, start: Start) -> None:
        """``cancel_futures`` by keyword only."""
        executor = start(max_workers=1)
        with pytest.raises(TypeError):
            executor.shutdown(True, True)  # type: ignore[call-arg]
        self._promptly(executor.shutdown, wait=True, cancel_futures=False)

    def test_shutdown_may_be_called_again(self, start: Start, gate: Gate) -> None:
        """The second call may wait where the first did not; an executor without jobs is no matter either."""
        executor = start(max_workers=1)
        held = self._hold(executor, gate)
        self._promptly(executor.shutdown, wait=False)
        gate.open()
        assert held.result(self.patience) == "held"
        self._promptly(executor.shutdown)
        self._promptly(executor.shutdown, cancel_futures=True)
        unused = start(max_workers=1)
        self._promptly(unused.shutdown)
        self._promptly(unused.shutdown)

    def test_nothing_can_be_submitted_after_a_shutdown(self, start: Start, gate: Gate) -> None:
        """A RuntimeError says so, from the call on, also while jobs still run."""
        executor = start(max_workers=1)
        self._hold(executor, gate)
        self._promptly(executor.shutdown, wait=False)
        for _ in range(2):
            with pytest.raises(RuntimeError, match=REFUSED):
                executor.submit(pow, 2, 2)
            with pytest.raises(RuntimeError, match=REFUSED):
                executor.map(pow, [2], [2])
            gate.open()
            self._promptly(executor.shutdown)

    def test_block_shuts_down_and_waits(self, start: Start, gate: Gate, notes: Notes) -> None:
        """It gives the executor itself."""
        made = start(max_workers=1)
        futures: list[Future[Any]] = []

        def in_block() -> None:
            with made as executor:
                assert executor is made
                futures.append(self._hold(executor, gate))
                futures.append(executor.submit(_jobs.note, notes.path, "queued"))
                gate.open()

        self._promptly(in_block)
        assert all(future.done() for future in futures)
        assert notes.read() == ["queued"]
        with pytest.raises(RuntimeError, match=REFUSED):
            made.submit(pow, 2, 2)

    def test_block_that_is_left_by_an_error_waits_too(self, start: Start, notes: Notes) -> None:
        """The error goes on."""
        made = start(max_workers=1)
        futures = self._queue(made, notes)

        def in_block() -> None:
            with made:
                _jobs.fail()

        with pytest.raises(_jobs.JobError):
            self._promptly(in_block)
        assert all(future.done() for future in futures)
        assert len(notes.read()) == MANY
        with pytest.raises(RuntimeError, match=REFUSED):
            made.submit(pow, 2, 2)


class ExitCases(Cases):
    """Programs that end. Each is one, with an executor that `make` makes there."""

    def test_program_that_forgets_its_executor_runs_its_jobs(self, gate: Gate, notes: Notes) -> None:
        """All of them, before it ends."""
        self._program("forget", gate, notes)
        assert notes.read() == [f"job {number}" for number in range(MANY)]

    def test_program_that_lets_go_of_its_executor_runs_its_jobs(self, gate: Gate, notes: Notes) -> None:
        """Whatever the garbage collector thinks of the executor."""
        self._program("drop", gate, notes)
        assert notes.read() == [f"job {number}" for number in range(MANY)]

    def test_program_that_shuts_down_without_waiting_runs_its_jobs(self, gate: Gate, notes: Notes) -> None:
        """``wait=False`` concerns the call, not the program."""
        self._program("shut_down", gate, notes)
        assert notes.read() == [f"job {number}" for number in range(MANY)]

    def test_program_that_cancels_its_jobs_runs_what_has_begun(self, gate: Gate, notes: Notes) -> None:
        """And ends, without the rest."""
        self._program("cancel", gate, notes)
        assert notes.read()[0] == "job 0"
        assert f"job {MANY - 1}" not in notes.read()

    def test_program_that_fails_runs_its_jobs(self, gate: Gate, notes: Notes) -> None:
        """Its exit code is its own."""
        self._program("fail", gate, notes, code=3)
        assert notes.read() == [f"job {number}" for number in range(MANY)]

    def test_exit_handlers_are_called_when_the_jobs_are_done(self, gate: Gate, notes: Notes) -> None:
        """So they may take away what jobs need."""
        self._program("clean_up", gate, notes)
        assert notes.read() == [*(f"job {number}" for number in range(MANY)), "late handler", "early handler"]

    def test_nothing_can_be_submitted_while_the_interpreter_ends(self, gate: Gate, notes: Notes) -> None:
        """A RuntimeError says so: an executor that had jobs counts as shut down by then."""
        self._program("submit_late", gate, notes)
        refusals = [f"RuntimeError: {REFUSED}", f"RuntimeError: {REFUSED_AT_EXIT}"]
        assert notes.read()[-1] in refusals

    def test_nothing_can_be_begun_while_the_interpreter_ends(self, gate: Gate, notes: Notes) -> None:
        """The same for the first job of an executor."""
        gate.open()
        self._program("begin_late", gate, notes)
        assert notes.read() in ([f"RuntimeError: {REFUSED}"], [f"RuntimeError: {REFUSED_AT_EXIT}"])

    def _program(self, name: str, gate: Gate, notes: Notes, code: int = 0) -> None:
        """Run a program until it has nothing more to do, open the gate to its jobs, and wait for its end."""
        cls = type(self)
        module, file = cls.__module__, inspect.getfile(cls)
        host, port = gate.address
        was_open = gate.is_open
        held, before = ["job 0"], list[str]()  # as it should be
        command = [sys.executable, "-m", "agentcore.testing._executors._programs", name]
        command += [module, file, cls.__qualname__, host, str(port), notes.path]
        with subprocess.Popen(  # noqa: S603 - this very interpreter
            command,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as program:
            try:
                assert program.stdout is not None
                line = self._promptly(program.stdout.readline)
                if not was_open:
                    held = gate.wait_for(1, lambda: program.poll() is not None)
                    before = notes.read()
                    gate.open()
                out, errors = program.communicate(timeout=self.patience)
            except BaseException:
                program.kill()
                raise
        expected: tuple[object, ...] = (["job 0"], [], "end of the program\n", "", code)
        assert expected == (held, before, line, out, program.returncode), errors
