"""What is known of the tasks of a runtime: those that run or wait, the latest that have ended, the failures nobody has seen."""

from __future__ import annotations

from collections import OrderedDict
from operator import itemgetter
from typing import Final

from agentcore._handle import TaskHandle, outcome_of
from agentcore._job import Job
from agentcore._rules.task_states import TaskState
from agentcore._tasks import BaseTask, TaskResult
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
    """

    def __init__(self, retention: int) -> None:
        self.jobs: dict[str, Job] = {}
        self.accepted = 0
        self.ended = dict.fromkeys(TaskState, 0)
        self._retention = retention
        self._recent: OrderedDict[str, BaseTask] = OrderedDict()
        self._lost: dict[TaskHandle, BaseException | None] = {}
        self._lost_uncounted = 0
        self._cut: list[Job] = []

    def enter(self, job: Job) -> None:
        """Note a job that has been accepted."""
        self.accepted += 1
        job.number = self.accepted
        self.jobs[job.task.id] = job

    def leave(self, job: Job) -> None:
        """Note that a job has been settled."""
        task = job.task
        del self.jobs[task.id]
        self.ended[task.state] += 1
        self._recent[task.id] = task
        if len(self._recent) > self._retention:
            self._recent.popitem(last=False)
        if job.handle is not None and job.has_failed:
            self._lose(job.handle, job.cause)

    def get(self, task_id: str) -> BaseTask:
        """Return a task that runs or waits, or has ended not long ago.

        Raises:
            TaskNotFoundError: there is none of this id.
        """
        if task_id in self.jobs:
            return self.jobs[task_id].task
        if task_id in self._recent:
            return self._recent[task_id]
        raise TaskNotFoundError(
            f"the runtime knows no task of this id: got {task_id!r}; "
            f"it remembers the {self._retention} that ended last (retention)",
            {"task_id": task_id},
        )

    def cut(self, job: Job) -> None:
        """Note that a job is cut short by the end of the runtime."""
        self._cut.append(job)

    def cut_short(self) -> tuple[TaskResult, ...]:
        """Return how the tasks have ended that were cut short, in the order of their arrival."""
        ordered = sorted(((job.number, job.task) for job in self._cut), key=itemgetter(0))
        return tuple(TaskResult.from_task(task) for _, task in ordered)

    def retrieved(self, handle: TaskHandle) -> None:
        """Note that somebody has learned how a task ended: if it failed, the failure is theirs from now on."""
        self._lost.pop(handle, None)
        if handle._uncounted:
            handle._uncounted = False
            self._lost_uncounted -= 1

    def take_lost(self) -> tuple[list[CoreError], int]:
        """Return the failures that reached nobody, as far as they were kept, and how many there are in all."""
        errors = []
        for handle, cause in self._lost.items():
            try:
                outcome_of(handle.task, cause)
            except CoreError as error:
                errors.append(error)
        count = len(errors) + self._lost_uncounted
        self._lost.clear()
        self._lost_uncounted = 0
        return errors, count

    def _lose(self, handle: TaskHandle, cause: BaseException | None) -> None:
        if len(self._lost) < MAX_LOST:
            self._lost[handle] = cause
        else:
            self._lost_uncounted += 1
            handle._uncounted = True
