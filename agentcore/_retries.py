"""Executes tasks again that have failed: the waits between their executions, and the budget of all of them.

Whether there is a further execution is decided by `_rules/retry`, in the same step in which one has failed. Until the next
one the task is PENDING, holds no slot and no place in the queue; then it lines up as whoever comes at that moment, so that
many which fail together overtake nobody. It waits in the task in which it is executed, so cancelling it is nothing special.
"""

from __future__ import annotations

import math
from datetime import datetime
from typing import Final, final

import anyio

from agentcore import _interop
from agentcore._admission import Admission
from agentcore._agent_records import AgentResult
from agentcore._events import EventLog, to_datetime
from agentcore._job import Job, Trials, check_limit
from agentcore._layer import is_cancelled
from agentcore._retry import RetryBudget, RetryPolicy
from agentcore._rules.retry import Course, GaveUp
from agentcore._rules.task_states import TaskState
from agentcore.errors import TaskStateError

_END_OF_TIME: Final = 253_402_300_799.0
"""The last second that a datetime can name."""


@final
class Retries:
    """The retries of one runtime.

    Args:
        admission: the slots.
        log: where events go.
        budget: pays for them; None if nothing limits all of them together.

    Attributes:
        count: how many there have been.
        waiting: how many tasks wait for one now.
    """

    def __init__(self, admission: Admission, log: EventLog, budget: RetryBudget | None) -> None:
        self.count: int = 0
        self.waiting: int = 0
        self._admission = admission
        self._log = log
        self._budget = budget

    def begin(self, job: Job) -> int:
        """Note, in the task in which it is executed, that a job may be executed several times.

        Returns:
            How often that task has been asked to end before; for `go_on`.
        """
        if self._budget is not None:
            self._budget._earn()
        # A task of its own has not been asked to yet.
        return _interop.cancel_requests() if job.handle is None else 0

    def go_on(
        self,
        job: Job,
        policy: RetryPolicy,
        result: AgentResult | None,
        error: BaseException | None,
        *,
        requests: int,
        is_closed: bool,
    ) -> Trials | None:
        """Decide whether a job whose execution has failed is executed again, and note what follows from it.

        Args:
            job: the job.
            policy: its own.
            result: what its agent gave.
            error: the exception behind the failure.
            requests: what `begin` has returned.
            is_closed: whether the runtime takes nothing any more.

        Returns:
            What `wait` has to know; None if it is not.
        """
        task = job.task
        if task.state is not TaskState.RUNNING or task.cancel_requested or job.was_refused(error):
            return None
        if (trials := job.trials) is None:
            # What another process has tried before counts.
            trials = job.trials = Trials(policy, requests, Course(policy.attempts, policy.backoff, made=task.failures))
        rejected, decision = self._decide(job, trials, error)
        if is_closed and not isinstance(decision, GaveUp):
            decision = GaveUp.CLOSED
        if not isinstance(decision, GaveUp):
            not_before = min(_interop.wall_time() + decision, _END_OF_TIME)
            try:
                task.retry(job.told(result, error), to_datetime(not_before), counts=not rejected)
            except TaskStateError:  # somebody has ended it by hand, in another thread
                decision = GaveUp.CANCELED
        if isinstance(decision, GaveUp):
            trials.gave_up = decision
            self._give_back(trials)
            return None
        trials.wait, trials.comes_at = decision, anyio.current_time() + decision
        trials.attempt = task.attempt
        self.count += 1
        self.waiting += 1
        job.agent = job.idle = None
        self._admission.pause(job)
        return trials

    async def wait(self, job: Job, trials: Trials) -> None:
        """Wait until a job may be executed again, and has a slot.

        Raises:
            TaskTimeoutError: a deadline came first.
        """
        task = job.task
        try:
            self._log.emit("task_retried", task_id=task.id, type=task.type, attempt=task.attempt, wait=trials.wait)
            await anyio.sleep_until(trials.comes_at)
        finally:
            self.waiting -= 1
        job.turn = self._admission.resume(job)
        if job.turn is not None:
            await self._admission.wait_for_turn(job, job.turn)

    async def hold(self, job: Job, until: datetime) -> None:
        """Wait until a task may begin that has failed elsewhere, in another process for instance; it lines up then.

        Raises:
            TaskTimeoutError: its total deadline came first.
        """
        seconds, total = until.timestamp() - _interop.wall_time(), job.plan.total
        if seconds <= 0:
            return
        if job.turn is not None:
            self._admission.leave_line(job, job.turn)
            job.turn = None
        self._admission.pause(job)
        self.waiting += 1
        try:
            with anyio.move_on_at(math.inf if total is None else total.at):
                await anyio.sleep(seconds)
        finally:
            self.waiting -= 1
        check_limit(total, job.task, "while it waited for its retry")
        job.turn = self._admission.resume(job)

    def end(self, job: Job) -> None:
        """Note that a job is settled."""
        trials = job.trials
        if trials is not None and job.task.attempt == trials.attempt:  # the execution that was paid for has not begun
            self._give_back(trials)

    def _decide(self, job: Job, trials: Trials, error: BaseException | None) -> tuple[bool, float | GaveUp]:
        """Return whether nothing was tried, and the seconds to wait, or why there is no further execution."""
        total = job.plan.total
        until = min(anyio.current_effective_deadline(), math.inf if total is None else total.at) - anyio.current_time()
        facts = trials.policy._examine(error)
        return facts.rejected, trials.course.after(
            facts,
            _interop.sources.get().random.random,
            until_deadline=-math.inf if is_cancelled(trials.requests) else until,
            afford=None if self._budget is None else self._budget._spend,
        )

    def _give_back(self, trials: Trials) -> None:
        """Take back what was paid for an execution that there is not going to be."""
        if self._budget is not None and trials.course.paid:
            trials.course.paid = False
            self._budget._give_back()
