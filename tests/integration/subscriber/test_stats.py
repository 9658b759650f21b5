"""Figures of a subscriber: what its handlers have to answer for, and what they never saw."""

from __future__ import annotations

from domain_event_broker import DomainEvent, Reject
from domain_event_broker.events import Message, new_event_id
from tests.integration.subscriber.conftest import Bench


def test_what_no_handler_saw_is_no_error_of_a_handler(bench: Bench) -> None:
    def reject(event: DomainEvent) -> None:
        raise Reject("no")

    handler = bench.handler(reject)
    key = handler.binding_keys[0]
    bench.publish(handler, 1)
    bench.send([Message(key, body, new_event_id()) for body in (b"no JSON", b"[]", b'{"data": {}}')])
    with bench.consuming(handler) as consumer:
        bench.dead_letters(handler, 4)
    figures = consumer.stats.as_dict()
    assert figures["events_processed_failed"] == figures["messages_sent_to_dlq"] == 4
    assert figures["handlers_invoked"] == figures["handler_errors"] == 1
