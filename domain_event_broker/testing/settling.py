"""What a transport promises about answers: acknowledged, given back, retried, dead."""

from __future__ import annotations

from domain_event_broker.ports import (
    Action,
    Settlement,
)
from domain_event_broker.testing.samples import FOREIGN_HEADERS
from domain_event_broker.testing.workbench import (
    TransportWorkbench,
    bodies_of,
    foreign_headers_of,
)

#: Seconds by which a retry may come early: clocks and timers are not exact.
EARLY = 0.05


class SettlingPromises(TransportWorkbench):
    """What a transport promises about answers: acknowledged, given back, retried, dead."""

    # --- settling ------------------------------------------------------------------------

    def test_an_acknowledged_event_is_forgotten(self) -> None:
        transport, handler = self.start_handler()
        self.answer(transport, self.deliver(transport, handler, b"1", b"2"), Action.ACK)
        self.disconnect(transport)
        other = self.connect()
        other.subscribe(handler)
        assert self.collect_until_marker(other, handler) == []

    def test_closing_gives_unsettled_events_back(self) -> None:
        transport, handler = self.start_handler()
        deliveries = self.deliver(transport, handler, b"1", b"2", b"3")
        self.answer(transport, deliveries[:1], Action.ACK)
        self.disconnect(transport)
        other = self.connect()
        other.subscribe(handler)
        again = self.collect(other, 2)
        assert bodies_of(again) == [b"2", b"3"]
        assert [delivery.retries for delivery in again] == [0, 0]

    def test_a_connection_that_dies_gives_its_events_back(self) -> None:
        transport, handler = self.start_handler()
        (before,) = self.deliver(transport, handler, b"{}")
        self.crash(transport)
        other = self.connect()
        other.subscribe(handler)
        (after,) = self.collect(other)
        assert (after.event_id, after.body, after.retries) == (before.event_id, before.body, 0)

    def test_crashes_are_counted(self) -> None:
        if not self.counts_crashes:
            raise self.not_applicable("it does not count crashes")
        handler = self.subscription()
        for crashes in range(3):
            transport = self.connect()
            transport.subscribe(handler)
            if not crashes:
                self.publish_to(transport, handler, b"{}")
            (delivery,) = self.collect(transport)
            assert (delivery.crashes, delivery.retries) == (crashes, 0)
            self.crash(transport)

    def test_closing_twice_is_allowed(self) -> None:
        transport = self.connect()
        transport.close()
        transport.close()

    def test_a_requeued_event_comes_back_as_it_was(self) -> None:
        transport, handler = self.start_handler()
        self.publish(transport, self.message(f"{handler.name}.placed", b"\x00", FOREIGN_HEADERS))
        for _ in range(3):
            (delivery,) = self.collect(transport)
            assert (delivery.body, delivery.retries) == (b"\x00", 0)
            assert foreign_headers_of(delivery) == FOREIGN_HEADERS
            self.answer(transport, [delivery], Action.REQUEUE)
        self.answer(transport, self.collect(transport), Action.ACK)
        assert self.collect_until_marker(transport, handler) == []

    def test_a_retried_event_keeps_all_but_its_retries(self) -> None:
        transport, handler = self.start_handler(delays=(0.1,))
        sent = self.message(f"{handler.name}.placed", b"\xff\x00", FOREIGN_HEADERS)
        self.publish(transport, sent)
        for retries in range(4):
            (delivery,) = self.collect(transport)
            assert delivery.retries == retries
            assert (delivery.queue, delivery.body) == (handler.name, sent.body)
            assert (delivery.routing_key, delivery.event_id) == (sent.routing_key, sent.event_id)
            assert foreign_headers_of(delivery) == FOREIGN_HEADERS
            self.answer(transport, [delivery], Action.RETRY, 0.1, self.failure(attempts=retries + 1))

    def test_a_retried_event_comes_back_once_and_to_its_handler_only(self) -> None:
        transport, (one, other) = self.start_two_handlers()
        self.publish(transport, self.message(one.binding_keys[0]))
        by_queue = {delivery.queue: delivery for delivery in self.collect(transport, 2)}
        transport.settle(
            [
                Settlement(by_queue[one.name], Action.RETRY, 0.1),
                Settlement(by_queue[other.name], Action.ACK),
            ]
        )
        (again,) = self.collect(transport)
        assert (again.queue, again.retries) == (one.name, 1)
        self.answer(transport, [again], Action.ACK)
        self.publish(transport, self.message(one.binding_keys[0], b"marker"))
        assert bodies_of(self.collect(transport, 2)) == [b"marker", b"marker"]

    def test_no_retry_comes_before_its_delay(self) -> None:
        transport, handler = self.start_handler(delays=(0.05, 0.2, 1.0))
        for delay in (0.05, 0.2, 1.0, 0.7):
            (delivery,) = self.deliver(transport, handler, b"{}")
            began = self.now()
            self.answer(transport, [delivery], Action.RETRY, delay)
            ((at, again),) = self.arrivals(transport, 1, delay + self.patience)
            assert at - began >= delay - EARLY, f"delay {delay}"
            self.answer(transport, [again], Action.ACK)

    def test_a_retry_without_delay_comes_back(self) -> None:
        transport, handler = self.start_handler()
        self.answer(transport, self.deliver(transport, handler, b"{}"), Action.RETRY, 0.0)
        assert self.collect(transport)[0].retries == 1

    def test_retries_of_many_delays_all_come_and_none_too_early(self) -> None:
        transport, handler = self.start_handler(delays=(0.1, 1.0))
        delays = {
            b"%d" % number: delay for number, delay in enumerate((1.6, 0.1, 0.55, 0.0, 1.0, 0.3, 0.123))
        }
        deliveries = self.deliver(transport, handler, *delays)
        began = self.now()
        transport.settle([Settlement(each, Action.RETRY, delays[each.body]) for each in deliveries])
        arrived = self.arrivals(transport, len(delays), 1.6 + self.patience)
        assert {each.body for _, each in arrived} == set(delays)
        early = [(each.body, at) for at, each in arrived if at - began < delays[each.body] - EARLY]
        assert early == []

    def test_a_long_delay_does_not_hold_up_a_short_one(self) -> None:
        transport, handler = self.start_handler(delays=(0.2, 300.0))
        long, short = self.deliver(transport, handler, b"long", b"short")
        self.answer(transport, [long], Action.RETRY, 300.0)
        self.answer(transport, [short], Action.RETRY, 0.2)
        assert bodies_of(self.collect(transport) + self.collect_until_marker(transport, handler)) == [
            b"short"
        ]
        self.eventually(lambda: transport.stats([handler.name])[handler.name].delayed, 1)

    def test_a_retry_outlives_the_connection_that_asked_for_it(self) -> None:
        transport, handler = self.start_handler(delays=(0.3,))
        self.answer(transport, self.deliver(transport, handler, b"{}"), Action.RETRY, 0.3)
        self.disconnect(transport)
        other = self.connect()
        other.subscribe(handler)
        assert self.collect(other)[0].retries == 1

    def test_a_batch_of_all_kinds_of_answers_is_settled(self) -> None:
        transport, handler = self.start_handler()
        done, later, dead, back = self.deliver(transport, handler, b"done", b"later", b"dead", b"back")
        transport.settle(
            [
                Settlement(done, Action.ACK),
                Settlement(later, Action.RETRY, 0.1, self.failure()),
                Settlement(dead, Action.DEAD, failure=self.failure()),
                Settlement(back, Action.REQUEUE),
            ]
        )
        again = self.collect(transport, 2)
        assert {(delivery.body, delivery.retries) for delivery in again} == {(b"later", 1), (b"back", 0)}
        assert bodies_of(self.browse(transport.dead_letters(handler.name))) == [b"dead"]

    def test_settling_nothing_does_nothing(self) -> None:
        self.connect().settle([])
