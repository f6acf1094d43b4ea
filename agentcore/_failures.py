"""What goes wrong in the background of a runtime, until somebody learns of it.

Three things: tasks that failed and whose handle nobody has asked (the `Ledger` has them), mishaps that harm nothing else
(the clean-up of an agent), and the one crash that ends the runtime. Each is told once: raised where the runtime is left,
and logged when it happens if that may be long after (a hosted runtime).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Final

from agentcore._ledger import MAX_LOST, Ledger
from agentcore.errors import AgentCrashedError, AgentError, CoreError, RuntimeClosedError, text_of, texts_of

_logger: Final = logging.getLogger("agentcore.runtime")


class Failures:
    """The failures of one runtime that have reached nobody so far.

    Args:
        ledger: has those of tasks.
        is_hosted: whether the runtime is: they are logged when they happen then, and nothing is raised that the host could
            take for its own end.

    Attributes:
        fatal: what ended the runtime; None as long as nothing did.
    """

    def __init__(self, ledger: Ledger, *, is_hosted: bool) -> None:
        self.fatal: BaseException | None = None
        self._ledger = ledger
        self._is_hosted = is_hosted
        self._errors: list[BaseException] = []
        self._uncounted = 0  # mishaps that are not among them
        self._on_crash: Callable[[BaseException], object] | None = None
        if is_hosted:
            ledger.on_abandoned = self._log_abandoned

    def on_crash(self, callback: Callable[[BaseException], object]) -> None:
        """Have the owner called at the first crash."""
        self._on_crash = callback

    def add(self, error: Exception, what: str) -> None:
        """Note a mishap, for the exit. Only so many are kept whole, as of tasks."""
        if len(self._errors) < MAX_LOST:
            self._errors.append(error)
        else:
            self._uncounted += 1
        if self._is_hosted:
            _logger.error("%s: %s", what, text_of(error), exc_info=error)

    def crash(self, error: BaseException) -> None:
        """Note what nothing in the runtime can go on after, and tell the owner, who ends it.

        Ctrl-C is not kept in a hosted runtime: the owner hands it on to the program, which it was meant for.
        """
        failure: BaseException | None = error
        if self._is_hosted:
            failure = _without_interrupt(error)
            if failure is not None and not isinstance(failure, Exception):
                ended = AgentError(
                    f"a task of the runtime raised what nothing can go on after: got {failure!r}; see the cause"
                )
                ended.__cause__ = failure
                failure = ended
        if failure is not None:
            self._errors.append(failure)
            if self._is_hosted:
                _logger.critical("the runtime has failed and ends: %s", text_of(failure), exc_info=failure)
        if self.fatal is None:
            self.fatal = failure if failure is not None else error
            if self._on_crash is not None:
                self._on_crash(error)

    def cause(self) -> BaseExceptionGroup[BaseException] | None:
        """Return what ended the runtime, with all else there is, in a fresh group; None if nothing did."""
        if self.fatal is None:
            return None
        return _group([self.fatal, *(error for error in self._all() if error is not self.fatal)], 0, None)

    def refusal(self, state: str, subject: str, details: Mapping[str, object]) -> RuntimeClosedError:
        """Return the error for who comes when the runtime takes nothing; its cause is what the runtime has failed by."""
        if self.fatal is not None:
            state = "failed"
        remedy = {
            "new": "write `async with AgentRuntime() as runtime:`",
            "failed": "it has failed, see the cause; make a new one",
        }
        error = RuntimeClosedError(
            f"a runtime works between entering and leaving its block: got {subject} in state {state!r}; "
            + remedy.get(state, "it is shutting down"),
            {"state": state, **details},
        )
        error.__cause__ = self.cause()
        return error

    def wrapped(self, of_block: BaseException | None = None) -> BaseExceptionGroup[BaseException] | None:
        """Return all that there are in a fresh group, together with what the block of the runtime has raised.

        Returns:
            None if there are none; an `AgentCrashedError`, or a plain group if something is among them that no
            ``except Exception`` may catch.
        """
        background = self._all()
        if not background:
            return None
        uncounted = self._uncounted + len(self._errors) + self._ledger.lost_count - len(background)
        return _group(background, uncounted, of_block)

    def take(self, of_block: BaseException | None = None) -> BaseExceptionGroup[BaseException] | None:
        """Return what `wrapped` does, and forget it: it is raised now."""
        group = self.wrapped(of_block)
        if self._is_hosted:
            # A host may keep to itself what is raised at its end.
            for task_id, error in self._ledger.untold():
                self._log_abandoned(task_id, error)
        self._errors.clear()
        self._uncounted = 0
        self._ledger.forget_lost()
        return group

    def _all(self) -> list[BaseException]:
        return [*self._errors, *self._ledger.lost()]

    def _log_abandoned(self, task_id: str, error: CoreError) -> None:
        _logger.error("nobody has learned from a handle that %s", text_of(error), extra={"task_id": task_id})


def _without_interrupt(error: BaseException) -> BaseException | None:
    """Return an error without Ctrl-C, which trio puts into the groups of the task that it came to; None if nothing is left."""
    if isinstance(error, BaseExceptionGroup):
        return error.split(KeyboardInterrupt)[1]
    return None if isinstance(error, KeyboardInterrupt) else error


def _group(
    background: list[BaseException], uncounted: int, of_block: BaseException | None
) -> BaseExceptionGroup[BaseException]:
    count = len(background) + uncounted
    message = f"{count} failures in the background of the runtime: {texts_of(background, count)}"
    failures = [of_block, *background] if of_block is not None else background
    ordinary = [failure for failure in failures if isinstance(failure, Exception)]
    if len(ordinary) == len(failures):
        return AgentCrashedError(message, ordinary, {"failures": count})
    return BaseExceptionGroup(message, failures)
