"""The asks of a runtime that are under way: agents that execute in the tasks of their callers; and messages to agents.

No task of the runtime's own stands behind them, so this is how it knows what to wait for, and what to end, when it is left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import final

from agentcore._agent_records import Call
from agentcore._chains import links


@final
class Calls:
    """The asks of one runtime.

    Args:
        on_end: called when one has ended.

    Attributes:
        under_way: all of them; who begins one adds it.
        messages: how many of them are messages to agents, which wait or are being handled.
        cut_short: how many have been cancelled by `end`.
        dropped: how many messages were not handled, or not to their end.
    """

    def __init__(self, on_end: Callable[[], object]) -> None:
        self.under_way: set[Call] = set()
        self.messages: int = 0
        self.cut_short: int = 0
        self.dropped: int = 0
        self._on_end = on_end

    def __len__(self) -> int:
        """Return how many are under way."""
        return len(self.under_way)

    @property
    def asks(self) -> int:
        """How many asks are under way."""
        return len(self.under_way) - self.messages

    def __contains__(self, call: object) -> bool:
        """Tell whether a call is under way."""
        return call in self.under_way

    def leave(self, call: Call) -> None:
        """Note the end of a call."""
        self.under_way.discard(call)
        self._on_end()

    def accept(self, message: Call) -> None:
        """Note a message that has got a place in a mailbox."""
        self.messages += 1
        self.under_way.add(message)

    def settle(self, message: Call) -> None:
        """Note the end of a message, however it ended."""
        self.messages -= 1
        self.leave(message)

    def around(self, chain: object) -> Iterator[Call]:
        """Go through the calls that a chain of executions is a part of, from the inside out."""
        for link in links(chain):
            if link[2] is not None and link[2] in self.under_way:
                yield link[2]

    def end(self, make_error: Callable[[], Exception], reason: str, spared: set[object]) -> None:
        """Cancel every call but the spared ones; each caller gets an error of its own."""
        for call in self.under_way - spared:
            if call.interruption is None and not call.is_message:
                self.cut_short += 1
            call.end(make_error(), reason)
