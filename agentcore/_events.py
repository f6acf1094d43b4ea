"""Records of what happened, and the bounded logs that keep the newest of them.

A log costs an append as long as nobody listens. It holds raw tuples; the records are made when somebody looks.
"""

# No `from __future__ import annotations` here: the fields of public classes are read at run time, by cattrs and others.
# Their `__module__` reads agentcore, where names in strings could not be found.

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, TypeAlias, final

import attrs

from agentcore import _interop
from agentcore._interop import sources

_logger: Final = logging.getLogger("agentcore.events")

EventSink: TypeAlias = "Callable[[Event], object]"
_Raw: TypeAlias = tuple[int, str, float, dict[str, Any]]


@final
@attrs.frozen(kw_only=True)
class Event:
    """Something that happened.

    Attributes:
        sequence: position among those of its part, from 1. Gaps are events that its log does not keep, or no longer.
        event_type: what happened, such as ``task_started``.
        at: when, in UTC.
        data: what else is known of it.
    """

    sequence: int
    event_type: str
    at: datetime
    data: Mapping[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """Return the record as a new dictionary with the attributes' names as keys."""
        return {"sequence": self.sequence, "event_type": self.event_type, "at": self.at, "data": dict(self.data)}


def to_datetime(timestamp: float) -> datetime:
    """Return seconds since the epoch as an aware datetime in UTC."""
    return datetime.fromtimestamp(timestamp, UTC)


class Emitter:
    """Tells of what happens to whoever wants to hear of it at once, and keeps nothing."""

    __slots__ = ("_count", "_lock", "_sinks")

    def __init__(self) -> None:
        self._sinks: tuple[EventSink, ...] = ()
        self._count = 0
        self._lock = threading.Lock()  # for the sinks, who come and go in any thread

    @property
    def has_sinks(self) -> bool:
        """Whether anybody wants to hear of what happens at once."""
        return bool(self._sinks)

    def emit(self, event_type: str, /, **data: Any) -> None:
        """Tell the sinks of an event, each in turn. A sink that raises is logged and cannot harm the emitter."""
        self._count += 1
        raw = (self._count, event_type, sources.get().wall(), data)
        self._keep(raw)
        if self._sinks:
            self._tell(raw)

    def tell(self, event_type: str, /, **data: Any) -> None:
        """Tell the sinks of an event that no log keeps. It costs nothing if nobody listens."""
        if self._sinks:
            self._count += 1
            self._tell((self._count, event_type, sources.get().wall(), data))

    def _tell(self, raw: _Raw) -> None:
        _, event_type, _, _ = raw
        event = _record(raw)
        for sink in self._sinks:
            try:
                sink(event)
            except BaseException as error:  # noqa: ASYNC103 - see below
                # A cancellation comes from something that the sink has looked at: nobody has cancelled the emitter.
                if not isinstance(error, Exception) and _interop.cancellation_cause(error) is None:
                    raise
                _logger.exception("sink %r raised on event %r; the other sinks get it", sink, event_type)

    def subscribe(self, sink: EventSink) -> Callable[[], None]:
        """Call a sink with every event from now on, synchronously; it must not block.

        Returns:
            A function that ends this. Calling it again does nothing.
        """
        # A fresh tuple each time: an emission that is under way goes on with the one it began with.
        subscription = [sink]
        with self._lock:
            self._sinks = (*self._sinks, sink)

        def unsubscribe() -> None:
            with self._lock:
                if subscription:
                    sinks = list(self._sinks)
                    sinks.remove(subscription.pop())
                    self._sinks = tuple(sinks)

        return unsubscribe

    def _keep(self, raw: _Raw) -> None:
        """Do nothing: there is no log."""


class EventLog(Emitter):
    """The newest events of one part, and who wants to hear of them at once.

    Args:
        capacity: how many events are kept.
    """

    __slots__ = ("_events",)

    def __init__(self, capacity: int = 256) -> None:
        super().__init__()
        self._events: deque[_Raw] = deque(maxlen=capacity)

    def recent(self) -> tuple[Event, ...]:
        """Return the events that are kept, oldest first."""
        return tuple(map(_record, list(self._events)))  # copied at once: others emit in their threads

    def _keep(self, raw: _Raw) -> None:
        self._events.append(raw)


def _record(raw: _Raw) -> Event:
    sequence, event_type, at, data = raw
    return Event(sequence=sequence, event_type=event_type, at=to_datetime(at), data=data)
