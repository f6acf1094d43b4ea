"""Measures the circuit breaker against a bare call, and against every other breaker that is installed.

    python benchmarks/breaker.py [--rounds 31] [--json | --markdown]

- A closed circuit, consecutive counting: `await breaker.execute(f)` against `await f()`, where `f` returns at once. The
  others count consecutive failures too, or what comes nearest to it.
- The same with a window of time, a failure rate and slow calls, against those that have them. pyresilience has no window of
  time and counts 100 calls.
- Rejections: a call that an open circuit rejects, against a call of a function that does nothing but raise.
- Memory: a breaker with a window of 100 calls, after 300 calls of which every tenth failed. What a program has to keep is
  counted: the breaker, or the decorated function where that is the way; not a configuration that all of them share.
- One million rejections.

The settings are those of `_breaker_adapter.Settings`; how each library is called stands with its adapter in
`_breaker_peers`. Libraries that work on asyncio only are measured there only; what is not installed is left out, with a
line that says so.

Exits with 1 if a promise is not kept. docs/comparisons/breakers.md has the table.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import sys
import tracemalloc
from collections.abc import Sequence
from functools import partial
from typing import Final

import anyio
import attrs
from _breaker_adapter import Counting, DownError, Guarded, Peer, Settings
from _breaker_peers import AGENTCORE, installed, missing
from _rounds import Loop, Measure, Pair, Row, compare, main, measure, measure_loops

from agentcore import CircuitBreaker

BACKENDS: Final = ("asyncio", "trio")
OURS: Final = "agentcore"
BARE: Final = "`await f()`"
RAISE: Final = "`await f()` that raises"
MANY: Final = 1_000_000
FEW_BYTES: Final = 1000
BREAKERS: Final = 50
CALLS: Final = 300


async def answer() -> int:
    """Return at once: what is called through the breakers."""
    return 42


async def fail() -> None:
    """Fail at once."""
    raise DownError


async def call(number: int) -> None:
    """Loop: the bare call."""
    for _ in range(number):
        await answer()


async def call_guarded(guarded: Guarded, number: int) -> None:
    """Loop: the call through a breaker, without what `Guarded` itself would cost."""
    through, func = guarded.call, guarded.func
    if func is None:
        for _ in range(number):
            await through()
    else:
        for _ in range(number):
            await through(func)


async def raise_bare(number: int) -> None:
    """Loop: the bare exception."""
    for _ in range(number):
        try:
            await fail()
        except DownError:
            pass


async def be_rejected(guarded: Guarded, number: int) -> None:
    """Loop: the rejection. What it is called is not known here, and asking for it would cost."""
    through, func = guarded.call, guarded.func
    if func is None:
        for _ in range(number):
            try:
                await through()
            except Exception:  # noqa: BLE001
                pass
    else:
        for _ in range(number):
            try:
                await through(func)
            except Exception:  # noqa: BLE001
                pass


async def enter(breaker: CircuitBreaker, number: int) -> None:
    """Loop: the call in a block."""
    for _ in range(number):
        async with breaker:
            await answer()


def peers_on(backend: str, counting: Counting) -> list[Peer]:
    """Return who is compared."""
    return [peer for peer in installed() if counting in peer.countings and (backend == "asyncio" or peer.on_trio)]


# ---------------------------------------------------------------- calls


async def measure_closed(rounds: int, backend: str, counting: Counting) -> list[Row]:
    """Measure calls through closed circuits."""
    what, goal = {
        "consecutive": ("closed, consecutive counting", 4.5),
        "time": ("closed, window of time, slow calls", 6.0),
    }[counting]
    settings = Settings(counting=counting)
    ours = AGENTCORE.guard(answer, settings)
    peers = peers_on(backend, counting)
    loops: dict[str, Loop] = {BARE: call, OURS: partial(call_guarded, ours)}
    loops |= {peer.distribution: partial(call_guarded, peer.guard(answer, settings)) for peer in peers}
    pairs = [Pair(what=f"`breaker.execute(f)`, {what}", subject=OURS, reference=BARE, at_most=goal)]
    pairs += [
        Pair(what=f"{what}: times faster", subject=OURS, reference=peer.distribution, at_least=2) for peer in peers
    ]
    if counting == "consecutive":
        assert isinstance(ours.breaker, CircuitBreaker)
        loops |= {
            "decorated": partial(call_guarded, Guarded(ours.breaker(answer))),
            "entered": partial(enter, ours.breaker),
        }
        pairs.insert(1, Pair(what="`@breaker`", subject="decorated", reference=BARE))
        pairs.insert(2, Pair(what="`async with breaker:`", subject="entered", reference=BARE))
    figures = await measure_loops(loops, rounds)
    return _with_costs(compare(figures, pairs, "ns", backend), figures, BARE, rounds)


async def measure_rejections(rounds: int, backend: str) -> list[Row]:
    """Measure calls that open circuits reject."""
    peers = peers_on(backend, "consecutive")
    loops: dict[str, Loop] = {RAISE: raise_bare}
    for name, peer in {OURS: AGENTCORE, **{peer.distribution: peer for peer in peers}}.items():
        loops[name] = partial(be_rejected, await opened(peer))
    pairs = [Pair(what="rejected, circuit open", subject=OURS, reference=RAISE, at_most=6)]
    pairs += [
        Pair(what="rejected: times faster", subject=OURS, reference=peer.distribution, times_smaller=True)
        for peer in peers
    ]
    figures = await measure_loops(loops, rounds)
    return _with_costs(compare(figures, pairs, "ns", backend), figures, RAISE, rounds)


async def opened(peer: Peer) -> Guarded:
    """Return a function behind a circuit that is open, for an hour."""
    settings = Settings(reset=3600)
    guarded = peer.guard(fail, settings)
    for _ in range(settings.failures):
        with contextlib.suppress(Exception):
            await guarded()
    return guarded


def _with_costs(rows: list[Row], figures: dict[str, list[float]], bare: str, rounds: int) -> list[Row]:
    """Note in the rows about peers what these cost against the bare call."""
    costs = {
        row.what: row.ratio
        for row in compare(figures, [Pair(what=name, subject=name, reference=bare) for name in figures], "ns")
    }
    return [
        row if row.reference == bare else attrs.evolve(row, note=f"that is {costs[row.reference]:.1f}x {bare}")
        for row in rows
    ]


# ---------------------------------------------------------------- memory


def traced_after_calls(peer: Peer) -> Measure:
    """Return what measures the bytes of a breaker that is in use."""
    count = 0

    async def flaky() -> None:
        nonlocal count
        count += 1
        if count % 10 == 0:
            raise DownError

    async def use() -> object:
        guarded = peer.guard(flaky, Settings(counting="calls"))
        for _ in range(CALLS):
            with contextlib.suppress(DownError):
                await guarded()
        return guarded.kept

    async def measure_bytes() -> float:
        # The first one pays for what all share.
        kept: list[object] = [await use(), *[None] * BREAKERS]
        gc.collect()
        tracemalloc.start()
        try:
            for index in range(1, len(kept)):
                kept[index] = await use()
            gc.collect()
            return tracemalloc.get_traced_memory()[0] / BREAKERS
        finally:
            tracemalloc.stop()

    return measure_bytes


async def measure_memory() -> list[Row]:
    """Measure a breaker with a count window."""
    what = "a breaker, 100 calls remembered"
    # One that hands calls over to threads takes minutes for this; what is kept is the same each time.
    peers = [peer for peer in peers_on("asyncio", "calls") if peer.distribution != "resilient-circuit"]
    contenders = {OURS: traced_after_calls(AGENTCORE)} | {peer.distribution: traced_after_calls(peer) for peer in peers}
    figures = await measure(contenders, 3)
    ours = figures[OURS][-1]
    absolute = Row(what=what, unit="B", figure=ours, goal=f"≤ {FEW_BYTES:,} B", kept=ours <= FEW_BYTES)
    pairs = [
        Pair(what=f"{what}: times smaller", subject=OURS, reference=peer.distribution, times_smaller=True)
        for peer in peers
    ]
    return [absolute, *compare(figures, pairs, "B")]


async def measure_many_rejections() -> Row:
    """Be rejected a million times, and see what is left."""
    guarded = await opened(AGENTCORE)
    await be_rejected(guarded, 1000)
    gc.collect()
    tracemalloc.start()
    try:
        before, _peak = tracemalloc.get_traced_memory()
        await be_rejected(guarded, MANY)
        gc.collect()
        kept = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    return Row(
        what=f"{MANY:,} rejections keep",
        unit="B",
        figure=max(0, kept),
        goal=f"< {FEW_BYTES:,} B",
        kept=kept < FEW_BYTES,
    )


def benchmark(rounds: int) -> list[Row]:
    """Measure everything."""
    logging.disable()  # some tell of each failure
    if missing():
        print(f"not installed, and so not compared: {', '.join(missing())}", file=sys.stderr)
    rows: list[Row] = []
    for backend in BACKENDS:
        rows += anyio.run(measure_closed, rounds, backend, "consecutive", backend=backend)
        rows += anyio.run(measure_closed, rounds, backend, "time", backend=backend)
        rows += anyio.run(measure_rejections, rounds, backend, backend=backend)
    return [*rows, *anyio.run(measure_memory), anyio.run(measure_many_rejections)]


def packages() -> Sequence[str]:
    """Return the distributions whose versions belong to the figures."""
    return ("anyio", "trio", *(peer.distribution for peer in installed()))


if __name__ == "__main__":
    sys.exit(main(__doc__ or "", packages(), benchmark))
