"""Logs of events: the newest are kept, sinks hear them at once and harm nobody."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from typing import Any

import attrs
import pytest

from agentcore import Event
from agentcore._events import EventLog, to_datetime
from agentcore._interop import Sources, use_sources


def test_events_are_numbered_and_dated() -> None:
    """From 1 on, in UTC, from the injected clock, with what else is known."""
    log = EventLog()
    with use_sources(Sources(monotonic=lambda: 0.0, wall=lambda: 86400.0, random=random.Random())):
        log.emit("began", size=3)
        log.emit("ended")
    at = datetime(1970, 1, 2, tzinfo=UTC)
    began, ended = log.recent()
    assert began == Event(sequence=1, event_type="began", at=at, data={"size": 3})
    assert ended == Event(sequence=2, event_type="ended", at=at, data={})
    assert at == to_datetime(86400.0)


def test_only_the_newest_are_kept() -> None:
    """The numbers say how many are gone."""
    log = EventLog(capacity=3)
    for number in range(5):
        log.emit("e", n=number)
    assert [(3, 2), (4, 3), (5, 4)] == [(event.sequence, event.data["n"]) for event in log.recent()]


def test_an_event_is_frozen_and_its_dictionary_is_a_copy() -> None:
    """Nobody changes what happened."""
    log = EventLog()
    log.emit("e", n=1)
    event = log.recent()[0]
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        event.sequence = 2  # type: ignore[misc]
    record = event.as_dict()
    record["data"]["n"] = 9
    assert (set(record), event.data) == ({"sequence", "event_type", "at", "data"}, {"n": 1})


def test_sinks_hear_in_order_until_they_unsubscribe() -> None:
    """One after the other, with the same record; ending twice does nothing."""
    log = EventLog()
    heard: list[Any] = []
    stop_first = log.subscribe(lambda event: heard.append((1, event.event_type)))
    stop_second = log.subscribe(lambda event: heard.append((2, event.event_type)))
    log.emit("a")
    stop_first()
    stop_first()
    log.emit("b")
    stop_second()
    log.emit("c")
    assert heard == [(1, "a"), (2, "a"), (2, "b")]


def test_one_sink_twice_is_two() -> None:
    """Each subscription is ended by its own function, also when it is called twice."""
    log = EventLog()
    heard: list[str] = []

    def sink(event: Event) -> None:
        heard.append(event.event_type)

    stop_first = log.subscribe(sink)
    stop_second = log.subscribe(sink)
    log.emit("a")
    stop_first()
    stop_first()
    log.emit("b")
    stop_second()
    log.emit("c")
    assert heard == ["a", "a", "b"]


def test_subscribing_and_ending_inside_of_a_sink() -> None:
    """An emission that is under way goes on with the sinks that it began with."""
    log = EventLog()
    heard: list[str] = []

    def late(event: Event) -> None:
        heard.append(f"late {event.event_type}")

    def first(event: Event) -> None:
        heard.append(f"first {event.event_type}")
        stop_first()
        log.subscribe(late)

    stop_first = log.subscribe(first)
    stop_second = log.subscribe(lambda event: heard.append(f"second {event.event_type}"))
    log.emit("a")
    stop_second()
    log.emit("b")
    assert heard == ["first a", "second a", "late b"]


def test_a_sink_that_emits() -> None:
    """Its event has the next number, and comes to the sinks in between."""
    log = EventLog()
    heard: list[tuple[int, str]] = []

    def echo(event: Event) -> None:
        heard.append((event.sequence, event.event_type))
        if event.event_type == "a":
            log.emit("b")

    log.subscribe(echo)
    log.emit("a")
    assert heard == [(1, "a"), (2, "b")]
    assert ["a", "b"] == [event.event_type for event in log.recent()]


def test_a_sink_that_raises_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """The event is kept, the other sinks get it, the emitter hears nothing."""
    log = EventLog()
    heard: list[str] = []
    log.subscribe(lambda event: 1 / 0)
    log.subscribe(lambda event: heard.append(event.event_type))
    log.emit("a")
    assert heard == ["a"]
    assert len(log.recent()) == 1
    (record,) = caplog.records
    assert record.name == "agentcore.events"
    assert "'a'" in record.getMessage()
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError


def test_what_no_except_exception_may_catch_goes_through() -> None:
    """A sink that wants to end the process may."""
    log = EventLog()

    def leave(event: Event) -> None:
        raise KeyboardInterrupt

    log.subscribe(leave)
    with pytest.raises(KeyboardInterrupt):
        log.emit("a")
    assert len(log.recent()) == 1
