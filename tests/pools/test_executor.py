"""The executor of a pool: its options, its own life beside the pool's, and what others do with it.

That it does what the standard library says of executors is in `test_conformance`.
"""

import asyncio
import concurrent.futures
import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures.thread import BrokenThreadPool
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from agentcore import (
    ConfigurationError,
    ProcessWorkerPool,
    ProcessWorkerPoolConfig,
    QueueWorkerPool,
    ThreadWorkerPool,
    ThreadWorkerPoolConfig,
    WorkerPoolBrokenError,
    WorkerPoolClosedError,
    WorkerPoolDeadlockError,
)
from agentcore.pools._executor import WorkerPoolExecutor

PATIENCE = 30
Pool = ThreadWorkerPool | ProcessWorkerPool


@pytest.fixture
def threads() -> Iterator[ThreadWorkerPool]:
    """A pool with one thread and room for one job that waits."""
    pool = ThreadWorkerPool("threads", ThreadWorkerPoolConfig(workers=1, max_queue_size=1))
    yield pool
    anyio.run(pool.shutdown)


@pytest.fixture
def processes() -> Iterator[ProcessWorkerPool]:
    pool = ProcessWorkerPool("processes", ProcessWorkerPoolConfig(workers=1))
    yield pool
    anyio.run(pool.shutdown)


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What jobs wait for; open at the end, before the pools are shut down."""
    event = threading.Event()
    yield event
    event.set()


def hold(executor: WorkerPoolExecutor, gate: threading.Event) -> concurrent.futures.Future[bool]:
    """Keep the only thread busy until the gate opens."""
    running = threading.Event()

    def job() -> bool:
        running.set()
        return gate.wait(PATIENCE)

    future = executor.submit(job)
    assert running.wait(PATIENCE)
    return future


def program(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, which has to come."""
    command = [sys.executable, "-W", "error", "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)


# ---------------------------------------------------------------- options


def nothing() -> None:
    pass


CONFIGURED = ThreadWorkerPoolConfig(workers=3, initializer=nothing, initargs=(1,), max_jobs_per_worker=7)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_workers": None, "thread_name_prefix": "", "mp_context": None, "initializer": None, "initargs": ()},
        {"max_workers": 3, "thread_name_prefix": "mine", "max_tasks_per_child": 7},
        {"initializer": nothing, "initargs": [1]},
    ],
)
def test_options_that_ask_for_what_the_pool_does_are_accepted(options: dict[str, Any]) -> None:
    """Calls that were written for the standard library's executors need no change."""
    assert isinstance(ThreadWorkerPool("mine", CONFIGURED).executor(**options), concurrent.futures.Executor)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"max_workers": 4},
            "max_workers of an executor must be what its pool 'mine' has, 3: got 4; set workers there",
        ),
        (
            {"max_workers": 0},
            "max_workers of an executor must be what its pool 'mine' has, 3: got 0; set workers there",
        ),
        (
            {"thread_name_prefix": "other"},
            "thread_name_prefix of an executor must be the name of its pool, 'mine': got 'other'; name the pool so",
        ),
        (
            {"mp_context": multiprocessing.get_context("spawn")},
            "mp_context of an executor must be left out for threads, of pool 'mine': got <multiprocessing",
        ),
        ({"initializer": print}, "initializer of an executor must be what its pool 'mine' has, <function nothing"),
        (
            {"initializer": nothing, "initargs": (2,)},
            "initargs of an executor must be what its pool 'mine' has, (1,): got (2,); set initargs there",
        ),
        (
            {"max_tasks_per_child": 1},
            "max_tasks_per_child of an executor must be what its pool 'mine' has, 7: got 1; set max_jobs_per_worker there",
        ),
    ],
)
def test_options_that_ask_for_something_else_are_refused(options: dict[str, Any], message: str) -> None:
    """The error names the setting of the pool."""
    with pytest.raises(ConfigurationError) as caught:
        ThreadWorkerPool("mine", CONFIGURED).executor(**options)
    assert str(caught.value).startswith(message)
    assert list(options)[-1] == caught.value.details["name"]


def test_number_of_workers_is_what_the_pool_has_by_default() -> None:
    """As many as there are CPUs, where nothing is configured."""
    pool = ThreadWorkerPool("mine")
    pool.executor(max_workers=pool.config.size)
    with pytest.raises(ConfigurationError, match="set workers there"):
        pool.executor(max_workers=pool.config.size + 1)


@pytest.mark.parametrize("context", ["spawn", multiprocessing.get_context("spawn")])
def test_processes_that_start_afresh_are_honoured(context: Any) -> None:
    """Whether the way to start is named, or a context as the standard library takes it."""
    ProcessWorkerPool("mine").executor(mp_context=context)


@pytest.mark.parametrize("method", sorted({"fork", "forkserver"} & set(multiprocessing.get_all_start_methods())))
def test_processes_that_do_not_start_afresh_are_refused(method: str) -> None:
    """Workers of pools are never forked."""
    for context in (method, multiprocessing.get_context(method)):
        with pytest.raises(ConfigurationError) as caught:
            ProcessWorkerPool("mine").executor(mp_context=context)
        assert str(caught.value) == (
            "mp_context of an executor must be 'spawn', for workers of pool 'mine' start afresh and are never forked: "
            f"got {method!r}; leave it out, and hand data to an initializer of the pool"
        )


def test_pool_for_coroutines_has_no_executor() -> None:
    """An executor takes plain functions."""
    with pytest.raises(ConfigurationError, match="executor must have a pool of threads or of processes"):
        WorkerPoolExecutor(QueueWorkerPool("mine"))  # type: ignore[arg-type]


# ---------------------------------------------------------------- beside the pool


def test_submit_is_never_refused_because_too_many_wait(threads: ThreadWorkerPool, gate: threading.Event) -> None:
    """The limit of the queue is for those who know of it."""
    executor = threads.executor()
    hold(executor, gate)
    futures = [executor.submit(pow, number, 2) for number in range(100)]
    assert threads.metrics.queued == 100
    gate.set()
    assert [future.result(PATIENCE) for future in futures] == [number**2 for number in range(100)]


def test_shutdown_ends_the_executor_and_not_the_pool(threads: ThreadWorkerPool, gate: threading.Event) -> None:
    """It waits for the jobs of its own, not for those of others."""
    mine, other = threads.executor(), threads.executor()
    assert mine.submit(pow, 2, 2).result(PATIENCE) == 4
    held = hold(other, gate)
    mine.shutdown()
    with pytest.raises(RuntimeError, match=r"^cannot schedule new futures after shutdown$"):
        mine.submit(pow, 2, 2)
    assert not held.done()
    gate.set()
    assert other.submit(pow, 2, 3).result(PATIENCE) == 8
    assert threads.submit(pow, 2, 4).result(PATIENCE) == 16
    assert threads.state == "open"


def test_cancelling_jobs_leaves_those_of_others_alone(threads: ThreadWorkerPool, gate: threading.Event) -> None:
    """`cancel_futures` is about the executor's own."""
    mine, other = threads.executor(), threads.executor()
    hold(other, gate)
    futures = [executor.submit(pow, 2, 2) for executor in (mine, other, mine)]
    mine.shutdown(cancel_futures=True)
    assert [future.cancelled() for future in futures] == [True, False, True]
    gate.set()
    assert futures[1].result(PATIENCE) == 4


def test_executor_of_a_pool_that_is_shut_down_takes_no_jobs(threads: ThreadWorkerPool) -> None:
    """With the error of the standard library; that of the pool is its cause."""
    executor = threads.executor()
    anyio.run(threads.shutdown)
    with pytest.raises(RuntimeError, match=r"^cannot schedule new futures after shutdown$") as caught:
        executor.submit(pow, 2, 2)
    assert isinstance(caught.value.__cause__, WorkerPoolClosedError)
    executor.shutdown()


def test_pool_that_is_shut_down_cancels_jobs_of_executors(threads: ThreadWorkerPool, gate: threading.Event) -> None:
    """So nobody waits for them in vain."""
    executor = threads.executor()
    held, queued = hold(executor, gate), executor.submit(pow, 2, 2)
    anyio.run(lambda: threads.shutdown(wait=False))
    assert queued.cancelled()
    gate.set()
    assert held.result(PATIENCE) is True
    executor.shutdown()


def test_broken_pool_raises_the_error_of_the_standard_library() -> None:
    """That of the pool, with the reason, is its cause."""

    def refuse() -> None:
        raise OSError("no")

    pool = ThreadWorkerPool("broken", ThreadWorkerPoolConfig(workers=1, initializer=refuse))
    executor = pool.executor()
    assert isinstance(executor.submit(pow, 2, 2).exception(PATIENCE), WorkerPoolBrokenError)
    with pytest.raises(BrokenThreadPool, match="workers of pool 'broken' cannot be started") as caught:
        executor.submit(pow, 2, 2)
    assert isinstance(caught.value.__cause__, WorkerPoolBrokenError)
    assert isinstance(caught.value.__cause__.__cause__, OSError)
    executor.shutdown()


def test_job_that_shuts_down_its_own_executor_gets_an_error(threads: ThreadWorkerPool) -> None:
    """Instead of waiting for itself for ever."""
    executor = threads.executor()
    with pytest.raises(WorkerPoolDeadlockError):
        executor.submit(executor.shutdown).result(PATIENCE)
    executor.shutdown()


def test_callbacks_have_been_called_when_the_block_is_left(threads: ThreadWorkerPool, gate: threading.Event) -> None:
    """Also the slow ones."""
    calls = []
    slow = threading.Event()

    def callback(future: concurrent.futures.Future[bool]) -> None:
        slow.wait(0.05)  # whoever does not wait for this one has left the block by then
        calls.append(future.result())

    with threads.executor() as executor:
        held = hold(executor, gate)
        held.add_done_callback(callback)
        threading.Timer(0.01, gate.set).start()
    assert calls == [True]


def test_submissions_that_race_with_a_shutdown_are_done_or_refused() -> None:
    """None is left between."""
    with ThreadWorkerPool("raced", ThreadWorkerPoolConfig(workers=2)) as pool:
        for _ in range(20):
            executor = pool.executor()
            futures: list[concurrent.futures.Future[int]] = []
            begun = threading.Semaphore(0)

            def submit(executor: WorkerPoolExecutor = executor, begun: threading.Semaphore = begun) -> None:
                try:
                    while True:
                        futures.append(executor.submit(pow, 2, 2))  # noqa: B023 - joined below
                        begun.release()
                except RuntimeError:
                    pass

            submitters = [threading.Thread(target=submit) for _ in range(3)]
            for thread in submitters:
                thread.start()
            for _ in range(10):
                begun.acquire()
            executor.shutdown(cancel_futures=True)
            for thread in submitters:
                thread.join(PATIENCE)
            assert all(future.done() for future in futures)


# ---------------------------------------------------------------- map


def test_closing_map_takes_back_what_has_not_begun(threads: ThreadWorkerPool, gate: threading.Event) -> None:
    """Also before its first result."""
    executor = threads.executor()
    for taken in (0, 1):
        held = hold(executor, gate) if taken == 0 else None
        results = executor.map(abs, range(10))
        if held is None:
            assert next(results) == 0
            gate.clear()
        results.close()  # type: ignore[attr-defined]
        assert threads.metrics.queued == 0
        gate.set()
        executor.submit(nothing).result(PATIENCE)
    assert threads.metrics.cancelled >= 10


def test_map_that_fails_takes_back_the_rest(threads: ThreadWorkerPool, gate: threading.Event) -> None:
    """By an error of its own, or because the time is over."""
    executor = threads.executor()
    hold(executor, gate)
    with pytest.raises(TimeoutError):
        next(executor.map(abs, range(10), timeout=0))
    assert threads.metrics.queued == 0
    assert threads.metrics.cancelled == 10


def test_map_that_is_forgotten_takes_back_the_rest(threads: ThreadWorkerPool, gate: threading.Event) -> None:
    """The garbage collector closes it."""
    executor = threads.executor()
    hold(executor, gate)
    executor.map(abs, range(10))
    assert threads.metrics.queued == 0


def test_map_with_a_buffer_has_so_many_jobs_ahead(threads: ThreadWorkerPool, gate: threading.Event) -> None:
    """On every version of Python."""
    executor = threads.executor()
    held = hold(executor, gate)
    results = executor.map(abs, iter(range(100)), buffersize=5)
    assert threads.metrics.queued == 5
    gate.set()
    assert held.result(PATIENCE) is True
    assert list(results) == list(range(100))


def test_chunks_need_nothing_of_this_library_in_the_worker(processes: ProcessWorkerPool) -> None:
    """A worker stays as light as what it is given to do."""
    executor = processes.executor()
    assert list(executor.map(pow, range(4), [2] * 4, chunksize=3)) == [0, 1, 4, 9]
    loaded = executor.submit(eval, "[name for name in __import__('sys').modules if name.startswith('agentcore')]")
    assert loaded.result(PATIENCE) == []


def test_buffer_of_chunks(processes: ProcessWorkerPool) -> None:
    """It counts chunks."""
    drawn: list[int] = []
    items = (drawn.append(number) or number for number in range(20))  # type: ignore[func-returns-value]
    results = processes.executor().map(abs, items, chunksize=3, buffersize=2)
    assert len(drawn) == 6
    assert list(results) == list(range(20))


# ---------------------------------------------------------------- who takes executors


@pytest.mark.anyio
async def test_run_in_executor(
    threads: ThreadWorkerPool, processes: ProcessWorkerPool, anyio_backend_name: str
) -> None:
    """On each loop of asyncio: results, errors, and many calls at once."""
    if anyio_backend_name == "trio":
        pytest.skip("asyncio only")
    loop = asyncio.get_running_loop()
    for executor in (threads.executor(), processes.executor()):
        assert await loop.run_in_executor(executor, pow, 2, 10) == 1024
        with pytest.raises(ValueError, match="invalid literal"):
            await loop.run_in_executor(executor, int, "x")
        calls = [loop.run_in_executor(executor, pow, number, 2) for number in range(200)]
        assert await asyncio.gather(*calls) == [number**2 for number in range(200)]


@pytest.mark.anyio
async def test_cancelling_run_in_executor_takes_back_the_job(
    threads: ThreadWorkerPool, gate: threading.Event, anyio_backend_name: str
) -> None:
    """If it has not begun."""
    if anyio_backend_name == "trio":
        pytest.skip("asyncio only")
    executor = threads.executor()
    held = hold(executor, gate)
    waiting = asyncio.get_running_loop().run_in_executor(executor, pow, 2, 2)
    assert threads.metrics.queued == 1
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await anyio.lowlevel.checkpoint()  # the loop hands it on in a callback
    assert threads.metrics.queued == 0
    gate.set()
    assert await asyncio.wrap_future(held) is True


@pytest.mark.anyio
async def test_future_of_an_executor_can_be_awaited(threads: ThreadWorkerPool) -> None:
    """On both backends, as each future of a pool."""
    future: Any = threads.executor().submit(pow, 2, 2)
    assert await future == 4


def test_tornado_runs_methods_on_an_executor(threads: ThreadWorkerPool, processes: ProcessWorkerPool) -> None:
    """Its handlers have an attribute `executor`, and its loop takes one."""
    tornado = pytest.importorskip("tornado.concurrent")
    ioloop = pytest.importorskip("tornado.ioloop")

    class Handler:
        executor = threads.executor()

        @tornado.run_on_executor  # type: ignore[untyped-decorator, unused-ignore]
        def compute(self, number: int) -> int:
            return number**2

        @tornado.run_on_executor  # type: ignore[untyped-decorator, unused-ignore]
        def fail(self) -> None:
            raise LookupError("no")

    async def main() -> None:
        handler = Handler()
        assert await asyncio.gather(*(handler.compute(number) for number in range(50))) == [n**2 for n in range(50)]
        with pytest.raises(LookupError, match="no"):
            await handler.fail()
        loop = ioloop.IOLoop.current()
        assert await loop.run_in_executor(processes.executor(), pow, 2, 10) == 1024

    asyncio.run(main())


def test_aiofiles_reads_with_an_executor(threads: ThreadWorkerPool, tmp_path: Path) -> None:
    """All that it does with a file is a job."""
    aiofiles = pytest.importorskip("aiofiles")
    executor = threads.executor()

    async def main() -> None:
        async with aiofiles.open(tmp_path / "file", "w", executor=executor) as file:
            await file.writelines(f"{number}\n" for number in range(3))
        async with aiofiles.open(tmp_path / "file", executor=executor) as file:
            assert [line async for line in file] == ["0\n", "1\n", "2\n"]

    asyncio.run(main())
    assert threads.metrics.succeeded > 4


# ---------------------------------------------------------------- the end of the program


def test_thread_of_the_exit_is_there_only_while_there_are_jobs(
    threads: ThreadWorkerPool, gate: threading.Event
) -> None:
    """It is no daemon, for the interpreter waits for no others."""
    executor = threads.executor()
    held = hold(executor, gate)
    (thread,) = (one for one in threading.enumerate() if one.name == "agentcore-exit")
    assert not thread.daemon
    gate.set()
    assert held.result(PATIENCE) is True
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert executor.submit(pow, 2, 2).result(PATIENCE) == 4
    executor.shutdown()


LIMITED = """
import threading, time
from agentcore import ThreadWorkerPool, WorkerPoolConfig

def pool(name, limit):
    return ThreadWorkerPool(name, WorkerPoolConfig(workers=1, shutdown_timeout=limit))

pool("quick", None).executor().submit(time.sleep, 0.5).add_done_callback(lambda _: print("done"))
pool("stuck", 0.1).executor().submit(threading.Event().wait)
"""


def test_end_of_the_program_waits_no_longer_than_the_pool_says() -> None:
    """With a job that never ends; the jobs of pools without a limit are waited for."""
    done = program(LIMITED)
    assert ("done\n", "", 0) == (done.stdout, done.stderr, done.returncode)


RECYCLED = """
import sys
from agentcore import ProcessWorkerPool, ProcessWorkerPoolConfig, ThreadWorkerPool, ThreadWorkerPoolConfig

pool, config = {
    "thread": (ThreadWorkerPool, ThreadWorkerPoolConfig), "process": (ProcessWorkerPool, ProcessWorkerPoolConfig)
}[sys.argv[1]]
executor = pool("mine", config(workers=1, max_jobs_per_worker=2)).executor()
for number in range(7):
    executor.submit(print, number, flush=True)
"""


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_workers_can_be_replaced_while_the_program_ends(kind: str) -> None:
    """Although there can be no further thread by then."""
    done = program(RECYCLED, kind)
    assert ("".join(f"{number}\n" for number in range(7)), "", 0) == (done.stdout, done.stderr, done.returncode)


FORKED = """
import os, threading
from agentcore import ThreadWorkerPool

gate = threading.Event()
ThreadWorkerPool("parent").executor().submit(gate.wait)
import warnings
warnings.simplefilter("ignore")  # of forking with threads, which is what this is about
child = os.fork()
if child:
    print("child:", os.waitpid(child, 0)[1], flush=True)
    gate.set()
else:
    ThreadWorkerPool("child").executor().submit(print, "job of the child", flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_child_waits_for_its_own_jobs_and_not_for_those_of_its_parent() -> None:
    """A process that was forked has none of its parent's threads."""
    done = program(FORKED)
    assert ("job of the child\nchild: 0\n", "", 0) == (done.stdout, done.stderr, done.returncode)


def test_other_threads_may_not_submit_when_the_main_thread_has_ended() -> None:
    """As with the standard library's executors."""
    code = """
import threading
from agentcore import ThreadWorkerPool

executor = ThreadWorkerPool("mine").executor()

def late():
    threading.main_thread().join()
    try:
        executor.submit(print)
    except RuntimeError as error:
        print(error)

threading.Thread(target=late).start()
"""
    done = program(code)
    expected = "cannot schedule new futures after interpreter shutdown\n"
    assert (expected, "", 0) == (done.stdout, done.stderr, done.returncode)
