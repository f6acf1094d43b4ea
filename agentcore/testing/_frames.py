"""Where a suspended task is: the chain of its frames, read from outside.

Which frames belong to the machinery (event loops, AnyIO, this package) decides two things: the place that a failure
names, and what counts as one stop of a task. The same call, `lock.acquire()` for example, gives way once on one event
loop and twice on the other; seen as one stop, a schedule fits both.
"""

from __future__ import annotations

import contextlib
import gc
import types
from pathlib import Path
from typing import Any

import anyio

_MACHINERY = [str(Path(module.__file__ or "").parent) for module in (anyio, contextlib)]
_HERE = str(Path(__file__).parent)
_NAMES = ("anyio", "trio", "asyncio", "outcome", "sniffio")
_known: dict[types.CodeType, bool] = {}


def is_machinery(code: types.CodeType) -> bool:
    """Tell whether a frame of this code belongs to an event loop, to AnyIO or to the simulator."""
    known = _known.get(code)
    if known is None:
        path = Path(code.co_filename)
        known = _known[code] = (
            path.parent == Path(_HERE)
            or path == Path(contextlib.__file__)
            or any(part in _NAMES for part in path.parts)
        )
    return known


def _step(node: Any) -> tuple[types.CodeType | None, Any]:
    """Return the code that `node` runs, and what it waits for."""
    kind = type(node)
    if kind is types.CoroutineType:
        return node.cr_code, node.cr_await
    if kind is types.GeneratorType:
        return node.gi_code, node.gi_yieldfrom
    if kind is types.AsyncGeneratorType:
        return node.ag_code, node.ag_await
    if kind.__name__ in {"async_generator_asend", "async_generator_athrow", "coroutine_wrapper"}:
        # Opaque from Python: the object behind it is among what it refers to.
        behind = (types.AsyncGeneratorType, types.CoroutineType)
        return None, next((other for other in gc.get_referents(node) if type(other) in behind), None)
    return None, None


def stop_of(coroutine: Any) -> tuple[Any, Any]:
    """Return where a suspended coroutine stands.

    Returns:
        The innermost coroutine or generator that is not machinery (None if all is), and the awaitable that it waits in.
    """
    user, call, node = None, coroutine, coroutine
    while node is not None:
        code, below = _step(node)
        if code is not None and not is_machinery(code):
            user, call = node, below
        node = below
    return user, call


def describe(coroutine: Any) -> tuple[str, str, str]:
    """Return `function:line`, the name of what is waited in, and the file's name of a suspended coroutine."""
    user, call = stop_of(coroutine)
    code, _ = _step(call)
    waited = code.co_qualname.removesuffix(".<locals>") if code is not None else ""
    if user is None:
        return waited or "?", "", Path(code.co_filename).name if code is not None else "?"
    frame = getattr(user, "cr_frame", None) or getattr(user, "gi_frame", None) or getattr(user, "ag_frame", None)
    own, _ = _step(user)
    assert own is not None
    line = frame.f_lineno if frame is not None else own.co_firstlineno
    return f"{own.co_qualname.rpartition('<locals>.')[2]}:{line}", waited, Path(own.co_filename).name
