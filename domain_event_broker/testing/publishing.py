"""What a transport promises to those who publish, and how it routes."""

from __future__ import annotations

import time

from domain_event_broker.ports import (
    Action,
    Stored,
)
from domain_event_broker.testing.samples import AWKWARD_BODIES, FOREIGN_HEADERS, TOPICS
from domain_event_broker.testing.workbench import (
    TransportWorkbench,
    bodies_of,
    foreign_headers_of,
    ids_of,
)


class PublishingPromises(TransportWorkbench):
    """What a transport promises to those who publish, and how it routes."""

    # --- publishing ----------------------------------------------------------------------

    def test_a_published_event_arrives_with_body_key_identity_and_headers(self) -> None:
        transport, handler = self.start_handler()
        sent = self.message(f"{handler.name}.placed", b'{"n": 1}', FOREIGN_HEADERS)
        self.publish(transport, sent)
        (got,) = self.collect(transport)
        assert (got.queue, got.body) == (handler.name, sent.body)
        assert (got.routing_key, got.event_id) == (sent.routing_key, sent.event_id)
        assert (got.retries, got.crashes) == (0, 0)
        assert foreign_headers_of(got) == FOREIGN_HEADERS

    def test_an_event_nobody_subscribes_to_is_told_to_be_unroutable(self) -> None:
        transport = self.connect()
        (outcome,) = transport.publish([self.message(f"{self.fresh_name()}.placed")])
        assert outcome.stored is Stored.UNROUTABLE

    def test_the_outcomes_of_a_mixed_batch_are_in_the_order_of_its_messages(self) -> None:
        transport, handler = self.start_handler()
        keys = [
            f"{name}.placed" for name in (handler.name, self.fresh_name(), handler.name, self.fresh_name())
        ]
        outcomes = transport.publish([self.message(key) for key in keys])
        stored, unroutable = Stored.STORED, Stored.UNROUTABLE
        assert [outcome.stored for outcome in outcomes] == [stored, unroutable, stored, unroutable]
        assert len(self.collect_until_marker(transport, handler)) == 2

    def test_an_empty_batch_has_no_outcomes(self) -> None:
        assert self.connect().publish([]) == []

    def test_an_event_may_be_published_by_another_connection(self) -> None:
        transport, handler = self.start_handler()
        publisher = self.connect()
        (sent,) = self.publish_to(publisher, handler, b"{}")
        self.disconnect(publisher)
        assert self.collect(transport)[0].event_id == sent.event_id

    def test_bodies_of_any_bytes_arrive_unchanged(self) -> None:
        transport, handler = self.start_handler()
        assert bodies_of(self.deliver(transport, handler, *AWKWARD_BODIES)) == list(AWKWARD_BODIES)

    def test_a_body_of_a_megabyte_arrives_unchanged(self) -> None:
        transport, handler = self.start_handler()
        body = bytes(range(256)) * 4096
        (delivery,) = self.deliver(transport, handler, body)
        assert delivery.body == body

    def test_a_routing_key_of_the_greatest_length_is_carried(self) -> None:
        transport, handler = self.start_handler()
        key = f"{handler.name}.".ljust(255, "k")
        self.publish(transport, self.message(key))
        assert self.collect(transport)[0].routing_key == key

    # --- routing -------------------------------------------------------------------------

    def test_topics_are_matched_as_amqp_does(self) -> None:
        transport, word = self.connect(), self.fresh_name()
        wrong = []
        for binding_key, routing_key, routed in TOPICS:
            own = f"{word}{len(self._queues)}"
            handler = self.subscription(binding_keys=(binding_key.replace("@", own),))
            transport.declare(handler)
            (outcome,) = transport.publish([self.message(routing_key.replace("@", own))])
            if (outcome.stored is Stored.STORED) is not routed:
                wrong.append((binding_key, routing_key, outcome))
        assert wrong == []

    def test_a_handler_bound_to_everything_gets_everything(self) -> None:
        transport, word = self.connect(), self.fresh_name()
        handler = self.subscription(binding_keys=("#",))
        transport.subscribe(handler)
        sent = [self.message(key) for key in (word, f"{word}.placed", f"a.b.{word}.c")]
        self.publish(transport, *sent)
        # Other tests may be publishing to the same broker: theirs arrive here, too.
        ours = {message.event_id for message in sent}
        end = time.monotonic() + self.patience
        while ours and time.monotonic() < end:
            (delivery,) = self.collect(transport)
            ours.discard(delivery.event_id)
            self.answer(transport, [delivery], Action.ACK)
        assert ours == set()

    def test_an_event_that_matches_several_keys_of_a_handler_arrives_once(self) -> None:
        transport, word = self.connect(), self.fresh_name()
        keys = (f"{word}.placed", f"{word}.*", f"{word}.#", f"*.placed.{word}")
        handler = self.subscription(name=word, binding_keys=keys)
        transport.subscribe(handler)
        (sent,) = self.publish_to(transport, handler, b"{}")
        assert ids_of(self.collect_until_marker(transport, handler)) == [sent.event_id]

    def test_each_handler_gets_its_own_copy(self) -> None:
        transport, (one, other) = self.start_two_handlers()
        self.publish(transport, self.message(one.binding_keys[0], b"copied"))
        deliveries = self.collect(transport, 2)
        assert sorted(delivery.queue for delivery in deliveries) == sorted([one.name, other.name])
        assert bodies_of(deliveries) == [b"copied", b"copied"]
