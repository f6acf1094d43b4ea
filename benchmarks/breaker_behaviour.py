"""Plays what goes wrong around circuit breakers with every library that is installed, and prints who gets it right.

    python benchmarks/breaker_behaviour.py [--peer NAME ...] [--behaviour NAME ...] [--jobs 4] [--json | --markdown]

Each library is asked on asyncio, and on trio if it works there, in a process of its own that is ended when it hangs. They
mostly wait, so several are asked at a time. A failure is confirmed by playing the scenario again with periods three times as long, so that a busy machine cannot cause
it. docs/comparisons/breakers.md has the table, and says what the columns mean.

Exits with 1 if agentcore gets something wrong.
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import platform
import queue
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import anyio
import attrs
from _breaker_adapter import Peer
from _breaker_peers import AGENTCORE, installed, missing
from _breaker_scenarios import BEHAVIOURS, Behaviour, Fails, NotOffered

BACKENDS: Final = ("asyncio", "trio")
RESET: Final = 0.1
LONGER: Final = 3
# What a scenario may take before it is cancelled, and before its process is ended.
LIMIT: Final = 15.0
HARD_LIMIT: Final = 40.0
SIGNS: Final = {"passes": "✓", "fails": "✗", "has none": "–"}


@attrs.frozen
class Result:
    """What came of one scenario on one backend.

    Attributes:
        verdict: ``passes``, ``fails`` or ``has none``.
        why: what went wrong.
    """

    verdict: str
    why: str = ""


# ---------------------------------------------------------------- in a process of its own


async def play(behaviour: Behaviour, peer: Peer, reset: float) -> Result:
    """Play one scenario once."""
    with anyio.move_on_after(LIMIT):
        try:
            await behaviour.scenario(peer, reset)
        except NotOffered:
            return Result("has none")
        except Fails as fault:
            return Result("fails", str(fault))
        except Exception as error:  # noqa: BLE001 - whatever it is, the library does not do what it should
            return Result("fails", _leaf(error))
        return Result("passes")
    return Result("fails", "hangs")


def _leaf(error: BaseException) -> str:
    """Return what went wrong in a group of tasks."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error) if isinstance(error, Fails) else f"breaks with {type(error).__name__}: {error}"


def play_all(peer: Peer, backend: str, names: Iterable[str]) -> None:
    """Play scenarios, and print a line with the result of each."""
    warnings.simplefilter("ignore")
    logging.disable()
    for name in names:
        (behaviour,) = (one for one in BEHAVIOURS if one.name == name)
        result = Result("fails")
        for reset in (RESET, RESET * LONGER):
            try:
                result = anyio.run(play, behaviour, peer, reset, backend=backend)
            except BaseException as error:  # noqa: BLE001 - it has broken the event loop
                result = Result("fails", _leaf(error))
            if result.verdict != "fails":
                break
        print(json.dumps(attrs.asdict(result)), flush=True)


# ---------------------------------------------------------------- around it


def ask(peer: Peer, backend: str, names: Sequence[str]) -> list[Result]:
    """Play scenarios in other processes: one, and another one after each that hangs for good."""
    results: list[Result] = []
    while len(results) < len(names):
        left = names[len(results) :]
        command = [sys.executable, __file__, "--play", backend, "--peer", peer.distribution]
        command += [f"--behaviour={name}" for name in left]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        results += _read(process, len(left))
    return results


def _read(process: subprocess.Popen[str], number: int) -> list[Result]:
    """Read so many results; end the process where one does not come."""
    lines: queue.Queue[str] = queue.Queue()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.put(line)
        lines.put("")

    threading.Thread(target=read, daemon=True).start()
    results: list[Result] = []
    try:
        while len(results) < number:
            line = lines.get(timeout=HARD_LIMIT)
            results.append(Result(**json.loads(line)) if line else Result("fails", "ends the process"))
            if not line:
                break
    except queue.Empty:
        results.append(Result("fails", "hangs, and cannot be cancelled"))
    process.kill()
    process.wait()
    return results


def examine(peer: Peer, behaviours: Sequence[Behaviour]) -> dict[str, Result]:
    """Return what came of each scenario: on asyncio, and on trio if the library is meant to work there."""
    verdicts: dict[str, list[tuple[str, Result]]] = {behaviour.name: [] for behaviour in behaviours}
    for backend in BACKENDS:
        names = [
            one.name
            for one in behaviours
            if one.backend == backend or (one.backend is None and (backend == "asyncio" or peer.on_trio))
        ]
        for name, result in zip(names, ask(peer, backend, names) if names else (), strict=True):
            verdicts[name].append((backend, result))
    return {name: _together(results) for name, results in verdicts.items()}


def _together(results: Sequence[tuple[str, Result]]) -> Result:
    """Return the verdict of both backends: the worse one."""
    faults = [(backend, result) for backend, result in results if result.verdict == "fails"]
    if not faults:
        return results[0][1]
    (backend, result), *_ = faults
    where = f" (on {backend})" if len(faults) < len(results) else ""
    return Result("fails", result.why + where)


# ---------------------------------------------------------------- the table

Table = dict[str, dict[str, Result]]


def as_text(table: Table, measured: str) -> str:
    """Return the table for a terminal, and what is behind it."""
    lines = [_heads(table), *_rows(table)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    reasons = [
        f"{peer}, {name}: {result.why}"
        for peer, results in table.items()
        for name, result in results.items()
        if result.why
    ]
    rows = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
    return "\n".join([*rows, "", *reasons, "", measured])


def as_markdown(table: Table, measured: str) -> str:
    """Return the table for a page of the documentation."""
    heads = _heads(table)
    lines = [heads, ["---", *[":-:"] * (len(heads) - 1)], *_rows(table)]
    return "\n".join([measured, "", *(f"| {' | '.join(line)} |" for line in lines)])


def as_json(table: Table, measured: str) -> str:
    """Return everything for a program."""
    peers: dict[str, Any] = {
        peer: {name: attrs.asdict(result) for name, result in results.items()} for peer, results in table.items()
    }
    return json.dumps({"measured": measured, "peers": peers}, indent=2, ensure_ascii=False)


def _heads(table: Table) -> list[str]:
    return ["", *next(iter(table.values())), "of"]


def _rows(table: Table) -> list[list[str]]:
    rows = []
    for peer, results in table.items():
        verdicts = [result.verdict for result in results.values()]
        asked = sum(verdict != "has none" for verdict in verdicts)
        rows.append([peer, *(SIGNS[verdict] for verdict in verdicts), f"{verdicts.count('passes')}/{asked}"])
    return rows


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    peers = {peer.distribution: peer for peer in (AGENTCORE, *installed())}
    parser.add_argument("--peer", action="append", choices=peers, help="only these (default: all that are installed)")
    names = [behaviour.name for behaviour in BEHAVIOURS]
    parser.add_argument("--behaviour", action="append", choices=names, metavar="NAME", help="only these")
    parser.add_argument("--jobs", type=int, default=4, help="how many at a time (default: %(default)s)")
    parser.add_argument("--play", choices=BACKENDS, help=argparse.SUPPRESS)
    forms = parser.add_mutually_exclusive_group()
    for option, form in (("--json", as_json), ("--markdown", as_markdown)):
        forms.add_argument(option, dest="form", action="store_const", const=form)
    parser.set_defaults(form=as_text)
    arguments = parser.parse_args()
    arguments.peers = [peer for name, peer in peers.items() if name in (arguments.peer or peers)]
    arguments.behaviours = [one for one in BEHAVIOURS if one.name in (arguments.behaviour or names)]
    return arguments


def main() -> int:
    """Play everything, print, and return the exit code."""
    arguments = parse()
    if arguments.play:
        play_all(arguments.peers[0], arguments.play, [one.name for one in arguments.behaviours])
        return 0
    if missing():
        print(f"not installed, and so not asked: {', '.join(missing())}", file=sys.stderr)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        results = pool.map(functools.partial(examine, behaviours=arguments.behaviours), arguments.peers)
        table = dict(zip(map(_title, arguments.peers), results, strict=True))
    measured = f"{platform.python_implementation()} {platform.python_version()}, {platform.system()}."
    print(arguments.form(table, measured))
    ours = table.get(_title(AGENTCORE), {})
    return 1 if any(result.verdict == "fails" for result in ours.values()) else 0


def _title(peer: Peer) -> str:
    return f"{'agentcore' if peer is AGENTCORE else peer.distribution} {peer.version()}"


if __name__ == "__main__":
    sys.exit(main())
