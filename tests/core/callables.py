"""Everything that can be called, some that has to be awaited, and what people pass by mistake."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Final


class Adder:
    """A callable object."""

    def __call__(self, *numbers: int, **more: int) -> int:
        return sum(numbers) + sum(more.values())

    async def method(self, *numbers: int, **more: int) -> int:
        return self(*numbers, **more)


class AsyncAdder:
    """A callable object that has to be awaited."""

    async def __call__(self, *numbers: int, **more: int) -> int:
        return sum(numbers) + sum(more.values())


class Later:
    """Something that can be awaited and is no coroutine."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __await__(self) -> Generator[Any, Any, int]:
        yield from ()
        return self.value


def add(*numbers: int, **more: int) -> int:
    return sum(numbers) + sum(more.values())


async def add_async(*numbers: int, **more: int) -> int:
    return sum(numbers) + sum(more.values())


MISTAKES: Final[list[tuple[Any, str]]] = [
    (None, "got None; pass a function and its arguments"),
    (3, "got 3; pass a function and its arguments"),
    ("succeed", "got 'succeed'; pass a function and its arguments"),
    (Later(1), "pass a function and its arguments"),
]
"""What is no function, and how the error about it ends."""
