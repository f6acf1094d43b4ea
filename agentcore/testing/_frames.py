"""Where a suspended task is: the chain of its frames, read from outside.

Which frames belong to the machinery (event loops, AnyIO, this package) decides two things: the place that a failure
names, and what counts as one stop of a task. The same call, `lock.acquire()` for example, gives way once on one event
loop and twice on the other; seen as one stop, a schedule fits both.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import os
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_HERE = str(Path(__file__).parent)
_PACKAGE = str(Path(__file__).parent.parent)
_known: dict[types.CodeType, bool] = {}


def _folders() -> Iterator[str]:
    yield _HERE + os.sep
    for name in ("anyio", "asyncio", "outcome", "sniffio", "trio"):
        found = importlib.util.find_spec(name)  # does not load it
        for folder in (found.submodule_search_locations if found is not None else None) or ():
            yield folder + os.sep


_MACHINERY = (*_folders(), contextlib.__file__)


def is_machinery(code: types.CodeType) -> bool:
    """Tell whether a frame of this code belongs to an event loop, to AnyIO or to the simulator."""
    known = _known.get(code)
    if known is None:
        known = _known[code] = code.co_filename.startswith(_MACHINERY)
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


def runs(coroutine: Any, code: types.CodeType) -> Any:
    """Return the coroutine of this code among those that a suspended one waits in, None if there is none."""
    return next((node for node, own in _frames(coroutine) if own is code), None)


def describe(coroutine: Any) -> tuple[str, str, str]:
    """Tell where a suspended coroutine stands, in words.

    Returns:
        `function:line` of the innermost frame outside of agentcore and of the machinery, or of the innermost one in
        agentcore; what it calls there, down to what it waits in; the name of the file.
    """
    frames = list(_frames(coroutine))
    if not frames:
        return "?", type(coroutine).__name__, "?"  # something in C, or a class that only acts like a coroutine
    own = [index for index, (_node, code) in enumerate(frames) if not is_machinery(code)]
    outside = [index for index in own if not frames[index][1].co_filename.startswith(_PACKAGE)]
    if not own:
        return "?", _name(frames[0][0]), Path(frames[0][1].co_filename).name
    shown = (outside or own)[-1]
    # The call that leads into agentcore, if that is where the task is, and the last one: what it waits in.
    calls = [_name(frames[index + 1][0]) for index in dict.fromkeys((shown, own[-1])) if index + 1 < len(frames)]
    node, code = frames[shown]
    frame = getattr(node, "cr_frame", None) or getattr(node, "gi_frame", None) or getattr(node, "ag_frame", None)
    line = frame.f_lineno if frame is not None else code.co_firstlineno
    return f"{_name(node)}:{line}", " > ".join(calls), Path(code.co_filename).name


def _frames(coroutine: Any) -> Iterator[tuple[Any, types.CodeType]]:
    node = coroutine
    while node is not None:
        code, below = _step(node)
        if code is not None:
            yield node, code
        node = below


def _name(node: Any) -> str:
    # The name of the coroutine and not that of its code: a stand-in is called like what it stands for.
    name: str = node.__qualname__
    while name.endswith(">") and ".<locals>." in name:
        name = name.rpartition(".<locals>.")[0]  # comprehensions: some versions have frames of their own for them
    return name.rpartition("<locals>.")[2]


def close(coroutine: Any) -> None:
    """Close a coroutine that nobody will run any more."""
    try:
        coroutine.close()
    except Exception:  # noqa: BLE001 - whatever it raises, it is over
        # It waits again while it is closed, or is running: there is nothing more that could be done for it.
        return
