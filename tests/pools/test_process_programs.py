"""Process pools in whole programs: their main module, signals, and their end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import zipapp
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from tests.pools.process_lines import LIMIT, Lines, has_ended, watched

ROOT = Path(__file__).parent.parent.parent
MODULE = "tests.pools.process_program"
QUIET = ["-W", "ignore::DeprecationWarning", "-m"]
"""A program with threads had better not fork, says the interpreter."""
both = pytest.mark.parametrize("backend", ["asyncio", "trio"])


@pytest.fixture
def lines(tmp_path: Path) -> Iterator[Lines]:
    lines = Lines(tmp_path)
    yield lines
    lines.close()


@contextmanager
def program(*args: str) -> Generator[subprocess.Popen[str]]:
    """Start a program in a group of processes of its own, as a terminal does it."""
    process = subprocess.Popen(
        [sys.executable, *args],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # whatever it has left behind, too


def finish(process: subprocess.Popen[str], complaints: str = "") -> str:
    """Let a program end; return what it has said that was not read."""
    out, error = process.communicate(timeout=LIMIT)
    assert (0, complaints) == (process.returncode, error)
    return out


def go_on(process: subprocess.Popen[str]) -> None:
    """Have a program read a line."""
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def output(*args: str) -> str:
    with program(*args) as process:
        return finish(process)


def written(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(textwrap.dedent(text))
    return str(path)


# The main module.

START = """
    from agentcore import ProcessWorkerPool, ProcessWorkerPoolConfig
    from tests.pools import process_jobs as jobs

    def double(number):
        return 2 * number

    def work():
        with ProcessWorkerPool("own", ProcessWorkerPoolConfig(workers=1)) as pool:
            for function in (jobs.double, double, jobs.double):
                try:
                    print(pool.submit(function, 4).result(10))
                except Exception as error:
                    print(type(error).__name__, error)
"""


@pytest.mark.parametrize("how", [["-m", MODULE], ["tests/pools/process_program.py"]], ids=["module", "script"])
def test_main_module_is_loaded_once_when_it_is_needed(how: list[str]) -> None:
    """Its functions, classes and errors are those of the program."""
    said = output(*how, "use main")
    assert "moved True 2\nloaded once True True __mp_main__ True\nraised True True\n" == said


def test_package_that_is_a_program(tmp_path: Path) -> None:
    """`python -m package`: the module with its name, imports from beside it included."""
    written(tmp_path, "prog/__init__.py", "")
    written(tmp_path, "prog/beside.py", "NUMBER = 40")
    written(
        tmp_path,
        "prog/__main__.py",
        f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\nfrom . import beside\n"
        + textwrap.dedent(START)
        + "\nif __name__ == '__main__':\n    print(beside.NUMBER)\n    work()\n",
    )
    command = f"import sys, runpy; sys.path.insert(0, {str(tmp_path)!r}); runpy.run_module('prog', run_name='__main__', alter_sys=True)"
    assert "40\n8\n8\n8\n" == output("-c", command)


def test_script_without_a_guard_is_told_what_is_wrong(tmp_path: Path) -> None:
    """Its own functions alone need the module, which starts workers when it is loaded. The worker goes on."""
    script = written(tmp_path, "open.py", START.replace("except Exception", "except ImportError") + "\n    work()\n")
    first, second, third = output(script).splitlines()
    assert ("8", "8") == (first, third)
    assert second.startswith("ImportError the main module of the program must be loadable in a worker process: got ")
    assert "must not start workers while a worker loads the main module" in second
    assert second.endswith(
        "put what it does behind `if __name__ == '__main__':`, or the function into a module of its own"
    )


def test_program_without_a_file() -> None:
    """As in a notebook: whatever is in a module works, and for the rest there is an error at once."""
    first, second, third = output("-c", textwrap.dedent(START) + "work()").splitlines()
    assert ("8", "8") == (first, third)
    assert second.startswith("AttributeError ")
    assert "double" in second


@pytest.mark.parametrize("name", ["head", "encode", "flush", "main", "serve"])
def test_program_without_a_file_is_not_taken_for_the_worker(name: str) -> None:
    """Whose functions it may happen to have names of."""
    program = textwrap.dedent(START).replace("def double", f"def {name}").replace(" double,", f" {name},")
    first, second, third = output("-c", program + "\nwork()").splitlines()
    assert ("8", "8") == (first, third)
    assert second.startswith("AttributeError ")


@pytest.mark.parametrize("is_archive", [False, True], ids=["folder", "archive"])
def test_folder_that_is_a_program(tmp_path: Path, is_archive: bool) -> None:
    script = written(tmp_path, "app/__main__.py", START + "\n    if __name__ == '__main__':\n        work()\n")
    target = Path(script).parent
    if is_archive:
        target = tmp_path / "app.pyz"
        zipapp.create_archive(Path(script).parent, target)
    assert "8\n8\n8\n" == output(str(target))


# Signals.


def test_broken_line_ends_no_program_that_has_the_signal_of_the_shell() -> None:
    """Many utilities restore it. The worker is killed while it is given a job."""
    program = """
        import os, signal
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        from agentcore import ProcessWorkerPool, ProcessWorkerPoolConfig, WorkerCrashedError

        with ProcessWorkerPool("own", ProcessWorkerPoolConfig(workers=1)) as pool:
            pool.submit(len, "abc").result(10)
            (worker,) = pool._workers
            os.kill(worker.child._process.pid, signal.SIGSTOP)
            worker.child._socket.shutdown(2)
            print(pool.submit(len, "abc").result(10))
    """
    assert "3\n" == output("-c", textwrap.dedent(program))


def test_interrupt_is_meant_for_the_program(lines: Lines) -> None:
    """Workers do not hear it, though they are in the same group of processes."""
    with program("-m", MODULE, "be interrupted", *lines.paths) as process:
        worker = lines.begun.hear()
        os.killpg(process.pid, signal.SIGINT)
        assert process.stdout is not None
        assert "heard\n" == process.stdout.readline()
        lines.gate.say()
        assert f"unharmed {worker}\n" == finish(process)


@both
def test_interrupted_program_ends_its_workers(lines: Lines, backend: str) -> None:
    """By its own way out: the block of the pool is left."""
    with (
        program("-m", MODULE, "be interrupted by default", *lines.paths, backend) as process,
        watched(int(lines.begun.hear())) as worker,
    ):
        os.killpg(process.pid, signal.SIGINT)
        assert "interrupted\n" == finish(process)
        assert has_ended(worker, 0)


def test_workers_that_compute_end_with_the_program_that_is_killed(lines: Lines) -> None:
    """All of them, though a child of the program lives on."""
    with program(*QUIET, MODULE, "be killed", lines.begun.path) as process, ExitStack() as stack:
        workers = [stack.enter_context(watched(int(lines.begun.hear()))) for _ in range(3)]
        go_on(process)
        assert process.stdout is not None
        assert "forked\n" == process.stdout.readline()
        process.kill()
        assert all(has_ended(worker) for worker in workers)


def test_program_that_forgets_its_pool_ends_at_once(lines: Lines) -> None:
    """And so does the worker, whatever it is at."""
    with program("-m", MODULE, "leave", *lines.paths) as process, watched(int(lines.begun.hear())) as worker:
        assert not finish(process)
        assert has_ended(worker)


@both
def test_pool_of_a_loop_ends_with_it(lines: Lines, backend: str) -> None:
    """With what it is at: nobody has asked for it to be drained."""
    with (
        program("-m", MODULE, "leave loop", *lines.paths, backend) as process,
        watched(int(lines.begun.hear())) as worker,
    ):
        cut = "worker pool 'own' was shut down before these jobs had ended: spin\n"
        assert "over\n" == finish(process, cut)
        assert has_ended(worker, 0)


def test_fork_of_the_program_does_not_hurt_its_pool(lines: Lines) -> None:
    with program(*QUIET, MODULE, "fork", *lines.paths) as process:
        lines.begun.hear()
        go_on(process)
        assert process.stdout is not None
        assert "child 5\n" == process.stdout.readline()
        lines.gate.say()
        assert "unharmed\nnext True\nclosed\n" == finish(process)


def test_program_that_has_forked_has_pools_of_its_own(lines: Lines) -> None:
    assert "child 8\n10\n" == output(*QUIET, MODULE, "fork first", *lines.paths)
