"""Executors with one fault each, as tests that `test_conformance_suite` runs to see them fail."""

# ruff: noqa: BLE001, N801 - workers hand on whatever is raised; the classes stand in the place of attributes

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from concurrent.futures.thread import BrokenThreadPool
from typing import Any

from agentcore.testing import ExecutorConformance

Work = tuple[Future[Any], Callable[..., Any], tuple[Any, ...], dict[str, Any]]


class Plain(Executor):
    """A small one without faults."""

    daemon = False

    def __init__(
        self, max_workers: int | None = None, initializer: Callable[..., object] | None = None, initargs: Any = ()
    ) -> None:
        if max_workers is not None and max_workers < 1:
            raise ValueError("there must be workers")
        self._size = max_workers or 4
        self._initializer, self._initargs = initializer, initargs
        self._work: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._is_shut = self._is_broken = False

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        with self._lock:
            if self._is_broken:
                raise BrokenThreadPool("broken")
            self.check_open()
            future = self.new_future()
            self._work.put((future, fn, args, kwargs))
            if len(self._threads) < self._size:
                self._threads.append(threading.Thread(target=self.work, daemon=self.daemon))
                self._threads[-1].start()
        return future

    def check_open(self) -> None:
        if self._is_shut:
            raise RuntimeError("cannot schedule new futures after shutdown")

    def new_future(self) -> Future[Any]:
        return Future()

    def work(self) -> None:
        if self._initializer is not None:
            try:
                self._initializer(*self._initargs)
            except BaseException:
                self.initializer_failed()
        while (item := self._work.get()) is not None:
            self.run(*item)
            del item
        self._work.put(None)

    def initializer_failed(self) -> None:
        with self._lock:
            self._is_broken = True

    def run(self, future: Future[Any], fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        if self._is_broken:
            future.set_exception(BrokenThreadPool("broken"))
            return
        try:
            value = fn(*args, **kwargs)
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(value)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        with self._lock:
            self._is_shut = True
            if cancel_futures:
                self.cancel_all()
            self._work.put(None)
        if wait:
            for thread in self._threads:
                thread.join()

    def cancel_all(self) -> None:
        items = []
        while not self._work.empty():
            items.append(self._work.get())
        for item in items:
            if item is None:
                self._work.put(None)
            else:
                item[0].cancel()


class Faulty(ExecutorConformance):
    """Fails soon where something hangs."""

    takes = frozenset({"initializer"})
    patience = 1.0
    executor_class: type[Executor]

    def make(self, **options: Any) -> Executor:
        return self.executor_class(**options)

    def release(self, executor: Executor) -> None:
        Plain.shutdown(executor, wait=False)  # type: ignore[arg-type]


class TestNone(Faulty):
    executor_class = Plain


class TestDaemons(Faulty):
    class executor_class(Plain):
        daemon = True


class TestTakesKeywords(Faulty):
    class executor_class(Plain):
        def submit(self, fn: Any, /, *args: Any, timeout: float | None = None, **kwargs: Any) -> Future[Any]:
            return super().submit(fn, *args, **kwargs)


class TestNamesTheFunction(Faulty):
    class executor_class(Plain):
        def submit(self, fn: Any, *args: Any, **kwargs: Any) -> Future[Any]:
            return super().submit(fn, *args, **kwargs)


class TestOneWorker(Faulty):
    class executor_class(Plain):
        def __init__(self, max_workers: int | None = None, **options: Any) -> None:
            super().__init__(min(max_workers or 1, 1), **options)


class TestTooManyWorkers(Faulty):
    class executor_class(Plain):
        def __init__(self, max_workers: int = 3, **options: Any) -> None:
            super().__init__(None if max_workers is None else max_workers and max_workers + 1, **options)


class TestNoWorkers(Faulty):
    class executor_class(Plain):
        def __init__(self, max_workers: int | None = None, **options: Any) -> None:
            super().__init__(max(max_workers or 1, 1), **options)


class TestLastInFirstOut(Faulty):
    class executor_class(Plain):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self._work = queue.LifoQueue()  # type: ignore[assignment]


class TestBlocksInSubmit(Faulty):
    class executor_class(Plain):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self._work = queue.Queue(100)  # type: ignore[assignment]


class TestDiesOfSystemExit(Faulty):
    class executor_class(Plain):
        def run(self, future: Any, fn: Any, args: Any, kwargs: Any) -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(fn(*args, **kwargs))
                except Exception as error:
                    future.set_exception(error)


class TestLosesErrors(Faulty):
    class executor_class(Plain):
        def run(self, future: Any, fn: Any, args: Any, kwargs: Any) -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(fn(*args, **kwargs))
                except BaseException as error:
                    future.set_exception(RuntimeError(str(error)))


class TestRunsWhatIsCancelled(Faulty):
    class executor_class(Plain):
        def run(self, future: Any, fn: Any, args: Any, kwargs: Any) -> None:
            if future.cancelled():
                fn(*args, **kwargs)
            super().run(future, fn, args, kwargs)


class TestNeverTellsOfCancellation(Faulty):
    class executor_class(Plain):
        def run(self, future: Any, fn: Any, args: Any, kwargs: Any) -> None:
            if not future.cancelled():
                super().run(future, fn, args, kwargs)


class TestNeverRuns(Faulty):
    class executor_class(Plain):
        class new_future(Future):  # type: ignore[type-arg]
            def running(self) -> bool:
                return False


class TestCancelsWhatRuns(Faulty):
    class executor_class(Plain):
        class new_future(Future):  # type: ignore[type-arg]
            def cancel(self) -> bool:
                super().cancel()
                return True


class TestCancelsNothing(Faulty):
    class executor_class(Plain):
        class new_future(Future):  # type: ignore[type-arg]
            def cancel(self) -> bool:
                return False


class TestReversesCallbacks(Faulty):
    class executor_class(Plain):
        class new_future(Future):  # type: ignore[type-arg]
            def _invoke_callbacks(self) -> None:
                self._done_callbacks.reverse()
                super()._invoke_callbacks()  # type: ignore[misc]


class TestStopsAtACallback(Faulty):
    class executor_class(Plain):
        class new_future(Future):  # type: ignore[type-arg]
            def _invoke_callbacks(self) -> None:
                try:
                    for callback in self._done_callbacks:
                        callback(self)
                except Exception:
                    pass


class TestCallsBackLater(Faulty):
    class executor_class(Plain):
        class new_future(Future):  # type: ignore[type-arg]
            def add_done_callback(self, fn: Any) -> None:
                threading.Thread(target=super().add_done_callback, args=(fn,)).start()


class TestIgnoresTimeouts(Faulty):
    class executor_class(Plain):
        class new_future(Future):  # type: ignore[type-arg]
            def result(self, timeout: float | None = None) -> Any:
                return super().result()


class TestMapsLazily(Faulty):
    class executor_class(Plain):
        def map(self, fn: Any, *iterables: Iterable[Any], timeout: Any = None, chunksize: int = 1) -> Iterator[Any]:
            yield from super().map(fn, *iterables, timeout=timeout)


class TestMapsAtOnce(Faulty):
    class executor_class(Plain):
        def map(self, fn: Any, *iterables: Iterable[Any], timeout: Any = None, chunksize: int = 1) -> Iterator[Any]:
            return iter(list(super().map(fn, *iterables, timeout=timeout)))


class TestMapsToLists(Faulty):
    class executor_class(Plain):
        def map(self, fn: Any, *iterables: Iterable[Any], timeout: Any = None, chunksize: int = 1) -> Any:
            found = [self.submit(fn, *args) for args in zip(*iterables, strict=False)]
            return [future.result() for future in found]


class TestMapsStrictly(Faulty):
    class executor_class(Plain):
        def map(self, fn: Any, *iterables: Iterable[Any], timeout: Any = None, chunksize: int = 1) -> Iterator[Any]:
            return super().map(fn, *zip(*zip(*iterables, strict=True), strict=True), timeout=timeout)


class TestMapsOutOfOrder(Faulty):
    class executor_class(Plain):
        def map(self, fn: Any, *iterables: Iterable[Any], timeout: Any = None, chunksize: int = 1) -> Iterator[Any]:
            found = [self.submit(fn, *args) for args in zip(*iterables, strict=False)]
            return (future.result(timeout) for future in reversed(found))


class TestTimesEachItem(Faulty):
    class executor_class(Plain):
        def map(self, fn: Any, *iterables: Iterable[Any], timeout: Any = None, chunksize: int = 1) -> Iterator[Any]:
            found = [self.submit(fn, *args) for args in zip(*iterables, strict=False)]
            return (future.result(timeout) for future in found)


class TestChecksChunks(Faulty):
    class executor_class(Plain):
        def map(self, fn: Any, *iterables: Iterable[Any], timeout: Any = None, chunksize: int = 1) -> Iterator[Any]:
            if chunksize < 1:
                raise ValueError
            return super().map(fn, *iterables, timeout=timeout)


class TestDoesNotWait(Faulty):
    class executor_class(Plain):
        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
            super().shutdown(False, cancel_futures=cancel_futures)


class TestAlwaysWaits(Faulty):
    class executor_class(Plain):
        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
            super().shutdown(True, cancel_futures=cancel_futures)


class TestAlwaysCancels(Faulty):
    class executor_class(Plain):
        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
            super().shutdown(wait, cancel_futures=True)


class TestNeverCancels(Faulty):
    class executor_class(Plain):
        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
            super().shutdown(wait)


class TestDropsJobs(Faulty):
    class executor_class(Plain):
        def cancel_all(self) -> None:
            while not self._work.empty():
                self._work.get()


class TestShutsDownOnce(Faulty):
    class executor_class(Plain):
        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
            self.check_open()
            super().shutdown(wait, cancel_futures=cancel_futures)


class TestStaysOpen(Faulty):
    class executor_class(Plain):
        def check_open(self) -> None:
            pass


class TestSaysSomethingElse(Faulty):
    class executor_class(Plain):
        def check_open(self) -> None:
            if self._is_shut:
                raise RuntimeError("closed")


class TestTakesPositions(Faulty):
    class executor_class(Plain):
        def shutdown(self, wait: bool = True, cancel_futures: bool = False) -> None:
            super().shutdown(wait, cancel_futures=cancel_futures)


class TestEntersAnother(Faulty):
    class executor_class(Plain):
        def __enter__(self) -> Any:
            return super()


class TestForgetsTheBlock(Faulty):
    class executor_class(Plain):
        def __exit__(self, *exc: object) -> None:
            pass


class TestInitializesOnce(Faulty):
    class executor_class(Plain):
        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
            try:
                return super().submit(fn, *args, **kwargs)
            finally:
                self._initializer = None


class TestInitializesNothing(Faulty):
    class executor_class(Plain):
        def __init__(self, max_workers: int | None = None, **options: Any) -> None:
            super().__init__(max_workers)


class TestIgnoresItsInitializer(Faulty):
    class executor_class(Plain):
        def initializer_failed(self) -> None:
            pass


class TestRunsInPlace(Faulty):
    class executor_class(Plain):
        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
            with self._lock:
                self.check_open()
            future: Future[Any] = Future()
            self.run(future, fn, args, kwargs)
            return future
