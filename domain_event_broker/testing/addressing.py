"""What a transport promises that can put events into the queue of one handler."""

from __future__ import annotations

from typing import cast

from domain_event_broker.ports import Action, Addressing, Stored, Transport
from domain_event_broker.testing.samples import AWKWARD_BODIES, FOREIGN_HEADERS
from domain_event_broker.testing.workbench import TransportWorkbench, foreign_headers_of


class AddressingPromises(TransportWorkbench):
    """What a transport promises that has ``send_to``; those without it are not asked."""

    def addressing(self, transport: Transport) -> Addressing:
        """Return the transport, or skip the test."""
        if not hasattr(transport, "send_to"):
            raise self.not_applicable("it cannot put events into the queue of one handler")
        return cast(Addressing, transport)

    def test_events_go_to_one_handler_and_to_no_other(self) -> None:
        transport, handler = self.start_handler()
        other = self.subscription(binding_keys=handler.binding_keys)
        transport.declare(other)
        sent = [self.message(f"{handler.name}.größe", body, FOREIGN_HEADERS) for body in AWKWARD_BODIES]
        outcomes = self.addressing(transport).send_to(handler.name, sent)
        assert [outcome.stored for outcome in outcomes] == [Stored.STORED] * len(sent)
        deliveries = self.collect(transport, len(sent))
        assert [delivery.body for delivery in deliveries] == [message.body for message in sent]
        assert {delivery.routing_key for delivery in deliveries} == {f"{handler.name}.größe"}
        assert [each.event_id for each in deliveries] == [message.event_id for message in sent]
        assert foreign_headers_of(deliveries[0]) == FOREIGN_HEADERS
        assert {delivery.retries for delivery in deliveries} == {0}
        self.answer(transport, deliveries, Action.ACK)
        assert transport.stats([other.name])[other.name].ready == 0

    def test_events_keep_their_order_behind_those_that_wait(self) -> None:
        transport, handler = self.start_handler()
        first, second, third = (self.message(f"{handler.name}.a", b"%d" % n) for n in range(3))
        self.publish(transport, first)
        self.addressing(transport).send_to(handler.name, [second, third])
        deliveries = self.collect(transport, 3)
        assert [delivery.body for delivery in deliveries] == [b"0", b"1", b"2"]
        self.answer(transport, deliveries, Action.ACK)

    def test_an_event_that_fails_after_it_was_sent_to_one_handler_keeps_its_routing_key(self) -> None:
        transport, handler = self.start_handler()
        message = self.message(f"{handler.name}.a", b"{}")
        self.addressing(transport).send_to(handler.name, [message])
        self.answer(transport, self.collect(transport, 1), Action.DEAD, failure=self.failure())
        (letter,) = self.browse(transport.dead_letters(handler.name))
        assert (letter.routing_key, letter.event_id) == (message.routing_key, message.event_id)

    def test_events_for_a_queue_that_does_not_exist_are_unroutable(self) -> None:
        transport = self.connect()
        outcomes = self.addressing(transport).send_to(self.fresh_name(), [self.message("a.b", b"{}")])
        assert [outcome.stored for outcome in outcomes] == [Stored.UNROUTABLE]
        assert self.addressing(transport).send_to(self.fresh_name(), []) == []
