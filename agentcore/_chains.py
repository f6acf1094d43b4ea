"""Chains of executions: who executes inside of whom, and whether one more wait would close a circle."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any, Protocol, TypeAlias, final

import anyio

from agentcore._rules.waits import Wait, WaitGraph
from agentcore.errors import AgentDeadlockError

# One execution of an agent while it runs, a link of a chain: what is executed (an agent, its initialisation, or a job at
# the root of a chain), the execution around it, and the ask that it is, if it is one. A task that was started inside may outlive the execution and still
# have it in its context; what is executed is None then. A list and no class: this is made for every execution, and costs
# a quarter.
Execution: TypeAlias = "list[Any]"


@final
class Initialization:
    """An initialisation that is under way, for others to wait for.

    Args:
        name: what it is called in a circle of waits.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.ended = anyio.Event()


def links(execution: object) -> Iterator[Execution]:
    """Go through the executions of a chain that still run, from the inside out."""
    while isinstance(execution, list):
        if execution[0] is not None:
            yield execution
        execution = execution[1]


def living(execution: Execution) -> Execution | None:
    """Return the innermost execution of a chain that still runs.

    What has ended behind it is taken out: executions that each start the next one in a task group from outside would make
    a chain that grows for ever.
    """
    found: Execution | None = execution
    while found is not None and found[0] is None:
        found = found[1]
    link = found
    while link is not None:
        while link[1] is not None and link[1][0] is None:
            link[1] = link[1][1]
        link = link[1]
    return found


class Waitable(Hashable, Protocol):
    """What a chain may have to wait for."""

    @property
    def name(self) -> str:
        """What it is called."""


class Waits(WaitGraph[Waitable]):
    """The waits of all chains in the process. What is waited for belongs to one event loop, so those of several never meet.

    What a chain has started in a task group counts as a part of it, as it does for cancellation: whoever starts something
    in there that nobody in the chain waits for may be told of a deadlock that would have resolved itself.
    """

    def begin(self, wanted: Waitable, chain: object) -> Wait[Waitable]:
        """Note a wait that is about to begin; `remove` it in the end.

        Raises:
            AgentDeadlockError: it would never end.
        """
        wait = Wait(wanted, tuple((link[0], id(link)) for link in links(chain)))
        circle = self.circle(wait)
        if circle is not None:
            names = [resource.name for resource in circle]
            raise AgentDeadlockError(
                f"agents would wait for each other for ever: {' → '.join([*names, names[0]])}; "
                "raise the max_concurrency of one of them or break the circle",
                {"agents": names},
            )
        self.add(wait)
        return wait
