"""What jobs do in the table of outcomes, for each kind of pool."""

import os
import threading

import anyio

gate = threading.Event()


def answer(x: int) -> int:
    return x + 1


def boom() -> None:
    raise ValueError("boom")


def wait_for_gate() -> str:
    """Wait until somebody in this process opens the gate; in a worker process nobody does."""
    gate.wait()
    return "waited"


def die() -> None:
    os._exit(3)


async def answer_later(x: int) -> int:
    await anyio.lowlevel.checkpoint()
    return x + 1


async def boom_later() -> None:
    await anyio.lowlevel.checkpoint()
    raise ValueError("boom")


async def wait_for_ever() -> None:
    await anyio.sleep_forever()
