"""Signals of the operating system, for as long as a block lasts."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from types import FrameType


def interrupt() -> None:
    """Do what Ctrl-C does. As a callback of the event loop, on trio too, where it reaches the main task from there."""
    signal.raise_signal(signal.SIGINT)


@contextmanager
def signals_to(callback: Callable[[int], object], signals: Iterable[signal.Signals]) -> Generator[None]:
    """Call back on signals inside the block, then restore the handlers that were there.

    The callback runs as a plain Python signal handler, between two bytecodes of the main thread: even a loop that is
    blocked by a busy callback cannot hold it up. Outside the main thread, where no handler can be set, this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handler(number: int, _frame: FrameType | None) -> None:
        callback(number)

    previous = {number: signal.signal(number, handler) for number in signals}
    try:
        yield
    finally:
        for number, old in previous.items():
            # None: the old handler was not set from Python and cannot be set again from here.
            signal.signal(number, old if old is not None else signal.SIG_DFL)
