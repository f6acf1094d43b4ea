"""Make a list of causes as short as it can be: delta debugging.

Source: Zeller, Hildebrandt, "Simplifying and isolating failure-inducing input", IEEE TSE 28(2), 2002.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def shrink(items: Sequence[T], fails: Callable[[list[T]], bool]) -> list[T]:
    """Return a subsequence that still fails, and from which no single item can be taken.

    Args:
        items: the causes, known to fail together.
        fails: tells whether a subsequence fails. Once it has had enough it may say False to everything: the shortest
            subsequence so far is returned.
    """
    kept = list(items)
    if kept and fails([]):
        return []
    size = max(1, len(kept) // 2)
    while kept:
        start, shorter = 0, False
        while start < len(kept):
            rest = kept[:start] + kept[start + size :]
            if rest and fails(rest):
                kept, shorter = rest, True
            else:
                start += size
        if size == 1 and not shorter:
            break
        size = size if size == 1 else max(1, min(size // 2, len(kept) // 2))
    return kept
