"""A program without an event loop, and with four threads: `python -m tests.embedding.apps.threads BACKEND CASE`."""

from __future__ import annotations

import signal
import sys
import threading

import agentcore
from agentcore import CoreError, RuntimeClosedError, SyncRuntime
from tests.embedding.apps.parts import CONFIG, equip, say


def work(runtime: SyncRuntime, name: str) -> None:
    try:
        say(f"output {runtime.run('work', {'name': name})}")
    except CoreError as error:
        say(f"{name} got {type(error).__name__}")


def until_sigterm() -> None:
    """Wait in the main thread until the signal comes."""
    come = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: come.set())
    say("ready")
    come.wait()


def main(backend: str, case: str) -> None:
    with agentcore.sync_runtime(CONFIG, backend=backend) as runtime:
        runtime.call(equip, runtime.runtime)
        threads = [threading.Thread(target=work, args=(runtime, f"thread {n}")) for n in range(4)]
        match case:
            case "fail":
                runtime.submit("fail")
            case "exit" | "break":
                for thread in threads:
                    thread.start()
                sys.stdin.readline()
                runtime.submit(case)
                for thread in threads:
                    thread.join()
                say(f"state {runtime.health().state}, {len(runtime.health().failures)} failures")
                try:
                    runtime.submit("work", {"name": "late"})
                except RuntimeClosedError as error:
                    say(f"refused: {error} because of {error.__cause__}")
            case "own handler":
                for thread in threads:
                    thread.start()
                until_sigterm()
            case _:
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
    say("block left")


if __name__ == "__main__":
    main(*sys.argv[1:])
