"""What is known of the tasks of a runtime: those that run or wait, the latest that have ended, the failures nobody has seen."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from operator import itemgetter
from typing import Final

from agentcore._handle import TaskHandle, error_of
from agentcore._job import Job
from agentcore._keys import Keys
from agentcore._rules.task_states import TaskState
from agentcore._task_result import TaskResult
from agentcore._tasks import BaseTask
from agentcore.errors import CoreError, TaskNotFoundError

MAX_LOST: Final = 100
"""How many failures that reached nobody are kept whole for the exit of the runtime; further ones are counted."""


class Ledger:
    """The tasks of one runtime.

    Args:
        retention: how many tasks are remembered after their end, the newest.

    Attributes:
        jobs: the jobs that run or wait, by the id of their task, in the order of their arrival.
        accepted: how many there have been.
        ended: how many tasks have ended in each state.
        keys: which of the tasks has which key.
        on_abandoned: called with the id and the error of a failed task when its handle is gone and nobody has asked it.
    """

    def __init__(self, retention: int) -> None:
        self.jobs: dict[str, Job] = {}
        self.accepted: int = 0
        self.ended: dict[TaskState, int] = dict.fromkeys(TaskState, 0)
        self.keys: Final[Keys] = Keys()
        self._retention = retention
        # By the number of their jobs: an id may come twice, and then stands for the last one.
        self._recent: OrderedDict[int, BaseTask] = OrderedDict()
        self._numbers: dict[str, int] = {}
        self.on_abandoned: Callable[[str, CoreError], object] | None = None
        # Without the handle, which may vanish: then nobody can ask any more.
        self._lost: dict[int, tuple[BaseTask, BaseException | None]] = {}
        self._told: set[int] = set()  # those of them that `on_abandoned` has been called with
        self._lost_uncounted = 0
        self._cut: list[Job] = []

    def enter(self, job: Job) -> None:
        """Note a job that has been accepted."""
        self.accepted += 1
        job.number = self.accepted
        self.jobs[job.task.id] = job

    def leave(self, job: Job) -> None:
        """Note that a job has been settled."""
        task, number = job.task, job.number
        del self.jobs[task.id]
        self.ended[task.state] += 1
        self._recent[number] = task
        self._numbers[task.id] = number
        if self.keys:
            self.keys.leave(number, task.state)
        if len(self._recent) > self._retention:
            self._forget_oldest()
        if job.has_failed and job.watcher is None:
            self.lose(job)

    def _forget_oldest(self) -> None:
        number, task = self._recent.popitem(last=False)
        if self._numbers[task.id] == number:
            del self._numbers[task.id]
        if self.keys:
            self.keys.forget(number)

    def get(self, task_id: str) -> BaseTask:
        """Return a task that runs or waits, or has ended not long ago.

        Raises:
            TaskNotFoundError: there is none of this id.
        """
        if task_id in self.jobs:
            return self.jobs[task_id].task
        if (task := self._recent.get(self._numbers.get(task_id, 0))) is not None:
            return task
        raise TaskNotFoundError(
            f"the runtime knows no task of this id: got {task_id!r}; "
            f"it remembers the {self._retention} that ended last (retention)",
            {"task_id": task_id},
        )

    def cut(self, job: Job) -> None:
        """Note that a job is cut short by the end of the runtime."""
        job.was_cut = True
        self._cut.append(job)

    def cut_short(self) -> tuple[TaskResult, ...]:
        """Return how the tasks have ended that were cut short, in the order of their arrival."""
        ordered = sorted(((job.number, job.task) for job in self._cut), key=itemgetter(0))
        return tuple(TaskResult.from_task(task) for _, task in ordered)

    def retrieved(self, handle: TaskHandle) -> None:
        """Note that somebody has learned how a task ended: if it failed, the failure is theirs from now on."""
        number, handle._loss = handle._loss, None
        if number is None:
            return
        if number:
            self._lost.pop(number, None)
            self._told.discard(number)
        elif self._lost_uncounted:  # not told at the exit
            self._lost_uncounted -= 1
        if handle._abandonment is not None:
            handle._abandonment.detach()

    @property
    def lost_count(self) -> int:
        """How many failures have reached nobody."""
        return len(self._lost) + self._lost_uncounted

    def lost(self) -> list[CoreError]:
        """Return the failures that have reached nobody, as far as they were kept: fresh errors, oldest first."""
        # Copied at once: `health` is asked in other threads too.
        errors = (error_of(task, cause) for task, cause in list(self._lost.values()))
        return [error for error in errors if error is not None]

    def untold(self) -> Iterator[tuple[str, CoreError]]:
        """Go through those whose handles somebody still has: the ids of their tasks, and fresh errors."""
        for number, (task, cause) in self._lost.items():
            error = error_of(task, cause)
            if error is not None and number not in self._told:
                yield task.id, error

    def forget_lost(self) -> None:
        """Note that all of them have been told."""
        self._lost.clear()
        self._told.clear()
        self._lost_uncounted = 0

    def lose(self, job: Job) -> None:
        """Note the failure of a job that reaches nobody, unless somebody asks the handle; without one, it was raised."""
        if (handle := job.handle) is None:
            return
        if len(self._lost) < MAX_LOST:
            self._lost[job.number] = job.task, job.cause
            handle._loss = job.number
        else:
            self._lost_uncounted += 1
            handle._loss = 0
        if self.on_abandoned is not None:
            handle._abandonment = weakref.finalize(handle, self._abandon, job.task, job.cause, handle._loss)
            handle._abandonment.atexit = False

    def _abandon(self, task: BaseTask, cause: BaseException | None, number: int) -> None:
        if number and number not in self._lost:
            return  # told at the exit
        error = error_of(task, cause)
        if self.on_abandoned is not None and error is not None:
            if number:
                self._told.add(number)
            self.on_abandoned(task.id, error)
