"""Who waits for whom: whether a wait that is about to begin could ever end.

A resource has a number of holders at a time, and whoever wants one more waits until one of them is done. A holder is not
done while anything that runs on its behalf waits. So a wait is stuck if *every* holder of its resource has a stuck wait
of its own. That is the and-or form of a deadlock (E. G. Coffman, M. J. Elphick, A. Shoshani: System Deadlocks, 1971;
with several units of a resource a circle alone is necessary but not sufficient).

The answer is the greatest fixpoint, found by elimination: take all waits that can be reached from the new one to be
stuck, and strike out those with a holder that is free, until nothing changes.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

R = TypeVar("R", bound=Hashable)


class Wait(Generic[R]):
    """A chain of holders of which the innermost waits for one more resource.

    Args:
        wanted: the resource that is waited for.
        held: the resources along the chain, from the inside out, each with what identifies its holder.
    """

    __slots__ = ("held", "wanted")

    def __init__(self, wanted: R, held: tuple[tuple[R, int], ...]) -> None:
        self.wanted = wanted
        self.held = held


class WaitGraph(Generic[R]):
    """The waits of chains that hold something; a chain that holds nothing can delay nobody and is left out.

    Args:
        holders: how many holders a resource has at the moment.
    """

    __slots__ = ("_holders", "_waits")

    def __init__(self, holders: Callable[[R], int]) -> None:
        self._holders = holders
        self._waits: dict[R, list[Wait[R]]] = {}  # by what their chains hold

    def add(self, wait: Wait[R]) -> None:
        for resource, _ in wait.held:
            self._waits.setdefault(resource, []).append(wait)

    def remove(self, wait: Wait[R]) -> None:
        for resource, _ in wait.held:
            waits = self._waits[resource]
            waits.remove(wait)
            if not waits:
                del self._waits[resource]

    def circle(self, new: Wait[R]) -> list[R] | None:
        """Return the resources along a circle that a new wait would close, each waiting for the next; None if it can end."""
        if not new.held:
            return None
        stuck = self._reachable(new)
        while True:
            free = {wait for wait in stuck if self._has_free_holder(wait.wanted, stuck)}
            if new in free:
                return None
            if not free:
                return self._walk(new, stuck)
            stuck -= free

    def _reachable(self, new: Wait[R]) -> set[Wait[R]]:
        found = {new}
        frontier = [new.wanted]
        seen: set[R] = set()
        while frontier:
            resource = frontier.pop()
            if resource in seen:
                continue
            seen.add(resource)
            for wait in self._waits.get(resource, ()):
                found.add(wait)
                frontier.append(wait.wanted)
        return found

    def _has_free_holder(self, resource: R, stuck: set[Wait[R]]) -> bool:
        blocked = {holder for wait in stuck for held, holder in wait.held if held is resource}
        return not blocked or len(blocked) < self._holders(resource)

    def _walk(self, new: Wait[R], stuck: set[Wait[R]]) -> list[R]:
        # Every resource that a stuck wait wants is held by a stuck wait, so this cannot end but by closing a circle.
        wanted: list[R] = []
        segments: list[list[R]] = []
        wait = new
        while wait.wanted not in wanted:
            wanted.append(wait.wanted)
            wait, held = next(
                (other, held) for other in stuck if wanted[-1] in (held := [resource for resource, _ in other.held])
            )
            # From the holder of what is wanted inwards to the end of its chain, which wants the next one.
            segments.append(held[held.index(wanted[-1]) :: -1])
        return [resource for segment in segments[wanted.index(wait.wanted) :] for resource in segment]
