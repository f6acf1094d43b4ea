"""An HTTP service of its own process that answers, fails or hangs as it is told, and counts what reaches it.

    python service.py PORT [COMMAND]

`GET /answers/7` is answered with the square of 7, what is no number with status 404. Each line on standard input is a
command, a JSON object, answered by the counts on standard output; the one that it is started with, as soon as it listens.
A command sets a mode, or waits, or both:

    {"mode": "healthy"}
    {"mode": "failing", "share": 0.3, "seed": 1}    status 503 for that share of the requests
    {"mode": "hanging"}                             no answer before the mode changes
    {"until": {"running": 2}}                       the counts are told as soon as they are these

It exits when its input ends, so it cannot outlive the test that has started it. Only the standard library is imported,
for it to be back quickly after it was killed.
"""

import asyncio
import json
import random
import sys
from collections import Counter
from typing import Any


class Service:
    """What the service does with requests, and what it has done."""

    def __init__(self) -> None:
        names = ("connections", "requests", "running", "peak", "answered", "unknown", "failed", "abandoned")
        self.counts = Counter(dict.fromkeys(names, 0))
        self._share = 0.0
        self._random = random.Random()
        self._released = asyncio.Event()
        self._released.set()
        self._waiting: list[tuple[dict[str, int], asyncio.Event]] = []

    async def obey(self, command: dict[str, Any]) -> None:
        """Carry out one command."""
        if "mode" in command:
            self._share = command["share"] if command["mode"] == "failing" else 0.0
            self._random.seed(command.get("seed"))
            if command["mode"] == "hanging":
                self._released.clear()
            else:
                self._released.set()
        reached = asyncio.Event()
        self._waiting.append((command.get("until", {}), reached))
        self._count()
        await reached.wait()

    def _count(self, **changes: int) -> None:
        """Change the counts. Who waits for certain ones is told here and now, so none is missed."""
        self.counts.update(changes)
        self.counts["peak"] = max(self.counts["peak"], self.counts["running"])
        for wanted, reached in self._waiting:
            if wanted.items() <= self.counts.items():
                reached.set()
        self._waiting = [(wanted, reached) for wanted, reached in self._waiting if not reached.is_set()]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection, until the other side closes it."""
        self._count(connections=1)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                self._count(requests=1, running=1)
                outcome = "abandoned"
                try:
                    if await self._may_answer(reader):
                        outcome, response = self._answer(head.split()[1].decode().rpartition("/")[2])
                        writer.write(response)
                        await writer.drain()
                finally:
                    self._count(running=-1, **{outcome: 1})
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
            self._count(connections=-1)

    async def _may_answer(self, reader: asyncio.StreamReader) -> bool:
        """Wait until the service no longer hangs; tell whether the other side has waited as well."""
        gone = asyncio.ensure_future(_end(reader))
        released = asyncio.ensure_future(self._released.wait())
        await asyncio.wait((gone, released), return_when=asyncio.FIRST_COMPLETED)
        present = not gone.done()
        for waiting in (gone, released):
            waiting.cancel()
        await asyncio.wait((gone, released))
        return present

    def _answer(self, question: str) -> tuple[str, bytes]:
        if not question.isdigit():
            return "unknown", _response("404 Not Found", {"error": f"{question} is no number"})
        if self._random.random() < self._share:
            return "failed", _response("503 Service Unavailable", {"error": "not now"})
        return "answered", _response("200 OK", {"answer": int(question) ** 2})


async def _end(reader: asyncio.StreamReader) -> None:
    try:
        await reader.read(1)
    except ConnectionError:
        pass


def _response(status: str, content: dict[str, Any]) -> bytes:
    body = json.dumps(content).encode()
    return f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


async def main(port: int, line: str = "{}") -> None:
    """Serve until the standard input ends."""
    service = Service()
    await service.obey(json.loads(line))
    # Who starts it keeps the port for it, also while it is dead.
    await asyncio.start_server(service.serve, "127.0.0.1", port, reuse_port=True)
    commands = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    while True:
        sys.stdout.write(json.dumps(service.counts) + "\n")
        sys.stdout.flush()
        command = await commands.readline()
        if not command:
            return
        await service.obey(json.loads(command))


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), *sys.argv[2:]))
