"""Which events belong together: what is around the publisher is written on the event."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any

import pytest

from domain_event_broker import causation_id, correlated, correlation_id
from domain_event_broker.correlation import CorrelationFilter
from domain_event_broker.events import HEADER_CAUSATION_ID, HEADER_CORRELATION_ID, DomainEvent, decode, encode
from domain_event_broker.execution import DirectInbox, execute
from domain_event_broker.handlers import Handler
from domain_event_broker.ports import Action, Delivery
from domain_event_broker.retry import RetryPolicy


def _published() -> DomainEvent:
    event: DomainEvent = DomainEvent("a.b", {})
    encode(event)
    return event


def test_with_nothing_around_an_event_begins_a_story_and_has_no_header() -> None:
    event: DomainEvent = DomainEvent("a.b", {})
    assert encode(event).headers == {}
    assert (event.correlation_id, event.causation_id) == (event.uuid_string, None)


def test_an_event_belongs_to_the_story_around_its_publisher() -> None:
    with correlated("story", "cause"):
        event: DomainEvent = DomainEvent("a.b", {})
        message = encode(event)
    assert message.headers == {HEADER_CORRELATION_ID: "story", HEADER_CAUSATION_ID: "cause"}
    assert (event.correlation_id, event.causation_id) == ("story", "cause")


def test_stories_nest_and_end_also_when_they_fail() -> None:
    with correlated("outer"):
        with correlated("inner", "cause"):
            assert (correlation_id(), causation_id()) == ("inner", "cause")
        assert (correlation_id(), causation_id()) == ("outer", None)
        with pytest.raises(ZeroDivisionError), correlated("inner", "cause"):
            raise ZeroDivisionError
        assert (correlation_id(), causation_id()) == ("outer", None)
        with correlated(None):
            assert _published().headers == {}
    assert (correlation_id(), causation_id()) == (None, None)


@pytest.mark.parametrize("wrong", ["", "a\nb", "x" * 256, "ü" * 128, "\ud800", 5])
def test_an_identity_that_cannot_be_carried_is_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match="correlation_id="), correlated(wrong):
        pass
    with pytest.raises(ValueError, match="causation_id="), correlated("story", wrong):
        pass


def test_threads_do_not_see_the_stories_of_others() -> None:
    seen: list[str | None] = []
    with correlated("mine"):
        thread = threading.Thread(target=lambda: seen.append(correlation_id()))
        thread.start()
        thread.join()
    assert seen == [None]


def test_tasks_see_the_story_that_they_were_started_in_and_no_other() -> None:
    async def tell(name: str) -> str | None:
        with correlated(name):
            await asyncio.sleep(0)
            return correlation_id()

    async def both() -> list[str | None]:
        with correlated("around"):
            inherited = asyncio.create_task(_async_id())
            return [await inherited, *await asyncio.gather(tell("one"), tell("two"))]

    async def _async_id() -> str | None:
        return correlation_id()

    assert asyncio.run(both()) == ["around", "one", "two"]


# --- handlers ---------------------------------------------------------------------------------


def _handle(headers: dict[str, Any], call: Any, event_id: str = "") -> Any:
    body = b'{"routing_key": "a.b", "data": {}, "uuid_string": "the-event"}'
    handler = Handler(call, "test", ("#",))
    delivery = Delivery("test", body, "a.b", event_id, headers)
    return execute(delivery, handler, RetryPolicy(0), DirectInbox())


def test_what_a_handler_publishes_is_caused_by_its_event_and_part_of_its_story() -> None:
    found: list[DomainEvent] = []
    _handle({HEADER_CORRELATION_ID: "story"}, lambda _: found.append(_published()))
    assert (found[0].correlation_id, found[0].causation_id) == ("story", "the-event")


def test_an_event_without_a_story_is_the_beginning_of_one_for_those_it_causes() -> None:
    found: list[DomainEvent] = []
    _handle({}, lambda _: found.append(_published()))
    assert (found[0].correlation_id, found[0].causation_id) == ("the-event", "the-event")


def test_a_foreign_identity_that_cannot_be_carried_on_counts_as_none() -> None:
    found: list[str] = []
    _handle({HEADER_CORRELATION_ID: "a\x00b"}, lambda event: found.append(event.correlation_id))
    assert found == ["the-event"]


def test_a_handler_sees_what_is_on_the_envelope() -> None:
    found: list[DomainEvent] = []
    headers = {HEADER_CORRELATION_ID: "story", HEADER_CAUSATION_ID: "cause", "tenant": "acme"}
    _handle(headers, found.append)
    assert (found[0].correlation_id, found[0].causation_id) == ("story", "cause")
    assert found[0].headers["tenant"] == "acme"


def test_after_a_handler_nothing_is_around_even_if_it_failed() -> None:
    def fail(_: DomainEvent) -> None:
        assert correlation_id() == "story"
        raise SystemExit

    settlement = _handle({HEADER_CORRELATION_ID: "story"}, fail)
    assert settlement.action is Action.DEAD
    assert settlement.failure.error_type == "SystemExit"
    assert (correlation_id(), causation_id()) == (None, None)


def test_a_received_event_that_is_published_again_keeps_its_story_and_nothing_of_its_way() -> None:
    headers = {
        HEADER_CORRELATION_ID: "story",
        "tenant": "acme",
        "event-attempt": 3,
        "event-replays": 1,
        "event-not-before": 5,
        "event-routing-key": "a.b",
        "event-error-reason": "error",
        "event-history-message": "what it was before the replay",
        "event-causation-id": "x" * 5000,
        "x-death": [{}],
    }
    event = decode(b'{"routing_key": "a.b", "data": {}, "uuid_string": "1"}', headers=headers)
    with correlated("another", "cause"):
        message = encode(event)
    assert message.headers == {
        HEADER_CORRELATION_ID: "story",
        HEADER_CAUSATION_ID: "cause",
        "tenant": "acme",
    }


def test_events_are_equal_by_what_they_say_not_by_their_envelopes() -> None:
    event: DomainEvent = DomainEvent("a.b", {"n": 1})
    received = decode(encode(event).body, headers={"tenant": "acme"})
    assert received == event


# --- logs -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("headers", "story"), [({HEADER_CORRELATION_ID: "story"}, "story"), ({}, "1")])
def test_the_line_that_tells_how_an_event_ended_has_its_story(
    headers: dict[str, str], story: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "domain_event_broker.subscriber")
    _handle(headers, lambda _: None, "1")
    (record,) = [each for each in caplog.records if hasattr(each, "outcome")]
    assert (record.outcome, record.correlation_id) == ("handled", story)  # type: ignore[attr-defined]


def test_log_records_are_given_the_story_around_them() -> None:
    record = logging.makeLogRecord({})
    with correlated("story", "cause"):
        assert CorrelationFilter().filter(record)
    assert (record.correlation_id, record.causation_id) == ("story", "cause")  # type: ignore[attr-defined]


def test_log_records_outside_of_any_story_can_be_formatted_all_the_same() -> None:
    record = logging.makeLogRecord({})
    CorrelationFilter().filter(record)
    assert logging.Formatter("[%(correlation_id)s]").format(record) == "[]"


def test_a_log_record_that_knows_its_story_keeps_it() -> None:
    record = logging.makeLogRecord({"correlation_id": "own"})
    with correlated("around"):
        CorrelationFilter().filter(record)
    assert record.correlation_id == "own"  # type: ignore[attr-defined]
