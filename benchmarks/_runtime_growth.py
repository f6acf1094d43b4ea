"""What a million tasks through one runtime leave behind."""

from __future__ import annotations

import gc
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any, Final

from _rounds import Row

from agentcore import AgentRuntime

MANY: Final = 1_000_000
BATCH: Final = 500
WARM: Final = 20_000
AT_MOST_BYTES: Final = 5_000_000


async def spend(runtime: AgentRuntime, number: int) -> None:
    """Have so many tasks executed: half of them run, half of them submitted, in batches that the queue has room for."""
    for begun in range(0, number, 2 * BATCH):
        for index in range(begun, begun + BATCH):
            await runtime.run("answer", {"number": index})
        handles = [await runtime.submit("answer", {"number": index}) for index in range(begun, begun + BATCH)]
        for handle in handles:
            await handle.result()


def resident() -> int | None:
    """Return the bytes of memory that the process has; None where nobody tells."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return None
    return pages * 4096


async def measure_million(backend: str) -> Row:
    """Spend a million tasks, and see what is left when all have ended."""
    began = time.monotonic()
    print(f"{MANY:,} tasks on {backend}: this takes minutes", file=sys.stderr)
    async with AgentRuntime() as runtime:

        @runtime.handler("answer")
        async def answer(given: dict[str, Any]) -> dict[str, Any]:
            return {"answer": given["number"]}

        # Fills what is bounded: logs, the tasks that are remembered, what the interpreter and the loop keep for reuse.
        await spend(runtime, WARM)
        gc.collect()
        tracemalloc.start()
        try:
            # What is dropped from the logs from now on was made before, and is seen neither way: so fill them anew.
            await spend(runtime, WARM)
            gc.collect()
            before, process = tracemalloc.get_traced_memory()[0], resident()
            await spend(runtime, MANY)
            gc.collect()
            kept = tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()
        accepted, remembered = runtime.statistics().tasks.accepted, len(runtime.events())
    assert accepted == MANY + 2 * WARM
    after = resident()
    grown = "" if process is None or after is None else f"the process grew by {(after - process) / 1e6:.1f} MB, "
    return Row(
        what=f"{MANY:,} tasks through one runtime keep",
        backend=backend,
        unit="B",
        figure=kept,
        goal=f"< {AT_MOST_BYTES / 1e6:g} MB",
        note=f"{grown}{remembered:,} events kept; {time.monotonic() - began:.0f} s with tracemalloc",
        kept=kept < AT_MOST_BYTES,
    )
