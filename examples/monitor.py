"""Watch a log: how much of what it tells of, and an alarm when there is too much of something. A broken line does not end it.

    python examples/monitor.py --once app.log
    python examples/monitor.py /var/log/dpkg.log --match half-configured --rate 20
    git log --format='%cI %s' | python examples/monitor.py --once --match '[Ff]ix' --rate 2 --window day /dev/stdin

Without ``--once`` it is followed until Ctrl-C. Alarms and losses are told on stderr, the report is one JSON document.
"""

import argparse
import json
import logging
import os
import re
from collections import Counter, defaultdict
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import anyio
import attrs

import agentcore
from agentcore import AgentConfig, AgentContext, AgentResult, AgentRuntime, Backoff, BaseAgent, Event, Supervisor

logger = logging.getLogger("monitor")
CHUNK, LOOK_EVERY, MAILBOX, KEPT = 1 << 20, 0.5, 256, 10_000
TIME = re.compile(r"\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d\S*")
WINDOWS = {"minute": 16, "hour": 13, "day": 10}  # So much of the time is the same within one.
LEVEL = re.compile(r"(?i)\b(debug|info|notice|warn|err|crit|fatal)")
VARIABLE = re.compile(r"(?<!\S)[^\s\d]*\d\S*")  # A word with a digit. It begins where words begin: some are long.


@attrs.define(kw_only=True)
class Log:
    """A log, what is asked of it, and what is known of it. It outlives the agents."""

    path: str
    once: bool = False
    match: re.Pattern[str] = re.compile(r"(?i)\b(error|critical|fatal)\b")
    rate: int = 10
    window: str = "minute"
    ended: anyio.Event = attrs.Factory(anyio.Event)
    at: int = 0  # How many bytes of the file the tailer has read,
    rest: bytes = b""  # which of them are a line that has no end yet,
    read: int = 0  # and how many lines have one.
    in_hand: int = 0  # The line that the aggregator is at; the rest is what it and the alerter know.
    begin: str = ""
    counted: int = 0
    counts: dict[str, Counter[str]] = attrs.Factory(lambda: defaultdict(Counter))
    alarms: list[dict[str, Any]] = attrs.Factory(list)
    lost: list[dict[str, Any]] = attrs.Factory(list)

    def note(self, event: Event) -> None:
        """Hear of an event of the runtime: a message was lost with the aggregator that was at it; the tailer has ended."""
        if event.event_type == "message_dropped" and event.data["agent"] == "aggregator" and self.in_hand:
            self.lost.append({"line": self.in_hand, "why": event.data["reason"]})
            logger.warning("line %d is lost: %s", self.in_hand, event.data["reason"])
            self.in_hand = 0
        if event.event_type == "agent_stopped" and event.data["agent"] == "tailer":
            self.ended.set()

    def report(self) -> dict[str, Any]:
        """Return what is known."""
        known = {name: getattr(self, name) for name in ("path", "read", "counted", "lost", "alarms")}
        return known | {name: dict(counts.most_common(10)) for name, counts in self.counts.items()}


class Part(BaseAgent):
    """What the three agents have in common."""

    def __init__(self, log: Log, config: AgentConfig) -> None:
        super().__init__(config)
        self.log = log

    async def initialize(self) -> bool:
        """Have nothing to set up."""
        return True

    async def process(self, context: AgentContext) -> AgentResult:
        """Tell what is known, where that is all that can be asked."""
        return AgentResult.success_result(self.log.report())

    async def handle_error(self, error: Exception, context: AgentContext) -> AgentResult:
        """Make nothing good again: it is a crash."""
        return AgentResult.error_result(str(error))


class Tailer(Part):
    """Reads the log and tells the aggregator of each line; waits where that does not keep up."""

    async def live(self, context: AgentContext) -> None:
        """Read one file after the other that has the path. If that fails, another tailer goes on where this one was."""
        log, threads = self.log, context.pool("log", "thread").options(abandon_on_cancel=True)  # A pipe may be silent.
        while True:
            with await threads.asubmit(open, log.path, "rb", 0) as file:
                if log.at:
                    file.seek(log.at)
                while (chunk := await threads.asubmit(self.read_on, file)) is not None:
                    log.at += len(chunk)
                    *lines, log.rest = (log.rest + chunk).split(b"\n")
                    for line in lines:
                        await context.tell("aggregator", {"number": log.read + 1, "line": line})
                        log.read += 1
                    if not chunk:
                        await anyio.sleep(LOOK_EVERY)
            if log.once:
                return
            log.at = 0

    def read_on(self, file: BinaryIO) -> bytes | None:
        """Return what was added. At the end of a file that was cut off, or that another one has replaced, None."""
        log, path, inode = self.log, Path(self.log.path), os.fstat(file.fileno()).st_ino
        is_over = log.once or (path.exists() and (path.stat().st_ino != inode or path.stat().st_size < log.at))
        # Nobody will write the end of its last line any more.
        return file.read(CHUNK) or (b"" if not is_over else b"\n" if log.rest else None)


class Aggregator(Part):
    """Counts lines by level, by pattern, by window. One that is no text crashes it, and the next aggregator goes on from there."""

    async def process(self, context: AgentContext) -> AgentResult:
        """Count one line: as a whole, or not at all. One without a time belongs to the window of the one before."""
        log = self.log
        log.in_hand = number = context.input["number"]
        text = context.input["line"].decode().strip()
        time, level, matches = TIME.search(text), LEVEL.search(text), bool(log.match.search(text))
        log.begin = time[0][: WINDOWS[log.window]] if time else log.begin
        pattern = " ".join(VARIABLE.sub("#", TIME.sub("", text, count=1)).split()[:8])
        patterns, windows, matching = log.counts["patterns"], log.counts["windows"], log.counts["matching"]
        log.counts["levels"][level[1].lower() if level else "none"] += 1
        patterns[pattern if pattern in patterns or len(patterns) < KEPT else "others"] += 1
        windows[log.begin] += 1
        matching[log.begin] += matches
        if len(windows) > KEPT:
            del windows[oldest := next(iter(windows))], matching[oldest]
        log.counted, log.in_hand = log.counted + 1, 0
        if matches and matching[log.begin] == log.rate + 1:
            await context.tell("alerter", {"rate": log.rate, "window": log.begin, "line": number, "text": text[:200]})
        return AgentResult.success_result()


class Alerter(Part):
    """Tells of what there is too much of."""

    async def process(self, context: AgentContext) -> AgentResult:
        """Raise an alarm."""
        self.log.alarms.append(context.input)
        logger.error("more than %(rate)d within %(window)s, now line %(line)d: %(text)s", context.input)
        return AgentResult.success_result()


async def start(runtime: AgentRuntime, log: Log, lost: int = 20) -> None:
    """Have a log watched by a runtime, whatever else that does. More lines lost in ten seconds end the watch, and it alone."""
    runtime.subscribe(log.note)
    mending = Supervisor("one_for_one", intensity=lost, period=10, backoff=Backoff(0.01, maximum=0.1))
    monitor = await runtime.supervisor.supervise("monitor", mending, restart="temporary")
    await monitor.spawn(partial(Alerter, log), AgentConfig("alerter", "monitor"))
    await monitor.spawn(partial(Aggregator, log), AgentConfig("aggregator", "monitor"), mailbox=MAILBOX)
    await monitor.spawn(partial(Tailer, log), AgentConfig("tailer", "monitor"), restart="transient")


async def watch(runtime: AgentRuntime, log: Log, lost: int) -> None:
    """Watch a log to its end, or until a signal comes. At the end of the runtime what has been read is counted."""
    await start(runtime, log, lost)
    await log.ended.wait()


def main() -> None:
    """Read the command line, and print the report."""
    parser = argparse.ArgumentParser(description="Watch a log.")
    parser.add_argument("path", help="the log")
    parser.add_argument("--once", action="store_true", help="read it to its end, and follow it no further")
    parser.add_argument("--match", default=Log(path="").match, type=re.compile, help="what alarms are about")
    parser.add_argument("--rate", default=10, type=int, help="how many such lines there may be in a window")
    parser.add_argument("--window", default="minute", choices=WINDOWS, help="which time that is")
    parser.add_argument("--lost", default=20, type=int, help="how many lines may be lost within ten seconds")
    parser.add_argument("--backend", choices=("asyncio", "trio"), default="asyncio", help="the event loop")
    try:
        asked = vars(parser.parse_args())
    except re.error as error:
        parser.error(f"--match must be a regular expression: got one with {error}; mend it")
    if not Path(asked["path"]).exists() or Path(asked["path"]).is_dir():
        parser.error(f"path must be that of a log that is there: got {asked['path']!r}; name one")
    if min(asked["rate"], asked["lost"]) < 0:
        parser.error(f"--rate and --lost must not be negative: got {asked['rate']} and {asked['lost']}; give 0 or more")
    logging.basicConfig(format="%(levelname)s: %(message)s")
    logging.getLogger("agentcore").setLevel(logging.CRITICAL)  # Who watches wants to hear of lines, not of agents.
    lost, backend, log = asked.pop("lost"), asked.pop("backend"), Log(**asked)
    try:
        agentcore.run(watch, log, lost, backend=backend)
    except agentcore.AgentCrashedError as error:
        parser.exit(1, f"the watch has ended early: {error}\n")
    finally:
        print(json.dumps(log.report(), indent=1))


if __name__ == "__main__":
    main()
