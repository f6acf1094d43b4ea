"""What goes wrong in the background of a runtime, until somebody learns of it.

Three things: tasks that failed and whose handle nobody has asked (the `Ledger` has them), mishaps that harm nothing else
(the clean-up of an agent), and the one crash that ends the runtime. Each is told once: raised where the runtime is left,
and logged when it happens if that may be long after (a hosted runtime).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from agentcore._ledger import Ledger
from agentcore.errors import AgentCrashedError, CoreError, text_of

_logger: Final = logging.getLogger("agentcore.runtime")
MAX_TOLD: Final = 5
"""How many failures a message tells of by their text; further ones are counted."""


class Failures:
    """The failures of one runtime that have reached nobody so far.

    Args:
        ledger: has those of tasks.
        is_logged: whether they are logged when they happen.

    Attributes:
        fatal: what ended the runtime; None as long as nothing did.
    """

    def __init__(self, ledger: Ledger, *, is_logged: bool) -> None:
        self.fatal: BaseException | None = None
        self._ledger = ledger
        self._is_logged = is_logged
        self._errors: list[BaseException] = []
        self._on_crash: Callable[[BaseException], object] | None = None
        if is_logged:
            ledger.on_abandoned = self._log_abandoned

    def on_crash(self, callback: Callable[[BaseException], object]) -> None:
        """Have the owner called at the first crash."""
        self._on_crash = callback

    def add(self, error: Exception, what: str) -> None:
        """Note a mishap, for the exit."""
        self._errors.append(error)
        if self._is_logged:
            _logger.error("%s: %s", what, text_of(error), exc_info=error)

    def crash(self, error: BaseException) -> None:
        """Note what nothing in the runtime can go on after, and tell the owner, who ends it.

        Ctrl-C is not kept in a hosted runtime: the owner hands it on to the program, which it was meant for.
        """
        if not (self._is_logged and isinstance(error, KeyboardInterrupt)):
            self._errors.append(error)
            if self._is_logged:
                _logger.critical("the runtime has failed and ends: %r", error, exc_info=error)
        if self.fatal is None:
            self.fatal = error
            if self._on_crash is not None:
                self._on_crash(error)

    def current(self) -> tuple[BaseException, ...]:
        """Return all that there are, those of tasks last."""
        return *self._errors, *self._ledger.lost()

    def wrapped(self, of_block: BaseException | None = None) -> BaseExceptionGroup[BaseException] | None:
        """Return all that there are in a fresh group, together with what the block of the runtime has raised.

        Returns:
            None if there are none; an `AgentCrashedError`, or a plain group if something is among them that no
            ``except Exception`` may catch.
        """
        background = self.current()
        if not background:
            return None
        count = len(self._errors) + self._ledger.lost_count
        told = [text_of(failure) or type(failure).__name__ for failure in background[:MAX_TOLD]]
        if count > len(told):
            told.append(f"and {count - len(told)} more")
        message = f"{count} failures in the background of the runtime: {'; '.join(told)}"
        failures = [of_block, *background] if of_block is not None else list(background)
        ordinary = [failure for failure in failures if isinstance(failure, Exception)]
        if len(ordinary) == len(failures):
            return AgentCrashedError(message, ordinary, {"failures": count})
        return BaseExceptionGroup(message, failures)

    def take(self, of_block: BaseException | None = None) -> BaseExceptionGroup[BaseException] | None:
        """Return what `wrapped` does, and forget it: it is raised now."""
        group = self.wrapped(of_block)
        self._errors.clear()
        self._ledger.forget_lost()
        return group

    def _log_abandoned(self, handle_id: str, error: CoreError) -> None:
        _logger.error("nobody will learn from a handle that %s", text_of(error), extra={"task_id": handle_id})
