"""How progress inside of executions reaches those who watch for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, final

from agentcore import _interop
from agentcore._agent_records import Idle
from agentcore._events import Emitter
from agentcore._tasks import BaseTask


@final
class Signs:
    """The signs of life of a runtime's tasks. They may come from any thread, and count in the event loop.

    Args:
        log: who listens to it hears of progress; it keeps none.
    """

    def __init__(self, log: Emitter) -> None:
        self._log = log
        self._now: Callable[[], float | None] = lambda: None
        self._post: Callable[[Callable[[], object]], None] | None = None

    def open(self) -> None:
        """Count in the event loop that runs."""
        self._now = _interop.local_clock()
        self._post = _interop.wake_up_function()

    @property
    def is_heard(self) -> bool:
        """Whether anybody listens."""
        return self._log.has_sinks

    def note(self, watches: list[Idle], task: BaseTask | None, value: object, fields: Mapping[str, Any]) -> None:
        """Give executions their time anew, and tell who listens of a task's progress.

        Args:
            watches: of the executions.
            task: the task; None if it is none that progresses, but what it waits for.
            value: how far it has come.
            fields: further facts.
        """
        now = self._now()
        if now is None:
            if self._post is not None:
                with suppress(RuntimeError):  # the event loop has ended
                    self._post(partial(self.note, watches, task, value, fields))
            return
        for watch in watches:
            watch.move(now)
        if task is not None and not task.is_finished:  # from a thread it may come late
            self._log.tell("task_progress", task_id=task.id, type=task.type, value=value, fields=dict(fields))
