"""What the agents of a runtime share: opened once, closed when the runtime ends, after everything that may use it.

Each resource is held by a task of its own, because what is entered in a task has to be left in the same one, whoever asks
for it and in which task ever the runtime is left. If it ends by itself (a connection whose background work failed), that
is a crash of the runtime: what relies on it cannot go on.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, AbstractContextManager
from contextvars import copy_context
from typing import Any, TypeAlias, TypeVar, final

import anyio
import anyio.abc

from agentcore import _interop
from agentcore._context import end_structure
from agentcore._failures import Failures
from agentcore.errors import AgentError, CallTimeoutError, ConfigurationError, RuntimeClosedError

T = TypeVar("T")
Manager: TypeAlias = AbstractAsyncContextManager[T] | AbstractContextManager[T]


@final
class _Resource:
    """One of them.

    Attributes:
        value: what entering the context manager gave.
        state: ``opening``, ``open``, ``closing`` or ``closed``.
        error: why it could not be opened or closed.
        is_begun: whether its task has made its first step; one that asyncio has cancelled before never does.
        is_deserted: whether its task was cancelled by asyncio's own ways, as at the end of the loop.
        is_given_up: whether it was cancelled while it was being opened.
        scope: cancels opening and closing; nothing else does.
        told: set when it is to be closed.
        opened: set when it is open, or could not be opened.
        closed: set when nothing of it is left.
    """

    def __init__(self, manager: Manager[Any], name: str | None, close_timeout: float) -> None:
        self.manager = manager
        self.name = name
        self.close_timeout = close_timeout
        self.value: Any = None
        self.state = "opening"
        self.error: BaseException | None = None
        self.is_begun = False
        self.is_given_up = False
        self.is_deserted = False
        self.scope = anyio.CancelScope(shield=True)
        self.told = anyio.Event()
        self.opened = anyio.Event()
        self.closed = anyio.Event()

    def give_up(self, reason: str) -> None:
        """Cancel the opening. It may have come to its end in this very step; then what is open is closed again."""
        self.is_given_up = True
        self.scope.cancel(reason)

    def __str__(self) -> str:
        return repr(self.name) if self.name is not None else f"{type(self.manager).__qualname__}"


@final
class Resources:
    """The resources of one runtime.

    Args:
        failures: where what goes wrong with them is told.
    """

    def __init__(self, failures: Failures) -> None:
        self._failures = failures
        self._group: anyio.abc.TaskGroup | None = None
        self._all: list[_Resource] = []
        self._is_closing = False

    def open(self, group: anyio.abc.TaskGroup) -> None:
        """Hold resources from now on, in this task group."""
        self._group = group

    async def enter(self, manager: Manager[T], name: str | None, close_timeout: float) -> T:
        """Open a resource, or find it; see `AgentRuntime.resource`."""
        while (resource := self._known(manager, name)) is not None:
            await resource.opened.wait()
            if resource.state == "open":
                known: T = resource.value
                return known
            # Whoever opened it could not, or it has been closed: this one tries by itself.
            await resource.closed.wait()
        if self._group is None or self._is_closing:
            raise self._refusal(manager)
        resource = _Resource(manager, name, close_timeout)
        self._all.append(resource)
        context = copy_context()
        context.run(end_structure)
        context.run(self._start, self._group, resource)
        await self._wait_for_opening(resource)
        if resource.state != "open":
            raise resource.error if resource.error is not None else self._refusal(manager)
        value: T = resource.value
        return value

    def get(self, name: str) -> Any:
        """Return a resource that is open.

        Raises:
            ConfigurationError: there is none of this name.
        """
        for resource in self._all:
            if resource.name == name and resource.state == "open":
                return resource.value
        known = [resource.name for resource in self._all if resource.name is not None and resource.state == "open"]
        raise ConfigurationError(
            f"there is no open resource of this name: got {name!r}; "
            f"known are {', '.join(map(repr, known)) or 'none'}; open it with `await runtime.resource(manager, {name!r})`",
            {"name": name, "known": known},
        )

    async def close_all(self) -> None:
        """Close everything, what was opened last first; errors are noted. Shielded by the caller, limited by the resources."""
        self._is_closing = True
        while self._all:
            resource = self._all[-1]
            if not resource.is_begun:
                self._forget(resource)
                continue
            if resource.state == "opening":
                resource.give_up("the runtime ends")
            resource.told.set()
            await resource.closed.wait()

    def _known(self, manager: Manager[Any], name: str | None) -> _Resource | None:
        for resource in self._all:
            if resource.manager is manager:
                return resource
            if name is not None and resource.name == name:
                raise ConfigurationError(
                    f"a name stands for one resource: got {name!r} for {manager!r}, but it is {resource.manager!r}; "
                    "choose another name",
                    {"name": name},
                )
        return None

    async def _wait_for_opening(self, resource: _Resource) -> None:
        """Wait until it is open. Who gives up takes the opening back, and whatever has been done of it."""
        try:
            await resource.opened.wait()
        except BaseException:
            if not resource.is_begun:
                self._forget(resource)
            elif resource.state == "opening":
                resource.give_up("whoever opens it was cancelled")
                with anyio.CancelScope(shield=True):
                    await resource.closed.wait()
            raise

    def _refusal(self, manager: object) -> RuntimeClosedError:
        return RuntimeClosedError(
            f"resources are opened between entering and leaving the block of a runtime: got {manager!r}; "
            "open it inside of the block",
            {"state": "closed" if self._is_closing else "new"},
        )

    def _start(self, group: anyio.abc.TaskGroup, resource: _Resource) -> None:
        group.start_soon(self._hold, resource, name=f"resource {resource}")

    async def _hold(self, resource: _Resource) -> None:
        """Open a resource, keep it until it is told to close, close it: all in this task."""
        if resource.state == "closed":
            return
        resource.is_begun = True
        try:
            with resource.scope:
                if isinstance(resource.manager, AbstractAsyncContextManager):
                    async with resource.manager as resource.value:
                        await self._keep(resource)
                else:
                    with resource.manager as resource.value:
                        await self._keep(resource)
        except BaseException as error:  # noqa: ASYNC103, BLE001 - see below
            cancelled, rest = _interop.split_cancellation(error)
            if cancelled and rest is None and resource.state == "opening":
                # Of its own making, for nothing can cancel this task. It is not passed on: AnyIO would cancel the whole group.
                rest = AgentError(
                    f"opening resource {resource} was cancelled by its own code: got {error!r}; look there"
                )
            self._note(resource, rest)
        else:
            self._note(resource, None)
        finally:
            self._forget(resource)

    def _forget(self, resource: _Resource) -> None:
        resource.state = "closed"
        self._all.remove(resource)
        resource.opened.set()
        resource.closed.set()

    async def _keep(self, resource: _Resource) -> None:
        resource.state = "open"
        # In the order in which they are open now: what was opened by the opening of this one is closed after it.
        self._all.remove(resource)
        self._all.append(resource)
        resource.opened.set()
        while not resource.told.is_set():
            try:
                await resource.told.wait()
            except BaseException as error:  # noqa: ASYNC103 - see below
                # When an asyncio loop ends, it cancels all its tasks at once. Others may still need this one; the end of
                # the runtime closes it in its turn.
                if not _interop.is_native_cancellation(error):
                    raise
                resource.is_deserted = True
        resource.state = "closing"
        resource.scope.deadline = anyio.current_time() + resource.close_timeout

    def _note(self, resource: _Resource, error: BaseException | None) -> None:
        """Tell of the end of a resource, unless it is what was wanted."""
        if resource.state == "opening":
            resource.error = error  # raised to whoever opens it
            if resource.is_given_up and isinstance(error, Exception):
                self._failures.add(error, f"resource {resource} could not be opened, and nobody waits for it any more")
        elif error is not None and not isinstance(error, Exception):
            self._failures.crash(error)
        elif resource.state == "open" and resource.is_deserted and error is None:
            pass  # tasks of its own were cancelled together with the loop's: it is no failure of its own
        elif resource.state == "open" and not resource.is_given_up:
            why = "nothing raised" if error is None else "; ".join(map(repr, _interop.leaves_of(error)))
            ended = AgentError(
                f"resource {resource} ended by itself, while the runtime needs it: got {why}; see the cause"
            )
            ended.__cause__ = error
            self._failures.crash(ended)
        elif error is not None:
            self._failures.add(error, f"resource {resource} could not be closed")
        elif resource.scope.cancelled_caught and not resource.is_given_up:
            late = CallTimeoutError(
                f"closing resource {resource} took longer than its limit: got more than {resource.close_timeout:g} s; "
                "raise close_timeout or close it faster",
                {"name": resource.name, "timeout": resource.close_timeout},
            )
            self._failures.add(late, f"resource {resource} could not be closed")
