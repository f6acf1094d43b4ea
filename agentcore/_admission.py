"""Who may run: the slots in flight, the line for them, the places in the queue, and the lending of slots.

What is decided stands in `_rules.admission`; this is the waiting around it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager

import anyio

from agentcore._agent_records import Limit
from agentcore._job import Job, Plan, Turn, check_limit
from agentcore._rules.admission import Slots
from agentcore._rules.task_states import TaskPriority
from agentcore._task_records import to_priority
from agentcore._tasks import BaseTask


class Admission:
    """The slots of one runtime.

    Args:
        in_flight: how many tasks may run at a time.
        queue: how many submitted tasks may wait for a slot; further submitters wait themselves.
        ageing: seconds of waiting that are worth one band of priority, in the line for a slot and in that of submitters.
    """

    def __init__(self, in_flight: int, queue: int, ageing: float) -> None:
        self._slots: Slots[Turn] = Slots(in_flight, ageing)
        # Places for submitted tasks that wait for a slot; who runs a task waits himself and needs none.
        self._room: Slots[Turn] = Slots(queue, ageing)
        # Who is in the line for these places, by the key of what he submits; None for none.
        self._submitters: dict[str | None, dict[Turn, None]] = {}

    def __repr__(self) -> str:
        return repr(self._slots)

    @property
    def in_use(self) -> int:
        """How many slots are taken."""
        return self._slots.in_use

    @property
    def waiting(self) -> int:
        """How many tasks wait for one."""
        return len(self._slots)

    def enter(self, task: BaseTask, plan: Plan, parent: Job | None) -> Turn | None:
        """Take a slot for a task that is run, in `parent` if there is one; return None, or the turn to wait for."""
        turn = None
        if parent is not None and parent.has_slot:
            # The parent waits right here: its slot goes to the child, and comes back with the child's end.
            parent.has_slot = False
        elif not self._slots.try_take():
            turn = self._line_up(task, plan.limit_in_line())
        if parent is not None:
            parent.waiting_for += 1
        return turn

    def try_enter(self) -> bool:
        """Take a slot for a task that is submitted, if one is free; otherwise it has to `queue_up`."""
        return self._slots.try_take()

    async def queue_up(
        self, task: BaseTask, plan: Plan, submitter: Job | None, check: Callable[[], None], key: str | None
    ) -> Turn | None:
        """Wait for a place in the queue and return the turn to wait for then; None if there is a slot by now.

        Args:
            task: the task.
            plan: its deadlines.
            submitter: the job that submits it, whose slot is lent while it waits.
            check: raises if the task may no longer be accepted; called when there was a wait.
            key: by which `wake_submitters` finds him.
        """
        if not self._room.try_take():
            with self._submitting(task, key) as turn:
                await self._wait_for_room(turn, task, plan, submitter, check)
            if self._slots.try_take():
                self._give_room()
                return None
        turn = self._line_up(task, plan.limit_in_line())
        turn.has_room = True
        return turn

    def line_up(self, task: BaseTask, plan: Plan) -> Turn | None:
        """Take a slot for a child of a group and return None, or return the turn to wait for. The queue has no part in it."""
        return None if self._slots.try_take() else self._line_up(task, plan.limit_in_line())

    def pause(self, job: Job) -> None:
        """Give the slot of a job to the next: it is between two executions."""
        job.is_paused = True
        if job.has_slot:
            job.has_slot = False
            self._give_slot()

    def resume(self, job: Job) -> Turn | None:
        """Take a slot for the next execution of a job and return None, or return the turn to wait for.

        It comes as whoever comes now: no place before others, and none in the queue, which is for what is not accepted yet.
        """
        if self._slots.try_take():
            job.has_slot, job.is_paused = True, False
            return None
        task = job.task
        if task.priority.__class__ is not TaskPriority:  # it may have been set meanwhile
            task.priority = to_priority(task.priority)
        return self._line_up(task, job.plan.limit_in_line(again=True))

    async def wait_for_turn(self, job: Job, turn: Turn) -> None:
        """Wait until a job has a slot, or until its deadline.

        Raises:
            TaskTimeoutError: the deadline came first.
        """
        try:
            with anyio.move_on_at(turn.limit.at if turn.limit is not None else None):
                await turn.event.wait()
        finally:
            self.leave_line(job, turn)
        check_limit(turn.limit, job.task, "while it waited for its turn")

    def leave_line(self, job: Job, turn: Turn) -> None:
        """End the wait for a turn, however it went: the job has the slot now, or no place in the line any more."""
        if turn.granted:
            job.has_slot, job.is_paused = True, False
        else:
            self._slots.withdraw(turn, turn.priority)
        if turn.has_room:
            self._give_room()

    def leave(self, job: Job) -> None:
        """Give the slot of a job back: to the parent that waits for it, if this was its last child, else to the next."""
        # A child that is run has its parent's slot. One of a group has its own: the parent may do without for longer.
        parent = job.parent if job.handle is None else None
        if parent is not None and parent.waiting_for == 1 and job.has_slot and _has_claim(parent):
            parent.waiting_for, parent.has_slot, job.has_slot = 0, True, False
            return
        if job.has_slot:
            job.has_slot = False
            self._give_slot()
        if parent is not None:
            self._end_wait(parent)

    @contextmanager
    def lending(self, job: Job | None) -> Generator[None]:
        """Lend the slot of a job, if there is one, for as long as it waits in the block."""
        if job is None:
            yield
            return
        job.waiting_for += 1
        if job.has_slot:
            job.has_slot = False
            self._give_slot()
        try:
            yield
        finally:
            self._end_wait(job)

    def wake_submitters(self, key: str | None = None) -> None:
        """Have those who wait for a place in the queue look whether they still may; each keeps his own in the line.

        Args:
            key: only those who submit something with this key.
        """
        for turns in self._submitters.values() if key is None else (self._submitters.get(key, {}),):
            for turn in turns:
                turn.event.set()

    @contextmanager
    def _submitting(self, task: BaseTask, key: str | None) -> Generator[Turn]:
        """Give a turn in the line for places in the queue; whoever leaves the block by an error has none of either."""
        turn = Turn(task.priority)
        turns = self._submitters.setdefault(key, {})
        turns[turn] = None
        self._room.wait(turn, turn.priority, anyio.current_time())
        try:
            yield turn
        except BaseException:
            if turn.granted:
                self._give_room()
            else:
                self._room.withdraw(turn, turn.priority)
            raise
        finally:
            del turns[turn]
            if not turns:
                del self._submitters[key]

    async def _wait_for_room(
        self, turn: Turn, task: BaseTask, plan: Plan, submitter: Job | None, check: Callable[[], None]
    ) -> None:
        limit = plan.limit_in_line()
        with self.lending(submitter):
            while not turn.granted:
                with anyio.move_on_at(limit.at if limit is not None else None):
                    await turn.event.wait()
                # Much may have happened meanwhile, to the runtime and to the task.
                check()
                if not turn.granted:
                    check_limit(limit, task, "before the queue had room for it; it was not accepted")
                    # Only a grant takes it out of the line: it is there still, as old as it is.
                    turn.event = anyio.Event()

    def _line_up(self, task: BaseTask, limit: Limit | None) -> Turn:
        turn = Turn(task.priority, limit)
        # The clock of the event loop, whoever comes: a context may have another one with it, from a thread for instance.
        self._slots.wait(turn, turn.priority, anyio.current_time())
        return turn

    def _end_wait(self, job: Job) -> None:
        """End one wait of a job; with the last one it has its slot again."""
        job.waiting_for -= 1
        if job.waiting_for == 0 and _has_claim(job):
            self._slots.reclaim()
            job.has_slot = True

    def _give_slot(self) -> None:
        if (turn := self._slots.give()) is not None:
            turn.grant()

    def _give_room(self) -> None:
        if (turn := self._room.give()) is not None:
            turn.grant()


def _has_claim(job: Job) -> bool:
    """Tell whether a job that has waited is to have its slot again. What one execution has started may wait in the next."""
    return not (job.ended or job.is_paused or job.has_slot)
